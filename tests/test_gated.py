"""One encoder, five architectures: against VOLTA's program, against sums written out, and against `transformers`.

`parity/volta_small` was made by running VOLTA's program on small random models; its weights are read by `read_volta`. What stands at
padded positions means nothing and is not compared.
"""
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import toy
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from vl12in1.command import main
from vl12in1.examples.batches import Examples
from vl12in1.model import PRESETS, Batch, CheckpointError, GatedConfig, Pretraining, TwelveInOne, parameter_groups
from vl12in1.model.checkpoints import inspect, read_published, read_volta, to_published, write_published
from vl12in1.model.gated import ARCHITECTURES, alternating, crossing, gated, single
from vl12in1.model.interface import FIRST, REGIONS, STREAMS, EncoderConfig, written_out
from vl12in1.model.layers import LAYERS
from vl12in1.model.volta import to_volta_config, volta_config
from vl12in1.study.attention import attention_example
from vl12in1.study.heads import head_measures
from vl12in1.study.probes import region_vectors
from vl12in1.tasks import TASKS

SMALL = Path(__file__).parent / "parity/volta_small"
NAMES = ["ctrl_vilbert", "ctrl_lxmert", "ctrl_uniter", "ctrl_visualbert", "ctrl_vl-bert"]
HEADS = {"answer_vqa": "VL-classifier", "match": "VL-logit", "ground": "V-logit",
         "pair": "VL-binary-classifier", "entail": "VL-tri-classifier"}
CLOSE = dict(rtol=1e-5, atol=1e-5)


def weights_of(name): return load_file(SMALL / name / "weights.safetensors")
def config_of(name): return json.loads((SMALL / name / "config.json").read_text())


class Fixture:
    "One folder: what VOLTA's program gave, and our model with its weights."

    def __init__(self, name):
        self.model, self.report = read_volta(SMALL / name / "weights.safetensors", SMALL / name / "config.json")
        self.theirs = x = load_file(SMALL / name / "tensors.safetensors")
        self.words, self.regions = x["in.text_mask"].bool(), x["in.image_mask"].bool()
        self.batch = Batch("any", x["in.input_ids"], self.words.sum(1), x["in.features"], x["in.locations"], self.regions.sum(1),
                           segments=x["in.segment_ids"])


