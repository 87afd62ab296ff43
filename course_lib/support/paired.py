"""Is one better than the other? Differences over the same seeds, and an interval for their mean."""
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch


@cache  # a live figure asks for the same again and again
def central_t(df, coverage):
    "The t between whose negative and itself Student's distribution with df degrees of freedom has this share."
    angles = np.linspace(0, math.pi / 2, 100_001)         # t = √df · tan(angle), whose density is cos(angle)^(df − 1)
    density = np.cos(angles) ** (df - 1)
    share = np.concatenate([[0.], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(df) * math.tan(np.interp(coverage, share / share[-1], angles))


@dataclass(frozen=True, eq=False)
class Paired:
    """Differences a − b over paired seeds, `[S]`, and Student's interval for their mean (1908): where it lies with this
    confidence if the differences are about normal. An interval that leaves out zero says which is lower.
    """
    differences: torch.Tensor
    confidence: float = .95

    @property
    def mean(self): return self.differences.mean().item()

    @property
    def interval(self):
        n = len(self.differences)
        half = central_t(n - 1, self.confidence) * self.differences.std().item() / math.sqrt(n)
        return self.mean - half, self.mean + half

    @property
    def low(self): return self.interval[0]

    @property
    def high(self): return self.interval[1]

    def __repr__(self):
        return (f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}] "
                f"({self.confidence:.0%}, {len(self.differences)} paired seeds)").replace("-", "−")


def in_points(gain):
    "The mean and the interval of a `Paired` of points, as texts with one decimal, without a −0.0."
    mean, low, high = (f"{round(value, 1) + 0.:+.1f}".replace("-", "−") for value in (gain.mean, gain.low, gain.high))
    return mean, f"[{low}, {high}]"


def paired(a, b, confidence=.95):
    """The difference a − b of results over the same seeds, as `Paired`.

    a, b: numbers `[S]`, one for each seed, in the same order. Raises `ValueError` for fewer than two seeds, lengths
    that differ, results that are not finite (a run that has blown up has no difference), a confidence outside (0, 1).
    """
    a, b = (torch.as_tensor(np.asarray(side, dtype=np.float64)) for side in (a, b))
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise ValueError("Paired results are two lists of equal length, one number for each of at least two seeds; got "
                         f"shapes {list(a.shape)} and {list(b.shape)}.")
    if not 0 < confidence < 1: raise ValueError(f"confidence must be between 0 and 1, such as 0.95, not {confidence!r}.")
    for name, side in (("first", a), ("second", b)):
        if lost := (~side.isfinite()).nonzero()[:, 0].tolist():
            raise ValueError(f"The {name} results have no finite value at places {lost}: what has blown up has no "
                             "difference. Compare at a rate at which all seeds train.")
    return Paired(a - b, confidence)
