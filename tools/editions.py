"""The editions that are handed out: `nbs/` is the students'.

    python tools/editions.py student         dist/student/ and dist/student.zip: notebooks, pictures, what to install
    python tools/editions.py instructor      dist/instructor/: the same with solutions, a plan and notes for presenters
                                             from `book/notes/NN_name.md`
    python tools/editions.py leaks           fails where a line of a solution stands in a notebook

The same source gives the same bytes.
"""
import argparse
import hashlib
import inspect
import json
import re
import shutil
import sys
import types
import zipfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
TO_INSTALL = ("environment.yml", "pyproject.toml", "constraints.txt", "LICENSE", "LICENSE-CC-BY-4.0")
LEAST = 20  # characters of a line that could be nothing but a solution's


def exercises_of(chapter):
    sys.path.insert(0, str(ROOT))
    from course_lib.exercises import EXERCISES
    return [exercise for exercise in EXERCISES.values() if exercise.chapter == chapter]


def texts(cell):
    "All that a reader could read of a cell: source, outputs, attachments."
    yield cell.source
    for output in cell.get("outputs", []): yield json.dumps(output, ensure_ascii=False)
    if "attachments" in cell: yield json.dumps(cell.attachments, ensure_ascii=False)


def leaks(nb, exercises):
    "Lines of solutions that stand in a notebook, but neither in their stub nor in the lesson above the exercises."
    start = next((i for i, cell in enumerate(nb.cells) if re.search(r"(?m)^## Exercise", cell.source)), len(nb.cells))
    lesson = "\n".join(cell.source for cell in nb.cells[:start])
    shown = "\n".join(text for cell in nb.cells[start:] for text in texts(cell))
    shown += "\n".join(text for cell in nb.cells[:start] for text in list(texts(cell))[1:])
    found = []
    for exercise in exercises:
        for line in map(str.strip, inspect.getsource(exercise.answer).split("\n")):
            if len(line) < LEAST or line in exercise.stub or line in lesson: continue
            if line in shown or json.dumps(line, ensure_ascii=False)[1:-1] in shown: found.append((exercise.name, line))
    return found


def solution_cell(exercise):
    "The solution as a cell, with the imports that it needs and why it is one."
    module, source = inspect.getmodule(exercise.answer), inspect.getsource(exercise.answer).rstrip()
    imports = set()
    for name in sorted(set(re.findall(r"\b\w+\b", source)) & vars(module).keys() - {exercise.name}):
        value = vars(module)[name]
        if isinstance(value, types.ModuleType):
            imports.add(f"import {value.__name__}" + (f" as {name}" if name != value.__name__ else ""))
        else: imports.add(f"from {getattr(value, '__module__', module.__name__)} import {name}")
    why = "\n".join(f"# {line}" for line in re.findall(r".{1,96}(?:\s|$)", exercise.why))
    return "\n".join(sorted(imports)) + ("\n\n\n" if imports else "") + source + "\n\n" + why


def cell(kind, source, tags, seed):
    made = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}[kind](source)
    made.metadata.tags, made.id = tags, hashlib.sha256(seed.encode()).hexdigest()[:8]
    return made


def notes_of(path):
    """Heading -> (minutes, notes), of a Markdown file whose headings are the chapter's, each with "N min" below it."""
    if not path.exists(): return {}
    parts = re.split(r"(?m)^(#+ .*)$", path.read_text())[1:]
    notes = {}
    for heading, text in zip(parts[::2], parts[1::2]):
        if not (found := re.match(r"\s*(\d+) min\n", text)):
            raise ValueError(f"{path.name}: below {heading!r} there must be its time, such as '5 min'.")
        notes[heading.strip()] = int(found[1]), text[found.end():].strip()
    return notes


def headings_of(cell): return re.findall(r"(?m)^##+ .*$", cell.source) if cell.cell_type == "markdown" else []


def plan_of(notes):
    "How long each section takes in class, as a table; the notes of its parts count with it."
    sections = {}
    for heading, (minutes, _) in notes.items():
        if heading.startswith("## "): section = heading[3:]
        sections[section] = sections.get(section, 0) + minutes
    rows = "\n".join(f"| {section} | {minutes} |" for section, minutes in sections.items())
    return f"| Section | Minutes |\n|---|---:|\n{rows}\n| **In all** | **{sum(sections.values())}** |"


def title_cells(title, path, notes):
    "The first cell under the instructors' badge, where the edition comes from, and the plan."
    badge = "![Instructor edition](images/instructor-edition.svg)"
    title.source = re.sub(r"(?m)^\[!\[.*open-in-colab.*$", badge, title.source)
    stamp = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    yield title
    yield cell("markdown", f"**Instructor edition, with solutions.** Made from `nbs/{path.name}`, SHA-256 {stamp}….",
               ["instructor"], f"{path.stem} stamp")
    if notes: yield cell("markdown", plan_of(notes), ["instructor"], f"{path.stem} plan")


def instructors(path):
    "The notebook with solutions in their places, checks that must pass, plan, notes, and the stamp of its source."
    nb, name = nbformat.read(path, 4), path.stem
    by_stub = {exercise.stub: exercise for exercise in exercises_of(name[:2])}
    notes = notes_of(ROOT / "book" / "notes" / f"{name}.md")
    if unknown := notes.keys() - {heading for old in nb.cells for heading in headings_of(old)}:
        raise ValueError(f"The notes of {name} have headings that the notebook lacks: {sorted(unknown)}.")
    cells = list(title_cells(nb.cells[0], path, notes))
    for old in nb.cells[1:]:
        cells.append(old)
        for heading in headings_of(old):
            if heading not in notes: continue
            minutes, said = notes[heading]
            said = f"*For the presenter, {minutes} min.*\n\n{said}"
            cells.append(cell("markdown", said, ["notes"], f"{name} {heading}"))
            cells[-1].metadata.slideshow = {"slide_type": "notes"}
        if old.cell_type == "code" and (exercise := by_stub.get(old.source)):
            cells.append(cell("code", solution_cell(exercise), ["solution"], f"{name} {exercise.name}"))
        if "check" in old.metadata.get("tags", []) and re.fullmatch(r"check\(\w+\)", old.source):
            old.source = f"assert (checked := {old.source}), checked\nchecked"
            old.outputs, old.execution_count = [], None
    nb.cells = cells
    return nb


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".*", "course_progress.json"))
    return folder


def instructor():
    folder = fresh(ROOT / "dist" / "instructor")
    shutil.copy(ROOT / "book" / "instructor-edition.svg", folder / "nbs" / "images")
    for path in sorted((ROOT / "nbs").glob("*.ipynb")): nbformat.write(instructors(path), folder / "nbs" / path.name)
    print(f"written to {folder}")


def student():
    folder = fresh(ROOT / "dist" / "student")
    for name in TO_INSTALL: shutil.copy(ROOT / name, folder)
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(str(path.relative_to(folder.parent)), (1980, 1, 1, 0, 0, 0))
            file.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    print(f"written to {folder} and {folder.with_suffix('.zip')}")


def say_leaks():
    lines = [f"{path.name}: a line of the solution of {exercise}: {line}"
             for path in sorted((ROOT / "nbs").glob("*.ipynb"))
             for exercise, line in leaks(nbformat.read(path, 4), exercises_of(path.stem[:2]))]
    if lines: sys.exit("\n".join(lines))
    print("no line of a solution stands in a notebook")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edition", choices=["student", "instructor", "leaks"])
    {"student": student, "instructor": instructor, "leaks": say_leaks}[parser.parse_args().edition]()
