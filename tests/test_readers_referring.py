"RefCOCO, Visual7W, GuessWhat?!, Conceptual Captions: releases agree, worlds come back, damaged files give one clear error."
import gzip
import json
import pickle
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import fuzz
from fuzz import tries
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl12in1.corpora import READERS, CorpusError
from vl12in1.corpora.referring import guesswhat_games
from vl12in1.world import WorldConfig, plan_world
from vl12in1.world.writers import WRITERS

# ---------------------------------------------------------------------------------------------------------------------
# Small folders, one per release


def refer(name, author, parts, per_part=2):
    "One of RefCOCO's corpora: per part two references of one picture and two sentences each."
    refs = [{"ref_id": n, "ann_id": 50 + n, "image_id": 10 + n // per_part, "split": parts[n // per_part], "category_id": 1,
             "sentences": [{"sent_id": 2 * n + k, "raw": raw, "sent": raw.lower()} for k, raw in enumerate(("Red cup", "left"))]}
            for n in range(per_part * len(parts))]
    instances = {"images": [{"id": 10 + n, "width": 100, "height": 50} for n in range(len(parts))],
                 "annotations": [{"id": 50 + n, "image_id": 10 + n // per_part, "bbox": [10, 10, 20.5, 5 + n]}
                                 for n in range(per_part * len(parts))]}
    return {f"refcoco/{name}/refs({author}).p": refs, f"refcoco/{name}/instances.json": instances}


def pointing(file="dataset_v7w_pointing.json"):
    images = [{"image_id": n, "filename": f"v7w_{n}.jpg", "split": split, "qa_pairs": [
        {"qa_id": 7 + n, "question": "Which cup?", "answer": 4, "multiple_choices": [2, 1, 3], "type": "which"}]}
        for n, split in enumerate(("train", "val", "test"))]
    boxes = [{"box_id": n, "x": 10 * n, "y": -1, "width": 10, "height": 60, "name": "cup"} for n in range(1, 5)]
    return {f"visual7w/{file}": {"images": images, "boxes": boxes},
            "visual_genome/image_data.json": [{"image_id": n, "width": 100, "height": 50, "coco_id": 90 + n if n else None}
                                              for n in range(3)]}


def original(number, status="success"):
    return {"id": number, "status": status, "object_id": 3, "image": {"id": 20 + number, "width": 100, "height": 50},
            "objects": [{"id": 18, "bbox": [0, 0, 10, 10], "category": "cup"}, {"id": 3, "bbox": [50, 25, 50, 25.5]}],
            "qas": [{"id": 2, "question": "is it red?", "answer": "Yes"}, {"id": 1, "question": "a cup?", "answer": "N/A"}]}


def rehosted(game):
    "An original game as the re-hosted release has it."
    image = dict(game["image"])
    return {"dialogue_id": game["id"], "status": game["status"], "object_id": game["object_id"], "picture_id": image.pop("id"),
            "picture": image, "objects": {str(thing["id"]): {k: v for k, v in thing.items() if k != "id"}
                                          for thing in game["objects"]},
            "qas": [{"id": turn["id"], "q": turn["question"], "a": turn["answer"]} for turn in game["qas"]]}


def games(layout=dict, suffix=".gz"):
    return {f"guesswhat/guesswhat.{split}.jsonl{suffix}": [layout(original(2 * n)), layout(original(2 * n + 1, "failure"))]
            for n, split in enumerate(("train", "valid", "test"))}


def captions(train="a cup\thttp://x/1\na dog\thttp://x/2\n", val="a cat\thttp://x/3\n"):
    return {"conceptual_captions/Train_GCC-training.tsv": train,
            "conceptual_captions/Validation_GCC-1.1.0-Validation.tsv": val}


UNC = ("train", "val", "testA", "testB")
RELEASES = {
    "refcoco unc": ("refcoco", refer("refcoco", "unc", UNC)),
    "refcoco google": ("refcoco", refer("refcoco", "google", ("train", "val", "test"))),
    "refcoco+ unc": ("refcoco+", refer("refcoco+", "unc", UNC)),
    "refcocog umd": ("refcocog", refer("refcocog", "umd", ("train", "val", "test"))),
    "refcocog google": ("refcocog", refer("refcocog", "google", ("train", "train", "val"))),
    "visual7w download": ("visual7w", pointing()),
    "visual7w toolkit": ("visual7w", pointing("dataset.json")),
    "guesswhat original": ("guesswhat", games()),
    "guesswhat rehosted": ("guesswhat", games(rehosted, "")),
    "conceptual captions": ("conceptual_captions", captions())}
COLUMNS = {**dict.fromkeys(("refcoco", "refcoco+", "refcocog"), ["box", "ref_id", "part", "size"]),
           **dict.fromkeys(("visual7w", "guesswhat"), ["candidates", "label", "candidate_ids"]), "conceptual_captions": []}


def read(corpus, content):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return READERS[corpus](fuzz.write(Path(folder), content))


def same(left, right):
    assert list(left) == list(right)
    for split in left: pd.testing.assert_frame_equal(left[split], right[split])


def is_box(box):
    return type(box) is tuple and len(box) == 4 and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1


def check(corpus, frames):
    "What holds of every frame, whatever was read."
    assert list(frames) == ["train", "val"] + ["test"] * (corpus != "conceptual_captions")
    for frame in frames.values():
        assert list(frame.columns) == ["uid", "images", "text", *COLUMNS[corpus]] and frame["uid"].is_unique
        assert isinstance(frame.index, pd.RangeIndex)
        assert all(type(value) is str for column in ("uid", "text") for value in frame[column])
        assert all(type(keys) is tuple and len(keys) == 1 and type(keys[0]) is str for keys in frame["images"])
        if "box" in frame:
            assert all(map(is_box, frame["box"])) and all(type(size) is tuple and min(size) >= 1 for size in frame["size"])
        if "candidates" in frame:
            for boxes, label, ids in zip(frame["candidates"], frame["label"], frame["candidate_ids"]):
                assert all(map(is_box, boxes)) and 0 <= label < len(boxes) == len({*ids}) and list(ids) == sorted(ids)


# ---------------------------------------------------------------------------------------------------------------------
# Any damage: frames as always, or a CorpusError


@pytest.mark.parametrize("release", [name for name in RELEASES if name not in ("refcoco google", "refcoco+ unc")])
@tries(50)
@given(data=st.data())
def test_damaged_files(release, data):
    corpus, content = RELEASES[release]
    try:
        check(corpus, read(corpus, data.draw(fuzz.damaged(content))))
    except CorpusError as error:
        assert str(error)


line = st.one_of(st.binary(max_size=12), st.sampled_from([b"a\thttp://x/1", b"b\thttp://x/1", b"c\thttp://x/2", b"\t", b""]))


@tries(100)
@given(st.lists(line, max_size=6), st.lists(line, max_size=3))
def test_any_lines_as_captions(train, val):
    content = captions(b"\n".join(train), b"\n".join(val))
    try:
        frames = read("conceptual_captions", content)
    except CorpusError:
        return
    check("conceptual_captions", frames)
    assert not {*frames["train"]["uid"]} & {*frames["val"]["uid"]}
    assert {*frames["train"]["uid"], *frames["val"]["uid"]} == {
        str(zlib.crc32(row.rstrip(b"\r").split(b"\t")[1])) for text in content.values() for row in text.removesuffix(
            b"\n").split(b"\n")}


# ---------------------------------------------------------------------------------------------------------------------
# Releases of the same examples


def test_releases_of_visual7w():
    same(read("visual7w", pointing()), read("visual7w", pointing("dataset.json")))


def test_releases_of_guesswhat():
    expected = read("guesswhat", games())
    assert expected["val"]["uid"].tolist() == ["2"] and expected["val"]["images"].tolist() == [("coco:22",)]
    assert expected["val"]["text"].tolist() == ["start is it red? answer Yes stop start a cup? answer N/A stop"]
    assert expected["val"]["candidate_ids"].tolist() == [(3, 18)] and expected["val"]["label"].tolist() == [0]
    for layout in (dict, rehosted):
        for suffix in (".gz", ""):
            same(expected, read("guesswhat", games(layout, suffix)))
    mixed = games()
    mixed["guesswhat/guesswhat.train.jsonl.gz"] = [*map(rehosted, mixed["guesswhat/guesswhat.train.jsonl.gz"][:1]),
                                                   *mixed["guesswhat/guesswhat.train.jsonl.gz"][1:]]
    same(expected, read("guesswhat", mixed))


def test_google_splits_of_refcoco_are_read_like_uncs():
    parts = ("train", "val", "test")
    same(read("refcoco", refer("refcoco", "unc", parts)), read("refcoco", refer("refcoco", "google", parts)))


def test_unc_comes_before_google():
    both = refer("refcoco", "unc", UNC) | {"refcoco/refcoco/refs(google).p": b"not read"}
    same(read("refcoco", both), read("refcoco", refer("refcoco", "unc", UNC)))


def python2(value):
    "A pickle as Python 2 wrote it: byte strings and long integers."
    if isinstance(value, str): return b"T" + struct.pack("<i", len(value)) + value.encode("latin-1")
    if isinstance(value, int): return b"L%dL\n" % value
    if isinstance(value, list): return b"]" + b"".join(python2(item) + b"a" for item in value)
    return b"}" + b"".join(python2(key) + python2(item) + b"s" for key, item in value.items())


def test_pickles_of_both_pythons():
    content = refer("refcoco", "unc", UNC)
    references, expected = content["refcoco/refcoco/refs(unc).p"], read("refcoco", content)
    for pickled in [python2(references) + b".", *(pickle.dumps(references, protocol) for protocol in range(6))]:
        same(expected, read("refcoco", content | {"refcoco/refcoco/refs(unc).p": pickled}))


# ---------------------------------------------------------------------------------------------------------------------
# RefCOCOg by Google has no test set


@tries(60)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["train", "train", "val"])), min_size=1, max_size=60))
def test_validation_of_google_shares_no_picture(references):
    content = refer("refcocog", "google", [part for _, part in references], per_part=1)
    content["refcoco/refcocog/instances.json"]["images"] = [{"id": n, "width": 100, "height": 99} for n in range(13)]
    annotations = content["refcoco/refcocog/instances.json"]["annotations"]
    for (image, _), *records in zip(references, content["refcoco/refcocog/refs(google).p"], annotations):
        for record in records: record["image_id"] = image
    frames = read("refcocog", content)
    uids = {split: {*frame["uid"]} for split, frame in frames.items()}
    images = {split: {*frame["images"]} for split, frame in frames.items()}
    assert uids["test"] == {str(2 * n + k) for n, (_, part) in enumerate(references) if part == "val" for k in range(2)}
    assert sum(map(len, uids.values())) == len(set().union(*uids.values())) == 2 * len(references)
    assert not images["val"] & (images["train"] | images["test"])
    assert {*frames["test"]["part"]} <= {"val"} and {*frames["train"]["part"], *frames["val"]["part"]} <= {"train"}
    free = [image for image, part in references if part == "train" and (f"coco:{image}",) not in images["test"]]
    assert bool(images["val"]) == bool(free)
    if free:
        least = min(frames["val"]["images"].value_counts())
        assert len(free) / 20 <= len(frames["val"]) / 2 < len(free) / 20 + max(map(free.count, free)) and least >= 2


