"From a model to numbers: one pass, and every way round to the same score."
import numpy as np
import pandas as pd
import pytest
import torch
from toy import CPU, KEYS, WORDS, sources
from vl12in1.model import Batch, TwelveInOne, ViLBERTConfig
from vl12in1.model.interface import written_out
from vl12in1.tasks import TASKS
from vl12in1.examples.batches import Examples
from vl12in1.evaluation.metrics import official
from vl12in1.evaluation.predict import all_metrics, labelled, predict
from vl12in1.evaluation.submissions import read_submission, write_submission

N = 24
HERE = [task for task in TASKS if task != "flickr30k_retrieval"]  # the toy has COCO's photographs only


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return sources(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return TwelveInOne(ViLBERTConfig.miniature(vocab_size=len(WORDS), feature_dim=8), {"vqa": 2, "gqa": 2})


def split(task, shared):
    "A test split with the columns that the readers promise."
    rng, head = np.random.default_rng(5), TASKS[task].head
    keys = [KEYS[i % 6] for i in range(N)]
    frame = pd.DataFrame(dict(uid=[str(100 + i) for i in range(N)], images=[(key,) for key in keys],
                              text=[" ".join(rng.choice(WORDS[5:], size=4)) for _ in range(N)]))
    boxes = [shared.detected[key].boxes.astype(float) / 100 for key in keys]
    if head == "answer":
        people = 10 if TASKS[task].metric == "VQA accuracy" else 1
        return frame.assign(answers=[tuple(rng.choice(["yes", "no", "Yes."], people)) for _ in keys])
    if head == "pair":
        return frame.assign(uid=[f"test1-{i // 8}-{i % 4}-{i // 4 % 2}" for i in range(N)], label=rng.integers(0, 2, N),
                            images=[(key, KEYS[7]) for key in keys])
    if head == "entail": return frame.assign(label=rng.integers(0, 3, N))
    if head == "match": return frame
    if TASKS[task].metric == "choice accuracy":
        return frame.assign(candidates=[tuple(map(tuple, b[:4])) for b in boxes], label=rng.integers(0, 4, N),
                            candidate_ids=[tuple(range(10 * i, 10 * i + 4)) for i in range(N)])
    return frame.assign(box=[tuple(b[rng.integers(5)]) for b in boxes], ref_id=range(N), size=[(100, 100)] * N,
                        part=["testA", "testB"] * (N // 2))


def metric_of(frame, read, task):
    "The table's metric, from a file that was read back."
    if TASKS[task].head == "match": return np.mean([said[0] == key for said, (key,) in zip(read.prediction, frame.images)])
    return official(task, frame, read.prediction.tolist())["accuracy"]


@pytest.mark.parametrize("task", HERE)
def test_model_file_checker_and_metric_agree(task, shared, model, tmp_path):
    frame = split(task, shared)
    said = predict(model, Examples(task, frame, shared), CPU, batch_size=7)
    read = read_submission(task, frame, write_submission(task, frame, said, tmp_path))
    assert 0 < said.score.mean() < 1, "a score that any mistake would leave as it is"
    assert metric_of(frame, read, task) == pytest.approx(said.score.mean(), abs=1e-9)
    name, first = next(iter(all_metrics(task, frame, said).items()))
    assert first == round(said.score.mean(), 6) and name in ("accuracy", "image retrieval R@1")


@pytest.mark.parametrize("task", HERE)
def test_the_size_of_a_batch_changes_no_prediction(task, shared, model):
    examples = Examples(task, split(task, shared), shared)
    small, large = (predict(model, examples, CPU, batch_size=size) for size in (5, 64))
    pd.testing.assert_frame_equal(small[["uid", "prediction", "score"]], large[["uid", "prediction", "score"]])


@pytest.mark.parametrize("task", ["vqa", "refcoco", "visual7w", "nlvr2"])
def test_one_forward_pass(task, shared, model):
    passes = []
    hook = model.encoder.register_forward_hook(lambda module, inputs, outputs: passes.append(1))
    try: predict(model, Examples(task, split(task, shared), shared), CPU, batch_size=10)
    finally: hook.remove()
    assert len(passes) == 3


@pytest.mark.parametrize("task", ["vqa", "gqa", "vg_qa"])
def test_unanswered_questions_are_predicted_and_not_scored(task, shared, model):
    frame = split(task, shared)
    known = predict(model, Examples(task, frame, shared), CPU)
    hidden = frame.assign(answers=[() if i % 3 else answers for i, answers in enumerate(frame.answers)])
    said = predict(model, Examples(task, hidden, shared), CPU)
    assert said.prediction.tolist() == known.prediction.tolist()
    assert said.score.notna().tolist() == [i % 3 == 0 for i in range(N)]
    assert all_metrics(task, hidden, said) == all_metrics(task, labelled(hidden), known[::3].reset_index(drop=True))
    assert all_metrics(task, frame.assign(answers=[()] * N), said.assign(score=np.nan)) == {}


def test_the_ceiling_counts_what_the_model_could_choose(shared, model):
    frame = split("refcoco", shared)
    frame.at[0, "box"], frame.at[1, "box"] = (.97, .97, 1., 1.), (0., 0., 1., .9)  # a corner; nearly the whole picture
    said = predict(model, Examples("refcoco", frame, shared), CPU, batch_size=9)
    assert {len(regions) for regions in said.regions} == {6}
    metrics = all_metrics("refcoco", frame, said)
    assert metrics["oracle recall"] == round((N - 1) / N, 6) and metrics["oracle recall, part: testB"] == 1
    assert metrics["accuracy"] <= metrics["oracle recall"]


def test_candidates_are_told_from_regions(shared, model):
    assert set(predict(model, Examples("guesswhat", split("guesswhat", shared), shared), CPU).prediction) <= {0, 1, 2, 3}


def test_a_ranking_is_the_order_of_the_scores(shared, model):
    frame = split("coco_retrieval", shared)
    said = predict(model, Examples("coco_retrieval", frame, shared), CPU)
    for ranking, scores in zip(said.prediction, said.scores):
        assert list(ranking) == sorted(KEYS[:6], key=lambda key: -scores[KEYS.index(key)])


def test_both_scorers_are_reported():
    frame = pd.DataFrame(dict(uid=["1", "2"], answers=[("two",) * 9 + ("2",), ("no",) * 10]))
    metrics = all_metrics("vqa", frame, pd.DataFrame(dict(uid=["1", "2"], prediction=["2", "no"], score=[1., 1.])))
    assert (metrics["accuracy"], metrics["accuracy (scorer of 2017)"], metrics["scorers disagree: 2021 / 2017"]) == (1, .65, .5)


@pytest.mark.parametrize("images, protocol", [(2000, True), (1000, False), (1500, False)])
def test_the_1k_protocol_needs_several_thousand_images(images, protocol):
    scores = list(np.random.default_rng(0).normal(size=(images, images)) + 3 * np.eye(images))
    frame = pd.DataFrame(dict(uid=[str(i) for i in range(images)], images=[(f"coco:{i}",) for i in range(images)]))
    metrics = all_metrics("coco_retrieval", frame, pd.DataFrame(dict(uid=frame.uid, prediction=frame["images"], score=1., scores=scores)))
    assert ("1K image retrieval R@1" in metrics) == protocol
    if protocol: assert metrics["1K image retrieval R@1"] > metrics["image retrieval R@1"]


@pytest.mark.parametrize("batch_size", [1, 5, 64, 512])
def test_late_pairing_scores_as_pair_by_pair(shared, model, batch_size):
    frame = split("coco_retrieval", shared)
    frame["text"] = [" ".join(text.split()[:1 + i % 4]) for i, text in enumerate(frame.text)]  # of several lengths
    examples = Examples("coco_retrieval", frame, shared)
    predictions, keys = predict(model.eval(), examples, CPU, batch_size), KEYS[:6]
    with torch.inference_mode():
        alone = [[model(examples.pairs([row], [key])).item() for key in keys] for row in range(N)]
    np.testing.assert_allclose(np.stack(predictions.scores), alone, rtol=1e-4, atol=1e-5)
    best = [keys[row.argmax()] for row in np.stack(predictions.scores)]
    assert [ranking[0] for ranking in predictions.prediction] == best
    own = [key for (key,) in frame.images]
    assert predictions.score.tolist() == [float(first == key) for first, key in zip(best, own)]


@pytest.mark.parametrize("connections", [dict(), dict(text_connections=(), image_connections=())])
def test_a_crossed_batch_is_its_pairs_written_out(connections):
    encoder = ViLBERTConfig.miniature(dropout=0., **connections).encoder().eval()
    batch = Batch("coco_retrieval", torch.randint(1, 1000, (3, 6)), torch.tensor([6, 2, 4]), torch.randn(5, 4, 64), torch.rand(5, 4, 5),
                  torch.tensor([3, 4, 2, 1, 4]))
    with torch.inference_mode():
        crossed = encoder.together(encoder.alone(batch, "text"), encoder.alone(batch, "image"))
        pairs = encoder(written_out(batch, batch)).pooled
    torch.testing.assert_close(crossed, pairs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(pairs[:5], pairs[5:10], atol=1e-3)  # pairs of another text are others


def test_other_peoples_words_are_refused(shared, model):
    from dataclasses import replace
    from vl12in1.examples.text import AnswerVocabulary, Tokenizer
    from vl12in1.model.saving import Assets
    frame = split("vqa", shared)
    turned = replace(shared, vocabularies={"vqa": AnswerVocabulary(["no", "yes"]), "gqa": shared.vocabularies["gqa"]})
    swapped = replace(shared, tokenizer=Tokenizer(WORDS[:5] + WORDS[:4:-1]))
    model.assets = Assets(pieces=tuple(WORDS), answers={"vqa": ("yes", "no"), "gqa": ("yes", "no")})
    try:
        assert len(predict(model, Examples("vqa", frame, shared), CPU)) == N
        for other, what in ((turned, "answers 'vqa'"), (swapped, "word pieces")):
            with pytest.raises(ValueError, match=what): predict(model, Examples("vqa", frame, other), CPU)
    finally: model.assets = Assets()
