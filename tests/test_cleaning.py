"""Cleaning: whatever the overlaps, nothing leaks afterwards, nothing is lost without need, and test sets stay."""
import json
import pickle
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl12in1 import cleaning
from vl12in1.tasks import TASKS

CORPORA = [task.corpus for task in TASKS.values()] + ["conceptual_captions"]

image = st.builds("{}:{}".format, st.sampled_from(["coco", "visual_genome", "flickr30k"]), st.integers(0, 12))


def example_frame(images):
    return pd.DataFrame({"uid": [str(i) for i in range(len(images))], "images": images, "text": "…"})


def frames_of(structure):
    return {corpus: {split: example_frame(images) for split, images in splits.items()}
            for corpus, splits in structure.items()}


examples = st.lists(st.one_of(st.tuples(image), st.tuples(image, image)), max_size=8)
structures = st.dictionaries(st.sampled_from(CORPORA), st.fixed_dictionaries(
    {"train": examples, "val": examples}, optional={"test": examples}), min_size=1, max_size=5)


def everything(structure, splits):
    return {key for corpus in structure.values() for split in splits for keys in corpus.get(split, ()) for key in keys}


@given(structures)
@settings(max_examples=40, deadline=None)
def test_nothing_leaks_after_cleaning(structure):
    cleaned = cleaning.clean(frames_of(structure))
    cleaning.check_clean(cleaned)
    assert cleaning.leaks(cleaned).empty
    remaining = {corpus: {split: list(frame["images"]) for split, frame in splits.items()}
                 for corpus, splits in cleaned.items()}
    assert not everything(remaining, ("train", "val")) & everything(structure, ("test",))


@given(structures)
@settings(max_examples=40, deadline=None)
def test_only_leaking_examples_go_and_order_stays(structure):
    cleaned, held_out = cleaning.clean(frames_of(structure)), everything(structure, ("test",))
    for corpus, splits in structure.items():
        for split in ("train", "val"):
            kept = [str(i) for i, keys in enumerate(splits[split]) if held_out.isdisjoint(keys)]
            assert cleaned[corpus][split]["uid"].tolist() == kept
            assert isinstance(cleaned[corpus][split].index, pd.RangeIndex)


@given(structures)
@settings(max_examples=40, deadline=None)
def test_cleaning_twice_is_cleaning_once_and_test_is_untouched(structure):
    frames = frames_of(structure)
    once, before = cleaning.clean(frames), frames_of(structure)
    twice = cleaning.clean(once)
    for corpus, splits in frames.items():
        assert set(once[corpus]) == set(splits)
        for split in splits:
            pd.testing.assert_frame_equal(twice[corpus][split], once[corpus][split])
            pd.testing.assert_frame_equal(frames[corpus][split], before[corpus][split])
        if "test" in splits:
            pd.testing.assert_frame_equal(once[corpus]["test"], before[corpus]["test"])


@given(structures)
@settings(max_examples=40, deadline=None)
def test_the_check_finds_exactly_the_leaks(structure):
    frames = frames_of(structure)
    found = cleaning.leaks(frames)
    shared = everything(structure, ("train", "val")) & everything(structure, ("test",))
    assert set(found["image"]) == shared and not found.duplicated().any()
    if shared:
        with pytest.raises(cleaning.LeakError, match="drop them with `clean`") as error:
            cleaning.check_clean(frames)
        assert all(task in str(error.value) for task in found["task"])
    else:
        cleaning.check_clean(frames)


@given(structures)
@settings(max_examples=40, deadline=None)
def test_overlap_is_counted_as_defined(structure):
    frames = frames_of({corpus: splits | {"test": splits.get("test", [])} for corpus, splits in structure.items()})
    counts, share = cleaning.overlap_counts(frames), cleaning.overlap_matrix(frames)
    assert list(counts.index) == list(counts.columns) == list(TASKS) == list(share.index) == list(share.columns)
    for row, tested in TASKS.items():
        for column, learner in TASKS.items():
            if tested.corpus not in structure or learner.corpus not in structure:
                assert np.isnan(counts.loc[row, column]) and np.isnan(share.loc[row, column])
                continue
            held_out = everything({"": structure[tested.corpus]}, ("test",))
            common = len(held_out & everything({"": structure[learner.corpus]}, ("train", "val")))
            assert counts.loc[row, column] == common
            expected = 100 * common / len(held_out) if held_out else np.nan
            assert share.loc[row, column] == pytest.approx(expected, nan_ok=True)


