"""A grid with seeds: each (seed, point) against the same model initialised and trained alone by torch.optim; paired
differences against SciPy's t-test; what is refused."""
import asyncio
import copy
import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from course_lib.adam import Adam
from course_lib.data import TensorLoader, digits
from course_lib.figures.sweeps import forest_explorer
from course_lib.momentum import SGD, average_grad, momentum_step
from course_lib.rmsprop import RMSProp
from course_lib.sgd import Optimizer
from course_lib.support.paired import central_t, paired
from course_lib.support.results import results
from course_lib.sweeps import Ensemble, mlp as sweeps_mlp, sweep
from test_sweeps import F64, Used, conv, frozen, mlp, net, pairs, trained_alone
from tiny import every_device

momentum_sgd = partial(SGD, lr=.05, momentum=.9)


@pytest.fixture(autouse=True)
def small_work(one_thread):
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False): yield


def masked(): return nn.Sequential(nn.Flatten(), nn.Linear(36, 7), nn.Dropout(.3), nn.ReLU(), nn.Linear(7, 3))


NETS = {"mlp": mlp, "conv": conv, "batchnorm": lambda: conv(nn.BatchNorm2d(2)), "dropout": masked,
        "norms and dropout": lambda: conv(nn.BatchNorm2d(2, momentum=None), nn.Dropout(.5), nn.GroupNorm(1, 2))}


def initialised(model, seed, draw=None):
    "As anyone would: seed the generator, then let each layer draw, in order; on the CPU."
    model = copy.deepcopy(model).cpu()
    torch.manual_seed(seed)
    if draw: draw(model)
    else:
        for module in model.modules():
            if hasattr(module, "reset_parameters"): module.reset_parameters()
    return model


def assert_each_alone(model, grid, n_steps=6, device="cpu", draw=None, **options):
    result = sweep(model.to(device), F.cross_entropy, momentum_sgd, pairs(), n_steps, grid, **options)
    assert result.loss.shape == (*map(len, grid.values()), n_steps)
    for index in itertools.product(*map(range, result.shape)):
        point = result.at(*index)
        start = initialised(model, point["seed"], draw).to(device)
        expected, losses = trained_alone(start, lambda params: torch.optim.SGD(
            params, lr=point.get("lr", .05), momentum=point.get("beta", .9)), pairs(), n_steps, seed=point["seed"])
        torch.testing.assert_close(result.loss[index], losses, rtol=1e-8, atol=1e-8, msg=lambda m: f"{point}: {m}")
        own, state = result.params(*index), expected.state_dict()
        for name in state:
            torch.testing.assert_close(own[name], state[name], rtol=1e-8, atol=1e-8, msg=lambda m: f"{point}: {m}")
    return result


def assert_masks_on_a_gpu(model):
    """There a mask for N models is drawn by another kernel than one for a model alone, and the sweep says so. What must
    hold: a seed's points share their masks, two seeds do not, and neighbours change nothing.
    """
    lrs, seeds = [.02, .1, .1], [3, 0, 11]
    with pytest.warns(UserWarning, match="draw in another order"):
        loss = sweep(model, F.cross_entropy, momentum_sgd, pairs(), 8, {"seed": seeds, "lr": lrs}).loss
    assert torch.equal(loss[:, 1], loss[:, 2]) and (loss[0] != loss[1]).all()
    for i, seed in enumerate(seeds):
        alone = sweep(model, F.cross_entropy, momentum_sgd, pairs(), 8, {"seed": [seed], "lr": lrs[1:2]}).loss
        torch.testing.assert_close(alone[0, 0], loss[i, 1], rtol=1e-8, atol=1e-8)


@every_device
@pytest.mark.parametrize("kind", NETS)
def test_each_seed_and_point_is_trained_as_alone(kind, device):
    torch.manual_seed(0)
    if device == "cuda" and "dropout" in kind: return assert_masks_on_a_gpu(NETS[kind]().double().to(device))
    assert_each_alone(NETS[kind]().double(), {"seed": [3, 0, 11], "lr": [.02, .1]}, device=device)


