"""The optimizers against torch.optim and against their papers' rules: alone, N models at once, on one buffer, compiled;
and the explorers."""
import copy
import functools
import inspect
import io
import math
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import course_lib.figures.adam
import course_lib.momentum
from course_lib.adam import Adam, AdamW, LAMB, Lion, Muon, adam_step, muon_step, weight_decay
from course_lib.figures.adam import best_rates, race_explorer
from course_lib.figures.landscapes import LANDSCAPES
from course_lib.support.flat import flatten_parameters
from course_lib.support.tensors import default_device
from course_lib.figures.momentum import average_explorer, momentum_explorer, noisy_series
from course_lib.momentum import (
    SGD, average_grad, average_grad_dampened, best_momentum, l2_reg, momentum_factor, momentum_step, moving_average,
    nesterov_step)
from course_lib.figures.rmsprop import rmsprop_explorer
from course_lib.rmsprop import RMSProp, average_sqr_grad, rms_prop_step, rms_prop_step_eps_inside
from course_lib.sgd import Optimizer

# ours, torch's, arguments of both, and what a group brings of its own: for ours, for torch's
KINDS = {
    "SGD": (SGD, torch.optim.SGD, {"lr": .05}, {}, {}),
    "momentum": (SGD, torch.optim.SGD, {"lr": .02, "momentum": .9}, {"beta": .5}, {"momentum": .5}),
    "nesterov": (SGD, torch.optim.SGD, {"lr": .02, "momentum": .8, "nesterov": True}, {"beta": .5}, {"momentum": .5}),
    "RMSProp": (RMSProp, torch.optim.RMSprop, {"lr": .01}, {"sqr_beta": .8, "eps": 1e-3}, {"alpha": .8, "eps": 1e-3}),
    "RMSProp, other": (RMSProp, torch.optim.RMSprop, {"lr": .02, "alpha": .9, "eps": .1}, {"sqr_beta": .5},
                       {"alpha": .5}),
    "Adam": (Adam, torch.optim.Adam, {"lr": .01}, {"beta": .5, "sqr_beta": .9}, {"betas": (.5, .9)}),
    "Adam, other": (Adam, torch.optim.Adam, {"lr": .02, "betas": (.7, .95), "eps": .1}, {"sqr_beta": .9, "eps": 1e-3},
                    {"betas": (.7, .9), "eps": 1e-3}),
    "AdamW": (AdamW, torch.optim.AdamW, {"lr": .01}, {"beta": .5, "sqr_beta": .9}, {"betas": (.5, .9)}),
    "AdamW, other": (AdamW, torch.optim.AdamW, {"lr": .02, "betas": (0., .95), "eps": 1e-3}, {"beta": .9},
                     {"betas": (.9, .95)})}
PLACES = list(dict.fromkeys([("cpu", torch.float64), ("cpu", torch.float32), (default_device().type, torch.float32)]))
every_kind = pytest.mark.parametrize("kind", KINDS)
everywhere = pytest.mark.parametrize("device, dtype", PLACES)
decayed_or_not = pytest.mark.parametrize("weight_decay", [0, .1])


@pytest.fixture(autouse=True)
def small_work():
    """In nets this small a second thread costs ten times what it brings; and two nets shall compute the same, on a GPU
    too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False): yield
    torch.set_num_threads(before)


def net(dtype=torch.float64, device="cpu"):
    """Parameters of every kind: a convolution's (channels_last), matrices, vectors, a scalar, empty ones; `late` and
    `never` as `backward` says."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 1))
    for name, value in {"scalar": torch.tensor(1.5), "late": torch.randn(3), "never": torch.randn(2),
                        "empty": torch.zeros(0), "no_rows": torch.zeros(0, 3)}.items():
        model.register_parameter(name, nn.Parameter(value))
    return model.to(device, dtype, memory_format=torch.channels_last)


def backward(model, step, scale=lambda loss: loss):
    "The gradients of one noisy batch; `late` takes part from step 10 on, but not in every seventh."
    torch.manual_seed(step)
    x = torch.randn(5, 2, 4, 4).to(model.scalar)
    out = model(x) * model.scalar + model.empty.sum() + model.no_rows.sum()
    if step >= 10 and step % 7: out = out + model.late.prod()
    scale((out - x[:, 0, 0, :1]).square().mean()).backward()


def train(model, optimizer, steps=range(100), schedule=None):
    for step in steps:
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
        if schedule: schedule.step()
    return model


def assert_close(a, b, tolerance):
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=tolerance, rtol=tolerance, msg=lambda text: f"{name}: {text}")


def rounding(dtype): return 1e-10 if dtype == torch.float64 else 1e-5


def groups(model, own):
    "Two groups: every second parameter with rates, and what else is `own`, of its own."
    params = list(model.parameters())
    return [{"params": params[::2], "lr": .005, "weight_decay": .2, **own}, {"params": params[1::2]}]


@everywhere
@decayed_or_not
@every_kind
def test_equals_torch(kind, weight_decay, device, dtype):
    ours, theirs, arguments, *_ = KINDS[kind]
    models = [train(model, make(model.parameters(), **arguments, weight_decay=weight_decay)) for make, model in
              ((ours, net(dtype, device)), (theirs, net(dtype, device)))]
    assert_close(*models, rounding(dtype))
    assert abs(models[0].scalar.item() - 1.5) > 1e-3 and torch.equal(models[0].never.cpu(), net(dtype).never)


@pytest.mark.parametrize("ours, theirs",
                         [*dict.fromkeys(kind[:2] for kind in KINDS.values()), (Muon, torch.optim.Muon)])
def test_the_defaults_are_torchs(ours, theirs):
    ours, theirs = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
    for name in ours: assert ours[name].default == theirs[name].default, name


