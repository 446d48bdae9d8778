"""The text stream against BERT as `transformers` computes it: small random models, saved in folders, no network."""
import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from vl12in1.model.bert import bert_pieces, bert_tensors, initialise_from_bert
from vl12in1.model.gated import crossing, gated
from vl12in1.model.heads import TwelveInOne
from vl12in1.model.pretraining import Pretraining
from vl12in1.weights import CheckpointError
from vl12in1.model.interface import WHOLE, Batch
from vl12in1.model.layers import needed
from vl12in1.model.vilbert import ViLBERTConfig
from vl12in1.examples.text import Tokenizer

transformers = pytest.importorskip("transformers", reason="the extra vl12in1[bert] is not installed")
PIECES = ("[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e ##a ##b ##c ##s the cat dog ca ##fe naive resume on mat "
          ", . ? ! ' - ( ) 1 2 3 ##4 中 é").split()
SIZES = dict(vocab_size=len(PIECES), hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=80,
             max_position_embeddings=40)
CONFIG = ViLBERTConfig.miniature(
    vocab_size=len(PIECES), max_positions=40, text_hidden=48, text_heads=4, text_feed_forward=80, task_tokens=())
ALONE = replace(CONFIG, text_connections=(), image_connections=())
CONFIGURATION, WEIGHTS = "config.json", "model.safetensors"


def save(folder, kind="BertForPreTraining", seed=0, **changes):
    "A BERT with no zero and no one in it, in a folder with its vocabulary."
    torch.manual_seed(seed)
    bert = getattr(transformers, kind)(transformers.BertConfig(**SIZES | changes)).eval()
    with torch.no_grad():
        for name, parameter in bert.named_parameters(): parameter.normal_(mean="LayerNorm.weight" in name, std=.15)
    bert.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES), encoding="utf-8")
    return bert


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad(): yield


def inputs(N=4, T=12, seed=1):
    "Pieces, mask and segments of N texts, all but one of them padded."
    torch.manual_seed(seed)
    lengths = torch.tensor([T, 3, 7, T - 1])[:N, None]
    return torch.randint(len(PIECES), (N, T)), torch.arange(T) < lengths, torch.randint(2, (N, T))


def batch(tokens, mask, segments=None, R=3):
    N = len(tokens)
    return Batch("vqa", tokens, mask.sum(1), torch.randn(N, R, CONFIG.feature_dim), torch.rand(N, R, 5),
                 torch.full((N,), R), segments=segments)


def close(ours, theirs): torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def parameters(model): return {name: parameter.clone() for name, parameter in model.named_parameters()}


def changed(model, before):
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


GATED = gated("vilbert", "tiny", vocab_size=len(PIECES), max_positions=40, text_hidden=48, text_heads=4, text_feed_forward=80,
              image_hidden=48, image_heads=4, image_feed_forward=80)


# --- the same outputs

@pytest.mark.parametrize("with_segments", [False, True])
@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_the_text_stream_is_bert(tmp_path, kind, with_segments):
    theirs = save(tmp_path, kind)
    model = TwelveInOne(ALONE, {"vqa": 5}).eval()
    initialise_from_bert(model, tmp_path)
    tokens, mask, segments = inputs()
    segments = segments if with_segments else None
    out = theirs.base_model(tokens, attention_mask=mask, token_type_ids=segments).last_hidden_state
    close(model.encode(batch(tokens, mask, segments)).text[mask], out[mask])


@pytest.mark.parametrize("sublayers, embeddings", [(("tt", "t") * 4, "lxmert"), (("tt vv shared", "t v shared") * 4, "uniter")])
def test_the_text_stream_of_a_gated_encoder_is_bert(tmp_path, sublayers, embeddings):
    "Where regions are not asked, whether they share its weights or not."
    theirs, model = save(tmp_path), Pretraining(replace(GATED, sublayers=sublayers, embeddings=embeddings), 5).eval()
    report = initialise_from_bert(model, tmp_path)
    tokens, mask, segments = inputs()
    out = theirs(tokens, attention_mask=mask, token_type_ids=segments, output_hidden_states=True)
    encoded = model.encode(batch(tokens, mask, segments))
    close(encoded.text[mask], out.hidden_states[-1][mask])
    close(model.classify(encoded.text, encoded.image, encoded.pooled).words[mask], out.prediction_logits[mask])
    assert not any("encoder.layer" in name for name in report.index[report.status == "not used"])


