"""Pictures and texts of the paper's sizes, drawn at random: what benchmarks compute on, since no corpus can be taken for granted."""
import numpy as np
import pandas as pd

from vl12in1.examples.batches import Sources
from vl12in1.examples.text import SPECIAL, AnswerVocabulary, Tokenizer
from vl12in1.model import HEADS
from vl12in1.regions import Regions


class RandomRegions(dict):
    "Pictures of random regions; what a region store is to the library."
    manifest = {"feature_dim": 2048}


def random_sources(rng, pictures=64, fewest=100, most=100) -> Sources:
    "Regions, from the fewest to the most of a picture evenly, 30,522 word pieces, 3,129 and 1,533 answers."
    regions = RandomRegions()
    for number, count in enumerate(np.linspace(fewest, most, pictures).round().astype(int)):
        corners = rng.uniform(0, 300, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(20, 300, (count, 2))], axis=1).astype("float32")
        regions[f"coco:{number}"] = Regions(rng.normal(size=(count, 2048)).astype("float16"), boxes, 640, 640, None)
    answers = {name: AnswerVocabulary([f"answer{i}" for i in range(size)]) for name, size in (("vqa", 3129), ("gqa", 1533))}
    words = [*SPECIAL, *(f"word{i}" for i in range(30522 - len(SPECIAL)))]
    return Sources(regions, regions, Tokenizer(words), answers)


def random_frame(task, sources, rng, examples, words=None) -> pd.DataFrame:
    """Examples with the first form of the target columns of the task's head. `words`: mean and deviation of the lengths of texts, [CLS] and
    [SEP] included; each is as long as its task allows unless given."""
    head, keys = HEADS[task.head], list(sources.detected)
    shown = rng.permutation(np.resize(keys, examples * head.images)).reshape(examples, head.images)
    images = [tuple(keys) for keys in shown.tolist()]
    lengths = np.full(examples, task.text_length) if words is None else rng.normal(*words, examples).round().clip(4, task.text_length)
    texts = [" ".join(f"word{i}" for i in rng.integers(30000, size=int(length) - 2)) for length in lengths]
    boxes = [tuple(sources.detected[key].boxes[0] / 640) for key, *_ in images]
    targets = dict(answers=[(f"answer{i}",) * 10 for i in rng.integers(1500, size=examples)], box=boxes,
                   label=rng.integers(2, size=examples))
    columns = {name: targets[name] for name in head.columns[0]}
    return pd.DataFrame(dict(uid=[str(i) for i in range(examples)], images=images, text=texts) | columns)
