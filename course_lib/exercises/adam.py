"""The exercises of chapter 05."""
import math

import torch
from torch import nn

from ..adam import count_steps
from ..momentum import average_grad_dampened
from ..rmsprop import average_sqr_grad
from ..support.optimizer import add_ratio, bias_correction, state_zeros
from .core import Exercise, random_tensor


# 1. Half of it gone

def half_life(lr, strength):
    "Whole steps until at most half of an idle weight is left."
    return math.ceil(math.log(.5) / math.log(1 - lr * strength))


def idle_weight(lr, strength):
    "PyTorch's AdamW decays a weight whose gradients are zero."
    w, n = nn.Parameter(torch.ones((), dtype=torch.float64)), 0
    opt = torch.optim.AdamW([w], lr=lr, weight_decay=strength)
    w.grad = torch.zeros_like(w)
    while w > .5:
        opt.step()
        n += 1
    return {"the number of steps": n}


HALF_LIFE = Exercise(
    "05", half_life, '''
def half_life(lr, strength):
    "Whole steps until at most half of an idle weight is left."
    return 0                                     # replace this
''',
    hints=("By what is an idle weight multiplied in each step? And in n steps?",
           "(1 − lr · strength)^n ≤ ½. Take logarithms: which way must you round?",
           "math.log(.5) / math.log(…) is the n of exactly one half; math.ceil makes a whole number of it."),
    mistakes={
        "You rounded down. After that many steps more than half of the weight is still there.":
            lambda lr, strength: math.floor(math.log(.5) / math.log(1 - lr * strength)),
        "You rounded to the nearest whole number. Where that is down, more than half is still there.":
            lambda lr, strength: round(math.log(.5) / math.log(1 - lr * strength)),
        "Only whole steps can be made: round up.":
            lambda lr, strength: math.log(.5) / math.log(1 - lr * strength),
        "That is log 2 / (lr · strength), the half-life of a decay without steps. A step multiplies by 1 − lr · strength.":
            lambda lr, strength: math.ceil(math.log(2) / (lr * strength)),
        "In your answer strength plays no part, but it does in the factor 1 − lr · strength.":
            lambda lr, strength: math.ceil(math.log(.5) / math.log(1 - lr)),
        "In your answer lr plays no part. AdamW shrinks a weight by lr · strength, not by strength.":
            lambda lr, strength: math.ceil(math.log(.5) / math.log(1 - strength)),
        "You subtract lr · strength of the first weight in each step. But each step takes its share of what is left.":
            lambda lr, strength: math.ceil(.5 / (lr * strength))},
    cases=lambda rng: [{"lr": rng.uniform(.05, .5), "strength": rng.uniform(.1, .9)} for _ in range(14)],
    run=lambda answer, lr, strength: {"the number of steps": answer(lr, strength)}, truth=idle_weight, tolerance=0.,
    why="An idle weight is multiplied by 1 − lr · strength in each step, so after n steps (1 − lr · strength)^n of it is left. The "
        "logarithm of that is n · log(1 − lr · strength), which has to be log ½ or less. For a small lr · strength that takes about "
        "0.69 / (lr · strength) steps: 690 at lr 0.001 and strength 1.")


# What the steppers of 2, 3 and 4 are tried on

AVERAGES = {"grad_avg": "the average of the gradients", "sqr_avg": "the average of the squares"}


def watch(answer, before, averages, _starts, _grads, **hypers):
    """What the calls of a stepper do to two weights, of which the second gets its first gradient late.
    before: hypers -> the steppers that come first, with what they take; averages: the names of those that they keep.
    """
    weights, states, found = [nn.Parameter(start.clone()) for start in _starts], [{}, {}], {}
    with torch.no_grad():
        for i, grads in enumerate(_grads, 1):
            for j, (p, grad, state) in enumerate(zip(weights, grads, states), 1):
                if grad is None: continue
                p.grad = grad.clone()
                for stepper, chosen in before(hypers): stepper(p, p.grad, state, **chosen)
                returned = answer(p, p.grad, state, **hypers)
                where = f"weight {j} in step {i}"
                found |= {where: p.detach().clone(), f"p.grad of {where}": p.grad.clone(), f"what the call for {where} returns":
                          returned.clone() if isinstance(returned, torch.Tensor) else returned}
        return found | {f"{AVERAGES[name]}, {name}, of weight {j}": state.get(name)
                        for j, state in enumerate(states, 1) for name in averages}


