"""Published feature files: every format gives the same store; nothing hostile runs; boxes are read as they are meant."""
import base64
import codecs
import json
import os
import pickle
import re
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import published
import pytest
from fuzz import tries
from hypothesis import given, strategies as st
from published import as_sizes, record

from vl12in1.boxes import to_fractions
from vl12in1.regions import RegionStore, StoreError, importers, verify
from vl12in1.regions.importers import canonical_key, find_features, import_features
from vl12in1.regions.lmdb_pages import LmdbPages
from vl12in1.regions.published import Source, loads, read_features, read_npy

pytest.importorskip("lmdb")
h5py = pytest.importorskip("h5py")

WRITERS = {"arrays.lmdb": published.write_lmdb,
           "base64.lmdb": lambda path, made: published.write_lmdb(path, made, base64=True),
           "protocol2.lmdb": lambda path, made: published.write_lmdb(path, made, protocol=2),
           "unlisted.lmdb": lambda path, made: published.write_lmdb(path, made, keys=False),
           "bottom_up.tsv": published.write_tsv,
           "lxmert.tsv": lambda path, made: published.write_tsv(path, made, published.LXMERT),
           "groups.h5": published.write_h5, "arrays.hdf5": published.write_h5_arrays,
           "padded.h5": lambda path, made: published.write_h5_arrays(path, made, padding=3),
           "npy": published.write_npy, "mmf": lambda path, made: published.write_npy(path, made, info=True),
           "npz": published.write_npz, "uniter": lambda path, made: published.write_npz(path, made, fractions=True)}


def imported(folder, name, made, writer=published.write_lmdb, **options):
    "Write records as `name`, import them; returns (report, store)."
    (folder / "files").mkdir(exist_ok=True)
    writer(folder / "files" / name, made)
    report = import_features(find_features(folder / "files"), folder / "store", **options)
    return report, RegionStore.open(folder / "store")


@pytest.mark.parametrize("name", WRITERS)
def test_all_formats_say_the_same(tmp_path, name):
    report, store = imported(tmp_path, f"coco_{name}", (record(image) for image in range(40)), WRITERS[name])
    assert sorted(store.keys()) == sorted(f"coco:{image}" for image in range(40))
    for image in range(40):
        expected, found = record(image), store[f"coco:{image}"]
        np.testing.assert_allclose(found.boxes, expected["boxes"], atol=1e-4)
        np.testing.assert_array_equal(found.features, expected["features"].astype(np.float16))
        assert (found.width, found.height) == (640, 480)
    assert report.sources.loc[0, ["images", "regions", "again", "miscounted", "rejected"]].tolist() == [40, 160, 0, 0, 0]
    assert store.manifest["class_names"] == [] and verify(tmp_path / "store")["images"] == 40
    assert not (tmp_path / "store/journal").exists() and not (tmp_path / "store/rejected.csv").exists()


@pytest.mark.parametrize("name", ["arrays.lmdb", "base64.lmdb", "groups.h5", "npy", "mmf", "npz"])
def test_class_probabilities_are_kept_if_all_have_them(tmp_path, name):
    made = [record(image, classes=5) for image in range(3)]
    for folder in "ab": (tmp_path / folder).mkdir()
    _, store = imported(tmp_path / "a", f"coco_{name}", made, WRITERS[name])
    assert store.manifest["class_names"] == [f"class {number}" for number in range(5)]
    np.testing.assert_array_equal(store["coco:1"].class_probs, made[1]["cls_prob"].astype(np.float16))
    report, store = imported(tmp_path / "b", "coco_b.lmdb", [made[0], record(7)], on_error="skip", class_names="abcde")
    assert store.manifest["class_names"] == list("abcde")
    assert report.rejected.problem.tolist() == ["class_probs of shape None, expected 5 classes"]


def test_class_probabilities_of_some_sources_are_left_out(tmp_path):
    (tmp_path / "files").mkdir()
    published.write_lmdb(tmp_path / "files/coco.lmdb", [record(1, classes=5)])
    _, store = imported(tmp_path, "nlvr2.lmdb", [record("dev-1-0-img0")])
    assert store.manifest["class_names"] == [] and store["coco:1"].class_probs is None and len(store) == 2
    with pytest.raises(StoreError, match="2 class names; the sources have 0"):
        import_features(find_features(tmp_path / "files"), tmp_path / "named", class_names="ab")


# Nothing hostile runs

class Call:
    def __init__(self, function, *arguments): self.call = function, arguments
    def __reduce__(self): return self.call


ATTACKS = {"system": Call(os.system, "touch {}"), "eval": Call(eval, "open('{}', 'w')"), "open": Call(open, "{}", "w"),
           "codecs": Call(codecs.decode, "{}", "rot13"), "import": Call(__import__, "antigravity"),
           "load": Call(np.load, "{}"), "vectorize": Call(np.vectorize, len), "fromfile": Call(np.fromfile, "{}"),
           "object": np.array([None, 1]), "record": np.zeros(1, [("a", "f4")]), "date": pd.Timestamp(0)}


def armed(attack, path):
    if isinstance(attack, Call): return Call(attack.call[0], *(a.format(path) if isinstance(a, str) else a for a in attack.call[1]))
    return attack


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ["coco.lmdb", "coco_npy"])
def test_a_hostile_pickle_is_refused_and_named(tmp_path, attack, name):
    bad = record(2) | {"features": armed(ATTACKS[attack], tmp_path / "broken-into")}
    writer = published.write_npy if "npy" in name else published.write_lmdb
    with pytest.raises(StoreError, match=f"files/{name}: image '2': .*(its pickle cannot be read .it asks for|an array of type)"):
        imported(tmp_path, name, [record(1), bad, record(3)], writer)
    assert not (tmp_path / "broken-into").exists() and "antigravity" not in sys.modules
    report = import_features(find_features(tmp_path / "files"), tmp_path / "store", on_error="skip")
    assert RegionStore.open(tmp_path / "store").keys() == ["coco:1", "coco:3"]
    assert report.rejected.image.tolist() == ["2"]
    assert pd.read_csv(tmp_path / "store/rejected.csv", dtype=str).equals(report.rejected.astype("str"))


