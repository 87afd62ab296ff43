"""The books that a learner keeps: groups of parameters and their rates, averages by sample, the smoothed loss."""
import contextlib
import math
import operator

import torch

from .checks import check_hyper
from .optimizer import copy_hyper


class Averages:
    """Averages over the batches of a pass, each weighed by its number of samples, and the smoothed training loss.

    What it is given stays on the device, unread, until somebody asks.
    """
    fold_after = 256

    def __init__(self, names, smooth=None):
        self.names, self.smooth = list(names), smooth  # smooth: a SmoothLoss that the first name's values go to as well
        self.rows, self.sizes, self.sums, self.n = [], [], 0, 0

    def add(self, values, size):
        "values: a tensor for each name, the means of a batch of that size."
        self.rows.append(values)
        self.sizes.append(size)
        if len(self.rows) >= self.fold_after: self.fold()

    def fold(self):
        "Add up what has come in; nothing of it is read."
        if not self.rows: return
        device = self.rows[0][0].device
        wide = torch.float32 if device.type == "mps" else torch.float64  # mps has no other
        values = torch.stack([torch.stack(column).to(device, wide) for column in zip(*self.rows)])
        self.sums = self.sums + values @ torch.tensor(self.sizes, dtype=wide, device=device)
        self.n += sum(self.sizes)
        if self.smooth: self.smooth.add(values[0])
        self.rows, self.sizes = [], []

    def results(self):
        "name -> average so far, a plain number; NaN if nothing counted."
        self.fold()
        return dict(zip(self.names, [math.nan] * len(self.names) if self.n == 0 else (self.sums / self.n).tolist()))


class SmoothLoss:
    "The exponentially weighted average of losses, corrected for its late start (chapter 03)."
    def __init__(self, beta=.98): self.beta, self.sum, self.n = beta, 0, 0

    def add(self, losses):
        "losses: a tensor `[n]`, oldest first."
        powers = torch.arange(len(losses) - 1, -1, -1, dtype=losses.dtype, device=losses.device)
        self.sum = self.beta ** len(losses) * self.sum + (1 - self.beta) * losses @ self.beta ** powers
        self.n += len(losses)

    @property
    def value(self): return self.sum / (1 - self.beta ** self.n) if self.n else None

    @value.setter
    def value(self, value):
        self.n = max(self.n, 1)
        self.sum = value * (1 - self.beta ** self.n)


def metric_name(metric): return getattr(getattr(metric, "func", metric), "__name__", type(metric).__name__)


def samples_with_nan(xb):
    "How many of a batch's inputs hold NaN or inf."
    if not isinstance(xb, torch.Tensor) or xb.sum().isfinite(): return 0
    return int((~xb.isfinite()).reshape(len(xb), -1).any(1).sum())


def child_groups(model):
    "Parameters by the model's direct children that have any, in order; the model's own, if it has some, come first."
    model = getattr(model, "_orig_mod", model)  # the one that torch.compile was given
    seen, groups = set(), []
    for parameters in (model.parameters(recurse=False), *(child.parameters() for child in model.children())):
        group = [p for p in parameters if id(p) not in seen]
        seen.update(map(id, group))
        if group: groups.append(group)
    return groups


def spread_lr(lr, n_groups):
    """A rate for each of the groups: `lr` for all; `slice(a, b)`: geometric from a to b;
    `slice(b)`: b / 10 for all but the last. One that is a tensor gets a copy for each, since torch changes it in place.
    """
    if not isinstance(lr, slice): return [copy_hyper(check_hyper("lr", lr)) for _ in range(n_groups)]
    if lr.stop is None or lr.step is not None: raise ValueError(f"lr={lr}: expected slice(first, last) or slice(last).")
    last = copy_hyper(check_hyper("lr", lr.stop))
    if lr.start is None: return [last / 10 for _ in range(n_groups - 1)] + [last]
    first = check_hyper("lr", lr.start)
    if not 0 < first or not 0 < last: raise ValueError(f"lr={lr}: a geometric series needs rates above 0.")
    if n_groups == 1: return [last]
    return [first * (last / first) ** (i / (n_groups - 1)) for i in range(n_groups - 1)] + [last]


def freeze_groups(groups, n):
    "Only the groups of parameters from n on learn (negative: counted from the end)."
    if not -len(groups) <= (n := operator.index(n)) < len(groups):
        raise ValueError(f"There are {len(groups)} groups of parameters; freeze_to({n}) names none of them.")
    for i, group in enumerate(groups):
        for p in group: p.requires_grad_(i >= n % len(groups))


def frozen_norms(model):
    "Layers with running statistics that are frozen; one without parameters goes with the layer before it."
    flags = [(part, [p.requires_grad for p in part.parameters(recurse=False)]) for part in model.modules()]
    frozen, norms = next((not any(flag) for _, flag in flags if flag), False), []
    for part, flag in flags:
        if flag: frozen = not any(flag)
        if frozen and getattr(part, "running_mean", None) is not None: norms.append(part)
    return norms


def count_batches(dl, part):
    try: n = len(dl)
    except TypeError: raise ValueError(f"The {part} loader has no length: len(loader) must be its number of batches, "
                                       f"got {dl!r:.80}.") from None
    if not n: raise ValueError(f"The {part} loader is empty: it has no batch.")
    return n


@contextlib.contextmanager
def keep_modes(model):
    modes = [(module, module.training) for module in model.modules()]
    try: yield
    finally:
        for module, training in modes: module.training = training
