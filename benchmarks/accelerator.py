"""What the library does on an accelerator, at the paper's size: `python benchmarks/accelerator.py [folder for the results]`.

Published outputs are compared on the device; a small run is trained in both precisions, and once more after being stopped; one
iteration of all twelve tasks of the paper's size is trained by the trainer; a step of each task is timed and its operations
counted, with its batch on the device already; the published computation (`plain.py`) is timed beside it, ranking is timed, and
how long training waits for its batches. Pictures and texts are random; only sizes are the paper's: 100 regions of 2,048
numbers, the batch sizes and text lengths of the task table, every text as long as it may be. Writes `accelerator.json` and
`accelerator.md`, in about five minutes. Needs no data, no network, neither nbdev nor DVC.
"""
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from plain import Plain, optimizer  # noqa: E402
from random_corpora import random_frame, random_sources  # noqa: E402
from vl12in1.examples.batches import Examples  # noqa: E402
from vl12in1.model import Batch, Pretraining  # noqa: E402
from vl12in1.model.checkpoints import read_published  # noqa: E402
from vl12in1.tasks import TASKS  # noqa: E402
from vl12in1.toy import toy_frames, toy_sources  # noqa: E402
from vl12in1.training.balancing import ScaledLosses  # noqa: E402
from vl12in1.training.evaluation import outputs  # noqa: E402
from vl12in1.training.feed import Readers  # noqa: E402
from vl12in1.training.machine import Machine  # noqa: E402
from vl12in1.training.schedules import RoundRobin  # noqa: E402
from vl12in1.training.trainer import Feed, Trainer, TrainingConfig, TrainingStep, build_model  # noqa: E402

WARM_UP, STEPS = 3, 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISIONS = {"float32": Machine(DEVICE), "bfloat16": Machine(DEVICE, "bfloat16")}


# --- published outputs

def fixture_batch(published, task, row):
    "One row of a parity fixture as a batch of one task."
    take = lambda name: published[f"in.{name}"][row:row + 1]
    return Batch(task, take("input_ids"), take("text_mask").sum(1), take("features"), take("spatials"),
                 take("image_mask").sum(1), segments=take("segment_ids"))


def parity(folder, machine) -> float:
    "Largest difference of the sequences and pooled vectors from the published ones, relative to the largest published number."
    published = load_file(folder / "tensors.safetensors")
    model, _ = read_published(folder / "weights.safetensors", folder / "config.json")
    model.to(machine.device)
    worst = 0.
    for row, task in enumerate(published["in.task_ids"]):
        batch = fixture_batch(published, model.config.task_tokens[task][0], row).to(machine.device)
        with torch.inference_mode(), machine.autocast(): encoded = model.encode(batch)
        words, regions = int(batch.text_lengths) + 1, int(batch.region_counts)
        for ours, name, length in ((encoded.text, "sequence_text", words), (encoded.image, "sequence_image", regions),
                                   (encoded.pooled_text, "pooled_text", None), (encoded.pooled_image, "pooled_image", None)):
            theirs = published[f"out.{name}"][row:row + 1]
            difference = (ours.float().cpu() - theirs)[:, :length].abs().max() / theirs.abs().max()
            worst = max(worst, difference.item())
    return worst


# --- a small run

def small_trainer(folder, machine, iterations) -> Trainer:
    "A run of the toy tasks."
    torch.manual_seed(0)
    sources, frames = toy_sources(tempfile.mkdtemp()), toy_frames()
    config = TrainingConfig(iterations, 5e-3, 5e-3, batch_fraction=1 / 16, checkpoint_every=10)
    feeds = {task: Feed.of(task, split, sources, config) for task, split in frames.items()}
    return Trainer(build_model(sources, "miniature", dropout=0.), feeds, RoundRobin(feeds), config, folder, machine=machine)


def learning(iterations=60) -> dict:
    "Mean losses at the beginning and at the end, in both precisions; how far weights are off after being stopped and started again."
    losses, folder = {}, Path(tempfile.mkdtemp())
    for name, machine in PRECISIONS.items():
        history = small_trainer(folder / name, machine, iterations).run()
        means = history.groupby("iteration").loss.mean()
        losses[name] = dict(first=means.iloc[0], last=means.iloc[-1])
    whole, stopped = (small_trainer(folder / name, PRECISIONS["float32"], 20) for name in ("whole", "stopped"))
    whole.run()
    descend = stopped.descend

    def fatal(*arguments):
        if stopped.iteration == 15: raise KeyboardInterrupt
        descend(*arguments)
    stopped.descend = fatal
    try: stopped.run()
    except KeyboardInterrupt: pass
    resumed = small_trainer(folder / "stopped", PRECISIONS["float32"], 20)
    resumed.run()
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values())
    return dict(losses=losses, resumed=max((one - other).abs().max().item() for one, other in pairs))


# --- twelve tasks of the paper's size

