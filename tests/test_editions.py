"""The editions: no solution leaks into the students', the instructors' passes every check, the same bytes each time."""
import copy
import zipfile

import nbformat
import pytest

from course_lib.exercises import EXERCISES
from test_house import ROOT
from tools import editions

PATHS = sorted((ROOT / "nbs").glob("*.ipynb"))
CHAPTERS = sorted({exercise.chapter for exercise in EXERCISES.values()})


def book(chapter):
    [path] = (ROOT / "nbs").glob(f"{chapter}*.ipynb")
    return path


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_solution_stands_in_a_notebook(path):
    assert editions.leaks(nbformat.read(path, 4), editions.exercises_of(path.stem[:2])) == []


LINE = "return math.ceil(math.log(share) / math.log((b - a) / (b + a)))"
PLANTS = {"a source": lambda cell: cell.update(source=cell.source + f"\n{LINE}"),
          "an output": lambda cell: cell.update(outputs=[nbformat.v4.new_output("stream", text=LINE)]),
          "a fold": lambda cell: cell.update(source=f"<details><summary>Hint</summary>\n\n`{LINE}`\n\n</details>"),
          "an attachment": lambda cell: cell.update(attachments={"note.txt": {"text/plain": LINE}})}


@pytest.mark.parametrize("where", PLANTS)
def test_a_planted_leak_is_found(where):
    nb = nbformat.read(book("02"), 4)
    PLANTS[where](nb.cells[-2])
    assert ("steps_needed", LINE) in editions.leaks(nb, editions.exercises_of("02"))


def test_what_the_lesson_shows_and_other_changes_are_no_leak():
    nb = nbformat.read(book("02"), 4)
    nb.cells[5].source += f"\n{LINE}"  # the lesson itself shows it
    nb.cells[-1].source += "\nSomething else, that is long enough to be a solution's line."
    assert editions.leaks(nb, editions.exercises_of("02")) == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_instructors_edition_passes_every_check(chapter):
    "Its solutions, run as they stand there, with nothing else of the notebook."
    nb, space = editions.instructors(book(chapter)), {}
    exec("from course_lib.exercises import check", space)
    ours = [exercise for exercise in EXERCISES.values() if exercise.chapter == chapter]
    solutions = [cell for cell in nb.cells if cell.metadata.get("tags") == ["solution"]]
    assert len(solutions) == len(ours)
    for cell in solutions: exec(cell.source, space)
    for exercise in ours: assert exercise.check(space[exercise.name]).passed, exercise.name
    checks = [cell.source for cell in nb.cells if cell.source.startswith("assert (checked := check(")]
    assert len(checks) == len(ours)
    nbformat.validate(nb)


def test_the_same_source_gives_the_same_bytes(tmp_path, monkeypatch):
    texts = [nbformat.writes(editions.instructors(path)) for path in PATHS]
    assert texts == [nbformat.writes(editions.instructors(path)) for path in PATHS]
    assert "SHA-256" in texts[0] and "Instructor edition" in texts[0]
    for name in (*editions.TO_INSTALL, "nbs"): (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(editions, "ROOT", tmp_path)
    packed = []
    for _ in range(2):
        editions.student()
        packed.append((tmp_path / "dist" / "student.zip").read_bytes())
    assert packed[0] == packed[1]
    names = zipfile.ZipFile(tmp_path / "dist" / "student.zip").namelist()
    assert f"student/nbs/{PATHS[2].name}" in names and not any("tests" in name or "notes" in name for name in names)


def test_notes_stand_below_their_headings(tmp_path, monkeypatch):
    notes = tmp_path / "book" / "notes"
    notes.mkdir(parents=True)
    (notes / f"{book('02').stem}.md").write_text("## Exercises\n\nGive them ten minutes.\n")
    before = copy.deepcopy(editions.ROOT)
    monkeypatch.setattr(editions, "ROOT", tmp_path)
    nb = editions.instructors(before / "nbs" / book("02").name)
    at = [i for i, cell in enumerate(nb.cells) if cell.metadata.get("tags") == ["notes"]]
    assert [nb.cells[i].source for i in at] == ["Give them ten minutes."]
    assert "## Exercises" in nb.cells[at[0] - 1].source
