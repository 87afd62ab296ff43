"""The exercises of chapter 12."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from .core import Exercise, random_tensor

# 1. How much decay?

def decay_for(share, n_steps, lr):
    "The weight_decay, as PyTorch means it, that leaves this share of a weight after n steps without a gradient."
    return (1 - share ** (1 / n_steps)) / lr


def decay_cases(rng):
    return [{"share": round(rng.uniform(.2, .8), 2), "n_steps": rng.randrange(2, 12), "lr": round(rng.uniform(.1, .4), 2)} for _ in range(4)]


def decay_by_search(share, n_steps, lr):
    "Halve the interval until a weight of 1 is left with that share."
    low, high = 0., 1 / lr
    for _ in range(60):
        middle, weight = (low + high) / 2, 1.
        for _ in range(n_steps): weight -= lr * middle * weight
        low, high = (middle, high) if weight > share else (low, middle)
    return {"the weight_decay": low}


DECAY_FOR = Exercise(
    "12", decay_for, '''
def decay_for(share, n_steps, lr):
    "The weight_decay, as PyTorch means it, that leaves this share of a weight after n steps."
    return 0.                                    # replace this
''',
    hints=("What does one step leave of the weight, and what do n of them leave?",
           "share = (1 − lr · weight_decay)^n_steps. Solve it for weight_decay.",
           "The n-th root of the share is share ** (1 / n_steps)."),
    mistakes={
        "That is the paper's number, which does not know the rate. PyTorch's is multiplied by lr in each step, so divide by it.":
            lambda share, n_steps, lr: 1 - share ** (1 / n_steps),
        "You multiply by lr. PyTorch does that already, so divide.": lambda share, n_steps, lr: (1 - share ** (1 / n_steps)) * lr,
        "You take the same amount away in each step. Each step takes a share of what is left.": lambda share, n_steps, lr: (1 - share) / (n_steps * lr),
        "That is the limit of many small steps, with e to the power of −lr · weight_decay. Each step leaves exactly 1 − lr · weight_decay.":
            lambda share, n_steps, lr: -math.log(share) / (n_steps * lr),
        "You have taken share for what is gone. It is what is left.": lambda share, n_steps, lr: (1 - (1 - share) ** (1 / n_steps)) / lr,
        "That is what a step leaves, over lr. What does it take away?": lambda share, n_steps, lr: share ** (1 / n_steps) / lr},
    cases=decay_cases, run=lambda answer, **case: {"the weight_decay": answer(**case)}, truth=decay_by_search,
    why="Each step leaves 1 − lr · weight_decay of the weight, so n of them leave the n-th power of it. The n-th root of the share is "
        "what one step leaves; the rest is what it takes, and lr is PyTorch's part of that.")


# 2. As low as it goes

def smallest_loss(n_classes, a):
    "The lowest cross entropy that smoothed labels allow, whatever the network says."
    label, other = 1 - a + a / n_classes, a / n_classes
    return -label * math.log(label) - (n_classes - 1) * other * math.log(other)


def loss_cases(rng):
    return [{"n_classes": n, "a": round(rng.uniform(.05, .95), 2)} for n in rng.sample(range(3, 20), 4)]


def by_torchs_entropy(n_classes, a):
    shares = torch.full((n_classes,), a / n_classes, dtype=torch.float64)
    shares[0] += 1 - a
    return {"the lowest loss": torch.distributions.Categorical(probs=shares).entropy().item()}


def entropy_of(label, other, n_others, log=math.log): return -label * log(label) - n_others * other * log(other)


SMALLEST_LOSS = Exercise(
    "12", smallest_loss, '''
def smallest_loss(n_classes, a):
    "The lowest cross entropy that smoothed labels allow, for 0 < a < 1."
    return 0.                                    # replace this
''',
    hints=("Which probabilities should the network give, so that the cross entropy with the smoothed label is lowest?",
           "Exactly the label's own shares. The cross entropy of shares with themselves is − Σ t log t, their entropy.",
           "One share is 1 − a + a/K, and K − 1 of them are a/K."),
    mistakes={
        "That is the term of the label's own class. The others ask for something too.":
            lambda n_classes, a: -(label := 1 - a + a / n_classes) * math.log(label),
        "That is −log of the label's share. The loss weighs each class's log by its share, and sums over all of them.":
            lambda n_classes, a: -math.log(1 - a + a / n_classes),
        "You count the other classes once too often: one of the n is the label's own.":
            lambda n_classes, a: entropy_of(1 - a + a / n_classes, a / n_classes, n_classes),
        "You count one of the other classes only. There are n_classes − 1 of them.":
            lambda n_classes, a: entropy_of(1 - a + a / n_classes, a / n_classes, 1),
        "The label gets a share of what is spread, too: 1 − a + a / n_classes.":
            lambda n_classes, a: entropy_of(1 - a, a / n_classes, n_classes - 1),
        "That spreads a over the others alone. Here all classes get a / n_classes, the label's too.":
            lambda n_classes, a: entropy_of(1 - a, a / (n_classes - 1), n_classes - 1),
        "That is in bits. PyTorch's cross entropy is in nats: the natural logarithm.":
            lambda n_classes, a: entropy_of(1 - a + a / n_classes, a / n_classes, n_classes - 1, math.log2),
        "That is the loss of somebody who gives each class the same chance. One can do better.": lambda n_classes, a: math.log(n_classes)},
    cases=loss_cases, run=lambda answer, **case: {"the lowest loss": answer(**case)}, truth=by_torchs_entropy,
    why="Cross entropy is lowest where the probabilities are the shares themselves, and there it is their entropy. So a training loss that "
        "stops above zero is no bad sign under label smoothing, and losses with different a cannot be compared.")


# 3. Mend the block

class MendedBlock(nn.Module):
    "A layer, its softmax, another layer; dropout after both, in training mode alone."
    def __init__(self, width, p):
        super().__init__()
        self.p, self.first, self.second = p, nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        shares = F.dropout(F.softmax(self.first(x), dim=-1), p=self.p, training=self.training)
        return F.dropout(self.second(shares), p=self.p, training=self.training)


MODES = "in training mode", "in evaluation mode", "in training mode again"


def block_cases(rng):
    found = []
    for width in rng.sample(range(5, 12), 2):
        weights = {f"{name}.{part}": random_tensor(rng, *shape) for name in ("first", "second")
                   for part, shape in (("weight", (width, width)), ("bias", (width,)))}
        found.append({"_weights": weights, "_x": random_tensor(rng, 3, 4, width), "_seed": rng.randrange(2 ** 40), "width": width,
                      "p": round(rng.uniform(.3, .7), 2)})
    return found


def look_at_block(answer, _weights, _x, _seed, width, p):
    block = answer(width, p)
    block.load_state_dict(_weights)
    found = {}
    for mode in MODES:
        block.train("training" in mode)
        torch.manual_seed(_seed)
        found[f"what it answers {mode}"] = block(_x).detach()
    return found


class OfLayers(nn.Module):
    "The same with torch's layers, which know the mode."
    def __init__(self, width, p):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.dropouts = nn.ModuleList([nn.Dropout(p), nn.Dropout(p)])

    def forward(self, x): return self.dropouts[1](self.second(self.dropouts[0](self.first(x).softmax(-1))))


def by_layers(**case): return look_at_block(OfLayers, **case)


def block_with(first=lambda block: block.training, second=lambda block: block.training, after=lambda block, out: out):
    def forward(self, x):
        shares = F.dropout(F.softmax(self.first(x), dim=-1), self.p, first(self))
        return after(self, F.dropout(self.second(shares), self.p, second(self)))
    return type("MendedBlock", (MendedBlock,), {"forward": forward})


MENDED_BLOCK = Exercise(
    "12", MendedBlock, '''
class MendedBlock(nn.Module):
    "A layer, its softmax, another layer; dropout after both, in training mode alone."
    def __init__(self, width, p):
        super().__init__()
        self.p, self.first, self.second = p, nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):                        # mend this
        shares = F.dropout(F.softmax(self.first(x), dim=-1), p=self.p)
        return F.dropout(self.second(shares), p=self.p)
''',
    hints=("Who knows whether the block is in training mode, and who has to be told?",
           "F.dropout has an argument training, which is True if you say nothing. The block's own mode is self.training."),
    mistakes={
        "The second call still drops in evaluation mode.": block_with(second=lambda block: True),
        "The first call still drops in evaluation mode.": block_with(first=lambda block: True),
        "Now nothing is dropped, in training mode either. That is p = 0, not a mended block.":
            block_with(first=lambda block: False, second=lambda block: False),
        "It drops in evaluation mode and not in training mode: the wrong way round.":
            block_with(first=lambda block: not block.training, second=lambda block: not block.training),
        "The second dropout is gone, in training mode as well.": block_with(second=lambda block: False),
        "The first dropout is gone, in training mode as well.": block_with(first=lambda block: False),
        "F.dropout divides by 1 − p in training. Then nothing is left to be multiplied by in evaluation.":
            block_with(after=lambda block, out: out if block.training else out * (1 - block.p))},
    cases=block_cases, run=look_at_block, truth=by_layers,
    why="A function cannot know the mode of the module that calls it, so it has to be told. A layer, nn.Dropout or Dropout, is told by "
        "train() and eval() along with everybody else, which is why layers are the safer choice.")


# 4. Dropout from a blank page

class MyDropout(nn.Module):
    "Dropout: in training each value is 0 with probability p, and the others are divided by 1 − p."
    def __init__(self, p=.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training: return x
        if self.p == 1: return x * 0
        return x * (torch.rand(x.shape) >= self.p) / (1 - self.p)


def dropout_cases(rng):
    # So many draws show p, rounded to a tenth; p and 1 − p differ in two of the cases.
    shares = {"p": rng.choice((.2, .3))}, {"p": rng.choice((.7, .8))}, {"p": 1.}, {"p": 0.}, {}
    return [{"_x": 1 + random_tensor(rng, 60, 80).abs(), **share} for share in shares]


def look_at_dropout(answer, _x, **options):
    layer, before, p = answer(**options), _x.clone(), options.get("p", .5)
    x = _x.requires_grad_(True)
    out = layer(x)
    masks = [out.detach() != 0, layer(x).detach() != 0]
    [grad] = torch.autograd.grad(out.sum(), x, allow_unused=True) if out.requires_grad else [None]
    scales = (out.detach() / before)[masks[0]]
    varies = {"the mask differs within a row": (masks[0] != masks[0][:, :1]).any(),
              "the mask differs from row to row": (masks[0] != masks[0][:1]).any(),
              "the mask differs from call to call": (masks[0] != masks[1]).any()}
    each = all(varies.values()) or p in (0., 1.)  # else there are too few draws to know p by
    found = {**{name: bool(differs) for name, differs in varies.items()},
             "NaN among the answers in training mode": bool(out.isnan().any()),
             "the share that is dropped, to a tenth": round(1 - masks[0].float().mean().item(), 1) if each else 0.,
             "what the others are multiplied by": scales.mean().item() if len(scales) else 0.,
             "all of them by the same": bool(len(scales) == 0 or (scales.max() - scales.min()) < 1e-4),
             "the gradient": "none" if grad is None else "is 0 where x is dropped, else the same factor"
             if torch.allclose(grad, out.detach() / before, atol=1e-5) else "is something else"}
    layer.eval()
    again = layer(x).detach()
    return found | {"in evaluation mode the answer is the input": torch.equal(again, before), "the input is as before": torch.equal(x.detach(), before),
                    "the share that is 0 in evaluation mode, to a tenth": round((again == 0).float().mean().item(), 1)}


def by_torchs_dropout(**case): return look_at_dropout(nn.Dropout, **case)


def dropout_with(scale=lambda p: 1 / (1 - p) if p < 1 else 0., keep=lambda x, p: torch.rand(x.shape) >= p, in_use=lambda x, p: x):
    def forward(self, x):
        if not self.training: return in_use(x, self.p)
        return x * keep(x, self.p) * scale(self.p)
    return type("MyDropout", (MyDropout,), {"forward": forward})


def the_same_draw(x, p): return torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) >= p


def divided(p):
    "1 / (1 − p) as torch's floats give it: infinite at 1."
    return 1 / (1 - torch.tensor(float(p)))


MY_DROPOUT = Exercise(
    "12", MyDropout, '''
class MyDropout(nn.Module):
    "Dropout: in training each value is 0 with probability p, and the others are divided by 1 − p."
    def __init__(self, p=.5):
        super().__init__()

    def forward(self, x): return x               # replace this, and add to __init__
''',
    hints=("Which two things depend on the mode, and what must come out on average?",
           "In training: x · mask / (1 − p), where each entry of the mask is 1 with probability 1 − p. In evaluation: x.",
           "torch.rand(x.shape) >= self.p is such a mask. And what is 0 / (1 − 1)?"),
    mistakes={
        "The values that stay are as they were. Divide them by 1 − p, so that the sum is the same on average.": dropout_with(scale=lambda p: 1.),
        "You divide by p. What stays is the share 1 − p.": dropout_with(scale=lambda p: 1 / p if p > 0 else 0.),
        "p is the probability to be dropped, not to stay.":
            dropout_with(scale=lambda p: 1 / p if p > 0 else 0., keep=lambda x, p: torch.rand(x.shape) < p),
        "In evaluation mode values are still dropped. There the answer is the input.":
            dropout_with(in_use=lambda x, p: x * (torch.rand(x.shape) >= p) * (1 / (1 - p) if p < 1 else 0.)),
        "That is the first paper's way: nothing in training, and times 1 − p in evaluation. Here it is divided in training, and evaluation "
        "does nothing.": dropout_with(scale=lambda p: 1., in_use=lambda x, p: x * (1 - p)),
        "In evaluation mode you multiply by 1 − p. The division in training has done that already.": dropout_with(in_use=lambda x, p: x * (1 - p)),
        "With p = 1 you divide 0 by 0, which is NaN. The answer should be 0.": dropout_with(scale=divided),
        "All rows have the same mask. Each value is to be drawn by itself.": dropout_with(keep=lambda x, p: torch.rand(x.shape[1:]) >= p),
        "Whole rows are dropped. That is stochastic depth; here each value is drawn by itself.":
            dropout_with(keep=lambda x, p: torch.rand(len(x), 1) >= p),
        "Each call has the same mask. Draw anew.": dropout_with(keep=the_same_draw)},
    cases=dropout_cases, run=look_at_dropout, truth=by_torchs_dropout,
    instead=("torch.nn.functional.dropout", "torch.dropout"), tolerance=1e-4,
    why="The mask decides, value by value, and the division keeps the mean. Where nothing stays there is nothing to divide: p = 1 gives 0. "
        "In evaluation mode all units work, as many as on average were worth in training.")

EXERCISES = [DECAY_FOR, SMALLEST_LOSS, MENDED_BLOCK, MY_DROPOUT]
