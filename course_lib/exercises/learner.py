"Exercises of chapter 06: callbacks that time, disturb and skip, and the loop itself."
import contextlib
import inspect
import math
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from ..learner import (
    Callback, CancelBatchException, CancelException, CancelFitException, CancelStepException, CancelTrainException, Learner)
from ..support.callbacks import CheckedCallback, StageException
from .core import Exercise, random_tensor


def made(answer, *args):
    "A callback made from the answer's class."
    if not inspect.isclass(answer) or not issubclass(answer, CheckedCallback):  # chapter 06 defines Callback itself
        raise TypeError("it is no class derived from Callback. (To check is the class itself, without parentheses.)")
    return answer(*args)


def variant(answer, **changes):
    "The answer with other methods; None: without that one."
    kept = {name: value for name, value in vars(answer).items() if inspect.isfunction(value)}
    return type(answer.__name__, answer.__bases__, {name: value for name, value in {**kept, **changes}.items() if value})


@contextlib.contextmanager
def swapped(answer, other, *spaces):
    "Under `with`: `other(value)`, if not None, for each value among the globals of the answer's methods, and in more spaces."
    functions = [value for each in getattr(answer, "__mro__", ()) for value in vars(each).values() if inspect.isfunction(value)]
    spaces = {id(space): space for space in (*spaces, *(function.__globals__ for function in functions))}
    changed = [(space, name, value, new) for space in spaces.values() for name, value in space.items()
               if (new := other(value)) is not None]
    try:
        for space, name, _, new in changed: space[name] = new
        yield
    finally:
        for space, name, value, _ in changed: space[name] = value


@contextlib.contextmanager
def clock_that_stands(answer):
    "Under `with`: `time`'s clocks move only where `.passed` is increased, also for what an answer has imported from `time`."
    clock = SimpleNamespace(passed=0.)
    starts = {time.perf_counter: 1000., time.monotonic: time.monotonic(), time.time: time.time()}
    ours = [(real, lambda now=now: now + clock.passed) for real, now in starts.items()]
    with swapped(answer, lambda value: next((fake for real, fake in ours if value is real), None), vars(time)): yield clock


def librarys(answer):
    "Under `with`: the library's cancel exceptions in the place of those that the notebook of chapter 06 defines."
    known = {each.__name__: each for each in CancelException.__subclasses__() if each.__module__ == CancelException.__module__}
    return swapped(answer, lambda value: known.get(value.__name__)
                   if inspect.isclass(value) and issubclass(value, StageException) else None)


class Slow(nn.Module):
    "A model that takes its time: of each batch the seconds that stand in it."
    def __init__(self, clock):
        super().__init__()
        self.weight, self.clock, self.seen = nn.Parameter(torch.ones(())), clock, []

    def forward(self, x):
        self.clock.passed += x.item()
        self.seen.append(f"{'training' if self.training else 'validation'} batch of {x.item():.3g} s")
        return self.weight * x


def slow_learner(clock, train, valid, cbs):
    batches = lambda seconds: [(torch.tensor([s]), torch.zeros(1)) for s in seconds]
    return Learner(Slow(clock), SimpleNamespace(train=batches(train), valid=batches(valid)), F.mse_loss, lr=1e-3, cbs=cbs)


# 1. A stopwatch

class Stopwatch(Callback):
    def before_fit(self, learn): self.seconds = []
    def before_train(self, learn): self.began = time.perf_counter()
    def after_train(self, learn): self.seconds.append(time.perf_counter() - self.began)


def run_stopwatch(answer, train, valid, fits):
    "The lists after each fit; time passes in the batches, and at the ends of validations and fits."
    class Idle(Callback):
        def before_fit(self, learn): clock.passed += 5
        after_validate = after_fit = before_fit
    watch = made(answer)
    with clock_that_stands(answer) as clock:
        learn, found = slow_learner(clock, train, valid, [watch, Idle()]), {}
        for i, n_epochs in enumerate(fits, 1):
            learn.fit(n_epochs)
            found[f"seconds after fit {i}"] = list(watch.seconds)
    return found


def times_by_hand(train, valid, fits):
    return {f"seconds after fit {i}": [math.fsum(train)] * n_epochs for i, n_epochs in enumerate(fits, 1)}


