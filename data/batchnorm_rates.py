"""Which rates train the ConvNet of chapter 10, with and without batchnorm? Writes data/results/batchnorm_rates.json.

    python data/batchnorm_rates.py          about eighteen minutes on two cores; MNIST must be on disk

Ten seeds draw the initial weights; all networks see the same 280 batches of 64, and each is judged on 1,000 images that
it has not seen, with running statistics of its own.
"""
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from course_lib import SGD, BatchNorm2d, TensorLoader, digits, mnist, sweep
from course_lib.batchnorm import ConvNet
from course_lib.sgd import accuracy_of
from course_lib.support.results import save_results

RATES, SEEDS, N_STEPS, WIDTHS = [.004, .016, .06, .25, .6], range(10), 280, (8, 16, 32, 64)


def he(model):
    "The initial weights of He et al. (2015), for layers before a ReLU."
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def accuracies(dls, norm, init=None, rates=RATES, seeds=SEEDS):
    "Validation accuracy, a list for each rate with a number for each seed."
    train = TensorLoader(dls.train.x, dls.train.y, 64, shuffle=True, drop_last=True, seed=1)
    model = ConvNet(norm, WIDTHS).to(train.x.device)
    grid = {"lr": torch.tensor(rates), "seed": seeds}
    result, shares = sweep(model, F.cross_entropy, partial(SGD, momentum=.9), train, N_STEPS, grid, init=init), []
    for i in range(len(rates)):
        shares.append([])
        for j in range(len(seeds)):
            model.load_state_dict(result.params(i, j))
            shares[-1].append(round(accuracy_of(model.eval(), dls.valid), 5))
    return shares


def main():
    start, found = time.perf_counter(), {}
    for name, data in {"mnist": mnist, "digits": digits}.items():
        sizes = {"n_train": 12_000, "n_valid": 1_000} if name == "mnist" else {}
        dls = data(batch_size=64, **sizes)
        found[name] = {"plain": accuracies(dls, None), "He's weights": accuracies(dls, None, he),
                       "batchnorm": accuracies(dls, BatchNorm2d)}
        for kind, shares in found[name].items():
            print(name, kind, [round(sum(share) / len(share), 4) for share in shares], flush=True)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    save_results("batchnorm_rates", {"rates": RATES, **found}, start, f"seeds {SEEDS[0]} to {SEEDS[-1]}", where)


if __name__ == "__main__": main()