@pytest.mark.parametrize("grid", [{"seed": range(4)}, {"lr": [.02, .1], "seed": [3, 0, 11]},
                                  {"lr": [.02, .1, .05], "seed": [5, 2], "beta": [0., .9]},
                                  {"seed": torch.tensor([7, 2 ** 40])}], ids=str)
@pytest.mark.parametrize("kind", ["mlp", "dropout"])
def test_the_axis_of_seeds_may_stand_anywhere(kind, grid):
    torch.manual_seed(0)
    result = assert_each_alone(NETS[kind]().double(), grid)
    axis = result.names.index("seed")
    assert result.values[axis].dtype is torch.int64
    finals = result.final()
    assert finals.shape == result.diverged.shape == tuple(map(len, grid.values()))
    torch.testing.assert_close(result.over_seeds(), finals.mean(axis))
    assert finals[result.best()] == finals.min()
    torch.testing.assert_close(finals, result.loss[..., -1])


def test_all_points_of_a_seed_share_weights_and_masks_and_no_two_seeds_do():
    loss = sweep(masked(), F.cross_entropy, momentum_sgd, pairs(dtype=torch.float32), 5,
                 {"lr": [.1, .1], "seed": [1, 2]}).loss
    assert torch.equal(loss[0], loss[1]) and (loss[0, 0] != loss[0, 1]).all()


def test_weights_differ_by_seed_where_nothing_else_is_drawn():
    first = sweep(mlp(), F.cross_entropy, momentum_sgd, pairs(dtype=torch.float32), 1, {"seed": range(20)}).loss[:, 0]
    assert len(first.unique()) == 20


@pytest.mark.parametrize("kind", ["mlp", "dropout"])
def test_a_grid_cut_into_slices_gives_the_same(kind):
    torch.manual_seed(0)
    model, grid = NETS[kind]().double(), {"lr": [.01, .05, .1], "seed": range(4)}
    whole = sweep(model, F.cross_entropy, momentum_sgd, pairs(), 6, grid)
    tight = sweep(model, F.cross_entropy, momentum_sgd, pairs(), 6, grid, max_bytes=40_000)
    assert len(tight.slices) > len(whole.slices) == 1
    torch.testing.assert_close(tight.loss, whole.loss, rtol=1e-10, atol=1e-10)
    for name, value in whole.params(2, 0).items(): torch.testing.assert_close(tight.params(2, 0)[name], value)


def test_model_and_random_state_stay_as_they_were():
    model = conv(nn.BatchNorm2d(2), nn.Dropout(.2)).double()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sweep(model, F.cross_entropy, momentum_sgd, pairs(), 3, {"seed": range(3)})
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_frozen_stays_and_is_not_drawn():
    model = frozen(net(), "1.weight", "1.bias")
    result = sweep(model, F.cross_entropy, momentum_sgd, pairs(), 3, {"seed": range(2)})
    a, b = result.params(0), result.params(1)
    assert torch.equal(a["1.weight"], model[1].weight) and torch.equal(b["1.weight"], model[1].weight)
    assert not torch.equal(a["3.weight"], b["3.weight"])


def scaled():
    "A module whose own parameter no `reset_parameters` draws."
    return Used(lambda m, x: m.out(x.flatten(1)) * m.scale, scale=nn.Parameter(torch.ones(3)), out=nn.Linear(36, 3))


def test_a_module_that_cannot_draw_its_weights_is_named_and_init_helps():
    with pytest.raises(ValueError, match="Used has no reset_parameters. Pass init"):
        sweep(scaled().double(), F.cross_entropy, momentum_sgd, pairs(), 3, {"seed": range(2)})
    inside = nn.Sequential(scaled()).double()
    with pytest.raises(ValueError, match=r"Used \(0\) has no reset_parameters"):
        sweep(inside, F.cross_entropy, momentum_sgd, pairs(), 3, {"seed": range(2)})

    def draw(model):
        for p in model.parameters(): nn.init.normal_(p, std=.1)

    assert_each_alone(scaled().double(), {"seed": [4, 1], "lr": [.1]}, draw=draw, init=draw)


