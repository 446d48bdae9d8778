"Published numbers: each has a source and a status, none is guessed, and none stands beside scores of the miniature world."
import json
import re
from pathlib import Path

import numpy as np
import pytest

from vl12in1.study.literature import (OURS, PEERS_COLUMNS, PUBLISHED, SHARED, SOURCES, SPLITS, SYSTEMS, comparable, find, marked,
                                      measured, paper_lines, peers_differences, peers_measured, peers_published, sota_table,
                                      sources)
from vl12in1.study.notebooks import code_view
from vl12in1.study.results import Results
from vl12in1.tasks import TASKS
from vl12in1.evaluation.records import write_item_scores, write_json

ROOT = Path(__file__).resolve().parents[1]
MINIATURE, REAL = "the miniature world (synthetic pictures and sentences, seed 0)", "the corpora in `data/`"
UNTRACED = ("69.08", "56.35", "67.03", "68.72", "63.52", "63.70", "78.44", "70.24", "55.40", "58.30", "64.64")


def study(folder, data, runs):
    "Results of made-up runs, run -> models (name -> tasks), two seeds each."
    rng = np.random.default_rng(0)
    for run, models in runs.items():
        items = {(name, seed, task): rng.random(100) < .5 for name, own in models.items() for seed in range(2) for task in own}
        recall = {f"image retrieval R@{k}": .1 * k for k in (5, 10)}
        write_item_scores(folder / f"items/{run}.csv", items)
        write_json(folder / f"runs/{run}.json", dict(run=run, data_name=data, trained=[
            dict(model=name, seed=seed, tasks=list(own), parameters=10 * len(own), iterations=400, metrics={task: recall for task in own},
                 scores={task: items[name, seed, task].mean() for task in own}) for name, own in models.items() for seed in range(2)]))
    return Results(folder)


ALL = {"at": {"all": TASKS}, "ft_all": {task: [task] for task in TASKS}, "st_clean": {task: [task] for task in TASKS},
       "peers": {"hdc": SHARED}}


def rendered(notebook, reports):
    "Run the code of a study notebook on the folder `reports`."
    code = code_view(ROOT / "nbs/study" / f"{notebook}.ipynb")
    assert 'reports = root() / "reports"' in code
    exec(code.replace('reports = root() / "reports"', f"from pathlib import Path\nreports = Path({str(reports)!r})"), {})
    return (reports / f"{notebook}.md").read_text()


# --- the list

@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.system}: {row.task} {row.metric}")
def test_a_number_has_a_source_and_a_status(row):
    assert row.task in {None, *TASKS} and row.metric and row.source and isinstance(row.checked, bool)
    assert re.fullmatch(r"\d\d\.\d\d?", row.value) if row.task else re.search(r"\d", row.value) or "billion" in row.value
    assert not row.task or row.metric == TASKS[row.task].metric or row.metric.startswith("image retrieval R@")
    assert row.checked == row.source.startswith(("quoted by", "listed by", "the paper's abstract"))


def test_no_number_is_there_twice():
    assert len({row[:3] for row in PUBLISHED}) == len(PUBLISHED)


def test_of_the_paper_only_what_can_be_traced():
    paper = {(row.system[8:].strip(), row.task, row.value) for row in PUBLISHED if row.system.startswith("12-in-1")}
    assert all(row.checked for row in PUBLISHED if row.system.startswith("12-in-1"))
    assert paper == {("ST", None, "about 3 billion"), ("AT", None, "270 million"), ("AT", None, "+2.05 points"),
                     ("AT", "visual7w", "82.75"), ("AT → ST", "vqa", "73.15"), ("AT → ST", "gqa", "60.65"),
                     ("AT → ST", "flickr30k_retrieval", "67.9"), ("AT → ST", "refcocog", "76.35"),
                     ("AT → ST", "visual7w", "83.35"), ("AT → ST", "nlvr2", "78.87"), ("AT → ST", "snli_ve", "76.95"),
                     *(("shared tasks", "coco_retrieval", value) for value in ("65.2", "91.0", "96.2"))}


def texts():
    "Sources of all notebooks, and those lines of README and reports that are no rows of a table: file -> text."
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        yield path, "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    for path in [ROOT / "README.md", *sorted((ROOT / "reports").rglob("*.md"))]:
        yield path, "\n".join(line for line in path.read_text().splitlines() if not line.startswith("|"))


def test_numbers_that_nobody_quotes_stand_nowhere():
    found = {path.name: [value for value in UNTRACED if re.search(rf"(?<![\d.]){re.escape(value)}(?!\d)", text)] for path, text in texts()}
    assert {name: values for name, values in found.items() if values} == {}
    assert not {row.value for row in PUBLISHED} & set(UNTRACED)


# --- how they are shown

