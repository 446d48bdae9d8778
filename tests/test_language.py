"""The language of the miniature world: the solver is always right, words alone say little, styles keep their promises."""
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from vl12in1.world import language, solver
from vl12in1.world.questions import QUESTIONS, as_sentence
from vl12in1.world.scenes import Scene, Thing, sample_scene
from vl12in1.world.words import POSITIONS, describe, hear, read, say, write

COUNT = 300


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(11)
    return [sample_scene(rng) for _ in range(3000)]


@pytest.fixture
def rng():
    return np.random.default_rng(12)


def pairs_of(scenes, rng):
    chosen = rng.permutation(len(scenes))[:8]
    return [(scenes[a], scenes[b]) for a, b in chosen.reshape(4, 2)]


# --- the solver -----------------------------------------------------------------------------------

def test_vqa_questions_are_solved(scenes, rng):
    for scene in scenes[:COUNT]:
        question = language.vqa_question(scene, rng)
        assert solver.solve_question(question.text, scene) == question.answer, question


def test_visual_genome_questions_are_solved(scenes, rng):
    for scene in scenes[:COUNT]:
        question = language.vg_question(scene, rng)
        assert as_sentence(solver.solve_question(question.text, scene)) == question.answer, question
        assert question.answer not in ("Yes.", "No.")


def test_gqa_questions_are_solved_by_text_and_by_program(scenes, rng):
    for scene in scenes[:2 * COUNT]:
        question = language.gqa_question(scene, rng)
        assert solver.solve_question(question.text, scene) == question.answer, question
        assert language.run_program(question.program, scene) == question.answer, question
        assert question.full_answer.endswith(".") and set(question.types) == {"structural", "semantic", "detailed"}


def test_program_dependencies_point_back_and_names_carry_their_index(scenes, rng):
    for scene in scenes[:COUNT]:
        for number, step in enumerate(language.gqa_question(scene, rng).program):
            assert all(0 <= dependency < number for dependency in step["dependencies"])
            if step["operation"] == "select" and step["argument"] != "scene":
                assert re.fullmatch(r"\w+ \((-|\d+(,\d+)*)\)", step["argument"])


