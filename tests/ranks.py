"""What ranks do in the tests of chapter 17: torchrun starts this file, and every check runs on every rank.

    ranks.py FOLDER NAME...     what a check says of a rank, "ok" or a traceback, goes to FOLDER/NAME.RANK
"""
import contextlib
import copy
import math
import os
import resource
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from course_lib import (
    SGD, Adam, AdamW, BatchNorm1d, Callback, CancelBatchException, CancelStepException, Dropout, EarlyStopping,
    GradientAccumulation, GradientClip, Learner, MixedPrecision, Recorder, SaveBest, TensorLoader, TerminateOnNaN,
    accuracy, sweep)
from course_lib.scaling_out import (
    AverageGradients, DiLoCo, LocalSGD, PowerSGD, ShardedLoader, distributed, load_sharded, ring_bytes, save_sharded,
    sharded_sweep)
from course_lib.sgd import seeded
from course_lib.support import scaling_out as support
from course_lib.support.scaling_out import Group, RankError
from tiny import data

F64, CHECKS, PATIENCE = torch.float64, {}, 20.
ALONE = Group(0, 1, torch.device("cpu"))
OPTIMIZERS = {"sgd": (partial(SGD, momentum=.9), partial(torch.optim.SGD, momentum=.9)),
              "adam": (Adam, torch.optim.Adam), "adamw": (AdamW, torch.optim.AdamW)}


def check(function):
    CHECKS[function.__name__] = function
    return function


def net(seed=0, dtype=F64, width=5):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def wide(seed=0):
    "One with weights that are worth an approximation of rank 2: `[20, 16]`, and of rank 1: `[16, 3]`."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 1)).double()


def loader(n=40, batch_size=12, dtype=F64, seed=1, shuffle=True, device="cpu"):
    return TensorLoader(*(part.to(device, dtype) for part in data(n, seed)), batch_size, shuffle=shuffle)


def learner(place, model, opt_func=SGD, cbs=(), train=None, valid=None, lr=.1, loss_func=F.mse_loss, **options):
    "A learner whose loaders are this rank's shards."
    shard = lambda dl: dl and ShardedLoader(dl, place.rank, place.size)
    dls = SimpleNamespace(train=shard(train or loader()), valid=shard(valid))
    return Learner(model, dls, loss_func, opt_func, lr, cbs=cbs, **options)


def reference(model, batches, opt_func=torch.optim.SGD, epochs=1, lr=.1, accumulate=1, clip=None, loss_func=F.mse_loss):
    "One process in plain torch: the mean over the rows of `accumulate` batches, and of what is left at an epoch's end."
    opt = opt_func([p for p in model.parameters()], lr=lr)
    for _ in range(epochs):
        waiting = []
        for i, batch in enumerate(batches, 1):
            waiting.append(batch)
            if len(waiting) < accumulate and i < len(batches): continue
            n = sum(len(y) for _, y in waiting)
            for x, y in waiting: (loss_func(model(x), y) * len(y) / n).backward()
            if clip: nn.utils.clip_grad_norm_(model.parameters(), clip)
            opt.step()
            opt.zero_grad()
            waiting = []
    return model


def whole(tensor): return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def assert_same(mine, theirs, tolerance=1e-12):
    theirs = dict(theirs.named_parameters())
    for name, p in mine.named_parameters():
        q = theirs[name]
        torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=tolerance, atol=tolerance,
                                   msg=lambda text: f"{name}: {text}")


def gathered(value):
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def assert_alike(model):
    "Bit for bit the same on all ranks."
    mine = {name: t.detach().clone() for name, t in model.state_dict().items()}
    for other in gathered(mine):
        for name, t in mine.items(): assert torch.equal(t, other[name]), f"ranks differ in {name}"


def sets():
    "Rows and batch sizes: even halves; halves that differ; a last batch of one row, of which one rank has none."
    return [(40, 12), (40, 7), (29, 7), (3, 2)]


# Averages of gradients

@check
def equals_one_process(place, folder):
    for ours, theirs in OPTIMIZERS.values():
        for n, batch_size in sets():
            learn = learner(place, net(place.rank), ours, [AverageGradients()], loader(n, batch_size))  # other weights
            learn.fit(2)
            learn.fit(1)
            assert_same(learn.model, reference(net(0), loader(n, batch_size), theirs, 3))
            assert_alike(learn.model)


@check
def float32_equals_one_process(place, folder):
    f32 = torch.float32
    learn = learner(place, net(dtype=f32), cbs=[AverageGradients()], train=loader(dtype=f32))
    learn.fit(3)
    assert_same(learn.model, reference(net(dtype=f32), loader(dtype=f32), epochs=3), 1e-6)


@check
def all_begin_with_the_weights_and_buffers_of_rank_0(place, folder):
    model = nn.Sequential(net(place.rank), BatchNorm1d(1).double())
    model[1].running_mean.fill_(place.rank + 3.)
    learn = learner(place, model, cbs=[AverageGradients()], lr=0.)

    class Look(Callback):
        run_after = (AverageGradients,)

        def before_fit(self, learn):
            self.mean = learn.model[1].running_mean.clone()
            assert_same(learn.model[0], net(0), 0)
    look = Look()
    learn.fit(1, cbs=[look])
    assert look.mean.item() == 3


@check
def a_mean_and_no_sum(place, folder):
    "gloo has summed where a mean was asked for."
    class Look(Callback):
        run_after, grads = (AverageGradients,), ()
        def before_step(self, learn): self.grads = [p.grad.clone() for p in learn.model.parameters()]
    look, train = Look(), loader(12, 12)
    learner(place, net(), cbs=[AverageGradients(), look], train=train).fit(1)
    model, (x, y) = net(), next(iter(loader(12, 12)))
    F.mse_loss(model(x), y).backward()
    for mine, p in zip(look.grads, model.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-12, atol=1e-15)


