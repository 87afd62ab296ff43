"""Glyphs against their fonts, weights against their hash, and files that are not what they should be."""
import hashlib
import re
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from matplotlib import get_data_path
from PIL import ImageFont
from torch import nn

from course_lib.support import glyphs
from course_lib.data import DataLoaders, digits
from course_lib.support.files import CHECKOUT, DamagedFileError
from course_lib.learner import Learner, accuracy
from course_lib.support.glyphs import FONTS, GlyphLoader, glyph_bank, glyph_curves, render, warp
from course_lib.transfer import draw_few, few_shot, glyph_backbone, small_resnet
from tiny import every_device


def test_each_font_has_every_character_and_draws_each_differently():
    bank = glyph_bank()
    assert bank.shape == (3, 62, 20, 56, 56) and bank.dtype == torch.uint8
    for i, name in enumerate(FONTS):
        glyphs = bank[1, :, i]
        assert (glyphs.amax((1, 2)) > 128).all(), name  # none blank
        assert len(glyphs.flatten(1).unique(dim=0)) == 62, name
        missing = render(ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{name}.ttf", 160), "\uffff")
        assert not (glyphs == missing).all((1, 2)).any(), name


def test_glyphs_fill_a_box_in_the_middle_as_mnists_digits_do():
    plain = glyph_bank()[1].flatten(0, 1)
    # an i has empty rows in between
    extent = lambda inked: 56 - inked.byte().argmax(1) - inked.flip(1).byte().argmax(1)
    assert (torch.maximum(extent(plain.amax(2) > 0), extent(plain.amax(1) > 0)) >= 39).all()
    assert not plain[:, :8].any() and not plain[:, -8:].any() and not plain[..., :8].any() and not plain[..., -8:].any()


def test_strokes_are_ordered():
    thin, plain, thick = glyph_bank().short()
    assert (thin <= plain).all() and (plain <= thick).all()


def test_nothing_to_distort_gives_the_bank_at_half_its_resolution():
    glyphs = glyph_bank()[1, :, 4, None].float()
    zero, n = torch.zeros(62), 62
    halved = warp(glyphs, zero, zero, torch.ones(2, n), torch.zeros(2, n), torch.zeros(n, 2, 4, 4))
    assert torch.allclose(halved, F.avg_pool2d(glyphs, 2), atol=1e-2)


@pytest.mark.parametrize("strength, is_plain", [(0, True), (1, False)])
def test_strength_zero_gives_plain_glyphs(strength, is_plain):
    images, targets = next(iter(GlyphLoader(1, 16, seed=1, stroke=0, affine=strength, elastic=strength, device="cpu")))
    plain = F.avg_pool2d(glyph_bank()[1].float(), 2)  # [62, 20, 28, 28]
    score = lambda x: (x - x.mean((-2, -1), keepdim=True)) / x.std((-2, -1), keepdim=True)
    apart = (score(images) - score(plain[targets])).abs().amax((-2, -1)).amin(1)  # from the nearest font
    assert (apart < 1e-3).all() == is_plain


def test_warp_moves_as_it_says():
    x = torch.zeros(1, 1, 56, 56)
    x[..., 26:30, 36:40] = 1  # right of the middle
    at = lambda y: [(y[0, 0].sum(axis) @ (torch.arange(28.) - 13.5) / y.sum()).item() for axis in (0, 1)]  # right, down
    one, zero, still = torch.ones(2, 1), torch.zeros(1), torch.zeros(1, 2, 4, 4)
    assert at(warp(x, zero, zero, one, torch.zeros(2, 1), still)) == pytest.approx([5, 0], abs=.05)
    assert at(warp(x, zero, zero, one, torch.tensor([[2 / 14], [0.]]), still)) == pytest.approx([3, 0], abs=.05)
    assert at(warp(x, zero, zero, 2 * one, torch.zeros(2, 1), still)) == pytest.approx([10, 0], abs=.1)
    assert at(warp(x, zero + torch.pi / 2, zero, one, torch.zeros(2, 1), still)) == pytest.approx([0, -5], abs=.05)
    waves = torch.zeros(1, 2, 4, 4)
    waves[:, 1] = 2 / 14
    assert at(warp(x, zero, zero, one, torch.zeros(2, 1), waves)) == pytest.approx([5, -2], abs=.05)


def test_the_loader_is_the_same_in_another_process():
    script = ("import torch; from course_lib.support.glyphs import GlyphLoader as G; torch.rand(9); "
              "loader = G(2, 8, seed=5, device='cpu'); loader.epoch = 3; "
              "print([(yb.tolist(), xb.double().abs().sum().item()) for xb, yb in loader])")
    other = eval(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    loader = GlyphLoader(2, 8, seed=5, device="cpu")
    loader.epoch = 3
    for (xb, yb), (targets, total) in zip(loader, other, strict=True):
        assert yb.tolist() == targets and xb.double().abs().sum().item() == pytest.approx(total, rel=1e-6)
    assert loader.epoch == 4


def test_seeds_and_epochs_differ_and_torchs_own_random_numbers_stay():
    before = torch.get_rng_state()
    loaders = [GlyphLoader(1, 32, seed=seed, device="cpu") for seed in range(3) for _ in range(2)]
    for loader in loaders[1::2]: loader.epoch = 1
    batches = [next(iter(loader)) for loader in loaders]
    assert len({tuple(yb.tolist()) for _, yb in batches}) == len({xb.sum().item() for xb, _ in batches}) == 6
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_has_all_classes_and_batches_like_mnist():
    seen = []
    for xb, yb in GlyphLoader(20, device="cpu"):
        assert (xb.shape == (128, 1, 28, 28) and xb.dtype == torch.float32 and yb.dtype == torch.int64
                and xb.isfinite().all())
        assert abs(xb.mean()) < 1e-4 and abs(xb.std() - 1) < 1e-4
        seen.append(yb)
    assert torch.cat(seen).unique().tolist() == list(range(62))


def spread(images):
    "How far the ink of images `[n, 1, 28, 28]` spreads from its middle: across and down, `[n, 2]`, in pixels."
    ink, at = (images - images.amin((-2, -1), keepdim=True))[:, 0], torch.arange(28.)

    def deviation(weights):  # [n, 28]
        weights = weights / weights.sum(1, keepdim=True)
        return (weights @ at**2 - (weights @ at)**2).sqrt()
    return torch.stack([deviation(ink.sum(1)), deviation(ink.sum(2))], 1)


@pytest.mark.parametrize("affine", [.5, 1.])
@pytest.mark.parametrize("wide, high", [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, -1)])
def test_glyphs_are_stretched_between_known_factors(wide, high, affine):
    "Across by 1 + affine · (−.4 to .15), down by 1 + affine · (−.2 to .15): handwriting is narrower than print."
    loader = GlyphLoader(1, affine=affine, stroke=0, elastic=0, device="cpu")
    targets, fonts, draws = torch.arange(62), torch.full((62,), 4), torch.zeros(7, 62)
    draws[3], draws[4] = wide, high
    waves = torch.zeros(62, 2, 4, 4)
    stretched = spread(loader._drawn(targets, fonts, draws, waves)[0])
    plain = spread(F.avg_pool2d(glyph_bank()[1, :, 4, None].float(), 2))
    across, down = 1 + affine * (.275 * wide - .125), 1 + affine * (.175 * high - .025)
    # the median: the hairline of a j says little
    torch.testing.assert_close((stretched / plain).median(0)[0], torch.tensor([across, down]), rtol=0, atol=.02)


@pytest.mark.parametrize("options, message", [({"n_batches": 0}, "n_batches"), ({"batch_size": 1.5}, "batch_size"),
                                              ({"elastic": -1}, "elastic"), ({"stroke": float("nan")}, "stroke")])
def test_what_gives_no_glyphs_is_refused(options, message):
    with pytest.raises(ValueError, match=message): GlyphLoader(**options)


def test_the_weights_are_those_that_the_readme_names():
    path = CHECKOUT / "data" / "glyphs.safetensors"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    section = (CHECKOUT / "data" / "README.md").read_text(encoding="utf-8").partition("## glyphs.safetensors")[2]
    assert path.stat().st_size <= 2_000_000
    assert re.search("[0-9a-f]{64}", section)[0] == sha256 == glyphs.GLYPHS_SHA256 == glyph_curves()["weights_sha256"]
    assert sum(p.numel() for p in small_resnet().parameters()) == 310_382


def test_the_backbone_names_fresh_glyphs():
    model = glyph_backbone(device="cpu")
    assert not model.training and all(p.requires_grad for p in model.parameters())
    learn = Learner(model, DataLoaders(None, GlyphLoader(8, seed=99, device="cpu")), F.cross_entropy,
                    metrics=[accuracy])
    assert learn.validate()["accuracy"] > .85


@pytest.fixture
def copied(tmp_path, monkeypatch):
    "The weights of the course, where a test may damage them."
    path = shutil.copy(CHECKOUT / "data" / "glyphs.safetensors", tmp_path / "glyphs.safetensors")
    monkeypatch.setattr(glyphs, "embedded", lambda name: tmp_path / name)
    return path


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "one bit", "foreign"])
def test_damaged_weights_are_named(copied, how):
    data = copied.read_bytes()
    if how == "missing": copied.unlink()
    else: copied.write_bytes({"truncated": data[:-100], "empty": b"", "foreign": b"<html>403</html>" * 99,
                              "one bit": data[:9999] + bytes([data[9999] ^ 1]) + data[10_000:]}[how])
    with pytest.raises(DamagedFileError, match="glyphs.safetensors.*install that anew"): glyph_backbone()
    if how != "one bit":  # which only a hash tells
        with pytest.raises(DamagedFileError, match="glyphs.safetensors.*Write it anew"): glyph_backbone(copied)


