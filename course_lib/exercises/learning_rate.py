"""The exercises of chapter 08."""
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data import DataLoaders, TensorLoader
from ..learner import Callback, Learner
from ..learning_rate import LRFind, combine, const, cos, lin
from ..momentum import SGD
from .core import Exercise, random_tensor


# 1. Trapezoid

def trapezoid(peak, up, down):
    "Up in a line, level, down in a line; a function of progress."
    return combine([up, 1 - up - down, down], [lin(0., peak), const(peak), lin(peak, 0.)])


def plans(rng):
    found = [{"peak": rng.uniform(.5, 5), "up": rng.uniform(.05, .3), "down": rng.uniform(.35, .6)} for _ in range(3)]
    found[2]["up"] = 0.
    for case in found: case["_at"] = [0., case["up"] / 2, *sorted(rng.random() for _ in range(12)), 1 - case["down"] / 2, 1.]
    return found


def watch_schedule(answer, peak, up, down, _at):
    schedule = answer(peak, up, down)
    return {f"the rate at progress {t:.3f}": schedule(t) for t in _at}


def lowest_of_three_lines(peak, up, down, _at):
    "The trapezoid lies below the line up, the level, and the line down."
    return {f"the rate at progress {t:.3f}": min(peak, peak * t / up if up else peak, peak * (1 - t) / down) for t in _at}


TRAPEZOID = Exercise(
    "08", trapezoid, '''
def trapezoid(peak, up, down):
    "Up in a line, level, down in a line; a function of progress."
    return const(peak)                           # replace this
''',
    hints=("Which three schedules follow one another, and from where to where does each go?",
           "combine(shares, schedules) puts them together. The three shares add up to 1, and two of them are given. What is the third?",
           "return combine([up, …, down], [lin(0., peak), …, …])"),
    mistakes={
        "The shares have to add up to 1: the middle part has what the other two leave.":
            lambda peak, up, down: combine([up, 1 - down, down], [lin(0., peak), const(peak), lin(peak, 0.)]),
        "down is how long the way down takes. You let it begin there.":
            lambda peak, up, down: combine([up, down - up, 1 - down], [lin(0., peak), const(peak), lin(peak, 0.)]),
        "You have exchanged the ends: up is the share of the warm-up, down that of the way to 0.":
            lambda peak, up, down: trapezoid(peak, down, up),
        "Both ways are straight lines. Half a cosine is flat at both ends.":
            lambda peak, up, down: combine([up, 1 - up - down, down], [cos(0., peak), const(peak), cos(peak, 0.)]),
        "The level part is at 1, whatever peak is.": lambda peak, up, down: trapezoid(1., up, down),
        "The warm-up is missing: your schedule begins at the peak.": lambda peak, up, down: trapezoid(peak, 0., down),
        "Your schedule never comes down. Its last part is a line to 0.":
            lambda peak, up, down: combine([up, 1 - up], [lin(0., peak), const(peak)]),
        "You return numbers. A schedule is a function of progress.": lambda peak, up, down: [0., peak, peak, 0.]},
    cases=plans, run=watch_schedule, truth=lowest_of_three_lines,
    why="Each part sees a progress from 0 to 1 of its own, so it needs to know where it goes but not how long it has. The level part "
        "has the share that the other two leave.")


# 2. Slower for the body

def rates_used(learn, max_lr):
    "The highest rate that each parameter group had in a one-cycle of one epoch."
    seen = []

    class Watch(Callback):
        def before_step(self, learn): seen.append([group["lr"] for group in learn.opt.param_groups])
    learn.fit_one_cycle(1, max_lr, cbs=[Watch()])
    return [max(rates) for rates in zip(*seen)]


def trainings(rng):
    return [{"n_batches": n, "n_groups": groups, "max_lr": slice(low := rng.uniform(.001, .01), low * rng.uniform(5, 50)),
             "_x": random_tensor(rng, 4 * n, 2)} for n, groups in zip(rng.sample([5, 6, 7, 9, 10, 11], 2), rng.sample([2, 3, 4], 2))]


def watch_rates(answer, n_batches, n_groups, max_lr, _x):
    "What an answer says, and how many batches it trains."
    batches = []

    def loss_func(pred, targets):
        batches.append(len(pred))
        return F.mse_loss(pred, targets)
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(n_groups)])
    learn = Learner(model, DataLoaders(TensorLoader(_x, _x, 4), None), loss_func, partial(SGD, momentum=.9), lr=.05)
    rates = answer(learn, max_lr)
    return {"the number of rates": len(rates), "the list of rates": list(rates), "the number of batches trained": len(batches)}


