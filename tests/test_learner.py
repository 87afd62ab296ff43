"""The loop against hand-written ones, torch and scikit-learn: what runs under every cancel and error, what is averaged,
and who is told what."""
import copy
import itertools
import math
import random
import re
import warnings
from collections import namedtuple
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, mean_absolute_error
from torch import nn

from course_lib.adam import Adam
from course_lib.data import TensorLoader
from course_lib.figures.learner import cancel_explorer
from course_lib.learner import (
    Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelStepException,
    CancelTrainException, CancelValidateException, Learner, ModelResetter, RNNRegularizer, TerminateOnNaN, accuracy)
from course_lib.momentum import SGD
from course_lib.sgd import Optimizer, sgd_step
from course_lib.support.callbacks import in_order
from course_lib.support.flat import flatten_parameters
from drive import check_words, drive, words_of
from tiny import with_ctrl_c

pytestmark = pytest.mark.usefixtures("one_thread")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def pairs(n, size=4, last=None, seed=1):
    "n batches of inputs `[size, 3]` and targets `[size, 1]`; the last one of another size, if given."
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(last if last and i == n - 1 else size, k, generator=generator) for k in (3, 1))
            for i in range(n)]


TORCH_SGD = partial(torch.optim.SGD, lr=.1, momentum=.9)


def learner(train=4, valid=2, opt_func=TORCH_SGD, model=None, loss_func=F.mse_loss, **options):
    "train, valid: loaders, or numbers of batches (valid None: there is none)."
    train = pairs(train) if isinstance(train, int) else train
    valid = pairs(valid, last=1, seed=2) if isinstance(valid, int) else valid
    return Learner(net() if model is None else model, SimpleNamespace(train=train, valid=valid), loss_func, opt_func,
                   **options)


def by_hand(model, batches, optimizer, steps=lambda i: True, backwards=lambda i: True):
    "The loop of a textbook; steps, backwards: whether batch i makes one. Returns the losses."
    losses = []
    for i, (xb, yb) in enumerate(batches):
        loss = F.mse_loss(model(xb), yb)
        losses.append(loss.detach())
        if not backwards(i): continue
        loss.backward()
        if not steps(i): continue
        optimizer.step()
        optimizer.zero_grad()
    return losses


def assert_same(model, other):
    for (name, value), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def differ(model, other):
    return any(not torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def on(**methods):
    "A callback of a class called On, with these functions of the learner as its methods."
    return type("On", (Callback,), {name: lambda self, learn, f=f: f(learn) for name, f in methods.items()})()


class Throw(Callback):
    "Raises `error` the first time that `event` happens and `when(learn)` holds."
    def __init__(self, event, error, when=lambda learn: True):
        self.event, self.error, self.when, self.done = event, error, when, False
        setattr(self, event, self.act)

    def act(self, learn):
        if self.done or not self.when(learn): return
        self.done = True
        raise self.error


# The order of events

# f( before_fit, f! after_cancel_fit, f) after_fit
SHORT = {"f": "fit", "e": "epoch", "t": "train", "v": "validate", "b": "batch", "w": "backward", "s": "step"}
SHORT = {**{f"{k}(": f"before_{name}" for k, name in SHORT.items()},
         **{f"{k})": f"after_{name}" for k, name in SHORT.items()},
         **{f"{k}!": f"after_cancel_{name}" for k, name in SHORT.items() if k != "w"}, "p": "after_pred",
         "l": "after_loss"}
# undisturbed: the rest after two training batches, training, validation, a training batch
WHOLE = {"…": "t) V e) f)", "T": "t( B B t)", "V": "v( b( p l b) v)", "B": "b( p l w( w) s( s) b)"}


def written_out(text):
    for name, meaning in WHOLE.items(): text = text.replace(name, meaning)
    return text


class Trace(Callback):
    "Writes every event down, in short."
    def __init__(self): self.seen = []

    @property
    def text(self): return " ".join(self.seen)


for short, event in SHORT.items(): setattr(Trace, event, lambda self, learn, short=short: self.seen.append(short))

CANCELS = (CancelStepException, CancelBatchException, CancelTrainException, CancelValidateException,
           CancelEpochException, CancelFitException)

# event, what has happened up to it | then, if it raises: CancelStep | CancelBatch | CancelTrain | CancelValidate |
# CancelEpoch | CancelFit | another error.
# ✗: it comes out of fit.
ORDER = """
before_fit      f(                          | f) ✗         | f) ✗         | f) ✗       | f) ✗             | f) ✗              | f! f)             | f) ✗
before_epoch    f( e(                       | e) f) ✗      | e) f) ✗      | e) f) ✗    | e) f) ✗          | e! e) f)          | e) f! f)          | e) f) ✗
before_train    f( e( t(                    | t) e) f) ✗   | t) e) f) ✗   | t! …       | t) e) f) ✗       | t) e! e) f)       | t) e) f! f)       | t) e) f) ✗
before_batch    f( e( t( b(                 | s! b) B …    | b! b) B …    | b) t! …    | b) t) e) f) ✗    | b) t) e! e) f)    | b) t) e) f! f)    | b) t) e) f) ✗
after_pred      f( e( t( b( p               | s! b) B …    | b! b) B …    | b) t! …    | b) t) e) f) ✗    | b) t) e! e) f)    | b) t) e) f! f)    | b) t) e) f) ✗
after_loss      f( e( t( b( p l             | s! b) B …    | b! b) B …    | b) t! …    | b) t) e) f) ✗    | b) t) e! e) f)    | b) t) e) f! f)    | b) t) e) f) ✗
before_backward f( e( t( b( p l w(          | w) s! b) B … | w) b! b) B … | w) b) t! … | w) b) t) e) f) ✗ | w) b) t) e! e) f) | w) b) t) e) f! f) | w) b) t) e) f) ✗
after_backward  f( e( t( b( p l w( w)       | s! b) B …    | b! b) B …    | b) t! …    | b) t) e) f) ✗    | b) t) e! e) f)    | b) t) e) f! f)    | b) t) e) f) ✗
before_step     f( e( t( b( p l w( w) s(    | s! s) b) B … | s) b! b) B … | s) b) t! … | s) b) t) e) f) ✗ | s) b) t) e! e) f) | s) b) t) e) f! f) | s) b) t) e) f) ✗
after_step      f( e( t( b( p l w( w) s( s) | b) B …       | b! b) B …    | b) t! …    | b) t) e) f) ✗    | b) t) e! e) f)    | b) t) e) f! f)    | b) t) e) f) ✗
after_batch     f( e( t( B                  | t) e) f) ✗   | B …          | t! …       | t) e) f) ✗       | t) e! e) f)       | t) e) f! f)       | t) e) f) ✗
after_train     f( e( T                     | e) f) ✗      | e) f) ✗      | V e) f)    | e) f) ✗          | e! e) f)          | e) f! f)          | e) f) ✗
before_validate f( e( T v(                  | v) e) f) ✗   | v) e) f) ✗   | v) e) f) ✗ | v! v) e) f)      | v) e! e) f)       | v) e) f! f)       | v) e) f) ✗
after_validate  f( e( T V                   | e) f) ✗      | e) f) ✗      | e) f) ✗    | e) f)            | e! e) f)          | e) f! f)          | e) f) ✗
after_epoch     f( e( T V e)                | f) ✗         | f) ✗         | f) ✗       | f) ✗             | f)                | f! f)             | f) ✗
after_fit       f( e( T V e) f)             | ✗            | ✗            | ✗          | ✗                | ✗                 |                   | ✗
"""  # noqa: E501
IN_VALIDATION = """
before_batch    f( e( T v( b(        | b) v) e) f) ✗ | b! b) v) e) f) | b) v) e) f) ✗ | b) v! v) e) f) | b) v) e! e) f) | b) v) e) f! f) | b) v) e) f) ✗
after_pred      f( e( T v( b( p      | b) v) e) f) ✗ | b! b) v) e) f) | b) v) e) f) ✗ | b) v! v) e) f) | b) v) e! e) f) | b) v) e) f! f) | b) v) e) f) ✗
after_loss      f( e( T v( b( p l    | b) v) e) f) ✗ | b! b) v) e) f) | b) v) e) f) ✗ | b) v! v) e) f) | b) v) e! e) f) | b) v) e) f! f) | b) v) e) f) ✗
after_batch     f( e( T v( b( p l b) | v) e) f) ✗    | v) e) f)       | v) e) f) ✗    | v! v) e) f)    | v) e! e) f)    | v) e) f! f)    | v) e) f) ✗
"""  # noqa: E501


def cases():
    for table, place in ((ORDER, "fit"), (IN_VALIDATION, "validation")):
        for line in table.strip().splitlines():
            (event, *head), *tails = (cell.split() for cell in line.split("|"))
            for error, tail in zip((*CANCELS, ValueError, KeyboardInterrupt), [*tails, tails[-1]], strict=True):
                yield pytest.param(event, error, place, " ".join(head), " ".join(tail),
                                   id=f"{error.__name__}-{event}-{place}")


def test_the_table_has_every_event_and_every_exception():
    assert (len(list(cases())) == 8 * (16 + 4)
            and {case.values[0] for case in cases()} == {e for e in SHORT.values() if "cancel" not in e})


@pytest.mark.parametrize("raiser_first", [False, True])
@pytest.mark.parametrize("event, error, place, head, tail", list(cases()))
def test_order_of_events(event, error, place, head, tail, raiser_first):
    "Whoever comes later misses what the one before it raises in, unless that is an after_X: that one everybody gets."
    trace, problem = Trace(), error("as asked")
    raiser = Throw(event, problem, lambda learn: place == "fit" or not learn.training)
    learn, escaped = learner(2, 1), None
    head = written_out(head).split()
    if raiser_first and not head[-1].endswith(")"): head.pop()
    try: learn.fit(1, cbs=[raiser, trace] if raiser_first else [trace, raiser])
    except BaseException as caught: escaped = caught
    assert raiser.done
    assert trace.text == " ".join([*head, *written_out(tail.replace("✗", "")).split()])
    assert escaped is (problem if "✗" in tail else None)
    if escaped: assert any("Throw" in note and event in note for note in escaped.__notes__)
    trace.seen.clear()
    learn.fit(1, cbs=[trace])
    assert trace.text == written_out("f( e( T V e) f)")


def test_two_epochs_and_no_validation():
    trace = Trace()
    learner(2, None).fit(2, cbs=[trace])
    assert trace.text == written_out("f( e( T e) e( T e) f)")


@pytest.mark.parametrize("when, what, expected", [
    (("b!", ValueError), CancelBatchException, "b( b! b) t) e) f) ✗"),
    (("b!", CancelTrainException), CancelBatchException, "b( b! b) t! t) V e) f)"),
    (("b!", CancelBatchException), CancelBatchException, "b( b! b) B t) V e) f)"),
    (("b)", CancelFitException), CancelTrainException, "b( b) t) e) f! f)"),
    (("b)", CancelBatchException), CancelFitException, "b( b) t) e) f! f)"),
    (("t!", CancelEpochException), CancelTrainException, "b( b) t! t) e! e) f)"),
    (("t)", CancelEpochException), CancelFitException, "b( b) t) e) f! f)"),
    (("e)", CancelTrainException), CancelFitException, "b( b) t) e) f! f)")])
def test_raised_on_the_way_out_the_gravest_wins(when, what, expected):
    (short, second), trace = when, Trace()
    learn = learner(2, 1, cbs=[trace, Throw("before_batch", what()), Throw(SHORT[short], second())])
    if "✗" in expected:
        with pytest.raises(second): learn.fit(1)
    else: learn.fit(1)
    assert trace.text == written_out("f( e( t( " + expected.removesuffix(" ✗"))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("cancel", CANCELS)
def test_an_error_is_never_replaced_by_a_cancel(cancel, first, error):
    problem, places = error("mine"), ["after_loss", "after_batch"]
    raisers = [Throw(places[not first], problem), Throw(places[first], cancel())]
    with pytest.raises(error) as caught: learner(2, 1).fit(1, cbs=raisers)
    assert caught.value is problem and all(raiser.done for raiser in raisers)
    problem = error("mine")
    for cbs in ([Throw("after_batch", problem), Throw("after_batch", cancel())],
                [Throw("after_batch", cancel()), Throw("after_batch", problem)]):
        with pytest.raises(error) as caught: learner(2, 1).fit(1, cbs=cbs)
        assert caught.value is problem


def test_a_stage_with_listeners_and_one_without_train_alike():
    learns = [learner() for _ in range(5)]
    heard = ([], [Trace()], [on(after_step=lambda learn: None)], [on(before_backward=lambda learn: None)],
             [on(after_cancel_step=lambda learn: None)])
    for learn, cbs in zip(learns, heard, strict=True):
        learn.fit(3, cbs=cbs)
        assert_same(learn.model, learns[0].model)


@pytest.mark.parametrize("cancel", [CancelBatchException, CancelTrainException])
@pytest.mark.parametrize("listener", [[], [Trace()], [on(after_batch=lambda learn: None)],
                                      [on(after_epoch=lambda learn: None)]], ids=["nobody", "all", "batch", "epoch"])
def test_a_callbacks_hook_may_cancel_whoever_listens(listener, cancel):
    """A forward hook, put on by a callback in before_fit, that cancels the second batch: as if it were raised in
    after_pred."""
    def hook(*args):
        if learn.training and learn.iter == 1: raise cancel
    learn = learner(3, 1)
    learn.fit(1, cbs=[on(before_fit=lambda learn: learn.model.register_forward_hook(hook)), *listener])
    by_hand(model := net(), [pairs(3)[0], *([pairs(3)[2]] if cancel is CancelBatchException else [])],
            TORCH_SGD(model.parameters()))
    assert_same(learn.model, model)


# The live figure

def way_out(tail):
    "The events that follow at once, up to the next before_…."
    return [SHORT[short] for short in itertools.takewhile(
        lambda short: not short.endswith("("), written_out(tail.replace("✗", "")).split())]


def test_the_live_figure_counts_what_the_table_of_events_says():
    "Each exception in each event, against the table; and each number in the words against the state."
    explorer, n_whole = cancel_explorer(), len(written_out("f( e( T V e) f)").split())
    seen = drive(explorer)
    assert {s["raised"] for s, _ in seen} == {"nothing", *(cancel.__name__ for cancel in CANCELS)}
    assert len({s["event"] for s, _ in seen}) == 16
    for event, error, place, head, tail in (case.values for case in cases()):
        if place != "fit" or error not in CANCELS: continue
        shorts = written_out(f"{head} {tail.replace('✗', '')}").split()
        n_ran = sum("!" not in short for short in shorts)
        state, words = explorer.set(exception=error.__name__, event=event), words_of(explorer)
        assert state == {"raised": error.__name__, "event": event, "n_events": len(shorts),
                         "n_skipped": n_whole - n_ran, "n_steps": shorts.count("s)") - (event == "before_step"),
                         "caught": "✗" not in tail, "then": way_out(tail)}
        assert not state["then"] or ", ".join(state["then"]) in words
        check_words(state, words)
        assert not re.search(r"\b1 \w+s\b", words) and ("raises it" in words) == ("✗" in tail)
        state = explorer.set(exception="nothing", event=event)
        assert state == {"raised": "nothing", "event": event, "n_events": n_whole, "n_skipped": 0, "n_steps": 2,
                         "caught": True, "then": []}
        check_words(state, words_of(explorer))


def test_the_live_figure_runs_a_readers_own_loop_and_exceptions():
    class Mine(CancelBatchException): pass
    class Own(Learner):
        n_made = 0
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            Own.n_made += 1
    explorer, before = cancel_explorer(Own, {"Mine": Mine}), Own.n_made
    state = explorer.set(exception="Mine", event="after_loss")
    assert state["raised"] == "Mine" and state["caught"] and state["n_steps"] == 1 and Own.n_made > before > 0


# Errors

class Breaks:
    "Raises `error` in its n-th call."
    def __init__(self, error, n): self.error, self.n = error, n

    def __call__(self):
        self.n -= 1
        if not self.n: raise self.error


class BreakingModel(nn.Module):
    def __init__(self, breaks):
        super().__init__()
        self.body, self.breaks = net(), breaks

    def forward(self, x):
        self.breaks()
        return self.body(x)


class BreakingLoader(list):
    def __iter__(self):
        for batch in super().__iter__():
            self.breaks()
            yield batch


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("who", ["model", "loss function", "loader", *[e for e in SHORT.values() if "cancel" not in e]])
def test_after_an_error_the_learner_goes_on_where_it_was(who, error, listening):
    "Momentum and weights are those at the moment of the error, and nothing of the broken batch's gradient is left."
    problem, trace = error("broken"), Trace()
    breaks, never = Breaks(problem, 2), Breaks(problem, -1)
    train = BreakingLoader(pairs(3))
    train.breaks = breaks if who == "loader" else never

    def loss_func(pred, y):
        (breaks if who == "loss function" else never)()
        return F.mse_loss(pred, y)

    second_batch = lambda learn: learn.train_iter == 1 or who.endswith(("_fit", "_epoch", "_train", "_validate"))
    learn = learner(train, 1, model=BreakingModel(breaks if who == "model" else never), loss_func=loss_func,
                    cbs=[trace] if listening else [])
    with pytest.raises(error) as caught:
        learn.fit(1, cbs=[Throw(who, problem, second_batch)] if who in SHORT.values() else [])
    assert (caught.value is problem
            and (who not in SHORT.values() or any("Throw" in note and who in note for note in problem.__notes__)))
    if listening:
        for short in "fetvbws": assert trace.seen.count(f"{short}(") == trace.seen.count(f"{short})"), short
    assert learn.cbs == ([trace] if listening else [])
    twin = copy.deepcopy(learn.model.body)
    optimizer = TORCH_SGD(twin.parameters())
    state = copy.deepcopy(learn.opt.state_dict())
    optimizer.load_state_dict({"state": state["state"],
                               "param_groups": [{**optimizer.state_dict()["param_groups"][0], "params": [0, 1, 2, 3]}]})
    learn.fit(1)
    by_hand(twin, pairs(3), optimizer)
    assert_same(learn.model.body, twin)
    assert learn.train_iter == 3 and learn.pct_train == 1


def test_two_errors_in_one_event_the_first_comes_out_with_a_note_on_the_other():
    first, second = ValueError("first"), KeyError("second")
    with pytest.raises(ValueError) as caught:
        learner().fit(1, cbs=[Throw("after_batch", first), Throw("after_batch", second)])
    assert caught.value is first and any("second" in note for note in first.__notes__)


def test_a_batch_that_broke_is_in_no_average():
    learn, seen = learner(3, 2), {}
    cbs = [Throw("after_loss", RuntimeError("third"), lambda learn: learn.iter == 2),
           on(after_epoch=lambda learn: seen.update(learn.results))]
    with pytest.raises(RuntimeError, match="third"): learn.fit(1, cbs=cbs)
    losses = by_hand(model := net(), pairs(3)[:2], TORCH_SGD(model.parameters()))
    assert seen == {"train_loss": pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)}


