"""The region store: round trips, damage, processes. The detector: parity with explicit loops, invariances."""
import dataclasses
import json
import multiprocessing
import os
import pickle
import re
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from fuzz import tries
from vl12in1.boxes import iou, to_fractions
from vl12in1.regions import Regions, RegionStore, RegionWriter, StoreError, verify, writing
from vl12in1.regions.detector import (STRIDE, Detector, DetectorConfig, load_detector, non_maximum_suppression,
                                      pool_regions, read_picture, save_detector)
from vl12in1.regions.detector_training import name_scores, recall, train_detector
from vl12in1.regions.extraction import extract, extract_given, given_boxes, read_boxes
from vl12in1.regions.store import manifest_digest


def some_regions(rng, count, dim=8, classes=3, width=96, height=128):
    corners = rng.uniform(0, .6, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(.05, .4, (count, 2))], axis=1)
    boxes *= [width, height, width, height]
    probs = rng.dirichlet(np.ones(classes), count).astype(np.float16) if classes else None
    return Regions(rng.normal(size=(count, dim)).astype(np.float16), boxes.astype(np.float32), width, height, probs)


def write(folder, images, classes=3, shard_bytes=2**30):
    with RegionWriter(folder, "drawn", {}, [f"c{i}" for i in range(classes)], shard_bytes) as writer:
        for key, regions in images.items(): writer.append(key, regions)
    return RegionStore.open(folder)


def assert_same(found, written):
    np.testing.assert_array_equal(found.features, written.features)
    np.testing.assert_array_equal(found.boxes, written.boxes)
    assert (found.width, found.height) == (written.width, written.height)
    assert (found.class_probs is None) == (written.class_probs is None)
    if written.class_probs is not None: np.testing.assert_array_equal(found.class_probs, written.class_probs)


@given(counts=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
                              st.integers(1, 9), max_size=12),
       classes=st.sampled_from([0, 4]), shard_bytes=st.sampled_from([1, 64, 2**30]), seed=st.integers(0, 99))
@tries(40)
def test_what_is_written_is_read(tmp_path_factory, counts, classes, shard_bytes, seed):
    rng = np.random.default_rng(seed)
    images = {key: some_regions(rng, count, classes=classes) for key, count in counts.items()}
    folder = tmp_path_factory.mktemp("store")
    store = write(folder, images, classes=classes, shard_bytes=shard_bytes)
    assert sorted(store.keys()) == sorted(images) and len(store) == len(images)
    for key, regions in images.items(): assert_same(store[key], regions)
    assert "no such image" not in store
    assert verify(folder)["regions"] == sum(counts.values())


@pytest.fixture
def images():
    rng = np.random.default_rng(5)
    return {f"coco:{number}": some_regions(rng, 1 + number % 4) for number in range(20)}


def test_views_are_read_only_and_share_the_map(tmp_path, images):
    store = write(tmp_path, images)
    first = store["coco:1"]
    with pytest.raises(ValueError): first.features[0, 0] = 1
    assert np.shares_memory(first.features, store["coco:1"].features)


def test_two_writes_make_the_same_bytes(tmp_path, images):
    for name in "ab": write(tmp_path / name, images, shard_bytes=100)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) > 4 and names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names: assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_cut_off_store_is_recognised_and_can_be_written_again(tmp_path, images):
    with pytest.raises(KeyboardInterrupt):
        with RegionWriter(tmp_path, "drawn", {}, ["c0", "c1", "c2"]) as writer:
            for number, (key, regions) in enumerate(images.items()):
                if number == 13: raise KeyboardInterrupt
                writer.append(key, regions)
    with pytest.raises(StoreError, match="no manifest.json.*run the extraction again"): RegionStore.open(tmp_path)
    assert len(write(tmp_path, {"coco:19": images["coco:19"]})) == 14
    verify(tmp_path)


def test_a_complete_store_is_not_overwritten(tmp_path, images):
    write(tmp_path, images)
    with pytest.raises(StoreError, match="delete the folder"): write(tmp_path, images)
    verify(tmp_path)


# Continuing

def go_on(folder, images, shard_bytes, at=None):
    "Write what is not there yet; `at`: called with the writer after every image. Returns the number of images found."
    with RegionWriter(folder, "drawn", {"threshold": .5}, ["a", "b", "c"], shard_bytes) as writer:
        found = sum(key in writer for key in images)
        for key, regions in images.items():
            if key in writer: continue
            writer.append(key, regions)
            if at: at(writer)
    return found


def killed(write):
    "Run `write` in a process of its own, which has to end by SIGKILL."
    if not (child := os.fork()):
        try: write()
        finally: os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill(*_): os.kill(os.getpid(), signal.SIGKILL)


