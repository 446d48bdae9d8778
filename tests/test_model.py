from dataclasses import replace
import pytest
import torch
from torch.nn import functional as F
from vl12in1.model import HEADS, Batch, Encoded, TwelveInOne, ViLBERT, ViLBERTConfig
from vl12in1.model.blocks import Block, Layout, Stream, attend, attention_map
from vl12in1.model.vilbert import layer_order
from vl12in1.tasks import TASKS

CONFIG = ViLBERTConfig.miniature(task_tokens=tuple((task,) for task in TASKS))
VOCABULARIES = {"vqa": 12, "gqa": 7}
SIZES = {"vqa": (4, 12), "vg_qa": (4, 12), "gqa": (4, 7)}  # of the targets; (N, R) for grounding
LABELS = {"pair": torch.tensor([0, 1]), "entail": torch.tensor([0, 2, 1, 1]), "match": None}


def make(seed=0, config=CONFIG):
    torch.manual_seed(seed)
    return TwelveInOne(config, VOCABULARIES).eval()


def make_batch(task="vqa", N=4, T=7, R=6, seed=0):
    "Rows of different lengths; the first is full."
    g = torch.Generator().manual_seed(seed)
    text_lengths, region_counts = torch.tensor([T, 3, T - 1, 2])[:N], torch.tensor([R, 2, R - 2, 1])[:N]
    head = TASKS[task].head
    targets = LABELS[head] if head in LABELS else torch.rand(SIZES.get(task, (N, R)), generator=g)
    if head == "ground": targets = targets * (torch.arange(R) < region_counts[:, None])
    return Batch(task, torch.randint(1, 1000, (N, T), generator=g), text_lengths, torch.randn(N, R, 64, generator=g),
                 torch.rand(N, R, 5, generator=g), region_counts, targets)


def loss_of(model, batch): return model.head(batch.task).loss(model(batch), batch)


# ---- sizes

PUBLISHED_COUNTS = {
    "encoder.text_embeddings": 23_852_544, "encoder.image_embeddings": 2_106_368, "encoder.text_layers": 12 * 7_087_872,
    "encoder.image_layers": 6 * 6_301_696,
    "encoder.co_layers": 6 * (16_013_568 - 1_836_800),  # without q_dense1 and q_dense2
    "encoder.text_pooler": 787_456, "encoder.image_pooler": 1_049_600,
    "heads.answer_vqa": 8_514_617, "heads.answer_gqa": 5_244_413, "heads.pair": 4_204_546,
    "heads.match": 1_025, "heads.ground": 1_025, "heads.entail": 3_075}


def test_published_parameter_counts():
    with torch.device("meta"): model = TwelveInOne(ViLBERTConfig.paper(), {"vqa": 3129, "gqa": 1533})
    counts = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in PUBLISHED_COUNTS}
    assert counts == PUBLISHED_COUNTS
    total = sum(p.numel() for p in model.parameters())
    assert total == sum(PUBLISHED_COUNTS.values()) == 268_028_859 - 11_020_800 - 3_317_373 - 769


@pytest.mark.parametrize("overrides, message", [
    (dict(text_heads=5), "text width 64 is not a multiple of its 5 heads"),
    (dict(image_connections=(0, 2)), r"image_connections \(0, 2\) must rise and stay below the 2 image layers"),
    (dict(text_connections=(3, 2)), "must rise"),
    (dict(text_connections=(3,)), "equally many connections"),
    (dict(fusion="max"), "fusion 'max' is neither"),
    (dict(task_tokens=("vqa",)), "task_tokens"),
    (dict(task_tokens=(("vqa",), ("gqa", "vqa"))), "two rows")])
def test_config_errors(overrides, message):
    with pytest.raises(ValueError, match=message): ViLBERTConfig.miniature(**overrides)


