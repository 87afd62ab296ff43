"""Schedules checked, and torch's schedulers: what they are made for, and what will happen at the wrong place."""
import math
import warnings
from collections.abc import Mapping

import torch
from torch.optim import lr_scheduler

from .arguments import a_share, a_text, above_0, at_least_0, checked, finite
from .checks import FOREIGN_NAMES, SCHEDULER_KEYS, as_list, check_hyper, positive_int
from .learner import spread_lr
from .optimizer import hyper_key, read_hyper, write_hyper


def check_parts(shares, schedules):
    "The arguments of `combine` as lists. Raises `ValueError` for wrong shares, `TypeError` for what is no schedule."
    shares, schedules = as_list("shares", shares), as_list("schedules", schedules)
    shares = [float(at_least_0("shares", share)) for share in shares]
    for schedule in schedules:
        if not callable(schedule):
            raise TypeError(f"combine joins functions of progress, but got {schedule!r}: write const({schedule!r}) for "
                            "a value that stays.")
    if len(shares) != len(schedules) or not shares:
        raise ValueError(f"{len(shares)} shares for {len(schedules)} schedules: expected one each, and at least one.")
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"The shares must be at least 0 and add up to 1; {shares} add up to {sum(shares):g}.")
    return shares, schedules


def check_restarts(n_cycles, mult):
    if not finite("mult", mult) > 0: raise ValueError(f"mult, how much longer each cycle is than the one before, must be "
                                                 f"above 0, not {mult}; 1 makes all equally long.")
    return positive_int("n_cycles", n_cycles)


class HyperSetter:
    """What `Scheduler` inherits: two of them must not set the same hyperparameter, and after a fit it is put back.

    names: of what is set; plan: (group, name, schedule); before: (group, name, value) of what is put back.
    """
    names, plan, before = ("lr",), (), ()

    def before_fit(self, learn):
        for other in learn.fit_cbs:
            both = set(self.names) & set(other.names) if isinstance(other, HyperSetter) and other is not self else ()
            if both: raise ValueError(f"{self!r} and {other!r} would both set {', '.join(sorted(both))}: keep "
                                      "one of them.")

    def follow(self, schedules, groups):
        "Plan these schedules for an optimizer's groups, and note what is put back. Raises `ValueError` for others."
        self.plan = spread_schedules(schedules, groups)
        self.before = [(group, name, read_hyper(group, name)) for group, name, _ in self.plan if name != "lr"]

    def set_all(self, progress):
        "Each hyperparameter of the plan gets the value of its schedule. Raises `ValueError` for an impossible one."
        for group, name, schedule in self.plan: write_hyper(group, name, check_hyper(name, schedule(progress)))

    def after_fit(self, learn):
        for group, name, value in self.before: write_hyper(group, name, value)
        self.plan = self.before = ()


def each_schedule(schedule, n=1):
    "One for each of n groups."
    return list(schedule) if isinstance(schedule, (list, tuple)) else [schedule] * n


def check_schedules(schedules):
    "The argument of `ParamScheduler` as a dict. Raises `TypeError` or `ValueError`."
    if not isinstance(schedules, Mapping):
        raise TypeError("ParamScheduler expects a dict from a hyperparameter's name to its schedule, for example "
                        f"{{'lr': lin(0, 1)}}; got {schedules!r}.")
    if not schedules: raise ValueError("ParamScheduler got no schedules, {}: there is nothing for it to set.")
    for name, schedule in schedules.items():
        if not (each := each_schedule(schedule)) or not all(map(callable, each)):
            raise ValueError(f"{name}: a schedule is a function of progress, or a list of them; got {schedule!r}.")
    return dict(schedules)


def spread_schedules(schedules, groups):
    "A list of (group, name, schedule). Raises `ValueError` for what the groups do not have, and for impossible values."
    plan = []
    for name, schedule in schedules.items():
        for group in groups:
            if hyper_key(group, name) is None:
                near = FOREIGN_NAMES.get(name)
                raise ValueError(f"The optimizer has no hyperparameter {name!r} to schedule"
                                 f"{f' (did you mean {near!r}?)' if near else ''}; it has "
                                 f"{', '.join(sorted(group.keys() - {'params'}))}.")
        each = each_schedule(schedule, len(groups))
        if len(each) != len(groups):
            raise ValueError(f"{name}: {len(each)} schedules for {len(groups)} parameter groups.")
        for f in each:
            for progress in (0., 1.): check_hyper(name, f(progress))
        plan += [(group, name, f) for group, f in zip(groups, each)]
    return plan


