"""Near-duplicates: the search misses no pair and invents none; copies of a picture are near it, others are not."""
import io
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from fuzz import tries
from vl12in1 import duplicates

imagehash = pytest.importorskip("imagehash", reason="the extra vl12in1[duplicates] is not installed")


# --- the search

bits64 = st.integers(0, 2**64 - 1)


@st.composite
def crowds(draw):
    "Hashes that are near each other: a few of them, with a few bits changed."
    seeds = draw(st.lists(bits64, min_size=1, max_size=4))
    flips = st.lists(st.integers(0, 63), max_size=7).map(lambda places: sum(1 << place for place in set(places)))
    return np.array(draw(st.lists(st.builds(lambda seed, flip: seed ^ flip, st.sampled_from(seeds), flips), max_size=25)),
                    dtype=np.uint64)


def brute(left, right, distance):
    return [[i, j, bits] for i, one in enumerate(left.tolist()) for j, other in enumerate(right.tolist())
            if (bits := (one ^ other).bit_count()) <= distance]


@given(crowds(), crowds(), st.integers(0, 12) | st.just(63))
@tries(80)
def test_every_pair_and_no_other(one, other, distance):
    right = np.concatenate([other, one[:5]])
    assert duplicates._near(one, right, distance).tolist() == brute(one, right, distance)


@pytest.mark.parametrize("distance", [0, 1, 4, 7])
def test_differences_in_any_places_are_found(distance):
    rng = np.random.default_rng(distance)
    left = rng.integers(0, 2**64, 300, dtype=np.uint64)
    flips = [sum(1 << int(place) for place in rng.choice(64, distance, replace=False)) for _ in left]
    right = left ^ np.array(flips, dtype=np.uint64)
    rows = duplicates._near(left, right, distance)
    assert rows[rows[:, 0] == rows[:, 1]].tolist() == [[i, i, distance] for i in range(300)]
    assert duplicates._near(left, right, distance - 1).tolist() == []


def test_large_groups_are_cut_into_blocks(monkeypatch):
    monkeypatch.setattr(duplicates, "_block", 7)
    left, right = np.zeros(9, np.uint64), np.array([0] * 5 + [2**63], np.uint64)
    assert duplicates._near(left, right, 1).tolist() == brute(left, right, 1)
    assert len(duplicates._near(left, right, 0)) == 45


def test_real_numbers_of_hashes_take_seconds():
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, 2**64, 50_000, dtype=np.uint64) for _ in range(2))
    right[:20] = left[:20] ^ np.uint64(0x8000400020001000)
    started = time.perf_counter()
    assert duplicates._near(left, right, 4).tolist() == [[i, i, 4] for i in range(20)]
    assert time.perf_counter() - started < 8


def table(**hashes):
    rows = {f"a:{name}": dict(hash=value, contrast=40.0, problem="") for name, value in hashes.items()}
    return pd.DataFrame.from_dict(rows, orient="index").astype({"hash": np.uint64})


def test_pairs_are_named_sorted_and_never_of_one_image():
    hashes = table(x=2**63, y=2**63 + 1, z=2**63 + 3, far=2**40 - 1)
    pairs = duplicates.near_duplicates(hashes, ["a:x", "a:y", "a:y"], hashes.index, 2)
    assert pairs[["left", "right", "distance"]].values.tolist() == [
        ["a:x", "a:y", 1], ["a:y", "a:x", 1], ["a:y", "a:z", 1], ["a:x", "a:z", 2]]
    assert not pairs["flat"].any()
    for left, right in [([], hashes.index), (["a:x"], []), (["a:x"], ["a:far"])]:
        empty = duplicates.near_duplicates(hashes, left, right)
        assert empty.empty and list(empty) == list(pairs)


def test_flat_pictures_are_marked_and_unreadable_ones_left_out():
    hashes = table(x=7, y=7, z=7)
    hashes.loc["a:y", "contrast"] = duplicates.FLAT / 2
    hashes.loc["a:z", "problem"] = "z.jpg: cannot be read"
    pairs = duplicates.near_duplicates(hashes, ["a:x", "a:z"], ["a:y", "a:x", "a:z"])
    assert pairs.values.tolist() == [["a:x", "a:y", 0, True]]


def test_an_image_without_hash_is_an_error():
    with pytest.raises(KeyError, match="no hash of image 'a:q' and 1 others"):
        duplicates.near_duplicates(table(x=1), ["a:x", "a:q"], ["a:x", "a:r"])


# --- the pictures

