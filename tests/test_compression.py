"""Pruning and few bits against torch.nn.utils.prune, torch's fake quantization, bitsandbytes' levels and exact sums."""
import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune as torch_prune

import course_lib.support.compression as support
from course_lib import (
    SGD, Adam, DataLoaders, Learner, Pruner, Quantized, QuantLinear, TensorLoader, dequantize, fake_quantize,
    magnitude_mask, nf4, prune, quantize, size_bytes)
from course_lib.compression import net_300_100, nf4_levels, with_int8
from course_lib.exercises.compression import pair_product
from course_lib.figures.compression import compression_explorer
from course_lib.support.compression import in_blocks, int8_product, layers_of, weights_of
from course_lib.support.results import results
from drive import drive
from tiny import every_device

F64 = torch.float64
BITS = [2, 3, 4, 5, 8, 9, 16]
PUBLISHED = [-1., -.6961928009986877, -.5250730514526367, -.39491748809814453, -.28444138169288635, -.18477343022823334,
             -.09105003625154495, 0., .07958029955625534, .16093020141124725, .24611230194568634, .33791524171829224,
             .44070982933044434, .5626170039176941, .7229568362236023, 1.]     # bitsandbytes


def tiny(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), *more, nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


def convs():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), nn.ReLU()), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(6 * 4, 10))


@every_device
@pytest.mark.parametrize("amount", [0., .1, .5, .77, .9, .99, 1.])
def test_masks_are_torchs(amount, device):
    ours = tiny().to(device)
    theirs = copy.deepcopy(ours)
    pairs = [(layer, "weight") for layer in layers_of(theirs)]
    torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=amount)
    masks = magnitude_mask(weights_of(ours), amount)
    for mask, layer, pruned in zip(masks, layers_of(theirs), layers_of(prune(ours, amount))):
        assert mask.dtype is torch.bool and torch.equal(mask, layer.weight_mask.bool())
        assert torch.equal(pruned.weight, layer.weight)


def test_equal_sizes_are_counted_exactly_and_one_layer_is_l1_unstructured():
    assert sum(mask.sum() for mask in magnitude_mask([torch.ones(30), -torch.ones(2, 35)], .3)) == 70
    layer = nn.Linear(7, 9)
    reference = torch_prune.l1_unstructured(copy.deepcopy(layer), "weight", amount=.4).weight
    assert torch.equal(prune(layer, .4).weight, reference)


@pytest.mark.parametrize("structured", [False, True])
def test_the_model_that_is_given_stays(structured):
    model = convs().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smaller = prune(model, .5, structured=structured)
    assert not smaller.training and model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items(): assert torch.equal(value, before[name])


@every_device
@pytest.mark.parametrize("amount", [0., .25, .5, .9, 1.])
def test_units_that_stay_are_those_of_ln_structured_and_the_answer_is_that_of_silent_units(amount, device):
    model = tiny().to(device).double()
    silent, smaller = copy.deepcopy(model), prune(model, amount, structured=True)
    for layer, small in zip(layers_of(silent)[:-1], layers_of(smaller)):
        if amount < 1:
            mask = torch_prune.ln_structured(copy.deepcopy(layer), "weight", amount, n=2, dim=0).weight_mask.any(1)
            assert mask.sum() == len(small.weight) == small.out_features
        else:
            mask = layer.weight.norm(dim=1) == layer.weight.norm(dim=1).max()
            assert len(small.weight) == 1
        with torch.no_grad(): layer.weight[~mask], layer.bias[~mask] = 0, 0
    x = torch.randn(20, 6, dtype=F64, device=device)
    torch.testing.assert_close(smaller(x), silent(x), rtol=1e-10, atol=1e-10)
    assert size_bytes(smaller) <= size_bytes(model) and (amount < .5 or size_bytes(smaller) < .55 * size_bytes(model))


