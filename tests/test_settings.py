"""Settings: what a field may be is written where it is defined, and every section of params.yaml and its profile is read by it."""
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from vl12in1.model import PRESETS
from vl12in1.regions import DetectorConfig
from vl12in1.study import parallel
from vl12in1.study.settings import KNOWN, checked_settings
from vl12in1.training.masking import Masking
from vl12in1.training.schedules import DynamicStopAndGo, RoundRobin, StopAndGo
from vl12in1.training.trainer import TrainingConfig

TRAINING = TrainingConfig(10)
BAD_NUMBERS = (float("nan"), float("inf"), "1", True, None, [1], -1)


@pytest.mark.parametrize("config, field, values", [
    (TRAINING, "iterations", (0, .5, *BAD_NUMBERS)), (TRAINING, "learning_rate", (0, *BAD_NUMBERS)),
    (TRAINING, "head_learning_rate", (0, *BAD_NUMBERS)), (TRAINING, "weight_decay", BAD_NUMBERS), (TRAINING, "beta2", (1, *BAD_NUMBERS)),
    (TRAINING, "epsilon", (0, *BAD_NUMBERS)), (TRAINING, "warmup", (1.1, *BAD_NUMBERS)),
    (TRAINING, "batch_fraction", (0, 1e9, *BAD_NUMBERS)),
    (TRAINING, "batch_minimum", (0, 2 ** 31, *BAD_NUMBERS)), (TRAINING, "validate_every", (0, *BAD_NUMBERS)),
    (TRAINING, "checkpoint_every", (0, *BAD_NUMBERS)), (TRAINING, "seed", (2 ** 64, *BAD_NUMBERS)),
    (DetectorConfig(), "channels", ((24,), (24, 0), 24, "24")), (DetectorConfig(), "dilations", ((0,), (1, "2"))),
    (DetectorConfig(), "feature_dim", (0, 2 ** 31, *BAD_NUMBERS)), (DetectorConfig(), "score", (2, *BAD_NUMBERS)),
    (DetectorConfig(), "epochs", (0, *BAD_NUMBERS)), (Masking(), "words", (2, *BAD_NUMBERS)), (Masking(), "overlap", (2, "", True, -1)),
    (Masking(), "mismatched_masks", (0, "false", None)), (Masking(), "region_target", ("pixels", None, 1)),
    (Masking(), "negatives", (0, .5)),
    (StopAndGo(), "patience", (.5, *BAD_NUMBERS)), (StopAndGo(), "threshold", BAD_NUMBERS)])
def test_what_a_field_cannot_be_is_named_with_what_it_can(config, field, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{type(config).__name__}: {field} is ") as error: replace(config, **{field: value})
        assert ", not " in str(error.value)


@pytest.mark.parametrize("value", [10 ** 400, -10 ** 400, 10 ** 5000], ids=["large", "negative", "larger"])
def test_a_number_that_no_float_holds_is_none(value):
    with pytest.raises(ValueError, match="learning_rate is .*, not a number above 0"): TrainingConfig(iterations=1, learning_rate=value)


def test_numbers_of_numpy_are_numbers():
    assert TrainingConfig(np.int64(3), learning_rate=np.float32(.5), warmup=1).iterations == 3


def test_several_wrong_fields_are_named_at_once():
    with pytest.raises(ValueError, match="iterations is 0, not .*; warmup is '1e-1' .it is text; as a number: 0.1., not a number"):
        TrainingConfig(0, warmup="1e-1")


def test_a_long_value_is_cut_short():
    with pytest.raises(ValueError) as error: TrainingConfig(list(range(10 ** 6)))
    assert len(str(error.value)) < 300


def test_the_resting_of_tasks_is_checked():
    with pytest.raises(ValueError, match="patience is 'no', not a whole number"): DynamicStopAndGo(RoundRobin(["vqa"]), patience="no")


# --- the files

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def study(tmp_path, monkeypatch):
    "The working directory, a checkout of params.yaml and the profiles."
    (tmp_path / "dvc.yaml").touch()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) >= 1, old
    path.write_text(text.replace(old, new, 1))


def message_of(command, *arguments):
    with pytest.raises(SystemExit) as end: command(list(arguments))
    return end.value.code


PARAMS, PROFILE = "params.yaml", "profiles/miniature.yaml"


