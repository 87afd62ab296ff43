"""The exercises of chapter 14."""
import math

import numpy as np
import torch
from torch import nn

from .core import Exercise, random_tensor

# 1. What is lost?

def share_lost(grads, scale):
    "The share of the gradients other than 0 that is 0 or infinite in float16, after multiplication by scale."
    grads = grads[grads != 0]
    scaled = (grads * scale).to(torch.float16)
    return ((scaled == 0) | scaled.isinf()).float().mean().item()


def grads_of_all_sizes(rng):
    "A third or so of them 0, as behind a ReLU; the others from far below float16's smallest number to far above its largest."
    cases = []
    for scale, middle in ((1., -20), (2. ** 10, -30), (2. ** 16, -8), (2. ** -8, -16), (1024., 0)):
        exponents = torch.tensor([rng.uniform(middle - 14, middle + 14) for _ in range(400)])
        grads = random_tensor(rng, 400).sign() * 2 ** exponents
        grads[torch.tensor([rng.random() < .3 for _ in range(400)])] = 0
        cases.append({"_grads": grads.view(20, 20), "scale": scale})
    return cases


def by_numpys_thresholds(_grads, scale):
    "float16 rounds to 0 what is at most half its smallest number, 2^-24, and to infinity what is at least 65,520."
    sizes = np.abs(_grads.numpy().astype(np.float64)[_grads.numpy() != 0]) * scale
    return {"the share": float(((sizes <= 2. ** -25) | (sizes >= 65_520)).mean())}


def lost_with(of=lambda grads: grads[grads != 0], scaled=lambda grads, scale: (grads * scale).half(),
              lost=lambda x: (x == 0) | x.isinf()):
    def share_lost(grads, scale): return lost(scaled(of(grads), scale)).float().mean().item()
    return share_lost


SHARE_LOST = Exercise(
    "14", share_lost, '''
def share_lost(grads, scale):
    "The share of the gradients other than 0 that is lost in float16, multiplied by scale before."
    return 0.                                    # replace this
''',
    hints=("Which gradients count at all? And at which two ends does float16 lose a number?",
           "Take those that are not 0, multiply them by scale in float32, and convert: .to(torch.float16).",
           "Lost are those that are then 0, and those that are infinite. The mean of a tensor of True and False, as floats, is a share."),
    mistakes={
        "Gradients that were 0 before have not been lost. Take the share of those that are not 0.": lost_with(of=lambda grads: grads),
        "Your share is one of all gradients. It should be one of those that were not 0 before.":
            lambda grads, scale: (lost_with()(grads, scale) * (grads != 0).float().mean()).item(),
        "Those that become infinite are lost as well.": lost_with(lost=lambda x: x == 0),
        "Those that become 0 are lost as well.": lost_with(lost=torch.isinf),
        "You have left out the scale.": lost_with(scaled=lambda grads, scale: grads.half()),
        "You convert first and multiply afterwards. What is 0 by then stays 0: multiply first.":
            lost_with(scaled=lambda grads, scale: grads.half() * scale),
        "You divide by the scale. The gradients of a loss that is multiplied are multiplied too.":
            lost_with(scaled=lambda grads, scale: (grads / scale).half()),
        "That is the share that is kept.": lost_with(lost=lambda x: (x != 0) & x.isfinite()),
        "That is bfloat16, which has float32's range and loses next to nothing here. Asked is float16.":
            lost_with(scaled=lambda grads, scale: (grads * scale).bfloat16()),
        "You count the numbers below 2^-14 as lost. Float16 keeps them with fewer digits, down to 2^-24.":
            lost_with(lost=lambda x: (x.abs() < 2. ** -14) | x.isinf()),
        "That is how many are lost. Asked is their share.": lambda grads, scale: lost_with()(grads, scale) * (grads != 0).sum().item()},
    cases=grads_of_all_sizes, run=lambda answer, _grads, scale: {"the share": answer(_grads, scale)}, truth=by_numpys_thresholds,
    why="The multiplication has to come before the conversion, in float32: what float16 has rounded to 0 no factor brings back. What "
        "becomes infinite is lost too, and costs the whole step.")


# 2. Clip a list

def my_clip(grads, limit):
    "Clip a list of gradients in place so that their common norm is at most limit; gives the norm before."
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    factor = (limit / norm).clamp(max=1)         # where the norm is 0: inf, and then 1
    for grad in grads: grad *= factor
    return norm


SHAPES = (4, 3), (3,), (2, 2, 2)


