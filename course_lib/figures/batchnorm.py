"""The live figures of the lesson `batchnorm`."""
import math
from time import perf_counter

import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from ..batchnorm import BatchNorm1d, deep_net
from ..momentum import SGD
from ..sgd import batches
from ..support.checks import counted
from ..support.live import SLICE_S, LiveFigure, explore
from ..support.plots import COLORS, GHOST, styled


@styled
def activations_explorer(train, n_steps=60, n_layers=10):
    """How far the values before five of the ReLUs lie from their unit's mean over the batch: histograms by training
    batch, without batchnorm and with it, while lr moves.

    train: a `TensorLoader`. `.state`: lr, step; of each of the two loss_…, first_… and last_…: the newest batch's
    loss, and the spread in the first and in the last layer (the units' mean standard deviation over the batch).
    """
    layers, n_bins = sorted({round(i) for i in np.linspace(1, n_layers, 5)}), 42
    span, ticks = (-6, 1), range(-6, 2)  # powers of ten
    fig = Figure(figsize=(12, 5))
    axes, images = fig.subplots(2, len(layers), sharex=True, sharey=True, squeeze=False), []
    for i, ax in enumerate(axes.flat):
        ax.grid(False)
        if i < len(layers): ax.set_title(f"layer {layers[i]}", fontsize=11)
        images.append(ax.imshow(np.zeros((n_bins, n_steps)), origin="lower", aspect="auto", cmap="Blues",
                                vmin=0, vmax=900, extent=(0, n_steps, *span)))
    for ax, name in zip(axes[:, 0], ("plain", "batchnorm")):
        ax.set_ylabel(name)
        ax.set_yticks(ticks, [f"$10^{{{tick}}}$" if tick else "1" for tick in ticks])
    fig.supxlabel("training batch")
    fig.supylabel("distance from the unit's mean")
    live = LiveFigure(fig, images, alt="Two rows of panels, plain above and batchnorm below, one panel for each of "
                                       "five layers: histograms of how far the values before its ReLU lie from their "
                                       "unit's mean, upwards by distance, to the right by training batch; dark where "
                                       "many are.")

    def run(lr):
        models = [deep_net(norm, n_layers).to(train.x.device) for norm in (None, BatchNorm1d)]
        optimizers, inputs = [SGD(model.parameters(), lr, momentum=.9) for model in models], {}
        for row, model in enumerate(models):
            relus = [module for module in model if isinstance(module, nn.ReLU)]
            for column, layer in enumerate(layers):
                relus[layer - 1].register_forward_pre_hook(
                    lambda module, args, place=(row, column): inputs.__setitem__(place, args[0].detach()))
        counts, since, step = np.zeros((2, len(layers), n_bins, n_steps)), perf_counter(), 0

        def state(losses):
            for image, of_layer in zip(images, counts.reshape(-1, n_bins, n_steps)): image.set_data(of_layer)
            values = {"lr": lr, "step": step}
            for row, name in enumerate(("plain", "norm")):
                first, last = (inputs[row, i].std(0).mean().item() for i in (0, len(layers) - 1))
                values |= {f"loss_{name}": losses[row].item(), f"first_{name}": first, f"last_{name}": last}
            return values

        for xb, yb in batches(train, n_steps, seed=1, batch_size=min(64, len(train.x))):
            losses = [F.cross_entropy(model(xb), yb) for model in models]
            sum(losses).backward()
            for optimizer in optimizers: optimizer.step(), optimizer.zero_grad()
            for (row, column), x in inputs.items():
                counts[row, column, :, step] = torch.histc((x.float() - x.float().mean(0)).abs().log10(), n_bins, *span).cpu()
            step += 1
            if perf_counter() - since >= SLICE_S:
                yield state(losses)
                since = perf_counter()
        yield state(losses)

    def words(s):
        return (f"Batch {s['step']} at lr {s['lr']:.2g}. Plain: loss {s['loss_plain']:.3g}, spread "
                f"{s['first_plain']:.2g} in the first layer, {s['last_plain']:.2g} in the last. Batchnorm: loss "
                f"{s['loss_norm']:.3g}, {s['first_norm']:.2g} and {s['last_norm']:.2g}.")

    return explore(run, live, words=words,
                   caption="Live figure. Above, the dark band sinks from layer to layer: in the tenth, a unit's values "
                           "for 64 images differ by ten-thousandths. Below, it stays near 1.",
                   lr=widgets.FloatLogSlider(.03, base=10, min=-3, max=1, step=.1, readout_format=".1e"))


@styled
def running_explorer(n=150):
    """Running mean and variance of a channel whose inputs jump after 60 batches; sliders for momentum and batch size.

    `.state`: momentum, batch_size, mean and var at the end (true: 2 and 4), lag (batches until nine tenths of a jump
    are in the average), noise (standard deviation of the running mean over the last 20 batches).
    """
    fig = Figure(figsize=(10, 3.8))
    axes, artists = fig.subplots(1, 2), []
    for ax, (before, after), name in zip(axes, ((0, 2), (1, 4)), ("mean", "variance")):
        ax.plot([0, 60, 60, n], [before, before, after, after], color=GHOST, ls="--", lw=1.5, label="of the inputs")
        for label, color, style in (("of each batch", COLORS["sky"], {"marker": ".", "ls": ""}),
                                    ("running", COLORS["orange"], {"ls": "-", "lw": 2.5})):
            artists += ax.plot([], [], color=color, label=label, **style)
        ax.set(xlim=(0, n), ylim=(before - 1.2, after + 2.5), xlabel="training batch", ylabel=name)
    axes[0].legend(loc="lower right")
    live = LiveFigure(fig, artists, alt="Two panels by batch: the mean and the variance of a channel's inputs, which "
                                        "jump at batch 60, those of each batch as dots, and the running averages "
                                        "following.")

    def follow(momentum, batch_size):
        layer, generator = BatchNorm1d(1, momentum=momentum), torch.Generator().manual_seed(0)
        rows = np.empty((4, n))
        for step in range(n):
            x = torch.randn(batch_size, 1, generator=generator) * (1 if step < 60 else 2) + (0 if step < 60 else 2)
            layer(x)
            rows[:, step] = [v.item() for v in (x.mean(), layer.running_mean, x.var(), layer.running_var)]
        for artist, row in zip(artists, rows): artist.set_data(np.arange(1, n + 1), row)
        lag = 1 if momentum == 1 else math.ceil(math.log(.1) / math.log(1 - momentum))
        return {"momentum": momentum, "batch_size": batch_size, "mean": float(rows[1, -1]), "var": float(rows[3, -1]),
                "lag": lag, "noise": float(rows[1, -20:].std())}

    def words(s):
        return (f"momentum {s['momentum']:.2g}, batches of {s['batch_size']}: nine tenths of a jump are in after "
                f"{counted(s['lag'], 'batch')}; at the end mean {s['mean']:.3g} (true 2), variance {s['var']:.3g} (true 4).")

    return explore(follow, live, words=words,
                   caption="Live figure. A small share of the newest batch gives a smooth curve that is late, a large "
                           "one a curve that is soon there and trembles.",
                   momentum=widgets.FloatSlider(.1, min=.01, max=1, step=.01),
                   batch_size=widgets.IntSlider(32, 2, 256, 2))