@check
def frozen_and_unused_parameters(place, folder):
    model, theirs = net(), net()
    for part in (model, theirs): part[0].weight.requires_grad_(False)
    learn = learner(place, model, Adam, [AverageGradients()])
    learn.fit(2)
    assert_same(model, reference(theirs, loader(), torch.optim.Adam, 2))
    assert model[0].weight.grad is None and torch.equal(model[0].weight, net()[0].weight)

    class Branches(nn.Module):
        "The second branch runs only where a batch holds a large number; the third never."
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = net(0), net(1), net(2)

        def forward(self, x):
            large = x[:, 0] > 1.5
            out = self.first(x)
            return out.index_add(0, large.nonzero()[:, 0], self.second(x[large])) if large.any() else out
    train = loader(40, 6, shuffle=False)
    halves = [[bool((part[:, 0] > 1.5).any()) for part in x.tensor_split(place.size)] for x, _ in train]
    assert any(len({*has}) > 1 for has in halves) and any(not any(has) for has in halves)  # on some ranks, and on none
    learn = learner(place, Branches(), Adam, [AverageGradients()], train)
    learn.fit(2)
    assert_same(learn.model, reference(Branches(), train, torch.optim.Adam, 2))
    assert_alike(learn.model)


@check
def sparse_gradients(place, folder):
    def made():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(6, 3, sparse=True), nn.Flatten(), nn.Linear(6, 1)).double()
    x, y = torch.arange(40).remainder(6).view(20, 2), torch.arange(20.).view(20, 1).to(F64)
    dense = made()
    dense[0].sparse = False
    learn = learner(place, made(), cbs=[AverageGradients()], train=TensorLoader(x, y, 5), lr=.01)
    learn.fit(2)
    assert_same(learn.model, reference(dense, TensorLoader(x, y, 5), epochs=2, lr=.01))


@check
def accumulation_sends_once_a_step(place, folder):
    for (n, batch_size), n_batches in [(s, k) for s in sets() for k in (2, 3)]:
        cb = AverageGradients()
        learn = learner(place, net(), Adam, [cb, GradientAccumulation(n_batches)], loader(n, batch_size))
        learn.fit(2)
        assert_same(learn.model, reference(net(), loader(n, batch_size), torch.optim.Adam, 2, accumulate=n_batches))
        steps = 2 * math.ceil(math.ceil(n / batch_size) / n_batches)
        n_bytes = sum(p.nbytes for p in net().parameters())
        assert steps * ring_bytes(n_bytes, place.size) <= cb.sent < steps * ring_bytes(n_bytes + 300, place.size) + 1000


@check
def clipping_sees_the_mean(place, folder):
    for cbs in ([GradientClip(max_norm=.05), AverageGradients()], [AverageGradients(), GradientClip(max_norm=.05)]):
        learn = learner(place, net(), cbs=cbs)
        learn.fit(2)
        assert_same(learn.model, reference(net(), loader(), epochs=2, clip=.05), 1e-5)  # ours divides by norm + 1e-6
        assert_alike(learn.model)


@check
def cancelled_batches_and_steps(place, folder):
    class Skip(Callback):
        def __init__(self, event, error): setattr(self, event, partial(self.act, error))
        def act(self, error, learn):
            if learn.training and learn.iter == 1: raise error
    for event, error in (("after_pred", CancelBatchException), ("after_backward", CancelBatchException),
                         ("after_loss", CancelStepException)):
        learn = learner(place, net(), cbs=[Skip(event, error), AverageGradients()])
        learn.fit(2)
        theirs, train = net(), loader()
        for _ in range(2): theirs = reference(theirs, [b for i, b in enumerate(train) if i != 1])
        assert_same(learn.model, theirs)


@check
def results_are_those_of_the_whole(place, folder):
    "Losses and metrics of all rows, none counted twice; also where a rank has no row of a batch."
    def mean_error(pred, targets): return (pred - targets).abs().mean()
    for n, batch_size in [*sets(), (1, 4)]:
        valid = loader(n, batch_size, seed=2, shuffle=False)
        options = {"train": loader(29, 7), "valid": valid, "metrics": [mean_error]}
        together = learner(place, net(), cbs=[AverageGradients()], **options)
        alone = learner(ALONE, net(), cbs=[Recorder()], **{**options, "train": loader(29, 7)})
        for learn in (together, alone): learn.fit(2)
        assert together.results.keys() == alone.results.keys()
        for found, right in ((together.results, alone.results), (together.validate(), alone.validate())):
            for name, value in right.items(): assert math.isclose(found[name], value, rel_tol=1e-9), (name, n, found)


@check
def a_classifier_with_a_rank_without_rows(place, folder):
    x, y = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=F64), torch.arange(9) % 4
    made = lambda: nn.Sequential(net(), nn.Linear(1, 4).double())
    train = lambda: TensorLoader(x, y, 4)
    torch.manual_seed(0)
    model = made()
    theirs, alone = copy.deepcopy(model), copy.deepcopy(model)
    learn = learner(place, model, cbs=[AverageGradients()], train=train(), valid=train(), loss_func=F.cross_entropy,
                    metrics=[accuracy])
    learn.fit(3)
    assert_same(model, reference(theirs, train(), epochs=3, loss_func=F.cross_entropy))
    alone = learner(ALONE, alone, train=train(), valid=train(), loss_func=F.cross_entropy, metrics=[accuracy])
    alone.fit(3)
    assert math.isclose(learn.results["accuracy"], alone.results["accuracy"], rel_tol=1e-9)


@check
def what_is_recorded(place, folder):
    recorder = Recorder()
    learner(place, net(), cbs=[AverageGradients(), recorder], train=loader(29, 7)).fit(2)
    assert len(recorder.losses) == 10 and all(math.isfinite(loss) for loss in recorder.losses)


@check
def random_masks_differ_and_weights_do_not(place, folder):
    "Where each rank has a seed of its own, which decides the first weights too: all begin with rank 0's."
    class Masks(Callback):
        def __init__(self): self.seen = []
        def after_pred(self, learn): self.seen.append(learn.model[0][1].last)

    class Spy(nn.Module):
        def forward(self, x):
            self.last = (x == 0).tolist()
            return x
    torch.manual_seed(place.rank)
    model, masks = nn.Sequential(nn.Sequential(Dropout(.5), Spy()), net(place.rank)), Masks()
    learn = learner(place, model, cbs=[AverageGradients(), masks], train=loader(40, 8))
    learn.fit(2)
    assert_alike(model)
    seen = gathered(masks.seen)
    assert any(a != b for a, b in zip(seen[0], seen[1]))