def test_order_runs_every_block_once_and_exchanges_on_time():
    config = ViLBERTConfig(text_layers=9, image_layers=5, text_connections=(0, 4, 5), image_connections=(1, 2, 4))
    order = layer_order(config)
    assert sorted(order) == sorted((step, i) for step, n in (("text", 9), ("image", 5), ("co", 3)) for i in range(n))
    for i in range(3):
        before = order[:order.index(("co", i))]
        for stream, first in ("text", config.text_connections[i]), ("image", config.image_connections[i]):
            assert [n for s, n in before if s == stream] == list(range(first))


# ---- the encoder

@pytest.mark.parametrize("task", ["vqa", "gqa", "coco_retrieval", "refcoco", "nlvr2", "snli_ve"])
def test_padding_changes_nothing(task):
    model, batch = make(), make_batch(task)
    padded = replace(
        batch, tokens=F.pad(batch.tokens, (0, 5), value=9),
        features=F.pad(batch.features, (0, 0, 0, 4), value=3.), spatials=F.pad(batch.spatials, (0, 0, 0, 4), value=1.),
        targets=F.pad(batch.targets, (0, 4)) if TASKS[task].head == "ground" else batch.targets)
    logits = model(batch)
    torch.testing.assert_close(model(padded)[..., :logits.shape[-1]], logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss_of(model, padded), loss_of(model, batch), rtol=1e-5, atol=1e-6)


def test_padded_positions_are_never_read():
    model, batch = make(), make_batch()
    other = replace(batch, tokens=batch.tokens.where(batch.text_mask, 5),
                    features=batch.features.where(batch.region_mask[..., None], 1e3))
    assert not torch.equal(other.tokens, batch.tokens)
    assert torch.equal(model(other), model(batch))


def test_rows_do_not_mix():
    model, batch = make(), make_batch()
    tensors = ("tokens", "text_lengths", "features", "spatials", "region_counts")
    alone = Batch("vqa", *(getattr(batch, name)[2:3] for name in tensors))
    torch.testing.assert_close(model(alone)[0], model(batch)[2], rtol=1e-5, atol=1e-5)


def test_order_of_regions_does_not_matter():
    model, batch = make(), replace(make_batch(), region_counts=torch.tensor([6, 6, 6, 6]))
    order = torch.tensor([0, 3, 1, 5, 2, 4])  # the global region stays in front
    shuffled = replace(batch, features=batch.features[:, order], spatials=batch.spatials[:, order])
    assert not torch.equal(model.encode(shuffled).image, model.encode(batch).image)
    torch.testing.assert_close(model(shuffled), model(batch), rtol=1e-5, atol=1e-5)


def test_rows_without_any_real_position_are_finite():
    model, batch = make(config=ViLBERTConfig.miniature()), make_batch()
    empty = replace(batch, text_lengths=torch.zeros(4, dtype=int), region_counts=torch.zeros(4, dtype=int))
    loss_of(model, empty).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_tasks_share_a_token_when_the_config_says_so():
    model, batch = make(config=ViLBERTConfig.miniature(task_tokens=(("vqa", "vg_qa"), ("gqa",)))), make_batch()
    vqa, vg_qa, gqa = (model.encode(replace(batch, task=task)).pooled for task in ("vqa", "vg_qa", "gqa"))
    assert torch.equal(vqa, vg_qa) and not torch.equal(vqa, gqa)
    with pytest.raises(ValueError, match="no task token for 'nlvr2'"): model.encode(replace(batch, task="nlvr2"))


def test_without_task_tokens_the_task_is_invisible():
    model, batch = make(config=ViLBERTConfig.miniature()), make_batch()
    assert torch.equal(model.encode(batch).text, model.encode(replace(batch, task="nlvr2")).text)
    assert model.encode(batch).text.shape[1] == 7


def test_attention_maps_sum_to_one_and_ignore_padding():
    model, batch = make(), make_batch()
    encoded = model.encode(batch, attention=True)
    text_mask = F.pad(batch.text_mask, (1, 0), value=True)
    keys = {"text": text_mask, "image_to_text": text_mask,
            "image": batch.region_mask, "text_to_image": batch.region_mask}
    for name, maps in encoded.attention.items():
        for weights in maps:
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
            assert not weights.transpose(1, 3)[~keys[name]].any()
    assert torch.equal(encoded.pooled, model.encode(batch).pooled) and model.encode(batch).attention is None