@given(st.sets(image))
@settings(max_examples=40, deadline=None)
def test_the_list_survives_its_file(tmp_path_factory, images):
    path = tmp_path_factory.getbasetemp() / "clean" / "test_images.json"
    cleaning.save_images(images, path)
    first = path.read_bytes()
    assert cleaning.load_images(path) == images
    cleaning.save_images(sorted(images, reverse=True), path)
    assert path.read_bytes() == first


def test_keys_with_colons_in_the_id(tmp_path):
    cleaning.save_images(["web:a:b"], tmp_path / "images.json")
    assert json.loads((tmp_path / "images.json").read_text()) == {"web": ["a:b"]}
    assert cleaning.load_images(tmp_path / "images.json") == {"web:a:b"}


def test_val_and_pre_training_are_cleaned_too():
    frames = frames_of({
        "refcoco": {"train": [("coco:1",)], "val": [("coco:2",)], "test": [("coco:3",), ("flickr30k:9",)]},
        "vqa": {"train": [("coco:4",)], "val": [("coco:3",)], "test": [("coco:5",)]},
        "conceptual_captions": {"train": [("flickr30k:9",), ("conceptual_captions:1",)], "val": []}})
    with pytest.raises(cleaning.LeakError) as error:
        cleaning.check_clean(frames)
    assert "vqa val has 1 test images of refcoco: coco:3" in str(error.value)
    assert "conceptual_captions train has 1 test images of refcoco: flickr30k:9" in str(error.value)
    cleaned = cleaning.clean(frames)
    assert [len(cleaned["vqa"]["val"]), len(cleaned["conceptual_captions"]["train"])] == [0, 1]


def test_sizes():
    frames = frames_of({
        "refcoco": {"train": [("coco:1",), ("coco:1",), ("coco:2",), ("coco:7",)], "val": [], "test": [("coco:3",)]},
        "vqa": {"train": [("coco:3",)], "val": [("coco:8",), ("coco:2",)], "test": [("coco:2",), ("coco:2",)]}})
    table = cleaning.sizes(frames, cleaning.clean(frames))
    assert table.index.tolist() == ["vqa", "refcoco"]
    assert table.loc["refcoco"].to_dict() == {
        "train images": 3, "clean train images": 2, "train": 4, "clean train": 3, "lost": 25,
        "val": 0, "clean val": 0, "test images": 1, "test": 1}
    assert table.loc["vqa", ["lost", "val", "clean val", "test images", "test"]].tolist() == [100, 2, 1, 1, 2]


# --- which splits count as test

SPLITS = st.dictionaries(st.sampled_from(CORPORA), st.sets(st.sampled_from(["val", "test", "test2"])).map(tuple))
wide = st.dictionaries(st.sampled_from(CORPORA), st.fixed_dictionaries(
    {"train": examples, "val": examples}, optional={"test": examples, "test2": examples}), min_size=1, max_size=5)


def counted(structure, tests):
    "The pairs that count as test, spelled out."
    return {(corpus, split) for corpus, splits in structure.items() for split in splits
            if any(split == name or name == "test" and split == "test2" for name in tests.get(corpus, ["test"]))}


@given(wide, SPLITS)
@settings(max_examples=40, deadline=None)
def test_any_choice_of_test_splits(structure, tests):
    frames, chosen = frames_of(structure), counted(structure, tests)
    held_out = {key for corpus, split in chosen for keys in structure[corpus][split] for key in keys}
    assert cleaning.test_images(frames, tests) == held_out
    learning = {(corpus, split) for corpus in structure for split in ("train", "val")} - chosen
    learned = {key for corpus, split in learning for keys in structure[corpus][split] for key in keys}
    assert set(cleaning.leaks(frames, tests)["image"]) == held_out & learned
    cleaned = cleaning.clean(frames, tests)
    cleaning.check_clean(cleaned, tests)
    for corpus, splits in structure.items():
        for split, rows in splits.items():
            kept = [keys for keys in rows if (corpus, split) not in learning or held_out.isdisjoint(keys)]
            assert cleaned[corpus][split]["images"].tolist() == kept
    others = {"detector": sorted(held_out)}
    if held_out:
        with pytest.raises(cleaning.LeakError, match="detector must be trained without them"):
            cleaning.check_clean(cleaned, tests, others)
    else:
        cleaning.check_clean(cleaned, tests, others)