def stop(self, learn): self.seconds.append(time.perf_counter() - self.began)
def start(self, learn): self.began = time.perf_counter()


def start_all(self, learn):
    self.seconds = []
    self.began = time.perf_counter()


def stop_once(self, learn): self.seconds = [time.perf_counter() - self.began]


def stop_and_start(self, learn):
    self.seconds.append(time.perf_counter() - self.began)
    self.began = time.perf_counter()


STOPWATCH = Exercise(
    "06", Stopwatch, '''
class Stopwatch(Callback):
    "After a fit: `seconds`, how long the training of each epoch took."
    def before_fit(self, learn): self.seconds = []
                                                 # your methods
''',
    hints=("Between which two events does the training of an epoch lie, and nothing else?",
           "Between before_train and after_train. A method may keep something for another one as an attribute of self.",
           "def before_train(self, learn): self.began = time.perf_counter()"),
    mistakes={
        "You time the validation too. Stop the clock before it begins: in after_train.":
            variant(Stopwatch, after_train=None, after_epoch=stop),
        "You time the validation too: its end is not the end of the training.":
            variant(Stopwatch, after_train=None, after_validate=stop),
        "You time the validation in the place of the training.":
            variant(Stopwatch, before_train=None, after_train=None, before_validate=start, after_validate=stop),
        "Your clock starts once, when the fit begins, so each number holds all that came before. Start it anew in each epoch.":
            variant(Stopwatch, before_fit=start_all, before_train=None),
        "Your clock runs on from one epoch's training to the next, through the validation between them. Start it in before_train.":
            variant(Stopwatch, before_fit=start_all, before_train=None, after_train=stop_and_start),
        "A number for each batch is too fine. One for each epoch, please.":
            variant(Stopwatch, before_train=None, after_train=None, before_batch=start, after_batch=stop),
        "Only the last epoch is left. Append to the list, and make a new one only where a fit begins.":
            variant(Stopwatch, after_train=stop_once),
        "A second fit is to begin a new list.":
            variant(Stopwatch, before_fit=None, __init__=lambda self: setattr(self, "seconds", [])),
        "That is the time on the clock. How long it took is the difference of two of them.":
            variant(Stopwatch, after_train=lambda self, learn: self.seconds.append(time.perf_counter()))},
    cases=lambda rng: [{"train": [rng.uniform(1, 9) for _ in range(3)], "valid": [rng.uniform(1, 9) for _ in range(2)],
                        "fits": fits} for fits in ([2, 1], [3, 3])],
    run=run_stopwatch, truth=times_by_hand,
    why="before_train and after_train enclose the training and nothing else; after_epoch would come after the validation. What "
        "one event keeps for another is an attribute of the callback. (The check turned the clock itself, so it took no time.)")


# 2. Pixels that fail

class DropPixels(Callback):
    def __init__(self, share): self.share = share

    def before_batch(self, learn):
        if learn.training: learn.xb = learn.xb * (torch.rand_like(learn.xb) >= self.share)  # a new tensor


class Looks(nn.Module):
    "A model that keeps what it is shown."
    def __init__(self):
        super().__init__()
        self.weight, self.shown = nn.Parameter(torch.ones(())), {True: [], False: []}

    def forward(self, x):
        self.shown[self.training].append(x.detach().clone())
        return self.weight * x.mean(1)


def run_dropper(answer, share, _images, _seed):
    "Which pixels are 0 in two epochs, and what became of the images. The batches are views of the data set."
    torch.manual_seed(_seed)
    data, model, half = _images.clone(), Looks(), len(_images) // 2
    batches = [(data[:half], torch.zeros(half)), (data[half:], torch.zeros(half))]
    Learner(model, SimpleNamespace(train=batches, valid=batches[:1]), F.mse_loss, lr=1e-6,
            cbs=[made(answer, share)]).fit(2)
    shown = torch.stack(model.shown[True])
    given, off = torch.stack([*_images.chunk(2)] * 2), (shown == 0).float()  # [4, images, pixels]
    alike = lambda i: bool(off.mean(i).std() * off.shape[i] ** .5 > 1.7 * off.std())
    return {"the data set is as it was": torch.equal(data, _images),
            "validation sees the images as they are": all(torch.equal(x, _images[:half]) for x in model.shown[False]),
            "the share of the pixels that are 0": off.mean().item(),
            "all others are as they were": torch.equal(shown, given * (1 - off)),
            "the same pixels are 0 in each batch": alike(0), "in each image": alike(1),
            "whole images are 0": alike(2)}


