"""What the Makefile does with notebooks: export, check, clean, run, address.

    python tools/notebooks.py export          write course_lib/ from nbs/
    python tools/notebooks.py check           fail if course_lib/ is not what nbs/ exports (changes nothing)
    python tools/notebooks.py clean           drop volatile metadata, number the cells, fold set-up, link chapters and
                                              sleeping figures to the book
    python tools/notebooks.py run 02 A1       execute chapters (all of them without a name) and save them cleaned
    python tools/notebooks.py address [URL]   write the repository's address into badges and Colab installs
"""
import argparse
import ast
import difflib
import hashlib
import re
import shutil
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.doclinks import nbdev_export

ROOT = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"
FOLDED_TAGS = {"plot"}                              # an author's word that a cell's code may be folded
LAST_VERSION = "last-version"                       # exported code whose small version stands open above it
STAYS_OPEN = {"exercise", "solution", "check"}      # what readers work in
# A paragraph that is nothing but links to chapters: what `clean` writes, and so may replace.
NAVIGATION = re.compile(r"(?m)^(?:← )?\[[^\]]+\]\(\w+\.ipynb\)(?: · \[[^\]]+\]\(\w+\.ipynb\))*(?: →)?$\n*")
BADGE = re.compile(r"(?m)^\[!\[.*open-in-colab.*$")
ASLEEP, IN_THE_BOOK = "and the sliders move it.", re.compile(r' <a class="in-the-book".*?</a>')


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


def is_preparation(source, before_the_first_section):
    """Does this cell only get things ready: the set-up, `default_exp`, imports?

    Before the first section a cell that imports may also call and assign (`use_style()`, `dls = course_data()`), as
    long as it defines nothing. Code that is exported counts only if it is nothing but imports: all else teaches.
    """
    if source.startswith(("# Set-up, the same in every chapter", "#| default_exp")): return True
    try: body = compile(source, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT).body
    except SyntaxError: return False                # a magic command
    imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in body]
    if not any(imports): return False
    if all(imports): return True
    simple = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign)
    return before_the_first_section and not is_exported(source) and all(isinstance(node, simple) for node in body)


def is_exported(source): return re.match(r"#\| *export", source) is not None


def fold(nb):
    "Fold preparations and cells tagged `plot` or `last-version`: `source_hidden` in JupyterLab, `hide-input` in pages."
    in_head = True
    for cell in nb.cells:
        if cell.cell_type == "markdown": in_head = in_head and not re.search(r"(?m)^## ", cell.source)
        if cell.cell_type != "code": continue
        tags = set(cell.metadata.get("tags", []))
        folded = not tags & STAYS_OPEN and (is_preparation(cell.source, in_head) or LAST_VERSION in tags
                                            or bool(tags & FOLDED_TAGS) and not is_exported(cell.source))
        kept = [tag for tag in cell.metadata.pop("tags", []) if tag != "hide-input"]
        cell.metadata.pop("jupyter", None)
        if kept or folded: cell.metadata.tags = kept + ["hide-input"] * folded
        if folded: cell.metadata.jupyter = {"source_hidden": True}


def title(path):
    "`02 Gradient descent`, from a notebook's first line."
    return nbformat.read(path, as_version=4).cells[0].source.split("\n")[0].removeprefix("# ").replace(" ·", "", 1)


def navigation(path):
    "The line that leads from a chapter to the one before, to the map and to the next, in the order of the files."
    paths = chapters(path.parent.parent)
    at = paths.index(path)
    links = [f"← [{title(paths[at - 1])}]({paths[at - 1].name})"] if at > 1 else []
    if at: links.append(f"[Map]({paths[0].name})")
    if at + 1 < len(paths): links.append(f"[{title(paths[at + 1])}]({paths[at + 1].name}) →")
    return " · ".join(links)


def link(nb, path):
    "Write the line of navigation under the badge of the first cell and at the end of the last."
    line, (head, tail) = navigation(path), (nb.cells[0], nb.cells[-1])
    head.source = BADGE.sub(lambda badge: f"{badge[0]}\n\n{line}", NAVIGATION.sub("", head.source), count=1)
    tail.source = f"{NAVIGATION.sub('', tail.source).rstrip()}\n\n{line}"


