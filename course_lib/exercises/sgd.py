"""The exercises of chapter 02."""
import math
from collections import defaultdict

import torch
from torch import nn

from ..sgd import hyperparameters
from ..support.optimizer import add_scaled
from .core import Exercise, random_tensor


# 1. How long is the way?

def steps_needed(a, b, share):
    "The first step at which at most `share` of the distance is left, at the best rate."
    return math.ceil(math.log(share) / math.log((b - a) / (b + a)))


def walked(a, b, share):
    "The way, step by step."
    left, lr, n = 1., 2 / (a + b), 0
    while left > share: left, n = left * abs(1 - lr * a), n + 1
    return {"the number of steps": n}


def canyons(rng):
    return [{"a": a, "b": a * rng.uniform(2, 80), "share": rng.uniform(.001, .3)}
            for a in (rng.uniform(.2, 3) for _ in range(6))]


by_logs = lambda factor, rounded=math.ceil: lambda a, b, share: rounded(math.log(share) / math.log(factor(a, b)))
best = lambda a, b: (b - a) / (b + a)

STEPS_NEEDED = Exercise(
    "02", steps_needed, '''
def steps_needed(a, b, share):
    "The first step at which at most `share` of the distance is left, at the best rate."
    return 0                                     # replace this
''',
    hints=("By which factor does one step at the best rate multiply the distance, in either direction?",
           "By (b − a) / (b + a). After n steps its n-th power is left. Which n is the first for which that is at most share?",
           "Logarithms turn powers into products: n · log((b − a) / (b + a)) ≤ log(share), and both logarithms are negative."),
    mistakes={
        "You rounded down. After so many steps more than share is still left: which whole number is the first that is enough?":
            by_logs(best, math.floor),
        "Half a step cannot be taken. Round up to a whole number.": by_logs(best, float),
        "Nearest is not enough: where you round down, more than share is still left.": by_logs(best, round),
        "That is the factor at the rate 1 / b. The best rate is 2 / (a + b), and there it is (b − a) / (b + a).":
            by_logs(lambda a, b: 1 - a / b),
        "a / b is no factor of a step. At the best rate a step multiplies the distance by (b − a) / (b + a).":
            by_logs(lambda a, b: a / b),
        "One too many: the step at which it is reached counts, and no more.": lambda a, b, share: steps_needed(a, b, share) + 1},
    cases=canyons, run=lambda answer, a, b, share: {"the number of steps": answer(a, b, share)}, truth=walked,
    why="At the best rate both directions shrink by (b − a) / (b + a) a step. The n-th power of that is at most share as soon as "
        "n ≥ log(share) / log((b − a) / (b + a)). Both logarithms are negative, so their quotient is positive.",
    tolerance=0.)


# 2. A stepper of your own

def watch_stepper(answer, _start, _grads, **hypers):
    "What two calls of a stepper do to a parameter and its gradient, and what they return."
    p, state, found = nn.Parameter(_start.clone()), {}, {}
    with torch.no_grad():
        for i, grad in enumerate(_grads, 1):
            p.grad = grad.clone()
            returned = answer(p, p.grad, state, **hypers)
            found |= {f"the weight after call {i}": p.detach().clone(), f"p.grad after call {i}": p.grad.clone(),
                      f"what call {i} returns": returned.clone() if isinstance(returned, torch.Tensor) else returned}
    return found


def slopes(rng, **hypers):
    "Cases for steppers: a weight, two gradients with a zero among them, and hyperparameters drawn by name -> (low, high)."
    found = []
    for shape in ((4,), (3, 2), ()):
        grads = [3 * random_tensor(rng, *shape) for _ in range(2)]
        if shape: grads[0].view(-1)[0] = 0.
        found.append({"_start": random_tensor(rng, *shape), "_grads": grads,
                      **{name: rng.uniform(*limits) for name, limits in hypers.items()}})
    return found


def sign_step(p, grad, state, *, lr):
    "Each weight moves by lr against the sign of its gradient."
    add_scaled(p, grad.sign(), -lr)


def signs_by_hand(_start, _grads, lr):
    "torch.where in the place of sign."
    found, w = {}, _start
    for i, g in enumerate(_grads, 1):
        w = w - torch.where(g > 0, lr, torch.where(g < 0, -lr, 0.))
        found |= {f"the weight after call {i}": w, f"p.grad after call {i}": g, f"what call {i} returns": None}
    return found


def uphill(p, grad, state, *, lr): p += lr * grad.sign()
def plain_step(p, grad, state, *, lr): p -= lr * grad
def of_the_weight(p, grad, state, *, lr): p -= lr * p.sign()
def unit_length(p, grad, state, *, lr): p -= lr * grad / grad.norm().clamp(min=1e-12)
def spoils_the_gradient(p, grad, state, *, lr): p -= lr * grad.sign_()
def a_new_tensor(p, grad, state, *, lr): p = p - lr * grad.sign()
def ignores_lr(p, grad, state, *, lr): p -= grad.sign()
def nothing_at_zero(p, grad, state, *, lr): p -= lr * torch.where(grad >= 0, 1., -1.)


