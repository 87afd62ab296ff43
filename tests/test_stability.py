"""Clipping, sixteen bits and memory against torch's own, adaptive clipping's published formula, and closed forms."""
import copy
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from course_lib import (
    SGD, Adam, BatchNorm1d, Callback, CancelStepException, DataLoaders, Dropout, GradientAccumulation,
    GradientClip, Learner, LossScaler, LRScheduler, MixedPrecision, Recorder, TensorLoader, checkpointed, clip_adaptive,
    clip_by_history, clip_by_norm, clip_by_value, offload_saved, saved_bytes)
from course_lib.figures.stability import loss_scale_explorer, loss_scale_strip, shares_in_float16
from course_lib.stability import run_in
from course_lib.support.gradients import all_finite
from course_lib.support.paired import paired
from course_lib.support.results import results
from drive import drive
from tiny import every_device, seed

F64 = torch.float64
SHAPES = (4, 3), (3,), (2, 3, 2, 2), ()
BF16_ROUNDING = 2. ** -8


def with_grads(device="cpu", dtype=F64, size=1., n=0, shapes=SHAPES):
    "Parameters with gradients, and a last one without."
    generator = torch.Generator().manual_seed(n)
    params = [nn.Parameter(torch.randn(shape, generator=generator, dtype=F64).to(device, dtype)) for shape in shapes]
    for p in params: p.grad = (size * torch.randn(p.shape, generator=generator, dtype=F64)).to(device, dtype)
    return [*params, nn.Parameter(torch.ones(3, device=device, dtype=dtype))]


def grads(params): return [None if p.grad is None else p.grad.to_dense() for p in params]


def assert_grads(mine, theirs, **tolerance):
    for a, b in zip(grads(mine), grads(theirs), strict=True):
        assert (a is None) == (b is None)
        if a is None: continue
        torch.testing.assert_close(a, b, equal_nan=True, **{"rtol": 1e-12, "atol": 1e-14, **tolerance})


# Clipping

@every_device
@pytest.mark.parametrize("size", [1e-3, 1., 1e4, 0.])
@pytest.mark.parametrize("c", [1e-3, .5, 3, 100.])
def test_by_norm_and_by_value_as_torch_and_weights_stay(size, c, device):
    for clip, theirs in ((clip_by_norm, nn.utils.clip_grad_norm_), (clip_by_value, nn.utils.clip_grad_value_)):
        ours, reference = with_grads(device, size=size), with_grads(device, size=size)
        before, places = [p.detach().clone() for p in ours], [p.grad for p in ours]
        norm, expected = clip(ours, c), theirs(reference, c)
        assert_grads(ours, reference)
        if clip is clip_by_value: assert norm is None
        else: torch.testing.assert_close(norm, expected, rtol=1e-12, atol=0)
        for p, was, place in zip(ours, before, places): assert torch.equal(p, was) and p.grad is place  # in place


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_ends_as_in_torch(bad):
    for clip, theirs in ((clip_by_norm, nn.utils.clip_grad_norm_), (clip_by_value, nn.utils.clip_grad_value_)):
        ours, reference = with_grads(), with_grads()
        for params in (ours, reference): params[1].grad[1] = bad
        norm, expected = clip(ours, 1.), theirs(reference, 1.)
        assert_grads(ours, reference)
        if norm is not None: torch.testing.assert_close(norm, expected, equal_nan=True)


def test_params_may_be_a_generator_one_tensor_or_without_gradients():
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    assert clip_by_norm(model.parameters(), .1).item() == pytest.approx(8 ** .5)  # six weights, two biases
    assert torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item() == pytest.approx(.1, rel=1e-4)
    clip_by_value(model.weight, .01)
    assert model.weight.grad.abs().max() == pytest.approx(.01) and model.bias.grad.abs().max() > .02
    lonely = [nn.Parameter(torch.ones(2))]
    assert clip_by_norm(lonely, 1.) == 0 and clip_by_norm([], 1.) == 0 and clip_by_history(lonely, []) == 0
    for clip in (clip_by_value, clip_by_norm): clip(lonely, 1.)
    clip_adaptive(lonely)
    assert lonely[0].grad is None