def test_seeds_that_change_nothing_are_refused():
    with pytest.raises(ValueError, match="Two seeds gave the same weights"):
        sweep(mlp(), F.cross_entropy, momentum_sgd, pairs(dtype=torch.float32), 3, {"seed": range(3)},
              init=lambda model: nn.init.zeros_(model[1].weight))


@pytest.mark.parametrize("seeds", [[], [1.5], [-1], [1, 2, 1], 5, "012", None, [2 ** 63], [[1]], [math.nan], ["a"]],
                         ids=str)
def test_bad_seeds_are_refused(seeds):
    with pytest.raises(ValueError, match=r"grid\['seed'\]"):
        sweep(mlp(), F.cross_entropy, SGD, pairs(dtype=torch.float32), 2, {"seed": seeds})


def test_a_bad_init_is_refused():
    with pytest.raises((ValueError, TypeError), match="init"):
        sweep(mlp(), F.cross_entropy, SGD, pairs(dtype=torch.float32), 2, {"seed": range(2)}, init="normal")


@pytest.mark.parametrize("ours, theirs", [(Adam, torch.optim.Adam), (RMSProp, torch.optim.RMSprop),
                                          (partial(Adam, weight_decay=.1), partial(torch.optim.Adam, weight_decay=.1))])
def test_optimizers_without_any_hyperparameter_in_the_grid(ours, theirs):
    result = sweep(net(), F.cross_entropy, ours, pairs(), 5, {"seed": [1, 6]})
    for i, seed in enumerate([1, 6]):
        losses = trained_alone(initialised(net(), seed), theirs, pairs(), 5)[1]
        torch.testing.assert_close(result.loss[i], losses, rtol=1e-8, atol=1e-8)


def clip_each(p, grad, state, *, lr, limit=.1):
    axes = tuple(range(int(isinstance(lr, torch.Tensor) and lr.ndim > 0), p.ndim))
    return grad * (limit / torch.linalg.vector_norm(grad, dim=axes, keepdim=True)).clamp(max=1)


@pytest.mark.parametrize("grid", [{"seed": [1, 6]}, {"beta": [.5, .9]}], ids=str)
def test_steppers_know_n_models_by_a_rate_for_each(grid):
    opt_func = lambda params: Optimizer(params, [clip_each, average_grad, momentum_step], lr=.1, beta=.5)
    result = sweep(net(), F.cross_entropy, opt_func, pairs(), 5, grid)
    start = initialised(net(), 1) if "seed" in grid else net()
    losses = trained_alone(start, opt_func, pairs(), 5)[1]
    torch.testing.assert_close(result.loss[0], losses, rtol=1e-8, atol=1e-8)


def test_on_step_sees_the_grid_as_it_was_given():
    seen = []
    sweep(mlp(), F.cross_entropy, SGD, pairs(dtype=torch.float32), 4, {"lr": [.1, .2, .3], "seed": range(2)},
          on_step=lambda step, loss: seen.append((step, loss.shape, loss[..., :step + 1].isfinite().all().item())))
    assert seen == [(step, (3, 2, 4), True) for step in range(4)]


def test_a_seed_that_is_lost_leaves_the_others_alone():
    lrs = {"lr": [.05, 1e300], "seed": range(3)}
    result = sweep(net(), F.cross_entropy, SGD, pairs(), 6, lrs)
    calm = sweep(net(), F.cross_entropy, SGD, pairs(), 6, {"lr": [.05, .05], "seed": range(3)})
    assert torch.equal(result.loss[0], calm.loss[0]) and result.diverged[1].all() and not result.diverged[0].any()
    assert result.over_seeds()[1].isinf()


