"""Leaks: lists of images as others write them, the lists of the published code, and the report."""
import json
import pickle
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import tries
from vl12in1 import cleaning, leaks

image = st.builds("{}:{}".format, st.sampled_from(["coco", "visual_genome", "flickr30k"]), st.integers(0, 12))

# --- names of others

ALIASES = {"visual_genome:2375429": "coco:391895", "visual_genome:8": "flickr30k:42"}


@pytest.mark.parametrize("collection, key, names", [
    ("coco", "coco:391895", [391895, np.int64(391895), "391895", "000000391895", "000000391895.jpg", "391895.npy",
                             "COCO_train2014_000000391895.jpg", "COCO_val2014_000000391895.npy", "391895.PNG",
                             "COCO_test2015_000000391895", "COCO_train2014_000000391895_17.jpg", "visual_genome:2375429",
                             "images/train2014/COCO_train2014_000000391895.jpg", "COCO_val2014_000000391895.jpg.npy"]),
    ("visual_genome", "coco:391895", [2375429, "2375429", "2375429.jpg", "VG_100K_2/2375429.jpg", "v7w_2375429",
                                      "v7w_2375429.jpg", "https://cs.stanford.edu/people/rak248/VG_100K_2/2375429.jpg"]),
    ("visual7w", "visual_genome:7", ["v7w_7.jpg", 7]),
    ("gqa", "gqa:n161313", ["n161313", "n161313.jpg", "images/n161313.png", "gqa:n161313"]),
    ("gqa", "flickr30k:42", ["8", "8.jpg"]),
    ("flickr30k", "flickr30k:1000092795", [1000092795, "1000092795.jpg", "1000092795.jpg#2", "1000092795.jpg#2r1n"]),
    ("nlvr2", "nlvr2:dev-850-0-img0", ["dev-850-0-img0", "dev-850-0-img0.png", "dev/dev-850-0-img0.npy"]),
    ("nlvr2", "nlvr2:test1-0-1-img1", ["test1-0-1-img1.png"]),
    ("conceptual_captions", "conceptual_captions:3065473813", [3065473813, "3065473813.jpg"]),
    ("vizwiz", "vizwiz:train_00000007", ["VizWiz_train_00000007.jpg", "train/VizWiz_train_00000007.npy", "vizwiz:train_00000007"]),
    (None, "coco:391895", ["coco:391895", "visual_genome:2375429", "coco:COCO_val2014_000000391895.jpg"])])
def test_canonical(collection, key, names):
    assert {name: leaks.key_of_name(name, collection, ALIASES) for name in names} == dict.fromkeys(names, key)


@pytest.mark.parametrize("collection, name", [
    ("coco", "n161313"), ("coco", "COCO_train2014_x.jpg"), ("coco", "-5"), ("coco", 9.0), ("coco", ""), ("coco", None),
    ("coco", True), ("coco", "v7w_7"), ("visual_genome", "n12x"), ("visual_genome", "COCO_val2014_000000000009.jpg"),
    ("flickr30k", "1000092795.jpg#"), ("flickr30k", "12 13"), ("nlvr2", "dev-850-0-0"), ("nlvr2", "dev-850-0-img2"),
    ("conceptual_captions", "http://a.b/c.jpg"), ("coco", "9\n"), ("coco", "\u0663"), ("imagenet", "9"), (None, "9")])
def test_what_names_no_image(collection, name):
    with pytest.raises(ValueError, match="an image of which collection|names no image of") as error:
        leaks.key_of_name(name, collection, {})
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("write", [
    lambda path, ids: path.with_suffix(".txt").write_text("\n".join(map(str, ids)) + "\n\n"),
    lambda path, ids: path.with_suffix(".json").write_text(json.dumps(ids)),
    lambda path, ids: path.with_suffix(".json").write_text(json.dumps({"visual_genome": ids})),
    lambda path, ids: np.save(path.with_suffix(".npy"), np.array(ids)),
    lambda path, ids: np.save(path.with_suffix(".npy"), np.array([f"{id}.jpg" for id in ids]))])
