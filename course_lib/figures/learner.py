"""The live figures of the lesson `learner`."""
import itertools

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import nn

from ..learner import (
    EVENTS, Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelStepException,
    CancelTrainException, CancelValidateException, Learner)
from ..support.checks import counted
from ..support.live import LiveFigure, explore
from ..support.plots import COLORS, GHOST, styled


class Tracer(Callback):
    "Writes down every event with the phase and number of its batch, in `.seen`: for looking at the loop."
    def __init__(self): self.seen = []

    def note(self, learn, event):
        in_batch = event.removeprefix("after_cancel_").removeprefix("before_").removeprefix("after_") in (
            "batch", "pred", "loss", "backward", "step")
        self.seen.append((event, ("train" if learn.training else "valid", learn.iter) if in_batch else None))


def _noter(event): return lambda self, learn: self.note(learn, event)


for event in EVENTS: setattr(Tracer, event, _noter(event))
CANCELS = {cancel.__name__: cancel for cancel in (CancelStepException, CancelBatchException, CancelTrainException,
                                                  CancelValidateException, CancelEpochException, CancelFitException)}


class Raiser(Callback):
    "Raises an exception at the first occurrence of an event: for trying out what then happens."
    def __init__(self, event, exception):
        self.exception, self.raised = exception, None
        setattr(self, event, self.throw)

    def throw(self, learn):
        if self.raised: return
        self.raised = learn.training, learn.iter
        raise self.exception("as you asked")


def trace_tiny_fit(event="before_fit", exception=None, learner=Learner):
    """One epoch of two training batches and one of validation, with an exception raised at an event's first occurrence.

    learner: the class whose loop runs. Returns the events as `Tracer` saw them, the place where it was raised, the
    optimizer's steps, and what came out.
    """
    x, y = torch.tensor([[1.], [2.]]), torch.tensor([[2.], [4.]])

    class Data: train, valid = [(x, y), (x, y)], [(x, y)]

    class Counted(torch.optim.SGD):
        n_steps = 0
        def step(self, closure=None):
            self.n_steps += 1
            return super().step(closure)

    tracer, learn = Tracer(), learner(nn.Linear(1, 1), Data, nn.functional.mse_loss, Counted, lr=.01)
    raiser, escaped, expected = Raiser(event, exception) if exception else None, None, exception or ()
    try: learn.fit(1, cbs=[tracer, *([raiser] if raiser else [])])
    except expected as error: escaped = error
    return tracer.seen, raiser and raiser.raised, learn.opt.n_steps, escaped


def in_time(events):
    "The events in the order in which they can happen: after_cancel_X just before after_X."
    plain = [event for event in events if "cancel" not in event]
    cancels = {event.replace("cancel_", ""): event for event in events if "cancel" in event}
    return [name for event in plain for name in ([cancels[event]] if event in cancels else []) + [event]]


@styled
def cancel_explorer(learner=Learner, cancels=CANCELS):
    """A tiny fit in which you choose what is raised, and in which event: what still runs, and what is skipped.

    learner, cancels: the class whose loop runs, and its exceptions by name; a reader's own, for example.
    `.state`: raised, event, n_events, n_skipped, n_steps (of the optimizer), `caught` (False: fit raised it), and
    `then`: the events that follow on the way out, up to the next before_….
    """
    rows = in_time(EVENTS)
    columns = {None: 0, ("train", 0): 1, ("train", 1): 2, ("valid", 0): 3}
    fig = Figure(figsize=(10, 6.6))
    ax = fig.subplots()
    ax.set(xlim=(-.5, 3.5), ylim=(len(rows) - .5, -.7), ylabel="event, in the order of the loop")
    ax.set_yticks(range(len(rows)), rows, fontsize=9.5)
    for tick, event in zip(ax.get_yticklabels(), rows):
        if "cancel" in event: tick.set(color=COLORS["green"], style="italic")
    ax.set_xticks(range(4), ["around the batches", "training batch 1", "training batch 2", "validation batch"])
    ax.xaxis.tick_top()
    planned, *_ = trace_tiny_fit(learner=learner)
    place = lambda event, where: (columns[where], rows.index(event))
    ax.plot(*zip(*(place(*seen) for seen in planned)), color=GHOST, marker="o", mfc="white", ms=10, ls="",
            label="skipped")
    [ran] = ax.plot([], [], color=COLORS["blue"], marker="o", ms=10, ls="", label="ran")
    [after_cancel] = ax.plot([], [], color=COLORS["green"], marker="D", ms=10, ls="", label="after_cancel_… ran")
    [bang] = ax.plot([], [], color=COLORS["orange"], marker="X", ms=16, mec="white", ls="", zorder=5,
                     label="raised here")
    title = fig.text(.5, .985, "", ha="center", va="top", fontsize=13, weight="bold")
    fig.get_layout_engine().set(rect=(0, 0, 1, .94))
    fig.legend(loc="outside lower center", ncols=4)
    live = LiveFigure(fig, [ran, after_cancel, bang, title],
                      alt="A grid: events from top to bottom in the order of the loop, and columns for what happens "
                          "around the batches, in two training batches and in a validation batch. Filled dots ran, "
                          "hollow ones were skipped, a cross marks where the exception was raised. Its name stands "
                          "above the grid.")

    def trace(exception, event):
        seen, raised, n_steps, escaped = trace_tiny_fit(event, cancels.get(exception), learner)
        points = [(place(*one), "cancel" in one[0]) for one in seen]
        ran.set_data(*zip(*(point for point, cancelled in points if not cancelled)))
        after_cancel.set_data(*zip(*[point for point, cancelled in points if cancelled] or [([], [])]))
        inside = raised and event in EVENTS[3:11]
        where = (("train" if raised[0] else "valid", raised[1]) if inside else None)
        bang.set_data(*([[at] for at in place(event, where)] if raised else ([], [])))
        title.set_text(f"{exception} raised in {event}" if raised else "nothing is raised")
        names = [name for name, _ in seen]
        then = itertools.takewhile(lambda name: name.startswith("after"), names[names.index(event) + 1:])
        return {"raised": exception, "event": event, "n_events": len(seen), "n_steps": n_steps,
                "n_skipped": len(set(planned) - set(seen)), "caught": escaped is None,
                "then": [*then] if raised else []}

    def words(s):
        events, steps = counted(s["n_events"], "event"), counted(s["n_steps"], "step")
        if s["raised"] == "nothing": return f"Nothing is raised: {events}, {steps}."
        then = f" Next: {', '.join(s['then'])}." if s["then"] else ""
        end = "" if s["caught"] else " Nothing that it names is under way there, so fit raises it as an error."
        return (f"{s['raised']} in {s['event']} skips {counted(s['n_skipped'], 'event')}; "
                f"the optimizer makes {steps}.{then}{end}")

    wide = widgets.Layout(width="330px")
    return explore(trace, live, words=words,
                   caption="Live figure. Choose an exception and the event that raises it; dots that turn hollow are "
                           "events that no longer happen.",
                   exception=widgets.Dropdown(options=["nothing", *cancels], layout=wide,
                                             value="nothing"),  # what then happens is to be predicted
                   event=widgets.Dropdown(options=EVENTS[:16], value="after_loss", layout=wide))