fixture = cache(Fixture)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_published_program(name):
    f = fixture(name)
    with torch.no_grad(): encoded = f.model.encoder(f.batch)
    for ours, theirs, mask in ((encoded.text, "text", f.words), (encoded.image, "image", f.regions)):
        torch.testing.assert_close(ours[mask], f.theirs[f"out.{theirs}"][mask], **CLOSE)
    torch.testing.assert_close(encoded.pooled_text, f.theirs["out.pooled_text"], **CLOSE)
    torch.testing.assert_close(encoded.pooled_image, f.theirs["out.pooled_image"], **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_heads_are_those_of_the_published_program(name):
    f = fixture(name)
    with torch.no_grad(): encoded = f.model.encoder(f.batch)
    for head, kind in HEADS.items():
        theirs = f.theirs[f"out.head.{kind}"]
        if head in ("match", "ground"): theirs = theirs[..., 0]
        logits, mask = f.model.heads[head].logits(encoded, f.batch), f.regions if head == "ground" else ...
        torch.testing.assert_close(logits[mask], theirs[mask], **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_published_program(name):
    "Of a parameter that both streams share, files hold the whole gradient under the name of the text's."
    f = fixture(name)
    f.model.zero_grad()
    encoded = f.model.encoder(f.batch)
    ground = f.model.heads["ground"].logits(encoded, f.batch).where(f.regions, 0)
    loss = f.model.heads["answer_vqa"].logits(encoded, f.batch).logsumexp(1).mean() + ground.square().mean()
    loss.backward()
    torch.testing.assert_close(loss.detach(), f.theirs["grad.loss"], **CLOSE)
    gradients = {key: p.grad for key, p in f.model.named_parameters()}
    theirs = {key.removeprefix("grad."): value for key, value in f.theirs.items() if key.startswith("grad.bert")}
    for ours in set(f.report.ours[list(theirs)]):
        own = [key for key in f.report.index[f.report.ours == ours] if key in theirs]
        expected = torch.cat([theirs[key] for key in own]) if "key_value_in" in ours and len(own) == 2 else theirs[own[0]]
        torch.testing.assert_close(gradients[ours][:len(expected)], expected, rtol=1e-4, atol=1e-6, msg=lambda text: f"{ours}: {text}")


# ---- files

@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("name", NAMES)
def test_files_come_back_to_the_bit(name, suffix, tmp_path):
    model, _ = read_volta(SMALL / name / "weights.safetensors", SMALL / name / "config.json")
    write_published(model, tmp_path / f"back.{suffix}")
    state = torch.load(tmp_path / "back.bin", weights_only=True) if suffix == "bin" else load_file(tmp_path / "back.safetensors")
    before, after = config_of(name), json.loads((tmp_path / "back.json").read_text())
    assert state.keys() == weights_of(name).keys()
    assert all(torch.equal(state[key], value) for key, value in weights_of(name).items())
    assert {key: after[key] for key in before} == before


@pytest.mark.parametrize("name", NAMES)
def test_published_models_of_batches_with_the_picture_first(name):
    "What VOLTA's model gives where the picture stands last, the model for our batches gives where it stands first."
    f = fixture(name)
    model, _ = read_published(SMALL / name / "weights.safetensors", SMALL / name / "config.json")
    for row, (words, regions) in enumerate(zip(f.batch.text_lengths, f.batch.region_counts)):  # alone: nothing depends on other pairs
        here = slice(row, row + 1)
        def pair(order):
            return Batch("any", f.batch.tokens[here, :words], f.batch.text_lengths[here], f.batch.features[here, order],
                         f.batch.spatials[here, order], f.batch.region_counts[here], segments=f.batch.segments[here, :words])
        last = torch.arange(regions)
        first = last.roll(1) if "vl-bert" in name else last
        with torch.no_grad(): theirs, ours = (m.encoder(pair(order)) for m, order in ((f.model, last), (model, first)))
        torch.testing.assert_close(ours.text, theirs.text, **CLOSE)
        torch.testing.assert_close(ours.image, theirs.image[:, first], **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_saved_models_come_back(name, tmp_path):
    f = fixture(name)
    f.model.save_pretrained(tmp_path)
    again = TwelveInOne.from_pretrained(tmp_path)
    assert again.config == f.model.config
    with torch.no_grad(): assert torch.equal(again.encoder(f.batch).pooled, f.model.encoder(f.batch).pooled)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_accounted_for(name):
    state, config = weights_of(name), config_of(name)
    _, report = read_volta(state, config)
    assert set(report.status) == {"mapped"} and set(report.index) == set(state)
    for key in [*list(state)[::9], *(key for key in state if "clfs_dict" in key or "embeddings" in key)]:
        lacking = {other: tensor for other, tensor in state.items() if other != key}
        with pytest.raises(CheckpointError) as error: read_volta(lacking, config)
        assert key in str(error.value)


@pytest.mark.parametrize("name, key", [
    ("ctrl_lxmert", "bert.encoder.layer.4.attention_self.v_value.weight"), ("ctrl_uniter", "bert.encoder.layer.1.output.v_LayerNorm.bias"),
    ("ctrl_uniter", "bert.embeddings.image_token_type_embeddings.weight"),
    ("ctrl_vl-bert", "bert.encoder.layer.3.intermediate.v_dense.weight")])
def test_unequal_twins_are_named(name, key):
    state = weights_of(name)
    state[key] = state[key] + 1e-6
    twin = key.replace("v_", "").replace("image_token", "token")
    with pytest.raises(CheckpointError, match=f"{twin} and {key}: not equal"): read_volta(state, config_of(name))


def test_unknown_and_misshapen_tensors_are_named():
    state = weights_of("ctrl_lxmert")
    state |= {"bert.oops": torch.ones(2), "bert.t_pooler.dense.bias": torch.ones(3)}
    with pytest.raises(CheckpointError) as error: read_volta(state, config_of("ctrl_lxmert"))
    assert "bert.oops: unexpected" in str(error.value) and "bert.t_pooler.dense.bias: wrong shape (3,) instead of (24,)" in str(error.value)


def test_heads_go_by_task_or_kind_and_others_are_accounted_for():
    state = {key: value for key, value in weights_of("ctrl_uniter").items() if "clfs_dict" not in key or "VL-classifier" in key}
    state = {key.replace("VL-classifier", "TASK15"): value for key, value in state.items()}
    state |= {"clfs_dict.TASK99.weight": torch.ones(1, 24), "clfs_dict.V-logit.0.weight": torch.ones(32, 32),
              "cls.bi_seq_relationship.bias": torch.ones(2), "cls.qaPredictions.logit_fc.0.bias": torch.ones(2)}
    model, report = read_volta(state, config_of("ctrl_uniter"))
    assert torch.equal(model.heads["answer_gqa"].classifier[3].bias, state["clfs_dict.TASK15.logit_fc.3.bias"])
    assert model.vocabularies == {"gqa": 11}
    others = {key for key in state if key.startswith("cls.") or "TASK99" in key or "V-logit.0" in key}
    assert set(report.index[report.status == "dropped"]) == others and len(others) == 4
    assert {name.split(".")[1] for name in report.ours[report.status == "fresh"]} == {"match", "ground", "pair", "entail"}
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("prefix", ["module.", "model.", "model.module.", ""])
def test_prefixes_are_recognised(prefix, tmp_path, capsys):
    state = {prefix + key: value for key, value in weights_of("ctrl_lxmert").items()}
    save_file(state, tmp_path / "prefixed.safetensors")
    model, _ = read_volta(tmp_path / "prefixed.safetensors", SMALL / "ctrl_lxmert/config.json")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fixture("ctrl_lxmert").model.parameters()))
    table = inspect(tmp_path / "prefixed.safetensors")
    assert set(table.component) == {"text embeddings", "image embeddings", "attention sublayers", "feed-forward sublayers", "poolers",
                                    "heads of tasks"}


@pytest.mark.parametrize("name", NAMES)
def test_the_command_inspects_and_converts_them_both_ways(name, tmp_path, capsys):
    weights, config = (str(SMALL / name / file) for file in ("weights.safetensors", "config.json"))
    main(["inspect", weights])
    said = capsys.readouterr().out
    assert "TwelveInOne" in said and "attention sublayers" in said and "unknown" not in said
    main(["convert", weights, str(tmp_path / "folder"), "--config", config])
    main(["convert", str(tmp_path / "folder"), str(tmp_path / "back.safetensors")])
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == weights_of(name).keys() and all(torch.equal(back[key], value) for key, value in weights_of(name).items())


@pytest.mark.parametrize("changed, message", [
    (dict(hidden_act="relu"), "hidden_act 'relu'"), (dict(fusion_method="none"), "fusion_method 'none'"),
    (dict(bert_model="roberta-base"), "bert_model 'roberta-base'"), (dict(v_pooler_size=7), "v_pooler_size"),
    (dict(image_embeddings="m3p"), "embeddings 'm3p'"),
    (dict(t_ff_sublayers=[0, 1, 3, 6, 9]), "sublayer 0: 'tt vv t' is no kind of sublayer"),

    (dict(tt_attn_sublayers=[0, 2, 5, 8, 12]), "without a gap"), (dict(tt_attn_sublayers="0"), "tt_attn_sublayers '0' is no list"),
    (dict(vv_attn_sublayers=[0, 5, 2 ** 40]), "no list of sublayers"), (dict(single_ln_sublayers=[0]), r"\[0\] are not among"),
    (dict(sublayer2attn_hidden_size={"4": 64}), "sublayer 4"), (dict(sublayer2attn_hidden_size={"99": 64}), "widths"),
    (dict(sublayer2attn_hidden_size=[64]), "no table of sublayers"), (dict(num_attention_heads=5), "not a multiple of its 5 heads"),
    (dict(hidden_size="32"), "text_hidden '32'"), (dict(num_locs=9), "places 9"),
    (dict(vocab_size=2 ** 30), "34,359,807,370 numbers, but the file has 79,498"),
    (dict(vocab_size=None), "vocab_size None"),
    (dict(tt_attn_sublayers=[0] * 1000), "tt_attn_sublayers is 1000, but the file has 187 tensors"),
    (dict(num_attention_heads=3, v_num_attention_heads=3), "; and 8 more"), (dict(sublayer2intermediate_size={"1": "9"}), "widths"),
    (dict(hidden_dropout_prob=float("nan")), "dropout nan")])
def test_configurations_that_cannot_be_are_refused_by_name(changed, message, tmp_path):
    (tmp_path / "odd.json").write_text(json.dumps(config_of("ctrl_lxmert") | changed))
    with pytest.raises(CheckpointError, match=message): read_volta(weights_of("ctrl_lxmert"), tmp_path / "odd.json")


def test_an_absurd_number_of_sublayers_is_refused_before_anything_is_made(tmp_path):
    TwelveInOne(gated("uniter", "tiny"), {}).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["config"]["sublayers"] *= 10 ** 5
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="sublayers is 400000"): TwelveInOne.from_pretrained(tmp_path)


