"""What an optimizer made of steppers needs for safety: groups, names, state dicts; and in-place arithmetic for numbers, tensors `[N]` and the compiler."""
import difflib
import inspect
import math
import numbers
import sys
from collections.abc import Mapping

import torch

from .checks import FOREIGN_NAMES, SCHEDULER_KEYS, as_list, check_function, check_hyper

GROUP_KEYS = "params", "param_names", "name", "foreign", *SCHEDULER_KEYS  # what a group may hold besides hyperparameters


def add_scaled(p, x, scale):
    "`p += scale · x`, in place and in one pass; scale: a number, or a tensor that broadcasts."
    if isinstance(scale, torch.Tensor): p.addcmul_(x, scale)
    elif torch.compiler.is_compiling(): p.add_(x * scale)  # alpha would be compiled in, and a new rate compiled anew
    else: p.add_(x, alpha=scale)


def plus_scaled(x, y, scale):
    "`x + scale · y`, a new tensor like x; scale: a number, or a tensor that broadcasts."
    total = x.clone()
    add_scaled(total, y, scale)
    return total


def is_zero(hyper):
    "Is it the number 0? (A tensor's value stays unread: that would wait for the GPU.)"
    return not isinstance(hyper, torch.Tensor) and hyper == 0


def hyperparameters(stepper):
    "The keyword-only arguments of a stepper: name -> default (`inspect.Parameter.empty` where there is none)."
    parameters = inspect.signature(stepper).parameters.values()
    kinds = [p.kind for p in parameters]
    positional, keyword_only = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    if kinds[:3] != [positional] * 3 or any(kind is not keyword_only for kind in kinds[3:]):
        raise ValueError(f"{stepper_name(stepper)}{inspect.signature(stepper)} is no stepper. "
                         "Expected stepper(p, grad, state, *, lr, …): "
                         "three arguments, and every hyperparameter after the asterisk.")
    return {p.name: p.default for p in parameters if p.kind is keyword_only}


def _listed(what, names): return f"{what} {', '.join(sorted(names))}" if names else ""


def stepper_name(stepper): return getattr(stepper, "__name__", repr(stepper))


def per_model(value, ndim):
    "A tensor `[N]` with enough axes to broadcast against `[N, …]`."
    return value.view(-1, *[1] * (ndim - 1)) if isinstance(value, torch.Tensor) and value.ndim else value


def loss_of(closure):
    "What a step's closure returns, for which it needs gradients; None if there is no closure."
    if closure is None: return None
    with torch.enable_grad(): return closure()


class Defaults(dict):
    "An optimizer's defaults. To torch's OneCycleLR and CyclicLR, which look for a momentum in them, they say what to do."
    def __contains__(self, name):
        if name == "momentum" and not self.keys() & {"momentum", "betas"}:
            if sys._getframe(1).f_globals.get("__name__") == "torch.optim.lr_scheduler":
                raise ValueError("This optimizer has neither torch's `momentum` nor its `betas` to cycle (it calls them "
                                 "`beta` and `sqr_beta`): pass cycle_momentum=False.")
        return super().__contains__(name)


