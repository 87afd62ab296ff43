"""Normalization against torch.nn: outputs, gradients of inputs and parameters, running statistics, state dicts,
errors."""
import contextlib
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import course_lib.batchnorm as ours
from course_lib import Callback, CancelBatchException, CancelFitException, DataLoaders, Learner, TensorLoader, accuracy
from course_lib.momentum import SGD
from course_lib.sweeps import sweep
from tiny import every_device

F64 = torch.float64
SHAPES = {"BatchNorm1d": [(8, 5), (2, 5, 3), (8, 5, 1)], "BatchNorm2d": [(4, 5, 6, 3), (1, 5, 2, 2)],
          "BatchNorm3d": [(2, 5, 3, 4, 2)]}
CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]
OPTIONS = [{}, {"momentum": None}, {"momentum": .3}, {"momentum": 1.}, {"momentum": 0.}, {"eps": .1}, {"affine": False}]


@pytest.fixture(autouse=True)
def small_work(one_thread): torch.manual_seed(0)


def pair(name, *arguments, **options):
    "Ours and torch's layer, with the same random parameters."
    mine, theirs = (getattr(ours, name)(*arguments, **options).double(),
                    getattr(nn, name)(*arguments, **options).double())
    for p in theirs.parameters(): nn.init.normal_(p)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def outcome(layer, x, direction):
    x = x.clone().requires_grad_(True)
    out = layer(x)
    gradients = torch.autograd.grad((out * direction).sum(), [x, *layer.parameters()])
    return [out.detach(), *gradients, *layer.state_dict().values()]


def assert_equal(mine, theirs, shape, n_batches=3, device="cpu"):
    mine.to(device), theirs.to(device)
    for i in range(n_batches):
        x, direction = ((1 + i) * torch.randn(shape, dtype=F64, device=device) + i,
                        torch.randn(shape, dtype=F64, device=device))
        for a, b in zip(outcome(mine, x, direction), outcome(theirs, x, direction), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@every_device
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name, shape", CASES, ids=str)
def test_batchnorm_equals_torchs_in_training_then_in_evaluation_then_again(name, shape, options, device):
    mine, theirs = pair(name, 5, **options)
    for train in (True, False, True): assert_equal(mine.train(train), theirs.train(train), shape, device=device)


@pytest.mark.parametrize("name", SHAPES)
def test_second_gradients_equal_torchs(name):
    mine, theirs = pair(name, 5)
    x = torch.randn(SHAPES[name][0], dtype=F64)

    def second(layer):
        y = x.clone().requires_grad_(True)
        [g] = torch.autograd.grad(layer(y).pow(3).sum(), y, create_graph=True)
        return torch.autograd.grad(g.square().sum(), y)[0]
    torch.testing.assert_close(second(mine), second(theirs), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name, shape, arguments, options", [
    ("LayerNorm", (4, 6), (6,), {}), ("LayerNorm", (4, 3, 6), ((3, 6),), {}),
    ("LayerNorm", (4, 3, 6), (6,), {"elementwise_affine": False, "eps": .1}), ("GroupNorm", (4, 6), (2, 6), {}),
    ("GroupNorm", (4, 6, 5), (3, 6), {}), ("GroupNorm", (4, 6, 5, 2), (1, 6), {"affine": False}),
    ("GroupNorm", (1, 6, 5, 2), (6, 6), {"eps": .1})], ids=str)
def test_layer_and_group_norm_equal_torchs(name, shape, arguments, options):
    assert_equal(*pair(name, *arguments, **options), shape)


@pytest.mark.parametrize("name, arguments", [("BatchNorm2d", (5,)), ("LayerNorm", ((3, 5),)), ("GroupNorm", (1, 5))])
def test_state_dicts_go_both_ways(name, arguments):
    mine, theirs = pair(name, *arguments)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert ({k: (v.shape, v.dtype) for k, v in mine.state_dict().items()}
            == {k: (v.shape, v.dtype) for k, v in theirs.state_dict().items()})
    theirs.load_state_dict(mine.state_dict(), strict=True)


