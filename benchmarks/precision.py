"""A training step in 16 bits and in 32: our ways against torch's own autocast, scaler and clipping.

A step is what a training loop does with a batch: the pass, backward, SGD with momentum, gradients dropped. Ours run in
`Learner.fit`, by the callback `MixedPrecision`, and by hand, with copies of the parameters (`run_in`); torch's in a
plain loop. All begin with the same weights; after a first epoch their losses must agree to a hundredth. Then clipping
and the loss scaler alone, on gradients in float32. A processor without instructions for 16 bits does them in software,
many times slower; there the net is smaller, and a step in bfloat16 says little about other machines.
"""
import copy
import statistics

import torch
import torch.nn.functional as F
from torch import nn

from _measure import arguments, ratio, say_machine, table, take_turns
from course_lib import DataLoaders, Learner, LossScaler, MixedPrecision, TensorLoader, clip_by_norm, clip_by_value
from course_lib.stability import run_in

BF16 = torch.bfloat16


def quick_sixteen_bits():
    "Has this processor instructions for bfloat16?"
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported and supported())


def net(width):
    torch.manual_seed(0)
    hidden = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def sgd(params): return torch.optim.SGD(params, lr=.01, momentum=.9)


def in_learner(width, x, y, cbs):
    "Epochs of our loop, each call one epoch."
    learn = Learner(net(width), DataLoaders(TensorLoader(x, y, BATCH), None), F.cross_entropy, sgd)

    def call():
        learn.fit(1, cbs=cbs)
        return learn.loss.item()
    return call


def in_a_loop(width, x, y, passes):
    "Epochs of a plain loop; passes: (model, xb) -> logits."
    model = net(width)
    opt, batches = sgd(model.parameters()), TensorLoader(x, y, BATCH)

    def call():
        for xb, yb in batches:
            loss = F.cross_entropy(passes(model, xb).float(), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
        return loss.item()
    return call


def by_autocast(model, xb):
    with torch.autocast("cpu", BF16): return model(xb)


def grads_to_work_on(width):
    "Parameters with the gradients of a batch, in float32, and an optimizer that hardly moves them."
    model = net(width)
    F.cross_entropy(model(torch.randn(32, width)), torch.arange(32) % 10).backward()
    return [*model.parameters()], torch.optim.SGD(model.parameters(), lr=1e-30)


def scaler_step(scaler, opt):
    "A step of a scaler whose factor stays 1, so that gradients do not shrink from call to call."
    def call():
        scaler.scale(torch.ones(()))
        scaler.step(opt)
        scaler.update()
    return call


def milliseconds(contenders, repeats, per_call=1):
    return {name: [1e3 * t / per_call for t in found] for name, found in take_turns(contenders, repeats).items()}


def said(title, contenders, repeats, per_call=1):
    "Prints the table; times by name."
    times = milliseconds(contenders, repeats, per_call)
    table(title, times, "ms")
    return times


def in_rounds(name, times, ours, theirs, goal):
    "The median of each round's ratio, since a machine that others use is slower in one round than in the next."
    ratio(name, statistics.median(a / b for a, b in zip(times[ours], times[theirs])), goal)


BATCH, N_BATCHES = 128, 12


def main():
    args = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    say_machine("torch", threads=1)
    quick = quick_sixteen_bits()
    width, repeats = (1024, 30) if quick else (192, 100)
    if args.quick: repeats = 10
    print(f"bfloat16 is {'done by instructions' if quick else 'emulated, and slow,'} on this processor")
    x, y = torch.randn(N_BATCHES * BATCH, width), torch.arange(N_BATCHES * BATCH) % 10
    contenders = {
        "course_lib: float32": in_learner(width, x, y, []),
        "course_lib: MixedPrecision(bfloat16)": in_learner(width, x, y, [MixedPrecision(BF16)]),
        "course_lib: by hand, run_in": in_a_loop(width, x, y, lambda model, xb: run_in(BF16, model, xb)),
        "torch: float32": in_a_loop(width, x, y, lambda model, xb: model(xb)),
        "torch: autocast": in_a_loop(width, x, y, by_autocast)}
    losses = {name: call() for name, call in contenders.items()}
    for loss in losses.values(): assert abs(loss - losses["torch: float32"]) < .01 * loss, losses
    ms = said(f"a step with {BATCH} rows, four layers of {width} units", contenders, repeats, N_BATCHES)
    ours, by_hand, theirs = "course_lib: MixedPrecision(bfloat16)", "course_lib: by hand, run_in", "torch: autocast"
    in_rounds("mixed_precision_to_torch_autocast_time", ms, ours, theirs, "<=1.05")
    in_rounds("bfloat16_by_hand_to_torch_autocast_time", ms, by_hand, theirs, "<=1.05")
    in_rounds("float32_to_torch_float32_time", ms, "course_lib: float32", "torch: float32", "<=1.05")
    in_rounds("bfloat16_to_float32_time", ms, ours, "course_lib: float32", "-")

    params, opt = grads_to_work_on(1024)
    theirs = copy.deepcopy([p.grad for p in params])
    norms = [clip_by_norm(params, 1e9), nn.utils.clip_grad_norm_(params, 1e9)]
    assert torch.allclose(*norms) and all(torch.equal(a, p.grad) for a, p in zip(theirs, params))
    ms = said("the gradients of four layers of 1024 units", {
        "course_lib: clip_by_norm": lambda: clip_by_norm(params, 1e9),
        "torch: clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(params, 1e9),
        "course_lib: clip_by_value": lambda: clip_by_value(params, 1e9),
        "torch: clip_grad_value_": lambda: nn.utils.clip_grad_value_(params, 1e9),
        "course_lib: LossScaler, a step": scaler_step(LossScaler(1.), opt),
        "torch: GradScaler, a step": scaler_step(torch.amp.GradScaler("cpu", 1.), opt)}, 30 if args.quick else 300)
    in_rounds("clip_by_norm_to_torch_time", ms, "course_lib: clip_by_norm", "torch: clip_grad_norm_", "<=1.05")
    in_rounds("clip_by_value_to_torch_time", ms, "course_lib: clip_by_value", "torch: clip_grad_value_", "<=1.05")
    in_rounds("loss_scaler_to_torch_time", ms, "course_lib: LossScaler, a step", "torch: GradScaler, a step", "-")


if __name__ == "__main__": main()
