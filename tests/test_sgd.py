"""The optimizer against torch.optim, as a citizen of PyTorch, and under bad input."""
import copy
import functools
import math
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from course_lib.support.tensors import default_device
from course_lib.figures.landscapes import outcome
from course_lib.figures.sgd import canyon_explorer, parabola_explorer
from course_lib.sgd import Optimizer, descend, sgd_step
from course_lib.support.optimizer import add_scaled


def heavy_ball(p, grad, state, *, lr, beta=.9):
    "A stepper with state, to try what sgd_step does not need."
    state["average"] = beta * state.get("average", 0) + grad
    add_scaled(p, state["average"], -lr)


def halve(p, grad, state): return grad / 2


def net(dtype=torch.float64, device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(3 * 36, 7), nn.Tanh(),
                         nn.Linear(7, 1)).to(device, dtype)


def train(model, optimizer, n=100, seed=1):
    torch.manual_seed(seed)
    dtype, device = next(model.parameters()).dtype, next(model.parameters()).device
    for _ in range(n):
        x = torch.randn(5, 1, 8, 8).to(device, dtype)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().cpu() for p in model.parameters()]


@pytest.mark.parametrize("dtype, device, tolerance",
                         [(torch.float64, "cpu", 0), (torch.float32, "cpu", 0), (torch.float32, "default", 1e-6)])
def test_equals_torch_sgd(dtype, device, tolerance):
    device = default_device() if device == "default" else device
    ours, theirs = net(dtype, device), net(dtype, device)
    theirs = train(theirs, torch.optim.SGD(theirs.parameters(), lr=.05))
    ours = train(ours, Optimizer(ours.parameters(), [sgd_step], lr=.05))
    for a, b in zip(ours, theirs): torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def test_groups_closures_and_missing_gradients_equal_torchs():
    results = []
    for make in (lambda groups: torch.optim.SGD(groups, lr=.1), lambda groups: Optimizer(groups, [sgd_step], lr=.1)):
        model = net()
        model[2].bias.requires_grad_(False)  # it never gets a gradient
        optimizer = make([{"params": model[0].parameters(), "lr": .01},
                          {"params": [*model[2].parameters(), *model[4].parameters()]}])
        x = torch.ones(2, 1, 8, 8, dtype=torch.float64)

        def closure():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(10)]
        results.append((losses, [p.detach() for p in model.parameters()]))
    assert results[0][0] == results[1][0]
    for a, b in zip(results[0][1], results[1][1]): assert torch.equal(a, b)


def test_schedulers_of_torch_turn_the_rate():
    for scheduler in (functools.partial(torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, T_0=7),
                      functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=.9)):
        ours, theirs = net(), net()
        pairs = []
        for model, optimizer in ((ours, Optimizer(ours.parameters(), [sgd_step], lr=.1)),
                                 (theirs, torch.optim.SGD(theirs.parameters(), lr=.1))):
            schedule, rates = scheduler(optimizer), []
            for seed in range(20):
                train(model, optimizer, 1, seed)
                schedule.step()
                rates.append(optimizer.param_groups[0]["lr"])
            pairs.append(rates)
        assert pairs[0] == pairs[1]
        for a, b in zip(ours.parameters(), theirs.parameters()): assert torch.equal(a, b)