@pytest.mark.parametrize("file, old, new, words", [
    (PARAMS, "models: group", "models: {G1+G2: [vqaa, flickr30k_retrieval]}", "run 'gt': models: 'G1+G2' has 'vqaa'; did you mean 'vqa'"),
    (PARAMS, "models: group", "models: {x: vqa}", "run 'gt': models: 'x' has 'vqa', which is not a list"),
    (PARAMS, "fraction: 0.1", "fraction: -1", "run 'st_10': fraction -1 is not a number above 0 and at most 1"),
    (PARAMS, "fraction: 0.1", "fraction: 5", "run 'st_10': fraction 5 is not"),
    (PARAMS, "stop_and_go: true", "stop_and_go: 'false'", "stop_and_go 'false' is not true or false"),
    (PARAMS, "init: pretrain_improved", "init: pretrain_improvd", "did you mean 'pretrain_improved'"),
    (PARAMS, "init: gt,", "init: gt_ft,", "runs that begin with each other: gt_ft"),
    (PARAMS, "init: gt,", "init: pairs,", "run 'gt_ft': a model of vqa cannot begin with 'pairs': 3 of its models have learned that"),
    (PARAMS, "st_clean, seeds", "at_without_g4, seeds", "run 'curriculum': 'at_without_g4' does not say how difficult nlvr2, snli_ve is"),
    (PARAMS, "after: at,", "after: gt,", "run 'round_robin_equal': no model of 'gt' says how many steps are as many"),
    (PARAMS, "models: group", f"models: {{{'x' * 300}: [vqa]}}", "is not a name of at most 200 letters"),
    (PARAMS, "after: at,", "after: att,", "after 'att' is not one of"),
    (PARAMS, "overlap: 0.4", "overlap: 1.4", "pretraining: improved: overlap is 1.4, not a number from 0 to 1"),
    (PARAMS, "region_target: classes", "region_target: clases", "region_target is 'clases', not one of classes"),
    (PARAMS, "encoder: vilbert", "encoder: vilbret",
     "encoder 'vilbret' is not in profiles/miniature.yaml: encoders; did you mean 'vilbert'"),
    (PARAMS, "encoder: vilbert", "encoder: [vilbert]", "encoder ['vilbert'] is not in"),
    (PARAMS, "encoder: lxmert, seeds", "encoder: lxmrt, seeds", "pretraining: lxmert: encoder 'lxmrt' is not in profiles/miniature.yaml"),
    (PARAMS, "encoder: lxmert, seeds: beyond", "encoder: lxmert, seeds: beyon", "pretraining: lxmert: seeds 'beyon' is not in"),
    (PARAMS, "encoder: lxmert, seeds: beyond", "encodr: lxmert", "pretraining: lxmert: unknown 'encodr'; did you mean 'encoder'"),
    (PARAMS, "init: pretrain_lxmert, kind: multi, seeds: beyond", "init: pretrain_lxmert, kind: multi, seeds: side",
     "run 'at_lxmert': it needs 'pretrain_lxmert', and the profile's seeds: beyond is empty"),
    (PROFILE, "lxmert: {preset", "lxmert: 3\n  other: {preset", "encoders: lxmert: it is 3, not a preset and names with values"),
    (PROFILE, "[tt, t, tt,", "[tt, t, tq,", "encoders: lxmert: GatedConfig: not of the kind, or out of the range, of its field: sublayers"),
    (PARAMS, "profile: miniature", "profile: miniature\nprofil: x", "params.yaml: unknown 'profil'; did you mean 'profile'"),
    (PARAMS, "runs:", "runs: {}\nruns:", "'runs' stands there twice"),
    (PROFILE, "single: {iterations: 500}", "single: {iterations: 0}", "training: single: iterations is 0, not a whole number from 1"),
    (PROFILE, "single: {iterations: 500}", "single: {iterations: 500, iterations: 5}", "no YAML ('iterations' stands there twice"),
    *((PROFILE, "single: {iterations: 500}", f"single: {{iterations: {number}}}", f"no YAML ('{number}' can be several numbers")
      for number in ("0500", "5:00", "-0_5", "1:30:00")),
    (PROFILE, "single: {iterations: 500}", "single: {}", "training: single: iterations is missing"),
    (PROFILE, "pretrain: {", "pretrian: {", "training: pretrain is missing"),
    (PROFILE, "stop_and_go: {gap: 4", "stopandgo: {gap: 4", "training: stop_and_go is missing"),
    (PROFILE, "long: {", "lnog: {", "kind 'long' is not one of single, few, multi, finetune, lnog (profiles/miniature.yaml: training)"),
    (PROFILE, "side: [0]", "sdie: [0]", "more: seeds 'side' is not one of main, sdie, extra, beyond (profiles/miniature.yaml: seeds)"),
    (PROFILE, "learning_rate: 1.0e-3", "learning_rate: 1e-3", "common: learning_rate is '1e-3' (it is text; as a number: 0.001)"),
    (PROFILE, "learning_rate: 1.0e-3", "learning_rate: .nan", "common: learning_rate is nan"),
    (PROFILE, "learning_rate: 1.0e-3", "learning_rate: -1.0", "common: learning_rate is -1.0, not a number above 0"),
    (PROFILE, "warmup: 0.1", "warmpu: 0.1", "training: common: unknown 'warmpu'; did you mean 'warmup'"),
    (PROFILE, "gap: 4", "gap: 0", "training: stop_and_go: gap is 0"), (PROFILE, "patience: 1", "patience: true", "patience is True"),
    (PROFILE, "text_connections: [1]", "text_connections: [7]", "encoders: vilbert: ViLBERTConfig: text_connections (7,)"),
    (PROFILE, "text_layers: 2", "text_layers: 2147483647", "encoders: vilbert: text_layers is 2,147,483,647; at most 1,000"),
    (PROFILE, "text_layers: 2", "text_heads: 3", "encoders: vilbert: ViLBERTConfig: text width 64 is not a multiple of its 3 heads"),
    (PROFILE, "text_layers: 2", "text_layer: 2", "encoders: vilbert: unknown 'text_layer'; did you mean 'text_layers'"),
    *((PROFILE, "text_layers: 2", f"{name}: {value}", f"encoders: vilbert: {name} follows from the data; leave it out")
      for name, value in (("vocab_size", 7), ("feature_dim", 3), ("task_tokens", "[[nope]]"))),
    (PROFILE, "[0], dropout: 0.0", "[0], dropout: 1.0", "encoders: vilbert: dropout is 1.0, which leaves nothing to learn from"),
    (PROFILE, "text_connections: [1], image_connections: [0]", "text_connections: [], image_connections: []",
     "encoders: vilbert: in no layer do words ask regions"),
    (PROFILE, "[tt, t, tt, t, tv vt shared, tt vv, t v]", "[]", "encoders: lxmert: in no layer do words ask regions"),
    (PROFILE, "[tt, t, tt, t, tv vt shared, tt vv, t v]", "[tt vt vv, t v]", "encoders: lxmert: in no layer do words ask regions"),
    (PROFILE, "preset: miniature", "preset: minature", "preset 'minature' is none; did you mean 'miniature'"),
    (PROFILE, "world: {seed: 0}", "world: {seed: -1}", "world: seed is -1"),
    (PROFILE, "world: {seed: 0}", "world: {sede: 0}", "world: unknown 'sede'; did you mean 'seed'"),
    (PROFILE, "world: {seed: 0}", "world: {scale: .inf}", "world: scale is inf"),
    (PROFILE, "distance: 4", "distance: 65", "duplicates: distance is 65, not a whole number from 0 to 64 or null"),
    (PROFILE, "word_pieces: 1000", "word_pieces: 0", "text: word_pieces is 0"),
    (PROFILE, "minimum_answers: 9", "minimum_answer: 9", "text: unknown 'minimum_answer'; did you mean 'minimum_answers'"),
    (PROFILE, "bert: null", "bert: 3", "bert is 3, not a text of at least one letter or null"),
    (PROFILE, "bert: null", "bert: ''", "bert is '', not a text of at least one letter or null"),
    (PROFILE, "pretrained: null", "pretrained: [a]", "regions: pretrained is ['a'], not a text of at least one letter or null"),
    (PROFILE, "pretrained: null", "pretrained: ''", "regions: pretrained is '', not a text of at least one letter or null"),
    (PROFILE, "regions: {pretrained: null, seed: 0}", "regions: {pretrained: null, epochs: -2}", "regions: epochs is -2"),
    (PROFILE, "pool: 1000", "pool: 0", "retrieval: pool is 0, not a whole number from 11"),
    (PROFILE, "pool: 1000", "pool: 10", "retrieval: pool is 10, not a whole number from 11"),
    (PROFILE, "trials: 0", "trials: -1", "sweep: trials is -1, not a whole number from 0"),
    (PROFILE, "trials: 0, iterations: 500", "trials: 0, iterations: 0", "sweep: iterations is 0"),
    (PROFILE, "trials: 0", "trial: 0", "sweep: unknown 'trial'; did you mean 'trials'"),
    (PROFILE, "sweep: {trials: 0", "sweep: {seeds: 1, trials: 0", "sweep: unknown 'seeds'"),
    (PROFILE, "seed: 1000, repeats: 3", "seed: 1000", "sweep: repeats is missing"),
    (PROFILE, "seed: 1000, repeats: 3", "seed: 1.0e+3, repeats: 101", "sweep: seed is 1000.0, not a whole number"),
    (PROFILE, "seed: 1000", "seed: 0", "sweep: with seed 0 and repeats 3 it trains with [0], which are seeds of the study"),
    (PROFILE, "side: [0]", "side: 0", "seeds: side is 0"), (PROFILE, "side: [0]", "side: [0, 0]", "seeds: side is [0, 0]"),
    (PROFILE, "side: [0]", "side: [-1]", "seeds: side is [-1]"),
    (PROFILE, "beyond: []", "beyond: [0x8000000000000000]", "seeds: beyond is [9223372036854775808], which is not a list"),
    (PROFILE, "main: [0], side: [0]", "main: [], side: []", "no list has a seed"),
    (PROFILE, "retrieval: {pool: 1000}", "", "no section 'retrieval'"),
    (PROFILE, "retrieval: {pool: 1000}", "retrieval: 7", "retrieval holds 7")])
