"""The exercises of chapter 15."""
import torch
from torch import nn

from .core import Exercise, random_tensor


# 1. Kept and right

def kept_and_right(probs, labels, threshold):
    "(share of the images that are kept, share of the kept ones whose pseudo label is right)."
    confidence, predicted = probs.max(1)
    kept = confidence >= threshold
    if not kept.any(): return 0., 0.
    return kept.float().mean().item(), (predicted == labels)[kept].float().mean().item()


def guesses(rng, threshold):
    "24 images of 4 classes, highest probabilities of .5, .625, .75 and .875, which float32 holds exactly; half of the guesses are right."
    highest = [.5, .625, .75, .875] * 6
    rng.shuffle(highest)
    predicted = [rng.randrange(4) for _ in highest]
    probs = torch.tensor([[top if k == one else (1 - top) / 3 for k in range(4)] for top, one in zip(highest, predicted)])
    right = [rng.random() < (.85 if top > .7 else .2) for top in highest]
    labels = [one if good else (one + rng.randrange(1, 4)) % 4 for one, good in zip(predicted, right)]
    return {"_probs": probs, "_labels": torch.tensor(labels), "threshold": threshold}


def by_counting(_probs, _labels, threshold):
    "Image by image."
    kept = [(row.index(max(row)), label) for row, label in zip(_probs.tolist(), _labels.tolist()) if max(row) >= threshold]
    return {"the share kept": len(kept) / len(_probs), "the share right": sum(a == b for a, b in kept) / max(len(kept), 1)}


def look_at_shares(answer, _probs, _labels, threshold):
    kept, right = answer(_probs, _labels, threshold)
    return {"the share kept": kept, "the share right": right}


def shares_with(keep=lambda probs, labels, threshold: probs.amax(1) >= threshold, right=lambda right, kept: right[kept].float().mean().item(),
                share=lambda kept: kept.float().mean().item(), none=0.):
    def kept_and_right(probs, labels, threshold):
        kept = keep(probs, labels, threshold)
        if not kept.any(): return 0., none
        return share(kept), right(probs.argmax(1) == labels, kept)
    return kept_and_right


KEPT_AND_RIGHT = Exercise(
    "15", kept_and_right, '''
def kept_and_right(probs, labels, threshold):
    "(share of the images that are kept, share of the kept ones whose pseudo label is right)."
    return 0., 0.                                # replace this
''',
    hints=("Which number of a row of probs says how sure the teacher is, and which one says what it takes the image for?",
           "confidence, predicted = probs.max(1); an image is kept where confidence >= threshold.",
           "The mean of a mask, kept.float().mean(), is a share. And (predicted == labels)[kept]? Mind the case in which nothing is kept."),
    mistakes={
        "An image whose highest probability equals the threshold is kept, too.": shares_with(lambda probs, labels, t: probs.amax(1) > t),
        "The second share is among the images that are kept, not among all.": shares_with(right=lambda right, kept: right.float().mean().item()),
        "The second share counts the images that are kept and right, but divides by all of them. Divide by those that are kept.":
            shares_with(right=lambda right, kept: (right & kept).float().mean().item()),
        "Where nothing is kept, the mean of nothing is NaN. Say 0 there.": shares_with(none=float("nan")),
        "You look at the probability of the true class. Without labels nobody knows that one: take the highest.":
            shares_with(lambda probs, labels, t: probs[torch.arange(len(probs)), labels] >= t),
        "The first number is how many images are kept. Asked is their share: divide by the number of images.":
            shares_with(share=lambda kept: kept.sum().item())},
    cases=lambda rng: [guesses(rng, threshold) for threshold in (0., .625, .75, .875, 1.)], run=look_at_shares, truth=by_counting,
    why="The highest probability is the teacher's confidence, and its place is the pseudo label. A higher threshold keeps fewer images. Only "
        "with labels at hand can you see how many of them are right.")


# 2. The most confident of each class

def most_confident(probs, per_class):
    "Sorted indices of each predicted class's per_class most confident images, or of all it has."
    confidence, predicted = probs.max(1)
    order = confidence.argsort(descending=True)
    return torch.cat([order[predicted[order] == k][:per_class] for k in range(probs.shape[1])]).sort().values


