"""The exercises of chapter 03."""
import copy
import math

import torch
from torch import nn

from ..momentum import average_grad_dampened, momentum_step
from .core import Exercise, random_tensor


def watch(step, _starts, _grads, _rates, keeps=()):
    """What calls of a stepper do to two parameters, their gradients and what their states keep under these names.

    step: `(p, grad, state, lr)`. The memory of a gradient is used again for the next one, as PyTorch may do.
    """
    ps, states, found = [nn.Parameter(start.clone()) for start in _starts], [{} for _ in _starts], {}
    for p in ps: p.grad = torch.zeros_like(p)
    with torch.no_grad():
        for i, (grads, lr) in enumerate(zip(_grads, _rates), 1):
            for j, (p, grad, state) in enumerate(zip(ps, grads, states)):
                step(p, p.grad.copy_(grad), state, lr)
                found |= {f"weight {j} after call {i}": p.detach().clone(),
                          f"the gradient of weight {j} after call {i}": p.grad.clone()}
                found |= {f"state[{name!r}] of weight {j} after call {i}": copy.deepcopy(state.get(name)) for name in keeps}
    return found


def torchs_path(opt_func, _starts, _grads, _rates, **keeps):
    "What a torch optimizer does with the same gradients; keeps: our name of something in the state -> torch's."
    ps, found = [nn.Parameter(start.clone()) for start in _starts], {}
    opt = opt_func(ps)
    for i, (grads, lr) in enumerate(zip(_grads, _rates), 1):
        for p, grad in zip(ps, grads): p.grad = grad.clone()
        opt.param_groups[0]["lr"] = lr
        opt.step()
        for j, p in enumerate(ps):
            found |= {f"weight {j} after call {i}": p.detach().clone(), f"the gradient of weight {j} after call {i}": p.grad}
            found |= {f"state[{ours!r}] of weight {j} after call {i}": opt.state[p][theirs].clone()
                      for ours, theirs in keeps.items()}
    return found


def ways(rng, n=4, shapes=((3, 2), ()), **hypers):
    "A case: two weights, n gradients for each with a zero among them, a rate that changes, hyperparameters by name -> (low, high)."
    grads = [[2 * random_tensor(rng, *shape) for shape in shapes] for _ in range(n)]
    grads[0][0].view(-1)[0] = 0.
    first, last = rng.uniform(.05, .2), rng.uniform(.3, .6)
    return {"_starts": [random_tensor(rng, *shape) for shape in shapes], "_grads": grads,
            "_rates": [first] * (n - 1) + [last], **{name: rng.uniform(*limits) for name, limits in hypers.items()}}


# 1. The beta for a given noise

def beta_for(share):
    "The beta whose average has this share of one point's noise."
    return (1 - share ** 2) / (1 + share ** 2)


def noise_of(beta):
    "The share of the noise that is left: the root of the sum of the squares of all weights, one by one."
    total, weight = 0., 1 - beta
    while weight > 1e-9: total, weight = total + weight ** 2, weight * beta
    return math.sqrt(total)


def beta_by_halving(share):
    low, high = 0., .9999
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if noise_of(middle) > share else (low, middle)
    return {"beta": low}


BETA_FOR = Exercise(
    "03", beta_for, '''
def beta_for(share):
    "The beta whose average has this share of one point's noise."
    return 0.                                    # replace this
''',
    hints=("Which closed form of this chapter says how much noise an average has left?",
           "Solve √((1 − β) / (1 + β)) = share for β. Begin by squaring both sides.",
           "1 − β = share² · (1 + β): bring all that has a β in it to one side."),
    mistakes={
        "Did you forget to square? (1 − β) / (1 + β) is the share of the variance; the noise is its root.":
            lambda share: (1 - share) / (1 + share),
        "Upside down: that gives a negative beta. Less noise takes more memory, so a beta nearer to 1.":
            lambda share: (share ** 2 - 1) / (share ** 2 + 1),
        "That is a plain average of 1 / (1 − β) points. The old points of a fading one count too, so its noise is "
        "√((1 − β) / (1 + β)).": lambda share: 1 - share ** 2,
        "1 − share is the beta at which a new point counts so much. The noise of all points together is wanted.":
            lambda share: 1 - share,
        "That is the beta for a given lag. The noise is √((1 − β) / (1 + β)).": lambda share: share / (1 + share),
        "Your formula gives the noise for a beta. The beta for a noise is asked: solve it for β.":
            lambda share: math.sqrt((1 - share) / (1 + share))},
    cases=lambda rng: [{"share": rng.uniform(low, high)} for low, high in ((.08, .2), (.2, .4), (.4, .6), (.6, .9))],
    run=lambda answer, share: {"beta": answer(share)}, truth=beta_by_halving,
    why="Squared, √((1 − β) / (1 + β)) = share reads 1 − β = share² (1 + β), so 1 − share² = β (1 + share²). A quarter of the noise "
        "takes beta 0.88, a tenth 0.98.")


