"""Valleys and landscapes that several live figures share, and what becomes of who goes down in them."""
import math

import numpy as np
import torch

from ..support.plots import COLORS, GHOST, INK, LABEL_BOX


def outcome(path):
    "What became of it: path `[n_steps + 1, directions]`, in coordinates whose lowest point is zero."
    start, end = np.abs(path[0]), path[-1]
    if not np.isfinite(end).all() or (np.abs(end) > start * (1 + 1e-9)).any(): return "flies out"
    if np.linalg.norm(end) < .01 * np.linalg.norm(start): return "lands"
    second_half = path[min(len(path) // 2, len(path) - 2):]
    farthest = second_half[:, np.abs(end).argmax()]  # the direction in which most is left
    changes = (farthest[1:] * farthest[:-1] < 0).mean()
    return "crawls" if changes == 0 else "hops" if changes > .9 else "swings"


def finite_path(path):
    "A path as numbers that can be drawn: what flew out farther than 1e300 stays there."
    return np.nan_to_num(path.numpy(), nan=1e300, posinf=1e300, neginf=-1e300)


def multiplies(path, factors):
    "Does each step multiply the distances by these factors? path `[n_steps + 1, directions]`, to a billionth."
    before, after = path[:-1], path[1:]
    seen = np.abs(after) < 1e300  # where `finite_path` has cut nothing
    with np.errstate(over="ignore"): same = np.abs(after - before * factors) <= 1e-9 * np.abs(before)
    return bool(same[seen].all())


class CanyonView:
    """A canyon ½ (x² + steepness · y²) seen from above, and a path in it; `artists` are what moves.

    who: goes there, in the title: a "walker" without memory (plain SGD), a "ball" with mass (momentum).
    """
    def __init__(self, ax, who="ball"):
        ax.set(xlabel="x, along the floor", ylabel="y, across", xlim=(-3, 3), ylim=(-2, 2),
               title=f"The {who}, from above")
        self.angle = np.linspace(0, 2 * math.pi, 80)
        self.rings = [ax.plot([], [], color=GHOST, ls="-", lw=1)[0] for _ in range(7)]
        [self.trail] = ax.plot([], [], color=COLORS["blue"], marker="o", ms=4, ls="-", lw=1)
        [self.here] = ax.plot([], [], color=COLORS["orange"], marker="o", ms=14, mec="white", ls="", zorder=5)
        [floor] = ax.plot([0], [0], color=INK, marker="+", ms=14, mew=2, ls="")
        self.note = ax.text(.5, .95, "", transform=ax.transAxes, ha="center", va="top", color=INK, fontsize=12,
                            bbox=LABEL_BOX)
        self.artists = [*self.rings, self.trail, self.here, floor, self.note]

    def draw(self, path, steepness):
        "path: `[n_steps + 1, 2]`, a numpy array."
        for ring, level in zip(self.rings, np.arange(.25, 3.6, .5)):
            ring.set_data(level * np.cos(self.angle) * math.sqrt(2),
                          level * np.sin(self.angle) * math.sqrt(2 / steepness))
        seen, (x, y) = np.clip(path, -50, 50), path[-1]
        self.trail.set_data(seen[:, 0], seen[:, 1])
        self.here.set_data(seen[-1:, 0], seen[-1:, 1])
        self.note.set_text("" if abs(x) < 3 and abs(y) < 2 else f"far outside: y = {y:.2g}")


class Landscape:
    """A loss over the plane: its height and gradient at points `[..., 2]`, a start, the lowest point,
    and the window to show.
    """
    def __init__(self, name, height, gradient, start, lowest, window, n_steps=150):
        self.name, self.height, self.gradient, self.n_steps = name, height, gradient, n_steps
        self.lowest, self.window = lowest, window
        self.start = torch.tensor(start, dtype=torch.float64)

    def shows(self, path):
        "Does a path stay in the window? `[n_steps + 1, ..., 2]` → `[...]`."
        left, right, bottom, top = self.window
        low, high = torch.tensor([left, bottom], dtype=path.dtype), torch.tensor([right, top], dtype=path.dtype)
        return ((low <= path) & (path <= high)).all(-1).all(0)


def _axes(f): return lambda points: f(points[..., 0], points[..., 1])


def _both(f): return lambda points: torch.stack(f(points[..., 0], points[..., 1]), -1)


def _slanted(x, y): return .9 * x + 4 * y, 9 * y - .4 * x  # along the floor, and across, where it is 50 times as steep


def _slanted_gradient(x, y):
    along, across = _slanted(x, y)
    return .9 * along - 20 * across, 4 * along + 450 * across


def _slanted_height(x, y):
    along, across = _slanted(x, y)
    return (along ** 2 + 50 * across ** 2) / 2


LANDSCAPES = {landscape.name: landscape for landscape in (
    Landscape("slanted canyon", _axes(_slanted_height), _both(_slanted_gradient),
              (-2.5, -.07), (0., 0.), (-3, 3, -.36, .36)),
    Landscape("canyon", _axes(lambda x, y: (x ** 2 + 20 * y ** 2) / 2), _both(lambda x, y: (x, 20 * y)),
              (-2.5, 1.), (0., 0.), (-3, 3, -2, 2)),
    Landscape("Rosenbrock's valley", _axes(lambda x, y: (1 - x) ** 2 + 100 * (y - x ** 2) ** 2),
              _both(lambda x, y: (2 * (x - 1) - 400 * x * (y - x ** 2), 200 * (y - x ** 2))),
              (-1.2, 1.), (1., 1.), (-2, 2, -1, 3)),
    Landscape("saddle", _axes(lambda x, y: (x ** 2 - 1) ** 2 / 4 + y ** 2),
              _both(lambda x, y: (x * (x ** 2 - 1), 2 * y)), (.001, 1.5), (1., 0.), (-1.8, 1.8, -1.2, 1.8)),
    Landscape("several minima",
              _axes(lambda x, y: .05 * (x ** 2 + y ** 2) + 1 - (torch.cos(2 * x) + torch.cos(2 * y)) / 2),
              _both(lambda x, y: (.1 * x + torch.sin(2 * x), .1 * y + torch.sin(2 * y))),
              (-4.4, 3.4), (0., 0.), (-5.5, 5.5, -4.5, 4.5)))}
