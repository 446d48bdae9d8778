"""Official metrics: parity with recorded figures, and with plain readings of the definitions on whatever is drawn."""
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask
from sklearn.metrics import average_precision_score

from fuzz import tries
from vl12in1.corpora import verification
from vl12in1.tasks import ASKABLE, TASKS
from vl12in1.evaluation import metrics
from vl12in1.answers import soft_scores, vqa_accuracy
from vl12in1.corpora.answering import Choices
from vl12in1.evaluation.metrics import (
    METRICS, average_precision, caption_metrics, choice_metrics, entailment_metrics, gqa_metrics, grounding_score, nlvr2_metrics, official,
    oracle_recall, refer_metrics, retrieval_folds, retrieval_metrics, retrieval_ranks, vqa_disagreement, vqa_metrics)

GOLDEN = json.loads((Path(__file__).parent / "parity" / "vqa_golden.json").read_text())["scoring"]
CASES = pd.DataFrame(GOLDEN["cases"]).assign(uid=lambda cases: cases.index.astype(str))


few = tries(40)


def shuffled(rows, random):
    "The same rows in another order."
    return random.sample(rows, len(rows))


def scores_of(function, rows, columns, **options):
    "A metric of rows (prediction, *columns)."
    frame = pd.DataFrame([row[1:] for row in rows], columns=columns)
    return function(frame, [row[0] for row in rows], **options)


# --- VQA

@pytest.mark.parametrize("behaviour", ["2017", "2021"])
def test_vqa_reports_what_the_official_program_reports(behaviour):
    ours, theirs = vqa_metrics(CASES, CASES.prediction, behaviour), GOLDEN[f"overall_{behaviour}"]
    named = ({"accuracy": theirs["overall"]} | {f"answer type: {kind}": x for kind, x in theirs["perAnswerType"].items()}
             | {f"question type: {kind}": x for kind, x in theirs["perQuestionType"].items()})
    assert ours.pop("examples") == 40
    assert {name: 100 * score for name, score in ours.items()} == pytest.approx(named)


def test_vqa_without_types_has_no_scores_per_type():
    assert set(vqa_metrics(CASES[["uid", "answers"]], CASES.prediction)) == {"accuracy", "examples"}


words = st.sampled_from("two 2 a dog|Dog.|t-shirt|t shirt|none|yes!".split("|"))
questions = st.lists(st.tuples(words, st.lists(words, min_size=10, max_size=10), st.sampled_from("xyz"),
                               st.sampled_from(["what", "is"])), min_size=1, max_size=6)


@few
@given(questions, st.randoms(use_true_random=False), st.sampled_from(["2017", "2021"]))
def test_vqa_is_a_mean_over_questions_in_any_order(rows, random, behaviour):
    rows = [(row[0], str(i), *row[1:]) for i, row in enumerate(rows)]
    columns = ["uid", "answers", "answer_type", "question_type"]
    result = scores_of(vqa_metrics, rows, columns, behaviour=behaviour)
    assert scores_of(vqa_metrics, shuffled(rows, random), columns, behaviour=behaviour) == pytest.approx(result)
    credit = [vqa_accuracy(said, answers, behaviour) for said, _, answers, *_ in rows]
    assert result["accuracy"] == pytest.approx(sum(credit) / len(credit))
    for place, kind in ((3, "answer type"), (4, "question type")):
        for value in {row[place] for row in rows}:
            of_value = [x for x, row in zip(credit, rows) if row[place] == value]
            assert result[f"{kind}: {value}"] == pytest.approx(sum(of_value) / len(of_value))


def test_disagreement_counts_questions():
    frame = pd.DataFrame(dict(uid=list("abcd"), answers=[["t-shirt"] * 10, ["two"] * 9 + ["2"], ["2"] * 10, ["x", "y"] * 5]))
    said = ["t shirt", "2", "2", "x"]
    credit = [(vqa_accuracy(p, a), vqa_accuracy(p, a, "2017"), soft_scores(a)[p]) for p, a in zip(said, frame.answers)]
    assert credit == [(0, 0, 1), (1, pytest.approx(.3), 1), (1, 1, 1), (1, 1, 1)]
    assert vqa_disagreement(frame, said) == {"2021 / 2017": .25, "2021 / target": .25, "2017 / target": .5}


