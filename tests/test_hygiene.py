"""The house rules: chapters and modules belong together, imports go down, committed notebooks are clean.

Each rule is a function from the repository (or a piece of it) to a list of complaints, so that it can be shown a sinner too."""
import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY, BOOK = ROOT / "vl12in1", ROOT / "nbs"
MODULES = sorted(path for path in LIBRARY.rglob("*.py") if path.name != "_modidx.py")
INDEX = BOOK / "index.ipynb"  # a tour of the book: it defines nothing, so it has neither module nor number
CHAPTERS = sorted(path for path in BOOK.glob("*.ipynb") if path != INDEX)
NOTEBOOKS = [INDEX, *CHAPTERS, *sorted((BOOK / "study").glob("*.ipynb")), *sorted((BOOK / "guides").glob("*.ipynb"))]
FLOORS = {"extras": 0, "endings": 0, "files": 0, "fields": 0, "children": 0,
          "tasks": 1, "boxes": 1, "answers": 1, "processes": 1, "weights": 1, "corpora": 2, "regions": 2, "model": 2, "cleaning": 3,
          "duplicates": 3, "leaks": 4, "examples": 3, "toy": 4, "training": 4, "evaluation": 5, "predictor": 6, "study": 7,
          "demo": 7, "command": 8}
RUNTIME = {"numpy", "pandas", "pyarrow", "torch", "tokenizers", "safetensors", "huggingface_hub", "PIL", "tqdm", "yaml"}


def name_of(path):
    "vl12in1/corpora/frames.py -> vl12in1.corpora.frames; a package is named after its folder."
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source, package):
    "(line, module) of every import in a module of `package`, relative ones made absolute."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def package_of(path):
    return name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]


def part(module):
    "The part of the library a module belongs to: corpora for vl12in1.corpora.frames."
    return module.split(".")[1] if "." in module else ""


def cells(notebook, kind="code"):
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


# --- modules and chapters

def default_exp(notebook):
    found = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(map(source, cells(notebook))), re.M)
    return found and LIBRARY.joinpath(*found[1].split(".")).with_suffix(".py")


def test_every_chapter_has_its_module():
    assert [path.name for path in CHAPTERS if not default_exp(path) or not default_exp(path).is_file()] == []


def test_the_index_exports_nothing():
    assert [cell["id"] for cell in cells(INDEX) if re.search(r"^#\|\s*(default_exp|exporti?|exports)\b", source(cell), re.M)] == []


def test_every_module_has_its_chapter():
    exported = {default_exp(path) for path in CHAPTERS}
    orphans = [path for path in MODULES if path not in exported and path.name != "__init__.py"]
    bare = [path for path in MODULES if path not in exported and path.name == "__init__.py"]
    assert [name_of(path) for path in orphans] == []
    assert [name_of(path) for path in bare if re.sub(r'__version__ = ".*"', "", path.read_text()).strip()] == []


def test_two_chapters_do_not_write_the_same_module():
    targets = [default_exp(path) for path in CHAPTERS]
    assert len(targets) == len(set(targets))


def misnumbered(names):
    "Complaints about the numbers that file names of chapters begin with: 12_words, 13_questions, 13a_programs."
    numbers = [re.match(r"(\d\d)([a-z]?)_\w", name) for name in names]
    for name, number in zip(names, numbers):
        if not number: yield f"{name}: no number"
    numbers = sorted(number.groups() for number in numbers if number)
    for number, letter in numbers:
        if numbers.count((number, letter)) > 1: yield f"{number}{letter}: used twice"
        before = chr(ord(letter) - 1).replace("`", "") if letter else ""
        if letter and (number, before) not in numbers: yield f"{number}{letter}: does not follow {number}{before}"


def test_every_chapter_has_a_number_of_its_own():
    assert list(misnumbered([path.name for path in CHAPTERS])) == []


@pytest.mark.parametrize("names, complaint", [
    (["10_scenes", "10_other"], "10: used twice"), (["13a_programs", "14_words"], "13a: does not follow 13"),
    (["scenes"], "scenes: no number"), (["13_questions", "13b_programs"], "13b: does not follow 13a"),
    (["13_questions", "13a_programs", "13a_files"], "13a: used twice")])
def test_a_wrong_number_is_found(names, complaint):
    assert complaint in list(misnumbered(names))


# --- imports

