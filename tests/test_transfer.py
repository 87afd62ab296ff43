"""Transfer against references: torchvision's networks, torch's optimizers, weights that are not what they should be."""
import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from course_lib import (AdamW, Callback, CancelFitException, DataLoaders, Learner, SGD, TensorLoader, accuracy,
                        batchnorm)
from course_lib.figures.transfer import FOUR_WAYS, curves_figure, head_explorer, looks_figure, ways_figure
from course_lib.support import pretrained
from course_lib.support.files import DamagedFileError, DownloadError
from course_lib.support.glyphs import glyph_curves, printed
from course_lib.support.paired import paired
from course_lib.support.photos import CenterCrop, RandomResizedCrop
from course_lib.sweeps import sweep
from course_lib.support.pretrained import imagenet_resnet, load_weights, run_if
from course_lib.support.results import results
from course_lib.transfer import (
    MoveStatistics, ResidualBlock, decay_weights_only, features, freeze, freeze_to, gray_to_rgb, layer_groups,
    replace_head, unfreeze)
from drive import drive
from tiny import with_ctrl_c

RESNETS = ["resnet18", "resnet34", "resnet50"]


@pytest.fixture(autouse=True)
def small_work(one_thread): torch.manual_seed(0)


def net():
    return nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
                         nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU()),
                         nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))


def data(n=24, n_classes=3):
    x, y = torch.randn(n, 1, 12, 12), torch.arange(n) % n_classes
    return DataLoaders(TensorLoader(x, y, 8), TensorLoader(x, y, 8))


def learner(model=None, opt_func=SGD, **options):
    return Learner(net() if model is None else model, data(), F.cross_entropy, opt_func, metrics=[accuracy],
                   splitter=layer_groups, **options)


# --- heads and groups

@pytest.mark.parametrize("name, last",
                         [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3"), ("vgg11", "classifier.6"),
                          ("densenet121", "classifier"), ("squeezenet1_1", "classifier.1"), ("vit_b_32", "heads.head")])
def test_the_head_of_torchvisions_networks_is_found(name, last):
    with torch.device("meta"): model = torchvision.models.get_model(name)
    others = {key: value for key, value in model.named_modules()
              if key and key != last and not last.startswith(key + ".")}
    assert replace_head(model, 37) is model
    head = model.get_submodule(last)
    assert getattr(head, "out_features", getattr(head, "out_channels", None)) == 37
    for key, module in others.items(): assert model.get_submodule(key) is module


def test_a_head_keeps_device_dtype_bias_and_place():
    model = nn.Sequential(nn.Linear(4, 5),
                          nn.Sequential(nn.ReLU(), nn.Linear(5, 3, bias=False), nn.Identity())).double().eval()
    body = model[0].weight
    replace_head(model, 7)
    assert model[1][1].weight.shape == (7, 5) and model[1][1].weight.dtype is torch.float64 and model[1][1].bias is None
    assert model[0].weight is body and not model[1][1].training and model(torch.randn(2, 4).double()).shape == (2, 7)
    conv = replace_head(batchnorm.ConvNet(widths=(4,)), 6)
    assert (conv(torch.randn(2, 1, 8, 8)).shape
            == batchnorm.ConvNet(widths=(4,), n_classes=6)(torch.randn(2, 1, 8, 8)).shape)
    assert replace_head(nn.Linear(4, 3), 2).out_features == 2


@pytest.mark.parametrize("n_classes", [0, -1, 2.5, None, "10"])
def test_a_wrong_number_of_classes(n_classes):
    model = net()
    with pytest.raises(ValueError, match="n_classes must be a whole number"): replace_head(model, n_classes)
    assert model[2][2].out_features == 3


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.ReLU(),
                                   nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 3))])
def test_what_has_no_head(model):
    with pytest.raises(ValueError, match="can be replaced"): replace_head(model, 10)


class TwoHeads(nn.Module):
    "A body and two heads side by side; joined: they make one output, beside: the second is used within."
    def __init__(self, way="two"):
        super().__init__()
        self.breed, self.age = nn.Linear(8, 3), nn.Linear(8, 1)
        self.body, self.way = nn.Linear(4, 8), way

    def forward(self, x):
        h = self.body(x).relu()
        if self.way == "one": return self.breed(h)
        if self.way == "with features": return self.breed(h), h
        if self.way == "dict": return {"breed": self.breed(h), "age": self.age(h)}
        if self.way == "looks": return (self.breed(h), self.age(h)) if x.sum() > 0 else self.age(h)
        return self.breed(h), self.age(h)


