"""Whoever has a model's folder can ask it: every kind of answer, about keys, regions, boxes and pictures, in words, anywhere."""
import copy
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_scoring import split

import toy
from vl12in1.boxes import to_fractions
from vl12in1.evaluation.predict import predict
from vl12in1.examples.batches import Examples
from vl12in1.examples.text import AnswerVocabulary, write_wordpieces
from vl12in1.model import CheckpointError, TwelveInOne, ViLBERTConfig
from vl12in1.model.heads import HEADS
from vl12in1.model.saving import Assets
from vl12in1.predictor import Predictor, published_assets
from vl12in1.predictor.pictures import KEPT, Looking, open_detector
from vl12in1.regions import Regions, RegionWriter, read_class_names
from vl12in1.regions.detector import Detector, DetectorConfig, save_detector
from vl12in1.tasks import TASKS, TRAINABLE
from vl12in1.training.trainer import assets_of

ROOT = Path(__file__).resolve().parents[1]
HERE = [task for task in TASKS if task != "flickr30k_retrieval"]  # the toy has COCO's photographs only
SIZES = dict(text_layers=1, image_layers=1, text_connections=(0,), image_connections=(0,))


def model_of(shared, feature_dim=8):
    "An untrained model that believes it has learned all tasks from the toy's examples."
    torch.manual_seed(3)
    config = ViLBERTConfig.miniature(vocab_size=len(toy.WORDS), feature_dim=feature_dim,
                                     task_tokens=tuple((task,) for task in TASKS), **SIZES)
    model, assets = TwelveInOne(config, {"vqa": 2, "gqa": 2}), Assets()
    for task in TASKS:
        examples = Examples(task, split("coco_retrieval" if task == "flickr30k_retrieval" else task, shared), shared)
        assets = assets_of(examples, assets)
    model.assets = assets
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("toy")


@pytest.fixture(scope="module")
def shared(folder): return toy.sources(folder)


@pytest.fixture(scope="module")
def predictor(folder, shared):
    model_of(shared).save_pretrained(folder / "model")
    return Predictor.from_pretrained(folder / "model", regions=folder / "store", given=folder / "store", machine=toy.CPU, batch_size=5)


# ---- frames without what is right

@pytest.mark.parametrize("task", HERE)
def test_every_task_is_answered_without_target_columns(task, predictor, shared):
    "The same predictions as with them, in words, and nobody claims to know how right they are."
    frame = split(task, shared)
    targets = set().union(*HEADS[TASKS[task].head].columns) - {"candidates"}
    asked = frame.drop(columns=targets & set(frame.columns))
    answers, expected = predictor.predict(asked, task), predict(predictor.model, Examples(task, frame, shared), toy.CPU)
    assert answers.uid.tolist() == frame.uid.tolist()
    assert TASKS[task].head == "match" or answers.score.isna().all()
    assert not any(isinstance(prediction, (int, np.integer)) for prediction in answers.prediction)
    assert answers.prediction.tolist() == predictor.model.head(task).in_words(Examples(task, frame, shared), expected.prediction.tolist())


def test_a_frame_needs_no_uid(predictor, shared):
    frame = split("snli_ve", shared).drop(columns=["uid", "label"])
    assert predictor.predict(frame, "snli_ve").uid.tolist() == [str(row) for row in range(len(frame))]


# ---- one by one, and many at once

ASKED = {
    "answer": (lambda p, key, text: p.answer(key, text), "answer", {"yes", "no"}),
    "entail": (lambda p, key, text: p.entail(key, text), "label", {"contradiction", "neutral", "entailment"}),
    "verify": (lambda p, key, text: p.verify(key, key, text), "label", {"False", "True"})}


@pytest.mark.parametrize("kind", ASKED)
def test_words_with_scores_best_first(kind, predictor):
    ask, field, words = ASKED[kind]
    answer = ask(predictor, "coco:3", "is the ball red")
    answers = answer.top_k
    assert {answer[field] for answer in answers} == words
    scores = [answer["score"] for answer in answers]
    assert (answer.score, getattr(answer, field)) == (scores[0], answers[0][field]) == (answer.score, answer.alternatives[answer.index])
    assert dict(zip(answer.alternatives, answer.probabilities)) == {each[field]: np.float32(each["score"]) for each in answers}
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores) and type(scores[0]) is float


@pytest.mark.parametrize("kind", ASKED)
def test_lists_give_lists_and_the_same_answers(kind, predictor):
    ask, _, _ = ASKED[kind]
    keys, texts = toy.KEYS[:7], [f"the {colour} ball" for colour in ("red", "blue", "red", "left", "right", "red", "blue")]
    alone = [ask(predictor, key, text) for key, text in zip(keys, texts)]
    together = ask(predictor, keys, texts)
    flat = [[dict(row, score=pytest.approx(row["score"], abs=1e-5)) for row in answer.top_k] for answer in alone]
    assert [list(answer.top_k) for answer in together] == flat
    assert ask(predictor, keys, "the ball")[2] == ask(predictor, keys, ["the ball"] * 7)[2]
    assert ask(predictor, [], []) == []


def test_the_best_answer_is_the_prediction(predictor, shared):
    for task, method in (("vqa", predictor.answer), ("gqa", predictor.answer), ("snli_ve", predictor.entail)):
        frame = split(task, shared)
        replies = method([key for (key,) in frame.images], frame.text.tolist(), task=task, top_k=1)
        words = [next(value for name, value in reply.top_k[0].items() if name != "score") for reply in replies]
        assert words == predictor.predict(frame, task).prediction.tolist()


