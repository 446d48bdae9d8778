"""Runs: what an entry of the grid may say, what becomes of it, and what it leaves."""
import time
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st

import toy
from vl12in1.examples.text import AnswerVocabulary
from vl12in1.model import TwelveInOne, ViLBERTConfig
from vl12in1.model.heads import TOKENS, with_tasks
from vl12in1.model.vilbert import published_task_tokens
from vl12in1.tasks import MORE, TASKS
from vl12in1.evaluation.records import read_item_scores, write_item_scores
from vl12in1.training.balancing import GRADIENTS, LOSSES
from vl12in1.training.runs import (SCHEDULES, Run, all_seeds, easiest_first, equal_iterations, make_trainer, parent, part_of, read_examples,
                                   read_grid, run_of, serves, weights)
from vl12in1.study.claims import BEYOND, judge
from vl12in1.study.results import Results, invent_run
from vl12in1.study.tables import MORE_ROWS, readable_task, task_table
from vl12in1.training.schedules import DynamicStopAndGo
from vl12in1.training.trainer import build_model

TOY = ("vqa", "refcoco", "snli_ve")
TRAINING = dict(common=dict(learning_rate=1e-3, head_learning_rate=1e-3, batch_fraction=1 / 32), multi=dict(iterations=6), stop_and_go={})


def judged(tasks):
    "What the report of a run says of a model of these tasks: easy ones come first, and half of the steps were left out."
    return dict(tasks=tasks, validation={task: 1 / (1 + place) for place, task in enumerate(tasks)}, steps=dict.fromkeys(tasks, 3))


def untrained(folder, seed=0, tasks=TOY, training=TRAINING, **choices):
    torch.set_num_threads(1)
    shared, run = toy.sources(folder), Run("scratch", "multi", **choices)
    splits = {task: frames for task, frames in toy.frames(shared).items() if task in tasks}
    torch.manual_seed(0)
    model = TwelveInOne(ViLBERTConfig.miniature(vocab_size=len(toy.WORDS), feature_dim=8, task_tokens=tuple((t,) for t in TASKS)),
                        {"vqa": 2, "gqa": 2})
    return make_trainer(run, tasks, seed, model, read_examples(run, splits, shared), training,
                        folder / f"run{seed}{sorted(choices.items())}", followed=[judged(tasks)], machine=toy.CPU)


def trained(folder, seed=0, tasks=TOY, training=TRAINING, **choices):
    trainer = untrained(folder, seed, tasks, training, **choices)
    trainer.run()
    return trainer


@pytest.mark.parametrize("entry, complaint", [
    (dict(kind="multi"), "init is missing"), (dict(init="scratch"), "kind is missing"),
    (dict(init="scratch", kind="multi", task="vqa"), "unknown field 'task'"),
    (dict(init="scratch", kind="multi", data="dirty"), "data 'dirty' is not one of clean, all"),
    (dict(init="scratch", kind="multi", gradients="sums"), "gradients 'sums' is not one of in_turn, sum, pcgrad, upgrad"),
    (dict(init="scratch", kind="multi"), "seeds is missing"),
    (None, "None is not fields with values"), (["scratch"], "is not fields with values"), ("scratch", "is not fields with values")])
def test_a_wrong_entry_is_named(entry, complaint):
    with pytest.raises(ValueError, match=f"run 'at'.*{complaint}"): Run.of("at", entry)


MULTI = dict(init="scratch", kind="multi", seeds="side")


@pytest.mark.parametrize("field, values, allowed", [
    ("init", [None, 3, ""], "a name"), ("kind", [None, ["multi"]], "a name"), ("seeds", [1, None], "a name"),
    ("after", [True], "a name"),
    ("fraction", [0, -.1, 1.5, 10, "0.1", True, None, float("nan")], "a number above 0 and at most 1"),
    ("stop_and_go", ["yes", 1, None], "true or false"), ("data", [["clean"], None, True], "one of clean, all"),
    ("tokens", [None, {}], "one of task, head, none"), ("losses", ["scale"], "one of scaled, uncertainty"),
    ("temperature", [0, -1, "2", True, float("inf"), float("nan")], "a number above 0"), ("passes", [0, None], "a number above 0"),
    ("schedule", ["roundrobin", 3], "one of round_robin, proportional, unimax, back_to_best, easy_first, hard_first, equal_steps"),
    ("models", ["tasks", None, [], {}, ["vqa"], 3], "one of task, group, all, nor names with a list")])
