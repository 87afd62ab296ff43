"""Callbacks that are checked when their class is made, the order in which they run, and what cancels a stage."""
import difflib
import inspect
import re
from graphlib import CycleError, TopologicalSorter

from .checks import shorten


class CheckedCallback:
    """What `Callback` inherits: its subclasses' methods are checked as soon as the class is made.

    events: the names of the loop's events; the rest as in `Callback`.
    """
    events, run_before, run_after = (), (), ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in ("run_before", "run_after"):
            if not isinstance(classes := getattr(cls, name), tuple) or not all(map(inspect.isclass, classes)):
                raise ValueError(f"{cls.__name__}.{name} must be a tuple of callback classes, "
                                 f"such as (Recorder,), not {classes!r}.")
        for name in dir(cls):
            if not name.startswith("_") and callable(method := getattr(cls, name)): check_method(cls, name, method)

    def __repr__(self): return type(self).__name__


class StageException(Exception):
    """What `CancelException` inherits: `class CancelStepException(CancelException, skips="step", severity=1)`.

    skips: the stage that it names; severity: when several are raised at once, the highest wins.
    """
    skips, severity = "", 0

    def __init_subclass__(cls, skips=None, severity=None, **kwargs):
        super().__init_subclass__(**kwargs)
        if skips is not None: cls.skips = skips
        if severity is not None: cls.severity = severity

    def __str__(self):  # whoever reads it: nobody caught it
        return super().__str__() or (f"{type(self).__name__} was raised where no {self.skips} is under way "
                                     "that it could cancel.")


class Stage:
    "A part of the loop that has a before and an after; `cancels`: the exceptions that cancel it."
    def __init__(self, name, *cancels):
        self.name, self.cancels = name, cancels
        self.before, self.after = f"before_{name}", f"after_{name}"
        self.events = self.before, self.after, f"after_cancel_{name}"


def check_method(cls, name, method):
    "Raises `ValueError` for a method named like an event that is none, and for an event's that takes no learner."
    if name in cls.events:
        kinds = inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction
        if any(is_one(method) for is_one in kinds):
            raise ValueError(f"{cls.__name__}.{name} must be a plain function: with async or yield it would never run.")
        try: inspect.signature(method).bind("self", "learn")
        except TypeError: raise ValueError(f"{cls.__name__}.{name} must take the learner: "
                                           f"def {name}(self, learn).") from None
        return
    # what other libraries, and older texts, say
    ours = re.sub(r"^on_(\w+)_(begin|start)$", r"before_\1", re.sub(r"^on_(\w+)_end$", r"after_\1", name.lower()))
    ours = re.sub("_(train|valid[a-z]*|test)_batch$", "_batch", re.sub("^begin_", "before_", ours))
    known = [event for event in cls.events if ("cancel" in event) == ("cancel" in ours)]
    near = difflib.get_close_matches(ours, known, 1, cutoff=0 if ours.startswith(("before_", "after_")) else .85)
    if near: raise ValueError(f"{cls.__name__}.{name}: there is no event of that name, so it would never be called. "
                              f"Did you mean {near[0]}? The events: {', '.join(cls.events)}.")


def in_order(cbs):
    """Callbacks in the order in which they run: that of the list, changed only where run_before and run_after say so.

    Raises `ValueError` for a circle, for what is no callback, and for one that is there twice.
    """
    for i, cb in enumerate(cbs):
        if inspect.isclass(cb) and issubclass(cb, CheckedCallback):
            raise ValueError(f"cbs: {cb.__name__} is a class. Give the learner a callback made from it: {cb.__name__}().")
        if not isinstance(cb, CheckedCallback):
            raise ValueError(f"cbs: {shorten(cb)} is no Callback. Derive its class from Callback.")
        if any(cb is other for other in cbs[:i]):
            raise ValueError(f"The same {cb!r} is there twice, and would do everything twice. Give it once: to the "
                             "learner, for every fit, or to this fit alone.")
    earlier = {i: {j for j, other in enumerate(cbs) if i != j and
                   (isinstance(other, cb.run_after) or isinstance(cb, other.run_before))}
               for i, cb in enumerate(cbs)}
    sorter, ready, ordered = TopologicalSorter(earlier), [], []
    try: sorter.prepare()
    except CycleError as error:
        circle = " → ".join(repr(cbs[i]) for i in error.args[1])
        raise ValueError(f"run_before and run_after go round in a circle: {circle}.") from None
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()])
        ordered.append(ready.pop(0))
        sorter.done(ordered[-1])
    return [cbs[i] for i in ordered]