@every_device
def test_sparse_gradients_and_several_dtypes_count_as_their_dense_ones(device):
    def made(sparse):
        torch.manual_seed(0)
        table, linear = nn.Embedding(6, 3, sparse=sparse).to(device), nn.Linear(3, 2).to(device).bfloat16()
        rows = torch.tensor([1, 4, 1], device=device)                 # row 1 twice: not coalesced
        (10 * linear(table(rows).bfloat16()).float().sum() + table(rows).square().sum()).backward()
        return [table.weight, *linear.parameters()]
    past = lambda: [torch.tensor(1.), torch.tensor(2.)]
    by_history = lambda params: clip_by_history(params, past())
    for clip in (partial(clip_by_norm, c=.7), partial(clip_by_value, c=.3), by_history):
        sparse, dense = made(True), made(False)
        norms = clip(sparse), clip(dense)
        assert sparse[0].grad.is_sparse and sparse[1].grad.dtype is torch.bfloat16
        assert_grads(sparse, dense, rtol=1e-2, atol=1e-6)
        if norms[0] is not None: torch.testing.assert_close(*norms)
    reference = made(False)
    clip_by_norm(dense := made(False), .7)
    scale = min(1., .7 / math.sqrt(sum(g.double().square().sum().item() for g in grads(reference))))
    for a, b in zip(grads(dense), grads(reference)):
        torch.testing.assert_close(a.double(), scale * b.double(), rtol=1e-2, atol=1e-4)
    sparse, dense = made(True), made(False)
    clip_adaptive(sparse), clip_adaptive(dense)
    assert_grads(sparse, dense, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_norm_of_sixteen_bit_gradients_does_not_overflow(dtype):
    params = [nn.Parameter(torch.zeros(1000, dtype=dtype))]
    params[0].grad = torch.full((1000,), 3e4, dtype=dtype)
    norm = clip_by_norm(params, 1.)
    assert norm.dtype is torch.float32 and norm.item() == pytest.approx(3e4 * 1000 ** .5, rel=1e-2)
    assert params[0].grad.float().norm().item() == pytest.approx(1, rel=1e-2) and params[0].grad.dtype is dtype


def unitwise_norm(x):
    "As published in timm (timm/utils/agc.py), which is not needed here; where it is installed, a test compares them."
    return x.norm(2.) if x.ndim <= 1 else x.norm(2., dim=tuple(range(1, x.ndim)), keepdim=True)


def timms_adaptive_clip_grad(params, clip_factor=.01, eps=1e-3):
    for p in params:
        if p.grad is None: continue
        max_norm = unitwise_norm(p.detach()).clamp(min=eps).mul(clip_factor)
        grad_norm = unitwise_norm(p.grad)
        clipped = p.grad * (max_norm / grad_norm.clamp(min=1e-6))
        p.grad.copy_(torch.where(grad_norm < max_norm, p.grad, clipped))


@pytest.mark.parametrize("size", [1e-4, 1., 100.])
def test_the_formula_above_is_timms_and_so_is_ours(size):
    timm = pytest.importorskip("timm.utils.agc", reason="timm is not installed")
    ours, formula, theirs = (with_grads("cpu", size=size) for _ in range(3))
    clip_adaptive(ours, .02), timms_adaptive_clip_grad(formula, .02), timm.adaptive_clip_grad(theirs, .02)
    assert_grads(formula, theirs)
    assert_grads(ours, theirs)


@every_device
@pytest.mark.parametrize("size", [1e-4, .03, 1., 100.])
@pytest.mark.parametrize("clip, eps", [(.01, 1e-3), (.3, 1e-3), (.02, 2.)])
def test_adaptive_as_timm(size, clip, eps, device):
    ours, theirs = with_grads(device, size=size), with_grads(device, size=size)
    for params in (ours, theirs):
        with torch.no_grad(): params[0][1], params[1][:], params[2][0] = 0, 0, 1e-5 * params[2][0]
        params[0].grad[2] = 0
    before = [p.detach().clone() for p in ours]
    assert clip_adaptive(ours, clip, eps) is None
    timms_adaptive_clip_grad(theirs, clip, eps)
    assert_grads(ours, theirs)
    for p, was in zip(ours, before): assert torch.equal(p, was)
    limit = [clip * max(row.norm().item(), eps) for row in ours[0].detach()]
    assert all(g.norm().item() <= top * (1 + 1e-9) for g, top in zip(ours[0].grad, limit))


def test_adaptive_lets_a_bias_of_zeros_move_by_the_default_floor():
    bias = nn.Parameter(torch.zeros(5))
    bias.grad = torch.full((5,), 3.)
    clip_adaptive(bias)
    assert bias.grad.norm().item() == pytest.approx(.01 * 1e-3, rel=1e-5)


def test_by_history_clips_at_mean_plus_k_deviations_of_the_norms_after_clipping():
    norms, past, params = [1., 1.2, .8, 1.1, 50., 1., 40.], [], [nn.Parameter(torch.zeros(2, 2, dtype=F64))]
    direction, known = torch.tensor([[.6, 0], [0, -.8]], dtype=F64), []
    for norm in norms:
        params[0].grad = norm * direction
        found = clip_by_history(params, past, k=1.5, window=4)
        limit = np.mean(known) + 1.5 * np.std(known, ddof=1) if len(known) > 1 else math.inf
        assert found.item() == pytest.approx(norm) and len(past) <= 4
        known = [*known, min(norm, limit)][-4:]
        assert [n.item() for n in past] == pytest.approx(known, rel=1e-5)
        torch.testing.assert_close(params[0].grad, min(norm, limit) * direction, rtol=1e-5, atol=1e-7)


def test_by_history_takes_two_deviations_and_a_hundred_norms_by_default():
    past, params = [torch.tensor(1. + i % 2) for i in range(150)], with_grads(size=1e3)
    known = [norm.item() for norm in past]
    clip_by_history(params, past)
    limit = np.mean(known) + 2 * np.std(known, ddof=1)
    assert math.sqrt(sum(g.square().sum().item() for g in grads(params[:-1]))) == pytest.approx(limit, rel=1e-5)
    assert len(past) == 100 and past[-1].item() == pytest.approx(limit, rel=1e-5)


def test_by_history_forgets_what_is_not_finite_and_begins_unclipped():
    past, params = [], with_grads(size=1e6)
    clip_by_history(params, past)
    assert_grads(params, with_grads(size=1e6))
    for bad in (math.nan, math.inf):
        params[0].grad[0, 0] = bad
        assert not clip_by_history(params, past).isfinite()
    assert len(past) == 1
    params = with_grads()
    clip_by_history(params, past)
    assert len(past) == 2 and all(norm.isfinite() for norm in past)


BAD_PARAMS = [3, "x", None, nn.Linear(2, 2), {"a": torch.zeros(2)}, [3], ["weight"], [torch.arange(3)],
              [nn.Parameter(torch.zeros(2)), None]]
CLIPS = {"clip_by_value": partial(clip_by_value, c=1.), "clip_by_norm": partial(clip_by_norm, c=1.),
         "clip_adaptive": clip_adaptive, "clip_by_history": partial(clip_by_history, past=[])}


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("bad", BAD_PARAMS, ids=lambda bad: type(bad).__name__)
def test_what_has_no_gradients_is_refused(name, bad):
    with pytest.raises((ValueError, TypeError), match="param"): CLIPS[name](bad)


@pytest.mark.parametrize("bad", [0, -1., math.nan, math.inf, "1", None, [1.], True, 1j])
def test_limits_that_are_none(bad):
    params = with_grads()
    for call, name in ((clip_by_value, "c"), (clip_by_norm, "c"), (clip_adaptive, "clip")):
        with pytest.raises(ValueError, match=f"^{name} must be"): call(params, bad)
    with pytest.raises(ValueError, match="eps"): clip_adaptive(params, eps=bad)
    if bad != 0:
        with pytest.raises(ValueError, match="k must be"): clip_by_history(params, [], k=bad)
    if bad is not True:
        with pytest.raises(ValueError, match="window"): clip_by_history(params, [], window=bad)
    for past in (None, 3, (), torch.zeros(2)):
        with pytest.raises(ValueError, match="past"): clip_by_history(params, past)
    assert_grads(params, with_grads())                    # refused before anything has changed


# The loss scaler

def scaler_run(scaler, opt_func, bad, device="cpu", n=14, clip=None, unscale=lambda scaler, opt: scaler.unscale(opt),
               rounds=None):
    "Weights after each step, and the scale after each update; bad: step -> (which parameter, what its gradient holds)."
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape).to(device)) for shape in ((3, 2), (4,), (2,))]  # the last has no gradient
    opt, seen = opt_func(params), []
    for step in range(n):
        loss = sum((p - 1).square().sum() for p in params[:2])
        scaler.scale(loss).backward()
        if step in bad: params[bad[step][0]].grad.view(-1)[0] = bad[step][1]
        if clip is not None:
            unscale(scaler, opt)
            clip(params)
        made = scaler.step(opt)
        scaler.update()
        seen += [*(p.detach().clone() for p in params), scaler.scale(torch.ones((), device=device))]
        if isinstance(made, bool): assert made == (step not in bad)
        opt.zero_grad()
        if rounds: scaler = rounds(scaler)
    return seen


