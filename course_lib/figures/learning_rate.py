"""The live figures of the lesson `learning_rate`."""
import math

import ipywidgets as widgets
import matplotlib.pyplot as plt
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
from ..support.paired import central_t
from ..support.plots import COLORS, GHOST, INK, LABEL_BOX, show, styled


LESS = "steepest, smooth .9"  # a rule in the stored results
BETAS = {"against the rate": (.95, .85), "constant": (.9, .9), "with the rate": (.85, .95)}  # at both ends, at the peak
LINES = {"constant": ("amber", "s", ":"), "cosine": ("green", "^", "--"), "short warm-up": ("sky", "v", (0, (6, 2))),
         "warm-up": ("blue", "o", "-"), "one-cycle": ("orange", "D", "-"), "with the rate": ("pink", "X", "-."),
         "beta .85": (None, "P", (0, (3, 1))), "averages first": ("pink", "X", "-.")}  # what a schedule looks like in every figure


@styled
def show_guesses(recorders, alt, caption):
    "Training losses by batch for some rates: rate -> `Recorder`."
    fig, ax = plt.subplots(figsize=(8, 3.4))
    for (lr, recorder), color, ls in zip(recorders.items(), ("sky", "blue", "orange"), ("--", "-", "-.")):
        ax.plot(range(1, len(recorder.losses) + 1), recorder.losses, color=COLORS[color], ls=ls, label=f"{lr:g}")
    ax.axhline(math.log(10), color=INK, ls=":", lw=1.5, label="blind guess (ln 10)")
    ax.set(xlabel="training batch", ylabel="training loss (nats)", yscale="log")
    ticks = [.01, .1, 1, 10, 100]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_ylim(bottom=.7 * min(min(recorder.losses) for recorder in recorders.values()))
    ax.legend(title="learning rate", loc="center left", bbox_to_anchor=(1, .5))
    show(fig, alt=alt, caption=caption)


@styled
def show_by_hand(finder, guesses, alt, caption):
    "The points of a range test, with some rates marked on it."
    fig, ax = plt.subplots(figsize=(8, 3.6))
    ax.plot(finder.lrs, finder.losses, color=COLORS["blue"], marker="o", ms=4, ls="-", lw=1)
    for lr in guesses:
        ax.axvline(lr, color=INK, ls=":", lw=1.5)
        ax.text(lr, 3.9, f" {lr:g}", ha="left", va="top", bbox=LABEL_BOX)
    ax.set(xscale="log", xlabel="learning rate", ylabel="training loss (nats)", ylim=(0, 4))
    show(fig, alt=alt, caption=caption)


@styled
def show_picks(picked, alt, caption):
    "Ten searches: the rate that each rule read off, and the accuracy that a training with it reached."
    fig, ax = plt.subplots(figsize=(8, 3.8))
    for name, rates in picked["rates"].items():
        color, marker = (SUGGESTION_MARKS | {"a tenth of valley": ("blue", "X"), LESS: ("sky", "^")})[name]
        ax.plot(rates, [100 * share for share in picked["accuracy"][name]], color=COLORS[color], marker=marker,
                ms=8, mec="white", ls="", label=name.replace("_", " "))
    ax.set(xscale="log", xlabel="learning rate that was picked", ylabel="validation accuracy (%)")
    ax.legend(loc="center left", bbox_to_anchor=(1, .5))
    show(fig, alt=alt, caption=caption)


