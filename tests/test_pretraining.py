"""Pre-training batches: the shares of what is masked, nothing hidden shows through, captions, negatives, scores."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuzz import tries
import toy
from vl12in1.boxes import iou
from vl12in1.model import Pretraining, ViLBERTConfig
from vl12in1.model.interface import Batch, completed
from vl12in1.regions import Regions, RegionStore, RegionWriter
from vl12in1.examples.batches import Sources
from vl12in1.training.feed import TrainingBatches
from vl12in1.training.masking import (
    CaptionPairs, Captions, Masking, hide, mask_regions, mask_words, negative_rows, pretraining_scores)
from vl12in1.training.schedules import RoundRobin
from vl12in1.examples.text import Tokenizer
from vl12in1.training.trainer import Feed, Trainer, TrainingConfig

ORIGINAL = dict(overlap=None, mismatched_masks=True)
MUCH = dict(words=.5, regions=.4)  # more than usual, so that a small batch has some of everything
TOKENIZER = Tokenizer(toy.WORDS)
SPECIAL = {TOKENIZER.pad, TOKENIZER.unknown, TOKENIZER.first, TOKENIZER.last, TOKENIZER.mask}


def regions(rng):
    "Some regions in a corner of the picture, where they overlap."
    n = rng.integers(1, 9)
    corners = rng.uniform(0, 20, (n, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 40, (n, 2))], axis=1).astype("float32")
    return Regions(rng.normal(size=(n, 8)).astype("float16"), boxes, 100, 100, rng.dirichlet(np.ones(6), n))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pretraining"), np.random.default_rng(0)
    with RegionWriter(folder / "store", "random", class_names=["background", *"abcde"]) as writer:
        for key in toy.KEYS: writer.append(key, regions(rng))
    store = RegionStore.open(folder / "store")
    return Sources(store, store, TOKENIZER, {})


@pytest.fixture(scope="module")
def frame():
    "32 captions of three or four words; some pictures have two."
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(toy.WORDS[5:], size=3 + i % 2)) for i in range(32)]
    return pd.DataFrame(dict(uid=map(str, range(32)), images=[(toy.KEYS[i % 20],) for i in range(32)], text=texts))


def pairs(frame, shared, **masking): return CaptionPairs(frame, shared, Masking(**masking))
def generator(seed=0): return np.random.default_rng(seed)
def generators(seed=0): return lambda row: np.random.default_rng([seed, row])
def tensors(batch): return {name: value for name, value in vars(batch).items() if torch.is_tensor(value)}


# --- words

def test_shares_of_masked_words():
    ids = np.array(TOKENIZER(["red blue ball box left right is the"] * 4000, 36))
    read, asked = mask_words(ids, TOKENIZER, generator())
    chosen = asked >= 0
    masked, same = read == TOKENIZER.mask, read == ids
    among = {"mask": masked[chosen].mean(), "other": (~masked & ~same)[chosen].mean(), "same": same[chosen].mean()}
    assert abs(chosen[:, 1:-1].mean() - .15) < .008       # 32,000 words: four standard errors
    assert abs(among["mask"] - .8) < .025                 # 4,800 of them chosen
    assert abs(among["other"] - .1 * 7 / 8) < .018        # one random piece in eight is the old one
    assert abs(among["same"] - .1 * 9 / 8) < .019


@tries(50)
@given(st.lists(st.integers(0, len(toy.WORDS) - 1), max_size=30), st.integers(0, 1000), st.sampled_from([0, .15, 1]))
def test_masked_words(ids, seed, share):
    ids = np.array(ids, dtype=np.int64)
    before = ids.copy()
    read, asked = mask_words(ids, TOKENIZER, generator(seed), share)
    never = np.isin(ids, [TOKENIZER.first, TOKENIZER.last, TOKENIZER.pad])
    assert (ids == before).all()
    assert (asked[never] == -1).all()
    assert (read[asked < 0] == ids[asked < 0]).all()
    assert (asked[asked >= 0] == ids[asked >= 0]).all()
    assert not set(read[read != ids]) & (SPECIAL - {TOKENIZER.mask})
    if share in (0, 1): assert ((asked >= 0) == (~never if share else False)).all()


# --- regions

def test_shares_of_masked_regions():
    apart = np.array([[30 * i, 0, 30 * i + 20, 10] for i in range(20)])
    asked, hidden = map(np.array, zip(*(mask_regions(apart, rng) for rng in map(generator, range(2000)))))
    assert abs(asked.mean() - .15) < .0075
    assert abs(hidden[asked].mean() - .9) < .017
    assert not hidden[~asked].any()


@tries(50)
@given(st.integers(0, 10_000), st.sampled_from([0, .2, .4, .9]))
def test_overlapping_regions_are_hidden(seed, overlap):
    rng = generator(seed)
    boxes = regions(rng).boxes
    asked, chosen = mask_regions(boxes, generator(seed), .4, None)
    again, hidden = mask_regions(boxes, generator(seed), .4, overlap)
    near = (iou(boxes, boxes[chosen]) > overlap).any(1)
    assert (asked == again).all() and not (chosen & ~asked).any()
    assert (hidden == (chosen | near)).all()


@tries(50)
@given(st.integers(0, 10_000))
def test_what_is_hidden_does_not_show(seed):
    rng = generator(seed)
    counts = torch.from_numpy(rng.integers(1, 7, 4))
    mask = torch.arange(6) < counts[:, None]
    detected = mask & (torch.arange(6) > 0)
    hidden = torch.from_numpy(rng.random((4, 6)) < .5) & detected
    features, noise = torch.from_numpy(rng.normal(size=(2, 4, 6, 3))).float() * mask[..., None]

    def seen(features):
        "Features as a model reads them."
        pairs = Batch("pretraining", torch.ones(4, 2).long(), torch.full((4,), 2), features, torch.rand(4, 6, 5), counts,
                      averaged=detected)
        return completed(replace(pairs, **hide(pairs, hidden)), torch.float32).features

    out = seen(features)
    assert torch.equal(out, seen(torch.where(hidden[..., None], noise, features)))
    assert torch.equal(out[:, 1:], features[:, 1:] * ~hidden[:, 1:, None])
    for row, visible in zip(out, detected & ~hidden):
        torch.testing.assert_close(row[0], row[visible].mean(0) if visible.any() else torch.zeros(3))


class Tampered:
    "A store in which the features of some rows are others."
    def __init__(self, store, rows): self.store, self.rows, self.manifest = store, rows, store.manifest

    def __getitem__(self, key):
        found = self.store[key]
        features = found.features.copy()
        features[self.rows.get(key, [])] = 99
        return Regions(features, found.boxes, found.width, found.height, found.class_probs)


@pytest.mark.parametrize("target", ["classes", "features"])
@pytest.mark.parametrize("rules", [dict(), ORIGINAL])
def test_hidden_features_leave_no_trace_in_a_batch(shared, frame, rules, target):
    one_each = frame[:20]
    clean = pairs(one_each, shared, **MUCH, **rules, region_target=target).batch(range(20), generators())
    hidden = (clean.features == 0).all(-1) & clean.region_mask
    hidden[:, 0] = False
    assert hidden.any()
    rows = {key: mask[1:][real[1:]].numpy() for (key,), mask, real in zip(one_each.images, hidden, clean.region_mask)}
    other = Sources(Tampered(shared.detected, rows), shared.given, shared.tokenizer, {})
    batch = pairs(one_each, other, **MUCH, **rules, region_target=target).batch(range(20), generators())
    assert all(torch.equal(value, tensors(batch)[name]) for name, value in tensors(clean).items() if name != "contents")
    assert torch.equal(clean.contents, batch.contents) == (target == "classes")


def test_only_the_improved_masks_hide_overlapping_regions(shared, frame):
    both = (pairs(frame, shared, **MUCH, overlap=overlap, mismatched=0) for overlap in (.4, None))
    improved, original = (examples.batch(range(32), generators()) for examples in both)
    assert torch.equal(improved.regions, original.regions)
    gone, chosen = (((batch.features == 0).all(-1) & batch.region_mask)[:, 1:] for batch in (improved, original))
    assert not (chosen & ~original.regions[:, 1:]).any()
    places = improved.spatials[:, 1:, :4].numpy()
    near = torch.tensor(np.stack([(iou(each, each[mask]) > .4).any(1) for each, mask in zip(places, chosen.numpy())]))
    assert (near & ~chosen).any()
    assert torch.equal(gone, near | chosen)


def test_the_global_row_and_padding_are_never_asked(shared, frame):
    for rules in (dict(), ORIGINAL):
        batch = pairs(frame, shared, words=1, regions=1, mismatched=0, **rules).batch(range(32), generators())
        assert not batch.regions[:, 0].any()
        assert torch.equal(batch.regions[:, 1:], batch.region_mask[:, 1:])
        assert ((batch.words >= 0) <= batch.text_mask).all()
        assert (batch.words[:, 0] == -1).all() and (batch.tokens[:, 0] == TOKENIZER.first).all()
        plain = pairs(frame, shared, words=0, regions=0, mismatched=0).batch(range(32))
        assert torch.equal(batch.spatials, plain.spatials)
        assert (plain.words == -1).all() and not plain.regions.any()


# --- captions

def test_other_captions_differ(frame, shared):
    texts = dict(pd.Series(frame.text.tolist()).groupby([key for (key,) in frame.images]).agg(set))
    examples, seen = pairs(frame, shared, words=0, regions=0), []
    for seed in range(20):
        batch = examples.batch(range(32), generators(seed))
        for row, (tokens, mask, wrong) in enumerate(zip(batch.tokens, batch.text_mask, batch.mismatched)):
            text = " ".join(TOKENIZER.pieces[i] for i in tokens[mask][1:-1])
            (key,) = frame.images.iloc[row]
            assert text == frame.text.iloc[row] if not wrong else text not in texts[key]
        seen += batch.mismatched.tolist()
    assert abs(np.mean(seen) - .5) < .08


def test_captions_that_read_alike_are_no_mismatch(shared):
    frame = pd.DataFrame(dict(uid=list("abc"), images=[(key,) for key in toy.KEYS[:3]],
                              text=["the red ball", "The RED ball", "a red ball"]))
    examples = pairs(frame, shared, words=0, regions=0, mismatched=1)
    lengths = examples.batch([0, 1, 2], generators()).text_mask.sum(1).tolist()
    assert lengths[:2] == [5, 5] and TOKENIZER(["a red ball"], 9)[0][1] == TOKENIZER.unknown
    assert examples.captions.texts == [0, 0, 1]
    assert examples.batch([0, 1], generators()).tokens[:, 1].tolist() == [TOKENIZER.unknown] * 2
    same = pairs(frame[:2], shared, mismatched=1)
    assert same.batch([0, 1], generators()).mismatched.tolist() == [0, 0]
    assert Captions(["a"], [np.array([1])]).draw(0, generator(), 1) == 0


def test_masks_of_mismatched_pairs(shared, frame):
    both = (pairs(frame, shared, **MUCH, mismatched_masks=on) for on in (False, True))
    improved, original = (examples.batch(range(32), generators()) for examples in both)
    wrong = improved.mismatched == 1
    assert wrong.any() and not wrong.all()
    assert torch.equal(improved.tokens, original.tokens) and torch.equal(improved.features, original.features)
    assert (improved.words[wrong] == -1).all() and not improved.regions[wrong].any()
    assert (original.words[wrong] >= 0).any() and original.regions[wrong].any()
    assert (improved.tokens[wrong] == TOKENIZER.mask).any()
    assert torch.equal(improved.words[~wrong], original.words[~wrong])
    assert torch.equal(improved.regions[~wrong], original.regions[~wrong])


# --- contents

def test_contents(shared, frame):
    batch = pairs(frame, shared).batch(range(32))
    real = batch.region_mask.clone()
    real[:, 0] = False
    assert batch.contents.dtype == torch.float32
    torch.testing.assert_close(batch.contents.sum(-1), real.float(), atol=1e-6, rtol=0)
    (key,) = frame.images.iloc[3]
    stored = torch.tensor(shared.detected[key].class_probs.astype("float32"))
    torch.testing.assert_close(batch.contents[3, real[3]], stored, atol=1e-3, rtol=0)
    features = pairs(frame, shared, region_target="features").batch(range(32))
    unmasked = pairs(frame, shared, region_target="features", regions=0).batch(range(32))
    assert torch.equal(features.contents, unmasked.contents)
    assert torch.equal(unmasked.contents[:, 1:], unmasked.features[:, 1:])


def test_a_store_without_classes(tmp_path, frame):
    bare = toy.sources(tmp_path)
    with pytest.raises(ValueError, match='no class probabilities.*choose region_target="features"'):
        CaptionPairs(frame, bare)
    assert CaptionPairs(frame, bare, Masking(region_target="features")).batch([0, 1]).contents.shape[-1] == 8
    with pytest.raises(KeyError, match="no regions of image 'coco:99'"):
        CaptionPairs(frame.assign(images=[("coco:99",)] * 32), bare, Masking(region_target="features")).batch([0])


def test_settings_are_checked():
    with pytest.raises(ValueError, match="region_target is 'pixels', not one of classes"): Masking(region_target="pixels")
    with pytest.raises(ValueError, match="mismatched is 1.5, not a number from 0 to 1"): Masking(mismatched=1.5)


# --- negatives

@tries(50)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 1000))
def test_negatives(sizes, seed):
    rng, counts = generator(seed), np.array(sizes)
    places = np.arange(max(sizes) + 1)
    real = (places > 0) & (places <= counts[:, None])
    asked = real & (rng.random(real.shape) < .5)
    rows = negative_rows(asked, real, 10, rng)
    image, own = np.nonzero(asked)[0], np.flatnonzero(asked)
    assert rows.shape == (asked.sum(), 10 if real.sum() > 1 else 0)
    if rows.size == 0: return
    assert real.flatten()[rows].all() and (rows != own[:, None]).all()
    inside = (rows // len(places) == image[:, None]).sum(1)
    expected = np.where(len(sizes) == 1, 10, np.where(counts[image] == 1, 0, 3))
    assert (inside == expected).all()


def test_published_numbers_of_negatives():
    real = np.ones((3, 7), bool)
    real[:, 0] = False
    rows = negative_rows(real, real, Masking().negatives, generator())
    own = np.nonzero(real)[0][:, None]
    assert ((rows // 7 == own).sum(1) == 38).all() and ((rows // 7 != own).sum(1) == 89).all()
    assert len(np.unique(rows)) == real.sum()


def test_negatives_of_a_batch(shared, frame):
    examples = pairs(frame, shared, **MUCH, region_target="contrast")
    batch = examples.batch(range(32), generators())
    assert batch.negatives.shape == (batch.regions.sum(), 127) and batch.negatives.dtype == torch.int64
    real = batch.region_mask.clone()
    real[:, 0] = False
    assert real.flatten()[batch.negatives].all()
    assert torch.equal(examples.batch(range(8)).negatives, examples.batch(range(8)).negatives)
    for row in range(32): assert examples.batch([row]).negatives.shape[0] == examples.batch([row]).regions.sum()


# --- batches

def test_validation_does_not_depend_on_the_batch(shared, frame):
    examples = pairs(frame, shared, **MUCH)
    whole, part = examples.batch(np.arange(32)), examples.batch(np.array([30, 4, 17]))
    for name, value in tensors(part).items():
        among = tensors(whole)[name][[30, 4, 17]]
        if value.ndim > 1: among = among[:, :value.shape[1]]
        torch.testing.assert_close(value, among, msg=name)


def test_seeds(shared, frame):
    examples = pairs(frame, shared, **MUCH, region_target="contrast")
    one, same, other = (tensors(TrainingBatches(examples, 16, seed)[5]) for seed in (0, 0, 1))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["features"][:, :2], other["features"][:, :2])
    first, second = (tensors(examples.batch(range(16), generators(seed))) for seed in (0, 1))
    for name in ("tokens", "regions", "mismatched"): assert not torch.equal(first[name], second[name])


def model(target="classes"):
    torch.manual_seed(0)
    sizes = dict(vocab_size=len(toy.WORDS), feature_dim=8, text_layers=2, image_layers=1)
    config = ViLBERTConfig.miniature(**sizes, text_connections=(1,), image_connections=(0,), dropout=0.)
    return Pretraining(config, classes=6, region_target=target)


@pytest.mark.parametrize("target", ["classes", "features", "contrast"])
@pytest.mark.parametrize("share", [0, .4])
def test_losses_and_gradients_are_finite(shared, frame, target, share):
    batch = pairs(frame, shared, words=share, regions=share, region_target=target).batch(range(16), generators())
    net = model(target)
    net.loss(net(batch), batch).backward()
    losses = net.losses(net(batch), batch)
    assert all(loss.isfinite() for loss in losses.values())
    assert (losses["words"] > 0) == (losses["regions"] > 0) == (share > 0)
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in net.parameters())


# --- scores and training

def test_scores_do_not_depend_on_batches(shared, frame):
    examples, net = pairs(frame, shared, **MUCH), model()
    whole, pieces = (pd.DataFrame(pretraining_scores(net, examples, toy.CPU, size)) for size in (256, 5))
    pd.testing.assert_frame_equal(whole, pieces, atol=1e-5)
    batch = examples.batch(range(32))
    logits = net.eval()(batch)
    asked = batch.words[batch.words >= 0]
    assert whole.loc["asked"].tolist() == [len(asked), batch.regions.sum(), 32]
    assert whole.words.right == pytest.approx((logits.words.argmax(1) == asked).double().mean().item())
    classes = batch.contents[batch.regions].argmax(1)
    assert whole.regions.right == pytest.approx((logits.regions.argmax(1) == classes).double().mean().item())
    for part, loss in net.losses(logits, batch).items(): assert whole[part].loss == pytest.approx(loss.item(), rel=1e-5)


def test_scores_without_classes_or_questions(shared, frame):
    features = pretraining_scores(model("features"), pairs(frame, shared, region_target="features"), toy.CPU)
    assert set(features["regions"]) == {"asked", "loss"} and set(features["words"]) == {"asked", "loss", "right"}
    silent = pretraining_scores(model(), pairs(frame, shared, words=0, regions=0), toy.CPU)
    assert silent["words"] == silent["regions"] == dict(asked=0, loss=0, right=0)


def test_training_lowers_all_losses(shared, frame, tmp_path):
    torch.set_num_threads(1)
    train, val, net = pairs(frame[:28], shared), pairs(frame[28:], shared), model()
    before = pretraining_scores(net, train, toy.CPU)
    feeds = {"pretraining": Feed(TrainingBatches(train, 7), val, every=len(train) // 7 + 1)}
    config = TrainingConfig(80, 6e-4, 3e-3)
    history = Trainer(net, feeds, RoundRobin(feeds), config, tmp_path, machine=toy.CPU).run()
    after = pretraining_scores(net, train, toy.CPU)
    assert history.loss.iloc[-1] < .9 * history.loss.iloc[0]
    for part in before: assert after[part]["loss"] < before[part]["loss"], part
