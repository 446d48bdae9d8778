"Files that are written whole or not at all, and strangers' pickles and pictures, read without obeying them."
import os
import pickle
import pickletools
import re
import subprocess
import sys
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vl12in1
from vl12in1.evaluation.records import read_item_lines, read_report
from vl12in1.evaluation.submissions import read_submission
from vl12in1.files import StandIn, open_picture, plain_pickle, regular, room_beside, write_array, written
from vl12in1.weights import write_tensors

RECORDS = [{"id": 1, "tokens": ["left", "Tasse", "caf\xe9", "\u732b"], "box": [1.5, -2, 2 ** 40, True, None], "raw": "x" * 300, "more": {}}]


# --- written

def test_a_new_file_is_there_whole_with_the_permissions_of_any_other(tmp_path):
    (tmp_path / "other").touch()
    with written(tmp_path / "new") as part:
        part.write_text("text")
        part.chmod(0o600)
    assert (tmp_path / "new").read_text() == "text" and len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), OSError(28, "No space left on device")])
def test_after_an_exception_the_old_file_is_there_and_nothing_else(tmp_path, error):
    (tmp_path / "old").write_text("old")
    with pytest.raises(type(error)) as caught, written(tmp_path / "old") as part:
        part.write_text("n")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_text() == "old"
    assert not isinstance(error, OSError) or str(tmp_path / "old") in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 300, "none/file", "folder", "\xe9" * 200])
def test_a_place_where_no_file_can_be_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught, written(tmp_path / name): pytest.fail("nothing is to be written")
    assert str(tmp_path / name) in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_name_of_the_longest_kind_is_written(tmp_path):
    with written(tmp_path / ("x" * 255)) as part: part.write_text("text")
    assert (tmp_path / ("x" * 255)).read_text() == "text"


@pytest.mark.parametrize("name", ["scores", "x" * 255, "od[d]*.txt"])
def test_what_a_killed_process_left_is_removed_at_the_next_write(tmp_path, name):
    code = f"from vl12in1.files import written\nimport os\nwith written({str(tmp_path / name)!r}) as part: os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert len([*tmp_path.iterdir()]) == 1
    others = [".scores.0.part", ".other.4000000.part", f".scores.{os.getppid()}.part", ".scores.x.part", f".scores.{'9' * 30}.part"]
    for other in others: (tmp_path / other).touch()
    with written(tmp_path / name) as part: part.write_text("text")
    assert {path.name for path in tmp_path.iterdir()} == {name, *others}


def test_what_a_killed_process_left_in_its_room_is_removed_at_the_next_write(tmp_path):
    path = tmp_path / "model.safetensors"
    code = (f"from vl12in1.files import room_beside\nimport os\nwith room_beside({str(path)!r}) as room:\n"
            "    (room / '.tmp4x').write_text('half')\n    os.kill(os.getpid(), 9)")
    subprocess.run([sys.executable, "-c", code], check=False)
    assert [entry.is_dir() for entry in tmp_path.iterdir()] == [True]
    write_tensors({"weight": torch.ones(2)}, path)
    assert list(tmp_path.iterdir()) == [path] and load_file(path)["weight"].tolist() == [1, 1]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_room_is_gone_after_an_exception(tmp_path, error):
    with pytest.raises(type(error)), room_beside(tmp_path / "file") as room:
        (room / "draft").touch()
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_room_where_there_can_be_none_names_the_file(tmp_path):
    with pytest.raises(OSError, match="nowhere/file'"), room_beside(tmp_path / "nowhere/file"): pass


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.int32).reshape(2, 3).T, np.zeros((0, 3)), np.array([], int), np.float32(2)])
def test_arrays_are_the_bytes_of_numpy(tmp_path, array):
    write_array(tmp_path / "own.npy", array)
    np.save(tmp_path / "other.npy", np.ascontiguousarray(array))
    assert (tmp_path / "own.npy").read_bytes() == (tmp_path / "other.npy").read_bytes()


ELSEWHERE = {"study/", "world/", "toy.py", "regions/together.py"}  # which write what is made again


def test_files_are_written_whole_by_all_that_write_them():
    own = Path(vl12in1.__file__).parent
    modules = [path for path in own.rglob("*.py") if not path.relative_to(own).as_posix().startswith(tuple(ELSEWHERE))]
    assert modules and [f"{path.name}: {line.strip()}" for path in modules for line in path.read_text().splitlines()
                        if re.search(r"\.write_(text|bytes)\(|np\.save\(|\.to_csv\([^)]*path", line)
                        and "with written(" not in line and "part.write" not in line] == []


# --- regular, open_picture

