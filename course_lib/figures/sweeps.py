"""The live figures of the lesson `sweeps`."""
import math
from functools import partial
from time import perf_counter

import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import nn

from ..adam import Adam, AdamW
from ..data import TensorLoader
from ..momentum import SGD
from ..rmsprop import RMSProp
from ..sgd import seeded
from ..support.checks import check_hyper, positive_int
from ..support.live import Explorer, LiveFigure, explore
from ..support.paired import paired
from ..support.plots import COLORS, GHOST, styled
from ..sweeps import Sweep, mlp


def tiny_conv_net():
    return nn.Sequential(nn.Conv2d(1, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


NETWORKS = {"784-10": partial(mlp, 784, 10), "784-50-10": partial(mlp, 784, 50, 10),
            "784-50-50-10": partial(mlp, 784, 50, 50, 10), "convolution": tiny_conv_net}
OPTIMIZERS = {"SGD with momentum": partial(SGD, momentum=.9), "RMSProp": RMSProp, "Adam": Adam, "AdamW": AdamW}
AXES = {"beta": (0, -2), "sqr_beta": (0, -3), "eps": (-8, 0), "weight_decay": (-5, 0)}  # powers of ten; of 1 − beta
RANGES = {"lr": (1e-4, 10), "steps": (20, 300)}
FIRST_STEPS, FIRST_S, NEXT_S = 25, .05, .15  # of a first look; seconds to the first picture, and between those after it


def axis_values(name, n):
    "n values of a hyperparameter for an axis, in equal ratios (betas: of what is left to 1)."
    values = torch.logspace(*AXES[name], n, dtype=torch.float64)
    return 1 - values if "beta" in name else values


def available_axis(opt_func, name):
    "The hyperparameter `name` if this optimizer has it, else the first of the axes that it has."
    known = opt_func([nn.Parameter(torch.zeros(1))]).hyper_names
    return next(axis for axis in (name, *AXES) if axis in known)


def in_words(value):
    "A number that a tick may stand at: 0.1, 1, 10; other powers of ten as such."
    power = math.log10(value) if value > 0 else 0
    if abs(power - round(power)) > 1e-9 or -2 < power < 3: return f"{value:g}"
    return "10" + str(round(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def axis_ticks(name, values):
    "Ticks that people would choose for an axis whose cells have these values: places, counted in cells, and labels."
    far = lambda value: math.log10(1 - value if "beta" in name else value)
    first, last = sorted((far(values[0].item()), far(values[-1].item())))
    if "beta" in name: chosen = [value for value in (0, .5, .9, .99, .999) if first - .01 <= far(value) <= last + .01]
    else:
        powers = [power for power in range(-12, 4) if first - .01 <= power <= last + .01]
        chosen = [10. ** power for power in powers if len(powers) < 7 or power % 2 == 0]
    cells = (len(values) - 1) / (far(values[-1].item()) - far(values[0].item()) or 1)
    return [(far(value) - far(values[0].item())) * cells for value in chosen], [in_words(value) for value in chosen]


def round_limits(low, high):
    "The nearest of 1, 2, 5, 10, … below low and above high, a factor of 2 to 1,000 apart."
    steps = [digit * 10. ** power for power in range(-9, 10) for digit in (1, 2, 5)]
    low = max((step for step in steps if step <= low * 1.001), default=steps[0])
    high = min((step for step in steps if step >= high * .999), default=steps[-1])
    return max(low, high / 1000), max(high, 2 * low)


def draw_map(ax, result, betas, colors):
    "A sweep over rates and betas as a map: its losses, what diverged, the middle of the good rates; returns the mesh."
    lost, rates = result.diverged.cpu(), result.values[0]
    ax.grid(False)
    mesh = ax.pcolormesh(rates, 1 - betas, result.final().cpu().masked_fill(lost, math.nan).T, norm=colors,
                         cmap="viridis", shading="nearest")
    rows, columns = torch.nonzero(lost, as_tuple=True)
    ax.plot(rates[rows], (1 - betas)[columns], color=GHOST, marker="x", ls="", label="diverged")
    ax.plot(result.ridge(), 1 - betas, color=COLORS["orange"], marker="o", mec="white", lw=2,
            label="middle of the good rates")
    ax.set(xscale="log", yscale="log", xlabel="learning rate")
    return mesh


class SweepExplorer(Explorer):
    """A map of learning rate × a second hyperparameter, trained anew at every move, and the curve of a cell.

    dls: `DataLoaders` of `TensorLoader`s; optimizer, axis, network: one of those in the menus; lr: that in the middle,
    1e-4 to 10; n_steps: 20 to 300; n: the map is n × n, by default 8, on a GPU 32. `ValueError` for others.
    A move is answered at once by a first look: every other row and column, a few steps.
    `.sweep`: the `Sweep` behind the picture. `.state`: optimizer, network, batch_size, axis (the second one), n_models,
    step, n_steps, done, n_diverged; of the cell pointed at (`here_…`) and of the best (`best_…`): lr, value, loss.
    """
    shows_before_next = True

    def __init__(self, dls, optimizer="SGD with momentum", axis="beta", lr=.1, network="784-50-10", n_steps=100,
                 n=None):
        for name, value, (low, high) in (("lr", check_hyper("lr", lr), RANGES["lr"]),
                                         ("n_steps", positive_int("n_steps", n_steps), RANGES["steps"])):
            if not low <= value <= high: raise ValueError(f"{name} goes from {low:g} to {high:g}; {value:g} is outside.")
        self.train, self._settings, self.sweep = dls.train, None, None
        self.n = (32 if dls.train.x.is_cuda else 8) if n is None else positive_int("n", n)
        style = lambda width: {"layout": widgets.Layout(width=width)}
        choice = lambda options, value, name, width: widgets.Dropdown(options=options, value=value, description=name,
                                                                      **style(width))
        place = lambda name: widgets.IntSlider(3 * self.n // 8, 0, self.n - 1, description=name, readout=False,
                                               **style("200px"))
        menus = dict(
            optimizer=choice(list(OPTIMIZERS), optimizer, "optimizer", "235px"),
            axis=choice(list(AXES), axis, "second axis", "205px"),
            network=choice(list(NETWORKS), network, "network", "190px"),
            batch_size=choice([16, 32, 64, 128, 256], 64, "batch", "110px"))
        low, high = (round(math.log10(value)) for value in RANGES["lr"])
        sliders = dict(
            lr=widgets.FloatLogSlider(lr, min=low, max=high, step=.1, description="middle lr", readout_format=".1e",
                                      **style("250px")),
            steps=widgets.IntSlider(n_steps, *RANGES["steps"], 10, description="steps", **style("230px")),
            column=place("point →"), row=place("point ↑"))
        super().__init__(self._run, {**menus, **sliders}, self._figure(), self._words,
                         "Live figure. Each cell is a network that trains on the digits; dark is a low loss, × has "
                         "diverged, the star is the best, the square the cell that you point at. Every change but "
                         "pointing trains all of them again.")
        rows, menus = self.widget.children[0], [self.controls[name] for name in menus]
        rest = [child for child in rows.children if child not in menus]
        wrap = widgets.Layout(flex_flow="row wrap")
        rows.children = [widgets.HBox(menus, layout=wrap), widgets.HBox(rest, layout=wrap)]

    @styled
    def _figure(self):
        fig = Figure(figsize=(12, 5))
        self.map_ax, self.bar_ax, self.curve_ax = fig.subplots(1, 3, width_ratios=[1, .04, 1])
        blank = np.full((self.n, self.n), np.nan)
        self.map_ax.grid(False)
        self.map_ax.set(xlabel="learning rate", ylabel="weight_decay", title="networks")
        self.map_ax.set_yticks([0], ["0.999"])  # the layout leaves room for labels as long as these
        self.image = self.map_ax.imshow(blank, origin="lower", aspect="auto", cmap="viridis", norm=LogNorm(.1, 1))
        self.bar_ax.grid(False)
        self.bar_ax.imshow(np.linspace(0, 1, 256)[:, None], origin="lower", aspect="auto", cmap="viridis",
                           extent=(0, 1, 0, 1))
        self.bar_ax.set(xticks=[], ylabel="training loss (mean of the last tenth)")
        self.bar_ax.set_yticks([0], ["0.05"])
        self.bar_ax.yaxis.set_label_position("right")
        self.bar_ax.yaxis.tick_right()
        line = lambda ax, color, **style: ax.plot([], [], color=color, **style)[0]
        cell = 110 / self.n
        self.lost = line(self.map_ax, GHOST, marker="x", ms=min(9, cell), ls="", label="diverged")
        self.star = line(self.map_ax, COLORS["orange"], marker="*", ms=max(13, 1.4 * cell), mec="white", ls="")
        self.square = line(self.map_ax, COLORS["blue"], marker="s", ms=max(8, 1.7 * cell), mfc="none", mew=3, ls="",
                           path_effects=[withStroke(linewidth=6, foreground="white")])
        self.wild = LineCollection([], colors=GHOST, linestyles=":", linewidths=1.2, label="some that diverge")
        self.curve_ax.add_collection(self.wild)
        self.best_line = line(self.curve_ax, COLORS["orange"], ls="--", lw=2.5, label="★ the best")
        self.here_line = line(self.curve_ax, COLORS["blue"], ls="-", lw=2, label="□ the cell pointed at")
        self.curve_ax.set(yscale="log", xlim=(0, 300), ylim=(.1, 20), xlabel="step", title="Loss by step",
                          ylabel="training loss (mean of 5 batches)")
        self.curve_ax.legend(loc="lower left", ncols=1)
        moving = [self.image, self.lost, self.star, self.square, self.wild, self.best_line, self.here_line,
                  self.map_ax.xaxis, self.bar_ax.yaxis]
        return LiveFigure(fig, moving, alt=(
            "A map of training losses, learning rate to the right and a second hyperparameter upwards, with diverged "
            "cells crossed out and the best one starred; beside it, loss by step of the best cell, of the one pointed "
            "at and of some that diverge."))

    def _begin(self, column, row, optimizer, axis, network, lr, steps, batch_size):
        opt_func, x, y = OPTIMIZERS[optimizer], self.train.x, self.train.y
        self.axis, self.n_steps = available_axis(opt_func, axis), steps
        model = seeded(0, NETWORKS[network]).to(x.device)
        loader = TensorLoader(x, y, min(batch_size, len(x)), shuffle=True, drop_last=True, seed=1)
        rates = lr * torch.logspace(-2, 2, self.n, dtype=torch.float64)
        grid = {"lr": rates, self.axis: axis_values(self.axis, self.n)}

        def make(columns, rows, n_steps):
            some = {name: values[list(at)] for (name, values), at in zip(grid.items(), (columns, rows))}
            return Sweep(model, F.cross_entropy, opt_func, loader, n_steps, some), columns, rows

        every_other = [range(at % 2, self.n, 2) for at in (column, row)]
        self.going = self._training(make(*every_other, min(steps, FIRST_STEPS)),
                                    partial(make, range(self.n), range(self.n), steps))
        for ticks, name in ((self.map_ax.set_xticks, "lr"), (self.map_ax.set_yticks, self.axis)):
            ticks(*axis_ticks(name, grid[name]))
        labels = {"ylabel": self.axis, "title": f"{self.n ** 2:,} networks {network}, {optimizer}"}
        if labels != {name: getattr(self.map_ax, f"get_{name}")() for name in labels}:
            self.map_ax.set(**labels)
            self.figure.invalidate()
        if self.curve_ax.get_xlim() != (0, steps):
            self.curve_ax.set_xlim(0, steps)
            self.figure.invalidate()

    def _training(self, first, make_whole):
        "A generator that trains the first look, then the whole map; it yields after each step: is the first look done?"
        self.sweep, self.columns, self.rows = first
        for _ in self.sweep.steps(): yield self.sweep.n_done == self.sweep.n_steps
        whole, n_first = make_whole(), self.sweep.n_steps
        for _ in whole[0].steps():
            if whole[0].n_done >= n_first: self.sweep, self.columns, self.rows = whole  # which says as much now
            yield True

    def _run(self, column, row, **settings):
        due = NEXT_S
        if settings != self._settings:
            self._settings, due = None, FIRST_S
            self._begin(column, row, **settings)
            self._settings = settings
        since = perf_counter()
        for step, first_look_is_done in enumerate(self.going):
            waits = perf_counter() - since < due
            if due == FIRST_S and not first_look_is_done and (waits or step < 9): continue  # moves wait for a picture
            if due == NEXT_S and waits: yield None
            else:
                yield self._look(column, row)
                since, due = perf_counter(), NEXT_S
        yield self._look(column, row)

    def stop(self):
        "End the run in flight; what it has shown stays."
        super().stop()
        if self.sweep: self.going = iter(())

    def reset(self):
        "All controls back to where they began, and everything trained again."
        self._settings = None
        return super().reset()

    def _look(self, column, row):
        "Move the artists to what has been trained, and say it in numbers."
        losses, final = self.sweep.loss.cpu().numpy(), self.sweep.final().cpu().numpy()
        lost, step = self.sweep.diverged.cpu().numpy(), self.sweep.n_done
        blocks = [np.minimum(np.arange(self.n) // max(1, self.n // len(at)), len(at) - 1)  # which one each cell shows
                  for at in (self.columns, self.rows)]
        here = int(blocks[0][column]), int(blocks[1][row])
        best = self.sweep.best() if np.isfinite(final).any() else here
        columns, rows = np.array(self.columns), np.array(self.rows)
        self.image.set_data(np.where(lost, np.nan, final)[np.ix_(*blocks)].T)
        self._scale(final[~lost & np.isfinite(final)])
        crossed = np.argwhere(lost)
        self.lost.set_data(columns[crossed[:, 0]], rows[crossed[:, 1]])
        self.star.set_data([columns[best[0]]], [rows[best[1]]])
        self.square.set_data([column], [row])
        some = crossed[::max(1, math.ceil(lost.sum() / 3))]
        self.wild.set_segments([self._curve(losses[tuple(at)], step) for at in some])
        for artist, at in ((self.best_line, best), (self.here_line, here)):
            artist.set_data(*self._curve(losses[at], step).T)
        state = {name: self.values[name] for name in ("optimizer", "network", "batch_size")}
        state |= {"axis": self.axis, "n_models": final.size, "step": step, "n_steps": self.n_steps,
                  "done": step == self.n_steps and final.size == self.n ** 2, "n_diverged": int(lost.sum())}
        for name, at in (("here", here), ("best", best)):
            lr, value = self.sweep.at(*at).values()
            state |= {f"{name}_lr": lr, f"{name}_value": value, f"{name}_loss": float(final[at])}
        return state

    def _scale(self, losses):
        "Colours from the lowest to the highest of these losses, both rounded, and the axis of curves down to the lowest."
        if not losses.size: return
        low, high = limits = round_limits(max(losses.min(), 1e-9), max(losses.max(), 1e-9))
        if limits != (self.image.norm.vmin, self.image.norm.vmax):
            self.image.set_clim(*limits)
            digits = (1, 2, 5) if high < 101 * low else (1,)
            chosen = [digit * 10. ** power for power in range(-9, 10) for digit in digits]
            chosen = [value for value in chosen if .999 * low <= value <= 1.001 * high]
            self.bar_ax.set_yticks([math.log(value / low) / math.log(high / low) for value in chosen],
                                   [in_words(value) for value in chosen])
        if low < self.curve_ax.get_ylim()[0]:
            self.curve_ax.set_ylim(low, 20)
            self.figure.invalidate()

    @staticmethod
    def _curve(losses, step, width=5):
        "Points `[k, 2]`: step, and the mean of the five losses up to it."
        width = max(1, min(width, step))
        finite = np.nan_to_num(losses[:step], nan=1e9, posinf=1e9).clip(max=1e9)
        means = np.convolve(finite, np.ones(width) / width, "valid")
        return np.column_stack([np.arange(width, step + 1), means])

    def _words(self, s):
        def told(name):
            lr, value, loss = (s[f"{name}_{what}"] for what in ("lr", "value", "loss"))
            return f"loss {loss:.3g} at lr {lr:.2g}, {s['axis']} {value:.4g}"

        first_look = "" if s["n_models"] == self.n ** 2 else f" (a first look at {s['n_models']:,} networks)"
        other = "" if s["axis"] == self.values["axis"] else f" ({s['optimizer']} has no {self.values['axis']})"
        return (f"Step {s['step']} of {s['n_steps']}{first_look}, second axis {s['axis']}{other}: best {told('best')}; "
                f"here {told('here')}; "
                f"{s['n_diverged']} of {s['n_models']:,} diverged.")


@styled
def forest_explorer(train, betas=(.5, .8, .85, .9, .95, .98), n_steps=100):
    """Is momentum better than none, at this rate? A forest plot that fills in while the networks train: for each beta,
    seed by seed, the difference of its loss from that of plain SGD, their mean and its 95 % interval.

    train: a `TensorLoader`; betas: those compared with 0. `.state`: lr, n_seeds, step, and lists by beta: mean, low,
    high (None where a seed has blown up), verdict ("lower", "higher", "open", "diverged").
    """
    verdicts = {"lower": ("better", COLORS["blue"]), "higher": ("worse", COLORS["orange"]), "open": ("open", GHOST),
                "diverged": ("diverged", GHOST)}
    fig = Figure(figsize=(10, 4.2))
    ax = fig.subplots()
    ax.axvline(0, color=GHOST, ls="--", lw=1.5)
    line = lambda **style: ax.plot([], [], **style)[0]
    dots = [line(color=GHOST, marker=".", ms=6, ls="") for _ in betas]
    bars = [line(color=GHOST, lw=3, ls="-", marker="|", ms=14, mew=2.5) for _ in betas]
    means = [line(color=GHOST, marker="D", ms=9, ls="") for _ in betas]
    ax.set_xscale("symlog", linthresh=.02)  # differences are of very different sizes, and on both sides of zero
    ticks = [-10, -1, -.1, -.01, 0, .01, .1, 1, 10]
    ax.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    ax.minorticks_off()
    ax.set(ylim=(-.6, len(betas) - .4), xlim=(-1, 1), title="Loss with momentum minus loss without it",
           xlabel="difference of the training loss, mean of the last tenth    ← better    worse →")
    ax.set_yticks(range(len(betas)), [f"beta {beta:g}" for beta in betas])
    live = LiveFigure(fig, [*dots, *bars, *means], alt=(
        "A forest plot: one row for each beta, small dots for the seeds, a diamond for their mean difference from plain "
        "SGD and a bar for its 95 % interval; a dashed line marks no difference."))

    def show(result, lr):
        rows, wide = [], 0
        plain, *others = result.final().double().cpu()
        for i, (dot, bar, mean, losses) in enumerate(zip(dots, bars, means, others)):
            differences = losses - plain
            found = paired(losses, plain) if differences.isfinite().all() else None
            low, high = found.interval if found else (None, None)
            verdict = "diverged" if not found else "lower" if high < 0 else "higher" if low > 0 else "open"
            dot.set_data(differences.numpy(), np.full(len(differences), i + .22))
            bar.set_data(([low, high], [i, i]) if found else ([], []))
            mean.set_data(([found.mean], [i]) if found else ([], []))
            for artist in (bar, mean): artist.set_color(verdicts[verdict][1])
            wide = max(wide, *map(abs, found.interval)) if found else wide
            rows.append((found.mean if found else None, low, high, verdict))
        limit = round_limits(wide / 2, max(wide, 1e-3))[1]
        if limit != ax.get_xlim()[1]:
            ax.set_xlim(-limit, limit)
            live.invalidate()
        state = {"lr": lr, "n_seeds": len(plain), "step": result.n_done, "betas": list(betas)}
        return state | dict(zip(("mean", "low", "high", "verdict"), map(list, zip(*rows))))

    def run(lr, n_seeds):
        loader = TensorLoader(train.x, train.y, min(64, len(train.x)), shuffle=True, drop_last=True, seed=1)
        model = seeded(0, partial(mlp, 784, 50, 10)).to(train.x.device)
        result = Sweep(model, F.cross_entropy, partial(SGD, lr=lr, momentum=.9), loader, n_steps,
                       {"beta": [0., *betas], "seed": range(n_seeds)})
        since = perf_counter()
        for _ in result.steps():
            if perf_counter() - since < NEXT_S: yield None
            else:
                yield show(result, lr)
                since = perf_counter()
        yield show(result, lr)

    def words(s):
        rows = ", ".join(f"beta {beta:g} {verdicts[verdict][0]}" for beta, verdict in zip(s["betas"], s["verdict"]))
        return f"Step {s['step']} of {n_steps}, lr {s['lr']:.2g}, {s['n_seeds']} seeds, against beta 0: {rows}."

    return explore(run, live, words=words,
                   caption="Live figure. A dot is a seed, a diamond their mean, the bar its 95 % interval: blue where "
                           "momentum is better than none, orange where it is worse, grey where these seeds cannot say. The "
                           "axis is even between −0.02 and 0.02, and goes in powers of ten beyond.",
                   lr=widgets.FloatLogSlider(.1, base=10, min=-3, max=0, step=.1, readout_format=".1e"),
                   n_seeds=widgets.IntSlider(10, 3, 40, description="seeds"))
