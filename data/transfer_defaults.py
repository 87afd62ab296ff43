"""Three choices of chapter 11 that transfer_trials.py leaves open: writes data/results/transfer_defaults.json.

    python data/transfer_defaults.py        two minutes on two idle cores, a data set on each; MNIST must be on disk

Ten draws of ten images a class, as there. `fine_tune` with its default lr_mult, 100, at the best of four rates; at the
best rate of "head first, slice" with weight decay on all parameters; and "head first, one rate" at 0.03 with three
times as many steps after the head.
"""
import time
from multiprocessing import get_context

import torch

from course_lib import AdamW, digits, mnist
from course_lib.support.results import results, save_results
from transfer_trials import (
    DRAWS, TOO_LARGE, TRY_DRAWS, WAYS, everything_learns, make_learner, mean, reached, rounded)

WAYS["head first, slice of 100"] = everything_learns(1, 100), (.001, .003, .01, .03)


def changed(dls, draw, work, opt_func=None):
    learn, valid = make_learner(dls, draw)
    if opt_func: learn.opt_func = opt_func
    work(learn)
    return learn.validate(valid)["accuracy"]


def measure(name):
    torch.set_num_threads(1)
    dls, way = {"mnist": mnist, "digits": digits}[name](device="cpu"), "head first, slice of 100"
    by_lr = [mean([reached(dls, way, lr, draw) for draw in TRY_DRAWS]) for lr in WAYS[way][1]]
    best = WAYS[way][1][by_lr.index(max(by_lr))]
    ten = results("transfer_trials")[name]["ways"]["head first, slice"]["lr"]  # with a ratio of ten
    found = {"lr_mult 100": {"lrs": WAYS[way][1], "by_lr": by_lr, "lr": best,
                             "final": [reached(dls, way, best, draw) for draw in DRAWS],
                             "too large": [reached(dls, way, TOO_LARGE, draw) for draw in DRAWS]}}
    found["decay on all"] = [changed(dls, draw, lambda learn: learn.fine_tune(1, ten, lr_mult=10), AdamW)
                             for draw in DRAWS]
    found["three epochs at 0.03"] = [changed(dls, draw, lambda learn: learn.fine_tune(3, TOO_LARGE, lr_mult=1))
                                     for draw in DRAWS]
    return found


def main():
    start, names = time.perf_counter(), ("mnist", "digits")
    with get_context("spawn").Pool(2) as pool: found = dict(zip(names, pool.map(measure, names)))
    how = f"rates tried with draws {TRY_DRAWS[0]} and {TRY_DRAWS[-1]}, judged with draws {DRAWS[0]} to {DRAWS[-1]}"
    save_results("transfer_defaults", rounded(found), start, how, threads="a thread for each data set")


if __name__ == "__main__": main()
