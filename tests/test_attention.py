"""What is said about attention maps holds for any map: rows sum to one, bounds, and even attention as the yardstick."""
import json
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from toy import CPU, frames, sources, trainer
from vl12in1.study.attention import (attention_example, attention_figure, first_right, groups, join_pieces, own_pairs, per_word,
                                     sampled)
from vl12in1.study.heads import STREAMS, attention_table, by_head, entropy, head_measures, heads_figure, measures
from vl12in1.tasks import TASKS
from vl12in1.examples.batches import Examples


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "An untrained model and the examples of three tasks."
    folder = tmp_path_factory.mktemp("toy")
    shared, data = sources(folder), frames(sources(folder))
    return trainer(folder).model.eval(), {task: Examples(task, splits["test"], shared) for task, splits in data.items()}


@pytest.mark.parametrize("task", ["vqa", "refcoco", "snli_ve"])
def test_rows_of_all_maps_sum_to_one(toy, task):
    model, examples = toy
    maps = model.encode(own_pairs(examples[task], range(8))[0], attention=True).attention
    assert set(maps) == set(STREAMS)
    for layer in sum(maps.values(), []):
        torch.testing.assert_close(layer.sum(-1), torch.ones(layer.shape[:-1]))


def random_maps(seed, pairs=5, heads=3, queries=4, keys=6):
    "Random maps with padded keys, and the mask of the keys."
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(keys) < torch.randint(2, keys + 1, (pairs, 1), generator=rng)
    scores = 3 * torch.randn(pairs, heads, queries, keys, generator=rng)
    return scores.masked_fill(~mask[:, None, None], -10000).softmax(-1), mask


def even(mask, heads=3, queries=4):
    "Even attention to the keys of a mask."
    return (mask / mask.sum(1, keepdim=True))[:, None, None].expand(-1, heads, queries, -1)


@pytest.mark.parametrize("seed", range(5))
def test_entropy_is_between_nought_and_one(seed):
    maps, mask = random_maps(seed)
    found = entropy(maps, mask)
    assert (found >= 0).all() and (found <= 1 + 1e-6).all()
    torch.testing.assert_close(entropy(even(mask), mask), torch.ones(found.shape))
    torch.testing.assert_close(entropy(torch.eye(6)[:1].expand(maps.shape), mask), torch.zeros(found.shape))


@pytest.mark.parametrize("seed", range(5))
def test_even_attention_gives_exactly_the_even_mass(seed):
    _, mask = random_maps(seed)
    marks = {"some": mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < .5)}
    found = measures(even(mask), torch.ones(5, 4, dtype=bool), mask, marks)
    torch.testing.assert_close(found["some"], found["some, if even"], equal_nan=True)


def test_padded_queries_do_not_count():
    maps, mask = random_maps(0)
    queries = torch.tensor([[True, True, False, False]]).expand(5, -1)
    other = maps.clone()
    other[:, :, 2:] = even(mask)[:, :, 2:]
    marks = {"first": torch.arange(6).expand(5, -1) == 0}
    for name, value in measures(maps, queries, mask, marks).items():
        torch.testing.assert_close(value, measures(other, queries, mask, marks)[name])


def test_a_model_that_does_not_care_attends_evenly(toy):
    model, examples = toy
    careless = deepcopy(model)
    with torch.no_grad():
        for name, weight in careless.named_parameters():
            if "query_in" in name or "key_value_in" in name: weight.zero_()
    heads = head_measures(careless, examples["refcoco"], CPU)
    np.testing.assert_allclose(heads.entropy, 1, rtol=1e-5)
    for name in ("referred", "whole picture", "[CLS]", "[SEP]", "[TASK]", "words"):
        np.testing.assert_allclose(heads[name], heads[f"{name}, if even"], rtol=1e-4)


def test_kinds_of_words_are_all_words(toy):
    model, examples = toy
    heads = head_measures(model, examples["snli_ve"], CPU).loc["image_to_text"]
    np.testing.assert_allclose(heads[["[CLS]", "[TASK]", "[SEP]", "words"]].sum(axis=1), 1, rtol=1e-5)
    assert heads.filter(like="referred").isna().all(axis=None)


def test_pieces_become_words_and_nothing_is_lost():
    words, owner = join_pieces("[CLS] [TASK] un ##believ ##able cat [SEP]".split())
    assert words == "[CLS] [TASK] unbelievable cat [SEP]".split()
    weights = np.random.default_rng(0).dirichlet(np.ones(7), size=3)
    np.testing.assert_allclose(per_word(weights, owner).sum(1), 1)
    np.testing.assert_allclose(per_word(weights, owner)[:, 2], weights[:, 2:5].sum(1))


def test_groups_are_a_partition():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, .5, (40, 2))
    boxes, weights = np.concatenate([corners, corners + rng.uniform(.1, .5, (40, 2))], axis=1), rng.random(40)
    found = groups(boxes, weights)
    assert sorted(np.concatenate(found)) == list(range(40)) and len(found) < 40
    assert all(weights[group[0]] == weights[group].max() for group in found)


def test_an_example_is_json_and_becomes_a_figure(toy, tmp_path):
    model, examples = toy
    example = json.loads(json.dumps(attention_example(model, examples["refcoco"], 0, CPU) | dict(picture="a.png")))
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    heads = model.config.co_heads * len(model.config.text_connections)
    figure = attention_figure([example, example], tmp_path, "at", "")
    assert sum(len(part.axes) for part in figure.subfigs) == 2 * (1 + 2 * heads + len(model.config.text_connections))
    np.testing.assert_allclose(np.sum(example["referred_to_words"], axis=-1), 1, atol=2e-3)


def test_the_chosen_example_is_right_and_new(toy):
    model, examples = toy
    row = first_right(model, examples["refcoco"], CPU)
    if row is not None: assert first_right(model, examples["refcoco"], CPU, shown=examples["refcoco"].images[row]) != row
    assert first_right(model, examples["refcoco"], CPU, words=50) is None


def test_drawing_examples_depends_on_the_seed_only():
    frame = pd.DataFrame(dict(n=range(50)))
    assert sampled(frame, 10).n.tolist() == sampled(frame, 10).n.tolist() != sampled(frame, 10, seed=1).n.tolist()
    assert sampled(frame, 10).n.is_unique


def test_tables_and_figures_of_some_tasks_and_of_none(toy):
    model, examples = toy
    heads = pd.concat([head_measures(model, test, CPU).reset_index().assign(task=task) for task, test in examples.items()])
    assert list(by_head(heads, "image", "entropy").columns) == [task for task in TASKS if task in examples]
    assert attention_table(heads)["best head"].notna().tolist() == [False, True, False]
    assert heads_figure(heads, "").axes
    nothing = pd.DataFrame(columns=["task", "map", "layer", "head"])
    assert len(attention_table(nothing)) == 0 and len(heads_figure(nothing, "").texts) == 1