@pytest.mark.parametrize("way", ["two", "dict"])
def test_two_heads_are_named_and_left(way):
    model = TwoHeads(way)
    said = r"TwoHeads has 2 heads, breed and age.*model\.age = replace_head\(model\.age"
    for work in (lambda: replace_head(model, 5), lambda: features(model, torch.randn(2, 4))):
        with pytest.raises(ValueError, match=said): work()
    assert model.age.out_features == 1
    model.age = replace_head(model.age, 7)  # the advice
    assert [part.shape for part in (TwoHeads.forward(model, torch.randn(2, 4)).values() if way == "dict"
                                    else model(torch.randn(2, 4)))] == [(2, 3), (2, 7)]


@pytest.mark.parametrize("way", ["one", "with features"])
def test_the_head_is_what_the_outputs_come_from_not_what_was_defined_last(way):
    model = TwoHeads(way)
    replace_head(model, 5)
    assert (model.breed.out_features, model.age.out_features, model.body.out_features) == (5, 1, 8)
    x = torch.randn(2, 4)
    torch.testing.assert_close(features(model, x), model.body(x).relu().detach())


def test_a_model_that_looks_at_its_numbers_is_judged_by_its_last_layer():
    assert replace_head(TwoHeads("looks"), 5).body.out_features == 5  # the last that was defined


def test_looking_for_the_head_leaves_model_and_random_numbers_as_they_were():
    class Remembers(TwoHeads):
        def forward(self, x):
            self.seen = self.body(x + torch.rand(1))
            return self.breed(self.seen)
    model, before = Remembers(), torch.get_rng_state()
    weights = {name: p for name, p in model.named_parameters()}
    features(model, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    model.seen = None
    torch.manual_seed(0)
    replace_head(model, 5)
    assert model.seen is None and all(p is weights[name] for name, p in model.named_parameters() if "breed" not in name)
    torch.manual_seed(0)
    assert torch.equal(model.breed.weight, nn.Linear(8, 5).weight)  # the numbers that torch draws for such a layer
    torch.set_rng_state(before)


class Scaled(nn.Linear):
    "A subclass whose constructor takes other arguments."
    def __init__(self, n_in, scale): super().__init__(n_in, 3); self.scale = scale
    def forward(self, x): return self.scale * super().forward(x)


class OwnConv(nn.Conv2d): "Nothing new."


@pytest.mark.parametrize("head, x", [
    (Scaled(4, 30.), torch.randn(2, 4)), (OwnConv(4, 3, 1), torch.randn(2, 4, 5, 5)),
    (nn.modules.linear.NonDynamicallyQuantizableLinear(4, 3), torch.randn(2, 4))],
                         ids=["scaled", "conv", "torch's own"])
def test_a_subclass_is_replaced_by_one_of_its_kind(head, x):
    model, old = nn.Sequential(nn.Identity(), head), head.weight
    torch.manual_seed(1)
    new = replace_head(model, 7)[1]
    assert type(new) is type(head) and model(x).shape[:2] == (2, 7) and old is head.weight
    torch.manual_seed(1)
    plain = nn.Linear(4, 7) if isinstance(head, nn.Linear) else nn.Conv2d(4, 7, 1)
    assert torch.equal(new.weight, plain.weight) and torch.equal(new.bias, plain.bias)
    torch.testing.assert_close(model(x), plain(x) * getattr(head, "scale", 1.))
    assert getattr(new, "out_features" if isinstance(head, nn.Linear) else "out_channels") == 7


def test_the_head_of_a_compiled_model():
    compiled = torch.compile(net(), backend="eager")
    assert replace_head(compiled, 7) is compiled and features(compiled, torch.randn(2, 1, 12, 12)).shape == (2, 6)
    assert compiled(torch.randn(2, 1, 12, 12)).shape == (2, 7)


def test_a_new_head_learns_and_has_no_hooks_of_the_old():
    model, seen = net(), []
    freeze_to(model, 0)
    for p in model.parameters(): p.requires_grad_(False)
    model[2][2].register_forward_hook(lambda *parts: seen.append(parts))
    replace_head(model, 4)
    model(torch.randn(2, 1, 12, 12))
    assert all(p.requires_grad for p in model[2][2].parameters()) and seen == []


class WithScale(nn.Linear):
    def __init__(self): super().__init__(4, 3); self.scale = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("head, message", [
    (WithScale(), "WithScale has scale besides weight and bias.*yourself"),
    (nn.utils.spectral_norm(nn.Linear(4, 3)), "besides weight and bias"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), "can be replaced|besides weight and bias"),
    (nn.LazyLinear(3), "no shape yet.*a batch"), (nn.Bilinear(4, 4, 3), "can be replaced"),
    (nn.Conv2d(4, 4, 1, groups=2), "7 outputs.*2 groups")])