def test_a_pickle_cannot_change_what_reads_the_next_one():
    "BUILD with a pair sets attributes of whatever was named before it."
    for name in ("cnumpy\ndtype\n", "cnumpy\nndarray\n", "c_codecs\nencode\n"):
        for attribute in ("__code__", "__defaults__", "plain", "encode", "__setstate__", "__class__"):
            with pytest.raises(ValueError, match="a state"): loads(f"{name}(N}}S'{attribute}'\nNstb.".encode())
    test_arrays_survive(2, "<f4")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "<i8", "|u1", "|b1", "<U3", "|S3"])
def test_arrays_survive(protocol, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for each in (array, np.asfortranarray(array), array[:, ::2], array[:0], array[0, 0, 0]):
        found = loads(pickle.dumps({"a": [each]}, protocol))["a"][0]
        np.testing.assert_array_equal(found, each)
        assert np.asarray(found).dtype == each.dtype


def test_pickles_of_python_2_and_old_numpy_are_read():
    "As Python 2 wrote them: texts are bytes, and the array's module has its old name."
    data = np.float32([1, 2, 3]).tobytes()
    text = (b"\x80\x02}q\x00U\x08featuresq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02"
            b"cnumpy\nndarray\nq\x03K\x00\x85U\x01bq\x04\x87R"
            b"(K\x01K\x03\x85cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
            + bytes([len(data)]) + data + b"tbs.")
    assert loads(text)["features"].tolist() == [1, 2, 3]


@given(st.binary(max_size=200), st.integers(0, 400))
@tries(150)
def test_garbage_raises_and_does_nothing_else(garbage, place):
    good = pickle.dumps({"a": np.arange(6.)})
    for data in (garbage, good[:place] + garbage + good[place:], good[:place]):
        try: loads(data)
        except Exception: pass


def test_npy_headers_are_literals(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(3))
    path.write_bytes(path.read_bytes().replace(b"(3,)", b"f() "))
    with pytest.raises(ValueError): read_npy(path)
    np.save(path, np.array([{}, {}]))
    with pytest.raises(ValueError, match="expected one dictionary"): read_npy(path)


# Ids

@pytest.mark.parametrize("collection, image, key", [
    ("coco", "391895", "coco:391895"), ("coco", "000000391895", "coco:391895"), ("coco", "COCO_val2014_000000391895", "coco:391895"),
    ("coco", "train2014/COCO_train2014_000000391895.jpg", "coco:391895"), ("coco", "coco_test2015_000000000001", "coco:1"),
    ("refcoco", "391895", "coco:391895"), ("guesswhat", "0", "coco:0"), ("visual_genome", "VG_100K_2/2375429", "coco:5"),
    ("visual_genome", "7", "visual_genome:7"), ("gqa", "n123", "gqa:n123"), ("gqa", "2375429", "coco:5"), ("vg", "n9", "gqa:n9"),
    ("visual7w", "v7w_2375429", "coco:5"), ("flickr30k", "1000092795.jpg", "flickr30k:1000092795"),
    ("flickr30k", "flickr30k_000036979", "flickr30k:36979"), ("nlvr2", "train-10171-0-img0.png", "nlvr2:train-10171-0-img0"),
    ("nlvr2", "nlvr2_test1-0-1-img1", "nlvr2:test1-0-1-img1"), ("vizwiz", "VizWiz_val_00000007.jpg", "vizwiz:val_00000007"),
    ("conceptual_captions", "4012345678", "conceptual_captions:4012345678")])
def test_keys(collection, image, key):
    assert canonical_key(collection, image, {"visual_genome:2375429": "coco:5"}) == key


@pytest.mark.parametrize("collection, image", [("coco", "n5"), ("coco", ""), ("coco", "5x"), ("coco", "v7w_5"), ("flickr30k", "-1"),
                                               ("nlvr2", "train-1-0-img2"), ("gqa", "m5"), ("coco", "٣"), ("coco", "COCO_5_6")])
def test_ids_that_are_none(collection, image):
    with pytest.raises(StoreError, match="is no id of"): canonical_key(collection, image)


@pytest.mark.parametrize("image", ["0" * 10 ** 6 + "x", "9" * 10 ** 6, "coco_" + "a" * 10 ** 6, ".jpg" * 250_000, "0" * 2047 + "x"])
@pytest.mark.parametrize("collection", ["coco", "gqa", "flickr30k", "nlvr2", "conceptual_captions", "vizwiz"])
def test_an_id_without_end_is_none_at_once(collection, image):
    begin = time.monotonic()
    with pytest.raises(StoreError, match="is no id of") as error: canonical_key(collection, image)
    assert time.monotonic() - begin < 1 and len(str(error.value)) < 150


@pytest.mark.parametrize("collection, hint", [("cocoo", "did you mean 'coco'"), ("", "there are coco, refcoco, "),
                                              (None, "there are coco, ")])
def test_a_collection_that_is_none(collection, hint):
    with pytest.raises(ValueError, match=f"no collection {collection!r}; {hint}"): canonical_key(collection, "5")


def test_sources_are_found_by_content_and_named_by_prefix(tmp_path):
    assert find_features(tmp_path / "nothing") == []
    published.write_lmdb(tmp_path / "refcocog_gt", [record(1)])
    published.write_npz(tmp_path / "NLVR2_dev", [record("dev-1-0-img0")])
    published.write_tsv(tmp_path / "vg_gqa_obj36.tsv", [record(1)])
    (tmp_path / ".hidden").touch()
    found = {source.path.name: (source.format, source.collection) for source in find_features(tmp_path)}
    assert found == {"refcocog_gt": ("lmdb", "refcoco"), "NLVR2_dev": ("npz", "nlvr2"), "vg_gqa_obj36.tsv": ("tsv", "vg")}
    (tmp_path / "coco_empty").mkdir()
    with pytest.raises(StoreError, match="coco_empty: no features"): find_features(tmp_path)
    (tmp_path / "coco_empty").rename(tmp_path / "pictures")
    with pytest.raises(StoreError, match="pictures: name it by its images first"): find_features(tmp_path)


def test_a_source_whose_name_is_no_text_is_to_be_renamed(tmp_path):
    published.write_tsv(tmp_path / os.fsdecode(b"coco\xff.tsv"), [record(1)])
    with pytest.raises(StoreError, match="coco.*.tsv: its name is no UTF-8 text"): find_features(tmp_path)


def test_pieces_of_a_tsv_are_sources(tmp_path):
    for piece in (0, 1, 12): published.write_tsv(tmp_path / f"coco_train.tsv.{piece}", [record(piece)])
    sources = find_features(tmp_path)
    assert [(source.path.name, source.format) for source in sources] == [(f"coco_train.tsv.{n}", "tsv") for n in (0, 1, 12)]
    assert import_features(sources, tmp_path / "store").sources.images.tolist() == [1, 1, 1]
    for name in ("coco.zip.0", "coco.0", "coco.tsv.part"):
        (tmp_path / name).touch()
        with pytest.raises(StoreError, match=f"{name}: no features"): find_features(tmp_path / ".")
        (tmp_path / name).unlink()


def test_an_lmdb_one_level_deeper_is_to_be_moved_up(tmp_path):
    folder, inner = tmp_path / "files", "refcoco+_unc_resnext152.lmdb"
    (folder / "refcoco+_unc").mkdir(parents=True)
    published.write_lmdb(folder / "refcoco+_unc" / inner, [record(1)])
    with pytest.raises(StoreError, match=re.escape(f"{folder}/refcoco+_unc: its LMDB is one level deeper; move {inner} up")):
        find_features(folder)
    (folder / "refcoco+_unc" / inner).rename(folder / inner)
    (folder / "refcoco+_unc").rmdir()
    assert find_features(folder) == [Source(folder / inner, "lmdb", "refcoco")]


def test_given_boxes_with_features_of_another_size_are_rejected(tmp_path):
    (tmp_path / "files").mkdir()
    published.write_lmdb(tmp_path / "files/guesswhat.lmdb", map(record, range(9)))
    published.write_lmdb(tmp_path / "files/refcoco.lmdb", [record(5, dim=9, seed=1)])
    with pytest.raises(StoreError, match="guesswhat.lmdb: image '5': "):
        import_features(find_features(tmp_path / "files"), tmp_path / "store", given=True, boxes="xyxy")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    published.write_h5(tmp_path / "coco.h5", [record(1)])
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(StoreError, match=r"coco.h5: .*needs h5py: pip install 'vl12in1\[features\]'"):
        import_features(find_features(tmp_path), tmp_path / "store")


# Bad files and records

@pytest.mark.parametrize("change, problem", [
    (dict(boxes=np.float32([[0, 0, 9, 9]] * 3)), "4 rows of features, 3 boxes"),
    (dict(boxes=np.float32([[0, 0, 642, 9]] * 4)), "a box outside of the picture of 640 x 480"),
    (dict(boxes=np.float32([[9, 9, 8, 20]] * 4)), "a box without area"),
    (dict(boxes=np.float32([[640, 9, 639.5, 20]] * 4)), "a box without area"),
    (dict(boxes=np.float32([[640.5, 9, 640.2, 20]] * 4)), "a box without area"),
    (dict(boxes=np.float32([[0, 0, np.nan, 9]] * 4)), "a box without area"),
    (dict(boxes=np.zeros((0, 4), "f4"), features=np.zeros((0, 8), "f4")), "no regions"),
    (dict(features=np.full((4, 8), np.nan, "f4")), "not finite in float16"),
    (dict(features=np.full((4, 8), 1e5, "f4")), "not finite in float16"),
    (dict(features=np.zeros((4, 9), "f4")), "features of shape"),
    (dict(features=np.zeros((1, 4, 8), "f4")), "rows of features"),
    (dict(features="not base64!"), "base64|alphabet|[Pp]adding"),
    (dict(features=base64.b64encode(b"12345678").decode()), "reshape"),
    (dict(features=None), "no features or x"), (dict(image_w=None), "no image_w or img_w"), (dict(image_h=0), "a picture of 640 x 0"),
    (dict(image_w="wide"), "width is 'wide', not a whole number"),
    (dict(num_boxes=np.inf), "num_boxes is inf, not a whole"), (dict(boxes=np.ones((4, 3))), r"boxes of shape \(4, 3\)"),
    (dict(boxes=np.ones((4, 4, 4))), r"boxes of shape \(4, 4, 4\)"), (dict(boxes=3.), "boxes of shape"),
    (dict(boxes=np.ones(6)), "boxes of shape"), (dict(features=3.), "one number, 3.0, where 4 rows"),
    (dict(cls_prob=3.), "one number, 3.0, where 4 rows"), (dict(boxes=["a"] * 4), "where numbers should be")])
def test_bad_records_are_named_and_the_rest_is_kept(tmp_path, change, problem):
    made = [record(image) | (change if image == 50 else {}) for image in range(60)]
    with pytest.raises(StoreError, match=f"coco.lmdb: image '50': .*({problem}).*on_error='skip'"): imported(tmp_path, "coco.lmdb", made)
    assert not (tmp_path / "store/manifest.json").exists()
    report = import_features(find_features(tmp_path / "files"), tmp_path / "store", on_error="skip")
    assert report.sources.loc[0, ["images", "rejected"]].tolist() == [59, 1] and len(RegionStore.open(tmp_path / "store")) == 59
    assert report.rejected[["source", "image"]].values.tolist() == [["coco.lmdb", "50"]]


@pytest.mark.parametrize("over", [1e-7, 5e-4])
def test_fractions_with_a_rounding_error_are_fractions(tmp_path, over):
    boxes = record(1)["boxes"] / [640, 480, 640, 480]
    boxes[0, 2:] = 1 + over
    report, store = imported(tmp_path, "coco.lmdb", [record(1) | {"boxes": boxes}])
    np.testing.assert_allclose(store["coco:1"].boxes, np.clip(boxes, 0, 1) * [640, 480, 640, 480], atol=1e-3)
    assert report.sources.fractions.tolist() == [1]


@pytest.mark.parametrize("most", [1.0011, 1.02, 2.])
def test_boxes_that_may_be_fractions_or_pixels_are_refused(tmp_path, most):
    boxes = record(1)["boxes"] / [640, 480, 640, 480]
    boxes[0, 2:] = most
    with pytest.raises(StoreError, match="image '1': no box reaches beyond two pixels; expected pixels, or fractions of the picture"):
        imported(tmp_path, "coco.lmdb", [record(1) | {"boxes": boxes}])


@pytest.mark.parametrize("box, width", [([0, 0, 2, 2], 640), ([0, 0, 1.5, 1.5], 2), ([.5, .5, 2.5, 2.5], 640)])
def test_small_boxes_in_pixels_are_pixels(tmp_path, box, width):
    report, store = imported(tmp_path, "coco.lmdb", [record(1) | {"boxes": np.float32([box] * 4), "image_w": width}])
    assert store["coco:1"].boxes.tolist() == [box] * 4 and report.sources.fractions.tolist() == [0]


@pytest.mark.parametrize("content", [[1, 2], None, 5, "text", np.ones(3)], ids=str)
def test_a_pickle_that_is_no_record_is_named(tmp_path, content):
    lmdb_keys(tmp_path / "coco.lmdb", pickle.dumps([b"keys", b"1", b"2"]))
    lmdb_put(tmp_path / "coco.lmdb", b"2", pickle.dumps(content))
    report = import_features(find_features(tmp_path), tmp_path / "store", on_error="skip")
    assert report.rejected.problem.tolist() == [f"a {type(content).__name__} where a dictionary should be"]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("first", [dict(cls_prob=3.), dict(boxes=np.ones((4, 4, 4))), dict(boxes=np.ones((4, 3)))], ids=str)
def test_a_first_record_that_is_none_moves_no_other(tmp_path, first, given):
    boxes = {f"coco:{n}": to_fractions(record(n)["boxes"], 640, 480) for n in (1, 2)} if given else {}
    report, store = imported(tmp_path, "coco.lmdb", [record(1) | first, record(2)], on_error="skip", given=given, annotated=boxes)
    assert report.rejected.image.tolist() == ["1"] and store.keys() == ["coco:2"]


def h5_group(path):
    published.write_h5(path, [record(1)])
    with h5py.File(path, "a") as file: file.copy("1", b"\xff9")


def h5_listed(path):
    published.write_h5_arrays(path, [record(1), record(2)])
    with h5py.File(path, "a") as file:
        del file["image_id"]
        file["image_id"] = [b"1", b"\xff9"]


def npy_named(path):
    published.write_npy(path, [record(1), record(2)])
    (path / "2.npy").rename(path / os.fsdecode(b"\xff9.npy"))


@pytest.mark.parametrize("name, make", [("coco.h5", h5_group), ("coco.h5", h5_listed), ("coco", npy_named)])
def test_an_id_that_is_no_text_is_one_that_is_none(tmp_path, name, make):
    (tmp_path / "files").mkdir()
    make(tmp_path / "files" / name)
    report = import_features(find_features(tmp_path / "files"), tmp_path / "store", on_error="skip")
    assert report.rejected.values.tolist() == [[name, "\ufffd9", "'\ufffd9' is no id of coco"]]
    assert len(RegionStore.open(tmp_path / "store")) == 1


def test_a_mended_file_is_continued_without_reading_again(tmp_path, monkeypatch):
    from vl12in1.regions import published as module
    files = tmp_path / "files/coco"
    published.write_npy(files, (record(image) for image in range(10, 60)))
    good = (files / "59.npy").read_bytes()
    (files / "59.npy").write_bytes(good[:-9])
    sources = find_features(tmp_path / "files")
    with pytest.raises(StoreError, match="image '59'"): import_features(sources, tmp_path / "store")
    (files / "59.npy").write_bytes(good)
    read, original = [], module.FolderReader.read
    monkeypatch.setattr(module.FolderReader, "read", lambda self, file: read.append(file.stem) or original(self, file))
    import_features(sources, tmp_path / "store")
    assert read == ["10", "59"]  # the first tells whether there are class probabilities
    import_features(sources, tmp_path / "once")
    for path in (tmp_path / "once").iterdir(): assert path.read_bytes() == (tmp_path / "store" / path.name).read_bytes()


def test_corners_up_to_a_pixel_outside_are_drawn_in(tmp_path):
    boxes = np.float32([[-1, -.5, 641, 480.9], [0, 0, 640, 480], [1, 2, 3, 4], [5, 6, 7, 8]])
    report, store = imported(tmp_path, "coco.lmdb", [record(1) | {"boxes": boxes, "num_boxes": 2}])
    assert store["coco:1"].boxes.tolist() == [[0, 0, 640, 480], [0, 0, 640, 480], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert report.sources.miscounted.tolist() == [1]


def test_equal_corners_are_one_pixel_and_nothing_else_moves(tmp_path):
    boxes = [[9, 5, 9, 20], [640, 480, 640, 480], [-.5, 7, -.5, 7], [640.2, 0, 640.4, 3], [639.5, 479.75, 640, 480]]
    made = record(1, rows=5) | {"boxes": np.float32(boxes)}
    _, store = imported(tmp_path, "coco.lmdb", [made])
    expected = [[9, 5, 10, 20], [639, 479, 640, 480], [0, 7, 1, 8], [639, 0, 640, 3], [639.5, 479.75, 640, 480]]
    assert store["coco:1"].boxes.tolist() == expected
    report = import_features(find_features(tmp_path / "files"), tmp_path / "given", given=True)  # as sizes: outside
    assert report.sources.boxes.tolist() == ["xyxy"] and RegionStore.open(tmp_path / "given")["coco:1"].boxes.tolist() == expected


def test_the_first_copy_of_a_photograph_wins_unless_it_is_bad(tmp_path):
    (tmp_path / "files").mkdir()
    published.write_lmdb(tmp_path / "files/coco.lmdb", [record(1), record(2) | {"image_w": 3}])
    twins = {"visual_genome:11": "coco:1", "visual_genome:12": "coco:2"}
    report, store = imported(tmp_path, "visual_genome.tsv", [record(11, rows=7), record(12, rows=7), record(11)],
                             published.write_tsv, identity=twins, on_error="skip")
    assert {key: len(store[key].boxes) for key in store.keys()} == {"coco:1": 4, "coco:2": 7}
    assert report.sources[["images", "again", "rejected"]].values.tolist() == [[1, 0, 1], [1, 2, 0]]


def test_nothing_at_all_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="not one image"): imported(tmp_path, "coco.lmdb", [record("x")], on_error="skip")
    with pytest.raises(StoreError, match="not one image"): import_features([], tmp_path / "empty")


@pytest.mark.parametrize("name, content, problem", [
    ("coco.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "no hdf5 file, or damaged"), ("coco.lmdb", b"garbage" * 999, "no lmdb file, or damaged"),
    ("coco.tsv", b"", "1 columns in line 1; known are 6"), ("coco.tsv", b"1\t2\t3\t4\t5\t6\n", "line 1 is no image_id"),
    ("coco.tsv", b"\0" * 9999, "1 columns in line 1")])
def test_damaged_files(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=f"{name}: .*{problem}"): import_features(find_features(tmp_path), tmp_path / "store")


def test_a_tsv_that_was_cut_off_loses_its_last_line_only(tmp_path):
    path = tmp_path / "files/coco.tsv"
    path.parent.mkdir()
    published.write_tsv(path, map(record, range(5)))
    path.write_bytes(path.read_bytes()[:-30])
    report = import_features(find_features(tmp_path / "files"), tmp_path / "store", on_error="skip")
    assert report.sources.images.tolist() == [4] and report.rejected.image.tolist() == ["4"]


@pytest.mark.parametrize("name", ["image_id", "features", "boxes", "image_w", "num_boxes"])
@pytest.mark.parametrize("count", [2, 5])
def test_arrays_of_other_lengths_are_refused(tmp_path, name, count):
    published.write_h5_arrays(tmp_path / "coco.h5", map(record, range(4)))
    with h5py.File(tmp_path / "coco.h5", "a") as file: file[name].resize(count, axis=0)
    lengths = [("features", 4), ("boxes", 4), ("image_w", 4), ("image_h", 4), ("num_boxes", 4)]
    listed = ", ".join(f"{count if each == name else rows} of {each}" for each, rows in lengths)
    with pytest.raises(StoreError, match=f"coco.h5: .*{count if name == 'image_id' else 4} ids, but {listed}; get the file again"):
        import_features(find_features(tmp_path), tmp_path / "store", on_error="skip")


def test_unknown_hdf5_layouts_list_what_they_hold(tmp_path):
    with h5py.File(tmp_path / "coco.h5", "w") as file: file["a/image_features"], file["pos_boxes"] = [1.], [1.]
    with pytest.raises(StoreError, match="it holds a, pos_boxes, a/image_features"):
        import_features(find_features(tmp_path), tmp_path / "store")


def test_a_key_that_is_listed_but_absent(tmp_path):
    import lmdb
    published.write_lmdb(tmp_path / "coco.lmdb", [record(1)])
    with lmdb.open(str(tmp_path / "coco.lmdb"), map_size=2**24) as env, env.begin(write=True) as transaction:
        transaction.put(b"keys", pickle.dumps([b"1", b"2"]))
    report = import_features(find_features(tmp_path), tmp_path / "store", on_error="skip")
    assert report.rejected.values.tolist() == [["coco.lmdb", "2", "listed among the keys, but not there"]]


def test_an_lmdb_that_is_mostly_a_hole_is_one(tmp_path):
    import lmdb
    with lmdb.open(str(tmp_path / "coco.lmdb"), map_size=2**32, writemap=True) as env, env.begin(write=True) as transaction:
        transaction.put(b"1", pickle.dumps(record(1)))
    assert (tmp_path / "coco.lmdb/data.mdb").stat().st_size == 2 ** 32
    (image, found), = read_features(Source(tmp_path / "coco.lmdb", "lmdb", "coco"))
    assert image == "1" and np.array_equal(found.features, record(1)["features"])


def test_records_come_one_at_a_time(tmp_path):
    published.write_tsv(tmp_path / "coco.tsv", map(record, range(9)))
    stream = read_features(Source(tmp_path / "coco.tsv", "tsv", "coco"))
    image, first = next(stream)
    assert image == "0" and first.features.shape == (4, 8) and [image for image, _ in stream] == [str(n) for n in range(1, 9)]


# Given boxes

@pytest.mark.parametrize("reading, write", [("xyxy", dict), ("xywh", as_sizes)])
@pytest.mark.parametrize("known", [False, True])
def test_the_reading_of_boxes_is_detected(tmp_path, reading, write, known):
    annotated = {f"coco:{n}": to_fractions(record(n)["boxes"][:2], 640, 480) for n in range(0, 60, 3)} if known else {}
    report, store = imported(tmp_path, "guesswhat.lmdb", [write(record(n)) for n in range(60)], given=True, annotated=annotated)
    assert report.sources.boxes.tolist() == [reading]
    for n in range(60): np.testing.assert_allclose(store[f"coco:{n}"].boxes, record(n)["boxes"], atol=1e-3)
    assert ("40 of 40 boxes found" in report.sources.evidence[0]) == known


def ambiguous(n): return record(n) | {"boxes": np.float32([[1, 2, 300, 200], [3, 1, 310, 220], [0, 0, 640, 480], [2, 2, 100, 100]])}


def test_boxes_that_can_be_read_either_way(tmp_path):
    with pytest.raises(StoreError, match="guesswhat.lmdb: cannot tell corners from sizes .*xyxy 9 of 9, xywh 9 of 9.*say boxes='xyxy'"):
        imported(tmp_path, "guesswhat.lmdb", map(ambiguous, range(9)), given=True)
    sources = find_features(tmp_path / "files")
    for reading, corner in (("xyxy", 300), ("xywh", 301)):
        import_features(sources, tmp_path / reading, given=True, boxes=reading)
        assert RegionStore.open(tmp_path / reading)["coco:3"].boxes[0, 2] == corner
    import_features(sources, tmp_path / "known", given=True, annotated={"coco:3": [(1 / 640, 2 / 480, 300 / 640, 200 / 480)]})
    assert RegionStore.open(tmp_path / "known")["coco:3"].boxes[0, 2] == 300


def test_a_few_bad_records_do_not_hide_the_reading(tmp_path):
    made = [record(n) | ({"boxes": np.float32([[0, 0, 999, 9]] * 4)} if n == 7 else {}) for n in range(150)]
    report, _ = imported(tmp_path, "guesswhat.lmdb", made, given=True, on_error="skip")
    assert report.sources[["boxes", "images", "rejected"]].values.tolist() == [["xyxy", 149, 1]]


def test_given_boxes_of_one_photograph_are_put_together(tmp_path):
    (tmp_path / "files").mkdir()
    published.write_tsv(tmp_path / "files/guesswhat.tsv", map(record, range(20)))
    published.write_lmdb(tmp_path / "files/refcoco.lmdb", [record(n) | {"boxes": record(n)["boxes"][::-1].copy()} for n in range(19, 25)])
    genome = [record(f"v7w_{n}", rows=3, width=1280, height=960) for n in range(20)]
    twins = {f"visual_genome:{n}": f"coco:{n}" for n in range(10)}
    report, store = imported(tmp_path, "visual7w.h5", genome, published.write_h5, identity=twins, given=True)
    assert len(store) == 25 + 10
    for n in range(10):
        expected = np.concatenate([record(n)["boxes"], genome[n]["boxes"] / 2])
        np.testing.assert_allclose(store[f"coco:{n}"].boxes, expected, atol=1e-3)
        assert store[f"coco:{n}"].features.shape == (7, 8) and store[f"coco:{n}"].width == 640
    assert len(store["coco:19"].boxes) == 4 and store["visual_genome:15"].width == 1280
    assert report.sources[["images", "again"]].values.tolist() == [[20, 0], [5, 1], [10, 10]]


# Continuing and memory

def kill_after(count, sources, folder):
    "Import in a process of its own, which is killed when the store has `count` images."
    class Killed(importers.RegionWriter):
        def append(self, key, regions):
            super().append(key, regions)
            if len(self) == count: os.kill(os.getpid(), signal.SIGKILL)
    if not (child := os.fork()):
        try:
            importers.RegionWriter = Killed
            import_features(sources, folder, on_error="skip")
        finally: os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_killed_import_goes_on(tmp_path):
    (tmp_path / "files").mkdir()
    published.write_h5(tmp_path / "files/coco.h5", (record(n) | ({"image_w": 5} if n == 3 else {}) for n in range(60)))
    published.write_tsv(tmp_path / "files/visual_genome.tsv", (record(n) for n in range(60)))
    sources = find_features(tmp_path / "files")
    whole = import_features(sources, tmp_path / "whole", on_error="skip")
    for count in (70, 110): kill_after(count, sources, tmp_path / "cut")
    report = import_features(sources, tmp_path / "cut", on_error="skip")
    assert report.sources.equals(whole.sources) and report.rejected.equals(whole.rejected)
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("cut", "whole")]
    assert contents[0] == contents[1]


def resident(name):
    "`VmHWM` (peak) or `VmRSS` of this process in MB; mapped pages of files count."
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    (tmp_path / "files").mkdir()
    published.write_lmdb(tmp_path / "files/coco.lmdb", published.records(range(250)))  # 205 MB
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from now on
    before = resident("VmRSS")
    import_features(find_features(tmp_path / "files"), tmp_path / "store")
    assert resident("VmHWM") - before < 160
    assert sum(path.stat().st_size for path in (tmp_path / "store").iterdir()) <= 412_000 * 250


# Files that claim more than they hold, and layouts of the field

def npz_bomb(folder):
    folder.mkdir()
    np.savez_compressed(folder / "1.npz", features=np.zeros(2 ** 28, np.uint8), bbox=np.float32([[0, 0, 9, 9]]), image_w=64, image_h=48)


def npy_that_lies(folder):
    folder.mkdir()
    np.save(folder / "1.npy", np.ones((4, 8)))
    (folder / "1.npy").write_bytes((folder / "1.npy").read_bytes().replace(b"(4, 8), }" + b" " * 12, b"(4, 80000000000), }  "))


def npy_hole(folder):
    folder.mkdir()
    with open(folder / "1.npy", "wb") as file: file.truncate(10 ** 11)


def npy_pipe(folder):
    folder.mkdir()
    os.mkfifo(folder / "1.npy")


def h5_ids(path):
    published.write_h5_arrays(path, [record(1)])
    with h5py.File(path, "a") as file:
        del file["image_id"]
        file.create_dataset("image_id", (10 ** 12,), "i8", chunks=(1024,))


def h5_feature(path):
    published.write_h5(path, [record(1)])
    with h5py.File(path, "a") as file:
        del file["1/features"]
        file.create_dataset("1/features", (4, 4 * 10 ** 8), "f4", chunks=(1, 2 ** 20))


def h5_block(path):
    published.write_h5(path, [record(1)])
    with h5py.File(path, "a") as file:
        del file["1/features"]
        file.create_dataset("1/features", data=np.zeros((4, 2 ** 26 + 1), "u1"), chunks=(4, 2 ** 26 + 1), compression="gzip",
                            compression_opts=1)


def h5_link(path, link=h5py.ExternalLink("/proc/self/fd/0", "features"), name="1/features"):
    published.write_h5_arrays(path, [record(1)]) if name == "features" else published.write_h5(path, [record(1)])
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = link


def h5_virtual(path):
    virtual = h5py.VirtualLayout((4, 8), "f4")
    virtual[:] = h5py.VirtualSource("other.h5", "features", (4, 8))
    published.write_h5(path, [record(1)])
    with h5py.File(path, "a") as file:
        del file["1/features"]
        file.create_virtual_dataset("1/features", virtual)


def h5_elsewhere(path):
    published.write_h5(path, [record(1)])
    with h5py.File(path, "a") as file:
        del file["1/features"]
        file.create_dataset("1/features", (4, 8), "f4", external=[("/etc/passwd", 0, 128)])


def h5_checksum(path):
    published.write_h5_arrays(path, [record(n) for n in range(9)])
    with h5py.File(path, "a") as file:
        del file["image_id"]
        place = file.create_dataset("image_id", data=range(9), chunks=(9,), fletcher32=True).id
        file.flush()
        at = place.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def lmdb_page(path, change=lambda pages, page, places: None, many=300):
    "An LMDB whose first page of keys is changed: `change` gets the file's bytes, where the page begins, and where its entries do."
    published.write_lmdb(path, [record(n, rows=1) for n in range(many)], keys=False)
    with closing(LmdbPages(path)) as pages: first, places = pages.root * pages.size, pages.page(pages.root)[2]
    content = bytearray((path / "data.mdb").read_bytes())
    change(content, first, places)
    (path / "data.mdb").write_bytes(content)


def put(content, at, number, width): content[at:at + width] = number.to_bytes(width, "little")


def lmdb_cut(path):
    published.write_lmdb(path, [record(n, dim=2048) for n in range(9)])
    os.truncate(path / "data.mdb", 2 ** 15)


def lmdb_put(path, key, value):
    import lmdb
    with lmdb.open(str(path), map_size=2**24) as env, env.begin(write=True) as transaction: transaction.put(key, value)


def lmdb_keys(path, keys=b"cos\nsystem\n(S'touch broken-into'\ntR."):
    published.write_lmdb(path, [record(1)])
    lmdb_put(path, b"keys", keys)


def lmdb_msgpack(path): lmdb_put(path, b"1", b"\x95\xc4\x0112")


def tsv_hole(path):
    with open(path, "wb") as file: file.truncate(10 ** 11)


FALSE = {"npz bomb": ("coco_a", npz_bomb, "claims"), "npy lies": ("coco_a", npy_that_lies, "claims 2,560,000,000,000 bytes"),
         "npy hole": ("coco_a", npy_hole, "mostly a hole"), "npy pipe": ("coco_a", npy_pipe, "a pipe"),
         "h5 ids": ("coco.h5", h5_ids, "/image_id claims 8,000,000,000,000 bytes"), "h5 feature": ("coco.h5", h5_feature, "claims 6,400"),
         "h5 block": ("coco.h5", h5_block, "claims 268,435,460 bytes"), "lmdb cut": ("coco.lmdb", lmdb_cut, "cut off; download it again"),
         "h5 checksum": ("coco.h5", h5_checksum, "damaged"), "h5 link": ("coco.h5", h5_link, "its features is a link"),
         "h5 link of a picture": ("coco.h5", lambda path: h5_link(path, name="1"), "its 1 is a link"),
         "h5 link of arrays": ("coco.h5", lambda path: h5_link(path, name="features"), "its features is a link"),
         "h5 soft link": ("coco.h5", lambda path: h5_link(path, h5py.SoftLink("/1/boxes")), "its features is a link"),
         "h5 virtual": ("coco.h5", h5_virtual, "its /1/features lie in other files"),
         "h5 elsewhere": ("coco.h5", h5_elsewhere, "its /1/features lie in other files"),
         "lmdb circle": ("coco.lmdb", lambda path: lmdb_page(path, lambda pages, page, places: put(
             pages, page + places[1], page // 4096, 6)), "lead around in circles"),
         "lmdb page far away": ("coco.lmdb", lambda path: lmdb_page(path, lambda pages, page, places: put(
             pages, page + places[0], 2 ** 40, 6)), "page 1,099,511,627,776 is not there"),
         "lmdb page of another kind": ("coco.lmdb", lambda path: lmdb_page(path, lambda pages, page, places: put(
             pages, page + 10, 4, 2)), "is none of keys"),
         "lmdb entries outside": ("coco.lmdb", lambda path: lmdb_page(path, lambda pages, page, places: put(
             pages, page + 16, 2 ** 16 - 1, 2)), "is shorter than its entries"),
         "lmdb long value": ("coco.lmdb", lambda path: lmdb_page(path, lambda pages, page, places: put(
             pages, page + places[0], 2 ** 30, 4), many=1), "a value"),
         "lmdb keys": ("coco.lmdb", lmdb_keys, "list of keys: its pickle cannot be read .it asks for os.system"),
         "lmdb keys that are none": ("coco.lmdb", lambda path: lmdb_keys(path, pickle.dumps({"1": 2})), "no list of ids"),
         "tensorpack": ("coco.lmdb", lmdb_msgpack, "tensorpack holds msgpack"), "tsv hole": ("coco.tsv", tsv_hole, "a line of more than"),
         "pipe": ("coco.tsv", os.mkfifo, "a pipe or a device")}


@pytest.mark.parametrize("case", FALSE)
def test_files_that_claim_what_they_do_not_hold(tmp_path, case):
    name, make, problem = FALSE[case]
    (tmp_path / "files").mkdir()
    make(tmp_path / "files" / name)
    with pytest.raises(StoreError, match=problem) as error:
        import_features(find_features(tmp_path / "files"), tmp_path / "store", on_error="skip")
    assert name in str(error.value) and not Path("broken-into").exists()


@pytest.mark.parametrize("odd, problem", [("features", "features"), ("image_w", "a picture of 1000")])
@pytest.mark.parametrize("place", [0, 1])
def test_a_record_without_features_or_of_an_endless_picture_moves_no_other(tmp_path, odd, problem, place):
    made = [record(n, rows=n + 1) for n in range(1, 5)]
    made[place][odd] = 10 ** 30 if odd == "image_w" else made[place]["features"][:, :0]
    report, store = imported(tmp_path, "coco.lmdb", made, on_error="skip")
    assert report.rejected.image.tolist() == [str(place + 1)] and problem in report.rejected.problem[0]
    for each in made[:place] + made[place + 1:]:
        np.testing.assert_array_equal(store[f"coco:{each['image_id']}"].features, each["features"].astype(np.float16))


def vinvl_line(made, **more):
    objects = [{"rect": box.tolist(), "feature": published.encoded(row)} for box, row in zip(made["boxes"], made["features"])]
    return f"{made['image_id']}\t{json.dumps(dict(image_w=640, image_h=480, num_boxes=len(objects), objects=objects) | more)}\n"


def test_vinvl(tmp_path):
    (tmp_path / "coco_vinvl.tsv").write_text("".join(vinvl_line(record(n)) for n in range(3)))
    (tmp_path / "coco_vinvl.lineidx").write_text("0\n9\n")
    report = import_features(find_features(tmp_path), tmp_path / "store")
    assert report.sources.loc[0, ["images", "regions", "miscounted"]].tolist() == [3, 12, 0]
    np.testing.assert_array_equal(RegionStore.open(tmp_path / "store")["coco:2"].features, record(2)["features"].astype(np.float16))


@pytest.mark.parametrize("line, problem", [
    (vinvl_line(record(1), objects=[{}]), "no objects, each with rect and feature"), ("1\t{\n", "column 2 is not JSON"),
    (vinvl_line(record(1), image_w=None), "no image_w or .* must come from elsewhere")])
def test_other_lines_of_two_columns_are_named(tmp_path, line, problem):
    (tmp_path / "coco.tsv").write_text(line)
    with pytest.raises(StoreError, match=f"coco.tsv: line 1 .*{problem}"): import_features(find_features(tmp_path), tmp_path / "store")


@pytest.mark.parametrize("sound", [True, False])
def test_an_import_deletes_nothing_that_is_not_its_own(tmp_path, sound):
    (tmp_path / "store").mkdir()
    mine = ["boxes-2019.bin", "features-mine.bin", "index.parquet", "pytorch_model-00001-of-00002.bin"]
    for name in mine: (tmp_path / "store" / name).write_text("mine")
    with pytest.raises(StoreError, match="store: holds boxes-2019.bin, and no region store"):
        imported(tmp_path, "coco.lmdb", [record(1) if sound else record("x")])
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == mine


def test_a_wrong_folder_does_not_block_the_store(tmp_path):
    (tmp_path / "wrong").mkdir()
    published.write_lmdb(tmp_path / "wrong/coco.lmdb", [record("x")])
    for sources in ([], find_features(tmp_path / "wrong")):
        with pytest.raises(StoreError, match="not one image"): import_features(sources, tmp_path / "store", on_error="skip")
    _, store = imported(tmp_path, "coco.lmdb", [record(1)])
    assert store.keys() == ["coco:1"]
