"""What do images without labels bring? Writes data/results/self_training.json.

    python data/self_training.py [mnist] [digits] [few] [meta] [pretraining] [limits]    some minutes for each set

`digit_net`, 784 → 100 → 10, learns by SGD with momentum 0.9 in one cycle of 150 batches of 100. Each of the seeds 0 to
9 draws its own labelled images, ten a class, its own initial weights and order of batches; all have the same images
without labels. Each rate is the one of highest validation accuracy, the mean of seeds 100 and 101, which are used for
nothing else, with worse rates on both sides of it. The rounds of a noisy student share the first one's rate. Test
images judge.

few: teachers and students with 100 labels. meta: meta pseudo labels, with and without feedback. pretraining: letters
first, images without labels, or both, at three numbers of labels. limits: ten and thirty labels, and letters among the
images without labels.
"""
import copy
import sys
import time
from functools import partial

import torch
from torch import nn

from course_lib import SGD, DataLoaders, Learner, RandomAffine, TensorLoader, digits, glyph_backbone, mnist
from course_lib.regularization import Dropout, digit_net, soft_cross_entropy
from course_lib.self_training import meta_pseudo_labels, noisy_student, pseudo_label
from course_lib.sgd import first_batches, seeded
from course_lib.support.glyphs import GlyphLoader
from course_lib.support.results import parts_so_far, save_results
from course_lib.support.self_training import few_labels, without_labels
from course_lib.transfer import features

TRY_SEEDS, SEEDS, BATCH, STEPS, META_STEPS, ROUNDS = range(100, 102), range(10), 100, 150, 150, 3
RATES = .05, .1, .2
MOVED = RandomAffine(15, translate=(.1, .1), scale=(.85, 1.15), shear=10)


def fit(model, loader, lr, n_steps=STEPS):
    "One cycle of n batches."
    few = DataLoaders(list(first_batches(loader, n_steps)), None)
    Learner(model, few, soft_cross_entropy, partial(SGD, momentum=.9), lr).fit_one_cycle(1, lr)


def new_net(seed, p=0.):
    net = seeded(seed, digit_net)
    if p: net.insert(3, Dropout(p))
    return net


@torch.no_grad()
def right(model, part): return (model.eval()(part[0]).argmax(1) == part[1]).float().mean().item()


def bracketed(score, first, factor=2, low=1e-3, high=4.):
    "The best of the values, with worse ones on both sides of it (or at a limit), and all that were tried."
    tried, values = {}, list(first)
    while True:
        for value in values:
            if value not in tried: tried[value] = score(value)
        best = max(tried, key=tried.get)
        if min(tried) < best < max(tried) or not low < best < high: return best, tried
        values = [float(f"{best * factor if best == max(tried) else best / factor:.2g}")]


class Lab:
    "A data set, and nets trained for each seed at the rate that other seeds chose."
    def __init__(self, dls):
        self.name, self.rates, self.found = dls.name, {}, {}
        self.pool, self.hidden = without_labels(dls)
        self.valid, self.test = (dls.valid.x, dls.valid.y), (dls.test.x[:5000], dls.test.y[:5000])

    def labelled(self, seed, n_per_class=10): return few_labels(*self.pool, n_per_class, seed)

    def at_best_rate(self, name, one, rates=RATES):
        "`one(seed, lr)` -> model, or models of which the first chooses the rate: {seed: the same at the best rate}."
        kept = {}

        def score(lr):
            kept[lr] = {seed: one(seed, lr) for seed in TRY_SEEDS}
            return sum(right(firsts(models)[0], self.valid) for models in kept[lr].values()) / len(TRY_SEEDS)
        lr, tried = bracketed(score, rates)
        models = kept[lr] | {seed: one(seed, lr) for seed in SEEDS}
        rates = sorted(tried)
        self.rates[name] = {"rates": rates, "tried": [round(tried[rate], 4) for rate in rates], "lr": lr}
        rounds = [[round(right(firsts(models[seed])[i], self.test), 5) for seed in SEEDS]
                  for i in range(len(firsts(models[SEEDS[0]])))]
        self.keep(name, rounds[0])
        for i, shares in enumerate(rounds[1:], 2): self.keep(f"{name}, round {i}", shares)
        return models

    def keep(self, name, shares):
        self.found[name] = shares
        print(self.name, name, round(sum(shares) / len(shares), 4), self.rates.get(name, ""), flush=True)

    def supervised(self, name, noise=None, p=0., n_per_class=10, n_steps=STEPS, start=new_net, rates=RATES):
        def one(seed, lr):
            x, y = self.labelled(seed, n_per_class)
            model, loader = start(seed, p), TensorLoader(x, y, min(BATCH, len(x)), shuffle=True, drop_last=True,
                                                         transform=noise, seed=seed)
            fit(model, loader, lr, n_steps)
            return model
        return self.at_best_rate(name, one, rates)

    def students(self, name, teachers, noise=None, p=0., n_rounds=1, n_per_class=10, n_steps=STEPS, start=new_net,
                 hidden=None, rates=RATES, **options):
        hidden = self.hidden[0] if hidden is None else hidden

        def one(seed, lr, n_rounds=1):
            torch.manual_seed(seed)
            return noisy_student(teachers[seed], lambda: start(seed + 500, p), self.labelled(seed, n_per_class), hidden,
                                 partial(fit, lr=lr, n_steps=n_steps), n_rounds, noise, batch_size=BATCH,
                                 seed=seed + 2000, **options)
        return self.at_best_rate(name, lambda seed, lr: one(seed, lr, n_rounds if seed in SEEDS else 1), rates)


