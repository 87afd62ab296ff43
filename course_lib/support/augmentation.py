"""What transforms of batches share: amounts of each image's own, their checks, random draws, soft targets (chapter 13)."""
import functools
import inspect
import math
import numbers

import torch
import torch.nn.functional as F

from .arguments import image_batch, refuse
from .checks import counted, described, shorten, whole_number


def per_image(name, value, x, low=-math.inf, high=math.inf, dtype=None):
    """`value` as `[n, 1, 1, 1]`, beside the n images of x: a number for all of them, or a tensor `[n]`, one for each.

    dtype: by default that of x. Raises `ValueError` for other shapes and for what is not from low to high. Values that lie on a GPU already are not
    looked at: the processor would have to wait for them.
    """
    n = len(x)
    at_least = f"finite and at least {low:g}" if low > -math.inf else "finite"
    bounds = f"from {low:g} to {high:g}" if high < math.inf else at_least
    if isinstance(value, torch.Tensor):
        if value.shape not in ((), (n,)) or value.dtype is torch.bool or value.is_complex():
            raise ValueError(f"{name}: expected a number, or a tensor [{n}] with one for each image; got {value.dtype} "
                             f"{list(value.shape)}.")
        if value.device.type == "cpu" and value.numel():
            least, most = (v.item() for v in value.aminmax())
            if not low <= least <= most <= high or not math.isfinite(least + most): refuse(name, bounds, value)
        return value.to(x.device, dtype or x.dtype).expand(n).view(n, 1, 1, 1)
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not low <= value <= high: refuse(name, bounds, value)
    return x.new_full((n, 1, 1, 1), value, dtype=dtype or x.dtype)


ANY, ONE_OR_THREE = (-math.inf, math.inf), (1, 3)


def image_op(channels=None, **ranges):
    """A decorator for functions of a batch: x has to be float images `[n, channels, height, width]`, and each argument
    that is named here becomes `[n, 1, 1, 1]`, with values in its range `(low, high)`; see `per_image`.

    channels: the numbers of channels that will do, by default any.
    """
    def decorate(function):
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args, **kwargs):
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            x = image_batch("x", given.arguments["x"])
            if channels and x.shape[1] not in channels:
                raise ValueError(f"{function.__name__}: expected images with {' or '.join(map(str, channels))} channels, "
                                 f"got {x.shape[1]}.")
            for name, (low, high) in ranges.items():
                given.arguments[name] = per_image(name, given.arguments[name], x, low, high)
            return function(*given.args, **given.kwargs)
        return call
    return decorate


class BatchTransform:
    "What transforms of batches have besides `__call__(xb, yb)`: they show what they were made with."
    def __repr__(self):
        shown = (f"{name}={shorten(value)}" for name, value in vars(self).items() if not isinstance(value, torch.Tensor))
        return f"{type(self).__name__}({', '.join(shown)})"


def uniform(xb, low, high):
    "A random number from low to high for each image, `[n]`, from the generator of the images' device."
    return torch.rand(len(image_batch("xb", xb)), device=xb.device, dtype=xb.dtype) * (high - low) + low


def happens(xb, p):
    "For each image whether it is to be changed, bools `[n]`, true with probability p."
    return torch.rand(len(image_batch("xb", xb)), device=xb.device) < p


def beta_draw(alpha, device):
    "One draw from the distribution Beta(α, α), `[1]`, on the device."
    alpha = torch.full((1,), float(alpha), device=device)
    return torch.distributions.Beta(alpha, alpha, validate_args=False).sample()


def soft_targets(xb, yb, n_classes):
    "Targets as shares of classes, `[n, n_classes]` floats, from class numbers `[n]` or from such shares."
    image_batch("xb", xb)
    if not isinstance(yb, torch.Tensor) or yb.ndim not in (1, 2) or yb.is_floating_point() != (yb.ndim == 2) \
            or yb.dtype is torch.bool or yb.ndim == 2 and yb.shape[1] != n_classes:
        raise ValueError(f"yb: expected whole class numbers [n], or floats [n, {n_classes}]; got {described(yb)}.")
    if len(yb) != len(xb): raise ValueError(f"{counted(len(xb), 'image')} came with {counted(len(yb), 'target')}.")
    if yb.ndim == 2: return yb
    if yb.device.type == "cpu" and len(yb) and not (0 <= yb.min() and yb.max() < n_classes):
        raise ValueError(f"yb: classes go from 0 to {n_classes - 1}, but some are from {yb.min()} to {yb.max()}.")
    return F.one_hot(yb.long(), n_classes).to(torch.get_default_dtype())


def both_sides(name, value, middle=0., low=-math.inf, high=math.inf):
    "The range (low, high) that a strength means: (middle - value, middle + value), cut off at low, or a pair as it is."
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not 0 <= value < math.inf: refuse(name, "at least 0", value)
        if middle + value > high: refuse(name, f"at most {high - middle:g}", value)
        return max(low, middle - value), middle + value
    pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, numbers.Real) for v in value)
    if not pair or not low <= value[0] <= value[1] <= high or not all(map(math.isfinite, value)):
        limits = f" within [{low:g}, {high:g}]" if low > -math.inf else ""
        refuse(name, f"a number from 0 on, or a pair low ≤ high{limits}", value)
    return tuple(value)


def odd(name, value):
    "`value` as an int; `ValueError` unless it is an odd whole number from 1 on."
    if whole_number(name, value, at_least=1) % 2 == 0: refuse(name, "odd", value)
    return int(value)