# 2. Momentum from a blank page

def my_momentum(p, grad, state, *, lr, beta=.9):
    "Heavy ball: steps p along the velocity that state keeps."
    state["velocity"] = beta * state.get("velocity", 0.) + grad
    p -= lr * state["velocity"]


def sum_from(p, grad, state, beta=.9, news=1.):
    "A fading sum, with this share of the news."
    state["sum"] = beta * state.get("sum", 0.) + news * grad
    return state["sum"]


def dampened(p, grad, state, *, lr, beta=.9): p -= lr * sum_from(p, grad, state, beta, 1 - beta)
def forgetful(p, grad, state, *, lr, beta=.9): p -= lr * grad
def frictionless(p, grad, state, *, lr, beta=.9): p -= lr * sum_from(p, grad, state, 1.)
def always_nine_tenths(p, grad, state, *, lr, beta=.9): p -= lr * sum_from(p, grad, state)
def ball_uphill(p, grad, state, *, lr, beta=.9): p += lr * sum_from(p, grad, state, beta)
def nesterovs(p, grad, state, *, lr, beta=.9): p -= lr * (grad + beta * sum_from(p, grad, state, beta))
def a_copy_rolls(p, grad, state, *, lr, beta=.9): p = p - lr * sum_from(p, grad, state, beta)


def rate_inside(p, grad, state, *, lr, beta=.9):
    state["step"] = beta * state.get("step", 0.) + lr * grad
    p -= state["step"]


def steps_first(p, grad, state, *, lr, beta=.9):
    p -= lr * state.get("sum", 0.)
    sum_from(p, grad, state, beta)


def keeps_the_gradient(p, grad, state, *, lr, beta=.9):
    if "sum" in state: state["sum"].mul_(beta).add_(grad)
    else: state["sum"] = grad
    p -= lr * state["sum"]


def adds_into_the_gradient(p, grad, state, *, lr, beta=.9):
    grad += beta * state.get("sum", 0.)
    state["sum"] = grad.clone()
    p -= lr * grad


def last_gradient_only(p, grad, state, *, lr, beta=.9):
    p -= lr * (grad + beta * state.get("last", 0.))
    state["last"] = grad.clone()


MY_MOMENTUM = Exercise(
    "03", my_momentum, '''
def my_momentum(p, grad, state, *, lr, beta=.9):
    "Heavy ball: steps p along the velocity that state keeps."
                                                 # your lines
''',
    hints=("A walker forgets each slope after its step. What must a ball still know at its next step, and where can a stepper keep it?",
           "v ← β · v + g, then w ← w − lr · v. The dict `state` belongs to p alone and is empty at the first call.",
           "state.get(\"velocity\", 0.) is what was kept, or 0 at the first call. Keep a new tensor there, and change p in place."),
    mistakes={
        "That is the average: your gradient counts only (1 − beta). PyTorch's velocity is a sum, in which each gradient counts in full.":
            dampened,
        "Those are the steps of plain gradient descent. Either nothing stays in state from one call to the next, or you step along "
        "grad and not along what is kept.": forgetful,
        "Nothing slows your ball down: only the share beta of the old velocity survives a step.": frictionless,
        "Your beta is 0.9, whatever beta is.": always_nine_tenths,
        "Your ball rolls uphill.": ball_uphill,
        "That is Nesterov's variant. Heavy ball steps along the velocity alone.": nesterovs,
        "Your weight stays where it is. Change p in place: p = p − … would only make a new tensor, which the model never sees.": a_copy_rolls,
        "You keep lr · grad, so old gradients still count with an old rate after lr has changed. Keep gradients, and multiply by lr in "
        "the step.": rate_inside,
        "You step along the old velocity. First comes the push, then the step.": steps_first,
        "You keep the gradient itself, and its memory is used again for the next one. Keep a new tensor (grad.clone()).":
            keeps_the_gradient,
        "Your step changes p.grad itself, which others may still want to see. Make a new tensor.": adds_into_the_gradient,
        "Only the last gradient is remembered. The velocity is made of the velocity before, and so of all gradients.":
            last_gradient_only},
    cases=lambda rng: [ways(rng, beta=(.3, .8)), ways(rng, beta=(.3, .8)), ways(rng)],
    run=lambda answer, _starts, _grads, _rates, **hypers: watch(
        lambda p, grad, state, lr: answer(p, grad, state, lr=lr, **hypers), _starts, _grads, _rates),
    truth=lambda _starts, _grads, _rates, beta=.9: torchs_path(
        lambda params: torch.optim.SGD(params, lr=.1, momentum=beta), _starts, _grads, _rates),
    instead=("torch.optim.SGD.step",),
    why="Two lines: the push, and the step. The velocity is the one number more that momentum costs for each weight. It must be "
        "a tensor of its own, since the gradient's memory is used again.")