def test_what_is_like_a_head_and_cannot_be_replaced(head, message):
    model = nn.Sequential(nn.Identity(), head)
    with pytest.raises(ValueError, match=message) as caught: replace_head(model, 7)
    assert model[1] is head and "nn.Linear: a head that can be replaced is" not in str(caught.value)


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_fall_into_stem_stages_and_head(name):
    with torch.device("meta"): model = torchvision.models.get_model(name)
    names = {id(p): name.split(".")[0] for name, p in model.named_parameters()}
    assert [sorted({names[id(p)] for p in group}) for group in layer_groups(model)] == [
        ["bn1", "conv1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"], ["fc"]]


def test_a_second_exit_is_not_the_head():
    with torch.device("meta"):
        model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    replace_head(model, 5)
    assert (model.classifier[-1].out_channels, model.aux_classifier[-1].out_channels) == (5, 21)
    assert replace_head(nn.Conv2d(2, 4, 3, padding_mode="reflect"), 3).padding_mode == "reflect"


def test_groups_of_any_sequential():
    flat = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 3),
                         batchnorm.GroupNorm(1, 3), nn.Flatten(), nn.Linear(3, 2))
    assert [len(group) for group in layer_groups(flat)] == [4, 4, 2]
    assert layer_groups(nn.Sequential(flat)) == layer_groups(flat) == layer_groups(
        nn.Sequential(nn.Sequential(flat), nn.Flatten()))
    shared = nn.Linear(2, 2)
    assert [len(group) for group in layer_groups(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(2, 1)))] == [2, 2]
    for model in (flat, net()):
        ids = [id(p) for group in layer_groups(model) for p in group]
        assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_freezing_a_model_and_freezing_a_learner_are_the_same():
    model = net()
    learn = learner(copy.deepcopy(model))
    flags = lambda m: [p.requires_grad for p in m.parameters()]
    for n in (-1, 0, 1, 2, -2, -3):
        freeze_to(model, n), learn.freeze_to(n)
        assert flags(model) == flags(learn.model), n
    freeze(model), learn.freeze()
    assert flags(model) == flags(learn.model) == [False] * 7 + [True] * 2
    unfreeze(model), learn.unfreeze()
    assert all(flags(model)) and all(flags(learn.model))
    for n in (3, -4):
        with pytest.raises(ValueError, match="3 groups"): freeze_to(model, n)
    assert all(flags(model))


# --- frozen normalization

def statistics(model): return {name: value.clone() for name, value in model.named_buffers()}


def test_frozen_statistics_stay_unless_asked():
    learn = learner(lr=.1)
    before, weights = statistics(learn.model), copy.deepcopy(learn.model.state_dict())
    learn.freeze()
    learn.fit(2)
    for name, value in learn.model.named_buffers(): assert torch.equal(value, before[name]), name
    learn.fit(1, cbs=[MoveStatistics()])
    assert not torch.equal(learn.model[0][1].running_mean, before["0.1.running_mean"])
    changed = {name for name, value in learn.model.named_parameters() if not torch.equal(value, weights[name])}
    assert changed == {"2.2.weight", "2.2.bias"}
    assert not learn.model.training or learn.model[0][1].training
    moved = statistics(learn.model)
    learn.fit(1)
    for name, value in learn.model.named_buffers(): assert torch.equal(value, moved[name]), name


# --- rates and weight decay

@pytest.mark.parametrize("lr, rates", [(.3, [.3] * 3), (slice(.3), [.03, .03, .3]), (slice(.003, .3), [.003, .03, .3])])
def test_both_parts_of_a_split_group_get_its_rate(lr, rates):
    for opt_func in (decay_weights_only(AdamW), decay_weights_only(torch.optim.AdamW)):
        learn = learner(opt_func=opt_func)
        learn.lr = lr
        learn.make_opt()
        for _ in range(2):  # as made, and as set
            groups = learn.opt.param_groups
            torch.testing.assert_close([float(group["lr"]) for group in groups],
                                       [rate for rate in rates for _ in range(2)])
            learn.lr = lr
        for group in groups:
            dims = {p.ndim for p in group["params"]}
            assert dims == {1} and group["weight_decay"] == 0 or 1 not in dims and group["weight_decay"] == .01


