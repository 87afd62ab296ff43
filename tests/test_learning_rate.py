"""The search that leaves no trace, against twins that never searched; schedules and one-cycle point by point against
torch.optim.lr_scheduler."""
import gc
import html
import inspect
import math
import random
import re
import sys
import warnings
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from course_lib.adam import Adam
from course_lib.data import DataLoaders, TensorLoader
from course_lib.figures.learning_rate import finder_explorer, one_cycle_explorer
from course_lib.callbacks import (
    ActivationStats, CSVLogger, EarlyStopping, GradientAccumulation, GradientClip, Progress, Recorder, SaveBest)
from course_lib.learner import Callback, CancelBatchException, CancelFitException, EVENTS, Learner, TerminateOnNaN
from course_lib.momentum import SGD
from course_lib.sgd import Optimizer, sgd_step, small_net
from course_lib.learning_rate import (
    LRFind, LRScheduler, ParamScheduler, combine, const, cos, exp, lin, one_cycle, poly, warm_restarts)
from tiny import data, learners_made, loaders, seed, tiny_net, with_ctrl_c

pytestmark = pytest.mark.usefixtures("one_thread")


class Remembering(nn.Module):
    """Keeps tensors outside of its state dict: replaced, changed in place, in a tuple, in a dict, in a buffer that is
    not saved; and a number."""
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1)
        self.hidden, self.total, self.pair, self.by_name, self.calls = (
            None, torch.zeros(1), (torch.zeros(1), torch.zeros(1)), {"h": torch.zeros(1)}, 0)
        self.register_buffer("seen", torch.zeros(1), persistent=False)

    def forward(self, x):
        h = self.a(x).tanh()
        if self.training:
            self.total += h.detach().sum()
            self.hidden, self.pair = h.detach().mean(0), (h.detach().sum(0), self.pair[0])
            self.by_name["h"] = self.by_name["h"] + h.detach().sum()
            self.seen += 1
            self.calls += 1
        return self.b(h) + .01 * self.total + .01 * self.by_name["h"] + .001 * self.seen


def model(kind="norm"):
    torch.manual_seed(0)
    return Remembering() if kind == "remembering" else tiny_net(kind)


OPTIMIZERS = {"our Adam": partial(Adam, lr=.01), "our SGD": partial(SGD, lr=.05, momentum=.9),
              "torch's Adam": partial(torch.optim.Adam, lr=.01),
              "torch's Adam, amsgrad": partial(torch.optim.Adam, lr=.01, amsgrad=True),
              "torch's SGD": partial(torch.optim.SGD, lr=.05, momentum=.9)}


class Counter(Callback):
    """A user's callback with a memory, which runs in a search too; uses the random numbers of Python and NumPy, and
    torch's."""
    def __init__(self): self.n, self.seen, self.noted, self.array = 0, [], {"epochs": []}, np.zeros(3)

    def before_fit(self, learn): self.fits = getattr(self, "fits", 0) + 1

    def before_batch(self, learn):
        self.n += 1
        self.seen.append(random.random() + np.random.rand())
        self.array += 1
        self.last = torch.rand(2)
        learn.xb = learn.xb + .01 * self.seen[-1]

    def before_epoch(self, learn): self.noted["epochs"].append(learn.epoch)


def learner(kind="norm", opt="our Adam", data="tensors", cbs=(), loss_func=F.mse_loss, **options):
    return Learner(model(kind), loaders(data), loss_func, OPTIMIZERS.get(opt, opt), cbs=[Counter(), *cbs], **options)


