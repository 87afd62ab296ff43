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

from course_lib.adam import adam_step, average_grad_slow, count_steps, lion_step, weight_decay
from course_lib.data import TensorLoader
from course_lib.momentum import (
    average_grad, average_grad_dampened, l2_reg, momentum_step, nesterov_step)
from course_lib.rmsprop import average_sqr_grad, rms_prop_step
from course_lib.support.tensors import default_device
from course_lib.figures.landscapes import outcome
from course_lib.figures.sgd import canyon_explorer, parabola_explorer
from course_lib.sgd import Optimizer, SmallOptimizer, accuracy_of, batches, descend, sgd_step
from course_lib.support.optimizer import add_scaled, hyperparameters


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


@pytest.mark.parametrize("steppers", [
    [sgd_step], [heavy_ball], [halve, sgd_step], [l2_reg, sgd_step], [average_grad, momentum_step],
    [average_grad, nesterov_step], [l2_reg, average_sqr_grad, rms_prop_step],
    [average_grad_dampened, average_sqr_grad, count_steps, adam_step],
    [weight_decay, average_grad_dampened, average_sqr_grad, count_steps, adam_step],
    [weight_decay, lion_step, average_grad_slow]], ids=lambda steppers: steppers[-1].__name__)
@pytest.mark.parametrize("hypers", [{"lr": .01, "sqr_beta": .99},
                                    {"lr": .01, "beta": .8, "sqr_beta": .95, "weight_decay": .1}])
def test_the_small_optimizer_takes_every_stepper_of_chapters_02_to_05(steppers, hypers):
    "Bit for bit as `Optimizer`; it takes from the hyperparameters what its steppers know."
    small, full = net(), net()
    for model in (small, full): model[2].bias.requires_grad_(False)  # it never gets a gradient
    known = {name for stepper in steppers for name in hyperparameters(stepper)}
    hypers = {name: value for name, value in hypers.items() if name in known}
    optimizer = SmallOptimizer(small.parameters(), steppers, **hypers)
    for a, b in zip(train(small, optimizer, 10), train(full, Optimizer(full.parameters(), steppers, **hypers), 10)):
        assert torch.equal(a, b)
    assert small[2].bias not in optimizer.state


def test_the_small_optimizer_drops_gradients():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = SmallOptimizer([p], [sgd_step], lr=.5)
    optimizer.step()
    optimizer.zero_grad()
    assert p.tolist() == [.5, .5] and p.grad is None
    optimizer.step()
    assert p.tolist() == [.5, .5]


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
    (lambda s: s.pop("param_groups"), "no 'param_groups'"), (lambda s: s.pop("state"), "no 'state'"),
    (lambda s: s["param_groups"][0].update(lr_scale=.5), "it has lr_scale")])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(damage, message):
    optimizer = Optimizer([nn.Parameter(torch.zeros(3))], [heavy_ball], lr=.1)
    state = copy.deepcopy(optimizer.state_dict())
    damage(state)
    with pytest.raises(ValueError, match=message): optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == .1 and optimizer.param_groups[0]["beta"] == .9


@pytest.mark.parametrize("nothing", [None, [], [1], "state", 5])
def test_what_is_no_state_is_refused(nothing):
    optimizer = Optimizer([nn.Parameter(torch.zeros(3))], [heavy_ball], lr=.1)
    with pytest.raises(ValueError, match="no optimizer's state"): optimizer.load_state_dict(nothing)


def in_torchs_words(optimizer):
    "The optimizer's state as it would be if its beta were called momentum."
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]: group["momentum"] = group.pop("beta")
    return state


