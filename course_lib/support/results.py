"""What took longer than a chapter may: measured by a script in `data/`, kept as JSON, loaded by the chapters."""
import json
import platform
import time
from datetime import date

import torch

from .checks import counted
from .files import embedded, write_whole


def results(name):
    "What `data/NAME.py` measured, a dict; its entry `made` says where, when and with which versions."
    return json.loads(embedded(f"results/{name}.json").read_text())


def parts_so_far(name):
    "What `data/NAME.py` measured before, without `made`; {} where there is nothing yet. For scripts that measure part by part."
    if not embedded(f"results/{name}.json").exists(): return {}
    return {part: found for part, found in results(name).items() if part != "made"}


def save_results(name, found, start, how, threads=None, indent=1):
    """Keep what `data/NAME.py` has measured, whole or not at all: the dict `found`, and how it was made.

    start: `time.perf_counter()` when it began; how: its seeds or draws, in words; threads: in words, by default torch's.
    """
    seconds = time.perf_counter() - start
    made = (f"data/{name}.py on {platform.machine()}, {threads or counted(torch.get_num_threads(), 'thread')}, Python "
            f"{platform.python_version()}, torch {torch.__version__.partition('+')[0]}, {date.today()}; {how}; "
            + (f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"))
    path = embedded(f"results/{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps({"made": made, **found}, indent=indent) + "\n").encode())
