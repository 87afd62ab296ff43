"""Recordings of live figures: grids, words, what is drawn, what cannot be. The pixels: tests/browser/test_book.py."""
import base64
import json
import zlib
from functools import partial

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.tri import Triangulation

from course_lib.figures.sgd import canyon_explorer, parabola_explorer
from course_lib.sgd import Optimizer
from course_lib.support.live import LiveFigure, explore
from course_lib.support.recording import outline


def unpacked(recording):
    text = recording.script("name")
    assert text.startswith('recorded("name","') and text.endswith('");\n')
    return json.loads(zlib.decompress(base64.b64decode(text.split('"')[3])))


def every_kind():
    "A figure with every kind of artist that the course moves, and some more."
    fig = Figure(figsize=(6, 3))
    left, right = fig.subplots(1, 2)
    x = np.linspace(0, 1, 50)
    [line] = left.plot(x, x, "--", lw=2, marker="s", markevery=9, mec="white", label="a line")
    [dots] = left.plot(x[::9], x[::9], ls="", marker="$3$", color="black",
                       path_effects=[withStroke(linewidth=2, foreground="white")])
    wild = LineCollection([], linestyles=":")
    left.add_collection(wild)
    left.contour(np.add.outer(x, x ** 2))
    text = left.text(.5, .5, "", bbox={"fc": "white", "alpha": .8}, rotation=30, clip_on=True)
    image = right.imshow(np.zeros((4, 5)), vmin=0, vmax=1, aspect="auto")
    [bar] = right.bar([1], [2], hatch="//", edgecolor="white")
    right.fill_between(x, x, alpha=.3)
    legend = left.legend()
    live = LiveFigure(fig, [line, dots, wild, text, image, bar, legend, right.xaxis], alt="All kinds.")

    def f(a, name, on):
        line.set_ydata(x ** a)
        dots.set_ydata(x[::9] ** a)
        wild.set_segments([np.column_stack([x, x * a / 3]), np.column_stack([x, 1 - x])])
        text.set_text(rf"$\frac{{{a}}}{{2}}$ {name}")
        image.set_data(np.full((4, 5), a / 3) * np.arange(5) / 5)
        bar.set_height(a)
        right.set_xlim(-.5, 4 + a)
        live.invalidate()
        legend.set_visible(on)
        return {"a": a, "name": name, "on": on}

    return explore(f, live, a=(1, 3), name=["one", "two"], on=True)


def test_every_setting_has_its_words_and_its_drawing():
    explorer = every_kind()
    recording = explorer.record()
    data = unpacked(recording)
    assert len(recording.settings) == 3 * 2 * 2 == len(data["words"]) == len(set(data["words"]))
    assert [control[:3] for control in data["controls"]] == [
        [1, ["1", "2", "3"], "range"], [0, ["one", "two"], "select"], [1, ["off", "on"], "checkbox"]]
    for values, words in zip(recording.settings, data["words"], strict=True):
        assert explorer.words(explorer.set(**values)) == words
    rows = np.array(data["rows"]).T
    assert len(rows) == 12 and len({tuple(row) for row in rows.tolist()}) == 12 and rows.max() < len(data["drawings"])
    assert {op[0] for op in data["ops"]} == {0, 1, 2} and len(data["sheets"]) == 1
    assert recording.note == "Recorded at each of its settings."


def test_the_explorer_stands_as_before():
    explorer = canyon_explorer()
    explorer.figure.invalidate()
    explorer.figure.update()  # matplotlib's layout is at rest the second time
    state, picture = explorer.state, explorer.figure.encode("png")
    explorer.record({"lr": 3})
    assert explorer.values["lr"] == explorer._start["lr"] and explorer.set() == state
    assert explorer.figure.encode("png") == picture


def test_a_grid_says_what_is_coarser_and_what_stands_still():
    explorer = parabola_explorer()
    recording = explorer.record({"lr": 4, "n_steps": [5, 50]})
    assert {setting["n_steps"] for setting in recording.settings} == {5, 20, 50}, "where it stands is among them"
    assert recording.note == ("Recorded with lr at 5 of its 250 values, steps at 3 of its 40 values. "
                              "Here these stand still: curvature (1.00).")
    assert {setting["lr"] for setting in recording.settings} >= {.01, 1.8, 2.5}
    with pytest.raises(ValueError, match="No control rate; there are lr"): explorer.record({"rate": 3})


def test_without_a_grid_fine_sliders_become_coarse():
    recording = explore(lambda a, b, c: {"a": a, "b": b, "c": c}, a=widgets.FloatLogSlider(1, min=-3, max=0, step=.01),
                        b=(0, 50), c=["x", "y"]).record(limit=100)
    assert 50 < len(recording.settings) <= 150 and {setting["c"] for setting in recording.settings} == {"x", "y"}
    assert {round(setting["a"], 6) for setting in recording.settings} >= {.001, 1}


def test_a_changed_stepper_changes_the_recording():
    def too_long(p, grad, state, *, lr): p.add_(grad, alpha=-1.1 * lr)

    mutated = lambda lr: partial(Optimizer, steppers=[too_long], lr=lr)
    a, b = (make.record({"lr": [.1, 1.8]}) for make in (parabola_explorer(), parabola_explorer(mutated)))
    assert a.words != b.words and a.data["ops"] != b.data["ops"]


def test_work_in_slices_is_recorded_at_its_end():
    def count(n):
        for i in range(n): yield {"n": n, "i": i} if i % 2 else None
        yield None

    recording = explore(count, n=(2, 6, 2)).record()
    assert recording.words == ["n 2 · i 1", "n 4 · i 3", "n 6 · i 5"] and recording.shots == {}


def test_an_error_says_where_the_controls_stood():
    with pytest.raises(ZeroDivisionError) as caught: explore(lambda n: {"n": 1 / (n - 3)}, n=(0, 9)).record()
    assert caught.value.__notes__ == ["The controls stood at {'n': 3}."]


@pytest.mark.parametrize("kind", ["shaded", "filtered", "see-through"])
def test_what_cannot_be_recorded_is_an_error(kind):
    fig = Figure(figsize=(2, 2))
    ax = fig.subplots()
    if kind == "shaded": artist = ax.tripcolor(Triangulation([0, 1, 0], [0, 0, 1]), [1, 2, 3], shading="gouraud")
    elif kind == "see-through": artist = ax.imshow(np.zeros((2, 2)), alpha=.5)
    else:
        [artist] = ax.plot([0, 1])
        artist.set_agg_filter(lambda image, dpi: (image, 0, 0))
    explorer = explore(lambda n: {"n": n}, LiveFigure(fig, [artist], alt="x"), n=(0, 2))
    with pytest.raises(NotImplementedError, match="cannot be recorded"): explorer.record()


def test_an_outline_is_relative_and_whole():
    from matplotlib.path import Path
    path = Path([[1, 2], [3, 2], [3, 5], [0, 0], [10, 10], [11, 12.06]], [1, 2, 2, 79, 1, 2])
    assert outline(path) == "m8 16l16 0 0 24zm72 64l8 16"


def test_a_picture_of_torch_numbers():
    explorer = explore(lambda n: {"n": torch.tensor(n).item()}, n=(0, 2))
    assert explorer.record().words == ["n 0", "n 1", "n 2"]
