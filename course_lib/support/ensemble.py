"""N models at once, backstage: a grid checked, batches that begin again, memory measured, random numbers of their own, a step as a CUDA graph, Ctrl-C in the midst of vmap."""
import copy
import functools
import math
import numbers
import traceback
import warnings
import weakref
from itertools import islice
from types import SimpleNamespace

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .checks import check_hyper, check_mean_loss, positive_int, whole_number
from .optimizer import CheckedOptimizer
from .paired import paired
from .state import loader_state, set_loader_state
from .tensors import keep_freed_memory, to_device

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity)


def is_mlp(model):
    "An `nn.Sequential` of linear layers and activations, all of it to be trained, perhaps after `nn.Flatten()`?"
    if type(model) is not nn.Sequential or not len(model): return False
    layers = list(model)[1:] if repr(model[0]) == repr(nn.Flatten()) else list(model)
    linear = [layer for layer in layers if type(layer) is nn.Linear]
    hooked = any(hooks for module in (model, *layers)
                 for name, hooks in vars(module).items() if name.endswith("_hooks"))
    return (len(linear) > 0 and not hooked and all(type(layer) in (nn.Linear, *ACTIVATIONS) for layer in layers)
            and len(set(map(id, linear))) == len(linear) == len({id(layer.weight) for layer in linear})
            and all(p.requires_grad for p in model.parameters()))


def losses_of_all(loss_func, preds, yb):
    "The losses `[N]` of N models' predictions `[N, B, ...]` of the same targets; plain cross entropy in one call."
    plain = loss_func is F.cross_entropy or (type(loss_func) is nn.CrossEntropyLoss and
                                             repr(vars(loss_func)) == repr(vars(nn.CrossEntropyLoss())))
    if not plain or not isinstance(preds, torch.Tensor) or preds.ndim != 3 or yb.ndim != 1:
        return torch.vmap(loss_func, in_dims=(0, None), randomness="same")(preds, yb)
    losses = F.cross_entropy(preds.mT, yb.expand(len(preds), -1), reduction="none")     # [N, B]
    return losses.sum(1) / (yb != -100).sum()                                           # -100: not to be counted


def set_hypers(opt, hypers):
    """Give an `Optimizer` a value for each model, name -> tensor `[N]`, and a rate for each in any case; `ValueError` for
    what it does not have.
    """
    if not isinstance(opt, CheckedOptimizer):
        raise ValueError(f"opt_func made a {type(opt).__module__}.{type(opt).__name__}; a sweep needs an "
                         "Optimizer of this course, whose hyperparameters can be tensors: SGD, RMSProp, Adam, "
                         "AdamW, or Optimizer with steppers of your own.")
    for name, values in hypers.items():
        if name not in opt.hyper_names:
            hint = " (SGD has beta if it has momentum: partial(SGD, momentum=.9))" if name == "beta" else ""
            raise ValueError(f"This optimizer has no {name!r}; it has {', '.join(opt.hyper_names)}{hint}.")
        check_hyper(name, values)
        for group in opt.param_groups: group[name] = values
    for group in opt.param_groups:  # steppers know N models by a rate for each
        if isinstance(lr := group.get("lr"), numbers.Real):
            first = group["params"][0]
            group["lr"] = torch.full((len(first),), lr, dtype=first.dtype, device=first.device)


class Draws:
    "Random numbers of its own: a block under `with` goes on where the last one ended; the world's stay as they are."
    def __init__(self, seed, device):
        self.device, self.own = device, None
        with self:
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device): torch.cuda.manual_seed(seed)
        self.first = self.own

    def __enter__(self):
        self.worlds = self._state()
        if self.own: self._set(self.own)

    def __exit__(self, *problem):
        try: self.own = self._state()
        finally: self._set(self.worlds)

    @property
    def any_drawn(self): return any(not torch.equal(a, b) for a, b in zip(self.own, self.first))

    def _state(self):
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else [])]

    def _set(self, state):
        torch.set_rng_state(state[0])
        if len(state) > 1: torch.cuda.set_rng_state(state[1], self.device)


