"""What a learner checks, and the books that it keeps: `LearnerBase`, and the parts that it is made of."""
import contextlib
import math
import numbers
import operator
import re
import warnings

import torch
from torch import nn

from .arguments import a_batch, a_dls, a_module
from .callbacks import in_order
from .checks import as_list, as_tensor, check_function, check_hyper, check_mean, positive_int, shorten
from .optimizer import copy_hyper
from .state import loader_state, set_loader_state
from .tensors import batch_size, map_tensors, to_device


# The loop of `Learner`, as `show_loop` prints it; the chapter holds it against what happens.
LOOP = """\
before_fit
for each epoch:
    before_epoch
    before_train
    for each batch of dls.train:
        before_batch
        pred = model(xb)
        after_pred
        loss = loss_func(pred, yb)
        after_loss
        before_backward
        loss.backward()
        after_backward
        before_step
        opt.step(), opt.zero_grad()
        after_step
        after_batch
    after_train
    before_validate
    for each batch of dls.valid:
        before_batch
        pred = model(xb)
        after_pred
        loss = loss_func(pred, yb)
        after_loss
        after_batch
    after_validate
    after_epoch
after_fit"""


class Averages:
    """Averages over the batches of a pass, each weighed by its number of samples, and the smoothed training loss.

    What it is given stays on the device, unread, until somebody asks.
    """
    fold_after = 256

    def __init__(self, names, smooth=None):
        self.names, self.smooth = list(names), smooth  # smooth: a SmoothLoss that the first name's values go to as well
        self.rows, self.sizes, self.sums, self.n = [], [], 0, 0

    def add(self, values, size):
        "values: a tensor for each name, the means of a batch of that size; one without samples, whose mean is NaN, adds nothing."
        if not size: return
        self.rows.append(values)
        self.sizes.append(size)
        if len(self.rows) >= self.fold_after: self.fold()

    def fold(self):
        "Add up what has come in; nothing of it is read."
        if not self.rows: return
        device = self.rows[0][0].device
        wide = torch.float32 if device.type == "mps" else torch.float64  # mps has no other
        values = torch.stack([torch.stack(column).to(device, wide) for column in zip(*self.rows)])
        self.sums = self.sums + values @ torch.tensor(self.sizes, dtype=wide, device=device)
        self.n += sum(self.sizes)
        if self.smooth: self.smooth.add(values[0])
        self.rows, self.sizes = [], []

    def results(self):
        "name -> average so far, a plain number; NaN if nothing counted."
        self.fold()
        return dict(zip(self.names, [math.nan] * len(self.names) if self.n == 0 else (self.sums / self.n).tolist()))


class SmoothLoss:
    "The exponentially weighted average of losses, corrected for its late start (chapter 03)."
    def __init__(self, beta=.98): self.beta, self.sum, self.n = beta, 0, 0

    def add(self, losses):
        "losses: a tensor `[n]`, oldest first."
        powers = torch.arange(len(losses) - 1, -1, -1, dtype=losses.dtype, device=losses.device)
        self.sum = self.beta ** len(losses) * self.sum + (1 - self.beta) * losses @ self.beta ** powers
        self.n += len(losses)

    @property
    def value(self): return self.sum / (1 - self.beta ** self.n) if self.n else None

    @value.setter
    def value(self, value):
        self.n = max(self.n, 1)
        self.sum = value * (1 - self.beta ** self.n)


RESERVED_NAMES = ("loss", "train_loss", "valid_loss", "epoch", "batches", "seconds", "time")  # of results and tables


def metric_names(metrics):
    "What the metrics are called; raises `ValueError` where a name is there twice, or belongs to something else."
    names = [getattr(getattr(metric, "func", metric), "__name__", type(metric).__name__) for metric in metrics]
    if len({*RESERVED_NAMES, *names}) < len(RESERVED_NAMES) + len(names):
        raise ValueError("metrics: each metric needs a name of its own, and none may be called "
                         f"{', '.join(map(repr, RESERVED_NAMES))}, which stand for something else: got {names}.")
    return names


def samples_with_nan(xb):
    "How many of a batch's inputs hold NaN or inf."
    if not isinstance(xb, torch.Tensor) or xb.sum().isfinite(): return 0
    return int((~xb.isfinite()).reshape(len(xb), -1).any(1).sum())


