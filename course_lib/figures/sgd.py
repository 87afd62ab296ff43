"""The live figures of the lesson `sgd`."""
import math
from collections import deque

import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from ..sgd import Optimizer, batches, descend, sgd_step, small_net
from ..support.checks import counted
from ..support.live import LiveFigure, explore
from ..support.plots import COLORS, GHOST, INK, LABEL_BOX, styled
from .landscapes import CanyonView, finite_path, multiplies, outcome


class _RatePanels:
    "The two panels that all valleys share: distance by step, and the factor of one step by learning rate."
    def __init__(self, distance_ax, factor_ax, names, rates, steepest, log=False):
        self.rates, self.distance_ax, self.factor_ax, self.steepest = rates, distance_ax, factor_ax, steepest
        colors, markers = [COLORS["blue"], COLORS["orange"]], ["o", "s"]
        distance_ax.set(xlabel="step", ylabel="distance from the lowest point", yscale="log",
                        ylim=(1e-6, 1e3), title="How far to go?")
        factor_ax.set(xlabel="learning rate", ylabel="factor |1 − lr · curvature|", ylim=(0, 2),
                      xlim=(rates[0], rates[-1]), title="One step of plain SGD", xscale="log" if log else "linear")
        factor_ax.axhspan(1, 2, color="#F6E3DA", zorder=0)
        for y, word in ((.25, "nearer"), (.75, "farther")):  # outside, where no line comes
            factor_ax.text(1.02, y, word, transform=factor_ax.transAxes, va="center", rotation=270, color=INK, fontsize=11)
        self.distances = [distance_ax.plot([], [], color=c, marker=m, ls="-", ms=4, label=n)[0]
                          for n, c, m in zip(names, colors, markers)]
        self.factors = [factor_ax.plot([], [], color=c, ls=s)[0] for c, s in zip(colors, ["-", "--"])]
        self.here = [factor_ax.plot([], [], color=c, marker=m, ms=10, mec="white", ls="", zorder=5)[0]
                     for c, m in zip(colors, markers)]
        self.limit = factor_ax.axvline(1, color=INK, ls=":", lw=2)
        self.limit_text = factor_ax.text(1, 1.6, "", ha="right", color=INK, fontsize=11,
                                         bbox=LABEL_BOX)
        if len(names) > 1: distance_ax.legend(loc="upper right")
        self.artists = [*self.distances, *self.factors, *self.here, self.limit, self.limit_text]

    def draw(self, lr, curvatures, path):
        "path: distances `[n_steps + 1, directions]`; returns whether axes changed."
        steps = np.arange(len(path))
        for i, curvature in enumerate(curvatures):
            self.distances[i].set_data(steps, np.clip(np.abs(path[:, i]), 1.1e-6, 1e9))
            self.factors[i].set_data(self.rates, np.abs(1 - self.rates * curvature))
            self.here[i].set_data([lr], [min(abs(1 - lr * curvature), 1.97)])
        limit = 2 / max(curvatures)
        self.limit.set_xdata([limit, limit])
        left, right = self.factor_ax.bbox.intervalx
        in_the_left_half = self.factor_ax.transData.transform((limit, 0))[0] < (left + right) / 2
        self.limit_text.set(text=f" 2 / {self.steepest} \n = {limit:.3g} ", x=limit,  # on the side without a curve
                            y=.08 if in_the_left_half else 1.6, ha="left" if in_the_left_half else "right")
        resized = self.distance_ax.get_xlim()[1] != steps[-1]
        if resized: self.distance_ax.set_xlim(0, steps[-1])
        return resized


def plain_sgd(lr):
    "lr -> (parameters -> optimizer): what the figures of this lesson take, unless they are given another."
    return lambda params: Optimizer(params, [sgd_step], lr=lr)


def _sentence(lr, outcome, steps, end, limit, *factors):
    "A valley's state in words; the factors only where each step has the same."
    factors = f" Each step multiplies {', '.join(factors)}." if factors else ""
    return (f"lr {lr} {outcome}: after {counted(steps, 'step')} {end}.{factors} "
            f"Largest stable rate of plain SGD: {limit:.3g}.")