def test_channels_norms_and_pixels_go_along():
    model = convs()
    model(torch.randn(30, 2, 8, 8))                        # running statistics of its own
    model = model.eval().double()
    smaller, silent = prune(model, .5, structured=True), copy.deepcopy(model)
    assert smaller[1].num_features == smaller[0].out_channels == smaller[3][0].in_channels == 4
    assert smaller[3][0].out_channels == 3 and smaller[-1].in_features == 12
    for layer, n_kept in ((silent[0], 4), (silent[3][0], 3)):
        keep = layer.weight.flatten(1).norm(dim=1).topk(n_kept).indices
        gone = torch.ones(len(layer.weight), dtype=torch.bool).index_fill(0, keep, False)
        with torch.no_grad(): layer.weight[gone] = 0
        if layer.bias is None: continue
        with torch.no_grad(): layer.bias[gone], silent[1].running_mean[gone], silent[1].bias[gone] = 0, 0, 0
    x = torch.randn(5, 2, 8, 8, dtype=F64)
    torch.testing.assert_close(smaller(x), silent(x), rtol=1e-10, atol=1e-10)
    F.cross_entropy(smaller(x), torch.arange(5)).backward()


@pytest.mark.parametrize("model, match", [
    (nn.Linear(3, 4), "nn.Sequential"), (nn.Sequential(nn.Linear(3, 4)), "at least two"),
    (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "LayerNorm"),
    (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 1, 1)), "grouped"),
    (nn.Sequential(nn.Linear(4, 4), nn.Transformer(4, 1, 1, 1, 4), nn.Linear(4, 4)), "Transformer")])
def test_what_cannot_be_taken_apart_is_refused(model, match):
    with pytest.raises(ValueError, match=match): prune(model, .5, structured=True)


def test_a_layer_used_twice_and_models_without_weights_are_refused():
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="twice"): prune(nn.Sequential(layer, nn.ReLU(), layer), .5, structured=True)
    with pytest.raises(ValueError, match="no linear"): prune(nn.ReLU(), .5)
    with pytest.raises(ValueError, match="plain parameters"): prune(nn.LazyLinear(3), .5)


@every_device
@pytest.mark.parametrize("opt_func", [lambda params: SGD(params, .1, momentum=.9), lambda params: Adam(params, 1e-2)])
@pytest.mark.parametrize("ramp", [0., .5, 1.])
def test_pruner_keeps_zeros_at_every_step(opt_func, ramp, device):
    x, y = torch.randn(60, 6, device=device), torch.arange(60, device=device) % 3
    dls = DataLoaders(TensorLoader(x, y, 10, shuffle=True), None)
    learn = Learner(tiny().to(device), dls, F.cross_entropy, opt_func)
    learn.fit(1)
    share = lambda: torch.cat([w.flatten() == 0 for w in weights_of(learn.model)]).float().mean().item()
    shares, pruner = [], Pruner(.8, ramp=ramp, every=2)
    original = pruner.after_step
    pruner.after_step = lambda learn: (original(learn), shares.append(share()))
    learn.fit(4, cbs=[pruner])
    assert share() == pytest.approx(.8, abs=.01) and shares == sorted(shares)
    if not ramp: assert min(shares) == pytest.approx(.8, abs=.01)
    else:
        assert shares[1] < .8
        t = 1 / 24 / ramp                                  # a batch is counted when it is over
        assert shares[1] == pytest.approx(.8 * (1 - (1 - t) ** 3), abs=.01)
    learn.fit(1)
    assert share() < .8                                    # without it the zeros go


def test_pruner_interrupted_or_on_a_model_without_weights():
    dls = DataLoaders(TensorLoader(torch.randn(40, 6), torch.arange(40) % 3, 10), None)
    learn = Learner(tiny(), dls, F.cross_entropy, lambda params: SGD(params, .1))
    pruner = Pruner(.8, ramp=1., every=1)
    pruner.after_batch = lambda learn: (_ for _ in ()).throw(KeyError("stop")) if pruner.n_steps == 2 else None
    with pytest.raises(KeyError): learn.fit(1, cbs=[pruner])
    assert sum((w == 0).sum() for w in weights_of(learn.model)) < 70     # no jump to the end
    learn = Learner(nn.Sequential(nn.LayerNorm(6)), dls, F.cross_entropy, lambda params: SGD(params, .1))
    with pytest.raises(ValueError, match="no linear"): learn.fit(1, cbs=[Pruner(.8)])
    for bad in ({"ramp": 2.}, {"every": 0}, {"ramp": math.nan}, {"every": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))): Pruner(.8, **bad)