def contents(folder): return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(6)
    return {f"coco:{number}": some_regions(rng, 1 + number % 4) for number in range(150)}


@pytest.fixture(scope="module", params=[500, 2**30])
def whole(request, many, tmp_path_factory):
    "(bytes per shard, the bytes of a store that was written in one go)."
    folder = tmp_path_factory.mktemp("whole")
    go_on(folder, many, request.param)
    return request.param, contents(folder)


@pytest.mark.parametrize("after", [[1], [31], [32], [33], [149], [150], [40, 41, 100]])
def test_a_killed_writer_goes_on(tmp_path, many, whole, after):
    size, expected = whole
    for count in after:
        killed(lambda: go_on(tmp_path, many, size, lambda writer: len(writer) == count and kill()))
        with pytest.raises(StoreError, match="no manifest"): RegionStore.open(tmp_path)
    found = go_on(tmp_path, many, size)
    assert after[-1] - writing.BATCH < found <= after[-1]
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("place, number", [("_write_manifest", 1), ("_finish", 1), ("_claim", 1),
                                           *(("_journal_line", number) for number in range(1, 6))])
def test_killed_in_a_bad_moment(tmp_path, many, whole, place, number, monkeypatch):
    size, expected = whole
    original, calls = getattr(writing, place), []
    def deadly(*arguments):
        calls.append(arguments)
        return kill() if len(calls) == number else original(*arguments)
    with monkeypatch.context() as patched:
        patched.setattr(writing, place, deadly)
        killed(lambda: go_on(tmp_path, many, size))
    found = go_on(tmp_path, many, size)
    assert contents(tmp_path) == expected
    assert found == {"_write_manifest": 150, "_finish": 150, "_claim": 0}.get(place, found) and (found > 0 or number < 3)


def test_killed_with_the_manifest_written(tmp_path, many, whole, monkeypatch):
    size, expected = whole
    with monkeypatch.context() as patched:
        write_manifest = writing._write_manifest
        patched.setattr(writing, "_write_manifest", lambda *a: (write_manifest(*a), kill()))
        killed(lambda: go_on(tmp_path, many, size))
    assert verify(tmp_path)["images"] == 150
    with pytest.raises(StoreError, match="already holds a complete"): go_on(tmp_path, many, size)
    assert contents(tmp_path) == expected


def unfinished(folder, images, size, count=100):
    "Leave a writer by an error after `count` images."
    def stop(writer):
        if len(writer) == count: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): go_on(folder, images, size, stop)