def translate(optimizer, state):
    "A hook that renames what another version wrote."
    groups = [{("beta" if key == "momentum" else key): value for key, value in group.items()}
              for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def test_a_hook_mends_a_state_before_it_is_checked():
    optimizer, other = (Optimizer([nn.Parameter(torch.zeros(3))], [heavy_ball], lr=lr, beta=beta)
                        for lr, beta in ((.2, .7), (.1, .9)))
    with pytest.raises(ValueError, match="it lacks beta and it has momentum"):
        other.load_state_dict(in_torchs_words(optimizer))
    for _ in range(2):  # our own check has gone when the first load is over
        hook = other.register_load_state_dict_pre_hook(translate)
        other.load_state_dict(in_torchs_words(optimizer))
        assert (other.param_groups[0]["lr"], other.param_groups[0]["beta"]) == (.2, .7)
        hook.remove()
    with pytest.raises(ValueError, match="it has momentum"): other.load_state_dict(in_torchs_words(optimizer))


@pytest.mark.parametrize("prepend", [True, False])
@pytest.mark.parametrize("wrong, message", [({"lr": math.nan}, "lr must be finite"), ({"bta": .9}, "it has bta"),
                                            ({"lr": torch.tensor([.1, .2])}, "2 values.*first axis of 2")])
def test_what_a_hook_sets_is_checked_before_anything_changes(wrong, message, prepend):
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    optimizer = Optimizer([p], [heavy_ball], lr=.1)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.register_load_state_dict_pre_hook(lambda _, state: state["param_groups"][0].update(wrong), prepend)
    with pytest.raises(ValueError, match=message): optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == .1 and optimizer.param_groups[0].keys() == state["param_groups"][0].keys()
    assert torch.equal(optimizer.state[p]["average"], torch.ones(3))


@pytest.mark.parametrize("params", [set, frozenset, lambda ps: [{"params": set(ps)}]])
def test_a_set_of_parameters_is_refused(params):
    with pytest.raises(TypeError, match="set.*order|order.*set"): Optimizer(params(WEIGHTS), [sgd_step], lr=.1)


def test_a_group_says_which_of_its_keys_are_foreign():
    "As timm's layer decay, whose scheduler sets lr to a rate times the group's `lr_scale`."
    with pytest.raises(ValueError, match=r"Unknown hyperparameter 'lr_scale'.*foreign=\['lr_scale'\]"):
        Optimizer([{"params": WEIGHTS, "lr_scale": .5}], [sgd_step], lr=.1)
    with pytest.raises(ValueError, match="foreign must be a list"):
        Optimizer([{"params": WEIGHTS, "lr_scale": .5, "foreign": "lr_scale"}], [sgd_step], lr=.1)
    with pytest.raises(ValueError, match="Unknown hyperparameter 'lr_scal'"):
        Optimizer([{"params": WEIGHTS, "lr_scal": .5, "foreign": ["lr_scale"]}], [sgd_step], lr=.1)
    ends = []
    for make, foreign in ((functools.partial(Optimizer, steppers=[sgd_step]), {"foreign": ["lr_scale"]}),
                          (torch.optim.SGD, {})):
        p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
        optimizer = make([{"params": [p], "lr_scale": .5, **foreign}, {"params": [q], "lr_scale": 1., **foreign}],
                         lr=1.)
        for lr in (.3, .1):
            for group in optimizer.param_groups: group["lr"] = lr * group["lr_scale"]
            for one in (p, q): one.grad = torch.ones(2)
            optimizer.step()
        ends.append([p.detach(), q.detach()])
    assert all(map(torch.equal, *ends)) and not torch.equal(*ends[0])


def test_foreign_keys_are_saved_and_loaded():
    with_key = Optimizer([{"params": WEIGHTS, "lr_scale": .5, "foreign": ["lr_scale"]}], [sgd_step], lr=.1)
    plain = Optimizer([nn.Parameter(torch.zeros(3))], [sgd_step], lr=.2)
    plain.load_state_dict(with_key.state_dict())
    assert plain.param_groups[0]["lr_scale"] == .5 and plain.param_groups[0]["lr"] == .1


CYCLES = {"OneCycleLR": functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1., total_steps=10),
          "CyclicLR": functools.partial(torch.optim.lr_scheduler.CyclicLR, base_lr=.1, max_lr=1.)}