def test_pipes_folders_and_holes_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "hole", "wb") as file: file.truncate(10 ** 11)
    for path, reason in (tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device"), (tmp_path / "hole", "hole"):
        with pytest.raises(OSError, match=reason) as caught: regular(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("read", [read_report, read_item_lines, partial(read_submission, "vqa", None)])
def test_a_pipe_is_no_report_and_no_result_file(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((OSError, ValueError), match="a pipe") as caught: read(tmp_path / "pipe")
    assert f"{tmp_path}/pipe" in str(caught.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_pictures_of_every_format_are_opened_by_what_is_in_them(tmp_path, format):
    Image.new("RGB", (5, 4), "red").save(tmp_path / "picture.dat", format)
    with open_picture(tmp_path / "picture.dat") as picture: assert (picture.format, picture.size) == (format, (5, 4))


def test_pictures_that_are_none_or_too_large_are_refused(tmp_path, monkeypatch):
    Image.new("L", (20, 20)).save(tmp_path / "large.png")
    for name, content in {"eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no.png": b"no"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=name): open_picture(tmp_path / name)
    for limit in (300, 150):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match="pixels"): open_picture(tmp_path / "large.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match="a pipe"): open_picture(tmp_path / "pipe.png")


# --- pickles

@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read_with_every_protocol(protocol):
    content = [*RECORDS, (1, "two"), {(1, 2): b"bytes" if protocol > 2 else 3}]
    assert plain_pickle(pickle.dumps(RECORDS, protocol)) == RECORDS
    assert plain_pickle(pickle.dumps(content, protocol)) == content
    assert plain_pickle(pickletools.optimize(pickle.dumps(RECORDS, protocol))) == RECORDS


def nested(opening, closing, depth, key): return b"\x80\x02" + opening * depth + b"N" + closing * depth + key


def laughs(items, depth):
    value = [1]
    for _ in range(depth): value = items(value)
    return pickle.dumps([value], protocol=4)


HOSTILE = {
    "a call": (pickle.dumps([os.getcwd], 2), "posix.getcwd"),
    "a call of old": (b"cos\nsystem\n(S'touch PWNED'\ntR.", "os.system"),
    "an instance": (b"(S'touch PWNED'\nios\nsystem\n.", "KeyError"),
    "a list of lists": (laughs(lambda value: [value] * 10, 24), "no relation"),
    "a tuple of tuples": (laughs(lambda value: (value, value), 40), "no relation"),
    "a dictionary of dictionaries": (laughs(lambda value: {"a": value, "b": value}, 40), "no relation"),
    "a long text again and again": (pickle.dumps(["x" * 10 ** 5] * 10 ** 5, 2), "no relation"),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "100 deep"),
    "a deep list": (nested(b"]", b"a", 10 ** 5, b"."), "100 deep"),
    "a deep key": (b"\x80\x02}N" + b"\x85" * 150_000 + b"K\x01s.", "a key that is a tuple"),
    "deep keys": (b"\x80\x02}(N" + b"\x85" * 150_000 + b"K\x01u.", "a key that is a tuple"),
    "a key of lists": (b"\x80\x02}]K\x01s.", "unhashable"),
    "8 GB of a byte array": (b"\x80\x05\x96" + (2 ** 33).to_bytes(8, "little") + b".", "8,589,934,592 bytes"),
    "8 GB of bytes": (b"\x80\x04\x8e" + (2 ** 33).to_bytes(8, "little") + b".", "8,589,934,592 bytes"),
    "8 GB of text": (b"\x80\x04\x8d" + (2 ** 33).to_bytes(8, "little") + b".", "8,589,934,592 bytes"),
    "8 GB of a frame": (b"\x80\x04\x95" + (2 ** 33).to_bytes(8, "little") + b"N.", "before byte"),
    "2 GB of a number": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "2,147,483,647 bytes"),
    "more behind its end": (pickle.dumps(RECORDS, 2) + b"more", "ends at byte"),
    "a cut": (pickle.dumps(RECORDS, 2)[:-1], "cut off"),
    "nothing": (b"", "cut off"),
    "no pickle": (b"<html>", "before byte"),
    "a state for a number": (b"\x80\x02K\x01}b.", "gives a int a state"),
    "a call of a number": (b"\x80\x02K\x01)R.", "no function"),
    "another file": (b"\x80\x02K\x01Q.", "another file"),
    "a protocol of the future": (b"\x80\x63N.", "protocol"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_are_one_error(case):
    data, reason = HOSTILE[case]
    with pytest.raises(ValueError, match="its pickle") as caught: plain_pickle(data)
    assert reason in str(caught.value) and not Path("PWNED").exists()


def test_pages_of_the_memo_that_were_not_written_take_no_room():
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 ** 30, 2 ** 30))
from vl12in1.files import plain_pickle
print(plain_pickle(bytes.fromhex('80025d72000000102e')), plain_pickle(b']p999999999\\n.'))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


class Point(StandIn):
    def __init__(self, *arguments): self.arguments = arguments
    def __setstate__(self, state): self.state = state


def test_names_that_are_wanted_become_what_stands_for_them():
    value = plain_pickle(pickle.dumps([np.arange(3), OrderedDict(a=1)], 2), {
        "numpy.core.multiarray._reconstruct": Point, "numpy._core.multiarray._reconstruct": Point, "numpy.ndarray": StandIn(),
        "numpy.dtype": Point, "_codecs.encode": lambda text, _: text.encode("latin1"), "collections.OrderedDict": StandIn})
    assert value[0].state[1] == (3,) and value[0].state[2].arguments[0] == "i8" and type(value[1]) is StandIn


@pytest.mark.parametrize("data, reason", [
    (b"\x80\x02cm\nPoint\n}b.", "gives a type a state"), (b"\x80\x02cm\nPoint\nK\x01)\x81.", "KeyError"),
    (b"\x80\x02cm\nPoint\nK\x01K\x02s.", "puts items into a type"), (b"\x80\x02cm\nPoint\nK\x01a.", "appends to a type"),
    (b"\x80\x02X\xff\x0f\x00\x00" + b"x" * 4095 + b"q\x00" + b"cm\nPoint\nh\x00\x85R0" * 1000 + b"N.", "no relation")])
def test_nothing_but_a_call_is_made_of_a_name(data, reason):
    with pytest.raises(ValueError, match=reason): plain_pickle(data, {"m.Point": Point})


@pytest.mark.parametrize("position", range(0, 200, 7))
def test_one_changed_byte_is_an_error_or_other_values(position):
    data = bytearray(pickle.dumps([RECORDS, (1, 2)], 4))
    for value in (0, 0x28, 0x52, 0x80, 0xff, data[position] ^ 1):
        try: plain_pickle(bytes(data[:position]) + bytes([value]) + bytes(data[position + 1:]))
        except ValueError as error: assert "its pickle" in str(error)
