"""The encoder against the same sums without any short cut: all positions of all layers on padded grids, attention written out."""
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional as F
from vl12in1.model import Batch, Pretraining, TwelveInOne, ViLBERTConfig
from vl12in1.model.blocks import Layout, Stream, attend, attend_few, attend_first, shortest
from vl12in1.model.interface import FIRST, REGIONS, WHOLE, Crossing, written_out
from vl12in1.model.layers import LAYERS, needed
from vl12in1.tasks import TASKS

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import plain  # noqa: E402

SIZES = dict(task_tokens=tuple((task,) for task in TASKS), dropout=0.)
CONFIG = ViLBERTConfig.miniature(**SIZES)
WIDE = ViLBERTConfig.miniature(**SIZES, co_heads=1)  # as wide for each head as it takes for the way of few keys


def make(config=CONFIG):
    torch.manual_seed(0)
    return TwelveInOne(config, {"vqa": 12, "gqa": 7})


def batch_of(texts, images, task="vqa", longer=0):
    "Random inputs of texts and images of those lengths, padded by so many places more than needed."
    g, N = torch.Generator().manual_seed(0), len(texts)
    T, R = max(texts) + longer, max(images) + longer
    return Batch(task, torch.randint(1, 1000, (N, T), generator=g), torch.tensor(texts), torch.randn(N, R, 64, generator=g),
                 torch.rand(N, R, 5, generator=g), torch.tensor(images))


lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=6)


@pytest.mark.parametrize("config", [CONFIG, WIDE])
@given(lengths=lengths, longer=st.integers(0, 3))
def test_outputs_are_those_of_the_plain_sums(config, lengths, longer):
    encoder = make(config).encoder
    batch = encoder.prepared(batch_of(*zip(*lengths), longer=longer))
    with torch.no_grad(): expected, ours = plain.encode(encoder, batch), encoder(batch)
    words, regions = F.pad(batch.text_mask, (1, 0), value=True), batch.region_mask
    torch.testing.assert_close(ours.text[words], expected.text[words], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.image[regions], expected.image[regions], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.pooled, expected.pooled, rtol=1e-5, atol=1e-5)
    assert not ours.text[~words].any() and not ours.image[~regions].any()


@pytest.mark.parametrize("config", [CONFIG, WIDE])
@pytest.mark.parametrize("wanted, read", [(FIRST, "pooled"), (REGIONS, "image")])
def test_gradients_are_those_of_the_plain_sums(config, wanted, read):
    "Of every parameter that what is wanted depends on; the others get none."
    model = make(config)
    batch = model.encoder.prepared(batch_of([7, 3, 5], [30, 12, 21]))
    expected = getattr(plain.encode(model.encoder, batch), read)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    if wanted == REGIONS: weights[~batch.region_mask] = 0
    names, parameters = zip(*model.encoder.named_parameters())
    by_plain = torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True)
    ours = torch.autograd.grad((getattr(model.encoder(batch, wanted), read) * weights).sum(), parameters, allow_unused=True)
    largest = max(gradient.abs().max() for gradient in by_plain if gradient is not None)
    for name, gradient, own in zip(names, by_plain, ours):
        nothing = own is None or gradient is None
        if nothing: assert (own is None or not own.any()) and (gradient is None or not gradient.any()), name
        else: torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-6 * largest.item(), msg=lambda text: f"{name}: {text}")


def test_every_way_of_attention_is_taken_by_a_model():
    "So that the tests above are about all of them."
    text, regions = (Layout(torch.tensor([longest]), longest) for longest in (8, 30))
    block = make(WIDE).encoder.co_layers[0]["image"]
    assert shortest(block, Stream(None, regions), Stream(None, text)) is attend_few
    assert shortest(block, Stream(None, text), Stream(None, regions)) is attend
    assert shortest(block, Stream(None, Layout(torch.tensor([1]), 1)), Stream(None, regions)) is attend_first