def test_an_ensemble_takes_seeds_among_its_hyperparameters():
    ensemble = Ensemble(net(), F.cross_entropy, SGD, {"seed": torch.tensor([4, 4, 9]), "lr": torch.full((3,), .1)})
    weights = ensemble.params["1.weight"]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(weights[2], initialised(net(), 9)[1].weight)


# Paired differences

@pytest.fixture(scope="module")
def trained():
    grid = {"seed": range(8), "lr": [.01, .1], "beta": [0., .5, .9]}
    return sweep(net(), F.cross_entropy, partial(SGD, momentum=.9), pairs(), 20, grid)


def test_paired_differences_are_those_of_the_same_seeds(trained):
    found = trained.paired((0, 2), (1, 1))
    a, b = trained.final()[:, 0, 2], trained.final()[:, 1, 1]
    assert torch.equal(found.differences, a - b)
    theirs = stats.ttest_rel(a, b).confidence_interval(.95)
    assert found.interval == pytest.approx((theirs.low, theirs.high), rel=1e-6)
    assert (found.low, found.high) == found.interval and found.mean == pytest.approx((a - b).mean().item())
    wider = trained.paired((0, 2), (1, 1), confidence=.99)
    theirs = stats.ttest_rel(a, b).confidence_interval(.99)
    assert wider.interval == pytest.approx((theirs.low, theirs.high), rel=1e-6)
    by_name = trained.paired({"lr": .01, "beta": .9}, {"beta": .5, "lr": .1})
    assert torch.equal(by_name.differences, found.differences)
    assert "95%, 8 paired seeds" in str(found) and "-" not in str(found)
    torch.testing.assert_close(trained.paired((0, 2), (1, 1), n_last=5).differences,
                               trained.loss[:, 0, 2, -5:].mean(-1) - trained.loss[:, 1, 1, -5:].mean(-1))


def test_another_sweep_over_the_same_seeds_can_be_the_other_side(trained):
    adam = sweep(net(), F.cross_entropy, Adam, pairs(), 20, {"seed": range(8)})
    found = adam.paired((), (1, 2), trained)
    torch.testing.assert_close(found.differences, adam.final() - trained.final()[:, 1, 2])


def test_one_other_axis_needs_no_tuple():
    result = sweep(net(), F.cross_entropy, SGD, pairs(), 5, {"lr": [.01, .1], "seed": range(3)})
    torch.testing.assert_close(result.paired(1, 0).differences, result.final()[1] - result.final()[0])


@pytest.mark.parametrize("a, error, words", [
    ((0,), IndexError, "no point of this grid"), ((0, 3), IndexError, "no point of this grid"),
    ((0, 1, 2), IndexError, "no point"), ({"lr": .01}, ValueError, "needs lr, beta besides the seed, not lr"),
    ({"lr": .02, "beta": 0.}, ValueError, "lr = 0.02 is no value of this grid; it has 0.01, 0.1"),
    ({"lr": "x", "beta": 0.}, ValueError, "lr = 'x' is no value"), ("ab", IndexError, "no point"),
    (({}, 1), IndexError, "no point"), ((True, 1.), IndexError, "no point")], ids=str)
def test_points_that_are_none_are_refused(trained, a, error, words):
    with pytest.raises(error, match=words): trained.paired(a, (0, 0))
    with pytest.raises(error, match=words): trained.paired((0, 0), a)


def test_what_cannot_be_paired_is_refused(trained):
    without = sweep(net(), F.cross_entropy, SGD, pairs(), 3, {"lr": [.1, .2]})
    with pytest.raises(ValueError, match="no seeds to compare"): without.paired(0, 1)
    with pytest.raises(ValueError, match="other must be a Sweep, not Tensor"): trained.paired(0, 1, trained.loss)
    others = sweep(net(), F.cross_entropy, SGD, pairs(), 3, {"seed": range(1, 9)})
    with pytest.raises(ValueError, match="Only runs of the same seeds"): others.paired((), (0, 0), trained)
    lost = sweep(net(), F.cross_entropy, SGD, pairs(), 6, {"lr": [.1, 1e300], "seed": range(2)})
    with pytest.raises(ValueError, match=r"second results have no finite value at places \[0, 1\]"): lost.paired(0, 1)
    one = sweep(net(), F.cross_entropy, SGD, pairs(), 3, {"lr": [.1, .2], "seed": [1]})
    with pytest.raises(ValueError, match="at least two seeds"): one.paired(0, 1)
    for confidence in (0, 1, 95, math.nan):
        with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
            trained.paired((0, 0), (1, 1), confidence=confidence)


