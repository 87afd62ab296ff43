"""The exercises of chapter 10."""
import copy

import torch
from torch import nn

from ..batchnorm import BatchNorm1d, BatchNorm2d
from .core import Exercise, random_tensor


def drawn(rng, low, high, *shape):
    "A tensor of numbers drawn evenly from low to high."
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(rng.randrange(2 ** 40)))


def lived_in(rng, norm):
    "A norm with weights and statistics as after a training."
    n = norm.num_features
    with torch.no_grad():
        norm.weight.copy_(drawn(rng, .5, 2, n)), norm.bias.copy_(random_tensor(rng, n))
        norm.running_mean.copy_(random_tensor(rng, n)), norm.running_var.copy_(drawn(rng, .3, 3, n))
    norm.num_batches_tracked.fill_(rng.randrange(3, 30))
    return norm


# 1. Fold it away

@torch.no_grad()
def folded(linear, norm):
    "One nn.Linear that does what linear and then norm do in evaluation mode."
    result, scale = copy.deepcopy(linear), norm.weight / (norm.running_var + norm.eps).sqrt()
    result.weight.copy_(linear.weight * scale[:, None])
    result.bias.copy_((linear.bias - norm.running_mean) * scale + norm.bias)
    return result


def pairs_to_fold(rng):
    found = []
    for n_in in rng.sample(range(2, 9), 3):
        linear, n_out = nn.Linear(n_in, n_in + 1), n_in + 1
        linear.weight.data, linear.bias.data = random_tensor(rng, n_out, n_in) / 2, random_tensor(rng, n_out)
        norm = lived_in(rng, BatchNorm1d(n_out, eps=rng.uniform(.05, .5)))
        found.append({"_linear": linear, "_norm": norm.train(rng.random() < .5), "_x": random_tensor(rng, 5, n_in),
                      "in_features": n_in, "out_features": n_out})
    return found


def fold_and_look(answer, _linear, _norm, _x, in_features, out_features):
    before, training = copy.deepcopy([_linear.state_dict(), _norm.state_dict()]), _norm.training
    result = answer(_linear, _norm)
    found = {"an nn.Linear comes back": isinstance(result, nn.Linear), "what it answers": result(_x).detach()}
    after = [_linear.state_dict(), _norm.state_dict()]
    return found | {f"the {name} that was given is as before": all(torch.equal(old[key], new[key]) for key in old)
                    for name, old, new in zip(("linear", "norm"), before, after)} | {
                        "the norm is in the mode it was in": _norm.training == training}


def by_torchs_layers(_linear, _norm, _x, in_features, out_features):
    theirs = nn.BatchNorm1d(out_features, eps=_norm.eps).eval()
    theirs.load_state_dict(_norm.state_dict())
    return {"an nn.Linear comes back": True, "what it answers": theirs(_linear(_x)).detach(),
            "the linear that was given is as before": True, "the norm that was given is as before": True,
            "the norm is in the mode it was in": True}


def fold_with(scale=lambda norm: norm.weight / (norm.running_var + norm.eps).sqrt(),
              bias=lambda linear, norm, scale: (linear.bias - norm.running_mean) * scale + norm.bias,
              weight=lambda linear, scale: linear.weight * scale[:, None], start=copy.deepcopy):
    @torch.no_grad()
    def fold(linear, norm):
        new = weight(linear, scale(norm)), bias(linear, norm, scale(norm))
        result = start(linear)
        result.weight.copy_(new[0]), result.bias.copy_(new[1])
        return result
    return fold


