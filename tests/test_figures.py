"""Pictures: what is drawn, that titles say what the numbers say, that nothing is too small to read, that equal numbers give equal bytes."""
import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from fuzz import tries
from vl12in1.study.attention import attention_figure, attention_finding
from vl12in1.study.calibration import calibration_finding, reliability_figure
from vl12in1.study.figures import (HEADLINE_ROWS, data_curves, data_finding, every_validation, fraction_needed, headline_figure,
                                   headline_finding, history, learning_curves, learning_finding, levels, over_rests, overlap_finding,
                                   overlap_heatmap, overtaking, relations_finding, relations_heatmap, resting, rests, rests_finding,
                                   stop_and_go, task_panels)
from vl12in1.study.heads import heads_figure, heads_finding
from vl12in1.study.plots import add_heading, save_figure, title_of
from vl12in1.study.probes import probes_figure, probes_finding
from vl12in1.study.relations import relations_table
from vl12in1.study.results import Results, invent_run
from vl12in1.study.simulation import simulation_figure, simulation_finding
from vl12in1.study.tables import scores_table, step_costs
from vl12in1.study.timeline import PARTS, draw_timeline, timeline_finding
from vl12in1.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "reports"

few = tries(50)


def validations(stopped, task="vqa", every=10, seed=0, score=.5):
    at = every * np.arange(1, len(stopped) + 1)
    return pd.DataFrame(dict(seed=seed, iteration=at, task=task, steps=at, loss=0., score=score, stopped=list(stopped)))


def scores(shift=0.):
    names = [name + end for name in (*TASKS, "average") for end in ("", "_low", "_high")]
    some = {name: [40., 50, 55, 60] for name in names if name.startswith(("vqa", "average"))}
    return pd.DataFrame(some, pd.Index([10, 25, 50, 100])).reindex(columns=names) + shift


def headline_table(folder, together, seeds=2):
    "The four rows of the headline, of models that are right on half of the items, and of one of all tasks that is right on `together`."
    invent_run(folder, "text_only", {"words": TASKS}, .3, items=100)
    invent_run(folder, "st_clean", {task: [task] for task in TASKS}, .5, seeds=seeds, items=100)
    invent_run(folder, "at", {"all": TASKS}, together, seeds=seeds, items=100)
    return scores_table(Results(folder), HEADLINE_ROWS)


def read(name):
    "What an analysis of the study left in `reports/`."
    path = REPORTS / name
    return pd.read_csv(path) if path.suffix == ".csv" else json.loads(path.read_text())


def changes(folder):
    "A table of relations in which every change is + 3 %."
    return relations_table(Results(folder)).astype(float).fillna(3.)


SIMULATED = pd.DataFrame([dict(spread=spread, seeds=seeds, coverage=.95, **{"false verdicts": .3 if seeds == 1 else .04})
                          for seeds in (1, 3, 5) for spread in (0, 1.)])
STAGES = pd.DataFrame(dict(worker=0, begin=0., first=1., last=9., end=10., longest=8., cpu=9., memory=700), index=["train@at"])


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    "One picture of each kind, by a function without arguments."
    run = pd.concat([validations([0, 1, 1, 0, 1, 0], task) for task in ("vqa", "nlvr2")])
    two = pd.concat([run, run.assign(seed=1, score=.6)])
    matrix = pd.DataFrame(50., list(TASKS)[:3], list(TASKS)[:3])
    headline, table = headline_table(tmp_path_factory.mktemp("study"), .7), changes(tmp_path_factory.mktemp("nothing"))
    tested = {"single-task": {"vqa": 40}, "all-tasks": {}}
    drawn, spent = read("attention/examples.json"), pd.DataFrame(dict(percent=[60., 40]), index=list(PARTS)[:2])
    return {
        "headline": lambda: headline_figure(headline, "d"),
        "overlap": lambda: overlap_heatmap(matrix, "d"),
        "relations": lambda: relations_heatmap(table, {("vqa", "with G2")}, "d"),
        "stop and go": lambda: stop_and_go(two, "d"),
        "learning": lambda: learning_curves({"single-task": two, "all-tasks": run}, tested, "d"),
        "data": lambda: data_curves({"single-task": scores(), "all-tasks": scores(5)}, "d"),
        "statistics": lambda: simulation_figure(SIMULATED, {"single-task": .5}, "d"),
        "calibration": lambda: reliability_figure(read("calibration.json")["runs"], "d"),
        "attention": lambda: attention_figure(drawn["examples"], REPORTS / "attention", "at", "d"),
        "heads": lambda: heads_figure(read("attention/heads.csv"), "d"),
        "probes": lambda: probes_figure(read("probes.json")),
        "timeline": lambda: draw_timeline(STAGES, {"train@at": "training"}, timeline_finding(spent), "d")}