def test_lists_of_every_kind(tmp_path, write):
    write(tmp_path / "list", [7, 2375429])
    path, = tmp_path.iterdir()
    assert leaks.read_image_list(path, "visual_genome", ALIASES) == {"visual_genome:7", "coco:391895"}


@pytest.mark.parametrize("collection, name, content", [
    ("visual_genome", "train.txt", "VG_100K_2/1001.jpg xml/1001.xml\nVG_100K/1002.jpg xml/1002.xml\n\n"),
    ("visual_genome", "train.txt", "\ufeff1001,640,480\r\n1002,640,480\r\n"),
    ("visual_genome", "image_data.json", [{"image_id": 1001, "url": "u"}, {"image_id": 1002, "coco_id": 7}]),
    ("visual_genome", "image_data.json", [{"id": 1001, "url": "u"}, {"id": 1002}]),
    ("visual_genome", "coco_style.json", {"images": [{"id": 1, "file_name": "VG_100K/1001.jpg"}, {"id": 2, "file_name": "1002.jpg"}]}),
    ("visual_genome", "coco_style.json", {"images": [{"id": 1001, "file_name": "x.jpg"}, {"id": 1002, "file_name": "y.jpg"}]}),
    ("visual_genome", "results.json", {"annotations": [{"id": id, "image_id": image} for id, image in enumerate((1001, 1001, 1002))]}),
    ("visual_genome", "empty.json", {"visual_genome": [1001, "1002.jpg"], "coco": []})])
def test_lists_as_other_programs_have_them(tmp_path, collection, name, content):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert leaks.read_image_list(tmp_path / name, collection) == {"visual_genome:1001", "visual_genome:1002"}


@pytest.mark.parametrize("content, keys", [
    ({"images": [{"id": 11, "file_name": "000000000011.jpg"}], "annotations": []}, {"coco:11"}),
    ({"images": [{"cocoid": 11, "imgid": 0, "filename": "COCO_val2014_000000000011.jpg", "sentids": [5]}]}, {"coco:11"})])
def test_annotations_of_coco_are_lists(tmp_path, content, keys):
    (tmp_path / "instances_train2017.json").write_text(json.dumps(content))
    assert leaks.read_image_list(tmp_path / "instances_train2017.json", "coco") == keys


@pytest.mark.parametrize("line", ["11,http://www.flickr.com/photos/12/8119", "11.jpg 2015/07/30", "data/12 pictures/11.jpg"])
def test_a_line_that_can_be_two_images_is_refused(tmp_path, line):
    (tmp_path / "list.csv").write_text(f"11.jpg\t640\n{line}\n")
    with pytest.raises(ValueError, match=r"list.csv: '.*11.*' can be coco:\d+ or coco:\d+; leave one column"):
        leaks.read_image_list(tmp_path / "list.csv", "coco")


def test_a_path_with_spaces_is_one_column(tmp_path):
    (tmp_path / "list.txt").write_text("/data/my pictures/11.jpg\n12.jpg a/12.jpg\n")
    assert leaks.read_image_list(tmp_path / "list.txt", "coco") == {"coco:11", "coco:12"}


@pytest.mark.parametrize("content", ["[]", "7", "{", '{"coco": {"1": 2}}', '{"coco": [1]}', '["coco:1"]', ""])
def test_a_drop_list_is_of_this_program_or_refused(tmp_path, content):
    (tmp_path / "drop.json").write_text(content)
    with pytest.raises(ValueError, match="drop.json: (not JSON|expected {collection)"): cleaning.load_images(tmp_path / "drop.json")


