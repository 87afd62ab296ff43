"""The exercises of chapter 04."""
import math

import torch

from ..rmsprop import average_sqr_grad, rms_prop_step
from .core import Exercise
from .momentum import torchs_path, watch, ways

# 1. One gradient in n batches

def rare_step(n, lr, alpha):
    "How long a step is, in the long run, if the same gradient comes in one of n batches."
    return lr * math.sqrt((1 - alpha ** n) / (1 - alpha))


def rare_gradients(n, lr, alpha):
    "A gradient, then n − 1 batches without one, and again, until nothing changes any more."
    sqr_avg, g = 0., 3.
    for batch in range(n * math.ceil(30 / (1 - alpha) / n) + 1):
        now = g if batch % n == 0 else 0.
        sqr_avg = alpha * sqr_avg + (1 - alpha) * now ** 2
    return {"the length of a step": lr * g / math.sqrt(sqr_avg)}


def rare_words(rng):
    return [{"n": rng.randint(low, high), "lr": rng.uniform(.001, .2), "alpha": rng.uniform(.8, .98)}
            for low, high in ((2, 4), (5, 12), (13, 40), (41, 100))]


RARE_STEP = Exercise(
    "04", rare_step, '''
def rare_step(n, lr, alpha):
    "How long a step is, in the long run, if the same gradient comes in one of n batches."
    return lr                                    # replace this
''',
    hints=("Let the gradient be 1. When it comes, how much does each of the earlier ones still count in the average of the squares?",
           "(1 − α) (1 + αⁿ + α²ⁿ + …): with each round of n batches a square fades by αⁿ. Sum the series.",
           "s = (1 − α) / (1 − αⁿ), and the step is lr / √s."),
    mistakes={
        "√n holds for a plain mean, which forgets nothing. The average that fades forgets part of a square until the next one comes.":
            lambda n, lr, alpha: lr * math.sqrt(n),
        "n times the rate: that is without squares (and for a plain mean).": lambda n, lr, alpha: lr * n,
        "That is a weight whose last gradient is long forgotten. The earlier ones count as well, each αⁿ times the one after it.":
            lambda n, lr, alpha: lr / math.sqrt(1 - alpha),
        "That is step number n on an even slope, where each batch brings a gradient. Here only one in n does.":
            lambda n, lr, alpha: lr / math.sqrt(1 - alpha ** n),
        "Did you forget the root?": lambda n, lr, alpha: lr * (1 - alpha ** n) / (1 - alpha),
        "Upside down: the step is lr divided by the root of the average, so a rare weight's steps are longer than lr.":
            lambda n, lr, alpha: lr * math.sqrt((1 - alpha) / (1 - alpha ** n)),
        "You divide by the average just before the gradient comes. RMSProp takes in the new square first.":
            lambda n, lr, alpha: lr * math.sqrt((1 - alpha ** n) / (1 - alpha) / alpha ** n),
        "One batch too few: from one gradient to the next the average fades n times.":
            lambda n, lr, alpha: lr * math.sqrt((1 - alpha ** (n - 1)) / (1 - alpha)),
        "α · n is not αⁿ: each batch multiplies what is kept by α.":
            lambda n, lr, alpha: lr * math.sqrt(abs(1 - alpha * n) / (1 - alpha))},
    cases=rare_words, run=lambda answer, n, lr, alpha: {"the length of a step": answer(n, lr, alpha)}, truth=rare_gradients,
    why="When the gradient comes, the squares count (1 − α) (1 + αⁿ + α²ⁿ + …) = (1 − α) / (1 − αⁿ). For a small n that is about 1 / n, "
        "so the step is √n times the rate; for a large one it is 1 − α, so it is never longer than lr / √(1 − α).")


# 2. RMSProp from a blank page

def my_rmsprop(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8):
    "RMSProp: a stride for each weight, by the squares of its gradients, which state keeps."
    state["squares"] = sqr_beta * state.get("squares", 0.) + (1 - sqr_beta) * grad ** 2
    p -= lr * grad / (state["squares"].sqrt() + eps)


def fading(state, news, beta, share=None, name="squares"):
    "A fading average (or a sum, with another share of the news)."
    state[name] = beta * state.get(name, 0.) + (1 - beta if share is None else share) * news
    return state[name]


def variant(size=lambda state, grad, beta: fading(state, grad ** 2, beta).sqrt(), uphill=False):
    "RMSProp that takes something else for a gradient's usual size."
    def stepper(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8):
        p -= (-lr if uphill else lr) * grad / (size(state, grad, sqr_beta) + eps)
    return stepper


def from_first_square(state, grad, beta):
    state["squares"] = beta * state["squares"] + (1 - beta) * grad ** 2 if "squares" in state else grad ** 2
    return state["squares"].sqrt()