def test_blocks_of_another_size_stay_as_they_are(tmp_path):
    save(tmp_path)
    model = TwelveInOne(replace(GATED, sublayers=crossing(2, 1, 1), widths=((2, "text_size", 24), (6, "text_feed_forward", 8))), {})
    report = initialise_from_bert(model, tmp_path)
    taken = {name.split(".")[2] for name in report.index[report.status == "from BERT"] if "sublayers" in name}
    assert taken == {"0", "1"} and (report.source[report.status == "from BERT"] != "").all()


@pytest.mark.parametrize("kind, logits", [("BertForMaskedLM", "logits"), ("BertForPreTraining", "prediction_logits")])
def test_masked_words(tmp_path, kind, logits):
    theirs = save(tmp_path, kind)
    model = Pretraining(ALONE, classes=7).eval()
    initialise_from_bert(model, tmp_path)
    tokens, mask, segments = inputs()
    encoded = model.encode(batch(tokens, mask, segments))
    said = model.classify(encoded.text, encoded.image, encoded.pooled).words
    out = theirs(tokens, attention_mask=mask, token_type_ids=segments)[logits]
    close(said[mask], out[mask])


def after_text_layers(encoder, pairs):
    "The text stream after each of its own layers."
    streams, seen = encoder.embed(pairs, encoder.layouts(pairs)), []
    for layer in needed(encoder.order, WHOLE):
        streams = encoder.run([layer], streams)
        if layer[0] == "text": seen.append(streams["text"].grid())
    return seen


def test_up_to_the_first_exchange(folder):
    theirs = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    model = TwelveInOne(CONFIG, {}).eval()
    initialise_from_bert(model, folder)
    tokens, mask, segments = inputs()
    maps = model.encode(batch(tokens, mask, segments), attention=True).attention["text"]
    seen = after_text_layers(model.encoder, batch(tokens, mask, segments))
    out = theirs(tokens, mask, segments, output_attentions=True, output_hidden_states=True)
    first = CONFIG.text_connections[0]
    assert first == 2 and len(maps) == len(out.attentions) == 4
    for i in range(first):
        close(maps[i].transpose(1, 2)[mask], out.attentions[i].transpose(1, 2)[mask])
        close(seen[i][mask], out.hidden_states[i + 1][mask])
    assert (seen[first] - out.hidden_states[first + 1])[mask].abs().max() > .1


# --- the same words

SENTENCES = [
    "The cat's on the mat.", "A (naïve) résumé, café?!", "CABS", "unknowable words", "the-cat-dog", "1234 12 34",
    "中the中", "", "  a\tb\n c ", "[MASK] the [SEP]", "É e\u0301 ﬁ", "don't", "a" * 101, "\u200bcat\ufffd dog\x00",
    "İ ß", "catcat"]


@pytest.mark.parametrize("saved_by", ["vocab.txt", "tokenizer.json"])
def test_pieces_read_as_bert_reads(folder, saved_by):
    theirs = transformers.BertTokenizerFast.from_pretrained(folder)
    if saved_by == "tokenizer.json":
        theirs.save_pretrained(folder)
        (folder / "vocab.txt").unlink()
    pieces = bert_pieces(folder)
    assert pieces == PIECES
    plain = [text for text in SENTENCES if "[" not in text]  # they read special pieces out of texts, we do not
    assert len(plain) == len(SENTENCES) - 1
    assert Tokenizer(pieces)(plain, 200) == theirs(plain)["input_ids"]
    assert Tokenizer(pieces)(plain, 5) == theirs(plain, truncation=True, max_length=5)["input_ids"]


