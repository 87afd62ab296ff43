"""From a moved slider to the new picture, inside the kernel: our explorers against redrawing with matplotlib.

A slider's value is set as a message from the page would set it. Ours: 200 steps of the optimizer, the picture blitted,
encoded and handed to the widget. The peer does what notebooks usually do: 200 steps of torch.optim.SGD, a fresh figure
of the same three panels, shown in an `ipywidgets.Output`. Neither includes the way to the browser. Then every slider of
the figures of chapters 03 to 05. Last, the map of 64 networks of chapter 09, whose `lr` is moved every 80 ms for two
seconds, as by an arrow that is held: pictures while it moves, and the time from a move to the first that answers it.
"""
import asyncio
import base64
import math
import statistics
import time

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch

from _measure import arguments, ratio, say_machine, table, take_turns
from course_lib.data import digits
from course_lib.figures.adam import race_explorer
from course_lib.figures.landscapes import LANDSCAPES
from course_lib.figures.momentum import average_explorer, momentum_explorer
from course_lib.support.plots import png_bytes, use_style
from course_lib.figures.rmsprop import rmsprop_explorer
from course_lib.figures.sgd import canyon_explorer, parabola_explorer
from course_lib.figures.sweeps import SweepExplorer
from course_lib.sgd import descend

N_STEPS = 200


def usual_figure(curvatures, start, lr):
    "A fresh figure for every value: path, distance by step, factor by rate."
    curvatures, start = torch.tensor(curvatures, dtype=torch.float64), torch.tensor(start, dtype=torch.float64)
    path = descend(start, lambda point: curvatures * point,
                   lambda params: torch.optim.SGD(params, lr=lr, foreach=False), N_STEPS).numpy()
    curvatures = curvatures.tolist()
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.7))
    grid = np.linspace(-3, 3, 200)
    if len(curvatures) == 1:
        left.plot(grid, curvatures[0] * grid ** 2 / 2)
        left.plot(path[:, 0], curvatures[0] * path[:, 0] ** 2 / 2, "o-", ms=4, lw=1)
    else:
        x, y = np.meshgrid(grid, grid)
        left.contour(x, y, (curvatures[0] * x ** 2 + curvatures[1] * y ** 2) / 2, levels=7)
        left.plot(path[:, 0], path[:, 1], "o-", ms=4, lw=1)
    left.set(xlabel="w", ylabel="loss", title="The ball", xlim=(-3, 3), ylim=(-2, 8))
    middle.semilogy(np.abs(path).clip(1e-9), "o-", ms=4)
    middle.set(xlabel="step", ylabel="distance from the floor", ylim=(1e-6, 1e3), title="How far from the floor?")
    rates = np.linspace(.01, 2.5, 400)
    for curvature in curvatures: right.plot(rates, np.abs(1 - rates * curvature))
    right.axvline(2 / max(curvatures), ls=":")
    right.set(xlabel="learning rate", ylabel="factor", ylim=(0, 2), title="What one step does")
    return fig


def usual_explorer(curvatures, start):
    "A slider and an Output, as `interact` wires them."
    slider, output = widgets.FloatSlider(.1, min=.001, max=2.5, step=.001), widgets.Output()

    def redraw(change):
        fig = usual_figure(curvatures, start, slider.value)
        picture = base64.b64encode(png_bytes(fig)).decode()
        output.outputs = ({"output_type": "display_data", "data": {"image/png": picture}, "metadata": {}},)
        plt.close(fig)

    slider.observe(redraw, "value")
    return slider


