"""Live figures outside of a notebook, in an event loop of our own, in cells of IPython's and in a kernel."""
import asyncio
import gc
import io
import threading
import time

import ipywidgets as widgets
import numpy as np
import pytest
from bs4 import BeautifulSoup
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import start_new_kernel
from matplotlib.figure import Figure
from PIL import Image

from course_lib.data import digits
from course_lib.support.live import Explorer, LiveFigure, explore, in_turns
from course_lib.figures.sgd import canyon_explorer, digits_explorer, parabola_explorer
from drive import drive


def pixels(data): return np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB")).astype(int)


def moving_line():
    fig = Figure(figsize=(4, 3), facecolor="white")
    [line] = fig.add_subplot(xlim=(0, 1), ylim=(0, 1)).plot([0, 1], [0, 0], lw=5)
    return line, LiveFigure(fig, [line], alt="A line.")


def test_the_picture_follows_and_forgets():
    line, live = moving_line()
    at_zero = pixels(live.image.value)
    line.set_ydata([1, 0])
    live.update()
    moved = pixels(live.image.value)
    assert (abs(moved - at_zero) > 50).any()
    line.set_ydata([0, 0])
    live.update()
    assert np.array_equal(pixels(live.image.value), at_zero)  # no trace of where it was


def test_the_jpeg_is_close_to_the_drawing():
    line, live = moving_line()
    line.set_ydata([1, 0])
    live.update()
    exact = np.asarray(live.canvas.buffer_rgba())[..., :3].astype(int)
    assert abs(pixels(live.image.value) - exact).mean() < 1 and np.array_equal(pixels(live.encode("png")), exact)


def test_inside_the_frame_a_blitted_picture_is_the_drawn_one():
    "(On the frame itself blitting draws the line over, a full drawing under it.)"
    line, live = moving_line()
    line.set_data(np.linspace(0, 1, 50), np.linspace(0, 1, 50) ** 2)
    live.update()
    blitted = np.asarray(live.canvas.buffer_rgba()).astype(int)
    line.set_animated(False)
    live.canvas.draw()
    drawn = np.asarray(live.canvas.buffer_rgba())
    left, bottom, right, top = (int(edge) for edge in line.axes.bbox.extents)
    inside = slice(len(drawn) - top + 3, len(drawn) - bottom - 3), slice(left + 3, right - 3)
    assert np.array_equal(blitted[inside], drawn[inside]) and (drawn[inside] != 255).any()


def test_what_stands_still_is_redrawn_after_invalidate():
    line, live = moving_line()
    before = pixels(live.image.value)
    line.axes.set_title("A title")
    live.update()
    assert np.array_equal(pixels(live.image.value), before)
    live.invalidate()
    live.update()
    assert not np.array_equal(pixels(live.image.value), before)


def test_an_observer_that_fails_is_seen_and_recovers():
    line, live = moving_line()

    def f(n):
        if n == 3: raise RuntimeError("three <is> too many")
        line.set_ydata([0, n / 10])
        return {"n": n}

    explorer = explore(f, live, n=widgets.IntSlider(1, 0, 9))
    picture = bytes(live.image.value)
    explorer.controls["n"].value = 3
    assert "RuntimeError: three &lt;is&gt; too many" in explorer._alarm.value
    assert explorer.state == {"n": 1} and bytes(live.image.value) == picture
    with pytest.raises(RuntimeError, match="too many"): explorer.set(n=3)
    assert explorer.set(n=5) == {"n": 5} and explorer._alarm.value == "" and bytes(live.image.value) != picture
    assert explorer.reset() == {"n": 1}


def from_the_page(control, value): control.set_state({"value": value})


def test_a_late_answer_of_a_slider_is_no_move():
    calls = []
    explorer = explore(lambda lr, rate: calls.append((lr, rate)) or {"lr": lr, "rate": rate},
                       lr=widgets.FloatSlider(.5, min=0, max=2, step=.1),
                       rate=widgets.FloatLogSlider(.09, base=10, min=-3, max=1, step=.05))
    explorer.controls["lr"].value = .12
    explorer.set(lr=.57)
    n = len(calls)
    from_the_page(explorer.controls["lr"], .1)  # the answer to .12
    from_the_page(explorer.controls["lr"], .6000000000000001)  # the page's arithmetic in another version
    assert len(calls) == n and explorer.state["lr"] == explorer.values["lr"] == .57
    assert explorer.state["rate"] == .09 and explorer.controls["rate"].value == pytest.approx(10 ** -1.05)
    for value in (.3, .4): explorer.set(lr=value)
    from_the_page(explorer.controls["lr"], .30000000000000004)  # needs no answer, so this is a reader's move
    assert explorer.state["lr"] == pytest.approx(.3)
    from_the_page(explorer.controls["lr"], .1)  # and now a reader's move to the same place
    assert explorer.state["lr"] == .1
    from_the_page(explorer.controls["rate"], .5)
    assert explorer.state["rate"] == .5
    from_the_page(explorer.controls["lr"], .2)
    assert explorer.state == {"lr": .2, "rate": .5}