STEPPER_DEFAULTS = [  # stepper, its hyperparameter, torch's class and argument; pairs by index
    (average_sqr_grad, "sqr_beta", torch.optim.RMSprop, "alpha"), (rms_prop_step, "eps", torch.optim.RMSprop, "eps"),
    (adam_step, "beta", torch.optim.Adam, ("betas", 0)), (adam_step, "sqr_beta", torch.optim.Adam, ("betas", 1)),
    (adam_step, "eps", torch.optim.Adam, "eps"), (l2_reg, "weight_decay", torch.optim.SGD, "weight_decay"),
    (weight_decay, "weight_decay", torch.optim.AdamW, "weight_decay"),
    (muon_step, "beta", torch.optim.Muon, "momentum"), (muon_step, "weight_decay", torch.optim.Muon, "weight_decay")]


@pytest.mark.parametrize("stepper, name, theirs, argument", STEPPER_DEFAULTS)
def test_the_steppers_defaults_are_torchs(stepper, name, theirs, argument):
    argument, i = argument if isinstance(argument, tuple) else (argument, None)
    default = inspect.signature(theirs).parameters[argument].default
    assert inspect.signature(stepper).parameters[name].default == (default if i is None else default[i])


def test_steppers_left_to_their_defaults_step_as_torch_does():
    "At gradients as small as eps, and where nothing but the decay moves a weight."
    tiny = lambda w, start, t: 1e-8 * start
    [ours], [theirs] = (walk(make([nn.Parameter(torch.linspace(-1, 1, 7).double())]), 20, tiny) for make in (
        lambda params: Optimizer(params, [average_sqr_grad, rms_prop_step], lr=.01),
        lambda params: torch.optim.RMSprop(params, lr=.01)))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    [ours], [theirs] = (walk(make([nn.Parameter(torch.ones(3, 4).double())]), 20, lambda w, start, t: 0 * w)
                        for make in (lambda params: Optimizer(params, [average_grad_dampened, muon_step], lr=.02,
                                                              beta=.95),
                                     lambda params: torch.optim.Muon(params, lr=.02)))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    assert (ours < .97).all()


@everywhere
@every_kind
def test_groups_and_schedules_equal_torchs(kind, device, dtype):
    ours, theirs, arguments, own_ours, own_theirs = KINDS[kind]
    results = []
    for make, own in ((ours, own_ours), (theirs, own_theirs)):
        model = net(dtype, device)
        optimizer, rates = make(groups(model, own), **arguments), []
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=7, T_mult=2)
        for step in range(100):
            train(model, optimizer, [step], schedule)
            rates.append([group["lr"] for group in optimizer.param_groups])
        results.append((model, rates))
    assert_close(results[0][0], results[1][0], rounding(dtype))
    assert results[0][1] == results[1][1] and results[0][1][0] != results[0][1][5]


@pytest.mark.parametrize("kind", ["SGD", "momentum", "nesterov", "RMSProp", "Adam", "AdamW"])
def test_a_rate_that_is_a_tensor_is_scheduled_as_a_number_is(kind):
    ours, theirs, arguments, *_ = KINDS[kind]
    models = []
    for make, lr in ((ours, torch.tensor(arguments["lr"], dtype=torch.float64)), (theirs, arguments["lr"])):
        model = net()
        optimizer = make(model.parameters(), **{**arguments, "lr": lr, "weight_decay": .1})
        models.append(train(model, optimizer, range(30),
                            torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=7)))
    assert_close(*models, 1e-10)


@pytest.mark.parametrize("cut", [5, 40])  # before and after the first gradient of `late`
@every_kind
def test_state_saved_and_loaded_midway(kind, cut):
    ours, theirs, arguments, own_ours, own_theirs = KINDS[kind]
    straight, model, file = net(), net(), io.BytesIO()
    train(straight, theirs(groups(straight, own_theirs), **arguments), range(60))
    optimizer = ours(groups(model, own_ours), **arguments)
    train(model, optimizer, range(cut))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved, resumed = torch.load(file, weights_only=True), net()
    resumed.load_state_dict(saved["model"])
    fresh = ours(groups(resumed, {}), **{**arguments, "lr": 1.})
    fresh.load_state_dict(saved["optimizer"])
    assert_close(train(resumed, fresh, range(cut, 60)), straight, 1e-10)


@every_kind
def test_a_gradient_scaler_skips_the_infinite_step(kind):
    ours, theirs, arguments, *_ = KINDS[kind]
    device, models, scales = default_device().type, [], []
    for make in (ours, theirs):
        model, scaler = net(torch.float32, device), torch.amp.GradScaler(device, init_scale=2. ** 10, growth_interval=3)
        optimizer = make(model.parameters(), **arguments, weight_decay=.1)
        for step in range(20):
            before = [p.clone() for p in model.parameters()]
            backward(model, step, lambda loss: scaler.scale(loss) * (math.inf if step == 12 else 1))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert all(map(torch.equal, before, model.parameters())) == (step == 12)
        models.append(model)
        scales.append(scaler.get_scale())
    assert_close(*models, 1e-5)
    assert scales[0] == scales[1] != 2 ** 10


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_of_adam_step_as_torchs_does(duplicate):
    start = torch.linspace(-1, 1, 5).double()
    p, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer, reference = Adam([p], lr=.1, weight_decay=.1), torch.optim.Adam([theirs], lr=.1, weight_decay=.1)
    still = lambda w, start, t: w ** 3 - w / 2 - .3  # does not know the step
    walk(optimizer, 5, still)
    twin = duplicate(optimizer)
    for one, n in ((optimizer, 5), (twin, 5), (reference, 10)): walk(one, n, still)
    [q] = twin.param_groups[0]["params"]
    for one in (p, q): torch.testing.assert_close(one, theirs, atol=1e-12, rtol=0)
    assert q is not p


@pytest.mark.parametrize("count", [int, float, torch.tensor])
def test_a_count_of_steps_may_be_a_plain_number(count):
    "As in states of older versions of torch, which its own optimizers take too."
    ours, theirs, results = net(), net(), []
    for model, make in ((ours, Adam), (theirs, torch.optim.Adam)):
        train(model, optimizer := make(model.parameters(), lr=.02), range(15))
        state = copy.deepcopy(optimizer.state_dict())
        for kept in state["state"].values(): kept["step"] = count(float(kept["step"]))
        fresh = make(model.parameters(), lr=1.)
        fresh.load_state_dict(state)
        results.append(train(model, fresh, range(15, 30)))
    assert_close(*results, 1e-10)


