"""The exercises of chapter 13."""
import torch
import torch.nn.functional as F

from .core import Exercise




# 1. A transform of your own

class Negative:
    "Make each image its negative, 1 - x, with probability p."
    def __init__(self, p): self.p = p

    def __call__(self, xb, yb):
        which = torch.rand(len(xb), device=xb.device) < self.p
        return torch.where(which.view(-1, 1, 1, 1), 1 - xb, xb), yb


def batches_to_turn(rng):
    seed = lambda: rng.randrange(2 ** 40)
    sizes = [(0., 50), (1., 50), (.5, 60), (rng.uniform(.15, .3), 1000), (rng.uniform(.7, .85), 1000)]
    return [{"p": p, "images": n, "_seed": seed(), "_shape": (n, rng.choice((1, 3)), 3, rng.randrange(3, 6))}
            for p, n in rng.sample(sizes, len(sizes))]


def turn_and_look(answer, p, images, _seed, _shape):
    torch.manual_seed(_seed)
    x, y = torch.rand(_shape), torch.randint(10, (images,))
    given, targets, draws = x.clone(), y.clone(), []
    for _ in range(2):
        found, labels = answer(p)(x, y)
        same, turned = ((found - other).abs().flatten(1).amax(1) < 1e-6 for other in (given, 1 - given))
        draws.append(turned)
    share = turned.float().mean().item()
    return {"the images given are as before": torch.equal(x, given), "the targets are as before": torch.equal(labels, targets),
            "each image is itself or its negative": (same | turned).all().item(),
            "about the share p is negative": abs(share - p) < (1e-6 if p in (0, 1) else .3 if images < 100 else .08),
            "each image has a draw of its own": (0 < share < 1) == (0 < p < 1),
            "the next batch has other draws": torch.equal(*draws) == (p in (0, 1))}


def as_asked(p, images, _seed, _shape):
    return {"the images given are as before": True, "the targets are as before": True,
            "each image is itself or its negative": True, "about the share p is negative": True,
            "each image has a draw of its own": True, "the next batch has other draws": True}


def negative_with(draw, turn=lambda which, x: torch.where(which.view(-1, 1, 1, 1), 1 - x, x)):
    def call(self, xb, yb): return turn(draw(self, xb), xb), yb
    return type("Negative", (Negative,), {"__call__": call})


def one_coin(self, x): return (torch.rand(1) < self.p).expand(len(x))


def for_each(self, x): return torch.rand(len(x)) < self.p


def in_place(which, x):
    x[which] = 1 - x[which]
    return x


NEGATIVE = Exercise(
    "13", Negative, '''
class Negative:
    "Make each image its negative, 1 - x, with probability p."
    def __init__(self, p): self.p = p

    def __call__(self, xb, yb): return xb, yb                # change xb
''',
    hints=("Draw a number for each image, torch.rand(len(xb)), and compare it with p.",
           "torch.where(which.view(-1, 1, 1, 1), 1 - xb, xb) chooses image by image, and changes neither."),
    mistakes={
        "One coin for the whole batch: all images turn, or none. Draw a number for each image.": negative_with(one_coin),
        "The batch that was given has changed. Make a new one: whoever holds the old one still needs it.":
            negative_with(for_each, in_place),
        "A coin for each pixel: no image is whole any more. Draw one number for each image.":
            negative_with(lambda self, x: torch.rand(x.shape) < self.p, lambda which, x: torch.where(which, 1 - x, x)),
        "The probability is ½ whatever p is.": negative_with(lambda self, x: torch.rand(len(x)) < .5),
        "The other way round: with probability p an image stays as it was.": negative_with(lambda self, x: torch.rand(len(x)) >= self.p),
        "The negative of a value from 0 to 1 is 1 - x, not -x.": negative_with(
            for_each, lambda which, x: torch.where(which.view(-1, 1, 1, 1), -x, x))},
    cases=batches_to_turn, run=turn_and_look, truth=as_asked,
    why="A number for each image decides, torch.where takes the negative or the image, and nothing that was given changes.")


# 2. The share of a box

