"""What the lesson `rmsprop` shows, beyond what test_figures_sgd.py drives: its figure's texts and its measured runs."""
import math

import pytest
from matplotlib.text import Text

from course_lib.figures.rmsprop import rmsprop_explorer
from course_lib.support.results import results


def test_the_walker_outside_of_the_picture_says_where_it_is():
    explorer = rmsprop_explorer(n_steps=1)
    [note] = [artist for artist in explorer.figure.artists if isinstance(artist, Text)]
    assert note.get_text() == ""
    state = explorer.set(lr=1., alpha=.999)
    assert note.get_text() == f"far outside: x = {state['x']:.2g}, y = {state['y']:.2g}" and state["x"] > 25
    explorer.reset()
    assert note.get_text() == ""


def test_sgd_is_crosses_and_not_an_area():
    sgd = [line for line in rmsprop_explorer().figure.fig.axes[0].lines if "SGD" in line.get_label()]
    assert len(sgd) == 1 and sgd[0].get_linestyle() == "None" and len(sgd[0].get_xdata()) == 10
    above = sgd[0].get_ydata() > 0
    assert above.sum() == 5, "both walls"


def test_nothing_in_it_is_cut_or_collides():
    figure = rmsprop_explorer().figure
    figure.fig.canvas.draw()
    renderer = figure.canvas.get_renderer()
    for ax in figure.fig.axes:
        for axis in (ax.xaxis, ax.yaxis):
            boxes = [label.get_window_extent(renderer) for label in axis.get_ticklabels() if label.get_text()]
            assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:]))
            assert all(figure.fig.bbox.x0 <= box.x0 and box.x1 <= figure.fig.bbox.x1 for box in boxes)


def test_the_measured_runs_are_whole():
    runs = results("strides")
    assert "torch" in runs["made"]
    tuned = [*runs["next word"].values(), *runs["unread text"]["tuned"].values(),
             *runs["small net of mnist"].values(), *runs["small net of digits"].values()]
    assert len(tuned) == 10
    for run in tuned:
        by_lr = [math.inf if loss is None else loss for loss in run["by_lr"]]
        best = by_lr.index(min(by_lr))
        assert len(run["lrs"]) == len(by_lr) == 9 and len(run["final"]) == 10 and 0 < best < 8
        assert run["lr"] == pytest.approx(run["lrs"][best], rel=.01)
    for part in (runs["first reading"], runs["unread text"]["as before"]):
        assert set(part) == {"SGD", "RMSProp"} and all(len(losses) == 10 for losses in part.values())
