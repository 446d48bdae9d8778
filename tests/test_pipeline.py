"""The pipeline: what a stage depends on, what a change reruns, and that parameters arrive.

The graph is read with DVC itself, from the dvc.yaml of this repository; nothing is run but toy notebooks."""
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import asdict, replace
from importlib import import_module
from itertools import combinations
from pathlib import Path
from pkgutil import walk_packages

import pytest
import yaml
from dvc.repo import Repo

import vl12in1
from vl12in1.command import main as tools
from vl12in1.study import experiment, parallel
from vl12in1.study.notebooks import OWN, NotebookError, check_parameters, code_view, execute, main, says_all, settings
from vl12in1.study.settings import problems_of_training
from vl12in1.tasks import ASKABLE, GROUPS, TASKS
from vl12in1.training.merged import read_mergers
from vl12in1.training.merging import WAYS
from vl12in1.training.runs import Run, parent, read_grid

ROOT = Path(__file__).resolve().parents[1]
STUDY = sorted((ROOT / "nbs/study").glob("*.ipynb"))
GRID = yaml.safe_load((ROOT / "params.yaml").read_text())
PROFILES = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "profiles").glob("*.yaml")}


# --- toy notebooks

def notebook(*cells):
    "Cells as (source, tags…) for code, a plain string for prose."
    made = [dict(cell_type="markdown", metadata={}, source=cell, id=str(i)) if isinstance(cell, str) else
            dict(cell_type="code", metadata=dict(tags=list(cell[1:])), source=cell[0], outputs=[], execution_count=None, id=str(i))
            for i, cell in enumerate(cells)]
    return json.dumps(dict(cells=made, metadata={}, nbformat=4, nbformat_minor=5))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "An empty study in the working directory; returns a function that writes its notebook `toy`."
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "nbs/study").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = tmp_path / "nbs/study/toy.ipynb"

    def write(*cells):
        path.write_text(notebook(*cells))
        return path
    return write


# --- errors

def kinds(kind):
    "A class of errors and all that are made from it."
    return {kind}.union(*map(kinds, kind.__subclasses__()))


def test_every_error_of_the_library_about_what_it_was_given_has_no_traceback():
    for module in walk_packages(vl12in1.__path__, "vl12in1."):
        if not module.name.startswith("vl12in1.study"): import_module(module.name)
    own = {kind.__name__ for base in (ValueError, OSError, ImportError) for kind in kinds(base) if kind.__module__.startswith("vl12in1")}
    assert own == OWN and all(map(says_all, ["FileExistsError", "UnicodeDecodeError", "ModuleNotFoundError", *own]))
    assert not any(map(says_all, ["KeyError", "TypeError", "open", "Exception", "NotebookError"]))


# --- views

def test_prose_outputs_and_ids_are_not_in_a_view(checkout):
    before = code_view(checkout("Prose.", ("a = 1", "parameters"), ("a + 1",)))
    path = checkout("Better prose.", ("a = 1", "parameters"), "More prose.", ("a + 1\n",), ("",))
    run = json.loads(path.read_text())
    for number, cell in enumerate(run["cells"]):
        cell["id"] = f"other-{number}"
        if cell["cell_type"] == "code": cell |= dict(execution_count=7, outputs=[dict(output_type="stream", name="stdout", text="2")])
    path.write_text(json.dumps(run))
    assert code_view(path) == before


@pytest.mark.parametrize("changed", [
    [("a = 2", "parameters"), ("a + 1",)], [("a = 1",), ("a + 1",)], [("a + 1",), ("a = 1", "parameters")],
    [("a = 1", "parameters"), ("a + 1",), ("b = 2",)], [("a = 1\na + 1", "parameters")]])
def test_code_tags_and_order_are_in_a_view(checkout, changed):
    before = code_view(checkout(("a = 1", "parameters"), ("a + 1",)))
    assert code_view(checkout(*changed)) != before


@pytest.mark.parametrize("path", STUDY, ids=lambda path: path.stem)
def test_prose_of_a_study_notebook_changes_no_view(path, tmp_path):
    edited = json.loads(path.read_text())
    for cell in edited["cells"]:
        if cell["cell_type"] == "markdown" and not cell["metadata"].get("tags"): cell["source"] = "Something else."
    (tmp_path / path.name).write_text(json.dumps(edited))
    assert code_view(tmp_path / path.name) == code_view(path)


LEGENDS = [(path, number) for path in STUDY for number, cell in enumerate(json.loads(path.read_text())["cells"])
           if cell["cell_type"] == "markdown" and cell["metadata"].get("tags")]


@pytest.mark.parametrize("path, number", LEGENDS, ids=lambda value: getattr(value, "stem", value))
def test_a_word_of_a_legend_changes_the_view(path, number, tmp_path):
    edited = json.loads(path.read_text())
    edited["cells"][number]["source"] = ["One word more. ", *edited["cells"][number]["source"]]
    (tmp_path / path.name).write_text(json.dumps(edited))
    assert code_view(tmp_path / path.name) != code_view(path)


def test_every_table_has_a_legend():
    assert {path.stem for path, _ in LEGENDS} >= {path.stem for path in STUDY if path.stem.startswith("table_")} | {"index"}


# --- parameters

def test_a_value_reaches_the_notebook(checkout, tmp_path):
    checkout("Title", ("run = 'default'", "parameters"), ("from pathlib import Path; Path('passed').write_text(run)",))
    main(["run", "toy", "run=st_all_refcoco_plus"])
    assert (tmp_path / "passed").read_text() == "st_all_refcoco_plus"
    assert (tmp_path / "executed/toy@st_all_refcoco_plus.ipynb").is_file()


