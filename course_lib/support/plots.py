"""One style for every figure: readable when projected, by colour-blind readers, in dark themes (appendix A1 shows how to use it)."""
import base64
import functools
import html
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib import cycler
from PIL import Image

from .arguments import a_tensor, checked
from .checks import positive_int

COLORS = {"blue": "#0072B2", "orange": "#D55E00", "green": "#009E73",
          "pink": "#CC79A7", "amber": "#E69F00", "sky": "#56B4E9"}
INK = "#222222"      # text and axes
GHOST = "#8C8C8C"    # what is only there to compare with
VERDICTS = {"better": (COLORS["blue"], "o"), "worse": (COLORS["orange"], "s"), "cannot tell": (GHOST, "d")}  # in a forest plot
LABEL_BOX = {"fc": "white", "ec": "none", "alpha": .8, "pad": 1}  # keeps a text readable over lines
STYLE = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",  # opaque, for dark themes
    "figure.dpi": 110, "savefig.dpi": 110, "figure.figsize": (8, 4.2), "figure.constrained_layout.use": True,
    "font.size": 12, "axes.titlesize": 13, "axes.labelsize": 12, "legend.fontsize": 11, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#E4E4E4", "axes.axisbelow": True,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "lines.linewidth": 2, "lines.markersize": 6, "image.cmap": "gray_r",
    "axes.prop_cycle": cycler(color=list(COLORS.values()),
                              linestyle=["-", "--", "-.", ":", (0, (8, 1.5)), (0, (6, 1, 1, 1, 1, 1))]),
}


def verdict(gain):
    "What the interval of a `Paired` says; a key of VERDICTS."
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "cannot tell"


def use_style():
    "Give every figure drawn from now on the style of this course."
    plt.rcParams.update(STYLE)


def styled(f):
    "A decorator: `f` draws in the style of this course, whatever the caller's own style is."
    @functools.wraps(f)
    def draw(*args, **kwargs):
        with plt.rc_context(STYLE): return f(*args, **kwargs)
    return draw


def png_bytes(fig):
    "The figure as PNG."
    buffer = BytesIO()
    fig.savefig(buffer, format="png")
    return buffer.getvalue()


def small_png(image):
    "A PIL image as PNG; with a palette of 256 colours, less than half as large, where that changes no pixel visibly."
    image, buffer = image.convert("RGB"), BytesIO()
    palette = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    change = np.abs(np.asarray(palette.convert("RGB"), dtype=int) - np.asarray(image))
    (palette if change.max() < 24 else image).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def picture_output(image, alt, below=""):
    """A PIL image as a notebook's output with an alt text: -> (data by MIME type, their metadata), for `display`.

    JupyterLab and nbconvert drop the alt text of an `image/png`, so they get HTML, with `below` (HTML) under the
    picture; GitHub and others that show no HTML get the PNG. It stands twice in the file, hence `small_png`.
    """
    png = base64.b64encode(small_png(image)).decode()
    picture = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{png}">'
    return ({"text/html": picture + below, "image/png": png, "text/plain": alt}, {"image/png": {"alt": alt}})


def show(fig, alt, caption):
    """Show `fig` with alternative text and a visible caption, then close it.

    alt: what a reader who cannot see the picture needs to know; caption: one or two sentences of Markdown.
    Raises `ValueError` if either is empty. In a script, which has no place for a picture, the two texts are printed.
    """
    if not all(isinstance(text, str) and text.strip() for text in (alt, caption)):
        raise ValueError("A figure needs an alt text and a caption, neither of them empty.")
    if get_ipython() is None: print(f"{alt} {caption}")
    else:
        data, metadata = picture_output(Image.open(BytesIO(png_bytes(fig))), alt)
        display(data, raw=True, metadata=metadata)
        display(Markdown(f"*{caption}*"))
    plt.close(fig)


@checked(images=a_tensor, ncols=positive_int)
def show_images(images, titles=None, ncols=8, *, alt, caption):
    """Show a sheet of images.

    images: tensor `[n, height, width]`, `[n, 1, height, width]` or, in colour, `[n, 3, height, width]`,
    any value range; titles: n short texts.
    """
    if images.ndim == 3: images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError("Expected images of shape [n, height, width] or [n, 1 or 3, height, width], "
                         f"got {list(images.shape)}.")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images.")
    nrows = -(-len(images) // ncols)
    row_height = 1.3 if titles is not None else 1.05
    fig, axes = plt.subplots(nrows, ncols, figsize=(ncols, nrows * row_height), squeeze=False)
    low, high = images.min().item(), images.max().item()
    for i, ax in enumerate(axes.flat):
        ax.axis("off")
        if i < len(images):
            image = images[i].detach().cpu().float().permute(1, 2, 0)
            ax.imshow(image if len(image[0, 0]) == 1 else (image - low) / (high - low), vmin=low, vmax=high)
            if titles is not None: ax.set_title(str(titles[i]), fontsize=11)
    show(fig, alt=alt, caption=caption)