# --- GQA: the definitions, read word by word

STRUCTURAL = ["query", "verify", "logical", "choose", "compare"]
answers = st.sampled_from(["red", "green", "blue", "yes", "no", "t-shirt"])
graphs = st.integers(1, 7).flatmap(lambda n: st.lists(
    st.tuples(answers, answers, st.sampled_from(STRUCTURAL), st.sampled_from(["", "colour", "cloth"]),
              st.lists(st.integers(0, n), max_size=4).map(lambda ids: tuple(map(str, ids)))), min_size=n, max_size=n))
GQA = ["uid", "answers", "structural", "group", "entailed"]


def asked(drawn):
    "Rows (prediction, uid, answers, structural, group, entailed); id n, one past the last, is not in the frame."
    return [(said, str(i), (gold,), *rest) for i, (said, gold, *rest) in enumerate(drawn)]


def plain_gqa(rows):
    "The metrics without choices and attention, by definition."
    right = {uid: said == gold for said, uid, (gold,), *_ in rows}
    by_kind = {"accuracy": [right[row[1]] for row in rows], "binary": [], "open": []}
    for _, uid, _, structural, _, _ in rows:
        by_kind["open" if structural == "query" else "binary"].append(right[uid])
        by_kind.setdefault(f"structural type: {structural}", []).append(right[uid])
    result = {kind: sum(scores) / len(scores) for kind, scores in by_kind.items() if scores}
    consistency, listed, known = [], 0, 0
    for _, uid, _, _, _, entailed in rows:
        others = [other for other in entailed if other != uid]
        present = [right[other] for other in others if other in right]
        listed, known = listed + len(others), known + len(present)
        if right[uid] and present: consistency.append(sum(present) / len(present))
    if known:
        result["consistency"] = sum(consistency) / len(consistency) if consistency else 0
        result["entailed answered"] = known / listed
    weighted, size = 0, 0
    for group in {row[4] for row in rows if row[4]}:
        gold, said = Counter(row[2][0] for row in rows if row[4] == group), Counter(row[0] for row in rows if row[4] == group)
        weighted += sum(gold.values()) * sum((said[answer] - gold[answer]) ** 2 / gold[answer] for answer in gold)
        size += sum(gold.values())
    return result | ({"distribution": weighted / size / 100} if size else {})


@few
@given(graphs, st.randoms(use_true_random=False))
def test_gqa_is_what_the_definitions_say(drawn, random):
    rows = asked(drawn)
    result = scores_of(gqa_metrics, rows, GQA)
    assert result.pop("examples") == len(rows)
    assert result == pytest.approx(plain_gqa(rows))
    again = scores_of(gqa_metrics, shuffled(rows, random), GQA)
    assert again.pop("examples") == len(rows) and again == pytest.approx(result)


@few
@given(graphs)
def test_perfect_answers_to_gqa(drawn):
    rows = [(gold[0], uid, gold, *rest) for _, uid, gold, *rest in asked(drawn)]
    choices = {row[1]: Choices([row[0]], [row[0], "x"]) for row in rows}
    result = scores_of(gqa_metrics, rows, GQA, choices=choices)
    result.pop("examples"), result.pop("entailed answered", None)
    assert result.pop("distribution", 0) == 0
    assert set(result.values()) == {1} and {"validity", "plausibility"} < set(result)


def test_gqa_reads_only_what_the_frame_has():
    frame = pd.DataFrame([row[1:] for row in asked([("red", "red", "query", "", ())])], columns=GQA)
    assert set(gqa_metrics(frame, ["red"])) == {"accuracy", "examples", "open", "structural type: query"}
    assert set(gqa_metrics(frame[["uid", "answers"]], ["red"])) == {"accuracy", "examples"}
    assert gqa_metrics(frame, ["red"], grounding=[.25])["grounding"] == .25


def test_a_contradiction_costs_consistency_and_a_wrong_question_none():
    frame = pd.DataFrame(dict(uid=["q", "yes?", "no?"], answers=[("red",), ("yes",), ("no",)],
                              entailed=[("q", "yes?", "no?"), ("no?",), ("q",)]))
    assert gqa_metrics(frame, ["red", "yes", "yes"])["consistency"] == (.5 + 0) / 2
    assert gqa_metrics(frame, ["blue", "yes", "no"])["consistency"] == (1 + 0) / 2
    assert gqa_metrics(frame, ["blue", "no", "yes"])["consistency"] == 0