@pytest.mark.parametrize("setting", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
@pytest.mark.parametrize("saved_by", ["vocab.txt", "tokenizer.json"])
def test_a_bert_that_reads_otherwise_is_refused(folder, setting, saved_by):
    settings = {setting: False}
    if saved_by == "tokenizer.json":
        transformers.BertTokenizerFast.from_pretrained(folder, **settings).save_pretrained(folder)
        (folder / "vocab.txt").unlink()
    else: (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"{setting} is off.*use an uncased BERT"): bert_pieces(folder)


def test_capitals_in_the_vocabulary_are_refused(folder):
    (folder / "vocab.txt").write_text("\n".join([*PIECES, "Paris"]))
    with pytest.raises(ValueError, match="'Paris'"): bert_pieces(folder)


def test_no_vocabulary_is_made_up(folder):
    (folder / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match="no complete vocabulary"): bert_pieces(folder)
    with pytest.raises(CheckpointError, match="nowhere: no BERT"): bert_pieces(folder / "nowhere")


# --- what is taken, and what is not

@pytest.mark.parametrize("model", [TwelveInOne(ViLBERTConfig.miniature(
    vocab_size=len(PIECES), text_hidden=48, text_feed_forward=80, task_tokens=(("vqa",), ("gqa",))), {"vqa": 5}),
    Pretraining(CONFIG, classes=7)], ids=["tasks", "pretraining"])
def test_the_report_tells_what_changed(folder, model):
    before = parameters(model)
    report = initialise_from_bert(model, folder)
    ours = report[report.status != "not used"]
    assert list(ours.index) == list(before)
    assert changed(model, before) == set(ours.index[ours.rows > 0])
    assert all(("text_layers" in name or "text_embeddings" in name or "heads.words" in name) and ".tasks." not in name
               for name in changed(model, before))
    assert model.training
    # the two sides share BERT's tensors between them
    sources = [part for names in report.source[report.source != ""] for part in names.split(", ")]
    assert sorted(sources) == sorted(bert_tensors(folder)[0].shapes)


def test_without_a_head_ours_stays(tmp_path):
    save(tmp_path, "BertModel")
    model = Pretraining(CONFIG, classes=7)
    before, random = parameters(model), torch.get_rng_state()
    report = initialise_from_bert(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), random)
    assert set(report.status[report.index.str.startswith("heads.")]) == {"untouched"}
    assert not [name for name in changed(model, before) if name.startswith("heads.")]
    assert list(report.index[report.status == "not used"]) == ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]


def test_tensors_of_another_purpose_are_reported(tmp_path):
    save(tmp_path, "BertForSequenceClassification")
    report = initialise_from_bert(TwelveInOne(CONFIG, {}), tmp_path)
    assert (report.status[["classifier.weight", "classifier.bias"]] == "not used").all()


def test_own_vocabulary(folder):
    ours = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "unicorn", "cat", "##s", "the"]
    theirs = load_file(folder / WEIGHTS)
    model = Pretraining(replace(CONFIG, vocab_size=len(ours), max_positions=50, segments=3), classes=7)
    before = parameters(model)
    report = initialise_from_bert(model, folder, ours)
    embeddings, (words, bias) = model.encoder.text_embeddings, (
        theirs["bert.embeddings.word_embeddings.weight"], theirs["cls.predictions.bias"])
    for i, piece in enumerate(ours):
        if piece == "unicorn":
            assert torch.equal(embeddings.words.weight[i], before["encoder.text_embeddings.words.weight"][i])
            assert model.heads.words.bias[i] == 0
        else:
            assert torch.equal(embeddings.words.weight[i], words[PIECES.index(piece)])
            assert model.heads.words.bias[i] == bias[PIECES.index(piece)]
    assert torch.equal(embeddings.positions.weight[:40], theirs["bert.embeddings.position_embeddings.weight"])
    assert torch.equal(embeddings.positions.weight[40:], before["encoder.text_embeddings.positions.weight"][40:])
    partly = report[report.status == "partly from BERT"]
    assert {name.removeprefix("encoder.text_embeddings."): (row.rows, row.of) for name, row in partly.iterrows()} == {
        "words.weight": (8, 9), "positions.weight": (40, 50), "segments.weight": (2, 3), "heads.words.bias": (8, 9)}


def test_bert_s_own_vocabulary_as_pieces_changes_nothing(folder):
    models = [Pretraining(CONFIG, classes=7) for _ in range(2)]
    vocabularies = None, bert_pieces(folder)
    reports = [initialise_from_bert(model, folder, pieces) for model, pieces in zip(models, vocabularies)]
    assert reports[0].equals(reports[1])
    for name in reports[0].index[reports[0].status == "from BERT"]:
        assert torch.equal(models[0].get_parameter(name), models[1].get_parameter(name))


@pytest.mark.parametrize("layers", [2, 6])
def test_other_depths(folder, layers):
    connections = dict(text_connections=(0, 1), image_connections=(0, 1))
    report = initialise_from_bert(TwelveInOne(replace(CONFIG, text_layers=layers, **connections), {}), folder)
    blocks = report[report.index.str.contains(r"text_layers|bert\.encoder\.layer")]
    expected = {2: {"from BERT": 2 * 14, "not used": 2 * 16}, 6: {"from BERT": 4 * 14, "untouched": 2 * 14}}
    assert blocks.status.value_counts().to_dict() == expected[layers]


