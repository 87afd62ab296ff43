"""What chapter 11 claims about transfer, over ten draws of a hundred digits: writes data/results/transfer_trials.json.

    python data/transfer_trials.py          some minutes on two idle cores, a data set on each; MNIST must be on disk

Each way takes 50 steps of 50, scratch 100. It tries its rates on two draws; at its best one, ten other draws say how it
does, so that what chose the rate is not what judges it. Accuracies are of about 1,000 digits that no way has seen.
"""
import functools
import time
from multiprocessing import get_context

import torch
import torch.nn.functional as F

from course_lib import AdamW, DataLoaders, Learner, RandomAffine, TensorLoader, accuracy, digits, mnist
from course_lib.sgd import batches, seeded
from course_lib.support.results import save_results
from course_lib.transfer import (
    MoveStatistics, decay_weights_only, draw_few, glyph_backbone, layer_groups, replace_head, small_resnet)

N_BATCHES, TRY_DRAWS, DRAWS, CONTRASTS, TOO_LARGE = 25, range(100, 102), range(10), (1., .3), .03
LOOKS = dict(degrees=8, translate=(.04, .04), scale=(.95, 1.05))


def everything_learns(freeze_epochs, lr_mult):
    "Two epochs of `fine_tune`, of which the first freeze_epochs train the head alone."
    return lambda learn, lr: learn.fine_tune(2 - freeze_epochs, lr, freeze_epochs, lr_mult)


def head_alone(learn, lr):
    learn.freeze()
    learn.fit_one_cycle(2, lr)


WAYS = {  # and the rates that it tries
    "scratch": (lambda learn, lr: learn.fit_one_cycle(4, lr), (.003, .01, .03, .1, .3)),  # twice as long
    "head": (head_alone, (.003, .01, .03, .1)),
    "all, one rate": (everything_learns(0, 1), (.001, .003, .01, .03)),
    "all, slice": (everything_learns(0, 10), (.001, .003, .01, .03)),
    "head first, one rate": (everything_learns(1, 1), (.001, .003, .01, .03)),
    "head first, slice": (everything_learns(1, 10), (.001, .003, .01, .03)),
}


@functools.cache
def drawn(dls, draw):
    "Ten images of each digit, and about a thousand others."
    few, rest = draw_few(dls, 10, draw)
    return few, [part[::max(1, len(part) // 1000)] for part in rest]


def make_learner(dls, draw, way="head", contrast=1.):
    "A learner on a draw, and the loader that judges it."
    few, rest = drawn(dls, draw)
    train, valid = TensorLoader(contrast * few[0], few[1], 50), TensorLoader(contrast * rest[0], rest[1], 500)
    make = lambda: small_resnet(10) if way == "scratch" else replace_head(glyph_backbone(device="cpu"), 10)
    data = DataLoaders(list(batches(train, N_BATCHES, draw, 50)), None)
    learn = Learner(seeded(draw, make), data, F.cross_entropy, decay_weights_only(AdamW), metrics=[accuracy],
                    splitter=layer_groups)
    return learn, valid


def reached(dls, way, lr, draw):
    learn, valid = make_learner(dls, draw, way)
    WAYS[way][0](learn, lr)
    return learn.validate(valid)["accuracy"]


def mean(values): return sum(values) / len(values)


def measure_way(dls, way):
    "One entry of the file; for the four ways to fine-tune also at a rate that is too large."
    lrs = WAYS[way][1]
    by_lr = [mean([reached(dls, way, lr, draw) for draw in TRY_DRAWS]) for lr in lrs]
    best = lrs[by_lr.index(max(by_lr))]
    run = {"lrs": lrs, "by_lr": by_lr, "lr": best, "final": [reached(dls, way, best, draw) for draw in DRAWS]}
    if way not in ("scratch", "head"): run["too large"] = [reached(dls, way, TOO_LARGE, draw) for draw in DRAWS]
    return run


def measure_statistics(dls):
    "A new head, where batchnorm keeps the statistics of letters, or lets them follow the digits; by contrast."
    found = {}
    for contrast in CONTRASTS:
        for name, cbs in {"kept": [], "moved": [MoveStatistics()]}.items():
            found[f"{name} at {contrast:g}"] = accuracies = []
            for draw in DRAWS:
                learn, valid = make_learner(dls, draw, contrast=contrast)
                learn.freeze()
                learn.fit_one_cycle(1, .01, cbs=cbs)
                accuracies.append(learn.validate(valid)["accuracy"])
    return found


def measure_looks(dls, lr):
    "Fine-tuned as 'head first, slice': each digit as it is, changed (mean of four looks), and the five averaged."
    found = {"as it is": [], "changed": [], "five looks": []}
    for draw in DRAWS:
        learn, valid = make_learner(dls, draw)
        WAYS["head first, slice"][0](learn, lr)
        look, (x, y) = RandomAffine(**LOOKS), (valid.x, valid.y)
        torch.manual_seed(draw)
        each = [learn.predict(x).softmax(1), *(learn.predict(look(x, y)[0]).softmax(1) for _ in range(4))]
        plain, *changed = (accuracy(probabilities, y).item() for probabilities in each)
        for name, value in zip(found, (plain, mean(changed), accuracy(sum(each), y).item())): found[name].append(value)
    return found


def measure(name):
    "All about one data set."
    torch.set_num_threads(1)
    dls = {"mnist": mnist, "digits": digits}[name](device="cpu")
    ways = {}
    for way in WAYS:
        ways[way] = run = measure_way(dls, way)
        print(f"{name}, {way}: lr {run['lr']}, {mean(run['final']):.1%}", flush=True)
    lr = ways["head first, slice"]["lr"]
    return {"ways": ways, "statistics": measure_statistics(dls), "looks": measure_looks(dls, lr)}


def rounded(value):
    if isinstance(value, dict): return {name: rounded(part) for name, part in value.items()}
    return [round(part, 4) for part in value] if isinstance(value, (list, tuple)) else value


def main():
    start, names = time.perf_counter(), ("mnist", "digits")
    with get_context("spawn").Pool(2) as pool: found = dict(zip(names, pool.map(measure, names)))
    how = (f"rates tried with draws {TRY_DRAWS[0]} and {TRY_DRAWS[-1]}, "
           f"judged with draws {DRAWS[0]} to {DRAWS[-1]}")
    save_results("transfer_trials", rounded(found), start, how, threads="a thread for each data set")


if __name__ == "__main__": main()
