"The command: every part of it is given what it cannot use, and says so in one line and by its exit status."
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import toy
from faults.children import forked
from vl12in1.command import main, parser
from vl12in1.endings import ending, one_line
from vl12in1.model import TwelveInOne, ViLBERTConfig
from vl12in1.model.checkpoints import write_published
from vl12in1.model.heads import with_tasks
from vl12in1.study.results import invent_run
from vl12in1.tasks import MORE
from vl12in1.world import WorldConfig, write_world


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    "A folder with what the commands need: a model, published weights, a detector, pictures, corpora, features, a region store."
    folder = tmp_path_factory.mktemp("desk")
    toy.save_untrained(folder, ViLBERTConfig.tiny(vocab_size=len(toy.WORDS), feature_dim=64))
    model = TwelveInOne.from_pretrained(folder / "model")
    write_published(model, folder / "published.bin")
    writer = with_tasks(model, ["coco_captioning"], {})
    writer.assets = replace(writer.assets, tasks=writer.assets.tasks | {"coco_captioning": asdict(MORE["coco_captioning"])})
    writer.save_pretrained(folder / "writer")
    for place in (folder / "one.png", folder / "album/one.png"):
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(place)
    write_world(folder / "world", WorldConfig(scale=.02))
    shutil.copytree(folder / "world/refcoco", folder / "two/refcoco")
    toy.write_store(folder / "store", 8)
    (folder / "published/coco").mkdir(parents=True)
    np.savez(folder / "published/coco/9.npz", image_id="9", image_w=64, image_h=48, num_boxes=1, features=np.ones((1, 8), "float32"),
             bbox=np.float32([[0, 0, 32, 24]]))
    (folder / "boxes.json").write_text('{"album:one": [[0, 0, 30, 20]]}')
    (folder / "seen.txt").write_text("1\n2\n")
    (folder / "drop.json").write_text('{"coco": ["1"]}')
    invent_run(folder / "reports", "at", {"all": ["vqa"]}, .6)
    (folder / "reports/index.csv").write_text("claim,verdict,difference,difference_low,difference_high\nmore,holds,1.5,.5,2.5\n")
    return folder


MODEL, EYES = ["--model", "model", "--detector", "detector"], ["--detector", "detector"]
CONVERT = ["--config", "published.json"]
COMMANDS = {  # arguments, in which @ stands before a file or a folder that is replaced
    "answer": ["answer", "@one.png", "the ball", *MODEL], "ground": ["ground", "@one.png", "the ball", *MODEL],
    "choose": ["choose", "@one.png", "the ball", *MODEL, "--boxes", "0,0,20,20"], "entail": ["entail", "@one.png", "the ball", *MODEL],
    "verify": ["verify", "one.png", "@one.png", "the ball", *MODEL], "rank": ["rank", "one.png", "@one.png", "the ball", *MODEL],
    "the model": ["answer", "one.png", "the ball", "--model", "@model", *EYES],
    "describe": ["describe", "@one.png", "--model", "writer", *EYES],
    "the detector": ["answer", "one.png", "the ball", "--model", "model", "--detector", "@detector"],
    "verify a store": ["verify", "@store"], "demo": ["demo", "--model", "@model", *EYES],
    "compare": ["compare", "@reports", "reports"], "doctor": ["doctor", "@two"],
    "leaks": ["leaks", "@two"], "leaks --drop": ["leaks", "two", "--drop", "@drop.json"],
    "leaks --detector": ["leaks", "two", "--detector", "@seen.txt"],
    "features": ["features", "@published", "new", "--data", "two"],
    "features --data": ["features", "published", "new", "--data", "@two"], "extract": ["extract", "@album", "new", *EYES],
    "extract --boxes": ["extract", "album", "new", *EYES, "--boxes", "@boxes.json"],
    "extract --detector": ["extract", "album", "new", "--detector", "@detector"], "inspect": ["inspect", "@published.bin"],
    "convert": ["convert", "@published.bin", "new", *CONVERT], "convert back": ["convert", "@model", "new.bin"],
    "convert --config": ["convert", "published.bin", "new", "--config", "@published.json"],
    "convert --words": ["convert", "published.bin", "new", *CONVERT, "--words", "@vocab.txt"],
    "convert --answers": ["convert", "published.bin", "new", *CONVERT, "--words", "vocab.txt", "--answers", "vqa=@vqa.json"]}
FAULTS = {
    "missing": lambda path: None, "empty": lambda path: path.touch(),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "a folder of noise": lambda path: (path.mkdir(), (path / "config.json").write_bytes(b"\xff\x00\n\x1b[2J")),
    "an empty folder": lambda path: path.mkdir(), "below a file": lambda path: None, "a link to itself": lambda path: path.symlink_to(path)}
