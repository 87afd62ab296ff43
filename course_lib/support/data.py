"""What stands behind chapter 01's loaders and transforms: checks, books, splits, and the table of pixels of its affine map."""
import functools
import math
import numbers
from itertools import islice

import torch

from .arguments import a_function, a_tensor, checked, finite, image_batch
from .checks import shorten, whole_number
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


def a_transform(name, value):
    "A function of batches, or a list of them, which becomes the one that does them in turn."
    if not isinstance(value, (list, tuple)): return a_function(name, value)
    steps = [a_function(f"{name}[{i}]", step) for i, step in enumerate(value)]
    return lambda *batch: functools.reduce(lambda batch, step: step(*batch), steps, batch)


class CheckedLoader:
    """What a `TensorLoader` has besides its batches: checks of what it is given, its length, the count of its passes.

    Who inherits from it adds `batches(epoch)`.
    """
    @checked(transform=a_transform)
    def __init__(self, x, y, batch_size, shuffle=False, transform=None, drop_last=False, seed=0):
        self.batch_size, self.seed = check_loader(x, y, batch_size, drop_last, seed)
        self.x, self.y, self.shuffle, self.epoch = x, y, shuffle, 0
        self.transform, self.drop_last = transform, drop_last

    def __len__(self):
        n = len(self.x) / self.batch_size
        return math.floor(n) if self.drop_last else math.ceil(n)

    def __iter__(self):
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self.batches(epoch)

    def __repr__(self):
        return (f"{type(self).__name__}: {len(self.x):,} items {list(self.x.shape[1:])} on {self.x.device}, "
                f"{len(self):,} batches of {self.batch_size}{', shuffled' * self.shuffle}")


def first_batches(loader, n):
    "The first n batches of a loader, which begins again when it is through; `ValueError` if it gives none."
    def again():
        while True:
            batch = none = object()
            for batch in loader: yield batch
            if batch is none: raise ValueError(f"The loader gave no batch: it is empty, or has been used up. Got {shorten(loader)}.")
    return islice(again(), whole_number("n", n, at_least=0))


def split_sizes(n, n_train=None, n_valid=None):
    "How many of n images train and validate, as ints: by default a sixth is for validation and the rest for training."
    n_valid = n // 6 if n_valid is None else whole_number("n_valid", n_valid)
    n_train = n - n_valid if n_train is None else whole_number("n_train", n_train)
    if not 0 < n_valid < n:
        raise ValueError(f"n_valid must be from 1 to {n - 1:,} with this data set, not {n_valid}.")
    if not 0 < n_train <= n - n_valid:
        raise ValueError(f"n_train must be from 1 to {n - n_valid:,} with this data set, not {n_train}.")
    return n_train, n_valid


def split_rows(n, n_train=None, n_valid=None, seed=0):
    """Which of n images train and which validate, `(rows, rows)`: sizes as in `split_sizes`.

    The validation images are the same for every seed; it draws the training images where only some are wanted.
    """
    n_train, n_valid = split_sizes(n, n_train, n_valid)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    valid_rows, train_rows = shuffled[:n_valid], shuffled[n_valid:]
    if n_train < len(train_rows):
        drawn = torch.randperm(len(train_rows), generator=torch.Generator().manual_seed(seed))
        train_rows = train_rows[drawn[:n_train]]
    return train_rows, valid_rows


def at_most(options, **most):
    "The options with these whole numbers, where they are given, cut down to what there is."
    return options | {name: min(whole_number(name, options[name]), n) for name, n in most.items()
                      if options.get(name) is not None}


def pixel_statistics(images, name):
    "Mean and standard deviation of uint8 images, as floats; `DamagedFileError` where there is nothing to see in them."
    std, mean = torch.std_mean(images.float())
    if not std: raise DamagedFileError(f"The {name} training images are blank: every pixel is {mean:.0f}.")
    return mean.item(), std.item()


def check_affine(x, angle, translate, scale, shear):
    "Raises `ValueError` for what is no batch of float images, and for amounts that are no tensors."
    image_batch("x", x)
    for name, value in (("angle", angle), ("translate", translate), ("scale", scale), ("shear", shear)):
        a_tensor(name, value)


@functools.lru_cache(8)
@torch.inference_mode(False)  # what is kept may be needed in training later
def pixel_positions(height, width, device, dtype):
    "All pixels as (x, y, 1) from the centre, `[3, height · width]`, and what makes a pixel the unit of grid_sample."
    rows, columns = ((torch.arange(m, device=device, dtype=dtype) - (m - 1) / 2) for m in (height, width))
    ones = rows.new_ones(height * width)
    positions = torch.stack([columns.repeat(height), rows.repeat_interleave(width), ones])
    return positions, torch.tensor([2 / width, 2 / height], device=device, dtype=dtype)[:, None]


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


class CheckedAffine:
    """What a `RandomAffine` has besides its draws: checks of what it is given, and its ranges.

    Who inherits from it adds `__call__(xb, yb)`.
    """
    @checked(fill=finite)
    def __init__(self, degrees, translate=None, scale=None, shear=None, fill=None):
        self.ranges, self.fill = affine_ranges(degrees, translate, scale, shear), fill

    def limits(self, xb):
        "The lowest and the highest angle, shift right and down in pixels, factor, shear along x and y: `[6, 1]` each."
        (right, down), height, width = self.ranges["translate"], *xb.shape[2:]
        x_low, x_high, y_low, y_high = self.ranges["shear"]
        limits = [self.ranges["degrees"], (-right * width, right * width), (-down * height, down * height),
                  self.ranges["scale"], (x_low, x_high), (y_low, y_high)]
        return torch.tensor(limits, device=xb.device, dtype=xb.dtype)[..., None].unbind(1)

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self.ranges.items())})"
