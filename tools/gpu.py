"""What needs a GPU: the tests marked `gpu`, then the GPU parts of the benchmarks; what was seen goes into one file.

    python tools/gpu.py                     all of it (exit status 3, and no test run, where there is no CUDA device)
    python tools/gpu.py --only tests        or `--only benchmarks`: each takes minutes
    python tools/gpu.py --cpu               the same tests on the CPU: shows which would run, proves nothing of a GPU

Needs torch, torchvision, numpy, pytest, safetensors, psutil and packaging. A test module or a benchmark that asks for
something else that is missing (ipywidgets, scikit-learn, …) is left out, and the file names it and what was missing.
"""
import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torchvision", "triton", "numpy", "safetensors", "matplotlib", "ipywidgets", "pytest")
BENCHMARKS = ("optimizer_step", "sweep", "data_pipeline", "image_pipeline")
NO_GPU = "No CUDA device here: nothing of a GPU was tested."
MISSING = re.compile(r"No module named '([\w.]+)'")


class Results:
    "A plugin of pytest that keeps what it saw."
    def __init__(self): self.outcomes, self.lines, self.left_out = Counter(), [], {}

    def pytest_collectreport(self, report):
        if not report.failed: return
        missing = MISSING.search(str(report.longrepr))
        if missing and not missing[1].startswith(("course_lib", "tiny")): self.left_out[report.nodeid] = missing[1]
        else:
            self.outcomes["error"] += 1
            self.lines += [f"  error    {report.nodeid}", str(report.longrepr)]

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed: return
        outcome = "error" if report.failed and report.when != "call" else report.outcome
        self.outcomes[outcome] += 1
        self.lines.append(f"  {outcome:8} {report.nodeid}")
        if report.failed: self.lines.append(str(report.longrepr))
        if report.skipped and isinstance(report.longrepr, tuple): self.lines.append(f"           {report.longrepr[2]}")


def run_tests(mark, paths):
    "Run the tests with this mark; -> (what was seen in lines, did at least one pass and none fail?)."
    results = Results()
    pytest.main(["-q", "-p", "no:cacheprovider", "-m", mark, "--continue-on-collection-errors", *map(str, paths)],
                plugins=[results])
    seen = results.outcomes
    lines = [f"tests marked {mark}: " + (", ".join(f"{n} {outcome}" for outcome, n in seen.items()) or "none found")]
    lines += [f"  left out {module}: {name} is missing" for module, name in results.left_out.items()]
    return lines + results.lines, seen["passed"] > 0 and not seen["failed"] and not seen["error"]


def run_benchmark(name, quick):
    "Run one; -> (its machine and RATIO lines, or why there are none; did it end well?)."
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *["--quick"] * quick]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    missing = MISSING.search(done.stderr)
    if done.returncode and missing: return [f"benchmark {name}: left out, {missing[1]} is missing"], True
    if done.returncode: return [f"benchmark {name}: failed", done.stderr[-3000:]], False
    return [f"benchmark {name}:", *(f"  {line}" for line in done.stdout.splitlines())], True


def versions():
    "Where this ran, in lines."
    def version(name):
        try: return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError: return "missing"
    lines = [f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
             ", ".join([f"torch {torch.__version__}", *(f"{name} {version(name)}" for name in PACKAGES)])]
    if torch.cuda.is_available():
        lines.append(f"CUDA {torch.version.cuda}: {torch.cuda.get_device_name()}, "
                     f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB")
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="the twins of the GPU tests, on the CPU")
    parser.add_argument("--only", choices=["tests", "benchmarks"])
    parser.add_argument("--full", action="store_true", help="benchmarks in full, not --quick")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "gpu.txt", help="the file (dist/gpu.txt)")
    parser.add_argument("paths", nargs="*", help="test files (all in tests/)")
    args = parser.parse_args(argv)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if not torch.cuda.is_available() and not args.cpu:
        args.out.write_text("\n".join([NO_GPU, *versions()]) + "\n")
        print(f"{NO_GPU} (--cpu runs the same tests on the CPU.)", file=sys.stderr)
        return 3
    lines, good = versions(), True
    if args.cpu: lines.insert(0, "CPU TWINS ONLY: nothing of a GPU was tested.")
    if args.only != "benchmarks":
        paths = args.paths or sorted((ROOT / "tests").glob("test_*.py"))
        seen, good = run_tests("gpu_twin" if args.cpu else "gpu", paths)
        lines += seen
    if args.only != "tests" and not args.cpu:
        for name in BENCHMARKS:
            seen, ended_well = run_benchmark(name, not args.full)
            lines, good = lines + seen, good and ended_well
            args.out.write_text("\n".join(lines) + "\n")       # so that a time limit leaves what there was
    lines.append(f"On the {'CPU' if args.cpu else 'GPU'}: {'all' if good else 'NOT all'} of it holds.")
    args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(line for line in lines if not line.startswith("  passed")), f"\nwritten to {args.out}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
