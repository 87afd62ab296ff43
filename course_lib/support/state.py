"""State: of random numbers and loaders, of a whole learner in a file without pickle, and snapshots that undo everything."""
import contextlib
import copy
import json
import operator
import random
from collections import deque
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from .checks import SCHEDULER_KEYS
from .files import write_whole


def loader_state(dls):
    """What decides the order of the next passes, by its place, as in "train.epoch" and "train.sampler.generator":
    the epochs and random generators of loaders and of their samplers, data sets and transforms.
    """
    state = {}
    for part in ("train", "valid", "test"):
        for place in ("", ".sampler", ".batch_sampler", ".batch_sampler.sampler", ".dataset", ".transform"):
            try: owner = operator.attrgetter(part + place)(dls)
            except AttributeError: continue
            for name, value in {"epoch": getattr(owner, "epoch", None), **getattr(owner, "__dict__", {})}.items():
                if isinstance(value, torch.Generator): state[f"{part}{place}.{name}"] = value.get_state()
                elif name == "epoch" and isinstance(value, int): state[f"{part}{place}.{name}"] = value
    return state


def set_loader_state(dls, state):
    for place, value in state.items():
        owner, _, name = place.rpartition(".")
        if name == "epoch": operator.attrgetter(owner)(dls).epoch = value
        else: operator.attrgetter(place)(dls).set_state(value.cpu())


def random_state(device=None):
    "The state of all random numbers: Python's, NumPy's, torch's, and those of a cuda or mps device."
    state = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False), "torch": torch.get_rng_state()}
    if device is not None and device.type == "cuda": state["cuda"] = torch.cuda.get_rng_state(device)
    if device is not None and device.type == "mps": state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state, device=None):
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    if device is not None and device.type == "mps" and "mps" in state: torch.mps.set_rng_state(state["mps"].cpu())


