"""Steps of a model per second: a grid of models trained at once by `sweep`, against training them one after the other
with torch.optim.

SGD with momentum, learning rate × beta, batches of 64 images, cross entropy, float32, all of a call timed (trial step
and stacking too). One after the other costs the same for every point, so some of them are enough. "vmap(grad)" is what
PyTorch's tutorial on ensembles does, with the same optimizer for all. Layer sizes other than 784-50-10 are drawn at
random; the seed is printed. Then twenty seeds of one setting, each with weights of its own. Before anything is timed,
the losses must agree. The share of the machine's matrix-product rate counts the products that training needs, and
nothing else. Last, the live map of chapter 09: from a moved slider to its first picture and to its last, 100 steps of
64 digits, in the kernel (without the browser).
"""
import asyncio
import itertools
import random
import statistics
import time
from functools import partial

import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from _measure import arguments, ratio, say_machine, table, take_turns
from course_lib.data import digits
from course_lib.support.tensors import default_device
from course_lib.momentum import SGD
from course_lib.figures.sweeps import SweepExplorer
from course_lib.sweeps import mlp, sweep

DEVICE, BATCH_SIZE, CLASSES = default_device(), 64, 10
N_ALONE = 4  # points of the grid that are trained one after the other


def conv_net(norm=False):
    norms = lambda n: [nn.BatchNorm2d(n)] if norm else []
    return nn.Sequential(nn.Conv2d(1, 8, 5, stride=2, padding=2), *norms(8), nn.ReLU(),
                         nn.Conv2d(8, 16, 3, stride=2, padding=1), *norms(16), nn.ReLU(), nn.Flatten(),
                         nn.Linear(784, CLASSES))