def pages_of(repository):
    "Where GitHub Pages shows a repository's book; None while the repository is not named."
    owner, name = repository.rstrip("/").split("/")[-2:]
    return None if owner == "OWNER" else f"https://{owner.lower()}.github.io/{name}/"


def lead_to_the_book(nb, path):
    "Below each live figure that sleeps: the way to where it moves without a kernel, once the book has an address."
    project = tomllib.loads((path.parent.parent / "pyproject.toml").read_text())
    book = pages_of(project["project"]["urls"]["Repository"])
    for cell in nb.cells:
        shown = [output.get("data", {}) for output in cell.get("outputs", [])]
        for n, data in enumerate(data for data in shown if "explorer-asleep" in data.get("text/html", "")):
            place = f"{book}{path.stem}.html#{path.stem}-{cell.id}-{n}"
            link = f' <a class="in-the-book" href="{place}">In the book it moves without a kernel.</a>' if book else ""
            data["text/html"] = IN_THE_BOOK.sub("", data["text/html"]).replace(ASLEEP, ASLEEP + link)


def clean(paths):
    """Metadata out, counts in: nbval wants cells with outputs numbered, nbdev's cleaning takes the numbers away.

    A widget's id, which is drawn anew in each run and leads nowhere in a file, is made of its place instead.
    """
    for path in paths:
        nbdev_clean.__wrapped__(fname=str(path))
        nb = nbformat.read(path, as_version=4)
        nb.metadata.pop("widgets", None)
        nb.metadata.language_info = {"name": "python"}
        nb.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
        code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
        for number, cell in enumerate(code, 1):
            cell.execution_count = number
            for place, output in enumerate(cell.outputs):
                if "execution_count" in output: output.execution_count = number
                if WIDGET in output.get("data", {}):
                    output.data[WIDGET]["model_id"] = hashlib.md5(f"{cell.id} {place}".encode()).hexdigest()
        fold(nb)
        link(nb, path)
        lead_to_the_book(nb, path)
        nbformat.write(nb, path)


def retimed(source, seconds):
    "A first cell with the time to run put right, if that has moved by more than a third: smaller moves are noise."
    said = re.search(r"(?<=Time to run: )\d+(?= seconds)", source)
    if not said or abs(seconds - int(said[0])) <= int(said[0]) / 3: return source
    return f"{source[:said.start()]}{max(1, round(seconds))}{source[said.end():]}"


def run(paths):
    """Execute in the folder of the notebooks, as JupyterLab does; save only what ran to its end, with the time that
    took."""
    for path in paths:
        if (kept := path.parent / "course_progress.json").exists():
            sys.exit(f"{kept} remembers a reader's answers, which would be saved in chapter 00. Move it away first.")
        nb = nbformat.read(path, as_version=4)
        start = time.perf_counter()
        NotebookClient(nb, timeout=600, resources={"metadata": {"path": str(path.parent)}},
                       store_widget_state=False, record_timing=False).execute()
        seconds = time.perf_counter() - start
        nb.cells[0].source = retimed(nb.cells[0].source, seconds)
        nbformat.write(nb, path)
        clean([path])
        print(f"{path.name}: {seconds:.1f} s")


def address(url=None, root=ROOT):
    "Write the address into pyproject.toml if one is given, and from there into every notebook and CITATION.cff."
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
    citation = root / "CITATION.cff"
    citation.write_text(re.sub(r'(?m)^repository-code: .*$', f'repository-code: "{url}"', citation.read_text()))
    for path in chapters(root):
        source = path.read_text()
        changed = re.sub(r"(colab\.research\.google\.com/github/)[^/]+/[^/]+(/blob/main/)", rf"\g<1>{slug}\2", source)
        changed = re.sub(r"git\+https://github\.com/[\w.-]+/[\w.-]+", f"git+{url}", changed)
        if changed != source: path.write_text(changed)
        nb = nbformat.read(path, as_version=4)
        before = nbformat.writes(nb)
        lead_to_the_book(nb, path)
        if nbformat.writes(nb) != before: nbformat.write(nb, path)
    print(f"Badges, Colab installs and the citation point at {url}.")


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