def test_strict_protects_validation_images_from_others_and_from_its_own_training():
    frames = frames_of({
        "refcoco": {"train": [("coco:1",), ("coco:2",)], "val": [("coco:2",)], "test": [("coco:3",)]},
        "refcoco+": {"train": [("coco:2",)], "val": [("coco:2",)], "test": []},
        "conceptual_captions": {"train": [], "val": [("coco:2",)]}})
    assert cleaning.leaks(frames).empty
    found = cleaning.leaks(frames, cleaning.STRICT)
    assert set(zip(found["task"], found["split"])) == {
        ("refcoco", "train"), ("refcoco+", "train"), ("conceptual_captions", "val")}
    cleaned = cleaning.clean(frames, cleaning.STRICT)
    assert {corpus: [len(splits["train"]), len(splits["val"])] for corpus, splits in cleaned.items()} == {
        "refcoco": [1, 1], "refcoco+": [0, 1], "conceptual_captions": [0, 0]}


def test_second_test_sets_count():
    frames = frames_of({"nlvr2": {"train": [("nlvr2:a",)], "val": [], "test": [("nlvr2:b",)], "test2": [("nlvr2:a",)]}})
    assert cleaning.leaks(frames)[["split", "image"]].values.tolist() == [["train", "nlvr2:a"]]
    assert cleaning.overlap_matrix(frames).loc["nlvr2", "nlvr2"] == 50


@pytest.mark.parametrize("tests, message", [
    ({"imagenet": ("test",)}, r"no corpus \['imagenet'\]"), ({"vqa": ("train",)}, "vqa: 'train' is no split to test on"),
    ({"vqa": "val"}, "vqa: 'v' is no split"), ({"vqa": ("val", "minival")}, "'minival'")])
def test_a_wrong_choice_is_refused(tests, message):
    frames = frames_of({"vqa": {"train": [], "val": [], "test": []}})
    for ask in (cleaning.test_images, cleaning.leaks, cleaning.overlap_matrix, cleaning.clean, cleaning.check_clean):
        with pytest.raises(ValueError, match=message):
            ask(frames, tests=tests)


# --- what else has learned

@given(structures, st.lists(image, max_size=8))
@settings(max_examples=25, deadline=None)
def test_others_have_a_column_and_examples(structure, keys):
    frames = frames_of(structure)
    others = {"detector": keys}
    counts, share = cleaning.overlap_counts(frames, others=others), cleaning.overlap_matrix(frames, others=others)
    pd.testing.assert_frame_equal(counts[list(TASKS)], cleaning.overlap_counts(frames))
    table = cleaning.overlap_examples(frames, 2, others=others)
    pd.testing.assert_frame_equal(table, cleaning.overlap_examples(
        frames, 2, others={"detector": example_frame([(key,) for key in keys])}))
    rows = {row.test_of: row for row in table.itertuples() if row.task == "detector"}
    for name, task in TASKS.items():
        common = sorted(everything({"": structure.get(task.corpus, {})}, ("test",)) & set(keys))
        if task.corpus not in structure: assert np.isnan(counts.loc[name, "detector"])
        else: assert counts.loc[name, "detector"] == len(common)
        assert (name in rows) == bool(common)
        if common:
            assert (rows[name].count, rows[name].examples) == (len(common), " ".join(common[:2]))
            assert rows[name].percent == pytest.approx(share.loc[name, "detector"])


def test_overlap_examples_agree_with_the_counts():
    frames = frames_of({"refcoco": {"train": [("coco:9",)], "val": [("coco:9",), ("coco:8",)], "test": [("coco:1",)]},
                        "vqa": {"train": [], "val": [], "test": [("coco:9",), ("coco:8",), ("coco:7",), ("coco:9",)]}})
    table = cleaning.overlap_examples(frames)
    assert table.drop(columns="percent").values.tolist() == [["vqa", "refcoco", 2, "coco:9 coco:8"]]
    assert table["percent"].item() == pytest.approx(200 / 3)
    assert cleaning.overlap_examples(cleaning.clean(frames)).empty


@pytest.mark.parametrize("bare", [{2375429}, ["2375429", "coco:1"], {"COCO_val2014_000000000009.jpg"}])
def test_bare_names_among_keys_are_refused(bare):
    with pytest.raises(ValueError, match="detector: '.*' is no image key"):
        cleaning.leaks({}, others={"detector": bare})


# --- names of others

ALIASES = {"visual_genome:2375429": "coco:391895", "visual_genome:8": "flickr30k:42"}