@pytest.mark.parametrize("style", ["refcoco", "refcoco+", "refcocog"])
def test_expressions_are_solved(scenes, rng, style):
    found = 0
    for scene in scenes[:COUNT // 2]:
        for index in range(len(scene.things)):
            texts = language.expressions(scene, index, rng, style, 3)
            assert len(set(texts)) == len(texts) <= 3
            found += bool(texts)
            assert all(solver.solve_expression(text, scene) == index for text in texts)
    assert found > .8 * sum(len(scene.things) for scene in scenes[:COUNT // 2])


def test_which_questions_are_solved(scenes, rng):
    asked = [(scene, language.which_question(scene, rng)) for scene in scenes[:COUNT]]
    assert all(found is None for scene, found in asked if len(scene.things) < 4)
    answered = [(scene, *found) for scene, found in asked if found]
    assert len(answered) > .7 * len(asked)
    for scene, text, index, others in answered:
        assert len({index, *others}) == 4
        assert solver.solve_which(text, scene, (*others, index)) == index


def test_dialogues_are_solved_and_targets_are_uniform(scenes, rng):
    games = [(scene, *language.dialogue(scene, rng)) for scene in scenes[:2 * COUNT]]
    won = [game for game in games if game[3] == "success"]
    assert .85 < len(won) / len(games) < .97
    for scene, target, turns, _ in won:
        assert 3 <= len(turns) <= 6 and {answer for _, answer in turns} <= {"Yes", "No"}
        assert solver.solve_dialogue(turns, scene) == target
    places = np.array([target / (len(scene.things) - 1) for scene, target, _, _ in won])
    assert abs(places.mean() - .5) < .06


def test_unfinished_dialogues_do_not_have_one_thing_left(scenes, rng):
    for scene in scenes[:COUNT]:
        target, turns, status = language.dialogue(scene, rng)
        if status != "success":
            with pytest.raises(ValueError, match="are left"):
                solver.solve_dialogue(turns, scene)


def test_pair_statements_are_solved_and_balanced(scenes, rng):
    for _ in range(COUNT):
        pairs = pairs_of(scenes, rng)
        sentence, holds = language.pair_statement(pairs, rng)
        assert sum(holds) == 2
        assert [solver.solve_pair(sentence, *pair) for pair in pairs] == holds, sentence


def test_identical_pairs_have_no_statement(scenes, rng):
    assert language.pair_statement([(scenes[0], scenes[1])] * 4, rng) is None


def test_hypotheses_are_solved(scenes, rng):
    empty = 0
    for scene in scenes[:2 * COUNT]:
        told = language.hypotheses(scene, rng)
        empty += not told
        assert not told or sorted(label for _, label in told) == ["contradiction", "entailment", "neutral"]
        assert all(solver.solve_hypothesis(text, scene) == label for text, label in told)
    assert empty <= .02 * 2 * COUNT


def test_captions_hold_of_their_scene_and_of_no_other(scenes, rng):
    for start in range(0, 10):
        others = scenes[start * 101 + 1:start * 101 + 101]
        told = language.captions(scenes[start * 101], rng, 5, others)
        assert len(set(told)) == 5
        for text in told:
            assert 5 <= len(text.split()) <= 14
            assert solver.caption_holds(text, scenes[start * 101])
            assert not any(solver.caption_holds(text, other) for other in others)


def test_captions_cannot_tell_a_scene_from_itself(scenes, rng):
    assert language.captions(scenes[0], rng, 5, [scenes[0]]) == []


def is_true(text, scene):
    "Whether a description, a name or a sentence holds of a scene."
    for solve in (solver.caption_holds, lambda *asked: solver.solve_expression(*asked) >= 0,
                  lambda *asked: solver.solve_hypothesis(*asked) == "entailment"):
        try: return solve(text, scene)
        except (ValueError, KeyError, IndexError): continue
    return False


def test_web_captions_are_noisy_but_mostly_true(scenes, rng):
    plain = []
    for scene in scenes[:COUNT]:
        text = re.sub(r"^(photo|picture|stock image|free photo) of ", "", language.web_caption(scene, rng))
        plain.append(is_true(re.sub(r" (stock photo|on white|for sale|wallpaper)$", "", text), scene))
    assert .9 < np.mean(plain) < 1


# --- answers --------------------------------------------------------------------------------------

def test_vqa_mixture_and_yes_no_balance(scenes, rng):
    questions = [language.vqa_question(scene, rng) for scene in scenes]
    types = Counter(question.answer_type for question in questions)
    for name, share in (("yes/no", .35), ("number", .2), ("other", .45)):
        assert abs(types[name] / len(questions) - share) < .04
    answers = Counter(question.answer for question in questions if question.answer_type == "yes/no")
    assert .45 < answers["yes"] / answers.total() < .55


@pytest.mark.parametrize("make", [language.vqa_question, language.gqa_question])
def test_every_yes_no_form_is_balanced(scenes, rng, make):
    answers = defaultdict(Counter)
    for scene in scenes * 3:
        question = make(scene, rng)
        if question.answer in ("yes", "no"):
            answers[read(QUESTIONS, question.text)[0]][question.answer] += 1
    assert len(answers) >= 4
    for form, counts in answers.items():
        share, deviation = counts["yes"] / counts.total(), .5 / counts.total() ** .5
        assert abs(share - .5) < max(.05, 3.5 * deviation), (form, counts)


def test_annotators_agree_and_differ(rng):
    question = language.Question("how many balls are there?", "2")
    drawn = [language.annotators(question, rng) for _ in range(300)]
    right = np.array([sum(answer.rstrip(".").lower() in ("2", "two") for answer in answers) for answers in drawn])
    assert all(len(answers) == 10 for answers in drawn)
    assert right.min() >= 6 and 8.7 < right.mean() < 9.4
    assert {answer for answers in drawn for answer in answers} >= {"2", "two", "3"}


# --- words alone ----------------------------------------------------------------------------------

def text_only_accuracy(texts, labels):
    "Accuracy in percent of a bag-of-words logistic regression, trained on the first two thirds."
    cut = 2 * len(texts) // 3
    vectors = CountVectorizer(token_pattern=r"\S+").fit_transform(texts)
    model = LogisticRegression(max_iter=300).fit(vectors[:cut], labels[:cut])
    return 100 * model.score(vectors[cut:], labels[cut:])


@pytest.mark.parametrize("make, bound", [(language.vqa_question, 40), (language.gqa_question, 45),
                                         (language.vg_question, 30)])
def test_question_words_say_little(scenes, rng, make, bound):
    questions = [make(scene, rng) for scene in scenes]
    texts, answers = zip(*((question.text, question.answer) for question in questions))
    assert text_only_accuracy(texts, answers) < bound


def test_hypothesis_words_say_little(scenes, rng):
    told = [pair for scene in scenes[:2000] for pair in language.hypotheses(scene, rng)]
    assert text_only_accuracy(*zip(*told)) < 50
    weights = [label for text, label in told if text.endswith(("heavy", "light"))]
    assert .65 < len(weights) / len(told) < .8
    assert max(Counter(weights).values()) / len(weights) < .5


def test_pair_words_say_little(scenes, rng):
    drawn = [language.pair_statement(pairs_of(scenes, rng), rng) for _ in range(700)]
    told = [(sentence, truth) for sentence, holds in drawn for truth in holds]
    assert text_only_accuracy(*zip(*told)) < 56


# --- styles ---------------------------------------------------------------------------------------

def test_refcoco_plus_has_no_words_of_place(scenes, rng):
    words = {word for scene in scenes[:COUNT] for index in range(len(scene.things))
             for text in language.expressions(scene, index, rng, "refcoco+", 3) for word in text.split()}
    assert not words & {*POSITIONS, "on", "in", "at", "of", "above", "below"}


@pytest.mark.parametrize("style, least, most", [("refcoco", 2, 5), ("refcoco+", 2, 5), ("refcocog", 5, 12)])
def test_expression_lengths(scenes, rng, style, least, most):
    lengths = {len(text.split()) for scene in scenes[:COUNT] for text in language.expressions(scene, 0, rng, style, 3)}
    assert least <= min(lengths) and max(lengths) <= most


def test_refcocog_uses_relations_in_about_half(scenes, rng):
    texts = [text for scene in scenes[:COUNT] for text in language.expressions(scene, 0, rng, "refcocog", 1)]
    assert .4 < np.mean(["that is" in text for text in texts]) < .65


def test_question_lengths_and_manners(scenes, rng):
    for scene in scenes[:COUNT]:
        question = language.vqa_question(scene, rng)
        assert 4 <= len(question.text.split()) <= 12 and question.text == question.text.lower()
        assert question.text.startswith(question.question_type)


# --- the grammar ----------------------------------------------------------------------------------

PHRASES = [describe(["small", "striped", "red", "ball"]), describe(["left", "person"]), describe(["orange"]),
           describe(["box"], "left of", describe(["green", "cup"])),
           describe(["dotted"], "above", describe(["top", "house"]))]


@pytest.mark.parametrize("phrase", PHRASES, ids=say)
@pytest.mark.parametrize("article, link, inner", [("a", "", "the"), ("the", "that is", "the"), ("", "", "a")])
def test_what_is_said_is_heard(phrase, article, link, inner):
    tokens = say(phrase, article, link, inner).split()
    assert next(hear(tokens))[1:] == (phrase, len(tokens))


def test_every_template_is_read_as_its_own_form():
    values = {"a": PHRASES[0], "the": PHRASES[1], "plural": PHRASES[0], "quality": "red", "relation": "above",
              "position": "top", "aspect": "color"}
    for form, templates in QUESTIONS.items():
        for template in templates:
            meant = [values[slot] for slot in re.findall(r"\{(\w+)\}", template)]
            assert read(QUESTIONS, write(template, *meant)) == (form, meant)


def test_a_thing_near_a_cut_is_not_called_left():
    near, other = (Thing("ball", "red", "plain", "small", (x - 7, 40, x + 7, 54)) for x in (33, 80))
    far = Thing("ball", "red", "plain", "small", (2, 2, 16, 16))
    scene = Scene((near, far, other), "sand", 100, 100)
    generators = map(np.random.default_rng, range(20))
    texts = [text for rng in generators for text in language.expressions(scene, 1, rng, "refcoco", 9)]
    assert texts and not any(re.fullmatch(r"left ball|ball on the left", text) for text in texts)


def test_same_generator_same_sentences(scenes):
    def everything(scene, rng):
        return [language.vqa_question(scene, rng), language.vg_question(scene, rng), language.gqa_question(scene, rng),
                language.captions(scene, rng), language.hypotheses(scene, rng), language.dialogue(scene, rng),
                language.web_caption(scene, rng), language.expressions(scene, 0, rng, "refcocog", 2)]
    generators = np.random.default_rng(3), np.random.default_rng(3)
    first, second = ([everything(scene, rng) for scene in scenes[:20]] for rng in generators)
    assert first == second


# --- errors ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("solve, text, message", [
    (solver.solve_question, "who is the ball?", "no form of the language"),
    (solver.solve_question, "what color is the star?", "fits 0 things"),
    (solver.solve_expression, "ball on on the left", "not a noun phrase"),
    (solver.solve_hypothesis, "the ball is tired", "no form of the language"),
])
def test_the_solver_refuses_what_it_cannot_read(solve, text, message):
    scene = Scene((Thing("ball", "red", "plain", "small", (2, 2, 16, 16)),), "sand", 100, 100)
    with pytest.raises(ValueError, match=message):
        solve(text, scene)
