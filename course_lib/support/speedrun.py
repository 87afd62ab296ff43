"""What stands behind chapter 18's recipes: images as bytes, checks of names, the clock, a leaderboard's lines, a command line's words."""
import argparse
import json
import math
import os
import platform
import statistics
import time
from datetime import date

import torch

from .checks import described


def as_bytes(x):
    "Images as whole numbers from 0 to 255, and the lowest value and the span that bring them back."
    low, span = x.amin(), x.amax() - x.amin()
    return ((x - low) / span * 255).round().byte(), low, span


def check_tricks(tricks, known):
    "These names as a list; `ValueError` for one that is unknown, or comes twice, or a text in place of several."
    if isinstance(tricks, str): raise ValueError(f"tricks must be several names, such as [{tricks!r}], not one text.")
    tricks = list(tricks)
    if unknown := [trick for trick in tricks if trick not in known]:
        raise ValueError(f"There is no trick {unknown[0]!r}. There are {', '.join(known)}.")
    return check_team(tricks)


def check_team(players):
    "The players as a list; `ValueError` for one text, for nobody that can be told apart, for one who comes twice."
    if isinstance(players, str): raise ValueError(f"players must be several names, such as [{players!r}], not one text.")
    players = list(players)
    if len(set(players)) < len(players): raise ValueError(f"A name comes twice among {players!r}.")
    return players


def check_ladder(target, ladder, accuracies):
    "`ValueError` for a ladder that does not rise or has another number of rungs than the accuracies."
    ladder = list(ladder)
    if not ladder or any(b <= a for a, b in zip(ladder, ladder[1:])) or ladder[0] <= 0:
        raise ValueError(f"ladder must be rising numbers of steps, such as [200, 300, 400], not {described(ladder)}.")
    if len(accuracies) != len(ladder) or not all(len(row) for row in accuracies):
        raise ValueError(f"accuracies must hold a row of seeds for each of the {len(ladder)} rungs of the ladder.")


def finish(x):
    "The time now, once the device of x has done all it was asked."
    if x.device.type != "cpu": torch.accelerator.synchronize()
    return time.perf_counter()


def machine():
    "Where this runs, in words."
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def entry_of(name, recipe, runs, n_steps):
    "What a leaderboard says of these runs of a recipe: a dict of plain values."
    if not runs: raise ValueError("There are no runs to enter.")
    return {"name": name, "seconds": statistics.median(run.seconds for run in runs),
            "accuracy": statistics.fmean(run.accuracy for run in runs), "runs": len(runs), "n_steps": n_steps,
            "seeds": [run.seed for run in runs], "recipe": recipe._asdict(), "machine": machine(),
            "versions": f"Python {platform.python_version()}, torch {torch.__version__}", "date": str(date.today())}


def entries_in(path):
    "The entries of a leaderboard's file, [] if there is none; `ValueError` names a line that is none."
    if not path.exists(): return []
    entries = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip(): continue
        try:
            entry = json.loads(line)
            if not math.isfinite(entry["seconds"] + entry["accuracy"]): raise ValueError("no number")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"Line {number} of {path} is no entry of a leaderboard: {line[:60]!r}.") from error
        entries.append(entry)
    return entries


def table_of_runs(entries, runs=()):
    "Runs, then entries, as lines of text."
    lines = [f"seed {run.seed:3}: {run.seconds:7.2f} s, {run.accuracy:.2%} right (warming up took {run.warm_up:.2f} s)" for run in runs]
    for place, entry in enumerate(entries, 1):
        lines.append(f"{place}. {entry['name']}: {entry['seconds']:.2f} s (the middle of {entry['runs']}), {entry['accuracy']:.2%} right "
                     f"on average, {entry['n_steps']} steps; {entry['machine']}; {entry['versions']}; seeds {entry['seeds'][0]} to {entry['seeds'][-1]}")
    return "\n".join(lines) or "No entries yet."


def said_number(at_least, whole=True):
    "A type for argparse: such a number, or a sentence."
    kind = "a whole number" if whole else "a number"

    def read(text):
        expected = f"must be {kind} {'from' if whole else 'above'} {at_least}{' on' if whole else ''}, not {text!r}"
        try: value = int(text) if whole else float(text)
        except ValueError: raise argparse.ArgumentTypeError(expected) from None
        if not math.isfinite(value) or value < at_least or not whole and value <= at_least: raise argparse.ArgumentTypeError(expected)
        return value
    return read
