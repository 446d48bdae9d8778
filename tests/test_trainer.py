"""The trainer: killed runs end like undisturbed ones, tasks do not disturb each other's heads, checkpoints are checked."""
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toy

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import toy
trainer = toy.trainer(Path({folder!r}), checkpoint_every=3)
descend, left = trainer.descend, [{steps}]
def fatal(*args):
    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    descend(*args)
trainer.descend = fatal
trainer.run()
"""


def weights(trainer): return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    trainer = toy.trainer(tmp_path_factory.mktemp("undisturbed"))
    return trainer.run(), weights(trainer)


@pytest.mark.parametrize("steps", [1, pytest.param(10, marks=pytest.mark.slow), 11, pytest.param(35, marks=pytest.mark.slow)])
def test_a_killed_run_ends_bit_identical(tmp_path, undisturbed, steps):
    program = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path), steps=steps)
    died = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=Path(__file__).parents[1])
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    resumed = toy.trainer(tmp_path, checkpoint_every=3)
    history = resumed.run()
    assert history.equals(undisturbed[0])
    for name, tensor in weights(resumed).items(): assert torch.equal(tensor, undisturbed[1][name]), name


def test_another_seed_gives_another_model(tmp_path, undisturbed):
    other = toy.trainer(tmp_path, seed=1)
    other.run()
    assert any(not torch.equal(tensor, undisturbed[1][name]) for name, tensor in weights(other).items())


def test_a_checkpoint_of_another_run_is_not_continued(tmp_path, undisturbed):
    toy.trainer(tmp_path, iterations=3, identity=dict(code="a", data="b"), checkpoint_every=3).run()
    assert (tmp_path / "run/checkpoint.pt").exists()
    again = toy.trainer(tmp_path, identity=dict(code="a", data="c"))
    with pytest.warns(UserWarning, match="not continued.* changed: data$"): again.run()
    for name, tensor in weights(again).items(): assert torch.equal(tensor, undisturbed[1][name]), name


def test_a_step_of_one_task_leaves_other_heads_alone(tmp_path):
    trainer = toy.trainer(tmp_path)
    for task in trainer.feeds: trainer.descend(task, trainer.feeds[task].train[0])
    before = weights(trainer)
    trainer.descend("vqa", trainer.feeds["vqa"].train[1])
    moved = {name.split(".")[1] for name, tensor in weights(trainer).items()
             if name.startswith("heads.") and not torch.equal(tensor, before[name])}
    assert moved == {"answer_vqa"}


def test_training_learns(tmp_path):
    trainer = toy.trainer(tmp_path, tasks=("refcoco",), iterations=100)
    trainer.run()
    losses = [line["loss"] for line in trainer.history]
    assert losses[-1] < .8 * losses[0]


def test_batches_read_ahead_by_a_worker_are_the_same(tmp_path):
    from vl12in1.training.feed import stream
    batches = toy.trainer(tmp_path).feeds["refcoco"].train
    ahead = stream(batches, start=2, workers=1)
    for i in (2, 3): assert torch.equal(next(ahead).features, batches[i].features)


def test_validation_sees_no_training_example(tmp_path):
    for feed in toy.trainer(tmp_path).feeds.values():
        assert not set(feed.train.examples.frame.uid) & set(feed.val.frame.uid)
