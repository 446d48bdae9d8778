"""The model of the study, asked about the picture files of its own tests, is right as often as its reports say, and quick.

Runs where a study has been run: `make study`, then `make test-slow`, or `pytest -s tests/test_asked_study.py` for the figures."""
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl12in1 import Predictor
from vl12in1.answers import ANSWER_METRICS
from vl12in1.boxes import iou
from vl12in1.corpora import image_files
from vl12in1.evaluation.descriptions import description_scores
from vl12in1.evaluation.records import read_item_scores
from vl12in1.examples.stored import read_frame
from vl12in1.model import HEADS
from vl12in1.predictor.results import RESULTS
from vl12in1.tasks import MORE, TASKS

ROOT = Path(__file__).resolve().parents[1]
MODEL, DETECTOR = ROOT / "runs/at/models/all/seed0", ROOT / "build/regions/detector"
WRITER = ROOT / "runs/at_captions/models/all/seed0"
JUDGED = [name for name, task in TASKS.items() if task.head in RESULTS]  # retrieval is below
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (MODEL.is_dir() and DETECTOR.is_dir()), reason="no study has been run here")]


@pytest.fixture(scope="module")
def predictor(): return Predictor.from_pretrained(MODEL, detector=DETECTOR)


@pytest.fixture(scope="module")
def files(): return image_files(ROOT / "data")


@pytest.fixture(scope="module")
def reported(): return read_item_scores(ROOT / "reports/items/at.csv")


def in_pixels(boxes, file): return np.array(boxes) * np.tile(Image.open(file).size, 2)


def score(task, example, said):
    "How right an answer is, by the columns that the example has."
    if "answers" in example: return ANSWER_METRICS[TASKS[task].metric](said.answer, example.answers)
    if "label" in example: return float(said.index == example.label)
    return float(iou([said.fractions], [example.box])[0, 0] > .5)


@pytest.mark.parametrize("task", JUDGED)
def test_it_is_right_as_often_as_the_reports_say(task, predictor, files, reported):
    "Of up to 300 test examples: within the 95 % interval of what is reported of the same ones."
    file = ROOT / f"build/frames/all/{TASKS[task].corpus}/test.parquet"
    if not file.exists(): pytest.skip(f"{file}: the corpus is absent")
    frame, (scores, _) = read_frame(file), reported["all", task]
    assert len(frame) == scores.shape[1]
    rows = np.random.default_rng(0).permutation(len(frame))[:300]
    now, seconds = [], []
    for row in rows:
        example = frame.iloc[row]
        pictures = tuple(files[key] for key in example.images)
        boxes = in_pixels(example.candidates, pictures[0]) if "candidates" in example else None
        started = time.perf_counter()
        said = predictor.ask(task, pictures, example.text, boxes)
        seconds.append(time.perf_counter() - started)
        now.append(score(task, example, said))
    before = scores[0, rows]
    interval = 1.96 * before.std() / np.sqrt(len(rows))
    print(f"\n{task}: {100 * np.mean(now):.1f}, reported {100 * before.mean():.1f} ± {100 * interval:.1f} (of all {len(frame)}: "
          f"{100 * scores[0].mean():.1f}); {np.median(seconds) * 1000:.0f} ms an example, at most {max(seconds) * 1000:.0f}")
    assert abs(np.mean(now) - before.mean()) <= interval
    assert np.mean(seconds) <= .2


@pytest.mark.parametrize("task", ["coco_retrieval", "flickr30k_retrieval"])
def test_captions_find_their_pictures_as_often_as_the_reports_say(task, predictor, files, reported):
    "Among all pictures of the test, which are looked at once."
    file = ROOT / f"build/frames/all/{TASKS[task].corpus}/test.parquet"
    if not file.exists(): pytest.skip(f"{file}: the corpus is absent")
    frame, (scores, _) = read_frame(file), reported["all", task]
    keys = list(dict.fromkeys(key for (key,) in frame.images))
    if len(keys) > 1000: pytest.skip("more pictures than one pool of the reports has")
    rows = np.random.default_rng(0).permutation(len(frame))[:200]
    started = time.perf_counter()
    pictures = [predictor.look(files[key]) for key in keys]
    looked = time.perf_counter() - started
    ranking = predictor.rank(pictures, frame.text[rows].tolist(), task=task, top_k=1)
    now = [keys[match.index] == frame.images[row][0] for match, row in zip(ranking.pictures, rows)]
    before = scores[0, rows]
    interval = 1.96 * before.std() / np.sqrt(len(rows))
    print(f"\n{task}: {100 * np.mean(now):.1f}, reported {100 * before.mean():.1f} ± {100 * interval:.1f}; "
          f"{1000 * looked / len(keys):.0f} ms to look at a picture, {(time.perf_counter() - started) / len(rows) * 1000:.0f} ms a caption")
    assert abs(np.mean(now) - before.mean()) <= interval
    assert looked / len(keys) <= .2


@pytest.mark.skipif(not WRITER.is_dir(), reason="no model that writes was trained here")
@pytest.mark.parametrize("task", [name for name, task in MORE.items() if task.head == "caption"])
def test_pictures_are_described_as_well_as_the_reports_say(task, files):
    "All pictures of the test, since how much a word counts depends on all their captions."
    file = ROOT / f"build/frames/all/{MORE[task].corpus}/test.parquet"
    if not file.exists(): pytest.skip(f"{file}: the corpus is absent")
    frame, (scores, _) = HEADS["caption"].tested(read_frame(file)), read_item_scores(ROOT / "reports/items/at_captions.csv")["all", task]
    started = time.perf_counter()
    said = Predictor.from_pretrained(WRITER, detector=DETECTOR).describe([files[key] for (key,) in frame.images], task)
    seconds = (time.perf_counter() - started) / len(frame)
    now, before = description_scores(frame, [one.caption for one in said]), scores[0]
    interval = 1.96 * before.std() / np.sqrt(len(frame))
    print(f"\n{task}: {100 * now.mean():.1f}, reported {100 * before.mean():.1f} ± {100 * interval:.1f}; {1000 * seconds:.0f} ms a picture")
    assert abs(now.mean() - before.mean()) <= interval
    assert seconds <= .3