def test_a_configuration_of_another_model_is_refused():
    other = SMALL.parent / "vilbert_small/config.json"
    with pytest.raises(CheckpointError, match="config.json: no tt_attn_sublayers"): read_volta(weights_of("ctrl_lxmert"), other)


def test_what_volta_cannot_have_is_not_written(tmp_path):
    with_tokens = TwelveInOne(gated("uniter", "tiny", task_tokens=(("vqa",),)), {})
    with pytest.raises(ValueError, match="no task tokens"): write_published(with_tokens, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="'contrast'"): to_published(Pretraining(gated("uniter", "tiny"), 9, "contrast"))


def test_pretraining_comes_back(tmp_path):
    model = Pretraining(gated("lxmert", "tiny", batching="mixed"), classes=9)
    write_published(model, tmp_path / "pretrained.safetensors")
    again, report = read_volta(tmp_path / "pretrained.safetensors", tmp_path / "pretrained.json")
    assert type(again) is Pretraining and set(report.status) == {"mapped", "dropped"}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


# ---- the same sums, written out

def linear(state, name, x): return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def attention_of(state, at, streams, masks, gates, heads):
    "What each stream is told in an attention sublayer: name -> (N, L, size), one softmax over the positions of all that it asks."
    told, letter = {}, {"text": "", "image": "v_"}
    def made(stream, part): return linear(state, f"{at}.attention_self.{letter[stream]}{part}", streams[stream])
    def split(x, count): return x.unflatten(-1, (count, -1)).transpose(1, 2)
    asked = {"text": [s for s, gate in (("text", "tt"), ("image", "tv")) if gate in gates],
             "image": [s for s, gate in (("text", "vt"), ("image", "vv")) if gate in gates]}
    for stream, names in asked.items():
        if not names: continue
        query = split(made(stream, "query"), heads[stream])
        key, value = (torch.cat([split(made(name, part), heads[stream]) for name in names], 2) for part in ("key", "value"))
        mask = torch.cat([masks[name] for name in names], 1)[:, None, None]
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** .5 + (~mask) * -1e4).softmax(-1)
        told[stream] = (weights @ value).transpose(1, 2).flatten(2)
    return told