@pytest.mark.parametrize("count", ["many", None, -1, math.nan, math.inf, True, [3]])
def test_what_is_no_count_of_steps_is_named(count):
    p = nn.Parameter(torch.ones(3))
    walk(optimizer := Adam([p]), 1)
    optimizer.state[p]["step"] = count
    with pytest.raises(ValueError, match="'step' .* must be a number, finite and at least 0, not "): walk(optimizer, 1)


def test_a_new_adam_knows_nothing_of_an_old_one():
    model, theirs = net(), net()
    train(model, Adam(model.parameters(), lr=.02), range(15))
    theirs.load_state_dict(model.state_dict())
    train(model, Adam(model.parameters(), lr=.02), range(15, 30))
    assert_close(model, train(theirs, torch.optim.Adam(theirs.parameters(), lr=.02), range(15, 30)), 1e-10)


# Rules written out in float64, for one layer w and n steps

# a bowl that is shaken; for NumPy's arrays and torch's tensors
def slope(w, start, t): return w ** 3 / 4 + w / 2 + .3 + 2 * math.cos(t) * start


def walk(optimizer, n, slope=slope):
    "n steps along a slope, for all the parameters of an optimizer."
    params = [p for group in optimizer.param_groups for p in group["params"]]
    starts = [p.detach().clone() for p in params]
    for t in range(1, n + 1):
        for p, start in zip(params, starts): p.grad = slope(p.detach(), start, t)
        optimizer.step()
    return params


def lamb(start, n, lr, betas, eps=1e-6, weight_decay=0.):
    "You et al. (2020), algorithm 2, φ(z) = z, with bias correction."
    w, m, v, (beta1, beta2) = start, np.zeros_like(start), np.zeros_like(start), betas
    for t in range(1, n + 1):
        g = slope(w, start, t)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        update = m / (1 - beta1 ** t) / (np.sqrt(v / (1 - beta2 ** t)) + eps) + weight_decay * w
        norm, length = np.sqrt((w * w).sum()), np.sqrt((update * update).sum())
        w = w - lr * (norm / length if norm > 0 and length > 0 else 1.) * update
    return w


def lion(start, n, lr, betas, weight_decay=0.):
    "Chen et al. (2023), algorithm 2."
    w, m, (beta1, beta2) = start, np.zeros_like(start), betas
    for t in range(1, n + 1):
        g = slope(w, start, t)
        w = w - lr * (np.sign(beta1 * m + (1 - beta1) * g) + weight_decay * w)
        m = beta2 * m + (1 - beta2) * g
    return w


def by_torch(make):
    return lambda w, n, **arguments: walk(make([nn.Parameter(torch.tensor(w))], **arguments), n)[0].detach().numpy()


MUON = .04  # of a step's length: ours and torch's orthogonalize in bfloat16 (8 bits), but sum up in another order
RULES = {LAMB: lamb, Lion: lion, Muon: by_torch(torch.optim.Muon), SGD: by_torch(torch.optim.SGD),
         RMSProp: by_torch(torch.optim.RMSprop), Adam: by_torch(torch.optim.Adam), AdamW: by_torch(torch.optim.AdamW)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("make, arguments", [(LAMB, {"lr": .02, "betas": (.8, .95)}),
                                             (LAMB, {"lr": .02, "betas": (.9, .999), "eps": .1, "weight_decay": .3}),
                                             (Lion, {"lr": .01, "betas": (.9, .99)}),
                                             (Lion, {"lr": .01, "betas": (.5, .8), "weight_decay": .3})])
def test_equals_the_papers_rule(make, arguments, dtype):
    torch.manual_seed(0)
    starts = [torch.randn(shape, dtype=dtype) for shape in ((4, 3), (5,), (), (2, 3, 2, 2))]
    # at zero the ratio is 1
    starts += [torch.zeros(3, dtype=dtype), torch.randn(3, 4, 2, 2, dtype=dtype).to(memory_format=torch.channels_last)]
    for start, end in zip(starts, walk(make([nn.Parameter(start.clone()) for start in starts], **arguments), 100)):
        torch.testing.assert_close(end, torch.tensor(RULES[make](start.double().numpy(), 100, **arguments)).to(dtype),
                                   atol=rounding(dtype), rtol=rounding(dtype))


def test_lamb_stands_still_where_update_and_gradient_are_zero():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    LAMB([p], lr=1.).step()
    assert p.tolist() == [1.] * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("arguments", [{}, {"lr": .02, "momentum": .8, "weight_decay": .5}])
def test_muon_equals_torchs(arguments, dtype):
    torch.manual_seed(0)
    starts, n = [torch.randn(shape, dtype=dtype) for shape in ((4, 3), (3, 8), (6, 6), (1, 5), (5, 1))], 20
    ours, theirs = (walk(make([nn.Parameter(start.clone()) for start in starts], **arguments), n)
                    for make in (Muon, torch.optim.Muon))
    for start, a, b in zip(starts, ours, theirs):
        lr = arguments.get("lr", 1e-3)
        torch.testing.assert_close(a, b, atol=MUON * n * lr, rtol=0)
        assert (a - start).abs().max() > .2 * n * lr


def test_muons_decay_equals_torchs_where_nothing_is_rounded_to_bfloat16():
    "Where the gradient is zero there is only the decay."
    ours, theirs = (
        walk(make([nn.Parameter(torch.ones(3, 4).double())], lr=.02, weight_decay=.5), 20, lambda w, start, t: 0 * w)[0]
        for make in (Muon, torch.optim.Muon))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(3,), (), (2, 3, 3, 3)])
def test_muon_steps_nothing_but_matrices(shape):
    p = nn.Parameter(torch.ones(shape))
    p.grad = torch.ones(shape)
    with pytest.raises(ValueError, match=rf"Muon.*matrices.*{re.escape(str(list(shape)))}"): Muon([p]).step()