SIGN_STEP = Exercise(
    "02", sign_step, '''
def sign_step(p, grad, state, *, lr):
    "Each weight moves by lr against the sign of its gradient."
                                                 # your line
''',
    hints=("How far does each weight move? And in which direction?",
           "torch.sign(grad) is +1, −1, or 0 where the gradient is 0.",
           "add_scaled(p, …, -lr), or p -= …: the step has to change p in place."),
    mistakes={
        "Your weights walk uphill: against the sign of the gradient, please.": uphill,
        "That is plain gradient descent. Here the size of the gradient must not matter, only its sign.": plain_step,
        "You took the sign of the weight. The gradient's is wanted.": of_the_weight,
        "You divide by the length of the whole gradient, so each weight still moves in proportion to its slope. Take the sign "
        "of each entry.": unit_length,
        "Your step writes the signs into p.grad itself. Others may still want to see the gradient: use sign, not sign_.":
            spoils_the_gradient,
        "p = p − … makes a new tensor, which the model never sees. Change p in place.": a_new_tensor,
        "Your weights move by 1, whatever lr is.": ignores_lr,
        "Where the gradient is 0 the weight must stay where it is.": nothing_at_zero},
    cases=lambda rng: slopes(rng, lr=(.01, .7)), run=watch_stepper, truth=signs_by_hand,
    why="sign throws away how steep the slope is, so every weight moves by lr. That is also why it never comes to rest: near the "
        "lowest point it hops to and fro by lr (Bernstein et al., 2018).")


# 3. Clip

def clip_step(p, grad, state, *, limit=1.):
    "Passes on the gradient, entries limited to ±limit."
    return grad.clamp(-limit, limit)


def clipped_by_hand(_start, _grads, **hypers):
    limit, found = hypers.get("limit", 1.), {}
    for i, g in enumerate(_grads, 1):
        found |= {f"the weight after call {i}": _start, f"p.grad after call {i}": g, f"what call {i} returns":
                  torch.minimum(torch.maximum(g, torch.full_like(g, -limit)), torch.full_like(g, limit))}
    return found


def clips_in_place(p, grad, state, *, limit=1.): return grad.clamp_(-limit, limit)
def clips_and_tells_nobody(p, grad, state, *, limit=1.): grad.clamp(-limit, limit)
def clips_above(p, grad, state, *, limit=1.): return grad.clamp(max=limit)
def clips_the_length(p, grad, state, *, limit=1.): return grad * (limit / grad.norm().clamp(min=limit))
def clips_at_one(p, grad, state, *, limit=1.): return grad.clamp(-1, 1)
def scales(p, grad, state, *, limit=1.): return grad * limit
def also_steps(p, grad, state, *, limit=1.):
    p -= grad.clamp(-limit, limit)
    return grad.clamp(-limit, limit)


CLIP_STEP = Exercise(
    "02", clip_step, '''
def clip_step(p, grad, state, *, limit=1.):
    "Passes on the gradient, entries limited to ±limit."
    return grad                                  # replace this
''',
    hints=("How does a stepper hand a gradient to the one after it?",
           "What it returns is what the next one gets as grad. Return a new tensor, whose entries lie between −limit and limit.",
           "grad.clamp(low, high) makes a new tensor; clamp_ would change p.grad itself."),
    mistakes={
        "clamp_ changes p.grad itself, which other code may still want to see. Make a new tensor.": clips_in_place,
        "Your stepper works out a clipped gradient and keeps it to itself: return it, so that the next one gets it.":
            clips_and_tells_nobody,
        "Large negative entries slip through. Limit from below as well.": clips_above,
        "You limit the length of the whole gradient, which shrinks all entries. Each entry by itself is to be limited.":
            clips_the_length,
        "You clip at 1, whatever limit is.": clips_at_one,
        "That makes every entry smaller or larger. Entries within the limit are to stay as they are.": scales,
        "This stepper is not to move the weight; the next one does that.": also_steps},
    cases=lambda rng: [*slopes(rng, limit=(.2, .8)), *slopes(rng)], run=watch_stepper, truth=clipped_by_hand,
    why="A stepper that changes nothing and returns a gradient is a filter: put it before any other. The gradient in p.grad stays as "
        "backward left it.")


# 4. An optimizer from a blank page

class MyOptimizer:
    def __init__(self, params, steppers, **hypers):
        self.params, self.state = list(params), defaultdict(dict)
        self.steppers = [(stepper, {name: hypers[name] for name in hyperparameters(stepper) if name in hypers})
                         for stepper in steppers]

    @torch.no_grad()
    def step(self):
        for p in self.params:
            grad = p.grad
            if grad is None: continue
            for stepper, chosen in self.steppers:
                returned = stepper(p, grad, self.state[p], **chosen)
                if returned is not None: grad = returned

    def zero_grad(self):
        for p in self.params: p.grad = None


