"Two studies compared: what is told apart, what is not, and what cannot be compared."
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from vl12in1.command import main as command
from vl12in1.study import reproduction
from vl12in1.study.reproduction import compare_cells, comparison_report
from vl12in1.study.results import Results, invent_run

TASKS = ["vqa", "gqa"]


def study(folder, seed=0, at=.6, data="invented numbers", verdict="holds", seeds=3):
    "Reports of two runs whose models differ from seed to seed, and an index with one claim."
    rng = np.random.default_rng(seed)
    for run, right in (("st_clean", .5), ("at", at)):
        invent_run(folder, run, {"all": TASKS}, lambda model, task: right + rng.normal(0, .01), seeds=seeds, data=data)
    pd.DataFrame(dict(claim=["more is better"], verdict=verdict, difference=10.)).to_csv(folder / "index.csv", index=False)
    return folder


def test_the_same_bytes_are_reproduced(tmp_path):
    one = study(tmp_path / "one")
    assert comparison_report(one, one) == "reproduced: 4 of 4 cells, 1 of 1 verdicts"


def test_other_seeds_are_reproduced_and_another_recipe_is_not(tmp_path):
    ours, seeds, recipe = study(tmp_path / "a", 0), study(tmp_path / "b", 1), study(tmp_path / "c", 2, at=.8)
    assert not compare_cells(Results(ours), Results(seeds)).differs.any()
    cells = compare_cells(Results(ours), Results(recipe))
    assert cells[cells.differs].run.tolist() == ["at", "at"]
    lines = comparison_report(ours, recipe).splitlines()
    assert lines[0] == "reproduced: 2 of 4 cells, 1 of 1 verdicts" and all("more than seeds explain" in line for line in lines[1:])


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


@pytest.mark.parametrize("break_it, message", [
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
