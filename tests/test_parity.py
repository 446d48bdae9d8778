"""The encoder and its heads against what the published implementation computes with the same weights.

`parity/vilbert_small` was made by running that implementation on a small random model. Its batch mixes tasks and has
two sentence types, which our batches do not. So each of its rows is run as a batch of its own task, and the second
sentence type is folded into a second half of the vocabulary, `word + (type 1 - type 0)`.
"""
import json
from pathlib import Path
import pytest
import torch
from safetensors.torch import load_file
from vl12in1.model import Batch, Encoded, TwelveInOne, ViLBERTConfig, parameter_groups
from vl12in1.model.vilbert import PUBLISHED_TASK_TOKENS

FOLDER = Path(__file__).parent / "parity/vilbert_small"
PUBLISHED = json.loads((FOLDER / "config.json").read_text())
WEIGHTS, FIXTURE = load_file(FOLDER / "weights.safetensors"), load_file(FOLDER / "tensors.safetensors")
VOCABULARY = PUBLISHED["vocab_size"]
TASKS = [PUBLISHED_TASK_TOKENS[i][0] for i in FIXTURE["in.task_ids"]]
TEXT_MASK = torch.nn.functional.pad(FIXTURE["in.text_mask"].bool(), (1, 0), value=True)  # with the task token
IMAGE_MASK = FIXTURE["in.image_mask"].bool()


def config(vocab_size):
    p = PUBLISHED
    return ViLBERTConfig(
        vocab_size=vocab_size, max_positions=p["max_position_embeddings"], feature_dim=p["v_feature_size"],
        text_hidden=p["hidden_size"], text_layers=p["num_hidden_layers"], text_heads=p["num_attention_heads"],
        text_feed_forward=p["intermediate_size"], image_hidden=p["v_hidden_size"],
        image_layers=p["v_num_hidden_layers"], image_heads=p["v_num_attention_heads"],
        image_feed_forward=p["v_intermediate_size"], co_hidden=p["bi_hidden_size"],
        co_heads=p["bi_num_attention_heads"], text_connections=tuple(p["t_biattention_id"]),
        image_connections=tuple(p["v_biattention_id"]), task_tokens=PUBLISHED_TASK_TOKENS, fusion=p["fusion_method"])


def block(ours, attention, out, norm, feed_in, feed_out):
    return {f"{ours}.qkv": attention, f"{ours}.attention_out": [out], f"{ours}.attention_norm": [norm],
            f"{ours}.feed_forward_in": [f"{feed_in}.dense"], f"{ours}.feed_forward_out": [f"{feed_out}.dense"],
            f"{ours}.feed_forward_norm": [f"{feed_out}.LayerNorm"]}


