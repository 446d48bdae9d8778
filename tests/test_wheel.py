"""The wheel as somebody has it who has nothing else: what is in it, what it says of itself, what runs without a checkout or an extra."""
import email
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "vl12in1")
CORE = {"torch", "numpy", "pandas", "pyarrow", "tokenizers", "safetensors", "huggingface_hub", "pillow", "tqdm", "pyyaml"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "The folder of a wheel that was built, offline, from a copy of the sources, and unpacked."
    sources, wheels, target = (tmp_path_factory.mktemp(name) for name in ("sources", "wheels", "installed"))
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, sources / name)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                    "--wheel-dir", wheels, sources], check=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive: archive.extractall(target)
    return target


@pytest.fixture(scope="module")
def metadata(installed):
    (path,) = installed.glob("vl12in1-*.dist-info/METADATA")
    return email.message_from_string(path.read_text(encoding="utf-8"))


def python(installed, folder, code, *arguments):
    "Run code in a folder with the unpacked wheel, and none of the checkout."
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True)


# --- what is in it

def test_it_holds_every_module_but_the_index_of_nbdev(installed):
    modules = lambda folder: {path.relative_to(folder).as_posix() for path in (folder / "vl12in1").rglob("*.py")}
    assert modules(installed) == modules(ROOT) - {"vl12in1/_modidx.py"}
    assert (installed / "vl12in1/py.typed").exists()


def test_it_requires_little(metadata):
    required = {re.match(r"[\w-]+", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert required == CORE
    assert set(metadata.get_all("Provides-Extra")) >= {"study", "pictures", "features", "demo", "docs", "dev"}


def test_every_link_of_its_page_is_absolute(metadata):
    targets = re.findall(r"\]\(([^)\s]+)", metadata.get_payload())
    assert len(targets) > 10 and [target for target in targets if not re.match(r"https?://|#", target)] == []
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_links_of_its_page_lead_to_files_of_the_repository(metadata):
    repository = "https://github.com/vl12in1/vl12in1/"
    paths = re.findall(re.escape(repository) + r"(?:blob|raw)/main/([^)#\s]+)", metadata.get_payload())
    assert paths and [path for path in paths if not (ROOT / path).exists()] == []


def test_it_says_where_it_comes_from(metadata):
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert set(urls) == {"Homepage", "Source", "Issues", "Paper"} and all(url.startswith("https://") for url in urls.values())
    assert "Typing :: Typed" in metadata.get_all("Classifier")


# --- without a checkout

HELP = """
import sys
from vl12in1.command import main, parser
assert "site-packages" not in main.__code__.co_filename and sys.argv[1] in main.__code__.co_filename, main.__code__.co_filename
(commands,) = [action.choices for action in parser()._actions if action.choices]
for command in commands:
    try: main([command, "--help"])
    except SystemExit as end: assert end.code == 0, command
"""


def test_every_command_explains_itself(installed, tmp_path):
    done = python(installed, tmp_path, HELP, installed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: vl12in1 ") >= 15


def test_the_doctor_looks_at_any_folder(installed, tmp_path):
    (tmp_path / "corpora").mkdir()
    done = python(installed, tmp_path, "from vl12in1.command import main; main()", "doctor", "corpora")
    assert done.returncode == 0, done.stderr
    assert "corpora, outside of a checkout of the study" in done.stdout and "git clone https://github.com/vl12in1/vl12in1" in done.stdout


MODEL = "the study's model is not here; name one with --model"
ELSEWHERE = {  # what each command is told, and what it says where there is neither checkout nor data
    "doctor": "start this inside a checkout of the study", "plan": "start this inside a checkout of the study",
    "why reports/index.md": "start this inside a checkout of the study",
    "compare theirs": "give a folder of reports, such as reports/ of a checkout", "leaks": "data: no corpus there",
    "features pictures store": "pictures: no such folder", "extract pictures store": "pictures: no pictures in this folder",
    "inspect weights.bin": "weights.bin", "convert weights.bin folder --config model.json": "weights.bin",
    "verify store": "store: no manifest.json", "demo": MODEL, "answer photo.png what": MODEL, "describe photo.png": MODEL,
    "ground photo.png ball": MODEL,
    "choose photo.png what --boxes 1,2,3,4": MODEL, "entail photo.png ball": MODEL, "verify a.png b.png ball": MODEL,
    "rank a.png b.png ball": MODEL}

COMPLAINTS = """
import json, sys
from vl12in1.command import main, parser
(commands,) = [action.choices for action in parser()._actions if action.choices]
said = {}
for line in json.loads(sys.argv[1]):
    try: main(line.split())
    except SystemExit as end: said[line] = str(end.code)
print(json.dumps([said, sorted(commands)]))
"""


def test_elsewhere_every_command_says_in_one_line_what_it_lacks(installed, tmp_path):
    done = python(installed, tmp_path, COMPLAINTS, json.dumps([*ELSEWHERE]))
    assert done.returncode == 0, done.stderr
    said, commands = json.loads(done.stdout.splitlines()[-1])
    assert {line.split()[0] for line in ELSEWHERE} == set(commands)
    for line, lacking in ELSEWHERE.items():
        assert lacking in said[line] and said[line].startswith("vl12in1: ") and "\n" not in said[line], f"{line}: {said.get(line)}"


# --- without extras

WITHOUT_EXTRAS = """
import importlib, json, pkgutil, sys

class Absent:
    "Finds nothing of what only extras bring."
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1:]: raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import vl12in1
said = {}
for module in pkgutil.walk_packages(vl12in1.__path__, "vl12in1."):
    try: importlib.import_module(module.name)
    except ImportError as error: said[module.name] = str(error)
for name in dir(vl12in1): getattr(vl12in1, name)
print(json.dumps(said))
"""

ABSENT = ("matplotlib", "scipy", "sklearn", "joblib", "dvc", "papermill", "ipykernel", "jupyter_client", "nbclient", "rich", "torchjd",
          "textblob", "transformers", "lmdb", "h5py", "gradio", "imagehash", "nbdev", "execnb", "fastcore", "IPython", "tensorboard")


def test_a_module_is_imported_without_extras_or_names_the_one_it_needs(installed, tmp_path):
    done = python(installed, tmp_path, WITHOUT_EXTRAS, *ABSENT)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert "vl12in1.study.statistics" in said and all(name.startswith("vl12in1.study.") for name in said)
    named = re.compile(r"\w+ is not installed: pip install 'vl12in1\[study\]'")
    assert {name: line for name, line in said.items() if not named.fullmatch(line)} == {}


# --- how long it takes

SECONDS = """
import importlib, sys, time
for name in sys.argv[1].split(): importlib.import_module(name)
begin = time.process_time()
for name in sys.argv[2].split(): importlib.import_module(name)
print(time.process_time() - begin)
"""


def test_imports_cost_less_than_torch(installed, tmp_path):
    seconds = lambda *names: median(float(python(installed, tmp_path, SECONDS, *names).stdout) for _ in range(3))
    torch = seconds("", "torch")
    assert seconds("", "vl12in1") < .15 * torch
    assert seconds("", "vl12in1.corpora vl12in1.cleaning") < .75 * torch
    assert seconds("torch", "vl12in1.model") < torch