# 3. PyTorch's dampening

def average_grad_torch(p, grad, state, *, beta=.9, dampening=0.):
    "PyTorch's momentum buffer."
    if "grad_avg" not in state: state["grad_avg"] = grad.clone()
    else: state["grad_avg"] = beta * state["grad_avg"] + (1 - dampening) * grad


def buffer(first=lambda grad, dampening: grad.clone(),
           later=lambda kept, grad, beta, dampening: beta * kept + (1 - dampening) * grad):
    "A variant: what it keeps at first, and what later."
    def stepper(p, grad, state, *, beta=.9, dampening=0.):
        state["grad_avg"] = (later(state["grad_avg"], grad, beta, dampening) if "grad_avg" in state
                             else first(grad, dampening))
    return stepper


def also_rolls(p, grad, state, *, beta=.9, dampening=0.):
    average_grad_torch(p, grad, state, beta=beta, dampening=dampening)
    p -= .1 * state["grad_avg"]


AVERAGE_GRAD_TORCH = Exercise(
    "03", average_grad_torch, '''
def average_grad_torch(p, grad, state, *, beta=.9, dampening=0.):
    "PyTorch's momentum buffer."
    state["grad_avg"] = grad                     # replace this
''',
    hints=("How does the stepper know that this is the very first call for p?",
           "If \"grad_avg\" is not in state, keep a copy of the gradient; otherwise β · grad_avg + (1 − dampening) · grad.",
           "if \"grad_avg\" not in state: state[\"grad_avg\"] = grad.clone()"),
    mistakes={
        "Your first v is dampened as well. PyTorch makes an exception: its very first v is the gradient itself.":
            buffer(first=lambda grad, dampening: (1 - dampening) * grad),
        "You keep the gradient itself, and its memory is used again for the next one. Keep a copy: grad.clone().":
            buffer(first=lambda grad, dampening: grad),
        "Upside down: a gradient counts 1 − dampening, so no dampening lets it count in full.":
            buffer(later=lambda kept, grad, beta, dampening: beta * kept + dampening * grad),
        "That is the average of this chapter, with 1 − beta. Here a hyperparameter of its own says how much a gradient counts.":
            buffer(later=lambda kept, grad, beta, dampening: beta * kept + (1 - beta) * grad),
        "The dampening makes no difference in your stepper.": buffer(later=lambda kept, grad, beta, dampening: beta * kept + grad),
        "Only the gradient is dampened, not what is kept.":
            buffer(later=lambda kept, grad, beta, dampening: (1 - dampening) * (beta * kept + grad)),
        "Your stepper keeps the last gradient only.": buffer(later=lambda kept, grad, beta, dampening: grad.clone()),
        "This stepper only keeps the books. momentum_step, which runs after it, moves the weight.": also_rolls},
    cases=lambda rng: [ways(rng, beta=(.3, .8), dampening=(.1, .4)), ways(rng, dampening=(.5, .8)), ways(rng, beta=(.3, .8))],
    run=lambda answer, _starts, _grads, _rates, **hypers: watch(
        lambda p, grad, state, lr: (answer(p, grad, state, **hypers), momentum_step(p, grad, state, lr=lr)),
        _starts, _grads, _rates, ["grad_avg"]),
    truth=lambda _starts, _grads, _rates, beta=.9, dampening=0.: torchs_path(
        lambda params: torch.optim.SGD(params, lr=.1, momentum=beta, dampening=dampening),
        _starts, _grads, _rates, grad_avg="momentum_buffer"),
    instead=("torch.optim.SGD.step",),
    why="The exception lets the first step be a full one. Its price: with dampening 0.9 the first gradient counts ten times as much "
        "as the second, until it fades.")


# 4. One knob between the two

