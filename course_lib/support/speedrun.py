"""What stands behind chapter 18's recipes: images as bytes, checks of names, the clock, a leaderboard, a command line."""
import argparse
import json
import math
import os
import platform
import statistics
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

from .arguments import a_path, a_text, checked, refuse
from .checks import counted, described, positive_int, shorten
from .files import write_whole


def as_bytes(x):
    "Images as whole numbers from 0 to 255, and the lowest value and the span that bring them back."
    low, span = x.amin(), x.amax() - x.amin()
    return ((x - low) / span * 255).round().byte(), low, span


def check_tricks(tricks, known):
    "These names as a list; `ValueError` for one that is unknown, or comes twice, or a text in place of several."
    tricks = a_team("tricks", tricks)
    if unknown := [trick for trick in tricks if trick not in known]:
        raise ValueError(f"Among the tricks there is no {unknown[0]!r}. There are {', '.join(known)}.")
    return tricks


def a_team(name, value):
    "A list of names that all differ, of any kind that can be a key; `ValueError` otherwise."
    if isinstance(value, str) or not hasattr(type(value), "__iter__"): refuse(name, "several names, such as ['a', 'b']", value)
    found = list(value)
    try: n = len(set(found))
    except TypeError: refuse(name, "names, or what else can be a key of a dict", value)
    if n < len(found): raise ValueError(f"{name}: a name comes twice among {shorten(found)}.")
    return found


def a_recipe(name, value):
    if not hasattr(value, "tricks") or not hasattr(value, "batch_size"): refuse(name, "a Recipe, as recipe_with([…]) gives", value)
    return value


def parts_in_memory(name, value):
    parts = [getattr(value, part, None) for part in ("train", "test")]
    if not all(hasattr(part, "x") and hasattr(part, "y") for part in parts):
        refuse(name, "loaders .train and .test that hold their images in memory, as course_data() gives", value)
    return value


def check_ladder(target, ladder, accuracies):
    "`ValueError` for a ladder that does not rise or has another number of rungs than the accuracies."
    try: rises = 0 < ladder[0] and ladder[-1] < math.inf and all(a < b for a, b in zip(ladder, ladder[1:]))
    except (TypeError, IndexError, KeyError): rises = False
    if not rises: raise ValueError(f"ladder must be rising numbers of steps, such as [200, 300, 400], not {described(ladder)}.")
    try: fits = len(accuracies) == len(ladder) and all(len(row) and math.isfinite(sum(row)) for row in accuracies)
    except TypeError: fits = False
    if not fits: raise ValueError(f"accuracies must hold a row of seeds, finite numbers, for each of the {len(ladder)} rungs of the ladder.")


class Times:
    """Steps and seconds to the target, by team (a set of tricks), from what `data/speedrun.py` measured on a data set.

    found: its part of the file; steps_to: `(target, ladder, accuracies [rungs][seeds]) -> steps`, inf where none is there.
    """
    trained = "strides", "batchnorm", "one_cycle"       # what changes the number of steps
    players = "in_memory", "channels_last", *trained

    def __init__(self, found, steps_to):
        self.found, self.steps_to, self.known = found, steps_to, {}
        self.n_seeds = min(len(row) for arm in found["arms"].values() for row in arm["accuracies"].values())

    def named(self, team, among): return " ".join(name for name in among if name in team) or "none"

    def steps(self, team, rows=None):
        """`(steps, True)`, or `(those of the longest rung, False)` for a team that takes more.

        rows: places of the seeds to use; a list that is not changed afterwards.
        """
        name = self.named(team, (*self.trained, "smoothing"))
        key = name, tuple(rows) if rows is not None else None
        if key not in self.known:
            accuracies, seeds = self.found["arms"][name]["accuracies"], range(self.n_seeds) if rows is None else rows
            ladder = [int(rung) for rung in accuracies]
            steps = self.steps_to(self.found["target"], ladder, [[row[i] for i in seeds] for row in accuracies.values()])
            self.known[key] = (steps, True) if math.isfinite(steps) else (ladder[-1], False)
        return self.known[key]

    def ms(self, team): return self.found["ms_a_step"][self.named(team, self.players[:4])][0]

    def seconds(self, team, rows=None): return self.steps(team, rows)[0] * self.ms(team) / 1000

    def halvings(self, team, rows=None):
        "How often the time of the plain recipe is halved."
        return math.log2(self.seconds((), rows) / self.seconds(team, rows))


class Run(NamedTuple):
    "What came of one training; warm_up: seconds of what a process does only once."
    seed: int
    accuracy: float
    seconds: float
    warm_up: float


def finish(x):
    "The time now, once the device of x has done all it was asked."
    if x.device.type != "cpu": torch.accelerator.synchronize()
    return time.perf_counter()


def machine():
    "Where this runs, in words."
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{device}, {counted(os.cpu_count(), 'core')}, {counted(torch.get_num_threads(), 'thread')}"


def entry_of(name, recipe, runs, n_steps):
    "What a leaderboard says of these runs of a recipe: a dict of plain values."
    if not runs: raise ValueError("There are no runs to enter.")
    if odd := [run for run in runs if not isinstance(run, tuple) or not math.isfinite(run.seconds + run.accuracy)]:
        raise ValueError(f"runs must be a list of `Run`s with finite seconds and accuracy, not {described(odd[0])}.")
    if not hasattr(recipe, "_asdict"): raise ValueError(f"recipe must be a `Recipe`, not {described(recipe)}.")
    return {"name": name, "seconds": statistics.median(run.seconds for run in runs),
            "accuracy": statistics.fmean(run.accuracy for run in runs), "runs": len(runs), "n_steps": n_steps,
            "seeds": [run.seed for run in runs], "recipe": recipe._asdict(), "machine": machine(),
            "versions": f"Python {platform.python_version()}, torch {torch.__version__}", "date": str(date.today())}


