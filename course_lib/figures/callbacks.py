"""The live figures of the lesson `callbacks`."""
import math
from collections import deque

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from torch import nn

from ..callbacks import GradientAccumulation, GradientClip, Recorder
from ..data import DataLoaders, TensorLoader
from ..learner import Callback, CancelFitException, Learner, TerminateOnNaN, accuracy
from ..momentum import SGD
from ..sgd import small_net
from ..support.live import LiveFigure, explore, in_turns
from ..support.plots import COLORS, GHOST, INK, LABEL_BOX, styled


@styled
def ablation_explorer(dls, n_train=8_000):
    """A small net trained with SGD and momentum and a list of callbacks that you tick together.

    `.state`: lr, clip, accumulate, batch (of n_batches), loss (mean of the last 20), accuracy (NaN until it is
    through), `cbs`: how many callbacks are in the list.
    """
    fig = Figure(figsize=(11, 4))
    loss_ax, bar_ax = fig.subplots(1, 2, width_ratios=[1.6, 1])
    train = TensorLoader(dls.train.x[:n_train], dls.train.y[:n_train], 64, shuffle=True)
    n_epochs = math.ceil(120 / len(train))
    n_batches = n_epochs * len(train)
    loss_ax.set(xlabel="training batch",
                ylabel="training loss (nats)",
                xlim=(0, n_batches),
                ylim=(0, 4),
                title="The loss while it trains")
    loss_ax.axhline(math.log(10), color=INK, ls=":", lw=1.5, label="blind guess")
    ghosts = [loss_ax.plot([], [], color=GHOST, ls="-", lw=1, alpha=.7, label="" if i else "earlier lists")[0]
              for i in range(4)]
    [curve] = loss_ax.plot([], [], color=COLORS["blue"], ls="-", lw=2, label="this list")
    fig.legend(loc="outside lower center", ncols=3)
    bar_ax.set(xlim=(0, 100), ylim=(4.6, -.6), xlabel="validation accuracy (%)", title="The last five lists", yticks=[])
    bars = bar_ax.barh(range(5), [0] * 5, color=[COLORS["blue"], *[GHOST] * 4], height=.8)
    texts = [bar_ax.text(2, i, "", va="center", color=INK, fontsize=11, bbox=LABEL_BOX) for i in range(5)]
    live = LiveFigure(fig, [*ghosts, curve, *bars, *texts],
                      alt="Left: the training loss by batch for the ticked list of callbacks, earlier runs in grey. "
                          "Right: the validation accuracy of the last five lists.")
    earlier, reached = deque(maxlen=len(ghosts)), deque(maxlen=len(bars))
    valid = TensorLoader(dls.valid.x[:1000], dls.valid.y[:1000], 500)

    def run(lr, clip, accumulate):
        cbs = [*([GradientClip(max_norm=.5)] if clip else []), *([GradientAccumulation(2)] if accumulate else [])]
        learn = Learner(small_net(train.x.device), DataLoaders(TensorLoader(train.x, train.y, 64, shuffle=True), valid),
                        nn.functional.cross_entropy, lambda params: SGD(params, momentum=.9), lr, metrics=[accuracy])
        recorder = Recorder()
        for ghost, losses in zip(ghosts, reversed(earlier)): ghost.set_data(range(len(losses)), losses)
        settings = {"lr": lr, "clip": clip, "accumulate": accumulate, "cbs": len(cbs), "n_batches": n_batches}

        def fit(report): learn.fit(n_epochs, cbs=[recorder, TerminateQuietly(), Reporter(recorder, report), *cbs])

        for losses in in_turns(fit): yield draw(losses, settings)
        value = learn.validate()["accuracy"]
        label = " + ".join(name for name, on in (("clipping", clip), ("accumulation", accumulate)) if on) or "nothing"
        reached.appendleft((f"{label}, lr {lr:.2g}: {value:.0%}", 100 * value))
        for bar, text, (words, percent) in zip(bars, texts, reached):
            bar.set_width(percent)
            text.set_text(words)
        state = draw(recorder.losses, settings) | {"accuracy": value}
        earlier.append(recorder.losses)
        yield state

    def draw(losses, settings):
        curve.set_data(range(len(losses)), np.nan_to_num(losses, nan=1e3, posinf=1e3).clip(max=1e3))
        loss = float(losses[-20:].mean()) if len(losses) else math.nan
        return {**settings, "batch": len(losses), "loss": loss, "accuracy": math.nan}

    def words(s):
        through, end = not math.isnan(s["accuracy"]), ""
        if through and s["batch"] < n_batches: end += "; there it became NaN and was stopped"
        if through: end += f"; {s['accuracy']:.0%} of {len(valid.y):,} validation images are right"
        return (f"lr {s['lr']:.3g}, {s['cbs']} callback{'' if s['cbs'] == 1 else 's'} in the list: loss {s['loss']:.2f} "
                f"after {s['batch']} batch{'' if s['batch'] == 1 else 'es'}{end}.")

    return explore(run, live, words=words,
                   caption="Live figure. Each tick trains a network anew, with the callbacks that are ticked. "
                           "Up to which rate does it train with clipping, and without?",
                   lr=widgets.FloatLogSlider(.5, base=10, min=-2, max=1, step=.05, readout_format=".3g",
                                             layout=widgets.Layout(width="250px")),
                   clip=widgets.Checkbox(True, description="clip the norm to 0.5", indent=False,
                                         layout=widgets.Layout(width="180px")),
                   accumulate=widgets.Checkbox(False, description="accumulate 2 batches", indent=False,
                                               layout=widgets.Layout(width="180px")))


class Reporter(Callback):
    "Tells every few batches what a recorder has."
    run_after = (Recorder,)
    def __init__(self, recorder, report): self.recorder, self.report = recorder, report
    def after_batch(self, learn):
        if learn.training and learn.train_iter % 5 == 0: self.report(self.recorder.losses)


class TerminateQuietly(TerminateOnNaN):
    "TerminateOnNaN without a message, for figures that say it themselves."
    def after_loss(self, learn):
        if not math.isfinite(learn.loss.item()): raise CancelFitException
