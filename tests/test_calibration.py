"How sure models are, and how often they are right: bins, errors and their intervals against known truths."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from sklearn.metrics import brier_score_loss

from vl12in1.examples.batches import Examples
from vl12in1.study.calibration import (calibration, calibration_error, calibration_table, choices, pooled, readable_calibration,
                                       reliability, reliability_figure)
from vl12in1.toy import toy_frames, toy_sources
from vl12in1.training.evaluation import head_scores
from vl12in1.training.machine import Machine
from vl12in1.training.trainer import build_model


def choices_of(confidence, right):
    confidence = np.asarray(confidence, dtype=float)
    return pd.DataFrame(dict(images=[str(i // 2) for i in range(len(confidence))], confidence=confidence, right=np.asarray(right)))


def drawn(seed, truth=lambda confidence: confidence, items=4000):
    rng = np.random.default_rng(seed)
    confidence = rng.random(items)
    return choices_of(confidence, rng.random(items) < truth(confidence))


def test_choices_are_judged_as_in_validation(tmp_path):
    sources, machine = toy_sources(tmp_path), Machine()
    model = build_model(sources, "tiny")
    for task, splits in toy_frames().items():
        examples = Examples(task, splits["test"], sources)
        chosen = choices(model, examples, machine)
        assert chosen.right.tolist() == (head_scores(model, examples, machine) >= .5).tolist(), task
        assert chosen.confidence.between(0, 1).all() and len(chosen.images) == len(examples)


def test_who_is_always_sure_and_half_right_is_off_by_a_half():
    measured = calibration([choices_of([1.] * 10, [True, False] * 5)])
    assert measured["error"] == measured["excess"]["mean"] == measured["brier"]["mean"] == .5


def test_the_brier_score_is_that_of_scikit_learn():
    one = drawn(1)
    assert calibration([one])["brier"]["mean"] == pytest.approx(brier_score_loss(one.right, one.confidence))


@given(st.lists(st.tuples(st.sampled_from([0., .05, .1, .3, .5, .7, .9, 1.]), st.booleans()), min_size=4, max_size=60))
def test_bins_hold_every_item_once(items):
    one = choices_of(*zip(*items))
    bins = reliability(one)
    assert bins["items"].sum() == len(one)
    assert (bins["items"] * bins.confidence).sum() == pytest.approx(one.confidence.sum())
    assert 0 <= calibration_error(bins) <= 1


@pytest.mark.parametrize("right", [True, False])
def test_models_that_are_always_right_or_never_have_an_error_too(right):
    measured = calibration([choices_of(np.full(8, .7), [right] * 8)])
    assert measured["error"] == pytest.approx(.3 if right else .7)


def test_intervals_of_the_honest_hold_zero_and_those_of_boasters_do_not():
    honest = [calibration([drawn(2 * seed), drawn(2 * seed + 1)])["excess"] for seed in range(20)]
    assert sum(one["low"] <= 0 <= one["high"] for one in honest) >= 17
    boaster = calibration([drawn(seed, lambda confidence: confidence ** 2) for seed in (0, 1)])["excess"]
    assert boaster["low"] > .1 and boaster["seeds"] == 2


def test_bins_of_tasks_are_pooled_by_their_items():
    few, many = dict(items=[1], confidence=[.75], right=[0.]), dict(items=[3], confidence=[.79], right=[1.])
    assert pooled([few, many]).iloc[0].to_dict() == pytest.approx(dict(confidence=.78, right=.75, items=4))


def test_tasks_that_a_run_lacks_are_gaps():
    report = {"single-task": dict(gqa=calibration([drawn(0)])), "all-tasks": dict(vqa=calibration([drawn(1)]))}
    assert calibration_table(report).index.tolist() == ["vqa", "gqa"]
    shown = readable_calibration(report)
    assert pd.isna(shown.loc["VQAv2", "single-task: brier"]) and "[" in shown.loc["GQA", "single-task: brier"]
    lines = [len(ax.lines) for ax in reliability_figure(report, "").axes]
    assert lines == [3, 1, 1, 1]  # each panel has its diagonal