FOLDED = Exercise(
    "10", folded, '''
def folded(linear, norm):
    "One nn.Linear that does what linear and then norm do in evaluation mode."
    return copy.deepcopy(linear)                 # change its weight and bias
''',
    hints=("In evaluation mode, which numbers does the norm multiply by and add, and do they depend on the input?",
           "With s = weight / √(running_var + eps), it makes s · (z − running_mean) + bias out of each z. What is that for "
           "z = W x + b?",
           "scale = norm.weight / (norm.running_var + norm.eps).sqrt(), and each row of linear.weight is one output."),
    mistakes={
        "The weights are right, the bias is not: the norm changes that, too.": fold_with(bias=lambda linear, norm, scale: linear.bias),
        "eps is missing under the root.": fold_with(lambda norm: norm.weight / norm.running_var.sqrt()),
        "You divide by the variance. The standard deviation is its root.":
            fold_with(lambda norm: norm.weight / (norm.running_var + norm.eps)),
        "The norm has a learned weight, and it belongs into the scale.": fold_with(lambda norm: 1 / (norm.running_var + norm.eps).sqrt()),
        "The norm subtracts its running mean first. Where has that gone?":
            fold_with(bias=lambda linear, norm, scale: linear.bias * scale + norm.bias),
        "The running mean is subtracted before the scaling, so it is scaled as well.":
            fold_with(bias=lambda linear, norm, scale: linear.bias * scale - norm.running_mean + norm.bias),
        "The linear layer's own bias is lost. It goes through the norm like everything else.":
            fold_with(bias=lambda linear, norm, scale: norm.bias - norm.running_mean * scale),
        "The norm's own bias is missing.": fold_with(bias=lambda linear, norm, scale: (linear.bias - norm.running_mean) * scale),
        "Each output has its own scale, and the outputs are the rows of linear.weight: scale[:, None].":
            fold_with(weight=lambda linear, scale: linear.weight * scale),
        "You have changed the linear layer that was given. Work on a copy.": fold_with(start=lambda linear: linear),
        "Those are still two layers. One nn.Linear is to do the work of both.":
            lambda linear, norm: nn.Sequential(linear, copy.deepcopy(norm).eval())},
    cases=pairs_to_fold, run=fold_and_look, truth=by_torchs_layers, tolerance=1e-4,
    instead=("torch.nn.utils.fusion.fuse_linear_bn_eval", "torch.nn.utils.fuse_linear_bn_eval",
             "torch.nn.utils.fusion.fuse_linear_bn_weights", "torch.nn.utils.fuse_linear_bn_weights"),
    why="In evaluation mode the norm multiplies each output by a fixed number and adds another. Both steps are linear, so they are one: "
        "the rows of the weights are scaled, and the bias goes through the norm as an output would.")


# 2. Statistics anew

def adapted(model, batches):
    "A copy in evaluation mode, whose running statistics are the plain mean over these batches."
    model = copy.deepcopy(model)
    for norm in model.modules():
        if not isinstance(norm, BatchNorm2d): continue
        norm.momentum = None
        norm.num_batches_tracked.zero_()
    model.train()
    with torch.no_grad():
        for xb, _ in batches: model(xb)
    return model.eval()


def models_to_adapt(rng):
    found = []
    for training in rng.sample((True, False), 2):
        a, b = rng.randrange(2, 5), rng.randrange(2, 5)
        model = nn.Sequential(nn.Conv2d(1, a, 3, bias=False), lived_in(rng, BatchNorm2d(a)), nn.ReLU(),
                              nn.Conv2d(a, b, 2, bias=False), lived_in(rng, BatchNorm2d(b)))
        for i in (0, 3): model[i].weight.data = random_tensor(rng, *model[i].weight.shape)
        shift, batches = rng.uniform(1, 3), rng.randrange(3, 6)
        found.append({"_model": model.train(training), "_batches": [
            (shift * i + random_tensor(rng, 4, 1, 6, 5), torch.zeros(4)) for i in range(batches)], "batches": batches})
    return found


def adapt_and_look(answer, _model, _batches, batches):
    before, training = copy.deepcopy(_model.state_dict()), _model.training
    result = answer(_model, _batches)
    if not isinstance(result, nn.Module): return {"a model comes back": False}
    now = result.state_dict()
    return {"a model comes back": True,
            **{f"{i}.{name}": now[f"{i}.{name}"].clone() for i in (1, 4) for name in ("running_mean", "running_var")},
            "the weights are the same": all(torch.equal(now[name], before[name]) for name, _ in _model.named_parameters()),
            "the model that was given is as before": all(torch.equal(value, before[name]) for name, value in _model.state_dict().items())
            and _model.training == training,
            "the result is in evaluation mode": not any(module.training for module in result.modules())}