@pytest.mark.parametrize("top_k, count", [(1, 1), (2, 2), (99, 2), (None, 2)])
def test_as_many_alternatives_as_asked_for(top_k, count, predictor):
    assert len(predictor.answer("coco:1", "the ball", top_k=top_k).top_k) == count


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))], ids=["copied", "pickled"])
def test_a_duplicate_answers_the_same(duplicate, predictor):
    "As when a predictor is handed to another process."
    again = duplicate(predictor)
    assert again.model is not predictor.model and again.assets == predictor.assets
    assert again.answer("coco:1", "the ball") == predictor.answer("coco:1", "the ball")


@pytest.mark.parametrize("task", HERE)
def test_one_example_alone_is_answered_as_among_others(task, predictor, shared):
    frame = split(task, shared).drop(columns=["box", "label", "answers", "uid"], errors="ignore")
    alone = predictor.predict(frame.iloc[:1], task)
    assert len(alone) == 1
    if TASKS[task].head == "match": assert alone.prediction[0] == frame["images"].iloc[0]  # of one picture there is no choice
    else: assert alone.prediction[0] == predictor.predict(frame, task).prediction[0]


@pytest.mark.parametrize("task", [task for task in HERE if TASKS[task].head != "match"])
def test_no_examples_have_no_answers(task, predictor, shared):
    assert predictor.predict(split(task, shared).iloc[:0], task).empty


# ---- regions

def test_regions_stand_for_their_key(predictor):
    regions = predictor.regions["coco:4"]
    assert predictor.answer(regions, "the ball") == predictor.answer("coco:4", "the ball")
    assert predictor.ground(regions, "the ball") == predictor.ground("coco:4", "the ball")


def test_any_mapping_is_a_store(folder, shared, predictor):
    regions = {key: shared.detected[key] for key in toy.KEYS[:3]}
    other = Predictor.from_pretrained(folder / "model", regions=regions, machine=toy.CPU)
    assert other.answer("coco:2", "the ball") == predictor.answer("coco:2", "the ball")
    assert {match["label"] for match in other.rank(list(other.regions), ["a red ball"]).pictures[0].top_k} == set(toy.KEYS[:3])


def test_the_folder_of_both_stores(folder, tmp_path):
    for kind in ("detected", "given"): shutil.copytree(folder / "store", tmp_path / kind)
    both = Predictor.from_pretrained(folder / "model", regions=tmp_path, machine=toy.CPU)
    assert both.regions.folder.name == "detected" and both.given.folder.name == "given"


# ---- boxes

def test_a_phrase_is_placed_in_pixels(predictor):
    best, regions = predictor.ground("coco:5", "the red ball", top_k=99), predictor.regions["coco:5"]
    places = best.top_k
    boxes = {tuple(place["box"].values()) for place in places}
    expected = {tuple(round(float(side), 1) for side in box) for box in regions.boxes} | {(0., 0., 100., 100.)}
    assert boxes == expected and {place["label"] for place in places} == {"the red ball"}
    assert list(places[0]["box"]) == ["xmin", "ymin", "xmax", "ymax"] and type(places[0]["box"]["xmin"]) is float
    for place in (best.to_dict(), *places):  # the toy's pictures are 100 pixels wide and high
        assert tuple(place["box"].values()) == pytest.approx([100 * side for side in place["fractions"]], abs=.06)
    assert best.fractions == pytest.approx(best.alternatives[best.index], abs=1e-6)


def test_the_best_box_is_the_prediction(predictor, shared):
    frame = split("refcoco", shared)
    places = predictor.ground([key for (key,) in frame.images], frame.text.tolist(), task="refcoco", top_k=1)
    predictions = predictor.predict(frame, "refcoco").prediction
    for place, box in zip(places, predictions):
        assert tuple(place.box.values()) == pytest.approx([100 * side for side in box], abs=.06)


def test_only_the_boxes_given_compete(predictor):
    boxes = predictor.regions["coco:6"].boxes[[3, 1]]
    best = predictor.ground("coco:6", "the left box", boxes=boxes, task="visual7w", top_k=99)
    places = best.top_k
    assert best == predictor.choose("coco:6", "the left box", boxes, top_k=99)
    assert tuple(best.box.values()) == tuple(round(float(side), 1) for side in boxes[best.index])
    expected = {tuple(round(float(side), 1) for side in box) for box in boxes}
    assert {tuple(place["box"].values()) for place in places} == expected


def test_boxes_differ_from_question_to_question(predictor):
    "Also about one and the same image."
    boxes = predictor.regions["coco:6"].boxes
    among = [boxes[:2], boxes[2:], boxes[:1]]
    many = predictor.ground("coco:6", ["the left box"] * 3, boxes=among, task="guesswhat")
    assert [len(place.top_k) for place in many] == [2, 3, 1]
    assert many[1].box == predictor.ground("coco:6", "the left box", boxes=among[1], task="guesswhat").box
    assert many == predictor.guess("coco:6", ["the left box"] * 3, among)


def test_a_dialogue_is_its_turns(predictor):
    boxes, turns = predictor.regions["coco:6"].boxes, (("is it red?", "Yes"), ("left?", "No"))
    asked = predictor.guess("coco:6", turns, boxes)
    assert asked.label == "start is it red? answer Yes stop start left? answer No stop"
    assert asked == predictor.guess("coco:6", asked.label, boxes) == predictor.guess("coco:6", [turns], [boxes])[0]


# ---- retrieval

def test_a_caption_finds_images(predictor, shared):
    frame = split("coco_retrieval", shared)
    keys = list(dict.fromkeys(key for (key,) in frame.images))
    matches = predictor.rank(keys, frame.text.tolist(), task="coco_retrieval").pictures
    expected = predictor.predict(frame, "coco_retrieval").prediction
    assert [[row["label"] for row in of_caption.top_k] for of_caption in matches] == [list(best[:5]) for best in expected]
    (match,) = predictor.rank(list(predictor.regions.keys()), ["a ball"], top_k=99).pictures
    assert sum(row["score"] for row in match.top_k) == pytest.approx(1)


