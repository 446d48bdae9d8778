"Claims: what decides them, the three verdicts, and the page that lists them."
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from vl12in1.study.claims import (CLAIMS, REPORTS, WITH_G4, Claim, all_shared, counted, headline, images, judge, learned_counts,
                                  learned_table, list_of_reports, missing_text, models_of, readable_claims, readable_learned, ruling,
                                  seeds_used)
from vl12in1.study.notebooks import code_view
from vl12in1.study.protocol import identity
from vl12in1.study.results import Results
from vl12in1.study.statistics import VERDICTS, Comparison, holm
from vl12in1.study.tables import MULTITASK_ROWS
from vl12in1.tasks import ASKABLE, GROUPS, TASKS
from vl12in1.evaluation.records import write_item_scores, write_json
from vl12in1.training.merged import run_to_test
from vl12in1.training.runs import Run

ROOT = Path(__file__).resolve().parents[1]
GRID = yaml.safe_load((ROOT / "params.yaml").read_text())
STUDY = GRID
GRID = STUDY["runs"] | STUDY["followers"] | STUDY["merged"]
PROFILES = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "profiles").glob("*.yaml")}
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
BETTER = Claim("More is better", "better", "at", "st_clean")


def study(folder, fractions, seeds=2, items=200):
    "Results of runs of the grid that are right on a fraction of the items, run -> fraction; the same items are hard for all."
    hard = {task: np.random.default_rng(i).random(items) for i, task in enumerate(ASKABLE)}
    for run, fraction in fractions.items():
        scores = {(name, seed, task): hard[task] < fraction for name, own in run_to_test(STUDY | PROFILES["thorough"], run).tasks().items()
                  for seed in range(seeds) for task in own}
        write_item_scores(folder / f"items/{run}.csv", scores)
        write_json(folder / f"runs/{run}.json", dict(run=run, data_name="made-up numbers", trained=[]))
    return Results(folder)


def report(**fractions):
    "A report of consistency of 60 images, run -> fraction of the weight that is right twice, two seeds."
    weight = [10] * 60
    seeds = {run: dict(sums=dict(both=[10 * fraction] * 60)) for run, fraction in fractions.items()}
    return dict(weight=weight, rows={run: dict(seed0=seed, seed1=seed) for run, seed in seeds.items()})


# --- the list

def length(run, profile):
    "Iterations of a model of a run, those of the model that it begins with included."
    if run in STUDY["merged"]: return length(STUDY["merged"][run]["run"], profile)
    run = Run.of(run, GRID[run])
    before = length(run.init, profile) if run.init in GRID else 0
    return before + PROFILES[profile]["training"][run.kind]["iterations"]


@pytest.mark.parametrize("profile", ["smoke", "miniature"])
def test_both_sides_of_a_comparison_are_trained_for_as_long(profile):
    compared = [(claim.a, claim.b) for claim in CLAIMS] + [(run, other) for _, run, other in MULTITASK_ROWS if other]
    assert not [(a, b) for a, b in compared if length(a, profile) != length(b, profile)]

def test_claims_speak_of_the_grid():
    assert {run for claim in CLAIMS for run in (claim.a, claim.b)} <= set(GRID)
    assert set(WITH_G4) == {name for name, tasks in Run.of("pairs", GRID["pairs"]).tasks().items() if "nlvr2" in tasks}
    assert len({claim.sentence for claim in CLAIMS}) == len(CLAIMS) == 20
    assert all(claim.paper and claim.direction in (1, -1) for claim in CLAIMS)


def test_every_run_that_a_claim_is_about_is_trained_with_three_seeds_at_least():
    seeds = PROFILES["thorough"]["seeds"]
    assert not [run for claim in CLAIMS for run in (claim.a, claim.b) if len(seeds[GRID[run]["seeds"]]) < 3]