BAD_STEPS = {"none": {}, "some": {2: (0, math.inf), 3: (1, -math.inf), 8: (1, math.nan)},
             "all": {i: (0, math.nan) for i in range(14)}, "the first": {0: (1, math.inf)}}
PAIRS = {"SGD": (partial(SGD, lr=.1, momentum=.9), partial(torch.optim.SGD, lr=.1, momentum=.9)),
         "Adam": (partial(Adam, lr=.1), partial(torch.optim.Adam, lr=.1)),
         "AdamW of torch": (partial(torch.optim.AdamW, lr=.1),) * 2}
OPTIONS = 2. ** 8, 2., .5, 3


@every_device
@pytest.mark.parametrize("bad", BAD_STEPS)
@pytest.mark.parametrize("opt", PAIRS)
@pytest.mark.parametrize("options", [OPTIONS, (1024., 3., .25, 1), (2. ** 16, 2., .5, 2000)])
def test_scaler_as_torchs_step_for_step(bad, opt, options, device):
    mine, theirs = PAIRS[opt]
    ours = scaler_run(LossScaler(*options), mine, BAD_STEPS[bad], device)
    reference = scaler_run(torch.amp.GradScaler(device, *options), theirs, BAD_STEPS[bad], device)
    for a, b in zip(ours, reference, strict=True): torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert all(x.isfinite().all() for x in ours)


def test_scaler_defaults_are_torchs():
    ours, theirs = LossScaler(), torch.amp.GradScaler("cpu")
    assert (ours.factor, ours.growth, ours.backoff, ours.interval) == (
        theirs.get_scale(), theirs.get_growth_factor(), theirs.get_backoff_factor(), theirs.get_growth_interval())


def test_clip_between_unscale_and_step_as_with_torchs():
    run = partial(scaler_run, opt_func=partial(torch.optim.SGD, lr=.1), bad=BAD_STEPS["some"])
    clip = partial(clip_by_norm, c=.2)
    ours, plain = run(LossScaler(*OPTIONS), clip=clip), run(LossScaler(1., interval=2000), clip=clip)
    theirs = run(torch.amp.GradScaler("cpu", *OPTIONS), clip=partial(nn.utils.clip_grad_norm_, max_norm=.2),
                 unscale=lambda scaler, opt: scaler.unscale_(opt))
    wrong = run(LossScaler(*OPTIONS), clip=clip, unscale=lambda *_: None)
    for a, b in zip(ours, theirs, strict=True): torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for i, (a, b) in enumerate(zip(ours, plain)):
        if i % 4 < 3: torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # the scale itself is another
    assert (wrong[-4] - ours[-4]).abs().max() > .01           # clipped before it was unscaled, it hardly moves


def test_scaler_saved_and_loaded_at_every_step_goes_on_as_before():
    def again(scaler):
        state = scaler.state_dict()
        assert pickle.loads(pickle.dumps(state)) == state
        assert all(isinstance(value, (int, float)) for value in state.values())
        other = LossScaler(7., 9., .9, 5)
        other.load_state_dict(state)
        return other
    plain, saved = (scaler_run(LossScaler(64., 2., .5, 3), PAIRS["SGD"][1], BAD_STEPS["some"], rounds=rounds)
                    for rounds in (None, again))
    for a, b in zip(plain, saved, strict=True): assert torch.equal(a, b)


