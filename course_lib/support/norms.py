"""What stands around the arithmetic of chapter 10's layers: arguments, checks, state dicts, slices.

Subclasses of torch.nn's, so that whoever looks for torch's class finds ours too; the arithmetic is our own."""
import numbers
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .checks import check_hyper, positive_int


def along_channels(values, x):
    "One value for each channel, `[C]`, as `[1, C, 1, …]` beside x `[B, C, …]`; None stays None."
    return None if values is None else values.view(1, -1, *[1] * (x.ndim - 2))


def scale_and_shift(x, weight, bias):
    "x · weight + bias in one pass over x, without what is None."
    if weight is None: return x
    return x * weight if bias is None else torch.addcmul(bias, x, weight)


class CheckedNorm(nn.Module):
    """Checks an input and hands it to `normalize(x)`, which a subclass writes; what comes out has the dtype of what came
    in, and numbers of 16 bits are normalized in float32: half the digits are too few for a mean.
    """
    def forward(self, x):
        if not x.is_floating_point():
            raise ValueError(f"{type(self).__name__} takes floating-point inputs, not {x.dtype}: x.float() makes them.")
        self.check_input(x)
        return self.normalize(x.float() if x.itemsize < 4 else x).to(x.dtype)


class CheckedBatchNorm(CheckedNorm, _BatchNorm):
    """Arguments, buffers and state dicts of `torch.nn.BatchNorm…`. Raises `ValueError` for arguments out of range,
    inputs of other dimensions than `n_dims`, and where the batch's own statistics are used (`uses_batch`) for one value
    per channel, whose variance would be 0, and an eps that is not above 0; `RuntimeError` for other channels.
    """
    n_dims = 2, 3, 4, 5

    def __init__(self, num_features, eps=1e-5, momentum=.1, affine=True, track_running_stats=True, device=None,
                 dtype=None, *, bias=True):
        if momentum is not None and not (isinstance(momentum, numbers.Real) and 0 <= momentum <= 1):
            raise ValueError(f"momentum must be the new batch's share, from 0 to 1, or None for a plain mean over all "
                             f"batches, not {momentum!r}.")
        check_hyper("eps", eps)
        super().__init__(positive_int("num_features", num_features), eps, momentum, affine, track_running_stats,
                         device, dtype)
        if not bias: self.register_parameter("bias", None)  # older versions of torch do not know the argument

    @property
    def uses_batch(self):
        "Are the batch's own statistics used? In training, and where there are no running ones."
        return self.training or self.running_mean is None

    def check_input(self, x):
        if x.ndim not in self.n_dims:
            raise ValueError(f"expected {' or '.join(f'{n}D' for n in self.n_dims)} input (got {x.ndim}D input)")
        if self.uses_batch and x.numel() <= x.shape[1]:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(x.shape)}. "
                             "Take larger batches (drop_last=True drops a last batch of one), or call model.eval().")
        if not (self.eps > 0 or self.eps == 0 and not self.uses_batch):
            raise ValueError(f"eps must be {'above 0 in training' if self.uses_batch else 'at least 0'}, not "
                             f"{self.eps}: a channel that is constant has the variance 0.")
        if x.shape[1] != self.num_features:
            raise RuntimeError(f"This {type(self).__name__} is for {self.num_features} channels, and the input "
                               f"{list(x.shape)} has {x.shape[1]}.")


class CheckedLayerNorm(CheckedNorm, nn.LayerNorm):
    """Arguments and state dicts of `torch.nn.LayerNorm`. Raises `ValueError` for arguments out of range,
    `RuntimeError` for inputs whose last axes are others.
    """
    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True, device=None, dtype=None):
        shape = normalized_shape if isinstance(normalized_shape, Sequence) else [normalized_shape]
        if not len(shape): raise ValueError("normalized_shape must have at least one axis, the last one of the inputs.")
        check_hyper("eps", eps)
        super().__init__([positive_int("each size in normalized_shape", size) for size in shape], eps,
                         elementwise_affine, bias, device, dtype)

    def check_input(self, x):
        if tuple(x.shape[-len(self.normalized_shape):]) != self.normalized_shape:
            raise RuntimeError(f"LayerNorm over {list(self.normalized_shape)} got an input of shape {list(x.shape)}.")


class CheckedGroupNorm(CheckedNorm, nn.GroupNorm):
    """Arguments and state dicts of `torch.nn.GroupNorm`. Raises `ValueError` for arguments out of range and for an
    input with one value per group, `RuntimeError` for other channels.
    """
    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True, device=None, dtype=None, *, bias=True):
        num_groups, num_channels = positive_int("num_groups", num_groups), positive_int("num_channels", num_channels)
        if num_channels % num_groups:
            raise ValueError(f"num_channels must be divisible by num_groups; {num_channels} is not by {num_groups}.")
        check_hyper("eps", eps)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        if not bias: self.register_parameter("bias", None)

    def check_input(self, x):
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise RuntimeError(f"This GroupNorm takes inputs [B, {self.num_channels}, ...], not {list(x.shape)}.")
        if x.numel() == self.num_groups:
            raise ValueError(f"Expected more than 1 value per group, got input size {list(x.shape)} for "
                             f"{self.num_groups} groups.")


class SliceableSequential(nn.Sequential):
    "A base for a Sequential whose `__init__` takes other things than layers: its slices are a plain `nn.Sequential`."
    def __getitem__(self, i):
        if not isinstance(i, slice): return super().__getitem__(i)
        return nn.Sequential(OrderedDict([*self.named_children()][i]))
