"""Draft of chapter 13's transforms of images."""
import torch
import torch.nn.functional as F

from .arguments import a_number, a_share, above_0, at_least_0, checked, finite, images
from .augmentation import (
    BatchTransform, beta_draw, both_sides, happens, odd, soft_targets, uniform, whole_from_0)
from .checks import positive_int
from .image_color import (
    adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, adjust_sharpness,
    autocontrast, equalize, gaussian_blur, grayscale, posterize, solarize)
from .image_geometry import box, crop, erase, hflip, perspective, rotate, shear, translate


class Flip(BatchTransform):
    "Mirror each image left to right with probability p."
    @checked(p=a_share)
    def __init__(self, p=.5): self.p = p

    def __call__(self, xb, yb): return hflip(xb, happens(xb, self.p)), yb


class RandomCrop(BatchTransform):
    "Put `padding` pixels around each image and cut the old size out of that, anywhere."
    @checked(padding=whole_from_0, fill=finite)
    def __init__(self, padding, fill=0.): self.padding, self.fill = padding, fill

    def __call__(self, xb, yb):
        wider = F.pad(images("xb", xb), [self.padding] * 4, value=self.fill)
        top, left = torch.randint(2 * self.padding + 1, (2, len(xb)), device=xb.device)
        return crop(wider, top, left, *xb.shape[2:]), yb


class Rotate(BatchTransform):
    "Turn each image by its own angle, from -degrees to degrees; or give (low, high)."
    @checked(fill=finite)
    def __init__(self, degrees, fill=0.):
        self.degrees, self.fill = both_sides("degrees", degrees), fill

    def __call__(self, xb, yb): return rotate(xb, uniform(xb, *self.degrees), self.fill), yb


ADJUST = {    # name -> function, and the amount that changes nothing
    "brightness": (adjust_brightness, 1), "contrast": (adjust_contrast, 1),
    "saturation": (adjust_saturation, 1), "hue": (adjust_hue, 0)}


class ColorJitter(BatchTransform):
    """Each image with its own brightness, contrast, saturation and hue; one order a batch.

    A strength s means factors from 1 - s to 1 + s, for hue shifts from -s to s (at most .5);
    or give (low, high).
    """
    def __init__(self, brightness=0, contrast=0, saturation=0, hue=0):
        self.brightness = both_sides("brightness", brightness, middle=1, low=0)
        self.contrast = both_sides("contrast", contrast, middle=1, low=0)
        self.saturation = both_sides("saturation", saturation, middle=1, low=0)
        self.hue = both_sides("hue", hue, low=-.5, high=.5)

    def __call__(self, xb, yb):
        steps = [(*step, getattr(self, name)) for name, step in ADJUST.items()]
        for i in torch.randperm(4).tolist():    # on the CPU: Python has to know what comes next
            adjust, neutral, limits = steps[i]
            if limits != (neutral, neutral): xb = adjust(xb, uniform(xb, *limits))
        return xb, yb


class Perspective(BatchTransform):
    "Move each corner of each image inwards by up to `scale` of half its sides (scale below 1)."
    @checked(scale=a_share, fill=finite)
    def __init__(self, scale=.2, fill=0.): self.scale, self.fill = scale, fill

    def __call__(self, xb, yb):
        height, width = images("xb", xb).shape[2:]
        corners = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1.]], device=xb.device, dtype=xb.dtype)
        size = corners.new_tensor([width, height])
        draws = torch.rand(len(xb), 4, 2, device=xb.device, dtype=xb.dtype) * self.scale / 2
        moved = torch.lerp(corners, 1 - corners, draws)    # draws of the way to the other side
        return perspective(xb, corners * size, moved * size, self.fill), yb


class Grayscale(BatchTransform):
    "Take the colours out of each image with probability p."
    @checked(p=a_share)
    def __init__(self, p=.2): self.p = p

    def __call__(self, xb, yb):
        return torch.where(happens(xb, self.p).view(-1, 1, 1, 1), grayscale(xb), xb), yb


class GaussianBlur(BatchTransform):
    "Smooth each image with a width of its own, from `sigma`, a pair (low, high) of pixels."
    @checked(kernel_size=odd)
    def __init__(self, kernel_size=3, sigma=(.1, 2.)):
        self.kernel_size, self.sigma = kernel_size, both_sides("sigma", sigma, low=1e-6)

    def __call__(self, xb, yb):
        return gaussian_blur(xb, self.kernel_size, uniform(xb, *self.sigma)), yb


class PCAColor(BatchTransform):
    """Shift the colour of each image along the directions p in which a data set's colours vary
    (Krizhevsky et al., 2012): by Σ αᵢ λᵢ pᵢ, λ the variances along p, α ~ N(0, std²) an image.

    images: the training set, `[n, 3, height, width]`, values in [0, 1].
    """
    @checked(images=images, std=at_least_0)
    def __init__(self, images, std=.1):
        if images.shape[1] != 3 or not (0 <= images.min() and images.max() <= 1):
            raise ValueError("images: expected three channels with values from 0 to 1.")
        values, directions = torch.linalg.eigh(torch.cov(images.transpose(0, 1).flatten(1)))
        self.std, self.shifts = std, values * directions  # columns λp

    def __call__(self, xb, yb):
        draws = self.std * torch.randn(len(images("xb", xb)), 3, device=xb.device, dtype=xb.dtype)
        return xb + (draws @ self.shifts.to(xb).T)[:, :, None, None], yb