def some_dropped(share, _images, _seed):
    return {"the data set is as it was": True, "validation sees the images as they are": True,
            "the share of the pixels that are 0": share, "all others are as they were": True,
            "the same pixels are 0 in each batch": False, "in each image": False, "whole images are 0": False}


def dropping(change, event="before_batch", training_only=True):
    "A `DropPixels` with another change, `(the callback, the learner)`."
    def act(self, learn):
        if learn.training or not training_only: change(self, learn)
    return variant(DropPixels, **{"before_batch": None, event: act})


def set_xb(new):
    "A change that puts `new(share, xb)` in the batch's place."
    return lambda self, learn: setattr(learn, "xb", new(self.share, learn.xb))


def always_the_same(self, learn):
    if not hasattr(self, "stays"): self.stays = torch.rand_like(learn.xb) >= self.share
    learn.xb = learn.xb * self.stays


dropped = set_xb(lambda share, xb: xb * (torch.rand_like(xb) >= share))

DROP_PIXELS = Exercise(
    "06", DropPixels, '''
class DropPixels(Callback):
    "In training, each pixel is set to 0 with the probability share."
    def __init__(self, share): self.share = share
                                                 # your method
''',
    hints=("At which event is the batch there, and the model has not seen it yet? Does that event come in a validation, too?",
           "torch.rand_like(x) draws evenly from 0 to 1, so it is below share with the probability share. Only while learn.training.",
           "In before_batch, put a new tensor in its place: learn.xb = …. In place (learn.xb[…] = 0) would change the data set."),
    mistakes={
        "Pixels fail in the validation too, where before_batch comes as well. Ask learn.training.": dropping(dropped, training_only=False),
        "You change the batch in place, and it may be a part of the data set itself: the holes stay in it. Make a new tensor.":
            dropping(lambda self, learn: learn.xb.mul_(torch.rand_like(learn.xb) >= self.share)),
        "share is to be set to 0. In your batch it is what stays.": dropping(set_xb(lambda share, xb: xb * (torch.rand_like(xb) < share))),
        "Dropout enlarges what stays. Here the other pixels are to stay as they are.": dropping(set_xb(lambda share, xb: F.dropout(xb, share))),
        "randn draws normal numbers. Those that are below share with the probability share come from rand.":
            dropping(set_xb(lambda share, xb: xb * (torch.randn_like(xb) >= share))),
        "All pixels get darker by some factor, and none is 0. A pixel either stays or is gone.":
            dropping(set_xb(lambda share, xb: xb * torch.rand_like(xb))),
        "All images of a batch lose the same pixels. Draw a number for each pixel of each image.":
            dropping(set_xb(lambda share, xb: xb * (torch.rand(xb.shape[1:]) >= share))),
        "Whole images are gone. Draw a number for each pixel.":
            dropping(set_xb(lambda share, xb: xb * (torch.rand(len(xb), 1) >= share))),
        "You draw once, and every batch loses the same pixels. Draw anew each time.": dropping(always_the_same),
        "The loop never sees your images. Assign to learn.xb, not to a variable of your own; and in before_batch, since later the model "
        "has been called.": dropping(dropped, event="after_pred")},
    cases=lambda rng: [{"share": rng.uniform(.15, .35), "_images": random_tensor(rng, 160, 100).abs() + .1,
                        "_seed": rng.randrange(2 ** 40)} for _ in range(2)],
    run=run_dropper, truth=some_dropped, tolerance=.05,
    why="A number that is drawn evenly from 0 to 1 is below share with the probability share. The product is a new tensor, so the data "
        "set keeps its images; and validation is left alone, since it is to judge.")


# 3. Skip what is easy

class SkipEasy(Callback):
    def __init__(self, below): self.below, self.n_skipped = below, 0

    def after_loss(self, learn):
        if learn.training and learn.loss < self.below:
            self.n_skipped += 1
            raise CancelStepException