def test_a_mistake_is_one_line_before_anything_runs(study, file, old, new, words):
    edit(study / file, old, new)
    message = message_of(parallel.main)
    assert words in message and "\n" not in message and len(message) < 600
    assert Path(file).name in message or "no section" in message
    assert not (study / "executed/stages.csv").exists()


def nested(count):
    "YAML in which every line has the one before ten times."
    return "runs: {}\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10 if i else 'x')}]\n" for i in range(count))


@pytest.mark.parametrize("text, words", [
    (nested(12), "its aliases stand for more than 100,000 values"), ("a: &a [*a]\n", "more than 100,000 values"),
    ("runs: {}\n" * 40_000, "bytes"),
    ("[" * 5000, "no YAML"), ("a: 2024-13-45\n", "no YAML (month must be"), ("a: !!python/object/apply:os.getcwd []\n", "no YAML"),
    *((f"a: {value}\n", "no YAML (a value is not what its tag says)") for value in ("!!timestamp x", "!!bool maybe", "!!int ''")),
    ("a: !!float x\n", "no YAML (could not convert"),
    ("? [a]\n: b\n", "no YAML"), ("\x00\x01", "no YAML"), (f"a: {'9' * 5000}\n", "no YAML")])
def test_yaml_that_would_take_for_ever_or_is_none_is_named(study, text, words):
    (study / "params.yaml").write_text(text)
    began = time.process_time()
    message = message_of(parallel.main)
    assert "params.yaml" in message and words in message and len(message) < 600 and time.process_time() - began < 5