def grid(n):
    "Learning rates × betas, n points, tame ones."
    n_betas = 2 ** (n.bit_length() // 2)
    return {"lr": torch.logspace(-3, -1.5, n // n_betas), "beta": torch.linspace(0, .9, n_betas)}


def points(axes): return [(lr.item(), beta.item()) for lr, beta in itertools.product(*axes.values())]


def finish():
    if DEVICE.type == "cuda": torch.cuda.synchronize()


def one_after_the_other(model, batches, some):
    "The losses `[point, step]` of torch.optim.SGD, each point alone."
    start, losses = {name: value.clone() for name, value in model.state_dict().items()}, []
    for lr, beta in some:
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=beta)
        for xb, yb in batches:
            loss = cross_entropy(model(xb), yb)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    model.load_state_dict(start)
    finish()
    return torch.stack(losses).view(len(some), -1)


def all_at_once(model, batches, axes):
    result = sweep(model, cross_entropy, partial(SGD, momentum=.9), batches, len(batches), axes)
    finish()
    return result.loss.flatten(0, 1)


def tutorial(model, batches, axes):
    "vmap over the gradient of one model, as in PyTorch's tutorial; the same steppers."
    n = len(points(axes))
    lr, beta = (torch.tensor(values, device=DEVICE) for values in zip(*points(axes)))
    params = {name: nn.Parameter(p.detach().expand(n, *p.shape).clone()) for name, p in model.named_parameters()}
    optimizer = SGD(params.values(), lr=lr, momentum=.9)
    optimizer.param_groups[0]["beta"] = beta
    loss_of_one = lambda params, xb, yb: cross_entropy(functional_call(model, params, (xb,)), yb)
    step, losses = vmap(grad_and_value(loss_of_one), in_dims=(0, None, None)), []
    for xb, yb in batches:
        gradients, loss = step({name: p.detach() for name, p in params.items()}, xb, yb)
        for name, p in params.items(): p.grad = gradients[name]
        optimizer.step()
        losses.append(loss)
    finish()
    return torch.stack(losses, 1)


def seeds_one_after_the_other(model, batches, seeds):
    "The losses `[seed, step]` of torch.optim.SGD, the weights drawn anew for each."
    losses = []
    for seed in seeds:
        torch.manual_seed(seed)
        for layer in model:
            if isinstance(layer, nn.Linear): layer.reset_parameters()
        losses.append(one_after_the_other(model, batches, [(.03, .9)]))
    return torch.cat(losses)


def measure_seeds(batches, n, repeats):
    "As `measure`, for n seeds of 784-50-10."
    model, half = mlp(784, 50, CLASSES).to(DEVICE), range(N_ALONE)
    together = lambda seeds: sweep(model, cross_entropy, partial(SGD, lr=.03, momentum=.9), batches, len(batches),
                                   {"seed": seeds}).loss
    if DEVICE.type == "cpu":  # elsewhere weights drawn on the device are others
        assert torch.allclose(together(half), seeds_one_after_the_other(model, batches, half), rtol=1e-3, atol=1e-4)

    def all_seeds():
        together(range(n))
        finish()

    contenders = {"one after the other, torch.optim": lambda: seeds_one_after_the_other(model, batches, half),
                  "course_lib: sweep": all_seeds}
    return compare(f"784-50-10, {n} seeds", contenders, n, len(batches), repeats)[0]


def compare(title, contenders, n, n_steps, repeats):
    "Prints a table; returns (median of the rounds' ratios, models' steps per second). Only the first trains but a few."
    times = take_turns(contenders, repeats)
    counts = {name: n_steps * (N_ALONE if "one after" in name else n) for name in contenders}
    speeds = {name: [counts[name] / t for t in values] for name, values in times.items()}
    table(f"{title}, {n_steps} steps", speeds, "steps of a model per second")
    one, many = speeds["one after the other, torch.optim"], speeds["course_lib: sweep"]
    return statistics.median(b / a for a, b in zip(one, many)), statistics.median(many)


def check(model, batches, axes):
    "The first and the last point, and two between, in the first steps."
    picked = torch.linspace(0, len(points(axes)) - 1, N_ALONE).long().tolist()
    alone = one_after_the_other(model, batches[:5], [points(axes)[i] for i in picked])
    assert torch.allclose(all_at_once(model, batches[:5], axes)[picked], alone,
                          rtol=1e-3, atol=1e-4), "the losses differ"


def measure(title, model, batches, n, repeats, with_tutorial=False):
    "Prints a table; returns (median of the rounds' ratios, models' steps per second)."
    axes = grid(n)
    check(model, batches, axes)
    alone = points(axes)[::n // N_ALONE]
    contenders = {"one after the other, torch.optim": lambda: one_after_the_other(model, batches, alone)}
    contenders["course_lib: sweep"] = lambda: all_at_once(model, batches, axes)
    if with_tutorial: contenders["vmap(grad), as in the tutorial"] = lambda: tutorial(model, batches, axes)
    return compare(f"{title}, {n} models", contenders, n, len(batches), repeats)


def product_rate():
    "The machine's own rate for products of the shape of 64 first layers, in multiplications and additions per second."
    x, w = torch.randn(BATCH_SIZE, 784, device=DEVICE), torch.randn(784, 64 * 50, device=DEVICE)

    def products():
        for _ in range(20): x @ w
        finish()

    return 20 * 2 * BATCH_SIZE * 784 * 64 * 50 / statistics.median(take_turns({"": products}, 9)[""])


async def live_map(repeats):
    "Seconds from a moved slider to the first picture and to the last: name -> list."
    explorer, times = SweepExplorer(digits()), {"first picture": [], "all of it": []}
    await explorer.done()
    pictures = []
    explorer.figure.image.observe(lambda change: pictures.append(time.perf_counter()), "value")
    for i in range(repeats):
        pictures.clear()
        start = time.perf_counter()
        explorer.set(lr=.1 * 1.3 ** (i % 2 + 1))
        await explorer.done()
        times["first picture"].append(pictures[0] - start)
        times["all of it"].append(time.perf_counter() - start)
    return explorer.n, times


def main():
    args = arguments(__doc__)
    say_machine("torch", threads=torch.get_num_threads())
    print(f"device: {torch.cuda.get_device_name() if DEVICE.type == 'cuda' else DEVICE}")
    repeats, n_steps = (3, 20) if args.quick else (9, 50)
    torch.manual_seed(0)
    images, labels = (torch.randn(50 * BATCH_SIZE, 1, 28, 28, device=DEVICE),
                      torch.randint(CLASSES, (50 * BATCH_SIZE,), device=DEVICE))
    batches = list(zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE)))[:n_steps]

    ratios, on_gpu = {}, DEVICE.type == "cuda"
    for n in (64, 256, 1024) if on_gpu else (16, 64, 256):
        gain, speed = measure("784-50-10", mlp(784, 50, CLASSES).to(DEVICE), batches, n, repeats, with_tutorial=n == 64)
        goal = {64: ">=2.5", 256: ">=300" if on_gpu else ">=2.2"}.get(n, ">=1")
        ratios[f"sweep_{n}_over_one_after_the_other"] = gain, goal
        if n == 64:
            # forward and weights' gradients; the second layer's input's too
            needed = 2 * BATCH_SIZE * (2 * 784 * 50 + 3 * 50 * CLASSES)
            share = speed * needed / product_rate()
    ratios["sweep_20_seeds_over_one_after_the_other"] = measure_seeds(batches, 20, repeats), ">=2.5"
    seed = random.randrange(10 ** 6)
    draw = random.Random(seed)
    print(f"\nlayer sizes drawn with seed {seed}")
    for depth in (1, 2):
        sizes = [784, *(draw.randint(16, 64) for _ in range(depth)), CLASSES]
        name = "-".join(map(str, sizes))
        ratios[f"sweep_64_random_{depth}_hidden_over_one_after_the_other"] = (
            measure(name, mlp(*sizes).to(DEVICE), batches, 64, repeats)[0], ">=2.5")
    for norm in (False, True):
        gain, _ = measure(f"two convolutions{', batchnorm' if norm else ''}", conv_net(norm).to(DEVICE), batches[:8],
                          64, max(3, repeats // 2))
        ratios[f"sweep_64_conv{'_batchnorm' if norm else ''}_over_one_after_the_other"] = gain, ">=1.0"
    n, times = asyncio.run(live_map(repeats))
    table(f"Live map, {n} × {n} networks, 100 steps",
          {name: [1000 * t for t in values] for name, values in times.items()}, "ms")
    print()
    for name, (value, goal) in ratios.items(): ratio(name, value, goal)
    ratio("sweep_64_share_of_the_matrix_product_rate", share, "-")
    for name, goal in (("first picture", "<=0.3"), ("all of it", "<=1.0")):
        ratio(f"live_map_{name.replace(' ', '_')}_s", statistics.median(times[name]), goal)


if __name__ == "__main__":
    main()