# ---------------------------------------------------------------------------------------------------------------------
# GuessWhat?! and Visual7W, in particular


def test_games_by_their_end(tmp_path):
    content = games()
    content["guesswhat/guesswhat.train.jsonl.gz"].append(original(99, "incomplete"))
    fuzz.write(tmp_path, content)
    ends = {status: guesswhat_games(tmp_path, "train", (status,))["uid"].tolist() for status in ("success", "failure", "incomplete")}
    assert ends == {"success": ["0"], "failure": ["1"], "incomplete": ["99"]}
    assert guesswhat_games(tmp_path, "train", ("failure", "success"))["uid"].tolist() == ["0", "1"]
    same(READERS["guesswhat"](tmp_path), {name: guesswhat_games(tmp_path, split)
                                          for name, split in (("train", "train"), ("val", "valid"), ("test", "test"))})


@pytest.mark.parametrize("change, problem", [
    ({"object_id": 4}, "record 0, field 'object_id': no 4 in the objects"),
    ({"objects": [{"id": 3, "bbox": [0, 0, 9, 9]}] * 2}, "an id is there twice"),
    ({"objects": []}, "no 3 in the objects"),
    ({"objects": {"x": {"bbox": [0, 0, 9, 9]}}}, "record 0.objects\\[0\\], field 'id': expected int, found 'x'"),
    ({"picture_id": None}, "record 0.image, field 'id': expected int, found None"),
    ({"status": "won"}, "no 'won' in success, failure, incomplete")])
