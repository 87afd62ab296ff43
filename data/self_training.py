"""What do images without labels bring? Writes data/results/self_training.json.

    python data/self_training.py [mnist] [digits] [few] [long] [meta] [pretraining] [thousand] [limits]

`digit_net`, 784 → 100 → 10, learns by SGD with momentum in one cycle of 300 batches of 50. Each of the seeds 0 to 9
draws its own labelled images, ten a class, its own initial weights and order of batches; all have the same images
without labels. Each rate is the one of highest validation accuracy, the mean of seeds 100 and 101, which are used for
nothing else, with rates on both sides of it, none better. The rounds of a noisy student share the first one's rate.
Test images judge. The nets of all seeds, or of all rates, are trained side by side, in one product of
stacked weights, which is much quicker than one after the other.

few: teachers and students with 100 labels. long: the same with four times as many steps. meta: meta pseudo labels,
with and without feedback. pretraining: letters first, images without labels, or both, at three numbers of labels.
thousand: a thousand labels, with four times as many steps. limits: ten and thirty labels, and letters among the images
without labels. digits has no meta, thousand and limits, and less of few, to save time.
"""
import copy
import math
import sys
import time
from functools import partial

import torch
from torch import nn

from course_lib import SGD, RandomAffine, TensorLoader, digits, glyph_backbone, mnist
from course_lib.regularization import Dropout, digit_net
from course_lib.self_training import meta_pseudo_labels, pseudo_label, with_pseudo_labels
from course_lib.sgd import first_batches, seeded
from course_lib.support.glyphs import GlyphLoader
from course_lib.support.results import parts_so_far, save_results
from course_lib.support.self_training import few_labels, without_labels
from course_lib.transfer import features

TRY_SEEDS, SEEDS, BATCH, STEPS, META_STEPS, ROUNDS = [100, 101], [*range(10)], 50, 300, 150, 3
RATES = [.025, .05, .1, .2]
MOVED = RandomAffine(15, translate=(.1, .1), scale=(.85, 1.15), shear=10)


def net_of(seed, p=0.):
    net = seeded(seed, digit_net)
    if p: net.insert(3, Dropout(p))
    return net


def one_cycle(lr, t):
    "Rate and momentum at t, from 0 to 1, as `fit_one_cycle` has them."
    bend = lambda a, b, t: a + (1 + math.cos(math.pi * (1 - t))) * (b - a) / 2
    if t < .25: return bend(lr / 25, lr, t / .25), bend(.95, .85, t / .25)
    return bend(lr, lr / 1e5, (t - .25) / .75), bend(.85, .95, (t - .25) / .75)


