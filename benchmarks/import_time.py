"""`import course_lib` against `import torch` alone, in fresh processes that take turns; and what of ours costs most."""
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from _measure import arguments, ratio, say_machine, table, take_turns

CONTENDERS = {"torch alone": "torch", "course_lib": "course_lib"}
ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"import time: +(\d+) \| +(\d+) \| ( *)(\S+)$")


def python(code, *options):
    "Run code in a fresh process that finds this checkout; -> what it printed to stdout and stderr."
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=True)


def seconds(module):
    """What the import takes of the processor, without the start of Python: an import hardly ever waits, and what else
    the machine does would be most of a clock's time."""
    return float(python(f"import time; start = time.process_time(); import {module}; "
                        "print(time.process_time() - start)").stdout)


def costs(loaded_anyway):
    """Milliseconds that each of our modules adds, itself and what it is first to load beyond those modules; dearest
    first, with the dearest of what it loads.

    Python reports a module after those that it has imported, which stand one level deeper.
    """
    waiting, found = {}, []  # level → [(name, ms, its dearest)] that wait for who has imported them
    for line in python("import course_lib", "-X", "importtime").stderr.splitlines():
        if not (match := LINE.match(line)): continue
        own, level, name = int(match[1]) / 1000, len(match[3]), match[4]
        below = waiting.pop(level + 2, [])
        foreign = [entry for entry in below if not entry[0].startswith("course_lib")]
        ms = own * (name not in loaded_anyway) + sum(entry[1] for entry in foreign)
        waiting.setdefault(level, []).append((name, ms))
        dearest = max(foreign, key=lambda entry: entry[1], default=None)
        if name.startswith("course_lib"): found.append((ms, name, dearest))
    return sorted(found, key=lambda entry: -entry[0])


def main():
    args = arguments(__doc__)
    say_machine("torch", threads=1)
    repeats, times = 5 if args.quick else 11, {name: [] for name in CONTENDERS}
    start = time.perf_counter()
    take_turns({name: lambda name=name: times[name].append(seconds(CONTENDERS[name])) for name in CONTENDERS}, repeats)
    times = {name: values[1:] for name, values in times.items()}  # the first round fills the disk's cache
    print(f"{repeats} fresh processes each, taking turns, in {time.perf_counter() - start:.0f} s")
    table("Processor time of the import", {name: [1000 * t for t in values] for name, values in times.items()}, "ms")

    plain = python("import torch", "-X", "importtime").stderr.splitlines()
    print("\nWhat course_lib adds, dearest first (one run under -X importtime, which makes all of it slower; ms)")
    for ms, name, dearest in costs({match[4] for line in plain if (match := LINE.match(line))})[:8]:
        print(f"  {name:35} {ms:8.1f}" + (f"   most of it {dearest[0]}" if dearest and dearest[1] > ms / 2 else ""))
    print()
    ratio("import_course_lib_over_torch", statistics.median(b / a for a, b in zip(*times.values())), "<=1.1")


if __name__ == "__main__":
    main()