def qhm_step(p, grad, state, *, lr, nu=.7):
    "p ← p − lr · ((1 − nu) · grad + nu · grad_avg), with the dampened average."
    p -= lr * ((1 - nu) * grad + nu * state["grad_avg"])


def mixed_paths(_starts, _grads, _rates, beta, nu=.7):
    """For given gradients a path is a sum over them, so the mixture's path is the mixture of the paths: of SGD, and of SGD with
    momentum at 1 − beta times the rate.
    """
    plain = torchs_path(lambda params: torch.optim.SGD(params, lr=.1), _starts, _grads, _rates)
    ball = torchs_path(lambda params: torch.optim.SGD(params, lr=.1, momentum=beta), _starts, _grads,
                       [(1 - beta) * lr for lr in _rates])
    return {name: (1 - nu) * plain[name] + nu * ball[name] for name in plain}


def run_qhm(answer, _starts, _grads, _rates, beta, **hypers):
    def step(p, grad, state, lr):
        average_grad_dampened(p, grad, state, beta=beta)
        answer(p, grad, state, lr=lr, **hypers)
    return watch(step, _starts, _grads, _rates)


def swapped(p, grad, state, *, lr, nu=.7): p -= lr * (nu * grad + (1 - nu) * state["grad_avg"])
def gradient_in_full(p, grad, state, *, lr, nu=.7): p -= lr * (grad + nu * state["grad_avg"])
def average_in_full(p, grad, state, *, lr, nu=.7): p -= lr * ((1 - nu) * grad + state["grad_avg"])
def average_alone(p, grad, state, *, lr, nu=.7): p -= lr * state["grad_avg"]
def always_seven_tenths(p, grad, state, *, lr, nu=.7): qhm_step(p, grad, state, lr=lr)
def mixes_uphill(p, grad, state, *, lr, nu=.7): qhm_step(p, grad, state, lr=-lr, nu=nu)
def rate_once(p, grad, state, *, lr, nu=.7): p -= lr * (1 - nu) * grad + nu * state["grad_avg"]
def a_copy_mixes(p, grad, state, *, lr, nu=.7): p = p - lr * ((1 - nu) * grad + nu * state["grad_avg"])
def mixes_the_average(p, grad, state, *, lr, nu=.7): p -= lr * state["grad_avg"].lerp_(grad, 1 - nu)
def mixes_the_gradient(p, grad, state, *, lr, nu=.7): p -= lr * grad.lerp_(state["grad_avg"], nu)


QHM_STEP = Exercise(
    "03", qhm_step, '''
def qhm_step(p, grad, state, *, lr, nu=.7):
    "p ← p − lr · ((1 − nu) · grad + nu · grad_avg), with the dampened average."
                                                 # your line
''',
    hints=("The average is there already when your stepper runs. Where does it stand?",
           "state[\"grad_avg\"] is a, grad is g. Mix them in a new tensor, and leave both as they are.",
           "p -= lr * (…), or two calls of add_scaled, one for the gradient and one for the average."),
    mistakes={
        "nu and 1 − nu are swapped: with nu = 1 the average alone is to count.": swapped,
        "The gradient counts in full, and should count 1 − nu.": gradient_in_full,
        "The average counts in full, and should count nu.": average_in_full,
        "That is dampened momentum, nu = 1. The gradient itself has a share of 1 − nu.": average_alone,
        "Your nu is 0.7, whatever nu is.": always_seven_tenths,
        "Your step goes uphill.": mixes_uphill,
        "lr has to multiply both parts of the mixture. Check your brackets.": rate_once,
        "Your weight stays where it is. Change p in place: p = p − … would only make a new tensor, which the model never sees.": a_copy_mixes,
        "Your step changes the average in state, so the next average is made of the mixture. Mix in a new tensor.": mixes_the_average,
        "Your step changes p.grad itself, which others may still want to see. Mix in a new tensor.": mixes_the_gradient},
    cases=lambda rng: [ways(rng, beta=(.3, .8), nu=(.1, .4)), ways(rng, beta=(.3, .8), nu=(.75, .95)), ways(rng, beta=(.3, .8))],
    run=run_qhm, truth=mixed_paths,
    why="With nu = 0 that is plain SGD, with nu = 1 dampened momentum. With nu = beta it is Nesterov's variant, at 1 / (1 − beta) times "
        "its rate: there (1 − β) g + β a is (1 − β) times g + β v.")

EXERCISES = [BETA_FOR, MY_MOMENTUM, AVERAGE_GRAD_TORCH, QHM_STEP]