# Cancelled batches

BEFORE_THE_STEP = ["before_batch", "after_pred", "after_loss", "before_backward", "after_backward", "before_step"]


@pytest.mark.parametrize("opt_func", [TORCH_SGD, partial(torch.optim.Adam, lr=.05)])
@pytest.mark.parametrize("which", [0, 2, 4])
@pytest.mark.parametrize("event", BEFORE_THE_STEP)
def test_a_cancelled_batch_leaves_no_trace(event, which, opt_func):
    "Weights, to the bit, and averages are those of a loop without it."
    train, averages = pairs(5, last=2), {}
    learn = learner(train, 2, opt_func=opt_func)
    learn.fit(1, cbs=[Throw(event, CancelBatchException(), lambda learn: learn.iter == which),
                      on(after_train=lambda learn: averages.update(learn.results))])
    left = [batch for i, batch in enumerate(train) if i != which]
    losses = by_hand(model := net(), left, opt_func(model.parameters()))
    assert_same(learn.model, model)
    sizes = [len(y) for _, y in left]
    assert averages["train_loss"] == pytest.approx(sum(n * loss.item() for n, loss in zip(sizes, losses)) / sum(sizes),
                                                   rel=1e-6)
    assert learn.train_iter == 5 and all(p.grad is None for p in learn.model.parameters())


@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss"])
def test_a_cancelled_validation_batch_is_in_no_metric(event):
    valid, model = pairs(3, last=2, seed=2), net()
    mae = lambda pred, y: (pred - y).abs().mean()
    learn = learner(1, valid, model=model, metrics=[mae],
                    cbs=[Throw(event, CancelBatchException(), lambda learn: not learn.training and learn.iter == 1)])
    x, y = (torch.cat(part) for part in zip(valid[0], valid[2]))
    with torch.no_grad(): expected = F.mse_loss(model(x), y).item(), mean_absolute_error(y, model(x))
    assert tuple(learn.validate().values()) == pytest.approx(expected, rel=1e-6)


def test_if_every_batch_is_cancelled_there_is_no_average():
    def cancel(learn): raise CancelBatchException
    learn, before = learner(cbs=[on(after_loss=cancel)]), net()
    learn.fit(1)
    assert_same(learn.model, before)
    assert math.isnan(learn.results["train_loss"]) and math.isnan(learn.validate()["loss"])