def copied(x):
    "Something to compare with later: tensors and containers copied, the rest as it is."
    if isinstance(x, torch.Tensor): return x.detach().clone()
    if isinstance(x, np.ndarray): return x.copy()
    if isinstance(x, dict): return {k: copied(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [type(x).__name__, *map(copied, x)]
    return x


def assert_equal(a, b, at="learner"):
    if isinstance(a, torch.Tensor):
        assert (isinstance(b, torch.Tensor) and a.dtype == b.dtype
                and torch.equal(a.nan_to_num(1e9), b.nan_to_num(1e9))), at
    elif isinstance(a, np.ndarray): assert np.array_equal(a, b), at
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), f"{at}: {sorted(map(str, a))} and {sorted(map(str, b))}"
        for k in a: assert_equal(a[k], b[k], f"{at}.{k}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), at
        for i, (v, w) in enumerate(zip(a, b)): assert_equal(v, w, f"{at}[{i}]")
    elif isinstance(a, float): assert a == b or math.isnan(a) and math.isnan(b), f"{at}: {a} and {b}"
    else: assert type(a) is type(b) and (a == b or type(a).__eq__ is object.__eq__), f"{at}: {a!r} and {b!r}"


def facts(learn):
    "Everything that a search could have changed."
    modules, loader = dict(learn.model.named_modules()), learn.dls.train
    simple = {name: copied(v) for name, v in vars(learn).items()
              if name not in ("model", "dls", "opt", "cbs", "dl", "_smooth", "averages")}
    inside = {f"{name}.{key}": copied(v) for name, module in modules.items() for key, v in vars(module).items()
              if not key.startswith("_") or key in ("_buffers", "_parameters")}
    opt = (learn.opt and {"class": type(learn.opt), "groups": [copied({k: v for k, v in group.items() if k != "params"})
                                                               for group in learn.opt.param_groups],
                          "state": {name: copied(dict(learn.opt.state[p]))
                                    for name, p in learn.model.named_parameters() if p in learn.opt.state},
                          "attributes": {k: copied(v) for k, v in vars(learn.opt).items()
                                         if isinstance(v, (int, float, str, bool))}})
    generators = [owner.generator.get_state() for owner in (loader, getattr(loader, "sampler", None))
                  if isinstance(getattr(owner, "generator", None), torch.Generator)]
    return {"model": copied(learn.model.state_dict()), "inside": inside, "opt": opt, "learner": simple,
            "smooth": copied(vars(learn._smooth)), "cbs": [type(cb).__name__ for cb in learn.cbs],
            "memories": [copied(vars(cb)) for cb in learn.cbs],
            "grads": {name: (copied(p.grad), p.requires_grad) for name, p in learn.model.named_parameters()},
            "loader": [getattr(loader, "epoch", None), generators], "grad mode": torch.is_grad_enabled(),
            "random": [random.getstate(), copied(np.random.get_state(legacy=False)), torch.get_rng_state()]}


def assert_no_trace(make, search, fitted, prepare=lambda learn: None, n_epochs=2):
    "The learner is after the search as a twin that did nothing, and as good as the twin when both then fit."
    def ready():
        learn = make()
        seed(5)
        if fitted: learn.fit(fitted)
        prepare(learn)
        seed(6)
        return learn

    learn, twin = ready(), ready()
    cbs, members, identities = learn.cbs, list(learn.cbs), [{k: id(v) for k, v in vars(cb).items()} for cb in learn.cbs]
    parameters, opt, grads = list(learn.model.parameters()), learn.opt, [p.grad for p in learn.model.parameters()]
    owned = {name: id(v) for name, v in vars(learn).items()}
    outcome = search(learn)
    random_now = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    seed(6)
    expected = facts(twin)
    random.setstate(random_now[0])
    np.random.set_state(random_now[1])
    torch.set_rng_state(random_now[2])
    assert_equal(facts(learn), expected)
    assert learn.cbs is cbs and all(a is b for a, b in zip(cbs, members, strict=True)) and learn.opt is opt
    assert [{k: id(v) for k, v in vars(cb).items()} for cb in cbs] == identities
    assert {name: id(v) for name, v in vars(learn).items()} == owned
    assert all(p is q and p.grad is grad
               for p, q, grad in zip(learn.model.parameters(), parameters, grads, strict=True))
    learn.fit(n_epochs)
    after = facts(learn)
    seed(6)
    twin.fit(n_epochs)
    assert_equal(after, facts(twin))
    assert (twin.cbs[0].n
            and any(not torch.equal(value, expected["model"][name]) for name, value in twin.model.state_dict().items()))
    return outcome


def find(learn, **options):
    return learn.lr_find(**{"start_lr": 1e-4, "end_lr": 1., "num_it": 11, "stop_factor": 1e9, **options})


def raising(error, fuse, **options):
    def search(learn):
        fuse.armed = True
        with pytest.raises(error) as caught: find(learn, **options)
        fuse.armed = False
        return caught.value
    return search


class Fuse:
    "Goes off at the n-th call, if it is armed."
    def __init__(self, n, error): self.n, self.error, self.armed = n, error, False

    def __call__(self, *args):
        if not self.armed: return
        self.n -= 1
        if self.n < 0: raise self.error


never_or_fitted = pytest.mark.parametrize("fitted", [0, 2])


@never_or_fitted
@pytest.mark.parametrize("data", ["tensors", "torch", "torch, own generator"])
@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["norm", "remembering"])
def test_a_search_leaves_no_trace(kind, opt, data, fitted):
    found = assert_no_trace(lambda: learner(kind, opt, data), find, fitted)
    np.testing.assert_allclose(found.lrs, np.geomspace(1e-4, 1., 11))
    assert np.isfinite(found.losses).all()


@never_or_fitted
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_a_search_that_diverges_leaves_no_trace(opt, fitted):
    found = assert_no_trace(lambda: learner("plain", opt),
                            partial(find, start_lr=1e-3, end_lr=1e4, num_it=60, stop_factor=3, smooth=.5), fitted)
    assert 0 < len(found.lrs) < 60
    exploded = found.smooth_losses > 3 * np.minimum.accumulate(found.smooth_losses)
    assert exploded[-1] and not exploded[:-1].any()


@never_or_fitted
@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("cbs", [[], [TerminateOnNaN]])
def test_a_search_into_nan_leaves_no_trace_and_does_not_count_the_nan(n, cbs, fitted):
    left = []

    def loss_func(pred, y):
        return F.mse_loss(pred, y) * (math.nan if left and left.pop() == 0 else 1)

    def search(learn):
        left.extend(reversed(range(n, -1, -1)))
        return find(learn)

    found = assert_no_trace(lambda: learner(loss_func=loss_func, cbs=[cb() for cb in cbs]), search, fitted)
    assert len(found.lrs) == len(found.losses) == len(found.smooth_losses) == n and np.isfinite(found.losses).all()
    if n < 5: pytest.raises(ValueError, lambda: found.suggestions)


@pytest.mark.parametrize("event", [event for event in EVENTS if not event.startswith("after_cancel")])
@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("n", [0, 2])
def test_a_search_broken_off_by_a_callback_leaves_no_trace(event, error, n):
    "(In some events only the first time comes: a fit has one begin.)"
    n = min(n, 0 if event.endswith("_fit") else 1 if event.endswith("_validate") else 2)
    fuse = Fuse(n, error)
    caught = assert_no_trace(lambda: learner(cbs=[type("Bang", (Callback,), {event: lambda self, learn: fuse()})()]),
                             raising(type(error), fuse), 1)
    assert caught is error and any("Bang" in note and event in note for note in caught.__notes__)


@never_or_fitted
@pytest.mark.parametrize("n", range(8))
@pytest.mark.parametrize("place", ["forward", "backward", "loss", "step", "after step", "on_step"])
def test_a_search_interrupted_anywhere_in_a_batch_leaves_no_trace(place, n, fitted):
    fuse = Fuse(n, KeyboardInterrupt())

    def opt(params):
        made = torch.optim.Adam(params, lr=.01)
        if place == "step": made.register_step_pre_hook(fuse)
        if place == "after step": made.register_step_post_hook(fuse)
        return made

    def make():
        learn = learner(opt=opt, loss_func=lambda pred, y: (place == "loss" and fuse()) or F.mse_loss(pred, y))
        if place == "forward": learn.model[2].register_forward_hook(fuse)
        if place == "backward": learn.model[4].weight.register_hook(fuse)
        return learn

    assert_no_trace(make, raising(KeyboardInterrupt, fuse, on_step=fuse if place == "on_step" else None), fitted)


def count_lines(call, at=None):
    "Runs `call`; KeyboardInterrupt at the at-th line of the loop or the optimizer. Returns the number of lines."
    n, files = 0, ("learner.py", "momentum.py", "sgd.py", "adam.py")

    def lines(frame, event, arg):
        nonlocal n
        if event == "line":
            n += 1
            if n == at: raise KeyboardInterrupt
        return lines

    before = sys.gettrace()
    sys.settrace(lambda frame, event, arg: lines if frame.f_code.co_filename.endswith(files) else None)
    try: call()
    finally: sys.settrace(before)
    return n


@pytest.mark.parametrize("part", range(20))
def test_a_search_interrupted_at_any_line_of_the_loop_leaves_no_trace(part):
    make = lambda: learner("norm", "our Adam")
    trial = make()
    first = count_lines(lambda: [vars(trial), trial.device, trial.device])  # what the snapshot itself asks
    total = count_lines(lambda: find(trial, num_it=5))
    at = first + 10 + (total - first - 25) * part // 20

    def search(learn):
        with pytest.raises(KeyboardInterrupt): count_lines(lambda: find(learn, num_it=5), at)

    assert_no_trace(make, search, 0)


def test_a_search_that_hits_an_error_of_the_model_leaves_no_trace():
    fuse = Fuse(3, ZeroDivisionError("in the model"))

    def make():
        learn = learner()
        learn.model[4].register_forward_pre_hook(fuse)
        return learn
    assert_no_trace(make, raising(ZeroDivisionError, fuse), 1)


@never_or_fitted
def test_modes_gradients_and_what_learns_stay(fitted):
    def prepare(learn):
        learn.model.train()
        learn.model[1].eval()
        learn.model[3].eval()
        learn.model.training = False
        learn.model[0].weight.requires_grad_(False)
        learn.model[4].weight.grad = torch.full((1, 6), .5)
        learn.results = {"mine": 3.}
        learn.epochs_done += 7
    learn_modes = []
    assert_no_trace(learner,
                    lambda learn: [find(learn), learn_modes.append([m.training for m in learn.model.modules()])],
                    fitted, prepare)
    assert learn_modes == [[False, True, False, True, False, True]]


@never_or_fitted
@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("freeze", [lambda learn: learn.freeze(), lambda learn: learn.freeze_to(1), lambda learn: None],
                         ids=["freeze", "freeze_to(1)", "all"])
def test_with_groups_and_frozen_ones(freeze, opt, fitted):
    rates = []

    class Rates(Callback):
        def before_step(self, learn): rates.append([float(group["lr"]) for group in learn.opt.param_groups])

    def search(learn):
        rates.clear()
        before, grad = copied(learn.model.state_dict()), [p.requires_grad for p in learn.model.parameters()]
        find(learn)
        assert_equal(copied(learn.model.state_dict()), before)
        assert [p.requires_grad for p in learn.model.parameters()] == grad
        np.testing.assert_allclose([row[-1] for row in rates], np.geomspace(1e-4, 1., 11))
        np.testing.assert_allclose([[rate / row[-1] for rate in row] for row in rates], [[.01, .1, 1.]] * 11)

    assert_no_trace(lambda: learner(opt=opt, lr=slice(1e-4, 1e-2), cbs=[Rates()]), search, fitted, freeze)


def test_frozen_norms_keep_their_statistics_in_the_search():
    learn = learner()
    learn.freeze()
    statistics = []

    class Look(Callback):
        def after_batch(self, learn):
            statistics.append((learn.model[1].running_mean.clone(), int(learn.model[1].num_batches_tracked)))
    learn.cbs.append(Look())
    find(learn)
    assert all(torch.equal(mean, torch.zeros(6)) and n == 0 for mean, n in statistics) and len(statistics) == 11


@pytest.mark.parametrize("opt", ["our SGD", "torch's SGD"])
def test_the_losses_are_those_of_a_hand_written_range_test(opt):
    "More batches than the loader has: it goes round again."
    x, y = data(40)
    batches = [(x[i:i + 12], y[i:i + 12]) for i in range(0, 40, 12)]
    learn = Learner(model("plain"), SimpleNamespace(train=batches, valid=batches), F.mse_loss, OPTIMIZERS[opt])
    found = find(learn, num_it=15, smooth=.9)
    net = model("plain")
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=1., momentum=.9), []
    for i, lr in enumerate(np.geomspace(1e-4, 1., 15)):
        optimizer.param_groups[0]["lr"] = float(lr)
        loss = F.mse_loss(net(batches[i % 4][0]), batches[i % 4][1])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)


def test_what_records_saves_or_schedules_does_not_run_in_a_search(tmp_path, capsys):
    folder = tmp_path / "sub"
    folder.mkdir()
    csv = folder / "log.csv"
    csv.write_text("epoch\n")
    cbs = [Recorder(), Progress(), CSVLogger(csv), SaveBest(folder / "best"), EarlyStopping(patience=1),
           LRScheduler(partial(lr_scheduler.StepLR, step_size=1)), ParamScheduler({"beta": const(.5)}),
           ActivationStats()]
    learn = learner(cbs=cbs)
    betas = []

    class Betas(Callback):
        def before_step(self, learn): betas.append(learn.opt.param_groups[0]["beta"])
    learn.cbs.append(Betas())
    before = [copied(vars(cb)) for cb in cbs]
    assert len(find(learn, num_it=30).lrs) == 30
    assert_equal([copied(vars(cb)) for cb in cbs], before)
    assert (set(betas) == {.9} and csv.read_text() == "epoch\n"
            and [path.name for path in folder.iterdir()] == ["log.csv"])
    assert capsys.readouterr().out == "" and not any(module._forward_hooks for module in learn.model.modules())


@never_or_fitted
def test_what_belongs_to_the_training_runs_in_a_search(fitted):
    steps = []

    class Steps(Callback):
        def after_step(self, learn): steps.append(learn.cancelled)
    found = assert_no_trace(
        lambda: learner(cbs=[TerminateOnNaN(), GradientAccumulation(2), GradientClip(max_norm=.1), Steps()]),
        lambda learn: [steps.clear(), find(learn), len(steps)], fitted)
    assert len(found[1].lrs) == 11 and found[2] == 11


def test_a_batch_that_is_cancelled_makes_no_point():
    "The rate stays for the next batch."
    rates = []

    class Skip(Callback):
        def before_batch(self, learn):
            if learn.iter == 1: raise CancelBatchException
        def after_step(self, learn): rates.append(learn.opt.param_groups[0]["lr"])
    found = find(learner(cbs=[Skip()]))
    assert len(found.lrs) == 11
    np.testing.assert_allclose(rates, found.lrs)


def test_a_learner_without_any_rate_can_search():
    learn = learner(opt=partial(Optimizer, steppers=[sgd_step]))
    assert len(find(learn).lrs) == 11 and learn.lr is None and learn.opt is None
    learn.fit(1, lr=.1)
    assert learn.lr == .1


