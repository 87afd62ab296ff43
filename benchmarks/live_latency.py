"""From a moved slider to the new picture, inside the kernel: our explorers against redrawing with matplotlib.

A slider's value is set as a message from the page would set it. Ours: 200 steps of the optimizer, the picture blitted, encoded
and handed to the widget. The peer does what notebooks usually do: 200 steps of torch.optim.SGD, a fresh figure of the same three
panels, shown in an `ipywidgets.Output`. Neither includes the way to the browser.
"""
import base64
import statistics

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch

from _measure import arguments, ratio, say_machine, table, take_turns
from course_lib.plots import png_bytes, use_style
from course_lib.sgd import canyon_explorer, descend, parabola_explorer

N_STEPS = 200


def usual_figure(curvatures, start, lr):
    "A fresh figure for every value: path, distance by step, factor by rate."
    curvatures, start = torch.tensor(curvatures, dtype=torch.float64), torch.tensor(start, dtype=torch.float64)
    path = descend(start, lambda point: curvatures * point, lambda params: torch.optim.SGD(params, lr=lr, foreach=False), N_STEPS).numpy()
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


def main():
    args = arguments(__doc__)
    repeats = 15 if args.quick else 60
    use_style()
    say_machine("torch", "matplotlib", "ipywidgets", "pillow", threads=torch.get_num_threads())
    print(f"{N_STEPS} steps a move, {repeats} moves each, taking turns")
    parabola, canyon = parabola_explorer(), canyon_explorer()
    for explorer in (parabola, canyon): explorer.set(n_steps=N_STEPS)
    sliders = {"course_lib: parabola": parabola.controls["lr"], "matplotlib, fresh figure: parabola": usual_explorer([1.], [-2.5]),
               "course_lib: canyon": canyon.controls["lr"], "matplotlib, fresh figure: canyon": usual_explorer([1., 20.], [-2.5, 1.])}

    def move(slider):
        before = slider.value
        slider.value = .01 + (before + .0137) % .08  # another value each time, so that each move is one
        assert slider.value != before

    times = take_turns({name: lambda slider=slider: move(slider) for name, slider in sliders.items()}, repeats)
    assert parabola.error is None and canyon.error is None
    table("Slider to picture", {name: [1000 * t for t in values] for name, values in times.items()}, "ms")
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    print()
    for figure in ("parabola", "canyon"):
        ratio(f"{figure}_ms", medians[f"course_lib: {figure}"], "<=20")
        ratio(f"{figure}_over_fresh_figure", medians[f"course_lib: {figure}"] / medians[f"matplotlib, fresh figure: {figure}"], "<=0.33")


if __name__ == "__main__":
    main()
