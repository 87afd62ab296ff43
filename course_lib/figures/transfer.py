"""The live figures of the lesson `transfer`."""
import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MultipleLocator, PercentFormatter
from torch import nn

from ..adam import AdamW
from ..learner import accuracy
from ..support.live import LiveFigure, explore
from ..support.paired import paired
from ..support.plots import COLORS, GHOST, styled
from ..support.transfer import best_scratch, first_of_each_class

# Ten colours that colour-blind readers can tell apart (after Tol's "muted" set); what is more begins anew.
CLASS_COLORS = ("#332288", "#D55E00", "#117733", "#CC6677", "#88CCEE", "#999933", "#AA4499", "#44AA99", "#DDAA33",
                "#8A8A8A")

HALO = [withStroke(linewidth=2, foreground="white")]  # so that black digits stand out of the coloured ones


@styled
def head_explorer(x, y, n_steps=60):
    """A linear head on features x `[n, n_features]` of targets y `[n]`, trained on a few of each class, live.

    `.state`: n_per_class, lr, draw, train_accuracy, accuracy (on the rest).
    """
    if x.ndim != 2 or x.shape[1] < 2: raise ValueError(f"Expected features [n, n_features], got {list(x.shape)}.")
    n_classes, rest = int(y.max()) + 1, min(1000, len(y) // 2)
    most = int(torch.bincount(y[rest:], minlength=n_classes).min())
    if not most: raise ValueError(f"Each of the {n_classes} classes needs images beyond the first {rest:,}.")
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    with torch.random.fork_rng(devices=[]):  # it draws, and shall not draw the plane anew each time
        torch.manual_seed(0)
        flat = (x @ torch.pca_lowrank(x.cpu(), 2, niter=4)[2].to(x.device)).cpu()
    fig = Figure(figsize=(11, 4.4))
    places, curve = fig.subplots(1, 2)
    for c in range(n_classes):
        shown = flat[:rest][y[:rest].cpu() == c][:40]
        places.plot(*shown.T, ls="", marker=f"${c}$", ms=8, color=CLASS_COLORS[c % len(CLASS_COLORS)], alpha=.9)
    drawn = [places.plot([], [], ls="", marker=f"${c}$", color="black", path_effects=HALO)[0] for c in range(n_classes)]
    (left, low), (right, high) = flat.min(0)[0].tolist(), flat.max(0)[0].tolist()
    margins = .05 * (right - left), .05 * (high - low)
    places.set(xlim=(left - margins[0], right + margins[0]), ylim=(low - margins[1], high + margins[1]),
               xlabel="first principal component", ylabel="second principal component",
               title="Black: trained on; coloured: some of the rest")
    places.locator_params(nbins=6, steps=[1, 2, 5, 10])
    artists = [*drawn, *curve.plot([], [], color=COLORS["blue"], label="on the rest"),
               *curve.plot([], [], color=COLORS["orange"], ls="--", label="on its own images")]
    curve.set(xscale="log", xlim=(1, n_steps), ylim=(0, 1.02), xlabel="step (stretched at the beginning)", ylabel="accuracy",
              title="One linear layer learns")
    curve.yaxis.set_major_formatter(PercentFormatter(1))
    steps = [step for step in (1, 2, 5, 10, 20, 60) if step <= n_steps]
    curve.set_xticks(steps, steps)
    curve.minorticks_off()
    curve.legend(loc="lower right")
    live = LiveFigure(fig, artists, alt="Left: images as points, marked by their digit, in the plane of two principal "
                                        "components; equal digits lie together, and those trained on are black. Right: "
                                        "accuracy by step, on the few that it is trained on and on the rest.")

    def train(n_per_class, lr, draw):
        order = torch.randperm(len(y) - rest, generator=torch.Generator().manual_seed(draw)).to(y.device) + rest
        rows = first_of_each_class(y, order, n_per_class)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head, accuracies = nn.Linear(x.shape[1], n_classes).to(x.device), []
        optimizer = AdamW(head.parameters(), lr)
        for _ in range(n_steps):
            F.cross_entropy(head(x[rows]), y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad(): accuracies.append([accuracy(head(x[:rest]), y[:rest]).item(),
                                                     accuracy(head(x[rows]), y[rows]).item()])
        for c, artist in enumerate(drawn):
            artist.set_data(*flat[rows[y[rows] == c].cpu()].T)
            artist.set_markersize(max(4, min(12, 24 / n_per_class ** .5)))  # many large ones would hide the rest
        for artist, values in zip(artists[n_classes:], zip(*accuracies)): artist.set_data(range(1, n_steps + 1), values)
        on_rest, own = accuracies[-1]
        return {"n_per_class": n_per_class, "lr": lr, "draw": draw, "accuracy": on_rest, "train_accuracy": own}

    def words(s):
        n = s["n_per_class"]
        return (f"{n} image{'s' * (n > 1)} of each class, lr {s['lr']:.2g}, draw {s['draw']}: {s['accuracy']:.1%} of "
                f"the rest are right, and {s['train_accuracy']:.1%} of its own.")

    return explore(train, live, words=words,
                   caption="Live figure. Move n_per_class, lr and the draw; watch the blue line's end.",
                   n_per_class=widgets.IntSlider(min(10, most), 1, min(60, most)),
                   lr=widgets.FloatLogSlider(.01, base=10, min=-4, max=0, step=.25, readout_format=".1e"),
                   draw=widgets.IntSlider(0, 0, 20))


SETS = {"mnist": "MNIST", "digits": "the small digits"}
FOUR_WAYS = {"all, one rate": "everything at once,\none rate", "all, slice": "everything at once,\na slice",
             "head first, one rate": "head first,\none rate", "head first, slice": "head first,\na slice"}


@styled
def ways_figure(trials):
    """Four ways to fine-tune, in points, draw by draw: at the chosen rates against everything at once at one rate; at
    0.03 against the same way at its chosen rate.
    """
    fig = Figure(figsize=(11, 6))
    axes = fig.subplots(len(SETS), 2, sharey=True, sharex="col")
    for (chosen, large), (name, title) in zip(axes, SETS.items()):
        ways = trials[name]["ways"]
        for row, way in enumerate(FOUR_WAYS):
            run = ways[way]
            if row: paired_row(chosen, row, run["final"], ways["all, one rate"]["final"], "blue", "o")
            paired_row(large, row, run["too large"], run["final"], "orange", "D")
        chosen.text(0, 0, "(the others are compared with it)", ha="center", va="center", backgroundcolor="white",
                    color="#555555")
        chosen.set(title=f"{title}: at the chosen rates", xlim=(-2.1, 2.1))
        large.set(title=f"{title}: at 0.03", xlim=(-19, 2))
        chosen.set_yticks(range(len(FOUR_WAYS)), FOUR_WAYS.values())
        chosen.set_ylim(len(FOUR_WAYS) - .5, -.5)
        chosen.xaxis.set_major_locator(MultipleLocator(1))
        large.xaxis.set_major_locator(MultipleLocator(5))
    chosen.set_xlabel("points against everything at once, one rate")
    large.set_xlabel("points against itself at its chosen rate")
    return fig


def paired_row(ax, row, a, b, color, marker):
    "Differences in points, draw by draw, their mean and its interval."
    change = paired(100 * np.array(a), 100 * np.array(b))
    ax.axvline(0, color=GHOST, ls="--", lw=1.5, zorder=0)
    ax.plot(change.differences.numpy(), np.full(len(a), row + .22), ls="", marker=marker, ms=4, mfc="none", color=COLORS[color])
    ax.plot(change.interval, [row - .08] * 2, ls="-", color=COLORS[color], lw=2)
    ax.plot([change.mean], [row - .08], ls="", marker=marker, ms=9, color=COLORS[color])


@styled
def curves_figure(curves):
    "Accuracy by the number of images of each class, for three ways to learn: mean, least and best of the draws."
    fig = Figure(figsize=(11, 4.4))
    for ax, (name, by_n) in zip(fig.subplots(1, len(curves["data"]), squeeze=False)[0], curves["data"].items()):
        ns = [int(n) for n in by_n]
        ways = {"from scratch, the best of five rates": ("orange", "s--", [best_scratch(run)[1] for run in by_n.values()]),
                "frozen body, new head": ("blue", "o-", [run["head"] for run in by_n.values()]),
                "everything fine-tuned": ("green", "D-.", [run["fine-tune"] for run in by_n.values()])}
        for i, (label, (color, style, accuracies)) in enumerate(ways.items()):
            draws = np.array(accuracies)
            mean = draws.mean(1)
            ax.errorbar(np.array(ns) * 1.05 ** (i - 1), mean, [mean - draws.min(1), draws.max(1) - mean], fmt=style,
                        color=COLORS[color], capsize=3, label=label)
        ax.set(xscale="log", yscale="logit", ylim=(.45, .9993), xlabel="images of each class", title=SETS[name],
               ylabel="accuracy on the rest")
        shares = .5, .7, .8, .9, .95, .98, .99, .995, .999
        ax.set_yticks(shares, [f"{100 * share:g}%" for share in shares])
        ax.set_xticks(ns, ns)
        ax.minorticks_off()
    ax.legend(loc="lower right")
    return fig


@styled
def looks_figure(trials):
    "What changed looks cost and what averaging gives back: accuracy minus that of the plain look, draw by draw."
    fig = Figure(figsize=(11, 3))
    for ax, (name, title) in zip(fig.subplots(1, len(SETS), sharey=True, sharex=True), SETS.items()):
        looks = trials[name]["looks"]
        for row, (key, color, marker) in enumerate((("changed", "orange", "D"), ("five looks", "blue", "o"))):
            change = 100 * (np.array(looks[key]) - np.array(looks["as it is"]))
            ax.plot(change, np.full(len(change), row), ls="", marker=marker, ms=5, mfc="none", color=COLORS[color])
            ax.plot([change.mean()], [row], ls="", marker=marker, ms=11, color=COLORS[color])
        ax.axvline(0, color=GHOST, ls="--", lw=1.5)
        ax.set(title=title, xlabel="points against the plain look", ylim=(1.5, -.5))
        ax.set_yticks([0, 1], ["one changed look", "five looks, averaged"])
        ax.xaxis.set_major_locator(MultipleLocator(.5))
    return fig