class Hoarding(nn.Module):
    "Keeps things in a list, and tensors in a tuple and in dicts in dicts, which it changes in place."
    def __init__(self):
        super().__init__()
        self.a, self.seen, self.pair, self.deep = (nn.Linear(3, 1), [], (torch.zeros(1), torch.zeros(1)),
                                                   {"x": {"y": torch.zeros(1), "z": [0]}})

    def forward(self, x):
        self.seen.append(x.sum().item())
        self.pair[0].add_(1)
        self.deep["x"]["y"].add_(1)
        self.deep["x"]["z"][0] += 1
        return self.a(x) + .01 * len(self.seen)


def test_memory_deep_inside_of_a_model_is_as_before():
    def make():
        torch.manual_seed(0)
        return Learner(Hoarding(), loaders(), F.mse_loss, OPTIMIZERS["our SGD"], cbs=[Counter()])
    assert_no_trace(make, find, 1)


class Locked(Callback):
    "Has something that cannot be copied beside its memory."
    def __init__(self): self.file, self.memory, self.plain = (i for i in range(3)), {"losses": []}, []

    def after_batch(self, learn):
        self.memory["losses"].append(learn.loss.item())
        self.plain.append(1)


def test_the_memory_of_a_callback_that_cannot_be_copied_is_as_before():
    learn = learner(cbs=[Locked()])
    find(learn)
    assert learn.cbs[1].plain == []
    assert learn.cbs[1].memory == {"losses": []}


def test_two_callbacks_that_share_a_list_share_it_in_the_search_too():
    shared, lengths = [], []
    writes, reads = (
        type(name, (Callback,), {"__init__": lambda self: setattr(self, "seen", shared), "after_batch": method})()
        for name, method in (("Writes", lambda self, learn: self.seen.append(1)),
                             ("Reads", lambda self, learn: lengths.append(len(self.seen)))))
    find(learner(cbs=[writes, reads]))
    assert shared == [] and lengths == list(range(1, 12))


RATES = np.geomspace(1e-6, 10, 200)


@pytest.mark.parametrize("bottom", [1e-4, 1e-2, 1.])
def test_suggestions_on_a_parabola(bottom):
    """In log(lr): the minimum is where it was put; the steepest place is the first one that counts; the valley is
    halfway of the falling part's middle."""
    u = np.log10(RATES / bottom)
    found = LRFind(RATES, u ** 2 + 1, smooth=0.)
    np.testing.assert_array_equal(found.smooth_losses, found.losses)
    lowest, first = np.abs(u).argmin(), len(RATES) // 10
    assert found.suggestions["minimum_over_10"] == pytest.approx(RATES[lowest] / 10)
    assert found.suggestions["steepest"] == pytest.approx(RATES[first], rel=.2)
    assert found.suggestions["valley"] == pytest.approx(RATES[first + (lowest - first) // 2], rel=.1)


@pytest.mark.parametrize("center", [1e-4, 1e-2, .1])
def test_suggestions_on_a_falling_s(center):
    "A logistic fall in log(lr) is steepest in its middle; behind it the loss explodes."
    u = np.log(RATES / center)
    losses = 2.3 - 2 / (1 + np.exp(-2 * u)) + np.where(RATES > 50 * center, 5 * np.log(RATES / (50 * center)), 0)
    found = LRFind(RATES, losses, smooth=0.)
    assert found.suggestions["steepest"] == pytest.approx(center, rel=.1)
    assert found.suggestions["minimum_over_10"] == pytest.approx(5 * center, rel=.2)
    assert (list(found.suggestions) == ["minimum_over_10", "steepest", "valley"]
            and all(type(v) is float for v in found.suggestions.values()))
    assert f"{center:.1e}"[:2] in repr(found) or "steepest" in repr(found)


def test_the_valley_skips_bumps():
    "The longest falling subsequence is the whole line, for a loss that falls but for single bumps."
    losses = np.linspace(3, 1, 100)
    losses[[30, 50, 70]] += .5
    found = LRFind(np.geomspace(1e-5, 1, 100), losses, smooth=0.)
    assert found.suggestions["valley"] == pytest.approx(np.geomspace(1e-5, 1, 100)[10 + 45], rel=.2)


@pytest.mark.parametrize("smooth", [0., .5, .9, .98])
def test_the_smoothed_losses_are_the_average_corrected_for_its_late_start(smooth):
    losses = np.random.default_rng(0).normal(2, 1, 50)
    found = LRFind(list(RATES[:50]), list(losses), smooth)
    weights = [np.array([smooth ** (t - i) for i in range(t + 1)]) for t in range(50)]
    np.testing.assert_allclose(found.smooth_losses, [w @ losses[:t + 1] / w.sum() for t, w in enumerate(weights)])
    for array in (found.lrs, found.losses, found.smooth_losses):
        assert array.dtype == np.float64 and array.shape == (50,)


@pytest.mark.parametrize("n", range(5))
def test_too_few_points_are_an_error_in_words_and_can_be_drawn(n):
    found = LRFind(RATES[:n], np.arange(n, 0, -1.))
    with pytest.raises(ValueError, match=rf"only {n} points.*smaller start_lr.*num_it"): found.suggestions
    assert "few" in repr(found) and len(found.smooth_losses) == n
    found.plot()
    assert [len(LRFind(RATES[:n], np.ones(n)).losses)] == [n]


@pytest.mark.parametrize("losses", [np.linspace(1, 9, 50), np.ones(50), -np.linspace(1, 9, 50), np.full(50, 1e30),
                                    np.zeros(50)], ids=["rising", "flat", "below 0", "huge", "zero"])
def test_any_course_can_be_drawn(losses):
    found = LRFind(RATES[:50], losses, smooth=0.)
    found.plot()
    if losses[-1] < losses[0]: assert found.suggestions
    else:
        with pytest.raises(ValueError, match="never fell"): found.suggestions


@pytest.mark.parametrize("smooth", [0., .5, .9, .98])
@pytest.mark.parametrize("loss", [0., 1., 7., -1., 2.302585, 1e-30, 1e30])
def test_a_flat_course_suggests_nothing(loss, smooth):
    "Nor does what the average rounds."
    found = LRFind(RATES[:50], np.full(50, loss), smooth)
    with pytest.raises(ValueError, match="never fell"): found.suggestions
    assert "never fell" in repr(found)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loss", [0., 1., -1.])
def test_a_flat_course_is_drawn_without_a_warning(loss): LRFind(RATES[:50], np.full(50, loss), smooth=0.).plot()


@pytest.mark.parametrize("options", [{"start_lr": 0}, {"start_lr": -1}, {"start_lr": math.nan},
                                     {"start_lr": 1, "end_lr": 1}, {"start_lr": 2, "end_lr": 1}, {"end_lr": math.inf},
                                     {"num_it": 0}, {"num_it": -1}, {"num_it": 2.5}, {"smooth": 1}, {"smooth": -.1},
                                     {"smooth": math.nan}, {"stop_factor": 1}, {"stop_factor": math.nan}],
                         ids=str)
def test_bad_arguments_of_a_search_are_refused(options):
    learn = learner()
    before = facts(learn)
    name = next(iter(options))
    with pytest.raises(ValueError, match=name): find(learn, **options)
    assert_equal(facts(learn), before)


@pytest.mark.parametrize("num_it", [1, 2, 4, 5])
def test_short_searches(num_it):
    found = find(learner(), num_it=num_it)
    assert len(found.lrs) == num_it and found.lrs[0] == pytest.approx(1e-4)


def test_no_search_in_the_middle_of_a_fit():
    caught = []

    class Nested(Callback):
        def after_batch(self, learn):
            with pytest.raises(RuntimeError, match="middle of a fit") as error: find(learn)
            caught.append(error)
    learn, twin = learner("plain", opt="our SGD", cbs=[Nested()]), learner("plain", opt="our SGD")
    for each in (learn, twin):
        seed()
        each.fit(1)
    assert caught
    assert_equal(copied(learn.model.state_dict()), copied(twin.model.state_dict()))


def rates(make_scheduler, n, lr=.1, optimizer=None):
    "The rates (and momenta) of n steps, by torch."
    optimizer = optimizer or torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr, momentum=.9)
    scheduler, seen = make_scheduler(optimizer), []
    for _ in range(n):
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        scheduler.step()
    return np.array(seen).T


def at(schedule, n): return [schedule(i / n) for i in range(n)]


@pytest.mark.parametrize("schedule, make, n", [
    (cos(.1, .001), lambda opt: lr_scheduler.CosineAnnealingLR(opt, 40, eta_min=.001), 40),
    (cos(.1, 0), lambda opt: lr_scheduler.CosineAnnealingLR(opt, 7), 7),
    (warm_restarts(.1, .01, 3), lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 10, eta_min=.01), 30),
    (warm_restarts(.1, .01, 3, mult=2),
     lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 7, T_mult=2, eta_min=.01), 49),
    (warm_restarts(.1, 0, 4, mult=3), lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3, T_mult=3), 120),
    (combine([.25] * 4, [lin(.01, .1), lin(.1, .01)] * 2),
     lambda opt: lr_scheduler.CyclicLR(opt, .01, .1, 10, cycle_momentum=False), 40),
    (combine([.3, .7], [lin(.01, .1), lin(.1, .01)]),
     lambda opt: lr_scheduler.CyclicLR(opt, .01, .1, 12, 28, cycle_momentum=False), 40),
    (lin(.05, .1), lambda opt: lr_scheduler.LinearLR(opt, .5, 1., 20), 20),
    (exp(.1, .1 * .9 ** 30), lambda opt: lr_scheduler.ExponentialLR(opt, .9), 30),
    (const(.1), lambda opt: lr_scheduler.ConstantLR(opt, 1., 5), 20),
    (combine([.5, .5], [const(.1), const(.01)]), lambda opt: lr_scheduler.StepLR(opt, 10), 20),
    (combine([.3, .5, .2], [const(.1), const(.02), const(.004)]),
     lambda opt: lr_scheduler.MultiStepLR(opt, [6, 16], .2), 20),
    (lambda p: poly(0, .1, 2.)(1 - p), lambda opt: lr_scheduler.PolynomialLR(opt, 20, 2.), 20),
    (lambda p: poly(0, .1, .5)(1 - p), lambda opt: lr_scheduler.PolynomialLR(opt, 20, .5), 20),
    (poly(.1, 0, 1), lambda opt: lr_scheduler.PolynomialLR(opt, 20, 1.), 20)])