WRONG = [("BatchNorm1d", (5,), (8,)), ("BatchNorm1d", (5,), (8, 5, 2, 2)), ("BatchNorm2d", (5,), (8, 5)),
         ("BatchNorm3d", (5,), (8, 5, 2, 2)), ("BatchNorm1d", (5,), (1, 5)), ("BatchNorm1d", (5,), (1, 5, 1)),
         ("BatchNorm2d", (5,), (1, 5, 1, 1)), ("BatchNorm2d", (5,), (8, 4, 2, 2)), ("LayerNorm", (5,), (8, 4)),
         ("GroupNorm", (2, 4), (8, 6, 3))]


@pytest.mark.parametrize("name, arguments, shape", WRONG, ids=str)
def test_wrong_inputs_are_errors_of_the_kind_that_torch_raises(name, arguments, shape):
    mine, theirs = pair(name, *arguments)
    before = copy.deepcopy(mine.state_dict())
    errors = []
    for layer in (theirs, mine):
        with pytest.raises((ValueError, RuntimeError)) as caught: layer(torch.randn(shape, dtype=F64))
        errors.append(type(caught.value))
    assert errors[0] is errors[1]
    for key, value in mine.state_dict().items(): assert torch.equal(value, before[key]), key


def test_integers_are_refused():
    for dtype in (torch.uint8, torch.int64, torch.bool):
        with pytest.raises(ValueError, match="floating-point"): ours.BatchNorm1d(3).eval()(torch.ones(4, 3).to(dtype))


def test_one_value_per_group_in_several_samples_is_no_error():
    x = torch.randn(8, 4, 1, 1, dtype=F64)
    assert_equal(*pair("GroupNorm", 4, 4), x.shape)
    assert ours.GroupNorm(2, 4)(torch.randn(0, 4, 3)).shape == (0, 4, 3)
    with pytest.raises(ValueError, match="more than 1 value per group"): ours.GroupNorm(4, 4)(x[:1].float())


@pytest.mark.parametrize("name, arguments", [("BatchNorm1d", (64,)), ("LayerNorm", (64,)), ("GroupNorm", (4, 64))])
@pytest.mark.parametrize("mean", [1, 10, 100])
def test_bfloat16_inputs_are_normalised_in_float32(name, arguments, mean):
    x = (mean + torch.randn(256, 64)).bfloat16()
    mine, theirs = getattr(ours, name)(*arguments), getattr(nn, name)(*arguments)
    assert mine(x).dtype is torch.bfloat16
    torch.testing.assert_close(mine(x).float(), theirs(x.float()), rtol=.01, atol=.01)


def fitted(cbs=(), device="cpu", **options):
    x, y = torch.randn(24, 1, 8, 8, device=device), torch.arange(24, device=device) % 3
    learn = Learner(ours.ConvNet(ours.BatchNorm2d, (4,), n_classes=3).to(device),
                    DataLoaders(TensorLoader(x, y, 8), TensorLoader(x, y, 8)), F.cross_entropy,
                    SGD, lr=.01, metrics=[accuracy], cbs=[ours.Autocast()])
    learn.fit(1, cbs=cbs, **options)
    return learn


class Dtypes(Callback):
    def before_fit(self, learn):
        self.seen = set()
        self.hook = learn.model[0].register_forward_hook(lambda module, inputs, out: self.seen.add(out.dtype))

    def after_fit(self, learn): self.hook.remove()


@every_device
def test_autocast_is_on_in_the_model_and_nowhere_else(device):
    class Look(Callback):
        def after_pred(self, learn): assert learn.pred.dtype is torch.float32
        def before_backward(self, learn): assert not torch.is_autocast_enabled(device)
    seen = Dtypes()
    learn = fitted([ours.Autocast(), seen, Look()], device)
    assert seen.seen == {torch.bfloat16} and not torch.is_autocast_enabled(device)
    assert all(p.dtype is torch.float32 for p in learn.model.parameters()) and "forward" not in vars(learn.model)
    copy.deepcopy(learn.model)


@pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss", "before_step", "after_batch"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, CancelBatchException, CancelFitException, ZeroDivisionError])
def test_autocast_ends_whatever_is_raised(event, error):
    raiser = type("Raiser", (Callback,), {event: lambda self, learn: (_ for _ in ()).throw(error())})()
    with contextlib.suppress(KeyboardInterrupt, ZeroDivisionError): fitted([raiser])
    assert not torch.is_autocast_enabled("cpu")


def test_timing_leaves_model_and_random_numbers_alone():
    model = nn.Sequential(ours.ConvNet(ours.BatchNorm2d, (4,)), nn.Dropout(.5))
    x, y, state = torch.randn(4, 1, 8, 8), torch.arange(4), copy.deepcopy(model.state_dict())
    numbers = torch.random.get_rng_state()
    seconds = ours.seconds_by_format(model, x, y, n_steps=1)
    assert list(seconds) == list(ours.FORMATS) and all(value > 0 for value in seconds.values())
    assert torch.equal(numbers, torch.random.get_rng_state()) and all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items(): assert torch.equal(value, state[name]), name
    volume = nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten()).requires_grad_(False)
    assert math.isinf(
        ours.seconds_by_format(volume, torch.randn(2, 1, 4, 4, 4), y[:2] % 2, n_steps=1)["float32, channels last"])


def test_a_slice_of_the_digits_net_is_a_sequential():
    net = ours.ConvNet(ours.BatchNorm2d)
    assert len(net[:-3]) == len(net) - 3 and net[:-3][0] is net[0] and net[-2:](torch.ones(1, 2, 3, 3)).shape == (1, 2)


def test_groups_must_divide_channels():
    with pytest.raises(ValueError, match="divisible"): ours.GroupNorm(4, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_comes_in_stays_of_its_dtype(dtype):
    x = torch.randn(4, 5, 3, 3).to(dtype)
    for name, arguments in (("BatchNorm2d", (5,)), ("LayerNorm", ((3, 3),)), ("GroupNorm", (1, 5))):
        layer = getattr(ours, name)(*arguments).to(dtype)
        assert layer(x).dtype is dtype


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}], ids=str)
def test_in_a_sweep_every_model_has_its_own_statistics(options):
    model = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), ours.BatchNorm2d(3, **options), nn.ReLU(), nn.Flatten(),
                          nn.Linear(48, 4)).double()
    batches = [(torch.randn(8, 1, 6, 6, dtype=F64), torch.randint(4, (8,))) for _ in range(5)]
    result = sweep(model, F.cross_entropy, SGD, batches, 10, {"lr": [.01, .1]})
    for i, lr in enumerate((.01, .1)):
        alone = copy.deepcopy(model)
        theirs = nn.BatchNorm2d(3, **options).double()
        theirs.load_state_dict(alone[1].state_dict())
        alone[1] = theirs
        optimizer = torch.optim.SGD(alone.parameters(), lr=lr)
        for xb, yb in batches * 2:
            optimizer.zero_grad()
            F.cross_entropy(alone(xb), yb).backward()
            optimizer.step()
        for key, value in result.params(i).items():
            torch.testing.assert_close(value, alone.state_dict()[key], rtol=1e-9, atol=1e-9)


def test_the_digits_net():
    net = ours.ConvNet(ours.BatchNorm2d)
    assert [layer.out_channels for layer in net if isinstance(layer, nn.Conv2d)] == [32, 64, 128, 256, 10]
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert sum(isinstance(layer, ours.BatchNorm2d) for layer in net) == 4
    plain = ours.ConvNet()
    assert (not any("norm" in type(layer).__name__.lower() for layer in plain) and plain[0].bias is not None
            and net[0].bias is None)