@pytest.mark.parametrize("cells, names, complaint", [
    ([("run = 1",)], ["run"], "0 cells are tagged"),
    ([("run = 1", "parameters"), ("x = 1", "parameters")], ["run"], "2 cells are tagged"),
    ([("run = 1", "parameters")], ["runs"], "no parameter runs"),
    ([("print('run = 1')", "parameters")], ["run"], "no parameter run")])
def test_a_parameter_that_would_not_arrive_is_an_error(checkout, cells, names, complaint):
    path = checkout(*cells)
    with pytest.raises(ValueError, match=complaint): check_parameters(path, names)
    with pytest.raises(SystemExit, match=complaint): main(["run", "toy", *(f"{name}=at" for name in names)])
    assert not (ROOT / "executed/toy@at.ipynb").exists()


def test_where_nothing_is_passed_no_cell_is_needed(checkout):
    check_parameters(checkout(("run = 1",)), [])


def test_a_failing_cell_is_reported_with_its_traceback(checkout, tmp_path):
    checkout(("pass", "parameters"), ("weights = dict()\nweights['trunk']",))
    with pytest.raises(NotebookError) as failure: execute("toy")
    message = str(failure.value)
    assert "KeyError: 'trunk'" in message and "weights['trunk']" in message and "\x1b" not in message
    assert str(tmp_path / "executed/toy.ipynb") in message and (tmp_path / "executed/toy.ipynb").is_file()


