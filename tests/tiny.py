"""A regression and nets of a few weights, which the tests of callbacks and of schedules train."""
import contextlib
import gc
import linecache
import random
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from course_lib.data import TensorLoader
from course_lib.learner import Learner

every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU that speaks CUDA"))])


def seed(n=0):
    random.seed(n)
    np.random.seed(n)
    torch.manual_seed(n)


def data(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    return x, x.sum(1, keepdim=True).sin() + .1 * torch.randn(n, 1, generator=generator)


def tiny_net(kind="norm", width=6):
    "The same weights each time; norm: with batchnorm and dropout, plain: without."
    torch.manual_seed(0)
    layers = [nn.Linear(3, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(.3), nn.Linear(width, 1)]
    return nn.Sequential(*layers) if kind == "norm" else nn.Sequential(layers[0], layers[2], layers[4])


def loaders(kind="tensors", dtype=torch.float32):
    "40 samples to train in shuffled batches of 12, from a loader of ours or of torch; one batch to validate."
    x, y = (part.to(dtype) for part in data(40))
    train = {"tensors": lambda: TensorLoader(x, y, 12, shuffle=True),
             "torch": lambda: DataLoader(TensorDataset(x, y), 12, shuffle=True),
             "torch, own generator": lambda: DataLoader(TensorDataset(x, y), 12, shuffle=True,
                                                        generator=torch.Generator().manual_seed(3))}[kind]()
    return SimpleNamespace(train=train, valid=[tuple(part.to(dtype) for part in data(10, 2))])


@contextlib.contextmanager
def learners_made(monkeypatch, module, explorer):
    "Weak references to the learners that a figure makes in the block, without garbage collection or drawing."
    made = []

    class Watched(Learner):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(weakref.ref(self))
    monkeypatch.setattr(f"{module}.Learner", Watched)
    monkeypatch.setattr(explorer.figure, "update", lambda: None)  # drawing takes most of the time
    gc.collect()
    gc.disable()
    try: yield made
    finally: gc.enable()


def with_ctrl_c(work, at, functions, but="\0"):
    """Call work, with a Ctrl-C at the at-th line that runs in functions of these names (0: none); -> how many lines
    did.

    but: lines that begin so do not count.
    """
    lines = 0

    def trace(frame, event, arg):
        nonlocal lines
        if frame.f_code.co_name not in functions: return
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith(but):
            lines += 1
            if lines == at: raise KeyboardInterrupt
        return trace
    before = sys.gettrace()
    sys.settrace(trace)
    try: work()
    except KeyboardInterrupt: pass
    finally: sys.settrace(before)
    return lines