def test_wrong_games(change, problem):
    content = games()
    content["guesswhat/guesswhat.valid.jsonl.gz"][0] |= change
    with pytest.raises(CorpusError, match=problem):
        read("guesswhat", content)


@pytest.mark.parametrize("choices", [[2, 1], [2, 1, 3, 5], [2, 1, 1], [2, 1, 4], [True, 2, 3], [1.0, 2, 3]])
def test_a_pointing_question_has_four_boxes(choices):
    content = pointing()
    content["visual7w/dataset_v7w_pointing.json"]["images"][1]["qa_pairs"][0]["multiple_choices"] = choices
    with pytest.raises(CorpusError, match="record 1.qa_pairs\\[0\\], field 'multiple_choices': expected box ids"):
        read("visual7w", content)


def test_one_id_for_two_boxes():
    content = pointing()
    content["visual7w/dataset_v7w_pointing.json"]["boxes"].append({"box_id": 2, "x": 0, "y": 0, "width": 9, "height": 9})
    with pytest.raises(CorpusError, match="record 4, field 'box_id': 2 is the id of record 1, too"):
        read("visual7w", content)


def test_boxes_that_hang_over_are_cut():
    frame = read("visual7w", pointing())["train"]
    np.testing.assert_allclose(frame["candidates"][0], [(n / 10, 0, n / 10 + .1, 1) for n in range(1, 5)])


