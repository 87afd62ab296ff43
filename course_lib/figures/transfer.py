"""The live figures of the lesson `transfer`."""
import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter
from torch import nn

from ..adam import AdamW
from ..learner import accuracy
from ..support.live import LiveFigure, explore
from ..support.plots import COLORS, GHOST, styled
from ..support.transfer import best_scratch, first_of_each_class

# Ten colours that colour-blind readers can tell apart (after Tol's "muted" set); what is more begins anew.
CLASS_COLORS = ("#332288", "#D55E00", "#117733", "#CC6677", "#88CCEE", "#999933", "#882255", "#44AA99", "#DDAA33",
                "#AA4499")


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
        shown = flat[:rest][y[:rest].cpu() == c][:60]
        places.plot(*shown.T, ls="", marker=f"${c}$", ms=7, color=CLASS_COLORS[c % len(CLASS_COLORS)], alpha=.75)
    drawn = [places.plot([], [], ls="", marker=f"${c}$", color="black")[0] for c in range(n_classes)]
    (left, low), (right, high) = flat.min(0)[0].tolist(), flat.max(0)[0].tolist()
    margins = .05 * (right - left), .05 * (high - low)
    places.set(xlim=(left - margins[0], right + margins[0]), ylim=(low - margins[1], high + margins[1]), xlabel="first principal component", ylabel="second principal component",
               title="Black: trained on; coloured: some of the rest")
    places.locator_params(nbins=6, steps=[1, 2, 5, 10])
    artists = [*drawn, *curve.plot([], [], color=COLORS["blue"], label="on the rest"),
               *curve.plot([], [], color=COLORS["orange"], ls="--", label="on its own images")]
    curve.set(xlim=(0, n_steps), ylim=(0, 1.02), xlabel="step", ylabel="accuracy",
              title="One linear layer learns")
    curve.yaxis.set_major_formatter(PercentFormatter(1))
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
            artist.set_markersize(max(4, min(13, 27 / n_per_class ** .5)))  # many large ones would hide the rest
        for artist, values in zip(artists[n_classes:], zip(*accuracies)): artist.set_data(range(1, n_steps + 1), values)
        on_rest, own = accuracies[-1]
        return {"n_per_class": n_per_class, "lr": lr, "draw": draw, "accuracy": on_rest, "train_accuracy": own}

    def words(s):
        n = s["n_per_class"]
        return (f"{n} image{'s' * (n > 1)} of each class, lr {s['lr']:.2g}, draw {s['draw']}: {s['accuracy']:.1%} of "
                f"the rest are right, and {s['train_accuracy']:.1%} of its own.")

    return explore(train, live, words=words,
                   caption="Live figure. One image of each digit is enough for much more than a guess, and more of "
                           "them help. How much do the tenth and the fiftieth still bring?",
                   n_per_class=widgets.IntSlider(min(10, most), 1, min(60, most)),
                   lr=widgets.FloatLogSlider(.01, base=10, min=-4, max=0, step=.25, readout_format=".1e"),
                   draw=widgets.IntSlider(0, 0, 20))


SETS = {"mnist": "MNIST", "digits": "the embedded digits"}
FOUR_WAYS = {"all, one rate": "everything at once,\none rate", "all, slice": "everything at once,\na slice",
             "head first, one rate": "head first,\none rate", "head first, slice": "head first,\na slice"}


@styled
def ways_figure(trials):
    "Accuracies of four ways to fine-tune, ten draws each: at the way's best rate, and at 0.03."
    fig = Figure(figsize=(11, 4.2))
    for ax, (name, title) in zip(fig.subplots(1, len(SETS), sharey=True), SETS.items()):
        for row, way in enumerate(FOUR_WAYS):
            run = trials[name]["ways"][way]
            for key, color, marker, up, label in (("final", "blue", "o", -.14, "at its best rate"),
                                                  ("too large", "orange", "D", .14, "at 0.03, too large")):
                at = np.full(len(run[key]), row + up)
                ax.plot(run[key], at, ls="", marker=marker, ms=4, mfc="none", color=COLORS[color], alpha=.7)
                ax.plot([np.mean(run[key])], at[:1], ls="", marker=marker, ms=10, color=COLORS[color], label=label)
        ax.set(title=title, xlabel="accuracy on digits that it never saw", xlim=(.795, 1.005))
        ax.xaxis.set_major_formatter(PercentFormatter(1, 0))
        ax.xaxis.set_major_locator(MultipleLocator(.05))
        ax.set_yticks(range(len(FOUR_WAYS)), FOUR_WAYS.values())
        ax.set_ylim(len(FOUR_WAYS) - .5, -.5)
    ax.legend(*(part[:2] for part in ax.get_legend_handles_labels()), loc="lower left")
    return fig


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
        ax.set(xscale="log", ylim=(.45, 1.01), xlabel="images of each class", title=SETS[name],
               ylabel="accuracy on the rest")
        ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
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