def test_messages_in_other_threads_are_answered_at_home_and_at_once():
    "As ipykernel 7 handles them; what piles up while the kernel is busy is one move."
    seen = []

    async def scenario():
        explorer = explore(lambda n: seen.append((n, threading.current_thread())) or {"n": n}, n=(0, 9))
        seen.clear()
        pages = [threading.Thread(target=from_the_page, args=(explorer.controls["n"], n)) for n in (7, 8, 9)]
        for page in pages:
            page.start()
            page.join()
        assert seen == []
        await asyncio.sleep(0)
        assert seen == [(9, threading.main_thread())] and explorer.state == {"n": 9}
        click = threading.Thread(target=explorer.buttons["Reset"].click)
        click.start()
        click.join()
        await asyncio.sleep(0)
        assert explorer.state == {"n": 4} and seen[-1][1] is threading.main_thread()

    asyncio.run(scenario())


def test_what_a_control_would_clip_is_refused_and_nothing_moves():
    explorer = explore(lambda a, b: {"a": a, "b": b}, a=(0, 9), b=["x", "y"])
    with pytest.raises(ValueError, match="a goes from 0 to 9; 12 is outside"): explorer.set(a=12)
    with pytest.raises(Exception, match="Invalid selection"): explorer.set(a=3, b="z")
    assert explorer.values == {"a": 4, "b": "x"} and explorer.state == explorer.values


def test_broken_from_the_start():
    def broken(n): raise RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"): explore(broken, n=(0, 3))
    with pytest.raises(TypeError, match="state as a dict"): explore(lambda n: n, n=(0, 3))


def test_words_that_fail_leave_the_picture():
    line, live = moving_line()

    def f(n):
        line.set_ydata([0, n / 9])
        return {"n": n}

    explorer = explore(f, live, words=lambda s: f"<b>{1 / (s['n'] - 3)}", n=widgets.IntSlider(1, 0, 9))
    assert "&lt;b&gt;" in explorer._line.value
    picture = bytes(live.image.value)
    explorer.controls["n"].value = 3
    assert (isinstance(explorer.error, ZeroDivisionError) and bytes(live.image.value) == picture
            and explorer.state == {"n": 1})