def test_schedules_equal_torchs_point_by_point(schedule, make, n):
    np.testing.assert_allclose(at(schedule, n), rates(make, n)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 10, 37, 100])
@pytest.mark.parametrize("pct_start", [.3, .25, .1, .9, .5])
def test_one_cycle_equals_torchs(pct_start, n):
    "torch's first part ends at its step pct_start · n − 1."
    if pct_start * n <= 1: return
    theirs = rates(lambda opt: lr_scheduler.OneCycleLR(opt, .1, n, pct_start=pct_start, div_factor=20,
                                                       final_div_factor=50), n)[0]
    ours = one_cycle(.1, 20, 1000, (pct_start * n - 1) / (n - 1))
    np.testing.assert_allclose([ours(i / (n - 1)) for i in range(n)], theirs, rtol=1e-9)


@pytest.mark.parametrize("make", [lin, cos, exp, partial(poly, power=2), partial(poly, power=.3)])
def test_ends_and_direction(make):
    schedule, back = make(.2, .8), make(.8, .2)
    assert schedule(0) == pytest.approx(.2) and schedule(1) == pytest.approx(.8) and back(1.) == pytest.approx(.2)
    values = [schedule(p) for p in np.linspace(0, 1, 50)]
    assert all(a < b for a, b in zip(values, values[1:]))


@pytest.mark.parametrize("power", [.5, 1, 2, 3.5])
def test_poly_is_a_power_of_progress(power):
    x = np.linspace(0, 1, 11)
    np.testing.assert_allclose([poly(2, 5, power)(p) for p in x], 2 + 3 * x ** power)


@pytest.mark.parametrize("bad", [lambda: exp(0, 1), lambda: exp(1, 0), lambda: exp(-1, 1), lambda: exp(math.nan, 1),
                                 lambda: poly(0, 1, 0), lambda: poly(0, 1, -1), lambda: one_cycle(.1, pct_start=2),
                                 lambda: one_cycle(.1, pct_start=-.1), lambda: one_cycle(.1, div=0),
                                 lambda: one_cycle(.1, div_final=-1)])
def test_impossible_schedules_are_refused(bad):
    with pytest.raises(ValueError, match="above 0|from 0 to 1"): bad()


@pytest.mark.parametrize("schedules", [[1, 2], [const(1.), 2], [None, const(1.)]])
def test_numbers_are_no_schedules_to_combine(schedules):
    with pytest.raises(TypeError, match=r"functions of progress.*got (1|2|None): write const\("):
        combine([.5, .5], schedules)


@pytest.mark.parametrize("options, text", [({"n_cycles": 0}, "n_cycles must be a whole number, at least 1, not 0"),
                                           ({"n_cycles": 1.5}, "n_cycles.*1.5"), ({"n_cycles": -1}, "n_cycles"),
                                           ({"mult": 0}, "mult.*above 0, not 0"), ({"mult": -2}, "mult.*not -2"),
                                           ({"mult": math.nan}, "mult"), ({"mult": math.inf}, "mult")], ids=str)
def test_impossible_restarts_are_refused(options, text):
    with pytest.raises(ValueError, match=text): warm_restarts(**{"high": 1, "low": 0, "n_cycles": 3, **options})


@pytest.mark.parametrize("shares, n, text",
                         [([.5, .4], 2, "add up"), ([.5, .6], 2, "add up"), ([1.5, -.5], 2, "at least 0"),
                          ([.5, .5], 3, "2 shares for 3"), ([1], 0, "1 shares? for 0"), ([], 0, "at least one"),
                          ([math.nan, 1], 2, "add up|at least 0"), ([0, 0], 2, "add up")])
def test_wrong_shares_are_refused(shares, n, text):
    with pytest.raises(ValueError, match=text): combine(shares, [const(1.)] * n)


@pytest.mark.parametrize("shares", [[.7, .2, .1], [.1] * 10, [1 / 3] * 3, [.6, .3, .1], [1 / 7] * 7,
                                    np.full(49, 1 / 49), torch.tensor([.7, .2, .1])])
def test_shares_that_add_up_but_for_rounding_are_accepted(shares):
    "Each part begins at its own start, also where the sum of shares is a hair beside it; at 1 the last one holds."
    n = len(shares)
    schedule, starts = (combine(shares, [partial(lambda i, p: (i, p), i) for i in range(n)]),
                        np.concatenate([[0], np.cumsum([float(share) for share in shares])]))
    for i, start in enumerate(starts[:-1]):
        assert (schedule(start) == (i, pytest.approx(0, abs=1e-6))
                and schedule((start + starts[i + 1]) / 2) == (i, pytest.approx(.5, abs=1e-6)))
    assert schedule(1.) == schedule(1) == (n - 1, pytest.approx(1, abs=1e-6)) and schedule(0) == (0, 0)


def test_parts_without_a_share_are_left_out():
    assert [combine([0, 1], [const(1.), lin(2., 3.)])(p) for p in (0, .5, 1)] == [2, 2.5, 3]
    assert [combine([1, 0], [lin(2., 3.), const(1.)])(p) for p in (0, .5, 1)] == [2, 2.5, 3]
    assert [combine([.5, 0, .5], [const(1.), const(9.), const(2.)])(p) for p in (0, .5, 1)] == [1, 2, 2]


def test_combined_parts_join():
    schedule = combine([.2, .3, .5], [cos(0, 1), lin(1, 2), cos(2, 0)])
    x = np.linspace(0, 1, 10001)
    values = np.array([schedule(p) for p in x])
    assert (abs(np.diff(values)).max() < 1e-3 and values[0] == 0 and values[-1] == pytest.approx(0, abs=1e-12)
            and values.max() == pytest.approx(2))


class Hypers(Callback):
    "The rate and beta of every group in each step, looked up under torch's names or ours."
    def __init__(self): self.lrs, self.betas = [], []

    def before_step(self, learn):
        self.lrs.append([float(group["lr"]) for group in learn.opt.param_groups])
        self.betas.append([group["betas"][0] if "betas" in group else group.get("momentum", group.get("beta"))
                           for group in learn.opt.param_groups])


def small(n_batches, opt=OPTIMIZERS["our SGD"], cbs=(), lr=None, valid=True):
    x, y = data(n_batches)
    loader = [(x[i:i + 1], y[i:i + 1]) for i in range(n_batches)]
    return Learner(model("plain"), SimpleNamespace(train=loader, valid=[data(10, 2)] if valid else None), F.mse_loss,
                   opt, lr, cbs=list(cbs))


def one_cycle_by_torch(n, peaks, momentum=True, div=25, div_final=1e5, pct_start=.25, low=.85, high=.95):
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": peak} for peak in peaks], lr=.1,
                                momentum=.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, list(peaks), n, pct_start=pct_start, div_factor=div,
                                        final_div_factor=div_final / div, cycle_momentum=momentum, base_momentum=low,
                                        max_momentum=high)
    lrs, betas = [], []
    for i in range(n):
        lrs.append([group["lr"] for group in optimizer.param_groups])
        betas.append([group["momentum"] for group in optimizer.param_groups])
        optimizer.step()
        if i + 1 < n: scheduler.step()
    return lrs, betas


WITH_BETA = [name for name in OPTIMIZERS if "amsgrad" not in name]


@pytest.mark.parametrize("n_epochs, n_batches", [(1, 12), (3, 7), (5, 10)])
@pytest.mark.parametrize("pct_start", [.3, .25, .1, .9, 1.])
@pytest.mark.parametrize("opt", WITH_BETA)
def test_fit_one_cycle_equals_torchs(opt, pct_start, n_epochs, n_batches):
    if pct_start * n_epochs * n_batches <= 1: pct_start = .2
    hypers, recorder = Hypers(), Recorder()
    learn = small(n_batches, OPTIMIZERS[opt], [hypers])
    learn.fit_one_cycle(n_epochs, .02, pct_start=pct_start, cbs=[recorder])
    lrs, betas = one_cycle_by_torch(n_epochs * n_batches, [.02], pct_start=pct_start)
    np.testing.assert_allclose(hypers.lrs, lrs * np.ones((1, 2)), rtol=1e-8)
    np.testing.assert_allclose(hypers.betas, betas * np.ones((1, 2)), rtol=1e-8)
    np.testing.assert_allclose(recorder.lrs, np.array(lrs)[:, 0], rtol=1e-8)
    np.testing.assert_allclose(recorder.betas, np.array(betas)[:, 0], rtol=1e-8)