@every_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_found_anywhere(dtype, bad, device):
    tensors = [torch.randn(7, 5, device=device).to(dtype), *torch.ones(2, device=device), torch.zeros(0, device=device)]
    largest = torch.full((2,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(tensors) and all_finite([]) and all_finite([largest, -largest])
    for i in (0, 17, 34):
        tensors[0] = torch.randn(7, 5, device=device).to(dtype)
        tensors[0].view(-1)[i] = bad
        assert not all_finite(tensors) and not all_finite(tensors[::-1])


def opt_with_grad(value=1.):
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.full((3,), value)
    return torch.optim.SGD([p], lr=.1)


def test_scaler_calls_out_of_order_are_told():
    scaler, opt = LossScaler(4.), opt_with_grad(4.)
    with pytest.raises(RuntimeError, match="update"): scaler.update()
    scaler.unscale(opt)
    with pytest.raises(RuntimeError, match="once"): scaler.unscale(opt)
    [p] = opt.param_groups[0]["params"]
    assert torch.equal(p.grad, torch.ones(3))
    assert scaler.step(opt) is True and torch.allclose(p, torch.full((3,), .9))
    with pytest.raises(RuntimeError, match="update"): scaler.step(opt)
    with pytest.raises(RuntimeError): scaler.unscale(opt)
    assert torch.allclose(p, torch.full((3,), .9))
    scaler.update()
    p.grad = torch.full((3,), 4.)
    assert scaler.step(opt) is True


def test_scaler_with_two_optimizers_skips_the_bad_one_alone_and_backs_off_once():
    ours, theirs = LossScaler(4., interval=2), torch.amp.GradScaler("cpu", 4., growth_interval=2)
    for good in (True, False, True, True):
        found = []
        for scaler in (ours, theirs):
            opts = [opt_with_grad(), opt_with_grad(1. if good else math.inf)]
            scaler.scale(torch.ones(()))
            made = [scaler.step(opt) for opt in opts]
            if scaler is ours: assert made == [True, good]
            scaler.update()
            found.append([opt.param_groups[0]["params"][0].detach() for opt in opts] + [scaler.scale(torch.ones(()))])
        for a, b in zip(*found): torch.testing.assert_close(a, b)


def test_scaler_with_sparse_gradients_none_at_all_and_groups():
    table, other = nn.Embedding(5, 2, sparse=True), nn.Parameter(torch.ones(2))
    scaler, opt = LossScaler(8.), torch.optim.SGD([{"params": [table.weight]}, {"params": [other], "lr": 1.}], lr=.5)
    before = table.weight.detach().clone()
    scaler.scale(table(torch.tensor([1, 3, 1])).sum()).backward()
    assert scaler.step(opt) is True
    expected = before.clone()
    expected[1] -= 2 * .5
    expected[3] -= .5
    torch.testing.assert_close(table.weight.detach(), expected)
    scaler.update()
    scaler.scale(math.inf * table(torch.tensor([1])).sum()).backward()
    assert scaler.step(opt) is False and scaler.factor == 8.
    scaler.update()
    assert scaler.factor == 4. and table.weight.isfinite().all()
    opt.zero_grad()
    assert scaler.step(opt) is True                       # nothing to step, and nothing infinite


def test_scaling_leaves_loss_and_dtype_wide_enough():
    loss = torch.tensor(3., dtype=torch.float16)
    scaled = LossScaler().scale(loss)
    assert scaled.item() == 3 * 2 ** 16 and scaled.dtype is torch.float32 and loss.item() == 3
    assert LossScaler().scale(torch.tensor(3., dtype=F64)).dtype is F64
    p = nn.Parameter(torch.ones(2, dtype=torch.float16))
    p.grad = torch.ones(2, dtype=torch.float16)
    for call in (LossScaler().unscale, LossScaler().step):
        with pytest.raises(ValueError, match="float16"): call(torch.optim.SGD([p], lr=.1))


def test_a_scale_neither_reaches_0_nor_infinity():
    scaler = LossScaler(1., interval=1)
    with pytest.raises(RuntimeError, match="something is wrong"):
        for _ in range(100):
            scaler.step(opt := opt_with_grad(math.nan))
            scaler.update()
    scaler = LossScaler(2. ** 100, growth=2. ** 20, interval=1)
    for _ in range(10):
        scaler.step(opt := opt_with_grad())
        scaler.update()
    assert opt and math.isfinite(scaler.factor) and scaler.scale(torch.ones(())).isfinite()


@pytest.mark.parametrize("name, bads", {
    "init": [0, -1, math.nan, math.inf, "2", None, True, 1e-30, 1e39],
    "growth": [1, .5, math.nan, math.inf, "2", None, True],
    "backoff": [0, 1, 1.5, -.5, math.nan, "2", None, True], "interval": [0, -1, 2.5, math.nan, "2", None]}.items())
def test_scaler_arguments_out_of_range(name, bads):
    for bad in bads:
        with pytest.raises(ValueError, match=f"^{name} must be"): LossScaler(**{name: bad})


def test_what_a_scaler_cannot_use_is_refused_and_changes_nothing():
    scaler = LossScaler(8., interval=5)
    for bad in (3., None, "loss", torch.tensor(3)):
        with pytest.raises(ValueError, match="loss"): scaler.scale(bad)
    for bad in (None, 3, nn.Linear(2, 2), [torch.zeros(2)]):
        for call in (scaler.unscale, scaler.step):
            with pytest.raises(ValueError, match="opt must be"): call(bad)
    good = scaler.state_dict()
    changes = [{"more": 1}, {"factor": math.nan}, {"factor": 0}, {"growth": 1.}, {"backoff": 2.}, {"interval": 0},
               {"n_good": -1}, {"n_good": True}, {"n_good": 1.5}]
    for bad in (None, 3, {}, {"factor": 2.}, *({**good, **change} for change in changes)):
        with pytest.raises(ValueError): scaler.load_state_dict(bad)
        assert scaler.state_dict() == good


# Mixed precision in the loop

def xy(n=48, device="cpu"):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 6, generator=generator)
    return x.to(device), (x[:, 0] > 0).long().to(device) + (x[:, 1] > 0).long().to(device)


def small_model(device="cpu", norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), *[nn.BatchNorm1d(16)] * norm, nn.ReLU(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).to(device)


def learner(device="cpu", norm=False, opt_func=partial(torch.optim.SGD, lr=.1, momentum=.9), **options):
    dls = DataLoaders(TensorLoader(*xy(device=device), 12), TensorLoader(*xy(device=device), 24))
    return Learner(small_model(device, norm), dls, F.cross_entropy, opt_func, **options)


def by_hand(dtype, n_epochs, device="cpu", norm=False, scaler=None, clip=None):
    "torch's own recipe: autocast, GradScaler, clipping after unscaling."
    model = small_model(device, norm)
    opt = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)
    x, y = xy(device=device)
    for _ in range(n_epochs):
        for xb, yb in zip(x.split(12), y.split(12)):
            with torch.autocast(torch.device(device).type, dtype): pred = model(xb)
            loss = F.cross_entropy(pred.float(), yb)
            (scaler.scale(loss) if scaler else loss).backward()
            if scaler: scaler.unscale_(opt)
            if clip: nn.utils.clip_grad_norm_(model.parameters(), clip)
            if scaler:
                scaler.step(opt)
                scaler.update()
            else: opt.step()
            opt.zero_grad()
    return model.state_dict()


