"""Dropout, stochastic depth, smoothed labels and SGDW against torch, torchvision and closed forms; in a sweep too."""
import copy
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from scipy import stats
from torch import nn

from course_lib import (
    SGD, SGDW, DataLoaders, Dropout, DropPath, TensorLoader, drop_path_rates, smooth_labels, soft_cross_entropy, sweep)
from course_lib.figures.regularization import IDEAS, SETS, forest_explorer, gains, memory_explorer
from course_lib.regularization import digit_net, residual_net, spoiled
from course_lib.support.results import results
from drive import drive
from tiny import every_device

F64 = torch.float64
LAYERS = {"Dropout": (Dropout, F.dropout),
          "DropPath": (DropPath, partial(torchvision.ops.stochastic_depth, mode="row"))}
every_layer = pytest.mark.parametrize("name", LAYERS)


def drawn(seed, function, *args):
    torch.manual_seed(seed)
    return function(*args)


@every_device
@every_layer
@pytest.mark.parametrize("p", [0., .1, .5, .9, 1.])
@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 2, 6, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_equal_to_torchs_with_the_same_draw_gradients_too(name, p, shape, dtype, device):
    layer, theirs = LAYERS[name]
    x = torch.randn(shape, device=device).to(dtype)
    both = []
    for function in (layer(p), lambda x: theirs(x, p)):
        leaf = x.clone().requires_grad_(True)
        out = drawn(3, function, leaf)
        both.append((out.detach(), torch.autograd.grad(out.float().square().sum(), leaf)[0]))
    if (name, device) == ("Dropout", "cuda"):  # F.dropout draws in another way there
        for out, _ in both: assert out.shape == x.shape
        return
    for mine, reference in zip(*both):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, reference, rtol=3e-2 if dtype is torch.bfloat16 else 1e-6, atol=1e-6)


def test_drop_path_is_timms_with_the_same_draw():
    timm = pytest.importorskip("timm.layers", reason="timm is not installed")
    x = torch.randn(50, 3, 4)
    assert torch.equal(drawn(3, DropPath(.3), x), drawn(3, timm.drop_path, x, .3, True))


@every_device
@every_layer
def test_p_of_1_gives_zeros_and_zero_gradients_whatever_comes_in(name, device):
    x = torch.tensor([[1., math.inf], [-2., math.nan]], device=device, requires_grad=True)
    out = LAYERS[name][0](1.)(x)
    out.sum().backward()
    assert (out == 0).all() and (x.grad == 0).all()


@every_layer
def test_in_evaluation_mode_nothing_happens_and_nothing_is_drawn(name):
    layer, x = LAYERS[name][0](.5), torch.randn(4, 5)
    state = torch.get_rng_state()
    assert layer.eval()(x) is x and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(layer.train()(x), x) or not torch.equal(layer(x), x)
    assert LAYERS[name][0](0.)(x) is x


@every_layer
def test_the_mask_does_not_depend_on_how_x_lies_in_memory(name):
    layer, x = LAYERS[name][0](.5), torch.randn(4, 6, 5, 3)
    for other in (x.to(memory_format=torch.channels_last), x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)):
        assert torch.equal(drawn(0, layer, x), drawn(0, layer, other))


def test_the_mean_stays_and_rows_are_dropped_whole():
    x = torch.ones(20_000, 3)
    for layer, p in ((Dropout(.3), .3), (DropPath(.3), .3)):
        out = drawn(0, layer, x)
        assert out.mean().item() == pytest.approx(1, abs=.02)
        assert (out == 0).float().mean().item() == pytest.approx(p, abs=.01)
    assert {*map(tuple, drawn(0, DropPath(.5), torch.ones(50, 2, 3)).flatten(1).tolist())} == {(0.,) * 6, (2.,) * 6}


@every_layer
@pytest.mark.parametrize("p", [-.1, 1.1, math.nan, math.inf, "a", None, 1j])
def test_a_p_that_is_no_probability_is_refused_also_later(name, p):
    with pytest.raises(ValueError, match="p must be a share"): LAYERS[name][0](p)
    layer = LAYERS[name][0](.5)
    with pytest.raises(ValueError, match="p must be a share"): layer.p = p
    assert layer.p == .5


@every_layer
def test_copied_pickled_printed(name):
    layer = LAYERS[name][0](.25)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.p == .25 and repr(other) == f"{name}(p=0.25)"
    assert not layer.state_dict() and (Dropout().p, DropPath().p) == (.5, 0.)


@every_device
@pytest.mark.parametrize("make", [lambda: digit_net(.5, width=8), lambda: residual_net(.7, n_blocks=3, width=8)],
                         ids=["dropout", "stochastic depth"])
