"""The live figures of the lesson `adam`."""
import math
from itertools import cycle

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..adam import adam_steppers, adamw_steppers
from ..momentum import average_grad, l2_reg, momentum_step
from ..rmsprop import average_sqr_grad, rms_prop_step
from ..sgd import Optimizer, descend, sgd_step
from ..support.checks import counted
from ..support.live import LiveFigure, explore
from ..support.optimizer import hyperparameters
from ..support.plots import COLORS, GHOST, INK, styled
from .landscapes import LANDSCAPES

CONTENDERS = {"SGD": [l2_reg, sgd_step], "momentum": [l2_reg, average_grad, momentum_step],
              "RMSProp": [l2_reg, average_sqr_grad, rms_prop_step], "Adam": [l2_reg, *adam_steppers],
              "AdamW": adamw_steppers}


def run_race(landscape, rates, contenders=CONTENDERS, **hypers):
    """The contenders' paths from a landscape's start: name -> `[n_steps + 1, 2]`.

    rates: name -> lr, or a tensor of n of them, all run in one call; the path is `[n_steps + 1, n, 2]` then.
    contenders: name -> steppers.
    hypers: beta, sqr_beta, eps, weight_decay; each contender takes those that it knows.
    """
    hypers, paths = {"beta": .9, "sqr_beta": .99, "eps": 1e-8, "weight_decay": 0., **hypers}, {}
    for name, steppers in contenders.items():
        known = {hyper for stepper in steppers for hyper in hyperparameters(stepper)}
        own = {hyper: value for hyper, value in hypers.items() if hyper in known}
        start = landscape.start.expand(*getattr(rates[name], "shape", ()), 2)
        opt_func = lambda params: Optimizer(params, steppers, lr=rates[name], **own)
        paths[name] = descend(start, landscape.gradient, opt_func, landscape.n_steps)
    return paths


def best_rates(landscape, n=60, contenders=CONTENDERS):
    "Each contender's best of n rates: the lowest at the end, among those that never leave the picture. name -> lr"
    rates = torch.logspace(-4.5, .7, n, dtype=torch.float64)
    paths = run_race(landscape, dict.fromkeys(contenders, rates), contenders)
    best = lambda path: torch.where(landscape.shows(path), landscape.height(path[-1]), math.inf).argmin()
    return {name: rates[best(path)].item() for name, path in paths.items()}


class _RaceView:
    "The two panels of the race: paths on the landscape, heights by step."
    LOOKS = (("blue", "-", "o"), ("orange", "--", "s"), ("green", "-.", "D"), ("pink", "-", "^"),
             ("amber", (0, (1, 2)), "v"), ("sky", (0, (5, 1, 1, 1)), "P"))

    def __init__(self, fig, names):
        self.map_ax, self.height_ax = fig.subplots(1, 2, width_ratios=[1.25, 1])
        styles = {}
        for i, (name, (color, ls, marker)) in enumerate(zip(names, cycle(self.LOOKS))):
            over = name == "AdamW"  # without weight decay it walks on Adam's path: narrow, so that both are seen
            styles[name] = {"color": INK if over else COLORS[color], "ls": ls, "marker": marker, "lw": 1.3 if over else 2.2,
                            "ms": 3.5 if over else 6, "markevery": (2 * i, 15), "zorder": 4 if over else 3}
        if "Adam" in styles: styles["Adam"].update(lw=4, ms=8)
        end = {"mec": "white", "ls": "", "markevery": 1}
        ends = {name: {**style, **end, "ms": size, "zorder": style["zorder"] + 3}
                for (name, style), size in zip(styles.items(), cycle((12, 14, 8, 11, 6, 9)))}  # two at one place: both seen
        plot = lambda ax, style, **more: ax.plot([], [], **style, **more)[0]
        self.paths = {name: plot(self.map_ax, {**style, "lw": .6 * style["lw"], "marker": ""})
                      for name, style in styles.items()}
        self.ends = {name: plot(self.map_ax, style) for name, style in ends.items()}
        self.heights = {name: plot(self.height_ax, style, label=name) for name, style in styles.items()}
        mark = {"color": INK, "ls": "", "zorder": 8, "mfc": "none"}  # outlines, which hide nobody, and nobody hides
        self.goal = plot(self.map_ax, mark, marker="*", ms=26, mew=1.3)
        self.start = plot(self.map_ax, mark, marker="o", ms=13, mew=1.3)
        self.artists = [*self.paths.values(), *self.ends.values(), *self.heights.values(), self.goal, self.start]
        self.map_ax.set(xlabel="x", ylabel="y")
        self.height_ax.set(xlabel="step", ylabel="height above the lowest point", yscale="log", ylim=(1e-9, 1e5),
                           title="How far down?")
        self.height_ax.set_yticks([10. ** power for power in range(-8, 5, 2)])
        self.height_ax.minorticks_off()
        fig.legend(handles=list(self.heights.values()), loc="outside upper center", ncols=6, handlelength=3)

    def show_landscape(self, landscape):
        left, right, bottom, top = landscape.window
        x, y = torch.meshgrid(torch.linspace(left, right, 120), torch.linspace(bottom, top, 120), indexing="xy")
        height = landscape.height(torch.stack([x, y], -1)).numpy()
        for old in list(self.map_ax.collections): old.remove()
        self.map_ax.contour(x.numpy(), y.numpy(), height, levels=np.quantile(height, np.linspace(.02, .9, 12)),
                            colors=GHOST, linewidths=.8, linestyles="solid")
        self.map_ax.set(xlim=(left, right), ylim=(bottom, top), title=landscape.name)
        self.map_ax.title.set_fontsize(13)
        self.height_ax.set_xlim(0, landscape.n_steps)
        self.goal.set_data(*([value] for value in landscape.lowest))
        self.start.set_data(*([value.item()] for value in landscape.start))
        self.map_ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))

    def draw(self, name, path, height):
        seen = path.clamp(-1e3, 1e3).numpy()
        self.paths[name].set_data(*seen.T)
        self.ends[name].set_data(*seen[-1:].T)
        self.heights[name].set_data(range(len(height)), height.clamp(1e-30, 1e9).numpy())


