"""The front page and the pages beside it: what follows from the study, and every command, with the test that runs it.

A command is a line of a `bash` block, or a piece of inline code that begins with one of `PROGRAMS`. Each has a line in `RUN_BY`; a new
one without a line fails, and so does a line without a command."""
import json
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import yaml
from dvc.cli import DvcParserError, parse_args

import vl12in1
from vl12in1.command import parser
from vl12in1.study import front
from vl12in1.study.front import between_groups, direct, drawn_stages, first_table, group_of, headline, parts
from vl12in1.study.protocol import renewed

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "nbs/guides").glob("*.ipynb"))
TEMPLATES = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
PROGRAMS = ("make", "vl12in1", "dvc", "python", "pip", "bash", "source", "sed", "torchrun", "pytest", "nbdev_export", "nbdev_clean")

TAKES_LONG = "takes too long, or changes the machine: it is understood, and not run"
CI, SMOKE = ".ci/run", ".ci/smoke"
RUN_BY = {  # command -> test, chapter or script that runs it
    "make study": SMOKE,
    "make": "test_readme.py::test_make_lists_its_targets",
    "make test": CI, "make test-slow": CI, "make smoke": CI,
    "make thorough": "test_thorough.py::test_a_complete_run_goes_on_where_it_was_stopped_and_is_kept",
    "make rerun": "test_thorough.py::test_a_complete_run_goes_on_where_it_was_stopped_and_is_kept",
    "make beyond": "test_thorough.py::test_a_complete_run_goes_on_where_it_was_stopped_and_is_kept",
    "make tables": SMOKE, "make site": "test_site.py::test_a_page_fits_and_is_complete",
    "make demo": "test_demo.py::test_a_picture_and_a_sentence_are_answered_by_all_tasks",
    "make lab": TAKES_LONG, "make benchmark": TAKES_LONG, "make faults": TAKES_LONG, "make clean": TAKES_LONG,
    "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make study": TAKES_LONG,
    "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cu126 make study": TAKES_LONG,
    "CUDA_VISIBLE_DEVICES=1 make study": TAKES_LONG,
    "source .venv/bin/activate": TAKES_LONG, "pip install -e .": TAKES_LONG,
    "bash .ci/run": TAKES_LONG, "bash build/slurm/submit.sh": "test_slurm.py::test_jobs_run_every_stage_when_its_turn_has_come",
    "nbdev_export": CI, "nbdev_clean": CI,
    "pytest tests/test_chapters.py -k 52_schedules": CI, "pytest -q tests/test_hygiene.py tests/test_prose.py": CI,
    "sed -i 's/^profile: .*/profile: full/' params.yaml": "test_readme.py::test_the_profile_is_chosen_by_one_line",
    "rm -rf data && dvc import-url --force /path/to/corpora data": "test_cases.py::test_an_import_replaces_data_that_is_there",
    "dvc repro": SMOKE, "dvc checkout": TAKES_LONG, "dvc repro regions": SMOKE,
    "dvc repro test@at": "test_pipeline.py::test_a_new_run_is_trained_and_tested_for_one_line",
    "dvc repro test@mine": "test_pipeline.py::test_a_new_run_is_trained_and_tested_for_one_line",
    "dvc repro --dry --allow-missing": "test_pipeline.py::test_what_would_run_is_said_in_a_checkout_without_outputs",
    "dvc status": "test_pipeline.py::test_a_finished_study_is_up_to_date", "dvc dag": TAKES_LONG,
    "dvc params diff": TAKES_LONG, "dvc metrics diff": TAKES_LONG,
    "dvc plots show": "test_pipeline.py::test_plots_show_every_task_from_data",
    "dvc exp run -S 'runs.vanilla.schedule=proportional' test@vanilla":
        "test_pipeline.py::test_an_experiment_changes_one_value_of_the_file",
    "dvc exp run --queue -n scales -S '++runs.at.loss_scales.vqa=2.0' test@at":
        "test_pipeline.py::test_queued_experiments_run_one_run_and_touch_nothing_else",
    "dvc exp run --queue -n rates -S 'profiles/miniature.yaml:++training.multi.learning_rate=5.0e-4' test@at":
        "test_pipeline.py::test_queued_experiments_run_one_run_and_touch_nothing_else",
    "dvc exp run --queue -n rests -S 'profiles/miniature.yaml:training.stop_and_go.gap=2' test@at":
        "test_pipeline.py::test_queued_experiments_run_one_run_and_touch_nothing_else",
    "dvc exp run --queue -n own -S 'profiles/miniature.yaml:++training.slow={iterations: 500}' -S 'runs.at.kind=slow' test@at":
        "test_pipeline.py::test_a_kind_of_run_is_made_from_the_command_line",
    "dvc queue start":
        "test_pipeline.py::test_queued_experiments_run_one_run_and_touch_nothing_else",
    "dvc queue status":
        "test_pipeline.py::test_queued_experiments_run_one_run_and_touch_nothing_else",
    "dvc queue logs scales":
        "test_pipeline.py::test_queued_experiments_run_one_run_and_touch_nothing_else",
    "dvc exp diff HEAD scales":
        "test_pipeline.py::test_queued_experiments_run_one_run_and_touch_nothing_else",
    "dvc exp show --only-changed": TAKES_LONG,
    "dvc exp apply scales": TAKES_LONG,
    "dvc exp remove scales": TAKES_LONG,
    "dvc exp show -A": TAKES_LONG,
    "dvc exp run": TAKES_LONG,
    "dvc exp run -n sweep -S 'profiles/miniature.yaml:sweep.trials=12' table_sweep": TAKES_LONG,
    "python -m vl12in1.study.experiment train at": "72_experiment", "python -m vl12in1.study.experiment test at": "72_experiment",
    'python -m vl12in1.study.slurm --options "--gres=gpu:1"': "test_slurm.py::test_jobs_run_every_stage_when_its_turn_has_come",
    "python -m vl12in1.study.protocol": "test_protocol.py::test_the_command_writes_the_tables_again_and_nothing_else",
    "python -m vl12in1.study.front": "test_readme.py::test_the_command_writes_its_parts_and_nothing_else",
    "python -m vl12in1.study.croissant FOLDER": "test_croissant.py::test_the_command_prints_a_description",
    "python -m vl12in1.study.cards at all 0 my-model": "test_cards.py::test_the_command_hands_a_model_on",
    "python benchmarks/accelerator.py": "test_accelerator.py",
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint first-machine:29400 -m vl12in1.study.experiment train at": "test_sharded.py",
    "vl12in1 --help": "test_asking.py::test_help_and_version_can_be_read",
    "vl12in1 --version": "test_asking.py::test_help_and_version_can_be_read",
    'vl12in1 answer picture.png "what colour is the ball"': "test_asking.py::test_the_command_says_what_the_predictor_says",
    "vl12in1 describe picture.png": "test_captioning.py::test_a_model_that_writes_is_saved_and_described_with_from_the_command_line",
    'vl12in1 answer photo.jpg "what colour is the ball" --model my-model --detector detectron_model.pth --save answer.png':
        "test_asking.py::test_published_weights_with_words_are_asked",
    "vl12in1 doctor": "80_doctor", "vl12in1 doctor FOLDER": "own_data",
    "vl12in1 doctor /path/to/corpora": "test_doctor.py::test_a_folder_can_be_examined_outside_of_a_checkout",
    "vl12in1 plan": "test_readme.py::test_the_plan_is_printed",
    "vl12in1 leaks": "own_data",
    "vl12in1 leaks /path/to/corpora --drop build/clean/test_images.json --detector their_images.json --collection coco":
        "test_doctor.py::test_leaks_decide_the_exit_status",
    "vl12in1 features FOLDER STORE": "90_command", "vl12in1 verify STORE": "90_command",
    "vl12in1 extract PICTURES STORE --detector PATH": "test_asking.py::test_a_folder_of_pictures_becomes_a_store",
    "vl12in1 inspect multi_task_model.bin": "90_command",
    "vl12in1 convert multi_task_model.bin my-model --config bert_base_6layer_6conect.json --words vocab.txt --answers vqa=label2ans.json":
        "checkpoint",
    "vl12in1 why reports/table_multitask.md vqa at": "test_provenance.py::test_the_command_says_so_by_its_exit_status",
    "vl12in1 compare OTHER_REPORTS": "test_reproduction.py::test_the_command_says_by_its_status_whether_all_was_reproduced",
}


