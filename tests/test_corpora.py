"""Readers: every way an upstream file can be wrong is one clear error; nothing in a file is executed."""
import gzip
import json
import os
import pickle
import re
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import encode, tries, write
from vl12in1 import cleaning, corpora, world
from vl12in1.corpora import CorpusError, captions, frames
from vl12in1.corpora.answering import last_images
from vl12in1.corpora.frames import Records, box_column, choose, fractions, gather, nested, read_json_lines, read_pickle
from vl12in1.corpora.layout import SizeWarning
from vl12in1.examples.stored import read_frames, write_frames

# ---------------------------------------------------------------------------------------------------------------------
# A complete data folder, a few records per file. `files()` gives its content; tests change one thing and write it.


def _vqa(subset, first):
    questions = [{"question_id": 1000 * i, "image_id": i, "question": "what is red?"} for i in range(first, first + 6)]
    annotations = [{"question_id": 1000 * i, "image_id": i, "question_type": "what is", "answer_type": "other",
                    "multiple_choice_answer": "cup", "answers": [{"answer": "cup", "answer_id": 1}] * 10}
                   for i in range(first, first + 6)]
    return {f"vqa/v2_OpenEnded_mscoco_{subset}_questions.json": {"questions": questions},
            f"vqa/v2_mscoco_{subset}_annotations.json": {"annotations": annotations}}


def _karpathy(name, ids):
    images = [{"filename": f"{id}.jpg", "cocoid": id, "split": split,
               "sentences": [{"raw": f"caption {n}", "sentid": 10 * id + n} for n in range(2)]}
              for id, split in zip(ids, ("train", "restval", "val", "test"))]
    return {f"{name}.json": {"images": images}}


def _refer(name, refs, parts):
    references = [{"ref_id": i, "ann_id": 50 + i, "image_id": 10 + i, "split": part,
                   "sentences": [{"sent_id": 2 * i, "raw": "red cup"}, {"sent_id": 2 * i + 1, "raw": "left one"}]}
                  for i, part in enumerate(parts)]
    count = range(len(parts))
    instances = {"images": [{"id": 10 + i, "width": 100, "height": 50} for i in count],
                 "annotations": [{"id": 50 + i, "image_id": 10 + i, "bbox": [10, 10, 20.5, 25]} for i in count]}
    return {f"refcoco/{name}/{refs}": references, f"refcoco/{name}/instances.json": instances}


def _game(id, status="success"):
    return {"id": id, "status": status, "object_id": 3, "image": {"id": 20 + id, "width": 100, "height": 50},
            "objects": [{"id": 8, "bbox": [0, 0, 10, 10]}, {"id": 3, "bbox": [50, 25, 50, 25]}],
            "qas": [{"question": "is it red?", "answer": "Yes"}]}