def test_in_a_sweep_each_seed_draws_its_own_masks_and_trains_as_alone(make, device):
    x, y = torch.randn(40, 1, 28, 28), torch.arange(40) % 10
    loader = TensorLoader(x.to(device), y.to(device), 10, shuffle=True)
    grid = {"lr": [.05, .05], "seed": [0, 1]}
    both = sweep(make().to(device), F.cross_entropy, SGD, loader, 6, grid)
    for i, seed in enumerate(grid["seed"]):
        alone = sweep(make().to(device), F.cross_entropy, SGD, loader, 6, {"lr": [.05], "seed": [seed]})
        torch.testing.assert_close(both.loss[0, i], alone.loss[0, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.loss[0], both.loss[1])           # points of a seed share their masks
    assert (both.loss[0, 0] - both.loss[0, 1]).abs().max() > 1e-3    # seeds do not


def test_under_vmap_masks_are_the_same_or_different_as_it_is_told():
    x = torch.ones(3, 40)
    same, different = (torch.vmap(Dropout(.5), randomness=kind)(x) for kind in ("same", "different"))
    assert torch.equal(same[0], same[1]) and not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="random"): torch.vmap(Dropout(.5), randomness="error")(x)


def test_compiled_it_still_drops():
    torch._dynamo.reset()
    net = torch.compile(nn.Sequential(nn.Linear(5, 5), Dropout(.5)), backend="eager", fullgraph=True)
    x = torch.randn(3, 5)
    assert not torch.equal(net(x), net(x))


@pytest.mark.parametrize("p, n", [(.5, 5), (1., 1), (.3, 12), (0., 3)])
def test_rates_rise_linearly_and_end_at_p(p, n):
    rates = drop_path_rates(p, n)
    assert isinstance(rates, list) and len(rates) == n and rates[-1] == p
    np.testing.assert_allclose(rates, np.linspace(0, p, n + 1)[1:])   # the paper's: the input has 0


@every_device
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("a", [0., .1, .7, 1.])
def test_smoothed_cross_entropy_equals_torchs_gradients_too(a, dtype, device):
    logits = torch.randn(30, 7, dtype=F64, device=device, requires_grad=True)
    targets = torch.randint(7, (30,), device=device)
    smooth = smooth_labels(targets.to(dtype), 7, a)
    torch.testing.assert_close(smooth.sum(1), torch.ones(30, device=device))
    assert smooth.shape == (30, 7) and smooth.dtype == torch.float32
    losses = soft_cross_entropy(logits, smooth.double()), F.cross_entropy(logits, targets, label_smoothing=a)
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses), rtol=1e-5, atol=1e-7)


def test_soft_targets_and_classes_equal_torchs():
    logits, shares, classes = torch.randn(9, 4), torch.rand(9, 4).softmax(1), torch.arange(9) % 4
    for targets in (shares, classes):
        torch.testing.assert_close(soft_cross_entropy(logits, targets), F.cross_entropy(logits, targets))
    losses = torch.vmap(soft_cross_entropy, in_dims=(0, None))(torch.stack([logits, 2 * logits]), shares)
    torch.testing.assert_close(losses[1], F.cross_entropy(2 * logits, shares))


LOGITS = torch.zeros(3, 4)


@pytest.mark.parametrize("call", [
    lambda: smooth_labels(torch.zeros(3), 4), lambda: smooth_labels(torch.zeros(3, 1).long(), 4),
    lambda: smooth_labels(torch.zeros(3).bool(), 4), lambda: smooth_labels(torch.zeros(3).long(), 0),
    lambda: smooth_labels(torch.zeros(3).long(), 4, 1.5), lambda: smooth_labels(torch.zeros(3).long(), 4, math.nan),
    lambda: smooth_labels([0, 1], 4), lambda: soft_cross_entropy(LOGITS, torch.zeros(2).long()),
    lambda: soft_cross_entropy(LOGITS, torch.zeros(3)), lambda: soft_cross_entropy(LOGITS, torch.zeros(3, 5)),
    lambda: soft_cross_entropy(LOGITS, torch.zeros(3, 4).long()),
    lambda: soft_cross_entropy(LOGITS.long(), torch.zeros(3).long()),
    lambda: soft_cross_entropy(LOGITS[0], torch.zeros(4)), lambda: soft_cross_entropy(LOGITS, [0, 1, 2]),
    lambda: drop_path_rates(1.5, 3), lambda: drop_path_rates(math.nan, 3), lambda: drop_path_rates(.5, 0),
    lambda: spoiled(torch.zeros(3).long(), 1.5), lambda: SGDW([nn.Parameter(LOGITS)], momentum=1.),
    lambda: SGDW([nn.Parameter(LOGITS)], weight_decay=-1.), lambda: SGDW([nn.Parameter(LOGITS)], lr=math.nan)])
