"Word pieces as BERT reads them, and answer vocabularies."
import json
import os
import pickle
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, strategies as st

from vl12in1.answers import normalise_answer
from vl12in1.examples.text import (
    SPECIAL, AnswerVocabulary, Tokenizer, build_answers, build_wordpieces, most_common, read_wordpieces, split_words,
    write_wordpieces)

TEXTS = ["A man is on the left.", "a man, a woman and the man", "the left one"]
sentences = st.lists(st.text(alphabet="abcé A.!?'-", max_size=12), max_size=8)


def greedy(word, vocabulary):
    "WordPiece as the BERT paper describes it: the longest piece from the left, or the whole word unknown."
    pieces, start = [], 0
    while start < len(word):
        ends = [end for end in range(len(word), start, -1) if ("##" if start else "") + word[start:end] in vocabulary]
        if not ends: return ["[UNK]"]
        pieces.append(("##" if start else "") + word[start:ends[0]])
        start = ends[0]
    return pieces


@given(sentences, sentences)
def test_pieces_are_the_greedy_ones(texts, new):
    tokenizer = Tokenizer(build_wordpieces(texts, minimum=1))
    for text, ids in zip(new, tokenizer(new, 1000)):
        expected = [piece for word in split_words(text) for piece in greedy(word, set(tokenizer.pieces))]
        assert [tokenizer.pieces[i] for i in ids] == ["[CLS]", *expected, "[SEP]"]


@given(st.lists(st.text(st.characters(max_codepoint=0x2ff), max_size=12) | st.text(max_size=8), max_size=6))
def test_words_that_are_remembered_have_the_ids_of_texts_that_are_cut_as_a_whole(texts):
    tokenizer = Tokenizer([*SPECIAL, *"abcdefghijklmnop!?_-'0123", *(f"##{letter}" for letter in "abcdefghijk012"), "abc"])
    whole = [encoding.ids for encoding in tokenizer._ids.model.encode_batch(texts, add_special_tokens=False)]
    assert [ids[1:-1] for ids in tokenizer(texts, 1000)] == whole


def test_every_character_of_ascii_is_split_as_in_a_text(monkeypatch):
    monkeypatch.setattr("vl12in1.examples.text.KNOWN", 3)  # so that words are forgotten, too
    characters = list(map(chr, range(128)))
    tokenizer = Tokenizer([*SPECIAL, *(character for character in characters if split_words(character) == [character])])
    texts = [f"a{character}b{character} A{character}{character}1" for character in characters]
    whole = [encoding.ids for encoding in tokenizer._ids.model.encode_batch(texts, add_special_tokens=False)]
    assert [ids[1:-1] for ids in tokenizer(texts, 1000)] == whole and len(tokenizer._ids) <= 3


@given(sentences, st.randoms(use_true_random=False))
def test_a_vocabulary_depends_on_what_was_said_not_on_the_order(texts, random):
    assert build_wordpieces(texts) == build_wordpieces(random.sample(texts, len(texts)))


@given(sentences)
def test_what_was_said_can_be_spelt(texts):
    tokenizer = Tokenizer(build_wordpieces(texts, minimum=10**6))
    assert all(tokenizer.unknown not in ids for ids in tokenizer(texts, 1000))


def test_vocabulary_order_size_and_minimum():
    pieces = build_wordpieces(TEXTS)
    assert tuple(pieces[:5]) == SPECIAL and len(set(pieces)) == len(pieces)
    assert pieces[-3:] == ["man", "the", "left"]
    assert build_wordpieces(TEXTS, size=len(pieces) - 1) == pieces[:-1]
    assert set(build_wordpieces(TEXTS, minimum=1)) - set(pieces) == {"is", "on", "woman", "and", "one"}
    assert build_wordpieces(TEXTS, minimum=4) == pieces[:-3]


def test_a_size_below_the_alphabet_is_refused():
    with pytest.raises(ValueError, match="size 10"): build_wordpieces(TEXTS, size=10)