def test_a_value_that_a_field_cannot_have_is_named_with_those_it_can(field, values, allowed):
    for value in values:
        with pytest.raises(ValueError) as refused: Run.of("at", MULTI | {field: value})
        assert f"run 'at': {field} {value!r} is not {allowed}" in str(refused.value)


@pytest.mark.parametrize("entry, complaint", [
    (dict(losses="famo"), "losses famo are weighed all together, .*gradients has to be sum"),
    (dict(losses="stch", gradients="pcgrad"), "losses stch .*gradients has to be sum"),
    (dict(temperature=2), "temperature belongs to schedule proportional, and is nothing to round_robin"),
    (dict(schedule="proportional", passes=2), "passes belongs to schedule unimax, and is nothing to proportional"),
    (dict(schedule="back_to_best", stop_and_go=True), "back_to_best takes the place of stop_and_go"),
    (dict(losses=["famo"], schedule=3), r"schedule 3 is not one of .*; losses \['famo'\] is not one of")])
def test_values_that_do_not_go_together_are_named(entry, complaint):
    with pytest.raises(ValueError, match=f"run 'at': .*{complaint}"): Run.of("at", MULTI | entry)


@pytest.mark.parametrize("models, complaint", [
    ({"pair": ["vqaa", "nlvr2"]}, "'pair' has 'vqaa'; did you mean 'vqa'"), ({"pair": ["x"]}, "'pair' has 'x'; there are G1, .*nlvr2"),
    ({"pair": ["G5"]}, "'pair' has 'G5'"), ({"pair": ["vqa"], "Pair": ["gqa"]}, "'pair' stands there twice, but for capitals"),
    ({"pair": "vqa"}, "'pair' has 'vqa', which is not a list"), ({"pair": []}, r"'pair' has \[\], which is not a list"),
    ({"pair": None}, "'pair' has None, which is not a list"), ({"pair": [["vqa"]]}, r"'pair' has \['vqa'\]"),
    ({1: ["vqa"]}, "1 is not a name"), ({"../up": ["vqa"]}, "'../up' is not a name"),
    ({"a" * 201: ["vqa"]}, "'a+[.]+ is not a name of at most 200 letters"), ({"average": ["vqa"]}, "'average' is not a name")])
def test_models_of_unknown_tasks_or_with_names_that_are_no_folders_are_refused(models, complaint):
    with pytest.raises(ValueError, match=f"run 'at': models: {complaint}"): Run.of("at", MULTI | dict(models=models))


@pytest.mark.parametrize("entry, complaint", [
    (dict(loss_scales={"vqaa": 2.}), "loss_scales: 'vqaa' is no task of this run; did you mean 'vqa'"),
    (dict(loss_scales={"vqa": 2.}, models={"pair": ["G2", "nlvr2"]}), "'vqa' is no task of this run; there are coco_retrieval, .*, nlvr2$"),
    *((dict(loss_scales=scales), "is not tasks with a number above 0 each, such as {vqa: 2.0}")
      for scales in (2., None, ["vqa"], {"vqa": 0}, {"vqa": -1}, {"vqa": "2"}, {"vqa": True}, {"vqa": float("inf")})),
    (dict(loss_scales={"vqa": 2.}, losses="uncertainty"), "loss_scales are for losses: scaled, and for no other")])
def test_factors_of_losses_that_would_change_nothing_or_everything_are_refused(entry, complaint):
    with pytest.raises(ValueError, match=f"run 'at': .*{complaint}"): Run.of("at", MULTI | entry)


