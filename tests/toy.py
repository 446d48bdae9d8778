"""A study small enough for tests: twenty pictures of random features, and three tasks with different heads."""
import numpy as np
import pandas as pd
import torch

from vl12in1.model import PRESETS, TwelveInOne
from vl12in1.predictor import published_assets
from vl12in1.regions import Regions, RegionStore, RegionWriter
from vl12in1.regions.detector import Detector, DetectorConfig, save_detector
from vl12in1.examples.batches import Sources
from vl12in1.training.machine import Machine
from vl12in1.training.schedules import DynamicStopAndGo, RoundRobin
from vl12in1.examples.text import AnswerVocabulary, Tokenizer, write_wordpieces
from vl12in1.training.trainer import Feed, Trainer, TrainingConfig

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] red blue ball box left right is the".split()
KEYS = [f"coco:{i}" for i in range(20)]
CPU = Machine()


def write_store(folder, dim):
    rng = np.random.default_rng(0)
    with RegionWriter(folder, "random") as writer:
        for key in KEYS:
            corners = rng.uniform(0, 50, (5, 2))
            boxes = np.concatenate([corners, corners + rng.uniform(10, 50, (5, 2))], axis=1).astype("float32")
            writer.append(key, Regions(rng.normal(size=(5, dim)).astype("float16"), boxes, 100, 100, None))


def sources(folder, dim=8):
    if not (folder / "store").exists(): write_store(folder / "store", dim)
    store, answers = RegionStore.open(folder / "store"), AnswerVocabulary(["yes", "no"])
    return Sources(store, store, Tokenizer(WORDS), {"vqa": answers, "gqa": answers})


def frames(shared):
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS[5:], size=4)) for _ in range(40)]
    frame = pd.DataFrame(dict(uid=[str(i) for i in range(40)], images=[(KEYS[i % 20],) for i in range(40)], text=texts))
    boxes = [tuple(shared.given[key].boxes[rng.integers(5)] / 100) for (key,) in frame.images]
    split = lambda f: {"train": f.iloc[:32], "val": f.iloc[32:], "test": f.iloc[32:]}
    return {"vqa": split(frame.assign(answers=[(str(a),) * 10 for a in rng.choice(["yes", "no"], 40)])),
            "refcoco": split(frame.assign(box=boxes)),
            "snli_ve": split(frame.assign(label=rng.integers(0, 3, 40)))}


def trainer(folder, tasks=("vqa", "refcoco", "snli_ve"), iterations=12, seed=0, identity=None, preset="miniature", **config):
    torch.set_num_threads(1)  # sums depend on how many threads share them, and other tests choose for themselves
    shared, settings = sources(folder), TrainingConfig(iterations, 1e-3, 1e-3, batch_fraction=1 / 32, seed=seed, **config)
    data = frames(shared)
    torch.manual_seed(seed)
    model = TwelveInOne(PRESETS[preset](vocab_size=len(WORDS), feature_dim=8, task_tokens=tuple((t,) for t in tasks)),
                        {"vqa": 2, "gqa": 2})
    feeds = {task: Feed.of(task, data[task], shared, settings) for task in tasks}
    schedule = DynamicStopAndGo(RoundRobin(tasks))
    return Trainer(model, feeds, schedule, settings, folder / "run", identity, CPU)


def save_untrained(folder, config):
    "An untrained model of a configuration, with words and answers, in `model` below a folder; its detector, untrained too, in `detector`."
    torch.manual_seed(0)
    detector = Detector.new(DetectorConfig(), ["background", "ball"], ["red"])
    model = TwelveInOne(config, {"vqa": 2, "gqa": 3})
    write_wordpieces(WORDS, folder / "vocab.txt")
    for name, words in (("vqa", ["yes", "no"]), ("gqa", ["red", "blue", "left"])): AnswerVocabulary(words).save(folder / f"{name}.json")
    model.assets = published_assets(model, folder / "vocab.txt", detector, vqa=folder / "vqa.json", gqa=folder / "gqa.json")
    model.save_pretrained(folder / "model")
    save_detector(detector, folder / "detector")
