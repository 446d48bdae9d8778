"""The miniature world: same bytes for the same configuration, files that agree with each other, and leaks as planned."""

import gzip
import hashlib
import json
import pickle
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vl12in1 import cleaning, corpora
from vl12in1.evaluation.metrics import gqa_metrics
from vl12in1.world import WorldConfig, photograph, photograph_files, plan_world, render, sample_scene, write_world
from vl12in1.world.language import entails, follow_up, gqa_question, run_program
from vl12in1.world.photos import PARTS, SCALE, stencil
from vl12in1.world.plan import evaluated
from vl12in1.world.scenes import CATEGORIES, SIDES, positions, relation
from vl12in1.world.solver import solve_question
from vl12in1.world.writers import WRITERS

TINY = WorldConfig(scale=0.03)
plan = cache(plan_world)  # no test changes a world


def fingerprint(folder):
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, TINY)
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    "The texts of the world of normal size, without its photographs."
    folder, world = tmp_path_factory.mktemp("full"), plan(WorldConfig())
    for writer in WRITERS.values():
        for path, content in writer(world).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    return world, corpora.load(folder)


def test_same_configuration_same_bytes(tiny, tmp_path):
    write_world(tmp_path / "again", TINY)
    write_world(tmp_path / "other", replace(TINY, seed=1))
    assert fingerprint(tmp_path / "again") == fingerprint(tiny)
    assert fingerprint(tmp_path / "other") != fingerprint(tiny)


@pytest.mark.parametrize("photographs", [(2, 2, 2), (90, 40, 70)])
def test_vizwiz_changes_no_other_file(tiny, photographs):
    def others(world):
        texts = {path: content for name, writer in WRITERS.items() if name != "vizwiz" for path, content in writer(world).items()}
        return texts, {key: scene for key, scene in world.scenes.items() if not key.startswith("vizwiz:")}
    other = plan(replace(TINY, vizwiz=photographs))
    assert others(plan(TINY)) == others(other) and len(other.splits["vizwiz"]["train"]) == max(2, round(photographs[0] * TINY.scale))


def test_vizwiz_asks_once_about_photographs_of_its_own(full):
    _, frames = full
    asked = pd.concat(frames["vizwiz"].values())
    assert asked["images"].is_unique and asked.answers.map(len).eq(10).all() and asked.answerable.mean() == pytest.approx(.7, abs=.06)
    assert {keys for corpus, splits in frames.items() if corpus != "vizwiz" for frame in splits.values() for keys in frame["images"]
            if any(key.startswith("vizwiz:") for key in keys)} == set()
    assert asked.answer_type.eq("unanswerable").equals(asked.answerable.eq(0)) and set(asked.answer_type) == {
        "yes/no", "number", "other", "unanswerable"}


def test_other_seed_other_scenes_and_questions(tiny):
    one, other = plan(TINY), plan(replace(TINY, seed=1))
    assert not {*one.scenes.values()} & {*other.scenes.values()}


def test_a_folder_in_use_is_refused(tiny):
    with pytest.raises(FileExistsError, match="not empty"):
        write_world(tiny, TINY)


def test_readers_find_every_corpus_and_every_photograph(tiny):
    frames, files = corpora.load(tiny), corpora.image_files(tiny)
    assert {*frames} == {*corpora.READERS}
    for corpus, splits in frames.items():
        for split, frame in splits.items():
            assert len(frame) or (corpus, split) == ("conceptual_captions", "test"), (corpus, split)
            assert {key for keys in frame["images"] for key in keys} <= {*files}


def test_photographs_have_the_size_of_their_scene(tiny):
    world, files = plan(TINY), corpora.image_files(tiny)
    assert {*files} == {*world.scenes}
    for key, file in files.items():
        with Image.open(file) as picture:
            assert picture.size == (world.scenes[key].width, world.scenes[key].height), key


def test_every_photograph_lies_where_its_keys_say(tiny):
    world = plan(TINY)
    written = {str(file.relative_to(tiny)) for file in (tiny / "images").rglob("*") if file.is_file()}
    assert written == {path for key in world.scenes for path in photograph_files(world, key)}


