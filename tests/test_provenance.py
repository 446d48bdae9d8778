"""Where numbers come from: the line under every table and figure, the chain behind a cell, and what finds a number that was edited."""
import contextlib
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from vl12in1 import command
from vl12in1.evaluation.records import read_item_scores
from vl12in1.study import origin, parallel, provenance
from vl12in1.study.origin import combined, digest, made_by, outputs
from vl12in1.study.provenance import (
    SCORED, SHOWN, chain, commit_of, find_cell, locate, read_lock, read_study, runs_of, unlike, why)
from vl12in1.study.results import read_run

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MADE = {path: stage for path, stage in outputs().items() if path.startswith("reports/")}
PAGES = sorted(path for path in MADE if path.endswith(".md"))
SHOWING = ("table_", "figure_", "index")
TABLES = sorted({stage for path, stage in MADE.items() if path.endswith((".md", ".csv")) and stage.startswith(SHOWING)})
MEASURING = ("world", "clean", "text", "regions", "neighbours", "scratch", "pretrain", "train", "test")


def git(folder, *words):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


# --- the line

def test_whoever_writes_a_table_or_a_figure_depends_on_what_the_line_says():
    for path, stage in MADE.items():
        if not stage.startswith(SHOWING): continue
        assert "reports/origin.json" in PIPELINE[stage]["deps"], f"{stage} writes {path}"


def test_every_figure_has_its_page():
    pictures = {path.rpartition(".")[0] for path in MADE if path.endswith(".png")}
    assert pictures and {f"{picture}{end}" for picture in pictures for end in (".md", ".svg")} <= MADE.keys()


def test_the_code_of_the_line_is_that_of_whatever_makes_models_and_scores():
    listed, needed = origin.code_paths(), {path for stage in MEASURING for path in PIPELINE[stage].get("do", PIPELINE[stage])["deps"]}
    used = {path for path in needed if path.startswith(("vl12in1/", "build/views/", "constraints"))}
    uncovered = {path for path in used if not any(path == own or path.startswith(own + "/") for own in listed)}
    assert uncovered == {"vl12in1/study/tables.py"}  # which gives the data its name


@pytest.mark.parametrize("path", PAGES)
def test_a_table_says_where_it_comes_from(path):
    line = (ROOT / path).read_text().splitlines()[-1]
    made_from = json.loads((ROOT / "reports/origin.json").read_text())
    assert line == made_by((ROOT / path).with_suffix(""))
    assert f"`nbs/study/{MADE[path]}.ipynb`" in line and made_from["data"][:12] in line and f"`{made_from['profile']}`" in line
    assert (ROOT / f"nbs/study/{MADE[path]}.ipynb").is_file()


def test_the_line_holds_nothing_of_a_day_or_a_machine(tmp_path):
    record = dict(data="d" * 32, profile="miniature", seeds=dict(main=[0]), code={"vl12in1/model": "m" * 32})
    lines = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "origin.json").write_text(json.dumps(record))
        lines.append(made_by(tmp_path / name / "table_sizes"))
    assert lines[0] == lines[1] and lines[0].count("`") == 14 and str(tmp_path) not in lines[0]


@pytest.mark.parametrize("changed", [dict(data="e" * 32), dict(profile="full"), dict(seeds=dict(main=[1])),
                                     dict(code={"vl12in1/model": "n" * 32})])
def test_whatever_numbers_are_made_from_is_in_the_line(tmp_path, changed):
    record = dict(data="d" * 32, profile="miniature", seeds=dict(main=[0]), code={"vl12in1/model": "m" * 32})
    (tmp_path / "origin.json").write_text(json.dumps(record))
    before = made_by(tmp_path / "table_sizes")
    (tmp_path / "origin.json").write_text(json.dumps(record | changed))
    assert made_by(tmp_path / "table_sizes") != before != ""


def test_the_record_follows_the_checkout(checkout):
    (checkout / "build/views").mkdir(parents=True)
    for stage in MEASURING: (checkout / f"build/views/{stage}.py").write_text("1")
    before = origin.origin()
    (checkout / "vl12in1/world/__pycache__").mkdir()
    (checkout / "vl12in1/world/__pycache__/x.pyc").touch()
    assert origin.origin() == before and before["data"] == yaml.safe_load((ROOT / "data.dvc").read_text())["outs"][0]["md5"]
    (checkout / "vl12in1/world/more.py").touch()
    assert {path for path, own in origin.origin()["code"].items() if own != before["code"][path]} == {"vl12in1/world"}