@check
def batchnorm_stays_alike(place, folder):
    torch.manual_seed(0)
    for norm in (BatchNorm1d, nn.BatchNorm1d):
        model = nn.Sequential(nn.Linear(3, 5), norm(5), nn.Tanh(), nn.Linear(5, 1)).double()
        learn = learner(place, model, cbs=[AverageGradients()], train=loader(40, 8), valid=loader(10, 5, seed=2))
        learn.fit(2)
        learn.validate()
        assert_alike(model)
        # one process with the statistics of each half: the mean over ranks of what each has seen
        assert learn.model[1].num_batches_tracked == 10


@check
def ddp_in_the_learner(place, folder):
    learn = learner(place, DistributedDataParallel(net()), Adam)
    learn.fit(2)
    ours = learner(place, net(), Adam, [AverageGradients()], loader(40, 12))
    ours.fit(2)
    assert_same(learn.model.module, ours.model)


@check
def a_loader_of_torch(place, folder):
    from torch.utils.data import DataLoader, TensorDataset
    made = lambda: DataLoader(TensorDataset(*(part.double() for part in data(29))), 7, shuffle=True,
                              generator=torch.Generator().manual_seed(3))
    learn = learner(place, net(), Adam, [AverageGradients()], made())
    learn.fit(2)
    assert_same(learn.model, reference(net(), made(), torch.optim.Adam, 2))


@check
def sixteen_bits_inside(place, folder):
    "MixedPrecision unscales what has been averaged: an overflow of one rank is one of all, and all skip the step."
    made = lambda: net(dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        train = loader(48, 12, dtype=torch.float32)
        mixed = MixedPrecision(dtype)
        learn = learner(place, made(), Adam, [mixed, AverageGradients()], train, loss_func=as_floats, lr=.01)
        learn.fit(2)
        assert_alike(learn.model)
        assert_same(learn.model, reference(made(), train, torch.optim.Adam, 2, .01, loss_func=as_floats), .2)
    recorded = gathered([p.isfinite().all().item() for p in learn.model.parameters()])
    assert all(all(rank) for rank in recorded)


def as_floats(pred, y): return F.mse_loss(pred.float(), y)


@check
def early_stopping_and_the_best_are_the_same_everywhere(place, folder):
    stop, best = EarlyStopping(patience=1), SaveBest(folder / f"best{place.rank}.safetensors")
    valid = loader(13, 5, seed=2)
    learn = learner(place, net(), cbs=[AverageGradients(), stop, best], train=loader(29, 7), valid=valid, lr=.6)
    learn.fit(12)
    assert len({*gathered(learn.epochs_done)}) == 1 and len({*gathered(best.best)}) == 1
    assert_alike(learn.model)


# Buckets

@contextlib.contextmanager
def buckets_of(n_bytes):
    before = support.BUCKET_BYTES
    support.BUCKET_BYTES = n_bytes
    try: yield
    finally: support.BUCKET_BYTES = before


class Seen(AverageGradients):
    "Notes which bucket leaves, by its parameters' shapes, and whether backward is still under way."
    def __init__(self):
        super().__init__()
        self.seen, self.under_way = [], False

    def before_backward(self, learn):
        super().before_backward(learn)
        self.under_way = True

    def after_backward(self, learn):
        super().after_backward(learn)
        self.under_way = False

    def send(self, bucket):
        super().send(bucket)
        self.seen.append(([tuple(p.shape) for p in bucket.params], self.under_way))


def hooks_of(model): return sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


@check
def buckets_leave_while_backward_runs(place, folder):
    "The last layer first, in the same order on all ranks; under accumulation before the step, once."
    with buckets_of(1):
        learn = learner(place, net(), cbs=[cb := Seen()])
        learn.fit(1)
        shapes = [[tuple(p.shape)] for p in net().parameters()][::-1]
        assert cb.seen == [(part, True) for part in shapes] * 4 and hooks_of(learn.model) == 0 and not cb.buckets
        assert all(seen == cb.seen for seen in gathered(cb.seen))
        learner(place, net(), cbs=[cb := Seen(), GradientAccumulation(2)]).fit(1)
        assert cb.seen == [(part, False) for part in shapes] * 2
    learner(place, net(), cbs=[cb := Seen()]).fit(1)
    assert [len(part) for part, _ in cb.seen] == [6] * 4           # all fit into one bucket


@check
def many_small_buckets(place, folder):
    "What holds of one bucket: uneven rows, frozen and unused parameters, sparse ones, clipping, cancelled batches."
    with buckets_of(1):
        for each in (equals_one_process, frozen_and_unused_parameters, sparse_gradients, accumulation_sends_once_a_step,
                     clipping_sees_the_mean, cancelled_batches_and_steps, a_classifier_with_a_rank_without_rows,
                     sixteen_bits_inside): each(place, folder)


@check
def a_layer_used_twice(place, folder):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.twice, self.last = net()[0], nn.Linear(5, 5).double(), nn.Linear(5, 1).double()

        def forward(self, x): return self.last(self.twice(self.twice(self.first(x).tanh()).tanh()))
    for n_bytes in (1, 2 ** 20):
        with buckets_of(n_bytes):
            learn = learner(place, seeded(0, Twice), Adam, [AverageGradients()], loader(40, 7))
            learn.fit(2)
        assert_same(learn.model, reference(seeded(0, Twice), loader(40, 7), torch.optim.Adam, 2))


@check
def what_changes_after_it_has_left_is_sent_again(place, folder):
    "On all ranks, or on one; in place, as another tensor, or by a second backward."
    def scaled(p): p.grad *= 2
    def replaced(p): p.grad = 2 * p.grad
    for act in (scaled, replaced):
        for only in (None, 1):
            class Doubles(Callback):
                def after_backward(self, learn):
                    if only not in (None, place.rank): return
                    for p in list(learn.model.parameters())[::2]: act(p)
            class Look(Callback):
                run_after, grads = (AverageGradients,), ()
                def before_step(self, learn): self.grads = [p.grad.clone() for p in learn.model.parameters()]
            for n_bytes in (1, 2 ** 20):
                with buckets_of(n_bytes):
                    cbs = [look := Look(), AverageGradients(), Doubles()]
                    learner(place, net(), cbs=cbs, train=loader(12, 12)).fit(1)
                model, (x, y) = net(), next(iter(loader(12, 12)))
                parts = []
                for rank in range(place.size):
                    xr, yr = (part.tensor_split(place.size)[rank] for part in (x, y))
                    F.mse_loss(model(xr), yr).backward()
                    factors = [2, 1] * 3 if only in (None, rank) else [1] * 6
                    parts.append([factor * p.grad for factor, p in zip(factors, model.parameters())])
                    model.zero_grad()
                share = [len(part) / 12 for part in y.tensor_split(place.size)]
                for mine, *grads in zip(look.grads, *parts, strict=True):
                    right = sum(m * grad for m, grad in zip(share, grads))
                    torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-15)

    class Again(Callback):
        def after_backward(self, learn): F.mse_loss(learn.model(learn.xb), learn.yb).backward()
    learn = learner(place, net(), cbs=[AverageGradients(), Again()], train=loader(48, 12), lr=.05)
    learn.fit(2)
    assert_same(learn.model, reference(net(), loader(48, 12), epochs=2, lr=.1))