def test_a_factor_of_a_loss_is_one_beside_that_of_the_task_table(tmp_path):
    usual, scaled = trained(tmp_path).step.balance.scales, trained(tmp_path, loss_scales={"vqa": .5}).step.balance.scales
    assert scaled == usual | dict(vqa=usual["vqa"] / 2)


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError) as refused: Run.of("at", dict(kind=3, fraction=2, schedule="hard_first", stop="no", models={"a": ["b"]}))
    for part in ("init is missing", "seeds is missing", "kind 3", "fraction 2", "after names the run", "field 'stop'", "'a' has 'b'"):
        assert part in str(refused.value)


def test_right_entries_are_runs():
    assert Run.of("at", MULTI) == Run("scratch", "multi")
    assert Run.of("at", MULTI | dict(fraction=1, models={"G1+vqa": ["G1", "vqa"]})).tasks() == {"G1+vqa": ("vqa", "vg_qa", "gqa")}
    Run.of("at", MULTI | dict(schedule="easy_first", after="st"))
    Run.of("at", MULTI | dict(schedule="equal_steps", after="st"))


@pytest.mark.parametrize("entry", [
    dict(schedule="easy_first"), dict(schedule="equal_steps"), dict(after="st"), dict(schedule="proportional", after="st")])
def test_another_run_is_named_if_and_only_if_its_report_is_needed(entry):
    with pytest.raises(ValueError, match="after names the run whose report is needed: for easy_first, hard_first, equal_steps"):
        Run.of("at", MULTI | entry)


def test_every_field_is_described():
    for field in fields(Run): assert f"- `{field.name}`" in Run.__doc__ or f", `{field.name}`" in Run.__doc__


# --- an entry among the others

def study(runs, followers=()):
    return dict(runs={name: MULTI | entry for name, entry in runs.items()}, followers=dict(followers), seeds=dict(side=[0]),
                pretraining=dict(improved={}), training=dict(common={}, pretrain={}, stop_and_go={}, multi={}, finetune={}))


@pytest.mark.parametrize("entry, complaint", [
    (dict(kind="mutli"), "kind 'mutli' is not one of multi, finetune"), (dict(kind="common"), "kind 'common' is not one of"),
    (dict(seeds="sides"), "seeds 'sides' is not one of side"),
    (dict(init="gtt"), "init 'gtt' is not one of scratch, pretrain_improved, st, at"),
    (dict(schedule="easy_first", after="ts"), "after 'ts' is not one of st, at"),
    (dict(schedule="easy_first", after="st"), "belong under followers"), (dict(tokens="heads"), "tokens 'heads'")])
def test_an_entry_that_does_not_fit_the_study_is_named(entry, complaint):
    wrong = study(dict(st={}, at=entry))
    with pytest.raises(ValueError, match=f"run 'at': .*{complaint}"): read_grid(wrong)
    with pytest.raises(ValueError, match=f"run 'at': .*{complaint}"): run_of(wrong, "st")


def test_all_wrong_entries_are_listed():
    with pytest.raises(ValueError) as refused: read_grid(study(dict(a=dict(init="c"), b=dict(kind="mutli"), st={}), dict(c=None, d=MULTI)))
    lines = str(refused.value).splitlines()
    assert [line.split("'")[1] for line in lines] == ["b", "c", "d"]  # `c` is an entry, though a wrong one


@pytest.mark.parametrize("runs, names", [
    (dict(a=dict(init="a")), "a"), (dict(a=dict(init="b"), b=dict(init="c"), c=dict(init="a"), st={}), "[abc], [abc], [abc]")])
def test_runs_that_begin_with_each_other_are_named(runs, names):
    with pytest.raises(ValueError, match=f"begin with each other: {names}$"): read_grid(study(runs))


def test_runs_without_seeds_are_left_out_and_no_run_may_need_them():
    seeds = dict(side=[0], more=[])
    left_out = study(dict(at=dict(seeds="more"))) | dict(seeds=seeds)
    assert list(read_grid(left_out)) == ["at"]
    needy = study(dict(at=dict(seeds="more"), ft=dict(init="at"), gt=dict(init="at", seeds="more"))) | dict(seeds=seeds)
    with pytest.raises(ValueError, match="run 'ft': it needs 'at', and the profile's seeds: more is empty$"): read_grid(needy)