def test_unbalanced_questions_serve_consistency_only():
    frame = pd.DataFrame(dict(uid=["q", "extra"], answers=[("red",), ("yes",)], structural=["query", "verify"],
                              group=["colour", "colour"], entailed=[("extra",), ("q",)], balanced=[True, False]))
    result = gqa_metrics(frame, ["red", "no"], {"q": Choices(["red"], [])}, [.5, .25])
    assert result == {"accuracy": 1, "examples": 1, "open": 1, "structural type: query": 1, "consistency": 0, "entailed answered": 1,
                      "distribution": 0, "validity": 1, "plausibility": 0, "grounding": .5}


def test_the_normal_form_decides_throughout():
    frame = pd.DataFrame(dict(uid=["1"], answers=[("t-shirt",)], group=["cloth"]))
    choices = {"1": Choices(["t-shirt"], ["t-shirt"])}
    for said in ("t-shirt", "t shirt"):
        result = gqa_metrics(frame, [said], choices)
        assert (result["accuracy"], result["distribution"], result["validity"], result["plausibility"]) == (1, 0, 1, 1)


def test_questions_about_common_properties_have_choices_of_their_own():
    frame = pd.DataFrame(dict(uid=["1", "2"], answers=[("color",), ("color",)], detailed=["twoCommon", "chooseAttr"]))
    choices = {uid: Choices(["red"], ["red"]) for uid in "12"}
    assert gqa_metrics(frame, ["shape", "red"], choices)["validity"] == 1
    assert gqa_metrics(frame, ["red", "shape"], choices)["validity"] == 0


def test_choices_of_another_split_are_refused():
    with pytest.raises(ValueError, match="question 1: not in the choices"):
        gqa_metrics(pd.DataFrame(dict(uid=["1"], answers=[("red",)])), ["red"], choices={})


corner = st.integers(0, 9)
box = st.tuples(corner, corner, st.integers(1, 6), st.integers(1, 6)).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@few
@given(st.lists(st.tuples(box, st.integers(0, 8)), min_size=1, max_size=4), st.lists(box, max_size=4))
def test_grounding_counts_attention_by_area(cells, boxes):
    canvas, expected = np.arange(15) + .5, 0.
    for (x1, y1, x2, y2), attention in cells:
        for u1, v1, u2, v2 in boxes:
            columns, rows = ((canvas > max(x1, u1)) & (canvas < min(x2, u2))), ((canvas > max(y1, v1)) & (canvas < min(y2, v2)))
            expected += attention * columns.sum() * rows.sum() / ((x2 - x1) * (y2 - y1))
    assert grounding_score([a for _, a in cells], [b for b, _ in cells], boxes) == pytest.approx(expected)


# --- retrieval

values = st.sampled_from([0., .5, 1., math.nan, math.inf, -math.inf])


@st.composite
def matrices(draw, fold=1):
    images, captions = fold * draw(st.integers(1, 4)), draw(st.integers(1, 7))
    rows = st.lists(st.lists(values, min_size=images, max_size=images), min_size=captions, max_size=captions)
    own = draw(st.lists(st.integers(0, images - 1), min_size=captions, max_size=captions))
    if fold > 1: own = list(range(images))
    return np.array(draw(rows if fold == 1 else st.lists(st.lists(values, min_size=images, max_size=images),
                                                         min_size=images, max_size=images))), np.array(own)


def worst_place(scores, right):
    "Place, from 1, of the best of the `right` positions if ties and NaN go against it; right ones never compete."
    best = max((scores[i] for i in right if not math.isnan(scores[i])), default=math.nan)
    return 1 + sum(1 for i, score in enumerate(scores) if i not in right and not score < best)


