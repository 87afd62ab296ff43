"""Digits to a mean of 99 %: chapter 18's recipe against that of train_mnist_fast.

train_mnist_fast (github.com/tuomaso/train_mnist_fast) went from minutes to .76 seconds on a GPU. The settings of its
last step, written out anew here: convolution 1 → 24 5×5, pool, ReLU, convolution 24 → 32 3×3, pool, ReLU, linear 800 →
256, ReLU, linear 256 → 10; one epoch of the 60,000 images in their own order, 256 a batch; torch's Adam, betas .7 and
.9, OneCycleLR up to .01, which leaves the betas alone. Ours is `FASTEST`, as `python -m course_lib.speedrun` trains it:
375 batches of 128, from the images left when 5,000 are cut off. Both have their images in memory, normalised. The clock
starts before the network is made and stops after the last step; judging on the test images does not count. They take
turns, seed by seed, with one thread, after a round that does not count. Both lengths were fixed beforehand; if a mean
misses the goal, that is said. Without MNIST the digits that come with the course take its place, which says little.
"""
import statistics
import time
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from _measure import arguments, ratio, say_machine, table
from course_lib import DownloadError, digits, mnist
from course_lib.speedrun import FASTEST, accuracy_on, fit, make_learner
from course_lib.support.files import read_digits, read_mnist
from course_lib.support.paired import Paired, paired

OURS, THEIRS, LAST = "course_lib: FASTEST", "train_mnist_fast's recipe", "the same in channels_last"
SETTINGS = {"mnist": {"target": .99, "n_steps": 375, "ours": 128, "theirs": 256, "epochs": 1},
            "digits": {"target": .95, "n_steps": 200, "ours": 32, "theirs": 32, "epochs": 9}}


def load():
    "A name, our loaders, and the parts to train and to test as their recipe takes them."
    try: name, dls, parts = "mnist", mnist(device="cpu", n_valid=5000, download=False), read_mnist(download=False)
    except DownloadError as error:
        print(f"MNIST is not there, and the digits that come with the course take its place: {error}")
        name, dls, parts = "digits", digits(device="cpu", n_valid=249), read_digits()
    return name, dls, *(SimpleNamespace(x=((images.float() / 255 - .1307) / .3081)[:, None], y=y.long())
                        for images, y in parts)


def train_theirs(batches, memory_format, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.MaxPool2d(2),
                          nn.ReLU(), nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10))
    model = model.to(memory_format=memory_format)
    opt = torch.optim.Adam(model.parameters(), lr=.01, betas=(.7, .9))
    cycle = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=.01, total_steps=len(batches), cycle_momentum=False)
    for xb, yb in batches:
        opt.zero_grad()
        F.cross_entropy(model(xb), yb).backward()
        opt.step()
        cycle.step()
    return model


def train_ours(part, recipe, n_steps, seed):
    learn = make_learner(recipe, part, n_steps, seed)
    fit(learn, recipe)
    return learn.model


def take_turns(ways, seeds):
    """Seconds, seconds of the processor and accuracy, for each way a list over the seeds.

    ways: name -> (what trains from a seed, the part that judges).
    """
    seconds, worked, right = ({name: [] for name in ways} for _ in range(3))
    for seed in seeds:
        for name, (train, test) in ways.items():
            began, began_work = time.perf_counter(), time.process_time()
            model = train(seed)
            seconds[name].append(time.perf_counter() - began)
            worked[name].append(time.process_time() - began_work)
            right[name].append(accuracy_on(model, test))
    return seconds, worked, right


def say_accuracies(right, target):
    "Means with Student's intervals; who misses the target is named."
    print(f"\naccuracy on the test images (mean of {len(right[OURS])} seeds, 95 % interval)")
    for name, values in right.items():
        mean = Paired(torch.tensor(values, dtype=torch.float64))
        missed = f"   misses {target:.0%}" if mean.mean < target else ""
        print(f"  {name:55} {mean.mean:12.3%}   {mean.low:12.3%} … {mean.high:.3%}{missed}")
    points = paired(*([100 * value for value in right[name]] for name in (OURS, THEIRS)))
    print(f"  ours − theirs, in points: {points}")


def say_ratios(name, times, goal):
    "The median of each seed's ratio, since a machine that others use is slower at one time than at another."
    for theirs, ending, wanted in ((THEIRS, "", goal), (LAST, "_channels_last", "-")):
        ratio(name + ending, statistics.median(a / b for a, b in zip(times[OURS], times[theirs])), wanted)


def main():
    args = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    say_machine("torch", threads=1)
    name, dls, train, test = load()
    now, share, seeds = SETTINGS[name], .1 if args.quick else 1, range(3 if args.quick else 10)
    batches = [*zip(train.x.split(now["theirs"]), train.y.split(now["theirs"]))] * now["epochs"]
    batches = batches[:round(share * len(batches))]
    n_steps = round(share * now["n_steps"])
    print(f"{name}: {n_steps} batches of {now['ours']}; theirs {len(batches)} of {now['theirs']}"
          + ", a tenth of what takes them to the goal" * args.quick)
    recipe = FASTEST._replace(batch_size=now["ours"])
    ways = {OURS: (partial(train_ours, dls.train, recipe, n_steps), dls.test),
            THEIRS: (partial(train_theirs, batches, torch.contiguous_format), test),
            LAST: (partial(train_theirs, batches, torch.channels_last), test)}
    for warm_up in ways.values(): warm_up[0](0)
    seconds, worked, right = take_turns(ways, seeds)
    table("seconds to the end of training", seconds, "s")
    table("of these, the processor worked on it", worked, "s")
    say_accuracies(right, now["target"])
    goal = "<=0.4" if name == "mnist" and not args.quick else "-"
    called = f"speedrun_to_{100 * now['target']:.0f}" + "_digits" * (name == "digits")
    say_ratios(called, seconds, goal)
    print("\nA busy machine does not change much what they need of a processor's time:")
    say_ratios(f"{called}_processor_time", worked, "-")


if __name__ == "__main__": main()
