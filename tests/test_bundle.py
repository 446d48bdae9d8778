"""A saved model is a folder that can be asked: its words, its tasks and its origin come back as they were, and no file beside
the weights, whatever is in it, does more than be refused by its name."""
import inspect
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelHubMixin, snapshot_download

import toy
import vl12in1
from vl12in1.model import CheckpointError, Pretraining, TwelveInOne, ViLBERTConfig, saving
from vl12in1.model.saving import Assets
from vl12in1.tasks import TASKS

CONFIG = ViLBERTConfig.miniature(vocab_size=len(toy.WORDS), feature_dim=8, text_layers=1, image_layers=1, text_connections=(0,),
                                 image_connections=(0,))
ASSETS = Assets(
    pieces=tuple(toy.WORDS), answers={"vqa": ("yes", "no", "ein Bär"), "gqa": ("left", "right")},
    regions={"extractor": {"name": "random", "settings": {"boxes": "detected"}}, "feature_dim": 8, "class_names": []})
ASSETS = ASSETS.learned(asdict(TASKS["vqa"]), dict(corpus="vqa", examples=40, sha256="0" * 64))
FOLDER = Path("folder")
VOCAB, ANSWERS, ORIGIN, CONFIGURATION = (FOLDER / name for name in ("vocab.txt", "answers_vqa.json", "origin.json", "config.json"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)


def task_model(assets=ASSETS):
    model = TwelveInOne(CONFIG, {"vqa": 3, "gqa": 2}).eval()
    model.assets = assets
    return model


# ---- there and back

@pytest.mark.parametrize("make", [task_model, lambda: Pretraining(CONFIG, classes=4)], ids=["tasks", "pretraining"])
def test_what_travels_comes_back(make):
    model = make()
    model.assets = ASSETS
    model.save_pretrained(FOLDER)
    assert type(model).from_pretrained(FOLDER).assets == ASSETS


def test_a_model_that_nobody_told_anything_has_no_assets():
    model = TwelveInOne(CONFIG, {"vqa": 3})
    model.save_pretrained(FOLDER)
    assert TwelveInOne.from_pretrained(FOLDER).assets == Assets() == model.assets


def test_models_do_not_share_their_assets():
    one, other = task_model(), TwelveInOne(CONFIG, {})
    assert one.assets == ASSETS and other.assets == TwelveInOne.assets == Assets()


def test_a_folder_of_weights_alone_still_opens():
    "As earlier versions wrote it: a configuration and weights."
    task_model().save_pretrained(FOLDER)
    for path in FOLDER.iterdir():
        if path.name not in ("config.json", "model.safetensors"): path.unlink()
    assert TwelveInOne.from_pretrained(FOLDER).assets == Assets()


def test_a_folder_that_is_written_again_is_the_new_model():
    "Its card and its words, too; and of lists for vocabularies that the new model does not know, nothing comes back."
    task_model().save_pretrained(FOLDER)
    again = TwelveInOne(CONFIG, {"vqa": 2})
    again.assets = replace(ASSETS, answers={"vqa": ("a", "b")}, data={"gqa": dict(corpus="another corpus", examples=7)})
    again.save_pretrained(FOLDER)
    assert TwelveInOne.from_pretrained(FOLDER).assets == again.assets
    assert "another corpus" in (FOLDER / "README.md").read_text()


def test_learning_adds_to_what_was_learned():
    grown = ASSETS.learned(asdict(TASKS["gqa"]), dict(corpus="gqa", examples=3))
    assert list(grown.tasks) == list(grown.data) == ["vqa", "gqa"] and list(ASSETS.tasks) == ["vqa"]
    assert grown.tasks["gqa"]["text_length"] == TASKS["gqa"].text_length


def test_the_files_are_those_of_others():
    "A vocabulary as BERT has it, an answer list as it is published, and nothing but text."
    task_model().save_pretrained(FOLDER)
    assert VOCAB.read_text(encoding="utf-8") == "".join(f"{piece}\n" for piece in toy.WORDS)
    assert json.loads(ANSWERS.read_text(encoding="utf-8")) == ["yes", "no", "ein Bär"]
    assert sorted(path.name for path in FOLDER.iterdir()) == [
        "README.md", "answers_gqa.json", "answers_vqa.json", "config.json", "model.safetensors", "origin.json", "vocab.txt"]


def test_the_card_says_what_was_learned_and_which_regions_it_reads():
    task_model().save_pretrained(FOLDER)
    card = (FOLDER / "README.md").read_text()
    assert "| vqa | vqa | 40 |" in card and "Regions: random" in card


def test_line_ends_of_another_system():
    task_model().save_pretrained(FOLDER)
    VOCAB.write_bytes(VOCAB.read_bytes().replace(b"\n", b"\r\n"))
    assert TwelveInOne.from_pretrained(FOLDER).assets.pieces == ASSETS.pieces


def test_saving_and_opening_draw_no_random_number():
    torch.manual_seed(0)
    model, before = task_model(), torch.get_rng_state()
    model.save_pretrained(FOLDER)
    TwelveInOne.from_pretrained(FOLDER)
    # a model on the device meta has no numbers to draw
    assert torch.equal(torch.get_rng_state(), before)


# ---- from the hub

def test_a_name_on_the_hub_stands_for_the_files_of_the_model(monkeypatch):
    task_model().save_pretrained("snapshot")
    calls = []
    monkeypatch.setattr(saving, "snapshot_download", lambda name, **options: calls.append((name, options)) or "snapshot")
    again = TwelveInOne.from_pretrained("someone/model", revision="v1", local_files_only=True)
    assert again.assets == ASSETS
    ((name, options),) = calls
    assert name == "someone/model" and options.pop("allow_patterns") == saving.FILES
    assert options == dict(revision="v1", local_files_only=True)


def test_without_a_network_a_name_fails_at_once(monkeypatch):
    "One question, no repetitions; and what was downloaded before is still found."
    asked = []

    class Deaf:
        def head(self, address, timeout):
            asked.append((address, timeout))
            raise ConnectionError("unreachable")

    monkeypatch.setattr(saving, "get_session", Deaf)
    started = time.monotonic()
    complaint = "^someone/nothing: no folder, and no model .* the hub, https://.* cannot be reached from here"
    with pytest.raises(CheckpointError, match=complaint):
        TwelveInOne.from_pretrained("someone/nothing")
    assert time.monotonic() - started < 1 and asked == [(saving.constants.ENDPOINT, 3.)]
    task_model().save_pretrained("snapshot")
    calls = []
    monkeypatch.setattr(saving, "snapshot_download", lambda name, **options: calls.append(options["local_files_only"]) or "snapshot")
    assert TwelveInOne.from_pretrained("someone/model").assets == ASSETS and calls == [True]


@pytest.mark.parametrize("kind", ["file", "folder", "empty"])
def test_published_weights_are_no_folder_of_a_model(kind):
    Path("published").mkdir()
    weights = Path("published/pytorch_model.bin")
    if kind != "empty": weights.touch()
    convert = f"`vl12in1 convert {weights} FOLDER --config CONFIG.json`"
    complaint = "give the folder that `save_pretrained` wrote" if kind == "empty" else convert
    with pytest.raises(CheckpointError, match=complaint): TwelveInOne.from_pretrained(weights if kind == "file" else weights.parent)


@pytest.mark.parametrize("name", ["x" * 300, "null\0byte", "no/such/folder"])
def test_names_that_nothing_can_have(name):
    with pytest.raises(CheckpointError) as error: TwelveInOne.from_pretrained(name)
    assert str(error.value).startswith(name)


# ---- what does not fit

@pytest.mark.parametrize("width, words", [(3, ["yes", "no"]), (3, ["a", "b", "c", "d"])])
def test_a_head_that_is_not_as_wide_as_its_list_is_refused_with_both_numbers(width, words):
    task_model().save_pretrained(FOLDER)
    ANSWERS.write_text(json.dumps(words))
    with pytest.raises(CheckpointError) as error: TwelveInOne.from_pretrained(FOLDER)
    assert f"answers_vqa.json: {len(words)} entries, but the head answer_vqa has {width} outputs" in str(error.value)


def test_a_vocabulary_of_another_size_is_refused_with_both_numbers():
    task_model().save_pretrained(FOLDER)
    VOCAB.write_text(VOCAB.read_text() + "unicorn\n")
    with pytest.raises(CheckpointError, match="vocab.txt: 14 entries, but the table of words has 13 rows"):
        TwelveInOne.from_pretrained(FOLDER)


@pytest.mark.parametrize("path, change", [
    (ANSWERS, lambda words: words[::-1]), (ANSWERS, lambda words: ["never", *words[1:]]), (VOCAB, lambda words: words[::-1])])
def test_other_words_than_those_that_were_saved_are_refused(path, change):
    "As many, all different, in another order or of another model."
    task_model().save_pretrained(FOLDER)
    if path == VOCAB: path.write_text("".join(f"{word}\n" for word in change(path.read_text().splitlines())))
    else: path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError, match=f"^{path}: not the words that were saved, or not in their order"):
        TwelveInOne.from_pretrained(FOLDER)