def child_groups(model):
    "Parameters by the model's direct children that have any, in order; the model's own, if it has some, come first."
    model = getattr(model, "_orig_mod", model)  # the one that torch.compile was given
    seen, groups = set(), []
    for parameters in (model.parameters(recurse=False), *(child.parameters() for child in model.children())):
        group = [p for p in parameters if id(p) not in seen]
        seen.update(map(id, group))
        if group: groups.append(group)
    return groups


def spread_lr(lr, n_groups):
    """A rate for each of the groups: `lr` for all; `slice(a, b)`: geometric from a to b;
    `slice(b)`: b / 10 for all but the last. One that is a tensor gets a copy for each, since torch changes it in place.
    """
    if not isinstance(lr, slice): return [copy_hyper(check_hyper("lr", lr)) for _ in range(n_groups)]
    if lr.stop is None or lr.step is not None: raise ValueError(f"lr={lr}: expected slice(first, last) or slice(last).")
    last = copy_hyper(check_hyper("lr", lr.stop))
    if lr.start is None: return [last / 10 for _ in range(n_groups - 1)] + [last]
    first = check_hyper("lr", lr.start)
    if not 0 < first or not 0 < last: raise ValueError(f"lr={lr}: a geometric series needs rates above 0.")
    if n_groups == 1: return [last]
    return [first * (last / first) ** (i / (n_groups - 1)) for i in range(n_groups - 1)] + [last]


def freeze_groups(groups, n):
    "Only the groups of parameters from n on learn (negative: counted from the end)."
    try: n = operator.index(n)
    except TypeError: raise TypeError(f"freeze_to takes a whole number, not {n!r}, a {type(n).__name__}.") from None
    if not -len(groups) <= n < len(groups):
        raise ValueError(f"There are {len(groups)} groups of parameters; freeze_to({n}) names none of them.")
    for i, group in enumerate(groups):
        for p in group: p.requires_grad_(i >= n % len(groups))


def frozen_norms(model):
    "Layers with running statistics that are frozen; one without parameters goes with the layer before it."
    flags = [(part, [p.requires_grad for p in part.parameters(recurse=False)]) for part in model.modules()]
    frozen, norms = next((not any(flag) for _, flag in flags if flag), False), []
    for part, flag in flags:
        if flag: frozen = not any(flag)
        if frozen and getattr(part, "running_mean", None) is not None: norms.append(part)
    return norms


def count_batches(dl, part):
    "The length of a loader; raises `ValueError` where there is none, or no batch. part: training, or validation."
    try: n = len(dl)
    except TypeError: raise ValueError(f"The {part} loader has no length: len(dl) must be its number of batches, "
                                       f"got {dl!r:.80}.") from None
    if not n: raise ValueError(f"The {part} loader is empty: len(dl) is 0, so it has no batch.")
    return n


def parameters_unknown_to(opt, model):
    "The model's parameters that learn, and that the optimizer holds neither themselves nor as part of a flat buffer."
    held = [p for group in opt.param_groups for p in group["params"]]
    ids = set(map(id, held))
    unknown = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    if not unknown: return []
    place = lambda p: None if nn.parameter.is_lazy(p) or p.is_meta else p.untyped_storage().data_ptr()
    buffers = {place(p) for p in held} - {None}
    return [p for p in unknown if place(p) not in buffers]


ERROR = 9  # above the severity of every cancel


def severity(problem, cancel):
    "How much is skipped: of a `cancel` as it says, any other error is above all, None below."
    if problem is None: return -1
    return problem.severity if isinstance(problem, cancel) else ERROR


def check_learns(loss):
    "Raises `ValueError` for a loss without a gradient, which `backward` refuses in words about graphs."
    if not check_mean("The loss", loss).requires_grad:
        raise ValueError("The loss depends on no parameter that learns: either all are frozen, or it was detached "
                         "(.detach(), .item(), .data, torch.no_grad()) in the model or in loss_func.") from None


def backward(loss):
    "`loss.backward()`, which says in plain words what is wrong with a loss that has no gradient."
    try: loss.backward()
    except (RuntimeError, AttributeError):
        check_learns(loss)
        raise


def check_classes(pred, targets):
    "Raises `ValueError` unless outputs are `[B, classes]` and targets `[B]`; both may have further axes, the same."
    fits = all(isinstance(x, torch.Tensor) for x in (pred, targets)) and pred.ndim > 1
    if not fits or pred.shape[:1] + pred.shape[2:] != targets.shape:
        pred, targets = (list(x.shape) if isinstance(x, torch.Tensor) else shorten(x) for x in (pred, targets))
        raise ValueError("pred must be a tensor of outputs [batch, classes], and targets one of the right classes "
                         f"[batch]; got pred {pred} and targets {targets}.")


