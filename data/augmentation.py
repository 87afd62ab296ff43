"""What is each augmentation of chapter 13 worth? Writes data/results/augmentation.json.

    python data/augmentation.py [mnist] [digits] [things] [search] [attack]     up to half an hour for each on one core

`reader`, a small net of convolutions, sees a hundred images, batch by batch, changed in one way. The strength and the
rate are those of highest validation accuracy, the mean of two seeds (100, 101) that are used for nothing else. With
these, seeds 0 to 19 draw other initial weights and are judged on test images. All seeds of a way see the same batches.
things: pictures painted by course_lib.support.pictures. search: every pair of twenty operations, trained for a short
time, on the digits of MNIST. attack: accuracy after a step of the pixels against the net (FGSM, Goodfellow et al.,
2015).
"""
import sys
import time
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F

from course_lib import (
    Adam, ColorJitter, CutMix, Cutout, Flip, GaussianBlur, Grayscale, MixUp, PCAColor, Perspective, RandAugment,
    RandomAffine, RandomCrop, Rotate, TensorLoader, digits, mnist, sweep)
from course_lib.augmentation import OPERATIONS, reader
from course_lib.support.augmentation import happens
from course_lib.support.pictures import few_digits, painted
from course_lib.support.results import parts_so_far, save_results

TUNING, SEEDS, RATES, N_STEPS, BATCH = range(100, 102), range(20), [.003, .008, .02], 500, 50
RATES_FOR_THINGS = [.003, .008]  # at .02 some of these nets die, and two seeds may not show it


LEFT_OUT = {"digits": ("rotate", "perspective", "blur", "cutout", "cutmix")}  # to save time


def moved(s): return RandomAffine(15 * s, translate=(.1 * s, .1 * s), scale=(1 - .15 * s, 1 + .15 * s), shear=10 * s)


def ways(n_classes, x):
    "name -> (function from a strength to transforms, strengths); a strength None: there is none to choose."
    found = {
        "plain": (lambda s: [], [None]), "flip": (lambda s: [Flip()], [None]),
        "crop": (lambda s: [RandomCrop(s)], [1, 2, 4]), "rotate": (lambda s: [Rotate(s)], [10, 20, 30, 45]),
        "affine": (lambda s: [moved(s)], [.25, .5, 1, 1.5]), "cutout": (lambda s: [Cutout(s)], [2, 4, 8, 12, 16]),
        "mixup": (lambda s: [MixUp(n_classes, s)], [.03, .1, .4, 1]),
        "cutmix": (lambda s: [CutMix(n_classes, s)], [.1, .3, 1, 3]),
        "RandAugment": (lambda s: [RandAugment(2, s)], [2, 5, 9, 15])}
    if x.shape[1] == 1: return found | {
        "perspective": (lambda s: [Perspective(s)], [.2, .4, .6]),
        "blur": (lambda s: [GaussianBlur(5, (.1, s))], [.5, 1, 2])}
    return found | {
        "color jitter": (lambda s: [ColorJitter(s, s, s, s / 4)], [.2, .4, .8, 1]),
        "grayscale": (lambda s: [Grayscale(s)], [.2, .5, .8]),
        "PCA color": (lambda s: [PCAColor(x, s)], [.1, .3, 1, 3])}


def combined(name, base, n_classes, things):
    "affine (or mirroring and crops) at its own best strength, then another one."
    kinds = {"cutout": (Cutout, [2, 4, 8]), "mixup": (lambda s: MixUp(n_classes, s), [.05, .1, .2, .4]),
             "cutmix": (lambda s: CutMix(n_classes, s), [.3, 1, 3])}
    make, strengths = kinds[name]
    first = [Flip(), RandomCrop(base)] if things else [moved(base)]
    return (lambda s: [*first, make(s)]), strengths


@torch.no_grad()
def shares(model, result, places, part):
    "The share of right answers of each of these trained nets."
    found = []
    for place in places:
        model.load_state_dict(result.params(*place))
        found.append(round((model(part[0]).argmax(1) == part[1]).float().mean().item(), 5))
    return found


def train(model, few, transform, seeds, rates, n_steps=N_STEPS, batch=BATCH):
    loader = TensorLoader(*few, batch, shuffle=True, transform=transform)
    return sweep(model, F.cross_entropy, Adam, loader, n_steps, {"lr": torch.tensor(rates), "seed": seeds})


def measure(model, few, valid, test, way, strengths, rates=RATES):
    "Choose strength and rate, then judge."
    tried, n = {}, len(TUNING)
    for strength in strengths:
        result = train(model, few, way(strength), TUNING, rates)
        for i, lr in enumerate(rates):
            tried[strength, lr] = sum(shares(model, result, [(i, j) for j in range(n)], valid)) / n
    strength, lr = max(tried, key=tried.get)
    result = train(model, few, way(strength), SEEDS, [lr])
    return {"strengths": strengths, "strength": strength, "lr": lr, "valid": [round(v, 4) for v in tried.values()],
            "accuracy": shares(model, result, [(0, j) for j in range(len(SEEDS))], test)}