def test_an_error_loses_nothing(tmp_path, many, whole):
    size, expected = whole
    unfinished(tmp_path, many, size)
    assert go_on(tmp_path, many, size) == 100
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("share", [0, .001, .2, .5, .9, .999])
@pytest.mark.parametrize("tail", [b"", b"\0" * 5000, b"00000000 {}\n", b"deadbeef [1]\n" * 3])
def test_a_damaged_journal_is_believed_up_to_the_damage(tmp_path, many, whole, share, tail):
    size, expected = whole
    unfinished(tmp_path, many, size)
    data = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(data[:int(share * len(data))] + tail)
    found = go_on(tmp_path, many, size)
    assert found <= 100 * share + 10 and (found > 0 or share < .4)
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("field", ["features", "boxes", "class_probs"])
@pytest.mark.parametrize("harm", ["behind", "short", "flipped", "empty", "gone"])
def test_rows_that_are_not_as_described_are_written_again(tmp_path, many, field, harm):
    size = 2**30
    go_on(tmp_path / "whole", many, size)
    unfinished(tmp_path / "cut", many, size)
    path = tmp_path / "cut" / f"{field}-00000.bin"
    data = bytearray(path.read_bytes())
    if harm == "behind": data += b"garbage" * 999
    if harm == "short": del data[-1:]
    if harm == "flipped": data[len(data) // 2] ^= 1
    if harm == "empty": del data[:]
    if harm == "gone": path.unlink()
    else: path.write_bytes(data)
    found = go_on(tmp_path / "cut", many, size)
    assert found in {"behind": [100], "short": [96], "flipped": [32, 64]}.get(harm, [0])
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_closed_shard_of_another_size_is_an_error(tmp_path, many):
    unfinished(tmp_path, many, 500)
    (tmp_path / "boxes-00001.bin").write_bytes(b"")
    with pytest.raises(StoreError, match="boxes-00001.bin: 0 bytes, expected .*delete the folder"): go_on(tmp_path, many, 500)


@pytest.mark.parametrize("change", [{"extractor": "other"}, {"settings": {"threshold": .4}}, {"class_names": ["a", "b", "d"]},
                                    {"class_names": []}, {"shard_bytes": 999}])
def test_beginnings_of_two_stores_are_not_mixed(tmp_path, many, change):
    unfinished(tmp_path, many, 500)
    before = contents(tmp_path)
    arguments = dict(extractor="drawn", settings={"threshold": .5}, class_names=["a", "b", "c"], shard_bytes=500) | change
    with pytest.raises(StoreError, match=f"another .*{next(iter(change))}.*delete the folder"):
        with RegionWriter(tmp_path, **arguments): pass
    assert contents(tmp_path) == before
    assert go_on(tmp_path, many, 500) == 100


def test_an_image_that_did_not_fit_does_not_spoil_the_rest(tmp_path, many):
    key, bad = "coco:x", some_regions(np.random.default_rng(0), 3, dim=9)
    with RegionWriter(tmp_path / "a", "drawn", {"threshold": .5}, ["a", "b", "c"]) as writer:
        for number, (name, regions) in enumerate(many.items()):
            writer.append(name, regions)
            if number % 50 == 7:
                with pytest.raises(StoreError, match="features of shape"): writer.append(key, bad)
                assert key not in writer
    go_on(tmp_path / "b", many, 2**30)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_full_disk_is_named_and_loses_nothing(tmp_path, many, whole):
    size, expected = whole
    def fill(writer):
        if len(writer) == 70: writer._progress.rows.open_shard().files["boxes"] = open("/dev/full", "wb")
    with pytest.raises(OSError, match=f"No space left on device; mend that and run this again.*{tmp_path.name}"):
        go_on(tmp_path, many, size, fill)
    assert go_on(tmp_path, many, size) > 70 - writing.BATCH
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "<i8"])
def test_numbers_of_any_type_are_stored_as_numpy_would(tmp_path, dtype):
    rng = np.random.default_rng(1)
    numbers = (rng.normal(size=(300, 64)) * 10. ** rng.integers(-9, 5, (300, 64))).clip(-60000, 60000).astype(dtype)
    numbers[:, ::7] = numbers[::-1, ::7]
    box = np.tile([[0, 0, 9, 9]], (300, 1))
    for name, array in (("c", numbers), ("f", np.asfortranarray(numbers)), ("s", np.repeat(numbers, 2, 1)[:, ::2])):
        array.setflags(write=False)
        store = write(tmp_path / name, {"coco:1": Regions(array, box, 9, 9)}, classes=0)
        np.testing.assert_array_equal(store["coco:1"].features, numbers.astype("<f4").astype("<f2"))


@pytest.mark.parametrize("name", ["features-00000.bin", "boxes-00000.bin", "class_probs-00000.bin", "index.parquet"])
def test_damage_is_found(tmp_path, images, name):
    write(tmp_path, images)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(StoreError, match=f"{name}: damaged"): verify(tmp_path)
    (tmp_path / name).write_bytes(data[:-1])
    with pytest.raises(StoreError, match=f"{name}: {len(data) - 1} bytes"): RegionStore.open(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StoreError, match=f"{name}: 0 bytes"): RegionStore.open(tmp_path)


def test_another_schema_is_refused(tmp_path, images):
    write(tmp_path, images)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(StoreError, match="schema 99"): RegionStore.open(tmp_path)


@pytest.mark.parametrize("change, problem", [
    ({"features": np.full((2, 8), np.inf)}, "not finite"),
    ({"features": np.full((2, 8), 1e6)}, "not finite"),
    ({"features": np.zeros((2, 9))}, "features of shape"),
    ({"features": np.zeros((3, 8))}, "features of shape"),
    ({"boxes": np.float32([[0, 0, 9, 9], [5, 5, 5, 9]])}, "without area"),
    ({"boxes": np.float32([[0, 0, 9, 9], [5, 5, np.nan, 9]])}, "without area"),
    ({"boxes": np.float32([[0, 0, 9, 9], [5, 5, 99, 9]])}, "outside"),
    ({"boxes": np.float32([[0, -2, 9, 9], [5, 5, 9, 9]])}, "outside"),
    ({"class_probs": np.zeros((2, 4))}, "class_probs of shape"),
    ({"class_probs": None}, "class_probs"),
    ({"class_probs": np.full((2, 3), np.nan)}, "class_probs are not finite"),
    ({"boxes": np.zeros((0, 4)), "features": np.zeros((0, 8)), "class_probs": np.zeros((0, 3))}, "no regions"),
])
def test_bad_regions_name_their_image(tmp_path, change, problem):
    good = dict(features=np.zeros((2, 8)), boxes=np.float32([[0, 0, 9, 9], [5, 5, 9, 9]]), width=96, height=128,
                class_probs=np.full((2, 3), 1 / 3))
    with pytest.raises(StoreError, match=f"image 'coco:3': .*{problem}"):
        write(tmp_path / "bad", {"coco:1": Regions(**good), "coco:3": Regions(**{**good, **change})})
    assert len(write(tmp_path / "good", {"coco:3": Regions(**good)})) == 1


