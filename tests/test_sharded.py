"""Several processes write one region store: the same bytes as one process, whatever was killed on the way."""
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from vl12in1 import processes
from vl12in1.duplicates import perceptual_hashes, stored_hashes
from vl12in1.processes import Processes, ProcessLost, launch
from vl12in1.regions import (Detector, DetectorConfig, RegionStore, RegionWriter, StoreError, extract, extract_by, extract_given, joining,
                             open_detector, save_detector, verify, writing)
from vl12in1.world.photos import encode, render
from vl12in1.world.scenes import sample_scene

HERE = Path(__file__)
BOXES = {f"coco:{number}": np.array([[0, 0, .5, .5], [.25, .25, 1, 1]][:1 + number % 2]) for number in range(0, 44, 3)}


def few(patch):
    "Parts of eight pictures, and a line of the journal for every three."
    patch(processes, "PART", 8)
    patch(writing, "BATCH", 3)


def mortal(patch, place, number):
    "This process kills itself when it does something for the `number`-th time."
    owner = {"append": writing.RegionWriter, "_move": joining, "_write_manifest": joining}[place]
    original, calls = getattr(owner, place), []

    def deadly(*arguments):
        calls.append(arguments)
        if len(calls) == number: os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)
    patch(owner, place, deadly)


def images_in(folder):
    return {f"coco:{path.stem}": path for path in folder.glob("*.jpg")}


def work(pictures, folder, die_at):
    "What a process of a job does: its parts of two stores and of the hashes; the second one dies with its `die_at`-th picture."
    few(setattr)
    torch.set_num_threads(1)
    if Processes.join().rank == 1: mortal(setattr, "append", die_at)
    detector, images = open_detector(pictures / "detector"), images_in(pictures)
    extract(detector, images, folder / "detected", batch_size=4)
    extract_given(detector, images, BOXES, folder / "given", batch_size=4)
    stored_hashes(images, folder / "hashes", workers=1).to_parquet(folder / f"{os.environ['RANK']}.parquet")


def start(count, pictures, folder, die_at=0):
    "Have so many processes do it."
    launch(count, str(HERE), str(pictures), str(folder), str(die_at))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "A folder of drawn pictures, and an untrained detector in it."
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(44): (folder / f"{number}.jpg").write_bytes(encode(render(sample_scene(rng), rng), "jpg"))
    config = DetectorConfig(channels=(8, 8), dilations=(1,), feature_dim=8, boxes=4)
    save_detector(Detector.new(config, ["background", "ball"], ["red"]), folder / "detector")
    return folder


@pytest.fixture
def detector(pictures, monkeypatch):
    few(monkeypatch.setattr)
    torch.set_num_threads(1)
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1]))
    return open_detector(pictures / "detector")


@pytest.fixture
def one(pictures, detector, tmp_path):
    "The bytes of the store of detected regions, written by one process."
    extract(detector, images_in(pictures), tmp_path / "one", batch_size=4)
    return contents(tmp_path / "one")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_complete(folder, pictures, expected):
    "Every picture is in the store once, and nothing else in the folder."
    assert contents(folder) == expected
    assert verify(folder)["images"] == 44 and RegionStore.open(folder).keys() == sorted(images_in(pictures))


def test_parts_make_the_store_that_is_written_in_one_go(pictures, detector, one, tmp_path, monkeypatch):
    assert_complete(tmp_path / "one", pictures, one)
    parts = extract(detector, images_in(pictures), tmp_path / "parts", batch_size=1)
    monkeypatch.setattr(processes, "PART", 44)
    whole = extract(detector, images_in(pictures), tmp_path / "whole", batch_size=1)
    assert (len(whole.manifest["shards"]), len(parts.manifest["shards"])) == (1, 6)
    for key in whole.keys():
        for field in ("features", "boxes", "class_probs"):
            np.testing.assert_array_equal(getattr(parts[key], field), getattr(whole[key], field))


def test_two_processes_write_the_bytes_of_one(pictures, detector, one, tmp_path):
    pytest.importorskip("imagehash")
    start(2, pictures, tmp_path)
    assert_complete(tmp_path / "detected", pictures, one)
    extract_given(detector, images_in(pictures), BOXES, tmp_path / "one given", batch_size=4)
    assert contents(tmp_path / "given") == contents(tmp_path / "one given")
    hashes = perceptual_hashes(images_in(pictures)).sort_index()
    for rank in (0, 1): pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{rank}.parquet"), hashes)


@pytest.mark.slow
def test_when_a_process_is_killed_the_job_ends_with_one_error_and_goes_on_with_more_or_fewer(pictures, detector, one, tmp_path,
                                                                                           monkeypatch, capfd):
    "The second process dies with four pictures of its second part: three are described in the journal, one is not."
    with pytest.raises(ProcessLost, match=r"process 1 of 2 has ended \(exit status -9\), and the others were stopped"):
        start(2, pictures, tmp_path / "killed", die_at=13)
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "killed/detected/manifest.json").exists()
    shutil.copytree(tmp_path / "killed", tmp_path / "fewer")

    start(3, pictures, tmp_path / "killed")
    assert_complete(tmp_path / "killed/detected", pictures, one)

    looked, detect = [], type(detector).detect
    monkeypatch.setattr(type(detector), "detect", lambda self, batch: looked.extend(batch) or detect(self, batch))
    extract(detector, images_in(pictures), tmp_path / "fewer/detected", batch_size=4)
    assert_complete(tmp_path / "fewer/detected", pictures, one)
    assert 4 <= len(looked) <= 44 - 8, "a complete part was looked at again"


