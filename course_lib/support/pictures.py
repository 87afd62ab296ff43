"""Pictures for lessons on few labels: digits, a handful of each, and painted things, in colour, where no photos are at hand."""
import random

import numpy as np
import torch
from PIL import Image, ImageDraw

# What a thing is made of, on a square that reaches from 0 to 1, all of them looking to the right: (shape, numbers).
THINGS = {
    "cup": [("rectangle", (.2, .25, .6, .8)), ("arc", (.5, .35, .85, .7))],
    "fish": [("ellipse", (.3, .3, .9, .7)), ("polygon", (.38, .5, .1, .3, .1, .7))],
    "flag": [("rectangle", (.25, .1, .32, .9)), ("polygon", (.32, .12, .85, .28, .32, .45))],
    "axe": [("rectangle", (.42, .15, .5, .9)), ("polygon", (.5, .2, .8, .1, .8, .5, .5, .38))],
    "boot": [("rectangle", (.28, .15, .52, .8)), ("ellipse", (.3, .58, .86, .86))],
    "duck": [("ellipse", (.12, .45, .72, .85)), ("ellipse", (.52, .2, .78, .5)), ("polygon", (.76, .3, .92, .36, .76, .42))],
    "snail": [("ellipse", (.15, .25, .65, .75)), ("rectangle", (.2, .7, .85, .8)), ("polygon", (.75, .74, .8, .4, .87, .74))],
    "van": [("rectangle", (.1, .3, .6, .7)), ("rectangle", (.55, .47, .9, .7)), ("ellipse", (.2, .6, .38, .8)),
            ("ellipse", (.64, .6, .82, .8))]}


def paint(thing, rng, size=32, scale=4):
    "One picture, `[size, size, 3]` bytes: that thing, looking to either side, of a size, place and colours of chance."
    side = size * scale
    ground, ink = (tuple(rng.randrange(low, low + 128) for _ in range(3)) for low in rng.sample((0, 127), 2))
    picture = Image.new("RGB", (side, side), ground)
    draw, zoom, mirrored = ImageDraw.Draw(picture), rng.uniform(.6, 1), rng.random() < .5
    right, down = rng.uniform(0, 1 - zoom), rng.uniform(0, 1 - zoom)
    for shape, numbers in THINGS[thing]:
        xs, ys = numbers[::2], numbers[1::2]
        if mirrored: xs = [1 - x for x in xs]
        if shape != "polygon": xs = sorted(xs)
        points = [(side * (right + zoom * x), side * (down + zoom * y)) for x, y in zip(xs, ys)]
        if shape == "arc": draw.ellipse(points, outline=ink, width=round(.08 * side))
        else: getattr(draw, shape)(points, fill=ink)
    light = rng.uniform(.5, 1.3)
    small = np.asarray(picture.resize((size, size), Image.Resampling.BOX), dtype=np.float32) * light
    return (small + np.random.default_rng(rng.randrange(2 ** 32)).normal(0, 12, small.shape)).clip(0, 255).astype(np.uint8)


def painted(n, seed=0):
    "`(x [n, 3, 32, 32] floats from 0 to 1, y [n], class names)`: n pictures of eight things, which take turns."
    rng, names = random.Random(seed), list(THINGS)
    pictures = np.stack([paint(names[i % len(names)], rng) for i in range(n)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255), torch.arange(n) % len(names), names


def few_digits(dls, n_per_class=10, seed=0):
    """Three pairs of images from 0 (black) to 1 and their targets: few of each class to train on, then those that choose
    (validation) and those that judge (test). Of the embedded digits, most of the training set judges as well.
    """
    low, high = dls.train.x.min(), dls.train.x.max()
    x, y, (tx, ty) = (dls.train.x - low) / (high - low), dls.train.y, ((dls.test.x - low) / (high - low), dls.test.y)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)
    few = torch.cat([order[y[order] == c][:n_per_class] for c in range(int(y.max()) + 1)])
    rest = order[~torch.isin(order, few)]
    valid, judges = rest[:min(1000, len(rest) // 3)], rest[len(rest) // 3:]
    test = (tx[:3000], ty[:3000]) if len(ty) >= 3000 else (torch.cat([x[judges], tx]), torch.cat([y[judges], ty]))
    return (x[few], y[few]), (x[valid], y[valid]), test
