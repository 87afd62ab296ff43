"""The exercises of chapter 01."""
import torch

from ..data import TensorLoader
from .core import Exercise, random_tensor

# 1. Balance

def class_counts(loader):
    "Counts `[10]` of the classes in one pass."
    return sum(torch.bincount(yb, minlength=10) for _, yb in loader)


def loaders(rng):
    "Small loaders whose last batch is smaller, or dropped; some classes are missing."
    found = []
    for drop_last in (False, True, False, True):
        batch_size = rng.randint(6, 9)
        n = batch_size * rng.randint(3, 5) + rng.randint(1, batch_size - 1)
        found.append({"_targets": [9, 9, *(rng.choice([0, 1, 3, 4, 7]) for _ in range(n - 2))],
                      "batch_size": batch_size, "drop_last": drop_last})
    return found


def count_them(answer, _targets, batch_size, drop_last):
    loader = TensorLoader(torch.zeros(len(_targets), 1), torch.tensor(_targets), batch_size, drop_last=drop_last)
    counts = answer(loader)
    return {"the tensor of counts": counts, "the number of passes": loader.epoch}


def counted_by_hand(_targets, batch_size, drop_last):
    if drop_last: _targets = _targets[:len(_targets) // batch_size * batch_size]
    return {"the tensor of counts": torch.tensor([_targets.count(i) for i in range(10)]), "the number of passes": 1}


def last_batch(loader):
    for _, yb in loader: counts = torch.bincount(yb, minlength=10)
    return counts


def first_batch(loader):
    for _, yb in loader: return torch.bincount(yb, minlength=10)


def one_a_batch(loader):
    counts = torch.zeros(10, dtype=torch.long)
    for _, yb in loader: counts[yb] += 1
    return counts


def without_missing_classes(loader): return torch.cat([yb for _, yb in loader]).unique(return_counts=True)[1]


CLASS_COUNTS = Exercise(
    "01", class_counts, '''
def class_counts(loader):
    "Counts `[10]` of the classes in one pass."
    return torch.zeros(10, dtype=torch.long)     # replace this
''',
    hints=("What does a loader hand out, and which half of it do you need?",
           "torch.bincount(yb, minlength=10) counts one batch. Add up those of all batches.",
           "return sum(… for _, yb in loader): sum can add tensors."),
    mistakes={
        "You count the last batch only. Add up the counts of all batches.": last_batch,
        "You return after the first batch. Add up the counts of all batches.": first_batch,
        "A batch without the highest classes gives a shorter tensor. With minlength=10 bincount always gives ten numbers.":
            lambda loader: sum(torch.bincount(yb) for _, yb in loader),
        "A class that does not occur has to count 0, and you leave it out. bincount with minlength=10 keeps its place.":
            without_missing_classes,
        "You count what the loader holds. Count what a pass deals out: with drop_last some items stay behind.":
            lambda loader: torch.bincount(loader.y, minlength=10),
        "counts[yb] += 1 adds a single 1 for each class in the batch, however often it occurs there. bincount counts.": one_a_batch,
        "Those are shares. How many of each class, please, in whole numbers.":
            lambda loader: (counts := class_counts(loader)) / counts.sum()},
    cases=loaders, run=count_them, truth=counted_by_hand,
    why="Each batch gives ten counts, and tensors of the same shape can be added. class_counts(dls.train) shows "
        "whether a class is rare. On a GPU nothing has to be moved: bincount works where yb is.")


# 2. Through the looking-glass

def mirror(xb, yb):
    "Images, about half of them mirrored, and the same targets."
    coin = torch.randint(2, (len(xb), 1, 1, 1), device=xb.device).bool()
    return torch.where(coin, xb.flip(-1), xb), yb


N_CALLS = 20


def look_into(answer, n_images, _shape, _seed):
    "What comes out of twenty calls with the same images."
    draws = torch.Generator().manual_seed(_seed)
    torch.manual_seed(_seed)
    images, targets = torch.rand(n_images, *_shape, generator=draws), torch.randint(10, (n_images,), generator=draws)
    kinds, mirrored, targets_kept, images_kept = set(), [], True, True
    ways = {"as they were": images, "mirrored": images.flip(-1), "upside down": images.flip(-2)}
    for _ in range(N_CALLS):
        xb, yb = answer(given := images.clone(), targets.clone())
        images_kept &= torch.equal(given, images)
        if xb.shape != images.shape: return {"the shape of the images": list(xb.shape)}
        is_it = {way: (xb == wanted).flatten(1).all(1) for way, wanted in ways.items()}
        kinds |= {way for way, found in is_it.items() if found.any()}
        if not sum(is_it.values()).all(): kinds.add("mixed up")
        targets_kept &= isinstance(yb, torch.Tensor) and torch.equal(yb, targets)
        mirrored.append(is_it["mirrored"])
    share = torch.stack(mirrored).float().mean()
    all_or_none = any(found.all() or not found.any() for found in mirrored)
    return {"the shape of the images": list(images.shape), "what the images are afterwards": ", ".join(sorted(kinds)),
            "what is mirrored in a call": "all or none" if all_or_none else "less than half" if share < .45 else
            "more than half" if share > .55 else "about half",
            "other images are mirrored in the next call": any(not torch.equal(found, mirrored[0]) for found in mirrored),
            "the targets stay as they are": targets_kept, "the batch that was given stays as it is": images_kept}


def looking_glass(n_images, _shape, _seed):
    "What the task says."
    return {"the shape of the images": [n_images, *_shape], "what the images are afterwards": "as they were, mirrored",
            "what is mirrored in a call": "about half", "other images are mirrored in the next call": True,
            "the targets stay as they are": True, "the batch that was given stays as it is": True}


def flipped(coin, axis=-1): return lambda xb, yb: (torch.where(coin(xb), xb.flip(axis), xb), yb)
def coins(xb): return torch.rand(len(xb), 1, 1, 1) < .5


MIRROR = Exercise(
    "01", mirror, '''
def mirror(xb, yb):
    "Images, about half of them mirrored, and the same targets."
    return xb, yb                                # replace this
''',
    hints=("What are the four axes of xb, and which of them runs from left to right? How many coins do you need?",
           "xb.flip(-1) mirrors them all. torch.rand(len(xb), 1, 1, 1, device=xb.device) < .5 tosses a coin for each image.",
           "torch.where(coin, a, b) takes from a where the coin is True and from b elsewhere."),
    mistakes={
        "You mirror every image. Each is to be mirrored with probability one half.": lambda xb, yb: (xb.flip(-1), yb),
        "One coin decides for the whole batch. Toss one for each image: a tensor of len(xb) of them.":
            flipped(lambda xb: torch.rand(()) < .5),
        "Yours stand on their heads. The last axis runs from left to right, the one before it from top to bottom.": flipped(coins, -2),
        "You toss a coin for each pixel, which mixes an image with its mirror image. One for each image: [n, 1, 1, 1].":
            flipped(lambda xb: torch.rand_like(xb) < .5),
        "The same images are mirrored in every call. Toss the coins anew each time, without a fixed seed.":
            flipped(lambda xb: (torch.arange(len(xb)) % 2 == 0).view(-1, 1, 1, 1)),
        "Fewer than half are mirrored. Is your coin fair?": flipped(lambda xb: torch.rand(len(xb), 1, 1, 1) < .25),
        "More than half are mirrored. Is your coin fair?": flipped(lambda xb: torch.rand(len(xb), 1, 1, 1) < .75),
        "You changed the order of the images (the first axis). Mirror each image in itself.": flipped(coins, 0),
        "A transform returns both, images and targets: return …, yb.": lambda xb, yb: mirror(xb, yb)[0],
        "The targets have changed too. Mirrored or not, an image keeps its target.": lambda xb, yb: (mirror(xb, yb)[0], yb.flip(0)),
        "Your batch has grown. Each image is to come once, either mirrored or not.":
            lambda xb, yb: (torch.cat([xb, xb.flip(-1)]), torch.cat([yb, yb]))},
    cases=lambda rng: [{"n_images": rng.randint(250, 300), "_shape": (2, rng.randint(3, 4), 5), "_seed": rng.randrange(2 ** 40)}
                       for _ in range(2)],
    run=look_into, truth=looking_glass,
    why="A coin for each image, [n, 1, 1, 1], holds for all its pixels. And the prediction? Over ten paired seeds, a network that knows "
        "100 images of MNIST loses about four points by it (from 1.4 to 5.6 points less are right): nobody writes a mirrored 2 or 7, so "
        "half of what it trains on is nothing that it will ever be asked about.")


# 3. A tidy data set

def sorted_by_class(x, y):
    "The same items in the order of their targets."
    rows = y.argsort()
    return x[rows], y[rows]


def in_classes(x, y):
    "Images and targets by class and, within a class, by their first pixel: any order within a class will do."
    order = sorted(range(len(y)), key=lambda i: (y[i].item(), x[i].flatten()[0].item()))
    return torch.stack([x[i] for i in order])


def sort_them(answer, n_items, _x, _y):
    x, y = _x.clone(), _y.clone()
    images, targets = answer(x, y)
    return {"the order of the targets": targets.clone(), "the images of each class": in_classes(images, targets),
            "x itself afterwards": x, "y itself afterwards": y}


def sorted_by_hand(n_items, _x, _y):
    return {"the order of the targets": torch.tensor(sorted(_y.tolist())), "the images of each class": in_classes(_x, _y),
            "x itself afterwards": _x, "y itself afterwards": _y}


def some_items(rng):
    found = []
    for _ in range(3):
        n = rng.randint(20, 40)
        y = [*range(10), *(rng.randrange(10) for _ in range(n - 10))]
        rng.shuffle(y)
        found.append({"n_items": n, "_x": random_tensor(rng, n, 1, 2, 3), "_y": torch.tensor(y)})
    return found


def changes_the_original(x, y):
    rows = y.argsort()
    x.copy_(x[rows])
    y.copy_(y[rows])
    return x, y


SORTED_BY_CLASS = Exercise(
    "01", sorted_by_class, '''
def sorted_by_class(x, y):
    "The same items in the order of their targets."
    return x, y                                  # replace this
''',
    hints=("How do you pick rows of x and of y in an order of your own?",
           "x[rows] picks rows in any order. Which row numbers bring the zeros first, then the ones, and so on?",
           "rows = y.argsort(): the row numbers in the order of the targets."),
    mistakes={
        "You sorted the targets and left the images where they were, so they no longer belong together.": lambda x, y: (x, y.sort()[0]),
        "You sorted the images and left the targets where they were, so they no longer belong together. Use the same rows for both.":
            lambda x, y: (x[y.argsort()], y),
        "Return both, images and targets.": lambda x, y: x[y.argsort()],
        "You sorted the images by their pixels, each pixel by itself. They are to move along with their targets.":
            lambda x, y: (x.sort(0)[0], y.sort()[0]),
        "Yours begin with the nines. First all zeros, please.": lambda x, y: (x[y.argsort(descending=True)], y.sort(descending=True)[0]),
        "You reversed the order of the items and did not sort them.": lambda x, y: (x.flip(0), y.flip(0)),
        "You picked with where each row goes to. x[rows] wants to know where each row comes from, and that is y.argsort() itself.":
            lambda x, y: (x[y.argsort().argsort()], y[y.argsort().argsort()]),
        "Images first, then targets: you return them the other way round.": lambda x, y: sorted_by_class(x, y)[::-1],
        "The nines are missing: range(9) ends with 8.":
            lambda x, y: (torch.cat([x[y == i] for i in range(9)]), torch.cat([y[y == i] for i in range(9)])),
        "You changed the data set that you were given. Return new tensors, as x[rows] makes them.": changes_the_original},
    cases=some_items, run=sort_them, truth=sorted_by_hand,
    why="The same rows for both keep the pairs together. And the prediction? After one pass over 5,000 sorted images of MNIST, the "
        "network is right on 10 %, and with shuffling on 84 % (means of ten seeds). At the end it sees nothing but nines, and forgets "
        "all the rest. That is why a loader shuffles.")


# 4. A loader from a blank page

class MyLoader:
    def __init__(self, x, y, batch_size, seed=0):
        self.x, self.y, self.batch_size, self.seed, self.epoch = x, y, batch_size, seed, 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)))
        self.epoch += 1
        for rows in torch.randperm(len(self.x), generator=generator).split(self.batch_size): yield self.x[rows], self.y[rows]


