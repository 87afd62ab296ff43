"""The device, and tensors wherever they are: in tuples, lists and dicts, on the way to the device, in memory."""
import torch


def default_device():
    "The fastest device that torch sees: `cuda`, else Apple's `mps`, else `cpu`."
    if torch.cuda.is_available(): return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def keep_freed_memory():
    "glibc then gives back only what is larger than twice this (mallopt(3)); or each batch's memory comes page by page."
    torch.empty(31 * 2 ** 20, dtype=torch.uint8)


def map_tensors(function, x):
    "x with each tensor in it, also inside of tuples, lists and dicts, replaced by function(tensor)."
    if isinstance(x, torch.Tensor): return function(x)
    if isinstance(x, dict): return {name: map_tensors(function, value) for name, value in x.items()}
    if isinstance(x, (list, tuple)): return getattr(x, "_make", type(x))(map_tensors(function, value) for value in x)
    return x


def to_device(x, device):
    "A tensor, or tuples, lists and dicts of them, on the device; the rest as it is."
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), x)


def batch_size(x):
    "The number of samples in a batch: of its first tensor, where it is a tuple, list or dict of them."
    if isinstance(x, torch.Tensor): return x.size(0)
    return batch_size(next(iter(x.values() if isinstance(x, dict) else x)))