FINE = {(command, folder) for command in ("doctor", "features --data") for folder in ("an empty folder", "a folder of noise")}


def one_error(ended, *names):
    "Whether a command ended with exit status 1 and one line on its error stream, in which all of these are named."
    lines = ended.error.splitlines()
    return ended.status == 1 and len(lines) == 1 and lines[0].startswith("vl12in1: ") and all(name in lines[0] for name in names)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_command_cannot_use_is_one_line(command, fault, desk, tmp_path, monkeypatch):
    monkeypatch.chdir(desk)
    name = str(desk / "one.png/bad" if fault == "below a file" else tmp_path / "bad")
    if fault != "below a file": FAULTS[fault](Path(name))
    arguments = [re.sub("@.*", name, each) for each in COMMANDS[command]]
    new = [tmp_path / each if each.startswith("new") else each for each in arguments]
    ended = forked(lambda: main([*map(str, new)]))
    assert one_error(ended, name) or (command, fault) in FINE and not ended.status, ended


def test_every_command_is_tried():
    (commands,) = [action.choices for action in parser()._actions if action.choices]
    assert set(commands) - {arguments[0] for arguments in COMMANDS.values()} == {"plan", "why"}


# ---- whoever stops it, and whoever does not listen

GOOD = {name: [each.replace("@", "") for each in arguments] for name, arguments in COMMANDS.items() if name != "demo"}


def interrupted(arguments, moment):
    "The command, to which Ctrl-C comes after so many seconds."
    with ending("vl12in1"):  # it may come before the command has begun, and after it has ended
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(moment, os.kill, (os.getpid(), signal.SIGINT)).start()
        main(arguments)
        time.sleep(moment)


@pytest.mark.parametrize("moment", [.001, .01, .1])
@pytest.mark.parametrize("command", GOOD)
def test_a_command_that_is_stopped_says_one_line(command, moment, desk, tmp_path, monkeypatch):
    monkeypatch.chdir(desk)
    arguments = [str(tmp_path / each) if each.startswith("new") else each for each in GOOD[command]]
    ended = forked(lambda: interrupted(arguments, moment))
    if ended.output: return  # it was ready before
    assert (ended.status, ended.error) == (130, "vl12in1: stopped; what was written so far is kept\n")


@pytest.mark.parametrize("moment", [.3, 1., 2.])
def test_a_command_can_be_stopped_while_it_starts(moment, desk):
    command = [sys.executable, "-m", "vl12in1.command", "leaks", "world"]
    process = subprocess.Popen(command, cwd=desk, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1]
    late = process.returncode in (0, 1, -signal.SIGINT) and not error  # when all was said, or Python was on its way out
    assert late or process.returncode == 130 and re.fullmatch(r"vl12in1: stopped.*\n", error)


@pytest.mark.parametrize("command", GOOD)
def test_a_full_disk_behind_standard_output_is_one_line(command, desk, tmp_path, monkeypatch):
    monkeypatch.chdir(desk)
    arguments = [str(tmp_path / each) if each.startswith("new") else each for each in GOOD[command]]
    assert one_error(forked(lambda: main(arguments), output="/dev/full"), "No space left on device: 'standard output'")


