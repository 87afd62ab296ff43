"Exercises of chapter 07: callbacks that keep, stop, freeze, and go back to the best."
import copy
import itertools
import math
import time
from types import SimpleNamespace

import torch
from torch import nn

from ..learner import Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException, Learner
from .core import Exercise
from .learner import clock_that_stands, made, slow_learner, variant


class Shift(nn.Module):
    "A layer that adds a number to its input, and counts its training batches in a buffer."
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        if self.training: self.n += 1
        return x + self.weight


def planned(plan, cbs, lr, n_batches=2, n_layers=2):
    """A learner whose results in each epoch are those of the plan, name -> list (which may be changed between fits).

    Each training batch makes each weight smaller by lr.
    """
    def loss_func(pred, targets): return pred.mean() - pred.mean().detach() + plan["train_loss" if learn.training else "valid_loss"][learn.epoch]
    def score(pred, targets): return torch.tensor(plan["score"][learn.epoch])
    batches = [(torch.zeros(1), torch.zeros(1))] * n_batches
    learn = Learner(nn.Sequential(*(Shift() for _ in range(n_layers))), SimpleNamespace(train=batches, valid=batches[:1]),
                    loss_func, torch.optim.SGD, lr=lr, cbs=cbs, metrics=[score] if "score" in plan else [])
    return learn


class Cuts(Callback):
    "Raises an exception before the validation of an epoch, and counts epochs."
    def __init__(self, how): self.how, self.at, self.n_epochs = how, None, 0
    def before_fit(self, learn): self.n_epochs = 0
    def before_epoch(self, learn): self.n_epochs += 1

    def before_validate(self, learn):
        if learn.epoch == self.at: raise self.how


# 1. The best of each

class Highest(Callback):
    def before_fit(self, learn): self.best = {}

    def after_epoch(self, learn):
        if learn.cancelled: return
        for name, value in learn.results.items(): self.best[name] = max(value, self.best.get(name, value))


def run_highest(answer, _plans, _cut):
    cuts, plan, found = Cuts(CancelEpochException), {"score": []}, {}
    highest = made(answer)
    learn = planned(plan, [highest, cuts], lr=.1)
    for i, (new, cuts.at) in enumerate(zip(_plans, _cut), 1):
        plan.update(new)
        learn.fit(len(new["score"]))
        found[f"best after fit {i}"] = dict(highest.best)
    return found


def highest_by_hand(_plans, _cut):
    return {f"best after fit {i}": {name: max(value for epoch, value in enumerate(values) if epoch != cut)
                                    for name, values in plan.items()}
            for i, (plan, cut) in enumerate(zip(_plans, _cut), 1)}


def plans_with_a_cut(rng):
    "Two fits; scores are negative; where an epoch is cut, its training loss is the highest of all."
    found = []
    for cut in ((None, None), (2, None)):
        plans = [{"train_loss": [rng.uniform(1, 9) for _ in range(5)], "valid_loss": [rng.uniform(1, 9) for _ in range(5)],
                  "score": [-rng.uniform(1, 9) for _ in range(5)]} for _ in range(2)]
        for values in plans[0].values(): values[3] += 10. if values[0] > 0 else 0.  # higher than all of the second fit
        for plan in plans: plan["score"][rng.randrange(2)] = -.5
        if cut[0] is not None: plans[0]["train_loss"][cut[0]] = 99.
        found.append({"_plans": plans, "_cut": cut})
    return found


def keeps(choose, first=lambda value: value, skip=True):
    "A `Highest` that chooses or begins otherwise."
    def after_epoch(self, learn):
        if skip and learn.cancelled: return
        for name, value in learn.results.items(): self.best[name] = choose(value, self.best.get(name, first(value)))
    return variant(Highest, after_epoch=after_epoch)


def best_epoch(self, learn):
    "All results of the epoch with the highest score."
    if learn.cancelled: return
    if not self.best or learn.results["score"] > self.best["score"]: self.best = dict(learn.results)


