"""What every benchmark says and does: the machine, contenders taking turns, medians with quartiles, ratios."""
import argparse
import os
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path


def arguments(description, folders=()):
    "The command line that all benchmarks share; folders: options that take one."
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, under 40 seconds")
    for name in folders: parser.add_argument(f"--{name}", type=Path, metavar="DIR")
    return parser.parse_args()


def say_machine(*packages, threads):
    "One line on where this ran."
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {threads} torch threads; Python {platform.python_version()}, "
          f"{versions}")


def take_turns(contenders, repeats):
    "Seconds of each contender's calls, round after round: name -> list. The first round warms up and does not count."
    times = {name: [] for name in contenders}
    for round_ in range(repeats + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            if round_: times[name].append(time.perf_counter() - start)
    return times


def table(title, rows, unit):
    "Median and quartiles of each row's values."
    print(f"\n{title} (median, quartiles; {unit})")
    for name, values in rows.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"  {name:55} {middle:12,.2f}   {low:12,.2f} … {high:,.2f}")


def ratio(name, value, goal): print(f"RATIO {name} {value:.3g} {goal}")
