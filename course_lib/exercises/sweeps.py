"""The exercises of chapter 09."""
import copy
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ..sgd import Optimizer
from ..support.optimizer import add_scaled
from ..sweeps import sweep
from . import core
from .core import Exercise, calls_of

random_tensor = partial(core.random_tensor, dtype=torch.float64)


# 1. A stepper that mixes

def clip_each(p, grad, state, *, lr, limit=.1):
    "The gradient, at most `limit` long for each network."
    axes = tuple(range(1 if isinstance(lr, torch.Tensor) and lr.ndim else 0, p.ndim))
    return grad * (limit / torch.linalg.vector_norm(grad, dim=axes, keepdim=True)).clamp(max=1)


def gradients(rng):
    "Of four networks and of a single one: lengths above the limit, just below it, and 0."
    found = []
    for networks, shape, limits in ((4, (3, 2), {}), (4, (5,), {"limit": rng.uniform(.3, .9)}),
                                    (0, (3, 2), {}), (0, (5,), {"limit": rng.uniform(.3, .9)})):
        limit = limits.get("limit", .1)
        lengths = [limit * rng.uniform(2, 5), limit * rng.uniform(.6, .95), 0., limit * rng.uniform(6, 9)][:networks or 1]
        directions = [random_tensor(rng, *shape) for _ in lengths]
        grads = [length * direction / direction.norm() for length, direction in zip(lengths, directions)]
        lr = torch.tensor([rng.uniform(.1, 1) for _ in lengths]).view(-1, *[1] * len(shape)) if networks else rng.uniform(.1, 1)
        grad = torch.stack(grads) if networks else grads[0]
        found.append({"networks": networks or 1, "_p": random_tensor(rng, *grad.shape), "_grad": grad, "lr": lr, **limits})
    return found


def watch_clip(answer, networks, _p, _grad, **hypers):
    p = nn.Parameter(_p.clone())
    p.grad = _grad
    with torch.no_grad(): returned = answer(p, p.grad, {}, **hypers)
    return {"what it returns": returned.clone() if isinstance(returned, torch.Tensor) else returned,
            "p.grad afterwards": p.grad.clone(), "the weight afterwards": p.detach().clone()}


def torchs_clip(networks, _p, _grad, lr, limit=.1):
    "torch's clip_grad_norm_, network by network."
    clipped = []
    for grad in _grad if isinstance(lr, torch.Tensor) else [_grad]:
        p = nn.Parameter(torch.zeros_like(grad))
        p.grad = grad.clone()
        nn.utils.clip_grad_norm_([p], limit)
        clipped.append(p.grad)
    return {"what it returns": torch.stack(clipped) if isinstance(lr, torch.Tensor) else clipped[0],
            "p.grad afterwards": _grad, "the weight afterwards": _p}


def mixes(p, grad, state, *, lr, limit=.1): return grad * (limit / grad.norm()).clamp(max=1)
def for_many_only(p, grad, state, *, lr, limit=.1):
    return grad * (limit / torch.linalg.vector_norm(grad, dim=tuple(range(1, p.ndim)), keepdim=True)).clamp(max=1)
def row_by_row(p, grad, state, *, lr, limit=.1): return grad * (limit / grad.norm(dim=-1, keepdim=True)).clamp(max=1)
def entry_by_entry(p, grad, state, *, lr, limit=.1): return grad.clamp(-limit, limit)
def clips_at_a_tenth(p, grad, state, *, lr, limit=.1): return clip_each(p, grad, state, lr=lr)
def tells_nobody(p, grad, state, *, lr, limit=.1): clip_each(p, grad, state, lr=lr, limit=limit)
def in_place(p, grad, state, *, lr, limit=.1): return grad.copy_(clip_each(p, grad, state, lr=lr, limit=limit))
def also_steps(p, grad, state, *, lr, limit=.1):
    p -= lr * clip_each(p, grad, state, lr=lr, limit=limit)
    return clip_each(p, grad, state, lr=lr, limit=limit)


def lengths_of(grad, lr, keepdim=True):
    return torch.linalg.vector_norm(grad, dim=tuple(range(int(isinstance(lr, torch.Tensor)), grad.ndim)), keepdim=keepdim)


def lost_axes(p, grad, state, *, lr, limit=.1): return grad * (limit / lengths_of(grad, lr, keepdim=False)).clamp(max=1)
def always_as_long(p, grad, state, *, lr, limit=.1): return grad * limit / lengths_of(grad, lr).clamp(min=1e-12)
def nothing_by_nothing(p, grad, state, *, lr, limit=.1): return grad / lengths_of(grad, lr) * lengths_of(grad, lr).clamp(max=limit)


