"Who helps whom, foreseen: what a run recorded, rank correlations, and tables and figures with holes."
import json
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from vl12in1.study.affinity import (GROUPS_SHOWN, MODELS, affinity_figure, affinity_table, affinity_verdict, conflict_table, foreseen,
                                    gains, rank_correlation, ranks, read_cosines, readable_affinity, ruling, share_of_orders)
from vl12in1.study.plots import title_of
from vl12in1.study.relations import REPRESENTATIVES
from vl12in1.study.results import Results, invent_run
from vl12in1.tasks import TASKS

FOUR = list(REPRESENTATIVES.values())
PAIRS = {"+".join(groups): [REPRESENTATIVES[group] for group in groups] for groups in combinations(REPRESENTATIVES, 2)}
STRENGTH = {frozenset(tasks): place for place, tasks in enumerate(PAIRS.values())}


def recorded(folder, cosine, seeds=2, tasks=FOUR, iterations=(0, 25)):
    "Writes into the report of `at` what its seeds found: `cosine(tasks of a pair, seed, iteration)`."
    path = folder / "runs/at.json"
    report = json.loads(path.read_text())
    for model in report["trained"][:seeds]:
        found = {time: [cosine(frozenset(pair), model["seed"], time) for pair in combinations(tasks, 2)] for time in iterations}
        texts = {time: " ".join(f"{value:.3f}" for value in values) for time, values in found.items()}
        model["affinity"] = [dict(iteration=time, tasks=tasks, cosines=dict.fromkeys(GROUPS_SHOWN, text)) for time, text in texts.items()]
    path.write_text(json.dumps(report))
    return Results(folder)


def invented(folder, seeds=2, gain=.02, pairs=PAIRS):
    "A study in which a pair gains the more the later it comes."
    invent_run(folder, "st_clean", {task: [task] for task in TASKS}, .5, seeds=seeds, items=1000)
    invent_run(folder, "at", {"all": TASKS}, .5, seeds=seeds)
    if pairs: invent_run(folder, "pairs", pairs, lambda model, task: .5 + gain * STRENGTH[frozenset(PAIRS[model])], seeds=seeds, items=1000)
    return folder


def agreeing(pair, seed, time): return .1 * STRENGTH[pair] - .2


# --- what was recorded

def test_pairs_are_named_whatever_their_order(tmp_path):
    one = read_cosines(recorded(invented(tmp_path / "a"), agreeing))
    other = read_cosines(recorded(invented(tmp_path / "b"), agreeing, tasks=FOUR[::-1]))
    assert len(one) == len(other) == 2 * 2 * 6 * len(GROUPS_SHOWN)
    columns = ["seed", "iteration", "group", "pair", "cosine"]
    assert one.sort_values(columns).to_numpy().tolist() == other.sort_values(columns).to_numpy().tolist()


@pytest.mark.parametrize("text", ["0.1", "0.1 0.2 0.3 0.4 0.5 0.6 0.7", "0.1 0.2 0.3 0.4 0.5 much", ""])
def test_a_damaged_record_is_named(tmp_path, text):
    results = recorded(invented(tmp_path), agreeing)
    results.trained("at")[0]["affinity"][1]["cosines"]["all"] = text
    with pytest.raises(ValueError, match="^reports/runs/at.json: not one cosine for each pair of tasks; take it"): read_cosines(results)


def test_what_has_no_angle_is_left_out(tmp_path):
    lines = read_cosines(recorded(invented(tmp_path), lambda pair, seed, time: float("nan") if time else -.5))
    assert len(lines) == 2 * 6 * len(GROUPS_SHOWN) and set(lines.iteration) == {0}
    assert conflict_table(lines).conflict.tolist() == [1.] * len(GROUPS_SHOWN)


def test_conflict_is_the_share_below_zero(tmp_path):
    table = conflict_table(read_cosines(recorded(invented(tmp_path), agreeing)))
    assert table.conflict.to_numpy() == pytest.approx(2 / 6) and table.cosine.to_numpy() == pytest.approx(.05)


# --- ranks

