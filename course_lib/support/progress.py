"""How a fit is reported: a table that grows in a notebook, plain lines elsewhere."""
import html
import os
import sys
import time

from .arguments import at_least_0, checked


def in_notebook():
    "Does somebody watch through a notebook? (A test that runs one does not.)"
    IPython = sys.modules.get("IPython")  # without it nobody does
    shell = IPython and IPython.get_ipython()
    return hasattr(shell, "kernel") and not any(name in os.environ
                                                for name in ("PYTEST_VERSION", "PYTEST_CURRENT_TEST"))


def format_row(row):
    "Results as text: whole numbers as they are, the rest to four significant digits."
    return {name: str(value) if isinstance(value, (int, str)) else f"{value:.4g}" for name, value in row.items()}


def show_table(handle, rows, progress, line):
    """Show rows of texts as a table and, unless line is None, a bar with that line below; -> the display's handle.

    handle: of the display to draw anew, None for a new one; progress: from 0 to 1.
    """
    from IPython.display import display

    table = ""
    if rows:
        cells = lambda tag, texts: "".join(f"<{tag} style='text-align: right'>{html.escape(text)}</{tag}>"
                                           for text in texts)
        names = list(dict.fromkeys(name for row in rows for name in row))  # an epoch may lack a result
        head = cells("th", [name.replace("_", " ") for name in names])
        body = "".join(f"<tr>{cells('td', [row.get(name, '') for name in names])}</tr>" for row in rows)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    if line is not None:
        table += (f"<div><progress value='{progress:.4f}' max='1' style='width: 20em'></progress> "
                  f"{html.escape(line)}</div>")
    plain = "\n".join(" · ".join(f"{name} {text}" for name, text in row.items()) for row in rows) or "no epoch yet"
    bundle = {"text/html": table or "no whole epoch", "text/plain": plain}
    if handle is None: return display(bundle, raw=True, display_id=True)
    handle.update(bundle, raw=True)
    return handle


class ProgressReport:
    """What `Progress` inherits: the bar and the table of a fit in a notebook, lines elsewhere.

    `.live`: is there a notebook to draw in? `.rows`: of the table, as texts; `.handle`: of the display, None before it.
    """
    @checked(refresh_s=at_least_0)
    def __init__(self, refresh_s=.25): self.refresh_s, self.rows, self.handle, self.live = refresh_s, [], None, False

    def start(self, learn):
        self.rows, self.handle, self.live = [], None, in_notebook()
        self.began = self.epoch_began = self.shown = time.perf_counter()
        if self.live: self._draw(learn)

    def start_epoch(self): self.epoch_began = time.perf_counter()

    def refresh(self, learn):
        if self.live and time.perf_counter() - self.shown > self.refresh_s: self._draw(learn)

    def add_row(self, learn, row):
        "row: name -> number, of a whole epoch; the time that it took is added."
        self.rows.append(format_row(row) | {"time": f"{time.perf_counter() - self.epoch_began:.1f} s"})
        if self.live: self._draw(learn)
        else: print(" · ".join(f"{name} {text}" for name, text in self.rows[-1].items()), flush=True)

    def end(self, learn):
        if self.live and self.handle: self._draw(learn, ended=True)
        if isinstance(learn.cancelled, KeyboardInterrupt):
            print(f"Interrupted in {learn.where()}. The learner is usable: fit goes on with these weights.", flush=True)

    def _draw(self, learn, ended=False):
        loss = "" if learn.smooth_loss is None else f" · training loss {float(learn.smooth_loss):.4g}"
        seconds = time.perf_counter() - self.began
        line = None if ended else f"{learn.where()}{loss} · {seconds:.0f} s"
        self.handle = show_table(self.handle, self.rows, learn.pct_train, line)
        self.shown = time.perf_counter()