def files():
    genome = {"qas": [{"qa_id": n, "image_id": n // 4, "question": "what is red?", "answer": "Cup."}
                      for n in range(24)]}
    cup = {"object_id": 1, "x": 0, "y": 0, "w": 50, "h": 25, "names": ["cup"]}
    content = {
        "visual_genome/question_answers.json": [{"id": 0, **genome}],
        "visual_genome/image_data.json": [
            {"image_id": n, "width": 100, "height": 50, "coco_id": 900 + n if n % 2 else None} for n in range(6)],
        "visual_genome/objects.json": [{"image_id": 1, "objects": [cup]}],
        "visual_genome/attributes.json": [{"image_id": 1, "attributes": [{"object_id": 1, "attributes": ["red"]}]}],
        "gqa/train_balanced_questions.json": {"01": {"imageId": "1", "question": "is it red?", "answer": "yes"}},
        "gqa/val_balanced_questions.json": {"02": {"imageId": "2", "question": "is it red?", "answer": "no"}},
        "gqa/testdev_balanced_questions.json": {"03": {"imageId": "n3", "question": "is it red?", "answer": "no"}},
        "visual7w/dataset_v7w_pointing.json": {
            "images": [{"image_id": n, "split": split, "qa_pairs": [
                {"qa_id": n, "question": "which cup?", "answer": 4, "multiple_choices": [2, 1, 3]}]}
                for n, split in enumerate(("train", "val", "test"))],
            "boxes": [{"box_id": n, "x": 10 * n, "y": 0, "width": 10, "height": 10} for n in range(1, 5)]},
        "conceptual_captions/Train_GCC-training.tsv": "a cup\thttp://x/1\na dog\thttp://x/2\n",
        "conceptual_captions/Validation_GCC-1.1.0-Validation.tsv": "a cat\thttp://x/3\n",
    }
    for subset, first in (("train2014", 100), ("val2014", 200), ("test2015", 300)):
        content |= _vqa(subset, first)
    content |= _karpathy("coco_captions/dataset_coco", range(40, 44))
    content |= _karpathy("flickr30k/dataset_flickr30k", range(60, 64))
    content |= _refer("refcoco", "refs(unc).p", ("train", "val", "testA", "testB"))
    content |= _refer("refcoco+", "refs(unc).p", ("train", "val", "testA", "testB"))
    content |= _refer("refcocog", "refs(umd).p", ("train", "val", "test"))
    for n, split in enumerate(("train", "valid", "test")):
        content[f"guesswhat/guesswhat.{split}.jsonl.gz"] = [_game(2 * n), _game(2 * n + 1, "failure")]
    for split in ("train", "dev", "test1"):
        content[f"nlvr2/{split}.json"] = [
            {"identifier": f"{split}-1-0-{n}", "sentence": "two cups", "label": "True"} for n in range(2)]
    for id, split in enumerate(("dev", "train", "test"), 60):
        content[f"snli_ve/snli_ve_{split}.jsonl"] = [
            {"Flikr30kID": f"{id}.jpg", "pairID": f"{id}.jpg#{n}", "gold_label": "neutral",
             "sentence1": "a", "sentence2": "b"} for n in range(2)]
    for split in ("train", "val", "test"):
        content[f"vizwiz/{split}.json"] = [
            {"image": f"VizWiz_{split}_{n:08d}.jpg", "question": "what is this", "answer_type": "other", "answerable": 1,
             "answers": [{"answer": "cup", "answer_confidence": "yes"}] * 10} for n in range(2)]
    return content


@pytest.fixture
def content():
    return files()


# ---------------------------------------------------------------------------------------------------------------------
# What a sound folder gives

FILES = {corpus: next(iter(releases.values())) for corpus, releases in corpora.RELEASES.items()}


TARGETS = {"vqa": ["answers", "question_type", "answer_type", "multiple_choice_answer"],
           "gqa": ["answers", "structural", "detailed", "group", "balanced", "entailed"], "visual_genome": ["answers"],
           "coco_captions": [], "flickr30k": [], "conceptual_captions": [],
           **dict.fromkeys(("refcoco", "refcoco+", "refcocog"), ["box", "ref_id", "part", "size"]),
           **dict.fromkeys(("visual7w", "guesswhat"), ["candidates", "label", "candidate_ids"]), "nlvr2": ["label"],
           "snli_ve": ["premise", "label"], "vizwiz": ["answers", "answer_type", "answerable"]}


def test_every_frame_keeps_the_contract(tmp_path, content):
    frames = corpora.load(write(tmp_path, content))
    assert list(frames) == list(corpora.READERS)
    for corpus, splits in frames.items():
        assert set(splits) == {"train", "val", "test"} - ({"test"} if corpus == "conceptual_captions" else set())
        for frame in splits.values():
            assert list(frame.columns) == ["uid", "images", "text", *TARGETS[corpus]]
            assert isinstance(frame.index, pd.RangeIndex) and len(frame) and frame["uid"].is_unique
            assert all(type(uid) is str and type(text) is str for uid, text in zip(frame["uid"], frame["text"]))
            assert all(type(keys) is tuple and len(keys) == (2 if corpus == "nlvr2" else 1) for keys in frame["images"])


def test_canonical_keys(tmp_path, content):
    root = write(tmp_path, content)
    assert corpora.identity(root) == {f"visual_genome:{n}": f"coco:{900 + n}" for n in (1, 3, 5)}
    frames = corpora.load(root)
    assert frames["gqa"]["train"]["images"].tolist() == [("coco:901",)]
    assert frames["gqa"]["val"]["images"].tolist() == [("visual_genome:2",)]
    assert frames["gqa"]["test"]["images"].tolist() == [("gqa:n3",)]
    assert set(frames["visual_genome"]["test"]["images"]) == {("coco:905",)}
    assert frames["visual7w"]["val"]["images"].tolist() == [("coco:901",)]
    assert corpora.visual_genome_objects(root)["image"].tolist() == ["coco:901"]


def test_splits(tmp_path, content):
    frames = corpora.load(write(tmp_path, content))
    sizes = {corpus: tuple(len(splits.get(name, ())) for name in ("train", "val", "test"))
             for corpus, splits in frames.items()}
    assert sizes == {"vqa": (11, 1, 6), "gqa": (1, 1, 1), "visual_genome": (16, 4, 4),
                     "coco_captions": (4, 2, 2), "flickr30k": (4, 2, 2),
                     "refcoco": (2, 2, 4), "refcoco+": (2, 2, 4), "refcocog": (2, 2, 2), "visual7w": (1, 1, 1),
                     "guesswhat": (1, 1, 1), "nlvr2": (2, 2, 2), "snli_ve": (2, 2, 2), "conceptual_captions": (2, 1, 0),
                     "vizwiz": (2, 2, 2)}
    assert frames["refcoco"]["test"]["part"].tolist() == ["testA", "testA", "testB", "testB"]


def test_targets(tmp_path, content):
    frames = corpora.load(write(tmp_path, content))
    assert frames["vqa"]["test"]["answers"][0] == ("cup",) * 10
    assert frames["refcoco"]["train"]["box"][0] == pytest.approx((.1, .2, .305, .7))
    visual7w = frames["visual7w"]["train"].iloc[0]
    assert [box[0] for box in visual7w["candidates"]] == pytest.approx([.1, .2, .3, .4]) and visual7w["label"] == 3
    guesswhat = frames["guesswhat"]["train"].iloc[0]
    assert guesswhat["candidates"] == ((.5, .5, 1, 1), (0, 0, .1, .2)) and guesswhat["label"] == 0


def test_test_answers_of_vqa_may_be_absent(tmp_path, content):
    del content["vqa/v2_mscoco_test2015_annotations.json"]
    test = corpora.load(write(tmp_path, content), only=["vqa"])["vqa"]["test"]
    assert test["answers"].tolist() == [()] * 6


def test_test_answers_of_vizwiz_may_be_absent(tmp_path, content):
    content["vizwiz/test.json"] = [{name: row[name] for name in ("image", "question")} for row in content["vizwiz/test.json"]]
    test = corpora.load(write(tmp_path, content), only=["vizwiz"])["vizwiz"]["test"]
    assert test["answers"].tolist() == [()] * 2 and test["answerable"].tolist() == [-1] * 2


@pytest.mark.parametrize("of", ["train", "test"])
def test_a_file_of_vizwiz_in_the_place_of_another_is_named(tmp_path, content, of):
    content["vizwiz/val.json"] = content[f"vizwiz/{of}.json"]
    with pytest.raises(CorpusError, match=rf"val.json: record 0, field 'image': .*found 'VizWiz_{of}_00000000.jpg'; is this"):
        corpora.load(write(tmp_path, content))


def test_both_releases_of_snli_ve(tmp_path, content):
    for split in ("train", "dev", "test"):
        for row in content[f"snli_ve/snli_ve_{split}.jsonl"]:
            row["Flickr30K_ID"] = row.pop("Flikr30kID").removesuffix(".jpg")
    assert corpora.load(write(tmp_path, content), only=["snli_ve"])["snli_ve"]["val"]["images"][0] == ("flickr30k:60",)


def test_a_photograph_with_three_names_is_cocos(tmp_path, content):
    content["visual_genome/image_data.json"][1]["flickr_id"] = 60
    root = write(tmp_path, content)
    assert corpora.identity(root)["flickr30k:60"] == "coco:901"
    frames = corpora.load(root, only=["flickr30k", "snli_ve"])
    assert ("coco:901",) in set(frames["flickr30k"]["train"]["images"]) | set(frames["flickr30k"]["test"]["images"])
    assert all(("flickr30k:60",) not in set(part["images"]) for splits in frames.values() for part in splits.values())


def test_snli_ve_alone_says_which_photographs_are_flickr30ks(tmp_path, content):
    content["visual_genome/image_data.json"][2]["flickr_id"] = 60
    kept = {path: value for path, value in content.items() if path.startswith(("snli_ve/", "visual_genome/"))}
    assert corpora.identity(write(tmp_path, kept))["visual_genome:2"] == "flickr30k:60"


def test_minus_one_is_no_coco_id(tmp_path, content):
    for image in content["visual_genome/image_data.json"]: image["coco_id"] = -1
    root = write(tmp_path, content)
    assert {photograph.key for photograph in corpora.visual_genome_images(root).values()} == {f"visual_genome:{n}" for n in range(6)}


def test_two_images_of_one_photograph_are_in_one_split(tmp_path, content):
    for image in content["visual_genome/image_data.json"]: image["coco_id"] = 900 + image["image_id"] % 2
    splits = corpora.load(write(tmp_path, content), only=["visual_genome"])["visual_genome"]
    found = [set(part["images"]) for part in splits.values()]
    assert sum(map(len, found)) == len(set.union(*found)) == 2


def test_empty_lines_are_no_records(tmp_path, content):
    content["snli_ve/snli_ve_dev.jsonl"] = encode("snli_ve/snli_ve_dev.jsonl", content["snli_ve/snli_ve_dev.jsonl"]) + b"\n\n"
    games = gzip.decompress(encode("guesswhat.jsonl.gz", content["guesswhat/guesswhat.valid.jsonl.gz"]))
    content["guesswhat/guesswhat.valid.jsonl.gz"] = gzip.compress(games + b"\n")
    frames = corpora.load(write(tmp_path, content), only=["snli_ve", "guesswhat"])
    assert (len(frames["snli_ve"]["val"]), len(frames["guesswhat"]["val"])) == (2, 1)


@pytest.mark.parametrize("stray", ["image_data.json.zip", "relationships.json", "VG_100K/1.jpg", "objects.json.zip"])
def test_what_lies_beside_shared_files_does_not_ask_for_a_corpus(tmp_path, content, stray):
    root = write(tmp_path, {path: value for path, value in content.items() if path.startswith("gqa/")
                            or path == "visual_genome/image_data.json"} | {f"visual_genome/{stray}": b""})
    assert set(corpora.load(root)) == {"gqa"}
    (root / "visual_genome/question_answers.json.zip").touch()
    assert corpora.present(root).state["visual_genome"] == "incomplete"


def test_any_subset_loads(tmp_path, content):
    root = write(tmp_path, {path: value for path, value in content.items() if path.startswith(("gqa/", "nlvr2/"))
                            or path == "visual_genome/image_data.json"})
    assert set(corpora.load(root)) == {"gqa", "nlvr2"}
    assert corpora.present(root)["state"].to_dict() == {
        corpus: "present" if corpus in ("gqa", "nlvr2") else "absent" for corpus in corpora.READERS}


def test_pictures(tmp_path, content):
    root = write(tmp_path, content | {f"images/{name}": b"" for name in (
        "coco/train2014/COCO_train2014_000000000901.jpg", "coco/test2015/COCO_test2015_000000000007.jpg",
        "visual_genome/1.jpg", "visual_genome/VG_100K_2/3.jpg", "visual_genome/2.jpg", "gqa/n3.jpg", "gqa/2.jpg",
        "flickr30k/60.jpg", "nlvr2/train-1-0-img0.png", "conceptual_captions/123.jpg",
        "vizwiz/train/VizWiz_train_00000007.jpg", "vizwiz/VizWiz_val_000000000007.jpg", "vizwiz/train/other.jpg")})
    found = {key: file.relative_to(root / "images").as_posix() for key, file in corpora.image_files(root).items()}
    assert found == {"coco:901": "coco/train2014/COCO_train2014_000000000901.jpg",
                     "coco:7": "coco/test2015/COCO_test2015_000000000007.jpg",
                     "coco:903": "visual_genome/VG_100K_2/3.jpg", "visual_genome:2": "visual_genome/2.jpg",
                     "gqa:n3": "gqa/n3.jpg", "flickr30k:60": "flickr30k/60.jpg",
                     "nlvr2:train-1-0-img0": "nlvr2/train-1-0-img0.png",
                     "conceptual_captions:123": "conceptual_captions/123.jpg",
                     "vizwiz:train_00000007": "vizwiz/train/VizWiz_train_00000007.jpg",
                     "vizwiz:val_000000000007": "vizwiz/VizWiz_val_000000000007.jpg"}


# ---------------------------------------------------------------------------------------------------------------------
# The miniature world speaks the upstream formats


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    world.write_world(root, world.WorldConfig(scale=.02))
    return root


def test_the_miniature_world_loads(miniature):
    assert set(corpora.present(miniature)["state"]) == {"present"}
    frames, again = corpora.load(miniature), corpora.load(miniature)
    assert list(frames) == list(corpora.READERS)
    for corpus, splits in frames.items():
        for split, frame in splits.items():
            assert len(frame) and list(frame.columns) == ["uid", "images", "text", *TARGETS[corpus]]
            pd.testing.assert_frame_equal(frame, again[corpus][split])
            for candidates, label in zip(frame.get("candidates", ()), frame["label"] if "candidates" in frame else ()):
                assert 0 <= label < len(candidates)
            if "answers" in frame:
                assert set(map(len, frame["answers"])) == {10 if corpus in ("vqa", "vizwiz") else 1}


def test_every_image_of_the_miniature_world_has_a_picture(miniature):
    frames, files = corpora.load(miniature), corpora.image_files(miniature)
    for splits in frames.values():
        for frame in splits.values():
            assert cleaning.images_of(frame) <= set(files)
    assert set(corpora.visual_genome_objects(miniature)["image"]) <= set(files)
    assert not set(corpora.identity(miniature)) & set(files), "aliases are not canonical"


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong is said


@pytest.mark.parametrize("corpus, path", [(corpus, path) for corpus, paths in FILES.items() for path in paths])
def test_missing_file(tmp_path, content, corpus, path):
    del content[path]
    with pytest.raises(CorpusError, match="missing; put upstream's file there") as error:
        corpora.load(write(tmp_path, content), only=[corpus])
    assert error.value.file == tmp_path / path and FILES[corpus][path] in str(error.value)


DAMAGE = {"empty": b"", "no records": b"[]", "no fields": b"{}", "binary": b"\xff\x00[", "cut": b'[{"a": 1'}


@pytest.mark.parametrize("path", sorted({*corpora.DETECTOR_FILES}.union(*FILES.values())))
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_file(tmp_path, content, path, damage):
    root = write(tmp_path, content | {path: damage})
    with pytest.raises(CorpusError, match=re.escape(path)):
        corpora.load(root), corpora.visual_genome_objects(root)


def _set(*steps):
    "A change of one place of one file: path, keys and indices down to the field, and its new value (DELETE to remove)."
    *way, last, value = steps

    def change(content):
        target = content
        for step in way:
            target = target[step]
        if value is DELETE:
            del target[last]
        else:
            target[last] = value
    return change


DELETE = object()
VQA_Q, VQA_A = "vqa/v2_OpenEnded_mscoco_val2014_questions.json", "vqa/v2_mscoco_val2014_annotations.json"
REFS, INSTANCES = "refcoco/refcocog/refs(umd).p", "refcoco/refcocog/instances.json"
V7W, GAMES = "visual7w/dataset_v7w_pointing.json", "guesswhat/guesswhat.valid.jsonl.gz"
GENOME, IMAGES = "visual_genome/question_answers.json", "visual_genome/image_data.json"
GQA, COCO = "gqa/val_balanced_questions.json", "coco_captions/dataset_coco.json"
CAPTIONS, VIZWIZ = "conceptual_captions/Train_GCC-training.tsv", "vizwiz/val.json"
FLICKR, NLVR2, SNLI = "flickr30k/dataset_flickr30k.json", "nlvr2/dev.json", "snli_ve/snli_ve_dev.jsonl"

WRONG = {  # name -> corpus, change, (file, record, field) of the error, words of its message
    "vqa: missing field": ("vqa", _set(VQA_Q, "questions", 2, "question", DELETE), (VQA_Q, 2, "question"), "missing"),
    "vqa: wrong type": ("vqa", _set(VQA_Q, "questions", 2, "image_id", "7"),
        (VQA_Q, 2, "image_id"), "expected int, found '7'"),
    "vqa: no list": ("vqa", _set(VQA_Q, "questions", DELETE), (VQA_Q, None, "questions"), "expected a list of records"),
    "vqa: record is no object": ("vqa", _set(VQA_Q, "questions", 2, 5), (VQA_Q, 2, "question_id"), "missing"),
    "vqa: unanswered": ("vqa", _set(VQA_A, "annotations", 1, DELETE),
        (VQA_Q, 1, "question_id"), "no 201000 in v2_mscoco_val2014"),
    "vqa: answer": ("vqa", _set(VQA_A, "annotations", 1, "answers", 3, {}),
        (VQA_A, "1.answers[3]", "answer"), "missing"),
    "vqa: nine answers": ("vqa", _set(VQA_A, "annotations", 1, "answers", [{"answer": "cup"}] * 9),
        (VQA_A, 1, "answers"), "expected ten answers, found 9"),
    "vqa: twice": ("vqa", _set(VQA_Q, "questions", 0, "question_id", 201000), (VQA_Q, None, None), "'201000'"),
    "vqa: in train and val": ("vqa", lambda content: (_set(VQA_Q, "questions", 0, "question_id", 100000)(content),
                              _set(VQA_A, "annotations", 0, "question_id", 100000)(content)),
                              ("vqa", None, None), "'100000'"),
    "gqa: missing field": ("gqa", _set(GQA, "02", "question", DELETE), (GQA, "02", "question"), "missing"),
    "gqa: unknown image": ("gqa", _set(GQA, "02", "imageId", "77"),
        (GQA, "02", "imageId"), "no '77' in visual_genome/image_data.json"),
    "gqa: wrong type": ("gqa", _set(GQA, "02", "answer", True), (GQA, "02", "answer"), "expected str, found True"),
    "vg: missing field": ("visual_genome", _set(GENOME, 0, "qas", 5, "answer", DELETE),
        (GENOME, "0.qas[5]", "answer"), "missing"),
    "vg: question is a number": ("visual_genome", _set(GENOME, 0, "qas", 0, 5), (GENOME, "0.qas[0]", "qa_id"), "missing"),
    "vg: question is null": ("visual_genome", _set(GENOME, 0, "qas", [None]), (GENOME, "0.qas[0]", "qa_id"), "missing"),
    "vg: unknown image": ("visual_genome", _set(GENOME, 0, "qas", 5, "image_id", 77),
        (GENOME, "0.qas[5]", "image_id"), "no 77 in"),
    "vg: twice": ("visual_genome", _set(GENOME, 0, "qas", 5, "qa_id", 6), (GENOME, None, None), "'6'"),
    "vg: no coco_id": ("visual_genome", _set(IMAGES, 3, "coco_id", DELETE), (IMAGES, 3, "coco_id"), "missing"),
    "vg: coco_id": ("visual_genome", _set(IMAGES, 3, "coco_id", "9"),
        (IMAGES, 3, "coco_id"), "expected int or NoneType"),
    "coco: missing field": ("coco_captions", _set(COCO, "images", 2, "cocoid", DELETE), (COCO, 2, "cocoid"), "missing"),
    "coco: sentence": ("coco_captions", _set(COCO, "images", 2, "sentences", 1, "raw", 3),
        (COCO, "2.sentences[1]", "raw"), "expected str"),
    "coco: split": ("coco_captions", _set(COCO, "images", 2, "split", "dev"),
        (COCO, 2, "split"), "no 'dev' in train, restval"),
    "coco: twice": ("coco_captions", _set(COCO, "images", 0, "sentences", 0, "sentid", 401),
        (COCO, None, None), "'401'"),
    "coco: in two splits": ("coco_captions", _set(COCO, "images", 3, "sentences", 0, "sentid", 401), (COCO, None, None), "'401'"),
    "flickr: filename": ("flickr30k", _set(FLICKR, "images", 0, "filename", DELETE),
        (FLICKR, 0, "filename"), "missing"),
    "refs: missing field": ("refcocog", _set(REFS, 1, "ann_id", DELETE), (REFS, 1, "ann_id"), "missing"),
    "refs: unknown image": ("refcocog", _set(REFS, 1, "image_id", 99),
        (REFS, 1, "image_id"), "no 99 in images of instances.json"),
    "refs: unknown box": ("refcocog", _set(REFS, 1, "ann_id", 99),
        (REFS, 1, "ann_id"), "no 99 in annotations of instances.json"),
    "refs: other image": ("refcocog", _set(REFS, 1, "ann_id", 50), (REFS, 1, "ann_id"), "of image 10, not of 11"),
    "refs: box outside": ("refcocog", _set(INSTANCES, "annotations", 1, "bbox", [101, 10, 20, 25]),
        (INSTANCES, 1, "bbox"), "100 x 50"),
    "refs: box negative": ("refcocog", _set(INSTANCES, "annotations", 1, "bbox", [90, 10, -1, 25]),
        (INSTANCES, 1, "bbox"), "100 x 50"),
    "refs: box infinite": ("refcocog", _set(INSTANCES, "annotations", 1, "bbox", [1, float("nan"), 2, 2]),
        (INSTANCES, 1, "bbox"), "nan"),
    "refs: box of text": ("refcocog", _set(INSTANCES, "annotations", 1, "bbox", ["1", 1, 2, 2]),
        (INSTANCES, 1, "bbox"), "four numbers"),
    "refs: split": ("refcocog", _set(REFS, 1, "split", "testC"), (REFS, 1, "split"), "no 'testC'"),
    "refs: in two splits": ("refcocog", _set(REFS, 1, "sentences", 0, "sent_id", 0), (REFS, None, None), "'0'"),
    "refs: twice": ("refcocog", _set(REFS, 1, "sentences", 0, "sent_id", 3), (REFS, None, None), "'3'"),
    "v7w: unknown image": ("visual7w", _set(V7W, "images", 1, "image_id", 77),
        (V7W, 1, "image_id"), "no 77 in visual_genome"),
    "v7w: in two splits": ("visual7w", _set(V7W, "images", 1, "qa_pairs", 0, "qa_id", 0), (V7W, None, None), "'0'"),
    "v7w: unknown box": ("visual7w", _set(V7W, "images", 1, "qa_pairs", 0, "answer", 9),
        (V7W, "1.qa_pairs[0]", "box_id"), "no 9 in boxes"),
    "v7w: same box": ("visual7w", _set(V7W, "images", 1, "qa_pairs", 0, "answer", 2),
        (V7W, "1.qa_pairs[0]", "multiple_choices"), "differ"),
    "v7w: box outside": ("visual7w", _set(V7W, "boxes", 2, "x", 101),
        (V7W, 2, "x, y, width, height"), "does not lie in its picture"),
    "v7w: wrong type": ("visual7w", _set(V7W, "boxes", 2, "x", "5"), (V7W, 2, "x"), "expected int or float"),
    "v7w: choices": ("visual7w", _set(V7W, "images", 1, "qa_pairs", 0, "multiple_choices", ["1"]),
                     (V7W, "1.qa_pairs[0]", "multiple_choices"), "expected box ids"),
    "games: missing field": ("guesswhat", _set(GAMES, 0, "qas", 0, "answer", DELETE),
        (GAMES, "0.qas[0]", "answer"), "missing"),
    "games: box outside": ("guesswhat", _set(GAMES, 0, "objects", 0, "bbox", [101, 0, 10, 10]),
        (GAMES, "0.objects[0]", "bbox"), "100 x 50"),
    "games: no such object": ("guesswhat", _set(GAMES, 0, "object_id", 4),
        (GAMES, 0, "object_id"), "no 4 in the objects"),
    "games: status": ("guesswhat", _set(GAMES, 1, "status", "won"),
        (GAMES, 1, "status"), "no 'won' in success, failure"),
    "games: no size": ("guesswhat", _set(GAMES, 0, "image", "width", DELETE), (GAMES, "0.image", "width"), "missing"),
    "nlvr2: label": ("nlvr2", _set(NLVR2, 1, "label", "true"), (NLVR2, 1, "label"), "no 'true' in False, True"),
    "nlvr2: missing field": ("nlvr2", _set(NLVR2, 1, "sentence", DELETE), (NLVR2, 1, "sentence"), "missing"),
    "nlvr2: twice": ("nlvr2", _set(NLVR2, 1, "identifier", "dev-1-0-0"), (NLVR2, None, None), "'dev-1-0-0'"),
    "snli: label": ("snli_ve", _set(SNLI, 1, "gold_label", "-"), (SNLI, 1, "gold_label"), "no '-' in contradiction"),
    "snli: missing field": ("snli_ve", _set(SNLI, 1, "Flikr30kID", DELETE), (SNLI, 1, "Flikr30kID"), "missing"),
    "snli: twice": ("snli_ve", _set(SNLI, 1, "pairID", "60.jpg#0"), (SNLI, None, None), "'60.jpg#0'"),
    "vizwiz: no answer": ("vizwiz", _set(VIZWIZ, 1, "answers", []), (VIZWIZ, 1, "answers"), "found 0"),
    "vizwiz: nine answers": ("vizwiz", _set(VIZWIZ, 1, "answers", [{"answer": "cup"}] * 9), (VIZWIZ, 1, "answers"),
        "expected ten answers, found 9"),
    "vizwiz: answers missing": ("vizwiz", _set(VIZWIZ, 1, "answers", DELETE), (VIZWIZ, 1, "answers"), "missing"),
    "vizwiz: answer is no text": ("vizwiz", _set(VIZWIZ, 1, "answers", 0, {"answer": 3}), (VIZWIZ, "1.answers[0]", "answer"),
        "expected str"),
    "vizwiz: answerable": ("vizwiz", _set(VIZWIZ, 1, "answerable", 2), (VIZWIZ, 1, "answerable"), "expected 0 or 1, found 2"),
    "vizwiz: type of answer": ("vizwiz", _set(VIZWIZ, 1, "answer_type", 7), (VIZWIZ, 1, "answer_type"), "expected str"),
    "vizwiz: name": ("vizwiz", _set(VIZWIZ, 1, "image", "1.jpg"), (VIZWIZ, 1, "image"),
        "such as VizWiz_val_00000000.jpg"),
    "vizwiz: twice": ("vizwiz", _set(VIZWIZ, 1, "image", "VizWiz_val_00000000.jpg"),
        (VIZWIZ, None, None), "ids repeat another"),
    "captions: columns": ("conceptual_captions", _set(CAPTIONS, "a cup\thttp://x/1\na dog\n"),
                          (CAPTIONS, 1, None), "found 1 columns"),
    "captions: the other way round": ("conceptual_captions", _set(CAPTIONS, "a cup\thttp://x/1\nhttps://x/2\ta dog\n"),
                                      (CAPTIONS, 1, None), "found address, tab, caption"),
}


@pytest.mark.parametrize("corpus, change, where, words", WRONG.values(), ids=WRONG.keys())
def test_wrong_record(tmp_path, content, corpus, change, where, words):
    change(content)
    with pytest.raises(CorpusError) as error:
        corpora.load(write(tmp_path, content), only=[corpus])
    assert (error.value.file.relative_to(tmp_path).as_posix(), error.value.record, error.value.field) == where
    assert words in str(error.value)


@pytest.mark.parametrize("corpus, change, where, words", WRONG.values(), ids=WRONG.keys())
def test_wrong_record_in_whichever_block(tmp_path, content, corpus, change, where, words):
    with mock.patch.object(frames, "BLOCK", 1), mock.patch.object(captions, "BLOCK", 1):
        test_wrong_record(tmp_path, content, corpus, change, where, words)


def test_every_corpus_has_a_wrong_record():
    assert {corpus for corpus, *_ in WRONG.values()} | {"refcoco", "refcoco+"} == set(corpora.READERS)


def test_blocks_of_any_size_make_equal_frames(tmp_path, content):
    root = write(tmp_path, content)
    whole = corpora.load(root)
    for size in (1, 3):
        with mock.patch.object(frames, "BLOCK", size), mock.patch.object(captions, "BLOCK", size): parts = corpora.load(root)
        for corpus, splits in whole.items():
            for split, frame in splits.items(): pd.testing.assert_frame_equal(parts[corpus][split], frame)


def test_stored_frames_are_what_was_read(tmp_path, content):
    read = corpora.load(write(tmp_path / "data", content))
    write_frames(read, tmp_path / "frames")
    stored = read_frames(tmp_path / "frames")
    assert {corpus: {*splits} for corpus, splits in stored.items()} == {corpus: {*splits} for corpus, splits in read.items()}
    for corpus, splits in read.items():
        for split, frame in splits.items(): pd.testing.assert_frame_equal(stored[corpus][split], frame)


def test_what_hangs_over_is_cut_off(tmp_path, content):
    content[INSTANCES]["annotations"][0]["bbox"] = [-8, 10, 110, 40.9]
    train = corpora.load(write(tmp_path, content), only=["refcocog"])["refcocog"]["train"]
    assert train["box"][0] == pytest.approx((0, .2, 1, 1))


@pytest.mark.parametrize("corpus, path, emptied, empty", [
    ("coco_captions", COCO, lambda file: [image.update(split="train") for image in file["images"]], "val, test"),
    ("refcoco", "refcoco/refcoco/refs(unc).p", lambda file: [reference.update(split="val") for reference in file], "train, test"),
    ("guesswhat", "guesswhat/guesswhat.train.jsonl.gz", lambda file: [game.update(status="failure") for game in file], "train")])
def test_a_split_without_examples_is_doubted(tmp_path, content, corpus, path, emptied, empty):
    emptied(content[path])
    root = write(tmp_path, content)
    with pytest.warns(SizeWarning, match=f"{re.escape(str(root))}: no example of {empty} in .*{re.escape(path)}"):
        corpora.load(root, only=[corpus])


def test_malformed_line_is_named(tmp_path, content):
    lines = encode(GAMES, content[GAMES])
    root = write(tmp_path, content | {GAMES: gzip.compress(gzip.decompress(lines) + b'{"id": 7,\n')})
    with pytest.raises(CorpusError, match="record 2: not a JSON line"):
        corpora.load(root)


def test_half_a_download_is_named(tmp_path, content):
    root = write(tmp_path, content | {GAMES: encode(GAMES, content[GAMES])[:-20]})
    with pytest.raises(CorpusError, match="download it again"):
        corpora.load(root)


# ---------------------------------------------------------------------------------------------------------------------
# Pickles


class Hostile:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


def hostile(marker):
    command = f"touch {marker}"
    for protocol in range(6):
        yield pickle.dumps([{"ref_id": Hostile(os.system, command)}], protocol=protocol)
        yield pickle.dumps(Hostile(eval, f"open({str(marker)!r}, 'w')"), protocol=protocol)
        yield pickle.dumps({"boxes": np.zeros(3)}, protocol=protocol)
        yield pickle.dumps([Path(marker)], protocol=protocol)
    yield b"(S'" + command.encode() + b"'\nios\nsystem\n."       # INST
    yield b"c__builtin__\nexec\n(S'import os'\ntR."              # Python 2 names
    yield b"(dS'a'\nS'b'\nscopy_reg\n_reconstructor\n."          # rubbish between the opcodes
    yield b"Pname\n."                                            # a persistent id
    yield b"\x80\x02\x82\x01."                                   # an extension code
    yield b"\x80\x02]q\x00(K\x01"                                # cut off
    yield b""


def test_hostile_pickles_are_refused_and_not_executed(tmp_path):
    marker, file = tmp_path / "hacked", tmp_path / "refs(unc).p"
    for payload in hostile(marker):
        file.write_bytes(payload)
        with pytest.raises(CorpusError, match="not a pickle of plain values") as error:
            read_pickle(file)
        assert error.value.file == file and not marker.exists()
    assert pickle.loads(next(hostile(marker)))[0] and marker.exists(), "the payload would have run"


def test_a_refused_class_is_named(tmp_path):
    (tmp_path / "refs.p").write_bytes(pickle.dumps(Counter(a=1)))
    with pytest.raises(CorpusError, match="it asks for collections.Counter"):
        read_pickle(tmp_path / "refs.p")


def test_strings_of_python_2(tmp_path):
    (tmp_path / "refs.p").write_bytes(b"(lp0\n(dp1\nS'raw'\np2\nS'caf\\xe9'\np3\nsS'ref_id'\np4\nL12L\nsa.")
    assert read_pickle(tmp_path / "refs.p") == [{"raw": "café", "ref_id": 12}]


plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                     lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner))