def test_a_cancelled_batch_that_was_bad_is_not_blamed():
    "Wherever it stands: a callback has dealt with it."
    def skip(learn):
        if not learn.loss.isfinite(): raise CancelBatchException
    good = pairs(3)
    for where in (1, 2, 3):
        train = list(good)
        train.insert(where, (torch.full((4, 3), math.nan), torch.zeros(4, 1)))
        learn = learner(train, 1, cbs=[on(after_loss=skip)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            learn.fit(1)
        by_hand(model := net(), good, TORCH_SGD(model.parameters()))
        assert_same(learn.model, model)


@pytest.mark.parametrize("cancel", CANCELS[2:])
@pytest.mark.parametrize("event", ["after_backward", "before_step"])
def test_the_gradient_is_dropped_with_all_that_is_cancelled(event, cancel):
    "Cancel in the second batch of the first epoch: what comes after begins with an empty gradient."
    learn = learner(3, None)
    try: learn.fit(1, cbs=[Throw(event, cancel(), lambda learn: learn.iter == 1)])
    except CancelValidateException: assert cancel is CancelValidateException
    learn.fit(1)
    by_hand(model := net(), [pairs(3)[0], *pairs(3)], TORCH_SGD(model.parameters()))
    assert_same(learn.model, model)


@pytest.mark.parametrize("event", ["after_backward", "before_step"])
def test_cancel_step_accumulates(event):
    def every_third(learn):
        if learn.iter % 3 < 2: raise CancelStepException
    train, averages = pairs(6), {}
    learn = learner(train, None)
    learn.fit(2, cbs=[on(**{event: every_third}), on(after_train=lambda learn: averages.update(learn.results))])
    losses = by_hand(model := net(), train * 2, TORCH_SGD(model.parameters()), steps=lambda i: i % 3 == 2)
    assert_same(learn.model, model)
    assert averages["train_loss"] == pytest.approx(torch.stack(losses[6:]).mean().item(), rel=1e-6)  # all batches count


@pytest.mark.parametrize("event", ["after_loss", "before_backward"])
def test_cancel_step_before_the_gradient(event):
    "Backward and step are skipped, the loss counts."
    def every_second(learn):
        if learn.iter % 2: raise CancelStepException
    learn, averages = learner(5, None), {}
    learn.fit(1, cbs=[on(**{event: every_second}), on(after_train=lambda learn: averages.update(learn.results))])
    losses = by_hand(model := net(), pairs(5), TORCH_SGD(model.parameters()), backwards=lambda i: i % 2 == 0)
    assert_same(learn.model, model)
    assert averages["train_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)


def test_cancelled_says_what_was_skipped():
    seen = []
    cbs = [Throw("after_loss", CancelBatchException(), lambda learn: learn.iter == 1),
           Throw("after_loss", CancelStepException(), lambda learn: learn.iter == 2),
           on(after_batch=lambda learn: seen.append(learn.cancelled and type(learn.cancelled)),
              after_fit=lambda learn: seen.append(learn.cancelled))]
    learner(4, None).fit(1, cbs=cbs)
    assert seen == [None, CancelBatchException, None, None, None]


# Against a hand-written loop

def test_torchs_adam_bit_for_bit_and_ours_to_rounding():
    model, train = net(), pairs(6, last=2)
    by_hand(model, train * 5, torch.optim.Adam(model.parameters(), lr=.01))
    theirs, ours = (learner(train, 1, opt_func=partial(adam, lr=.01)) for adam in (torch.optim.Adam, Adam))
    for learn in (theirs, ours): learn.fit(5)
    assert_same(theirs.model, model)
    for p, q in zip(ours.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-5)
    assert differ(model, net())


@pytest.mark.parametrize("opt_func", [TORCH_SGD, partial(torch.optim.Adam, lr=.02)])
@pytest.mark.parametrize("reset", [False, True])
def test_a_second_fit_goes_on_unless_told_to_begin_anew(reset, opt_func):
    learn, model, train = learner(opt_func=opt_func), net(), pairs(4)
    learn.fit(2)
    learn.fit(1, reset_opt=reset)
    optimizer = opt_func(model.parameters())
    by_hand(model, train * 2, optimizer)
    by_hand(model, train, opt_func(model.parameters()) if reset else optimizer)
    assert_same(learn.model, model)


def test_a_second_rate_and_it_stays():
    learn, model, train = learner(), net(), pairs(4)
    learn.fit(1)
    assert learn.lr == .1
    learn.fit(1, lr=.03)
    learn.fit(1)
    assert learn.lr == .03
    learn.fit(1, reset_opt=True)
    optimizer = TORCH_SGD(model.parameters())
    by_hand(model, train, optimizer)
    optimizer.param_groups[0]["lr"] = .03
    by_hand(model, train * 2, optimizer)
    by_hand(model, train, torch.optim.SGD(model.parameters(), lr=.03, momentum=.9))
    assert_same(learn.model, model)


def test_a_fit_starts_with_the_learners_rate_whatever_a_schedule_left():
    rates, learn = [], learner()
    look = on(before_train=lambda learn: rates.append(learn.opt.param_groups[-1]["lr"]))
    for lr in (.1, None, slice(.02)):
        learn.fit(1, lr=lr, cbs=[look, on(after_batch=lambda learn: learn.opt.param_groups[-1].update(lr=.5))])
    assert rates == [.1, .1, .02] and learn.lr == slice(.02)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("lr, rates", [(slice(.001, .1), [.001, .01, .1]), (slice(.1), [.01, .01, .1]),
                                       (.1, [.1, .1, .1]), (slice(.1, .001), [.1, .01, .001])])
def test_rates_by_group(lr, rates, early):
    def deep():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 1))
    learn, model, train = learner(model=deep(), opt_func=torch.optim.Adam, lr=lr if early else None), deep(), pairs(4)
    learn.fit(2, lr=None if early else lr)
    assert [group["lr"] for group in learn.opt.param_groups] == pytest.approx(rates, rel=1e-12) and learn.lr == lr
    by_hand(model, train * 2,
            torch.optim.Adam([{"params": model[i].parameters(), "lr": rate} for i, rate in zip((0, 2, 4), rates)]))
    for p, q in zip(learn.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)


def test_a_splitter_makes_the_groups():
    learn = learner(splitter=lambda model: [[model[0].bias, model[2].bias], [model[0].weight, model[2].weight]],
                    lr=slice(.01, .1))
    learn.fit(1)
    assert [[p.ndim for p in group["params"]] for group in learn.opt.param_groups] == [[1, 1], [2, 2]]
    model = net()
    by_hand(model, pairs(4), torch.optim.SGD([{"params": [model[0].bias, model[2].bias], "lr": .01},
                                              {"params": [model[0].weight, model[2].weight]}],
                                             lr=.1, momentum=.9))
    assert_same(learn.model, model)


# Metrics and validation

def classes(n=41, size=8):
    "Batches of which the last has one sample."
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(3))
    y = (x @ torch.tensor([[1., 0, -1, .5], [.3, 1, 0, -1], [-1, .4, 1, 0]])).argmax(1)
    return TensorLoader(x, y, size)


def test_accuracy_is_scikit_learns_on_the_whole_set():
    torch.manual_seed(0)
    valid, model = classes(), nn.Linear(3, 4)
    learn = learner(classes(64), valid, model=model, loss_func=F.cross_entropy, metrics=[accuracy])
    assert len(valid) == 6 and len(list(valid)[-1][1]) == 1
    learn.fit(2)
    with torch.no_grad(): pred = model(valid.x)
    expected = accuracy_score(valid.y, pred.argmax(1))
    by_batch = [accuracy_score(yb, p) for yb, p in zip(valid.y.split(8), pred.argmax(1).split(8))]
    assert .3 < expected < 1 and abs(sum(by_batch) / 6 - expected) > .01
    assert learn.validate() == {"loss": pytest.approx(F.cross_entropy(pred, valid.y).item(), rel=1e-6),
                                "accuracy": pytest.approx(expected, abs=1e-7)}
    assert (learn.results["accuracy"] == pytest.approx(expected, abs=1e-7)
            and learn.results["valid_loss"] == learn.validate()["loss"])


def test_mean_absolute_error_is_scikit_learns_on_the_whole_set():
    def mae(pred, y): return (pred - y).abs().mean()
    valid, model = pairs(7, size=5, last=1, seed=9), net()
    x, y = (torch.cat(part) for part in zip(*valid))
    learn = learner(1, valid, model=model, metrics=[mae, partial(F.mse_loss)])
    result = learn.validate()
    assert (list(result) == ["loss", "mae", "mse_loss"] and result["mse_loss"] == result["loss"]
            and all(type(value) is float for value in result.values()))
    with torch.no_grad(): assert result["mae"] == pytest.approx(mean_absolute_error(y, model(x)), rel=1e-6)
    other = pairs(2, last=3, seed=11)
    x, y = (torch.cat(part) for part in zip(*other))
    with torch.no_grad():
        assert learn.validate(other)["mae"] == pytest.approx(mean_absolute_error(y, model(x)), rel=1e-6)


def noisy_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(.5), nn.Linear(8, 1))


@pytest.mark.parametrize("training", [True, False])
def test_validate_and_predict_give_the_modes_back(training):
    model = noisy_net().train(training)
    model[2].training = not training
    modes, learn = [module.training for module in model.modules()], learner(model=model)
    before = copy.deepcopy(model.state_dict())
    assert learn.validate() == learn.validate()
    out = learn.predict(torch.ones(4, 3))
    assert (modes == [module.training for module in model.modules()] and not out.requires_grad
            and torch.is_grad_enabled())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad(): assert torch.equal(model.eval()(torch.ones(4, 3)), out)
    with pytest.raises(RuntimeError): learn.validate([(torch.ones(4, 99), torch.ones(4, 1))])
    assert not any(module.training for module in model.modules())


def twin_fits(*extra):
    "Two learners, of which the first has a few callbacks more."
    for cbs in (extra, ()):
        model, history = noisy_net(), []
        train = TensorLoader(*map(torch.cat, zip(*pairs(5))), 4, shuffle=True)
        learn = learner(train, pairs(3, last=1, seed=5), model=model, opt_func=partial(torch.optim.Adam, lr=.01),
                        metrics=[F.l1_loss])
        note = lambda learn: history.append((learn.training, learn.iter, learn.n_iter, learn.train_iter,
                                             learn.pct_train, learn.loss.item(), learn.smooth_loss.item(),
                                             learn.pred.sum().item(), learn.xb.sum().item(),
                                             [m.training for m in model.modules()]))
        learn.nested = False
        recorder = on(after_batch=lambda learn: learn.nested or note(learn),
                      after_epoch=lambda learn: history.append(dict(learn.results)))
        learn.fit(3, cbs=[*cbs, recorder])
        yield learn, history


@pytest.mark.parametrize("event", ["after_batch", "before_batch", "after_step", "after_train", "after_epoch",
                                   "before_epoch", "before_train", "after_pred"])
def test_validating_in_the_middle_of_a_fit_disturbs_nothing(event):
    seen = []

    def validate(learn):
        if learn.nested or not learn.training and event.endswith(("_batch", "_pred")): return
        names = "dl n_iter iter training xb yb pred loss epoch train_iter pct_train results cancelled fit_cbs".split()
        state, learn.nested = [getattr(learn, name) for name in names], True
        seen.append(learn.validate(pairs(2, seed=8)))
        learn.nested = False
        for name, value in zip(names, state):
            assert getattr(learn, name) is value or getattr(learn, name) == value, name

    (learn, history), (plain, plain_history) = twin_fits(on(**{event: validate}))
    assert len(seen) >= 3 and seen[0] != seen[-1]
    assert history == plain_history
    assert_same(learn.model, plain.model)


# Order, names, and who takes part

class A(Callback): pass
class B(Callback): pass
class C(Callback): pass
class AfterB(Callback): run_after = (B,)
class BeforeA(Callback): run_before = (A,)
class SubB(B): pass
class Between(Callback): run_after, run_before = (A,), (C,)


def names(cbs): return " ".join(type(cb).__name__ for cb in cbs)


@pytest.mark.parametrize("given, expected", [
    ("C B A", "C B A"), ("AfterB A B C", "A B AfterB C"), ("A BeforeA B", "BeforeA A B"),
    ("AfterB SubB C", "SubB AfterB C"), ("AfterB C", "AfterB C"), ("C Between B A", "B A Between C"),
    ("A A BeforeA A", "BeforeA A A A"), ("AfterB B SubB B", "B SubB B AfterB"),
    ("A B BeforeA AfterB C", "B BeforeA A AfterB C")])
def test_order_by_hand(given, expected):
    assert names(in_order([globals()[name]() for name in given.split()])) == expected