HIGHEST = Exercise(
    "07", Highest, '''
class Highest(Callback):
    "`best`: the highest value of each result over the whole epochs of a fit, name -> number."
    def before_fit(self, learn): self.best = {}
                                                 # your method
''',
    hints=("At which event are all results of an epoch there? And what does learn.cancelled say then?",
           "after_epoch; learn.results is a dict of plain numbers. Keep, for each name, the larger of the new value and the one kept.",
           "for name, value in learn.results.items(): and self.best.get(name, value) is the one kept, or the new one if there is none."),
    mistakes={
        "You begin at 0, and a result that is always negative never gets above it. Begin with the first value.":
            keeps(max, first=lambda value: 0.),
        "Those are the lowest values.": keeps(min),
        "Those are the values of the last epoch. Compare with what you have kept.": keeps(lambda new, old: new),
        "An epoch that was cancelled counts in yours. Ask learn.cancelled.": keeps(max, skip=False),
        "A second fit is to begin anew. Yours remembers the first.":
            variant(Highest, before_fit=None, __init__=lambda self: setattr(self, "best", {})),
        "You keep all results of one epoch. Each result may have its highest value in another epoch.":
            variant(Highest, after_epoch=best_epoch)},
    cases=plans_with_a_cut, run=run_highest, truth=highest_by_hand,
    why="after_epoch comes in any case, after a cancelled epoch too; learn.cancelled tells. get(name, value) lets the first value "
        "compete with itself, so nothing has to be known of its sign.")


# 2. A budget of time

class TimeLimit(Callback):
    def __init__(self, seconds): self.seconds = seconds
    def before_fit(self, learn): self.began = time.perf_counter()

    def after_batch(self, learn):
        if time.perf_counter() - self.began > self.seconds: raise CancelFitException


def run_limit(answer, seconds, train, valid, n_epochs):
    "The batches of two fits, by a clock that moves with each batch and between the fits."
    with clock_that_stands(answer) as clock:
        learn, found = slow_learner(clock, train, valid, [made(answer, seconds)]), {}
        for i in (1, 2):
            clock.passed += 1000.
            learn.model.seen.clear()
            learn.fit(n_epochs)
            found[f"the batches of fit {i}"] = list(learn.model.seen)
    return found


def batches_by_hand(seconds, train, valid, n_epochs):
    names = [*(f"training batch of {s:.3g} s" for s in train), *(f"validation batch of {s:.3g} s" for s in valid)] * n_epochs
    ends = itertools.accumulate([*train, *valid] * n_epochs)
    n = sum(end <= seconds for end in ends) + 1  # those in time, and the one that ends too late
    return {f"the batches of fit {i}": names[:n] for i in (1, 2)}


def budgets(rng):
    "Time is up in the second epoch's training, in the first validation, in the second one, or never."
    found = []
    for in_time in (6, 3, 9, 99):
        train, valid = ([rng.uniform(1, 3) for _ in range(n)] for n in (3, 2))
        times = ([*train, *valid] * 3)[:in_time + 1]
        found.append({"seconds": sum(times) - .5 * times[-1], "train": train, "valid": valid, "n_epochs": 3})
    found[-1]["seconds"] += 100.
    return found


def limits(event="after_batch", how=CancelFitException, begin="before_fit", training_only=False):
    "A `TimeLimit` that looks at the clock, leaves or begins elsewhere."
    def act(self, learn):
        if training_only and not learn.training: return
        if time.perf_counter() - self.began > self.seconds: raise how

    def start(self, learn): self.began = time.perf_counter()
    return variant(TimeLimit, **{"before_fit": None, "after_batch": None, begin: start, event: act})


def begin_at_once(self, seconds): self.seconds, self.began = seconds, time.perf_counter()


