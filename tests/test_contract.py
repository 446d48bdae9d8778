"Every task keeps the contract, and what breaks it is found."
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from vl12in1 import corpora, world
from vl12in1.cleaning import clean
from vl12in1.regions import Regions, RegionStore, RegionWriter, given_boxes
from vl12in1.tasks import TASKS
from vl12in1.examples.batches import Sources
from vl12in1.evaluation.contract import RULES, TaskError, check_task
from vl12in1.examples.text import AnswerVocabulary, Tokenizer, build_answers, build_wordpieces

CHAPTER = Path(__file__).resolve().parents[1] / "nbs/64_contract.ipynb"


def write_store(folder, boxes):
    "Random features for boxes (key -> (n, 4) fractions) of pictures of 100 x 100 pixels."
    rng = np.random.default_rng(0)
    with RegionWriter(folder, "random") as writer:
        for key, places in boxes.items():
            corners = np.asarray(places, dtype="float32") * 100
            writer.append(key, Regions(rng.normal(size=(len(corners), 16)).astype("float16"), corners, 100, 100))
    return RegionStore.open(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "The twelve corpora of a tiny world, and what their tasks draw from."
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("study")
    world.write_world(folder / "data", world.WorldConfig(scale=.03))
    frames = clean(corpora.load(folder / "data", only=[task.corpus for task in TASKS.values()]))  # NLVR2's splits share pictures
    keys = sorted({key for splits in frames.values() for frame in splits.values() for keys in frame.images for key in keys})
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, .6, (len(keys), 5, 2))
    found = np.concatenate([corners, corners + rng.uniform(.1, .4, corners.shape)], axis=2)
    train = {name: frames[task.corpus]["train"] for name, task in TASKS.items()}
    answers = {name: AnswerVocabulary(build_answers(*(train[task] for task in TASKS if TASKS[task].vocabulary == name), minimum=1))
               for name in ("vqa", "gqa")}
    pieces = build_wordpieces([text for frame in train.values() for text in frame.text], size=2000)
    return frames, Sources(write_store(folder / "detected", dict(zip(keys, found))),
                           write_store(folder / "given", given_boxes(frames)), Tokenizer(pieces), answers)


@pytest.mark.parametrize("task", TASKS)
def test_the_twelve_keep_the_contract(study, task):
    frames, sources = study
    check_task(task, frames[TASKS[task].corpus], sources)


BROKEN = {  # rule -> what is done to the splits of VQA, words of the complaint
    "frame_rule": (lambda splits: {"val": splits["val"].drop(columns="answers")}, "expected"),
    "split_rule": (lambda splits: {"test": splits["train"]}, "share"),
    "region_rule": (lambda splits: {"train": splits["train"].assign(images=[("coco:0",)] * len(splits["train"]))}, "no regions of 1"),
    "batch_rule": (lambda splits: {"train": splits["train"].assign(answers=[("?",)] * len(splits["train"]))}, "nothing is right")}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_found(study, rule):
    frames, sources = study
    change, words = BROKEN[rule]
    splits = frames["vqa"] | change(frames["vqa"])
    with pytest.raises(TaskError, match=words) as error: check_task("vqa", splits, sources)
    find = {check.__name__: check for check in RULES}[rule]
    assert str(error.value).splitlines()[1:] == list(find("vqa", splits, sources))


@pytest.mark.parametrize("row, words", [
    (replace(TASKS["vqa"], name="own", head="guess"), "no head 'guess'"),
    (replace(TASKS["vqa"], name="own", vocabulary=""), "with vocabulary ''"),
    (replace(TASKS["vqa"], name="own", vocabulary="own"), "no vocabulary 'own'"), (TASKS["vqa"], "calls itself 'vqa'")])
def test_a_broken_row_is_found(study, row, words, monkeypatch):
    monkeypatch.setitem(TASKS, "own", row)
    with pytest.raises(TaskError, match=re.escape(words)): check_task("own", study[0]["vqa"], study[1])


def test_a_head_that_learns_nothing_is_found(study, monkeypatch):
    from vl12in1.model.heads import EntailHead
    monkeypatch.setattr(EntailHead, "loss", lambda self, logits, batch: logits.square().mean() * 0 + 1)
    with pytest.raises(TaskError, match="whether the loss of one training batch falls"):
        check_task("snli_ve", study[0]["snli_ve"], study[1])