@pytest.mark.parametrize("seed", range(5))
def test_ranks_and_their_correlation_are_those_of_scipy(seed):
    one, other = np.random.default_rng(seed).integers(0, 5, (2, 7))
    assert ranks(one).tolist() == rankdata(one).tolist()
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)


def test_values_that_are_all_the_same_have_no_correlation(): assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_the_share_of_orders_counts_every_order():
    one, other = [1, 2, 3, 4, 5], [2, 1, 3, 5, 4]
    every = [spearmanr(one, order).statistic for order in permutations(other)]
    seen = spearmanr(one, other).statistic
    high, low = (np.mean([sign * (value - seen) >= -1e-9 for value in every]) for sign in (1, -1))
    assert share_of_orders(one, other) == (high, low)


# --- beside gains

@pytest.mark.parametrize("sign, verdict", [(1, "holds"), (-1, "does not hold")])
def test_perfect_order_is_seen(tmp_path, sign, verdict):
    results = recorded(invented(tmp_path), lambda *place: sign * agreeing(*place))
    found = foreseen(read_cosines(results), gains(results, "pairs"), "all")
    assert found["correlation"] == pytest.approx(sign) and found["p" if sign > 0 else "opposite"] == pytest.approx(1 / 720)
    assert found["low"] <= found["correlation"] <= found["high"] and (found["models"], found["seeds"]) == (6, 2)
    assert affinity_verdict(affinity_table(results)) == verdict


def test_gains_are_fractions_of_what_a_task_scores_alone(tmp_path):
    results = Results(invented(tmp_path))
    found = gains(results, "pairs")
    assert list(found) == MODELS["pairs"] and gains(results, "triples") == {}
    (together, alone), _ = found["G3", "G4"]
    assert together.tolist() == [.6, .6] and alone.tolist() == [.5, .5]


@pytest.mark.parametrize("changed, verdict", [
    (dict(), "holds"), (dict(seeds=1), "one seed"), (dict(p=.051), "not resolved"), (dict(correlation=None), "not resolved"),
    (dict(correlation=-.9, p=1., opposite=.01), "does not hold"), (dict(correlation=-.9, opposite=.06), "not resolved"),
    (dict(correlation=float("nan")), "not resolved")])
def test_the_verdict(changed, verdict): assert ruling(dict(correlation=.9, p=.05, opposite=.9, seeds=2) | changed) == verdict


def test_with_one_seed_nothing_is_decided(tmp_path):
    table = affinity_table(recorded(invented(tmp_path, seeds=1), agreeing))
    assert affinity_verdict(table) == "one seed" and table.pairs_p["all"] == pytest.approx(1 / 720)


@pytest.mark.parametrize("pairs", [None, {}, {name: PAIRS[name] for name in list(PAIRS)[:2]}])
def test_few_pairs_are_no_correlation(tmp_path, pairs):
    results = recorded(invented(tmp_path, pairs=pairs), agreeing)
    table = affinity_table(results)
    shown = readable_affinity(table)
    assert affinity_verdict(table) == "not resolved" and set(shown["rank correlation, pairs"]) == set(shown["*p*, triples"]) == {"–"}
    assert shown["conflict, %"].tolist() == ["33.3"] * len(GROUPS_SHOWN)
    assert "no pairs are there" in title_of(affinity_figure(results, table))


@pytest.mark.parametrize("whole", [True, False])
def test_runs_that_recorded_nothing_are_read_as_before(tmp_path, whole):
    results = Results(invented(tmp_path)) if whole else Results(tmp_path)
    table = affinity_table(results)
    assert set(readable_affinity(table).to_numpy().ravel()) == {"–"} and affinity_verdict(table) == "not resolved"
    assert "nothing to show" in title_of(affinity_figure(results, table))


def test_the_figure_says_how_much_conflict_there_is(tmp_path):
    results = recorded(invented(tmp_path), agreeing)
    figure = affinity_figure(results, affinity_table(results))
    assert title_of(figure).startswith("Gradients of two tasks disagree in 33 % of cases")
    assert {text.get_text() for text in figure.axes[1].texts} == set(PAIRS) and len(figure.axes[0].get_lines()) == len(GROUPS_SHOWN) + 1