def test_both_names_of_a_photograph_hold_the_same_bytes(tiny):
    twins = [image for image in json.loads((tiny / "visual_genome/image_data.json").read_text()) if image["coco_id"] is not None]
    assert twins
    for image in twins:
        (coco,) = (tiny / "images/coco").rglob(f"COCO_*_{image['coco_id']:012d}.jpg")
        assert coco.read_bytes() == (tiny / f"images/visual_genome/{image['image_id']}.jpg").read_bytes()


def test_photographs_of_flickr30k_in_visual_genome_are_the_same_files(tiny):
    world, images = plan(TINY), json.loads((tiny / "visual_genome/image_data.json").read_text())
    twins = [image for image in images if (tiny / f"images/flickr30k/{image['flickr_id']}.jpg").exists()]
    assert {f"flickr30k:{image['flickr_id']}" for image in twins} == {*world.visual_genome} & {*sum(world.splits["flickr30k"].values(), [])}
    for image in twins:
        genome = tiny / f"images/visual_genome/{image['image_id']}.jpg"
        assert genome.read_bytes() == (tiny / f"images/flickr30k/{image['flickr_id']}.jpg").read_bytes()
    shared = {f"flickr30k:{image['flickr_id']}" for image in twins}
    assert shared & {*world.splits["flickr30k"]["test"]} and shared & {*world.splits["flickr30k"]["train"]}


def test_photographs_that_nlvr2_found_twice_have_one_address_and_one_key(tiny):
    world, names = plan(TINY), {}
    for split in world.splits["nlvr2"]:
        for row in map(json.loads, (tiny / f"nlvr2/{split}.json").read_text().splitlines()):
            stem = row["identifier"].rpartition("-")[0]
            for side, field in enumerate(("left_url", "right_url")): names.setdefault(row[field], set()).add(f"nlvr2:{stem}-img{side}")
    twice = [same for same in names.values() if len(same) > 1]
    assert {alias: key for key, alias in map(sorted, twice)} == world.aliases
    assert world.aliases.items() <= corpora.identity(tiny).items()
    splits = {tuple(name.partition(":")[2].partition("-")[0] for name in names) for names in world.aliases.items()}
    assert splits == {("test1", "dev"), ("train", "test1")}
    for alias, key in world.aliases.items():
        one, other = (tiny / f"images/nlvr2/{name.partition(':')[2]}.png" for name in (alias, key))
        assert one.read_bytes() == other.read_bytes() and alias not in world.scenes


def test_every_way_to_know_a_photograph_by_two_names_is_a_leak_until_it_is_cleaned(full):
    world, frames = full
    leaks = cleaning.find_leaks(frames)
    found = {(row.task, row.test_of, row.image.partition(":")[0]) for row in leaks.itertuples()}
    assert {("vg_qa", "flickr30k_retrieval", "flickr30k"), ("gqa", "flickr30k_retrieval", "flickr30k"),
            ("flickr30k_retrieval", "vg_qa", "flickr30k"), ("snli_ve", "vg_qa", "flickr30k"),
            ("nlvr2", "nlvr2", "nlvr2")} <= found
    twice = leaks[leaks["task"] == "nlvr2"]
    assert twice.groupby("split")["image"].nunique().to_dict() == dict(zip(("val", "train"), world.config.nlvr2_twice))
    cleaned = cleaning.clean(frames)
    assert cleaning.find_leaks(cleaned).empty
    for corpus in ("visual_genome", "gqa", "flickr30k", "snli_ve", "nlvr2"):
        assert len(cleaned[corpus]["train"]) < len(frames[corpus]["train"])


def test_the_photograph_of_a_key_is_the_file(tiny):
    world = plan(TINY)
    for key in [*world.scenes][::20]:
        assert (tiny / photograph_files(world, key)[0]).read_bytes() == photograph(world, key)