def test_a_curriculum_cannot_begin_with_what_waits_for_it():
    curriculum = MULTI | dict(schedule="easy_first", after="st")
    assert list(read_grid(study(dict(st={}), dict(easy=curriculum)))) == ["st", "easy"]
    with pytest.raises(ValueError, match="begin with each other"): read_grid(study(dict(st=dict(init="easy")), dict(easy=curriculum)))


@pytest.mark.parametrize("init, models", [("gt", "all"), ("gt", {"x": ["vqa", "nlvr2"]}), ("pairs", "task"), ("pairs", "group")])
def test_a_run_that_no_model_can_be_begun_for_is_named(init, models):
    others = dict(gt=dict(models="group"), pairs=dict(models={"a": ["vqa", "gqa"], "b": ["vqa", "nlvr2"]}))
    with pytest.raises(ValueError, match=rf"^params.yaml: run 'mine': a model of .* cannot begin with '{init}': \d of its models .*$"):
        read_grid(study(others | dict(mine=dict(init=init, models=models))))
    assert "mine" in read_grid(study(others | dict(mine=dict(init="pairs", models={"x": ["nlvr2"], "y": ["gqa", "vizwiz"]}))))


@pytest.mark.parametrize("schedule, after, words", [
    ("easy_first", "gt", ""), ("hard_first", "pairs", "does not say how difficult vg_qa, .*, snli_ve is"), ("equal_steps", "at", ""),
    ("easy_first", "captions", "does not say how difficult vqa, .* is"), ("equal_steps", "gt", "none has just the tasks vqa, .*, snli_ve")])
def test_the_run_that_is_waited_for_has_learned_what_it_is_asked_about(schedule, after, words):
    models = dict(gt="group", at="all", pairs={"a": ["vqa", "gqa"]}, captions={"a": ["coco_captioning"]})
    follower = study({name: dict(models=own) for name, own in models.items()}, dict(mine=MULTI | dict(schedule=schedule, after=after)))
    if not words: assert "mine" in read_grid(follower)
    else:
        with pytest.raises(ValueError, match=f"^params.yaml: run 'mine': .*'{after}' .*{words}"): read_grid(follower)


@pytest.mark.parametrize("own", [0, 3, None, "two", [-1], [2 ** 63], [0, 0], [1, 2, 1], ["0"], [True], [.5], [[0]], {0: 1}])
def test_a_list_of_seeds_that_is_none_is_refused(own):
    with pytest.raises(ValueError) as refused: read_grid(study(dict(at={})) | dict(seeds=dict(side=own)))
    assert f"seeds: side is {own!r}, which is not a list of different whole numbers" in str(refused.value)
    with pytest.raises(ValueError) as again: all_seeds(dict(main=[0], side=own))
    assert str(again.value) == str(refused.value)


def test_the_seeds_of_all_lists_are_taken_together():
    assert all_seeds(dict(main=[12, 10, 11], side=[10, 3])) == [3, 10, 11, 12]


def test_a_run_that_there_is_not_is_named_with_those_there_are():
    assert run_of(study(dict(st={}, at=dict(init="st"))), "at").init == "st"
    with pytest.raises(ValueError, match="no run 'nosuch'; there are: st, at"): run_of(study(dict(st={}, at={})), "nosuch")


def test_a_model_begins_with_the_only_one_that_knows_its_tasks():
    grid = {"st": Run("scratch", "single", models="task"), "gt": Run("scratch", "multi", models="group")}
    assert parent(Run("st", "finetune"), ["refcoco+"], grid) == "refcoco+"
    assert parent(Run("gt", "finetune"), ["nlvr2", "snli_ve"], grid) == "G4"
    with pytest.raises(ValueError, match="0 of its models"): parent(Run("st", "finetune"), ["vqa", "gqa"], grid)
    twice = {"pairs": Run("scratch", "multi", models={"a": ["vqa", "gqa"], "b": ["vqa", "nlvr2"]})}
    with pytest.raises(ValueError, match="2 of its models"): parent(Run("pairs", "finetune"), ["vqa"], twice)


def test_seeds_are_counted_round(tmp_path):
    for seed in range(2): (tmp_path / f"models/all/seed{seed}").mkdir(parents=True)
    assert [weights(tmp_path, "all", seed, seed).name for seed in range(4)] == ["seed0", "seed1", "seed0", "seed1"]