def plain_sublayers(config, state, streams, masks):
    "VOLTA's encoder on padded grids, from the content of its files."
    letter = {"text": "", "image": "v_"}
    depth = 1 + max(number for key, numbers in config.items() if key.endswith(("attn_sublayers", "ff_sublayers")) for number in numbers)
    for number in range(depth):
        at = f"bert.encoder.layer.{number}"
        gates = [gate for gate in ("tt", "tv", "vt", "vv") if number in config[f"{gate}_attn_sublayers"]]
        heads = {stream: config[f"sublayer2{v}num_attention_heads"].get(str(number), config[f"{v}num_attention_heads"])
                 for stream, v in letter.items()}
        if gates: added, out = attention_of(state, at, streams, masks, gates, heads), "attention_output"
        else:
            out, added = "output", {}
            for stream in [s for s, key in (("text", "t"), ("image", "v")) if number in config[f"{key}_ff_sublayers"]]:
                v = letter[stream]
                added[stream] = F.gelu(linear(state, f"{at}.intermediate.{v}dense", streams[stream]))
        for stream, inner in added.items():
            here = f"{at}.{out}.{letter[stream]}"
            x = streams[stream] + linear(state, f"{here}dense", inner)
            norm = state[f"{here}LayerNorm.weight"], state[f"{here}LayerNorm.bias"]
            streams = streams | {stream: F.layer_norm(x, x.shape[-1:], *norm, eps=1e-12)}
    return streams


def batch_of(texts=(7, 3, 5, 4), images=(6, 2, 4, 5), dim=64, task="vqa"):
    g, N = torch.Generator().manual_seed(0), len(texts)
    return Batch(task, torch.randint(1, 60, (N, max(texts)), generator=g), torch.tensor(texts),
                 torch.randn(N, max(images), dim, generator=g), torch.rand(N, max(images), 5, generator=g), torch.tensor(images))


