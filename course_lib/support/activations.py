"""Statistics of what layers put out."""
import inspect

import torch

from .arguments import a_range, at_least_0, checked
from .checks import positive_int


class LayerStatistics:
    """What `ActivationStats` inherits: which layers are watched, their statistics, and the plot.

    `.stats`: name of layer -> {"mean", "std", "near_zero"} arrays `[batches]`, "hist" `[batches, n_bins]`.
    """
    @checked(near_zero=at_least_0, n_bins=positive_int, span=a_range)
    def __init__(self, layers=None, near_zero=.05, span=(-7, 7), n_bins=40, every=1):
        if layers is not None and (not callable(layers) or inspect.isclass(layers)):
            raise ValueError("layers must be a function, module -> whether it is watched, such as "
                             f"lambda module: isinstance(module, nn.ReLU); got {layers!r:.80}.")
        self.layers, self.near_zero, self.span, self.n_bins = layers, near_zero, span, n_bins
        self.every, self.hooks, self.kept = positive_int("every", every), [], {}

    def watched(self, model):
        "The layers to watch: name -> module. Raises `ValueError` if there are none."
        leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
        chosen = self.layers or (lambda module: type(module).__module__ == "torch.nn.modules.activation")
        named = {name: module for name, module in leaves.items() if chosen(module)}
        if not named and self.layers is None: named = {name: m for name, m in leaves.items() if list(m.parameters())}
        if not named: raise ValueError("ActivationStats: no layer of this model is one that `layers` picks.")
        return {f"{name} {type(module).__name__}".strip(): module for name, module in named.items()}

    def measure(self, x):
        "Mean, deviation and share near zero of a tensor, a tensor `[3]`; and its histogram. Nothing is read."
        moments = torch.stack([x.mean(), x.std(correction=0), (x.abs() < self.near_zero).float().mean()])
        return moments, torch.histc(x, self.n_bins, *self.span)

    @property
    def stats(self):
        stats = {}
        for name, rows in self.kept.items():
            if not rows: continue
            moments, hist = (torch.stack(column).cpu().double().numpy() for column in zip(*rows))
            stats[name] = {"mean": moments[:, 0], "std": moments[:, 1], "near_zero": moments[:, 2], "hist": hist}
        return stats

    def plot(self):
        "The three numbers of each layer by batch."
        from .curves import plot_activation_stats  # matplotlib, only when it is used
        plot_activation_stats(self.stats)