def pack(value, tensors):
    "`value` as JSON can hold it; its tensors go into the dict `tensors`. Raises `ValueError` for what needs pickle."
    if isinstance(value, torch.Tensor):
        tensors[key := f"state.{len(tensors)}"] = value
        return {"tensor": key}
    if isinstance(value, np.ndarray): return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic): return value.item()
    if isinstance(value, dict): return {"dict": [[pack(k, tensors), pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (tuple, list)): return {type(value).__name__: [pack(part, tensors) for part in value]}
    if isinstance(value, slice): return {"slice": [value.start, value.stop]}
    if value is None or isinstance(value, (bool, int, float, str)): return value
    raise ValueError(f"A {type(value).__name__} cannot be saved without pickle: {value!r:.80}.")


def unpack(value, tensors):
    "The inverse of `pack`."
    if not isinstance(value, dict): return value
    if "tensor" in value: return tensors[value["tensor"]]
    if "array" in value: return np.array(value["array"], dtype=value["dtype"])
    if "dict" in value: return {unpack(k, tensors): unpack(v, tensors) for k, v in value["dict"]}
    if "slice" in value: return slice(*value["slice"])
    [(kind, parts)] = value.items()
    return {"tuple": tuple, "list": list}[kind](unpack(part, tensors) for part in parts)


def _modules(learn):
    "What has a state, by name: the model (the one that `torch.compile` was given), and a loss that is a module."
    parts = {"model": learn.model, "loss_func": learn.loss_func}
    return {name: getattr(part, "_orig_mod", part) for name, part in parts.items() if isinstance(part, nn.Module)}


def _weights(learn):
    "name -> tensor, or what else a module calls its state."
    return {f"{part}.{name}": value for part, module in _modules(learn).items()
            for name, value in module.state_dict().items()}


def _layout(learn):
    "What must agree in two optimizers: groups, the parameters in them, hyperparameters, steps; all by name."
    names = {id(p): f"{part}.{name}" for part, module in _modules(learn).items()
             for name, p in module.named_parameters()}
    opt, groups = learn.opt, learn.opt.param_groups
    steppers = [getattr(stepper, "func", stepper) for stepper in getattr(opt, "steppers", [])]  # inside of a partial
    return {"its kind": " → ".join([type(opt).__name__, *(getattr(s, "__name__", type(s).__name__) for s in steppers)]),
            "the number of groups": len(groups),
            **{f"the number of parameters in group {i}": len(group["params"]) for i, group in enumerate(groups)},
            **{name: "set" for group in groups for name in sorted(group.keys() - {"params", *SCHEDULER_KEYS})},
            **{f"parameter {j} of group {i}": names.get(id(p), f"one of shape {list(p.shape)}")
               for i, group in enumerate(groups) for j, p in enumerate(group["params"])}}


def save(learn, path):
    """Write model, optimizer, rate, epochs done, the data's next order and the random state to one safetensors file.

    The model's tensors are called `model.…` as in its state dict, those of a loss that is a module, `loss_func.…`.
    Raises `ValueError` for a state that only pickle could hold, and leaves a file that was there before as it was if
    anything goes wrong.
    """
    weights = _weights(learn)
    tensors = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    notes = {"optimizer": learn.opt and learn.opt.state_dict(), "layout": learn.opt and _layout(learn), "lr": learn.lr,
             "epochs_done": learn.epochs_done, "random": random_state(learn.device), "loaders": loader_state(learn.dls),
             "frozen": sorted(name for name, p in learn.model.named_parameters() if not p.requires_grad),
             "extra": {name: value for name, value in weights.items() if name not in tensors}}
    notes = json.dumps({"learner": 1, **{name: pack(value, tensors) for name, value in notes.items()}})
    whole = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    write_whole(Path(path), safetensors.torch.save(whole, {"learner": notes}))


def _read(path):
    "The weights and notes of a file that `save` wrote."
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # or they would stay the file's
            notes = file.metadata()["learner"]
        notes = {name: unpack(value, tensors) for name, value in json.loads(notes).items()}
        for name in ("optimizer", "layout", "lr", "epochs_done", "random", "loaders", "frozen", "extra"): notes[name]
    except FileNotFoundError: raise FileNotFoundError(f"There is no file {path} to load.") from None
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a whole file that Learner.save wrote ({error}).") from error
    return {name: v for name, v in tensors.items() if not name.startswith("state.")} | notes["extra"], notes


def _differences(what, saved, here):
    "Raises `ValueError` where two dicts of shapes or names differ."
    for name in {**saved, **here}:
        if saved.get(name) != here.get(name):
            raise ValueError(f"The file belongs to another {what}: {name} is {saved.get(name, 'missing')} there and "
                             f"{here.get(name, 'missing')} here.")


def _kinds(weights):
    return {name: f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            if isinstance(value, torch.Tensor) else "no tensor" for name, value in weights.items()}


@contextlib.contextmanager
def _all_or_nothing(learn):
    "If the block raises, weights, optimizer, order of the data and random numbers are as they were before it."
    weights = [(value, value.clone()) for value in _weights(learn).values() if isinstance(value, torch.Tensor)]
    owners = [(vars(owner), vars(owner).copy()) for owner in (learn, learn.opt) if owner is not None]
    order, numbers = loader_state(learn.dls), random_state(learn.device)
    try: yield
    except BaseException:
        for owner, content in owners: owner.update(content)
        for value, before in weights: value.copy_(before)
        set_random_state(numbers, learn.device)
        set_loader_state(learn.dls, order)
        raise


def load(learn, path):
    """Bring a learner to the state that `save` wrote; one that has never fitted gets its optimizer first.

    Raises `ValueError` for a damaged file and for another model or optimizer, and changes nothing then.
    """
    weights, notes = _read(path)
    known = lambda state: dict.fromkeys(state, "known")
    _differences("model", _kinds(weights), _kinds(_weights(learn)))
    _differences("kind of loader", known(notes["loaders"]), known(loader_state(learn.dls)))
    with _all_or_nothing(learn):
        if notes["optimizer"] is None: learn.opt = None
        else:
            if learn.opt is None:
                learn._lr = notes["lr"]
                learn.make_opt()
            _differences("optimizer", notes["layout"], _layout(learn))
            learn.opt.load_state_dict(notes["optimizer"])
        for part, module in _modules(learn).items():
            module.load_state_dict({name.removeprefix(f"{part}."): value for name, value in weights.items()
                                    if name.startswith(f"{part}.")})
        learn.epochs_done, learn._lr = notes["epochs_done"], notes["lr"]
        set_loader_state(learn.dls, notes["loaders"])
        set_random_state(notes["random"], learn.device)
        for name, p in learn.model.named_parameters(): p.requires_grad_(name not in notes["frozen"])


class Snapshot:
    """What a search can change of a learner, written down; `restore()` is the way back, bit for bit.

    Written down: the model, the optimizer and a loss that is a module, with all tensors, random generators and
    containers inside, the callbacks, the order of the data, random numbers. Not: arrays and objects of other kinds that
    a module keeps, attributes of loaders, what a callback has in `__slots__` or changes outside of all these.
    """
    def __init__(self, learn):
        self.learn, self.met, self.tensors, self.leaves, self.containers, self.generators = learn, {}, [], [], [], []
        self.random, self.loaders = random_state(learn.device), loader_state(learn.dls)
        for owner in (learn, *learn.cbs): self.containers.append((vars(owner), vars(owner).copy()))
        for part in (learn.cbs, learn.metrics, learn.model, learn.opt, learn.loss_func): self._write_down(part)

    def _write_down(self, part):
        "A tensor, generator or container with all that is inside; a module or optimizer is one, of its attributes."
        if id(part) in self.met: return
        self.met[id(part)] = part
        if isinstance(part, torch.Tensor): return self._write_down_tensor(part)
        if isinstance(part, torch.Generator): self.generators.append((part, part.get_state()))
        if isinstance(part, (nn.Module, torch.optim.Optimizer)): part = vars(part)
        if not isinstance(part, (dict, list, tuple, set, deque)): return
        if not isinstance(part, tuple): self.containers.append((part, copy.copy(part)))
        for inside in list(part.values() if isinstance(part, dict) else part): self._write_down(inside)

    def _write_down_tensor(self, tensor):
        self.tensors.append((tensor, tensor.detach().clone()))
        if not tensor.is_leaf or tensor.is_inference(): return
        self.leaves.append((tensor, tensor.data, tensor.requires_grad, tensor.grad))
        if tensor.grad is not None: self._write_down(tensor.grad)

    def give_copies(self):
        "Let the search change deep copies of what callbacks remember, but for what they share with the loop."
        learn = self.learn
        loaders = [getattr(learn.dls, part, None) for part in ("train", "valid", "test")]
        shared = [part for owner in (learn, learn.dls, *loaders)
                  for part in (owner, *getattr(owner, "__dict__", {}).values())]
        memo = {**self.met, **{id(part): part for part in shared}}
        for cb in learn.cbs: vars(cb).update({name: _copied(value, memo) for name, value in vars(cb).items()})

    @torch.no_grad()
    def restore(self):
        "The way back, as far as it goes: a tensor that cannot be put back is an error after all the rest."
        for owner, content in self.containers:
            owner.clear()
            owner.extend(content) if hasattr(owner, "extend") else owner.update(content)
        for tensor, data, requires_grad, grad in self.leaves:
            tensor.data = data  # of the same type and device again
            tensor.requires_grad_(requires_grad).grad = grad
        for generator, state in self.generators: generator.set_state(state)
        set_loader_state(self.learn.dls, self.loaders)
        set_random_state(self.random, self.learn.device)
        _put_back(self.tensors)


@torch.inference_mode()  # or tensors that were made in it would refuse
def _put_back(tensors):
    "Copy values into tensors; one that cannot be written to, such as an expanded one, may well be as it was."
    failed = []
    for tensor, value in tensors:
        try: tensor.copy_(value)
        except RuntimeError as error: failed.append((tensor, value, error))
    for tensor, value, error in failed:
        if not torch.allclose(tensor, value, rtol=0, atol=0, equal_nan=True): raise error


def _copied(value, memo):
    "A deep copy, but for what is in memo; what cannot be copied stays shared."
    try: return copy.deepcopy(value, memo)
    except Exception: pass
    if isinstance(value, dict): return {key: _copied(part, memo) for key, part in value.items()}
    return type(value)(_copied(part, memo) for part in value) if type(value) in (list, tuple, set) else value