@pytest.mark.parametrize("form", ["gamma and beta", "pickle", "half", "parts"])
def test_forms_in_which_berts_are_saved(folder, form):
    expected = Pretraining(CONFIG, classes=7)
    initialise_from_bert(expected, folder)
    state = load_file(folder / WEIGHTS)
    if form == "parts":
        transformers.BertForPreTraining.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    if form == "half": state = {name: tensor.half() for name, tensor in state.items()}
    if form == "gamma and beta":
        state = {name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
                 for name, tensor in state.items()}
        state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"].clone()
    (folder / WEIGHTS).unlink(missing_ok=True)
    if form == "pickle": torch.save(state, folder / "pytorch_model.bin")
    elif form != "parts": save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    model = Pretraining(CONFIG, classes=7)
    report = initialise_from_bert(model, folder)
    for name in report.index[report.status == "from BERT"]:
        ours, theirs = model.get_parameter(name), expected.get_parameter(name)
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.half().float() if form == "half" else theirs)


# --- what is refused

def refused(error, message, folder, config=CONFIG, pieces=None):
    "The error comes, in one line that names the folder, and nothing has changed."
    model = Pretraining(config, classes=7)
    before = parameters(model)
    with pytest.raises(error, match=message) as caught: initialise_from_bert(model, folder, pieces)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not changed(model, before)


@pytest.mark.parametrize("changes, message", [
    (dict(text_hidden=64), "hidden_size is 48, here 64"), (dict(text_heads=6), "num_attention_heads is 4, here 6"),
    (dict(text_feed_forward=96), "intermediate_size is 80, here 96"),
    (dict(text_hidden=64, text_heads=8), "hidden_size is 48, here 64; num_attention_heads is 4, here 8")])
def test_other_sizes(folder, changes, message): refused(CheckpointError, message, folder, replace(CONFIG, **changes))


@pytest.mark.parametrize("key, value", [
    ("hidden_act", "relu"), ("position_embedding_type", "relative_key"), ("model_type", "roberta"),
    ("is_decoder", True), ("layer_norm_eps", 1e-5), ("tie_word_embeddings", False)])
def test_other_variants(folder, key, value):
    settings = json.loads((folder / CONFIGURATION).read_text())
    (folder / CONFIGURATION).write_text(json.dumps(settings | {key: value}))
    refused(CheckpointError, f"{key} is {value!r}, here", folder)


def test_other_vocabulary(folder):
    config = replace(CONFIG, vocab_size=50)
    refused(ValueError, "37 word pieces there, 50 here; give ours as `pieces`", folder, config)
    with pytest.raises(ValueError, match="pieces: 2 for a model that reads 50"):
        initialise_from_bert(TwelveInOne(config, {}), folder, ["a", "b"])
    (folder / "vocab.txt").write_text("\n".join([*PIECES, "more"]))
    refused(CheckpointError, "38 word pieces, weights for 37", folder, pieces=PIECES)


def test_no_folder(tmp_path): refused(CheckpointError, "no BERT can be read here", tmp_path / "nothing")
def test_empty_folder(tmp_path): refused(CheckpointError, "no config.json", tmp_path)


@pytest.mark.parametrize("name", [CONFIGURATION, WEIGHTS, "pytorch_model.bin"])
def test_truncated(folder, name):
    if name.endswith(".bin"):
        torch.save(load_file(folder / WEIGHTS), folder / name)
        (folder / WEIGHTS).unlink()
    (folder / name).write_bytes((folder / name).read_bytes()[:-50])
    refused(CheckpointError, "no BERT can be read here", folder)


@pytest.mark.parametrize("edit, message", [
    (lambda state: [state.pop(name) for name in list(state) if ".layer.2." in name], "missing.* and 13 more"),
    (lambda state: state.update({"cls.predictions.transform.dense.bias": torch.ones(3)}), "shape.*: cls.*bias$"),
    (lambda state: state["bert.encoder.layer.1.output.dense.bias"].fill_(torch.nan), "does not hold finite numbers")])
def test_damaged_weights(folder, edit, message):
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    refused(CheckpointError, message, folder)


class Hostile:
    def __reduce__(self): return open, ("executed", "w")


def test_a_pickle_is_not_obeyed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    torch.save(load_file(folder / WEIGHTS) | {"more": Hostile()}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    refused(CheckpointError, "no BERT can be read here", folder)
    assert not (folder / "executed").exists()


def test_without_transformers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'vl12in1\[bert\]'"):
        initialise_from_bert(TwelveInOne(CONFIG, {}), folder)
    assert bert_pieces(folder) == PIECES
