"""Normalization against torch.nn: outputs, gradients of inputs and parameters, running statistics, state dicts,
errors."""
import contextlib
import copy
import inspect
import math
import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import course_lib.batchnorm as ours
from course_lib import Callback, CancelBatchException, CancelFitException, DataLoaders, Learner, TensorLoader, accuracy
from course_lib.figures.batchnorm import activations_explorer, running_explorer
from course_lib.momentum import SGD
from course_lib.sgd import batches
from course_lib.sweeps import sweep
from drive import drive
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


NORMS = [("BatchNorm1d", (6,), (4, 6, 3)), ("BatchNorm2d", (6,), (4, 6, 3, 2)), ("BatchNorm3d", (6,), (4, 6, 3, 2, 2)),
         ("LayerNorm", ((3, 2),), (4, 6, 3, 2)), ("GroupNorm", (2, 6), (4, 6, 3))]
every_norm = pytest.mark.parametrize("name, arguments, shape", NORMS, ids=[name for name, *_ in NORMS])


@every_norm
@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
def test_an_exported_norm_takes_batches_of_any_size(name, arguments, shape, train):
    "torch.export with a free batch size; what it gives is torch's own layer's."
    mine, theirs = pair(name, *arguments)
    mine.train(train), theirs.train(train)
    before, x = copy.deepcopy(mine.state_dict()), torch.randn(shape, dtype=F64)
    program = torch.export.export(mine, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},)).module()
    for key, value in mine.state_dict().items(): assert torch.equal(value, before[key]), key
    for n in (2, 4, 9, 64):
        x = torch.randn(n, *shape[1:], dtype=F64)
        torch.testing.assert_close(program(x), theirs(x))
    for key, value in theirs.state_dict().items(): torch.testing.assert_close(program.state_dict()[key], value)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("eps", [0, 0., -1e-5, -math.inf])
def test_batchnorm_in_training_needs_an_eps_above_0(name, eps):
    "Where a channel is constant, 0 would give NaN; torch refuses it too, and takes 0 in evaluation."
    x = torch.zeros(SHAPES[name][0], dtype=F64)
    if eps:
        with pytest.raises(ValueError, match="eps"): getattr(ours, name)(5, eps=eps)
    else:
        mine, theirs = pair(name, 5, eps=eps)
        with pytest.raises(ValueError, match="eps must be.*above 0"): mine(x)
        assert not mine.num_batches_tracked
        assert_equal(mine.eval(), theirs.eval(), x.shape)
    later = getattr(ours, name)(5)
    later.eps = eps  # as libraries set it from their own tables
    with pytest.raises(ValueError, match="eps must be.*above 0"): later(x.float())


@pytest.mark.parametrize("name, arguments", [("LayerNorm", (4,)), ("GroupNorm", (2, 4))])
def test_layer_and_group_norm_take_an_eps_of_0_as_torch_does_and_none_below(name, arguments):
    assert_equal(*pair(name, *arguments, eps=0), (3, 4))
    for eps in (-1e-5, math.nan, math.inf, "small", None):
        with pytest.raises(ValueError, match="eps must be"): getattr(ours, name)(*arguments, eps=eps)


def test_a_layer_norm_over_no_axis_is_an_error():
    for shape in ((), [], torch.Size([])):
        with pytest.raises(ValueError, match="at least one axis"): ours.LayerNorm(shape)
    for shape in (torch.Size([3, 2]), [3, 2], (np.int64(3), 2)):
        assert ours.LayerNorm(shape).normalized_shape == (3, 2)


@pytest.mark.parametrize("make", [
    lambda: ours.BatchNorm1d(0), lambda: ours.BatchNorm2d(-3), lambda: ours.BatchNorm3d(2.5),
    lambda: ours.BatchNorm1d("4"), lambda: ours.BatchNorm1d(None), lambda: ours.BatchNorm1d(4, momentum=-.1),
    lambda: ours.BatchNorm1d(4, momentum=1.1), lambda: ours.BatchNorm1d(4, momentum=math.nan),
    lambda: ours.BatchNorm1d(4, momentum="slow"), lambda: ours.BatchNorm1d(4, eps=math.nan),
    lambda: ours.BatchNorm1d(4, eps="small"), lambda: ours.BatchNorm1d(4, eps=None), lambda: ours.LayerNorm(0),
    lambda: ours.LayerNorm((3, -1)), lambda: ours.LayerNorm(2.5), lambda: ours.LayerNorm("ab"),
    lambda: ours.LayerNorm(None), lambda: ours.GroupNorm(0, 4), lambda: ours.GroupNorm(-2, 4),
    lambda: ours.GroupNorm(2, 0), lambda: ours.GroupNorm(1.5, 3), lambda: ours.GroupNorm(2, None)])