def move(slider):
    "To another step of the slider each time, so that each move is one, in the middle half of its range."
    exponent = math.log(slider.value, slider.base) if hasattr(slider, "base") else slider.value
    steps = round((slider.max - slider.min) / slider.step)
    now, first, half = round((exponent - slider.min) / slider.step), steps // 4, max(steps // 2, 2)
    at = slider.min + slider.step * (first + (now - first + half // 3 + 1) % half)
    before, slider.value = slider.value, slider.base ** at if hasattr(slider, "base") else at
    assert slider.value != before


def chapters_03_to_05():
    "name -> (explorer, goal in ms)"
    explorers = {"average (03)": (average_explorer(), 20), "momentum (03)": (momentum_explorer(), 20),
                 "RMSProp (04)": (rmsprop_explorer(), 20)}
    for landscape in LANDSCAPES:
        explorers[f"race (05), {landscape}"] = race_explorer(), 80
        explorers[f"race (05), {landscape}"][0].set(landscape=landscape)
    return explorers


async def held_arrow(n_moves=25, every=.08):
    "Pictures while the map's rate moves, and seconds from each move to the first picture of its rate or a later one."
    explorer = SweepExplorer(digits())
    await explorer.done()
    answers, moved = [], []  # (when, rate)
    shown = lambda change: answers.append((time.perf_counter(), explorer._settings["lr"]))
    explorer.figure.image.observe(shown, "value")
    start = time.perf_counter()
    for i in range(n_moves):
        await asyncio.sleep(max(0, start + i * every - time.perf_counter()))
        moved.append((time.perf_counter(), lr := 10 ** (-2 + .1 * i)))
        explorer.set(lr=lr)
    n_pictures = len(answers)
    await explorer.done()
    waits = [next(when for when, rate in answers if rate >= lr) - moment for moment, lr in moved]
    return n_pictures, waits


def main():
    args = arguments(__doc__)
    repeats = 15 if args.quick else 60
    use_style()
    say_machine("torch", "matplotlib", "ipywidgets", "pillow", threads=torch.get_num_threads())
    print(f"{N_STEPS} steps a move in chapter 02, {repeats} moves of each slider, taking turns")
    parabola, canyon = parabola_explorer(), canyon_explorer()
    for explorer in (parabola, canyon): explorer.set(n_steps=N_STEPS)
    sliders = {"course_lib: parabola": parabola.controls["lr"],
               "matplotlib, fresh figure: parabola": usual_explorer([1.], [-2.5]),
               "course_lib: canyon": canyon.controls["lr"],
               "matplotlib, fresh figure: canyon": usual_explorer([1., 20.], [-2.5, 1.])}
    times = take_turns({name: lambda slider=slider: move(slider) for name, slider in sliders.items()}, repeats)
    table("Slider to picture, chapter 02", {name: [1000 * t for t in values] for name, values in times.items()}, "ms")
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}

    explorers = chapters_03_to_05()
    sliders = {f"{name}: {key}": control for name, (explorer, _) in explorers.items()
               for key, control in explorer.controls.items() if hasattr(control, "step")}
    later = take_turns({name: lambda slider=slider: move(slider) for name, slider in sliders.items()}, repeats // 2)
    table("Slider to picture, chapters 03 to 05", {name: [1000 * t for t in values] for name, values in later.items()},
          "ms")
    assert all(explorer.error is None
               for explorer in (parabola, canyon, *(explorer for explorer, _ in explorers.values())))
    n_pictures, waits = asyncio.run(held_arrow())
    table(f"Map of chapter 09, moved every 80 ms for 2 s ({n_pictures} pictures): from a move to its first picture",
          {"course_lib: SweepExplorer": [1000 * t for t in waits]}, "ms")
    print()
    ratio("sweep_map_pictures_while_moved_for_2_s", n_pictures, ">=8")
    ratio("sweep_map_first_picture_ms", 1000 * statistics.median(waits), "<=200")
    for figure in ("parabola", "canyon"):
        ratio(f"{figure}_ms", medians[f"course_lib: {figure}"], "<=20")
        ratio(f"{figure}_over_fresh_figure",
              medians[f"course_lib: {figure}"] / medians[f"matplotlib, fresh figure: {figure}"], "<=0.33")
    for name, (_, goal) in explorers.items():  # the slowest of a figure's sliders
        slowest = max(1000 * statistics.median(values) for key, values in later.items() if key.startswith(name))
        figure, _, landscape = name.replace("'", "").lower().partition(" (")
        ratio("_".join([figure, *landscape.partition(", ")[2].split(), "slowest_slider_ms"]), slowest, f"<={goal}")


if __name__ == "__main__":
    main()