def test_weights_of_another_model(tmp_path):
    path = tmp_path / "own.safetensors"
    safetensors.torch.save_file(nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(ValueError, match="own.safetensors holds the weights of another model"): glyph_backbone(path)


def test_own_weights(tmp_path):
    torch.manual_seed(1)
    model, path = small_resnet(), tmp_path / "own.safetensors"
    safetensors.torch.save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    loaded = glyph_backbone(path, "cpu").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_damaged_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "embedded", lambda name: tmp_path / name)
    for content in (None, b"", b'{"seed": 0'):
        if content is not None: (tmp_path / "glyphs_curves.json").write_bytes(content)
        with pytest.raises(DamagedFileError, match="glyphs_curves.json"): glyph_curves()


def test_the_curves_hold_what_the_chapter_claims():
    curves = glyph_curves()
    goals = {"mnist": (.20, .20), "digits": (.03, .05)}
    assert set(curves["data"]) == set(goals)
    for name, (head, fine_tune) in goals.items():
        mean = {way: sum(draws) / 5 for way, draws in curves["data"][name]["10"].items() if way != "scratch"}
        scratch = max(sum(draws) / 5 for draws in curves["data"][name]["10"]["scratch"].values())
        assert len(curves["data"][name]["10"]["scratch"]) == 5
        assert (mean["head"] - scratch >= head and mean["fine-tune"] - scratch >= fine_tune
                and mean["fine-tune"] > mean["head"])


