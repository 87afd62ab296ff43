"""Figures that answer a slider within a frame: a blitted picture, controls, and an explorer that ties them together (appendix A2)."""
import asyncio
import html
import inspect
import math
import queue
import threading
from contextlib import closing
from io import BytesIO
from time import perf_counter

import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from .arguments import a_function, checked
from .plots import picture_output, plt


class LiveFigure:
    """A figure whose changing artists are blitted into an `ipywidgets.Image`.

    fig: a matplotlib `Figure`; artists: those that move (the rest is drawn once); alt: what the picture shows, for
    readers who cannot see it. Change artists with their own methods (`set_data`, …), then call `update()`; after a
    change of anything else (limits, a title), call `invalidate()` first.
    """
    def __init__(self, fig, artists, alt, quality=90):
        if not isinstance(alt, str) or not alt.strip(): raise ValueError("A live figure needs an alt text: say what it shows.")
        self.fig, self.alt, self.quality = fig, alt, quality
        self.artists = sorted(artists, key=lambda a: a.get_zorder())
        self.canvas = FigureCanvasAgg(fig)
        for artist in self.artists: artist.set_animated(True)
        layout = widgets.Layout(width=f"{100 * fig.get_figwidth():.0f}px", max_width="100%")
        self.image = widgets.Image(format="jpeg", layout=layout)
        self.image.add_class("live-figure")
        self.invalidate()
        self.update()

    def invalidate(self):
        "What does not move has changed: the next update draws everything anew."
        self.background = None

    def update(self):
        "Draw the changing artists over the kept background and send the picture."
        if self.background is None:
            self.canvas.draw()
            self.fig.set_layout_engine("none")  # solved once: it takes as long as drawing
            self.background = self.canvas.copy_from_bbox(self.fig.bbox)
        self.canvas.restore_region(self.background)
        for artist in self.artists: self.fig.draw_artist(artist)
        self.image.value = self.encode("jpeg", quality=self.quality, subsampling=0)

    def picture(self):
        "The picture as it stands, as a PIL image."
        pixels = memoryview(self.canvas.buffer_rgba())
        height, width, _ = pixels.shape
        return Image.frombuffer("RGBA", (width, height), pixels, "raw", "RGBA", 0, 1).convert("RGB")

    def encode(self, format, **options):
        "The picture as it stands, as bytes."
        buffer = BytesIO()
        self.picture().save(buffer, format, **options)
        return buffer.getvalue()

    def close(self):
        "Let go of the figure and of the picture on the page."
        _close(self.image)
        plt.close(self.fig)
        self.fig = self.canvas = self.background = None
        self.artists = []


def _close(widget):
    "Close a widget with its children, layout and style: each of them is kept until it is closed."
    for child in getattr(widget, "children", ()): _close(child)
    for part in (widget, getattr(widget, "style", None), getattr(widget, "layout", None)):
        if part is not None: part.close()


SLICE_S = .04  # the kernel looks at its messages at least this often while an explorer trains


def _in_words(state):
    "The state as text, when nobody wrote a better sentence."
    return " · ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                      for name, value in state.items())


def _on_grid(control, value):
    """What the page's slider makes of a value: the nearest of its steps, in its own arithmetic (noUiSlider's).

    A slider that gets anything else answers with this, when the cell is done or long after.
    """
    if not isinstance(control, (widgets.IntSlider, widgets.FloatSlider, widgets.FloatLogSlider)): return value
    step, span, base = control.step, control.max - control.min, getattr(control, "base", None)
    if not step or not span: return value
    if isinstance(control, widgets.IntSlider): return control.min + round((value - control.min) / step) * step
    at = math.log(value, base) if base else value
    of_all = step * 100 / span
    percent = math.floor((at - control.min) * 100 / span / of_all + .5) * of_all
    at = control.max if percent >= 100 else percent * span / 100 + control.min
    return base ** at if base else at


def _running_loop():
    try: return asyncio.get_running_loop()
    except RuntimeError: return None


class _Said:
    "What code told the page's slider, so that a late answer of the slider is not taken for a reader's move."
    def __init__(self, control): self.control, self.now, self.before = control, control.value, []

    def by_code(self, value):
        if _on_grid(self.control, self.now) != self.now: self.before.append(self.now)  # it will be answered
        self.now = value

    def is_answer(self, value):
        "Is this change from the page the answer to a value that code had set?"
        if self._same_step(value, self.now): self.now = value
        elif any(self._same_step(value, old) for old in self.before):
            self.before = [old for old in self.before if not self._same_step(value, old)]
            self.control.value = self.now
        else:
            self.now, self.before = value, []
            return False
        return True

    def _same_step(self, a, b): return a == b or _on_grid(self.control, a) == _on_grid(self.control, b)