def unbiased(state, grad, beta):
    state["n"] = state.get("n", 0) + 1
    return (fading(state, grad ** 2, beta) / (1 - beta ** state["n"])).sqrt()


def before_the_news(state, grad, beta):
    before = state.get("squares", torch.zeros_like(grad))
    fading(state, grad ** 2, beta)
    return before.sqrt()


def eps_inside(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8):
    p -= lr * grad / (fading(state, grad ** 2, sqr_beta) + eps).sqrt()


def a_copy_strides(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8):
    fading(state, grad ** 2, sqr_beta)
    p = p - lr * grad


def default_eps(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8): variant()(p, grad, state, lr=lr, sqr_beta=sqr_beta)
def default_beta(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8): variant()(p, grad, state, lr=lr, eps=eps)


def squares_in_place(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8):
    root = fading(state, grad ** 2, sqr_beta).sqrt()
    p -= lr * grad.div_(root + eps)


MY_RMSPROP = Exercise(
    "04", my_rmsprop, '''
def my_rmsprop(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8):
    "RMSProp: a stride for each weight, by the squares of its gradients, which state keeps."
                                                 # your lines
''',
    hints=("What does a weight remember about its slopes, so that signs cannot cancel? And what undoes that, before it divides?",
           "s ← α · s + (1 − α) · g², then w ← w − lr · g / (√s + ε). The dict `state` is empty at the first call, and s begins at 0.",
           "state.get(\"squares\", 0.) is what was kept, or 0 at the first call."),
    mistakes={
        "eps stands inside of your root. PyTorch's stands outside: √s + eps.": eps_inside,
        "You divide by the average of the squares. Without the root, a steep slope gives a short step.":
            variant(lambda state, grad, beta: fading(state, grad ** 2, beta)),
        "You average absolute values. RMSProp averages squares, and takes the root.":
            variant(lambda state, grad, beta: fading(state, grad.abs(), beta)),
        "You average the gradients and square that, so signs cancel. Square first, then average.":
            variant(lambda state, grad, beta: fading(state, grad, beta).abs()),
        "You add the squares up, and forget none: that is AdaGrad.": variant(lambda state, grad, beta: fading(state, grad ** 2, 1., 1.).sqrt()),
        "The new square counts in full in your average. It should count 1 − sqr_beta.":
            variant(lambda state, grad, beta: fading(state, grad ** 2, beta, 1.).sqrt()),
        "sqr_beta and 1 − sqr_beta are swapped: the old average should count sqr_beta.":
            variant(lambda state, grad, beta: fading(state, grad ** 2, 1 - beta).sqrt()),
        "Your average begins with the first square. PyTorch's begins with 0, and so its first steps are long.": variant(from_first_square),
        "You correct the late start of the average. RMSProp does not; Adam will.": variant(unbiased),
        "Each call sees only its own square. Keep the average in state.":
            variant(lambda state, grad, beta: (1 - beta) ** .5 * grad.abs()),
        "You divide by the average before the new square is in it.": variant(before_the_news),
        "Your weights walk uphill.": variant(uphill=True),
        "Your weights stay where they are. Change p in place: p = p - … would only make a new tensor.": a_copy_strides,
        "Your step changes p.grad itself, which others may still want to see. Make a new tensor.": squares_in_place,
        "Your eps is 1e-8, whatever eps is.": default_eps,
        "Your sqr_beta is 0.99, whatever sqr_beta is.": default_beta},
    cases=lambda rng: [ways(rng, sqr_beta=(.6, .9), eps=(.05, .4)), ways(rng, sqr_beta=(.6, .9)), ways(rng, eps=(.05, .4))],
    run=lambda answer, _starts, _grads, _rates, **hypers: watch(
        lambda p, grad, state, lr: answer(p, grad, state, lr=lr, **hypers), _starts, _grads, _rates),
    truth=lambda _starts, _grads, _rates, sqr_beta=.99, eps=1e-8: torchs_path(
        lambda params: torch.optim.RMSprop(params, lr=.1, alpha=sqr_beta, eps=eps), _starts, _grads, _rates),
    instead=("torch.optim.RMSprop.step",),
    why="Two lines: what is usual for this weight, and a step that is divided by it. Squares have no sign, the root brings back the "
        "scale, and eps keeps 0 / 0 away.")


# 3. Centered

def centered_step(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8):
    "Keeps the average a of the gradients, and p ← p − lr · grad / (√(sqr_avg − a²) + eps)."
    a = state.get("average", 0.)
    state["average"] = a + (1 - sqr_beta) * (grad - a)
    p -= lr * grad / ((state["sqr_avg"] - state["average"] ** 2).sqrt() + eps)


