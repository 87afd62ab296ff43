"""How much can workers that train together leave unsaid? Writes data/results/scaling_out.json.

    python data/scaling_out.py [mnist] [digits]     about half an hour for each on one core; MNIST must be on disk

A network 784-128-10 trains for 160 batches of 128 images, which 2 workers split (with MNIST also 8). What they send
each other differs: the whole gradient at each step, in 32 bits or in 16; low ranks of it (PowerSGD); the gradient of 10
or 40 batches (accumulation, so 16 or 4 steps); the weights every 10 or 40 steps (local SGD, DiLoCo); nothing ("alone":
one worker with its part of each batch). Workers are simulated in one process, all of them and all seeds in one tensor
for each layer; `tests/test_scaling_out.py` holds the simulation against two real processes.

Each way has the rate of highest validation accuracy, the mean over seeds 100 to 102, which are used for nothing else,
with worse ones on both sides; DiLoCo the best pair with an outer rate of 0.1, 0.3, 0.5, 0.7 (the paper's) or 1. It is
judged on 5,000 test images over seeds 0 to 9. Bytes: what a worker sends in all, in a ring: 2 (n − 1) / n of a message.
"""
import sys
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from course_lib import SGD, Adam, TensorLoader, digits, mnist
from course_lib.sgd import seeded
from course_lib.support.data import first_batches
from course_lib.support.results import parts_so_far, save_results

TRY_SEEDS, SEEDS, BATCH, STEPS, WORKERS = range(100, 103), range(10), 128, 160, (2, 8)
LADDER = [float(f"{digit}e{power}") for power in range(-5, 2) for digit in (1, 3)]
OPTIMIZERS = {"momentum": (partial(SGD, momentum=.9), [.03, .1, .3]), "adam": (Adam, [1e-3, 3e-3, 1e-2])}
OUTER_RATES, OUTER_MOMENTUM = [.1, .3, .5, .7, 1.], .9


