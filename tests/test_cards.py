"A model that is handed on: complete, with its own scores on its card, in the hub's form."
import json

import pytest
import yaml
from huggingface_hub import ModelCard

from vl12in1.model import TwelveInOne, ViLBERTConfig
from vl12in1.study import cards
from vl12in1.study.cards import KINDS, evaluation_results, main
from vl12in1.study.results import invent_run
from vl12in1.tasks import TASKS


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A run of two seeds that score differently."
    model = TwelveInOne(ViLBERTConfig.tiny(), {"vqa": 2, "gqa": 2})
    for seed in (0, 1): model.save_pretrained(tmp_path / f"runs/at/models/all/seed{seed}")
    invent_run(tmp_path / "reports", "at", {"all": ["vqa", "refcoco"]}, .5, seeds=2)
    scores = tmp_path / "reports/scores/at.json"
    known = json.loads(scores.read_text())
    known["all"]["seed1"] = dict(vqa=.25, refcoco=.875)
    scores.write_text(json.dumps(known))
    monkeypatch.setattr(cards, "root", lambda: tmp_path)
    return tmp_path


def test_the_command_hands_a_model_on(checkout, capsys):
    main(["at", "all", "1", str(checkout / "mine")])
    assert "mine: a model with its scores" in capsys.readouterr().out
    source = checkout / "runs/at/models/all/seed1"
    for path in source.iterdir():
        if path.name != "README.md": assert (checkout / "mine" / path.name).read_bytes() == path.read_bytes()
    text = (checkout / "mine/README.md").read_text()
    results = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"]
    assert {result["dataset"]["type"]: result["metrics"][0]["value"] for result in results} == dict(vqa=25, refcoco=87.5)
    assert all("invented numbers" in result["dataset"]["name"] for result in results)
    assert "invented numbers" in text.partition("A ViLBERT")[2]
    assert "It understands no others." in text and "| 87.5 |" in text


def test_the_hub_reads_the_card_as_it_was_written(checkout):
    main(["at", "all", "0", str(checkout / "mine")])
    expected = evaluation_results(dict(vqa=.5, refcoco=.5), "invented numbers")
    assert ModelCard.load(checkout / "mine/README.md").data.eval_results == expected


def test_every_head_is_a_kind_of_task():
    assert {task.head for task in TASKS.values()} == set(KINDS)


@pytest.mark.parametrize("arguments, complaint", [
    (["nothing", "all", "0"], "no saved model"), (["at", "all", "2"], "no saved model"), (["at", "vqa", "0"], "no saved model")])
def test_what_is_not_there_is_one_line(arguments, complaint, checkout):
    with pytest.raises(SystemExit, match=complaint): main([*arguments, str(checkout / "mine")])
    assert not (checkout / "mine").exists()


def test_a_model_without_scores_is_not_handed_on(checkout):
    (checkout / "reports/scores/at.json").unlink()
    with pytest.raises(SystemExit, match="no scores of all, seed 0; `dvc repro test@at` tests it"):
        main(["at", "all", "0", str(checkout / "mine")])
    assert not (checkout / "mine").exists()


def test_nothing_is_written_over(checkout):
    (checkout / "mine").mkdir()
    with pytest.raises(SystemExit, match="mine"): main(["at", "all", "0", str(checkout / "mine")])
    assert list((checkout / "mine").iterdir()) == []
