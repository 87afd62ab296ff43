"""Places of pixels in whole batches, each image by its own amount: as torchvision's functions, bilinear, image by image.

x: float images `[n, channels, height, width]`; an amount: a number or `[n]`; fill: the outside. Results are new."""
import torch
import torch.nn.functional as F

from .arguments import checked, finite, refuse
from .augmentation import ANY, image_op, per_image
from .checks import whole_number
from .data import pixel_positions


def sample(x, grid, fill):
    "The images at the places `[n, 2, height, width]` (right, down), in units in which the image reaches from -1 to 1."
    grid = grid.permute(0, 2, 3, 1)
    if not fill: return F.grid_sample(x, grid, align_corners=False)
    return F.grid_sample(x - fill, grid, align_corners=False).add_(fill)


def warp(x, maps, fill=0.):
    "The images seen through maps `[n, 2, 3]` from new positions to old ones, in pixels from the centre (right, down)."
    n, _, height, width = x.shape
    positions, unit = pixel_positions(height, width, x.device, x.dtype)
    return sample(x, ((maps * unit).view(2 * n, 3) @ positions).view(n, 2, height, width), fill)


def _maps(*entries):
    "Maps `[n, 2, 3]` from six entries, row by row, `[n, 1, 1, 1]` each."
    return torch.stack([entry.flatten() for entry in entries], 1).view(-1, 2, 3)


@checked(fill=finite)
@image_op(degrees=ANY)
def rotate(x, degrees, fill=0.):
    "Turn about the middle, against the clock."
    turn = torch.deg2rad(degrees)
    cos, sin, zero = turn.cos(), turn.sin(), torch.zeros_like(turn)
    return warp(x, _maps(cos, -sin, zero, sin, cos, zero), fill)


@checked(fill=finite)
@image_op(right=ANY, down=ANY)
def translate(x, right=0., down=0., fill=0.):
    "Shift by so many pixels: torchvision's `affine` with `translate=[right, down]`."
    one, zero = torch.ones_like(right), torch.zeros_like(right)
    return warp(x, _maps(one, zero, -right, zero, one, -down), fill)


@checked(fill=finite)
@image_op(degrees_x=(-89.9, 89.9), degrees_y=(-89.9, 89.9))
def shear(x, degrees_x=0., degrees_y=0., fill=0., center=None):
    """Slant, along x and along y: torchvision's `affine` with `shear=[degrees_x, degrees_y]`.

    center: what stays in its place, pixels from the top left corner (x, y), by default the middle.
    """
    along_x, along_y, one = torch.deg2rad(degrees_x).tan(), torch.deg2rad(degrees_y).tan(), torch.ones_like(degrees_x)
    right, down = (0., 0.) if center is None else (center[0] - x.shape[3] / 2, center[1] - x.shape[2] / 2)
    product = along_x * along_y
    shift_x, shift_y = -product * right - along_x * down, -along_y * right
    return warp(x, _maps(1 + product, along_x, shift_x, along_y, one, shift_y), fill)


def _points(name, value, x):
    "Four points of each image, `[n, 4, 2]`, in double precision where the device has that."
    value = torch.as_tensor(value)
    if value.shape not in ((4, 2), (len(x), 4, 2)) or value.is_complex():
        raise ValueError(f"{name}: expected four points (x, y), [4, 2] or [{len(x)}, 4, 2], got {list(value.shape)}.")
    if value.device.type == "cpu" and not value.isfinite().all(): raise ValueError(f"{name}: points must be finite.")
    return value.to(x.device, x.dtype if x.device.type == "mps" else torch.double).expand(len(x), 4, 2)


def homography(old, new):
    "Maps `[n, 3, 3]` that take four new points, `[n, 4, 2]`, to the old ones: eight equations for eight entries."
    (x, y), (u, v) = new.unbind(2), old.unbind(2)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows = [torch.stack(row, 2) for row in ((x, y, one, zero, zero, zero, -u * x, -u * y),
                                            (zero, zero, zero, x, y, one, -v * x, -v * y))]
    entries, singular = torch.linalg.solve_ex(torch.cat(rows, 1), torch.cat([u, v], 1))
    if singular.any(): raise ValueError("endpoints: three of the four points of an image lie on one line.")
    return torch.cat([entries, one[:, :1]], 1).view(-1, 3, 3)


@checked(fill=finite)
@image_op()
def perspective(x, startpoints, endpoints, fill=0.):
    """See the image from another side: what was at the four startpoints comes to the four endpoints.

    Points are (x, y) in pixels from the top left corner, `[4, 2]` or, one set an image, `[n, 4, 2]`.
    """
    n, _, height, width = x.shape
    maps = homography(_points("startpoints", startpoints, x), _points("endpoints", endpoints, x)).to(x.dtype)
    positions, unit = pixel_positions(height, width, x.device, x.dtype)
    positions = positions + positions.new_tensor([[width / 2], [height / 2], [0]])  # from the corner
    places = (maps.view(3 * n, 3) @ positions).view(n, 3, -1)
    grid = (places[:, :2] / places[:, 2:]).mul_(unit).sub_(1)
    return sample(x, grid.view(n, 2, height, width), fill)


@image_op()
def hflip(x, which=None):
    "Mirror left to right, all images or those where `which`, bools `[n]`, is true."
    if which is None: return x.flip(3)
    if not isinstance(which, torch.Tensor) or which.dtype is not torch.bool or which.shape != (len(x),):
        raise ValueError(f"which: expected bools [{len(x)}], one for each image, got {which!r:.80}.")
    return torch.where(which.view(-1, 1, 1, 1), x.flip(3), x)


@image_op()
def crop(x, top, left, height, width):
    "The box of `height` × `width` pixels whose first pixel is in row `top` and column `left` of each image."
    height, width = whole_number("height", height, at_least=1), whole_number("width", width, at_least=1)
    rows, columns = x.shape[2] - height, x.shape[3] - width
    if min(rows, columns) < 0:
        raise ValueError(f"A box of {height} × {width} pixels does not fit in images of {x.shape[2]} × {x.shape[3]}.")
    top, left = _pixels("top", top, x, 0, rows).flatten(), _pixels("left", left, x, 0, columns).flatten()
    windows = x.unfold(2, height, 1).unfold(3, width, 1)  # [n, channels, top, left, height, width], without a copy
    return windows[torch.arange(len(x), device=x.device), :, top, left]


def _pixels(name, value, x, *limits):
    if isinstance(value, float) and value % 1: refuse(name, "a whole number", value)
    return per_image(name, value, x, *limits, dtype=torch.long)


def box(x, top, left, height, width):
    "Which pixels lie in a box: bools `[n, 1, height, width]`; its corner and sides: `[n, 1, 1, 1]`, in pixels."
    rows, columns = (torch.arange(m, device=x.device) for m in x.shape[2:])
    rows = rows[:, None]
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)


@checked(value=finite)
@image_op()
def erase(x, top, left, height, width, value=0.):
    "Write `value` into a box of each image; what of the box lies outside of the image does nothing."
    top, left = _pixels("top", top, x), _pixels("left", left, x)
    height, width = _pixels("height", height, x, 0), _pixels("width", width, x, 0)
    return x.masked_fill(box(x, top, left, height, width), value)
