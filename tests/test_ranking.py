"""Retrieval at full size: pairs in tiles are the pairs one by one, nothing is done twice, and no pool is larger than it has to be."""
import numpy as np
import pandas as pd
import pytest
import torch
from test_scoring import split
from toy import CPU, KEYS, WORDS, sources
from vl12in1.evaluation import measure
from vl12in1.evaluation.metrics import caption_metrics, retrieval_folds
from vl12in1.evaluation.predict import all_metrics, predict
from vl12in1.examples.batches import Examples
from vl12in1.model import TwelveInOne, ViLBERTConfig, heads
from vl12in1.model.heads import MatchHead

TASK, IMAGES, CAPTIONS = "coco_retrieval", 6, 24


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return sources(tmp_path_factory.mktemp("toy"))


def build(**options):
    torch.manual_seed(3)
    sizes = dict(vocab_size=len(WORDS), feature_dim=8, dropout=0.)
    return TwelveInOne(ViLBERTConfig.miniature(**sizes | options), {"vqa": 2, "gqa": 2}).eval()


@pytest.fixture(scope="module")
def examples(shared):
    "24 captions of one to four words, of six images; in the order of the frame, neighbours have different images."
    frame = split(TASK, shared)
    return Examples(TASK, frame.assign(text=[" ".join(text.split()[:1 + i % 4]) for i, text in enumerate(frame.text)]), shared)


@torch.inference_mode()
def one_by_one(model, examples):
    return np.array([[model(examples.pairs([row], [key])).item() for key in KEYS[:IMAGES]] for row in range(CAPTIONS)])


def matrix(predictions): return np.stack(predictions.scores)


@pytest.mark.parametrize("options", [dict(), dict(co_heads=1), dict(text_connections=(), image_connections=())])
@pytest.mark.parametrize("size", [1, 7, 512])
def test_tiles_are_pairs_one_by_one(examples, options, size):
    "In every way that attention can go, and of an encoder in which texts and images never meet."
    model = build(**options)
    np.testing.assert_allclose(matrix(predict(model, examples, CPU, size)), one_by_one(model, examples), rtol=1e-5, atol=1e-5)


def test_what_comes_before_the_meeting_is_computed_once(examples, monkeypatch):
    model, alone = build(), []
    monkeypatch.setattr(model.encoder, "alone", lambda batch, stream: alone.append((stream, len(batch.tokens), len(batch.features)))
                        or type(model.encoder).alone(model.encoder, batch, stream))
    predict(model, examples, CPU, batch_size=8)
    assert sum(texts for stream, texts, _ in alone if stream == "text") == CAPTIONS
    assert sum(images for stream, _, images in alone if stream == "image") == IMAGES


@pytest.mark.parametrize("size", [1, 2, 7, 8, 30])
def test_no_tile_is_larger_than_asked_for(examples, monkeypatch, size):
    model, tiles = build(), []
    monkeypatch.setattr(model.encoder, "together", lambda texts, images: tiles.append(
        len(texts.layout.lengths) * len(images.layout.lengths)) or type(model.encoder).together(model.encoder, texts, images))
    predict(model, examples, CPU, size)
    assert max(tiles) <= size and sum(tiles) == CAPTIONS * IMAGES


def test_what_is_kept_does_not_grow_with_the_pool(examples, monkeypatch):
    model = build()
    expected = matrix(predict(model, examples, CPU))
    monkeypatch.setattr(heads, "BLOCK", 4)
    kept = [sum(len(batch.features) for batch in crossing.images) for _, crossing in MatchHead.questions(examples, 8)]
    assert kept == [4, 2]
    np.testing.assert_allclose(matrix(predict(model, examples, CPU)), expected, rtol=1e-5, atol=1e-5)


def test_scores_are_one_array_in_single_precision(examples):
    scores = predict(build(), examples, CPU).scores
    assert {row.dtype.name for row in scores} == {"float32"} and len({id(row.base) for row in scores}) == 1


