"Merging: sums of changes, elections of signs, and models of one task that share an encoder afterwards."
import shutil

import pytest
import torch

from vl12in1.evaluation.measure import measure_run
from vl12in1.model import PRESETS, CheckpointError, TwelveInOne
from vl12in1.toy import toy_study
from vl12in1.training.merged import merge_run, problems_of_merger, read_mergers, run_to_test
from vl12in1.training.merging import WAYS, average, change, merged_part, moved, put_in, task_arithmetic, ties, trimmed
from vl12in1.training.train import train_run
from vl12in1.training.trainer import build_model


def state(seed, deviation=1.):
    generator = torch.Generator().manual_seed(seed)
    return {name: deviation * torch.randn(shape, generator=generator) for name, shape in dict(a=(4, 5), b=(7,), c=(2, 3)).items()}


BASE = state(0)
MODELS = [{name: weight + BASE[name] for name, weight in state(seed, .1).items()} for seed in range(1, 6)]


def changes(models=MODELS): return (change(BASE, model) for model in models)


def same(one, other):
    assert one.keys() == other.keys()
    for name in one: torch.testing.assert_close(one[name], other[name])


# --- directions

def by_hand(vectors, keep):
    "TIES as its paper has it, weight by weight, of changes that are lists of numbers."
    count = max(1, round(keep * len(vectors[0])))
    least = [sorted(map(abs, vector))[-count] for vector in vectors]
    kept = [[x if abs(x) >= bound else 0. for x in vector] for vector, bound in zip(vectors, least)]
    merged = []
    for column in zip(*kept):
        sign = (sum(column) > 0) - (sum(column) < 0)
        agreeing = [x for x in column if x * sign > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.)
    return merged


@pytest.mark.parametrize("keep", [.1, .2, .5, 1.])
def test_ties_is_what_its_paper_says(keep):
    vectors = [torch.cat([weight.flatten() for weight in one.values()]).tolist() for one in changes()]
    found = torch.cat([weight.flatten() for weight in ties(changes(), keep).values()])
    torch.testing.assert_close(found, torch.tensor(by_hand(vectors, keep), dtype=torch.float64))


@pytest.mark.parametrize("way", WAYS)
def test_one_model_is_merged_to_itself(way): same(moved(BASE, WAYS[way](changes(MODELS[:1]))), MODELS[0])


@pytest.mark.parametrize("way", ["average", "ties"])
def test_copies_of_a_model_are_merged_to_that_model(way): same(moved(BASE, WAYS[way](changes(MODELS[:1] * 3))), MODELS[0])


@pytest.mark.parametrize("keep", [.3, 1.])
@pytest.mark.parametrize("way", WAYS)
def test_the_order_of_models_is_no_matter(way, keep): same(WAYS[way](changes(), keep), WAYS[way](changes(MODELS[::-1]), keep))


@pytest.mark.parametrize("way", WAYS)
def test_a_scale_of_nothing_is_the_base(way):
    unmoved = moved(BASE, WAYS[way](changes(), .5), 0)
    assert all(torch.equal(unmoved[name], BASE[name]) for name in BASE)


def test_the_average_is_the_mean_of_the_weights():
    same(moved(BASE, average(changes())), {name: torch.stack([model[name] for model in MODELS]).mean(0) for name in BASE})
    same(task_arithmetic(changes()), {name: len(MODELS) * weight for name, weight in average(changes()).items()})


def test_without_trimming_and_conflicts_ties_is_the_average():
    agreeing = [{name: weight + one.abs() for (name, weight), one in zip(BASE.items(), state(seed).values())} for seed in range(1, 4)]
    same(ties(changes(agreeing)), average(changes(agreeing)))


def test_ties_of_signs_move_nothing():
    assert ties([dict(a=torch.tensor([1., -2.]).double()), dict(a=torch.tensor([-1., 2.]).double())])["a"].tolist() == [0, 0]


@pytest.mark.parametrize("keep, left", [(1e-9, 1), (.1, 3), (.5, 16), (1, 33)])
def test_a_fraction_of_the_numbers_of_all_tensors_is_kept(keep, left):
    one = next(changes())
    kept = trimmed(one, keep)
    assert sum(int((weight != 0).sum()) for weight in kept.values()) == left
    sizes = torch.cat([weight.abs().flatten() for weight in one.values()])
    assert {abs(x) for weight in kept.values() for x in weight.flatten().tolist()} - {0} == set(sizes.topk(left).values.tolist())