@given(texts=st.lists(st.integers(1, 9), min_size=1, max_size=4), images=st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_crossed_pairs_are_the_pairs_written_out(texts, images):
    encoder = make(WIDE).encoder
    few, many = (encoder.prepared(batch_of(*lengths)) for lengths in ((texts, [1] * len(texts)), ([1] * len(images), images)))
    with torch.no_grad():
        crossed = encoder.together(encoder.alone(few, "text"), encoder.alone(many, "image"))
        torch.testing.assert_close(crossed, encoder(written_out(few, many)).pooled, rtol=1e-5, atol=1e-5)


@given(st.lists(st.sampled_from(["text", "image", "co"]), min_size=1, max_size=8),
       st.sampled_from([FIRST, REGIONS, WHOLE, {"text": "all"}]))
def test_needed_layers_are_those_that_matter(kinds, wanted):
    "Followed forwards: only what is there as a whole is asked, and at the end there is what is wanted."
    there = {"text": "all", "image": "all"}
    for kind, _, changed in needed([(kind, number) for number, kind in enumerate(kinds)], wanted):
        for name in changed: assert all(there[asked] == "all" for asked in LAYERS[kind][name])
        there |= changed
    assert all(there[name] == "all" for name, extent in wanted.items() if extent == "all")


@pytest.mark.parametrize("task", ["vqa", "coco_retrieval", "refcoco", "nlvr2", "snli_ve"])
def test_logits_are_those_of_the_plain_computation_with_all_heads(task):
    model = make().eval()
    batch = batch_of([7, 3, 5, 4], [30, 12, 21, 5], task)
    with torch.no_grad(): expected, ours = plain.Plain(model, Pretraining(CONFIG, classes=9)).eval()(batch), model(batch)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_ranking_is_that_of_the_published_fast_mode():
    model, text, images = make(WIDE).eval(), batch_of([7], [1], "coco_retrieval"), batch_of([1, 1, 1], [30, 12, 21])
    beside = replace(text, features=images.features, spatials=images.spatials, region_counts=images.region_counts)
    with torch.no_grad():
        expected = plain.Plain(model, Pretraining(WIDE, classes=9)).eval().rank(beside)
        ours = model(Crossing([text], [images]))
    torch.testing.assert_close(ours, expected[None], rtol=1e-5, atol=1e-5)


def test_dropout_of_attention_weights_is_on_average_nothing():
    "In every way, and only in training."
    torch.manual_seed(0)
    config = ViLBERTConfig.miniature(**SIZES | dict(attention_dropout=.3))
    block = TwelveInOne(config, {}).encoder.text_layers[0]
    stream = Stream(torch.randn(9, 64), Layout(torch.tensor([5, 4]), 5))
    for way, asks in ((attend, stream), (attend_few, stream), (attend_first, stream.first())):
        with torch.no_grad():
            drawn = torch.stack([way(block.train(), block, asks, stream) for _ in range(2000)])
            still = way(block.eval(), block, asks, stream)
        assert drawn.std(0).min() > 0
        torch.testing.assert_close(drawn.mean(0), still, rtol=0, atol=6 * (drawn.std(0).max() / 2000 ** .5).item())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", ["vqa", "coco_retrieval", "refcoco", "nlvr2", "snli_ve"])
def test_a_model_of_another_type_of_numbers_computes_the_same(dtype, task):
    model = make().eval()
    batch = batch_of([7, 3, 5, 4], [30, 12, 21, 5], task)
    with torch.no_grad():
        expected = model(batch)
        inputs = dict(features=batch.features.to(dtype), spatials=batch.spatials.to(dtype))
        ours = model.to(dtype)(replace(batch, **inputs))
    atol = {torch.float64: 1e-5, torch.float16: .02, torch.bfloat16: .15}[dtype]
    ours, expected = (logits.float().clamp(min=-100) for logits in (ours, expected))  # -10000 where padded, more or less
    torch.testing.assert_close(ours, expected, rtol=0, atol=atol)