def assert_states(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items(): torch.testing.assert_close(value, theirs[name], **tolerance)


@every_device
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("clip", [None, .3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_equals_torchs_recipe(dtype, clip, norm, device):
    learn, cb = learner(device, norm), MixedPrecision(dtype)
    learn.fit(3, cbs=[*([GradientClip(clip)] if clip else []), cb])     # in the list the clip stands first
    theirs = by_hand(dtype, 3, device, norm, torch.amp.GradScaler(device) if dtype is torch.float16 else None, clip)
    assert_states(learn.model.state_dict(), theirs, rtol=1e-5, atol=1e-6)
    plain = learner(device, norm)
    plain.fit(3, cbs=[GradientClip(clip)] if clip else [])
    far = max((a - b).abs().max().item() for a, b in zip(learn.model.parameters(), plain.model.parameters()))
    assert 1e-6 < far < .1 and cb.n_skipped == 0                         # it did compute in 16 bits
    assert all(p.dtype is torch.float32 and p.grad is None for p in learn.model.parameters())


class Overflow(Callback):
    "Makes a gradient infinite in the given training batches, counted from 0; keeps what was seen of each batch."
    run_before = (MixedPrecision,)

    def __init__(self, at=(), value=math.inf):
        self.at, self.value, self.n, self.losses, self.steps = at, value, 0, [], 0

    def after_backward(self, learn):
        if self.n in self.at: next(learn.model.parameters()).grad[0, 0] = self.value
        self.n += 1
        self.losses.append(learn.loss.item())

    def after_step(self, learn): self.steps += not learn.cancelled


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_an_overflow_skips_step_and_schedule_and_lowers_the_scale(value):
    spy, rates = Overflow({1, 2, 6}, value), []
    scaler = LossScaler(2. ** 10, interval=3)
    cb, learn = MixedPrecision(torch.float16, scaler), learner()
    schedule = LRScheduler(lambda opt: torch.optim.lr_scheduler.StepLR(opt, 1, .5))
    learn.fit(2, cbs=[cb, spy, schedule])                                # 8 batches, of which 3 are skipped
    assert cb.n_skipped == 3 and spy.steps == 5
    assert learn.opt.param_groups[0]["lr"] == pytest.approx(.1 * .5 ** 5)
    assert scaler.factor == 2. ** 10 * .5 ** 3 * 2                       # three good ones in a row: steps 3 to 5
    assert all(p.isfinite().all() for p in learn.model.parameters())
    momentum = [state["momentum_buffer"] for state in learn.opt.state.values()]
    assert all(x.isfinite().all() for x in momentum) and rates == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_everybody_sees_the_plain_loss(dtype):
    recorder, plain, spy = Recorder(), Recorder(), Overflow()
    learner().fit(1, cbs=[MixedPrecision(dtype), recorder, spy])
    learner().fit(1, cbs=[plain])
    np.testing.assert_allclose(recorder.losses, plain.losses, rtol=.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_with_accumulation_a_step_of_two_batches_is_one_of_both_together(dtype):
    mixed = lambda: MixedPrecision(dtype, LossScaler(2. ** 8))     # 2¹⁶, times the 12 rows of a batch, overflows
    ours = learner()
    ours.fit(3, cbs=[mixed(), GradientAccumulation(2), GradientClip(.5)])
    dls = DataLoaders(TensorLoader(*xy(), 24), None)
    theirs = Learner(small_model(), dls, F.cross_entropy, partial(torch.optim.SGD, lr=.1, momentum=.9))
    theirs.fit(3, cbs=[mixed(), GradientClip(.5)])
    assert_states(ours.model.state_dict(), theirs.model.state_dict(), rtol=2e-2, atol=2e-3)


def test_with_accumulation_an_overflow_drops_what_waits_once():
    spy, cb = Overflow({1}), MixedPrecision(torch.float16, LossScaler(2. ** 10))
    learn = learner()
    learn.fit(1, cbs=[cb, GradientAccumulation(2), spy])
    assert cb.n_skipped == 1 and cb.scaler.factor == 2. ** 9
    assert all(p.isfinite().all() for p in learn.model.parameters())


@pytest.mark.parametrize("event", ["before_batch", "after_pred", "before_backward", "after_backward", "before_step",
                                   "after_step"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_interrupted_anywhere_it_leaves_nothing_behind_and_goes_on(event, dtype):
    class Stops(Callback):
        run_after, on = (MixedPrecision,), True

        def stop(self, learn):
            if self.on and learn.iter == 1 and learn.training: raise KeyError("stop")
    setattr(Stops, event, Stops.stop)
    cb, stops, learn = MixedPrecision(dtype), Stops(), learner()
    with pytest.raises(KeyError): learn.fit(1, cbs=[cb, stops])
    assert not torch.is_autocast_enabled("cpu")
    assert all(p.dtype is torch.float32 and p.isfinite().all() for p in learn.model.parameters())
    stops.on = False
    learn.fit(2, cbs=[cb, stops])
    assert all(p.isfinite().all() for p in learn.model.parameters())
    assert learn.validate()["loss"] < 1.1


def test_fits_one_after_the_other_are_one_fit_and_saved_ones_load(tmp_path):
    once, twice, scaler = learner(), learner(), LossScaler(2. ** 10, interval=3)
    once.fit(4, cbs=[MixedPrecision(torch.float16, LossScaler(2. ** 10, interval=3))])
    cb = MixedPrecision(torch.float16, scaler)
    twice.fit(2, cbs=[cb])
    twice.save(tmp_path / "half")
    third = learner()
    third.load(tmp_path / "half")
    resumed = LossScaler()
    resumed.load_state_dict(scaler.state_dict())
    twice.fit(2, cbs=[cb])
    third.fit(2, cbs=[MixedPrecision(torch.float16, resumed)])
    for other in (twice, third): assert_states(other.model.state_dict(), once.model.state_dict(), rtol=0, atol=0)
    assert resumed.state_dict() == scaler.state_dict()


def test_an_epoch_of_overflows_changes_nothing_and_counts_nothing():
    recorder, cb, learn = Recorder(), MixedPrecision(torch.float16, LossScaler(2. ** 10)), learner()
    before = copy.deepcopy(learn.model.state_dict())
    learn.fit(1, cbs=[cb, Overflow(range(4)), recorder])
    assert cb.n_skipped == 4 and cb.scaler.factor == 2. ** 6 and len(recorder.losses) == 0
    assert math.isnan(learn.results["train_loss"]) and learn.results["valid_loss"] < 2
    assert_states(learn.model.state_dict(), before, rtol=0, atol=0)


def test_a_step_that_somebody_else_cancels_is_no_step_of_the_scaler():
    class Cancels(Callback):
        run_before = (MixedPrecision,)

        def before_step(self, learn):
            if learn.iter == 1: raise CancelStepException
    cb, learn = MixedPrecision(torch.float16, LossScaler(2. ** 10)), learner()
    learn.fit(1, cbs=[Cancels(), cb])
    assert cb.scaler.n_good == 3 and cb.n_skipped == 0 and all(p.isfinite().all() for p in learn.model.parameters())


def test_lr_find_leaves_no_trace_of_it():
    cb = MixedPrecision(torch.float16, LossScaler(2. ** 10, interval=4))
    learn = learner(cbs=[cb], lr=.1)
    before = copy.deepcopy(learn.model.state_dict())
    learn.lr_find(num_it=10)
    assert_states(learn.model.state_dict(), before, rtol=0, atol=0)
    learn.fit(1)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("bad", [torch.float32, F64, torch.int8, "float16", None, 16])
def test_only_dtypes_of_sixteen_bits(bad):
    with pytest.raises(ValueError, match="dtype"): MixedPrecision(bad)
    with pytest.raises(ValueError, match="dtype"): run_in(bad, small_model(), xy()[0])


def test_a_scaler_that_is_none_and_a_model_in_sixteen_bits_are_refused():
    for bad in (3., "scaler", torch.amp.GradScaler("cpu"), LossScaler):
        with pytest.raises(ValueError, match="scaler"): MixedPrecision(torch.float16, bad)
    assert MixedPrecision().scaler is None and MixedPrecision(torch.bfloat16, scaler := LossScaler()).scaler is scaler
    learn = learner()
    learn.model[2].half()
    with pytest.raises(ValueError, match="2.weight"): learn.fit(1, cbs=[MixedPrecision()])


@every_device
@pytest.mark.parametrize("norm", [False, True])
def test_sixteen_bits_by_hand_are_autocast_within_rounding(norm, device):
    model, (x, y) = small_model(device, norm), xy(device=device)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    out = run_in(torch.bfloat16, model, x)
    with torch.autocast(torch.device(device).type, torch.bfloat16): cast = model(x)
    torch.testing.assert_close(out.float(), cast.float(), rtol=3 * BF16_ROUNDING, atol=3 * BF16_ROUNDING)
    F.cross_entropy(out.float(), y).backward()
    by_mine = [p.grad for p in model.parameters()]
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    for mine, p in zip(by_mine, model.parameters()):
        assert mine.dtype is torch.float32 and p.dtype is torch.float32
        torch.testing.assert_close(mine, p.grad, rtol=.1, atol=.02 * p.grad.abs().max().item())
    assert_states(model.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match="model"): run_in(torch.bfloat16, F.relu, x)


# Memory

def saves_of(function, *inputs):
    "The storages that torch's hooks see saved: address -> bytes."
    found, kept = {}, []

    def pack(tensor):
        kept.append(tensor)
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x): out = function(*inputs)
    return found, out


def test_saved_bytes_are_those_of_closed_forms():
    x = torch.randn(10, 6)
    linear, wide = nn.Linear(6, 8), nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Sigmoid())
    assert saved_bytes(linear, x) == 0                                   # input and weight are there anyway
    assert saved_bytes(wide, x) == 4 * (10 * 8 + 10 * 4)                 # what tanh and sigmoid gave
    assert saved_bytes(wide.double(), x.double()) == 8 * (10 * 8 + 10 * 4)
    assert saved_bytes(torch.exp, x) == 0 and saved_bytes(torch.exp, x.clone().requires_grad_()) == 4 * 60
    weight = torch.randn(6, 6, requires_grad=True)
    assert saved_bytes(lambda x: (x @ weight).exp(), x) == 4 * 60        # a parameter that is not in the arguments
    leaf = x.clone().requires_grad_()
    assert saved_bytes(lambda x: (x.exp(), x.exp()), leaf) == 2 * 4 * 60
    assert saved_bytes(lambda x: (y := x.exp()) * y[:1], leaf) == 4 * 60     # one memory, three times


def test_saved_bytes_leave_gradients_model_and_inputs_alone():
    model, x = small_model(), xy()[0]
    before = copy.deepcopy(model.state_dict())
    saved_bytes(model, x)
    assert_states(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad(): assert saved_bytes(model, x) > 0               # what training would keep
    for bad in (None, 3, "f"):
        with pytest.raises(ValueError, match="function"): saved_bytes(bad, x)


def deep(norm=None, dropout=None, n=6, width=16):
    torch.manual_seed(0)
    extras = lambda: ([norm(width)] if norm else [], [dropout] if dropout else [])
    block = lambda before, after: nn.Sequential(nn.Linear(width, width), *before, nn.Tanh(), *after)
    return nn.Sequential(*(block(*extras()) for _ in range(n)))


def wrapped(model, wrap): return nn.Sequential(*(wrap(block) for block in model))


class Torchs(nn.Module):
    "torch.utils.checkpoint around a module."
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x): return checkpoint(self.module, x, use_reentrant=False)


def run_once(model, x):
    "Output, gradients of input and parameters, random numbers afterwards; with a fixed seed."
    x = x.clone().requires_grad_()
    torch.manual_seed(7)
    out = model(x)
    between = torch.rand(3)
    found = torch.autograd.grad(out.square().sum(), [x, *model.parameters()])
    return [out.detach(), *found, between, torch.rand(3)]


@every_device
@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d, BatchNorm1d, nn.LayerNorm],
                         ids=["plain", "batchnorm", "our batchnorm", "layernorm"])
@pytest.mark.parametrize("dropout", [None, nn.Dropout(.4), Dropout(.4)], ids=["none", "torch's dropout", "ours"])
@pytest.mark.parametrize("cast", [False, True])
def test_checkpointed_gives_what_the_module_gives(norm, dropout, cast, device):
    model, x = deep(norm, dropout).to(device), torch.randn(9, 16, device=device)
    copies = [copy.deepcopy(model) for _ in range(2)]
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=cast):
        others = wrapped(copies[0], checkpointed), wrapped(copies[1], Torchs)
        plain, ours, theirs = (run_once(m, x) for m in (model, *others))
    for a, b in zip(plain, ours, strict=True): torch.testing.assert_close(a, b, rtol=0, atol=0)
    for a, b in zip(ours[:-2], theirs[:-2], strict=True): torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert_states(copies[0].state_dict(), model.state_dict(), rtol=0, atol=0)       # running statistics, counted once


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, BatchNorm1d])
def test_torchs_checkpoint_counts_the_batch_twice_and_ours_once(norm):
    x, counts = torch.randn(9, 16), []
    for wrap in (Torchs, checkpointed):
        model = deep(norm)
        run_once(wrapped(model, wrap), x)
        counts.append([m.num_batches_tracked.item() for m in model.modules() if isinstance(m, norm)])
    assert counts == [[2] * 6, [1] * 6]