def torchs_rates(n_batches, n_groups, max_lr, _x):
    "Those of torch's OneCycleLR."
    peaks = np.geomspace(max_lr.start, max_lr.stop, n_groups).tolist()
    opt = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in peaks], lr=.1, momentum=.9)
    scheduler, seen = torch.optim.lr_scheduler.OneCycleLR(opt, peaks, n_batches, pct_start=.25, final_div_factor=1e5 / 25), []
    for i in range(n_batches):
        seen.append(scheduler.get_last_lr())
        opt.step()
        if i < n_batches - 1: scheduler.step()
    return {"the number of rates": n_groups, "the list of rates": np.max(seen, 0).tolist(), "the number of batches trained": n_batches}


def watched(fit=lambda learn, max_lr, cbs: learn.fit_one_cycle(1, max_lr, cbs=cbs), say=None):
    "A way to train, and what to make of the rates of all batches `[n, groups]`."
    def rates_used(learn, max_lr):
        seen = []

        class Watch(Callback):
            def before_step(self, learn): seen.append([group["lr"] for group in learn.opt.param_groups])
        fit(learn, max_lr, [Watch()])
        return say(seen) if say else np.max(seen, 0).tolist()
    return rates_used


RATES_USED = Exercise(
    "08", rates_used, '''
def rates_used(learn, max_lr):
    "The highest rate that each parameter group had in a one-cycle of one epoch."
    return []                                    # replace this
''',
    hints=("Who can look at the rates while the learner trains? And at which event are they set already?",
           "A callback's before_step sees learn.opt.param_groups: each group is a dict with its \"lr\". learn.fit_one_cycle takes "
           "cbs, callbacks for this fit alone.",
           "seen = [], and a class Watch(Callback) whose before_step appends [group[\"lr\"] for group in learn.opt.param_groups]."),
    mistakes={
        "Those are the rates after the last batch, when the cycle has come down. Look at them before every step.":
            watched(say=lambda seen: seen[-1]),
        "Those are the rates of the first batch. The cycle goes up from there.": watched(say=lambda seen: seen[0]),
        "You work out which rates were asked for, and train nothing. What did the batches really get?":
            lambda learn, max_lr: learn.rates(max_lr),
        "Your rates stay where they are for the whole epoch. fit_one_cycle moves them.":
            watched(fit=lambda learn, max_lr, cbs: learn.fit(1, max_lr, cbs=cbs)),
        "That is one rate. Each parameter group has its own.": watched(say=lambda seen: [max(rates[-1] for rates in seen)]),
        "That is every rate of every batch. Wanted is the highest of each group.":
            watched(say=lambda seen: [list(rates) for rates in zip(*seen)]),
        "That is the highest group's rate in each batch. Turn the table: the highest batch's rate in each group.":
            watched(say=lambda seen: [max(rates) for rates in seen]),
        "max_lr does not reach the fit, so all groups have the learner's own rate.":
            watched(fit=lambda learn, max_lr, cbs: learn.fit_one_cycle(1, cbs=cbs)),
        "Train for one epoch, no more.": watched(fit=lambda learn, max_lr, cbs: learn.fit_one_cycle(2, max_lr, cbs=cbs))},
    cases=trainings, run=watch_rates, truth=torchs_rates, tolerance=1e-7,
    why="A callback sees what really happens, whoever sets the rates: a scheduler, a finder or you. With few batches the peak lies "
        "between two of them, so the highest rate is a little below what was asked for, and by the same factor in each group.")


# 3. A rule that does not care where the search begins

def half_way(found):
    "The first rate at which the smoothed loss has done half of its fall."
    losses = found.smooth_losses
    return float(found.lrs[np.argmax(losses <= (losses[0] + losses.min()) / 2)])


def searches(rng):
    "Curves that fall somewhere, with noise, and rise again, to a loss above or below that of the start."
    found = []
    for smooth in (0., .5, .9):
        lrs, noise = np.geomspace(1e-3, 1e2, 200), np.array([rng.gauss(0, .04) for _ in range(200)])
        x, low = np.log10(lrs), rng.uniform(-1., 0.)
        losses = rng.uniform(2, 4) - rng.uniform(1.2, 1.6) / (1 + np.exp(-4 * (x - low))) + np.clip(x - low - 1, 0, None) ** 2 + noise
        losses[1] -= rng.uniform(.3, .5)
        found.append({"_lrs": lrs, "_losses": losses, "smooth": smooth})
    return found


def by_walking(_lrs, _losses, smooth):
    "The average by hand, then one rate after the other."
    average, averages = 0., []
    for t, loss in enumerate(_losses, 1):
        average = smooth * average + (1 - smooth) * loss
        averages.append(average / (1 - smooth ** t))
    lowest = min(averages)
    for lr, value in zip(_lrs, averages):
        if averages[0] - value >= value - lowest: return {"the rate": float(lr)}  # as much is done as is left


