"""What is a callback worth? Lists of them (chapter 07), each at its best rate. Writes data/results/ablation.json.

    python data/ablation.py          about four minutes on one core; MNIST must be on disk

Each run makes the same number of optimizer steps, by SGD with momentum 0.9, on 2,000 images of MNIST or on the embedded
digits. A seed draws the weights, the order of the images and the noise. `tried`: validation accuracies of seeds 0 to 4
at every rate, `[rates][seeds]`; the rate with the highest mean is taken, and `judged` with seeds 10 to 19.
"""
import time
from functools import partial

import torch
import torch.nn.functional as F

from course_lib import (
    SGD, Callback, CancelFitException, DataLoaders, GradientAccumulation, GradientClip, Learner, TensorLoader, accuracy,
    digits, mnist)
from course_lib.sgd import small_net
from course_lib.support.results import save_results

TRY_SEEDS, SEEDS = range(5), range(10, 20)
RATES = [.01, .02, .05, .1, .2, .5, 1.]
N_STEPS = 300


class InputNoise(Callback):
    "Adds noise to the images of training."
    def before_batch(self, learn):
        if learn.training: learn.xb = learn.xb + .3 * torch.randn_like(learn.xb)


class StopAfter(Callback):
    "Ends the fit after so many optimizer steps."
    def __init__(self, n_steps): self.n_steps = n_steps

    def before_fit(self, learn): self.done = 0

    def after_step(self, learn):
        if not learn.cancelled: self.done += 1
        if self.done == self.n_steps: raise CancelFitException


INGREDIENTS = {"clipping": lambda: GradientClip(max_norm=.5), "accumulation": lambda: GradientAccumulation(2),
               "noise": InputNoise}
LISTS = {"all three": list(INGREDIENTS), "nothing": [],
         **{f"without {name}": [other for other in INGREDIENTS if other != name] for name in INGREDIENTS}}


def run(dls, names, lr, seed, n_steps=N_STEPS):
    "The validation accuracy after n_steps with these callbacks."
    torch.manual_seed(seed)
    train = TensorLoader(dls.train.x, dls.train.y, 64, shuffle=True, seed=seed)
    learn = Learner(small_net(seed=seed), DataLoaders(train, None), F.cross_entropy, partial(SGD, momentum=.9), lr,
                    cbs=[StopAfter(n_steps), *(INGREDIENTS[name]() for name in names)], metrics=[accuracy])
    learn.fit(2 * n_steps)  # more epochs than are needed
    return round(learn.validate(dls.valid)["accuracy"], 5)


def measure(dls):
    found = {}
    for label, names in LISTS.items():
        tried = [[run(dls, names, lr, seed) for seed in TRY_SEEDS] for lr in RATES]
        lr = max(zip(tried, RATES), key=lambda row: sum(row[0]))[1]
        found[label] = {"tried": tried, "lr": lr, "judged": [run(dls, names, lr, seed) for seed in SEEDS]}
    return found


def main():
    start = time.perf_counter()
    torch.set_num_threads(1)
    load = {"mnist": partial(mnist, n_train=2_000, n_valid=5_000), "digits": digits}
    found = {name: measure(make(device="cpu")) for name, make in load.items()}
    held = {"rates": RATES, "n_steps": N_STEPS, "try_seeds": list(TRY_SEEDS), "seeds": list(SEEDS)}
    how = f"rates tried with seeds {TRY_SEEDS[0]} to {TRY_SEEDS[-1]}, judged with seeds {SEEDS[0]} to {SEEDS[-1]}"
    save_results("ablation", {**held, **found}, start, how, indent=None)


if __name__ == "__main__": main()