def lists_of_grads(rng):
    cases = []
    for size, limit in ((3., round(rng.uniform(.5, 2), 2)), (.1, round(rng.uniform(2, 4), 2)), (1., .01), (0., 1.)):
        cases.append({"_grads": [size * random_tensor(rng, *shape) for shape in SHAPES], "limit": limit})
    return cases


def look_at_clipped(answer, _grads, limit):
    grads = [grad.clone() for grad in _grads]
    same_ones = list(grads)
    norm = answer(grads, limit)
    return {"the norm before": norm, **{f"gradient {n}, afterwards": grad for n, grad in enumerate(same_ones)}}


def by_torchs_clipping(_grads, limit):
    params = [nn.Parameter(torch.zeros_like(grad)) for grad in _grads]
    for param, grad in zip(params, _grads): param.grad = grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(params, limit)
    return {"the norm before": norm.item(), **{f"gradient {n}, afterwards": param.grad for n, param in enumerate(params)}}


def norm_of(grads): return torch.cat([grad.flatten() for grad in grads]).norm()


def clip_with(norm=norm_of, factor=lambda limit, norm: min(1., limit / (norm.item() + 1e-6)), answer=lambda before, grads: before):
    def my_clip(grads, limit):
        before = norm(grads)
        for grad in grads: grad.mul_(factor(limit, before))
        return answer(before, grads)
    return my_clip


def each_by_itself(grads, limit):
    before = norm_of(grads)
    for grad in grads: clip_with()([grad], limit)
    return before


def by_value(grads, limit):
    before = norm_of(grads)
    for grad in grads: grad.clamp_(-limit, limit)
    return before


def out_of_place(grads, limit):
    norm = norm_of(grads)
    for n, grad in enumerate(grads): grads[n] = grad * min(1., limit / (norm.item() + 1e-6))
    return norm


MY_CLIP = Exercise(
    "14", my_clip, '''
def my_clip(grads, limit):
    "Clip a list of gradients in place to a common norm of at most limit; gives the norm before."
    return 0.                                    # replace this, and change the gradients
''',
    hints=("All gradients together are one long vector. How long is it?",
           "The square of the common norm is the sum of the squares of all entries: the norm of the norms.",
           "Multiply each gradient by min(1, limit / norm), in place: grad.mul_(factor) or grad *= factor. Think of a norm of 0."),
    mistakes={
        "You clip each tensor by its own norm. That changes the direction; all get one factor, from their common norm.": each_by_itself,
        "Gradients that are shorter than the limit are made longer. Leave them alone: the factor is at most 1.":
            clip_with(factor=lambda limit, norm: limit / (norm.item() + 1e-6)),
        "You give the norm after clipping. Asked is the one before.": clip_with(answer=lambda before, grads: norm_of(grads)),
        "You add the norms of the tensors. Add their squares, and take the root.": clip_with(norm=lambda grads: sum(grad.norm() for grad in grads)),
        "That is the square of the norm. Take the root.": clip_with(norm=lambda grads: sum(grad.square().sum() for grad in grads)),
        "That is the largest norm of a tensor, not the one of all together.": clip_with(norm=lambda grads: max(grad.norm() for grad in grads)),
        "That is the largest entry, not the norm.": clip_with(norm=lambda grads: max(grad.abs().max() for grad in grads)),
        "You clip by value: each entry by itself. Here all are multiplied by one factor.": by_value,
        "The tensors that were given have not changed. Change them in place, as in grad *= factor.": out_of_place,
        "Gradients of 0 become NaN. Their norm is 0: keep 0 / 0 out of the factor.": clip_with(factor=lambda limit, norm: (
            norm.clamp(max=limit) / norm))},
    cases=lists_of_grads, run=look_at_clipped, truth=by_torchs_clipping,
    instead=("torch.nn.utils.clip_grad_norm_", "torch.nn.utils.clip_grad.clip_grad_norm_", "torch.nn.utils.get_total_norm"),
    why="One factor for all keeps the direction. PyTorch divides by norm + 10⁻⁶, so that a norm of 0 does no harm; as a tensor, limit / 0 is "
        "infinite, which the clamp turns into 1.")


# 3. From the bug museum

def mended_agc(weight, grad, clip):
    "The gradient of weight `[n, m]`: each row at most clip times as long as the weight's row, which counts as 0.001 at least."
    weight_norm = weight.norm(dim=1, keepdim=True).clamp(min=1e-3)
    grad_norm = grad.norm(dim=1, keepdim=True)
    return grad * (clip * weight_norm / grad_norm).clamp(max=1)