def test_a_seed_begins_with_its_own_weights_or_with_those_at_its_place(tmp_path):
    for seed in (9, 10, 2): (tmp_path / f"models/all/seed{seed}").mkdir(parents=True)
    found = [weights(tmp_path, "all", seed, place).name for place, seed in enumerate([10, 11, 12, 13, 9])]
    assert found == ["seed10", "seed9", "seed10", "seed2", "seed9"]  # there are 2, 9 and 10
    assert weights(tmp_path, "all").name == "seed2" and not weights(tmp_path, "none", 3).exists()


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


WAYS = [{}, dict(tokens="head"), dict(tokens="none"), dict(stop_and_go=True), dict(fraction=.5),
        dict(schedule="proportional", temperature=3.),
        dict(losses="famo", gradients="sum", stop_and_go=True), dict(losses="famo", gradients="sum", schedule="proportional"),
        *(dict(losses=losses, gradients="sum" if way.together else "in_turn") for losses, way in [*LOSSES.items()][1:]),
        *(dict(gradients=gradients) for gradients in [*GRADIENTS][1:]),
        *(dict(schedule=schedule) for schedule in SCHEDULES if schedule not in ("round_robin", "proportional"))]
LONGER = TRAINING | dict(common=TRAINING["common"] | dict(checkpoint_every=3), multi=dict(iterations=10))
OFTEN = TRAINING | dict(common=TRAINING["common"] | dict(checkpoint_every=3, validate_every=.2), multi=dict(iterations=16))


@pytest.mark.parametrize("choices", WAYS, ids=str)
def test_every_choice_trains_and_ends_the_same_when_killed(tmp_path, choices):
    training = OFTEN if choices.get("schedule") == "back_to_best" else LONGER
    whole, killed = trained(tmp_path / "a", training=training, **choices), untrained(tmp_path / "b", training=training, **choices)
    validate = killed.validate
    def power_failure():
        validate()
        if killed.iteration == whole.config.iterations - 2: raise KeyboardInterrupt
    killed.validate = power_failure
    with pytest.raises(KeyboardInterrupt): killed.run()
    resumed = trained(tmp_path / "b", training=training, **choices)
    assert whole.history == resumed.history and all(np.isfinite(line["loss"]) for line in whole.history if line["steps"])
    assert all(torch.equal(a, b) for a, b in zip(whole.step.parameters(), resumed.step.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.step.buffers(), resumed.step.buffers(), strict=True))
    assert isinstance(whole.schedule, DynamicStopAndGo) == choices.get("stop_and_go", False)


def test_training_goes_back_to_the_weights_with_which_a_task_was_best(tmp_path):
    trainer = untrained(tmp_path, training=OFTEN, schedule="back_to_best")
    seen, kept, keep = [], {}, trainer.keep
    def noting(task):
        keep(task)
        kept[task] = {name: part.clone() for name, part in trainer.model.state_dict().items()}
    go_back = trainer.go_back
    def checking(task):
        go_back(task)
        assert all(torch.equal(part, kept[task][name]) for name, part in trainer.model.state_dict().items())
        seen.append(task)
    trainer.keep, trainer.go_back = noting, checking
    trainer.run()
    assert seen == trainer.schedule.left_out and seen and trainer.iteration == 16
    assert all(trainer.steps[task] < 16 for task in seen)


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
    assert easiest_first([dict(validation=dict(a=.1, b=.9)), dict(validation=dict(a=.9, b=0))]) == ["a", "b"]  # .5 and .45


def test_equal_steps_are_as_many_and_on_a_schedule_of_their_own_length(tmp_path):
    trainer = trained(tmp_path, schedule="equal_steps")
    assert trainer.config.iterations == 3 and trainer.steps == dict.fromkeys(TOY, 3)
    assert trained(tmp_path).config.iterations == 6
    assert trained(tmp_path, schedule="equal_steps", gradients="sum").config.iterations == 9