class Cutout(BatchTransform):
    "Write `fill` into squares of `size` pixels around any pixel (DeVries and Taylor, 2017)."
    @checked(size=positive_int, n_holes=positive_int, fill=finite)
    def __init__(self, size, n_holes=1, fill=0.):
        self.size, self.n_holes, self.fill = size, n_holes, fill

    def __call__(self, xb, yb):
        sides = images("xb", xb).shape[2:]
        for _ in range(self.n_holes):
            middle = [torch.randint(side, (len(xb),), device=xb.device) for side in sides]
            top, left = (place - self.size // 2 for place in middle)
            xb = erase(xb, top, left, self.size, self.size, self.fill)
        return xb, yb


class MixUp(BatchTransform):
    """λ of each image and 1 - λ of another one, its target likewise (Zhang et al., 2018); one λ a
    batch, from Beta(α, α). Targets, class numbers `[n]` or shares, become shares `[n, n_classes]`.
    """
    @checked(n_classes=positive_int, alpha=above_0)
    def __init__(self, n_classes, alpha=.4): self.n_classes, self.alpha = n_classes, alpha

    def __call__(self, xb, yb):
        yb = soft_targets(xb, yb, self.n_classes)
        lam = beta_draw(self.alpha, xb.device)
        other = torch.randperm(len(xb), device=xb.device)
        mix = lambda t: torch.lerp(t[other], t, lam.to(t.dtype))    # λ t + (1 - λ) t[other]
        return mix(xb), mix(yb)


class CutMix(BatchTransform):
    """A box of another image in each image, and targets mixed by its area (Yun et al., 2019).

    The box is 1 - λ of the image, λ from Beta(α, α), less where the border cuts it off; targets
    as in `MixUp`.
    """
    @checked(n_classes=positive_int, alpha=above_0)
    def __init__(self, n_classes, alpha=1.): self.n_classes, self.alpha = n_classes, alpha

    def __call__(self, xb, yb):
        yb, (height, width) = soft_targets(xb, yb, self.n_classes), xb.shape[2:]
        half = (1 - beta_draw(self.alpha, xb.device)).sqrt() / 2
        half_w, half_h = (half * width).trunc(), (half * height).trunc()
        column, row = (torch.randint(side, (1,), device=xb.device) for side in (width, height))
        inside = box(xb, row - half_h, column - half_w, 2 * half_h, 2 * half_w)
        other = torch.randperm(len(xb), device=xb.device)
        share = inside.to(yb.dtype).mean()    # λ again, after the border has cut the box
        return torch.where(inside, xb[other], xb), torch.lerp(yb, yb[other], share)


OPERATIONS = {    # name -> function of images and of strengths from -1 to 1, one an image
    "Identity": lambda x, s: x,
    "ShearX": lambda x, s: shear(x, degrees_x=torch.rad2deg((.3 * s).atan()), center=(0, 0)),
    "ShearY": lambda x, s: shear(x, degrees_y=torch.rad2deg((.3 * s).atan()), center=(0, 0)),
    "TranslateX": lambda x, s: translate(x, right=(150 / 331 * x.shape[3] * s).trunc()),
    "TranslateY": lambda x, s: translate(x, down=(150 / 331 * x.shape[2] * s).trunc()),
    "Rotate": lambda x, s: rotate(x, 30 * s),
    "Brightness": lambda x, s: adjust_brightness(x, 1 + .9 * s),
    "Color": lambda x, s: adjust_saturation(x, 1 + .9 * s),
    "Contrast": lambda x, s: adjust_contrast(x, 1 + .9 * s),
    "Sharpness": lambda x, s: adjust_sharpness(x, 1 + .9 * s),
    "Posterize": lambda x, s: posterize(x, 8 - (4 * s.abs()).round()),
    "Solarize": lambda x, s: solarize(x, 1 - s.abs()),
    "AutoContrast": lambda x, s: autocontrast(x),
    "Equalize": lambda x, s: equalize(x)}


class RandAugment(BatchTransform):
    """Do n of fourteen operations to each image, all with one strength (Cubuk et al., 2020).

    magnitude: from 0 to 30; what has two directions goes in either, as a coin falls.
    """
    @checked(n=whole_from_0, magnitude=a_number("from 0 to 30", lambda m: 0 <= m <= 30))
    def __init__(self, n=2, magnitude=9): self.n, self.magnitude = n, magnitude

    def __call__(self, xb, yb):
        for _ in range(self.n):
            strengths = (2 * happens(xb, .5) - 1) * (self.magnitude / 30)    # + or -
            drawn = torch.randint(len(OPERATIONS), (len(xb),))    # on the CPU: Python needs sizes
            sizes = drawn.bincount(minlength=len(OPERATIONS)).tolist()
            out = torch.empty_like(xb)
            groups = drawn.argsort().to(xb.device).split(sizes)
            for operation, rows in zip(OPERATIONS.values(), groups):
                if len(rows): out[rows] = operation(xb[rows], strengths[rows])
            xb = out
        return xb, yb
