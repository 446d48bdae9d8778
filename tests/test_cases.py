"Files as people have them: each case is a kind of input that was once misread, with what is to be said of it."
import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import published
import pytest
import torch
from safetensors.torch import load_file

from fuzz import write
from vl12in1 import corpora, world
from vl12in1.command import main
from vl12in1.corpora import CorpusError
from vl12in1.corpora.images import _flickr30k_ids
from vl12in1.evaluation.submissions import SubmissionError, write_submission
from vl12in1.leaks import leak_report
from vl12in1.model import Batch, CheckpointError, TwelveInOne, ViLBERTConfig
from vl12in1.model.checkpoints import read_published, to_published
from vl12in1.model.heads import with_task
from vl12in1.regions import RegionStore, StoreError, find_features, import_features
from vl12in1.weights import write_tensors
from vl12in1.study.doctor import doctor


# --- layouts of the field

IMAGE = dict(width=64, height=48, coco_id=None)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_refer_layout(tmp_path):
    "The three folders side by side, where upstream's own program wants them."
    for name, author in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        write_json(tmp_path / name / "instances.json", dict(
            images=[dict(id=3, width=64, height=48)], annotations=[dict(id=2, image_id=3, bbox=[1, 2, 10, 12])]))
        sentence = dict(sent_id=7, raw="left cup")
        reference = dict(ref_id=1, ann_id=2, image_id=3, split="train", sentences=[sentence])
        (tmp_path / name / f"refs({author}).p").write_bytes(pickle.dumps([reference], protocol=2))
    frames = corpora.load(tmp_path)
    assert {corpus: splits["train"].text.tolist() for corpus, splits in frames.items()} == dict.fromkeys(
        ("refcoco", "refcoco+", "refcocog"), ["left cup"])


