"Two studies compared: what is told apart, what is not, and what cannot be compared."
import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import yaml

from vl12in1.command import main as command
from vl12in1.study import reproduction
from vl12in1.study.reproduction import (agreement, compare_cells, comparison_report, other_code, readable_rerun, rerun_notes, rerun_table,
                                        seed_numbers)
from vl12in1.study.results import Results, invent_run

TASKS = ["vqa", "gqa"]


def study(folder, seed=0, at=.6, data="invented numbers", verdict="holds", seeds=3):
    "Reports of two runs whose models differ from seed to seed, and an index with one claim."
    rng = np.random.default_rng(seed)
    for run, right in (("st_clean", .5), ("at", at)):
        invent_run(folder, run, {"all": TASKS}, lambda model, task: right + rng.normal(0, .01), seeds=seeds, data=data)
    return index(folder, {"more is better": verdict})


def index(folder, verdicts):
    "An index whose claims have these verdicts, claim -> verdict; returns the folder."
    table = pd.DataFrame(dict(verdict=verdicts.values(), difference=10., difference_low=8., difference_high=12.),
                         pd.Index(verdicts, name="claim"))
    table.to_csv(folder / "index.csv")
    return folder


def lock(folder, **code):
    "The lock of a study whose stages had code with this md5, stage -> md5."
    stages = {stage: dict(deps=[dict(path="vl12in1/model", md5=md5), dict(path="data", md5=str(folder))]) for stage, md5 in code.items()}
    (folder / "dvc.lock").write_text(yaml.safe_dump(dict(stages=stages)))


def test_the_same_bytes_are_reproduced(tmp_path):
    one = study(tmp_path / "one")
    assert comparison_report(one, one) == "reproduced: 4 of 4 cells, 1 of 1 verdicts"


def test_studies_with_nothing_in_common_are_not_compared(tmp_path):
    one, other = study(tmp_path / "one"), study(tmp_path / "other")
    for part in ("runs", "items", "metrics", "scores"): shutil.rmtree(other / part)
    invent_run(other, "ft", {"all": TASKS}, .6)
    with pytest.raises(ValueError, match="no tested model in common"): comparison_report(one, other)


def test_items_without_scores_are_named(tmp_path):
    one = study(tmp_path / "one")
    path = next((one / "items").glob("*.csv"))
    items = pd.read_csv(path)
    for name in items.filter(regex=r"^seed"): items[name] = None
    items.to_csv(path, index=False)
    (one / "metrics" / f"{path.stem}.json").write_text("{}")  # which has no digest of these lines
    with pytest.raises(ValueError, match=str(path)): comparison_report(one, one)


def test_other_seeds_are_reproduced_and_another_recipe_is_not(tmp_path):
    ours, seeds, recipe = study(tmp_path / "a", 0), study(tmp_path / "b", 1), study(tmp_path / "c", 2, at=.8)
    assert not compare_cells(Results(ours), Results(seeds)).differs.any()
    cells = compare_cells(Results(ours), Results(recipe))
    assert cells[cells.differs].run.tolist() == ["at", "at"]
    lines = comparison_report(ours, recipe).splitlines()
    assert lines[0] == "reproduced: 2 of 4 cells, 1 of 1 verdicts" and all("more than seeds explain" in line for line in lines[1:])


def test_with_one_seed_what_differs_is_not_called_reproduced(tmp_path):
    ours, theirs = study(tmp_path / "a", 0, seeds=1), study(tmp_path / "b", 1, seeds=1)
    assert comparison_report(ours, ours) == "reproduced: 4 of 4 cells, 1 of 1 verdicts"
    first, second = comparison_report(ours, theirs).splitlines()
    assert first == "reproduced: 0 of 4 cells, 1 of 1 verdicts"
    assert second.startswith("4 cells differ, and no run of either has several seeds")


def test_a_verdict_that_changed_is_named(tmp_path):
    ours, theirs = study(tmp_path / "a"), study(tmp_path / "b", verdict="does not hold")
    assert "more is better: does not hold (+10.0) -> holds (+10.0)" in comparison_report(ours, theirs)


