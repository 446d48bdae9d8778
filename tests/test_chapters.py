"Every chapter of the book and every guide runs from top to bottom, in its own folder, as nbdev runs it."
import atexit
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from nbdev.test import test_nb as run_notebook

from vl12in1.model.heads import HEADS
from vl12in1.model.interface import EncoderConfig
from vl12in1.study.notebooks import plain

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "nbs").glob("*.ipynb")) + sorted((ROOT / "nbs/guides").glob("*.ipynb"))


@pytest.fixture
def alone(monkeypatch):
    "All chapters run in this process; what one of them sets for itself is taken back before the next."
    register = atexit.register
    # Otherwise IPython keeps the shell of every chapter until the end, to collect garbage once for each of them.
    monkeypatch.setattr(atexit, "register", lambda call, *args, **options: call if call.__module__.startswith("IPython.")
                        else register(call, *args, **options))
    threads, environment = torch.get_num_threads(), dict(os.environ)
    registered = [(known, dict(known)) for known in (EncoderConfig.architectures, HEADS)]  # a chapter that defines one takes its name
    os.environ["MPLBACKEND"] = "agg"
    with torch.enable_grad(): yield
    torch.set_num_threads(threads)
    for known, before in registered:
        known.clear()
        known.update(before)
    plt.close("all")
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs(chapter, alone, capfd):
    passed, _ = run_notebook(chapter, basepath=ROOT)
    assert passed, plain(capfd.readouterr().err)
