"The decks: what the rules choose, that it comes from the chapter, and that neither notes nor solutions are on it."
import re

import nbformat
import pytest

from test_house import ROOT
from tools import deck, lectures
from tools.editions import exercises_of, leaks, notes_of
from tools.notebooks import chapters

CHAPTERS = {path.stem: path for path in chapters() if (ROOT / "book" / "notes" / f"{path.stem}.md").exists()}


def read(name): return nbformat.read(CHAPTERS[name], 4), notes_of(ROOT / "book" / "notes" / f"{name}.md")


def squeezed(text): return re.sub(r"[\s>.:]+", "", deck.plain(text))


@pytest.fixture(params=sorted(CHAPTERS))
def chapter(request):
    nb, notes = read(request.param)
    return request.param, nb, notes, deck.deck(nb, notes)


def test_a_lecture_has_25_to_40_slides(chapter):
    name, _, notes, slides = chapter
    least = 25 if sum(minutes for minutes, _ in notes.values()) >= 45 else 5
    assert least <= len(slides) <= 40, len(slides)


def test_live_figures_stand_alone_and_none_is_lost(chapter):
    _, nb, _, slides = chapter
    ends = next(i for i, cell in enumerate(nb.cells) if re.search(r"(?m)^## Exercise", cell.source))
    begins = next(i for i, cell in enumerate(nb.cells) if re.search(r"(?m)^## ", cell.source))
    live = [i for i, cell in enumerate(nb.cells[:ends]) if i > begins and cell.cell_type == "code"
            and any(deck.LIVE in out.get("data", {}) for out in cell.outputs)]
    alone = [slide.parts[0].cell for slide in slides if any(part.kind == "live" for part in slide.parts)]
    assert alone == live
    assert all(len(slide.parts) == 1 for slide in slides if slide.parts[0].kind == "live")


def test_no_slide_is_empty_or_fuller_than_it_can_be(chapter):
    _, _, _, slides = chapter
    for slide in slides:
        assert slide.parts, slide.title
        assert slide.height <= deck.ROOM or len(slide.parts) == 1 and slide.height <= deck.ROOM + 60, slide.title


def test_what_is_printed_below_a_figure_has_room_there(chapter):
    _, nb, _, slides = chapter
    figures = [part.cell for slide in slides for part in slide.parts if part.kind == "figure"]
    assert [i for i in figures if deck.result_height(nb.cells[i]) is None] == []    # print it in a cell of its own


def test_a_slide_says_what_its_chapter_says(chapter):
    _, nb, _, slides = chapter
    text = squeezed("\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown"))
    for slide in slides[1:]:
        for part in slide.parts:
            if part.cell is not None or part.kind == "list" or slide.heading == "## Questionnaire": continue
            for piece in re.split(r"\n+(?:\d+\. |- )?", part.text): assert squeezed(piece) in text, (slide.title, piece)


def test_a_remark_stands_right_below_what_it_is_about(chapter):
    "Or right above the code that it leads to."
    for slide in chapter[3]:
        for before, part, after in zip([None, *slide.parts], slide.parts, [*slide.parts[1:], None]):
            if part.kind != "remark": continue
            leads = after and after.kind == "code" and after.cell == part.after + 1
            assert leads or before.cell == part.after - 1, (slide.title, part.text)


def test_a_question_comes_before_its_answer(chapter):
    _, _, _, slides = chapter
    for slide in slides:
        kinds = [part.kind for part in slide.parts]
        for i, part in enumerate(slide.parts):
            assert part.fragment == (part.kind == "answer" or part.cell is not None and "question" in kinds[:i])


def test_no_solution_and_no_note_is_on_a_slide(chapter):
    name, nb, notes, _ = chapter
    made = lectures.lecture(CHAPTERS[name], nb, notes)
    assert not leaks(made, exercises_of(name[:2]))
    shown = "\n".join(cell.source for cell in made.cells)
    for _, said in notes.values():
        for line in said.split("\n"):
            if len(line) > 60 and line not in CHAPTERS[name].read_text(): assert line not in shown


