"""The trainer: killed runs end like undisturbed ones, tasks do not disturb each other's heads, checkpoints are checked."""
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import toy
from faults.children import forked
from vl12in1.examples.batches import Examples
from vl12in1.model import CheckpointError
from vl12in1.training.machine import Machine, ScaledSteps
from vl12in1.training.schedules import RoundRobin

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


@pytest.mark.parametrize("steps", [11, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (1, 10, 35))])
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
    trainer = toy.trainer(tmp_path, tasks=("refcoco",), iterations=200)
    trainer.run()
    losses = [line["loss"] for line in trainer.history]
    assert np.mean(losses[-5:]) < .8 * np.mean(losses[:5])


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_read_ahead_are_the_same(tmp_path, threads):
    from vl12in1.training.feed import Readers
    sequences = {task: feed.train for task, feed in toy.trainer(tmp_path).feeds.items()}
    with Readers(sequences, dict(vqa=0, refcoco=2, snli_ve=5), threads) as readers:
        for task, i in (("refcoco", 2), ("vqa", 0), ("refcoco", 3), ("refcoco", 4), ("snli_ve", 5), ("vqa", 1)):
            batch = readers.take(task, ["snli_ve", "refcoco", "refcoco"])
            assert torch.equal(batch.features, sequences[task][i].features) and torch.equal(batch.tokens, sequences[task][i].tokens)


def test_validation_sees_no_training_example(tmp_path):
    for feed in toy.trainer(tmp_path).feeds.values():
        assert not set(feed.train.examples.frame.uid) & set(feed.val.frame.uid)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "The bytes of a checkpoint."
    folder = tmp_path_factory.mktemp("checkpoint")
    toy.trainer(folder, iterations=2, checkpoint_every=2).run()
    return (folder / "run/checkpoint.pt").read_bytes()


def refused(folder, content, words, **changed):
    "The trainer in `folder` refuses a checkpoint that holds `content`, in one error that names it and says what to do."
    path = folder / "run/checkpoint.pt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error: toy.trainer(folder, iterations=2, **changed).resume()
    assert str(path) in str(error.value) and "delete it" in str(error.value)
    assert error.value.__context__ is None or error.value.__suppress_context__  # no traceback of the reader


@pytest.mark.parametrize("fraction", [0, .01, .3, .7, .99])
def test_a_truncated_checkpoint_is_refused(tmp_path, checkpoint, fraction):
    refused(tmp_path, checkpoint[:int(len(checkpoint) * fraction)], "damaged, or no checkpoint")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02}q\x00.", bytes(1000)])
def test_a_foreign_file_is_refused(tmp_path, content): refused(tmp_path, content, "no checkpoint")


def saved(thing):
    with io.BytesIO() as file:
        torch.save(thing, file)
        return file.getvalue()


@pytest.mark.parametrize("thing, words", [(torch.ones(2), "lacks iteration"), ({"model": {}}, "lacks iteration, steps"), ([1], "lacks")])
def test_a_checkpoint_of_something_else_is_refused(tmp_path, thing, words): refused(tmp_path, saved(thing), words)


class Bomb:
    def __reduce__(self): return os.mkdir, ("exploded",)


def test_a_checkpoint_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, saved({"model": Bomb()}), "damaged, or no checkpoint")
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path, checkpoint):
    refused(tmp_path, checkpoint, "does not fit this run", tasks=("vqa", "refcoco"))


@pytest.mark.parametrize("name, value", [("model", {}), ("optimizer", {}), ("schedule", {}), ("optimizer", 7), ("model", 7), ("kept", 7)])
def test_a_checkpoint_with_a_damaged_part_is_refused(tmp_path, checkpoint, name, value):
    state = torch.load(io.BytesIO(checkpoint), weights_only=True)
    refused(tmp_path, saved(state | {name: value}), "does not fit this run")