@pytest.mark.parametrize("opt", WITH_BETA)
def test_fit_one_cycle_ends_at_the_last_rate_and_beta_is_back(opt):
    hypers = Hypers()
    learn = small(9, OPTIMIZERS[opt], [hypers])
    learn.fit(1)
    before = copied([{k: v for k, v in group.items() if k != "params"} for group in learn.opt.param_groups])
    learn.fit_one_cycle(2, .01, div=10, div_final=1000, betas=(.9, .7, .8))
    after = copied([{k: v for k, v in group.items() if k != "params"} for group in learn.opt.param_groups])
    for group, was in zip(after[1:], before[1:]): assert {**group, "lr": 0} == {**was, "lr": 0}
    lrs, betas = np.array(hypers.lrs)[9:, 0], np.array(hypers.betas)[9:, 0]
    assert (lrs[0] == pytest.approx(.001) and lrs.max() == pytest.approx(.01, rel=.01)
            and lrs[-1] == pytest.approx(1e-5, rel=1e-9))
    assert (betas[0] == pytest.approx(.9) and betas.min() == pytest.approx(.7, rel=.01)
            and betas[-1] == pytest.approx(.8))
    hypers.lrs.clear()
    learn.fit(1)
    assert hypers.lrs == [[before[1]["lr"]] * 2] * 9


@pytest.mark.parametrize("max_lr, peaks", [(slice(1e-3, 1e-1), [1e-3, 1e-1]), (slice(.1), [.01, .1]), (.1, [.1, .1])])
def test_one_cycle_over_groups(max_lr, peaks):
    hypers = Hypers()
    small(10, cbs=[hypers]).fit_one_cycle(2, max_lr)
    np.testing.assert_allclose(hypers.lrs, one_cycle_by_torch(20, peaks)[0], rtol=1e-8)
    by_default = Hypers()
    small(10, cbs=[by_default], lr=max_lr).fit_one_cycle(2)
    assert by_default.lrs == hypers.lrs


@pytest.mark.parametrize("opt, beta",
                         [(partial(torch.optim.SGD, lr=.1), 0), (partial(Optimizer, steppers=[sgd_step], lr=.1), None)])
def test_one_cycle_without_momentum_leaves_it(opt, beta):
    hypers = Hypers()
    small(10, opt, [hypers]).fit_one_cycle(2, .1)
    np.testing.assert_allclose(hypers.lrs, one_cycle_by_torch(20, [.1, .1], momentum=False)[0], rtol=1e-8)
    assert hypers.betas == [[beta] * 2] * 20


def test_one_cycle_with_betas_none():
    hypers = Hypers()
    small(10, cbs=[hypers]).fit_one_cycle(1, .1, betas=None)
    assert hypers.betas == [[.9, .9]] * 10


@pytest.mark.parametrize("pct_start, first", [(0, .1), (1, .004)])
def test_one_cycle_of_one_half(pct_start, first):
    hypers = Hypers()
    small(10, cbs=[hypers]).fit_one_cycle(1, .1, pct_start=pct_start)
    lrs = np.array(hypers.lrs)[:, 0]
    assert lrs[0] == pytest.approx(first) and (np.diff(lrs) * (1 if pct_start else -1) > 0).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_cycle_of_few_batches_runs(n):
    hypers = Hypers()
    small(n, cbs=[hypers]).fit_one_cycle(1, .1)
    assert len(hypers.lrs) == n and hypers.lrs[-1] == [pytest.approx(.1 / 1e5)] * 2


@pytest.mark.parametrize("options, text",
                         [({"pct_start": 2}, "pct_start"), ({"pct_start": -.1}, "pct_start"),
                          ({"n_epochs": 0}, "n_epochs"), ({"n_epochs": 1.5}, "n_epochs"), ({"div": 0}, "div"),
                          ({"div_final": 0}, "div_final"), ({"betas": (.9, 1.2, .9)}, "beta"), ({"max_lr": -1}, "lr"),
                          ({"max_lr": math.nan}, "lr")])
def test_bad_arguments_of_one_cycle(options, text):
    learn = small(4)
    with pytest.raises(ValueError, match=text): learn.fit_one_cycle(**{"n_epochs": 1, "max_lr": .1, **options})
    assert_equal(copied(learn.model.state_dict()), copied(model("plain").state_dict()))
    learn.fit_one_cycle(1, .1)


def test_one_cycle_asked_for_an_lr_names_max_lr():
    learn = small(4)
    with pytest.raises(TypeError, match=r"no lr.*max_lr=0\.1"): learn.fit_one_cycle(1, lr=.1)
    assert learn.opt is None
    learn.fit_one_cycle(1, max_lr=.1)


def test_one_cycle_without_any_rate():
    learn = small(4, partial(Optimizer, steppers=[sgd_step]))
    with pytest.raises(ValueError, match="max_lr"): learn.fit_one_cycle(1)
    learn.fit_one_cycle(1, .1)


def warm_then_cosine(opt):
    return lr_scheduler.SequentialLR(opt, [lr_scheduler.LinearLR(opt, .1, 1., 4),
                                           lr_scheduler.CosineAnnealingLR(opt, 20)], [4])


SCHEDULERS = {
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=lambda i: 1 / (1 + i)),
    "MultiplicativeLR": partial(lr_scheduler.MultiplicativeLR, lr_lambda=lambda i: .97),
    "StepLR": partial(lr_scheduler.StepLR, step_size=3, gamma=.5),
    "MultiStepLR": partial(lr_scheduler.MultiStepLR, milestones=[2, 9], gamma=.3),
    "ConstantLR": partial(lr_scheduler.ConstantLR, factor=.3, total_iters=2),
    "LinearLR": partial(lr_scheduler.LinearLR, start_factor=.2, total_iters=6),
    "ExponentialLR": partial(lr_scheduler.ExponentialLR, gamma=.95),
    "PolynomialLR": partial(lr_scheduler.PolynomialLR, total_iters=20, power=2.),
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=20, eta_min=.001),
    "CyclicLR": partial(lr_scheduler.CyclicLR, base_lr=.01, max_lr=.1, step_size_up=4),
    "CosineAnnealingWarmRestarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3, T_mult=2),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=.1, total_steps=20), "SequentialLR": warm_then_cosine,
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, .1, 3), lr_scheduler.ExponentialLR(opt, .9)])}
STEPPED = sorted(name for name, cls in vars(lr_scheduler).items()
                 if inspect.isclass(cls) and issubclass(cls, lr_scheduler.LRScheduler)
                 and not name.startswith("_") and name not in ("LRScheduler", "ReduceLROnPlateau"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call_on", ["after_batch", "after_epoch"])
@pytest.mark.parametrize("name", STEPPED)
def test_every_scheduler_of_torch(name, call_on):
    "Rates and momenta by batch, over two fits: each begins anew."
    hypers = Hypers()
    learn = small(5, OPTIMIZERS["torch's SGD"], [hypers, LRScheduler(SCHEDULERS[name], call_on)], lr=slice(.02, .05))
    for _ in range(2): learn.fit(4)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (.02, .05)],
                                momentum=.9)
    lrs, betas = [], []
    for _ in range(2):
        for group, lr in zip(optimizer.param_groups, (.02, .05)):
            group["lr"] = lr
            group.pop("initial_lr", None)
        scheduler = SCHEDULERS[name](optimizer)
        for i in range(20):
            lrs.append([group["lr"] for group in optimizer.param_groups])
            betas.append([group["momentum"] for group in optimizer.param_groups])
            optimizer.step()
            if call_on == "after_batch" or i % 5 == 4: scheduler.step()
    np.testing.assert_allclose(hypers.lrs, lrs, rtol=1e-12)
    np.testing.assert_allclose(hypers.betas, betas, rtol=1e-12)
    assert len(set(map(tuple, hypers.lrs))) > 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("opt", ["our Adam", "our SGD"])
def test_every_scheduler_of_torch_turns_our_optimizers(opt, name):
    options = {"cycle_momentum": False} if name in ("CyclicLR", "OneCycleLR") else {}
    make, hypers = partial(SCHEDULERS[name], **options), Hypers()
    small(5, OPTIMIZERS[opt], [hypers, LRScheduler(make)], lr=.05).fit(4)
    np.testing.assert_allclose(np.array(hypers.lrs)[:, 0], rates(make, 20, .05)[0], rtol=1e-12)


@pytest.mark.parametrize("monitor, values", [("valid_loss", None), ("known", [5, 4, 4, 4, 3, 3, 3, 3, 3, 2.])])
def test_on_plateau_is_told_a_result(monitor, values):
    hypers, results, left = Hypers(), [], list(values or [])

    def known(pred, y): return torch.tensor(float(left.pop(0) if left else 0))

    class Results(Callback):
        def after_epoch(self, learn): results.append(learn.results[monitor])
    make = partial(lr_scheduler.ReduceLROnPlateau, patience=1, factor=.5, threshold=1e-2)
    learn = small(3, OPTIMIZERS["torch's SGD"], [hypers, Results(), LRScheduler(make, "after_epoch", monitor)], lr=.05)
    learn.metrics = [known]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn.fit(10)
    optimizer, lrs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], .05), []
    scheduler = make(optimizer)
    for value in results:
        lrs += [optimizer.param_groups[0]["lr"]] * 3
        optimizer.step()
        scheduler.step(value)
    np.testing.assert_allclose(np.array(hypers.lrs)[:, 0], lrs)
    if values: assert results == values and len(set(lrs)) > 2


