"Schedules: parity of stop-and-go with the published controller, counters, and states that survive a restart."
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from vl12in1.training.schedules import (
    BackToBest, Curriculum, DynamicStopAndGo, Proportional, RoundRobin, StopAndGo, UniMax, capped_shares, linear_warmup, mixing_weights)

GOLDEN = json.loads((Path(__file__).parent / "parity" / "dsg_golden.json").read_text())
TASKS = ("vqa", "refcoco", "nlvr2")
SIZES = dict(vqa=600, refcoco=300, nlvr2=100)
scores = st.lists(st.integers(0, 30).map(lambda n: n / 30), max_size=30)
settings = st.fixed_dictionaries(dict(patience=st.integers(0, 3), cooldown=st.integers(0, 3)))


def stops(controller, scores): return [controller.observe(score) for score in scores]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["kind"])
def test_stop_and_go_is_the_published_one(case):
    assert stops(StopAndGo(), case["scores"]) == case["stopped_after"]


def test_defaults_are_the_published_ones():
    assert StopAndGo() == StopAndGo(patience=1, threshold=.001, continue_threshold=.005, cooldown=1)


@given(scores, settings)
def test_each_transition_has_its_reason(scores, settings):
    controller, best, was = StopAndGo(**settings), None, False
    for score in scores:
        stopped = controller.observe(score)
        if was and not stopped: assert score < best * .995
        if stopped and not was: assert score <= best * 1.001
        best, was = controller.best, stopped
        assert 0 <= controller.bad <= settings["patience"] and 0 <= controller.cooling <= settings["cooldown"]


@given(st.lists(st.floats(0, 1), max_size=30))
def test_a_task_that_always_improves_never_stops(gains):
    score, controller = .1, StopAndGo()
    for gain in gains:
        assert not controller.observe(score)
        score *= 1.002 + gain


@pytest.mark.parametrize("patience", [0, 1, 2, 3])
def test_patience_counts_validations_in_a_row(patience):
    stopped = stops(StopAndGo(patience=patience), [.5] * 6)
    assert stopped.index(True) == patience + 1


@pytest.mark.parametrize("cooldown, ignored", [(0, 0), (1, 1), (3, 3)])
def test_cooldown_ignores_bad_validations_after_going_again(cooldown, ignored):
    controller = StopAndGo(cooldown=cooldown)
    while not controller.observe(.5): pass
    while controller.observe(.4): pass
    flat = stops(controller, [.4] * 10)
    assert flat.index(True) == ignored + 1


def test_the_thresholds_themselves_do_not_count():
    assert stops(StopAndGo(threshold=.5, patience=0), [.5, .75]) == [False, True]
    assert stops(StopAndGo(threshold=.5, patience=0), [.5, .76]) == [False, False]
    held = StopAndGo(patience=0, cooldown=9, continue_threshold=.5)
    assert stops(held, [.5, .5, .25, .24]) == [False, True, True, False]


@pytest.mark.parametrize("score", [float("nan"), -.01])
def test_scores_that_cannot_be_compared_are_refused(score):
    with pytest.raises(ValueError, match="score"): StopAndGo().observe(score)


def test_a_score_of_zero_is_a_score():
    assert stops(StopAndGo(), [0, 0, 0, .1]) == [False, False, True, True]


@given(scores, scores)
def test_a_controller_restored_midway_goes_on_alike(before, after):
    controller, again = StopAndGo(), StopAndGo()
    stops(controller, before)
    again.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert again == controller
    assert stops(again, after) == stops(controller, after)
    assert again == controller


def test_round_robin_visits_every_task_once():
    schedule = RoundRobin(list(TASKS))
    assert all(schedule.tasks_at(i) == TASKS for i in range(5))
    schedule.observe("vqa", .1)
    assert schedule.state_dict() == {} and not schedule.stopped("vqa")


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12), st.floats(.2, 50))
def test_mixing_weights_are_probabilities_in_the_order_of_sizes(sizes, temperature):
    weights = mixing_weights(sizes, temperature)
    assert weights.sum() == pytest.approx(1)
    assert (np.diff(weights[np.argsort(sizes, kind="stable")]) >= 0).all()


def test_temperature_runs_from_proportional_to_equal():
    assert mixing_weights([100, 1], 1) == pytest.approx([100 / 101, 1 / 101])
    assert mixing_weights([100, 1], 2) == pytest.approx([10 / 11, 1 / 11])
    assert mixing_weights([100, 1], 1e9) == pytest.approx([.5, .5])


@pytest.mark.parametrize("sizes, temperature, match", [
    ([1, 0], 1, "examples"), ([1, 1], 0, "temperature"), ([1, 1], -1, "temperature")])
def test_mixing_refuses_what_has_no_meaning(sizes, temperature, match):
    with pytest.raises(ValueError, match=match): mixing_weights(sizes, temperature)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), st.integers(0, 3))
