"""The live figures of the lesson `transfer`."""
import ipywidgets as widgets
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import nn

from ..adam import AdamW
from ..learner import accuracy
from ..support.live import LiveFigure, explore
from ..support.plots import COLORS, styled
from ..support.transfer import first_of_each_class

# as many classes again as there are colours get the same ones, darker
SHADES = [tuple(share * part for part in to_rgb(color)) for share in (1, .55) for color in COLORS.values()]


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
        places.plot(*shown.T, ls="", marker=f"${c}$", ms=7, color=SHADES[c % len(SHADES)], alpha=.6)
    drawn = [places.plot([], [], ls="", marker=f"${c}$", color="black")[0] for c in range(n_classes)]
    (left, low), (right, high) = flat.min(0)[0].tolist(), flat.max(0)[0].tolist()
    margins = .05 * (right - left), .05 * (high - low)
    places.set(xlim=(left - margins[0], right + margins[0]), ylim=(low - margins[1], high + margins[1]), xlabel="first principal component", ylabel="second",
               title="Black: trained on; coloured: some of the rest")
    artists = [*drawn, *curve.plot([], [], color=COLORS["blue"], label="on the rest"),
               *curve.plot([], [], color=COLORS["orange"], ls="--", label="on its own images")]
    curve.set(xlim=(0, n_steps), ylim=(0, 1.02), xlabel="step", ylabel="accuracy")
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
            artist.set_markersize(max(5, min(13, 30 / n_per_class ** .5)))  # many large ones would hide the rest
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
