"""What stands around chapter 16's few lines: checks, which layers there are, a whole-number product that is right."""
import copy
import functools
import time

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .arguments import a_share, an_instance, checked, refuse
from .checks import described, positive_int, shorten

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


def finite_floats(name, value):
    "Finite floating-point numbers, at least one, without their gradient and in 32 bits or more."
    value = floats(name, value).detach()
    if not value.isfinite().all(): raise ValueError(f"{name} holds values that are NaN or infinite: {shorten(value)}.")
    return value.float() if value.itemsize < 4 else value


def tensors(name, value):
    "A list of floating-point tensors."
    if isinstance(value, torch.Tensor) or not hasattr(value, "__iter__"): refuse(name, "a list of tensors", value)
    found = [floats(f"{name}[{i}]", tensor) for i, tensor in enumerate(value)]
    if not found: refuse(name, "a list of at least one tensor", value)
    return found


def is_quantized(name, value):
    if not isinstance(value, FewBits): refuse(name, "what quantize or nf4 gave", value)
    return value


a_linear = an_instance("an nn.Linear", nn.Linear)
true_or_false = an_instance("True or False", bool)


def check_axis(axis, x):
    "An axis of x from 0 on, or None."
    if axis is None: return None
    if isinstance(axis, bool) or not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
        refuse("axis", f"None or an axis of x, which has {x.ndim}", axis)
    return axis % x.ndim


def largest(x, axis):
    "The largest value of x, or of each slice along an axis, with as many axes as x."
    axis = check_axis(axis, x)
    return x.amax([a for a in range(x.ndim) if a != axis], keepdim=True) if x.ndim else x


def above_0(scale):
    "Scales as they are, but for those that are 0 (a row of zeros), which become the least number: 0 / 0 would be NaN."
    return scale.clamp(min=torch.finfo(scale.dtype).tiny)


class FewBits:
    """The books of a `Quantized`: its numbers in the smallest type that holds them, scale and zero as `[]` for all or `[C]`
    for the slices of an axis, and what they take if numbers are packed side by side.
    """
    def __post_init__(self):
        self.axis = check_axis(self.axis, self.q)
        self.q = self.q.to(torch.int8 if self.bits <= 8 else torch.int16)
        self.scale, self.zero = (values.reshape([] if self.axis is None else [-1]) for values in (self.scale, self.zero.int()))

    def beside(self, values):
        "One value for all, or for each slice of the axis, as it stands beside `q`."
        return values if self.axis is None else values.view([-1 if a == self.axis else 1 for a in range(self.q.ndim)])

    @property
    def n_bytes(self):
        "Bytes, if numbers are packed side by side and zeros that are always the same are free."
        return -(-self.q.numel() * self.bits // 8) + self.scale.nbytes + (self.zero.nbytes if self.zero.any() else 0)


class BlockBits(FewBits):
    "The same for numbers that are places in a list of levels, with a scale for each block."
    def __post_init__(self): self.q = self.q.to(torch.uint8)

    def beside(self, values): return values.repeat_interleave(self.block)[:self.q.numel()].view(self.q.shape)


def even_levels():
    "Sixteen levels as NF4 has them, but evenly spaced: 7 below 0, 8 above, 0 itself, from −1 to 1."
    return torch.cat([torch.arange(-7, 1) / 7, torch.arange(1, 9) / 8])


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


class GrowingShare:
    """Which share of the weights is 0 at which step. `choose(share)`, the lesson's, takes the weights out.

    ramp: share of the fit over which the share grows, as amount · (1 − (1 − t)³) (Zhu and Gupta, 2017); 0: all at the
    start. every: steps from one choice to the next while it grows.
    """
    @checked(amount=a_share, ramp=a_share, every=positive_int)
    def __init__(self, amount, ramp=0., every=10): self.amount, self.ramp, self.every = amount, ramp, every

    def before_fit(self, learn):
        self.weights, self.n_steps = weights_of(learn.model), 0
        self.choose(0. if self.ramp else self.amount)

    def grow(self, learn):
        self.n_steps += 1
        if not self.ramp or self.n_steps % self.every: return
        self.choose(self.amount * (1 - (1 - min(learn.pct_train / self.ramp, 1.)) ** 3))

    def after_fit(self, learn):
        if self.ramp and not learn.cancelled: self.choose(self.amount)


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


def longest_rows(layer, amount):
    "The units that stay when this share of them goes: those with the longest rows, at least one."
    lengths = layer.weight.detach().flatten(1).norm(dim=1)
    n_kept = max(1, len(lengths) - round(float(amount) * len(lengths)))
    return lengths.topk(n_kept).indices.sort().values


def kept(values, index, axis=0):
    return nn.Parameter(values.detach().index_select(axis, index), values.requires_grad)


def keep_units(layer, norms, after, units):
    "Leaves a hidden layer these units: rows of its weight, columns of the next layer's, channels of norms in between."
    n_units = len(layer.weight)
    layer.weight = kept(layer.weight, units)
    if layer.bias is not None: layer.bias = kept(layer.bias, units)
    columns = after.weight.detach().unflatten(1, (n_units, -1))  # behind a Flatten the pixels of a channel lie together
    after.weight = kept(columns, units, axis=1)
    after.weight.data = after.weight.data.flatten(1, 2)
    for norm in norms: keep_channels(norm, units)
    for module in (layer, after): resize(module)


def without_units(model, amount):
    "A copy of a chain of layers whose hidden layers have lost this share of their units."
    model = copy.deepcopy(model)
    chain = hidden_layers(model)
    units = [longest_rows(layer, amount) for layer, *_ in chain]   # before any is changed
    for (layer, norms, after), keep in zip(chain, units): keep_units(layer, norms, after, keep)
    return model


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


class Buffers(nn.Module):
    "A module that holds these tensors: saved and moved with it, not trained."
    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items(): self.register_buffer(name, tensor)


def bias_of(linear):
    "A linear layer's bias, or 0, in 32 bits."
    return (linear.weight.new_zeros(()) if linear.bias is None else linear.bias.detach().clone()).float()


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


EXACT = 1024  # terms of at most 128 · 127 whose sum stays below 2 ** 24, up to which floats are exact


def int8_product(a, b):
    "a `[M, K]` times b `[K, N]`, both int8: sums as whole numbers where the machine has a quick way, else as floats."
    fits = a.device.type != "cuda" or len(a) > 16 and a.shape[1] % 8 == 0 and b.shape[1] % 8 == 0
    if fits and len(a) and int_mm_works(a.device.type): return torch._int_mm(a, b)
    parts = zip(a.float().split(EXACT, 1), b.float().split(EXACT))
    return sum((left @ right).to(torch.int32) for left, right in parts) if a.shape[1] > EXACT else a.float() @ b.float()
