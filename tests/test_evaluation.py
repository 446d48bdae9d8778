"Scores of words and rankings: parity with the official VQA program, and properties."
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from vl12in1 import answers as evaluation
from vl12in1.answers import agreement, exact_match, normalise_answer, soft_scores, vqa_accuracy, vqa_conventions
from vl12in1.evaluation.metrics import recall_at, retrieval_ranks, text_ranks

GOLDEN = json.loads((Path(__file__).parent / "parity" / "vqa_golden.json").read_text())
CASES = GOLDEN["scoring"]["cases"]
words = st.sampled_from("two 2 a the dog Dog. coca-cola 1,000 dont don't none yes! (red) 3.5 U.S.A x y z".split())
answer = st.lists(words, min_size=1, max_size=3).map(" ".join)


@pytest.mark.parametrize("pair", GOLDEN["normalisation"], ids=lambda pair: pair["raw"])
def test_normal_form_is_the_official_one(pair):
    assert normalise_answer(pair["raw"]) == pair["normalised"]


@pytest.mark.parametrize("behaviour", ["2017", "2021"])
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_accuracy_is_the_official_one(case, behaviour):
    accuracy = vqa_accuracy(case["prediction"], case["answers"], behaviour)
    assert 100 * accuracy == pytest.approx(case[f"accuracy_{behaviour}"])


@pytest.mark.parametrize("behaviour", ["2017", "2021"])
def test_aggregates_are_the_official_ones(behaviour):
    expected = GOLDEN["scoring"][f"overall_{behaviour}"]
    scores = np.array([100 * vqa_accuracy(case["prediction"], case["answers"], behaviour) for case in CASES])
    assert scores.mean() == pytest.approx(expected["overall"])
    for key, field in (("question_type", "perQuestionType"), ("answer_type", "perAnswerType")):
        for kind, value in expected[field].items():
            assert scores[[case[key] == kind for case in CASES]].mean() == pytest.approx(value)


@pytest.mark.parametrize("raw, normal", [
    ("Two\tdogs\n", "2 dogs"), ("a", ""), ("The", ""), ("?", ""), ("none", "0"), ("5.", "5"), (".5", ".5"),
    ("10:30", "10:30"), ("black&white", "black&white"), ("yes/no", "yes no"), ("yes /no", "yes no"), ("yes/no /", "yesno"),
    ("1,000-2", "10002"), ("somebody'd", "somebodyd"), ("Im", "im"), ("yall'd've", "y'all'd've"), ("let's", "let's"),
    ("its", "its"), ("well", "well"), ("." * 33, "."), (". " * 3, "")])
def test_corners_of_the_normal_form(raw, normal):
    assert normalise_answer(raw) == normal


@given(st.text(max_size=20))
def test_normal_form_is_final(text):
    assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


def test_a_contraction_that_lost_an_apostrophe_gets_it_back_and_whole_ones_stay():
    whole = set(evaluation.REPAIRS.values()) - {"somebodyd"}
    assert len(evaluation.REPAIRS) == 114 and not whole & set(evaluation.REPAIRS)


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_agreement_is_the_mean_over_the_subsets_that_leave_one_out(case):
    matches, total = case
    said = [True] * matches + [False] * (total - matches)
    subsets = [min(1, sum(said[:i] + said[i + 1:]) / 3) for i in range(total)]
    assert agreement(matches, total) == pytest.approx(sum(subsets) / total)


@given(answer, st.lists(answer, min_size=10, max_size=10), st.randoms(use_true_random=False))
def test_the_order_of_annotators_does_not_matter(prediction, answers, random):
    shuffled = random.sample(answers, len(answers))
    assert soft_scores(answers) == soft_scores(shuffled)
    for behaviour in ("2017", "2021"):
        assert vqa_accuracy(prediction, answers, behaviour) == vqa_accuracy(prediction, shuffled, behaviour)


@given(st.lists(answer, min_size=10, max_size=10))
def test_targets_are_what_the_scorer_of_today_gives_unless_all_ten_agree(answers):
    if len({text.strip() for text in answers}) > 1:
        for text, score in soft_scores(answers).items(): assert vqa_accuracy(text, answers) == pytest.approx(score)


@pytest.mark.parametrize("n, score", [(1, .3), (2, .6), (3, .9), (4, 1), (10, 1)])
def test_soft_scores_of_ten(n, score):
    assert soft_scores(["Yes"] * n + ["?"] * (10 - n)) == {"yes": score}


def test_soft_scores_of_few():
    assert soft_scores([]) == {}
    assert soft_scores(["the"]) == {}
    assert soft_scores(("Two",)) == {"2": 1}


def test_the_newer_scorer_trims_but_does_not_normalise_unanimous_answers():
    assert vqa_accuracy("black", [" black\n"] * 10) == 1
    assert vqa_accuracy("Black", ["black"] * 10) == 0


