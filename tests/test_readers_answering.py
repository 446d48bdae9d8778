"""Readers of questions, of Visual Genome's objects and of pictures: every layout upstream has used gives equal frames,
and whatever is wrong with a file is a CorpusError."""

import json

import pandas as pd
import pytest
from hypothesis import HealthCheck, given

from fuzz import damaged, tries, write
from vl12in1.corpora import CorpusError
from vl12in1.corpora.answering import (
    gqa_choices, gqa_questions, read_gqa, read_visual_genome, read_vqa, vqa_questions)
from vl12in1.corpora.frames import records
from vl12in1.corpora.images import identity, image_files, optional, spelling, visual_genome_images
from vl12in1.corpora.objects import visual_genome_objects
from vl12in1.world.caption_files import flickr30k_files
from vl12in1.world.plan import WorldConfig, plan_world
from vl12in1.world.question_files import gqa_files, visual_genome_files, vqa_files

# ---------------------------------------------------------------------------------------------------------------------
# A few records of everything


def vqa(subset, first):
    questions = [{"question_id": 1000 * i + k, "image_id": i, "question": f"what is {k}?"}
                 for i in range(first, first + 3) for k in range(2)]
    answers = [{"question_id": q["question_id"], "image_id": q["image_id"], "question_type": "what is",
                "answer_type": "other", "multiple_choice_answer": "cup",
                "answers": [{"answer": "cup", "answer_id": 1}, {"answer": "Cup.", "answer_id": 2}] * 5} for q in questions]
    return {f"vqa/v2_OpenEnded_mscoco_{subset}_questions.json": {"questions": questions},
            f"vqa/v2_mscoco_{subset}_annotations.json": {"annotations": answers}}


TEST, TEST_DEV = (f"vqa/v2_OpenEnded_mscoco_{subset}_questions.json" for subset in ("test2015", "test-dev2015"))
TEST_ANSWERS = "vqa/v2_mscoco_test2015_annotations.json"
VQA = vqa("train2014", 10) | vqa("val2014", 20) | vqa("test2015", 30)
VQA[TEST_DEV] = {"questions": VQA[TEST]["questions"][1:4]}

IMAGES, QUESTIONS = "visual_genome/image_data.json", "visual_genome/question_answers.json"
OBJECTS, ATTRIBUTES = "visual_genome/objects.json", "visual_genome/attributes.json"
KARPATHY, TOKEN = "flickr30k/dataset_flickr30k.json", "flickr30k/results_20130124.token"
LISTED = {IMAGES: [{"image_id": n, "width": 100, "height": 50, "coco_id": 900 + n if n % 2 else None, "flickr_id": 70 + n}
                   for n in range(6)]}
GENOME = LISTED | {QUESTIONS: [{"id": n, "qas": [
    {"qa_id": 10 * n + k, "image_id": n, "question": f"what is {k}?", "answer": "Cup.", "a_objects": [], "q_objects": []}
    for k in range(3)]} for n in range(6)]}
CUP = {"object_id": 1, "x": 0, "y": 0, "w": 50, "h": 25, "names": ["cup"], "synsets": []}
BALL = {"object_id": 2, "x": 10.5, "y": -1, "w": 9, "h": 9, "names": ["ball", "toy"], "synsets": []}
THINGS = LISTED | {OBJECTS: [{"image_id": 1, "objects": [CUP, BALL]}],
                   ATTRIBUTES: [{"image_id": 1, "attributes": [CUP | {"attributes": ["red", "small"]}, BALL]}]}


def named(name, thing): return {field: value for field, value in thing.items() if field != "names"} | {"name": name}


FLICKR = {KARPATHY: {"images": [{"filename": "74.jpg"}, {"filename": "73.jpg"}]}}


def asked(image, **more):
    return {"imageId": image, "question": "is it red?", "answer": "yes", "types": {"structural": "verify"},
            "groups": {"global": "color", "local": "x"}, "entailed": ["01"], "isBalanced": True} | more


def gqa(name): return f"gqa/{name}_questions.json"


def piece(number): return f"gqa/train_all_questions/train_all_questions_{number}.json"


