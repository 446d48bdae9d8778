"Bootstrap intervals, paired comparisons and adjusted p-values against drawing one by one, against scipy, and their properties."
import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from fuzz import tries
from vl12in1.study.statistics import (Comparison, bootstrap_interval, bootstrap_means, difference, estimate, holm,
                                      verdict)

SCORES = [0., .3, .6, .9, 1.]
values = st.lists(st.sampled_from(SCORES), min_size=1, max_size=60)
seeded = st.tuples(st.integers(1, 4), st.integers(1, 20)).flatmap(lambda shape: st.lists(
    st.lists(st.sampled_from(SCORES), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]))
p_values = st.lists(st.none() | st.floats(0, 1), max_size=12)
few = tries(40)


def vqa(seeds, items, seed=0):
    return np.random.default_rng(seed).choice(SCORES, size=(seeds, items))


# --- one cell

@given(values, st.floats(.5, .99))
def test_the_interval_holds_the_mean_and_stays_within_the_scores(scores, level):
    low, high = bootstrap_interval(scores, level, samples=400)
    assert min(scores) - 1e-9 <= low <= np.mean(scores) + 1e-9 and np.mean(scores) - 1e-9 <= high <= max(scores) + 1e-9


@given(values)
def test_more_confidence_is_wider(scores):
    narrow, wide = bootstrap_interval(scores, .8, samples=200), bootstrap_interval(scores, .99, samples=200)
    assert wide[0] <= narrow[0] and narrow[1] <= wide[1]


