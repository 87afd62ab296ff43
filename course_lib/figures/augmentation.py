"""The live figures of the lesson `augmentation`."""
import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure

from ..augmentation import (
    ColorJitter, CutMix, Cutout, Flip, GaussianBlur, Grayscale, MixUp, PCAColor, Perspective, RandAugment, RandomCrop, Rotate)
from ..data import RandomAffine
from ..support.live import LiveFigure, explore
from ..support.paired import in_points, paired
from ..support.plots import COLORS, GHOST, INK, VERDICTS, styled, verdict

# name -> a transform for a strength from 0 to 1, where 0 changes nothing; x: the pictures
CHOICES = {
    "RandomAffine": lambda s, x: RandomAffine(30 * s, translate=(.2 * s, .2 * s), scale=(1 - .3 * s, 1 + .3 * s), shear=20 * s, fill=0),
    "RandomCrop": lambda s, x: RandomCrop(round(8 * s)), "Flip": lambda s, x: Flip(s), "Rotate": lambda s, x: Rotate(60 * s),
    "Perspective": lambda s, x: Perspective(.9 * s), "ColorJitter": lambda s, x: ColorJitter(s, s, s, s / 2),
    "Grayscale": lambda s, x: Grayscale(s), "GaussianBlur": lambda s, x: GaussianBlur(9, (.1, .1 + 3 * s)),
    "PCAColor": lambda s, x: PCAColor(x, 5 * s), "Cutout": lambda s, x: Cutout(max(1, round(20 * s))),
    "MixUp": lambda s, x: MixUp(10, max(s, .01)), "CutMix": lambda s, x: CutMix(10, max(s, .01)),
    "RandAugment": lambda s, x: RandAugment(2, 30 * s)}


SEED_OF_GALLERY = 154  # one of those that change each picture of the gallery


def sheet(x, n_columns):
    "Images `[n, channels, height, width]` side by side with a white line between, `[height, width, 3]`."
    x = torch.nn.functional.pad(x.cpu().clamp(0, 1).expand(-1, 3, -1, -1), (1, 1, 1, 1), value=1.)
    return torch.cat([torch.cat(list(row), 2) for row in x.split(n_columns)], 1).permute(1, 2, 0).numpy()


