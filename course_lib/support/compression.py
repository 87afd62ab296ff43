"""What stands around chapter 16's few lines: checks, which layers there are, a whole-number product that is right."""
import functools
import time

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .arguments import an_instance, refuse
from .checks import described, shorten

LAYERS = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d
ONE_BY_ONE = (nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU,
              nn.Tanh, nn.Sigmoid, nn.ELU, nn.Softplus, nn.Hardswish, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
NORMS = nn.modules.batchnorm._BatchNorm


def bit_width(name, value, high=16):
    "A whole number of bits from 2 on: one bit would leave a symmetric range nothing but 0."
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= high:
        refuse(name, f"a whole number of bits from 2 to {high}", value)
    return value


def up_to_8_bits(name, value): return bit_width(name, value, 8)


def floats(name, value):
    "A tensor of floating-point numbers, with at least one in it."
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
        raise ValueError(f"{name} must be a floating-point tensor that is not empty, not {described(value)}.")
    return value


def tensors(name, value):
    "A list of floating-point tensors."
    if isinstance(value, torch.Tensor) or not hasattr(value, "__iter__"): refuse(name, "a list of tensors", value)
    found = [floats(f"{name}[{i}]", tensor) for i, tensor in enumerate(value)]
    if not found: refuse(name, "a list of at least one tensor", value)
    return found


def is_quantized(name, value):
    if not hasattr(value, "q") or not hasattr(value, "scale"): refuse(name, "what quantize or nf4 gave", value)
    return value


a_linear = an_instance("an nn.Linear", nn.Linear)
true_or_false = an_instance("True or False", bool)


def check_axis(axis, x):
    "An axis of x from 0 on, or None."
    if axis is None: return None
    if isinstance(axis, bool) or not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
        refuse("axis", f"None or an axis of x, which has {x.ndim}", axis)
    return axis % x.ndim


def check_finite(x, scale):
    "The scales tell: an infinite or missing value makes its own one so."
    if not scale.isfinite().all():
        raise ValueError(f"x holds values that are NaN or infinite, or too large to tell apart: {shorten(x)}.")


def largest(x, axis):
    "The largest value of x, or of each slice along an axis, with as many axes as x."
    return x.amax([a for a in range(x.ndim) if a != axis], keepdim=True) if x.ndim else x


def beside(values, quantized):
    "One value for all, for each slice of an axis or for each block, as it stands beside `quantized.q`."
    q = quantized.q
    if quantized.block: return values.repeat_interleave(quantized.block)[:q.numel()].view(q.shape)
    if quantized.axis is None: return values
    return values.view([-1 if a == quantized.axis else 1 for a in range(q.ndim)])


def in_blocks(x, block):
    "x `[..]` as `[n, block]`, the last one filled up with zeros."
    flat = x.flatten()
    return nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)


def layers_of(model):
    "All linear and convolutional layers, in order."
    return [module for module in model.modules() if isinstance(module, LAYERS)]


def weights_of(model):
    "The weights of all linear and convolutional layers, each once; biases and norms have too few numbers to matter."
    found = {id(layer.weight): layer.weight for layer in layers_of(model)}
    if not found: raise ValueError("The model has no linear or convolutional layer, so there is no weight to prune.")
    if lazy := [weight for weight in found.values() if not isinstance(weight, nn.Parameter) or is_lazy(weight)]:
        raise ValueError(f"The weights must be plain parameters; {len(lazy)} of them are computed from others or have no values yet.")
    return list(found.values())


def hidden_layers(model):
    """(layer, norms after it, next layer) for each layer of a chain whose units can be taken out: a `nn.Sequential` of
    linear and convolutional layers, batchnorms and modules that treat each unit by itself. Else `ValueError`.
    """
    if not isinstance(model, nn.Sequential):
        raise ValueError(f"structured=True needs an nn.Sequential, whose layers follow one another, not {type(model).__name__}.")
    flat = hidden_parts(model)
    found, layer, norms = [], None, []
    for module in flat:
        if isinstance(module, LAYERS):
            if getattr(module, "groups", 1) != 1: raise ValueError("structured=True cannot take units out of grouped convolutions.")
            if layer is not None: found.append((layer, norms, module))
            layer, norms = module, []
        elif isinstance(module, NORMS): norms.append(module)
        elif not isinstance(module, ONE_BY_ONE):
            raise ValueError(f"structured=True does not know which units {type(module).__name__} mixes.")
    if not found: raise ValueError("structured=True needs at least two layers: the last one's outputs are the answers.")
    if len({id(module) for module in flat if isinstance(module, LAYERS)}) < len(found) + 1:
        raise ValueError("structured=True cannot take units out of a layer that is used twice.")
    return found


def hidden_parts(module):
    "The modules of nested `nn.Sequential`s in order."
    if not isinstance(module, nn.Sequential): return [module]
    return [part for inner in module for part in hidden_parts(inner)]


def resize(module):
    "What a layer says about itself, after its weight has changed its shape."
    n_out, n_in = module.weight.shape[:2]
    if isinstance(module, nn.Linear): module.out_features, module.in_features = n_out, n_in
    else: module.out_channels, module.in_channels = n_out, n_in


def keep_channels(norm, keep):
    "A batchnorm with these of its channels."
    for values in (norm._parameters, norm._buffers):
        for name, value in values.items():
            if value is None or not value.ndim: continue
            kept = value.detach()[keep]
            values[name] = nn.Parameter(kept, value.requires_grad) if isinstance(value, nn.Parameter) else kept
    norm.num_features = len(keep)


@functools.cache
def int_mm_works(device):
    """Is `torch._int_mm` right on this device, and not far slower than floats?

    It was wrong on processors without VNNI (pytorch #136746), it is missing on some devices, and where it is nothing
    but loops it takes a hundred times as long.
    """
    try:
        a, b = torch.full((64, 256), 127, dtype=torch.int8, device=device), torch.full((256, 256), -127, dtype=torch.int8, device=device)
        a[::2, ::3], b[:, ::2] = -128, 127
        exact = a.double() @ b.t().double()
        if not torch.equal(torch._int_mm(a, b.t()).double(), exact): return False
        x, y, seconds = a.float(), b.t().float(), {}
        for product, args in ((torch._int_mm, (a, b.t())), (torch.mm, (x, y))):
            times = []
            for _ in range(5):
                start = time.perf_counter()
                product(*args)[0, 0].item()
                times.append(time.perf_counter() - start)
            seconds[product] = min(times)
        return seconds[torch._int_mm] < 5 * seconds[torch.mm]
    except (RuntimeError, AttributeError, NotImplementedError, TypeError): return False


def int8_product(a, b):
    "a `[M, K]` times b `[K, N]`, both int8: sums as whole numbers where the machine has a quick way, else as floats."
    fits = a.device.type != "cuda" or len(a) > 16 and a.shape[1] % 8 == 0 and b.shape[1] % 8 == 0
    if fits and len(a) and int_mm_works(a.device.type): return torch._int_mm(a, b)
    return a.float() @ b.float()