def small_net(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


class Workers:
    """Networks `[seeds, workers]` side by side; those of a seed begin alike, and each sees its part of the batch.

    `.params`: weights and biases of the layers, `[seeds, workers, out, in]` and `[seeds, workers, 1, out]`.
    """
    def __init__(self, seeds, n, dtype=torch.float32):
        nets = [seeded(seed, small_net).to(dtype) for seed in seeds]
        self.n, self.params = n, []
        for layer in (1, 3):
            for tensor in (torch.stack([net[layer].weight.detach() for net in nets]),
                           torch.stack([net[layer].bias.detach()[None] for net in nets])):
                self.params.append(tensor[:, None].repeat(1, n, 1, 1).requires_grad_())

    def __call__(self, x):
        "Images `[seeds, workers, B, 784]` -> logits `[seeds, workers, B, 10]`."
        for i in (0, 2):
            weight, bias = (p.flatten(0, 1) for p in self.params[i:i + 2])
            shape = x.shape[:2]
            x = torch.baddbmm(bias, (x.relu() if i else x).flatten(0, 1), weight.transpose(1, 2)).unflatten(0, shape)
        return x

    @torch.no_grad()
    def mean(self): return [p.mean(1) for p in self.params]


def mean_of(x): return x.mean(1, keepdim=True).expand_as(x)


class Way:
    "What the workers tell each other. `.payload`: bytes of one worker's message, all messages of the training added."
    every = 1

    def gradients(self, grads): return grads  # of a step
    def after_step(self, step, params): pass
    def payload(self, sizes, steps): return 0


class AllReduce(Way):
    "The mean of the gradients, in numbers of this type."
    def __init__(self, dtype=torch.float32): self.dtype = dtype

    def gradients(self, grads):
        if self.dtype is torch.float32: return [mean_of(grad) for grad in grads]
        return [sum((grad.to(self.dtype) / grad.shape[1]).unbind(1)).to(grad.dtype)[:, None].expand_as(grad)
                for grad in grads]

    def payload(self, sizes, steps): return steps * self.dtype.itemsize * sum(a * b for a, b in sizes)


class Accumulate(AllReduce):
    "A step for so many batches."
    def __init__(self, every):
        super().__init__()
        self.every = every

    def payload(self, sizes, steps): return super().payload(sizes, steps // self.every)


class LowRank(Way):
    "PowerSGD (Vogels, Karimireddy and Jaggi, 2019): a step of power iteration, and what it misses goes into the next."
    def __init__(self, rank, feedback=True, start=None):
        self.rank, self.feedback, self.start, self.state = rank, feedback, start, {}

    def gradients(self, grads): return [self.approximate(i, grad) for i, grad in enumerate(grads)]

    def approximate(self, i, grad):
        seeds, n, rows, columns = grad.shape
        if not self.shrinks(rows, columns): return mean_of(grad)
        if i not in self.state:
            q = torch.randn(columns, self.rank, generator=torch.Generator().manual_seed(i)).to(grad.dtype)
            self.state[i] = (q if self.start is None else self.start[i]).expand(seeds, 1, -1, -1), 0
        q, error = self.state[i]
        grad = grad + error
        p = torch.linalg.qr((grad @ q).mean(1, keepdim=True)).Q
        q = (grad.transpose(2, 3) @ p).mean(1, keepdim=True)
        found = p @ q.transpose(2, 3)
        self.state[i] = q, grad - found if self.feedback else 0
        return found.expand_as(grad)

    def shrinks(self, rows, columns): return rows > 1 and (rows + columns) * self.rank * 2 < rows * columns

    def payload(self, sizes, steps):
        return 4 * steps * sum((a + b) * self.rank if self.shrinks(a, b) else a * b for a, b in sizes)


class Local(Way):
    "Each trains alone, and every so many steps all take the mean of the weights (Stich, 2018)."
    def __init__(self, every): self.interval = every

    def after_step(self, step, params):
        if step % self.interval == 0:
            for i, p in enumerate(params): p.copy_(self.outer_step(i, p, mean_of(p)))

    def outer_step(self, i, p, mean): return mean
    def payload(self, sizes, steps): return steps // self.interval * 4 * sum(a * b for a, b in sizes)


class Outer(Local):
    "DiLoCo (Douillard et al., 2023): the way to that mean is a gradient, for a step with Nesterov's momentum."
    def __init__(self, every, lr, momentum=OUTER_MOMENTUM):
        super().__init__(every)
        self.lr, self.momentum, self.start, self.average = lr, momentum, None, None

    def before(self, params):
        self.start, self.average = [p.detach().clone() for p in params], [0 for _ in params]

    def outer_step(self, i, p, mean):
        grad = self.start[i] - mean
        self.average[i] = self.momentum * self.average[i] + grad
        self.start[i] = self.start[i] - self.lr * (grad + self.momentum * self.average[i])
        return self.start[i]


class Alone(Way):
    "No word: one worker with its part of the batches."


def ways():
    "Name -> rate of an outer step, where it has one -> `Way`."
    made = {"all-reduce": lambda _: AllReduce(), "float16": lambda _: AllReduce(torch.float16),
            **{f"PowerSGD rank {rank}": lambda _, rank=rank: LowRank(rank) for rank in (1, 4)},
            "PowerSGD rank 1, no feedback": lambda _: LowRank(1, feedback=False)}
    for every in (10, 40):
        made[f"accumulation {every}"] = lambda _, every=every: Accumulate(every)
        made[f"local SGD {every}"] = lambda _, every=every: Local(every)
        made[f"DiLoCo {every}"] = lambda lr, every=every: Outer(every, lr)
    return {**made, "alone": lambda _: Alone()}


def train(way, opt_func, lr, batches, seeds, n, dtype=torch.float32):
    "Train `[seeds, n]` networks; batches: a list of (x `[seeds, B, 784]`, y `[seeds, B]`). -> the workers."
    nets = Workers(seeds, n, dtype)
    opt = opt_func(nets.params, lr=lr)
    if hasattr(way, "before"): way.before(nets.params)
    for step, (x, y) in enumerate(batches, 1):
        x, y = (part.unflatten(1, (n, -1)) for part in (x, y))
        pred = nets(x.to(dtype))
        loss = F.cross_entropy(pred.flatten(0, 2), y.flatten(), reduction="sum") / y.shape[2]
        (loss / way.every).backward()
        if step % way.every: continue
        with torch.no_grad():
            for p, grad in zip(nets.params, way.gradients([p.grad for p in nets.params])): p.grad = grad.contiguous()
        opt.step()
        opt.zero_grad()
        with torch.no_grad(): way.after_step(step, nets.params)
    return nets


class Lab:
    def __init__(self, dls):
        self.name, self.dls = dls.name, dls

    def batches(self, seeds):
        "Each seed's batches, its own order, in one tensor for each step."
        loaders = [TensorLoader(self.dls.train.x.flatten(1), self.dls.train.y, BATCH, shuffle=True, drop_last=True,
                                seed=seed + 1000) for seed in seeds]
        for batches in zip(*(first_batches(loader, STEPS) for loader in loaders)):
            yield [torch.stack(parts) for parts in zip(*batches)]

    @torch.no_grad()
    def right(self, nets, part, alone):
        "Accuracies `[seeds]` of the mean of the workers' weights, or of the first of them."
        x, y = part.x[:5000].flatten(1), part.y[:5000]
        weight, bias, weight2, bias2 = (p[:, 0] for p in nets.params) if alone else nets.mean()
        found = torch.baddbmm(bias2, torch.baddbmm(bias, x.expand(len(bias), -1, -1), weight.mT).relu_(), weight2.mT)
        return [round(share, 5) for share in (found.argmax(2) == y).float().mean(1).tolist()]

    def run(self, make, outer, opt, lr, seeds, n, part):
        way = make(outer)
        nets = train(way, OPTIMIZERS[opt][0], lr, self.batches(seeds), seeds, n)
        return self.right(nets, part, isinstance(way, Alone))

    def choose(self, make, opt, n, outer_rates):
        "The best rate, and outer rate, on validation images -> lr, outer, all that was tried."
        tried = {}

        def score(outer, lr):
            if (outer, lr) not in tried:
                runs = self.run(make, outer, opt, lr, TRY_SEEDS, n, self.dls.valid)
                tried[outer, lr] = sum(runs) / len(runs)
            return tried[outer, lr]

        def best_rate(outer):
            rates = list(OPTIMIZERS[opt][1])
            while True:
                lr = max(rates, key=lambda lr: score(outer, lr))
                if lr == max(rates) and lr < LADDER[-1]: rates.append(LADDER[LADDER.index(lr) + 1])
                elif lr == min(rates) and lr > LADDER[0]: rates.append(LADDER[LADDER.index(lr) - 1])
                else: return lr
        rate = {outer: best_rate(outer) for outer in outer_rates}
        outer = max(rate, key=lambda outer: score(outer, rate[outer]))
        return rate[outer], outer, [[*at, round(found, 4)] for at, found in tried.items()]

    def measure(self, opt, n):
        found, sizes = {}, [p.shape[2:] for p in Workers([0], 1).params]
        for name, make in ways().items():
            lr, outer, tried = self.choose(make, opt, n, OUTER_RATES if name.startswith("DiLoCo") else [None])
            runs = self.run(make, outer, opt, lr, SEEDS, n, self.dls.test)
            sent = round(2 * (n - 1) / n * make(outer).payload(sizes, STEPS))
            found[name] = {"lr": lr, "outer_lr": outer, "bytes": sent, "runs": runs, "tried": tried}
            print(f"{self.name} {opt} {n} workers {name:30} lr {lr:g} {outer or '':4} {sent / 1e6:6.2f} MB "
                  f"{100 * sum(runs) / len(runs):.2f}", flush=True)
        return found


def main():
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # some averages of gradients become tiny, which would take four times as long
    start, data, labs = time.perf_counter(), {"mnist": mnist, "digits": digits}, {}
    found = parts_so_far("scaling_out")
    names = sys.argv[1:] or list(data)
    for name, n, opt in [(name, n, opt) for n in WORKERS for name in names for opt in OPTIMIZERS]:
        if n > 2 and name != "mnist": continue  # the digits' parts would be of few images
        sizes = {"n_train": 12_000, "n_valid": 2_000} if name == "mnist" else {}
        if name not in labs: labs[name] = Lab(data[name](batch_size=BATCH, device="cpu", **sizes))
        found.setdefault(name, {}).setdefault(opt, {})[str(n)] = labs[name].measure(opt, n)
        save_results("scaling_out", found, start, f"seeds {SEEDS[0]} to {SEEDS[-1]}", indent=None)


if __name__ == "__main__": main()
