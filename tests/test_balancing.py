"""Balancing: scaled and weighed losses, steps in turn and together."""
import io
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.optimize import minimize
from torch import nn
from torchjd import scalarization
from torchjd.aggregation import GramianWeightedAggregator, PCGrad, SumWeighting

from vl12in1.tasks import TASKS, loss_scales
from vl12in1.training.balancing import (
    GRADIENTS, LOSSES, InTurn, ScaledLosses, Together, UncertaintyWeighting, Weighed, bargained, worst_served)


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
    assert list(LOSSES) == ["scaled", "uncertainty", "imtl_l", "dwa", "stch", "famo"]
    assert list(GRADIENTS) == ["in_turn", "sum", "pcgrad", "upgrad", "cagrad", "nash_mtl", "aligned_mtl"]
    assert {name for name, way in LOSSES.items() if way.together} == {"stch", "famo"}


# --- losses that are weighed by what became of them

PASSES = dict(vqa=2, nlvr2=3)


def losses_of(weight, iteration): return (weight - torch.tensor([1., -2.])).pow(2) * torch.tensor([1., 5.]) + .1 * (1 + iteration % 3)


def descend(weighing, weight, iterations, first=0):
    "Weights after each iteration of two tasks that share two of them, a step for both together."
    sgd, gradients, path = torch.optim.SGD([weight], lr=.02), Weighed(weighing), []
    for iteration in range(first, first + iterations):
        for place, task in enumerate(PASSES):
            loss = losses_of(weight, iteration)[place]
            weighing(task, loss).backward()
            gradients.add(sgd)
            weighing.note(task, loss.detach())
        gradients.end(sgd)
        with torch.no_grad(): weighing.end(list(losses_of(weight, iteration)))
        path.append(weight.detach().clone())
    return torch.stack(path)


def descend_as_published(scalarizer, weight, iterations):
    "The same by a module of torchjd, on all losses at once."
    sgd, path = torch.optim.SGD([weight], lr=.02), []
    for iteration in range(iterations):
        scalarizer(losses_of(weight, iteration)).backward()
        sgd.step()
        sgd.zero_grad()
        if hasattr(scalarizer, "update"): scalarizer.update(losses_of(weight, iteration))
        path.append(weight.detach().clone())
    return torch.stack(path)


def start(): return nn.Parameter(torch.tensor([3., 3.]))


@pytest.mark.parametrize("name, scalarizer", [("famo", lambda: scalarization.FAMO(2)), ("stch", lambda: scalarization.STCH(.1))])
def test_losses_weighed_together_go_where_their_scalar_goes(name, scalarizer):
    found, wanted = descend(LOSSES[name](PASSES), start(), 30), descend_as_published(scalarizer(), start(), 30)
    torch.testing.assert_close(found, wanted)


def test_dynamic_weight_average_is_the_published_one():
    weighing, published = LOSSES["dwa"](PASSES), scalarization.DWA()
    for iteration in range(9):
        losses = torch.rand(2, generator=torch.Generator().manual_seed(iteration))
        torch.testing.assert_close(sum(weighing(task, loss) for task, loss in zip(PASSES, losses)), published(losses))
        for task, loss in zip(PASSES, losses): weighing.note(task, loss)
        weighing.end()
        if iteration % 2: published.step()
    assert weighing.factors.std() > .01


def test_a_task_that_rests_does_not_spoil_the_weights_of_others():
    for name in ("dwa", "stch", "famo"):
        weighing = LOSSES[name](PASSES)
        for task in ("vqa", "nlvr2", "vqa", "vqa"):
            weighing.note(task, torch.tensor(.5))
            if weighing.together: assert weighing.weights().isfinite().all() and len(weighing.weights()) == 1
            weighing.end([torch.tensor(.4)])
        if name == "dwa": assert weighing.factors.isfinite().all()
        weighing.end([])