def test_on_plateau_names_what_there_is():
    with pytest.raises(ValueError, match="'accuracy'.*train_loss, valid_loss"):
        small(3, cbs=[LRScheduler(lr_scheduler.ReduceLROnPlateau, "after_epoch", "accuracy")]).fit(1)


N_EPOCHS, N_BATCHES = 5, 40
TOTAL = N_EPOCHS * N_BATCHES


def said(make, call_on):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn = small(N_BATCHES, OPTIMIZERS["torch's SGD"], [LRScheduler(make, call_on)], lr=.1)
        try: learn.fit(N_EPOCHS)
        except ValueError as error: return [str(w.message) for w in caught], error, learn
    return [str(w.message) for w in caught], None, learn


@pytest.mark.parametrize("make, call_on, words", [
    (partial(lr_scheduler.OneCycleLR, max_lr=.1, total_steps=TOTAL), "after_epoch",
     ["OneCycleLR", "200 steps", "5 times", "begin at 0.004", "after_batch"]),
    (partial(lr_scheduler.OneCycleLR, max_lr=.1, total_steps=N_EPOCHS), "after_batch",
     ["OneCycleLR", "5 steps", "200", "raises an error at step 6", "after_epoch"]),
    (partial(lr_scheduler.StepLR, step_size=2), "after_batch",
     ["StepLR", "2 steps", "200 times", "begin at 0.1", "end at", "after_epoch"]),
    (partial(lr_scheduler.CosineAnnealingLR, T_max=N_EPOCHS), "after_batch",
     ["CosineAnnealingLR", "5 steps", "200 times", "after_epoch"]),
    (partial(lr_scheduler.CosineAnnealingLR, T_max=N_BATCHES), "after_epoch",
     ["CosineAnnealingLR", "40 steps", "5 times", "begin at 0.1", "after_batch"]),
    (partial(lr_scheduler.ExponentialLR, gamma=.9), "after_batch",
     ["ExponentialLR", "200 times", "end at 7.8", "after_epoch"]),
    (lr_scheduler.ReduceLROnPlateau, "after_batch",
     ["ReduceLROnPlateau", "200", "valid_loss", "cuts the rate", "after_epoch"])])
def test_the_wrong_place_is_warned_of_and_what_will_happen_is_said(make, call_on, words):
    (text,), error, learn = said(make, call_on)
    for word in words: assert word in text, f"{word!r} is not in {text!r}"
    assert (error is not None) == ("raises an error" in text)
    if error: assert learn.train_iter == 6


@pytest.mark.parametrize("make, call_on", [
    (partial(lr_scheduler.OneCycleLR, max_lr=.1, total_steps=TOTAL), "after_batch"),
    (partial(lr_scheduler.OneCycleLR, max_lr=.1, total_steps=N_EPOCHS), "after_epoch"),
    (partial(lr_scheduler.StepLR, step_size=2), "after_epoch"),
    (partial(lr_scheduler.StepLR, step_size=60), "after_batch"),
    (partial(lr_scheduler.CosineAnnealingLR, T_max=N_EPOCHS), "after_epoch"),
    (partial(lr_scheduler.CosineAnnealingLR, T_max=TOTAL), "after_batch"),
    (partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=N_BATCHES), "after_batch"),
    (partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=2), "after_epoch"),
    (partial(lr_scheduler.CyclicLR, base_lr=.01, max_lr=.1, step_size_up=20), "after_batch"),
    (partial(lr_scheduler.LinearLR, total_iters=10), "after_batch"),
    (partial(lr_scheduler.LinearLR, total_iters=N_EPOCHS), "after_epoch"),
    (partial(lr_scheduler.ExponentialLR, gamma=.9), "after_epoch"),
    (partial(lr_scheduler.ExponentialLR, gamma=.99), "after_batch"),
    (partial(lr_scheduler.MultiStepLR, milestones=[2, 4]), "after_epoch"),
    (partial(lr_scheduler.PolynomialLR, total_iters=TOTAL), "after_batch"),
    (partial(lr_scheduler.LambdaLR, lr_lambda=lambda i: .99 ** i), "after_batch"),
    (lambda opt: lr_scheduler.SequentialLR(opt, [lr_scheduler.LinearLR(opt, .1, 1., 10),
                                                 lr_scheduler.CosineAnnealingLR(opt, TOTAL - 10)], [10]),
     "after_batch"),
    (lr_scheduler.ReduceLROnPlateau, "after_epoch")])
def test_the_right_place_is_not_warned_of(make, call_on): assert said(make, call_on)[:2] == ([], None)


@pytest.mark.parametrize("cbs", [lambda: [LRScheduler(SCHEDULERS["StepLR"]), LRScheduler(SCHEDULERS["LinearLR"])],
                                 lambda: [ParamScheduler({"lr": const(.1)}), LRScheduler(SCHEDULERS["StepLR"])],
                                 lambda: [ParamScheduler({"lr": const(.1), "beta": const(.9)}),
                                          ParamScheduler({"beta": const(.8)})]])
def test_two_schedulers_of_one_hyperparameter_are_refused(cbs):
    learn = small(3, cbs=cbs())
    with pytest.raises(ValueError, match="would both set (lr|beta)"): learn.fit(1)
    learn.cbs.pop()
    learn.fit(1)
    with pytest.raises(ValueError, match="would both set"):
        small(3, cbs=[LRScheduler(SCHEDULERS["StepLR"])]).fit_one_cycle(1, .1)


def test_schedulers_of_two_hyperparameters_and_of_groups():
    hypers = Hypers()
    small(5, cbs=[hypers, ParamScheduler({"lr": [lin(.1, .2), exp(.01, .001)]}),
                  ParamScheduler({"beta": cos(.9, .5)})]).fit(2)
    p = np.linspace(0, 1, 10)
    np.testing.assert_allclose(hypers.lrs, np.stack([.1 + .1 * p, .01 * .1 ** p], 1))
    np.testing.assert_allclose(hypers.betas, np.stack([.5 + .2 * (1 + np.cos(np.pi * p))] * 2, 1))


@pytest.mark.parametrize("opt, schedules, text", [
    ("our SGD", {"momentum": const(.9)}, "'momentum'.*did you mean 'beta'"),
    ("our SGD", {"sqr_beta": const(.9)}, "'sqr_beta'.*has"), ("our SGD", {"nonsense": const(.9)}, "'nonsense'.*beta"),
    ("our SGD", {"lr": [const(.1)] * 3}, "3 schedules for 2"), ("our SGD", {"lr": [const(.1)]}, "1 schedules? for 2"),
    ("our SGD", {"lr": lambda progress: math.nan}, "lr must be"), ("our SGD", {"lr": lin(.1, -.1)}, "lr must be"),
    ("our SGD", {"beta": lin(.9, 1.2)}, "beta must be"),
    ("our SGD", {"lr": lambda p: math.inf if .3 < p < .7 else .1}, "lr must be"),
    ("torch's SGD", {"beta": lin(.9, 1.2)}, "beta must be"), ("torch's SGD", {"sqr_beta": const(.9)}, "'sqr_beta'"),
    ("torch's Adam", {"beta": const(1.)}, "beta must be"), ("our SGD", {"lr": lambda p: "high"}, "lr must be a number"),
    ("our SGD", {"lr": lambda p: None}, "lr must be a number")])
def test_bad_schedules_are_refused_at_the_fit_and_the_learner_can_go_on(opt, schedules, text):
    learn = small(9, OPTIMIZERS[opt])
    learn.fit(1)
    before = ([float(group["lr"]) for group in learn.opt.param_groups],
              [group.get("betas", group.get("momentum", group.get("beta"))) for group in learn.opt.param_groups])
    with pytest.raises(ValueError, match=text): learn.fit(1, cbs=[ParamScheduler(schedules)])
    learn.fit(1)
    assert before == ([float(group["lr"]) for group in learn.opt.param_groups],
                      [group.get("betas", group.get("momentum", group.get("beta")))
                       for group in learn.opt.param_groups])


@pytest.mark.parametrize("schedule", [lin(.1, .04), lambda progress: .1 if progress <= 1 else -1.])
def test_a_schedule_is_asked_up_to_progress_1_and_no_further(schedule):
    hypers = Hypers()
    small(3, cbs=[ParamScheduler({"lr": schedule}), hypers]).fit(2)
    assert set(hypers.lrs[-1]) == {schedule(1.)}


@pytest.mark.parametrize("progress", [0., 1.])
def test_a_schedule_that_is_impossible_at_an_end_is_refused_before_anything_is_trained(progress):
    learn = small(3, cbs=[ParamScheduler({"lr": lambda at: -1. if at == progress else .1})], lr=.1)
    with pytest.raises(ValueError, match="lr must be"): learn.fit(2)
    assert learn.train_iter == 0


@pytest.mark.parametrize("bad", [
    lambda: ParamScheduler({"lr": .1}), lambda: ParamScheduler({"lr": []}),
    lambda: ParamScheduler({"lr": [const(.1), .1]}), lambda: ParamScheduler({"lr": None}),
    lambda: LRScheduler(lr_scheduler.StepLR, "after_fit"), lambda: LRScheduler(3),
    lambda: LRScheduler(lr_scheduler.StepLR(torch.optim.SGD(model().parameters(), .1), 2))])
