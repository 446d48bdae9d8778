"Sweeps: what a trial sets, when it is ended, that a killed one goes on, and what is said of the best."
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch

import toy
from vl12in1.model import TwelveInOne, ViLBERTConfig
from vl12in1.study import sweep as sweeps
from vl12in1.study.notebooks import Sweep
from vl12in1.study.sweep import (
    averages, best_of, history_of, job_with, readable_sweep, run_sweep, run_trial, scales_of, search, space_of, study_after, sweep_table,
    swept, told, trials_so_far, usual_settings, watcher)
from vl12in1.tasks import TASKS, loss_scales
from vl12in1.training.runs import Run, config_of, read_examples
from vl12in1.training.train import Job
from vl12in1.weights import CheckpointError

AT = Run("scratch", "multi", stop_and_go=True, seeds="side")
TRAINING = dict(common=dict(learning_rate=1e-3, head_learning_rate=2e-3, batch_fraction=1 / 32), multi=dict(iterations=6),
                stop_and_go=dict(gap=4))
USUAL = usual_settings(AT, TRAINING)
SWEEP = Sweep(trials=6, iterations=30, seed=1000, repeats=2)
TOY = ("vqa", "refcoco", "snli_ve")


def study():
    at = dict(init="scratch", kind="multi", stop_and_go=True, seeds="side")
    return dict(runs=dict(at=at), followers={}, seeds=dict(side=[0]), training=TRAINING)


def job_of(tasks, run=AT, root=None): return Job("at", run, study(), root, {task: {} for task in tasks}, [])


# --- what a trial sets

def test_the_usual_settings_are_those_of_the_study():
    job = job_of(TASKS)
    trial = job_with(job, "sweep/trial0", USUAL, [1000], 6)
    assert config_of(trial.run, tuple(TASKS), 3, trial.study["training"]) == config_of(job.run, tuple(TASKS), 3, TRAINING)
    assert trial.study["training"]["stop_and_go"] == TRAINING["stop_and_go"]
    assert set(trial.run.loss_scales.values()) == {1.}  # beside the task table's
    assert asdict(replace(trial.run, loss_scales={}, seeds="side")) == asdict(job.run)


def test_settings_arrive_where_a_trainer_reads_them():
    trial = job_with(job_of(TASKS), "sweep/trial0", dict(learning_rate=.5, head_learning_rate=2., loss_exponent=0., gap=7), [5], 9)
    config = config_of(trial.run, tuple(TASKS), 0, trial.study["training"])
    assert (config.learning_rate, config.head_learning_rate, config.iterations) == (5e-4, 4e-3, 9)
    assert trial.study["training"]["stop_and_go"]["gap"] == 7 and trial.study["seeds"] == dict(side=[0], sweep=[5])
    assert {task: scale * trial.run.loss_scales[task] for task, scale in loss_scales(TASKS).items()} == dict.fromkeys(TASKS, 1.)


def test_a_sweep_changes_nothing_of_the_study_it_is_told_of():
    job = job_of(TASKS)
    before = json.dumps(job.study)
    job_with(job, "sweep/trial0", USUAL | dict(gap=1), [5], 9)
    assert json.dumps(job.study) == before


def test_factors_of_the_run_stay_beside_the_exponent():
    assert scales_of(replace(AT, loss_scales={"vqa": 3.}), ["vqa", "refcoco"], dict(loss_exponent=1.)) == {"vqa": 3., "refcoco": 1.}
    assert scales_of(replace(AT, loss_scales={"vqa": 3.}), ["vqa", "refcoco"], dict(loss_exponent=0.)) == {"vqa": 1.5, "refcoco": 1.}


@pytest.mark.parametrize("changed, absent", [(dict(losses="uncertainty"), "loss_exponent"), (dict(stop_and_go=False), "gap")])
def test_what_a_run_does_not_have_is_not_searched(changed, absent):
    run = replace(AT, **changed)
    usual = usual_settings(run, TRAINING)
    assert absent not in usual and usual.keys() == space_of(usual).keys()
    assert job_with(job_of(TASKS, run), "sweep/trial0", usual, [5], 9).run.loss_scales.keys() <= loss_scales(TASKS).keys()