def first_below(values, limit): return int(np.argmax(values <= limit))


HALF_WAY = Exercise(
    "08", half_way, '''
def half_way(found):
    "The first rate at which the smoothed loss has done half of its fall."
    return 0.                                    # replace this
''',
    hints=("Between which two values does the fall lie, and which loss is half-way?",
           "Half-way is (first + lowest) / 2, of found.smooth_losses. Which is the first place at which the loss is at or below it?",
           "np.argmax of an array of truth values finds the first true one; found.lrs has the rate of that place."),
    mistakes={
        "That is where the raw loss is half-way, noise and all. Take the smoothed one.":
            lambda found: float(found.lrs[first_below(found.losses, (found.losses[0] + found.losses.min()) / 2)]),
        "Half of the first loss is not half of the fall: the fall ends at the lowest loss, and not at 0.":
            lambda found: float(found.lrs[first_below(found.smooth_losses, found.smooth_losses[0] / 2)]),
        "You take the last loss for the end of the fall. It is over at the lowest.":
            lambda found: float(found.lrs[first_below(found.smooth_losses, (found.smooth_losses[0] + found.smooth_losses[-1]) / 2)]),
        "That is where the loss is lowest, when all of the fall is done.": lambda found: float(found.lrs[found.smooth_losses.argmin()]),
        "That is the number of the place. Wanted is its rate.":
            lambda found: first_below(found.smooth_losses, (found.smooth_losses[0] + found.smooth_losses.min()) / 2),
        "That is the last rate in the lower half. Wanted is the first.":
            lambda found: float(found.lrs[np.flatnonzero(
                found.smooth_losses <= (found.smooth_losses[0] + found.smooth_losses.min()) / 2)[-1]]),
        "That is the rule of the valley, which moves with the start of the search.": lambda found: found.suggestions["valley"],
        "That is half of the way in rates, and not in losses.":
            lambda found: float((found.lrs[0] + found.lrs[found.smooth_losses.argmin()]) / 2)},
    cases=searches, run=lambda answer, _lrs, _losses, smooth: {"the rate": answer(LRFind(_lrs, _losses, smooth))}, truth=by_walking,
    tolerance=1e-9,
    why="The flat part does not count: however long it is, it adds nothing to the fall. So the rate stays where it is when the search "
        "begins elsewhere. (Whether it is a good rate to train with is another question.)")


# 4. A finder from a blank page

def my_lr_find(model, loss_func, batches, lrs):
    "The loss of each batch, at rates that grow; the model is afterwards as it was."
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = []
    try:
        for (xb, yb), lr in zip(batches, lrs):
            loss = loss_func(model(xb), yb)
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= lr * p.grad
                    p.grad = None
            losses.append(loss.item())
    finally: model.load_state_dict(before)
    return losses


class CtrlC(KeyboardInterrupt):
    "What Ctrl-C raises."


class Broken(RuntimeError):
    "An error in the loss."


STOPS = {"nothing": None, "an error in the loss": Broken, "Ctrl-C": CtrlC}


def models(rng):
    "A model with batchnorm, more batches than rates, and what stops the search."
    found = []
    for stops in STOPS:
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
        for tensor in model.state_dict().values():
            if tensor.is_floating_point(): tensor.copy_(.6 * random_tensor(rng, *tensor.shape).abs() + .2)
        low = rng.uniform(.01, .05)
        lrs = np.geomspace(low, low * rng.uniform(10, 30), rng.randint(5, 8)).tolist()
        found.append({"what stops it": stops, "lrs": lrs, "_after": rng.randint(2, 4), "_model": model,
                      "_batches": [(random_tensor(rng, 6, 4), random_tensor(rng, 6, 2)) for _ in range(len(lrs) + 2)]})
    return found


def watch_finder(answer, lrs, _after, _model, _batches, **what):
    "The losses, or the error that came out; and the model afterwards."
    error, calls, parameters = STOPS[what["what stops it"]], [], list(_model.parameters())

    def loss_func(pred, targets):
        if error and len(calls) == _after: raise error("stopped")
        calls.append(1)
        return F.mse_loss(pred, targets)
    found = {"the error that comes out": "none", "the list of losses": []}
    try: found["the list of losses"] = [float(loss) for loss in answer(_model, loss_func, _batches, lrs)]
    except (Broken, CtrlC) as stopped: found["the error that comes out"] = type(stopped).__name__
    found |= {f"{name} afterwards": tensor.detach().clone() for name, tensor in _model.state_dict().items()}
    found["the model has its own parameters still"] = all(a is b for a, b in zip(parameters, _model.parameters()))
    return found