@given(plain, st.integers(0, 5))
@tries(60)
def test_plain_values_survive(tmp_path_factory, value, protocol):
    file = tmp_path_factory.getbasetemp() / "plain.p"
    file.write_bytes(pickle.dumps(value, protocol=protocol))
    assert read_pickle(file) == value


# ---------------------------------------------------------------------------------------------------------------------
# Helpers


@given(st.lists(st.lists(st.integers(-2 ** 63, 2 ** 63 - 1), max_size=4), max_size=6))
def test_gather_undoes_nested(lists):
    records = Records(Path("f"), [{"items": [{"value": value} for value in values]} for values in lists])
    items, owners = nested(records, "items")
    assert gather(owners, items.column("value", int), len(lists)) == list(map(tuple, lists))
    places = [(owner, place) for owner, values in enumerate(lists) for place in range(len(values))]
    assert [items.name(i) for i in range(len(places))] == [f"{owner}.items[{place}]" for owner, place in places]
    assert [choose(items, [i]).name(0) for i in range(len(places))] == [items.name(i) for i in range(len(places))]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.floats(.1, 30))
def test_last_images_holds_whole_images_and_just_enough(images, count):
    chosen, entries = last_images(images, count), Counter(images)
    held = sum(entries[image] for image in chosen)
    assert chosen == {image for image in images if image >= min(chosen)}
    assert held >= min(count, len(images)) and held - entries[min(chosen)] < count


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 40), st.floats(2.5, 40), st.floats(2.5, 40)), max_size=5),
       st.integers(80, 200), st.integers(80, 200))
