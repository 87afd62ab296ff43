"""Pseudo labels, rounds of students and meta pseudo labels against closed forms and autograd through a step."""
import copy
import itertools
from collections import Counter
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_lib import (
    SGD, Adam, Callback, DataLoaders, Learner, Recorder, TensorLoader, balanced, meta_pseudo_labels, noisy_student,
    pseudo_label, soft_cross_entropy)
from course_lib.exercises.self_training import mended_feedback
from course_lib.figures.self_training import threshold_explorer
from course_lib.self_training import feedback_loss, learn_and_tell, loss_on, with_pseudo_labels
from course_lib.support.paired import paired
from course_lib.support.results import results
from course_lib.support.self_training import evaluating, few_labels, without_labels
from drive import drive
from tiny import every_device, with_ctrl_c

F64 = torch.float64
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def net(seed=0, device="cpu", p=.5):
    "Batchnorm with statistics of its own, dropout, three classes; float64, in training mode."
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Sequential(nn.Dropout(p), nn.Linear(8, 3)))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(.5, 2)
    with torch.no_grad(): model[3][1].weight.mul_(4)
    return model.double().to(device)


def linear(seed=0, device="cpu"):
    torch.manual_seed(seed)
    return nn.Linear(4, 3).double().to(device)


def points(n, seed=1, device="cpu"):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return x.to(device), (x[:, :3].argmax(1)).to(device)


def probs_of(model, x):
    "With another copy of the model, in evaluation mode."
    with torch.no_grad(): return F.softmax(copy.deepcopy(model).eval()(x), 1)


def state(*models): return [value.clone() for model in models for value in model.state_dict().values()]


def same_state(before, *models): return all(map(torch.equal, before, state(*models)))


def loader(n=24, seed=1, batch_size=8, device="cpu", **options):
    return TensorLoader(*points(n, seed, device), batch_size, shuffle=True, **options)


# Pseudo labels

@every_device
@pytest.mark.parametrize("batch_size", [1, 7, 30, 1000])
@pytest.mark.parametrize("threshold", [0., .5, .8, 1.])
def test_labels_are_the_probabilities_of_the_model_in_evaluation_mode(threshold, batch_size, device):
    model, (x, _) = net(device=device), points(30, device=device)
    given, before, modes = x.clone(), state(model), [module.training for module in model.modules()]
    chance = torch.get_rng_state()
    kept, targets = pseudo_label(model, x, threshold, batch_size=batch_size)
    wanted = probs_of(model, x)
    rows = [i for i, row in enumerate(wanted.tolist()) if max(row) >= threshold]
    assert kept.dtype is torch.int64 and kept.tolist() == rows and kept.device == x.device
    torch.testing.assert_close(targets, wanted[rows], **CLOSE)
    assert not targets.requires_grad and torch.equal(x, given) and same_state(before, model)
    assert modes == [module.training for module in model.modules()] and torch.equal(chance, torch.get_rng_state())
    kept, classes = pseudo_label(model, x, threshold, soft=False)
    assert classes.dtype is torch.int64 and kept.tolist() == rows and torch.equal(classes, wanted[rows].argmax(1))


class Says(nn.Module):
    "Logits whose probabilities are what it is asked."
    def forward(self, x): return x.log()


def test_the_threshold_itself_is_kept_and_nothing_may_be():
    probs = torch.tensor([[.5, .25, .25], [.25, .5, .25], [.125, .125, .75]])
    assert pseudo_label(Says(), probs, .5)[0].tolist() == [0, 1, 2]
    assert pseudo_label(Says(), probs, .75)[0].tolist() == [2]
    kept, targets = pseudo_label(Says(), probs, .9)
    assert kept.shape == (0,) and targets.shape == (0, 3)
    assert pseudo_label(Says(), probs, .9, soft=False)[1].shape == (0,)


@pytest.mark.parametrize("frozen", [
    (), ("1",), ("", "0", "1"), ("3",), ("3.0", "3.1"), ("", "0", "1", "2", "3", "3.0", "3.1")])
