"""The exercises of chapter 11."""
import copy

import numpy as np
import torch
from torch import nn

from ..data import DataLoaders
from ..learner import Callback, Learner
from ..momentum import SGD
from ..transfer import layer_groups
from .core import Exercise, random_tensor


def state_of(model):
    "Copies of all that a model remembers, and the mode of each of its parts."
    return copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]


def unchanged(model, before):
    now = model.state_dict()
    return all(torch.equal(now[name], value) for name, value in before[0].items())


# 1. Which layer's view?

@torch.no_grad()
def view(model, x, n):
    "The first n children in evaluation mode, averaged over the pixels: [B, channels]."
    return copy.deepcopy(model[:n]).eval()(x).mean((2, 3))


def nets_with_views(rng):
    found = []
    for n in (1, 2, 3):
        width = rng.randrange(3, 6)
        model = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width)), nn.Sequential(nn.Conv2d(width, width + 1, 2), nn.ReLU()),
            nn.Sequential(nn.Conv2d(width + 1, width + 2, 2), nn.BatchNorm2d(width + 2)), nn.Conv2d(width + 2, 4, 1))
        for p in model.parameters(): p.data = random_tensor(rng, *p.shape)
        for norm in (model[0][1], model[2][1]):
            norm.running_mean.copy_(random_tensor(rng, norm.num_features)), norm.running_var.mul_(rng.uniform(2, 5))
        model.train(n != 2)[2].train(n == 2)  # the parts of a model need not be all in one mode
        found.append({"_model": model, "_x": random_tensor(rng, 3, 1, 8, 7), "n": n})
    return found


def view_and_look(answer, _model, _x, n):
    before = state_of(_model)
    out = answer(_model, _x, n)
    seen = out.detach().clone() if isinstance(out, torch.Tensor) else out
    return {"the view": seen, "it is part of a graph": bool(getattr(out, "requires_grad", False)),
            "are the parts of the model in training mode, as they were": [module.training for module in _model.modules()],
            "the model's weights and statistics are as before": unchanged(_model, before)}


def seen_by_a_hook(_model, _x, n):
    "The whole model runs, and child n − 1 is listened to; numpy takes the mean."
    heard, modes = [], state_of(_model)[1]
    _model[n - 1].register_forward_hook(lambda module, given, out: heard.append(out.detach().numpy()))
    _model.eval()(_x)
    return {"the view": torch.from_numpy(np.mean(heard[0].reshape(*heard[0].shape[:2], -1), axis=-1)), "it is part of a graph": False,
            "are the parts of the model in training mode, as they were": modes, "the model's weights and statistics are as before": True}


def view_with(part=lambda model, n: model[:n], mean=lambda out: out.mean((2, 3)), copied=copy.deepcopy, mode=nn.Module.eval,
              after=lambda model, training: None, graph=False):
    def look(model, x, n):
        training, model = model.training, copied(model)
        with torch.set_grad_enabled(graph): out = mean(part(mode(model), n)(x))
        after(model, training)
        return out
    return look


same_model = lambda model: model

VIEW = Exercise(
    "11", view, '''
def view(model, x, n):
    "The first n children in evaluation mode, averaged over the pixels: [B, channels]."
    return x.flatten(1)                          # replace this
''',
    hints=("What does model[:n] give for an nn.Sequential? And what has to be as before, when you have looked?",
           "x.mean((2, 3)) averages over the pixels. model.eval() changes the mode of all parts, so work on a copy, or put each one back.",
           "part = copy.deepcopy(model[:n]).eval(), under torch.no_grad()."),
    mistakes={
        "The model is left in evaluation mode. Work on a copy, or put the mode back.": view_with(copied=same_model),
        "model.train() at the end puts every part into training mode, those too that were not. A copy is safer.":
            view_with(copied=same_model, after=lambda model, training: model.train()),
        "You put the whole model into one mode afterwards, but its parts can be in different ones. A copy is safer.":
            view_with(copied=same_model, after=lambda model, training: model.train(training)),
        "The model looked in the mode it was in. In training mode a norm uses the batch, and its statistics move.":
            view_with(copied=same_model, mode=same_model),
        "The view is part of a graph: put torch.no_grad() around it, or above.": view_with(graph=True),
        "That is one child too many.": view_with(part=lambda model, n: model[:n + 1]),
        "One child is missing: the first n are numbers 0 to n − 1.": view_with(part=lambda model, n: model[:n - 1]),
        "That is child n alone. The first n are wanted, one after the other: model[:n].":
            view_with(part=lambda model, n: model[n - 1]),
        "You have flattened the pixels. Their mean is wanted, one number for each channel.": view_with(mean=lambda out: out.flatten(1)),
        "You average over the channels as well. Each channel keeps a number of its own: mean((2, 3)).":
            view_with(mean=lambda out: out.mean((1, 2, 3))),
        "Two axes are to go, height and width: mean((2, 3)).": view_with(mean=lambda out: out.mean(-1))},
    cases=nets_with_views, run=view_and_look, truth=seen_by_a_hook, tolerance=1e-4,
    why="A slice of an nn.Sequential is one again, and a copy of it can be put into evaluation mode without a trace in the model.")