def test_what_is_no_schedule_is_refused_at_once(bad):
    with pytest.raises(ValueError, match="function|call_on"): bad()


@pytest.mark.parametrize("bad", [lin(0, 1), .1, ["lr", "beta"], None])
def test_schedules_without_names_are_refused(bad):
    with pytest.raises(TypeError, match=r"expects a dict.*'lr': lin\(0, 1\).*got"): ParamScheduler(bad)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_progress_is_the_number_of_the_batch_over_the_last_ones(n):
    seen = []
    small(n).fit(1, cbs=[ParamScheduler({"lr": lambda progress: seen.append(progress) or .01})])
    assert seen[-2 * n::2] == [i / (n - 1) if n > 1 else 1. for i in range(n)]


def test_a_scheduler_for_one_step_is_said_in_the_singular():
    assert "made for 1 step and" in str(said(lambda opt: lr_scheduler.StepLR(opt, 1, .01), "after_batch"))


def test_what_makes_no_scheduler_is_refused():
    with pytest.raises(ValueError, match="no step"): small(3, cbs=[LRScheduler(lambda opt: None)]).fit(1)


@pytest.mark.parametrize("opt, key", [("torch's Adam", "betas"), ("torch's SGD", "momentum"), ("our SGD", "beta")])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_beta_is_back_after_an_error_too(opt, key, error):
    class Bang(Callback):
        def after_loss(self, learn):
            if learn.train_iter == 4: raise error
    learn = small(9, OPTIMIZERS[opt])
    learn.fit(1)
    before = [group[key] for group in learn.opt.param_groups]
    with pytest.raises(error): learn.fit_one_cycle(1, .01, cbs=[Bang()])
    assert [group[key] for group in learn.opt.param_groups] == before and learn.opt.param_groups[0]["lr"] != 0


# What a review found

TORCH_SGD = partial(torch.optim.SGD, momentum=.9)


class Once(Callback):
    "Does something in one event of one batch."
    def __init__(self, event, act, at=0):
        self.act, self.at = act, at
        setattr(self, event, self.acts)

    def acts(self, learn):
        if learn.training and learn.train_iter == self.at: self.act(learn)


def test_rates_that_are_tensors_belong_to_one_group_each():
    recorder, lr = Recorder(), torch.tensor(.01)
    learn = Learner(model(), loaders(), F.mse_loss, partial(torch.optim.Adam, foreach=False), lr,
                    cbs=[recorder, LRScheduler(partial(lr_scheduler.ExponentialLR, gamma=.5))])
    for fit in range(2):
        learn.fit(1)
        np.testing.assert_allclose(recorder.lrs[4 * fit:], [.01, .005, .0025, .00125], rtol=1e-5)
        assert [float(group["lr"]) for group in learn.opt.param_groups] == pytest.approx([.01 / 16] * 3)
    assert float(learn.lr) == float(lr) == pytest.approx(.01)


@pytest.mark.parametrize("lr", [slice(torch.tensor(.1)), slice(torch.tensor(.1), torch.tensor(.2))])
def test_slices_of_tensors_too(lr):
    learn = Learner(model(), loaders(), F.mse_loss, partial(torch.optim.Adam, foreach=False), lr)
    learn.make_opt()
    rates = [group["lr"] for group in learn.opt.param_groups]
    assert len({id(rate) for rate in [*rates, lr.start, lr.stop]}) == 5


class Masked(nn.Module):
    "Holds what cannot be written to: an expanded buffer, with a NaN in it, and a tensor made in inference mode."
    def __init__(self):
        super().__init__()
        self.inner, self.made = tiny_net("plain"), None
        for name, row in (("mask", torch.ones(1, 1)), ("nan", torch.full((1, 1), math.nan)),
                          ("keep", torch.ones(1, 1).bool())):
            self.register_buffer(name, row.expand(4, 1), persistent=False)
        with torch.inference_mode(): self.made = torch.ones(2)

    def forward(self, x): return self.inner(x) * self.mask[0]


def test_a_search_with_tensors_that_cannot_be_written_to():
    learn = Learner(Masked(), loaders(), F.mse_loss, TORCH_SGD, .05)
    before, random_before = copied(dict(learn.model.named_parameters())), torch.get_rng_state()
    find(learn, num_it=8)
    assert_equal(before, copied(dict(learn.model.named_parameters())))
    assert learn.dls.train.epoch == 0 and torch.equal(random_before, torch.get_rng_state())


def test_what_cannot_be_put_back_is_an_error_after_all_the_rest():
    learn = Learner(Masked(), loaders(), F.mse_loss, TORCH_SGD, .05)
    before, row = copied(dict(learn.model.named_parameters())), torch.ones(1, 1)
    learn.model.mask = row.expand(4, 1)
    learn.cbs = [Once("after_batch", lambda learn: row.fill_(.5))]
    with pytest.raises(RuntimeError, match="single memory location"): find(learn, num_it=8)
    assert_equal(before, copied(dict(learn.model.named_parameters())))
    assert learn.dls.train.epoch == 0 and learn.opt is None
    learn.fit(1)


@pytest.mark.parametrize("use", [lambda learn: learn.fit(1, cbs=[Once("after_batch", cancel_fit)]),
                                 lambda learn: learn.lr_find(num_it=5), lambda learn: learn.fit(1)])
def test_nothing_keeps_a_learner_alive(use):
    gc.collect()
    gc.disable()
    try:
        learn = small(5)
        use(learn)
        alive = weakref.ref(learn), weakref.ref(learn.model)
        del learn
        assert [ref() for ref in alive] == [None, None]
    finally: gc.enable()


def cancel_fit(learn): raise CancelFitException


def test_ctrl_c_while_the_search_is_put_back():
    "At every line of restore, and of what it calls in the same file."
    def attempt(at):
        learn = learner()
        learn.fit(1)
        before = facts(learn)
        lines = with_ctrl_c(lambda: find(learn, num_it=3), at, ["restore", "_restore", "_put_back"])
        assert_equal(before, facts(learn), f"line {at}")
        learn.fit(1)
        return lines
    n = attempt(0)
    assert n > 20
    for at in sorted({*range(1, min(n, 40)), *range(40, n, 17), n}): attempt(at)


class LearntLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.margin = nn.Parameter(torch.zeros(())), torch.zeros((), requires_grad=True)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, pred, y):
        self.calls += 1
        return F.mse_loss(pred, y) * torch.exp(-self.w) + self.w + self.margin ** 2 - self.margin


@pytest.mark.parametrize("fitted", [0, 1])
def test_parameters_outside_of_the_model_come_back(fitted):
    loss = LearntLoss()
    learn = Learner(model(), loaders(), loss,
                    lambda groups: TORCH_SGD([*groups, {"params": [loss.w, loss.margin]}], lr=.1), None)
    if fitted: learn.fit(1)
    before = copied({**loss.state_dict(), "margin": loss.margin})
    find(learn, num_it=9)
    assert_equal(before, copied({**loss.state_dict(), "margin": loss.margin}))


class Lookahead(torch.optim.SGD):
    "Keeps tensors, and another optimizer, outside of its state."
    def __init__(self, params, lr=.05):
        super().__init__(params, lr, momentum=.9)
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        self.other = torch.optim.Adam(self.slow[:1], lr)

    def step(self, closure=None):
        super().step(closure)
        self.n = getattr(self, "n", 0) + 1
        for slow in self.slow: slow.add_(.1)
        self.slow[0].grad = torch.ones_like(self.slow[0])
        self.other.step()


class Noisy(nn.Module):
    "With a random generator and a set of its own."
    def __init__(self):
        super().__init__()
        self.inner, self.generator, self.seen = tiny_net(), torch.Generator().manual_seed(5), {0}

    def forward(self, x):
        self.seen.add(len(self.seen))
        return self.inner(x + .1 * torch.randn(x.shape, generator=self.generator))


def test_an_optimizers_own_containers_and_a_layers_own_generator_come_back():
    learn = Learner(Noisy(), loaders(), F.mse_loss, Lookahead)
    learn.make_opt()
    before = (copied([learn.opt.slow, dict(learn.opt.other.state)]), learn.model.generator.get_state(),
              set(learn.model.seen))
    find(learn, num_it=5)
    assert_equal(before[0], copied([learn.opt.slow, dict(learn.opt.other.state)]))
    assert (torch.equal(before[1], learn.model.generator.get_state()) and learn.model.seen == before[2]
            and not hasattr(learn.opt, "n"))


def test_a_model_that_a_callback_doubles_is_as_before_and_so_is_the_list_of_metrics():
    class Double(Callback):
        def before_fit(self, learn):
            learn.model.double()
            learn.metrics.append(len)

        def before_batch(self, learn): learn.xb, learn.yb = learn.xb.double(), learn.yb.double()
    learn = small(4, cbs=[Double()])
    before, parameters = copied(learn.model.state_dict()), list(learn.model.parameters())
    find(learn, num_it=3)
    assert_equal(before, copied(learn.model.state_dict()))
    assert learn.metrics == [] and all(p is q for p, q in zip(parameters, learn.model.parameters()))