@check
def several_backwards_before_a_step(place, folder):
    "A callback of one's own that cancels every other step: gradients add up, and what had left is not used."
    class EveryOther(Callback):
        run_before = (AverageGradients,)

        def before_step(self, learn):
            if learn.iter % 2 == 0: raise CancelStepException
    for n_bytes in (1, 2 ** 20):
        with buckets_of(n_bytes):
            learn = learner(place, net(), cbs=[EveryOther(), AverageGradients()], train=loader(48, 12))
            learn.fit(2)
        opt = torch.optim.SGD((model := net()).parameters(), lr=.1)
        batches = loader(48, 12)
        for i, (x, y) in enumerate([batch for _ in range(2) for batch in batches]):
            F.mse_loss(model(x), y).backward()
            if i % 2: opt.step()
            if i % 2: opt.zero_grad()
        assert_same(learn.model, model)
        assert_alike(learn.model)


class Breaks(torch.autograd.Function):
    "Nothing on the way there; an error on the way back, if so wanted."
    @staticmethod
    def forward(ctx, x, broken):
        ctx.broken = broken
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.broken: raise ValueError("a broken backward")
        return grad, None


class Broken(nn.Module):
    "Fails in backward, after some gradients are finished, on these ranks as long as `.ranks` says so."
    def __init__(self, rank, ranks):
        super().__init__()
        self.net, self.rank, self.ranks = net(), rank, ranks

    def forward(self, x): return self.net[2:](Breaks.apply(self.net[:2](x), self.rank in self.ranks))


@check
def an_error_in_backward_leaves_nothing(place, folder):
    "On one rank, or on all: an error for all within seconds, no hooks, no messages. They can train right after it."
    for ranks in ({1}, {0}, {*range(place.size)}):
        for n_bytes in (1, 2 ** 20):
            with buckets_of(n_bytes):
                began, cb = time.monotonic(), AverageGradients()
                learn = learner(place, Broken(place.rank, ranks), cbs=[cb])
                error, words = (ValueError, "a broken backward") if place.rank in ranks else (RankError, "has failed")
                with pytest.raises(error, match=words): learn.fit(1)
                assert time.monotonic() - began < PATIENCE / 2
                assert hooks_of(learn.model) == 0 and not cb.buckets and not cb.waiting
                for p in learn.model.parameters(): p.grad = None
                learn.model.ranks, learn.dls.train.epoch = (), 0
                learn.fit(2)
                assert_same(learn.model.net, reference(net(), loader(), epochs=2))


@check
def one_rank_drops_a_batch(place, folder):
    "All are told, and no message is left on its way."
    for event, error in (("after_backward", CancelBatchException), ("before_step", CancelStepException)):
        class Drops(Callback):
            run_before = (AverageGradients,)
        def drop(self, learn, error=error):
            if place.rank == 1 and learn.training and learn.iter == 1: raise error
        setattr(Drops, event, drop)
        for n_bytes in (1, 2 ** 20):
            with buckets_of(n_bytes), pytest.raises(RankError, match="makes no step"):
                learner(place, net(), cbs=[Drops(), AverageGradients()]).fit(1)
    learn = learner(place, net(), cbs=[AverageGradients()])
    learn.fit(2)
    assert_same(learn.model, reference(net(), loader(), epochs=2))


# Messages

def in_ddp(model, place, batches, hook=None, state=None, epochs=1, lr=.1):
    model = DistributedDataParallel(model)
    if hook: model.register_comm_hook(state, hook)
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(epochs):
        for x, y in ShardedLoader(batches, place.rank, place.size):
            F.mse_loss(model(x), y).backward()
            opt.step()
            opt.zero_grad()
    return model.module


