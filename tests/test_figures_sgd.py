"""The live figures of the lessons `sgd`, `momentum`, `rmsprop`, `adam`, over the whole range of their controls."""
import math

import pytest
import torch
from matplotlib.text import Text

from course_lib.data import digits
from course_lib.figures.adam import CONTENDERS, race_explorer
from course_lib.figures.landscapes import LANDSCAPES, multiplies
from course_lib.figures.momentum import average_explorer, momentum_digits_explorer, momentum_explorer
from course_lib.figures.rmsprop import rmsprop_explorer
from course_lib.figures.sgd import canyon_explorer, digits_explorer, parabola_explorer
from course_lib.momentum import SGD, average_grad, average_grad_dampened, momentum_step, nesterov_step
from course_lib.sgd import Optimizer
from course_lib.support.checks import counted
from drive import drive, words_of


def small_digits(): return digits(device="cpu", n_train=200, n_valid=40, batch_size=64)


# What the line under each figure must say, from the state alone

def parabola(s):
    return (f"lr {s['lr']:.2f} {s['outcome']}: after {s['n_steps']} steps w = {s['w']:.3g}. Each step multiplies w by "
            f"{s['factor']:.2f}. Largest stable rate of plain SGD: {s['largest_stable_lr']:.3g}.")


def canyon(s):
    return (f"lr {s['lr']:.3f} {s['outcome']}: after {s['n_steps']} steps x = {s['x']:.3g} and y = {s['y']:.3g}. "
            f"Each step multiplies x by {s['factor_along']:.3f}, y by {s['factor_across']:.2f}. "
            f"Largest stable rate of plain SGD: {s['largest_stable_lr']:.3g}.")


def of_digits(*names):
    def sentence(s):
        end = "it flew out" if s["diverged"] else f"the loss is {s['loss']:.2f}"
        if not s["diverged"] and s["accuracy"] < .2: end += ", and it learned nothing"
        settings = "".join(f", {name} {s[name]:.3g}" for name in names)
        return (f"lr {s['lr']:.3g}{settings}: after {s['step']} batches {end}, and {s['accuracy']:.0%} of 40 "
                "validation images are right.")
    return sentence


def average(s):
    points = f"{s['memory']:.3g} points".replace(" points", " point" if f"{s['memory']:.3g}" == "1" else " points")
    judged = "better" if s["error"] < s["point_error"] else "worse"
    return (f"beta {s['beta']:.3g} remembers about {points}. It is off by {s['error']:.2f}, {judged} than the points "
            f"themselves ({s['point_error']:.2f}); its first value is {s['first']:.2f}.")


def momentum(s):
    seen = (f"lr {s['lr']:.3f}, beta {s['beta']:.2f} {s['outcome']}: {s['left']:.2g} of the distance is left after 60 "
            "steps.")
    factor = max(s["factor_along"], s["factor_across"])
    return seen + (f" Theory: a step multiplies it by {factor:.3f} in the long run; largest stable rate "
                   f"{s['largest_stable_lr']:.3g}; best pair {s['best_lr']:.3f}, {s['best_beta']:.2f}.") * s["theory"]


def rmsprop(s):
    return (f"lr {s['lr']:.3g}, alpha {s['alpha']:.3g}, eps {s['eps']:.2g}: after 200 steps {s['left_along']:.2%} of "
            f"the way along and {s['left_across']:.2%} across are left (SGD: {s['sgd_left']:.0%} along). "
            f"The first step was {s['first_step']:.3g} long.")


def race(s):
    ranked = sorted(THEIR_NAMES, key=lambda name: s[name]["height"])
    said = [f"{s[name]['height']:.1g}" if s[name]["height"] < 1e7 else "flew out" for name in ranked]
    return f"After {LANDSCAPES[s['landscape']].n_steps} steps, lowest first: " + "; ".join(
        f"{name} {height} (lr {s[name]['lr']:.2g})" for name, height in zip(ranked, said)) + "."


THEIR_NAMES = "SGD", "momentum", "RMSProp", "Adam", "AdamW"
FIGURES = {  # how it is made, its sentence, numbers in the words that are not the state's, places along each slider
    "parabola": (parabola_explorer, parabola, [], 33), "canyon": (canyon_explorer, canyon, [], 49),
    "digits": (lambda: digits_explorer(small_digits(), n_steps=30), of_digits(), [40], 10),
    "momentum on digits": (lambda: momentum_digits_explorer(small_digits(), n_steps=30), of_digits("beta"), [40], 10),
    "average": (average_explorer, average, [], 34), "momentum": (momentum_explorer, momentum, [60], 34),
    "RMSProp": (rmsprop_explorer, rmsprop, [200], 33), "race": (race_explorer, race, [150], 8)}


def along(control, n):
    "n values from one end of a slider to the other, on its steps; all options of another control."
    if not hasattr(control, "min"): return getattr(control, "options", [True, False])
    values = [control.min + round((control.max - control.min) * i / (n - 1) / control.step) * control.step
              for i in range(n)]
    values = [min(value, control.max) for value in values]
    return [control.base ** value for value in values] if hasattr(control, "base") else values


