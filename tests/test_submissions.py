"Result files: what is written is read back, and whatever damages a file is found."
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faults.children import forked
from fuzz import change, places, spoil, tries, values
from hypothesis import given
from hypothesis import strategies as st
from vl12in1.tasks import ASKABLE, TASKS
from vl12in1.evaluation.submissions import FORMATS, SubmissionError, read_items, read_submission, write_items, write_submission

UIDS = {str: ["07333408", "7333408", "n16"], int: ["458752000", "458752001", "9"]}
IMAGES = {"coco_retrieval": "coco:{}", "flickr30k_retrieval": "flickr30k:{}"}
SAID = {"answer": ["2", "none", "o'clock"], "match": [[2, 0, 1], [0, 1, 2], [1, 2, 0]], "pair": [1, 0, 1], "entail": [2, 0, 1],
        "ground": [1, 0, 2]}
BOXES = [(.25, .125, .5, 1.), (0., 0., 1., 1.), (.1, .2, .3, .4)]


def example(task):
    "A split of three examples, with what a model says of them."
    form, task = FORMATS[task], ASKABLE[task]
    keys = [IMAGES.get(task.name, "coco:{}").format(number) for number in (391895, 522418, 7)]
    frame = pd.DataFrame(dict(uid=UIDS[next(iter(form.fields.values()))], images=[(key,) for key in keys], text=["Which?", "what", ""]))
    if "candidates" in form.fields or "guess_object_id" in form.fields:
        frame = frame.assign(candidate_ids=[(10, 20, 30), (5, 9), (1, 2, 3)])
    if "pred_box" in form.fields: frame = frame.assign(size=[(640, 427), (64, 48), (100, 50)], ref_id=[7, 7, 0])
    said = BOXES if "pred_box" in form.fields else SAID[task.head]
    if task.head == "match": said = [tuple(keys[i] for i in order) for order in said]
    return frame, pd.DataFrame(dict(uid=frame.uid, prediction=said))


def records(task, folder):
    "The format of a task, its frame, and the records of a valid file."
    frame, predictions = example(task)
    return FORMATS[task], frame, FORMATS[task].loads(write_submission(task, frame, predictions, folder).read_text())


def refused(task, frame, file, content):
    "What is said of a file with this content."
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SubmissionError) as error: read_submission(task, frame, file)
    assert str(error.value).startswith(str(file))
    return error.value


# --- there and back

@pytest.mark.parametrize("task", FORMATS)
def test_what_is_written_is_read_back(task, tmp_path):
    frame, predictions = example(task)
    file = write_submission(task, frame, predictions[::-1], tmp_path / "new")
    read = read_submission(task, frame, file)
    assert read.uid.tolist() == frame.uid.tolist()
    if "pred_box" in FORMATS[task].fields: assert np.stack(read.prediction) == pytest.approx(np.stack(predictions.prediction), abs=1e-5)
    else: assert read.prediction.tolist() == predictions.prediction.tolist()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


LITERAL = {
    "vqa": '[{"question_id": 458752000, "answer": "2"},\n', "gqa": '[{"questionId": "07333408", "prediction": "2"},\n',
    "nlvr2": "07333408,True\n7333408,False\n", "visual7w": '[{"qa_id": 458752000, "question": "Which?", "candidates": [{"answer": 20}]},\n',
    "refcoco+": '{"predictions": [{"sent_id": 458752000, "ref_id": 7, "pred_box": [160.0, 53.375, 160.0, 373.625]},\n',
    "guesswhat": '[{"id": 458752000, "guess_object_id": 20},\n', "snli_ve": '[{"pairID": "07333408", "label": "entailment"},\n',
    "coco_retrieval": '[{"sentid": 458752000, "cocoids": [7, 391895, 522418]},\n',
    "flickr30k_retrieval": '[{"sentid": 458752000, "filenames": ["7.jpg", "391895.jpg", "522418.jpg"]},\n'}