KINDS = ("headline", "overlap", "relations", "stop and go", "learning", "data", "statistics", "calibration", "attention", "heads",
         "probes", "timeline")


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, dpi=40, metadata={"Software": None})
    return file.getvalue()


def missing_words(figure):
    "What a figure leaves unsaid: its title, a label of an axis, a legend."
    if not title_of(figure): yield "no title"
    shared = {"x": figure.get_supxlabel(), "y": figure.get_supylabel()}
    for number, ax in enumerate(ax for ax in figure.axes if ax.axison):
        for side in "y" if ax.get_label() == "<colorbar>" else "xy":
            alike = getattr(ax, f"get_shared_{side}_axes")().get_siblings(ax)
            labelled = shared[side] or any(getattr(one, f"get_{side}label")() for one in alike)
            if not labelled: yield f"panel {number}: no label for {side}"
    if any(ax.get_legend_handles_labels()[1] for ax in figure.axes) and not figure.legends: yield "no legend"


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_says_what_it_shows(figures, kind):
    assert set(KINDS) == set(figures)
    assert list(missing_words(figures[kind]())) == []


def test_a_figure_that_does_not_is_found():
    figure = Figure()
    figure.subplots().plot([1, 2], label="a line")
    assert list(missing_words(figure)) == ["no title", "panel 0: no label for x", "panel 0: no label for y", "no legend"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_give_the_same_bytes(figures, kind, tmp_path):
    for folder in ("one", "other"): save_figure(figures[kind](), tmp_path / folder / "figure_a")
    for suffix in (".png", ".svg"):
        one, other = ((tmp_path / folder / "figure_a").with_suffix(suffix).read_bytes() for folder in ("one", "other"))
        assert one == other and len(one) > 5000
    svg = (tmp_path / "one/figure_a.svg").read_text()
    title = ElementTree.fromstring(svg).find("{http://www.w3.org/2000/svg}title").text
    assert title == title_of(figures[kind]()) and "<dc:date>" not in svg
    pictures = [base64.b64decode(picture) for picture in re.findall(r"data:image/png;base64,([^\"]+)", svg)]
    assert sum(map(len, pictures)) < 300_000


@pytest.mark.parametrize("kind", KINDS)
def test_no_letter_is_too_small(figures, kind):
    assert min(text.get_fontsize() for text in figures[kind]().findobj(Text) if text.get_text()) >= 9


@pytest.mark.parametrize("kind", KINDS)
def test_titles_fit_on_their_figure(figures, kind):
    figure = figures[kind]()
    png(figure)
    for text in figure.texts: assert text.get_window_extent().x1 <= figure.bbox.x1, text.get_text()


def test_long_titles_are_broken():
    figure = Figure(figsize=(4, 3))
    add_heading(figure, "word " * 40, "word " * 60)
    assert title_of(figure) == "word " * 39 + "word" and figure.get_suptitle().count("\n") > 5


def test_nothing_known_is_no_crash(tmp_path):
    nothing = every_validation(Results(tmp_path), "at")
    table = relations_table(Results(tmp_path))
    none = scores() * np.nan
    for figure in (learning_curves({"single-task": nothing, "all-tasks": nothing}, {}, "d"), stop_and_go(nothing, "d"),
                   relations_heatmap(table, set(), "d"), data_curves({"single-task": none, "all-tasks": none}, "d")):
        assert png(figure) and title_of(figure)
    assert png(headline_figure(scores_table(Results(tmp_path), HEADLINE_ROWS), "d"))


# --- titles say what the numbers say

@pytest.mark.parametrize("together, verb", [(.8, "beats"), (.2, "falls behind"), (.5, "cannot be told from")])
def test_the_headline_follows_the_interval(tmp_path, together, verb):
    table = headline_table(tmp_path, together)
    assert f" {verb} 12 models of one task: {table.loc['all-tasks', 'average']:.1f} % against" in headline_finding(table)


def test_the_headline_counts_the_tasks_that_both_have(tmp_path):
    table = headline_table(tmp_path, .8)
    table.loc["all-tasks", "vqa"] = None
    assert headline_finding(table).startswith("One model of 11 tasks beats 11 models")


def test_what_ends_higher_together_ends_lower_alone():
    low, high = validations([0, 0], score=[.1, .4]), validations([0, 0], score=[.3, .6])
    assert learning_finding(low, high) == ("Trained together, 1 of 1 tasks end higher than alone, and half of these pass that point "
                                           "within 100 % of the iterations")
    assert learning_finding(high, low) == "Trained together, 0 of 1 tasks end higher than alone"
    assert "No task" in learning_finding(low, validations([0, 0], "nlvr2"))


def test_a_point_is_passed_where_the_mean_over_seeds_is_higher():
    alone = validations([0] * 4, score=[.1, .2, .3, .4])
    seeds = [validations([0] * 4, seed=0, score=[.1, .3, .5, .9]), validations([0] * 4, seed=1, score=[.1, .3, .5, .1])]
    row = overtaking(alone, pd.concat(seeds)).loc["vqa"]
    assert row.tolist() == pytest.approx([40, 50, 75])


def test_what_rests_do_is_read_off_the_scores():
    falling = validations([1, 0, 0], score=[.5, .4, .6])
    assert over_rests(falling).change.tolist() == pytest.approx([-10])
    assert rests_finding(falling.assign(steps=[10, 12, 20])) == ("1 of 1 tasks rest, which saves 33 % of the steps; over a rest their "
                                                                "scores change by -10.0 points on average")
    assert "+20.0 points" in rests_finding(falling.assign(score=[.4, .6, .6]))
    assert rests_finding(falling.assign(stopped=False)) == "None of 1 tasks rests"


def test_the_best_partner_is_the_one_that_gives_most(tmp_path):
    table = changes(tmp_path)
    table.loc["average", ["with G2", "with G4"]] = 9., -9.
    assert relations_finding(table, set()) == "Partners gain most with G2 (+9.0 % on average) and least with G4 (-9.0 %)"
    assert "most with G4 (+9.0 % on average) and least with G2" in relations_finding(-table, set())
    fallen = relations_finding(table, {("vqa", "with G2"), ("vqa", "average of pairs")})
    assert fallen.endswith("; in 1 of 40 cases a task falls to what its words alone give")


def test_leaks_are_counted():
    matrix = pd.DataFrame([[0, 100, 0], [0, 0, 5], [0, 0, None]], list(TASKS)[:3], list(TASKS)[:3])
    assert overlap_finding(matrix) == "Before cleaning, some task trains on test images of 2 of 3 tasks; of 1 of them, on all"
    assert overlap_finding(matrix * 0) == "No task is trained on test images of any task"


def test_data_that_company_is_worth():
    low, high = scores()["average"], scores(12)["average"]
    assert data_finding(low, high).endswith("(60.0 %) is reached by the all-tasks model with about 21 % of the examples")
    assert data_finding(high, low).endswith("(72.0 %) is not reached by the all-tasks model with any fraction")
    assert "cannot be said" in data_finding(low, high.where(high.index > 10))


def test_seeds_that_keep_no_promise_are_not_praised():
    assert simulation_finding(SIMULATED).startswith("With one seed up to 30 % of equally good recipes are told apart; with 3 or 5 seeds")
    assert simulation_finding(SIMULATED).endswith("it is 4 % at most")
    liar = SIMULATED.assign(**{"false verdicts": .3})
    assert simulation_finding(liar).endswith("and more seeds do not keep it below 7 %")


def test_the_best_calibrated_is_named():
    report = {"single-task": dict(vqa=dict(error=.1)), "all-tasks": dict(vqa=dict(error=.02))}
    assert calibration_finding(report) == "Confidence of all-tasks models is 2.0 points off on average, that of single-task models 10.0"
    report["single-task"]["vqa"]["error"] = .01
    assert calibration_finding(report).startswith("Confidence of single-task models is 1.0 points off")


def test_where_heads_point_is_measured():
    heads = read("attention/heads.csv")
    assert "pointing sits between regions:" in heads_finding(heads)
    elsewhere = heads.referred.where(heads["map"] != "image", heads["referred, if even"])
    assert "pointing sits between words and regions:" in heads_finding(heads.assign(referred=elsewhere))
    assert "almost evenly" in heads_finding(heads.assign(entropy=.99)) and "selectively" in heads_finding(heads.assign(entropy=.1))


def test_the_most_read_word_is_in_the_title():
    example = read("attention/examples.json")["examples"][0]
    weights = np.zeros_like(example["referred_to_words"])
    weights[0, 0, 4] = .7
    read_most = attention_finding([example | dict(referred_to_words=weights.tolist())])
    assert read_most.startswith(f"Referred things look most at “{example['words'][4]}” (70 %)")


def test_what_layers_lose_is_in_the_title():
    at = lambda layer, position, model="all-tasks": [dict(task="vqa", model=model, layer=layer, property="position", score=position),
                                                     dict(task="vqa", model=model, layer=layer, property="colour", score=1.)]
    kept, fading = pd.DataFrame(at("input", .9) + at("block 1", .9)), pd.DataFrame(at("input", .9) + at("block 1", .8))
    assert probes_finding(kept) == "Position and colour can be read from the last layer as from the input"
    assert probes_finding(fading) == "Colour can be read from the last layer as from the input; position loses 10 points"
    both = pd.concat([fading, pd.DataFrame(at("input", .9, "single-task") + at("block 1", .84, "single-task"))])
    assert probes_finding(both).endswith("position loses 8 points; alone or together, models differ by 4.0 points at most")


def test_most_of_the_time_is_more_than_half_of_it():
    spent = lambda training: pd.DataFrame(dict(percent=[training, 30.]), index=["training", "testing"])
    assert timeline_finding(spent(60.)) == "Most of the time, 60 %, goes into training"
    assert timeline_finding(spent(40.)) == "The largest part of the time, 40 %, goes into training"
    assert timeline_finding(spent(10.)) == "The largest part of the time, 30 %, goes into testing"


# --- panels

@pytest.mark.parametrize("n, rows", [(1, 1), (4, 1), (5, 2), (12, 3)])
def test_every_column_has_a_scale(n, rows):
    figure = Figure()
    panels = task_panels(figure, list(TASKS)[:n])
    labelled = [ax.xaxis.get_tick_params()["labelbottom"] for ax in panels.values()]
    assert len(figure.axes) == n and labelled == [i + 4 >= n for i in range(n)]
    assert figure.axes[0].get_gridspec().nrows == rows


def test_tasks_without_a_run_have_no_panel():
    figure = learning_curves({"single-task": validations([0, 0]), "all-tasks": validations([0, 0], "nlvr2")},
                             {"single-task": {}, "all-tasks": {}}, "d")
    assert [ax.get_title() for ax in figure.axes] == ["VQAv2", "NLVR2"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["single-task", "all-tasks"]


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


# --- what a step costs

@pytest.mark.parametrize("content", [b"", b"losses,cost\nscaled,1\n", b"losses,gradients,cost\nscaled,in_turn,fast\n", b"\xff\xfe\x00",
                                     b"\x89PNG\r\n"])
def test_costs_that_are_none_are_named(tmp_path, content):
    (tmp_path / "balancing.csv").write_bytes(content)
    with pytest.raises(ValueError, match="balancing.csv: no costs of ways to balance; make benchmark writes it again$"):
        step_costs(tmp_path / "balancing.csv", None, [])


def test_a_run_costs_what_its_way_does(tmp_path):
    (tmp_path / "balancing.csv").write_text("losses,gradients,cost\nscaled,in_turn,1.0\nfamo,sum,1.5\n")
    results = SimpleNamespace(runs=dict(a=dict(losses="famo", gradients="sum"), b=dict(losses="famo", gradients="in_turn"), c={}))
    assert step_costs(tmp_path / "balancing.csv", results, ["a", "b", "c", "d"]) == [1.5, None, None, None]
    assert step_costs(tmp_path / "none.csv", results, ["a"]) == [None]