CLIP_EACH = Exercise(
    "09", clip_each, '''
def clip_each(p, grad, state, *, lr, limit=.1):
    "The gradient, at most `limit` long for each network."
    return grad                                  # replace this
''',
    hints=("How can the stepper tell a sweep from a single network? And which axis of grad must the length leave out?",
           "In a sweep lr is a tensor [N, 1, …] and the networks lie along the first axis: the length is over all the others. For a "
           "single network lr is a number, and the length is over all axes.",
           "torch.linalg.vector_norm(grad, dim=axes, keepdim=True), with axes = tuple(range(1, p.ndim)) in a sweep."),
    mistakes={
        "You take one length over all networks, so each one's step depends on its neighbours. Leave out the first axis.": mixes,
        "With a single network there is no axis to leave out: lr is a number then, and all axes count.": for_many_only,
        "That is the length of each row. A network's gradient is all of its rows together.": row_by_row,
        "You limit each entry. What is to be limited is the length of all of them.": entry_by_entry,
        "The lengths [N] do not line up with the gradient [N, …]: keepdim=True keeps the axes that are summed over.": lost_axes,
        "You make every gradient as long as the limit. Those that are shorter have to stay as they are.": always_as_long,
        "A gradient of zero has the length 0, and 0 / 0 is NaN. Work out the factor first, and let it be 1 at most.": nothing_by_nothing,
        "You clip at 0.1, whatever limit is.": clips_at_a_tenth,
        "Your stepper keeps the clipped gradient to itself: return it, so that the next one gets it.": tells_nobody,
        "You change p.grad itself, which other code may still want to see. Return a new tensor.": in_place,
        "This stepper is not to move the weight; the next one does that.": also_steps},
    cases=gradients, run=watch_clip, truth=torchs_clip,
    why="A length is a sum over axes, and the sum must not go over the networks. So in a sweep the first axis is left out, and kept as an "
        "axis, so that each network's factor meets its own gradient. The factor is 1 at most, even where the length is 0.")


# 2. Stop early

def good_enough(target):
    "An on_step that stops at the first loss below the target, and a list that will hold its step."
    seen = []

    def on_step(step, loss):
        if (loss[..., step] < target).any(): seen.append(step)
        return bool(seen)
    return on_step, seen


def falling(rng):
    "Losses of a few networks, the first neither the slowest nor the fastest; one blows up in the second case; in the last none gets below the target."
    found = []
    for shape in ((4,), (2, 3), (5,)):
        n = math.prod(shape)
        rates = torch.tensor([.065, *rng.sample([.045, *torch.linspace(.08, .12, n - 2).tolist()], n - 1)])
        losses = 2.3 * (-rates[:, None] * torch.arange(45)).exp() + .005 * random_tensor(rng, n, 45).float()
        if len(found) == 1: losses[rng.randrange(n), 2:] = math.nan
        lowest = losses.nan_to_num(math.inf)
        target = lowest[:, :rng.randint(9, 15)].min().item() + 1e-4 if len(found) < 2 else lowest.min().item() - .1
        found.append({"target": target, "_losses": losses.view(*shape, 45)})
    return found


def watch_stop(answer, target, _losses):
    "A sweep in which all is known beforehand: the losses come step by step."
    on_step, seen = answer(target)
    earlier, loss = len(seen), torch.full_like(_losses, math.nan)
    for step in range(loss.shape[-1]):
        loss[..., step] = _losses[..., step]
        if on_step(step, loss): break
    else: step = None
    return {"a new list for each call": answer(target)[1] is not seen, "the list": list(seen)[earlier:],
            "the step after which it stops": "never" if step is None else step}


def first_below(target, _losses):
    "Step by step, network by network."
    for step, now in enumerate(_losses.flatten(0, -2).T.tolist()):
        for loss in now:
            if loss < target: return {"a new list for each call": True, "the list": [step], "the step after which it stops": step}
    return {"a new list for each call": True, "the list": [], "the step after which it stops": "never"}


def stops_when(below, note=lambda seen, step: seen.append(step), stop=bool, everyones=None):
    "A way to look at the losses, to note and to stop."
    def good_enough(target):
        seen = [] if everyones is None else everyones

        def on_step(step, loss):
            reached = bool(below(loss, step, target))
            if reached: note(seen, step)
            return stop(reached)
        return on_step, seen
    return good_enough


any_below = lambda loss, step, target: (loss[..., step] < target).any()