def test_the_same_words_written_otherwise_are_the_same():
    task_model().save_pretrained(FOLDER)
    ANSWERS.write_text(json.dumps(json.loads(ANSWERS.read_text()), indent=4))
    assert TwelveInOne.from_pretrained(FOLDER).assets == ASSETS


def test_a_folder_without_digests_opens_as_before():
    task_model().save_pretrained(FOLDER)
    origin = json.loads(ORIGIN.read_text())
    assert set(origin.pop("words")) == {"vocab.txt", "answers_vqa.json", "answers_gqa.json"}
    ORIGIN.write_text(json.dumps(origin))
    ANSWERS.write_text(json.dumps(["no", "yes", "ein Bär"]))
    assert TwelveInOne.from_pretrained(FOLDER).assets == replace(ASSETS, answers=ASSETS.answers | {"vqa": ("no", "yes", "ein Bär")})


@pytest.mark.parametrize("option", ["nosuch", "allow_patterns", "repo_type", "vocabularies"])
def test_options_that_the_hub_does_not_have_are_refused(option):
    task_model().save_pretrained(FOLDER)
    with pytest.raises(TypeError, match=f"no option {option!r}; there are revision, token"):
        TwelveInOne.from_pretrained(FOLDER, **{option: 1})


def test_options_of_the_hub_are_those_of_its_mixin():
    "What the mixin's own `from_pretrained` takes, and nothing that downloading does not."
    mixin, download = (inspect.signature(function).parameters for function in (ModelHubMixin.from_pretrained, snapshot_download))
    assert set(saving.HUB_OPTIONS) == {name for name, parameter in mixin.items() if parameter.kind == parameter.KEYWORD_ONLY}
    assert set(saving.HUB_OPTIONS) <= set(download)