def test_tables_of_an_unfinished_study_do_not_say_what_made_them(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/origin.json").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parallel, "stale_stages", lambda: {"train@at": set()})
    monkeypatch.setattr(parallel, "durations", dict)
    monkeypatch.setattr(parallel, "repro", lambda needs, *_, **__: {name: "no memory" for name in needs if name != "views"})
    monkeypatch.setattr(parallel, "tables", dict)
    assert parallel.bring_up_to_date() == {"train@at": "no memory"} and not (tmp_path / "reports/origin.json").exists()


def test_digests_are_those_of_dvc(tmp_path):
    from dvc.repo import Repo
    git(tmp_path, "init", "--quiet")
    for name in ("b.py", "a/c.py", "a-d/e.py"):
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_text(name)
    with contextlib.chdir(tmp_path):
        repo = Repo.init()
        out, = repo.add("code")[0].outs
        repo.close()
    assert digest(tmp_path / "code") == out.hash_info.value
    assert combined({"x": "1"}) != combined({"y": "1"}) and digest(tmp_path / "code/b.py") == hashlib.md5(b"b.py").hexdigest()


# --- tables follow from scores

@pytest.mark.parametrize("stage", [pytest.param(stage, marks=[pytest.mark.slow] * (stage == "figure_statistics")) for stage in TABLES])
def test_a_table_made_again_from_the_scores_is_the_table(stage):
    assert unlike(stage) == [], "run `make tables` and commit what it writes"


@pytest.mark.parametrize("path", sorted((ROOT / "reports/scores").glob("*.json")), ids=lambda path: path.stem)
def test_scores_are_the_means_of_the_items(path):
    scores = json.loads(path.read_text())
    items = {key: seeds for key, (seeds, _) in read_item_scores(ROOT / f"reports/items/{path.stem}.csv").items()}
    for (model, task), seeds in items.items():
        assert list(scores[model].values()) and len(seeds) == len(scores[model])
        for own, mean in zip(scores[model].values(), seeds.mean(axis=1)):
            assert own[task] == pytest.approx(mean, abs=5e-4), (model, task)
    assert {(model, task) for model in scores if model != "average" for own in scores[model].values() for task in own} == items.keys()


# --- the chain

def test_the_chain_of_a_cell_leads_from_the_table_to_the_data():
    links = chain(read_study().stages, "table_multitask", {"at"})
    assert list(links)[0] == "table_multitask" and links["test@at"][:1] == ["reports/items/at.csv"]
    stages = ("table_multitask", "test@at", "train@at", "pretrain@improved", "scratch", "clean", "data.dvc", "world")
    assert [stage for stage in links if stage in stages] == list(stages) and links["data.dvc"] == ["data"]
    assert not any(stage.endswith(("@ft", "@gt")) for stage in links)


def test_a_fine_tuned_model_has_what_it_began_with_behind_it():
    assert {"train@ft", "train@at", "pretrain@improved"} <= chain(read_study().stages, "table_multitask", {"ft"}).keys()


def test_every_table_of_runs_says_which():
    showing = {Path(path).stem for path, stage in MADE.items() if path.endswith(".md") and "reports/scores" in PIPELINE[stage]["deps"]}
    assert {name for name in showing if name.startswith(("table_", "index"))} == SCORED.keys() | SHOWN.keys()


@pytest.mark.parametrize("table", [*SCORED, *SHOWN])
def test_rows_and_columns_of_runs_are_there(table):
    shown = pd.read_csv(ROOT / f"reports/{table}.csv", index_col=0, dtype=str)
    labels = [title for title, _, _ in SCORED[table]] if table in SCORED else list(SHOWN[table])
    names = [*shown.index, *shown.columns]
    assert [label for label in labels if not any(name.startswith(label) for name in names)] == []
    runs = {path.stem for path in (ROOT / "reports/runs").glob("*.json")}
    assert runs_of(table) <= runs and runs_of(table)


@pytest.mark.parametrize("table, row, column, runs", [
    ("table_multitask", "All-tasks, clean", "vqa_low", {"at"}), ("table_multitask", "All-tasks, clean", "difference", {"at", "st_clean"}),
    ("table_encoders", "all tasks: LXMERT − ViLBERT", "difference", {"at_lxmert", "at"}),
    ("table_captioning", "COCO captioning, with the twelve", "BLEU-4", {"at_captions"}),
    ("table_captioning", "The twelve, with captioning", "difference_low", {"at_captions", "at"}),
    ("table_kinds", "G1: count", "difference", {"at", "st_clean"}), ("table_relations", "nlvr2", "with G1_low", {"pairs", "st_clean"}),
    ("table_relations", "vqa", "average of triples", {"triples", "st_clean"}), ("table_metrics", "vqa: accuracy", "fine-tuned", {"ft"}),
    ("table_peers", "peers − st_clean: VQAv2", "difference", {"peers", "st_clean"}),
    ("index", "Task tokens help", "difference", {"at", "no_token"}), ("table_stop_and_go", "vqa", "steps", {"at"})])
def test_the_runs_behind_a_cell(table, row, column, runs):
    assert runs_of(table, row, column) == runs


@pytest.mark.parametrize("words", [("vqa", "at"), ("at", "vqa"), ("VQAv2", "All-tasks, clean")])
def test_a_cell_is_asked_for_in_several_ways(words):
    assert find_cell(ROOT / "reports/table_multitask.csv", *words)[:2] == ("All-tasks, clean", "vqa")


# --- in a fresh clone, and after an edit

@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "What git keeps of this checkout, in a repository with one commit, without data, weights or a cache."
    folder = tmp_path_factory.mktemp("clone") / "study"
    for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if not (ROOT / name).is_file() or name.startswith((".venv", "reports/rerun")): continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "The study")
    return folder