@pytest.mark.parametrize("task", LITERAL)
def test_files_look_as_upstream_reads_them(task, tmp_path):
    assert write_submission(task, *example(task), tmp_path).read_text().startswith(LITERAL[task])


# --- damage

@pytest.mark.parametrize("task", FORMATS)
def test_records_left_out_given_twice_or_of_another_split_are_found(task, tmp_path):
    form, frame, rows = records(task, tmp_path)
    id, kind = next(iter(form.fields.items()))
    file, stranger = tmp_path / "file", kind("31")
    assert refused(task, frame, file, form.dumps(rows[1:])).ids == [rows[0][id]]
    assert refused(task, frame, file, form.dumps(rows[:1])).ids == sorted([rows[1][id], rows[2][id]])
    assert refused(task, frame, file, form.dumps([*rows, rows[1]])).ids == [rows[1][id]]
    assert refused(task, frame, file, form.dumps([*rows, rows[1] | {id: stranger}])).ids == [stranger]
    assert f"the split does not have (1, {stranger!r} first)" in str(refused(task, frame, file, file.read_text()))


def is_whole(value):
    "Whether no text in a value has half a character."
    try: return bool(json.dumps(value, ensure_ascii=False).encode())
    except UnicodeEncodeError: return False


@given(st.data())
@tries(80)
def test_every_value_of_another_type_is_found(tmp_path_factory, data):
    task = data.draw(st.sampled_from([task for task in FORMATS if FORMATS[task].suffix == ".json"]))
    form, frame, rows = records(task, tmp_path_factory.mktemp("types"))
    row, (field, kind) = data.draw(st.integers(0, 2)), data.draw(st.sampled_from(list(form.fields.items())))
    other = data.draw(values.filter(lambda value: type(value) is not kind))
    broken = data.draw(st.sampled_from([rows[row] | {field: other}, {k: v for k, v in rows[row].items() if k != field},
                                        rows[row] | {"more": 1}, list(rows[row].values()), other]))
    file = tmp_path_factory.mktemp("types") / "file"
    problem = refused(task, frame, file, form.dumps([*rows[:row], broken, *rows[row + 1:]]))
    assert problem.ids == ([f"record {row}"] if is_whole(broken) else []) and is_whole(broken) == ("half a character" not in str(problem))


def test_half_a_character_is_no_answer(tmp_path):
    form, frame, rows = records("vqa", tmp_path)
    problem = refused("vqa", frame, tmp_path / "file", form.dumps([rows[0] | {"answer": "\ud800"}, *rows[1:]]))
    assert str(problem) == f"{tmp_path / 'file'}: not in the format: half a character, '\\ud800', in a text"


BAD = {
    "nlvr2": [("true", "one of"), ("", "one of"), ("True ", "one of"), ("1", "one of")],
    "snli_ve": [("Neutral", "one of"), ("-", "one of")],
    "guesswhat": [(11, "candidates"), (-1, "candidates"), (9, "candidates")],
    "visual7w": [([], "list of one"), ([{"answer": 10}, {"answer": 20}], "list of one"), ([{"answer": True}], "list of one"),
                 ([20], "list of one"), ([{"answer": "20"}], "list of one"), ([{"answer": 20, "box": 1}], "list of one"),
                 ([{"answer": 9}], "candidates")],
    "coco_retrieval": [([391895, 7], "10"), ([391895, 7, 7], "repeat"), ([391895, 522418, 8], "split"),
                       (["391895", 522418, 7], "split"), ([True, 522418, 7], "split"), ([[], 522418, 7], "split")],
    "flickr30k_retrieval": [(["391895", "522418.jpg", "7.jpg"], "split"), ([391895, 522418, 7], "split"), (["7.jpg"] * 3, "repeat")]}