@given(seeded, st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(cell, random):
    order = random.sample(range(len(cell[0])), len(cell[0]))
    assert bootstrap_interval(cell, samples=50) == bootstrap_interval(np.array(cell)[:, order], samples=50)


@pytest.mark.parametrize("scores", [
    np.repeat([0., 1.], [120, 280]), np.tile(SCORES, 60), np.random.default_rng(5).random(300)])
def test_resampling_counts_is_resampling_items(scores):
    picks = np.random.default_rng(1).integers(len(scores), size=(4000, len(scores)))
    expected = np.quantile(scores[picks].mean(axis=1), [.025, .25, .75, .975])
    found = np.quantile(bootstrap_means(scores, samples=4000), [.025, .25, .75, .975])
    assert found == pytest.approx(expected, abs=.15 * scores.std() / np.sqrt(len(scores)))


def test_resampling_seeds_and_items_is_drawing_rows_and_columns():
    cell, rng = vqa(3, 200) * [[1.], [.9], [.8]], np.random.default_rng(1)
    drawn = [cell[np.ix_(rng.integers(3, size=3), rng.integers(200, size=200))].mean() for _ in range(4000)]
    found = bootstrap_means(cell, samples=4000)
    assert np.quantile(found, [.025, .25, .75, .975]) == pytest.approx(np.quantile(drawn, [.025, .25, .75, .975]), abs=.006)


def test_the_interval_is_that_of_scipy():
    scores = vqa(1, 300)[0]
    theirs = stats.bootstrap([scores], np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    assert bootstrap_interval(scores, samples=4000) == pytest.approx(tuple(theirs), abs=.004)


def test_the_seed_decides():
    scores = np.repeat([0., 1.], [40, 60])
    assert bootstrap_interval(scores, seed=1) == bootstrap_interval(scores, seed=1)
    assert bootstrap_means(scores, seed=1).tolist() != bootstrap_means(scores, seed=2).tolist()


def test_one_seed_is_a_row_of_items():
    cell = vqa(1, 80)
    assert bootstrap_means(cell).tolist() == bootstrap_means(cell[0]).tolist()


def test_equal_seeds_add_nothing():
    row = vqa(1, 80)[0]
    assert bootstrap_interval([row] * 4) == pytest.approx(bootstrap_interval(row))


def test_three_seeds_without_noise_reach_from_worst_to_best():
    assert bootstrap_interval(np.repeat([[.5], [.55], [.7]], 40, axis=1)) == pytest.approx((.5, .7))


@pytest.mark.parametrize("samples", [1, 99, 100, 101, 1000])
def test_as_many_samples_as_asked_for(samples):
    assert bootstrap_means(vqa(2, 30), samples).shape == (samples,)


def test_half_a_million_items_are_no_trouble():
    low, high = bootstrap_interval(np.arange(450_000) % 5 < 3)
    assert .598 < low < .6 < high < .602


@pytest.mark.parametrize("scores", [[], [[]], [float("nan")], [1, float("inf")], [[[0, 1]]], 1.])
def test_what_has_no_mean_is_refused(scores):
    with pytest.raises(ValueError, match="finite number per test item"): bootstrap_interval(scores)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_levels_outside_are_refused(level):
    with pytest.raises(ValueError, match="level"): bootstrap_interval([0, 1], level)
    with pytest.raises(ValueError, match="level"): difference([[0, 1]], [[1, 1]], level)


# --- means over tasks

def test_an_estimate_of_one_task_is_its_interval():
    cell = vqa(3, 90)
    found = estimate(cell)
    assert found == estimate([cell]) == (cell.mean(), *bootstrap_interval(cell), 3)


def test_tasks_count_the_same_whatever_their_size():
    assert estimate([np.ones(10), np.zeros((2, 1000))])[:] == (.5, .5, .5, 1)


def test_tasks_with_separate_items_are_surer_together():
    width = lambda found: found.high - found.low
    assert width(estimate([vqa(1, 200, k) for k in range(4)])) == pytest.approx(width(estimate(vqa(1, 800))), rel=.12)


def test_tasks_share_their_seeds():
    one = np.repeat([[.5], [.55], [.6], [.7]], 40, axis=1)
    assert estimate([one] * 5)[1:3] == pytest.approx(estimate(one)[1:3])
    upside_down = [one, 1 - one]
    assert estimate(upside_down)[:3] == pytest.approx((.5, .5, .5))


@pytest.mark.parametrize("factor", [100, .01])
def test_the_unit_is_that_of_the_scores(factor):
    cells, others = [vqa(3, 50), vqa(2, 70, 1)], [vqa(1, 50, 2), vqa(2, 70, 3)]
    scaled = lambda cells: [factor * cell for cell in cells]
    assert estimate(scaled(cells))[:3] == pytest.approx([factor * value for value in estimate(cells)[:3]])
    ours, theirs = difference(cells, others), difference(scaled(cells), scaled(others))
    assert theirs[:3] == pytest.approx([factor * value for value in ours[:3]]) and theirs.p == pytest.approx(ours.p)


def test_no_tasks_are_no_estimate():
    with pytest.raises(ValueError, match="at least one task"): estimate([])


# --- differences

def test_p_is_that_of_every_flip():
    "All 2^10 flips, counted by scipy."
    rng = np.random.default_rng(3)
    a, b = rng.choice(SCORES, size=(2, 10))
    exact = stats.permutation_test([a, b], lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
                                   vectorized=True, n_resamples=np.inf)
    assert difference(a, b, flips=40_000).p == pytest.approx(exact.pvalue, abs=.01)


def test_p_over_tasks_is_that_of_flipping_one_by_one():
    rng = np.random.default_rng(4)
    a, b = [vqa(3, 40, 5), vqa(2, 90, 6)], [vqa(2, 40, 7) * .9, vqa(1, 90, 8) * .95]
    items = [x.mean(0) - y.mean(0) for x, y in zip(a, b)]
    flipped = [np.mean([(item * rng.choice([-1, 1], item.size)).mean() for item in items]) for _ in range(4000)]
    expected = np.mean(np.abs(flipped) >= abs(np.mean([item.mean() for item in items])))
    assert difference(a, b).p == pytest.approx(expected, abs=.03)


def test_the_interval_of_a_difference_is_that_of_scipy():
    a, b = vqa(2, 300)
    theirs = stats.bootstrap([a, b], lambda x, y, axis: np.mean(x - y, axis=axis), paired=True, n_resamples=4000,
                             method="percentile", rng=0).confidence_interval
    assert difference(a, b, samples=4000)[1:3] == pytest.approx(tuple(theirs), abs=.006)


def test_seeds_of_the_two_are_drawn_apart():
    "Two seeds of a, two of b, items without noise: four means on either side, nine differences."
    a, b = np.repeat([[.5], [.7]], 20, axis=1), np.repeat([[.4], [.5]], 20, axis=1)
    assert difference(a, b, level=.99)[:3] == pytest.approx((.15, 0., .3))


@few
@given(values, st.randoms(use_true_random=False))
def test_turned_round_the_sign_turns(scores, random):
    other = random.sample(scores, len(scores))
    forth, back = difference([scores], [other], samples=50, flips=400), difference([other], [scores], samples=50, flips=400)
    assert back.mean == pytest.approx(-forth.mean) and back.p == pytest.approx(forth.p, abs=.15)
    assert 1 / 401 <= forth.p <= 1


@few
@given(seeded)
def test_the_same_does_not_differ(cell):
    found = difference([cell], [cell], samples=50, flips=50)
    assert found.mean == 0 and found.low <= 0 <= found.high and found.p == 1


def test_a_shift_of_every_item_is_beyond_doubt():
    found = difference([vqa(1, 30) + .1], [vqa(1, 30)])
    assert found[:3] == pytest.approx((.1, .1, .1)) and found.p == pytest.approx(1 / 10_001)


def test_a_million_comparisons_of_items_are_no_trouble():
    a, b = [vqa(1, 450_000), vqa(2, 100_000)], [vqa(2, 450_000, 1), vqa(1, 100_000, 1)]
    found = difference(a, b)
    assert found.high - found.low < .02 and 0 < found.p <= 1


@pytest.mark.parametrize("a, b, message", [
    ([[0, 1]], [[0, 1], [0, 1]], "1 tasks against 2"), ([[0, 1]], [[0, 1, 1]], "task 0: 2 items against 3"),
    ([], [], "at least one task"), ([[0, 1], []], [[0, 1], []], "at least one item")])
def test_what_cannot_be_compared_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message): difference(a, b)


# --- many claims

@pytest.mark.parametrize("ps, expected", [
    ([.01, .02, .03], [.03, .04, .04]), ([.03, .02, .01], [.04, .04, .03]), ([.01, .01, .01], [.03, .03, .03]),
    ([.5, .9], [1, 1]), ([.04], [.04]), ([None, .04, None], [None, .04, None]), ([], []),
    ([.01, .04, .03, .005], [.03, .06, .06, .02])])
def test_holm_by_hand(ps, expected):
    assert holm(ps) == [p if p is None else pytest.approx(p) for p in expected]


@given(p_values)
def test_holm_keeps_order_and_lies_between_nothing_and_bonferroni(ps):
    adjusted, count = holm(ps), sum(p is not None for p in ps)
    assert [p is None for p in adjusted] == [p is None for p in ps]
    pairs = sorted((p, after) for p, after in zip(ps, adjusted) if p is not None)
    assert all(p <= after <= min(1, count * p) for p, after in pairs)
    assert [after for _, after in pairs] == sorted(after for _, after in pairs)


@given(p_values, st.randoms(use_true_random=False))
def test_holm_does_not_care_for_order(ps, random):
    order = random.sample(range(len(ps)), len(ps))
    assert [holm(ps)[i] for i in order] == holm([ps[i] for i in order])


@pytest.mark.parametrize("p", [-.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match="between 0 and 1"): holm([.5, p])


@pytest.mark.parametrize("comparison, p, direction, expected", [
    (Comparison(.1, .05, .2, .001), .01, 1, "holds"), (Comparison(.1, .05, .2, .001), .01, -1, "does not hold"),
    (Comparison(-.1, -.2, -.05, .001), .05, -1, "holds"), (Comparison(-.1, -.2, -.05, .001), .05, 1, "does not hold"),
    (Comparison(.1, .05, .2, .01), .06, 1, "not resolved"), (Comparison(.1, -.05, .2, .001), .01, 1, "not resolved"),
    (None, None, 1, "not resolved")])
def test_verdicts(comparison, p, direction, expected):
    assert verdict(comparison, p, direction) == expected