GOOD_ENOUGH = Exercise(
    "09", good_enough, '''
def good_enough(target):
    "An on_step that stops at the first loss below the target, and a list that will hold its step."
    return (lambda step, loss: False), []        # replace this
''',
    hints=("What does on_step get, and what does sweep do with what it returns? Where does it keep what it has seen?",
           "loss[..., step] are this step's losses of all networks. A comparison with NaN is false, and any() asks whether there is one.",
           "seen = [], and inside of good_enough a function on_step(step, loss) that appends to it."),
    mistakes={
        "You wait for all networks. One is enough, and one that has blown up never gets there.":
            stops_when(lambda loss, step, target: (loss[..., step] < target).all()),
        "You look at the mean. One good network is enough, and a single NaN makes the mean NaN.":
            stops_when(lambda loss, step, target: loss[..., step].mean() < target),
        "The lowest of losses with a NaN among them is NaN, and never below the target. Compare first, then ask any().":
            stops_when(lambda loss, step, target: loss.min() < target),
        "The steps lie along the last axis: loss[..., step].": stops_when(lambda loss, step, target: (loss[step] < target).any()),
        "You look at the first network only.":
            stops_when(lambda loss, step, target: loss.flatten(0, -2)[0, step] < target),
        "You note the step, but the sweep goes on: on_step has to return True to stop it.": stops_when(any_below, stop=lambda reached: False),
        "It stops, but the list stays empty. Note the step before you return.": stops_when(any_below, note=lambda seen, step: None),
        "You note one step too many: the first one is 0.": stops_when(any_below, note=lambda seen, step: seen.append(step + 1)),
        "That is the first loss above the target.": stops_when(lambda loss, step, target: (loss[..., step] > target).any()),
        "You note the loss. Wanted is the step.": lambda target: (
            lambda seen: (lambda step, loss: bool(any_below(loss, step, target) and not seen.append(loss[..., step].nan_to_num(9).min().item())),
                          seen))([]),
        "The list still holds steps of an earlier call. Make a new one inside of good_enough.":
            stops_when(any_below, everyones=[])},
    cases=falling, run=watch_stop, truth=first_below, tolerance=0.,
    why="on_step is a closure: it keeps the target and the list of the call that made it. Comparing first and asking any() afterwards "
        "makes NaN harmless.")


# 3. An optimizer of your own

def sign_sweep(model, loss_func, dl, n_steps, rates):
    "A `Sweep` of sign descent at these rates."
    def step_by_sign(p, grad, state, *, lr): add_scaled(p, grad.sign(), -lr)
    return sweep(model, loss_func, lambda params: Optimizer(params, [step_by_sign], lr=min(rates)), dl, n_steps, {"lr": rates})


def small_models(rng, rates):
    "A small model in double precision, and batches."
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    for p in model.parameters(): p.data.copy_(.7 * random_tensor(rng, *p.shape))
    return {"_model": model, "_batches": [(random_tensor(rng, 8, 4), random_tensor(rng, 8, 2)) for _ in range(rng.randint(3, 5))],
            "rates": rates}


def sweeps(rng):
    return [{**small_models(rng, [rng.uniform(.001, .01), rng.uniform(.02, .05), rng.uniform(.06, .2)]), "n_steps": n}
            for n in rng.sample(range(4, 9), 2)]


def watch_sweep(answer, _model, _batches, rates, n_steps):
    result = answer(_model, F.mse_loss, _batches, n_steps, rates)
    return {"the tensor .loss": result.loss.detach().double(), "the names": list(result.names),
            **{f"{name} of network {i}": p.detach().clone() for i in range(len(rates)) for name, p in result.params(i).items()}}


def one_by_one(_model, _batches, rates, n_steps):
    "A network after the other, with torch.where in the place of sign."
    losses, weights = torch.zeros(len(rates), n_steps, dtype=torch.float64), {}
    for i, lr in enumerate(rates):
        model = copy.deepcopy(_model)
        for step in range(n_steps):
            xb, yb = _batches[step % len(_batches)]
            loss = F.mse_loss(model(xb), yb)
            losses[i, step] = loss.item()
            for p, grad in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters()))):
                p.data += torch.where(grad > 0, -lr, torch.where(grad < 0, lr, 0.))
        weights |= {f"{name} of network {i}": p.detach() for name, p in model.named_parameters()}
    return {"the tensor .loss": losses, "the names": ["lr"], **weights}


def swept(stepper, steps=lambda n: n, name="lr"):
    def sign_sweep(model, loss_func, dl, n_steps, rates):
        return sweep(model, loss_func, lambda params: Optimizer(params, [stepper], lr=min(rates)), dl, steps(n_steps), {name: rates})
    return sign_sweep


