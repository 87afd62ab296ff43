"""The exercises of chapter 17."""
import math
from fractions import Fraction

import torch
from torch import nn

from .core import Exercise, random_tensor

# 1. How much memory?

def fewest_ranks(n_params, gigabytes):
    "The smallest number of ranks on which weights, gradients, masters and averages fit, split among all."
    return max(1, math.ceil(16 * n_params / (gigabytes * 10 ** 9)))


def models_of_all_sizes(rng):
    "Some fit into one, some exactly into several, some miss that by a little, some need thousands."
    exact = rng.randrange(2, 9)
    cases = [{"n_params": exact * 5 * 10 ** 9, "gigabytes": 80}, {"n_params": exact * 5 * 10 ** 9 + 1, "gigabytes": 80},
             {"n_params": rng.randrange(10 ** 5, 10 ** 8), "gigabytes": rng.choice((16, 24))},
             {"n_params": 10 ** 12 + rng.randrange(10 ** 9), "gigabytes": rng.choice((16, 24, 32))}]
    return cases + [{"n_params": rng.randrange(10 ** 9, 5 * 10 ** 11), "gigabytes": rng.choice((16, 24, 40, 80, 141))} for _ in range(4)]


def by_whole_numbers(n_params, gigabytes):
    "Bytes and GPUs as whole numbers, without rounding."
    need = Fraction(16 * n_params, gigabytes * 10 ** 9)
    return {"the number of ranks": max(1, -(-need.numerator // need.denominator))}


def ranks_with(each=16, per=10 ** 9, rounded=math.ceil, least=1):
    def fewest_ranks(n_params, gigabytes): return max(least, rounded(each * n_params / (gigabytes * per)))
    return fewest_ranks


FEWEST_RANKS = Exercise(
    "17", fewest_ranks, '''
def fewest_ranks(n_params, gigabytes):
    "The smallest whole number of ranks on which stage 3 of ZeRO fits."
    return 1                                     # replace this
''',
    hints=("How many bytes does each parameter need in all, with Adam in mixed precision?",
           "Weights, gradients, masters and two averages: 2 + 2 + 4 + 4 + 4 bytes. Stage 3 splits all of them.",
           "So each of N ranks has 16 · n_params / N bytes, at most gigabytes · 10⁹. Solve it for N, and round up: math.ceil."),
    mistakes={
        "You round down. Then the last part fits nowhere.": ranks_with(rounded=math.floor),
        "You round to the nearest number. Where it is rounded down, it does not fit.": ranks_with(rounded=round),
        "You take one rank more than needed where it fits exactly.": ranks_with(rounded=lambda x: math.floor(x) + 1),
        "You count 2 bytes for each parameter: the weights alone. Gradients, masters and averages are there too.": ranks_with(each=2),
        "You count 4 bytes for each parameter: weights and gradients. Masters and Adam's averages are there too.": ranks_with(each=4),
        "You count 12 bytes for each parameter, those of the optimizer. Weights and gradients are there too.": ranks_with(each=12),
        "A gigabyte is 10⁹ bytes here, not 2³⁰.": ranks_with(per=2 ** 30),
        "Number of ranks should be a whole number. Round up.": ranks_with(rounded=lambda x: x),
        "That is stage 1: you split the optimizer's 12 bytes and leave 4 on each rank. In stage 3, all 16 are split.":
            lambda n_params, gigabytes: max(1, math.ceil(12 * n_params / max(1., gigabytes * 10 ** 9 - 4 * n_params)))},
    cases=models_of_all_sizes, run=lambda answer, **case: {"the number of ranks": answer(**case)}, truth=by_whole_numbers, tolerance=1e-12,
    why="A model that fits exactly needs no rank more, and one that is a byte too large needs one: rounding up says both. What waits for "
        "backward comes on top, so in practice one takes more.")


# 2. The gradient of the whole batch

def whole_gradient(grads, rows):
    "The gradients of the mean over all rows: each rank's, weighed by its share of the rows."
    total, whole = sum(rows), []
    for column in zip(*grads):
        parts = [grad * n / total for grad, n in zip(column, rows) if grad is not None and n > 0]
        whole.append(sum(parts) if parts else None)
    return whole


def gradients_of_ranks(rng):
    "Two to four ranks with other numbers of rows, one of them without any; parameters that took no part on some ranks, or on all."
    cases = []
    for rows in ([3, 2], [5, 1, 4], [2, 0, 6, 1], [4, 4], [1, 7, 2]):
        rng.shuffle(rows)
        grads = [[random_tensor(rng, *shape, dtype=torch.float64) for shape in ((3, 2), (4,), (2, 2), (3,))] for _ in rows]
        lacks = rng.choice([rank for rank, n in enumerate(rows) if n])
        grads[lacks][1] = None
        for mine, n in zip(grads, rows):
            mine[3] = None if len(rows) > 2 else mine[3]
            if not n: mine[:] = [None if grad is None else grad * math.nan for grad in mine]
        cases.append({"_grads": grads, "rows": rows})
    return cases


def by_fractions(_grads, rows):
    "Row by row: every row counts as one, with its rank's gradient."
    whole = []
    for column in zip(*_grads):
        each = [grad for grad, n in zip(column, rows) for _ in range(n)]
        if all(grad is None for grad, n in zip(column, rows) if n): whole.append("None")
        else: whole.append(torch.stack([torch.zeros_like(next(g for g in each if g is not None)) if g is None else g for g in each]).mean(0))
    return {f"gradient {i}": grad for i, grad in enumerate(whole)}


def look_at_whole(answer, _grads, rows):
    found = answer(_grads, rows)
    return {f"gradient {i}": "None" if grad is None else grad for i, grad in enumerate(found)}


def gradient_with(weigh=lambda rows: [n / sum(rows) for n in rows], none=lambda parts: None, missing=lambda rows, column: sum(rows),
                  skips=lambda n: n == 0):
    def whole_gradient(grads, rows):
        whole = []
        for column in zip(*grads):
            parts = [grad * weight for grad, weight, n in zip(column, weigh(rows), rows) if grad is not None and not skips(n)]
            whole.append(sum(parts) * sum(rows) / missing(rows, column) if parts else none(column))
        return whole
    return whole_gradient


def in_place(grads, rows):
    for mine, n in zip(grads, rows):
        for grad in mine:
            if grad is not None: grad *= n / sum(rows)
    return gradient_with(weigh=lambda rows: [1.] * len(rows))(grads, rows)


WHOLE_GRADIENT = Exercise(
    "17", whole_gradient, '''
def whole_gradient(grads, rows):
    "The gradients of the mean loss over all rows of all ranks, from each rank's own."
    return grads[0]                              # replace this
''',
    hints=("A rank with twice as many rows should count twice as much. What is each rank's share?",
           "Multiply each rank's gradient by its rows / sum(rows), and add them up: zip(*grads) gives the gradients of one parameter.",
           "Two cases apart: None counts as 0, and a rank without rows has NaN, and NaN times 0 is still NaN. So leave both out of the sum.",
           "Where nothing is left to add, the answer for that parameter is None."),
    mistakes={
        "That is the plain mean over ranks. Weigh each by its rows.": gradient_with(weigh=lambda rows: [1 / len(rows)] * len(rows)),
        "That is the plain mean over the ranks that have rows. Weigh each by its rows.":
            gradient_with(weigh=lambda rows: [1 / sum(n > 0 for n in rows)] * len(rows)),
        "You add the gradients and do not divide.": gradient_with(weigh=lambda rows: [1.] * len(rows)),
        "You multiply by the rows, and do not divide by their sum.": gradient_with(weigh=lambda rows: rows),
        "A rank without rows has NaN as its gradient, and 0 · NaN is NaN. Leave it out.": gradient_with(skips=lambda n: False),
        "Where no rank has a gradient, the answer is None: such a parameter took no part.": gradient_with(
            none=lambda column: torch.zeros(3, dtype=torch.float64)),
        "You divide only by the rows of those ranks that have this gradient. The others' rows count, with a gradient of 0.":
            gradient_with(missing=lambda rows, column: sum(n for n, grad in zip(rows, column) if grad is not None)),
        "You have changed the gradients that were given. Work out of place.": in_place},
    cases=gradients_of_ranks, run=look_at_whole, truth=by_fractions, tolerance=1e-10,
    why="The weight is the share of the rows, whatever the gradient is. A parameter without a gradient on one rank still counts that rank's "
        "rows: there, its gradient is 0. And NaN cannot be multiplied away.")


# 3. From the bug museum

def mended_token_loss(losses, masks):
    "The sum over all tokens that count, through their number, on all ranks."
    total = sum(loss[mask].sum() for loss, mask in zip(losses, masks))
    return total / sum(mask.sum() for mask in masks)


def sentences_of_ranks(rng):
    "Ranks with short and with long sentences, padded with NaN; in one case, a rank with padding only."
    cases = []
    for n_ranks, empty in ((2, False), (3, True), (4, False), (2, True)):
        losses, masks = [], []
        for rank in range(n_ranks):
            n, longest = rng.randrange(2, 5), rng.randrange(3, 8)
            lengths = torch.tensor([rng.randrange(1, longest + 1) for _ in range(n)])
            if empty and rank == 1: lengths[:] = 0
            mask = torch.arange(longest) < lengths[:, None]
            loss = (random_tensor(rng, n, longest, dtype=torch.float64).abs() + rank).masked_fill(~mask, math.nan)
            losses.append(loss)
            masks.append(mask)
        cases.append({"_losses": losses, "_masks": masks})
    return cases


def token_by_token(_losses, _masks):
    tokens = [x for loss, mask in zip(_losses, _masks) for x, counts in zip(loss.flatten().tolist(), mask.flatten().tolist()) if counts]
    return {"the loss": math.fsum(tokens) / len(tokens)}


def means_of(losses, masks): return [loss[mask].mean() for loss, mask in zip(losses, masks) if mask.any()]


def over_ranks(numerator=lambda loss, mask: loss[mask].sum(), count=lambda loss, mask: mask.sum()):
    def mended_token_loss(losses, masks):
        return sum(map(numerator, losses, masks)) / sum(map(count, losses, masks))
    return mended_token_loss


def of_sentences(losses, masks):
    return torch.stack([row[counts].mean() for loss, mask in zip(losses, masks) for row, counts in zip(loss, mask) if counts.any()]).mean()


MENDED_TOKEN_LOSS = Exercise(
    "17", mended_token_loss, '''
def mended_token_loss(losses, masks):            # mend this
    "The mean loss over all tokens that count, of all ranks."
    means = [loss[mask].mean() for loss, mask in zip(losses, masks)]
    return torch.stack(means).mean()
''',
    hints=("In the mean of means, how much does a token of a rank with few tokens count, compared with one of a rank with many?",
           "A mean is a sum through a number. Both can be added up over the ranks.",
           "Add up loss[mask].sum() over the ranks, and mask.sum(), and divide once, at the end."),
    mistakes={
        "That is still a mean of means, only without the ranks that have no tokens. Tokens of short sentences count for more.":
            lambda losses, masks: torch.stack(means_of(losses, masks)).mean(),
        "You weigh the ranks by their sentences. Weigh by tokens.": over_ranks(
            lambda loss, mask: loss[mask].mean().nan_to_num(0.) * len(loss), lambda loss, mask: mask.any(1).sum()),
        "You weigh each rank by its number of sentences, those without tokens included.": over_ranks(
            lambda loss, mask: loss[mask].mean().nan_to_num(0.) * len(loss), lambda loss, mask: len(loss)),
        "You take the mean of each sentence, and the mean of these. A token of a short sentence then counts for more.": of_sentences,
        "Padding counts in the number that you divide by.": over_ranks(count=lambda loss, mask: mask.numel()),
        "Padding is in your sum, and it may hold NaN. Take loss[mask]; NaN · 0 is NaN.": over_ranks(lambda loss, mask: (loss * mask).sum()),
        "That is the sum. Divide by the number of tokens that count.":
            lambda losses, masks: sum(loss[mask].sum() for loss, mask in zip(losses, masks)),
        "That is the loss of rank 0 alone.": lambda losses, masks: losses[0][masks[0]].mean()},
    cases=sentences_of_ranks, run=lambda answer, _losses, _masks: {"the loss": answer(_losses, _masks)}, truth=token_by_token, tolerance=1e-10,
    why="Sums and counts may be added up over ranks, batches and sentences, in any order; means may not. So add first and divide once. "
        "Between real ranks that is one all_reduce of the count, before backward.")


# 4. Batchnorm over ranks, from a blank page

class MySyncedNorm:
    "Batchnorm of a batch whose rows are on several ranks: counts, sums and sums of squared distances are added up."
    def __init__(self, n_features, momentum=.1, eps=1e-5):
        self.momentum, self.eps = momentum, eps
        self.running_mean, self.running_var = torch.zeros(n_features), torch.ones(n_features)

    def __call__(self, parts):
        n = sum(len(part) for part in parts)
        mean = sum(part.sum(0) for part in parts) / n
        var = sum((part - mean).square().sum(0) for part in parts) / n
        self.running_mean = self.running_mean + self.momentum * (mean - self.running_mean)
        self.running_var = self.running_var + self.momentum * (var * n / (n - 1) - self.running_var)
        return [(part - mean) / (var + self.eps).sqrt() for part in parts]


def batches_of_ranks(rng):
    "Two or three batches one after the other, whose rows lie unequally, one rank without any; one feature hardly varies, so eps counts."
    cases = []
    for all_rows in ([[5, 3], [4, 4]], [[2, 6, 1], [3, 0, 4], [1, 1, 7]], [[7, 2], [1, 6]]):
        scale, shift = torch.tensor([1., 3., .005, .5]), torch.tensor([0., 5., .2, -2.])
        batches = [[random_tensor(rng, n, 4) * scale + shift + rank for rank, n in enumerate(rows)] for rows in all_rows]
        for parts in batches:
            for rank, part in enumerate(parts): part[:, 2] -= rank
        options = {"momentum": round(rng.uniform(.05, .3), 2), "eps": rng.choice((1e-3, 1e-4))} if cases else {}  # first by default
        cases.append({**options, "_batches": batches})
    return cases


def look_at_synced(answer, _batches, **options):
    norm, found = answer(4, **options), {}
    for step, parts in enumerate(_batches, 1):
        out = norm(parts)
        found[f"how many tensors come out of batch {step}"] = len(out)
        for rank, part in enumerate(out): found[f"rank {rank} of batch {step}"] = part
        found[f"running_mean after batch {step}"], found[f"running_var after batch {step}"] = norm.running_mean, norm.running_var
    return found


class TorchsSynced:
    "torch's batchnorm on the whole batch."
    def __init__(self, n_features, momentum=.1, eps=1e-5):
        self.norm = nn.BatchNorm1d(n_features, eps, momentum, affine=False)

    def __call__(self, parts): return self.norm(torch.cat(parts)).split([len(part) for part in parts])

    @property
    def running_mean(self): return self.norm.running_mean.clone()

    @property
    def running_var(self): return self.norm.running_var.clone()


def mean_of_all(parts): return torch.cat(parts).mean(0)


def var_of_all(parts, mean): return (torch.cat(parts) - mean).square().mean(0)


def rows_in(parts): return sum(map(len, parts))


def filled(parts): return [part for part in parts if len(part)]


def synced_with(mean=mean_of_all, var=var_of_all, unbiased=lambda var, n: var * n / (n - 1), kept=lambda old, new, m: (1 - m) * old + m * new,
                out=lambda x, mean, var, eps: (x - mean) / (var + eps).sqrt(), moves=(True, True), first=(0., 1.)):
    class MySyncedNorm:
        def __init__(self, n_features, momentum=.1, eps=1e-5):
            self.momentum, self.eps = momentum, eps
            self.running_mean, self.running_var = torch.full((n_features,), first[0]), torch.full((n_features,), first[1])

        def __call__(self, parts):
            m, n = mean(parts), rows_in(parts)
            v = var(parts, m)
            if moves[0]: self.running_mean = kept(self.running_mean, m, self.momentum)
            if moves[1]: self.running_var = kept(self.running_var, unbiased(v, n), self.momentum)
            return [out(part, m, v, self.eps) for part in parts]
    return MySyncedNorm


class EachByItself:
    "Every rank's own statistics; the running ones are the means of those."
    def __init__(self, n_features, momentum=.1, eps=1e-5):
        self.momentum, self.eps = momentum, eps
        self.running_mean, self.running_var = torch.zeros(n_features), torch.ones(n_features)

    def __call__(self, parts):
        whole = mean_of_all(parts)
        n = rows_in(parts)
        self.running_mean = self.running_mean + self.momentum * (whole - self.running_mean)
        self.running_var = self.running_var + self.momentum * (var_of_all(parts, whole) * n / (n - 1) - self.running_var)
        return [(part - part.mean(0)) / ((part - part.mean(0)).square().mean(0) + self.eps).sqrt() for part in parts]


MY_SYNCED_NORM = Exercise(
    "17", MySyncedNorm, '''
class MySyncedNorm:
    "Batchnorm whose statistics are those of all ranks' rows together."
    def __init__(self, n_features, momentum=.1, eps=1e-5): pass

    def __call__(self, parts): return parts      # replace this
''',
    hints=("What does each rank have to tell the others, so that all know the mean of all rows? Two things.",
           "The mean: the sums of all ranks, added, through the number of all rows. A rank without rows adds 0.",
           "The variance: once the mean is known, add up the squared distances from it, and divide by the number of all rows.",
           "Each part becomes (part − mean) / √(var + eps). The running averages move by momentum · (new − old), and for the running variance "
           "the new one is multiplied by n / (n − 1)."),
    mistakes={
        "Each rank is normalized with its own mean and variance. Take those of all rows.": EachByItself,
        "You take the mean of the ranks' means. Ranks with few rows then count for too much.":
            synced_with(mean=lambda parts: torch.stack([part.mean(0) for part in filled(parts)]).mean(0)),
        "You take the mean of the ranks' variances. The ranks' means differ, too, and that is part of the variance.":
            synced_with(var=lambda parts, mean: sum(len(p) * p.var(0, unbiased=False) for p in filled(parts)) / rows_in(parts)),
        "You normalize with the unbiased variance. In the batch, divide by n; n − 1 is for the running one.":
            synced_with(var=lambda parts, mean: torch.cat(parts).var(0), unbiased=lambda var, n: var),
        "The running variance should move towards the unbiased one, divided by n − 1.": synced_with(unbiased=lambda var, n: var),
        "eps belongs inside the root: √(var + eps).": synced_with(out=lambda x, mean, var, eps: (x - mean) / (var.sqrt() + eps)),
        "You leave out eps.": synced_with(out=lambda x, mean, var, eps: (x - mean) / var.sqrt()),
        "You divide by the variance. Divide by its root.": synced_with(out=lambda x, mean, var, eps: (x - mean) / (var + eps)),
        "You do not subtract the mean.": synced_with(out=lambda x, mean, var, eps: x / (var + eps).sqrt()),
        "Momentum is the share of the new values, not of the old ones.": synced_with(kept=lambda old, new, m: m * old + (1 - m) * new),
        "The running averages do not move.": synced_with(moves=(False, False)),
        "The running mean does not move.": synced_with(moves=(False, True)),
        "The running variance does not move.": synced_with(moves=(True, False)),
        "The running variance begins as 0. It should begin as 1.": synced_with(first=(0., 0.))},
    cases=batches_of_ranks, run=look_at_synced, truth=lambda **case: look_at_synced(TorchsSynced, **case),
    instead=("torch.nn.functional.batch_norm",),
    why="Counts, sums and squared distances may be added up over ranks. Two messages, first the sums and then the distances, are more exact "
        "than one with sums and sums of squares, whose difference loses digits. In training, the gradient flows through these sums as well, "
        "so backward sends messages, too: that is what torch's SyncBatchNorm does.")

EXERCISES = [FEWEST_RANKS, WHOLE_GRADIENT, MENDED_TOKEN_LOSS, MY_SYNCED_NORM]
