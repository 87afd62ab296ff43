"""N models at once: random numbers of their own, products written out, a step as a CUDA graph, memory."""
import psutil
import torch
import torch.nn.functional as F
from torch import nn

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


def mlp_preds(model, params, xb):
    "Predictions `[N, B, out]` of N models that `is_mlp` knows; params: name -> `[N, ...]`."
    x = xb.flatten(1).mT                                                 # [in, B], shared: one wide product
    for name, layer in model._modules.items():  # also those that come twice
        if isinstance(layer, nn.Linear):
            weight, bias = params[f"{name}.weight"], params.get(f"{name}.bias")
            shared = x.ndim == 2
            x = (weight.flatten(0, 1) @ x).unflatten(0, (len(weight), -1)) if shared else weight @ x     # [N, out, B]
            if bias is not None: x = x + bias.unsqueeze(2)
        elif not isinstance(layer, nn.Flatten): x = layer(x)
    return x.mT


def losses_of_all(loss_func, preds, yb):
    "The losses `[N]` of N models' predictions `[N, B, ...]` of the same targets; plain cross entropy in one call."
    plain = loss_func is F.cross_entropy or (type(loss_func) is nn.CrossEntropyLoss and
                                             repr(vars(loss_func)) == repr(vars(nn.CrossEntropyLoss())))
    if not plain or not isinstance(preds, torch.Tensor) or preds.ndim != 3 or yb.ndim != 1:
        return torch.vmap(loss_func, in_dims=(0, None), randomness="same")(preds, yb)
    losses = F.cross_entropy(preds.mT, yb.expand(len(preds), -1), reduction="none")     # [N, B]
    return losses.sum(1) / (yb != -100).sum()                                           # -100: not to be counted


class Draws:
    "Random numbers of its own: a block under `with` goes on where the last one ended; the world's stay as they are."
    def __init__(self, seed, device):
        self.device, self.own = device, None
        with self:
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device): torch.cuda.manual_seed(seed)

    def __enter__(self):
        self.worlds = self._state()
        if self.own: self._set(self.own)

    def __exit__(self, *problem):
        self.own = self._state()
        self._set(self.worlds)

    def _state(self):
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def _set(self, state):
        torch.set_rng_state(state[0])
        if state[1] is not None: torch.cuda.set_rng_state(state[1], self.device)


class RecordedStep:
    "A step as a CUDA graph, after three steps on a side stream, as PyTorch's manual asks for."
    def __init__(self, step, opt): self.step, self.opt, self.n_warm, self.graph = step, opt, 0, None

    def __call__(self, xb, yb):
        if self.graph is None and self.n_warm == 3: self._record(xb, yb)
        if self.graph is None or [t.shape for t in (xb, yb)] != [t.shape for t in self.inputs]:
            self.n_warm += 1
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream): losses = self.step(xb, yb)
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
        except RuntimeError:  # this step cannot be recorded (it waits for a value, say): go on as before
            self.graph = None
            self.opt.zero_grad()


ENDED = "Take fewer steps, or a loader that can start again (a list, a DataLoader)."
CHUNK_BYTES = 12 * 2 ** 20  # of a layer's weights in one ensemble on a CPU


def free_bytes(device):
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
