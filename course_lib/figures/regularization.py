"""The live figures of the lesson `regularization`."""
from functools import partial
from time import perf_counter

import ipywidgets as widgets
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from ..data import TensorLoader
from ..momentum import SGD
from ..regularization import digit_net, spoiled
from ..sgd import seeded
from ..support.live import SLICE_S, LiveFigure, explore
from ..support.paired import in_points, paired
from ..support.plots import COLORS, GHOST, INK, VERDICTS, styled, verdict


@styled
def memory_explorer(dls, n_epochs=40, n_labels=1500):
    """Accuracy on the labels it is trained with and on validation images, epoch by epoch, of a `digit_net`; sliders for
    the share of wrong labels and for dropout.

    dls: of `TensorLoader`s. `.state`: noise, dropout, epoch (of n_epochs), train, valid: the accuracies now; best and
    best_epoch: where validation was highest.
    """
    x, y, valid = dls.train.x[:n_labels], dls.train.y[:n_labels], dls.valid
    fig = Figure(figsize=(9, 4.2))
    ax = fig.subplots()
    [heart] = ax.plot([], [], ls=":", lw=2, color=GHOST, label="share of right labels")
    [stop] = ax.plot([], [], ls="-.", lw=1.5, color=INK, label="stop here")
    [on_labels] = ax.plot([], [], ls="--", color=COLORS["orange"], label="on its own labels, wrong ones too")
    [on_valid] = ax.plot([], [], ls="-", lw=2.5, color=COLORS["blue"], label="on validation images")
    ax.set(xlim=(0, n_epochs), ylim=(0, 102), xlabel="epoch", ylabel="accuracy (%)",
           title="When has it learned enough?")
    ax.legend(loc="lower right", frameon=True, framealpha=.9, edgecolor="none")
    live = LiveFigure(fig, [heart, stop, on_labels, on_valid],
                      alt="Accuracy by epoch: on the labels that the network is trained with, some of them wrong, and on "
                          "validation images; a dotted line at the share of right labels, a vertical one where "
                          "validation is highest.")

    def run(noise, dropout):
        labels = spoiled(y, noise)
        train, model = TensorLoader(x, labels, 100, shuffle=True, drop_last=True, seed=1), seeded(0, partial(digit_net, dropout))
        model.to(x.device)
        optimizer, shares, since = SGD(model.parameters(), lr=.02, momentum=.9), [], perf_counter()
        draws = torch.Generator().manual_seed(0).get_state()  # the figure's own: the reader's stay as they are

        @torch.no_grad()
        def right(images, targets): return (model(images).argmax(1) == targets).float().mean().item()

        for epoch in range(1, n_epochs + 1):
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                torch.set_rng_state(draws)
                for xb, yb in train:
                    F.cross_entropy(model(xb), yb).backward()
                    optimizer.step(), optimizer.zero_grad()
                draws = torch.get_rng_state()
            model.eval()
            shares.append((right(x, labels), right(valid.x, valid.y)))
            model.train()
            if epoch < n_epochs and perf_counter() - since < SLICE_S:
                yield None
                continue
            best = max(range(epoch), key=lambda i: shares[i][1])
            epochs = range(1, epoch + 1)
            for line, column in ((on_labels, 0), (on_valid, 1)): line.set_data(epochs, [100 * share[column] for share in shares])
            heart.set_data([0, n_epochs], [100 * (1 - noise)] * 2), stop.set_data([best + 1] * 2, [0, 100])
            yield {"noise": noise, "dropout": dropout, "epoch": epoch, "train": shares[-1][0], "valid": shares[-1][1],
                   "best": shares[best][1], "best_epoch": best + 1}
            since = perf_counter()

    def words(s):
        return (f"{s['noise']:.0%} of the labels wrong, dropout {s['dropout']:.2g}, after epoch {s['epoch']}: {s['train']:.0%} "
                f"on its own labels, {s['valid']:.0%} on validation images (highest: {s['best']:.0%}, epoch {s['best_epoch']}).")

    return explore(run, live, words=words,
                   caption="Live figure. What exceeds the dotted line must be wrong labels: there are no more right ones. "
                           "Where does validation turn, and when does the dashed line pass the dotted one?",
                   noise=widgets.FloatSlider(.4, min=0, max=.8, step=.1, readout_format=".0%"),
                   dropout=widgets.FloatSlider(0., min=0, max=.8, step=.1))


SETS = {"40 % of the labels wrong": "noisy", "100 labels, all right": "few", "many labels, all right": "many"}
IDEAS = ["stopping early", "smaller rate", "L2", "weight decay", "dropout", "label smoothing", "stochastic depth"]


def gains(runs, idea, tuned=True, n_seeds=20):
    """What an idea adds to the same network trained to the end, in points of test accuracy: `Paired` over the seeds, or
    None where it was not measured.

    runs: of one set, as in data/results/regularization.json; tuned: with the strength that was best for this set, else
    with the one that was best for wrong labels.
    """
    name = idea if tuned or f"{idea}, as for noisy" not in runs else f"{idea}, as for noisy"
    name, column = ("plain", "test, stopped") if idea == "stopping early" else (name, "test")
    if name not in runs: return None
    plain = runs["residual" if idea == "stochastic depth" else "plain"]["test"]
    return paired(*(100 * torch.tensor(side[:n_seeds], dtype=torch.float64) for side in (runs[name][column], plain)))


