"""Checks of arguments, and the words of their errors."""
import inspect
import math
import numbers
import operator

import torch
from torch import nn


def whole_number(name, value, at_least=None):
    "`value` as an int; raises `ValueError` for what is not a whole number, or less than at_least."
    try: whole = operator.index(value)
    except TypeError: whole = None
    if whole is None or at_least is not None and whole < at_least:
        expected = "" if at_least is None else f", at least {at_least}"
        raise ValueError(f"{name} must be a whole number{expected}, not {value!r}.")
    return whole


RANGES = {"lr": (0, math.inf), "beta": (0, 1), "sqr_beta": (0, 1), "slow_beta": (0, 1),  # low ≤ value < high
          "eps": (0, math.inf), "weight_decay": (0, math.inf)}
SCHEDULER_KEYS = ("initial_lr", "max_lr", "min_lr", "swa_lr",  # what torch's schedulers note in a group
                  "base_momentum", "max_momentum")
FOREIGN_NAMES = {"momentum": "beta", "alpha": "sqr_beta", "betas": "beta", "learning_rate": "lr"}  # other people's words


def check_hyper(name, value, argument=None):
    """`value` as a float, or the tensor that it is; raises `ValueError` unless it is in the range of `name`.

    argument: what the caller calls it, where that is another word.
    """
    low, high = RANGES.get(name, (-math.inf, math.inf))
    name = argument or name
    at_least = "" if low == -math.inf else "at least 0"
    below = " and below 1" if high == 1 else ""
    expected = f"finite and {at_least}{below}".removesuffix(" and ")
    if isinstance(value, torch.Tensor):
        if value.ndim > 1 or not value.is_floating_point():
            raise ValueError(f"{name}: a tensor of hyperparameters is floating point and has one axis, "
                             f"one value for each model; got {value.dtype} {list(value.shape)}.")
        fits = bool(((value >= low) & (value < high) & value.isfinite()).all())
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number ({expected}) or a tensor of them, not {value!r}.")
    else:
        value = float(value)
        fits = math.isfinite(value) and low <= value < high
    if not fits: raise ValueError(f"{name} must be {expected}, not {value}.")
    return value


def check_betas(betas):
    "The pair of an argument `betas`, each checked under the name that it came by."
    try: first, second = betas
    except (TypeError, ValueError):
        raise ValueError(f"betas must be a pair, for example (0.9, 0.999), not {betas!r}.") from None
    return check_hyper("beta", first, "betas[0]"), check_hyper("sqr_beta", second, "betas[1]")


def check_mean(what, value):
    if not isinstance(value, torch.Tensor): raise ValueError(f"{what} must be a tensor, not {value!r:.80}.")
    if value.ndim: raise ValueError(f"{what} must be one number for a batch, its mean; got shape {list(value.shape)}.")
    return value


def as_tensor(value): return torch.tensor(float(value)) if isinstance(value, numbers.Real) else value


def shorten(x):
    "`repr(x)` for a message: on one line, and its beginning if it is long."
    text = " ".join(repr(x).split())
    return text if len(text) <= 80 else text[:79] + "…"


def described(x):
    "dtype and shape of a tensor, and anything else as `shorten` gives it."
    return f"{x.dtype} {list(x.shape)}" if isinstance(x, torch.Tensor) else shorten(x)


def as_list(name, values):
    "`values` as a list; `ValueError` for a single thing in its place."
    if hasattr(type(values), "__iter__") and not isinstance(values, str): return list(values)
    raise ValueError(f"{name} must be a list, not {shorten(values)}: write {name}=[…].")


def counted(n, noun):
    "`1 step`, `20 steps`: a number and what it counts."
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}{'es' if noun.endswith(('s', 'x', 'tch', 'sh')) else 's'}"


def check_function(name, function, example):
    "Raises `ValueError` for what cannot be called, and for a class of modules, which would have to be called twice."
    if inspect.isclass(function) and issubclass(function, nn.Module):
        raise ValueError(f"{name} is the class {function.__name__}: give an object of it, {function.__name__}().")
    if not callable(function): raise ValueError(f"{name} must be a function, not {shorten(function)}: {example}.")


def positive_int(name, value):
    "`value` as an int; `ValueError` unless it is a whole number from 1 on."
    return whole_number(name, value, at_least=1)


def whole_from_0(name, value):
    "`value` as an int; `ValueError` unless it is a whole number from 0 on."
    return whole_number(name, value, at_least=0)


def check_mean_loss(loss):
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        raise ValueError("loss_func must return one number for a batch, its mean, as a tensor without axes; got "
                         f"{f'shape {list(loss.shape)}' if isinstance(loss, torch.Tensor) else repr(loss)[:80]}.")
