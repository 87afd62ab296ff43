"""Recorded figures in a real browser, from files, with the network off; the whole book too, where it is built."""
import base64
import html
import json
import shutil
import sys
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api")
from test_browser import CHROMIUM, FLAGS  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
BOOK, RECORDINGS = ROOT / "dist" / "book", ROOT / "dist" / "recordings"
NAMES = sorted(path.stem for path in RECORDINGS.glob("*.js"))
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


def difference(page, setting, png):
    "How far a setting is from matplotlib's own picture, of 255, in the mean."
    return np.abs(seen(page, setting) - np.asarray(Image.open(BytesIO(png)).convert("RGB"), dtype=float)).mean()


def milliseconds(page):
    "The time to draw a setting, pixels and all: the lower third of 25, since machines are busy."
    return page.evaluate("""() => { const { picture, data } = document.querySelector("figure").player;
        const n = data.words.length, times = [];
        for (let i = 0; i < 25; i++) { const since = performance.now(); picture.draw(Math.floor(i * n / 25));
                                       picture.pen.getImageData(0, 0, 1, 1); times.push(performance.now() - since); }
        return times.sort((a, b) => a - b)[8]; }""")


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


@pytest.mark.skipif(not NAMES, reason="nothing is recorded: tools/recordings.py")
@pytest.mark.parametrize("name", NAMES)
def test_each_figure_of_the_chapters(page, tmp_path, name, record_property):
    script, told = (RECORDINGS / f"{name}.js").read_text(), json.loads((RECORDINGS / f"{name}.json").read_text())
    assert len(script) <= LARGEST
    opened(page, tmp_path, name, script)
    assert words_at_each_setting(page) == told["words"]
    shots = {int(path.stem): path.read_bytes() for path in (RECORDINGS / name).glob("*.png")}
    if not page.evaluate("Boolean(document.querySelector('figure').player.picture)"): return
    differences = [difference(page, setting, png) for setting, png in shots.items()]
    print(f"{name}: {len(told['words'])} settings, {len(script) // 1000} kB, difference {max(differences):.2f}, "
          f"{milliseconds(page):.1f} ms")
    assert len(shots) >= min(12, len(told["words"])) and max(differences) <= DIFFERENCE


@pytest.mark.skipif(not NAMES, reason="nothing is recorded")
def test_all_of_them_are_small_enough():
    assert sum((RECORDINGS / f"{name}.js").stat().st_size for name in NAMES) <= LARGEST_OF_ALL


def test_the_player_is_short(): assert len((ROOT / "book" / "player.js").read_text().splitlines()) <= 250


def pages(): return sorted(path for path in BOOK.rglob("*.html") if "_static" not in path.parts)


@built
def test_every_link_and_anchor_of_the_book_leads_somewhere():
    soups = {path: BeautifulSoup(path.read_text(), "html.parser") for path in pages()}
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
def test_every_picture_has_its_alt_text():
    without = [f"{path.name}: {str(image)[:80]}" for path in pages()
               for image in BeautifulSoup(path.read_text(), "html.parser").find_all("img")
               if not (image.get("alt") or "").strip()]
    assert not without


@built
def test_a_chapter_of_the_book_moves(page):
    page.goto((BOOK / "02_sgd.html").as_uri())
    page.locator("figure.live").first.scroll_into_view_if_needed()
    page.wait_for_selector("figure.live-awake")
    before = page.locator(".live-words").first.inner_text()
    page.locator(".live-controls input").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".live-words").first.inner_text() != before
    page.wait_for_selector("mjx-container svg")


@built
@pytest.mark.parametrize("name", ["index", "02_sgd", "09_sweeps", "engineers", "reference/momentum", "404"])
def test_axe_finds_nothing(page, name, tmp_path):
    book = pytest.importorskip("book")
    try: book.from_npm("axe-core@4.10.2", "axe.min.js", tmp_path / "axe.js")
    except Exception as error: pytest.skip(f"axe-core is not here: {error}")
    page.goto((BOOK / f"{name}.html").as_uri())
    page.wait_for_timeout(500)
    for figure in page.locator("figure.live").all():
        figure.scroll_into_view_if_needed()
        figure.locator("canvas").wait_for()
    page.add_script_tag(path=tmp_path / "axe.js")
    found = page.evaluate("""async () => (await axe.run(document)).violations.map(
        found => `${found.id}: ${found.nodes.slice(0, 3).map(node => node.html.slice(0, 120)).join(" | ")}`)""")
    assert not found