def test_the_stage_waits_for_the_runs_of_all_claims():
    # the stage depends on the folders to which every run of the grid writes
    assert {run for claim in CLAIMS for run in (claim.a, claim.b)} <= set(GRID)
    assert {"reports/runs", "reports/scores", "reports/metrics", "reports/items"} <= set(STAGES["index"]["deps"])
    for stage in ("train", "train_follower", "merge"): assert {"reports/runs/${key}.json": {"cache": False}} in STAGES[stage]["do"]["outs"]
    for stage in ("test", "test_follower", "test_merged"):
        assert {"reports/scores/${key}.json": {"cache": False}} in STAGES[stage]["do"]["metrics"]


def test_numbers_in_claims_are_the_papers_headline_only():
    assert {number for claim in CLAIMS for number in re.findall(r"\d+\.\d+", claim.paper + claim.sentence)} == {"2.05"}


# --- cells

def test_the_partner_claims_find_their_models(tmp_path):
    results = study(tmp_path, dict(pairs=.6, st_clean=.5))
    gain, loss = (next(claim for claim in CLAIMS if claim.a == "pairs" and claim.direction == sign) for sign in (1, -1))
    assert gain.cells(results, {}, gain.a, gain.b)[0] == ["nlvr2"]
    tasks, ours, theirs = loss.cells(results, {}, loss.a, loss.b)
    assert tasks == ["vqa", "flickr30k_retrieval", "visual7w"]
    for one, task, model in zip(ours, tasks, WITH_G4):
        assert (one.scores == results.cell("pairs", task, model).scores).all()


def test_models_of_one_task_are_averaged(tmp_path):
    results = study(tmp_path, dict(pairs=.6, st_clean=.5), seeds=2)
    _, (ours,), _ = models_of({"nlvr2": WITH_G4})(results, {}, "pairs", "st_clean")
    each = [results.cell("pairs", "nlvr2", name).scores for name in WITH_G4]
    assert ours.scores.shape == (2, 200) and np.allclose(ours.scores, np.mean(each, axis=0))


def test_tasks_that_one_run_lacks_are_left_out(tmp_path):
    results = study(tmp_path, dict(at=.6, at_without_g4=.5))
    assert len(all_shared(results, {}, "at_without_g4", "at")[0]) == 10
    assert models_of({"nlvr2": WITH_G4})(results, {}, "pairs", "st_clean") == ([], [], [])


@pytest.mark.parametrize("found", [{}, dict(rows={}), report(at=.5), dict(report(at=.5, ft=.5), weight=[0] * 60)])
def test_no_consistency(found):
    assert images(None, found, "ft", "at") == ([], [], [])


# --- verdicts

@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("ours, theirs, sign", [(.7, .5, 1), (.5, .7, -1), (.6, .6, 0)])
def test_three_verdicts(tmp_path, ours, theirs, sign, direction):
    results = study(tmp_path, dict(at=ours, st_clean=theirs))
    row = judge(results, {}, [BETTER._replace(direction=direction)]).iloc[0]
    assert row.verdict == ("holds" if sign == direction else "does not hold" if sign else "not resolved")
    assert row.difference == pytest.approx(100 * (ours - theirs), abs=5) and row.on == "12 tasks" and row.seeds == "2 / 2"


@pytest.mark.parametrize("of_a, of_b", [(1, 2), (2, 1), (1, 1)])
def test_with_one_seed_no_claim_is_decided(tmp_path, of_a, of_b):
    study(tmp_path, dict(at=.9, st_all=.9), seeds=of_a)
    results = study(tmp_path, dict(st_clean=.2), seeds=of_b)
    margin = next(claim for claim in CLAIMS if claim.margin)
    table = judge(results, {}, [BETTER, margin])
    assert table.verdict.tolist() == ["one seed"] * 2 and table.p.isna().all() and table.detectable.isna().all()
    assert table.difference.iloc[0] == pytest.approx(70, abs=5)


@pytest.mark.parametrize("clean, verdict", [(.60, "holds"), (.55, "does not hold"), (.605, "holds")])
def test_what_costs_little(tmp_path, clean, verdict):
    results = study(tmp_path, dict(st_clean=clean, st_all=.6), items=1000)
    claim = next(claim for claim in CLAIMS if claim.margin)
    row = judge(results, {}, [claim]).iloc[0]
    assert row.verdict == verdict and row.p is None


