"""What is each idea of chapter 12 worth, and where does it cost? Writes data/results/regularization.json.

    python data/regularization.py [mnist] [digits]     some ten minutes for each on one core; MNIST must be on disk

One network, and a deeper residual one, are trained to the end by SGD with momentum 0.9, always with the same batches.
An idea's strength is the one of highest validation accuracy at the end, the mean of three seeds (100 to 102) that are
used for nothing else. With that strength seeds 0 to 19 draw other weights and masks, and are judged on test images: at
the end, and at the check at which their own validation accuracy was highest (the first of these). Three sets: 1,500
labels of which 40 % are wrong (of the embedded digits all 1,248), 100 right ones, and 12,000 right ones (of the digits
1,248). What the file has already, with the same strengths, is kept.
"""
import sys
import time
from functools import partial

import torch
import torch.nn.functional as F

from course_lib import SGD, SGDW, TensorLoader, digits, mnist, smooth_labels, soft_cross_entropy
from course_lib.regularization import digit_net, residual_net, spoiled
from course_lib.support.results import parts_so_far, save_results
from course_lib.sweeps import Sweep

TRY_SEEDS, SEEDS, N_CLASSES = range(100, 103), range(20), 10
STRENGTHS = {"smaller rate": [.0005, .001, .002, .005, .01], "L2": [.003, .01, .03, .05, .07, .1],
             "weight decay": [.03, .1, .3, .5, .7, 1.],
             "dropout": [.2, .35, .5, .65, .8], "label smoothing": [.1, .3, .5, .7, .8, .9, .95],
             "stochastic depth": [.3, .5, .7, .8, .9, .95]}
SETS = {"noisy": {"batch_size": 100, "n_steps": 600, "every": 15},      # every so many steps they are judged
        "few": {"batch_size": 50, "n_steps": 400, "every": 20},
        "many": {"batch_size": 100, "n_steps": 600, "every": 60}}


def smoothed(a):
    return lambda logits, targets: soft_cross_entropy(logits, smooth_labels(targets, N_CLASSES, a))


def recipe(idea, strength=None):
    "Model, loss function, optimizer and what else is on the grid."
    opt_func, rate = partial(SGD, lr=.02, momentum=.9), {}
    if idea == "smaller rate": opt_func = partial(SGD, lr=strength, momentum=.9)
    if idea == "L2": rate = {"weight_decay": [strength]}
    if idea == "weight decay": opt_func, rate = partial(SGDW, lr=.02, momentum=.9), {"weight_decay": [strength]}
    if idea in ("residual", "stochastic depth"):
        return residual_net(strength or 0.), F.cross_entropy, partial(SGD, lr=.01, momentum=.9), rate
    model = digit_net(strength if idea == "dropout" else 0.)
    return model, smoothed(strength) if idea == "label smoothing" else F.cross_entropy, opt_func, rate


def loader(x, y, batch_size): return TensorLoader(x, y, batch_size, shuffle=True, drop_last=True, seed=1)


@torch.no_grad()
def right(model, state, part):
    model.load_state_dict(state)
    share = (model.eval()(part.x).argmax(1) == part.y).float().mean().item()
    model.train()
    return share


def run(idea, strength, train, watch, seeds, n_steps, every, test=None):
    """Accuracies on `watch` at the end, `[seeds]`; where there are test images, a dict: on `watch` at each check, and
    on the test images at the end and at the best check.
    """
    model, loss_func, opt_func, rate = recipe(idea, strength)
    sweep, curve, best = Sweep(model, loss_func, opt_func, train, n_steps, {**rate, "seed": seeds}), [], {}
    state = lambda i: sweep.params(*[0] * len(rate), i)
    for step in sweep.steps():
        if (step + 1) % every: continue
        if test is None and step + 1 < n_steps: continue        # while a strength is looked for only the end counts
        curve.append([right(model, state(i), watch) for i in range(len(seeds))])
        for i, share in enumerate(curve[-1]):
            if test is not None and share > best.get(i, (-1,))[0]: best[i] = share, len(curve), state(i)
    if test is None: return curve[-1]
    at_end, n = [right(model, state(i), test) for i in range(len(seeds))], range(len(seeds))
    rounded = lambda shares: [round(share, 5) for share in shares]
    return {"valid": [rounded(shares) for shares in curve], "test": rounded(at_end),
            "stopped at": [best[i][1] for i in n], "test, stopped": rounded(right(model, best[i][2], test) for i in n)}


def measure(dls, found):
    "Adds to `found` what it lacks, and returns it."
    x, y, valid = dls.train.x, dls.train.y, dls.valid
    test = TensorLoader(dls.test.x[:5000], dls.test.y[:5000], 5000)
    data = {"noisy": (x[:1500], spoiled(y[:1500], .4)), "few": (x[:100], y[:100]), "many": (x, y)}
    for name, (images, targets) in data.items():
        options = dict(SETS[name])
        train = loader(images, targets, options.pop("batch_size"))
        if name != "few" and len(x) < 2000: options.update(n_steps=40 * len(train), every=len(train))
        if name not in found: found[name] = {"plain": run("plain", None, train, valid, SEEDS, test=test, **options)}
        for idea, strengths in STRENGTHS.items():
            if idea in ("smaller rate", "L2", "stochastic depth") and name != "noisy": continue
            if found[name].get(idea, {}).get("strengths") == strengths: continue
            if idea == "stochastic depth":
                found[name]["residual"] = run("residual", None, train, valid, SEEDS, test=test, **options)
            tried = [run(idea, strength, train, valid, TRY_SEEDS, **options) for strength in strengths]
            best = max(range(len(strengths)), key=lambda i: sum(tried[i]))
            judge = lambda strength: run(idea, strength, train, valid, SEEDS, test=test, **options)
            found[name][idea] = {"strengths": strengths, "tried": tried, "strength": strengths[best],
                                 **judge(strengths[best])}
            if name != "noisy":  # and with the strength that wrong labels asked for
                found[name][f"{idea}, as for noisy"] = {"test": judge(found["noisy"][idea]["strength"])["test"]}
            print(dls.name, name, idea, strengths[best], [round(sum(t) / len(t), 3) for t in tried], flush=True)
        if name == "noisy" and "own validation" not in found[name]:
            # What stopping costs: a fifth of the labels watch, wrong ones among them.
            n = len(images) * 4 // 5
            most, watch = loader(images[:n], targets[:n], 100), TensorLoader(images[n:], targets[n:], 500)
            found[name]["own validation"] = run("plain", None, most, watch, SEEDS, 40 * len(most), len(most), test)
        for idea, runs in found[name].items():
            means = [f"{key} {sum(runs[key]) / 20:.4f}" for key in ("test", "test, stopped") if key in runs]
            print(dls.name, name, idea, *means, flush=True)
    return found


def main():
    torch.set_num_threads(1)
    start, data = time.perf_counter(), {"mnist": mnist, "digits": digits}
    for name in sys.argv[1:] or data:
        sizes = {"n_train": 12_000, "n_valid": 1_000} if name == "mnist" else {}
        stored = parts_so_far("regularization")
        found = measure(data[name](batch_size=100, device="cpu", **sizes), stored.get(name, {}))
        save_results("regularization", {**stored, name: found}, start,
                     f"seeds {SEEDS[0]} to {SEEDS[-1]}", indent=None)


if __name__ == "__main__": main()
