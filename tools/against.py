"""This checkout's benchmarks against another's, taking turns: did a change make anything slower?

    python tools/against.py ../before --rounds 3 --quick loop_overhead sweep

runs each script in both checkouts, turn by turn, and divides the figures of their RATIO lines, new by old. Whether
more is better, a line's goal says.
"""
import argparse
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def figures(checkout, script, quick):
    "What the script prints there: name → (value, goal)."
    command = [sys.executable, f"benchmarks/{script}.py", *["--quick"] * quick]
    done = subprocess.run(command, cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, capture_output=True,
                          text=True)
    if done.returncode: sys.exit(f"{script} failed in {checkout}:\n{done.stderr}")
    lines = (line.split() for line in done.stdout.splitlines() if line.startswith("RATIO "))
    return {name: (float(value), goal) for _, name, value, goal in lines}


def verdict(quotient, goal):
    "In words, with a tenth either way for noise."
    if goal.startswith(">="): quotient = 1 / quotient
    return "slower" if quotient > 1.1 else "faster" if quotient < .9 else "level"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a checkout of the code to compare with")
    parser.add_argument("scripts", nargs="+", help="names of benchmarks, without .py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="run the scripts with --quick")
    args = parser.parse_args()
    if not (args.other / "benchmarks").is_dir(): parser.error(f"{args.other} has no folder benchmarks")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for script in args.scripts:
        runs = [(figures(args.other.resolve(), script, args.quick), figures(ROOT, script, args.quick))
                for _ in range(args.rounds)]
        shared = [name for name in runs[0][1] if all(name in figures for run in runs for figures in run)]
        print(f"\n{script}, {args.rounds} rounds (old, new: medians; new / old: median of the rounds)")
        for name in shared:
            old, new = ([run[side][name][0] for run in runs] for side in (0, 1))
            quotient = statistics.median(b / a for a, b in zip(old, new))
            print(f"  {name:62} {statistics.median(old):9.3g} {statistics.median(new):9.3g} {quotient:6.2f}  "
                  f"{verdict(quotient, runs[0][1][name][1])}", flush=True)


if __name__ == "__main__":
    main()