@pytest.mark.parametrize("gap", [1, 4, 20])
def test_the_usual_settings_are_in_the_space(gap):
    usual = usual_settings(AT, dict(stop_and_go=dict(gap=gap)))
    for name, where in space_of(usual).items(): assert where._contains(where.to_internal_repr(usual[name]))


# --- one trial

def trainer_like(iteration, score, iterations=30):
    history = [dict(iteration=i, task=task, score=score) for i in range(1, iteration + 1) for task in TOY]
    return SimpleNamespace(history=history, iteration=iteration, config=SimpleNamespace(iterations=iterations))


def test_a_mean_waits_for_all_tasks_and_takes_their_last_scores():
    history = [dict(iteration=i, task=task, score=score) for i, task, score in [(1, "a", .1), (2, "a", .2), (2, "b", .4), (5, "a", .6)]]
    assert averages(history, ["a", "b"]) == {2: pytest.approx(.3), 5: .5} and averages(history, ["a", "b", "c"]) == {}


def good(score, steps=range(1, 31)):
    return dict(settings=USUAL, state="complete", iterations=30, averages=[[step, score] for step in steps], validation=score)


@pytest.mark.parametrize("score, iteration, ended", [(.1, 9, False), (.1, 10, True), (.9, 10, False), (.1, 30, False)])
def test_a_trial_that_is_worse_than_half_of_the_others_is_ended_after_a_third(score, iteration, ended):
    trial = study_after([good(.4), good(.5), good(.6)], USUAL, SWEEP).ask(space_of(USUAL))
    watch = watcher(trial, TOY)
    if not ended: return watch(trainer_like(iteration, score))
    with pytest.raises(optuna.TrialPruned): watch(trainer_like(iteration, score))


def test_the_first_three_trials_are_not_ended():
    trial = study_after([good(.4), good(.5)], USUAL, SWEEP).ask(space_of(USUAL))
    watcher(trial, TOY)(trainer_like(20, 0.))


# --- one after another

def attempt(trial, name):
    if name == "trial3": return dict(settings=trial.params, state="diverged", iterations=7, averages=[], validation=None)
    if name == "trial4": return dict(settings=trial.params, state="pruned", iterations=12, averages=[[11, .1], [12, .2]], validation=None)
    return good(1 - (trial.params["loss_exponent"] - .5) ** 2) | dict(settings=trial.params)


@pytest.mark.parametrize("killed_after", range(6))
def test_a_sweep_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, killed_after):
    whole, tried = search(attempt, USUAL, SWEEP, tmp_path / "whole/trials.json", {}), []

    def until_killed(trial, name):
        if len(tried) == killed_after: raise KeyboardInterrupt
        tried.append(name)
        return attempt(trial, name)
    path = tmp_path / "sweep/trials.json"
    with pytest.raises(KeyboardInterrupt): search(until_killed, USUAL, SWEEP, path, {})
    assert search(attempt, USUAL, SWEEP, path, {}) == whole and whole[0]["settings"] == USUAL
    assert len({json.dumps(trial["settings"]) for trial in whole}) == len(whole)


def test_trials_of_another_sweep_are_not_gone_on_with(tmp_path):
    path = tmp_path / "trials.json"
    search(attempt, USUAL, SWEEP, path, dict(sweep="a", code="b"))
    assert len(trials_so_far(path, dict(sweep="a", code="b"))) == 6
    with pytest.warns(UserWarning, match="trials.json is not continued and the sweep begins anew, because this has changed: code"):
        assert trials_so_far(path, dict(sweep="a", code="c")) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"identity": {}, "trials": 3}', '{"identity": [], "trials": []}'])
def test_a_damaged_file_of_trials_is_named(tmp_path, text):
    (tmp_path / "trials.json").write_text(text)
    with pytest.raises((ValueError, CheckpointError), match="trials.json"): trials_so_far(tmp_path / "trials.json", {})


