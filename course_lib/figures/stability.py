"""The live figure of chapter 14: what float16 loses of a network's gradients, by the scale of the loss."""
import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from ..support.live import LiveFigure, explore
from ..support.plots import COLORS, GHOST, LABEL_BOX, styled

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


@styled
def loss_scale_explorer(grads):
    """A histogram of the gradients' exponents under a slider for the loss scale; red is what float16 loses at either end.

    grads: a tensor of gradients, float32; zeros are left out. `.state`: power (of 2, the scale), and the shares lost,
    vague (below the smallest number of full precision), good and infinite.
    """
    grads = grads.detach().flatten().float().cpu()
    grads = grads[grads != 0]
    exponents = np.floor(np.log2(grads.abs().numpy())).astype(int)
    low, high = exponents.min(), exponents.max()
    counts = np.bincount(exponents - low, minlength=high - low + 1) / len(exponents)
    places = np.arange(low, high + 1)

    fig = Figure(figsize=(9.5, 4.2))
    ax = fig.subplots()
    ax.axvspan(-80, LOST, color="#F4E3DA", lw=0)
    ax.axvspan(LARGEST, 80, color="#F4E3DA", lw=0)
    for at in (LOST, SMALLEST_NORMAL, LARGEST): ax.axvline(at, color=GHOST, ls="--", lw=1)
    top = 100 * counts.max() * 1.35
    names = {-37: "becomes 0", (LOST + SMALLEST_NORMAL) / 2: "fewer digits", 1: "all 11 bits", 26: "infinite"}
    for at, name in names.items(): ax.text(at, top * .96, name, ha="center", va="top", fontsize=11)
    ax.set(xlim=(-50, 36), ylim=(0, top), xlabel="power of 2 of the gradient, times the scale", ylabel="share of the gradients (%)")
    ax.set_xticks([-48, -36, -25, -14, 0, 16, 28])
    ax.grid(axis="x", visible=False)
    bars = {name: ax.plot([], [], lw=5, ls="-", solid_capstyle="butt", color=COLORS[color])[0]
            for name, color in (("gone", "orange"), ("vague", "amber"), ("good", "blue"))}
    note = ax.text(35, top * .8, "", ha="right", va="top", fontsize=11, bbox=LABEL_BOX)
    live = LiveFigure(fig, [*bars.values(), note], alt="Histogram of the exponents of all activations' gradients. It moves to the right with the "
                      "loss scale. Left of 2 to the −25 gradients become 0 in float16, right of 2 to the 16 they become infinite; "
                      "both ends are red.")

    def run(power):
        at = places + power
        which = {"gone": (at < LOST) | (at >= LARGEST), "vague": (at >= LOST) & (at < SMALLEST_NORMAL)}
        which["good"] = ~(which["gone"] | which["vague"])
        for name, bar in bars.items():
            x, y = at[which[name]] + .5, 100 * counts[which[name]]
            gap = np.full(len(x), np.nan)
            bar.set_data(np.stack([x, x, gap], 1).ravel(), np.stack([0 * y, y, gap], 1).ravel())
        found = shares_in_float16(grads, 2. ** power)
        note.set_text(f"scale $2^{{{power}}}$\nlost: {found['lost'] + found['infinite']:.1%}")
        return {"power": power, **found}

    def words(s):
        return (f"Scale 2^{s['power']}: {s['lost']:.1%} of the gradients become 0, {s['vague']:.1%} keep fewer digits, {s['good']:.1%} "
                f"keep all, {s['infinite']:.1%} become infinite.")

    return explore(run, live, words=words,
                   caption="Live figure. The gradients of the activations of the trained network, for a loss that was divided by "
                           "2¹⁸. Which scales lose next to nothing? And what is wrong with the largest ones?",
                   power=widgets.IntSlider(0, min=-8, max=44, step=1))
