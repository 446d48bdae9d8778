"""Captioning: no word knows a later one, what is remembered need not be computed again, and what is written has its price."""
import math
import re
from collections import Counter
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

import toy
from vl12in1.command import main
from vl12in1.evaluation.contract import check_task
from vl12in1.evaluation.descriptions import bleu, cider_d, clipped, common, description_metrics, rouge_l, words_of
from vl12in1.evaluation.predict import all_metrics, predict
from vl12in1.evaluation.submissions import read_items, write_items
from vl12in1.examples.batches import Examples
from vl12in1.model import PRESETS, Batch, TwelveInOne, Written
from vl12in1.model.heads import with_tasks
from vl12in1.model.interface import NEXT_WORDS, Writing
from vl12in1.model.saving import Assets
from vl12in1.predictor import Caption, Predictor
from vl12in1.study.captioning import CAPTION_ROWS, captioning_table, readable_captions
from vl12in1.study.results import Results, invent_run
from vl12in1.tasks import ASKABLE, TASKS
from vl12in1.training.evaluation import head_scores

ENCODERS = ["miniature", "tiny", *(f"{name}_tiny" for name in ("lxmert", "uniter", "visualbert", "vl-bert")), "uniter_miniature"]
TASK = "coco_captioning"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def made(preset, tokens=((TASK,),), seed=0, **sizes):
    torch.manual_seed(seed)
    return TwelveInOne(PRESETS[preset](**dict(vocab_size=30, feature_dim=8, task_tokens=tokens) | sizes), {}, [TASK]).eval()


def batch_of(lengths=(7, 2, 5), regions=(4, 5, 2), seed=0):
    random, count = torch.Generator().manual_seed(seed), len(lengths)
    tokens = torch.randint(5, 30, (count, max(lengths)), generator=random)
    features, places = torch.randn(count, max(regions), 8, generator=random), torch.rand(count, max(regions), 5, generator=random)
    return Batch(TASK, tokens, torch.tensor(lengths), features, places, torch.tensor(regions))


@pytest.mark.parametrize("tokens", [(), ((TASK,),)])
@pytest.mark.parametrize("preset", ENCODERS)
def test_no_word_knows_a_later_one(preset, tokens):
    model, batch = made(preset, tokens), batch_of()
    with torch.no_grad():
        before = model(batch)
        for place in range(1, 7):
            other = batch.tokens.clone()
            other[0, place] = 5 + (other[0, place] - 4) % 25
            changed = (model(replace(batch, tokens=other)) != before).any(1)
            assert changed.tolist() == [number >= place for number in range(6)] + [False] * (len(before) - 6)