@pytest.fixture
def bert(tmp_path):
    "A file laid out as bert-base-uncased's: [PAD], unused pieces, [UNK] at 100, [CLS], [SEP], [MASK] after it."
    unused = [f"[unused{i}]" for i in range(99)]
    pieces = ["[PAD]", *unused, "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "\u3000x", "."]
    write_wordpieces(pieces, tmp_path / "vocab.txt")
    return tmp_path / "vocab.txt"


def test_berts_own_file_drops_in(bert):
    tokenizer = Tokenizer.open(bert)
    assert [getattr(tokenizer, name) for name in ("pad", "unknown", "first", "last", "mask")] == [0, 100, 101, 102, 103]
    assert tokenizer(["The CATS. Zebra"], 20) == [[101, 104, 105, 106, 108, 100, 102]]
    assert len(tokenizer) == 109


@pytest.mark.parametrize("length, expected", [
    (2, []), (3, ["the"]), (5, ["the", "cat", "##s"]), (6, ["the", "cat", "##s", "."])])
def test_texts_are_cut_at_the_end(bert, length, expected):
    tokenizer = Tokenizer.open(bert)
    (ids,) = tokenizer(["the cats."], length)
    assert [tokenizer.pieces[i] for i in ids] == ["[CLS]", *expected, "[SEP]"]


def test_calls_do_not_disturb_each_other(bert):
    tokenizer = Tokenizer.open(bert)
    whole = tokenizer(["the cats."], 20)
    tokenizer(["the cats."], 3)
    assert tokenizer(["the cats."], 20) == whole


@pytest.mark.parametrize("text", ["CAFÉ", "Cafe\u0301", " café\n"])
def test_case_accents_and_spaces_make_no_difference(text):
    tokenizer = Tokenizer([*SPECIAL, "cafe"])
    assert tokenizer([text], 5) == [[tokenizer.first, 5, tokenizer.last]]


def test_special_pieces_in_a_text_are_only_text():
    tokenizer = Tokenizer([*SPECIAL, "mask", "[", "]"])
    assert tokenizer(["[MASK]"], 9) == [[2, 6, 5, 7, 3]]


def test_a_tokenizer_travels_to_workers(bert):
    tokenizer = Tokenizer.open(bert)
    assert pickle.loads(pickle.dumps(tokenizer))(["the cats"], 9) == tokenizer(["the cats"], 9)


def test_no_room_for_special_pieces_is_an_error(bert):
    with pytest.raises(ValueError, match="length 1"): Tokenizer.open(bert)(["the"], 1)


@pytest.mark.parametrize("pieces, match", [
    (["the"], r"v.txt: no \[PAD\]"), ([*SPECIAL, "a", "a"], "v.txt: 1 repeated")])
def test_files_that_are_no_vocabulary_are_named(tmp_path, pieces, match):
    write_wordpieces(pieces, tmp_path / "v.txt")
    with pytest.raises(ValueError, match=match): Tokenizer.open(tmp_path / "v.txt")


characters = st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])