# --- every command is run by a test

def pages():
    "Name and Markdown of all pages that say what to type."
    yield from ((name, (ROOT / name).read_text()) for name in ("README.md", "CONTRIBUTING.md"))
    yield from ((path.name, path.read_text()) for path in TEMPLATES)
    for path in GUIDES:
        cells = json.loads(path.read_text())["cells"]
        yield path.name, "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def commands(text):
    "The commands in Markdown, without comments; what has an ellipsis is no command."
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S):
        yield from filter(None, (re.sub(r"(^|\s\s+)#.*", "", line).strip() for line in block.splitlines()))
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for span in (" ".join(span.split()) for span in spans):
        program = next((word for word in span.split() if not re.match(r"[A-Z_]+=", word)), "")
        if program in PROGRAMS and "…" not in span and span not in ("vl12in1", "dvc", "pip"): yield span


ALL = sorted({command for _, text in pages() for command in commands(text)})


def test_every_command_has_a_test_and_every_line_a_command(): assert set(RUN_BY) == set(ALL)


def missing_test(place):
    "Whether what should run a command is not there: a test of a file, a chapter, a guide or a script."
    file, _, name = place.partition("::")
    if place == TAKES_LONG or (ROOT / file).is_file(): return False
    if file.endswith(".py"): return not re.search(rf"^def {name}", (ROOT / "tests" / file).read_text(), re.M)
    return not any((ROOT / folder / f"{file}.ipynb").is_file() for folder in ("nbs", "nbs/guides"))