def test_checkpoints_of_trials_that_have_ended_are_gone(tmp_path):
    def leaves_some(trial, name):
        (tmp_path / name).mkdir()
        return attempt(trial, name)
    search(leaves_some, USUAL, SWEEP, tmp_path / "trials.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["trials.json"]


# --- a real one

@pytest.fixture
def toy_job(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    shared = toy.sources(tmp_path)
    splits = {task: frames for task, frames in toy.frames(shared).items() if task in TOY}
    config = ViLBERTConfig.miniature(vocab_size=len(toy.WORDS), feature_dim=8, task_tokens=tuple((task,) for task in TASKS))
    torch.manual_seed(0)
    TwelveInOne(config, {"vqa": 2, "gqa": 2}).save_pretrained(tmp_path / "runs/scratch/models/all/seed0")
    monkeypatch.setattr("vl12in1.training.train.identity_of", lambda *given: {})
    return Job("at", AT, study(), tmp_path, read_examples(AT, splits, shared), [])


def test_the_best_is_trained_again_with_seeds_that_no_trial_has_had(toy_job, monkeypatch):
    used, trainer_of = [], sweeps.trainer_of
    monkeypatch.setattr(sweeps, "trainer_of", lambda job, model, tasks, seed: used.append(seed) or trainer_of(job, model, tasks, seed))
    again = []
    train_model = sweeps.train_model
    monkeypatch.setattr(sweeps, "train_model", lambda job, *model: again.append((job.name, model[2])) or train_model(job, *model))
    report = swept(toy_job, Sweep(trials=2, iterations=3, seed=1000, repeats=2))
    assert set(used) == {1000}
    assert again == [(f"sweep/{row}", seed) for row in ("usual", "best") for seed in (1001, 1002)]
    assert [trial["state"] for trial in report["trials"]] == ["complete"] * 2 and report["trials"][0]["settings"] == USUAL
    assert report["difference"]["seeds"] == 2 and report["rows"]["usual"]["again"]["seeds"] == 2


def test_a_trial_that_diverges_has_no_score(toy_job, monkeypatch):
    def diverges(*given): raise FloatingPointError("the loss of vqa is nan")
    monkeypatch.setattr("vl12in1.training.trainer.Trainer.count", diverges)
    trial = study_after([], USUAL, SWEEP).ask(space_of(USUAL))
    outcome = run_trial(job_with(toy_job, "sweep/trial0", USUAL, [1000], 3), trial)
    assert (outcome["state"], outcome["validation"]) == ("diverged", None)


@pytest.mark.parametrize("trials", [0, 3])
def test_a_run_of_several_models_is_refused(tmp_path, trials):
    (tmp_path / "reports/clean").mkdir(parents=True)
    (tmp_path / "reports/clean/data.txt").write_text("toys")
    own = study() | dict(sweep=asdict(replace(SWEEP, trials=trials)), pretraining={})
    own["runs"]["at"]["models"] = "task"
    with pytest.raises(ValueError, match="params.yaml: run 'at' has several models; a sweep is of a run of one"):
        run_sweep("at", own, tmp_path)


# --- what is said of it

ENDED = [good(.5), good(.6), good(.9) | dict(state="pruned", validation=None),
         good(.0) | dict(state="diverged", validation=None, averages=[])]


def test_the_best_has_come_to_its_end():
    assert best_of(ENDED) is ENDED[1] and best_of(ENDED[2:]) is ENDED[2] and best_of(ENDED[:1]) is ENDED[0]


def test_a_sentence_counts_how_trials_ended():
    assert told(dict(trials=ENDED)) == "4 trials: 2 complete, 1 pruned, 1 diverged."
    assert told(dict(trials=ENDED[:1])).endswith("The study's own way was the best of them.")
    assert told(dict(trials=[])).startswith("**Not run in this profile**")


def test_the_history_is_a_row_for_each_trial():
    table = history_of(dict(trials=ENDED))
    assert table.state.tolist() == ["complete", "complete", "pruned", "diverged"] and table.validation.tolist()[:2] == [50, 60]
    assert np.isnan(table.validation[2:]).all() and list(table)[:4] == list(USUAL)
    assert list(history_of(dict(trials=[])))[-3:] == ["state", "iterations", "validation"]


def test_a_table_without_a_sweep_has_its_rows_and_no_numbers():
    shown = readable_sweep(sweep_table(dict(trials=[], rows={}, difference=None)))
    assert shown.shape[1] == 2 and (shown == "–").all(axis=None)
