"""Which tasks help each other: relative changes against plain ratios, and tables with holes."""
from itertools import combinations

import numpy as np
import pytest

from vl12in1.study.relations import (PARTNERS, REPRESENTATIVES, average_partner, changes, readable_relations, relations_table,
                                     relative, with_and_alone)
from vl12in1.study.results import Results
from vl12in1.study.statistics import Cell, difference, estimate, holm
from vl12in1.evaluation.records import write_item_scores, write_json

MODELS = {run: ["+".join(groups) for groups in combinations(REPRESENTATIVES, n)] for n, run in enumerate(PARTNERS, 2)}


def coin(p, n, seeds=1, seed=0):
    return (np.random.default_rng(seed).random((seeds, n)) < p).astype(float)


@pytest.fixture
def study(tmp_path):
    "Writes a study of 60 items per task, without some models or scores; returns its `Results`."
    def write(without=(), alone=.5):
        cells = {"st_clean": {(task, seed, task): coin(alone, 60, seed=10 * seed + k)[0]
                              for k, task in enumerate(REPRESENTATIVES.values()) for seed in range(2)}}
        for run, models in MODELS.items():
            cells[run] = {(model, seed, REPRESENTATIVES[group]): coin(.6, 60, seed=100 * seed + int(model[1] + group[1]))[0]
                          for model in models if model not in without for group in model.split("+") for seed in range(2)}
        for run, scores in cells.items():
            write_item_scores(tmp_path / f"items/{run}.csv", scores)
            write_json(tmp_path / f"runs/{run}.json", dict(data_name="coins", trained=[]))
        return Results(tmp_path)
    return write


# --- one change

def test_a_tenth_more_on_every_item_is_beyond_doubt():
    alone = coin(.6, 50) + .1
    assert relative([(Cell(1.1 * alone), Cell(alone))])[:3] == pytest.approx((.1, .1, .1))


@pytest.mark.parametrize("factor", [100, .01])
def test_the_unit_does_not_matter(factor):
    together, alone = coin(.7, 80, 2), coin(.6, 80, 2, seed=1)
    assert relative([(Cell(factor * together), Cell(factor * alone))]) == pytest.approx(relative([(Cell(together), Cell(alone))]))


def test_it_is_the_mean_of_ratios():
    pairs = [(Cell(coin(.7, 80)), Cell(coin(.6, 80, seed=1))), (Cell(coin(.3, 90)), Cell(coin(.2, 90, seed=1)))]
    assert relative(pairs).mean == pytest.approx(np.mean([together.mean / alone.mean - 1 for together, alone in pairs]))


def test_the_test_is_that_of_the_difference():
    together, alone = Cell(coin(.7, 80, 2)), Cell(coin(.6, 80, 2, seed=1))
    assert relative([(together, alone)]).p == pytest.approx(difference(together, alone).p)


@pytest.mark.parametrize("p", [.4, .55])
def test_the_interval_is_that_of_redrawn_ratios(p):
    luck, rng = np.random.default_rng(2).random(400), np.random.default_rng(3)
    together, alone = (np.where(rng.random(400) < .5, luck, rng.random(400)) < fraction for fraction in (p, .4))
    def draw():
        items = rng.integers(400, size=400)
        return together[items].mean() / alone[items].mean() - 1
    expected = np.quantile([draw() for _ in range(3000)], [.025, .975])
    found = relative([(Cell(together), Cell(alone))])
    assert found.high - found.low == pytest.approx(np.ptp(expected), rel=.08)
    assert found[1:3] == pytest.approx(expected, abs=.03)


def test_seeds_widen_the_interval_of_a_ratio():
    steady, unsteady = (Cell(np.array(accuracy)[:, None] + np.zeros((3, 50))) for accuracy in ([.6, .6, .6], [.5, .6, .7]))
    alone = Cell(np.full((3, 50), .5))
    assert relative([(steady, alone)])[:3] == pytest.approx((.2, .2, .2))
    half = (estimate(unsteady).high - estimate(unsteady).low) / 2
    assert relative([(unsteady, alone)])[:3] == pytest.approx((.2, .2 - half / .5, .2 + half / .5))


# --- cells

def test_a_partner_of_fewer_seeds_counts_as_far_as_it_goes():
    alone = Cell(coin(.5, 20))
    mean, _ = average_partner([(Cell(np.ones((3, 20))), alone), (Cell(np.zeros((2, 20))), alone)])
    assert mean.scores.shape == (2, 20) and (mean.scores == .5).all()


def test_nothing_right_alone_has_no_relative_change(study):
    results = study(alone=0)
    assert with_and_alone(results, "pairs", "G1", ("G2",)) is None
    assert set(changes(results, "pairs").values()) == {None}


def test_the_order_of_partners_does_not_matter(study):
    results = study()
    one, other = (with_and_alone(results, "triples", "G3", partners)[0] for partners in (("G1", "G4"), ("G4", "G1")))
    expected = results.cell("triples", "visual7w", "G1+G3+G4").scores
    assert (one.scores == other.scores).all() and (one.scores == expected).all()


# --- tables

def test_averages_gain_and_give(study):
    table = relations_table(study()).astype(float)
    for run, partners in PARTNERS.items():
        own = table[[f"with {'+'.join(each)}" for each in partners]]
        assert table[f"average of {run}"].iloc[:-1].tolist() == pytest.approx(own.iloc[:-1].mean(axis=1).tolist())
        assert own.loc["average"].tolist() == pytest.approx(own.iloc[:-1].mean().tolist())
        assert table.loc["average", f"average of {run}"] == pytest.approx(table[f"average of {run}"].iloc[:-1].mean())


def test_all_of_the_table_is_one_family(study):
    results = study()
    found = [*changes(results, "pairs").items(), *changes(results, "triples").items()]
    table = relations_table(results)
    for ((row, column), _), p in zip(found, holm([one.p for _, one in found]), strict=True):
        assert table.loc[row, f"{column}_p"] == p


def test_a_missing_model_takes_its_averages_with_it(study):
    shown = readable_relations(relations_table(study(without=["G1+G2"])))
    gaps = {(row, column) for row in shown.index for column in shown if shown.loc[row, column] == "–"}
    assert gaps == {("with G1", "Flickr30k retrieval (G2)"), ("with G2", "VQAv2 (G1)"),
                    *((row, "average") for row in ("with G1", "with G2")),
                    *(("average of pairs", column) for column in ("VQAv2 (G1)", "Flickr30k retrieval (G2)", "average"))}


def test_a_task_is_not_its_own_partner(study):
    shown = readable_relations(relations_table(study()))
    assert (shown == "").sum().tolist() == [4, 4, 4, 4, 0]
    assert not (shown == "–").any(axis=None)