def test_nobody_has_to_read_it_to_the_end(desk):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "vl12in1.command", "inspect", desk / "published.bin"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("error, said", [
    (MemoryError(), "not enough memory"), (RecursionError(), "nested too deeply"), (OSError(), "OSError"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory"), (ValueError("a\x1b[2J\nb"), r"a\x1b[2J b")])
def test_what_a_machine_lacks_is_one_line(error, said, monkeypatch, desk):
    def fail(*_): raise error
    monkeypatch.setattr("vl12in1.command.inspect", fail)
    assert one_error(forked(lambda: main(["inspect", "published.bin"])), said)


def test_a_defect_is_shown_whole(monkeypatch):
    def fail(*_): raise KeyError("name")
    monkeypatch.setattr("vl12in1.command.inspect", fail)
    assert "Traceback" in forked(lambda: main(["inspect", "published.bin"])).error


def test_names_of_strangers_are_shown_and_not_obeyed(tmp_path):
    save_file({"\x1b]0;a\x07\x1b[31mname": torch.zeros(2), "a\nb": torch.zeros(2)}, tmp_path / "a.safetensors")
    ended = forked(lambda: main(["inspect", str(tmp_path / "a.safetensors")]))
    assert ended.status == 0 and "\x1b" not in ended.output and r"\x1b]0;a\x07\x1b[31mname" in ended.output
    assert "\nunknown: a b" in ended.output


@pytest.mark.parametrize("answers, said", [
    (["vqaa=vqa.json"], "vqaa: no vocabulary of answers; there are gqa, vizwiz, vqa"), (["model=vqa.json"], "model: no vocabulary"),
    (["words=vqa.json"], "words: no vocabulary"), (["vqa"], "--answers vqa: "), (["vqa="], "--answers vqa=: "),
    (["vqa=vqa.json", "vqa=vqa.json"], "--answers vqa=vqa.json: vqa was named before")])
def test_lists_of_answers_that_no_model_has_are_refused(answers, said, desk, tmp_path, monkeypatch):
    monkeypatch.chdir(desk)
    command = ["convert", "published.bin", str(tmp_path / "new"), *CONVERT, "--words", "vocab.txt", "--answers", *answers]
    assert one_error(forked(lambda: main(command)), said) and not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "answers_vqa.json", "model.safetensors", "README.md"])
def test_converting_writes_over_nothing_that_is_no_model(name, desk, tmp_path, monkeypatch):
    monkeypatch.chdir(desk)
    (tmp_path / name).write_bytes((desk / "published.json").read_bytes())
    before = (tmp_path / name).read_bytes()
    ended = forked(lambda: main(["convert", "published.bin", str(tmp_path), *CONVERT]))
    assert one_error(ended, f"{tmp_path / name}: is no part of a model")
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == before


def test_converting_writes_over_a_model_that_was_converted_before(desk, tmp_path, monkeypatch):
    monkeypatch.chdir(desk)
    for _ in range(2): assert forked(lambda: main(["convert", "published.bin", str(tmp_path / "new"), *CONVERT])).status == 0


@pytest.mark.parametrize("name", ["model.safetensors", "config.bin", "answers_vqa.safetensors"])
def test_published_weights_are_not_written_over_the_model(name, desk, monkeypatch):
    monkeypatch.chdir(desk)
    before = {path: path.read_bytes() for path in (desk / "model").iterdir()}
    assert one_error(forked(lambda: main(["convert", "model", f"model/{name}"])), "would be a part of the model in model")
    assert {path: path.read_bytes() for path in (desk / "model").iterdir()} == before


@pytest.mark.parametrize("name", ["published.bin", "detector/weights.safetensors", "notes.bin"])
def test_published_weights_are_not_written_over_any_file(name, desk, monkeypatch):
    "Whatever it holds: weights that were downloaded, a detector's, or notes beside, where the configuration would go."
    monkeypatch.chdir(desk)
    (desk / "notes.json").write_text('{"buy": "milk"}')
    before = {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()}
    assert one_error(forked(lambda: main(["convert", "model", name])), "is there, and would be lost")
    assert {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", [".", "detector", "/"])
def test_published_weights_need_a_name(name, desk, monkeypatch):
    monkeypatch.chdir(desk)
    assert one_error(forked(lambda: main(["convert", "model", name])), f"{name}: a folder; name a file in it, such as ")


@pytest.mark.parametrize("arguments", [
    ["doctor", ""], ["leaks", "", "--tests", "vqa=val"], ["features", "", "store"], ["features", "album", ""], ["extract", "album", ""],
    ["convert", "published.bin", "", *CONVERT], ["convert", "model", ""], ["verify", ""], ["inspect", ""], ["compare", ""],
    ["answer", "one.png", "what", "--model", ""], ["answer", "one.png", ""], ["verify", "one.png", "", "a ball"]])
def test_an_empty_argument_is_no_folder(arguments, desk, monkeypatch):
    "As a shell makes one of a variable that is not set."
    monkeypatch.chdir(desk)
    before = sorted(desk.rglob("*"))
    assert one_error(forked(lambda: main(arguments)), "empty; a shell makes that of a variable that is not set")
    assert sorted(desk.rglob("*")) == before


def test_swapped_source_and_target_do_not_cost_the_published_weights(desk, monkeypatch):
    monkeypatch.chdir(desk)
    published = (desk / "published.bin").read_bytes()
    assert one_error(forked(lambda: main(["convert", "writer", "published.bin", *CONVERT])), "writer: --config with a folder; leave")
    assert (desk / "published.bin").read_bytes() == published


def test_a_message_is_never_longer_than_a_screen(): assert len(one_line("9" * 10 ** 6)) < 2100


# ---- outside of a checkout

@pytest.mark.parametrize("arguments", [["doctor"], ["plan"], ["plan", "smoke"], ["why", "reports/index.md"], ["compare", "elsewhere"],
                                       ["leaks"], ["answer", "one.png", "what is it"], ["demo"], ["extract", "album", "regions"]])
def test_outside_of_a_checkout_a_command_says_so(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert one_error(forked(lambda: main(arguments)))