# ---------------------------------------------------------------------------------------------------------------------
# Conceptual Captions: names of addresses

FIRST, SECOND = "http://example.org/29685295.jpg", "http://example.org/32060020.jpg"


def texts(content):
    return {split: frame["text"].tolist() for split, frame in read("conceptual_captions", content).items()}


def test_addresses_that_share_a_name_are_left_out():
    assert zlib.crc32(FIRST.encode()) == zlib.crc32(SECOND.encode())
    both = f"one\t{FIRST}\ntwo\t{SECOND}\nthree\thttp://x/4\nfour\t{FIRST}\n"
    assert texts(captions(both)) == {"train": ["three"], "val": ["a cat"]}


def test_addresses_that_share_a_name_across_files_are_left_out():
    assert texts(captions(f"one\t{FIRST}\ntwo\thttp://x/2\n", f"three\t{SECOND}\nfour\thttp://x/4\n")) == {
        "train": ["two"], "val": ["four"]}


def test_an_address_that_comes_twice_keeps_its_first_caption_and_stays_out_of_training():
    assert texts(captions(f"one\t{FIRST}\ntwo\thttp://x/2\nthree\thttp://x/2\n", f"four\t{FIRST}\n")) == {
        "train": ["two"], "val": ["four"]}


def test_what_is_left_out_is_counted(tmp_path):
    fuzz.write(tmp_path, captions(f"one\t{FIRST}\ntwo\t{SECOND}\nthree\thttp://x/3\n", "four\thttp://x/4\n"))
    with pytest.warns(UserWarning, match="2 of 4 captions left out"):
        READERS["conceptual_captions"](tmp_path)


def test_nothing_is_said_if_nothing_is_left_out(tmp_path, recwarn):
    READERS["conceptual_captions"](fuzz.write(tmp_path, captions()))
    assert not [warning for warning in recwarn.list if "left out" in str(warning.message)]


def test_captions_are_kept_as_they_are():
    odd = "\"quoted\"  caption\u2028 on one line\thttp://x/1\r\n\u00e9\u00a0t\u00e9\thttp://x/\u00e9\n"
    assert texts(captions(odd))["train"] == ["\"quoted\"  caption\u2028 on one line", "\u00e9\u00a0t\u00e9"]
    packed = {path + ".gz": gzip.compress(text.encode()) for path, text in captions(odd).items()}
    same(read("conceptual_captions", captions(odd)), read("conceptual_captions", packed))


