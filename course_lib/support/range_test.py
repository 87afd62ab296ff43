"""A range test of learning rates: arguments with which one makes sense, its books, and what it saw."""
import math

import numpy as np

from .arguments import above_1, below_1, checked, finite
from .checks import positive_int


def curve(lrs, losses):
    "Rates and losses as float64 arrays; raises `ValueError` for what is no list of numbers each, of equal length."
    arrays = []
    for name, values in (("lrs", lrs), ("losses", losses)):
        try: arrays.append(np.array(values, dtype=np.float64))
        except (TypeError, ValueError): raise ValueError(f"{name} must be a list of numbers, not {values!r:.80}.") from None
        if arrays[-1].ndim != 1: raise ValueError(f"{name} must be a list of numbers, not {values!r:.80}.")
    if len(arrays[0]) != len(arrays[1]):
        raise ValueError(f"Each rate has a loss: got {len(arrays[0])} lrs and {len(arrays[1])} losses.")
    return arrays


def smoothed(values, smooth):
    "The exponentially weighted average of a sequence at each of its places, corrected for its late start (chapter 03)."
    below_1("smooth", smooth)
    average, averages = 0., []
    for t, value in enumerate(values, 1):
        average = smooth * average + (1 - smooth) * value
        averages.append(average / (1 - smooth ** t))
    return np.array(averages, dtype=np.float64)


@checked(start_lr=finite, end_lr=finite, smooth=below_1, stop_factor=above_1)
def search_rates(learn, start_lr, end_lr, num_it, smooth, stop_factor):
    "The rates of a range test, an array. Raises `ValueError` for wrong arguments, `RuntimeError` in the middle of a fit."
    if learn.fit_cbs is not None: raise RuntimeError("lr_find cannot run in the middle of a fit.")
    if not 0 < start_lr < end_lr:
        raise ValueError(f"Expected 0 < start_lr < end_lr, got {start_lr} and {end_lr}.")
    num_it = positive_int("num_it", num_it)
    return np.geomspace(start_lr, end_lr, num_it)


class RangeTest:
    """What `LRFinder` inherits: all groups' rates moved together, and the losses watched.

    `.losses`: of the batches so far; on_step: what is told of each.
    """
    def __init__(self, lrs, smooth, stop_factor, on_step=None):
        self.lrs, self.smooth, self.stop_factor, self.on_step = lrs, smooth, stop_factor, on_step
        self.losses, self.average, self.best = [], 0., math.inf

    def before_fit(self, learn):
        rates = [group["lr"] for group in learn.opt.param_groups]  # which keep their proportions
        self.shares = [rate / rates[-1] if rates[-1] else 1. for rate in rates]

    def set_rate(self, learn, lr):
        "The last group gets lr, the others in proportion."
        for group, share in zip(learn.opt.param_groups, self.shares): group["lr"] = share * float(lr)

    def is_over(self, loss):
        "Note the loss of a batch. Was it the last: not finite (which is not noted), exploded, or at the last rate?"
        if not math.isfinite(loss): return True
        self.losses.append(loss)
        if self.on_step: self.on_step(self.found())
        return self.exploded() or len(self.losses) == len(self.lrs)

    def exploded(self):
        "Is the average of the losses, with the newest one in it, stop_factor times as high as it was at its best?"
        self.average = self.smooth * self.average + (1 - self.smooth) * self.losses[-1]
        average = self.average / (1 - self.smooth ** len(self.losses))
        self.best = min(self.best, average)
        return average > self.best + (self.stop_factor - 1) * abs(self.best)


class RangeTestCurve:
    "What `LRFind` inherits: which part of the curve can be read, and the plot."
    min_points = 5

    def readable(self):
        "Rates and smoothed losses, arrays. Raises `ValueError` where there are too few, or the loss never fell."
        if len(self.lrs) < self.min_points:
            raise ValueError(f"The search has only {len(self.lrs)} points, too few to read a rate off (at "
                             f"least {self.min_points}): "
                             "begin with a smaller start_lr, or ask for more batches (num_it).")
        young = len(self.lrs) // 10  # the first tenth: an average over few batches is still noisy
        lrs, losses = self.lrs[young:], self.smooth_losses[young:]
        rounding = 1e-9 * abs(losses[0])  # of the average of losses that are all the same
        if not losses.min() < losses[0] - rounding:
            raise ValueError("The loss never fell in this search, so it suggests nothing: begin with a smaller "
                             "start_lr, and look at the plot.")
        return lrs, losses

    def plot(self):
        "Raw and smoothed loss against the rate, with the suggestions."
        from .curves import plot_range_test  # matplotlib, only when it is used
        plot_range_test(self)

    def __repr__(self):
        try: said = ", ".join(f"{name} {lr:.3g}" for name, lr in self.suggestions.items())
        except ValueError as error: said = str(error)
        return f"{type(self).__name__} over {len(self.lrs)} batches: {said}"