def test_draws_depend_on_seed_and_iteration_alone(iterations, seed):
    first, second = (Proportional(TASKS, SIZES, seed=seed) for _ in range(2))
    drawn = {i: first.tasks_at(i) for i in iterations}
    assert all(second.tasks_at(i) == drawn[i] for i in reversed(iterations))
    assert all(len(tasks) == len(TASKS) and set(tasks) <= set(TASKS) for tasks in drawn.values())


def test_shares_and_seeds_of_proportional_draws():
    schedule, other = (Proportional(TASKS, SIZES, temperature=2, seed=seed) for seed in (0, 1))
    counts = Counter(task for i in range(2000) for task in schedule.tasks_at(i))
    shares = [counts[task] / 6000 for task in TASKS]
    assert shares == pytest.approx(mixing_weights([600, 300, 100], 2), abs=.02)
    assert [schedule.tasks_at(i) for i in range(20)] != [other.tasks_at(i) for i in range(20)]
    assert any(schedule.tasks_at(i) != schedule.tasks_at(i + 1) for i in (0, 2, 4, 6))


def test_sizes_are_looked_up_by_name():
    assert Proportional(("nlvr2", "vqa"), SIZES).weights == pytest.approx([1 / 7, 6 / 7])
    with pytest.raises(KeyError): Proportional(("gqa",), SIZES)


def held_back(schedule, task):
    for score in (.5, .5, .5): schedule.observe(task, score)
    return schedule


@pytest.mark.parametrize("gap", [1, 2, 4, 7])
def test_a_stopped_task_steps_at_every_gap(gap):
    schedule = held_back(DynamicStopAndGo(RoundRobin(TASKS), gap=gap), "refcoco")
    counts = Counter(task for i in range(28 * gap) for task in schedule.tasks_at(i))
    assert counts == {"vqa": 28 * gap, "refcoco": 28, "nlvr2": 28 * gap}
    assert schedule.stopped("refcoco") and not schedule.stopped("vqa")


def test_if_all_are_stopped_only_every_fourth_iteration_has_steps():
    schedule = DynamicStopAndGo(RoundRobin(TASKS))
    for task in TASKS: held_back(schedule, task)
    assert [schedule.tasks_at(i) for i in range(5)] == [TASKS, (), (), (), TASKS]


def test_stop_and_go_around_proportional_drops_draws_of_the_stopped_task_only():
    inner = Proportional(TASKS, SIZES)
    schedule = held_back(DynamicStopAndGo(Proportional(TASKS, SIZES)), "vqa")
    for i in range(40):
        drawn = inner.tasks_at(i)
        assert schedule.tasks_at(i) == (drawn if i % 4 == 0 else tuple(task for task in drawn if task != "vqa"))


@pytest.mark.parametrize("gap", [0, -1])
def test_a_gap_below_one_is_refused(gap):
    with pytest.raises(ValueError, match="gap"): DynamicStopAndGo(RoundRobin(TASKS), gap=gap)


def test_settings_reach_the_controllers():
    schedule = DynamicStopAndGo(RoundRobin(TASKS), patience=0)
    schedule.observe("vqa", .5)
    schedule.observe("vqa", .5)
    assert schedule.stopped("vqa")
    with pytest.raises(TypeError): DynamicStopAndGo(RoundRobin(TASKS), patients=0)


@pytest.mark.parametrize("schedule", [
    RoundRobin(TASKS), Proportional(TASKS, SIZES), DynamicStopAndGo(RoundRobin(TASKS)), BackToBest(TASKS)])
def test_scores_of_strangers_are_refused(schedule):
    with pytest.raises(ValueError, match="'vcr' is not in this schedule"): schedule.observe("vcr", .5)


class Alternating(RoundRobin):
    "A schedule with a state of its own: every score changes whose turn is first."

    def __init__(self, tasks):
        super().__init__(tasks)
        self.turn = 0

    def tasks_at(self, iteration): return self.tasks[self.turn % 3:] + self.tasks[:self.turn % 3]
    def observe(self, task, score): self.turn += 1
    def state_dict(self): return {"turn": self.turn}
    def load_state_dict(self, state): self.turn = state["turn"]


events = st.lists(st.tuples(st.sampled_from(TASKS), st.integers(0, 30).map(lambda n: n / 30)), max_size=40)


@given(events, events, st.sampled_from([RoundRobin, Alternating, lambda tasks: Proportional(tasks, SIZES)]))
def test_a_schedule_restored_midway_equals_the_uninterrupted_one(before, after, inner):
    schedule, again = DynamicStopAndGo(inner(TASKS)), DynamicStopAndGo(inner(TASKS))
    for task, score in before: schedule.observe(task, score)
    again.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    for i, (task, score) in enumerate(after):
        for either in (schedule, again): either.observe(task, score)
        assert again.tasks_at(i) == schedule.tasks_at(i)
    assert again.state_dict() == schedule.state_dict()


@given(st.integers(1, 500), st.floats(0, 1))
def test_warm_up_rises_then_falls_within_bounds(total, warmup):
    factors = [linear_warmup(step, total, warmup) for step in range(total + 1)]
    top = int(np.argmax(factors))
    assert all(0 <= factor <= 1 for factor in factors) and (factors[-1] == 0 or warmup * total == total)
    assert factors[:top] == sorted(factors[:top]) and factors[top:] == sorted(factors[top:], reverse=True)