@given(st.lists(st.integers(0, 500), min_size=2, max_size=12))
def test_equal_steps_differ_by_less_than_a_round(steps):
    tasks = [f"task{number}" for number in range(len(steps))]
    iterations = equal_iterations([dict(tasks=tasks, steps=dict(zip(tasks, steps)))], tasks, len(tasks))
    assert abs(iterations * len(tasks) - sum(steps)) <= len(tasks) / 2 or iterations == 1


def test_equal_steps_are_those_of_models_of_the_same_tasks_on_average():
    models = [dict(tasks=["a", "b"], steps=dict(a=10, b=20)), dict(tasks=["b", "a"], steps=dict(a=4, b=2)),
              dict(tasks=["a"], steps=dict(a=1))]
    assert equal_iterations(models, ["a", "b"], 2) == 9 and equal_iterations(models, ["a", "b"], 1) == 18
    with pytest.raises(ValueError, match="no model of c"): equal_iterations(models, ["c"], 1)


def test_item_scores_come_back(tmp_path):
    rng = np.random.default_rng(0)
    scores = {(model, seed, task): rng.choice([0, .3, .6, .9, 1], 50) for model in ("vqa", "G1+G4") for seed in (1, 0) for task in ("vqa",)}
    write_item_scores(tmp_path / "deep/items.csv", scores)
    found = read_item_scores(tmp_path / "deep/items.csv")
    for (model, seed, task), items in scores.items(): assert np.allclose(found[model, task][0][seed], items, atol=1e-9)
    write_item_scores(tmp_path / "none.csv", {})
    assert read_item_scores(tmp_path / "none.csv") == {}


def test_models_may_have_different_numbers_of_seeds(tmp_path):
    scores = {("a", 0, "vqa"): np.array([1, 0]), ("a", 1, "vqa"): np.array([0, 0]), ("b", 0, "gqa"): np.array([1, 1, .5])}
    columns = {task: pd.DataFrame(dict(images=[f"coco:{task}"] * n, kind="count")) for task, n in (("vqa", 2), ("gqa", 3))}
    write_item_scores(tmp_path / "items.csv", scores, columns)
    found = read_item_scores(tmp_path / "items.csv")
    assert found["a", "vqa"][0].tolist() == [[1, 0], [0, 0]] and found["b", "gqa"][0].tolist() == [[1, 1, .5]]
    assert found["b", "gqa"][1].to_numpy().tolist() == [["coco:gqa", "count"]] * 3


# --- task tokens

def test_tokens_are_new_only_where_the_model_has_none_of_the_kind():
    tables = {tokens: rows() for tokens, rows in TOKENS.items()}
    assert all(serves(tables[a], tables[b]) == (a == b) for a in tables for b in tables)
    assert serves(published_task_tokens(), tables["task"]) and not serves(published_task_tokens(), tables["head"])


@pytest.mark.parametrize("tokens", ["task", "head", "none"])
def test_a_run_keeps_the_tokens_it_begins_with(tmp_path, tokens):
    own = trained(tmp_path / "a", tokens=tokens).model
    state = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    shared = toy.sources(tmp_path / "a")
    examples = read_examples(Run("scratch", "multi"), toy.frames(shared), shared)
    again = make_trainer(Run("scratch", "multi", tokens=tokens), TOY, 1, own, examples, TRAINING, tmp_path / "b", machine=toy.CPU).model
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())


# --- tasks beyond the twelve

@pytest.fixture
def riddle(monkeypatch):
    monkeypatch.setitem(MORE, "riddle", replace(TASKS["snli_ve"], name="riddle"))
    monkeypatch.setitem(MORE, "poll", replace(TASKS["vqa"], name="poll", vocabulary="poll"))


