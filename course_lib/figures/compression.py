"""The live figure of the lesson `compression`."""
import zlib

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure

from ..compression import QuantLinear, milliseconds, prune, size_bytes, with_int8
from ..support.compression import layers_of
from ..support.live import LiveFigure, explore
from ..support.plots import COLORS, GHOST, LABEL_BOX, styled

ROWS = {"accuracy": "right", "bytes": "in memory", "file_bytes": "in a file, zipped", "ms": "time for 256 images"}


def zipped_bytes(model):
    "The bytes of a model's numbers after zlib, which finds what repeats."
    tensors = [*model.parameters(), *model.buffers()]
    return sum(len(zlib.compress(tensor.detach().cpu().numpy().tobytes(), 1)) for tensor in tensors)


def first_weights(model):
    "The first layer's weights, as floats."
    for module in model.modules():
        if isinstance(module, QuantLinear): return (module.weight * module.scale[:, None]).flatten()
    return layers_of(model)[0].weight.detach().flatten()


@styled
def compression_explorer(model, part, n_images=2000):
    """A trained network pruned and rounded as the sliders say: the weights of its first layer, and what is right, what
    it takes in memory and in a file, and how long, all measured at each move.

    model: a `nn.Sequential` of linear layers; part: a `TensorLoader` of images to judge by. `.state`: bits (32: floats),
    zeros (the share that was pruned), units (whole units or single weights), accuracy, bytes, file_bytes, ms, and their
    shares of the whole network's.
    """
    x, y = part.x[:n_images], part.y[:n_images]
    model = model.eval()

    @torch.no_grad()
    def measured(net):
        return {"accuracy": (net(x).argmax(1) == y).float().mean().item(), "bytes": size_bytes(net),
                "file_bytes": zipped_bytes(net), "ms": milliseconds({"": net}, x[:256], 8)[""][0]}  # the shortest

    whole, weights = measured(model), first_weights(model).cpu()
    limit = weights.abs().max().item() * 1.02
    bins = np.linspace(-limit, limit, 122)
    counts = lambda values: np.histogram(values.cpu().numpy(), bins)[0]
    fig = Figure(figsize=(10.5, 4))
    left, right = fig.subplots(1, 2, width_ratios=[1, 1.15])
    middles = (bins[1:] + bins[:-1]) / 2
    left.plot(middles, counts(weights) + .5, color=GHOST, ls="--", drawstyle="steps-mid", label="as trained")
    [now] = left.plot([], [], color=COLORS["blue"], lw=1.5, drawstyle="steps-mid", label="now")
    left.set(yscale="log", ylim=(.5, 3 * len(weights)), xlim=(-limit, limit), xlabel="weight of the first layer",
             ylabel="how many")
    left.legend(loc="upper right")
    setting = left.set_title("no setting yet")
    artists, bars = [now, setting], {}
    right.axvline(100, color=GHOST, ls="--", lw=1)
    for place, name in enumerate(ROWS):
        at = len(ROWS) - place
        color = COLORS["green" if name == "accuracy" else "orange"]
        [bar] = right.plot([], [], lw=16, ls="-", solid_capstyle="butt", color=color)
        text = right.text(0, at, "", va="center", fontsize=11, bbox=LABEL_BOX)
        bars[name] = at, bar, text
        artists += [bar, text]
    right.set_yticks(range(len(ROWS), 0, -1), ROWS.values())
    right.set(xlim=(0, 145), ylim=(.4, len(ROWS) + .6), xlabel="of the whole network's (%)")
    right.set_xticks([0, 25, 50, 75, 100])
    right.grid(axis="y", visible=False)
    live = LiveFigure(fig, artists, alt="Left: a histogram of the first layer's weights, as trained and now; pruning moves "
                                        "the small ones to 0, rounding leaves each unit few values. Right: four bars, of the whole network's: "
                                        "share right, bytes in memory, bytes in a zipped file, time for 256 images.")

    def run(bits, zeros, units):
        net = model if zeros == 0 else prune(model, zeros, structured=units == "whole units")
        net = net if bits == 32 else with_int8(net, bits)
        found = measured(net)
        now.set_data(middles, counts(first_weights(net)) + .5)
        setting.set_text(named(bits, zeros, units))
        written = {"accuracy": f"{found['accuracy']:.1%}", "bytes": f"{found['bytes'] / 1000:,.0f} kB",
                   "file_bytes": f"{found['file_bytes'] / 1000:,.0f} kB", "ms": f"{found['ms']:.2f} ms"}
        shares = {name: found[name] / whole[name] for name in ROWS}
        for name, (at, bar, text) in bars.items():
            bar.set_data([0, min(100 * shares[name], 115)], [at, at])
            text.set_text(written[name])
            text.set_x(min(100 * shares[name], 115) + 2)
        return {"bits": bits, "zeros": zeros, "units": units, **found, "kb": found["bytes"] / 1000,
                "file_kb": found["file_bytes"] / 1000, "of_whole": shares}

    def named(bits, zeros, units):
        return (f"{zeros:.0%} of {'the units' if units == 'whole units' else 'the weights'} gone, "
                f"{'floats' if bits == 32 else f'{bits} bits'}")

    def words(s):
        return (f"{named(s['bits'], s['zeros'], s['units'])}: {s['accuracy']:.1%} right, {s['kb']:,.0f} kB in memory, {s['file_kb']:,.0f} kB in a zipped file, {s['ms']:.2f} ms.")

    return explore(run, live, words=words,
                   caption="Live figure, here with 80 % zeros and weights of 4 bits. Everything is measured on your machine at each move, nothing is trained. How small a "
                           "file can you get without losing a point? And which slider makes it faster?",
                   bits=widgets.SelectionSlider(options=[2, 3, 4, 5, 6, 7, 8, 32], value=4),
                   zeros=widgets.FloatSlider(.8, min=0, max=.98, step=.02, readout_format=".0%"),
                   units=widgets.Dropdown(options=["single weights", "whole units"]))