def test_a_stage_runs_in_the_interpreter_that_started_it(checkout, tmp_path, monkeypatch):
    kernel = dict(argv=["/opt/removed/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], display_name="Python 3",
                  language="python")
    (tmp_path / "share/kernels/python3").mkdir(parents=True)
    (tmp_path / "share/kernels/python3/kernel.json").write_text(json.dumps(kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    checkout(("run = 1", "parameters"), ("import sys; from pathlib import Path; Path('python').write_text(sys.executable)",))
    main(["run", "toy"])
    assert (tmp_path / "python").read_text() == sys.executable


def test_an_assignment_without_a_value_is_refused(capsys):
    with pytest.raises(SystemExit): main(["run", "train", "at"])
    assert "name=value" in capsys.readouterr().err


# --- settings

def profile_files(folder, grid, **profiles):
    (folder / "profiles").mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(grid))
    for name, sizes in profiles.items(): (folder / f"profiles/{name}.yaml").write_text(yaml.safe_dump(sizes))


def test_settings_merge_the_grid_and_its_profile(checkout, tmp_path):
    profile_files(tmp_path, dict(profile="small", runs={}), small=dict(world=dict(seed=1)), large=dict(world=dict(seed=2)))
    assert settings() == dict(profile="small", runs={}, world=dict(seed=1))


@pytest.mark.parametrize("grid, complaint", [
    (dict(profile="huge", runs={}), "no profile 'huge'; there are: small"), (dict(profile="small", world={}), "world")])
def test_ambiguous_or_unknown_settings_are_errors(checkout, tmp_path, grid, complaint):
    profile_files(tmp_path, grid, small=dict(world=dict(seed=1)))
    with pytest.raises(ValueError, match=complaint): settings()


@pytest.mark.parametrize("file, text, complaint", [
    ("params.yaml", "profile: small\nruns: {at: [}\n", r"params.yaml, line 2: no YAML"),
    ("params.yaml", "profile: small\n\truns: {}\n", r"params.yaml, line 2: no YAML"),
    ("params.yaml", "profile: small\nruns:\n  at: {init: \x01}\n", r"params.yaml: no YAML"),
    ("params.yaml", "profile: small\nruns:\n", r"params.yaml: runs holds None: .* \{\} for none"),
    ("params.yaml", "profile: small\nruns: [at, st]\nfollowers: at\n", r"params.yaml: runs holds \['at', 'st'\]; followers holds 'at'"),
    ("params.yaml", "", r"params.yaml: holds None where sections"), ("params.yaml", "- runs\n", r"params.yaml: holds \['runs'\]"),
    ("params.yaml", "runs: {}\n", "no profile None; there are: small"),
    ("params.yaml", "profile: ../profiles/small\nruns: {}\n", "no profile '../profiles/small'; there are: small"),
    ("params.yaml", "profile: [small]\nruns: {}\n", r"no profile \['small'\]; there are: small"),
    ("profiles/small.yaml", "world: {seed: 1\ntraining: {}\n", r"small.yaml, line 2: no YAML"),
    ("profiles/small.yaml", "training:\nseeds: 3\n", r"small.yaml: training holds None; seeds holds 3"),
    ("profiles/small.yaml", "", r"small.yaml: holds None where sections")])
def test_a_file_that_cannot_be_read_is_named(checkout, tmp_path, file, text, complaint):
    profile_files(tmp_path, dict(profile="small", runs={}), small=dict(world=dict(seed=1)))
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=complaint): settings()


def test_a_section_that_is_missing_is_named_by_whoever_needs_it(checkout, tmp_path):
    profile_files(tmp_path, dict(profile="small", runs={}), small=dict(world=dict(seed=1)))
    for section in ("training", "followers"):
        with pytest.raises(ValueError, match=f"no section '{section}', neither in params.yaml nor in profiles/small.yaml"):
            settings()[section]
    with pytest.raises(ValueError, match="no section '(seeds|followers)'"): read_grid(settings())


@pytest.mark.parametrize("name", ["at@2", 2024, "my run", True, None, 1.5, "at.2", "", "scratch", "text_only", "pretrain_more", "größe",
                                  "-at"])
@pytest.mark.parametrize("section", ["runs", "followers", "merged", "pretraining"])
def test_names_that_stages_and_paths_cannot_have_are_refused(checkout, tmp_path, section, name):
    profile_files(tmp_path, dict(profile="small", **{section: {name: {}, "fine_2": {}}}), small={})
    with pytest.raises(ValueError) as refused: settings()
    assert "params.yaml" in str(refused.value) and repr(name) in str(refused.value) and "fine_2" not in str(refused.value)


def test_a_name_is_given_once(checkout, tmp_path):
    profile_files(tmp_path, dict(profile="small", runs={"at": {}}, followers={"at": {}}), small={})
    with pytest.raises(ValueError, match=r"'at' \(twice\)"): settings()


def test_profiles_have_the_same_sections():
    sections = {name: set(sizes) for name, sizes in PROFILES.items()}
    assert all(own == sections["full"] for own in sections.values())
    assert {tuple(sorted(sizes["training"])) for sizes in PROFILES.values()} == {tuple(sorted(PROFILES["miniature"]["training"]))}


@pytest.mark.parametrize("profile", PROFILES)
def test_long_runs_are_as_long_as_training_on_all_tasks_and_fine_tuning(profile):
    length = {kind: section["iterations"] for kind, section in PROFILES[profile]["training"].items() if "iterations" in section}
    assert length["long"] == length["multi"] + length["finetune"]


@pytest.mark.parametrize("profile", sorted(set(PROFILES) - {"full"}))
def test_single_tasks_groups_and_all_tasks_take_equal_steps_per_task(profile):
    single, few, multi = (PROFILES[profile]["training"][kind]["iterations"] for kind in ("single", "few", "multi"))
    assert single == few == multi


@pytest.mark.parametrize("name", ["thorough", "beyond"])
def test_complete_runs_are_the_study_with_more_seeds(name):
    larger, study = deepcopy(PROFILES[name]), deepcopy(PROFILES["miniature"])
    larger.pop("seeds"), study.pop("seeds")
    assert larger["sweep"].pop("trials") >= study["sweep"].pop("trials") == 0
    assert larger == study, f"profiles/{name}.yaml and profiles/miniature.yaml may differ in seeds and trials of the sweep only"


def test_the_thorough_study_has_all_seeds_of_the_study_and_more():
    more, seeds = PROFILES["thorough"]["seeds"], PROFILES["miniature"]["seeds"]
    assert all(set(more[name]) >= set(own) for name, own in seeds.items()) and PROFILES["thorough"]["sweep"]["trials"] > 0
    assert len(more["main"]) == 5 and len(more["side"]) == 3


RUNS = GRID["runs"] | GRID["followers"]
TESTED = [*RUNS, *GRID["merged"]]
TESTS = {f"{stage}@{name}" for stage, section in (("test", "runs"), ("test_follower", "followers"), ("test_merged", "merged"))
         for name in GRID[section]}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_grid_fits_every_profile(profile):
    assert list(read_grid(GRID | PROFILES[profile])) == list(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_an_entry_of_the_grid_is_a_run_that_can_begin(name):
    run = Run.of(name, RUNS[name])
    assert run.init in {"scratch", *GRID["runs"], *(f"pretrain_{key}" for key in GRID["pretraining"])}
    assert all(run.kind in sizes["training"] and run.seeds in sizes["seeds"] for sizes in PROFILES.values())
    for tasks in run.tasks().values():
        assert tasks and set(tasks) <= set(ASKABLE)
        if run.init in RUNS: assert parent(run, tasks, read_grid(GRID | PROFILES["smoke"])) in Run.of(run.init, RUNS[run.init]).tasks()


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_merged_fits_every_profile_and_waits_for_what_it_is_made_of(profile, graph):
    mergers = read_mergers(GRID | PROFILES[profile])
    assert {merger.way for merger in mergers.values()} == set(WAYS)
    for name, merger in mergers.items():
        trained = {f"train@{merger.run}", f"pretrain@{merger.base.removeprefix('pretrain_')}"}
        assert {stage for stage in graph[f"merge@{name}"] if stage.startswith(("train", "pretrain", "scratch"))} == trained
        assert f"merge@{name}" in graph[f"test_merged@{name}"]


def test_the_grid_is_complete():
    run = {name: Run.of(name, entry) for name, entry in RUNS.items()}
    assert not GRID["runs"].keys() & GRID["followers"].keys()
    assert all(len(run[name].tasks()) == 12 for name in ("st_all", "st_clean", "gt_ft", "ft", "ft_all", "st_10", "st_25", "st_50"))
    assert run["gt"].tasks() == GROUPS and run["at"].tasks() == {"all": tuple(TASKS)}
    partners = {frozenset(tasks) for name in ("pairs", "triples") for tasks in run[name].tasks().values()}
    one_of_each = ("vqa", "flickr30k_retrieval", "visual7w", "nlvr2")
    assert partners == {frozenset(some) for n in (2, 3) for some in combinations(one_of_each, n)}


@pytest.mark.parametrize("name, changed", [
    ("token_per_head", {"tokens"}), ("no_token", {"tokens"}), ("no_stop_and_go", {"stop_and_go"}), ("proportional", {"schedule"}),
    ("vanilla", {"tokens", "stop_and_go"}), ("uncertainty", {"losses"}), ("one_step", {"gradients"}), ("surgery", {"gradients"}),
    ("at_without_g4", {"models"}), ("at_original", {"init"}), ("at_scratch", {"init"}), ("at_25", {"fraction"}),
    ("curriculum", {"schedule", "stop_and_go", "after"}), ("round_robin_equal", {"schedule", "stop_and_go", "after"}),
    ("at_long", {"kind"}), ("imtl_l", {"losses"}), ("dwa", {"losses"}), ("stch", {"losses", "gradients"}),
    ("famo", {"losses", "gradients"}), ("upgrad", {"gradients"}), ("cagrad", {"gradients"}), ("nash_mtl", {"gradients"}),
    ("aligned_mtl", {"gradients"}), ("temperature", {"schedule", "temperature"}), ("unimax", {"schedule"}),
    ("back_to_best", {"schedule", "stop_and_go"}), ("one_step_equal", {"schedule", "gradients", "stop_and_go", "after"}),
    ("at_captions", {"models"})])
def test_an_ablation_changes_what_it_says_and_nothing_else(name, changed):
    ablation, whole = (asdict(Run.of(key, RUNS[key])) for key in (name, "at"))
    assert {field for field in whole if ablation[field] != whole[field]} - {"seeds", "affinity"} == changed


# --- what goes wrong ends in one line

def ending(monkeypatch, folder, command, *arguments):
    "What the main function of a module leaves the interpreter with, called in a folder: a message (exit status 1) or a number."
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end: command(list(arguments))
    return end.value.code


@pytest.mark.parametrize("command, arguments", [
    (main, ["views"]), (main, ["run", "world"]), (parallel.main, []), (parallel.main, ["--tables"]),
    (experiment.main, ["train", "at"]), (experiment.main, ["test", "at"]), (tools, ["doctor"])])
def test_outside_of_a_checkout_a_command_ends_in_one_line(tmp_path, monkeypatch, command, arguments):
    message = ending(monkeypatch, tmp_path, command, *arguments)
    assert "start this inside a checkout" in message and "\n" not in message


@pytest.mark.parametrize("command, arguments", [(main, ["veiws"]), (parallel.main, ["--sheets"]), (experiment.main, ["train"])])
def test_a_command_that_is_none_is_a_matter_of_usage(tmp_path, monkeypatch, capsys, command, arguments):
    assert ending(monkeypatch, tmp_path, command, *arguments) == 2
    assert "usage: " in capsys.readouterr().err


@pytest.fixture
def small_study(tmp_path):
    "A checkout of the grid and the profiles, and no data; returns its folder."
    (tmp_path / "dvc.yaml").touch()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    for name in ("train", "test", "pretrain"):
        (tmp_path / "nbs/study").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / f"nbs/study/{name}.ipynb", tmp_path / "nbs/study")
    return tmp_path


@pytest.mark.parametrize("command, arguments", [
    (parallel.main, []), (experiment.main, ["train", "st_clean"]), (experiment.main, ["test", "st_clean"])])
def test_a_slip_in_the_last_entry_is_found_before_anything_runs(small_study, monkeypatch, command, arguments):
    edit(small_study / "params.yaml", "schedule: hard_first", "schedule: hardest_first")
    message = ending(monkeypatch, small_study, command, *arguments)
    assert "params.yaml: run 'anti_curriculum': schedule 'hardest_first' is not one of round_robin" in message and "\n" not in message


@pytest.mark.parametrize("notebook, complaint", [
    ("train", "no run 'nosuch'; there are: st_all, st_clean"),
    pytest.param("test", "no run 'nosuch'; there are: st_all, st_clean", marks=pytest.mark.slow),
    pytest.param("pretrain", "no pre-training 'nosuch'; there are: improved, original", marks=pytest.mark.slow)])
def test_a_run_that_there_is_not_is_no_key_error(small_study, monkeypatch, notebook, complaint):
    monkeypatch.chdir(small_study)
    with pytest.raises(NotebookError, match=f"ValueError: params.yaml: {complaint}"):
        execute(notebook, run="nosuch")


# --- the graph

@pytest.fixture(scope="module")
def dvc_copy(tmp_path_factory):
    "A repository with this one's pipeline files and study notebooks, and no outputs."
    copy = tmp_path_factory.mktemp("pipeline")
    for name in ("dvc.yaml", "params.yaml", "data.dvc", ".dvcignore"): shutil.copy(ROOT / name, copy)
    for name in (".dvc/config", "profiles", "nbs/study"):
        (copy / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy / name)
    git(copy, "init", "--quiet")
    return copy


def git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def graph(dvc_copy):
    "Stage -> the stages it waits for, by DVC's own reading."
    with contextlib.chdir(dvc_copy), Repo() as repo:
        return {stage.addressing: {needed.addressing for needed in repo.index.graph.successors(stage)}
                for stage in repo.index.stages}


@pytest.fixture(scope="module")
def stages(dvc_copy):
    "Stage -> its dependencies and outputs, as paths."
    with contextlib.chdir(dvc_copy), Repo() as repo:
        return {stage.addressing: ({dep.def_path for dep in stage.deps}, {out.def_path for out in stage.outs})
                for stage in repo.index.stages}


def before(graph, stage):
    "Everything that has to be done before a stage."
    return graph[stage].union(*(before(graph, needed) for needed in graph[stage]))


def test_every_run_is_a_stage_that_follows_its_parent(graph):
    parents = {"scratch": "scratch", **{f"pretrain_{name}": f"pretrain@{name}" for name in GRID["pretraining"]},
               **{name: f"train@{name}" for name in GRID["runs"]}}
    followed = lambda stage: {needed for needed in graph[stage] if needed.startswith(("train@", "pretrain@", "scratch"))}
    for name, run in GRID["runs"].items(): assert followed(f"train@{name}") == {parents[run["init"]]}
    for name, run in GRID["followers"].items():
        assert followed(f"train_follower@{name}") == {parents[run["init"]], f"train@{run['after']}"}
    for name in GRID["pretraining"]: assert "scratch" in graph[f"pretrain@{name}"]


def test_every_run_is_tested_by_a_stage_that_follows_its_training_alone(graph):
    trained = {"test": ("train", GRID["runs"]), "test_follower": ("train_follower", GRID["followers"])}
    for stage, (training, runs) in trained.items():
        for name in runs:
            needed = graph[f"{stage}@{name}"]
            assert {other for other in needed if other.startswith(("train@", "train_follower@"))} == {f"{training}@{name}"}


def test_a_follower_depends_on_all_that_other_training_depends_on(stages):
    trained, ordered = (stages[name][0] for name in ("train@at", "train_follower@round_robin_equal"))
    assert ordered == trained | {"reports/runs/at.json"}


def test_data_is_imported_between_the_world_and_its_users(graph):
    assert graph["data.dvc"] == {"world"}
    assert {stage for stage, needed in graph.items() if "world" in needed} == {"data.dvc"}
    assert "frozen" not in yaml.safe_load((ROOT / "data.dvc").read_text())
    assert {"clean", "text", "regions"} <= {stage for stage, needed in graph.items() if "data.dvc" in needed}
    assert "data.dvc" in before(graph, "train@at") and "data.dvc" in before(graph, "test@at")


def test_who_trains_or_tests_reads_frames_and_no_corpus(stages):
    for stage, (needed, _) in stages.items():
        if not stage.startswith(("pretrain@", "train@", "train_follower@", "merge@", "test", "text_only")): continue
        assert "build/frames" in needed and not needed & {"data", "vl12in1/corpora"}, stage


def test_the_lock_of_the_environment_is_a_dependency_of_all_that_computes(stages):
    assert {stage for stage, (needed, _) in stages.items() if "constraints.txt" not in needed} == {"views", "data.dvc"}


def test_cleaning_comes_before_whatever_learns(graph):
    learning = [stage for stage in graph if stage.startswith(("text", "regions", "pretrain@", "train@", "train_follower@"))]
    assert all("clean" in before(graph, stage) for stage in learning)


def test_look_alikes_are_found_once_before_whatever_learns_from_them(graph):
    assert {"clean", "regions"} <= before(graph, "neighbours")
    users = {stage for stage, needed in graph.items() if "neighbours" in needed}
    assert users == {"sweep", *(f"train@{name}" for name in GRID["runs"]), *(f"train_follower@{name}" for name in GRID["followers"])}


def test_the_pipeline_draws_no_line_back(graph):
    assert not any("table" in needed or "figure" in needed for stages in graph.values() for needed in stages)
    assert "views" in graph["world"] and graph["views"] == set()


def test_tables_need_only_what_git_keeps(stages):
    for stage, (needed, _) in stages.items():
        if not stage.startswith(("table_", "figure_", "index")): continue
        for path in needed:
            kept = path.startswith(("build/views/", "vl12in1/", "reports/", "params.yaml", "constraints.txt", "PROTOCOL.md"))
            assert kept, f"{stage} needs {path}"


RESULTS = {"reports/runs", "reports/scores", "reports/metrics", "reports/items"}


def test_what_shows_runs_waits_for_all_of_them(stages, graph):
    tested = TESTS | {"text_only"}
    showing = {stage for stage, (needed, _) in stages.items() if needed & RESULTS}
    assert showing >= {"index", "table_multitask", "table_ablations", "figure_learning"}
    for stage in showing:
        assert RESULTS <= stages[stage][0] and tested <= graph[stage], stage


def test_every_run_leaves_the_four_files_that_tables_read(stages):
    made = {path for _, outs in stages.values() for path in outs}
    for run in ["text_only", *TESTED]:
        assert {f"{folder}/{run}.{'csv' if folder.endswith('items') else 'json'}" for folder in RESULTS} <= made, run


def test_a_new_run_is_one_line(dvc_copy, tmp_path):
    copy = tmp_path / "study"
    shutil.copytree(dvc_copy, copy)
    edit(copy / "params.yaml", "\nruns:\n", "\nruns:\n  another: {init: at, kind: finetune, models: task, seeds: side}\n")
    with contextlib.chdir(copy), Repo() as repo:
        stages = {stage.addressing: repo.index.graph.successors(stage) for stage in repo.index.stages}
        needs = {name: {other.addressing for other in others} for name, others in stages.items()}
    assert "train@at" in needs["train@another"] and "train@another" in needs["test@another"]
    assert all("test@another" in needs[stage] for stage in ("index", "table_multitask"))


def test_a_field_of_a_run_is_set_from_the_command_line(tmp_path):
    from dvc.utils.hydra import apply_overrides
    for override, run in [("runs.vanilla.schedule=proportional", "vanilla"), ("++runs.at.schedule=proportional", "at")]:
        path = shutil.copy(ROOT / "params.yaml", tmp_path)
        apply_overrides(path, [override])
        changed = yaml.safe_load(Path(path).read_text())
        assert changed["runs"][run]["schedule"] == "proportional" != GRID["runs"][run].get("schedule")
        changed["runs"][run] = GRID["runs"][run]
        assert changed == GRID


def test_a_kind_of_run_is_made_from_the_command_line(tmp_path):
    from dvc.utils.hydra import apply_overrides
    params, profile = shutil.copy(ROOT / "params.yaml", tmp_path), shutil.copy(ROOT / "profiles/miniature.yaml", tmp_path)
    apply_overrides(profile, ["++training.slow={iterations: 500, learning_rate: 5.0e-4}"])
    apply_overrides(params, ["++runs.at.kind=slow"])
    grid, sizes = (yaml.safe_load(Path(path).read_text()) for path in (params, profile))
    assert read_grid(grid | sizes)["at"] == replace(read_grid(GRID | PROFILES["miniature"])["at"], kind="slow")
    assert problems_of_training(sizes["training"]) == [] and sizes["training"].pop("slow")["learning_rate"] == 5e-4
    assert sizes == PROFILES["miniature"]


def test_an_experiment_changes_one_value_of_the_file(tmp_path):
    from dvc.utils.serialize import modify_yaml
    copy = tmp_path / "params.yaml"
    copy.write_text((ROOT / "params.yaml").read_text())
    with modify_yaml(str(copy)) as grid: grid["runs"]["vanilla"]["schedule"] = "proportional"
    lines = zip((ROOT / "params.yaml").read_text().splitlines(), copy.read_text().splitlines(), strict=True)
    changed = [pair for pair in lines if pair[0] != pair[1]]
    assert changed == [(old, old.replace("round_robin", "proportional")) for old, _ in changed] and len(changed) == 1


def test_no_entry_of_the_grid_leans_on_another():
    # `dvc exp run -S` would write what an entry inherits into each entry that does
    assert not re.search(r"<<:|&\w|: \*\w", (ROOT / "params.yaml").read_text())


def test_plots_and_artifacts_are_outputs(stages):
    made = {path for _, outs in stages.values() for path in outs}
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    pictures = {plot for plot in pipeline["plots"] if isinstance(plot, str)}
    curves = [curve for plot in pipeline["plots"] if isinstance(plot, dict) for curve in plot.values()]
    tables = {table for curve in curves for table in curve["y"]}
    assert pictures and tables and pictures | tables <= made
    for artifact in pipeline["artifacts"].values():
        assert any(artifact["path"] == path or artifact["path"].startswith(path + "/") for path in made), artifact


def test_plots_show_every_task_from_data(dvc_copy, tmp_path):
    copy = tmp_path / "study"
    shutil.copytree(dvc_copy, copy)
    shutil.copytree(ROOT / ".dvc/plots", copy / ".dvc/plots")
    (copy / "reports").mkdir()
    for name in ("figure_learning.csv", "figure_stop_and_go.csv"): shutil.copy(ROOT / "reports" / name, copy / "reports")
    done = subprocess.run([sys.executable, "-m", "dvc", "plots", "show", "--json"], cwd=copy, capture_output=True, text=True, check=True)
    plots = json.loads(done.stdout)["data"]
    for name, y, models in (("learning curves", "score", {"single-task", "all-tasks"}), ("stop and go", "steps", {"all-tasks"})):
        content = plots[name][0]["content"]
        drawn = {(line["models"], line["task"]) for line in content["data"]["values"]}
        assert drawn == {(model, task) for model in models for task in TASKS}
        assert [content["spec"]["encoding"][axis]["field"] for axis in "xy"] == ["iteration", y]


def test_scores_are_metrics_and_stages_are_written_once(dvc_copy):
    with contextlib.chdir(dvc_copy), Repo() as repo: metrics = {out.def_path for out in repo.index.metrics}
    assert {f"reports/scores/{run}.json" for run in ("text_only", *TESTED)} <= metrics
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 480


def test_no_stage_depends_on_a_notebook_or_on_an_executed_one(stages):
    for stage, (needed, made) in stages.items():
        assert not any(path.startswith("executed") for path in needed | made), stage
        if stage != "views": assert not any(path.startswith("nbs") for path in needed), stage


def test_no_stage_writes_into_data(stages):
    assert [stage for stage, (_, made) in stages.items() if any(path.split("/")[0] == "data" for path in made)] == ["data.dvc"]


def called(file):
    "The notebooks that the stages of a file run."
    commands = [stage.get("do", stage)["cmd"] for stage in yaml.safe_load((ROOT / file).read_text())["stages"].values()]
    return {command.split(" run ")[1].split()[0] for command in commands if " run " in command}


def test_every_study_notebook_has_a_stage_and_every_stage_its_notebook():
    # how fast features are read is never the same twice, and no stage of DVC's
    benchmarks = set(re.findall(r"notebooks run (benchmark_\w+)", (ROOT / "Makefile").read_text()))
    study = called("dvc.yaml")
    assert study | benchmarks == {path.stem for path in STUDY} and not study & benchmarks


def imported(path):
    "The files of the library that a study notebook imports directly."
    modules = set(re.findall(r"from vl12in1\.([\w.]+) import", code_view(path)))
    modules |= {name.strip() for names in re.findall(r"from vl12in1 import ([\w, ]+)", code_view(path)) for name in names.split(",")}
    return {module.replace(".", "/") for module in modules} - {"study/notebooks"}


@pytest.mark.parametrize("path", [path for path in STUDY if path.stem in called("dvc.yaml")], ids=lambda path: path.stem)
def test_a_stage_depends_on_what_its_notebook_imports(path, stages):
    needed = next(deps for stage, (deps, _) in stages.items() if stage.split("@")[0] == path.stem)
    covered = {dep.removeprefix("vl12in1/").removesuffix(".py") for dep in needed if dep.startswith("vl12in1/")}
    for module in imported(path):
        assert any(module == dep or module.startswith(dep + "/") for dep in covered), f"{path.stem} imports {module}"


# --- what a change reruns

@pytest.fixture(scope="module")
def finished(dvc_copy, tmp_path_factory):
    "The copy, with a file for every dependency and output, committed as if everything had been run."
    copy = tmp_path_factory.mktemp("finished") / "study"
    shutil.copytree(dvc_copy, copy)
    with contextlib.chdir(copy), Repo() as repo:
        paths = {out.def_path for stage in repo.index.stages for out in [*stage.deps, *stage.outs] if out.def_path}
    for path in sorted(paths - {"nbs/study", "build/views", "params.yaml"}):
        if path.startswith("profiles/"): continue
        file = copy / path if Path(path).suffix else copy / path / "file"   # what has no ending is a folder
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists(): file.write_text(path if path != "data" else "build/miniature")
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    subprocess.run([sys.executable, "-m", "vl12in1.study.notebooks", "views"], cwd=copy, env=environment, check=True)
    with contextlib.chdir(copy), Repo() as repo: repo.commit(force=True)
    return copy


def stale(copy):
    "Stages that DVC would run, by name, without data.dvc."
    with contextlib.chdir(copy), Repo() as repo: return set(repo.status())


def edit(path, old, new):
    "Replace text in a file, and hand back what undoes it."
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return lambda: path.write_text(text)


def test_a_finished_study_is_up_to_date(finished):
    assert stale(finished) == set()


@pytest.mark.parametrize("run, old, new", [
    ("no_token", "tokens: none, \n      stop_and_go: true}", "tokens: head, \n      stop_and_go: true}"),
    pytest.param("st_25", "task, \n      fraction: 0.25}", "task, \n      fraction: 0.2}", marks=pytest.mark.slow),
    pytest.param("pairs", "  G3+G4: [visual7w, nlvr2]", "  G3+G4: [refcoco, nlvr2]", marks=pytest.mark.slow),
    ("ft_all", "finetune, seeds: extra, models: task, data: all}", "finetune, seeds: extra, models: task}")])
def test_one_grid_entry_concerns_one_run(finished, run, old, new):
    undo = edit(finished / "params.yaml", old, new)
    try: assert stale(finished) == {f"train@{run}", "index"}  # which lists all runs
    finally: undo()


def test_a_grid_entry_concerns_what_descends_from_it(finished, graph):
    undo = edit(finished / "params.yaml", "  at: {init: pretrain_improved,", "  at: {losses: uncertainty, init: pretrain_improved,")
    try:
        assert stale(finished) == {"train@at", "sweep", "index"}  # no other entry leans on it
        following = {name for name, needed in graph.items() if "train@at" in needed}
        assert following >= {"train@ft", "train@ft_all", "test@at", "consistency", "attention"}
    finally: undo()


@pytest.mark.slow
def test_one_pretraining_concerns_all_and_no_run_yet(finished):
    undo = edit(finished / "params.yaml", "original:\n    overlap:\n", "original:\n    overlap: 0.9\n")
    try: assert stale(finished) == {f"pretrain@{key}" for key in GRID["pretraining"]}  # each is asked in the others' ways, too
    finally: undo()


@pytest.mark.slow
def test_the_length_of_a_kind_of_run_concerns_that_kind(finished):
    length = PROFILES[GRID["profile"]]["training"]["finetune"]["iterations"]
    undo = edit(finished / f"profiles/{GRID['profile']}.yaml", f"finetune: {{iterations: {length}", "finetune: {iterations: 7")
    try: assert stale(finished) == {f"train@{name}" for name, run in GRID["runs"].items() if run["kind"] == "finetune"}
    finally: undo()


@pytest.mark.slow
def test_more_seeds_concern_the_runs_that_are_repeated_and_what_they_begin_with(finished):
    path = finished / f"profiles/{GRID['profile']}.yaml"
    undo = edit(path, "seeds: {main: [", "seeds: {main: [77, ")
    repeated = {f"{what}@{name}" for name, run in GRID["runs"].items() if run["seeds"] == "main" for what in ("train", "test")}
    begun = {"scratch", *(f"pretrain@{key}" for key in GRID["pretraining"])}
    asked = {"forgetting", "calibration", "origin"}  # of the models of each seed; what every table says of seeds
    try: assert stale(finished) == repeated | begun | asked
    finally: undo()


@pytest.mark.slow
def test_the_pool_of_retrieval_concerns_tests_alone(finished):
    undo = edit(finished / f"profiles/{GRID['profile']}.yaml", "retrieval: {pool: 1000}", "retrieval: {pool: null}")
    try: assert stale(finished) == TESTS
    finally: undo()


TRAINING = ("scratch", "pretrain@", "train@", "train_follower@")


@pytest.mark.parametrize("part, trains, tests", [
    ("evaluation", False, True), ("training", True, True), ("corpora", False, False),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ("study", False, False), ("world", False, False), ("examples", True, True), ("model", True, True)])])
