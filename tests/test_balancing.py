"""Balancing: scaled and weighed losses, steps in turn and together."""
import pytest
import torch
from torch import nn
from torchjd.aggregation import GramianWeightedAggregator, PCGrad, SumWeighting

from vl12in1.tasks import TASKS, loss_scales
from vl12in1.training.balancing import GRADIENTS, LOSSES, InTurn, ScaledLosses, Together, UncertaintyWeighting


def Sum(): return GramianWeightedAggregator(SumWeighting())


def parts(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(4, 3), {"vqa": nn.Linear(3, 1), "nlvr2": nn.Linear(3, 1)}


def gradients_of(trunk, heads, gradients, inputs):
    "Gradients that the optimiser would see of one iteration of two tasks."
    seen, parameters = {}, [*trunk.parameters(), *(p for head in heads.values() for p in head.parameters())]

    class Watcher(torch.optim.SGD):
        def step(self): seen.update({id(p): p.grad.clone() for p in parameters if p.grad is not None})

    optimizer = Watcher(parameters, lr=0)
    for head, x in zip(heads.values(), inputs):
        head(trunk(x).tanh()).pow(2).mean().backward()
        gradients.add(optimizer)
    gradients.end(optimizer)
    return [seen[id(p)] for p in parameters]


def test_the_sum_is_the_gradient_of_the_sum():
    trunk, heads = parts()
    inputs = [torch.randn(5, 4), torch.randn(5, 4)]
    found = gradients_of(trunk, heads, Together(trunk.parameters(), Sum()), inputs)
    sum(head(trunk(x).tanh()).pow(2).mean() for head, x in zip(heads.values(), inputs)).backward()
    wanted = [p.grad for p in [*trunk.parameters(), *(p for head in heads.values() for p in head.parameters())]]
    for a, b in zip(found, wanted): torch.testing.assert_close(a, b)


def test_heads_keep_their_own_gradients_under_surgery():
    trunk, heads = parts()
    inputs = [torch.randn(5, 4), torch.randn(5, 4)]
    added, operated = (gradients_of(trunk, heads, Together(trunk.parameters(), way), inputs) for way in (Sum(), PCGrad()))
    for a, b in zip(added[2:], operated[2:]): torch.testing.assert_close(a, b)


def test_surgery_leaves_no_task_worse_off_to_first_order():
    weight, pulls = nn.Parameter(torch.zeros(3)), torch.tensor([[1., 0, 0], [-1, .3, 0]])
    gradients, optimizer = Together([weight], PCGrad()), torch.optim.SGD([weight], lr=1.)
    for pull in pulls:
        (weight * pull).sum().backward()
        gradients.add(optimizer)
    gradients.end(optimizer)
    assert (pulls @ weight.detach() < 0).all()


@pytest.mark.parametrize("together, wanted", [(False, 3), (True, 1)])
def test_steps_in_turn_are_as_many_as_tasks_and_one_together(together, wanted):
    weight, steps = nn.Parameter(torch.ones(2)), []

    class Counter(torch.optim.SGD):
        def step(self): steps.append(super().step())

    optimizer, gradients = Counter([weight], lr=.1), Together([weight], Sum()) if together else InTurn()
    for _ in range(3):
        weight.pow(2).sum().backward()
        gradients.add(optimizer)
    gradients.end(optimizer)
    assert len(steps) == wanted


def test_an_iteration_without_tasks_makes_no_step():
    weight = nn.Parameter(torch.ones(2))
    Together([weight], Sum()).end(torch.optim.SGD([weight], lr=1.))
    assert weight.tolist() == [1, 1] and not hasattr(weight, "jac")


def test_losses_are_scaled_as_published():
    scaled = ScaledLosses(TASKS)
    assert {task: scaled(task, torch.tensor(1.)).item() for task in TASKS} == loss_scales(TASKS)
    assert not list(scaled.parameters())


@pytest.mark.parametrize("size", [.1, 4., 50.])
def test_uncertainty_settles_where_the_loss_is(size):
    weighting = UncertaintyWeighting(["vqa", "refcoco+"])
    optimizer = torch.optim.Adam(weighting.parameters(), lr=.1)
    for _ in range(400):
        weighting("refcoco+", torch.tensor(size)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert weighting.weightings["refcoco+"].log_var.exp().item() == pytest.approx(size, rel=.02)
    again = UncertaintyWeighting(["vqa", "refcoco+"])
    again.load_state_dict(weighting.state_dict())
    assert again("refcoco+", torch.tensor(2.)) == weighting("refcoco+", torch.tensor(2.))


def test_every_choice_has_a_name():
    assert list(LOSSES) == ["scaled", "uncertainty"] and list(GRADIENTS) == ["in_turn", "sum", "pcgrad"]