def test_a_ranking_is_read_both_ways(predictor):
    captions = ["the red ball", "the box", "left right"]
    ranking = predictor.rank(toy.KEYS[:4], captions)
    assert ranking.scores.shape == (3, 4) and len(ranking.pictures) == 3 and len(ranking.captions) == 4
    assert [match.index for match in ranking.pictures] == ranking.scores.argmax(1).tolist()
    assert [match.label for match in ranking.captions] == [captions[best] for best in ranking.scores.argmax(0)]
    assert [match.probabilities.sum() for match in ranking.captions] == pytest.approx([1] * 4)
    assert json.loads(json.dumps(ranking.to_dict()))["pictures"][0]["label"] == ranking.pictures[0].label


def test_images_without_a_key_are_called_by_their_number(predictor):
    images = [predictor.regions[key] for key in toy.KEYS[:3]]
    ((numbers,), (keys,)) = (predictor.rank(shown, ["a ball"]).pictures for shown in (images, toy.KEYS[:3]))
    assert [toy.KEYS[match["label"]] for match in numbers.top_k] == [match["label"] for match in keys.top_k]


def test_every_caption_with_every_image(predictor):
    scores = predictor.rank(toy.KEYS[:4], ["the ball", "the box"]).scores
    assert scores.shape == (2, 4) and scores.dtype == np.float32
    assert scores[1, 2].item() == pytest.approx(predictor.rank([toy.KEYS[2]], ["the box"]).scores.item(), abs=1e-5)


# ---- pictures

class FakeDetector:
    "Sees the same five regions in every picture, and counts its calls."

    def __init__(self, regions, name="random"): self.regions, self.name, self.calls = regions, name, []

    def record(self, boxes): return dict(extractor=self.name, settings={})

    def detect(self, picture):
        self.calls.append(("detect", picture.shape))
        return self.regions

    def describe(self, picture, boxes):
        self.calls.append(("describe", picture.shape))
        return replace(self.regions, features=self.regions.features[:len(boxes)], boxes=np.float32(boxes))


@pytest.fixture
def looking(shared, folder):
    return Predictor.from_pretrained(folder / "model", FakeDetector(shared.detected["coco:7"]), machine=toy.CPU)


def calls(predictor): return predictor.looking.detector.calls