def box_share(height, width, row, column, half_h, half_w):
    "The share of an image that lies in the box of rows row - half_h up to row + half_h, etc."
    rows = max(0, min(height, row + half_h) - max(0, row - half_h))
    columns = max(0, min(width, column + half_w) - max(0, column - half_w))
    return rows * columns / (height * width)


def some_boxes(rng):
    found = []
    for kind in ("inside", "top left", "bottom right", "all", "any", "none"):
        height, width = rng.randrange(8, 20), rng.randrange(21, 40)
        half_h, half_w = (rng.randrange(2, 4), rng.randrange(3, 6)) if kind != "all" else (40, 50)
        row, column = {"inside": (4, 10), "top left": (0, 1), "bottom right": (height - 1, width - 1), "all": (5, 5),
                       "any": (rng.randrange(height), rng.randrange(width)), "none": (4, 10)}[kind]
        if kind == "none": half_h = 0
        found.append({"height": height, "width": width, "row": row, "column": column, "half_h": half_h, "half_w": half_w})
    return found


def counted_pixels(height, width, row, column, half_h, half_w):
    inside = [row - half_h <= i < row + half_h and column - half_w <= j < column + half_w
              for i in range(height) for j in range(width)]
    return {"the share": sum(inside) / (height * width)}


def share_with(rows, columns, share=lambda area, whole: area / whole):
    def box_share(height, width, row, column, half_h, half_w):
        return share(rows(height, row, half_h) * columns(width, column, half_w), height * width)
    return box_share


def cut(side, middle, half): return max(0, min(side, middle + half) - max(0, middle - half))


BOX_SHARE = Exercise(
    "13", box_share, '''
def box_share(height, width, row, column, half_h, half_w):
    "The share of an image that lies in the box of rows row - half_h up to row + half_h, etc."
    return 4 * half_h * half_w / (height * width)            # and where the border cuts it off?
''',
    hints=("The first row of the box inside of the image is max(0, row - half_h). Which one is the last?",
           "rows = min(height, row + half_h) - max(0, row - half_h), columns likewise; the share is their product by the image's."),
    mistakes={
        "The box is cut off at the top and at the left, but may still reach beyond the bottom and the right border.":
            share_with(*[lambda side, middle, half: middle + half - max(0, middle - half)] * 2),
        "The box is cut off at the bottom and at the right, but may still begin above row 0 or before column 0.":
            share_with(*[lambda side, middle, half: min(side, middle + half) - (middle - half)] * 2),
        "That is the share of the first image, what the box leaves. Asked is the box's own.":
            share_with(cut, cut, lambda area, whole: 1 - area / whole),
        "That is the number of pixels, not their share: divide by height · width.": share_with(cut, cut, lambda area, whole: area),
        "The row after the last one counts as well: from row - half_h up to, but without, row + half_h.":
            share_with(*[lambda side, middle, half: max(0, min(side, middle + half + 1) - max(0, middle - half))] * 2)},
    cases=some_boxes, run=lambda answer, **case: {"the share": answer(**case)}, truth=counted_pixels,
    why="λ is drawn before anybody knows where the box lies. The border cuts off what sticks out, so the pixels decide: the "
        "share is counted from what is left.")


# 3. Anywhere, the end included

def inserted(words, word, generator):
    "A new list: the words, and this word anywhere among them, each place equally likely."
    place = torch.randint(len(words) + 1, (), generator=generator).item()
    return words[:place] + [word] + words[place:]


def sentences(rng):
    return [{"words": [f"w{i}" for i in range(n)], "word": "new", "_seed": rng.randrange(2 ** 30)} for n in (1, 2, rng.randrange(3, 6))]


def insert_and_look(answer, words, word, _seed):
    n, generator, before, places, others = len(words), torch.Generator().manual_seed(_seed), list(words), [], True
    for _ in range(1000):
        found = answer(words, word, generator)
        others = others and found.count(word) == 1 and [w for w in found if w != word] == before
        places.append(found.index(word) if word in found else None)
        if words != before: break
    counts, mean = [places.count(i) for i in range(n + 1)], 1000 / (n + 1)
    return {"the list that was given is as before": words == before, "the other words stay, in their order": others,
            "the places it comes to": [i for i in range(n + 1) if counts[i]],
            "all of them about equally often": all(abs(count - mean) < 4.5 * (mean * n / (n + 1)) ** .5 for count in counts)}


