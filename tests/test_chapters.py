"Every chapter of the book runs from top to bottom, in its own folder, as nbdev runs it."
from pathlib import Path

import pytest
from nbdev.test import test_nb as run_notebook

from vl12in1.study.notebooks import plain

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "nbs").glob("*.ipynb"))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs(chapter, capfd, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("IN_TEST", "1")   # nbdev sets it for good; this takes it back
    passed, _ = run_notebook(chapter, basepath=ROOT)
    assert passed, plain(capfd.readouterr().err)
