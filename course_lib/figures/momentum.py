"""The live figures of the lesson `momentum`."""
import math

import ipywidgets as widgets
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from ..momentum import SGD, average_grad, best_momentum, momentum_factor, momentum_step, moving_average
from ..sgd import Optimizer, descend
from ..support.checks import counted
from ..support.live import LiveFigure, explore
from ..support.plots import COLORS, GHOST, INK, LABEL_BOX, styled
from .landscapes import CanyonView, outcome
from .sgd import digits_explorer


def noisy_series(n=120, noise=.5, seed=0):
    "A slow wave and the same wave with noise of that standard deviation: two tensors `[n]`, float64."
    wave = 1 + torch.sin(torch.linspace(0, 2.2 * math.pi, n, dtype=torch.float64))
    return wave, wave + noise * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _points(memory): return f"{memory:.3g} {'point' if f'{memory:.3g}' == '1' else 'points'}"


@styled
def average_explorer(n=120):
    """Noisy points and their exponentially weighted average, with sliders for beta and noise.

    `.state`: beta, noise, corrected; `memory` (1 / (1 − beta), in points), `first` (the average after one point),
    `error` (root mean square distance from the truth), `point_error` (that of the points themselves).
    """
    fig = Figure(figsize=(11, 3.7))
    series_ax, weight_ax = fig.subplots(1, 2, width_ratios=[2, 1])
    series_ax.set(xlabel="point", ylabel="value", xlim=(-1, n), ylim=(-1.6, 3.6),
                  title="The average follows the points")
    weight_ax.set(xlabel="how many points ago", ylabel="weight (newest point = 1)", xlim=(-1, 60), ylim=(-.02, 1.05),
                  title="How far back it listens")
    truth, unit_noise = noisy_series(n, 0)[0], noisy_series(n, 1)[1] - noisy_series(n, 1)[0]
    [dots] = series_ax.plot([], [], color=GHOST, ls="", marker=".", ms=6, label="points")
    series_ax.plot(truth, color=INK, ls=":", lw=2, label="the truth behind them")
    [average] = series_ax.plot([], [], color=COLORS["orange"], ls="-", lw=3, label="average")
    [weights] = weight_ax.plot([], [], color=COLORS["blue"], ls="-", marker="o", ms=4)
    memory = weight_ax.axvline(1, color=INK, ls="--", lw=1.5)
    memory_text = weight_ax.text(1, .9, "", color=INK, fontsize=11, bbox=LABEL_BOX)
    series_ax.legend(loc="lower left", ncols=3)
    live = LiveFigure(fig, [dots, average, weights, memory, memory_text],
                      alt="Left: noisy points around a slow wave, and their exponentially weighted average. "
                          "Right: the weight of each point in it, fading with the distance into the past.")

    def average_of(beta, noise, corrected):
        points = truth + noise * unit_noise
        averaged = moving_average(points, beta, corrected)
        dots.set_data(range(n), points.numpy())
        average.set_data(range(n), averaged.numpy())
        back = np.arange(60)
        weights.set_data(back, beta ** back)
        x = min(1 / (1 - beta), 58)
        memory.set_xdata([x, x])
        memory_text.set(text=f" memory: {_points(1 / (1 - beta))} ", x=x, ha="left" if x < 25 else "right")
        error = lambda series: (series - truth).square().mean().sqrt().item()
        return {"beta": beta, "noise": noise, "corrected": corrected, "memory": 1 / (1 - beta),
                "first": averaged[0].item(), "error": error(averaged), "point_error": error(points)}

    def words(s):
        judged = ("better than the points themselves" if s["error"] < s["point_error"] else
                  "worse than the points themselves")
        return (f"beta {s['beta']:.3g} remembers about {_points(s['memory'])}. It is off by {s['error']:.2f}, "
                f"{judged} ({s['point_error']:.2f}); its first value is {s['first']:.2f}.")

    return explore(average_of, live, words=words,
                   caption="Live figure. Which beta is best for this much noise? Turn the noise down: and now? "
                           "Then watch the first points while you switch the bias correction on.",
                   beta=widgets.FloatSlider(.9, min=0, max=.99, step=.01),
                   noise=widgets.FloatSlider(.5, min=0, max=1, step=.05),
                   corrected=widgets.Checkbox(False, description="bias correction", indent=False))