def test_runs_of_one_seed_are_judged_by_the_seeds_of_others(tmp_path):
    ours, theirs = study(tmp_path / "a"), study(tmp_path / "b")
    for folder, right in ((ours, .3), (theirs, .6)): invent_run(folder, "ft", {"all": TASKS}, right)
    cells = compare_cells(Results(ours), Results(theirs))
    assert cells[cells.run == "ft"].differs.all()


def test_without_seeds_nothing_is_judged(tmp_path):
    ours, theirs = study(tmp_path / "a", 0, seeds=1), study(tmp_path / "b", 1, seeds=1)
    report = comparison_report(ours, theirs)
    assert "no run of either has several seeds" in report and not compare_cells(Results(ours), Results(theirs)).differs.any()


def lose_seed(path):
    content = json.loads(path.read_text())
    content["all"]["seed9"] = content["all"].pop("seed0")
    path.write_text(json.dumps(content))


def edited(**entries):
    "The report of a run, with entries of another kind."
    def edit(folder):
        path = folder / "runs/at.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return edit


def scored(value):
    "A score of another kind."
    def edit(folder):
        path = folder / "scores/at.json"
        content = json.loads(path.read_text())
        content["all"]["seed0"]["vqa"] = value
        path.write_text(json.dumps(content))
    return edit


def twice(folder):
    "An index with a claim that is there again."
    lines = (folder / "index.csv").read_text().splitlines()
    (folder / "index.csv").write_text("\n".join([*lines, lines[-1]]))


def endless(folder):
    "An index of a few bytes that claims to have many."
    with open(folder / "index.csv", "r+b") as file: file.truncate(2 ** 40)


@pytest.mark.parametrize("break_it, message", [
    (twice, "theirs/index.csv: no verdicts of a study .* is there twice"), (endless, "theirs/index.csv"),
    *((edited(**{entry: value}), "theirs/runs/at.json: not as the study writes it")
      for entry in ("run", "init", "data_name", "profile", "losses", "gradients") for value in (7, None, ["vqa"], {"a": 1})),
    (edited(init="at"), "theirs/runs/at.json: not as the study writes it"),
    (edited(trained=[dict(model="all", seed=0, tasks=["vqa"])]), "theirs/runs/at.json: not as the study writes it"),
    (edited(data_name="\ud800"), "theirs/runs/at.json: cannot be read .half a character"),
    *((scored(value), "theirs/scores/at.json: not as the study writes it") for value in (10 ** 400, float("inf"), float("nan"), "1", None)),
    (lambda folder: lose_seed(folder / "scores/at.json"), "theirs/scores/at.json: not as the study writes it"),
    (lambda folder: lose_seed(folder / "metrics/at.json"), "theirs/metrics/at.json: not as the study writes it"),
    (lambda folder: (folder / "index.csv").unlink(), "no index.csv; give a folder of reports"),
    (shutil.rmtree, "no index.csv; give a folder of reports"),
    (lambda folder: study(folder, data="the corpora in `data/`"), "only the same study can be compared"),
    (lambda folder: invent_run(folder, "at", {"all": TASKS}, .6, items=200), "tested on other items")])
def test_what_cannot_be_compared_is_one_line(tmp_path, break_it, message):
    ours, theirs = study(tmp_path / "ours"), study(tmp_path / "theirs")
    break_it(theirs)
    with pytest.raises(SystemExit, match=message): command(["compare", str(theirs), str(ours)])


def test_the_command_says_by_its_status_whether_all_was_reproduced(tmp_path, capsys):
    ours, theirs = study(tmp_path / "a"), study(tmp_path / "b", at=.8)
    command(["compare", str(ours), str(ours)])
    assert capsys.readouterr().out == "reproduced: 4 of 4 cells, 1 of 1 verdicts\n"
    with pytest.raises(SystemExit, match="1"): command(["compare", str(theirs), str(ours)])