@pytest.mark.parametrize("duplicate", [lambda optimizer: optimizer, copy.deepcopy,
                                       lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
@pytest.mark.parametrize("cycle", CYCLES)
def test_where_torchs_cycles_refuse_the_error_says_what_to_do(cycle, duplicate):
    optimizer = duplicate(Optimizer([nn.Parameter(torch.zeros(3))], [heavy_ball], lr=.1))
    with pytest.raises(ValueError, match="cycle_momentum=False"): CYCLES[cycle](optimizer)
    CYCLES[cycle](optimizer, cycle_momentum=False)
    assert "momentum" not in optimizer.defaults and "beta" in optimizer.defaults  # others may ask


def test_a_hyperparameter_that_is_called_momentum_is_cycled():
    def step(p, grad, state, *, lr, momentum=.9): pass

    optimizer = Optimizer([nn.Parameter(torch.zeros(3))], [step], lr=.1)
    CYCLES["OneCycleLR"](optimizer)
    assert optimizer.param_groups[0]["momentum"] == .95  # its max_momentum


def test_a_function_that_makes_an_optimizer_is_compiled():
    def train_a_step(x, params, make):
        optimizer = make(params)
        for p in params: p.grad = x
        optimizer.step()
        return x + 1

    ends = []
    for make in (lambda params: Optimizer(params, [heavy_ball], lr=.1), lambda params: torch.optim.SGD(params, lr=.1)):
        torch._dynamo.reset()
        params = [nn.Parameter(torch.ones(3))]
        assert torch.compile(train_a_step, backend="eager")(torch.ones(3), params, make).tolist() == [2.] * 3
        ends.append(params[0].detach())
    torch.testing.assert_close(*ends)


def test_a_sparse_gradient_is_refused_before_anything_is_stepped():
    first, table = nn.Parameter(torch.zeros(2)), nn.Embedding(5, 2, sparse=True)
    first.grad = torch.ones(2)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="Sparse"): Optimizer([first, table.weight], [sgd_step], lr=.1).step()
    assert first.tolist() == [0., 0.]


def numbered(n=10, **options):
    "n images, each with its number in every pixel; half of the targets are its number."
    x = torch.arange(n).float()[:, None, None, None].expand(n, 1, 2, 2)
    return TensorLoader(x, torch.where(torch.arange(n) % 2 == 0, torch.arange(n), 0), 4, **options)


def its_number(xb): return nn.functional.one_hot(xb[:, 0, 0, 0].long(), 10).float()


@pytest.mark.parametrize("wrong", [2.5, -1, -.5, math.nan, math.inf, "3", None])
def test_a_number_of_batches_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match=f"n must be a whole number, at least 0, not {wrong!r}"):
        batches(numbered(), wrong, batch_size=4)


def test_batches_go_on_epoch_after_epoch():
    "As torch's DataLoader would, an epoch has as many batches as are full, and none of its images twice."
    assert list(batches(numbered(), 0, batch_size=4)) == []
    for n in (1, 2, 5):
        drawn = [xb[:, 0, 0, 0].tolist() for xb, _ in batches(numbered(), n, batch_size=4)]
        assert [len(batch) for batch in drawn] == [4] * n
        for start in range(0, n, 2):
            of_an_epoch = [x for batch in drawn[start:start + 2] for x in batch]
            assert len(set(of_an_epoch)) == len(of_an_epoch)
    assert drawn[:2] != drawn[2:4]
    with pytest.raises(ValueError, match="10 items give no batch of 64"): batches(numbered(), 3)


def test_accuracy_counts_the_images_that_it_has_seen():
    "With drop_last, two of ten images are left out."
    right = [True, False] * 5
    right[0] = True
    assert accuracy_of(its_number, numbered()) == pytest.approx(sum(right) / 10)
    assert accuracy_of(its_number, numbered(drop_last=True)) == pytest.approx(sum(right[:8]) / 8)
    assert accuracy_of(its_number, [(torch.ones(3, 1, 2, 2), torch.tensor([1, 1, 2]))]) == pytest.approx(2 / 3)
    assert accuracy_of(lambda xb: torch.zeros(len(xb), 10), numbered(5)) == pytest.approx(3 / 5)


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


def test_the_outcome_is_a_word_for_what_the_walker_did():
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
