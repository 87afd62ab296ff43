"""State: what decides the next batches and random numbers, and snapshots of a learner that undo everything."""
import copy
import operator
import random
from collections import deque

import numpy as np
import torch
from torch import nn


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


class Snapshot:
    """What a search can change of a learner, written down; `restore()` is the way back, bit for bit.

    Written down: the model, the optimizer and a loss that is a module, with all tensors, random generators and
    containers inside, the callbacks, the order of the data, random numbers; workers that a torch `DataLoader` keeps
    between epochs are set aside. Not: arrays and objects of other kinds that a module keeps, attributes of loaders, what
    a callback has in `__slots__` or changes outside of all these.
    """
    def __init__(self, learn):
        self.learn, self.met, self.tensors, self.leaves, self.containers, self.generators = learn, {}, [], [], [], []
        self.grad_enabled = torch.is_grad_enabled()
        self.random, self.loaders = random_state(learn.device), loader_state(learn.dls)
        self.workers = [(dl, dl._iterator) for dl in _loaders(learn.dls)
                        if isinstance(dl, torch.utils.data.DataLoader) and dl.persistent_workers]
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
        """Let the search change deep copies of what callbacks remember, but for what they share with the loop, and have
        workers of its own, since random numbers in another process cannot be put back."""
        learn = self.learn
        for dl, _ in self.workers: dl._iterator = None
        shared = [part for owner in (learn, learn.dls, *_loaders(learn.dls))
                  for part in (owner, *getattr(owner, "__dict__", {}).values())]
        memo = {**self.met, **{id(part): part for part in shared}}
        for cb in learn.cbs: vars(cb).update({name: _copied(value, memo) for name, value in vars(cb).items()})

    def restore(self):
        """The way back, as far as it goes: a tensor that cannot be put back is an error after all the rest.

        A Ctrl-C on the way comes out after everything has been put back again, since it can be done twice, not by half.
        """
        try: self._restore()
        except KeyboardInterrupt:
            self._restore()
            raise
        finally: torch.set_grad_enabled(self.grad_enabled)  # a Ctrl-C inside of torch.no_grad() leaves it off

    @torch.no_grad()
    def _restore(self):
        for owner, content in self.containers:
            owner.clear()
            owner.extend(content) if hasattr(owner, "extend") else owner.update(content)
        for tensor, data, requires_grad, grad in self.leaves:
            tensor.data = data  # of the same type and device again
            tensor.requires_grad_(requires_grad).grad = grad
        for generator, state in self.generators: generator.set_state(state)
        for dl, workers in self.workers: _put_back_workers(dl, workers)
        set_random_state(self.random, self.learn.device)
        try: set_loader_state(self.learn.dls, self.loaders)
        finally: _put_back(self.tensors)


def _loaders(dls):
    return [dl for part in ("train", "valid", "test") if (dl := getattr(dls, part, None)) is not None]


def _put_back_workers(dl, workers):
    "End the workers that a loader has now, and give it back those that it had."
    if dl._iterator is not None and dl._iterator is not workers: dl._iterator._shutdown_workers()
    dl._iterator = workers


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
