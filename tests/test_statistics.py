"Bootstrap intervals against drawing items one by one, and their properties."
import numpy as np
import pytest
from hypothesis import given, strategies as st

from vl12in1.study.statistics import bootstrap_interval, bootstrap_means, mean_and_half_width

values = st.lists(st.sampled_from([0., .3, .6, .9, 1.]), min_size=1, max_size=60)


@given(values, st.floats(.5, .99))
def test_the_interval_holds_the_mean_and_stays_within_the_scores(scores, level):
    low, high = bootstrap_interval(scores, level, samples=400)
    assert min(scores) - 1e-9 <= low <= np.mean(scores) + 1e-9 and np.mean(scores) - 1e-9 <= high <= max(scores) + 1e-9


@given(values)
def test_more_confidence_is_wider(scores):
    narrow, wide = bootstrap_interval(scores, .8, samples=200), bootstrap_interval(scores, .99, samples=200)
    assert wide[0] <= narrow[0] and narrow[1] <= wide[1]


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(scores, random):
    assert bootstrap_interval(scores, samples=50) == bootstrap_interval(random.sample(scores, len(scores)), samples=50)


@pytest.mark.parametrize("scores", [
    np.repeat([0., 1.], [120, 280]), np.tile([0., .3, .6, .9, 1.], 60), np.random.default_rng(5).random(300)])
def test_resampling_counts_is_resampling_items(scores):
    picks = np.random.default_rng(1).integers(len(scores), size=(4000, len(scores)))
    expected = np.quantile(scores[picks].mean(axis=1), [.025, .25, .75, .975])
    found = np.quantile(bootstrap_means(scores, samples=4000), [.025, .25, .75, .975])
    assert found == pytest.approx(expected, abs=.15 * scores.std() / np.sqrt(len(scores)))


def test_the_seed_decides():
    scores = np.repeat([0., 1.], [40, 60])
    assert bootstrap_interval(scores, seed=1) == bootstrap_interval(scores, seed=1)
    assert bootstrap_means(scores, seed=1).tolist() != bootstrap_means(scores, seed=2).tolist()


def test_percent_is_a_hundred_times_the_fraction():
    scores = np.repeat([0., 1.], [40, 60])
    assert mean_and_half_width(100 * scores) == pytest.approx([100 * x for x in mean_and_half_width(scores)])


def test_half_width_is_the_normal_one_for_many_items():
    mean, half = mean_and_half_width(np.repeat([0., 1.], [4000, 6000]), samples=10_000)
    assert mean == pytest.approx(.6) and half == pytest.approx(1.96 * np.sqrt(.24 / 10_000), rel=.05)


def test_a_hundred_thousand_items_are_no_trouble():
    low, high = bootstrap_interval(np.arange(450_000) % 5 < 3)
    assert .598 < low < .6 < high < .602


@pytest.mark.parametrize("scores", [[], [float("nan")], [1, float("inf")], [[0, 1]], 1.])
def test_what_has_no_mean_is_refused(scores):
    with pytest.raises(ValueError, match="finite number per test item"): bootstrap_interval(scores)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_levels_outside_are_refused(level):
    with pytest.raises(ValueError, match="level"): bootstrap_interval([0, 1], level)
