"Files as people have them: each case is a kind of input that was once misread, with what is to be said of it."
import json
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import published
import pytest

from vl12in1 import corpora, world
from vl12in1.corpora import CorpusError
from vl12in1.regions import RegionStore, StoreError, find_features, import_features

CASES = Path(__file__).parent / "cases"


# --- layouts of the field

IMAGE = dict(width=64, height=48, coco_id=None)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_refer_layout(tmp_path):
    "The three folders side by side, where upstream's own program wants them."
    for name, author in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        write_json(tmp_path / name / "instances.json", dict(
            images=[dict(id=3, width=64, height=48)], annotations=[dict(id=2, image_id=3, bbox=[1, 2, 10, 12])]))
        sentence = dict(sent_id=7, raw="left cup")
        reference = dict(ref_id=1, ann_id=2, image_id=3, split="train", sentences=[sentence])
        (tmp_path / name / f"refs({author}).p").write_bytes(pickle.dumps([reference], protocol=2))
    frames = corpora.load(tmp_path)
    assert {corpus: splits["train"].text.tolist() for corpus, splits in frames.items()} == dict.fromkeys(
        ("refcoco", "refcoco+", "refcocog"), ["left cup"])


@pytest.mark.parametrize("id, image", [("id", "image"), ("qa_id", "image_id")])
def test_visual_genome_flat(tmp_path, id, image):
    write_json(tmp_path / "visual_genome/image_data.json", [IMAGE | dict(image_id=n) for n in range(1, 7)])
    write_json(tmp_path / "visual_genome/question_answers.json",
               [{id: 10 + n, image: 1 + n // 2, "question": "What?", "answer": "A cup."} for n in range(12)])
    frames = corpora.load(tmp_path)["visual_genome"]
    assert {split: len(frame) for split, frame in frames.items()} == dict(train=8, val=2, test=2)
    assert frames["test"].images.tolist() == [("visual_genome:6",)] * 2


def test_esnli_ve_merged(tmp_path):
    header = "gold_label\ttokens1\ttokens2\timage\tsentence1\tsentence2\tpairID\texplanation\n"
    for name, images in (("train", (1, 2)), ("dev", (3,)), ("test", (4,))):
        rows = [f"entailment\ta\tb\t{id}.jpg\tA man.\tA person.\t{id}.jpg#0r1e\tso\n" for id in images]
        (tmp_path / "snli_ve").mkdir(exist_ok=True)
        (tmp_path / f"snli_ve/esnli_ve_{name}.tsv").write_text(header + header.join(rows))
    assert [len(frame) for frame in corpora.load(tmp_path)["snli_ve"].values()] == [2, 1, 1]


# --- downloads that were cut off, and copies in another's place

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut") / "data"
    world.write_world(folder, world.WorldConfig(scale=.02))
    shutil.rmtree(folder / "images")
    (folder / "world.json").unlink()
    return folder


CUT = {"conceptual_captions": ("Train_GCC-training.tsv", "Validation_GCC-1.1.0-Validation.tsv"), "nlvr2": ("train.json", "test1.json"),
       "snli_ve": ("snli_ve_train.jsonl", "snli_ve_test.jsonl"), "vqa": ("v2_mscoco_val2014_annotations.json",)}


def told(root, corpus):
    "What a reader says of a corpus: an error, or warnings."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try: corpora.load(root, only=[corpus])
        except CorpusError as error: return str(error)
    return "\n".join(str(warning.message) for warning in said)


@pytest.mark.parametrize("corpus, name", [(corpus, name) for corpus, names in CUT.items() for name in names])
@pytest.mark.parametrize("at", [.2, .5, .9, None], ids=["early", "half", "late", "at a line's end"])
def test_a_cut_download_is_named(whole, tmp_path, corpus, name, at):
    shutil.copytree(whole / corpus, tmp_path / corpus)
    file = tmp_path / corpus / name
    content = file.read_bytes()
    at = at or .7 * (b"\n" not in content[:-1])
    file.write_bytes(content[:int(len(content) * at) if at else content.rindex(b"\n", 0, -1) + 1])
    assert f"{name}: " in told(tmp_path, corpus)


def test_every_size_is_said_and_a_world_declares_itself(whole, tmp_path):
    for corpus in ("nlvr2", "gqa"):
        assert len({*told(whole, corpus).splitlines()}) == (3 if corpus == "nlvr2" else 4)
    shutil.copytree(whole / "nlvr2", tmp_path / "nlvr2")
    (tmp_path / "world.json").touch()
    assert told(tmp_path, "nlvr2") == ""


@pytest.mark.parametrize("corpus, source, target", [
    ("vqa", "v2_OpenEnded_mscoco_train2014_questions.json", "v2_OpenEnded_mscoco_test2015_questions.json"),
    ("vqa", "v2_mscoco_train2014_annotations.json", "v2_mscoco_val2014_annotations.json"),
    ("gqa", "train_balanced_questions.json", "testdev_balanced_questions.json"),
    ("gqa", "val_balanced_questions.json", "train_balanced_questions.json"),
    ("guesswhat", "guesswhat.train.jsonl.gz", "guesswhat.test.jsonl.gz"),
    ("guesswhat", "guesswhat.test.jsonl.gz", "guesswhat.valid.jsonl.gz"),
    ("nlvr2", "dev.json", "test1.json"), ("snli_ve", "snli_ve_train.jsonl", "snli_ve_test.jsonl"),
    ("conceptual_captions", "Validation_GCC-1.1.0-Validation.tsv", "Train_GCC-training.tsv")])
def test_a_file_in_anothers_place_is_an_error(whole, tmp_path, corpus, source, target):
    for name in {corpus, "visual_genome"}: shutil.copytree(whole / name, tmp_path / name)
    shutil.copy(tmp_path / corpus / source, tmp_path / corpus / target)
    with pytest.raises(CorpusError): corpora.load(tmp_path, only=[corpus])


def test_vqa_files_that_changed_places_say_so(whole, tmp_path):
    shutil.copytree(whole / "vqa", tmp_path / "vqa")
    for kind in ("OpenEnded_mscoco_{}_questions", "mscoco_{}_annotations"):
        train, val = (tmp_path / f"vqa/v2_{kind.format(subset)}.json" for subset in ("train2014", "val2014"))
        content = train.read_bytes()
        train.write_bytes(val.read_bytes())
        val.write_bytes(content)
    with pytest.raises(CorpusError, match="this is the file of 'val2014'; download that of train2014"): corpora.load(tmp_path)


def test_coco_captions_that_changed_places_say_so(tmp_path):
    for subset, other in (("train2014", "val2014"), ("val2014", "train2014")):
        write_json(tmp_path / f"coco_captions/annotations/captions_{subset}.json", dict(
            images=[dict(id=1, file_name=f"COCO_{other}_000000000001.jpg")], annotations=[dict(id=1, image_id=1, caption="a cup")]))
    with pytest.raises(CorpusError, match="COCO_val2014_000000000001.jpg is no picture of train2014"): corpora.load(tmp_path)


# --- features

def features(folder, **options):
    report = import_features(find_features(folder / "files"), folder / "store", **options)
    return report, RegionStore.open(folder / "store")


def test_boxes_as_fractions(tmp_path):
    made = [published.record(n) for n in range(3)]
    boxes = [each["boxes"] / np.float32([640, 480, 640, 480]) for each in made]
    published.write_npy(tmp_path / "files/coco_train", [each | {"boxes": fractions} for each, fractions in zip(made, boxes)])
    report, store = features(tmp_path)
    assert report.sources.fractions.tolist() == [3]
    for each in made: np.testing.assert_allclose(store[f"coco:{each['image_id']}"].boxes, each["boxes"], atol=1e-3)


def test_uniter_npz(tmp_path):
    published.write_npz(tmp_path / "files/coco_val2014", [published.record(1)], fractions=True)
    file = tmp_path / "files/coco_val2014/1.npz"
    arrays = {name: array for name, array in np.load(file).items() if name not in ("image_w", "image_h")}
    np.savez(file, **arrays)
    with pytest.raises(StoreError, match="coco_val2014: image '1': no image_w .*must come from elsewhere"): features(tmp_path)


def test_mcan_npz_transposed(tmp_path):
    made = published.record(11)
    (tmp_path / "files/coco_val2014").mkdir(parents=True)
    np.savez(tmp_path / "files/coco_val2014/COCO_val2014_000000000011.jpg.npz", x=made["features"].T, bbox=made["boxes"], image_w=640,
             image_h=480, num_bbox=4)
    _, store = features(tmp_path)
    np.testing.assert_array_equal(store["coco:11"].features, made["features"].astype(np.float16))


@pytest.mark.parametrize("columns", [published.BOTTOM_UP, published.LXMERT])
def test_tsv_truncated(tmp_path, columns):
    (tmp_path / "files").mkdir()
    path = tmp_path / "files/coco.tsv"
    published.write_tsv(path, [published.record(n) for n in range(3)], columns)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match="image '2': the last line is cut off .*download the file again"): features(tmp_path)
    report, store = features(tmp_path, on_error="skip")
    assert report.rejected.image.tolist() == ["2"] and len(store) == 2


def test_bottom_up_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/train36_imgid2idx.pkl").write_bytes(pickle.dumps({11: 0}))
    with h5py.File(tmp_path / "files/coco_train36.hdf5", "w") as file:
        file["image_features"], file["image_bb"] = np.ones((1, 3, 8)), np.ones((1, 3, 4))
    with pytest.raises(StoreError, match="coco_train36.hdf5: bottom-up attention's arrays .*import the .tsv"): features(tmp_path)


def test_tsv_written_by_python3(tmp_path):
    (tmp_path / "files").mkdir()
    made = published.record(1)
    cells = [1, 640, 480, 4, *(str(published.encoded(made[name]).encode()) for name in ("boxes", "features"))]
    (tmp_path / "files/coco_py3.tsv").write_text("\t".join(map(str, cells)) + "\n")
    _, store = features(tmp_path)
    np.testing.assert_array_equal(store["coco:1"].features, made["features"].astype(np.float16))