def by_loops(_model, _batches, batches):
    "Each norm by hand, batch by batch, and then the mean over the batches."
    seen = {(i, name): [] for i in (1, 4) for name in ("running_mean", "running_var")}
    for x, _ in _batches:
        for i, layer in enumerate(_model):
            if i not in (1, 4):
                x = layer(x)
                continue
            values = x.detach().transpose(0, 1).flatten(1)
            n, mean = values.shape[1], values.sum(1) / values.shape[1]
            squares = (values - mean[:, None]).square().sum(1)
            seen[i, "running_mean"].append(mean), seen[i, "running_var"].append(squares / (n - 1))
            scale = layer.weight / (squares / n + layer.eps).sqrt()
            x = (x - mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]
    return {"a model comes back": True, **{f"{i}.{name}": sum(values) / batches for (i, name), values in seen.items()},
            "the weights are the same": True, "the model that was given is as before": True, "the result is in evaluation mode": True}


def adapt_with(copied=copy.deepcopy, momentum=None, reset=lambda norm: norm.reset_running_stats(), mode=True, ends=nn.Module.eval):
    def adapt(model, batches):
        model = copied(model)
        for norm in model.modules():
            if not isinstance(norm, BatchNorm2d): continue
            if momentum != "kept": norm.momentum = momentum
            reset(norm)
        model.train(mode)
        with torch.no_grad():
            for xb, _ in batches: model(xb)
        return ends(model)
    return adapt


def only_the_last(model, batches): return adapt_with(momentum=1.)(model, batches)


ADAPTED = Exercise(
    "10", adapted, '''
def adapted(model, batches):
    "A copy in evaluation mode, whose running statistics are the plain mean over these batches."
    return model                                 # replace this
''',
    hints=("When do running statistics move? And which `momentum` makes them the plain mean over all batches seen?",
           "With momentum=None the share of the newest batch is 1 / num_batches_tracked, so that has to begin at 0.",
           "model = copy.deepcopy(model); then for each norm among model.modules(): norm.momentum = None, and its count to 0."),
    mistakes={
        "You have changed the model that was given. Work on a copy: copy.deepcopy(model).": adapt_with(copied=lambda model: model),
        "The old count goes on, so the old statistics are still in the mean. num_batches_tracked has to begin at 0.":
            adapt_with(reset=lambda norm: None),
        "With the norm's own momentum the last batches count most. The plain mean is momentum = None.": adapt_with(momentum="kept"),
        "The last batches count most, and something of the old statistics is left. The plain mean is momentum = None.":
            adapt_with(momentum="kept", reset=lambda norm: None),
        "Only the last batch is left. All batches are to count alike: momentum = None.": only_the_last,
        "In evaluation mode the statistics stay where they are: you have reset them, and no batch has moved them.": adapt_with(mode=False),
        "The statistics are the old ones. They move only in training mode.": adapt_with(reset=lambda norm: None, mode=False),
        "All is right but the mode: the result should be in evaluation mode.": adapt_with(ends=lambda model: model)},
    cases=models_to_adapt, run=adapt_and_look, truth=by_loops, tolerance=1e-3, instead=("torch.optim.swa_utils.update_bn",),
    why="In training mode a look at a batch moves the statistics and no weight. With momentum = None and a count that begins at 0, "
        "each batch has the same share, and nothing of the old statistics is left.")


# 3. RMS normalization

class RMSNorm(nn.Module):
    "x over the root of its mean square along the last axis, times a learned weight."
    def __init__(self, n, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x): return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


def differentiate(norm, x, direction):
    "The output, and the gradients of (output · direction).sum(), by name."
    x, named = x.clone().requires_grad_(True), dict(norm.named_parameters())
    out = norm(x)
    grads = torch.autograd.grad((out * direction).sum(), [x, *named.values()], allow_unused=True)
    return {"the output": out.detach(), **{f"the gradient of {name}": torch.zeros_like(value) if grad is None else grad
                                           for (name, value), grad in zip({"x": x, **named}.items(), grads)}}


def look_at_rms(answer, _x, _direction, _weight, n, **options):
    norm = answer(n, **options)
    found = {"the names of its parameters": sorted(name for name, _ in norm.named_parameters()), "its weight at first": norm.weight.detach().clone()}
    with torch.no_grad(): norm.weight.copy_(_weight)
    return found | differentiate(norm, _x, _direction)


