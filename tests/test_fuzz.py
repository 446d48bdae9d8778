"Readers of every kind of file are given damaged ones: what they say is what is written, or one error that names the file."
import os
import shutil
import time

import pytest

from faults import fuzzing


@pytest.fixture(scope="module", autouse=True)
def miniature_world(tmp_path_factory):
    fuzzing.WORLD = tmp_path_factory.mktemp("miniature") / f"world{os.getpid()}"
    yield
    shutil.rmtree(fuzzing.WORLD, ignore_errors=True)


FEWER = {"checkpoint": 6, "leak lists": 15, "model": 15, "weights.bin": 15, "weights.safetensors": 15}  # they take longer than the others


@pytest.mark.parametrize("target", fuzzing.TARGETS)
def test_a_damaged_file_is_read_as_it_is_or_named(target):
    wrong, ends, most = fuzzing.findings(target, range(FEWER.get(target, 28)))
    assert wrong == [] and ends and most["seconds"][0] < fuzzing.SECONDS and most["megabytes"][0] << 20 < fuzzing.MEMORY


FOUND = [("leak lists", 31), ("leak lists", 32), ("leak lists", 474), ("reports", 68), ("reports", 124), ("features arrays.lmdb", 41),
         ("features base64.lmdb", 433), ("store", 143), ("features arrays.hdf5", 359), ("detector", 515), ("frames", 586),
         ("checkpoint", 141)]


@pytest.mark.parametrize("target, seed", FOUND)
def test_what_was_found_once_stays_mended(target, seed):
    assert [one.end for one in fuzzing.outcomes(target, [seed]) if one.end not in fuzzing.GOOD] == []


def test_another_result_an_error_without_a_name_and_a_lost_process_are_found(tmp_path, monkeypatch):
    "The harness itself: each of what it is to find, once."
    def read(folder):
        content = (folder / "file.txt").read_text()
        if content == "good\n": return content
        if len(content) % 3 == 0: os.kill(os.getpid(), 9)
        raise {1: ValueError, 2: KeyError}[len(content) % 3]("no name")
    monkeypatch.setitem(fuzzing.TARGETS, "bad", fuzzing.Target(lambda folder: (folder / "file.txt").write_text("good\n"), read))
    ends = {one.end for one in fuzzing.outcomes("bad", range(60))}
    assert {"lost: status -9", "ValueError names no file: no name"} <= ends and any(end.startswith("KeyError at") for end in ends)


def test_a_seed_makes_the_same_damage_again():
    one, other = ([outcome[:4] for outcome in fuzzing.outcomes("word lists", [3, 7])] for _ in range(2))
    assert one == other


def test_what_an_input_takes_is_measured(monkeypatch):
    def read(folder):
        content = bytearray(2 ** 26)
        time.sleep(.1)
        return len(content) + len((folder / "file.txt").read_bytes())
    monkeypatch.setitem(fuzzing.TARGETS, "slow", fuzzing.Target(lambda folder: (folder / "file.txt").write_text("good\n"), read))
    outcome, = fuzzing.outcomes("slow", [0])
    assert .1 <= outcome.seconds < 5 and 60 <= outcome.megabytes < 200