def test_a_comment_concerns_what_depends_on_that_part(finished, part, trains, tests):
    file = finished / "vl12in1" / part / "file"
    file.parent.mkdir(exist_ok=True)
    before = file.read_text()
    file.write_text(before + "# a comment")
    try: changed = stale(finished)
    finally: file.write_text(before)
    assert changed and any(stage.startswith(TRAINING) for stage in changed) == trains
    assert any(stage.startswith("test") for stage in changed) == tests
    if trains: assert not changed & {"world", "clean", "regions"} and {"train@at", "train@st_clean"} <= changed


@pytest.mark.slow
def test_another_environment_concerns_all_that_computes(finished, stages):
    undo = edit(finished / "constraints.txt", "constraints", "torch==0")
    try: assert stale(finished) == set(stages) - {"views", "data.dvc"}
    finally: undo()


@pytest.mark.slow
def test_what_would_run_is_said_in_a_checkout_without_outputs(finished, tmp_path):
    copy = tmp_path / "clone"
    shutil.copytree(finished, copy)
    for path in ("build", "runs", "data", ".dvc/cache"): shutil.rmtree(copy / path)
    with contextlib.chdir(copy), Repo() as repo:
        assert repo.reproduce(dry=True, allow_missing=True) == []
        assert len(repo.reproduce(dry=True, force=True)) == len(repo.index.stages)