def rms_by_hand(_x, _direction, _weight, n, **options):
    "Output and gradients in closed form, in float64."
    x, g, eps = _x.double(), _direction.double(), options.get("eps", 1e-6)
    root = (torch.einsum("...i,...i->...", x, x) / n + eps)[..., None] ** .5
    along = torch.einsum("...i,...i->...", g * _weight, x)[..., None]
    found = {"the output": x / root * _weight, "the gradient of x": g * _weight / root - x * along / (n * root ** 3),
             "the gradient of weight": (g * x / root).reshape(-1, n).sum(0)}
    return {"the names of its parameters": ["weight"], "its weight at first": torch.ones(n), **{name: value.float() for name, value in found.items()}}


def rms_cases(rng):
    found = []
    for shape, size, options in (((3, 5), 1., {}), ((2, 3, 4), 1., {"eps": rng.uniform(.1, .9)}), ((4, 6), .003, {})):
        n = shape[-1]
        found.append({"_x": size * (1 + random_tensor(rng, *shape)), "_direction": size * random_tensor(rng, *shape),
                      "_weight": drawn(rng, .5, 2, n), "n": n, **options})
    return found


def rms_with(divisor=lambda x, eps: (x.square().mean(-1, keepdim=True) + eps).sqrt(), top=lambda x: x, weighs=True):
    def forward(self, x):
        out = top(x) / divisor(x, self.eps)
        return out * self.weight if weighs else out
    return type("RMSNorm", (RMSNorm,), {"forward": forward})


def weight_is_no_parameter(self, n, eps=1e-6):
    nn.Module.__init__(self)
    self.weight, self.eps = torch.ones(n), eps


def ignores_eps(self, n, eps=1e-6): RMSNorm.__init__(self, n)


RMS_NORM = Exercise(
    "10", RMSNorm, '''
class RMSNorm(nn.Module):
    "x over the root of its mean square along the last axis, times a learned weight."
    def __init__(self, n, eps=1e-6):
        super().__init__()

    def forward(self, x): return x               # replace this, and add to __init__
''',
    hints=("Layer normalization takes two statistics of a sample. Which of them goes, and what becomes of the other one without it?",
           "y = weight · x / √(mean of x² + eps), the mean over the last axis, one for each sample.",
           "self.weight = nn.Parameter(torch.ones(n)), and x.square().mean(-1, keepdim=True)."),
    mistakes={
        "You subtract the mean, as layer normalization does. Here the mean is left alone.":
            rms_with(lambda x, eps: (x.var(-1, correction=0, keepdim=True) + eps).sqrt(), lambda x: x - x.mean(-1, keepdim=True)),
        "You divide by the standard deviation, in which the mean has been subtracted. Take the mean of the squares themselves.":
            rms_with(lambda x, eps: (x.var(-1, correction=0, keepdim=True) + eps).sqrt()),
        "That is the mean over the batch. Each sample is to be normalized by itself: over the last axis.":
            rms_with(lambda x, eps: (x.square().mean(0, keepdim=True) + eps).sqrt()),
        "One number for all samples. Each sample has its own: over the last axis, with keepdim=True.":
            rms_with(lambda x, eps: (x.square().mean() + eps).sqrt()),
        "You divide by the length, the root of the sum of the squares. It is to be that of their mean.":
            rms_with(lambda x, eps: (x.square().sum(-1, keepdim=True) + eps).sqrt()),
        "You divide by the mean square. Its root is missing.": rms_with(lambda x, eps: x.square().mean(-1, keepdim=True) + eps),
        "eps belongs under the root.": rms_with(lambda x, eps: x.square().mean(-1, keepdim=True).sqrt() + eps),
        "eps is missing: a sample of zeros would be divided by 0.": rms_with(lambda x, eps: x.square().mean(-1, keepdim=True).sqrt()),
        "Your eps is always 1e-6, whatever is given.": type("RMSNorm", (RMSNorm,), {"__init__": ignores_eps}),
        "The weight is not used.": rms_with(weighs=False),
        "A weight that is to learn has to be an nn.Parameter, or no optimizer finds it.":
            type("RMSNorm", (RMSNorm,), {"__init__": weight_is_no_parameter}),
        "The outputs are right, the gradients are not: the mean square depends on x, too, so do not detach it.":
            rms_with(lambda x, eps: (x.square().mean(-1, keepdim=True) + eps).sqrt().detach())},
    cases=rms_cases, run=look_at_rms, truth=rms_by_hand, instead=("torch.rms_norm", "torch.layer_norm"), tolerance=1e-4,
    why="Without the mean, the variance becomes the mean square. There is no bias and no second pass over x, which makes it cheaper "
        "than layer normalization (Zhang and Sennrich, 2019).")


