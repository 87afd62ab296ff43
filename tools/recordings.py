"""Record the live figures of the chapters as readers see them: python tools/recordings.py [NUMBER …] (all without).

A chapter is run up to its last live figure; where it shows one, a copy of the process records it, so that the chapter
goes on as if nothing had happened. The files go to dist/recordings: a script for the player, and what `tools/book.py`
needs to know. A chapter whose code, library and grids are as before is not run again.
"""
import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import time
import traceback
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "dist" / "recordings"
VIEW = "application/vnd.jupyter.widget-view+json"


def live_cells(notebook):
    "The numbers of the cells whose outputs hold a live figure."
    return [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"
            and any(VIEW in output.get("data", {}) for output in cell.outputs)]


@functools.cache
def library():
    "Paths and texts of the library and the grids: the same for all chapters."
    paths = [path for path in (ROOT / "course_lib").rglob("*.py") if path.parts[-2] != "exercises"]
    paths = sorted([*paths, ROOT / "book" / "grids.py"])
    return [text for path in paths for text in (str(path.relative_to(ROOT)), path.read_text())]


def source_hash(notebook):
    "Of what a recording depends on: the chapter's code, the library, the grids."
    parts = [*(cell.source for cell in notebook.cells if cell.cell_type == "code"), *library()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def kept(stem, notebook):
    "The list of a chapter's recordings, if it is still right; else None."
    path = FOLDER / f"{stem}.json"
    if not path.exists(): return None
    found = json.loads(path.read_text())
    return found["figures"] if found["hash"] == source_hash(notebook) else None


def figure(name, address, still, below, more=""):
    "A recorded figure as HTML: `book/player.js` puts it in the place of what stands still."
    return (f'<figure class="live" data-recording="{name}" data-address="{address}"{more}>{still}'
            f'<figcaption>{below}</figcaption></figure>')


def record_here(explorer, name, explorer_of):
    "In a copy of the process: record, write the files, and end."
    code = 1
    try:
        grid, options = explorer_of(explorer)
        recording = explorer.record(grid, **options)
        script = recording.script(name)
        (FOLDER / f"{name}.js").write_text(script)
        shots = FOLDER / name
        shots.mkdir(exist_ok=True)
        for old in shots.glob("*.png"): old.unlink()
        for number, png in recording.shots.items(): (shots / f"{number}.png").write_bytes(png)
        told = {"name": name, "settings": recording.settings, "words": recording.words, "note": recording.note,
                "image_quality": options.get("quality"),
                "alt": recording.data["alt"], "caption": explorer.caption, "bytes": len(script),
                "seconds": round(time.process_time(), 1)}
        (FOLDER / f"{name}.json").write_text(json.dumps(told, ensure_ascii=False))
        print(f"  {name}: {len(recording.words):,} settings, {len(script) / 1000:.0f} kB, {told['seconds']} s",
              file=sys.__stdout__, flush=True)
        code = 0
    except BaseException: traceback.print_exc()
    finally:
        os._exit(code)


def run_chapter(path):
    "Run a chapter up to its last live figure and record each; raises where a cell or a recording fails."
    import torch
    from IPython.core.interactiveshell import InteractiveShell

    from course_lib.support.live import Explorer
    sys.path.insert(0, str(ROOT / "book"))
    from grids import grid_of
    torch.set_num_threads(1)
    notebook, made = nbformat.read(path, as_version=4), []
    cells = live_cells(notebook)
    os.chdir(path.parent)
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    shell.displayhook.write_format_data = lambda *_: None
    shell.display_pub.publish = lambda *_, **__: None
    at = {}

    def shown(explorer):
        if at["i"] not in cells: return
        name = f"{path.stem}-{notebook.cells[at['i']].id}-{at['n']}"
        at["n"] += 1
        child = os.fork()
        if child == 0: record_here(explorer, name, grid_of)
        if os.waitpid(child, 0)[1]: raise RuntimeError(f"The recording of {name} failed.")
        made.append(name)

    Explorer._ipython_display_ = shown
    for i, cell in enumerate(notebook.cells[:max(cells, default=-1) + 1]):
        if cell.cell_type != "code" or "check" in cell.metadata.get("tags", []): continue
        at.update(i=i, n=0)
        with open(os.devnull, "w") as nobody, contextlib.redirect_stdout(nobody):
            shell.run_cell(cell.source, store_history=True).raise_error()
    if len(made) != sum(VIEW in output.get("data", {}) for i in cells for output in notebook.cells[i].outputs):
        raise RuntimeError(f"{path.stem} shows {len(made)} live figures; its saved outputs have another number.")
    (FOLDER / f"{path.stem}.json").write_text(json.dumps({"hash": source_hash(notebook), "figures": made}))


def in_a_process(path):
    "Start to run and record a chapter in a copy of the process: -> its id."
    child = os.fork()
    if child: return child
    code = 1
    try:
        run_chapter(path)
        code = 0
    except BaseException: traceback.print_exc()
    finally: os._exit(code)


def main(numbers):
    "Each chapter in a process of its own, one for each processor, four at most (WORKERS)."
    FOLDER.mkdir(parents=True, exist_ok=True)
    workers = int(os.environ.get("WORKERS") or min(4, os.cpu_count()))
    waiting, running, failed, since, busy = [], {}, [], time.perf_counter(), 0.
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        number = re.match("[A-Z]?[0-9]+", path.stem)[0]
        notebook = nbformat.read(path, as_version=4)
        if numbers and number not in numbers or not live_cells(notebook): continue
        if kept(path.stem, notebook) is None: waiting.append(path)
    n = len(waiting)
    while waiting or running:
        while waiting and len(running) < workers:
            path = waiting.pop(0)
            running[in_a_process(path)] = path.stem
        child, status, used = os.wait3(0)
        stem, seconds = running.pop(child), used.ru_utime + used.ru_stime
        busy += seconds
        if status: failed.append(stem)
        print(f"{stem}: {'not recorded' if status else 'recorded'}, busy {seconds:.0f} s", flush=True)
    if n: print(f"{n} chapters: {time.perf_counter() - since:.0f} s, busy {busy:.0f} s", flush=True)
    if failed: sys.exit(f"Not recorded: {', '.join(sorted(failed))}.")


if __name__ == "__main__":
    main(sys.argv[1:])
