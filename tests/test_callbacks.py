"""The callbacks against hand-written loops: saving and going on bit for bit, what is recorded and told, stopping,
clipping, accumulating, watching layers."""
import copy
import csv
import html
import inspect
import json
import math
import os
import pickle
import random
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.optim import lr_scheduler

from course_lib.adam import Adam, AdamW, LAMB
from course_lib.callbacks import (
    ActivationStats, CSVLogger, EarlyStopping, GradientAccumulation, GradientClip, Progress, Recorder, SaveBest)
from course_lib.data import DataLoaders, TensorLoader
from course_lib.figures.callbacks import ablation_explorer
from course_lib.learner import (
    Callback, CancelBatchException, CancelEpochException, CancelStepException, CancelTrainException,
    CancelValidateException, Learner, TerminateOnNaN, accuracy)
from course_lib.momentum import SGD
from course_lib.rmsprop import RMSProp
from course_lib.sgd import Optimizer, sgd_step
from course_lib.learning_rate import LRScheduler, ParamScheduler, lin
from course_lib.support.saving import seal
from tiny import data, learners_made, loaders, seed, tiny_net, with_ctrl_c

pytestmark = pytest.mark.usefixtures("one_thread")


class Tied(nn.Module):
    "Two layers with one matrix."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.b.weight = self.a.weight

    def forward(self, x): return self.out(self.b(self.a(x).tanh()))


def model(kind="norm", width=6):
    torch.manual_seed(0)
    if kind == "tied": return Tied()
    return tiny_net("norm", width).bfloat16() if kind == "bfloat16" else tiny_net(kind, width)


OPTIMIZERS = {"SGD": partial(SGD, lr=.05, momentum=.9), "Adam": partial(Adam, lr=.01), "AdamW": partial(AdamW, lr=.01),
              "RMSProp": partial(RMSProp, lr=.01), "torch's Adam": partial(torch.optim.Adam, lr=.01),
              "torch's SGD": partial(torch.optim.SGD, lr=.05, momentum=.9)}


class Noise(Callback):
    "Uses the random numbers of Python and NumPy."
    def before_batch(self, learn): learn.xb = learn.xb + .1 * random.random() + .1 * np.random.randn()


def learner(kind="norm", opt="SGD", data="tensors", cbs=(), **options):
    return Learner(model(kind), loaders(data, torch.bfloat16 if kind == "bfloat16" else torch.float32), F.mse_loss,
                   OPTIMIZERS.get(opt, opt), cbs=list(cbs), **options)


def flat(x):
    "Every tensor and number in it, with its place."
    if isinstance(x, dict): return {f"{k}.{name}": value for k, part in x.items() for name, value in flat(part).items()}
    if isinstance(x, (list, tuple)): return flat(dict(enumerate(x)))
    return {"": x.detach().clone() if isinstance(x, torch.Tensor) else x}


def state(learn):
    loader = learn.dls.train
    generators = [owner.generator.get_state() for owner in (loader, getattr(loader, "sampler", None))
                  if isinstance(getattr(owner, "generator", None), torch.Generator)]
    return flat({"model": dict(learn.model.state_dict()), "opt": learn.opt and learn.opt.state_dict(),
                 "lr": str(learn.lr), "epochs": learn.epochs_done,
                 "loader": [getattr(loader, "epoch", None), *generators],
                 "grad mode": torch.is_grad_enabled(),
                 "random": [random.getstate(), {k: v.tolist() if isinstance(v, np.ndarray) else v
                                                for k, v in np.random.get_state(legacy=False)["state"].items()},
                            torch.get_rng_state()]})


def assert_same(a, b):
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    for name, value in a.items():
        if isinstance(value, torch.Tensor): assert value.dtype == b[name].dtype and torch.equal(value, b[name]), name
        else: assert value == b[name] and type(value) is type(b[name]), f"{name}: {value!r} and {b[name]!r}"


def two_and_three(make, path, fresh=True, between=lambda learn: None):
    "The states after five epochs, and after two, saving, loading and three more."
    seed(1)
    whole = make()
    whole.fit(2)
    between(whole)
    whole.fit(3)
    expected = state(whole)
    seed(1)
    first = make()
    first.fit(2)
    between(first)
    first.save(path)
    second = make() if fresh else first
    seed(77)
    if not fresh: second.fit(1)
    with torch.no_grad():
        for p in second.model.parameters(): p.add_(1)
    second.load(path)
    second.fit(3)
    assert_same(state(second), expected)
    return second


@pytest.mark.parametrize("fresh", [True, False], ids=["never fitted", "fitted"])
@pytest.mark.parametrize("data", ["tensors", "torch", "torch, own generator"])
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_two_and_three_epochs_are_five(opt, data, fresh, tmp_path):
    two_and_three(lambda: learner(opt=opt, data=data, cbs=[Noise()]), tmp_path / "file", fresh)


@pytest.mark.parametrize("kind", ["bfloat16", "tied", "plain"])
@pytest.mark.parametrize("opt", ["SGD", "torch's Adam"])
def test_models_of_every_kind(kind, opt, tmp_path):
    again = two_and_three(lambda: learner(kind, opt), tmp_path / "file")
    if kind == "tied": assert again.model.a.weight is again.model.b.weight


@pytest.mark.parametrize("lr", [.02, slice(1e-3, 1e-2), slice(.02)], ids=str)
@pytest.mark.parametrize("opt", ["SGD", "torch's Adam"])
def test_rates_and_groups_come_back(opt, lr, tmp_path):
    again = two_and_three(
        lambda: learner(opt=opt, lr=.5,
                        splitter=lambda m: [[*m[0].parameters()], [*m[1].parameters(), *m[4].parameters()]]),
        tmp_path / "file", between=lambda learn: setattr(learn, "lr", lr))
    assert again.lr == lr and len(again.opt.param_groups) == 2


@pytest.mark.parametrize("make",
                         [lambda: ParamScheduler({"lr": lin(.1, .01)}),
                          lambda: LRScheduler(partial(torch.optim.lr_scheduler.StepLR, step_size=2), "after_epoch"),
                          lambda: LRScheduler(partial(torch.optim.lr_scheduler.CyclicLR, base_lr=.01, max_lr=.1,
                                                      cycle_momentum=False))])
def test_a_learner_with_a_scheduler_can_be_saved_and_loaded(make, tmp_path):
    two_and_three(lambda: learner(cbs=[make()]), tmp_path / "file")
    two_and_three(lambda: learner(cbs=[make()]), tmp_path / "file", fresh=False)


def test_one_cycle_and_a_loaded_learner(tmp_path):
    states = []
    for saved in (False, True):
        seed(1)
        learn = learner()
        learn.fit_one_cycle(2, .1)
        if saved:
            learn.save(tmp_path / "file")
            learn = learner()
            learn.load(tmp_path / "file")
        learn.fit_one_cycle(2, .1)
        states.append(state(learn))
    assert_same(*states)


@pytest.mark.parametrize("fitted", [False, True])
def test_saved_before_any_fit(fitted, tmp_path):
    "Into a learner that has fitted, too: it then has no optimizer again, or one without a memory."
    path, first = tmp_path / "file", learner(lr=.03)
    seed(4)
    first.save(path)
    first.fit(2)
    expected = state(first)
    second = learner(lr=.2)
    if fitted: second.fit(1)
    seed(9)
    second.load(path)
    second.fit(2)
    assert_same(state(second), expected)


def test_in_a_new_process(tmp_path):
    script = f"""
import random, sys; sys.path.insert(0, {str(os.path.dirname(__file__))!r})
import torch, test_callbacks as t
torch.set_num_threads(1)
learn = t.learner(opt="Adam", cbs=[t.Noise()])
learn.load(sys.argv[1])
learn.fit(3)
torch.save(t.state(learn), sys.argv[2])
"""
    seed(1)
    learn = learner(opt="Adam", cbs=[Noise()])
    learn.fit(2)
    learn.save(tmp_path / "file")
    learn.fit(3)
    subprocess.run([sys.executable, "-c", script, tmp_path / "file", tmp_path / "state"], check=True, timeout=100)
    assert_same(state(learn), torch.load(tmp_path / "state", weights_only=False))


