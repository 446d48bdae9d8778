"Pairs of questions and expressions counted one by one, and what consistency is when it has nothing to say."
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from fuzz import tries
from vl12in1.study.consistency import (by_image, consistency, content_words, fully_credited, image_scores, measures, overlap,
                                       pairs, tagger)
from vl12in1.study.statistics import Cell, difference, estimate
from vl12in1.answers import vqa_accuracy

WORDS = "the a is there how many red blue striped dotted small left right of cup cups ball people person bus ? Isn't w/".split()
texts = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
rows = st.lists(st.tuples(st.sampled_from("abcd"), texts, st.booleans()), max_size=8)


def frame(rows):
    "Rows (image, text, right) as an example frame."
    return pd.DataFrame(dict(uid=[str(i) for i in range(len(rows))], images=[(image,) for image, _, _ in rows],
                             text=[text for _, text, _ in rows], right=[right for _, _, right in rows]))


def slowly(questions, expressions):
    "Weight of the pairs that are right twice, and of all pairs, by two loops."
    right = weight = 0
    for image, question, answered in questions:
        for other, expression, localised in expressions:
            if image == other:
                weight += overlap(question, expression)
                right += overlap(question, expression) * (answered and localised)
    return right, weight


# --- words

@pytest.mark.parametrize("text, words", [
    ("What color is the small cup?", {"color", "small", "cup"}), ("SMALL Cups", {"small", "cup"}),
    ("two women, three buses", {"woman", "bus"}), ("the bus", {"bus"}), ("glass of water", {"glass", "water"}),
    ("Isn't it?", set()), ("lady w/ hat", {"lady", "hat"}), ("", set()), ("???", set()), ("the dotted cup", {"cup"})])
def test_content_words(text, words):
    assert content_words(text) == words


@given(texts, texts)
def test_overlap_is_symmetric_and_bounded(one, other):
    assert overlap(one, other) == overlap(other, one) <= min(len(content_words(one)), len(content_words(other)))
    assert overlap(one, one) == len(content_words(one))
    assert overlap(one, one + " " + other) >= overlap(one, other)


def test_textblob_is_imported_when_it_is_asked():
    code = "import sys, vl12in1.study.consistency as _; print({'textblob', 'nltk'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_without_textblob(monkeypatch):
    tagger.cache_clear()
    monkeypatch.setitem(sys.modules, "textblob.en", None)
    with pytest.raises(ImportError, match=r"vl12in1\[consistency\]"): tagger()


# --- right answers

@pytest.mark.parametrize("voices", range(11))
def test_three_voices_are_enough(voices):
    score = vqa_accuracy("red", ["red"] * voices + ["blue"] * (10 - voices))
    assert fully_credited([score]) == [voices >= 3]


def test_an_unknown_score_is_not_right():
    assert fully_credited([np.nan, 1.]).tolist() == [False, True]


# --- pairs

@tries(40)
@given(rows, rows)
def test_consistency_by_two_loops(questions, expressions):
    found = pairs(frame(questions), frame(expressions))
    right, weight = slowly(questions, expressions)
    result = consistency(found)
    assert found.weight.sum() == weight and result["pairs"] == len(found)
    assert (result["consistency"] == pytest.approx(right / weight)) if weight else np.isnan(result["consistency"])
    assert result["images"] == len({one[0] for one in questions} & {one[0] for one in expressions})


@tries(40)
@given(rows, rows)
def test_all_right_is_one_and_one_task_all_wrong_is_zero(questions, expressions):
    right, wrong = ([(image, text, mark) for image, text, _ in questions] for mark in (True, False))
    pointed = [(image, text, True) for image, text, _ in expressions]
    if not slowly(right, pointed)[1]: return
    assert {*list(consistency(pairs(frame(right), frame(pointed))).values())[:5]} == {1.}
    assert consistency(pairs(frame(wrong), frame(pointed)))["consistency"] == 0