def test_the_order_is_the_allowed_one_closest_to_the_list():
    "Of all permutations that keep to the rules, the one that takes, place by place, the earliest of the list."
    rules = {(AfterB, B): 1, (AfterB, SubB): 1, (A, BeforeA): 1, (Between, A): 1, (C, Between): 1}  # (later, earlier)
    for seed in range(60):
        cbs = [cls() for cls in random.Random(seed).choices([A, B, C, AfterB, BeforeA, SubB, Between], k=5)]
        allowed = [order for order in itertools.permutations(range(5))
                   if not any((type(cbs[a]), type(cbs[b])) in rules for a, b in itertools.combinations(order, 2))]
        assert in_order(cbs) == [cbs[i] for i in min(allowed)], names(cbs)


def test_the_order_is_kept_in_the_loop():
    seen = []
    first = type("First", (Callback,), {"run_before": (A,), "after_loss": lambda self, learn: seen.append("first")})()
    second = type("Second", (A,), {"after_loss": lambda self, learn: seen.append("second")})()
    learner(1, None, cbs=[second]).fit(1, cbs=[first])
    assert seen == ["first", "second"]


def test_a_circle_is_an_error_that_names_the_classes():
    class Left(Callback): pass
    class Right(Callback): run_after, run_before = (Left,), (Left,)
    class North(Callback): run_after = (Left,)
    class South(Callback): run_after, run_before = (North,), (Left,)
    class Loner(Callback): pass
    for cbs, named in (([Left(), Right()], ("Left", "Right")),
                       ([Loner(), Left(), North(), South()], ("Left", "North", "South"))):
        for make in (lambda: in_order(cbs), lambda: learner(cbs=cbs), lambda: learner().fit(1, cbs=cbs),
                     lambda: learner(cbs=cbs[:1]).fit(1, cbs=cbs[1:])):
            with pytest.raises(ValueError, match="circle") as error: make()
            assert all(name in str(error.value) for name in named) and "Loner" not in str(error.value)


def test_both_may_ask_for_the_same_order():
    class Left(Callback): pass
    class Right(Callback): run_after = (Left,)
    Left.run_before = (Right,)
    assert names(in_order([Right(), Left()])) == "Left Right"


@pytest.mark.parametrize("wrong, match", [(A, r"A is a class.*A\(\)"), (print, "print.*is no Callback"),
                                          ("A", "'A' is no Callback"), (None, "None is no Callback")])
def test_what_is_no_callback(wrong, match):
    for make in (lambda: learner(cbs=[A(), wrong]), lambda: learner().fit(1, cbs=[wrong])):
        with pytest.raises(ValueError, match=match): make()


@pytest.mark.parametrize("wrong, right", [
    ("begin_fit", "before_fit"), ("begin_epoch", "before_epoch"), ("begin_train", "before_train"),
    ("begin_batch", "before_batch"), ("begin_validate", "before_validate"), ("after_los", "after_loss"),
    ("after_losses", "after_loss"), ("befor_batch", "before_batch"), ("before_bach", "before_batch"),
    ("on_epoch_end", "after_epoch"), ("on_epoch_begin", "before_epoch"), ("on_epoch_start", "before_epoch"),
    ("on_train_begin", "before_train"), ("on_train_end", "after_train"), ("on_batch_begin", "before_batch"),
    ("on_batch_end", "after_batch"), ("on_fit_start", "before_fit"), ("on_fit_end", "after_fit"),
    ("before_validation", "before_validate"), ("after_validation", "after_validate"), ("after_valid", "after_validate"),
    ("after_bach", "after_batch"), ("after_batches", "after_batch"), ("after_prediction", "after_pred"),
    ("aftr_pred", "after_pred"), ("After_Step", "after_step"), ("beforebackward", "before_backward"),
    ("after_backwards", "after_backward"), ("after_cancel_bach", "after_cancel_batch"),
    ("after_cancelled_fit", "after_cancel_fit"), ("before_training", "before_train"), ("after_epochs", "after_epoch"),
    ("on_train_batch_end", "after_batch"), ("on_train_batch_start", "before_batch"),
    ("on_validation_batch_end", "after_batch"), ("on_test_batch_begin", "before_batch"),
    ("on_train_epoch_end", "after_train"), ("on_validation_epoch_end", "after_validate")])
def test_a_misspelt_event(wrong, right):
    with pytest.raises(ValueError, match=rf"Mine\.{wrong}: .*Did you mean {right}\?"):
        type("Mine", (Callback,), {wrong: lambda self, learn: None})
    with pytest.raises(ValueError, match=f"Did you mean {right}"):
        mixin = type("Mixin", (), {wrong: lambda self, learn: None})
        type("Mine", (Callback, mixin), {})


@pytest.mark.parametrize("name", ["plot_loss", "validate", "after", "before", "reset", "step", "on_click", "batch",
                                  "loss", "fit", "plot_sched", "throw", "begin", "end", "_after_los", "__call__",
                                  "train", "epoch_done", "cancel", "batch_size", "save", "on_change", "note"])
def test_a_harmless_name(name):
    mine = type("Mine", (Callback,), {name: lambda self, *args: None})
    learner().fit(1, cbs=[mine()])


def test_what_is_named_like_an_event_and_is_no_method_of_ours():
    with pytest.raises(ValueError, match=r"Mine\.after_loss must take the learner"):
        type("Mine", (Callback,), {"after_loss": lambda self: None})
    with pytest.raises(ValueError, match=r"Mine\.before_fit must take the learner"):
        type("Mine", (Callback,), {"before_fit": lambda self, learn, more: None})
    type("Mine", (Callback,),
         {"after_loss": lambda self, learn, more=1: None, "before_fit": lambda *args: None, "after_los": 3})


@pytest.mark.parametrize("name", ["run_before", "run_after"])
@pytest.mark.parametrize("wrong", [A, [A], "A", ("A",), (A(),), None])
def test_run_after_must_be_a_tuple_of_classes(name, wrong):
    with pytest.raises(ValueError, match=rf"Mine\.{name} must be a tuple of callback classes"):
        type("Mine", (Callback,), {name: wrong})


def test_changes_to_cbs_count_from_the_next_fit():
    seen, late = [], on(before_epoch=lambda learn: seen.append("late"))
    early = on(before_epoch=lambda learn: seen.append("early"))
    learn = learner(cbs=[early, on(before_batch=lambda learn: late in learn.cbs or learn.cbs.append(late))])
    learn.fit(2)
    assert seen == ["early"] * 2
    learn.cbs.remove(early)
    learn.fit(2)
    assert seen == ["early"] * 2 + ["late"] * 2
    learn.cbs.append(A)
    with pytest.raises(ValueError, match="A is a class"): learn.fit(1)
    learn.cbs = []
    learn.fit(1)
    assert seen == ["early"] * 2 + ["late"] * 2


def test_the_list_given_is_not_the_learners():
    given = [A()]
    learn = learner(cbs=given)
    given.append(A)
    learn.fit(1)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, CancelFitException, CancelTrainException])
def test_callbacks_of_one_fit_are_gone_afterwards(error):
    trace = Trace()
    learn = learner()
    try: learn.fit(1, cbs=[trace, *([Throw("after_validate", error())] if error else [])])
    except (ValueError, KeyboardInterrupt, CancelTrainException): pass
    n = len(trace.seen)
    learn.fit(1)
    learn.validate()
    assert n == len(trace.seen) > 0 and learn.cbs == []


# Bad input

def bare(*dls, **options):
    return Learner(net(), SimpleNamespace(**dict(zip(("train", "valid"), dls))), F.mse_loss, **options)
def with_nan(n, *bad):
    batches = pairs(n)
    for i in bad: batches[i][0][1, 2] = math.nan
    return batches
def vector(pred, y): return (pred - y).abs().mean(1)
def words(pred, y): return "half"


def named(name): return type(name, (), {"__call__": lambda self, pred, y: F.l1_loss(pred, y)})()
def plain_float(pred, y): return .5
def loss(pred, y): return F.mse_loss(pred, y)
def no_default(params): return Optimizer(params, [sgd_step])
def meta(batches): return [(x, y.to("meta")) for x, y in batches]
def frozen_to(n): return lambda: learner().freeze_to(n)
twin = A()