def anywhere(words, word, _seed):
    return {"the list that was given is as before": True, "the other words stay, in their order": True,
            "the places it comes to": list(range(len(words) + 1)), "all of them about equally often": True}


def never_at_the_end(words, word, generator):
    place = torch.randint(len(words), (), generator=generator).item()
    return words[:place] + [word] + words[place:]


def into_the_list(words, word, generator):
    words.insert(torch.randint(len(words) + 1, (), generator=generator).item(), word)
    return words


def over_a_word(words, word, generator):
    place = torch.randint(len(words), (), generator=generator).item()
    return words[:place] + [word] + words[place + 1:]


INSERTED = Exercise(
    "13", inserted, '''
def inserted(words, word, generator):
    "A new list: the words, and this word anywhere among them, each place equally likely."
    place = torch.randint(len(words), (), generator=generator).item()
    return words[:place] + [word] + words[place:]            # something is missing
''',
    hints=("Between and around n words, how many places are there?",
           "torch.randint(n, ()) draws from 0 to n - 1. With three words the new one can stand at 0, 1, 2 and 3."),
    mistakes={
        "It never comes to the front: torch.randint(low, high) begins at low.": lambda words, word, generator: (
            lambda place: words[:place] + [word] + words[place:])(torch.randint(1, len(words) + 1, (), generator=generator).item()),
        "The list that was given has grown. Make a new one.": into_the_list,
        "It takes the place of another word. Insertion keeps them all.": over_a_word,
        "Always at the end: draw its place.": lambda words, word, generator: [*words, word]},
    cases=sentences, run=insert_and_look, truth=anywhere,
    why="n words have n + 1 places around them. The first program for easy data augmentation drew from n, so nothing was ever "
        "put at the end of a sentence.")


# 4. MixUp from a blank page

class MyMixUp:
    "λ of each image and 1 - λ of a partner from the batch, targets likewise; λ from Beta(α, α)."
    def __init__(self, n_classes, alpha): self.n_classes, self.alpha = n_classes, alpha

    def __call__(self, xb, yb):
        lam = torch.distributions.Beta(self.alpha, self.alpha).sample()
        shares, other = F.one_hot(yb, self.n_classes).float(), torch.randperm(len(xb))
        return lam * xb + (1 - lam) * xb[other], lam * shares + (1 - lam) * shares[other]


RIGHT = "mixed as the images are"


def batches_to_mix(rng):
    return [{"n_classes": rng.randrange(8, 30), "alpha": alpha, "_seed": rng.randrange(2 ** 40)} for alpha in rng.sample((.3, 3.), 2)]


def mix_and_look(answer, n_classes, alpha, _seed):
    "Each image has one bright pixel of its own, so that a mixture tells who is in it, and with which weight."
    torch.manual_seed(_seed)
    n = 8
    x, y = torch.eye(n).view(n, 1, 2, 4), torch.randperm(n_classes)[:n]  # each of a class of its own
    given, labels, shares = x.clone(), y.clone(), F.one_hot(y, n_classes).float()
    found = {"the images given are as before": True, "the targets given are as before": True,
             "weights of an image: they sum to 1": True, "two images in each, itself and a partner": True,
             "one λ for the whole batch": True}
    lams, partners, wrong, transform = [], set(), [], answer(n_classes, alpha)
    for _ in range(100):
        mixed, targets = transform(x, y)
        found["the images given are as before"] &= torch.equal(x, given)
        found["the targets given are as before"] &= torch.equal(y, labels)
        x, y = given.clone(), labels.clone()
        weights = mixed.reshape(n, n)
        other = (weights - torch.diag(weights.diag())).argmax(1)
        alone = weights.diag() > 1 - 1e-4
        found["weights of an image: they sum to 1"] &= torch.allclose(weights.sum(1), torch.ones(n), atol=1e-4)
        found["two images in each, itself and a partner"] &= ((weights > 1e-6).sum(1) <= 2).all().item()
        rest = weights.diag()[~alone]
        found["one λ for the whole batch"] &= len(rest) < 2 or bool(rest.max() - rest.min() < 1e-4)
        swapped = torch.where(alone[:, None], shares, shares + shares[other] - weights @ shares)
        known = {RIGHT: weights @ shares, "as they were": shares, "mixed with λ and 1 - λ swapped": swapped}
        fits = lambda right: targets.shape == right.shape and torch.allclose(targets.float(), right, atol=1e-4)
        name = next((name for name, right in known.items() if fits(right)), "something else")
        if name != RIGHT: wrong.append(name)
        if len(rest): lams.append(rest.mean().item())
        partners.add(tuple(other.tolist()))
    spread = torch.tensor(lams).var().item() * 4 * (2 * alpha + 1) if len(lams) > 1 else 0
    return found | {"the targets are": max(wrong, key=wrong.count) if wrong else RIGHT, "partners are drawn anew": len(partners) > 50, "λ is as spread as Beta(α, α)": .5 < spread < 1.6}


