"""What must hold on every device alike, without figures or notebooks, so that it runs wherever torch does.

More tests with a device as their parameter stand beside what they test; `make gpu` finds them all by their mark.
"""
import copy
import shutil
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.functional import affine as torchvision_affine

from course_lib import (
    SGD, Adam, AdamW, Autocast, GradientAccumulation, GradientClip, Learner, RandomAffine, Recorder, RMSProp, affine,
    digits, flatten_parameters, fit_one_cycle, sweep)
from tiny import every_device, loaders, tiny_net

PAIRS = {"SGD": (partial(SGD, momentum=.9, weight_decay=.01), partial(torch.optim.SGD, momentum=.9, weight_decay=.01)),
         "Nesterov": (partial(SGD, momentum=.9, nesterov=True), partial(torch.optim.SGD, momentum=.9, nesterov=True)),
         "RMSProp": (RMSProp, torch.optim.RMSprop), "Adam": (Adam, torch.optim.Adam),
         "AdamW": (AdamW, torch.optim.AdamW)}
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang")), reason="needs a C++ compiler")


def steps(make, params, n=20, change=lambda optimizer: None):
    "The parameters after n steps along gradients that are the same each time."
    params = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer = make(params, lr=.01)
    change(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        for p in params: p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
        optimizer.step()
    return [p.detach() for p in params]


def start(device, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).to(device) for shape in ((5, 3), (4,), ())]


def compiled(optimizer): optimizer.step = torch.compile(optimizer.step)


@every_device
@pytest.mark.parametrize("name", PAIRS)
def test_optimizers_equal_torchs(name, device):
    ours, theirs = (steps(make, start(device)) for make in PAIRS[name])
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert all(p.device.type == device for p in ours)


@needs_compiler
@every_device
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_compiled_steps_equal_torchs(name, device):
    ours, theirs = PAIRS[name]
    torch.testing.assert_close(steps(ours, start(device, torch.float32), change=compiled),
                               steps(theirs, start(device, torch.float32)), rtol=1e-5, atol=1e-6)


@every_device
@pytest.mark.parametrize("name", PAIRS)
def test_one_flat_buffer_takes_torchs_steps(name, device):
    params, twins = ([nn.Parameter(p) for p in start(device)] for _ in range(2))
    ours, theirs = PAIRS[name][0]([flatten_parameters(params)], lr=.01), PAIRS[name][1](twins, lr=.01)
    for i in range(10):
        for p, twin in zip(params, twins):
            twin.grad = torch.full_like(twin, .1 * (i + 1))
            p.grad.copy_(twin.grad)
        ours.step(); theirs.step()
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in twins], rtol=1e-10, atol=1e-12)


@every_device
def test_a_learner_trains_as_a_plain_loop_does(device):
    "Batches come from the CPU and are moved; the plain loop is torch's alone."
    model = tiny_net("plain").to(device)
    twin = copy.deepcopy(model)
    learn = Learner(model, loaders(), F.mse_loss, partial(SGD, momentum=.9), lr=.05, cbs=[Recorder()])
    learn.fit(3)
    optimizer = torch.optim.SGD(twin.parameters(), lr=.05, momentum=.9)
    train = loaders().train
    for _ in range(3):
        for xb, yb in train:
            F.mse_loss(twin(xb.to(device)), yb.to(device)).backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-6)
    assert all(p.device.type == device for p in model.parameters())


@every_device
def test_saved_and_loaded_training_goes_on_as_if_it_had_not_stopped(device, tmp_path):
    def learner(): return Learner(tiny_net().to(device), loaders(), F.mse_loss, AdamW, lr=.01)
    whole, first, second = learner(), learner(), learner()
    torch.manual_seed(3)
    whole.fit(5)
    torch.manual_seed(3)
    first.fit(2)
    first.save(tmp_path / "half.safetensors")
    torch.manual_seed(99)
    second.load(tmp_path / "half.safetensors")
    second.fit(3)
    torch.testing.assert_close(second.model.state_dict(), whole.model.state_dict(),
                               **({"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": 1e-5, "atol": 1e-6}))


