"""How rates are picked and how they move (chapter 08): writes data/results/schedules.json.

    python data/schedules.py          about three minutes on one core; MNIST must be on disk

"picking": a search for each of ten networks, then a training of the same network with each rate that a rule reads off
(from the same search smoothed by .9 instead of .98, too, for the rule "steepest").
"small net", "deep net": errors on the validation images `[seeds][peaks]` by schedule, after about 237 batches. A seed
draws the weights; all see the same batches. The best peak is chosen with seeds 0 to 4 and judged with 10 to 19.
All of it on 5,000 images of MNIST, and again on the embedded digits.
"""
import math
import time
from functools import partial
from itertools import count

import torch
import torch.nn.functional as F
from torch import nn

from course_lib import (
    SGD, Adam, DataLoaders, LRFind, Learner, TensorLoader, accuracy, combine, const, cos, digits, mnist, one_cycle)
from course_lib.sgd import small_net
from course_lib.support.results import save_results
from course_lib.support.schedulers import progress_of_peak
from course_lib.sweeps import Sweep, mlp

TRY_SEEDS, SEEDS = range(5), range(10, 20)


def conv_net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                         nn.Flatten(), nn.Linear(16 * 49, 10))


@torch.no_grad()
def draw_he(model):
    "Weights as He et al. (2015) draw them, so that a signal keeps its size through many layers."
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.bias.zero_()


def picking(dls, n_epochs):
    "Rates and accuracies by rule, one for each seed."
    rates, reached = {}, {}
    for seed in SEEDS:
        def learner():
            train = TensorLoader(dls.train.x, dls.train.y, 64, shuffle=True)
            return Learner(conv_net(seed), DataLoaders(train, dls.valid), F.cross_entropy, partial(SGD, momentum=.9),
                           metrics=[accuracy])
        found = learner().lr_find()
        picks, less = found.suggestions, LRFind(found.lrs, found.losses, smooth=.9)
        picks |= {"steepest, smooth .9": less.suggestions["steepest"], "a tenth of valley": picks["valley"] / 10}
        for rule, lr in picks.items():
            learn = learner()
            learn.fit(n_epochs, lr=lr)
            rates.setdefault(rule, []).append(float(f"{lr:.6g}"))
            reached.setdefault(rule, []).append(round(learn.results["accuracy"], 4))
    return {"rates": rates, "accuracy": reached}


def ways(n):
    "Schedules of n steps: name -> (rate as a share of its peak, beta or None where it stays)."
    up = partial(progress_of_peak, n=n)                                # as torch's OneCycleLR counts it
    cycle = one_cycle(1., pct_start=up(.25))
    turn = lambda *betas: combine([up(.25), 1 - up(.25)], [cos(*betas[:2]), cos(*betas[1:])])
    return {"constant": (const(1.), None), "cosine": (cos(1., 0.), None),
            "short warm-up": (one_cycle(1., pct_start=up(.05)), None), "warm-up": (cycle, None),
            "one-cycle": (cycle, turn(.95, .85, .95)), "with the rate": (cycle, turn(.85, .95, .85)),
            "beta .85": (cycle, const(.85))}


def scheduled(opt_func, rate, beta, n):
    "An opt_func whose optimizers change their rate, and beta, before each of n steps."
    def make(params):
        opt, steps, peak = opt_func(params), count(), {}
        def set_hypers(opt, *_):
            group, progress = opt.param_groups[0], next(steps) / (n - 1)
            group["lr"] = peak.setdefault("lr", group["lr"]) * rate(progress)      # a tensor, one for each model
            if beta: group["beta"] = beta(progress)
        opt.register_step_pre_hook(set_hypers)
        return opt
    return make


@torch.no_grad()
def errors(trained, valid):
    "The share of wrong answers of all models, `[seeds][peaks]`; what is not finite is wrong."
    wrong = torch.zeros(math.prod(trained.shape))
    for x, y in valid:
        for first, ensemble in trained.ensembles.items():
            preds = ensemble.preds(x)
            right = (preds.argmax(-1) == y) & preds.isfinite().all(-1)
            wrong[first:first + len(preds)] += (~right).sum(1)
    return [[round(e, 4) for e in row] for row in (trained.on_grid(wrong) / len(valid.y)).tolist()]


def by_schedule(dls, n, model, init, opt_func, names, peaks):
    "One entry of the file."
    train, found = TensorLoader(dls.train.x, dls.train.y, 64, shuffle=True), {}
    for name in names:
        grid = {"seed": [*TRY_SEEDS, *SEEDS], "lr": peaks}
        trained = Sweep(model, F.cross_entropy, scheduled(opt_func, *ways(n)[name], n), train, n, grid, init=init)
        for _ in trained.steps(): pass
        found[name] = errors(trained, dls.valid)
    return {"peaks": peaks, "try_seeds": list(TRY_SEEDS), "seeds": list(SEEDS), "error": found}


def measure(dls):
    n_epochs = 3 if len(dls.train.x) > 4000 else 12
    n = n_epochs * -(-len(dls.train.x) // 64)
    found = {"n_epochs": n_epochs, "picking": picking(dls, 1 if n_epochs == 3 else 5)}
    found["small net"] = by_schedule(dls, n, small_net(), None, partial(SGD, momentum=.9),
                                     ["constant", "cosine", "warm-up", "one-cycle", "with the rate", "beta .85"],
                                     [.01, .02, .05, .1, .2, .4])
    found["deep net"] = by_schedule(dls, n, mlp(784, *[50] * 8, 10), draw_he, Adam,
                                    ["constant", "cosine", "short warm-up", "warm-up"], [.0003, .001, .003, .01, .03])
    return found


def main():
    start = time.perf_counter()
    torch.set_num_threads(1)
    load = {"mnist": partial(mnist, n_train=5_000, n_valid=1_500), "digits": digits}
    found = {name: measure(make(device="cpu")) for name, make in load.items()}
    how = (f"peaks tried with seeds {TRY_SEEDS[0]} to {TRY_SEEDS[-1]}, "
           f"judged with seeds {SEEDS[0]} to {SEEDS[-1]}")
    save_results("schedules", found, start, how, indent=None)  # its rows are long


if __name__ == "__main__": main()