def test_bad_sizes_and_shares_are_refused(make):
    with pytest.raises(ValueError, match="must be"): make()


def test_a_state_dict_without_a_version_leaves_the_batch_count():
    "As torch: what the dict does not say stays as it is, so that a mean over all batches goes on."
    for maker in (nn.BatchNorm1d, ours.BatchNorm1d):
        norm = maker(3, momentum=None)
        for _ in range(5): norm(torch.randn(8, 3))
        state = {key: value.clone() for key, value in norm.state_dict().items() if key != "num_batches_tracked"}
        norm.load_state_dict(state)
        assert norm.num_batches_tracked == 5
        whole = copy.deepcopy(norm.state_dict())
        del whole["num_batches_tracked"]  # this one says its version, which has the count: then it is missing
        with pytest.raises(RuntimeError, match="num_batches_tracked"): norm.load_state_dict(whole)


@every_norm
def test_arguments_stand_where_torchs_do(name, arguments, shape):
    mine, theirs = (inspect.signature(getattr(layers, name)).parameters for layers in (ours, nn))
    shown = lambda parameters: [(p.name, p.default) for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert shown(mine) == shown(theirs) and {"bias", "device", "dtype"} <= mine.keys()


@every_norm
def test_device_dtype_and_bias(name, arguments, shape):
    make = getattr(ours, name)
    assert {p.dtype for p in make(*arguments, dtype=F64).parameters()} == {F64}
    count = make(*arguments, dtype=F64).state_dict().get("num_batches_tracked")
    assert count is None or count.dtype is torch.int64
    assert all(value.is_meta for value in make(*arguments, device="meta").state_dict().values())
    mine, theirs = make(*arguments, bias=False).double(), getattr(nn, name)(*arguments).double()
    theirs.register_parameter("bias", None)  # older versions of torch have no argument for it
    nn.init.normal_(theirs.weight)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    assert mine.bias is None and list(mine.state_dict()) == list(theirs.state_dict())
    assert_equal(mine, theirs, shape)


@every_norm
def test_reset_parameters_begins_anew(name, arguments, shape):
    mine = getattr(ours, name)(*arguments)
    begin = copy.deepcopy(mine.state_dict())
    for p in mine.parameters(): nn.init.normal_(p)
    mine(torch.randn(shape))
    mine.reset_parameters()
    for key, value in mine.state_dict().items(): assert torch.equal(value, begin[key]), key
    getattr(ours, name)(*arguments, **{"affine" if name != "LayerNorm" else "elementwise_affine": False}
                        ).reset_parameters()


@pytest.mark.parametrize("name", SHAPES)
def test_without_running_statistics_evaluation_takes_the_batchs_own(name):
    mine, theirs = pair(name, 5, track_running_stats=False)
    assert mine.running_mean is mine.running_var is mine.num_batches_tracked is None
    mine.reset_running_stats()  # which has nothing to do
    shape = SHAPES[name][0]
    for train in (True, False): assert_equal(mine.train(train), theirs.train(train), shape)
    with pytest.raises(ValueError, match="more than 1 value per channel"): mine(torch.randn(1, *shape[1:2], *(
        1 for _ in shape[2:]), dtype=F64))


@pytest.mark.parametrize("name", SHAPES)
def test_running_statistics_that_are_not_tracked_any_more(name):
    mine, theirs = pair(name, 5)
    assert_equal(mine, theirs, SHAPES[name][0])
    mine.track_running_stats = theirs.track_running_stats = False
    for train in (True, False): assert_equal(mine.train(train), theirs.train(train), SHAPES[name][0])


def test_batchnorm_in_functorch_without_statistics_of_its_own():
    "torch.func.replace_all_batch_norm_modules_ looks for torch's class, and takes the running statistics out."
    net = torch.func.replace_all_batch_norm_modules_(nn.Sequential(ours.BatchNorm1d(3), ours.BatchNorm1d(3)))
    assert all(norm.running_mean is None for norm in net)
    assert torch.vmap(net, randomness="error")(torch.randn(5, 8, 3)).shape == (5, 8, 3)


def twins(make, ours_norm, theirs_norm):
    "A model with our norm, and with torch's and the same weights; in float64."
    mine, theirs = make(ours_norm).double(), make(theirs_norm).double()
    for p in theirs.parameters():
        if p.ndim == 1: nn.init.uniform_(p, .5, 1.5)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    return mine, theirs


def assert_models_equal(mine, theirs, x):
    for train in (True, False):
        for model in (mine, theirs):
            torch.manual_seed(0)
            model.train(train).zero_grad()
            model(x).pow(2).mean().backward()
        torch.manual_seed(0)
        ours_out = mine(x)
        torch.manual_seed(0)
        torch.testing.assert_close(ours_out, theirs(x), rtol=1e-8, atol=1e-8)
        for (key, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-8, msg=key)
    for key, value in mine.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[key], rtol=1e-8, atol=1e-8, msg=key)