def test_one_cycle_goes_over_split_groups():
    learn, seen = learner(opt_func=decay_weights_only(AdamW)), []
    class Rates(Callback):
        def before_step(self, learn): seen.append([group["lr"] for group in learn.opt.param_groups])
    learn.fit_one_cycle(3, slice(1e-4, 1e-2), cbs=[Rates()])
    rates = torch.tensor(seen)
    torch.testing.assert_close(rates[:, ::2], rates[:, 1::2])
    torch.testing.assert_close(rates[:, 2] / rates[:, 0], torch.full((9,), 10.), rtol=1e-5, atol=0)
    before = [group["lr"] for group in learn.opt.param_groups]
    learn.lr_find(num_it=12)
    assert [group["lr"] for group in learn.opt.param_groups] == before


def test_decay_weights_only_equals_torchs_adamw_with_groups_by_hand():
    ours, theirs = net(), net()
    theirs.load_state_dict(ours.state_dict())
    learn = learner(ours, partial_adamw := decay_weights_only(lambda params: AdamW(params, lr=.01, weight_decay=.5)))
    assert partial_adamw is learn.opt_func
    learn.fit(2)
    flat = [*theirs.parameters()]
    optimizer = torch.optim.AdamW([{"params": [p for p in flat if p.ndim > 1], "weight_decay": .5},
                                   {"params": [p for p in flat if p.ndim == 1], "weight_decay": 0.}], lr=.01)
    theirs.train()
    for _ in range(2):
        for xb, yb in learn.dls.train:
            optimizer.zero_grad()
            F.cross_entropy(theirs(xb), yb).backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("give",
                         [lambda m: m.parameters(), lambda m: [*m.parameters()], lambda m: [{"params": m.parameters()}],
                          lambda m: m.named_parameters(), lambda m: [{"params": [*m.named_parameters()]}]])
def test_no_parameter_gets_lost_in_the_split(give):
    model = net()
    optimizer = decay_weights_only(torch.optim.AdamW)(give(model), lr=.1)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [.01, 0.]
    with pytest.raises(TypeError): decay_weights_only(torch.optim.AdamW)(model[0][0].weight)


def test_a_sweep_says_that_it_cannot_split():
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(ValueError, match="Sweep with opt_func alone"):
        sweep(model, F.cross_entropy, decay_weights_only(AdamW), data().train, 2, {"lr": torch.tensor([.01, .1])})


# --- fine_tune

def test_fine_tune_trains_the_head_then_everything():
    learn, seen = learner(opt_func=AdamW), []

    class Look(Callback):
        def before_step(self, learn):
            seen.append((learn.n_epoch, [group["lr"] for group in learn.opt.param_groups],
                         [group["params"][0].grad is not None for group in learn.opt.param_groups]))
    body = copy.deepcopy(learn.model[0].state_dict())
    learn.fine_tune(3, .01, freeze_epochs=2, cbs=[Look()])
    assert [n for n, *_ in seen] == [2] * 6 + [3] * 9
    assert (all(flags == [False, False, True] for n, _, flags in seen if n == 2)
            and all(all(flags) for n, _, flags in seen if n == 3))
    assert max(rates[-1] for n, rates, _ in seen if n == 2) == pytest.approx(.01, rel=.15)
    late = [rates for n, rates, _ in seen if n == 3]
    assert max(rates[-1] for rates in late) == pytest.approx(.005, rel=.15)
    for first, middle, last in late:
        assert last / first == pytest.approx(100) and middle ** 2 == pytest.approx(first * last)
    assert learn.epochs_done == 5 and all(p.requires_grad for p in learn.model.parameters())
    assert not torch.equal(learn.model[0][0].weight, body["0.weight"])


def test_fine_tune_without_a_frozen_epoch():
    learn = learner()
    learn.fine_tune(1, .01, freeze_epochs=0)
    assert learn.epochs_done == 1


@pytest.mark.parametrize("arguments", [(0, .01), (1, None), (1, slice(.01)), (1, -1.), (1, float("nan")), (1, .01, -1),
                                       (1, .01, 1.5)], ids=str)
def test_fine_tune_refuses_before_it_touches_anything(arguments):
    learn = learner()
    before = copy.deepcopy(learn.model.state_dict())
    with pytest.raises(ValueError): learn.fine_tune(*arguments)
    for name, value in learn.model.state_dict().items(): assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in learn.model.parameters()) and learn.epochs_done == 0


def test_fine_tune_needs_a_body():
    learn = Learner(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), data(), F.cross_entropy, SGD, splitter=layer_groups)
    with pytest.raises(ValueError, match="a body and a head"): learn.fine_tune(1, .01)


