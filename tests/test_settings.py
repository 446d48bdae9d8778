"""Settings: what a field may be is written where it is defined, and every section of params.yaml and its profile is read by it."""
from dataclasses import replace

import numpy as np
import pytest

from vl12in1.regions import DetectorConfig
from vl12in1.training.masking import Masking
from vl12in1.training.schedules import DynamicStopAndGo, RoundRobin, StopAndGo
from vl12in1.training.trainer import TrainingConfig

TRAINING = TrainingConfig(10)
BAD_NUMBERS = (float("nan"), float("inf"), "1", True, None, [1], -1)


@pytest.mark.parametrize("config, field, values", [
    (TRAINING, "iterations", (0, .5, *BAD_NUMBERS)), (TRAINING, "learning_rate", (0, *BAD_NUMBERS)),
    (TRAINING, "head_learning_rate", (0, *BAD_NUMBERS)), (TRAINING, "weight_decay", BAD_NUMBERS), (TRAINING, "beta2", (1, *BAD_NUMBERS)),
    (TRAINING, "epsilon", (0, *BAD_NUMBERS)), (TRAINING, "warmup", (1.1, *BAD_NUMBERS)), (TRAINING, "batch_fraction", (0, 1e9, *BAD_NUMBERS)),
    (TRAINING, "batch_minimum", (0, 2 ** 31, *BAD_NUMBERS)), (TRAINING, "validate_every", (0, *BAD_NUMBERS)),
    (TRAINING, "checkpoint_every", (0, *BAD_NUMBERS)), (TRAINING, "seed", (2 ** 64, *BAD_NUMBERS)),
    (DetectorConfig(), "channels", ((24,), (24, 0), 24, "24")), (DetectorConfig(), "dilations", ((0,), (1, "2"))),
    (DetectorConfig(), "feature_dim", (0, 2 ** 31, *BAD_NUMBERS)), (DetectorConfig(), "score", (2, *BAD_NUMBERS)),
    (DetectorConfig(), "epochs", (0, *BAD_NUMBERS)), (Masking(), "words", (2, *BAD_NUMBERS)), (Masking(), "overlap", (2, "", True, -1)),
    (Masking(), "mismatched_masks", (0, "false", None)), (Masking(), "region_target", ("pixels", None, 1)), (Masking(), "negatives", (0, .5)),
    (StopAndGo(), "patience", (.5, *BAD_NUMBERS)), (StopAndGo(), "threshold", BAD_NUMBERS)])
def test_what_a_field_cannot_be_is_named_with_what_it_can(config, field, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{type(config).__name__}: {field} is ") as error: replace(config, **{field: value})
        assert ", not " in str(error.value)


def test_numbers_of_numpy_are_numbers():
    assert TrainingConfig(np.int64(3), learning_rate=np.float32(.5), warmup=1).iterations == 3


def test_several_wrong_fields_are_named_at_once():
    with pytest.raises(ValueError, match="iterations is 0, not .*; warmup is '1e-1' .it is text; as a number: 0.1., not a number from 0 to 1"):
        TrainingConfig(0, warmup="1e-1")


def test_a_long_value_is_cut_short():
    with pytest.raises(ValueError) as error: TrainingConfig(list(range(10 ** 6)))
    assert len(str(error.value)) < 300


def test_the_resting_of_tasks_is_checked():
    with pytest.raises(ValueError, match="patience is 'no', not a whole number from 0"): DynamicStopAndGo(RoundRobin(["vqa"]), patience="no")
