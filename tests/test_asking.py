"Asking from the command line: what is printed, what is drawn, and one line for whatever goes wrong."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import toy
import vl12in1
from vl12in1.command import main
from vl12in1.model import TwelveInOne, ViLBERTConfig
from vl12in1.model.checkpoints import write_published
from vl12in1.predictor import Predictor
from vl12in1.regions import RegionStore
from vl12in1.regions.detector import Detector, DetectorConfig, save_detector


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    "A folder with a model, a detector and two pictures."
    folder = tmp_path_factory.mktemp("desk")
    toy.save_untrained(folder, ViLBERTConfig.tiny(vocab_size=len(toy.WORDS), feature_dim=64))
    random = np.random.default_rng(0)
    for name, size in (("one.png", (48, 64)), ("two.png", (40, 40))):
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.fixture
def ask(desk, monkeypatch, capsys):
    "The command in that folder: arguments -> what it prints."
    monkeypatch.chdir(desk)

    def ask(*arguments):
        main([*map(str, arguments), "--model", "model", "--detector", "detector"])
        return capsys.readouterr().out

    return ask


@pytest.fixture(scope="module")
def predictor(desk): return Predictor.from_pretrained(desk / "model", desk / "detector", machine=toy.CPU)


COMMANDS = {  # arguments, and what the predictor says
    "answer": (["answer", "one.png", "the ball"], lambda p, one, two: p.answer(one, "the ball")),
    "answer of GQA": (["answer", "one.png", "the ball", "--vocabulary", "gqa", "--top-k", "2"],
                      lambda p, one, two: p.answer(one, "the ball", vocabulary="gqa", top_k=2)),
    "ground": (["ground", "one.png", "the ball", "--task", "refcocog"], lambda p, one, two: p.ground(one, "the ball", task="refcocog")),
    "ground among boxes": (["ground", "one.png", "the ball", "--boxes", "0,0,20,20", "5,5,40,40"],
                           lambda p, one, two: p.ground(one, "the ball", [[0, 0, 20, 20], [5, 5, 40, 40]])),
    "choose": (["choose", "one.png", "the ball", "--boxes", "0,0,20,20", "5,5,40,40"],
               lambda p, one, two: p.choose(one, "the ball", [[0, 0, 20, 20], [5, 5, 40, 40]])),
    "guess": (["choose", "one.png", "the ball", "--task", "guesswhat", "--boxes", "5,5,40,40"],
              lambda p, one, two: p.guess(one, "the ball", [[5, 5, 40, 40]])),
    "entail": (["entail", "one.png", "the ball"], lambda p, one, two: p.entail(one, "the ball")),
    "verify": (["verify", "one.png", "two.png", "the ball"], lambda p, one, two: p.verify(one, two, "the ball")),
    "rank": (["rank", "one.png", "two.png", "the ball"], lambda p, one, two: p.rank([one, two], ["the ball"]).pictures[0])}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_says_what_the_predictor_says(command, ask, predictor, desk, monkeypatch, tmp_path):
    arguments, expected = COMMANDS[command]
    monkeypatch.chdir(desk)
    said = expected(predictor, "one.png", "two.png").to_dict()
    assert json.loads(ask(*arguments, "--json")) == json.loads(json.dumps(said))
    lines = ask(*arguments, "--save", tmp_path / "out.png").splitlines()
    assert [float(line.split()[0]) for line in lines] == [round(row["score"], 3) for row in said["top_k"]]
    drawn = np.asarray(Image.open(tmp_path / "out.png").convert("RGB"))
    assert drawn.shape[1] > 600 and drawn.std() > 20  # two panels with something in them


@pytest.mark.parametrize("command", ["answer", "ground", "choose", "entail", "verify", "rank"])
def test_no_drawing_takes_the_place_of_the_picture(command, ask, desk):
    picture = (desk / "one.png").read_bytes()
    with pytest.raises(SystemExit, match="one.png: that is the picture itself; name another file"):
        ask(*COMMANDS[command][0], "--save", desk / "one.png")
    assert (desk / "one.png").read_bytes() == picture


@pytest.mark.parametrize("name, complaint", [
    ("one", "one: name a picture, such as out.png"), ("one.json", "one.json: name a picture, such as out.png"),
    ("link.png", "link.png: that is the picture itself"), ("twin.png", "twin.png: that is the picture itself")])
