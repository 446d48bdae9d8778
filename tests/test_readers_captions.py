"""COCO captions, Flickr30k, NLVR2, SNLI-VE: every release gives the same frames, and damaged files give one clear error."""
import csv
import gzip
import io
import json
import math
import subprocess
import sys
import textwrap

import fuzz
from fuzz import tries
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl12in1.corpora import CorpusError
from vl12in1.corpora.layout import RELEASES, release_of
from vl12in1.corpora.retrieval import _held_out, read_coco_captions, read_flickr30k
from vl12in1.corpora.verification import nlvr2_statements, read_nlvr2, read_snli_ve
from vl12in1.world import WorldConfig, plan_world
from vl12in1.world.writers import WRITERS

READERS = {"coco_captions": read_coco_captions, "flickr30k": read_flickr30k, "nlvr2": read_nlvr2, "snli_ve": read_snli_ve}
SPLITS = ("train", "val", "test")
COLUMNS = {"coco_captions": [], "flickr30k": [], "nlvr2": ["label"], "snli_ve": ["premise", "label"]}


def table(rows, delimiter):
    "Rows of values of any kind as the bytes of a table."
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(row if isinstance(row, list) else [row] for row in rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def lines(rows):
    "Rows of values of any kind as tab-separated lines without quotes."
    return "".join("\t".join(map(str, row if isinstance(row, list) else [row])) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def encoded(content):
    "Tables and plain lines, which `fuzz` does not know, as bytes; other files unchanged."
    def encode(path, value):
        if not isinstance(value, list): return value
        suffix = path.rpartition(".")[2]
        if suffix in ("tsv", "csv"): return table(value, "\t" if suffix == "tsv" else ",")
        return lines(value) if suffix in ("token", "txt") else value
    return {path: encode(path, value) for path, value in content.items()}


def read(folder, corpus, content):
    return READERS[corpus](fuzz.write(folder, encoded(content)))


# ---------------------------------------------------------------------------------------------------------------------
# Little folders, one per release


def karpathy(name, ids):
    images = [{"cocoid": id, "filename": f"{id}.jpg", "split": split,
               "sentences": [{"raw": f"caption {n}", "sentid": 10 * id + n} for n in range(2)]}
              for id, split in zip(ids, ("train", "restval", "val", "test"))]
    return {name: {"images": images}}


def raw(subset, images):
    return {f"coco_captions/annotations/captions_{subset}.json": {"images": [{"id": id} for id in images], "annotations": [
        {"id": 10 * image + n, "image_id": image, "caption": f"caption {n}"} for image in images for n in range(2)]}}


def pairs(image, **renamed):
    rows = [{"Flikr30kID": f"{image}.jpg", "pairID": f"{image}.jpg#{n}r1n", "gold_label": label, "sentence1": "a", "sentence2": "b"}
            for n, label in enumerate(("neutral", "entailment"))]
    return [{renamed.get(field, field): value for field, value in row.items()} for row in rows]


TSV = ["gold_label", "sentence1_tokens", "sentence2_tokens", "image", "sentence1", "sentence2", "pairID", "explanation"]
CSV = ["", "pairID", "Flickr30kID", "hypothesis", "gold_label", "explanation"]


def tsv(rows, header=True):
    return [list(TSV)] * header + [[row["gold_label"], "a", "b", row["Flikr30kID"] + "#0", row["sentence1"], row["sentence2"],
                              row["pairID"], 'so "it"\tis'] for row in rows]


def comma(rows):
    return [list(CSV)] + [[str(n), row["pairID"], row["Flikr30kID"], row["sentence2"], row["gold_label"], 'because,\n"it" is']
                    for n, row in enumerate(rows)]


def folder(corpus, release):
    "A few records of each file of a release."
    if (corpus, release) == ("coco_captions", "karpathy"): return karpathy("coco_captions/dataset_coco.json", range(40, 44))
    if release == "karpathy": return karpathy("flickr30k/dataset_flickr30k.json", range(60, 64))
    if release == "raw": return raw("train2014", [8, 9]) | raw("val2014", [42, 43, 44])
    if release == "token":
        named = {"train": ["60", "61"], "val": ["62"], "test": ["63"]}
        return {"flickr30k/results_20130124.token": [[f"{id}.jpg#{n}", f"caption {n}"] for ids in named.values() for id in ids
                                                     for n in range(2)],
                **{f"flickr30k/{split}.txt": [[id] for id in ids] for split, ids in named.items()}}
    if corpus == "nlvr2":
        return {f"nlvr2/{split}.json": [{"identifier": f"{split}-1-0-{n}", "sentence": "two cups", "label": str(n == 0)}
                                        for n in range(2)] for split in ("train", "dev", "test1")}
    names = [*enumerate(("train", "dev", "test"), 60)]
    if release == "original": return {f"snli_ve/snli_ve_{name}.jsonl": pairs(id) for id, name in names}
    if release == "e-snli-ve": return {f"snli_ve/esnlive_{name}.csv": comma(pairs(id)) for id, name in names}
    if release == "e-snli-ve-2.0 merged": return {f"snli_ve/esnli_ve_{name}.tsv": tsv(pairs(id)) for id, name in names}
    return {"snli_ve/esnli_ve_train_2.tsv": tsv(pairs(70), header=False)} | {
        f"snli_ve/esnli_ve_{'train_1' if name == 'train' else name}.tsv": tsv(pairs(id)) for id, name in names}


FOLDERS = {(corpus, release): folder(corpus, release) for corpus in READERS for release in RELEASES[corpus]}


def images_of(frame):
    return {key for keys in frame["images"] for key in keys}


def check(corpus, frames, shared=frozenset()):
    "What has to hold of all frames, whatever they were read from."
    assert list(frames) == list(SPLITS)
    for frame in frames.values():
        assert list(frame.columns) == ["uid", "images", "text", *COLUMNS[corpus]] and isinstance(frame.index, pd.RangeIndex)
        assert frame["uid"].is_unique
        assert all(type(value) is str for name in ("uid", "text") for value in frame[name])
        assert all(len(keys) == (2 if corpus == "nlvr2" else 1) for keys in frame["images"])
        assert all(type(key) is str and ":" in key for key in images_of(frame))
        if "label" in frame: assert set(frame["label"]) <= {0, 1, 2}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert images_of(frames[one]) & images_of(frames[other]) <= shared


@pytest.mark.parametrize("corpus, release", FOLDERS)
def test_every_release_reads(tmp_path, corpus, release):
    frames = read(tmp_path, corpus, FOLDERS[corpus, release])
    assert release_of(tmp_path, corpus) == release
    check(corpus, frames)
    assert all(map(len, frames.values()))


@pytest.mark.parametrize("corpus, release", FOLDERS)
@given(data=st.data())
@tries(80)
def test_damaged_folders_give_frames_or_one_error(tmp_path_factory, corpus, release, data):
    content = data.draw(fuzz.damaged(FOLDERS[corpus, release]))
    try:
        check(corpus, read(tmp_path_factory.mktemp("damaged"), corpus, content))
    except CorpusError as error:
        assert corpus in str(error)


@pytest.mark.parametrize("corpus, release", FOLDERS)
@given(data=st.data())
@tries(25)
def test_rubbish_is_one_error_that_names_the_file(tmp_path_factory, corpus, release, data):
    path, rubbish = data.draw(st.sampled_from(sorted(FOLDERS[corpus, release]))), data.draw(st.binary(max_size=60))
    root = tmp_path_factory.mktemp("rubbish")
    with pytest.raises(CorpusError) as error:
        read(root, corpus, FOLDERS[corpus, release] | {path: rubbish})
    assert path in str(error.value) or path.endswith((".token", ".txt")) and "flickr30k" in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# The world's files, and the same in every other layout


@pytest.fixture(scope="module", params=range(3))
def world(request):
    return plan_world(WorldConfig(seed=request.param, scale=.02))


def content_of(world, corpus):
    "path -> bytes of the world's files of a corpus, and the same parsed."
    files = WRITERS[corpus](world)
    return files, {path: [json.loads(line) for line in value.splitlines()] if corpus in ("nlvr2", "snli_ve") else json.loads(value)
                   for path, value in files.items()}


def rows(frames):
    return {split: frame.to_dict("records") for split, frame in frames.items()}


@pytest.mark.parametrize("corpus, key", [("coco_captions", lambda image: f"coco:{image['cocoid']}"),
                                         ("flickr30k", lambda image: f"flickr30k:{image['filename'][:-4]}")])
def test_karpathy_round_trip(tmp_path, world, corpus, key):
    files, [content] = content_of(world, corpus)[0], content_of(world, corpus)[1].values()
    frames = read(tmp_path, corpus, files)
    check(corpus, frames)
    for split, parts in zip(SPLITS, (("train", "restval"), ("val",), ("test",))):
        assert images_of(frames[split]) == {key for part in parts for key in world.splits[corpus].get(part, ())}
        assert rows(frames)[split] == [{"uid": str(sentence["sentid"]), "images": (key(image),), "text": sentence["raw"]}
                                       for image in content["images"] if image["split"] in parts for sentence in image["sentences"]]


def test_raw_coco_has_the_same_captions_in_other_splits(tmp_path, world):
    files, [content] = content_of(world, "coco_captions")[0], content_of(world, "coco_captions")[1].values()
    annotations = {"train2014": [], "val2014": []}
    for image in content["images"]:
        annotations[image["filepath"]] += [{"id": sentence["sentid"], "image_id": image["cocoid"], "caption": sentence["raw"]}
                                           for sentence in image["sentences"]]
    frames = read(tmp_path / "raw", "coco_captions", {f"coco_captions/annotations/captions_{subset}.json": {"annotations": rows}
                                                      for subset, rows in annotations.items()})
    check("coco_captions", frames)
    ours, his = (pd.concat(splits, ignore_index=True).sort_values("uid", ignore_index=True)
                 for splits in (frames, read(tmp_path / "karpathy", "coco_captions", files)))
    pd.testing.assert_frame_equal(ours, his)
    ids = sorted({row["image_id"] for row in annotations["val2014"]})
    sixth = math.ceil(len(ids) / 6)
    assert images_of(frames["test"]) == {f"coco:{id}" for id in ids[-sixth:]}
    assert images_of(frames["val"]) == {f"coco:{id}" for id in ids[-2 * sixth:-sixth]}


def test_token_file_gives_the_frames_of_karpathys(tmp_path, world):
    files, [content] = content_of(world, "flickr30k")[0], content_of(world, "flickr30k")[1].values()
    token = {"flickr30k/results_20130124.token": [[f"{image['filename']}#{n}", sentence["raw"]] for image in content["images"]
                                                  for n, sentence in enumerate(image["sentences"])]}
    token |= {f"flickr30k/{split}.txt": [[image["filename"][:-4]] for image in content["images"] if image["split"] == split]
              for split in SPLITS}
    ours, his = read(tmp_path / "token", "flickr30k", token), read(tmp_path / "karpathy", "flickr30k", files)
    for split in SPLITS:
        pd.testing.assert_frame_equal(ours[split].drop(columns="uid"), his[split].drop(columns="uid"))
        assert ours[split]["uid"].tolist() == [f"{keys[0].split(':')[1]}.jpg#{n % world.config.captions}"
                                               for n, keys in enumerate(his[split]["images"])]


def same(one, other):
    for split in SPLITS: pd.testing.assert_frame_equal(one[split], other[split])


def test_nlvr2_round_trip(tmp_path, world):
    files, content = content_of(world, "nlvr2")
    frames = read(tmp_path / "plain", "nlvr2", files)
    check("nlvr2", frames, shared={*world.aliases.values()})
    assert images_of(frames["test"]) & (images_of(frames["train"]) | images_of(frames["val"])) == {*world.aliases.values()}
    for split, name in zip(SPLITS, ("train", "dev", "test1")):
        statements = content[f"nlvr2/{name}.json"]
        assert images_of(frames[split]) == {*map(world.key, world.splits["nlvr2"][name])}
        assert rows(frames)[split] == [
            {"uid": row["identifier"], "text": row["sentence"], "label": int(row["label"] == "True"),
             "images": tuple(world.key(f"nlvr2:{row['identifier'].rpartition('-')[0]}-img{n}") for n in (0, 1))} for row in statements]
    same(frames, read(tmp_path / "packed", "nlvr2", {path + ".gz": gzip.compress(value) for path, value in files.items()}))


@pytest.mark.parametrize("name", ["test2", "balanced_dev", "unbalanced_dev", "balanced_test1", "unbalanced_test1"])
def test_further_files_of_nlvr2(tmp_path, world, name):
    kind, _, split = name.rpartition("_")
    source = "dev" if split == "dev" else "test1"
    text = WRITERS["nlvr2"](world)[f"nlvr2/{source}.json"].replace(f'"{source}-'.encode(), f'"{split}-'.encode())
    fuzz.write(tmp_path, {f"nlvr2/{kind}/{name}.json" if kind else f"nlvr2/{name}.json": text, f"nlvr2/{split}.json": text})
    pd.testing.assert_frame_equal(nlvr2_statements(tmp_path, name), nlvr2_statements(tmp_path, split))


def test_snli_ve_round_trip_and_its_releases(tmp_path, world):
    files, content = content_of(world, "snli_ve")
    frames = read(tmp_path / "original", "snli_ve", files)
    check("snli_ve", frames)
    labels = {"contradiction": 0, "neutral": 1, "entailment": 2}
    content = {path.split("_")[-1].removesuffix(".jsonl"): value for path, value in content.items()}
    for split, name in zip(SPLITS, ("train", "dev", "test")):
        assert images_of(frames[split]) == set(world.splits["snli_ve"][name])
        assert rows(frames)[split] == [
            {"uid": row["pairID"], "images": (f"flickr30k:{row['Flikr30kID'][:-4]}",), "text": row["sentence2"],
             "premise": row["sentence1"], "label": labels[row["gold_label"]]} for row in content[name]]
    renamed = {f"snli_ve/snli_ve_{name}.jsonl": [{"Flickr30K_ID" if field == "Flikr30kID" else field: value.removesuffix(".jpg")
                                                  if field == "Flikr30kID" else value for field, value in row.items()}
                                                 for row in value] for name, value in content.items()}
    same(frames, read(tmp_path / "renamed", "snli_ve", renamed))
    half = len(content["train"]) // 2
    for header in (True, False):
        tables = {"snli_ve/esnli_ve_train_1.tsv": tsv(content["train"][:half]), "snli_ve/esnli_ve_test.tsv": tsv(content["test"]),
                  "snli_ve/esnli_ve_train_2.tsv": tsv(content["train"][half:], header),
                  "snli_ve/esnli_ve_dev.tsv": tsv(content["dev"])}
        same(frames, read(tmp_path / f"tsv {header}", "snli_ve", tables))
    latest = read(tmp_path / "csv", "snli_ve", {f"snli_ve/esnlive_{name}.csv": comma(value) for name, value in content.items()})
    assert {premise for frame in latest.values() for premise in frame["premise"]} == {""}
    same({split: frame.drop(columns="premise") for split, frame in frames.items()},
         {split: frame.drop(columns="premise") for split, frame in latest.items()})


# ---------------------------------------------------------------------------------------------------------------------
# Rules


@given(st.lists(st.integers(-10 ** 30, 10 ** 30), min_size=1, max_size=50))
def test_held_out_images_are_the_last_and_at_most_a_sixth(images):
    held_out, ids = _held_out(images), sorted(set(images))
    chosen = {split: [id for id in ids if held_out.get(id) == split] for split in ("val", "test")}
    assert set(held_out) <= set(ids) and len(chosen["test"]) == math.ceil(len(ids) / 6)
    assert chosen["test"] == ids[len(ids) - len(chosen["test"]):]
    assert len(chosen["val"]) == min(len(chosen["test"]), len(ids) - len(chosen["test"]))
    assert chosen["val"] + chosen["test"] == ids[len(ids) - len(held_out):]


KARPATHY, TOKEN, DEV = "coco_captions/dataset_coco.json", "flickr30k/results_20130124.token", "nlvr2/dev.json"
SNLI, LATEST, PART = "snli_ve/snli_ve_dev.jsonl", "snli_ve/esnlive_dev.csv", "snli_ve/esnli_ve_train_2.tsv"
RAW = "coco_captions/annotations/captions_val2014.json"
WRONG = {  # name -> corpus, release, way to the value, what is there instead, file, record, field, words of the error
    "karpathy: image in two splits": ("coco_captions", "karpathy", (KARPATHY, "images", 3, "cocoid"), 40, KARPATHY, None, None,
                                      "coco:40 is in train and in test"),
    "karpathy: bool id": ("coco_captions", "karpathy", (KARPATHY, "images", 3, "cocoid"), True, KARPATHY, 3, "cocoid", "found True"),
    "raw: image in both": ("coco_captions", "raw", (RAW.replace("val", "train"), "annotations", 3, "image_id"), 44,
                           "coco_captions/annotations", None, None, "coco:44 is in train and in test"),
    "raw: caption": ("coco_captions", "raw", (RAW, "annotations", 3, "caption"), None, RAW, 3, "caption", "expected str"),
    "raw: twice": ("coco_captions", "raw", (RAW.replace("val", "train"), "annotations", 1, "id"), 80,
                   "coco_captions/annotations", None, None, "'80'"),
    "karpathy: no photograph": ("flickr30k", "karpathy", ("flickr30k/dataset_flickr30k.json", "images", 1, "filename"), "a/60.jpg",
                                "flickr30k/dataset_flickr30k.json", 1, "filename", "expected <number>.jpg, found 'a/60.jpg'"),
    "token: no tab": ("flickr30k", "token", (TOKEN, 3), ["61.jpg#1"], TOKEN, 3, "caption", "missing"),
    "token: unlisted": ("flickr30k", "token", (TOKEN, 3, 0), "99.jpg#1", TOKEN, 3, "name", "no 'flickr30k:99' in train.txt"),
    "token: twice": ("flickr30k", "token", (TOKEN, 3, 0), "61.jpg#0", TOKEN, None, None, "'61.jpg#0'"),
    "token: listed twice": ("flickr30k", "token", ("flickr30k/test.txt", 0, 0), "60", "flickr30k/test.txt", 0, "id", "in train.txt"),
    "token: listed without captions": ("flickr30k", "token", ("flickr30k/test.txt", 0, 0), "99", TOKEN, None, None,
                                       "no caption of flickr30k:99"),
    "nlvr2: other split": ("nlvr2", "statements", (DEV, 1, "identifier"), "test1-1-0-1", DEV, 1, "identifier", "expected dev-<set>"),
    "nlvr2: bool label": ("nlvr2", "statements", (DEV, 1, "label"), True, DEV, 1, "label", "expected str, found True"),
    "snli: other field": ("snli_ve", "original", (SNLI, 1), pairs(61, Flikr30kID="Flickr30K_ID")[1], SNLI, 1, "Flikr30kID", "missing"),
    "snli: image in two splits": ("snli_ve", "original", (SNLI, 1, "Flikr30kID"), "60.jpg", "snli_ve", None, None,
                                  "flickr30k:60 is in train and in val"),
    "csv: label": ("snli_ve", "e-snli-ve", (LATEST, 2, 4), "-", LATEST, 1, "gold_label", "no '-' in contradiction"),
    "csv: columns": ("snli_ve", "e-snli-ve", (LATEST, 2), ["1", "2"], LATEST, 1, None, "expected 6 columns, found 2"),
    "csv: header": ("snli_ve", "e-snli-ve", (LATEST, 0, 4), "label", LATEST, 0, "gold_label", "missing"),
    "tsv: no header": ("snli_ve", "e-snli-ve-2.0", ("snli_ve/esnli_ve_dev.tsv", 0), tsv(pairs(61))[1], "snli_ve/esnli_ve_dev.tsv", 0, None,
                       "where upstream has the header: gold_label, sentence1_tokens, "),
    "tsv: second part": ("snli_ve", "e-snli-ve-2.0", (PART, 1, 3), "x", PART, 1, "image", "expected <number>.jpg, found 'x'"),
    "tsv: twice in two parts": ("snli_ve", "e-snli-ve-2.0", (PART, 1, 6), "60.jpg#0r1n", "snli_ve/esnli_ve_train_1.tsv", None, None,
                                "'60.jpg#0r1n'"),
}


@pytest.mark.parametrize("corpus, release, way, value, file, record, field, words", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(tmp_path, corpus, release, way, value, file, record, field, words):
    with pytest.raises(CorpusError) as error:
        read(tmp_path, corpus, fuzz.change(FOLDERS[corpus, release], way, "replace", value))
    found = error.value
    assert (found.file.relative_to(tmp_path).as_posix(), found.record, found.field) == (file, record, field)
    assert words in str(found)


@pytest.mark.parametrize("corpus, release", [("flickr30k", "token"), ("snli_ve", "e-snli-ve"), ("snli_ve", "e-snli-ve-2.0")])
def test_truncated_gzip_and_wrong_encodings(tmp_path, corpus, release):
    content = encoded(FOLDERS[corpus, release])
    for number, (path, value) in enumerate(content.items()):
        others = {other: data for other, data in content.items() if other != path}
        for kind, damage in enumerate(({path: value + "ö".encode("latin-1")}, {path + ".gz": gzip.compress(value)[:-6]})):
            with pytest.raises(CorpusError, match="download it again"):
                READERS[corpus](fuzz.write(tmp_path / f"{number} {kind}", others | damage))
        same(READERS[corpus](fuzz.write(tmp_path / f"{number}", others | {path + ".gz": gzip.compress(value)})),
             read(tmp_path / "plain", corpus, content))


@pytest.mark.parametrize("number", [2 ** 63, -10 ** 400])
def test_a_number_beyond_64_bits_is_one_error(tmp_path, number):
    content = fuzz.change(FOLDERS["flickr30k", "karpathy"], ("flickr30k/dataset_flickr30k.json", "images", 0, "sentences", 0, "sentid"),
                          "replace", number)
    with pytest.raises(CorpusError, match="record 0.sentences.0., field 'sentid': no table holds"): read(tmp_path, "flickr30k", content)


@pytest.mark.parametrize("corpus, way", [
    ("coco_captions", (KARPATHY, "images", 0, "sentences", 0, "raw")), ("coco_captions", (RAW, "annotations", 0, "caption")),
    ("nlvr2", (DEV, 0, "sentence")), ("snli_ve", (SNLI, 0, "pairID")), ("snli_ve", (SNLI, 0, "sentence1"))])
def test_half_a_character_is_one_error(tmp_path, corpus, way):
    content = next(content for (name, _), content in FOLDERS.items() if name == corpus and way[0] in content)
    with pytest.raises(CorpusError, match=corpus):
        read(tmp_path, corpus, fuzz.change(content, way, "replace", "a \ud800"))


def test_nlvr2_of_full_size_takes_seconds_and_little_memory(tmp_path):
    record = {"validation": {"61": "False"}, "extra_validations": {"154": "False", "139": "False", "149": "False", "62": "False"},
              "sentence": "The right image shows a curving walkway of dark glass circles embedded in dirt, number {0}.",
              "left_url": "https://images.example.com/gawker-media/image/upload/s--UyhVSznS--/{0}.jpg", "writer": "61",
              "right_url": "https://images.example.com/photo/2015/09/21/12/57/beer-bottles-949793_960_{0}.jpg", "label": "True",
              "synset": "beer bottle", "query": "some beer bottles38", "identifier": "{1}-{0}-0-0"}
    line, sizes = json.dumps(record), {"train": 86373, "dev": 6982, "test1": 6967, "test2": 6970}
    for name, size in sizes.items():
        text = "\n".join(line.replace("{0}", str(n)).replace("{1}", name) for n in range(size))
        fuzz.write(tmp_path, {f"nlvr2/{name}.json": text})
    program = textwrap.dedent("""
        import re, sys, time
        from vl12in1.corpora import load
        from vl12in1.corpora.verification import nlvr2_statements
        start = time.process_time()
        frames = [*load(sys.argv[1], only=["nlvr2"])["nlvr2"].values(), nlvr2_statements(sys.argv[1], "test2")]
        peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]  # rusage would count the parent's, too
        print(*map(len, frames), time.process_time() - start, int(peak) / 2**20)
    """)
    printed = subprocess.run([sys.executable, "-c", program, tmp_path], check=True, capture_output=True, text=True).stdout.split()
    assert list(map(int, printed[:4])) == list(sizes.values())
    assert float(printed[4]) < 20 and float(printed[5]) < 1, "seconds of processor, GiB of memory"