def test_a_second_fine_tune_without_a_rate_takes_the_first_ones():
    learn = learner()
    learn.fine_tune(1, .01)
    assert learn.lr == .01
    learn.fine_tune(1)
    assert learn.lr == .01 and learn.epochs_done == 4


def test_a_callback_that_ends_the_frozen_part_ends_fine_tune():
    class End(Callback):
        def after_batch(self, learn): raise CancelFitException
    learn = learner()
    learn.fine_tune(3, .01, cbs=(cb for cb in [End()]))
    assert learn.epochs_done == 0 and all(p.requires_grad for p in learn.model.parameters())


def test_fine_tune_inside_of_a_fit_changes_nothing():
    class Inside(Callback):
        def after_step(self, learn): learn.fine_tune(1, .01)
    learn = learner(lr=.01)
    learn.freeze_to(1)
    with pytest.raises(RuntimeError, match="in the middle of a fit"): learn.fit(1, cbs=[Inside()])
    assert [p.requires_grad for p in learn.model.parameters()] == [False] * 3 + [True] * 6


def test_a_head_that_is_replaced_after_a_fit_is_not_forgotten_quietly():
    learn = learner(lr=.01)
    learn.fit(1)
    replace_head(learn.model, 3)
    with pytest.raises(ValueError, match="knows nothing of 2 of the model's parameters"): learn.fit(1)
    head = learn.model[2][2].weight.detach().clone()
    learn.fit(1, reset_opt=True)
    assert not torch.equal(learn.model[2][2].weight, head)


def test_what_is_frozen_is_saved_too(tmp_path):
    def made():
        torch.manual_seed(3)
        return learner(lr=.05)
    whole, first, second = made(), made(), made()
    for learn, n in ((whole, 5), (first, 2)):
        learn.freeze()
        learn.fit(n)
    first.save(tmp_path / "half.safetensors")
    second.load(tmp_path / "half.safetensors")
    second.fit(3)
    for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values()): assert torch.equal(a, b)
    assert [p.requires_grad for p in second.model.parameters()] == [False] * 7 + [True] * 2


def test_an_interrupted_fine_tune_leaves_nothing_frozen():
    class Stop(Callback):
        def after_step(self, learn): raise KeyboardInterrupt
    learn = learner()
    with pytest.raises(KeyboardInterrupt): learn.fine_tune(2, .01, cbs=[Stop()])
    assert all(p.requires_grad for p in learn.model.parameters())
    learn.fine_tune(1, .01)


def test_fine_tune_leaves_nothing_frozen_wherever_ctrl_c_comes():
    "`finally:` and `try:` themselves are nothing that Python interrupts."
    def attempt(at):
        learn = learner()
        n = with_ctrl_c(lambda: learn.fine_tune(1, .01), at, [
            "fine_tune", "freeze", "freeze_to", "unfreeze", "complete", "freeze_groups"], but=("finally:", "try:"))
        assert all(p.requires_grad for p in learn.model.parameters()), at
        return n
    n = attempt(0)
    assert n > 20
    for at in range(1, n + 1): attempt(at)


def test_the_rates_of_fine_tune_are_two_of_torchs_one_cycles():
    "Frozen the rate rises nearly to the end, since the next fit begins high; that one's rises for three tenths."
    x, y = torch.randn(50, 1, 12, 12), torch.arange(50) % 3
    learn, seen = Learner(net(), DataLoaders(TensorLoader(x, y, 1), None), F.cross_entropy, SGD,
                          splitter=layer_groups), []

    class Rates(Callback):
        def before_step(self, learn): seen.append(learn.opt.param_groups[-1]["lr"])
    learn.fine_tune(2, .01, cbs=[Rates()])

    def torchs(peak, n, pct_start):
        optimizer = torch.optim.SGD([torch.zeros(1)], 1., momentum=.9)
        schedule, rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, n, pct_start=pct_start,
                                                              final_div_factor=1e5 / 25), []
        for _ in range(n):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step(), schedule.step()
        return rates
    assert seen == pytest.approx(torchs(.01, 50, .99) + torchs(.005, 100, .3), rel=1e-5)


# --- the residual block