@pytest.mark.parametrize("name", FIGURES)
def test_every_control_over_its_whole_range(name, one_thread):
    "Nothing raises, the words are those of the state, and no text that moves leaves the picture."
    make, sentence, others, n = FIGURES[name]
    explorer = make()
    texts, show = [artist for artist in explorer.figure.artists if isinstance(artist, Text)], explorer._show

    def look(state):
        show(state)
        box, renderer = explorer.figure.fig.bbox, explorer.figure.canvas.get_renderer()
        for text in texts:
            place = text.get_window_extent(renderer)
            assert not text.get_text() or (box.x0 <= place.x0 and place.x1 <= box.x1), (text.get_text(), state)

    explorer._show = look
    for state, words in drive(explorer, also=others): assert words == sentence(state)
    for control in explorer.controls.values():  # as a reader moves it
        for value in along(control, n):
            control.value = value
            assert explorer.error is None and words_of(explorer) == sentence(explorer.state), explorer.values


def test_the_figures_take_the_readers_own_optimizer():
    "Plain SGD is known by its steps, heavy ball too, whoever wrote them."
    def my_step(p, grad, state, *, lr): p -= lr * grad

    def my_average(p, grad, state, *, beta): state["velocity"] = beta * state.get("velocity", 0) + grad
    def my_momentum(p, grad, state, *, lr): p -= lr * state["velocity"]

    mine = lambda lr: lambda params: Optimizer(params, [my_step], lr=lr)
    heavy = lambda lr: lambda params: SGD(params, lr, momentum=.5)
    for make in (parabola_explorer, canyon_explorer):
        assert "Each step multiplies" in make(mine)._line.value
        assert "Each step multiplies" not in make(heavy)._line.value and not make(heavy).state["as_plain_sgd"]
    assert momentum(momentum_explorer().state) == momentum_explorer([my_average, my_momentum]).words(
        momentum_explorer([my_average, my_momentum]).state)
    assert "theory" in momentum_explorer([my_average, my_momentum]).controls
    for others in ([average_grad, nesterov_step], [average_grad_dampened, momentum_step]):
        assert "theory" not in momentum_explorer(others).controls


def test_theory_is_shown_when_it_is_ticked_and_leaves_the_ball_where_it_is():
    explorer = momentum_explorer()
    line, words = explorer._line.value, explorer.words
    assert "Theory" not in line and "Theory" in words(explorer.set(theory=True))
    before, after = explorer.set(theory=False), explorer.set(theory=True)
    assert {**before, "theory": True} == after


def test_the_map_opens_away_from_its_best_pair():
    "Who searches for it should not find it on arrival."
    state = momentum_explorer().state
    assert abs(state["beta"] - state["best_beta"]) > .3 and not state["theory"]


def test_a_path_multiplies_if_each_of_its_steps_does():
    path = torch.tensor([[1., 2.], [.5, -2.], [.25, 2.]]).double().numpy()
    assert multiplies(path, [.5, -1.]) and not multiplies(path, [.5, 1.]) and not multiplies(path, [.49, -1.])
    path[2, 1] = 2.001
    assert not multiplies(path, [.5, -1.])


def test_the_race_takes_the_readers_own_contenders():
    def stay(p, grad, state, *, lr): pass

    explorer = race_explorer({"SGD": CONTENDERS["SGD"], "mine": [stay]})
    assert explorer.state["leader"] == "SGD" and "AdamW" not in explorer._line.value
    place, start = explorer.state["mine"], LANDSCAPES["slanted canyon"].start.tolist()
    assert [place["x"], place["y"]] == start


def test_the_race_opens_where_its_point_is_seen():
    "Momentum and RMSProp each see half of the problem, and Adam arrives; nobody and nothing is hidden."
    explorer = race_explorer()
    height = {name: explorer.state[name]["height"] for name in THEIR_NAMES}
    assert height["Adam"] < 1e-4 * min(height["momentum"], height["RMSProp"])
    assert max(height["momentum"], height["RMSProp"]) < height["SGD"] / 10
    map_ax, _ = explorer.figure.fig.axes
    ends = {line.get_marker(): line for line in map_ax.lines if line.get_linestyle() == "None"}
    assert ends["*"].get_zorder() > max(ends[marker].get_zorder() for marker in "sD^v")
    assert ends["*"].get_markerfacecolor() == "none" and ends["v"].get_markersize() < ends["^"].get_markersize()


@pytest.mark.parametrize("n, noun, words", [(1, "step", "1 step"), (0, "step", "0 steps"), (2, "batch", "2 batches"),
                                            (1, "batch", "1 batch"), (1200, "step", "1,200 steps")])
def test_one_step_is_one_step(n, noun, words): assert counted(n, noun) == words


def test_figures_of_one_step_say_so():
    assert "is left after 1 step." in momentum_explorer(n_steps=1)._line.value
    assert "after 1 step " in rmsprop_explorer(n_steps=1)._line.value
    explorer = digits_explorer(small_digits(), n_steps=1)
    assert "after 1 batch the loss" in explorer._line.value and math.isfinite(explorer.state["loss"])