def test_numbers_that_a_file_does_not_hold(tmp_path):
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
    (tmp_path / "ids.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(80))
    with pytest.raises(ValueError, match="ids.npy: "): leaks.read_image_list(tmp_path / "ids.npy", "coco")


@pytest.mark.parametrize("name, content", [
    ("none.json", "[]"), ("none.json", "{}"), ("none.json", '{"images": []}'), ("none.json", '{"images": [], "annotations": []}'),
    ("none.json", '{"coco": [], "gqa": []}'), ("none.txt", ""), ("none.csv", " \n\n"), ("none.npy", np.array([], dtype=int))])
@pytest.mark.parametrize("collection", ["coco", None])
def test_a_list_of_nothing_is_refused(tmp_path, name, content, collection):
    np.save(tmp_path / name, content) if name.endswith("npy") else (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}: nothing in it; expected names of images"):
        leaks.read_image_list(tmp_path / name, collection)


@pytest.mark.parametrize("name", ["0" * 10 ** 6 + "x", "a/" * 500_000, "9" * 10 ** 6, "coco_" + "a" * 10 ** 6, "1.jpg" * 200_000,
                                  "0" * 2047 + "x"])
@pytest.mark.parametrize("collection", ["coco", "gqa", "flickr30k", "nlvr2", "conceptual_captions", "vizwiz"])
def test_a_name_without_end_is_none_at_once(tmp_path, name, collection):
    begin = time.process_time()
    with pytest.raises(ValueError, match=f"'{re.escape(name[:60])}.* names no image of {collection}") as error:
        leaks.key_of_name(name, collection, {})
    assert time.process_time() - begin < 1 and len(str(error.value)) < 300
    (tmp_path / "list.txt").write_text(f"{name}\n")
    with pytest.raises(ValueError, match=f"list.txt: .* names no image of {collection}"):
        leaks.read_image_list(tmp_path / "list.txt", collection)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("old, new", [(b"{", b"{" * 50), (b"(5,)", b"((5,"), (b"'<i8'", b"'|O8'"), (b"False", b"Fa\0se")])
def test_an_array_whose_header_is_damaged_is_named(tmp_path, old, new):
    np.save(tmp_path / "ids.npy", np.arange(5))
    content = (tmp_path / "ids.npy").read_bytes()
    header = content[10:128].replace(old, new).rstrip().ljust(117)[:117] + b"\n"
    (tmp_path / "ids.npy").write_bytes(content[:10] + header + content[128:])
    with pytest.raises(ValueError, match="ids.npy: no array of names"): leaks.read_image_list(tmp_path / "ids.npy", "coco")


def test_a_statement_of_nlvr2_stands_for_both_pictures(tmp_path):
    (tmp_path / "list.txt").write_text("dev-850-0-1\ntest1-3-2\ntrain-1-0-img1.png\n")
    assert leaks.read_image_list(tmp_path / "list.txt", "nlvr2") == {f"nlvr2:{name}" for name in (
        "dev-850-0-img0", "dev-850-0-img1", "test1-3-2-img0", "test1-3-2-img1", "train-1-0-img1")}


class Trap:
    "Unpickling it leaves a trace."
    def __init__(self, path): self.path = path

    def __reduce__(self): return open, (str(self.path), "w")


@pytest.mark.parametrize("name, content, problem", [
    ("list.txt", b"7\nseven\n", "'seven' names no image of visual_genome"), ("list.txt", b"\xff\xfe", "codec"),
    ("list.json", b"[7,", "Expecting"), ("list.json", b"7", "expected a list of names"),
    ("list.json", b'{"visual_genome": {"7": 1}}', "expected a list of names"), ("list.json", b'[["7"]]', "names no image"),
    ("list.json", b'{"images": [7]}', "an image of which collection"), ("list.npy", b"7", "magic"), ("list.npy", b"", "magic")])
def test_a_broken_list_is_named(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=problem) as error:
        leaks.read_image_list(tmp_path / name, "visual_genome")
    assert str(error.value).startswith(str(tmp_path / name))


def test_nothing_in_a_list_is_executed(tmp_path):
    np.save(tmp_path / "list.npy", np.array([Trap(tmp_path / "trace")], dtype=object), allow_pickle=True)
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Trap(tmp_path / "trace")))
    for name in ("list.npy", "plain.npy"):
        with pytest.raises(ValueError, match=name):
            leaks.read_image_list(tmp_path / name, "coco")
    assert not (tmp_path / "trace").exists()


# --- lists for the published code

keys = st.sets(st.builds("{}:{}".format, st.sampled_from(["coco", "visual_genome", "flickr30k"]), st.integers(1, 2**33)))