@pytest.mark.parametrize("make, kind, match", [
    (lambda: Learner(net(), SimpleNamespace(train=[], valid=None), None), ValueError,
     "loss_func must be a function, not None"),
    (lambda: Learner(net(), SimpleNamespace(train=[], valid=None), F.mse_loss, "adam"), ValueError,
     "opt_func must be a function, not 'adam'"),
    (lambda: learner(opt_func=.1), ValueError, r"opt_func must be a function, not 0\.1: it makes an optimizer"),
    (lambda: learner(opt_func=torch.optim.Adam(net().parameters())), ValueError,
     r"^opt_func must be a function, not Adam \(.{,90}: it makes an optimizer[^\n]*$"),
    (lambda: learner(loss_func=nn.MSELoss), ValueError, r"loss_func is the class MSELoss: .*MSELoss\(\)"),
    (lambda: learner(metrics=[nn.L1Loss]), ValueError, r"metric is the class L1Loss: .*L1Loss\(\)"),
    (lambda: learner(metrics=accuracy), ValueError, r"metrics must be a list, not <function accuracy.*metrics=\[…\]"),
    (lambda: learner(metrics="accuracy"), ValueError, "metrics must be a list, not 'accuracy'"),
    (lambda: learner(metrics=["accuracy"]), ValueError, "metric must be a function, not 'accuracy': it takes"),
    *((make, ValueError, r"cbs must be a list, not A: write cbs=\[…\]")
      for make in (lambda: learner(cbs=A()), lambda: learner().fit(1, cbs=A()), lambda: learner().show_loop(cbs=A()))),
    *((make, ValueError, "The same A is there twice")
      for make in (lambda: learner(cbs=[twin, B(), twin]), lambda: learner().fit(1, cbs=[twin, twin]),
                   lambda: learner(cbs=[B(), twin]).fit(1, cbs=[twin]))),
    (lambda: learner(loss_func=lambda pred, y: F.mse_loss(pred, y).detach()).fit(1), ValueError,
     r"loss depends on no parameter that learns.*\.detach\(\)"),
    (lambda: learner(cbs=[on(after_pred=lambda learn: setattr(learn, "pred", learn.pred.data))]).fit(1), ValueError,
     "loss depends on no parameter that learns"),
    (lambda: Learner(print, SimpleNamespace(train=[], valid=None), F.mse_loss), ValueError,
     "model must be an nn.Module"),
    (lambda: bare(pairs(2)), ValueError, r"\.valid"),
    (lambda: Learner(net(), pairs(2), F.mse_loss), ValueError, r"\.train and \.valid"),
    (lambda: bare([], None).fit(1), ValueError, "training loader is empty"),
    (lambda: bare(pairs(1), []).fit(1), ValueError, "validation loader is empty"),
    (lambda: bare(pairs(1), None).validate([]), ValueError, "validation loader is empty"),
    (lambda: bare(pairs(1), None).validate(), ValueError, "no validation loader"),
    (lambda: bare(iter(pairs(2)), None).fit(1), ValueError, "training loader has no length"),
    (lambda: bare(pairs(2), iter(pairs(2))).fit(1), ValueError, "validation loader has no length"),
    (lambda: bare([(torch.zeros(2, 3),) * 3], None).fit(1), ValueError, r"pairs \(xb, yb\)"),
    (lambda: bare([5], None).fit(1), ValueError, r"pairs \(xb, yb\), not 5"),
    (lambda: bare(with_nan(3, 0), None).fit(1), ValueError, "first training batch holds NaN"),
    (lambda: bare(with_nan(5, 1, 3), None).fit(1), ValueError, "2 training inputs hold NaN"),
    (lambda: bare(with_nan(5, 4), None).fit(1), ValueError, "1 training inputs? hold"),
    (lambda: bare([(torch.tensor([1., math.nan]), torch.zeros(2))], None).fit(1), ValueError,
     "first training batch holds NaN"),
    (lambda: bare(meta(pairs(2)), None).fit(1), ValueError, "inputs are on cpu and the targets on meta"),
    (lambda: bare(pairs(2), meta(pairs(2))).fit(1), ValueError, "inputs are on cpu and the targets on meta"),
    (lambda: bare(pairs(2), None, opt_func=no_default).fit(1), ValueError, "No learning rate: lr is None"),
    (lambda: bare(pairs(2), None, lr=math.nan), ValueError, "lr must be finite"),
    (lambda: bare(pairs(2), None, lr=-1), ValueError, "lr must be .*at least 0, not -1"),
    (lambda: bare(pairs(2), None, lr="fast"), ValueError, "lr must be a number.*'fast'"),
    (lambda: bare(pairs(2), None, lr=slice(0, .1)), ValueError, r"lr=slice\(0, 0.1.*above 0"),
    (lambda: bare(pairs(2), None, lr=slice(.1, 0)), ValueError, r"lr=slice\(0.1, 0.*above 0"),
    (lambda: bare(pairs(2), None, lr=slice(None)), ValueError, "lr=slice"),
    (lambda: bare(pairs(2), None, lr=slice(.1, .2, 3)), ValueError, "lr=slice"),
    (lambda: bare(pairs(2), None, lr=slice(.1, -.2)), ValueError, "lr must be .*not -0.2"),
    (lambda: bare(pairs(2), None).fit(1, lr=math.nan), ValueError, "lr must be finite"),
    (lambda: bare(pairs(2), None).fit(1, lr=-.5), ValueError, "lr must be .*not -0.5"),
    (lambda: bare(pairs(2), None).fit(1, lr=slice(0, 1)), ValueError, "lr=slice"),
    (lambda: setattr(bare(pairs(2), None), "lr", math.inf), ValueError, "lr must be finite"),
    (lambda: learner().fit(0), ValueError, "n_epochs must be a whole number, at least 1, not 0"),
    (lambda: learner().fit(-1), ValueError, "n_epochs must be a whole number, at least 1, not -1"),
    (lambda: learner().fit(1.5), ValueError, "n_epochs must be a whole number, at least 1, not 1.5"),
    (lambda: learner(metrics=[vector]).fit(1), ValueError, r"metric vector must be one number.*\[4\]"),
    (lambda: learner(metrics=[words]).validate(), ValueError, "metric words must be a tensor, not 'half'"),
    (lambda: learner(metrics=[accuracy, accuracy]), ValueError, "name of its own.*accuracy"),
    (lambda: learner(metrics=[partial(F.l1_loss), F.l1_loss]), ValueError, "name of its own.*l1_loss"),
    (lambda: learner(metrics=[loss]), ValueError, "none may be called 'loss'"),
    *((lambda name=name: learner(metrics=[named(name)]), ValueError, f"none may be called .*'{name}'.*got")
      for name in ("train_loss", "valid_loss", "epoch", "batches", "seconds", "time")),
    (lambda: learner(splitter=3), ValueError, "splitter must be a function, not 3"),
    (lambda: learner(splitter=lambda model: None).fit(1), ValueError, "splitter must give lists.*not None"),
    (lambda: learner(opt_func=lambda groups: None).fit(1), ValueError, "opt_func must give an optimizer, not None"),
    (lambda: RNNRegularizer("a lot"), ValueError, "alpha and beta must be .* not 'a lot' and"),
    (lambda: accuracy(torch.ones(4, 3), torch.ones(4, 1)), ValueError, r"pred \[4, 3\] and targets \[4, 1\]"),
    (lambda: accuracy(torch.ones(4, 3), 1), ValueError, r"pred \[4, 3\] and targets 1"),
    (lambda: accuracy(torch.ones(4), torch.ones(4)), ValueError, r"pred \[4\] and targets \[4\]"),
    (lambda: learner(loss_func=vector).fit(1), ValueError, r"loss must be one number.*\[4\]"),
    (lambda: learner(loss_func=plain_float).fit(1), ValueError, "loss must be a tensor, not 0.5"),
    (lambda: learner(model=nn.Flatten(), opt_func=SGD).fit(1), ValueError, "no parameters"),
    (lambda: learner(model=nn.Flatten()).fit(1), ValueError, "(empty|no) parameter"),
    (lambda: learner(splitter=lambda model: [[model[0].weight], [model[2].weight, model[2].bias]]).fit(1), ValueError,
     "splitter must put each.*of 4 it has 3"),
    (lambda: learner(splitter=lambda model: [[*model.parameters()], [model[0].weight]]).fit(1), ValueError,
     "splitter must put each"),
    (lambda: learner(splitter=lambda model: [[*model.parameters()], []]).fit(1), ValueError,
     "splitter must put each.*none empty"),
    (lambda: learner(splitter=lambda model: [[*model.parameters()], [nn.Parameter(torch.ones(1))]]).fit(1), ValueError,
     "splitter must put each"),
    (frozen_to(2), ValueError, r"2 groups.*freeze_to\(2\)"), (frozen_to(-3), ValueError, r"2 groups.*freeze_to\(-3\)"),
    (frozen_to(.5), TypeError, "float"),
    (lambda: learner().fit(1, cbs=[on(after_batch=lambda learn: learn.fit(1))]), RuntimeError, "middle of a fit"),
    (lambda: learner(cbs=[on(after_batch=lambda learn: learn.fit(1))]).validate(), RuntimeError, "middle of a fit"),
    (lambda: learner().fit(1, cbs=[ModelResetter()]), ValueError, r"ModelResetter: no module.*reset\(\)"),
    (lambda: learner().fit(1, cbs=[RNNRegularizer()]), ValueError, "RNNRegularizer: this model has no"),
    (lambda: RNNRegularizer(-1), ValueError, "alpha and beta"),
    (lambda: RNNRegularizer(1, math.nan), ValueError, "alpha and beta")])
def test_bad_input_is_named(make, kind, match):
    with pytest.raises(kind, match=match), warnings.catch_warnings():
        warnings.simplefilter("error")
        make()


def test_an_error_in_backward_that_is_no_detached_loss_comes_out_unchanged():
    x = torch.zeros(1, requires_grad=True)
    loss = x.exp().sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"): learner(loss_func=lambda pred, y: loss).fit(1)


@pytest.mark.parametrize("cancel", CANCELS)
def test_a_cancel_that_nobody_catches_says_so(cancel):
    skips = cancel.__name__.removeprefix("Cancel").removesuffix("Exception").lower()
    with pytest.raises(cancel, match=f"^{cancel.__name__} was raised where no {skips} is under way"):
        if cancel is CancelFitException: raise cancel
        learner().fit(1, cbs=[Throw("before_fit", cancel())])
    assert str(cancel("mine")) == "mine"


@pytest.mark.parametrize("cancel", CANCELS)
def test_what_a_validation_alone_can_be_cancelled_by(cancel):
    "By what ends a validation or more; a step or a training is not under way."
    valid = pairs(3, seed=2)
    learn = learner(1, valid, cbs=[Throw("before_batch", cancel(), lambda learn: learn.iter == 1)])
    if cancel in (CancelStepException, CancelTrainException):
        with pytest.raises(cancel): learn.validate()
    else:
        x, y = map(torch.cat, zip(*(valid[:1] if cancel is not CancelBatchException else valid[::2])))
        with torch.no_grad():
            assert learn.validate() == {"loss": pytest.approx(F.mse_loss(learn.model(x), y).item(), rel=1e-6)}


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize("cancel", CANCELS[3:])
@pytest.mark.parametrize("event", ["before_validate", "before_batch", "after_pred", "after_batch"])
def test_a_cancelled_validation_leaves_no_result_and_a_cancelled_training_does(event, cancel, listening):
    seen, learn = [], learner(2, 3, metrics=[F.l1_loss])
    cbs = [Throw(event, cancel(), lambda learn: not learn.training and (learn.iter == 1 or event == "before_validate")),
           *([on(after_epoch=lambda learn: seen.append(list(learn.results)))] if listening else [])]
    learn.fit(1, cbs=cbs)
    assert list(learn.results) == ["train_loss"] and seen == ([["train_loss"]] if listening else [])
    learn.fit(1, cbs=[Throw("after_batch", CancelTrainException())])
    assert list(learn.results) == ["train_loss", "valid_loss", "l1_loss"]
    assert learn.results["train_loss"] > 0


@pytest.mark.parametrize("wrong", [vector, plain_float, lambda pred, y: F.mse_loss(pred, y)[None]],
                         ids=["[B]", "float", "[1]"])
@pytest.mark.parametrize("cbs", [[], [A()]])
def test_a_loss_that_is_no_mean_is_named_in_validation_too(wrong, cbs):
    for valid in (pairs(4), pairs(3), pairs(1)):
        with pytest.raises(ValueError, match="loss must be"): learner(1, valid, loss_func=wrong, cbs=cbs).validate()