@pytest.mark.slow
def test_planned_overlaps():
    world = plan(WorldConfig())
    splits = {corpus: {split: {*keys} for split, keys in parts.items()} for corpus, parts in world.splits.items()}
    refcoco, refcocog = splits["refcoco"], splits["refcocog"]
    assert refcoco == splits["refcoco+"]
    assert refcoco["testA"] | refcoco["testB"] <= refcocog["train"]
    assert len(refcocog["test"] & refcoco["train"]) >= 50
    assert 0.4 < len(set().union(*refcoco.values()) & set().union(*refcocog.values())) / 486 < 0.6
    assert len(splits["flickr30k"]["train"] & splits["snli_ve"]["test"]) == 106
    assert set().union(*splits["flickr30k"].values()) == set().union(*splits["snli_ve"].values())
    genome = splits["visual_genome"]["all"]
    assert set().union(*splits["visual7w"].values()) <= genome
    assert splits["gqa"]["train"] | splits["gqa"]["val"] <= genome and not splits["gqa"]["testdev"] & genome
    assert len({key for key in genome if world.coco_sets.get(key) == "train2014"}) == 320
    assert len({key for key in genome if world.coco_sets.get(key) == "val2014"}) == 160
    assert len(genome & splits["flickr30k"]["train"]) == len(genome & splits["flickr30k"]["test"]) == 20
    assert len(genome) == 1000


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_every_photograph_is_in_one_split_of_a_corpus(seed):
    for corpus, parts in plan(WorldConfig(seed=seed)).splits.items():
        listed = [key for keys in parts.values() for key in keys]
        assert len(listed) == len({*listed}), corpus


def test_people_are_what_test_a_is_about(full):
    world, frames = full
    for corpus in ("refcoco", "refcoco+"):
        frame = frames[corpus]["test"]
        assert {*frame["part"]} == {"testA", "testB"}
        for row in frame.itertuples():
            scene = world.scenes[row.images[0]]
            scale = np.tile([scene.width, scene.height], 2)
            (meant,) = (thing for thing in scene.things if np.allclose(np.array(thing.box) / scale, row.box))
            assert (meant.category == "person") == (row.part == "testA")


def test_test_sets_are_large_enough(full):
    _, frames = full
    tests = {corpus: splits["test"] for corpus, splits in frames.items() if corpus != "conceptual_captions"}
    assert min(len({key for keys in test["images"] for key in keys}) for test in tests.values()) >= 150
    assert len({*tests["nlvr2"]["images"]}) >= 150, "pairs"
    sizes = {corpus: len(test) for corpus, test in tests.items()}
    assert min(sizes.values()) >= 300 and min(sizes[corpus] for corpus in sizes if corpus != "vizwiz") >= 500
    assert all(size >= 540 for corpus, size in sizes.items() if corpus not in ("coco_captions", "flickr30k", "vizwiz")), sizes
    assert len(frames["nlvr2"]["train"]) >= 2300 and len(frames["nlvr2"]["val"]) >= 300


def test_searched_captions_belong_to_one_photograph(full):
    _, frames = full
    for corpus in ("coco_captions", "flickr30k"):
        for split in ("val", "test"):
            assert frames[corpus][split].groupby("text")["images"].nunique().max() == 1


def test_statements_are_half_true(full):
    _, frames = full
    for frame in frames["nlvr2"].values():
        assert frame["label"].mean() == 0.5
    assert frames["snli_ve"]["test"]["label"].value_counts().nunique() == 1


def test_gqa_lists_what_an_answer_entails(full):
    _, frames = full
    for frame in frames["gqa"].values():
        images, answers = dict(zip(frame["uid"], frame["images"])), dict(zip(frame["uid"], frame["answers"]))
        assert frame["entailed"].astype(bool).mean() > 0.2
        for row in frame.itertuples():
            assert row.uid not in row.entailed and all(images[other] == row.images for other in row.entailed)
    right = [answer for (answer,) in frame["answers"]]
    entailed = {other for listed in frame["entailed"] for other in listed}
    wrong = ["nothing" if uid in entailed else answers[uid][0] for uid in frame["uid"]]
    assert gqa_metrics(frame, right)["consistency"] == gqa_metrics(frame, right)["entailed answered"] == 1
    assert gqa_metrics(frame, wrong)["consistency"] == 0