def picture(seed, size=(480, 360)):
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist()))
    for _ in range(16):
        corner, extent = rng.uniform(-60, 400, 2), rng.uniform(30, 220, 2)
        draw = ImageDraw.Draw(image)
        shape = draw.ellipse if rng.random() < .5 else draw.rectangle
        shape([*corner.tolist(), *(corner + extent).tolist()], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def encoded(image, quality):
    image.save(buffer := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(buffer)


CHANGES = {"half": lambda image: image.resize((240, 180)), "larger": lambda image: image.resize((1600, 1200)),
           "encoded": lambda image: encoded(image, 20), "both": lambda image: encoded(image.resize((300, 225)), 30),
           "grey": lambda image: image.convert("L"), "palette": lambda image: image.quantize(128),
           "alpha": lambda image: image.convert("RGBA"), "cut": lambda image: image.crop((4, 3, 476, 357))}


def test_copies_are_found_among_a_hundred_others(tmp_path):
    files = {}
    for seed in range(100):
        picture(seed).save(tmp_path / f"{seed}.jpg", quality=92)
        files[f"original:{seed}"] = tmp_path / f"{seed}.jpg"
    for seed, (name, change) in enumerate(CHANGES.items()):
        change(picture(seed)).save(tmp_path / f"{name}.png")
        files[f"copy:{name}"] = tmp_path / f"{name}.png"
    hashes = duplicates.perceptual_hashes(files)
    assert list(hashes.index) == list(files) and hashes["hash"].dtype == np.uint64 and (hashes["problem"] == "").all()
    pairs = duplicates.near_duplicates(hashes, {key for key in files if key.startswith("copy")},
                                       {key for key in files if key.startswith("original")})
    assert dict(zip(pairs["left"], pairs["right"])) == {f"copy:{name}": f"original:{i}" for i, name in enumerate(CHANGES)}
    assert len(pairs) == len(CHANGES) and not pairs["flat"].any()


def test_the_hash_is_that_of_the_library(tmp_path):
    picture(0).save(tmp_path / "0.png")
    picture(1, (1600, 1200)).save(tmp_path / "1.jpg")
    hashes = duplicates.perceptual_hashes({"a:0": tmp_path / "0.png", "a:1": tmp_path / "1.jpg"}, workers=1)["hash"]
    with Image.open(tmp_path / "0.png") as image: assert f"{hashes['a:0']:016x}" == str(imagehash.phash(image))
    with Image.open(tmp_path / "1.jpg") as image: whole = int(str(imagehash.phash(image)), 16)
    assert (int(hashes["a:1"]) ^ whole).bit_count() <= 2  # the JPEG was decoded at a smaller scale


@pytest.mark.parametrize("content", [b"", b"no picture", "cut.jpg", "cut.png"])
def test_what_cannot_be_read_is_listed_and_ends_nothing(tmp_path, content):
    if isinstance(content, str):
        picture(0).save(tmp_path / content)
        content = (tmp_path / content).read_bytes()[:700]
    (tmp_path / "broken.jpg").write_bytes(content)
    picture(1).save(tmp_path / "good.jpg")
    hashes = duplicates.perceptual_hashes({"a:1": tmp_path / "broken.jpg", "a:2": tmp_path / "good.jpg",
                                           "a:3": tmp_path / "absent.jpg"})
    assert (hashes["problem"] == "").tolist() == [False, True, False]
    for key, name in [("a:1", "broken.jpg"), ("a:3", "absent.jpg")]:
        assert hashes["problem"][key].startswith(f"{tmp_path / name}: cannot be read")


def test_broken_chunks_and_bombs_are_listed_too(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "chunk.png")
    first, *others = (tmp_path / "chunk.png").read_bytes().split(b"IDAT")
    (tmp_path / "chunk.png").write_bytes(first + b"IDAT" + b"\x9d#\x99v".join(others))
    hashes = duplicates.perceptual_hashes({"a:1": tmp_path / "chunk.png"})
    assert "chunk.png: cannot be read (broken PNG" in hashes["problem"]["a:1"]
    picture(1).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "bomb" in duplicates.perceptual_hashes({"a:2": tmp_path / "large.png"})["problem"]["a:2"]


def test_blank_pictures_are_flat(tmp_path):
    noise = np.random.default_rng(0).integers(-2, 3, (120, 160))
    Image.new("RGB", (160, 120), "white").save(tmp_path / "white.png")
    Image.fromarray((20 + noise).astype(np.uint8)).save(tmp_path / "night.jpg")
    picture(0).save(tmp_path / "picture.jpg")
    hashes = duplicates.perceptual_hashes({f"a:{path.name}": path for path in tmp_path.iterdir()})
    assert (hashes["contrast"] < duplicates.FLAT).to_dict() == {"a:white.png": True, "a:night.jpg": True, "a:picture.jpg": False}


def test_no_pictures_are_no_rows():
    hashes = duplicates.perceptual_hashes({})
    assert hashes.empty and hashes["hash"].dtype == np.uint64
    assert duplicates.near_duplicates(hashes, [], []).empty


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ImportError, match=r"pip install 'vl12in1\[duplicates\]'"):
        duplicates.perceptual_hashes({})