@pytest.fixture
def checkout(clone, monkeypatch):
    "The clone as the working directory; what a test does to it is undone."
    monkeypatch.chdir(clone)
    yield clone
    git(clone, "reset", "--quiet", "--hard", git(clone, "rev-list", "--max-parents=0", "HEAD").strip())
    git(clone, "clean", "--quiet", "-fdx")


def asked():
    "What is not as the commit says about a cell, in the working directory."
    return set(why("reports/table_multitask.md", "vqa", "at")[1])


@pytest.fixture(scope="module")
def before(clone):
    "What is not as the commit says before anything is edited: nothing, if the commit is what its pipeline makes."
    with contextlib.chdir(clone): return asked()


def test_a_clone_is_what_its_commit_says(before):
    assert before == set(), "run `make study` and commit what it writes"


def test_without_a_cache_the_chain_has_the_digests_of_the_lock(checkout):
    text = why("reports/table_multitask.md", "vqa", "at")[0]
    models = next(out for out in read_study().stages["train@at"]["outs"] if out["path"] == "runs/at/models")
    assert f"    runs/at/models  {models['md5'][:12]}  not here\n" in text
    assert re.search(r"    data  \w{12}  not here\n", text) and "    reports/items/at.csv  " in text
    assert "run at: profile miniature, seeds 0" in text


@pytest.mark.parametrize("path, old, new, found", [
    ("reports/scores/at.json", r'"vqa": 0\.\d', '"vqa": 0.9', "reports/scores/at.json: is not what test@at left"),
    ("reports/items/at.csv", r"(?m)^(all,vqa,.*),0$", r"\1,100", "reports/items/at.csv: is not what test@at left"),
    ("reports/table_multitask.csv", r"(?m)^(\"All-tasks, clean\"),\d", r"\1,9",
     "reports/table_multitask.csv: is not what table_multitask left"),
    ("reports/table_multitask.md", r"\| VQAv2 \| \d", "| VQAv2 | 9", "reports/table_multitask.md: is not what table_multitask left")])
def test_an_edited_number_is_found(checkout, before, path, old, new, found):
    text = (checkout / path).read_text()
    (checkout / path).write_text(re.sub(old, new, text, count=1))
    assert (checkout / path).read_text() != text
    after = asked() - before
    assert any(line.startswith(found) for line in after) and f"{path}: is not as in the last commit" in after


@pytest.mark.parametrize("name, old, new", [("table_multitask.csv", r"(?m)^(\"All-tasks, clean\"),\d", r"\1,9"),
                                            ("table_multitask.md", r"\| VQAv2 \| \d", "| VQAv2 | 9")])
def test_a_number_that_was_edited_in_the_lock_as_well_and_committed_is_found(checkout, before, name, old, new):
    path = checkout / "reports" / name
    digest_before = digest(path)
    path.write_text(re.sub(old, new, path.read_text(), count=1))
    lock = checkout / "dvc.lock"
    assert digest_before in lock.read_text()
    lock.write_text(lock.read_text().replace(digest_before, digest(path)))
    git(checkout, "commit", "--quiet", "--all", "-m", "Better numbers")
    after = asked() - before
    assert len(after) == 1 and re.match(rf"reports/{name}: line \d+ is .*; made again it is ", *after)