def test_muon_names_the_shape_that_a_parameter_has_in_each_model():
    p = nn.Parameter(torch.ones(2, 4))  # a bias of two models
    p.grad = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"this parameter is \[4\] in each of 2 models"):
        Muon([p], lr=torch.tensor([.1, .2])).step()


# N models, each with its own values: kind -> factory, arguments that are the same for all,
# arguments that differ: low, high

SPREAD = {
    "momentum": (SGD, {}, {"lr": (.01, .05), "momentum": (0, .9), "weight_decay": (0, .2)}),
    "nesterov": (SGD, {"nesterov": True}, {"lr": (.01, .05), "momentum": (.1, .9), "weight_decay": (0, .2)}),
    "RMSProp": (RMSProp, {}, {"lr": (.001, .02), "alpha": (.5, .999), "eps": (1e-8, .1), "weight_decay": (0, .2)}),
    "Adam": (Adam, {}, {"lr": (.001, .02), "betas": ((0, .9), (.5, .999)), "eps": (1e-8, .1), "weight_decay": (0, .2)}),
    "AdamW":
    (AdamW, {}, {"lr": (.001, .02), "betas": ((.1, .9), (.5, .999)), "eps": (1e-8, .1), "weight_decay": (0, .5)}),
    "LAMB": (LAMB, {}, {"lr": (.001, .02), "betas": ((0, .9), (.5, .999)), "eps": (1e-8, .1), "weight_decay": (0, .5)}),
    "Lion": (Lion, {}, {"lr": (.001, .02), "betas": ((0, .9), (.5, .999)), "weight_decay": (0, .5)}),
    "Muon": (Muon, {}, {"lr": (.001, .02), "momentum": (0, .95), "weight_decay": (0, .5)})}


def spread(between, n, dtype):
    "n values between two, ends included and shuffled; a pair of them for a pair."
    if isinstance(between[0], tuple): return tuple(spread(each, n, dtype) for each in between)
    return torch.linspace(*between, n, dtype=dtype)[torch.randperm(n)]


def of_model(values, i):
    return tuple(of_model(each, i) for each in values) if isinstance(values, tuple) else values[i].item()


@pytest.mark.parametrize("dtype, hyper_dtype", [(torch.float64, torch.float64), (torch.float32, torch.float32),
                                                (torch.float64, torch.float32), (torch.float32, torch.float64)])