def test_a_picture_is_looked_at_in_any_form(looking, predictor, tmp_path):
    picture = np.zeros((30, 20, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    expected = predictor.answer("coco:7", "the ball")
    path = tmp_path / "picture.png"
    for image in (picture, picture[..., 0], Image.fromarray(picture), Image.fromarray(picture).convert("L"), path, str(path)):
        assert looking.answer(image, "the ball") == expected
    assert calls(looking) == [("detect", (30, 20, 3))]  # all are the same picture
    assert looking.answer(picture + 1, "the ball") == expected
    assert calls(looking) == [("detect", (30, 20, 3))] * 2


def test_one_picture_is_looked_at_once_however_many_questions_there_are(looking):
    looking.answer(np.zeros((30, 20, 3), np.uint8), ["the ball", "the box", "red"])
    looking.entail(np.zeros((30, 20, 3), np.uint8), "the ball")
    assert len(calls(looking)) == 1


def test_boxes_of_a_picture_are_described(looking):
    places = looking.ground(np.zeros((30, 20, 3), np.uint8), "the ball", boxes=[[0, 0, 9, 9], [5, 5, 20, 20]])
    assert {tuple(place["box"].values()) for place in places.top_k} == {(0., 0., 9., 9.), (5., 5., 20., 20.)}
    assert {name for name, _ in calls(looking)} == {"detect", "describe"}


def test_one_picture_is_described_once_with_the_boxes_of_all_its_phrases(looking):
    "Each phrase still chooses among its own; and of another picture in the same list everything is its own."
    one, other = np.zeros((30, 20, 3), np.uint8), np.zeros((50, 50, 3), np.uint8)
    among = [[[0, 0, 9, 9], [5, 5, 20, 20]], [[1, 1, 9, 9]], [[2, 2, 30, 30], [0, 0, 9, 9]], [[1, 1, 9, 9]]]
    places = looking.ground([one, one, other, one], ["the ball"] * 4, boxes=among, top_k=99)
    assert calls(looking) == [(kind, shape) for kind in ("detect", "describe") for shape in ((30, 20, 3), (50, 50, 3))]
    shown = [{tuple(place["box"].values()) for place in of_phrase.top_k} for of_phrase in places]
    assert shown == [{tuple(map(float, box)) for box in boxes} for boxes in among]
    assert places[1] == places[3]


def test_a_folder_keeps_what_was_seen(shared, folder, tmp_path):
    "For another predictor with the same detector, and for no other detector; damaged files are as good as none."
    picture, boxes = np.random.default_rng(0).integers(0, 255, (30, 20, 3), np.uint8), [[0, 0, 9, 9]]
    first, second = (FakeDetector(shared.detected["coco:7"]) for _ in range(2))
    ask = lambda detector: Predictor.from_pretrained(folder / "model", detector, cache=tmp_path / "seen", machine=toy.CPU).ground(
        picture, "the ball", boxes)
    expected = ask(first)
    assert len(first.calls) == 2 and ask(second) == expected and second.calls == []
    other = Looking(FakeDetector(shared.detected["coco:3"], "another"), tmp_path / "seen")
    assert other(picture).boxes.tolist() == shared.detected["coco:3"].boxes.tolist()
    for path in (tmp_path / "seen").iterdir(): path.write_bytes(path.read_bytes()[:99])
    assert ask(second) == expected and len(second.calls) == 2
    assert not list((tmp_path / "seen").glob(f"*.{os.getpid()}"))


def test_only_the_last_pictures_are_remembered(looking):
    pictures = [np.full((4, 4, 3), shade, np.uint8) for shade in range(KEPT + 1)]
    for picture in [*pictures, pictures[-1], pictures[1]]: looking.look(picture)
    assert len(calls(looking)) == KEPT + 1
    looking.look(pictures[0])
    assert len(calls(looking)) == KEPT + 2


def test_one_look_for_all_tasks(looking):
    "What a page does that shows a picture, a sentence and what every task makes of them."
    picture, boxes = np.zeros((30, 20, 3), np.uint8), [[0, 0, 9, 9], [5, 5, 20, 20]]
    for task in looking.assets.tasks:
        head = HEADS[TASKS[task].head]
        if head.look_alikes: looking.rank([picture], ["the ball"], task=task)
        else: looking.ask(task, (picture,) * head.images, "the ball")
    looking.choose(picture, "the ball", boxes)
    looking.explain(picture, "the ball")
    assert calls(looking) == [("detect", (30, 20, 3)), ("describe", (30, 20, 3))]


def test_the_detector_of_the_study(shared):
    "A small one, untrained, with a model that claims to have learned from it."
    torch.manual_seed(0)
    detector, model = detector_and_model(shared)
    looking = Predictor(model, detector=detector, machine=toy.CPU)
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    place = looking.ground(picture, "the ball", boxes=[[10, 10, 40, 40]])
    assert len(place.top_k) == 1 and place.box == dict(xmin=10, ymin=10, xmax=40, ymax=40)
    assert looking.answer([picture, picture[::-1]], "the ball", top_k=1)[1].answer in ("yes", "no")
    with pytest.raises(ValueError, match="the detector: its regions .* learned with 'vl12in1.regions.detector' .other score"):
        Predictor(model, detector=replace(detector, config=DetectorConfig(score=.2)), machine=toy.CPU)


def test_regions_are_called_what_the_detector_takes_them_for(shared):
    "By the names in the record of the study's detector; boxes that are handed over, and the whole picture, have none."
    torch.manual_seed(0)
    detector, model = detector_and_model(shared)
    looking = Predictor(model, detector=detector, machine=toy.CPU)
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    check_names(looking, picture, ["background", "ball"])
    assert looking.ground(picture, "the ball", boxes=[[10, 10, 40, 40]]).region_name is None


def check_names(looking, picture, class_names):
    "The names of all regions of a picture, in a place, in vectors and in attention, are those of their most probable classes."
    regions = looking.look(picture)
    expected = [class_names[1 + number] for number in regions.class_probs[:, 1:].argmax(1)]
    place = looking.ground(picture, "the ball", top_k=None)
    np.testing.assert_allclose(place.alternatives[1:], to_fractions(regions.boxes, regions.width, regions.height), atol=1e-5)
    names, order = [None, *expected], np.argsort(-place.probabilities, kind="stable")
    assert len(expected) and [row["region_name"] for row in place.top_k] == [names[number] for number in order]
    assert place.to_dict()["region_name"] == place.top_k[0]["region_name"]
    assert looking.explain(picture, "the ball").region_names == (None, *expected)
    assert looking.encode(picture, "the ball").to_dict()["region_names"] == [None, *expected]


@pytest.mark.parametrize("holder", ["detector", "store", "model"])
def test_the_published_names_of_1600_categories(holder, shared, tmp_path):
    "From the JSON file to a place: by way of the detector that was opened with it, of the store, or of the model's own record."
    categories = [dict(id=number, name=f"thing {number}") for number in range(1, 1601)]
    (tmp_path / "categories.json").write_text(json.dumps(dict(categories=categories)))
    names = read_class_names(tmp_path / "categories.json")
    probs = np.random.default_rng(0).dirichlet(np.ones(1601), 5).astype("float16")
    regions, model = replace(shared.detected["coco:7"], class_probs=probs), model_of(shared)
    model.assets = replace(model.assets, regions=dict(extractor=dict(name="random", settings={})))
    detector, picture = FakeDetector(regions), np.zeros((30, 20, 3), np.uint8)
    if holder == "detector":
        record = detector.record("detected") | dict(class_names=names)
        detector.record = lambda boxes: record
        check_names(Predictor(model, detector=detector, machine=toy.CPU), picture, names)
    if holder == "store":
        with RegionWriter(tmp_path / "store", "random", class_names=names) as writer: writer.append("coco:7", regions)
        check_names(Predictor(model, tmp_path / "store", machine=toy.CPU), "coco:7", names)
    if holder == "model":
        model.assets = replace(model.assets, regions=dict(model.assets.regions, class_names=list(names)))
        check_names(Predictor(model, {"coco:7": regions}, machine=toy.CPU), "coco:7", names)


def test_regions_without_known_names_are_called_nothing(predictor):
    assert predictor.ground("coco:1", "the ball").region_name is None
    assert predictor.explain("coco:1", "the ball").region_names == (None,) * 6


# ---- inside

def test_vectors_have_a_row_for_each_piece_and_region(predictor):
    "The same alone as beside longer texts, and the heads' own answer can be computed from them."
    texts = ["the ball", "the red ball left", "is the ball"]
    many = predictor.encode(toy.KEYS[:3], texts, task="vqa")
    for key, text, encoding in zip(toy.KEYS, texts, many):
        alone = predictor.encode(key, text, task="vqa")
        assert encoding.pieces == alone.pieces == ("[CLS]", "[TASK]", *text.split(), "[SEP]")
        assert encoding.text.shape == (len(encoding.pieces), predictor.model.config.text_hidden)
        assert encoding.image.shape == (6, predictor.model.config.image_hidden) and encoding.boxes.shape == (6, 4)
        np.testing.assert_allclose(encoding.pooled, alone.pooled, atol=1e-5)
        np.testing.assert_allclose(encoding.text, alone.text, atol=1e-5)
        head = predictor.model.head("vqa")
        with torch.inference_mode(): logits = head.classifier(torch.from_numpy(encoding.pooled)[None])
        answer = predictor.answer(key, text, task="vqa")
        np.testing.assert_allclose(head.confidences(logits)[0], answer.probabilities, atol=1e-5)
    assert json.loads(json.dumps(many[0].to_dict()))["pieces"] == list(many[0].pieces)
    assert not np.allclose(predictor.encode(toy.KEYS[0], texts[0], task="refcoco").pooled, many[0].pooled, atol=1e-4)


def test_attention_is_divided_among_regions_and_words(predictor):
    (look,) = predictor.explain(["coco:1"], ["the red ball"])
    pieces, regions = len(look.pieces), len(look.boxes)
    shapes = {"text_to_image": (pieces, regions), "image_to_text": (regions, pieces), "text": (pieces, pieces), "image": (regions, regions)}
    for name, maps in look.attention.items():
        assert maps.shape[2:] == shapes[name]
        np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
    assert set(look.attention) == set(shapes) and look.words == ("the", "red", "ball")
    np.testing.assert_allclose(look.regions_of("red"), look.attention["text_to_image"][-1][:, 3].mean(0), rtol=1e-6)
    assert json.loads(json.dumps(look.to_dict()))["boxes"] == look.boxes.tolist()


# ---- long texts

def test_a_text_that_is_too_long_is_cut_and_that_is_said(predictor):
    text = "is the ball red " * 5 + "left box"  # the task reads 21 word pieces
    with pytest.warns(UserWarning, match="vqa reads 21 word pieces of a text; cut is 'box'"): cut = predictor.answer("coco:1", text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert predictor.answer("coco:1", text.removesuffix(" box")) == cut
        predictor.entail("coco:1", text)  # which reads more
    with pytest.warns(UserWarning, match="visual7w reads 18 word pieces .* cut is 'ball red left box'"):
        predictor.choose("coco:1", text, predictor.regions["coco:1"].boxes)
    with pytest.warns(UserWarning, match="coco_retrieval reads 28 word pieces .* cut is 'right'"):
        predictor.rank(["coco:1"], ["left " * 28 + "right"])


def test_the_list_of_answers_is_a_parameter(predictor):
    for vocabulary in ("vqa", "gqa"):
        assert predictor.answer("coco:1", "the ball", vocabulary=vocabulary) == predictor.answer("coco:1", "the ball", task=vocabulary)
    assert predictor.answer("coco:1", "the ball") == predictor.answer("coco:1", "the ball", vocabulary="vqa")


# ---- what cannot be asked

@pytest.mark.parametrize("task", ["visual7w", "guesswhat"])
def test_candidates_that_nobody_described_are_refused(task, folder, predictor, shared):
    frame = split(task, shared).drop(columns="label")
    alone = Predictor.from_pretrained(folder / "model", regions=folder / "store", machine=toy.CPU)
    complaint = "candidates in 6 images that nobody has described, such as 'coco:0': hand over `given`"
    with pytest.raises(ValueError, match=complaint): alone.predict(frame, task)
    assert len(predictor.predict(frame, task)) == len(frame)


def test_candidates_mean_something_to_those_alone_who_choose_among_them(folder, predictor, shared):
    alone = Predictor.from_pretrained(folder / "model", regions=folder / "store", machine=toy.CPU)
    frame = split("snli_ve", shared)
    with_more = alone.predict(frame.assign(candidates=[((0., 0., 1., 1.),)] * len(frame)), "snli_ve")
    assert with_more.prediction.tolist() == predictor.predict(frame, "snli_ve").prediction.tolist()


@pytest.mark.parametrize("task, column, value", [
    ("snli_ve", "label", np.nan), ("nlvr2", "label", np.nan), ("guesswhat", "label", np.nan), ("guesswhat", "candidates", ()),
    ("visual7w", "candidates", ((0., 0., np.nan, 1.),)), ("refcoco", "box", (0., 0., np.nan, 1.)), ("gqa", "answers", np.nan)])
def test_a_gap_in_a_frame_names_the_example(task, column, value, predictor, shared):
    frame = split(task, shared)
    frame = frame.assign(**{column: [value if row == 2 else right for row, right in enumerate(frame[column])]})
    with pytest.raises(ValueError, match=f"^{task}, example {frame.uid[2]}: {column} .*, expected "): predictor.predict(frame, task)


@pytest.mark.parametrize("extractor", [None, "random", ["random", {}], {}, {"settings": {}}, {"name": 3, "settings": {}},
                                       {"name": "random", "settings": ["boxes"]}, {"name": "random", "settings": 1}])
def test_a_record_of_a_detector_that_is_none_is_refused(extractor, shared, folder):
    model = model_of(shared)
    model.assets = replace(model.assets, regions=dict(extractor=extractor))
    with pytest.raises(CheckpointError, match="^the model: origin.json: `extractor` is not the name and the settings"):
        Predictor(model, folder / "store", machine=toy.CPU)


def test_a_detector_that_is_none_is_refused(folder, tmp_path):
    for name in ("absent", folder / "model"):
        with pytest.raises(ValueError, match=f"^{name}: no detector; give a folder that `save_detector` wrote"): open_detector(name)
    (tmp_path / "model.pth").touch()
    with pytest.raises(ValueError, match="model.pth: published weights need their configuration beside them, .* there: none"):
        open_detector(tmp_path / "model.pth")


def test_published_weights_are_asked_with_the_words_that_they_are_given(shared, folder, predictor, tmp_path):
    "Without a list of answers the tasks that need it are missing, and nothing else."
    bare = TwelveInOne.from_pretrained(folder / "model")
    write_wordpieces(toy.WORDS, tmp_path / "vocab.txt")
    AnswerVocabulary(["yes", "no"]).save(tmp_path / "vqa.json")
    bare.assets = published_assets(bare, tmp_path / "vocab.txt", vqa=tmp_path / "vqa.json")
    bare.save_pretrained(tmp_path / "model")
    asked = Predictor.from_pretrained(tmp_path / "model", regions=shared.detected, machine=toy.CPU)
    assert asked.answer("coco:1", "the ball") == predictor.answer("coco:1", "the ball")
    assert set(TASKS) - set(asked.assets.tasks) == {"gqa"}


def test_options_that_there_are_not_are_refused(folder):
    with pytest.raises(TypeError, match="no option 'region'"): Predictor.from_pretrained(folder / "model", region=folder / "store")


def test_regions_of_another_detector_are_refused(folder, tmp_path, shared):
    with RegionWriter(tmp_path / "other", "another") as writer: writer.append("coco:1", shared.detected["coco:1"])
    with pytest.raises(ValueError, match="other: its regions are those of 'another', the model learned with 'random'"):
        Predictor.from_pretrained(folder / "model", regions=tmp_path / "other", machine=toy.CPU)
    with pytest.raises(ValueError, match="the detector: its regions are those of 'another'"):
        Predictor.from_pretrained(folder / "model", detector=FakeDetector(None, "another"), machine=toy.CPU)


@pytest.mark.parametrize("lost, named", [
    (["vocab.txt"], "no vocab.txt,"), (["origin.json"], "no origin.json,"), (["answers_gqa.json"], "no answers_gqa.json,"),
    (["vocab.txt", "origin.json", "answers_gqa.json", "answers_vqa.json"],
     "no vocab.txt, answers_vqa.json, answers_gqa.json, origin.json,")])
def test_weights_alone_open_and_cannot_be_asked(lost, named, folder, predictor, tmp_path):
    "As a folder of an earlier version: one error, when somebody asks."
    shutil.copytree(folder / "model", tmp_path / "old")
    for name in lost: (tmp_path / "old" / name).unlink()
    assert TwelveInOne.from_pretrained(tmp_path / "old").vocabularies == {"vqa": 2, "gqa": 2}
    with pytest.raises(CheckpointError, match=f"old: there are weights, but {named} and without"):
        Predictor.from_pretrained(tmp_path / "old", machine=toy.CPU)


@pytest.mark.parametrize("value", [[], {}, 7, ["vqa"]])
def test_a_vocabulary_that_is_no_name_is_refused(value, folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "odd")
    origin = json.loads((tmp_path / "odd/origin.json").read_text())
    origin["tasks"]["vqa"]["vocabulary"] = value
    (tmp_path / "odd/origin.json").write_text(json.dumps(origin))
    with pytest.raises(CheckpointError, match="odd: origin.json: .* is no vocabulary of answers"):
        Predictor.from_pretrained(tmp_path / "odd", machine=toy.CPU)


@pytest.mark.parametrize("change, complaint", [
    (dict(text_length=5), "it learned 'vqa' with text_length 5; in this version it is 23"),
    (dict(head="caption"), "it learned 'vqa' with head 'caption'"), (dict(vocabulary="words"), "with vocabulary 'words'")])
def test_tasks_that_changed_since_are_refused(change, complaint, shared):
    model = model_of(shared)
    model.assets = replace(model.assets, tasks=model.assets.tasks | {"vqa": model.assets.tasks["vqa"] | change})
    with pytest.raises(CheckpointError, match=complaint): Predictor(model, machine=toy.CPU)


def test_a_task_that_the_library_does_not_have_is_refused(shared):
    model = model_of(shared)
    model.assets = model.assets.learned(dict(name="kitchen", head="answer"), {})
    with pytest.raises(CheckpointError, match="learned 'kitchen', a task that is not known here"): Predictor(model, machine=toy.CPU)


def test_what_was_not_learned_is_not_answered(shared):
    model = model_of(shared)
    model.assets = replace(model.assets, tasks={"refcoco": model.assets.tasks["refcoco"]})
    alone = Predictor(model, shared.detected, machine=toy.CPU)
    with pytest.raises(ValueError, match="has not learned any task with the head 'answer'; it learned refcoco .ground."):
        alone.answer("coco:1", "the ball")
    with pytest.raises(ValueError, match="has not learned the task 'vqa'; it learned refcoco"): alone.predict(pd.DataFrame(), "vqa")


def test_pretraining_is_learned_and_never_asked(shared):
    "Although it is the first that the model learned, and needs one picture and a text as others do."
    model = model_of(shared)
    before = {"pretraining": asdict(TRAINABLE["pretraining"])}
    model.assets = replace(model.assets, tasks=before | model.assets.tasks)
    asked = Predictor(model, shared.detected, machine=toy.CPU)
    assert asked.explain("coco:1", "the ball").pieces == asked.explain("coco:1", "the ball", task="vqa").pieces
    assert asked.task_for(None) == asked.task_for(None, images=1) == "vqa"
    assert asked.encode("coco:1", "the ball").pooled.tolist() == asked.encode("coco:1", "the ball", task="vqa").pooled.tolist()
    assert asked.ask(None, "coco:1", "the ball") == asked.answer("coco:1", "the ball")
    for ask in (asked.ask, lambda task, *shown: asked.explain(*shown, task), lambda task, *shown: asked.encode(*shown, task)):
        with pytest.raises(ValueError, match="'pretraining' is what a model learns from, and nothing .*; it learned vqa .answer."):
            ask("pretraining", "coco:1", "the ball")
    model.assets = replace(model.assets, tasks=before)
    with pytest.raises(ValueError, match="has not learned any task; it learned nothing that can be asked"):
        Predictor(model, shared.detected, machine=toy.CPU).explain("coco:1", "the ball")


def test_a_look_inside_is_for_the_first_task_of_one_picture(shared):
    model = model_of(shared)
    model.assets = replace(model.assets, tasks={name: model.assets.tasks[name] for name in ("nlvr2", "snli_ve")})
    asked = Predictor(model, shared.detected, machine=toy.CPU)
    assert asked.encode("coco:1", "a").pooled.tolist() == asked.encode("coco:1", "a", task="snli_ve").pooled.tolist()


NONSENSE = {
    "an unknown key": (lambda p: p.answer("coco:99", "the ball"), "image 'coco:99': no regions are known of it"),
    "a number": (lambda p: p.answer(3, "the ball"), "image 'int': no regions are known of it"),
    "no text": (lambda p: p.answer("coco:1", None), "text None: a question"),
    "a number for a text": (lambda p: p.answer(["coco:1"], [3]), "text 3: a question"),
    "lists of different lengths": (lambda p: p.answer(["coco:1"], ["a", "b"]), "1 pictures, 2 texts"),
    "no alternatives": (lambda p: p.answer("coco:1", "the ball", top_k=0), "top_k 0: how many"),
    "one image of two": (lambda p: p.verify("coco:1", "the ball"), "a statement about two pictures takes both"),
    "two images of one": (lambda p: p.ask("vqa", ("coco:1", "coco:2"), "the ball"), "vqa: a text is about 1 pictures, and there are 2"),
    "one image for a task of two": (lambda p: p.ask("nlvr2", "coco:1", "the ball"), "nlvr2: a text is about 2 pictures, and there are 1"),
    "retrieval of one": (lambda p: p.ask("coco_retrieval", "coco:1", "the ball"), "coco_retrieval: it compares .* use `rank`"),
    "an empty text": (lambda p: p.answer("coco:1", " \n"), r"text ' .n': nothing is asked"),
    "an empty caption": (lambda p: p.rank(["coco:1"], ["the ball", ""]), "text '': nothing is asked"),
    "answers of no list": (lambda p: p.answer("coco:1", "the ball", vocabulary="okvqa"), "and the answers 'okvqa'; it learned vqa"),
    "a word that is not there": (lambda p: p.explain("coco:1", "the ball").regions_of("box"), "no word 'box' in the text; .* the, ball"),
    "another task's head": (lambda p: p.answer("coco:1", "the ball", task="refcoco"), "the task 'refcoco' with the head 'answer'"),
    "a box of nobody's": (lambda p: p.ground("coco:1", "the ball", boxes=[[0, 0, 100, 3]]), "a box that is none of the image's"),
    "no boxes": (lambda p: p.ground("coco:1", "the ball", boxes=[]), "no boxes to choose among"),
    "boxes for some": (lambda p: p.ground(["coco:1"] * 2, "a", boxes=[[[0, 0, 1, 1]]]), "boxes for 1 of 2 questions"),
    "no images": (lambda p: p.rank([], ["the ball"]), r"pictures \[\]: give a list with something in it"),
    "features of another width": (lambda p: p.answer(Regions(np.ones((2, 3)), np.ones((2, 4)), 9, 9), "the ball"),
                                  "the model reads 8 numbers per region")}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_is_one_clear_error(case, predictor):
    ask, complaint = NONSENSE[case]
    with pytest.raises(ValueError, match=complaint): ask(predictor)


SHADES = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))  # 40 x 50
PICTURES = {  # name of a file -> how it is made, and the size that the detector sees; each shows the shades
    "rgba.png": (lambda: Image.fromarray(SHADES).convert("RGBA"), (40, 50)),
    "palette.png": (lambda: Image.fromarray(SHADES).convert("P"), (40, 50)),
    "cmyk.tif": (lambda: Image.fromarray(SHADES).convert("RGB").convert("CMYK"), (40, 50)),
    "grey16.png": (lambda: Image.fromarray(SHADES.astype(np.uint16) * 257), (40, 50)),
    "point.png": (lambda: Image.fromarray(SHADES[:1, :1]), (1, 1)),
    "wide.png": (lambda: Image.fromarray(np.tile(SHADES[:10], (1, 400))), (10, 20_000))}


@pytest.mark.parametrize("name", PICTURES)
def test_a_file_of_any_kind_is_seen_as_it_is(name, looking, monkeypatch, tmp_path):
    make, size = PICTURES[name]
    make().save(tmp_path / name)
    seen = []
    detect = looking.looking.detector.detect
    monkeypatch.setattr(looking.looking.detector, "detect", lambda picture: seen.append(picture) or detect(picture))
    assert looking.answer(tmp_path / name, "the ball").answer in ("yes", "no")
    (picture,) = seen
    assert picture.shape == (*size, 3) and picture.dtype == np.uint8
    expected = np.tile(SHADES, (1, -(-size[1] // 50)))[:size[0], :size[1], None]
    assert np.abs(picture.astype(int) - expected).max() <= 1


def bomb() -> bytes:
    "A PNG that says it is 60,000 pixels wide and high."
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def cut() -> bytes:
    "The first half of a JPEG."
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(file, "jpeg")
    return file.getvalue()[:len(file.getvalue()) // 2]


@pytest.mark.parametrize("name, content", [("bomb.png", bomb()), ("cut.jpg", cut()), ("text.png", b"no picture"), ("empty.png", b"")])
def test_a_file_that_is_no_picture_is_one_line(name, content, looking, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OSError, match=f"{name}: cannot be read as a picture") as error: looking.answer(tmp_path / name, "the ball")
    assert "\n" not in str(error.value) and calls(looking) == []


@pytest.mark.parametrize("picture", ["", "https://example.org/one.png"])
def test_a_folder_or_an_address_is_no_picture(picture, looking, tmp_path):
    "And nothing is asked of a network."
    with pytest.raises(OSError, match="cannot be read as a picture"): looking.answer(picture or tmp_path, "the ball")


def test_a_picture_that_is_none(looking, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(OSError, match="text.png: cannot be read as a picture"): looking.answer(str(tmp_path / "text.png"), "a")
    with pytest.raises(ValueError, match=r"a picture of type ndarray, shape \(3, 3\), float64"): looking.answer(np.zeros((3, 3)), "a")


# ---- anywhere

SIX_LINES = """from vl12in1 import Predictor

predictor = Predictor.from_pretrained("model", detector="detector")
answer = predictor.answer("picture.png", "what colour is the ball", top_k=2)
for row in answer.top_k: print(row["answer"], row["score"])
"""


def detector_and_model(shared):
    "A small detector, untrained, and a model that claims to have learned from it."
    detector = Detector.new(DetectorConfig(), ["background", "ball"], ["red"])
    record, model = detector.record("given"), model_of(shared, DetectorConfig().feature_dim)  # boxes make no other detector of it
    model.assets = replace(model.assets, regions=dict(extractor=dict(name=record["extractor"], settings=record["settings"])))
    return detector, model


def test_six_lines_in_an_empty_folder_without_a_checkout(shared, tmp_path):
    "Only the folders of the model and the detector, a picture and the installed modules: no notebooks, no dvc.yaml, no settings."
    shutil.copytree(ROOT / "vl12in1", tmp_path / "site/vl12in1", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "empty").mkdir()
    detector, model = detector_and_model(shared)
    save_detector(detector, tmp_path / "empty/detector")
    model.save_pretrained(tmp_path / "empty/model")
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "empty/picture.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= dict(PYTHONPATH=str(tmp_path / "site"), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-c", SIX_LINES], cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = [line.split()[0] for line in done.stdout.splitlines()]
    here = Predictor(model, detector=detector, machine=toy.CPU).answer(picture, "what colour is the ball", top_k=2)
    assert words == [row["answer"] for row in here.top_k]
    assert set(words) == {"yes", "no"}


@pytest.mark.parametrize("page", ["README.md", "nbs/66_predictor.ipynb"])
def test_the_six_lines_are_the_ones_that_readers_see(page):
    assert len([line for line in SIX_LINES.splitlines() if line]) <= 6
    shown = (ROOT / page).read_text().replace('\\"', '"')
    for line in SIX_LINES.splitlines()[3:]: assert line.strip().replace("top_k=2", "top_k=3") in shown


# ---- and it is what training leaves

def test_what_training_leaves_can_be_asked(tmp_path):
    trainer = toy.trainer(tmp_path, iterations=2)
    trainer.run()
    trainer.model.save_pretrained(tmp_path / "model")
    predictor = Predictor.from_pretrained(tmp_path / "model", regions=tmp_path / "store", machine=toy.CPU)
    assert list(predictor.assets.tasks) == list(predictor.assets.data) == ["vqa", "refcoco", "snli_ve"]
    assert {row["answer"] for row in predictor.answer("coco:1", "the ball").top_k} == {"yes", "no"}
    assert predictor.assets.data["vqa"]["examples"] == 32 and len(predictor.assets.data["vqa"]["sha256"]) == 64
    assert predictor.assets.regions["extractor"]["name"] == "random"


def test_other_examples_have_another_digest(tmp_path):
    shared = toy.sources(tmp_path)
    frame = toy.frames(shared)["vqa"]["train"]
    digests = [assets_of(Examples("vqa", each, shared), Assets()).data["vqa"]["sha256"]
               for each in (frame, frame.copy(), frame[1:], frame.assign(text="the ball"))]
    assert digests[0] == digests[1] and len(set(digests)) == 3


# ---- what cannot be asked

@pytest.mark.parametrize("ask, complaint", [
    (lambda p: p.answer(Regions(np.zeros((0, 8), "float16"), np.zeros((0, 4), "float32"), 100, 100), "is the ball red"), "single region"),
    (lambda p: p.answer(Regions(np.zeros((2, 8), "float16"), np.zeros((1, 4), "float32"), 100, 100), "is the ball red"), "one of each"),
    (lambda p: p.ground(toy.KEYS[0], "the ball", boxes=[0, 0, 10, 10]), r"boxes of shape \(4,\)"),
    (lambda p: p.ground(toy.KEYS[0], "the ball", boxes=[[float("nan")] * 4]), "boxes of shape"),
    (lambda p: p.rank(toy.KEYS, ["the ball"], top_k="3"), "top_k '3'"), (lambda p: p.rank(toy.KEYS, ["the ball"], top_k=-1), "top_k -1"),
    (lambda p: p.rank(toy.KEYS, []), r"captions \[\]"), (lambda p: p.rank(toy.KEYS[0], ["the ball"]), "pictures 'coco:0'"),
    (lambda p: p.rank([], ["the ball"]), r"pictures \[\]"), (lambda p: p.rank(toy.KEYS[:2], "the ball"), "captions 'the ball'"),
    (lambda p: p.predict(pd.DataFrame(dict(text=["is the ball red"])), "vqa"), "without images"),
    (lambda p: p.predict(pd.DataFrame(dict(images=[("coco:900",)], text=["is the ball red"])), "vqa"), "such as 'coco:900'")])
def test_what_cannot_be_asked_is_said(predictor, ask, complaint):
    with pytest.raises(ValueError, match=complaint): ask(predictor)