TRAIN = {f"{n:02}": asked(str(n % 6)) for n in range(20)}
VAL, TESTDEV = {"30": asked("2"), "31": asked("3", groups={"global": None})}, {"40": asked("n7"), "41": asked("n8")}
BALANCED = LISTED | {gqa("train_balanced"): TRAIN, gqa("val_balanced"): VAL, gqa("testdev_balanced"): TESTDEV}
ALL = LISTED | {piece(n): dict(list(TRAIN.items())[2 * n:2 * n + 2]) for n in range(10)} | {
    gqa("val_all"): VAL, gqa("testdev_balanced"): TESTDEV}
CHALLENGE = LISTED | {gqa("challenge_all"): {"50": {"imageId": "n9", "question": "is it red?", "isBalanced": False},
                                             "51": {"imageId": "1", "question": "is it blue?", "isBalanced": True}}}
CHOICES = {"gqa/eval/val_choices.json": {"30": {"valid": ["yes", "no"], "plausible": ["yes"]}}}


def renamed(content, **names):
    "A copy of a nest of lists and records in which fields are called by other names."
    if isinstance(content, list): return [renamed(item, **names) for item in content]
    if not isinstance(content, dict): return content
    return {names.get(name, name): renamed(value, **names) for name, value in content.items()}


def genome_1_0(content):
    "Visual Genome's files as version 1.0 spells them."
    return {path: renamed(rows, image_id="id", qa_id="id", object_id="id", names="object_names"
                          if path == ATTRIBUTES else "names", a_objects="answer_objects", q_objects="question_objects")
            if path != QUESTIONS else [
                {"image_id": row["id"], "qas": [{"id": qa["qa_id"], **{name: qa[name] for name in ("question", "answer")}}
                                                for qa in row["qas"]]} for row in rows]
            for path, rows in content.items()}


def equal(left, right):
    assert list(left) == list(right)
    for split, part in left.items(): pd.testing.assert_frame_equal(part, right[split])


# ---------------------------------------------------------------------------------------------------------------------
# Damage

READ = {  # content, how it is read
    "vqa": (VQA, read_vqa), "vqa test-dev": (VQA, lambda root: vqa_questions(root, "test-dev2015")),
    "gqa balanced": (BALANCED, read_gqa), "gqa all": (ALL, read_gqa),
    "gqa challenge": (CHALLENGE, lambda root: gqa_questions(root, "challenge_all")),
    "gqa choices": (CHOICES, gqa_choices),
    "genome": (GENOME | FLICKR, read_visual_genome), "genome 1.0": (genome_1_0(GENOME), read_visual_genome),
    "objects": (THINGS | FLICKR, visual_genome_objects), "objects 1.0": (genome_1_0(THINGS), visual_genome_objects),
    "objects, one name": (THINGS | {OBJECTS: [{"image_id": 1, "objects": [named("cup", CUP), named("ball", BALL)]}]},
                          visual_genome_objects),
    "identity": (LISTED | FLICKR | {TOKEN: "74.jpg#0\ta cup\n74.jpg#1\ta red cup\n"}, identity),
}


@pytest.mark.parametrize("content, read", READ.values(), ids=READ.keys())
def test_sound_files_are_read(tmp_path, content, read):
    found = read(write(tmp_path, content))
    assert all(len(part) for part in (found.values() if isinstance(found, dict) else [found]))


@pytest.mark.parametrize("content, read", READ.values(), ids=READ.keys())
def test_damaged_files_are_corpus_errors(tmp_path, content, read):
    @tries(60, suppress_health_check=list(HealthCheck))
    @given(damaged(content))
    def check(files):
        try: read(write(tmp_path, files))
        except CorpusError: pass
    check()


HALF = "\ud800"