def test_checkpointed_saves_less_and_the_more_in_a_block_the_less():
    model, x = deep(n=8), torch.randn(32, 16, requires_grad=True)
    block, whole = 4 * 32 * 16, saved_bytes(model, x)
    assert whole == 8 * block                                            # what each tanh gave
    assert saved_bytes(wrapped(model, checkpointed), x) == 7 * block    # inputs of blocks; the first's is there anyway
    pairs = nn.Sequential(*(checkpointed(model[i:i + 2]) for i in range(0, 8, 2)))
    assert saved_bytes(pairs, x) == 3 * block and saved_bytes(checkpointed(model), x) == 0
    nested = nn.Sequential(*(checkpointed(wrapped(model[i:i + 4], checkpointed)) for i in (0, 4)))
    for other in (pairs, nested):
        for a, b in zip(run_once(model, x.detach()), run_once(other, x.detach())): assert torch.equal(a, b)


def test_checkpointed_in_evaluation_without_gradients_frozen_and_with_several_inputs():
    model, x = deep(nn.BatchNorm1d, nn.Dropout(.4)), torch.randn(9, 16)
    ours = checkpointed(model)
    with torch.no_grad():
        seed(1)
        out = ours(x)
        seed(1)
        model.load_state_dict(deep(nn.BatchNorm1d).state_dict(), strict=False)
    assert not out.requires_grad
    ours.eval()
    assert torch.equal(ours(x), model(x)) and not model.training and ours(x).grad_fn is not None
    for p in model[0].parameters(): p.requires_grad_(False)
    ours(x).sum().backward()
    assert model[0][0].weight.grad is None and model[1][0].weight.grad is not None

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Bilinear(4, 4, 3)

        def forward(self, a, b, power=1): return self.inner(a, b) ** power, a.detach(), (a * b).sum(1)
    module = Two()
    a, b = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    both = []
    for call in (module, checkpointed(module)):
        out = call(a, b, 2)
        assert isinstance(out, tuple) and len(out) == 3
        both.append([*out, *torch.autograd.grad(out[0].sum() + out[2].square().sum(), [a, *module.parameters()])])
    for mine, theirs in zip(*both): assert torch.equal(mine, theirs)