@pytest.mark.parametrize("kind", SPREAD)
def test_n_models_at_once_equal_each_alone(kind, dtype, hyper_dtype):
    torch.manual_seed(0)
    make, same, different = SPREAD[kind]
    shapes, n = ((4, 3), (2, 6)) if make is Muon else ((4, 3), (), (2,), (3, 2, 2, 2)), 5
    starts = [torch.randn(n, *shape, dtype=dtype) for shape in shapes]
    hypers = {name: spread(between, n, hyper_dtype) for name, between in different.items()}
    together = walk(make([nn.Parameter(start.clone()) for start in starts], **same, **hypers), 30)
    tolerance = MUON * 30 * .02 if make is Muon else 1e-10 if dtype == hyper_dtype == torch.float64 else 1e-5
    for start, end in zip(starts, together):
        for i in range(n):
            alone = RULES[make](start[i].double().numpy(), 30, **same,
                                **{name: of_model(values, i) for name, values in hypers.items()})
            torch.testing.assert_close(end[i].detach().double(), torch.tensor(alone), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_muon_of_n_models_that_differ_in_one_thing(name):
    start, values = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([.01, .03, .05])
    [end] = walk(Muon([nn.Parameter(start.clone())], **{"lr": .02, name: values}), 10)
    for i in range(3):
        [alone] = walk(torch.optim.Muon([nn.Parameter(start[i].clone())], **{"lr": .02, name: values[i].item()}), 10)
        torch.testing.assert_close(end[i], alone, atol=MUON * 10 * .05, rtol=0)


# One buffer

ZEROING = {"optimizer": lambda model, optimizer: optimizer.zero_grad(),
           "optimizer, filled": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
           "model": lambda model, optimizer: model.zero_grad(),
           "model, filled": lambda model, optimizer: model.zero_grad(set_to_none=False)}
FLAT = {"SGD": (SGD, torch.optim.SGD, {"lr": .05}), "momentum": (SGD, torch.optim.SGD, {"lr": .02, "momentum": .9}),
        "RMSProp": (RMSProp, torch.optim.RMSprop, {"lr": .01}), "Adam": (Adam, torch.optim.Adam, {"lr": .01}),
        "torch's Adam": (torch.optim.Adam, torch.optim.Adam, {"lr": .01})}


def apart(make, arguments, n=40, before_step=lambda params: None, n_backward=1):
    "torch.optim on single parameters; one that was not used gets a gradient of zero, as it has in a buffer."
    model = net()
    params = list(model.parameters())
    optimizer = make(params, weight_decay=.1, **arguments)
    for step in range(n):
        for part in range(n_backward): backward(model, step + 1000 * part)
        for p in params: p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        before_step(params)
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_one_buffer_of_which_all_are_views():
    model, before, ungraded = net(), net(), net()
    for one in (model, before): backward(one, 0)
    flat = flatten_parameters(model.parameters())
    assert (isinstance(flat, nn.Parameter) and flat.is_leaf and flat.requires_grad
            and flat.shape == (sum(p.numel() for p in before.parameters()),))
    at = 0
    for p, q in zip(model.parameters(), before.parameters()):  # values and gradients are kept
        assert torch.equal(p, q) and torch.equal(p.grad, torch.zeros_like(q) if q.grad is None else q.grad)
        for part, whole in ((p, flat), (p.grad, flat.grad)):
            assert not p.numel() or part.data_ptr() == whole.data_ptr() + at * 8 and part.is_contiguous()
        at += p.numel()
    with torch.no_grad(): flat.fill_(2.)
    flat.grad.fill_(3.)
    assert all((p == 2).all() and (p.grad == 3).all() for p in model.parameters())
    assert (flatten_parameters(ungraded.parameters()).grad == 0).all()


@pytest.mark.parametrize("zeroing", ZEROING)
@pytest.mark.parametrize("kind", FLAT)
def test_the_buffer_is_stepped_as_its_parts_are(kind, zeroing):
    ours, theirs, arguments = FLAT[kind]
    model = net()
    optimizer = ours([flatten_parameters(model.parameters())], weight_decay=.1, **arguments)
    for step in range(40):
        backward(model, step)
        optimizer.step()
        ZEROING[zeroing](model, optimizer)
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert_close(model, apart(theirs, arguments), 1e-12)


@pytest.mark.parametrize("zeroing", ZEROING)
def test_gradients_add_up_in_the_buffer(zeroing):
    model = net()
    optimizer = Adam([flatten_parameters(model.parameters())], lr=.01, weight_decay=.1)
    for step in range(20):
        ZEROING[zeroing](model, optimizer)  # before: where other loops have it
        for part in range(2): backward(model, step + 1000 * part)
        optimizer.step()
    assert_close(model, apart(torch.optim.Adam, {"lr": .01}, 20, n_backward=2), 1e-12)


@pytest.mark.parametrize("zeroing", ZEROING)
@pytest.mark.parametrize("whole", [True, False])
def test_clipping_the_buffer_or_its_parts(whole, zeroing):
    model, norms = net(), []
    flat = flatten_parameters(model.parameters())
    optimizer = SGD([flat], lr=.05, momentum=.9, weight_decay=.1)
    for step in range(20):
        backward(model, step)
        norms.append(torch.nn.utils.clip_grad_norm_([flat] if whole else model.parameters(), .02).item())
        optimizer.step()
        ZEROING[zeroing](model, optimizer)
    assert_close(model, apart(torch.optim.SGD, {"lr": .05, "momentum": .9}, 20,
                              lambda params: torch.nn.utils.clip_grad_norm_(params, .02)), 1e-12)
    assert min(norms) > .02


def test_the_buffer_under_a_gradient_scaler():
    model, device = net(torch.float32, default_device().type), default_device().type
    flat, scaler = flatten_parameters(model.parameters()), torch.amp.GradScaler(device, init_scale=2. ** 10)
    optimizer = Adam([flat], lr=.01)
    for step in range(10):
        before = flat.detach().clone()
        backward(model, step, lambda loss: scaler.scale(loss) * (math.inf if step == 5 else 1))
        scaler.step(optimizer)
        scaler.update()
        model.zero_grad()
        assert torch.equal(before, flat) == (step == 5)
    assert scaler.get_scale() == 2 ** 9


def test_a_model_on_a_buffer_is_saved_and_loaded():
    "A copy of the model, flattened anew, goes on with model's and optimizer's saved states."
    model, file = net(), io.BytesIO()
    flat = flatten_parameters(model.parameters())
    optimizer = Adam([flat], lr=.01)
    train(model, optimizer, range(10))
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    train(model, optimizer, range(10, 20))
    end = copy.deepcopy(model)
    twin = copy.deepcopy(model)
    other = Adam([flatten_parameters(twin.parameters())], lr=1.)
    for one, stepped in ((model, optimizer), (twin, other)):
        file.seek(0)
        for part, state in zip((one, stepped), torch.load(file, weights_only=True)): part.load_state_dict(state)
        assert_close(train(one, stepped, range(10, 20)), end, 0)
    assert next(model.parameters()).data_ptr() == flat.data_ptr() != next(twin.parameters()).data_ptr()


def test_a_gradient_given_to_the_buffer_counts():
    "Also where `model.zero_grad()` dropped the parts' views, and they have gradients of their own by now."
    parts = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    flat = flatten_parameters(parts)
    for value, expected in ((torch.full((4,), 5.), [5.] * 4), (None, [0.] * 4)):
        for part, grad in zip(parts, (torch.ones(2), None)): part.grad = grad
        flat.grad = value
        assert flat.grad.tolist() == expected == [x for part in parts for x in part.grad.tolist()]


def weights(): return [nn.Parameter(torch.zeros(3, 2))]
def frozen(): return nn.Parameter(torch.zeros(2), requires_grad=False)


@pytest.mark.parametrize("params, message", [
    (lambda: [], "no parameters"), (lambda: iter([]), "no parameters"), (lambda: [frozen()], "frozen"),
    (lambda: [*weights(), frozen()], "frozen"),
    (lambda: [*weights(), nn.Parameter(torch.zeros(2).double())], "one dtype.*float32.*float64"),
    (lambda: weights() * 2, "twice")])
def test_what_fits_no_buffer_is_refused(params, message):
    with pytest.raises(ValueError, match=message): flatten_parameters(params())


@pytest.mark.parametrize("move", [lambda model: model.double(), lambda model: model.half(),
                                  lambda model: flatten_parameters(model.parameters()),
                                  lambda model: setattr(model[0].weight, "data", torch.zeros(2, 3))])
def test_a_model_that_left_its_buffer_is_noticed(move):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = Adam([flatten_parameters(model.parameters())])
    move(model)
    with pytest.raises(RuntimeError, match="moved or replaced after flatten_parameters"): optimizer.step()


def test_a_buffer_is_not_copied():
    flat = flatten_parameters(net().parameters())
    for one in (flat, Adam([flat])):
        for duplicate in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="call flatten_parameters on the copy"): duplicate(one)
    with pytest.raises(TypeError, match="model.parameters"): flatten_parameters(net())


def test_a_part_that_is_frozen_later_is_noticed():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = Adam([flatten_parameters(model.parameters())])
    model[0].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="frozen after flatten_parameters"): optimizer.step()


# Compiled

@pytest.mark.parametrize("backend", [
    "eager", pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="no compiler"))])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("make, reference, arguments",
                         [(Adam, torch.optim.Adam, {"weight_decay": .1}), (SGD, torch.optim.SGD, {"momentum": .9})])