def published_modules():
    "Our module -> the published modules whose tensors, one below the other, are ours."
    names = {"encoder.text_pooler": ["bert.t_pooler.dense"], "encoder.image_pooler": ["bert.v_pooler.dense"]}
    for ours, published in {
            "text_embeddings.words": "embeddings.word_embeddings",
            "text_embeddings.positions": "embeddings.position_embeddings",
            "text_embeddings.types": "embeddings.token_type_embeddings",
            "text_embeddings.tasks": "embeddings.task_embeddings",
            "text_embeddings.norm": "embeddings.LayerNorm",
            "image_embeddings.features": "v_embeddings.image_embeddings",
            "image_embeddings.locations": "v_embeddings.image_location_embeddings",
            "image_embeddings.norm": "v_embeddings.LayerNorm"}.items():
        names[f"encoder.{ours}"] = [f"bert.{published}"]
    parts = ("query", "key", "value")
    for layers, published, depth in (("text_layers", "layer", "num_hidden_layers"),
                                     ("image_layers", "v_layer", "v_num_hidden_layers")):
        for i in range(PUBLISHED[depth]):
            p = f"bert.encoder.{published}.{i}"
            names |= block(f"encoder.{layers}.{i}", [f"{p}.attention.self.{part}" for part in parts],
                           f"{p}.attention.output.dense", f"{p}.attention.output.LayerNorm",
                           f"{p}.intermediate", f"{p}.output")
    for i in range(len(PUBLISHED["t_biattention_id"])):
        p = f"bert.encoder.c_layer.{i}"
        for stream, letter, number in ("image", "v", 1), ("text", "t", 2):
            names |= block(f"encoder.co_layers.{i}.{stream}", [f"{p}.biattention.{part}{number}" for part in parts],
                           f"{p}.biOutput.dense{number}", f"{p}.biOutput.LayerNorm{number}",
                           f"{p}.{letter}_intermediate", f"{p}.{letter}_output")
    for ours, published in {"answer_vqa": "vil_prediction", "answer_gqa": "vil_prediction_gqa",
                            "pair": "vil_binary_prediction"}.items():
        names |= {f"heads.{ours}.classifier.{i}": [f"{published}.logit_fc.{i}"] for i in (0, 2, 3)}
    for ours, published in {"match": "vil_logit", "entail": "vil_tri_prediction", "ground": "vision_logit"}.items():
        names[f"heads.{ours}.classifier"] = [published]
    return names


MODULES = published_modules()


def load():
    "Our model with the fixture's weights, the vocabulary doubled for the second sentence type."
    model = TwelveInOne(config(2 * VOCABULARY), {"vqa": 3129, "gqa": 1533}).eval()
    state = {}
    for name in model.state_dict():
        module, _, kind = name.rpartition(".")
        state[name] = torch.cat([WEIGHTS[f"{published}.{kind}"] for published in MODULES[module]])
    words, types = (WEIGHTS[f"bert.embeddings.{table}_embeddings.weight"] for table in ("word", "token_type"))
    state["encoder.text_embeddings.words.weight"] = torch.cat([words, words + (types[1] - types[0])])
    model.load_state_dict(state)
    return model


def rows():
    "Every row of the fixture as a batch of its own."
    x = {name.removeprefix("in."): tensor for name, tensor in FIXTURE.items() if name.startswith("in.")}
    for i, task in enumerate(TASKS):
        row = slice(i, i + 1)
        yield Batch(task, x["input_ids"][row] + VOCABULARY * x["segment_ids"][row], x["text_mask"][row].bool(),
                    x["features"][row], x["spatials"][row], IMAGE_MASK[row])


def encode(model):
    "The rows' encodings as one."
    parts = [model.encode(row, attention=True) for row in rows()]
    names = ("text", "image", "pooled_text", "pooled_image", "pooled")
    maps = {name: [torch.cat(layers) for layers in zip(*(part.attention[name] for part in parts))]
            for name in parts[0].attention}
    return Encoded(*(torch.cat([getattr(part, name) for part in parts]) for name in names), attention=maps)


def logits(model, encoded, head):
    return model.heads[head].logits(encoded, Batch("", None, None, None, None, IMAGE_MASK))


def assert_agrees(ours, published, mask=None):
    if mask is not None: ours, published = ours[mask], published[mask]
    torch.testing.assert_close(ours, published, rtol=1e-5, atol=1e-5 * published.abs().max().item())


@pytest.fixture(scope="module")
def model(): return load()


@pytest.fixture(scope="module")
def encoded(model):
    with torch.no_grad(): return encode(model)


def test_every_published_weight_is_used_or_known_to_be_unused(model):
    used = {published for names in MODULES.values() for published in names}
    unused = {name for name in WEIGHTS if name.rpartition(".")[0] not in used}
    dead = {name for name in WEIGHTS if ".biOutput.q_dense" in name}
    assert len(dead) == 3 * 4
    assert unused == dead | {name for name in WEIGHTS if name.startswith(("cls.", "linguisic_logit."))}
    assert {name.rpartition(".")[0] for name in model.state_dict()} == set(MODULES)