@pytest.mark.parametrize("key, problem", [("album:\udcff", "no UTF-8 text"), ("a" * 1001, "its key has 1,001 bytes, more than 1,000")])
def test_a_key_that_no_store_can_hold_is_refused_at_once(tmp_path, images, key, problem):
    with pytest.raises(StoreError, match=f"image .*: .*{problem}"): write(tmp_path, images | {key: images["coco:1"]})
    assert len(write(tmp_path, {"a" * 1000: images["coco:1"]})) == 21


def _total(store, keys):
    return float(sum(store[key].features.astype(np.float64).sum() for key in keys))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_read_the_same_numbers(tmp_path, images, method):
    store = write(tmp_path, images, shard_bytes=100)
    if method == "fork": store["coco:0"]
    with multiprocessing.get_context(method).Pool(2) as pool:
        totals = pool.starmap(_total, [(store, store.keys())] * 3)
    assert totals == [_total(store, images)] * 3


def test_what_is_sent_to_a_worker_does_not_grow(tmp_path, images):
    store = write(tmp_path, images)
    store["coco:3"]
    before = len(pickle.dumps(store))
    more = write(tmp_path / "more", {f"coco:{number}": images["coco:1"] for number in range(2000)})
    assert len(pickle.dumps(more)) < before + 50


def test_an_empty_store_is_a_store(tmp_path):
    store = write(tmp_path, {})
    assert len(store) == 0 and store.keys() == [] and "coco:1" not in store


# The detector

@pytest.fixture(scope="module")
def detector():
    made = Detector.new(DetectorConfig(channels=(8, 12), dilations=(1, 2), feature_dim=16, seed=3),
                        ["background", "ball", "box"], ["large", "red", "small"])
    rng = torch.Generator().manual_seed(4)
    for layer in made.modules.modules():
        if isinstance(layer, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            for tensor in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
                tensor.copy_(.5 + torch.rand(tensor.shape, generator=rng))
    return made


def some_picture(rng, height, width):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def read_between_cells(cells, y, x):
    "Bilinear value of cells (C, h, w) at a place counted in cells; zero outside."
    total = np.zeros(cells.shape[0])
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < cells.shape[1] and 0 <= column < cells.shape[2]:
                total += cells[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def test_pooling_equals_an_explicit_loop():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 3, 7, 9)).astype(np.float32)
    boxes = np.float32([[[0, 0, 36, 28], [3, 5, 20, 12], [-6, -3, 9, 40]],
                        [[30, 20, 36, 28], [1, 1, 3, 3], [10, 2, 35, 27]]])
    pooled = pool_regions(torch.from_numpy(maps), torch.from_numpy(boxes), 3).numpy()
    for picture, number, i, j in np.ndindex(2, 3, 3, 3):
        x1, y1, x2, y2 = boxes[picture, number]
        x, y = x1 + (j + .5) / 3 * (x2 - x1), y1 + (i + .5) / 3 * (y2 - y1)
        expected = read_between_cells(maps[picture], y / STRIDE - .5, x / STRIDE - .5)
        np.testing.assert_allclose(pooled[picture, number, :, i, j], expected, atol=1e-5)


def plain_iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@given(seed=st.integers(0, 9999), count=st.integers(1, 25), overlap=st.sampled_from([.1, .3, .5, .9]),
       limit=st.integers(1, 12))
@tries(60)
def test_suppression_equals_striking_out(seed, count, overlap, limit):
    boxes = np.random.default_rng(seed).uniform(0, 10, (count, 4))
    boxes[:, 2:] = boxes[:, :2] + .5 + boxes[:, 2:]
    left, kept = list(range(count)), []
    while left and len(kept) < limit:
        best, *others = left
        kept.append(best)
        left = [row for row in others if plain_iou(boxes[best], boxes[row]) <= overlap]
    assert non_maximum_suppression(boxes, overlap, limit) == kept


def same_regions(found, expected):
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.features.astype(float), expected.features.astype(float), atol=5e-3)
    np.testing.assert_allclose(found.class_probs.astype(float), expected.class_probs.astype(float), atol=5e-3)
    assert (found.width, found.height) == (expected.width, expected.height)


@pytest.mark.parametrize("shape", [(96, 128), (61, 75), (5, 7)])
def test_padding_does_not_change_features(detector, shape):
    rng = np.random.default_rng(1)
    picture, larger = some_picture(rng, *shape), some_picture(rng, 130, 141)
    boxes = np.float32([[0, 0, shape[1], shape[0]], [1, 1, shape[1] / 2, shape[0] / 2]])
    alone, = detector.describe([picture], [boxes])
    beside = detector.describe([larger, picture], [np.float32([[3, 3, 99, 99]]), boxes])[1]
    same_regions(beside, alone)
    same_regions(detector.detect([larger, picture])[1], detector.detect([picture])[0])


