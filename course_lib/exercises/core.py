"""What checks an answer: the same fresh cases for the reader's answer, an oracle and the common mistakes, and words for what differs."""
import contextlib
import copy
import functools
import inspect
import io
import itertools
import math
import pkgutil
import random
import signal
import textwrap
import threading
import time
import warnings
from unittest import mock

import numpy as np
import torch

from ..support.state import random_state, set_random_state

CHANGED = "it has changed what it was given"
# For all an answer does in one check, where the platform can stop it: in the main thread of Linux and macOS.
LIMIT_S = 2  # of computing, since on a busy machine a right answer may wait for long
PATIENCE = 5  # times as long where it mostly waits, asleep or for others


class Checked:
    "What a check found: `.passed`, `.attempted`, and a message, which printing it shows."
    def __init__(self, passed, message, attempted=True):
        self.passed, self.message, self.attempted = passed, message, attempted

    def __str__(self): return self.message

    __repr__ = __str__

    def __bool__(self): return self.passed


class Text(str):
    "A text that a notebook shows as it is."
    __repr__ = str.__str__


class Raised:
    "An answer raised an exception in the place of giving a value."
    def __init__(self, error): self.error = error

    def __str__(self): return f"{type(self.error).__name__}: {self.error}"


class Exercise:
    """An exercise: hints, stub, answer, and how to tell right from wrong by behaviour.

    cases: `random.Random -> list` of fresh cases, each a dict; run: `(answer, **case) -> dict` of what can be seen, name ->
    tensor, number or list; truth: `(**case) -> dict` of what should be seen, by torch or a closed form, not by the answer;
    mistakes: a sentence -> a function or class that makes this mistake; instead: torch functions ("torch.optim.SGD.step")
    that the answer is to do itself; why: what `solution` says below the code.
    """
    def __init__(self, chapter, answer, stub, hints, mistakes, cases, run, truth, why, instead=(), tolerance=1e-5):
        self.chapter, self.answer, self.name, self.hints = chapter, answer, answer.__name__, hints
        self.stub, self.mistakes, self.why = textwrap.dedent(stub).strip("\n"), mistakes, why
        self.cases, self.run, self.truth = cases, run, truth
        self.instead, self.tolerance = instead, tolerance

    def check(self, answer, seed=None):
        "A `Checked`; the answer's own name does not matter. seed: of the cases, by default fresh ones each time."
        warm_up()
        cases = self.cases(random.Random(seed))
        with calls_of(self.instead) as called: seen = self.outcomes(answer, cases)
        wanted = [self.truth(**copy.deepcopy(case)) for case in cases]
        if same(seen, wanted, self.tolerance) and not called: return Checked(True, f"{self.name}: right.")
        if code_of(answer) == code_of(stub := self.untouched()) and same(seen, self.outcomes(stub, cases), 0.):
            return Checked(False, f"{self.name}: not yet attempted.", attempted=False)
        for sentence, mistake in self.mistakes.items():
            if same(seen, self.outcomes(mistake, cases, like=seen), self.tolerance): return self.wrong(sentence)
        if called:
            return self.wrong(f"{' and '.join(sorted(called))} did the work. This exercise asks you to do it yourself.")
        for case, one, right in zip(cases, seen, wanted):
            if not same(one, right, self.tolerance): return self.wrong(self.difference(case, one, right))

    def wrong(self, sentence): return Checked(False, f"{self.name}: not yet. {sentence}")

    def untouched(self):
        "What the stub defines."
        space = dict(inspect.getmodule(self.answer).__dict__)
        exec(compile(self.stub, f"<stub of {self.name}>", "exec"), space)
        return space[self.name]

    def outcomes(self, answer, cases, like=None):
        """What can be seen of an answer in each case: a dict, or `Raised`; after the time limit `Raised` in all that is left.

        like: outcomes to compare with; the first that is another is the last that is looked for.
        """
        found = []
        with undisturbed(), time_limit(LIMIT_S):
            for case in cases:
                given = copy.deepcopy(case)
                try:
                    found.append(self.run(answer, **given))
                    if not same(plain(given), plain(case), 0.): found[-1][CHANGED] = True
                except (Exception, SystemExit, OutOfTime) as error:
                    found.append(Raised(error))
                    if isinstance(error, OutOfTime): break
                if like and not same(found[-1], like[len(found) - 1], self.tolerance): break
        return found + found[-1:] * (len(cases) - len(found))

    def difference(self, case, seen, wanted):
        "A sentence that says where an answer goes wrong."
        where = ", ".join(f"{name} = {short(value)}" for name, value in case.items() if not name.startswith("_"))
        if isinstance(seen, Raised):
            if isinstance(seen.error, OutOfTime): return f"It did not come to an end within {LIMIT_S} seconds. Is there an endless loop?"
            return f"With {where} it raised {seen}"
        for name, right in wanted.items():
            if not same(seen.get(name), right, self.tolerance):
                return f"With {where}: {name} {how_it_differs(seen.get(name), right, self.tolerance)}"
        return f"With {where} it comes to the right result, but {CHANGED}. Leave that as it is: work on a copy, or out of place."


def plain(given):
    "A case with None for all but tensors, numbers and texts: what becomes of a model is its exercise's business."
    if isinstance(given, dict): return {name: plain(value) for name, value in given.items()}
    if isinstance(given, list | tuple): return [plain(value) for value in given]
    return given if isinstance(given, torch.Tensor | int | float | str) else None


