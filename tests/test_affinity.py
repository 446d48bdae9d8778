"Affinity: groups of layers of every encoder, cosines, and a run that is not changed by being watched."
import math

import pytest
import torch
from torch import nn

import toy
from vl12in1.model import PRESETS
from vl12in1.model.gated import ARCHITECTURES
from vl12in1.training.affinity import LAYER_GROUPS, THIRDS, Affinity, cosines, layer_groups, products, upper
from vl12in1.training.runs import problems_of

SIZES = dict(vocab_size=30, feature_dim=8)
EVERY = ["tiny", "miniature", *(f"{name}_{size}" for name in ARCHITECTURES if name != "vilbert" for size in ("tiny", "miniature"))]


@pytest.mark.parametrize("tokens", [(), (("vqa",), ("nlvr2",))])
@pytest.mark.parametrize("preset", EVERY)
def test_every_parameter_is_in_one_group_but_for_the_tokens(preset, tokens):
    encoder = PRESETS[preset](**SIZES, task_tokens=tokens).encoder()
    groups = layer_groups(encoder)
    found = [parameter for own in groups.values() for parameter in own]
    lacking = [name for name, parameter in encoder.named_parameters() if not any(parameter is one for one in found)]
    assert list(groups) == list(LAYER_GROUPS) and len(found) == len({*map(id, found)})
    assert lacking == [encoder.token_table] * bool(tokens)
    assert all(groups[name] for name in (THIRDS[0], "embeddings", "pooling"))


@pytest.mark.parametrize("preset", EVERY)
def test_groups_follow_the_order_of_the_layers(preset):
    encoder = PRESETS[preset](**SIZES).encoder()
    groups = {id(parameter): name for name, own in layer_groups(encoder).items() for parameter in own}
    places = [THIRDS.index(groups[id(next(iter(block.parameters())))]) for kind, number, *_ in encoder.order
              for block in encoder.blocks(kind, number).values()]
    assert places == sorted(places) and places[0] == 0


def test_cosines_are_those_of_torch():
    rows = [torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    found = cosines(sum(products(list(part)) for part in zip(*((row[:, :2], row[:, 2:]) for row in rows))))
    flat = torch.stack(rows).flatten(1)
    wanted = nn.functional.cosine_similarity(flat[None], flat[:, None], -1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("second", [None, torch.zeros(2)])
def test_nothing_has_no_angle(second):
    assert upper(cosines(products([torch.ones(2), second, torch.tensor([1., -1])]))) == "nan 0.000 nan"
    assert upper(cosines(products([None, None]))) == "nan"


class Two(nn.Module):
    "An encoder of two layers of one weight each."
    order, token_table = [("only", 0), ("only", 1)], "none"

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(2))

    def blocks(self, kind, number): return {kind: self.layers[number]}


def watched(affinity, encoder, pulls):
    "One iteration of tasks that pull both weights, task -> two gradients."
    for task, pull in pulls.items():
        encoder.zero_grad()
        for layer, gradient in zip(encoder.layers, pull): layer.weight.grad = torch.tensor([[float(gradient)]])
        affinity.note(task)
    affinity.end()


def test_a_record_by_hand():
    encoder = Two()
    affinity = Affinity(encoder, 3)
    for iteration in range(4):
        affinity.begin(iteration)
        watched(affinity, encoder, dict(vqa=(3, 4), nlvr2=(-6, 8), snli_ve=(0, 1)) if iteration == 3 else dict(vqa=(1, 1), nlvr2=(1, 1)))
    seen = [(record["iteration"], record["tasks"]) for record in affinity.records]
    assert seen == [(0, ["vqa", "nlvr2"]), (3, ["vqa", "nlvr2", "snli_ve"])]
    found = affinity.records[1]["cosines"]
    assert found["all"] == "0.280 0.800 0.800"
    assert found["early layers"] == "-1.000 nan nan" and found["middle layers"] == "1.000 1.000 1.000"


@pytest.mark.parametrize("every, tasks", [(0, ("vqa", "nlvr2")), (1, ("vqa",)), (1, ())])
def test_without_two_gradients_nothing_is_compared(every, tasks):
    encoder = Two()
    affinity = Affinity(encoder, every)
    affinity.begin(0)
    watched(affinity, encoder, dict.fromkeys(tasks, (1, 1)))
    assert affinity.records == [] and affinity.due == {}


# --- a run

def weights(trainer): return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_a_run_that_is_watched_is_the_same_to_the_bit(tmp_path):
    plain, other = (toy.trainer(tmp_path / str(every), affinity_every=every) for every in (0, 5))
    for trainer in (plain, other): trainer.run()
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(plain).items())
    assert plain.history == other.history and plain.affinity.records == []
    assert [record["iteration"] for record in other.affinity.records] == [0, 5, 10]
    for record in other.affinity.records:
        assert set(record["tasks"]) == {"vqa", "refcoco", "snli_ve"} and set(record["cosines"]) == {*LAYER_GROUPS, "all"}
        values = [float(text) for cell in record["cosines"].values() for text in cell.split()]
        assert len(values) == 18 and all(math.isnan(value) or -1 <= value <= 1 for value in values)


def test_a_killed_run_has_the_same_record(tmp_path):
    whole = toy.trainer(tmp_path / "whole", affinity_every=3, checkpoint_every=4)
    whole.run()
    killed = toy.trainer(tmp_path / "killed", affinity_every=3, checkpoint_every=4)
    descend = killed.descend

    def interrupted(task, batch):
        if killed.iteration == 7: raise KeyboardInterrupt
        descend(task, batch)

    killed.descend = interrupted
    with pytest.raises(KeyboardInterrupt): killed.run()
    again = toy.trainer(tmp_path / "killed", affinity_every=3, checkpoint_every=4)
    again.run()
    assert again.affinity.records == whole.affinity.records and len(whole.affinity.records) == 4


@pytest.mark.parametrize("entry, complaint", [
    (dict(affinity=-1), "affinity -1 is not a whole number from 0 on"), (dict(affinity=True), "affinity True"),
    (dict(affinity=2.5), "affinity 2.5"),
    (dict(affinity=5, gradients="sum"), "affinity compares gradients of steps that are taken in_turn")])
def test_a_wrong_interval_is_named(entry, complaint):
    assert any(complaint in problem for problem in problems_of(dict(init="scratch", kind="multi", seeds="side") | entry))
