"""The live figures of the lesson `rmsprop`."""
import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure

from ..momentum import SGD
from ..rmsprop import average_sqr_grad, rms_prop_step
from ..sgd import Optimizer, descend
from ..support.checks import counted
from ..support.live import LiveFigure, explore
from ..support.plots import COLORS, GHOST, INK, LABEL_BOX, styled
from .landscapes import outcome


@styled
def rmsprop_explorer(steppers=(average_sqr_grad, rms_prop_step), n_steps=200):
    """RMSProp where one axis is a thousand times as steep as the other: sliders for lr, alpha and eps.

    steppers: RMSProp's, or others that take lr, sqr_beta and eps and keep `sqr_avg`.
    `.state`: lr, alpha, eps, x, y, `first_step` (its length), `left_along` and `left_across` (shares of the distance),
    `rate_along` and `rate_across` (what each direction gets at the end), `sgd_left` (what SGD leaves at its best rate),
    outcome.
    """
    steepness = 1000.
    curvatures = torch.tensor([1., steepness], dtype=torch.float64)
    start = torch.tensor([-2.5, 1.], dtype=torch.float64)
    slope = lambda point: curvatures * point
    sgd = descend(start, slope, lambda params: SGD(params, lr=2 / (1 + steepness)), n_steps).numpy()

    fig = Figure(figsize=(11, 4))
    path_ax, distance_ax, rate_ax = fig.subplots(1, 3)
    path_ax.set(xlabel="x, along the floor", ylabel="y, across", xlim=(-3, 1.5), ylim=(-1.5, 1.5),
                title="The walker, from above")
    distance_ax.set(xlabel="step", ylabel="share of the distance left", yscale="log", ylim=(1e-6, 1e4),
                    xlim=(0, n_steps), title="How far to go?")
    rate_ax.set(xlabel="step", ylabel="step / gradient", yscale="log", ylim=(1e-6, 1e4), xlim=(0, n_steps),
                title="A rate for each direction")
    for ax in (distance_ax, rate_ax):
        ax.set_yticks([1e-6, 1e-4, 1e-2, 1, 1e2, 1e4])
        ax.minorticks_off()
    # SGD's dots without lines, which would be one grey area; an odd number of steps apart it is on the other wall again
    path_ax.plot(*sgd[::21].T, color=GHOST, ls="", marker="x", ms=6, label="SGD, every 21st step")
    path_ax.plot([0], [0], color=INK, marker="+", ms=14, mew=2, ls="")
    [trail] = path_ax.plot([], [], color=COLORS["blue"], ls="-", lw=1, marker="o", ms=4, label="RMSProp, every step")
    [walker] = path_ax.plot([], [], color=COLORS["orange"], ls="", marker="o", ms=12, mec="white", zorder=5)
    path_ax.legend(loc="upper right", fontsize=10)
    note = path_ax.text(.5, .03, "", transform=path_ax.transAxes, ha="center", va="bottom", color=INK, fontsize=11,
                        bbox=LABEL_BOX)
    names = (("along (x)", "blue", "o", "-"), ("across (y)", "orange", "s", "--"))
    distances, rates = ([ax.plot([], [], color=COLORS[color], ls=style, lw=1.5, marker=marker, ms=5, markevery=10,
                                 label=name)[0] for name, color, marker, style in names]
                        for ax in (distance_ax, rate_ax))
    for (_, color, _, _), curvature in zip(names, (1., steepness)):
        rate_ax.axhline(2 / curvature, color=COLORS[color], ls=":", lw=2)
    rate_ax.plot([], [], color=INK, ls=":", label="2 / curvature")
    for ax in (distance_ax, rate_ax): ax.legend(loc="upper right", ncols=2, columnspacing=1, fontsize=10)
    live = LiveFigure(fig, [trail, walker, note, *distances, *rates],
                      alt="Left: RMSProp's path where one axis is a thousand times as steep as the other; grey "
                          "crosses on both walls show SGD, which has hardly moved along. "
                          "Middle: the distance left along and across. Right: the rate that each direction gets; "
                          "they differ by the ratio of the gradients.")

    def roll(lr, alpha, eps):
        opt_func = lambda params: Optimizer(params, steppers, lr=lr, sqr_beta=alpha, eps=eps)
        path = descend(start, slope, opt_func, n_steps).numpy()
        steps, left = np.arange(n_steps + 1), np.abs(path / start.numpy())
        gradients = curvatures.numpy() * path[:-1]
        with np.errstate(divide="ignore", invalid="ignore"): each = -np.diff(path, axis=0) / gradients
        for i in range(2):
            distances[i].set_data(steps, np.clip(left[:, i], 1e-30, 1e9))
            rates[i].set_data(steps[1:], np.clip(np.nan_to_num(each[:, i]), 1e-30, 1e9))
        seen = np.clip(path, -50, 50)
        trail.set_data(*seen.T)
        walker.set_data(*seen[-1:].T)
        (x, y), outside = path[-1], np.abs(path[-1] + [.75, 0]) > [2.25, 1.5]
        note.set_text(f"far outside: x = {x:.2g}, y = {y:.2g}" if outside.any() else "")
        return {"lr": lr, "alpha": alpha, "eps": eps, "x": float(path[-1, 0]), "y": float(path[-1, 1]),
                "left_along": float(left[-1, 0]), "left_across": float(left[-1, 1]),
                "first_step": float(np.abs(path[1] - path[0]).max()),
                "rate_along": float(each[-1, 0]), "rate_across": float(each[-1, 1]),
                "sgd_left": float(sgd[-1, 0] / start[0]), "outcome": outcome(path)}

    def words(s):
        return (f"lr {s['lr']:.3g}, alpha {s['alpha']:.3g}, eps {s['eps']:.2g}: "
                f"after {counted(n_steps, 'step')} {s['left_along']:.2%} of the way along "
                f"and {s['left_across']:.2%} across are left (SGD: {s['sgd_left']:.0%} along). The first step was "
                f"{s['first_step']:.3g} long.")

    return explore(roll, live, words=words,
                   caption="Live figure. Dotted: the largest rate at which plain gradient descent is stable in that "
                           "direction. Raise eps, and lr with it, until RMSProp is plain gradient descent again.",
                   lr=widgets.FloatLogSlider(.05, base=10, min=-3, max=0, step=.02, readout_format=".3g"),
                   alpha=widgets.FloatSlider(.99, min=0, max=.999, step=.001, readout_format=".3f"),
                   eps=widgets.FloatLogSlider(1e-8, base=10, min=-8, max=4, step=.25, readout_format=".1e"))
