"""Where momentum pays and where it does not, by batch size (chapter 03): writes data/results/large_batches.json.

    python data/large_batches.py         about a minute; MNIST must be on disk

The small net of chapter 02, 100 steps, with beta 0 and with beta 0.9. Each tries 19 rates over three seeds; at its best
one, ten other seeds say how it does. Both see the same batches. A loss is the mean of the last 25 steps.
"""
import time
from functools import partial

import torch
import torch.nn.functional as F

from course_lib import SGD, digits, mnist, sweep
from course_lib.data import TensorLoader
from course_lib.sgd import small_net
from course_lib.support.results import save_results

N_STEPS, N_LAST, TRY_SEEDS, SEEDS = 100, 25, range(3), range(10, 20)
BATCH_SIZES = {"mnist": (16, 64, 256, 1024), "digits": (16, 64, 256)}  # of the 1,248 digits, 1,024 are nearly all
EXPONENTS = {0.: (-1.8, .1), .9: (-2.4, -.5)}  # the range of rates for each beta, by powers of ten


def measure(train_set, batch_size, beta):
    "One entry of the file."
    loader = TensorLoader(train_set.x, train_set.y, batch_size, shuffle=True, drop_last=True, seed=1)
    train = partial(sweep, small_net(), F.cross_entropy, partial(SGD, momentum=beta), loader, N_STEPS)
    tried = train({"lr": torch.logspace(*EXPONENTS[beta], 19), "seed": TRY_SEEDS})
    by_lr = tried.over_seeds(N_LAST)
    best = tried.values[0][by_lr.argmin()].item()
    assert 0 < by_lr.argmin() < 18, "the best rate stands at the edge of the range: widen it"
    judged = train({"seed": SEEDS, "lr": [best]})
    return {"lr": float(f"{best:.6g}"), "final": [round(loss, 5) for loss in judged.final(N_LAST)[:, 0].tolist()]}


def main():
    start, found = time.perf_counter(), {}
    for name, data in (("mnist", mnist(device="cpu")), ("digits", digits(device="cpu"))):
        found[name] = {str(size): {f"beta {beta:g}": measure(data.train, size, beta) for beta in EXPONENTS}
                       for size in BATCH_SIZES[name]}
        for size, runs in found[name].items():
            print(name, size, {beta: (run["lr"], sum(run["final"]) / len(SEEDS)) for beta, run in runs.items()},
                  flush=True)
    how = (f"rates tried with seeds {TRY_SEEDS[0]} to {TRY_SEEDS[-1]}, "
           f"judged with seeds {SEEDS[0]} to {SEEDS[-1]}")
    save_results("large_batches", found, start, how)


if __name__ == "__main__": main()