@pytest.mark.parametrize("step, factor", [(0, 0), (10, .5), (20, 1), (110, .5), (200, 0), (250, 0)])
def test_warm_up_is_the_published_one(step, factor):
    assert linear_warmup(step, 200) == pytest.approx(factor)


# --- curricula

@given(st.integers(1, 12), st.integers(1, 60), st.floats(.05, 1))
def test_a_curriculum_makes_as_many_steps_as_round_robin_and_lets_tasks_in_by_order(n, iterations, ramp):
    tasks = [str(i) for i in range(n)]
    schedule, seen = Curriculum(tasks, iterations, ramp), []
    for i in range(iterations):
        turn = schedule.tasks_at(i)
        assert len(turn) == n and turn == Curriculum(tasks, iterations, ramp).tasks_at(i)
        entered = sorted(map(int, set(turn) | set(seen)))
        assert entered == list(range(len(entered))) and len(entered) >= len(seen)
        assert max(map(turn.count, turn)) - min(turn.count(task) for task in set(turn)) <= 1
        seen = [str(task) for task in entered]
    assert schedule.tasks_at(iterations) and set(schedule.tasks_at(iterations)) == set(tasks)


# --- a cap on passes

@given(st.lists(st.integers(1, 1000), min_size=1, max_size=12), st.floats(.1, 20), st.integers(1, 10_000))
def test_no_task_is_repeated_more_than_allowed_and_the_rest_is_shared_evenly(sizes, passes, steps):
    taken = capped_shares(sizes, steps, passes) * steps
    assert taken.sum() == pytest.approx(steps)
    if steps > passes * sum(sizes):  # no room: all are exceeded alike
        assert taken / sizes == pytest.approx(np.full(len(sizes), steps / sum(sizes)))
        return
    caps = passes * np.array(sizes)
    assert (taken <= caps * (1 + 1e-9)).all()
    below = taken[taken < caps * (1 - 1e-9)]
    assert below == pytest.approx(np.full(len(below), taken.max()))


@pytest.mark.parametrize("sizes, passes, match", [([1, 0], 1, "examples"), ([1], 0, "passes 0"), ([1], -1, "passes -1")])
def test_a_cap_that_means_nothing_is_refused(sizes, passes, match):
    with pytest.raises(ValueError, match=match): capped_shares(sizes, 10, passes)


def test_draws_under_a_cap_keep_to_it_in_the_long_run():
    schedule = UniMax(TASKS, dict(vqa=1000, refcoco=100, nlvr2=25), steps=1200, passes=4, seed=3)
    counts = Counter(task for i in range(400) for task in schedule.tasks_at(i))
    assert [counts[task] for task in TASKS] == pytest.approx([700, 400, 100], abs=60)


# --- back to where it was best

def told(schedule, scores):
    "What training does after each score of the first task; another one always improves."
    for number, score in enumerate(scores):
        schedule.observe("vqa", score)
        schedule.observe("nlvr2", .1 + .01 * number)
        yield schedule.keeps("vqa"), schedule.goes_back()


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_a_task_is_left_out_when_it_has_not_improved_for_too_long(patience):
    schedule = BackToBest(("vqa", "nlvr2"), patience)
    found = list(told(schedule, [.5, .6] + [.55] * (patience + 1)))
    assert [kept for kept, _ in found] == [True, True] + [False] * (patience + 1)
    assert [went for _, went in found] == [None] * (patience + 2) + ["vqa"]
    assert schedule.tasks_at(0) == ("nlvr2",) and schedule.stopped("vqa") and not schedule.stopped("nlvr2")
    schedule.observe("vqa", .9)
    assert schedule.tasks_at(1) == ("nlvr2",) and not schedule.keeps("vqa") and schedule.goes_back() is None


def test_after_going_back_the_others_are_judged_anew():
    schedule = BackToBest(TASKS, patience=0)
    for task in TASKS: schedule.observe(task, .5)
    for task in TASKS: schedule.observe(task, .4)
    assert [schedule.goes_back() for _ in range(3)] == ["vqa", None, None]
    schedule.observe("nlvr2", .3)
    assert schedule.keeps("nlvr2")


def test_when_all_have_over_fitted_nothing_steps():
    schedule = BackToBest(("vqa",), patience=0)
    for score in (.5, .4): schedule.observe("vqa", score)
    assert schedule.goes_back() == "vqa" and schedule.tasks_at(5) == ()


@given(events, events)
def test_one_restored_midway_goes_back_alike(before, after):
    schedule, again = BackToBest(TASKS, patience=1), BackToBest(TASKS, patience=1)
    for task, score in before:
        schedule.observe(task, score)
        schedule.goes_back()
    again.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    for task, score in after:
        for either in (schedule, again): either.observe(task, score)
        assert schedule.goes_back() == again.goes_back() and schedule.tasks_at(0) == again.tasks_at(0)
    assert again.state_dict() == schedule.state_dict()