@pytest.mark.parametrize("low, high, verdict", [(-.019, .01, "holds"), (-.021, -.019, "not resolved"), (-.05, -.021, "does not hold"),
                                                (-.02, .1, "not resolved"), (.01, .02, "holds")])
def test_a_margin(low, high, verdict):
    comparison = Comparison((low + high) / 2, low, high, .5, 3, .02)
    assert ruling(Claim("", "", "a", "b", margin=2), comparison, None) == verdict


def test_nothing_is_not_resolved(tmp_path):
    table = judge(Results(tmp_path), {})
    assert set(table.verdict) == {"not resolved"} and table[["on", "seeds", "difference", "p"]].isna().all(axis=None)
    assert len(readable_claims(table)) == 20 and seeds_used(Results(tmp_path)) == "no"


def test_a_missing_run_leaves_only_its_claims_open(tmp_path):
    results = study(tmp_path, dict(at=.7, st_clean=.5))
    table = judge(results, report(at=.8, st_clean=.4))
    open_ = {claim.sentence for claim in CLAIMS if {claim.a, claim.b} != {"at", "st_clean"}}
    assert set(table.index[table.verdict == "not resolved"]) == open_
    assert table.verdict.drop(list(open_)).tolist() == ["holds", "holds"]


def test_all_claims_with_a_p_are_one_family(tmp_path):
    fractions = {run: .5 + .01 * i for i, run in enumerate(sorted({run for claim in CLAIMS for run in (claim.a, claim.b)}))}
    results, found = study(tmp_path, fractions, items=40), report(at=.5, at_long=.5, st_clean=.5, ft=.6)
    together = judge(results, found)
    alone = [judge(results, found, [claim]).p.iloc[0] for claim in CLAIMS]
    assert [p if p is None else pytest.approx(p) for p in holm(alone)] == together.p.tolist()
    assert sum(p is None for p in alone) == 2 and set(together.verdict) <= set(VERDICTS)


def test_the_count(tmp_path):
    table = judge(study(tmp_path, dict(at=.7, st_clean=.5, gt=.8)), {})
    said, absent = counted(table).split(" Not resolved for want of a run: ")
    assert sum(map(int, re.findall(r"\d+", said)[1:])) == len(CLAIMS) == int(re.findall(r"\d+", said)[0])
    assert said.endswith("*holds* for 2, *does not hold* for 1, *not resolved* for 17, and *one seed* for 0.") and absent == "17."


# --- is every task learned?

def taught(folder, text_only, st_clean, at):
    "Results of three runs that are right on these fractions of 1,000 items of every task but retrieval, and of retrieval on others."
    for run, (answers, retrieval) in dict(text_only=text_only, st_clean=st_clean, at=at).items():
        names = GROUPS["G2"]
        scores = {("m", 0, task): np.arange(1000) < 1000 * (retrieval if task in names else answers) for task in TASKS}
        write_item_scores(folder / f"items/{run}.csv", scores)
        write_json(folder / f"runs/{run}.json", dict(run=run, data_name="made-up numbers", trained=[]))
    return learned_table(Results(folder))


@pytest.mark.parametrize("st_clean, at, alone, together", [
    ((.45, .06), (.55, .10), 12, 12), ((.449, .06), (.549, .10), 2, 2), ((.45, .059), (.55, .099), 10, 10), ((.9, .9), (.3, .0), 12, 0)])
def test_what_counts_as_learned(tmp_path, st_clean, at, alone, together):
    table = taught(tmp_path, (.40, .01), st_clean, at)
    assert (table.alone.sum(), table.together.sum()) == (alone, together)
    assert f"all tasks: {together} of 12" in learned_counts(table) and f"task: {alone} of 12" in learned_counts(table)
    assert all(f"`{task}`" in learned_counts(table) for task in TASKS if not table.together[task])


def test_a_run_that_is_missing_has_learned_nothing(tmp_path):
    table = learned_table(study(tmp_path, dict(st_clean=.9)))
    assert not table[["alone", "together"]].to_numpy().any()
    shown = readable_learned(table)
    assert set(shown["the model of all tasks"]) == {"–"} and set(shown["learned together"]) == {"no"}