def test_a_head_that_sees_its_neighbours_is_found(study, monkeypatch):
    from vl12in1.model.heads import GroundHead
    logits = GroundHead.logits
    monkeypatch.setattr(GroundHead, "logits", lambda self, encoded, batch: logits(self, encoded, batch) + len(batch.tokens))
    with pytest.raises(TaskError, match="alone and in a batch"): check_task("refcoco", study[0]["refcoco"], study[1])


def test_a_thirteenth_task_takes_less_than_sixty_lines():
    cells = json.loads(CHAPTER.read_text())["cells"]
    begin, end = (next(i for i, cell in enumerate(cells) if headline in "".join(cell["source"]))
                  for headline in ("## The thirteenth task", "## What every task keeps to"))
    lines = [line for cell in cells[begin:end] if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines()]
    assert 20 < len([line for line in lines if line.strip() and not line.startswith("#")]) < 60


@pytest.fixture
def counting(monkeypatch):
    "A sixth kind of answer, written here alone: one class, and a row of the task table."
    from vl12in1.model.heads import HEADS, Head
    before = dict(HEADS)

    class CountHead(Head, kind="count"):
        "How many red things? Targets (B,) float32. Logits (B, 1)."
        columns = (frozenset({"count"}),)

        def __init__(self, config):
            super().__init__()
            self.layer = torch.nn.Linear(config.pooled_width, 1)

        @classmethod
        def targets(cls, examples, rows): return torch.tensor(examples.column("count", rows), dtype=torch.float32)

        def logits(self, encoded, batch): return self.layer(encoded.pooled)
        def loss(self, logits, batch): return (logits[:, 0] - batch.targets).square().mean()
        def predict(self, logits, batch): return logits[:, 0].round().long()
        def scores(self, logits, batch): return (self.predict(logits, batch) == batch.targets).float()

    row = replace(TASKS["snli_ve"], name="counting", title="Counting", head="count", text_length=8, batch_size=16)
    monkeypatch.setitem(TASKS, "counting", row)
    yield row
    HEADS.clear()
    HEADS.update(before)


def test_a_sixth_head_is_one_class_and_one_row(counting, tmp_path):
    from toy import CPU
    from vl12in1.evaluation.predict import all_metrics, predict
    from vl12in1.evaluation.submissions import read_items, write_items
    from vl12in1.examples.batches import Examples
    from vl12in1.toy import RED, toy_colours, toy_sources
    from vl12in1.model import TwelveInOne
    from vl12in1.training.schedules import RoundRobin
    from vl12in1.training.trainer import Feed, Trainer, TrainingConfig, build_model
    sources, red = toy_sources(tmp_path), (toy_colours() == RED).sum(1)

    def pictures(numbers):
        return pd.DataFrame(dict(uid=[str(i) for i in numbers], images=[(f"coco:{i}",) for i in numbers], text="is there a red thing",
                                 count=[int(red[i]) for i in numbers]))

    frames = dict(train=pictures(range(22)), val=pictures(range(22, 26)), test=pictures(range(26, 30)))
    check_task("counting", frames, sources)
    frames["test"] = pictures(range(4))  # what was learnt
    with pytest.raises(TaskError, match="train and test share"): check_task("counting", frames, sources)
    torch.manual_seed(0)
    model = build_model(sources, "tiny")
    config = TrainingConfig(60, 1e-2, 1e-2)
    feeds = {"counting": Feed.of("counting", frames, sources, config)}
    Trainer(model, feeds, RoundRobin(feeds), config, tmp_path / "run", machine=CPU).run()
    predictions = predict(model, Examples("counting", frames["test"], sources), CPU)
    assert predictions.score.mean() == 1 and predictions.prediction.tolist() == frames["test"]["count"].tolist()
    assert all_metrics("counting", frames["test"], predictions) == {"accuracy": 1, "examples": 4}
    unlabelled = predict(model, Examples("counting", frames["test"].drop(columns="count"), sources), CPU)
    assert unlabelled.prediction.tolist() == predictions.prediction.tolist() and unlabelled.score.isna().all()
    write_items({"counting": predictions}, tmp_path / "items.csv")
    assert read_items(tmp_path / "items.csv")["counting"].prediction.tolist() == predictions.prediction.tolist()
    model.save_pretrained(tmp_path / "bundle")
    again = TwelveInOne.from_pretrained(tmp_path / "bundle")
    assert predict(again, Examples("counting", frames["test"], sources), CPU).prediction.tolist() == predictions.prediction.tolist()
