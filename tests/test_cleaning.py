"""Cleaning: whatever the overlaps, nothing leaks afterwards, nothing is lost without need, and test sets stay."""
import json
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import tries
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
@tries(40)
def test_nothing_leaks_after_cleaning(structure):
    cleaned = cleaning.clean(frames_of(structure))
    cleaning.check_clean(cleaned)
    assert cleaning.find_leaks(cleaned).empty
    remaining = {corpus: {split: list(frame["images"]) for split, frame in splits.items()}
                 for corpus, splits in cleaned.items()}
    assert not everything(remaining, ("train", "val")) & everything(structure, ("test",))


@given(structures)
@tries(40)
def test_only_leaking_examples_go_and_order_stays(structure):
    cleaned, held_out = cleaning.clean(frames_of(structure)), everything(structure, ("test",))
    for corpus, splits in structure.items():
        for split in ("train", "val"):
            kept = [str(i) for i, keys in enumerate(splits[split]) if held_out.isdisjoint(keys)]
            assert cleaned[corpus][split]["uid"].tolist() == kept
            assert isinstance(cleaned[corpus][split].index, pd.RangeIndex)


@given(structures)
@tries(40)
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
@tries(40)
def test_the_check_finds_exactly_the_leaks(structure):
    frames = frames_of(structure)
    found = cleaning.find_leaks(frames)
    shared = everything(structure, ("train", "val")) & everything(structure, ("test",))
    assert set(found["image"]) == shared and not found.duplicated().any()
    if shared:
        with pytest.raises(cleaning.LeakError, match="drop them with `clean`") as error:
            cleaning.check_clean(frames)
        assert all(task in str(error.value) for task in found["task"])
    else:
        cleaning.check_clean(frames)


@given(structures)
@tries(40)
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
@tries(40)
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
@tries(40)
def test_any_choice_of_test_splits(structure, tests):
    frames = frames_of(structure)
    tests = {corpus: tuple(name for name in names if name in structure.get(corpus, ("val", "test")) or
                           name == "test" and "test2" in structure[corpus]) for corpus, names in tests.items()}
    chosen = counted(structure, tests)
    held_out = {key for corpus, split in chosen for keys in structure[corpus][split] for key in keys}
    assert cleaning.test_images(frames, tests) == held_out
    learning = {(corpus, split) for corpus in structure for split in ("train", "val")} - chosen
    learned = {key for corpus, split in learning for keys in structure[corpus][split] for key in keys}
    assert set(cleaning.find_leaks(frames, tests)["image"]) == held_out & learned
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
    assert cleaning.find_leaks(frames).empty
    found = cleaning.find_leaks(frames, cleaning.STRICT)
    assert set(zip(found["task"], found["split"])) == {
        ("refcoco", "train"), ("refcoco+", "train"), ("conceptual_captions", "val")}
    cleaned = cleaning.clean(frames, cleaning.STRICT)
    assert {corpus: [len(splits["train"]), len(splits["val"])] for corpus, splits in cleaned.items()} == {
        "refcoco": [1, 1], "refcoco+": [0, 1], "conceptual_captions": [0, 0]}


def test_second_test_sets_count():
    frames = frames_of({"nlvr2": {"train": [("nlvr2:a",)], "val": [], "test": [("nlvr2:b",)], "test2": [("nlvr2:a",)]}})
    assert cleaning.find_leaks(frames)[["split", "image"]].values.tolist() == [["train", "nlvr2:a"]]
    assert cleaning.overlap_matrix(frames).loc["nlvr2", "nlvr2"] == 50


def test_a_corpus_of_ones_own_tests_on_whatever_it_calls_so():
    frames = frames_of({"mine": {"train": [("mine:a",), ("mine:b",)], "dev": [("mine:b",)]}})
    assert cleaning.test_images(frames, {"mine": ("dev",)}) == {"mine:b"}


@pytest.mark.parametrize("tests, message", [
    ({"imagenet": ("test",)}, r"no corpus \['imagenet'\]"), ({"vqa": ("train",)}, "vqa: 'train' is no split to test on"),
    ({"vqa": "val"}, "vqa: 'val' is one text"), ({"vqa": ("val", "minival")}, "'minival'"), ({"vqa": ("",)}, "vqa: '' is no split"),
    *(({"vqa": ("val", name)}, f"vqa: '{name}' is no split to test on; there are val, test$")
      for name in ("test2015", "test-dev", "testdev", "test1", "testA", "testt", "valid", "val2014")),
    ({"nlvr2": ("test1",)}, "nlvr2: 'test1' is no split"), ({"conceptual_captions": ("test",)}, "'test' is no split .* there are val$"),
    ({"mine": ("val",)}, "mine: 'val' is no split to test on; there are none$")])
def test_a_wrong_choice_is_refused(tests, message):
    frames = frames_of({"vqa": {"train": [], "val": [], "test": []}, "conceptual_captions": {"train": [], "val": []},
                        "mine": {"train": []}})
    for ask in (cleaning.test_images, cleaning.find_leaks, cleaning.overlap_matrix, cleaning.clean, cleaning.check_clean):
        with pytest.raises(ValueError, match=message):
            ask(frames, tests=tests)


def test_a_corpus_of_ones_own_is_named_beside_others():
    frames = frames_of({"mine": {"train": [], "val": [("coco:1",)], "test": []},
                        "vqa": {"train": [("coco:1",)], "val": [], "test": [("coco:2",)]}})
    found = cleaning.find_leaks(frames, {"mine": ("val",)})
    assert found.values.tolist() == [["vqa", "train", "coco:1", "mine"]]
    assert len(cleaning.overlap_examples(frames, tests={"mine": ("val",)})) == 1


# --- what else has learned

@given(structures, st.lists(image, max_size=8))
@tries(25)
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
        cleaning.find_leaks({}, others={"detector": bare})


def test_half_a_million_examples_are_dropped_in_seconds():
    ids = np.random.default_rng(0).integers(0, 100_000, 500_000).tolist()
    frames = {"visual_genome": {"train": example_frame([(f"coco:{id}",) for id in ids])}}
    started = time.perf_counter()
    kept = cleaning.drop_images(frames, [f"coco:{id}" for id in range(15_000)])["visual_genome"]["train"]
    assert time.perf_counter() - started < 5
    assert len(kept) == sum(id >= 15_000 for id in ids)