def fit_all(nets, data, rates, seeds, n_steps=STEPS, noise=None, p=0.):
    """Train nets of one shape (linear layers with ReLU between) side by side, each on its own (inputs, shares) and at
    its own rate; p: dropout before the last layer."""
    layers = [[module for module in net if isinstance(module, nn.Linear)] for net in nets]
    params = []
    for parts in zip(*layers):
        params += [torch.stack([part.weight.T for part in parts]), torch.stack([part.bias for part in parts])[:, None]]
    params = [param.detach().requires_grad_() for param in params]
    momenta = [torch.zeros_like(param) for param in params]
    lrs, generator = torch.tensor(rates)[:, None, None], torch.Generator().manual_seed(seeds[0])
    orders = [torch.cat([torch.randperm(len(x), generator=generator) for _ in range(-(-n_steps * BATCH // len(x)))])
              for x, _ in data]
    torch.manual_seed(seeds[0])
    for step in range(n_steps):
        rows = [order[step * BATCH:(step + 1) * BATCH] for order in orders]
        x, shares = (torch.stack([part[i][row] for part, row in zip(data, rows)]) for i in (0, 1))
        if noise: x = noise(x.flatten(0, 1), None)[0].view_as(x)
        x = x.flatten(2)
        for i in range(0, len(params), 2):
            if p and i == len(params) - 2: x = torch.nn.functional.dropout(x, p)
            x = torch.baddbmm(params[i + 1], x if i == 0 else x, params[i])
            if i < len(params) - 2: x = x.relu()
        loss = -(shares * x.log_softmax(2)).sum() / BATCH
        factor, beta = one_cycle(1., step / (n_steps - 1))
        with torch.no_grad():
            for param, momentum, grad in zip(params, momenta, torch.autograd.grad(loss, params)):
                momentum.mul_(beta).add_(grad)
                param.sub_(factor * lrs * momentum)
    with torch.no_grad():
        for i, parts in enumerate(zip(*layers)):
            for k, part in enumerate(parts):
                part.weight.copy_(params[2 * i][k].T)
                part.bias.copy_(params[2 * i + 1][k, 0])
    return nets


@torch.no_grad()
def right(model, part): return (model.eval()(part[0]).argmax(1) == part[1]).float().mean().item()


class Lab:
    "A data set, and nets trained for each seed at the rate that other seeds chose."
    def __init__(self, dls):
        self.name, self.rates, self.found = dls.name, {}, {}
        self.pool, self.hidden = without_labels(dls)
        self.valid, self.test = (dls.valid.x, dls.valid.y), (dls.test.x[:5000], dls.test.y[:5000])

    def labelled(self, seed, n_per_class=10): return few_labels(*self.pool, n_per_class, seed)

    def at_best_rate(self, name, start, data, rates=RATES, **how):
        "Nets by seed, trained at the best of the rates. start(seed) -> net; data(seed) -> (inputs, shares)."
        tried, found = {}, {seed: data(seed) for seed in [*SEEDS, *TRY_SEEDS]}
        nets, rates = {}, list(rates)
        while True:
            places = [(lr, seed) for lr in rates for seed in TRY_SEEDS]
            trained = fit_all([start(seed) for _, seed in places], [found[seed] for _, seed in places],
                              [lr for lr, _ in places], [seed for _, seed in places], **how)
            nets |= dict(zip(places, trained))
            for lr in rates: tried[lr] = sum(right(nets[lr, seed], self.valid) for seed in TRY_SEEDS) / len(TRY_SEEDS)
            lr = max(tried, key=tried.get)
            if min(tried) < lr < max(tried) or not 1e-3 < lr < 4: break
            rates = [float(f"{lr * 2 if lr == max(tried) else lr / 2:.2g}")]
        tried = dict(sorted(tried.items()))
        self.rates[name] = {"rates": list(tried), "tried": [round(value, 4) for value in tried.values()], "lr": lr}
        best = {seed: nets[lr, seed] for seed in TRY_SEEDS}
        return best | self.at_rate(name, lr, start, found, **how)

    def at_rate(self, name, lr, start, found, **how):
        nets = dict(zip(SEEDS, fit_all([start(seed) for seed in SEEDS], [found[seed] for seed in SEEDS],
                                       [lr] * len(SEEDS), SEEDS, **how)))
        self.keep(name, [round(right(nets[seed], self.test), 5) for seed in SEEDS])
        return nets

    def keep(self, name, shares):
        self.found[name] = shares
        print(self.name, name, round(sum(shares) / len(shares), 4), self.rates.get(name, ""), flush=True)

    def shares_of(self, seed, n_per_class):
        x, y = self.labelled(seed, n_per_class)
        return x, nn.functional.one_hot(y, 10).float()

    def teachers(self, name, n_per_class=10, start=net_of, **how):
        return self.at_best_rate(name, start, lambda seed: self.shares_of(seed, n_per_class), **how)

    def students(self, name, teachers, n_rounds=1, n_per_class=10, start=net_of, hidden=None, options=None, **how):
        hidden, options = self.hidden[0] if hidden is None else hidden, options or {}

        def data(seed): return with_pseudo_labels(teachers[seed], self.labelled(seed, n_per_class), hidden, **options)

        def new(seed): return start(seed + 500)
        teachers = self.at_best_rate(name, new, data, **how)
        for i in range(1, n_rounds):
            found = {seed: data(seed) for seed in SEEDS}
            new = lambda seed, i=i: start(seed + 500 + 500 * i)
            teachers = self.at_rate(f"{name}, round {i + 1}", self.rates[name]["lr"], new, found, **how)


NOISE = {"noise": MOVED, "p": .2}


def measure_few(lab):
    plain, noisy = lab.teachers("plain"), lab.teachers("noisy", **NOISE)
    for name, teachers in (("plain", plain), ("noisy", noisy)):
        lab.students(f"{name} > plain", teachers)
        lab.students(f"{name} > noisy", teachers, ROUNDS, **NOISE)
    if lab.name == "digits": return     # the rest on MNIST alone, to save time
    lab.students("moved alone", plain, noise=MOVED)
    lab.students("dropout alone", plain, p=.2)
    for name, options in (("hard", {"soft": False}), ("from 0.9", {"threshold": .9}),
                          ("not balanced", {"balance": False})):
        lab.students(name, noisy, options=options, **NOISE)


def measure_long(lab):
    "Four times as many steps, for teachers and students; and a rival with as many as both of them."
    steps, rates = 4 * STEPS, [.025, .05, .1]
    teachers = lab.teachers("noisy, as long", n_steps=steps, rates=rates, **NOISE)
    lab.students("noisy > noisy, as long", teachers, n_steps=steps, rates=rates, **NOISE)
    lab.teachers("noisy, twice as long", n_steps=2 * steps, rates=rates, **NOISE)


def measure_meta(lab):
    teachers = lab.teachers("teacher", **NOISE)

    def one(seed, teacher_lr, student_lr, feedback):
        torch.manual_seed(seed)
        labelled = TensorLoader(*lab.labelled(seed), 50, shuffle=True, transform=MOVED, seed=seed)
        hidden = TensorLoader(*lab.hidden, 50, shuffle=True, drop_last=True, seed=seed)
        student = net_of(seed + 500, .2)
        opts = [partial(SGD, lr=lr, momentum=.9) for lr in (teacher_lr, student_lr)]
        meta_pseudo_labels(copy.deepcopy(teachers[seed]), student, labelled, hidden, *opts, META_STEPS, feedback, MOVED)
        return student

    def search(settings, names):
        "One setting after the other, each until it has worse values on both sides, at the others' last values."
        tried = {}

        def score(settings):
            key = tuple(settings.values())
            if key not in tried:
                tried[key] = sum(right(one(seed, **settings), lab.valid) for seed in TRY_SEEDS) / len(TRY_SEEDS)
            return tried[key]
        for name in names:
            factor, line = 4 if name == "feedback" else 2, {}
            values = [settings[name] / factor, settings[name], settings[name] * factor]
            while True:
                for value in values: line[value] = score({**settings, name: value})
                best = max(line, key=line.get)
                if min(line) < best < max(line) or not 1e-3 < best < 1e4: break
                values = [best * factor if best == max(line) else best / factor]
            settings = {**settings, name: best}
        return settings, [[*key, round(value, 4)] for key, value in sorted(tried.items())]

    first = {"teacher_lr": .01, "student_lr": .05, "feedback": 0.}
    without, tried_without = search(first, ["student_lr", "teacher_lr", "student_lr"])
    given, tried = search({**without, "feedback": 16.}, ["feedback", "teacher_lr", "student_lr", "feedback"])
    lab.rates |= {"meta": {"settings": given, "tried": tried},
                  "without feedback": {"settings": without, "tried": tried_without}}
    other_sign = {**given, "feedback": -given["feedback"]}
    for name, settings in (("meta", given), ("without feedback", without), ("meta, other sign", other_sign)):
        lab.keep(name, [round(right(one(seed, **settings), lab.test), 5) for seed in SEEDS])


def letters(n, seed, digits_too=True):
    "Printed characters of chapter 11, with or without digits, and their classes."
    parts, count = [], 0
    for xb, yb in first_batches(GlyphLoader(seed=seed, device="cpu"), n):
        keep = yb >= (0 if digits_too else 10)
        parts.append((xb[keep], yb[keep]))
        count += len(parts[-1][1])
        if count >= n: break
    x, y = (torch.cat(part)[:n] for part in zip(*parts))
    return x, y


def readers_of_letters():
    "A function that gives for each seed a net whose first layer has learned printed characters; its head is new."
    x, y = letters(15_000, 0)
    printed, everyone = (x, nn.functional.one_hot(y, 62).float()), [*SEEDS, *TRY_SEEDS]

    def reader(seed):
        net = net_of(seed + 3000)
        net[-1] = seeded(seed, lambda: nn.Linear(100, 62))
        return net
    bodies = dict(zip(everyone, fit_all([reader(seed) for seed in everyone], [printed] * len(everyone),
                                        [.1] * len(everyone), everyone, 2 * STEPS)))

    def pretrained(seed):
        net = net_of(seed)
        net[1].load_state_dict(bodies[seed % 500][1].state_dict())
        return net
    return pretrained


def measure_pretraining(lab):
    pretrained, sizes = readers_of_letters(), (10, 100 if lab.name == "mnist" else 25, None)
    lab.found["sizes"] = [len(lab.labelled(0, size)[1]) for size in sizes]
    for size, n in zip(sizes, lab.found["sizes"]):
        for name, start in (("scratch", net_of), ("letters", pretrained)):
            if n == 100 and start is net_of: continue  # the noisy ones of `few`
            teachers = lab.teachers(f"{n} {name}", size, start, **NOISE)
            lab.students(f"{n} {name}, self-training", teachers, 1, size, start, **NOISE)
    backbone, seen = glyph_backbone(device="cpu"), copy.copy(lab)       # the same images, as the backbone sees them
    for part in ("pool", "hidden", "valid", "test"):
        x, y = getattr(lab, part)
        setattr(seen, part, (features(backbone, x), y))
    head = lambda seed: seeded(seed, lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 10)))
    for size, n in zip(sizes, lab.found["sizes"]):
        teachers = seen.teachers(f"{n} backbone", size, head)
        seen.students(f"{n} backbone, self-training", teachers, 1, size, head, p=.2)


def measure_thousand(lab):
    "A thousand labels and four times as many steps."
    how = {"n_per_class": 100, "n_steps": 4 * STEPS, "rates": [.025, .05, .1], **NOISE}
    lab.teachers("letters", start=readers_of_letters(), **how)
    lab.students("self-training", lab.teachers("scratch", **how), **how)


def measure_limits(lab):
    for n in (1, 3):
        teachers = lab.teachers(f"{10 * n} labels", n, **NOISE)
        lab.students(f"{10 * n} labels > noisy", teachers, 1, n, **NOISE)
    hidden, data = lab.hidden[0], {seed: lab.shares_of(seed, 10) for seed in [*SEEDS, *TRY_SEEDS]}
    lr = parts_so_far("self_training")[lab.name]["few"]["rates"]["noisy"]["lr"]   # the same teachers as there
    teachers = lab.at_rate("100 labels", lr, net_of, data, **NOISE)
    teachers |= dict(zip(TRY_SEEDS, fit_all([net_of(seed) for seed in TRY_SEEDS], [data[seed] for seed in TRY_SEEDS],
                                            [lr] * len(TRY_SEEDS), TRY_SEEDS, **NOISE)))
    others, _ = letters(len(hidden), 1, digits_too=False)
    mixed = torch.cat([hidden, others])
    for name, x, threshold in (("letters", others, 0.), ("digits and letters", mixed, 0.),
                               ("digits and letters, from 0.9", mixed, .9)):
        lab.students(name, teachers, hidden=x, options={"threshold": threshold}, **NOISE)
    for name, x in (("digits", hidden), ("letters", others)):
        kept = [len(pseudo_label(teachers[seed], x, .9)[0]) / len(x) for seed in SEEDS]
        lab.found[f"{name} kept from 0.9"] = [round(share, 5) for share in kept]


MEASURES = {"few": measure_few, "long": measure_long, "meta": measure_meta, "pretraining": measure_pretraining,
            "thousand": measure_thousand, "limits": measure_limits}


def main():
    torch.set_num_threads(1)
    data = {"mnist": mnist, "digits": digits}
    sets = [name for name in sys.argv[1:] if name in data] or data
    wanted = [name for name in sys.argv[1:] if name in MEASURES] or MEASURES
    for name in sets:
        parts = [part for part in wanted if name == "mnist" or part not in ("meta", "thousand", "limits")]
        sizes = {"n_train": 17_000, "n_valid": 2_000} if name == "mnist" else {}
        dls = data[name](device="cpu", **sizes)
        for part in parts:
            start, lab = time.perf_counter(), Lab(dls)
            MEASURES[part](lab)
            so_far = parts_so_far("self_training")
            seconds = {**so_far.get("seconds", {}), f"{name} {part}": round(time.perf_counter() - start)}
            so_far[name] = {**so_far.get(name, {}), part: lab.found | {"rates": lab.rates}}
            save_results("self_training", {"seconds": seconds, **{key: so_far[key] for key in data if key in so_far}},
                         time.perf_counter() - sum(seconds.values()), f"seeds {SEEDS[0]} to {SEEDS[-1]}", indent=None)


if __name__ == "__main__": main()