def test_compiled_step_equals_torchs_and_is_compiled_once(make, reference, arguments, flat, backend):
    "Also where gradients are kept and filled with zeros: the compiler must not take a gradient for the state."
    graphs, counts = [], []

    def counting(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    theirs, x = copy.deepcopy(model), torch.randn(10, 4, 3).double()
    optimizer = make([flatten_parameters(model.parameters())] if flat else model.parameters(), lr=.05, **arguments)
    torchs = reference(theirs.parameters(), lr=.05, **arguments)
    optimizer.step = torch.compile(optimizer.step, backend=counting)
    for step, batch in enumerate(x):
        for one, stepped in ((model, optimizer), (theirs, torchs)):
            one(batch).square().mean().backward()
            stepped.step()
            stepped.zero_grad(set_to_none=bool(step % 2))
        counts.append(len(graphs))
    assert_close(model, theirs, 1e-10)
    assert counts[0], "nothing was compiled"
    assert counts[-1] == counts[2], counts


@pytest.mark.parametrize("make", [Adam, SGD, functools.partial(SGD, momentum=.9), RMSProp, Lion])
def test_a_schedule_does_not_compile_anew(make):
    "Dynamo gives up after eight variants and goes on uncompiled, which nobody would notice."
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    p = nn.Parameter(torch.ones(3))
    optimizer = make([p], lr=.1)
    optimizer.step = torch.compile(optimizer.step, backend=counting)
    for lr in (.1, .09, .08, .07, .06, .05, .04):
        p.grad = torch.ones(3)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    assert 0 < len(graphs) <= 4


# Bad input

FACTORIES = (SGD, RMSProp, Adam, AdamW, LAMB, Lion, Muon)
NAMES = {SGD: "lr momentum weight_decay", RMSProp: "lr alpha eps weight_decay",
         **{make: "lr betas[0] betas[1] eps weight_decay" for make in (Adam, AdamW, LAMB)},
         Lion: "lr betas[0] betas[1] weight_decay", Muon: "lr momentum weight_decay"}
BELOW_1 = "momentum", "alpha", "betas[0]", "betas[1]"


def with_value(name, value):
    return {"betas": (value, .9) if name == "betas[0]" else (.9, value)} if "[" in name else {name: value}


@pytest.mark.parametrize("make, name", [(make, name) for make in FACTORIES for name in NAMES[make].split()])
def test_a_wrong_value_is_named_with_its_range(make, name):
    expected = "finite and at least 0" + " and below 1" * (name in BELOW_1)
    for value in (-.1, math.nan, math.inf, -math.inf, torch.tensor([.1, math.nan, .1]), torch.tensor(-1.),
                  *([1., 1] if name in BELOW_1 else [])):
        with pytest.raises(ValueError, match=rf"^{re.escape(name)} must be {expected}, not "):
            make(weights(), **with_value(name, value))
    for value in ("0.1", None, True, False, 1j, [.1]):
        with pytest.raises(ValueError, match=rf"^{re.escape(name)} must be a number \({expected}\)"):
            make(weights(), **with_value(name, value))
    for value in (torch.tensor([.1, .2]), torch.tensor([[.1] * 3] * 2), torch.tensor([0, 0, 0])):
        with pytest.raises(ValueError, match="2 values.*first axis of 2|one axis"):
            make(weights(), **with_value(name, value))
    for value in (0, 0., .5, np.float32(.5), torch.tensor(.5), torch.tensor([.1, .2, .3])):
        make(weights(), **with_value(name, value))


@pytest.mark.parametrize("make", FACTORIES)
def test_what_cannot_be_stepped_is_refused(make):
    for dtype in (torch.complex64, torch.int64):
        with pytest.raises(ValueError, match=str(dtype)): make([torch.zeros(3, 2, dtype=dtype)])
    with pytest.raises(ValueError, match="no parameters"): make([])
    with pytest.raises(ValueError, match="Unknown hyperparameter 'bta'"): make([{"params": weights(), "bta": .9}])
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="Sparse"): make(table.parameters()).step()


@pytest.mark.parametrize("make", [Adam, AdamW, LAMB, Lion])
@pytest.mark.parametrize("betas", [.9, None, (.9,), (.9, .99, .999), [], torch.tensor(.9)])
def test_betas_that_are_no_pair(make, betas):
    with pytest.raises(ValueError, match="betas must be a pair"): make(weights(), betas=betas)


@pytest.mark.parametrize("call, error, message", [
    (lambda: SGD(weights(), nesterov=True), ValueError, "momentum above 0"),
    (lambda: SGD(weights(), momentum=0., nesterov=True), ValueError, "momentum above 0"),
    (lambda: SGD([{"params": weights(), "beta": .9}]), ValueError, "Unknown hyperparameter 'beta'"),
    (lambda: Adam([{"params": weights(), "betas": (.9, .9)}]), ValueError,
     "Unknown hyperparameter 'betas'.*did you mean 'beta'"),
    (lambda: Adam([{"params": weights(), "sqr_beta": 1.}]), ValueError,
     "sqr_beta must be finite and at least 0 and below 1, not 1.0"),
    (lambda: Adam(weights(), momentum=.9), TypeError, "momentum"), (lambda: Adam(weights()[0]), TypeError, "iterable"),
    (lambda: Optimizer(weights(), [average_grad, momentum_step]), ValueError, "Missing hyperparameter 'lr'"),
    (lambda: Optimizer(weights(), [average_grad, momentum_step], lr=.1, momentum=.9), ValueError,
     "Unknown hyperparameter 'momentum'"),
    (lambda: Optimizer(weights(), [average_sqr_grad, adam_step], lr=.1), ValueError,
     "sqr_beta: the steppers have different defaults, 0.99 and 0.999")])
def test_bad_calls_are_refused(call, error, message):
    with pytest.raises(error, match=message): call()


# The variants of the text

def test_a_dampened_average_is_the_sum_at_another_rate():
    start = torch.linspace(-1, 1, 7, dtype=torch.float64)
    for beta in (.5, .9):
        [dampened] = walk(Optimizer([nn.Parameter(start.clone())], [average_grad_dampened, momentum_step],
                                    lr=.02 / (1 - beta), beta=beta), 50)
        [theirs] = walk(torch.optim.SGD([nn.Parameter(start.clone())], lr=.02, momentum=beta), 50)
        torch.testing.assert_close(dampened, theirs, atol=1e-12, rtol=0)