@check
def bytes_are_those_of_a_ring(place, folder):
    n_bytes, n = sum(p.nbytes for p in net().parameters()), place.size
    count = ring_bytes(8 * (n + 2 + len([*net().parameters()])), n)  # who is where, rows, and who has gradients
    for dtype, share in ((None, 1), (torch.float16, 4), (torch.bfloat16, 4)):
        cb = AverageGradients() if dtype is None else AverageGradients(dtype)
        learner(place, net(), cbs=[cb], train=loader(48, 12)).fit(2)
        assert abs(cb.sent - 8 * ring_bytes(n_bytes / share, n) - 18 * count) <= 20  # twice a step; 2 ends of an epoch
    for cb, meetings in ((LocalSGD(2), 4), (LocalSGD(4), 2), (LocalSGD(8), 2), (DiLoCo(2), 4)):
        learner(place, net(), cbs=[cb], train=loader(48, 12)).fit(2)
        assert abs(cb.sent - meetings * ring_bytes(n_bytes, n) - (meetings + 2) * count) <= 8
    cb = PowerSGD(rank=1)
    learner(place, wide(), cbs=[cb], train=loader(48, 12)).fit(2)
    small = lambda p: p.ndim > 1 and 2 * sum(p.shape) < p.numel()
    factors = sum(8 * (sum(p.shape) if small(p) else p.numel()) for p in wide().parameters())
    assert 2 * factors < sum(p.nbytes for p in wide().parameters())
    assert abs(cb.sent - 8 * ring_bytes(factors, n) - 10 * count) <= 40
    assert (ring_bytes(100, 2), ring_bytes(100, 4), ring_bytes(0, 3), ring_bytes(7, 1)) == (100, 150, 0, 0)


@check
def sixteen_bits_as_torchs_hooks(place, folder):
    f32 = torch.float32
    for dtype, hook in ((torch.float16, default_hooks.fp16_compress_hook),
                        (torch.bfloat16, default_hooks.bf16_compress_hook)):
        batches = loader(48, 12, dtype=f32)
        learn = learner(place, net(dtype=f32), cbs=[AverageGradients(dtype)], train=loader(48, 12, dtype=f32))
        learn.fit(1)
        theirs = in_ddp(net(dtype=f32), place, batches, hook)
        assert_same(learn.model, theirs, 1e-6)                    # halves by a power of two: no rounding differs
        assert_alike(learn.model)
        exact = in_ddp(net(dtype=f32), place, loader(48, 12, dtype=f32))
        assert any((p - q).abs().max() > 1e-6 for p, q in zip(learn.model.parameters(), exact.parameters()))


@check
def power_sgd_as_torchs_hook(place, folder):
    "torch's: at least two steps of plain averages first, then from the same first factors."
    for rank in (1, 2):
        first = {}

        def hook(state, bucket):
            if state.iter == 2 and not first:                     # the draws that come, in the bucket's order
                generator_state = copy.deepcopy(state.rng)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(generator_state.randint(1_000_000_000))
                    for p in bucket.parameters():
                        n, m = (len(p), p[0].numel()) if p.ndim > 1 else (1, 1)
                        if (n + m) * rank * 2 < n * m: first[tuple(p.shape)] = torch.randn(1, m, rank, dtype=F64)[0]
            return powerSGD_hook(state, bucket)
        state = PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
        theirs = in_ddp(wide(), place, loader(24, 12), hook, state, epochs=8)
        assert first
        learn = learner(place, wide(), cbs=[AverageGradients()], train=loader(24, 12))
        learn.fit(1)
        cb = PowerSGD(rank=rank)
        cb.qs.update({p: first[tuple(p.shape)] for p in learn.model.parameters() if tuple(p.shape) in first})
        learn.cbs = [cb]
        learn.fit(7)
        assert_same(learn.model, theirs, 1e-9)
        assert_alike(learn.model)


@check
def power_sgd_of_full_rank_is_the_mean(place, folder):
    "What is not worth it goes whole, and a gradient of low rank loses nothing."
    for n, batch_size in sets():
        learn = learner(place, net(), cbs=[PowerSGD(rank=5)], train=loader(n, batch_size))
        learn.fit(2)
        assert_same(learn.model, reference(net(), loader(n, batch_size), epochs=2))
    x = torch.outer(torch.arange(1., 37.), torch.tensor([1., 2., 3., 1., 2.])).double() / 36
    y = torch.ones(36, 4).double()
    made = lambda: seeded(0, lambda: nn.Linear(5, 20, bias=False)).double()
    loss = lambda pred, y: F.mse_loss(pred[:, :4], y)             # inputs along one line: a gradient of rank 1
    learn = learner(place, nn.Sequential(made()), cbs=[PowerSGD()], train=TensorLoader(x, y, 12), loss_func=loss)
    learn.fit(3)
    assert_same(learn.model, reference(nn.Sequential(made()), TensorLoader(x, y, 12), epochs=3, loss_func=loss), 1e-9)


@check
def power_sgd_with_uneven_rows_frozen_and_unused_parameters(place, folder):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.frozen = wide(0), wide(1), wide(2)
            self.frozen.requires_grad_(False)

        def forward(self, x): return self.used(x) + self.frozen(x)
    learn = learner(place, Two(), Adam, [PowerSGD(rank=1), GradientAccumulation(2)], loader(29, 7))
    learn.fit(3)
    assert_alike(learn.model)
    assert_same(learn.model.unused, wide(1), 0)
    assert all(math.isfinite(p.sum().item()) for p in learn.model.parameters())


# Less talk

def each_by_itself(place, epochs, every, batches, meet, opt_func=partial(torch.optim.SGD, momentum=.9), lr=.1):
    "All ranks in one process of plain torch; meet(models) at every so many steps, and at the end of an epoch."
    models = [net(0) for _ in range(place.size)]
    opts = [opt_func(model.parameters(), lr=lr) for model in models]
    for _ in range(epochs):
        since = 0
        for x, y in batches:
            for model, opt, xr, yr in zip(models, opts, x.tensor_split(place.size), y.tensor_split(place.size)):
                F.mse_loss(model(xr), yr).backward()
                opt.step()
                opt.zero_grad()
            since += 1
            if since == every:
                since = 0
                meet(models)
        if since: meet(models)
    return models[place.rank]


def mean_weights(models):
    with torch.no_grad():
        for parts in zip(*(model.parameters() for model in models)):
            mean = sum(parts) / len(parts)
            for p in parts: p.copy_(mean)