def test_bad_arguments(call):
    with pytest.raises(ValueError, match="must be"): call()


@every_device
@pytest.mark.parametrize("momentum", [0, .9])
def test_sgdw_is_torchs_sgd_after_the_weights_are_shrunk(momentum, device):
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(shape, dtype=F64, device=device)) for shape in ((4, 3), (3,))]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    opt, reference = SGDW(mine, .05, momentum, .3), torch.optim.SGD(theirs, .05, momentum)
    for _ in range(100):
        for p, q in zip(mine, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
            with torch.no_grad(): q.mul_(1 - .05 * .3)
        opt.step(), reference.step()
    for p, q in zip(mine, theirs): torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert opt.hyper_names == ["lr", "weight_decay", "beta"]


@every_device
def test_spoiled_changes_just_that_share_into_other_classes(device):
    targets = (torch.arange(1000) % 10).to(device)
    for share in (0., .25, 1.):
        wrong = spoiled(targets, share)
        assert (wrong != targets).sum() == 1000 * share and 0 <= wrong.min() and wrong.max() < 10
    first, again, other = spoiled(targets, .3), spoiled(targets, .3), spoiled(targets, .3, seed=1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    counts = torch.bincount((spoiled(targets, 1.) - targets) % 10, minlength=10)[1:].cpu()
    assert stats.chisquare(counts).pvalue > 1e-4


def images():
    "A small set of three kinds of images."
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 3
    x = torch.randn(240, 1, 28, 28, generator=generator) + 2 * (y == 1).float().view(-1, 1, 1, 1)
    return DataLoaders(TensorLoader(x[:200], y[:200], 100), TensorLoader(x[200:], y[200:], 40))


def test_the_memory_figure_says_what_it_trains():
    state = torch.get_rng_state()
    seen = drive(memory_explorer(images(), n_epochs=3))
    assert torch.equal(torch.get_rng_state(), state)
    for s, _ in seen:
        assert s["epoch"] == 3 and s["best"] >= s["valid"] and 1 <= s["best_epoch"] <= 3
    assert {(s["noise"], s["dropout"]) for s, _ in seen} >= {(0., 0.), (.8, .8)}


def test_the_memory_figure_trains_with_the_labels_it_says():
    dls = images()
    explorer = memory_explorer(dls, n_epochs=2)
    s = explorer.set(noise=.4, dropout=0.)
    labels = spoiled(dls.train.y, .4)
    torch.manual_seed(0)
    model = digit_net()
    opt = torch.optim.SGD(model.parameters(), .02, .9)
    for epoch in range(2):
        loader = TensorLoader(dls.train.x, labels, 100, shuffle=True, drop_last=True, seed=1)
        loader.epoch = epoch
        for xb, yb in loader:
            opt.zero_grad()
            F.cross_entropy(model(xb), yb).backward()
            opt.step()
    share = (model(dls.train.x).argmax(1) == labels).float().mean().item()
    assert s["train"] == pytest.approx(share, abs=.02)
    explorer.close()


@pytest.mark.parametrize("data", ["mnist", "digits"])
def test_the_forest_shows_students_intervals_of_the_stored_runs(data):
    stored = results("regularization")[data]
    for s, _ in drive(forest_explorer(stored),
                      also=lambda s: ["40 %", "100 labels", s["of"] - s["better"] - s["worse"]]):
        runs, tuned = stored[SETS[s["set"]]], s["strength"].startswith("tuned")
        for idea, mean in s["mean"].items():
            assert gains(runs, idea, tuned, s["seeds"]).mean == mean
            if idea != "dropout": continue
            name = idea if tuned or "dropout, as for noisy" not in runs else "dropout, as for noisy"
            a, b = (100 * np.array(side["test"][:s["seeds"]]) for side in (runs[name], runs["plain"]))
            low, high = stats.ttest_rel(a, b).confidence_interval()
            assert (s["low"][idea], s["high"][idea]) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
        assert s["better"] + s["worse"] <= s["of"] == len(s["mean"])


@pytest.mark.parametrize("data", ["mnist", "digits"])
def test_what_the_chapter_says_of_its_runs(data):
    runs = results("regularization")[data]["noisy"]
    for idea in IDEAS: assert gains(runs, idea).low > 1, idea
    for run in runs.values(): assert len(run["test"]) == 20