def entries_in(path):
    "The entries of a leaderboard's file, [] if there is none; `ValueError` names a line that is none."
    if not path.exists(): return []
    if not path.is_file(): raise ValueError(f"{path} is no file, so it cannot be a leaderboard.")
    entries = []
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
        if not line.strip(): continue
        try:
            entry = json.loads(line)
            table_of_runs([entry])                             # has it all that a table says?
            if not math.isfinite(entry["seconds"] + entry["accuracy"]): raise ValueError("no number")
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            raise ValueError(f"Line {number} of {path} is no entry of a leaderboard: {line[:60]!r}.") from error
        entries.append(entry)
    return entries


def table_of_runs(entries, runs=()):
    "Runs, then entries, as lines of text."
    def seeds(entry): return "seed " + str(entry["seeds"][0]) if entry["runs"] == 1 else f"seeds {entry['seeds'][0]} to {entry['seeds'][-1]}"
    lines = [f"seed {run.seed:3}: {run.seconds:7.2f} s, {run.accuracy:.2%} right (warming up took {run.warm_up:.2f} s)" for run in runs]
    for place, entry in enumerate(entries, 1):
        lines.append(f"{place}. {entry['name']}: {entry['seconds']:.2f} s (the middle of {entry['runs']}), {entry['accuracy']:.2%} right "
                     f"on average, {entry['n_steps']} steps; {entry['machine']}; {entry['versions']}; {seeds(entry)}")
    return "\n".join(lines) or "No entries yet."


class Leaderboard:
    "Runs in a file of JSON lines, the fastest first, each with machine, versions and seeds; path: the file."
    @checked(path=a_path)
    def __init__(self, path): self.path = Path(path)

    @property
    def entries(self):
        "What the file holds, the fastest first; [] if there is none."
        return sorted(entries_in(self.path), key=lambda entry: entry["seconds"])

    @checked(name=a_text, recipe=a_recipe, n_steps=positive_int)
    def add(self, name, recipe, runs, n_steps):
        "Enter these `Run`s of a recipe; returns the entry."
        entry = entry_of(name, recipe, runs, n_steps)
        lines = [json.dumps(old) for old in [*self.entries, entry]]
        write_whole(self.path, ("\n".join(lines) + "\n").encode())
        return entry

    def __repr__(self): return table_of_runs(self.entries)


def said_number(at_least, whole=True, at_most=2**31 - 1):
    "A type for argparse: such a number, or a sentence."
    expected = f"a whole number from {at_least} to {at_most:,}" if whole else f"a number above {at_least}, up to {at_most:,}"

    def read(text):
        try: value = int(text) if whole else float(text)
        except ValueError: value = math.nan
        if not at_least <= value <= at_most or not whole and value == at_least:
            raise argparse.ArgumentTypeError(f"must be {expected}, not {text!r}")
        return value
    return read


def said_text(text):
    "A type for argparse: a text that is not empty."
    if not text.strip(): raise argparse.ArgumentTypeError("must not be empty")
    return text


def said_board(text):
    "A type for argparse: where a leaderboard's file is or can be. A wrong one is refused before anything is trained."
    try: entries_in(Path(text))
    except (ValueError, OSError) as error: raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def read_arguments(argv=None):
    "The command line of `python -m course_lib.speedrun`; what is wrong in it ends the command with a sentence."
    parser = argparse.ArgumentParser("python -m course_lib.speedrun", description=(
        "Train the fastest recipe of chapter 18 on digits, and print time and accuracy of each run."))
    parser.add_argument("--runs", type=said_number(1), default=3, help="how many, each with a seed of its own (3)")
    parser.add_argument("--seed", type=said_number(0), default=0, help="the first run's seed (0)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=said_number(2), default=375, help="batches of 128 (375)")
    length.add_argument("--epochs", type=said_number(0, whole=False, at_most=1000), help="the length in epochs, such as 0.9")
    parser.add_argument("--threads", type=said_number(1, at_most=1024), help="of the processor; by default as many as torch takes")
    parser.add_argument("--board", type=said_board, help="a leaderboard's file to enter the runs in")
    parser.add_argument("--name", type=said_text, default="fastest", help="what the board calls them (fastest)")
    return parser.parse_args(argv)


def run_command(recipe, train_once, load, argv=None):
    """What `python -m course_lib.speedrun` does: train some runs, print them, enter them in a board.

    train_once: `(recipe, loaders, n_steps, seed) -> Run`; load: `n_valid=… -> loaders`; argv: the command line's words.
    """
    args = read_arguments(argv)
    if args.threads: torch.set_num_threads(args.threads)
    dls = load(n_valid=5000)
    n_steps = max(round(args.epochs * len(dls.train.x) / recipe.batch_size), 2) if args.epochs else args.steps
    runs = [train_once(recipe, dls, n_steps, args.seed + i) for i in range(args.runs)]
    print(table_of_runs([entry_of(args.name, recipe, runs, n_steps)], runs))
    if args.board: Leaderboard(args.board).add(args.name, recipe, runs, n_steps)