def measure_ways(name, few, valid, test):
    n_classes, (channels, size) = int(few[1].max()) + 1, few[0].shape[1:3]
    model, found = reader(channels, size, n_classes), {}
    todo = {way: how for way, how in ways(n_classes, few[0]).items() if way not in LEFT_OUT.get(name, ())}
    if name == "things":
        usual = lambda s: [Flip(), RandomCrop(4), ColorJitter(s, s, s, s / 4)]
        todo["flip, crop"] = lambda s: [Flip(), RandomCrop(s)], [1, 2, 4]
        todo["flip, crop, color jitter"] = usual, [.4, .8, 1]
        todo["flip, crop, cutmix"] = "cutmix"
    else:
        others = [other for other in ("cutout", "mixup", "cutmix") if other not in LEFT_OUT.get(name, ())]
        todo |= {f"affine, {other}": other for other in others}
    for way, how in todo.items():
        if isinstance(how, str):
            base = found["flip, crop" if name == "things" else "affine"]["strength"]
            how = combined(how, base, n_classes, name == "things")
        found[way] = measure(model, few, valid, test, *how, RATES_FOR_THINGS if name == "things" else RATES)
        run = found[way]
        print(name, way, run["strength"], run["lr"], f"{sum(run['accuracy']) / len(SEEDS):.4f}", flush=True)
    return found


SEARCHED = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Contrast", "Sharpness", "Solarize",
            "Equalize"]
CHOICES = [(name, magnitude) for name in SEARCHED for magnitude in (6, 15)]


class Policy:
    "Two of the operations, one after the other, each done to an image with probability 1/2."
    def __init__(self, *choices): self.choices = choices

    def __call__(self, xb, yb):
        for name, magnitude in self.choices:
            changed = OPERATIONS[name](xb, (2 * happens(xb, .5) - 1) * (magnitude / 30))
            xb = torch.where(happens(xb, .5).view(-1, 1, 1, 1), changed, xb)
        return xb, yb


def measure_search(few, valid, test, n_steps=100):
    "Validation accuracies of each pair of choices, three seeds; then of the best pair and of none, judged as above."
    model, seeds, table = reader(), range(100, 103), []
    result = train(model, few, None, seeds, [.005], n_steps)
    plain = [round(v, 3) for v in shares(model, result, [(0, j) for j in range(len(seeds))], valid)]
    pairs = list(combinations_with_replacement(CHOICES, 2))
    for i, pair in enumerate(pairs):
        result = train(model, few, Policy(*pair), seeds, [.005], n_steps)
        table.append([round(v, 3) for v in shares(model, result, [(0, j) for j in range(len(seeds))], valid)])
        if i % 20 == 0: print("search", i, pair, table[-1], flush=True)
    order = sorted(range(len(pairs)), key=lambda i: -sum(table[i]))
    judged = {name: measure(model, few, valid, test, lambda s: [Policy(*pair)], [None])
              for name, pair in (("best", pairs[order[0]]), ("middle", pairs[order[len(order) // 2]]))}
    five = [Policy(*pairs[i]) for i in order[:5]]
    one_of_five = lambda xb, yb: five[torch.randint(5, ()).item()](xb, yb)
    judged["best five"] = measure(model, few, valid, test, lambda s: [one_of_five], [None])
    return {"choices": CHOICES, "n_steps": n_steps, "plain": plain, "table": table, "judged": judged}


def attacked(model, x, y, eps):
    "The images after a step of eps of each pixel that makes the loss larger."
    x = x.clone().requires_grad_()
    F.cross_entropy(model(x), y).backward()
    return (x + eps * x.grad.sign()).clamp(0, 1).detach()


def measure_attack(few, test, eps=.05):
    model, found = reader(), {}
    for alpha in (None, .4, 1.):
        result = train(model, few, [MixUp(10, alpha)] if alpha else None, SEEDS, [.003], 200, 100)
        rows = [(0, j) for j in range(len(SEEDS))]
        found[str(alpha)] = {"accuracy": shares(model, result, rows, test), "under attack": []}
        for place in rows:
            model.load_state_dict(result.params(*place))
            found[str(alpha)]["under attack"] += shares(model, result, [place], (attacked(model, *test, eps), test[1]))
    return {"eps": eps, "labels": len(few[1]), "alpha": found}


def main():
    torch.set_num_threads(1)
    parts = sys.argv[1:] or ["mnist", "digits", "things", "search", "attack"]
    for part in parts:
        start = time.perf_counter()
        if part == "things":
            x, y, _ = painted(80 + 400 + 2400)
            found = measure_ways(part, *((x[a:b], y[a:b]) for a, b in ((0, 80), (80, 480), (480, 2880))))
        elif part in ("search", "attack"):
            dls = mnist(device="cpu")
            few, valid, test = few_digits(dls, 10 if part == "search" else 200)
            if part == "search": found = measure_search(few, valid, test)
            else: found = measure_attack(few, [t[:1000] for t in test])
        else: found = measure_ways(part, *few_digits({"mnist": mnist, "digits": digits}[part](device="cpu")))
        save_results("augmentation", {**parts_so_far("augmentation"), part: found}, start,
                     f"seeds {SEEDS[0]} to {SEEDS[-1]}", indent=None)


if __name__ == "__main__": main()