def test_a_drawing_has_the_name_that_was_given(name, complaint, ask, desk):
    "Nothing is added to it, and no other name of the picture is taken for another file."
    picture = (desk / "one.png").read_bytes()
    (desk / "link.png").symlink_to("one.png")
    os.link(desk / "one.png", desk / "twin.png")
    try:
        with pytest.raises(SystemExit, match=complaint): ask("answer", "one.png", "the ball", "--save", desk / name)
    finally:
        for other in ("link.png", "twin.png"): (desk / other).unlink()
    assert (desk / "one.png").read_bytes() == picture and not (desk / "one.json").exists()


def test_a_box_is_drawn_where_it_is(ask, tmp_path):
    "In blue, which there is little of where nothing is pointed at."
    def blue(path): return (np.abs(np.asarray(Image.open(path).convert("RGB")).astype(int) - [0, 114, 178]).sum(-1) < 30).sum()
    ask("ground", "two.png", "the ball", "--boxes", "10,10,30,30", "--save", tmp_path / "box.png")
    ask("answer", "two.png", "the ball", "--save", tmp_path / "none.png")
    assert blue(tmp_path / "box.png") > 500 + blue(tmp_path / "none.png")


def test_what_was_seen_is_kept(ask, desk, tmp_path):
    before = ask("answer", "one.png", "the ball", "--cache", tmp_path / "seen")
    assert len(list((tmp_path / "seen").iterdir())) == 1 and ask("answer", "one.png", "the ball", "--cache", tmp_path / "seen") == before


WRONG = {
    "no picture": (["answer", "absent.png", "the ball"], "absent.png: cannot be read as a picture .*No such file"),
    "not a picture": (["answer", "text.png", "the ball"], "text.png: cannot be read as a picture"),
    "a folder": (["answer", "model", "the ball"], "model: cannot be read as a picture"),
    "no text": (["answer", "one.png", " "], "text ' ': nothing is asked"),
    "one picture of two": (["verify", "one.png", "the ball"], "a statement about two pictures: vl12in1 verify LEFT RIGHT TEXT"),
    "a box beyond the picture": (["ground", "one.png", "the ball", "--boxes", "5,5,40,40", "500,500,600,600"],
                                 r"one.png: \[500.0, .* has no area in the picture, .* of 64 x 48 pixels"),
    "a box whose corners are swapped": (["choose", "one.png", "the ball", "--boxes", "40,40,10,10"], "one.png: .* has no area"),
    "a box in fractions": (["ground", "one.png", "the ball", "--boxes", ".5,.25,1,1"], "one.png: .* smaller than a pixel"),
    "an unknown task": (["answer", "one.png", "the ball", "--task", "okvqa"], "has not learned the task 'okvqa'"),
    "no alternatives": (["answer", "one.png", "the ball", "--top-k", "0"], "top_k 0: how many")}


@pytest.mark.parametrize("case", WRONG)
def test_whatever_goes_wrong_is_one_line(case, ask):
    arguments, complaint = WRONG[case]
    with pytest.raises(SystemExit) as end: ask(*arguments)
    assert re.match(f"vl12in1: .*{complaint}", end.value.code) and "\n" not in end.value.code


@pytest.mark.parametrize("options, complaint", [
    (["--model", "weights.bin", "--detector", "detector"], "weights.bin: a file, and no folder of a model; `vl12in1 convert weights.bin"),
    (["--model", "detector", "--detector", "detector"], "detector/config.json: cannot be read, there is none: no model was saved"),
    (["--model", "model", "--detector", "absent"], "absent: no detector"),
    (["--model", "model", "--detector", "other"], "the detector: its regions are those of .* .other seed, sha256.")])
def test_models_and_detectors_that_are_none_are_named(options, complaint, desk, monkeypatch):
    monkeypatch.chdir(desk)
    (desk / "weights.bin").touch()
    save_detector(Detector.new(DetectorConfig(seed=1), ["background", "ball"], ["red"]), "other")
    with pytest.raises(SystemExit, match=f"vl12in1: {complaint}"):
        main(["answer", "one.png", "the ball", *options])


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", "1;2;3;4"])
def test_a_box_that_is_none_is_refused(box, ask, capsys):
    with pytest.raises(SystemExit): ask("choose", "one.png", "the ball", "--boxes", box)
    assert "a box is x1,y1,x2,y2 in pixels" in capsys.readouterr().err