@pytest.mark.parametrize("n_batches", [1, 2, 3])
def test_a_loss_of_one_element_trains_right_or_is_named(n_batches):
    "Shape [1], which torch can go backward from."
    averages = {}
    learn = learner(n_batches, None, loss_func=lambda pred, y: F.mse_loss(pred, y)[None])
    try: learn.fit(1, cbs=[on(after_epoch=lambda learn: averages.update(learn.results))])
    except ValueError as error: assert "loss must be" in str(error)
    else:
        losses = by_hand(model := net(), pairs(n_batches), TORCH_SGD(model.parameters()))
        assert averages["train_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)


def test_after_bad_input_the_learner_can_fit():
    learn = learner()
    for arguments in ({"lr": math.nan}, {"cbs": [A]}, {"cbs": [RNNRegularizer()]}):
        with pytest.raises(ValueError): learn.fit(1, **arguments)
    with pytest.raises(ValueError): learn.fit(0)
    learn.fit(1)
    by_hand(model := net(), pairs(4), TORCH_SGD(model.parameters()))
    assert_same(learn.model, model)


def test_a_blow_up_is_not_silent():
    train = TensorLoader(*map(torch.cat, zip(*pairs(4))), 4, shuffle=True)
    learn = learner(train, opt_func=torch.optim.SGD, lr=1e30, valid=None)
    with pytest.warns(UserWarning, match="blown up") as said: learn.fit(3)
    assert [f"At the end of epoch {n} " in str(one.message) for n, one in enumerate(said, 1)] == [True] * 3
    assert train.epoch == 3


# The callbacks of the chapter

def explode(learn):
    if learn.training and learn.train_iter == 2: learn.pred = learn.pred * math.inf


@pytest.mark.parametrize("recorder_first", [True, False])
def test_terminate_on_nan(recorder_first, capsys):
    counted, stop = [], TerminateOnNaN()
    recorder = on(after_batch=lambda learn: learn.cancelled or counted.append(learn.loss.item()))
    learn = learner(5, 1, cbs=[on(after_pred=explode), *([recorder, stop] if recorder_first else [stop, recorder])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn.fit(3)
    losses = by_hand(model := net(), pairs(5)[:2], TORCH_SGD(model.parameters()))
    assert counted == [loss.item() for loss in losses]
    assert_same(learn.model, model)
    assert all(p.isfinite().all() for p in learn.model.parameters()) and learn.train_iter == 3
    assert stop.stopped_at == "epoch 1 of 3, training batch 3 of 5" and "TerminateOnNaN" in capsys.readouterr().out


def test_a_recorder_in_after_loss_that_runs_after_it_counts_no_nan():
    losses = []
    recorder = type("Recorder", (Callback,), {"run_after": (TerminateOnNaN,),
                                              "after_loss": lambda self, learn: losses.append(learn.loss.item())})()
    learner(5, 1).fit(3, cbs=[recorder, on(after_pred=explode), TerminateOnNaN()])
    assert len(losses) == 2 and all(map(math.isfinite, losses))


def test_terminate_on_nan_in_validation(capsys):
    valid = pairs(2, seed=5)
    valid[1][0][0, 0] = math.nan
    trace, stop = Trace(), TerminateOnNaN()
    learner(1, valid, cbs=[trace, stop]).fit(3)
    assert (stop.stopped_at == "epoch 1 of 3, validation batch 2 of 2"
            and trace.text.endswith("b( p l b) b( p l b) v) e) f! f)"))
    assert "1 of its inputs" in capsys.readouterr().out


def test_terminate_on_nan_with_inputs_of_one_axis(capsys):
    x = torch.tensor([1., 2.])
    learn = learner([(x, x), (torch.tensor([1., math.nan]), x)], None,
                    model=nn.Sequential(nn.Unflatten(0, (2, 1)), nn.Linear(1, 1), nn.Flatten(0)),
                    cbs=[TerminateOnNaN()])
    learn.fit(1)
    assert "1 of its inputs" in capsys.readouterr().out


class Reader(nn.Module):
    def __init__(self, kind, batch_first):
        super().__init__()
        self.rnn, self.out, self.n_resets = kind(3, 4, batch_first=batch_first), nn.Linear(4, 2), 0

    def forward(self, x): return self.out(self.rnn(x)[0])
    def reset(self): self.n_resets += 1


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("alpha, beta, steps", [(2., 1., 6), (.5, 0, 6), (0, 3., 6), (2., 1., 1)])
def test_rnn_regularizer_is_the_closed_form(batch_first, alpha, beta, steps):
    "An Elman network unrolled by hand: h = tanh(W x + b + U h + c)."
    torch.manual_seed(0)
    model, x, y, losses = Reader(nn.RNN, batch_first), torch.randn(5, steps, 3), torch.randn(5, steps, 2), []
    W, U, b, c = (p.detach().clone() for p in model.rnn.parameters())
    h, states = torch.zeros(5, 4), []
    for t in range(steps):
        h = torch.tanh(x[:, t] @ W.T + b + h @ U.T + c)
        states.append(h)
    size = sum((h ** 2).sum() for h in states) / (5 * steps * 4)
    jumps = sum(((states[t + 1] - states[t]) ** 2).sum() for t in range(steps - 1)) / (5 * max(steps - 1, 1) * 4)
    with torch.no_grad():
        plain = sum(((model.out(states[t]) - y[:, t]) ** 2).sum() for t in range(steps)) / (5 * steps * 2)
    batch = (x, y) if batch_first else (x.transpose(0, 1), y.transpose(0, 1))
    note = on(after_batch=lambda learn: losses.append(learn.loss.item()))
    learn = learner([batch], [batch], model=model, opt_func=torch.optim.SGD, lr=0.,
                    cbs=[RNNRegularizer(alpha, beta), note])
    learn.fit(1)
    # the second one is validation's
    assert losses == pytest.approx([(plain + alpha * size + beta * jumps).item(), plain.item()], rel=1e-5)
    assert learn.validate()["loss"] == pytest.approx(plain.item(), rel=1e-5)


def test_rnn_regularizer_takes_every_recurrent_layer_and_reaches_the_gradient():
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.GRU(3, 4, batch_first=True), nn.LSTM(4, 2)])
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers
        def forward(self, x): return layers[1](layers[0](x)[0].transpose(0, 1))[0].transpose(0, 1)
    model, x, y, losses = Two(), torch.randn(5, 6, 3), torch.randn(5, 6, 2), []
    twin = copy.deepcopy(layers)
    learner([(x, y)], None, model=model, opt_func=partial(torch.optim.SGD, lr=.1),
            cbs=[RNNRegularizer(2., 1.), on(after_batch=lambda learn: losses.append(learn.loss.item()))]).fit(1)
    first = twin[0](x)[0]
    second = twin[1](first.transpose(0, 1))[0].transpose(0, 1)
    loss = F.mse_loss(second, y)
    for h in (first, second): loss = loss + 2 * (h ** 2).mean() + ((h[:, 1:] - h[:, :-1]) ** 2).mean()
    loss.backward()
    assert losses == pytest.approx([loss.item()], rel=1e-6)
    for p, q in zip(layers.parameters(), twin.parameters(), strict=True): torch.testing.assert_close(p, q - .1 * q.grad)


@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss", "after_batch"])
def test_validating_in_the_middle_leaves_the_regularizer_its_states(event):
    batches, losses = [(torch.randn(2, 5, 3), torch.randn(2, 5, 2)) for _ in range(2)], ([], [])
    model = Reader(nn.GRU, True)
    for seen, cbs in zip(losses, ([], [on(**{event: lambda learn: learn.training and learn.validate(batches)})])):
        note = on(after_batch=lambda learn: learn.training and seen.append(learn.loss.item()))
        learner(batches, None, model=copy.deepcopy(model), cbs=[RNNRegularizer(), *cbs, note]).fit(2)
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, CancelFitException])
def test_rnn_regularizers_hooks_are_removed(error):
    model, x = Reader(nn.GRU, True), torch.randn(5, 6, 3)
    regularizer = RNNRegularizer()
    for event in ("before_fit", "after_pred", "after_backward", "after_fit"):
        cbs = [Throw(event, error())] if error else []
        for order in ([*cbs, regularizer], [regularizer, *cbs]):
            for cb in cbs: cb.done = False
            try: learner([(x, torch.zeros(5, 6, 2))], None, model=model).fit(1, cbs=order)
            except (ValueError, KeyboardInterrupt): pass
            assert not model.rnn._forward_hooks and not regularizer.states


def test_model_resetter():
    model, x, seen = Reader(nn.GRU, True), torch.randn(5, 6, 3), []
    note = on(before_batch=lambda learn: seen.append(model.n_resets))
    learn = learner([(x, torch.zeros(5, 6, 2))] * 2, [(x, torch.zeros(5, 6, 2))] * 2, model=model,
                    cbs=[ModelResetter(), note])
    learn.fit(2)
    assert seen == [1, 1, 2, 2, 3, 3, 4, 4] and model.n_resets == 5
    learn.validate()
    assert seen[8:] == [6, 6]


# Freezing

def test_freeze_leaves_the_frozen_part_and_its_statistics_alone():
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5, affine=False)),
                             nn.Linear(5, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1)))
    learn, model, train = learner(model=make(), valid=None), make(), pairs(4)
    learn.freeze()
    assert [p.requires_grad for p in learn.model.parameters()] == [False] * 6 + [True] * 4
    learn.fit(2)
    for p in (*model[0].parameters(), *model[1].parameters()): p.requires_grad_(False)
    model[0].eval()
    optimizer = TORCH_SGD(model.parameters())
    by_hand(model, train * 2, optimizer)
    assert_same(learn.model, model)
    assert differ(model, make()) and not torch.equal(model[2][0].running_mean, make()[2][0].running_mean)
    learn.freeze_to(1)
    for p in model[1].parameters(): p.requires_grad_(True)
    learn.fit(1)
    by_hand(model, train, optimizer)
    assert_same(learn.model, model)
    learn.unfreeze()
    for p in model.parameters(): p.requires_grad_(True)
    learn.fit(1)
    by_hand(model.train(), train, optimizer)
    assert_same(learn.model, model)
    assert all(p.requires_grad for p in learn.model.parameters())
    assert len(learn.opt.param_groups) == 3


@pytest.mark.parametrize("n, frozen", [(0, 0), (1, 1), (2, 2), (-1, 2), (-2, 1), (-3, 0)])
def test_freeze_to(n, frozen):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 1))
    learner(model=model).freeze_to(n)
    assert [p.requires_grad for p in model.parameters()] == [False] * 2 * frozen + [True] * 2 * (3 - frozen)


# What callbacks may write

def trained(update, batches=None):
    "A hand-written loop in which update(i, model, xb, yb, optimizer) -> loss."
    model = net()
    optimizer = TORCH_SGD(model.parameters())
    for i, (xb, yb) in enumerate(batches or pairs(4)):
        update(i, model, xb, yb, optimizer).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def setting(name, value): return lambda learn: setattr(learn, name, value(learn))


@pytest.mark.parametrize("callback, update", [
    (on(before_batch=setting("xb", lambda learn: learn.xb * 2)),
     lambda i, model, x, y, opt: F.mse_loss(model(x * 2), y)),
    (on(before_batch=setting("yb", lambda learn: learn.yb + 1)),
     lambda i, model, x, y, opt: F.mse_loss(model(x), y + 1)),
    (on(after_pred=setting("yb", lambda learn: learn.yb + 1)), lambda i, model, x, y, opt: F.mse_loss(model(x), y + 1)),
    (on(after_pred=setting("pred", lambda learn: learn.pred.sigmoid())),
     lambda i, model, x, y, opt: F.mse_loss(model(x).sigmoid(), y)),
    (on(after_loss=setting("loss", lambda learn: learn.loss + learn.model[0].weight.square().sum())),
     lambda i, model, x, y, opt: F.mse_loss(model(x), y) + model[0].weight.square().sum()),
    (on(before_backward=setting("loss", lambda learn: learn.loss * 3)),
     lambda i, model, x, y, opt: F.mse_loss(model(x), y) * 3),
    (on(before_fit=setting("loss_func", lambda learn: F.l1_loss)), lambda i, model, x, y, opt: F.l1_loss(model(x), y))],
    ids=["xb", "yb", "yb in after_pred", "pred", "loss", "loss in before_backward", "loss_func"])
def test_what_a_callback_writes_is_used(callback, update):
    learn = learner(valid=None)
    learn.fit(1, cbs=[callback])
    assert_same(learn.model, trained(update))


def test_a_callback_changes_the_loader():
    other = pairs(3, seed=7)
    model = trained(lambda i, model, x, y, opt: F.mse_loss(model(x), y), other)
    for callback in (on(before_train=setting("dl", lambda learn: other)),
                     on(before_fit=setting("dls", lambda learn: SimpleNamespace(train=other, valid=None)))):
        learn = learner(valid=None)
        learn.fit(1, cbs=[callback])
        assert_same(learn.model, model)
    learn = learner(1, pairs(2, seed=5), model=model, cbs=[on(before_validate=setting("dl", lambda learn: other))])
    x, y = map(torch.cat, zip(*other))
    with torch.no_grad(): assert learn.validate()["loss"] == pytest.approx(F.mse_loss(model(x), y).item(), rel=1e-6)


@pytest.mark.parametrize("n", [1, 3, 9])
def test_progress_follows_a_loader_of_another_length(n):
    learn, progress = learner(4, None), []
    learn.fit(1, cbs=[on(before_train=setting("dl", lambda learn: pairs(n)),
                         before_batch=lambda learn: progress.append(learn.pct_train))])
    assert progress == pytest.approx([i / n for i in range(n)]) and learn.pct_train == 1 and learn.n_iter == n