def check_resets(model):
    "Raises `ValueError` where `ModelResetter` would have nothing to reset."
    if not any(hasattr(module, "reset") for module in model.modules()):
        raise ValueError("ModelResetter: no module of this model has a method reset().")


def recurrent_layers(model):
    "Each `nn.RNN`, `nn.GRU` and `nn.LSTM` of a model; raises `ValueError` where there is none to regularize."
    layers = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    if not layers: raise ValueError("RNNRegularizer: this model has no nn.RNN, nn.GRU or nn.LSTM.")
    return layers


def check_penalties(owner, **penalties):
    "Raises `ValueError` unless all are finite numbers and at least 0."
    if all(isinstance(value, numbers.Real) and 0 <= value < math.inf for value in penalties.values()): return
    raise ValueError(f"{owner}: {' and '.join(penalties)} must be finite numbers and at least 0, "
                     f"not {' and '.join(map(shorten, penalties.values()))}.")


@contextlib.contextmanager
def keep_grad_mode():
    "Gradients are recorded afterwards, or not, as before: after a Ctrl-C between torch's switch and its block too."
    before = torch.is_grad_enabled()
    try: yield
    finally: torch._C._set_grad_enabled(before)  # one call into C, which no Ctrl-C cuts in two


@contextlib.contextmanager
def keep_modes(model):
    "Each module is afterwards in training or evaluation as before, and gradients are recorded as before."
    modes = [(module, module.training) for module in model.modules()]
    with keep_grad_mode():
        try: yield
        finally:
            try: set_modes(modes)
            except KeyboardInterrupt:  # an impatient one; this can be done twice, but not by half
                set_modes(modes)
                raise


def set_modes(modes):
    for module, training in modes: module.training = training


