"""Checks of arguments that a function declares on top: `@checked(model=a_module, n_classes=positive_int)`."""
import functools
import inspect
import math
import numbers
import os
from collections.abc import Mapping

import torch
from torch import nn

from .checks import described, shorten


def checked(**kinds):
    """A decorator: before the function runs, each of these arguments goes through its check, and becomes what that gives.

    kinds: name -> check, `(name, value) -> value`, which raises `ValueError` for what it does not let through. An
    argument whose default is None may be None.
    """
    def decorate(function):
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args, **kwargs):
            given = signature.bind(*args, **kwargs)
            for name, check in kinds.items():
                if name not in given.arguments: continue
                value = given.arguments[name]
                if value is None and signature.parameters[name].default is None: continue
                given.arguments[name] = check(name, value)
            return function(*given.args, **given.kwargs)
        return call
    return decorate


def refuse(name, expected, value): raise ValueError(f"{name} must be {expected}, not {shorten(value)}.")


def a_number(expected, fits):
    "A check for finite real numbers, and tensors that hold one, that `fits` lets through."
    def check(name, value):
        plain = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        real = isinstance(plain, numbers.Real) and not isinstance(plain, bool)
        if not real or not math.isfinite(plain) or not fits(plain): refuse(name, expected, value)
        return value
    return check


finite = a_number("a finite number", lambda x: True)
above_0 = a_number("above 0", lambda x: x > 0)
at_least_0 = a_number("at least 0", lambda x: x >= 0)
above_1 = a_number("above 1", lambda x: x > 1)
a_share = a_number("a share of the whole, from 0 to 1", lambda x: 0 <= x <= 1)
below_1 = a_number("at least 0 and below 1", lambda x: 0 <= x < 1)


def an_instance(expected, *types):
    "A check for objects of these types."
    def check(name, value):
        if not isinstance(value, types): refuse(name, expected, value)
        return value
    return check


a_module = an_instance("an nn.Module", nn.Module)
a_tensor = an_instance("a tensor", torch.Tensor)
a_dtype = an_instance("a dtype of torch, such as torch.bfloat16", torch.dtype)
a_state_dict = an_instance("a dict of tensors by name", Mapping)
a_path = an_instance("a path, a text or a pathlib.Path", str, os.PathLike)


def a_range(name, value):
    pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, numbers.Real) for v in value)
    if not pair or not -math.inf < value[0] < value[1] < math.inf: refuse(name, "two numbers, low and high", value)
    return value


def a_device(name, value):
    try:
        if isinstance(value, (str, torch.device)): return torch.device(value)
    except RuntimeError: pass
    return refuse(name, "a device such as 'cpu'", value)


def a_text(name, value):
    if not isinstance(value, str) or not value.strip(): refuse(name, "a text that is not empty", value)
    return value


def a_function(name, value):
    if not callable(value): refuse(name, "a function", value)
    return value


def a_loader(name, value):
    if not hasattr(type(value), "__iter__") or isinstance(value, str): refuse(name, "a loader of batches (xb, yb)", value)
    return value


def a_batch(batch):
    "What a loader gave, if it is a pair (xb, yb)."
    if isinstance(batch, (tuple, list)) and len(batch) == 2: return batch
    raise ValueError(f"A loader, be it in dls or given as dl, gives pairs (xb, yb), not {shorten(batch)}.")


def pairs(loader):
    "What a loader gives, batch by batch, each looked at."
    yield from map(a_batch, loader)


def a_pair_of_tensors(name, value):
    pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(x, torch.Tensor) for x in value)
    if not pair: refuse(name, "a pair of tensors (x, y)", value)
    return value


def a_dls(name, value):
    if not hasattr(value, "train") or not hasattr(value, "valid"):
        raise ValueError(f"{name} must have loaders .train and .valid, as DataLoaders(train, valid) has; got {value!r}.")
    return value


def image_batch(name, value):
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or not value.is_floating_point():
        raise ValueError(f"Expected float images [n, channels, height, width] as {name}, got {described(value)}.")
    return value