def rows_of_all_sizes(rng):
    "Rows of the weight: ordinary, 0, below the floor, large. Gradients: large, small, 0."
    cases = []
    for n_cols, clip in ((5, .01), (6, round(rng.uniform(.05, .3), 2)), (9, round(rng.uniform(.5, .9), 2))):
        sizes = torch.tensor([1., 0., 2e-4, 30., 1., 0., 0., 2e-3, .02, 1., 2e-3], dtype=torch.float64)
        lengths = torch.tensor([2., 1., .5, .1, 1e-4, 1e-6, 0., 1., 3., 40., 1e-4], dtype=torch.float64)
        weight, grad = (random_tensor(rng, 11, n_cols, dtype=torch.float64) for _ in range(2))
        weight, grad = (x / x.norm(dim=1, keepdim=True) * size[:, None] for x, size in ((weight, sizes), (grad, lengths)))
        cases.append({"_weight": weight, "_grad": grad, "clip": clip})
    return cases


def by_the_papers_formula(_weight, _grad, clip):
    "Row by row, in plain numbers."
    rows = []
    for w, g in zip(_weight.tolist(), _grad.tolist()):
        longest, length = clip * max(math.hypot(*w), 1e-3), math.hypot(*g)
        rows.append([x * longest / length for x in g] if length > longest else g)
    return {"the gradient": torch.tensor(rows, dtype=torch.float64)}


def row_norm(x): return x.norm(dim=1, keepdim=True)


def agc_with(weight_norm=lambda w: row_norm(w).clamp(min=1e-3), grad_norm=row_norm, longest=lambda clip, norm: clip * norm,
             factor=lambda longest, norm: (longest / norm).nan_to_num(nan=1.).clamp(max=1)):
    def mended_agc(weight, grad, clip): return grad * factor(longest(clip, weight_norm(weight)), grad_norm(grad))
    return mended_agc


def unclipped_at_zero(weight, grad, clip):
    return torch.where(row_norm(weight) > 0, agc_with(row_norm)(weight, grad, clip), grad)


MENDED_AGC = Exercise(
    "14", mended_agc, '''
def mended_agc(weight, grad, clip):              # mend this
    "The gradient [n, m], each row clipped to clip times the norm of the weight's row."
    weight_norm = weight.norm(dim=1, keepdim=True)
    grad_norm = grad.norm(dim=1, keepdim=True)
    return grad * (clip * weight_norm / grad_norm).nan_to_num(nan=1.).clamp(max=1)
''',
    hints=("How long may the gradient of a row of zeros be? What will that row be after the step, and after a thousand?",
           "The paper takes max(‖W‖, 0.001) in the place of ‖W‖, row by row.",
           "weight_norm.clamp(min=1e-3) is that maximum."),
    mistakes={
        "A row of zeros still gets a gradient of 0, so it never moves. The norm of the weight's row needs a floor.":
            agc_with(lambda w: row_norm(w).clone()),
        "You have put the floor below the gradient's norm. It is the weight's that must not count as 0.":
            agc_with(row_norm, lambda g: row_norm(g).clamp(min=1e-3)),
        "You add the floor to each norm. Only norms that are smaller than it are raised: take the maximum.": agc_with(lambda w: row_norm(w) + 1e-3),
        "The floor comes before the multiplication by clip: clip · max(‖W‖, 0.001).":
            agc_with(row_norm, longest=lambda clip, norm: (clip * norm).clamp(min=1e-3)),
        "The floor is 0.001. Yours is so small that rows of zeros hardly move.": agc_with(lambda w: row_norm(w).clamp(min=1e-6)),
        "Rows of zeros are not clipped at all now. Their limit is clip · 0.001.": unclipped_at_zero,
        "You take one norm for the whole weight. Each row has its own.":
            agc_with(lambda w: w.norm().clamp(min=1e-3), lambda g: g.norm()),
        "You take the norms of columns. Each row, one output, has its own.":
            agc_with(lambda w: w.norm(dim=0).clamp(min=1e-3), lambda g: g.norm(dim=0)),
        "Rows whose gradient is shorter than the limit are made longer. The factor is at most 1.":
            agc_with(factor=lambda longest, norm: (longest / norm).nan_to_num(nan=1., posinf=1.)),
        "A row whose gradient is 0 becomes NaN. Keep its factor at 1.":
            agc_with(factor=lambda longest, norm: torch.minimum(norm, longest) / norm)},
    cases=rows_of_all_sizes, run=lambda answer, _weight, _grad, clip: {"the gradient": answer(_weight, _grad, clip)},
    truth=by_the_papers_formula, tolerance=1e-9,
    why="A row of zeros has the norm 0, and clip · 0 allows no step away from it: not now, and not later. With the floor the limit is never "
        "below clip · 0.001. (With it, 0 / 0 cannot happen either, so nan_to_num has nothing left to do.)")


