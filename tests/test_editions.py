"""The editions: no solution leaks into the students', the instructors' passes every check, the same bytes each time."""
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


NOTES = "## Exercises\n\n10 min\n\nGive them ten minutes.\n\n## Summary\n\n2 min\n\nAsk for it.\n"


def with_notes(folder, text, monkeypatch):
    notes = folder / "book" / "notes"
    notes.mkdir(parents=True)
    (notes / f"{book('02').stem}.md").write_text(text)
    monkeypatch.setattr(editions, "ROOT", folder)


def test_notes_stand_below_their_headings_and_the_plan_below_the_title(tmp_path, monkeypatch):
    path = book("02")
    with_notes(tmp_path, NOTES, monkeypatch)
    nb = editions.instructors(path)
    at = [i for i, cell in enumerate(nb.cells) if cell.metadata.get("tags") == ["notes"]]
    assert [nb.cells[i].source for i in at] == ["*For the presenter, 10 min.*\n\nGive them ten minutes.",
                                                "*For the presenter, 2 min.*\n\nAsk for it."]
    assert "## Exercises" in nb.cells[at[0] - 1].source and "| **In all** | **12** |" in nb.cells[2].source
    assert "instructor-edition.svg" in nb.cells[0].source and "open-in-colab" not in nb.cells[0].source


@pytest.mark.parametrize("text, words", [("## Exercises\n\nTen minutes.\n", "its time"),
                                         ("## Exercise\n\n3 min\n", "lacks")])
def test_notes_without_time_or_under_a_heading_that_is_none_are_refused(tmp_path, monkeypatch, text, words):
    path = book("02")
    with_notes(tmp_path, text, monkeypatch)
    with pytest.raises(ValueError, match=words): editions.instructors(path)


@pytest.mark.parametrize("path", [path for path in PATHS if path.stem[0] in "01"], ids=lambda path: path.stem)
def test_every_section_of_a_chapter_has_notes_and_a_time(path):
    notes = editions.notes_of(ROOT / "book" / "notes" / f"{path.stem}.md")
    headings = [heading for cell in nbformat.read(path, 4).cells for heading in editions.headings_of(cell)]
    sections = [heading for heading in headings if heading.startswith("## ")]
    assert [heading for heading in notes if heading.startswith("## ")] == sections
    assert all(said for _, said in notes.values())