def tell_of_waits(step, *args):
    "-> (what a step returns, did it wait for the GPU, for a number that Python wanted, say?)."
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try: result = step(*args)
        finally: torch.cuda.set_sync_debug_mode(before)
    of_waits = [any(words in str(w.message) for words in ("synchronizing CUDA", "Synchronization debug")) for w in said]
    for warning, is_of_waits in zip(said, of_waits):
        if not is_of_waits: warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return result, any("called a synchronizing CUDA" in str(w.message) for w in said)


class RecordedStep:
    """A step as a CUDA graph, after three steps on a side stream, as PyTorch's manual asks for.

    A step that waits for the GPU is not recorded: a recording that breaks off leaves torch's random numbers and memory
    on that GPU in disorder, for the whole process.
    """
    def __init__(self, step, opt): self.step, self.opt, self.n_warm, self.graph, self.waits = step, opt, 0, None, False

    def __call__(self, xb, yb):
        if self.graph is None and self.n_warm == 3 and not self.waits: self._record(xb, yb)
        if self.graph is None or [t.shape for t in (xb, yb)] != [t.shape for t in self.inputs]:
            self.n_warm += 1
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                if self.n_warm == 3: losses, self.waits = tell_of_waits(self.step, xb, yb)
                else: losses = self.step(xb, yb)
            torch.cuda.current_stream().wait_stream(stream)
            return losses
        for mine, new in zip(self.inputs, (xb, yb)): mine.copy_(new)
        self.graph.replay()
        return self.losses.clone()

    def _record(self, xb, yb):
        for state in self.opt.state.values():  # a count on the CPU would be recorded as a constant
            if "step" in state: state["step"] = state["step"].to(xb.device)
        self.inputs, self.graph = (xb.clone(), yb.clone()), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph): self.losses = self.step(*self.inputs)
        except RuntimeError:  # it cannot be recorded for another reason: go on as before, with a generator in order
            self.graph, self.waits = None, True
            generator = torch.cuda.default_generators[xb.device.index]
            generator.graphsafe_set_state(generator.clone_state())
            self.opt.zero_grad()


class Unwound:
    """Under `with`: Ctrl-C leaves none of vmap's levels behind, nor a `no_grad` (either would make every later backward
    of the process fail).
    """
    def __enter__(self):
        self.depth, self.grad = torch._C._functorch.get_dynamic_layer_stack_depth(), torch.is_grad_enabled()

    def __exit__(self, kind, error, frames):
        if kind is KeyboardInterrupt: traceback.clear_frames(frames)  # or vmap's generators end somebody's level later
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(self.depth)
        torch.set_grad_enabled(self.grad)
        stopped = getattr(error, "__context__", None)
        if isinstance(stopped, KeyboardInterrupt): raise stopped  # vmap stumbled over a level that it had not begun


def seeded_copies(model, seeds, init=None):
    """A copy of the model with the weights that each seed draws, by `init(copy)` or every layer's `reset_parameters`: one
    copy, drawn anew for each. On the CPU, so that every device gets the same. What is frozen stays, and so does the
    world's random state.
    """
    drawn = copy.deepcopy(model).cpu()
    before = [(tensor, tensor.detach().clone()) for tensor in (*drawn.parameters(), *drawn.buffers())]
    frozen = [(tensor, value) for tensor, value in before if isinstance(tensor, nn.Parameter) and not tensor.requires_grad]
    for seed in seeds:
        with Draws(seed, torch.device("cpu")), torch.no_grad():
            for tensor, value in before: tensor.copy_(value)
            if init is not None: init(drawn)
            else: reset_parameters(drawn)
            for tensor, value in frozen: tensor.copy_(value)
        yield drawn


