"""The exercise of appendix A3."""
import torch

from ..support.photos import IMAGENET_MEAN, IMAGENET_STD, denormalise
from .core import Exercise

# Darker, lighter

def brightness(low, high):
    "A transform that makes each image darker or lighter by a factor of its own."
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))

    def transform(xb, yb):
        factors = low + (high - low) * torch.rand(len(xb), 1, 1, 1)
        return ((denormalise(xb) * factors).clamp(0, 1) - mean) / std, yb
    return transform


def colours(x, way):
    "Channel by channel, in double precision: normalised ones from colours (way 1), or back (way -1)."
    parts = ((x[:, i].double(), IMAGENET_MEAN[i], IMAGENET_STD[i]) for i in range(3))
    return torch.stack([(part - mean) / std if way == 1 else part * std + mean for part, mean, std in parts], 1)


def batches(rng):
    "Factors that are all the same, below 1 and above, and two ranges; colours up to 1 and, in the ranges, to .5."
    def draw(n, most):
        random = torch.Generator().manual_seed(rng.randrange(2 ** 40))
        return .1 + (most - .1) * torch.rand(n, 3, 4, 5, generator=random)
    found = []
    for low, spread in ((rng.uniform(.3, .8), 0.), (rng.uniform(1.5, 2), 0.)):
        found.append({"low": low, "high": low + spread, "_colours": draw(6, 1.), "_seed": rng.randrange(2 ** 40)})
    for low, spread in ((rng.uniform(.2, .5), rng.uniform(.3, .5)), (rng.uniform(1, 1.2), rng.uniform(.5, .7))):
        found.append({"low": low, "high": low + spread, "_colours": draw(200, .5), "_seed": rng.randrange(2 ** 40)})
    return found


def run_brightness(answer, low, high, _colours, _seed):
    torch.manual_seed(_seed)
    xb, yb = colours(_colours, 1).float(), torch.arange(len(_colours))
    before, transform = xb.clone(), answer(low, high)
    out, targets = transform(xb, yb)
    again, _ = transform(xb, yb)
    found = {"the batch that was given is as it was": torch.equal(xb, before), "the targets": targets}
    if low == high: return found | {"the images": out}
    factors = colours(out, -1) / _colours  # no colour grows beyond 1 here
    each, spread = factors.mean((1, 2, 3)), high - low
    return found | {"the shape of the images": list(out.shape),
                    "all pixels of an image have one factor": bool((factors.amax((1, 2, 3)) - factors.amin((1, 2, 3)) < .02).all()),
                    "each image has its own factor": bool(each.std() > .1 * spread),
                    "the next batch has other factors": not torch.equal(out, again),
                    "a factor is below low": bool((each < low - .01).any()), "a factor is above high": bool((each > high + .01).any()),
                    "there are factors near low": bool((each < low + .1 * spread).any()),
                    "there are factors near high": bool((each > high - .1 * spread).any()),
                    "small factors are as frequent as large ones": bool((each.mean() - low - spread / 2).abs() < .12 * spread)}


def by_hand(low, high, _colours, _seed):
    found = {"the batch that was given is as it was": True, "the targets": torch.arange(len(_colours))}
    if low == high: return found | {"the images": colours((_colours * low).clamp(max=1), 1).float()}
    return found | {"the shape of the images": list(_colours.shape), "all pixels of an image have one factor": True,
                    "each image has its own factor": True, "the next batch has other factors": True, "a factor is below low": False,
                    "a factor is above high": False, "there are factors near low": True, "there are factors near high": True,
                    "small factors are as frequent as large ones": True}


def evenly(low, high, *shape): return low + (high - low) * torch.rand(shape)
def one_an_image(low, high, xb): return evenly(low, high, len(xb), 1, 1, 1)
def normalised(x): return colours(x, 1).float()


def variant(factors=one_an_image, change=lambda x, factors: normalised((denormalise(x) * factors).clamp(0, 1)),
            gives=lambda out, yb: (out, yb)):
    "A `brightness` that differs in something."
    return lambda low, high: lambda xb, yb: gives(change(xb, factors(low, high, xb)), yb)


def drawn_once(low, high):
    factors = evenly(low, high, 1000, 1, 1, 1)
    return variant(lambda low, high, xb: factors[:len(xb)])(low, high)


def in_place(low, high):
    def transform(xb, yb):
        return xb.copy_(normalised((denormalise(xb) * one_an_image(low, high, xb)).clamp(0, 1))), yb
    return transform


BRIGHTNESS = Exercise(
    "A3", brightness, '''
def brightness(low, high):
    "A transform that makes each image darker or lighter by a factor of its own."
    def transform(xb, yb):
        return xb, yb                            # replace this
    return transform
''',
    hints=("In which numbers does a factor make an image darker: in normalised ones, or in colours from 0 to 1? How do you get there?",
           "denormalise(xb) gives colours. A factor for each image has the shape [n, 1, 1, 1]. Then clamp, and normalise again: minus the "
           "mean, divided by the deviation.",
           "factors = low + (high - low) * torch.rand(len(xb), 1, 1, 1), inside of transform; and IMAGENET_MEAN and IMAGENET_STD as tensors "
           "of the shape [3, 1, 1]."),
    mistakes={
        "You multiply normalised numbers, in which 0 is an average colour and not black. Go back to colours first.":
            variant(change=lambda x, factors: x * factors),
        "You return colours. A network wants them normalised again.": variant(change=lambda x, factors: (denormalise(x) * factors).clamp(0, 1)),
        "Colours grow beyond 1. Clamp them before you normalise.": variant(change=lambda x, factors: normalised(denormalise(x) * factors)),
        "You clamp after you have normalised, where most numbers are not between 0 and 1. Clamp the colours.":
            variant(change=lambda x, factors: normalised(denormalise(x) * factors).clamp(0, 1)),
        "One factor for the whole batch. Each image needs its own.": variant(lambda low, high, xb: evenly(low, high, 1)),
        "Each colour channel has a factor of its own, which changes the hues. One for the whole image, please.":
            variant(lambda low, high, xb: evenly(low, high, len(xb), 3, 1, 1)),
        "Each pixel has a factor of its own, which is noise. One for the whole image, please.":
            variant(lambda low, high, xb: evenly(low, high, *xb.shape)),
        "The factors are drawn once, when brightness is called, so each batch gets the same. Draw them inside of transform.": drawn_once,
        "Your factors go from 0 to 1, whatever low and high are.": variant(lambda low, high, xb: one_an_image(0, 1, xb)),
        "Your factors go from low to low + high. The width of the range is high − low.":
            variant(lambda low, high, xb: one_an_image(low, low + high, xb)),
        "Every image gets the factor in the middle. Draw one at random for each.":
            variant(lambda low, high, xb: torch.tensor((low + high) / 2)),
        "A transform returns both: images and targets.": variant(gives=lambda out, yb: out),
        "You change the batch that was given, which may be a part of the data set. Make a new tensor.": in_place},
    cases=batches, run=run_brightness, truth=by_hand, tolerance=1e-4,
    why="Darker and lighter mean factors of light, so the image has to be in colours, where 0 is black. A factor of the shape "
        "[n, 1, 1, 1] spreads over all channels and pixels of its image.")

EXERCISES = [BRIGHTNESS]