def test_the_study_is_compared_with_the_last_commit(tmp_path, monkeypatch, capsys):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(reproduction, "root", lambda: tmp_path)
    reproduction.main()
    git("init")
    study(tmp_path / "reports")
    git("add", "reports")
    git("commit", "-m", "reports")
    reproduction.main()
    invent_run(tmp_path / "reports", "at", {"all": TASKS}, .9, seeds=3)
    reproduction.main()
    shutil.rmtree(tmp_path / "reports")
    reproduction.main()
    nothing, same, changed, *_, lost = capsys.readouterr().out.splitlines()
    assert nothing == "not compared: the last commit holds no reports"
    assert same == "reproduced: 4 of 4 cells, 1 of 1 verdicts" and changed.startswith("reproduced: 2 of 4 cells")
    assert lost.startswith("not compared: ") and "no index.csv" in lost


def test_any_folder_of_reports_is_compared_with_the_last_commit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduction, "root", lambda: tmp_path)
    study(tmp_path / "reports")
    study(tmp_path / "reports/thorough", at=.8)
    for words in (["init"], ["add", "reports"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "reports"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    invent_run(tmp_path / "reports/thorough", "at", {"all": TASKS}, .1, seeds=3)
    for name in ("reports", "reports/thorough", "reports/rerun"): reproduction.main(name)
    same, changed, *_, nothing = capsys.readouterr().out.splitlines()
    assert same.startswith("reproduced: 4 of 4") and changed.startswith("reproduced: 2 of 4")
    assert nothing == "not compared: the last commit holds no reports/rerun"


# --- the same study with other seeds

def test_verdicts_that_agree_and_verdicts_of_opposite_signs_are_counted(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second): folder.mkdir()
    index(first, dict(a="holds", b="holds", c="does not hold", d="not resolved", only_here="holds"))
    index(second, dict(a="holds", b="not resolved", c="holds", d="not resolved"))
    table = rerun_table(first, second)
    assert agreement(table) == "verdicts: 2 of 4 agree, 1 with opposite sign"
    shown = readable_rerun(table)
    assert shown.agree.tolist() == ["yes", "no", "no, opposite signs", "yes"]
    assert shown.iloc[0, :2].tolist() == ["+10.0 [+8.0, +12.0]", "holds"]


@pytest.mark.parametrize("there", [[], ["thorough"], ["rerun"]])
def test_a_run_that_is_not_there_is_named(tmp_path, there):
    for name in there: study(tmp_path / name)
    folders = [tmp_path / name for name in ("thorough", "rerun")]
    notes = rerun_notes(*folders)
    assert all((folder.name in notes) == (folder.name not in there) for folder in folders)
    assert len(rerun_table(*folders)) == len(readable_rerun(rerun_table(*folders))) == 0


def test_below_the_table_stands_what_both_runs_share(tmp_path):
    folders = [study(tmp_path / name, seed) for seed, name in enumerate(("thorough", "rerun"))]
    for folder, code in zip(folders, ("1", "2")): lock(folder, train="1", test=code, table_x=code, index=code)
    notes = rerun_notes(*folders)
    assert "**verdicts: 1 of 1 agree, 0 with opposite sign**" in notes and "seeds explain: 4 of 4" in notes
    assert "first run: 0, 1, 2; of the second: 0, 1, 2" in notes and notes.endswith("with the same code: test.")


def test_a_second_run_on_other_items_is_said_to_be_one(tmp_path):
    folders = [study(tmp_path / name) for name in ("thorough", "rerun")]
    for folder in folders: lock(folder, train="1")
    invent_run(folders[1], "at", {"all": TASKS}, .6, items=200)
    assert "Cells are not compared: at, all, vqa: tested on other items" in rerun_notes(*folders)


def test_only_code_counts_and_stages_that_one_run_lacks_do_count(tmp_path):
    for name in "ab": (tmp_path / name).mkdir()
    lock(tmp_path / "a", train="1", test="1", figure_x="1")
    lock(tmp_path / "b", train="1", test="1", attention="1", figure_x="2")
    assert other_code(tmp_path / "a", tmp_path / "a") == [] and other_code(tmp_path / "a", tmp_path / "b") == ["attention"]


def test_seeds_are_those_of_trained_models(tmp_path):
    results = Results(study(tmp_path, seeds=2))
    results.runs["text_only"] = dict(trained=[dict(seed=7, parameters=0)])
    assert seed_numbers(results) == [0, 1]