@styled
def parabola_explorer(opt_func=plain_sgd):
    """A walker on the parabola ½ · curvature · w², with sliders for learning rate, curvature and number of steps.

    opt_func: lr -> (parameters -> optimizer), by default plain SGD.
    `.state`: lr, curvature, n_steps, w and loss at the end, outcome; of plain SGD
    `factor` (what one step multiplies w by) and `largest_stable_lr`; `as_plain_sgd` (did each step do that?).
    """
    fig = Figure(figsize=(11, 3.7))
    valley_ax, distance_ax, factor_ax = fig.subplots(1, 3)
    panels = _RatePanels(distance_ax, factor_ax, ["w"], np.linspace(.01, 2.5, 400), "curvature")
    w = np.linspace(-5, 5, 200)
    valley_ax.set(xlabel="weight w", ylabel="loss ½ · curvature · w²", xlim=(-5, 5), ylim=(-.7, 13),
                  title="The walker")
    [valley] = valley_ax.plot([], [], color=GHOST, ls="-", lw=2.5)
    [trail] = valley_ax.plot([], [], color=COLORS["blue"], marker="o", ms=4, ls="-", lw=1)
    [walker] = valley_ax.plot([], [], color=COLORS["orange"], marker="o", ms=14, mec="white", ls="", zorder=5)
    note = valley_ax.text(.5, .93, "", transform=valley_ax.transAxes, ha="center", va="top", color=INK, fontsize=12,
                          bbox=LABEL_BOX)
    live = LiveFigure(fig, [valley, trail, walker, note, *panels.artists],
                      alt="Left: a walker and the path behind it on a parabola. "
                          "Middle: its distance from the lowest point after each step. "
                          "Right: what a step does to that distance, against the learning rate; "
                          "beyond 2 / curvature it grows.")
    start = torch.tensor([-2.5], dtype=torch.float64)

    def go(lr, curvature, n_steps):
        path = finite_path(descend(start, lambda w: curvature * w, opt_func(lr), n_steps))[:, 0]
        end = float(path[-1])
        loss = curvature * end * end / 2
        seen = np.clip(path, -50, 50)
        valley.set_data(w, curvature * w ** 2 / 2)
        trail.set_data(seen, np.minimum(curvature * seen ** 2 / 2, 100))
        walker.set_data(seen[-1:], np.minimum(curvature * seen[-1:] ** 2 / 2, 100))
        note.set_text("" if abs(end) < 5 and loss < 13 else f"far outside: w = {end:.2g}")
        if panels.draw(lr, [curvature], path[:, None]): live.invalidate()
        factor = 1 - lr * curvature
        return {"lr": lr, "curvature": curvature, "n_steps": n_steps, "w": end, "loss": loss, "factor": factor,
                "largest_stable_lr": 2 / curvature, "as_plain_sgd": multiplies(path[:, None], [factor]),
                "outcome": outcome(path[:, None])}

    def words(s):
        factors = [f"w by {s['factor']:.2f}"] if s["as_plain_sgd"] else []
        end = f"w = {s['w']:.3g}"
        return _sentence(f"{s['lr']:.2f}", s["outcome"], s["n_steps"], end, s["largest_stable_lr"], *factors)

    return explore(go, live, words=words,
                   caption="Live figure. Move lr with the mouse, or click the slider and hold an arrow key: "
                           "from crawling to flying out. Where does the border go when you change the curvature?",
                   lr=widgets.FloatSlider(1.8, min=.01, max=2.5, step=.01),
                   curvature=widgets.FloatSlider(1, min=.8, max=4, step=.1),
                   n_steps=widgets.IntSlider(20, min=5, max=200, step=5, description="steps"))