class CheckedOptimizer(torch.optim.Optimizer):
    """What `Optimizer` inherits: hyperparameters read off the steppers' signatures, checked wherever they come in, and
    kept through state dicts, copies and pickles. Arguments and errors as in `Optimizer`, which adds `step`.

    A group may hold keys of another library if it says so, as `{"params": …, "lr_scale": .5, "foreign": ["lr_scale"]}`.
    """
    @torch._disable_dynamo  # as torch's own methods are: the compiler would set the attributes after the checks
    def __init__(self, params, steppers, **hypers):
        self.steppers = as_list("steppers", steppers)
        for stepper in self.steppers: check_function("steppers: a stepper", stepper, "it takes (p, grad, state, *, lr, …)")
        if not self.steppers: raise ValueError("An optimizer needs at least one stepper, for example [sgd_step].")
        self._hypers = [hyperparameters(stepper) for stepper in self.steppers]
        defaults = {}
        for stepper, named in zip(self.steppers, self._hypers):
            for name, default in named.items():
                if default is inspect.Parameter.empty: continue
                if name not in hypers and defaults.get(name, default) != default:
                    raise ValueError(f"{name}: the steppers have different defaults, "
                                     f"{defaults[name]} and {default} ({stepper_name(stepper)}). Say which.")
                defaults[name] = default
        self._check_names(hypers)
        if isinstance(params, (set, frozenset)):
            raise TypeError("The parameters are in a set, whose order differs between runs (and a saved state goes by "
                            "their order): pass a list.")
        if not hasattr(type(params), "__iter__") or isinstance(params, str):
            raise TypeError(f"params must be parameters, as from model.parameters(), or groups of them, not {params!r}.")
        nothing = ValueError("The optimizer got no parameters. Pass model.parameters(), "
                             "and not a generator that was used up before.")
        if not isinstance(params, torch.Tensor) and not (params := list(params)): raise nothing
        super().__init__(params, Defaults({**defaults, **hypers}))  # torch itself refuses a single tensor, and says why
        if not any(group["params"] for group in self.param_groups): raise nothing

    @property
    def hyper_names(self):
        "The hyperparameters that the steppers take, in their order."
        return list(dict.fromkeys(name for named in self._hypers for name in named))

    def _check_names(self, names, group=None):
        "Does some stepper take each of these? In a group there are other keys too."
        others = () if group is None else {*GROUP_KEYS, *as_list("foreign", group.get("foreign", ()))}
        for name in names:
            if name in self.hyper_names or name in others: continue
            near = difflib.get_close_matches(FOREIGN_NAMES.get(name, name), self.hyper_names, 1)
            raise ValueError(f"Unknown hyperparameter {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}: "
                             f"{' → '.join(map(stepper_name, self.steppers))} takes "
                             f"{', '.join(self.hyper_names) or 'none'}."
                             f"{'' if group is None else f' If it is for another library: foreign=[{name!r}].'}")

    def add_param_group(self, param_group):
        "As in PyTorch; the group may bring its own hyperparameters. It is checked as a whole, or not added."
        if isinstance(param_group, dict):  # torch refuses everything else
            self._check_names(param_group, param_group)
            param_group = {**param_group, **self._checked({**self.defaults, **param_group})}
        super().add_param_group(param_group)
        try: self._fit(self.param_groups[-1], self.param_groups[-1]["params"])
        except ValueError:
            self.param_groups.pop()
            raise

    def _checked(self, values):
        "The hyperparameters among the values, each of them there and in its range."
        for name in self.hyper_names:
            if name not in values:
                raise ValueError(f"Missing hyperparameter {name!r}: "
                                 f"{' → '.join(map(stepper_name, self.steppers))} has no default for it.")
        return {name: check_hyper(name, values[name]) for name in self.hyper_names}

    def _fit(self, hypers, params):
        "Can these parameters be stepped with these hyperparameters? Tensors move to where the parameters are."
        for p in params:
            if not p.is_floating_point():
                raise ValueError(f"Cannot step a parameter of {p.dtype}: expected real floating point.")
        for name in self.hyper_names:
            value = hypers[name]
            if not isinstance(value, torch.Tensor) or not value.ndim: continue
            for p in params:
                if p.shape[:1] != value.shape:
                    raise ValueError(f"{name} holds {len(value)} values, so every parameter needs "
                                     f"a first axis of {len(value)} models; got {list(p.shape)}.")
            if not params: continue
            wide = value.dtype is torch.float64 and params[0].device.type == "mps"  # which has no float64
            hypers[name] = value.to(params[0].device, torch.float32 if wide else value.dtype)

    def load_state_dict(self, state_dict):
        "As in PyTorch, for the state of an optimizer with the same hyperparameters; refused before anything changes."
        if not isinstance(state_dict, Mapping): raise ValueError(f"This is no optimizer's state: {state_dict!r:.80}.")
        check = self.register_load_state_dict_pre_hook(CheckedOptimizer._check_state)  # after all others, which may mend it
        try: super().load_state_dict(state_dict)
        finally: check.remove()
        for group in self.param_groups: self._fit(group, group["params"])

    def _check_state(self, state_dict):
        for key in ("param_groups", "state"):
            if key not in state_dict: raise ValueError(f"This is no optimizer's state: it has no {key!r}.")
        for saved, group in zip(state_dict["param_groups"], self.param_groups):
            lacking = set(self.hyper_names) - saved.keys()
            foreign = saved.keys() - {*self.hyper_names, *group, *GROUP_KEYS, *as_list("foreign", saved.get("foreign", ()))}
            if lacking or foreign:
                raise ValueError(f"This state belongs to another optimizer: {_listed('it lacks', lacking)}"
                                 f"{' and ' if lacking and foreign else ''}{_listed('it has', foreign)}.")
            self._fit(self._checked(saved), group["params"])

    def parameters_to_step(self):
        """`(p, grad, state, hypers)` of each parameter that has a gradient; hypers: for each stepper its keyword
        arguments, a tensor `[N]` as `[N, 1, …]`, so that it broadcasts against p.
        """
        found = []
        for group in self.param_groups:
            hypers = {}  # made once for each number of axes
            for p in group["params"]:
                grad = p.grad
                if grad is None: continue
                if grad.layout is not torch.strided:
                    raise ValueError("Sparse gradients are not supported: use nn.Embedding(sparse=False).")
                if p.ndim not in hypers:
                    hypers[p.ndim] = [{name: value if isinstance(value := group[name], float) else
                                       per_model(value, p.ndim) for name in named} for named in self._hypers]
                found.append((p, grad, self.state[p], hypers[p.ndim]))
        return found

    def __getstate__(self):  # for copies and pickles
        return {**super().__getstate__(), "steppers": self.steppers, "_hypers": self._hypers}

    def __repr__(self): return f"{' → '.join(map(stepper_name, self.steppers))}\n{super().__repr__()}"


