"""The live figures of the lesson `learning_rate`."""
import math

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from torch import nn

from ..callbacks import Recorder
from ..data import DataLoaders, TensorLoader
from ..learner import Callback, CancelFitException, CancelValidateException, Learner, accuracy
from ..learning_rate import Scheduler, combine, const, cos, lin
from ..momentum import SGD
from ..sgd import small_net
from ..support.curves import SUGGESTION_MARKS
from ..support.live import LiveFigure, explore, in_turns
from ..support.plots import COLORS, GHOST, INK, styled


@styled
def finder_explorer(learn):
    """`learn.lr_find` drawing its curve while it runs, with sliders for its range, batches and smoothing.

    The learner is afterwards as it was. `.state`: end_lr, num_it, smooth, n_points, lr, loss, smooth_loss;
    at the end `done` and the suggestions (NaN before, and where there are none).
    """
    fig = Figure(figsize=(11, 4))
    ax = fig.subplots()
    ax.set(xscale="log", xlim=(1e-6, 10), xlabel="learning rate", ylabel="training loss", title="The search as it runs")
    [earlier] = ax.plot([], [], color=GHOST, ls="--", lw=1.2, alpha=.8, label="the search before")
    [raw] = ax.plot([], [], color=GHOST, ls="-", lw=1, label="each batch")
    [smoothed] = ax.plot([], [], color=COLORS["blue"], ls="-", lw=2.5, label="smoothed")
    [head] = ax.plot([], [], color=COLORS["blue"], marker="o", ms=9, mec="white", ls="")
    marks = {name: ax.plot([], [], color=COLORS[color], marker=marker, ms=13, mec="white", ls="", zorder=5,
                           label=name.replace("_", " "))[0] for name, (color, marker) in SUGGESTION_MARKS.items()}
    ax.legend(loc="upper left", ncols=3)
    live = LiveFigure(fig, [earlier, raw, smoothed, head, *marks.values()],
                      alt="Training loss, raw and smoothed, against the learning rate, which grows from left "
                          "to right while a network "
                          "trains; three marks at the end for the suggested rates.")
    scale = []

    def search(end_lr, num_it, smooth):
        earlier.set_data(*smoothed.get_data())
        for mark in marks.values(): mark.set_data([], [])
        settings = {"end_lr": end_lr, "num_it": num_it, "smooth": smooth}
        found = None
        for found in in_turns(lambda report: learn.lr_find(1e-6, end_lr, num_it, smooth, on_step=report)):
            yield draw(found, settings)
        if found is None: raise ValueError("The first loss was NaN or infinite: there is nothing to draw.")
        try: suggestions = found.suggestions
        except ValueError: suggestions = {}
        for name, lr in suggestions.items(): marks[name].set_data([lr], [np.interp(lr, found.lrs, found.smooth_losses)])
        yield draw(found, settings) | suggestions | {"done": True}

    def draw(found, settings):
        raw.set_data(found.lrs, found.losses)
        smoothed.set_data(found.lrs, found.smooth_losses)
        head.set_data(found.lrs[-1:], found.smooth_losses[-1:])
        if not scale:
            scale.append(1.7 * found.losses[0])
            ax.set_ylim(0, scale[0])
            live.invalidate()
        return {**settings, "n_points": len(found.lrs), "lr": float(found.lrs[-1]), "loss": float(found.losses[-1]),
                "smooth_loss": float(found.smooth_losses[-1]), **dict.fromkeys(SUGGESTION_MARKS, math.nan), "done": False}

    def words(s):
        if not s["done"]: return f"Batch {s['n_points']} of {s['num_it']}: lr {s['lr']:.2g}, loss {s['loss']:.2f}."
        after = f"After {s['n_points']} batch{'' if s['n_points'] == 1 else 'es'}"
        if math.isnan(s["valley"]): return f"{after} there is nothing to suggest."
        return f"{after}: " + ", ".join(f"{name.replace('_', ' ')} {s[name]:.2g}"
                                                              for name in SUGGESTION_MARKS) + "."

    width = widgets.Layout(width="240px")
    return explore(search, live, words=words,
                   caption="Live figure. Each move searches anew, with a real network. With less smoothing, "
                           "where do the marks go?",
                   end_lr=widgets.FloatLogSlider(10, base=10, min=-1, max=1, step=.1, description="end lr",
                                                 readout_format=".2g", layout=width),
                   num_it=widgets.IntSlider(100, min=10, max=300, step=10, description="batches", layout=width),
                   smooth=widgets.FloatSlider(.98, min=0, max=.99, step=.01, layout=width))