@given(st.lists(st.text(alphabet=characters, min_size=1), min_size=1))
def test_pieces_survive_the_file(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("pieces") / "vocab.txt"
    write_wordpieces(pieces, path)
    assert read_wordpieces(path) == pieces


def frame(*answers): return pd.DataFrame(dict(answers=list(answers)))


def test_answers_count_questions_not_annotators():
    vqa = frame(*[("yes",) * 6 + ("no",) * 4] * 9, *[("no",) * 10] * 8, *[("Blue.",) * 10] * 9)
    assert build_answers(vqa) == ["blue", "yes"]
    assert build_answers(vqa, frame(("no",) * 10)) == ["blue", "no", "yes"]


def test_unlabelled_questions_and_empty_answers_make_no_entry():
    assert build_answers(frame((), ("the",), ("?", "yes")), minimum=1) == ["yes"]


def test_most_common_prefers_the_first_of_equals_and_normal_forms():
    assert most_common(["no", "yes", "Yes", "No."]) == "no"
    assert most_common(["no", "no", "two", "2", "Two"]) == "2"


said = st.lists(st.sampled_from(["yes", "Yes.", "no", "a", "2", "two", "x y"]), max_size=10)


@given(st.lists(said, max_size=30), st.integers(1, 4))
def test_answers_are_normal_frequent_and_sorted(questions, minimum):
    answers, usual = build_answers(frame(*questions), minimum=minimum), list(map(most_common, questions))
    assert [-usual.count(answer) for answer in answers] == sorted(-usual.count(answer) for answer in answers)
    assert set(answers) == {answer for answer in usual if answer and usual.count(answer) >= minimum}
    assert all(normalise_answer(answer) == answer for answer in answers)
    assert len(AnswerVocabulary(answers)) == len(answers)


def test_targets_keep_what_the_list_holds():
    vocabulary = AnswerVocabulary(["yes", "no", "2"])
    assert vocabulary.targets(("Two",) * 3 + ("no",) + ("maybe",) * 6) == ([2, 1], [.9, .3])
    assert vocabulary.targets(("no",)) == ([1], [1.])
    assert vocabulary.targets(()) == ([], [])
    assert vocabulary.index["2"] == 2 and vocabulary.answers[2] == "2"


def test_answer_lists_are_plain_json(tmp_path):
    AnswerVocabulary(["yes", "naïve"]).save(tmp_path / "answers.json")
    assert json.loads((tmp_path / "answers.json").read_text(encoding="utf-8")) == ["yes", "naïve"]
    assert AnswerVocabulary.open(tmp_path / "answers.json").answers == ("yes", "naïve")


def published(tmp_path, content):
    (tmp_path / "a.json").write_text(json.dumps(content))
    return AnswerVocabulary.open(tmp_path / "a.json")


@pytest.mark.parametrize("content, match", [
    (["no", "no"], "repeated"), ([], "expected a list of answers"), ("yes", "expected a list of answers"),
    (["yes", 2], "expected a list of answers"), ([["yes"]], "expected a list of answers"), (None, "expected a list"),
    ({}, "expected a list of answers"), ({"yes": 0, "no": 2}, "the 2 answers do not have the positions"),
    ({"yes": 1, "no": 1}, "positions"), ({"yes": False, "no": True}, "positions"), ({"yes": "0"}, "positions"),
    ({"yes": [0]}, "positions"), ({"yes": None, "no": 1}, "positions"), ({"yes": 0.0}, "positions")])
def test_files_that_are_no_list_of_answers_are_refused(tmp_path, content, match):
    with pytest.raises(ValueError, match=f"a.json.*{match}"): published(tmp_path, content)


def test_a_file_that_is_not_json_is_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\x80\x03}q")
    with pytest.raises(ValueError, match="a.json: not JSON"): AnswerVocabulary.open(tmp_path / "a.json")


def test_a_list_of_answers_is_a_file_and_no_longer_than_any_needs_to_be(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="a pipe or a device, and no file"): AnswerVocabulary.open(path)
    monkeypatch.setattr("vl12in1.examples.text.LARGEST", 20)
    with pytest.raises(ValueError, match="a.json: not JSON .more than 20 bytes"): published(tmp_path, ["yes"] * 9)


phrases = st.lists(st.sampled_from(["", "yes", "Yes", "two", "2", "in the mirror", "t-shirt", "t shirt", "a", "?", "naïve"]),
                   min_size=1, unique=True)


@given(phrases, st.randoms(use_true_random=False))
def test_published_lists_keep_their_positions_in_both_forms(tmp_path_factory, answers, random):
    folder, numbered = tmp_path_factory.getbasetemp(), list(enumerate(answers))
    random.shuffle(numbered)
    both = [published(folder, answers), published(folder, {answer: i for i, answer in numbered})]
    for vocabulary in both:
        assert vocabulary.answers == tuple(answers) and len(vocabulary) == len(answers)
        vocabulary.save(folder / "again.json")
        assert AnswerVocabulary.open(folder / "again.json").index == vocabulary.index


@given(phrases, st.sampled_from(["Yes!", "two", "2.", "In the mirror", "T-Shirt", "t shirt", "?"]))
def test_targets_are_found_by_normal_form_and_prefer_it(answers, said):
    vocabulary, form = AnswerVocabulary(answers), normalise_answer(said)
    able = [i for i, answer in enumerate(answers) if normalise_answer(answer) == form]
    positions, scores = vocabulary.targets((said,))
    if not able or not form: assert positions == []
    else: assert (positions, scores) == ([answers.index(form) if form in answers else able[0]], [1.])


def test_the_column_of_upstream_is_counted_where_there_is_one():
    vqa = frame(("no", "yes"), ("no", "yes"), ()).assign(multiple_choice_answer=["Yes.", "yes", ""])
    assert build_answers(vqa, minimum=2) == ["yes"] and build_answers(vqa, minimum=3) == []
    assert build_answers(vqa, frame(("yes",)), minimum=3) == ["yes"]
