"Intervals, comparisons and adjusted p-values against scipy, against drawing pictures and seeds anew, and their properties."
import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from vl12in1.study.simulation import seed_deviation, word_kept
from vl12in1.study.statistics import Cell, Comparison, difference, estimate, holm, seed_variances, verdict

SCORES = [0., .3, .6, .9, 1.]
shapes = st.tuples(st.integers(1, 4), st.integers(2, 20))
seeded = shapes.flatmap(lambda shape: st.lists(
    st.lists(st.sampled_from(SCORES), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]))
p_values = st.lists(st.none() | st.floats(0, 1), max_size=12)


def vqa(seeds, items, seed=0, a_picture=1):
    "Random scores of `seeds` models on items of which `a_picture` each share a picture."
    scores = np.random.default_rng(seed).choice(SCORES, size=(seeds, items))
    return Cell(scores, np.arange(items) // a_picture)


def width(interval): return interval.high - interval.low


# --- one recipe

@given(seeded, st.floats(.5, .99))
def test_the_interval_lies_around_the_mean(scores, level):
    one = estimate(Cell(scores), level)
    assert one.mean == pytest.approx(np.mean(scores))
    assert one.mean - one.low == pytest.approx(one.high - one.mean, abs=1e-12)


@given(seeded)
def test_more_confidence_is_wider(scores):
    assert width(estimate(Cell(scores), .8)) <= width(estimate(Cell(scores), .99))


@given(seeded, st.randoms(use_true_random=False))
def test_the_order_of_items_and_seeds_does_not_matter(scores, random):
    items, seeds = (random.sample(range(n), n) for n in (len(scores[0]), len(scores)))
    mixed = Cell(np.array(scores)[seeds][:, items], np.array(items) % 2)
    assert estimate(mixed) == pytest.approx(estimate(Cell(scores, np.arange(len(items)) % 2)))


def test_one_seed_and_single_items_are_student_s_interval():
    scores = vqa(1, 300).scores[0]
    theirs = stats.t.interval(.95, 299, scores.mean(), stats.sem(scores))
    assert estimate(Cell(scores))[1:3] == pytest.approx(theirs)


def test_seeds_that_see_all_items_alike_are_student_s_interval():
    accuracy = np.array([.5, .6, .8])
    theirs = stats.t.interval(.95, 2, accuracy.mean(), stats.sem(accuracy))
    assert estimate(Cell(np.repeat(accuracy[:, None], 40, axis=1)))[1:3] == pytest.approx(theirs)


@pytest.mark.parametrize("a_picture", [1, 2, 10])
def test_the_variance_is_that_of_drawing_pictures(a_picture):
    rng = np.random.default_rng(a_picture)
    hard = np.repeat(rng.random(300 // a_picture), a_picture)
    cell = Cell(rng.random(300) < hard, np.arange(300) // a_picture)
    groups = cell.scores[0].reshape(-1, a_picture)
    drawn = groups[rng.integers(len(groups), size=(6000, len(groups)))].mean(axis=(1, 2))
    error = width(estimate(cell)) / (2 * stats.t.ppf(.975, len(groups) - 1))
    assert error == pytest.approx(drawn.std(), rel=.04)


def test_pictures_of_unequal_size_are_drawn_with_all_their_items():
    rng, sizes = np.random.default_rng(0), np.tile([1, 2, 9], 60)
    pictures = np.repeat(np.arange(180), sizes)
    scores = (rng.random(len(pictures)) < np.repeat(rng.random(180), sizes)).astype(float)
    sums = np.bincount(pictures, scores)
    draws = rng.integers(180, size=(6000, 180))
    drawn = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    assert width(estimate(Cell(scores, pictures))) / (2 * stats.t.ppf(.975, 179)) == pytest.approx(drawn.std(), rel=.06)


def test_tasks_that_ask_about_the_same_pictures_share_their_luck():
    one = vqa(1, 200)
    apart = [Cell(one.scores, [f"{task}:{key}" for key in one.pictures]) for task in range(4)]
    assert width(estimate([one] * 4)) == pytest.approx(width(estimate(one)))
    assert width(estimate(apart)) == pytest.approx(width(estimate(one)) / 2, rel=.02)


def test_every_task_counts_the_same():
    assert estimate([Cell(np.ones(10)), Cell(np.zeros((2, 1000)))]).mean == .5


def test_lucky_seeds_that_tasks_share_do_not_cancel():
    one = Cell(np.repeat([[.5], [.55], [.7]], 40, axis=1))
    assert estimate([one] * 5)[1:3] == pytest.approx(estimate(one)[1:3])
    upside_down = [one, Cell(1 - one.scores)]
    assert estimate(upside_down)[:3] == pytest.approx((.5, .5, .5))


def test_numbers_of_seeds_may_differ_between_tasks():
    cells = [vqa(3, 50, 1), vqa(3, 50, 2), vqa(5, 50, 3), vqa(1, 50, 4)]
    three = (cells[0].scores.mean(1) + cells[1].scores.mean(1)) / 4
    five = cells[2].scores.mean(1) / 4
    expected = [three.var(ddof=1) / 3, five.var(ddof=1) / 5]
    assert [part.value for part in seed_variances(cells)] == pytest.approx(expected)
    assert [part.freedom for part in seed_variances(cells)] == [2, 4]
    assert estimate(cells).seeds == 1


@given(st.lists(seeded, min_size=1, max_size=3), st.floats(.1, 10))
def test_the_unit_of_scores_does_not_matter(tables, factor):
    cells, scaled = [Cell(table) for table in tables], [Cell(factor * np.array(table)) for table in tables]
    assert estimate(scaled)[:3] == pytest.approx([factor * value for value in estimate(cells)[:3]])


def test_a_million_items_are_no_trouble():
    one = estimate(vqa(2, 450_000, a_picture=10))
    assert 0 < width(one) < .01


@pytest.mark.parametrize("scores", [[], [[]], [1., float("nan")], [float("inf")], [[[1.]]]])
def test_what_is_no_table_of_scores_is_refused(scores):
    with pytest.raises(ValueError, match="finite number per test item"): Cell(scores)


@pytest.mark.parametrize("level", [0, 1, 95, -1])
def test_a_level_is_a_fraction(level):
    with pytest.raises(ValueError, match="level"): estimate(vqa(1, 5), level)
    with pytest.raises(ValueError, match="level"): difference(vqa(1, 5), vqa(1, 5), level)


def test_one_picture_says_nothing_of_others():
    with pytest.raises(ValueError, match="all 3 items show one picture"): estimate(Cell([0, 1, 1], [7, 7, 7]))


def test_no_tasks_are_no_estimate():
    with pytest.raises(ValueError, match="at least one task"): estimate([])


# --- two recipes

def test_the_test_is_welch_s_where_only_seeds_count():
    ours, theirs = np.array([.5, .6, .55]), np.array([.4, .45, .5, .41, .43])
    a, b = (Cell(np.repeat(seeds[:, None], 10, axis=1)) for seeds in (ours, theirs))
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    change = difference(a, b)
    assert change.p == pytest.approx(expected.pvalue)
    assert change[1:3] == pytest.approx(tuple(expected.confidence_interval()))


def test_the_test_is_the_paired_one_where_only_items_count():
    a, b = vqa(1, 200, 1).scores[0], vqa(1, 200, 2).scores[0]
    expected = stats.ttest_rel(a, b)
    change = difference(Cell(np.tile(a, (2, 1))), Cell(np.tile(b, (2, 1))))
    assert change.p == pytest.approx(expected.pvalue)
    assert change[1:3] == pytest.approx(tuple(expected.confidence_interval()))


@given(seeded, st.integers(0, 9))
def test_turning_the_question_round_turns_the_sign(scores, seed):
    one, other = Cell(scores), vqa(2, len(scores[0]), seed)
    forth, back = difference(one, other), difference(other, one)
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert forth.p == back.p if forth.p is None else forth.p == pytest.approx(back.p)


@given(seeded)
def test_nothing_differs_from_itself(scores):
    change = difference(Cell(scores), Cell(scores))
    assert change.mean == 0 and change.p in (None, 1.) and (change.p is None) == (len(scores) == 1)


def test_a_difference_that_is_always_the_same_is_certain():
    change = difference(Cell(np.full((2, 30), .6)), Cell(np.full((2, 30), .5)))
    assert change[:4] == pytest.approx((.1, .1, .1, 0), abs=1e-9)


def test_p_and_interval_say_the_same():
    for seed in range(40):
        change = difference([vqa(3, 60, seed), vqa(3, 60, seed + 50)], [vqa(5, 60, seed + 100), vqa(5, 60, seed + 150)])
        assert (change.p <= .05) == (change.low > 0 or change.high < 0)


def test_four_in_five_differences_of_the_size_that_is_called_detectable_are_found():
    rng, changes = np.random.default_rng(0), []
    for _ in range(1500):
        a, b = (Cell(rng.normal(0, 1, (5, 1)) + np.zeros((5, 3))) for _ in range(2))
        changes.append(difference(a, b))
    size = np.mean([change.detectable for change in changes])
    assert np.mean([change.low + size > 0 for change in changes]) == pytest.approx(.8, abs=.04)


def test_p_is_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(1)
    def recipe(): return Cell(rng.normal(0, .1, (4, 1)) + rng.normal(0, .001, (4, 20)))
    ps = [difference(recipe(), recipe()).p for _ in range(600)]
    assert stats.kstest(ps, "uniform").pvalue > .01


@pytest.mark.parametrize("a, b, message", [
    ([vqa(1, 2)], [vqa(1, 2)] * 2, "1 tasks against 2"), ([vqa(1, 2)], [vqa(1, 3)], "task 0: 2 items against 3"),
    ([vqa(1, 4)], [vqa(1, 4, a_picture=2)], "the same items"), ([], [], "at least one task")])
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


@pytest.mark.parametrize("low, high, p, seeds, direction, expected", [
    (.05, .2, .01, 3, 1, "holds"), (.05, .2, .01, 3, -1, "does not hold"), (-.2, -.05, .05, 3, -1, "holds"),
    (-.2, -.05, .05, 3, 1, "does not hold"), (.05, .2, .06, 3, 1, "not resolved"), (.05, .2, None, 1, 1, "one seed"),
    (-.2, .05, None, 1, 1, "one seed")])
def test_verdicts(low, high, p, seeds, direction, expected):
    assert verdict(Comparison((low + high) / 2, low, high, p, seeds, .1), p, direction) == expected


def test_without_a_comparison_nothing_is_resolved():
    assert verdict(None, None) == "not resolved"


# --- invented studies

@pytest.mark.parametrize("seeds", [3, 5])
def test_at_the_deviation_of_real_seeds_intervals_and_verdicts_keep_their_word(seeds):
    kept = word_kept(seeds, spread=1.15, trials=400)
    assert kept["coverage"] >= .93 and kept["false verdicts"] <= .05


def test_one_seed_does_not():
    kept = word_kept(1, spread=1.15, trials=200)
    assert kept["coverage"] < .9 and kept["false verdicts"] > .1


def test_the_deviation_of_seeds_is_that_of_their_means_over_tasks():
    first, second = Cell([[1, 1, 1, 1], [0, 0, 1, 1]]), Cell([[1, 0], [1, 0], [0, 0]])  # means 1, .5 and .5, .5
    assert seed_deviation([first, second]) == pytest.approx(100 * np.std([.75, .5], ddof=1))
    assert seed_deviation([first, Cell([1, 0])]) is None
