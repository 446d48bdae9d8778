"Other encoders beside ViLBERT: seeds that both sides have, verdicts on invented runs, a family of its own, damaged costs."
import numpy as np
import pytest

from vl12in1.study.encoders import (CHOICES, ENCODER_ROWS, ENCODERS, GAINS, NOT_RUN, encoders_table, readable_encoders, same_seeds)
from vl12in1.study.results import Results, invent_run
from vl12in1.study.statistics import difference, holm
from vl12in1.study.tables import costs_in
from vl12in1.tasks import TASKS

ALONE = {task: [task] for task in TASKS}


@pytest.fixture
def study(tmp_path):
    "Writes runs of encoders by what is right alone and together, with as many seeds; returns their `Results`."
    def write(seeds=3, own=5, **encoders):
        for name, right in dict(vilbert=(.5, .7), **encoders).items():
            runs = next(runs for key, runs in ENCODERS.items() if key.lower().replace("-", "") == name)
            for run, models, fraction in zip(runs, (ALONE, {"all": TASKS}), right):
                invent_run(tmp_path, run, models, fraction, seeds=own if name == "vilbert" else seeds, items=50)
        return Results(tmp_path)
    return write


def test_rows_are_the_questions_of_the_protocol():
    assert len(GAINS) == len(ENCODERS) == 5 and len(CHOICES) == 8 and len(dict.fromkeys(row for row, *_ in ENCODER_ROWS)) == 13
    assert [run for runs in ENCODERS.values() for run in runs][-2:] == ["st_vl_bert", "at_vl_bert"]


@pytest.mark.parametrize("right, gain, apart", [
    ((.5, .7), "it helps", "not distinguishable"), ((.5, .3), "it hurts", "they differ"), ((.7, .7), "not resolved", "not distinguishable"),
    ((.5, .9), "it helps", "they differ")])
def test_verdicts(study, right, gain, apart):
    table = encoders_table(study(lxmert=right), {})
    assert table.loc["LXMERT: all tasks − one task", "verdict"] == gain
    assert table.loc["all tasks: LXMERT − ViLBERT", "verdict"] == apart
    assert table.loc["all tasks: LXMERT − ViLBERT", "difference"] == pytest.approx(100 * (right[1] - .7))


def test_what_was_not_run_says_so(study):
    table = encoders_table(study(uniter=(.5, .6)), {})
    absent = table.index.str.contains("LXMERT|VisualBERT|VL-BERT")
    assert (table.verdict[absent] == NOT_RUN).all() and not (table.verdict[~absent] == NOT_RUN).any()
    assert table.difference[absent].isna().all() and (readable_encoders(table)[absent].drop(columns="verdict") == "–").all(axis=None)


def test_nothing_was_run(tmp_path):
    table = encoders_table(Results(tmp_path), {})
    assert set(table.verdict) == {NOT_RUN} and len(readable_encoders(table)) == 13


def test_one_seed_decides_nothing(study):
    table = encoders_table(study(seeds=1, visualbert=(.5, .9)), {})
    own = table[table.index.str.contains("VisualBERT")]
    assert set(own.verdict) == {"one seed"} and own.p.isna().all() and (own.seeds == 1).all()
    assert table.verdict["ViLBERT: all tasks − one task"] == "it helps"


def test_seeds_are_those_of_both(study):
    results = study(vlbert=(.5, .6))
    tasks, ours, theirs = same_seeds(results, "at_vl_bert", "at")
    assert tasks == list(TASKS) and {cell.scores.shape for cell in ours + theirs} == {(3, 50)}
    assert all(np.array_equal(cell.scores, results.cell("at", task).scores[:3]) for task, cell in zip(tasks, theirs))


def test_seeds_go_by_their_numbers(study):
    results = study(lxmert=(.5, .6))
    for model in results.runs["at_lxmert"]["trained"]: model["seed"] += 2
    tasks, ours, theirs = same_seeds(results, "at_lxmert", "at")
    assert np.array_equal(theirs[0].scores, results.cell("at", tasks[0]).scores[2:])
    for model in results.runs["at_lxmert"]["trained"]: model["seed"] += 8
    assert same_seeds(results, "at_lxmert", "at") == ([], [], [])


def test_the_table_is_one_family(study):
    results = study(lxmert=(.51, .6), uniter=(.49, .7), vlbert=(.5, .71))
    table = encoders_table(results, {})
    sides = [same_seeds(results, a, b)[1:] for _, a, b in ENCODER_ROWS]
    ps = [difference(*both).p if both[0] else None for both in sides]
    assert table.p.dropna().tolist() == pytest.approx([p for p in holm(ps) if p is not None])


def test_sizes_and_costs_are_those_of_the_first_run(study):
    table = encoders_table(study(lxmert=(.5, .6)), {"ViLBERT": 1., "LXMERT": 1.5})
    assert table.cost["one task: LXMERT − ViLBERT"] == 1.5 and table.cost["ViLBERT: all tasks − one task"] == 1
    assert table.parameters["all tasks: LXMERT − ViLBERT"] == 1000 and table.parameters["all tasks: UNITER − ViLBERT"] == 0


@pytest.mark.parametrize("text", ["", "encoder,low\nLXMERT,1\n", "name,cost\nLXMERT,1\n", "encoder,cost\nLXMERT,much\n"])
def test_damaged_costs_are_named(tmp_path, text):
    path = tmp_path / "encoders.csv"
    assert costs_in(path, "encoders", "encoder") == {}
    path.write_text(text)
    with pytest.raises(ValueError, match="encoders.csv: no costs of encoders; make benchmark"):
        costs_in(path, "encoders", "encoder")
