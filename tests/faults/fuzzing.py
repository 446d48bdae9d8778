"""Readers are given damaged files, one at a time, each within ten seconds and a gigabyte: they read what they always did, read something
else that the file now says, or refuse it with an error that names it. Anything else is a finding, which its seed makes again.

`python tests/faults/fuzzing.py COUNT [TARGET …]` tries so many inputs of each target; `TARGET:SEED` makes one again and shows it. The
last line is JSON: how many ended in which way, and the `most` that one of them took, seconds and megabytes beyond what was there, each
with its seed."""
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1])] * (__name__ == "__main__")

import h5py  # noqa: F401  before memory is limited
import lmdb  # noqa: F401
import numpy as np
import pandas as pd
import torch
from PIL import Image

import published
import toy
from faults.children import forget_peak, limit, resident
from faults.damage import damaged
from vl12in1 import corpora
from vl12in1.evaluation.records import read_item_scores, write_item_scores
from vl12in1.evaluation.submissions import read_submission, write_submission
from vl12in1.examples.neighbours import Neighbours, write_neighbours
from vl12in1.examples.stored import read_frames, write_frames
from vl12in1.examples.text import AnswerVocabulary, Tokenizer
from vl12in1.leaks import leak_report
from vl12in1.model import TwelveInOne, ViLBERTConfig
from vl12in1.model.checkpoints import inspect, read_published, write_published
from vl12in1.predictor.pictures import load_regions, save_regions
from vl12in1.regions import RegionStore, find_features, import_features, verify
from vl12in1.regions.detector import load_detector, read_picture
from vl12in1.regions.faster_rcnn import open_published
from vl12in1.study import notebooks
from vl12in1.study.reproduction import comparison_report
from vl12in1.study.results import invent_run
from vl12in1.training.runs import read_grid
from vl12in1.world import WorldConfig, write_world

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = ValueError, OSError, ImportError
SECONDS, MEMORY = 10, 2 ** 30


@dataclass
class Target:
    """What is damaged and read: `make(folder)` writes the files, `read(folder)` reads them and returns something with a `repr`.

    - `exact`: a reader that notices any damage, so that what it returns is what was written
    - `only`: endings of the files that are damaged; all of them if there are none
    - `scratch`: a folder that reading writes, removed before each turn"""
    make: Callable
    read: Callable
    exact: bool = False
    only: tuple = ()
    scratch: str = "new"


# ---- what is read

def world(folder):
    "The miniature world, made once and copied."
    if not WORLD.exists(): write_world(WORLD, WorldConfig(scale=.005))
    return WORLD


WORLD = Path(tempfile.gettempdir(), f"fuzz_world_{os.getpid()}")


def corpus(name):
    "One corpus, with the lists that all of them need."
    parts = {"refcoco+": ["refcoco"], "refcocog": ["refcoco"], "gqa": ["gqa", "visual_genome"], "visual7w": ["visual7w", "visual_genome"]}

    def make(folder):
        for part in parts.get(name, [name]):
            shutil.copytree(world(folder) / part, folder / part)
    return Target(make, lambda folder: corpora.load(folder, only=[name]))


def features(name, writer):
    made = [published.record(image, 3) for image in range(6)]

    def read(folder):
        import_features(find_features(folder / "files"), folder / "new")
        return verify(folder / "new"), contents(RegionStore.open(folder / "new"))
    return Target(lambda folder: ((folder / "files").mkdir(), writer(folder / "files" / f"coco_{name}", made)), read)


def contents(store): return [(key, store[key].features.tobytes(), store[key].boxes.tobytes()) for key in store.keys()]


def whole_store(folder): return verify(folder / "store"), contents(RegionStore.open(folder / "store"))


def tensors(model): return [(name, tensor.numpy().tobytes()) for name, tensor in model.state_dict().items()]


def desk(folder):
    toy.save_untrained(folder, ViLBERTConfig.tiny(vocab_size=len(toy.WORDS), feature_dim=64))
    for name in ("vocab.txt", "vqa.json", "gqa.json"): (folder / name).unlink()


def part_of_desk(name):
    def make(folder):
        with tempfile.TemporaryDirectory() as other:
            desk(Path(other))
            shutil.copytree(f"{other}/{name}", folder / name)
    return make