def deal(loader, x):
    "A pass: the order of the items, the sizes of the batches, and whether images and targets belong together."
    batches = [(xb, yb) for xb, yb in loader]
    return ([row for _, yb in batches for row in yb.tolist()], [len(yb) for _, yb in batches],
            all(torch.equal(xb, x[yb]) for xb, yb in batches))


def cut(order, sizes):
    "The items of each batch, whatever their order."
    rows = iter(order)
    return {frozenset(next(rows) for _ in range(size)) for size in sizes}


def watch_loader(answer, n_items, batch_size, seed, _x):
    y = torch.arange(n_items)                                       # each target says which row it is

    def new(*seeds):
        return answer(_x.clone(), y.clone(), batch_size, *seeds)
    torch.manual_seed(1)
    loader = new(seed)
    before = torch.get_rng_state()
    (first, sizes, pairs), (second, other_sizes, other_pairs) = deal(loader, _x), deal(loader, _x)
    untouched = torch.equal(torch.get_rng_state(), before)
    n_passes = int(loader.epoch)
    loader.epoch = 0
    back = deal(loader, _x)[0]
    torch.manual_seed(2)
    again, other = new(seed), new(seed + 1)
    repeated = [deal(again, _x)[0], deal(again, _x)[0]]
    others = deal(other, _x)[0]
    return {"the sizes of the batches": sizes, "each item comes once in an epoch": sorted(first) == y.tolist(),
            "each image comes with its own target": pairs and other_pairs, "the order of the first epoch is shuffled": first != y.tolist(),
            "the sizes of the batches in the second epoch": other_sizes,
            "the second epoch has another order": second != first,
            "the second epoch has other batches": cut(second, other_sizes) != cut(first, sizes),
            "the same seed gives the same epochs": repeated == [first, second],
            "torch's own random numbers are left alone": untouched,
            "another seed gives another order": others != first,
            "the first epoch of seed + 1 is another than the second of seed": others != second,
            "loader.epoch after two epochs": n_passes, "the first order comes again after loader.epoch = 0": back == first,
            "without a seed it is 0": deal(new(), _x)[0] == deal(new(0), _x)[0]}


