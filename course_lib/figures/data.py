"""The live figures of the lesson `data`."""
import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from ..data import affine, affine_maps
from ..support.checks import counted
from ..support.live import LiveFigure, explore
from ..support.plots import INK, styled


@styled
def affine_explorer(images):
    """A few images, turned, stretched, sheared and shifted by four sliders.

    images: floats `[n, 1, height, width]`. `.state`: angle, scale, shear, right (pixels), the matrix `[2][3]` that leads
    from a new pixel to the old one, and the share of the ink that is still on the pictures.
    """
    images = images.cpu()
    fig = Figure(figsize=(9, 3.4))
    grid = fig.add_gridspec(2, len(images), height_ratios=(4, 1.3))
    axes = [fig.add_subplot(grid[0, i]) for i in range(len(images))]
    matrix_ax = fig.add_subplot(grid[1, :])
    matrix_ax.axis("off")
    formula = matrix_ax.text(.5, .5, "", ha="center", va="center", color=INK, fontsize=12,
                             family="monospace", linespacing=1)
    pictures = [ax.imshow(image[0].numpy(), cmap="gray_r") for ax, image in zip(axes, images)]
    for ax in axes: ax.axis("off")
    live = LiveFigure(fig, [*pictures, formula],
                      alt=f"{len(images)} handwritten digits, turned, stretched, sheared and shifted by four sliders, "
                          "and below them the matrix that leads from each new pixel to the old one.")

    def turn(angle, scale, shear, right):
        each = lambda *values: torch.tensor([[float(v)] * len(images) for v in values])
        amounts = each(angle)[0], each(right, 0), each(scale)[0], each(shear, 0)
        out = affine(images, *amounts)
        matrix = [[round(entry, 6) + 0. for entry in row] for row in affine_maps(*amounts)[0].tolist()]  # no −0
        upper, lower = ("".join(f"{entry:7.2f}" for entry in row) for row in matrix)
        formula.set_text(f"⎛ old x ⎞     ⎛{upper} ⎞   ⎛ new x ⎞\n"
                         f"⎜       ⎟  =  ⎜{' ' * 21} ⎟ · ⎜ new y ⎟\n"
                         f"⎝ old y ⎠     ⎝{lower} ⎠   ⎝   1   ⎠")
        for picture, image in zip(pictures, out): picture.set_data(image[0].numpy())
        ink = (out - images.min()).sum() / (images - images.min()).sum()
        return {"angle": angle, "scale": scale, "shear": shear, "right": right, "matrix": matrix,
                "ink": ink.item()}

    def words(s):
        n = abs(round(s["right"]))
        shift = f"{counted(n, 'pixel')} to the {'left' if s['right'] < 0 else 'right'}" if n else "not shifted"
        return (f"Turned by {s['angle']:.0f}°, {s['scale']:.2f} times as large, sheared by {s['shear']:.0f}°, {shift}: "
                f"{s['ink']:.0%} of the ink.")

    return explore(turn, live, words=words,
                   caption="Four sliders, one matrix: rotation, scale, shear and shift of four digits.",
                   angle=widgets.IntSlider(15, min=-180, max=180),
                   scale=widgets.FloatSlider(1, min=.4, max=2, step=.05),
                   shear=widgets.IntSlider(0, min=-45, max=45),
                   right=widgets.IntSlider(0, min=-14, max=14))