def test_a_cut_text_is_said_on_the_error_stream(ask, capsys):
    main(["answer", "one.png", "ball " * 30 + "left", "--model", "model", "--detector", "detector", "--json"])
    shown = capsys.readouterr()
    assert shown.err.startswith("vl12in1: 'ball ball") and "reads 21 word pieces" in shown.err and json.loads(shown.out)["answer"]


# ---- published weights

def test_published_weights_with_words_are_asked(desk, monkeypatch, tmp_path, capsys):
    "Converted to published files and back; without its words a model says what it lacks."
    monkeypatch.chdir(tmp_path)
    published = TwelveInOne.from_pretrained(desk / "model")
    write_published(published, "published.bin")
    (tmp_path / "vocab.txt").write_text("\n".join(toy.WORDS) + "\n")
    (tmp_path / "vqa.json").write_text(json.dumps(["yes", "no"]))
    convert = ["convert", "published.bin", "again", "--config", "published.json"]
    main(convert)
    with pytest.raises(SystemExit, match="again: there are weights, but no vocab.txt, .* convert published weights with --words and"):
        main(["answer", str(desk / "one.png"), "the ball", "--model", "again", "--detector", str(desk / "detector")])
    main([*convert, "--words", "vocab.txt", "--answers", "vqa=vqa.json"])
    capsys.readouterr()
    main(["answer", str(desk / "one.png"), "the ball", "--model", "again", "--detector", str(desk / "detector"), "--json"])
    expected = Predictor.from_pretrained(desk / "model", desk / "detector", machine=toy.CPU).answer(desk / "one.png", "the ball")
    assert json.loads(capsys.readouterr().out)["answer"] == expected.answer
    with pytest.raises(SystemExit, match="answers 'gqa'; it learned vqa"):
        main(["answer", str(desk / "one.png"), "the ball", "--model", "again", "--detector", str(desk / "detector"), "--vocabulary", "gqa"])


def test_published_weights_refuse_the_regions_of_another_detector_than_they_were_converted_with(desk, monkeypatch, tmp_path, capsys):
    "Without a detector nothing is recorded, and nothing refused."
    monkeypatch.chdir(tmp_path)
    write_published(TwelveInOne.from_pretrained(desk / "model"), "published.bin")
    (tmp_path / "vocab.txt").write_text("\n".join(toy.WORDS) + "\n")
    (tmp_path / "vqa.json").write_text(json.dumps(["yes", "no"]))
    save_detector(Detector.new(DetectorConfig(seed=1), ["background", "ball"], ["red"]), "other")
    convert = "convert published.bin {} --config published.json --words vocab.txt --answers vqa=vqa.json".format
    main(convert("any").split())
    main([*convert("own").split(), "--detector", str(desk / "detector")])
    assert json.loads((tmp_path / "any/origin.json").read_text())["regions"] == {}
    assert json.loads((tmp_path / "own/origin.json").read_text())["regions"]["class_names"] == ["background", "ball"]
    assert "of a detector that nobody wrote down" in (tmp_path / "any/README.md").read_text()
    assert "Regions: vl12in1.regions.detector." in (tmp_path / "own/README.md").read_text()
    ask = ["answer", str(desk / "one.png"), "the ball", "--model"]
    main([*ask, "any", "--detector", "other"])
    main([*ask, "own", "--detector", str(desk / "detector")])
    with pytest.raises(SystemExit, match="the detector: its regions are those of .* .other seed, sha256."):
        main([*ask, "own", "--detector", "other"])