def test_attention_map_is_what_the_block_used():
    torch.manual_seed(0)
    block = Block(CONFIG, hidden=64, size=32, heads=4, feed_forward=64).eval()
    stream = Stream(torch.randn(14, 64), Layout(torch.tensor([7, 3, 4]), 7))
    _, value = block.key_value(stream.rows)
    context = attention_map(block, block, stream, stream) @ stream.layout.grid(value).transpose(1, 2)
    context = block.attention_out(stream.layout.rows(context.transpose(1, 2)).flatten(1))
    torch.testing.assert_close(attend(block, block, stream, stream), context, rtol=1e-5, atol=1e-5)
    hidden = block.attention_norm(stream.rows + context)
    expected = block.feed_forward_norm(hidden + block.feed_forward_out(F.gelu(block.feed_forward_in(hidden))))
    torch.testing.assert_close(block.after_attention(stream.rows, context), expected, rtol=1e-5, atol=1e-5)


def test_fusion():
    torch.manual_seed(0)
    encoder, batch = ViLBERT(ViLBERTConfig.miniature(fusion="sum")).eval(), make_batch()
    encoded = encoder(batch)
    assert torch.equal(encoded.pooled, encoded.pooled_text + encoded.pooled_image)
    encoded = make().encode(batch)
    assert torch.equal(encoded.pooled, encoded.pooled_text * encoded.pooled_image)


def test_bfloat16_autocast():
    model, batch = make(), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16): logits = model(batch)
    torch.testing.assert_close(logits.float(), model(batch), rtol=.1, atol=.1)


# ---- training

def step(seed):
    model = make(seed).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for task in TASKS:
        loss_of(model, make_batch(task)).backward()
        optimiser.step()
        optimiser.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_training_is_reproducible_to_the_bit():
    torch.use_deterministic_algorithms(True)
    try: assert torch.equal(step(3), step(3)) and not torch.equal(step(3), step(4))
    finally: torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("task", TASKS)
def test_only_the_needed_head_learns(task):
    model = make()
    loss_of(model, make_batch(task)).backward()
    learning = {name for name, head in model.heads.items() if any(p.grad is not None for p in head.parameters())}
    assert learning == {TASKS[task].head_name}
    assert all(p.grad is not None for p in model.head(task).parameters())
    rows = model.encoder.text_embeddings.tasks.weight.grad.any(1).nonzero().flatten().tolist()
    assert rows == [list(TASKS).index(task)]


# ---- heads

def ground(logits, targets, candidates=None, head=HEADS["ground"](CONFIG)):
    batch = Batch("refcoco", None, None, None, None, None, torch.tensor(targets), candidates)
    return head.scores(torch.tensor(logits), batch).tolist()


def test_ground_score_needs_more_than_half():
    assert ground([[0., 1], [1, 0], [0, 1]], [[0, .5], [.51, 0], [.9, .1]]) == [0, 1, 0]


def test_ground_lets_the_whole_image_compete():
    assert ground([[5., 1, 2]], [[.1, .9, .2]]) == [0]


def test_choice_score_takes_the_best_candidate_whatever_its_overlap():
    assert ground([[1., 3, 2]], [[.6, .9, 1.]], torch.tensor([[1, 2, 3]])) == [0]
    assert ground([[1., 2, 3]], [[.6, .9, 1.]], torch.tensor([[1, 2, 3]])) == [1]


def test_candidates_are_regions_and_the_whole_image_can_be_one():
    model, batch = make(), make_batch("visual7w")
    regions = model(batch)
    chosen = model(replace(batch, candidates=torch.tensor([[5, 0], [1, 0], [3, 2], [0, -1]])))
    torch.testing.assert_close(chosen[:3], regions[:3].gather(1, torch.tensor([[5, 0], [1, 0], [3, 2]])))
    assert chosen[3, 0] == regions[3, 0] and chosen[3, 1] == -10000