def _is_heavy_ball(steppers, start, lr=.1, beta=.7, n_steps=5):
    "Do these steppers step as heavy ball does, w[t + 1] = w[t] − lr · slope + beta · (w[t] − w[t − 1])?"
    path = descend(start, lambda w: w, lambda params: Optimizer(params, steppers, lr=lr, beta=beta), n_steps)
    steps = path.diff(dim=0)
    velocities = torch.cat([torch.zeros_like(steps[:1]), steps[:-1]])
    return torch.allclose(steps, beta * velocities - lr * path[:-1], rtol=1e-9, atol=1e-12)


class _PairMap:
    """A map of lr and beta: each cell is a ball, coloured by the distance that it has left;
    theory's border and best pair on top.
    """
    def __init__(self, fig, ax, steppers, start, n_steps):
        self.steppers, self.start, self.n_steps = steppers, start, n_steps
        self.rates, self.betas = np.logspace(-2.5, .4, 40), np.linspace(.01, .99, 32)
        colors = matplotlib.colormaps["viridis"].with_extremes(over="#F6E3DA")
        self.picture = ax.imshow(np.zeros((32, 40)), origin="lower", aspect="auto", vmin=-10, vmax=0, cmap=colors,
                                 zorder=.5, extent=(-2.537, .437, 0, 1), interpolation="nearest")
        bar = fig.colorbar(self.picture, ax=ax, ticks=[-10, -5, 0], extend="max")
        bar.set_label("share of the distance left")
        bar.set_ticklabels(["$10^{-10}$", "$10^{-5}$", "1"])
        ax.set(xlabel="learning rate", ylabel="beta", ylim=(0, 1), title=f"What each pair leaves after {counted(n_steps, 'step')}")
        ax.set_xticks([-2, -1, 0], ["0.01", "0.1", "1"])
        ax.grid(False)
        [self.border] = ax.plot([], [], color=COLORS["orange"], ls="-", lw=2.5)
        [self.best] = ax.plot([], [], color="white", marker="*", ms=16, mec=INK, ls="")
        [self.here] = ax.plot([], [], color=COLORS["orange"], marker="o", ms=11, mec="white", mew=1.5, ls="", zorder=5)
        self.artists = [self.picture, self.border, self.best, self.here]

    def draw(self, steepness, curvatures):
        "One optimizer steps a ball for every cell."
        betas, rates = (torch.from_numpy(grid.ravel()) for grid in np.meshgrid(self.betas, self.rates, indexing="ij"))
        end = descend(self.start.repeat(len(rates), 1), lambda points: curvatures * points,
                      lambda params: Optimizer(params, self.steppers, lr=rates, beta=betas), self.n_steps)[-1]
        left = (end.norm(dim=1) / self.start.norm()).log10().nan_to_num(9., posinf=9.)
        self.picture.set_data(left.reshape(32, 40).numpy())
        beta = np.linspace(0, 1, 50)
        self.border.set_data(np.log10(2 * (1 + beta) / steepness), beta)
        best_lr, best_beta = best_momentum(1, steepness)
        self.best.set_data([math.log10(best_lr)], [best_beta])