@pytest.mark.parametrize("content, read, change", [
    (VQA, read_vqa, lambda files: files[TEST]["questions"][0].update(question=HALF)),
    (BALANCED, read_gqa, lambda files: files[gqa("val_balanced")].update({HALF: asked("1")})),
    (BALANCED, read_gqa, lambda files: files[gqa("val_balanced")]["30"]["groups"].update({"global": HALF})),
    (THINGS, visual_genome_objects, lambda files: files[OBJECTS][0]["objects"][0].update(names=[HALF])),
    (THINGS, visual_genome_objects, lambda files: files[OBJECTS][0]["objects"][0].update(x=float("nan"))),
    (THINGS, visual_genome_objects, lambda files: files[OBJECTS][0]["objects"][0].update(w=10 ** 400)),
    (THINGS, visual_genome_objects, lambda files: files[ATTRIBUTES][0]["attributes"][0].update(attributes="red")),
    (GENOME, read_visual_genome, lambda files: files[IMAGES][0].update(width=10 ** 400)),
    (GENOME, read_visual_genome, lambda files: files[IMAGES].append(files[IMAGES][0])),
    (GENOME, read_visual_genome, lambda files: [row.update(qas=[]) for row in files[QUESTIONS]]),
    (VQA, read_vqa, lambda files: files[TEST_ANSWERS]["annotations"].append(files[TEST_ANSWERS]["annotations"][0])),
    (VQA, read_vqa, lambda files: files[TEST_ANSWERS]["annotations"][0].update(answers=[])),
    (BALANCED, read_gqa, lambda files: files[gqa("train_balanced")]["00"].pop("answer")),
    (BALANCED, read_gqa, lambda files: files[gqa("train_balanced")]["00"].update(entailed=[7])),
    (BALANCED, read_gqa, lambda files: files[gqa("train_balanced")]["00"].update(imageId="6")),
    (ALL, read_gqa, lambda files: files.pop(piece(9))),
    (ALL, read_gqa, lambda files: files[piece(9)].update({"00": asked("1")}))])
def test_what_no_frame_can_hold_is_refused(tmp_path, content, read, change):
    files = json.loads(json.dumps(content))
    change(files)
    with pytest.raises(CorpusError): read(write(tmp_path, files))


# ---------------------------------------------------------------------------------------------------------------------
# One content, many layouts


def test_all_layouts_of_visual_genome_make_equal_frames(tmp_path):
    new, old = write(tmp_path / "new", GENOME | THINGS), write(tmp_path / "old", genome_1_0(GENOME | THINGS))
    assert visual_genome_images(new) == visual_genome_images(old) and identity(new) == identity(old)
    equal(read_visual_genome(new), read_visual_genome(old))
    pd.testing.assert_frame_equal(visual_genome_objects(new), visual_genome_objects(old))
    assert visual_genome_objects(new)["attributes"].tolist() == [("red", "small"), ()]
    one = write(tmp_path / "one", THINGS | {OBJECTS: READ["objects, one name"][0][OBJECTS]})
    pd.testing.assert_frame_equal(visual_genome_objects(one), visual_genome_objects(new))


def test_pieces_and_whole_make_equal_frames(tmp_path):
    equal(read_gqa(write(tmp_path / "balanced", BALANCED)), read_gqa(write(tmp_path / "all", ALL)))


def test_the_balanced_release_is_read_where_both_are(tmp_path):
    root = write(tmp_path, ALL | BALANCED | {gqa("train_balanced"): {"00": asked("0")}})
    assert len(read_gqa(root)["train"]) == 1 and len(gqa_questions(root, "train_all")) == 20