def climbs(source, module, package):
    "Imports that do not go down: of a higher floor, of another part of the same floor, or across the wall round the world."
    for line, wanted in imports(source, package):
        if not wanted.startswith("vl12in1."): continue
        here, there = part(module), part(wanted)
        if here == there: continue
        if module == "vl12in1.study.settings" and there == "world": continue  # it asks which settings there are
        if "world" in (here, there): yield f"{module}:{line} imports {wanted}: the world stands apart"
        elif FLOORS[there] >= FLOORS[here]: yield f"{module}:{line} imports {wanted}: not a lower floor"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    assert list(climbs(path.read_text(), name_of(path), package_of(path))) == []


@pytest.mark.parametrize("statement, complaint", [
    ("from ..training import trainer", "not a lower floor"), ("import vl12in1.regions.store", "not a lower floor"),
    ("from vl12in1.world import scenes", "stands apart"), ("from .. import study", "not a lower floor")])
def test_a_climbing_import_is_found(statement, complaint):
    found = list(climbs(statement, "vl12in1.corpora.frames", "vl12in1.corpora"))
    assert len(found) == 1 and complaint in found[0]


def test_chapters_import_smaller_numbers():
    number = {default_exp(path): path.name[:2] for path in CHAPTERS}
    for path, own in number.items():
        for line, wanted in imports(path.read_text(), package_of(path)):
            parts = wanted.split(".")
            for depth in (len(parts), len(parts) - 1):
                target = ROOT.joinpath(*parts[:depth]).with_suffix(".py")
                assert number.get(target, "00") <= own, f"{name_of(path)}:{line} (chapter {own}) imports {wanted}"


def foreign(source, package):
    "Top-level names of imported packages that a plain `pip install vl12in1` does not bring."
    tops = {module.split(".")[0] for _, module in imports(source, package)}
    return tops - RUNTIME - {"vl12in1"} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_runtime_needs_only_what_pip_installs(path):
    lazily = {"vl12in1.study.notebooks": {"papermill", "nbclient", "ipykernel", "jupyter_client"}, "vl12in1.model.bert": {"transformers"},
              "vl12in1.study.parallel": {"dvc"}, "vl12in1.study.front": {"dvc"},
              "vl12in1.regions.published": {"lmdb", "h5py"}, "vl12in1.regions.pretrained": {"transformers"},
              "vl12in1.duplicates": {"imagehash"}, "vl12in1.study.consistency": {"textblob"},
              "vl12in1.demo": {"gradio", "starlette"}}
    under_an_extra = {package for _, package in guarded(path.read_text())}
    assert foreign(path.read_text(), package_of(path)) <= lazily.get(name_of(path), set()) | under_an_extra


def guarded(source):
    "(extra, package) of the imports in every `with extra(...)`."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.With) and ast.unparse(node.items[0].context_expr).startswith("extra("):
            for _, module in imports(ast.unparse(node), ""): yield node.items[0].context_expr.args[0].value, module.split(".")[0]


def brought_by(extra):
    "Names of the packages that an extra brings, as they are imported."
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in listed}
    return {{"scikit-learn": "sklearn"}.get(name, name) for name in names}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_an_extra_brings_what_is_imported_under_its_name(path):
    for extra, package in guarded(path.read_text()):
        assert package in RUNTIME | brought_by(extra), f"{package} does not come with vl12in1[{extra}]"


def test_imports_under_an_extra_are_found():
    assert [*guarded("with extra('study'):\n    import a.b\n    from c import d\nimport e")] == [("study", "a"), ("study", "c")]
    assert brought_by("pictures") == {"matplotlib"} and "sklearn" in brought_by("study")


def test_a_foreign_import_is_found():
    assert foreign("import os, nbdev\nfrom fastcore.basics import patch\nimport torch", "vl12in1") == {"nbdev", "fastcore"}


def test_the_runner_starts_without_torch_and_papermill():
    code = "import sys, vl12in1.study.notebooks as _; print({'torch', 'papermill', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_importing_the_library_costs_next_to_nothing():
    code = "import sys, time; t = time.process_time(); import vl12in1; print(time.process_time() - t, 'torch' in sys.modules)"
    start = lambda: subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    seconds, torch = zip(*[start() for _ in range(3)])
    assert median(map(float, seconds)) < .3 and set(torch) == {"False"}


# --- docstrings

def undescribed(source):
    "Fields of public dataclasses, named tuples and typed dictionaries that the docstring of their class does not name."
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"): continue
        has_fields = any(re.search(r"\b(?:dataclass|NamedTuple|TypedDict)\b", ast.unparse(kind))
                         for kind in node.decorator_list + node.bases)
        named = re.findall(r"`(\w+)`", ast.get_docstring(node) or "")
        for field in node.body if has_fields else ():
            if isinstance(field, ast.AnnAssign) and field.target.id not in named: yield f"{node.name}.{field.target.id}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_help_describes_every_field(path):
    assert list(undescribed(path.read_text())) == []