def published_weights(suffix):
    def make(folder):
        torch.manual_seed(0)
        write_published(TwelveInOne(ViLBERTConfig.tiny(), {"vqa": 3, "gqa": 2}), folder / f"weights{suffix}")
    return Target(make, lambda folder: (inspect(folder / f"weights{suffix}").to_dict(),
                                        tensors(read_published(folder / f"weights{suffix}", folder / "weights.json")[0])))


def resumed(folder):
    "Weights after two more iterations than the checkpoint has seen."
    trainer = toy.trainer(folder, tasks=("vqa",), iterations=3, checkpoint_every=1)
    trainer.resume()
    return trainer.iteration, tensors(trainer.model)


def begun(folder):
    trainer = toy.trainer(folder, tasks=("vqa",), iterations=3, checkpoint_every=1)
    trainer.run()


def pictures(folder):
    numbers = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    for name in ("one.png", "two.jpg"): Image.fromarray(numbers).save(folder / name)


def study(folder):
    "The settings of the study, in a folder that looks like a checkout."
    (folder / "profiles").mkdir()
    for name in ("params.yaml", "dvc.yaml", "profiles/smoke.yaml"): shutil.copy(ROOT / name, folder / name)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("profile: miniature", "profile: smoke"))


def read_study(folder):
    os.chdir(folder)
    notebooks.root.cache_clear() if hasattr(notebooks.root, "cache_clear") else None
    return read_grid(notebooks.settings())


def reports(folder):
    for name in ("ours", "theirs"):
        invent_run(folder / name, "at", {"all": ["vqa", "nlvr2"]}, .6, seeds=2)
        (folder / name / "index.csv").write_text("claim,verdict,difference,difference_low,difference_high\nmore,holds,1.5,.5,2.5\n")


SPLIT = pd.DataFrame(dict(uid=["1", "2"], images=[("coco:1",), ("coco:2",)], text=["a", "b"]))


def submission(folder):
    frame = corpora.load(world(folder), only=["vqa"])["vqa"]["val"].head(5)
    (folder / "frame").mkdir()
    frame.to_pickle(folder / "frame/kept")
    write_submission("vqa", frame, pd.DataFrame(dict(uid=frame.uid, prediction="yes")), folder)


def leak_lists(folder):
    for part in ("refcoco",): shutil.copytree(world(folder) / part, folder / "two" / part)
    (folder / "seen.txt").write_text("1\n2\n3\n")
    (folder / "seen.json").write_text(json.dumps({"coco": [1, 2], "visual_genome": ["3"]}))
    np.save(folder / "seen.npy", np.arange(5))


def read_leak_lists(folder):
    return [leak_report(folder / "two", None, folder / name, "coco", None) for name in ("seen.txt", "seen.json", "seen.npy")]


def kept_regions(folder):
    toy.write_store(folder / "store", 8)
    save_regions(RegionStore.open(folder / "store")["coco:1"], folder / "seen.npz")
    shutil.rmtree(folder / "store")


def neighbours(folder):
    toy.write_store(folder / "store", 8)
    write_neighbours(RegionStore.open(folder / "store"), {"coco": toy.KEYS}, folder / "near")


def lists(folder):
    (folder / "vocab.txt").write_text("\n".join(toy.WORDS) + "\n")
    AnswerVocabulary(["yes", "no", "red"]).save(folder / "answers.json")