class OuterStep:
    "DiLoCo's meeting with torch's own Nesterov step."
    def __init__(self, lr, momentum):
        self.center = net(0)
        self.opt = torch.optim.SGD(self.center.parameters(), lr, momentum, nesterov=momentum > 0)

    def __call__(self, models):
        for parts, center in zip(zip(*(model.parameters() for model in models)), self.center.parameters()):
            center.grad = center.detach() - sum(p.detach() for p in parts) / len(parts)
        self.opt.step()
        for model in models: model.load_state_dict(self.center.state_dict())


@check
def local_sgd_and_diloco_as_by_hand(place, folder):
    ours, theirs = OPTIMIZERS["sgd"]
    for every in (1, 2, 3, 100):
        learn = learner(place, net(place.rank), ours, [LocalSGD(every)], loader(48, 12))
        learn.fit(2)
        assert_same(learn.model, each_by_itself(place, 2, every, loader(48, 12), mean_weights))
        assert_alike(learn.model)
    for every, lr, momentum in ((2, .7, .9), (3, .4, .5), (2, 1., 0.)):
        learn = learner(place, net(place.rank), Adam, [DiLoCo(every, lr, momentum)], loader(48, 12), lr=.01)
        learn.fit(3)
        theirs = each_by_itself(place, 3, every, loader(48, 12), OuterStep(lr, momentum), torch.optim.Adam, .01)
        assert_same(learn.model, theirs)
        assert_alike(learn.model)
    local = learner(place, net(), Adam, [LocalSGD(2)], loader(48, 12))
    local.fit(3)
    outer = learner(place, net(), Adam, [DiLoCo(2, lr=1., momentum=0.)], loader(48, 12))
    outer.fit(3)
    assert_same(local.model, outer.model)


@check
def local_sgd_of_every_step_is_the_average(place, folder):
    "With plain SGD and even parts."
    local = learner(place, net(), cbs=[LocalSGD(1)], train=loader(48, 12))
    local.fit(2)
    assert_same(local.model, reference(net(), loader(48, 12), epochs=2))


@check
def accumulated_local_steps(place, folder):
    "every counts steps, and no batches."
    cb = LocalSGD(2)
    learner(place, net(), cbs=[cb, GradientAccumulation(2)], train=loader(96, 12)).fit(1)
    n_bytes = sum(p.nbytes for p in net().parameters())
    assert 2 * ring_bytes(n_bytes, place.size) <= cb.sent < 2.5 * ring_bytes(n_bytes, place.size) + 500


@check
def the_simulation_is_what_two_processes_do(place, folder):
    "data/scaling_out.py, which measures over many seeds, against real ranks."
    sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
    import scaling_out as simulation
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(48, 784, generator=generator, dtype=F64), torch.arange(48) % 10
    for name, cb, way, lr in (
            ("all-reduce", AverageGradients(), simulation.AllReduce(), .05),
            ("accumulation", AverageGradients(), simulation.Accumulate(2), .05),
            ("local SGD", LocalSGD(2), simulation.Local(2), .05),
            ("DiLoCo", DiLoCo(2, .5, .9), simulation.Outer(2, .5), .05),
            ("PowerSGD", PowerSGD(rank=2), simulation.LowRank(2), .05)):
        if isinstance(cb, PowerSGD):
            draw = lambda i, m: torch.randn(m, 2, generator=torch.Generator().manual_seed(i)).double()
            way.start = {0: draw(0, 784), 2: draw(2, 128)}
        cbs = [cb, GradientAccumulation(2)] if name == "accumulation" else [cb]
        model = seeded(3, simulation.small_net).double()
        learn = learner(place, model, partial(SGD, momentum=.9), cbs, TensorLoader(x, y, 8), lr=lr,
                        loss_func=F.cross_entropy)
        learn.fit(1)
        batches = [(xb[None], yb[None]) for xb, yb in TensorLoader(x, y, 8)]
        nets = simulation.train(way, partial(SGD, momentum=.9), lr, batches, [3], place.size, F64)
        for p, q in zip(model.parameters(), nets.params):
            torch.testing.assert_close(p.detach(), q[0, place.rank].detach().view_as(p), rtol=1e-9, atol=1e-11,
                                       msg=lambda text: f"{name}: {text}")


# Sharded models, sweeps and checkpoints

def sharded(model, **options):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for part in (model[0], model[2], model[4], model): fully_shard(part, mesh=mesh, **options)
    return model


@check
def fully_sharded(place, folder):
    for ours, theirs in OPTIMIZERS.values():
        learn = learner(place, sharded(net()), ours, train=loader(48, 12))
        learn.fit(2)
        assert_same(learn.model, reference(net(), loader(48, 12), theirs, 2))
        own = sum(p.to_local().numel() for p in learn.model.parameters())
        assert own < .8 * sum(p.numel() for p in net().parameters())


@check
def fully_sharded_on_the_cpu_and_in_bfloat16(place, folder):
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
    model = sharded(net(), offload_policy=CPUOffloadPolicy(pin_memory=False))
    learn = learner(place, model, Adam, train=loader(48, 12))
    learn.fit(2)
    assert_same(learn.model, reference(net(), loader(48, 12), torch.optim.Adam, 2))
    f32 = torch.float32
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=f32)
    loss = lambda pred, y: F.mse_loss(pred.float(), y)
    learn = learner(place, sharded(net(dtype=f32), mp_policy=policy), train=loader(48, 12, dtype=f32), loss_func=loss)
    learn.fit(2)
    assert_same(learn.model, reference(net(dtype=f32), loader(48, 12, dtype=f32), epochs=2), 2e-2)


