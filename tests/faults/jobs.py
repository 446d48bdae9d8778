"""Work that writes files, disturbed: killed at any moment, on a full disk, with too little memory, with a clock that runs backwards,
twice at once. Thereafter the same work is done again, and must leave the same bytes as if nothing had been; or say in one line what to do.

`python tests/faults/jobs.py COUNT` disturbs each of them so many times in each way. The last line is JSON: fault -> end -> how many."""
import hashlib
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])] * (__name__ == "__main__")

import numpy as np
import pandas as pd
import torch
from PIL import Image

import published
import toy
from faults.children import Ended, forked, limit, status_of
from vl12in1 import corpora
from vl12in1.endings import ending
from vl12in1.evaluation.records import write_item_scores, write_json
from vl12in1.evaluation.submissions import write_submission
from vl12in1.examples.neighbours import write_neighbours
from vl12in1.examples.stored import write_frames
from vl12in1.model import TwelveInOne, ViLBERTConfig
from vl12in1.model.checkpoints import write_published
from vl12in1.predictor.pictures import Looking
from vl12in1.regions import RegionStore, extract, find_features, import_features
from vl12in1.regions.detector import Detector, DetectorConfig, save_detector
from vl12in1.world import WorldConfig, write_world


# ---- what is done: each writes below `folder`, from what `prepare` left in `given`

def prepare(given):
    "What the jobs read, made once."
    random_numbers = np.random.default_rng(0)
    (given / "pictures").mkdir(parents=True)
    for number in range(40):
        Image.fromarray(random_numbers.integers(0, 255, (24, 32, 3), np.uint8)).save(given / f"pictures/{number}.png")
    (given / "published").mkdir()
    published.write_tsv(given / "published/coco.tsv", published.records(range(80), rows=4, dim=64))
    toy.write_store(given / "store", 8)
    write_world(given / "world", WorldConfig(scale=.01))
    detector().record("detected")


def detector(): return Detector.new(DetectorConfig(), ["background", "ball"], ["red"])


def model(): return TwelveInOne(ViLBERTConfig.tiny(), {"vqa": 3, "gqa": 2})


def training(given, folder):
    "Six iterations, a checkpoint after each, and the weights at the end."
    if not (folder / "store").exists(): shutil.copytree(given / "store", folder / "store")
    trainer = toy.trainer(folder, iterations=6, checkpoint_every=1)
    trainer.resume()
    trainer.run()
    trainer.model.eval()
    torch.manual_seed(0)
    write_json(folder / "weights.json", {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
                                         for name, tensor in trainer.model.state_dict().items()})


def importing(given, folder):
    unless_whole(folder / "regions", lambda: import_features(find_features(given / "published"), folder / "regions"))


def extracting(given, folder):
    images = {f"album:{path.stem}": path for path in sorted((given / "pictures").iterdir())}
    unless_whole(folder / "regions", lambda: extract(detector(), images, folder / "regions", batch_size=4))


def unless_whole(store, work):
    "Whoever has a complete store does not begin it again."
    if not (store / "manifest.json").exists(): work()


def saving(given, folder):
    torch.manual_seed(0)
    model().save_pretrained(folder / "model")


def converting(given, folder):
    torch.manual_seed(0)
    write_published(model(), folder / "weights.bin")
    write_published(model(), folder / "weights.safetensors")


def reporting(given, folder):
    scores = {("all", seed, task): np.linspace(0, 1, 2000) for seed in (0, 1) for task in ("vqa", "nlvr2")}
    write_item_scores(folder / "reports/items/at.csv", scores)
    write_json(folder / "reports/runs/at.json", {"trained": [{"losses": list(range(3000))}]})


def submitting(given, folder):
    frame = corpora.load(given / "world", only=["vqa"])["vqa"]["val"]
    write_submission("vqa", frame, pd.DataFrame(dict(uid=frame.uid, prediction="yes")), folder)


def keeping(given, folder):
    "Regions of pictures, kept for the next time."
    (folder / "seen").mkdir(exist_ok=True)
    looking = Looking(detector(), folder / "seen")
    for path in sorted((given / "pictures").iterdir())[:8]: looking(np.asarray(Image.open(path, formats=["PNG"])))


def framing(given, folder): write_frames(corpora.load(given / "world", only=["vqa", "refcoco"]), folder / "frames")


def comparing(given, folder): write_neighbours(RegionStore.open(given / "store"), ["coco"], folder / "near")


def learning_to_see(given, folder): save_detector(detector(), folder / "detector")


def writing_the_world(given, folder): write_world(folder / "world", WorldConfig(scale=.004))


JOBS = {job.__name__.replace("_", " "): job for job in (
    training, importing, extracting, saving, converting, reporting, submitting, keeping, framing, comparing, learning_to_see,
    writing_the_world)}


# ---- how it is disturbed

def doing(job, given, folder):
    def do():
        with ending("job"): JOBS[job](given, folder)
    return do