def run_skipper(answer, below, lr, _w, _train, _valid):
    "Two epochs of a linear regression."
    model, n_backward = nn.Linear(3, 1, bias=False), []
    model.weight.data.copy_(_w[None])
    model.weight.register_hook(lambda grad: n_backward.append(1))
    skipper = made(answer, below)
    learn = Learner(model, SimpleNamespace(train=_train, valid=_valid), F.mse_loss, lr=lr, cbs=[skipper])
    with librarys(answer): learn.fit(2)
    return {"n_skipped": skipper.n_skipped, "the number of backward passes": len(n_backward),
            "the weight at the end": model.weight.detach()[0].clone(),
            "the averaged training loss": learn.results.get("train_loss"),
            "the validation loss": learn.results.get("valid_loss")}


def skipped_by_hand(below, lr, _w, _train, _valid):
    "The gradient of a mean square in closed form."
    w, n_skipped, n_backward = _w, 0, 0
    for _ in range(2):
        losses = []
        for x, y in _train:
            error = x @ w - y[:, 0]
            losses.append(error.pow(2).mean().item())
            if losses[-1] < below: n_skipped += 1
            else: w, n_backward = w - lr * 2 / len(x) * (x.T @ error), n_backward + 1
    return {"n_skipped": n_skipped, "the number of backward passes": n_backward, "the weight at the end": w,
            "the averaged training loss": sum(losses) / len(losses),
            "the validation loss": sum((x @ w - y[:, 0]).pow(2).mean().item() for x, y in _valid) / len(_valid)}


def easy_and_hard(rng):
    "Batches with small and large targets mixed; the last one is easy, and so are those of the validation."
    w = .1 * random_tensor(rng, 3)

    def batch(size): return (x := random_tensor(rng, 6, 3)), (x @ w)[:, None] + size * random_tensor(rng, 6, 1)
    sizes = [.1, 3., *rng.choices((.1, 3.), k=3), 3., .1]
    return {"below": rng.uniform(.7, 1.2), "lr": rng.uniform(.01, .03), "_w": w, "_train": [batch(size) for size in sizes],
            "_valid": [batch(.1), batch(.1)]}


def skipping(event="after_loss", easy=lambda self, learn: learn.training and learn.loss < self.below, how=CancelStepException,
             count=lambda self, learn: True, **others):
    "A `SkipEasy` that acts elsewhere, judges, leaves or counts differently."
    def act(self, learn):
        if easy(self, learn):
            self.n_skipped += bool(count(self, learn))
            if how: raise how
    return variant(SkipEasy, **{"after_loss": None, event: act, **others})


def zero_loss(self, learn):
    if learn.training and learn.loss < self.below:
        self.n_skipped += 1
        learn.loss = learn.loss * 0


def counts_all(self, learn):
    if learn.loss < self.below:
        self.n_skipped += 1
        if learn.training: raise CancelStepException


SKIP_EASY = Exercise(
    "06", SkipEasy, '''
class SkipEasy(Callback):
    "In training, neither backward nor step for a batch whose loss is smaller than below."
    def __init__(self, below): self.below, self.n_skipped = below, 0
                                                 # your method
''',
    hints=("From which event on is the loss known, and the backward pass still to come? Which exception skips the step and keeps the batch?",
           "after_loss, and CancelStepException. But a validation has losses too, and no step to cancel.",
           "def after_loss(self, learn): and first ask: if learn.training and learn.loss < self.below"),
    mistakes={
        "You skip only after the backward pass. It was for nothing, and its gradient waits and joins the next step. Leave as soon as the loss "
        "is known.": skipping("before_step"),
        "A batch cancelled by CancelBatchException counts nowhere, but the easy ones belong in the averages. Cancel the step alone.":
            skipping(how=CancelBatchException),
        "The first easy batch ends your epoch's training. Skip that batch's step alone.": skipping(how=CancelTrainException),
        "The first easy batch ends your whole fit. Skip that batch's step alone.": skipping(how=CancelFitException),
        "You act in the validation too, where there is no step to cancel. Ask learn.training.":
            skipping(easy=lambda self, learn: learn.loss < self.below),
        "n_skipped counts easy batches of the validation too. Only in training is anything skipped.":
            variant(SkipEasy, after_loss=counts_all),
        "You skip the hard batches, and train on the easy ones.":
            skipping(easy=lambda self, learn: learn.training and learn.loss > self.below),
        "A loss of 0 makes a backward pass all the same, and spoils the averages. Leave by an exception.":
            variant(SkipEasy, after_loss=zero_loss),
        "Your easy batches are counted, and then trained on: raise an exception to leave.": skipping(how=None),
        "Nothing is counted in n_skipped.": skipping(count=lambda self, learn: False),
        "n_skipped begins at 0 again with each epoch. Let it go on.":
            variant(SkipEasy, before_epoch=lambda self, learn: setattr(self, "n_skipped", 0))},
    cases=lambda rng: [easy_and_hard(rng) for _ in range(2)], run=run_skipper, truth=skipped_by_hand, tolerance=1e-4,
    why="In after_loss the loss is known and nothing has been spent on its gradient. CancelStepException skips backward and step, "
        "and the batch still counts. In a validation it would be an error, as no step is under way there.")