def test_a_whole_checkpoint_is_continued(tmp_path, checkpoint):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoint.pt").write_bytes(checkpoint)
    trainer = toy.trainer(tmp_path, iterations=2)
    trainer.resume()
    assert trainer.iteration == 2


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("change, words", [(lambda frame: frame[:0], "refcoco: a split without examples"),
                                           (lambda frame: frame.drop(columns="box"), "refcoco: nothing can be learned")])
def test_nothing_to_learn_from_is_refused(tmp_path, split, change, words):
    shared = toy.sources(tmp_path)
    data = toy.frames(shared)["refcoco"]
    with pytest.raises(ValueError, match=words):
        toy.Feed.of("refcoco", data | {split: change(data[split])}, shared, toy.TrainingConfig(1))


NAN = float("nan")

@pytest.mark.parametrize("task, change, words", [
    ("snli_ve", dict(label=NAN), "snli_ve, example 0: label nan, expected"), ("vqa", dict(answers=NAN), "vqa, example 0: answers nan"),
    ("refcoco", dict(box=(0., 0., NAN, 1.)), "refcoco, example 0: box"),
    ("snli_ve", dict(text=None), "snli_ve, example 0: text None, expected a string"),
    ("nlvr2", {}, r"nlvr2, example 0: images \('coco:0',\), expected a tuple of image keys, 2"),
    ("snli_ve", dict(images="coco:1"), "snli_ve, example 0: images 'coco:1'"), ("snli_ve", dict(images=()), r"example 0: images \(\)"),
    ("snli_ve", dict(images=(3,)), "example 0: images"), ("snli_ve", dict(images=NAN), "example 0: images nan")])
def test_an_impossible_example_is_named(tmp_path, task, change, words):
    shared = toy.sources(tmp_path)
    frame = toy.frames(shared).get(task, toy.frames(shared)["snli_ve"])["train"].reset_index(drop=True)
    for column, value in change.items():
        frame[column] = pd.Series([value, *frame[column].iloc[1:]], dtype=object)
    with pytest.raises(ValueError, match=words): Examples(task, frame, shared).batch([0])


@pytest.mark.parametrize("column", ["uid", "images", "text"])
def test_an_absent_column_is_named(tmp_path, column):
    shared = toy.sources(tmp_path)
    frame = toy.frames(shared)["vqa"]["train"].drop(columns=column)
    with pytest.raises(ValueError, match=f"vqa: a frame without {column}; every example needs"): Examples("vqa", frame, shared)


def test_a_box_that_was_never_described_names_its_image(tmp_path):
    shared = toy.sources(tmp_path)
    frame = toy.frames(shared)["refcoco"]["train"][:1].assign(box=[(0., 0., 1., 1.)])
    with pytest.raises(ValueError, match="refcoco, image 'coco:0': box .* is not in the store of given boxes"):
        Examples("refcoco", frame, shared).batch([0], np.random.default_rng)


# --- runs that diverge

def test_a_run_that_diverges_ends_in_one_error_and_leaves_no_score(tmp_path):
    run = toy.trainer(tmp_path, iterations=30)
    run.rates = [1e6] * len(run.rates)
    with pytest.raises(FloatingPointError, match=r"iteration \d+: .*training has diverged, lower learning_rate \(0.001\)"): run.run()
    assert not any(np.isnan(row["loss"]) for row in run.history)


def test_a_weight_that_is_no_number_is_named(tmp_path):
    run = toy.trainer(tmp_path, tasks=("refcoco",), iterations=1)
    with torch.no_grad(): run.model.heads["entail"].classifier.weight[0, 0] = float("inf")  # no loss of this run reads it
    with pytest.raises(FloatingPointError, match="heads.entail.classifier.weight has numbers that are not finite"): run.run()
    assert run.history == []


# --- the same step on machines of another kind

TASKS = ("vqa", "refcoco", "snli_ve")