def test_each_modules_mode_stays_also_after_an_error_and_ctrl_c(frozen):
    model, (x, _) = net(), points(6)
    for name, module in model.named_modules(): module.training = name not in frozen

    def modes_are_as_before():
        assert all(module.training == (name not in frozen) for name, module in model.named_modules())
    pseudo_label(model, x)
    modes_are_as_before()
    with pytest.raises(RuntimeError): pseudo_label(model, x[:, :3])
    modes_are_as_before()
    for at in range(1, 20):
        with_ctrl_c(lambda: pseudo_label(model, x), at, {"pseudo_label", "forward"})
        modes_are_as_before()


def test_evaluating_is_off_again_for_parts_shared_by_two_places():
    part = nn.Dropout()
    model = nn.Sequential(part, nn.Linear(4, 4), part)
    with evaluating(model): assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())


def test_a_model_in_training_mode_would_say_something_else():
    model, (x, _) = net(), points(30)
    assert not torch.allclose(pseudo_label(model, x)[1], model(x).softmax(1))


# Balance

@pytest.mark.parametrize("per_class", [None, 1, 3, 50])
@pytest.mark.parametrize("lean", [0., 2., 6.])
def test_each_class_comes_equally_often_the_most_confident_first(per_class, lean):
    generator = torch.Generator().manual_seed(3)
    probs = (torch.randn(40, 4, generator=generator) + torch.tensor([lean, 0., 0., -lean])).softmax(1)
    rows, n = balanced(probs, per_class), per_class or 10
    wanted = []
    for k in range(4):
        members = sorted((i for i in range(40) if probs[i].argmax() == k), key=lambda i: -probs[i].max())
        wanted += [members[i % len(members)] for i in range(n)] if members else []
    assert rows.tolist() == sorted(wanted) and rows.dtype is torch.int64
    assert set(Counter(probs[rows].argmax(1).tolist()).values()) == {n}


def test_nothing_to_balance_and_one_class_for_all():
    assert balanced(torch.zeros(0, 3)).tolist() == []
    assert balanced(torch.eye(3)[[1, 1]]).tolist() == [0] and balanced(torch.eye(3)[[1, 1]], 4).tolist() == [0, 0, 1, 1]


# A student's data

@every_device
def test_a_student_learns_from_labels_then_from_the_teachers_shares(device):
    teacher, (x, y), (u, _) = net(device=device), points(9, device=device), points(40, 2, device)
    probs = probs_of(teacher, u)
    sure = [i for i, row in enumerate(probs.tolist()) if max(row) >= .7]
    inputs, shares = with_pseudo_labels(teacher, (x, y), u, .7, balance=False)
    assert torch.equal(inputs, torch.cat([x, u[sure]])) and torch.equal(shares[:9].argmax(1), y)
    assert shares[:9].sum(1).eq(1).all() and shares[:9].amax(1).eq(1).all()
    torch.testing.assert_close(shares[9:].double(), probs[sure], **CLOSE)
    hard = with_pseudo_labels(teacher, (x, y), u, .7, soft=False, balance=False)[1]
    assert torch.equal(hard[9:].argmax(1), probs[sure].argmax(1))
    assert hard.amax(1).eq(1).all() and hard.sum(1).eq(1).all()
    even = with_pseudo_labels(teacher, (x, y), u)[1][9:]
    assert len(set(Counter(even.argmax(1).tolist()).values())) == 1


def test_nothing_sure_leaves_the_labels():
    flat = nn.Linear(4, 3).double()
    nn.init.zeros_(flat.weight), nn.init.zeros_(flat.bias)
    (x, y), (u, _) = points(5), points(7, 2)
    inputs, shares = with_pseudo_labels(flat, (x, y), u, .9)
    assert torch.equal(inputs, x) and torch.equal(shares.argmax(1), y)


