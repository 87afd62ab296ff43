"""The figures of the lesson `self_training`: a live one, and how results over seeds are drawn."""
import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure

from ..support.live import LiveFigure, explore
from ..support.paired import paired
from ..support.plots import COLORS, GHOST, INK, styled

N_WRONG = 12  # pictures of wrong labels


@styled
def threshold_explorer(probs, labels, images):
    """Pseudo labels from a confidence threshold on: how many are kept, how many of these are right, of which classes they
    are, and the wrong ones of which the teacher is surest.

    probs: `[n, 10]`, a teacher's; labels: the true classes `[n]`, to judge by; images: `[n, 1, height, width]`. `.state`:
    threshold, kept, right: shares; n_kept, n_wrong: numbers; smallest, largest: the class kept least often and most often;
    per_class: how often each is.
    """
    probs, labels, images = probs.detach().cpu(), labels.cpu(), images.cpu()
    (confidence, predicted), n_classes = probs.max(1), probs.shape[1]
    wrong = predicted != labels
    surest = confidence.masked_fill(~wrong, -1).argsort(descending=True)[:int(wrong.sum())][:N_WRONG]
    grid = torch.linspace(.1, .999, 90)
    kept_there = [(confidence >= t) for t in grid]
    fig = Figure(figsize=(12, 4.2))
    curves, bars, sheet = fig.subplots(1, 3, width_ratios=[1.15, 1, 1])
    curves.plot(grid, [100 * kept.float().mean() for kept in kept_there], color=COLORS["blue"], label="kept, of all")
    curves.plot(grid, [100 * (~wrong)[kept].float().mean() if kept.any() else np.nan for kept in kept_there],
                color=COLORS["green"], ls="--", label="right, of the kept")
    [here] = curves.plot([], [], color=INK, ls="-", lw=1.5)
    [dots] = curves.plot([], [], color=INK, ls="", marker="o", ms=8)
    curves.set(xlim=(.1, 1), ylim=(0, 104), xlabel="threshold", ylabel="share of the labels (%)", title="kept and right")
    curves.legend(loc="lower left")
    boxes = bars.bar(range(n_classes), np.zeros(n_classes), .7, color=COLORS["blue"], label="kept labels")
    bars.plot(range(n_classes), labels.bincount(minlength=n_classes), color=GHOST, ls="", marker="D", label="true number")
    most = max(predicted.bincount().max(), labels.bincount().max()).item()
    bars.set(xticks=range(n_classes), xlabel="class", ylabel="images", ylim=(0, 1.32 * most), title="of which classes")
    bars.grid(axis="x", visible=False)
    bars.legend(loc="upper right", ncols=2, fontsize=10)
    sheet.set_axis_off()
    height, width = images.shape[2:]
    picture = sheet.imshow(np.zeros((3 * (height + 9), 4 * width)), vmin=images.min(), vmax=images.max(), extent=(0, 4, 3, 0),
                           aspect=(height + 9) / width)
    texts = [sheet.text(i % 4 + .5, i // 4 + .16, "", ha="center", va="center", fontsize=11) for i in range(N_WRONG)]
    sheet.set_title("surest of the wrong")
    live = LiveFigure(fig, [here, dots, *boxes, picture, *texts],
                      alt="Left: by threshold, the share of the pseudo labels that is kept, which falls, and the share of these "
                          "that is right, which rises. Middle: bars, how many labels of each class are kept, beside the true "
                          "numbers. Right: kept images whose label is wrong, with label and true class.")

    def run(threshold):
        kept = confidence >= threshold
        n_kept, n_wrong = int(kept.sum()), int((kept & wrong).sum())
        share, right = n_kept / len(probs), (1 - n_wrong / n_kept if n_kept else 0.)
        here.set_data([threshold, threshold], [0, 100])
        dots.set_data([threshold, threshold], [100 * share, 100 * right])
        per_class = predicted[kept].bincount(minlength=n_classes).tolist()
        for box, n in zip(boxes, per_class): box.set_height(n)
        tiles = torch.full((N_WRONG, height + 9, width), images.min())
        for i, text in enumerate(texts):
            seen = i < len(surest) and confidence[surest[i]] >= threshold
            if seen: tiles[i, 9:] = images[surest[i], 0]
            text.set_text(f"{predicted[surest[i]]}, is {labels[surest[i]]}" if seen else "")
        picture.set_data(torch.cat([torch.cat(list(row), 1) for row in tiles.split(4)]).numpy())
        smallest, largest = (int(f(per_class)) for f in (np.argmin, np.argmax))
        return {"threshold": threshold, "kept": share, "right": right, "n_kept": n_kept, "n_wrong": n_wrong,
                "smallest": smallest, "largest": largest, "per_class": per_class}

    def words(s):
        if not s["n_kept"]: return f"From {s['threshold']:.2f} on: no label is kept."
        return (f"From {s['threshold']:.2f} on: {s['kept']:.0%} of the labels are kept, {s['right']:.1%} of them right, {s['n_wrong']:,} "
                f"wrong. Class {s['largest']} is kept {s['per_class'][s['largest']]:,} times, class {s['smallest']} "
                f"{s['per_class'][s['smallest']]:,} times.")

    return explore(run, live, words=words,
                   caption="Live figure. Nothing is trained here: one teacher's labels, and what a threshold leaves of them. Where "
                           "are nearly all of the kept labels right, and what has become of the classes by then?",
                   threshold=widgets.FloatSlider(.9, min=.1, max=1., step=.01))


def points(a, b):
    "How many points a is better than b over paired seeds, as `Paired`; a, b: shares."
    return paired(100 * np.array(a), 100 * np.array(b))


def in_words(gain):
    "Mean and interval of a `Paired` of points, such as +1.3 [+0.4, +2.2]."
    values = (f"{round(value, 1) + 0.:+.1f}" for value in (gain.mean, gain.low, gain.high))
    return "{} [{}, {}]".format(*values).replace("-", "−")


STYLES = [("blue", "o", "-"), ("orange", "s", "--"), ("green", "D", "-."), ("pink", "^", ":")]


@styled
def curves_figure(lines, xticks, xlabel, title, levels=None, shift=.05):
    """Accuracy with intervals: lines name -> list of `[S]` shares, one a place on the axis; levels: name -> `[S]` shares, of
    which a horizontal line shows the mean. An interval is Student's, 95 %, for the mean over the seeds.
    """
    fig = Figure(figsize=(8, 4.4))
    ax = fig.subplots()
    for i, (name, runs) in enumerate(lines.items()):
        color, marker, ls = STYLES[i % len(STYLES)]
        spread = [points(run, np.zeros(len(run))) for run in runs]
        ax.errorbar([at + shift * (i - (len(lines) - 1) / 2) for at in range(len(runs))], [one.mean for one in spread],
                    [[one.mean - one.low for one in spread], [one.high - one.mean for one in spread]],
                    color=COLORS[color], marker=marker, ls=ls, capsize=3, label=name)
    for name, run in (levels or {}).items(): ax.axhline(100 * np.mean(run), color=GHOST, ls=(0, (1, 1)), label=name)
    ax.set_xticks(range(len(xticks)), xticks)
    ax.set(xlabel=xlabel, ylabel="test images right (%)", title=title)
    ax.legend(loc="best")
    return fig