@styled
def canyon_explorer(opt_func=plain_sgd):
    """A walker in the canyon ½ (x² + steepness · y²), with sliders for learning rate, steepness and number of steps.

    opt_func: lr -> (parameters -> optimizer), by default plain SGD.
    `.state`: lr, steepness, n_steps, x, y and loss at the end, outcome; of plain SGD
    `factor_along`, `factor_across` (what one step multiplies x and y by) and `largest_stable_lr`;
    `as_plain_sgd` (did each step do that?).
    """
    fig = Figure(figsize=(11, 3.7))
    canyon_ax, distance_ax, factor_ax = fig.subplots(1, 3)
    panels = _RatePanels(distance_ax, factor_ax, ["along (x)", "across (y)"], np.geomspace(.003, 1.5, 400),
                         "steepness", log=True)
    view = CanyonView(canyon_ax, who="walker")
    live = LiveFigure(fig, [*view.artists, *panels.artists],
                      alt="Left: a walker's path seen from above, in a canyon drawn as rings of equal loss. "
                          "Middle: its distance from the lowest point, along and across. "
                          "Right: what a step does to each of them, against the learning rate; "
                          "the steep direction sets the largest stable rate.")
    start = torch.tensor([-2.5, 1.], dtype=torch.float64)

    def go(lr, steepness, n_steps):
        curvatures = torch.tensor([1., steepness], dtype=torch.float64)
        path = finite_path(descend(start, lambda point: curvatures * point, opt_func(lr), n_steps))
        x, y = path[-1].tolist()
        view.draw(path, steepness)
        if panels.draw(lr, [1., steepness], path): live.invalidate()
        factors = [1 - lr, 1 - lr * steepness]
        return {"lr": lr, "steepness": steepness, "n_steps": n_steps, "x": x, "y": y,
                "loss": (x * x + steepness * y * y) / 2,
                "factor_along": factors[0], "factor_across": factors[1], "largest_stable_lr": 2 / steepness,
                "as_plain_sgd": multiplies(path, factors), "outcome": outcome(path)}

    def words(s):
        factors = [f"x by {s['factor_along']:.3f}", f"y by {s['factor_across']:.2f}"] if s["as_plain_sgd"] else []
        end = f"x = {s['x']:.3g} and y = {s['y']:.3g}"
        return _sentence(f"{s['lr']:.3f}", s["outcome"], s["n_steps"], end, s["largest_stable_lr"], *factors)

    return explore(go, live, words=words,
                   caption="Live figure. The dotted line on the right is the speed limit that the walls set. "
                           "Which is the steepest canyon in which the walker still lands in fifty steps?",
                   lr=widgets.FloatLogSlider(10 ** -1.05, base=10, min=-2.5, max=.15, step=.01, readout_format=".3f"),
                   steepness=widgets.FloatSlider(20, min=2, max=50, step=1),
                   n_steps=widgets.IntSlider(25, min=5, max=200, step=5, description="steps"))