def torchs_finder(lrs, _after, _model, _batches, **what):
    "torch's SGD with another rate in each step."
    error = STOPS[what["what stops it"]]
    state = {f"{name} afterwards": tensor.clone() for name, tensor in _model.state_dict().items()}
    opt, losses = torch.optim.SGD(_model.parameters(), lr=1.), []
    for (xb, yb), lr in zip(_batches, lrs):
        opt.param_groups[0]["lr"] = lr
        opt.zero_grad()
        loss = F.mse_loss(_model(xb), yb)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return {"the error that comes out": error.__name__ if error else "none", "the list of losses": [] if error else losses,
            **state, "the model has its own parameters still": True}


def search(model, loss_func, batches, lrs, wipe=True, move=True):
    "The loop alone; the batches and rates in pairs."
    losses = []
    for (xb, yb), lr in zip(batches, lrs):
        loss = loss_func(model(xb), yb)
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                if move: p -= lr * p.grad
                if wipe: p.grad = None
        losses.append(loss.item())
    return losses


def finder(search=search, catch=BaseException, swallow=False, restore=lambda model, before: model.load_state_dict(before)):
    "A finder with one thing amiss: catch: after which errors it restores the model."
    def my_lr_find(model, loss_func, batches, lrs):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        try: losses = search(model, loss_func, batches, lrs)
        except catch:
            restore(model, before)
            if not swallow: raise
            return []
        restore(model, before)
        return losses
    return my_lr_find


def rate_by_number(model, loss_func, batches, lrs):
    return [search(model, loss_func, [batch], [lrs[i]])[0] for i, batch in enumerate(batches)]


def loss_after(model, loss_func, batches, lrs):
    losses = []
    for batch, lr in zip(batches, lrs):
        search(model, loss_func, [batch], [lr])
        losses.append(loss_func(model(batch[0]), batch[1]).item())
    return losses


def only_parameters(model, before): model.load_state_dict({**model.state_dict(), **{name: before[name] for name, _ in model.named_parameters()}})


MY_LR_FIND = Exercise(
    "08", my_lr_find, '''
def my_lr_find(model, loss_func, batches, lrs):
    "The loss of each batch, at rates that grow; the model is afterwards as it was."
    return []                                    # replace this
''',
    hints=("What does the search change of the model? Which word of Python means \"whatever ends it\"?",
           "First a clone of every tensor in model.state_dict(); then, for each batch and its rate, the four lines of the training "
           "loop; at last model.load_state_dict(…), in finally.",
           "before = {name: value.clone() for name, value in model.state_dict().items()}; then try: and the loop over "
           "zip(batches, lrs)."),
    mistakes={
        "The model is not put back. (Did you keep state_dict() as it is? It holds the model's own tensors, so it changes with them: "
        "clone each.)": finder(restore=lambda model, before: None),
        "The weights are put back, but not the buffers: batchnorm still remembers the search. model.state_dict() has both.":
            finder(restore=only_parameters),
        "After an error the model is not put back. Whatever ends the search, finally is executed.": finder(catch=()),
        "After Ctrl-C the model is not put back: KeyboardInterrupt is no Exception. finally is for everything.": finder(catch=Exception),
        "You swallow the error. Put the model back, and let the error come out.": finder(swallow=True),
        "The gradients are not wiped, so the slopes of earlier batches add up.": finder(partial(search, wipe=False)),
        "All batches are trained at the first rate. Each has its own.":
            finder(lambda model, loss_func, batches, lrs: search(model, loss_func, batches, lrs[:1] * len(lrs))),
        "The weights never move, so the losses tell nothing of the rates. Make a step of p -= lr * p.grad after each batch.":
            finder(partial(search, move=False)),
        "Your losses are those after the step. Each belongs to the weights before it.": finder(loss_after),
        "There are more batches than rates. The search is over after the last rate: zip ends with the shorter of the two.":
            finder(rate_by_number),
        "You put new parameters into the model. An optimizer that holds the old ones would not notice: write the values back in place.":
            finder(restore=lambda model, before: model.load_state_dict(before, assign=True))},
    cases=models, run=watch_finder, truth=torchs_finder,
    why="The clones are made before anything changes, and finally puts them back whatever ends the search, Ctrl-C included, without a "
        "word about which error it was. load_state_dict writes into the model's own tensors. What lr_find has beyond this are the "
        "optimizer's averages, the order of the data, and random numbers.")

EXERCISES = [TRAPEZOID, RATES_USED, HALF_WAY, MY_LR_FIND]