@pytest.mark.parametrize("n_in, n_out, stride", [(4, 4, 1), (4, 6, 1), (4, 4, 2), (4, 8, 2)])
def test_a_residual_block_is_torchvisions(n_in, n_out, stride):
    ours = ResidualBlock(n_in, n_out, stride)
    same = (n_in, stride) == (n_out, 1)
    assert sum(p.numel() for p in ours.shortcut.parameters()) == (0 if same else n_in * n_out)
    theirs = torchvision.models.resnet.BasicBlock(
        n_in, n_out, stride, None if same else nn.Conv2d(n_in, n_out, 1, stride, bias=False))
    for p in [*ours.norm1.parameters(), *ours.norm2.parameters()]: nn.init.normal_(p)
    for a, b in zip([ours.conv1, ours.norm1, ours.conv2, ours.norm2, ours.shortcut],
                    [theirs.conv1, theirs.bn1, theirs.conv2, theirs.bn2, theirs.downsample]):
        if b is not None: b.load_state_dict(a.state_dict())
    x = torch.randn(3, n_in, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    for p in ours.norm2.parameters(): nn.init.zeros_(p)
    if same: assert torch.equal(ours(x), x.relu())  # the way around


# --- a head, live

def clusters(n_classes=10, n=700, seed=0):
    "Features of each class around a place of its own."
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(n_classes, (n,), generator=generator)
    return 2 * torch.randn(n_classes, 16, generator=generator)[y] + torch.randn(n, 16, generator=generator), y


def test_every_control_of_the_head_explorer_over_its_range():
    x, y = clusters(n=2000)
    heads = head_explorer(x, y)
    said = dict((tuple(state[name] for name in ("n_per_class", "lr", "draw")), words) for state, words in drive(heads))
    assert {n for n, *_ in said} >= {1, 60} and {round(lr, 6) for _, lr, _ in said} >= {1e-4, 1.}
    assert {draw for *_, draw in said} >= {0, 20}
    for (n, *_), words in said.items():
        assert words.startswith("1 image of each class, " if n == 1 else f"{n} images of each class, ")
    # scikit-learn's judgement of the same ten images each
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(3)) + 1000
    rows = torch.cat([order[y[order] == c][:10] for c in range(10)])
    theirs = LogisticRegression(max_iter=1000).fit(x[rows], y[rows]).score(x[:1000], y[:1000])
    assert heads.set(n_per_class=10, draw=3)["accuracy"] == pytest.approx(theirs, abs=.1) and theirs > .7
    assert heads.set(lr=1e-4)["accuracy"] < theirs - .1


def test_the_same_features_lie_in_the_same_plane_and_nobody_misses_random_numbers():
    x, y = clusters()
    before, pictures = torch.get_rng_state(), []
    for _ in range(2):
        pictures.append(bytes(head_explorer(x, y, n_steps=2).figure.image.value))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(5)
        before = torch.get_rng_state()
    assert pictures[0] == pictures[1]


def test_few_images_bound_the_slider():
    x, y = clusters(n=120)
    most = min(int((y[60:] == c).sum()) for c in range(10))
    heads = head_explorer(x, y)
    assert heads.controls["n_per_class"].max == most < 10
    assert heads.set(n_per_class=most)["n_per_class"] == most
    with pytest.raises(ValueError, match="Each of the 10 classes needs images"): head_explorer(x, y.sort()[0])


