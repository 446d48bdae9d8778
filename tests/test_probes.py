"""Probes find what is there and nothing else, on pictures they have not seen, and leave the model as it was."""
import numpy as np
import pandas as pd
import pytest
import torch

from toy import CPU, KEYS, sources, trainer
from vl12in1.study.probes import (PROPERTIES, SIZES, askable, detected_objects, last_layers, majorities, majority, only_meaning,
                                  probe, probe_layers, probe_training, probes_figure, probes_table, questions, region_vectors,
                                  relation, sample_objects, silent_batch)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "Sources, an untrained model, and an object for each region of the twenty pictures, found again."
    folder = tmp_path_factory.mktemp("toy")
    shared, rng = sources(folder), np.random.default_rng(2)
    rows = [dict(image=key, name=rng.choice(["ball", "box"]), attributes=(rng.choice(["red", "blue"]), rng.choice(["big", "tiny"])),
                 box=tuple(box / 100)) for key in KEYS for box in shared.detected[key].boxes]
    return shared, trainer(folder).model.eval(), detected_objects(pd.DataFrame(rows), shared.detected)


@pytest.mark.parametrize("width", [5, 60])
def test_a_planted_property_is_found_and_a_random_one_is_not(width):
    rng = np.random.default_rng(0)
    vectors, train = rng.normal(size=(1000, width)), np.arange(1000) < 500
    planted, coin = np.where(vectors[:, :2].sum(1) > 0, "yes", "no"), rng.choice(["yes", "no"], 1000)
    assert probe(vectors, planted, train).mean() > .9
    assert abs(probe(vectors, coin, train).mean() - .5) < .08
    assert probe(vectors, planted, train).shape == (500,)


def test_majority_is_of_the_training_half():
    labels = np.array(["a", "a", "b", "b", "b", "b"], dtype=object)
    assert majority(labels, np.arange(6) < 3).tolist() == [0, 0, 0]


def test_no_picture_is_on_both_sides(toy):
    _, _, objects = toy
    train = probe_training(objects)
    assert set(objects.image[train]).isdisjoint(objects.image[~train])
    assert objects.image[train].nunique() == 10


def test_relations_stay_on_their_side(toy):
    _, _, objects = toy
    couples, _ = questions(objects)["relation"]
    image, train = objects.image.to_numpy(), probe_training(objects)
    assert (image[couples[:, 0]] == image[couples[:, 1]]).all() and (train[couples[:, 0]] == train[couples[:, 1]]).all()
    assert (objects.region.to_numpy()[couples[:, 0]] != objects.region.to_numpy()[couples[:, 1]]).all()


def test_relation_of_swapped_boxes_is_the_opposite():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 100, 4))
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert [opposite[one] for one in relation(first, second)] == relation(second, first).tolist()


def test_vectors_are_those_of_the_regions(toy):
    shared, model, objects = toy
    vectors = region_vectors(model, "refcoco", objects, shared, CPU, batch_size=3)
    for i in (0, 42, len(objects) - 1):
        found = shared.detected[objects.image[i]]
        np.testing.assert_allclose(vectors["input"][i, :8], found.features[objects.region[i] - 1], rtol=1e-3)
        np.testing.assert_allclose(vectors["input"][i, 8:12], found.boxes[objects.region[i] - 1] / 100, rtol=1e-5)


def test_states_are_kept_only_where_they_are_asked_for(toy):
    shared, model, _ = toy
    batch = silent_batch("vqa", KEYS[:2], shared)
    asked, plain = model.encode(batch, states=True), model.encode(batch)
    assert plain.image_states is None and plain.attention is None and asked.attention is None
    assert torch.equal(asked.image_states["block 2"], plain.image)


def test_watching_changes_nothing_and_sees_every_layer(toy):
    shared, model, objects = toy
    vectors = region_vectors(model, "vqa", objects, shared, CPU)
    assert list(vectors) == ["input", "embeddings", *[f"{kind} {i}" for i in (1, 2) for kind in ("co-attention", "block")]]
    again = region_vectors(model, "vqa", objects, shared, CPU)
    assert all((vectors[layer] == again[layer]).all() for layer in vectors)


def test_the_task_is_heard_after_the_embeddings_only(toy):
    shared, model, objects = toy
    one, other = (region_vectors(model, task, objects, shared, CPU) for task in ("vqa", "refcoco"))
    assert (one["embeddings"] == other["embeddings"]).all()
    assert not (one["co-attention 1"] == other["co-attention 1"]).all()


def test_what_corpora_do_not_describe_is_left_out(toy):
    _, _, objects = toy
    bare = questions(objects.assign(attributes=[()] * len(objects), name="thing"))
    assert set(askable(bare, probe_training(objects))) == {"position", "relation"}
    assert only_meaning(("Big", "huge"), SIZES) == "large" and only_meaning(("big", "tiny"), SIZES) is None


def test_few_objects_per_picture_and_all_found_ones_overlap(toy):
    shared, _, objects = toy
    few = sample_objects(objects, limit=20, per_picture=2)
    assert len(few) == 20 and (few.groupby("image").size() <= 2).all()
    away = pd.DataFrame(dict(image=["coco:999"], name=["a"], attributes=[()], box=[(0., 0., 1., 1.)]))
    assert len(detected_objects(away, shared.detected)) == 0


def test_no_objects_give_no_questions_and_an_empty_report():
    nothing = pd.DataFrame(columns=["image", "name", "attributes", "box", "region"])
    asked, train = questions(nothing), probe_training(nothing)
    report = dict(data_name="", majority=majorities(asked, train), records=[])
    assert tuple(asked) == PROPERTIES and report["majority"] == {}
    assert len(probes_figure(report).texts) == 1
    assert len(probes_table(report)) == len(last_layers(report)) == 1


def test_a_report_becomes_table_and_figure(toy):
    shared, model, objects = toy
    asked, train = questions(objects), probe_training(objects)
    torch.set_num_threads(1)
    records = probe_layers(region_vectors(model, "vqa", objects, shared, CPU), asked, train)
    assert all(0 <= record["low"] <= record["score"] <= record["high"] <= 1 for record in records)
    report = dict(data_name="toy", majority=majorities(asked, train),
                  records=[dict(record, task="vqa", model="untrained") for record in records])
    assert len(probes_figure(report).axes) == len(PROPERTIES)
    assert last_layers(report).index.tolist() == ["most common label", "input: features and boxes", "VQAv2: untrained"]
    assert len(probes_table(report)) == 1 + len({record["layer"] for record in records})
