"""Recorded figures in a real browser, from files, with the network off; the built book too.

RECORDED="02 03 05": a draft of the book, in which these chapters' figures move; without it all chapters' must.
SCREENSHOT=PATH: take the picture that README shows.
"""
import base64
import contextlib
import html
import json
import os
import shutil
import sys
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from PIL import Image

from course_lib.support.live import LiveFigure, explore

playwright = pytest.importorskip("playwright.sync_api")
from test_browser import CHROMIUM, FLAGS  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
BOOK, RECORDINGS = ROOT / "dist" / "book", ROOT / "dist" / "recordings"
LISTS = [path for path in sorted(RECORDINGS.glob("*.json")) if "-" not in path.stem]  # one for each recorded chapter
NAMES = [name for path in LISTS for name in json.loads(path.read_text())["figures"]]
PAGES = sorted(path for path in BOOK.rglob("*.html") if "_static" not in path.parts)
NAME_OF = {path: path.relative_to(BOOK).with_suffix("").as_posix() for path in PAGES}
MOVING = [name for path, name in NAME_OF.items() if '<figure class="live"' in path.read_text()]
LARGEST, LARGEST_OF_ALL, DIFFERENCE, MILLISECONDS = 400_000, 8_000_000, 2, 50
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium found")
built = pytest.mark.skipif(not (BOOK / "index.html").exists(), reason="`make book` has not run")
STILL = '<img class="live-still" alt="the figure" ' \
        'src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==">'


@pytest.fixture(scope="module")
def page():
    "A page without a network that notes requests and errors."
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_context(offline=True, has_touch=True, viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(60_000)
        page.requested, page.errors = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        yield page
        browser.close()


@contextlib.contextmanager
def seen_with(page, width, height=900, **media):
    "A window of this size, on paper or in another color scheme; then the page is as before."
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(**media)
    try: yield
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})
        page.emulate_media(media="screen", color_scheme="light")


@pytest.fixture(autouse=True)
def nothing_asked_for(request):
    "After each test: no error on the page, and nothing asked of any machine."
    yield
    if "page" not in request.fixturenames: return
    page = request.getfixturevalue("page")
    assert not page.errors and all(url.startswith(("file:", "data:", "blob:")) for url in page.requested)


def opened(page, folder, name, script):
    "A page with one recorded figure, opened as a file."
    (folder / f"{name}.js").write_text(script)
    shutil.copy(ROOT / "book" / "player.js", folder)
    (folder / f"{name}.html").write_text(
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{name}</title><script src="player.js"></script>'
        f'<main><h1>A figure</h1><figure class="live" data-recording="{name}" data-address="{name}.js">{STILL}'
        '<figcaption><p class="live-note">Way.</p></figcaption></figure></main></html>')
    page.goto((folder / f"{name}.html").as_uri())
    page.wait_for_selector("figure.live-awake, figure.live-failed")
    assert page.query_selector("figure.live-awake"), page.errors