def test_checkpointed_runs_again_in_the_mode_of_its_first_run():
    "Also where it has gone over to evaluation by then, at which torch's own checkpoint raises an error."
    model, x, found = deep(nn.BatchNorm1d, nn.Dropout(.5)), torch.randn(9, 16, requires_grad=True), []
    for wrap in (lambda block: block, checkpointed):
        model.train()
        seed(0)
        loss = wrapped(model, wrap)(x).square().sum()
        model.eval()
        found.append(torch.autograd.grad(loss, x)[0])
        assert not any(module.training for module in model.modules())
    assert torch.equal(*found)


def test_checkpointed_saved_loaded_copied_and_trained_in_a_learner():
    plain, ours = small_model(norm=True), small_model(norm=True)
    models = plain, nn.Sequential(checkpointed(ours[:3]), ours[3])
    for model in models:
        dls = DataLoaders(TensorLoader(*xy(), 12), TensorLoader(*xy(), 24))
        Learner(model, dls, F.cross_entropy, partial(SGD, lr=.1, momentum=.9)).fit(3)
    for a, b in zip(plain.state_dict().values(), models[1].state_dict().values()): assert torch.equal(a, b)
    x = xy()[0]
    for again in (copy.deepcopy(models[1]), pickle.loads(pickle.dumps(models[1]))):
        assert torch.equal(again(x), models[1](x))


def test_checkpointed_with_mixed_precision():
    both = []
    for wrap in (lambda block: block, checkpointed):
        model = small_model(norm=True)
        model = nn.Sequential(wrap(model[:3]), model[3])
        dls = DataLoaders(TensorLoader(*xy(), 12), None)
        Learner(model, dls, F.cross_entropy, partial(SGD, lr=.1)).fit(2, cbs=[MixedPrecision(torch.bfloat16)])
        both.append([*model.state_dict().values()])
    for a, b in zip(*both): assert torch.equal(a, b)


def test_what_cannot_be_checkpointed_is_told():
    for bad in (None, F.relu, 3, nn.Linear):
        with pytest.raises(ValueError, match="module"): checkpointed(bad)
    model = checkpointed(nn.Linear(3, 3))
    for bad in ([torch.zeros(2, 3)], (torch.zeros(2, 3),), {"x": torch.zeros(2, 3)}):
        with pytest.raises(TypeError, match="one by one"): model(bad)

    class Gives(nn.Module):
        def forward(self, x): return {"x": x}
    with pytest.raises(TypeError, match="tensor"): checkpointed(Gives())(torch.zeros(2, requires_grad=True))
    x = torch.zeros(2, 3, requires_grad=True)
    out = model(x).sum()
    with torch.no_grad(): model.module.weight += 1
    with pytest.raises(RuntimeError, match="changed"): out.backward()
    out = model(x).sum()
    [grad] = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError): grad.sum().backward()              # twice differentiable it is not, and says so


@every_device
def test_offloaded_gradients_are_the_same_and_bytes_those_that_hooks_see(device):
    model, x = deep(dropout=nn.Dropout(.4)).to(device), torch.randn(9, 16, device=device)
    plain = run_once(model, x)
    with offload_saved() as moved: ours = run_once(model, x)
    with torch.autograd.graph.save_on_cpu(): theirs = run_once(model, x)
    for a, b, c in zip(plain, ours, theirs, strict=True): assert torch.equal(a, b) and torch.equal(a, c)
    calls = []
    count = torch.autograd.graph.saved_tensors_hooks(lambda t: calls.append(t.nbytes) or t, lambda t: t)
    with count: run_once(model, x)
    assert 0 < moved.bytes <= sum(calls)
    with offload_saved() as nothing: pass
    assert nothing.bytes == 0