@pytest.mark.parametrize("place, number", [("_move", 1), ("_move", 4), ("_write_manifest", 1), ("append", 1), ("append", 13),
                                           ("append", 44)])
def test_killed_at_any_time_it_is_made_good_by_starting_again(pictures, detector, one, tmp_path, place, number):
    images, folder = images_in(pictures), tmp_path / "killed"
    if not (child := os.fork()):
        try:
            mortal(setattr, place, number)
            extract(detector, images, folder, batch_size=4)
        finally: os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    extract(detector, images, folder, batch_size=4)
    assert_complete(folder, pictures, one)


def test_a_join_that_was_killed_at_its_very_end_is_tidied(pictures, detector, one, tmp_path):
    (tmp_path / "one/parts/00000-of-00006").mkdir(parents=True)
    with pytest.raises(StoreError, match="one: already holds a complete region store"):
        extract(detector, images_in(pictures), tmp_path / "one", batch_size=4)
    assert_complete(tmp_path / "one", pictures, one)


def beginning(folder, detector, images, pictures=13):
    "An extraction that was stopped: its first part is complete, its second one is not."
    broken = images | {sorted(images)[pictures]: folder / "absent.jpg"}
    with pytest.raises(OSError, match="absent.jpg"): extract(detector, broken, folder, batch_size=4)
    assert (folder / "parts/00000-of-00006/manifest.json").exists() and (folder / "parts/00001-of-00006/journal").exists()


@pytest.mark.parametrize("complete", [True, False])
def test_a_part_of_another_extractor_is_refused_by_name(pictures, detector, tmp_path, complete):
    images = images_in(pictures)
    beginning(tmp_path, detector, images)
    if not complete: (tmp_path / "parts/00000-of-00006").rename(tmp_path / "elsewhere")
    if not complete: (tmp_path / "parts/00001-of-00006").rename(tmp_path / "parts/00000-of-00006")
    other = Detector.new(DetectorConfig(channels=(8, 8), dilations=(1,), feature_dim=8, seed=1), detector.class_names, ["red"])
    reason = "was written by another extractor" if complete else "holds the beginning of a store with another settings"
    with pytest.raises(StoreError, match=f"00000-of-00006: {reason}.*delete the folder"): extract(other, images, tmp_path, batch_size=4)


@pytest.mark.parametrize("change, message", [
    (lambda images: dict(sorted(images.items())[1:]), "00000-of-00006: holds other images than it should"),
    (lambda images: dict(sorted(images.items())[:40]), "00000-of-00006: holds a part of the store as other pictures would be divided"),
    (lambda images: dict(sorted(images.items())[:8]), "00000-of-00006: holds a part of the store as other pictures would be divided")])
def test_other_pictures_than_it_was_begun_with_are_an_error(pictures, detector, tmp_path, change, message):
    beginning(tmp_path, detector, images_in(pictures))
    with pytest.raises(StoreError, match=message): extract(detector, change(images_in(pictures)), tmp_path, batch_size=4)


@pytest.mark.parametrize("name", ["index.parquet", "features-00000.bin", "notes.txt", "parts/wheel.jpg"])
@pytest.mark.parametrize("complete", [False, True])
def test_no_part_is_written_among_other_files(pictures, detector, tmp_path, name, complete):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    if complete: (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match="holds"): extract(detector, images_in(pictures), tmp_path, batch_size=4)
    assert [each for each in tmp_path.rglob("*") if each.is_file() and each.name != "manifest.json"] == [path]


def test_what_one_process_is_writing_no_other_one_touches(pictures, detector, one, tmp_path):
    images, part = images_in(pictures), tmp_path / "store/parts/00002-of-00006"
    with pytest.raises(KeyboardInterrupt), RegionWriter(part, **detector.record("detected")):
        with pytest.raises(StoreError, match="00002-of-00006: another process is writing there"):
            extract(detector, images, tmp_path / "store", batch_size=4)
        raise KeyboardInterrupt
    extract(detector, images, tmp_path / "store", batch_size=4)
    assert_complete(tmp_path / "store", pictures, one)


@pytest.mark.slow
def test_a_stage_starts_processes_with_the_detector_of_a_folder(pictures, detector, tmp_path):
    "They have fewer pictures than one part, so that one of them writes, and the other waits for it."
    images = images_in(pictures)
    extract_by(2, pictures / "detector", images, tmp_path / "two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vl12in1.processes.PART", 100)
        extract(detector, images, tmp_path / "one")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    with pytest.raises(ProcessLost): extract_by(2, pictures / "detector", images, tmp_path / "two")


if __name__ == "__main__":
    pictures, folder, die_at = sys.argv[1:]
    work(Path(pictures), Path(folder), int(die_at))