def centered(spread=lambda s, a: (s - a ** 2).sqrt(), average=lambda state, grad, beta: fading(state, grad, beta, name="mean"),
             uphill=False):
    def stepper(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8):
        p -= (-lr if uphill else lr) * grad / (spread(state["sqr_avg"], average(state, grad, sqr_beta)) + eps)
    return stepper


def centered_eps_inside(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8):
    p -= lr * grad / (state["sqr_avg"] - fading(state, grad, sqr_beta) ** 2 + eps).sqrt()


def average_from_first(state, grad, beta):
    state["mean"] = beta * state["mean"] + (1 - beta) * grad if "mean" in state else grad.clone()
    return state["mean"]


def average_before(state, grad, beta):
    before = state.get("mean", torch.zeros_like(grad))
    fading(state, grad, beta, name="mean")
    return before


def subtracts_in_state(s, a): return s.sub_(a ** 2).sqrt()


def a_centered_copy(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8): p = p - lr * grad


def run_centered(answer, _starts, _grads, _rates, **hypers):
    def step(p, grad, state, lr):
        average_sqr_grad(p, grad, state, sqr_beta=hypers.get("sqr_beta", .99))
        answer(p, grad, state, lr=lr, **hypers)
    return watch(step, _starts, _grads, _rates, ["sqr_avg"])


CENTERED_STEP = Exercise(
    "04", centered_step, '''
def centered_step(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8):
    "Keeps the average a of the gradients, and p ← p − lr · grad / (√(sqr_avg − a²) + eps)."
                                                 # your lines
''',
    hints=("The average of the squares is there already. Which one is missing, and where will you find it at the next call?",
           "a ← α · a + (1 − α) · g, from 0 on, as the average of the squares but without the square. Then divide by √(s − a²) + ε.",
           "state[\"average\"] = sqr_beta * state.get(\"average\", 0.) + …"),
    mistakes={
        "That is plain RMSProp: a² is not subtracted.": centered(lambda s, a: s.sqrt()),
        "You subtract a where a² belongs.": centered(lambda s, a: (s - a).sqrt()),
        "You take the root first. The square of a is subtracted under the root.": centered(lambda s, a: s.sqrt() - a.abs()),
        "Without the root that is the variance, not the standard deviation.": centered(lambda s, a: s - a ** 2),
        "a² is to be subtracted, not added.": centered(lambda s, a: (s + a ** 2).sqrt()),
        "You average the squares a second time. a is the average of the gradients themselves.":
            centered(average=lambda state, grad, beta: fading(state, grad ** 2, beta, name="mean")),
        "Your average of the gradients forgets everything between calls. Keep it in state.":
            centered(average=lambda state, grad, beta: (1 - beta) * grad),
        "The new gradient counts in full in your average. It should count 1 − sqr_beta.":
            centered(average=lambda state, grad, beta: fading(state, grad, beta, 1., name="mean")),
        "Your average begins with the first gradient. It should begin with 0, as that of the squares.": centered(average=average_from_first),
        "You subtract the average before the new gradient is in it.": centered(average=average_before),
        "You subtract within state[\"sqr_avg\"] itself, which spoils the average of the squares. Make a new tensor.":
            centered(subtracts_in_state),
        "eps stands inside of your root. PyTorch's stands outside.": centered_eps_inside,
        "Your weights walk uphill.": centered(uphill=True),
        "Your weights stay where they are. Change p in place: p = p - … would only make a new tensor.": a_centered_copy},
    cases=lambda rng: [ways(rng, sqr_beta=(.6, .9), eps=(.05, .4)), ways(rng, sqr_beta=(.6, .9)), ways(rng, eps=(.05, .4))],
    run=run_centered,
    truth=lambda _starts, _grads, _rates, sqr_beta=.99, eps=1e-8: torchs_path(
        lambda params: torch.optim.RMSprop(params, lr=.1, alpha=sqr_beta, eps=eps, centered=True),
        _starts, _grads, _rates, sqr_avg="square_avg"),
    instead=("torch.optim.RMSprop.step",),
    why="s − a² is the variance of the gradients: the mean of the squares minus the square of the mean. Where gradients agree it is "
        "small, so the steps there are longer than plain RMSProp's.", tolerance=1e-4)


# 4. One stride for each word

def average_of_the_row(p, grad, state, *, sqr_beta=.99):
    "The fading average of the mean square of each row; of a bias, of each weight."
    square = grad ** 2
    if square.ndim > 1: square = square.mean(1, keepdim=True)
    state["sqr_avg"] = sqr_beta * state.get("sqr_avg", 0.) + (1 - sqr_beta) * square