def test_the_tests_are_there(): assert [place for place in RUN_BY.values() if missing_test(place)] == []


def test_a_test_that_is_not_there_is_missed():
    assert missing_test("test_readme.py::test_nothing") and missing_test("nowhere") and not missing_test("test_readme.py")


def test_commands_are_found_wherever_they_are():
    text = ("`make a` or `A=1 make b`, `make …`, `x.py`, `dvc`\n```bash\ndvc c   # d\n\n# e\nvl12in1 f '#g'\n```\n"
            "```python\nmake = 1\n```\n")
    assert list(commands(text)) == ["dvc c", "vl12in1 f '#g'", "make a", "A=1 make b"]


def test_blocks_say_what_they_are():
    "A block without a language would be searched for no commands."
    kinds = {kind for _, text in pages() for kind in re.findall(r"^```(.*)\n(?:.*\n)*?```$", text, re.M)}
    assert kinds <= {"bash", "python", "text", "mermaid"}


# --- and understood by the program that it names

def make(*arguments):
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def understand_make(arguments): assert make("--dry-run", *arguments)
def understand_pip(arguments): assert arguments == ["install", "-e", "."] and (ROOT / "pyproject.toml").is_file()
def understand_bash(arguments): assert (ROOT / arguments[0]).is_file() or arguments[0].startswith("build/")
def understand_source(arguments): assert arguments == [".venv/bin/activate"] and ".venv" in (ROOT / "Makefile").read_text()
def understand_pytest(arguments): assert [name for name in arguments if name.endswith(".py") and not (ROOT / name).is_file()] == []
def understand_script(arguments): assert arguments == []


def understand_vl12in1(arguments):
    try: parser().parse_args(arguments)
    except SystemExit as end: assert end.code == 0  # of --help and --version


def understand_dvc(arguments):
    parse_args(arguments)


def understand_rm(arguments):
    assert arguments[:3] == ["-rf", "data", "&&"]
    parse_args(arguments[4:])


def understand_torchrun(arguments):
    from torch.distributed.run import get_args_parser
    assert find_spec(get_args_parser().parse_args(arguments).training_script)


def understand_python(arguments):
    if arguments[0] == "-m": assert find_spec(arguments[1])
    else: assert (ROOT / arguments[0]).is_file()


UNDERSTAND = {name: globals().get(f"understand_{name}", understand_script) for name in (*PROGRAMS, "rm")}


@pytest.mark.parametrize("command", [command for command in ALL if not command.startswith("sed ")])
def test_a_command_is_understood(command):
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    UNDERSTAND[words[0]](words[1:])


@pytest.mark.parametrize("command", ["make nothing", "vl12in1 anwser a.png b", "dvc rerpo", "python -m vl12in1.study.nothing"])
def test_a_slip_is_not_understood(command, capsys):
    with pytest.raises((AssertionError, subprocess.CalledProcessError, DvcParserError)): test_a_command_is_understood(command)


def test_make_lists_its_targets():
    shown, targets = make(), re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)[0].split()
    assert [target for target in targets if target != "help" and f"make {target}" not in shown] == []


def test_the_profile_is_chosen_by_one_line(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = next(command for command in ALL if command.startswith("sed "))
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True)
    before, after = (yaml.safe_load((folder / "params.yaml").read_text()) for folder in (ROOT, tmp_path))
    assert after == before | dict(profile="full")


def test_the_plan_is_printed(capsys):
    "The README's two figures are the plan's."
    vl12in1.command.main(["plan"])
    shown = capsys.readouterr().out
    hours, disk = (re.search(pattern, shown)[1] for pattern in (r"about ([\d,]+) hours", r"disk\s+(\d+) GiB of weights"))
    assert f"{disk} GiB for weights" in README
    assert abs(int(re.search(r"about ([\d,]+) hours on one H100", README)[1].replace(",", "")) / int(hours.replace(",", "")) - 1) < .03


