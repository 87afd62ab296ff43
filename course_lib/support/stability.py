"""What stands around chapter 14's few lines: a scaler's books, what decides a second run, and what lies saved."""
import contextlib
import weakref
from collections.abc import Mapping

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from .arguments import above_1, checked, finite, refuse
from .checks import described, positive_int, shorten
from .gradients import HALVES, all_finite, grads_of, parameters_of
from .tensors import map_tensors

NORMS = nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm
SMALLEST_SCALE = 2. ** -60


def sixteen_bits(name, value):
    if value not in HALVES: refuse(name, "torch.float16 or torch.bfloat16", value)
    return value


def above_0_below_1(name, value):
    if not 0 < finite(name, value) < 1: refuse(name, "above 0 and below 1", value)
    return float(value)


def a_scale(name, value):
    value = float(finite(name, value))
    if not SMALLEST_SCALE <= value < 2. ** 127: refuse(name, "above 0 and below 2¹²⁷, such as 2.**16", value)
    return value


def a_loss(name, value):
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor, not {described(value)}.")
    return value


def an_optimizer(name, value):
    if not hasattr(value, "param_groups") or not hasattr(value, "step"): refuse(name, "an optimizer", value)
    return value


def past_norms(name, value):
    "The list in which `clip_by_history` keeps norms."
    if not isinstance(value, list): refuse(name, "a list, at first an empty one, in which past norms are kept", value)
    return value


class ScalerBooks:
    """What `LossScaler` inherits: checked arguments, which optimizer is at which point of a step, and its state.

    `.factor`: what a loss is multiplied by now; `.n_good`: how many updates in a row have seen finite gradients only.
    """
    NAMES = "factor", "growth", "backoff", "interval", "n_good"

    @checked(init=a_scale, growth=above_1, backoff=above_0_below_1, interval=positive_int)
    def __init__(self, init=2. ** 16, growth=2., backoff=.5, interval=2000):
        self.factor, self.growth, self.backoff, self.interval, self.n_good = init, float(growth), backoff, interval, 0
        self.finite, self.stepped = weakref.WeakKeyDictionary(), weakref.WeakSet()

    def grads_to_unscale(self, opt):
        "The optimizer's gradients, scaled. `RuntimeError` the second time, `ValueError` for gradients in float16."
        an_optimizer("opt", opt)
        if opt in self.finite:
            raise RuntimeError("The gradients of this optimizer are unscaled already: unscale it once, and call update() "
                               "after its step.")
        grads = grads_of(parameters_of(opt))
        if any(grad.dtype is torch.float16 for grad in grads):
            raise ValueError("These gradients are in float16, which would lose the small ones again if they were "
                             "unscaled there. Give the optimizer float32 parameters, the masters.")
        return grads

    def note(self, opt, grads): self.finite[opt] = all_finite(grads)

    def check_step(self, opt):
        "Raises `RuntimeError` for a second step without an update."
        if an_optimizer("opt", opt) in self.stepped:
            raise RuntimeError("This optimizer has had its step: call update() before the next one.")

    def update(self):
        "After the steps of all optimizers: a smaller factor if one of them was skipped, a larger one after many good steps."
        if not self.finite: raise RuntimeError("update() has nothing to go by: call step(opt) or unscale(opt) before it.")
        if all(self.finite.values()): self.n_good += 1
        else: self.change_factor(self.backoff)
        if self.n_good == self.interval: self.change_factor(self.growth)
        self.finite.clear()
        self.stepped.clear()

    def change_factor(self, by):
        "One that would be too large stays what it is; one that would be too small is an error."
        factor, self.n_good = self.factor * by, 0
        if factor < SMALLEST_SCALE:
            raise RuntimeError("The gradients are NaN or infinite even with the smallest loss scale, so they do not "
                               "overflow: something is wrong with the loss, the data or the learning rate.")
        if factor < 2. ** 127: self.factor = factor

    def state_dict(self):
        "Plain numbers: the factor, the good updates since it last changed, and the arguments."
        return {name: getattr(self, name) for name in self.NAMES}

    def load_state_dict(self, state):
        "Go on from what `state_dict` gave; `ValueError` for anything else."
        if not isinstance(state, Mapping) or set(state) != set(self.NAMES):
            raise ValueError(f"state must be what LossScaler.state_dict() gave, with {', '.join(self.NAMES)}; got "
                             f"{shorten(state)}.")
        n_good = state["n_good"]
        if isinstance(n_good, bool) or not isinstance(n_good, int) or n_good < 0:
            refuse("n_good", "a whole number from 0", n_good)
        ScalerBooks.__init__(self, state["factor"], state["growth"], state["backoff"], state["interval"])
        self.n_good = n_good