@checked(monitor=a_text)
def check_stepping(make_scheduler, call_on, monitor):
    "Raises `ValueError` for wrong arguments of `LRScheduler`."
    if call_on not in ("after_batch", "after_epoch"):
        raise ValueError(f"call_on is 'after_batch' or 'after_epoch', not {call_on!r}.")
    if not callable(make_scheduler):
        raise ValueError("make_scheduler is a function optimizer -> scheduler, for example "
                         f"partial(StepLR, step_size=2); got {make_scheduler!r}.")


def new_scheduler(make_scheduler, opt):
    "A scheduler for an optimizer that may have had others before. Raises `ValueError` for what is none."
    for group in opt.param_groups:
        for key in SCHEDULER_KEYS: group.pop(key, None)  # what the scheduler of an earlier fit noted
    scheduler = make_scheduler(opt)
    if not hasattr(scheduler, "step"): raise ValueError(f"make_scheduler gave {scheduler!r}, which has no step().")
    return scheduler


class TorchStepper(HyperSetter):
    "What `LRScheduler` inherits: makes a scheduler as a fit begins, and steps it after each batch or each epoch."
    def __init__(self, make_scheduler, call_on="after_batch", monitor="valid_loss"):
        check_stepping(make_scheduler, call_on, monitor)
        self.make_scheduler, self.call_on, self.monitor = make_scheduler, call_on, monitor
        self.scheduler = None

    def before_fit(self, learn):
        super().before_fit(learn)
        self.before = [(group, "beta", read_hyper(group, "beta"))  # some of torch's turn it, too
                       for group in learn.opt.param_groups if hyper_key(group, "beta")]
        self.scheduler = new_scheduler(self.make_scheduler, learn.opt)
        warn_if_misplaced(self.scheduler, self.make_scheduler, self.call_on, self.monitor, learn)

    def after_batch(self, learn):
        if learn.training: self.step("after_batch", learn)

    def after_epoch(self, learn): self.step("after_epoch", learn)

    def step(self, event, learn):
        "Step the scheduler if this is its event, and what has ended was not cancelled."
        if event == self.call_on and not learn.cancelled:
            step_scheduler(self.scheduler, self.call_on, self.monitor, learn.results)


def intended_steps(scheduler):
    "The steps that one of torch's schedulers is made for, or one of its cycles; None where it cannot be told."
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        last = intended_steps(scheduler._schedulers[-1])
        return last and sum(scheduler._milestones[-1:]) + last
    if isinstance(scheduler, lr_scheduler.MultiStepLR): return max(scheduler.milestones, default=None)
    if isinstance(scheduler, lr_scheduler.ExponentialLR):
        return round(1 / (1 - scheduler.gamma)) if 0 < scheduler.gamma < 1 else None
    for name in ("total_steps", "T_max", "T_0", "total_iters", "total_size", "step_size"):
        if length := getattr(scheduler, name, None): return max(1, round(length))


def step_scheduler(scheduler, call_on, monitor, results):
    "Step it; one that watches a result is told it, once there is one (`ValueError` if an epoch does not give it)."
    if not isinstance(scheduler, lr_scheduler.ReduceLROnPlateau): scheduler.step()
    elif monitor in results: scheduler.step(results[monitor])
    elif call_on == "after_epoch":
        raise ValueError(f"ReduceLROnPlateau watches {monitor!r}, but an epoch's results are: {', '.join(results)}.")


def foreseen_rates(make_scheduler, rates, calls):
    """The rates of the last group in so many steps, from a scheduler on a dummy; [] where that cannot be had.

    rates: what the groups begin with.
    """
    try:
        dummy = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates],
                                momentum=.9)
        scheduler, seen = make_scheduler(dummy), []
        for _ in range(min(calls, 5000)):
            seen.append(float(dummy.param_groups[-1]["lr"]))
            dummy.step()
            scheduler.step()
        return seen
    except Exception: return []


def warn_if_misplaced(scheduler, make_scheduler, call_on, monitor, learn):
    "Warn of a scheduler that the other place would fit better, and say what will happen."
    per_batch, per_epoch = learn.n_epoch * learn.n_iter, learn.n_epoch
    calls, other = (per_batch, per_epoch) if call_on == "after_batch" else (per_epoch, per_batch)
    elsewhere = "after_epoch" if call_on == "after_batch" else "after_batch"
    advice = f" With call_on={elsewhere!r} it would be stepped {other:,} times."
    foresee = lambda: foreseen_rates(make_scheduler, [] if learn.lr is None else learn.rates(learn.lr), calls)
    if said := misplaced(scheduler, call_on, monitor, calls, other, foresee):
        warnings.warn(said + advice, stacklevel=3)


