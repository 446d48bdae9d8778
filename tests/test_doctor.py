"The doctor says what is wrong, where, and what to do, whatever is wrong."
import shutil
from pathlib import Path

import numpy as np
import pytest

from vl12in1 import corpora, world
from vl12in1.command import main
from vl12in1.model import TwelveInOne, ViLBERTConfig
from vl12in1.regions import Regions, RegionWriter
from vl12in1.study.doctor import doctor, training_bytes
from vl12in1.study.plan import read_rates

STUDY = dict(profile="miniature", text=dict(word_pieces=1000), encoder="vilbert", encoders=dict(vilbert=dict(preset="miniature")),
             followers={}, seeds=dict(side=[0]),
             runs={"at": dict(init="scratch", kind="multi", seeds="side")},
             training=dict(common=dict(batch_fraction=.125), multi={}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor") / "data"
    world.write_world(folder, world.WorldConfig(scale=.02))
    return folder


def linked(data, folder):
    "A copy of the data folder that shares its pictures."
    shutil.copytree(data, folder, ignore=shutil.ignore_patterns("images"))
    (folder / "images").symlink_to(data / "images")
    return folder


def last(report): return report.splitlines()[-1]


def test_an_empty_folder_is_told_where_to_get_everything(tmp_path):
    report = doctor(tmp_path, tmp_path, STUDY)
    assert all(f"{corpus:21}missing: https://" in report for corpus in corpora.RELEASES)
    for releases in corpora.RELEASES.values():
        for path in next(iter(releases.values())): assert Path(path).name in report
    assert last(report).split(None, 1)[1].startswith("dvc repro")


def test_it_fits_a_screen(data, tmp_path):
    for folder in (data, tmp_path):
        lines = doctor(folder, tmp_path, STUDY).splitlines()
        assert len(lines) <= 60 and max(len(line) for line in lines[:-1] if str(tmp_path) not in line) <= 120


def test_a_sound_folder_is_told_to_go_on(data, tmp_path):
    report = doctor(data, tmp_path, STUDY)
    assert report.count(" present ") == 14 and "wrong" not in report and last(report) == "next         dvc repro"


FILES = {corpus: [path for path in next(iter(releases.values())) if "visual_genome/image_data" not in path]
         for corpus, releases in corpora.RELEASES.items()}


@pytest.mark.parametrize("corpus", FILES)
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_whatever_is_damaged_is_named(data, tmp_path, corpus, damage):
    root = linked(data, tmp_path / "data")
    file = root / FILES[corpus][-1]
    if damage == "gone": file.unlink()
    else: file.write_bytes(file.read_bytes()[:len(file.read_bytes()) * 2 // 3] + b"\xff\n")
    report = doctor(root, tmp_path, STUDY)
    alone = damage == "gone" and len(FILES[corpus]) == 1  # its only file: then nothing says that the corpus was meant to be there
    state = "missing" if alone else "wrong"
    flat = " ".join(report.split())
    assert f"{corpus} {state}: " in flat and file.name in flat
    assert alone or file.name in last(report)


def test_missing_pictures_come_before_hours_of_work(data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    shared = {*corpora.identity(root).values()}  # another collection's copy stands in for these
    next(file for file in (root / "images/flickr30k").iterdir() if f"flickr30k:{file.stem}" not in shared).unlink()
    report = doctor(root, tmp_path, STUDY)
    assert "pictures below" in last(report) and "flickr30k" in last(report) and "nlvr2" not in last(report)
    assert int(next(line for line in report.splitlines() if line.startswith("flickr30k ")).split()[-4]) < 100


def test_a_stray_feature_file_is_named(data, tmp_path):
    root = linked(data, tmp_path / "data")
    (root / "features/detected").mkdir(parents=True)
    (root / "features/detected/README.md").touch()
    assert "put that right" in last(doctor(root, tmp_path, STUDY)) and "README.md" in last(doctor(root, tmp_path, STUDY))


def test_coverage_counts_regions_by_photograph(data, tmp_path):
    rng = np.random.default_rng(0)
    with RegionWriter(tmp_path / "regions/detected", "random") as writer:
        for key in corpora.image_files(data):
            if key.startswith("nlvr2:"): writer.append(key, Regions(rng.random((2, 8)), np.float32([[0, 0, 9, 9]] * 2), 10, 10))
    rows = {line.split()[0]: line for line in doctor(data, tmp_path, STUDY).splitlines() if " present " in line}
    assert rows["nlvr2"].endswith(" 100 %") and rows["vqa"].endswith(" 0 %") and len(rows) == 14


def test_parameters_are_those_of_the_model():
    config, answers = ViLBERTConfig.miniature(), {"vqa": 30, "gqa": 12}
    parameters, size = training_bytes(config, answers, regions=13)
    assert parameters == sum(p.numel() for p in TwelveInOne(config, answers).parameters()) and size > 16 * parameters


def test_the_command_ends_with_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="vl12in1: no dvc.yaml in"): main(["doctor"])
    with pytest.raises(SystemExit, match="vl12in1: .*no corpus there"): main(["leaks", "data"])
    with pytest.raises(SystemExit, match="vl12in1: .*no complete region store"): main(["verify", "store"])
    with pytest.raises(SystemExit, match="vl12in1: "): main(["features", "nowhere", "store"])


def test_a_folder_can_be_examined_outside_of_a_checkout(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["doctor", str(data)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{data}, outside of a checkout of the study" and sum(" present " in line for line in lines) == 14
    assert not any(line.startswith(("memory ", "disk ")) for line in lines) and any(line.startswith("accelerator ") for line in lines)


@pytest.mark.parametrize("file, old, new, problem", [
    ("params.yaml", "profile: miniature", "profile: huge", "no profile 'huge'"),
    ("params.yaml", "profile: miniature", "profile: [", "no YAML"),
    ("profiles/miniature.yaml", "preset: miniature", "preset: huge", "preset 'huge'"),
    ("profiles/miniature.yaml", "  common:", "  usual:", "common is missing"),
    ("profiles/miniature.yaml", "word_pieces:", "pieces:", "pieces")])
def test_settings_that_are_wrong_are_one_line(tmp_path, monkeypatch, file, old, new, problem):
    assert problem in refusal(["doctor", "."], tmp_path, monkeypatch, file, old, new)


@pytest.mark.parametrize("file, old, new, problem", [
    ("profiles/full.yaml", "learning_rate:", "learnig_rate:", "learnig_rate"),
    ("params.yaml", "encoder: vilbert", "encoder: vibert", "encoder 'vibert' is not in profiles/full.yaml"),
    ("params.yaml", "overlap: 0.4", "overlapp: 0.4", "overlapp")])
def test_nothing_is_planned_with_settings_that_are_wrong(tmp_path, monkeypatch, file, old, new, problem):
    assert problem in refusal(["plan", "full"], tmp_path, monkeypatch, file, old, new)


def refusal(command, folder, monkeypatch, file, old, new):
    "The one line that a command ends with in a checkout, in `folder`, in whose settings there is `new` where `old` stood."
    root = Path(__file__).parents[1]
    for name in ("dvc.yaml", "params.yaml"): shutil.copy(root / name, folder)
    shutil.copytree(root / "profiles", folder / "profiles")
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end: main(command)
    assert "\n" not in end.value.code
    return end.value.code


@pytest.mark.parametrize("rates", ["", "[]", "{}", '{"steps": {"vqa": 1}}', '{"steps": {}}', '{"steps": 5, "device": "a"}'])
def test_rates_that_are_none_name_their_file(tmp_path, rates):
    path = tmp_path / "accelerator.json"
    path.write_text(rates)
    with pytest.raises(ValueError, match=f"{path}: (cannot be read|no report|not as benchmarks)"): read_rates(path)


def test_leaks_decide_the_exit_status(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as end: main(["leaks", str(data)])
    assert end.value.code == 1 and "learned from are" in capsys.readouterr().out
    from vl12in1.cleaning import save_images, test_images
    save_images(test_images(corpora.load(data)), tmp_path / "test_images.json")
    main(["leaks", str(data), "--drop", str(tmp_path / "test_images.json")])
    assert "none is learned from" in capsys.readouterr().out