def sizes(batch) -> dict:
    return dict(rows=len(batch.tokens), words=batch.tokens.shape[1], regions=batch.features.shape[1])


def wait():
    if DEVICE == "cuda": torch.cuda.synchronize()


def seconds(call, times) -> list[float]:
    taken = []
    for _ in range(times):
        wait()
        begin = time.perf_counter()
        call()
        wait()
        taken.append(time.perf_counter() - begin)
    return taken


def timed(call, failed) -> dict:
    "Median seconds of a call and its range, and the peak of memory; None where it does not fit, after calling `failed`."
    if DEVICE == "cuda": torch.cuda.reset_peak_memory_stats()
    try: taken = seconds(call, WARM_UP + STEPS)[WARM_UP:]
    except torch.OutOfMemoryError:
        failed()
        torch.cuda.empty_cache()
        return dict(seconds=None, gib=None)
    peak = torch.cuda.max_memory_allocated() / 2 ** 30 if DEVICE == "cuda" else None
    return dict(seconds=statistics.median(taken), fastest=min(taken), slowest=max(taken), gib=peak)


def operations(call) -> float:
    "Multiplications and additions of products of matrices in a call."
    with FlopCounterMode(display=False) as counter: call()
    return counter.get_total_flops()


def product_rate(machine, size=8192 if DEVICE == "cuda" else 512) -> float:
    "Operations a second of a bare product of matrices in a machine's precision."
    left, right = torch.randn(2, size, size, device=DEVICE)

    def product():
        with machine.autocast(): return left @ right
    return 2 * size ** 3 / min(seconds(product, 10))


def beside_plain(trainer, batch) -> dict:
    "A step of the published computation in both precisions, on the same batch; it has texts of full length, as published."
    torch.manual_seed(0)
    plain = Plain(trainer.model, Pretraining(trainer.model.config, classes=1601)).to(DEVICE)
    module, adam = TrainingStep(plain, ScaledLosses(TASKS)).train(), optimizer(plain)

    def step(machine):
        with machine.autocast(): weighed, _ = module(batch)
        weighed.backward()
        adam.step()
        adam.zero_grad()
    times = {name: timed(lambda: step(machine), adam.zero_grad) for name, machine in PRECISIONS.items()}
    return times | dict(operations=operations(lambda: step(PRECISIONS["float32"])))


def ranking(model, examples) -> dict:
    "Pairs a second, in bfloat16 and in float32, of a test: all captions with all of their images, on their way to the device and back."
    questions = list(model.head(examples.task.name).questions(examples, 512))
    pairs = sum(len(rows) * len(columns) for (rows, columns), _ in questions)

    def rank(machine):
        for _, _, logits in outputs(model, questions, machine): logits.cpu()
    return {name: pairs / statistics.median(seconds(lambda: rank(machine), WARM_UP + 3)[WARM_UP:]) for name, machine in PRECISIONS.items()}


def waiting(trainer, task, steps=20) -> float:
    "Fraction of the time of some steps of one task that passes in waiting for batches, of which two threads read ahead."
    sequences = {task: trainer.feeds[task].train}
    with Readers(sequences, {task: 0}, threads=2, pin=DEVICE == "cuda") as readers:
        for _ in range(WARM_UP): trainer.descend(task, readers.take(task, [task] * 3))
        wait()
        begin, readers.waited = time.perf_counter(), 0.
        for _ in range(steps): trainer.descend(task, readers.take(task, [task] * 3))
        wait()
        return readers.waited / (time.perf_counter() - begin)