def test_boxes_inside_are_kept(boxes, width, height):
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes]).reshape(-1, 4)
    found = fractions(corners, [(width, height)] * len(boxes), Records(Path("f"), []))
    np.testing.assert_allclose(found * [width, height, width, height], corners, atol=1e-9)
    assert (found >= 0).all() and (found <= 1).all()


coordinates = st.floats(-60, 110)


@given(st.lists(st.tuples(coordinates, coordinates, st.floats(0, 90), st.floats(0, 90)), min_size=1, max_size=5))
def test_boxes_are_cut_to_at_least_one_pixel_of_the_picture_or_refused(boxes):
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes])
    outside = ((corners[:, :2] > 50) | (corners[:, :2] < -50) | (corners[:, 2:] < 0) | (corners[:, 2:] > 100)).any()
    if outside or corners[:, 2:].max() <= 2:
        with pytest.raises(CorpusError, match="does not lie in its picture" if outside else "found fractions of pictures"):
            fractions(corners, [(50, 50)] * len(boxes), Records(Path("f"), [{}] * len(boxes)))
    elif not corners.any(1).all():
        with pytest.raises(CorpusError, match="expected a box, found four zeros"):
            fractions(corners, [(50, 50)] * len(boxes), Records(Path("f"), [{}] * len(boxes)))
    else:
        found = fractions(corners, [(50, 50)] * len(boxes), Records(Path("f"), [])) * 50
        assert (found >= 0).all() and (found <= 50).all() and (found[:, 2:] - found[:, :2] > 1 - 1e-9).all()
        cut = np.clip(corners, 0, 50)
        wide = np.tile(cut[:, 2:] - cut[:, :2] >= 1, 2)
        np.testing.assert_allclose(found[wide], cut[wide], atol=1e-300)  # what is smaller has lost its digits


