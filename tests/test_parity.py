"""Our models against the published implementation: the same weights, the same inputs, the same numbers.

`parity/vilbert_*` was made by running that implementation on four small random models (see `parity/README.md`). Its
weights are read by `read_published`. Its batches mix tasks, ours do not: the task model gets every row as a batch of
its own task. What stands at padded positions means nothing and is not compared.
"""
import sys
from functools import cache, cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from vl12in1.model import Batch, Encoded, Pretraining, PretrainingBatch, parameter_groups
from vl12in1.model.checkpoints import read_published
from vl12in1.model.names import published_modules
from vl12in1.model.pretraining import contrast_loss

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import plain  # noqa: E402

PARITY = Path(__file__).parent / "parity"
FIXTURES = ["vilbert_small", "vilbert_sum", "vilbert_one", "vilbert_nce"]
EVERYWHERE, TOLERANCE = torch.tensor(True), 1e-5


class Fixture:
    "One folder: the published numbers, and our two models with its weights."

    def __init__(self, name):
        files = PARITY / name / "weights.safetensors", PARITY / name / "config.json"
        self.published = load_file(PARITY / name / "tensors.safetensors")
        self.model, self.report = read_published(*files)
        self.pretraining, self.pretraining_report = read_published(*files, into=Pretraining)
        self.text_mask, self.region_mask = self.inputs("text_mask").bool(), self.inputs("image_mask").bool()
        self.asked_mask = F.pad(self.text_mask, (1, 0), value=True)  # of a text with its task token

    def inputs(self, name): return self.published[f"in.{name}"]
    def labels(self, name): return self.published[f"pretrain.in.{name}"]

    def batch(self, task, rows=slice(None)) -> Batch:
        "Some rows of the inputs as a batch of one task."
        return Batch(task, self.inputs("input_ids")[rows], self.text_mask[rows].sum(1), self.inputs("features")[rows],
                     self.inputs("spatials")[rows], self.region_mask[rows].sum(1), segments=self.inputs("segment_ids")[rows])

    def encode(self) -> Encoded:
        "Every row by itself, with its own task token, put together again."
        tokens = self.model.config.task_tokens
        rows = [self.model.encode(self.batch(tokens[task][0], slice(i, i + 1)), attention=True)
                for i, task in enumerate(self.inputs("task_ids"))]
        vectors = {name: torch.cat([getattr(row, name) for row in rows])
                   for name in ("text", "image", "pooled_text", "pooled_image", "pooled")}
        maps = {name: [torch.cat(blocks) for blocks in zip(*(row.attention[name] for row in rows))]
                for name in rows[0].attention}
        return Encoded(**vectors, attention=maps)

    @cached_property
    def encoded(self):
        with torch.no_grad(): return self.encode()

    def logits(self, encoded, head): return self.model.heads[head].logits(encoded, self.batch("any"))

    def pretraining_batch(self) -> PretrainingBatch:
        """The published labels as ours. Theirs leave out region 0 and have negatives for every region, ours count it
        and have negatives for the regions that are asked for."""
        regions = F.pad(self.labels("image_labels") == 1, (1, 0))
        negatives = self.published.get("pretrain.in.negatives")
        if negatives is not None:
            image, region = negatives // (regions.shape[1] - 1), negatives % (regions.shape[1] - 1)
            negatives = (image * regions.shape[1] + region + 1)[regions[:, 1:]]
        return PretrainingBatch(**vars(self.batch("pretraining")) | dict(
            words=self.labels("lm_labels"), regions=regions, contents=F.pad(self.labels("image_target"), (0, 0, 1, 0)),
            mismatched=self.labels("alignment_label"), negatives=negatives))


fixture = cache(Fixture)


# ---- what is compared: (name of a published tensor, ours, where it counts)

def sequences(f):
    "The vectors of all words and regions after the last block."
    yield "out.sequence_text", f.encoded.text, f.asked_mask[..., None]
    yield "out.sequence_image", f.encoded.image, f.region_mask[..., None]


def pooled(f):
    yield "out.pooled_text", f.encoded.pooled_text, EVERYWHERE
    yield "out.pooled_image", f.encoded.pooled_image, EVERYWHERE