def test_size_bytes_counts_parameters_and_buffers_once():
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    assert size_bytes(model) == 4 * (15 + 5 + 4 * 5) + 8
    layer = nn.Linear(4, 4, bias=False)
    assert size_bytes(nn.Sequential(layer, layer)) == 64 and size_bytes(layer.half()) == 32


def of_torch(x, found, symmetric):
    top = 2 ** (found.bits - 1) - 1
    ends = -top - (not symmetric), top
    if found.axis is None: return torch.fake_quantize_per_tensor_affine(x, found.scale.item(), int(found.zero), *ends)
    return torch.fake_quantize_per_channel_affine(x, found.scale, found.zero, found.axis, *ends)


@every_device
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_quantized_as_torch_does_gradient_too(bits, symmetric, axis, device):
    x = (torch.randn(6, 5, 4) * torch.tensor([.1, 1., 3., 10.]) + .5).to(device)
    found = quantize(x, bits, axis, symmetric)
    top = 2 ** (bits - 1) - 1
    assert isinstance(found, Quantized) and found.q.shape == x.shape and not found.q.is_floating_point()
    assert found.scale.shape == found.zero.shape == (() if axis is None else (x.shape[axis],))
    assert found.q.min() >= -top - (not symmetric) and found.q.max() <= top
    back = found.dequantize()
    torch.testing.assert_close(back, of_torch(x, found, symmetric), rtol=1e-6, atol=1e-7)
    assert torch.equal(back, dequantize(found))
    step = found.scale.max().item()
    assert (back - x).abs().max() <= step * (.5 if symmetric else 1.) * (1 + 1e-4)
    leaf, theirs = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    out = fake_quantize(leaf, bits, axis, symmetric)
    assert torch.equal(out.detach(), back)
    [grad] = torch.autograd.grad(out.square().sum(), leaf)
    [torchs] = torch.autograd.grad(of_torch(theirs, found, symmetric).square().sum(), theirs)
    if symmetric: torch.testing.assert_close(grad, torchs)  # torch's affine one stops where rounding leaves the range


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [None, 0])
def test_zero_comes_back_as_zero_whatever_the_range(bits, symmetric, axis):
    for low, high in ((-1, 2), (0, 3), (.5, 3), (-4, -1), (-1e-3, 50), (0, 0)):
        x = torch.rand(4, 50, dtype=F64) * (high - low) + low
        x[:, 7] = 0
        back = quantize(x, bits, axis, symmetric).dequantize()
        assert (back[:, 7] == 0).all() and back.isfinite().all()
        assert (fake_quantize(x, bits, axis, symmetric)[:, 7] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_dtypes_tiny_numbers_and_rows_of_zeros(dtype):
    x = torch.randn(5, 8).to(dtype)
    x[2] = 0
    found = quantize(x, 8, axis=0)
    assert found.q.dtype is torch.int8 and found.scale.dtype is (F64 if dtype is F64 else torch.float32)
    assert (found.dequantize()[2] == 0).all() and found.dequantize().isfinite().all()
    assert fake_quantize(x, 8, axis=0).dtype is dtype and (fake_quantize(x, 8, axis=0)[2] == 0).all()
    for size in (1e-44, 1e-40, 1e-37, 1e37, 3e38):
        back = quantize(torch.tensor([size, -size, 0.]), 8, symmetric=True).dequantize()
        assert back.isfinite().all() and back[2] == 0 and back[0] >= 0 >= back[1]
        assert quantize(torch.tensor([size, -size, 0.]), 8, symmetric=False).dequantize().isfinite().all()
    assert quantize(torch.tensor(3.)).dequantize() == 3. and quantize(torch.randn(3), 12).q.dtype is torch.int16


def test_few_bits_take_few_bytes():
    x = torch.randn(10, 100)
    assert quantize(x).n_bytes == 1004 and quantize(x, 4, axis=0).n_bytes == 540 and quantize(x, 3).n_bytes == 379
    assert nf4(x).n_bytes == 500 + 4 * 16 and quantize(x + 9, 8, symmetric=False).n_bytes == 1008


BAD_BITS = [1, 0, -8, 17, 8., "8", None, True, math.nan]


@pytest.mark.parametrize("function", [quantize, fake_quantize])
def test_bad_input_is_refused_by_name(function):
    x = torch.randn(3, 4)
    for bits in BAD_BITS:
        with pytest.raises(ValueError, match="bits"): function(x, bits)
    for axis in (2, -3, .5, "a", True):
        with pytest.raises(ValueError, match="axis"): function(x, 8, axis)
    for bad in (torch.arange(3), torch.zeros(0), [1., 2.], None):
        with pytest.raises(ValueError, match="x must be"): function(bad)
    with pytest.raises(ValueError, match="symmetric"): function(x, 8, None, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(value):
    x = torch.randn(3, 4)
    x[1, 2] = value
    for call in (lambda: quantize(x), lambda: quantize(x, axis=0), lambda: quantize(x, 8, None, False), lambda: nf4(x)):
        with pytest.raises(ValueError, match="NaN or inf"): call()
    assert not fake_quantize(x).isfinite().all()           # in training NaN stays visible
    out = QuantLinear(nn.Linear(4, 2))(x)
    assert not out[1].isfinite().any() and out[0].isfinite().all()


@pytest.mark.parametrize("amount", [-.1, 1.1, math.nan, math.inf, "a", None])
def test_amounts_that_are_no_share(amount):
    for call in (lambda: prune(tiny(), amount), lambda: prune(tiny(), amount, structured=True),
                 lambda: magnitude_mask([torch.ones(3)], amount), lambda: Pruner(amount)):
        with pytest.raises(ValueError, match="amount must be"): call()


def test_masks_need_tensors():
    for bad in ([], torch.ones(3), None, [torch.arange(3)], [1.]):
        with pytest.raises(ValueError, match="tensors"): magnitude_mask(bad, .5)


@every_device
@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_nf4_levels_are_those_of_bitsandbytes_and_codes_the_nearest(block, device):
    torch.testing.assert_close(nf4_levels(), torch.tensor(PUBLISHED), rtol=0, atol=1e-6)
    x = torch.randn(9, 31, device=device)
    found = nf4(x, block)
    assert found.q.shape == x.shape and found.q.min() >= 0 and found.q.max() <= 15
    assert found.scale.shape == (math.ceil(279 / block),)
    blocks, levels = in_blocks(x, block), torch.tensor(PUBLISHED, device=device)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / scale)[..., None] - levels).abs().argmin(-1)
    assert torch.equal(found.q.flatten().long(), nearest.flatten()[:279])
    back = (levels[nearest] * scale).flatten()[:279].view(9, 31)
    torch.testing.assert_close(found.dequantize(), back, rtol=1e-5, atol=1e-6)