def test_nesterov_step_is_torchs():
    start = torch.linspace(-1, 1, 7, dtype=torch.float64)
    [ours] = walk(Optimizer([nn.Parameter(start.clone())], [average_grad, nesterov_step], lr=.02, beta=.8), 50)
    [theirs] = walk(torch.optim.SGD([nn.Parameter(start.clone())], lr=.02, momentum=.8, nesterov=True), 50)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("stepper, length", [(rms_prop_step, lambda g, share, eps: g / (np.sqrt(share) * g + eps)),
                                             (rms_prop_step_eps_inside,
                                              lambda g, share, eps: g / np.sqrt(share * g * g + eps))])
@pytest.mark.parametrize("eps", [1e-8, .1, 100.])
def test_eps_outside_and_inside_the_root(stepper, length, eps):
    "For a constant gradient g the average of the squares is (1 − sqr_beta ** t) · g²."
    g, p = np.geomspace(1e-3, 1e3, 7), nn.Parameter(torch.zeros(7, dtype=torch.float64))
    optimizer = Optimizer([p], [average_sqr_grad, stepper], lr=.1, sqr_beta=.8, eps=eps)
    for _ in range(20):
        p.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(p.detach(), -sum(.1 * length(g, 1 - .8 ** t, eps) for t in range(1, 21)), rtol=1e-12)


def test_momentum_factor_is_the_largest_eigenvalue_of_a_step():
    "A step takes (distance, sum of gradients) to (1 − lr · curvature, −lr · beta; curvature, beta) times them."
    rng = np.random.default_rng(0)
    for lr, beta, curvature in rng.uniform([0, 0, .5], [.5, 1, 9], (50, 3)):
        matrix = np.array([[1 - lr * curvature, -lr * beta], [curvature, beta]])
        assert momentum_factor(lr, beta, curvature) == pytest.approx(abs(np.linalg.eigvals(matrix)).max(), rel=1e-6)
    lr, beta = best_momentum(1, 20)
    worst = lambda lr, beta: max(momentum_factor(lr, beta, curvature) for curvature in np.linspace(1, 20, 50))
    assert all(worst(lr, beta) < worst(lr * a, min(beta * b, 1))
               for a in (.9, 1, 1.1) for b in (.9, 1, 1.1) if (a, b) != (1, 1))


# The explorers

def torchs_path(make, start, gradient, n):
    "The points that an optimizer of torch's visits: `[n + 1, 2]`."
    point = nn.Parameter(torch.as_tensor(start, dtype=torch.float64).clone())
    optimizer, path = make([point]), [point.detach().clone()]
    for _ in range(n):
        point.grad = gradient(point.detach())
        optimizer.step()
        path.append(point.detach().clone())
    return torch.stack(path).numpy()


