"""One step of an optimizer, gradients at hand: ours against torch.optim and against the memory's speed.

Ours: plain; on one flat buffer (`flatten_parameters`); compiled (`optimizer.step = torch.compile(optimizer.step)`);
both. torch.optim: for-loop, foreach and fused (RMSprop has no fused form). Each starts from the same parameters and
gradients, and must agree with the for-loop after three steps before anything is timed. The memory floor moves the bytes
that a step cannot avoid, by torch's operations on flat buffers, in place: `p.add_(grad)` reads two tensors and writes
one, and every state tensor is read and written once. On parameters that fit the cache the calls cost more than the
bytes, so one compiled pass can be quicker than this floor.
"""
import logging
import shutil
import statistics

import torch
from torch import nn
from torchvision.models import resnet18

from _measure import arguments, ratio, say_machine, table, take_turns
from course_lib.adam import Adam
from course_lib.support.flat import flatten_parameters
from course_lib.support.tensors import default_device
from course_lib.momentum import SGD
from course_lib.rmsprop import RMSProp

LR = 1e-3
OPTIMIZERS = {  # ours, torch's, arguments, state tensors as large as a parameter
    "adam": (Adam, torch.optim.Adam, {}, 2),
    "sgd_momentum": (SGD, torch.optim.SGD, {"momentum": .9}, 1),
    "rmsprop": (RMSProp, torch.optim.RMSprop, {}, 1)}
FORMS = {"forloop": "torch.optim: for-loop", "foreach": "torch.optim: foreach", "fused": "torch.optim: fused",
         "plain": "course_lib: plain", "flat": "course_lib: one flat buffer", "compiled": "course_lib: compiled",
         "compiled_flat": "course_lib: compiled, one flat buffer", "floor": "memory floor"}
MODELS = {  # name in the title, model, steps in a block, unit and how many of it make a second
    "mlp": ("an MLP", lambda: nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10)), 100, "µs", 1e6),
    "resnet18": ("ResNet-18", resnet18, 5, "ms", 1e3)}
GOALS = [("adam", "plain", "resnet18", "forloop", "<=1.5"), ("sgd_momentum", "plain", "resnet18", "forloop", "<=1.5"),
         ("adam", "flat", "mlp", "foreach", "<=0.9"), ("sgd_momentum", "flat", "mlp", "foreach", "<=0.9"),
         ("adam", "compiled", "resnet18", "fused", "<=1.5"), ("sgd_momentum", "compiled", "resnet18", "fused", "<=1.5"),
         ("rmsprop", "compiled", "resnet18", "torch", "<=0.6"), ("rmsprop", "compiled", "mlp", "torch", "-"),
         *((name, "compiled", "mlp", "fused", "-") for name in ("adam", "sgd_momentum")),
         *((name, "compiled_flat", model, peer, "-") for model in MODELS for name in OPTIMIZERS
           for peer in ("torch" if name == "rmsprop" else "fused", "floor"))]


def stepped(params, name, form):
    "A function that steps copies of the parameters, and those copies."
    ours, peer, args, n_states = OPTIMIZERS[name]
    grads = [p.grad.clone() for p in params]
    params = [nn.Parameter(p.detach().clone()) for p in params]
    if form == "floor":
        p, grad = (torch.cat([t.detach().flatten() for t in tensors]) for tensors in (params, grads))
        states = [torch.ones_like(p) for _ in range(n_states)]

        def floor():
            p.add_(grad)
            for state in states: state.mul_(.9999)

        return floor, None
    for p, grad in zip(params, grads): p.grad = grad
    if form in ("forloop", "foreach", "fused"):
        return peer(params, lr=LR, **args, **{"forloop": {"foreach": False}}.get(form, {form: True})).step, params
    optimizer = ours([flatten_parameters(params)] if "flat" in form else params, lr=LR, **args)
    if "compiled" in form: optimizer.step = torch.compile(optimizer.step)
    return optimizer.step, params


def contenders(params, name, forms):
    "form → function that makes a step; all have made three, and agree."
    steps, reached = {}, {}
    for form in forms:
        steps[form], reached[form] = stepped(params, name, form)
        for _ in range(3): steps[form]()
    for form in forms:
        if form != "floor":
            torch.testing.assert_close(reached[form], reached["forloop"], rtol=1e-6, atol=1e-3 * LR,
                                       msg=lambda m: f"{name}, {form}: {m}")
    return steps


def main():
    args = arguments(__doc__)
    repeats = {"mlp": 9, "resnet18": 3} if args.quick else {"mlp": 60, "resnet18": 25}
    # of variants of `step`, which all these optimizers share; a training has one optimizer
    torch._dynamo.config.recompile_limit = 64
    for module in ("torch._dynamo", "torch._inductor", "torch.utils.cpp_extension"):
        logging.getLogger(module).setLevel(logging.ERROR)
    device, compiler = default_device(), shutil.which("g++") or shutil.which("clang")
    say_machine("torch", "torchvision", threads=torch.get_num_threads())
    print(f"on {device}, taking turns; " + "; ".join(f"{title}: {repeats[model]} blocks of {k} steps"
                                                     for model, (title, _, k, *_) in MODELS.items()))
    print("skipped: torch.optim.RMSprop has no fused form")
    if not compiler: print("skipped: compiled forms, for want of a C++ compiler (g++ or clang)")
    elif args.quick: print("skipped for --quick: compiled forms, whose compiling takes minutes where nothing is cached")

    medians = {}
    for model, (title, make, k, unit, scale) in MODELS.items():
        torch.manual_seed(0)
        params = list(make().to(device).parameters())
        for p in params: p.grad = torch.randn_like(p)
        for name in OPTIMIZERS:
            skip = {"fused"} if name == "rmsprop" else set()
            if not compiler or args.quick: skip |= {"compiled", "compiled_flat"}
            steps = contenders(params, name, [form for form in FORMS if form not in skip])

            def block(step):
                for _ in range(k): step()
                if device.type != "cpu": torch.accelerator.synchronize()

            times = take_turns({form: lambda step=step: block(step) for form, step in steps.items()}, repeats[model])
            table(f"{name} on {title}, {sum(p.numel() for p in params):,} parameters",
                  {FORMS[form]: [scale * t / k for t in values] for form, values in times.items()}, unit + " a step")
            median = {form: statistics.median(values) for form, values in times.items()}
            medians |= {(name, model, form): value for form, value in median.items()}
            medians[name, model, "torch"] = min(median["forloop"], median["foreach"])
    print()
    for name, form, model, peer, goal in GOALS:
        if (name, model, form) in medians:
            ratio(f"{name}_{form}_{model}_over_{peer}", medians[name, model, form] / medians[name, model, peer], goal)


if __name__ == "__main__":
    main()