@pytest.mark.parametrize("corners, size", [((10, 10, 9, 20), (50, 50)), ((np.nan, 10, 20, 20), (50, 50)),
                                           ((1, 1, np.inf, 2), (50, 50)), ((0, 0, 1e9, 1e9), (50, 50)),
                                           ((-51, 0, 9, 9), (50, 50)), ((0, 0, 0, 0), (0, 50)), ((0, 0, 1, 1), (-1, 9))])
def test_boxes_that_are_none_are_refused(corners, size):
    with pytest.raises(CorpusError, match="does not lie in its picture"):
        fractions([corners], [size], Records(Path("f"), [{}]))


def test_boxes_in_fractions_are_refused(tmp_path, content):
    for corpus, path, boxes in (("refcocog", INSTANCES, content[INSTANCES]["annotations"]),
                                ("guesswhat", GAMES, [box for game in content[GAMES] for box in game["objects"]])):
        for box in boxes: box["bbox"] = [.1, .25, .9, .75]
        with pytest.raises(CorpusError, match=re.escape(path) + ": field 'bbox': .*expected pixels, found fractions"):
            corpora.load(write(tmp_path, content), only=[corpus])
    for box in content[V7W]["boxes"]: box |= dict(x=0, y=.5, width=1, height=.5)
    content["visual_genome/objects.json"][0]["objects"][0] |= dict(x=0, y=.5, w=1, h=.5)
    write(tmp_path, content)
    with pytest.raises(CorpusError, match="expected pixels, found fractions"): corpora.load(tmp_path, only=["visual7w"])
    with pytest.raises(CorpusError, match="objects.json: .*expected x, y, w and h in pixels"): corpora.visual_genome_objects(tmp_path)