@pytest.mark.parametrize("corrected", [False, True])
def test_average_explorer_shows_the_weighted_sum(corrected):
    explorer, truth = average_explorer(), noisy_series(120, 0)[0].numpy()
    for beta, noise in ((0, .5), (.9, .5), (.99, 1.), (.6, 0.)):
        state, points = explorer.set(beta=beta, noise=noise, corrected=corrected), noisy_series(120, noise)[1].numpy()
        powers = [beta ** np.arange(t, -1, -1.) for t in range(120)]
        averages = np.array([(power * points[:len(power)]).sum() * (1 / power.sum() if corrected else 1 - beta)
                             for power in powers])
        np.testing.assert_allclose(moving_average(torch.tensor(points), beta, corrected), averages, rtol=1e-10,
                                   atol=1e-12)
        expected = {"beta": beta, "noise": noise, "memory": 1 / (1 - beta), "first": averages[0],
                    "error": np.sqrt(((averages - truth) ** 2).mean()),
                    "point_error": np.sqrt(((points - truth) ** 2).mean())}
        assert {name: state[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("steppers, nesterov",
                         [((average_grad, momentum_step), False), ((average_grad, nesterov_step), True)])
def test_momentum_explorer_shows_torchs_run(steppers, nesterov):
    explorer = momentum_explorer(steppers, n_steps=60)
    for lr, beta, steepness in ((.05, .9, 20), (.01, .5, 50), (.3, .8, 5), (.15, .5, 21), (.5, .3, 10)):
        state, curvatures = (explorer.set(lr=lr, beta=beta, steepness=steepness),
                             torch.tensor([1., steepness], dtype=torch.float64))
        make = lambda params: torch.optim.SGD(params, lr=lr, momentum=beta, nesterov=nesterov)
        path = torchs_path(make, (-2.5, 1.), lambda point: curvatures * point, 60)
        assert (state["x"], state["y"]) == pytest.approx(tuple(path[-1]), rel=1e-8, abs=1e-12)
        assert state["left"] == pytest.approx(np.linalg.norm(path[-1]) / np.linalg.norm(path[0]), rel=1e-8)
        assert state["largest_stable_lr"] == pytest.approx(2 * (1 + beta) / steepness)
        assert (state["outcome"] == "flies out") == (abs(path[-1]) > abs(path[0])).any()
        roots = [abs(np.roots([1, -(1 + beta - lr * curvature), beta])).max() for curvature in (1, steepness)]
        assert [state["factor_along"], state["factor_across"]] == pytest.approx(roots, rel=1e-6)


def test_rmsprop_explorer_shows_torchs_run():
    explorer, curvatures = rmsprop_explorer(n_steps=80), torch.tensor([1., 1000.], dtype=torch.float64)
    for lr, alpha, eps in ((.05, .99, 1e-8), (.02, .9, 1e-3), (1., .5, 1e4), (.3, 0, 1.)):
        state = explorer.set(lr=lr, alpha=alpha, eps=eps)
        path = torchs_path(lambda params: torch.optim.RMSprop(params, lr=lr, alpha=alpha, eps=eps), (-2.5, 1.),
                           lambda point: curvatures * point, 80)
        sgd = torchs_path(lambda params: torch.optim.SGD(params, lr=2 / 1001), (-2.5, 1.),
                          lambda point: curvatures * point, 80)
        rates = (path[-2] - path[-1]) / path[-2] / curvatures.numpy()
        expected = {"x": path[-1, 0], "y": path[-1, 1], "left_along": abs(path[-1, 0]) / 2.5,
                    "left_across": abs(path[-1, 1]), "rate_along": rates[0], "rate_across": rates[1],
                    "first_step": abs(path[1] - path[0]).max(), "sgd_left": sgd[-1, 0] / -2.5}
        assert {name: state[name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-12)


PLAIN = {"beta": .9, "sqr_beta": .99, "eps": 1e-8, "weight_decay": 0}
THEIRS = {
    "SGD": lambda beta, sqr_beta, eps, **args: lambda params: torch.optim.SGD(params, **args),
    "momentum": lambda beta, sqr_beta, eps, **args: lambda params: torch.optim.SGD(params, momentum=beta, **args),
    "RMSProp": lambda beta, sqr_beta, eps, **args: (
        lambda params: torch.optim.RMSprop(params, alpha=sqr_beta, eps=eps, **args)),
    "Adam": lambda beta, sqr_beta, eps, **args: (
        lambda params: torch.optim.Adam(params, betas=(beta, sqr_beta), eps=eps, **args)),
    "AdamW": lambda beta, sqr_beta, eps, **args: (
        lambda params: torch.optim.AdamW(params, betas=(beta, sqr_beta), eps=eps, **args))}


def test_race_explorer_shows_torchs_runs():
    explorer, points = race_explorer(), torch.randn(100, 2, dtype=torch.float64)
    for name, landscape in LANDSCAPES.items():
        torch.testing.assert_close(landscape.gradient(points),
                                   torch.func.grad(lambda points: landscape.height(points).sum())(points))
        for lr, others in ((1., PLAIN), (.3, {"beta": .7, "sqr_beta": .999, "eps": .01, "weight_decay": .5})):
            state, heights = explorer.set(landscape=name, lr=lr, **others), {}
            for contender, make in THEIRS.items():
                path = torchs_path(make(lr=state[contender]["lr"], **others), landscape.start, landscape.gradient,
                                   landscape.n_steps)
                heights[contender] = float(landscape.height(torch.tensor(path[-1]))
                                           - landscape.height(torch.tensor(landscape.lowest).double()))
                longest = np.linalg.norm(np.diff(path, axis=0), axis=1).max()
                expected = {"x": path[-1, 0], "y": path[-1, 1], "height": heights[contender], "longest_step": longest}
                assert ({key: state[contender][key] for key in expected}
                        == pytest.approx(expected, rel=1e-6, abs=1e-9)), (name, contender)
            assert heights[state["leader"]] <= min(heights.values()) + 1e-9


@pytest.mark.parametrize("name", ["slanted canyon", "canyon", "Rosenbrock's valley"])
def test_the_race_is_run_at_the_best_rates(name):
    "The lowest end of a grid of rates, among the paths that stay in the window."
    landscape = LANDSCAPES[name]
    (left, right, bottom, top), best = landscape.window, best_rates(landscape, 8)
    for contender, make in THEIRS.items():
        heights = {}
        for lr in np.logspace(-4.5, .7, 8):
            path = torchs_path(make(lr=lr, **PLAIN), landscape.start, landscape.gradient, landscape.n_steps)
            if ((path >= (left, bottom)) & (path <= (right, top))).all():
                heights[lr] = landscape.height(torch.tensor(path[-1]))
        assert best[contender] == pytest.approx(min(heights, key=heights.get))


@pytest.mark.parametrize("make, outside", [
    (average_explorer, {"beta": 1., "noise": -.1}), (momentum_explorer, {"beta": 1., "lr": 5., "steepness": 1.}),
    (rmsprop_explorer, {"alpha": 1., "lr": 1e-9, "eps": 1e9}),
    (race_explorer, {"beta": -.1, "sqr_beta": 1., "lr": 99., "eps": 0., "weight_decay": 3.})])
def test_a_value_outside_of_its_slider_is_refused(make, outside):
    explorer = make()
    before = copy.deepcopy(explorer.state)
    for name, value in outside.items():
        with pytest.raises(ValueError, match=f"{name} goes from .* is outside"): explorer.set(**{name: value})
        assert explorer.state == before and explorer.values[name] == before[name]


def broken(*args, **kwargs): raise RuntimeError("this stepper is broken")


def fails_above_a_half(p, grad, state, *, lr, beta=.9, sqr_beta=.9, eps=0.):
    if isinstance(lr, float) and lr > .5: broken()
    state["sqr_avg"] = grad


@pytest.mark.parametrize("make, move, back", [
    (average_explorer, {"beta": .5}, {"beta": .6}), (race_explorer, {"lr": 2.}, {"lr": .5}),
    (lambda: momentum_explorer([fails_above_a_half]), {"lr": .7}, {"lr": .4}),
    (lambda: rmsprop_explorer([fails_above_a_half]), {"lr": .7}, {"lr": .4})])
def test_a_broken_stepper_shows_and_leaves_the_state(make, move, back, monkeypatch):
    explorer = make()
    before, [(name, value)] = copy.deepcopy(explorer.state), move.items()
    with monkeypatch.context() as patch:
        patch.setattr(course_lib.figures.momentum, "moving_average", broken)
        patch.setattr(course_lib.figures.adam, "descend", broken)
        explorer.controls[name].value = value
    assert "is broken" in str(explorer.error) and "is broken" in explorer._alarm.value and explorer.state == before
    [(name, value)] = back.items()
    explorer.controls[name].value = value
    assert explorer.error is None and explorer.state[name] == pytest.approx(value, rel=.02)


def test_who_flies_out_of_the_race_is_said_to():
    "Whatever happened to the floats on the way, the state has no NaN."
    state = (explorer := race_explorer()).set(landscape="Rosenbrock's valley", lr=20., beta=.99)
    assert state["momentum"]["height"] == math.inf and "momentum flew out" in explorer.words(state)
    assert not any(math.isnan(value) for name in ("SGD", "momentum", "RMSProp", "Adam", "AdamW")
                   for value in state[name].values())