def test_a_callback_changes_the_rate_and_the_optimizer():
    def update(i, model, x, y, optimizer):
        optimizer.param_groups[0]["lr"] = .1 / (i + 1)
        return F.mse_loss(model(x), y)
    learn = learner(valid=None)
    learn.fit(1, cbs=[on(after_batch=setting("lr", lambda learn: .1 / (learn.iter + 2)))])
    assert_same(learn.model, trained(update))
    assert learn.lr == .1 / 5
    learn = learner(valid=None)
    learn.fit(1, cbs=[on(before_fit=setting("opt", lambda learn: torch.optim.Adam(learn.model.parameters(), lr=.02)))])
    by_hand(model := net(), pairs(4), torch.optim.Adam(model.parameters(), lr=.02))
    assert_same(learn.model, model)
    learn = learner(valid=None)
    learn.fit(1, cbs=[on(after_batch=setting("lr", lambda learn: slice(.02, .2)))])
    assert [group["lr"] for group in learn.opt.param_groups] == pytest.approx([.02, .2])


@pytest.mark.filterwarnings("ignore:The optimizer knows nothing")
def test_a_callback_changes_model_and_number_of_epochs():
    other, seen = net(5), []
    learn = learner(valid=None, opt_func=torch.optim.SGD, lr=.1)
    with torch.no_grad(): expected = F.mse_loss(other(pairs(4)[0][0]), pairs(4)[0][1]).item()
    learn.fit(1, cbs=[on(before_fit=lambda learn: (setattr(learn, "model", other), setattr(learn, "n_epoch", 3))),
                      on(after_batch=lambda learn: seen.append(learn.loss.item()), before_step=lambda learn: None)])
    assert seen[0] == expected and len(seen) == 12 and learn.pct_train == 1


# How far, and how well

def test_counters():
    seen = []
    note = lambda learn: seen.append((learn.training, learn.epoch, learn.n_epoch, learn.iter, learn.n_iter,
                                      learn.train_iter))
    progress = []
    learn = learner(3, 2, cbs=[on(before_batch=lambda learn: (note(learn), progress.append(learn.pct_train)),
                                  after_fit=lambda learn: progress.append(learn.pct_train))])
    learn.fit(2)
    assert seen == [(True, 0, 2, 0, 3, 0), (True, 0, 2, 1, 3, 1), (True, 0, 2, 2, 3, 2), (False, 0, 2, 0, 2, 3),
                    (False, 0, 2, 1, 2, 3), (True, 1, 2, 0, 3, 3), (True, 1, 2, 1, 3, 4), (True, 1, 2, 2, 3, 5),
                    (False, 1, 2, 0, 2, 6), (False, 1, 2, 1, 2, 6)]
    assert progress[0] == 0 and progress[-1] == 1
    assert progress == pytest.approx([0, 1 / 6, 2 / 6, 1 / 2, 1 / 2, 1 / 2, 4 / 6, 5 / 6, 1, 1, 1])
    learn.fit(1)
    assert seen[10] == (True, 0, 1, 0, 3, 0) and progress[11] == 0 and learn.epochs_done == 3


@pytest.mark.parametrize("n", [1, 7, 300])  # 300: more than are kept before they are added up
@pytest.mark.parametrize("read", [True, False])
def test_smooth_loss_is_a_debiased_average(n, read):
    """average ← .98 · average + .02 · loss, divided by 1 − .98ⁿ; over all epochs of a fit, validation left out, and
    afresh in the next."""
    values, expected, state = [], [], {"n": 0, "average": 0.}

    def update(learn):
        if not learn.training: return
        state["n"] += 1
        state["average"] = .98 * state["average"] + .02 * learn.loss.item()
        expected.append(state["average"] / (1 - .98 ** state["n"]))

    def look(learn): values.append((len(expected), float(learn.smooth_loss)))
    def first(learn): assert learn.smooth_loss is None

    learn = learner(n, 2, opt_func=torch.optim.SGD, lr=.01)
    for _ in range(2):
        learn.fit(2, cbs=[on(before_fit=first, after_batch=update, after_train=look, after_epoch=look, after_fit=look,
                             **({"before_batch": lambda learn: learn.train_iter and look(learn)} if read else {}))])
        assert all(value == pytest.approx(expected[k - 1], rel=1e-6) for k, value in values)
        assert values[-1][0] == 2 * n
        values.clear(), expected.clear(), state.update(n=0, average=0.)


def test_smooth_loss_can_be_written():
    learn, seen = learner(3, None), []

    def write(learn):
        learn.smooth_loss = torch.tensor(5.)
        seen.append(float(learn.smooth_loss))
    learn.fit(1, cbs=[on(after_train=write)])
    assert seen == pytest.approx([5.]) and float(learn.smooth_loss) == pytest.approx(5.)


Pair = namedtuple("Pair", "first second")


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x): return self.body(x["a"] + x["b"][0]) if isinstance(x, dict) else self.body(x[0] + x[1])


@pytest.mark.parametrize("wrap", [lambda x: (x, x), lambda x: [x, x], lambda x: {"a": x, "b": (x,)},
                                  lambda x: Pair(x, x)], ids=["tuple", "list", "dict", "namedtuple"])
def test_inputs_of_several_tensors(wrap):
    train, valid = ([(wrap(x), y) for x, y in pairs(4, seed=seed)] for seed in (1, 2))
    learn = learner(train, valid, model=TwoInputs(), metrics=[F.l1_loss])
    learn.fit(2, cbs=[A()])
    by_hand(model := net(), [(x + x, y) for x, y in pairs(4)] * 2, TORCH_SGD(model.parameters()))
    assert_same(learn.model.body, model)
    x, y = map(torch.cat, zip(*pairs(4, seed=2)))
    with torch.no_grad(): assert learn.results["l1_loss"] == pytest.approx(F.l1_loss(model(2 * x), y).item(), rel=1e-6)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, x)], ids=["tensor", "tuple"])
def test_batches_are_moved_to_the_models_device(wrap):
    "To the device that every machine has besides the CPU, on which nothing is computed."
    places = []

    def look(learn):
        places.extend([*(x.device.type for x in (learn.xb if isinstance(learn.xb, tuple) else [learn.xb])),
                       learn.yb.device.type])
        raise CancelBatchException
    batches = [(wrap(x), y) for x, y in pairs(3)]
    learner(batches, batches, model=(net() if wrap(0) == 0 else TwoInputs()).to("meta"),
            cbs=[on(after_pred=look)]).fit(1)
    assert places == ["meta"] * len(places) and len(places) == 6 * (2 if wrap(0) == 0 else 3)


# What is printed, and what is read

def test_show_loop_prints_the_order_that_happens(capsys):
    trace, other = Trace(), on(after_loss=lambda learn: None)
    learn = learner(1, 1, cbs=[other])
    learn.show_loop(cbs=[trace])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    printed = [words[0] for words in lines if "Trace" in words]
    learn.fit(1, cbs=[trace])
    assert printed == [SHORT[short] for short in trace.seen] and len(printed) == 20
    assert [words[0] for words in lines if any("On" in word for word in words[1:])] == ["after_loss"] * 2
    trace.seen.clear()
    learn.show_loop()
    assert "Trace" not in capsys.readouterr().out
    learn.fit(1)
    assert not trace.seen


READS = ["item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy", "__array__", "__contains__",
         "nonzero", "equal", "allclose"]


def test_nothing_is_read_batch_by_batch(monkeypatch):
    "What reads a tensor's value waits for the device; so often in 300 batches as in 10."
    counts = dict.fromkeys(READS, 0)
    for name in READS:
        def counting(tensor, *args, name=name, original=getattr(torch.Tensor, name), **kwargs):
            counts[name] += 1
            return original(tensor, *args, **kwargs)
        monkeypatch.setattr(torch.Tensor, name, counting)
    assert not torch.zeros(1) and counts["__bool__"] == 1
    results = []
    for n in (10, 60, 300):
        for opt_func in (SGD, torch.optim.SGD):
            learn = learner(pairs(n), pairs(n), opt_func=opt_func, lr=.001, metrics=[F.l1_loss])
            counts.update(dict.fromkeys(READS, 0))
            learn.fit(2, cbs=[on(after_batch=lambda learn: learn.smooth_loss, after_loss=lambda learn: None)])
            results.append(dict(counts))
    assert all(result == results[0] for result in results) and sum(results[0].values()) < 30


class CountsZeroing(torch.optim.SGD):
    n_zeroed = 0

    def zero_grad(self, set_to_none=True):
        self.n_zeroed += 1
        super().zero_grad(set_to_none)


def test_an_optimizer_with_its_own_zero_grad_is_asked():
    learn = learner(opt_func=partial(CountsZeroing, lr=.1))
    learn.fit(1)
    assert learn.opt.n_zeroed >= 4


def test_an_optimizer_whose_zero_grad_was_replaced_is_asked():
    learn, calls = learner(), []
    learn.make_opt()
    learn.opt.zero_grad = lambda: calls.append(1)
    learn.fit(1)
    assert len(calls) >= 4


def test_no_gradient_is_left_after_a_fit():
    learn = learner()
    learn.fit(1)
    assert all(p.grad is None for p in learn.model.parameters())


# What a review found

@pytest.mark.parametrize("valid", [2, None])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["tensor", "dict"])
def test_a_learner_can_be_copied_after_a_fit(valid, error, kind):
    "Whatever it ended with; the copy trains on as the learner does."
    class Dict(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x): return {"y": (self.inner(x),)}
    model, loss = (net(), F.mse_loss) if kind == "tensor" else (Dict(), lambda pred, y: F.mse_loss(pred["y"][0], y))
    learn = learner(4, valid, model=model, loss_func=loss)
    try: learn.fit(1, cbs=[Throw("after_loss", error(), lambda learn: learn.iter == 2)] if error else [])
    except KeyboardInterrupt: pass
    twin = copy.deepcopy(learn)
    for each in (learn, twin): each.fit(1)
    assert_same(learn.model, twin.model)


def test_what_is_refused_leaves_the_optimizer_as_it_was():
    learn = learner()
    learn.fit(1)
    opt = learn.opt
    for bad in (lambda: learn.fit(1, cbs=[Callback, Callback()], reset_opt=True), lambda: learn.fit(0, reset_opt=True),
                lambda: learn.fit(1, cbs=3, reset_opt=True)):
        with pytest.raises(ValueError): bad()
        assert learn.opt is opt
    learn.dls.train = []
    with pytest.raises(ValueError): learn.fit(1, reset_opt=True)
    assert learn.opt is opt


def test_ctrl_c_at_any_line_where_callbacks_are_taken_in_locks_no_learner():
    "The last line, a plain assignment, is one that Python does not interrupt."
    def attempt(at):
        learn = learner(cbs=[on(before_batch=lambda learn: None)])
        lines = with_ctrl_c(lambda: learn.fit(1), at, ["_callbacks"], but="finally:")
        learn.fit(1)
        learn.validate()
        return lines
    for at in range(1, attempt(0) + 1): attempt(at)


@pytest.mark.parametrize("batch", [{"x": torch.ones(2, 3), "y": torch.ones(2, 1)}, torch.ones(2, 3), {"a", "b"}, "xy",
                                   [torch.ones(2, 3)], (torch.ones(2, 3),) * 3])