@styled
def race_explorer(contenders=CONTENDERS):
    """Five optimizers from one start: sliders for lr, beta, sqr_beta, eps and weight decay, a choice of landscapes.

    contenders: name -> steppers, to race others; lr multiplies each contender's own best rate there. Weight decay is L2 for all but AdamW, and pulls to (0, 0).
    `.state`: the controls; for each contender by name `lr`, `x`, `y`, `height` (above the lowest point; inf if it
    flew out), `longest_step`, `in_the_picture` (it never left the window); `leader`, the lowest at the end.
    """
    fig = Figure(figsize=(11, 4.8))
    view, best, shown = _RaceView(fig, contenders), {}, None
    live = LiveFigure(fig, view.artists,
                      alt="Left: a landscape as contour lines, with the paths of "
                          f"{', '.join(contenders)} from one start, a ring, "
                          "to, or towards, the lowest point, a star. Right: their heights above the lowest point "
                          "by step, logarithmic.")

    def race(landscape, lr, **hypers):
        nonlocal shown
        ground = LANDSCAPES[landscape]
        if landscape not in best: best[landscape] = best_rates(ground, contenders=contenders)
        if landscape != shown:
            view.show_landscape(ground)
            live.invalidate()
        shown = landscape
        rates = {name: lr * rate for name, rate in best[landscape].items()}
        lowest = ground.height(torch.tensor(ground.lowest, dtype=torch.float64))
        state = {"landscape": landscape, "lr": lr, **hypers}
        for name, path in run_race(ground, rates, contenders, **hypers).items():
            path = path.nan_to_num(math.inf, posinf=math.inf, neginf=-math.inf)
            height = (ground.height(path) - lowest).nan_to_num(math.inf, posinf=math.inf)
            view.draw(name, path, height)
            (x, y), steps = path[-1].tolist(), path.diff(dim=0).norm(dim=1)
            state[name] = {"lr": rates[name], "x": x, "y": y, "height": height[-1].item(),
                           "longest_step": steps.nan_to_num(math.inf, posinf=math.inf).max().item(),
                           "in_the_picture": ground.shows(path).item()}
        return {**state, "leader": min(contenders, key=lambda name: state[name]["height"])}

    def words(s):
        said = lambda height: f"{height:.1g}" if height < 1e7 else "flew out"
        ranked = sorted(contenders, key=lambda name: s[name]["height"])
        return f"After {counted(LANDSCAPES[s['landscape']].n_steps, 'step')}, lowest first: " + "; ".join(
            f"{name} {said(s[name]['height'])} (lr {s[name]['lr']:.2g})" for name in ranked) + "."

    return explore(race, live, words=words,
                   caption="Live figure. A ring marks the start, a star the lowest point. The first slider multiplies "
                           "each contender's own best rate on this landscape. Without weight decay AdamW walks on "
                           "Adam's path; with it all are pulled to (0, 0), which is the lowest point itself on three "
                           "of the landscapes: decay looks better there than it is.",
                   landscape=widgets.Dropdown(options=list(LANDSCAPES)),
                   lr=widgets.FloatLogSlider(1, base=10, min=-1.5, max=1.5, step=.02, description="lr × own best",
                                             readout_format=".2f"),
                   beta=widgets.FloatSlider(.9, min=0, max=.99, step=.01),
                   sqr_beta=widgets.FloatSlider(.99, min=0, max=.999, step=.001, readout_format=".3f"),
                   eps=widgets.FloatLogSlider(1e-8, base=10, min=-8, max=1, step=.25, readout_format=".1e"),
                   weight_decay=widgets.FloatSlider(0, min=0, max=2, step=.05))