def torchs(opt_func, averages=(), **options):
    "The same calls by an optimizer of torch; averages: as in `watch`."
    def truth(_starts, _grads, lr, beta=.9, sqr_beta=.999, eps=1e-8):
        weights, found = [nn.Parameter(start.clone()) for start in _starts], {}
        opt = opt_func(weights, lr=lr, betas=(beta, sqr_beta), eps=eps, **options)
        for i, grads in enumerate(_grads, 1):
            for p, grad in zip(weights, grads): p.grad = None if grad is None else grad.clone()
            opt.step()
            for j, (p, grad) in enumerate(zip(weights, grads), 1):
                if grad is None: continue
                where = f"weight {j} in step {i}"
                found |= {where: p.detach().clone(), f"p.grad of {where}": grad, f"what the call for {where} returns": None}
        for j, p in enumerate(weights, 1):
            for name in averages:
                theirs = opt.state[p][{"grad_avg": "exp_avg", "sqr_avg": "exp_avg_sq"}[name]]
                found[f"{AVERAGES[name]}, {name}, of weight {j}"] = theirs
        return found
    return truth


def slopes(rng, **hypers):
    "Gradients for two weights, large ones first and then small ones; the second weight has none in the first step."
    found = []
    for given in (hypers, hypers, {}):
        sizes = [rng.uniform(2, 4), rng.uniform(.5, 1), rng.uniform(.1, .3), rng.uniform(.5, 1)]
        grads = [[size * random_tensor(rng, 5), size * random_tensor(rng, 2, 3)] for size in sizes]
        grads[0][0][0] = grads[1][0][0] = grads[1][1][0, 0] = 0.  # nothing felt yet: eps keeps 0 / 0 away
        grads[0][1] = None
        found.append({"_starts": [random_tensor(rng, 5), random_tensor(rng, 2, 3)], "_grads": grads, "lr": rng.uniform(.1, .7),
                      **{name: rng.uniform(*limits) for name, limits in given.items()}})
    return found


all_hypers = {"beta": (.3, .7), "sqr_beta": (.75, .95), "eps": (.1, .5)}


# 2. Adam from a blank page

