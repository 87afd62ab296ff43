"""The live figures of the lesson `callbacks`."""
import math
from collections import deque
from functools import partial

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from torch import nn

from ..callbacks import GradientAccumulation, GradientClip, Recorder
from ..data import DataLoaders, TensorLoader
from ..learner import Callback, CancelFitException, Learner, TerminateOnNaN, accuracy
from ..momentum import SGD
from ..sgd import small_net
from ..support.checks import counted
from ..support.live import LiveFigure, explore, in_turns
from ..support.plots import COLORS, INK, styled

LOOKS = {"nothing": ("orange", "x", 8), "clipping": ("blue", "o", 9), "accumulation": ("pink", "^", 13),
         "both": ("green", "D", 14)}  # color, marker, size: open marks, which show what lies under them
CHECKBOX = partial(widgets.Checkbox, indent=False, layout=widgets.Layout(width="180px"))


@styled
def ablation_explorer(dls, n_steps=100, n_marks=12):
    """A small net trained with SGD and momentum and a list of callbacks that you tick together, for `n_steps` steps.

    `.state`: lr, clip, accumulate, step (of n_steps), loss (mean of the last 20 batches), accuracy (NaN until it is
    through), `cbs`: how many callbacks are in the list.
    """
    fig = Figure(figsize=(11, 4))
    loss_ax, rate_ax = fig.subplots(1, 2, width_ratios=[1.2, 1])
    train = TensorLoader(dls.train.x, dls.train.y, 64, shuffle=True)
    loss_ax.set(xlabel="optimizer step", ylabel="training loss (nats)", xlim=(0, n_steps), ylim=(0, 4),
                title="The loss while it trains")
    loss_ax.axhline(math.log(10), color=INK, ls=":", lw=1.5, label="blind guess")
    [before] = loss_ax.plot([], [], ls="--", lw=1.5, marker="", color=INK, label="the run before")
    [curve] = loss_ax.plot([], [], ls="-", lw=2, marker="", color=INK, label="this run")
    loss_ax.legend(loc="upper right")
    rate_ax.set(xscale="log", xlim=(.008, 12), ylim=(0, 100), xlabel="learning rate", ylabel="validation accuracy (%)",
                title=f"The last {n_marks} runs")
    rate_ax.set_xticks([.01, .1, 1, 10], ["0.01", "0.1", "1", "10"])
    marks = {name: rate_ax.plot([], [], ls="", marker=marker, ms=size, mew=2, mfc="none", color=COLORS[color])[0]
             for name, (color, marker, size) in LOOKS.items()}
    fig.legend(handles=list(marks.values()), labels=list(marks), loc="outside lower right", ncols=4)
    live = LiveFigure(fig, [before, curve, *marks.values()],
                      alt="Left: the training loss by optimizer step for the ticked list of callbacks, and for the run "
                          "before. Right: the validation accuracy of the last runs by learning rate, with a mark of "
                          "its own for each list of callbacks.")
    earlier, reached = deque(maxlen=1), deque(maxlen=n_marks)
    valid = TensorLoader(dls.valid.x[:1000], dls.valid.y[:1000], 500)

    def run(lr, clip, accumulate):
        cbs = [*([GradientClip(max_norm=.5)] if clip else []), *([GradientAccumulation(2)] if accumulate else [])]
        name = "both" if clip and accumulate else "clipping" if clip else "accumulation" if accumulate else "nothing"
        batches = DataLoaders(TensorLoader(train.x, train.y, 64, shuffle=True), valid)
        learn = Learner(small_net(train.x.device), DataLoaders(batches.train, None), nn.functional.cross_entropy,
                        partial(SGD, momentum=.9), lr, metrics=[accuracy])
        recorder, budget = Recorder(), StepBudget(n_steps)
        if earlier: show_curve(before, *earlier[0])
        settings = {"lr": lr, "clip": clip, "accumulate": accumulate, "cbs": len(cbs), "n_steps": n_steps}

        def fit(report): learn.fit(2 * n_steps, cbs=[recorder, budget, TerminateQuietly(), Reporter(recorder, report), *cbs])

        def draw(losses):
            steps = np.linspace(0, budget.done, len(losses) + 1)[1:]
            show_curve(curve, name, steps, losses)
            loss = float(losses[-20:].mean()) if len(losses) else math.nan
            return {**settings, "step": budget.done, "loss": loss, "accuracy": math.nan}

        for losses in in_turns(fit): yield draw(losses)
        state = draw(recorder.losses) | {"accuracy": learn.validate(valid)["accuracy"]}
        earlier.append((name, curve.get_xdata(), recorder.losses))
        reached.append((name, lr, 100 * state["accuracy"]))
        for label, mark in marks.items():
            mark.set_data([row[1] for row in reached if row[0] == label], [row[2] for row in reached if row[0] == label])
        yield state

    def show_curve(line, name, steps, losses):
        line.set_color(COLORS[LOOKS[name][0]])
        line.set_data(steps, np.nan_to_num(losses, nan=1e3, posinf=1e3).clip(max=1e3))

    def words(s):
        through, end = not math.isnan(s["accuracy"]), ""
        if through and s["step"] < n_steps: end += "; there it became NaN and was stopped"
        if through: end += f"; {s['accuracy']:.0%} of {len(valid.y):,} validation images are right"
        return (f"lr {s['lr']:.3g}, {counted(s['cbs'], 'callback')} in the list: loss {s['loss']:.2f} "
                f"after {counted(s['step'], 'step')}{end}.")

    return explore(run, live, words=words,
                   caption=f"Live figure. Each tick or move trains a network anew, for {n_steps} optimizer steps, and "
                           "leaves a mark on the right. Up to which rate does it train with clipping, and without?",
                   lr=widgets.FloatLogSlider(.5, base=10, min=-2, max=1, step=.05, readout_format=".3g",
                                             layout=widgets.Layout(width="250px")),
                   clip=CHECKBOX(True, description="clip the norm to 0.5"),
                   accumulate=CHECKBOX(False, description="accumulate 2 batches"))


class StepBudget(Callback):
    "Ends the fit after so many optimizer steps, `.done` of them so far."
    def __init__(self, n_steps): self.n_steps, self.done = n_steps, 0

    def after_step(self, learn):
        if not learn.cancelled: self.done += 1
        if self.done == self.n_steps: raise CancelFitException


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