def uphill(p, grad, state, *, lr): add_scaled(p, grad.sign(), lr)
def plain(p, grad, state, *, lr): add_scaled(p, grad, -lr)
def of_the_weight(p, grad, state, *, lr): add_scaled(p, p.sign(), -lr)
def unit_length(p, grad, state, *, lr): add_scaled(p, grad / grad.norm(), -lr)
def signed(p, grad, state, *, lr): add_scaled(p, grad.sign(), -lr)
def a_new_tensor(p, grad, state, *, lr): p = p - lr * grad.sign()


def rate_from_outside(model, loss_func, dl, n_steps, rates):
    def stepper(p, grad, state, *, lr): add_scaled(p, grad.sign(), -min(rates))
    return swept(stepper)(model, loss_func, dl, n_steps, rates)


SIGN_SWEEP = Exercise(
    "09", sign_sweep, '''
def sign_sweep(model, loss_func, dl, n_steps, rates):
    "A `Sweep` of sign descent at these rates."
                                                 # your lines
''',
    hints=("Which two things does sweep need that are not among the arguments?",
           "A stepper, and a function that makes an optimizer from parameters: Optimizer(params, [stepper], lr=…). The grid is "
           "{\"lr\": rates}.",
           "The stepper is one line, with p -= …: lr is a tensor that broadcasts against p already."),
    mistakes={
        "Your weights walk uphill: against the sign of the gradient, please.": swept(uphill),
        "That is plain gradient descent. Here only the sign of the gradient counts.": swept(plain),
        "You took the sign of the weight. The gradient's is wanted.": swept(of_the_weight),
        "You divide by a length over the whole tensor, which mixes the networks. Take the sign of each entry.": swept(unit_length),
        "p = p − … makes a new tensor, which the model never sees. Change p in place.": swept(a_new_tensor),
        "All networks train at the same rate. Your stepper gets its network's own as lr.": rate_from_outside,
        "Train for n_steps, whatever the number of batches: sweep begins them again.":
            lambda model, loss_func, dl, n_steps, rates: sign_sweep(model, loss_func, dl, len(dl), rates),
        "Train for n_steps, not for 50.": swept(signed, lambda n: 50),
        "You return the losses. Wanted is the whole Sweep, which can be asked for more.":
            lambda model, loss_func, dl, n_steps, rates: sign_sweep(model, loss_func, dl, n_steps, rates).loss},
    cases=sweeps, run=watch_sweep, truth=one_by_one,
    why="sign takes each weight by itself, so it does not matter how many networks there are, and add_scaled takes a rate for each (it is in "
        "course_lib.support.optimizer). The lr with which the optimizer is made only holds until the sweep puts its own in its place.")


# 4. A sweep from a blank page

def my_sweep(model, loss_func, batches, rates):
    "The losses [N, steps] of N networks that train at once, by plain SGD, each at its own rate."
    params = {name: p.detach().expand(len(rates), *p.shape).clone().requires_grad_() for name, p in model.named_parameters()}

    def loss_of_one(params, xb, yb): return loss_func(functional_call(model, params, (xb,)), yb)
    losses_of, losses = torch.vmap(loss_of_one, in_dims=(0, None, None)), []
    for xb, yb in batches:
        loss = losses_of(params, xb, yb)
        grads = torch.autograd.grad(loss.sum(), list(params.values()))
        with torch.no_grad():
            for p, grad in zip(params.values(), grads): p -= rates.view(-1, *[1] * (p.ndim - 1)) * grad
        losses.append(loss.detach())
    return torch.stack(losses, 1)


def watch_own(answer, _model, _batches, rates):
    "The losses, who made them, and how often the model was called."
    calls = []
    _model.register_forward_hook(lambda *_: calls.append(1))
    with calls_of(["course_lib.sweeps.Ensemble.step"]) as called: losses = answer(_model, F.mse_loss, _batches, rates)
    return {"the tensor of losses": losses.detach().clone() if isinstance(losses, torch.Tensor) else losses,
            "more calls of the model than batches": len(calls) > len(_batches), "Ensemble did the work": bool(called),
            **{f"the model's own {name} afterwards": p.detach().clone() for name, p in _model.named_parameters()}}