def test_a_file_that_is_no_file_is_named(study):
    (study / "params.yaml").unlink()
    (study / "params.yaml").mkdir()
    assert "params.yaml" in message_of(parallel.main)


@pytest.mark.parametrize("name", ["at@2", "2024", "my run", "AT", "con", "Lpt1", "Scratch", "a" * 61, "true", "a/b", "größe"])
def test_names_that_cannot_be_are_named_with_those_that_can(study, name):
    edit(study / "params.yaml", "  gt: {", f"  {name}: {{init: scratch, kind: multi, seeds: side}}\n  gt: {{")
    assert re.search("params.yaml: .* cannot be the name of a run: .*letters, digits and _", message_of(parallel.main))


def test_all_mistakes_are_named_at_once(study):
    edit(study / PROFILE, "gap: 4", "gap: 0")
    edit(study / PROFILE, "seed: 0", "seed: -1")
    assert all(words in message_of(parallel.main) for words in ("gap is 0", "world: seed is -1"))


@pytest.mark.parametrize("profile", ["smoke", "miniature", "thorough", "full"])
def test_every_profile_is_right(study, profile):
    edit(study / "params.yaml", "profile: miniature", f"profile: {profile}")
    assert checked_settings(KNOWN)["profile"] == profile


@pytest.mark.parametrize("profile", ["smoke", "miniature", "thorough"])
def test_encoders_have_as_many_weights_as_vilbert(profile):
    entries = yaml.safe_load((Path(__file__).parents[1] / f"profiles/{profile}.yaml").read_text())["encoders"]
    configs = {name: PRESETS[entry.pop("preset")](**entry) for name, entry in entries.items()}
    weights = {name: sum(parameter.numel() for parameter in config.encoder().parameters()) for name, config in configs.items()}
    assert list(weights) == ["vilbert", "lxmert", "uniter", "visualbert", "vl-bert"]
    assert all(abs(count / weights["vilbert"] - 1) < .05 for count in weights.values()), weights
    assert len({config.dropout for config in configs.values()}) == 1