PATTERNS = {
    "as deep as LXMERT": dict(sublayers=crossing(9, 5, 5), embeddings="lxmert"),
    "wide co-attention": dict(sublayers=alternating(1, 2), widths=((2, "image_heads", 2), (2, "image_size", 96), (2, "text_heads", 2),
                                                                   (2, "text_size", 96), (3, "text_feed_forward", 40))),
    "streams of two widths": dict(sublayers=alternating(1, 1), image_hidden=48, image_heads=3, widths=(
        (2, "text_heads", 3), (2, "text_size", 48), (4, "text_size", 32))),
    "joint and apart": dict(sublayers=("tt tv vt vv", "t v", "tt vv shared", "v", "tt vt", "t", "tt tv vv", "tv vt vv", "tt vt vv",
                                       "tv vv")),
    "a single stream": dict(sublayers=single(3), embeddings="uniter", image_feed_forward=128, widths=(
        (2, "image_size", 32), (2, "text_size", 32), (3, "image_feed_forward", 24), (3, "text_feed_forward", 24)))}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_new_encoders_tell_words_apart_beside_one_picture(name):
    "As they are before the first sublayer: two thirds of what is normed are place and segment. VL-BERT's pictures once drowned them."
    batch, seen = batch_of(texts=(6, 6), images=(5, 5)), []
    batch = replace(batch, features=batch.features[[0, 0]], spatials=batch.spatials[[0, 0]])
    encoder = gated(name, "miniature").encoder().eval()
    encoder.text_embeddings.register_forward_hook(lambda module, inputs, output: seen.append(output))
    encoder(encoder.prepared(batch))
    assert F.cosine_similarity(*seen[0][:, 1:], dim=-1).mean() < .8


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_place_among_regions_tells_anything_but_the_first(name):
    "Training adds right boxes behind all others: VL-BERT once told the last region to all words, and learned nothing but its place."
    batch = batch_of()
    encoder = random_weights(gated(name, "miniature").encoder()).eval()
    order = torch.stack([torch.cat([torch.zeros(1, dtype=int), torch.arange(1, n).flip(0), torch.arange(n, 6)]) for n in (6, 2, 4, 5)])
    moved = replace(batch, features=batch.features.gather(1, order[..., None].expand(-1, -1, 64)),
                    spatials=batch.spatials.gather(1, order[..., None].expand(-1, -1, 5)))
    one, other = encoder(batch), encoder(moved)
    torch.testing.assert_close(one.pooled, other.pooled, atol=1e-5, rtol=1e-4)
    rows = batch.region_mask
    moved_rows = one.image.gather(1, order[..., None].expand(-1, -1, one.image.shape[-1]))
    torch.testing.assert_close(moved_rows[rows], other.image[rows], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("fusion", ["mul", "sum", "text"])
def test_other_sizes_and_patterns_are_the_sums_written_out(pattern, fusion):
    torch.manual_seed(0)
    config = gated("vilbert", "tiny", **PATTERNS[pattern], fusion=fusion, activation="tanh", places=7)
    model, batch = TwelveInOne(config, {}).eval(), batch_of()
    for parameter in model.parameters(): torch.nn.init.normal_(parameter, std=.2)
    state, content = to_published(model)
    assert volta_config(content) == config
    with torch.no_grad():
        begun = model.encoder.embed(batch, model.encoder.layouts(batch))
        masks = {"text": batch.text_mask, "image": batch.region_mask}
        streams = plain_sublayers(content, state, {name: stream.grid() for name, stream in begun.items()}, masks)
        ours = model.encoder(batch)
        text = torch.tanh(model.encoder.text_pooler(streams["text"][:, 0]))
        image = None if fusion == "text" else torch.tanh(model.encoder.image_pooler(streams["image"][:, 0]))
    for name, mask in masks.items(): torch.testing.assert_close(getattr(ours, name)[mask], streams[name][mask], rtol=1e-4, atol=1e-5)
    expected = {"mul": lambda: text * image, "sum": lambda: text + image, "text": lambda: text}[fusion]()
    torch.testing.assert_close(ours.pooled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encoder(batch, FIRST).pooled, expected, rtol=1e-4, atol=1e-5)


# ---- `transformers`

THEIRS = dict(vocab_size=60, hidden_size=32, num_attention_heads=4, intermediate_size=48, max_position_embeddings=40)
LIKE_THEIRS = dict(vocab_size=60, text_hidden=32, image_hidden=32, text_heads=4, image_heads=4, text_feed_forward=48, image_feed_forward=48,
                   max_positions=40, feature_dim=24, pooled_width=32, fusion="text", activation="tanh")


def random_weights(model):
    torch.manual_seed(0)
    for parameter in model.parameters(): torch.nn.init.normal_(parameter, std=.2)
    return model.eval()


def with_twins(state, config):
    "The state dict with weights that streams share under both names, in the file that a `GatedConfig` describes."
    wanted = to_published(TwelveInOne(config, {}))[0]
    return {name: state[name if name in state else name.replace("v_", "")] for name in wanted if "clfs_dict" not in name}


def compare(config, state, batch, text, image, pooled):
    model, _ = read_volta(state, config)
    with torch.no_grad(): encoded = model.encoder(batch)
    torch.testing.assert_close(encoded.text[batch.text_mask], text[batch.text_mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded.image[batch.region_mask], image[batch.region_mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded.pooled, pooled, rtol=1e-4, atol=1e-5)


def test_lxmert_is_that_of_transformers():
    from transformers import LxmertConfig, LxmertModel
    theirs = random_weights(LxmertModel(LxmertConfig(**THEIRS, l_layers=3, r_layers=2, x_layers=2, visual_feat_dim=24, visual_pos_dim=4)))
    batch = batch_of(dim=24)
    with torch.no_grad():
        said = theirs(input_ids=batch.tokens, visual_feats=batch.features, visual_pos=batch.spatials[..., :4],
                      attention_mask=batch.text_mask.float(), visual_attention_mask=batch.region_mask.float())
    config = GatedConfig(crossing(3, 2, 2), embeddings="lxmert", places=4, **LIKE_THEIRS)
    state, moved = theirs.state_dict(), {}
    for name, tensor in state.items():
        if name.startswith("encoder."): continue
        moved["bert." + name.replace("pooler", "t_pooler")] = tensor
    for ours, part in (("image_embeddings", "visn_fc"), ("image_location_embeddings", "box_fc"), ("ImgLayerNorm", "visn_layer_norm"),
                       ("LocLayerNorm", "box_layer_norm")):
        for kind in ("weight", "bias"): moved[f"bert.v_embeddings.{ours}.{kind}"] = state[f"encoder.visn_fc.{part}.{kind}"]
    blocks = [(f"encoder.layer.{i}.", "", 2 * i) for i in range(3)] + [(f"encoder.r_layers.{i}.", "v_", 2 * i) for i in range(2)]
    for x in range(2):
        at = 6 + 3 * x
        both = f"encoder.x_layers.{x}.visual_attention."
        attention_weights(moved, state, f"{both}att.", f"{both}output.", "", at)
        for stream, v in (("lang", ""), ("visn", "v_")):
            here = f"encoder.x_layers.{x}.{stream}_"
            attention_weights(moved, state, f"{here}self_att.self.", f"{here}self_att.output.", v, at + 1)
            feed_forward_weights(moved, state, f"{here}inter.", f"{here}output.", v, at + 2)
    for here, v, at in blocks:
        attention_weights(moved, state, f"{here}attention.self.", f"{here}attention.output.", v, at)
        feed_forward_weights(moved, state, f"{here}intermediate.", f"{here}output.", v, at + 1)
    compare(config, with_twins(moved, config), batch, said.language_output, said.vision_output, said.pooled_output)


def attention_weights(moved, state, asks, out, v, at):
    "Attention of `transformers` (names that begin so) as a sublayer of VOLTA."
    layer = f"bert.encoder.layer.{at}"
    for kind in ("weight", "bias"):
        for part in ("query", "key", "value"): moved[f"{layer}.attention_self.{v}{part}.{kind}"] = state[f"{asks}{part}.{kind}"]
        for part in ("dense", "LayerNorm"): moved[f"{layer}.attention_output.{v}{part}.{kind}"] = state[f"{out}{part}.{kind}"]


def feed_forward_weights(moved, state, inner, out, v, at):
    for kind in ("weight", "bias"):
        moved[f"bert.encoder.layer.{at}.intermediate.{v}dense.{kind}"] = state[f"{inner}dense.{kind}"]
        for part in ("dense", "LayerNorm"): moved[f"bert.encoder.layer.{at}.output.{v}{part}.{kind}"] = state[f"{out}{part}.{kind}"]


def test_visualbert_is_that_of_transformers():
    from transformers import VisualBertConfig, VisualBertModel
    theirs = random_weights(VisualBertModel(VisualBertConfig(**THEIRS, num_hidden_layers=3, visual_embedding_dim=24)))
    batch, state, moved = batch_of(dim=24), theirs.state_dict(), {}
    T = batch.tokens.shape[1]
    with torch.no_grad():
        said = theirs(input_ids=batch.tokens, attention_mask=batch.text_mask.float(), visual_embeds=batch.features,
                      visual_attention_mask=batch.region_mask.float(), visual_token_type_ids=torch.ones(batch.features.shape[:2]).long())
    config = GatedConfig(single(3), embeddings="visualbert", **LIKE_THEIRS)
    for name, tensor in state.items():
        name = name.replace("visual_token_type_embeddings", "token_type_embeddings_visual")
        name = name.replace("visual_position_embeddings", "position_embeddings_visual").replace("visual_projection", "projection")
        if not name.startswith("encoder."): moved["bert." + name.replace("pooler", "t_pooler")] = tensor
    for i in range(3):
        here = f"encoder.layer.{i}."
        attention_weights(moved, state, f"{here}attention.self.", f"{here}attention.output.", "", 2 * i)
        feed_forward_weights(moved, state, f"{here}intermediate.", f"{here}output.", "", 2 * i + 1)
    text, image = said.last_hidden_state[:, :T], said.last_hidden_state[:, T:]
    compare(config, with_twins(moved, config), batch, text, image, said.pooler_output)


# ---- what all encoders have in common

TOKENS = tuple((task,) for task in TASKS)


@cache
def model_of(name):
    torch.manual_seed(0)
    config = PRESETS["miniature"] if name == "ours" else PRESETS.get(f"{name}_miniature", lambda **sizes: gated(name, "miniature", **sizes))
    return TwelveInOne(config(task_tokens=TOKENS), {"vqa": 12, "gqa": 7}).eval()


OTHERS = [name for name in ARCHITECTURES if name != "vilbert"]
every = pytest.mark.parametrize("name", ["ours", *ARCHITECTURES])


@every
@torch.no_grad()
def test_padding_changes_nothing(name):
    model, batch = model_of(name), batch_of()
    padded = replace(batch, tokens=F.pad(batch.tokens.where(batch.text_mask, 5), (0, 5), value=9),
                     features=F.pad(batch.features.where(batch.region_mask[..., None], 1e3), (0, 0, 0, 4), value=3.),
                     spatials=F.pad(batch.spatials, (0, 0, 0, 4), value=1.))
    expected, ours = model.encode(batch), model.encode(padded)
    torch.testing.assert_close(ours.pooled, expected.pooled, **CLOSE)
    torch.testing.assert_close(ours.text[:, :8], expected.text, **CLOSE)
    torch.testing.assert_close(ours.image[:, :6], expected.image, **CLOSE)
    assert not ours.text[:, 8:].any() and not ours.image[:, 6:].any()


@every
@torch.no_grad()
def test_rows_neither_mix_nor_have_an_order(name):
    model, batch, order = model_of(name), batch_of(), torch.tensor([2, 0, 3, 1])
    pooled = model.encode(batch).pooled
    moved = replace(batch, **{key: tensor[order] for key, tensor in batch.tensors().items()})
    torch.testing.assert_close(model.encode(moved).pooled, pooled[order], **CLOSE)
    one = replace(batch, **{key: tensor[2:3] for key, tensor in batch.tensors().items()})
    torch.testing.assert_close(model.encode(one).pooled, pooled[2:3], **CLOSE)


@every
@torch.no_grad()
def test_what_is_wanted_is_what_the_whole_has(name):
    model, batch = model_of(name), batch_of()
    whole = model.encode(batch)
    torch.testing.assert_close(model.encode(batch, FIRST).pooled, whole.pooled, **CLOSE)
    torch.testing.assert_close(model.encode(batch, REGIONS).image, whole.image, **CLOSE)


@every
@torch.no_grad()
def test_crossed_pairs_are_the_pairs_written_out(name):
    encoder = model_of(name).encoder
    few, many = (encoder.prepared(batch_of(*sizes, task="coco_retrieval")) for sizes in (((7, 3), (6, 2)), ((2, 5, 3), (5, 1, 4))))
    crossed = encoder.together(encoder.alone(few, "text"), encoder.alone(many, "image"))
    torch.testing.assert_close(crossed, encoder(written_out(few, many)).pooled, **CLOSE)


@every
@torch.no_grad()
def test_maps_and_states_are_those_of_the_layers(name):
    model, batch = model_of(name), batch_of()
    encoded = model.encode(batch, attention=True, states=True)
    assert torch.equal(encoded.pooled, model.encode(batch).pooled)
    assert list(encoded.image_states)[:2] == ["input", "embeddings"]
    assert torch.equal(list(encoded.image_states.values())[-1], encoded.image)
    words = F.pad(batch.text_mask, (1, 0), value=True)
    masks = {"text": words, "text_to_image": batch.region_mask, "image": batch.region_mask, "image_to_text": words}
    for stream, names in (("text", ("text", "text_to_image")), ("image", ("image", "image_to_text"))):
        total = sum(weights.sum(-1) for each in names for weights in encoded.attention[each])
        sublayers = [asked for kind, _ in model.encoder.order for asked in [LAYERS[kind].get(stream)] if asked]
        torch.testing.assert_close(total, torch.full_like(total, len(sublayers)))
        for each in names:
            for weights in encoded.attention[each]: assert not weights.transpose(1, 3)[~masks[each]].any()


@every
@pytest.mark.parametrize("task", ["vqa", "coco_retrieval", "refcoco", "nlvr2", "snli_ve"])
def test_every_parameter_that_matters_learns(name, task):
    model, batch = model_of(name), batch_of(task=task)
    model.zero_grad()
    model(batch).clamp(min=-100).sum().backward()
    learning = {key.split(".")[1] for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"text_embeddings", "image_embeddings", TASKS[task].head_name} <= learning
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    groups = parameter_groups(model, 1e-3, 1e-3, .01)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@every
def test_recomputing_changes_no_gradient(name):
    gradients = []
    for recompute in (False, True):
        model, batch = model_of(name), batch_of()
        model.encoder.recompute = recompute
        model.zero_grad()
        model.encode(batch).pooled.sum().backward()
        gradients.append([p.grad.clone() for p in model.encoder.parameters() if p.grad is not None])
    model.encoder.recompute = False
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", OTHERS)
def test_they_are_trained_saved_and_looked_into(name, tmp_path):
    trainer = toy.trainer(tmp_path, iterations=3, preset=f"{name}_tiny")
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.run()
    assert sum(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters())) > len(before) / 2
    trainer.model.save_pretrained(tmp_path / "model")
    model, shared = TwelveInOne.from_pretrained(tmp_path / "model"), toy.sources(tmp_path)
    examples = Examples("refcoco", toy.frames(shared)["refcoco"]["test"], shared)
    heads = head_measures(model, examples, toy.CPU)
    assert heads.entropy.between(0, 1 + 1e-6).all() and set(heads.reset_index()["map"]) == set(STREAMS)
    example = json.loads(json.dumps(attention_example(model, examples, 0, toy.CPU)))
    assert len(example["words_to_regions"]) == sum("tv" in kind for kind, _ in model.encoder.order)
    objects = pd.DataFrame(dict(image=toy.KEYS[:3], region=1))
    vectors = region_vectors(model, "vqa", objects, shared, toy.CPU)
    assert len(vectors) == 2 + sum("image" in LAYERS[kind] for kind, _ in model.encoder.order)


@every
def test_heads_that_look_evenly_have_all_the_entropy_that_there_can_be(name, tmp_path):
    "Whether a stream asks one or both at once."
    model = toy.trainer(tmp_path, preset="tiny" if name in ("ours", "vilbert") else f"{name}_tiny").model.eval()
    for key, parameter in model.named_parameters():
        if "query_in" in key: parameter.data.zero_()
    shared = toy.sources(tmp_path)
    heads = head_measures(model, Examples("refcoco", toy.frames(shared)["refcoco"]["test"], shared), toy.CPU)
    assert (heads.entropy - 1).abs().max() < 1e-5 and (heads["[CLS]"] - heads["[CLS], if even"]).abs().max() < 1e-5


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("size", ["miniature", "tiny"])
def test_presets_have_as_many_weights_as_vilbert(name, size):
    numbers = [sum(p.numel() for p in PRESETS[preset]().encoder().parameters()) for preset in (size, f"{name}_{size}")]
    assert abs(numbers[1] / numbers[0] - 1) < .05


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_sizes_are_those_of_the_controlled_comparison(name):
    config = gated(name)
    assert (config.text_hidden, config.pooled_width, config.classifier_width) == (768, 1024, 1536)
    assert len(config.sublayers) == {"vilbert": 36, "lxmert": 33}.get(name, 24)
    assert EncoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_saved_model_says_which_encoder_it_is(tmp_path):
    begins = {}
    for name in ARCHITECTURES:
        TwelveInOne(gated(name, "tiny"), {}).save_pretrained(tmp_path / name)
        begins[name] = (tmp_path / name / "README.md").read_text().split("---")[2].split(" as in")[0].strip()
    assert list(begins.values()) == ["A ViLBERT", "An LXMERT", "A UNITER", "A VisualBERT", "A VL-BERT"]


@pytest.mark.parametrize("overrides, message", [
    (dict(sublayers=("tt tv",)), "sublayers"), (dict(sublayers=("vt tt",)), "sublayers"),
    (dict(sublayers=("tt shared",)), "shares nothing"),
    (dict(sublayers=("t v shared",), image_feed_forward=7), "same feed_forward"), (dict(fusion="max"), "fusion 'max'"),
    (dict(image_hidden=48, image_heads=3, embeddings="uniter"), "streams of one width"),
    (dict(segments=1, embeddings="uniter"), "2 segments"),
    (dict(feature_dim=12, segments=3, embeddings="vl-bert"), "multiple of 8"), (dict(widths=((0, "depth", 3),)), "widths"),
    (dict(widths=((0, "text_size", 32), (0, "text_size", 64))), "twice"), (dict(task_tokens=(("vqa",), ("vqa",))), "two rows"),
    (dict(batching="both"), "batching"), (dict(places=3), "places 3"), (dict(embeddings=["lxmert"]), "embeddings")])
def test_config_errors(overrides, message):
    with pytest.raises(ValueError, match=message): gated("vilbert", "tiny", **overrides)


def test_a_text_that_leaves_no_position_for_regions_is_refused():
    encoder = gated("vl-bert", "tiny", max_positions=8).encoder()
    with pytest.raises(ValueError, match="needs 9 positions, and has 8"): encoder(encoder.prepared(batch_of()))


def test_a_hidden_region_has_a_vector_and_a_word_of_its_own():
    torch.manual_seed(0)
    encoder, batch = gated("vl-bert", "tiny", hidden_word="yes").encoder().eval(), batch_of()
    batch.features[:, 1] = 0
    learned = encoder.image_embeddings
    torch.nn.init.ones_(learned.regions_norm.weight)  # it begins with zeros
    encoder(batch).pooled.sum().backward()
    assert learned.hidden_feature.weight.grad.any() and learned.hidden_object.weight.grad.any()
    again = to_published(TwelveInOne(encoder.config, {}))
    assert volta_config(again[1]).hidden_word == "yes" and "bert.embeddings.object_mask_word_embedding.weight" in again[0]


def test_published_files_of_vilbert_are_still_read_by_their_own_reader():
    small = SMALL.parent / "vilbert_small"
    model, _ = read_published(small / "weights.safetensors", small / "config.json")
    assert model.config.architecture == "vilbert"
    assert to_volta_config(gated("uniter"))["image_embeddings"] == "uniter"


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_types_of_numbers_compute_the_same(name, dtype):
    "As the type of a model, and where the machine chooses it for products alone."
    expected, batch = model_of(name)(batch_of()), batch_of()
    model = TwelveInOne(model_of(name).config, model_of(name).vocabularies).eval()
    model.load_state_dict(model_of(name).state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16): chosen = model(batch)
    inputs = dict(features=batch.features.to(dtype), spatials=batch.spatials.to(dtype))
    atol = .3 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(chosen, expected, rtol=0, atol=atol)
    torch.testing.assert_close(model.to(dtype)(replace(batch, **inputs)), expected, rtol=0, atol=atol, check_dtype=False)
