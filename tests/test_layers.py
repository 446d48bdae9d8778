"""The encoder against the same sums without any short cut: all positions of all layers on padded grids, attention written out."""
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional as F
from vl12in1.model import Batch, TwelveInOne, ViLBERTConfig
from vl12in1.model.blocks import Layout, Stream, attend, attend_few, attend_first, shortest
from vl12in1.model.interface import FIRST, REGIONS, WHOLE, written_out
from vl12in1.model.layers import LAYERS, needed
from vl12in1.tasks import TASKS

SIZES = dict(task_tokens=tuple((task,) for task in TASKS), dropout=0.)
CONFIG = ViLBERTConfig.miniature(**SIZES)
WIDE = ViLBERTConfig.miniature(**SIZES, co_heads=1)  # as wide for each head as it takes for the way of few keys


def plain_attention(block, x, key, value, mask):
    query = block.qkv(x).chunk(3, -1)[0]
    query, key, value = (part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** .5 + (~mask)[:, None, None] * -1e4
    return block.attention_out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def plain_encoder(encoder, batch):
    "(text, image, pooled) of a batch; nothing is left out, and padding is computed like everything else."
    masks = {"text": F.pad(batch.text_mask, (1, 0), value=True), "image": batch.region_mask}
    streams = {"text": encoder.text_embeddings(batch.tokens, batch.task_row, batch.segments),
               "image": encoder.image_embeddings(batch.features, batch.spatials)}
    for kind, number in encoder.order:
        blocks, before = encoder.blocks(kind, number), dict(streams)
        for asks, asked in LAYERS[kind].items():
            _, key, value = blocks[asked].qkv(before[asked]).chunk(3, -1)
            x, block = before[asks], blocks[asks]
            x = block.attention_norm(x + plain_attention(block, x, key, value, masks[asked]))
            streams[asks] = block.feed_forward_norm(x + block.feed_forward_out(F.gelu(block.feed_forward_in(x))))
    text, image = encoder.text_pooler(streams["text"][:, 0]).relu(), encoder.image_pooler(streams["image"][:, 0]).relu()
    return streams["text"], streams["image"], text * image


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
    with torch.no_grad(): (text, image, pooled), ours = plain_encoder(encoder, batch), encoder(batch)
    words, regions = F.pad(batch.text_mask, (1, 0), value=True), batch.region_mask
    torch.testing.assert_close(ours.text[words], text[words], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.image[regions], image[regions], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.pooled, pooled, rtol=1e-5, atol=1e-5)
    assert not ours.text[~words].any() and not ours.image[~regions].any()


@pytest.mark.parametrize("config", [CONFIG, WIDE])
@pytest.mark.parametrize("wanted, place", [(FIRST, 2), (REGIONS, 1)])
def test_gradients_are_those_of_the_plain_sums(config, wanted, place):
    "Of every parameter that what is wanted depends on; the others get none."
    model = make(config)
    batch = model.encoder.prepared(batch_of([7, 3, 5], [30, 12, 21]))
    expected = plain_encoder(model.encoder, batch)[place]
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    if place == 1: weights[~batch.region_mask] = 0
    names, parameters = zip(*model.encoder.named_parameters())
    plain = torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True)
    encoded = model.encoder(batch, wanted)
    ours = torch.autograd.grad(((encoded.pooled if place == 2 else encoded.image) * weights).sum(), parameters, allow_unused=True)
    largest = max(gradient.abs().max() for gradient in plain if gradient is not None)
    for name, gradient, own in zip(names, plain, ours):
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
    few, many = batch_of(texts, [1] * len(texts)), batch_of([1] * len(images), images)
    crossed = replace(few, features=many.features, spatials=many.spatials, region_counts=many.region_counts, crossed=True)
    crossed = encoder.prepared(crossed)
    with torch.no_grad(): torch.testing.assert_close(encoder.cross(crossed), encoder(written_out(crossed)).pooled, rtol=1e-5, atol=1e-5)


@given(st.lists(st.sampled_from(["text", "image", "co"]), min_size=1, max_size=8),
       st.sampled_from([FIRST, REGIONS, WHOLE, {"text": "all"}]))
def test_needed_layers_are_those_that_matter(kinds, wanted):
    "Followed forwards: only what is there as a whole is asked, and at the end there is what is wanted."
    there = {"text": "all", "image": "all"}
    for kind, _, changed in needed([(kind, number) for number, kind in enumerate(kinds)], wanted):
        for name in changed: assert there[LAYERS[kind][name]] == "all"
        there |= changed
    assert all(there[name] == "all" for name, extent in wanted.items() if extent == "all")


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
