"""The figures of the lesson `speedrun`: steps and shares, and tricks to tick on and off."""
import math
from itertools import combinations

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from ..speedrun import shapley, steps_to
from ..support.live import LiveFigure, explore
from ..support.paired import Paired
from ..support.plots import COLORS, GHOST, INK, LABEL_BOX, plt, styled
from ..support.speedrun import Times

WORDS = {"in_memory": "in memory", "channels_last": "channels last", "strides": "strides", "batchnorm": "batchnorm", "one_cycle": "one cycle"}


def label_of(arm): return ", ".join(WORDS.get(name, name) for name in arm.split()) if arm != "none" else "plain"


def steps_figure(arms, target, n_seeds):
    "Mean accuracies by number of steps with 95 % intervals, a line for each recipe, and the target."
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.4), sharex=True, sharey=True)
    markers, colors, styles = "osD^v", [*COLORS.values()], ["-", "--", "-.", ":", (0, (8, 1.5))]
    for ax, cycle in zip(axes, (False, True)):
        chosen = [name for name in arms if ("one_cycle" in name) == cycle]
        for name in chosen:
            i = 4 if "smoothing" in name else 2 * ("strides" in name) + ("batchnorm" in name)
            rungs = [int(rung) for rung in arms[name]["accuracies"]]
            means = [Paired(100 * torch.tensor(row[:n_seeds], dtype=torch.float64)) for row in arms[name]["accuracies"].values()]
            said = label_of(name.replace("one_cycle", "").strip() or "none").replace("  ", " ")
            ax.errorbar(rungs, [m.mean for m in means], yerr=[m.mean - m.low for m in means], marker=markers[i], color=colors[i], ls="-" if i == 4 else styles[i], capsize=2, elinewidth=1,
                        **({"lw": 7, "ms": 11, "alpha": .5, "zorder": 1} if i == 4 else {}), label="none of these" if said == "plain" else said)
        ax.axhline(100 * target, color=INK, ls="--", lw=1)
        ax.set(xscale="log", xlabel="steps (logarithmic)", title=f"{'one cycle' if cycle else 'constant rate'}; memory and channels_last on")
        ax.legend(loc="lower right", fontsize=10)
    low, high = axes[0].get_xlim()                          # of both panels
    ticks = [t for t in (20, 50, 100, 200, 300, 500, 1000, 1500) if low <= t <= high]
    axes[0].set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes[0].minorticks_off()
    axes[0].set_ylabel("right, mean over seeds (%)")
    return fig


def shares_figure(players, ways, bounds):
    "Shares with intervals: ways: label -> (player -> share, player -> (low, high)), four at most; bounds: label -> (player -> ≤ or ≥)."
    fig, ax = plt.subplots(figsize=(10, 4.8))
    for i in range(0, len(players), 2): ax.axhspan(len(players) - i - .5, len(players) - i + .5, color=GHOST, alpha=.15, lw=0)
    for j, (label, (values, intervals)) in enumerate(ways.items()):
        at = [len(players) - i + .2 * ((len(ways) - 1) / 2 - j) for i in range(len(players))]
        middle, ends = [values[name] for name in players], [intervals[name] for name in players]
        errors = [[max(m - low, 0) for m, (low, _) in zip(middle, ends)], [max(high - m, 0) for m, (_, high) in zip(middle, ends)]]
        color = COLORS[["orange", "blue", "green", "green"][j]]
        ax.errorbar(middle, at, xerr=errors, fmt="sDoo"[j], color=color, mfc="white" if j == 3 else color, ls="", ms=7, capsize=3, label=label)
        for i, name in enumerate(players):
            if sign := bounds.get(label, {}).get(name): ax.text(ends[i][1] + .02, at[i], sign, va="center", ha="left", color=color, fontsize=12)
    ax.axvline(0, color=INK, lw=1)
    ax.set_yticks([len(players) - i for i in range(len(players))], [WORDS[name] for name in players])
    ax.set(xlabel="share of the gain (halvings of the time)", ylim=(.5, len(players) + .5))
    ax.grid(axis="y", visible=False)
    fig.legend(loc="outside upper center", ncols=4, fontsize=10)
    return fig