def firsts(models): return models if isinstance(models, list) else [models]


def measure_few(lab):
    plain = lab.supervised("plain")
    moved = lab.supervised("moved", MOVED)
    lab.supervised("moved, as long as three rounds", MOVED, n_steps=STEPS * (1 + ROUNDS))
    for name, teachers in (("plain", plain), ("moved", moved)):
        lab.found[f"{name}, pseudo labels"] = [round(right(teachers[seed], lab.hidden), 5) for seed in SEEDS]
        lab.students(f"{name} > no noise", teachers)
        lab.students(f"{name} > noisy", teachers, MOVED, .2, ROUNDS)
    lab.students("plain > moved alone", plain, MOVED)
    lab.students("plain > dropout alone", plain, None, .2)
    lab.students("plain > noisy, hard", plain, MOVED, .2, soft=False)
    lab.students("plain > noisy, from 0.9", plain, MOVED, .2, threshold=.9)
    lab.students("plain > noisy, as they come", plain, MOVED, .2, balance=False)


def measure_meta(lab):
    teachers = lab.supervised("teacher", MOVED)

    def one(seed, teacher_lr, student_lr, feedback):
        torch.manual_seed(seed)
        labelled = TensorLoader(*lab.labelled(seed), BATCH, shuffle=True, transform=MOVED, seed=seed)
        hidden = TensorLoader(*lab.hidden, BATCH, shuffle=True, drop_last=True, seed=seed)
        student = new_net(seed + 500, .2)
        opts = [partial(SGD, lr=lr, momentum=.9) for lr in (teacher_lr, student_lr)]
        meta_pseudo_labels(copy.deepcopy(teachers[seed]), student, labelled, hidden, *opts, META_STEPS, feedback, MOVED)
        return student

    def search(settings, names):
        "One setting after the other, and again, until each has worse values on both sides, at the others' last values."
        tried = {}

        def score(**given):
            key = tuple(given.values())
            if key not in tried:
                tried[key] = sum(right(one(seed, **given), lab.valid) for seed in TRY_SEEDS) / len(TRY_SEEDS)
            return tried[key]
        for _ in range(2):
            before = dict(settings)
            for name in names:
                factor, (low, high) = (4, (.1, 1e4)) if name == "feedback" else (2, (5e-4, 1.))
                around = [settings[name] / factor, settings[name], settings[name] * factor]
                one_more = lambda value, name=name: score(**{**settings, name: value})
                settings[name], _ = bracketed(one_more, around, factor, low, high)
            if settings == before: break
        return settings, [[*key, round(value, 4)] for key, value in sorted(tried.items())]

    first = {"teacher_lr": .02, "student_lr": .05, "feedback": 0.}
    without, tried_without = search(first, ["student_lr", "teacher_lr"])
    given, tried = search({**without, "feedback": 16.}, ["feedback", "teacher_lr", "student_lr"])
    other_sign = {**given, "feedback": -given["feedback"]}
    lab.rates |= {"meta": {"settings": given, "tried": tried},
                  "without feedback": {"settings": without, "tried": tried_without}}
    for name, settings in (("meta", given), ("without feedback", without), ("meta, other sign", other_sign)):
        lab.keep(name, [round(right(one(seed, **settings), lab.test), 5) for seed in SEEDS])


def letters(n, seed, digits_too=True):
    "Printed letters of chapter 11, and their classes."
    parts, count = [], 0
    for xb, yb in first_batches(GlyphLoader(seed=seed, device="cpu"), n):
        keep = yb >= (0 if digits_too else 10)
        parts.append((xb[keep], yb[keep]))
        count += len(parts[-1][1])
        if count >= n: break
    x, y = (torch.cat(part)[:n] for part in zip(*parts))
    return x, y