# 4. The loop from a blank page

class MyLearner:
    def __init__(self, model, dls, loss_func, opt, cbs=()):
        self.model, self.dls, self.loss_func, self.opt, self.cbs = model, dls, loss_func, opt, cbs

    def call(self, event):
        for cb in self.cbs:
            if hasattr(cb, event): getattr(cb, event)(self)

    def fit(self, n_epochs):
        try:
            self.call("before_fit")
            self.epochs(n_epochs)
        except CancelFitException: pass
        finally: self.call("after_fit")

    def epochs(self, n_epochs):
        for self.epoch in range(n_epochs):
            for i, (self.xb, self.yb) in enumerate(self.dls.train):
                self.pct_train = (self.epoch + i / len(self.dls.train)) / n_epochs
                self.batch()

    def batch(self):
        self.call("before_batch")
        self.pred = self.model(self.xb)
        self.loss = self.loss_func(self.pred, self.yb)
        self.call("after_loss")
        self.loss.backward()
        self.call("before_step")
        self.opt.step()
        self.opt.zero_grad()


class Negative(Callback):
    def before_batch(self, learn): learn.xb = -learn.xb


class SmallWeights(Callback):
    def after_loss(self, learn): learn.loss = learn.loss + .1 * learn.model.weight.pow(2).sum()


class Half(Callback):
    "Halves the gradient before the step."
    def before_step(self, learn):
        if learn.model.weight.grad is not None: learn.model.weight.grad.mul_(.5)


class Log(Callback):
    "Writes everything down, and raises an error at the event of that number."
    def __init__(self, at, error):
        self.at, self.error, self.events = at, error, []
        self.seen = {name: [] for name in ("epochs", "shares done", "losses", "outputs", "lengths of the gradient")}

    def note(self, learn, event):
        self.events.append(event)
        if len(self.events) - 1 == self.at: raise self.error

    def before_fit(self, learn): self.note(learn, "before_fit")

    def before_batch(self, learn):
        self.seen["epochs"].append(learn.epoch)
        self.seen["shares done"].append(float(learn.pct_train))
        self.note(learn, "before_batch")

    def after_loss(self, learn):
        self.seen["losses"].append(learn.loss.item())
        self.seen["outputs"].append(learn.pred.detach().mean().item() + learn.yb.mean().item())
        self.note(learn, "after_loss")

    def before_step(self, learn):
        grad = learn.model.weight.grad
        self.seen["lengths of the gradient"].append(math.nan if grad is None else grad.norm().item())
        self.note(learn, "before_step")

    def after_fit(self, learn): self.note(learn, "after_fit")


def run_loop(answer, n_epochs, cancelled_at, error_at, lr, _w, _batches):
    "A linear regression with callbacks that change the input, the loss and the gradient, and one that leaves."
    model, raised = nn.Linear(3, 1, bias=False), None
    model.weight.data.copy_(_w[None])
    log = Log(cancelled_at if error_at is None else error_at, CancelFitException() if error_at is None else KeyError("a bug"))
    mine = answer(model, SimpleNamespace(train=_batches, valid=None), F.mse_loss, torch.optim.SGD(model.parameters(), lr=lr),
                  [Negative(), SmallWeights(), Half(), log])
    try:
        with librarys(answer): mine.fit(n_epochs)
    except (CancelFitException, KeyError) as error: raised = type(error).__name__
    return {"what comes out of fit": raised or "no error", "the events": log.events, "the weight at the end":
            model.weight.detach()[0].clone(), **log.seen}


