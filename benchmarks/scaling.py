"""Two processes with a thread each, against one: images per second of `Learner`, and of torch's DDP beside it.

torchrun starts two ranks, which take turns: one process that trains alone with the whole batches while the other waits;
both in `Learner.fit` with `ShardedLoader` and `AverageGradients`, so each has half of every batch; both with DDP in a
plain loop. All three begin with the same weights and see the same batches, and must end with the same weights to
rounding. `LocalSGD` runs beside them: where a message takes longer than a step, it is what makes two faster. Then what
a rank sends for a step, counted by each callback, and by a hook of DDP. Two processes need two cores that nobody else
uses: a busy machine gives less. What they need of the processors' time, both together, hardly depends on that: 1.1
times that of one process lets them be at most 2 / 1.1 times as fast.
"""
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from _measure import arguments, ratio, say_machine, table, take_turns
from course_lib import SGD, DataLoaders, Learner, TensorLoader, small_resnet
from course_lib.scaling_out import (
    AverageGradients, DiLoCo, LocalSGD, PowerSGD, ShardedLoader, distributed, launch)
from course_lib.sgd import seeded

BATCH, N_BATCHES, EVERY = 128, 10, 10
sgd = partial(SGD, lr=1e-3, momentum=.9)


def wide_net():
    "Three times the parameters of `small_resnet`, and a fifth of its work: more to say, and less time to hide it in."
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 700), nn.ReLU(), nn.Linear(700, 700), nn.ReLU(),
                         nn.Linear(700, 10))


def batches(n=N_BATCHES):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n * BATCH, 1, 28, 28, generator=generator)
    return TensorLoader(x, torch.arange(n * BATCH) % 10, BATCH)


def in_learner(make, cbs=(), loader=None):
    "Epochs of our loop -> the call, and its model."
    learn = Learner(seeded(0, make), DataLoaders(loader or batches(), None), F.cross_entropy, sgd, cbs=cbs)
    return lambda: learn.fit(1), learn.model


def in_ddp(make, place, hook=None):
    "Epochs of a plain loop with DDP, each rank with its half of the batches."
    model = DistributedDataParallel(seeded(0, make))
    if hook: model.register_comm_hook(None, hook)
    opt, loader = sgd(model.parameters()), ShardedLoader(batches(), place.rank, place.size)

    def call():
        for xb, yb in loader:
            F.cross_entropy(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()
    return call, model.module


def norms_fixed(make):
    "The model with batchnorm that counts with its running statistics, since those of half a batch differ."
    def made():
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d): module.eval()
            if isinstance(module, nn.BatchNorm2d): module.train = lambda mode=True: None
        return model
    return made


def wait_for_all(call, spent):
    "The call, and then a wait for the other rank; spent: a list that gets the processor's seconds of this rank."
    def work():
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
        dist.barrier()
    return work


def same_weights(place, contenders, tolerance=1e-4):
    "After the same steps all ways have the same weights; rank 1 hears of those that rank 0 trained alone."
    for name, (_, model) in contenders.items():
        if "LocalSGD" in name: continue
        for p, q in zip(model.parameters(), contenders["torch: DistributedDataParallel"][1].parameters()):
            if place.rank == 0: assert (p - q).abs().max() < tolerance * q.abs().max() + 1e-6, name


def timed(place, make, repeats):
    "Seconds of each way's epochs, in turns, on this rank; and the processor's seconds of all ranks, added."
    make = norms_fixed(make)
    whole, model = in_learner(make)
    part = lambda cb: in_learner(make, [cb], ShardedLoader(batches(), place.rank, place.size))
    contenders = {
        "course_lib: one process": (whole if place.rank == 0 else lambda: None, model),
        "course_lib: two, AverageGradients": part(AverageGradients()),
        f"course_lib: two, LocalSGD({EVERY})": part(LocalSGD(EVERY)),
        "torch: DistributedDataParallel": in_ddp(make, place)}
    spent = {name: [] for name in contenders}
    for call, _ in contenders.values(): call()
    same_weights(place, contenders)                        # after ten steps: each one more lets rounding grow
    times = take_turns({name: wait_for_all(call, spent[name]) for name, (call, _) in contenders.items()}, repeats)
    of_all = torch.tensor([spent[name][1:] for name in contenders])  # without the round that warms up
    dist.all_reduce(of_all)
    return times, dict(zip(contenders, of_all.tolist()))