@pytest.mark.parametrize("bad, problem", [
    (b"no address", "found 1 columns"), (b"a\tb\tc", "found 3 columns"), (b"", "found 1 columns"),
    (b"\xff\thttp://x/9", "not UTF-8 text")])
def test_the_wrong_line_is_named(bad, problem):
    with pytest.raises(CorpusError, match=f"Train_GCC-training.tsv: record 1: .*{problem}"):
        read("conceptual_captions", captions(b"a cup\thttp://x/1\n" + bad + b"\na dog\thttp://x/2\n"))


@pytest.mark.parametrize("header", ["caption\turl", "Caption\tImage URL", "text\taddress"])
def test_a_header_is_no_caption(header):
    for path in captions():
        content = {each: f"{header}\n{text}" if each == path else text for each, text in captions().items()}
        problem = f"{Path(path).name}: record 0: expected caption, tab, address, and no header; found .{header[:4]}"
        with pytest.raises(CorpusError, match=problem): read("conceptual_captions", content)


# ---------------------------------------------------------------------------------------------------------------------
# What a world has written comes back


@pytest.fixture(scope="module", params=range(3))
def world(request):
    return plan_world(WorldConfig(seed=request.param, scale=.02))


def written(world, corpus):
    "Files of a corpus of a world, those with records as records."
    files = WRITERS[{"refcoco+": "refcoco", "refcocog": "refcoco"}.get(corpus, corpus)](world)
    if corpus == "visual7w":
        files |= {"visual_genome/image_data.json": WRITERS["visual_genome"](world)["visual_genome/image_data.json"]}
    return files


@pytest.mark.parametrize("corpus", ["refcoco", "refcoco+", "refcocog"])
def test_references_come_back(world, corpus):
    files = written(world, corpus)
    author = "umd" if corpus == "refcocog" else "unc"
    instances = json.loads(files[f"refcoco/{corpus}/instances.json"])
    sizes = {image["id"]: (image["width"], image["height"]) for image in instances["images"]}
    boxes = {one["id"]: one["bbox"] for one in instances["annotations"]}
    frames = read(corpus, files)
    check(corpus, frames)
    expected = {str(sentence["sent_id"]): (ref, sentence) for ref in pickle.loads(files[f"refcoco/{corpus}/refs({author}).p"])
                for sentence in ref["sentences"]}
    found = pd.concat(frames, names=["split"]).reset_index("split").set_index("uid")
    assert {*found.index} == {*expected} and len(found) == len(expected)
    for uid, row in found.iterrows():
        ref, sentence = expected[uid]
        assert (row["text"], row["images"]) == (sentence["raw"], (f"coco:{ref['image_id']}",))
        assert (row["ref_id"], row["part"], row["size"]) == (ref["ref_id"], ref["split"], sizes[ref["image_id"]])
        assert row["split"] == ("test" if ref["split"].startswith("test") else ref["split"])
        x, y, w, h = boxes[ref["ann_id"]]
        np.testing.assert_allclose(np.multiply(row["box"], row["size"] * 2), (x, y, x + w, y + h), atol=1e-6)
        assert row["images"][0] in world.splits[corpus][ref["split"]]


def named(world, key):
    "The key of a picture where Flickr30k's files are not at hand."
    return f"visual_genome:{world.visual_genome[key]}" if key.startswith("flickr30k:") else key


def test_pointing_questions_come_back(world):
    files = written(world, "visual7w")
    content = json.loads(files["visual7w/dataset_v7w_pointing.json"])
    boxes = {box["box_id"]: box for box in content["boxes"]}
    sizes = {image["image_id"]: (image["width"], image["height"]) for image in json.loads(files["visual_genome/image_data.json"])}
    frames = read("visual7w", files)
    check("visual7w", frames)
    for split, frame in frames.items():
        expected = {str(pair["qa_id"]): pair for image in content["images"] if image["split"] == split for pair in image["qa_pairs"]}
        planned = {named(world, key) for key in world.splits["visual7w"][split]}
        assert {*frame["uid"]} == {*expected} and {key for (key,) in frame["images"]} <= planned
        for row in frame.itertuples():
            pair = expected[row.uid]
            assert row.text == pair["question"] and row.candidate_ids[row.label] == pair["answer"]
            assert {*row.candidate_ids} == {pair["answer"], *pair["multiple_choices"]}
            for id, found in zip(row.candidate_ids, row.candidates):
                x, y, w, h = (boxes[id][side] for side in ("x", "y", "width", "height"))
                np.testing.assert_allclose(np.multiply(found, sizes[pair["image_id"]] * 2), (x, y, x + w, y + h), atol=1e-6)
    same(frames, read("visual7w", {path.replace("dataset_v7w_pointing", "dataset"): text for path, text in files.items()}))


