"""What must not be in code that reads strangers' files: calls that execute what they read, or believe it. Found in syntax trees, so that
text about them does not count. Each exception has its reason here; SECURITY.md says what is trusted."""
import ast
import json
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("vl12in1", "nbs", "benchmarks", "docs", "tests") for path in (ROOT / folder).rglob("*")
               if path.suffix in (".py", ".ipynb") and "build" not in path.parts)

REASONS = {  # why -> file -> calls
    "the line before it, or the same test, made what is read": {
        "nbs/11_photos.ipynb": ["PIL.Image.open"], "nbs/18_formats.ipynb": ["pickle.loads"], "nbs/18c_region_files.ipynb": ["pickle.loads"],
        "nbs/18e_writers.ipynb": ["PIL.Image.open"], "nbs/30_store.ipynb": ["pickle.loads"], "nbs/66b_asking.ipynb": ["PIL.Image.open"],
        "nbs/study/benchmark_features.ipynb": ["pickle.loads"], "tests/test_asked_study.py": ["PIL.Image.open"],
        "tests/test_asking.py": ["PIL.Image.open"], "tests/test_checkpoints.py": ["torch.load"],
        "tests/test_duplicates.py": ["PIL.Image.open"],
        "tests/faults/damage.py": ["pickle.loads", "allow_pickle="], "tests/faults/fuzzing.py": ["pandas.read_pickle"],
        "tests/test_faster_rcnn.py": ["PIL.Image.open"], "tests/test_predictor.py": ["pickle.loads"],
        "tests/test_processes.py": ["pandas.read_pickle"], "tests/test_readers_referring.py": ["pickle.loads"],
        "tests/test_text.py": ["pickle.loads"], "tests/test_wheel.py": ["extractall"],
        "tests/test_world.py": ["pickle.loads", "PIL.Image.open"]},
    "the attack that is tried": {"tests/test_corpora.py": ["pickle.loads"], "tests/test_leaks.py": ["allow_pickle="]},
    "code of this checkout, which is trusted": {
        "nbs/85a_provenance.ipynb": ["exec"], "vl12in1/study/provenance.py": ["exec"], "tests/test_bundle.py": ["__import__"],
        "tests/test_claims.py": ["exec"], "tests/test_literature.py": ["exec"]},
    "the loader is one of PyYAML's two safe ones, chosen in the line above": {
        "nbs/85a_provenance.ipynb": ["yaml.load"], "vl12in1/study/provenance.py": ["yaml.load"]},
    "what is read is of the kinds that harm nobody: a pattern said so": {
        "nbs/03a_files.ipynb": ["pickle.loads"], "vl12in1/files.py": ["pickle.loads"]}}
ALLOWED = {(file, call) for files in REASONS.values() for file, calls in files.items() for call in calls}


@lru_cache(None)
def code_of(path):
    "The code of a module or of a notebook, without magics and shell lines."
    if path.suffix == ".py": return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.M)


def names_of(tree) -> dict[str, str]:
    "What the names that a module imports stand for: np -> numpy, loads -> pickle.loads."
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): found |= {alias.asname or alias.name: alias.name for alias in node.names if alias.asname}
        if isinstance(node, ast.ImportFrom): found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def full_name(function, names) -> str:
    "The dotted name of what is called, as far as imports tell."
    first, *rest = ast.unparse(function).split(".")
    return ".".join([names.get(first, first), *rest])


def constant(node): return getattr(node, "value", None) if isinstance(node, ast.Constant) else node


def is_safe(loader): return loader is not None and ast.unparse(loader).endswith("SafeLoader")


EXECUTES = {"eval", "exec", "__import__", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp",
            "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load",
            "pandas.read_pickle", "torch.hub.load", "torch.jit.load", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all"}
UNLESS = {  # call -> what its arguments must be: (positional, by name) -> is it safe?
    "torch.load": lambda args, named: constant(named.get("weights_only")) is True,
    "PIL.Image.open": lambda args, named: "formats" in named,
    "yaml.load": lambda args, named: is_safe(named.get("Loader", args[1] if len(args) > 1 else None)),
    "yaml.load_all": lambda args, named: is_safe(named.get("Loader", args[1] if len(args) > 1 else None)),
    "numpy.load": lambda args, named: constant(named.get("allow_pickle", ast.Constant(False))) is False}
KEYWORDS = {"shell": False, "trust_remote_code": False, "allow_pickle": False}  # what they have to be, wherever they stand


def dangers(source):
    "(line, call) of what executes or believes what it reads."
    tree = ast.parse(source)
    names = names_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from ((node.lineno, full_name(base, names)) for base in node.bases if full_name(base, names).endswith("Unpickler"))
        if not isinstance(node, ast.Call): continue
        name, named = full_name(node.func, names), {keyword.arg: keyword.value for keyword in node.keywords}
        if name in EXECUTES: yield node.lineno, name
        if name in UNLESS and not UNLESS[name](node.args, named): yield node.lineno, name
        if name.endswith(".extractall") and constant(named.get("filter")) != "data": yield node.lineno, "extractall"
        first = constant(node.args[0]) if node.args else None
        if name.startswith("subprocess.") and isinstance(first, (str, ast.JoinedStr)): yield node.lineno, name
        yield from ((node.lineno, f"{key}=") for key, value in KEYWORDS.items() if key in named and constant(named[key]) is not value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_code_does_not_execute_what_it_reads(path):
    place = path.relative_to(ROOT).as_posix()
    assert [(line, call) for line, call in dangers(code_of(path)) if (place, call) not in ALLOWED] == []


def test_every_exception_is_needed():
    found = {(path.relative_to(ROOT).as_posix(), call) for path in FILES for _, call in dangers(code_of(path))}
    assert set(ALLOWED) - found == set()


@pytest.mark.parametrize("source, call", [
    ("eval(text)", "eval"), ("from pickle import loads as read\nread(x)", "pickle.loads"), ("import os\nos.system(x)", "os.system"),
    ("import pickle\nclass A(pickle.Unpickler): pass", "pickle.Unpickler"), ("import torch\ntorch.load(path)", "torch.load"),
    ("torch.load(path, weights_only=False)", "torch.load"), ("from PIL import Image\nImage.open(path)", "PIL.Image.open"),
    ("import yaml\nyaml.load(text, yaml.Loader)", "yaml.load"), ("run(['ls'], shell=True)", "shell="),
    ("archive.extractall(folder)", "extractall"), ("import subprocess\nsubprocess.run(f'ls {x}')", "subprocess.run"),
    ("import numpy as np\nnp.load(path, allow_pickle=True)", "numpy.load"), ("open(name, trust_remote_code=True)", "trust_remote_code="),
    ("from tempfile import mktemp\nmktemp()", "tempfile.mktemp")])
def test_a_danger_is_found(source, call):
    assert call in [found for _, found in dangers(source)] and not [*dangers(f"text = {source!r}  # {source.splitlines()[0]}")]


@pytest.mark.parametrize("source", [
    "import torch\ntorch.load(path, weights_only=True)", "from PIL import Image\nImage.open(path, formats=['PNG'])", "model.eval()",
    "import yaml\nyaml.load(text, yaml.CSafeLoader)", "archive.extractall(folder, filter='data')",
    "import subprocess\nsubprocess.run(['ls'])", "import numpy as np\nnp.load(path, allow_pickle=False)\nnp.load(path)"])
def test_what_is_safe_is_left_alone(source): assert [*dangers(source)] == []
