"""Pictures that look alike: found as by the definition, kept in files that are not trusted blindly, and never by a reader of batches."""
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.neighbors import NearestNeighbors
from toy import KEYS, frames, sources
from vl12in1.examples import batches, neighbours
from vl12in1.examples.batches import Examples, looks_alike
from vl12in1.examples.neighbours import Neighbours, nearest, write_neighbours
from vl12in1.regions import StoreError
from vl12in1.training.feed import Readers
from vl12in1.training.trainer import Feed, TrainingConfig

TASK = "coco_retrieval"


@pytest.fixture
def shared(tmp_path):
    return sources(tmp_path)


def splits(shared):
    return {name: frame[["uid", "images", "text"]] for name, frame in frames(shared)["vqa"].items()}


# --- the nearest

def by_definition(vectors, k):
    "Distances in double precision, one row after another; of equal ones the earlier is first."
    vectors = np.asarray(vectors, float)
    distances = ((vectors[:, None] - vectors[None]) ** 2).sum(-1)
    np.fill_diagonal(distances, np.inf)
    return distances.argsort(1, kind="stable")[:, :k]


few = st.integers(2, 30).flatmap(lambda n: st.integers(1, 4).flatmap(lambda dim: arrays("float32", (n, dim), elements=st.integers(-3, 3))))


@given(vectors=few, k=st.integers(1, 8), tile=st.sampled_from([1, 50, 2 ** 23]))
def test_as_by_the_definition_whatever_the_tile(vectors, k, tile):
    "Few whole numbers, so that many distances are equal."
    k = min(k, len(vectors) - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "TILE", tile)
        assert nearest(vectors, k).tolist() == by_definition(vectors, k).tolist()


@given(vectors=few, data=st.data())
def test_some_rows_are_rows_of_all(vectors, data):
    rows = data.draw(st.lists(st.integers(0, len(vectors) - 1), min_size=1))
    assert nearest(vectors, 1, rows).tolist() == nearest(vectors, 1)[rows].tolist()


def test_more_equal_ones_than_are_looked_at_closely():
    assert nearest(np.zeros((100, 4)), 3)[-1].tolist() == [0, 1, 2]


def test_what_single_precision_cannot_tell_apart():
    "Two clusters, far from each other and narrow: within one the product of matrices is nothing but rounding."
    rng = np.random.default_rng(0)
    vectors = (np.repeat([[-300.], [300.]], 20, axis=0) + rng.normal(scale=.01, size=(40, 16))).astype("float32")
    assert nearest(vectors, 5).tolist() == by_definition(vectors, 5).tolist()


def test_as_scikit_learn_finds_them():
    vectors = np.random.default_rng(0).gamma(.3, size=(700, 64)).astype("float32")  # as sparse as features of a detector
    others = NearestNeighbors(n_neighbors=31, algorithm="brute").fit(vectors.astype(float)).kneighbors(return_distance=False)
    assert nearest(vectors, 30).tolist() == others[:, :30].tolist()


def test_no_more_is_looked_at_at_once_than_a_tile(monkeypatch):
    sizes, smallest = [], neighbours.smallest
    monkeypatch.setattr(neighbours, "TILE", 1000)
    monkeypatch.setattr(neighbours, "smallest", lambda distances, k: sizes.append(distances.numel()) or smallest(distances, k))
    nearest(np.random.default_rng(0).normal(size=(150, 4)), 5)
    assert max(sizes) <= 1000 and sum(sizes) == 150 ** 2


# --- in a file

@pytest.fixture
def written(shared, tmp_path):
    write_neighbours(shared.detected, ["coco"], tmp_path / "neighbours")
    return tmp_path / "neighbours"


def test_written_and_read(shared, written):
    read = Neighbours.open(written, shared.detected)
    means = np.stack([shared.detected[key].features.mean(0, dtype=np.float32) for key in KEYS])
    assert list(read) == list(shared.detected.keys()) and len(read) == 20
    expected = [[KEYS[place] for place in places] for places in by_definition(means, 2)]
    assert [read[key] for key in KEYS] == expected


def spoiled(places, file):
    np.save(file, places)


@pytest.mark.parametrize("spoil, complaint", [
    (lambda file: file.unlink(), "'coco' cannot be read"),
    (lambda file: file.write_bytes(file.read_bytes()[:-1]), "'coco' cannot be read"),
    (lambda file: file.write_bytes(b""), "'coco' cannot be read"),
    (lambda file: spoiled(np.load(file)[1:], file), "not places of neighbours among 20 pictures"),
    (lambda file: spoiled(np.load(file) + 18, file), "not places of neighbours among 20 pictures"),
    (lambda file: spoiled(np.load(file) - 5, file), "not places of neighbours among 20 pictures"),
    (lambda file: spoiled(np.load(file) * 1., file), "not places of neighbours among 20 pictures"),
    (lambda file: file.with_suffix(".txt").write_text("coco:1"), "not places of neighbours among 1 pictures")])
def test_a_damaged_file_is_named(shared, written, spoil, complaint):
    spoil(written / "coco.npy")
    with pytest.raises(StoreError, match=f"neighbours.*{complaint}.*run dvc repro neighbours"): Neighbours.open(written, shared.detected)


def test_features_that_are_no_numbers_are_named(shared):
    pictures = dict(shared.detected)
    pictures[KEYS[3]] = replace(pictures[KEYS[3]], features=pictures[KEYS[3]].features * np.float16(np.nan))
    with pytest.raises(StoreError, match=f"{KEYS[3]}: features that are not finite"): looks_alike(replace(shared, detected=pictures), KEYS)


# --- who looks for them

def test_only_pictures_without_neighbours_in_the_split_are_compared(shared, monkeypatch):
    compared, search = [], batches.nearest
    monkeypatch.setattr(batches, "nearest", lambda vectors, k, rows: compared.append(list(rows)) or search(vectors, k, rows))
    known = {key: ["coco:elsewhere", KEYS[0]] for key in KEYS[1:]}
    alike = looks_alike(replace(shared, neighbours=known), KEYS)
    assert compared == [[0]]
    assert [places.tolist() for places in alike[1:]] == [[0]] * 19
    means = np.stack([shared.detected[key].features.mean(0, dtype=np.float32) for key in KEYS])
    assert alike[0].tolist() == by_definition(means, 2)[0].tolist()


def test_a_reader_of_batches_never_looks_for_them(shared, monkeypatch):
    feed = Feed.of(TASK, splits(shared), shared, TrainingConfig(4, batch_fraction=1 / 32))
    def refuse(*arguments, **options): raise AssertionError("looked for in a reader")
    monkeypatch.setattr(batches, "nearest", refuse)
    with Readers({TASK: feed.train}, {TASK: 0}, threads=2) as readers:
        assert len(readers.take(TASK, [TASK] * 3).tokens) == 16
    with pytest.raises(AssertionError, match="looked for in a reader"): Examples(TASK, splits(shared)["train"], shared).pool
