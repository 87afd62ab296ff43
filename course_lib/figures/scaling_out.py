"""The live figures of chapter 17: the timeline of a step over many ranks, simulated, and what each rank keeps in memory."""
from functools import partial

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ..scaling_out import bucket_messages, ring_seconds, zero_bytes
from ..support.checks import counted
from ..support.live import LiveFigure, explore
from ..support.plots import COLORS, GHOST, LABEL_BOX, styled

RANKS = [2 ** i for i in range(1, 11)]


def spans(pairs, y):
    "Lines from begin to end at this height, with gaps between them, for `set_data`."
    pairs = np.array(pairs, dtype=float).reshape(-1, 2)
    x = np.concatenate([pairs, np.full((len(pairs), 1), np.nan)], 1).ravel()
    return x, np.full(len(x), y)


def one_step(ready, sizes, n, bucket_bytes, latency, bandwidth):
    "Messages of a step, in seconds, and when it is over."
    messages = bucket_messages(ready, sizes, bucket_bytes, partial(ring_seconds, n=n, latency=latency, bandwidth=bandwidth))
    return messages, max(ready[-1], messages[-1][1])


@styled
def ring_figure(rounds):
    """What three ranks have after each round of a ring. rounds: for each, who has sent which part, a list of (rank, part), and
    the numbers, `[rank][part]`, whose digits 1 count the ranks that are in them."""
    fig = Figure(figsize=(11, 3.6))
    axes = fig.subplots(1, len(rounds), sharey=True)
    fills = {1: "white", 2: "#f5d9a0", 3: "#a5dfc8"}
    for i, (ax, (sending, parts)) in enumerate(zip(axes, rounds)):
        for rank, mine in enumerate(parts):
            for part, number in enumerate(mine):
                n_in = str(number).count("1")
                ax.add_patch(Rectangle((part - .42, rank - .28), .84, .56, ec="black", lw=.8, fc=fills[n_in]))
                ax.text(part, rank, number, ha="center", va="center", fontsize=12, weight="bold" if n_in == 3 else None)
        for rank, part in sending:
            for begin, end in ([(rank + .28, rank + .72)] if rank < 2 else [(rank + .28, rank + .62), (-.72, -.28)]):
                style = "-" if end > 2.5 else "-|>"
                ax.annotate("", (part, end), (part, begin), arrowprops={
                    "arrowstyle": style, "lw": 2.5, "color": COLORS["blue"], "shrinkA": 0, "shrinkB": 0})
        ax.set(xlim=(-.6, 2.6), ylim=(2.75, -.8), xlabel="part", title=f"after round {i}" if i else "at the start")
        ax.set_xticks(range(3), "123")
        ax.set_yticks(range(3), ["rank A", "rank B", "rank C"])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
    n = len(rounds[0][1])
    if len(rounds) == 2 * n - 1:                                  # a bracket over the rounds that sum, and one over the others
        fig.get_layout_engine().set(rect=(0, 0, 1, .89))
        fig.draw_without_rendering()                               # so that the axes know their places
        for text, first, last in (("sum on the way", 1, n - 1), ("hand round what is finished", n, 2 * n - 2)):
            left, right = axes[first].get_position().x0, axes[last].get_position().x1
            fig.add_artist(Line2D([left, left, right, right], [.9, .92, .92, .9], color="black", lw=1.2, marker=""))
            fig.text((left + right) / 2, .935, text, ha="center", va="bottom", fontsize=12)
    return fig


