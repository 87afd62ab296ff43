"""Live figures outside of a notebook, and in an event loop of our own."""
import asyncio
import io
import time

import ipywidgets as widgets
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from course_lib.data import digits
from course_lib.live import LiveFigure, explore
from course_lib.sgd import digits_explorer, parabola_explorer


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


def test_several_controls_move_as_one():
    calls = []
    explorer = explore(lambda a, b: calls.append((a, b)) or {"sum": a + b}, a=(0, 9), b=(0, 9))
    calls.clear()
    explorer.set(a=1, b=2)
    assert calls == [(1, 2)] and explorer.state == {"sum": 3}


def test_controls_as_interact_reads_them():
    explorer = explore(lambda **values: dict(values), number=(0., 1., .1), whole=(0, 5), choice=["a", "b"], flag=True)
    assert [type(c) for c in explorer.controls.values()] == [widgets.FloatSlider, widgets.IntSlider, widgets.Dropdown, widgets.Checkbox]
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


def test_an_explorer_offers_a_picture_and_a_widget_in_one_output(capsys, monkeypatch):
    outputs = []
    monkeypatch.setattr("course_lib.live.display", lambda *args, **kwargs: outputs.append((args, kwargs)))
    parabola_explorer()._ipython_display_()
    (bundle,), options = outputs[0]
    assert {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"} <= bundle.keys()
    assert options["metadata"]["image/png"]["alt"] == bundle["text/plain"] and "Live figure" in outputs[1][0][0].data