@pytest.mark.parametrize("id, image", [("id", "image"), ("qa_id", "image_id")])
def test_visual_genome_flat(tmp_path, id, image):
    write_json(tmp_path / "visual_genome/image_data.json", [IMAGE | dict(image_id=n) for n in range(1, 7)])
    write_json(tmp_path / "visual_genome/question_answers.json",
               [{id: 10 + n, image: 1 + n // 2, "question": "What?", "answer": "A cup."} for n in range(12)])
    frames = corpora.load(tmp_path)["visual_genome"]
    assert {split: len(frame) for split, frame in frames.items()} == dict(train=8, val=2, test=2)
    assert frames["test"].images.tolist() == [("visual_genome:6",)] * 2


def test_esnli_ve_merged(tmp_path):
    header = "gold_label\ttokens1\ttokens2\timage\tsentence1\tsentence2\tpairID\texplanation\n"
    for name, images in (("train", (1, 2)), ("dev", (3,)), ("test", (4,))):
        rows = [f"entailment\ta\tb\t{id}.jpg\tA man.\tA person.\t{id}.jpg#0r1e\tso\n" for id in images]
        (tmp_path / "snli_ve").mkdir(exist_ok=True)
        (tmp_path / f"snli_ve/esnli_ve_{name}.tsv").write_text(header + header.join(rows))
    assert [len(frame) for frame in corpora.load(tmp_path)["snli_ve"].values()] == [2, 1, 1]


# --- downloads that were cut off, and copies in another's place

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut") / "data"
    world.write_world(folder, world.WorldConfig(scale=.02))
    shutil.rmtree(folder / "images")
    (folder / "world.json").unlink()
    return folder


CUT = {"conceptual_captions": ("Train_GCC-training.tsv", "Validation_GCC-1.1.0-Validation.tsv"), "nlvr2": ("train.json", "test1.json"),
       "snli_ve": ("snli_ve_train.jsonl", "snli_ve_test.jsonl"), "vqa": ("v2_mscoco_val2014_annotations.json",)}


def told(root, corpus):
    "What a reader says of a corpus: an error, or warnings."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try: corpora.load(root, only=[corpus])
        except CorpusError as error: return str(error)
    return "\n".join(str(warning.message) for warning in said)


@pytest.mark.parametrize("corpus, name", [(corpus, name) for corpus, names in CUT.items() for name in names])
@pytest.mark.parametrize("at", [.2, .5, .9, None], ids=["early", "half", "late", "at a line's end"])
def test_a_cut_download_is_named(whole, tmp_path, corpus, name, at):
    shutil.copytree(whole / corpus, tmp_path / corpus)
    file = tmp_path / corpus / name
    content = file.read_bytes()
    at = at or .7 * (b"\n" not in content[:-1])
    file.write_bytes(content[:int(len(content) * at) if at else content.rindex(b"\n", 0, -1) + 1])
    assert f"{name}: " in told(tmp_path, corpus)


def test_every_size_is_said_and_a_world_declares_itself(whole, tmp_path):
    for corpus in ("nlvr2", "gqa"):
        assert len({*told(whole, corpus).splitlines()}) == (3 if corpus == "nlvr2" else 4)
    shutil.copytree(whole / "nlvr2", tmp_path / "nlvr2")
    (tmp_path / "world.json").touch()
    assert told(tmp_path, "nlvr2") == ""


@pytest.mark.parametrize("corpus, source, target", [
    ("vqa", "v2_OpenEnded_mscoco_train2014_questions.json", "v2_OpenEnded_mscoco_test2015_questions.json"),
    ("vqa", "v2_mscoco_train2014_annotations.json", "v2_mscoco_val2014_annotations.json"),
    ("gqa", "train_balanced_questions.json", "testdev_balanced_questions.json"),
    ("gqa", "val_balanced_questions.json", "train_balanced_questions.json"),
    ("guesswhat", "guesswhat.train.jsonl.gz", "guesswhat.test.jsonl.gz"),
    ("guesswhat", "guesswhat.test.jsonl.gz", "guesswhat.valid.jsonl.gz"),
    ("nlvr2", "dev.json", "test1.json"), ("snli_ve", "snli_ve_train.jsonl", "snli_ve_test.jsonl"),
    ("conceptual_captions", "Validation_GCC-1.1.0-Validation.tsv", "Train_GCC-training.tsv")])
def test_a_file_in_anothers_place_is_an_error(whole, tmp_path, corpus, source, target):
    for name in {corpus, "visual_genome"}: shutil.copytree(whole / name, tmp_path / name)
    shutil.copy(tmp_path / corpus / source, tmp_path / corpus / target)
    with pytest.raises(CorpusError): corpora.load(tmp_path, only=[corpus])


def test_vqa_files_that_changed_places_say_so(whole, tmp_path):
    shutil.copytree(whole / "vqa", tmp_path / "vqa")
    for kind in ("OpenEnded_mscoco_{}_questions", "mscoco_{}_annotations"):
        train, val = (tmp_path / f"vqa/v2_{kind.format(subset)}.json" for subset in ("train2014", "val2014"))
        content = train.read_bytes()
        train.write_bytes(val.read_bytes())
        val.write_bytes(content)
    with pytest.raises(CorpusError, match="this is the file of 'val2014'; download that of train2014"): corpora.load(tmp_path)


def test_coco_captions_that_changed_places_say_so(tmp_path):
    for subset, other in (("train2014", "val2014"), ("val2014", "train2014")):
        write_json(tmp_path / f"coco_captions/annotations/captions_{subset}.json", dict(
            images=[dict(id=1, file_name=f"COCO_{other}_000000000001.jpg")], annotations=[dict(id=1, image_id=1, caption="a cup")]))
    with pytest.raises(CorpusError, match="COCO_val2014_000000000001.jpg is no picture of train2014"): corpora.load(tmp_path)


# --- features

def features(folder, **options):
    report = import_features(find_features(folder / "files"), folder / "store", **options)
    return report, RegionStore.open(folder / "store")


def test_boxes_as_fractions(tmp_path):
    made = [published.record(n) for n in range(3)]
    boxes = [each["boxes"] / np.float32([640, 480, 640, 480]) for each in made]
    published.write_npy(tmp_path / "files/coco_train", [each | {"boxes": fractions} for each, fractions in zip(made, boxes)])
    report, store = features(tmp_path)
    assert report.sources.fractions.tolist() == [3]
    for each in made: np.testing.assert_allclose(store[f"coco:{each['image_id']}"].boxes, each["boxes"], atol=1e-3)


def test_uniter_npz(tmp_path):
    published.write_npz(tmp_path / "files/coco_val2014", [published.record(1)], fractions=True)
    file = tmp_path / "files/coco_val2014/1.npz"
    arrays = {name: array for name, array in np.load(file).items() if name not in ("image_w", "image_h")}
    np.savez(file, **arrays)
    with pytest.raises(StoreError, match="coco_val2014: image '1': no image_w .*must come from elsewhere"): features(tmp_path)


def test_mcan_npz_transposed(tmp_path):
    made = published.record(11)
    (tmp_path / "files/coco_val2014").mkdir(parents=True)
    np.savez(tmp_path / "files/coco_val2014/COCO_val2014_000000000011.jpg.npz", x=made["features"].T, bbox=made["boxes"], image_w=640,
             image_h=480, num_bbox=4)
    _, store = features(tmp_path)
    np.testing.assert_array_equal(store["coco:11"].features, made["features"].astype(np.float16))


@pytest.mark.parametrize("columns", [published.BOTTOM_UP, published.LXMERT])
def test_tsv_truncated(tmp_path, columns):
    (tmp_path / "files").mkdir()
    path = tmp_path / "files/coco.tsv"
    published.write_tsv(path, [published.record(n) for n in range(3)], columns)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match="image '2': the last line is cut off .*download the file again"): features(tmp_path)
    report, store = features(tmp_path, on_error="skip")
    assert report.rejected.image.tolist() == ["2"] and len(store) == 2


def test_bottom_up_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/train36_imgid2idx.pkl").write_bytes(pickle.dumps({11: 0}))
    with h5py.File(tmp_path / "files/coco_train36.hdf5", "w") as file:
        file["image_features"], file["image_bb"] = np.ones((1, 3, 8)), np.ones((1, 3, 4))
    with pytest.raises(StoreError, match="coco_train36.hdf5: bottom-up attention's arrays .*import the .tsv"): features(tmp_path)


def test_tsv_written_by_python3(tmp_path):
    (tmp_path / "files").mkdir()
    made = published.record(1)
    cells = [1, 640, 480, 4, *(str(published.encoded(made[name]).encode()) for name in ("boxes", "features"))]
    (tmp_path / "files/coco_py3.tsv").write_text("\t".join(map(str, cells)) + "\n")
    _, store = features(tmp_path)
    np.testing.assert_array_equal(store["coco:1"].features, made["features"].astype(np.float16))


# --- addresses are identities

BEER = "https://www.Example.com/a%20b/Beer.jpg?x=1"


@pytest.mark.parametrize("other, same", [
    (BEER, True), ("http://example.com/a%20b/Beer.jpg?x=1", True), ("HTTPS://example.com/a b/Beer.jpg?x=1", True), (f" {BEER} ", True),
    ("//example.com/a%20b/Beer.jpg?x=1#top", True), ("http://www.example.com:80/a b/Beer.jpg?x=1", True),
    ("https://www.example.com/a%20b/beer.jpg?x=1", False), ("https://www.example.com/a%20b/Beer.jpg?x=2", False),
    ("https://cdn.example.com/a%20b/Beer.jpg?x=1", False)])
@pytest.mark.parametrize("learned, tested", [("train", "test1"), ("dev", "test1"), ("train", "dev")])
def test_pictures_of_one_address_are_one(tmp_path, capsys, other, same, learned, tested):
    for split in ("train", "dev", "test1", "test2"):
        address = BEER if split == learned else other if split == tested else f"http://{split}.org/a.jpg"
        write(tmp_path, {f"nlvr2/{split}.json": [dict(identifier=f"{split}-1-0-0", sentence="a", label="True", left_url=address,
                                                      right_url=f"http://{split}.org/b.jpg")]})
    command = ["leaks", str(tmp_path), "--tests", "nlvr2=val,test" if tested == "dev" else "nlvr2=test"]
    if not same: main(command)
    else:
        with pytest.raises(SystemExit) as end: main(command)
        assert end.value.code == 1 and f"nlvr2:{min(learned, tested)}-1-0-img0" in capsys.readouterr().out


@pytest.mark.parametrize("addresses, problem", [
    (("N/A", "N/A"), "'left_url': expected an address on the web, found 'N/A'"), ((BEER, "null"), "'right_url': .* found 'null'"),
    (("file:///a.b/c.jpg", BEER), "'left_url': .* found 'file:"), ((BEER, "https:///a.b/c.jpg"), "'right_url': .* found 'https:"),
    ((" ", BEER), "'left_url': .* found ' '"), (("beers/a.jpg", BEER), "'left_url': .* found 'beers")])
def test_what_is_no_address_is_refused(tmp_path, addresses, problem):
    pairs = [("http://a.org/1.jpg", "http://a.org/2.jpg"), ("", ""), (None, ""), addresses]
    for split in ("train", "dev", "test1"):
        write(tmp_path, {f"nlvr2/{split}.json": [
            dict(identifier=f"{split}-{n}-0-0", sentence="a", label="True", left_url=left, right_url=right)
            for n, (left, right) in enumerate(pairs[:3 + (split == "dev")])]})
    with pytest.raises(CorpusError, match=f"dev.json: record 3, field {problem}.*; download it again"): corpora.load(tmp_path)


def test_a_line_of_digits_is_read_at_once(tmp_path):
    write(tmp_path, {"flickr30k/results_20130124.token": "1.jpg#0\ta\n", "snli_ve/snli_ve_dev.jsonl": "1" * 10 ** 6 + " 12.jpg#0 3.jpg#1"})
    begin = time.monotonic()
    assert _flickr30k_ids(tmp_path) == {"1", "12", "3"} and time.monotonic() - begin < 1


# --- what is no file of a corpus, and what would fill the memory

def bomb(line): return gzip.compress(line * (2 ** 28 // len(line)), 1)


QUESTIONS, STATEMENTS, CAPTIONS = ("vqa/v2_OpenEnded_mscoco_train2014_questions.json", "nlvr2/train.json",
                                   "conceptual_captions/Train_GCC-training.tsv")
FAULTS = {
    "unpacks to far more|columns": lambda file: file.with_name(f"{file.name}.gz").write_bytes(bomb(b" " * 10 ** 6 + b"\n")),
    "zeros instead of content": lambda file: file.with_name(f"{file.name}.gz").write_bytes(bomb(bytes(10 ** 6))),
    "mostly a hole": lambda file: os.truncate(file, 10 ** 11),
    "a line of more than|a value of more than": lambda file: file.write_bytes(b'"' + b"x" * 2 ** 27),
    "recursion|columns|no end": lambda file: file.write_bytes(b"[" * 10 ** 6),
    "digits|columns|no end": lambda file: file.write_bytes(b'[{"a": ' + b"1" * 10 ** 6 + b"}]"),
    "no UTF-8 text|Invalid control|Expecting": lambda file: file.write_bytes(file.read_bytes().replace(b" ", b"\0", 9)),
    "no file, but a folder": lambda file: (file.unlink(), file.mkdir()),
    "but a folder, a device": lambda file: (file.unlink(), os.mkfifo(file)),
    "a device or a broken link": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
    "Expecting|not a JSON line|columns": lambda file: file.write_bytes(b"<!DOCTYPE html>\n<html>404</html>\n"),
}


@pytest.mark.parametrize("path", [QUESTIONS, STATEMENTS, CAPTIONS])
@pytest.mark.parametrize("problem", FAULTS)
def test_what_is_no_corpus_file_is_named_at_once(whole, tmp_path, path, problem):
    corpus = path.partition("/")[0]
    shutil.copytree(whole / corpus, tmp_path / corpus)
    FAULTS[problem](tmp_path / path)
    if (tmp_path / f"{path}.gz").exists(): (tmp_path / path).unlink()
    begin = time.monotonic()
    with pytest.raises(CorpusError, match=f"{Path(path).name}.*({problem})"): corpora.load(tmp_path, only=[corpus])
    assert time.monotonic() - begin < 8


@pytest.mark.parametrize("payload", ["laughs", "memo", "tuplekey"])
def test_references_out_of_proportion(tmp_path, payload):
    write_json(tmp_path / "refcoco/refcoco/instances.json", dict(images=[], annotations=[]))
    layers = b"(lp0\n" + b"".join(b"(lp%d\n" % n + b"g%d\na" % (n - 1) * 10 for n in range(1, 12)) + b"."
    keys = b"\x80\x02}" + b"K\x01" + b"\x85" * 100_000 + b"K\x01s."
    content = dict(laughs=layers, memo=b"\x80\x02]r\xff\xff\xff\x0f.", tuplekey=keys)
    (tmp_path / "refcoco/refcoco/refs(unc).p").write_bytes(content[payload])
    with pytest.raises(CorpusError, match=r"refs\(unc\).p"): corpora.load(tmp_path)


def test_further_test_sets_of_nlvr2_are_tested(tmp_path):
    for split in ("train", "dev", "test1", "test2"):
        address = BEER if split in ("dev", "test2") else f"http://{split}.org/a.jpg"
        write(tmp_path, {f"nlvr2/{split}.json": [dict(identifier=f"{split}-1-0-0", sentence="a", label="True", left_url=address,
                                                      right_url=f"http://{split}.org/b.jpg")]})
    text, clean = leak_report(tmp_path)
    assert not clean and "nlvr2:dev-1-0-img0" in text and "4 test images" in text


def test_links_that_go_round_end(whole, tmp_path):
    folder = tmp_path / "images/coco/val2014"
    folder.mkdir(parents=True)
    (folder / "COCO_val2014_000000000009.jpg").touch()
    for name in "ab": (folder / name).symlink_to("."), (folder.parent / name).symlink_to(folder)
    assert [*corpora.image_files(tmp_path)] == ["coco:9"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_no_missing_one(whole, tmp_path):
    shutil.copytree(whole / "nlvr2", tmp_path / "nlvr2")
    (tmp_path / "nlvr2").chmod(0)
    try:
        with pytest.raises(CorpusError, match="nlvr2: this folder may not be read"): corpora.present(tmp_path)
    finally: (tmp_path / "nlvr2").chmod(0o700)


# --- answers for a server

def test_vqa_testdev(tmp_path):
    for subset, count in (("test2015", 3), ("test-dev2015", 1)):
        questions = [dict(question_id=1000 * n, image_id=n, question="What is it?") for n in range(1, count + 1)]
        write_json(tmp_path / f"vqa/v2_OpenEnded_mscoco_{subset}_questions.json", dict(data_subtype=subset, questions=questions))
        frame = corpora.vqa_questions(tmp_path, subset)
        answers = pd.DataFrame(dict(uid=frame.uid, prediction="cup"))
        if count == 3: assert len(json.loads(write_submission("vqa", frame, answers, tmp_path).read_text())) == 3
        else:
            with pytest.raises(SubmissionError, match="all questions of test2015"):
                write_submission("vqa", frame, answers, tmp_path / "dev")
    assert not (tmp_path / "dev").exists()


# --- into a checkout

def checkout_with(folder, data=True):
    "A checkout whose `data.dvc` names the miniature world, with `data/` or without."
    folder.mkdir()
    (folder / "data.dvc").write_text("deps:\n- path: build/miniature\nouts:\n- path: data\n")
    if data: write_json(folder / "data/world.json", {})
    return folder


def last(report): return report.splitlines()[-1]


@pytest.fixture
def statements(tmp_path):
    "A folder of corpora that lacks nothing."
    write(tmp_path / "corpora", {f"nlvr2/{split}.json": [dict(identifier=f"{split}-1-0-0", sentence="A cup.", label="True")]
                                 for split in ("train", "dev", "test1")} | {"world.json": "{}"})
    for split in ("train", "dev", "test1"): write(tmp_path / "corpora/images/nlvr2", {f"{split}-1-0-img{side}.png": b"" for side in "01"})
    return tmp_path / "corpora"


def test_doctor_next(statements, tmp_path):
    fresh, used = checkout_with(tmp_path / "fresh", data=False), checkout_with(tmp_path / "used")
    command = f"dvc import-url --force {statements} data"
    assert last(doctor(statements, tmp_path, None, fresh)) == f"next         {command}"
    assert last(doctor(statements, tmp_path, None, used)) == f"next         rm -rf data && {command}"
    assert "import-url" not in last(doctor(fresh / "data", tmp_path, None, fresh))
    shutil.copytree(statements, used / "data", dirs_exist_ok=True)
    assert last(doctor(used / "data", tmp_path, None, used)) == "next         dvc repro"
    (used / "data/world.json").unlink()  # now somebody's own corpora, which `dvc repro` would replace
    assert last(doctor(used / "data", tmp_path, None, used)).startswith(
        f"next         mv data ../corpora && dvc import-url --force {tmp_path}/corpora data")


def test_import_symlinked_folders(statements, tmp_path):
    (tmp_path / "disk").mkdir()
    (statements / "nlvr2").rename(tmp_path / "disk/nlvr2")
    (statements / "nlvr2").symlink_to(tmp_path / "disk/nlvr2")
    report = doctor(statements, tmp_path, None, checkout_with(tmp_path / "clone"))
    assert f"DVC does not take {statements}/nlvr2, a link to {tmp_path}/disk/nlvr2" in report and "GiB in .dvc/cache" in report


def test_answers_under_their_own_name(statements, tmp_path):
    for name in ("vqa", "trainval_label2ans"): write_json(statements / f"answers/{name}.json", ["yes", "no"])
    write_json(statements / "gqa/cache/trainval_label2ans.json", ["yes"])
    lines = [line.partition(":")[0] for line in doctor(statements, tmp_path).splitlines() if line[:7] == "answers"]
    assert [line.removeprefix(f"answers      {statements}/") for line in lines] == [
        "answers/vqa.json is taken as it is", "answers/trainval_label2ans.json is not used",
        "gqa/cache/trainval_label2ans.json is not used"]


def test_a_typo_is_no_folder(tmp_path):
    with pytest.raises(SystemExit, match="typo: there is no such folder"): main(["doctor", str(tmp_path / "typo")])


def test_an_import_replaces_data_that_is_there(statements, tmp_path):
    "The command of the guide, in a checkout in which the study was run."
    clone = checkout_with(tmp_path / "clone")
    (clone / "data.dvc").unlink()
    (clone / ".gitignore").write_text("/data\n")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    guide = (Path(__file__).parents[1] / "nbs/guides/own_data.ipynb").read_text()
    command = next(line for line in guide.split('"') if "dvc import-url" in line).partition("  ")[0]
    command = command.replace("/path/to/corpora", str(statements))
    script = f"git init -q . && dvc init -q && {command} && {command}"
    subprocess.run(["bash", "-c", script], cwd=clone, env=environment, check=True, capture_output=True)
    assert json.loads((clone / "data/nlvr2/dev.json").read_text())["identifier"] == "dev-1-0-0" and (clone / "data.dvc").is_file()


# --- weights

@pytest.fixture(scope="module")
def first():
    "A state dict with the head for answers that ViLBERT had before 12-in-1 (weight-normalised, ReLU between), and its configuration."
    torch.manual_seed(0)
    config = ViLBERTConfig(vocab_size=50, max_positions=32, feature_dim=8, text_hidden=8, text_layers=2, text_heads=2, text_feed_forward=8,
                           image_hidden=8, image_layers=1, image_heads=2, image_feed_forward=8, co_hidden=8, co_heads=2,
                           text_connections=(1,), image_connections=(0,))
    state, published = to_published(TwelveInOne(config, vocabularies={"vqa": 5}).eval())
    state = {name: tensor for name, tensor in state.items() if not name.startswith(("vil_prediction", "vil_binary", "vil_tri"))}
    return state, {name: value for name, value in published.items() if not name.startswith("task_")}


def plain_head(dim, hidden=14, answers=7):
    "As PyTorch normalises weights along `dim`."
    layers = torch.nn.Linear(8, hidden), torch.nn.Linear(hidden, answers)
    with warnings.catch_warnings(action="ignore"): first, last = (torch.nn.utils.weight_norm(layer, dim=dim) for layer in layers)
    return torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Dropout(.5), last).eval()


def shown(count=3):
    return Batch("vqa", torch.randint(4, 50, (count, 6)), torch.full((count,), 6), torch.randn(count, 5, 8), torch.rand(count, 5, 5),
                 torch.full((count,), 5))


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.module."])
@pytest.mark.parametrize("dim", [None, 0, 1])
def test_vilbert_beta_head(first, tmp_path, dim, prefix):
    state, config = first
    head = plain_head(dim)
    state = state | {f"vil_prediction.main.{name}": tensor for name, tensor in head.state_dict().items()}
    model, report = read_published({prefix + name: tensor for name, tensor in state.items()}, config)
    batch = shown()
    expected = head(model.encode(batch).pooled)
    assert torch.allclose(model(batch), expected, rtol=1e-5, atol=1e-6) and not model.config.task_tokens
    assert set(report.status[report.ours.str.startswith("heads.answer_vqa")]) == {"mapped"}
    assert {ours.split(".")[1] for ours in report.ours[report.status == "fresh"]} == {"pair", "entail"}
    model.save_pretrained(tmp_path)
    assert torch.equal(TwelveInOne.from_pretrained(tmp_path).eval()(batch), model(batch))
    again, report = read_published(*to_published(model))
    assert torch.equal(again.eval()(batch), model(batch)) and set(report.status) == {"mapped"}


@torch.no_grad()
def test_the_published_beta_head(tmp_path):
    folder = Path(__file__).parent / "parity/first_head"
    model, _ = read_published(folder / "tasks.bin", folder / "config.json")
    x = load_file(folder / "tensors.safetensors")
    batch = Batch("vqa", x["in.ids"], x["in.tm"].sum(1), x["in.feats"], x["in.sp"], x["in.im"].sum(1))
    assert torch.allclose(model(batch), x["out.vil_prediction"], rtol=1e-5, atol=1e-5)
    assert main(["convert", str(folder / "tasks.bin"), str(tmp_path / "model"), "--config", str(folder / "config.json")]) in (None, 0)
    assert torch.equal(TwelveInOne.from_pretrained(tmp_path / "model")(batch), model(batch))


def normed(state, first, last):
    "The state dict with a head whose two layers are kept in the given tensors, name -> tensor."
    layers = {0: dict(bias=torch.zeros(14)) | first, 3: dict(bias=torch.zeros(7)) | last}
    return state | {f"vil_prediction.main.{layer}.{name}": tensor for layer, held in layers.items() for name, tensor in held.items()}


@pytest.mark.parametrize("names", [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")])
@pytest.mark.parametrize("lengths", [torch.tensor(2.), torch.tensor([2.]), torch.full((14, 1), 2.)])
def test_a_row_without_direction_is_zero(first, names, lengths):
    directions = torch.ones(14, 8)
    directions[3] = 0
    state = normed(first[0], dict(zip(names, (lengths, directions))), dict(weight=torch.ones(7, 14)))
    weight = read_published(state, first[1])[0].heads["answer_vqa"].classifier[0].weight
    assert weight[3].eq(0).all() and weight.isfinite().all()
    assert weight.norm(dim=1)[0].item() == pytest.approx(2 if lengths.dim() == 2 else 2 / 13 ** .5)


@pytest.mark.parametrize("wrong, problem", [
    (dict(weight_g=torch.ones(5, 1), weight_v=torch.ones(14, 8)), r"main.0.weight_g: wrong shape \(5, 1\) instead of \(14, 1\)"),
    (dict(weight_g=torch.ones(14), weight_v=torch.ones(14, 8)), r"main.0.weight_g: wrong shape \(14,\)"),
    (dict(weight_g=torch.ones(()), weight_v=torch.ones(14, 9)), r"main.0.weight_v: wrong shape \(14, 9\) instead of \(14, 8\)"),
    (dict(weight_v=torch.ones(14, 8)), "main.0.weight_g: missing"), (dict(weight_g=torch.ones(())), "main.0.weight: missing"),
    (dict(weight_g=torch.tensor(torch.nan), weight_v=torch.ones(14, 8)), "main.0.weight_g does not hold finite numbers")])
def test_a_damaged_beta_head_is_named(first, wrong, problem):
    with pytest.raises(CheckpointError, match=problem): read_published(normed(first[0], wrong, dict(weight=torch.ones(7, 14))), first[1])


def test_a_beta_head_started_afresh_is_the_later_one(first):
    state = normed(first[0], dict(weight=torch.ones(14, 8)), dict(weight=torch.ones(7, 14)))
    model, report = read_published(state, first[1], fresh=["answer_vqa", "task_tokens"], vocabularies={"vqa": 9})
    assert not model.plain and len(model.heads["answer_vqa"].classifier) == 4 and len(model.config.task_tokens) == 20
    assert set(report.note[report.index.str.startswith("vil_prediction.main")]) == {"no part of a TwelveInOne"}


def test_a_beta_head_learns(first):
    state = normed(first[0], dict(weight=torch.randn(14, 8)), dict(weight=torch.randn(7, 14)))
    model, batch = with_task(read_published(state, first[1])[0], "gqa", 4), replace(shown(), targets=torch.eye(7)[:3])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = model.head("vqa").loss(model.eval()(batch), batch)
    for _ in range(40):
        optimizer.zero_grad()
        model.head("vqa").loss(model.train()(batch), batch).backward()
        optimizer.step()
    assert model.head("vqa").loss(model.eval()(batch), batch) < before / 2 and model(replace(batch, task="gqa")).shape == (3, 4)


@pytest.mark.parametrize("name, writer", [("model.safetensors", "vl12in1.weights.save_file"), ("model.bin", "torch.save")])
def test_convert_to_a_full_disk(tmp_path, monkeypatch, name, writer):
    def full(*_): raise RuntimeError("PytorchStreamWriter failed writing file")
    monkeypatch.setattr(writer, full)
    with pytest.raises(OSError, match=f"cannot be written .*is the disk full.*{name}"): write_tensors({"a": torch.ones(2)}, tmp_path / name)
    assert not list(tmp_path.iterdir())