def random_tensor(rng, *shape, dtype=torch.float32):
    "A tensor of normal numbers, drawn by a `random.Random`."
    return torch.randn(shape, generator=torch.Generator().manual_seed(rng.randrange(2 ** 40)), dtype=dtype)


def code_of(answer):
    "The compiled code of a function, or of a class's methods, to tell an answer from the stub."
    if inspect.isclass(answer): return {name: code_of(value) for name, value in vars(answer).items() if inspect.isfunction(value)}
    code = getattr(answer, "__code__", None)
    return code and (code.co_code, [const for const in code.co_consts if not isinstance(const, str | type(code))], code.co_names)


@functools.cache
def warm_up():
    "torch's first optimizer imports for seconds, which are not the answer's, and which no time limit may cut in two."
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.)


class OutOfTime(BaseException):
    "An answer took too long. An answer's own `except Exception` does not stop it."


@contextlib.contextmanager
def time_limit(seconds, tick=.5):
    """Under `with`: `OutOfTime` after so many seconds of computing, or `PATIENCE` times as many by the clock.

    Only where signals can do that: not on Windows, nor beside the main thread.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    start, ticks = time.thread_time(), itertools.count(1)

    def look(*_):
        if max(time.thread_time() - start, next(ticks) * tick / PATIENCE) >= seconds: raise OutOfTime()
    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, tick, tick)  # again and again: what is raised in a finalizer is swallowed
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def undisturbed():
    "Under `with`: random numbers of all three kinds go on afterwards as if nothing had been; what is printed is swallowed."
    state = random_state()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: yield
        finally: set_random_state(state)


@contextlib.contextmanager
def calls_of(names):
    "Under `with`: a set that fills with those of the named functions that are called."
    called = set()
    with contextlib.ExitStack() as stack:
        for name in names:
            original = pkgutil.resolve_name(name)

            def spy(*args, _name=name, _original=original, **kwargs):
                called.add(_name)
                return _original(*args, **kwargs)
            stack.enter_context(mock.patch(name, spy))
        yield called


def same(a, b, tolerance):
    "Do two outcomes agree? Tensors and numbers up to the tolerance, relative to what should be there, NaN with NaN."
    if isinstance(a, Raised) or isinstance(b, Raised):
        return isinstance(a, Raised) and isinstance(b, Raised) and repr(a.error) == repr(b.error)
    if isinstance(b, dict):
        return isinstance(a, dict) and a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in b)
    if isinstance(b, list | tuple):
        return isinstance(a, list | tuple) and len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b))
    if isinstance(b, torch.Tensor):
        if not isinstance(a, torch.Tensor) or a.shape != b.shape or a.dtype != b.dtype: return False
        return torch.allclose(a.detach().double(), b.detach().double(), rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(b, bool | np.bool_): return isinstance(a, bool | np.bool_) and bool(a) == bool(b)
    if isinstance(b, int | float | np.number):
        a = number(a)
        return a is not None and (math.isnan(a) and math.isnan(b) or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance))
    return type(a) is type(b) and a == b


def number(value):
    "A plain number, or None; a tensor of one number will do."
    if isinstance(value, torch.Tensor) and value.numel() == 1: return value.item()
    if isinstance(value, int | float | np.number) and not isinstance(value, bool): return float(value)


def short(value):
    if isinstance(value, float): return f"{value:.4g}"
    if isinstance(value, torch.Tensor):
        return f"{value.item():.4g}" if value.numel() == 1 else f"a tensor {list(value.shape)}"
    return textwrap.shorten(repr(value), 60)


def how_it_differs(seen, right, tolerance):
    "What is wrong with a value, as specific as can be said without knowing the exercise."
    if seen is None: return "is None. Does every path of your code return something?"
    if isinstance(right, torch.Tensor):
        if not isinstance(seen, torch.Tensor): return f"should be a tensor, not {type(seen).__name__}."
        if seen.shape != right.shape: return f"has the shape {list(seen.shape)}, and should have {list(right.shape)}."
        if seen.dtype != right.dtype: return f"has the dtype {seen.dtype}, and should have {right.dtype}."
        ours, theirs = seen.detach().double(), right.detach().double()
    elif isinstance(right, bool | np.bool_) or number(right) is None:
        return f"is {short(seen)}, and should be {short(right)}."
    else:
        if number(seen) is None: return f"should be a number, not {type(seen).__name__}."
        ours, theirs = (torch.tensor(number(value), dtype=torch.float64) for value in (seen, right))
    said = f"is {short(seen)}, and should be {short(right)}." if ours.numel() == 1 else "has other values than it should."
    if ours.isnan().any() and not theirs.isnan().any(): return "is NaN."
    if same(-ours, theirs, tolerance): return f"has the wrong sign: it {said}"
    if (ours.ndim == 0 and isinstance(right, int) and abs(ours - theirs) == 1): return f"is off by one: it {said}"
    ratios = (ours / theirs)[theirs != 0].flatten()
    if len(ratios) > 1 and ratios[0] != 0 and same(ours, ratios[0] * theirs, tolerance):
        return f"is everywhere {ratios[0]:.4g} times what it should be."
    if ours.numel() > 1:
        at = (ours - theirs).abs().nan_to_num(math.inf).argmax()
        return (f"has other values than it should: {ours.flatten()[at]:.4g} in one place, where "
                f"{theirs.flatten()[at]:.4g} should be.")
    return said