def a_scaler(name, value):
    if not isinstance(value, ScalerBooks): refuse(name, "a LossScaler", value)
    return value


class WithMasters:
    "What `MixedPrecision` inherits: checks, and the loss as the others are to see it."
    plain = scaled = None

    def before_fit(self, learn):
        low = [name for name, p in learn.model.named_parameters() if p.dtype in HALVES]
        if low: raise ValueError(f"MixedPrecision needs the model's parameters in float32, where they are the masters; {low[0]} "
                                 f"is not, one of {len(low)}. Call model.float() first.")

    def after_backward(self, learn):
        if learn.loss is self.scaled is not None: learn.loss = self.plain  # unless somebody else has put one back
        self.plain = self.scaled = None


def norm_parameters(model):
    "The names of parameters of normalization layers, which stay in float32."
    return {f"{place}{'.' if place else ''}{name}" for place, module in model.named_modules() if isinstance(module, NORMS)
            for name, _ in module.named_parameters(recurse=False)}


def in_dtype(x, dtype):
    "Floating-point tensors, also in tuples, lists and dicts, as that dtype; whole numbers stay."
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, x)


def with_wild_images(batches, seed, share=.1, factor=100.):
    "In this share of the batches, one image comes with its values multiplied by the factor, as from a broken sensor."
    generator = torch.Generator().manual_seed(seed)
    for xb, yb in batches:
        if torch.rand(1, generator=generator).item() < share: xb = torch.cat([factor * xb[:1], xb[1:]])
        yield xb, yb


class Moved:
    "What `offload_saved` has copied, in bytes."
    bytes = 0


class Replay:
    """A module run once, and then again with everything as it was: random numbers, autocast, buffers, modes.

    The second run leaves random numbers, buffers and modes as it found them. `RuntimeError` if a parameter has changed since.
    """
    def __init__(self, module, inputs):
        check_inputs(inputs)
        self.module, self.device = module, device_of(module, inputs)
        self.plain = [None if isinstance(x, torch.Tensor) else x for x in inputs]
        self.learns = [isinstance(x, torch.Tensor) and x.requires_grad for x in inputs]
        self.buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        self.training = [m.training for m in module.modules()]
        self.versions = [p._version for p in module.parameters()]
        self.random = self.random_numbers()
        kinds = {self.device.type, "cpu"}
        self.casts = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds]

    def random_numbers(self):
        kind = self.device.type
        of_device = (torch.cuda.get_rng_state(self.device) if kind == "cuda" else
                     torch.mps.get_rng_state() if kind == "mps" else None)
        return torch.get_rng_state(), of_device

    def set_random_numbers(self, state):
        torch.set_rng_state(state[0])
        if self.device.type == "cuda": torch.cuda.set_rng_state(state[1], self.device)
        if self.device.type == "mps": torch.mps.set_rng_state(state[1])

    def set_modes(self, modes):
        for module, training in zip(self.module.modules(), modes): module.training = training

    def autocast(self):
        "As at first, but no copy of a weight is kept for others: one of a run without a graph would hide its gradient."
        stack = contextlib.ExitStack()
        for kind, dtype, enabled in self.casts:
            stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
        return stack

    def tensors(self, inputs): return [x if isinstance(x, torch.Tensor) else None for x in inputs]

    def inputs(self, saved):
        "The inputs of the first run, cut off from what they were computed from."
        return [plain if tensor is None else tensor.detach().requires_grad_(learns)
                for tensor, plain, learns in zip(saved, self.plain, self.learns)]

    def first(self, inputs):
        with self.autocast(): return self.module(*inputs)

    def again(self, inputs):
        if [p._version for p in self.module.parameters()] != self.versions:
            raise RuntimeError("A parameter of a checkpointed module was changed between its forward and its backward pass, "
                               "so it cannot be run again as it was.")
        now, modes = self.random_numbers(), [m.training for m in self.module.modules()]
        try:
            self.set_modes(self.training)
            self.set_random_numbers(self.random)
            buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
            with self.autocast(): return functional_call(self.module, buffers, tuple(inputs))
        finally:
            self.set_random_numbers(now)
            self.set_modes(modes)