def sent(place, make):
    "Bytes that a rank sends for a step of each way, over twenty steps; DDP's by the sizes of its buckets, in a ring."
    counted, ring = {}, 2 * (place.size - 1) / place.size
    ways = {"AverageGradients": AverageGradients(), "AverageGradients, float16": AverageGradients(torch.float16),
            "PowerSGD(rank=1)": PowerSGD(rank=1), f"LocalSGD({EVERY})": LocalSGD(EVERY),
            f"DiLoCo({EVERY})": DiLoCo(EVERY)}
    for name, cb in ways.items():
        in_learner(make, [cb], ShardedLoader(batches(2 * EVERY), place.rank, place.size))[0]()
        counted[f"course_lib: {name}"] = cb.sent / (2 * EVERY)
    buckets = []

    def hook(_, bucket):
        buckets.append(bucket.buffer().nbytes)
        return dist.all_reduce(bucket.buffer().div_(place.size), async_op=True).get_future().then(
            lambda future: future.value()[0])
    in_ddp(make, place, hook)[0]()
    counted["torch: DistributedDataParallel"] = ring * sum(buckets) / N_BATCHES
    return counted


def rank_of_two(path, repeats):
    "What each rank does; rank 0 writes what it measured."
    torch.set_num_threads(1)
    nets = {"small_resnet": small_resnet, "wide_net": wide_net}
    with distributed() as place:
        found = {}
        for name, make in nets.items():
            seconds, processor = timed(place, make, repeats)
            found[name] = {"seconds": seconds, "processor": processor, "sent": sent(place, make),
                           "bytes": sum(p.nbytes for p in make().parameters())}
        if place.rank == 0: Path(path).write_text(json.dumps(found))


def main():
    args = arguments(__doc__.splitlines()[0])
    say_machine("torch", threads=1)
    if (os.cpu_count() or 1) < 2: print("one core only: two processes share it, so they cannot be faster than one")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        launch(__file__, 2, path, 2 if args.quick else 15, timeout=600)
        found = json.loads(path.read_text())
    alone, ours, local = (f"course_lib: {way}" for way in (
        "one process", "two, AverageGradients", f"two, LocalSGD({EVERY})"))
    theirs = "torch: DistributedDataParallel"
    for name, measured in found.items():
        times = measured["seconds"]
        step = 1e3 * statistics.median(times[alone]) / N_BATCHES
        table(f"{name}, {measured['bytes'] / 1e6:.2f} MB of weights, batches of {BATCH}; a step of one process takes "
              f"{step:.0f} ms", {way: [N_BATCHES * BATCH / t for t in found] for way, found in times.items()},
              "images per second")
        in_rounds = lambda a, b: statistics.median(x / y for x, y in zip(times[a], times[b]))
        goal = ">=1.6" if name == "small_resnet" else "-"
        ratio(f"{name}_two_processes_to_one_images_per_s", in_rounds(alone, ours), goal)
        ratio(f"{name}_local_sgd_to_one_process_images_per_s", in_rounds(alone, local), "-")
        ratio(f"{name}_ddp_to_one_process_images_per_s", in_rounds(alone, theirs), "-")
        ratio(f"{name}_two_processes_to_ddp_time", in_rounds(ours, theirs), "-")
        print("\nA busy machine does not change much what the two need of a processor's time, together:")
        processor = measured["processor"]
        for way, short in ((ours, "two_processes"), (theirs, "ddp")):
            needs = statistics.median(two / one for two, one in zip(processor[way], processor[alone]))
            ratio(f"{name}_{short}_to_one_processor_time", needs, "-")
        print(f"\n{name}: bytes that a rank sends for a step")
        for way, n in measured["sent"].items(): print(f"  {way:55} {n:12,.0f}")
        for way, n in measured["sent"].items():
            if way != theirs:
                short = way.removeprefix("course_lib: ").lower()
                short = "_".join("".join(c if c.isalnum() else " " for c in short).split())
                ratio(f"{name}_{short}_to_ddp_bytes", n / measured["sent"][theirs], "-")


if __name__ == "__main__":
    if "RANK" in os.environ: rank_of_two(sys.argv[1], int(sys.argv[2]))
    else: main()