def measure_pretraining(lab):
    printed, bodies, sizes = letters(15_000, 0), {}, (10, 100 if lab.name == "mnist" else 25, None)
    lab.found["sizes"] = [len(lab.labelled(0, size)[1]) for size in sizes]
    for seed in [*SEEDS, *TRY_SEEDS]:
        bodies[seed] = new_net(seed + 3000)
        bodies[seed][-1] = seeded(seed, lambda: nn.Linear(100, 62))
        fit(bodies[seed], TensorLoader(*printed, BATCH, shuffle=True, drop_last=True, seed=seed), .1, 4 * STEPS)

    def pretrained(seed, p=0.):
        "A net whose first layer has learned letters; its head is new."
        model = new_net(seed, p)
        model[1].load_state_dict(bodies[seed % 500][1].state_dict())
        return model

    backbone, seen = glyph_backbone(device="cpu"), {}

    def seen_by(x):
        "The backbone's features of images, computed once."
        key = x.data_ptr(), len(x)
        if key not in seen: seen[key] = features(backbone, x), x
        return seen[key][0]

    def head(seed, p=0.): return seeded(seed, lambda: nn.Sequential(nn.Flatten(), Dropout(p), nn.Linear(128, 10)))
    for size, n in zip(sizes, lab.found["sizes"]):
        n_steps = 2 * STEPS if size is None else STEPS
        for name, start in (("scratch", new_net), ("letters", pretrained)):
            teachers = lab.supervised(f"{n} {name}", MOVED, 0., size, n_steps, start)
            lab.students(f"{n} {name}, self-training", teachers, MOVED, .2, 1, size, n_steps, start)
    small = Lab.__new__(Lab)      # the same images, as the backbone sees them
    small.__dict__ |= lab.__dict__ | {part: (seen_by(x), y) for part, (x, y) in (
        ("pool", lab.pool), ("hidden", lab.hidden), ("valid", lab.valid), ("test", lab.test))}
    for size, n in zip(sizes, lab.found["sizes"]):
        n_steps = 2 * STEPS if size is None else STEPS
        teachers = small.supervised(f"{n} backbone", None, 0., size, n_steps, head)
        small.students(f"{n} backbone, self-training", teachers, None, .2, 1, size, n_steps, head)


def measure_limits(lab):
    for n in (1, 3):
        teachers = lab.supervised(f"{10 * n} labels", MOVED, n_per_class=n)
        lab.students(f"{10 * n} labels > noisy", teachers, MOVED, .2, 1, n)
    teachers = lab.supervised("100 labels", MOVED)
    hidden = lab.hidden[0]
    others, _ = letters(len(hidden), 1, digits_too=False)
    mixed = torch.cat([hidden, others])
    for name, x, threshold in (("letters", others, 0.), ("digits and letters", mixed, 0.),
                               ("digits and letters, from 0.9", mixed, .9)):
        lab.students(name, teachers, MOVED, .2, hidden=x, threshold=threshold)
    for name, x in (("digits", hidden), ("letters", others)):
        kept = [len(pseudo_label(teachers[seed], x, .9)[0]) / len(x) for seed in SEEDS]
        lab.found[f"{name} kept from 0.9"] = [round(share, 5) for share in kept]


MEASURES = {"few": measure_few, "meta": measure_meta, "pretraining": measure_pretraining, "limits": measure_limits}


def main():
    torch.set_num_threads(1)
    data = {"mnist": mnist, "digits": digits}
    sets = [name for name in sys.argv[1:] if name in data] or data
    parts = [name for name in sys.argv[1:] if name in MEASURES] or MEASURES
    for name in sets:
        sizes = {"n_train": 17_000, "n_valid": 2_000} if name == "mnist" else {}
        dls = data[name](batch_size=BATCH, device="cpu", **sizes)
        for part in parts:
            start, lab = time.perf_counter(), Lab(dls)
            MEASURES[part](lab)
            so_far = parts_so_far("self_training")
            seconds = {**so_far.get("seconds", {}), f"{name} {part}": round(time.perf_counter() - start)}
            so_far[name] = {**so_far.get(name, {}), part: lab.found | {"rates": lab.rates}}
            save_results("self_training", {"seconds": seconds, **{key: so_far[key] for key in data if key in so_far}},
                         time.perf_counter() - sum(seconds.values()), f"seeds {SEEDS[0]} to {SEEDS[-1]}", indent=None)


if __name__ == "__main__": main()