# --- the page

def test_contents_are_the_outputs_of_the_pipeline():
    outs = {out for stage in STAGES.values() for one in stage.get("outs", []) for out in (one if isinstance(one, dict) else [one])}
    made = {match[1] for out in outs if (match := re.fullmatch(r"reports/((?:table|figure)_\w+\.md)", out))}
    pages = {match[1] for out in outs if (match := re.fullmatch(r"reports/(figure_\w+)\.png", out))}  # a figure is shown by its page
    assert set(REPORTS) == made and {f"{page}.md" for page in pages} <= made
    assert list_of_reports().count("\n") == len(REPORTS) - 1 and all(what and len(what) < 120 for what in REPORTS.values())


def test_missing_runs_are_named(tmp_path):
    results = study(tmp_path, dict(at=.7))
    assert missing_text(results, ["at", "gt"]) == "`gt`" and missing_text(results, ["at"]) == "none is missing"


def page(folder):
    "The index of the results in `folder`."
    code = code_view(ROOT / "nbs/study/index.ipynb")
    assert 'reports = root() / "reports"' in code
    exec(code.replace('reports = root() / "reports"', f"from pathlib import Path\nreports = Path({str(folder)!r})"), {})
    return (folder / "index.md").read_text(), (folder / "index.csv").read_text()


def test_the_index_lists_verdicts_and_missing_runs(tmp_path):
    study(tmp_path, {run: .5 + .2 * (run == "at") for run in GRID if run != "vanilla"}, seeds=2, items=60)
    write_json(tmp_path / "consistency.json", report(at=.5, st_clean=.5, ft=.5))
    text, numbers = page(tmp_path)
    assert text.rstrip().endswith("without scores: `vanilla`.") and "Measured on **made-up numbers**" in text
    assert "of 2 seed(s) per model" in text and "nothing is tuned" in text and "take\n– steps" in text
    assert all(f"({name})" in text for name in REPORTS)
    rows = {line.split(" | ")[0][2:]: line.rstrip(" |").split(" | ")[-1] for line in text.splitlines() if line.startswith("| ")}
    assert rows[CLAIMS[0].sentence] == "holds" and rows["Stop-and-go and task tokens help together"] == "not resolved"
    assert len(numbers.splitlines()) == 1 + len(CLAIMS) and numbers.startswith("claim,paper,a,b,on,seeds,difference,")


def test_the_index_of_nothing(tmp_path):
    text, _ = page(tmp_path)
    assert "*not resolved* for 20" in text and all(f"`{run}`" in text for run in GRID)


def test_the_index_of_everything(tmp_path):
    study(tmp_path, dict.fromkeys(GRID, .5), items=20)
    assert "without scores: none is missing." in page(tmp_path)[0]


def test_the_index_says_whether_tasks_are_learned_and_what_it_follows(tmp_path):
    taught(tmp_path, (.4, .01), (.5, .1), (.5, .2))
    text, _ = page(tmp_path)
    assert "Learned by the model of all tasks: 2 of 12 tasks (not learned: `vqa`" in text and "by models of one task: 12 of 12." in text
    assert "| coco_retrieval | 1.0 | 10.0 | yes | 20.0 | yes |" in text and "| vqa | 40.0 | 50.0 | yes | 50.0 | no |" in text
    assert identity(ROOT / "PROTOCOL.md") in text


def test_a_complete_run_with_more_seeds_is_the_headline(tmp_path):
    (tmp_path / "here").mkdir()
    results = study(tmp_path / "here", dict(at=.7, st_clean=.5), items=60)
    page(tmp_path / "here")
    assert headline(tmp_path / "here", results.data_name()) == ""
    (tmp_path / "here").rename(tmp_path / "thorough")
    line = headline(tmp_path, results.data_name())
    assert "[thorough](thorough/index.md)" in line and "2 seeds" in line and "*holds* for 1" in line and "\n" not in line
    assert headline(tmp_path, "other numbers") == ""
    study(tmp_path, dict(at=.7), items=60)
    above, _, below = page(tmp_path)[0].partition("| claim |")
    assert line in above and line not in below