@styled
def one_cycle_explorer(dls, n_batches=240):
    """A one-cycle whose peak, share and shape are controls, and a network 784-50-10 that trains with it.

    `.state`: peak, pct_start, shape, batch, loss (mean of the last 20), accuracy (NaN until it is through),
    constant_accuracy (the same net at a constant rate of the peak), `diverged` (the loss is above twice a blind guess).
    """
    fig = Figure(figsize=(11.5, 3.7))
    rate_ax, loss_ax, accuracy_ax = fig.subplots(1, 3)
    rate_ax.set(xlabel="training batch", ylabel="learning rate", yscale="log", xlim=(0, n_batches), ylim=(1e-4, 20),
                title="The schedule")
    loss_ax.set(xlabel="training batch", ylabel="training loss (nats)", xlim=(0, n_batches), ylim=(0, 4),
                title="The loss while it trains")
    accuracy_ax.set(xlabel="peak or constant rate", ylabel="validation accuracy (%)", xscale="log", xlim=(8e-4, 12),
                    ylim=(0, 102), title="What each peak reached")
    loss_ax.axhline(math.log(10), color=INK, ls=":", lw=1.5, label="blind guess (ln 10)")
    [rate] = rate_ax.plot([], [], color=COLORS["blue"], ls="-", lw=2.5)
    [at] = rate_ax.plot([], [], color=COLORS["orange"], marker="o", ms=10, mec="white", ls="")
    [constant_curve] = loss_ax.plot([], [], color=GHOST, ls="--", lw=1.2, label="constant at the peak")
    [curve] = loss_ax.plot([], [], color=COLORS["blue"], ls="-", lw=2, label="one-cycle")
    legend = loss_ax.legend(loc="upper right", frameon=True, framealpha=.85, edgecolor="none")
    [others] = accuracy_ax.plot([], [], color=GHOST, marker="s", ls="", ms=7, label="constant rate")
    [dots] = accuracy_ax.plot([], [], color=COLORS["blue"], marker="o", ls="", ms=8, label="one-cycle")
    [now] = accuracy_ax.plot([], [], color=COLORS["orange"], marker="D", ls="", ms=12, mec="white", zorder=5,
                             label="the last one")
    accuracy_ax.legend(loc="lower left")
    live = LiveFigure(fig, [rate, at, constant_curve, curve, legend, others, dots, now],
                      alt="Left: the chosen one-cycle. Middle: the training loss by batch, with the one-cycle "
                          "and at a constant rate of its peak; a dotted line marks a blind guess. "
                          "Right: the validation accuracy reached by each peak, the last one a diamond, and "
                          "by constant rates.")
    train_x, train_y = dls.train.x[:n_batches * 64], dls.train.y[:n_batches * 64]
    valid = TensorLoader(dls.valid.x[:1000], dls.valid.y[:1000], 500)
    tried, constants = {}, {}  # by peak; the last few, or they would grow with every move

    def learner():
        train = TensorLoader(train_x, train_y, 64, shuffle=True, drop_last=True)
        return Learner(small_net(train_x.device), DataLoaders(train, valid), nn.functional.cross_entropy,
                       lambda params: SGD(params, momentum=.9), metrics=[accuracy])

    class UpTo(Callback):
        "Ends a fit after n_batches, skips validation, and reports every few batches."
        run_after = (Recorder,)
        def __init__(self, report): self.report = report
        def before_validate(self, learn): raise CancelValidateException
        def after_batch(self, learn):
            if learn.train_iter % 8 == 7: self.report(None)
            if learn.train_iter + 1 >= n_batches or not math.isfinite(learn.loss.item()): raise CancelFitException

    class AtBatch(Scheduler):
        "A schedule over n_batches, whatever an epoch has."
        def __init__(self, schedule): self.schedule = schedule
        def before_batch(self, learn): learn.lr = self.schedule(min(1., learn.train_iter / (n_batches - 1)))

    def fit(schedule, recorder):
        learn = learner()
        n_epochs = math.ceil(n_batches / len(learn.dls.train))
        cbs = [recorder, AtBatch(schedule)]
        yield from in_turns(lambda report: learn.fit(n_epochs, lr=schedule(0.), cbs=[*cbs, UpTo(report)]))
        return learn.validate()["accuracy"] if np.isfinite(recorder.losses).all() else .1

    def train(peak, pct_start, shape):
        form = {"cosine": cos, "linear": lin}[shape]
        schedule = combine([pct_start, 1 - pct_start], [form(peak / 25, peak), form(peak, peak / 1e5)])
        progress = np.linspace(0, 1, n_batches)
        rate.set_data(range(n_batches), [schedule(p) for p in progress])
        now.set_data([], [])
        show_constant(constants[peak][1] if peak in constants else [])
        settings, recorder, plain = {"peak": peak, "pct_start": pct_start, "shape": shape}, Recorder(), Recorder()
        fitting = fit(schedule, recorder)
        reached = yield from _while_showing(fitting, lambda: draw(recorder, settings))
        _remember(tried, peak, 100 * reached)
        if peak not in constants:
            fitting = fit(const(peak), plain)
            reached_too = yield from _while_showing(fitting, lambda: draw(recorder, settings, plain))
            _remember(constants, peak, (reached_too, plain.losses))
        show_constant(constants[peak][1])
        others.set_data(list(constants), [100 * value for value, _ in constants.values()])
        dots.set_data(list(tried), list(tried.values()))
        now.set_data([peak], [tried[peak]])
        yield draw(recorder, settings) | {"accuracy": reached, "constant_accuracy": constants[peak][0]}

    def show_constant(losses): constant_curve.set_data(range(len(losses)), _drawable(losses))

    def draw(recorder, settings, plain=None):
        losses = recorder.losses
        curve.set_data(range(len(losses)), _drawable(losses))
        if plain: show_constant(plain.losses)
        at.set_data([len(losses)], recorder.lrs[-1:]) if len(losses) else at.set_data([], [])
        loss = float(losses[-20:].mean()) if len(losses) else math.nan
        return {**settings, "batch": len(losses), "loss": loss, "accuracy": math.nan, "constant_accuracy": math.nan,
                "diverged": len(losses) > 0 and not loss < 2 * math.log(10)}

    def words(s):
        end = ("" if math.isnan(s["accuracy"]) else f"; {s['accuracy']:.0%} of {len(valid.y):,} validation "
                                                    "images are right, "
               f"at a constant rate of the peak {s['constant_accuracy']:.0%}")
        return (f"Peak {s['peak']:.3g} after {s['pct_start']:.0%} of {n_batches} batches, {s['shape']}: "
                f"loss {s['loss']:.2f}{end}.")

    return explore(train, live, words=words,
                   caption="Live figure. Each move trains a network on real digits with the one-cycle that you "
                           "drew, and for each new peak once "
                           "more at a constant rate, in grey.",
                   peak=widgets.FloatLogSlider(.1, base=10, min=-3, max=1, step=.05, readout_format=".3g",
                                               layout=widgets.Layout(width="240px")),
                   pct_start=widgets.FloatSlider(.25, min=0, max=1, step=.05, description="warm-up share",
                                                 layout=widgets.Layout(width="280px")),
                   shape=widgets.Dropdown(options=["cosine", "linear"], value="cosine",
                                          layout=widgets.Layout(width="150px")))


def _remember(dictionary, key, value, n=24):
    "Put it last, and forget what is older than the last n."
    dictionary.pop(key, None)
    dictionary[key] = value
    while len(dictionary) > n: del dictionary[next(iter(dictionary))]


def _drawable(losses): return np.nan_to_num(np.asarray(losses, dtype=float), nan=1e3, posinf=1e3).clip(max=1e3)


def _while_showing(fitting, state):
    "Yield a state for each report of a fit, and return what the fit returns."
    while True:
        try: next(fitting)
        except StopIteration as end: return end.value
        yield state()