@pytest.mark.parametrize("change, words", [
    ({"labelled": (points(5)[0], points(5)[1] + 3)}, "3 classes"),
    ({"labelled": (points(5)[0], points(5)[1] - 5)}, "from 0 on"),
    ({"labelled": (points(5)[0], points(6)[1])}, "labelled"), ({"labelled": (points(5)[0], points(5)[0])}, "labelled"),
    ({"labelled": points(5)[0]}, "pair"), ({"unlabelled": torch.zeros(3, 5, dtype=F64)}, "of one kind"),
    ({"unlabelled": torch.zeros(3, 4)}, "of one kind"), ({"unlabelled": torch.zeros(0, 4)}, "at least one input"),
    ({"threshold": 1.5}, "threshold"), ({"threshold": float("nan")}, "threshold"), ({"soft": 1}, "soft"),
    ({"balance": None}, "balance"), ({"teacher": nn.Linear}, "teacher")])
@pytest.mark.parametrize("make", [with_pseudo_labels, partial(noisy_student, new_student=linear, fit=lambda *_: None)])
def test_data_that_do_not_fit_are_refused(make, change, words):
    given = {"teacher": linear(), "labelled": points(5), "unlabelled": points(6)[0]}
    with pytest.raises(ValueError, match=words): make(**{**given, **change})


class Gives(nn.Module):
    def __init__(self, make): super().__init__(); self.make = make

    def forward(self, x): return self.make(x)


@pytest.mark.parametrize("make, words", [
    (lambda x: x[:, 0], "logits"), (lambda x: x[:, :1], "logits"), (lambda x: (x, x), "logits"),
    (lambda x: x[:-1], "logits"), (lambda x: x[:, :, None], "logits"), (lambda x: x * float("nan"), "NaN or infinite"),
    (lambda x: x / 0, "NaN or infinite")])
def test_what_are_no_logits_are_refused(make, words):
    model, (x, _) = Gives(make), points(6)
    with pytest.raises(ValueError, match=words): pseudo_label(model, x)
    assert model.training
    with pytest.raises(ValueError, match=words):
        meta_pseudo_labels(Gives(make), linear(), [points(4)], [points(4)], lambda p: SGD(linear().parameters(), .1),
                           partial(SGD, lr=.1), 1)


# Rounds

def descend(model, x, shares, lr, n_steps):
    "Plain gradient descent on all of it, written out."
    for _ in range(n_steps):
        grad_logits = (F.softmax(x @ model.weight.T + model.bias, 1) - shares) / len(x)
        with torch.no_grad():
            model.weight -= lr * grad_logits.T @ x
            model.bias -= lr * grad_logits.sum(0)


