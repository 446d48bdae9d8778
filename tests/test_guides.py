"The guides: what to type for one purpose each. (That they run, `test_chapters` says; their commands, `test_readme`.)"
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "nbs/guides").glob("*.ipynb"))
PARTS = ["What you have", "What to type", "What happens", "What goes wrong"]


def cells(guide, kind):
    return ["".join(cell["source"]) for cell in json.loads(guide.read_text())["cells"] if cell["cell_type"] == kind]


def headings(guide): return re.findall(r"^## (.*)", "\n".join(cells(guide, "markdown")), re.M)


def test_there_is_one_for_each_purpose():
    assert {guide.stem for guide in GUIDES} == {
        "own_data", "gpu", "clusters", "task", "checkpoint", "servers", "study", "sweeps", "reproducibility"}


@pytest.mark.parametrize("guide", [guide for guide in GUIDES if guide.stem != "reproducibility"], ids=lambda path: path.stem)
def test_a_guide_says_the_same_four_things(guide):
    assert [name for name in headings(guide) if name in PARTS] == PARTS


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide_exports_nothing_and_shows_something(guide):
    code = cells(guide, "code")
    assert code and not re.search(r"^#\|\s*(default_exp|export)", "\n".join(code), re.M)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_front_page_leads_to_it(guide):
    pages = "".join((ROOT / name).read_text() for name in ("README.md", "nbs/index.ipynb"))
    assert f"guides/{guide.name}" in pages


def test_every_answer_of_the_checklist_has_a_place_or_is_no():
    "Rows of the tables that say neither where nor no."
    guide = next(guide for guide in GUIDES if guide.stem == "reproducibility")
    lines = "\n".join(cells(guide, "markdown")).splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| is there")]
    assert len(rows) >= 18
    assert [row for row in rows if "](" not in row and "*no*" not in row] == []