def unbalanced(rng):
    "Probabilities of 4 classes: the last is never predicted, the third for two images only."
    cases = []
    for n, per_class in (30, 1), (40, 3), (40, 5), (25, 40):
        probs = (2 * random_tensor(rng, n, 4) + torch.tensor([1.5, 0., -9., -20.])).softmax(1)
        for i in rng.sample(range(n), 2): probs[i] = torch.tensor([.06 + .001 * i, .05, .88 - .001 * i, .01])
        cases.append({"_probs": probs, "per_class": per_class})
    return cases


def by_sorting_lists(_probs, per_class):
    rows = _probs.tolist()
    classes = {k: [(-max(row), i) for i, row in enumerate(rows) if row.index(max(row)) == k] for k in range(len(rows[0]))}
    return {"the indices": torch.tensor(sorted(i for found in classes.values() for _, i in sorted(found)[:per_class]))}


def chosen_by(choose, ordered=lambda found: torch.cat(found).sort().values):
    def most_confident(probs, per_class):
        confidence, predicted = probs.max(1)
        return ordered([choose(probs, confidence, (predicted == k).nonzero().flatten(), k, per_class) for k in range(probs.shape[1])])
    return most_confident


def the_surest(probs, confidence, members, k, n): return members[confidence[members].argsort(descending=True)[:n]]


MOST_CONFIDENT = Exercise(
    "15", most_confident, '''
def most_confident(probs, per_class):
    "Sorted indices of each predicted class's per_class most confident images, or of all it has."
    return torch.arange(per_class)               # replace this
''',
    hints=("If the images stood in order of confidence, the surest first, which of them would you take for one class?",
           "order = confidence.argsort(descending=True) gives that order; order[predicted[order] == k] is what it holds of class k.",
           "Take [:per_class] of it for each class, join them with torch.cat, and sort."),
    mistakes={
        "The indices stand class by class. Sort them.": chosen_by(the_surest, torch.cat),
        "Those are the most confident images of all, whatever their class. The frequent class takes the place of the rare ones.":
            lambda probs, n: probs.amax(1).argsort(descending=True)[:n * probs.shape[1]].sort().values,
        "A class takes images only that are predicted as it. A column's highest probabilities may belong to images of other classes.":
            chosen_by(lambda probs, confidence, members, k, n: probs[:, k].argsort(descending=True)[:n]),
        "Those are the least confident images of each class.":
            chosen_by(lambda probs, confidence, members, k, n: members[confidence[members].argsort()[:n]]),
        "Those are the first images of each class, not the most confident ones.": chosen_by(lambda probs, confidence, members, k, n: members[:n]),
        "The most confident image of each class, and no more. per_class says how many.":
            chosen_by(lambda probs, confidence, members, k, n: the_surest(probs, confidence, members, k, 1)),
        "A class may have fewer images than per_class. topk raises then; a slice, [:per_class], does not.":
            chosen_by(lambda probs, confidence, members, k, n: members[confidence[members].topk(n).indices])},
    cases=unbalanced, run=lambda answer, _probs, per_class: {"the indices": answer(_probs, per_class)}, truth=by_sorting_lists, tolerance=0.,
    why="Sorted once by confidence, each class takes its first per_class images. A class that is rarely predicted keeps all it has.")


# 3. From the bug museum

def mended_feedback(old_loss, new_loss, log_prob):
    "The teacher's loss: descent on it makes labels likelier that made the student's loss fall."
    return -(old_loss - new_loss).detach() * log_prob.mean()


def steps_of_students(rng):
    "Teachers' logits, the labels drawn, and a student's loss before and after its step: smaller twice, larger twice."
    cases = []
    for fall in (.6, .2, -.3, -.7):
        n, start = rng.randrange(3, 7), rng.uniform(1.2, 2.)
        cases.append({"old": start, "new": start - fall * rng.uniform(.8, 1.2), "_logits": random_tensor(rng, n, 4),
                      "_drawn": torch.tensor([rng.randrange(4) for _ in range(n)])})
    return cases


def look_at_feedback(answer, old, new, _logits, _drawn):
    logits, student = _logits.clone().requires_grad_(True), torch.ones(2, requires_grad=True)
    log_prob = logits.log_softmax(1)[torch.arange(len(_drawn)), _drawn]
    loss = answer(old * student[0], new * student[1], log_prob)
    if not isinstance(loss, torch.Tensor): return {"the loss": loss}
    grads = torch.autograd.grad(loss, (logits, student), allow_unused=True) if loss.requires_grad else (None, None)
    flows = grads[1] is not None and grads[1].abs().max().item() > 0
    return {"the loss": loss.detach().clone(), "the gradient of the teacher's logits": "none" if grads[0] is None else grads[0],
            "a gradient flows into the student's losses": flows}