@styled
def gallery(pictures, strength=.5, n_columns=4):
    """What each augmentation makes of two pictures: a panel for each, the pictures as they were and changed twice.

    pictures: images `[2, 1 or 3, size, size]` from 0 to 1 (gray ones are shown in three channels), and their targets.
    """
    x, y = pictures[0].cpu().expand(-1, 3, -1, -1).contiguous(), pictures[1].cpu()
    names = [name for name in CHOICES if name != "RandAugment"]  # which does two of the others
    fig = Figure(figsize=(9.5, 5.2))
    for ax, name in zip(fig.subplots(-(-len(names) // n_columns), n_columns).flatten(), names):
        with torch.random.fork_rng(devices=[]):  # the reader's random numbers stay as they are
            torch.manual_seed(SEED_OF_GALLERY)
            changed = [CHOICES[name](strength, x)(x, y)[0] for _ in range(2)]
        ax.imshow(sheet(torch.stack([x, *changed], 1).flatten(0, 1), 3))
        ax.set_title(name, fontsize=11)
        ax.set_axis_off()
    return fig


@styled
def batch_explorer(pictures):
    """Eight pictures, and below them three times what an augmentation makes of them, by its name and strength.

    pictures: name -> images `[8, 1 or 3, size, size]` from 0 to 1, and their targets. `.state`: pictures, augmentation,
    strength, change: the mean change of a pixel; share: of the first picture's target, what is left with it.
    """
    fig = Figure(figsize=(9, 4.2))
    ax = fig.subplots()
    ax.set_axis_off()
    image, names = ax.imshow(np.zeros((4, 8, 3)), extent=(0, 8, 0, 4)), list(pictures)
    ax.axhline(3, color=INK, lw=3)
    fig.text(.01, .86, "as it was", fontsize=11), fig.text(.01, .38, "changed", fontsize=11)
    fig.get_layout_engine().set(rect=(.1, 0, .9, 1))
    live = LiveFigure(fig, [image], alt="A sheet of pictures in four rows of eight: the first row as it was, below it three "
                                        "times the same batch, each picture changed by chance.")

    def look(augmentation, strength, pictures_of):
        x, y = pictures[pictures_of]
        x = x.expand(-1, 3, -1, -1).contiguous()
        transform = CHOICES[augmentation](strength, x)
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):  # the reader's random numbers stay as they are
            torch.manual_seed(1)
            drawn = [transform(x, y) for _ in range(3)]
        image.set_data(sheet(torch.cat([x, *(changed for changed, _ in drawn)]), 8))
        share = drawn[0][1][0, y[0]].item() if drawn[0][1].ndim == 2 else 1.
        change = torch.stack([(changed - x).abs().mean() for changed, _ in drawn]).mean().item()
        return {"augmentation": augmentation, "strength": strength, "pictures": pictures_of, "change": change, "share": share}

    def words(s):
        mixed = f" The first target keeps a share of {s['share']:.0%}." if s["augmentation"] in ("MixUp", "CutMix") else ""
        return f"{s['augmentation']} at {s['strength']:.0%}: a pixel changes by {s['change']:.3f} on average.{mixed}"

    return explore(look, live, words=words,
                   caption="Live figure. Would you still know what it is? As long as you do, the label is still right.",
                   augmentation=widgets.Dropdown(options=list(CHOICES)),
                   strength=widgets.FloatSlider(.4, min=0, max=1, step=.05, readout_format=".0%"),
                   pictures_of=widgets.Dropdown(options=names, description="pictures"))


STYLES = (COLORS["orange"], "--", "s"), (COLORS["blue"], "-", "o")


@styled
def mix_explorer(nets, x, y):
    """On the way from one digit to another: the mixed image, its label, and what two nets say to it, with the chance that
    each gives to either digit all along the way.

    nets: name -> net, two of them; x: images `[n, 1, size, size]` from 0 to 1; y: their digits. `.state`: share (of the
    first image), first, second: the digits; `sure`: name -> the net's highest probability here; `chances`: name -> its
    probabilities of the two digits; `jump`: name -> the largest change of the first one's probability in a tenth of the way.
    """
    fig = Figure(figsize=(12, 4))
    picture, bars, way = fig.subplots(1, 3, width_ratios=(1, 2, 2))
    picture.set_axis_off()
    picture.set_title("the mixed image")
    image = picture.imshow(np.zeros(x.shape[2:]), cmap="gray_r", vmin=0, vmax=1)
    rows, artists, lines, steps = {}, [image], {}, torch.linspace(0, 1, 41)
    colors = [GHOST, *(style[0] for style in STYLES)]
    for i, name in enumerate(["its label", *nets]):
        rows[name] = bars.bar(np.arange(10) + .28 * (i - 1), np.zeros(10), .26, color=colors[i], label=name,
                              hatch=("", "//", "")[i], edgecolor="white", linewidth=.5)
        artists += list(rows[name])
    bars.set(ylim=(0, 1.05), xticks=range(10), xlabel="digit", title="label and answers")
    bars.legend(loc="upper center", ncols=3, fontsize=9, bbox_to_anchor=(.5, 1.0))
    bars.set_ylim(0, 1.2)
    bars.set_yticks([0, .5, 1])
    for name, (color, ls, marker) in zip(nets, STYLES):
        [lines[name]] = way.plot([], [], color=color, ls=ls, marker=marker, markevery=5, label=name)
        artists.append(lines[name])
    way.plot([0, 1], [0, 1], color=GHOST, ls=":", label="the label")
    [here] = way.plot([], [], color=INK, lw=1.5)
    way.set(xlim=(0, 1), ylim=(-.02, 1.2), xlabel="share of the first image", title="chance of the first digit")
    way.set_yticks([0, .5, 1])
    way.legend(loc="upper center", ncols=3, fontsize=9)
    live = LiveFigure(fig, [*artists, here], alt="Three panels: a mixed image of two digits; bars by digit for its label and "
                                                 "for the answers of two nets; and curves of the chance that each net gives "
                                                 "to the first digit, by that image's share.")

    @torch.no_grad()
    def mix(share, first, second):
        weights = torch.cat([torch.tensor([share]), steps]).to(x).view(-1, 1, 1, 1)
        way_there = weights * x[first] + (1 - weights) * x[second]
        label = torch.zeros(10).index_add(0, torch.tensor([y[first].item(), y[second].item()]), torch.tensor([share, 1 - share]))
        image.set_data(way_there[0, 0].cpu().numpy())
        here.set_data([share, share], [0, 1])
        state = {"share": share, "first": y[first].item(), "second": y[second].item(), "sure": {}, "chances": {}, "jump": {}}
        for bar, height in zip(rows["its label"], label.tolist()): bar.set_height(height)
        for name, net in nets.items():
            probabilities = net(way_there).softmax(1).cpu()
            for bar, height in zip(rows[name], probabilities[0].tolist()): bar.set_height(height)
            lines[name].set_data(steps.numpy(), curve := probabilities[1:, state["first"]].numpy())
            state["sure"][name] = probabilities[0].max().item()
            state["chances"][name] = probabilities[0, [state["first"], state["second"]]].tolist()
            state["jump"][name] = float(np.abs(curve[4:] - curve[:-4]).max())
        return state

    def words(s):
        says = "; ".join(f"{name}: {a:.0%} and {b:.0%}" for name, (a, b) in s["chances"].items())
        return (f"{s['share']:.0%} of a {s['first']} and {1 - s['share']:.0%} of a {s['second']}. Chances of these two, {says}.")

    return explore(mix, live, words=words,
                   caption="Live figure. Move the share slowly from 1 to 0. Where does each net change its mind, and how fast?",
                   share=widgets.FloatSlider(.6, min=0, max=1, step=.02),
                   first=widgets.IntSlider(0, 0, len(x) - 1), second=widgets.IntSlider(1, 0, len(x) - 1))


@styled
def forest_figure(rows, xlabel):
    "A forest plot: rows name -> `Paired`, in points; the mean, its interval, and each seed as a small dot."
    fig = Figure(figsize=(9, .75 + .42 * len(rows)))
    ax = fig.subplots()
    ax.axvline(0, color=INK, lw=1)
    for at, gain in enumerate(rows.values()):
        color, marker = VERDICTS[verdict(gain)]
        ax.plot(gain.differences.numpy(), np.full(len(gain.differences), at + .22), ls="", marker=".", ms=4, color=GHOST)
        ax.plot(gain.interval, [at, at], ls="-", lw=3, color=color, solid_capstyle="butt")
        ax.plot([gain.mean], [at], ls="", marker=marker, ms=8, color=color)
        ax.text(1.01, at, " ".join(in_points(gain)), va="center", transform=ax.get_yaxis_transform(), fontsize=10)
    ax.set_yticks(range(len(rows)), rows)
    ax.set(ylim=(len(rows) - .5, -.5), xlabel=xlabel)
    ax.grid(axis="y", visible=False)
    return fig


def gains(runs, base="plain", leave_out=()):
    "What each way adds to the accuracy of `base`, in points, `Paired` over the seeds, the most first."
    points = lambda name: 100 * np.array(runs[name]["accuracy"])
    found = {name: paired(points(name), points(base)) for name in runs if name not in (base, *leave_out)}
    return dict(sorted(found.items(), key=lambda row: -row[1].mean))