@pytest.mark.parametrize("dtype, worst", [(torch.bfloat16, .15), (torch.float16, .02)])
def test_a_model_in_half_precision_ranks(examples, dtype, worst):
    expected, halves = matrix(predict(build(), examples, CPU)), matrix(predict(build().to(dtype), examples, CPU))
    assert halves.dtype == np.float32
    np.testing.assert_allclose(halves, expected, rtol=0, atol=worst)


def test_how_far_it_is_can_be_seen(examples, monkeypatch):
    "By whoever waits for more than some seconds."
    shown = []
    def bar(batches, desc, delay, **options): return shown.append((len(batches), desc, delay)) or batches
    monkeypatch.setattr(heads, "tqdm", bar)
    predict(build(), examples, CPU, batch_size=50)
    assert shown == [(3, TASK, 5)]


# --- pools

def test_captions_look_in_their_own_pool(shared, examples):
    model = build()
    whole, halves = (predict(model, examples, CPU, pool=pool) for pool in (None, 3))
    assert halves.uid.tolist() == whole.uid.tolist() == examples.frame.uid.tolist()
    own = [KEYS.index(key) for (key,) in examples.frame.images]
    for place, scores, all_scores, ranking in zip(own, halves.scores, whole.scores, halves.prediction):
        first = place // 3 * 3
        np.testing.assert_allclose(scores, all_scores[first:first + 3], rtol=1e-5, atol=1e-5)
        assert set(ranking) == set(KEYS[first:first + 3])
    assert halves.score.tolist() == [float(ranking[0] == KEYS[place]) for place, ranking in zip(own, halves.prediction)]


@pytest.mark.parametrize("pool", [None, 1000, 6, 4])
def test_what_makes_no_several_pools_is_one(examples, pool):
    assert [rows.tolist() for rows in MatchHead.pools(examples, pool)] == [list(range(CAPTIONS))]


def test_metrics_of_pools_are_those_of_folds(examples):
    predictions = predict(build(), examples, CPU, pool=3)
    metrics = all_metrics(TASK, examples.frame, predictions)
    own = pd.factorize(examples.frame.images.str[0])[0]
    apart = matrix(predict(build(), examples, CPU, pool=None))
    folds = retrieval_folds(apart, own, 3)
    assert next(iter(metrics)) == "0.003K image retrieval R@1" and (metrics["examples"], metrics["images"]) == (CAPTIONS, IMAGES)
    assert metrics["0.003K image retrieval R@1"] == pytest.approx(predictions.score.mean(), abs=1e-6)
    assert {name.removeprefix("0.003K "): value for name, value in metrics.items() if "retrieval" in name} == pytest.approx(
        {name: value for name, value in folds.items() if "retrieval" in name}, abs=1e-6)


def test_a_thousand_images_are_called_so():
    frame = pd.DataFrame(dict(uid=range(2000), images=[(f"coco:{i}",) for i in range(2000)]))
    metrics = caption_metrics(frame, list(np.tile(np.eye(1000, dtype="float32"), (2, 1))))
    assert (metrics["1K image retrieval R@1"], metrics["1K text retrieval R@1"], metrics["images"]) == (1, 1, 2000)
    assert "image retrieval R@1" not in metrics


def test_scores_of_neither_a_pool_nor_all_are_refused():
    with pytest.raises(ValueError, match="6 images cannot be divided into folds of 4"): retrieval_folds(np.zeros((6, 4)), np.arange(6), 4)
    with pytest.raises(ValueError, match="scores of shape"): retrieval_folds(np.zeros((6, 4)), np.arange(6), 3)


def test_the_profile_says_how_large_pools_are(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(measure, "predict", lambda model, examples, machine, pool: asked.append(pool) or predict(model, examples, machine))
    from vl12in1.toy import toy_study
    from vl12in1.training.trainer import build_model
    build_model(toy_study(tmp_path), "tiny").save_pretrained(tmp_path / "runs/new/models/all/seed0")
    entry = dict(init="scratch", kind="multi", seeds="side")
    study = dict(runs=dict(new=entry), followers={}, seeds=dict(side=[0]), training=dict(multi={}), retrieval=dict(pool=77))
    measure.measure_run("new", study, tmp_path)
    assert set(asked) == {77}