def test_the_file_is_safetensors_and_json(tmp_path):
    learn = learner(opt="Adam")
    learn.fit(1)
    learn.save(tmp_path / "file")
    with safetensors.safe_open(tmp_path / "file", "pt") as file:
        weights = {name.removeprefix("model."): file.get_tensor(name)
                   for name in file.keys() if name.startswith("model.")}
        notes = {key: json.loads(value) for key, value in file.metadata().items()}
    assert notes and weights.keys() == learn.model.state_dict().keys()
    for name, value in learn.model.state_dict().items(): assert torch.equal(value, weights[name])
    assert b"pickle" not in (whole := (tmp_path / "file").read_bytes()) and b"\x80\x04" not in whole[:9]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("breaks", ["save", "replace", "write"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(breaks, error, tmp_path, monkeypatch):
    def fail(*args, **kwargs): raise error

    def half(self, data):
        with open(self, "wb") as file: file.write(data[:len(data) // 2])
        raise error
    learn = learner()
    learn.fit(1)
    learn.save(tmp_path / "file")
    before, expected = (tmp_path / "file").read_bytes(), state(learn)
    learn.fit(1)
    with monkeypatch.context() as patch:
        if breaks == "save": patch.setattr(safetensors.torch, "save", fail)
        if breaks == "replace":
            for owner, name in ((os, "replace"), (os, "rename"), (type(tmp_path), "replace"),
                                (type(tmp_path), "rename")):
                patch.setattr(owner, name, fail)
        if breaks == "write": patch.setattr(type(tmp_path), "write_bytes", half)
        with pytest.raises(type(error)): learn.save(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["file"]
    again = learner()
    again.load(tmp_path / "file")
    assert_same(state(again), expected)


def whole_file(tmp_path, **options):
    learn = learner(**options)
    learn.fit(1)
    learn.save(tmp_path / "good")
    return (tmp_path / "good").read_bytes()


def damaged(tmp_path):
    whole = whole_file(tmp_path)
    yield from ((f"cut at {n}", whole[:n]) for n in (0, 3, 8, 50, len(whole) // 2, len(whole) - 1))
    yield "longer", whole + b"x"
    yield "foreign", b"PK\x03\x04 this is a zip" * 30
    yield "text", b"hello world, this is no file of tensors at all"
    yield "head", b"\xff" * 8 + whole[8:]
    with safetensors.safe_open(tmp_path / "good", "pt") as file:
        tensors, notes = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    yield "no notes", safetensors.torch.save(tensors)
    yield "other notes", safetensors.torch.save(tensors, {"format": "pt"})
    [(key, value)] = notes.items()
    yield "no JSON", crafted(tensors, value[:-5])
    yield "JSON, but no dict", crafted(tensors, "[1, 2]")
    yield "JSON, but nothing in it", crafted(tensors, "{}")
    for strange in ({"set": [1]}, {}): yield "strange values", crafted(tensors, changed(value, lr=strange))
    yield "deep", crafted(tensors, "[" * 100_000)
    for name in json.loads(value):
        rest = json.dumps({k: v for k, v in json.loads(value).items() if k != name})
        yield f"without {name}", crafted(tensors, rest)
    lost = next(name for name in tensors if not name.startswith("model."))
    yield "without a tensor of the optimizer", crafted({k: v for k, v in tensors.items() if k != lost}, value)


def crafted(tensors, notes): return seal(safetensors.torch.save(tensors, {"learner": notes}))


def changed(notes, **values): return json.dumps({**json.loads(notes), **values})


def test_a_flipped_bit_anywhere_in_the_file_is_refused(tmp_path):
    whole, learn, path = whole_file(tmp_path, opt="Adam"), learner(opt="Adam"), tmp_path / "flipped"
    learn.load(tmp_path / "good")
    before, accepted = state(learn), []
    for bit in {*range(0, 8 * 64, 3), *range(0, 8 * len(whole), 181)}:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try: learn.load(path)
        except ValueError as error: assert str(path) in str(error)
        else: accepted.append(bit)
    assert not accepted
    assert_same(state(learn), before)


@pytest.mark.parametrize("name, values", [
    ("epochs_done", ["many", -1, 1.5, True, None, {"list": []}]), ("lr", ["fast", -1, True, {"slice": [None, None]}]),
    ("random", [None, 1, {"dict": []}, {"dict": [["python", 1]]}]),
    ("loaders", [None, 3, {"dict": [["train.epoch", "x"]]}, {"dict": [["train.epoch", None]]}]),
    ("frozen", [None, 1, "all"]), ("extra", [None, "x"]), ("layout", [None, [], "x"]),
    ("optimizer", [None, "x", {"dict": []}, {"dict": [["state", 1], ["param_groups", 2]]}]),
    ("versions", [None, 1, {"dict": [["model", 3]]}, {"dict": [["model", {"dict": [["0", 3]]}]]}]),
    ("learner", [0, 3, "2", None])])
def test_notes_that_nobody_saved_are_refused_and_nothing_changes(name, values, tmp_path):
    "With a right checksum: somebody wrote them."
    whole_file(tmp_path, opt="Adam")
    with safetensors.safe_open(tmp_path / "good", "pt") as file:
        tensors, notes = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["learner"]
    path = tmp_path / "crafted"
    for fitted in (0, 2):
        learn = learner(opt="Adam")
        if fitted: learn.fit(fitted)
        before = state(learn)
        for value in values:
            path.write_bytes(crafted(tensors, changed(notes, **{name: value})))
            with pytest.raises(ValueError) as caught: learn.load(path)
            assert str(path) in str(caught.value) or name == "loaders" and "kind of loader" in str(caught.value), value
            assert_same(state(learn), before)
    path.write_bytes(crafted(tensors, notes))
    learn.load(path)  # so that it is these values


def test_a_file_without_a_checksum_is_refused_in_words(tmp_path):
    "As the first format was."
    whole_file(tmp_path)
    with safetensors.safe_open(tmp_path / "good", "pt") as file:
        tensors, notes = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["learner"])
    notes = {"learner": 1} | {name: value for name, value in notes.items() if name not in ("learner", "sha256")}
    (tmp_path / "old").write_bytes(safetensors.torch.save(tensors, {"learner": json.dumps(notes)}))
    with pytest.raises(ValueError, match="old.*has format 1, and this version of course_lib reads format 2"):
        learner().load(tmp_path / "old")


class EveryFunction:
    def __contains__(self, name): return name != "_slotnames"  # of copyreg: it swallows whatever is raised


@pytest.mark.parametrize("fitted", [0, 1])
def test_ctrl_c_in_load_comes_out_and_changes_nothing(fitted, tmp_path):
    "At the lines of load and of all that it calls, in torch and safetensors too."
    whole_file(tmp_path, opt="Adam")
    learn = learner(opt="Adam")
    if fitted: learn.fit(fitted)
    came = []

    def attempt(at):
        def work():
            try: learn.load(tmp_path / "good")
            except KeyboardInterrupt:
                came.append(at)
                raise
        return with_ctrl_c(work, at, EveryFunction(), but="try: learn.load")
    n = attempt(0)
    assert n > 1000 and learn.epochs_done == 1
    learn = learner(opt="Adam")
    if fitted: learn.fit(fitted)
    before = state(learn)
    for at in sorted({*range(1, 80), *range(80, n, 67), *range(n - 80, n + 1)}):
        if attempt(at) < at: break  # through: with what Python has remembered, it needs fewer lines than at first
        assert came[-1:] == [at]
        assert_same(state(learn), before)
    assert at > .8 * n


def test_a_model_that_reads_the_version_of_its_layers(tmp_path):
    "torchvision's mnasnet refuses a state dict without one."
    def make():
        torch.manual_seed(0)
        net, x = torchvision.models.mnasnet0_5(num_classes=2), torch.randn(2, 3, 32, 32)
        return Learner(net, SimpleNamespace(train=[(x, torch.tensor([0, 1]))], valid=None), F.cross_entropy,
                       OPTIMIZERS["SGD"])
    first, second = make(), make()
    first.fit(1)
    first.save(tmp_path / "saved")
    second.load(tmp_path / "saved")
    for name, value in first.model.state_dict().items(): assert torch.equal(value, second.model.state_dict()[name])


@pytest.mark.parametrize("kind", ["a circle of links", "a folder", "inside of a file"])
def test_a_file_that_is_there_and_cannot_be_read_is_not_called_missing(kind, tmp_path):
    path = tmp_path / "saved"
    if kind == "a circle of links": path.symlink_to(path)
    if kind == "a folder": path.mkdir()
    if kind == "inside of a file":
        path.touch()
        path = path / "saved"
    with pytest.raises(OSError, match="saved") as caught: learner().load(path)
    assert not isinstance(caught.value, FileNotFoundError) and "There is no file" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_one_may_not_read_is_not_called_missing(tmp_path):
    whole_file(tmp_path)
    (tmp_path / "good").chmod(0)
    with pytest.raises(PermissionError, match="good"): learner().load(tmp_path / "good")


def test_damaged_and_foreign_files_are_refused_and_nothing_changes(tmp_path):
    learn = learner()
    learn.fit(2)
    failures = []
    for i, (name, content) in enumerate(damaged(tmp_path)):
        (path := tmp_path / f"bad{i}").write_bytes(content)
        before = state(learn)
        try:
            learn.load(path)
            failures.append(f"{name}: accepted")
        except ValueError as error:
            if str(path) not in str(error): failures.append(f"{name}: ValueError without the path: {error}")
        except Exception as error: failures.append(f"{name}: {error!r}")
        try: assert_same(state(learn), before)
        except AssertionError as error: failures.append(f"{name}: the learner changed: {error}")
    assert not failures, "\n".join(failures)


def test_a_missing_file_is_an_error(tmp_path):
    learn = learner()
    with pytest.raises(FileNotFoundError, match="nowhere"): learn.load(tmp_path / "nowhere")
    with pytest.raises((ValueError, OSError)): learn.load(tmp_path)


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("make, text", [
    (lambda: learner("plain"), "model"), (lambda: learner("tied"), "model"),
    (lambda: Learner(model(width=7), loaders(), F.mse_loss, OPTIMIZERS["SGD"]),
     r"model: .* is \[.*6.*\] float32 there and \[.*7.*\] float32 here"),
    (lambda: learner(opt="Adam"), "optimizer"), (lambda: learner(opt="torch's Adam"), "optimizer"),
    (lambda: learner(opt="torch's SGD"), "optimizer"),
    (lambda: learner(splitter=lambda m: [list(m.parameters())]), "optimizer"),
    (lambda: learner(splitter=lambda m: [[*m[0].parameters()], [*m[1].parameters(), *m[4].parameters()]]),
     "optimizer")])
def test_a_file_of_another_model_or_optimizer_is_refused_and_nothing_changes(make, text, fitted, tmp_path):
    whole_file(tmp_path)
    learn = make()
    if fitted: learn.fit(1)
    before, opt = state(learn), learn.opt
    with pytest.raises(ValueError, match=text): learn.load(tmp_path / "good")
    assert_same(state(learn), before)
    assert learn.opt is opt
    learn.fit(1)


@pytest.mark.parametrize("make, difference", [
    *((partial(learner, opt=opt), r"its kind is [\w →]+ there and [\w →]+ here")
      for opt in ("Adam", "torch's SGD", "torch's Adam")),
    (lambda: learner(splitter=lambda m: [list(m.parameters())]), "the number of groups is 3 there and 1 here"),
    (lambda: learner(splitter=lambda m: [[m[0].weight], [m[0].bias, *m[1].parameters()], [*m[4].parameters()]]),
     "the number of parameters in group 0 is 2 there and 1 here")])
def test_the_message_about_another_optimizer_is_short(make, difference, tmp_path):
    whole_file(tmp_path)
    with pytest.raises(ValueError, match=rf"^The file belongs to another optimizer: {difference}\.$"):
        make().load(tmp_path / "good")


def test_the_state_that_only_pickle_could_hold_is_refused(tmp_path):
    learn = learner()
    learn.fit(1)
    learn.opt.param_groups[0]["strange"] = object()
    with pytest.raises(ValueError, match="without pickle"): learn.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_model_with_frozen_parts_is_saved_and_loaded(tmp_path):
    def frozen():
        learn = learner(opt="Adam")
        learn.freeze()
        return learn
    two_and_three(frozen, tmp_path / "file")


def test_a_folder_that_is_not_there_is_made(tmp_path):
    learn = learner()
    learn.save(str(tmp_path / "a" / "b" / "file"))
    learner().load(str(tmp_path / "a" / "b" / "file"))


@pytest.mark.parametrize("opt", ["Adam", "torch's Adam"])
def test_a_loaded_learner_does_not_hang_on_the_file(opt, tmp_path):
    """What becomes of the file afterwards (written over in place, as cp and synchronised folders do) does not reach the
    learner."""
    whole = whole_file(tmp_path, opt=opt)
    learn = learner(opt=opt)
    learn.load(tmp_path / "good")
    before = state(learn)
    with open(tmp_path / "good", "r+b") as file: file.write(bytes(len(whole)))
    assert_same(state(learn), before)


def test_a_file_of_other_loaders_is_loaded_or_refused_as_a_whole(tmp_path):
    "Saved with a generator of its own, loaded where there is none, and the other way round."
    for saved, here in (("torch, own generator", "tensors"), ("torch, own generator", "torch"), ("tensors", "torch")):
        whole_file(tmp_path, data=saved)
        learn = learner(data=here)
        learn.fit(2)
        before, loader = state(learn), dict(vars(learn.dls.train))
        try: learn.load(tmp_path / "good")
        except ValueError as error: assert "loader" in str(error)
        except Exception: pytest.fail(f"{saved} into {here}: {sys.exc_info()[1]!r}")
        else: continue
        assert_same(state(learn), before)
        assert vars(learn.dls.train).keys() == loader.keys()


def pairs(sizes, seed=1):
    x, y = data(sum(sizes), seed)
    return list(zip(x.split(list(sizes)), y.split(list(sizes))))


def plain(sizes=(5, 5, 3), cbs=(), opt="torch's SGD", valid=(4, 1), **options):
    "A learner whose batches have these sizes, in a fixed order."
    dls = SimpleNamespace(train=pairs(sizes), valid=pairs(valid, 2) if valid else None)
    return Learner(model("plain"), dls, F.mse_loss, OPTIMIZERS.get(opt, opt), cbs=list(cbs), **options)


def by_hand(batches, n_epochs, optimizer=partial(torch.optim.SGD, lr=.05, momentum=.9), before_step=lambda net: None):
    "The loop of a textbook: the model and the losses."
    net, losses = model("plain"), []
    optimizer = optimizer(net.parameters())
    for _ in range(n_epochs):
        for xb, yb in batches:
            loss = F.mse_loss(net(xb), yb)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            before_step(net)
            optimizer.step()
    return net, losses


def assert_close(a, b, tolerance=1e-6):
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance, msg=name)


class Skip(Callback):
    "Raises in the batches whose numbers (from 0, over the fit) are named."
    def __init__(self, numbers, event="after_loss", exception=CancelBatchException):
        self.numbers, self.exception = numbers, exception
        setattr(self, event, self.act)

    def act(self, learn):
        if learn.training and learn.train_iter in self.numbers: raise self.exception


class Results(Callback):
    "Gives `learn.results` known values, epoch by epoch, before anybody looks."
    run_before = (EarlyStopping, SaveBest, Recorder)

    def __init__(self, **series): self.series, self.seen = {name: list(values) for name, values in series.items()}, []

    def after_epoch(self, learn):
        for name, values in self.series.items(): learn.results[name] = values[learn.epoch]
        self.seen.append(learn.epochs_done)


def test_the_recorder_keeps_what_a_hand_written_loop_sees():
    recorder = Recorder()
    learn = plain(cbs=[recorder], lr=.05)
    learn.fit(2)
    learn.fit(2)
    net, losses = by_hand(learn.dls.train, 4)
    np.testing.assert_allclose(recorder.losses, losses, rtol=1e-5)
    assert recorder.lrs.tolist() == [.05] * 12 and recorder.betas.tolist() == [.9] * 12
    for array in (recorder.losses, recorder.lrs, recorder.betas):
        assert array.dtype == np.float64 and array.shape == (12,)
    assert ([row["epoch"] for row in recorder.epochs] == [1, 2, 3, 4]
            and [row["batches"] for row in recorder.epochs] == [3, 6, 9, 12])
    means = [np.average(losses[i:i + 3], weights=[5, 5, 3]) for i in range(0, 12, 3)]
    np.testing.assert_allclose([row["train_loss"] for row in recorder.epochs], means, rtol=1e-5)
    assert_close(learn.model, net, 1e-5)


@pytest.mark.parametrize("n", [511, 512, 513, 1300])
def test_the_recorder_folds(n):
    recorder = Recorder()
    slow = partial(torch.optim.SGD, lr=.005)
    learn = plain([1] * n, [recorder], slow)
    learn.fit(1)
    np.testing.assert_allclose(recorder.losses, by_hand(learn.dls.train, 1, slow)[1], rtol=1e-4, atol=1e-6)
    assert np.isfinite(recorder.losses).all()
    assert len(recorder.lrs) == n


@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss", "after_backward"])
def test_cancelled_batches_are_absent(event):
    recorder = Recorder()
    learn = plain([4] * 6, [recorder, Skip({1, 4}, event)])
    learn.fit(1)
    net, losses = by_hand([batch for i, batch in enumerate(learn.dls.train) if i not in (1, 4)], 1)
    np.testing.assert_allclose(recorder.losses, losses, rtol=1e-5)
    assert (recorder.epochs[0]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
            and len(recorder.lrs) == 4 == recorder.epochs[0]["batches"])
    assert_close(learn.model, net)


def test_a_cancelled_epoch_is_absent():
    recorder = Recorder()
    plain(cbs=[recorder, Skip({4}, exception=CancelEpochException)]).fit(3)
    assert len(recorder.epochs) == 2 and len(recorder.losses) == 7


def test_a_nan_that_ends_the_fit_is_not_recorded():
    recorder = Recorder()
    learn = plain(cbs=[recorder, TerminateOnNaN()])
    learn.loss_func = lambda pred, y: F.mse_loss(pred, y) * (math.nan if learn.train_iter == 4 else 1)
    learn.fit(3)
    assert len(recorder.losses) == 4 and np.isfinite(recorder.losses).all() and len(recorder.epochs) == 1


def test_without_momentum_beta_is_nan():
    assert (np.isnan(fitted_recorder(plain(opt=partial(Optimizer, steppers=[sgd_step], lr=.01))).betas).tolist()
            == [True] * 3)
    assert fitted_recorder(plain(opt=partial(torch.optim.SGD, lr=.01))).betas.tolist() == [0] * 3


def fitted_recorder(learn, n_epochs=1):
    recorder = Recorder()
    learn.fit(n_epochs, cbs=[recorder])
    return recorder


@pytest.mark.parametrize("valid", [(4, 1), None])
@pytest.mark.parametrize("opt", ["SGD", "Adam", "torch's Adam", "RMSProp"])
def test_the_plots_run(valid, opt):
    recorder = fitted_recorder(plain(opt=opt, valid=valid), 2)
    recorder.plot_loss()
    recorder.plot_sched()
    recorder._losses.append(torch.tensor(math.nan))
    recorder._hypers.append(recorder._hypers[-1])
    recorder.plot_loss()
    for plot in (Recorder().plot_loss, Recorder().plot_sched):
        with pytest.raises(ValueError, match="fit first"): plot()


@pytest.mark.parametrize("smooth", [2, 1, -.1, math.nan])
def test_losses_are_plotted_with_an_average_or_not_at_all(smooth):
    recorder = fitted_recorder(plain())
    with pytest.raises(ValueError, match="smooth must be at least 0 and below 1"): recorder.plot_loss(smooth)
    recorder.plot_loss(0)


def test_metrics_are_weighed_by_sample():
    def within(pred, y): return ((pred - y).abs() < .5).float().mean()
    recorder = Recorder()
    learn = plain(valid=(4, 3, 1), cbs=[recorder], metrics=[within])
    learn.fit(2)
    x, y = (torch.cat(part) for part in zip(*learn.dls.valid))
    with torch.no_grad(): errors = learn.model(x) - y
    last = recorder.epochs[-1]
    assert (last["valid_loss"] == pytest.approx(errors.square().mean().item(), rel=1e-5)
            and last["within"] == pytest.approx((errors.abs() < .5).double().mean().item()))
    assert set(learn.validate()) == {"loss", "within"}


SCRIPT = """
import sys; sys.path.insert(0, sys.argv[1])
import torch, test_callbacks as t
torch.set_num_threads(1)
learn = t.plain(cbs=[t.Progress()])
learn.fit(2)
print("validated", sorted(learn.validate()))
learn.fit(1)
"""


def test_progress_in_a_script_prints_a_line_per_epoch():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run([sys.executable, "-c", SCRIPT, os.path.dirname(__file__)], capture_output=True, text=True,
                          timeout=100, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert ([line.split(" · ")[0] for line in lines] == ["epoch 1", "epoch 2", "validated ['loss']", "epoch 3"]
            and "\x1b" not in done.stdout and "\r" not in done.stdout)
    for line in (lines[0], lines[3]): assert "train_loss 0." in line and "valid_loss 0." in line and line.endswith(" s")
    assert "rror" not in done.stderr


def test_progress_under_pytest_prints_lines(capsys):
    plain(cbs=[Progress(), Recorder()]).fit(2)
    plain(cbs=[Progress()], valid=None).fit(1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "valid_loss" in lines[0] and "valid_loss" not in lines[2]


def test_progress_says_that_it_was_interrupted(capsys):
    learn = plain(cbs=[Progress(), Skip({4}, "after_pred", KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt): learn.fit(3)
    out = capsys.readouterr().out
    assert "Interrupted in epoch 2 of 3, training batch 2 of 3" in out and len(out.splitlines()) == 2
    learn.cbs.pop()
    learn.fit(1)
    assert "Interrupted" not in capsys.readouterr().out


class Screen:
    "What a notebook would show."
    def __init__(self): self.shown, self.updates = [], []

    def __call__(self, bundle, raw, display_id):
        assert raw and display_id
        self.shown.append(bundle)
        return SimpleNamespace(update=lambda bundle, raw: self.updates.append(bundle))


@pytest.fixture
def screen(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("course_lib.support.progress.in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", screen)
    return screen


@pytest.mark.parametrize("valid", [(4, 1), None])
def test_progress_in_a_notebook_updates_one_picture(screen, valid, capsys):
    def twice(pred, y): return 2 * F.mse_loss(pred, y)
    learn = plain(cbs=[Progress(refresh_s=0)], valid=valid, metrics=[twice])
    learn.fit(2)
    assert (len(screen.shown) == 1 and len(screen.updates) > 6
            and all("<progress" in bundle["text/html"] for bundle in (screen.shown + screen.updates)[:-1]))
    last = screen.updates[-1]
    assert ("<progress" not in last["text/html"] and last["text/html"].count("<tr>") == 3
            and last["text/plain"].count("epoch") == 2 and ("twice" in last["text/html"]) == bool(valid))
    if valid: learn.validate()
    learn.fit(1)
    assert (len(screen.shown) == 2 and screen.updates[-1]["text/html"].count("<tr>") == 2
            and capsys.readouterr().out == "")


def test_progress_in_a_notebook_keeps_its_columns_where_an_epoch_lacks_a_result(screen):
    class Whole(Callback):
        def before_validate(self, learn):
            if learn.epoch % 2 == 0: raise CancelValidateException
    plain(cbs=[Progress(refresh_s=0), Whole()]).fit(3)
    rows = screen.updates[-1]["text/html"].split("</tr>")[:-1]
    assert [row.count("<t") - row.count("<tr") - row.count("<table") - row.count("<thead") - row.count("<tbody")
            for row in rows] == [4] * 4


def test_progress_in_a_notebook_is_drawn_only_now_and_then(screen):
    plain([1] * 300, [Progress(refresh_s=1e9)]).fit(2)
    assert len(screen.shown) == 1 and len(screen.updates) == 3


def test_progress_in_a_notebook_when_it_breaks_off(screen, capsys):
    learn = plain(cbs=[Progress(), Skip({4}, "after_pred", KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt): learn.fit(3)
    assert "Interrupted in epoch 2" in capsys.readouterr().out and "<progress" not in screen.updates[-1]["text/html"]


def test_validate_before_any_fit_with_every_callback(tmp_path, screen, capsys):
    cbs = [Progress(refresh_s=0), Recorder(), CSVLogger(tmp_path / "log.csv"), EarlyStopping(),
           SaveBest(tmp_path / "best"), ActivationStats(), GradientClip(1.), GradientAccumulation(2)]
    learn = plain(cbs=cbs)
    assert set(learn.validate()) == {"loss"}
    assert not list(tmp_path.iterdir()) and not screen.shown
    learn.fit(1)
    learn.validate()


@pytest.mark.parametrize("values, options, stops", [
    ([3, 2, 1, 1, 1, 1, 1], {"patience": 3}, 6), ([3, 2, 1, 2, .5, 1, 1, 1, 1], {"patience": 3}, 8),
    ([3, 2, 1, 2, 2, 2], {"patience": 1}, 4), ([3, 2.97, 2.94, 2.91, 2.8, 2.7], {"patience": 3, "min_delta": .1}, 4),
    ([3, 2.8, 2.6, 2.4, 2.2, 2.], {"patience": 1, "min_delta": .1}, 6), ([math.nan] * 5, {"patience": 2}, 2),
    ([3, math.nan, 2, math.nan, math.nan, 1], {"patience": 2}, 5), ([math.inf, 3, 3, 3], {"patience": 2}, 4),
    ([5, 4, 3, 2, 1], {"patience": 1}, 5), ([0, 0, 0], {"patience": 2}, 3), ([-1, -2, -1, -1], {"patience": 2}, 4)])
def test_early_stopping(values, options, stops, capsys):
    results, stopping = Results(valid_loss=values), EarlyStopping(**options)
    learn = plain(cbs=[stopping, results])
    for again in range(2):  # a second fit begins anew
        results.seen.clear()
        learn.fit(len(values))
        assert len(results.seen) == stops
        assert ("EarlyStopping: valid_loss" in capsys.readouterr().out) == (stops < len(values)
                                                                            or stopping.waited >= stopping.patience)
        assert learn.epochs_done == (1 + again) * stops


@pytest.mark.parametrize("name, options, mode",
                         [("accuracy", {}, "max"), ("valid_loss", {}, "min"), ("train_loss", {}, "min"),
                          ("error_rate", {}, "min"), ("balanced_acc", {}, "max"), ("f1", {"mode": "max"}, "max"),
                          ("f1", {"mode": "min"}, "min"), ("accuracy", {"mode": "min"}, "min")])
def test_which_way_is_better(name, options, mode):
    results = Results(**{name: [1, 2, 3, 4, 5]})
    plain(cbs=[results, EarlyStopping(name, 1, **options)]).fit(5)
    assert len(results.seen) == (5 if mode == "max" else 2)


def test_a_metric_is_watched(capsys):
    left = [.5, .7, .6, .6, .9]

    def accuracy(pred, y): return torch.tensor(left.pop(0))
    learn = plain(valid=(4,), metrics=[accuracy], cbs=[EarlyStopping("accuracy", 2)])
    learn.fit(5)
    assert learn.epochs_done == 4 and left == [.9] and "best 2 epochs ago (0.7)" in capsys.readouterr().out


def test_the_message_of_early_stopping_tells_a_best_of_zero(capsys):
    plain(cbs=[Results(valid_loss=[0., 1, 1]), EarlyStopping(patience=2)]).fit(3)
    assert "(0)" in capsys.readouterr().out


@pytest.mark.parametrize("make", [lambda: EarlyStopping("accuracy"), lambda: SaveBest("nowhere", "accuracy")])
def test_an_unknown_result_to_watch_is_an_error_that_names_what_there_is(make):
    with pytest.raises(ValueError, match="'accuracy'.*train_loss, valid_loss"): plain(cbs=[make()]).fit(1)
    with pytest.raises(ValueError, match="train_loss"): plain(valid=None, cbs=[EarlyStopping()]).fit(1)


@pytest.mark.parametrize("values, best", [([3, 1, 2, 1.5], 2), ([3, 2, 1], 3), ([1, 2, 3], 1),
                                          ([2, math.nan, 1, math.nan], 3), ([2, 2, 2], 1)])
def test_save_best_keeps_the_state_of_the_best_epoch(values, best, tmp_path):
    states = []

    class Keep(Callback):
        run_before = (SaveBest,)
        def after_epoch(self, learn): states.append(state(learn))
    learn = learner(cbs=[Results(valid_loss=values), Keep(), SaveBest(tmp_path / "best")])
    learn.fit(len(values))
    again = learner()
    again.load(tmp_path / "best")
    assert_same(state(again), states[best - 1])
    assert again.epochs_done == best


def test_save_best_goes_on_over_fits(tmp_path):
    "A second fit that is worse does not replace the best."
    learn = plain(cbs=[Results(valid_loss=[1.]), SaveBest(tmp_path / "best")])
    learn.fit(1)
    before = (tmp_path / "best").read_bytes()
    learn.cbs[0].series["valid_loss"] = [2.]
    learn.fit(1)
    assert (tmp_path / "best").read_bytes() == before


def test_save_best_begins_anew_with_another_learner(tmp_path):
    saver = SaveBest(tmp_path / "best")
    for value in (1., 2., 3.):
        learn = plain(cbs=[Results(valid_loss=[value]), saver])
        learn.fit(1)
        assert saver.best == value
        again = plain()
        again.load(tmp_path / "best")
        assert_close(again.model, learn.model)


@pytest.mark.parametrize("copied", [lambda learn: pickle.loads(pickle.dumps(learn)), copy.deepcopy])
def test_a_learner_whose_best_was_saved_can_be_pickled_and_knows_it_afterwards(copied, tmp_path):
    learn = plain(cbs=[Results(valid_loss=[1.]), SaveBest(tmp_path / "best")])
    learn.fit(1)
    before = (tmp_path / "best").read_bytes()
    again = copied(learn)
    again.cbs[0].series["valid_loss"] = [2.]
    again.fit(1)
    assert (tmp_path / "best").read_bytes() == before and again.cbs[1].best == 1.
    again.cbs[0].series["valid_loss"] = [.5]
    again.fit(1)
    assert (tmp_path / "best").read_bytes() != before and learn.cbs[1].best == 1.
    alone = pickle.loads(pickle.dumps(learn.cbs[1]))
    other = plain(cbs=[Results(valid_loss=[3.]), alone])
    other.fit(1)
    assert alone.best == 3.


def rows(path):
    with open(path, newline="") as file: return list(csv.DictReader(file))


def test_the_csv_file_has_a_row_per_epoch_written_at_once(tmp_path):
    path, seen, recorder = tmp_path / "sub" / "log.csv", [], Recorder()

    class Look(Callback):
        run_after = (CSVLogger,)
        def after_epoch(self, learn): seen.append(len(rows(path)))
    def mine(pred, y): return F.l1_loss(pred, y)
    learn = plain(cbs=[CSVLogger(path), Look(), recorder], metrics=[mine])
    learn.fit(2)
    learn.fit(1)  # the same callback goes on
    assert seen == [1, 2, 3]
    for row, kept in zip(rows(path), recorder.epochs, strict=True):
        assert (list(row) == ["epoch", "train_loss", "valid_loss", "mine", "seconds"]
                and int(row["epoch"]) == kept["epoch"] and float(row["seconds"]) >= 0)
        for name in ("train_loss", "valid_loss", "mine"): assert float(row[name]) == kept[name]


def test_a_csv_file_that_is_there(tmp_path):
    path = tmp_path / "log.csv"
    plain(cbs=[CSVLogger(path)]).fit(1)
    before = path.read_text()
    with pytest.raises(FileExistsError, match="append=True"): plain(cbs=[CSVLogger(path)]).fit(1)
    assert path.read_text() == before
    plain(cbs=[CSVLogger(path, append=True)]).fit(2)
    assert len(rows(path)) == 3 and path.read_text().startswith(before)
    with pytest.raises(ValueError, match="columns"): plain(cbs=[CSVLogger(path, append=True)], valid=None).fit(1)
    assert len(rows(path)) == 3
    (tmp_path / "empty.csv").touch()
    plain(cbs=[CSVLogger(tmp_path / "empty.csv", append=True)]).fit(1)
    assert len(rows(tmp_path / "empty.csv")) == 1


@pytest.mark.parametrize("options", [{"valid": None}, {"metrics": [accuracy]}])
def test_other_columns_are_refused_before_anything_is_trained(options, tmp_path):
    path = tmp_path / "log.csv"
    plain(cbs=[CSVLogger(path)]).fit(1)
    before, learn = path.read_bytes(), plain(cbs=[CSVLogger(path, append=True)], **options)
    weights = learn.model[0].weight.clone()
    with pytest.raises(ValueError, match=r"log.csv has the columns \['epoch', 'train_loss', 'valid_loss', 'seconds'\]"):
        learn.fit(1)
    assert learn.train_iter == 0 and torch.equal(learn.model[0].weight, weights) and path.read_bytes() == before


def test_a_column_that_a_callback_adds(tmp_path):
    "goes on in the next fit, and a fit without it is told so before it begins."
    class Norm(Callback):
        run_before = (CSVLogger,)
        def after_epoch(self, learn): learn.results["norm"] = 2.
    path = tmp_path / "log.csv"
    learn = plain(cbs=[Norm(), CSVLogger(path)])
    for _ in range(2): learn.fit(1)
    assert [row["norm"] for row in rows(path)] == ["2.0"] * 2
    learn.metrics.append(accuracy)
    with pytest.raises(ValueError, match="columns"): learn.fit(1)
    assert learn.epochs_done == 2


def test_a_crash_loses_no_row_and_the_file_goes_on(tmp_path):
    learn = plain(cbs=[CSVLogger(tmp_path / "log.csv"), Skip({7}, "after_pred", RuntimeError)])
    with pytest.raises(RuntimeError): learn.fit(5)
    assert [row["epoch"] for row in rows(tmp_path / "log.csv")] == ["1", "2"]


@pytest.mark.parametrize("opt", ["torch's SGD", "torch's Adam"])
@pytest.mark.parametrize("options, clip", [({"max_norm": .1}, lambda ps: nn.utils.clip_grad_norm_(ps, .1)),
                                           ({"max_norm": 1e9}, lambda ps: None),
                                           ({"max_value": .02}, lambda ps: nn.utils.clip_grad_value_(ps, .02)),
                                           ({"max_norm": 1}, lambda ps: nn.utils.clip_grad_norm_(ps, 1.))])
def test_clipping_equals_torchs(options, clip, opt):
    norms, clipping = [], GradientClip(**options)

    class Norms(Callback):
        run_after = (GradientClip,)
        def before_step(self, learn): norms.append(clipping.norm)
    learn = plain(cbs=[clipping, Norms()], opt=opt)
    learn.fit(3)
    expected = []

    def before_step(net):
        expected.append(torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item())
        clip(net.parameters())
    net, _ = by_hand(learn.dls.train, 3, OPTIMIZERS[opt], before_step)
    assert_close(learn.model, net, 1e-5)
    if "max_norm" in options: np.testing.assert_allclose([float(norm) for norm in norms], expected, rtol=1e-4)


def test_clipping_with_a_frozen_part():
    learn = plain(cbs=[GradientClip(max_norm=.1)])
    learn.freeze()
    before = learn.model[0].weight.clone()
    learn.fit(2)
    assert torch.equal(before, learn.model[0].weight)


def accumulated(batches, n, n_epochs, optimizer, skip=(), drops=False, clip=None):
    """A step for n batches: the mean gradient over all their samples, computed as one big batch. drops: whether a
    skipped batch takes those before it along."""
    net, number = model("plain"), -1
    optimizer = optimizer(net.parameters())
    for _ in range(n_epochs):
        waiting = []
        for i, batch in enumerate(batches):
            number += 1
            if number in skip:
                if drops: waiting = []
            else: waiting.append(batch)
            if not waiting or len(waiting) < n and i + 1 < len(batches): continue
            x, y = (torch.cat(part) for part in zip(*waiting))
            optimizer.zero_grad()
            F.mse_loss(net(x), y).backward()
            if clip: nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            waiting = []
    return net


@pytest.mark.parametrize("opt", ["torch's SGD", "torch's Adam"])
@pytest.mark.parametrize("sizes, n", [((4, 4, 4, 4), 2), ((5, 5, 3), 2), ((5, 5, 5, 5, 2), 3), ((4, 4), 5),
                                      ((3, 1, 2), 1), ((6, 1, 2, 4, 4, 1, 1), 3)])
def test_accumulation_equals_big_batches(sizes, n, opt):
    recorder = Recorder()
    learn = plain(sizes, [GradientAccumulation(n), recorder], opt)
    learn.fit(3)
    assert_close(learn.model, accumulated(learn.dls.train, n, 3, OPTIMIZERS[opt]),
                 1e-5 if opt == "torch's SGD" else 1e-4)
    first = F.mse_loss(model("plain")(learn.dls.train[0][0]), learn.dls.train[0][1]).item()
    assert recorder.losses[0] == pytest.approx(first, rel=1e-5) and len(recorder.losses) == 3 * len(sizes)
    assert recorder.epochs[0]["train_loss"] == pytest.approx(np.average(recorder.losses[:len(sizes)], weights=sizes),
                                                             rel=1e-5)


@pytest.mark.parametrize("skip", [{0}, {1}, {2}, {1, 2}, {3, 4}, {5}, {1, 5, 7}])
@pytest.mark.parametrize("event", ["before_batch", "after_loss", "after_backward"])
def test_accumulation_with_a_cancelled_batch_in_between(skip, event):
    """Its own gradient is dropped. Once that is added to those that wait, they cannot be told apart: they are dropped
    with it; before, they stay."""
    learn = plain((4, 4, 3, 4, 4, 2), [GradientAccumulation(3), Skip(skip, event)])
    learn.fit(2)
    assert_close(learn.model, accumulated(learn.dls.train, 3, 2, OPTIMIZERS["torch's SGD"], skip,
                                          drops=event == "after_backward"), 1e-5)


@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss", "before_backward", "after_backward"])
@pytest.mark.parametrize("first", [True, False])
def test_what_accumulates_is_a_mean_whatever_is_cancelled(event, first):
    """Samples that are all the same have one gradient: every step, however many batches it is made of, must be with
    that one."""
    seen, xb, yb = [], *pairs((4,))[0]

    class Look(Callback):
        run_after = (GradientAccumulation,)
        def before_step(self, learn): seen.append(learn.model[0].weight.grad.clone())
    cbs = [GradientAccumulation(3), Skip({1, 6}, event)]
    learn = Learner(model("plain"), SimpleNamespace(train=[(xb, yb)] * 9, valid=None), F.mse_loss,
                    partial(torch.optim.SGD, lr=0.), cbs=[*(cbs if first else cbs[::-1]), Look()])
    learn.fit(1)
    F.mse_loss((net := model("plain"))(xb), yb).backward()
    assert len(seen) >= 2
    for grad in seen: torch.testing.assert_close(grad, net[0].weight.grad)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("exception", [CancelStepException, CancelBatchException])
@pytest.mark.parametrize("event", ["before_backward", "after_backward"])
def test_with_accumulation_the_recorded_loss_is_the_batchs_whatever_is_cancelled(event, exception, first):
    "Also where another callback breaks off before the accumulation has begun with its batch; the first batch, too."
    recorder, cbs = Recorder(), [GradientAccumulation(2), Skip({0, 3}, event, exception)]
    learn = plain((4, 4, 3, 4, 4, 2), [*(cbs if first else cbs[::-1]), recorder], partial(torch.optim.SGD, lr=0.))
    learn.fit(1)
    net = model("plain")
    expected = [F.mse_loss(net(x), y).item() for i, (x, y) in enumerate(learn.dls.train)
                if exception is CancelStepException or i not in (0, 3)]
    np.testing.assert_allclose(recorder.losses, expected, rtol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_clipping_is_of_the_accumulated_gradient_in_any_order_of_the_list(reverse):
    cbs = [GradientAccumulation(2), GradientClip(max_norm=.1), Recorder(), TerminateOnNaN()]
    learn = plain((5, 5, 5, 2, 2), cbs[::-1] if reverse else cbs)
    learn.fit(3)
    assert_close(learn.model, accumulated(learn.dls.train, 2, 3, OPTIMIZERS["torch's SGD"], clip=.1), 1e-5)


def stats_by_hand(batches, n_epochs, near_zero=.05, bins=40, span=(-7, 7)):
    net, rows = model("plain"), []
    optimizer = torch.optim.SGD(net.parameters(), lr=.05, momentum=.9)
    for _ in range(n_epochs):
        for xb, yb in batches:
            out = net[:2](xb).detach().numpy().astype(np.float64)
            rows.append((out.mean(), out.std(), (np.abs(out) < near_zero).mean(), np.histogram(out, bins, span)[0]))
            optimizer.zero_grad()
            F.mse_loss(net(xb), yb).backward()
            optimizer.step()
    return dict(zip(("mean", "std", "near_zero", "hist"), map(np.array, zip(*rows))))


@pytest.mark.parametrize("every", [1, 2, 5])
def test_statistics_of_activations(every):
    watching = ActivationStats(every=every)
    learn = plain((5, 5, 5, 3), [watching])
    learn.fit(2)
    [(name, stats)] = watching.stats.items()
    expected = stats_by_hand(learn.dls.train, 2)
    assert name == "1 Tanh"
    for key, values in stats.items(): np.testing.assert_allclose(values, expected[key][::every], rtol=1e-4, atol=1e-5)
    assert stats["hist"].shape == (math.ceil(8 / every), 40)
    watching.plot()
    assert not any(module._forward_hooks for module in learn.model.modules())


def test_which_layers_are_watched():
    watching = ActivationStats(lambda module: isinstance(module, nn.Linear), n_bins=7)
    learn = plain(cbs=[watching])
    learn.fit(1)
    learn.fit(1)
    assert list(watching.stats) == ["0 Linear", "2 Linear"] and watching.stats["0 Linear"]["hist"].shape == (6, 7)
    linear, dls = ActivationStats(), SimpleNamespace(train=pairs((4, 4)), valid=pairs((3,)))
    Learner(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), dls, F.mse_loss, lr=.1, cbs=[linear]).fit(1)
    assert list(linear.stats) == ["0 Linear", "1 Linear"] and len(linear.stats["0 Linear"]["mean"]) == 2
    single = ActivationStats()
    Learner(nn.Linear(3, 1), dls, F.mse_loss, lr=.1, cbs=[single]).fit(1)
    assert list(single.stats) == ["Linear"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("event", ["before_fit", "before_batch", "after_pred", "after_fit"])
@pytest.mark.parametrize("first", [True, False])
def test_hooks_are_removed_after_an_error(event, error, first):
    watching, skip = (ActivationStats(),
                      type("Bang", (Callback,), {event: lambda self, learn: (_ for _ in ()).throw(error)})())
    learn = plain(cbs=[skip, watching] if first else [watching, skip])
    with pytest.raises(error): learn.fit(1)
    assert not any(module._forward_hooks for module in learn.model.modules())


def test_nothing_to_watch_or_to_plot():
    with pytest.raises(ValueError, match="no layer"): plain(cbs=[ActivationStats(lambda module: False)]).fit(1)
    with pytest.raises(ValueError, match="fit first"): ActivationStats().plot()
    assert ActivationStats().stats == {}


@pytest.mark.parametrize("bad, text", [
    (lambda: GradientClip(), "max_norm or max_value"), (lambda: GradientClip(1., 1.), "max_norm or max_value"),
    (lambda: GradientClip(0), "above 0"), (lambda: GradientClip(-1), "above 0"),
    (lambda: GradientClip(max_value=0), "above 0"), (lambda: GradientClip(math.nan), "above 0"),
    (lambda: GradientAccumulation(0), "at least 1"), (lambda: GradientAccumulation(-2), "at least 1"),
    (lambda: GradientAccumulation("2"), "n_batches must be a whole number, at least 1, not '2'"),
    (lambda: GradientAccumulation(2.5), "n_batches must be a whole number, at least 1, not 2.5"),
    (lambda: EarlyStopping(3),
     "EarlyStopping: monitor must be a result's name, such as 'valid_loss', not 3.*patience=3"),
    (lambda: SaveBest("x", 3), "SaveBest: monitor must be"),
    (lambda: EarlyStopping(patience=2.5), "patience must be a whole number"),
    (lambda: ActivationStats(every=1.5), "every must be a whole number"),
    (lambda: ActivationStats([nn.Tanh()]), r"layers must be a function.*isinstance.*got \[Tanh\(\)\]"),
    (lambda: ActivationStats(nn.Tanh), "layers must be a function.*got <class"),
    (lambda: ActivationStats("0"), "layers must be a function.*got '0'"),
    (lambda: EarlyStopping(patience=0), "patience"), (lambda: EarlyStopping("f1"), "mode="),
    (lambda: EarlyStopping(mode="up"), "mode="), (lambda: EarlyStopping(min_delta=-1), "min_delta"),
    (lambda: EarlyStopping(min_delta=math.nan), "min_delta"), (lambda: SaveBest("x", "f1"), "mode="),
    (lambda: ActivationStats(every=0), "every")])
def test_bad_arguments_are_refused_at_once(bad, text):
    with pytest.raises(ValueError, match=text): bad()


# What a review found

class Show(Callback):
    "The gradient at each step that is made."
    run_after = (GradientAccumulation,)

    def __init__(self): self.grads = []

    def before_step(self, learn): self.grad = [p.grad.clone() for p in learn.model.parameters()]

    def after_step(self, learn):
        if not learn.cancelled: self.grads.append(torch.cat([g.flatten() for g in self.grad]))


def minus_two(n=16, size=4):
    "A model whose every sample has the gradient -2."
    line, x = nn.Linear(1, 1, bias=False), torch.ones(n, 1)
    line.weight.data.zero_()
    return line, SimpleNamespace(train=TensorLoader(x, x, size), valid=None)


def test_a_step_that_somebody_else_cancels_spoils_no_accumulated_gradient():
    class SkipStep(Callback):
        run_after, n = (GradientAccumulation,), 0

        def before_step(self, learn):
            self.n += 1
            if self.n == 1: raise CancelStepException
    show = Show()
    Learner(*minus_two(), F.mse_loss, SGD, 0., cbs=[GradientAccumulation(2), SkipStep(), show]).fit(1)
    assert [g.tolist() for g in show.grads] == [[-2.], [-2.]]  # of the batches 0 to 2, and of the last


@pytest.mark.parametrize("exception", [CancelBatchException, CancelTrainException])
@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss"])
def test_what_waits_is_stepped_though_the_last_batch_is_cancelled(event, exception):
    class Cancel(Callback):
        def act(self, learn):
            if learn.training and learn.iter == 3: raise exception
    setattr(cancel := Cancel(), event, cancel.act)
    show, clip = Show(), GradientClip(max_norm=1.)
    learn = Learner(*minus_two(), F.mse_loss, SGD, .1, cbs=[GradientAccumulation(2), cancel, show, clip])
    learn.fit(1)
    assert [g.tolist() for g in show.grads][0] == [-2.] and len(show.grads) == 2
    # clipped to .1 each
    assert learn.model.weight.item() == pytest.approx(.2) and clip.norm.item() == pytest.approx(1.8)
    assert learn.model.weight.grad is None


@pytest.mark.parametrize("exception, n_steps", [(CancelTrainException, 1), (CancelEpochException, 1), (ValueError, 1)])
def test_nothing_is_stepped_at_the_end_where_nothing_may_be(exception, n_steps):
    "A gradient that was dropped, an epoch or fit that is over."
    class Stop(Callback):
        event = "after_backward" if exception is CancelTrainException else "before_batch"

        def act(self, learn):
            if learn.training and learn.iter == 3: raise exception
    setattr(stop := Stop(), Stop.event, stop.act)
    show = Show()
    try: Learner(*minus_two(), F.mse_loss, SGD, .1, cbs=[GradientAccumulation(2), stop, show]).fit(1)
    except ValueError: pass
    assert len(show.grads) == n_steps


def test_a_loader_with_fewer_batches_than_it_said():
    line, dls = minus_two()
    batches, show = list(dls.train)[:3], Show()
    dls.train = type("Short", (), {"__len__": lambda self: 5, "__iter__": lambda self: iter(batches)})()
    Learner(line, dls, F.mse_loss, SGD, 0., cbs=[GradientAccumulation(2), show]).fit(1)
    assert [g.tolist() for g in show.grads] == [[-2.], [-2.]]


KINDS = {"SGD": SGD, "momentum": partial(SGD, momentum=.9), "nesterov": partial(SGD, momentum=.9, nesterov=True),
         "Adam": Adam, "AdamW": AdamW, "LAMB": LAMB, "torch's Adam": torch.optim.Adam,
         "torch's AdamW": torch.optim.AdamW, "torch's SGD": torch.optim.SGD,
         "a partial stepper": partial(Optimizer, steppers=[partial(sgd_step)])}


@pytest.mark.parametrize("saved", list(KINDS))
def test_only_the_same_kind_of_optimizer_is_loaded(saved, tmp_path):
    a = learner(opt=KINDS[saved], lr=.01)
    a.fit(1)
    a.save(tmp_path / "saved")
    for name, kind in KINDS.items():
        b = learner(opt=kind, lr=.01)
        if name == saved: b.load(tmp_path / "saved")
        else:
            with pytest.raises(ValueError, match="another optimizer"): b.load(tmp_path / "saved")
            assert b.opt is None


def test_a_state_of_other_groups_is_refused(tmp_path):
    "Of groups as long as these, and of parameters with the same shapes."
    def make(order):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
        return Learner(net, loaders(), F.mse_loss, OPTIMIZERS["SGD"],
                       splitter=lambda m: [list(m[i].parameters()) for i in order])
    a = make((0, 1, 2))
    a.fit(1)
    a.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="parameter 0 of group 0 is model.0.weight there and model.1.weight here"):
        make((1, 0, 2)).load(tmp_path / "saved")
    make((0, 1, 2)).load(tmp_path / "saved")


@pytest.mark.parametrize("cycle", [lambda opt: lr_scheduler.OneCycleLR(opt, .1, total_steps=7),
                                   lambda opt: lr_scheduler.CyclicLR(opt, .01, .1, step_size_up=3)])
def test_schedulers_that_turn_the_momentum(cycle, tmp_path):
    "A file written in the middle of a fit can be loaded, and after it the momentum is as before."
    learn = learner(opt="torch's SGD", cbs=[LRScheduler(cycle)])
    learn.fit(1, cbs=[SaveBest(tmp_path / "middle")])
    assert {group["momentum"] for group in learn.opt.param_groups} == {.9}
    learn.save(tmp_path / "saved")
    for name in ("middle", "saved"): learner(opt="torch's SGD").load(tmp_path / name)


class EveryOther(Callback):
    "Validates after every second epoch."
    def __init__(self, event="before_validate"): setattr(self, event, self.skip)

    def skip(self, learn):
        if not learn.training and learn.epoch % 2 == 0: raise CancelValidateException


@pytest.mark.parametrize("event", ["before_validate", "after_loss"])
def test_epochs_without_a_validation_are_passed_over(event, tmp_path, capsys):
    best, stopping = SaveBest(tmp_path / "best"), EarlyStopping(patience=3, min_delta=1e9)
    learn = learner(cbs=[EveryOther(event), CSVLogger(tmp_path / "log.csv"), best, stopping], metrics=[mean_abs])
    learn.fit(6)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["valid_loss"] != "" for row in rows] == [row["mean_abs"] != "" for row in rows] == [False, True] * 3
    assert best.best == min(float(row["valid_loss"]) for row in rows[1::2]) and stopping.waited == 2
    learn.fit(10)  # 3 validations without anything better than the first
    assert learn.epochs_done == 6 + 8


def mean_abs(pred, y): return (pred - y).abs().mean()


def test_a_name_that_is_no_result_is_still_an_error(tmp_path):
    with pytest.raises(ValueError, match="watches 'nonsense_loss'"):
        learner(cbs=[EarlyStopping("nonsense_loss")]).fit(1)


@pytest.mark.parametrize("where", ["model", "loaders"])
def test_a_load_that_fails_on_the_way_changes_nothing(where, tmp_path):
    class Balky(nn.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)
            raise RuntimeError("no")

    class Stuck:
        def __init__(self): self.x, self.y = data(8)
        def __len__(self): return 1
        def __iter__(self): return iter([(self.x, self.y)])
        epoch = property(lambda self: 3, lambda self, value: 1 / 0)

    def make():
        torch.manual_seed(0)
        dls = SimpleNamespace(train=Stuck(), valid=None) if where == "loaders" else loaders()
        return Learner(nn.Sequential(nn.Linear(3, 3), (Balky if where == "model" else nn.Linear)(3, 1)), dls,
                       F.mse_loss, OPTIMIZERS["Adam"])
    a, b = make(), make()
    for learn, n in ((a, 2), (b, 1)): learn.fit(n)
    a.save(tmp_path / "saved")
    before = state(b)
    with pytest.raises((RuntimeError, ZeroDivisionError)): b.load(tmp_path / "saved")
    assert_equal_states(before, state(b))


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name], name


def test_a_file_of_another_type_of_numbers_is_refused(tmp_path):
    a = learner()
    a.model.double()
    a.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="float64.*there and.*float32.*here"): learner().load(tmp_path / "saved")


def test_a_loss_with_parameters_is_saved_with_the_model(tmp_path):
    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, pred, y): return F.mse_loss(pred, y) * torch.exp(-self.w) + self.w

    def make():
        loss = Weighed()
        return Learner(model("plain"), loaders(), loss,
                       lambda groups: torch.optim.SGD([*groups, {"params": [loss.w]}], lr=.1))
    whole, first, second = make(), make(), make()
    whole.fit(5)
    first.fit(2)
    first.save(tmp_path / "saved")
    second.load(tmp_path / "saved")
    second.fit(3)
    assert (torch.equal(second.loss_func.w, whole.loss_func.w)
            and torch.equal(second.model[0].weight, whole.model[0].weight))


class Extra(nn.Linear):
    "With a state that is no tensor."
    def get_extra_state(self):
        return {"calls": self.calls, "mean": torch.ones(2)} if isinstance(self.calls, int) else self.calls
    def set_extra_state(self, state): self.calls = state["calls"]
    calls = 0


def test_an_extra_state_is_saved_or_refused(tmp_path):
    def make(): return Learner(nn.Sequential(Extra(3, 1)), loaders(), F.mse_loss, OPTIMIZERS["SGD"])
    a, b = make(), make()
    a.model[0].calls = 7
    a.save(tmp_path / "saved")
    b.load(tmp_path / "saved")
    assert b.model[0].calls == 7
    a.model[0].calls = object()
    with pytest.raises(ValueError, match="without pickle"): a.save(tmp_path / "saved")


def test_a_compiled_model_has_the_groups_and_the_file_of_the_plain_one(tmp_path):
    plain, compiled = learner(), learner()
    compiled.model = torch.compile(compiled.model, backend="eager")
    assert [len(group) for group in compiled.groups] == [len(group) for group in plain.groups]
    compiled.freeze()
    assert [p.requires_grad for p in compiled.model.parameters()] == [False] * 4 + [True] * 2
    compiled.unfreeze()
    for learn in (plain, compiled):
        seed()
        learn.fit(1)
    compiled.save(tmp_path / "saved")
    fresh = learner()
    fresh.load(tmp_path / "saved")
    assert_equal_states(flat(fresh.model.state_dict()), flat(plain.model.state_dict()))
    compiled.load(tmp_path / "saved")


def test_a_line_that_a_crash_cut_short_stays_alone(tmp_path):
    path = tmp_path / "log.csv"
    learner(cbs=[CSVLogger(path)]).fit(1)
    with path.open("a") as file: file.write("2,0.4")
    learner(cbs=[CSVLogger(path, append=True)]).fit(1)
    rows = list(csv.reader(path.open(newline="")))
    assert [len(row) for row in rows] == [4, 4, 2, 4] and rows[3][0] == "1"


@pytest.mark.parametrize("exception", [KeyboardInterrupt, CancelTrainException])
def test_accumulation_that_never_began_has_nothing_to_say(exception):
    class Early(Callback):
        def before_train(self, learn): raise exception
    show = Show()
    learn = Learner(*minus_two(), F.mse_loss, SGD, .1, cbs=[Early(), GradientAccumulation(2), show])
    try: learn.fit(1)
    except KeyboardInterrupt as error: assert not any("And then" in note for note in error.__notes__)
    assert show.grads == []


def small_images(n=640, n_valid=150):
    "Random images, of which the mean tells the class, well enough for a net to learn something."
    generator = torch.Generator().manual_seed(2)
    y = torch.randint(10, (n + n_valid,), generator=generator)
    x = torch.randn(len(y), 1, 28, 28, generator=generator) + y[:, None, None, None] / 4
    return DataLoaders(TensorLoader(x[:n], y[:n], 64), TensorLoader(x[n:], y[n:], 100))


def spoken(explorer): return html.unescape(re.sub("<[^>]*>", "", explorer._line.value))


@pytest.fixture(scope="module")
def ablating(): return ablation_explorer(small_images())


@pytest.mark.parametrize("lr", [.01, .3, 10.])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("accumulate", [True, False])
def test_the_live_ablation_over_the_whole_range_of_its_controls(ablating, lr, clip, accumulate):
    state = ablating.set(lr=lr, clip=clip, accumulate=accumulate)
    assert (state["lr"], state["clip"], state["accumulate"], state["cbs"]) == (lr, clip, accumulate, clip + accumulate)
    said = re.fullmatch(r"lr (\S+), (\d) callback(s?) in the list: loss (\S+) after (\d+) step(s)?"
                        r"(; there it became NaN and was stopped)?; (\d+)% of 150 validation images are right\.",
                        spoken(ablating))
    assert said, spoken(ablating)
    rate, n, plural, loss, step, _, stopped, percent = said.groups()
    assert float(rate) == pytest.approx(lr, rel=5e-3) and int(n) == state["cbs"] and (plural == "") == (n == "1")
    assert loss == f"{state['loss']:.2f}" and int(step) == state["step"] and bool(stopped) == (state["step"] < 100)
    assert int(percent) == round(100 * state["accuracy"]) and 0 <= state["accuracy"] <= 1


def test_the_live_ablation_counts_in_words(ablating):
    state = {**ablating.state, "cbs": 1, "step": 1, "accuracy": math.nan}
    assert "1 callback in" in ablating.words(state) and "after 1 step." in ablating.words(state)


def test_the_live_ablation_does_not_grow(ablating, monkeypatch):
    "Runs of old lists are forgotten, and their recorders and learners with them, without a search for garbage."
    with learners_made(monkeypatch, "course_lib.figures.callbacks", ablating) as alive:
        for lr in (.02, .03, .04, .05, .06, .07): ablating.set(lr=lr)
        assert len(alive) == 6 and sum(ref() is not None for ref in alive) <= 1
    kept = inspect.getclosurevars(ablating.f).nonlocals
    assert len(kept["earlier"]) == 1 and len(kept["reached"]) <= 12