@check
def the_swept_parts_are_the_whole(place, folder):
    train = loader(48, 12, dtype=torch.float32)
    for grid in ({"lr": torch.tensor([.01, .03, .1, .3, 1.])}, {"lr": torch.tensor([.1])},
                 {"lr": torch.tensor([.01, .1]), "beta": torch.tensor([0., .5, .9])}):
        opt = partial(SGD, momentum=.9)
        whole = sweep(net(dtype=torch.float32), F.mse_loss, opt, train, 6, grid)
        parts = sharded_sweep(net(dtype=torch.float32), F.mse_loss, opt, train, 6, grid)
        assert parts.names == whole.names and parts.loss.shape == whole.loss.shape
        torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-5, atol=1e-7)
        assert parts.best() == whole.best()
        for other in gathered(parts.loss): assert torch.equal(other, parts.loss)
        at = (0,) * len(grid)
        for name, p in whole.params(*at).items():
            torch.testing.assert_close(parts.params(*at)[name], p, rtol=1e-5, atol=1e-6)
    bad = torch.tensor([.1, 1e30, .2])                            # one diverges, on one rank
    whole = sweep(net(dtype=torch.float32), F.mse_loss, SGD, train, 6, {"lr": bad})
    parts = sharded_sweep(net(dtype=torch.float32), F.mse_loss, SGD, train, 6, {"lr": bad})
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-5, atol=1e-7, equal_nan=True)
    assert torch.equal(parts.diverged, whole.diverged)
    with pytest.raises(ValueError, match="learning_speed"):
        sharded_sweep(net(), F.mse_loss, SGD, train, 6, {"learning_speed": bad})


@check
def a_checkpoint_of_two(place, folder):
    "Two epochs of an interrupted training, with AverageGradients and sharded by torch; others go on with it."
    for name, wrap, cbs in (("averaged", lambda model: model, [AverageGradients()]), ("sharded", sharded, [])):
        learn = learner(place, wrap(net()), Adam, cbs, loader(48, 12), lr=.05)
        learn.fit(2)
        save_sharded(learn, folder / name)
        learn.fit(1)
        again = learner(place, wrap(net(5)), Adam, cbs, loader(48, 12))
        load_sharded(again, folder / name)
        assert again.epochs_done == 2 and again.lr == .05
        again.fit(1)
        assert_same(again.model, reference(net(), loader(48, 12), torch.optim.Adam, 3, .05))
        for p, q in zip(learn.model.parameters(), again.model.parameters()): assert torch.equal(whole(p), whole(q))
    dist.barrier()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")], "something has stayed beside them"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"averaged", "sharded"}
    dist.barrier()                                                # before the next check makes another


def without_room(bytes_left):
    "For this process, a disk that is full after so many bytes of a file."
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@check
def a_full_disk_leaves_the_last_checkpoint(place, folder):
    room = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    here = folder / "full"
    here.mkdir(exist_ok=True)
    for failing in range(place.size):                             # on either rank
        learn = learner(place, sharded(net()), Adam, train=loader(48, 12))
        learn.fit(1)
        save_sharded(learn, here / "last")
        before, files = learn.model.state_dict(), sorted(str(path) for path in here.rglob("*"))
        before = {name: t.full_tensor().clone() for name, t in before.items()}
        learn.fit(1)
        dist.barrier()
        began = time.monotonic()
        if place.rank == failing: without_room(200)
        try:
            with pytest.raises(RankError, match=rf"rank {failing}.*") as caught: save_sharded(learn, here / "last")
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        assert time.monotonic() - began < PATIENCE
        for word in ("last", "File too large"): assert word in str(caught.value), str(caught.value)
        dist.barrier()
        assert sorted(str(path) for path in here.rglob("*")) == files, "something has stayed behind"
        again = learner(place, sharded(net(7)), Adam, train=loader(48, 12))
        load_sharded(again, here / "last")
        for name, t in again.model.state_dict().items(): assert torch.equal(t.full_tensor(), before[name])
        save_sharded(learn, here / "last")                        # there is room again
        load_sharded(again, here / "last")
        assert again.epochs_done == 2


