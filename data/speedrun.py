"""What is each trick of chapter 18 worth? Writes data/results/speedrun.json.

    python data/speedrun.py [mnist] [digits] [clock]      about an hour in all on one core; MNIST must be on disk

Accuracies: each of the eight subsets of strides, batchnorm and one_cycle is an arm, and all three with smoothing is a
ninth. (in_memory and channels_last change nothing but the time of a step, so they are on.) An arm's rate is the one of
highest accuracy on the validation images, which are cut from the training images: the mean of two seeds (100, 101)
that are used for nothing else, with worse rates on both sides of it. Then seeds 0 to 19, which draw weights and the
order of the images, are judged on the test images. At a constant rate one run is judged at each rung of a ladder of
lengths; with one cycle each rung is a training of its own, and the ladder is climbed or descended until the mean
accuracy crosses the target, and a lower one, which all arms reach. An arm that is not there at the longest rung stays
below: it takes more steps than that.

clock: the time of a step, for each subset of in_memory, channels_last, strides and batchnorm, and for the fastest with
flatten_parameters. All take turns; the shortest of the turns counts.

The file is written after each arm, and what it holds is not measured again: stop it and start it as you like.
"""
import sys
import time
from functools import partial
from itertools import chain, combinations

import torch

from course_lib import Adam, digits, flatten_parameters, mnist
from course_lib.learner import Callback
from course_lib.speedrun import accuracy_on, fit, make_learner, recipe_with
from course_lib.support.results import parts_so_far, save_results

TUNING, SEEDS = (100, 101), range(20)
FREE, TRAINED = ("in_memory", "channels_last"), ("strides", "batchnorm", "one_cycle")
SETTINGS = {
    "mnist": {"target": .99, "low_target": .986, "batch_size": 128, "tuned at": {"cycle": 300, "constant": 500},
              "cycle": [110, 150, 200, 275, 375, 500, 700, 950, 1300, 1800],
              "constant": [300, 400, 550, 750, 1000, 1300, 1700]},
    "digits": {"target": .92, "low_target": .915, "batch_size": 32, "tuned at": {"cycle": 150, "constant": 200},
               "cycle": [30, 40, 55, 75, 100, 140, 200, 280, 400, 560, 800],
               "constant": [40, 55, 75, 100, 140, 200, 280, 400, 560, 800]}}


def subsets(names): return chain.from_iterable(combinations(names, n) for n in range(len(names) + 1))


ARMS = [[*TRAINED, "smoothing"], *map(list, reversed([*subsets(TRAINED)]))]
def named(tricks): return " ".join(tricks) or "none"


class JudgeAt(Callback):
    "Accuracy on a part after these numbers of steps."
    def __init__(self, rungs, part): self.rungs, self.part, self.seen = rungs, part, []

    def after_step(self, learn):
        if learn.iter + 1 in self.rungs:
            self.seen.append(round(accuracy_on(learn.model, self.part), 5))
            learn.model.train()


def judged(recipe, dls, n_steps, seed, part, rungs=()):
    "The accuracy at the end, or after each of some numbers of steps."
    learn = make_learner(recipe, dls.train, n_steps, seed)
    if not rungs:
        fit(learn, recipe)
        return round(accuracy_on(learn.model, part), 5)
    judge = JudgeAt(rungs, part)
    learn.fit(1, cbs=[judge])
    return judge.seen


def tuned(tricks, dls, settings):
    "The rate of highest validation accuracy; the list grows until the best has worse ones on both sides."
    kind = "cycle" if "one_cycle" in tricks else "constant"
    n_steps, tried = settings["tuned at"][kind], {}

    def judge(lr):
        recipe = recipe_with([*FREE, *tricks], lr=lr, batch_size=settings["batch_size"])
        return sum(judged(recipe, dls, n_steps, seed, dls.valid) for seed in TUNING) / len(TUNING)
    first = .01 if kind == "cycle" else .0025 if "batchnorm" in tricks else .00125
    rates = [first, 2 * first, 4 * first]
    while True:
        for lr in rates: tried[lr] = tried.get(lr) or judge(lr)
        best = max(tried, key=tried.get)
        if min(tried) < best < max(tried) or len(tried) > 6: break
        rates = [best / 2, best * 2]
    return {"lr": best, "rates": sorted(tried), "valid": [round(tried[lr], 5) for lr in sorted(tried)]}


def mean_of(row): return sum(row) / len(row)


def climb(arm, recipe, dls, settings, seeds, save):
    "Accuracies `[seeds]` by rung with one cycle, around the target."
    ladder, rows = settings["cycle"], arm.setdefault("accuracies", {})

    def train(rung):
        row = rows.setdefault(str(rung), [])
        for seed in list(seeds)[len(row):]: row.append(judged(recipe, dls, rung, seed, dls.test))
    for rung in [*rows]: train(int(rung))                  # more seeds for what has been measured with fewer
    at = ladder.index(max(map(int, rows))) if rows else 3
    train(ladder[at])
    while mean_of(rows[str(ladder[at])]) < settings["target"] and at + 1 < len(ladder):
        at += 1
        train(ladder[at])
        save()
    low = ladder.index(min(map(int, rows)))
    while mean_of(rows[str(ladder[low])]) >= settings["low_target"] and low > 0:
        low -= 1
        train(ladder[low])
        save()
    arm["accuracies"] = {rung: rows[rung] for rung in sorted(rows, key=int)}


