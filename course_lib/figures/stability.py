"""The figures of chapter 14 that others may want: what float16 loses of a network's gradients, by the scale of the loss."""
import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from ..support.live import LiveFigure, explore
from ..support.plots import COLORS, GHOST, LABEL_BOX, styled

FATE_COLORS = {"gone": "orange", "vague": "amber", "good": "blue"}
HATCHES = {"gone": "////", "vague": "..", "good": ""}
LOST, SMALLEST_NORMAL, LARGEST = -25, -14, 16  # powers of 2: half the smallest number, full precision, the first infinite one


def shares_in_float16(grads, scale):
    "The shares of the gradients that float16 turns to 0, keeps with fewer digits, keeps, and makes infinite, times a scale."
    sizes = grads.abs().double() * scale
    low = grads.new_tensor(1.).double()
    half = sizes.half()
    lost, infinite = half == 0, half.isinf()
    vague = ~lost & (sizes < low * 2. ** SMALLEST_NORMAL)
    share = lambda mask: mask.double().mean().item()
    return {"lost": share(lost), "vague": share(vague), "infinite": share(infinite),
            "good": share(~(lost | vague | infinite))}


def exponents(grads):
    "The exponents of the gradients that are not 0, ascending, the share of each in percent, and these gradients."
    grads = grads.detach().flatten().float().cpu()
    grads = grads[grads != 0]
    found, counts = np.unique(np.floor(np.log2(grads.abs().numpy())).astype(int), return_counts=True)
    return found, 100 * counts / len(grads), grads


def bars_by_fate(places):
    "Masks of the exponents: lost at either end, kept with fewer digits, kept."
    gone, vague = (places < LOST) | (places >= LARGEST), (places >= LOST) & (places < SMALLEST_NORMAL)
    return {"gone": gone, "vague": vague, "good": ~(gone | vague)}


def draw_ranges(ax, top):
    "What float16 does to numbers of each size, as the ground of a histogram."
    for low, high in ((-80, LOST), (LARGEST, 80)): ax.axvspan(low, high, color="#F4E3DA", lw=0)
    for at in (LOST, SMALLEST_NORMAL, LARGEST): ax.axvline(at, color=GHOST, ls="--", lw=1)
    ax.set(xlim=(-50, 36), ylim=(0, top))
    ax.grid(axis="x", visible=False)


@styled
def loss_scale_strip(grads, powers=(0, 16, 44)):
    "The gradients' exponents for some loss scales, one below the other; what float16 loses is shaded."
    places, shares, grads = exponents(grads)
    fig = Figure(figsize=(9.5, 1.5 * len(powers) + .9), layout="constrained")
    axes = fig.subplots(len(powers), sharex=True)
    for ax, power in zip(axes, powers):
        draw_ranges(ax, 1.5 * shares.max())
        for name, mask in bars_by_fate(places + power).items():
            ax.bar(places[mask] + power + .5, shares[mask], width=.8, color=COLORS[FATE_COLORS[name]], hatch=HATCHES[name],
                   edgecolor="white", lw=0)
        found = shares_in_float16(grads, 2. ** power)
        ax.text(-49, 1.4 * shares.max(), f"scale $2^{{{power}}}$, lost: {found['lost'] + found['infinite']:.0%}", va="top",
                fontsize=11, bbox=LABEL_BOX)
    for at, name in ((-37, "becomes 0"), (-19.5, "fewer digits"), (1, "all digits"), (26, "becomes infinite")):
        axes[0].text(at, 1.57 * shares.max(), name, ha="center", va="bottom", fontsize=11)
    axes[-1].set(xlabel="power of 2 of the gradient, times the scale", xticks=[-48, -36, -25, -14, 0, 16, 28])
    axes[len(powers) // 2].set_ylabel("share of the gradients (%)")
    return fig


@styled
def loss_scale_explorer(grads):
    """A histogram of the gradients' exponents under a slider for the loss scale; red is what float16 loses at either end.

    grads: a tensor of gradients, float32; zeros are left out. `.state`: power (of 2, the scale), and the shares lost,
    vague (below the smallest number of full precision), good and infinite.
    """
    places, shares, grads = exponents(grads)
    fig = Figure(figsize=(9.5, 4.2))
    ax = fig.subplots()
    top = shares.max() * 1.35
    draw_ranges(ax, top)
    names = {-37: "becomes 0", (LOST + SMALLEST_NORMAL) / 2: "fewer digits", 1: "all digits", 26: "infinite"}
    for at, name in names.items(): ax.text(at, top * .96, name, ha="center", va="top", fontsize=11)
    ax.set(xlabel="power of 2 of the gradient, times the scale", ylabel="share of the gradients (%)")
    ax.set_xticks([-48, -36, -25, -14, 0, 16, 28])
    bars = {name: ax.plot([], [], lw=5, ls="-", solid_capstyle="butt", color=COLORS[color])[0]
            for name, color in FATE_COLORS.items()}
    note = ax.text(35, top * .8, "", ha="right", va="top", fontsize=11, bbox=LABEL_BOX)
    live = LiveFigure(fig, [*bars.values(), note], alt="Histogram of the exponents of all activations' gradients. It moves to the right with the "
                      "loss scale. Left of 2 to the −25 gradients become 0 in float16, right of 2 to the 16 they become infinite; "
                      "both ends are shaded.")

    def run(power):
        at = places + power
        which = bars_by_fate(at)
        for name, bar in bars.items():
            x, y = at[which[name]] + .5, shares[which[name]]
            gap = np.full(len(x), np.nan)
            bar.set_data(np.stack([x, x, gap], 1).ravel(), np.stack([0 * y, y, gap], 1).ravel())
        found = shares_in_float16(grads, 2. ** power)
        note.set_text(f"scale $2^{{{power}}}$\nlost: {found['lost'] + found['infinite']:.1%}")
        return {"power": power, **found}

    def words(s):
        return (f"Scale 2^{s['power']}: {s['lost']:.1%} of the gradients become 0, {s['vague']:.1%} keep fewer digits, {s['good']:.1%} "
                f"keep all, {s['infinite']:.1%} become infinite.")

    return explore(run, live, words=words,
                   caption="Live figure. The gradients of all layers' outputs, for a trained network and a loss that was divided by "
                           "2¹⁸. Which scales lose next to nothing? And what is wrong with the largest ones?",
                   power=widgets.IntSlider(8, min=-8, max=44, step=1))
