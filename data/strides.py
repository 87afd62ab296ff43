"""What the strides of RMSProp are good for (chapter 04): writes data/results/strides.json.

    python data/strides.py          some minutes on one core; MNIST must be on disk

The next word by relatives of RMSProp: with one stride for each layer or each row of a matrix, with the average of
absolute values in place of squares, and AdaGrad. (RMSProp itself is in data/results/two_networks.json, for the same
seeds and batches.) The small net on images, by SGD and by RMSProp. Each tries nine rates over two seeds; at its best
one, ten other seeds say how it does. A loss is the mean of the last 30 of 300 steps, except for
- "first reading": the mean of steps 201 to 230, the last ones in which all of the text is new, at the rates of
  two_networks.json;
- "unread text": that of the last tenth of the text, after 300 steps on the rest; once at rates tuned on that
  ("tuned"), and once at those of two_networks.json ("as before").
"""
import time
from functools import partial

import torch
import torch.nn.functional as F

from course_lib import SGD, RMSProp, digits, mnist, sweep
from course_lib.data import TensorLoader
from course_lib.rmsprop import rms_prop_step
from course_lib.sgd import SmallOptimizer, Task, next_word, small_net, train
from course_lib.support.results import results, save_results

N_STEPS, TRY_SEEDS, SEEDS = 300, range(2), range(10, 20)


def average_of(size, sqr_beta=.99):
    "A stepper that keeps the average of the gradient's `size`."
    def average(p, grad, state): state["sqr_avg"] = sqr_beta * state.get("sqr_avg", 0.) + (1 - sqr_beta) * size(grad)
    return average


def sum_sqr_grad(p, grad, state): state["sqr_avg"] = state.get("sqr_avg", 0.) + grad.square()
def abs_step(p, grad, state, *, lr, eps=1e-8): p -= lr * grad / (state["sqr_avg"] + eps)


RELATIVES = {  # steppers, and the range of rates by powers of ten; a row of both tables belongs to a word
    "each layer": ([average_of(lambda grad: grad.square().mean()), rms_prop_step], (-4, -1.5)),
    "each row": ([average_of(lambda grad: grad.square().mean(-1, keepdim=True) if grad.ndim > 1 else grad.square()),
                  rms_prop_step], (-4, -1.5)),
    "absolute values": ([average_of(torch.abs), abs_step], (-4, -1.5)),
    "AdaGrad": ([sum_sqr_grad, rms_prop_step], (-2.5, 0)),
}


def next_word_by(steppers, lrs, seeds):
    "Final losses `[lrs, seeds]`."
    make = lambda lr: lambda params: SmallOptimizer(params, steppers, lr=lr)
    return torch.stack([torch.stack([train(next_word(seed=seed), make(lr), N_STEPS)[-30:].mean() for seed in seeds])
                        for lr in lrs])


def first_reading(opt_func, lr):
    "The losses of steps 201 to 230, `[seeds]`; the 231st batch begins the text anew."
    assert len(next_word().loader) == 230
    return [round(train(next_word(seed=seed), partial(opt_func, lr=lr), 230)[-30:].mean().item(), 5) for seed in SEEDS]


def unread(opt_func, lrs, seeds):
    "Losses `[lrs, seeds]` of the last tenth of the text after 300 steps on the rest."
    def one(lr, seed):
        model, loader, loss_func = next_word(seed=seed)
        x, y = loader.x, loader.y
        n = len(y) * 9 // 10
        rest = TensorLoader(x[:n], y[:n], 256, shuffle=True, drop_last=True)
        train(Task(model, rest, loss_func), partial(opt_func, lr=lr), N_STEPS)
        with torch.no_grad(): return loss_func(model(x[n + 3:]), y[n + 3:])  # no word of these windows was a target
    return torch.stack([torch.stack([one(lr, seed) for seed in seeds]) for lr in lrs])


def small_net_with(opt_func, train_set, lrs, seeds):
    "Final losses `[lrs, seeds]`."
    loader = TensorLoader(train_set.x, train_set.y, 64, shuffle=True, drop_last=True, seed=1)
    return sweep(small_net(), F.cross_entropy, opt_func, loader, N_STEPS, {"lr": lrs, "seed": seeds}).final()


def measure(final, exponents):
    "One entry of the file. final: rates, seeds -> losses `[rates, seeds]`."
    lrs = torch.logspace(*exponents, 9)
    by_lr = final(lrs.tolist(), TRY_SEEDS).mean(1).nan_to_num(torch.inf)
    best = by_lr.argmin().item()
    assert 0 < best < len(lrs) - 1, "the best rate stands at the edge of the range: widen it"
    judged = final([lrs[best].item()], SEEDS)[0]
    print(f"  {lrs[best]:.3g}: {judged.mean():.4f}", flush=True)
    return {"lrs": [float(f"{lr:.3g}") for lr in lrs.tolist()],
            "by_lr": [round(loss, 4) if loss < torch.inf else None for loss in by_lr.tolist()],
            "lr": float(f"{lrs[best]:.6g}"), "final": [round(loss, 5) for loss in judged.tolist()]}


def main():
    torch.set_num_threads(1)
    start, found = time.perf_counter(), {}
    found["next word"] = {name: measure(partial(next_word_by, steppers), exponents)
                          for name, (steppers, exponents) in RELATIVES.items()}
    best = {name: (opt_func, results("two_networks")["next word"][name]["lr"])
            for name, opt_func in (("SGD", SGD), ("RMSProp", RMSProp))}
    found["first reading"] = {name: first_reading(*how) for name, how in best.items()}
    found["unread text"] = {
        "tuned": {name: measure(partial(unread, opt_func), exponents)
                  for name, opt_func, exponents in (("SGD", SGD, (-1, 1.5)), ("RMSProp", RMSProp, (-4, -1.5)))},
        "as before": {name: [round(loss, 5) for loss in unread(opt_func, [lr], SEEDS)[0].tolist()]
                      for name, (opt_func, lr) in best.items()}}
    for data_name, data in (("mnist", mnist(device="cpu")), ("digits", digits(device="cpu"))):
        found[f"small net of {data_name}"] = {
            name: measure(partial(small_net_with, opt_func, data.train), exponents)
            for name, opt_func, exponents in (("SGD", SGD, (-2, .25)), ("RMSProp", RMSProp, (-4, -1.5)))}
    how = (f"rates tried with seeds {TRY_SEEDS[0]} to {TRY_SEEDS[-1]}, "
           f"judged with seeds {SEEDS[0]} to {SEEDS[-1]}")
    save_results("strides", found, start, how)


if __name__ == "__main__": main()