@pytest.mark.parametrize("option", [("--detector", "detector"), ("--answers", "vqa=vqa.json")])
def test_what_is_of_use_with_words_only_is_refused_without_them(option, desk, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_published(TwelveInOne.from_pretrained(desk / "model"), "published.bin")
    with pytest.raises(SystemExit, match="--answers and --detector are of use with --words only"):
        main([*"convert published.bin again --config published.json".split(), *option])
    assert not (tmp_path / "again").exists()


def test_answers_of_another_model_are_refused(desk, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_published(TwelveInOne.from_pretrained(desk / "model"), "published.bin")
    (tmp_path / "vocab.txt").write_text("\n".join(toy.WORDS) + "\n")
    (tmp_path / "vqa.json").write_text(json.dumps(["yes", "no", "maybe"]))
    with pytest.raises(SystemExit, match="vqa.json: 3 entries, but the head answer_vqa has 2 outputs"):
        main("convert published.bin again --config published.json --words vocab.txt --answers vqa=vqa.json".split())
    assert not (tmp_path / "again").exists()


def test_word_pieces_of_another_model_are_refused_by_the_name_of_their_file(desk, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_published(TwelveInOne.from_pretrained(desk / "model"), "published.bin")
    Path("lists").mkdir()
    Path("lists/pieces.txt").write_text("\n".join(toy.WORDS[:-1]) + "\n")
    Path("lists/answers.json").write_text(json.dumps(["yes"]))
    convert = "convert published.bin again --config published.json --words lists/pieces.txt".split()
    with pytest.raises(SystemExit, match=f"lists/pieces.txt: {len(toy.WORDS) - 1} entries, but the table of words"): main(convert)
    with pytest.raises(SystemExit, match="lists/answers.json: 1 entries"): main([*convert, "--answers", "vqa=lists/answers.json"])


# ---- regions of a folder of pictures

def test_a_folder_of_pictures_becomes_a_store(ask, desk, predictor, tmp_path, capsys):
    (tmp_path / "album/more").mkdir(parents=True)
    for name, target in (("one.png", "one.png"), ("two.png", "more/two.PNG")):
        (tmp_path / "album" / target).write_bytes((desk / name).read_bytes())
    (tmp_path / "album/notes.txt").touch()
    main(["extract", str(tmp_path / "album"), str(tmp_path / "store"), "--detector", "detector"])
    assert "2 images" in capsys.readouterr().out
    store = RegionStore.open(tmp_path / "store")
    assert list(store.keys()) == ["album:more/two", "album:one"]
    expected = predictor.look(desk / "one.png")
    np.testing.assert_allclose(store["album:one"].boxes, expected.boxes, atol=.05)
    assert Predictor.from_pretrained(desk / "model", regions=tmp_path / "store", machine=toy.CPU).answer("album:one", "the ball")
    (tmp_path / "boxes.json").write_text(json.dumps({"album:one": [[1, 2, 30, 40], [0, 0, 64, 48]]}))
    main(["extract", str(tmp_path / "album"), str(tmp_path / "given"), "--detector", "detector", "--boxes", str(tmp_path / "boxes.json")])
    np.testing.assert_allclose(RegionStore.open(tmp_path / "given")["album:one"].boxes, [[1, 2, 30, 40], [0, 0, 64, 48]])


def test_pictures_of_a_collection_are_called_as_its_images_are(ask, desk, tmp_path):
    (tmp_path / "COCO_val2014_000000000042.png").write_bytes((desk / "one.png").read_bytes())
    main(["extract", str(tmp_path), str(tmp_path / "store"), "--detector", "detector", "--collection", "coco"])
    assert list(RegionStore.open(tmp_path / "store").keys()) == ["coco:42"]


@pytest.mark.parametrize("files, complaint", [
    ([], "no pictures in this folder"), (["a.png", "a.jpg"], "are both .*:a; leave one of them out")])
def test_folders_that_cannot_be_extracted_are_refused(files, complaint, ask, tmp_path):
    for name in files: (tmp_path / name).touch()
    with pytest.raises(SystemExit, match=complaint): main(["extract", str(tmp_path), str(tmp_path / "store"), "--detector", "detector"])


# ---- help

def test_help_and_version_can_be_read():
    run = lambda *arguments: subprocess.run([sys.executable, "-m", "vl12in1.command", *arguments], capture_output=True, text=True)
    assert run("--version").stdout == f"vl12in1 {vl12in1.__version__}\n"
    overview = run("--help").stdout
    for name in ("answer", "ground", "choose", "verify", "entail", "rank", "describe", "extract"):
        assert re.search(rf"^ +{name} ", overview, re.M)
        shown = run(name, "--help")
        assert shown.returncode == 0 and len(shown.stdout.splitlines()) > 8 and "%(" not in shown.stdout
