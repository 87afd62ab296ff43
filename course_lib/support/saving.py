"""Saving and loading a learner: one safetensors file with a checksum over every byte, without pickle.

Format 2 alone is read: files of format 1 had neither checksum nor layers' versions, so their damage could not be told."""
import contextlib
import hashlib
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from .arguments import a_path, checked
from .checks import SCHEDULER_KEYS, shorten
from .files import write_whole
from .learner import spread_lr
from .state import Snapshot, loader_state, random_state, set_loader_state, set_random_state

FORMAT, BLANK = 2, "0" * 64
CHECKSUM = rb"\"sha256\": \""  # as it stands in the file's head, which holds the notes as a text within JSON


def pack(value, tensors):
    "`value` as JSON can hold it; its tensors go into the dict `tensors`. Raises `ValueError` for what needs pickle."
    if isinstance(value, torch.Tensor):
        tensors[key := f"state.{len(tensors)}"] = value
        return {"tensor": key}
    if isinstance(value, np.ndarray): return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic): return value.item()
    if isinstance(value, dict): return {"dict": [[pack(k, tensors), pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (tuple, list)): return {type(value).__name__: [pack(part, tensors) for part in value]}
    if isinstance(value, slice): return {"slice": [pack(value.start, tensors), pack(value.stop, tensors)]}
    if value is None or isinstance(value, (bool, int, float, str)): return value
    raise ValueError(f"A {type(value).__name__} cannot be saved without pickle: {value!r:.80}.")


def unpack(value, tensors):
    "The inverse of `pack`."
    if not isinstance(value, dict): return value
    if "tensor" in value: return tensors[value["tensor"]]
    if "array" in value: return np.array(value["array"], dtype=value["dtype"])
    if "dict" in value: return {unpack(k, tensors): unpack(v, tensors) for k, v in value["dict"]}
    if "slice" in value: return slice(*(unpack(part, tensors) for part in value["slice"]))
    [(kind, parts)] = value.items()
    return {"tuple": tuple, "list": list}[kind](unpack(part, tensors) for part in parts)


def checksum(file):
    "Where the checksum of a file (bytes) stands, and what it must be: the SHA-256 of all bytes but its own."
    at = file.find(CHECKSUM) + len(CHECKSUM)
    digest = hashlib.sha256(memoryview(file)[:at])
    digest.update(memoryview(file)[at + len(BLANK):])
    return at, digest.hexdigest().encode()


def seal(file):
    "A file with a place for the checksum -> the file with the checksum in it."
    at, right = checksum(file)
    return b"".join([memoryview(file)[:at], right, memoryview(file)[at + len(BLANK):]])


def _modules(learn):
    "What has a state, by name: the model (the one that `torch.compile` was given), and a loss that is a module."
    parts = {"model": learn.model, "loss_func": learn.loss_func}
    return {name: getattr(part, "_orig_mod", part) for name, part in parts.items() if isinstance(part, nn.Module)}


def _states(learn): return {part: module.state_dict() for part, module in _modules(learn).items()}


def _weights(states):
    "name -> tensor, or what else a module calls its state."
    return {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}


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


@checked(path=a_path)
def save(learn, path):
    """Write model, optimizer, rate, epochs done, the data's next order and the random state to one safetensors file.

    The model's tensors are called `model.…` as in its state dict, those of a loss that is a module, `loss_func.…`.
    Raises `ValueError` for a state that only pickle could hold, and leaves a file that was there before as it was if
    anything goes wrong.
    """
    states = _states(learn)
    weights = _weights(states)
    tensors = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    notes = {"optimizer": learn.opt and learn.opt.state_dict(), "layout": learn.opt and _layout(learn), "lr": learn.lr,
             "epochs_done": learn.epochs_done, "random": random_state(learn.device), "loaders": loader_state(learn.dls),
             "frozen": sorted(name for name, p in learn.model.named_parameters() if not p.requires_grad),
             "extra": {name: value for name, value in weights.items() if name not in tensors},
             "versions": {part: dict(getattr(state, "_metadata", {})) for part, state in states.items()}}  # of layers
    packed = {name: pack(value, tensors) for name, value in notes.items()}
    whole = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    notes = json.dumps({"learner": FORMAT, "sha256": BLANK, **packed})
    write_whole(Path(path), seal(safetensors.torch.save(whole, {"learner": notes})))


@contextlib.contextmanager
def _blaming(path):
    "Whatever goes wrong in the block is the file's fault; a Ctrl-C and a memory that is full are not."
    try: yield
    except MemoryError: raise
    except Exception as error:
        raise ValueError(f"{path} is not a whole file that Learner.save wrote ({error or repr(error)}).") from error


def _read(path):
    "The weights and notes of a file that `save` wrote. Raises `ValueError` for any other, `OSError` for an unreadable one."
    try: file = Path(path).read_bytes()
    except FileNotFoundError: raise FileNotFoundError(f"There is no file {path} to load.") from None
    with _blaming(path):
        notes = json.loads(json.loads(file[8:8 + int.from_bytes(file[:8], "little")])["__metadata__"]["learner"])
        at, right = checksum(file)
        if "sha256" in notes and file[at:at + len(BLANK)] != right: raise ValueError("its checksum is another one")
        if notes["learner"] != FORMAT:
            raise ValueError(f"it has format {shorten(notes['learner'])}, and this version of course_lib reads format "
                             f"{FORMAT}; safetensors.torch.load_file still gives its weights")
        tensors = safetensors.torch.load(file)
        notes = {name: unpack(value, tensors) for name, value in notes.items()}
        _check(notes)
    return {name: v for name, v in tensors.items() if not name.startswith("state.")} | notes["extra"], notes


def _check(notes):
    "Raises `ValueError` or `KeyError` for notes that cannot be those of a learner."
    kinds = {"sha256": str, "epochs_done": int, "frozen": list, "random": dict, "loaders": dict, "extra": dict,
             "versions": dict, "optimizer": (dict, type(None)), "layout": (dict, type(None))}
    for name, kind in kinds.items():
        if not isinstance(notes[name], kind): raise ValueError(f"{name} is {shorten(notes[name])}")
    if isinstance(n := notes["epochs_done"], bool) or n < 0: raise ValueError(f"epochs_done is {n}")
    if notes["lr"] is not None: spread_lr(notes["lr"], 1)
    for place, value in notes["loaders"].items():
        if not isinstance(value, int if place.endswith(".epoch") else torch.Tensor):
            raise ValueError(f"{place} is {shorten(value)}")
    if (notes["optimizer"] is None) != (notes["layout"] is None): raise ValueError("half an optimizer")
    if not all(isinstance(of_layer, dict) for of_part in notes["versions"].values() for of_layer in of_part.values()):
        raise ValueError("versions of layers that are none")


def _differences(what, saved, here):
    "Raises `ValueError` where two dicts of shapes or names differ."
    for name in {**saved, **here}:
        if saved.get(name) != here.get(name):
            raise ValueError(f"The file belongs to another {what}: {name} is {saved.get(name, 'missing')} there and "
                             f"{here.get(name, 'missing')} here.")


def _kinds(weights):
    return {name: f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            if isinstance(value, torch.Tensor) else "no tensor" for name, value in weights.items()}


@checked(path=a_path)
def load(learn, path):
    """Bring a learner to the state that `save` wrote; one that has never fitted gets its optimizer first.

    Raises `ValueError` for a damaged file and for another model or optimizer, and `OSError` for one that cannot be read.
    Whatever is raised, a Ctrl-C too, the learner is then as it was.
    """
    weights, notes = _read(path)
    known = lambda state: dict.fromkeys(state, "known")
    _differences("model", _kinds(weights), _kinds(_weights(_states(learn))))
    _differences("kind of loader", known(notes["loaders"]), known(loader_state(learn.dls)))
    before = Snapshot(learn)
    try: _fill(learn, path, weights, notes)
    except BaseException:
        before.restore()
        raise


def _fill(learn, path, weights, notes):
    if notes["optimizer"] is None: learn.opt = None
    else:
        if learn.opt is None:
            learn._lr = notes["lr"]
            learn.make_opt()
        _differences("optimizer", notes["layout"], _layout(learn))
        with _blaming(path): learn.opt.load_state_dict(notes["optimizer"])
    for part, module in _modules(learn).items():
        state = OrderedDict((name.removeprefix(f"{part}."), value) for name, value in weights.items()
                            if name.startswith(f"{part}."))
        state._metadata = OrderedDict(notes["versions"].get(part, {}))  # some layers read their own version
        module.load_state_dict(state)
    learn.epochs_done, learn._lr = notes["epochs_done"], notes["lr"]
    for name, p in learn.model.named_parameters(): p.requires_grad_(name not in notes["frozen"])
    set_loader_state(learn.dls, notes["loaders"])
    with _blaming(path): set_random_state(notes["random"], learn.device)
