"""What stands around chapter 15's few lines: a model asked in evaluation mode, checks, targets as shares."""
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from .arguments import a_batch, a_pair_of_tensors, an_instance, refuse
from .checks import counted, described, shorten
from .transfer import first_of_each_class

true_or_false = an_instance("True or False", bool)


@contextmanager
def evaluating(model):
    "The model in evaluation mode; afterwards, also after an error, each of its modules is in the mode it was in."
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try: yield model
    finally:
        for module, mode in modes: module.training = mode


def inputs(name, value):
    "A tensor of at least one input, `[n, ...]`."
    if not isinstance(value, torch.Tensor) or not value.ndim or not len(value):
        refuse(name, "a tensor of at least one input, [n, ...]", value)
    return value


def check_logits(logits, xb):
    "What a model gave for xb: finite logits `[n, K]` of two classes or more."
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(xb) or logits.shape[1] < 2:
        raise ValueError(f"The model must give logits [{len(xb)}, classes] for {counted(len(xb), 'input')}, not {described(logits)}.")
    if not logits.isfinite().all():
        raise ValueError("The model gave logits that are NaN or infinite: nothing can be learned from such labels. Has it diverged?")
    return logits


def probabilities(name, value):
    "A tensor `[n, K]` whose rows are shares of K classes and sum to 1."
    if not isinstance(value, torch.Tensor) or value.ndim != 2 or not value.is_floating_point():
        raise ValueError(f"{name} must be probabilities [n, classes], not {described(value)}.")
    if len(value) and not ((value >= 0).all() and ((value.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError(f"{name} must have rows of probabilities from 0 to 1 that sum to 1. (From logits, softmax(1) makes them.)")
    return value


def labelled_pair(name, value):
    "Inputs `[n, ...]` and as many classes `[n]`, whole numbers from 0 on."
    x, y = a_pair_of_tensors(name, value)
    if y.ndim != 1 or y.is_floating_point() or y.dtype is torch.bool or not x.ndim or len(x) != len(y) or not len(y):
        raise ValueError(f"{name} must be a pair of inputs [n, ...] and their classes [n], whole numbers; got {described(x)} "
                         f"and {described(y)}.")
    if y.min() < 0: raise ValueError(f"{name} must have classes from 0 on; the smallest is {y.min()}.")
    return x, y.long()


def as_shares(classes, n_classes):
    "Classes `[n]` as rows of shares `[n, n_classes]`, a 1 in each."
    if len(classes) and classes.max() >= n_classes:
        raise ValueError(f"A label is class {classes.max()}, but the model knows {n_classes} classes, from 0 on.")
    return F.one_hot(classes, n_classes).float()


def mean_entry(history, value, decay=.99):
    "A moving average of plain numbers; the first one as it is."
    return value if history is None else decay * history + (1 - decay) * value


def batch_of(batch):
    "A labelled batch `(xb, yb)`; `ValueError` for anything else."
    try: return a_batch(batch)
    except ValueError: raise ValueError(f"labelled must be a loader of pairs (xb, yb); it gave {shorten(batch)}.") from None


def inputs_of(batch):
    "The inputs of an unlabelled batch: what a loader of pairs gave, of which the second is not looked at, or a tensor."
    if isinstance(batch, torch.Tensor): return batch
    try: return a_batch(batch)[0]
    except ValueError:
        raise ValueError(f"unlabelled must be a loader of pairs (xb, yb) or of inputs alone; it gave {shorten(batch)}.") from None


def check_fits(unlabelled, labelled):
    "Are these inputs of one kind?"
    if unlabelled.shape[1:] != labelled.shape[1:] or unlabelled.dtype != labelled.dtype:
        raise ValueError(f"Labelled and unlabelled inputs must be of one kind, but are {described(labelled)} and {described(unlabelled)}.")


def few_labels(x, y, n_per_class, seed):
    "The first n images of each class in an order that the seed draws, and their classes; None: all there are."
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)
    rows = order if n_per_class is None else first_of_each_class(y, order, n_per_class)
    return x[rows], y[rows]


def without_labels(dls, n=5000):
    "The training images in two parts: (x, y) to draw labels from, and (x, y) of at most n images, at most half, whose y only judges."
    x, y = dls.train.x, dls.train.y
    n = min(n, len(x) // 2)
    return (x[:-n], y[:-n]), (x[-n:], y[-n:])


def optimizer_of(name, make, model):
    "What `make` makes of the model's parameters: an optimizer, or a `ValueError`."
    opt = make(model.parameters())
    if not hasattr(opt, "param_groups"): raise ValueError(f"{name} must give an optimizer of parameters, not {shorten(opt)}.")
    return opt