@pytest.mark.parametrize("seed", range(3))
def test_what_the_world_wrote_is_read(tmp_path, seed):
    world = plan_world(WorldConfig(seed=seed, scale=.02))
    files = vqa_files(world) | visual_genome_files(world) | gqa_files(world) | flickr30k_files(world)
    root = write(tmp_path / "written", files)
    content = {path: json.loads(text) for path, text in files.items()}
    for subset in ("train2014", "val2014", "test2015"):
        frame = vqa_questions(root, subset)
        known = {row["question_id"]: row for row in content[f"vqa/v2_mscoco_{subset}_annotations.json"]["annotations"]}
        for row, question in zip(frame.itertuples(), content[
                f"vqa/v2_OpenEnded_mscoco_{subset}_questions.json"]["questions"], strict=True):
            written = known[question["question_id"]]
            assert (row.uid, row.images, row.text) == (
                str(question["question_id"]), (f"coco:{question['image_id']}",), question["question"])
            assert row.answers == tuple(answer["answer"] for answer in written["answers"])
            assert row.multiple_choice_answer == written["multiple_choice_answer"]
    keys = {str(number): key for key, number in world.visual_genome.items()}
    for split, name in {"train": "train", "val": "val", "test": "testdev"}.items():
        for row, (id, written) in zip(read_gqa(root)[split].itertuples(), content[gqa(f"{name}_balanced")].items(),
                                      strict=True):
            image = written["imageId"]
            assert (row.uid, row.images, row.text) == (id, (keys.get(image, f"gqa:{image}"),), written["question"])
            assert (row.answers, row.structural) == ((written["answer"],), written["types"]["structural"])
            assert (row.group, row.entailed) == (written["groups"]["global"], tuple(written["entailed"]))
    parts = read_visual_genome(root)
    asked = {str(qa["qa_id"]): qa for row in content[QUESTIONS] for qa in row["qas"]}
    assert sum(map(len, parts.values())) == len(asked)
    for row in pd.concat(parts).itertuples():
        qa = asked[row.uid]
        assert (row.images, row.text) == ((keys[str(qa["image_id"])],), qa["question"]) and row.answers == (qa["answer"],)
    images = [set().union(*part["images"]) for part in parts.values()]
    assert sum(map(len, images)) == len(set().union(*images)), "no image in two splits"
    older = write(tmp_path / "older", genome_1_0({path: rows for path, rows in content.items()
                                                     if "genome" in path or path == KARPATHY}))
    equal(read_visual_genome(older), parts)
    pd.testing.assert_frame_equal(visual_genome_objects(older), visual_genome_objects(root))


def test_minival_shares_no_image_with_training(tmp_path):
    frames = read_vqa(write(tmp_path, VQA))
    assert not set(frames["train"]["images"]) & set(frames["val"]["images"]) and len(frames["val"]) == 2


# ---------------------------------------------------------------------------------------------------------------------
# Test questions


def test_test_dev_is_a_part_of_the_test_questions(tmp_path):
    root = write(tmp_path, VQA)
    test, dev = (vqa_questions(root, subset) for subset in ("test2015", "test-dev2015"))
    pd.testing.assert_frame_equal(dev, test[1:4].reset_index(drop=True))
    assert dev["answers"].tolist() == [("cup", "Cup.") * 5] * 3
    (root / TEST_ANSWERS).unlink()
    assert vqa_questions(root, "test-dev2015")["answers"].tolist() == [()] * 3


def test_an_id_says_which_kind_of_image_it_is(tmp_path):
    challenge = gqa_questions(write(tmp_path, CHALLENGE), "challenge_all")
    assert challenge["images"].tolist() == [("gqa:n9",), ("coco:901",)] and challenge["answers"].tolist() == [(), ()]
    assert challenge[["structural", "group"]].values.tolist() == [["", ""]] * 2
    assert challenge["entailed"].tolist() == [(), ()]


def test_choices(tmp_path):
    assert gqa_choices(write(tmp_path, CHOICES)) == {"30": (frozenset({"yes", "no"}), frozenset({"yes"}))}


# ---------------------------------------------------------------------------------------------------------------------
# Who is who, and where the pictures are


@pytest.mark.parametrize("files", [FLICKR, {TOKEN: "74.jpg#0\ta cup\n73.jpg#0\ta ball\n"}], ids=["karpathy", "token"])
def test_a_photograph_that_flickr30k_has_too(tmp_path, files):
    root = write(tmp_path, LISTED | files)
    assert identity(root) == {"visual_genome:1": "coco:901", "visual_genome:3": "coco:903", "visual_genome:5": "coco:905",
                              "visual_genome:4": "flickr30k:74", "flickr30k:73": "coco:903"}
    keys = {f"visual_genome:{id}": photo.key for id, photo in visual_genome_images(root).items()}
    assert keys.items() >= {alias: key for alias, key in identity(root).items() if alias in keys}.items()


def test_without_flickr30k_or_flickr_ids_nothing_is_shared(tmp_path):
    assert "visual_genome:4" not in identity(write(tmp_path / "a", LISTED))
    without = [{name: value for name, value in row.items() if name != "flickr_id"} for row in LISTED[IMAGES]]
    assert "visual_genome:4" not in identity(write(tmp_path / "b", FLICKR | {IMAGES: without}))


