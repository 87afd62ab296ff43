"""What the Makefile does with notebooks: export, check, clean, run, address.

    python tools/notebooks.py export          write course_lib/ from nbs/
    python tools/notebooks.py check           fail if course_lib/ is not what nbs/ exports (changes nothing)
    python tools/notebooks.py clean           drop volatile metadata, number the cells in order
    python tools/notebooks.py run 02 A1       execute chapters (all of them without a name) and save them cleaned
    python tools/notebooks.py address [URL]   write the repository's address into badges and Colab installs
"""
import argparse
import difflib
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.doclinks import nbdev_export

ROOT = Path(__file__).resolve().parent.parent

def chapters(root=ROOT, names=()):
    "The notebooks in reading order; `names` are beginnings such as `02` or `A1_live`."
    found = sorted((root / "nbs").glob("*.ipynb"))
    picked = [nb for nb in found if not names or nb.name.startswith(tuple(names))]
    missing = [name for name in names if not any(nb.name.startswith(name) for nb in found)]
    if missing:
        sys.exit(f"No chapter begins with {', '.join(missing)}. There are: {', '.join(nb.stem for nb in found)}.")
    return picked


def export_to(folder):
    "Write the lessons' modules from `nbs/` into an empty folder; returns them as `{name: text}`."
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".*", "images"))
    nbdev_export.__wrapped__(path=str(folder / "nbs"))
    return exported(folder)


def exported(root):
    "The generated files of `course_lib/`: all but `__init__.py`, which is written by hand."
    return {p.name: p.read_text() for p in (root / "course_lib").glob("*.py") if p.name != "__init__.py"}


def export():
    "Replace the lessons' modules once the whole export has succeeded: one whose notebook is gone goes too."
    library = ROOT / "course_lib"
    with tempfile.TemporaryDirectory() as folder:
        files = export_to(Path(folder))
    for name in exported(ROOT).keys() - files.keys(): (library / name).unlink()
    for name, text in files.items(): (library / name).write_text(text)


def check():
    "Compare `course_lib/` with a fresh export made elsewhere, so that nobody's edit is overwritten."
    with tempfile.TemporaryDirectory() as folder:
        expected = export_to(Path(folder))
    found = exported(ROOT)
    report = []
    for name in sorted(expected.keys() ^ found.keys()):
        report.append(f"{name}: {'is missing' if name in expected else 'no notebook exports it'}\n")
    for name in sorted(expected.keys() & found.keys()):
        texts = (files[name].splitlines(keepends=True) for files in (expected, found))
        report += difflib.unified_diff(*texts, f"{name} (exported from nbs/)", f"course_lib/{name}")
    if report:
        sys.exit("".join(report[:60]) + "\n\ncourse_lib/ is not what the notebooks export. "
                 "Edit the notebook (its name stands at the top of the file), then run `make export`.")
    print(f"course_lib/ is what the notebooks export ({len(expected)} files).")


def clean(paths):
    "Metadata out, counts in: nbval wants cells with outputs numbered, nbdev's cleaning takes the numbers away."
    for path in paths:
        nbdev_clean.__wrapped__(fname=str(path))
        nb = nbformat.read(path, as_version=4)
        nb.metadata.pop("widgets", None)
        nb.metadata.language_info = {"name": "python"}
        nb.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
        code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
        for number, cell in enumerate(code, 1):
            cell.execution_count = number
            for output in cell.outputs:
                if "execution_count" in output: output.execution_count = number
        nbformat.write(nb, path)


def run(paths):
    """Execute in the folder of the notebooks, as JupyterLab does; save only what ran to its end, with the time that
    took."""
    for path in paths:
        nb = nbformat.read(path, as_version=4)
        start = time.perf_counter()
        NotebookClient(nb, timeout=600, resources={"metadata": {"path": str(path.parent)}},
                       store_widget_state=False).execute()
        seconds = time.perf_counter() - start
        nb.cells[0].source = re.sub(r"(?<=Time to run: )\d+(?= seconds)", f"{seconds:.0f}", nb.cells[0].source)
        nbformat.write(nb, path)
        clean([path])
        print(f"{path.name}: {seconds:.1f} s")


def address(url=None, root=ROOT):
    "Write the address into pyproject.toml if one is given, and from there into every notebook."
    project = root / "pyproject.toml"
    text = project.read_text()
    entry = re.compile(r'^Repository = "(https://github\.com/[\w.-]+/[\w.-]+)"$', re.MULTILINE)
    if url:
        url = url.removesuffix("/").removesuffix(".git")
        if not entry.match(f'Repository = "{url}"'):
            sys.exit(f"{url} is no repository's address. Expected the form https://github.com/owner/name.")
        project.write_text(text := entry.sub(f'Repository = "{url}"', text))
    url = entry.search(text)[1]
    slug = url.removeprefix("https://github.com/")
    for path in chapters(root):
        source = path.read_text()
        changed = re.sub(r"(colab\.research\.google\.com/github/)[^/]+/[^/]+(/blob/main/)", rf"\g<1>{slug}\2", source)
        changed = re.sub(r"git\+https://github\.com/[\w.-]+/[\w.-]+", f"git+{url}", changed)
        if changed != source: path.write_text(changed)
    print(f"Badges and Colab installs point at {url}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["export", "check", "clean", "run", "address"])
    parser.add_argument("names", nargs="*", help="chapters (02, A1, …), or the address")
    args = parser.parse_args()
    if args.action == "export": export()
    elif args.action == "check": check()
    elif args.action == "address": address(*args.names[:1])
    else: {"clean": clean, "run": run}[args.action](chapters(names=args.names))


if __name__ == "__main__":
    main()
