"""A lecture as a hall sees it: every slide of a chapter fits, its live figures move by key and by drag, and the
presenter's window has the notes. Two chapters; LECTURES=all takes every chapter, LECTURES="05 11" these.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("jupyterlab_slideshow")
from test_browser import CHROMIUM, FLAGS, jupyter_lab  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tools import lectures, recordings  # noqa: E402
from tools.notebooks import chapters  # noqa: E402

WITH_NOTES = [path.stem for path in chapters() if (ROOT / "book" / "notes" / f"{path.stem}.md").exists()]
ASKED = os.environ.get("LECTURES", "03 06").split()
CHAPTERS = [name for name in WITH_NOTES if ASKED == ["all"] or name[:2] in ASKED]
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium found")
WIDTH, HEIGHT = 1280, 720
OWN = ("data:", "blob:", "file:")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def watched(context, requested, errors):
    page = context.new_page()
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    return page


# ---- slides in one file

@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    subprocess.run([sys.executable, "tools/lectures.py", "slides", *(name[:2] for name in CHAPTERS), "--to", folder],
                   check=True, cwd=ROOT)
    return folder


STICKS_OUT = """() => {
    const slide = Reveal.getCurrentSlide(), found = [];
    for (const part of slide.querySelectorAll("*:not(aside, aside *)")) {
        const box = part.getBoundingClientRect();
        if (box.width && (box.right > 1281 || box.bottom > 721 || box.left < 0 || box.top < 0))
            found.push(`${part.tagName} ${Math.round(box.right)} × ${Math.round(box.bottom)}`);
        if (part.tagName === "IMG" && box.height < 150) found.push(`a picture only ${box.height} high`);
    }
    return found;
}"""


@pytest.mark.parametrize("name", CHAPTERS)
def test_each_slide_of_a_file_fits_and_asks_for_nothing(browser, files, name):
    requested, errors, wrong = [], [], {}
    page = watched(browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, offline=True), requested, errors)
    page.goto((files / f"{name}.html").as_uri(), timeout=120_000)
    page.wait_for_function("window.Reveal?.isReady()")
    for slide in range(page.evaluate("Reveal.getTotalSlides()")):
        page.evaluate("slide => Reveal.slide(slide, 0, 99)", slide)
        if found := page.evaluate(STICKS_OUT): wrong[slide + 1] = found[:3]
    assert wrong == {}
    assert [url for url in requested if not url.startswith(OWN)] == [] and errors == []
    page.context.close()


STATE = """() => { const { picture: { canvas }, words } = Reveal.getCurrentSlide().querySelector("figure").player;
                   return [Reveal.getState().indexh, canvas.toDataURL(), words.textContent]; }"""


@pytest.fixture(scope="module")
def recorded_file(tmp_path_factory):
    "Slides of two chapters whose figures were recorded, one of them with a menu: -> their files."
    from course_lib.figures.learner import cancel_explorer
    from course_lib.figures.momentum import average_explorer
    made = {"03_momentum": (average_explorer(), {"beta": [0., .9, .99]}),
            "06_learner": (cancel_explorer(), {"exception": None})}
    folder, kept = tmp_path_factory.mktemp("recorded"), recordings.FOLDER
    recordings.FOLDER = folder
    for stem, (explorer, grid) in made.items():     # the first live figure of its chapter
        nb = nbformat.read(ROOT / "nbs" / f"{stem}.ipynb", 4)
        name = f"{stem}-{nb.cells[recordings.live_cells(nb)[0]].id}-0"
        (folder / f"{name}.js").write_text(explorer.record(grid).script(name))
        (folder / f"{stem}.json").write_text(json.dumps({"hash": recordings.source_hash(nb), "figures": [name]}))
    lectures.slides([name[:2] for name in made], folder)
    recordings.FOLDER = kept
    return [folder / f"{stem}.html" for stem in made]


def test_recorded_figures_of_a_file_move_by_key_and_by_drag_and_fit(browser, recorded_file):
    requested, errors = [], []
    page = watched(browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, offline=True), requested, errors)
    for file in recorded_file:
        page.goto(file.as_uri(), timeout=120_000)
        page.wait_for_selector("figure.live-awake", state="attached", timeout=30_000)
        page.evaluate("""Reveal.slide(Reveal.getSlides().findIndex(slide => slide.querySelector("figure.live")))""")
        for _ in range(50):                 # the player sizes its picture once the slide is seen
            if not page.evaluate(STICKS_OUT): break
            page.wait_for_timeout(200)
        assert page.evaluate(STICKS_OUT) == [], file.stem
        controls = page.locator("section.present").locator("input[type=range], select")
        assert page.locator("section.present canvas").bounding_box()["height"] > 300
        controls.first.focus()
        slide, *seen = page.evaluate(STATE)
        page.keyboard.press("ArrowDown")
        after = page.evaluate(STATE)
        assert after[0] == slide and after[1:] != seen, file.stem
        if page.locator("section.present input[type=range]").count():
            box = controls.first.bounding_box()
            page.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2)
            page.mouse.down()
            page.mouse.move(box["x"] + box["width"] - 40, box["y"] + box["height"] / 2, steps=5)
            page.mouse.up()
            assert page.evaluate(STATE)[0] == slide and page.evaluate(STATE)[1:] != after[1:]
        page.keyboard.press("PageDown")     # what a remote control sends
        assert page.evaluate("Reveal.getState().indexh") == slide + 1
    assert [url for url in requested if not url.startswith(OWN)] == [] and errors == []
    page.context.close()


def test_s_opens_the_notes_and_a_print_has_a_page_for_each_slide(browser, files):
    page = watched(browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}), [], [])
    address = (files / f"{CHAPTERS[0]}.html").as_uri()
    page.goto(address, timeout=120_000)
    page.wait_for_function("window.Reveal?.isReady()")
    page.evaluate("Reveal.slide(1)")
    with page.expect_popup() as opened: page.keyboard.press("s")
    notes = opened.value.locator(".speaker-controls-notes")
    playwright.expect(notes).to_contain_text("Say.", timeout=30_000)
    total = page.evaluate("Reveal.getTotalSlides()")
    page.goto(f"{address}?print-pdf", timeout=120_000)
    page.wait_for_selector(".pdf-page")
    assert page.locator(".pdf-page").count() == total
    page.context.close()


# ---- the deck in JupyterLab

@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "What `make lecture` starts, with notebooks in a folder of its own: -> the address of a chapter."
    home = tmp_path_factory.mktemp("lecture")
    subprocess.run([sys.executable, "tools/lectures.py", "notebooks", *(name[:2] for name in CHAPTERS),
                    "--to", home / "lecture"], check=True, cwd=ROOT)
    with jupyter_lab(home, ROOT / "tools" / "presenter" / "jupyter_server_config.py", patience=120,
                     LECTURE=str(home / "lecture"), PYTHONPATH=str(ROOT)) as (address, token):
        yield f"{address}/{{}}?token={token}"


ACTIVE = "jupyterapp.shell.currentWidget.content.activeCellIndex"
# Boxes of what is seen: pictures and formulas have invisible parts of their own.
SPILLS = """() => {
    const found = [], seen = ".jp-RenderedMarkdown, .jp-RenderedMarkdown > *, pre, .cm-line, .live-figure, "
                           + "mjx-container > :first-child, .jp-RenderedHTML > img, .noUi-handle, .widget-readout, "
                           + "button, select, .explorer-words";
    for (const cell of document.querySelectorAll(".jp-deck-mod-onscreen"))
        for (const part of [cell, ...cell.querySelectorAll(seen)]) {
            const box = part.getBoundingClientRect();
            if (!box.width || !box.height || part.closest(".explorer-asleep")) continue;
            if (box.left < 0 || box.top < 0 || box.right > innerWidth + 1 || box.bottom > innerHeight + 1)
                found.push(`${part.tagName}.${part.className} ${Math.round(box.right)} × ${Math.round(box.bottom)}`);
            const clip = cell.getBoundingClientRect();
            if (box.right > clip.right + 1) found.push(`${part.tagName}.${part.className} is cut at the right`);
        }
    return found;
}"""


def moves(page, figure, act):
    "Does the picture (or, where training takes its time, the line below it) change by this, and the page stay?"
    picture, words, at = figure.locator("img.live-figure"), figure.locator(".explorer-words"), page.evaluate(ACTIVE)
    before, said = picture.get_attribute("src"), words.inner_text()
    act()
    for _ in range(100):
        page.wait_for_timeout(200)
        if picture.get_attribute("src") != before or words.inner_text() != said: break
    else: return "nothing changed"
    return "" if page.evaluate(ACTIVE) == at else "the page was turned"


def pull(page, handle):
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    at_the_end = float(handle.get_attribute("aria-valuenow")) > .6 * float(handle.get_attribute("aria-valuemax"))
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60 if at_the_end else x + 60, y, steps=5)
    page.mouse.up()


def try_figures(page):
    "Move the live figure of a slide by key and by drag; what went wrong."
    wrong = []
    for figure in page.locator(".jp-deck-mod-visible .explorer").all():
        assert figure.locator("img.live-figure").bounding_box()["height"] > 150
        handles = figure.locator(".noUi-handle")
        if handles.count():
            handle = handles.first
            handle.focus()
            up = float(handle.get_attribute("aria-valuenow")) < float(handle.get_attribute("aria-valuemax"))
            wrong.append(moves(page, figure, lambda: page.keyboard.press("ArrowRight" if up else "ArrowLeft")))
            wrong.append(moves(page, figure, lambda: pull(page, handle)))
        elif figure.locator("select").count():
            choice = figure.locator("select").first
            choice.focus()
            last = choice.evaluate("list => list.selectedIndex === list.length - 1")
            wrong.append(moves(page, figure, lambda: page.keyboard.press("ArrowUp" if last else "ArrowDown")))
        if figure.locator(".explorer-error").inner_text(): wrong.append(figure.locator(".explorer-error").inner_text())
    return [said for said in wrong if said]


@pytest.fixture(scope="module", params=CHAPTERS)
def lecture(request, browser, lab):
    "A chapter's deck, run to its end, and a presenter's window: -> (name, deck, window, requests, errors)."
    requested, errors = [], []
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    page = watched(context, requested, errors)
    page.goto(lab.format(f"lab/tree/{request.param}.ipynb").replace("?", "?reset&"), timeout=120_000)
    page.wait_for_selector(".jp-Deck .jp-deck-mod-visible", timeout=180_000)
    presenter = watched(context, requested, errors)
    presenter.goto(lab.format("presenter"))
    playwright.expect(presenter.locator("#title")).to_contain_text(request.param[:2], timeout=30_000)
    page.bring_to_front()
    line = ".course-running"        # how far it is; it goes when all cells have run, and stays with the error of one
    page.wait_for_function(f"""document.querySelector("[data-course-ran]")
                               || document.querySelector("{line}")?.textContent.includes("failed")""", timeout=600_000)
    assert not page.locator(line).count(), page.locator(line).inner_text()
    yield request.param, page, presenter, requested, errors
    context.close()


def test_every_slide_fits_moves_and_has_its_notes_in_the_window(lecture, lab):
    name, page, presenter, requested, errors = lecture
    nb = json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text())
    page.keyboard.press("Home")
    wrong, slides, figures = {}, 0, 0
    while True:
        page.wait_for_timeout(800)
        place = presenter.locator("#place").inner_text()
        slides = int(place.split()[0])
        problems = page.evaluate(SPILLS) + try_figures(page)
        figures += page.locator(".jp-deck-mod-visible .explorer").count()
        notes = presenter.locator("#notes").inner_text().strip()
        if not notes: problems.append("no notes")
        on_slide = page.locator(".jp-deck-mod-visible").all_inner_texts()
        long = max((line for line in notes.split("\n") if line), key=len, default="")
        if len(long) > 60 and any(long[:60] in text for text in on_slide): problems.append("a note on the slide")
        if problems: wrong[place] = problems[:3]
        if folder := os.environ.get("SCREENSHOTS"): page.screenshot(path=f"{folder}/{name[:2]}_{slides:02}.png")
        at = page.evaluate(ACTIVE)
        page.evaluate("jupyterapp.commands.execute('presenter:next')")
        page.wait_for_timeout(150)
        if page.evaluate(ACTIVE) == at: break
    total = int(presenter.locator("#place").inner_text().split()[2])
    live = sum(any("application/vnd.jupyter.widget-view+json" in out.get("data", {}) for out in cell.get("outputs", []))
               for cell in nb["cells"])
    print(f"{name}: {slides} slides, {figures} live figures")
    assert wrong == {}
    assert slides == total and figures >= min(live, 1)
    host = lab.split("/")[2]
    assert [url for url in requested if host not in url and not url.startswith(OWN)] == []
    assert errors == []


def test_window_and_deck_turn_each_other(lecture):
    _, page, presenter, _, _ = lecture
    page.bring_to_front()
    page.evaluate("jupyterapp.commands.execute('presenter:first')")
    playwright.expect(presenter.locator("#place")).to_contain_text("1 of", timeout=15_000)
    next_one = presenter.locator("#next").inner_text()
    page.keyboard.press("ArrowRight")
    playwright.expect(presenter.locator("#place")).to_contain_text("2 of", timeout=15_000)
    assert presenter.locator("#title").inner_text() == next_one
    page.evaluate("document.documentElement.requestFullscreen().catch(() => {})")
    full = page.evaluate("document.fullscreenElement !== null")
    presenter.locator("#back").dispatch_event("click")  # `click` would wait for frames, of which a page behind has none
    playwright.expect(presenter.locator("#place")).to_contain_text("1 of", timeout=15_000)
    page.wait_for_timeout(300)
    heading = page.locator(".jp-deck-mod-visible h2").first.inner_text()
    assert heading.startswith(presenter.locator("#title").inner_text())
    assert page.evaluate("document.fullscreenElement !== null") == full
    if full: page.evaluate("document.exitFullscreen()")
    presenter.locator("#clock").dispatch_event("click")
    playwright.expect(presenter.locator("#elapsed")).not_to_have_text("0:00", timeout=15_000)


def test_code_on_a_slide_is_edited_and_run_there(lecture):
    _, page, _, _, _ = lecture
    page.bring_to_front()
    place = page.evaluate("""async () => {
        const panel = jupyterapp.shell.currentWidget, cells = panel.content.widgets;
        const at = cells.findIndex(cell => cell.model.type === "code" && cell.model.getMetadata("lecture")?.source
                                           && cell.model.getMetadata("slideshow").slide_type === undefined);
        if (at < 0) return at;
        panel.content.activeCellIndex = at;
        window.code_before = cells[at].model.sharedModel.getSource();
        cells[at].model.sharedModel.setSource("print(6 * 7)");
        cells[at].node.focus();
        return at;
    }""")
    if place < 0: pytest.skip("no slide of this chapter shows code")
    page.keyboard.press("Shift+Enter")
    page.wait_for_function(f"""JSON.stringify(jupyterapp.shell.currentWidget.content.widgets[{place}].model.outputs.toJSON())
                               .includes("42\\\\n")""", timeout=60_000)
    assert page.evaluate(ACTIVE) == place
    page.evaluate(f"jupyterapp.shell.currentWidget.content.widgets[{place}].model.sharedModel.setSource(code_before)")


def test_out_of_the_deck_and_into_it_again_at_the_same_cell(lecture):
    _, page, presenter, _, _ = lecture
    page.bring_to_front()
    page.evaluate("jupyterapp.commands.execute('presenter:first')")
    for _ in range(3): page.evaluate("jupyterapp.commands.execute('presenter:next')")
    at, title = page.evaluate(ACTIVE), presenter.locator("#title").inner_text()
    page.evaluate("jupyterapp.commands.execute('deck:stop')")
    page.wait_for_function("!document.querySelector('.jp-Deck')", timeout=15_000)
    assert page.evaluate(ACTIVE) == at
    page.evaluate("jupyterapp.commands.execute('presenter:start-here')")
    page.wait_for_selector(".jp-Deck .jp-deck-mod-visible", timeout=15_000)
    page.wait_for_timeout(500)
    assert page.evaluate(ACTIVE) == at and presenter.locator("#title").inner_text() == title


def test_the_commands_that_we_rely_on_and_give(lecture):
    _, page, _, _, _ = lecture
    names = ["deck:start", "deck:stop", "notebook:run-cell", "presenter:next", "presenter:previous", "presenter:first",
             "presenter:run", "presenter:window", "presenter:full-screen", "presenter:start-here"]
    assert page.evaluate("names => names.filter(name => !jupyterapp.commands.hasCommand(name))", names) == []