class _Cells:
    """Which explorers each cell has made or shown: when it runs again, those that no cell shows any more are closed.

    Their widgets would keep them otherwise, with all their data.
    """
    def __init__(self): self.running, self.shown, self.replaced = False, {}, set()

    def watch(self, shell):
        "Hear when cells begin and end. Made in a cell, an explorer watches from then on."
        self.running = self.running or self.begin not in shell.events.callbacks["pre_execute"]
        shell.events.register("pre_execute", self.begin)
        shell.events.register("post_execute", self.end)

    def begin(self): self.running = True

    def end(self):
        self.running = False
        for explorer in self.replaced.difference(*(explorers for _, explorers in self.shown.values())): explorer.close()
        self.replaced.clear()

    def add(self, explorer):
        "The cell that runs makes or shows this explorer."
        if (shell := get_ipython()) is None: return
        self.watch(shell)
        if not self.running: return
        message = shell.get_parent() if hasattr(shell, "get_parent") else {}
        cell = message.get("metadata", {}).get("cellId") or shell.user_ns["In"][-1]  # some programs send no id
        run, explorers = self.shown.get(cell, (None, set()))
        if run != shell.execution_count:
            self.replaced |= explorers
            explorers = set()
        self.shown[cell] = shell.execution_count, explorers | {explorer}

    def forget(self, explorer):
        "It is closed. IPython's `Out` and `_5` would keep it, too."
        self.shown = {cell: (run, explorers - {explorer}) for cell, (run, explorers) in self.shown.items()
                      if explorers != {explorer}}
        if (shell := get_ipython()) is None: return
        out = shell.user_ns.get("_oh", {})
        for number in [number for number, value in out.items() if value is explorer]:
            del out[number]
            for names in shell.user_ns, shell.user_ns_hidden: names.pop(f"_{number}", None)


_cells = _Cells()


