"""What of a network of a megabyte is needed? Writes data/results/compression.json.

    python data/compression.py [mnist] [digits] [pruned] [units] [bits] [levels]

Some minutes for each data set on one core; MNIST must be on disk. With names of parts, these alone are measured anew.

`net_300_100` is trained by SGD with momentum 0.9 and one cycle of 300 batches of 100, for seeds 0 to 19, which draw
weights and the order of the batches. Then it is pruned or quantized, judged on 5,000 test images, trained for 60
steps more at a constant rate (quantized: 100), and judged again. Each rate is the one of highest validation accuracy,
the mean over seeds 100 to 102, which are used for nothing else, with worse rates on both sides of it; each rival has
its own, the whole network that is trained as long too.
"""
import copy
import sys
import time
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from course_lib import SGD, DataLoaders, Learner, TensorLoader, digits, mnist
from course_lib.compression import (
    Pruner, apply_masks, fake_quantize, in_levels, magnitude_mask, net_300_100, nf4, prune, quantize)
from course_lib.learner import Callback
from course_lib.sgd import first_batches, seeded
from course_lib.support.compression import even_levels, in_blocks, layers_of, weights_of
from course_lib.support.results import parts_so_far, save_results

TRY_SEEDS, SEEDS, BATCH, STEPS, MORE, MORE_QUANTIZED = range(100, 103), range(20), 100, 300, 60, 100
AMOUNTS, UNITS, BITS = [.5, .8, .9, .95, .98], [.5, .8], [8, 6, 5, 4, 3, 2]
FIRST_RATES, RATES = (.05, .1, .2), (.003, .01, .03)


class Masks(Callback):
    "Masks that were chosen elsewhere, after every step."
    def __init__(self, masks): self.masks = masks

    def after_step(self, learn): apply_masks(weights_of(learn.model), self.masks)


class Rounding(nn.Module):
    "A weight as few bits leave it, with the gradient let through."
    def __init__(self, bits, axis):
        super().__init__()
        self.bits, self.axis = bits, axis

    def forward(self, weight): return fake_quantize(weight, self.bits, self.axis)


def with_weights(model, change):
    "A copy whose weights are what `change(weight)` gives."
    model = copy.deepcopy(model)
    with torch.no_grad():
        for weight in weights_of(model): weight.copy_(change(weight))
    return model


def rounding(model, bits, axis):
    model = copy.deepcopy(model)
    for layer in layers_of(model): register_parametrization(layer, "weight", Rounding(bits, axis))
    return model


def affine_by_block(weight):
    "NF4's other rival: evenly spaced levels, a scale and a zero for each block of 64."
    back = quantize(in_blocks(weight, 64), 4, axis=0, symmetric=False).dequantize()
    return back.flatten()[:weight.numel()].view(weight.shape)


def net_of(n1, n2):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, n1), nn.ReLU(), nn.Linear(n1, n2), nn.ReLU(), nn.Linear(n2, 10))


def random_masks(model, amount):
    generator = torch.Generator().manual_seed(0)
    return magnitude_mask([torch.rand(weight.shape, generator=generator) for weight in weights_of(model)], amount)


class Lab:
    "Data, and networks trained once for each seed."
    def __init__(self, dls, rates, n_test=5000):
        self.dls, self.whole, self.rates = dls, {}, dict(rates)
        self.test = TensorLoader(dls.test.x[:n_test], dls.test.y[:n_test], n_test)

    def right(self, model, part):
        with torch.no_grad(): return (model(part.x).argmax(1) == part.y).float().mean().item()

    def train(self, model, lr, n_steps, seed, cbs=(), one_cycle=False):
        loader = TensorLoader(self.dls.train.x, self.dls.train.y, BATCH, shuffle=True, drop_last=True, seed=seed)
        dls = DataLoaders(list(first_batches(loader, n_steps)), None)
        learn = Learner(model, dls, F.cross_entropy, partial(SGD, momentum=.9), lr=lr, cbs=list(cbs))
        if one_cycle: learn.fit_one_cycle(1, lr)
        else: learn.fit(1)
        return model

    def at_best_rate(self, name, make, rates=RATES, n_steps=MORE):
        "Test accuracies `[seeds]` of `make(seed) -> (model, callbacks)` trained on, at the rate chosen by other seeds."
        one_cycle = rates is FIRST_RATES

        def one(lr, seed):
            model, cbs = make(seed)
            return self.train(model, lr, n_steps, seed + 1000, cbs, one_cycle)
        tried, factor = {}, rates[1] / rates[0]
        while True:  # until the best rate has a worse one on both sides
            for lr in rates:
                if lr in tried: continue
                tried[lr] = sum(self.right(one(lr, seed), self.dls.valid) for seed in TRY_SEEDS) / len(TRY_SEEDS)
            lr = max(tried, key=tried.get)
            if min(tried) < lr < max(tried) or not 1e-4 < lr < 2: break
            rates = [float(f"{lr * factor if lr == max(tried) else lr / factor:.1g}")]
        found = [one(lr, seed) for seed in SEEDS]
        tried = {rate: round(tried[rate], 4) for rate in sorted(tried)}
        self.rates[name] = {"rates": list(tried), "tried": list(tried.values()), "lr": lr}
        shares = self.judged(found)
        print(self.dls.name, name, lr, tried, round(sum(shares) / len(shares), 4), flush=True)
        return shares, found

    def keep_whole(self, models):
        "Networks to start from: these for the seeds that are judged, and those of the seeds that choose rates."
        self.whole = dict(zip(SEEDS, models)) | {seed: self.whole_again(seed) for seed in TRY_SEEDS}

    def whole_again(self, seed):
        "The network of a seed at the rate that was best."
        return self.train(seeded(seed, net_300_100), self.rates["whole"]["lr"], STEPS, seed + 1000, one_cycle=True)

    def again(self, change):
        "What makes (model, callbacks) of the network of a seed."
        return lambda seed: change(copy.deepcopy(self.whole[seed]))

    def judged(self, models): return [round(self.right(model, self.test), 5) for model in models]

    def of_whole(self, change): return self.judged(change(self.whole[seed]) for seed in SEEDS)