TIME_LIMIT = Exercise(
    "07", TimeLimit, '''
class TimeLimit(Callback):
    "Ends the fit as soon as a batch ends later than `seconds` after the fit began."
    def __init__(self, seconds): self.seconds = seconds
                                                 # your methods
''',
    hints=("When does the clock start, and at which event do you look at it? Which exception ends everything?",
           "Start it in before_fit, and look in after_batch: the time since then is a difference of two readings.",
           "def before_fit(self, learn): self.began = time.perf_counter(); and CancelFitException."),
    mistakes={
        "CancelTrainException ends only the training of an epoch, and its validation follows. The whole fit is to end.":
            limits(how=CancelTrainException),
        "CancelEpochException ends only this epoch, and the next one begins. The whole fit is to end.": limits(how=CancelEpochException),
        "CancelBatchException comes too late in after_batch, and ends nothing but a batch. The whole fit is to end.":
            limits(how=CancelBatchException),
        "An error of your own comes out of fit. A CancelFitException ends it in good order.": limits(how=TimeoutError),
        "You look at the clock only after each epoch. One batch too late is enough.": limits("after_epoch"),
        "You look at the clock only when a training has ended. One batch too late is enough.": limits("after_train"),
        "Your clock starts anew in each epoch. The budget is that of the whole fit.": limits(begin="before_epoch"),
        "Your clock starts when the callback is made. The fit may begin much later, and a second fit has its own budget.":
            variant(TimeLimit, __init__=begin_at_once, before_fit=None),
        "Batches of a validation take time as well: your fit goes on until the next training.": limits(training_only=True)},
    cases=budgets, run=run_limit, truth=batches_by_hand,
    why="after_batch comes after every batch, in training and validation. CancelFitException skips all the rest, the validation too, and "
        "after_fit still comes, so others can close their files.")


# 3. Freeze for the first epochs

class FreezeUntil(Callback):
    def __init__(self, epoch): self.epoch = epoch
    def before_fit(self, learn): learn.freeze()

    def before_epoch(self, learn):
        if learn.epoch == self.epoch: learn.unfreeze()


def run_freezer(answer, epoch, fits, lr):
    "How far the weights of three groups have come after each fit, and which can learn."
    learn, found = planned({"train_loss": [1.] * 9, "valid_loss": [1.] * 9}, [made(answer, epoch)], lr, n_layers=3), {}
    for i, n_epochs in enumerate(fits, 1):
        learn.fit(n_epochs)
        found[f"how far each group has come after fit {i}"] = [-layer.weight.item() for layer in learn.model]
        found[f"which groups are frozen after fit {i}"] = [not layer.weight.requires_grad for layer in learn.model]
    return found


def frozen_by_hand(epoch, fits, lr):
    "Two steps an epoch, each of length lr."
    found, body, head = {}, 0, 0
    for i, n_epochs in enumerate(fits, 1):
        body, head = body + 2 * lr * max(0, n_epochs - epoch), head + 2 * lr * n_epochs
        found[f"how far each group has come after fit {i}"] = [body, body, head]
        found[f"which groups are frozen after fit {i}"] = [n_epochs <= epoch] * 2 + [False]
    return found


def thaws(event, when):
    "A `FreezeUntil` that unfreezes elsewhere."
    def act(self, learn):
        if when(self, learn): learn.unfreeze()
    return variant(FreezeUntil, **{"before_epoch": None, event: act})


def freezes_at_first(self, learn):
    if learn.epochs_done == 0: learn.freeze()


def freezes_the_head(self, learn):
    for p in learn.model[-1].parameters(): p.requires_grad_(False)


def freezes_from_then_on(self, learn):
    if learn.epoch == self.epoch: learn.freeze()