def reset_parameters(model):
    "Every layer that learns draws its weights anew; `ValueError` for one that does not know how."
    for name, module in model.named_modules():
        if not any(p.requires_grad for p in module.parameters(recurse=False)): continue
        if not hasattr(module, "reset_parameters"):
            raise ValueError(f"A seed axis draws the weights anew, and {type(module).__name__}{name and f' ({name})'} "
                             "has no reset_parameters. Pass init, a function that draws a model's weights in place: "
                             "sweep(…, init=draw).")
        module.reset_parameters()


def learned(model): return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def kept(model):
    "A module's tensors that are not trained, such as running averages; whole numbers are the same for all models."
    return [(name, b) for name, b in model.named_buffers() if b.is_floating_point()]


def isolated(step):
    """A decorator for `step(ensemble, xb, yb)`: random numbers of the ensemble's own, gradients wanted whatever the
    caller wants, on a GPU as a CUDA graph, unwound after Ctrl-C.
    """
    @functools.wraps(step)
    def run(self, xb, yb):
        with Unwound(), self.draws, torch.enable_grad():
            if self.device.type != "cuda": return step(self, xb, yb)
            self.recorded = self.recorded or RecordedStep(functools.partial(step, self), self.opt)
            return self.recorded(xb, yb)
    return run


class EnsembleBase:
    """What `Ensemble` inherits: the model that its stacked tensors are put into, state dicts, random numbers.

    Wants `self.params` and `self.buffers`, name -> tensor `[N, ...]`, and adds `.model`, `.device`, `.draws`.
    """
    def __init__(self, model, seed, seeds=None, init=None):
        if not self.params: raise ValueError("The model has no parameters to train.")
        self.device, self.recorded = next(iter(self.params.values())).device, None
        if seeds is not None:
            seeds = seeds.tolist()
            seed, model = seeds[0], self._start_from(model, seeds, init)
        for p in self.params.values(): p.n_models = len(p)  # for whoever goes by the number of axes
        self.draws = Draws(seed, self.device)
        own = {id(model.get_parameter(name)): name for name in self.params}
        own |= {id(model.get_buffer(name)): name for name in self.buffers}
        self.places = {f"{path}.{name}".lstrip("."): own[id(tensor)]  # a layer that is used twice is one place
                       for path, module in model.named_modules()
                       for name, tensor in (*module._parameters.items(), *module._buffers.items())
                       if id(tensor) in own}
        self.keys = {key: own[id(value)] for key, value in model.state_dict(keep_vars=True).items() if id(value) in own}
        stacked = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) in own]
        self.model = copy.deepcopy(model, {id(tensor): tensor for tensor in stacked})  # these are not needed again
        self.is_mlp = is_mlp(self.model)
        self.vmapped = torch.vmap(self.pred_of_one, in_dims=(0, 0, None), randomness="same")

    def takes_wide_product(self, xb):
        "Is the model linear layers with activations between them, and are the inputs flat once they reach the first?"
        return self.is_mlp and (xb.ndim == 2 or isinstance(self.model[0], nn.Flatten))

    @torch.no_grad()
    def _start_from(self, model, seeds, init):
        "Give each model the weights that its seed draws; returns what the first seed makes of the model."
        others = list(dict.fromkeys(seeds))[::-1]  # the first comes last, and stays in the copy
        for seed, drawn in zip(others, seeded_copies(model, others, init)):
            at = [i for i, other in enumerate(seeds) if other == seed]
            for name, p in self.params.items(): p[at] = drawn.get_parameter(name).to(self.device)
            for name, b in self.buffers.items(): b[at] = drawn.get_buffer(name).to(self.device)
        return drawn.to(self.device)

    def pred_of_one(self, params, buffers, xb):
        "What the model predicts with these tensors in all places of its own."
        tensors = {**params, **buffers}
        return functional_call(self.model, {place: tensors[name] for place, name in self.places.items()}, (xb,),
                               tie_weights=False)

    def state_dict(self, i):
        "What `model.load_state_dict` takes, of model i."
        state, own = self.model.state_dict(keep_vars=True), {**self.params, **self.buffers}
        for key, value in state.items():
            value = own[self.keys[key]][i] if key in self.keys else value
            state[key] = value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
        return state