TARGETS = {
    **{name: corpus(name) for name in corpora.READERS},
    **{f"features {name}": features(name, writer) for name, writer in {
        "arrays.lmdb": published.write_lmdb, "base64.lmdb": lambda path, made: published.write_lmdb(path, made, base64=True),
        "bottom_up.tsv": published.write_tsv, "lxmert.tsv": lambda path, made: published.write_tsv(path, made, published.LXMERT),
        "groups.h5": published.write_h5, "arrays.hdf5": published.write_h5_arrays, "npy": published.write_npy,
        "mmf": lambda path, made: published.write_npy(path, made, info=True), "npz": published.write_npz,
        "uniter": lambda path, made: published.write_npz(path, made, fractions=True)}.items()},
    "store": Target(lambda folder: toy.write_store(folder / "store", 8), whole_store, exact=True),
    "weights.bin": published_weights(".bin"), "weights.safetensors": published_weights(".safetensors"),
    "model": Target(part_of_desk("model"), lambda folder: tensors(TwelveInOne.from_pretrained(folder / "model"))),
    "detector": Target(part_of_desk("detector"), lambda folder: load_detector(folder / "detector").record("detected")),
    "published detector": Target(lambda folder: shutil.copytree(ROOT / "tests/parity/detector_small", folder / "detector"),
                                 lambda folder: tensors(open_published(folder / "detector/weights.pth")), only=(".pth", ".yaml")),
    "checkpoint": Target(begun, resumed, only=(".pt",)),
    "pictures": Target(pictures, lambda folder: [read_picture(folder / name).tobytes() for name in ("one.png", "two.jpg")]),
    "frames": Target(lambda folder: write_frames({"vqa": toy.frames(toy.sources(folder / "new"))["vqa"]}, folder / "text"),
                     lambda folder: read_frames(folder / "text")),
    "neighbours": Target(neighbours, lambda folder: list(Neighbours.open(folder / "near", RegionStore.open(folder / "store")).items()),
                         only=("near",)),
    "word lists": Target(lists, lambda folder: (Tokenizer.open(folder / "vocab.txt").pieces,
                                                AnswerVocabulary.open(folder / "answers.json").answers)),
    "settings": Target(study, read_study, only=("params.yaml", "smoke.yaml")),
    "reports": Target(reports, lambda folder: comparison_report(folder / "ours", folder / "theirs")),
    "item scores": Target(lambda folder: write_item_scores(folder / "items.csv", {("all", 0, "vqa"): np.float64([0, 1, .3])}),
                          lambda folder: read_item_scores(folder / "items.csv")),
    "submission": Target(submission, lambda folder: read_submission("vqa", pd.read_pickle(folder / "frame/kept"), folder / "vqa.json"),
                         only=(".json",)),
    "leak lists": Target(leak_lists, read_leak_lists, only=("seen.txt", "seen.json", "seen.npy")),
    "kept regions": Target(kept_regions, lambda folder: repr(load_regions(folder / "seen.npz")))}


# ---- one input

def plain(value, depth=0):
    "A value as text that is the same for the same contents."
    if depth == 50: return repr(value)  # which goes deeper
    if isinstance(value, dict): return [(key, plain(item, depth + 1)) for key, item in value.items()]
    if isinstance(value, pd.DataFrame): return repr(value.to_dict("list"))
    if isinstance(value, (list, tuple)): return [plain(item, depth + 1) for item in value]
    return repr(value)


def spoil(target, name, seed, folder, files):
    "Damage one of the files; returns its path and what was done."
    dice = random.Random(f"{name}:{seed}")
    path = dice.choice([path for path in files if not target.only or str(path).endswith(target.only) or path.parent.name in target.only])
    others = [content for other, content in files.items() if other != path and other.suffix == path.suffix]
    content, what = damaged(dice, path.name, files[path], others)
    (folder / path).write_bytes(content)
    return path, what


def judged(target, folder, path, what, before):
    "same, other or refused; or what is wrong."
    try: after = plain(target.read(folder))
    except ALLOWED as error:
        message = str(error)
        if not any(part in message for part in (str(folder), path.name)): return f"{type(error).__name__} names no file: {message[:200]}"
        return "refused"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in last if "/vl12in1/" in frame.filename]
        at = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        return f"{type(error).__name__} at {at}: {str(error)[:160]!r}"
    if after == before: return "same"
    return "damage was not noticed" if target.exact and what != "edit_json" else "other"  # a list that was edited is another list