@pytest.mark.parametrize("model", [dict(MODELS[0], d=torch.ones(1)), {"a": MODELS[0]["a"]}, dict(MODELS[0], b=torch.ones(8))])
def test_encoders_that_differ_are_refused(model):
    with pytest.raises(ValueError, match=r"^[bd]\S*(, c)?: \d tensors are not in both, of one shape: these encoders cannot be merged"):
        change(BASE, model)


def test_nothing_is_no_merger():
    with pytest.raises(ValueError, match="there is no model to merge"): average([])


def test_models_are_opened_one_at_a_time():
    alive = []

    def opened():
        for model in MODELS:
            alive.append(1)
            yield change(BASE, model)
            assert len(alive) == 1
            alive.pop()

    for way in WAYS.values(): way(opened())


@pytest.mark.parametrize("preset", ["tiny", "lxmert_tiny", "uniter_tiny", "visualbert_tiny"])
def test_every_encoder_keeps_its_token_and_its_heads(preset):
    first, second = (TwelveInOne(PRESETS[preset](vocab_size=30, feature_dim=8, task_tokens=(("vqa",), ("nlvr2",))), dict(vqa=2, gqa=2))
                     for _ in range(2))
    before = {name: weight.clone() for name, weight in first.state_dict().items()}
    put_in(first, merged_part(second))
    after, token = first.state_dict(), f"encoder.{first.encoder.token_table}"
    for name, weight in after.items():
        theirs = name.startswith("encoder.") and name != token
        assert torch.equal(weight, second.state_dict()[name] if theirs else before[name]), name
    assert not torch.equal(before[token], second.state_dict()[token])


# --- entries

ENTRY = dict(run="alone", base="scratch", way="ties", keep=.5, scales=[.5, 1], seeds="side")


def grid(*, merged=None, of=(0,), **entry):
    alone = dict(init="scratch", kind="single", seeds="main", models="task")
    return dict(profile="toy", runs=dict(alone=alone, together=dict(alone, models="all"), begun=dict(alone, init="alone")), followers={},
                seeds=dict(main=[0, 1], side=list(of)), retrieval=dict(pool=1000),
                merged=dict(mix=ENTRY | entry) if merged is None else merged,
                training=dict(common=dict(learning_rate=2e-3, batch_fraction=1 / 8), single=dict(iterations=4)))


@pytest.mark.parametrize("entry, complaint", [
    (dict(way="sum"), "way 'sum' is not one of average, arithmetic, ties"), (dict(way=[1]), "way"), (dict(scales=[]), "scales"),
    (dict(scales=[0]), "scales"), (dict(scales=1), "scales 1 is not a list of numbers above 0"), (dict(scales=[True]), "scales"),
    (dict(scales=[float("nan")]), "scales"), (dict(keep=0), "keep 0"), (dict(keep=1.5), "keep 1.5"), (dict(keep="all"), "keep 'all'"),
    (dict(way="average"), "keep belongs to the way ties"), (dict(kep=1), "unknown field 'kep'; did you mean 'keep'"),
    (dict(run="alon"), "run 'alon' is not one of .*did you mean 'alone'"), (dict(run=["alone"]), "run"),
    (dict(seeds="sides"), "seeds 'sides'"),
    (dict(base="together"), "did not begin with 'together', but with 'scratch'"), (dict(run="together"), "have several tasks"),
    (dict(seeds=None), "seeds None")])
def test_a_wrong_entry_is_named(entry, complaint):
    with pytest.raises(ValueError, match=f"^params.yaml: merged 'mix': .*{complaint}") as refused: read_mergers(grid(**entry))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("field", ["run", "base", "way", "scales", "seeds"])
def test_a_field_that_is_missing_is_named(field):
    assert problems_of_merger({name: value for name, value in ENTRY.items() if name != field}) == [f"{field} is missing"]


def test_every_wrong_entry_has_its_line():
    with pytest.raises(ValueError, match="^params.yaml: merged 'a': .*\nparams.yaml: merged 'b': 3 is not"):
        read_mergers(grid(merged=dict(a=ENTRY | dict(way=1), b=3)))


