"""Checks of what chapter 01's loaders and transforms are given, and the table of pixels that its affine map starts from."""
import functools
import math
import numbers

import torch

from .arguments import a_tensor, images
from .checks import whole_number
from .files import DamagedFileError


def check_loader(x, y, batch_size, drop_last, seed):
    "`(batch_size, seed)` as ints; raises `ValueError` for what gives no batch of items with their targets."
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        raise ValueError(f"x and y must be tensors, not {type(x).__name__} and {type(y).__name__}: "
                         "torch.as_tensor makes them from arrays.")
    if not x.ndim or not y.ndim: raise ValueError("x and y must have an axis of items, and one of them is one number.")
    if len(x) != len(y): raise ValueError(f"x holds {len(x)} items and y {len(y)}: every x needs its own y.")
    if x.device != y.device:
        raise ValueError(f"x is on {x.device} and y on {y.device}: move them to one device first.")
    batch_size, seed = whole_number("batch_size", batch_size), whole_number("seed", seed)
    if batch_size < 1: raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    if not len(x) or drop_last and len(x) < batch_size:
        raise ValueError(f"{len(x)} items give no batch of {batch_size}" + (" with drop_last=True." if len(x) else "."))
    return batch_size, seed


def split_sizes(n, n_train=None, n_valid=None):
    "How many of n images train and validate, as ints: by default a sixth is for validation and the rest for training."
    n_valid = n // 6 if n_valid is None else whole_number("n_valid", n_valid)
    n_train = n - n_valid if n_train is None else whole_number("n_train", n_train)
    if not 0 < n_valid < n:
        raise ValueError(f"n_valid must be from 1 to {n - 1:,} with this data set, not {n_valid}.")
    if not 0 < n_train <= n - n_valid:
        raise ValueError(f"n_train must be from 1 to {n - n_valid:,} with this data set, not {n_train}.")
    return n_train, n_valid


def pixel_statistics(images, name):
    "Mean and standard deviation of uint8 images, as floats; `DamagedFileError` where there is nothing to see in them."
    std, mean = torch.std_mean(images.float())
    if not std: raise DamagedFileError(f"The {name} training images are blank: every pixel is {mean:.0f}.")
    return mean.item(), std.item()


def check_affine(x, angle, translate, scale, shear):
    "Raises `ValueError` for what is no batch of float images, and for amounts that are no tensors."
    images("x", x)
    for name, value in (("angle", angle), ("translate", translate), ("scale", scale), ("shear", shear)):
        a_tensor(name, value)


@functools.lru_cache(8)
@torch.inference_mode(False)  # what is kept may be needed in training later
def pixel_positions(height, width, device, dtype):
    "All pixels as (x, y, 1) from the centre, `[3, height · width]`, and what makes a pixel the unit of grid_sample."
    rows, columns = ((torch.arange(m, device=device, dtype=dtype) - (m - 1) / 2) for m in (height, width))
    ones = rows.new_ones(height * width)
    positions = torch.stack([columns.repeat(height), rows.repeat_interleave(width), ones])
    return positions, torch.tensor([2 / width, 2 / height], device=device, dtype=dtype)[:, None, None]


def _finite_numbers(name, values, lengths=(2,)):
    "`values` as a tuple of so many finite numbers; `ValueError` for anything else."
    several = values if isinstance(values, (tuple, list)) else (values,)
    if len(several) not in lengths or not all(isinstance(v, numbers.Real) and math.isfinite(v) for v in several):
        raise ValueError(f"{name}: expected {' or '.join(map(str, lengths))} finite numbers, got {values!r}.")
    return tuple(several)


def affine_ranges(degrees, translate, scale, shear):
    """The arguments of `RandomAffine` as ranges by name, each `(low, high)`; translate: the two largest shifts;
    shear: both ranges, `(low, high, low, high)`. Raises `ValueError` for impossible ones.
    """
    both_ways = lambda v: (-v, v) if isinstance(v, numbers.Real) else v
    shear = _finite_numbers("shear", both_ways(0 if shear is None else shear), (2, 4))
    ranges = {"degrees": _finite_numbers("degrees", both_ways(degrees)),
              "translate": _finite_numbers("translate", translate or (0, 0)),
              "scale": _finite_numbers("scale", (1, 1) if scale is None else scale),
              "shear": shear if len(shear) == 4 else (*shear, 0, 0)}
    for name, values in ranges.items():
        if name != "translate" and any(low > high for low, high in zip(values[::2], values[1::2])):
            raise ValueError(f"{name}: the range {values} is upside down.")
    if not all(0 <= v <= 1 for v in ranges["translate"]):
        raise ValueError(f"translate: expected shares from 0 to 1, got {translate}.")
    if min(ranges["scale"]) <= 0: raise ValueError(f"scale: expected positive factors, got {scale}.")
    if max(map(abs, ranges["shear"])) >= 90:
        raise ValueError(f"shear: expected degrees between -90 and 90, got {shear}.")
    return ranges
