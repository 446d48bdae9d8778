"Where there is an accelerator, it does what the processor does. (Elsewhere these tests are left out.)"
import pytest
import torch

from toy import CPU
from vl12in1.evaluation.predict import predict
from vl12in1.examples.batches import Examples
from vl12in1.toy import toy_frames, toy_sources
from vl12in1.training.machine import Machine
from vl12in1.training.schedules import DynamicStopAndGo, RoundRobin
from vl12in1.training.trainer import Feed, Trainer, TrainingConfig, build_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
FULL = Machine("cuda")
FRAMES = toy_frames()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return toy_sources(tmp_path_factory.mktemp("toy"))


def small(sources):
    torch.manual_seed(0)
    return build_model(sources, "miniature", text_layers=2, image_layers=1, text_connections=(1,), image_connections=(0,), dropout=0.)


def run(sources, folder, machine, iterations=40, **settings):
    "A run of a task of each kind."
    config = TrainingConfig(iterations, 5e-3, 5e-3, batch_fraction=1 / 16, checkpoint_every=10, **settings)
    feeds = {task: Feed.of(task, split, sources, config) for task, split in FRAMES.items()}
    return Trainer(small(sources), feeds, DynamicStopAndGo(RoundRobin(feeds)), config, folder, machine=machine)


@pytest.mark.parametrize("task", FRAMES)
def test_predictions_are_those_of_the_processor(sources, task):
    examples = Examples(task, FRAMES[task]["test"], sources)
    here, there = (predict(small(sources).to(machine.device), examples, machine) for machine in (CPU, FULL))
    assert here.uid.tolist() == there.uid.tolist() and here.score.tolist() == there.score.tolist()


def test_a_few_steps_lead_to_the_same_place(sources, tmp_path):
    here, there = (run(sources, tmp_path / machine.device, machine, iterations=3) for machine in (CPU, FULL))
    here.run(), there.run()
    for (name, ours), theirs in zip(here.model.state_dict().items(), there.model.cpu().state_dict().values()):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("machine", [FULL, Machine.auto()], ids=["float32", "as it is decided"])
def test_tasks_learn(sources, tmp_path, machine):
    trainer = run(sources, tmp_path, machine, iterations=150)
    history = trainer.run()
    assert all(torch.isfinite(weights).all() for weights in trainer.model.state_dict().values())
    losses = history[history.task != "coco_retrieval"].groupby("task").loss  # two of three captions there are the same
    assert (losses.last() < losses.first() / 2).all(), losses.agg(["first", "last"])


def test_a_killed_run_goes_on(sources, tmp_path):
    whole = run(sources, tmp_path / "whole", FULL)
    history = whole.run()
    killed = run(sources, tmp_path / "killed", FULL)
    descend = killed.descend

    def fatal(*args):
        if killed.iteration == 25: raise KeyboardInterrupt
        descend(*args)
    killed.descend = fatal
    with pytest.raises(KeyboardInterrupt): killed.run()
    resumed = run(sources, tmp_path / "killed", FULL)
    again = resumed.run()
    assert again[["iteration", "task", "steps"]].equals(history[["iteration", "task", "steps"]])
    for (name, ours), theirs in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()):
        torch.testing.assert_close(theirs, ours, rtol=1e-2, atol=1e-2, msg=name)
