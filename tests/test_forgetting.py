"What fine-tuned models forgot: which models are compared, what is lost, and how it is shown."
import numpy as np
import pytest

from vl12in1.study.forgetting import before_and_after, forgetting_table, forgotten, readable_forgetting
from vl12in1.study.statistics import Cell, difference
from vl12in1.tasks import TASKS


def study_of(**seeds):
    runs = dict(at=dict(init="scratch", kind="multi", seeds="main"), ft=dict(init="at", kind="multi", models="task", seeds="side"))
    return dict(runs=runs, followers={}, seeds=seeds, training=dict(multi={}))


def folders_in(root, *paths):
    for path in paths: (root / "runs" / path).mkdir(parents=True)


def test_a_seed_is_compared_with_the_seed_that_it_began_with(tmp_path):
    folders_in(tmp_path, *[f"at/models/all/seed{seed}" for seed in (0, 1)], *[f"ft/models/vqa/seed{seed}" for seed in (1, 5, 7)])
    folders = before_and_after(study_of(main=[0, 1], side=[1, 5, 7]), "ft", tmp_path)
    names = [[folder.name for folder in of_seeds] for of_seeds in folders["vqa"]]
    assert names == [["seed1", "seed1", "seed0"], ["seed1", "seed5", "seed7"]]  # 5 and 7 by their places, counted round


def test_models_that_are_not_there_are_left_out(tmp_path):
    folders_in(tmp_path, "at/models/all/seed0", "ft/models/gqa/seed0")
    assert list(before_and_after(study_of(main=[0], side=[0, 1]), "ft", tmp_path)) == ["gqa"]


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    return {task: Cell(rng.random((3, 60)) < .7, np.arange(60) // 2) for task in TASKS}


def test_the_learned_task_is_not_among_the_others(cells):
    after = cells | {"vqa": Cell(np.ones((3, 60)), cells["vqa"].pictures)}
    report = forgotten("vqa", cells, after)
    assert report["lost"]["vqa"] < 0 and report["others"]["mean"] == 0
    others = [task for task in TASKS if task != "gqa"]
    assert forgotten("gqa", cells, after)["others"] == difference(
        [cells[task] for task in others], [after[task] for task in others])._asdict()


def test_all_that_is_lost_is_lost(cells):
    nothing = {task: Cell(np.zeros((3, 60)), cell.pictures) for task, cell in cells.items()}
    lost = forgotten("nlvr2", cells, nothing)["lost"]
    assert lost == {task: pytest.approx(100 * cell.mean, abs=1e-3) for task, cell in cells.items()}


def test_the_table_shows_what_there_is(cells):
    after = {task: Cell(1 - cell.scores, cell.pictures) for task, cell in cells.items()}
    table = forgetting_table({task: forgotten(task, cells, after) for task in ("vqa", "nlvr2")})
    assert table.index.tolist() == ["vqa", "nlvr2"] and table.loc["vqa", "gqa"] == table.loc["nlvr2", "gqa"] > 20
    shown = readable_forgetting(table)
    assert shown.columns.tolist() == ["VQAv2", "NLVR2"] and shown.loc["GQA", "VQAv2"].startswith("+")


def test_one_task_alone_has_no_others(cells):
    alone = {"vqa": cells["vqa"]}
    report = forgotten("vqa", alone, alone)
    assert report["others"] is None and report["lost"] == {"vqa": 0}
    shown = readable_forgetting(forgetting_table({"vqa": report}))
    assert shown.loc["**mean of the others**", "VQAv2"] == "–"