@pytest.mark.slow
def test_prose_of_no_notebook_concerns_any_stage(finished):
    paths, before = sorted((finished / "nbs/study").glob("*.ipynb")), stale(finished)
    for path in paths:
        book = json.loads(path.read_text())
        book["cells"][0]["source"] = "# Another title"
        path.write_text(json.dumps(book))
    assert before == set() and stale(finished) == {"views"}
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    subprocess.run([sys.executable, "-m", "vl12in1.study.notebooks", "views"], cwd=finished, env=environment, check=True)
    assert stale(finished) == {"views"}   # its input changed, its output did not


ANOTHER = "  another: {init: scratch, kind: single, models: {both: [refcoco, snli_ve]}, seeds: side}\n"


def dvc(folder, *arguments):
    "A command of DVC in a checkout, as whoever has activated the environment types it; what it says."
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = dict(os.environ, PYTHONPATH=str(folder), PATH=path)
    for who in ("AUTHOR", "COMMITTER"): environment |= {f"GIT_{who}_NAME": "a", f"GIT_{who}_EMAIL": "a@b"}
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def small_study_run(tmp_path_factory):
    "A checkout with a new run, trained and tested in the profile `smoke`, and committed."
    folder = tmp_path_factory.mktemp("small") / "study"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in listed:
        if name.startswith(("reports/", "dvc.lock")) or not (ROOT / name).is_file(): continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    edit(folder / "params.yaml", f"profile: {GRID['profile']}\n", "profile: smoke\n")
    edit(folder / "params.yaml", "\nruns:\n", "\nruns:\n" + ANOTHER)
    git(folder, "init", "--quiet")
    dvc(folder, "repro", "--quiet", "test@another")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "a run")
    return folder