class Recompute(torch.autograd.Function):
    "A module's outputs, for which only its inputs are kept: backward runs it again, as a `Replay` does."
    @staticmethod
    def forward(ctx, replay, n, *inputs_and_parameters):
        inputs, ctx.replay = inputs_and_parameters[:n], replay
        ctx.save_for_backward(*replay.tensors(inputs))
        return check_outputs(replay.first(inputs))  # no graph is built in here

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        inputs = ctx.replay.inputs(ctx.saved_tensors)
        with torch.enable_grad(): outputs = ctx.replay.again(inputs)
        needed = ctx.needs_input_grad[2:]
        everything = [*inputs, *ctx.replay.module.parameters()]
        wanted = [x for x, is_needed in zip(everything, needed) if is_needed]
        outputs, grads = with_graph(outputs, grads)
        found = iter(torch.autograd.grad(outputs, wanted, grads, allow_unused=True))
        return None, None, *(next(found) if is_needed else None for is_needed in needed)


def with_graph(outputs, grads):
    "Those outputs of a module that have a graph, and their gradients."
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(output, grad) for output, grad in zip(outputs, grads) if output.requires_grad]
    return [output for output, _ in pairs], [grad for _, grad in pairs]


def device_of(module, inputs):
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)] + [*module.parameters()]
    return tensors[0].device if tensors else torch.device("cpu")


def check_inputs(inputs):
    "Raises `TypeError` for inputs of a checkpointed module that hide tensors."
    for x in inputs:
        if isinstance(x, (tuple, list, dict)):
            raise TypeError("A checkpointed module takes tensors and plain values one by one, not in a "
                            f"{type(x).__name__}, where their gradients would be lost.")


def check_outputs(outputs):
    "Raises `TypeError` unless outputs are a tensor or a tuple of them."
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    if not all(isinstance(part, torch.Tensor) for part in parts):
        raise TypeError(f"A checkpointed module must give a tensor or a tuple of tensors, not {shorten(type(outputs).__name__)}.")
    return outputs


def leaves_of(outputs):
    "The leaves of a graph that collect gradients: parameters, and inputs that learn."
    nodes, found, seen = [], [], set()
    map_tensors(lambda tensor: nodes.append(tensor.grad_fn), outputs)
    while nodes:
        node = nodes.pop()
        if node is None or node in seen: continue
        seen.add(node)
        if hasattr(node, "variable"): found.append(node.variable)
        nodes += [following for following, _ in node.next_functions]
    return found


def storage(tensor): return tensor.untyped_storage()


def tensors_in(x):
    "The tensors in tuples, lists and dicts, and a module's parameters and buffers."
    if isinstance(x, nn.Module): return [*x.parameters(), *x.buffers()]
    found = []
    map_tensors(found.append, x)
    return found