FREEZE_UNTIL = Exercise(
    "07", FreezeUntil, '''
class FreezeUntil(Callback):
    "All groups but the last are frozen until that epoch of a fit, counted from 0."
    def __init__(self, epoch): self.epoch = epoch
                                                 # your methods
''',
    hints=("What has to happen once in each fit, and what at the beginning of one of its epochs?",
           "learn.freeze() when the fit begins, learn.unfreeze() when learn.epoch is that epoch.",
           "def before_fit(self, learn): learn.freeze(); and before_epoch for the rest."),
    mistakes={
        "Your groups thaw an epoch too late: that epoch itself is to train them. Act before it, not after it.":
            thaws("after_epoch", lambda self, learn: learn.epoch == self.epoch),
        "Right but for epoch 0, where nothing is to be frozen at all: after an epoch is too late for that.":
            thaws("after_epoch", lambda self, learn: learn.epoch + 1 == self.epoch),
        "learn.epochs_done counts the epochs of all fits. Those of this fit are counted by learn.epoch.":
            thaws("before_epoch", lambda self, learn: learn.epochs_done == self.epoch),
        "Nothing ever thaws: call learn.unfreeze() when that epoch begins.": variant(FreezeUntil, before_epoch=None),
        "A fit that ends before that epoch leaves them frozen. Yours thaws them at its end.":
            variant(FreezeUntil, after_fit=lambda self, learn: learn.unfreeze()),
        "Only the first fit begins frozen in yours. Each one is to.": variant(FreezeUntil, before_fit=freezes_at_first),
        "You freeze the last group. That is the one which is to learn all the time.": variant(FreezeUntil, before_fit=freezes_the_head),
        "The other way round: frozen until that epoch, not from it on.":
            variant(FreezeUntil, before_fit=lambda self, learn: learn.unfreeze(), before_epoch=freezes_from_then_on)},
    cases=lambda rng: [{"epoch": epoch, "fits": fits, "lr": rng.uniform(.1, .5)}
                       for epoch, fits in ((1, [rng.randint(2, 3)]), (2, [1, 3]), (0, [2]), (1, [3, 2]))],
    run=run_freezer, truth=frozen_by_hand,
    why="The fit begins frozen, whatever was before, and before_epoch comes early enough for the epoch itself. Nothing has to be done "
        "at the end: what was not reached stays frozen.")


# 4. A callback from a blank page

class StopAtBest(Callback):
    def __init__(self, patience): self.patience = patience
    def before_fit(self, learn): self.losses, self.weights = [], None

    def after_epoch(self, learn):
        if learn.cancelled: return
        self.losses.append(learn.results["valid_loss"])
        waited = len(self.losses) - 1 - self.losses.index(min(self.losses))
        if waited == 0: self.weights = copy.deepcopy(learn.model.state_dict())
        if waited == self.patience: raise CancelFitException

    def after_fit(self, learn):
        if self.weights: learn.model.load_state_dict(self.weights)


def run_stopper(answer, patience, lr, valid_losses, _train, cut):
    "Two fits with such validation losses; in the second one somebody else may end the fit before an epoch's validation."
    plan, cuts, found = {"train_loss": _train, "valid_loss": []}, Cuts(CancelFitException), {}
    learn = planned(plan, [made(answer, patience), cuts], lr)
    for i, (plan["valid_loss"], cuts.at) in enumerate(zip(valid_losses, (None, cut)), 1):
        learn.fit(len(plan["valid_loss"]))
        found |= {f"the epochs begun in fit {i}": cuts.n_epochs,
                  f"how far the weights have come after fit {i}": [-layer.weight.item() for layer in learn.model],
                  f"the training batches that the model's buffers have counted after fit {i}": [layer.n.item() for layer in learn.model]}
    return found


def stopped_by_hand(patience, lr, valid_losses, _train, cut):
    "By counting: two steps an epoch, each of length lr, from the best epoch of the fit before."
    found, steps = {}, 0
    for i, (losses, at) in enumerate(zip(valid_losses, (None, cut)), 1):
        best, kept, n = math.inf, None, 0
        for epoch, loss in enumerate(losses):
            n = epoch + 1
            if epoch == at: break
            if loss < best: best, kept = loss, epoch
            elif epoch - kept >= patience: break
        steps += 2 * (n if kept is None else kept + 1)
        found |= {f"the epochs begun in fit {i}": n, f"how far the weights have come after fit {i}": [lr * steps] * 2,
                  f"the training batches that the model's buffers have counted after fit {i}": [steps] * 2}
    return found


def valleys(rng):
    "Losses that fall, pause for less than the patience, fall on and rise; of a second fit, all above those of the first."
    found = []
    for patience, cut in ((2, None), (3, None), (2, 5), (1, 0)):
        down = lambda high, low, n: sorted((rng.uniform(low, high) for _ in range(n)), reverse=True)
        pause = [rng.uniform(6.1, 6.9) for _ in range(patience - 1)]
        first = [*down(9, 7, 2), 6., *pause, *down(5, 4, 2), *[6. - .1 * k for k in range(patience + 2)]]
        second = [*down(29, 27, 2), 26., *[20 + x for x in pause], *down(25, 24, 1), 24., 24., 24.5]  # ends without a stop, or with ties
        found.append({"patience": patience, "lr": rng.uniform(.1, .5), "valid_losses": [first, second],
                      "_train": down(9, 1, 20), "cut": cut})
    return found