@pytest.mark.parametrize("tokens, row", [("task", [("riddle",)]), ("head", [("riddle",)]), ("none", [])])
def test_a_model_grows_by_the_tasks_that_its_run_names(riddle, tmp_path, tokens, row):
    shared = toy.sources(tmp_path)
    splits = toy.frames(shared)
    examples = read_examples(Run("scratch", "multi"), splits | {"riddle": splits["snli_ve"]}, shared)
    settings = dict(vocab_size=len(toy.WORDS), feature_dim=8)
    def made(*tasks):
        torch.manual_seed(3)
        model = TwelveInOne(ViLBERTConfig.tiny(**settings), {"vqa": 2, "gqa": 2})
        run = Run("scratch", "multi", tokens=tokens)
        return make_trainer(run, tasks, 0, model, examples, TRAINING, tmp_path / "run", machine=toy.CPU).model
    few, more = made("vqa"), made("vqa", "riddle")
    assert "more" not in few.settings() and more.more == ("riddle",)[:len(row)]
    assert more.config.task_tokens == (*few.config.task_tokens, *row)
    known = few.state_dict()
    assert all(torch.equal(tensor[:len(known[name])], known[name]) for name, tensor in more.state_dict().items() if name in known)
    more.save_pretrained(tmp_path / "model")
    again = TwelveInOne.from_pretrained(tmp_path / "model")
    assert again.more == more.more and again.head("riddle") is again.head("snli_ve")


def test_only_whoever_names_a_task_beyond_the_twelve_gets_it(riddle):
    assert Run("scratch", "multi").tasks() == {"all": tuple(TASKS)}
    named = Run.of("own", dict(init="scratch", kind="multi", seeds="side", models={"own": ["riddle", "G4"]}))
    assert named.tasks() == {"own": ("nlvr2", "snli_ve", "riddle")}
    model = TwelveInOne(ViLBERTConfig.tiny(), {"vqa": 2})
    with pytest.raises(ValueError, match="needs the vocabulary 'poll'"): model.head("poll")
    assert with_tasks(model, ["poll"], {"poll": 5}).head("poll").classifier[-1].out_features == 5
    with pytest.raises(ValueError, match="more \\['riddles'\\]: not in"): TwelveInOne(ViLBERTConfig.tiny(), {}, ["riddles"])


def test_a_task_beyond_the_twelve_begins_with_whoever_has_learned_the_others(riddle):
    grid = dict(at=Run("scratch", "multi"), gt=Run("scratch", "few", "group"),
                own=Run("at", "multi", {"own": ["G4", "riddle"], "few": ["vqa"]}))
    assert parent(Run("at", "finetune"), ["riddle"], grid) == "all" and parent(Run("gt", "few"), ["vqa", "riddle"], grid) == "G1"
    assert parent(Run("own", "finetune"), ["riddle"], grid) == "own"
    with pytest.raises(ValueError, match="riddle cannot begin with 'gt': 4 of its models"): parent(Run("gt", "few"), ["riddle"], grid)


@pytest.mark.parametrize("task, words", [("vqa", {"vqa", "gqa"}), ("poll", {"vqa", "gqa", "poll"})])
def test_a_model_speaks_only_the_words_that_it_has_learned(riddle, tmp_path, task, words):
    shared = toy.sources(tmp_path)
    shared = replace(shared, vocabularies=shared.vocabularies | {"poll": AnswerVocabulary(["red", "no", "yes"])})
    splits = toy.frames(shared)
    model = build_model(shared, "tiny")
    assert set(model.vocabularies) == {"vqa", "gqa"}
    examples = read_examples(Run("scratch", "multi"), splits | {"poll": splits["vqa"]}, shared)
    model = make_trainer(Run("scratch", "multi"), [task], 0, model, examples, TRAINING, tmp_path / "run", machine=toy.CPU).model
    assert set(model.assets.answers) == set(model.vocabularies) == words
    model.save_pretrained(tmp_path / "model")
    assert TwelveInOne.from_pretrained(tmp_path / "model").assets.answers == model.assets.answers


@pytest.mark.parametrize("seeds, verdict", [(1, "one seed"), (3, "holds")])
def test_a_task_beyond_the_twelve_has_a_table_and_a_claim_of_its_own(tmp_path, seeds, verdict):
    for run, right in (("vizwiz", .3), ("vizwiz_ft", .6)):
        metrics = {"vizwiz": {"accuracy": right, "unanswerable: F1": right / 2}}
        invent_run(tmp_path, run, {"vizwiz": ["vizwiz"]}, right, seeds, metrics=metrics)
    table, claim = task_table(Results(tmp_path), "vizwiz", MORE_ROWS), judge(Results(tmp_path), {}, BEYOND)
    assert table.score.tolist() == pytest.approx([30, 60]) and table["unanswerable: F1"].tolist() == pytest.approx([15, 30])
    assert table.difference.iloc[1] == pytest.approx(30) and table.seeds.tolist() == [seeds] * 2 and claim.verdict.tolist() == [verdict]
    assert judge(Results(tmp_path), {}).p.isna().all()