def test_a_run_that_is_overtaken_is_closed():
    closed = []

    async def scenario():
        def work(n):
            try:
                for i in range(100):
                    time.sleep(.005)
                    yield {"i": i}
            finally: closed.append(n)

        explorer = explore(work, n=(0, 9))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        explorer.set(n=1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert closed == [4]
        explorer.stop()
        await asyncio.sleep(0)
        assert closed == [4, 1]

    asyncio.run(scenario())


def test_several_controls_move_as_one():
    calls = []
    explorer = explore(lambda a, b: calls.append((a, b)) or {"sum": a + b}, a=(0, 9), b=(0, 9))
    calls.clear()
    explorer.set(a=1, b=2)
    assert calls == [(1, 2)] and explorer.state == {"sum": 3}


def test_controls_as_interact_reads_them():
    explorer = explore(lambda **values: dict(values), number=(0., 1., .1), whole=(0, 5), choice=["a", "b"], flag=True)
    assert [type(c) for c in explorer.controls.values()] == [widgets.FloatSlider, widgets.IntSlider, widgets.Dropdown,
                                                             widgets.Checkbox]
    with pytest.raises(ValueError, match="Control 'wrong'"): explore(lambda wrong: {}, wrong=object())


def test_only_core_widgets_are_used():
    "Colab has no manager for others; the digits' explorer has every kind of part."
    explorer = digits_explorer(digits(device="cpu"), n_steps=3)
    seen, waiting = [], [explorer.widget]
    while waiting:
        seen.append(widget := waiting.pop())
        waiting += getattr(widget, "children", ())
    assert len(seen) > 6 and {w._model_module for w in seen} == {"@jupyter-widgets/controls"}


def test_without_an_event_loop_training_runs_through():
    explorer = digits_explorer(digits(device="cpu"), n_steps=5)
    assert explorer.set(lr=.1)["step"] == 5 and 0 <= explorer.state["accuracy"] <= 1


def test_work_is_done_in_slices_and_a_move_ends_it():
    "A step takes 2 ms at least, so a slice of 40 ms has 21 at most: then the kernel may look at its messages."
    async def scenario():
        log = []

        def work(n):
            for i in range(2000):
                time.sleep(.002)
                log.append(n)
                yield {"n": n, "i": i}

        explorer = explore(work, n=(0, 9))
        slices = []
        for _ in range(6):
            before = len(log)
            await asyncio.sleep(0)
            slices.append(len(log) - before)
        assert 0 < max(slices) <= 21
        for n in (1, 2, 5): explorer.set(n=n)
        before = len(log)
        for _ in range(4): await asyncio.sleep(0)
        assert set(log[before:]) == {5} and explorer.state["n"] == 5  # those overtaken never show themselves again
        explorer.stop()
        await asyncio.sleep(0)
        before = len(log)
        for _ in range(4): await asyncio.sleep(0)
        assert len(log) == before

    asyncio.run(scenario())


def test_training_shows_itself_while_it_runs_and_can_be_overtaken():
    async def scenario():
        explorer = digits_explorer(digits(device="cpu"), n_steps=400)
        explorer.set(lr=.1)
        seen = set()
        while explorer._task and not explorer._task.done():
            seen.add(explorer.state.get("step"))
            await asyncio.sleep(0)
        assert len(seen) > 1, "it never showed an intermediate state"
        explorer.set(lr=.01)
        explorer.set(lr=.3)
        state = await explorer.done()
        assert state["lr"] == pytest.approx(.3, rel=.2) and state["step"] == 400 and not state["diverged"]

    asyncio.run(scenario())


def test_an_explorer_offers_a_picture_a_widget_and_a_caption(monkeypatch):
    "The picture as HTML with its alt text, for JupyterLab and nbconvert, and as PNG with it in the metadata."
    outputs = []
    monkeypatch.setattr("course_lib.support.live.display", lambda *args, **kwargs: outputs.append((args, kwargs)))
    explorer = parabola_explorer()
    explorer._ipython_display_()
    ((picture,), options), ((view,), _), ((caption,), _) = outputs
    alt = options["metadata"]["image/png"]["alt"]
    assert alt == picture["text/plain"] == explorer.figure.alt and "Live figure" in caption.data
    page = BeautifulSoup(picture["text/html"], "html.parser")
    assert page.img["alt"] == alt and page.img["src"].endswith(picture["image/png"])
    assert "lr 1.80 hops" in page.text and "asleep" in page.text
    assert view["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.widget.model_id
    assert view["text/html"] == view["text/plain"] == ""  # without a kernel there is nothing besides the picture
    assert explorer.widget.children[2].value.startswith(f'<img alt="{alt[:20]}')


def small_explorer(long=False):
    line, live = moving_line()
    live.fig.set_size_inches(1, 1)

    def f(n):
        line.set_ydata([0, n])
        return {"n": n}

    def in_slices(n): yield f(n)

    return explore(in_slices if long else f, live, n=(0., 1., .1))


@pytest.fixture
def cells():
    "Run the text of a cell, as a notebook would."
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    shell.displayhook.write_format_data = lambda *_: None
    shell.display_pub.publish = lambda *_, **__: None

    def run(text): shell.run_cell(text, store_history=True).raise_error()

    try:
        shell.user_ns |= {"explore": explore, "small": small_explorer, "parabola_explorer": parabola_explorer}
        yield run, shell.user_ns
    finally: InteractiveShell.clear_instance()


def alive():
    "How many explorers, widgets and figures there are in memory."
    gc.collect()
    kinds = Explorer, widgets.Widget, Figure
    return [sum(issubclass(type(thing), kind) for thing in gc.get_objects()) for kind in kinds]


@pytest.mark.parametrize("cell", [
    "figure = small()\nfigure", "figure = small()\ndisplay(figure)", "small()",
    "figure = small(long=True)\nfigure.set(n=1.)\nfigure",
    "figures = [explore(lambda n: {'n': n}, n=(0, 9)) for _ in range(3)]\ndisplay(*figures)"])
def test_a_cell_that_runs_again_closes_what_it_showed_before(cells, cell):
    run, _ = cells
    counts = []
    for i in range(30):
        run(cell)
        if i in (4, 29): counts.append(alive())
    assert counts[0] == counts[1], "explorers, widgets, figures after 5 runs and after 30"


def test_a_chapters_figure_is_closed_with_all_that_it_holds(cells):
    run, names = cells
    run("figure = parabola_explorer()\nfigure")
    first = names["figure"]
    for i in range(5):
        run("figure = parabola_explorer()\nfigure")
        if i == 2: before = alive()
    assert first.closed and vars(first) == {"closed": True}
    del first
    assert alive() <= before


def test_a_cell_that_runs_again_leaves_other_cells_alone(cells):
    run, names = cells
    here, there = "a = explore(lambda n: {'n': n}, n=(0, 9))\na", "b = explore(lambda m: {'m': m}, m=(0, 9))\nb"
    for cell in (here, there, "a"): run(cell)
    a, b = names["a"], names["b"]
    run(there)
    assert b.closed and not a.closed and a.set(n=3) == {"n": 3}
    run(here)
    assert not a.closed, "the third cell still shows it"
    run("a")
    assert a.closed and not names["a"].closed and names["a"].set(n=5) == {"n": 5}


def test_a_closed_explorer_says_so_and_lets_go():
    async def scenario():
        closed = []

        def work(n):
            try:
                for i in range(1000):
                    time.sleep(.005)
                    yield {"i": i}
            finally: closed.append(n)

        line, live = moving_line()
        explorer = explore(work, live, n=(0, 9))
        slider = explorer.controls["n"]
        await asyncio.sleep(.1)
        explorer.close()
        await asyncio.sleep(0)
        assert closed == [4] and explorer.closed and live.fig is None and slider.comm is None
        explorer.close()
        slider.value = 7  # nobody listens
        with pytest.raises(AttributeError, match="closed: run the cell again"): explorer.set(n=3)
        await asyncio.sleep(0)
        assert closed == [4]

    asyncio.run(scenario())


def test_an_attribute_that_an_explorer_does_not_have():
    explorer = explore(lambda n: {"n": n}, n=(0, 9))
    with pytest.raises(AttributeError, match="This Explorer has no 'values_'.$"): explorer.values_


@pytest.mark.parametrize("slider", [
    widgets.FloatSlider(.123, min=0, max=1, step=None), widgets.FloatSlider(2, min=2, max=2),
    widgets.IntSlider(3, 3, 3), widgets.FloatLogSlider(1, min=0, max=0)])
def test_sliders_without_steps_or_room_stand_where_they_stand(slider):
    value = slider.value
    explorer = explore(lambda n: {"n": n}, n=slider)
    assert explorer.state == explorer.set(n=value) == explorer.reset() == {"n": value}
    drive(explorer)


def test_moves_that_come_faster_than_pictures():
    "Each run needs three slices to its first picture, and a move comes after each: `shows_before_next` lets it come."
    async def scenario(shows_before_next):
        def work(n):
            for i in range(6):
                time.sleep(.045)
                yield {"n": n, "i": i} if i > 1 else None

        explorer = explore(work, n=(0, 9))
        explorer.shows_before_next = shows_before_next
        await explorer.done()
        seen, show = [], explorer._show
        explorer._show = lambda state: (seen.append((state["n"], state["i"])), show(state))
        for n in range(9):
            explorer.set(n=n)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        while_it_moved = list(seen)
        assert await explorer.done() == {"n": 8, "i": 5}
        assert seen[-4:] == [(8, i) for i in (2, 3, 4, 5)]
        return while_it_moved

    assert asyncio.run(scenario(False)) == []
    seen = asyncio.run(scenario(True))
    assert len(seen) > 1 and all(i == 2 for _, i in seen) and [n for n, _ in seen] == sorted({n for n, _ in seen})


def test_a_slider_that_speaks_while_a_cell_awaits_is_answered_and_confirmed():
    "ipykernel 7.4 confirms no such message itself, and the page's slider says nothing more before."
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        client.execute("""if True:
            import asyncio
            from course_lib.support.live import explore
            explorer = explore(lambda n: {"n": n}, n=(0, 9))
            print(explorer.controls["n"].comm.comm_id, flush=True)
            while explorer.state["n"] != 7: await asyncio.sleep(.01)
            print("moved", flush=True)
            await asyncio.sleep(.5)""")
        move, seen = None, []
        while "moved" not in seen or "idle" not in seen:
            message = client.get_iopub_msg(timeout=30)
            if message["msg_type"] == "stream":
                text = message["content"]["text"].strip()
                seen.append(text)
                if move is None:
                    data = {"method": "update", "state": {"n": 7, "value": 7}, "buffer_paths": []}
                    move = client.session.msg("comm_msg", {"comm_id": text, "data": data})
                    client.shell_channel.send(move)
            elif move and message["parent_header"].get("msg_id") == move["header"]["msg_id"]:
                if message["msg_type"] == "status": seen.append(message["content"]["execution_state"])
        assert seen.index("idle") > 0
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_an_error_in_the_middle_of_long_work_shows_itself():
    async def scenario():
        def breaks(n):
            for i in range(n):
                if i == 3: raise ValueError("three is too many")
                yield {"i": i}

        explorer = explore(breaks, n=(1, 9))
        explorer.set(n=9)
        with pytest.raises(ValueError, match="three is too many"): await explorer.done()
        assert "three is too many" in explorer._alarm.value
        explorer.set(n=2)
        assert await explorer.done() == {"i": 1} and explorer._alarm.value == ""

    asyncio.run(scenario())


def test_work_in_turns_ends_with_its_reader():
    tidied = []

    def deep_work(report):
        n = 0
        try:
            for n in range(1, 4): report({"n": n})
        finally: tidied.append(n)

    assert [state["n"] for state in in_turns(deep_work)] == [1, 2, 3]
    one_only = in_turns(deep_work)
    assert next(one_only) == {"n": 1}
    one_only.close()
    assert tidied == [3, 1]
    with pytest.raises(ZeroDivisionError): list(in_turns(lambda report: report(1 / 0)))


def test_a_figure_that_fails_beyond_the_middle_of_a_slider_is_caught_by_driving_it():
    def f(lr, kind):
        if lr > .7 and kind == "b": raise RuntimeError("too far")
        return {"lr": lr, "kind": kind}

    controls = dict(lr=(0., 1., .1), kind=["a", "b"])
    with pytest.raises(RuntimeError, match="too far") as caught: drive(explore(f, **controls))
    assert "'kind': 'b'" in caught.value.__notes__[0]
    controls["kind"] = ["a", "c"]
    seen = drive(explore(f, **controls))
    assert {0, 1, .5} < {state["lr"] for state, _ in seen} and any(0 < state["lr"] < .1 for state, _ in seen)
    assert {state["kind"] for state, _ in seen} == {"a", "c"} and "kind c" in seen[-1][1]


@pytest.mark.parametrize("wrong", [
    lambda s: f"lr {1.01 * s['lr']:.3g} of 784-50-10", lambda s: f"{s['share'] + .01:.0%}",
    lambda s: f"{s['n'] + 1:,} images", lambda s: f"lr {s['lr']:.3g}, {s['lr'] / 2:.4f} or so"])
def test_words_whose_numbers_are_not_the_states_are_caught_by_driving_it(wrong):
    right = lambda s: f"lr {s['lr']:.3g} (784-50-10): {s['share']:.0%}, 784-50-10. {s['n']:,} beta2 10⁻² {s['lr']:.2e}."
    f = lambda lr: {"lr": lr, "share": lr / 40, "n": 1797, "net": "784-50-10"}
    slider = lambda: widgets.FloatLogSlider(1.234, base=10, min=-3, max=1, step=.1)
    drive(explore(f, words=right, lr=slider()))
    drive(explore(f, words=lambda s: f"{2 * s['lr']:.3f} of 7", lr=slider()), also=lambda s: [2 * s["lr"], 7])
    with pytest.raises(AssertionError, match="nowhere in the state"): drive(explore(f, words=wrong, lr=slider()))


def test_the_walkers_of_chapter_02_hold_over_the_whole_range():
    for explorer in (parabola_explorer(), canyon_explorer()): assert len(drive(explorer)) > 12
    state, words = drive(explore(lambda n, on: {"n": n, "on": on}, n=(0, 5), on=True))[-1]
    assert state == {"n": 5, "on": False} and words == "n 5 · on False"