def test_other_data_and_other_code_are_found(checkout, before):
    pin = checkout / "data.dvc"
    pin.write_text(re.sub(r"(?m)(outs:\n(?:.*\n)*?.*md5: )\w{4}", r"\1ffff", pin.read_text()))
    (checkout / "vl12in1/evaluation/metrics.py").open("a").write("# more\n")
    after = asked() - before
    assert any(line.startswith("data: is not what clean found") for line in after)
    assert "data.dvc: is not as in the last commit" in after
    assert any(line.startswith("vl12in1/evaluation: is not the code that the numbers") for line in after | before)


def test_the_command_says_so_by_its_exit_status(checkout, monkeypatch, capsys):
    page = checkout / "reports/table_multitask.md"
    page.write_text(page.read_text().replace("| VQAv2 | ", "| VQAv2 | 9", 1))
    with pytest.raises(SystemExit) as stopped: command.main(["why", "reports/table_multitask.md", "vqa", "at"])
    said = capsys.readouterr().out
    assert stopped.value.code == 1 and said.startswith("reports/table_multitask.md, All-tasks, clean, vqa: ") and "\ncode: commit " in said
    assert "    reports/table_multitask.md: is not as in the last commit\n" in said.partition("NOT what the commit says:")[2]
    monkeypatch.setattr("vl12in1.study.provenance.why", lambda report, *cell: (f"{report} {cell}", []))
    command.main(["why", "reports/index.md"])
    assert capsys.readouterr().out == "reports/index.md ()\n"


@pytest.mark.parametrize("report, words, complaint", [
    ("README.md", (), "no report of this checkout"), ("reports", (), "no report of this checkout"),
    ("reports/benchmarks/bytes.md", (), "measured by make benchmark"),
    ("reports/table_multitask.md", ("vqa", "nobody"), "no cell 'vqa', 'nobody'; rows: Text only")])
def test_what_cannot_be_answered_is_said_in_one_line(checkout, report, words, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)) as error: why(report, *words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [
    "", "a: 1", "stages: [1]", "stages: {a: 1}", "stages: {a: {outs: 1}}", "stages: {a: {outs: [{path: b}]}}", "stages: " + "[" * 5000,
    "stages:\n<<<<<<< ours\n  a: {}\n=======\n", "stages: !!timestamp x", "\udcff"])
def test_a_damaged_lock_is_named(tmp_path, content):
    path = tmp_path / "dvc.lock"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"^{path}(, line \\d+)?: .*take it back from git$"): read_lock(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
def test_a_table_that_is_none_is_named(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: no "): find_cell(path, "vqa", "at")


@pytest.mark.parametrize("content", ["[]", '{"seeds": 3}', '{"seeds": 3, "trained": []}', '{"trained": [], "init": 5}'])
def test_a_damaged_record_of_a_run_is_named(tmp_path, content):
    path = tmp_path / "at.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^{path}: n"): read_run(path)


@pytest.mark.parametrize("name", ["thorough"])
def test_a_complete_run_is_asked_by_its_own_lock(checkout, name):
    if not (checkout / f"reports/{name}/dvc.lock").exists(): pytest.skip(f"reports/{name} is not there yet")
    text, wrong = why(f"reports/{name}/table_multitask.md", "vqa", "at")
    assert "run at: profile thorough, seeds 0, 1, 2, 3, 4" in text
    assert wrong == []
    assert locate(checkout / f"reports/{name}/table_multitask.md")[0] == name


# --- commits

def test_the_commit_in_which_code_became_what_it_is(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "vl12in1/model").mkdir(parents=True)
    notebook = tmp_path / "nbs/study/train.ipynb"
    notebook.parent.mkdir(parents=True)
    codes = []
    for subject, layers, note in [("One layer", 1, "a"), ("Two layers", 2, "a"), ("Notes", 2, "b"), ("Three layers", 3, "b")]:
        (tmp_path / "vl12in1/model/blocks.py").write_text(f"layers = {layers}")
        cells = [dict(cell_type="markdown", metadata={}, source=note), dict(cell_type="code", metadata={}, source="train()")]
        notebook.write_text(json.dumps(dict(cells=cells)))
        git(tmp_path, "add", "--all")
        git(tmp_path, "commit", "--quiet", "-m", subject)
        codes.append({path: provenance._digest_here(path) for path in ("vl12in1/model", "build/views/train.py")})
    assert codes[1] == codes[2] != codes[0]  # prose of a notebook is no code
    assert [commit_of(code).split(maxsplit=2)[2] for code in codes] == ["One layer", "Notes", "Notes", "Three layers"]
    assert commit_of(codes[0] | {"vl12in1/model": "other"}) is None
    assert commit_of(codes[0] | {"vl12in1/gone.py": "gone"}) is None