@styled
def ways_figure(rows):
    """Test accuracy of each way, a row each and a panel for each number of workers. rows: (label, {workers: (mean, low, high)});
    those that send nothing or lose much are grey; the first is dotted, the last dashed."""
    workers = [*rows[0][1]]
    fig = Figure(figsize=(11, 4.9))
    axes = np.atleast_1d(fig.subplots(1, len(workers), sharey=True, sharex=True))
    kinds = {"all-reduce": ("blue", "o"), "float16": ("blue", "o"), "local SGD": ("green", "^"), "DiLoCo": ("orange", "D"),
             "PowerSGD": ("pink", "P"), "accumulation": ("amber", "s")}
    for ax, n in zip(axes, workers):
        for i, (label, found) in enumerate(rows):
            color, marker = next((look for kind, look in kinds.items() if label.startswith(kind)), (None, "o"))
            color, (mean, low, high) = COLORS[color] if color else GHOST, found[n]
            ax.errorbar(mean, i, xerr=[[mean - low], [high - mean]], fmt=marker, ms=8, capsize=3, ls="none", color=color,
                        mfc="white" if "no feedback" in label or "40 steps" in label else color)
        ax.axvline(rows[-1][1][n][0], color=GHOST, ls="--", lw=1.2, zorder=0)
        ax.axvline(rows[0][1][n][0], color=COLORS["blue"], ls=":", lw=1.4, zorder=0)
        ax.set(ylim=(len(rows) - .5, -.5), xlabel="test accuracy (%)", title=f"{n} workers")
        ax.set_yticks(range(len(rows)), [label for label, _ in rows])
        ax.tick_params(axis="y", length=0)
    look = {"color": "black", "marker": "o", "ms": 8, "ls": "none"}
    handles = [Line2D([], [], label="every 10 steps, or with feedback", **look),
               Line2D([], [], label="every 40 steps, or without feedback", mfc="white", **look),
               Line2D([], [], color=GHOST, ls="--", marker="", label="alone"),
               Line2D([], [], color=COLORS["blue"], ls=":", marker="", label="all-reduce")]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=10)
    fig.get_layout_engine().set(rect=(.012, 0, .98, 1))           # so that the labels do not touch the edge
    return fig


