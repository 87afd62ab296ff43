"""Checks of chapter 12: probabilities, and targets as classes or as shares."""
import torch
from torch import nn

from .arguments import a_share, checked
from .checks import described


class CheckedDropout(nn.Module):
    "What `Dropout` and `DropPath` inherit: a probability `p`, checked whenever it is set, and `extra_repr`."
    def __init__(self, p):
        super().__init__()
        self.p = p

    @property
    def p(self): return self._p

    @p.setter
    @checked(p=a_share)
    def p(self, p): self._p = float(p)

    def extra_repr(self): return f"p={self.p}"


def classes(name, value):
    "Targets `[B]` of whole numbers."
    if not isinstance(value, torch.Tensor) or value.ndim != 1 or value.is_floating_point() or value.dtype is torch.bool:
        raise ValueError(f"{name} must be classes, a tensor [B] of whole numbers, not {described(value)}.")
    return value.long()


def check_soft(logits, targets):
    "Do targets `[B]` (whole numbers) or `[B, K]` (shares) fit logits `[B, K]`?"
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be a floating-point tensor [B, K], not {described(logits)}.")
    if isinstance(targets, torch.Tensor) and targets.ndim == 1: targets = classes("targets", targets)
    fits = isinstance(targets, torch.Tensor) and targets.shape in (logits.shape[:1], logits.shape)
    if not fits or targets.ndim == 2 and not targets.is_floating_point():
        raise ValueError(f"targets must be classes [{len(logits)}] or shares {list(logits.shape)}, not {described(targets)}.")
    return targets