def as_in_the_paper(n_classes, alpha, _seed):
    return dict.fromkeys(["the images given are as before", "the targets given are as before",
                          "weights of an image: they sum to 1", "two images in each, itself and a partner",
                          "one λ for the whole batch", "partners are drawn anew", "λ is as spread as Beta(α, α)"],
                         True) | {"the targets are": RIGHT}


def mixup_with(mix_x=lambda x, lam, other: lam * x + (1 - lam) * x[other], targets=lambda t, lam, other: lam * t + (1 - lam) * t[other],
               draw=lambda alpha: torch.distributions.Beta(alpha, alpha).sample(), partner=torch.randperm):
    def call(self, xb, yb):
        lam, other = draw(self.alpha), partner(len(xb))
        return mix_x(xb, lam, other), targets(F.one_hot(yb, self.n_classes).float(), lam, other)
    return type("MyMixUp", (MyMixUp,), {"__call__": call})


def twice(x, lam, other): return x.mul_(lam).add_((1 - lam) * x[other])


def first_changed(x, lam, other):
    first = (1 - lam) * x[other]
    return x.mul_(lam).add_(first)


MY_MIXUP = Exercise(
    "13", MyMixUp, '''
class MyMixUp:
    "λ of each image and 1 - λ of a partner from the batch, targets likewise; λ from Beta(α, α)."
    def __init__(self, n_classes, alpha): self.n_classes, self.alpha = n_classes, alpha

    def __call__(self, xb, yb): return xb, yb                # replace this
''',
    hints=("Three things are drawn or made first: λ, the partners, and the targets as shares, F.one_hot(yb, n_classes).float().",
           "lam = torch.distributions.Beta(alpha, alpha).sample(), other = torch.randperm(len(xb)); then lam * t + (1 - lam) * t[other] "
           "for images and for shares."),
    mistakes={
        "The partner is scaled twice: mul_ has changed it before it is added. This is timm's bug of 2019.": mixup_with(twice),
        "The images are mixed rightly, but in place: the batch that was given has changed.": mixup_with(first_changed),
        "The targets get partners of their own. Image and target need the same partner.":
            mixup_with(targets=lambda t, lam, other: (lambda o: lam * t + (1 - lam) * t[o])(torch.randperm(len(t)))),
        "The targets are not mixed. A mixed image needs a mixed target.": mixup_with(targets=lambda t, lam, other: t),
        "λ and 1 - λ are swapped in the targets.": mixup_with(targets=lambda t, lam, other: (1 - lam) * t + lam * t[other]),
        "The partner is always the next image. Draw a permutation anew for each batch.":
            mixup_with(partner=lambda n: torch.arange(n).roll(1)),
        "λ is drawn evenly from 0 to 1, whatever alpha is.": mixup_with(draw=lambda alpha: torch.rand(()))},
    cases=batches_to_mix, run=mix_and_look, truth=as_in_the_paper,
    why="One λ and one permutation a batch. Images and targets are mixed by the same line, so they cannot disagree.")

EXERCISES = [NEGATIVE, BOX_SHARE, INSERTED, MY_MIXUP]