def _confirm(control):
    """Have every message of a control confirmed: the page's slider says nothing more before.

    ipykernel 7.4 confirms none that comes while a cell awaits.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None or control.comm is None: return

    def handle(message):
        control._handle_msg(message)
        if not _cells.running or threading.current_thread() is not threading.main_thread(): return
        for status, parent in ("idle", message), ("busy", {}):  # the cell is still at work
            kernel.session.send(kernel.iopub_socket, "status", {"execution_state": status}, parent=parent)

    control.comm.on_msg(handle)


# In its output a live figure stands after a picture of it; whichever can be used is shown, in JupyterLab (and nbconvert's
# pages), VS Code and Colab. A widget whose kernel is gone, or was restarted, does nothing.
ASLEEP = """<p style="font-weight: bold">This figure is asleep: run its cell (Shift+Enter), and the sliders move it.</p>
<style>
:is(.jp-OutputArea, .cell_container, #output-area):has(.explorer:not(.jupyter-widgets-disconnected)) .explorer-asleep,
.jp-OutputArea-child:has(.explorer-asleep) + .jp-OutputArea-child:not(:has(.explorer:not(.jupyter-widgets-disconnected)))
{ display: none }
</style>"""
NOTHING = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="  # one transparent pixel


class Explorer:
    """A function under sliders; `explore` makes one.

    `.state`: the numbers behind the picture; `.error`: the exception of the last move, or None;
    `.controls`: the widgets by name; `.figure`: the `LiveFigure`, or None;
    `.widget`: everything, for a layout of your own. Raises what the function raises for the values it begins with.
    `.shows_before_next`: where moves come faster than pictures, each run shows one before the next move ends it.
    A cell that runs again closes the explorers that it made and showed before (`close`).
    """
    closed = shows_before_next = False

    def __init__(self, f, controls, figure=None, words=_in_words, caption=""):
        self.f, self.figure, self.words, self.caption = f, figure, words, caption
        self.state, self.error, self._task, self._held, self._waiting = {}, None, None, False, {}
        self._has_shown = self._move_waits = False
        self._home, self._lock = (threading.current_thread(), _running_loop()), threading.Lock()
        self.controls = {name: self._control(name, spec) for name, spec in controls.items()}
        self._exact = self._start = {name: control.value for name, control in self.controls.items()}
        for control in self.controls.values(): control.value = _on_grid(control, control.value)
        self._said = {control: _Said(control) for control in self.controls.values()}
        self._line, self._alarm = widgets.HTML(), widgets.HTML()
        self._line.add_class("explorer-words")
        self._alarm.add_class("explorer-error")
        self.buttons = {"Reset": self._button("Reset", "all sliders back to where they began", self.reset)}
        if inspect.isgeneratorfunction(f): self.buttons["Stop"] = self._button("Stop", "end the run in flight", self.stop)
        rows = widgets.HBox(list(self.controls.values()), layout=widgets.Layout(flex_flow="row wrap"))
        below = widgets.HBox([*self.buttons.values(), self._line], layout=widgets.Layout(align_items="center"))
        self.widget = widgets.VBox([rows, *self._pictures(), below, self._alarm])
        self.widget.add_class("explorer")
        for control in self.controls.values():
            control.observe(self._moved, "value")
            _confirm(control)
        self._move()
        if error := self.error:
            self.close()
            raise error
        _cells.add(self)

    def _pictures(self):
        "The live picture, and beside it its alt text, which ipywidgets' images do not have."
        if not self.figure: return []
        described = widgets.HTML(f'<img alt="{html.escape(self.figure.alt)}" src="{NOTHING}">',
                                 layout=widgets.Layout(height="0", margin="0", overflow="hidden"))
        return [self.figure.image, described]

    @staticmethod
    def _control(name, spec):
        "A widget as it is; a tuple, list or bool as `ipywidgets.interact` reads it."
        control = spec if isinstance(spec, widgets.Widget) else widgets.interactive.widget_from_abbrev(spec)
        if control is None:
            raise ValueError(f"Control {name!r}: expected a widget, (min, max[, step]), a list or a bool, "
                             f"got {spec!r}.")
        if not control.description: control.description = name.replace("_", " ")
        if hasattr(control.style, "description_width"): control.style.description_width = "initial"
        control.layout.width = control.layout.width or "290px"
        control.add_class(f"control-{name}")
        return control

    def _check(self, name, value):
        "Refuse what the control would clip in silence."
        control = self.controls[name]
        low, high, base = (getattr(control, key, None) for key in ("min", "max", "base"))
        if base: low, high = base ** low, base ** high
        if low is not None and not low - 1e-9 * abs(low) <= value <= high + 1e-9 * abs(high):
            raise ValueError(f"{name} goes from {low:.4g} to {high:.4g}; {value} is outside.")

    def _button(self, label, tooltip, action):
        button = widgets.Button(description=label, tooltip=tooltip, layout=widgets.Layout(width="70px", flex="none"))
        button.on_click(lambda _: self._at_home(action))
        return button

    @property
    def values(self):
        "What the controls stand at; a value that code has set is exact, also between a slider's steps."
        return {name: self._exact.get(name, control.value) for name, control in self.controls.items()}

    def set(self, **values):
        """Move controls as a reader would, all of them at once.

        Returns the state, or None while a run is in flight (await `done()`); raises what the function raised.
        """
        unknown = values.keys() - self.controls.keys()
        if unknown:
            raise ValueError(f"No control {', '.join(sorted(unknown))}; there are {', '.join(self.controls)}.")
        for name, value in values.items(): self._check(name, value)
        before, self._held = {name: self.controls[name].value for name in values}, True
        try:
            for name, value in values.items(): self.controls[name].value = _on_grid(self.controls[name], value)
        except Exception:
            for name in values: self.controls[name].value = before[name]
            raise
        finally: self._held = False
        self._exact = {**self._exact, **values}
        for name in values: self._said[self.controls[name]].by_code(self.controls[name].value)
        self._move()
        if self.error: raise self.error
        return None if self._task else self.state

    def reset(self):
        "All controls back to where they began."
        return self.set(**self._start)

    def stop(self):
        "End the run in flight; what it has shown stays."
        self._cancel()

    def close(self):
        "End the run in flight, leave the page and let go of all data: a closed explorer can do nothing more."
        if self.closed: return
        self._cancel()
        _close(self.widget)
        if self.figure: self.figure.close()
        _cells.forget(self)
        self.__dict__.clear()
        self.closed = True

    def __getattr__(self, name):
        closed = " (it is closed: run the cell again that makes it)" if self.closed else ""
        raise AttributeError(f"This {type(self).__name__} has no {name!r}{closed}.", name=name, obj=self)

    def _cancel(self):
        if self._task: self._task.cancel()
        self._task = None

    async def done(self):
        "Wait for the run in flight; raises what it raised, returns the state."
        while self._task and not self._task.done(): await asyncio.wait([self._task])
        if self.error: raise self.error
        return self.state

    def _at_home(self, action):
        "Call `action` where the explorer was made: newer kernels handle some of the page's messages in another thread."
        thread, loop = self._home
        if loop is None or thread is threading.current_thread(): action()
        else: loop.call_soon_threadsafe(action)

    def _moved(self, change):
        if self.closed: return
        control, here = change["owner"], threading.current_thread() is self._home[0]
        if self._held and here: return
        lock = getattr(control, "_property_lock", None)  # ipywidgets holds it while the page speaks
        by_page = "value" in (lock or {})
        with self._lock:
            self._waiting[control] = change["new"], by_page
            first = len(self._waiting) == 1
        if here or first: self._at_home(self._catch_up)

    def _catch_up(self):
        "React to the moves that came since the last time, all of them at once."
        if self.closed: return
        with self._lock: waiting, self._waiting = self._waiting, {}
        self._held = True
        try: moved = [control for control, move in waiting.items() if self._is_move(control, *move)]
        finally: self._held = False
        self._exact = {name: exact for name, exact in self._exact.items() if self.controls[name] not in moved}
        if moved: self._move()

    def _is_move(self, control, value, by_page):
        if by_page: return not self._said[control].is_answer(value)
        self._said[control].by_code(value)
        return True

    def _move(self):
        if self.shows_before_next and self._task and not self._task.done() and not self._has_shown:
            self._move_waits = True
            return
        self._cancel()
        self._has_shown = self._move_waits = False
        self.error, self._alarm.value = None, ""
        try:
            result = self.f(**self.values)
            if not inspect.isgenerator(result): return self._show(result)
            if loop := _running_loop(): self._task = loop.create_task(self._slices(result))
            else:  # a plain script has no event loop
                for state in result:
                    if state is not None: self._show(state)
        except Exception as error: self._fail(error)

    async def _slices(self, states):
        try:
            with closing(states):
                newest, since = None, perf_counter()
                for state in states:
                    newest = newest if state is None else state
                    if perf_counter() - since < SLICE_S: continue
                    if newest is not None: self._show(newest)
                    if self._move_waits and self._has_shown: break
                    await asyncio.sleep(0)
                    newest, since = None, perf_counter()
                else:
                    if newest is not None: self._show(newest)
        except Exception as error: self._fail(error)
        if self._move_waits:
            self._task = None  # this one: it ends here
            self._move()

    def _show(self, state):
        if not isinstance(state, dict):
            raise TypeError(f"An explorer's function returns its state as a dict, not {type(state).__name__}.")
        words = html.escape(self.words(state))
        if self.figure: self.figure.update()
        self._line.value = f'<div style="font-size: 110%" aria-live="polite">{words}</div>'
        self.state, self._has_shown = state, True

    def _fail(self, error):
        self.error = error
        text = html.escape(f"{type(error).__name__}: {error}")
        self._alarm.value = ('<div role="alert" style="color: #D55E00; font-weight: bold">'
                             f'⚠ {text} (The picture is the one before.)</div>')

    def record(self, grid=None, **options):
        """What the figure shows at every setting of a grid, for a page without a kernel: a `Recording`.

        grid: name of a control -> how many of its values, evenly spaced, or a list of them; controls that it does not name
        stand still. Without a grid, all controls move, in fewer values where they have many. options: those of
        `course_lib.support.recording.record`.
        """
        from .recording import record
        return record(self, grid, **options)

    def _ipython_display_(self):
        "A picture for readers without a kernel, the widget for those with one, and the caption for both."
        alt = self.figure.alt if self.figure else self.caption or "Sliders, and a line that says their state."
        data, metadata = picture_output(self.figure.picture(), alt) if self.figure else ({"text/plain": alt}, {})
        picture = data.get("text/html", "")
        data["text/html"] = f'<div class="explorer-asleep">{picture}{self._line.value}{ASLEEP}</div>'
        display(data, raw=True, metadata=metadata)
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        display({"application/vnd.jupyter.widget-view+json": view, "text/html": "", "text/plain": ""}, raw=True)
        if self.caption: display(Markdown(f"*{self.caption}*"))
        _cells.add(self)


@checked(f=a_function)
def explore(f, figure=None, *, words=_in_words, caption="", **controls):
    """Put `f` under sliders.

    f: called with the controls' values at every move; returns the state, a dict of plain numbers, or,
    as a generator, yields one state after the other while it works (in slices of 40 ms), None for nothing new;
    figure: the `LiveFigure` whose artists `f` moves; words: state -> the line under the picture;
    caption: Markdown; controls: widgets, or `(min, max, step)`, a list or a bool as in `ipywidgets.interact`.
    """
    return Explorer(f, controls, figure, words, caption)


class Stopped(BaseException):
    "Raised by `report` in the work of `in_turns` when nobody waits for it any more."


def in_turns(work):
    """A generator of what `work(report)` reports, from however deep it calls report; raises what the work raises.

    The work has a thread of its own: the caller's `torch.no_grad()`, autocast and default device do not hold in it.
    """
    go_on, reports, unwanted = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()

    def report(state):
        if not unwanted.is_set():
            reports.put((state, None, False))
            go_on.get()
        if unwanted.is_set(): raise Stopped

    def run():
        go_on.get()
        problem = None
        try: work(report)
        except BaseException as error: problem = error
        reports.put((None, problem, True))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            go_on.put(None)
            state, problem, ended = reports.get()
            if problem: raise problem
            if ended: return
            yield state
    finally:
        unwanted.set()
        go_on.put(None)
        thread.join()