BAD |= {task: [
    ([0, 0, 640], "four"), ([0, 0, 1, True], "four"), ([0, 0, 1, "1"], "four"), ([0, 0, 642., 1], "no box"), ([-2., 0, 9, 9], "no box"),
    ([0, 0, 9, 429], "no box"), ([9, 9, -1, 5], "no box"), ([0, 0, 9, float("nan")], "no box"), ([600., 0, 60, 9], "no box"),
    ([0, 0, 0, float("inf")], "no box"), ([0, 0, 1, 10 ** 400], "make no sense")] for task in ("refcoco", "refcoco+", "refcocog")}


@pytest.mark.parametrize("task, value, reason", [(task, *bad) for task, all in BAD.items() for bad in all])
def test_values_that_no_model_may_say_are_found(task, value, reason, tmp_path):
    form, frame, rows = records(task, tmp_path)
    id, *_, last = form.fields
    problem = refused(task, frame, tmp_path / "file", form.dumps([rows[0] | {last: value}, *rows[1:]]))
    assert reason in str(problem) and problem.ids == [rows[0][id]]


def test_every_format_has_values_it_refuses_but_those_of_any_words():
    assert set(BAD) | {"vqa", "vg_qa", "gqa", "vizwiz"} == set(FORMATS) >= set(TASKS)


@pytest.mark.parametrize("task, field, value", [("visual7w", "question", "Which!"), ("refcoco", "ref_id", 8)])
def test_a_record_that_contradicts_its_example_is_found(task, field, value, tmp_path):
    form, frame, rows = records(task, tmp_path)
    assert refused(task, frame, tmp_path / "file", form.dumps([*rows[:2], rows[2] | {field: value}])).ids == [9]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"null", b"{}", b"[" * 100_000, b'{"predictions": {}}', b"7" * 5000,
                                     b"identifier,label\n07333408,True\n", b"07333408\n", b"a,b,c\n"])
@pytest.mark.parametrize("task", ["vqa", "refcoco", "nlvr2"])
def test_a_file_of_another_format_is_refused(task, content, tmp_path):
    refused(task, example(task)[0], tmp_path / "file", content)


def test_nothing_stands_beside_the_list_of_predictions(tmp_path):
    form, frame, rows = records("refcoco", tmp_path)
    refused("refcoco", frame, tmp_path / "file", json.dumps({"predictions": rows, "acc": 1}))
    refused("refcoco", frame, tmp_path / "file", json.dumps(rows))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SubmissionError, match="nowhere.json: cannot be read"):
        read_submission("vqa", example("vqa")[0], tmp_path / "nowhere.json")


def test_a_small_file_is_read_in_little_memory(tmp_path):
    "However much the largest may take: a limit of one GiB of addresses ended with MemoryError on another machine."
    file = write_submission("vqa", *example("vqa"), tmp_path)
    ended = forked(lambda: print(len(read_submission("vqa", example("vqa")[0], file))), more=2 ** 29)
    assert (ended.status, ended.output) == (0, "3\n"), ended.error


@pytest.mark.parametrize("task", FORMATS)
def test_a_header_or_a_cut_is_found_wherever_it_is(task, tmp_path):
    frame, predictions = example(task)
    data = write_submission(task, frame, predictions, tmp_path).read_bytes()
    for end in {*range(0, len(data) - 1, 7), len(data) - 2}:  # the last line break may go
        refused(task, frame, tmp_path / "file", data[:end])
    refused(task, frame, tmp_path / "file", ",".join(FORMATS[task].fields).encode() + b"\n" + data)