def by_closed_form(old, new, _logits, _drawn):
    "The mean of log softmax has the gradient (one-hot − softmax) / n."
    fall, n = torch.tensor(old) - torch.tensor(new), len(_drawn)
    probs, hot = _logits.softmax(1), torch.eye(4)[_drawn]
    return {"the loss": -fall * (probs * hot).sum(1).log().sum() / n, "the gradient of the teacher's logits": fall * (probs - hot) / n,
            "a gradient flows into the student's losses": False}


MENDED_FEEDBACK = Exercise(
    "15", mended_feedback, '''
def mended_feedback(old_loss, new_loss, log_prob):  # mend this
    "The teacher's loss: descent on it makes labels likelier that made the student's loss fall."
    return (old_loss - new_loss) * log_prob.mean()
''',
    hints=("Say the labels helped: new_loss is below old_loss. Should log_prob rise or fall, and what does a step down this loss do to it?",
           "Descent makes small what it is given. To raise log_prob, its factor must be below 0 where the labels helped.",
           "What the labels did is a plain number for the teacher: detach() the difference of the losses."),
    mistakes={
        "The sign is right now. But a gradient flows into the student's losses: to the teacher their difference is a plain number. Detach it.":
            lambda old, new, log_prob: -(old - new) * log_prob.mean(),
        "The losses are plain numbers now. But the sign is wrong still: descent makes labels rarer that helped.":
            lambda old, new, log_prob: (old - new).detach() * log_prob.mean(),
        "Both losses and log_prob are cut off, so the teacher learns nothing. Only the losses are plain numbers.":
            lambda old, new, log_prob: (-(old - new) * log_prob.mean()).detach(),
        "You add over the batch. Take the mean, or the teacher's step grows with the batch.":
            lambda old, new, log_prob: -(old - new).detach() * log_prob.sum(),
        "Labels that harmed must become rarer. You leave out what is below 0.":
            lambda old, new, log_prob: -(old - new).detach().clamp(min=0) * log_prob.mean(),
        "How much the labels helped counts, not only whether they did. Leave the difference as it is, without its sign alone.":
            lambda old, new, log_prob: -(old - new).detach().sign() * log_prob.mean()},
    cases=steps_of_students, run=look_at_feedback, truth=by_closed_form,
    why="Labels that helped have old − new above 0, so descent on −(old − new) · log_prob raises their probability. It is lowered where the "
        "student's loss rose. The difference is detached: it weighs the teacher's gradient, and has none of its own.")


# 4. Pseudo labels from a blank page

def my_pseudo_label(model, x, threshold):
    "(indices of the images kept, their soft targets), in eval mode, without a graph; modes stay."
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad(): probs = model(x).softmax(1)
    for module, mode in modes.items(): module.training = mode
    kept = (probs.amax(1) >= threshold).nonzero().flatten()
    return kept, probs[kept]


def teachers(rng):
    "Nets with batchnorm and dropout: all in training mode, a trunk frozen in eval mode, all in eval mode, a child in training mode."
    cases, all_of_it = [], ("", "0", "0.0", "0.1", "1", "2", "3")
    for frozen, threshold in ((), .6), (("0", "0.0", "0.1"), .7), (all_of_it, .8), (("", "0"), 1.):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.randrange(2 ** 40))
            model = nn.Sequential(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8)), nn.Tanh(), nn.Dropout(.5), nn.Linear(8, 3))
            with torch.no_grad():
                model[0][1].running_mean.normal_()
                model[0][1].running_var.uniform_(.5, 2.)
                model[3].weight.mul_(5.)
        for name, module in model.named_modules(): module.training = name not in frozen
        x = random_tensor(rng, 20, 5)
        if threshold == 1.:
            model[3].weight.data.mul_(400.)      # so sure that some probabilities are 1 exactly
        cases.append({"_model": model, "_x": x, "threshold": threshold})
    return cases


