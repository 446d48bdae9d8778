"""A study, small but whole (world, corpora, detector, pre-training, training, test), is killed again and again at random moments with
all of its processes, and goes on each time. At the end its reports and weights are the same bytes as those of a
study that nobody disturbed.

`python tests/faults/kills.py COUNT` in a checkout; some ten seconds a kill. The last line is JSON: how many, and what was odd."""
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
STAGES = "views world clean text regions neighbours scratch pretrain train test".split()
RUN = {"init": "pretrain_improved", "kind": "multi", "seeds": "main", "stop_and_go": True}
STUDY = [sys.executable, "-m", "vl12in1.study.parallel"]


def clone(folder):
    "The last commit, cloned, with the stages and the run that are enough to see everything written."
    subprocess.run(["git", "clone", "--quiet", "--local", str(ROOT), str(folder)], check=True)
    settings = yaml.safe_load((folder / "params.yaml").read_text())
    settings |= dict(profile="smoke", runs={"at": RUN}, followers={}, merged={},
                     pretraining={"improved": settings["pretraining"]["improved"]})
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {name: stages[name] for name in STAGES}}, sort_keys=False, width=1000))
    (folder / "dvc.lock").unlink()
    for path in (folder / "reports").rglob("*"):
        if path.is_file(): path.unlink()
    return folder


def begin(folder):
    "The study, begun or gone on with in a session of its own."
    environment = os.environ | {"PYTHONPATH": str(folder), "TQDM_DISABLE": "1"}
    with open(folder.parent / f"{folder.name}.txt", "w") as said:
        return subprocess.Popen(STUDY, cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True)


def left_behind(folder) -> list[int]:
    "Processes that work in a folder."
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try: found += [int(entry.name)] * (Path(os.readlink(entry / "cwd")).is_relative_to(folder))
        except OSError: pass
    return found


def contents(folder) -> dict[str, str]:
    "Digests of reports and weights."
    files = [path for part in ("reports", "runs") for path in sorted((folder / part).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
            if "checkpoints" not in path.parts and not path.name.startswith(".")}


def finish(folder) -> str:
    "Go on to the end; what was said if that is an error."
    process = begin(folder)
    if process.wait(): return (folder.parent / f"{folder.name}.txt").read_text()
    return ""


def disturb(folder, count, dice) -> tuple[int, list[str]]:
    "Kill the study so many times, and let it come one stage further now and then; how many kills, and what was odd."
    odd, said = [], folder.parent / f"{folder.name}.txt"
    for number in range(count):
        process, sent = begin(folder), dice.choice([signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGINT])
        stop = time.monotonic() + dice.uniform(1, 12)
        further = number % 8 == 7  # wait until a stage is done, so that later ones come under fire, too
        while process.poll() is None and (time.monotonic() < stop or further and "done: " not in said.read_text()): time.sleep(.05)
        if process.poll() is not None:
            if process.returncode: odd.append(f"kill {number}: ended by itself, {said.read_text()[-500:]!r}")
            else: return number, odd
            continue
        os.killpg(process.pid, sent)
        try: process.wait(20)
        except subprocess.TimeoutExpired:
            odd.append(f"kill {number}: still there 20 s after {sent.name}")
            os.killpg(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while (alive := left_behind(folder)) and time.monotonic() < deadline: time.sleep(.1)
        if alive:
            odd.append(f"kill {number}, {sent.name}: processes left behind 10 s later: {len(alive)}")
            for pid in alive:
                try: os.kill(pid, signal.SIGKILL)
                except ProcessLookupError: pass
    return count, odd


def main(count):
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as temporary:
        quiet, noisy = clone(Path(temporary, "quiet")), clone(Path(temporary, "noisy"))
        start = time.monotonic()
        if error := finish(quiet): sys.exit(f"undisturbed: {error}")
        print(f"undisturbed: {time.monotonic() - start:.0f} s", flush=True)
        start = time.monotonic()
        kills, odd = disturb(noisy, count, random.Random(0))
        print(f"{kills} kills: {time.monotonic() - start:.0f} s", *odd, sep="\n  ", flush=True)
        if error := finish(noisy): sys.exit(f"after {kills} kills: {error}")
        one, other = contents(quiet), contents(noisy)
        differ = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
        print(f"after {kills} kills: {len(one)} files, {len(differ)} of them not the same bytes", *differ, sep="\n  ")
        return kills, odd, differ


if __name__ == "__main__":
    kills, odd, differ = main(int(sys.argv[1]))
    print(json.dumps(dict(kills=kills, odd=odd, differ=differ)))
    sys.exit(bool(odd or differ))