@every_device
@pytest.mark.parametrize("shape", [(1, 40), (5, 40), (64, 40), (2, 3, 40), (40,), (0, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_int8_layer_is_the_product_of_rounded_floats(shape, bias, device):
    torch.manual_seed(0)
    linear, x = nn.Linear(40, 24, bias=bias).to(device), torch.randn(shape, device=device)
    quick = QuantLinear(linear)
    out = quick(x)
    assert out.shape == (*shape[:-1], 24) and not out.requires_grad and quick.weight.dtype is torch.int8
    if x.numel():
        rows = quantize(x.reshape(-1, 40), axis=0).dequantize().view(shape)
        exact = F.linear(rows, quantize(linear.weight, axis=0).dequantize(), linear.bias).detach()
        torch.testing.assert_close(out, exact, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out, linear(x).detach(), rtol=.1, atol=.05)
    if len(shape) > 1: assert torch.equal(out[:1], quick(x[:1]))            # companions do not matter


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_few_bits_saved_copied_loaded_in_16_bits(bits):
    linear = nn.Linear(20, 6)
    quick, x = QuantLinear(linear, bits), torch.randn(4, 20)
    assert quick.weight.abs().max() == 2 ** (bits - 1) - 1
    other = QuantLinear(nn.Linear(20, 6))
    other.load_state_dict(quick.state_dict())
    for model in (other, copy.deepcopy(quick), pickle.loads(pickle.dumps(quick))):
        assert torch.equal(model(x), quick(x))
    for dtype in (torch.float16, torch.bfloat16, F64): assert quick(x.to(dtype)).dtype is dtype
    assert QuantLinear(linear.double())(x.double()).dtype is F64 and (quick(torch.zeros(3, 20)) == quick.bias).all()


def test_a_whole_model_in_int8():
    model = net_300_100()
    before = copy.deepcopy(model.state_dict())
    small = with_int8(model)
    assert size_bytes(small) < .27 * size_bytes(model)
    assert [*map(type, layers_of(model))] == [nn.Linear] * 3 and not layers_of(small)
    x = torch.randn(50, 1, 28, 28)
    torch.testing.assert_close(small(x), model(x).detach(), rtol=.1, atol=.03)
    for name, value in model.state_dict().items(): assert torch.equal(value, before[name])


@pytest.mark.parametrize("bad", [nn.Conv2d(3, 3, 1), nn.ReLU(), None, 3])
def test_only_linear_layers(bad):
    with pytest.raises(ValueError, match="nn.Linear"): QuantLinear(bad)
    for bits in [*BAD_BITS, 9]:
        with pytest.raises(ValueError, match="bits"): QuantLinear(nn.Linear(2, 2), bits)


@every_device
@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("n", [(1, 8, 8), (33, 64, 24), (40, 7, 3), (4, 5000, 3)])
def test_whole_number_products_are_exact_with_and_without_the_quick_way(works, n, device, monkeypatch):
    if not works: monkeypatch.setattr(support, "int_mm_works", lambda device: False)
    m, k, p = n
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8, device=device)
    b = torch.randint(-128, 128, (p, k), dtype=torch.int8, device=device)
    assert torch.equal(int8_product(a, b.t()).double(), a.double() @ b.t().double())
    a[:], b[:] = 127, 127  # the largest sum; one with an odd last digit follows
    a[:, 0] = b[:, 0] = 1
    assert torch.equal(int8_product(a, b.t()).double(), a.double() @ b.t().double())


def test_a_product_that_is_wrong_or_missing_is_not_used(monkeypatch):
    wrong = lambda a, b: (pair_product(a.int() + 128, b) - 128 * b.int().sum(0)).int()
    for function in (wrong, lambda a, b: (_ for _ in ()).throw(RuntimeError("not here"))):
        support.int_mm_works.cache_clear()
        monkeypatch.setattr(torch, "_int_mm", function)
        assert not support.int_mm_works("cpu")
    support.int_mm_works.cache_clear()


def test_the_live_figure():
    x, y = torch.randn(300, 1, 28, 28), torch.arange(300) % 10
    explorer = compression_explorer(net_300_100(), TensorLoader(x, y, 300))
    whole = explorer.set(bits=32, zeros=0.)
    assert whole["of_whole"]["bytes"] == 1 and explorer.set(bits=32, zeros=.8)["bytes"] == whole["bytes"]
    assert explorer.set(bits=8, zeros=0.)["bytes"] < .27 * whole["bytes"]
    assert explorer.set(bits=32, zeros=.5, units="whole units")["bytes"] < .5 * whole["bytes"]
    explorer.reset()
    drive(explorer)


@pytest.mark.parametrize("data", ["mnist", "digits"])
def test_what_the_chapter_says_of_its_runs(data):
    runs = results("compression")[data]
    mean = {name: sum(values) / len(values) for name, values in runs.items() if name != "rates"}
    assert all(len(values) == 20 for name, values in runs.items() if name != "rates")
    assert mean["pruned 0.98, trained on"] > mean["pruned 0.98"] + .1 and mean["pruned 0.9"] > mean["random 0.9"] + .3
    low, felt = mean["2 bits by channel"], mean["2 bits by channel, trained"]
    assert low > mean["2 bits by tensor"] + .1 and felt > low + .03
    assert mean["affine by block, error"] < mean["nf4, error"]
    assert mean["units 0.8, from the start"] > mean["units 0.8, trained on"]
    for tried in runs["rates"].values():
        assert min(tried["rates"]) < tried["lr"] < max(tried["rates"])
