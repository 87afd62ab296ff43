"""Plots of what callbacks have recorded and of what a search for the learning rate saw."""
import matplotlib.pyplot as plt
import numpy as np

from .plots import COLORS, GHOST, show, styled
from .range_test import smoothed

SUGGESTION_MARKS = {"minimum_over_10": ("orange", "o"), "steepest": ("green", "s"), "valley": ("pink", "D")}


@styled
def plot_losses(losses, epochs, smooth):
    "Training loss by batch, its exponentially weighted average, and the validation loss after each epoch."
    if not len(losses): raise ValueError("Nothing is recorded yet: fit first.")
    averaged = smoothed(losses, smooth)
    fig, ax = plt.subplots()
    ax.plot(losses, color=GHOST, ls="-", lw=.8, alpha=.6, label="training, each batch")
    ax.plot(averaged, color=COLORS["blue"], ls="-", label="training, smoothed")
    valid = [(row["batches"], row["valid_loss"]) for row in epochs if "valid_loss" in row]
    if valid: ax.plot(*zip(*valid), color=COLORS["orange"], marker="o", ls="--", label="validation, whole set")
    high = np.nanquantile(losses[np.isfinite(losses)], .995) if np.isfinite(losses).any() else 1
    ax.set(xlabel="training batch", ylabel="loss (mean of a batch)",
           ylim=(0, 1.1 * max(high, *(v for _, v in valid), 0) if np.nanmin(losses) >= 0 else None))
    ax.legend()
    show(fig, alt=f"Training loss over {len(losses)} batches, from {averaged[0]:.3g} to {averaged[-1]:.3g} smoothed"
                  + (f"; validation loss at the end {valid[-1][1]:.3g}." if valid else "."),
         caption="Loss by training batch, its smoothed course, and the validation loss where there is one.")


@styled
def plot_schedule(lrs, betas):
    "Learning rate and, where there is one, beta, by training batch."
    if not len(lrs): raise ValueError("Nothing is recorded yet: fit first.")
    with_beta = np.isfinite(betas).any()
    fig, axes = plt.subplots(1, 1 + with_beta, figsize=(10 if with_beta else 6, 3.4), squeeze=False)
    for ax, values, name, color in zip(axes[0], (lrs, betas), ("learning rate", "beta (momentum)"),
                                       ("blue", "orange")):
        ax.plot(values, color=COLORS[color], ls="-")
        ax.set(xlabel="training batch", ylabel=name)
    show(fig, alt=f"The learning rate over {len(lrs)} batches: from {lrs[0]:.3g}, at most {lrs.max():.3g}, "
                  "at the end "
                  f"{lrs[-1]:.3g}" + (f"; beta from {betas[0]:.3g}, at least {np.nanmin(betas):.3g}, at the "
                                      f"end {betas[-1]:.3g}." if with_beta else "."),
         caption="What the optimizer was given, batch by batch.")


@styled
def plot_activation_stats(stats):
    "The three numbers of each layer by batch."
    if not stats: raise ValueError("Nothing is recorded yet: fit first.")
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    marks = ["o", "s", "^", "D", "v", "P"]
    for ax, key, what in zip(axes, ("mean", "std", "near_zero"), ("mean", "standard deviation", "share near zero")):
        for i, (name, values) in enumerate(stats.items()):
            ax.plot(values[key], label=name, marker=marks[i % 6], markevery=max(len(values[key]) // 5, 1), ms=5)
        ax.set(xlabel="training batch", ylabel=what)
    fig.suptitle("Outputs of the layers")
    axes[1].legend(fontsize=9)
    ends = "; ".join(f"{name}: mean {v['mean'][-1]:.2g}, deviation {v['std'][-1]:.2g}, "
                     f"{v['near_zero'][-1]:.0%} near zero"
                     for name, v in stats.items())
    show(fig, alt="Three panels by training batch: mean, standard deviation and share near zero of "
                  f"layers' outputs. At the end {ends}.",
         caption="What each layer puts out while the network trains.")


@styled
def plot_range_test(found):
    "Raw and smoothed loss against the rate, with the suggestions."
    fig, ax = plt.subplots(figsize=(9, 4.2))
    ax.plot(found.lrs, found.losses, color=GHOST, ls="-", lw=1, label="each batch")
    ax.plot(found.lrs, found.smooth_losses, color=COLORS["blue"], ls="-", label=f"smoothed ({found.smooth:g})")
    try: suggestions, said = found.suggestions, ""
    except ValueError as error: suggestions, said = {}, str(error)
    for name, lr in suggestions.items():
        color, marker = SUGGESTION_MARKS[name]
        ax.plot([lr], [np.interp(lr, found.lrs, found.smooth_losses)],
                color=COLORS[color],
                marker=marker,
                ms=12,
                mec="white",
                ls="",
                label=f"{name.replace('_', ' ')}: {lr:.2g}",
                zorder=5)
    before_the_end = found.smooth_losses[:found.smooth_losses.argmin() + 1] if len(found.losses) else np.ones(1)
    low, high = min(0, before_the_end.min()), before_the_end.max()  # how high it then flies does not matter
    room = .6 * (high - low) or 1.  # all losses may be zero
    ax.set(xscale="log", xlabel="learning rate", ylabel="training loss", ylim=(1.2 * low, high + room))
    ax.legend(loc="upper left", ncols=3)
    points = ", ".join(f"{name} {lr:.2g}" for name, lr in suggestions.items())
    show(fig, alt=f"Loss of {len(found.lrs)} batches against the growing learning rate. {points or said}",
         caption=f"A learning-rate search. {'Suggested: ' + points + '.' if points else said}")