def test_another_class_is_refused():
    task_model().save_pretrained(FOLDER)
    with pytest.raises(CheckpointError, match="config.json: the model is a 'TwelveInOne', not a 'Pretraining'"):
        Pretraining.from_pretrained(FOLDER)


# ---- damaged and hostile files

BROKEN = {"empty": b"", "no JSON": b"{", "not UTF-8": b"\xff\xfe", "a number": b"3", "null": b"null", "a word": b'"yes"',
          "endless nesting": b"[" * 200_000, "endless digits": b"[" + b"9" * 10_000 + b"]", "zeros": bytes(1000)}
WRONG_ANSWERS = {"an object": {"yes": 0}, "numbers": [1, 2, 3], "twice": ["yes", "no", "yes"], "nested": [["yes"], "no", "maybe"]}
WRONG_ORIGINS = {"a list": [], "more": {"tasks": {}, "weights": {}}, "tasks a list": {"tasks": ["vqa"]},
                 "a task a word": {"tasks": {"vqa": "answer"}}, "regions a word": {"regions": "detector"},
                 "data null": {"data": None}, "words a list": {"words": []},
                 "a constructor": {"pieces": ["a"]}, "a method": {"__class__": {}}}


def refused(path, content):
    task_model().save_pretrained(FOLDER)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    before = sorted(FOLDER.iterdir())
    with pytest.raises(CheckpointError) as error: TwelveInOne.from_pretrained(FOLDER)
    assert str(path) in str(error.value)
    assert sorted(FOLDER.iterdir()) == before


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("path", [ANSWERS, ORIGIN, CONFIGURATION], ids=lambda path: path.name)
def test_files_that_are_no_json_of_ours(path, kind): refused(path, BROKEN[kind])


@pytest.mark.parametrize("kind", ["empty", "not UTF-8", "zeros"])
def test_vocabularies_that_are_none(kind): refused(VOCAB, BROKEN[kind])


@pytest.mark.parametrize("kind", WRONG_ANSWERS)
def test_answer_lists_that_are_none(kind): refused(ANSWERS, WRONG_ANSWERS[kind])


@pytest.mark.parametrize("kind", WRONG_ORIGINS)
def test_origins_that_are_none(kind): refused(ORIGIN, WRONG_ORIGINS[kind])


