"""Two processes train and ask one model: as one does, and if one of them dies both end."""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

HERE = Path(__file__)
TASKS = ("coco_retrieval", "refcoco", "snli_ve", "vqa")


def run(folder, gradients="in_turn", iterations=12, die_at=-1):
    "In each process: train the toy with dropout off and keep weights and history; the second process kills itself in that iteration."
    import toy
    from vl12in1.model import TwelveInOne
    from vl12in1.training.balancing import GRADIENTS, LOSSES, Weighed
    from vl12in1.processes import wait
    from vl12in1.training.machine import Machine
    from vl12in1.training.schedules import DynamicStopAndGo, RoundRobin
    from vl12in1.training.trainer import Feed, Trainer, TrainingConfig
    folder, machine = Path(folder), Machine.auto(device="cpu")
    torch.set_num_threads(1)
    if machine.processes.writes: toy.sources(folder)
    wait(machine.processes)
    made = toy.trainer(folder, tasks=("refcoco", "snli_ve", "vqa"))
    data, sources = toy.frames(toy.sources(folder)), toy.sources(folder)
    data["coco_retrieval"] = {split: frame[["uid", "images", "text"]] for split, frame in data["vqa"].items()}
    config = TrainingConfig(iterations, 1e-4, 1e-4, batch_fraction=1 / 32, batch_minimum=3, validate_every=.3, checkpoint_every=4)
    torch.manual_seed(0)
    model = TwelveInOne(replace(made.model.config, dropout=0., attention_dropout=0., task_tokens=tuple((task,) for task in TASKS)),
                        made.model.vocabularies)
    feeds = {task: Feed.of(task, data[task], sources, config) for task in TASKS}
    schedule = DynamicStopAndGo(RoundRobin(TASKS), gap=3, threshold=.05)
    losses = LOSSES[gradients if gradients in LOSSES else "scaled"]({task: feed.train.steps for task, feed in feeds.items()})
    together = Weighed(losses) if losses.together else GRADIENTS[gradients](model)
    trainer = Trainer(model, feeds, schedule, config, folder / "run", machine=machine, losses=losses, gradients=together)
    descend = trainer.descend

    def fatal(*arguments):
        if trainer.iteration == die_at and machine.processes.rank == 1: os.kill(os.getpid(), signal.SIGKILL)
        descend(*arguments)
    trainer.descend = fatal
    trainer.run()
    if machine.processes.writes:
        (folder / "history.json").write_text(json.dumps(trainer.history))
        torch.save(model.state_dict(), folder / "weights.pt")


def ask(folder):
    "In each process: predict every task's test split with the toy as it begins; the frames are kept."
    import toy
    from vl12in1.evaluation.predict import predict
    from vl12in1.examples.batches import Examples
    from vl12in1.processes import wait
    from vl12in1.training.machine import Machine
    folder, machine = Path(folder), Machine.auto(device="cpu")
    torch.set_num_threads(1)
    if machine.processes.writes: toy.sources(folder)
    wait(machine.processes)
    data, model = toy.frames(toy.sources(folder)), toy.trainer(folder, tasks=TASKS[1:]).model.eval()
    for task in TASKS[1:]:
        examples = Examples(task, data[task]["train"].head(31), toy.sources(folder))
        found = predict(model, examples, machine, batch_size=7)
        found.to_pickle(folder / f"{task}_{machine.processes.rank}.pkl")


def start(folder, processes, gradients="in_turn", iterations=12, die_at=-1):
    "The finished program of so many processes."
    command = [sys.executable, str(HERE), str(processes), str(folder), gradients, str(iterations), str(die_at)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)]), OMP_NUM_THREADS="1")
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parents[1], timeout=300)


def results(folder):
    return pd.DataFrame(json.loads((folder / "history.json").read_text())), torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("gradients", ["in_turn", "sum", "pcgrad", "famo"])