def test_the_whole_chapter_runs_under_its_deck(chapter):
    "Its code stands there, all of it and in its order; the deck stops at slides and fragments only."
    name, nb, notes, slides = chapter
    before = [re.sub(r"(?m)^#\|.*\n?", "", cell.source) for cell in nb.cells if cell.cell_type == "code"]
    made = lectures.lecture(CHAPTERS[name], nb, notes)
    assert [cell.source for cell in made.cells if cell.cell_type == "code"] == before
    kinds = [cell.metadata.slideshow.get("slide_type") for cell in made.cells]
    assert kinds.count("slide") == len(slides)
    assert kinds.count("fragment") == sum(part.fragment for slide in slides for part in slide.parts)
    nbformat.validate(made)


def test_each_section_has_its_notes_beside_its_slides(chapter):
    name, nb, notes, slides = chapter
    made = lectures.lecture(CHAPTERS[name], nb, notes)
    told = [cell.metadata.lecture for cell in made.cells if "title" in cell.metadata.get("lecture", {})]
    assert all(slide["notes"] for slide in told)
    assert [slide["section"] == "" for slide in told] == [True] + [False] * (len(told) - 1)
    for section in {slide["section"] for slide in told} - {""}:
        seconds = sum(slide["seconds"] for slide in told if slide["section"] == section)
        assert abs(seconds - 60 * notes[section][0]) <= len(slides)


def test_a_page_asks_for_nothing_and_its_pictures_have_alt_texts(chapter):
    _, nb, notes, slides = chapter
    page = lectures.page(nb, notes, {"reveal.js": "", "reveal.css": "", "notes.js": "", "slides.css": ""})
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    hidden = False
    for begin, fragment in re.findall(r'(<section)|<div class="(?:cell|text|question|answer)( fragment)?"', page):
        hidden = not begin and (hidden or bool(fragment))
        assert bool(fragment) == hidden, "shown before the fragment that it follows"
    pictures = re.findall(r'<img alt="([^"]*)" src="data:', page)
    assert len(pictures) == sum(part.kind in ("figure", "live") for slide in slides for part in slide.parts)
    assert all(len(alt) > 20 for alt in pictures)


def test_the_same_chapter_makes_the_same_deck():
    one, other = (lectures.lecture(CHAPTERS["03_momentum"], *read("03_momentum")) for _ in range(2))
    assert nbformat.writes(one) == nbformat.writes(other)


def test_tags_overrule_the_rules():
    nb, notes = read("03_momentum")
    shown = next(part for slide in deck.deck(nb, notes) for part in slide.parts if part.kind == "figure").cell
    nb.cells[shown].metadata.tags = ["no-slide"]
    assert shown not in {part.cell for slide in deck.deck(nb, notes) for part in slide.parts}


@pytest.mark.parametrize("text, expected", [
    ("One thing. Another (Polyak, 1964. Really.) stands. `a. B` too.",
     ["One thing.", "Another (Polyak, 1964. Really.) stands.", "`a. B` too."]),
    ("**Bold.** Then $x. Y$ and Shallue et al. (2019) say so.",
     ["**Bold.**", "Then $x. Y$ and Shallue et al. (2019) say so."]),
    ("At 0.9 it is so.", ["At 0.9 it is so."]),
])
def test_sentences(text, expected): assert deck.sentences(text) == expected


@pytest.mark.parametrize("source, expected", [
    ("def f(x):\n    return x", True), ("for x in range(3):\n    total += x", True),
    ("for x in range(3):\n    total += x\nassert total == 3", False), ("print(3)", False),
    ("def f(): pass\n" + "assert f() is None\n" * 3, False), ("def f():\n" + "    a = 1\n" * 30, False),
])
def test_which_code_teaches(source, expected): assert deck.teaches(source) is expected


def test_the_page_for_instructors_counts_as_the_notes_do():
    "Minutes of chapters, weeks and days."
    text = (ROOT / "book" / "instructors.md").read_text()
    minutes = {name[:2]: sum(minutes for minutes, _ in read(name)[1].values()) for name in CHAPTERS}
    chapters_said = re.findall(r"(?m)^\| (\d\d) [A-Z][^|]*\| (\d+) \|", text)
    assert {number: int(said) for number, said in chapters_said} == {n: minutes[n] for n, _ in chapters_said}
    assert len(chapters_said) >= 18
    plans = re.findall(r"(?m)^\| \d+ \| ([\d, or]+) \| (\d+) \|", text)
    assert len(plans) == 14
    for named, said in plans:
        taken = re.findall(r"\d\d", named)
        assert int(said) == (max if " or " in named else sum)(minutes[number] for number in taken), named