def test_in_torchvisions_resnet():
    make = lambda norm: torchvision.models.resnet18(norm_layer=norm, num_classes=5, zero_init_residual=False)
    assert_models_equal(*twins(make, ours.BatchNorm2d, nn.BatchNorm2d), torch.randn(2, 3, 40, 40, dtype=F64))


class ChannelsLast(ours.LayerNorm):
    "Over the channels of `[B, C, H, W]`, as torchvision's ConvNeXt wants it."
    def forward(self, x): return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_in_torchvisions_convnext_and_vision_transformer():
    from torchvision.models.convnext import CNBlock, CNBlockConfig, LayerNorm2d

    settings = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    blocks = {ChannelsLast: ours.LayerNorm, LayerNorm2d: nn.LayerNorm}
    make = lambda norm: torchvision.models.ConvNeXt(
        settings, norm_layer=partial(norm, eps=1e-6),
        block=lambda dim, scale, p: CNBlock(dim, scale, p, norm_layer=partial(blocks[norm], eps=1e-6)))
    assert_models_equal(*twins(make, ChannelsLast, LayerNorm2d), torch.randn(2, 3, 32, 32, dtype=F64))
    make = lambda norm: torchvision.models.VisionTransformer(
        16, 8, 2, 2, 12, 24, num_classes=3, norm_layer=partial(norm, eps=1e-6))
    assert_models_equal(*twins(make, ours.LayerNorm, nn.LayerNorm), torch.randn(2, 3, 16, 16, dtype=F64))


@pytest.mark.parametrize("momentum", [.1, None])
def test_averaged_weights_get_their_statistics_from_update_bn(momentum):
    "torch.optim.swa_utils.update_bn resets the statistics and takes the plain mean over the batches."
    make = lambda norm: nn.Sequential(nn.Linear(3, 4), norm(4, momentum=momentum), nn.ReLU(), nn.Linear(4, 2),
                                      norm(2, momentum=momentum))
    mine, theirs = twins(make, ours.BatchNorm1d, nn.BatchNorm1d)
    for model in (mine, theirs): model[1].running_mean.fill_(7)
    batches = [(3 + torch.randn(8, 3, dtype=F64), None) for _ in range(4)]
    for model in (mine.eval(), theirs.eval()): torch.optim.swa_utils.update_bn(batches, model)
    assert mine[1].num_batches_tracked == 4 and mine[1].momentum == momentum and not mine.training
    for key, value in theirs.state_dict().items(): torch.testing.assert_close(mine.state_dict()[key], value, msg=key)
    means = torch.stack([mine[0](x).mean(0) for x, _ in batches]).mean(0)
    torch.testing.assert_close(mine[1].running_mean, means.detach())


def test_others_find_our_norms_where_they_look_for_torchs():
    net = nn.Sequential(ours.BatchNorm1d(3), ours.BatchNorm2d(3), ours.BatchNorm3d(3, affine=False))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in synced)
    for key, value in net.state_dict().items(): assert torch.equal(value, synced.state_dict()[key]), key
    assert isinstance(ours.LayerNorm(3), nn.LayerNorm) and isinstance(ours.GroupNorm(1, 3), nn.GroupNorm)


@every_norm
def test_norms_are_copied_pickled_and_say_what_they_are(name, arguments, shape):
    mine, x = getattr(ours, name)(*arguments, eps=.25), torch.randn(shape)
    for other in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))): assert torch.equal(other(x), mine(x))
    assert repr(mine).startswith(f"{name}(") and "eps=0.25" in repr(mine)


@every_norm
def test_whole_numbers_and_complex_ones_are_refused(name, arguments, shape):
    for train, dtype in [(True, torch.uint8), (False, torch.int64), (True, torch.bool), (False, torch.complex64)]:
        with pytest.raises(ValueError, match="floating-point"):
            getattr(ours, name)(*arguments).train(train)(torch.ones(shape).to(dtype))


class Refuses(nn.Module):
    "A model that does not work in this number format."
    def __init__(self, autocast):
        super().__init__()
        self.layer, self.autocast = nn.Linear(3, 2), autocast

    def forward(self, x):
        if torch.is_autocast_enabled("cpu") is self.autocast: raise RuntimeError("not in this format")
        return self.layer(x)


