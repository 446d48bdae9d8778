"""Pictures: what is drawn, that nothing is too small to read, and that the same numbers give the same bytes."""
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from fuzz import tries
from vl12in1.study.figures import (data_curves, fraction_needed, history, learning_curves, levels, overlap_heatmap,
                                   relations_heatmap, resting, rests, stop_and_go, task_panels)
from vl12in1.study.relations import relations_table
from vl12in1.study.results import Results
from vl12in1.tasks import TASKS

few = tries(50)


def validations(stopped, task="vqa", every=10):
    at = every * np.arange(1, len(stopped) + 1)
    return pd.DataFrame(dict(iteration=at, task=task, steps=at, loss=0., score=.5, stopped=list(stopped)))


def scores(shift=0.):
    names = [name + end for name in (*TASKS, "average") for end in ("", "_low", "_high")]
    some = {name: [40., 50, 55, 60] for name in names if name.startswith(("vqa", "average"))}
    return pd.DataFrame(some, pd.Index([10, 25, 50, 100])).reindex(columns=names) + shift


@pytest.fixture
def figures(tmp_path):
    "One picture of each kind, by a function without arguments."
    run = pd.concat([validations([0, 1, 1, 0, 1, 0], task) for task in ("vqa", "nlvr2")])
    table = relations_table(Results(tmp_path)).astype(float).fillna(3.)
    matrix = pd.DataFrame(50., list(TASKS)[:3], list(TASKS)[:3])
    return [lambda: overlap_heatmap(matrix, "t"), lambda: relations_heatmap(table, "t"), lambda: stop_and_go(run, "t"),
            lambda: learning_curves({"a": run, "b": run}, "t"), lambda: data_curves({"a": scores(), "b": scores(5)}, "t")]


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, dpi=40, metadata={"Software": None})
    return file.getvalue()


def test_the_same_numbers_give_the_same_bytes(figures):
    for figure in figures: assert png(figure()) == png(figure())


def test_no_letter_is_too_small(figures):
    for figure in figures:
        assert min(text.get_fontsize() for text in figure().findobj(Text) if text.get_text()) >= 9


def test_nothing_known_is_no_crash(tmp_path):
    nothing = history(Results(tmp_path), "at")
    table = relations_table(Results(tmp_path))
    for figure in (learning_curves({"a": nothing}, "t"), stop_and_go(nothing, "t"), relations_heatmap(table, "t"),
                   data_curves({"a": scores() * np.nan}, "t")): assert png(figure)


# --- panels

@pytest.mark.parametrize("n, rows", [(1, 1), (4, 1), (5, 2), (12, 3)])
def test_every_column_has_a_scale(n, rows):
    figure = Figure()
    panels = task_panels(figure, list(TASKS)[:n])
    labelled = [ax.xaxis.get_tick_params()["labelbottom"] for ax in panels.values()]
    assert len(figure.axes) == n and labelled == [i + 4 >= n for i in range(n)]
    assert figure.axes[0].get_gridspec().nrows == rows


def test_tasks_without_a_run_have_no_panel():
    figure = learning_curves({"alone": validations([0, 0]), "together": validations([0, 0], "nlvr2")}, "t")
    assert [ax.get_title() for ax in figure.axes] == ["VQAv2", "NLVR2"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["alone", "together"]


def test_history_is_that_of_the_first_seed(tmp_path):
    results = Results(tmp_path)
    lines = lambda score: validations([0, 0]).assign(score=score).to_dict("records")
    results.runs["st"] = dict(trained=[dict(model="vqa", seed=seed, tasks=["vqa"], history=lines(seed)) for seed in (0, 1)])
    assert history(results, "st").score.tolist() == [0, 0]


# --- rests

@few
@given(st.lists(st.booleans(), max_size=30))
def test_rests_cover_what_follows_a_stop(stopped):
    found = rests(validations(stopped))
    covered = {i for start, end in found for i in range(start, end, 10)}
    assert covered == {10 * (i + 1) for i, stop in enumerate(stopped[:-1]) if stop}
    assert all(start < end for start, end in found)
    assert all(end < start for (_, end), (start, _) in zip(found, found[1:]))


def learned(seed, iterations=100, **tasks):
    "A model, task -> its validations: (iteration, steps, score, stopped) each."
    history = [dict(task=task, iteration=at, steps=steps, loss=0., score=score, stopped=stopped)
               for task, lines in tasks.items() for at, steps, score, stopped in lines]
    return dict(model="all", seed=seed, tasks=list(tasks), iterations=iterations, history=history)


@pytest.fixture
def two_seeds(tmp_path):
    results = Results(tmp_path)
    vqa = [(50, 50, .2, False), (75, 75, .4, True), (80, 76, .9, True), (100, 81, .5, False)]
    other = learned(1, vqa=[(60, 60, .2, False), (100, 100, .3, False)])
    results.runs["at"] = dict(trained=[learned(0, nlvr2=[(100, 100, .7, True)], vqa=vqa), other])
    return results


def test_levels_are_of_the_last_validation_until_three_quarters_and_of_the_end(two_seeds):
    table = levels(two_seeds, "at")
    assert table.loc["vqa"].tolist() == pytest.approx([30, 40, 10])  # .4 and .2, then .5 and .3
    assert table.index.tolist() == ["vqa", "nlvr2", "average"] and pd.isna(table.three_quarters["nlvr2"])
    assert table.loc["average"].tolist() == table.loc["vqa"].tolist()
    assert levels(two_seeds, "none").empty


def test_what_rests_save_is_what_the_iterations_have_room_for_less_what_was_taken(two_seeds):
    table = resting(two_seeds, "at")
    assert table.loc["vqa"].tolist() == pytest.approx([3, 1, 90.5, 9.5])
    assert table.loc["nlvr2"].tolist() == [1, 1, 100, 0] and table.loc["all"].tolist() == pytest.approx([4, 2, 190.5, 9.5])
    assert resting(two_seeds, "none").empty


# --- how much data

@few
@given(st.lists(st.floats(0, 100), min_size=4, max_size=4), st.floats(0, 100))
def test_the_line_is_at_the_goal_for_the_first_time(line, goal):
    line = pd.Series(line, [10, 25, 50, 100])
    share = fraction_needed(line, goal)
    if share is None: assert line.max() < goal
    else:
        assert 10 <= share <= 100.001 and (line[line.index < share - 1e-6] < goal).all()
        at = np.interp(np.log(share), np.log(line.index), line)
        assert at == pytest.approx(goal, abs=1e-6) or (share == 10 and at >= goal)


def test_shares_are_read_between_neighbours_on_their_logarithm():
    assert fraction_needed(pd.Series({10: 0, 40: 2}), 1) == pytest.approx(20)
    assert fraction_needed(pd.Series({10: 0., 25: None, 40: 2.}), 1) == pytest.approx(20)