def losses_on(folder, machine, iterations=4, pairs=None):
    "Losses of a toy run on a machine, without dropout; `pairs`: that fit at once."
    run = toy.trainer(folder, TASKS, iterations, validate_every=.01)
    for module in run.model.modules():
        if isinstance(module, torch.nn.Dropout): module.p = 0.
    run.machine, run.model.encoder.recompute = machine, machine.recompute
    run.schedule = RoundRobin(TASKS)  # a decision of stop-and-go can hang on a digit
    run.scaled = ScaledSteps(run.optimizer, machine)
    run.scaled.scaler = torch.amp.GradScaler("cpu", init_scale=64., enabled=run.scaled.scaler.is_enabled())  # leaves out no step
    if pairs: run.pairs_at_once = lambda batch: pairs
    return run.run().loss.to_numpy(), weights(run)


@pytest.mark.parametrize("machine, pairs", [(Machine(), 3), (Machine(memory=1), None), (Machine(recompute=True), None),
                                            (Machine(readers=2), None)], ids=["in parts", "one by one", "computed again", "read ahead"])
def test_how_a_step_is_computed_changes_it_by_rounding_only(tmp_path, machine, pairs):
    expected, there = losses_on(tmp_path / "whole", Machine())
    losses, here = losses_on(tmp_path / "other", machine, pairs=pairs)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name in there: torch.testing.assert_close(here[name], there[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("precision", ["tfloat32", "bfloat16", "float16"])
def test_in_every_precision_a_run_learns_the_same(tmp_path, precision):
    expected, _ = losses_on(tmp_path / "whole", Machine(), iterations=20)
    losses, here = losses_on(tmp_path / "other", Machine(precision=precision), iterations=20)
    np.testing.assert_allclose(losses, expected, rtol=.1, atol=.05)
    assert all(weight.dtype == torch.float32 for weight in here.values())


@pytest.mark.parametrize("rate", [0., 1e-3])
def test_losses_after_a_step_differ_from_those_before_by_the_step_alone(tmp_path, rate):
    run = toy.trainer(tmp_path, TASKS)
    batches = [run.feeds[task].train[0] for task in TASKS]
    run.seed_dropout(3)
    for group in run.optimizer.param_groups: group["lr"] = rate
    for batch in batches: run.descend(batch.task, batch)
    before = [loss for _, loss in run.pending]
    again = [run.losses_of(batches, 3) for _ in range(2)]
    assert torch.equal(*map(torch.stack, again)) and torch.equal(torch.stack(before), torch.stack(again[0])) == (rate == 0)


# --- what is left when something fails

@pytest.mark.parametrize("change, words", [
    (lambda run: setattr(run, "rates", [1e6] * len(run.rates)), "has numbers|is not finite|the loss of"),
    (lambda run: setattr(run, "rates", [1e38] * len(run.rates)), "has numbers|is not finite|the loss of"),
    (lambda run: run.model.heads["ground"].classifier.weight.register_hook(lambda gradient: gradient * np.nan),
     "a gradient of refcoco is not finite")], ids=["rate", "largest rate", "gradient"])
def test_a_run_that_diverges_says_where_and_keeps_its_last_good_checkpoint(tmp_path, change, words):
    toy.trainer(tmp_path, tasks=("refcoco",), iterations=20, checkpoint_every=2, identity={}).run()
    good = (tmp_path / "run/checkpoint.pt").read_bytes()
    run = toy.trainer(tmp_path, tasks=("refcoco",), iterations=40, checkpoint_every=2)
    change(run)
    with pytest.raises(FloatingPointError, match=words) as error: run.run()
    assert f"{tmp_path / 'run'}, iteration 21" in str(error.value) or "iteration 22" in str(error.value)
    assert f"{tmp_path / 'run/checkpoint.pt'} is of iteration 20" in str(error.value)
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == good


@pytest.mark.parametrize("gradients", ["in_turn", "sum"])
def test_no_step_is_taken_along_a_gradient_that_is_not_finite(tmp_path, gradients):
    from vl12in1.training.balancing import GRADIENTS
    run = toy.trainer(tmp_path, iterations=3)
    run.gradients = GRADIENTS[gradients](run.model)
    run.model.heads["ground"].classifier.weight.register_hook(lambda gradient: gradient * np.inf)
    with pytest.raises(FloatingPointError, match="a gradient of .*refcoco.* is not finite"): run.run()
    assert all(weight.isfinite().all() for weight in run.model.parameters())
    assert run.history == [] and not (tmp_path / "run/checkpoint.pt").exists()


def test_float16_does_not_leave_out_steps_for_ever(tmp_path):
    run = toy.trainer(tmp_path, tasks=("refcoco",), iterations=100)
    run.schedule, run.scaled = RoundRobin(["refcoco"]), ScaledSteps(run.optimizer, Machine(precision="float16"))
    run.model.heads["ground"].classifier.weight.register_hook(lambda gradient: gradient * np.nan)
    with pytest.raises(FloatingPointError, match=r"iteration 41: no gradient is finite in float16.*lower learning_rate"): run.run()


def test_an_answer_that_is_no_number_is_no_score(tmp_path):
    run = toy.trainer(tmp_path, tasks=("refcoco",), iterations=2, validate_every=.1)
    def spoil(encoder, _, said):
        if not encoder.training: said.image = said.image * np.nan
    run.model.encoder.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match="iteration 1: what the model says of refcoco is not finite"): run.run()
    assert run.history == []


def spoil(path): path.write_bytes(path.read_bytes()[:1000])


def test_a_damaged_checkpoint_is_left_out_for_the_one_before(tmp_path, undisturbed):
    toy.trainer(tmp_path, checkpoint_every=5, iterations=12).run()
    spoil(tmp_path / "run/checkpoint.pt")
    again = toy.trainer(tmp_path)
    with pytest.warns(UserWarning, match="checkpoint.pt: damaged.* goes on from .*previous.pt, iteration 10"): again.run()
    for name, tensor in weights(again).items(): assert torch.equal(tensor, undisturbed[1][name]), name


def flip(path, place):
    "Change one bit of a file."
    content = bytearray(path.read_bytes())
    content[place] ^= 64
    path.write_bytes(content)


def test_a_changed_bit_of_a_weight_is_damage(tmp_path):
    toy.trainer(tmp_path, checkpoint_every=2, iterations=4).run()
    newest, before = (tmp_path / "run" / name for name in ("checkpoint.pt", "previous.pt"))
    weight = torch.load(newest, weights_only=True)["model"]["heads.ground.classifier.weight"].numpy().tobytes()
    assert newest.read_bytes().count(weight) == 1
    flip(newest, newest.read_bytes().index(weight) + 3)
    again = toy.trainer(tmp_path, iterations=4)
    words = r"checkpoint.pt: damaged.* \(\S+/data/\d+ in it is not as it was written.* goes on from .*previous.pt, iteration 2"
    with pytest.warns(UserWarning, match=words): again.resume()
    assert again.iteration == 2
    flip(before, before.read_bytes().index(b"optimizer"))
    with pytest.raises(CheckpointError, match="previous.pt: damaged.*data.pkl in it is not as it was written"):
        toy.trainer(tmp_path, iterations=4).resume()


def test_two_damaged_checkpoints_are_both_named(tmp_path):
    toy.trainer(tmp_path, checkpoint_every=2, iterations=4).run()
    for name in ("checkpoint.pt", "previous.pt"): spoil(tmp_path / "run" / name)
    with pytest.raises(CheckpointError, match="checkpoint.pt: damaged.*delete it.*previous.pt: damaged.*delete it"):
        toy.trainer(tmp_path).resume()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    toy.trainer(tmp_path, iterations=3, checkpoint_every=3).run()
    good = (tmp_path / "run/checkpoint.pt").read_bytes()
    ended = forked(toy.trainer(tmp_path, iterations=6, checkpoint_every=2).run, seconds=60, largest=100_000)
    assert ended.status and "OSError: [Errno 27] File too large" in ended.error and "checkpoint.pt'" in ended.error
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == good