def measure_whole(lab):
    name, new = "whole", lambda seed: (seeded(seed, net_300_100), ())
    found, models = lab.at_best_rate(name, new, FIRST_RATES, STEPS)
    lab.keep_whole(models)
    found = {name: found}
    for n, label in ((MORE, "whole, trained on"), (MORE_QUANTIZED, "whole, trained on longer")):
        found[label], _ = lab.at_best_rate(label, lab.again(lambda model: (model, ())), n_steps=n)
    return found


def measure_pruned(lab):
    found = {}
    for amount in AMOUNTS:
        cut = lambda model, amount=amount: prune(model, amount)
        found[f"pruned {amount}"] = lab.of_whole(cut)
        name = f"pruned {amount}, trained on"
        found[name], _ = lab.at_best_rate(name, lab.again(lambda model: (model, [Pruner(amount)])))
        if amount > .9:
            name = f"pruned {amount} little by little"
            ramped = lab.again(lambda model: (model, [Pruner(amount, ramp=.5, every=5)]))
            found[name], _ = lab.at_best_rate(name, ramped)

    def at_random(model):
        masks = random_masks(model, .9)
        apply_masks(weights_of(model), masks)
        return model, [Masks(masks)]
    found["random 0.9"] = lab.of_whole(lambda model: at_random(copy.deepcopy(model))[0])
    found["random 0.9, trained on"], _ = lab.at_best_rate("random 0.9, trained on", lab.again(at_random))
    return found


def measure_units(lab):
    found = {}
    for share in UNITS:
        found[f"units {share}"] = lab.of_whole(lambda model: prune(model, share, structured=True))
        name = f"units {share}, trained on"
        found[name], small = lab.at_best_rate(name, lab.again(lambda model: (prune(model, share, structured=True), ())))
        sizes = [len(layer.weight) for layer in layers_of(small[0])[:2]]
        name = f"units {share}, from the start"
        fresh = lambda seed: (seeded(seed, partial(net_of, *sizes)), ())
        found[name], _ = lab.at_best_rate(name, fresh, FIRST_RATES, STEPS + MORE)
    return found


def measure_bits(lab):
    found = {}
    for bits in BITS:
        for axis, label in ((None, "tensor"), (0, "channel")):
            low = lambda weight: quantize(weight, bits, axis).dequantize()
            found[f"{bits} bits by {label}"] = lab.of_whole(lambda model: with_weights(model, low))
            if bits > 3: continue
            name = f"{bits} bits by {label}, trained"
            felt = lab.again(lambda model: (rounding(model, bits, axis), ()))
            found[name], _ = lab.at_best_rate(name, felt, n_steps=MORE_QUANTIZED)
    return found


def measure_levels(lab):
    found = {}
    for label, low in (("nf4", lambda weight: nf4(weight).dequantize()), ("affine by block", affine_by_block),
                       ("even levels", lambda weight: in_levels(weight, even_levels(), 64).dequantize())):
        found[label] = lab.of_whole(lambda model: with_weights(model, low))
        errors = lambda model: sum((weight - low(weight)).square().sum() for weight in weights_of(model)).item()
        sizes = lambda model: sum(weight.square().sum() for weight in weights_of(model)).item()
        with torch.no_grad(): shares = [errors(lab.whole[seed]) / sizes(lab.whole[seed]) for seed in SEEDS]
        found[f"{label}, error"] = [round(share ** .5, 5) for share in shares]
    return found


PARTS = {"pruned": measure_pruned, "units": measure_units, "bits": measure_bits, "levels": measure_levels}


def measure(dls, parts, before):
    "What these parts give, and `before`, what was measured earlier, for the others."
    lab = Lab(dls, before.get("rates", {}))
    if parts == list(PARTS): found = measure_whole(lab)
    else:
        found = dict(before)
        lab.keep_whole([lab.whole_again(seed) for seed in SEEDS])
    for part in parts: found |= PARTS[part](lab)
    for key, values in found.items():
        if key != "rates": print(dls.name, key, round(sum(values) / len(values), 4), flush=True)
    return found | {"rates": lab.rates}


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a rate that blows up is a rate that is not chosen
    start, data = time.perf_counter(), {"mnist": mnist, "digits": digits}
    parts = [part for part in PARTS if part in sys.argv] or list(PARTS)
    how = f"seeds {SEEDS[0]} to {SEEDS[-1]}" + (f"; measured last: {', '.join(parts)}" if parts != list(PARTS) else "")
    for name in [name for name in data if name in sys.argv] or data:
        sizes = {"n_train": 12_000, "n_valid": 2_000} if name == "mnist" else {}
        before = parts_so_far("compression")
        found = measure(data[name](batch_size=BATCH, device="cpu", **sizes), parts, before.get(name, {}))
        save_results("compression", {**before, name: found}, start, how, indent=None)


if __name__ == "__main__": main()