@styled
def digits_explorer(dls, n_steps=200, opt_func=plain_sgd, **controls):
    """A network 784-50-10 trained on digits at every move of the learning rate.

    dls: `DataLoaders` of `TensorLoader`s; opt_func: lr -> (parameters -> optimizer), called with the values
    of further controls too, where there are some (`beta=(0., .99, .01)`).
    `.state`: lr, the other controls, step, loss (mean of the last 20 batches), best_loss (lowest such mean),
    accuracy on up to 1,000 validation images (NaN until trained), `diverged` (the loss is above twice a blind guess).
    """
    fig = Figure(figsize=(11, 3.7))
    loss_ax, accuracy_ax = fig.subplots(1, 2, width_ratios=[1.4, 1])
    loss_ax.set(xlabel="batch", ylabel="training loss (nats)", xlim=(0, n_steps), ylim=(0, 4),
                title="The loss while it trains")
    loss_ax.axhline(math.log(10), color=INK, ls=":", lw=1.5)
    guess = loss_ax.text(.99 * n_steps, 2.4, "a blind guess", ha="right", va="bottom", color=INK,
                         fontsize=11, zorder=6, bbox=LABEL_BOX)
    accuracy_ax.set(xlabel="learning rate", ylabel="validation accuracy (%)", xscale="log",
                    xlim=(8e-4, 40), ylim=(0, 102), title="What each rate reached")
    ghosts = [loss_ax.plot([], [], color=GHOST, ls="-", lw=1, alpha=.7)[0] for _ in range(10)]
    [curve] = loss_ax.plot([], [], color=COLORS["blue"], ls="-", lw=2)
    [others] = accuracy_ax.plot([], [], color=GHOST, marker="o", ls="", ms=5)  # the other settings' runs
    [dots] = accuracy_ax.plot([], [], color=COLORS["blue"], marker="o", ls="", ms=8)
    [now] = accuracy_ax.plot([], [], color=COLORS["orange"], marker="D", ls="", ms=12, mec="white", zorder=5)
    live = LiveFigure(fig, [*ghosts, curve, guess, others, dots, now],
                      alt="Left: training loss by batch for the chosen learning rate, earlier runs in grey. "
                          "Right: the validation accuracy that each rate tried so far reached: "
                          "low for tiny rates, high over a wide range, then a cliff.")
    valid_x, valid_y = dls.valid.x[:1000], dls.valid.y[:1000]
    tried, earlier = {}, deque(maxlen=10)

    def train(lr, **settings):
        model, losses = small_net(valid_x.device), []  # the same start for every rate
        optimizer = opt_func(lr, **settings)(model.parameters())
        for ghost, losses_before in zip(ghosts, earlier):
            ghost.set_data(range(len(losses_before)), losses_before)
        now.set_data([], [])
        for xb, yb in batches(dls.train, n_steps):
            loss = F.cross_entropy(model(xb), yb)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) % 10 == 0 and len(losses) < n_steps: yield report(lr, settings, losses)
        with torch.no_grad(): accuracy = (model(valid_x).argmax(1) == valid_y).float().mean().item()
        key = lr, *settings.values()
        tried[key] = 100 * accuracy
        same = {rate: reached for (rate, *rest), reached in tried.items() if rest == list(key[1:])}
        others.set_data([rate for rate, *_ in tried], list(tried.values()))
        dots.set_data(list(same), list(same.values()))
        now.set_data([lr], [tried[key]])
        state = report(lr, settings, losses, accuracy)
        earlier.append(curve.get_ydata())
        yield state

    def report(lr, settings, losses, accuracy=math.nan):
        curve.set_data(range(len(losses)), np.nan_to_num(losses, nan=1e3, posinf=1e3).clip(max=1e3))
        smooth = (np.convolve(losses, np.ones(20) / 20, "valid") if len(losses) >= 20 else
                  np.array([np.mean(losses)]))
        return {"lr": lr, **settings, "step": len(losses), "loss": float(smooth[-1]), "best_loss": float(smooth.min()),
                "accuracy": accuracy, "diverged": not smooth[-1] < 2 * math.log(10)}

    def words(s):
        end = "it flew out" if s["diverged"] else f"the loss is {s['loss']:.2f}"
        if not s["diverged"] and s["accuracy"] < .2: end += ", and it learned nothing"
        right = ("" if math.isnan(s["accuracy"]) else
                 f", and {s['accuracy']:.0%} of {len(valid_y):,} validation images are right")
        settings = "".join(f", {name.replace('_', ' ')} {s[name]:.3g}" for name in controls)
        return f"lr {s['lr']:.3g}{settings}: after {counted(s['step'], 'batch')} {end}{right}."

    return explore(train, live, words=words,
                   caption="Live figure. Each move of the slider trains a network on real digits; "
                           "grey curves are earlier runs, at most ten, and each dot is one run, "
                           f"judged on {len(valid_y):,} validation images.",
                   lr=widgets.FloatLogSlider(.1, base=10, min=-3, max=1.5, step=.05, readout_format=".3g"), **controls)
