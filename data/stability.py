"""What do clipping and masters buy? Writes data/results/stability.json.

    python data/stability.py [mnist] [digits] [clipping] [rows] [precision] [slower]

Some minutes for each on one core; MNIST must be on disk. What is not named stays as it was measured before.

Clipping: `eight_layers` is trained by plain SGD for 100 batches of 64 images, without clipping and
with four ways of clipping, on the images as they are ("ordinary") and with one wild image in a tenth of the batches
("wild"). Each way takes the limit and the rate of highest validation accuracy, the mean over seeds 100 to 102, which
are used for nothing else, with worse ones on both sides. It is judged on test images over seeds 0 to 9, at all rates.

Rows: the same for `RowReader`, which reads images row by row, for 200 batches.

Precision: `eight_layers` in float32, with weights in 16 bits, and with float32 masters, over seeds 0 to 9.

Slower: is clipping by norm more than a smaller rate? Both networks without clipping, at the rate lr · (mean norm after
clipping) / (mean norm before it), where lr and the norms are those of clipping by norm, over seeds 100 to 102.
"""
import sys
import time
from functools import partial

import torch
import torch.nn.functional as F

from course_lib import TensorLoader, digits, mnist
from course_lib.sgd import first_batches, seeded
from course_lib.stability import (
    LossScaler, RowReader, clip_adaptive, clip_by_history, clip_by_norm, clip_by_value, eight_layers, run_in)
from course_lib.support.gradients import norm_of
from course_lib.support.results import parts_so_far, save_results
from course_lib.support.stability import with_wild_images

TRY_SEEDS, SEEDS, BATCH = range(100, 103), range(10), 64
STEPS = {eight_layers: 100, RowReader: 200}
RATES = [.01, .03, .1, .3, 1., 3.]
LADDER = [float(f"{digit}e{power}") for power in range(-4, 2) for digit in (1, 3)]  # of rates and limits
LIMITS = {"none": [None], "value": [.01, .03, .1], "norm": [1., 3., 10.], "adaptive": [.03, .1, .3],
          "history": [0., 1., 2.]}
SHRINK = 2 ** 18
PARTS = "clipping", "rows", "precision", "slower"


def neighbour(x, places): return LADDER[LADDER.index(x) + places]


def clip_with(way, limit):
    "The function `clip(params)` of a training; history needs a list of its own each time."
    if way == "none": return None
    if way == "value": return lambda params: clip_by_value(params, limit)
    if way == "norm": return lambda params: clip_by_norm(params, limit)
    if way == "adaptive": return lambda params: clip_adaptive(params[:-2], limit)  # not the last layer
    past = []
    return lambda params: clip_by_history(params, past, limit)


class Stacked:
    """Networks of one kind side by side, each parameter of all of them in one tensor, which trains all seeds at once.

    `.views`: for each network its parameters, whose memory, and that of their gradients, is the stack's.
    """
    def __init__(self, make, seeds):
        nets = [seeded(seed, make) for seed in seeds]
        self.forward = {eight_layers: deep, RowReader: by_rows}[make]
        self.tensors = [torch.stack([p.detach() for p in params]).requires_grad_() for params in
                        zip(*(net.parameters() for net in nets))]
        for tensor in self.tensors: tensor.grad = torch.zeros_like(tensor)
        self.views = [[view(tensor, i) for tensor in self.tensors] for i in range(len(nets))]

    def __call__(self, x):
        "Images `[nets, B, 1, 28, 28]` -> `[nets, B, 10]`."
        return self.forward(x, *self.tensors)


def linear(x, weight, bias): return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def deep(x, *params):
    x = F.avg_pool2d(x.flatten(2, 3), 2).flatten(2)
    for i, (weight, bias) in enumerate(zip(params[::2], params[1::2])): x = linear(x.relu() if i else x, weight, bias)
    return x