@styled
def timeline_explorer(forward, ready, sizes, images=128):
    """One step of data parallel training on 2 to 1,024 ranks, simulated: forward and backward as measured on one process,
    messages as a ring takes them at the latency and bandwidth of the sliders.

    forward: seconds of the forward pass; ready: when each gradient is finished, in seconds from the step's start; sizes: its
    bytes; images: of each rank's batch. `.state`: ranks, bucket_mb, latency_us, gb_per_s, n_messages, compute_ms, step_ms,
    waiting_ms (how long the ranks wait after backward), efficiency (compute / step), images_per_s of all ranks.
    """
    compute, fig = ready[-1], Figure(figsize=(10.5, 3.6))
    top, right = fig.subplots(1, 2, width_ratios=[1.7, 1])
    bar = lambda color: top.plot([], [], lw=44, ls="-", marker="", solid_capstyle="butt", color=COLORS.get(color, GHOST))[0]
    bars = {"forward": bar("blue"), "backward": bar("green"), "waiting": bar("ghost"), "messages": bar("orange"), "more": bar("amber")}
    bars["waiting"].set_alpha(.35)
    full, = top.plot([], [], ls="none", marker="v", ms=8, color="black")
    end, = top.plot([], [], ls="--", lw=1.5, color=GHOST, marker="")
    note = top.text(.5, 1.01, "", transform=top.transAxes, ha="center", va="bottom", fontsize=11)
    names = [top.text(0, 1.38, " forward (blue), backward (green): measured; grey: waiting", fontsize=11),
             top.text(0, .56, " messages, simulated (orange, amber); ▼ a bucket is full", fontsize=11)]
    for text in (*names, note): text.set_in_layout(False)         # or it would need room of its own before its axis is known
    top.set_title(" ", fontsize=11)                                # room for the note
    top.set(ylim=(-.45, 1.75), xlabel="time since the step began (ms)", yticks=[])
    top.grid(axis="y", visible=False)
    overlapped, = right.plot([], [], color=COLORS["orange"], marker="o", ms=4, label="these buckets")
    at_the_end, = right.plot([], [], color=GHOST, ls="--", marker="s", ms=4, label="one message at the end")
    now, = right.plot([], [], color=COLORS["blue"], marker="D", ms=10, ls="none", label="now")
    right.set(xscale="log", xlim=(1.7, 1300), ylim=(0, 105), xlabel="ranks", ylabel="efficiency (%)")
    right.set_xticks([2, 8, 32, 128, 512, 1024], ["2", "8", "32", "128", "512", "1,024"], fontsize=9)
    right.minorticks_off()
    right.legend(loc="lower left", fontsize=9, markerscale=.7)
    live = LiveFigure(fig, [*bars.values(), full, end, note, *names, overlapped, at_the_end, now],
                      alt="Left: bars of forward, backward and waiting, below them the messages of a step over time, and triangles where "
                          "a bucket is full; a dashed line where the step ends. Right: efficiency by the number of ranks, with these buckets and with one message at the end.")

    def setting(ranks, bucket_mb, latency_us, gb_per_s):
        size = "one message" if bucket_mb == 1000 else f"buckets of {bucket_mb:g} MB"
        return f"{ranks:,} ranks, {size}, {latency_us:g} µs, {gb_per_s:g} GB/s"

    def run(ranks, bucket_mb, latency_us, gb_per_s):
        speed = {"latency": latency_us * 1e-6, "bandwidth": gb_per_s * 1e9}
        messages, over = one_step(ready, sizes, ranks, bucket_mb * 1e6, **speed)
        live.invalidate()
        bars["forward"].set_data(*spans([(0, 1e3 * forward)], 1))
        bars["backward"].set_data(*spans([(1e3 * forward, 1e3 * compute)], 1))
        bars["waiting"].set_data(*spans([(1e3 * compute, 1e3 * over)], 1))
        begins = [begin for begin, _, _ in bucket_messages(ready, sizes, bucket_mb * 1e6, lambda n_bytes: 0.)]
        full.set_data([1e3 * begin for begin in begins], [.42] * len(begins))
        bars["messages"].set_data(*spans([(1e3 * a, 1e3 * b) for a, b, _ in messages[::2]], 0))
        bars["more"].set_data(*spans([(1e3 * a, 1e3 * b) for a, b, _ in messages[1::2]], 0))
        end.set_data([1e3 * over] * 2, [-.45, 1.75])
        top.set_xlim(-10 * over, 1e3 * over * 1.04)
        for line, size in ((overlapped, bucket_mb * 1e6), (at_the_end, float("inf"))):
            line.set_data(RANKS, [100 * compute / one_step(ready, sizes, n, size, **speed)[1] for n in RANKS])
        efficiency = compute / over
        now.set_data([ranks], [100 * efficiency])
        note.set_text(f"{setting(ranks, bucket_mb, latency_us, gb_per_s)}: step {1e3 * over:,.0f} ms")
        return {"ranks": ranks, "bucket_mb": bucket_mb, "latency_us": latency_us, "gb_per_s": gb_per_s, "n_messages": len(messages),
                "compute_ms": 1e3 * compute, "step_ms": 1e3 * over, "waiting_ms": 1e3 * (over - compute), "efficiency": efficiency,
                "images_per_s": ranks * images / over}

    def words(s):
        return (f"{setting(s['ranks'], s['bucket_mb'], s['latency_us'], s['gb_per_s'])}: {counted(s['n_messages'], 'message')} "
                f"a step of {s['step_ms']:,.0f} ms, of which the ranks wait {s['waiting_ms']:,.0f} ms. "
                f"Efficiency {s['efficiency']:.0%}, {s['images_per_s']:,.0f} images a second in all.")

    megabytes = [.1, .5, 1, 2, 4, 8, 25, 1000]
    return explore(run, live, words=words,
                   caption="Live figure, a simulation: forward and backward were measured here, messages are simulated. It starts with 32 ranks, "
                           "buckets of 0.1 MB, a network of 10 gigabits per second (1.25 GB/s) and a latency of 50 µs.",
                   ranks=widgets.SelectionSlider(options=[(f"{n:,}", n) for n in RANKS], value=32),
                   bucket_mb=widgets.SelectionSlider(options=[(f"{m:g}", m) for m in megabytes[:-1]] + [("all", 1000)], value=.1),
                   latency_us=widgets.SelectionSlider(options=[1, 5, 20, 50, 200, 1000], value=50),
                   gb_per_s=widgets.SelectionSlider(options=[.125, .5, 1.25, 5, 25, 50, 200], value=1.25))


