"""What tools find in text and code: one spelling and no typing errors in prose, links that lead somewhere, no unused names.

Prose is what is read as prose: text cells, README.md and the like, docstrings and comments. Names and strings in code are
not: libraries and data sets spell theirs in their own way."""
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BOOK = sorted((ROOT / "nbs").rglob("*.ipynb"))
CODE = sorted([*(ROOT / "tests").glob("*.py"), *(ROOT / "docs").glob("*.py")])
PAGES = sorted(ROOT.glob("*.md"))
VERBATIM = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|<[^>]+>|https?://\S+", re.S)
WORDS = ["bu"]  # right as they stand, whatever codespell thinks: half a "bus" in the chapter that measures consistency


def cells(notebook, kind):
    "(id, source) of the cells of a kind."
    return [(cell["id"], "".join(cell["source"])) for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


def markdown(path):
    "(place, text) of a page or of the text cells of a notebook."
    if path.suffix == ".md": return [(path.name, path.read_text())]
    return [(f"{path.name} {cell}", text) for cell, text in cells(path, "markdown")]


def comments(source):
    "The comments and docstrings of Python code, without the names of fields; magics and shell lines of notebooks are left out."
    source = re.sub(r"^\s*[%!].*$", "", source, flags=re.M)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    yield from (token.string for token in tokens if token.type == tokenize.COMMENT)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield re.sub(r"^ +\w+:", " ", ast.get_docstring(node) or "", flags=re.M)


def prose(path):
    "(place, text) of all prose in a notebook, a module or a page."
    if path.suffix == ".md": return markdown(path)
    if path.suffix == ".py": return [(path.name, text) for text in comments(path.read_text())]
    return markdown(path) + [(f"{path.name} {cell}", text) for cell, code in cells(path, "code") for text in comments(code)]


def misspelt(passages):
    "Complaints of codespell, with its own list of typing errors and with american.txt, about (place, text)."
    lines, places = [], []
    for place, text in passages:
        for line in VERBATIM.sub(" ", text).splitlines():
            lines.append(line)
            places.append(place)
    command = [sys.executable, "-m", "codespell_lib", "-D", "-", "-D", ROOT / "tests/american.txt", "-L", ",".join(WORDS), "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    assert not done.stderr, done.stderr
    found = re.findall(r"^(\d+): .*\n\t(.*)$", done.stdout, re.M)
    return [f"{places[int(number) - 1]}: {words}" for number, words in found]


# --- spelling

def test_prose_is_spelt_in_one_way():
    assert misspelt(passage for path in [*BOOK, *CODE, *PAGES, ROOT / "docs/front.md"] for passage in prose(path)) == []


@pytest.mark.parametrize("text, complaint", [
    ("the color of a box", "colour"), ("weights are initialized", "initialised"), ("a seperate cell", "separate")])
def test_a_wrong_word_is_found(text, complaint):
    for passage in (text, *comments(f"x = 1  # {text}"), *comments(f'def f():\n    "{text}"')):
        if passage: assert any(complaint in line for line in misspelt([("here", passage)]))
    assert misspelt([("here", f"`{text}` and [this](../{text.replace(' ', '_')})")]) == []


# --- links

def dead_links(path, passages):
    "Links to files that are not there, in (place, Markdown) of the file at `path`."
    for place, text in passages:
        text = re.sub(r"```.*?```|`[^`]*`", " ", text, flags=re.S)
        for target in re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"^\[[^]]+\]:\s*(\S+)", text, re.M):
            if re.match(r"[a-z]+:|#", target): continue
            if not (path.parent / target.split("#")[0]).exists(): yield f"{place}: {target}"


@pytest.mark.parametrize("path", [*BOOK, *PAGES], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    assert list(dead_links(path, markdown(path))) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "a.ipynb").touch()
    text = "[1](a.ipynb#part) [2](#here) [3](https://example.org/x) `[4](b)` [5](c.ipynb) ![6](d.png \"title\")\n[7]: e.md"
    assert list(dead_links(tmp_path / "here.md", [("here", text)])) == ["here: c.ipynb", "here: d.png", "here: e.md"]


# --- ruff

def ruff(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", *arguments], cwd=ROOT,
                          capture_output=True, text=True, **options)


def test_ruff_has_nothing_to_say():
    done = ruff(".")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("code, rule", [("import os\n", "F401"), ("print(nothing)\n", "F821"), ("def f(a): return 1\n", "ARG001")])
def test_a_sinner_is_found_by_ruff(code, rule):
    assert rule in ruff("--stdin-filename", "nbs/00_somewhere.py", "-", input=code).stdout
