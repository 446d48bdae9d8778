"The five jobs of the tour: six lines at most, and each of them can be copied as it is. (That they run, `test_chapters` says.)"
import ast
import builtins
import json
from pathlib import Path

import pytest

INDEX = Path(__file__).resolve().parents[1] / "nbs/index.ipynb"
CELLS = {cell["id"]: "".join(cell["source"]) for cell in json.loads(INDEX.read_text())["cells"] if cell["cell_type"] == "code"}
JOBS = [f"ixjob00{number}" for number in range(1, 6)]


def strangers(source):
    "Names that some lines use and do not define."
    nodes = list(ast.walk(ast.parse(source)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    own |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return {node.id for node in names} - own - set(dir(builtins))


@pytest.mark.parametrize("job", JOBS)
def test_a_job_takes_six_lines_and_stands_alone(job):
    assert len([line for line in CELLS[job].splitlines() if line]) <= 6
    assert strangers(CELLS[job]) == set()


def test_a_stranger_is_found(): assert strangers("from a import b\nc = [d for d in b(e)]") == {"e"}