def misplaced(scheduler, call_on, monitor, calls, other, foresee):
    """What will happen if a scheduler is stepped at the wrong place, or None.

    calls, other: how often it will be stepped, and how often at the other place; foresee: () -> its rates, or [].
    """
    name, length = type(scheduler).__name__, intended_steps(scheduler)
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        return None if call_on == "after_epoch" else (
            f"{name} is stepped after each of {calls:,} batches, but gets a new {monitor} only after each epoch: "
            "it counts every batch without news as a bad one, and cuts the rate again and again.")
    if length is None or calls == other: return None
    if isinstance(scheduler, lr_scheduler.OneCycleLR) and length < calls:
        return (f"{name} is made for {length:,} steps and will be asked for {calls:,} (call_on={call_on!r}): "
                f"PyTorch raises an error at step {length + 1:,}.")
    nearer_to_other = abs(math.log(length / other)) < abs(math.log(length / calls))
    if not nearer_to_other or (length > calls) != (call_on == "after_epoch"): return None
    rates = foresee()
    warms_up = isinstance(scheduler, (lr_scheduler.LinearLR, lr_scheduler.ConstantLR))  # over some batches
    decays = isinstance(scheduler, (lr_scheduler.StepLR, lr_scheduler.MultiStepLR, lr_scheduler.ExponentialLR))
    bearable = decays and rates and rates[-1] > 1e-6 * rates[0]
    if call_on == "after_batch" and (warms_up or bearable): return None
    course = (f" The rate will begin at {rates[0]:.3g}, end at {rates[-1]:.3g} and be {max(rates):.3g} at most."
              if rates else "")
    steps = f"about {length:,} steps" if length > 1 else "1 step"
    return f"{name} is made for {steps} and will be stepped {calls:,} times in this fit (call_on={call_on!r}).{course}"


@checked(div=above_0, div_final=above_0, pct_start=a_share)
def one_cycle_arguments(learn, n_epochs, max_lr, div, div_final, pct_start, betas, cbs, lr):
    """The arguments of `fit_one_cycle`, checked before anything changes -> n_epochs, max_lr, betas, cbs.

    Raises `TypeError` for an lr, `RuntimeError` in the middle of a fit, `ValueError` for all else.
    """
    if lr is not None: raise TypeError(f"fit_one_cycle has no lr, since the rate moves: give its peak, max_lr={lr!r}.")
    max_lr = learn.lr if max_lr is None else max_lr
    if max_lr is None: raise ValueError("fit_one_cycle needs a peak: pass max_lr, or give the learner an lr.")
    if learn.fit_cbs is not None: raise RuntimeError("fit_one_cycle cannot run in the middle of a fit.")
    n_epochs, cbs = positive_int("n_epochs", n_epochs), as_list("cbs", cbs)
    spread_lr(max_lr, 1)
    if betas is not None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 3:
            raise ValueError(f"betas must be three: at the start, at the peak and at the end; got {betas!r}.")
        betas = [check_hyper("beta", beta) for beta in betas]
    return n_epochs, max_lr, betas, cbs


def ready_for_one_cycle(learn, n_epochs, max_lr, div, div_final, pct_start, betas, cbs, reset_opt, lr):
    """Checks the arguments of `fit_one_cycle`, then sees to the optimizer -> n_epochs, max_lr, betas, cbs, up.

    betas: None where the optimizer's stays; up: the progress at which the peak is reached.
    """
    n_epochs, max_lr, betas, cbs = one_cycle_arguments(
        learn, n_epochs, max_lr, div, div_final, pct_start, betas, cbs, lr)
    if learn.lr is None and learn.opt is None: learn.lr = max_lr
    if learn.opt is None or reset_opt: learn.make_opt()
    if not can_turn_beta(learn.opt.param_groups): betas = None
    return n_epochs, max_lr, betas, cbs, progress_of_peak(pct_start, n_epochs * len(learn.dls.train))


def progress_of_peak(pct_start, n):
    "Where `OneCycleLR` has its peak: at step pct_start · n − 1 of n, which is counted as progress i / (n − 1)."
    return min(max((pct_start * n - 1) / (n - 1), 0.), 1.) if n > 1 else 0.


def can_turn_beta(groups):
    "Have all groups a beta (torch's SGD: one that is not 0)?"
    return all(read_hyper(group, "beta") is not None and group.get("momentum") != 0 for group in groups)
