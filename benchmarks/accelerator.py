"""What the library does on an accelerator, at the paper's size: `python benchmarks/accelerator.py [folder for the results]`.

Published outputs are compared on the device, one iteration of all twelve tasks is trained by the trainer, and a step of each
task is timed, with its batch on the device already. Pictures and texts are random; only sizes are the paper's: 100 regions of
2,048 numbers, the batch sizes and text lengths of the task table, every text as long as it may be. Writes `accelerator.json`
and `accelerator.md`. Needs no data, no network, neither nbdev nor DVC.
"""
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from random_corpora import random_frame, random_sources  # noqa: E402
from vl12in1.examples.batches import Examples  # noqa: E402
from vl12in1.model import Batch  # noqa: E402
from vl12in1.model.checkpoints import read_published  # noqa: E402
from vl12in1.tasks import TASKS  # noqa: E402
from vl12in1.training.machine import Machine  # noqa: E402
from vl12in1.training.schedules import RoundRobin  # noqa: E402
from vl12in1.training.trainer import Feed, Trainer, TrainingConfig, build_model  # noqa: E402

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


def step_time(trainer, task, batch) -> dict:
    "Median seconds of a step (forward, backward, optimiser), and the peak of memory; None where the batch does not fit."
    if DEVICE == "cuda": torch.cuda.reset_peak_memory_stats()
    try: taken = seconds(lambda: trainer.descend(task, batch), WARM_UP + STEPS)[WARM_UP:]
    except torch.OutOfMemoryError:
        trainer.optimizer.zero_grad()
        torch.cuda.empty_cache()
        return dict(seconds=None, gib=None)
    peak = torch.cuda.max_memory_allocated() / 2 ** 30 if DEVICE == "cuda" else None
    return dict(seconds=statistics.median(taken), fastest=min(taken), slowest=max(taken), gib=peak)


def main(folder, fraction=1.):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    report = dict(device=torch.cuda.get_device_name() if DEVICE == "cuda" else "processor", torch=torch.__version__,
                  python=sys.version.split()[0], batch_fraction=fraction)
    fixtures = sorted(path.parent for path in (ROOT / "tests/parity").glob("*/weights.safetensors"))
    report["parity"] = {name: {path.name: parity(path, machine) for path in fixtures} for name, machine in PRECISIONS.items()}
    print(json.dumps(report["parity"], indent=1), flush=True)

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
        batch = feed.train[0].to(DEVICE)
        times = {}
        for precision, one.machine in PRECISIONS.items(): times[precision] = step_time(one, name, batch)
        report["steps"][name] = sizes(batch) | dict(feed_seconds=feeding[name], **times)
        print(name, report["steps"][name], flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "accelerator.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "accelerator.md").write_text(page(report))


def page(report) -> str:
    "The report as people read it."
    def cell(value, form): return "does not fit" if value is None else format(value, form)
    lines = ["# On an accelerator", "",
             f"Measured on **random regions and texts of the paper's sizes**, on one {report['device']}, PyTorch {report['torch']}, "
             f"Python {report['python']}; the model of {report['parameters']:,} parameters.", "",
             "Published outputs, largest difference relative to the largest published number:", "",
             "| fixture | " + " | ".join(report["parity"]) + " |", "| :-- |" + " --: |" * len(report["parity"])]
    for fixture in next(iter(report["parity"].values())):
        lines.append(f"| {fixture} | " + " | ".join(f"{of[fixture]:.1e}" for of in report["parity"].values()) + " |")
    lines += ["", f"One iteration of all twelve tasks by the trainer, in bfloat16, batches read by its one process and every task validated: "
              f"{report['iteration']['seconds']:.1f} s; every loss is {'finite' if report['iteration']['finite'] else 'NOT finite'}.", "",
              f"A step of each task (forward, backward, AdamW) with its batch on the device: medians of {STEPS}; and how long one process "
              "takes to build that batch.", "",
              "| task | pairs | words | regions | float32, ms | bfloat16, ms | pairs/s, bfloat16 | peak, GiB | batch, ms |",
              "| :-- |" + " --: |" * 8]
    for name, step in report["steps"].items():
        full, half = step["float32"], step["bfloat16"]
        rate = None if half["seconds"] is None else step["rows"] / half["seconds"]
        lines.append(f"| {TASKS[name].title} | {step['rows']} | {step['words']} | {step['regions']} | "
                     f"{cell(full['seconds'] and 1000 * full['seconds'], '.0f')} | {cell(half['seconds'] and 1000 * half['seconds'], '.0f')} | "
                     f"{cell(rate, ',.0f')} | {'–' if half['gib'] is None else format(half['gib'], '.1f')} | {1000 * step['feed_seconds']:,.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "reports/benchmarks", float(sys.argv[2]) if len(sys.argv) > 2 else 1.)