def stopper(better=lambda loss, best: loss < best, result="valid_loss", copied=copy.deepcopy, reset=lambda self: True,
            how=CancelFitException, late=0, total=False, previous=False, skip=True, only_when_stopped=False, restores=True,
            parameters_only=False):
    "A `StopAtBest` in the usual form, with a counter, that does one thing otherwise."
    def before_fit(self, learn):
        if not hasattr(self, "best") or reset(self): self.best, self.waited, self.weights = None, 0, None

    def back(self, learn):
        if not restores or self.weights is None: return
        learn.model.load_state_dict(self.weights, strict=not parameters_only)

    def after_epoch(self, learn):
        if skip and learn.cancelled: return
        loss = learn.results[result]
        if self.best is None or better(loss, self.best):
            self.best, self.waited = loss, self.waited if total else 0
            state = dict(learn.model.named_parameters()) if parameters_only else learn.model.state_dict()
            self.weights = copied(state)
        else:
            self.waited += 1
            if previous: self.best = loss
        if self.waited == self.patience + late:
            if only_when_stopped: back(self, learn)
            raise how

    return variant(StopAtBest, before_fit=before_fit, after_epoch=after_epoch, after_fit=None if only_when_stopped else back)


STOP_AT_BEST = Exercise(
    "07", StopAtBest, '''
class StopAtBest(Callback):
    "Ends a fit after `patience` epochs without a lower loss, and goes back to the best state."
    def __init__(self, patience): self.patience = patience
                                                 # your methods
''',
    hints=("Three events: where a fit begins, where an epoch's validation loss is known, and where a fit ends, however it ends. What has "
           "to be remembered from one to the next?",
           "The best loss so far, the epochs since then, and a copy of learn.model.state_dict(), which itself holds the model's own tensors.",
           "copy.deepcopy(learn.model.state_dict()) when an epoch is the best; learn.model.load_state_dict(…) in after_fit."),
    mistakes={
        "state_dict() holds the model's own tensors, which the next steps change: what you went back to were the last weights. dict(…) and .copy() "
        "hold the same tensors; copy.deepcopy makes new ones.":
            stopper(copied=lambda state: state),
        "You go back only where you stopped the fit yourself. It may also run out of epochs, or somebody else ends it: go back in after_fit.":
            stopper(only_when_stopped=True),
        "You keep the parameters only. The model's buffers belong to its state too (batchnorm's averages are such): state_dict() has both.":
            stopper(parameters_only=True),
        "Your fit ends an epoch too late.": stopper(late=1),
        "The patience is for epochs one after the other. Count from 0 again as soon as there is a better one.": stopper(total=True),
        "You compare with the epoch before. Compare with the best so far.": stopper(previous=True),
        "A second fit is to begin anew: yours still compares with the best of the first.": stopper(reset=lambda self: False),
        "You watch the training loss. The validation loss is the judge.": stopper(result="train_loss"),
        "For a loss, lower is better.": stopper(better=lambda loss, best: loss > best),
        "An epoch with the same loss is not a better one.": stopper(better=lambda loss, best: loss <= best),
        "CancelEpochException ends only the epoch, which is over anyway. The whole fit is to end.": stopper(how=CancelEpochException),
        "An epoch that was cancelled has no validation loss. Ask learn.cancelled.": stopper(skip=False)},
    cases=valleys, run=run_stopper, truth=stopped_by_hand,
    why="The list of losses says it all: how long ago its lowest value was is how long we have waited, and 0 means that now is the best "
        "moment to copy. The copy must be a deep one. after_fit comes however the fit ends, so that is where to go back.")

EXERCISES = [HIGHEST, TIME_LIMIT, FREEZE_UNTIL, STOP_AT_BEST]