def by_rows(x, w_in, w_state, b_in, b_state, w_out, b_out):
    n_nets, n, _, n_rows, _ = x.shape
    rows = linear(x.flatten(1, 3), w_in, b_in + b_state).unflatten(1, (n, n_rows))
    state = x.new_zeros(n_nets, n, w_state.shape[1])
    for i in range(n_rows): state = torch.baddbmm(rows[:, :, i], state, w_state.transpose(1, 2)).tanh()
    return linear(state, w_out, b_out)


def view(tensor, i):
    part = tensor.detach()[i]
    part.grad = tensor.grad[i]
    return part


class Lab:
    def __init__(self, dls):
        parts = {"train": dls.train, "valid": dls.valid, "test": dls.test}
        self.name = dls.name
        self.parts = {part: (loader.x, loader.y) for part, loader in parts.items()}

    def batches(self, seed, wild=False, make=eight_layers):
        loader = TensorLoader(*self.parts["train"], BATCH, shuffle=True, drop_last=True, seed=seed + 1000)
        batches = first_batches(loader, STEPS[make])
        return with_wild_images(batches, seed) if wild else batches

    @torch.no_grad()
    def right(self, model, part):
        x, y = self.parts[part]
        return round((model(x[:5000]).argmax(1) == y[:5000]).float().mean().item(), 5)

    def clipped(self, seeds, way, limit, lr, wild, part, make=eight_layers, norms=None):
        "Accuracies `[seeds]` after a training with clipping at this rate; norms: a list for those before clipping."
        nets, clips = Stacked(make, seeds), [clip_with(way, limit) for _ in seeds]
        for batches in zip(*(self.batches(seed, wild, make) for seed in seeds)):
            x, y = (torch.stack(parts) for parts in zip(*batches))
            for tensor in nets.tensors: tensor.grad.zero_()
            pred = nets(x)
            (F.cross_entropy(pred.flatten(0, 1), y.flatten(), reduction="sum") / BATCH).backward()
            for clip, params in zip(clips, nets.views):
                if norms is not None: norms.append(norm_of([p.grad for p in params]).item())
                if clip: clip(params)
            with torch.no_grad():
                for tensor in nets.tensors: tensor -= lr * tensor.grad
        x, y = (values[:5000] for values in self.parts[part])
        with torch.no_grad(): found = nets(x.expand(len(seeds), *x.shape)).argmax(2) == y
        return [round(share, 5) for share in found.float().mean(1).tolist()]

    def choose(self, way, wild, make=eight_layers):
        "The best limit and rate on validation images, with worse ones on both sides -> limit, lr, all that was tried."
        tried = {}

        def score(limit, lr):
            if (limit, lr) not in tried:
                runs = self.clipped(TRY_SEEDS, way, limit, lr, wild, "valid", make)
                tried[limit, lr] = sum(runs) / len(runs)
            return tried[limit, lr]

        def best_rate(limit):
            rates = [.01, .03, .1] if wild and way == "none" else [.03, .1, .3]
            while True:
                lr = max(rates, key=lambda lr: score(limit, lr))
                if lr == max(rates) and lr < LADDER[-1]: rates.append(neighbour(lr, 1))
                elif lr == min(rates) and lr > LADDER[0]: rates.append(neighbour(lr, -1))
                else: return lr
        limits = list(LIMITS[way])
        while True:
            rate = {limit: best_rate(limit) for limit in limits}
            best = max(limits, key=lambda limit: score(limit, rate[limit]))
            if way == "none" or min(limits) < best < max(limits) or best == LADDER[-1]: break
            if way == "history":
                if best == 0: break  # no limit is lower than the mean
                limits.append(best + 1.)
            else: limits.append(neighbour(best, 1 if best == max(limits) else -1))
        tried = [[limit, lr, round(tried[limit, lr], 4)] for limit, lr in
                 sorted(tried, key=lambda pair: (pair[0] or 0, pair[1]))]
        return best, rate[best], tried

    def ways(self, wild, make=eight_layers):
        found = {}
        for way in LIMITS:
            limit, lr, tried = self.choose(way, wild, make)
            rates = sorted({*(RATES[1:] if make is RowReader else RATES), lr})
            runs = [self.clipped(SEEDS, way, limit, rate, wild, "test", make) for rate in rates]
            found[way] = {"limit": limit, "lr": lr, "rates": rates, "runs": runs, "tried": tried}
            at_best = runs[rates.index(lr)]
            print(self.name, wild, way, limit, lr, round(sum(at_best) / len(at_best), 4), tried, flush=True)
        return found

    def clipping(self, so_far): return {"ordinary": self.ways(False), "wild": self.ways(True)}

    def rows(self, so_far): return self.ways(False, RowReader)

    def slower(self, so_far):
        "Without clipping, at the rate whose steps are as long on average as those of clipping by norm."
        found = {}
        parts = {"rows": (RowReader, so_far["rows"]), "deep": (eight_layers, so_far["clipping"]["ordinary"])}
        for name, (make, part) in parts.items():
            limit, lr, norms = part["norm"]["limit"], part["norm"]["lr"], []
            self.clipped(TRY_SEEDS, "norm", limit, lr, False, "valid", make, norms)
            slower = lr * sum(min(norm, limit) for norm in norms) / sum(norms)
            runs = self.clipped(SEEDS, "none", None, slower, False, "test", make)
            found[name] = {"lr": slower, "runs": runs}
            print(self.name, name, found[name], flush=True)
        return found

    def in_16_bits(self, how, seed, lr):
        "Test accuracy after a training in these numbers; `/ n`: the loss is divided by n, the rate multiplied by it."
        model, scaler = seeded(seed, eight_layers), None
        how, _, shrink = how.partition(" / ")
        shrink = float(shrink or 1)
        dtype = torch.bfloat16 if "bfloat16" in how else torch.float16
        run = {"float32": model, "masters": partial(run_in, dtype, model)}.get(how.split()[-1])
        if run is None:
            model = model.to(dtype)
            run = lambda x: model(x.to(dtype))
        if "scaled" in how: scaler = LossScaler(interval=50)
        opt = torch.optim.SGD(model.parameters(), lr * shrink)
        for xb, yb in self.batches(seed):
            opt.zero_grad()
            loss = F.cross_entropy(run(xb).float(), yb) / shrink
            (scaler.scale(loss) if scaler else loss).backward()
            if scaler:
                scaler.step(opt)
                scaler.update()
            else: opt.step()
        return self.right(model.float(), "test")

    def precision(self, so_far):
        found = {}
        hows = {"float32": (.01, .1), "bfloat16 weights": (.01, .1),
                "bfloat16 masters": (.01,), "float16 masters": (.01,),
                f"float16 masters / {SHRINK}": (.01,), f"scaled float16 masters / {SHRINK}": (.01,)}
        for how, rates in hows.items():
            found[how] = {str(lr): [self.in_16_bits(how, seed, lr) for seed in SEEDS] for lr in rates}
            print(self.name, how, {lr: round(sum(runs) / len(runs), 4) for lr, runs in found[how].items()}, flush=True)
        return found


def main():
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # some nets' gradients become tiny, which would take ten times as long
    start, data = time.perf_counter(), {"mnist": mnist, "digits": digits}
    asked = [part for part in PARTS if part in sys.argv[1:]] or PARTS
    for name in [name for name in data if name in sys.argv[1:]] or data:
        sizes = {"n_train": 12_000, "n_valid": 2_000} if name == "mnist" else {}
        lab = Lab(data[name](batch_size=BATCH, device="cpu", **sizes))
        for part in asked:
            so_far = parts_so_far("stability")
            so_far[name] = of_data = dict(so_far.get(name, {}))
            of_data[part] = getattr(lab, part)(of_data)
            how = f"seeds {SEEDS[0]} to {SEEDS[-1]}; last measured: {', '.join(asked)}"
            save_results("stability", so_far, start, how, indent=None)


if __name__ == "__main__": main()