@styled
def momentum_explorer(steppers=(average_grad, momentum_step), n_steps=60):
    """A ball with momentum in the canyon ½ (x² + steepness · y²): sliders for lr, beta and steepness.

    steppers: heavy ball, or others that take lr and beta; for heavy ball alone there is a box to tick that shows theory.
    `.state`: lr, beta, steepness, x, y, `left` (share of the distance that is left), outcome; of heavy ball's theory
    `factor_along`, `factor_across` (of a step, in the long run), `largest_stable_lr`, `best_lr`, `best_beta`.
    """
    start = torch.tensor([-2.5, 1.], dtype=torch.float64)
    fig = Figure(figsize=(12, 3.9))
    canyon_ax, distance_ax, map_ax = fig.subplots(1, 3)
    view, pairs, mapped = CanyonView(canyon_ax), _PairMap(fig, map_ax, steppers, start, n_steps), None
    distance_ax.set(xlabel="step", ylabel="distance from the lowest point", yscale="log", ylim=(1e-10, 1e3),
                    xlim=(0, n_steps), title="How far to go?")
    distances = [distance_ax.plot([], [], color=COLORS[c], marker=m, ls="-", ms=4, lw=1, label=n)[0]
                 for n, c, m in (("along (x)", "blue", "o"), ("across (y)", "orange", "s"))]
    [slope] = distance_ax.plot([], [], color=INK, ls="--", lw=1.5, label="theory, if ticked")
    known = _is_heavy_ball(steppers, start)
    distance_ax.legend(handles=[*distances, *([slope] if known else [])], loc="upper right")
    live = LiveFigure(fig, [*view.artists, *distances, slope, *pairs.artists],
                      alt="Left: a ball's path seen from above, in a canyon drawn as rings of equal loss. "
                          "Middle: its distance from the lowest point by step, along and across. "
                          "Right: a map of learning rate and beta, coloured by the distance left; "
                          "beyond a border nothing lands."
                          + " Theory, if ticked: a line at lr = 2 (1 + beta) / steepness, a star at the best pair." * known)

    def roll(lr, beta, steepness, theory=False):
        nonlocal mapped
        for line in (slope, pairs.border, pairs.best): line.set_visible(theory)
        curvatures = torch.tensor([1., steepness], dtype=torch.float64)
        if steepness != mapped: pairs.draw(steepness, curvatures)
        mapped = steepness
        path = descend(start, lambda point: curvatures * point,
                       lambda params: Optimizer(params, steppers, lr=lr, beta=beta), n_steps).numpy()
        (x, y), steps = path[-1].tolist(), np.arange(n_steps + 1)
        factors = [float(momentum_factor(lr, beta, curvature)) for curvature in (1., steepness)]
        view.draw(path, steepness)
        for i in range(2): distances[i].set_data(steps, np.clip(np.abs(path[:, i]), 1e-30, 1e9))
        slope.set_data(steps, np.clip(start.norm().item() * max(factors) ** steps, 1e-30, 1e9))
        pairs.here.set_data([math.log10(lr)], [beta])
        best_lr, best_beta = best_momentum(1, steepness)
        return {"lr": lr, "beta": beta, "steepness": steepness, "theory": theory, "x": x, "y": y,
                "left": math.hypot(x, y) / start.norm().item(), "outcome": outcome(path),
                "factor_along": factors[0], "factor_across": factors[1],
                "largest_stable_lr": 2 * (1 + beta) / steepness, "best_lr": best_lr, "best_beta": best_beta}

    def words(s):
        return (f"lr {s['lr']:.3f}, beta {s['beta']:.2f} {s['outcome']}: {s['left']:.2g} of the distance is left "
                f"after {counted(n_steps, 'step')}."
                + f" Theory: a step multiplies it by {max(s['factor_along'], s['factor_across']):.3f} in the long run; "
                  f"largest stable rate {s['largest_stable_lr']:.3g}; "
                  f"best pair {s['best_lr']:.3f}, {s['best_beta']:.2f}." * s["theory"])

    return explore(roll, live, words=words,
                   caption="Live figure. On the map the orange dot is you; dark is near the goal, pale orange farther away "
                           "than at the start. Raise beta a little, then find the best lr for it."
                           + " Tick *theory* at the end: the line is its border, the star its best pair." * known,
                   lr=widgets.FloatLogSlider(10 ** -1.05, base=10, min=-2.5, max=.4, step=.01, readout_format=".3f"),
                   beta=widgets.FloatSlider(0, min=0, max=.99, step=.01),
                   steepness=widgets.FloatSlider(20, min=2, max=50, step=1),
                   **{"theory": widgets.Checkbox(False, indent=False)} if known else {})


def momentum_digits_explorer(dls, n_steps=200):
    "`digits_explorer` for SGD with momentum, with a second slider for beta; `.state` as there, and beta."
    return digits_explorer(dls, n_steps, lambda lr, beta: lambda params: SGD(params, lr, momentum=beta),
                           beta=widgets.FloatSlider(.9, min=0, max=.99, step=.01))