def test_a_format_that_fails_is_left_out_but_float32_must_work():
    x, y = torch.randn(4, 3), torch.arange(4) % 2
    seconds = ours.seconds_by_format(Refuses(autocast=True), x, y, n_steps=1)
    assert [math.isinf(value) for value in seconds.values()] == [False, False, True]
    with pytest.raises(RuntimeError, match="not in this format"):
        ours.seconds_by_format(Refuses(autocast=False), x, y, n_steps=1)
    with pytest.raises(RuntimeError, match="not in this format"): ours.make_fast(Refuses(autocast=False), x, y)


NUMBER = r"-?(?:\d+(?:\.\d+)?(?:e[+-]\d+)?|\bnan\b|\binf\b)"


def assert_said(text, state, names):
    "Each number in the words, in this order, is the state's, rounded to two or three digits."
    found = re.findall(NUMBER, text)
    assert len(found) == len(names), text
    for number, name in zip(found, names):
        assert number in {f"{state[name]:{digits}g}" for digits in (".2", ".3")}, f"{name}: {text}"


def test_the_running_figure_says_and_shows_what_torchs_layer_does():
    seen = []
    for state, words in drive(running_explorer(n=90), also=["true 2", "true 4"]):
        theirs, generator = nn.BatchNorm1d(1, momentum=state["momentum"]), torch.Generator().manual_seed(0)
        means = []
        for step in range(90):
            late = step >= 60
            theirs(torch.randn(state["batch_size"], 1, generator=generator) * (1 + late) + 2 * late)
            means.append(theirs.running_mean.item())
        assert state["mean"] == pytest.approx(means[-1], rel=1e-4)
        assert state["var"] == pytest.approx(theirs.running_var.item(), rel=1e-4)
        assert state["noise"] == pytest.approx(np.std(means[-20:]), rel=1e-3, abs=1e-6)
        left = (1 - state["momentum"]) ** np.arange(1000)  # of a jump, after so many batches
        assert state["lag"] == (left <= .1 + 1e-12).argmax()
        said = words.replace("(true 2)", "").replace("(true 4)", "")
        assert_said(said, state, ["momentum", "batch_size", "lag", "mean", "var"])
        assert f"after {state['lag']} batch{'es' * (state['lag'] != 1)};" in words
        seen.append((state["momentum"], state["batch_size"]))
    assert {(.01, 32), (1., 32), (.1, 2), (.1, 256)} <= {*seen}


def last_batch(train, norm, lr, n_steps=4, n_layers=5):
    "Loss of the last batch and what went into each ReLU, with torch's own layers and optimizer."
    model = ours.deep_net(norm, n_layers)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=.9)
    for xb, yb in batches(train, n_steps, seed=1, batch_size=64):
        inputs, x = [], xb
        for layer in model:
            if isinstance(layer, nn.ReLU): inputs.append(x.detach())
            x = layer(x)
        loss = F.cross_entropy(x, yb)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item(), inputs


def test_the_activations_figure_says_and_shows_what_the_layers_give():
    torch.manual_seed(0)
    train = TensorLoader(torch.randn(300, 1, 28, 28), torch.arange(300) % 10, 64)
    explorer = activations_explorer(train, n_steps=4, n_layers=5)
    results = drive(explorer)
    for state, words in results:
        assert state["step"] == 4
        assert_said(words, state, ["step", "lr", "loss_plain", "first_plain", "last_plain", "loss_norm", "first_norm",
                                   "last_norm"])
        explorer.set(lr=state["lr"])
        for row, (kind, norm) in enumerate((("plain", None), ("norm", nn.BatchNorm1d))):
            loss, inputs = last_batch(train, norm, state["lr"])
            spreads = [x.std(0).mean().item() for x in inputs]
            values = [state[f"{what}_{kind}"] for what in ("loss", "first", "last")]
            assert values == pytest.approx([loss, spreads[0], spreads[-1]], rel=.01)
            for layer, x in enumerate(inputs):  # darker, the more values are in a bin
                column = explorer.figure.artists[row * 5 + layer].get_array()[:, 3]
                distances = (x - x.mean(0)).abs().clamp(min=1e-30).log10()  # as the axis is
                counts = np.histogram(distances.numpy(), 42, (-6, 1))[0]
                assert np.abs(column - counts).sum() <= .02 * counts.sum()  # rounding moves some to the next bin
    rates = [state["lr"] for state, _ in results]
    assert min(rates) == pytest.approx(1e-3) and max(rates) == pytest.approx(10) and len({*rates}) >= 5