def test_offloading_ends_with_its_block_also_after_an_error_and_backward_may_come_later():
    model, x = deep(), torch.randn(9, 16)
    with pytest.raises(KeyError), offload_saved() as moved:
        out = model(x)
        raise KeyError
    before = moved.bytes
    model(x)
    assert moved.bytes == before > 0
    out.sum().backward()
    mine = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    for a, p in zip(mine, model.parameters()): assert torch.equal(a, p.grad)


def test_what_is_offloaded_is_a_copy_that_later_changes_do_not_reach():
    x = torch.ones(3, requires_grad=True)
    with offload_saved():
        y = x * 2
        out = y.square().sum()
    assert out.grad_fn is not None
    out.backward()
    assert torch.equal(x.grad, torch.full((3,), 8.))


# GradientClip in the loop is made from the same arithmetic

@pytest.mark.parametrize("options", [{"max_norm": .05}, {"max_value": .01}])
def test_gradient_clip_is_still_torchs(options):
    ours, theirs = learner(), learner()

    class Theirs(Callback):
        def before_step(self, learn):
            params = [*learn.model.parameters()]
            if "max_norm" in options: self.norm = nn.utils.clip_grad_norm_(params, options["max_norm"])
            else: nn.utils.clip_grad_value_(params, options["max_value"])
    cb, reference = GradientClip(**options), Theirs()
    ours.fit(2, cbs=[cb])
    theirs.fit(2, cbs=[reference])
    assert_states(ours.model.state_dict(), theirs.model.state_dict(), rtol=1e-6, atol=1e-7)
    if "max_norm" in options: torch.testing.assert_close(cb.norm, reference.norm)


# The live figure

@pytest.mark.parametrize("power", [-30, 0, 9, 24, 60])
def test_what_float16_loses_is_counted_as_numpy_counts_it(power):
    sizes = 2. ** torch.empty(5000).uniform_(-45, 5, generator=torch.Generator().manual_seed(1))
    found = shares_in_float16(sizes * torch.tensor([1., -1.]).repeat(2500), 2. ** power)
    exact = sizes.double().numpy() * 2. ** power
    shares = {"lost": exact <= 2. ** -25, "infinite": exact >= 65_520,
              "vague": (exact > 2. ** -25) & (exact < 2. ** -14)}
    shares["good"] = ~(shares["lost"] | shares["vague"] | shares["infinite"])
    assert found == pytest.approx({name: share.mean() for name, share in shares.items()})


def test_the_live_figure():
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(4000, generator=generator) * 2. ** torch.empty(4000).uniform_(-38, -12, generator=generator)
    grads[::3] = 0
    explorer = loss_scale_explorer(grads)
    states = [explorer.set(power=power) for power in range(-8, 45, 4)]
    lost, infinite = ([state[name] for state in states] for name in ("lost", "infinite"))
    assert lost == sorted(lost, reverse=True) and infinite == sorted(infinite) and lost[0] > .7 and infinite[-1] > .2
    for state in states: assert sum(state[name] for name in ("lost", "vague", "good", "infinite")) == pytest.approx(1)
    explorer.reset()
    drive(explorer, also=[2])
    axes = loss_scale_strip(grads, (-8, 8, 44)).axes
    assert len(axes) == 3
    for ax, power in zip(axes, (-8, 8, 44)):
        heights = [bar.get_height() for bar in ax.patches if abs(bar.get_width() - .8) < 1e-9]
        assert sum(heights) == pytest.approx(100, rel=1e-4)
        assert any(f"{{{power}}}" in text.get_text() for text in ax.texts)


# What was measured

@pytest.mark.parametrize("data", ["mnist", "digits"])
def test_what_the_chapter_says_of_its_runs(data):
    found = results("stability").get(data)
    if found is None: pytest.skip(f"data/stability.py has not run on {data} yet")
    clipping = {**found["clipping"], "rows": found["rows"]}
    for part in clipping.values():
        for way, entry in part.items():
            assert all(len(runs) == 10 for runs in entry["runs"]) and len(entry["runs"]) == len(entry["rates"])
            tried = {(limit, lr): score for limit, lr, score in entry["tried"]}
            limit, lr = entry["limit"], entry["lr"]
            assert tried[limit, lr] == max(tried.values())                     # the best, with others on both sides
            rates = [rate for other, rate in tried if other == limit]
            assert min(rates) < lr < max(rates)
            limits = {other for other, _ in tried}
            if way == "none": continue
            assert limit > min(limits) or way == "history"
            plain = [score for _, rate, score in part["none"]["tried"] if rate == lr]
            assert limit < max(limits) or tried[limit, lr] == plain[0]         # at which nothing is clipped

    def at(part, way):
        entry = clipping[part][way]
        return np.array(entry["runs"][entry["rates"].index(entry["lr"])])
    for way in ("value", "norm", "adaptive", "history"):
        assert paired(at("wild", way), at("wild", "none")).low > .1            # with accidents all of them help

    assert paired(at("rows", "adaptive"), at("rows", "none")).low > 0      # by unit helps even at the best rate
    for part, name in (("rows", "rows"), ("ordinary", "deep")):            # is by norm more than a smaller rate?
        gain = paired(at(part, "norm"), np.array(found["slower"][name]["runs"]))
        assert gain.low > 0 if name == "rows" else gain.low < 0

    def at_1(way, part="ordinary"): return np.array((entry := clipping[part][way])["runs"][entry["rates"].index(1.)])
    assert paired(at_1("norm", "rows"), at_1("none", "rows")).low > .3
    if data == "mnist":                                    # on the digits, the best limit of the norm clips nothing
        for way in ("value", "norm"): assert paired(at_1(way), at_1("none")).low > .3
    runs = found["precision"]
    assert paired(np.array(runs["bfloat16 weights"]["0.01"]), np.array(runs["float32"]["0.01"])).high < 0
    [lost] = [name for name in runs if name.startswith("float16 masters /")]
    gain = paired(np.array(runs[f"scaled {lost}"]["0.01"]), np.array(runs[lost]["0.01"]))
    assert gain.low > .1