@pytest.mark.parametrize("count, over, refused", [(9, 9, False), (10, 2, False), (10, 3, True), (1000, 900, True)])
def test_how_many_corners_are_refused(count, over, refused):
    corners = np.array([[30, 20, 30 + 40, 20 + 35]] * over + [[5, 5, 15, 15]] * (count - over))  # 40, 35 and 10, 10 would be corners, too
    for broken in (0, count // 50 + 1):  # of which so many would not
        corners[count - broken:] = 40, 30, 60, 40
        listed = [(64, 48)] * count, Records(Path("f"), [{}] * count)
        if refused and not broken:
            with pytest.raises(CorpusError, match=f"f: field 'bbox': {over} of {count:,} boxes hang over"): fractions(corners, *listed)
        else: assert len(fractions(corners, *listed)) == count


def test_a_box_of_zeros_is_none(tmp_path, content):
    content[INSTANCES]["annotations"][1]["bbox"] = [0, 0, 0, 0]
    with pytest.raises(CorpusError, match=re.escape(INSTANCES) + ": record .*, field 'bbox': expected a box, found four zeros"):
        corpora.load(write(tmp_path, content), only=["refcocog"])
    content[INSTANCES]["annotations"][1]["bbox"] = [0, 3, 5, 0]  # a line, as two of COCO's
    assert corpora.load(write(tmp_path, content), only=["refcocog"])


def test_empty_columns_have_the_shape_of_full_ones():
    assert box_column(Records(Path("f"), [])).shape == (0, 4)
    assert fractions(np.zeros((0, 4)), [], Records(Path("f"), [])).shape == (0, 4)


def test_json_lines_of_a_million_characters(tmp_path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"a": "x" * 1_000_000}) + "\n")
    assert len(read_json_lines(tmp_path / "long.jsonl")[0]["a"]) == 1_000_000