def torchs_own(_model, _batches, rates):
    "torch's SGD, a network after the other."
    rows = []
    for lr in rates.tolist():
        model = copy.deepcopy(_model)
        opt, losses = torch.optim.SGD(model.parameters(), lr=lr), []
        for xb, yb in _batches:
            opt.zero_grad()
            loss = F.mse_loss(model(xb), yb)
            loss.backward()
            opt.step()
            losses.append(loss.item())
        rows.append(losses)
    return {"the tensor of losses": torch.tensor(rows, dtype=torch.float64), "more calls of the model than batches": False,
            "Ensemble did the work": False, **{f"the model's own {name} afterwards": p.detach() for name, p in _model.named_parameters()}}


def stacked_sweep(stack=lambda p, n: p.detach().expand(n, *p.shape).clone(), whole=torch.sum, wipe=True,
                  spread=lambda rates, p: rates.view(-1, *[1] * (p.ndim - 1)), result=lambda losses: torch.stack(losses, 1), move=True):
    "A sweep with one thing amiss."
    def my_sweep(model, loss_func, batches, rates):
        params, losses = {name: stack(p, len(rates)).requires_grad_() for name, p in model.named_parameters()}, []
        losses_of = torch.vmap(lambda params, xb, yb: loss_func(functional_call(model, params, (xb,)), yb), in_dims=(0, None, None))
        for xb, yb in batches:
            loss = losses_of(params, xb, yb)
            whole(loss).backward()
            with torch.no_grad():
                for p in params.values():
                    if move: p -= spread(rates, p) * p.grad
                    if wipe: p.grad = None
            losses.append(loss.detach())
        return result(losses)
    return my_sweep


def in_a_loop(model, loss_func, batches, rates):
    rows = []
    for lr in rates:
        one, losses = copy.deepcopy(model), []
        for xb, yb in batches:
            loss = loss_func(one(xb), yb)
            for p, grad in zip(one.parameters(), torch.autograd.grad(loss, list(one.parameters()))): p.data -= lr * grad
            losses.append(loss.detach())
        rows.append(torch.stack(losses))
    return torch.stack(rows)


def by_sweep(model, loss_func, batches, rates):
    return swept(plain)(model, loss_func, batches, len(batches), rates.tolist()).loss


def own_cases(rng):
    return [small_models(rng, torch.tensor([rng.uniform(.05, .3) for _ in range(n)], dtype=torch.float64)) for n in (3, 5)]


MY_SWEEP = Exercise(
    "09", my_sweep, '''
def my_sweep(model, loss_func, batches, rates):
    "The losses [N, steps] of N networks that train at once, by plain SGD, each at its own rate."
    return torch.zeros(len(rates), len(batches))  # replace this
''',
    hints=("What gets a leading axis, and what is the same for all networks? Whose gradient is that of the sum of the losses?",
           "Parameters [N, …], clones of the model's; torch.vmap over functional_call(model, params, (xb,)) gives the losses [N]. "
           "Rates [N] need a view [N, 1, …] with as many axes as the parameter.",
           "params = {name: p.detach().expand(len(rates), *p.shape).clone().requires_grad_() for name, p in model.named_parameters()}"),
    mistakes={
        "You train one network after the other. All of them at once: the model may be called once for each batch.": in_a_loop,
        "course_lib's sweep did the work. This exercise asks you to do it yourself.": by_sweep,
        "Rates [N] do not line up with weights [N, …]: append axes of length 1, with view.": stacked_sweep(spread=lambda rates, p: rates),
        "The mean of the losses has gradients N times too small: take the sum, and each network gets its own gradient.":
            stacked_sweep(whole=torch.mean),
        "The gradients are not wiped, so the slopes of earlier batches add up.": stacked_sweep(wipe=False),
        "expand makes N views of the same memory, which cannot be changed one by one. Clone it.":
            stacked_sweep(stack=lambda p, n: p.detach().expand(n, *p.shape)),
        "All networks train at the first rate. Each has its own.": stacked_sweep(spread=lambda rates, p: rates[0]),
        "Your networks walk uphill: subtract the gradient.": stacked_sweep(spread=lambda rates, p: -rates.view(-1, *[1] * (p.ndim - 1))),
        "Your networks never move, so each sees the same losses.": stacked_sweep(move=False),
        "The axes are exchanged: a row for each network, a column for each step.": stacked_sweep(result=torch.stack),
        "That is the last loss of each network. Wanted are those of all steps.": stacked_sweep(result=lambda losses: losses[-1])},
    cases=own_cases, run=watch_own, truth=torchs_own,
    why="The leading axis is all there is to it: N clones of the weights, a loss for each by vmap, one backward pass through their sum, and "
        "rates with as many axes as the weights. What Ensemble has beyond this are other steppers, buffers, and the wide product.")

EXERCISES = [CLIP_EACH, GOOD_ENOUGH, SIGN_SWEEP, MY_SWEEP]