@tries(40)
@given(rows, rows)
def test_bounds(questions, expressions):
    result = consistency(pairs(frame(questions), frame(expressions)))
    if np.isnan(result["consistency"]): return
    lowest, highest = result["answered"] + result["localised"] - 1, min(result["answered"], result["localised"])
    for name in ("consistency", "independent", "independent_within"):
        assert lowest - 1e-9 <= result[name] <= highest + 1e-9


def test_equal_weights_leave_nothing_within_an_image():
    questions = [("a", "red cup", mark) for mark in (True, True, False)] + [("b", "red cup", False), ("b", "red cup", True)]
    expressions = [("a", "red cup", mark) for mark in (True, False)] + [("b", "red cup", True)]
    result = consistency(pairs(frame(questions), frame(expressions)))
    assert result["consistency"] == pytest.approx(result["independent_within"]) == pytest.approx(6 / 16)
    assert result["independent"] == pytest.approx((10 / 16) * (10 / 16))


def test_independent_marks_add_nothing():
    rng = np.random.default_rng(0)
    marks = pd.DataFrame(dict(image=np.arange(40_000), weight=rng.integers(1, 5, size=40_000), answered=rng.random(40_000) < .7,
                              localised=rng.random(40_000) < .6))
    result = consistency(marks)
    assert result["consistency"] == pytest.approx(result["independent"], abs=.01) == pytest.approx(.42, abs=.01)


def test_nothing():
    nothing = consistency(pairs(frame([]), frame([])))
    assert nothing["pairs"] == nothing["images"] == nothing["sharing"] == 0 and np.isnan(nothing["consistency"])
    strangers = consistency(pairs(frame([("a", "red cup", True)]), frame([("a", "blue ball", True)])))
    assert strangers["pairs"] == 1 and strangers["sharing"] == 0 and np.isnan(strangers["consistency"])


# --- images as items

counts = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted), min_size=1, max_size=30)


@given(counts)
def test_the_mean_of_image_scores_is_the_consistency(counts):
    both, weights = np.array(counts).T
    if not weights.sum(): return
    assert image_scores(both, weights).mean() == pytest.approx(both.sum() / weights.sum())
    sums = pd.DataFrame(dict(weight=weights, answered=both, localised=weights, both=both))
    assert measures(sums)["consistency"] == pytest.approx(both.sum() / weights.sum())


def test_image_scores_of_nothing():
    for weights in ([], [0, 0]):
        with pytest.raises(ValueError, match=f"{len(weights)} images"): image_scores(weights, weights)


@pytest.mark.parametrize("spread", [1, 10, 40])
def test_the_interval_is_that_of_resampled_ratios(spread):
    rng = np.random.default_rng(spread)
    weights = rng.integers(10, 10 + spread, size=150)
    both = rng.binomial(weights, rng.beta(3, 2, size=150))
    picked = rng.integers(150, size=(4000, 150))
    direct = np.quantile(both[picked].sum(1) / weights[picked].sum(1), [.025, .975])
    assert estimate(Cell(image_scores(both, weights)))[1:3] == pytest.approx(direct, abs=.01)


def test_equals_are_told_apart_no_more_often_than_announced():
    rng = np.random.default_rng(3)

    def p():
        weights, easy = rng.integers(1, 40, size=60), rng.beta(3, 2, size=60)
        ours, theirs = (Cell(image_scores(rng.binomial(weights, easy, size=(2, 60)), weights)) for _ in range(2))
        return difference(ours, theirs).p

    ps = np.array([p() for _ in range(400)])
    assert all((ps <= level).mean() < level + 2 * np.sqrt(level * (1 - level) / 400) for level in (.05, .1, .5))


def test_sums_of_images_are_sums_of_pairs():
    questions = frame([("a", "red cup", True), ("b", "red cup", False), ("b", "blue ball", True)])
    expressions = frame([("a", "red cup", True), ("a", "ball", False), ("b", "red ball", True)])
    sums = by_image(pairs(questions, expressions))
    assert sums.loc["a"].to_dict() == dict(pairs=2, sharing=1, weight=2, answered=2, localised=2, both=2)
    assert sums.loc["b"].to_dict() == dict(pairs=2, sharing=2, weight=2, answered=1, localised=2, both=1)