# 2. Gradual unfreezing as a callback

class UnfreezeGradually(Callback):
    "One layer group more after each `every` epochs."
    def __init__(self, every): self.every = every

    def before_epoch(self, learn):
        n = 1 + learn.epoch // self.every
        learn.freeze_to(-min(n, len(learn.groups)))


class WhatLearns(Callback):
    "Notes in each epoch, before its first batch, which groups learn."
    def __init__(self): self.seen = []

    def before_train(self, learn): self.seen.append([all(p.requires_grad for p in group) for group in learn.groups])


def fits_to_watch(rng):
    return [{"groups": groups, "every": every, "epochs": every * groups + 1}
            for groups, every in zip(rng.sample((3, 4), 2), rng.sample((2, 3), 2))]


def fit_and_watch(answer, groups, every, epochs):
    model, watch = nn.Sequential(*[nn.Linear(2, 2) for _ in range(groups)]), WhatLearns()
    batch = [(torch.ones(3, 2), torch.zeros(3, 2))]
    learn = Learner(model, DataLoaders(batch, None), nn.functional.mse_loss, SGD, splitter=layer_groups, cbs=[answer(every), watch])
    learn.fit(epochs, 1e-3)
    return {f"which groups learn in epoch {epoch}": seen for epoch, seen in enumerate(watch.seen)}


def by_counting(groups, every, epochs):
    "Number i from the end begins to learn at epoch i · every."
    return {f"which groups learn in epoch {epoch}": [epoch >= i * every for i in reversed(range(groups))] for epoch in range(epochs)}


def unfreezes(to, event="before_epoch"):
    return type("UnfreezeGradually", (Callback,), {"__init__": lambda self, every: setattr(self, "every", every),
                                                   event: lambda self, learn: to(self.every, learn)})