def grid_table(runs, *ideas):
    "Lines of text: for each idea the strengths tried, the mean accuracy of each on validation images in %, a star at the best."
    lines = []
    for idea in ideas:
        run = runs[idea]
        lines.append(f"{idea:18}" + "  ".join(f"{strength:g}: {100 * sum(tried) / len(tried):.1f}" + "*" * (strength == run["strength"])
                                              for strength, tried in zip(run["strengths"], run["tried"])))
    return "\n".join(lines)


def gains_table(stored, name, tuned=True):
    "Lines of text: for each idea measured on the set `name` its strength and its gain, with a star where the interval is off zero."
    lines = []
    for idea in IDEAS:
        if (gain := gains(stored[name], idea, tuned)) is None: continue
        strength = stored[name if tuned else "noisy"].get(idea, {}).get("strength", "")
        mean, interval = in_points(gain)
        lines.append(f"    {idea:16}{strength:5} {mean:>5} {interval}" + " *" * (gain.low > 0 or gain.high < 0))
    return "\n".join(lines)


@styled
def forest_explorer(stored):
    """A forest plot: what each idea adds, with intervals over paired seeds, by set of labels, strength and number of
    seeds. stored: `results("regularization")["mnist"]`.

    `.state`: set, strength, seeds, `mean`, `low`, `high`: dicts by idea, in points of test accuracy; better, worse: how
    many intervals lie above zero, and below.
    """
    fig = Figure(figsize=(10, 4.6))
    ax, rows, artists = fig.subplots(), {}, []
    ax.axvline(0, color=INK, lw=1)
    for place, idea in enumerate(IDEAS):
        at = len(IDEAS) - place
        [line] = ax.plot([], [], lw=4, ls="-", solid_capstyle="butt", color=COLORS["blue"])
        [dot] = ax.plot([], [], marker="o", ms=6, ls="", color=COLORS["blue"])
        text = ax.text(1.01, at, "", va="center", transform=ax.get_yaxis_transform(), fontsize=11)
        rows[idea] = at, line, dot, text
        artists += [line, dot, text]
    ax.set_yticks(range(len(IDEAS), 0, -1), IDEAS)
    ax.set(ylim=(.4, len(IDEAS) + .6), xlabel="points of test accuracy more than without it")
    for label, (color, marker) in VERDICTS.items(): ax.plot([], [], marker=marker, ms=6, ls="", color=color, label=label)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0)
    ax.grid(axis="y", visible=False)
    fig.get_layout_engine().set(rect=(0, 0, .79, 1))
    live = LiveFigure(fig, artists, alt="A row for each idea: a dot for the mean difference in test accuracy from the same "
                                        "network trained to the end without it, a bar for its 95 % interval, and a "
                                        "vertical line at zero. The bars lie on one side of zero, or across it.")
    spans = {}

    def run(labels, strength, seeds):
        name, tuned = SETS[labels], strength != "as for wrong labels"
        if spans.get("shown") != name:
            found = [g for idea in IDEAS for t in (True, False) if (g := gains(stored[name], idea, t))]
            low, high = min(0, *(g.low for g in found)), max(0, *(g.high for g in found))
            margin = .08 * (high - low)
            ax.set_xlim(low - 2 * margin, high + 2 * margin)
            spans["shown"] = name
            live.invalidate()
        state = {"set": labels, "strength": strength, "seeds": seeds, "mean": {}, "low": {}, "high": {}}
        for idea, (at, line, dot, text) in rows.items():
            gain = gains(stored[name], idea, tuned, seeds)
            for artist in (line, dot): artist.set_visible(gain is not None)
            text.set_text("not measured")
            if gain is None: continue
            text.set_text(" ".join(in_points(gain)))
            color, marker = VERDICTS[verdict(gain)]
            line.set_data([gain.low, gain.high], [at, at]), dot.set_data([gain.mean], [at])
            for artist in (line, dot): artist.set_color(color)
            dot.set_marker(marker)
            state["mean"][idea], state["low"][idea], state["high"][idea] = gain.mean, gain.low, gain.high
        return state | {"better": sum(low > 0 for low in state["low"].values()),
                        "worse": sum(high < 0 for high in state["high"].values()), "of": len(state["mean"])}

    def words(s):
        best = max(s["mean"], key=s["mean"].get)
        return (f"{s['set']}; strength {s['strength']}; {s['seeds']} seeds. Of {s['of']} ideas {s['better']} better, {s['worse']} "
                f"worse, of {s['of'] - s['better'] - s['worse']} it cannot be told. First: {best}, {s['mean'][best]:+.1f} points.").replace("-", "−")

    layout = widgets.Layout(width="330px")
    return explore(run, live, words=words,
                   caption="Live figure. Blue dots: better, the whole interval above zero. Orange squares: worse. Gray "
                           "diamonds: these seeds cannot tell. Pull the seeds down to 3: which rows can still be told from zero?",
                   labels=widgets.Dropdown(options=list(SETS), layout=layout),
                   strength=widgets.Dropdown(options=["tuned for these labels", "as for wrong labels"], layout=layout),
                   seeds=widgets.IntSlider(20, 2, 20))
