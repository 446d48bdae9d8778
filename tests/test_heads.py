"""Heads read columns that anybody may have written: what they learn from is decided by how they choose, and a gap in a column
is one error that names the example. What they have in common is written once."""
import inspect

import numpy as np
import pytest
import torch
from test_scoring import split

import toy
from vl12in1.evaluation.contract import frame_rule
from vl12in1.examples.batches import Examples
from vl12in1.model import TwelveInOne, ViLBERTConfig
from vl12in1.model.heads import HEADS, TOKENS, GroundHead, Head, LabelHead, with_tokens
from vl12in1.training.runs import Run, make_trainer, read_examples


@pytest.fixture(scope="module")
def shared(tmp_path_factory): return toy.sources(tmp_path_factory.mktemp("toy"))


def batch_of(task, frame, shared, training):
    return Examples(task, frame, shared).batch(range(len(frame)), np.random.default_rng if training else None)


# ---- what a choice is judged by

def test_candidates_need_the_number_of_the_right_one(shared):
    "A box beside candidates says nothing: without a number they can be asked, and not learned from."
    frame = split("guesswhat", shared)
    boxes = frame.assign(box=[candidates[0] for candidates in frame.candidates])
    assert GroundHead.learnable(boxes) and not GroundHead.learnable(boxes.drop(columns="label"))
    for training in (True, False):
        assert batch_of("guesswhat", boxes.drop(columns="label"), shared, training).targets is None
        with_box, without = batch_of("guesswhat", boxes, shared, training), batch_of("guesswhat", frame, shared, training)
        assert torch.equal(with_box.targets, without.targets) and torch.equal(with_box.candidates, without.candidates)


def test_regions_need_the_right_box(shared):
    frame = split("refcoco", shared)
    assert GroundHead.learnable(frame.assign(label=0)) and not GroundHead.learnable(frame.drop(columns="box").assign(label=0))
    assert batch_of("refcoco", frame.drop(columns="box").assign(label=0), shared, training=True).targets is None


def test_the_contract_asks_the_head_what_it_can_learn_from(shared):
    frame = split("guesswhat", shared)
    frame = frame.assign(box=[candidates[0] for candidates in frame.candidates])
    splits = {name: frame.drop(columns="label") if name == "val" else frame for name in ("train", "val", "test")}
    (problem,) = frame_rule("guesswhat", splits, shared)
    assert problem.startswith("val: columns ") and "'label'" in problem.partition("expected")[2]


# ---- gaps

def gap(task, column, value, row=3):
    def make(shared):
        frame = split(task, shared)
        values = [value if i == row else right for i, right in enumerate(frame[column])]
        return task, frame.assign(**{column: values}), frame.uid[row]
    return make


HALF = (0., 0., .5, np.nan)
GAPS = {
    "a label": gap("snli_ve", "label", np.nan), "a label of two images": gap("nlvr2", "label", np.nan),
    "a label that there is not": gap("snli_ve", "label", 3), "a label below none": gap("nlvr2", "label", -1),
    "a word for a label": gap("snli_ve", "label", "neutral"), "a box": gap("refcoco", "box", np.nan),
    "a side of a box": gap("refcoco", "box", HALF), "nothing for a box": gap("refcoco", "box", None),
    "a candidate": gap("guesswhat", "candidates", (HALF,)), "all candidates": gap("visual7w", "candidates", ()),
    "candidates": gap("guesswhat", "candidates", np.nan), "the right candidate": gap("guesswhat", "label", np.nan),
    "a candidate too far": gap("visual7w", "label", 99), "answers": gap("vqa", "answers", np.nan)}


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize("kind", GAPS)
def test_a_gap_in_a_column_names_the_example(kind, training, shared):
    task, frame, uid = GAPS[kind](shared)
    with pytest.raises(ValueError, match=f"^{task}, example {uid}: .*, expected ") as error: batch_of(task, frame, shared, training)
    assert "\n" not in str(error.value)


def test_numbers_that_a_gap_made_fractions_are_still_numbers(shared):
    "A column of labels with a gap in it holds 1.0 where 1 was; without that row it is as before."
    frame = split("snli_ve", shared)
    fractions = batch_of("snli_ve", frame.assign(label=frame.label.astype(float)), shared, training=False)
    assert fractions.targets.dtype == torch.int64
    assert torch.equal(fractions.targets, batch_of("snli_ve", frame, shared, training=False).targets)


# ---- written once, and documented

def test_every_head_says_what_goes_in_and_comes_out():
    for cls in (Head, LabelHead, *HEADS.values()):
        for name in ("logits", "loss", "scores", "predict", "read", "alternatives", "in_words", "confidences"):
            own = vars(cls).get(name)
            assert own is None or inspect.getdoc(own), f"{cls.__name__}.{name}"
            assert callable(getattr(cls, name))


@pytest.mark.parametrize("ask", ["logits", "loss", "scores"])
def test_the_base_leaves_to_a_kind_what_is_its_own(ask):
    with pytest.raises(NotImplementedError): getattr(Head(), ask)(None, None)


# ---- task tokens

def model_with(rows):
    torch.manual_seed(0)
    return TwelveInOne(ViLBERTConfig.miniature(task_tokens=rows, vocab_size=13, feature_dim=8), {"vqa": 2, "gqa": 2})


@pytest.mark.parametrize("kind", TOKENS)
def test_a_model_without_tokens_can_be_given_any(kind):
    "A full table that is drawn, not empty; and all else is kept."
    before = model_with(())
    after, table = with_tokens(before, TOKENS[kind]()), "encoder.text_embeddings.tasks.weight"
    state = after.state_dict()
    assert after.config.task_tokens == TOKENS[kind]()
    assert (table in state) == bool(TOKENS[kind]())
    if table in state: assert state.pop(table).abs().sum(1).count_nonzero() == len(TOKENS[kind]())
    assert state.keys() == before.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in before.state_dict().items())


@pytest.mark.parametrize("before", ["none", "head", "task"])
@pytest.mark.parametrize("kind", TOKENS)
def test_a_run_has_the_tokens_that_its_entry_names(kind, before, shared, tmp_path):
    "Whatever the model had that it begins with; a table that is as it should be already is kept as it was learned."
    model = model_with(TOKENS[before]())
    frames = {task: split for task, split in toy.frames(shared).items() if task in ("vqa", "snli_ve")}
    run, training = Run("no_token", "multi", tokens=kind), dict(common=dict(batch_fraction=1 / 32), multi=dict(iterations=2))
    trainer = make_trainer(run, list(frames), 0, model, read_examples(run, frames, shared), training, tmp_path, machine=toy.CPU)
    assert trainer.model.config.task_tokens == TOKENS[kind]()
    assert (trainer.model is model) == (kind == before)