@given(st.data())
@tries(150)
def test_any_damage_is_found_or_says_something_valid(tmp_path_factory, data):
    task = data.draw(st.sampled_from(list(FORMATS)))
    form, frame, rows = records(task, tmp_path_factory.mktemp("fuzz"))
    file = tmp_path_factory.mktemp("fuzz") / "file"
    if form.suffix == ".json" and data.draw(st.booleans()):
        way = data.draw(st.sampled_from(list(places(rows))))
        broken = change(rows, way, data.draw(st.sampled_from(["replace", "delete", "twice"])), data.draw(values))
        file.write_text(form.dumps(broken))
    else: file.write_bytes(spoil(data.draw, form.dumps(rows).encode()))
    try: read = read_submission(task, frame, file)
    except SubmissionError: return
    assert read.uid.tolist() == frame.uid.tolist()
    write_submission(task, frame, read, tmp_path_factory.mktemp("again"))  # whatever was read can be said


# --- writing

@pytest.mark.parametrize("task, said", [
    ("vqa", float("nan")), ("vqa", None), ("vg_qa", 3), ("nlvr2", 2), ("snli_ve", -1), ("guesswhat", 3), ("visual7w", -1),
    ("refcoco", (.5, .5, .2, .2)), ("coco_retrieval", ("coco:7",))])
def test_what_cannot_be_said_is_not_written(task, said, tmp_path):
    frame, predictions = example(task)
    before = write_submission(task, frame, predictions, tmp_path).read_bytes()
    wrong = predictions.assign(prediction=pd.Series([said, *predictions.prediction[1:]], dtype=object))
    with pytest.raises(SubmissionError, match=f"{task}.*first"): write_submission(task, frame, wrong, tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("task", FORMATS)
def test_predictions_of_another_split_are_not_written(task, tmp_path):
    frame, predictions = example(task)
    for wrong in (predictions[1:], pd.concat([predictions, predictions[:1]]), predictions.assign(uid=["31", *predictions.uid[1:]])):
        with pytest.raises(SubmissionError): write_submission(task, frame, wrong, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_write_that_breaks_off_leaves_the_file_of_before(tmp_path, monkeypatch):
    frame, predictions = example("vqa")
    before = write_submission("vqa", frame, predictions, tmp_path).read_text()
    monkeypatch.setattr(Path, "write_text", lambda path, text, encoding: (path.open("w").write(text[:9]), 1 / 0))
    with pytest.raises(ZeroDivisionError): write_submission("vqa", frame, predictions.assign(prediction="new"), tmp_path)
    assert (tmp_path / "vqa.json").read_text() == before


# --- items

@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1) | st.sampled_from(
    ["nan", "null", "None", "NA", "1,000", "1.0", '"', "[1]", " x ", "#N/A"]), min_size=1, max_size=6))
@tries(60)
def test_items_survive_their_file(tmp_path_factory, said):
    uids = ["007", "NA", "1e3", "x", "4705552913.jpg#2r1n", "-"][:len(said)]
    answers = pd.DataFrame(dict(uid=uids, score=[.3, float("nan"), 1., 0., .9, .6][:len(said)], prediction=said))
    boxes = pd.DataFrame(dict(uid=["1", "2", "3"], score=[0., 1., 1.], prediction=BOXES))
    labels = pd.DataFrame(dict(uid=["1", "2", "3"], score=[0., 1., 1.], prediction=[2, 0, 1]))
    path = tmp_path_factory.mktemp("items") / "items.csv"
    write_items({"vqa": answers, "refcoco": boxes, "snli_ve": labels}, path)
    read = read_items(path)
    assert list(read) == ["vqa", "refcoco", "snli_ve"]
    for ours, theirs in zip(read.values(), (answers, boxes, labels)): pd.testing.assert_frame_equal(ours, theirs)


def test_a_ranking_is_an_item_and_a_file_can_be_made_from_it(tmp_path):
    frame, predictions = example("coco_retrieval")
    write_items({"coco_retrieval": predictions.assign(score=1., scores=[[0, 0, 0]] * 3)}, tmp_path / "items.csv")
    from_items = write_submission("coco_retrieval", frame, read_items(tmp_path / "items.csv")["coco_retrieval"], tmp_path)
    assert [row["cocoids"][0] for row in json.loads(from_items.read_text())] == [7, 391895, 522418]