class LearnerBase:
    """What `Learner` inherits: it checks arguments, and keeps the books of a fit. The loop itself is not in it.

    Of the loop it knows what a subclass says: `events`, their names; `cancel`, the class of the exceptions that skip
    something; `stages_in_batch` and `batch_stages`, which are left out where no callback could act in them.
    """
    events, cancel, stages_in_batch, batch_stages = (), (), (), ()

    def __init__(self, model, dls, loss_func, opt_func, lr=None, cbs=(), metrics=(), splitter=None):
        a_module("model", model)
        a_dls("dls", dls)
        check_function("loss_func", loss_func, "it takes (pred, targets), as F.cross_entropy does")
        check_function("opt_func", opt_func, "it makes an optimizer of parameters, as partial(SGD, momentum=.9) does")
        if splitter is not None: check_function("splitter", splitter, "it gives lists of the model's parameters")
        self.model, self.dls, self.loss_func, self.opt_func = model, dls, loss_func, opt_func
        self.cbs, self.metrics = as_list("cbs", cbs), as_list("metrics", metrics)
        for metric in self.metrics:
            check_function("metrics: a metric", metric, "it takes (pred, targets), as accuracy does")
        metric_names(self.metrics)
        in_order(self.cbs)
        self.splitter, self.opt = splitter, None
        self.epochs_done, self.results, self.fit_cbs = 0, {}, None
        self.averages, self._smooth = Averages(["loss"]), SmoothLoss()
        self.dl = self.xb = self.yb = self.pred = self.loss = self.cancelled = None
        self.n_epoch = self.n_iter = self.epoch = self.iter = self.train_iter = 0
        self.pct_train, self.training, self.has_grad = 0., False, False
        self._lr, self._listeners, self._unheard = None, None, set()
        self._on_device = self._inputs_checked = False
        self.lr = lr

    # groups of parameters, their rates and the optimizer

    @property
    def groups(self):
        "The model's parameters in groups, from input to output."
        if self.splitter is None: return child_groups(self.model)
        groups = self.splitter(self.model)
        try: groups = [list(group) for group in groups]
        except TypeError: raise ValueError(f"splitter must give lists of parameters, not {shorten(groups)}.") from None
        ids, own = [id(p) for group in groups for p in group], {id(p) for p in self.model.parameters()}
        if set(ids) != own or len(ids) != len(own) or not all(groups):
            raise ValueError("splitter must put each of the model's parameters into one group, and leave none empty: "
                             f"of {len(own)} it has {len(own & set(ids))}, in {len(ids)} places.")
        return groups

    def freeze_to(self, n):
        "Only the groups from n on learn (negative: counted from the end); frozen normalization keeps its statistics."
        freeze_groups(self.groups, n)

    def freeze(self):
        "Only the last group learns."
        self.freeze_to(-1)

    def unfreeze(self):
        "All groups learn."
        self.freeze_to(0)

    @property
    def lr(self):
        "The rate that a fit starts with; setting it sets the optimizer's rates at once."
        return self._lr

    @lr.setter
    def lr(self, lr):
        if lr is None: return
        rates = self.rates(lr)
        self._lr = lr
        if self.opt:
            for group, rate in zip(self.opt.param_groups, rates): group["lr"] = rate

    def rates(self, lr):
        "The rates that lr means for the optimizer's groups; where it has split the model's, the parts get the same."
        if self.opt is None: return spread_lr(lr, len(self.groups))
        groups, n = self.groups, len(self.opt.param_groups)
        group_of = {id(p): i for i, group in enumerate(groups) for p in group}
        origins = [group_of.get(id(p)) for group in self.opt.param_groups for p in group["params"][:1]]
        if n <= len(groups) or len(origins) < n or None in origins: return spread_lr(lr, n)
        rates = spread_lr(lr, len(groups))
        return [copy_hyper(rates[i]) for i in origins]

    def make_opt(self):
        """A new optimizer for all groups.

        Raises `ValueError` where there is no rate, and for an optimizer that holds not all parameters that learn.
        """
        groups = self.groups
        if self._lr is None: params = [{"params": group} for group in groups]
        else: params = [{"params": g, "lr": rate} for g, rate in zip(groups, spread_lr(self._lr, len(groups)))]
        try: opt = self.opt_func(params)
        except (TypeError, ValueError) as error:
            if not groups: raise ValueError("The model has no parameters, so there is nothing to train; "
                                            "validate and predict need none.") from error
            if self._lr is not None or not re.search(r"\blr\b", str(error)): raise
            raise ValueError("No learning rate: lr is None, and the optimizer has no default to take. "
                             "Pass one: Learner(…, lr=…) or fit(…, lr=…).") from error
        if not hasattr(opt, "param_groups"): raise ValueError(f"opt_func must give an optimizer, not {shorten(opt)}.")
        if n := len(parameters_unknown_to(opt, self.model)):
            raise ValueError(f"opt_func made an optimizer that does not hold {n} of the model's parameters that learn, "
                             "so they would stay as they are. It must take the parameters that it is given, as "
                             "lambda params: SGD(params) does; freeze those that shall stay: p.requires_grad_(False).")
        self.opt = opt
        rates = [group["lr"] for group in opt.param_groups]
        if self._lr is None and all(rate is rates[0] or rate == rates[0] for rate in rates):
            self._lr = copy_hyper(rates[0])

    def _check_opt(self):
        "Raises `ValueError` for an optimizer that was made before the model, or a part of it, was replaced."
        if n := len(parameters_unknown_to(self.opt, self.model)):
            raise ValueError(f"The optimizer knows nothing of {n} of the model's parameters, since the model has "
                             "changed after it was made. fit(…, reset_opt=True) makes a new one.")

    # a fit, a validation

    def _start_fit(self, n_epochs, lr, cbs, reset_opt):
        "Check what a fit is given, set rates and counters, see to the optimizer; returns its callbacks in their order."
        if self.fit_cbs is not None:
            raise RuntimeError("This learner is in the middle of a fit; another one cannot begin inside it.")
        n_epochs, cbs = positive_int("n_epochs", n_epochs), in_order([*self.cbs, *as_list("cbs", cbs)])
        self.n_iter = count_batches(self.dls.train, "training")
        if self.dls.valid is not None: count_batches(self.dls.valid, "validation")
        metric_names(self.metrics)
        self.lr = lr
        if self.opt is None or reset_opt: self.make_opt()
        else: self._check_opt()
        self.lr = self._lr
        self.n_epoch, self.epoch, self.iter, self.train_iter, self._inputs_checked = n_epochs, 0, 0, 0, False
        self.pct_train, self._smooth, self.loss, self.results, self.dl = 0., SmoothLoss(), None, {}, None
        return cbs

    @contextlib.contextmanager
    def _callbacks(self, cbs):
        "These callbacks, in their order, as long as the block lasts."
        ordered, before = in_order(cbs), (self._listeners, self.fit_cbs, self._unheard)
        listeners = {event: [cb for cb in ordered if hasattr(cb, event)] for event in self.events}
        unheard = {stage for stage in self.stages_in_batch if not any(map(listeners.get, stage.events))}
        if not ordered: unheard.update(self.batch_stages)
        try:
            self._listeners, self.fit_cbs, self._unheard = listeners, ordered, unheard
            yield
        finally: self._listeners, self.fit_cbs, self._unheard = before

    @contextlib.contextmanager
    def _fitting(self):
        "An error of the block gets a note of the place; what was computed last does not stay as a graph."
        with keep_grad_mode():
            try: yield
            except BaseException as error:
                error.add_note(f"(in {self.where()}; the learner can fit again)")
                raise
            finally:
                self.cancelled, self.pred, self.loss = None, *map_tensors(torch.Tensor.detach, (self.pred, self.loss))

    @contextlib.contextmanager
    def _validating(self, dl):
        "The loader to validate with; after the block, the learner stands where it stood before."
        dl = self.dls.valid if dl is None else dl
        if dl is None: raise ValueError("There is no validation loader; pass one: validate(dl).")
        names = "dl n_iter iter training xb yb pred loss cancelled results averages _on_device has_grad".split()
        before = {name: getattr(self, name) for name in names}
        with keep_modes(self.model):
            try: yield dl
            finally: vars(self).update(before)

    def predict(self, x):
        "The model's output for a batch, in evaluation mode."
        with keep_modes(self.model), torch.no_grad():
            self.model.eval()
            return self.model(to_device(x, self.device) if self.device else x)

    # calling callbacks

    def _run(self, callback, event):
        "One callback's method; an error of it gets a note that says whose it is."
        try: getattr(callback, event)(self)
        except BaseException as error:
            error.add_note(f"(raised by the callback {callback!r} in {event})")
            raise

    def _call(self, event):
        for callback in self._listeners[event]: self._run(callback, event)

    def _call_all(self, event, problem=None):
        "Every callback gets its turn, whatever another one raises; returns the most severe of what was raised."
        for callback in self._listeners[event]:
            try: self._run(callback, event)
            except BaseException as error:
                old, new = severity(problem, self.cancel), severity(error, self.cancel)
                if old == new == ERROR: problem.add_note(f"And then: {error!r}")
                if new > old: problem = error
        try: return problem
        finally: del problem  # its traceback holds this frame, which would hold it

    # a pass over a loader

    @contextlib.contextmanager
    def _pass_over(self, dl, training):
        "Modes, averages and gradients as a training or a validation needs them, as long as the block lasts."
        self.n_iter = count_batches(dl, "training" if training else "validation")
        self.dl, self.iter, self.training, self._on_device, self.has_grad = dl, 0, training, False, False
        self.averages = Averages(["loss"], self._smooth) if training else (
            Averages(["loss", *metric_names(self.metrics)]))
        self.model.train(training)
        if training:
            self.pct_train = self.epoch / self.n_epoch
            for norm in frozen_norms(self.model): norm.eval()
            self.opt.zero_grad()  # what a fit that broke off left behind
            if n := len(parameters_unknown_to(self.opt, self.model)):  # `fit` has looked: it was a callback
                warnings.warn(f"The optimizer knows nothing of {n} of the model's parameters, so they stay as they are: "
                              "a callback that replaces learn.model has to make a new one, learn.make_opt().",
                              stacklevel=2)
        with torch.set_grad_enabled(training): yield

    @contextlib.contextmanager
    def _averaging(self):
        "The results of the batches in the block: of a training those that there were, of a validation only the whole."
        self.n_iter, self.iter = count_batches(self.dl, self._part), -1  # a callback may have changed dl
        try:
            yield
            self._check_number_of_batches()
        except BaseException:
            self.iter = max(self.iter, 0)
            if self.training: self._sum_up()
            raise
        self._sum_up()
        self._check_finite()

    def _prepare(self, batch):
        "A pass's first batch, checked and moved to the model's device; the others too, if that had to be moved."
        xb, yb = a_batch(batch)
        if not self.iter and self.training and samples_with_nan(xb):
            raise ValueError("The first training batch holds NaN or inf. Clean the data, or leave such samples out.")
        devices = {x.device if isinstance(x, torch.Tensor) else None for x in (xb, yb)}
        if len(devices - {None}) > 1: raise ValueError(f"The inputs are on {xb.device} and the targets on {yb.device}: "
                                                       "put both on one device.")
        device = self.device
        self._on_device = device is None or devices == {device}
        return (xb, yb) if self._on_device else to_device((xb, yb), device)

    def _count(self):
        "After each batch: how far, and what it adds to the averages."
        if self.training:
            self.train_iter += 1
            self.pct_train = (self.epoch + min(self.iter + 1, self.n_iter) / self.n_iter) / self.n_epoch
            if self.cancelled and self.has_grad: self.opt.zero_grad()
            self.has_grad = False
            if not self.fit_cbs: return  # nobody to read an average of it
        if self.cancelled: return
        values = check_mean("The loss", self.loss).detach(),
        if not self.training: values += *(
            check_mean(f"The metric {name}", as_tensor(metric(self.pred, self.yb)))
            for name, metric in zip(self.averages.names[1:], self.metrics)),
        self.averages.add(values, batch_size(self.yb))

    def _sum_up(self):
        values = self.averages.results()
        if self.training: self.results = {"train_loss": values["loss"]} if self.fit_cbs else {}
        else: self.results = {**self.results, "valid_loss": values.pop("loss"), **values}

    def _check_number_of_batches(self):
        "An error if there was none; if there were others than the loader's length says, a warning."
        n = self.iter + 1
        if not n: raise ValueError(f"The {self._part} loader gave no batch, though its length is {self.n_iter}. "
                                   "A generator that was used up? A loader must begin anew each time.")
        if n == self.n_iter: return
        warnings.warn(f"The {self._part} loader gave {n} batches, though its length is {self.n_iter}. Averages count "
                      "what came; progress and schedules go by the length, so make len(dl) right.", stacklevel=2)
        if self.training: self.pct_train = (self.epoch + 1) / self.n_epoch

    def _check_finite(self):
        if not self.training or self.cancelled or self.loss is None or (loss := self.loss.detach()).isfinite(): return
        if n_bad := self._bad_inputs():
            raise ValueError(f"{n_bad:,} training input{'s hold' if n_bad > 1 else ' holds'} NaN or inf. "
                             "Clean the data, or leave such samples out.")
        warnings.warn(f"At the end of epoch {self.epoch + 1} the training loss is {loss:.3g}: the run has blown up. "
                      "A smaller learning rate helps; TerminateOnNaN() stops at the first such batch.", stacklevel=2)

    def _bad_inputs(self):
        "How many training inputs hold NaN or inf, looked for once in a fit; the data's order and random numbers stay."
        if self._inputs_checked: return 0
        self._inputs_checked, order = True, loader_state(self.dls)
        try:
            with torch.random.fork_rng(devices=[]): return sum(samples_with_nan(xb) for xb, _ in self.dl)
        finally: set_loader_state(self.dls, order)

    # what there is to know

    @property
    def smooth_loss(self):
        """The fit's training loss up to the batch before, smoothed; a tensor, computed when read, at first None.

        Without any callback to read it, it is the last batch's.
        """
        if self.training: self.averages.fold()
        return self.loss.detach() if self._smooth.value is None and self.loss is not None else self._smooth.value

    @smooth_loss.setter
    def smooth_loss(self, value):
        if self.training: self.averages.fold()
        self._smooth.value = value

    @property
    def result_names(self):
        "What an epoch's results are called; those of its validation are missing where that is cancelled."
        return ["train_loss"] + (["valid_loss", *metric_names(self.metrics)] if self.dls.valid is not None else [])

    @property
    def device(self): return next((p.device for p in self.model.parameters()), None)

    @property
    def _part(self): return "training" if self.training else "validation"

    def where(self):
        "The place in the loop, in words."
        if self.dl is None: return "before the first epoch"
        batch = max(self.iter, 0) + 1
        return f"epoch {self.epoch + 1} of {self.n_epoch}, {self._part} batch {batch} of {self.n_iter}"

    def __repr__(self):
        n, opt = sum(p.numel() for p in self.model.parameters()), getattr(self.opt_func, "__name__", self.opt_func)
        return (f"Learner: {type(self.model).__name__} with {n:,} parameters in {len(self.groups)} groups, {opt}, "
                f"lr {self.lr}, {self.epochs_done} epochs done, callbacks {self.cbs}\n{self.dls!r}")