def test_sequences(encoded):
    assert_agrees(encoded.text, FIXTURE["out.sequence_text"], TEXT_MASK)
    assert_agrees(encoded.image, FIXTURE["out.sequence_image"], IMAGE_MASK)


@pytest.mark.parametrize("name", ["pooled_text", "pooled_image"])
def test_pooled(encoded, name): assert_agrees(getattr(encoded, name), FIXTURE[f"out.{name}"])


@pytest.mark.parametrize("name, query_mask, published", [
    ("text", TEXT_MASK, "attn.text.{}"), ("text_to_image", TEXT_MASK, "attn.co.{}.text_to_image"),
    ("image", IMAGE_MASK, "attn.image.{}"), ("image_to_text", IMAGE_MASK, "attn.co.{}.image_to_text")])
def test_attention(encoded, name, query_mask, published):
    maps = encoded.attention[name]
    assert published.format(len(maps) - 1) in FIXTURE and published.format(len(maps)) not in FIXTURE
    for i, attention in enumerate(maps):
        assert_agrees(attention.transpose(1, 2), FIXTURE[published.format(i)].transpose(1, 2), query_mask)


@pytest.mark.parametrize("head, published", [
    ("answer_vqa", "vil_prediction"), ("answer_gqa", "vil_prediction_gqa"), ("pair", "vil_binary_prediction"),
    ("entail", "vil_tri_prediction")])
def test_logits(model, encoded, head, published):
    assert_agrees(logits(model, encoded, head), FIXTURE[f"out.{published}"])


def test_match_logits(model, encoded):
    assert_agrees(logits(model, encoded, "match"), FIXTURE["out.vil_logit"][:, 0])


def test_ground_logits(model, encoded):
    assert_agrees(logits(model, encoded, "ground"), FIXTURE["out.vision_logit"][..., 0], IMAGE_MASK)


def test_gradients():
    model = load()
    encoded = encode(model)
    loss = (logits(model, encoded, "answer_vqa").logsumexp(1).mean()
            + logits(model, encoded, "entail").logsumexp(1).mean()
            + logits(model, encoded, "ground").where(IMAGE_MASK, torch.tensor(0.)).square().mean())
    loss.backward()
    assert_agrees(loss.detach()[None], FIXTURE["grad.loss"])
    published = {name.removeprefix("grad."): grad for name, grad in FIXTURE.items() if name.startswith("grad.bert")}
    encoder = model.encoder
    ours = {
        "bert.embeddings.word_embeddings.weight": sum(encoder.text_embeddings.words.weight.grad.split(VOCABULARY)),
        "bert.embeddings.task_embeddings.weight": encoder.text_embeddings.tasks.weight.grad,
        "bert.v_embeddings.image_embeddings.weight": encoder.image_embeddings.features.weight.grad,
        "bert.encoder.c_layer.0.biattention.query1.weight": encoder.co_layers[0].image.qkv.weight.grad.chunk(3)[0],
        "bert.encoder.layer.0.attention.self.key.weight": encoder.text_layers[0].qkv.weight.grad.chunk(3)[1]}
    assert set(ours) == set(published)
    for name, grad in ours.items(): assert_agrees(grad, published[name])


def test_parameter_groups_follow_the_published_names(model):
    "The published rules are substring tests on published names; ours must sort every tensor alike."
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in parameter_groups(model, 2e-5, 1e-4, .01):
        for parameter in group["params"]:
            module, _, kind = names.pop(parameter).rpartition(".")
            for published in (f"{name}.{kind}" for name in MODULES[module]):
                assert group["lr"] == (1e-4 if "vil_" in published else 2e-5), published
                spared = any(part in published for part in ("bias", "LayerNorm.bias", "LayerNorm.weight"))
                assert group["weight_decay"] == (0 if spared else .01), published
    assert not names