def attention(f):
    "Every map of every block; a padded query may look anywhere."
    for ours, published, queries in (
            ("text", "attn.text.{}", f.asked_mask), ("text_to_image", "attn.co.{}.text_to_image", f.asked_mask),
            ("image", "attn.image.{}", f.region_mask), ("image_to_text", "attn.co.{}.image_to_text", f.region_mask)):
        for i, weights in enumerate(f.encoded.attention[ours]):
            yield published.format(i), weights, queries[:, None, :, None]


def task_heads(f):
    "All heads on all rows, whatever the task of the row."
    for head, published in {"answer_vqa": "vil_prediction", "answer_gqa": "vil_prediction_gqa", "match": "vil_logit",
                            "pair": "vil_binary_prediction", "entail": "vil_tri_prediction"}.items():
        logits = f.logits(f.encoded, head)
        yield f"out.{published}", logits[:, None] if head == "match" else logits, EVERYWHERE
    yield "out.vision_logit", f.logits(f.encoded, "ground")[..., None], f.region_mask[..., None]


def masked_heads_of_the_task_model(f):
    "The published task model keeps the heads of pre-training; ours are in the pre-training model."
    said = f.pretraining.classify(f.encoded.text, f.encoded.image, f.encoded.pooled)
    yield "out.linguisic_prediction", said.words, f.asked_mask[..., None]
    yield "out.vision_prediction", said.regions, f.region_mask[..., None]


def pretraining_logits(f):
    "The pre-training model, which has no task token."
    encoded = f.pretraining.encode(f.batch("pretraining"))
    said = f.pretraining.classify(encoded.text, encoded.image, encoded.pooled)
    yield "pretrain.out.lm_logits", said.words, f.text_mask[..., None]
    yield "pretrain.out.region_logits", said.regions, f.region_mask[..., None]
    yield "pretrain.out.alignment_logits", said.alignment, EVERYWHERE


def pretraining_losses(f):
    batch = f.pretraining_batch()
    losses = f.pretraining.losses(f.pretraining(batch), batch)
    region = {"classes": "kl", "features": "mse", "contrast": "nce"}[f.pretraining.region_target]
    for ours, published in {
            "words": "masked_lm", "regions": f"masked_region_{region}", "alignment": "alignment"}.items():
        yield f"pretrain.out.{published}_loss", losses[ours][None], EVERYWHERE


@torch.enable_grad()
def gradients(f):
    "A loss that touches both streams, and its gradients."
    f.model.zero_grad()
    encoded = f.encode()
    loss = (f.logits(encoded, "answer_vqa").logsumexp(1).mean() + f.logits(encoded, "entail").logsumexp(1).mean()
            + f.logits(encoded, "ground").where(f.region_mask, 0).square().mean())
    loss.backward()
    encoder = f.model.encoder
    yield "grad.loss", loss.detach()[None], EVERYWHERE
    for published, ours in {
            "bert.embeddings.word_embeddings": encoder.text_embeddings.words.weight.grad,
            "bert.embeddings.task_embeddings": encoder.text_embeddings.tasks.weight.grad,
            "bert.v_embeddings.image_embeddings": encoder.image_embeddings.features.weight.grad,
            "bert.encoder.layer.0.attention.self.key": encoder.text_layers[0].key_value_in.weight.grad.chunk(2)[0],
            "bert.encoder.c_layer.0.biattention.query1":
                encoder.co_layers[0].image.query_in.weight.grad}.items():
        yield f"grad.{published}.weight", ours, EVERYWHERE


OUTPUTS = [sequences, pooled, attention, task_heads, masked_heads_of_the_task_model, pretraining_logits,
           pretraining_losses, gradients]


# ---- the comparison

def difference(ours, published, where) -> float:
    "Largest difference, relative to the largest published value."
    assert ours.shape == published.shape
    where = where.expand_as(published)
    return ((ours - published)[where].abs().max() / published[where].abs().max()).item()


@torch.no_grad()
def differences(f, outputs) -> dict[str, float]:
    "Published tensor -> `difference`, for one kind of outputs."
    return {name: difference(ours, f.published[name], where) for name, ours, where in outputs(f)}


@pytest.mark.parametrize("outputs", OUTPUTS, ids=lambda outputs: outputs.__name__)
@pytest.mark.parametrize("name", FIXTURES)
def test_agrees(name, outputs):
    for tensor, found in differences(fixture(name), outputs).items(): assert found < TOLERANCE, tensor