def test_permuting_candidates_permutes_their_logits():
    model, batch = make(), make_batch("visual7w", N=2)
    batch = replace(batch, region_counts=torch.tensor([6, 6]),
                    candidates=torch.tensor([[3, 1, 5, -1], [2, 4, -1, -1]]),
                    targets=torch.tensor([[0, 1, .3, 0], [1, 0, 0, 0]]))
    order = torch.tensor([2, 3, 0, 1])
    permuted = replace(batch, candidates=batch.candidates[:, order], targets=batch.targets[:, order])
    logits, head = model(batch), model.head("visual7w")
    assert torch.equal(model(permuted), logits[:, order])
    assert torch.equal(head.scores(model(permuted), permuted), head.scores(logits, batch))
    assert torch.equal(order[head.predict(model(permuted), permuted)], head.predict(logits, batch))
    torch.testing.assert_close(head.loss(model(permuted), permuted), head.loss(logits, batch))
    assert (logits[batch.candidates < 0] == -10000).all() and (logits[batch.candidates >= 0] > -100).all()
    assert (head.predict(logits, batch) < torch.tensor([3, 2])).all()


def test_padding_never_contributes_to_the_ground_loss():
    model, batch = make(), make_batch("refcoco")
    logits = model.head("refcoco").classifier(model.encode(batch).image)[..., 0]
    expected = sum(F.binary_cross_entropy_with_logits(logits[i, mask], batch.targets[i, mask], reduction="sum")
                   for i, mask in enumerate(batch.region_mask)) / 4
    torch.testing.assert_close(loss_of(model, batch), expected)


def test_published_loss_scales():
    "Mean over all decisions; times the number of answers or regions for `answer` and `ground`."
    torch.manual_seed(0)
    answers, labels = torch.randn(4, 12), torch.randn(4, 3)
    batch = make_batch("vqa")
    bce = lambda logits, targets: (F.softplus(logits) - logits * targets).mean()
    torch.testing.assert_close(make().head("vqa").loss(answers, batch), bce(answers, batch.targets) * 12)
    regions = replace(batch, targets=torch.rand(4, 6))
    loss = make().head("refcoco").loss(answers[:, :6], regions)
    torch.testing.assert_close(loss, bce(answers[:, :6], regions.targets) * 6)
    batch = make_batch("snli_ve")
    torch.testing.assert_close(make().head("snli_ve").loss(labels, batch), bce(labels, torch.eye(3)[batch.targets]))
    batch = make_batch("nlvr2")
    loss = make().head("nlvr2").loss(labels[:2, :2], batch)
    torch.testing.assert_close(loss, bce(labels[:2, :2], torch.eye(2)[batch.targets]))
    pairs = torch.randn(8)
    loss = make().head("coco_retrieval").loss(pairs, None)
    torch.testing.assert_close(loss, F.cross_entropy(pairs.view(2, 4), torch.zeros(2).long()))


def test_match_scores_whether_the_first_of_four_wins():
    head, logits = HEADS["match"](CONFIG), torch.tensor([3., 1, 2, 0, 0, 1, 2, 1.5])
    assert head.predict(logits, None).tolist() == [0, 2] and head.scores(logits, None).tolist() == [1, 0]


def test_pair_reads_left_and_right_in_order():
    head = HEADS["pair"](CONFIG)
    pooled = torch.randn(4, 64)
    logits = head.logits(Encoded(None, None, None, None, pooled), None)
    swapped = head.logits(Encoded(None, None, None, None, pooled[[1, 0, 2, 3]]), None)
    assert not torch.allclose(logits[0], swapped[0])
    torch.testing.assert_close(logits[1], swapped[1])


def test_a_missing_vocabulary_is_named():
    model = TwelveInOne(CONFIG, {"gqa": 7})
    with pytest.raises(ValueError, match="'vg_qa' needs the vocabulary 'vqa'"): model(make_batch("vg_qa"))