def loop_by_hand(n_epochs, cancelled_at, error_at, lr, _w, _batches):
    "The gradient in closed form, and the events by counting: before_fit is number 0, and each batch has three."
    n, w = len(_batches), _w
    events = ["before_fit", *["before_batch", "after_loss", "before_step"] * n * n_epochs]
    at = cancelled_at if error_at is None else error_at
    if at is not None: events = events[:at + 1]
    found = {"epochs": [], "shares done": [], "losses": [], "outputs": [], "lengths of the gradient": []}
    for k in range(events.count("before_batch")):
        found["epochs"].append(k // n)
        found["shares done"].append(k / (n * n_epochs))
        if events.count("after_loss") <= k: break
        x, y = _batches[k % n]
        pred = -x @ w
        error = pred - y[:, 0]
        found["losses"].append((error.pow(2).mean() + .1 * w.pow(2).sum()).item())
        found["outputs"].append((pred.mean() + y.mean()).item())
        if events.count("before_step") <= k: break
        grad = -x.T @ error / len(x) + .1 * w  # half of it
        found["lengths of the gradient"].append(grad.norm().item())
        if events[-1] != "before_step" or at is None or k < events.count("before_step") - 1: w = w - lr * grad
    return {"what comes out of fit": "no error" if error_at is None else "KeyError", "the events": [*events, "after_fit"],
            "the weight at the end": w, **found}


def ways_to_end(rng):
    "Fits that go through, that are cancelled at each kind of event, and one with an error."
    found = []
    for cancelled_at, error_at in ((None, None), (0, None), (1, None), (2, None), (3, None), (None, 2)):
        n_epochs, n = rng.randint(2, 3), rng.randint(3, 4)
        later = 3 * rng.randrange(1, n)  # in the first epoch, but not in its first batch
        found.append({"n_epochs": n_epochs, "cancelled_at": cancelled_at and cancelled_at + later,
                      "error_at": error_at and error_at + later, "lr": rng.uniform(.05, .2), "_w": random_tensor(rng, 3),
                      "_batches": [(random_tensor(rng, 5, 3), random_tensor(rng, 5, 1)) for _ in range(n)]})
    return found


def fit_as(before=lambda self: None, work=lambda self, n: (self.call("before_fit"), self.epochs(n)), forgives=CancelFitException,
           after=lambda self: None, finally_=lambda self: self.call("after_fit")):
    "A `MyLearner` whose fit has other things in its try, except and finally."
    def fit(self, n_epochs):
        before(self)
        try: work(self, n_epochs)
        except forgives: pass
        finally: finally_(self)
        after(self)
    return variant(MyLearner, fit=fit)


def batch_as(*order):
    "A `MyLearner` whose batch does these things in this order."
    def pred(self): self.pred = self.model(self.xb)
    def loss(self): self.loss = self.loss_func(self.pred, self.yb)
    def backward(self): self.loss.backward()
    def step(self): self.opt.step()
    def wipe(self): self.opt.zero_grad()
    known = {each.__name__: each for each in (pred, loss, backward, step, wipe)}

    def batch(self):
        for name in order:
            if name in known: known[name](self)
            else: self.call(name)
    return variant(MyLearner, batch=batch)


def batch_of_its_own(self):
    xb = self.xb
    self.call("before_batch")
    self.pred = self.model(xb)
    self.loss = self.loss_func(self.pred, self.yb)
    self.call("after_loss")
    self.loss.backward()
    self.call("before_step")
    self.opt.step()
    self.opt.zero_grad()


def shares(share):
    "A `MyLearner` with `share(epoch, i, n, n_epochs)` for pct_train."
    def epochs(self, n_epochs):
        for self.epoch in range(n_epochs):
            for i, (self.xb, self.yb) in enumerate(self.dls.train):
                self.pct_train = share(self.epoch, i, len(self.dls.train), n_epochs)
                self.batch()
    return variant(MyLearner, epochs=epochs)


def only_the_epoch(self, n_epochs):
    for self.epoch in range(n_epochs):
        try:
            for i, (self.xb, self.yb) in enumerate(self.dls.train):
                self.pct_train = (self.epoch + i / len(self.dls.train)) / n_epochs
                self.batch()
        except CancelFitException: pass


def calls_everybody(self, event):
    for cb in self.cbs: getattr(cb, event)(self)


inside = lambda self, n: (self.call("before_fit"), self.epochs(n), self.call("after_fit"))
nothing = lambda self: None
MY_LEARNER = Exercise(
    "06", MyLearner, '''
class MyLearner:
    def __init__(self, model, dls, loss_func, opt, cbs=()): ...
    def fit(self, n_epochs): ...                 # replace these
''',
    hints=("First the bare loop: two for loops, and four lines inside. Where does each event belong? What has to be an attribute?",
           "Everything that a callback may read or change: self.xb, self.yb, self.pred, self.loss, self.epoch, self.pct_train. The "
           "way out: try, except CancelFitException, finally.",
           "def call(self, event): goes through the callbacks, and asks hasattr(cb, event) before getattr(cb, event)(self)."),
    mistakes={
        "After a CancelFitException your after_fit is skipped. It belongs under finally, not at the end of the try.":
            fit_as(work=inside, finally_=nothing),
        "After an error other than CancelFitException your after_fit is skipped. It has to come in any case: under finally.":
            fit_as(finally_=nothing, after=lambda self: self.call("after_fit")),
        "Your except catches every error, so a bug in a callback goes unnoticed. Catch CancelFitException and no other.":
            fit_as(forgives=Exception),
        "CancelFitException comes out of your fit as an error. Catch it there.": fit_as(forgives=()),
        "A callback may cancel the fit in before_fit already: that call belongs inside the try.":
            fit_as(before=lambda self: self.call("before_fit"), work=lambda self, n: self.epochs(n)),
        "CancelFitException ends only an epoch of yours, and the next one begins. The whole fit is to end.":
            variant(MyLearner, epochs=only_the_epoch),
        "The gradients are not wiped, so those of earlier batches add up.":
            batch_as("before_batch", "pred", "loss", "after_loss", "backward", "before_step", "step"),
        "The gradients are wiped between backward and the step, so nothing is learned.":
            batch_as("before_batch", "pred", "loss", "after_loss", "backward", "wipe", "before_step", "step"),
        "A callback that assigns to learn.loss in after_loss changes nothing in your loop. Call the event before backward, and backward "
        "of self.loss.":
            batch_as("before_batch", "pred", "loss", "backward", "after_loss", "before_step", "step", "wipe"),
        "before_step comes after the step in your loop, too late to change the gradient.":
            batch_as("before_batch", "pred", "loss", "after_loss", "backward", "step", "before_step", "wipe"),
        "before_step comes before backward in your loop: there is no gradient yet.":
            batch_as("before_batch", "pred", "loss", "after_loss", "before_step", "backward", "step", "wipe"),
        "You hold the batch in a variable of your own, so a callback that assigns to learn.xb changes nothing. Use self.xb all through.":
            variant(MyLearner, batch=batch_of_its_own),
        "pct_train moves only from epoch to epoch. It is to count the batches in between as well.":
            shares(lambda epoch, i, n, n_epochs: epoch / n_epochs),
        "pct_train begins anew in each epoch. It is the part of the whole fit that is done.": shares(lambda epoch, i, n, n_epochs: i / n),
        "pct_train counts the batch that is only beginning. At the first one it is 0.":
            shares(lambda epoch, i, n, n_epochs: (epoch + (i + 1) / n) / n_epochs),
        "Not every callback has a method for every event. Ask hasattr before you call it.": variant(MyLearner, call=calls_everybody)},
    cases=ways_to_end, run=run_loop, truth=loop_by_hand, tolerance=1e-4,
    why="The loop is that of chapter 02; call is the idea of this chapter. except catches what is meant to end the fit and nothing "
        "else, and finally gives everybody the last word, whatever happened.")

EXERCISES = [STOPWATCH, DROP_PIXELS, SKIP_EASY, MY_LEARNER]
