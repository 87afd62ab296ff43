"""The exercise of appendix A1."""
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from .core import Exercise

# Without colours

def greyscale(fig):
    "A figure without colours, as an array [height, width]: 0 is black, 1 is white."
    file = BytesIO()
    fig.savefig(file, format="png")
    return np.asarray(Image.open(file))[..., :3] / 255 @ (.299, .587, .114)


def bars(rng):
    "Figures of a few coloured bars. Importing matplotlib takes seconds the first time, which are not the answer's: hence here."
    from ..support import plots
    return [{"_colors": [tuple(rng.uniform(.1, .9) for _ in range(3)) for _ in range(4)],
             "_ground": tuple(rng.uniform(.6, .9) for _ in range(3)), "width": rng.randrange(60, 90), "height": rng.randrange(30, 50)} for _ in range(2)]


def drawn(_colors, _ground, width, height):
    "A figure that fills `width` × `height` pixels with bars between two strips of its ground."
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    fig = Figure(figsize=(width / 50, height / 50), dpi=50, facecolor=_ground, layout="none")
    ax = fig.add_axes((0, .2, 1, .6))
    ax.set_axis_off()
    ax.bar(range(4), [1, .8, .6, .9], color=_colors, width=1)
    return FigureCanvasAgg(fig).figure


def saved_as_it_is():
    "Under `with`: a figure is saved in its own size and on its own ground, whatever the reader's style says."
    from matplotlib import rc_context
    return rc_context({"savefig.dpi": "figure", "savefig.facecolor": "auto"})


def run_greyscale(answer, **case):
    fig = drawn(**case)
    before = [*fig.get_size_inches(), fig.dpi, *fig.get_facecolor(), len(fig.axes)]
    with saved_as_it_is(): grey = answer(fig)
    found = grey if grey is None else torch.as_tensor(np.asarray(grey, dtype=float))
    after = [*fig.get_size_inches(), fig.dpi, *fig.get_facecolor(), len(fig.axes)]
    return {"the picture": found, "the figure is as it was": before == after}


def by_pil(**case):
    "PIL's own grey, in numbers from 0 to 255."
    file = BytesIO()
    with saved_as_it_is(): drawn(**case).savefig(file, format="png")
    grey = Image.open(file).convert("RGB").convert("F")
    return {"the picture": torch.tensor(np.asarray(grey, dtype=float)) / 255, "the figure is as it was": True}


def from_picture(f):
    "An answer made of what is done to the picture, `[height, width, 4]`."
    def answer(fig):
        file = BytesIO()
        fig.savefig(file, format="png")
        return f(np.asarray(Image.open(file)) / 255)
    return answer


WEIGHTS = (.299, .587, .114)  # of red, green and blue


GREYSCALE = Exercise(
    "A1", greyscale, '''
def greyscale(fig):
    "A figure without colours, as an array [height, width]: 0 is black, 1 is white."
    return np.ones((1, 1))                       # replace this
''',
    hints=("How do you get at a figure's pixels? `png_bytes(fig)` makes a file of it, as bytes, and plt.imread reads a file.",
           "plt.imread(BytesIO(png_bytes(fig))) is an array [height, width, 4]: red, green, blue and opacity, each from 0 to 1.",
           "[..., :3] leaves the opacity out. The weights are three numbers, and @ is a weighted sum over the last axis."),
    mistakes={
        "That is the plain mean of the three colours. To the eye, green is much lighter than blue: weigh them.":
            from_picture(lambda x: x[..., :3].mean(-1)),
        "The fourth channel is the opacity. It is 1 everywhere and makes all lighter: leave it out.": from_picture(lambda x: x.mean(-1)),
        "The opacity, 1 everywhere, got into your sum. Take the first three channels.":
            from_picture(lambda x: x[..., :3] @ WEIGHTS + x[..., 3]),
        "Your weights are in the order blue, green, red. The channels come as red, green, blue.":
            from_picture(lambda x: x[..., :3] @ WEIGHTS[::-1]),
        "That is one channel, red. A grey needs all three.": from_picture(lambda x: x[..., 0]),
        "That is the sum of the weighted colours divided by three. The weights add up to 1 already: sum, do not average.":
            from_picture(lambda x: (x[..., :3] * WEIGHTS).mean(-1)),
        "Your values go from 0 to 255. White is to be 1.": from_picture(lambda x: 255 * (x[..., :3] @ WEIGHTS)),
        "Black and white have changed places. White is to be 1.": from_picture(lambda x: 1 - x[..., :3] @ WEIGHTS),
        "The picture still has three channels. Add them up, so that [height, width] is left.":
            from_picture(lambda x: x[..., :3] * WEIGHTS),
        "Rows and columns have changed places: the shape is to be [height, width].": from_picture(lambda x: (x[..., :3] @ WEIGHTS).T)},
    cases=bars, run=run_greyscale, truth=by_pil, tolerance=2e-4,
    why="Saved as PNG, a figure is an array [height, width, 4] of bytes; png_bytes and plt.imread do that part in one line. The eye "
        "takes most of its light from green and little from blue, so a print without colours weighs them, as PIL's convert(\"L\") "
        "does. The weights add up to 1, so white stays 1 and black 0. Where two lines have nearly one grey, only their styles and "
        "markers tell them apart.")

EXERCISES = [GREYSCALE]