def test_many_black_digits_leave_the_others_to_be_seen():
    x, y = clusters(n=2000)
    heads = head_explorer(x, y, n_steps=2)

    def inked(n):
        heads.set(n_per_class=n)
        picture = np.asarray(Image.open(io.BytesIO(bytes(heads.figure.image.value))).convert("RGB")).astype(int)
        left = picture[60:-90, 140:picture.shape[1] // 2 - 40]
        return (left.max(-1) < 60).sum(), (np.ptp(left, -1) > 60).sum()  # black pixels, coloured ones
    (few, colours), (many, left_over) = inked(1), inked(60)
    assert 0 < few < many and left_over > .5 * colours


# --- what was measured, and how it is drawn

@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_the_trials_have_ten_draws_and_rates_within_the_range_that_was_tried(name):
    trials = results("transfer_trials")
    assert "data/transfer_trials.py" in trials["made"] and "draws 0 to 9" in trials["made"]
    found = trials[name]
    runs = [run[key] for run in found["ways"].values() for key in ("final", "too large") if key in run]
    for run in [*runs, *found["statistics"].values(), *found["looks"].values()]:
        assert len(run) == 10 and all(.2 < share <= 1 for share in run)
    for way, run in found["ways"].items():
        assert run["lr"] == run["lrs"][int(np.argmax(run["by_lr"]))], way
        if way in FOUR_WAYS: assert run["lrs"][0] < run["lr"] < run["lrs"][-1], way


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_the_defaults_were_measured_on_the_same_draws(name):
    found = results("transfer_defaults")[name]
    run = found["lr_mult 100"]
    assert run["lr"] == run["lrs"][int(np.argmax(run["by_lr"]))]
    for values in (run["final"], run["too large"], found["decay on all"], found["three epochs at 0.03"]):
        assert len(values) == 10 and all(.5 < share <= 1 for share in values)


def test_the_figures_draw_what_was_measured():
    trials, curves = results("transfer_trials"), glyph_curves()
    ways, looks, by_n = ways_figure(trials), looks_figure(trials), curves_figure(curves)
    for i, name in enumerate(("mnist", "digits")):
        runs, (chosen, large) = trials[name]["ways"], ways.axes[2 * i:2 * i + 2]
        one = runs["all, one rate"]["final"]
        for ax, means in ((chosen, [paired(runs[way]["final"], one).mean for way in FOUR_WAYS][1:]),
                          (large, [paired(runs[way]["too large"], runs[way]["final"]).mean for way in FOUR_WAYS])):
            drawn = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
            assert drawn == pytest.approx([100 * mean for mean in means])
    for ax, name in zip(looks.axes, ("mnist", "digits")):
        found = trials[name]["looks"]
        drawn = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
        means = [100 * paired(found[key], found["as it is"]).mean for key in ("changed", "five looks")]
        assert drawn == pytest.approx(means)
    for ax, measured in zip(by_n.axes, curves["data"].values()):
        [heads] = [container for container in ax.containers if "frozen" in container.get_label()]
        assert heads.lines[0].get_ydata() == pytest.approx([np.mean(run["head"]) for run in measured.values()])


def test_printed_characters_repeat_and_are_normalised():
    x, y = printed("ЖΩ", 3, seed=1)
    assert x.shape == (6, 1, 28, 28) and y.tolist() == [0, 0, 0, 1, 1, 1]
    assert abs(x.mean()) < 1e-5 and x.std() == pytest.approx(1, abs=1e-4)
    assert torch.equal(x, printed("ЖΩ", 3, seed=1)[0]) and not torch.equal(x, printed("ЖΩ", 3)[0])


def test_what_is_large_is_run_where_it_is_wanted_and_says_why_not(capsys):
    def missing(): raise DownloadError("no network here")
    ask = lambda wanted, run: run_if(wanted, "A net", "3 bytes", net(), (1, 12, 12), 1e6, run)
    assert ask(False, lambda: 1) is None and "A net: downloads 3 bytes." in (said := capsys.readouterr().out)
    assert "Skipped: set LARGE = True" in said and ask(True, lambda: 1) == 1
    assert ask(True, missing) is None and "Skipped: no network here" in capsys.readouterr().out


# --- inputs, features, several looks

def test_gray_to_rgb():
    x = torch.randn(2, 1, 4, 5)
    assert torch.equal(gray_to_rgb(x), x.repeat(1, 3, 1, 1)) and gray_to_rgb(x).data_ptr() == x.data_ptr()
    for wrong in (torch.randn(2, 3, 4, 5), torch.randn(1, 4, 5)):
        with pytest.raises(ValueError, match="gray images"): gray_to_rgb(wrong)


def test_features_are_what_the_head_gets():
    model = net().train()
    x = torch.randn(10, 1, 12, 12)
    taken = features(model, x, batch_size=3)
    reference = copy.deepcopy(model).eval()
    torch.testing.assert_close(reference[2][2](taken), reference(x))
    assert model.training and model[2][2].out_features == 3


def test_features_in_front_of_a_convolution_and_of_the_right_head():
    conv = batchnorm.ConvNet(widths=(4, 5))
    assert features(conv, torch.randn(3, 1, 28, 28)).shape == (3, 5, 7, 7)
    model, x = net(), torch.randn(2, 1, 12, 12)
    state = torch.random.get_rng_state()
    features(model, x)
    assert torch.equal(state, torch.random.get_rng_state())


def test_tta_of_photos_begins_with_their_bytes():
    x, y = torch.randint(0, 256, (8, 3, 20, 20), dtype=torch.uint8), torch.arange(8) % 2
    crops = RandomResizedCrop(16, device="cpu"), CenterCrop(16, device="cpu")
    train, valid = (TensorLoader(x, y, 4, transform=crop) for crop in crops)
    learn = Learner(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), DataLoaders(train, valid), F.cross_entropy, lr=.1)
    torch.manual_seed(1)
    probabilities, targets = learn.tta(n=1)
    torch.manual_seed(1)
    halves = [(x[i:i + 4], y[i:i + 4]) for i in (0, 4)]
    expected = torch.cat([sum(learn.predict(crop(*half)[0]).softmax(1) for crop in reversed(crops)) / 2
                          for half in halves])
    torch.testing.assert_close(probabilities, expected)
    assert torch.equal(targets, y) and valid.transform is crops[1]


