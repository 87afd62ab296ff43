"""Colours of whole batches, each image by its own amount: as torchvision's functions of these names, image by image.

x: float images `[n, 1 or 3 channels, height, width]` in [0, 1]; an amount: a number or `[n]`. Results are new tensors."""
import math

import torch
import torch.nn.functional as F

from .arguments import refuse
from .augmentation import ONE_OR_THREE, image_op
from .checks import whole_number

FACTOR, SHARE = (0, math.inf), (0, 1)
BRIGHTNESS = .2989, .587, .114  # of red, green and blue, as eyes see them


def luminance(x):
    "How bright each pixel looks, `[n, 1, height, width]`."
    if x.shape[1] == 1: return x
    red, green, blue = x.split(1, 1)
    return (red * BRIGHTNESS[0]).add_(green, alpha=BRIGHTNESS[1]).add_(blue, alpha=BRIGHTNESS[2])


def blend(x, other, factor):
    "factor · x + (1 - factor) · other, cut off at 0 and 1. Beyond 1 it leads away from `other`."
    return (x * factor).add_((1 - factor) * other).clamp_(0, 1)


@image_op(channels=ONE_OR_THREE)
def grayscale(x):
    "Gray images with as many channels as before: torchvision's `rgb_to_grayscale`."
    return luminance(x).expand_as(x).contiguous()


@image_op(channels=ONE_OR_THREE)
def invert(x):
    "The negative: 1 - x."
    return 1 - x


@image_op(channels=ONE_OR_THREE, factor=FACTOR)
def adjust_brightness(x, factor):
    "0 gives black, 1 the image, 2 twice its values, at most 1."
    return (x * factor).clamp_(0, 1)


@image_op(channels=ONE_OR_THREE, factor=FACTOR)
def adjust_contrast(x, factor):
    "0 gives the image's mean gray all over, 1 the image, 2 twice the distances from that gray."
    means = x.mean((2, 3), keepdim=True)
    return blend(x, luminance(means), factor)


@image_op(channels=ONE_OR_THREE, factor=FACTOR)
def adjust_saturation(x, factor):
    "0 gives the gray image, 1 the image, 2 twice the distances from gray."
    return blend(x, luminance(x), factor) if x.shape[1] == 3 else x.clone()


@image_op(channels=ONE_OR_THREE, factor=(-.5, .5))
def adjust_hue(x, factor):
    "Turn every pixel's hue by that share of the colour circle: by a third, red becomes green. Gray stays."
    if x.shape[1] == 1: return x.clone()
    (red, green, blue), high, low = x.split(1, 1), x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = high - low
    # with lowest 0 and highest 1 the hue is 1 + green + blue - red sixths away from red, to the side of green or of blue
    away = (green + blue).sub_(red).sub_(low)
    hue = torch.addcdiv(x.new_tensor(1 / 6), away, chroma.clamp(min=torch.finfo(x.dtype).tiny), value=1 / 6)
    hue.copysign_(green - blue).add_(factor)
    # a channel is highest up to a sixth of the circle from its own colour, lowest from a third on, between on a line
    far = (hue + x.new_tensor([2.5, 2.5 - 1 / 3, 2.5 + 1 / 3]).view(3, 1, 1)).frac_().sub_(.5).abs_().clamp_(1 / 6, 1 / 3)
    return torch.addcmul(high + chroma, far, chroma, value=-6)


@image_op(channels=ONE_OR_THREE, factor=FACTOR)
def adjust_sharpness(x, factor):
    "0 gives the image smoothed over 3 × 3 pixels, 1 the image, 2 twice the distances from smooth; the border stays."
    out = x.clamp(0, 1)
    if min(x.shape[2:]) <= 2: return out
    inside = x[..., 1:-1, 1:-1]
    smooth = F.avg_pool2d(x, 3, stride=1).mul_(9 / 13).add_(inside, alpha=4 / 13)  # the middle counts 5, the others 1
    out[..., 1:-1, 1:-1] = blend(inside, smooth, factor)
    return out


@image_op(channels=ONE_OR_THREE, bits=(0, 8))
def posterize(x, bits):
    "Round down to 2 ** bits levels, k / 2 ** bits; bits: whole."
    if bits.device.type == "cpu" and bits.frac().any(): refuse("bits", "whole, from 0 to 8", bits.flatten())
    levels = bits.exp2()
    return (x * levels).floor_().clamp_(min=0).minimum(levels - 1).div_(levels)


@image_op(channels=ONE_OR_THREE, threshold=SHARE)
def solarize(x, threshold):
    "The negative where x is at least the threshold."
    return (x - (x >= threshold).to(x.dtype)).abs_()  # |x - 1| or |x|: faster than a choice


@image_op(channels=ONE_OR_THREE)
def autocontrast(x):
    "Stretch each channel of each image to reach from 0 to 1; a channel of one value stays."
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = low == high
    return (x - low.masked_fill(flat, 0)).div_((high - low).masked_fill(flat, 1)).clamp_(0, 1)


@image_op(channels=ONE_OR_THREE)
def equalize(x):
    """Spread each channel's values so that all levels are about as frequent, on 256 levels as in PIL: a level becomes
    the share of pixels below it."""
    levels = (x * 255.999).long().clamp_(0, 255).flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, device=x.device, dtype=torch.long)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255  # pixels for each new level
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, table.gather(2, levels), levels).view_as(x).to(x.dtype).div_(255)


def _blur_matrices(size, kernel_size, sigma):
    """Matrices `[n, size, size]` that smooth along one axis of that size, by weights that sum to 1. Beyond the border
    the image goes on as in a mirror."""
    places = torch.arange(kernel_size, device=sigma.device, dtype=sigma.dtype) - (kernel_size - 1) / 2
    weights = (-(places / sigma.view(-1, 1)) ** 2 / 2).softmax(1)
    mirrored = F.pad(torch.eye(size, device=sigma.device, dtype=sigma.dtype)[None], [kernel_size // 2] * 2, mode="reflect")
    return torch.tensordot(weights, mirrored[0].unfold(1, size, 1), [[1], [1]]).mT


@image_op(sigma=(1e-6, math.inf))
def gaussian_blur(x, kernel_size, sigma):
    """Smooth over `kernel_size` × `kernel_size` pixels with a bell curve of width sigma, in pixels; any range of values
    and number of channels. kernel_size: odd, less than twice the image's sides.
    """
    kernel_size, (height, width) = whole_number("kernel_size", kernel_size, at_least=1), x.shape[2:]
    if kernel_size % 2 == 0 or kernel_size // 2 >= min(height, width):
        raise ValueError(f"kernel_size must be odd and below {2 * min(height, width)} for images of {height} × {width} "
                         f"pixels, not {kernel_size}.")
    along_y, along_x = (_blur_matrices(size, kernel_size, sigma)[:, None] for size in (height, width))
    return along_y @ x @ along_x.mT