def test_what_a_callback_shares_with_the_loop_stays_shared_in_the_search():
    class Sharing(Callback):
        def __init__(self, dl, loss): self.dl, self.x, self.loss, self.list, self.seen = dl, dl.x, loss, [], []

        def before_batch(self, learn):
            self.list.append(1)
            self.loss.calls += 100
            self.seen.append(learn.dl is self.dl and self.x is learn.dl.x and self.loss is learn.loss_func)

        def after_fit(self, learn): said.extend(self.seen)
    said, loss, dls = [], LearntLoss(), loaders()
    sharing = Sharing(dls.train, loss)
    find(Learner(model(), dls, loss, TORCH_SGD, .05, cbs=[sharing]), num_it=3)
    assert said == [True] * 3 and sharing.seen == sharing.list == [] and loss.calls == 0


class Numbered(torch.utils.data.Sampler):
    "Counts its own epochs."
    epoch = 0

    def __len__(self): return 20

    def __iter__(self):
        self.epoch += 1
        return iter(torch.randperm(20, generator=torch.Generator().manual_seed(self.epoch)).tolist())


def shy_loaders():
    "Loaders that keep what decides their order in places of their own."
    x, y = data(20)
    items, utils, generator = (torch.utils.data.TensorDataset(x, y), torch.utils.data,
                               lambda: torch.Generator().manual_seed(3))
    sampler = lambda: utils.RandomSampler(items, generator=generator())

    class Flip:
        def __init__(self): self.mine = generator()
        def __call__(self, xb, yb): return xb * torch.randn(len(xb), 1, generator=self.mine), yb
    return {"batch sampler": lambda: utils.DataLoader(items, batch_sampler=utils.BatchSampler(sampler(), 4, False)),
            "own epochs": lambda: utils.DataLoader(items, 4, sampler=Numbered()),
            "sampler": lambda: utils.DataLoader(items, 4, sampler=sampler()),
            "transform": lambda: TensorLoader(x, y, 4, shuffle=True, transform=Flip())}


@pytest.mark.parametrize("kind", list(shy_loaders()))
def test_every_order_of_the_data_is_restored_and_saved(kind, tmp_path):
    def make():
        return Learner(model("plain"), SimpleNamespace(train=shy_loaders()[kind](), valid=None), F.mse_loss, TORCH_SGD,
                       .05)
    whole, first, second = make(), make(), make()
    whole.fit(5)
    first.fit(2)
    find(first, num_it=8)
    first.save(tmp_path / "saved")
    second.load(tmp_path / "saved")
    for learn in (first, second):
        learn.fit(3)
        assert_equal(copied(whole.model.state_dict()), copied(learn.model.state_dict()))


class Rattled(torch.utils.data.Dataset):
    "Draws random numbers for each sample, in whatever process it is asked."
    x, y = data(24)
    def __len__(self): return 24
    def __getitem__(self, i): return self.x[i] + torch.rand(3), self.y[i]


@pytest.mark.parametrize("fitted", [0, 1])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_a_search_leave_no_trace(persistent, fitted):
    "Workers that live on keep their random numbers in a process of their own."
    states = []
    for search in (False, True):
        seed(3)
        train = torch.utils.data.DataLoader(Rattled(), 8, shuffle=True, num_workers=1, persistent_workers=persistent)
        learn = Learner(model("plain"), SimpleNamespace(train=train, valid=None), F.mse_loss, TORCH_SGD, .05)
        if fitted: learn.fit(fitted)
        workers = train._iterator
        if search: find(learn, num_it=4)
        assert train._iterator is workers
        learn.fit(1)
        states.append(copied(learn.model.state_dict()))
    assert_equal(*states)


@pytest.mark.parametrize("options, text",
                         [({"betas": (.9, 2, .9)}, "beta must be"), ({"betas": (.9, .8)}, "betas.*three"),
                          ({"betas": .9}, "betas.*three"), ({"div": 0}, "div"), ({"max_lr": -1}, "lr must be"),
                          ({"cbs": Recorder()}, r"cbs must be a list.*cbs=\[…\]"), ({"pct_start": 3}, "pct_start"),
                          ({"n_epochs": 0}, "n_epochs")])
def test_a_one_cycle_that_is_refused_leaves_the_optimizer_as_it_was(options, text):
    learn = small(4)
    learn.fit(1)
    opt = learn.opt
    with pytest.raises(ValueError, match=text):
        learn.fit_one_cycle(**{"n_epochs": 1, "max_lr": .1, "reset_opt": True, **options})
    assert learn.opt is opt


def test_no_one_cycle_in_the_middle_of_a_fit():
    learn = small(4)

    class Nested(Callback):
        def after_batch(self, learn):
            self.opt = learn.opt
            learn.fit_one_cycle(1, .1, reset_opt=True)
    nested = Nested()
    with pytest.raises(RuntimeError, match="in the middle of a fit"): learn.fit(1, cbs=[nested])
    assert learn.opt is nested.opt


@pytest.mark.parametrize("make", [lambda opt: lr_scheduler.MultiStepLR(opt, []),
                                  lambda opt: lr_scheduler.SequentialLR(opt, [lr_scheduler.ConstantLR(opt)], [])])
@pytest.mark.parametrize("call_on", ["after_batch", "after_epoch"])
def test_schedulers_without_milestones_run(make, call_on): small(4, cbs=[LRScheduler(make, call_on)], lr=.1).fit(2)


def small_images(n=320, n_valid=150):
    "Random images, of which the mean tells the class, well enough for a net to learn something."
    generator = torch.Generator().manual_seed(2)
    y = torch.randint(10, (n + n_valid,), generator=generator)
    x = torch.randn(len(y), 1, 28, 28, generator=generator) + y[:, None, None, None] / 4
    return DataLoaders(TensorLoader(x[:n], y[:n], 64), TensorLoader(x[n:], y[n:], 100))


def spoken(explorer): return html.unescape(re.sub("<[^>]*>", "", explorer._line.value))


@pytest.fixture(scope="module")
def finding():
    return finder_explorer(Learner(small_net(), small_images(), F.cross_entropy, OPTIMIZERS["our SGD"]))


@pytest.mark.parametrize("end_lr, num_it, smooth", [
    (.1, 100, .98), (1., 100, .98), (10., 100, .98), (10., 10, .98), (10., 150, .98), (10., 300, .98), (10., 100, 0.),
    (10., 100, .5), (10., 100, .99), (.1, 10, 0.), (.1, 10, .99), (.1, 300, 0.)])
def test_the_live_finder_over_the_whole_range_of_its_controls(finding, end_lr, num_it, smooth):
    state = finding.set(end_lr=end_lr, num_it=num_it, smooth=smooth)
    assert (state["end_lr"], state["num_it"], state["smooth"]) == (end_lr, num_it, smooth) and state["done"]
    found = re.fullmatch(r"After (\d+) batches(?:: minimum over 10 (\S+), steepest (\S+), valley (\S+)\.|"
                         r" there is nothing to suggest\.)", spoken(finding))
    assert found, spoken(finding)
    n, *suggested = found.groups()
    assert int(n) == state["n_points"] <= num_it and state["lr"] <= end_lr * (1 + 1e-9)
    for name, text in zip(("minimum_over_10", "steepest", "valley"), suggested):
        if text is None: assert math.isnan(state[name])
        else: assert float(text) == pytest.approx(state[name], rel=.05) and 1e-7 <= state[name] <= end_lr


def test_the_live_finder_counts_in_words(finding):
    state = {**finding.state, "n_points": 1, "valley": math.nan, "done": True}
    assert finding.words(state) == "After 1 batch there is nothing to suggest."


@pytest.fixture(scope="module")
def shaping(): return one_cycle_explorer(small_images(), n_batches=30)


@pytest.mark.parametrize("peak", [.01, .2, 1.])
@pytest.mark.parametrize("pct_start", [0., .5, 1.])
@pytest.mark.parametrize("shape, beta", [("cosine", "against the rate"), ("linear", "constant"),
                                         ("cosine", "with the rate")])
def test_the_live_one_cycle_over_the_whole_range_of_its_controls(shaping, peak, pct_start, shape, beta):
    state = shaping.set(peak=peak, pct_start=pct_start, shape=shape, beta=beta)
    assert (state["peak"], state["pct_start"], state["shape"], state["beta"]) == (peak, pct_start, shape, beta)
    said = re.fullmatch(r"Peak (\S+) after (\d+)% of 30 batches, (\w+), beta ([a-z ]+): loss (\S+); "
                        r"(\d+)% of 150 validation images are right, "
                        r"at a constant rate of the peak (\d+)%\.", spoken(shaping))
    assert said, spoken(shaping)
    high, share, form, momentum, loss, percent, constant = said.groups()
    assert float(high) == pytest.approx(peak, rel=5e-3) and int(share) == 100 * pct_start
    assert (form, momentum) == (shape, beta)
    assert loss == f"{state['loss']:.2f}" and state["diverged"] == (not state["loss"] < 2 * math.log(10))
    for text, name in ((percent, "accuracy"), (constant, "constant_accuracy")):
        assert int(text) == round(100 * state[name]) and 0 <= state[name] <= 1
    assert state["batch"] == 30 or math.isnan(state["loss"])


def test_the_live_one_cycle_does_not_grow(shaping, monkeypatch):
    "It forgets old peaks, and learners and recorders without a search for garbage."
    with learners_made(monkeypatch, "course_lib.figures.learning_rate", shaping) as alive:
        for i in range(30): shaping.set(peak=.0101 * 1.15 ** i)
        assert len(alive) == 60 and sum(ref() is not None for ref in alive) <= 1
    kept = inspect.getclosurevars(shaping.f).nonlocals
    assert len(kept["tried"]) == len(kept["constants"]) == 24
