"""How long a model takes, by number format, and what an image costs."""
import contextlib
import copy
import math
from time import perf_counter

import torch
import torch.nn.functional as F

from .arguments import a_dtype, checked
from .tensors import map_tensors

FORMATS = {"float32": (torch.contiguous_format, None), "float32, channels last": (torch.channels_last, None),
           "bfloat16, channels last": (torch.channels_last, torch.bfloat16)}


class AutocastBase:
    """What chapter 10's callback `Autocast` does: `torch.autocast` begins before the model and ends after it, also where
    the model raises. Fits may be nested: each has its own in `entered`.
    """
    @checked(dtype=a_dtype)
    def __init__(self, dtype=torch.bfloat16): self.dtype, self.entered = dtype, []

    def before_batch(self, learn):
        device_type = (learn.device or torch.device("cpu")).type
        self.entered.append(contextlib.ExitStack())
        if not torch.is_autocast_enabled(device_type):  # another one may be at work already
            self.entered[-1].enter_context(torch.autocast(device_type, self.dtype))

    def after_pred(self, learn):
        self.entered[-1].close()
        learn.pred = map_tensors(lambda x: x.float() if x.dtype is self.dtype else x, learn.pred)

    def after_batch(self, learn):  # comes in any case, also after an error in the model
        if self.entered: self.entered.pop().close()


@torch.enable_grad()
def seconds_by_format(model, xb, yb, n_steps=8):
    """The fastest of n_steps forward and backward passes in each of the `FORMATS`: name -> seconds, inf where the
    device or the model refuses. Works on copies; the model and the random numbers stay.
    """
    seconds, device_type, copies = dict.fromkeys(FORMATS, math.inf), xb.device.type, {}
    with torch.random.fork_rng():
        for name, (layout, _) in FORMATS.items():
            with contextlib.suppress(RuntimeError): copies[name] = copy.deepcopy(model).to(memory_format=layout)
        for step in range(n_steps + 1):
            for name in [*copies]:  # in turns, as other work on the machine comes and goes
                dtype, began = FORMATS[name][1], perf_counter()
                try:
                    with torch.autocast(device_type, dtype, enabled=dtype is not None): pred = copies[name](xb)
                    F.cross_entropy(pred.float(), yb).requires_grad_().backward()
                    if device_type != "cpu": torch.accelerator.synchronize()
                except RuntimeError:
                    if dtype is None: raise
                    del copies[name]
                    continue
                if step: seconds[name] = min(seconds[name], perf_counter() - began)  # the first one warms up
    return seconds


def cost_per_image(model, shape, n=2):
    "Seconds on the model's device, and operations, of a forward and backward pass, by n random images of that shape."
    from torch.utils.flop_counter import FlopCounterMode  # loads triton: a twentieth of `import torch`
    x = torch.randn(n, *shape, device=(device := next(model.parameters()).device))
    model = copy.deepcopy(model)  # whose statistics and gradients nobody will miss
    with FlopCounterMode(display=False) as counter: model(x).sum().requires_grad_().backward()
    began = perf_counter()
    model(x).sum().requires_grad_().backward()
    if device.type == "cuda": torch.cuda.synchronize()
    return (perf_counter() - began) / n, counter.get_total_flops() / n