@pytest.mark.parametrize("df", [1, 2, 3, 9, 19, 99])
def test_the_interval_is_students(df):
    for confidence in (.5, .8, .95, .99):
        assert central_t(df, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, df), rel=1e-5)


def test_paired_lists():
    a, b = [1., 2., 4.], [1.5, 2.25, 3.]
    theirs = stats.ttest_rel(a, b).confidence_interval(.95)
    assert paired(a, b).interval == pytest.approx((theirs.low, theirs.high), rel=1e-6)
    for wrong in (([1.], [2.]), ([1., 2.], [1.]), (1., 2.), ([[1., 2.]], [[1., 2.]])):
        with pytest.raises(ValueError, match="equal length"): paired(*wrong)


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    draws = torch.randn(2000, 10, generator=torch.Generator().manual_seed(0), dtype=F64)
    hits = sum(found.low < .3 < found.high for found in (paired(row + .3, torch.zeros(10)) for row in draws[:400]))
    assert .92 < hits / 400 < .98  # 95 ± 3 standard errors of 400 draws


# The forest plot

def test_the_forest_says_what_the_sweep_found():
    explorer = forest_explorer(digits(device="cpu").train, betas=(.5, .9), n_steps=40)
    explorer.set(lr=.03, n_seeds=5)
    state = asyncio.run(explorer.done())
    train = digits(device="cpu").train
    loader = TensorLoader(train.x, train.y, 64, shuffle=True, drop_last=True, seed=1)
    result = sweep(sweeps_mlp(784, 50, 10), F.cross_entropy, partial(SGD, lr=state["lr"], momentum=.9), loader, 40,
                   {"seed": range(5), "beta": [0., .5, .9]})
    assert state["step"] == 40 and state["n_seeds"] == 5
    for i in (0, 1):
        theirs = stats.ttest_rel(result.final()[:, i + 1].double(), result.final()[:, 0].double())
        interval = theirs.confidence_interval(.95)
        assert (state["low"][i], state["high"][i]) == pytest.approx((interval.low, interval.high), rel=1e-3)
        assert state["verdict"][i] == ("lower" if interval.high < 0 else "higher" if interval.low > 0 else "open")
        assert f"beta {state['betas'][i]:g} {'better' if interval.high < 0 else ''}" in explorer.words(state)


def test_the_forest_fills_in():
    explorer = forest_explorer(digits(device="cpu").train, betas=(.9, .98), n_steps=60)
    asyncio.run(explorer.done())
    steps = []
    explorer.figure.image.observe(lambda change: steps.append(change), "value")
    explorer.set(lr=.01, n_seeds=40)
    asyncio.run(explorer.done())
    assert len(steps) >= 2 and explorer.state["step"] == 60 and explorer.error is None


# The measured runs that chapters load

def test_the_measured_runs_are_whole():
    runs = results("two_networks")
    assert "torch" in runs["made"]
    for task in ("autoencoder of mnist", "autoencoder of digits", "next word"):
        for name in ("SGD", "momentum", "RMSProp", "Adam"):
            run = runs[task][name]
            assert len(run["lrs"]) == len(run["by_lr"]) == 9 and len(run["final"]) == 10 and len(run["curve"]) == 30
            by_lr = [math.inf if loss is None else loss for loss in run["by_lr"]]
            best = min(range(9), key=by_lr.__getitem__)
            assert 0 < best < 8 and run["lr"] == pytest.approx(run["lrs"][best], rel=.01)
            assert run["curve"][0] > 1.05 * sum(run["final"]) / 10