def test_the_draw_and_the_rest_share_no_image():
    dls = digits(device="cpu")
    (x, y), (x_rest, y_rest) = draw_few(dls, 10, draw=3)
    assert torch.bincount(y).tolist() == [10] * 10 and len(y_rest) == 1697
    images = {image.numpy().tobytes() for image in torch.cat([x, x_rest])}
    assert len(images) == 1797
    again, other = draw_few(dls, 10, draw=3)[0][0], draw_few(dls, 10, draw=4)[0][0]
    assert torch.equal(x, again) and not torch.equal(x, other)
    assert len(draw_few(dls, 10, n_rest=50)[1][1]) == 50
    with pytest.raises(ValueError, match="has 1[0-9]+ images, and 200"): draw_few(dls, 200)


def test_few_shot_repeats_and_leaves_backbone_and_random_numbers_alone(one_thread):
    few, rest = draw_few(digits(device="cpu"), 5, n_rest=200)
    backbone, before = glyph_backbone(device="cpu"), torch.get_rng_state()
    weights = {name: value.clone() for name, value in backbone.state_dict().items()}
    reached = {way: [few_shot(few, rest, way, n_steps=10, backbone=backbone) for _ in range(2)]
               for way in ("head", "fine-tune")}
    assert all(first == pytest.approx(second, abs=.02) and first > .4 for first, second in reached.values())
    assert all(torch.equal(value, weights[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before) and not backbone.training
    with pytest.raises(ValueError, match="way must be one of"): few_shot(few, rest, "gradually")


@pytest.mark.parametrize("n_steps", [-1, 0, 2.5, None, "10"])
def test_few_shot_ends(n_steps):
    few = torch.randn(20, 1, 28, 28), torch.arange(20) % 10
    with pytest.raises(ValueError, match="n_steps must be a whole number, at least 1"):
        few_shot(few, few, "scratch", n_steps=n_steps)


@every_device
def test_glyphs_are_the_same_on_every_device(device):
    (xb, yb), (there, targets) = (next(iter(GlyphLoader(1, 16, seed=4, device=d))) for d in ("cpu", device))
    assert there.device.type == device and torch.equal(targets.cpu(), yb)
    torch.testing.assert_close(there.cpu(), xb, rtol=1e-3, atol=1e-3)
    assert next(glyph_backbone(device=device).parameters()).device.type == device