def heavy(p, grad, state, *, beta=.9):
    "A momentum of the course's own: it remembers, and returns what is to be stepped along."
    state["sum"] = beta * state["sum"] + grad if "sum" in state else grad.clone()
    return state["sum"]


def go(p, grad, state, *, lr): p -= lr * grad


def run_optimizer(answer, _starts, _targets, lr, beta):
    "Three steps on a sum of squares, with two weights that take part and one that does not."
    ps = [nn.Parameter(start.clone()) for start in _starts]
    idle = nn.Parameter(torch.ones(2))
    calls, found = [], {}

    def count(p, grad, state):
        state["calls"] = state.get("calls", 0) + 1
        calls.append(state["calls"])
    opt = answer((p for p in [*ps, idle]), [count, heavy, go], lr=lr, beta=beta)
    for i in range(1, 4):
        sum(((p - target) ** 2).sum() for p, target in zip(ps, _targets)).backward()
        opt.step()
        found |= {f"weight {j} after step {i}": p.detach().clone() for j, p in enumerate(ps)}
        opt.zero_grad()
        found[f"all gradients wiped after step {i}"] = all(p.grad is None or not p.grad.any() for p in ps)
    return found | {"the weight without a gradient": idle.detach().clone(), "the calls that each state remembers": calls}


def torchs_optimizer(_starts, _targets, lr, beta):
    found = run_optimizer(lambda params, steppers, lr, beta: torch.optim.SGD(params, lr=lr, momentum=beta),
                          _starts, _targets, lr, beta)
    return found | {"the calls that each state remembers": [1, 1, 2, 2, 3, 3]}


def variant(**changes): return type("MyOptimizer", (MyOptimizer,), changes)


@torch.no_grad()
def step_with(self, state=None, hand_on=True, skip=True, hypers=None):
    for p in self.params:
        grad = p.grad
        if grad is None and skip: continue
        for stepper, chosen in self.steppers:
            returned = stepper(p, grad, self.state[p] if state is None else state(self), **(hypers or chosen))
            if returned is not None and hand_on: grad = returned


def init_with_iterator(self, params, steppers, **hypers):
    MyOptimizer.__init__(self, [], steppers, **hypers)
    self.params = params


def init_without_hypers(self, params, steppers, **hypers): MyOptimizer.__init__(self, params, steppers, lr=hypers["lr"])


def init_with_all(self, params, steppers, **hypers):
    MyOptimizer.__init__(self, params, steppers)
    self.steppers = [(stepper, hypers) for stepper in steppers]


MY_OPTIMIZER = Exercise(
    "02", MyOptimizer, '''
class MyOptimizer:
    def __init__(self, params, steppers, **hypers): ...
    def step(self): ...                          # replace these
    def zero_grad(self): ...
''',
    hints=("What does step go through, and what does it hand to each stepper? Where does a stepper keep what it remembers?",
           "For each parameter that has a gradient: a dict of its own, and the steppers in order. What one returns (if anything) is "
           "the grad of the next. hyperparameters(stepper) names those of the hypers that it takes.",
           "self.params, self.state = list(params), defaultdict(dict); and @torch.no_grad() above step."),
    mistakes={
        "model.parameters() can be gone through only once. Keep a list, or your second step finds nothing to do.":
            variant(__init__=init_with_iterator),
        "A step must not become part of the model: put @torch.no_grad() above step.": variant(step=step_with.__wrapped__),
        "All your parameters share one state, so they mix their memories. Each parameter needs a dict of its own.":
            variant(step=lambda self: step_with(self, state=lambda self: self.state["all"])),
        "Your steppers forget everything after each step. Make the state once, in __init__.":
            variant(step=lambda self: step_with(self, state=lambda self: {})),
        "What a stepper returns is lost. It is to be the grad of the next one.": variant(step=lambda self: step_with(self, hand_on=False)),
        "A parameter without a gradient has to be skipped.": variant(step=lambda self: step_with(self, skip=False)),
        "You pass every hyperparameter to every stepper, and one that does not know it complains. hyperparameters(stepper) says "
        "which it takes.": variant(__init__=init_with_all),
        "Only lr reaches the steppers: beta was given too.": variant(__init__=init_without_hypers),
        "The gradients are not wiped, so the slopes of earlier batches add up.": variant(zero_grad=lambda self: None)},
    cases=lambda rng: [{"_starts": [random_tensor(rng, 3), random_tensor(rng, 2, 2)],
                        "_targets": [random_tensor(rng, 3), random_tensor(rng, 2, 2)],
                        "lr": rng.uniform(.02, .1), "beta": rng.uniform(.3, .8)} for _ in range(2)],
    run=run_optimizer, truth=torchs_optimizer, instead=("torch.optim.SGD.step",),
    why="A list of the parameters, a dict for each, and the steppers in order: that is an optimizer. All that later chapters add are "
        "steppers.")

EXERCISES = [STEPS_NEEDED, SIGN_STEP, CLIP_STEP, MY_OPTIMIZER]