def number(every, learn): return min(1 + learn.epoch // every, len(learn.groups))


def only_that_one(every, learn):
    learn.freeze_to(-number(every, learn))
    for group in learn.groups[len(learn.groups) - number(every, learn) + 1:]:
        for p in group: p.requires_grad_(False)


UNFREEZE_GRADUALLY = Exercise(
    "11", UnfreezeGradually, '''
class UnfreezeGradually(Callback):
    "One layer group more after each `every` epochs."
    def __init__(self, every): self.every = every
                                                 # your event
''',
    hints=("Which event comes once an epoch, before its first batch? What does `learn` have to freeze by?",
           "In epoch e, counted from 0, the last 1 + e // every groups learn, but never more than there are. learn.freeze_to(-n) lets the "
           "last n learn.",
           "def before_epoch(self, learn): n = 1 + learn.epoch // self.every"),
    mistakes={
        "After the last group there is no further one: limit the number to len(learn.groups).":
            unfreezes(lambda every, learn: learn.freeze_to(-1 - learn.epoch // every)),
        "One group learns from the start, so the count begins at 1. freeze_to(0) lets everything learn.":
            unfreezes(lambda every, learn: learn.freeze_to(-min(learn.epoch // every, len(learn.groups)))),
        "Epochs count from 0, so yours go on to the next group one epoch early.":
            unfreezes(lambda every, learn: learn.freeze_to(-min(1 + (learn.epoch + 1) // every, len(learn.groups)))),
        "You unfreeze a group in every epoch, whatever `every` is.":
            unfreezes(lambda every, learn: learn.freeze_to(-min(1 + learn.epoch, len(learn.groups)))),
        "`every` groups at a time, in every epoch? It should be one group, after `every` epochs.":
            unfreezes(lambda every, learn: learn.freeze_to(-min(1 + learn.epoch * every, len(learn.groups)))),
        "You let the first groups go on learning and freeze the last ones one by one. Count from the end: freeze_to(-n).":
            unfreezes(lambda every, learn: learn.freeze_to(min(number(every, learn), len(learn.groups) - 1))),
        "After the epoch is too late: in the first one all groups learn, and each change comes one epoch late.":
            unfreezes(lambda every, learn: learn.freeze_to(-number(every, learn)), "after_epoch"),
        "before_fit comes once. The number has to grow from epoch to epoch.":
            unfreezes(lambda every, learn: learn.freeze_to(-number(every, learn)), "before_fit"),
        "Groups that learn already should go on learning.": unfreezes(only_that_one)},
    cases=fits_to_watch, run=fit_and_watch, truth=by_counting, tolerance=0.,
    why="A callback can freeze between two epochs. Whole epochs divide the count: e // every grows by one after each `every` of them.")


# 3. Far from home

def drift(model, start):
    "How far each layer group has gone, as a share of its length at the start."
    flat = lambda group: torch.cat([p.flatten() for p in group])
    return [((flat(now) - flat(then)).norm() / flat(then).norm()).item()
            for now, then in zip(layer_groups(model), layer_groups(start))]


def small_net(rng):
    "Four layer groups: a norm goes with the convolution before it."
    a, b = rng.randrange(2, 5), rng.randrange(2, 5)
    model = nn.Sequential(nn.Conv2d(1, a, 3), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 2), nn.Sequential(nn.Conv2d(b, a, 1), nn.ReLU()),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(a, 3))
    for p in model.parameters(): p.data = random_tensor(rng, *p.shape)
    return model


GROUPS = [["0.weight", "0.bias", "1.weight", "1.bias"], ["3.weight", "3.bias"], ["4.0.weight", "4.0.bias"], ["7.weight", "7.bias"]]


def nets_that_drifted(rng):
    found = []
    for size in (rng.uniform(.05, .5), rng.uniform(1.5, 3)):
        start = small_net(rng)
        model = copy.deepcopy(start)
        for p in model.parameters(): p.data += size * random_tensor(rng, *p.shape)
        model[1].running_mean.add_(1)
        found.append({"_model": model, "_start": start, "step": size})
    start = small_net(rng)
    twice = copy.deepcopy(start)
    for name in GROUPS[2]: twice.get_parameter(name).data *= 2
    return [*found, {"_model": twice, "_start": start, "step": 0.}]


def drift_and_look(answer, _model, _start, step):
    before = state_of(_model), state_of(_start)
    shares = answer(_model, _start)
    shares = shares if isinstance(shares, list | tuple) else shares.tolist() if isinstance(shares, torch.Tensor) else [shares]
    return {"the number of shares": len(shares), **{f"the share of group {i}": share for i, share in enumerate(shares)},
            "both models are as before": unchanged(_model, before[0]) and unchanged(_start, before[1])}


def by_numpy(_model, _start, step):
    found = {"the number of shares": 4}
    for i, names in enumerate(GROUPS):
        now, then = (np.concatenate([model.get_parameter(name).detach().double().numpy().ravel() for name in names])
                     for model in (_model, _start))
        found[f"the share of group {i}"] = float(np.sqrt(((now - then) ** 2).sum() / (then ** 2).sum()))
    return found | {"both models are as before": True}


vector = lambda group: torch.cat([p.detach().flatten() for p in group])
by_group = lambda share: lambda model, start: [share(now, then) for now, then in zip(layer_groups(model), layer_groups(start))]
by_vector = lambda share: by_group(lambda now, then: share(vector(now), vector(then)).item())


def spoils_the_model(model, start):
    found = drift(model, start)
    with torch.no_grad():
        for p, q in zip(model.parameters(), start.parameters()): p -= q
    return found


DRIFT = Exercise(
    "11", drift, '''
def drift(model, start):
    "How far each layer group has gone, as a share of its length at the start."
    return [0. for _ in layer_groups(model)]     # replace this
''',
    hints=("What is the length of a group, if all its numbers stand in one long vector?",
           "|now − start| / |start|, where layer_groups(model) and layer_groups(start) hold the parameters in the same order.",
           "torch.cat([p.flatten() for p in group]) is the long vector."),
    mistakes={
        "That is a share of the length now. The length at the start is wanted.": by_vector(lambda now, then: (now - then).norm() / now.norm()),
        "You compare the lengths. Weights can go far and be as long as before: take the length of the difference.":
            by_vector(lambda now, then: (now.norm() - then.norm()).abs() / then.norm()),
        "That is how far they have gone. As a share of their length at the start, please.": by_vector(lambda now, then: (now - then).norm()),
        "Those are squares. The root is missing.": by_vector(lambda now, then: (now - then).square().sum() / then.square().sum()),
        "You have added up the sizes of the numbers. The length is the root of the sum of their squares.":
            by_vector(lambda now, then: (now - then).abs().sum() / then.abs().sum()),
        "You average the shares of the group's parameters. All its numbers belong into one long vector.":
            by_group(lambda now, then: sum(((p - q).norm() / q.norm()).item() for p, q in zip(now, then)) / len(now)),
        "You add up the lengths of the group's parameters. All its numbers belong into one long vector.":
            by_group(lambda now, then: (sum((p - q).norm() for p, q in zip(now, then)) / sum(q.norm() for q in then)).item()),
        "That is one share for each parameter. Those of a layer group belong together.":
            lambda model, start: [((p - q).norm() / q.norm()).item() for p, q in zip(model.parameters(), start.parameters())],
        "One share for the whole model? Each layer group has one of its own.":
            lambda model, start: [((vector(model.parameters()) - vector(start.parameters())).norm() / vector(start.parameters()).norm()).item()],
        "Your drift moves the model itself. Compute the difference as a new tensor.": spoils_the_model},
    cases=nets_that_drifted, run=drift_and_look, truth=by_numpy, tolerance=1e-4,
    why="In one long vector each number counts by its size, so a bias of a few numbers does not outweigh a thousand weights.")


# 4. Freezing and rates by layer, from a blank page

def param_groups(model, n_frozen, lr_first, lr_last):
    "Freezes the first n_frozen layer groups; gives the others, each with its rate."
    groups = layer_groups(model)
    for i, group in enumerate(groups):
        for p in group: p.requires_grad_(i >= n_frozen)
    learning = groups[n_frozen:]
    shares = torch.linspace(1 if len(learning) == 1 else 0, 1, len(learning), dtype=torch.float64).tolist()
    return [{"params": group, "lr": lr_first * (lr_last / lr_first) ** share} for group, share in zip(learning, shares)]


def nets_to_freeze(rng):
    found = []
    for n_frozen in (0, 1, 2, 3):
        model = small_net(rng)
        for p in model.parameters(): p.requires_grad_(rng.random() < .5)  # whatever was frozen before
        found.append({"_model": model, "n_frozen": n_frozen, "lr_first": rng.uniform(.001, .01), "lr_last": rng.uniform(.1, .5)})
    return found


def group_and_look(answer, _model, n_frozen, lr_first, lr_last):
    name_of = {p: name for name, p in _model.named_parameters()}
    before = state_of(_model)
    groups = [{**group, "params": list(group["params"])} for group in answer(_model, n_frozen, lr_first, lr_last)]
    found = {"what learns": [name for name, p in _model.named_parameters() if p.requires_grad],
             "the groups": [sorted(name_of.get(p, "?") for p in group["params"]) for group in groups],
             "the number of rates": len([group for group in groups if "lr" in group])}
    found |= {f"the rate of group {i} of those that learn": float(group["lr"]) for i, group in enumerate(groups) if "lr" in group}
    return found | {"the weights are as before": unchanged(_model, before)}


def by_geomspace(_model, n_frozen, lr_first, lr_last):
    learning = GROUPS[n_frozen:]
    rates = np.geomspace(lr_first, lr_last, len(learning)) if len(learning) > 1 else [lr_last]
    return {"what learns": sum(learning, []), "the groups": [sorted(names) for names in learning], "the number of rates": len(learning),
            **{f"the rate of group {i} of those that learn": float(rate) for i, rate in enumerate(rates)}, "the weights are as before": True}


def geometric(first, last, n): return [first * (last / first) ** (i / (n - 1) if n > 1 else 1) for i in range(n)]


def groups_with(rates=geometric, split=layer_groups, freeze=lambda i, n_frozen, p: p.requires_grad_(i >= n_frozen),
                learning=lambda groups, n_frozen: groups[n_frozen:]):
    def make(model, n_frozen, lr_first, lr_last):
        groups = split(model)
        for i, group in enumerate(groups):
            for p in group: freeze(i, n_frozen, p)
        kept = learning(groups, n_frozen)
        return [{"params": group, "lr": lr} for group, lr in zip(kept, rates(lr_first, lr_last, len(kept)))]
    return make


def rates_of_all(model, n_frozen, lr_first, lr_last):
    made = groups_with()(model, n_frozen, lr_first, lr_last)
    rates = geometric(lr_first, lr_last, len(made) + n_frozen)[n_frozen:]
    return [{**group, "lr": lr} for group, lr in zip(made, rates)]


def of_children(model): return [list(child.parameters()) for child in model if any(True for _ in child.parameters())]
def only_freezes(i, n_frozen, p): return p.requires_grad_(False) if i < n_frozen else None
def freezes_nothing(i, n_frozen, p): return p.requires_grad_(True)
def the_last_ones(model, n_frozen, lr_first, lr_last):
    groups = layer_groups(model)
    n = len(groups) - n_frozen
    for i, group in enumerate(groups):
        for p in group: p.requires_grad_(i < n)
    return [{"params": group, "lr": lr} for group, lr in zip(groups[:n], geometric(lr_first, lr_last, n))]


PARAM_GROUPS = Exercise(
    "11", param_groups, '''
def param_groups(model, n_frozen, lr_first, lr_last):
    "Freezes the first n_frozen layer groups; gives the others, each with its rate."
    return []                                    # replace this
''',
    hints=("Which parameters learn, and which do not? Say both, since some may have been frozen before.",
           "Of n groups that learn, number i (from 0) has the rate lr_first · (lr_last / lr_first)^(i / (n − 1)). And if n is 1?",
           "groups = layer_groups(model), and for each p in group number i: p.requires_grad_(i >= n_frozen)."),
    mistakes={
        "Those rates lie on a straight line. In a geometric series each is the same factor larger than the one before.":
            groups_with(lambda first, last, n: [first + (last - first) * (i / (n - 1) if n > 1 else 1) for i in range(n)]),
        "The rates run the wrong way: the first layers are to move the least.":
            groups_with(lambda first, last, n: geometric(last, first, n) if n > 1 else [last]),
        "You divide the way by n in place of n − 1, so the last group stays below lr_last.":
            groups_with(lambda first, last, n: [first * (last / first) ** (i / n) for i in range(n)]),
        "A single group that learns has to get lr_last: i / (n − 1) is 0 / 0 there.":
            groups_with(lambda first, last, n: [first * (last / first) ** (i / (n - 1)) for i in range(n)]),
        "A single group that learns gets lr_last. Yours has lr_first.":
            groups_with(lambda first, last, n: geometric(first, last, n) if n > 1 else [first]),
        "You have shared out the rates among all groups. lr_first belongs to the first one that learns.": rates_of_all,
        "All groups that learn have the same rate.": groups_with(lambda first, last, n: [last] * n),
        "What was frozen before stays frozen. Those that learn need requires_grad_(True).": groups_with(freeze=only_freezes),
        "The first groups are left out of the list, but they are not frozen: requires_grad_(False).": groups_with(freeze=freezes_nothing),
        "The frozen groups are in the list. An optimizer need not know them.": groups_with(learning=lambda groups, n_frozen: groups),
        "You freeze the last groups. The first ones are to be frozen.": the_last_ones,
        "A norm belongs to the layer before it, so it is no group of its own: layer_groups(model).": groups_with(split=of_children)},
    cases=nets_to_freeze, run=group_and_look, truth=by_geomspace,
    why="requires_grad says what learns, the list says at which rate. Equal factors from layer to layer make a geometric series, and lr_first "
        "belongs to the first group that learns.")

EXERCISES = [VIEW, UNFREEZE_GRADUALLY, DRIFT, PARAM_GROUPS]