def descent(model, batches, lr=.5, n_steps=5):
    opt = SGD(model.parameters(), lr=lr)
    for _ in range(n_steps):
        for xb, yb in batches:
            soft_cross_entropy(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()


@every_device
@pytest.mark.parametrize("soft", [True, False])
def test_rounds_are_those_written_out(soft, device):
    teacher, (x, y), (u, _) = net(device=device), points(9, device=device), points(40, 2, device)
    given, before = [part.clone() for part in (x, y, u)], state(teacher)
    students = noisy_student(teacher, lambda: linear(5), (x, y), u, descent, 3, soft=soft, balance=False, batch_size=49)
    labels, hot = probs_of(teacher, u), torch.eye(3, dtype=F64, device=device)
    for student in students:
        other = linear(5, device).requires_grad_(False)
        descend(other, torch.cat([x, u]), torch.cat([hot[y], labels if soft else hot[labels.argmax(1)]]), .5, 5)
        torch.testing.assert_close(student.weight.detach(), other.weight, **CLOSE)
        labels = probs_of(other, u)
    assert len(students) == 3 and same_state(before, teacher) and all(map(torch.equal, given, (x, y, u)))


def test_noise_is_the_students_alone():
    teacher, asked, moved = net(), [], []
    teacher.register_forward_pre_hook(lambda model, args: asked.append((args[0].clone(), model.training)))

    def noise(xb, yb):
        moved.append(len(xb))
        return xb + 1., yb
    seen, u = [], points(20, 2)[0]
    far = lambda a, b: (a[:, None] - b).abs().amax(2).amin(1).max()
    noisy_student(teacher, linear, points(9), u, lambda model, batches: seen.extend(xb for xb, _ in batches), 1, noise,
                  balance=False, batch_size=10)
    assert torch.equal(torch.cat([x for x, _ in asked]), u) and not any(training for _, training in asked)
    assert moved == [10, 10] and all(far(xb - 1, torch.cat([points(9)[0], u])) < 1e-12 for xb in seen)


def test_the_teacher_of_the_next_round_is_the_last_student_in_evaluation_mode_and_its_mode_stays():
    made, asked = [], []

    def new_student():
        made.append(net(len(made) + 7))
        made[-1].register_forward_hook(lambda model, args, out: asked.append((model, model.training)))
        return made[-1]
    students = noisy_student(net(), new_student, points(9), points(12, 2)[0], lambda *_: None, 3)
    assert all(a is b for a, b in zip(students, made, strict=True)) and all(student.training for student in students)
    assert asked == [(made[0], False), (made[1], False)]


def test_a_seed_decides_the_order_and_rounds_have_others():
    def orders(**options):
        found = []
        look = lambda _, batches: found.append(next(iter(batches))[0])
        noisy_student(linear(), linear, points(9), points(12, 2)[0], look, **options)
        return found
    assert all(map(torch.equal, orders(seed=3), orders(seed=3))) and not torch.equal(*orders(seed=3))
    assert not torch.equal(orders(seed=3)[0], orders(seed=9)[0])


def test_a_learner_fits_students_with_callbacks_and_one_that_broke_off_leaves_the_teacher():
    class Break(Callback):
        def after_step(self, learn): raise KeyboardInterrupt
    recorders = []

    def fit(model, batches, *more):
        recorders.append(Recorder())
        Learner(model, DataLoaders(batches, None), soft_cross_entropy, SGD, .1, [recorders[-1], *more]).fit(2)
    teacher = net()
    before = state(teacher)
    students = noisy_student(teacher, lambda: net(3), points(9), points(24, 2)[0], fit, balance=False, batch_size=11)
    assert len(students) == 2 and [len(recorder.losses) for recorder in recorders] == [6, 6]
    assert same_state(before, teacher)
    other = net(8)
    other.load_state_dict(students[-1].state_dict())
    assert torch.equal(*(pseudo_label(model, points(5)[0])[1] for model in (other, students[-1])))
    with pytest.raises(KeyboardInterrupt):
        noisy_student(teacher, lambda: net(3), points(9), points(24, 2)[0], lambda *args: fit(*args, Break()))
    assert same_state(before, teacher) and all(module.training for module in teacher.modules())


def test_what_is_no_student_is_refused():
    with pytest.raises(ValueError, match="new_student"):
        noisy_student(linear(), lambda: None, points(9), points(12)[0], lambda *_: None)


# The feedback, against autograd through the student's step

def feedbacks(lr, form, n=3):
    "For linear nets: (exact gradient of the student's new loss for the teacher, mean of form's over all labels)."
    teacher, student = (linear(seed).weight.detach().T.clone().requires_grad_() for seed in (0, 1))
    u, (x, y) = points(n, 5)[0], points(6)
    loss = -((u @ teacher).softmax(1) * (u @ student).log_softmax(1)).sum(1).mean()
    [grad] = torch.autograd.grad(loss, student, create_graph=True)
    [exact] = torch.autograd.grad(F.cross_entropy(x @ (student - lr * grad), y), teacher)
    old, mean = F.cross_entropy(x @ student, y), torch.zeros_like(exact)
    for labels in itertools.product(range(3), repeat=n):
        labels, logits = torch.tensor(labels), u @ teacher
        [grad] = torch.autograd.grad(F.cross_entropy(u @ student, labels), student)
        new = F.cross_entropy(x @ (student - lr * grad), y)
        [one] = torch.autograd.grad(form(old, new, logits, labels), teacher)
        mean += logits.softmax(1)[range(n), labels].prod().detach() * one
    return exact.flatten(), mean.flatten()


@pytest.mark.parametrize("n", [1, 3])
def test_the_mean_of_the_feedback_over_labels_is_the_exact_gradient_to_first_order(n):
    "A batch of n shares the loss's fall, so its mean is the gradient's n-th part."
    off = []
    for lr in (1e-2, 1e-3, 1e-4):
        exact, mean = feedbacks(lr, feedback_loss, n)
        off.append(((exact - n * mean).norm() / exact.norm()).item())
    assert off[0] < .05 and off[1] < off[0] / 9 and off[2] < off[1] / 9     # what is left falls with the rate
    assert F.cosine_similarity(exact, mean, 0) > 1 - 1e-8


def test_the_other_sign_points_the_other_way():
    def released(old, new, logits, labels): return (new - old).detach() * F.cross_entropy(logits, labels)
    exact, mean = feedbacks(1e-4, released)
    assert F.cosine_similarity(exact, mean, 0) < -1 + 1e-8


@every_device
@pytest.mark.parametrize("old, new", [(2., 1.5), (1., 1.7), (.4, .4)])
def test_descent_on_the_feedback_makes_labels_likelier_that_helped(old, new, device):
    logits = torch.randn(5, 3, dtype=F64, requires_grad=True, device=device)
    labels = torch.tensor([0, 2, 1, 1, 0], device=device)
    losses = [torch.tensor(value, requires_grad=True, dtype=F64, device=device) for value in (old, new)]
    loss = feedback_loss(*losses, logits, labels)
    [grad] = torch.autograd.grad(loss, logits)
    assert all(value.grad is None for value in losses)
    torch.testing.assert_close(loss, mended_feedback(*losses, logits.log_softmax(1)[range(5), labels]), **CLOSE)
    rise = (logits - 1e-2 * grad).log_softmax(1)[range(5), labels].sum() - logits.log_softmax(1)[range(5), labels].sum()
    assert torch.sign(rise).item() == (old > new) - (old < new)


# Meta pseudo labels

@pytest.fixture
def drawn(monkeypatch):
    "Labels that are drawn by the hands of a clock, and what logits they were drawn from."
    found = []

    def sample(self, shape=()):
        found.append(self.logits.detach().clone())
        return (torch.arange(len(self.logits)) + len(found)) % 3
    monkeypatch.setattr(torch.distributions.Categorical, "sample", sample)
    return found


def written_out(teacher, student, few, many, lrs, n_steps, feedback):
    "The steps on linear nets, gradients by hand; few, many: the same whole batch each time."
    (x, y), u, usual, gains = few, many, None, []
    hot = torch.eye(3, dtype=F64)
    loss_of = lambda model: F.cross_entropy(x @ model.weight.T + model.bias, y).item()

    def step(model, lr, *parts):
        for inputs, signal in parts:
            model.weight -= lr * signal.T @ inputs
            model.bias -= lr * signal.sum(0)
    signal = lambda model, inputs, shares: (F.softmax(inputs @ model.weight.T + model.bias, 1) - shares) / len(inputs)
    for i in range(1, n_steps + 1):
        labels, old = hot[(torch.arange(len(u)) + i) % 3], loss_of(student)
        step(student, lrs[1], (u, signal(student, u, labels)))
        gains.append(old - loss_of(student))
        usual = gains[0] if usual is None else .99 * usual + .01 * gains[-1]
        weight = feedback * (gains[-1] - usual)
        step(teacher, lrs[0], (x, signal(teacher, x, hot[y])), (u, weight * signal(teacher, u, labels)))
    return gains


@pytest.mark.parametrize("feedback", [0., 1., -3., 50.])
def test_steps_of_teacher_and_student_are_those_written_out(drawn, feedback):
    nets = [linear(0), linear(1)]
    others = [linear(0).requires_grad_(False), linear(1).requires_grad_(False)]
    few, u = points(12), points(8, 2)[0]
    gains = meta_pseudo_labels(*nets, [few], [(u, None)], partial(SGD, lr=.3), partial(SGD, lr=.7), 4, feedback)
    assert gains == pytest.approx(written_out(*others, few, u, (.3, .7), 4, feedback), abs=1e-10) and len(drawn) == 4
    for ours, theirs in zip(nets, others):
        torch.testing.assert_close(ours.weight.detach(), theirs.weight, **CLOSE)
        torch.testing.assert_close(ours.bias.detach(), theirs.bias, **CLOSE)


def test_the_feedbacks_gradient_is_that_of_the_statistics_the_labels_were_drawn_with(drawn):
    "A batch that moves running statistics between forward and backward would spoil it, and torch does not notice."
    (x, y), u = points(12), points(8, 2)[0]
    x = 5 * x + 3
    teacher, student = net(p=0.), linear(1)
    clean, other = copy.deepcopy(teacher), copy.deepcopy(student)
    opt = partial(torch.optim.SGD, lr=.3)
    gains = meta_pseudo_labels(teacher, student, [(x, y)], [u], opt, opt, 2, 50.)
    opt_clean, usual = opt(clean.parameters()), None
    for i, gain in enumerate(gains, 1):
        usual = gain if usual is None else .99 * usual + .01 * gain
        opt_clean.zero_grad()
        own = F.cross_entropy(clean.train()(x), y)
        own.backward()
        (50. * (gain - usual) * F.cross_entropy(clean.eval()(u), (torch.arange(8) + i) % 3)).backward()
        opt_clean.step()
    for a, b in zip(state(teacher), state(clean)): torch.testing.assert_close(a, b, **CLOSE)
    torch.testing.assert_close(state(other)[0], state(linear(1))[0])


def test_labels_are_drawn_from_the_teacher_in_evaluation_mode(drawn):
    teacher = net()
    wanted = F.log_softmax(copy.deepcopy(teacher).eval()(points(8, 2)[0]), 1)
    x, y = points(4)
    teacher[1].momentum = 0.                         # its running statistics stay
    meta_pseudo_labels(teacher, linear(1), [(x, y)], [points(8, 2)[0]], partial(SGD, lr=.1), partial(SGD, lr=.1), 1)
    torch.testing.assert_close(drawn[0], wanted.detach(), **CLOSE)


def test_labels_are_drawn_by_lot():
    torch.manual_seed(0)
    seen, teacher = [], linear()
    u = points(1, 2)[0].expand(4000, 4)
    share = probs_of(teacher, u)[0]

    def look(xb, labels):
        seen.append(labels)
        return xb, labels
    meta_pseudo_labels(teacher, linear(1), [points(4)], [u], partial(SGD, lr=0.), partial(SGD, lr=.1), 1, noise=look)
    torch.testing.assert_close(seen[0].bincount(minlength=3) / 4000, share.float(), atol=.03, rtol=0)


def test_without_feedback_the_teacher_learns_as_if_alone():
    teacher, alone = linear(), linear()
    meta_pseudo_labels(teacher, linear(1), loader(), loader(32, 2), partial(Adam, lr=.1), partial(SGD, lr=.1), 7, 0.)
    opt, batches = Adam(alone.parameters(), lr=.1), loader()
    for xb, yb in itertools.islice(itertools.chain.from_iterable(itertools.repeat(batches)), 7):
        F.cross_entropy(alone(xb), yb).backward()
        opt.step()
        opt.zero_grad()
    torch.testing.assert_close(teacher.weight, alone.weight, **CLOSE)


@every_device
def test_noise_is_for_the_student_and_shorter_loaders_begin_again(device):
    torch.manual_seed(4)
    teacher, student, moved, asked = net(0, device), net(1, device), [], []

    def noise(xb, yb):
        moved.append(len(xb))
        return xb + 100., yb
    teacher.register_forward_pre_hook(lambda model, args: asked.append(args[0].abs().max().item()))
    learnt, least = [], lambda model, args: learnt.append(args[0].min().item()) if model.training else None
    student.register_forward_pre_hook(least)
    x, y = points(24, device=device)
    given = x.clone()
    gains = meta_pseudo_labels(teacher, student, TensorLoader(x, y, 8, shuffle=True), TensorLoader(x, y, 24),
                               partial(SGD, lr=.1), partial(SGD, lr=.1), 5, 1., noise)
    assert len(gains) == 5 and all(type(gain) is float for gain in gains) and moved == [24] * 5
    assert max(asked) < 50 < min(learnt) and torch.equal(x, given)
    assert all(torch.isfinite(value.float()).all() for value in state(teacher, student))


def test_the_students_loss_is_asked_in_evaluation_mode_and_its_step_made_in_training_mode():
    student, (x, y), modes = net(), points(12), []
    wanted = F.cross_entropy(copy.deepcopy(student).eval()(x), y).item()
    student.register_forward_pre_hook(lambda model, args: modes.append(model.training))
    before = student[1].num_batches_tracked.item()
    assert loss_on(student, x, y) == pytest.approx(wanted, abs=1e-12)
    opt = SGD(student.parameters(), lr=.1)
    old, new = learn_and_tell(student, opt, x, y, (x, y))
    assert old == pytest.approx(wanted, abs=1e-12) != new and new == pytest.approx(loss_on(student, x, y), abs=1e-12)
    assert modes == [False, False, True, False, False] and student[1].num_batches_tracked == before + 1


@pytest.mark.parametrize("change, words", [
    ({"teacher": None}, "teacher"), ({"student": nn.Linear}, "student"), ({"labelled": 3}, "labelled"),
    ({"labelled": []}, "empty"), ({"unlabelled": []}, "empty"), ({"labelled": [points(4)[0]]}, "labelled.*pairs"),
    ({"labelled": [(1, 2, 3)]}, "labelled.*pairs"), ({"unlabelled": [3]}, "unlabelled.*pairs"),
    ({"teacher_opt": .1}, "teacher_opt"), ({"teacher_opt": lambda params: None}, "teacher_opt"),
    ({"student_opt": lambda params: 3}, "student_opt"), ({"n_steps": 0}, "n_steps"), ({"n_steps": 2.5}, "n_steps"),
    ({"feedback": float("inf")}, "feedback"), ({"feedback": "much"}, "feedback"), ({"noise": 3}, "noise")])
def test_bad_arguments_of_meta_pseudo_labels(change, words):
    given = {"teacher": linear(), "student": linear(1), "labelled": [points(4)], "unlabelled": [points(4)],
             "teacher_opt": partial(SGD, lr=.1), "student_opt": partial(SGD, lr=.1), "n_steps": 2}
    with pytest.raises(ValueError, match=words): meta_pseudo_labels(**{**given, **change})


def test_a_loader_that_is_used_up_is_an_error_and_no_endless_loop():
    given = partial(SGD, lr=.1)
    with pytest.raises(ValueError, match="used up"):
        meta_pseudo_labels(linear(), linear(1), [points(4)], iter([points(4)]), given, given, 2)


def test_both_nets_are_trained_in_training_mode_whatever_they_were_in():
    teacher, student, modes = net().eval(), net(1).eval(), []
    for model in (teacher, student): model.register_forward_pre_hook(lambda model, args: modes.append(model.training))
    opt = partial(SGD, lr=.1)
    meta_pseudo_labels(teacher, student, [points(12)], [points(8)], opt, opt, 1)
    assert modes == [True, False, False, True, False] and teacher.training and student.training
    assert teacher[1].num_batches_tracked == student[1].num_batches_tracked == 1


def test_by_default_labels_are_soft_all_are_kept_and_classes_balanced():
    teacher, (x, y), (u, _) = linear(), points(9), points(40, 2)
    kept, probs = pseudo_label(teacher, u)
    assert kept.tolist() == list(range(40)) and probs.shape == (40, 3)
    seen = []
    noisy_student(teacher, linear, (x, y), u, lambda _, batches: seen.append(batches), 1, batch_size=1)
    rows = balanced(probs)
    assert torch.equal(seen[0].x, torch.cat([x, u[rows]])) and torch.equal(seen[0].y[9:].to(F64), probs[rows])


def test_more_inputs_than_fit_into_one_batch_are_asked_in_several():
    sizes, model = [], linear()
    model.register_forward_pre_hook(lambda model, args: sizes.append(len(args[0])))
    pseudo_label(model, torch.zeros(2500, 4, dtype=F64))
    assert sum(sizes) == 2500 and max(sizes) < 2500


# The live figure

def test_the_live_figure_counts_what_is_kept_and_what_is_right():
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(300) % 10
    probs = (2.5 * torch.eye(10)[labels] + 1.3 * torch.randn(300, 10, generator=generator)).softmax(1)
    explorer = threshold_explorer(probs, labels, torch.rand(300, 1, 28, 28, generator=generator))
    for threshold in (.1, .4, .6, .85, 1.):
        kept = [i for i in range(300) if probs[i].max() >= threshold]
        right = sum(probs[i].argmax() == labels[i] for i in kept).item() if kept else 0
        found = explorer.set(threshold=threshold)
        assert (found["n_kept"], found["n_wrong"], found["kept"]) == (len(kept), len(kept) - right, len(kept) / 300)
        assert found["right"] == pytest.approx(right / len(kept) if kept else 0.)
        assert found["per_class"] == [sum(probs[i].argmax() == k for i in kept) for k in range(10)]
        assert found["per_class"][found["smallest"]] == min(found["per_class"])
        assert found["per_class"][found["largest"]] == max(found["per_class"])
    explorer.reset()
    drive(explorer)


def test_the_live_figure_takes_few_images_none_wrong_and_none_right():
    probs, labels = torch.eye(10)[[1, 2]], torch.tensor([1, 2])
    assert threshold_explorer(probs, labels, torch.rand(2, 1, 28, 28)).set(threshold=1.)["right"] == 1
    assert threshold_explorer(probs, labels + 1, torch.rand(2, 1, 28, 28)).set(threshold=.5)["right"] == 0


# What the chapter measures

@pytest.mark.parametrize("n_per_class", [1, 4])
def test_so_many_labels_of_each_class_drawn_by_a_seed(n_per_class):
    x, y = torch.arange(60.), torch.arange(60) % 5
    few = few_labels(x, y, n_per_class, 3)
    assert Counter(few[1].tolist()) == dict.fromkeys(range(5), n_per_class) and torch.equal(few[0].long() % 5, few[1])
    assert len(set(few[0].tolist())) == 5 * n_per_class
    assert torch.equal(few[0], few_labels(x, y, n_per_class, 3)[0])
    assert set(few[0].tolist()) != set(few_labels(x, y, n_per_class, 4)[0].tolist())
    assert sorted(few_labels(x, y, None, 3)[0].tolist()) == x.tolist()


@pytest.mark.parametrize("n, hidden", [(12, 6), (5, 5), (1, 1)])
def test_images_without_labels_are_none_that_labels_are_drawn_from(n, hidden):
    dls = DataLoaders(TensorLoader(torch.arange(12.)[:, None], torch.arange(12), 4), None)
    (x, y), (u, known) = without_labels(dls, n)
    assert len(u) == hidden and sorted([*x[:, 0].tolist(), *u[:, 0].tolist()]) == list(range(12))
    assert torch.equal(x[:, 0].long(), y) and torch.equal(u[:, 0].long(), known)


@pytest.mark.parametrize("data", ["mnist", "digits"])
def test_what_the_chapter_says_of_its_runs(data):
    found = results("self_training")[data]
    for part in found.values():
        runs = {name: run for name, run in part.items() if name not in ("rates", "sizes")}
        assert all(len(run) == 10 and all(0 < share <= 1 for share in run) for run in runs.values())
        for rates in part["rates"].values():
            if "lr" not in rates: continue
            at = rates["rates"].index(rates["lr"])
            assert 0 < at < len(rates["rates"]) - 1 and rates["tried"][at] == max(rates["tried"])
    few = found["few"]
    assert paired(few["plain > noisy"], few["plain"]).low > 0           # noise helps the student …
    gain = paired(few["plain > plain"], few["plain"]).mean
    assert gain < paired(few["plain > noisy"], few["plain"]).mean / 2   # … and without it little is gained
    if data == "digits": return
    assert paired(few["noisy > noisy"], few["noisy"]).low > 0           # on the embedded digits its interval holds 0
    long = found["long"]
    for name in ("noisy, as long", "noisy, twice as long"):
        assert paired(long["noisy > noisy, as long"], long[name]).low > 0