def plain_retrieval(scores, own):
    places = {"image": [worst_place(row, [i]) for row, i in zip(scores, own)],
              "text": [worst_place(scores[:, i], np.flatnonzero(own == i)) for i in sorted(set(own.tolist()))]}
    result = {"examples": len(own), "images": scores.shape[1]}
    for name, ranks in places.items():
        result |= {f"{name} retrieval R@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
        ranks = sorted(ranks)
        middle = ranks[(len(ranks) - 1) // 2: len(ranks) // 2 + 1]
        result |= {f"{name} retrieval median rank": sum(middle) // len(middle), f"{name} retrieval mean rank": sum(ranks) / len(ranks)}
    return result


@few
@given(matrices())
def test_retrieval_is_what_the_definitions_say(case):
    assert retrieval_metrics(*case) == pytest.approx(plain_retrieval(*case))


@few
@given(matrices(), st.randoms(use_true_random=False))
def test_the_order_of_captions_and_images_does_not_matter(case, random):
    scores, own = case
    rows, columns = shuffled(range(len(own)), random), shuffled(range(scores.shape[1]), random)
    moved = retrieval_metrics(scores[rows][:, columns], np.argsort(columns)[own[rows]])
    assert moved == pytest.approx(retrieval_metrics(scores, own))


def test_a_perfect_and_a_constant_model_retrieve():
    own = np.repeat(np.arange(20), 5)
    perfect, constant = retrieval_metrics(np.eye(20)[own], own), retrieval_metrics(np.zeros((100, 20)), own)
    assert {score for name, score in perfect.items() if " retrieval " in name} == {1}
    assert [constant[f"{way} retrieval mean rank"] for way in ("image", "text")] == [20, 96]
    assert {score for name, score in constant.items() if "R@" in name} == {0}


def test_scores_that_are_no_numbers_do_not_win():
    nothing = retrieval_metrics(np.full((6, 3), np.nan), [0, 0, 1, 1, 2, 2])
    assert (nothing["image retrieval mean rank"], nothing["text retrieval mean rank"]) == (3, 5)


def test_images_without_captions_distract_but_are_not_asked_for():
    result = retrieval_metrics([[.5, .9], [.5, .1]], [0, 0])
    assert (result["image retrieval mean rank"], result["text retrieval mean rank"], result["images"]) == (1.5, 1, 2)


@pytest.mark.parametrize("shape, own", [((2, 2), [0]), ((2, 2), [0, 2]), ((2, 2), [0, -1]), ((0, 2), [])])
def test_captions_without_an_image_are_refused(shape, own):
    with pytest.raises(ValueError, match="the column of its image"): retrieval_metrics(np.zeros(shape), np.array(own, dtype=int))


@few
@given(matrices(fold=3))
def test_folds_are_separate_pools(case):
    scores, own = case
    parts = [plain_retrieval(scores[i:i + 3, i:i + 3], own[i:i + 3] - i) for i in range(0, len(own), 3)]
    assert retrieval_folds(scores, own, size=3) == pytest.approx(pd.DataFrame(parts).mean().to_dict())


def test_captions_of_a_fold_need_not_stand_together():
    scores, own = np.random.default_rng(0).normal(size=(60, 12)), np.tile(np.arange(12), 5)
    order = np.argsort(own, kind="stable")
    assert retrieval_folds(scores, own, 4) == pytest.approx(retrieval_folds(scores[order], own[order], 4))
    assert retrieval_folds(scores, own, 12) == pytest.approx(retrieval_metrics(scores, own))
    with pytest.raises(ValueError, match="12 images cannot be divided"): retrieval_folds(scores, own, 5)


def test_columns_are_images_in_order_of_first_appearance():
    frame = pd.DataFrame(dict(uid=list("abc"), images=[("coco:9",), ("coco:4",), ("coco:9",)]))
    scores = np.array([[1., 0], [0, 1], [1, 0]])
    assert caption_metrics(frame, scores)["image retrieval R@1"] == 1
    assert caption_metrics(frame, scores[:, ::-1])["image retrieval R@1"] == 0


# --- boxes and choices

expressions = st.lists(st.tuples(box, box, st.sampled_from(["testA", "testB"])), min_size=1, max_size=6)


def coco_iou(a, b):
    "What pycocotools says of two corner boxes."
    as_xywh = [np.array([[x1, y1, x2 - x1, y2 - y1]], dtype=float) for x1, y1, x2, y2 in (a, b)]
    return mask.iou(*as_xywh, [0])[0, 0]


@few
@given(expressions, st.randoms(use_true_random=False))
def test_referring_agrees_with_coco(rows, random):
    rows = [(said, str(i), gold, part) for i, (said, gold, part) in enumerate(rows)]
    columns = ["uid", "box", "part"]
    result = scores_of(refer_metrics, rows, columns)
    assert scores_of(refer_metrics, shuffled(rows, random), columns) == pytest.approx(result)
    right = [coco_iou(said, gold) > .5 for said, _, gold, _ in rows]
    assert result["accuracy"] == pytest.approx(np.mean(right))
    for part in {row[3] for row in rows}:
        assert result[f"part: {part}"] == pytest.approx(np.mean([x for x, row in zip(right, rows) if row[3] == part]))


@few
@given(st.lists(st.tuples(box, st.lists(box, max_size=4)), min_size=1, max_size=5), st.sampled_from([.3, .5, .7]))
def test_the_oracle_chooses_best(rows, at):
    frame = pd.DataFrame(dict(uid=list(map(str, range(len(rows)))), box=[gold for gold, _ in rows]))
    found = [any(coco_iou(region, gold) > at for region in regions) for gold, regions in rows]
    assert oracle_recall(frame, [regions for _, regions in rows], at)["oracle recall"] == pytest.approx(np.mean(found))


def test_an_overlap_of_exactly_one_half_is_not_enough():
    frame = pd.DataFrame(dict(uid=["1"], box=[(0, 0, 1, 1)]))
    assert refer_metrics(frame, [(0, 0, 1, .5)])["accuracy"] == oracle_recall(frame, [[(0, 0, 1, .5)]])["oracle recall"] == 0
    assert refer_metrics(frame, [(0, 0, 1, .51)])["accuracy"] == oracle_recall(frame, [[(0, 0, 1, .5)]], .49)["oracle recall"] == 1


def test_one_box_is_predicted_per_expression():
    frame = pd.DataFrame(dict(uid=["1"], box=[(0, 0, 1, 1)]))
    assert refer_metrics(frame, [(0, 0, 1, 1)]) == {"accuracy": 1, "examples": 1}
    assert refer_metrics(frame, [(math.nan,) * 4])["accuracy"] == refer_metrics(frame, [(1, 1, 0, 0)])["accuracy"] == 0
    with pytest.raises(ValueError, match="up to 640, where the frame's end at 1"): refer_metrics(frame, [(0, 0, 640, 480)])
    two = pd.DataFrame(dict(uid=["1", "2"], box=[(0, 0, 1, 1)] * 2))
    with pytest.raises(ValueError, match="up to 640"): refer_metrics(two, [(math.nan,) * 4, (0, 0, 640, 480)])
    assert refer_metrics(frame.assign(box=[(0, 0, .04, .04)]), [(0, 0, 1, 1)])["accuracy"] == 0  # a small thing in a large picture
    with pytest.raises(ValueError, match="up to 640, where the frame's end at 1"): oracle_recall(frame, [[(0, 0, 1, 1), (0, 0, 640, 480)]])
    with pytest.raises(ValueError, match="reshape"): refer_metrics(frame, [[(0, 0, 1, 1), (0, 0, .1, .1)]])


@pytest.mark.parametrize("said", [
    {"a": 0, "b": 1}, pd.DataFrame(dict(uid=["a", "b"], prediction=[0, 1])), ["0", "1"], pd.Series(["0", "1"]), np.array([[0], [1]]),
    [[0, 1], [1, 0]]], ids=["by id", "table", "texts", "column of texts", "column", "logits"])
@pytest.mark.parametrize("metric", [choice_metrics, nlvr2_metrics, entailment_metrics])
def test_what_is_no_index_for_each_example_is_not_scored(metric, said):
    frame = pd.DataFrame(dict(uid=["a", "b"], label=[0, 1]))
    assert metric(frame, pd.Series([0, 1], dtype=object))["accuracy"] == metric(frame, [0., 1.])["accuracy"] == 1
    with pytest.raises(ValueError, match="in the order of the frame|index of a label for each example"): metric(frame, said)


@pytest.mark.parametrize("said", [{"a": "red", "b": "red"}, pd.DataFrame(dict(uid=["a", "b"], prediction=["red", "red"]))])
@pytest.mark.parametrize("metric", [vqa_metrics, gqa_metrics])
def test_answers_by_name_are_not_scored(metric, said):
    frame = pd.DataFrame(dict(uid=["a", "b"], answers=[("red",) * 10] * 2))
    assert metric(frame, ["red", "red"])["accuracy"] == 1
    with pytest.raises(ValueError, match="in the order of the frame"): metric(frame, said)


labels = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=8)


@few
@given(labels)
def test_choices_and_classes_are_counted(rows):
    said, gold = map(list, zip(*rows))
    frame = pd.DataFrame(dict(uid=list(map(str, range(len(rows)))), label=gold))
    right = sum(a == b for a, b in rows) / len(rows)
    chosen, entailed = choice_metrics(frame, said), entailment_metrics(frame, np.array(said))
    assert chosen["accuracy"] == entailed["accuracy"] == pytest.approx(right)
    assert chosen["error"] == pytest.approx(1 - right)
    for relation, label in verification._entailment.items():
        of_class = [a == b for a, b in rows if b == label]
        assert (f"class: {relation}" in entailed) == bool(of_class)
        if of_class: assert entailed[f"class: {relation}"] == pytest.approx(np.mean(of_class))


# --- NLVR2

statements = st.dictionaries(st.tuples(st.integers(0, 11), st.integers(0, 2), st.integers(0, 1)),
                             st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=12)


@few
@given(statements, st.randoms(use_true_random=False))
def test_nlvr2_consistency_takes_all_pairs_of_a_sentence(drawn, random):
    rows = [(said, f"dev-{group}-{pair}-{sentence}", gold) for (group, pair, sentence), (said, gold) in drawn.items()]
    result = scores_of(nlvr2_metrics, rows, ["uid", "label"])
    assert scores_of(nlvr2_metrics, shuffled(rows, random), ["uid", "label"]) == pytest.approx(result)
    sentences = {(group, sentence) for group, _, sentence in drawn}
    judged = [all(said == gold for (group, _, sentence), (said, gold) in drawn.items() if (group, sentence) == key)
              for key in sentences]
    assert (result["sentences"], result["consistency"]) == (len(sentences), pytest.approx(np.mean(judged)))
    assert result["accuracy"] == pytest.approx(np.mean([said == gold for said, gold in drawn.values()]))


def test_other_pairs_have_no_consistency():
    assert set(nlvr2_metrics(pd.DataFrame(dict(uid=["7"], label=[1])), [1])) == {"accuracy", "examples"}


# --- any task

def perfect(head, metric):
    "Two examples of a kind of task and predictions without a mistake."
    frame = pd.DataFrame(dict(uid=["dev-1-0-0", "dev-1-1-0"], images=[("coco:1",), ("coco:2",)], label=[1, 0],
                              box=[(0, 0, 1, .5), (.5, 0, 1, 1)], answers=[("red",) * 10, ("2",) * 10],
                              answer_type=["other", "number"], answerable=[1, 1],
                              captions=[("a red ball lies here",), ("two dogs run over there",)]))
    said = {"answer": frame.answers.str[0], "match": np.eye(2), "IoU > 0.5": list(frame.box), "caption": list(frame.captions.str[0])}
    return frame, said.get(head, said.get(metric, frame.label))


@pytest.mark.parametrize("name", METRICS)
def test_every_task_has_its_metric_and_the_cell_comes_first(name):
    task = ASKABLE[name]
    frame, said = perfect(task.head, task.metric)
    result = official(name, frame, said)
    first = next(iter(result))
    assert result[first] == pytest.approx(1) and result["examples"] == 2
    assert first == {"match": "image retrieval R@1", "caption": "CIDEr-D / 10"}.get(task.head, "accuracy")
    with pytest.raises(ValueError, match="no examples|0 examples"): official(name, frame[:0], said[:0])
    with pytest.raises(ValueError, match="1 predictions for 2 examples"): official(name, frame, said[:1])


def test_average_precision_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 40):
        for _ in range(20):
            wanted, scores = rng.integers(0, 2, size), rng.integers(0, 4, size) / 4
            if wanted.any(): assert average_precision(wanted, scores) == pytest.approx(average_precision_score(wanted, scores))
    assert average_precision([0, 0], [.3, .2]) == 0


@pytest.mark.parametrize("answerable, f1", [([1, 0, 1, 0], 1), ([.5, .5, .5, .5], 0), ([.4, .4, .6, .6], .5), (None, 2 / 3)])
def test_unanswerable_questions_are_what_vizwiz_looks_for(answerable, f1):
    frame = pd.DataFrame(dict(uid=list("abcd"), answers=[
        ("red",) * 10, ("unanswerable",) * 6 + ("red",) * 4, ("the cup",) * 10, ("cup",) * 10],
                              answer_type=["other", "unanswerable", "other", "other"], answerable=[1, 0, 1, 0]))
    said = ["Red.", "unanswerable", "cup", "The cup!"]
    result = official("vizwiz", frame, said, answerable=answerable)
    assert result["accuracy"] == .75 and result["answer type: other"] == pytest.approx(2 / 3) and result["answer type: unanswerable"] == 1
    assert result["unanswerable: F1"] == pytest.approx(f1)
    doubt = 1 - np.array([1, 0, 1, 1] if answerable is None else answerable)
    assert result["unanswerable: average precision"] == pytest.approx(average_precision_score(1 - frame.answerable, doubt))


def test_the_table_has_a_row_for_each_task_and_no_other():
    assert set(TASKS) <= set(METRICS) <= set(ASKABLE)


@pytest.mark.parametrize("name", [name for name in METRICS if ASKABLE[name].head == "answer"])
def test_unanswered_questions_are_named(name):
    frame = pd.DataFrame(dict(uid=["5", "6"], answers=[("red",), ()]))
    with pytest.raises(ValueError, match="first is 6: an unlabelled"): official(name, frame, ["red", "red"])


def test_options_reach_the_metric():
    assert official("vqa", CASES, CASES.prediction, behaviour="2017") == vqa_metrics(CASES, CASES.prediction, "2017")
    with pytest.raises(ValueError, match="2017 and 2021"): official("vqa", CASES, CASES.prediction, behaviour="2020")


def test_large_matrices_are_not_copied(monkeypatch):
    sizes, blocks = [], metrics.retrieval_ranks.__globals__["_blocks"]
    monkeypatch.setitem(metrics.retrieval_ranks.__globals__, "_blocks",
                        lambda scores: (sizes.append(rows.stop - rows.start) or rows for rows in blocks(scores)))
    scores, own = np.random.default_rng(0).normal(size=(2500, 50)), np.arange(2500) % 50
    ranks = retrieval_metrics(scores, own)
    assert set(sizes) == {1000} and len(sizes) == 6
    assert ranks["image retrieval mean rank"] == pytest.approx((scores >= scores[np.arange(2500), own][:, None]).sum(1).mean())
    assert retrieval_ranks(scores, own).shape == (2500,)


def test_what_is_no_prediction_is_refused():
    "Probabilities for indices, a score for more images than there are, questions of which none counts."
    labels = pd.DataFrame(dict(uid=list("ab"), label=[0, 1]))
    for said, named in (([0, .9], ".9"), ([0, math.nan], "nan"), ([0, None], "None"), ([0, -1], "-1"), ([0, "1"], "'1'"),
                        ([0, math.inf], "inf"), ([0, pd.NA], "<NA>"), ([0, {}], "{}")):
        with pytest.raises(ValueError, match=f"such as .*{named}: expected the index of a label"): choice_metrics(labels, said)
    for said in (np.array([0, 1]), torch.tensor([0, 1]), pd.Series([0, 1], dtype="Int64"), [0., True]):
        assert choice_metrics(labels, said)["accuracy"] == 1
    captions = pd.DataFrame(dict(uid=list("ab"), images=[("coco:1",), ("coco:1",)], captions=[("a",), ("b",)]))
    with pytest.raises(ValueError, match="scores of 2 images for each caption; the frame has 1"): caption_metrics(captions, np.eye(2))
    questions = pd.DataFrame(dict(uid=list("ab"), answers=[("red",), ("blue",)], balanced=[False, False]))
    with pytest.raises(ValueError, match="no balanced question"): gqa_metrics(questions, ["red", "blue"])
    for said in ([None, "blue"], [1, 2], pd.DataFrame(dict(answer=["red", "blue"])), {"red", "blue"}):
        with pytest.raises(ValueError, match="predictions"): gqa_metrics(questions.drop(columns="balanced"), said)
