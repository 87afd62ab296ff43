"""What stands behind transfer learning: which layer is a model's head, one like it, pieces of a model, checks."""
import copy
import re

import torch
from torch import fx, nn

from .arguments import a_dls, above_0, checked, refuse
from .checks import as_list, positive_int, whole_number
from .tensors import map_tensors


def has_parameters(module, recurse=False): return any(True for _ in module.parameters(recurse))


class _Tracer(fx.Tracer):
    "Follows a model's forward pass down to the layers that have parameters of their own."
    def is_leaf_module(self, module, name): return super().is_leaf_module(module, name) or has_parameters(module)


def _last_layers(model):
    """Names of the layers that the outputs come from, with no other layer in between, as the forward pass has it;
    none where that cannot be followed without numbers.
    """
    try:
        tensors = (*model.parameters(), *model.buffers())
        model = copy.deepcopy(model, {id(t): t for t in tensors})  # what forward notes down, it notes on a copy
        for module in model.modules(): drop_hooks(module)
        with torch.random.fork_rng(devices=[]): graph = _Tracer().trace(model)
    except Exception: return set()  # forward is other people's code: it may raise anything
    before = {}  # what each value came through
    for node in graph.nodes:
        before[node] = {n for source in node.all_input_nodes for n in (source, *before[source])
                        if n.op == "call_module" and has_parameters(model.get_submodule(n.target), recurse=True)}
    layers = before[node]  # the last node is the output
    return {layer.target for layer in layers - {n for layer in layers for n in before[layer]}}


def find_head(model):
    """Name and module of the layer that a model's outputs come from: the one that the forward pass goes through last,
    or, where that depends on numbers, the last that has parameters. Raises `ValueError` where there are several, and
    for what is neither an `nn.Linear` nor an `nn.Conv2d`.
    """
    inner, kind = getattr(model, "_orig_mod", model), type(model).__name__  # the one that torch.compile was given
    named = {name: part for name, part in inner.named_modules()
             if not name.lower().startswith("aux")}  # a second exit of some of torchvision's models
    names = list(named.keys() & _last_layers(inner)) or [name for name, part in named.items() if has_parameters(part)][-1:]
    if len(names) > 1:
        names = [name for name in named if name in names]
        raise ValueError(f"{kind} has {len(names)} heads, {', '.join(names[:-1])} and {names[-1]}. Replace one by its "
                         f"name: model.{names[-1]} = replace_head(model.{names[-1]}, n_classes).")
    head = named[names[0]] if names else None
    if not isinstance(head, (nn.Linear, nn.Conv2d)):
        raise ValueError(f"{kind} ends in {head}: a head that can be replaced is nn.Linear or nn.Conv2d.")
    prefix = "" if inner is model else "_orig_mod."
    return (prefix + names[0]).rstrip("."), head


def drop_hooks(module):
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, dict): value.clear()


def fresh_layer(old, n_classes):
    """A layer like an `nn.Linear` or `nn.Conv2d`, or a subclass of them, with so many outputs and new weights: of the
    same class, device, dtype and mode, without hooks. Raises `ValueError` where old has tensors that would not fit.
    """
    n_classes, kind = positive_int("n_classes", n_classes), type(old).__name__
    if any(nn.parameter.is_lazy(p) for p in old.parameters()):
        raise ValueError(f"{kind} has no shape yet: give the model a batch first.")
    others = [name for name, _ in (*old.named_parameters(), *old.named_buffers()) if name not in ("weight", "bias")]
    if others: raise ValueError(f"{kind} has {', '.join(others)} besides weight and bias, which would not fit other "
                                f"outputs. Make such a layer yourself and put it there: model.… = {kind}(…).")
    if getattr(old, "groups", 1) > 1 and n_classes % old.groups:
        raise ValueError(f"{n_classes} outputs cannot be shared among the {old.groups} groups of {old}.")
    new = copy.deepcopy(old)  # the constructor of a subclass may want anything
    drop_hooks(new)
    setattr(new, "out_features" if isinstance(old, nn.Linear) else "out_channels", n_classes)
    for name, p in [*old.named_parameters()]: setattr(new, name, nn.Parameter(p.new_empty(n_classes, *p.shape[1:])))
    new.reset_parameters()
    return new


def children_with_parameters(model):
    """Children of a model, from input to output, each with those of its parameters that no earlier one has:
    `[(child, [p, …]), …]`. Parameters of the model itself come first, with None; an only child is looked into.
    """
    model = getattr(model, "_orig_mod", model)  # the one that torch.compile was given
    own, children = [*model.parameters(recurse=False)], [c for c in model.children() if has_parameters(c, recurse=True)]
    if not own and len(children) == 1: return children_with_parameters(children[0])
    seen, pairs = set(), []
    for child, parameters in ((None, own), *((child, child.parameters()) for child in children)):
        new = [p for p in parameters if id(p) not in seen]
        seen.update(map(id, new))
        if new: pairs.append((child, new))
    return pairs


def is_norm(module):
    "Is it a normalization layer, by the name of its class?"
    return bool(re.search(r"(Batch|Layer|Group|Instance|RMS)Norm\d?d?$", type(module).__name__))