def test_marks_and_lines():
    quoted, unchecked = find(["12-in-1 AT → ST"], "nlvr2", "accuracy"), find(["HDC"], "vqa", "VQA accuracy")
    assert marked(quoted) == f"78.87 [{SOURCES.index('quoted by Oscar (2020)') + 1}]" and marked(unchecked) == "69.28 †"
    assert marked(None) is None and find(["12-in-1 AT"], "vqa", "VQA accuracy") is None
    lines = paper_lines()
    assert lines.count("\n") == 10 and "+2.05 points (the paper's abstract)" in lines and "shared tasks" not in lines
    assert "†" not in lines and all(line.startswith("- 12-in-1") and line.endswith(")") for line in lines.splitlines())


def test_all_marks_are_explained():
    for table in (sota_table(Results(ROOT / "nowhere")), peers_published()):
        marks = {value.split()[-1] for value in table.to_numpy().ravel() if isinstance(value, str) and value.endswith(("]", "†"))}
        assert {line.split()[1] for line in sources(table).splitlines()} == marks


# --- beside published systems

def test_ours_are_empty_on_the_miniature_world(tmp_path):
    results = study(tmp_path, MINIATURE, ALL)
    assert not comparable(results) and sota_table(results)[list(OURS)].isna().all(axis=None)


def test_ours_are_filled_on_the_real_corpora(tmp_path):
    results = study(tmp_path, REAL, ALL)
    table = sota_table(results)
    assert comparable(results) and not table[list(OURS)].isna().any(axis=None)
    assert table.loc["parameters", list(OURS)].tolist() == [120, 120] and table.split.dropna().tolist() == list(SPLITS.values())
    assert table.loc["gqa", "ours AT"] == pytest.approx(100 * results.cell("at", "gqa").mean)
    assert table.filter(["specialised system"]).dropna().index.tolist() == ["gqa", "visual7w"]


def test_a_missing_run_leaves_its_column_empty(tmp_path):
    table = sota_table(study(tmp_path, REAL, {"at": {"all": ["vqa", "nlvr2"]}}))
    assert table["ours AT"].dropna().index.tolist() == ["vqa", "nlvr2", "parameters"] and table["ours AT → ST"].isna().all()


@pytest.mark.parametrize("data, shown, hidden", [(MINIATURE, "columns *ours* are empty", "in percent, mean over seeds"),
                                                (REAL, "in percent, mean over seeds", "columns *ours* are empty")])
def test_the_page_says_why(tmp_path, data, shown, hidden):
    study(tmp_path, data, ALL)
    page = rendered("table_sota", tmp_path)
    assert shown in page and hidden not in page and f"Measured on **{data}**" in page and "† not checked" in page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert all(len(row) == 3 + len(SYSTEMS) + len(OURS) for row in rows)


# --- beside other multi-task systems

def test_the_1k_protocol_is_preferred(tmp_path):
    results = study(tmp_path, REAL, {"peers": {"hdc": SHARED}})
    for model in results.runs["peers"]["trained"]: model["metrics"]["coco_retrieval"]["1K image retrieval R@5"] = .9
    assert measured(results, "peers", "coco_retrieval", "image retrieval R@5") == pytest.approx(90)
    assert measured(results, "peers", "flickr30k_retrieval", "image retrieval R@5") == pytest.approx(50)


def test_columns_of_peers(tmp_path):
    assert list(PEERS_COLUMNS) == ["vqa", *(f"{name}{k}" for name in SHARED[1:] for k in ("", " R@5", " R@10"))]
    assert peers_published().loc["12-in-1, shared tasks"].dropna().index.tolist() == list(PEERS_COLUMNS)[1:4]
    assert not peers_measured(study(tmp_path, REAL, ALL)).isna().any(axis=None)


def test_comparisons_of_peers_are_one_family(tmp_path):
    table = peers_differences(study(tmp_path, REAL, ALL))
    assert len(table) == 8 and not table.isna().any(axis=None)
    assert (table.difference_low <= table.difference).all() and (table.difference <= table.difference_high).all()
    assert peers_differences(Results(tmp_path / "nowhere")).isna().all(axis=None)


def test_a_comparison_over_all_three_needs_all_three(tmp_path):
    table = peers_differences(study(tmp_path, REAL, {"peers": {"hdc": SHARED[:2]}, "at": {"all": TASKS}}))
    assert table.p.dropna().index.tolist() == ["peers − at: VQAv2", "peers − at: COCO retrieval"]


@pytest.mark.parametrize("runs", [{}, ALL], ids=["none", "all"])
def test_the_page_of_peers(tmp_path, runs):
    study(tmp_path, MINIATURE, runs)
    page = rendered("table_peers", tmp_path)
    ours, published = page.split("## Published, on the real corpora")
    assert "HDC" not in ours and "69.28 †" in published and "not one of the twelve tasks" in published