def test_a_task_that_nobody_has_run_is_a_column_of_dashes(tmp_path):
    shown = readable_task(task_table(Results(tmp_path), "vizwiz", MORE_ROWS))
    assert set(shown.to_numpy().ravel()) == {"–"} and judge(Results(tmp_path), {}, BEYOND).verdict.tolist() == ["not resolved"]


# --- the reports of runs, damaged

@pytest.fixture
def reports(tmp_path):
    invent_run(tmp_path, "at", {"all": ["vqa", "nlvr2"]}, .5, seeds=2, items=20)
    assert Results(tmp_path).row("at")
    return tmp_path


@pytest.mark.parametrize("part", ["runs/at.json", "scores/at.json", "metrics/at.json", "items/at.csv"])
@pytest.mark.parametrize("content", [
    b"", b"{", b"\xff\xfe\x00", b"[1]\n", b'{"trained": 3, "all": {"seed0": {"vqa": "x"}}}', b"\x89PNG\r\n\x1a\n"])
def test_a_report_that_is_none_is_named_with_what_to_do(reports, part, content):
    (reports / part).write_bytes(content)
    with pytest.raises(ValueError) as error: Results(reports)
    assert str(reports / part) in str(error.value) and "take it back from git" in str(error.value) and "\n" not in str(error.value).strip()


@pytest.mark.parametrize("change", [
    lambda lines: lines[:-1], lambda lines: [*lines, lines[-1]], lambda lines: [lines[0], *reversed(lines[1:])],
    lambda lines: [*lines[:3], lines[3].replace("vqa:2", "vqa:3"), *lines[4:]]], ids=["lost", "doubled", "out of order", "another picture"])
def test_a_line_of_items_that_is_not_where_it_was_is_noticed(reports, change):
    path = reports / "items/at.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(ValueError, match="items/at.csv: 4[012] lines, which are not those that were written"): Results(reports)


def test_lines_may_end_as_on_windows(reports):
    path = reports / "items/at.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Results(reports).row("at")


@pytest.mark.parametrize("text", ["model,seed,task\n", "model,task,images,kind,seed0\nall,vqa,a,-,x\n", "a\n1\n",
                                  "model,task,images,kind,seed0\nall,vqa,a,-,101\n", "model,task,images,kind\nall,vqa,a,-\n"])
def test_item_scores_that_are_none_are_named(tmp_path, text):
    (tmp_path / "at.csv").write_text(text)
    if text == "model,seed,task\n": assert read_item_scores(tmp_path / "at.csv") == {}
    else:
        with pytest.raises(ValueError, match="at.csv: no scores of test items"): read_item_scores(tmp_path / "at.csv")


@pytest.mark.parametrize("lines", ["all,vqa,a,-,1,\nall,vqa,b,-,,\n", "all,vqa,a,-,,\ng1,gqa,b,-,1,1\n"])
def test_items_without_a_score_are_named(tmp_path, lines):
    (tmp_path / "at.csv").write_text(f"model,task,images,kind,seed0,seed1\n{lines}")
    with pytest.raises(ValueError, match="at.csv: all and vqa: items without a score; take it back"): read_item_scores(tmp_path / "at.csv")


@pytest.mark.parametrize("header, line", [("model,task,images,kind,seed0", "all,vqa,a,-,1" * 1000), ("a," * 5000, "1," * 5000),
                                          ("model,task,images,kind,seed0", "all,vqa,a,-,1,2")])
def test_a_line_without_an_end_is_named_at_once(tmp_path, header, line):
    (tmp_path / "at.csv").write_text(f"{header}\n{line}\n")
    began = time.process_time()
    with pytest.raises(ValueError, match="at.csv: cannot be read .lines of"): read_item_scores(tmp_path / "at.csv")
    assert time.process_time() - began < 1