@pytest.mark.parametrize("path", [VOCAB, ANSWERS, ORIGIN, CONFIGURATION], ids=lambda path: path.name)
def test_files_are_read_up_to_a_size_that_none_needs(path, monkeypatch):
    task_model().save_pretrained(FOLDER)
    path.write_bytes(bytes(2 ** 20 + 1))
    monkeypatch.setattr("vl12in1.weights.LARGEST", 2 ** 20)
    with pytest.raises(CheckpointError, match=f"{path}: cannot be read .more than 1,048,576 bytes"):
        TwelveInOne.from_pretrained(FOLDER)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
@pytest.mark.parametrize("path", [VOCAB, ANSWERS, ORIGIN, CONFIGURATION], ids=lambda path: path.name)
def test_what_has_no_end_is_not_read(path, make):
    task_model().save_pretrained(FOLDER)
    path.unlink()
    make(path)
    with pytest.raises(CheckpointError, match=f"{path}: cannot be read .*a pipe or a device, and no file"):
        TwelveInOne.from_pretrained(FOLDER)


@pytest.mark.parametrize("path", [VOCAB, ANSWERS, ORIGIN, CONFIGURATION], ids=lambda path: path.name)
def test_one_changed_byte(path):
    "An error that names the file, or the words that were saved: never another exception, and nothing is written."
    task_model().save_pretrained(FOLDER)
    raw, generator, outcomes = path.read_bytes(), random.Random(0), Counter()
    files = sorted(Path().rglob("*"))
    for _ in range(60):
        i = generator.randrange(len(raw))
        path.write_bytes(raw[:i] + bytes([raw[i] ^ generator.randrange(1, 256)]) + raw[i + 1:])
        try: assets = TwelveInOne.from_pretrained(FOLDER).assets
        except CheckpointError as error:
            assert "folder/" in str(error)
            outcomes["refused"] += 1
        else:
            assert (assets.pieces, assets.answers) == (ASSETS.pieces, ASSETS.answers)
            outcomes["read"] += 1
        assert sorted(Path().rglob("*")) == files
    assert outcomes["refused"] and (outcomes["read"] or path != ORIGIN), outcomes


@pytest.mark.parametrize("layers", [10 ** 9, 2 ** 70])
def test_no_more_blocks_are_built_than_there_are_tensors(layers):
    task_model().save_pretrained(FOLDER)
    content = json.loads(CONFIGURATION.read_text())
    content["config"]["text_layers"] = layers
    CONFIGURATION.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"config.json: text_layers is {layers}, but the file has"):
        TwelveInOne.from_pretrained(FOLDER)


# ---- the names that `vl12in1` hands on

NAMES = {"TASKS", "load", "clean", "RegionStore", "ViLBERTConfig", "TwelveInOne", "read_published", "StopAndGo", "Trainer", "predict",
         "Predictor", "doctor"}


def test_the_library_hands_on_a_dozen_names():
    assert NAMES == set(vl12in1.__all__) and NAMES < set(dir(vl12in1)) and vl12in1.__version__
    for name in NAMES: assert getattr(vl12in1, name).__class__
    assert vl12in1.TASKS is TASKS and vl12in1.TwelveInOne is TwelveInOne


def test_other_names_are_none_of_its():
    with pytest.raises(AttributeError, match="'vl12in1' has no attribute 'Bert'; it has TASKS"): vl12in1.Bert
    with pytest.raises(ImportError): from vl12in1 import Bert  # noqa: F401
    assert not hasattr(vl12in1, "_PLACE")


def test_importing_the_library_imports_nothing_else():
    program = ("import sys, time; start = time.perf_counter(); import vl12in1; seconds = time.perf_counter() - start\n"
               "print([seconds < .3, sorted({'torch', 'pandas', 'numpy', 'vl12in1.tasks'} & set(sys.modules))])")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[True, []]\n"


def test_opening_a_model_imports_no_compiler():
    program = ("import sys; from vl12in1.model import TwelveInOne\n"
               f"TwelveInOne.from_pretrained({str(FOLDER)!r}); print('torch._dynamo' in sys.modules)")
    task_model().save_pretrained(FOLDER)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("place", ["training.evaluation.normalise_answer", "training.evaluation.vqa_accuracy",
                                   "training.schedules.StopAndGo", "model.checkpoints.read_published"])
def test_names_that_others_rely_on_stay_where_they_are(place):
    module, _, name = f"vl12in1.{place}".rpartition(".")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