def test_state_is_saved_loaded_copied_and_pickled():
    straight, model = net(), net()
    straight_through = train(straight, Optimizer(straight.parameters(), [heavy_ball], lr=.01), 20)
    optimizer = Optimizer(model.parameters(), [heavy_ball], lr=.01)
    torch.manual_seed(1)
    batches = [torch.randn(5, 1, 8, 8).double() for _ in range(20)]

    def go_on(model, optimizer, batches):
        for x in batches:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    go_on(model, optimizer, batches[:9])
    resumed = copy.deepcopy(model)
    other = Optimizer(resumed.parameters(), [heavy_ball], lr=.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    go_on(resumed, other, batches[9:])
    for a, b in zip(resumed.parameters(), straight_through): assert torch.equal(a.detach(), b)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_step_as_the_original_does(duplicate):
    p = nn.Parameter(torch.ones(3))
    optimizer = Optimizer([p], [heavy_ball], lr=.1)
    p.grad = torch.ones(3)
    optimizer.step()
    twin = duplicate(optimizer)
    [q] = twin.param_groups[0]["params"]
    q.grad = torch.ones(3)
    for one in (optimizer, twin): one.step()
    assert q is not p and torch.equal(p, q) and p[0] < .8


@pytest.mark.parametrize("damage, message", [
    (lambda s: s["param_groups"][0].pop("beta"), "another optimizer: it lacks beta"),
    (lambda s: s["param_groups"][0].update(momentum=.9), "another optimizer: it has momentum"),
    (lambda s: s["param_groups"][0].update(lr=math.nan), "lr must be finite"),
    (lambda s: s["param_groups"][0].update(lr=torch.tensor([.1, .2])), "2 values.*first axis of 2"),
    (lambda s: s.pop("param_groups"), "no 'param_groups'"), (lambda s: s.pop("state"), "no 'state'")])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(damage, message):
    optimizer = Optimizer([nn.Parameter(torch.zeros(3))], [heavy_ball], lr=.1)
    state = copy.deepcopy(optimizer.state_dict())
    damage(state)
    with pytest.raises(ValueError, match=message): optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == .1 and optimizer.param_groups[0]["beta"] == .9


def test_a_state_with_a_schedulers_notes_fits():
    make = lambda: Optimizer([nn.Parameter(torch.zeros(3))], [heavy_ball], lr=.1)
    optimizer, other = make(), make()
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1., total_steps=10, cycle_momentum=False)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] != .1


def test_a_state_of_named_parameters_fits_where_names_are_missing():
    named, plain = (Optimizer(net().named_parameters(), [heavy_ball], lr=.1),
                    Optimizer(net().parameters(), [heavy_ball], lr=.2))
    plain.load_state_dict(named.state_dict())
    assert plain.param_groups[0]["lr"] == .1


def test_the_outcome_is_a_word_for_what_the_ball_did():
    steps = np.arange(101)[:, None]
    for path, word in ((.99 ** steps, "crawls"), ((-.99) ** steps, "hops"),
                       (.99 ** steps * np.cos(.3 * steps), "swings"), (.5 ** steps, "lands"),
                       (1.1 ** steps, "flies out"), (steps * math.nan, "flies out")):
        assert outcome(path) == word


def test_a_new_optimizer_knows_nothing_of_an_old_one():
    model, fresh = net(), net()
    train(model, Optimizer(model.parameters(), [heavy_ball], lr=.01), 5)
    fresh.load_state_dict(model.state_dict())
    a = train(model, Optimizer(model.parameters(), [heavy_ball], lr=.01), 5, seed=2)
    b = train(fresh, Optimizer(fresh.parameters(), [heavy_ball], lr=.01), 5, seed=2)
    for p, q in zip(a, b): assert torch.equal(p, q)


def test_steppers_run_in_order_and_leave_the_gradient():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    Optimizer([p], [halve, sgd_step], lr=1.).step()
    assert p.tolist() == [-.5] * 3 and p.grad.tolist() == [1.] * 3
    Optimizer([p], [sgd_step, halve], lr=1.).step()
    assert p.tolist() == [-1.5] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_n_models_with_n_rates_equal_each_alone(dtype):
    torch.manual_seed(0)
    rates, betas = torch.rand(5, dtype=dtype) / 10, torch.rand(5, dtype=dtype)
    start = [torch.randn(5, 4, 3, dtype=dtype), torch.randn(5, dtype=dtype), torch.randn(5, 2, dtype=dtype)]
    loss = lambda params: sum((p.tanh() ** 2).sum() for p in params)

    def run(params, **hypers):
        params = [nn.Parameter(p.clone()) for p in params]
        optimizer = Optimizer(params, [heavy_ball], **hypers)
        for _ in range(30):
            optimizer.zero_grad()
            loss(params).backward()
            optimizer.step()
        return params

    together = run(start, lr=rates, beta=betas)
    for i in range(5):
        alone = run([p[i] for p in start], lr=rates[i].item(), beta=betas[i].item())
        for a, b in zip(together, alone):
            torch.testing.assert_close(a[i], b, atol=1e-6 if dtype == torch.float32 else 1e-12, rtol=0)