# 4. A loss scaler from a blank page

class MyScaler:
    "Multiplies a loss, takes the factor out of the gradients, skips steps that are not finite, and adapts the factor."
    def __init__(self, init, growth, backoff, interval):
        self.factor, self.growth, self.backoff, self.interval = init, growth, backoff, interval
        self.n_good = 0

    def scale(self, loss): return loss * self.factor

    def step(self, opt):
        grads = [p.grad for group in opt.param_groups for p in group["params"] if p.grad is not None]
        for grad in grads: grad /= self.factor
        self.made = all(grad.isfinite().all() for grad in grads)
        if self.made: opt.step()
        return self.made

    def update(self):
        self.n_good = self.n_good + 1 if self.made else 0
        if not self.made: self.factor *= self.backoff
        if self.n_good == self.interval: self.factor, self.n_good = self.factor * self.growth, 0


def scaler_cases(rng):
    "Good steps, one bad, good ones until the scale has grown twice, two bad, one good. Bad: (which parameter, what its gradient holds)."
    cases = []
    for interval in (2, 3):
        bad = [(0, math.inf), (1, math.nan), (1, -math.inf)]
        rng.shuffle(bad)
        steps = [None] * (interval - 1) + bad[:1] + [None] * (2 * interval + 1) + bad[1:] + [None]
        cases.append({"init": 2. ** rng.randrange(3, 12), "growth": rng.choice((2., 4.)), "backoff": rng.choice((.5, .25)), "interval": interval,
                      "_bad": steps, "_weights": [random_tensor(rng, 3), random_tensor(rng, 2, 2)]})
    return cases


def look_at_scaler(answer, _bad, _weights, **options):
    params = [nn.Parameter(weight.clone()) for weight in _weights]
    unused = nn.Parameter(torch.ones(2))         # never has a gradient
    opt = torch.optim.SGD([{"params": [params[0], unused]}, {"params": params[1:], "lr": .02}], lr=.05, momentum=.9)
    scaler = answer(**options)
    losses, made, weights, grads, factors = [], [], [], [], []
    for bad in _bad:
        opt.zero_grad()
        loss = sum((param - 1).square().sum() for param in params)
        scaled = scaler.scale(loss)
        losses.append((scaled / loss).item())
        scaled.backward()
        if bad: params[bad[0]].grad.view(-1)[1] = bad[1]
        made.append(scaler.step(opt))
        grads += [param.grad.clone() for param in params] if not bad else []
        weights += [param.detach().clone() for param in params]
        scaler.update()
        factors.append(scaler.scale(torch.ones(())).item())
    return {"what the loss is multiplied by, step by step": losses, "what step returns": made, "the weights after each step": weights,
            "the gradients after each step": grads, "the scale after each update": factors, "the parameter without a gradient": unused.detach()}


class TorchsScaler:
    "torch.amp.GradScaler; a hook on the optimizer sees whether the step is made."
    def __init__(self, init, growth, backoff, interval):
        self.scaler = torch.amp.GradScaler("cpu", init, growth, backoff, interval)

    def scale(self, loss): return self.scaler.scale(loss)

    def step(self, opt):
        made = []
        handle = opt.register_step_post_hook(lambda *_: made.append(True))
        self.scaler.step(opt)
        handle.remove()
        return bool(made)

    def update(self): self.scaler.update()


def by_torchs_scaler(**case): return look_at_scaler(TorchsScaler, **case)


def grads_of(opt): return [p.grad for group in opt.param_groups for p in group["params"] if p.grad is not None]


def scaler_with(name, method): return type("MyScaler", (MyScaler,), {name: method})


def step_with(finite=lambda grads: all(grad.isfinite().all() for grad in grads), divide=lambda grad, factor: grad.div_(factor),
              returns=lambda made: made, makes=lambda made, opt: made):
    def step(self, opt):
        grads = grads_of(opt)
        for grad in grads: divide(grad, self.factor)
        self.made = bool(finite(grads))
        if makes(self.made, opt): opt.step()
        return returns(self.made)
    return scaler_with("step", step)