@styled
def speedrun_explorer(found):
    """Tricks to tick: the time to the target, and Shapley's shares of the gain among those that are ticked.

    found: what `data/speedrun.py` measured on one data set. `.state`: each trick on or off; seconds, plain_seconds,
    steps, reached (False: it takes more steps than the longest rung, which is counted), halvings, shares (of the ticked).
    """
    times = Times(found, steps_to)
    plain, best = times.seconds(()), times.seconds(times.players)
    fig = Figure(figsize=(12, 4.2))
    left, right = fig.subplots(1, 2, width_ratios=[1, 1.25])
    left.set(xlim=(0, 1.35 * plain), ylim=(.3, 3.7), xlabel="seconds")
    left.set_yticks([3, 2, 1], ["plain", "yours", "with all five"])
    left.grid(axis="y", visible=False)
    for at, seconds in ((3, plain), (1, best)):
        left.plot([0, seconds], [at, at], lw=22, solid_capstyle="butt", color=GHOST)
        left.text(seconds + .02 * plain, at, f"{seconds:.3g} s", va="center", bbox=LABEL_BOX)
    [bar] = left.plot([], [], lw=22, ls="-", solid_capstyle="butt", color=COLORS["blue"])
    said = left.text(1, 2, "", va="center", bbox=LABEL_BOX)
    most = max(times.halvings(team) for n in range(len(WORDS) + 1) for team in combinations(WORDS, n))
    right.set(xlim=(-.6, 1.3 * most), ylim=(-.6, len(WORDS) + .7), xlabel="times as fast as the plain recipe (logarithmic)", title="whose merit: Shapley's shares")
    right.set_xticks(range(math.ceil(1.3 * most)), [f"{2 ** k}" for k in range(math.ceil(1.3 * most))])
    right.set_yticks(range(len(WORDS), -1, -1), [*WORDS.values(), "yours"])
    left.set_title("time to the target")
    right.grid(axis="y", visible=False)
    right.axvline(0, color=INK, lw=1)
    steps, marks = [], []
    [line] = right.plot([], [], lw=1, ls=":", color=INK)                    # from each bar to the next
    for _ in range(len(WORDS) + 1):
        steps += right.plot([], [], lw=20, ls="-", solid_capstyle="butt", color=COLORS["green"])
        marks.append(right.text(0, 0, "", va="center", bbox=LABEL_BOX))
    live = LiveFigure(fig, [bar, said, line, *steps, *marks],
                      alt="Left: bars of the time to the target, of the plain recipe, of the ticked one and of all five "
                          "tricks. Right: a waterfall, one bar for each ticked trick that begins where the one above ends; its length is the trick's share, and the last bar the whole gain.")

    def run(**on):
        team = frozenset(name for name in WORDS if on[name])
        ordered = [name for name in WORDS if name in team]
        shares, total = shapley(times.halvings, ordered) if ordered else {}, 0.
        seconds, (n_steps, reached) = times.seconds(team), times.steps(team)
        bar.set_data([0, seconds], [2, 2])
        said.set_text(f"{'' if reached else 'more than '}{seconds:.3g} s")
        said.set_position((seconds + .02 * plain, 2))
        corners = []
        for i, name in enumerate(WORDS):
            at, share = len(WORDS) - i, shares.get(name, 0.)
            ends = [total, total + share] if name in team else []
            steps[i].set_data(ends, [at] * len(ends))
            steps[i].set_color(COLORS["green" if share >= 0 else "orange"])
            marks[i].set_text(f"× {2 ** share:.2f}" if name in team else "off")
            marks[i].set_position((max(total, total + share) + .03 * most, at))
            if name in team: corners += [(total, at), (total + share, at)]
            total += share
        corners += [(total, 0)]
        line.set_data(*zip(*corners))
        steps[-1].set_data([0, total], [0, 0])
        steps[-1].set_color(COLORS["blue"])
        marks[-1].set_text(f"{'' if reached else 'less than '}× {2 ** total:.3g}")
        marks[-1].set_position((max(total, 0) + .03 * most, 0))
        return {**on, "seconds": seconds, "plain_seconds": plain, "steps": n_steps, "reached": reached, "halvings": times.halvings(team), "shares": shares}

    def words(s):
        ticked = [WORDS[name] for name in WORDS if s[name]]
        more, less = ("", "") if s["reached"] else ("more than ", "less than ")
        head = f"With {', '.join(ticked)}" if ticked else "With no trick"
        text = f"{head}: {more}{s['steps']:,.0f} steps, {more}{s['seconds']:.3g} s"
        text += f", {less}{2 ** s['halvings']:.3g} times as fast as the plain recipe." if ticked else "."
        if len(s["shares"]) > 1:
            most = max(s["shares"], key=s["shares"].get)
            text += f" The largest share is that of {WORDS[most]}, a factor of {2 ** s['shares'][most]:.2f}."
        return text

    return explore(run, live, words=words,
                   caption="Live figure. Nothing is trained here: all times were measured by the script. Factors beside the bars are Shapley's shares "
                           "among the ticked tricks; multiplied, they are the whole gain. Which trick's share changes most when you tick another one?",
                   **{name: widgets.Checkbox(name != "strides", description=said, indent=False) for name, said in WORDS.items()})