def dealt(n_items, batch_size, seed, _x):
    "What the task says."
    sizes = [batch_size] * (n_items // batch_size) + [n_items % batch_size] * (n_items % batch_size > 0)
    return {"the sizes of the batches": sizes, "each item comes once in an epoch": True, "each image comes with its own target": True,
            "the order of the first epoch is shuffled": True, "the sizes of the batches in the second epoch": sizes,
            "the second epoch has another order": True, "the second epoch has other batches": True,
            "the same seed gives the same epochs": True, "torch's own random numbers are left alone": True,
            "another seed gives another order": True, "the first epoch of seed + 1 is another than the second of seed": True,
            "loader.epoch after two epochs": 2, "the first order comes again after loader.epoch = 0": True,
            "without a seed it is 0": True}


def seeded(seed): return torch.Generator().manual_seed(seed)


def loader_with(order=None, batches=None):
    "`MyLoader` with another order, or other batches made of it: a way to be wrong."
    def __iter__(self):
        rows = order(self) if order else torch.randperm(len(self.x), generator=seeded(hash((self.seed, self.epoch))))
        self.epoch += 1
        if batches: yield from batches(self, rows)
        else: yield from ((self.x[part], self.y[part]) for part in rows.split(self.batch_size))
    return type("MyLoader", (MyLoader,), {"__iter__": __iter__})


class OneGenerator(MyLoader):
    def __init__(self, *args):
        super().__init__(*args)
        self.generator = seeded(self.seed)

    def __iter__(self):
        self.epoch += 1
        for rows in torch.randperm(len(self.x), generator=self.generator).split(self.batch_size): yield self.x[rows], self.y[rows]


class OnceOnly(MyLoader):
    def __init__(self, *args):
        super().__init__(*args)
        self.batches = MyLoader.__iter__(self)

    def __iter__(self):
        return self.batches


class CountsNothing(MyLoader):
    def __iter__(self):
        batches = list(MyLoader.__iter__(self))
        self.epoch = 0
        return iter(batches)


def seeds_torch(self):
    torch.manual_seed(hash((self.seed, self.epoch)))
    return torch.randperm(len(self.x))


def shuffled_batches(self, rows):
    parts = torch.arange(len(self.x)).split(self.batch_size)
    for i in torch.randperm(len(parts), generator=seeded(hash((self.seed, self.epoch)))): yield self.x[parts[i]], self.y[parts[i]]


def two_orders(self, rows):
    return zip(self.x[rows].split(self.batch_size), self.y[rows.flip(0)].split(self.batch_size))


def whole_batches(self, rows):
    return ((self.x[part], self.y[part]) for part in rows.split(self.batch_size) if len(part) == self.batch_size)


MY_LOADER = Exercise(
    "01", MyLoader, '''
class MyLoader:
    def __init__(self, x, y, batch_size, seed=0): ...
    def __iter__(self): ...                      # replace these
''',
    hints=("How do you get all row numbers in a random order, and how do you cut them into batches? On what must the order depend?",
           "torch.randperm(n, generator=…) with a generator of your own, whose seed is made of self.seed and self.epoch; then split.",
           "generator = torch.Generator().manual_seed(…), and self.epoch += 1. After that a for loop with yield."),
    mistakes={
        "Every epoch has the same order. Let it depend on self.epoch as well.":
            loader_with(lambda self: torch.randperm(len(self.x), generator=seeded(self.seed))),
        "You draw from torch's own random numbers, which everybody shares. Give randperm a generator that is seeded.":
            loader_with(lambda self: torch.randperm(len(self.x))),
        "You seed torch's own random numbers, and whoever draws from them afterwards draws something else. Take a Generator.":
            loader_with(seeds_torch),
        "With seed + epoch the second epoch of seed 0 is the first one of seed 1. Mix them in another way.":
            loader_with(lambda self: torch.randperm(len(self.x), generator=seeded(self.seed + self.epoch))),
        "The seed plays no part.": loader_with(lambda self: torch.randperm(len(self.x), generator=seeded(self.epoch))),
        "Your generator goes on from epoch to epoch, so nobody can go back to an earlier one. Make one in each epoch, from seed and "
        "epoch.": OneGenerator,
        "Your epochs are not counted, so all have the same order. Each pass has to make self.epoch larger by 1.": CountsNothing,
        "Your batches can be gone through only once. __iter__ has to begin a new pass each time.": OnceOnly,
        "You shuffle the batches, and each holds the same items every time. Shuffle the items, then cut.":
            loader_with(batches=shuffled_batches),
        "Images and targets come in different orders. Use the same rows for both.": loader_with(batches=two_orders),
        "The last batch is missing, the one that is smaller. Every item has to come.": loader_with(batches=whole_batches),
        "Some items come twice and others not at all. Deal them out: randperm, not randint.":
            loader_with(lambda self: torch.randint(len(self.x), (len(self.x),), generator=seeded(hash((self.seed, self.epoch))))),
        "Nothing is shuffled.": loader_with(lambda self: torch.arange(len(self.x)))},
    cases=lambda rng: [{"n_items": size * rng.randint(4, 6) + rng.randint(1, size - 1), "batch_size": size,
                        "seed": rng.randrange(1, 1000), "_x": random_tensor(rng, 60, 2)} for size in (4, 6)],
    run=lambda answer, _x, **case: watch_loader(answer, _x=_x[:case["n_items"]], **case), truth=dealt,
    why="The order is a function of seed and epoch, and of nothing else, so it can be had again. The hash of the pair makes one number "
        "of the two; the chapter multiplies the seed by a large number and adds the epoch.")

EXERCISES = [CLASS_COUNTS, MIRROR, SORTED_BY_CLASS, MY_LOADER]