def without_the_bad_one(made, opt):
    "Leave out the parameters whose gradient is not finite, and step with the others."
    for p in (p for group in opt.param_groups for p in group["params"]):
        if p.grad is not None and not p.grad.isfinite().all(): p.grad = None
    return True


def with_zeros(made, opt):
    if not made:
        for grad in grads_of(opt): grad.zero_()
    return True


def update_with(count=lambda self: self.n_good + 1 if self.made else 0, grows=lambda self: self.n_good == self.interval,
                backs=lambda self: not self.made, after=0):
    def update(self):
        self.n_good = count(self)
        if backs(self): self.factor *= self.backoff
        if grows(self):
            self.factor *= self.growth
            self.n_good = self.n_good if after is None else after
    return scaler_with("update", update)


MY_SCALER = Exercise(
    "14", MyScaler, '''
class MyScaler:
    "Multiplies a loss by a factor, and skips the steps whose gradients are not finite."
    def __init__(self, init, growth, backoff, interval): pass

    def scale(self, loss): return loss           # replace this,

    def step(self, opt): opt.step()              # and this: divide, look, step or skip; tell which

    def update(self): pass                       # and this
''',
    hints=("What do the three methods have to know of each other? Keep it in self: the factor, and what else?",
           "The gradients are p.grad of each p in group[\"params\"] of each group in opt.param_groups; some are None. Divide all of "
           "them by the factor, in place.",
           "If all are finite, call opt.step() and return True. One that is inf or NaN is enough to skip the whole step and return False.",
           "update: after a skipped step the factor is multiplied by backoff and the count of good steps begins anew; after `interval` good "
           "steps in a row it's multiplied by growth, and the count begins anew as well."),
    mistakes={
        "The gradients still have the factor in them. Divide them by it before the step.": step_with(divide=lambda grad, factor: grad),
        "You multiply the gradients by the factor once more. Divide.": step_with(divide=lambda grad, factor: grad.mul_(factor)),
        "Steps with inf or NaN are made. One such gradient spoils its weights for good.": step_with(makes=lambda made, opt: True),
        "You leave out the parameter whose gradient is bad, and step with the others. The whole step is to be skipped.":
            step_with(makes=without_the_bad_one),
        "You make the gradients 0 and call the step. Momentum moves the weights all the same: don't call opt.step().": step_with(makes=with_zeros),
        "NaN is not noticed. It's neither 0 nor infinite: ask isfinite().":
            step_with(finite=lambda grads: not any(grad.isinf().any() for grad in grads)),
        "You look at the first gradient only. Any of them may be the bad one.": step_with(finite=lambda grads: grads[0].isfinite().all()),
        "You look at the last gradient only. Any of them may be the bad one.": step_with(finite=lambda grads: grads[-1].isfinite().all()),
        "step should return True if the step was made. Yours says whether it was skipped.": step_with(returns=lambda made: not made),
        "step does what it should, but does not tell. Return True if the step was made, else False.": step_with(returns=lambda made: None),
        "The factor never grows.": update_with(grows=lambda self: False),
        "The factor stays after a skipped step. Multiply it by backoff.": update_with(backs=lambda self: False),
        "The factor grows after each good step. It should after `interval` of them in a row.": update_with(grows=lambda self: self.made),
        "A skipped step does not begin the count anew. `interval` good steps in a row are asked for.":
            update_with(count=lambda self: self.n_good + self.made, grows=lambda self: self.made and self.n_good == self.interval),
        "A skipped step counts as a good one.": update_with(count=lambda self: self.n_good + 1),
        "After growing, the count goes on, and the factor grows only once.": update_with(after=None),
        "After growing, the count goes on, and each good step makes the factor grow again. Begin anew.":
            update_with(grows=lambda self: self.made and self.n_good >= self.interval, after=None),
        "It grows one good step too late.": update_with(grows=lambda self: self.n_good > self.interval),
        "After growing, the count begins at 1. Begin at 0.": update_with(after=1)},
    cases=scaler_cases, run=look_at_scaler, truth=by_torchs_scaler,
    instead=("torch.amp.GradScaler.scale", "torch.amp.GradScaler.unscale_", "torch.amp.GradScaler.step", "torch.amp.GradScaler.update"),
    why="Everything hangs on one question, asked once a step: are all gradients finite? PyTorch's scaler asks it on the GPU and lets the CPU "
        "wait for the answer only once. Yours waits once a parameter.")

EXERCISES = [SHARE_LOST, MY_CLIP, MENDED_AGC, MY_SCALER]