def test_seeds_that_were_not_trained_are_named():
    with pytest.raises(ValueError, match="it needs 'alone' with seed 3, which"): read_mergers(grid(of=[0, 3]))


def test_a_study_without_mergers_has_its_runs():
    study = {name: part for name, part in grid().items() if name != "merged"}
    assert read_mergers(study) == {} and run_to_test(study, "alone").init == "scratch"
    with pytest.raises(ValueError, match="no run 'mix'"): run_to_test(study, "mix")


# --- a whole run

@pytest.fixture(scope="module")
def home(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("merged")
    sources = toy_study(folder)
    for seed in (0, 1):
        torch.manual_seed(seed)
        build_model(sources, "tiny").save_pretrained(folder / f"runs/scratch/models/all/seed{seed}")
    train_run("alone", grid(), folder)
    return folder


def opened(folder, run, task, seed): return TwelveInOne.from_pretrained(folder / f"runs/{run}/models/{task}/seed{seed}")


def test_merged_models_share_an_encoder_for_each_seed_and_are_tested_as_others(home):
    study = grid(of=[0, 1], scales=[.25, 1])
    record = merge_run("mix", study, home)
    assert [(model["model"], model["seed"]) for model in record["trained"]] == [("nlvr2", 0), ("snli_ve", 0), ("nlvr2", 1), ("snli_ve", 1)]
    for seed in (0, 1):
        nlvr2, snli_ve = (merged_part(opened(home, "mix", task, seed)) for task in ("nlvr2", "snli_ve"))
        base = merged_part(opened(home, "scratch", "all", seed))
        scale = next(model["scale"] for model in record["trained"] if model["seed"] == seed)
        models = [change(base, merged_part(opened(home, "alone", task, seed))) for task in ("nlvr2", "snli_ve")]
        same(nlvr2, moved(base, ties(models, .5), scale))
        assert all(torch.equal(weight, snli_ve[name]) for name, weight in nlvr2.items())
    scores = measure_run("mix", study, home)
    assert set(scores) == {"average", "nlvr2", "snli_ve"} and set(scores["nlvr2"]) == {"seed0", "seed1"}


def test_the_scale_is_the_best_by_validation_and_the_encoder_is_counted_once(home):
    record = merge_run("mix", grid(scales=[2, .5, 1]), home)
    first, second = record["trained"]
    assert list(first["scales"]) == ["0.5", "1", "2"] and first["scales"] == second["scales"]
    assert first["scales"][f"{first['scale']:g}"] == max(first["scales"].values()) == pytest.approx(
        (first["validation"]["nlvr2"] + second["validation"]["snli_ve"]) / 2)
    encoder = sum(parameter.numel() for parameter in opened(home, "mix", "nlvr2", 0).encoder.parameters())
    assert first["parameters"] > encoder > second["parameters"] > 0
    assert record["merged"]["way"] == "ties" and record["init"] == "alone" and first["steps"] == {"nlvr2": 0}


def test_what_an_earlier_entry_left_goes_and_no_seed_is_no_error(home):
    merge_run("mix", grid(), home)
    study = grid(of=[])
    assert merge_run("mix", study, home)["trained"] == [] and measure_run("mix", study, home) == {}
    assert list((home / "runs/mix/models").iterdir()) == []


def test_a_study_without_corpora_merges_nothing(home, tmp_path):
    shutil.copytree(home, tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty/build/frames/clean")
    (tmp_path / "empty/build/frames/clean").mkdir()
    assert merge_run("mix", grid(), tmp_path / "empty")["trained"] == []


def test_an_entry_that_there_is_not_is_named(home):
    with pytest.raises(ValueError, match="no entry 'mixed' of the section merged; there are: mix"): merge_run("mixed", grid(), home)


def test_a_model_that_is_not_there_is_named(home, tmp_path):
    shutil.copytree(home, tmp_path / "lacking")
    shutil.rmtree(tmp_path / "lacking/runs/alone/models/snli_ve/seed0")
    with pytest.raises(CheckpointError, match="alone/models/snli_ve/seed0"): merge_run("mix", grid(), tmp_path / "lacking")
    assert not (tmp_path / "lacking/reports/runs/mix.json").exists()
