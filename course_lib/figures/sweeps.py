"""The live figures of the lesson `sweeps`."""
from functools import partial
from time import perf_counter

import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import nn

from ..adam import Adam, AdamW
from ..data import TensorLoader
from ..momentum import SGD
from ..rmsprop import RMSProp
from ..support.live import Explorer, LiveFigure
from ..support.plots import COLORS, GHOST, styled
from ..sweeps import Sweep, mlp


def tiny_conv_net():
    return nn.Sequential(nn.Conv2d(1, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


NETWORKS = {"784-10": partial(mlp, 784, 10), "784-50-10": partial(mlp, 784, 50, 10),
            "784-50-50-10": partial(mlp, 784, 50, 50, 10), "convolution": tiny_conv_net}
OPTIMIZERS = {"SGD with momentum": partial(SGD, momentum=.9), "RMSProp": RMSProp, "Adam": Adam, "AdamW": AdamW}
AXES = {"beta": (0, -2), "sqr_beta": (0, -3), "eps": (-8, 0), "weight_decay": (-5, 0)}  # powers of ten; of 1 − beta


def axis_values(name, n):
    "n values of a hyperparameter for an axis, in equal ratios (betas: of what is left to 1)."
    values = torch.logspace(*AXES[name], n, dtype=torch.float64)
    return 1 - values if "beta" in name else values


def available_axis(opt_func, name):
    "The hyperparameter `name` if this optimizer has it, else the first of the axes that it has."
    known = opt_func([nn.Parameter(torch.zeros(1))]).hyper_names
    return next(axis for axis in (name, *AXES) if axis in known)


class SweepExplorer(Explorer):
    """A map of learning rate × a second hyperparameter, trained anew at every move, and the curve of a cell.

    dls: `DataLoaders` of `TensorLoader`s; n: the map is n × n, by default 8, on a GPU 32.
    `.sweep`: the `Sweep` behind the picture. `.state`: optimizer, network, batch_size, axis (the second one), n_models,
    step, n_steps, done, n_diverged; of the cell pointed at (`here_…`) and of the best (`best_…`): lr, value, loss.
    """
    def __init__(self, dls, optimizer="SGD with momentum", axis="beta", lr=.1, network="784-50-10", n_steps=100,
                 n=None):
        self.train, self._settings, self.sweep = dls.train, None, None
        self.n = n or (32 if dls.train.x.is_cuda else 8)
        choice = lambda options, value, name="": widgets.Dropdown(options=options, value=value, description=name)
        place = lambda name: widgets.IntSlider(3 * self.n // 8, 0, self.n - 1, description=name, readout=False)
        controls = dict(
            optimizer=choice(list(OPTIMIZERS), optimizer), axis=choice(list(AXES), axis, "second axis"),
            network=choice(list(NETWORKS), network), batch_size=choice([16, 32, 64, 128, 256], 64),
            lr=widgets.FloatLogSlider(lr, min=-4, max=1, step=.1, description="lr in the middle", readout_format=".1e"),
            steps=widgets.IntSlider(n_steps, 20, 300, 10),
            column=place("point: lr →"), row=place("point: second axis ↑"))
        super().__init__(self._run, controls, self._figure(), self._words,
                         "Live figure. Each cell is a network that trains on the digits; bright is a low loss, × has "
                         "diverged, the star is the best, the square the cell that you point at. Every change but "
                         "pointing trains all of them again.")

    @styled
    def _figure(self):
        fig = Figure(figsize=(12, 5))
        self.map_ax, self.curve_ax = fig.subplots(1, 2, width_ratios=[1.1, 1])
        blank = np.full((self.n, self.n), np.nan)
        self.map_ax.grid(False)
        self.map_ax.set(xlabel="learning rate", ylabel="beta", title="networks")
        self.map_ax.set_yticks(range(self.n), ["0.0000"] * self.n)  # the layout leaves room for labels as long as these
        self.image = self.map_ax.imshow(blank, origin="lower", aspect="auto", cmap="viridis_r", norm=LogNorm(.2, 2.5))
        fig.colorbar(self.image, ax=self.map_ax, label="training loss (mean of the last tenth)", extend="min")
        line = lambda ax, color, **style: ax.plot([], [], color=color, **style)[0]
        cell = 110 / self.n
        self.lost = line(self.map_ax, GHOST, marker="x", ms=min(9, cell), ls="", label="diverged")
        self.star = line(self.map_ax, COLORS["orange"], marker="*", ms=max(13, 1.4 * cell), mec="white", ls="")
        self.square = line(self.map_ax, COLORS["blue"], marker="s", ms=max(8, 1.7 * cell), mfc="none", mew=3, ls="")
        self.wild = LineCollection([], colors=GHOST, linestyles=":", linewidths=1.2, label="some that diverge")
        self.curve_ax.add_collection(self.wild)
        self.best_line = line(self.curve_ax, COLORS["orange"], ls="--", lw=2.5, label="★ the best")
        self.here_line = line(self.curve_ax, COLORS["blue"], ls="-", lw=2, label="□ the cell pointed at")
        self.curve_ax.set(yscale="log", ylim=(.03, 30), xlabel="step", title="Its curve",
                          ylabel="training loss (mean of 5 batches)")
        self.curve_ax.legend(loc="lower left", ncols=1)
        moving = [self.image, self.lost, self.star, self.square, self.wild, self.best_line, self.here_line]
        return LiveFigure(fig, moving, alt=(
            "A map of training losses, learning rate to the right and a second hyperparameter upwards, with diverged "
            "cells crossed out and the best one starred; beside it, loss by step of the best cell, of the one pointed "
            "at and of some that diverge."))

    def _begin(self, optimizer, axis, network, lr, steps, batch_size):
        opt_func, x, y = OPTIMIZERS[optimizer], self.train.x, self.train.y
        self.axis = available_axis(opt_func, axis)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = NETWORKS[network]().to(x.device)
        loader = TensorLoader(x, y, min(batch_size, len(x)), shuffle=True, drop_last=True, seed=1)
        rates = lr * torch.logspace(-2, 2, self.n, dtype=torch.float64)
        grid = {"lr": rates, self.axis: axis_values(self.axis, self.n)}
        self.sweep = Sweep(model, F.cross_entropy, opt_func, loader, steps, grid)
        self.going = self.sweep.steps()
        shown = range(0, self.n, max(1, self.n // 8))
        for ticks, name in ((self.map_ax.set_xticks, "lr"), (self.map_ax.set_yticks, self.axis)):
            ticks(list(shown), [f"{grid[name][i]:.{4 if 'beta' in name else 2}g}" for i in shown])
        self.map_ax.set(ylabel=self.axis, title=f"{self.n ** 2:,} networks {network}, {optimizer}")
        self.curve_ax.set_xlim(0, steps)
        self.figure.invalidate()

    def _run(self, column, row, **settings):
        if settings != self._settings:
            self._settings = None
            self._begin(**settings)
            self._settings = settings
        drawn = perf_counter() - .05  # the first picture comes early
        for _ in self.going:
            if perf_counter() - drawn < .15: yield None
            else:
                yield self._look(column, row)
                drawn = perf_counter()
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
        lost, here, step = self.sweep.diverged.cpu().numpy(), (column, row), self.sweep.n_done
        best = self.sweep.best() if np.isfinite(final).any() else here
        self.image.set_data(np.where(lost, np.nan, final).T)
        self.lost.set_data(*np.nonzero(lost))
        for artist, at in ((self.star, best), (self.square, here)): artist.set_data(*[[i] for i in at])
        some = np.argwhere(lost)[::max(1, lost.sum() // 6)]
        self.wild.set_segments([self._curve(losses[tuple(at)], step) for at in some])
        for artist, at in ((self.best_line, best), (self.here_line, here)):
            artist.set_data(*self._curve(losses[at], step).T)
        state = {name: self.values[name] for name in ("optimizer", "network", "batch_size")}
        state |= {"axis": self.axis, "n_models": self.n ** 2, "step": step, "n_steps": self.sweep.n_steps,
                  "done": step == self.sweep.n_steps, "n_diverged": int(lost.sum())}
        for name, at in (("here", here), ("best", best)):
            lr, value = self.sweep.at(*at).values()
            state |= {f"{name}_lr": lr, f"{name}_value": value, f"{name}_loss": float(final[at])}
        return state

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

        other = "" if s["axis"] == self.values["axis"] else f" ({s['optimizer']} has no {self.values['axis']})"
        return (f"Step {s['step']} of {s['n_steps']}, second axis {s['axis']}{other}: best {told('best')}; "
                f"here {told('here')}; "
                f"{s['n_diverged']} of {s['n_models']:,} diverged.")