def test_a_gradient_scaler_skips_an_infinite_step():
    device = default_device().type
    p = nn.Parameter(torch.zeros(2, device=device))
    optimizer, scaler = Optimizer([p], [sgd_step], lr=1.), torch.amp.GradScaler(device, init_scale=8.)
    for factor, expected in ((1., -1.), (math.inf, -1.), (1., -2.)):
        optimizer.zero_grad()
        scaler.scale((p * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert p.tolist() == [expected] * 2


def stepper_without_state(p, grad, *, lr): pass
def stepper_with_positional_hyper(p, grad, state, lr): pass
def stepper_with_anything(p, grad, state, **kwargs): pass
def beta_of_half(p, grad, state, *, beta=.5): pass


WEIGHTS = [nn.Parameter(torch.zeros(3))]
@pytest.mark.parametrize("params, steppers, hypers, message", [
    (WEIGHTS, [sgd_step], {}, "Missing hyperparameter 'lr'"),
    (WEIGHTS, [sgd_step], {"lr": -1.}, "lr must be finite and at least 0, not -1.0"),
    (WEIGHTS, [sgd_step], {"lr": math.inf}, "lr must be finite"),
    (WEIGHTS, [sgd_step], {"lr": math.nan}, "lr must be finite"),
    (WEIGHTS, [sgd_step], {"lr": "0.1"}, "lr must be a number"),
    (WEIGHTS, [sgd_step], {"lr": True}, "lr must be a number"),
    (WEIGHTS, [sgd_step], {"lr": None}, "lr must be a number"),
    (WEIGHTS, [sgd_step], {"lr": 1j}, "lr must be a number"),
    (WEIGHTS, [sgd_step], {"lr": .1, "bta": .9}, "Unknown hyperparameter 'bta'"),
    (WEIGHTS, [heavy_ball], {"lr": .1, "bta": .9}, "did you mean 'beta'"),
    (WEIGHTS, [heavy_ball], {"lr": .1, "momentum": .9}, "did you mean 'beta'"),
    (WEIGHTS, [heavy_ball], {"lr": .1, "beta": 1.}, "beta must be finite and at least 0 and below 1, not 1.0"),
    (WEIGHTS, [heavy_ball], {"lr": .1, "beta": -.1}, "below 1"),
    (WEIGHTS, [heavy_ball, beta_of_half], {"lr": .1}, "different defaults, 0.9 and 0.5"),
    ([], [sgd_step], {"lr": .1}, "no parameters"), (iter([]), [sgd_step], {"lr": .1}, "no parameters"),
    ([{"params": []}], [sgd_step], {"lr": .1}, "no parameters"),
    (WEIGHTS, [], {"lr": .1}, "at least one stepper"),
    (WEIGHTS, [stepper_without_state], {"lr": .1}, "stepper_without_state.*is no stepper"),
    (WEIGHTS, [stepper_with_positional_hyper], {"lr": .1}, "is no stepper"),
    (WEIGHTS, [stepper_with_anything], {"lr": .1}, "is no stepper"),
    ([{"params": WEIGHTS, "lrr": 1.}], [sgd_step], {"lr": .1}, "Unknown hyperparameter 'lrr'"),
    ([{"params": WEIGHTS, "lr": -1.}], [sgd_step], {"lr": .1}, "lr must be finite"),
    ([torch.zeros(3, dtype=torch.int64)], [sgd_step], {"lr": .1}, "torch.int64"),
    ([torch.zeros(3, dtype=torch.complex64)], [sgd_step], {"lr": .1}, "torch.complex64"),
    (WEIGHTS, [sgd_step], {"lr": torch.tensor([.1, .2])}, "2 values.*first axis of 2"),
    (WEIGHTS, [sgd_step], {"lr": torch.tensor([[.1]])}, "one axis"),
    (WEIGHTS, [sgd_step], {"lr": torch.tensor(1)}, "floating point"),
    (WEIGHTS, [sgd_step], {"lr": torch.tensor(True)}, "floating point"),
    (WEIGHTS, [sgd_step], {"lr": torch.tensor([.1, math.nan, .1])}, "lr must be finite")])
def test_bad_input_is_named(params, steppers, hypers, message):
    with pytest.raises(ValueError, match=message): Optimizer(params, steppers, **hypers)


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="Sparse"): Optimizer(table.parameters(), [sgd_step], lr=.1).step()


def test_a_group_added_late_is_checked_too():
    optimizer = Optimizer(WEIGHTS, [sgd_step], lr=.1)
    with pytest.raises(ValueError, match="at least 0"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": -1})
    with pytest.raises(ValueError, match="int64"):
        optimizer.add_param_group({"params": [torch.zeros(1, dtype=torch.int64)]})
    with pytest.raises(ValueError, match="first axis"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": torch.ones(2)})
    with pytest.raises(TypeError, match="dict"): optimizer.add_param_group([nn.Parameter(torch.zeros(1))])
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert optimizer.param_groups[1]["lr"] == .1


@pytest.mark.parametrize("backend", [
    "eager", pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="no compiler"))])
@pytest.mark.parametrize("lr", [.05, torch.tensor(.05)])
def test_compiled_step(backend, lr):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    model, reference = net(torch.float32), net(torch.float32)
    optimizer = Optimizer(model.parameters(), [heavy_ball], lr=lr)
    twin = Optimizer(reference.parameters(), [heavy_ball], lr=.05)
    optimizer.step = torch.compile(optimizer.step, backend=counting)
    for a, b in zip(train(model, optimizer, 5), train(reference, twin, 5)): torch.testing.assert_close(a, b)
    assert graphs, "nothing was compiled"


@pytest.mark.parametrize("value", [1 - 1e-9, 0, .5])
def test_numbers_are_compared_as_python_has_them(value):
    assert Optimizer([nn.Parameter(torch.zeros(1, dtype=torch.float64))], [heavy_ball], lr=1e39,
                     beta=value).param_groups[0]["beta"] == value


@pytest.mark.parametrize("lr", [.01, .3, 1., 1.99, 2.5])
def test_explorers_show_the_closed_form(lr):
    parabola, canyon = parabola_explorer(), canyon_explorer()
    for n in (5, 200):
        factor = (1 - lr * 1.5) ** n
        state = parabola.set(lr=lr, curvature=1.5, n_steps=n)
        assert state["w"] == pytest.approx(-2.5 * factor, rel=1e-9, abs=1e-12)
        assert state["loss"] == pytest.approx(.75 * (2.5 * factor) ** 2, rel=1e-9, abs=1e-12)
        state = canyon.set(lr=min(lr, 1.4), steepness=7., n_steps=n)
        assert state["y"] == pytest.approx((1 - min(lr, 1.4) * 7) ** n, rel=1e-8, abs=1e-12)
        assert (state["outcome"] == "flies out") == (min(lr, 1.4) > 2 / 7)


def test_the_outcome_is_read_off_the_path_for_any_optimizer():
    def sign_step(p, grad, state, *, lr): add_scaled(p, grad.sign(), -lr)

    explorer = canyon_explorer(lambda lr: lambda params: Optimizer(params, [sign_step], lr=lr))
    assert explorer.set(lr=.05, steepness=50., n_steps=50)["outcome"] == "lands"  # plain SGD would fly out
    assert "multiplies" not in explorer._line.value


def test_a_broken_stepper_shows_in_the_explorer():
    explorer = parabola_explorer(lambda lr: lambda params: Optimizer(params, [sgd_step], lr=lr if lr < 2 else -1))
    good = dict(explorer.state)
    explorer.controls["lr"].value = 2.3
    assert "lr must be" in str(explorer.error) and explorer.state == good
    explorer.controls["lr"].value = .5
    assert explorer.error is None and explorer.state["lr"] == .5


def test_descend_gives_steppers_a_gradient_of_their_own():
    "A slope that returns the point itself must not change under a stepper that moves the point first."
    def shrink(p, grad, state): p.mul_(.9)

    path = descend(torch.tensor([4.]), lambda w: w, lambda params: Optimizer(params, [shrink, sgd_step], lr=.5), 2)
    torch.testing.assert_close(path[:, 0], torch.tensor([4., 1.6, .64]))


def test_descend_is_plain_arithmetic():
    path = descend(torch.tensor([8.]), lambda w: w, lambda params: Optimizer(params, [sgd_step], lr=.5), 3)
    assert path[:, 0].tolist() == [8., 4., 2., 1.]