@pytest.mark.parametrize("collection, key, names", [
    ("coco", "coco:391895", [391895, np.int64(391895), "391895", "000000391895", "000000391895.jpg", "391895.npy",
                             "COCO_train2014_000000391895.jpg", "COCO_val2014_000000391895.npy", "391895.PNG",
                             "COCO_test2015_000000391895", "COCO_train2014_000000391895_17.jpg", "visual_genome:2375429",
                             "images/train2014/COCO_train2014_000000391895.jpg", "COCO_val2014_000000391895.jpg.npy"]),
    ("visual_genome", "coco:391895", [2375429, "2375429", "2375429.jpg", "VG_100K_2/2375429.jpg", "v7w_2375429",
                                      "v7w_2375429.jpg", "https://cs.stanford.edu/people/rak248/VG_100K_2/2375429.jpg"]),
    ("visual7w", "visual_genome:7", ["v7w_7.jpg", 7]),
    ("gqa", "gqa:n161313", ["n161313", "n161313.jpg", "images/n161313.png", "gqa:n161313"]),
    ("gqa", "flickr30k:42", ["8", "8.jpg"]),
    ("flickr30k", "flickr30k:1000092795", [1000092795, "1000092795.jpg", "1000092795.jpg#2", "1000092795.jpg#2r1n"]),
    ("nlvr2", "nlvr2:dev-850-0-img0", ["dev-850-0-img0", "dev-850-0-img0.png", "dev/dev-850-0-img0.npy"]),
    ("nlvr2", "nlvr2:test1-0-1-img1", ["test1-0-1-img1.png"]),
    ("conceptual_captions", "conceptual_captions:3065473813", [3065473813, "3065473813.jpg"]),
    (None, "coco:391895", ["coco:391895", "visual_genome:2375429", "coco:COCO_val2014_000000391895.jpg"])])
def test_canonical(collection, key, names):
    assert {name: cleaning.canonical(name, collection, ALIASES) for name in names} == dict.fromkeys(names, key)


@pytest.mark.parametrize("collection, name", [
    ("coco", "n161313"), ("coco", "COCO_train2014_x.jpg"), ("coco", "-5"), ("coco", 9.0), ("coco", ""), ("coco", None),
    ("coco", True), ("coco", "v7w_7"), ("visual_genome", "n12x"), ("visual_genome", "COCO_val2014_000000000009.jpg"),
    ("flickr30k", "1000092795.jpg#"), ("flickr30k", "12 13"), ("nlvr2", "dev-850-0-0"), ("nlvr2", "dev-850-0-img2"),
    ("conceptual_captions", "http://a.b/c.jpg"), ("coco", "9\n"), ("coco", "\u0663"), ("imagenet", "9"), (None, "9")])
def test_what_names_no_image(collection, name):
    with pytest.raises(ValueError, match="an image of which collection|names no image of") as error:
        cleaning.canonical(name, collection, {})
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("write", [
    lambda path, ids: path.with_suffix(".txt").write_text("\n".join(map(str, ids)) + "\n\n"),
    lambda path, ids: path.with_suffix(".json").write_text(json.dumps(ids)),
    lambda path, ids: path.with_suffix(".json").write_text(json.dumps({"visual_genome": ids})),
    lambda path, ids: np.save(path.with_suffix(".npy"), np.array(ids)),
    lambda path, ids: np.save(path.with_suffix(".npy"), np.array([f"{id}.jpg" for id in ids]))])
def test_lists_of_every_kind(tmp_path, write):
    write(tmp_path / "list", [7, 2375429])
    path, = tmp_path.iterdir()
    assert cleaning.read_ids(path, "visual_genome", ALIASES) == {"visual_genome:7", "coco:391895"}


def test_a_statement_of_nlvr2_stands_for_both_pictures(tmp_path):
    (tmp_path / "list.txt").write_text("dev-850-0-1\ntest1-3-2\ntrain-1-0-img1.png\n")
    assert cleaning.read_ids(tmp_path / "list.txt", "nlvr2") == {f"nlvr2:{name}" for name in (
        "dev-850-0-img0", "dev-850-0-img1", "test1-3-2-img0", "test1-3-2-img1", "train-1-0-img1")}


class Trap:
    "Unpickling it leaves a trace."
    def __init__(self, path): self.path = path

    def __reduce__(self): return open, (str(self.path), "w")


@pytest.mark.parametrize("name, content, problem", [
    ("list.txt", b"7\nseven\n", "'seven' names no image of visual_genome"), ("list.txt", b"\xff\xfe", "codec"),
    ("list.json", b"[7,", "Expecting"), ("list.json", b"7", "expected a list of names"),
    ("list.json", b'{"visual_genome": {"7": 1}}', "expected a list of names"), ("list.json", b'[["7"]]', "names no image"),
    ("list.json", b'{"images": [7]}', "an image of which collection"), ("list.npy", b"7", "magic"), ("list.npy", b"", "magic")])
def test_a_broken_list_is_named(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=problem) as error:
        cleaning.read_ids(tmp_path / name, "visual_genome")
    assert str(error.value).startswith(str(tmp_path / name))