def killed(job, given, folder, dice, seconds):
    "The whole group of processes is killed at any moment of the work."
    child = os.fork()
    if not child:
        os.setsid()
        for stream in (1, 2): os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        os._exit(status_of(doing(job, given, folder)))
    time.sleep(dice.uniform(0, 1.2 * seconds))
    try: os.killpg(child, dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    except ProcessLookupError: pass  # it has not come as far as to have a group, or was done
    try: os.kill(child, signal.SIGKILL)
    except ProcessLookupError: pass
    os.waitpid(child, 0)
    return Ended(0, "", "")  # whenever it comes, that is no error of the program


LOST = "not BufferedWriter"  # what NumPy says of an interrupt that comes while it writes an array: nobody can catch that

def interrupted(job, given, folder, dice, seconds):
    "Ctrl-C at any moment of the work, but within NumPy."
    def do():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(.001, 1.2 * seconds))
        try: doing(job, given, folder)()
        finally: signal.setitimer(signal.ITIMER_REAL, 0)
    ended = forked(do, seconds=0)
    return interrupted(job, given, folder, dice, seconds) if LOST in ended.error else ended


def full(job, given, folder, dice, seconds):
    "The disk takes so many bytes of each file, and no more."
    return forked(doing(job, given, folder), seconds=60, largest=int(2 ** dice.uniform(0, 20)))


def narrow(job, given, folder, dice, seconds):
    "Up to 64 MB of memory more than the process had."
    return forked(doing(job, given, folder), seconds=10, more=int(2 ** dice.uniform(16, 26)))


def backwards(job, given, folder, dice, seconds):
    "The clock goes back by an hour whenever it is looked at."
    def do():
        hours = itertools.count()
        now = time.time
        time.time = lambda: now() - 3600 * next(hours)
        doing(job, given, folder)()
    return forked(do, seconds=60)


def twice(job, given, folder, dice, seconds):
    "The same work is begun a second time while it is under way."
    child = os.fork()
    if not child:
        for stream in (1, 2): os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        limit(60, 0, None)
        os._exit(status_of(doing(job, given, folder)))
    time.sleep(dice.uniform(0, .5 * seconds))
    ended = forked(doing(job, given, folder), seconds=60)
    other = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return ended if other in (0, 1) else Ended(other, "", "the first one was lost")


def in_the_way(job, given, folder, dice, seconds):
    "Where it writes, there is a file."
    (folder / "file").write_text("")
    return forked(doing(job, given, folder / "file"), seconds=60)


FAULTS = {"killed": killed, "interrupted": interrupted, "disk full": full, "little memory": narrow, "clock backwards": backwards,
          "two at once": twice, "no folder": in_the_way}


# ---- what is left

LEFT_OUT = ("checkpoint", "history", "run/", "file", "store/", ".lock", "regions/journal")  # what says when, or is only there to go on


def contents(folder) -> dict[str, str]:
    "Digests of the files that work leaves, by path."
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
            if path.suffix != ".part" and not (name := path.relative_to(folder).as_posix()).startswith(LEFT_OUT)}


def is_clear(ended) -> bool:
    "Whether a child ended as it should: well, or with one line on its error stream; or after Ctrl-C."
    lines = [line for line in ended.error.splitlines() if line.startswith("job: ")]
    return ended.status == 0 or ended.status in (1, 130) and len(lines) == 1 and "Traceback" not in ended.error


def trial(job, fault, seed, given, expected, seconds) -> str:
    "same bytes, one clear error; or what was wrong."
    dice = random.Random(f"{job}:{fault}:{seed}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "work")
        folder.mkdir()
        first = FAULTS[fault](job, given, folder, dice, seconds)
        starved = fault == "little memory" and first.status not in (0, 1)  # memory ran out in a library that has no words for it
        if not (is_clear(first) or starved): return f"{job}, {fault}, {seed}: status {first.status}, {first.error.strip()[-300:]!r}"
        again = forked(doing(job, given, folder), seconds=60, more=0)
        if again.status and is_clear(again): return "one clear error"
        if again.status: return f"{job}, {fault}, {seed}, again: status {again.status}, {again.error.strip()[-300:]!r}"
        odd = {name for name, _ in set(expected.items()) ^ set(contents(folder).items())}
        return f"{job}, {fault}, {seed}: other bytes in {sorted(odd)[:4]}" if odd else "same bytes"


def trials(job, given, count, faults=FAULTS) -> list[tuple[str, str, str]]:
    "(job, fault, end) of so many trials of each fault."
    with tempfile.TemporaryDirectory() as temporary:
        start = time.monotonic()
        undisturbed = forked(doing(job, given, Path(temporary)), seconds=120, more=0)
        if undisturbed.status: raise RuntimeError(f"{job}: {undisturbed.error}")
        seconds, expected = time.monotonic() - start, contents(Path(temporary))
    return [(job, fault, trial(job, fault, seed, given, expected, seconds)) for fault in faults for seed in range(count)]


def main():
    count, *jobs = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary))
        ends = []
        for job in jobs or JOBS:
            start = time.monotonic()
            ends += (rows := trials(job, Path(temporary), int(count)))
            counts = pd.Series([end[:60] for *_, end in rows]).value_counts().to_dict()
            print(f"{job}: {counts}, {time.monotonic() - start:.0f} s", flush=True)
        wrong = [end for *_, end in ends if end not in ("same bytes", "one clear error")]
        print(*wrong, sep="\n")
        table = pd.DataFrame(ends, columns=["job", "fault", "end"])
        table["end"] = table.end.where(table.end.isin(["same bytes", "one clear error"]), "otherwise")
        print(table.groupby(["fault", "end"]).size().unstack(fill_value=0).to_json(orient="index"))
    sys.exit(bool(wrong))


if __name__ == "__main__": main()