@every_device
def test_the_finder_puts_everything_back(device):
    learn = Learner(tiny_net().to(device), loaders(), F.mse_loss, partial(SGD, momentum=.9), lr=.05)
    learn.fit(1)
    weights = copy.deepcopy(learn.model.state_dict())
    optimizer = copy.deepcopy(learn.opt.state_dict())
    random_state = torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else None
    found = learn.lr_find(num_it=20)
    assert len(found.lrs) > 5 and found.losses[0] > 0
    torch.testing.assert_close(learn.model.state_dict(), weights, rtol=0, atol=0)
    torch.testing.assert_close(learn.opt.state_dict()["state"], optimizer["state"], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state[0])
    if device == "cuda": assert torch.equal(torch.cuda.get_rng_state(), random_state[1])


@every_device
def test_callbacks_that_touch_gradients_and_precision(device):
    "Two halves accumulated and clipped equal one whole batch; bfloat16 stays near float32."
    x, y = torch.randn(24, 3), torch.randn(24, 1)
    def trained(batches, *cbs):
        model = tiny_net("plain").to(device)
        loader = [(xb, yb) for xb, yb in zip(x.chunk(batches), y.chunk(batches))]
        learn = Learner(model, type(loaders())(train=loader, valid=loader), F.mse_loss, SGD, lr=.05, cbs=list(cbs))
        learn.fit(2)
        return model.state_dict()
    whole = trained(1, GradientClip(.5))
    torch.testing.assert_close(trained(2, GradientAccumulation(2), GradientClip(.5)), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained(1, GradientClip(.5), Autocast(torch.bfloat16)), whole, rtol=.1, atol=.05)


@every_device
def test_affine_maps_equal_torchvisions(device):
    "Turned by angles of their own, each image is what torchvision makes of it alone."
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    angles = torch.tensor([0., 10., -25., 90.])
    none = torch.zeros(2, 4, device=device)
    ours = affine(x.to(device), angles.to(device), none, torch.ones(4, device=device), none, fill=0.).cpu()
    theirs = torch.stack([torchvision_affine(image, angle, [0, 0], 1., [0.], InterpolationMode.BILINEAR)
                          for image, angle in zip(x, angles.tolist())])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@every_device
def test_digits_and_their_transform_stay_on_the_device(device):
    dls = digits(device=device, batch_size=32, transform=RandomAffine(10, translate=(.1, .1)))
    xb, yb = next(iter(dls.train))
    assert xb.device.type == yb.device.type == device and xb.shape == (32, 1, 28, 28) and yb.shape == (32,)
    assert xb.isfinite().all()


@every_device
@pytest.mark.parametrize("make, theirs", [(partial(SGD, momentum=.9), partial(torch.optim.SGD, momentum=.9)),
                                          (Adam, torch.optim.Adam)], ids=["SGD", "Adam"])
def test_each_network_of_a_sweep_trains_as_torch_trains_it_alone(make, theirs, device):
    "On a GPU its steps run as one CUDA graph."
    model, rates = tiny_net("plain").to(device), torch.tensor([.001, .01, .05])
    x, y = (part.to(device) for part in (torch.randn(36, 3), torch.randn(36, 1)))
    loader = list(zip(x.chunk(3), y.chunk(3)))
    result = sweep(model, F.mse_loss, make, loader, 12, grid={"lr": rates})
    for i, lr in enumerate(rates.tolist()):
        alone = copy.deepcopy(model)
        optimizer, losses = theirs(alone.parameters(), lr=lr), []
        for step in range(12):
            xb, yb = loader[step % 3]
            loss = F.mse_loss(alone(xb), yb)
            losses.append(loss.item())
            optimizer.zero_grad(); loss.backward(); optimizer.step()
        torch.testing.assert_close(result.loss[i].cpu(), torch.tensor(losses), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close({name: p.cpu() for name, p in result.params(i).items()},
                                   {name: p.cpu() for name, p in alone.state_dict().items()}, rtol=1e-4, atol=1e-5)


@every_device
def test_one_cycle_trains_digits(device, one_thread):
    dls = digits(device=device, batch_size=64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 10)).to(device)
    learn = Learner(model, dls, F.cross_entropy, AdamW)
    before = learn.validate()["loss"]
    fit_one_cycle(learn, 3, max_lr=.01)
    assert learn.validate()["loss"] < before / 3