@pytest.mark.slow
def test_a_new_run_is_trained_and_tested_for_one_line(small_study_run):
    scores = json.loads((small_study_run / "reports/scores/another.json").read_text())
    assert scores["both"]["seed0"].keys() == {"refcoco", "snli_ve"}
    assert (small_study_run / "runs/another/predictions/both/seed0/items.csv").is_file()


QUEUED = {  # experiment -> what is set, as the guide says it
    "scales": ["++runs.another.loss_scales.refcoco=2.0"],
    "rates": ["profiles/smoke.yaml:++training.single.learning_rate=5.0e-4"],
    "rests": ["++runs.another.stop_and_go=true", "profiles/smoke.yaml:training.stop_and_go.gap=2"],
    "slip": ["++runs.another.loss_scales.refcocoo=2.0"]}


def at_commit(folder, commit, path):
    return subprocess.run(["git", "show", f"{commit}:{path}"], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_queued_experiments_run_one_run_and_touch_nothing_else(small_study_run):
    folder = small_study_run
    before = tuple((folder / name).read_text() for name in ("dvc.lock", "params.yaml", "profiles/smoke.yaml"))
    for name, values in QUEUED.items():
        dvc(folder, "exp", "run", "--queue", "-n", name, *(word for value in values for word in ("-S", value)), "train@another")
    assert len(re.findall(r"\bQueued\b", dvc(folder, "queue", "status"))) == len(QUEUED)
    dvc(folder, "queue", "start", "--jobs", "2")
    deadline = time.monotonic() + 900
    while re.search(r"Queued|Running", dvc(folder, "queue", "status")) and time.monotonic() < deadline: time.sleep(1)
    ended = dict(re.findall(r"^\w+ +(\w+) .* (Success|Failed)$", dvc(folder, "queue", "status"), re.M))
    assert ended == dict.fromkeys(QUEUED, "Success") | dict(slip="Failed")
    assert "no task of this run; did you mean 'refcoco'?" in dvc(folder, "queue", "logs", "slip")
    stages = yaml.safe_load(before[0])["stages"]
    lines = subprocess.run(["git", "for-each-ref", "refs/exps", "--format=%(refname:lstrip=-1) %(objectname)"], cwd=folder,
                           capture_output=True, text=True, check=True).stdout.splitlines()
    commits, trained = dict(map(str.split, lines)), {}
    for name in QUEUED.keys() - {"slip"}:
        changed = yaml.safe_load(at_commit(folder, commits[name], "dvc.lock"))["stages"]
        assert {stage for stage in changed if changed[stage] != stages[stage]} == {"train@another"} and changed.keys() == stages.keys()
        trained[name] = json.loads(at_commit(folder, commits[name], "reports/runs/another.json"))
    assert trained["scales"]["loss_scales"] == {"refcoco": 2.0} and trained["rests"]["stop_and_go"]
    assert before == tuple((folder / name).read_text() for name in ("dvc.lock", "params.yaml", "profiles/smoke.yaml"))
    assert "learning_rate" in dvc(folder, "exp", "diff", "HEAD", "rates")