def follow(arm, recipe, dls, settings, seeds, save):
    "Accuracies `[seeds]` by rung at a constant rate; all rungs up to the one at which some first seeds are there."
    rows, ladder = arm.setdefault("accuracies", {}), settings["constant"]
    while True:
        last = max(map(int, rows), default=0)
        done = len(rows[str(last)]) if rows else 0
        if not rows:                                        # two seeds say how far it may go
            few = [judged(recipe, dls, ladder[-1], seed, dls.test, ladder) for seed in seeds[:2]]
            there = [rung for i, rung in enumerate(ladder) if mean_of([row[i] for row in few]) >= settings["target"]]
            rungs = [rung for rung in ladder if not there or rung <= there[0]]
            for i, rung in enumerate(rungs): rows[str(rung)] = [row[i] for row in few]
        else:
            rungs = [rung for rung in ladder if rung <= last]
            for seed in seeds[done:]:
                values = judged(recipe, dls, last, seed, dls.test, rungs)
                for rung, value in zip(rungs, values): rows[str(rung)].append(value)
                save()
            if mean_of(rows[str(last)]) >= settings["target"] or last == ladder[-1]: return
            rungs = [rung for rung in ladder if rung <= ladder[ladder.index(last) + 1]]     # one more, for all of them
            again = [judged(recipe, dls, rungs[-1], seed, dls.test, rungs) for seed in seeds]
            rows[str(rungs[-1])] = [row[-1] for row in again]


KEPT = "target", "low_target", "batch_size", "tuned at"
def new_part(name): return {**{key: SETTINGS[name][key] for key in KEPT}, "arms": {}}
def load(name): return mnist(device="cpu", n_valid=5000) if name == "mnist" else digits(device="cpu", n_valid=249)
def how(part): return f"seeds from {SEEDS[0]} on, {SEEDS[-1]} at most; measured last: {part}"


def measure(name, seeds, start):
    settings, parts = SETTINGS[name], parts_so_far("speedrun")
    dls, found = load(name), new_part(name)
    found |= {key: parts.get(name, {}).get(key, {}) for key in ("ms_a_step", "arms")}    # what is there stays
    def save(): save_results("speedrun", parts_so_far("speedrun") | {name: found}, start, how(name), indent=None)
    for tricks in ARMS:
        arm = found["arms"].setdefault(named(tricks), {})
        if "lr" not in arm:
            arm |= tuned(tricks, dls, settings)
            save()
        recipe = recipe_with([*FREE, *tricks], lr=arm["lr"], batch_size=settings["batch_size"])
        (climb if "one_cycle" in tricks else follow)(arm, recipe, dls, settings, list(seeds), save)
        save()
        means = {rung: f"{mean_of(row):.4f} ({len(row)})" for rung, row in arm["accuracies"].items()}
        print(name, named(tricks), arm["lr"], means, f"{time.process_time():.0f} s of one core", flush=True)


def clock(start, turns=6, n_steps=15):
    "Milliseconds a step, shortest and middle of some turns of twenty steps, after a turn to warm up."
    one_buffer = lambda groups: flatten_parameters([p for group in groups for p in group["params"]])
    flat = lambda groups, **hypers: Adam([one_buffer(groups)], **hypers)
    for name in SETTINGS:
        dls, batch_size = load(name), SETTINGS[name]["batch_size"]
        contenders = {named(tricks): (recipe_with(tricks, batch_size=batch_size), Adam)
                      for tricks in subsets((*FREE, "strides", "batchnorm"))}
        fastest = recipe_with((*FREE, *TRAINED), batch_size=batch_size)
        contenders |= {"fastest": (fastest, Adam), "fastest flat": (fastest, flat),
                       "fastest smoothing": (fastest._replace(smoothing=True), Adam)}
        times = {key: [] for key in contenders}
        for turn in range(turns + 1):
            for key, (recipe, opt) in contenders.items():
                learn = make_learner(recipe, dls.train, n_steps, turn, opt_func=partial(opt, betas=(.8, .95)))
                began = time.process_time()
                fit(learn, recipe)
                if turn: times[key].append(1000 * (time.process_time() - began) / n_steps)
        found = {key: [round(min(row), 3), round(sorted(row)[len(row) // 2], 3)] for key, row in times.items()}
        for key, row in found.items(): print(f"{name} {key:60} {row}", flush=True)
        parts = parts_so_far("speedrun")
        parts.setdefault(name, new_part(name))["ms_a_step"] = found
        save_results("speedrun", parts, start, how("clock"), indent=None)


def main():
    torch.set_num_threads(1)
    for part in sys.argv[1:] or ["mnist", "digits", "clock"]:
        start = time.perf_counter()
        name, _, n_seeds = part.partition(":")              # mnist:10 measures with the first ten seeds
        if name == "clock": clock(start)
        else: measure(name, SEEDS[:int(n_seeds or len(SEEDS))], start)


if __name__ == "__main__": main()