def test_two_processes_do_what_one_does(tmp_path, gradients):
    "At the same batches, of which two have an odd number of examples: losses to 1e-5, and the same decisions."
    for processes in (1, 2):
        done = start(tmp_path / str(processes), processes, gradients)
        assert done.returncode == 0, done.stderr[-3000:]
    (one, weights), (two, others) = results(tmp_path / "1"), results(tmp_path / "2")
    exact = ["iteration", "task", "steps", "score", "stopped"]
    assert one[exact].equals(two[exact]) and one.stopped.any()
    assert (one.loss - two.loss).abs().max() <= 1e-5 * one.loss.max()
    noise = "heads.match.classifier.bias"  # the same for all that are chosen among: its gradient is what rounding leaves of nothing
    for name in weights.keys() - {noise}: torch.testing.assert_close(others[name], weights[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_if_one_process_dies_the_job_ends_with_one_line_and_goes_on_when_started_again(tmp_path):
    whole = start(tmp_path / "whole", 2)
    assert whole.returncode == 0, whole.stderr[-3000:]
    died = start(tmp_path / "died", 2, die_at=6)
    assert died.returncode != 0 and not (tmp_path / "died/history.json").exists()
    assert "process 1 of 2 has ended (exit status -9), and the others were stopped" in died.stderr.splitlines()[-1]
    assert "Traceback" not in died.stderr
    again = start(tmp_path / "died", 2)
    assert again.returncode == 0, again.stderr[-3000:]
    (history, weights), (expected, others) = results(tmp_path / "died"), results(tmp_path / "whole")
    assert history.equals(expected)
    for name in weights: assert torch.equal(weights[name], others[name]), name


@pytest.mark.slow
def test_two_processes_predict_what_one_does(tmp_path):
    "Of splits that cannot be halved; each process has all predictions."
    for processes in (1, 2):
        done = start(tmp_path / str(processes), processes, "ask")
        assert done.returncode == 0, done.stderr[-3000:]
    for task in TASKS[1:]:
        one, *both = (pd.read_pickle(tmp_path / f"{name}.pkl") for name in (f"1/{task}_0", f"2/{task}_0", f"2/{task}_1"))
        for found in both:
            assert len(found) == 31
            pd.testing.assert_frame_equal(found, one, rtol=1e-5)


@pytest.mark.parametrize("devices, complaint", [("2", "of 2 has ended (exit status 1)"), ("none", "--devices none: a number, or auto")])
def test_a_notebook_that_fails_in_several_processes_ends_in_one_line(devices, complaint):
    command = [sys.executable, "-m", "vl12in1.study.notebooks", "run", "no_such_notebook", "--devices", devices]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], timeout=120)
    assert done.returncode == 1 and complaint in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


LAUNCHED = """
import pathlib, sys
from vl12in1.endings import ending
from vl12in1.processes import launch
work = "import os, pathlib, signal, sys, time; signal.signal(2, signal.SIG_DFL); "
work += "pathlib.Path(sys.argv[1], str(os.getpid())).touch(); time.sleep(float(sys.argv[2]))"
with ending("it"):
    launch(2, "-c", work, sys.argv[1], "0")
    pathlib.Path(sys.argv[1], "ended").touch()
    if sys.argv[2] == "after": import time; time.sleep(60)
    launch(2, "-c", work, sys.argv[1], "60")
"""


@pytest.mark.parametrize("moment, files", [("after", 3), ("while", 5)])
@pytest.mark.parametrize("number, status, said", [
    (signal.SIGINT, 130, "it: stopped; what was written so far is kept\n"), (signal.SIGTERM, -signal.SIGTERM, "")])
def test_a_signal_is_obeyed_while_processes_work_together_and_afterwards(tmp_path, moment, files, number, status, said):
    process = subprocess.Popen([sys.executable, "-c", LAUNCHED, str(tmp_path), moment], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < files and time.monotonic() < deadline: time.sleep(.05)
    assert len(list(tmp_path.iterdir())) == files
    time.sleep(.2)
    process.send_signal(number)
    assert (process.communicate(timeout=60)[1], process.returncode) == (said, status)
    for path in tmp_path.glob("[0-9]*"):
        with pytest.raises(ProcessLookupError): os.kill(int(path.name), 0)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_work_that_was_stopped_is_not_taken_for_done(tmp_path, number):
    "Where the signal is ignored, as by what `nohup` or a script's `&` starts: the launcher minds it all the same."
    program = f"import signal; signal.signal({int(number)}, signal.SIG_IGN)\n{LAUNCHED}"
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), "while"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 5 and time.monotonic() < deadline: time.sleep(.05)
    assert len(list(tmp_path.iterdir())) == 5
    time.sleep(.2)
    process.send_signal(number)
    said = f"it: all processes were stopped by {number.name}; started again, the job goes on with what is on disk\n"
    assert (process.communicate(timeout=60)[1], process.returncode) == (said, 1)


def main(processes, folder, what, iterations, die_at):
    "The toy in so many processes: `what` is a way to combine gradients, or to `ask` in place of training."
    from vl12in1.processes import ProcessLost, launch
    try:
        if processes != "1": launch(int(processes), str(HERE), "1", folder, what, iterations, die_at)
        elif what == "ask": ask(folder)
        else: run(folder, what, int(iterations), int(die_at))
    except ProcessLost as error: sys.exit(str(error))


if __name__ == "__main__": main(*sys.argv[1:])