# --- the page

def test_it_is_short_and_says_at_once_what_is_synthetic():
    lines = README.splitlines()
    assert len(lines) <= 200 and max(map(len, lines)) <= 250
    assert "synthetic" in " ".join(lines[:12]) and "no reproduction of the paper's numbers" in " ".join(lines[:16])


def test_its_generated_parts_are_those_of_the_study():
    assert renewed(README, parts()) == README, "type `python -m vl12in1.study.front`"


def test_examples_are_those_that_are_run():
    "By the chapters' tests, in the tour; the last of them by the predictor's."
    cells = [cell for cell in json.loads((ROOT / "nbs/index.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    run = {"".join(cell["source"]).strip() for cell in cells if cell["id"].startswith("ixjob0")}
    shown = [block.strip() for block in re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)]
    assert len(shown) == 6 and set(shown[:-1]) <= run and 'from_pretrained("runs/at/models/all/seed0"' in shown[-1]
    assert [block for block in shown if len([line for line in block.splitlines() if line]) > 6] == []


def test_the_command_writes_its_parts_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("a\n<!-- headline -->\nold\n<!-- end of headline -->\nb\n")
    monkeypatch.setattr(front, "root", lambda: tmp_path)
    monkeypatch.setattr(front, "parts", lambda: dict(headline="new"))
    front.main()
    assert (tmp_path / "README.md").read_text() == "a\n<!-- headline -->\nnew\n<!-- end of headline -->\nb\n"
    monkeypatch.setattr(front, "parts", lambda: dict(stages="new"))
    with pytest.raises(SystemExit, match="0 places for stages"): front.main()


# --- what is generated

def test_a_number_or_a_verdict_that_differs_is_seen():
    page = (ROOT / "reports/thorough/index.md").read_text()
    for old, new in {"| holds |": "| does not hold |", "+21.2": "+21.3", "5 / 3": "1 / 1", "Task tokens": "Tokens"}.items():
        assert old in page and headline(page.replace(old, new, 1)) != headline(page)
    with pytest.raises(ValueError, match="a page without a table"): headline("no table")
    with pytest.raises(KeyError, match="points"): headline(page.replace("| points |", "| score |"))


def test_the_headline_is_the_index_in_numbers():
    "Row by row, to the digit that is shown."
    claims = pd.read_csv(ROOT / "reports/thorough/index.csv")
    rows = first_table(README[README.index("<!-- headline -->"):])
    for column in ("claim", "seeds", "verdict"): assert rows[column].tolist() == claims[column].tolist()
    shown = rows.points.str.extract(r"(.+) \[(.+), (.+)\]").astype(float).to_numpy()
    assert abs(shown - claims[["difference", "difference_low", "difference_high"]].to_numpy()).max() < .0501


def test_the_picture_has_every_stage_and_says_what_waits():
    stages = {"world": {"views"}, "views": set(), "data.dvc": {"world"}, "train@a": {"data.dvc", "views"},
              "test@a": {"train@a", "data.dvc"}, "probes": {"train@a"}, "table_x": {"test@a"}, "index": {"test@a", "probes", "data.dvc"}}
    drawn = drawn_stages(direct(between_groups(stages)))
    groups = {group_of(stage) for stage in stages.keys() - {"views"}}
    assert [group for group in groups if group not in drawn.split() and f'["{group}"]' not in drawn] == []
    arrows = {tuple(line.split(" --> ")) for line in map(str.strip, drawn.splitlines()) if "-->" in line}
    assert arrows == {("world", "datadvc"), ("datadvc", "train"), ("train", "test"), ("train", "consistencyattention"),
                      ("test", "table_figure_"), ("consistencyattention & test", "index")}


# --- citation, templates

def test_the_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "date-released", "license"} <= citation.keys()
    assert citation["version"] == vl12in1.__version__ and citation["license"] == "Apache-2.0" and citation["cff-version"] == "1.2.0"
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors", "year"} <= paper.keys() and "12-in-1" in paper["title"] and paper["year"] == 2020
    assert [author["family-names"] for author in paper["authors"]] == ["Lu", "Goswami", "Rohrbach", "Parikh", "Lee"]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_issue_template_is_one(path):
    template = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= template.keys()
    kinds = {part["type"] for part in template["body"]}
    assert kinds <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    assert all(part["attributes"]["label"] for part in template["body"])
    assert any(part.get("validations", {}).get("required") for part in template["body"])