@given(keys, st.dictionaries(st.integers(1, 99).map("visual_genome:{}".format), image, max_size=9))
@tries(40)
def test_published_lists_hold_every_name_of_every_image(tmp_path_factory, images, identity):
    folder = tmp_path_factory.getbasetemp() / "published"
    images = {identity.get(key, key) for key in images} | set(list(identity.values())[:3]) - set(identity)
    leaks.save_published(images, folder, identity)
    names = images | {alias for alias, key in identity.items() if key in images}
    for stem, collection in [("coco", "coco"), ("genome", "visual_genome"), ("flickr", "flickr30k")]:
        ids = np.load(folder / f"{stem}_test_ids.npy", allow_pickle=False)
        assert ids.dtype == np.int64 and ids.ndim == 1 and (np.diff(ids) > 0).all()
        assert {f"{collection}:{id}" for id in ids} == {name for name in names if name.startswith(f"{collection}:")}


def test_published_lists_leave_out_what_has_no_number(tmp_path):
    leaks.save_published({"gqa:n5", "nlvr2:dev-1-0-img0", "conceptual_captions:9", "coco:3"}, tmp_path, {})
    assert [np.load(path).tolist() for path in sorted(tmp_path.iterdir())] == [[3], [], []]


# --- the report, and the size of the real thing

def test_the_report_reads_a_folder(tmp_path):
    def pairs(split, *images):
        rows = [json.dumps({"Flikr30kID": f"{image}.jpg", "pairID": f"{image}.jpg#0e", "gold_label": "entailment",
                            "sentence1": "…", "sentence2": "…"}) for image in images]
        (tmp_path / f"snli_ve/snli_ve_{split}.jsonl").write_text("\n".join(rows))
    images = [{"filename": f"{image}.jpg", "split": split, "sentences": [{"raw": "…", "sentid": image}]}
              for image, split in [(1, "train"), (2, "val"), (3, "test")]]
    for folder in ("flickr30k", "snli_ve"): (tmp_path / folder).mkdir()
    (tmp_path / "flickr30k/dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    for split, image in [("train", 1), ("dev", 2), ("test", 5)]: pairs(split, image)
    assert leaks.leak_report(tmp_path) == ("2 corpora, 2 test images: none is learned from", True)
    pairs("train", 1, 2)
    pairs("dev", 6)
    assert leaks.leak_report(tmp_path)[1]
    strict = {"flickr30k": ("val", "test")}
    text, ok = leaks.leak_report(tmp_path, tests=strict)
    assert not ok and "flickr30k:2" in text and "50.0" in text and "snli_ve" in text
    (tmp_path / "list.txt").write_text("5.jpg\n7.jpg\n")
    text, ok = leaks.leak_report(tmp_path, detector=tmp_path / "list.txt", collection="flickr30k")
    assert not ok and "detector" in text and "flickr30k:5" in text and "flickr30k:7" not in text
    assert f"1 of 2 images in {tmp_path / 'list.txt'} known; learned from" in text
    text, ok = leaks.leak_report(tmp_path, detector=tmp_path / "list.txt", collection="coco")  # and are Flickr's
    assert ok and "0 of 2 images in" in text
    cleaning.save_images(["flickr30k:2"], tmp_path / "drop.json")
    text, ok = leaks.leak_report(tmp_path, strict, drop=tmp_path / "drop.json")
    assert ok and "3 test images" in text
    for tests, problem in (({"nlvr2": ("test",)}, r"no corpus \['nlvr2'\] below .*; there are flickr30k, snli_ve"),
                           ({"snli_ve": ("test1",)}, "snli_ve: 'test1' is no split to test on; there are val, test")):
        with pytest.raises(ValueError, match=problem): leaks.leak_report(tmp_path, tests)
    (tmp_path / "list.txt").write_text("2.jpg")  # the validation set that counts is still there to be seen
    arguments = {"detector": tmp_path / "list.txt", "collection": "flickr30k", "drop": tmp_path / "drop.json"}
    assert not leaks.leak_report(tmp_path, strict, **arguments)[1] and leaks.leak_report(tmp_path, **arguments)[1]
