"""The exercise of appendix A2."""
import math

import numpy as np
import torch

from .core import Exercise

# A circle

def circle(line, radius):
    "Bends the line into a circle around (0, 0), and returns the state: its radius and its area."
    angle = np.linspace(0, 2 * math.pi, 200)
    line.set_data(radius * np.cos(angle), radius * np.sin(angle))
    return {"radius": radius, "area": math.pi * radius ** 2}


def radii(rng):
    "Two moves of a slider. Importing matplotlib takes seconds the first time, which are not the answer's: hence here."
    import matplotlib.figure
    return [{"radius": rng.uniform(.5, 1), "then": rng.uniform(1.1, 2)}]


def run_circle(answer, radius, then):
    "What is to be seen of the line and in the state, after each of two moves."
    from matplotlib.figure import Figure
    ax, found = Figure().add_subplot(), {}
    [line] = ax.plot([], [])
    for move, r in enumerate((radius, then), 1):
        state = answer(line, r)
        x, y = (torch.as_tensor(np.asarray(values, dtype=float)) for values in line.get_data())
        far, gaps, turned = torch.hypot(x, y), torch.hypot(x.diff(), y.diff()), torch.atan2(y, x).diff()
        turns = (torch.remainder(turned + math.pi, 2 * math.pi) - math.pi).sum().abs() / (2 * math.pi)
        found |= {f"state after move {move}": state if state is None else dict(state),
                  f"number of points after move {move}": len(x),
                  f"smallest distance of a point from the middle after move {move}": far.min().item() if len(x) else None,
                  f"largest distance of a point from the middle after move {move}": far.max().item() if len(x) else None,
                  f"points lie close together after move {move}": bool((gaps < .1 * r).all()),
                  f"the line goes round so many times after move {move}:": turns.item(),
                  f"lines on the axes after move {move}": len(ax.lines)}
    return found


def round_and_round(radius, then):
    found = {}
    for move, r in enumerate((radius, then), 1):
        found |= {f"state after move {move}": {"radius": r, "area": math.pi * r ** 2},
                  f"number of points after move {move}": 200,
                  f"smallest distance of a point from the middle after move {move}": r,
                  f"largest distance of a point from the middle after move {move}": r,
                  f"points lie close together after move {move}": True,
                  f"the line goes round so many times after move {move}:": 1., f"lines on the axes after move {move}": 1}
    return found


def drawn(x=np.cos, y=np.sin, end=2 * math.pi, n=200, size=lambda r: r, state=lambda r: {"radius": r, "area": math.pi * r ** 2}):
    "A `circle` that differs in something."
    def answer(line, radius):
        angle = np.linspace(0, end, n)
        line.set_data(size(radius) * x(angle), size(radius) * y(angle))
        return state(radius)
    return answer


def another_line(line, radius):
    angle = np.linspace(0, 2 * math.pi, 200)
    line.axes.plot(radius * np.cos(angle), radius * np.sin(angle))
    return {"radius": radius, "area": math.pi * radius ** 2}


CIRCLE = Exercise(
    "A2", circle, '''
def circle(line, radius):
    "Bends the line into a circle around (0, 0), and returns the state: its radius and its area."
    return {}                                    # replace this
''',
    hints=("Where on a circle does one get to by an angle? And from which angle to which must one go to be round once?",
           "x = radius · cos(angle) and y = radius · sin(angle), for angles from 0 to 2π. One method of a line takes both coordinates.",
           "angle = np.linspace(0, 2 * math.pi, 200), then line.set_data(…, …), then return the dict."),
    mistakes={
        "np.cos and np.sin take radians, not degrees. Once round is 2π.": drawn(end=360),
        "Your angle ends at π: that is half a circle. Once round is 2π.": drawn(end=math.pi),
        "The last point is to lie on the first one: your circle is open by one step.": drawn(end=2 * math.pi * 199 / 200),
        "x is the cosine and y is the sine of the same angle: with one function for both, the points lie on a line.": drawn(y=np.cos),
        "Your circle keeps its size: multiply cosine and sine by the radius.": drawn(size=lambda r: 1.),
        "Your circle is half as large as it should be. You took the radius for the diameter.": drawn(size=lambda r: r / 2),
        "That is the length around the circle, 2πr. Its area is πr².": drawn(state=lambda r: {"radius": r, "area": 2 * math.pi * r}),
        "The radius is to be squared, and not π: the area is πr².": drawn(state=lambda r: {"radius": r, "area": (math.pi * r) ** 2}),
        "The circle is there, and its state is not returned: a dict with radius and area.": drawn(state=lambda r: None),
        "The state has no area in it yet.": drawn(state=lambda r: {"radius": r}),
        "The state is right, and the line has not moved: set its data.":
            lambda line, radius: {"radius": radius, "area": math.pi * radius ** 2},
        "Each move draws one line more, over all those before. Move the line that is given: line.set_data.": another_line},
    cases=radii, run=run_circle, truth=round_and_round, tolerance=1e-4,
    why="set_data moves the artist that is there, so that nothing else has to be drawn again. The state holds plain numbers, which a "
        "cell can compare with a formula.")

EXERCISES = [CIRCLE]