def test_contrast_of_every_region():
    "Not only the mean: the published scores, own feature first, give the loss of each region that is asked for."
    f = fixture("vilbert_nce")
    batch, scores = f.pretraining_batch(), f.published["pretrain.out.region_nce_scores"]
    with torch.no_grad(): logits = f.pretraining(batch).regions
    ours = contrast_loss(logits, batch.contents[batch.regions], batch.contents.flatten(0, 1)[batch.negatives])
    assert difference(ours, -scores.log_softmax(1)[:, 0], EVERYWHERE) < TOLERANCE


# ---- names

@pytest.mark.parametrize("name", FIXTURES)
def test_every_published_weight_is_used_or_known_to_be_unused(name):
    f = fixture(name)
    dead = {key for key in f.report.index if ".biOutput.q_dense" in key}
    words = {key for key in f.report.index if key.startswith("linguisic_logit.")}
    masked = {key for key in f.report.index if key.startswith("cls.")}
    tasks = {key for key in f.report.index if key.startswith(("vil_", "vision_logit."))}
    assert (len(dead), len(words)) == (4 * len(f.model.config.text_connections), 2)
    assert set(f.report.index[f.report.status != "mapped"]) == dead | words | masked
    assert set(f.pretraining_report.index[f.pretraining_report.status != "mapped"]) == dead | words | tasks | {
        "bert.embeddings.task_embeddings.weight", "cls.predictions.decoder.weight"}
    assert {*f.report.status, *f.pretraining_report.status} == {"mapped", "dropped"}


@pytest.mark.parametrize("name", FIXTURES)
def test_the_head_that_no_task_uses_is_reported(name):
    "`linguisic_logit` has no counterpart, and whoever reads the file is told so."
    dropped = fixture(name).report.loc[["linguisic_logit.weight", "linguisic_logit.bias"]]
    assert set(dropped.status) == {"dropped"} and set(dropped.note) == {"a number per word that no task uses"}


def test_parameter_groups_follow_the_published_names():
    "The published rules are substring tests on published names; ours must sort every tensor alike."
    model = fixture("vilbert_small").model
    modules, names = published_modules(model.config), {p: name for name, p in model.named_parameters()}
    for group in parameter_groups(model, 2e-5, 1e-4, .01):
        for parameter in group["params"]:
            module, _, kind = names.pop(parameter).rpartition(".")
            for published in (f"{name}.{kind}" for name in modules[module]):
                assert group["lr"] == (1e-4 if "vil_" in published else 2e-5), published
                spared = any(part in published for part in ("bias", "LayerNorm.bias", "LayerNorm.weight"))
                assert group["weight_decay"] == (0 if spared else .01), published
    assert not names


# ---- all of it

@pytest.mark.parametrize("name", FIXTURES)
def test_nothing_is_left_out(name):
    "One table per fixture (`pytest -rP` shows it): every published output, and by how much ours differs."
    f, table = fixture(name), {}
    for outputs in OUTPUTS: table |= differences(f, outputs)
    print(f"\n{name}: largest difference, relative to the largest published value")
    for tensor, found in table.items(): print(f"  {tensor:55} {found:.1e}")
    outputs = {key for key in f.published if key.startswith(("out.", "attn.", "grad.", "pretrain.out."))}
    assert set(table) == outputs - {"out.linguisic_logit", "pretrain.out.region_nce_scores"}
    assert max(table.values()) < TOLERANCE


# ---- what speed is measured against

@pytest.mark.parametrize("name", FIXTURES)
def test_the_plain_computation_is_the_published_one(name):
    f = fixture(name)
    for row, task in enumerate(f.inputs("task_ids")):
        batch = f.batch(f.model.config.task_tokens[task][0], slice(row, row + 1))
        with torch.no_grad(): encoded = plain.encode(f.model.encoder.eval(), batch)
        for ours, theirs in ((encoded.pooled_text, "pooled_text"), (encoded.pooled_image, "pooled_image")):
            expected = f.published[f"out.{theirs}"][row:row + 1]
            assert (ours - expected).abs().max() <= TOLERANCE * expected.abs().max()