def state_zeros(p, state, name):
    "The tensor that `state` keeps under this name; at first zeros, shaped like p."
    if name not in state:
        zeros = torch.zeros_like(p, memory_format=torch.preserve_format)
        if type(zeros) is torch.Tensor:  # no DTensor, which torch 2.9 cannot view so
            zeros = zeros.as_strided(zeros.size(), zeros.stride())  # or the compiler takes 0 + grad for grad itself
        state[name] = zeros
    return state[name]


def state_count(state, name):
    """The count that `state` keeps under this name: a tensor on the CPU (a number would be compiled in); at first 0.
    A number, as states from elsewhere have it, becomes such a tensor.
    """
    count = state.get(name, 0)
    if not isinstance(count, torch.Tensor):
        if isinstance(count, bool) or not isinstance(count, numbers.Real) or not 0 <= count < math.inf:
            raise ValueError(f"{name!r} of this optimizer's state must be a number, finite and at least 0, not {count!r}.")
        state[name] = torch.full((), float(count), dtype=torch.float32)
    return state[name]


def lerp_towards(average, x, share):
    "Move an average by this share of the way to x, in place; share: a number, or a tensor that broadcasts."
    average.lerp_(x, share.to(average.dtype) if isinstance(share, torch.Tensor) else share)


def average_squares(average, x, beta):
    "`average = beta · average + (1 − beta) · x²`, in place; beta: a number, or a tensor that broadcasts."
    if isinstance(beta, torch.Tensor): lerp_towards(average, x.square(), 1 - beta)
    else: average.mul_(beta).addcmul_(x, x, value=1 - beta)


def add_ratio(p, x, y, scale):
    "`p += scale · x / y`, in place; scale: a number, or a tensor that broadcasts."
    if isinstance(scale, torch.Tensor) or torch.compiler.is_compiling(): add_scaled(p, x / y, scale)
    else: p.addcdiv_(x, y, value=scale)


def bias_correction(beta, state):
    "1 − beta^step, the share that an average from zero has reached by now; computed in float64 where beta is a number."
    compiling = torch.compiler.is_compiling()
    on_device = compiling or state["step"].is_cuda  # where a number would be compiled in, or recorded in a CUDA graph
    step = state["step"].double() if on_device else state["step"].item()
    if isinstance(beta, torch.Tensor): return -torch.expm1(step * beta.log())  # precise in float32 too
    share = 1 - beta ** step
    return share.as_strided((), ()) if compiling else share  # as a buffer, or it is computed anew for every weight


def has_models(*hypers):
    "Has one of these hyperparameters a value for each of N models?"
    return any(isinstance(hyper, torch.Tensor) and hyper.ndim for hyper in hypers)


def norm_per_model(x, *hypers):
    """The norm of x, or that of each of N models along the first axis, if a hyperparameter has a value for each;
    broadcasts against x.
    """
    if not has_models(*hypers): return torch.linalg.vector_norm(x)
    return torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1).view(-1, *[1] * (x.ndim - 1))


def check_matrix(p, *hypers):
    "Raises `ValueError` unless p is a matrix, or one for each of N models if a hyperparameter has a value for each."
    models = has_models(*hypers)
    if p.ndim == 2 + models: return
    raise ValueError(f"Muon steps matrices, and this parameter is {list(p.shape[models:])}"
                     f"{f' in each of {len(p)} models' if models else ''}: "
                     "give it to AdamW, as biases and convolutions.")


def copy_hyper(value):
    "A hyperparameter that nobody else changes: of a tensor a copy, a number as it is."
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def drop_grads(opt):
    "`opt.zero_grad()`; torch's own without its profiler's mark, which takes longer than a small net's gradients."
    if getattr(opt.zero_grad, "__func__", None) is not torch.optim.Optimizer.zero_grad: return opt.zero_grad()
    for group in opt.param_groups:
        for p in group["params"]: p.grad = None


def hyper_key(group, name):
    "Where an optimizer's group keeps what we call lr, beta or sqr_beta: `(key, index or None)`; None if nowhere."
    if name in group: return name, None
    elsewhere = {"beta": [("betas", 0), ("momentum", None)], "sqr_beta": [("betas", 1), ("alpha", None)]}
    return next(((key, i) for key, i in elsewhere.get(name, []) if key in group), None)


def read_hyper(group, name):
    "The value of a hyperparameter in an optimizer's group, ours or torch's; None if it has none."
    if (place := hyper_key(group, name)) is None: return None
    key, i = place
    return group[key] if i is None else group[key][i]


def write_hyper(group, name, value):
    "Set a hyperparameter of an optimizer's group, ours or torch's."
    key, i = hyper_key(group, name)
    group[key] = value if i is None else tuple(value if j == i else old for j, old in enumerate(group[key]))
