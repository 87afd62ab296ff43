"""A reader's JupyterLab: open chapters, run them, move learning rate and beta with the keyboard, and see what the
pictures do.

Needs Debian's (or any) Chromium and playwright (`pip install -e ".[browser]"`); skipped without them, which `.ci/run`
does not accept.
"""
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import pytest

playwright = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
KERNEL = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status"
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium found")


@contextlib.contextmanager
def jupyter_lab(home, config, *options, patience=60, **environment):
    """JupyterLab on a free port, with these settings of ours and files of its own below `home`: -> (address, token).
    patience: seconds until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, address = secrets.token_hex(), f"http://127.0.0.1:{port}"
    folders = {f"JUPYTER_{kind.upper()}_DIR": str(home / kind) for kind in ("config", "data", "runtime")}
    server = subprocess.Popen([sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
                               f"--port={port}", "--expose-app-in-browser", f"--IdentityProvider.token={token}",
                               *options, f"--config={config}"], env={**os.environ, **folders, **environment},
                              stdout=(home / "log").open("w"), stderr=subprocess.STDOUT, cwd=home)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # also behind somebody's proxy
    try:
        for _ in range(2 * patience):
            try: direct.open(f"{address}/api/status?token={token}", timeout=2)
            except OSError: time.sleep(.5)
            else: break
        else: pytest.fail((home / "log").read_text())
        yield address, token
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab on a copy of the notebooks, with settings of its own: -> its address."
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "nbs", home / "nbs", ignore=shutil.ignore_patterns(".*"))
    settings = home / "config" / "lab" / "user-settings"
    (settings / "@jupyterlab" / "apputils-extension").mkdir(parents=True)
    (settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    with jupyter_lab(home, ROOT / "tools" / "jupyter_server_config.py", f"--ServerApp.root_dir={home / 'nbs'}",
                     JUPYTERLAB_SETTINGS_DIR=str(settings),
                     JUPYTERLAB_WORKSPACES_DIR=str(home / "workspaces")) as (address, token):
        yield f"{address}/lab/tree/{{}}?reset&token={token}"  # reset: no tab of the chapter before


@pytest.fixture(scope="module")
def page(lab, tmp_path_factory):
    "A browser page that notes every request and every error."
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 950})
        page.requested, page.errors, page.said = [], [], []

        def listen(socket):
            socket.on("framesent",
                      lambda frame: page.said.append(frame if isinstance(frame, bytes) else frame.encode()))

        page.on("websocket", listen)
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        yield page
        browser.close()


def run_chapter(lab, page, name):
    "A chapter, run to its end."
    page.said.clear()
    page.goto(lab.format(name))
    page.wait_for_function(f"{KERNEL} === 'idle'", timeout=90_000)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_timeout(1000)
    page.wait_for_function(f"{KERNEL} === 'idle'", timeout=120_000)
    return page


@pytest.fixture(scope="module")
def chapter(lab, page): return run_chapter(lab, page, "02_sgd.ipynb")


@pytest.fixture(scope="module")
def momentum(lab, page):
    "Chapter 03; it takes the page over from chapter 02, so its tests come after those."
    return run_chapter(lab, page, "03_momentum.ipynb")


@pytest.fixture(scope="module")
def learning_rate(lab, page):
    "Chapter 08; it comes after chapter 03."
    return run_chapter(lab, page, "08_learning_rate.ipynb")


@pytest.fixture(scope="module")
def sweep_map(lab, page):
    "Chapter 09; it comes after chapter 08."
    return run_chapter(lab, page, "09_sweeps.ipynb")


@pytest.fixture(scope="module")
def batchnorm(lab, page):
    "Chapter 10; it comes after chapter 09."
    return run_chapter(lab, page, "10_batchnorm.ipynb")


@pytest.fixture(scope="module")
def transfer(lab, page):
    "Chapter 11; it comes after chapter 10."
    return run_chapter(lab, page, "11_transfer.ipynb")


@pytest.fixture(scope="module")
def live(lab, page):
    "Appendix A2; it comes after chapter 11."
    return run_chapter(lab, page, "A2_live.ipynb")


def execute(page, code):
    "Run code in the kernel of the notebook that is open, to its end."
    page.evaluate("""async code => {
        const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
        await kernel.requestExecute({code}).done;
    }""", code)


def explorer(page, control, button="Reset"):
    "The explorer with that control and that button."
    figure = page.locator(".widget-vbox").filter(has=page.locator(f".control-{control}"))
    figure = figure.filter(has=page.get_by_role("button",
                                                name=button)).filter(has=page.locator("img.live-figure")).first
    figure.scroll_into_view_if_needed()
    return figure


def says(figure, text): playwright.expect(figure.locator(".explorer-words")).to_contain_text(text, timeout=60_000)


def press(page, figure, control, key, times):
    "Move a slider with the keyboard; returns when the picture has changed."
    picture = figure.locator("img.live-figure")
    before = picture.get_attribute("src")
    figure.locator(f".control-{control} .noUi-handle").focus()
    for _ in range(times): page.keyboard.press(key)
    playwright.expect(picture).not_to_have_attribute("src", before, timeout=15_000)


def screenshot(page, variable):
    "Kept where the environment variable says, for README and for a person to look at."
    page.wait_for_timeout(500)
    if path := os.environ.get(variable): page.screenshot(path=path)


def runs_without_an_error(page):
    "No error; and no slider speaks before it is moved."
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts() == []
    assert page.errors == []
    page.wait_for_timeout(1000)
    assert [said[-300:] for said in page.said if b'"method":"update"' in said] == []


def test_the_chapter_runs_without_an_error(chapter):
    """A slider that answers what code has set would do so again and again; and ipykernel (7.4) confirms no message that
    comes while a cell awaits, after which that slider would never speak again."""
    runs_without_an_error(chapter)


def test_the_walker_flies_out_by_keyboard(chapter):
    figure = explorer(chapter, "curvature")
    says(figure, "lr 1.80 hops")  # what the chapter's own cells left behind
    press(chapter, figure, "lr", "ArrowLeft", 30)
    says(figure, "lr 1.50 lands")
    press(chapter, figure, "lr", "ArrowRight", 60)
    says(figure, "lr 2.10 flies out")
    says(figure, "Largest stable rate of plain SGD: 2.")
    assert figure.locator(".explorer-error").inner_text() == ""
    figure.evaluate("figure => figure.scrollIntoView()")  # with the words below it
    screenshot(chapter, "SCREENSHOT")
    figure.get_by_role("button", name="Reset").click()
    says(figure, "lr 1.80 hops")


def test_what_code_has_set_stays_although_sliders_answer(chapter):
    "Each of these rates lies between two steps of the slider, so the page answers each; the last one must stand."
    execute(chapter, "for rate in (.12, .57, 1.234, 1.7): parabola.set(lr=rate)")
    chapter.wait_for_timeout(1500)  # the answers are under way
    figure = explorer(chapter, "curvature")
    says(figure, "lr 1.70 ")
    assert "1.70" in figure.locator(".control-lr .widget-readout").inner_text()
    figure.get_by_role("button", name="Reset").click()
    says(figure, "lr 1.80 hops")


def test_the_canyon_moves_too(chapter):
    figure = explorer(chapter, "steepness")
    press(chapter, figure, "steepness", "ArrowRight", 5)
    says(figure, "flies out")
    says(figure, "Largest stable rate of plain SGD: 0.08.")


def test_a_network_trains_on_real_digits_while_the_slider_is_alive(chapter):
    figure = explorer(chapter, "lr", button="Stop")
    press(chapter, figure, "lr", "ArrowLeft", 10)
    says(figure, "after 200 batches")
    says(figure, "validation images are right")
    assert figure.locator(".explorer-error").inner_text() == ""
    screenshot(chapter, "SCREENSHOT_TRAINING")


def test_in_the_dark_theme_the_words_are_readable(chapter):
    chapter.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    chapter.wait_for_function("document.body.dataset.jpThemeLight === 'false'", timeout=15_000)
    figure = explorer(chapter, "curvature")
    color = figure.locator(".explorer-words div div").first.evaluate("element => getComputedStyle(element).color")
    assert min(int(part) for part in color[color.index("(") + 1:-1].split(",")[:3]) > 150, color
    screenshot(chapter, "SCREENSHOT_DARK")
    chapter.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")


def test_chapter_03_runs_without_an_error(momentum): runs_without_an_error(momentum)


def test_beta_smooths_the_average(momentum):
    figure = explorer(momentum, "noise")
    says(figure, "beta 0.9 remembers about 10 points")
    press(momentum, figure, "beta", "ArrowRight", 5)
    says(figure, "beta 0.95 remembers about 20 points")
    before = figure.locator("img.live-figure").get_attribute("src")
    figure.locator(".control-corrected input").click()
    playwright.expect(figure.locator("img.live-figure")).not_to_have_attribute("src", before, timeout=15_000)
    figure.get_by_role("button", name="Reset").click()
    says(figure, "beta 0.9 remembers")
    assert figure.locator(".explorer-error").inner_text() == ""


def test_beta_makes_a_rate_land_that_flew_out_without_it(momentum):
    "2 / steepness is 0.1, the rate after the key presses 0.126: too much for beta 0 and 0.1, not for beta 0.5."
    figure = explorer(momentum, "steepness")
    says(figure, "lr 0.089, beta 0.00 lands")
    press(momentum, figure, "lr", "ArrowRight", 15)
    says(figure, "lr 0.126, beta 0.00 flies out")
    press(momentum, figure, "beta", "ArrowRight", 50)
    says(figure, "lr 0.126, beta 0.50 lands")
    press(momentum, figure, "beta", "ArrowLeft", 40)
    says(figure, "lr 0.126, beta 0.10 flies out")
    figure.locator(".control-theory input").click()
    says(figure, "largest stable rate 0.11;")
    screenshot(momentum, "SCREENSHOT_MOMENTUM")
    press(momentum, figure, "steepness", "ArrowLeft", 10)
    says(figure, "lr 0.126, beta 0.10 lands")
    assert figure.locator(".explorer-error").inner_text() == ""


def test_a_network_with_momentum_trains_while_the_sliders_are_alive(momentum):
    figure = explorer(momentum, "lr", button="Stop")
    press(momentum, figure, "beta", "ArrowLeft", 10)
    says(figure, "beta 0.8: after 200 batches")
    says(figure, "validation images are right")


def test_chapter_08_runs_without_an_error(learning_rate): runs_without_an_error(learning_rate)


def test_the_finders_picture_grows_while_it_searches(learning_rate):
    "Fewer batches by key press: several pictures come in, each with a later batch, before the suggestions."
    figure = explorer(learning_rate, "num_it", button="Stop")
    says(figure, "valley")
    learning_rate.evaluate("""figure => {
        const picture = figure.querySelector('img.live-figure'), words = figure.querySelector('.explorer-words');
        window.seen = [];
        new MutationObserver(() => window.seen.push(words.innerText))
            .observe(picture, {attributes: true, attributeFilter: ['src']});
    }""", figure.element_handle())
    press(learning_rate, figure, "num_it", "ArrowRight", 10)
    says(figure, "valley")
    learning_rate.wait_for_timeout(500)
    seen = learning_rate.evaluate("window.seen")
    batches = [int(words.split()[1]) for words in seen if words.startswith("Batch ")]
    assert len(set(batches)) >= 4 and batches[-1] > batches[0], seen
    assert figure.locator(".explorer-error").inner_text() == ""
    screenshot(learning_rate, "SCREENSHOT_FINDER")


def test_a_one_cycle_is_shaped_and_trains_within_moments(learning_rate):
    figure = explorer(learning_rate, "pct_start", button="Stop")
    says(figure, "Peak 0.14 after 25% of 240 batches, cosine")
    press(learning_rate, figure, "pct_start", "ArrowRight", 5)
    says(figure, "Peak 0.14 after 50% of 240 batches, cosine")
    says(figure, "validation images are right")
    press(learning_rate, figure, "peak", "ArrowRight", 20)
    says(figure, "Peak 1 after 50%")
    says(figure, "validation images are right")
    assert figure.locator(".explorer-error").inner_text() == ""
    screenshot(learning_rate, "SCREENSHOT_ONE_CYCLE")


def test_chapter_09_runs_without_an_error(sweep_map): runs_without_an_error(sweep_map)


def test_the_map_trains_anew_when_lr_moves_and_can_be_stopped(sweep_map):
    figure = explorer(sweep_map, "optimizer", button="Stop")
    says(figure, "Step 100 of 100, second axis beta")
    press(sweep_map, figure, "lr", "ArrowRight", 3)
    says(figure, "Step 100 of 100")
    press(sweep_map, figure, "column", "ArrowLeft", 2)  # points, and trains nothing
    says(figure, "Step 100 of 100")
    press(sweep_map, figure, "steps", "ArrowRight", 20)
    says(figure, "of 300")  # the last of the key presses has arrived
    figure.get_by_role("button", name="Stop").click()
    sweep_map.wait_for_timeout(1000)
    stopped = figure.locator(".explorer-words").inner_text()
    sweep_map.wait_for_timeout(1000)
    assert (figure.locator(".explorer-words").inner_text() == stopped and "of 300" in stopped
            and "Step 300" not in stopped)
    screenshot(sweep_map, "SCREENSHOT_SWEEP")


def test_another_optimizer_trains_another_map(sweep_map):
    figure = explorer(sweep_map, "optimizer", button="Stop")
    figure.get_by_role("button", name="Reset").click()
    says(figure, "Step 100 of 100")
    picture = figure.locator("img.live-figure").get_attribute("src")
    figure.locator(".control-optimizer select").select_option("RMSProp")
    says(figure, "Step 100 of 100, second axis sqr_beta (RMSProp has no beta)")
    assert figure.locator("img.live-figure").get_attribute("src") != picture
    figure.locator(".control-optimizer select").select_option("Adam")
    says(figure, "Step 100 of 100, second axis beta")
    assert figure.locator(".explorer-error").inner_text() == ""
    assert sweep_map.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0


def test_chapter_10_runs_without_an_error(batchnorm): runs_without_an_error(batchnorm)


def test_activations_follow_the_rate(batchnorm):
    figure = explorer(batchnorm, "lr")
    says(figure, "Batch 60 at lr 0.03")
    press(batchnorm, figure, "lr", "ArrowRight", 10)
    says(figure, "Batch 60 at lr 0.3")


def test_running_statistics_settle_faster_with_a_larger_share(batchnorm):
    figure = explorer(batchnorm, "momentum")
    says(figure, "nine tenths of a jump are in after 22 batches")
    press(batchnorm, figure, "momentum", "ArrowRight", 40)
    says(figure, "momentum 0.5, batches of 32: nine tenths of a jump are in after 4 batches")


def test_chapter_11_runs_without_an_error(transfer): runs_without_an_error(transfer)


def test_more_images_train_a_better_head(transfer):
    figure = explorer(transfer, "n_per_class")
    says(figure, "10 images of each class")
    press(transfer, figure, "n_per_class", "ArrowRight", 40)
    says(figure, "50 images of each class")
    assert figure.locator(".explorer-error").inner_text() == ""


PART_FOUR = ("12_regularization", "13_augmentation", "14_stability", "15_self_training", "16_compression",
             "17_scaling_out", "18_speedrun")


@pytest.mark.parametrize("name", PART_FOUR)
def test_each_slider_of_part_four_moves_its_figure(lab, page, name):
    "By keyboard: another picture, other words, and no error."
    runs_without_an_error(run_chapter(lab, page, f"{name}.ipynb"))
    figures = page.locator(".widget-vbox").filter(has=page.get_by_role("button", name="Reset"))
    figures = figures.filter(has=page.locator("img.live-figure"))
    assert figures.count() > 0
    for figure in figures.all():
        figure.scroll_into_view_if_needed()
        picture, words = figure.locator("img.live-figure"), figure.locator(".explorer-words")
        sliders, boxes = figure.locator(".noUi-handle"), figure.locator("input[type=checkbox]")
        assert sliders.count() + boxes.count() > 0
        for control in [*sliders.all(), *boxes.all()]:
            before, said = picture.get_attribute("src"), words.inner_text()
            control.focus()
            at_the_end = control.get_attribute("aria-valuenow") == control.get_attribute("aria-valuemin")
            is_box = control.get_attribute("type") == "checkbox"
            page.keyboard.press("Space" if is_box else "ArrowRight" if at_the_end else "ArrowLeft")
            playwright.expect(picture).not_to_have_attribute("src", before, timeout=60_000)  # some train
            playwright.expect(words).not_to_have_text(said, timeout=60_000)
        assert figure.locator(".explorer-error").inner_text() == ""
        if folder := os.environ.get("SCREENSHOTS"): page.screenshot(path=f"{folder}/{name}.png")


def test_appendix_a2_runs_without_an_error(live): runs_without_an_error(live)


def wave(page):
    "The figure of appendix A2."
    return explorer(page, "frequency")


def test_a_slider_that_code_has_set_directly_lives_on(live):
    "The page answers a value between two steps while the cell still awaits; then a reader moves the slider."
    figure = wave(live)
    says(figure, "One swing takes 5.00 s")  # what the appendix's own cells left behind
    execute(live, "waves.controls['frequency'].value = .11; await asyncio.sleep(1.5)")
    says(figure, "One swing takes 9.09 s")
    press(live, figure, "frequency", "ArrowRight", 4)
    says(figure, "One swing takes 3.33 s")
    press(live, figure, "height", "ArrowLeft", 4)
    says(figure, "goes 0.30 m up")
    figure.get_by_role("button", name="Reset").click()
    says(figure, "One swing takes 5.00 s")


def test_the_live_picture_has_an_alt_text(live):
    assert wave(live).get_by_role("img", name="A sine wave; two sliders").count() == 1


@pytest.mark.parametrize("width", [1400, 1024])
def test_the_buttons_stand_together_beside_the_words(live, width):
    live.set_viewport_size({"width": width, "height": 950})
    live.wait_for_timeout(500)
    figure = live.locator(".explorer").filter(has=live.get_by_role("button", name="Stop")).first
    figure.scroll_into_view_if_needed()
    # all three at one moment: the page may still scroll between two questions
    reset, stop, words = figure.evaluate("""root => {
        const named = name => [...root.querySelectorAll("button")].find(button => button.textContent.trim() === name);
        return [named("Reset"), named("Stop"), root.querySelector(".explorer-words")].map(part => {
            const {x, y, width, height} = part.getBoundingClientRect();
            return {x, y, width, height};
        });
    }""")
    live.set_viewport_size({"width": 1400, "height": 950})
    assert reset["y"] == stop["y"] and reset["x"] < stop["x"] < words["x"]
    assert words["y"] < stop["y"] + stop["height"] and stop["y"] < words["y"] + words["height"]


def asleep(page):
    "What stands there instead of the figure when no kernel moves it."
    picture = page.locator(".explorer-asleep").filter(has=page.locator("img"))
    playwright.expect(picture).to_have_count(1, timeout=15_000)
    return picture


def sleeps(page):
    "There is the picture, once, with its alt text, its words and a line that says why nothing moves; and no error."
    picture = asleep(page)
    picture.scroll_into_view_if_needed()
    playwright.expect(picture).to_be_visible(timeout=15_000)
    assert picture.locator("img").get_attribute("alt") == "A sine wave; two sliders set its frequency and height."
    assert picture.locator("img").evaluate("img => img.complete && img.naturalWidth > 500")
    playwright.expect(picture).to_contain_text("One swing takes 5.00 s")
    playwright.expect(picture).to_contain_text("This figure is asleep")
    for text in ("Error displaying widget", "Loading widget"):
        for message in page.get_by_text(text).all(): assert not message.is_visible()
    assert not any(figure.is_visible() for figure in page.locator(".explorer, .live-figure").all())
    screenshot(page, "SCREENSHOT_ASLEEP")


def test_a_live_figure_is_there_once(live):
    wave(live)
    assert not asleep(live).is_visible()


def test_a_figure_sleeps_after_its_kernel_was_restarted(live):
    live.evaluate("jupyterapp.commands.execute('docmanager:save')")
    live.wait_for_timeout(1000)
    live.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    live.wait_for_function(f"{KERNEL} === 'idle'", timeout=90_000)
    sleeps(live)


def test_a_figure_sleeps_the_next_day(lab, live):
    "Run, saved, its kernel shut down, and opened again."
    live.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    live.wait_for_timeout(1000)
    live.goto(lab.format("A2_live.ipynb"))
    live.wait_for_function(f"{KERNEL} === 'idle'", timeout=90_000)
    sleeps(live)


def test_a_figure_wakes_when_its_cell_runs(lab, live):
    run_chapter(lab, live, "A2_live.ipynb")
    figure = wave(live)
    press(live, figure, "frequency", "ArrowRight", 1)
    says(figure, "One swing takes 4.00 s")
    assert not asleep(live).is_visible()


def test_nothing_left_the_machine(live):
    hosts = {urlparse(url).hostname for url in live.requested
             if urlparse(url).scheme in ("http", "https", "ws", "wss")}
    assert hosts == {"127.0.0.1"}
    assert live.errors == []