def test_only_a_pair_is_a_batch(batch):
    with pytest.raises(ValueError, match="pairs"): learner([batch], None).fit(1)


class Grads(Callback):
    "Whether gradients are recorded, when the loop calls."
    def __init__(self): self.seen = set()
    def after_pred(self, learn): self.seen.add((learn.training, torch.is_grad_enabled()))


LINES = {"fit", "validate", "predict", "keep_modes", "keep_grad_mode", "set_modes", "__init__", "__enter__", "__exit__",
         *(name for cls in Learner.__mro__ for name in vars(cls) if name.startswith("_") and name[1] != "_")}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("work", [lambda learn: learn.validate(), lambda learn: learn.predict(torch.ones(2, 3))],
                         ids=["validate", "predict"])
def test_ctrl_c_at_any_line_gives_modes_and_grad_mode_back(work, grad):
    "Modes of the model, torch's recording of gradients, and what the learner keeps; Python does not interrupt a `try`."
    def attempt(at):
        learn = learner(1, 2, model=noisy_net(), metrics=[F.l1_loss], cbs=[A()])
        learn.fit(1)
        learn.model.train()
        learn.model[0].eval()
        modes, books = [module.training for module in learn.model.modules()], dict(vars(learn))
        with torch.set_grad_enabled(grad):
            lines = with_ctrl_c(lambda: work(learn), at, LINES, but=("finally:", "try: set_modes"))
            found = torch.is_grad_enabled()
        assert found == grad, f"line {at}"
        assert [module.training for module in learn.model.modules()] == modes, f"line {at}"
        assert all(vars(learn)[name] is value for name, value in books.items()), f"line {at}"
        return lines
    n_lines = attempt(0)
    assert n_lines > 10
    for at in range(1, n_lines + 1): attempt(at)


def test_ctrl_c_at_any_line_of_a_fit_leaves_a_learner_that_can_fit():
    def attempt(at):
        learn, grads = learner(1, 1, metrics=[F.l1_loss], cbs=[A()]), Grads()
        lines = with_ctrl_c(lambda: learn.fit(1), at, LINES, but="finally:")
        assert torch.is_grad_enabled() and learn.fit_cbs is None, f"line {at}"
        if at % 5 == 0: learn.fit(1, cbs=[grads])
        assert grads.seen == (set() if at % 5 else {(True, True), (False, False)})
        return lines
    n_lines = attempt(0)
    assert n_lines > 100
    for at in range(1, n_lines + 1): attempt(at)


class Says:
    "A loader that says it has `length` batches, and gives those of its list, or each of them once only."
    def __init__(self, length, batches): self.length, self.batches = length, batches
    def __len__(self): return self.length
    def __iter__(self): return iter(self.batches)


def test_a_loader_that_gives_no_batch_is_no_epoch():
    for train, valid, part in ((Says(3, []), None, "training"), (pairs(2), Says(3, []), "validation"),
                               (Says(2, iter(pairs(2))), None, "training")):  # the last one: in the second epoch
        learn = learner(train, valid, cbs=[A()])
        with pytest.raises(ValueError, match=f"{part} loader gave no batch, though its length is [23]"): learn.fit(2)
        assert learn.epochs_done == (part == "training" and train.length == 2) and learn.iter == 0
        assert "valid_loss" not in learn.results
    learn = learner(2, None)
    with pytest.raises(ValueError, match="validation loader gave no batch"): learn.validate(Says(1, []))
    learn.fit(1)


@pytest.mark.parametrize("n", [2, 6])
def test_a_loader_that_gives_others_than_it_says_counts_what_came_with_a_warning(n):
    learn, progress = learner(Says(4, pairs(n)), Says(4, pairs(n, last=1, seed=2)), cbs=[A()]), []
    follow = on(after_batch=lambda learn: learn.training and progress.append(learn.pct_train))
    with pytest.warns(UserWarning) as caught: learn.fit(1, cbs=[follow])
    assert [re.sub(" loader.*", "", str(warning.message)) for warning in caught] == ["The training", "The validation"]
    assert all(f"gave {n} batches, though its length is 4" in str(warning.message) for warning in caught)
    losses = by_hand(model := net(), pairs(n), TORCH_SGD(model.parameters()))
    assert_same(learn.model, model)
    x, y = map(torch.cat, zip(*pairs(n, last=1, seed=2)))
    with torch.no_grad(): valid_loss = F.mse_loss(model(x), y).item()
    assert learn.results == pytest.approx({"train_loss": torch.stack(losses).mean().item(), "valid_loss": valid_loss})
    assert progress == [0., .25, .5, .75, 1., 1.][:n] and learn.pct_train == 1 and learn.train_iter == n
    with warnings.catch_warnings():  # a callback that ends the pass is no loader's fault
        warnings.simplefilter("error")
        learn.fit(1, cbs=[Throw("after_batch", CancelEpochException())])


def test_before_fit_finds_the_counters_of_a_new_fit():
    names = "epoch n_epoch iter n_iter train_iter pct_train results loss dl smooth_loss epochs_done".split()
    learn, seen = learner(3, 2), []
    look = on(before_fit=lambda learn: seen.append([getattr(learn, name) for name in names]))
    for n in (2, 4): learn.fit(n, cbs=[look])
    assert seen == [[0, 2, 0, 3, 0, 0., {}, None, None, None, 0], [0, 4, 0, 3, 0, 0., {}, None, None, None, 2]]


def test_a_model_that_was_replaced_whole_is_not_left_untrained():
    learn = learner()
    learn.fit(1)
    learn.model, opt = net(5), learn.opt
    with pytest.raises(ValueError, match=r"knows nothing of 4 of the model's parameters.*reset_opt=True"): learn.fit(1)
    assert_same(learn.model, net(5))
    assert learn.opt is opt and learn.epochs_done == 1
    learn.fit(1, reset_opt=True)
    by_hand(model := net(5), pairs(4), TORCH_SGD(model.parameters()))
    assert_same(learn.model, model)


def test_a_callback_that_replaces_the_model_has_to_see_to_the_optimizer():
    learn = learner(valid=None)
    with pytest.warns(UserWarning, match=r"knows nothing of 4 .*learn\.make_opt\(\)"):
        learn.fit(1, cbs=[on(before_fit=setting("model", lambda learn: net(5)))])
    assert_same(learn.model, net(5))
    learn = learner(valid=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn.fit(1, cbs=[on(before_fit=lambda learn: (setattr(learn, "model", net(5)), learn.make_opt()))])
    by_hand(model := net(5), pairs(4), TORCH_SGD(model.parameters()))
    assert_same(learn.model, model)


@pytest.mark.parametrize("choose, n", [
    (lambda groups: [nn.Parameter(torch.ones(2))], 4), (lambda groups: groups[1:], 2),
    (lambda groups: groups[0]["params"][:1], 3)], ids=["none", "last", "one"])
def test_an_optimizer_that_does_not_hold_what_learns_is_refused(choose, n):
    learn = learner()
    learn.fit(1)
    opt, learn.opt_func = learn.opt, lambda groups: TORCH_SGD(choose(groups))
    with pytest.raises(ValueError, match=f"opt_func made.*does not hold {n} of the model's parameters.*freeze"):
        learn.fit(1, reset_opt=True)
    assert learn.opt is opt
    learn.fit(1)
    by_hand(model := net(), pairs(4) * 2, TORCH_SGD(model.parameters()))
    assert_same(learn.model, model)


def test_an_optimizer_may_leave_out_what_is_frozen_until_it_learns():
    learn = learner(opt_func=lambda groups: TORCH_SGD([p for g in groups for p in g["params"] if p.requires_grad]))
    learn.freeze()
    learn.fit(1)
    by_hand(model := net(), pairs(4), TORCH_SGD(model[2].parameters()))
    assert_same(learn.model, model)
    learn.unfreeze()
    with pytest.raises(ValueError, match=r"knows nothing of 2 .*reset_opt=True"): learn.fit(1)


def test_an_optimizer_may_hold_the_parameters_in_one_buffer():
    class Flat(torch.optim.SGD):
        def zero_grad(self, set_to_none=False): super().zero_grad(False)
    learn = learner(opt_func=lambda groups: Flat([flatten_parameters([p for g in groups for p in g["params"]])], lr=.1))
    learn.fit(2)
    by_hand(model := net(), pairs(4) * 2, torch.optim.SGD(model.parameters(), lr=.1))
    for p, q in zip(learn.model.parameters(), model.parameters(), strict=True): torch.testing.assert_close(p, q)
    learn.model = net(5)
    with pytest.raises(ValueError, match="knows nothing of 4"): learn.fit(1)


def test_metrics_that_are_changed_later_are_checked_too():
    learn = learner()
    learn.metrics = [named("valid_loss")]
    for call in (lambda: learn.fit(1), learn.validate, lambda: learn.result_names):
        with pytest.raises(ValueError, match="'valid_loss'.*got"): call()
    assert learn.epochs_done == 0


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_accuracy_of_outputs_with_more_axes(shape):
    "A class for each pixel, for example."
    generator = torch.Generator().manual_seed(0)
    pred, y = torch.randn(5, 4, *shape, generator=generator), torch.randint(4, (5, *shape), generator=generator)
    assert accuracy(pred, y).item() == pytest.approx(accuracy_score(y.flatten(), pred.argmax(1).flatten()), abs=1e-7)


def test_a_model_without_parameters():
    learn = learner(model=nn.Tanh(), loss_func=lambda pred, y: pred.mean() + y.mean(), opt_func=SGD, lr=.1)
    assert math.isfinite(learn.validate()["loss"]) and learn.predict(torch.zeros(2, 3)).shape == (2, 3)
    with pytest.raises(ValueError, match="no parameters.*train"): learn.fit(1)


@pytest.mark.filterwarnings("ignore:At the end of epoch")
def test_a_loss_that_is_not_finite_costs_one_look_at_the_data_and_leaves_its_order():
    class Counted(torch.utils.data.DataLoader):
        n = 0

        def __iter__(self):
            self.n += 1
            return super().__iter__()
    x, y = (torch.cat(parts) for parts in zip(*pairs(4)))
    generator = torch.Generator().manual_seed(1)
    learn = learner(Counted(torch.utils.data.TensorDataset(x, y), 4, shuffle=True, generator=generator), None,
                    loss_func=lambda pred, y: F.mse_loss(pred, y) * math.inf)
    learn.fit(3)
    assert learn.dls.train.n == 4
    expected = Counted(torch.utils.data.TensorDataset(x, y), 4, shuffle=True,
                       generator=torch.Generator().manual_seed(1))
    for _ in range(3): list(expected)
    assert torch.equal(generator.get_state(), expected.generator.get_state())


async def late(self, learn): pass


def never(self, learn): yield


@pytest.mark.parametrize("method", [late, never])
def test_what_would_never_run_is_no_callbacks_method(method):
    with pytest.raises(ValueError, match="Mine.after_batch.*plain function"):
        type("Mine", (Callback,), {"after_batch": method})


@pytest.mark.parametrize("number", [float, np.float32, np.float64, torch.tensor])
def test_a_metric_may_be_a_plain_number(number):
    def first(pred, y): return number(pred[0].item())

    def as_tensor(pred, y): return pred[0, 0]
    learn = learner(metrics=[first, as_tensor])
    learn.fit(1)
    assert learn.results["first"] == pytest.approx(learn.results["as_tensor"], rel=1e-6)