def test_games_come_back(world):
    files = {path: [json.loads(text) for text in gzip.decompress(packed).splitlines()]
             for path, packed in written(world, "guesswhat").items()}
    frames = read("guesswhat", files)
    check("guesswhat", frames)
    for frame, path in zip(frames.values(), ("train", "valid", "test")):
        played = [game for game in files[f"guesswhat/guesswhat.{path}.jsonl.gz"] if game["status"] == "success"]
        assert frame["uid"].tolist() == [str(game["id"]) for game in played]
        assert frame["images"].tolist() == [(f"coco:{game['image']['id']}",) for game in played]
        assert {key for (key,) in frame["images"]} <= {*world.splits["guesswhat"][path]}
        for row, game in zip(frame.itertuples(), played):
            assert row.text == " ".join(f"start {turn['question']} answer {turn['answer']} stop" for turn in game["qas"])
            assert row.candidate_ids[row.label] == game["object_id"]
            size = (game["image"]["width"], game["image"]["height"])
            pixels = {thing["id"]: thing["bbox"] for thing in game["objects"]}
            assert {*row.candidate_ids} == {*pixels}
            for id, found in zip(row.candidate_ids, row.candidates):
                x, y, w, h = pixels[id]
                np.testing.assert_allclose(np.multiply(found, size * 2), (x, y, x + w, y + h), atol=1e-6)
    same(frames, read("guesswhat", {path.removesuffix(".gz"): list(map(rehosted, games)) for path, games in files.items()}))


def test_captions_come_back(world):
    files = written(world, "conceptual_captions")
    frames = read("conceptual_captions", files)
    check("conceptual_captions", frames)
    for split, path in zip(("train", "val"), captions()):
        rows = [row.split("\t") for row in files[path].decode().splitlines()]
        assert frames[split]["text"].tolist() == [caption for caption, _ in rows]
        assert frames[split]["uid"].tolist() == [str(zlib.crc32(address.encode())) for _, address in rows]
        assert {key for (key,) in frames[split]["images"]} <= {*world.scenes}


def cornered(value):
    "Records of any depth, with corners where boxes are x, y, width, height."
    if isinstance(value, list): return list(map(cornered, value))
    if not isinstance(value, dict): return value
    value = {name: cornered(item) for name, item in value.items()}
    if "bbox" in value: value["bbox"] = [*value["bbox"][:2], value["bbox"][0] + value["bbox"][2], value["bbox"][1] + value["bbox"][3]]
    if "box_id" in value: value |= {"width": value["x"] + value["width"], "height": value["y"] + value["height"]}
    return value


@pytest.mark.parametrize("corpus, path", [
    ("refcoco", "refcoco/refcoco/instances.json"), ("refcoco+", "refcoco/refcoco+/instances.json"),
    ("refcocog", "refcoco/refcocog/instances.json"), ("visual7w", "visual7w/dataset_v7w_pointing.json"),
    ("guesswhat", "guesswhat/guesswhat.train.jsonl.gz")])
def test_corners_in_place_of_sizes_are_refused(world, corpus, path):
    files = written(world, corpus)
    if path.endswith(".gz"): files[path] = [cornered(json.loads(text)) for text in gzip.decompress(files[path]).splitlines()]
    else: files[path] = json.dumps(cornered(json.loads(files[path])))
    with pytest.raises(CorpusError, match=f"{Path(path).name}: field '.*': [0-9,]+ of [0-9,]+ boxes hang over .*; expected x, y, width"):
        read(corpus, files)