@pytest.mark.parametrize("preset", ENCODERS)
def test_a_caption_is_told_alone_as_in_a_batch(preset):
    model, batch = made(preset), batch_of()
    with torch.no_grad():
        together, firsts = model(batch), np.cumsum([0, 6, 1, 4])
        for row, (length, regions) in enumerate(zip(batch.text_lengths, batch.region_counts)):
            one = Batch(TASK, batch.tokens[row:row + 1, :length], batch.text_lengths[row:row + 1], batch.features[row:row + 1, :regions],
                        batch.spatials[row:row + 1, :regions], batch.region_counts[row:row + 1])
            torch.testing.assert_close(model(one), together[firsts[row]:firsts[row + 1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [[1] * 6, [3, 1, 2], [6]])
@pytest.mark.parametrize("tokens", [(), ((TASK,),)])
@pytest.mark.parametrize("preset", [*ENCODERS, "mixed"])
def test_what_is_remembered_is_what_would_be_computed_again(preset, tokens, steps):
    model = made("vl-bert_tiny", tokens, batching="mixed") if preset == "mixed" else made(preset, tokens)
    batch, said = batch_of((6, 6, 6)), []
    with torch.no_grad():
        memory = model.encoder.begin(model.encoder.prepared(batch), 6)
        texts = torch.stack([batch.tokens, batch.tokens.flip(1)], 1)
        for first, count in zip(np.cumsum([0, *steps]), steps): said.append(model.encoder.go_on(memory, texts[..., first:first + count]))
        for text in range(2):
            whole = model.encode(replace(batch, tokens=texts[:, text]), NEXT_WORDS).text
            torch.testing.assert_close(torch.cat(said, 2)[:, text], whole, rtol=0, atol=1e-5)


def recomputed(model, batch, wanted):
    "Texts about each picture and their mean log-probabilities, by beam search that reads everything again, one text at a time."
    found = []
    for row in range(len(batch.tokens)):
        image = (batch.features[row:row + 1], batch.spatials[row:row + 1], batch.region_counts[row:row + 1])
        beams = [((), 0.)]
        for _ in range(wanted.length - 1):
            following = [(said, total) for said, total in beams if said[-1:] == (wanted.last,)]
            for said, total in [beam for beam in beams if beam not in following]:
                tokens = torch.tensor([[batch.tokens[row, 0], *said, 5]])
                logits = model(Batch(TASK, tokens, torch.tensor([tokens.shape[1]]), *image))[-1]
                logits[list(wanted.never)] = -torch.inf
                following += [((*said, piece), total + step) for piece, step in enumerate(logits.log_softmax(0).tolist())]
            beams = sorted(following, key=lambda beam: -beam[1] / len(beam[0]))[:wanted.beams]
        found.append([(list(said), total / len(said)) for said, total in beams])
    return found


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("preset", ["miniature", "uniter_tiny", "lxmert_tiny"])
def test_a_search_finds_what_one_without_memory_finds(preset, beams):
    model, batch = made(preset, initializer_range=.3), batch_of((2, 2, 2))
    wanted = Writing(batch, last=3, never=(0, 1, 2, 4), length=7, beams=beams)
    with torch.no_grad(): written, right = model(wanted), recomputed(model, batch, wanted)
    for pieces, scores, texts in zip(written.pieces.tolist(), written.scores.tolist(), right):
        for own, score, (said, mean) in zip(pieces, scores, texts):
            assert own[:len(said)] == said and set(own[len(said):]) <= {3}
            assert score == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("nucleus", [.3, .9, 1.])
def test_what_is_drawn_is_of_the_nucleus_and_in_proportion(nucleus):
    model, batch = made("tiny", initializer_range=.5), batch_of((2,), (3,))
    with torch.no_grad():
        logits = model(batch)[-1]
        logits[[0, 1, 2, 4]] = -torch.inf
        chances, order = logits.softmax(0).sort(descending=True)
        kept = chances * (chances.cumsum(0) - chances < nucleus)
        drawn = Counter(model(Writing(batch, 3, (0, 1, 2, 4), 2, 2000, nucleus)).pieces[0, :, 0].tolist())
    expected = dict(zip(order.tolist(), (kept / kept.sum()).tolist()))
    assert all(expected[piece] > 0 for piece in drawn)
    assert all(abs(drawn[piece] / 2000 - chance) < .05 for piece, chance in expected.items())


def test_a_seed_decides_what_is_drawn_whoever_else_is_in_the_batch():
    model, batch = made("tiny", initializer_range=.5), batch_of((2, 2), (4, 3))
    alone = Batch(TASK, batch.tokens[:1], batch.text_lengths[:1], batch.features[:1], batch.spatials[:1], batch.region_counts[:1])
    def said(pictures, seed): return model(Writing(pictures, 3, (0, 1, 2, 4), 8, 2, .9, seed)).pieces[0].tolist()
    with torch.no_grad():
        assert said(batch, 1) == said(batch, 1) != said(batch, 2)
        shorter = min(len(text) for text in said(alone, 1))
        assert [text[:shorter] for text in said(batch, 1)] == [text[:shorter] for text in said(alone, 1)]


def test_a_vocabulary_with_fewer_words_than_beams_leaves_out_what_cannot_be_said():
    model = made("tiny", vocab_size=6)
    written = model(Writing(replace(batch_of((2,), (3,)), tokens=torch.tensor([[2, 3]])), 3, (0, 1, 2, 4), 3, beams=5))
    assert isinstance(written, Written) and (written.scores > -1e6).sum() == 3 and written.scores.isfinite().all()


# --- a task among others

def shown():
    "Three splits of pictures with two captions each."
    rows = [dict(uid=f"{key}#{place}", images=(key,), text=f"the {('red', 'blue')[number % 2]} ball")
            for number, key in enumerate(toy.KEYS) for place in range(2)]
    frame = pd.DataFrame(rows).sample(frac=1, random_state=0, ignore_index=True)
    part = frame["images"].str[0].map({key: number // 7 for number, key in enumerate(toy.KEYS)})
    return {split: frame[part == number].reset_index(drop=True) for number, split in enumerate(("train", "val", "test"))}


def test_captioning_keeps_the_contract(tmp_path):
    shared = toy.sources(tmp_path)
    check_task(TASK, shown(), shared)


def test_a_test_shows_every_picture_once_and_scores_what_is_written(tmp_path):
    shared = toy.sources(tmp_path)
    frame = shown()["test"]
    examples = Examples(TASK, frame, shared)
    tested = Examples(TASK, examples.head.tested(frame), shared)
    assert len(tested) == frame["images"].nunique() and all(len(own) == 2 for own in tested.frame.captions)
    torch.manual_seed(0)
    model = TwelveInOne(PRESETS["tiny"](vocab_size=len(toy.WORDS), feature_dim=8), {}, [TASK])
    accuracy = head_scores(model, examples, toy.CPU)
    assert accuracy.shape == (len(frame),) and (0 <= accuracy).all() and (accuracy <= 1).all()
    predictions = predict(model, tested, toy.CPU, batch_size=3)
    assert predictions.uid.tolist() == tested.frame.uid.tolist()
    assert predictions.prediction.map(lambda text: set(text.split()) <= set(toy.WORDS[5:])).all()
    metrics = all_metrics(TASK, tested.frame, predictions)
    assert list(metrics) == ["CIDEr-D / 10", "BLEU-4", "ROUGE-L", "examples"]
    assert metrics["CIDEr-D / 10"] == pytest.approx(predictions.score.mean(), abs=1e-6)
    write_items({TASK: predictions}, tmp_path / "items.csv")
    assert read_items(tmp_path / "items.csv")[TASK].prediction.tolist() == predictions.prediction.tolist()


def test_captions_have_rows_of_their_own_beside_the_twelve():
    assert TASK not in TASKS and all(task.group for task in TASKS.values())


# --- what a caption is worth

GUIDE = [words_of(text) for text in (
    "It is a guide to action that ensures that the military will forever heed Party commands.",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party.",
    "It is the practical guide for the army always to heed the directions of the party.")]


@pytest.mark.parametrize("text, n, right", [
    ("It is a guide to action which ensures that the military always obeys the commands of the party.", 1, (17, 18)),
    ("It is a guide to action which ensures that the military always obeys the commands of the party.", 2, (10, 17)),
    ("It is to insure the troops forever hearing the activity guidebook that party direct.", 1, (8, 14)),
    ("It is to insure the troops forever hearing the activity guidebook that party direct.", 2, (1, 13))])
def test_bleu_counts_as_in_its_paper(text, n, right):
    assert clipped(words_of(text), GUIDE, n) == right


@pytest.mark.parametrize("text, words", [
    ("A man can't; a woman's.", "a man ca n't a woman 's"), ("", ""), ("!?", ""), ("Two-way STOP (sign)", "two-way stop sign"),
    ("“Élan” they’re ok", "élan they 're ok"), ("1,000 at 3.5m.", "1,000 at 3.5m"), ("'quoted'", "quoted"), ("a_b", "a b")])
def test_words_are_cut_as_measures_count_them(text, words):
    assert " ".join(words_of(text)) == words


texts = st.lists(st.sampled_from("abc"), min_size=0, max_size=5).map(tuple)
pictures = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=4)


def vectors(text, captions):
    "tf-idf of a text for every possible run of n words, n = 1 … 4, from the definition."
    for n in range(1, 5):
        runs = list(product("abc", repeat=n))
        count = lambda words, run: sum(words[i:i + n] == run for i in range(len(words) - n + 1))
        idf = [math.log(len(captions) / max(1, sum(any(count(caption, run) for caption in own) for own in captions))) for run in runs]
        yield np.array([count(text, run) for run in runs]) * np.array(idf)


@settings(max_examples=20, deadline=None)
@given(pictures)
def test_cider_is_as_its_definition_says(shown):
    said, captions = [text for text, _ in shown], [own for _, own in shown]
    for text, own, score in zip(said, captions, cider_d(said, captions)):
        total = 0
        for caption in own:
            penalty = math.exp(-(len(text) - len(caption)) ** 2 / 72)
            for one, other in zip(vectors(text, captions), vectors(caption, captions)):
                size = np.linalg.norm(one) * np.linalg.norm(other)
                total += penalty * (np.minimum(one, other) @ other / size if size else 0)
        assert score == pytest.approx(10 * total / 4 / len(own), abs=1e-9) and score <= 10 + 1e-9


@settings(max_examples=100, deadline=None)
@given(texts, texts)
def test_the_longest_common_sequence_is_that_of_all_choices(one, other):
    def choices(text): return {tuple(word for word, kept in zip(text, chosen) if kept) for chosen in product([0, 1], repeat=len(text))}
    assert common(one, other) == max(map(len, choices(one) & choices(other)))


@settings(max_examples=100, deadline=None)
@given(pictures)
def test_measures_stay_between_0_and_1(shown):
    said, captions = [text for text, _ in shown], [own for _, own in shown]
    assert 0 <= bleu(said, captions) <= 1 + 1e-12
    assert all(0 <= rouge_l(*pair) <= 1 + 1e-12 for pair in zip(said, captions))


def test_a_caption_that_a_person_wrote_is_best():
    frame = pd.DataFrame(dict(captions=[("a red ball on the left",), ("two blue boxes stand below it",), ("no thing is here",)]))
    right = description_metrics(frame, [own[0] for own in frame.captions])
    assert right == pytest.approx({"CIDEr-D / 10": 1, "BLEU-4": 1, "ROUGE-L": 1, "examples": 3})
    assert description_metrics(frame, [""] * 3) == {"CIDEr-D / 10": 0, "BLEU-4": 0, "ROUGE-L": 0, "examples": 3}
    with pytest.raises(ValueError, match="2 predictions for 3 examples"): description_metrics(frame, ["a", "b"])
    with pytest.raises(ValueError, match="no examples: there is nothing to score"): description_metrics(frame.head(0), [])


# --- asked about pictures

@pytest.fixture(scope="module")
def describer(tmp_path_factory):
    shared = toy.sources(tmp_path_factory.mktemp("describer"))
    torch.manual_seed(0)
    model = TwelveInOne(PRESETS["tiny"](vocab_size=len(toy.WORDS), feature_dim=8, initializer_range=.5), {}, [TASK])
    model.assets = Assets(tuple(toy.WORDS), {}, {TASK: asdict(ASKABLE[TASK])})
    return Predictor(model, shared.detected, machine=toy.CPU, batch_size=3)


def test_pictures_are_described_alone_as_in_a_list(describer):
    said = describer.describe(toy.KEYS[:7])
    alone = [describer.describe(key) for key in toy.KEYS[:7]]
    assert [one.caption for one in alone] == [one.caption for one in said]
    assert [one.score for one in alone] == pytest.approx([one.score for one in said], abs=1e-5)
    best = said[0]
    assert isinstance(best, Caption) and set(best.caption.split()) <= set(toy.WORDS[5:]) and 0 < best.score <= 1
    scores = [row["score"] for row in best.top_k]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True) and best.to_dict()["caption"] == best.caption
    assert len(describer.describe("coco:0", beams=3, top_k=2).top_k) == 2


def test_a_seed_says_the_same_again(describer):
    def drawn(seed): return [row["caption"] for row in describer.describe("coco:1", nucleus=.9, seed=seed, top_k=None).top_k]
    assert drawn(4) == drawn(4) != drawn(5)


@pytest.mark.parametrize("choices, complaint", [
    (dict(beams=0), "beams 0: a whole number from 1 to 100"), (dict(beams=10 ** 9), "beams 1000000000"), (dict(beams=True), "beams True"),
    (dict(nucleus=0), "nucleus 0: a number above 0 and at most 1"), (dict(nucleus=math.nan), "nucleus nan"),
    (dict(nucleus="1"), "nucleus '1'"),
    (dict(seed=-1), "seed -1: a whole number"), (dict(seed=1.), "seed 1.0"), (dict(top_k=0), "top_k 0"),
    (dict(task="vqa"), "has not learned the task 'vqa' with the head 'caption'"), (dict(picture="coco:99"), "no regions are known of it")])
def test_what_cannot_be_described_is_said_in_one_line(describer, choices, complaint):
    with pytest.raises(ValueError, match=complaint) as error: describer.describe(**dict(picture="coco:0") | choices)
    assert "\n" not in str(error.value)


def test_a_captioning_task_reads_no_text(describer):
    with pytest.raises(ValueError, match="coco_captioning: it reads no text, and says what is there; use `describe`"):
        describer.ask(TASK, "coco:0", "the ball")


def test_a_model_that_writes_is_saved_and_described_with_from_the_command_line(describer, tmp_path, monkeypatch, capsys):
    toy.save_untrained(tmp_path, PRESETS["tiny"](vocab_size=len(toy.WORDS), feature_dim=64))
    model = with_tasks(TwelveInOne.from_pretrained(tmp_path / "model"), [TASK], {})
    Image.new("RGB", (60, 40)).save(tmp_path / "one.png")
    monkeypatch.chdir(tmp_path)
    options = ["describe", "one.png", "--model", "model", "--detector", "detector"]
    with pytest.raises(SystemExit, match="has not learned any task with the head 'caption'"): main(options)
    model.assets = replace(model.assets, tasks={**model.assets.tasks, TASK: asdict(ASKABLE[TASK])})
    model.save_pretrained(tmp_path / "model")
    main([*options, "--top-k", "2", "--save", "out.png"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(re.match(r"0\.\d{3}  ", line) for line in lines) and (tmp_path / "out.png").exists()


def test_runs_that_were_left_out_are_dashes(tmp_path):
    invent_run(tmp_path, "at", {"all": list(TASKS)}, .5, seeds=2)
    table = readable_captions(captioning_table(Results(tmp_path)))
    assert table.index.tolist() == [row for row, *_ in CAPTION_ROWS]
    assert (table.score == "–").all() and table.verdict.isna().all()
    invent_run(tmp_path, "at_captions", {"all": ["vqa", TASK]}, .6, seeds=2)
    table = captioning_table(Results(tmp_path))
    assert table.loc["The twelve, with captioning", "difference"] == pytest.approx(10) and table.seeds.tolist() == [0, 2, 0, 0, 2, 2]