def test_nothing_in_a_list_is_executed(tmp_path):
    np.save(tmp_path / "list.npy", np.array([Trap(tmp_path / "trace")], dtype=object), allow_pickle=True)
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Trap(tmp_path / "trace")))
    for name in ("list.npy", "plain.npy"):
        with pytest.raises(ValueError, match=name):
            cleaning.read_ids(tmp_path / name, "coco")
    assert not (tmp_path / "trace").exists()


# --- lists for the published code

keys = st.sets(st.builds("{}:{}".format, st.sampled_from(["coco", "visual_genome", "flickr30k"]), st.integers(1, 2**33)))


@given(keys, st.dictionaries(st.integers(1, 99).map("visual_genome:{}".format), image, max_size=9))
@settings(max_examples=40, deadline=None)
def test_published_lists_hold_every_name_of_every_image(tmp_path_factory, images, identity):
    folder = tmp_path_factory.getbasetemp() / "published"
    images = {identity.get(key, key) for key in images} | set(list(identity.values())[:3]) - set(identity)
    cleaning.save_published(images, folder, identity)
    names = images | {alias for alias, key in identity.items() if key in images}
    for stem, collection in [("coco", "coco"), ("genome", "visual_genome"), ("flickr", "flickr30k")]:
        ids = np.load(folder / f"{stem}_test_ids.npy", allow_pickle=False)
        assert ids.dtype == np.int64 and ids.ndim == 1 and (np.diff(ids) > 0).all()
        assert {f"{collection}:{id}" for id in ids} == {name for name in names if name.startswith(f"{collection}:")}


def test_published_lists_leave_out_what_has_no_number(tmp_path):
    cleaning.save_published({"gqa:n5", "nlvr2:dev-1-0-img0", "conceptual_captions:9", "coco:3"}, tmp_path, {})
    assert [np.load(path).tolist() for path in sorted(tmp_path.iterdir())] == [[3], [], []]


# --- the report, and the size of the real thing

def test_the_report_reads_a_folder(tmp_path):
    def pairs(split, *images):
        rows = [json.dumps({"Flikr30kID": f"{image}.jpg", "pairID": f"{image}.jpg#0e", "gold_label": "entailment",
                            "sentence1": "…", "sentence2": "…"}) for image in images]
        (tmp_path / f"snli_ve/snli_ve_{split}.jsonl").write_text("\n".join(rows))
    images = [{"filename": f"{image}.jpg", "split": split, "sentences": [{"raw": "…", "sentid": image}]}
              for image, split in [(1, "train"), (2, "val"), (3, "test")]]
    for folder in ("flickr30k", "snli_ve"): (tmp_path / folder).mkdir()
    (tmp_path / "flickr30k/dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    for split, image in [("train", 1), ("dev", 2), ("test", 5)]: pairs(split, image)
    assert cleaning.leak_report(tmp_path) == ("2 corpora, 2 test images: none is learned from", True)
    pairs("train", 1, 2)
    pairs("dev", 6)
    assert cleaning.leak_report(tmp_path)[1]
    strict = {"flickr30k": ("val", "test")}
    text, ok = cleaning.leak_report(tmp_path, tests=strict)
    assert not ok and "flickr30k:2" in text and "50.0" in text and "snli_ve" in text
    (tmp_path / "list.txt").write_text("5.jpg\n7.jpg\n")
    text, ok = cleaning.leak_report(tmp_path, detector=tmp_path / "list.txt", collection="flickr30k")
    assert not ok and "detector" in text and "flickr30k:5" in text and "flickr30k:7" not in text
    cleaning.save_images(["flickr30k:2"], tmp_path / "drop.json")
    text, ok = cleaning.leak_report(tmp_path, strict, drop=tmp_path / "drop.json")
    assert ok and "3 test images" in text
    (tmp_path / "list.txt").write_text("2.jpg")  # the validation set that counts is still there to be seen
    arguments = {"detector": tmp_path / "list.txt", "collection": "flickr30k", "drop": tmp_path / "drop.json"}
    assert not cleaning.leak_report(tmp_path, strict, **arguments)[1] and cleaning.leak_report(tmp_path, **arguments)[1]


def test_half_a_million_examples_are_dropped_in_seconds():
    ids = np.random.default_rng(0).integers(0, 100_000, 500_000).tolist()
    frames = {"visual_genome": {"train": example_frame([(f"coco:{id}",) for id in ids])}}
    started = time.perf_counter()
    kept = cleaning.drop_images(frames, [f"coco:{id}" for id in range(15_000)])["visual_genome"]["train"]
    assert time.perf_counter() - started < 5
    assert len(kept) == sum(id >= 15_000 for id in ids)