@check
def a_save_broken_off_anywhere_leaves_a_whole_checkpoint(place, folder):
    "Each rename and each writing that rank 0 does fails once; the one before or the new one is there in each case."
    here = folder / "renames"
    here.mkdir(exist_ok=True)
    learn = learner(place, net(), cbs=[AverageGradients()])
    learn.fit(1)
    save_sharded(learn, here / "last")
    learn.fit(1)
    real = os.rename
    for nth in range(1, 9):
        calls = 0

        def broken(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == nth: raise OSError(28, "No space left on device")
            return real(*args, **kwargs)
        if place.rank == 0: os.rename = broken
        try: save_sharded(learn, here / "last")
        except RankError as error: assert "No space left" in str(error)
        finally: os.rename = real
        again = learner(place, net(7), cbs=[AverageGradients()])
        load_sharded(again, here / "last")
        assert again.epochs_done in (1, 2)
        if not gathered(calls)[0] >= nth: break
    assert nth > 1
    save_sharded(learn, here / "last")
    dist.barrier()
    assert [path.name for path in here.iterdir()] == ["last"]


@check
def checkpoints_that_do_not_fit(place, folder):
    here = folder / "others"
    here.mkdir(exist_ok=True)
    learn = learner(place, net(), Adam, [AverageGradients()])
    learn.fit(1)
    save_sharded(learn, here / "good")
    for other, words in ((learner(place, net(width=6), Adam), "model"), (learner(place, net()[:3], Adam), "model"),
                         (learner(place, net(), SGD), "optimizer")):
        with pytest.raises(ValueError, match=words): load_sharded(other, here / "good")
    with pytest.raises(ValueError, match="no whole checkpoint"): load_sharded(learn, here / "nothing")
    dist.barrier()
    if place.rank == 0:
        next((here / "good").glob("*.distcp")).write_bytes(b"broken")
    dist.barrier()
    with pytest.raises(ValueError): load_sharded(learn, here / "good")


@check
def going_on_with_another_number(place, folder):
    "What two ranks began and one went on with, three end: as one process that nobody disturbed."
    learn = learner(place, net(6), Adam, [AverageGradients()], loader(48, 12))
    load_sharded(learn, folder / "one")
    assert learn.epochs_done == 3 and learn.dls.train.epoch == 3
    learn.fit(2)
    assert_same(learn.model, reference(net(), loader(48, 12), torch.optim.Adam, 5, .05))
    assert_alike(learn.model)


# Mistakes

@check
def models_that_differ(place, folder):
    for models in ([net(), net(width=6)], [net(), net()[:3]]):
        for cb in (AverageGradients(), LocalSGD(2), DiLoCo(2), PowerSGD()):
            learn = learner(place, models[min(place.rank, 1)], cbs=[cb])
            with pytest.raises(ValueError, match="different models"): learn.fit(1)
    learn.model, learn.cbs = net(), [AverageGradients()]           # the same from now on: it can fit again
    learn.fit(1, reset_opt=True)


@check
def a_nested_context_joins(place, folder):
    with distributed() as inner: assert (inner.rank, inner.size) == (place.rank, place.size)
    assert dist.is_initialized()


@check
def on_its_gpu(place, folder):
    "Where each rank has one, with nccl: averages, parts of a model, and a checkpoint."
    assert place.device.type == "cuda" and place.device.index == place.rank and dist.get_backend() == "nccl"
    train = lambda: loader(48, 12, device=place.device)
    theirs = reference(net().to(place.device), train(), torch.optim.Adam, 3, .05)
    for wrap, cbs in ((lambda model: model, [AverageGradients()]), (sharded, [])):
        learn = learner(place, wrap(net().to(place.device)), Adam, cbs, train(), lr=.05)
        learn.fit(2)
        save_sharded(learn, folder / "on_gpu")
        again = learner(place, wrap(net(5).to(place.device)), Adam, cbs, train())
        load_sharded(again, folder / "on_gpu")
        again.fit(1)
        assert_same(again.model, theirs, 1e-9)
    for cb in (LocalSGD(2), DiLoCo(2), PowerSGD()):
        learn = learner(place, net(place.rank).to(place.device), Adam, [cb], train(), valid=train())
        learn.fit(1)
        assert_alike(learn.model)


def odd_one_out(place, cbs=(), train=None):
    "What comes of a fit that only one rank wants to end, or that ends there for lack of data."
    began, learn = time.monotonic(), learner(place, net(), cbs=[AverageGradients(), *cbs], train=train)
    try: learn.fit(2)
    except (RankError, ValueError) as error: said = str(error)
    else: said = "through"
    assert time.monotonic() - began < PATIENCE / 2
    return said, [p.detach().clone() for p in learn.model.parameters()]


def agreed_or_told(place, folder, name, said, params):
    "Either all have ended alike, or all have been told; the ranks compare by file, since messages may be out of step."
    torch.save((said, params), folder / f"{name}{place.rank}.part")
    os.rename(folder / f"{name}{place.rank}.part", folder / f"{name}{place.rank}.pt")
    other = folder / f"{name}{1 - place.rank}.pt"
    end = time.monotonic() + 2 * PATIENCE
    while not other.exists() and time.monotonic() < end: time.sleep(.05)
    their_said, theirs = torch.load(other)
    if said == their_said == "through":
        assert all(torch.equal(p, q) for p, q in zip(params, theirs)), "both are through, with other weights"
    else: assert "through" not in (said, their_said), f"one has been told, one goes on: {said} / {their_said}"


@check
def one_rank_stops_for_a_loss_that_is_not_finite(place, folder):
    class Spoils(Callback):
        run_before = (TerminateOnNaN,)

        def after_loss(self, learn):
            if place.rank == 1 and learn.training and learn.iter == 1: learn.loss = learn.loss * math.nan
    found = odd_one_out(place, [Spoils(), TerminateOnNaN()])
    agreed_or_told(place, folder, "nan", *found)


@check
def one_rank_has_fewer_batches(place, folder):
    found = odd_one_out(place, train=loader(40 - 24 * place.rank, 8))
    agreed_or_told(place, folder, "fewer", *found)


# What ends a process comes last

@check
def an_error_of_one_rank_reaches_the_other(place, folder):
    "Rank 1 fails in a callback and ends; the others must not wait until their patience ends, nor go on."
    class Fails(Callback):
        def after_loss(self, learn):
            if place.rank == 1 and learn.iter == 1: raise ValueError("a row that cannot be read")
    began, learn = time.monotonic(), learner(place, net(), cbs=[AverageGradients(), Fails()])
    if place.rank == 1:
        with pytest.raises(ValueError, match="cannot be read"): learn.fit(1)
        (folder / f"{an_error_of_one_rank_reaches_the_other.__name__}.1").write_text("ok")
        os._exit(0)
    with pytest.raises(RankError, match="other ranks"): learn.fit(1)
    assert time.monotonic() - began < PATIENCE / 2


# A training that dies, and is started again

def to_the_end(place, folder, die, epochs=4):
    "Trains to its last epoch, with a checkpoint after each; die(epoch, rank)."
    class Save(Callback):
        run_after = (AverageGradients,)

        def after_epoch(self, learn):
            save_sharded(learn, folder / "checkpoint")
            die(learn.epochs_done, place.rank)
    learn = learner(place, net(place.rank), Adam, [AverageGradients(), Save()], loader(48, 12), lr=.05)
    if (folder / "checkpoint").exists(): load_sharded(learn, folder / "checkpoint")
    print(f"from epoch {learn.epochs_done}")
    if learn.epochs_done < epochs: learn.fit(epochs - learn.epochs_done)
    if place.rank == 0: torch.save(learn.model.state_dict(), folder / "weights.pt")


def kill_once(folder, epoch, rank):
    flag = folder / "killed"
    if rank == 1 and epoch == 2 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def main():
    folder, *names = sys.argv[1:]
    folder = Path(folder)
    torch.set_num_threads(1)
    if names == ["restarts"]:
        with distributed(timeout=300) as place: return to_the_end(place, folder, partial(kill_once, folder))
    with distributed(timeout=PATIENCE) as place:
        failed = []
        for name in names:
            began = time.monotonic()
            try: CHECKS[name](place, folder)
            except Exception:  # if both ranks fail alike, they can go on
                (folder / f"{name}.{place.rank}").write_text(traceback.format_exc())
                failed.append(name)
                if len(failed) > 4: break
                continue
            (folder / f"{name}.{place.rank}").write_text("ok")
            print(f"{name}: {time.monotonic() - began:.2f} s", flush=True)
        if failed: raise SystemExit(f"failed: {failed}")


if __name__ == "__main__": main()