@pytest.mark.parametrize("name", [name for name, way in LOSSES.items() if way.together])
def test_what_is_remembered_goes_through_a_file(name):
    weight, weighing = start(), LOSSES[name](PASSES)
    descend(weighing, weight, 5)
    with io.BytesIO() as file:
        torch.save(weighing.state_dict(), file)
        file.seek(0)
        again = LOSSES[name](PASSES)
        again.load_state_dict(torch.load(file, weights_only=True))
    other = nn.Parameter(weight.detach().clone())
    assert torch.equal(descend(weighing, weight, 5, first=5), descend(again, other, 5, first=5))


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l", "stch", "famo", *[*GRADIENTS][2:]])
def test_without_what_it_needs_a_way_names_the_extra(monkeypatch, name):
    for module in ["torchjd", "scipy.optimize", *(module for module in sys.modules if module.startswith("torchjd."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"is not installed: pip install 'vl12in1\[balancing\]'$"):
        LOSSES[name](PASSES) if name in LOSSES else combined(name, torch.eye(2))


# --- one gradient of many

def gradients(seed, tasks=4): return torch.randn(tasks, 6, generator=torch.Generator().manual_seed(seed)).double()


def combined(name, rows):
    "What a way makes of rows of gradients."
    weight = nn.Parameter(torch.zeros(rows.shape[1], dtype=rows.dtype))
    model = nn.Module()
    model.encoder = nn.ParameterList([weight])
    way, sgd = GRADIENTS[name](model), torch.optim.SGD([weight], lr=1.)
    for row in rows:
        (weight * row).sum().backward()
        way.add(sgd)
    way.end(sgd)
    return -weight.detach()


@pytest.mark.parametrize("name", ["upgrad", "cagrad", "nash_mtl", "aligned_mtl"])
@pytest.mark.parametrize("rows", [torch.ones(3, 2), torch.zeros(3, 2), torch.tensor([[1., 0], [-1, 0]]), torch.eye(4)[:1],
                                  torch.tensor([[1e6, 0], [0, 1e-6]])], ids=["equal", "nothing", "opposed", "alone", "unequal"])
def test_every_gradient_has_an_answer(name, rows): assert combined(name, rows).isfinite().all()


@pytest.mark.parametrize("seed", range(8))
def test_upgrad_is_the_mean_of_projections_onto_what_no_task_objects_to(seed):
    rows = gradients(seed).numpy()
    no_objection = dict(type="ineq", fun=lambda way: rows @ way)
    nearest = [minimize(lambda way: ((way - row) ** 2).sum(), row, constraints=no_objection).x for row in rows]
    assert combined("upgrad", torch.as_tensor(rows)).numpy() == pytest.approx(np.mean(nearest, axis=0), abs=1e-3)


@given(st.integers(0, 1000))
def test_no_direction_as_near_to_the_mean_serves_the_worst_off_better_than_cagrad(seed):
    rows = gradients(seed)
    mean, found = rows.mean(0), combined("cagrad", rows)
    radius, rng = .4 * mean.norm(), np.random.default_rng(seed)
    assert (found - mean).norm() <= radius * 1.001
    others = torch.as_tensor(rng.normal(size=(500, rows.shape[1])))
    others = mean + radius * others / others.norm(dim=1, keepdim=True)
    assert (rows @ found).min() >= (others @ rows.T).min(dim=1).values.max() - 1e-3 * rows.norm()


@given(st.integers(0, 1000))
def test_nash_is_a_bargain_where_each_weight_is_one_over_what_its_task_gains(seed):
    rows = gradients(seed)
    products = rows @ rows.T
    weights = bargained(products, longest=1e9)
    assert (weights > 0).all()
    torch.testing.assert_close(products / products.norm() @ weights, 1 / weights, rtol=1e-2, atol=1e-3)
    assert combined("nash_mtl", 100 * rows).norm() == pytest.approx(1)


def test_two_equal_gradients_are_worth_what_one_is():
    twice = torch.ones(2, 2)
    for way in (worst_served, bargained): assert torch.allclose(*way(twice))
