"""Chapter 13's images: each function against torchvision's, image by image; draws, targets, bad input."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as V

from course_lib.support import image_color as color
from course_lib.support import image_geometry as geometry
from course_lib import augmentation as ours
from course_lib.augmentation import reader
from course_lib.data import TensorLoader, digits
from course_lib.figures.augmentation import gains
from course_lib.support.augmentation import uniform
from course_lib.support.pictures import few_digits, painted
from course_lib.support.results import results
from tiny import every_device

BILINEAR = InterpolationMode.BILINEAR
N, WHOLE = 6, ("crop", "erase", "posterize")


def photos(channels=3, height=20, width=33, n=N, dtype=torch.float32):
    "Images with gray and flat places, exact zeros and ones."
    x = torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype)
    x[0, :, :5] = .5
    x[1, :, :, :4] = x[1, :1, :, :4]
    x[2, :, 3], x[3, 0], x[4, -1, :9], x[4, :, 9:] = 0, .25, 1, x[4, :, 9:].round()
    return x


def amounts(low, high, n=N): return torch.linspace(low, high, n).roll(2)


def amounts_for(name):
    values = [amounts(*limits) for limits in CASES[name][2]]
    return [v.long() for v in values] if name in WHOLE else values


def one_by_one(function, x, *values):
    "torchvision's results for each image with its own amount."
    return torch.stack([function(x[i], *(v[i].item() for v in values)) for i in range(len(x))])


AFFINE = {"angle": 0., "translate": [0, 0], "scale": 1., "shear": [0., 0.], "interpolation": BILINEAR}
CASES = {
    "grayscale": (color.grayscale, lambda im: V.rgb_to_grayscale(im, len(im)), ()),
    "invert": (color.invert, V.invert, ()),
    "adjust_brightness": (color.adjust_brightness, V.adjust_brightness, [(0, 2.5)]),
    "adjust_contrast": (color.adjust_contrast, V.adjust_contrast, [(0, 2.5)]),
    "adjust_saturation": (color.adjust_saturation, V.adjust_saturation, [(0, 2.5)]),
    "adjust_hue": (color.adjust_hue, V.adjust_hue, [(-.5, .5)]),
    "adjust_sharpness": (color.adjust_sharpness, V.adjust_sharpness, [(0, 2.5)]),
    "solarize": (color.solarize, V.solarize, [(0, 1)]),
    "posterize": (color.posterize, lambda im, bits: V.posterize(im, int(bits)), [(3, 8)]),
    "autocontrast": (color.autocontrast, V.autocontrast, ()),
    "equalize": (color.equalize, V.equalize, ()),
    "gaussian_blur 3": (lambda x, s: color.gaussian_blur(x, 3, s), lambda im, s: V.gaussian_blur(im, 3, s), [(.1, 2)]),
    "gaussian_blur 9": (lambda x, s: color.gaussian_blur(x, 9, s), lambda im, s: V.gaussian_blur(im, 9, s), [(.1, 4)]),
    "rotate": (geometry.rotate, lambda im, a: V.rotate(im, a, BILINEAR), [(-180, 90)]),
    "translate": (geometry.translate, lambda im, right, down: V.affine(im, **AFFINE | {"translate": [right, down]}),
                  [(-9, 9), (-4.5, 7)]),
    "shear": (geometry.shear, lambda im, a, b: V.affine(im, **AFFINE | {"shear": [a, b]}), [(-50, 40), (-30, 30)]),
    "shear about a corner": (lambda x, a, b: geometry.shear(x, a, b, center=(0, 0)),
                             lambda im, a, b: V.affine(im, **AFFINE | {"shear": [a, b], "center": [0, 0]}),
                             [(-50, 40), (-30, 30)]),
    "hflip": (geometry.hflip, V.hflip, ()),
    "crop": (lambda x, top, left: geometry.crop(x, top, left, 9, 12),
             lambda im, top, left: V.crop(im, int(top), int(left), 9, 12), [(0, 11), (0, 21)]),
    "erase": (lambda x, top, left, height: geometry.erase(x, top, left, height, 5, value=.3),
              lambda im, *place: V.erase(im, *map(int, place), 5, torch.tensor(.3)), [(0, 11), (0, 21), (0, 9)]),
}


@every_device
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_each_image_is_torchvisions_with_its_own_amount(name, channels, device):
    function, peer, _ = CASES[name]
    x, values = photos(channels), amounts_for(name)
    mine = function(x.to(device), *(v.to(device) for v in values))
    assert mine.device.type == device and mine.is_contiguous()
    torch.testing.assert_close(mine.cpu(), one_by_one(peer, x, *values), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, photos(channels))  # unchanged
    if values:  # a number is the same amount for all
        fixed = [v[1].item() for v in values]
        if name not in WHOLE:
            torch.testing.assert_close(function(x.to(device), *fixed).cpu(), peer(x, *fixed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_double_precision_stays_double(name):
    function, peer, _ = CASES[name]
    x, values = photos(dtype=torch.double), amounts_for(name)
    mine, theirs = function(x, *values), one_by_one(peer, x, *values)
    assert mine.dtype is torch.double
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def bytes_of(x): return (x * 255).round().byte()


@pytest.mark.parametrize("name", ["grayscale", "invert", "adjust_brightness", "adjust_contrast", "adjust_saturation",
                                  "adjust_hue", "adjust_sharpness", "autocontrast"])
def test_bytes_give_the_same_up_to_one_level_of_rounding(name):
    "torchvision rounds off after each step where images are bytes; grayscale within, for saturation and contrast."
    function, peer, _ = CASES[name]
    x, values = bytes_of(photos()), amounts_for(name)
    mine = function(x / 255, *values) * 255
    assert (mine - one_by_one(peer, x, *values).float()).abs().max() <= 2.5


def test_equalize_is_that_of_bytes_to_the_level():
    x = bytes_of(photos())
    assert torch.equal(bytes_of(color.equalize(x / 255)), one_by_one(V.equalize, x))


def test_posterize_differs_from_that_of_bytes_by_the_scale():
    "Floats become k / 2 ** bits, in torchvision too; of bytes it keeps the highest bits, k · 2 ** (8 - bits)."
    x = bytes_of(photos())
    levels = color.posterize(x / 255, 3) * 8
    assert (levels - (V.posterize(x, 3) / 32)).abs().max() <= 1


def corners(height, width): return torch.tensor([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])


@every_device
def test_perspective_is_torchvisions(device):
    x, start = photos(), corners(20, 33)
    end = start + torch.randint(-4, 5, (N, 4, 2), generator=torch.Generator().manual_seed(2))
    theirs = torch.stack([V.perspective(x[i], start.tolist(), end[i].tolist(), BILINEAR) for i in range(N)])
    mine = geometry.perspective(x.to(device), start, end.to(device))
    torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(geometry.perspective(x, start, start), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("turn", [
    lambda x, fill: geometry.rotate(x, 33., fill), lambda x, fill: geometry.translate(x, 3.3, -2.5, fill),
    lambda x, fill: geometry.shear(x, 20., 7., fill),
    lambda x, fill: geometry.perspective(x, corners(20, 33), corners(20, 33) * .8 + 1, fill)])
def test_fill_is_what_lies_outside(turn):
    "An image of the fill's value all over stays one. torchvision's border is darker: it weighs border pixels twice."
    assert turn(torch.full((1, 3, 20, 33), .7), .7).sub(.7).abs().max() < 1e-6
    x = photos()
    torch.testing.assert_close(turn(x, .7), turn(x - .7, 0.) + .7)
    theirs = V.rotate(torch.full((1, 20, 33), .7), 33., BILINEAR, fill=.7)
    squared = V.rotate(torch.ones(1, 20, 33), 33., BILINEAR)
    torch.testing.assert_close(theirs, .7 * squared ** 2 + .7 * (1 - squared))


def test_flipping_some():
    x, which = photos(), torch.arange(N) % 2 == 0
    mine = geometry.hflip(x, which)
    assert torch.equal(mine[::2], x[::2].flip(3)) and torch.equal(mine[1::2], x[1::2])


# --- the transforms

TRANSFORMS = {
    "Flip": {"p": .5}, "RandomCrop": {"padding": 3}, "Rotate": {"degrees": 30}, "Perspective": {"scale": .5},
    "ColorJitter": {"brightness": .4, "contrast": .4, "saturation": .4, "hue": .2}, "Grayscale": {"p": .5},
    "GaussianBlur": {"kernel_size": 5}, "Cutout": {"size": 6, "n_holes": 2}, "PCAColor": {"images": photos()},
    "RandAugment": {}, "MixUp": {"n_classes": 10}, "CutMix": {"n_classes": 10}}


@every_device
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_repeats_with_the_seed_and_leaves_its_input(name, device):
    transform, x = getattr(ours, name)(**TRANSFORMS[name]), photos(n=16).to(device)
    y = torch.arange(16, device=device) % 10
    x_before, y_before = x.clone(), y.clone()
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(transform(x, y))
    assert torch.equal(x, x_before) and torch.equal(y, y_before)
    (first, target), (again, _), (other, _) = outs
    assert first.shape == x.shape and first.dtype == x.dtype and first.device == x.device
    assert torch.equal(first, again) and not torch.equal(first, other) and first.isfinite().all()
    if name in ("MixUp", "CutMix"): torch.testing.assert_close(target.sum(1), torch.ones(16, device=device))
    else: assert target is y
    assert repr(transform).startswith(f"{name}(")


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"MixUp", "CutMix"}))
def test_each_image_has_a_draw_of_its_own(name):
    torch.manual_seed(0)
    x = photos(n=8)[5:6].expand(40, -1, -1, -1)
    different = getattr(ours, name)(**TRANSFORMS[name])(x, None)[0].flatten(1).unique(dim=0)
    assert len(different) == 2 if name in ("Flip", "Grayscale") else len(different) >= 20


@pytest.mark.parametrize("p", [0, .25, 1])
@pytest.mark.parametrize("name", ["Flip", "Grayscale"])
def test_probabilities(name, p):
    torch.manual_seed(0)
    x = torch.rand(4000, 3, 2, 2)
    changed = (getattr(ours, name)(p)(x, None)[0] != x).any((1, 2, 3)).float().mean()
    assert abs(changed - p) < .025 and (p == .25 or changed == p)


def test_random_crop_is_a_padded_image_cut_at_each_of_the_offsets():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 5, 7).expand(400, -1, -1, -1)
    wide = F.pad(x[0], [2] * 4, value=-3)
    cuts = {tuple(wide[:, i:i + 5, j:j + 7].flatten().tolist()) for i in range(5) for j in range(5)}
    assert {tuple(image.flatten().tolist()) for image in ours.RandomCrop(2, fill=-3)(x, None)[0]} == cuts


def test_jitter_is_torchvisions_with_these_factors(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.tensor([2, 0, 3, 1]))
    torch.manual_seed(0)
    x = photos()
    limits = (.5, 1.5), (.8, 1.2), (-.1, .1), (.7, 1.3)
    saturation, brightness, hue, contrast = (uniform(x, *pair) for pair in limits)
    torch.manual_seed(0)
    mine, _ = ours.ColorJitter(.2, .3, .5, .1)(x, None)
    theirs = one_by_one(lambda im, s, b, h, c: V.adjust_contrast(V.adjust_hue(V.adjust_brightness(
        V.adjust_saturation(im, s), b), h), c), x, saturation, brightness, hue, contrast)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_jitter_takes_ranges_as_torchvision_does():
    for options in ({"brightness": .4}, {"contrast": 1.5}, {"saturation": (.2, .3)}, {"hue": .2}, {"hue": (.1, .2)}):
        mine, theirs = ours.ColorJitter(**options), v2.ColorJitter(**options)
        assert all(getattr(mine, name) == getattr(theirs, name) for name in options)
    black, _ = ours.ColorJitter(brightness=(0, 0))(photos(), None)
    assert not black.any()


def test_cutout_is_a_square_around_any_pixel_cut_off_at_the_border():
    torch.manual_seed(0)
    x = torch.ones(2000, 1, 6, 8)
    holes = {tuple(image.flatten().tolist()) for image in ours.Cutout(3, fill=.5)(x, None)[0]}
    wanted = set()
    for row in range(6):
        for column in range(8):
            image = np.ones((6, 8), np.float32)
            image[max(0, row - 1):row + 2, max(0, column - 1):column + 2] = .5
            wanted.add(tuple(image.flatten().tolist()))
    assert holes == wanted


def test_pca_shifts_have_the_covariance_of_the_paper():
    "Shifts are Σ αᵢ λᵢ pᵢ, so their covariance is std² C², with C the covariance of the training set's pixels."
    torch.manual_seed(0)
    x = (torch.rand(50, 1, 8, 8, dtype=torch.double) + torch.rand(50, 3, 8, 8, dtype=torch.double) * .4) / 1.4
    transform = ours.PCAColor(x, std=.5)
    shifts = transform(torch.zeros(60_000, 3, 1, 1, dtype=torch.double), None)[0].flatten(1)
    covariance = torch.from_numpy(np.cov(x.transpose(0, 1).flatten(1).numpy()))
    torch.testing.assert_close(torch.cov(shifts.T), .25 * covariance @ covariance, rtol=.05, atol=1e-6)
    moved = transform(x, None)[0] - x
    assert (moved.flatten(2).std(2) < 1e-12).all()  # one draw an image


def rolled(n, **options): return torch.arange(n, **options).roll(1)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("alpha", [.5, 1.])
@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_mixing_is_torchvisions_given_the_seed(name, alpha, soft, monkeypatch):
    "torchvision pairs each image with the one before; we draw pairs, last of all. Told to pair so, we give the same."
    monkeypatch.setattr(torch, "randperm", rolled)
    x, y = photos(n=12), torch.arange(12) % 5
    if soft: y = torch.rand(12, 5).softmax(1)
    boxes = 0
    for seed in range(40):
        torch.manual_seed(seed)
        mine = getattr(ours, name)(n_classes=5, alpha=alpha)(x, y)
        torch.manual_seed(seed)
        theirs = getattr(v2, name)(num_classes=5, alpha=alpha)(x, y)
        torch.testing.assert_close(mine[0], theirs[0])
        torch.testing.assert_close(mine[1], theirs[1], rtol=1e-5, atol=1e-6)
        boxes += not torch.equal(mine[0], x)
    assert boxes > 20


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_pairs_are_drawn_anew(name):
    x, y = torch.eye(8).view(8, 8, 1, 1).expand(-1, -1, 6, 6).contiguous(), torch.arange(8)
    partners = set()
    for seed in range(150):
        torch.manual_seed(seed)
        xb, yb = getattr(ours, name)(8, alpha=5.)(x, y)
        torch.testing.assert_close(xb.mean((2, 3)), yb)  # what an image shows is what its target says
        partners |= {(i, j) for i, j in yb.nonzero().tolist() if i != j}
    assert len(partners) == 56


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", ours.OPERATIONS)
def test_operations_are_torchvisions_at_that_magnitude(name, sign, magnitude):
    space = v2.RandAugment._AUGMENTATION_SPACE
    assert list(ours.OPERATIONS) == list(space)
    magnitudes, signed = space[name]
    x, table = photos(), magnitudes(31, 20, 33)
    amount = 0. if table is None else float(table[magnitude]) * (sign if signed else 1)
    theirs = v2.RandAugment(interpolation=BILINEAR)._apply_image_or_video_transform(x, name, amount, BILINEAR, {})
    mine = ours.OPERATIONS[name](x, torch.full((N,), sign * magnitude / 30))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_rand_augment_does_n_operations_to_each_image(monkeypatch):
    steps = {f"add {k}": lambda x, s, k=k: x + 10 ** k + .1 * s[:, None, None, None] for k in range(3)}
    monkeypatch.setattr(ours, "OPERATIONS", steps)
    torch.manual_seed(0)
    x = torch.zeros(3000, 1, 1, 1)
    out = ours.RandAugment(n=2, magnitude=30)(x, None)[0].flatten()
    assert {*out.round().int().tolist()} == {2, 20, 200, 11, 101, 110}
    assert {*(out - out.round()).mul(100).round().int().tolist()} == {-20, 0, 20}
    assert abs((out.round() == 11).float().mean() - 2 / 9) < .03
    assert torch.equal(ours.RandAugment(n=0)(x, None)[0], x)


# --- bad input

@pytest.mark.parametrize("make, word", [
    (lambda: ours.Flip(1.1), "p"), (lambda: ours.Flip(math.nan), "p"), (lambda: ours.Flip(-.1), "p"),
    (lambda: ours.Grayscale("half"), "p"), (lambda: ours.RandomCrop(-1), "padding"),
    (lambda: ours.RandomCrop(1.5), "padding"), (lambda: ours.RandomCrop(2, fill=math.nan), "fill"),
    (lambda: ours.Rotate(-3), "degrees"), (lambda: ours.Rotate(math.inf), "degrees"),
    (lambda: ours.Rotate((5, 3)), "degrees"), (lambda: ours.ColorJitter(brightness=-1), "brightness"),
    (lambda: ours.ColorJitter(contrast=math.nan), "contrast"),
    (lambda: ours.ColorJitter(saturation=(-1, 1)), "saturation"), (lambda: ours.ColorJitter(hue=.6), "hue"),
    (lambda: ours.ColorJitter(hue=(.2, .1)), "hue"), (lambda: ours.Perspective(1.2), "scale"),
    (lambda: ours.GaussianBlur(4), "kernel_size"), (lambda: ours.GaussianBlur(0), "kernel_size"),
    (lambda: ours.GaussianBlur(3, sigma=(0, 1)), "sigma"), (lambda: ours.PCAColor(photos(), std=-1), "std"),
    (lambda: ours.PCAColor(photos() * 255), "images"), (lambda: ours.PCAColor(photos(1)), "images"),
    (lambda: ours.PCAColor(bytes_of(photos())), "images"), (lambda: ours.PCAColor(photos() * math.nan), "images"),
    (lambda: ours.Cutout(0), "size"), (lambda: ours.Cutout(2, n_holes=0), "n_holes"),
    (lambda: ours.MixUp(0), "n_classes"), (lambda: ours.MixUp(3, alpha=0), "alpha"),
    (lambda: ours.CutMix(3, alpha=math.nan), "alpha"), (lambda: ours.CutMix(2.5), "n_classes"),
    (lambda: ours.RandAugment(n=-1), "n"), (lambda: ours.RandAugment(magnitude=31), "magnitude"),
    (lambda: ours.RandAugment(magnitude=math.nan), "magnitude"),
    (lambda: color.adjust_brightness(photos(), -1), "factor"),
    (lambda: color.adjust_contrast(photos(), math.nan), "factor"),
    (lambda: color.adjust_saturation(photos(), "2"), "factor"),
    (lambda: color.adjust_hue(photos(), .51), "factor"),
    (lambda: color.adjust_hue(photos(), torch.full((N,), math.nan)), "factor"),
    (lambda: color.adjust_sharpness(photos(), torch.full((N,), math.inf)), "factor"),
    (lambda: color.adjust_brightness(photos(), torch.ones(N + 1)), "factor"),
    (lambda: color.adjust_brightness(photos(), torch.ones(N) > 0), "factor"),
    (lambda: color.posterize(photos(), 9), "bits"), (lambda: color.posterize(photos(), 2.5), "bits"),
    (lambda: color.solarize(photos(), 1.1), "threshold"),
    (lambda: color.gaussian_blur(photos(), 2, 1.), "kernel_size"),
    (lambda: color.gaussian_blur(photos(), 41, 1.), "kernel_size"),
    (lambda: color.gaussian_blur(photos(), 3, 0.), "sigma"), (lambda: geometry.rotate(photos(), math.nan), "degrees"),
    (lambda: geometry.rotate(photos(), 3., math.nan), "fill"),
    (lambda: geometry.translate(photos(), right=math.inf), "right"),
    (lambda: geometry.shear(photos(), 90.), "degrees_x"), (lambda: geometry.crop(photos(), 0, 0, 21, 5), "fit"),
    (lambda: geometry.crop(photos(), 12, 0, 9, 5), "top"),
    (lambda: geometry.crop(photos(), 0, torch.full((N,), -1), 9, 5), "left"),
    (lambda: geometry.erase(photos(), 0, 0, -1, 5), "height"),
    (lambda: geometry.hflip(photos(), torch.ones(N)), "which"),
    (lambda: geometry.perspective(photos(), corners(9, 9), corners(9, 9)[:3]), "endpoints"),
    (lambda: geometry.perspective(photos(), corners(9, 9), torch.zeros(4, 2)), "endpoints"),
    (lambda: geometry.perspective(photos(), corners(9, 9) * math.nan, corners(9, 9)), "startpoints")])
def test_what_is_out_of_range_is_named(make, word):
    with pytest.raises(ValueError, match=rf"\b{word}\b"): make()


@pytest.mark.parametrize("x", [photos()[0], bytes_of(photos()), photos().numpy(), None],
                         ids=["3 axes", "bytes", "array", "None"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_is_no_batch_of_float_images_is_refused(name, x):
    transform = getattr(ours, name)(**TRANSFORMS[name])
    with pytest.raises(ValueError, match="Expected float images"): transform(x, torch.zeros(N).long())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[0].__module__.endswith("color")])
def test_colours_have_one_channel_or_three(name):
    function, values = CASES[name][0], amounts_for(name)
    with pytest.raises(ValueError, match=f"{name}.*1 or 3 channels, got 2"): function(photos(2), *values)


@pytest.mark.parametrize("y", [
    torch.arange(N) + 5, torch.arange(N) - 1, torch.rand(N), torch.rand(N, 9), torch.zeros(N, 10).long(),
    torch.zeros(N - 1).long(), torch.zeros(N) > 0, [0] * N, None], ids=lambda y: str(getattr(y, "shape", y)))
@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_targets_that_cannot_be_mixed_are_refused(name, y):
    with pytest.raises(ValueError, match="yb|target"): getattr(ours, name)(10)(photos(), y)


# What the chapter needs besides: lists of transforms, its net and its pictures

def test_a_list_of_transforms_is_done_in_turn():
    x, y = photos(), torch.arange(N)
    first, second = (lambda xb, yb: (xb + 1, yb)), (lambda xb, yb: (2 * xb, yb + 1))
    [(xb, yb)] = TensorLoader(x, y, N, transform=[first, second])
    assert torch.equal(xb, 2 * (x + 1)) and torch.equal(yb, y + 1)
    [(xb, yb)] = TensorLoader(x, y, N, transform=[])
    assert torch.equal(xb, x) and torch.equal(yb, y)
    with pytest.raises(ValueError, match=r"transform\[1\] must be a function"):
        TensorLoader(x, y, N, transform=[first, 3])


def test_painted_things_repeat_and_look_both_ways():
    x, y, names = painted(64)
    again, *_ = painted(16)
    assert torch.equal(again, x[:16]) and x.shape == (64, 3, 32, 32) and 0 <= x.min() and x.max() <= 1
    assert y.bincount().tolist() == [8] * 8 == [len(names)] * 8
    assert not torch.equal(painted(8, seed=1)[0], x[:8])


def test_few_digits_are_ten_of_each_and_apart_from_those_that_choose_and_judge():
    few, valid, test = few_digits(digits(device="cpu"))
    assert few[1].bincount().tolist() == [10] * 10 and 0 <= few[0].min() and few[0].max() <= 1
    rows = torch.cat([part[0] for part in (few, valid, test)]).flatten(1)
    assert len(rows.unique(dim=0)) > len(rows) - 10  # some of the embedded digits are alike


def test_reader_halves_the_sides_twice():
    assert reader()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert reader(3, 32, 8)(torch.zeros(2, 3, 32, 32)).shape == (2, 8)


def test_results_hold_twenty_seeds_and_the_change_of_sign():
    stored = results("augmentation")
    for name in ("mnist", "digits", "things"):
        assert all(len(run["accuracy"]) == 20 and run["strength"] in run["strengths"] for run in stored[name].values())
    for name in ("mnist", "digits"):
        assert gains(stored[name])["flip"].high < 0 < gains(stored[name])["affine"].low
        assert gains(stored[name], "affine")["affine, mixup"].low > 0
    assert gains(stored["mnist"])["mixup"].high < 0 < gains(stored["things"])["flip"].low
    assert len(stored["search"]["table"]) == 210
