"The history of a run as TensorBoard reads it."
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vl12in1.study import experiment


def test_tensorboard_shows_the_history_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("VL12IN1_TENSORBOARD", str(tmp_path / "curves"))
    history = [dict(iteration=iteration, task="vqa", loss=2 / iteration, score=iteration / 100, stopped=iteration > 20)
               for iteration in (10, 20, 30)]
    record = dict(run="at", trained=[dict(model="all", seed=0, history=history)])
    experiment.log_curves(record, experiment.tensorboard())
    curves = EventAccumulator(str(tmp_path / "curves/at/all/seed0")).Reload()
    assert sorted(curves.Tags()["scalars"]) == ["loss/vqa", "score/vqa", "stopped/vqa"]
    for name in experiment.CURVES:
        assert [event.step for event in curves.Scalars(f"{name}/vqa")] == [10, 20, 30]
        assert [event.value for event in curves.Scalars(f"{name}/vqa")] == pytest.approx([float(line[name]) for line in history])
