"""Runs: what an entry of the grid may say, what becomes of it, and what it leaves."""
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st

import toy
from vl12in1.model import TwelveInOne, ViLBERTConfig
from vl12in1.tasks import TASKS
from vl12in1.evaluation.records import read_item_scores, write_item_scores
from vl12in1.training.runs import Run, easiest_first, make_trainer, parent, part_of, read_examples, weights
from vl12in1.training.schedules import DynamicStopAndGo

TOY = ("vqa", "refcoco", "snli_ve")
TRAINING = dict(common=dict(learning_rate=1e-3, head_learning_rate=1e-3, batch_fraction=1 / 32), multi=dict(iterations=6), stop_and_go={})


def trained(folder, seed=0, tasks=TOY, **choices):
    torch.set_num_threads(1)
    shared, run = toy.sources(folder), Run("scratch", "multi", **choices)
    splits = {task: frames for task, frames in toy.frames(shared).items() if task in tasks}
    torch.manual_seed(0)
    model = TwelveInOne(ViLBERTConfig.miniature(vocab_size=len(toy.WORDS), feature_dim=8, task_tokens=tuple((t,) for t in TASKS)),
                        {"vqa": 2, "gqa": 2})
    trainer = make_trainer(run, tasks, seed, model, read_examples(run, splits, shared), TRAINING,
                           folder / f"run{seed}{sorted(choices.items())}", order=tasks, machine=toy.CPU)
    trainer.run()
    return trainer


@pytest.mark.parametrize("entry, complaint", [
    (dict(kind="multi"), "init is missing"), (dict(init="scratch"), "kind is missing"),
    (dict(init="scratch", kind="multi", task="vqa"), "unknown field 'task'"),
    (dict(init="scratch", kind="multi", data="dirty"), "data 'dirty' is not one of clean, all"),
    (dict(init="scratch", kind="multi", gradients="sums"), "gradients 'sums' is not one of in_turn, sum, pcgrad")])
def test_a_wrong_entry_is_named(entry, complaint):
    with pytest.raises(ValueError, match=f"run 'at'.*{complaint}"): Run.of("at", entry)


def test_a_model_begins_with_the_only_one_that_knows_its_tasks():
    grid = {"st": dict(init="scratch", kind="single", models="task"), "gt": dict(init="scratch", kind="multi", models="group")}
    assert parent(Run("st", "finetune"), ["refcoco+"], grid) == "refcoco+"
    assert parent(Run("gt", "finetune"), ["nlvr2", "snli_ve"], grid) == "G4"
    with pytest.raises(ValueError, match="0 of its models"): parent(Run("st", "finetune"), ["vqa", "gqa"], grid)
    twice = {"pairs": dict(init="scratch", kind="multi", models={"a": ["vqa", "gqa"], "b": ["vqa", "nlvr2"]})}
    with pytest.raises(ValueError, match="2 of its models"): parent(Run("pairs", "finetune"), ["vqa"], twice)


def test_seeds_are_counted_round(tmp_path):
    for seed in range(2): (tmp_path / f"models/all/seed{seed}").mkdir(parents=True)
    assert [weights(tmp_path, "all", seed).name for seed in range(4)] == ["seed0", "seed1", "seed0", "seed1"]


@given(st.integers(1, 300), st.floats(.01, 1), st.floats(.01, 1))
def test_fractions_are_nested_and_of_the_right_size(n, a, b):
    frame = pd.DataFrame(dict(uid=range(n)))
    small, large = (part_of(frame, "vqa", fraction).uid.tolist() for fraction in sorted((a, b)))
    assert set(small) <= set(large) and large == sorted(set(large))
    assert len(small) == max(1, round(min(a, b) * n))


def test_a_fraction_changes_neither_validation_nor_how_often_it_comes(tmp_path):
    whole, half = trained(tmp_path), trained(tmp_path, fraction=.5)
    for task in TOY:
        assert len(half.feeds[task].train.examples) == 16 and len(half.feeds[task].val) == len(whole.feeds[task].val)
        assert half.feeds[task].every == whole.feeds[task].every


@pytest.mark.parametrize("choices", [{}, dict(tokens="head"), dict(tokens="none"), dict(schedule="proportional"),
                                     dict(schedule="hard_first"), dict(losses="uncertainty"), dict(gradients="sum"),
                                     dict(gradients="pcgrad"), dict(stop_and_go=True), dict(fraction=.5)], ids=str)
def test_every_choice_trains_and_repeats_itself(tmp_path, choices):
    first, again = trained(tmp_path / "a", **choices), trained(tmp_path / "b", **choices)
    assert first.history == again.history and all(np.isfinite(line["loss"]) for line in first.history if line["steps"])
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters()))
    assert isinstance(first.schedule, DynamicStopAndGo) == choices.get("stop_and_go", False)


def test_choices_and_seeds_lead_to_different_models(tmp_path):
    ways = [{}, dict(tokens="head"), dict(schedule="hard_first"), dict(losses="uncertainty"), dict(gradients="sum"), dict(seed=1)]
    models = [torch.cat([p.detach().flatten() for p in trained(tmp_path, **way).model.heads.parameters()]) for way in ways]
    assert not any(torch.equal(a, b) for i, a in enumerate(models) for b in models[:i])


def test_a_finished_run_is_not_trained_again(tmp_path):
    done = trained(tmp_path)
    again = trained(tmp_path)
    assert again.history == done.history and again.steps == done.steps
    assert all(torch.equal(a, b) for a, b in zip(done.model.parameters(), again.model.parameters()))


def test_a_curriculum_without_an_order_is_refused(tmp_path):
    shared = toy.sources(tmp_path)
    run = Run("scratch", "multi", schedule="easy_first")
    examples = read_examples(run, toy.frames(shared), shared)
    with pytest.raises(ValueError, match="order of their difficulty"): make_trainer(run, TOY, 0, None, examples, TRAINING, tmp_path)


def test_the_easiest_task_is_the_one_with_the_highest_validation_score():
    assert easiest_first([dict(validation=dict(a=.1, b=.9)), dict(validation=dict(c=.5))]) == ["b", "c", "a"]


def test_item_scores_come_back(tmp_path):
    rng = np.random.default_rng(0)
    scores = {(model, seed, task): rng.choice([0, .3, .6, .9, 1], 50) for model in ("vqa", "G1+G4") for seed in (1, 0) for task in ("vqa",)}
    write_item_scores(tmp_path / "deep/items.csv", scores)
    found = read_item_scores(tmp_path / "deep/items.csv")
    for (model, seed, task), items in scores.items(): assert np.allclose(found[model, task][seed], items, atol=1e-9)
    write_item_scores(tmp_path / "none.csv", {})
    assert read_item_scores(tmp_path / "none.csv") == {}