def look_at_labels(answer, _model, _x, threshold):
    modes = [module.training for module in _model.modules()]
    buffers = [buffer.clone() for buffer in _model.state_dict().values()]
    kept, targets = answer(_model, _x, threshold)
    graph = isinstance(targets, torch.Tensor) and targets.requires_grad
    return {"the indices": kept, "a graph hangs on the targets": graph,
            "the model has learnt or counted": not all(map(torch.equal, buffers, _model.state_dict().values())),
            "the targets": targets.detach() if isinstance(targets, torch.Tensor) else targets,
            "modules whose mode has changed": sum(a != b.training for a, b in zip(modes, _model.modules()))}


def by_hand(_model, _x, threshold):
    "The net's formula, written out, with batchnorm's running statistics and no dropout."
    (linear, norm), _, _, head = _model
    hidden = _x @ linear.weight.detach().T + linear.bias.detach()
    hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    logits = hidden.tanh() @ head.weight.detach().T + head.bias.detach()
    probs = torch.nn.functional.softmax(logits, 1)
    kept = torch.tensor([i for i, row in enumerate(probs.tolist()) if max(row) >= threshold], dtype=torch.int64)
    return {"the indices": kept, "a graph hangs on the targets": False, "the model has learnt or counted": False, "the targets": probs[kept],
            "modules whose mode has changed": 0}


def labels_with(mode=lambda model: model.eval(), back=None, graph=False, keep=lambda probs, t: probs.amax(1) >= t,
                targets=lambda logits, kept: logits.softmax(1)[kept]):
    def my_pseudo_label(model, x, threshold):
        modes, was = [module.training for module in model.modules()], model.training
        mode(model)
        with torch.set_grad_enabled(graph): logits = model(x)
        if back: back(model, was)
        else:
            for module, one in zip(model.modules(), modes): module.training = one
        kept = keep(logits.softmax(1), threshold).nonzero().flatten()
        return kept, targets(logits, kept)
    return my_pseudo_label


def hard(logits, kept): return logits.argmax(1)[kept]


MY_PSEUDO_LABEL = Exercise(
    "15", my_pseudo_label, '''
def my_pseudo_label(model, x, threshold):
    "(indices of the images kept, their soft targets), in eval mode, without a graph; modes stay."
    return torch.arange(len(x)), x               # replace this
''',
    hints=("Three things to care for: the modes, the graph, the choice. Which attribute of a module says in which mode it is?",
           "Before model.eval(), note module.training for each of model.modules(). Write each one back afterwards.",
           "with torch.no_grad(): probs = model(x).softmax(1). Kept are the places where probs.amax(1) >= threshold.",
           "mask.nonzero().flatten() gives the places of a mask; probs[kept] are the soft targets."),
    mistakes={
        "The teacher labels in training mode: dropout and the batch's statistics have changed its labels. Call model.eval() first.":
            labels_with(mode=lambda model: None),
        "The modules stay in eval mode, whatever they were in before.": labels_with(back=lambda model, was: None),
        "model.train() puts all modules in training mode, those too that were in eval mode. Write each one's own mode back.":
            labels_with(back=lambda model, was: model.train()),
        "You remember the mode of the whole, and give it to all parts. A frozen part may be in another: note each module's own.":
            labels_with(back=lambda model, was: model.train(was)),
        "A graph still hangs on the targets, and with it the teacher's activations. Work under torch.no_grad().": labels_with(graph=True),
        "Those are hard labels, the class alone. Soft targets are the probabilities.": labels_with(targets=hard),
        "The targets are logits. Take softmax.": labels_with(targets=lambda logits, kept: logits[kept]),
        "There are targets for all images. Return those of the images that are kept.": labels_with(targets=lambda logits, kept: logits.softmax(1)),
        "An image whose highest probability equals the threshold is kept, too.": labels_with(keep=lambda probs, t: probs.amax(1) > t),
        "The threshold is for the highest probability of an image. You keep all images.":
            labels_with(keep=lambda probs, t: torch.ones(len(probs), dtype=torch.bool))},
    cases=teachers, run=look_at_labels, truth=by_hand,
    why="Each module's mode is noted and written back, since model.train() would wake up what somebody has frozen. no_grad keeps the teacher's "
        "graph from hanging on the targets.")

EXERCISES = [KEPT_AND_RIGHT, MOST_CONFIDENT, MENDED_FEEDBACK, MY_PSEUDO_LABEL]