@pytest.mark.parametrize("kind", ["@dataclass\nclass Run:", "@dataclass(frozen=True)\nclass Run:", "class Run(NamedTuple):",
                                  "class Run(TypedDict, total=False):"])
def test_a_field_with_a_trailing_comment_alone_is_found(kind):
    fields = "    seeds: int = 1  # how many\n    tasks: tuple = ()  # which\n"
    assert list(undescribed(f'{kind}\n    "A run of `tasks`."\n{fields}')) == ["Run.seeds"]
    assert list(undescribed(f'{kind}\n{fields}')) == ["Run.seeds", "Run.tasks"]
    assert list(undescribed(f'{kind}\n    "A run.\\n\\n- `seeds`: how many\\n- `tasks`: which"\n{fields}')) == []


# --- committed notebooks

def dirt(notebook: dict):
    "What nbdev_clean, papermill or this machine left in a notebook (as JSON)."
    ids = [cell.get("id") for cell in notebook["cells"]]
    if None in ids or len(set(ids)) < len(ids): yield "cell ids are missing or repeated"
    for cell in notebook["cells"]:
        if extra := set(cell["metadata"]) - {"tags"}: yield f"{cell['id']}: metadata {extra}"
        if "injected-parameters" in cell["metadata"].get("tags", []): yield f"{cell['id']}: written by papermill"
        if cell.get("execution_count") is not None: yield f"{cell['id']}: execution count"
        shown = json.dumps(cell.get("outputs", []))
        if found := re.search(r"(/home/|/root/|/tmp/|/Users/|/work/|[A-Z]:\\\\)\S*| at 0x[0-9a-f]+", shown):
            yield f"{cell['id']}: output holds {found[0]!r}"
    if extra := set(notebook["metadata"]) - {"kernelspec"}: yield f"notebook metadata {extra}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_are_clean(path):
    assert list(dirt(json.loads(path.read_text()))) == []


def test_dirt_is_found():
    output = {"output_type": "stream", "name": "stdout", "text": "<function f at 0x7f00> in /home/somebody/study"}
    cell = {"id": "a", "metadata": {"papermill": {}}, "execution_count": 3, "outputs": [output]}
    found = "\n".join(dirt({"cells": [cell, dict(cell, outputs=[])], "metadata": {"papermill": {}}}))
    for complaint in ("repeated", "metadata {'papermill'}", "execution count", "0x7f00", "notebook metadata"):
        assert complaint in found


PIPELINE = (ROOT / "dvc.yaml").read_text() + (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_cell(path):
    tagged = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    passed = re.search(rf"notebooks run {path.stem} \"?\w+=", PIPELINE) and path.parent.name == "study"
    assert len(tagged) == bool(passed)


# --- text

TEXTS = MODULES + NOTEBOOKS + sorted((ROOT / "tests").glob("*.py")) + sorted((ROOT / "docs").glob("*.py"))


def code_of(path):
    "The code of a module or of a notebook."
    return path.read_text() if path.suffix == ".py" else "\n".join(map(source, cells(path)))


def prose_of(path):
    "The text cells of a notebook."
    return "" if path.suffix == ".py" else "\n".join(map(source, cells(path, "markdown")))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_lines_fit_the_page(path):
    assert [line for line in code_of(path).splitlines() if len(line) > 140] == []


@pytest.mark.parametrize("path", [path for path in TEXTS if path != Path(__file__)], ids=lambda path: path.name)
def test_nothing_is_left_for_later(path):
    assert re.findall(r"\b(?:TODO|FIXME|XXX|HACK|[Ss]implified)\b", code_of(path) + prose_of(path)) == []


@pytest.mark.parametrize("path", MODULES + NOTEBOOKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_code_asks_which_head_or_task_it_has(path):
    assert re.findall(r".*(?:\bhead [!=]=|\b(?:el)?if task ==).*", code_of(path)) == []


@pytest.mark.parametrize("line", ['if task == "vqa": pass', 'count = 2 if TASKS[task].head == "pair" else 1', 'if head != "match": pass'])
def test_a_question_for_the_head_is_found(line, tmp_path):
    (tmp_path / "module.py").write_text(line)
    with pytest.raises(AssertionError): test_no_code_asks_which_head_or_task_it_has(tmp_path / "module.py")