def my_adam(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
    "Adam with bias correction, all in one stepper."
    t = state["t"] = state.get("t", 0) + 1
    avg = state["avg"] = beta * state.get("avg", 0) + (1 - beta) * grad
    sqr = state["sqr"] = sqr_beta * state.get("sqr", 0) + (1 - sqr_beta) * grad ** 2
    avg, sqr = avg / (1 - beta ** t), sqr / (1 - sqr_beta ** t)
    p -= lr * avg / (sqr.sqrt() + eps)


def adam_with(change):
    "Adam of which `change` makes the step, from the averages, the count and the hyperparameters: a way to be wrong."
    def my_adam(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
        t = state["t"] = state.get("t", 0) + 1
        avg = state["avg"] = beta * state.get("avg", 0) + (1 - beta) * grad
        sqr = state["sqr"] = sqr_beta * state.get("sqr", 0) + (1 - sqr_beta) * grad ** 2
        p -= lr * change(avg, sqr, 1 - beta ** t, 1 - sqr_beta ** t, eps)
    return my_adam


def writes_back(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
    my_adam(p, grad, state, lr=lr, beta=beta, sqr_beta=sqr_beta, eps=eps)
    state["avg"] = state["avg"] / (1 - beta ** state["t"])
    state["sqr"] = state["sqr"] / (1 - sqr_beta ** state["t"])


def counts_from_zero(p, grad, state, **hypers):
    state.setdefault("t", -1)
    my_adam(p, grad, state, **hypers)


def sums(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
    t = state["t"] = state.get("t", 0) + 1
    avg = state["avg"] = beta * state.get("avg", 0) + grad
    sqr = state["sqr"] = sqr_beta * state.get("sqr", 0) + (1 - sqr_beta) * grad ** 2
    p -= lr * avg / (1 - beta ** t) / ((sqr / (1 - sqr_beta ** t)).sqrt() + eps)


def starts_with_the_gradient(p, grad, state, **hypers):
    state.setdefault("avg", grad.clone())
    state.setdefault("sqr", grad ** 2)
    my_adam(p, grad, state, **hypers)


def starts_with_the_gradient_uncorrected(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
    avg = state["avg"] = beta * state.get("avg", grad) + (1 - beta) * grad
    sqr = state["sqr"] = sqr_beta * state.get("sqr", grad ** 2) + (1 - sqr_beta) * grad ** 2
    p -= lr * avg / (sqr.sqrt() + eps)


def betas_exchanged(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
    my_adam(p, grad, state, lr=lr, beta=sqr_beta, sqr_beta=beta, eps=eps)


def begins_anew(p, grad, state, **hypers): my_adam(p, grad, {}, **hypers)
def a_new_tensor(p, grad, state, **hypers): my_adam(p.clone(), grad, state, **hypers)
def uphill(p, grad, state, *, lr, **hypers): my_adam(p, grad, state, lr=-lr, **hypers)


def squares_in_place(p, grad, state, **hypers):
    my_adam(p, grad, state, **hypers)
    grad.square_()


MY_ADAM = Exercise(
    "05", my_adam, '''
def my_adam(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
    "Adam with bias correction, all in one stepper."
                                                 # your lines
''',
    hints=("What does Adam have to remember from step to step? There are three things, and state is empty at the first call.",
           "a ← β₁ a + (1 − β₁) g, s ← β₂ s + (1 − β₂) g². Divide each by 1 − β^t. Step by lr · â / (√ŝ + ε).",
           't = state["t"] = state.get("t", 0) + 1 counts, and the averages can be kept likewise.'),
    mistakes={
        "Nothing corrects your averages. They start from zero, so divide each by 1 − β^t.":
            adam_with(lambda a, s, a_share, s_share, eps: a / (s.sqrt() + eps)),
        "You correct the average of the gradients only. That of the squares is young as well, and for longer.":
            adam_with(lambda a, s, a_share, s_share, eps: a / a_share / (s.sqrt() + eps)),
        "You correct the average of the squares only. That of the gradients starts from zero too.":
            adam_with(lambda a, s, a_share, s_share, eps: a / ((s / s_share).sqrt() + eps)),
        "The root is missing: divide by √ŝ, so that the size of the gradient drops out.":
            adam_with(lambda a, s, a_share, s_share, eps: a / a_share / (s / s_share + eps)),
        "eps stands outside of the root: √ŝ + ε.":
            adam_with(lambda a, s, a_share, s_share, eps: a / a_share / (s / s_share + eps).sqrt()),
        "You add eps before the correction, which divides it too. Correct s first, take the root, then add eps.":
            adam_with(lambda a, s, a_share, s_share, eps: a / a_share / ((s.sqrt() + eps) / s_share ** .5)),
        "eps is missing: where no gradient was felt yet, you divide zero by zero.":
            adam_with(lambda a, s, a_share, s_share, eps: a / a_share / (s / s_share).sqrt()),
        "The step is made of the newest gradient. Adam steps along the average of the gradients.":
            lambda p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8:
                my_adam(p, grad, state, lr=lr, beta=0., sqr_beta=sqr_beta, eps=eps),
        "You write the corrected averages back into the state, so the next step corrects them again. Keep them raw.": writes_back,
        "Your count starts at 0, so the first correction divides by 1 − β⁰, which is zero. Count first, then correct.":
            counts_from_zero,
        "The new gradient enters your average with weight 1. Here it is 1 − β₁, for which the correction is made.": sums,
        "Your averages start from the first gradient, and are corrected for a start from zero. Do one or the other; Adam starts "
        "from zero.": starts_with_the_gradient,
        "Your averages start from the first gradient. Adam's start from zero, and are divided by 1 − β^t.":
            starts_with_the_gradient_uncorrected,
        "You exchanged the betas: beta is for the gradients, sqr_beta for their squares.": betas_exchanged,
        "Each call begins anew. What has to last until the next call belongs in state.": begins_anew,
        "p = p − … makes a new tensor, which the model never sees. Change p in place.": a_new_tensor,
        "Your weights walk uphill. Subtract, please.": uphill,
        "You square p.grad itself. Others may still want to see the gradient.": squares_in_place},
    cases=lambda rng: slopes(rng, **all_hypers), run=lambda answer, **case: watch(answer, lambda hypers: (), (), **case),
    truth=torchs(torch.optim.Adam), instead=("torch.optim.Adam.step",),
    why="Three things are kept, for each parameter: a count and two averages. They stay raw in state, and the corrected ones are "
        "made anew for each step. The chapter has split the same lines into four steppers, so that other optimizers can use them too.")


# 3. AMSGrad

def amsgrad_step(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
    "Adam's step, divided by the root of the largest sqr_avg so far."
    largest = state_zeros(p, state, "sqr_max")
    torch.maximum(largest, state["sqr_avg"], out=largest)
    root = (largest / bias_correction(sqr_beta, state)).sqrt() + eps
    add_ratio(p, state["grad_avg"], root, -lr / bias_correction(beta, state))


def averages_first(hypers):
    "The steppers before: both averages and the count."
    return ((average_grad_dampened, {"beta": hypers.get("beta", .9)}),
            (average_sqr_grad, {"sqr_beta": hypers.get("sqr_beta", .999)}), (count_steps, {}))


def amsgrad_with(largest, correct_average=True, correct_squares=True):
    "`amsgrad_step` of which `largest(state, grad, share)` chooses what is divided by."
    def amsgrad_step(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
        share = 1 - sqr_beta ** state["step"]
        sqr = largest(state, grad, share) / (share if correct_squares else 1)
        p -= lr * state["grad_avg"] / (1 - beta ** state["step"] if correct_average else 1) / (sqr.sqrt() + eps)
    return amsgrad_step


def keep(state, value):
    "The largest value so far, by element."
    state["max"] = value.clone() if "max" not in state else torch.maximum(state["max"], value)
    return state["max"]


def into_the_average(state, grad, share):
    state["sqr_avg"].copy_(keep(state, state["sqr_avg"]))
    return state["sqr_avg"]


def largest_of_all(state, grad, share):
    state["max"] = max(state.get("max", 0.), state["sqr_avg"].max())
    return state["max"]


def smallest(state, grad, share):
    state["min"] = state["sqr_avg"].clone() if "min" not in state else torch.minimum(state["min"], state["sqr_avg"])
    return state["min"]


AMSGRAD_STEP = Exercise(
    "05", amsgrad_step, '''
def amsgrad_step(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
    "Adam's step, divided by the root of the largest sqr_avg so far."
                                                 # your lines
''',
    hints=("Where does the largest sqr_avg have to stay until the next step? And what is it before the first?",
           "s_max ← max(s_max, s), element by element, from zero on. Then Adam's step with s_max in the place of s.",
           'largest = state_zeros(p, state, "sqr_max"), and torch.maximum(a, b, out=a) works in place.'),
    mistakes={
        "That is Adam: the maximum has no effect. Do you divide by sqr_avg, or is your maximum the very tensor sqr_avg, which "
        "fades? (clone makes a copy.)": amsgrad_with(lambda state, grad, share: state["sqr_avg"]),
        "Your maximum is that of the squared gradients. AMSGrad takes it of their average, sqr_avg.":
            amsgrad_with(lambda state, grad, share: keep(state, grad ** 2)),
        "You take the maximum of the corrected averages. PyTorch takes it of the raw ones and corrects it then.":
            amsgrad_with(lambda state, grad, share: keep(state, state["sqr_avg"] / share), correct_squares=False),
        "Your maximum overwrites sqr_avg, so the average can never fade. Keep it under another name.": amsgrad_with(into_the_average),
        "Your maximum is one number for the whole tensor. Each weight has its own: torch.maximum goes element by element.":
            amsgrad_with(largest_of_all),
        "You keep the smallest sqr_avg. The largest is wanted, which makes steps shorter.": amsgrad_with(smallest),
        "The maximum is not corrected. Divide it by 1 − β₂^t.":
            amsgrad_with(lambda state, grad, share: keep(state, state["sqr_avg"]), correct_squares=False),
        "The average of the gradients is not corrected. Divide it by 1 − β₁^t.":
            amsgrad_with(lambda state, grad, share: keep(state, state["sqr_avg"]), correct_average=False)},
    cases=lambda rng: slopes(rng, **all_hypers), run=lambda answer, **case: watch(answer, averages_first, AVERAGES, **case),
    truth=torchs(torch.optim.Adam, AVERAGES, amsgrad=True),
    instead=("torch.optim.Adam.step",),
    why="The maximum is one tensor more for each parameter. It never falls, so a rare large gradient is never forgotten. The "
        "correction grows with t all the same, so it is made on the maximum, after it is kept.")


# 4. AdaMax

def adamax_step(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
    "A step along grad_avg, divided by a fading maximum of |grad| + eps."
    faded = sqr_beta * state_zeros(p, state, "largest")
    state["largest"] = torch.maximum(faded, grad.abs() + eps)
    add_ratio(p, state["grad_avg"], state["largest"], -lr / bias_correction(beta, state))


def average_first(hypers): return (average_grad_dampened, {"beta": hypers.get("beta", .9)}), (count_steps, {})


def adamax_with(change, divisor=lambda u, eps, share: u, correct=True):
    "`adamax_step` of which `change(old, grad, sqr_beta, eps)` gives the new maximum."
    def adamax_step(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
        u = state["u"] = change(state.get("u", torch.zeros_like(p)), grad, sqr_beta, eps)
        share = 1 - beta ** state["step"] if correct else 1
        p -= lr * state["grad_avg"] / share / divisor(u, eps, 1 - sqr_beta ** state["step"])
    return adamax_step


fading = lambda u, grad, sqr_beta, eps: torch.maximum(sqr_beta * u, grad.abs() + eps)

ADAMAX_STEP = Exercise(
    "05", adamax_step, '''
def adamax_step(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
    "A step along grad_avg, divided by a fading maximum of |grad| + eps."
                                                 # your lines
''',
    hints=("What is the first maximum, if the one before it is zero? Does that need a correction?",
           "u ← max(β₂ u, |g| + ε), element by element; then w ← w − lr · a / ((1 − β₁^t) u).",
           'state["largest"] = torch.maximum(sqr_beta * state_zeros(p, state, "largest"), …)'),
    mistakes={
        "You correct the maximum for its youth. But the first one is |g| + ε already, with nothing of the zero left in it.":
            adamax_with(fading, lambda u, eps, share: u / share),
        "The average of the gradients is not corrected. Divide it by 1 − β₁^t.": adamax_with(fading, correct=False),
        "Your maximum never fades. Multiply the old one by sqr_beta first.":
            adamax_with(lambda u, grad, sqr_beta, eps: torch.maximum(u, grad.abs() + eps)),
        "You divide by the newest gradient only. The maximum has to be kept in state until the next step.":
            adamax_with(lambda u, grad, sqr_beta, eps: grad.abs() + eps),
        "You add eps to the maximum. In AdaMax it is added to |g|, before the maximum.":
            adamax_with(lambda u, grad, sqr_beta, eps: torch.maximum(sqr_beta * u, grad.abs()), lambda u, eps, share: u + eps),
        "You keep squares, and so fade by the root of sqr_beta. Keep |g| itself.":
            adamax_with(lambda u, grad, sqr_beta, eps: torch.maximum(sqr_beta * u, (grad.abs() + eps) ** 2),
                        lambda u, eps, share: u.sqrt()),
        "That is an average of the sizes |g|. A maximum is wanted: one large gradient sets it at once.":
            adamax_with(lambda u, grad, sqr_beta, eps: sqr_beta * u + (1 - sqr_beta) * (grad.abs() + eps)),
        "A gradient below zero counts as small. Take its absolute value.":
            adamax_with(lambda u, grad, sqr_beta, eps: torch.maximum(sqr_beta * u, grad + eps)),
        "Your maximum is one number for the whole tensor. Each weight has its own: torch.maximum goes element by element.":
            adamax_with(lambda u, grad, sqr_beta, eps: torch.maximum(sqr_beta * u, grad.abs() + eps).max().expand_as(u))},
    cases=lambda rng: slopes(rng, **all_hypers), run=lambda answer, **case: watch(answer, average_first, ["grad_avg"], **case),
    truth=torchs(torch.optim.Adamax, ["grad_avg"]), instead=("torch.optim.Adamax.step",),
    why="The first maximum is max(0, |g| + ε) = |g| + ε: of the zero at the start nothing is left, so there is no youth to correct. An "
        "average keeps a share of its start, β^t, and a maximum does not.")

EXERCISES = [HALF_LIFE, MY_ADAM, AMSGRAD_STEP, ADAMAX_STEP]