def rows_by_hand(_starts, _grads, _rates, sqr_beta=.99):
    "The average as a sum over all gradients so far, row by row."
    found, ws = {}, list(_starts)
    for i, lr in enumerate(_rates, 1):
        for j, w in enumerate(ws):
            average, seen = torch.zeros_like(w), [grads[j] for grads in _grads[:i]]
            for age, g in enumerate(reversed(seen)):
                for row in range(len(w)):
                    mean_square = g[row] @ g[row] / g.shape[1] if w.ndim > 1 else g[row] ** 2
                    average[row] += (1 - sqr_beta) * sqr_beta ** age * mean_square
            ws[j] = w - lr * seen[-1] / (average ** .5 + 1e-8)
            found |= {f"weight {j} after call {i}": ws[j], f"the gradient of weight {j} after call {i}": seen[-1],
                      f"how many numbers are kept for weight {j} after call {i}": len(w)}
    return found


def run_rows(answer, _starts, _grads, _rates, **hypers):
    found = watch(lambda p, grad, state, lr: (answer(p, grad, state, **hypers), rms_prop_step(p, grad, state, lr=lr)),
                  _starts, _grads, _rates, ["sqr_avg"])
    return {name.replace("state['sqr_avg'] of", "how many numbers are kept for"): value.numel() if "sqr_avg" in name else value
            for name, value in found.items()}


def averages(square):
    "A variant: what it averages."
    def stepper(p, grad, state, *, sqr_beta=.99): fading(state, square(grad), sqr_beta, name="sqr_avg")
    return stepper


row_means = lambda x: x.mean(-1, keepdim=True) if x.ndim > 1 else x


def no_memory(p, grad, state, *, sqr_beta=.99): state["sqr_avg"] = (1 - sqr_beta) * row_means(grad ** 2)
def sums_of_rows(p, grad, state, *, sqr_beta=.99): fading(state, row_means(grad ** 2), sqr_beta, 1., "sqr_avg")


def rows_from_the_first(p, grad, state, *, sqr_beta=.99):
    if "sqr_avg" in state: fading(state, row_means(grad ** 2), sqr_beta, name="sqr_avg")
    else: state["sqr_avg"] = row_means(grad ** 2)


AVERAGE_OF_THE_ROW = Exercise(
    "04", average_of_the_row, '''
def average_of_the_row(p, grad, state, *, sqr_beta=.99):
    "The fading average of the mean square of each row; of a bias, of each weight."
                                                 # your lines
''',
    hints=("Which axis of the matrix is averaged away, and which stays? What must the shape be for the division in simple_step?",
           "[rows, columns] → [rows, 1], which broadcasts. mean(1, keepdim=True) averages over the second axis and keeps it with length 1.",
           "square = grad ** 2, and then if square.ndim > 1: …"),
    mistakes={
        "You average each column. A word has a row: average over the second axis.": averages(
            lambda g: (g ** 2).mean(0, keepdim=True) if g.ndim > 1 else g ** 2),
        "Without keepdim=True your average lies across the matrix in place of beside it, so it does not divide row by row.": averages(
            lambda g: (g ** 2).mean(-1) if g.ndim > 1 else g ** 2),
        "That is one average for the whole tensor. Each row is to have its own.": averages(lambda g: (g ** 2).mean()),
        "That is RMSProp as it was, with a number for each weight.": averages(lambda g: g ** 2),
        "You keep one number for a whole bias. There each weight is to have its own.": averages(lambda g: (g ** 2).mean(-1, keepdim=True)),
        "You square the mean, so signs cancel. Square first, then take the mean of the row.": averages(lambda g: row_means(g) ** 2),
        "You sum the squares of a row. Take their mean.": averages(
            lambda g: (g ** 2).sum(-1, keepdim=True) if g.ndim > 1 else g ** 2),
        "You keep a root mean square. simple_step takes the root, so keep the mean square.": averages(lambda g: row_means(g ** 2).sqrt()),
        "Your average forgets everything between calls.": no_memory,
        "The new mean square counts in full in your average. It should count 1 − sqr_beta.": sums_of_rows,
        "Your average begins with the first mean square. It should begin with 0, as RMSProp's does.": rows_from_the_first},
    cases=lambda rng: [ways(rng, shapes=((4, 4), (3,)), sqr_beta=(.6, .9)), ways(rng, shapes=((3, 5), (4,)), sqr_beta=(.6, .9)),
                       ways(rng, shapes=((5, 2), (2,)))],
    run=run_rows, truth=rows_by_hand,
    why="For the words it keeps 3,128 numbers in place of 93,672. Over ten seeds the loss differs from that of a stride for each "
        "weight by −0.006 [−0.015, +0.003] nats (data/strides.py): they do not tell the two apart.")

EXERCISES = [RARE_STEP, MY_RMSPROP, CENTERED_STEP, AVERAGE_OF_THE_ROW]