# 4. Batch normalization from a blank page

class MyBatchNorm(nn.Module):
    "Batch normalization of vectors [B, n_features], as torch.nn.BatchNorm1d."
    def __init__(self, n_features, eps=1e-5, momentum=.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(n_features))
        self.bias = nn.Parameter(torch.zeros(n_features))
        self.register_buffer("running_mean", torch.zeros(n_features))
        self.register_buffer("running_var", torch.ones(n_features))

    def forward(self, x):
        if self.training:
            mean, var = x.mean(0), x.var(0, correction=0)
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(x.var(0).detach(), self.momentum)
        else: mean, var = self.running_mean, self.running_var
        return (x - mean) / (var + self.eps).sqrt() * self.weight + self.bias


def look_at_norm(answer, _batches, _directions, _weight, _bias, n_features, **options):
    "Two batches in training mode, then one, and a single image, in evaluation mode."
    norm = answer(n_features, **options)
    found = {"the names of its parameters": sorted(name for name, _ in norm.named_parameters()),
             "its weight at first": norm.weight.detach().clone(), "its bias at first": norm.bias.detach().clone(),
             "the running statistics that are saved with the model": sorted(name for name in norm.state_dict() if "running" in name)}
    with torch.no_grad(): norm.weight.copy_(_weight), norm.bias.copy_(_bias)
    for i, (x, direction) in enumerate(zip(_batches, _directions), 1):
        where = f" (batch {i}, {'training' if i < 3 else 'evaluation'})"
        if i == 3: norm.eval()
        found |= {what + where: value for what, value in differentiate(norm, x, direction).items()}
        found |= {f"{name} after it{where}": getattr(norm, name).detach().clone() for name in ("running_mean", "running_var")}
    return found | {"the running statistics are cut off from the gradient":
                    not (norm.running_mean.requires_grad or norm.running_var.requires_grad)}


def torchs_norm(n_features, **options): return look_at_norm(nn.BatchNorm1d, n_features=n_features, **options)


def norm_cases(rng):
    found = []
    for options in ({}, {"eps": rng.uniform(.1, .5), "momentum": rng.uniform(.15, .4)}):
        n, size = rng.randrange(3, 6), rng.randrange(4, 9)
        sizes = (size, size + 1, size, 1)
        found.append({"_batches": [rng.uniform(.5, 2) + drawn(rng, .7, 1.5, n) * random_tensor(rng, size, n) for size in sizes],
                      "_directions": [random_tensor(rng, size, n) for size in sizes],
                      "_weight": drawn(rng, .5, 2, n), "_bias": random_tensor(rng, n), "n_features": n, **options})
    return found


def norm_with(batch=lambda x: (x.mean(0), x.var(0, correction=0)), kept=lambda x: (x.mean(0).detach(), x.var(0).detach()),
              share=lambda momentum: momentum, uses_batch=lambda training: training, follows=lambda training: training,
              deviation=lambda var, eps: (var + eps).sqrt(), weighs=True, **changes):
    def forward(self, x):
        mean, var = batch(x) if uses_batch(self.training) else (self.running_mean, self.running_var)
        out = (x - mean) / deviation(var, self.eps)
        if follows(self.training):
            for running, new in zip((self.running_mean, self.running_var), kept(x)): running.lerp_(new, share(self.momentum))
        return out * self.weight + self.bias if weighs else out
    return type("MyBatchNorm", (MyBatchNorm,), {"forward": forward, **changes})


def without_buffers(self, n_features, eps=1e-5, momentum=.1):
    MyBatchNorm.__init__(self, n_features, eps, momentum)
    for name in ("running_mean", "running_var"):
        value = self._buffers.pop(name)
        setattr(self, name, value)


