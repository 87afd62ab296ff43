"""The gradients of a list of parameters as one long vector: on several devices, in several dtypes, some of them sparse."""
from collections import defaultdict

import torch

from .arguments import refuse
from .checks import described

HALVES = torch.float16, torch.bfloat16


def parameters(name, value):
    "A list of floating-point tensors, from one of them or from what gives them one by one."
    if isinstance(value, torch.Tensor): value = [value]
    if isinstance(value, (torch.nn.Module, dict, str)) or not hasattr(value, "__iter__"):
        refuse(name, "parameters, such as model.parameters()", value)
    value = list(value)
    for p in value:
        if not isinstance(p, torch.Tensor) or not p.is_floating_point():
            raise ValueError(f"{name} must be floating-point tensors, such as model.parameters(); one of them is {described(p)}.")
    return value


def parameters_of(opt): return [p for group in opt.param_groups for p in group["params"]]


def values_of(p):
    "The numbers of a gradient, as a tensor that shares its memory; of a sparse one those that are there, each once."
    if not p.grad.is_sparse: return p.grad.detach()
    if not p.grad.is_coalesced(): p.grad = p.grad.coalesce()
    return p.grad._values().detach()


def grads_of(params):
    "The gradients of those parameters that have one, as tensors to change in place."
    return [values_of(p) for p in params if p.grad is not None]


def weights_and_grads(params):
    "Pairs (parameter, its gradient) to compare row by row; of a sparse gradient the rows that are there."
    for p in params:
        if p.grad is None: continue
        grad, weight = values_of(p), p.detach()
        yield (weight[p.grad._indices().unbind()] if p.grad.is_sparse else weight), grad


def by_kind(tensors):
    "Lists of tensors that have device and dtype in common, which one call of torch can treat."
    kinds = defaultdict(list)
    for tensor in tensors: kinds[tensor.device, tensor.dtype].append(tensor)
    return kinds.values()


def wide(dtype): return torch.float32 if dtype in HALVES else dtype


@torch.no_grad()
def norm_of(grads):
    "The norm of all gradients as one vector, a tensor on the first one's device, at least float32; 0 if there are none."
    if not grads: return torch.tensor(0.)
    device, dtype = grads[0].device, torch.float32
    for grad in grads: dtype = torch.promote_types(dtype, wide(grad.dtype))
    norms = [norm for same in by_kind(grads) for norm in torch._foreach_norm(same, 2, wide(same[0].dtype))]
    return torch.linalg.vector_norm(torch.stack([norm.to(device, dtype) for norm in norms]))


@torch.no_grad()
def scale_down(grads, factor):
    "Multiply all gradients by a factor, a tensor, unless that would make them longer; NaN passes on."
    for same in by_kind(grads): torch._foreach_mul_(same, factor.clamp(max=1).to(same[0].device))


@torch.no_grad()
def scale_all(grads, factor):
    "Multiply all gradients by a number."
    for same in by_kind(grads): torch._foreach_mul_(same, factor)


@torch.no_grad()
def limit_entries(grads, limit):
    "Bring each entry into ± limit, a number."
    for same in by_kind(grads):
        torch._foreach_clamp_min_(same, -limit)
        torch._foreach_clamp_max_(same, limit)


@torch.no_grad()
def norm_by_unit(x):
    "The norm of each output unit, that is of each slice along the first axis, `[n, 1, ..]`; of a bias the whole one's."
    axes = [*range(1, x.ndim)] if x.ndim > 1 else None
    return torch.linalg.vector_norm(x, dim=axes, keepdim=x.ndim > 1, dtype=wide(x.dtype))


@torch.no_grad()
def all_finite(grads):
    "Is every number finite? Then the smallest and the largest of each tensor are, and only then: NaN makes both NaN."
    for same in by_kind(grad for grad in grads if grad.numel()):
        if not torch.stack([end for grad in same for end in grad.aminmax()]).isfinite().all(): return False
    return True
