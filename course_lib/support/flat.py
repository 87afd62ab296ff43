"""One flat buffer for many parameters and their gradients, to be stepped in one go."""
import torch
from torch import nn


class FlatParameter(nn.Parameter):
    """One buffer for many parameters and one for their gradients;
    `flatten_parameters` makes it. Zeroing `grad` fills it with zeros.
    """
    @property
    def grad(self):
        "The buffer, after taking in what parts have got anew since `model.zero_grad()` dropped their views of it."
        for part, slot in zip(self.parts, self.slots):
            if part.grad is not slot:
                slot.zero_() if part.grad is None else slot.copy_(part.grad.detach())
                part.grad = slot
        if not torch.compiler.is_compiling(): self._check()
        return self.gradients

    def _check(self):
        "Are the parts still views of this buffer, and all to be trained?"
        if [p.data_ptr() for p in (self, *self.parts)] != self.places:
            raise RuntimeError("A parameter was moved or replaced after flatten_parameters (model.to, model.half, …): "
                               "move the model first, then flatten it, then make the optimizer.")
        if not all([part.requires_grad for part in self.parts]):
            raise RuntimeError("A parameter was frozen after flatten_parameters, and would be stepped all the same: "
                               "flatten those that are to be trained.")

    @grad.setter
    def grad(self, value):
        self.gradients.zero_() if value is None else self.gradients.copy_(value)
        for part, slot in zip(self.parts, self.slots): part.grad = slot

    def __deepcopy__(self, memo):
        raise TypeError("A flat parameter belongs to its model. Copy (or save) the model, call flatten_parameters on "
                        "the copy, and load the optimizer's state_dict.")

    __reduce_ex__ = __deepcopy__


def flatten_parameters(params):
    """One parameter `[total]` of which all of `params`, and their gradients, become views, to be stepped in one go.

    params: of one dtype, on one device; a model that replaces them later (a new head, `load_state_dict(assign=True)`)
    has left the buffer, so flatten last. Their values and gradients stay what they are. Whoever looks at single layers
    (LAMB, Muon, a parameter without a gradient) needs them apart: in the buffer, no gradient is a gradient of zero.
    Raises `ValueError` for no parameters, a mixture, or one that comes twice or does not require a gradient.
    """
    if not hasattr(type(params), "__iter__") or isinstance(params, str):
        raise TypeError(f"params must be parameters, as from model.parameters(), not {params!r:.80}.")
    params = [params] if isinstance(params, torch.Tensor) else list(params)
    if not params: raise ValueError("There are no parameters to flatten.")
    if not all(isinstance(p, torch.Tensor) for p in params):
        raise TypeError(f"Expected parameters, as from model.parameters(); got {type(params[0]).__name__}.")
    kinds = {(p.dtype, p.device) for p in params}
    if len(kinds) > 1:
        raise ValueError(f"One buffer has one dtype and one device; got {', '.join(sorted(map(str, kinds)))}.")
    if len({id(p) for p in params}) < len(params): raise ValueError("A parameter comes twice.")
    if not all(p.is_leaf and p.requires_grad for p in params):
        raise ValueError("A frozen parameter (requires_grad=False) would be stepped too: "
                         "pass only those to be trained.")
    flat = torch.Tensor._make_subclass(FlatParameter, torch.cat([p.detach().flatten() for p in params]), True)
    flat.gradients = buffer = torch.zeros_like(flat, requires_grad=False)
    torch.Tensor.grad.__set__(flat, buffer)  # where autograd would add to
    sizes, shapes = [p.numel() for p in params], [p.shape for p in params]
    flat.parts, flat.slots = params, [slot.view(shape) for slot, shape in zip(buffer.split(sizes), shapes)]
    for part, slot, values in zip(params, flat.slots, flat.detach().split(sizes)):
        if part.grad is not None: slot.copy_(part.grad)
        part.data, part.grad = values.view(part.shape), slot
    flat.places = [p.data_ptr() for p in (flat, *params)]
    return flat
