"""Live figures driven as a reader would: each control over its whole range, and the numbers in the words read back."""
import numpy as np

from course_lib.support.live import _on_grid


def positions(control, n):
    "n values from one end of a slider to the other, as its page knows them; all of a list's."
    if not hasattr(control, "min"): return [*getattr(control, "options", (False, True))]
    ends = [control.base ** end if hasattr(control, "base") else end for end in (control.min, control.max)]
    space = np.geomspace if hasattr(control, "base") else np.linspace
    return list(dict.fromkeys(_on_grid(control, value) for value in space(*ends, n).tolist()))


def drive(explorer, n=7):
    "Yields (control's name, value, state) for n positions of each control in turn, the others where they began."
    for name, control in explorer.controls.items():
        for value in positions(control, n):
            explorer.reset()
            state = explorer.set(**{name: value})
            assert explorer.error is None and state is explorer.state
            yield name, value, state
    explorer.reset()


def line(explorer):
    "The words under the picture, as the page shows them."
    return explorer._line.value.partition(">")[2].removesuffix("</div>")