@styled
def memory_explorer():
    """Bars of what each rank keeps for a model that Adam trains in mixed precision, in ZeRO's stages 0 to 3.

    `.state`: billions (of parameters), ranks, gigabytes (of the four stages, a list), fits (the first stage that fits into 80
    GB, or None).
    """
    fig = Figure(figsize=(9.5, 3.9))
    ax = fig.subplots()
    colors = {"weights": "green", "gradients": "orange", "optimizer": "blue"}
    bars = {name: ax.plot([], [], lw=28, ls="-", marker="", solid_capstyle="butt", color=COLORS[color], label=label)[0]
            for (name, color), label in zip(colors.items(), ("weights", "gradients", "master weights and Adam's averages"))}
    texts = [ax.text(0, stage, "", va="center", fontsize=11, bbox=LABEL_BOX) for stage in range(4)]
    ax.plot([80, 80], [-.45, 3.6], color="black", ls="--", lw=1.5, marker="", zorder=4)
    limit = ax.text(80, 3.35, " a GPU of 80 GB", va="center", fontsize=11)
    ax.set_yticks(range(4), ["0: all on each rank", "1: optimizer split", "2: gradients, too", "3: weights, too"])
    ax.set(ylim=(3.6, -1.1), xlabel="on each rank (GB)", ylabel="stage")
    ax.grid(axis="y", visible=False)
    handles = [ax.plot([], [], lw=8, ls="-", marker="", color=bars[name].get_color(), label=bars[name].get_label())[0] for name in bars]
    ax.legend(handles=handles, loc="upper right", fontsize=9, ncols=3)
    live = LiveFigure(fig, [*bars.values(), limit, *texts], alt="Four bars, the gigabytes on each rank in ZeRO's stages 0 to 3, made of weights, "
                                                         "gradients, and the optimizer's; a dashed line at 80 GB.")

    def run(billions, ranks):
        pieces = [zero_bytes(billions, ranks, stage) for stage in range(4)]
        totals = [sum(piece.values()) for piece in pieces]
        live.invalidate()
        ax.set_xlim(0, max(100, totals[0] * 1.18))
        begin = [0.] * 4
        for name, line in bars.items():
            ends = [a + piece[name] for a, piece in zip(begin, pieces)]
            parts = [spans([(a, b)], stage) for stage, (a, b) in enumerate(zip(begin, ends))]
            line.set_data(*(np.concatenate(side) for side in zip(*parts)))
            begin = ends
        for text, total in zip(texts, totals):
            text.set_x(total + ax.get_xlim()[1] * .012)
            text.set_text(f"{total:,.1f} GB" if total >= .1 else f"{total:.2g} GB")
        fits = next((stage for stage, total in enumerate(totals) if total <= 80), None)
        return {"billions": billions, "ranks": ranks, "gigabytes": totals, "fits": fits}

    def words(s):
        which = "No stage fits" if s["fits"] is None else f"Stage {s['fits']} is the first that fits"
        return (f"{s['billions']:g} billion parameters on {counted(s['ranks'], 'rank')}: {s['gigabytes'][0]:,.1f} GB each without "
                f"splitting, {s['gigabytes'][3]:,.3g} GB in stage 3. {which} into 80 GB.")

    return explore(run, live, words=words,
                   caption="Live figure. Bytes of weights, gradients, masters and averages; what waits for backward comes on top. It starts "
                           "with 7 billion parameters on 8 ranks.",
                   billions=widgets.SelectionSlider(options=[.1, .5, 1, 3, 7, 13, 30, 70, 180, 400], value=7),
                   ranks=widgets.SelectionSlider(options=[(f"{n:,}", n) for n in [1, *RANKS]], value=8))