def split_by_axes(params):
    """Groups of parameters, as an optimizer takes them, in two each: `[(group, those with two axes or more, the others)]`.

    Raises `ValueError` for a sweep's parameters, all of which have one axis more.
    """
    params, split = list(params), []
    for group in params if params and isinstance(params[0], dict) else [{"params": params}]:
        own = [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])
        tensors = [p[1] if isinstance(p, tuple) else p for p in own]  # of named_parameters()
        if any(hasattr(p, "n_models") for p in tensors):
            raise ValueError("decay_weights_only goes by the number of axes, and in a sweep each parameter has one "
                             "more. Sweep with opt_func alone.")
        split.append((group, *([p for p, tensor in zip(own, tensors) if (tensor.ndim < 2) is few]
                               for few in (False, True))))
    return split


@checked(lr_mult=above_0)
def check_fine_tune(learn, n_epochs, base_lr, freeze_epochs, lr_mult, cbs):
    "base_lr, by default the learner's, and cbs as a list. Raises `ValueError` for what cannot be fine-tuned."
    base_lr = learn.lr if base_lr is None else base_lr
    if isinstance(base_lr, bool) or not isinstance(base_lr, (int, float)):
        raise ValueError(f"fine_tune needs one number as base_lr, the head's rate; got {base_lr!r}.")
    if not isinstance(freeze_epochs, int) or freeze_epochs < 0:
        raise ValueError(f"freeze_epochs must be a whole number, 0 or more, not {freeze_epochs!r}.")
    positive_int("n_epochs", n_epochs)
    cbs = as_list("cbs", cbs)
    if len(learn.groups) < 2: raise ValueError("fine_tune needs a body and a head, and this model has one group of "
                                               "parameters. Learner(…, splitter=layer_groups) may find more.")
    if learn.fit_cbs is not None: raise RuntimeError("fine_tune cannot run in the middle of a fit.")
    learn.rates(slice(base_lr / 2 / lr_mult, base_lr / 2))  # what is wrong with them shall not cost a frozen epoch
    return base_lr, cbs


def complete(work):
    "Do what can be done again, but must not stay half done: after a Ctrl-C in the middle of it once more."
    try: work()
    except KeyboardInterrupt:
        work()
        raise


def first_of_each_class(y, order, n):
    "The first n rows of each class in that order, class by class; `ValueError` where one has fewer."
    n, rows = positive_int("n_per_class", n), []
    for target in y[order].unique():
        rows.append(order[y[order] == target][:n])
        if len(rows[-1]) < n: raise ValueError(f"Class {target} has {len(rows[-1])} images, and {n} of each were asked "
                                               "for.")
    return torch.cat(rows)


@checked(dls=a_dls, draw=whole_number)
def draw_few(dls, n_per_class, draw=0, n_rest=10_000):
    """n images of each class, and the rest to test on: `(x, y), (x_rest, y_rest)`.

    Drawn from all parts of `dls` together; draw: the seed; n_rest: at most so many, from the end, where the test part is.
    Raises `ValueError` where a class has too few, and where none is left.
    """
    parts = [part for part in (dls.train, dls.valid, dls.test) if part is not None]
    x, y = torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(draw)).to(y.device)
    few = first_of_each_class(y, order, n_per_class)
    left = torch.ones_like(y, dtype=torch.bool)
    left[few] = False
    rest = left.nonzero()[-positive_int("n_rest", n_rest):, 0]
    if not len(rest): raise ValueError(f"{n_per_class} images of each class are all there are: none is left to test.")
    return (x[few], y[few]), (x[rest], y[rest])


def best_scratch(measured):
    "The rate at which scratch is best on average, and its accuracies by draw: `(rate, [draws])`."
    rate, accuracies = max(measured["scratch"].items(), key=lambda item: sum(item[1]))
    return float(rate), accuracies


def a_key_of(choices):
    "A check for one of these names."
    def check(name, value):
        if value not in list(choices): raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
        return value
    return check


def gray_images(name, x):
    if not isinstance(x, torch.Tensor): refuse(name, "a tensor", x)
    if x.ndim != 4 or x.shape[1] != 1: raise ValueError(f"Expected gray images [B, 1, H, W], got {list(x.shape)}.")
    return x


def tta_looks(learn, dl, transform, n):
    """The loader without its transform, so that each look begins with what it holds; and n + 1 looks, `(xb, yb) -> xb`:
    by that transform, and n random ones. Raises `ValueError` where a loader or a random transform is missing.
    """
    dl = learn.dls.valid if dl is None else dl
    transform = getattr(learn.dls.train, "transform", None) if transform is None else transform
    if dl is None: raise ValueError("There is no validation loader; pass one: tta(dl).")
    if transform is None: raise ValueError("The training loader has no transform; pass one, such as RandomAffine(10).")
    plain = getattr(dl, "transform", None) or (lambda xb, yb: (xb, yb))
    if hasattr(dl, "transform"):
        dl = copy.copy(dl)
        dl.transform = None
    # of a copy, since a transform may change what it is given
    looked = lambda one: lambda xb, yb: one(map_tensors(torch.clone, xb), yb)[0]
    return dl, [looked(plain), *[looked(transform)] * n]


def joined(parts):
    "Probabilities and targets of each batch, `[(probabilities, yb), …]` -> those of all, on one device."
    if not parts: raise ValueError("The loader is empty: it has no batch.")
    probabilities, targets = zip(*parts)
    return torch.cat(probabilities), torch.cat([yb.to(probabilities[0].device) for yb in targets])