def test_tta_averages_probabilities():
    learn = learner()
    shift = lambda xb, yb: (xb + 1, yb)
    probabilities, targets = learn.tta(transform=shift, n=2)
    x = learn.dls.valid.x
    expected = (learn.predict(x).softmax(1) + 2 * learn.predict(x + 1).softmax(1)) / 3
    torch.testing.assert_close(probabilities, expected)
    assert torch.equal(targets, learn.dls.valid.y)
    with pytest.raises(ValueError, match="no transform"): learn.tta()
    with pytest.raises(ValueError, match="at least 1"): learn.tta(transform=shift, n=0)

    def in_place(xb, yb): return xb.add_(1), yb
    kept = x.clone()
    torch.testing.assert_close(learn.tta(transform=in_place, n=2)[0], expected)
    assert torch.equal(learn.dls.valid.x, kept)


# --- weights from elsewhere

def test_weights_of_another_model_change_nothing():
    model, other = net(), replace_head(net(), 5)
    before = copy.deepcopy(model.state_dict())
    for weights in (other.state_dict(), {}, {**before, "more": torch.zeros(1)}, nn.Linear(2, 2).state_dict()):
        with pytest.raises(ValueError, match="holds the weights of another model"):
            load_weights(model, weights, "weights.pt")
    for name, value in model.state_dict().items(): assert torch.equal(value, before[name])
    with pytest.raises(ValueError, match=r"2\.2\.weight: \[5, 6\] for \[3, 6\]"):
        load_weights(model, other.state_dict(), "x")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "torch's cache folder, empty; whatever would be fetched is nowhere."
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()

    def nowhere(url): raise OSError("no network here")
    monkeypatch.setattr(pretrained, "open_url", nowhere)
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("name", RESNETS[:1])
def test_imagenets_weights_are_taken_from_the_cache(hub, name):
    reference = torchvision.models.get_model(name)
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    torch.save(reference.state_dict(), hub / weights.url.rsplit("/", 1)[1])
    model = imagenet_resnet(name)
    for key, value in reference.state_dict().items(): assert torch.equal(model.state_dict()[key], value), key
    learn = Learner(replace_head(model, 3),
                    DataLoaders([(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))], None),
                    F.cross_entropy, SGD, splitter=layer_groups)
    learn.fine_tune(1, .001)


def test_weights_from_before_batches_were_counted(hub):
    reference = torchvision.models.resnet18()
    old = {key: value for key, value in reference.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(old, hub / torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])
    assert torch.equal(imagenet_resnet("resnet18").fc.weight, reference.fc.weight)
    norm = nn.Sequential(batchnorm.BatchNorm2d(2))
    norm.load_state_dict({f"0.{key}": torch.ones(2) for key in ("weight", "bias", "running_mean", "running_var")})
    assert norm[0].running_mean.sum() == 2


@pytest.mark.parametrize("content", [[torch.ones(1)], {"state_dict": {"a": torch.ones(1)}}], ids=["list", "nested"])
def test_a_file_that_holds_something_else(hub, content):
    torch.save(content, hub / torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])
    with pytest.raises(DamagedFileError, match="it holds something else"): imagenet_resnet("resnet18")


def test_one_flipped_bit(hub):
    path = hub / torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    torch.save(torchvision.models.resnet18().state_dict(), path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedFileError, match="Delete it"): imagenet_resnet("resnet18")


def test_weights_that_cannot_be_had(hub):
    with pytest.raises(DownloadError, match="cannot be reached"): imagenet_resnet("resnet18")
    with pytest.raises(DownloadError, match="nothing was to be downloaded"): imagenet_resnet("resnet18", download=False)
    with pytest.raises(ValueError, match="resnet18, resnet34 and resnet50"): imagenet_resnet("resnet19")
    assert not list(hub.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "truncated"], ids=["empty", "text", "truncated"])
def test_damaged_weights(hub, content):
    path = hub / torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    if content == "truncated":
        torch.save(torchvision.models.resnet18().state_dict(), path)
        content = path.read_bytes()[:100_000]
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="Delete it"): imagenet_resnet("resnet18")


def test_weights_of_another_resnet_in_the_cache(hub):
    torch.save(nn.Linear(2, 2).state_dict(),
               hub / torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])
    with pytest.raises(ValueError, match="another model"): imagenet_resnet("resnet18")