def test_described_as_detected(detector):
    rng = np.random.default_rng(2)
    pictures = [some_picture(rng, 96, 128), some_picture(rng, 112, 112)]
    found = detector.detect(pictures)
    described = detector.describe(pictures, [regions.boxes for regions in found])
    for each, again in zip(found, described): same_regions(again, each)
    for regions in found:
        assert 1 <= len(regions.boxes) <= detector.config.boxes
        np.testing.assert_allclose(regions.class_probs.sum(1, dtype=float), 1, atol=5e-3)
        assert np.triu(iou(regions.boxes, regions.boxes), 1).max() <= detector.config.overlap


@pytest.mark.parametrize("score", [0., 1.])
def test_every_picture_has_a_box_inside_of_it(detector, score):
    strict = dataclasses.replace(detector, config=dataclasses.replace(detector.config, score=score))
    pictures = [np.zeros((64, 50, 3), np.uint8), some_picture(np.random.default_rng(0), 33, 97)]
    for regions, picture in zip(strict.detect(pictures), pictures):
        assert len(regions.boxes) >= 1
        assert (regions.boxes >= 0).all() and (regions.boxes[:, 2:] <= [picture.shape[1], picture.shape[0]]).all()


def squares(count, seed):
    "Pictures with one or two bright squares on dark ground, red or blue, and their objects."
    rng, pictures, rows = np.random.default_rng(seed), {}, []
    for number in range(count):
        picture = rng.integers(0, 40, (64, 48, 3), dtype=np.uint8)
        for left, (color, channel) in zip((2, 26), (("red", 0), ("blue", 2))):
            side, top = int(rng.integers(12, 20)), int(rng.integers(2, 44))
            picture[top:top + side, left:left + side, channel] = 230
            box = left / 48, top / 64, (left + side) / 48, (top + side) / 64
            rows.append((f"coco:{number}", "square", (color,), box))
        pictures[f"coco:{number}"] = picture
    return pictures, pd.DataFrame(rows, columns=["image", "name", "attributes", "box"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    pictures, objects = squares(24, seed=0)
    folder = tmp_path_factory.mktemp("squares")
    images = {key: folder / f"{key[5:]}.png" for key in pictures}
    for key, picture in pictures.items(): Image.fromarray(picture).save(images[key])
    config = DetectorConfig(channels=(8, 16), dilations=(1, 2), feature_dim=16, boxes=4, epochs=12, batch_size=4,
                            learning_rate=1e-2)
    return images, objects, train_detector(images, objects, config)


def test_it_learns_to_find_and_to_tell_apart(trained):
    _, _, detector = trained
    pictures, objects = squares(12, seed=1)
    found = dict(zip(pictures, detector.detect(pictures.values())))
    assert recall(found, objects) >= .9
    boxes = [np.array(objects[objects["image"] == key]["box"].tolist()) * [48, 64, 48, 64] for key in pictures]
    described = dict(zip(pictures, detector.describe(pictures.values(), boxes)))
    scores = name_scores(detector, described, objects)
    assert scores["things"].to_dict() == {"square": 24, "blue": 12, "red": 12}
    assert (scores[["recall", "precision"]] >= .9).all(axis=None)


def test_the_same_seed_gives_the_same_weights(trained):
    images, objects, _ = trained
    few = dict(list(images.items())[:6])
    config = DetectorConfig(channels=(8, 8), dilations=(1,), feature_dim=8, epochs=1, batch_size=4)
    first, second, other = (train_detector(few, objects, dataclasses.replace(config, seed=seed)).modules.state_dict()
                            for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.fc6.weight"], other["head.fc6.weight"])


def test_a_saved_detector_sees_the_same(trained, tmp_path):
    images, _, detector = trained
    save_detector(detector, tmp_path)
    loaded = load_detector(tmp_path)
    for field in ("config", "class_names", "attribute_names"): assert getattr(loaded, field) == getattr(detector, field)
    picture = read_picture(images["coco:0"])
    assert_same(loaded.detect([picture])[0], detector.detect([picture])[0])


def test_extraction_does_not_depend_on_batches(trained, tmp_path):
    images, _, detector = trained
    one, many = (extract(detector, images, tmp_path / str(size), batch_size=size) for size in (1, 7))
    assert one.keys() == many.keys() == sorted(images)
    for key in images: same_regions(one[key], many[key])


def test_a_killed_extraction_is_no_store(trained, tmp_path):
    images, _, detector = trained
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(OSError): extract(detector, {**images, "coco:99": broken}, tmp_path / "store", batch_size=1)
    with pytest.raises(StoreError, match="no manifest.json"): RegionStore.open(tmp_path / "store")


def test_given_boxes_are_those_of_training_and_all_candidates():
    rng = np.random.default_rng(0)
    drawn = [tuple(row) for row in np.sort(rng.uniform(0, 1, (6, 4)), axis=1).tolist()]
    pointing = pd.DataFrame({"images": [("coco:9",), ("coco:10",)], "candidates": [drawn[:3], drawn[1:2]]})
    frames = {"visual7w": {"test": pointing},
              "refcoco": {split: pd.DataFrame({"images": [("coco:9",)], "box": [box]}) for split, box in
                          (("train", drawn[4]), ("val", drawn[5]), ("test", drawn[5]))},
              "vqa": {"train": pd.DataFrame({"images": [("coco:1",)], "answers": [("yes",)]})}}
    found = given_boxes(frames)
    assert list(found) == ["coco:10", "coco:9"]
    assert found["coco:9"].tolist() == sorted(map(list, [*drawn[:3], drawn[4]]))


@pytest.mark.parametrize("boxes, problem", [
    ({"x": 1}, "{'x': 1} is no list"), (None, "None is no list"), ("abc", "'abc' is no list"), ([], r"\[\] is no list"),
    (7, "7 is no list"), ([1, 2, 3], "1 is no box"), ([[1, 2, 3]], r"\[1, 2, 3\] is no box, which is four numbers"),
    ([[float("nan"), 1, 2, 3]], "nan, 1, 2, 3. is no box"),
    ([[0, 0, 9, 9], [0, 0, float("inf"), 9]], "inf, 9. is no box"), ([[0, 0, 10 ** 400, 9]], "is no box"), ([["0", 0, 9, 9]], "is no box"),
    ([[0, 0, 9, True]], "is no box"), ([[[0, 0, 9, 9]]], "is no box"), ([[9, 0, 2, 9]], "has no area in the picture"),
    ([[0, 5, 9, 5]], "has no area"),
    ([[0, 0, 1, .5], [.25, .1, .5, .5]], "smaller than a pixel"),
    ([[60, 0, 70, 9]], "has no area .* of 60 x 40 pixels"), ([[-9, -9, 0, 0]], "has no area")])
def test_what_is_no_box_is_named_with_its_picture(tmp_path, boxes, problem):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    (tmp_path / "boxes.json").write_text(json.dumps({"album:a": boxes}))
    with pytest.raises(ValueError, match=f"boxes.json: boxes of 'album:a': .*{problem}") as error:
        read_boxes(tmp_path / "boxes.json", {"album:a": tmp_path / "a.png"})
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text, problem", [('{"album:b": []}', "no picture 'album:b'"), ("[]", "not a JSON object"),
                                           ("{", "cannot be read"), ("[" * 10 ** 5, "cannot be read .nested too deeply")])
def test_what_is_no_file_of_boxes_is_named(tmp_path, text, problem):
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(ValueError, match=f"boxes.json: .*{problem}"): read_boxes(tmp_path / "boxes.json", {})


def test_boxes_that_are_asked_for_are_fractions_of_their_pictures(tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    images = {"album:a": tmp_path / "a.png", "album:b": tmp_path / "a.png"}
    (tmp_path / "boxes.json").write_text('{"album:a": [[0, 0, 30, 20], [-3, 10.0, 90, 40]], "album:b": [6, 4, 60, 40]}')
    boxes = read_boxes(tmp_path / "boxes.json", images)
    assert boxes["album:a"].tolist() == [[0, 0, .5, .5], [-.05, .25, 1.5, 1]] and boxes["album:b"].tolist() == [[.1, .1, 1, 1]]


def test_given_boxes_keep_their_order(trained, tmp_path):
    images, objects, detector = trained
    boxes = {key: np.array(sorted(rows.tolist())) for key, rows in objects.groupby("image")["box"]}
    store = extract_given(detector, images, boxes, tmp_path, batch_size=5)
    for key, fractions in boxes.items():
        regions = store[key]
        np.testing.assert_allclose(to_fractions(regions.boxes, regions.width, regions.height), fractions, atol=1e-6)
        same_regions(regions, detector.describe([read_picture(images[key])], [regions.boxes])[0])


class Killed(Exception): pass

def begun(folder, detector, images, boxes):
    "An extraction that ends after its first batch."
    looks = iter([detector.describe if boxes else detector.detect])
    def look(*asked):
        for looks_once in looks: return looks_once(*asked)
        raise Killed
    dying = SimpleNamespace(record=detector.record, detect=look, describe=look)
    with pytest.raises(Killed): extract_given(dying, images, boxes, folder, 5) if boxes else extract(dying, images, folder, 5)


def test_a_begun_store_does_not_go_on_with_other_boxes(trained, tmp_path):
    images, _, detector = trained
    boxes = {key: np.array([[0, 0, .5, .5], [.2, .2, .9, .9]]) for key in images}
    begun(tmp_path / "store", detector, images, boxes)
    for other in (slice(1), slice(None, None, -1)):
        with pytest.raises(StoreError, match="store: its beginning holds regions of 'coco:.*' in other boxes than these; delete"):
            extract_given(detector, images, {key: rows[other] for key, rows in boxes.items()}, tmp_path / "store", 5)
    extract_given(detector, images, boxes, tmp_path / "store", 5)
    extract_given(detector, images, boxes, tmp_path / "at once", 5)
    assert contents(tmp_path / "store") == contents(tmp_path / "at once")


def test_a_begun_store_does_not_go_on_with_other_pictures(trained, tmp_path):
    images, _, detector = trained
    begun(tmp_path / "store", detector, images, None)
    Image.new("RGB", (31, 77)).save(tmp_path / "other.png")
    with pytest.raises(StoreError, match="regions of 'coco:.*' in a picture of another size than .*other.png; delete"):
        extract(detector, dict.fromkeys(images, tmp_path / "other.png"), tmp_path / "store", 5)
    extract(detector, images, tmp_path / "store", 5)
    extract(detector, images, tmp_path / "at once", 5)
    assert contents(tmp_path / "store") == contents(tmp_path / "at once")


# --- folders that hold other files

MINE = ["pytorch_model-00001-of-00002.bin", "index.parquet", "features-mine.bin", "boxes-2019.bin", "notes-draft.bin"]


def filled(folder, *names):
    "A folder of somebody's files."
    folder.mkdir(parents=True)
    for name in names: (folder / name).write_bytes(b"mine")
    return folder


@pytest.mark.parametrize("names", [MINE, *([name] for name in MINE), ["features-00000.bin"], ["notes.txt", "journal"], ["journal", *MINE]])
def test_no_store_begins_among_other_files(tmp_path, images, names):
    folder = filled(tmp_path / "mine", *names)
    with pytest.raises(StoreError, match=f"mine: holds {min(set(names) - {'journal'})}, and no .* write to a folder that is empty"):
        write(folder, images)
    assert contents(folder) == dict.fromkeys(names, b"mine")


def test_a_store_that_has_lost_its_manifest_is_kept(tmp_path, images):
    write(tmp_path, images)
    (tmp_path / "manifest.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(StoreError, match="holds boxes-00000.bin, and no region store that was begun"): write(tmp_path, images)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("size", [500, 2**30])
def test_a_begun_store_goes_on_beside_other_files(tmp_path, many, size):
    unfinished(tmp_path, many, size)
    for name in ("notes-draft.bin", "features-mine.bin", ".index.parquet.7.part"): (tmp_path / name).write_bytes(b"mine")
    assert go_on(tmp_path, many, size) == 100
    assert verify(tmp_path)["images"] == 150 and (tmp_path / "notes-draft.bin").read_bytes() == b"mine"


def test_hidden_files_are_in_nobodys_way(tmp_path, images):
    (tmp_path / ".gitignore").write_text("*")
    assert len(write(tmp_path, images)) == len(images) and (tmp_path / ".gitignore").exists()


# --- stores that are damaged, or somebody else's

def two_stores(folder):
    for name, dim in (("store", 4), ("other", 6)):
        with RegionWriter(folder / name, "test", shard_bytes=64) as writer:
            for image in range(6):
                writer.append(f"coco:{image}", Regions(np.ones((2, dim)), np.float32([[0, 0, 9, 9], [1, 1, 8, 8]]), 20, 10))
    return folder / "store"


def edited(*way, value):
    def edit(store):
        manifest = target = json.loads((store / "manifest.json").read_text())
        for step in way[:-1]: target = target[step]
        target[way[-1]] = value
        manifest["sha256"] = manifest_digest(manifest)  # by somebody who knows the format
        (store / "manifest.json").write_text(json.dumps(manifest))
    return edit


def indexed(**columns):
    def edit(store):
        index = pd.read_parquet(store / "index.parquet")
        index.assign(**{name: value(index) if callable(value) else value for name, value in columns.items()}).to_parquet(
            store / "index.parquet", index=False)
        edited("index", "bytes", value=(store / "index.parquet").stat().st_size)(store)
    return edit


def rows_of(edit):
    def change(store):
        edit(pd.read_parquet(store / "index.parquet")).to_parquet(store / "index.parquet", index=False)
        edited("index", "bytes", value=(store / "index.parquet").stat().st_size)(store)
    return change


ODD = [None, [], "../../x", -1, 2 ** 62, 1.5, True, [{}]]
WAYS = [("extractor",), ("extractor", "name"), ("class_names",), ("feature_dim",), ("images",), ("index",), ("index", "file"),
        ("index", "bytes"), ("shards",), ("shards", 0), ("shards", 0, "rows"), ("shards", 0, "fields"), ("shards", 0, "fields", "boxes"),
        ("shards", 0, "fields", "boxes", "file"), ("shards", 0, "fields", "boxes", "bytes"), ("schema",), ("regions",),
        ("dtypes",), ("dtypes", "boxes")]
SOUND = {"extractor.name '../../x'", "class_names []", "schema True"}
BYTES = {"no JSON": ("manifest.json", b"{"), "deep JSON": ("manifest.json", b"[" * 10 ** 5), "no text": ("manifest.json", b"\xff\xfe"),
         "a list": ("manifest.json", b"[]"), "a cut index": ("index.parquet", b"PAR1"), "a cut shard": ("boxes-00000.bin", bytes(16)),
         "a longer shard": ("boxes-00000.bin", bytes(1600))}
INDEX = {"a shard that is not there": dict(shard=99), "a shard below": dict(shard=-1), "rows behind": dict(first=99),
         "rows before": dict(first=-1), "no rows": dict(rows=0), "endless rows": dict(rows=2 ** 40), "no width": dict(width=0),
         "texts for numbers": dict(first="x"),
         "gaps": dict(first=lambda index: index["first"].where(index.key != "coco:1")), "numbers for keys": dict(key=range(6)),
         "a long key": dict(key=lambda index: [*index.key[:-1], "coco:" + "9" * 10 ** 6]), "one key twice": dict(key="coco:1")}
BROKEN = {f"{'.'.join(map(str, way))} {value!r}": edited(*way, value=value) for way in WAYS for value in ODD}
BROKEN |= {case: lambda store, name=name, content=content: (store / name).write_bytes(content) for case, (name, content) in BYTES.items()}
BROKEN |= {case: indexed(**columns) for case, columns in INDEX.items()}
BROKEN |= {
    "no shard": lambda store: (store / "boxes-00000.bin").unlink(), "keys out of order": rows_of(lambda index: index[::-1]),
    "fewer rows": rows_of(lambda index: index[:3]), "no column": rows_of(lambda index: index.drop(columns="first")),
    "another index": lambda store: (store / "index.parquet").write_bytes(b"x" * (store / "index.parquet").stat().st_size),
    "another store's manifest": lambda store: (store / "manifest.json").write_bytes((store.parent / "other/manifest.json").read_bytes())}


@pytest.mark.parametrize("old, new", [
    ('"test"', '"tEst"'), ('"regions": 12', '"regions": 13'), ('"sha256": "', '"sha256": "0'), ('"sha256"', '"sha25x"'),
    ('"dtypes"', '"d"'), ('"settings": {}', '"settings": {"a": 1}')])
def test_a_manifest_that_does_not_say_what_was_written(tmp_path, old, new):
    store = two_stores(tmp_path)
    text = (store / "manifest.json").read_text()
    before, _, after = text.rpartition(old)
    (store / "manifest.json").write_text(before + new + after)
    with pytest.raises(StoreError, match="manifest.json: damaged"): RegionStore.open(store)


@pytest.mark.parametrize("entry, value, problem", [
    ("regions", "x", "its regions are 'x', and its shards have 12"), ("regions", 5, "its regions are 5, and its shards have 12"),
    ("dtypes", {"features": "<f2", "boxes": "<f8"}, "its dtypes are not {'features': '<f2', 'boxes': '<f4'}")])
def test_entries_of_a_manifest_agree_with_its_shards(tmp_path, entry, value, problem):
    store = two_stores(tmp_path)
    edited(entry, value=value)(store)
    with pytest.raises(StoreError, match=f"manifest.json: damaged, {re.escape(problem)}; copy it again"): verify(store)


def test_what_a_manifest_written_by_hand_leaves_out_is_counted(tmp_path):
    store = two_stores(tmp_path)
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({name: manifest[name] for name in manifest.keys() - {"regions", "dtypes", "sha256"}}))
    assert verify(store)["regions"] == 12 and len(RegionStore.open(store)) == 6


@pytest.mark.parametrize("damage", BROKEN)
def test_a_damaged_store_is_one_error_that_names_it(tmp_path, damage):
    store = two_stores(tmp_path)
    BROKEN[damage](store)
    try: assert RegionStore.open(store)["coco:5"].features.tolist() == [[1.] * 4] * 2
    except StoreError as error: assert str(error).startswith(str(store)) and "\n" not in str(error) and len(str(error)) < 500
    if damage in SOUND: return
    with pytest.raises(StoreError): verify(store)
