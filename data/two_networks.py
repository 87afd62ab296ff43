"""The two networks of chapters 02 to 05 under four optimizers: writes data/results/two_networks.json.

    python data/two_networks.py          about five minutes on two cores; MNIST must be on disk

Each optimizer tries nine rates over two seeds; at its best one, ten other seeds say how it does, so that what chose the
rate is not what judges it. All see the same batches. A loss is the mean of the last 30 of 300 steps.
"""
import time
from functools import partial

import torch

from course_lib import SGD, Adam, RMSProp, digits, mnist, sweep
from course_lib.sgd import autoencoder, next_word
from course_lib.support.results import save_results

N_STEPS, TRY_SEEDS, SEEDS = 300, range(2), range(10, 20)
OPTIMIZERS = {  # and the range of rates, by powers of ten
    "SGD": (SGD, (-1, 1.5)),
    "momentum": (partial(SGD, momentum=.9), (-2, 1)),
    "RMSProp": (RMSProp, (-4, -1.5)),
    "Adam": (Adam, (-4, -1.5)),
}


def measure(task, opt_func, exponents):
    "One entry of the file."
    train = partial(sweep, task.model, task.loss_func, opt_func, task.loader, N_STEPS)
    tried = train({"lr": torch.logspace(*exponents, 9), "seed": TRY_SEEDS})
    by_lr = tried.over_seeds()
    best = tried.values[0][by_lr.argmin()].item()
    assert 0 < by_lr.argmin() < 8, "the best rate stands at the edge of the range: widen it"
    judged = train({"seed": SEEDS, "lr": [best]})
    return {"lrs": [float(f"{lr:.3g}") for lr in tried.values[0].tolist()],
            "by_lr": [round(loss, 4) if loss < float("inf") else None for loss in by_lr.tolist()],
            "lr": float(f"{best:.6g}"),
            "final": [round(loss, 5) for loss in judged.final()[:, 0].tolist()],
            "curve": [round(loss, 4) for loss in judged.loss[:, 0].mean(0).view(-1, 10).mean(1).tolist()]}


def main():
    start = time.perf_counter()
    tasks = {"autoencoder of mnist": autoencoder(mnist(device="cpu")),
             "autoencoder of digits": autoencoder(digits(device="cpu")), "next word": next_word()}
    found = {}
    for task_name, task in tasks.items():
        found[task_name] = {name: measure(task, *how) for name, how in OPTIMIZERS.items()}
        print(task_name, {name: (run["lr"], sum(run["final"]) / len(SEEDS)) for name, run in found[task_name].items()},
              flush=True)
    how = (f"rates tried with seeds {TRY_SEEDS[0]} to {TRY_SEEDS[-1]}, "
           f"judged with seeds {SEEDS[0]} to {SEEDS[-1]}")
    save_results("two_networks", found, start, how)


if __name__ == "__main__": main()