def try_all(name, seeds, folder, log):
    "Try the seeds, in a child with limits, and write a line of JSON for each: `seed`, then `end`."
    target = TARGETS[name]
    target.make(folder)
    shutil.rmtree(folder / target.scratch, ignore_errors=True)
    files = {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    before = plain(target.read(folder))
    limit(0, MEMORY, None)
    with open(log, "a", buffering=1) as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds:
            shutil.rmtree(folder / target.scratch, ignore_errors=True)
            path, what = spoil(target, name, seed, folder, files)
            said.write(json.dumps(dict(seed=seed, file=str(path), damage=what)) + "\n")
            forget_peak()
            signal.alarm(SECONDS)
            held, start = resident("VmRSS"), time.perf_counter()
            end = judged(target, folder, path, what, before)
            took = dict(seconds=round(time.perf_counter() - start, 2), megabytes=max(0, resident("VmHWM") - held) >> 20)
            signal.alarm(0)
            if Path("executed").exists() or (folder / "executed").exists(): end = "code in the file was executed"
            said.write(json.dumps(dict(end=end, **took)) + "\n")
            for other in set(folder.rglob("*")) - {folder / each for each in files}:
                if other.is_file() and target.scratch not in other.parts: other.unlink()
            for each in files:
                if each == path or not (folder / each).exists(): (folder / each).write_bytes(files[each])


class Outcome(NamedTuple):
    "What became of an input: its `seed`, the `file` and its `damage`, how it ended, and what that took."
    seed: int
    file: str
    damage: str
    end: str
    seconds: float = 0
    megabytes: int = 0


def outcomes(name, seeds):
    "The outcome of every seed; a child that is lost is an end, too, and another one goes on."
    left, found = list(seeds), []
    while left:
        with tempfile.TemporaryDirectory() as temporary:
            log = Path(temporary, "log")
            log.touch()
            child = os.fork()
            if not child:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(os.open(f"{temporary}/error", os.O_WRONLY | os.O_CREAT), 2)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                (Path(temporary) / "files").mkdir()
                os.chdir(temporary)
                status = 0
                try: try_all(name, left, Path(temporary, "files"), log)
                except BaseException:
                    traceback.print_exc()
                    status = 1
                sys.stderr.flush()
                os._exit(status)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            rows = [line | lines[at + 1] if at + 1 < len(lines) else line | dict(end=f"lost: status {status}")
                    for at, line in enumerate(lines) if "seed" in line]
            if not rows: raise RuntimeError(f"{name}: {Path(temporary, 'error').read_text()[-3000:]}")
            found += [Outcome(**row) for row in rows]
            if status == 1: raise RuntimeError(f"{name}:{found[-1].seed}: {Path(temporary, 'error').read_text()[-3000:]}")
            left = left[len(rows):]
    return found


GOOD = ("same", "other", "refused")


def findings(name, seeds):
    "Lines about the inputs that ended in another way, how many ended in each, and the `most` that one took."
    ends = outcomes(name, seeds)
    wrong = [f"{name}:{one.seed} {one.file}, {one.damage}: {one.end}" for one in ends if one.end not in GOOD]
    most = {unit: max((getattr(one, unit), f"{name}:{one.seed}") for one in ends) for unit in ("seconds", "megabytes")}
    return wrong, Counter(one.end for one in ends if one.end in GOOD), most


def shared_out(count):
    "All targets, by as many processes as there are processors; ends with status 1 if one of them did."
    parts, names = os.cpu_count() or 1, [*TARGETS]
    commands = [[sys.executable, __file__, count, *names[part::parts]] for part in range(min(parts, len(names)))]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    total, most = Counter(), []
    for program in programs:
        *lines, last = program.communicate()[0].splitlines()
        print(*lines, sep="\n", flush=True)
        ends = json.loads(last)
        most.append(ends.pop("most"))
        total += Counter(ends)
    print(json.dumps(total | dict(most={unit: max(each[unit] for each in most) for unit in most[0]})))
    sys.exit(any(program.returncode for program in programs))


def main():
    count, *names = sys.argv[1:]
    if ":" in count:
        name, _, seed = count.rpartition(":")
        return print(*outcomes(name, [int(seed)])[0], sep="\n")
    total, highest = Counter(), dict(seconds=(0, ""), megabytes=(0, ""))
    if not names: return shared_out(count)
    for name in names:
        start = time.time()
        wrong, ends, most = findings(name, range(int(count)))
        total += ends + Counter(otherwise=len(wrong))
        highest = {unit: max(highest[unit], most[unit]) for unit in highest}
        print(f"{name}: {dict(ends)}, {len(wrong)} findings, {time.time() - start:.0f} s, at most {most['seconds'][0]:.1f} s and "
              f"{most['megabytes'][0]} MB for one", *wrong, sep="\n  ", flush=True)
    print(json.dumps(total | dict(most=highest)))
    sys.exit(total["otherwise"] > 0)


if __name__ == "__main__":
    try: main()
    finally: shutil.rmtree(WORLD, ignore_errors=True)