def test_what_an_answer_entails_holds_in_every_scene_with_that_answer():
    rng = np.random.default_rng(7)
    scenes, held = [sample_scene(rng) for _ in range(150)], 0
    for scene in scenes[:50]:
        drawn = [gqa_question(scene, rng) for _ in range(6)]
        drawn += [further for question in drawn if (further := follow_up(question, scene, rng))]
        for one, other in ((one, other) for one in drawn for other in drawn if one is not other and entails(one, other)):
            for place in scenes:
                try:
                    solve_question(one.text, place)  # the thing asked about is there, and once
                    answers = [run_program(question.program, place) for question in (one, other)]
                except (ValueError, StopIteration):
                    continue  # it is not, or no option fits
                if answers[0] == one.answer:
                    assert answers[1] == other.answer, (one.text, other.text)
                    held += place is not scene
    assert held > 100


def test_some_games_fail(full):
    world, frames = full
    games = [json.loads(line) for content in WRITERS["guesswhat"](world).values() for line in gzip.decompress(content).splitlines()]
    successful = sum(game["status"] == "success" for game in games)
    assert successful == sum(map(len, frames["guesswhat"].values()))
    assert 0.85 < successful / len(games) < 0.95


@pytest.mark.slow
def test_cleaning_leaves_most_of_the_training_data():
    world = plan(WorldConfig())
    everywhere = evaluated(world.splits)
    for corpus, parts in world.splits.items():
        train = parts.get("train", parts.get("train2014", ()))
        if corpus != "refcocog" and train:
            assert sum(key in everywhere for key in train) < 0.35 * len(train), corpus


def test_references_are_plain_pickles(tiny):
    for name in ("refcoco/refs(unc).p", "refcoco+/refs(unc).p", "refcocog/refs(umd).p"):
        content = (tiny / "refcoco" / name).read_bytes()
        assert content[:2] == b"\x80\x02" and b"numpy" not in content
        refs = pickle.loads(content)
        assert len({ref["ref_id"] for ref in refs}) == len(refs)
        assert len({number for ref in refs for number in ref["sent_ids"]}) == sum(len(ref["sentences"]) for ref in refs)


def test_detector_annotations_agree_with_the_scenes(tiny):
    world, objects = plan(TINY), corpora.visual_genome_objects(tiny)
    assert len(objects) == sum(len(world.scenes[key].things) for key in world.visual_genome)
    for key, rows in objects.groupby("image"):
        things = world.scenes[key].things
        assert rows["name"].tolist() == [thing.category for thing in things]
        assert rows["attributes"].tolist() == [(thing.color, thing.texture, thing.size) for thing in things]


def test_scenes_obey_their_rules():
    rng = np.random.default_rng(0)
    counts = set()
    for scene in (sample_scene(rng) for _ in range(300)):
        counts.add(len(scene.things))
        for a in scene.things:
            x1, y1, x2, y2 = a.box
            assert 0 < x1 < x2 < scene.width and 0 < y1 < y2 < scene.height
            assert all(value * SCALE == int(value * SCALE) for value in a.box)
            low, high = SIDES[a.size]
            assert low - 0.5 < ((x2 - x1) * (y2 - y1)) ** 0.5 < high + 0.5
            assert not {"left", "right"} <= {*positions(a, scene)} and not {"top", "bottom"} <= {*positions(a, scene)}
            for b in scene.things:
                opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", None: None}
                assert relation(b, a) == opposite[relation(a, b)]
                if a is not b:
                    width = min(x2, b.box[2]) - max(x1, b.box[0])
                    height = min(y2, b.box[3]) - max(y1, b.box[1])
                    assert width <= 0 or height <= 0 or width * height <= 0.05 * (x2 - x1) * (y2 - y1)
    assert counts == set(range(3, 11))


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("size", [(56, 56), (61, 84), (120, 96)])
def test_shapes_fill_their_boxes(category, size):
    assert {*PARTS} == {*CATEGORIES}
    assert stencil(category, *size).getbbox() == (0, 0, *size)


def test_a_photograph_is_deterministic_and_noisy():
    scene = sample_scene(np.random.default_rng(5))
    one, again, other = (np.asarray(render(scene, np.random.default_rng(seed)), dtype=int) for seed in (1, 1, 2))
    assert (one == again).all() and 2 < np.abs(one - other).mean() < 40