@styled
def show_failures(too_short, noisy, starts, trained, alt, caption):
    "Four range tests that mislead: lists of `LRFind`, and one."
    fig, axes = plt.subplots(2, 2, figsize=(11, 6.6), sharey="row")
    def draw(ax, found, rule, ls, label):
        lr, color = found.suggestions[rule], COLORS["blue"]
        ax.plot(found.lrs, found.smooth_losses, color=color, ls=ls, lw=2, label=label)
        color, marker = SUGGESTION_MARKS[rule]
        ax.plot([lr], [np.interp(lr, found.lrs, found.smooth_losses)], color=COLORS[color], marker=marker, ms=11,
                mec="white", ls="", zorder=5)
    styles = (":", "--", "-")
    for found, ls in zip(too_short, styles): draw(axes[0, 0], found, "minimum_over_10", ls, f"to {found.lrs[-1]:g}")
    for found, ls in zip(noisy, styles): draw(axes[0, 1], found, "steepest", ls, f"smooth {found.smooth:g}")
    for found, ls in zip(starts, styles): draw(axes[1, 0], found, "valley", ls, f"from $10^{{{math.log10(found.lrs[0]):.0f}}}$")
    axes[1, 1].plot(trained.lrs, trained.losses, color=GHOST, ls="-", lw=1, label="each batch")
    axes[1, 1].plot(trained.lrs, trained.smooth_losses, color=COLORS["blue"], ls="-", label="smoothed")
    for rule, lr in trained.suggestions.items():
        color, marker = SUGGESTION_MARKS[rule]
        axes[1, 1].plot([lr], [np.interp(lr, trained.lrs, trained.smooth_losses)], color=COLORS[color], marker=marker,
                        ms=11, mec="white", ls="", zorder=5, label=rule.replace("_", " "))
    titles = ("minimum over 10: where the search ends", "steepest: how much it is smoothed",
              "valley: where the search begins", "all three: a network that is trained already")
    for ax, title in zip(axes.flat, titles):
        ax.set(xscale="log", title=title, ylim=(0, 3))
        ax.legend(loc="upper left" if ax is axes[1, 1] else "lower left", fontsize=10)
    for ax in axes[1]: ax.set_xlabel("learning rate")
    for ax in axes[:, 0]: ax.set_ylabel("training loss (nats)")
    show(fig, alt=alt, caption=caption)