# A grid of models

ALL_LOST = "No point has a finite loss: all have blown up, or none was trained."
ENDED = "Take fewer steps, or a loader that can start again (a list, a DataLoader)."
CHUNK_BYTES = 12 * 2 ** 20  # of a layer's weights in one ensemble on a CPU


def check_seeds(seeds):
    "The values of a seed axis, an int64 tensor `[S]` on the CPU."
    try: found = [whole_number("a seed", seed, at_least=0) for seed in seeds]
    except (TypeError, ValueError) as error:
        raise ValueError(f"grid['seed'] must be a list of whole numbers from 0, such as range(20): {error}") from None
    if not found or max(found) >= 2 ** 63:
        raise ValueError("grid['seed'] must have at least one seed, as in range(20), and none of 2⁶³ or more.")
    if twice := [seed for seed in dict.fromkeys(found) if found.count(seed) > 1]:
        raise ValueError(f"grid['seed'] has seeds twice: {twice}. The same seed gives the same run; take others.")
    return torch.tensor(found)


def check_grid(grid):
    "The names of a grid, and their values on the CPU: floating-point tensors `[L]`, seeds int64."
    if not isinstance(grid, dict) or not grid:
        raise ValueError('grid must be a dict of values by hyperparameter, such as {"lr": [.01, .1]}, '
                         f'not {grid!r:.80}.')
    values = []
    for name, axis in grid.items():
        if name == "seed":
            values.append(check_seeds(axis))
            continue
        try: axis = axis.detach().cpu() if isinstance(axis, torch.Tensor) else torch.as_tensor(np.asarray(axis))
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"grid[{name!r}] must be a list or tensor of numbers, not {axis!r:.80}.") from None
        if axis.ndim != 1 or not len(axis) or axis.is_complex() or axis.dtype is torch.bool:
            raise ValueError(f"grid[{name!r}] must be a list of at least one number; "
                             f"got {axis.dtype} of shape {list(axis.shape)}.")
        axis = axis if axis.is_floating_point() else axis.double()
        check_hyper(name, axis)
        values.append(axis)
    return tuple(grid), tuple(values)


def nearest(name, values, value):
    "The place of a value on an axis; `ValueError` if it is not there."
    try: at = (values.double() - float(value)).abs().argmin().item()
    except (TypeError, ValueError): at = None
    if at is None or not math.isclose(values[at].item(), value, rel_tol=1e-5):
        raise ValueError(f"{name} = {value!r} is no value of this grid; it has "
                         f"{', '.join(f'{v:.4g}' for v in values.tolist())}.")
    return at