def seen(page, setting):
    "The pixels of a setting, on white."
    address = page.evaluate("""at => { const { picture } = document.querySelector("figure").player;
                               picture.draw(at); return picture.canvas.toDataURL(); }""", setting)
    image = np.asarray(Image.open(BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGBA"), dtype=float)
    return image[..., :3] * image[..., 3:] / 255 + 255 - image[..., 3:]


def difference(page, setting, png, photos=False):
    """How far a setting is from matplotlib's own picture, of 255. Of photos, whose noise would not fit in 400 kB, WebP
    keeps neither each pixel nor all colors: they are compared in grey, by the means of 8 × 8 pixels."""
    pictures = Image.fromarray(seen(page, setting).round().astype(np.uint8)), Image.open(BytesIO(png)).convert("RGB")
    if photos: pictures = [picture.convert("L").reduce(8) for picture in pictures]
    return np.abs(np.subtract(*(np.asarray(picture, dtype=float) for picture in pictures))).mean()


def milliseconds(page):
    "The median time of 25 moves, pixels and all: the best of three series, since machines are busy."
    return min(page.evaluate("""() => { const { picture, data } = document.querySelector("figure").player;
        const n = data.words.length, times = [];
        for (let i = 0; i < 25; i++) { const since = performance.now(); picture.draw(Math.floor(i * n / 25));
                                       picture.pen.getImageData(0, 0, 1, 1); times.push(performance.now() - since); }
        return times.sort((a, b) => a - b)[12]; }""") for _ in range(3))


def words_at_each_setting(page):
    "Put the controls at every setting: the words below the picture."
    return page.evaluate("""() => {
        const { controls, show, words, data, picture } = document.querySelector("figure").player;
        const draw = picture && picture.draw;
        if (picture) picture.draw = () => {};  // only the words
        const said = data.words.map((_, at) => {
            for (const control of [...controls].reverse()) {
                control.write(at % control.n);
                at = Math.floor(at / control.n);
            }
            show();
            return words.textContent;
        });
        if (picture) picture.draw = draw;
        return said; }""")


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    from test_recording import every_kind
    return every_kind().record()


def test_it_looks_and_says_as_in_python(page, tmp_path, every_kind):
    opened(page, tmp_path, "kinds", every_kind.script("kinds"))
    assert words_at_each_setting(page) == every_kind.words
    worst = max(difference(page, setting, png) for setting, png in every_kind.shots.items())
    assert worst <= DIFFERENCE
    assert np.abs(seen(page, 0) - seen(page, 11)).mean() > 1, "a blank would look the same everywhere"


def test_dashes_begin_anew_where_a_line_comes_back_into_the_picture(page, tmp_path):
    fig = Figure(figsize=(5, 3))
    ax = fig.add_axes((0, 0, 1, 1), ylim=(0, 1), xlim=(0, 120))
    line, = ax.plot([], [], "--", lw=2)
    live = LiveFigure(fig, [line], alt="A line that leaves the picture.")

    def f(height):
        line.set_data(range(120), [(.3 + .02 * (i % 7)) if i % 3 else height + i / 9 for i in range(120)])
        live.invalidate()
        return {"height": height}

    recording = explore(f, live, height=(2, 3)).record()
    opened(page, tmp_path, "dashes", recording.script("dashes"))
    assert max(difference(page, *shot) for shot in recording.shots.items()) <= DIFFERENCE


def test_mouse_touch_and_keys_move_it(page, tmp_path, every_kind):
    opened(page, tmp_path, "moves", every_kind.script("moves"))
    words, slider = page.locator(".live-words"), page.locator("input[type=range]")
    assert words.inner_text() == "a 2 · name one · on True" and slider.get_attribute("aria-valuetext") == "2"
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert words.inner_text() == "a 3 · name one · on True"
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    assert words.inner_text() == "a 1 · name one · on True"
    page.locator("input[type=checkbox]").tap()
    page.locator("select").select_option("two")
    assert words.inner_text() == "a 1 · name two · on False"
    page.locator("button").click()
    assert words.inner_text() == "a 2 · name one · on True"
    assert words.get_attribute("aria-live") == "polite"
    assert page.locator("canvas").get_attribute("aria-label") == "All kinds."
    assert "Recorded at each of its settings. Way." in page.locator(".live-note").inner_text()


def test_an_unknown_kind_of_drawing_is_an_error(page, tmp_path, every_kind):
    data = json.loads(json.dumps(every_kind.data))
    data["ops"][0][0] = 7
    from course_lib.support.recording import Recording
    strange = Recording(data, every_kind.words, every_kind.settings, "", {})
    script = strange.script("strange")
    with pytest.raises(AssertionError, match="unknown kind 7"): opened(page, tmp_path, "strange", script)
    page.errors.clear()


@pytest.mark.parametrize("name", NAMES)
def test_each_figure_of_the_chapters(page, tmp_path, name):
    script, told = (RECORDINGS / f"{name}.js").read_text(), json.loads((RECORDINGS / f"{name}.json").read_text())
    assert len(script) <= LARGEST
    opened(page, tmp_path, name, script)
    assert words_at_each_setting(page) == told["words"]
    shots = {int(path.stem): path.read_bytes() for path in (RECORDINGS / name).glob("*.png")}
    if not page.evaluate("Boolean(document.querySelector('figure').player.picture)"): return
    photos = bool(told.get("image_quality"))
    differences, time = [difference(page, *shot, photos) for shot in shots.items()], milliseconds(page)
    print(f"{name}: {len(told['words'])} settings, {len(script) // 1000} kB, "
          f"difference {max(differences):.2f}, {time:.1f} ms")
    assert len(shots) >= min(12, len(told["words"])) and max(differences) <= DIFFERENCE
    assert time <= MILLISECONDS


@pytest.mark.skipif(not NAMES, reason="nothing is recorded")
def test_all_of_them_are_small_enough():
    assert sum((RECORDINGS / f"{name}.js").stat().st_size for name in NAMES) <= LARGEST_OF_ALL


def test_the_player_is_short(): assert len((ROOT / "book" / "player.js").read_text().splitlines()) <= 250


@pytest.fixture(scope="module")
def soups(): return {path: BeautifulSoup(path.read_text(), "html.parser") for path in PAGES}


@built
def test_every_link_and_anchor_of_the_book_leads_somewhere(soups):
    anchors = {path: {tag.get("id") or tag.get("name") for tag in soup.find_all(True)} for path, soup in soups.items()}
    kinds = [("a", "href"), ("img", "src"), ("script", "src"), ("link", "href"), ("figure", "data-address")]
    lost = []
    for path, soup in soups.items():
        for tag, key in kinds:
            for element in soup.find_all(tag, **{key: True}):
                link = urlparse(html.unescape(element[key]))
                if link.scheme or link.netloc: continue
                target = (path.parent / unquote(link.path.split("?")[0])).resolve() if link.path else path
                if not target.exists(): lost.append(f"{path.name}: {element[key]}")
                elif link.fragment and target in anchors and unquote(link.fragment) not in anchors[target]:
                    lost.append(f"{path.name}: {element[key]}")
    assert not lost


@built
def test_every_picture_has_its_alt_text(soups):
    without = [f"{path.name}: {str(image)[:80]}" for path, soup in soups.items() for image in soup.find_all("img")
               if not (image.get("alt") or "").strip()]
    assert not without


def awake(page, name):
    "Open a page of the book and scroll through its figures: -> these, awake."
    page.goto((BOOK / f"{name}.html").as_uri())
    figures = page.locator("figure.live").all()
    for figure in figures:
        figure.scroll_into_view_if_needed()
        figure.locator(".live-player").wait_for()
    return figures


@built
def test_figures_move_in_all_the_pages_that_have_some():
    chapters = os.environ["RECORDED"].split() if "RECORDED" in os.environ else None
    for path in (ROOT / "nbs").glob("*.ipynb"):
        if chapters is not None and path.stem.split("_")[0] not in chapters: continue
        shown = path.read_text().count('"application/vnd.jupyter.widget-view+json"')
        text = (BOOK / f"{path.stem}.html").read_text()
        assert text.count('<figure class="live"') == shown and "not-recorded" not in text, path.stem
    assert MOVING, "nothing is recorded: tools/recordings.py"


@built
@pytest.mark.parametrize("name", MOVING)
def test_each_control_of_a_page_moves_by_key_and_by_touch(page, name):
    state = """figure => figure.querySelector(".live-words").textContent +
                         (figure.querySelector("canvas")?.toDataURL() ?? "")"""
    value = "input => input.type == 'checkbox' ? input.checked : input.value"
    for figure in awake(page, name):
        seen = {figure.evaluate(state)}
        for control in figure.locator("label :is(input, select)").all():
            before, kind = control.evaluate(value), control.evaluate("input => input.type")
            control.focus()
            at_the_end = before == control.get_attribute("max")
            if kind == "range": page.keyboard.press("ArrowLeft" if at_the_end else "ArrowRight")
            else: page.keyboard.press("Space" if kind == "checkbox" else "End")
            if control.evaluate(value) == before and kind == "select-one": page.keyboard.press("Home")
            assert control.evaluate(value) != before, "the key did nothing"
            seen.add(figure.evaluate(state))
        assert len(seen) > 1, "nothing moved"
        figure.get_by_role("button", name="Reset").press("Enter")
        assert figure.evaluate(state) in seen
    with seen_with(page, 390, 844):
        for figure in awake(page, name):
            for control in figure.locator("label input").all():
                before, box = control.evaluate(value), control.bounding_box()
                if control.get_attribute("type") == "checkbox": control.tap()
                else:
                    at = .1 if float(before) > float(control.get_attribute("max")) / 2 else .9
                    control.tap(position={"x": box["width"] * at, "y": box["height"] / 2})
                assert control.evaluate(value) != before, "the touch did nothing"
            assert all(0 <= box["x"] and box["x"] + box["width"] <= 390 for box in
                       (element.bounding_box() for element in figure.locator(".live-picture, label, button").all()))
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390


@built
def test_the_first_page_begins_with_a_figure_that_moves(page):
    [figure] = awake(page, "index")
    words, slider = figure.locator(".live-words"), figure.locator("input[type=range]").first
    before = words.inner_text()
    slider.focus()
    for _ in range(3): page.keyboard.press("ArrowRight")
    assert words.inner_text() != before
    page.evaluate("scrollTo(0, 0); document.querySelector('.bd-sidebar-primary').scrollTop = 0")
    bottom = words.bounding_box()
    assert bottom["y"] + bottom["height"] <= 900, "the figure does not fit on the first screen"
    if path := os.environ.get("SCREENSHOT"):
        Image.open(BytesIO(page.screenshot())).convert("RGB").quantize(128).save(path, optimize=True)


@built
def test_formulas_are_set(page):
    page.goto((BOOK / "02_sgd.html").as_uri())
    page.wait_for_selector("mjx-container svg")


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    "axe-core, from npm's cache or registry."
    from book import from_npm
    from_npm("axe-core@4.10.2", "axe.min.js", path := tmp_path_factory.mktemp("axe") / "axe.js")
    return path


SOME = ["index", "02_sgd", "reference/momentum"]  # a chapter takes ten seconds
EVERY = [*SOME, "engineers", "404"] if "RECORDED" in os.environ else list(NAME_OF.values())


@built
def test_on_paper_no_line_of_code_is_cut(page):
    with seen_with(page, 680, media="print"):       # about what a sheet of A4 is wide between its margins
        page.goto((BOOK / "02_sgd.html").as_uri())
        cut = page.evaluate("""[...document.querySelectorAll("pre")]
                                   .filter(pre => pre.scrollWidth > pre.clientWidth + 1).length""")
    assert cut == 0


@built
@pytest.mark.parametrize("scheme, width, name", [
    *(("light", 1280, name) for name in EVERY), *(("dark", 1280, name) for name in SOME),
    *(("light", 390, name) for name in SOME)])
def test_axe_finds_nothing(page, axe, scheme, width, name):
    with seen_with(page, width, color_scheme=scheme):
        awake(page, name)
        page.evaluate("async () => { await window.MathJax?.startup?.promise }")
        page.add_script_tag(path=axe)
        found = page.evaluate("""async () => (await axe.run(document)).violations.map(
            found => `${found.id}: ${found.nodes.slice(0, 3).map(node => node.html.slice(0, 120)).join(" | ")}`)""")
    assert not found