@styled
def show_shapes(shapes, alt, caption):
    "Schedules over progress, a small panel each."
    n_rows = -(-len(shapes) // 5)
    fig, axes = plt.subplots(n_rows, 5, figsize=(11, 2.1 * n_rows), sharex=True, sharey=True)
    progress = np.linspace(0, 1, 501)
    for ax, (name, schedule) in zip(axes.flat, shapes.items()):
        ax.plot(progress, [schedule(p) for p in progress], color=COLORS["blue"], ls="-")
        ax.set(ylim=(-.05, 1.1), xticks=[0, .5, 1])
        ax.set_title(name, fontsize=11)
    fig.supxlabel("progress", fontsize=12)
    fig.supylabel("rate (share of the highest)", fontsize=12)
    show(fig, alt=alt, caption=caption)


@styled
def show_steps(losses, dead, alt, caption):
    "Some runs: name of a schedule -> losses by batch; and -> shares of dead units after each batch."
    fig, (loss_ax, dead_ax) = plt.subplots(1, 2, figsize=(11, 3.6))
    for ax, runs, unit in (loss_ax, losses, 1), (dead_ax, dead, 100):
        for name, values in runs.items():
            color, marker, ls = LINES[name]
            ax.plot(range(1, len(values) + 1), unit * np.asarray(values), color=COLORS.get(color, INK), ls=ls,
                    marker=marker, markevery=max(len(values) // 10, 1), label=name)
        ax.set(xlabel="training batch", ylim=(0, None))
        ax.set_xticks([1, *range(5, len(values) + 1, 5)])
    loss_ax.axhline(math.log(10), color=INK, ls=":", lw=1.5, label="blind guess (ln 10)")
    loss_ax.set(ylabel="training loss (nats)")
    dead_ax.set(ylabel="dead units after the batch (%)", ylim=(0, 100))
    loss_ax.legend()
    show(fig, alt=alt, caption=caption)


@styled
def show_by_peak(measured, names, alt, caption, xlabel="peak of the learning rate", effective=None):
    """Errors by peak, one line for each schedule: mean of the seeds that judge, and a bar for its interval.

    names: of schedules; or a dict from these to what the legend calls them. effective: their constant betas by name,
    for errors over peak / (1 − beta).
    """
    fig, ax = plt.subplots(figsize=(8, 3.8))
    for name in names:
        errors = 100 * np.array(measured["error"][name])[-len(measured["seeds"]):]
        half = central_t(len(errors) - 1, .95) * errors.std(0, ddof=1) / math.sqrt(len(errors))
        color, marker, ls = LINES[name]
        peaks = np.array(measured["peaks"]) / (1 - effective[name] if effective else 1)
        ax.errorbar(peaks, errors.mean(0), half, color=COLORS.get(color, INK), marker=marker, ls=ls,
                    capsize=3, label=names[name] if isinstance(names, dict) else name)
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="validation error (%)", ylim=(None, 100))
    ticks = [.1, .2, .5, 1, 2, 4] if effective else measured["peaks"]
    if effective: ax.set_xlabel("effective rate at the peak, peak / (1 − beta)")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ticks = [t for t in (2, 3, 5, 7, 10, 20, 50, 100) if t >= ax.get_ylim()[0]]
    ax.set_yticks(ticks, map(str, ticks))
    ax.legend(loc="center left", bbox_to_anchor=(1, .5))
    show(fig, alt=alt, caption=caption)


@styled
def finder_explorer(learn):
    """`learn.lr_find` drawing its curve while it runs, with sliders for its range, batches and smoothing.

    The learner is afterwards as it was. `.state`: end_lr, num_it, smooth, n_points, lr, loss, smooth_loss;
    at the end `done` and the suggestions (NaN before, and where there are none).
    """
    fig = Figure(figsize=(11, 4))
    ax = fig.subplots()
    ax.set(xscale="log", xlim=(1e-6, 10), xlabel="learning rate", ylabel="training loss (nats)", title="The search as it runs")
    [earlier] = ax.plot([], [], color=GHOST, ls="--", lw=1.2, alpha=.8)
    [raw] = ax.plot([], [], color=GHOST, ls="-", lw=1, label="each batch")
    [smoothed] = ax.plot([], [], color=COLORS["blue"], ls="-", lw=2.5, label="smoothed")
    [head] = ax.plot([], [], color=COLORS["blue"], marker="o", ms=9, mec="white", ls="")
    marks = {name: ax.plot([], [], color=COLORS[color], marker=marker, ms=13, mec="white", ls="", zorder=5,
                           label=name.replace("_", " "))[0] for name, (color, marker) in SUGGESTION_MARKS.items()}
    ax.legend(loc="upper left", ncols=3, frameon=True, framealpha=.9, edgecolor="none")
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

    width = widgets.Layout(width="225px")
    return explore(search, live, words=words,
                   caption="Live figure. Each move searches anew, with a real network. Dashed: the search before. "
                           "With less smoothing, where do the marks go?",
                   end_lr=widgets.FloatLogSlider(10, base=10, min=-1, max=1, step=.1, description="end lr",
                                                 readout_format=".2g", layout=width),
                   num_it=widgets.IntSlider(100, min=10, max=300, step=10, description="batches", layout=width),
                   smooth=widgets.FloatSlider(.98, min=0, max=.99, step=.01, layout=width))


@styled
def one_cycle_explorer(dls, n_batches=240):
    """A one-cycle whose peak, share, shape and beta are controls, and a network 784-50-10 that trains with it.

    `.state`: peak, pct_start, shape, beta, batch, loss (mean of the last 20), accuracy (NaN until it is through),
    constant_accuracy (the same net at a constant rate of the peak), `diverged` (the loss is above twice a blind guess).
    """
    fig = Figure(figsize=(11.5, 3.9))
    axes = fig.subplot_mosaic([["rate", "loss", "accuracy"], ["beta", "loss", "accuracy"]], height_ratios=[2, 1])
    rate_ax, beta_ax, loss_ax, accuracy_ax = (axes[name] for name in ("rate", "beta", "loss", "accuracy"))
    rate_ax.set(ylabel="learning rate", yscale="log", xlim=(0, n_batches), ylim=(1e-7, 3), title="The schedule")
    rate_ax.set_yticks([1e-6, 1e-4, 1e-2, 1])
    rate_ax.minorticks_off()
    rate_ax.tick_params(labelbottom=False)
    beta_ax.set(xlabel="training batch", ylabel="beta", xlim=(0, n_batches), ylim=(.83, .97), yticks=[.85, .9, .95])
    loss_ax.set(xlabel="training batch", ylabel="training loss (nats)", xlim=(0, n_batches), ylim=(0, 4),
                title="The loss while it trains")
    accuracy_ax.set(xlabel="peak or constant rate", ylabel="validation accuracy (%)", xscale="log", xlim=(.008, 1.25),
                    ylim=(0, 102), title="What each peak reached")
    loss_ax.axhline(math.log(10), color=INK, ls=":", lw=1.5, label="blind guess (ln 10)")
    [rate] = rate_ax.plot([], [], color=COLORS["blue"], ls="-", lw=2.5)
    [betas] = beta_ax.plot([], [], color=COLORS["blue"], ls="-", lw=2.5)
    [at] = rate_ax.plot([], [], color=COLORS["orange"], marker="o", ms=10, mec="white", ls="")
    [constant_curve] = loss_ax.plot([], [], color=GHOST, ls="--", lw=1.2, label="constant at the peak")
    [curve] = loss_ax.plot([], [], color=COLORS["blue"], ls="-", lw=2, label="one-cycle")
    legend = loss_ax.legend(loc="upper right", frameon=True, framealpha=.85, edgecolor="none")
    [others] = accuracy_ax.plot([], [], color=INK, marker="s", mfc="none", ls="", ms=11, label="constant rate")
    [dots] = accuracy_ax.plot([], [], color=COLORS["blue"], marker="o", ls="", ms=8, label="one-cycle")
    [now] = accuracy_ax.plot([], [], color=COLORS["orange"], marker="D", ls="", ms=12, mec="white", zorder=5,
                             label="the last one")
    accuracy_ax.legend(loc="lower left")
    live = LiveFigure(fig, [rate, betas, at, constant_curve, curve, legend, others, dots, now],
                      alt="Left: the rate of the chosen one-cycle, and below it beta. Middle: the training loss by batch, with the one-cycle "
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
        "Schedules over n_batches, whatever an epoch has."
        def __init__(self, schedule, beta): self.schedule, self.beta = schedule, beta
        def before_batch(self, learn):
            progress = min(1., learn.train_iter / (n_batches - 1))
            learn.lr, learn.opt.param_groups[0]["beta"] = self.schedule(progress), self.beta(progress)

    def fit(schedule, recorder, beta=const(.9)):
        learn = learner()
        n_epochs = math.ceil(n_batches / len(learn.dls.train))
        cbs = [recorder, AtBatch(schedule, beta)]
        yield from in_turns(lambda report: learn.fit(n_epochs, lr=schedule(0.), cbs=[*cbs, UpTo(report)]))
        return learn.validate()["accuracy"] if np.isfinite(recorder.losses).all() else .1

    def train(peak, pct_start, shape, beta):
        form, (edge, middle) = {"cosine": cos, "linear": lin}[shape], BETAS[beta]
        up_and_down = lambda *ends: combine([pct_start, 1 - pct_start], [form(*ends[:2]), form(*ends[1:])])
        schedule = up_and_down(peak / 25, peak, peak / 1e5)
        turn, progress = up_and_down(edge, middle, edge), np.linspace(0, 1, n_batches)
        rate.set_data(range(n_batches), [schedule(p) for p in progress])
        betas.set_data(range(n_batches), [turn(p) for p in progress])
        now.set_data([], [])
        show_constant(constants[peak][1] if peak in constants else [])
        settings = {"peak": peak, "pct_start": pct_start, "shape": shape, "beta": beta}
        recorder, plain = Recorder(), Recorder()
        fitting = fit(schedule, recorder, turn)
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
        return (f"Peak {s['peak']:.3g} after {s['pct_start']:.0%} of {n_batches} batches, {s['shape']}, "
                f"beta {s['beta']}: "
                f"loss {s['loss']:.2f}{end}.")

    return explore(train, live, words=words,
                   caption="Live figure. Each move trains a network on real digits with the one-cycle that you "
                           "drew, and for each new peak once "
                           "more at a constant rate: the grey line, and the squares.",
                   peak=widgets.FloatLogSlider(.14, base=10, min=-2, max=0, step=.05, readout_format=".2g",
                                               layout=widgets.Layout(width="215px")),
                   pct_start=widgets.FloatSlider(.25, min=0, max=1, step=.05, description="warm-up",
                                                 layout=widgets.Layout(width="225px")),
                   shape=widgets.Dropdown(options=["cosine", "linear"], value="cosine",
                                          layout=widgets.Layout(width="145px")),
                   beta=widgets.Dropdown(options=list(BETAS), value="against the rate",
                                         layout=widgets.Layout(width="205px")))


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