def test_the_older_scorer_normalises_the_prediction_always_and_unanimous_answers_never():
    assert vqa_accuracy("u.s.a", ["u.s.a"] * 10, "2017") == 0
    assert vqa_accuracy("Black", ["black"] * 10, "2017") == 1
    assert vqa_accuracy("usa!", ["usa."] * 9 + ["x"], "2017") == 1


@pytest.mark.parametrize("answers", [(), [], np.array([])])
def test_unlabelled_questions_are_refused(answers):
    for score in (vqa_accuracy, exact_match):
        with pytest.raises(ValueError, match="unlabelled"): score("yes", answers)


def test_unknown_behaviour_is_refused():
    with pytest.raises(ValueError, match="2017 and 2021"): vqa_accuracy("yes", ["yes"] * 10, "2020")


@given(answer.map(normalise_answer), st.lists(answer, min_size=10, max_size=10))
def test_the_three_conventions_are_named(prediction, answers):
    assert vqa_conventions(prediction, answers) == {
        "2017": vqa_accuracy(prediction, answers, "2017"), "2021": vqa_accuracy(prediction, answers, "2021"),
        "target": soft_scores(answers).get(prediction, 0)}


def test_exact_match_compares_normal_forms():
    assert exact_match("the two", ["2"]) == exact_match("2", ("3", "Two.")) == 1.
    assert exact_match("2", ("3",)) == 0.


def naive_rank(row, own):
    "1 + the number of other images that are not strictly worse."
    return 1 + sum(1 for i, score in enumerate(row) if i != own and not score < row[own])


matrices = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(lambda shape: st.tuples(
    st.lists(st.lists(st.sampled_from([0., .5, 1., math.inf, -math.inf]), min_size=shape[1], max_size=shape[1]),
             min_size=shape[0], max_size=shape[0]),
    st.lists(st.integers(0, shape[1] - 1), min_size=shape[0], max_size=shape[0])))


@given(matrices)
def test_ranks_are_the_naive_ones(case):
    scores, own = case
    assert retrieval_ranks(scores, own).tolist() == [naive_rank(row, i) for row, i in zip(scores, own)]


@given(matrices, st.integers(1, 6))
def test_recall_counts_ranks_up_to_k(case, k):
    ranks = retrieval_ranks(*case)
    assert recall_at(ranks, k) == pytest.approx(sum(rank <= k for rank in ranks) / len(ranks))


@pytest.mark.parametrize("constant", [0., -1e30, math.inf, math.nan])
def test_a_constant_model_comes_last(constant):
    assert retrieval_ranks(np.full((3, 5), constant), [0, 2, 4]).tolist() == [5, 5, 5]


def test_one_broken_score_does_not_win():
    assert retrieval_ranks([[math.nan, 0., 1.]], [0]).tolist() == [3]
    assert retrieval_ranks([[math.nan, 0., 1.]], [2]).tolist() == [2]


def test_ranks_accept_float32_and_several_captions_per_image():
    scores = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    assert retrieval_ranks(scores, np.array([0, 0, 1, 1])).tolist() == [1, 1, 1, 3]


def naive_text_rank(column, right):
    "1 + the number of other images' captions that are not strictly worse than the best of the right ones."
    best = max(column[i] for i in right)
    return 1 + sum(1 for i, score in enumerate(column) if i not in right and not score < best)


@given(matrices)
def test_text_ranks_are_the_naive_ones(case):
    scores, own = np.array(case[0]), np.array(case[1])
    asked = sorted(set(case[1]))
    assert text_ranks(*case).tolist() == [naive_text_rank(scores[:, i], np.flatnonzero(own == i)) for i in asked]


def test_a_broken_caption_neither_wins_nor_spoils_the_others():
    assert text_ranks([[math.nan, 0.], [2., 0.], [1., 3.]], [0, 0, 1]).tolist() == [1, 1]
    assert text_ranks([[math.nan, 0.], [0., 0.], [1., 3.]], [0, 1, 1]).tolist() == [3, 1]
    assert text_ranks([[2., 0.], [math.nan, 1.]], [0, 1]).tolist() == [2, 1]


@pytest.mark.parametrize("captions", [999, 1000, 1001, 2500])
def test_blocks_of_captions_leave_none_out(captions):
    scores = np.random.default_rng(0).normal(size=(captions, 7)).astype(np.float32)
    own = np.arange(captions) % 7
    assert retrieval_ranks(scores, own).tolist() == [naive_rank(row, i) for row, i in zip(scores, own)]
    assert text_ranks(scores, own).tolist() == [naive_text_rank(scores[:, i], set(range(i, captions, 7))) for i in range(7)]