def main(folder, fraction=1.):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    report = dict(device=torch.cuda.get_device_name() if DEVICE == "cuda" else "processor", torch=torch.__version__,
                  python=sys.version.split()[0], batch_fraction=fraction)
    fixtures = sorted(path.parent for path in (ROOT / "tests/parity").glob("*/weights.safetensors"))
    report["parity"] = {name: {path.name: parity(path, machine) for path in fixtures} for name, machine in PRECISIONS.items()}
    report["learning"] = learning()
    report["product"] = {name: product_rate(machine) for name, machine in PRECISIONS.items()}
    print(json.dumps(report, indent=1), flush=True)

    config = TrainingConfig(1, batch_fraction=fraction, checkpoint_every=10)
    sources = random_sources(rng)
    examples = {name: Examples(name, random_frame(task, sources, rng, 2 * config.batch_size(name)), sources)
                for name, task in TASKS.items()}
    feeds = {name: Feed.from_examples(of_task, of_task, config) for name, of_task in examples.items()}
    feeding = {name: seconds(lambda: feed.train[0], 2)[1] for name, feed in feeds.items()}
    print("feeds are ready", flush=True)

    model, temporary = build_model(sources, "paper"), Path(tempfile.mkdtemp())
    report["parameters"] = sum(p.numel() for p in model.parameters())
    one = Trainer(model, feeds, RoundRobin(feeds), config, temporary, machine=PRECISIONS["bfloat16"])
    wait()
    begin = time.perf_counter()
    history = one.run()
    report["iteration"] = dict(seconds=time.perf_counter() - begin, losses=history.set_index("task").loss.round(4).to_dict(),
                               finite=bool(np.isfinite(history.loss).all()))
    print(json.dumps(report["iteration"], indent=1), flush=True)

    report["steps"] = {}
    for name, feed in feeds.items():
        batch, times = feed.train[0].to(DEVICE), {}
        step = partial(one.descend, name, batch)
        for precision, one.machine in PRECISIONS.items(): times[precision] = timed(step, one.optimizer.zero_grad)
        count = operations(step)
        report["steps"][name] = sizes(batch) | dict(feed_seconds=feeding[name], operations=count, **times)
        print(name, report["steps"][name], flush=True)
    report["waiting"] = waiting(one, "vqa")
    report["ranking"] = ranking(model, examples["coco_retrieval"])
    report["plain"] = beside_plain(one, feeds["vqa"].train[0].to(DEVICE))
    print({name: report[name] for name in ("waiting", "ranking", "plain")}, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "accelerator.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "accelerator.md").write_text(page(report))


# --- the page

def table(header, lines) -> list[str]:
    "A table in Markdown, its first column left-aligned."
    rows = [f"| {' | '.join(map(str, line))} |" for line in (header, *lines)]
    return [rows[0], "| :-- |" + " --: |" * (len(header) - 1), *rows[1:], ""]


def cell(value, form, scale=1.) -> str: return "does not fit" if value is None else format(scale * value, form)


def page(report) -> str:
    "The report as people read it."
    parity, learned, steps = report["parity"], report["learning"], report["steps"]
    lines = ["# On an accelerator", "",
             f"Measured on **random regions and texts of the paper's sizes**, on one {report['device']}, PyTorch {report['torch']}, "
             f"Python {report['python']}; the model of {report['parameters']:,} parameters.", "",
             "Published outputs, largest difference relative to the largest published number:", ""]
    rows = [[fixture, *(f"{of[fixture]:.1e}" for of in parity.values())] for fixture in next(iter(parity.values()))]
    lines += table(["fixture", *parity], rows)
    ends = "; ".join(f"{name} {of['first']:.3f}, {of['last']:.3f}" for name, of in learned["losses"].items())
    lines += [f"A small run, mean loss at its first validation and at its end: {ends}. Stopped and started again it ends with "
              f"weights that are off by at most {learned['resumed']:.0e}.", "",
              f"One iteration of all twelve tasks by the trainer, in bfloat16, with every task validated: "
              f"{report['iteration']['seconds']:.1f} s; every loss is {'finite' if report['iteration']['finite'] else 'NOT finite'}.", "",
              f"A step of each task (forward, backward, AdamW) with its batch on the device: medians of {STEPS}; the operations of its "
              "products of matrices (forward and backward), as a fraction of what a bare product does in that time in bfloat16 "
              f"({report['product']['bfloat16'] / 1e12:,.3g} TFLOP/s); and how long one thread takes to build that batch.", ""]
    rows = []
    for name, step in steps.items():
        full, half = step["float32"], step["bfloat16"]
        rate, used = (None, None) if half["seconds"] is None else (step["rows"] / half["seconds"], step["operations"] / half["seconds"])
        rows.append([TASKS[name].title, step["rows"], step["words"], step["regions"], cell(full["seconds"], ".0f", 1000),
                     cell(half["seconds"], ".0f", 1000), cell(rate, ",.0f"), cell(used, ".0%", 1 / report["product"]["bfloat16"]),
                     "–" if half["gib"] is None else format(half["gib"], ".1f"), f"{1000 * step['feed_seconds']:,.0f}"])
    lines += table(["task", "pairs", "words", "regions", "float32, ms", "bfloat16, ms", "pairs/s, bfloat16", "utilised", "peak, GiB",
                    "batch, ms"], rows)
    plain, ours = report["plain"], steps["vqa"]
    lines += ["The published computation (every head, every position, attention written out) beside it, a step of VQA:", ""]
    lines += table(["", "float32, ms", "bfloat16, ms", "TFLOP"],
                   [[side, *(cell(of[name]["seconds"], ".0f", 1000) for name in PRECISIONS), f"{of['operations'] / 1e12:.2f}"]
                    for side, of in (("published", plain), ("here", ours))])
    lines += [f"Training of VQA waits for its batches for {report['waiting']:.1%} of its time, with two threads that read ahead.", "",
              "Ranking: " + "; ".join(f"{rate:,.0f} pairs/s in {name}" for name, rate in report["ranking"].items()) +
              f". The 5 million pairs of 1,000 images and 5,000 captions take {5e6 / report['ranking']['bfloat16']:,.0f} s in bfloat16, "
              f"{5e6 / report['ranking']['float32']:,.0f} s in float32."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "reports/benchmarks", float(sys.argv[2]) if len(sys.argv) > 2 else 1.)