def test_the_miniature_world_shares_the_planned_photographs_with_flickr30k(tmp_path):
    world = plan_world(WorldConfig(scale=.1))
    flickr = [key.split(":")[1] for key in world.scenes if key.startswith("flickr30k:")]
    root = write(tmp_path, visual_genome_files(world) | {KARPATHY: {"images": [{"filename": f"{id}.jpg"} for id in flickr]}})
    shared = {key for key in identity(root).values() if key.startswith("flickr30k:")}
    assert shared == {key for key in world.visual_genome if key.startswith("flickr30k:")} and 0 < len(shared) < len(flickr)


PICTURES = {  # files below images/ -> key -> the one that is taken; LISTED and FLICKR say who is who
    "coco's own": (["visual_genome/VG_100K/1.jpg", "coco/val2014/COCO_val2014_000000000901.jpg", "gqa/1.jpg"],
                   {"coco:901": "coco/val2014/COCO_val2014_000000000901.jpg"}),
    "of 2017": (["coco/train2017/000000000901.jpg", "visual_genome/1.jpg"], {"coco:901": "coco/train2017/000000000901.jpg"}),
    "of both years": (["coco/train2017/000000000901.jpg", "coco/val2014/COCO_val2014_000000000901.jpg"],
                      {"coco:901": "coco/val2014/COCO_val2014_000000000901.jpg"}),
    "genome's copy": (["gqa/1.jpg", "visual_genome/VG_100K_2/1.jpg"], {"coco:901": "visual_genome/VG_100K_2/1.jpg"}),
    "gqa's copy": (["gqa/1.jpg", "gqa/2.jpg", "gqa/n2.jpg"],
                   {"coco:901": "gqa/1.jpg", "visual_genome:2": "gqa/2.jpg", "gqa:n2": "gqa/n2.jpg"}),
    "flickr30k's own": (["visual_genome/4.jpg", "flickr30k/flickr30k-images/74.jpg"],
                        {"flickr30k:74": "flickr30k/flickr30k-images/74.jpg"}),
    "flickr30k's copy": (["visual_genome/4.jpg"], {"flickr30k:74": "visual_genome/4.jpg"}),
    "nlvr2 in directories": (["nlvr2/images/train/12/train-10171-0-img0.png", "nlvr2/dev/dev-850-0-img1.png"],
                             {"nlvr2:train-10171-0-img0": "nlvr2/images/train/12/train-10171-0-img0.png",
                              "nlvr2:dev-850-0-img1": "nlvr2/dev/dev-850-0-img1.png"}),
    "other files": (["coco/COCO_val2014_x.jpg", "coco/._000000000901.jpg", "gqa/m2.jpg", "visual_genome/readme.txt",
                     "nlvr2/train.png", "conceptual_captions/12.jpg"], {"conceptual_captions:12": "conceptual_captions/12.jpg"}),
}


@pytest.mark.parametrize("names, expected", PICTURES.values(), ids=PICTURES.keys())
def test_which_picture_is_taken(tmp_path, names, expected):
    root = write(tmp_path, LISTED | FLICKR | {f"images/{name}": b"" for name in names})
    assert {key: file.relative_to(root / "images").as_posix() for key, file in image_files(root).items()} == expected


def test_a_linked_folder_is_entered(tmp_path):
    write(tmp_path, {"disk/000000000901.jpg": b"", "data/images/coco/readme": b""})
    (tmp_path / "data/images/coco/train2017").symlink_to(tmp_path / "disk")
    assert list(image_files(tmp_path / "data")) == ["coco:901"]


def test_fields_that_come_and_go():
    rows = records("f", [{"id": 1, "word": None}, {"id": 2, "word": "cup"}, {"id": 3}])
    assert optional(rows, "word", "none") == ["none", "cup", "none"] and optional(rows, "size", 0, int) == [0, 0, 0]
    assert (spelling(rows, "image_id", "id"), spelling(rows, "id", "word"), spelling(rows, "a", "b")) == ("id", "id", "a")
    with pytest.raises(CorpusError, match="record 1, field 'word'"): optional(rows, "word", 0, int)