def free_bytes(device):
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def n_bytes(tensors): return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class PeakMemory(TorchDispatchMode):
    "`.peak`: the bytes of all tensors that were made under `with` and lived at the same time, at most."
    def __init__(self, known=()):
        super().__init__()
        self.now, self.peak, self.alive = 0, 0, {tensor.untyped_storage()._cdata: None for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided: self._add(tensor.untyped_storage())
        return out

    def _add(self, storage):
        if (key := storage._cdata) in self.alive: return
        size = storage.nbytes()

        def gone(_):
            del self.alive[key]
            self.now -= size

        self.alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def cut(n, lasting, passing, max_bytes, at_once, n_parts=1):
    """Points 0 … n − 1 in slices that fit into memory, each cut into ensembles: a list of lists of `slice`s.

    lasting, passing: bytes of a model that is there, and those that it needs besides while it is stepped; the
    ensembles of a slice are stepped one after the other, at most `at_once` models each, and none of them reaches from
    one of `n_parts` equal parts of the points into the next.
    """
    fit = int(max_bytes // (lasting + passing))
    if fit < 1:
        raise MemoryError(f"One model needs about {(lasting + passing) / 2 ** 20:,.1f} MiB for training, and only "
                          f"{max(0, max_bytes) / 2 ** 20:,.1f} MiB may be used. Take a smaller model or smaller batches.")
    part = n // n_parts
    n_chunks = math.ceil(part / min(fit, at_once))  # of a part
    edges, largest = [round(part * i / n_chunks) for i in range(n_chunks + 1)], math.ceil(part / n_chunks)
    chunks = [slice(first + a, first + b) for first in range(0, n, part) for a, b in zip(edges, edges[1:])]
    together = int((max_bytes - largest * passing) // (largest * lasting))
    return [chunks[i:i + together] for i in range(0, len(chunks), together)]


class SweepBase:
    """What `Sweep` inherits: arguments checked, a trial step, memory reckoned, batches, and what the losses say.

    Wants `ensemble(hypers)`, which makes models that `step(xb, yb)` all at once. Arguments and errors as in `sweep`.
    """
    def __init__(self, model, loss_func, opt_func, dl, n_steps, grid, seed=0, max_bytes=None, init=None):
        self.model, self.loss_func, self.opt_func, self.seed = copy.deepcopy(model), loss_func, opt_func, seed
        self.init = init
        self.n_steps, self.dl = positive_int("n_steps", n_steps), dl
        self.names, self.values = check_grid(grid)
        if hasattr(dl, "__next__"):  # it can be read only once
            self.dl = list(islice(dl, self.n_steps))
            if 0 < len(self.dl) < self.n_steps:
                raise ValueError(f"The loader ended after {len(self.dl)} of {self.n_steps} batches. {ENDED}")
        self.shape, self.ensembles = tuple(map(len, self.values)), {}
        first = next((p for p in model.parameters() if p.requires_grad), torch.zeros(()))
        self.device, dtype = first.device, torch.float64 if first.dtype is torch.float64 else torch.float32
        # The list of all points goes through the grid with the seeds outermost, so that those of a seed stand together.
        self.seed_axis = self.names.index("seed") if "seed" in self.names else None
        self.outer = self.seed_axis or 0
        places = torch.meshgrid(*map(torch.arange, self.shape), indexing="ij")
        points = (values[at.movedim(self.outer, 0).flatten()] for values, at in zip(self.values, places))
        self.hypers = {name: p if name == "seed" else p.to(self.device, dtype) for name, p in zip(self.names, points)}
        if self.seed_axis is not None: self._check_seeds()
        self.slices = self._slices(math.prod(self.shape), dtype, max_bytes)
        self._loss = torch.full((math.prod(self.shape), self.n_steps), math.nan, dtype=dtype, device=self.device)
        self._done = torch.zeros(len(self._loss), dtype=torch.int64)  # steps of each

    # Before it begins

    def _check_seeds(self):
        "Can weights be drawn, and does each seed draw others?"
        weights = lambda model: [p.detach().clone() for _, p in learned(model)]
        first, *others = map(weights, seeded_copies(self.model, self.values[self.seed_axis][:2].tolist(), self.init))
        for other in others:
            if all(map(torch.equal, first, other)):
                raise ValueError("Two seeds gave the same weights: what draws them takes nothing from torch's random "
                                 "numbers. Pass an init(model) that does.")

    def _slices(self, n, dtype, max_bytes):
        "The points in slices that fit into memory, as `cut` gives them; one model is tried out for that."
        self._check_steppers()
        lasting, passing = self._bytes_of_one()
        max_bytes = free_bytes(self.device) // 2 if max_bytes is None else max_bytes
        for_losses = n * self.n_steps * dtype.itemsize
        if lasting + passing <= max_bytes < lasting + passing + for_losses:
            raise MemoryError(f"The losses of {n:,} models × {self.n_steps:,} steps alone take "
                              f"{for_losses / 2 ** 20:,.1f} MiB, and only {max_bytes / 2 ** 20:,.1f} MiB may be used. "
                              "Take fewer points or fewer steps.")
        if self.device.type == "cpu": keep_freed_memory()
        widest = max(n_bytes([p]) for p in self.model.parameters() if p.requires_grad)
        at_once = n if self.device.type != "cpu" else max(1, CHUNK_BYTES // widest)
        n_parts = self.shape[self.seed_axis] if self.masks and self.seed_axis is not None else 1  # each with its masks
        return cut(n, lasting, passing, max_bytes - for_losses, at_once, n_parts)

    def _check_steppers(self):
        "Do the steppers keep models apart? With NaN for one's gradients, the other must stay finite."
        two = self.ensemble({name: values.min().expand(2).clone() for name, values in self.hypers.items()})
        for p in two.params.values():
            p.grad = torch.ones_like(p)
            p.grad[1] = math.nan
        try:
            with Unwound(), two.draws: two.opt.step()
        except torch.OutOfMemoryError as error: raise MemoryError(f"Not even two models fit: {error}") from error
        except RuntimeError as error: raise ValueError(f"A stepper cannot step N models at once: {error}") from error
        if not all(p[0].isfinite().all() for p in two.params.values()):
            raise ValueError("A stepper mixes the models: does it take a norm or mean over the whole tensor? "
                             "It must leave out the first axis, where each model has its place.")

    def _bytes_of_one(self):
        """Bytes of a model that last, and those that pass, by two steps of two models (a first step has no state yet,
        and with one model kernels save copies that they need with more); raises what would go wrong with all of them.
        """
        xb, yb = self._trial_batch()
        alone = self._loss_alone(xb, yb)
        two = self.ensemble({name: values[:1].expand(2).clone() for name, values in self.hypers.items()})
        try:
            losses = two.step(xb, yb)
            states = [t for state in two.opt.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
            lasting = [*two.params.values(), *two.buffers.values(), *states]
            with PeakMemory((*lasting, xb, yb, *self.model.parameters())) as passing: two.step(xb, yb)
        except torch.OutOfMemoryError as error: raise MemoryError(f"Not even two models fit: {error}") from error
        except RuntimeError as error:
            raise ValueError(f"This model or loss cannot be trained N at once: {error}") from error
        self.masks = two.draws.any_drawn
        if self.masks and not torch.allclose(losses, alone, rtol=torch.finfo(losses.dtype).eps ** .5,
                                                      equal_nan=True):
            warnings.warn("The random layers of this model draw in another order N at once than alone (torch.vmap "
                          "fills a mask row by row, dropout alone as the tensor lies in memory). All points share "
                          "their masks, but these are not the masks of a model that trains alone with this seed.",
                          stacklevel=6)
        graphs = 2 if self.device.type == "cuda" else 1  # whose memory is their own, beside that of the first steps
        return n_bytes(lasting) / 2, graphs * passing.peak / 2

    def _loss_alone(self, xb, yb):
        "The loss of the model itself, on a copy."
        seed = self.seed if self.seed_axis is None else int(self.values[self.seed_axis][0])
        if self.seed_axis is None: trial = copy.deepcopy(self.model)
        else: trial = next(seeded_copies(self.model, [seed], self.init)).to(self.device)
        with Draws(seed, self.device):
            buffers = dict(trial.named_buffers())
            check_mean_loss(loss := self.loss_func(trial(xb), yb))
            for name, buffer in trial.named_buffers():
                if buffer is not buffers.get(name):
                    raise ValueError(f"The model replaces its buffer {name!r} instead of changing it in place; "
                                     "N models at once cannot do that. Write buffer.copy_(new) or buffer.add_(1).")
        return loss.detach()

    def _trial_batch(self):
        state = loader_state(SimpleNamespace(train=self.dl))
        try:
            with Draws(self.seed, self.device): batch = next(iter(self.dl), None)
        finally: set_loader_state(SimpleNamespace(train=self.dl), state)
        if batch is None: raise ValueError("The loader is empty: it gave no batch.")
        try: xb, yb = batch
        except (TypeError, ValueError): raise ValueError(f"A loader gives pairs (xb, yb), not {batch!r:.80}") from None
        if not isinstance(xb, torch.Tensor) or not isinstance(yb, torch.Tensor):
            raise ValueError("A sweep needs batches of two tensors (xb, yb), "
                             f"not {type(xb).__name__} and {type(yb).__name__}.")
        return to_device((xb, yb), self.device)

    # While it trains

    def batches(self, n_steps):
        "The first n batches on the device, from the loader's epoch 0 on; a loader that ends begins again."
        draws, done = Draws(self.seed, self.device), 0
        loader = copy.copy(self.dl) if hasattr(self.dl, "epoch") else self.dl
        if hasattr(loader, "epoch"): loader.epoch = 0
        holder = SimpleNamespace(train=loader)
        state = loader_state(holder)
        try:
            while done < n_steps:
                before = done
                with draws: batches = iter(loader)
                while done < n_steps:
                    with draws: batch = next(batches, None)
                    if batch is None: break
                    yield to_device(tuple(batch), self.device)
                    done += 1
                if done == before:
                    raise ValueError(f"The loader ended after {done} of {n_steps} batches, and has no more. {ENDED}")
        finally: set_loader_state(holder, state)

    def steps(self):
        "A generator that trains: it yields the number of each step once that is done (in every slice anew)."
        for chunks in self.slices: yield from self.train(chunks, self.n_steps)

    def train(self, chunks, n_steps):
        "Train the points in these `slice`s of the list, an ensemble each; yields each step done."
        self.ensembles = {chunk.start: self.ensemble({name: values[chunk] for name, values in self.hypers.items()})
                          for chunk in chunks}
        for step, (xb, yb) in enumerate(self.batches(n_steps)):
            for chunk in chunks:
                self._loss[chunk, step] = self.ensembles[chunk.start].step(xb, yb)
                self._done[chunk] = step + 1
            yield step

    # What has come of it

    @property
    def loss(self): return self.on_grid(self._loss)

    def at(self, *index):
        "The hyperparameters of a point: name -> number."
        self.point(index)
        return {name: values[i].item() for name, values, i in zip(self.names, self.values, index)}

    def params(self, *index):
        """A state dict of a trained model, buffers included, for `model.load_state_dict`.

        If the grid did not fit into memory at once, the slice that it was in may have to be trained again.
        """
        i = self.point(index)
        chunks, chunk = self.where(i)
        if chunk.start not in self.ensembles:
            for _ in self.train(chunks, int(self._done[i])): pass
        return self.ensembles[chunk.start].state_dict(i - chunk.start)

    def on_grid(self, values):
        "Values of the list of all points, `[n, ...]`, as `[*grid, ...]`; a view."
        seeds_first = [self.shape[self.outer], *self.shape[:self.outer], *self.shape[self.outer + 1:]]
        return values.view(*seeds_first, *values.shape[1:]).movedim(0, self.outer)

    @property
    def n_done(self):
        "How many steps all models have made."
        return int(self._done.min())

    def final(self, n_last=None):
        "The mean of the last n losses so far (by default a tenth of the steps), `[*grid]`; inf where it blew up."
        n_last = max(1, self.n_steps // 10) if n_last is None else positive_int("n_last", n_last)
        last = self._loss.new_full(self._done.shape, math.nan)
        for done in set(self._done.tolist()) - {0}:
            rows = self._done == done
            last[rows] = self._loss[rows, max(0, done - n_last):done].mean(-1)
        return self.on_grid(last.nan_to_num(math.inf, math.inf, math.inf))

    def best(self, n_last=None):
        "The index of the point of lowest `final` loss, a tuple; `ValueError` if all are lost."
        final = self.final(n_last)
        if not final.isfinite().any(): raise ValueError(ALL_LOST)
        return tuple(int(i) for i in torch.unravel_index(final.argmin(), self.shape))

    def over_seeds(self, n_last=None):
        "`final`, its mean over the seeds, `[*grid without seeds]`; inf where one blew up."
        final = self.final(n_last)
        return final if self.seed_axis is None else final.mean(self.seed_axis)

    def of_seeds(self, point, n_last=None):
        """`final` of one point, `[S]`, a number for each seed.

        point: its place on the other axes, a tuple (or the number itself where there is but one), or name -> value.
        """
        if self.seed_axis is None:
            raise ValueError('This sweep has no seeds to compare: give its grid an axis, as in {"seed": range(20), …}.')
        axes = [(name, values) for name, values in zip(self.names, self.values) if name != "seed"]
        if isinstance(point, dict):
            if set(point) != {name for name, _ in axes}:
                raise ValueError(f"A point of this grid needs {', '.join(name for name, _ in axes) or 'no names'} "
                                 f"besides the seed, not {', '.join(map(str, point)) or 'nothing'}.")
            point = tuple(nearest(name, values, point[name]) for name, values in axes)
        point = point if isinstance(point, tuple) else (point,)
        self.point((*point[:self.seed_axis], 0, *point[self.seed_axis:]))
        return self.final(n_last).movedim(self.seed_axis, 0)[(slice(None), *point)]

    def paired(self, a=(), b=(), other=None, n_last=None, confidence=.95):
        """How much lower (below zero) or higher point a's `final` loss is than point b's, seed by seed, as `Paired`.

        a, b: points as in `of_seeds`; b is one of `other`'s, a `Sweep` over the same seeds (another optimizer, say).
        Raises `ValueError` where there are no two seeds, or a seed has blown up.
        """
        other = self if other is None else other
        if not isinstance(other, SweepBase): raise ValueError(f"other must be a Sweep, not {type(other).__name__}.")
        sides = self.of_seeds(a, n_last), other.of_seeds(b, n_last)
        mine, others = (sweep.values[sweep.seed_axis].tolist() for sweep in (self, other))
        if mine != others:
            raise ValueError(f"Only runs of the same seeds can be paired: these have {mine} and {others}.")
        return paired(*(side.cpu() for side in sides), confidence)

    def ridge(self, within=.25):
        """The middle of the good values of the first axis, for each value of the others: the geometric mean of those
        whose `final` loss, the mean over seeds if there are some, is within a quarter of the lowest; NaN where none is.
        """
        final, values = self.over_seeds().cpu(), next(v for name, v in zip(self.names, self.values) if name != "seed")
        lowest = final.amin(0)
        good = (final <= lowest + within * lowest.abs()) & final.isfinite()
        logs = values.double().log().view(-1, *[1] * (final.ndim - 1))
        return (torch.where(good, logs, 0).sum(0) / good.sum(0)).exp()

    @property
    def diverged(self):
        "`[*grid]`, bool: whose loss is NaN, infinite, or more than a tenth above where it began."
        first, final, begun = self.on_grid(self._loss[:, 0]), self.final(), self.on_grid(self._done > 0)
        return begun.to(self.device) & (final.isinf() | (final > first + .1 * first.abs()))

    def point(self, index):
        "The number of a point in the list of all, from its place in the grid."
        whole = all(isinstance(i, numbers.Integral) for i in index)
        if not whole or len(index) != len(self.shape) or not all(-n <= i < n for i, n in zip(index, self.shape)):
            raise IndexError(f"{index} is no point of this grid: expected one index for each of {self.names}, "
                             f"within {list(self.shape)}.")
        return self.on_grid(torch.arange(len(self._loss)))[tuple(map(int, index))].item()

    def where(self, point):
        "The slice of a point, a list of `slice`s, and which of these holds it."
        return next((chunks, chunk) for chunks in self.slices for chunk in chunks if chunk.start <= point < chunk.stop)

    def __repr__(self):
        grid = " × ".join(f"{len(values)} {'seeds' if name == 'seed' else name}"
                          for name, values in zip(self.names, self.values))
        return f"Sweep: {math.prod(self.shape):,} models, {grid}, {self.n_steps} steps, on {self.device}"