def without_parameters(self, n_features, eps=1e-5, momentum=.1):
    MyBatchNorm.__init__(self, n_features, eps, momentum)
    for name in ("weight", "bias"):
        value = self._parameters.pop(name).detach()
        setattr(self, name, value)


MY_BATCH_NORM = Exercise(
    "10", MyBatchNorm, '''
class MyBatchNorm(nn.Module):
    "Batch normalization of vectors [B, n_features], as torch.nn.BatchNorm1d."
    def __init__(self, n_features, eps=1e-5, momentum=.1):
        super().__init__()

    def forward(self, x): return x               # replace this, and add to __init__
''',
    hints=("Which four tensors belong to the layer? Two of them learn, the other two are saved with the model and do not.",
           "In training mode y = weight · (x − mean) / √(var + eps) + bias, with mean and var (divided by B) of the batch, and the running "
           "ones move by the share momentum. Their variance is divided by B − 1. In evaluation mode the running ones take the place "
           "of the batch's.",
           'self.weight = nn.Parameter(torch.ones(n_features)), self.register_buffer("running_mean", torch.zeros(n_features)), and '
           "if self.training: …"),
    mistakes={
        "The outputs are right, the gradients are not. Mean and variance depend on x as well: detach what goes into the running "
        "statistics, not what you normalize with.":
            norm_with(batch=lambda x: (x.mean(0).detach(), x.var(0, correction=0).detach())),
        "The batch itself is normalized by its own variance, divided by B: correction=0.": norm_with(batch=lambda x: (x.mean(0), x.var(0))),
        "The running variance is to describe all images, so it is divided by B − 1.":
            norm_with(kept=lambda x: (x.mean(0).detach(), x.var(0, correction=0).detach())),
        "You have the two variances the wrong way round: the batch is normalized by the one divided by B, the running one is divided by "
        "B − 1.": norm_with(batch=lambda x: (x.mean(0), x.var(0)), kept=lambda x: (x.mean(0).detach(), x.var(0, correction=0).detach())),
        "A norm's momentum is the share of the newest batch. You give it to the old average.": norm_with(share=lambda momentum: 1 - momentum),
        "The share of the newest batch is always 0.1. It should be momentum.": norm_with(share=lambda _: .1),
        "eps belongs under the root, beside the variance.": norm_with(deviation=lambda var, eps: var.sqrt() + eps),
        "You divide by the variance. The standard deviation is its root.": norm_with(deviation=lambda var, eps: var + eps),
        "eps is missing: a channel that never changes would be divided by 0.": norm_with(deviation=lambda var, eps: var.sqrt()),
        "In evaluation mode you still normalize by the batch. There the running statistics count.":
            norm_with(uses_batch=lambda training: True),
        "In training mode the batch is normalized by its own statistics, not by the running ones.":
            norm_with(uses_batch=lambda training: False),
        "The running statistics move in evaluation mode, too. They should stay.": norm_with(follows=lambda training: True),
        "The running statistics never move.": norm_with(follows=lambda training: False),
        "One mean for all channels. Each channel has its own: over axis 0.":
            norm_with(batch=lambda x: (x.mean(), x.var(correction=0)), kept=lambda x: (x.mean().detach(), x.var().detach())),
        "Your running statistics drag the gradient's graph along, longer with each batch: detach what goes into them.":
            norm_with(kept=lambda x: (x.mean(0), x.var(0))),
        "The running statistics are not saved with the model. Make them with register_buffer.": norm_with(__init__=without_buffers),
        "weight and bias have to be nn.Parameter, or no optimizer finds them.": norm_with(__init__=without_parameters),
        "weight and bias are not used: y = weight · x̂ + bias.": norm_with(weighs=False)},
    cases=norm_cases, run=look_at_norm, truth=torchs_norm, instead=("torch.batch_norm",), tolerance=1e-4,
    why="Two statistics of the batch, through which the gradient flows; two running ones, cut off from it, for evaluation; and two "
        "learned numbers per channel, which can give back what normalizing has taken away.")

EXERCISES = [FOLDED, ADAPTED, RMS_NORM, MY_BATCH_NORM]
