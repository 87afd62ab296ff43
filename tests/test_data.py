"""Data against references: scikit-learn's digits, torchvision's MNIST and affine map, and files that are not what they
should be."""
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets, transforms
from torchvision.transforms.functional import _get_inverse_affine_matrix
from torchvision.transforms.functional import affine as torchvision_affine

from course_lib.data import DataLoaders, RandomAffine, TensorLoader, affine, course_data, digits, mnist
from course_lib.figures.data import affine_explorer
from course_lib.support import files
from course_lib.support.files import CHECKOUT, DamagedFileError, data_root
from course_lib.support.tensors import default_device
from drive import drive


def test_embedded_digits_are_scikit_learns():
    reference = load_digits()
    with np.load(CHECKOUT / "data" / "digits.npz") as file:
        assert np.array_equal(file["images"], reference.images) and np.array_equal(file["targets"], reference.target)


def test_mnist_is_what_torchvision_reads(mnist_folder):
    dls = mnist(mnist_folder, device="cpu")
    for train, loaders in ((True, (dls.train, dls.valid)), (False, (dls.test,))):
        reference = datasets.MNIST(mnist_folder, train=train)
        pixels = sorted((int(y), x.float().sum().item()) for x, y in zip(reference.data, reference.targets))
        raw = dls.train.x.min(), dls.train.x.max()  # 0 and 255 before normalising
        ours = [(int(y), ((x - raw[0]) / (raw[1] - raw[0]) * 255).sum().item()) for part in loaders
                for x, y in zip(part.x, part.y)]
        for (y, total), (y_ours, total_ours) in zip(pixels, sorted(ours)):
            assert y == y_ours and abs(total - total_ours) < 1


def test_normalised_by_the_training_images(mnist_folder):
    for dls in (mnist(mnist_folder, device="cpu"), digits(device="cpu"), digits(device="cpu", n_train=37)):
        assert abs(dls.train.x.mean()) < 1e-4 and abs(dls.train.x.std() - 1) < 1e-4
        assert dls.train.x.dtype == torch.float32 and dls.train.y.dtype == torch.int64


def damaged_digits():
    "The bytes of digits.npz, damaged in 120 ways: cut off, a few bytes changed, a block of zeros, nothing, a web page."
    data, rng = (CHECKOUT / "data" / "digits.npz").read_bytes(), np.random.default_rng(0)
    for _ in range(30): yield data[:rng.integers(len(data))]
    for _ in range(59):
        changed = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(len(data), size=rng.integers(1, 5))
        changed[places] ^= rng.integers(1, 256, size=len(places), dtype=np.uint8)
        yield changed.tobytes()
    for start in rng.integers(len(data) - 64, size=29): yield data[:start] + bytes(64) + data[start + 64:]
    yield b""
    yield b"<html>403</html>" * 99


def test_damaged_digits_are_named_whatever_the_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "embedded", lambda name: tmp_path / name)
    with pytest.raises(DamagedFileError, match="digits.npz"): digits()
    for data in damaged_digits():
        (tmp_path / "digits.npz").write_bytes(data)
        with pytest.raises(DamagedFileError, match="digits.npz"): digits()


def test_the_split_does_not_depend_on_the_seed():
    first, second = digits(device="cpu", seed=0), digits(device="cpu", seed=1)
    assert torch.equal(first.valid.x, second.valid.x) and torch.equal(first.test.y, second.test.y)
    assert first.train.order(0).tolist() != second.train.order(0).tolist()


def test_no_image_is_in_two_parts():
    dls = digits(device="cpu")
    images = torch.cat([part.x for part in (dls.train, dls.valid, dls.test)])
    assert len(images) == 1797
    assert len({image.numpy().tobytes() for image in images}) == len({i.tobytes() for i in load_digits().images})


def damage(path, how):
    data = path.read_bytes()
    path.write_bytes(
        {"truncated": data[:-100], "empty": b"", "too long": data + b"\0", "foreign": b"<html>403</html>" * 99,
         "another type": data[:2] + b"\x0d" + data[3:], "header only": data[:6]}[how])


@pytest.mark.parametrize("how", ["truncated", "empty", "too long", "foreign", "another type", "header only"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_damaged_file_is_named_and_never_replaced_by_digits(mnist_folder, how, name):
    path = mnist_folder / "MNIST" / "raw" / name
    damage(path, how)
    damaged = path.read_bytes()
    for load in (mnist, course_data):
        with pytest.raises(DamagedFileError, match=name): load(mnist_folder)
    assert path.read_bytes() == damaged  # it may be somebody's only copy: we say so and leave it


def test_files_that_do_not_belong_together(mnist_folder):
    raw = mnist_folder / "MNIST" / "raw"
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(DamagedFileError, match="train-labels"): mnist(mnist_folder)
    labels.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 120]) + bytes([11] * 120))
    with pytest.raises(DamagedFileError, match="digit from 0 to 9"): mnist(mnist_folder)


def test_the_test_files_under_the_names_of_the_training_files(mnist_folder):
    raw = mnist_folder / "MNIST" / "raw"
    for kind in ("images-idx3", "labels-idx1"):
        (raw / f"train-{kind}-ubyte").write_bytes((raw / f"t10k-{kind}-ubyte").read_bytes())
    with pytest.raises(DamagedFileError, match="one is a copy"): course_data(mnist_folder)


def test_blank_images(mnist_folder):
    path = mnist_folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:16] + bytes(120 * 28 * 28))
    with pytest.raises(DamagedFileError, match="blank"): mnist(mnist_folder)


def test_only_training_batches_are_transformed():
    blank = lambda xb, yb: (torch.zeros_like(xb), yb)
    dls = digits(device="cpu", transform=blank)
    assert not any(xb.any() for xb, _ in dls.train)
    assert all(xb.any() for part in (dls.valid, dls.test) for xb, _ in part)


def test_the_fallback_gives_what_there_is(tmp_path, capsys):
    dls = course_data(tmp_path, download=False, device="cpu", n_train=50_000, n_valid=10_000)
    assert (len(dls.train.x), len(dls.valid.x)) == (1248, 249)
    assert course_data(tmp_path, download=False, device="cpu", n_train=100).train.x.shape == (100, 1, 28, 28)


def test_where_data_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", "somewhere/else")
    assert data_root() == (CHECKOUT / "somewhere" / "else", "$COURSE_DATA")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert data_root()[0] == tmp_path
    assert data_root("here")[0] == Path("here")
    monkeypatch.delenv("COURSE_DATA")
    assert data_root() == (CHECKOUT / "data", "data/")


def test_the_order_is_the_same_in_another_process_and_for_every_device():
    script = ("import torch; from course_lib.data import TensorLoader as T; t = torch.arange(50); torch.rand(9); "
              "print(T(t, t, 8, True, seed=5).order(3).tolist())")
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    items = torch.arange(50, device=default_device())
    loader = TensorLoader(items, items, 8, shuffle=True, seed=5)
    assert str(loader.order(3).tolist()) == other.strip()
    loader.epoch = 3
    assert torch.cat([xb for xb, _ in loader]).tolist() == loader.order(3).tolist()
    assert loader.epoch == 4


def test_orders_of_seeds_and_epochs_differ():
    items = torch.arange(100)
    orders = [tuple(TensorLoader(items, items, 10, True, seed=seed).order(epoch).tolist()) for seed in range(5)
              for epoch in range(20)]
    assert len(set(orders)) == 100


def test_a_transform_that_works_in_place_leaves_the_data_alone():
    x, y = torch.ones(10, 1), torch.zeros(10)
    for shuffle in (False, True):
        for xb, _ in TensorLoader(x, y, 4, shuffle, transform=lambda xb, yb: (xb.mul_(5), yb)): assert (xb == 5).all()
    assert (x == 1).all()


def test_torchs_dataloader_may_stand_in():
    dataset = torch.utils.data.TensorDataset(torch.zeros(10, 3), torch.zeros(10))
    loader = torch.utils.data.DataLoader(dataset, 5)
    dls = DataLoaders(loader, loader, name="torch")
    assert len(dls.train) == 2 and dls.test is None and "torch" in repr(dls)


@pytest.mark.parametrize("arguments, message", [
    ((torch.zeros(3), torch.zeros(4), 2), "3 items and y 4"), ((torch.zeros(3), torch.zeros(3), 0), "at least 1"),
    ((torch.zeros(3), torch.zeros(3), -1), "at least 1"), ((torch.zeros(3), torch.zeros(3), 1.5), "whole number"),
    ((torch.zeros(0), torch.zeros(0), 1), "no batch"),
    ((np.zeros(3), torch.zeros(3), 1), "must be tensors, not ndarray"),
    (([1, 2], [1, 2], 1), "must be tensors, not list"), ((torch.tensor(1.), torch.zeros(1), 1), "axis of items"),
    ((torch.zeros(3), torch.zeros(3), 2, False, None, False, "seed"), "seed must be a whole number"),
    ((torch.zeros(3), torch.zeros(3), 4, False, None, True), "no batch of 4 with drop_last=True")])
def test_bad_loaders_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message): TensorLoader(*arguments)


@pytest.mark.parametrize("wrong, message", [
    ({"n_valid": 0}, "n_valid must be from 1 to 1,496"), ({"n_valid": 1497}, "n_valid must be from 1 to 1,496"),
    ({"n_train": 0}, "n_train must be from 1 to 1,248"), ({"n_train": 1249}, "n_train must be from 1 to 1,248"),
    ({"n_train": 1000, "n_valid": 1000}, "n_train must be from 1 to 497"),
    ({"n_train": 9.5}, "n_train must be a whole number"), ({"n_valid": "many"}, "n_valid must be a whole number")])
def test_parts_that_are_not_there_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message): digits(device="cpu", **wrong)


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (3, 3, 20, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_affine_equals_torchvision(shape, dtype):
    torch.manual_seed(1)
    device = default_device() if dtype == torch.float32 else torch.device("cpu")  # mps has no float64
    x, n = torch.rand(shape, dtype=dtype), shape[0]
    angle, translate, scale, shear = (torch.rand(n, dtype=dtype) * 300 - 150, torch.rand(2, n, dtype=dtype) * 10 - 5,
                                      torch.rand(n, dtype=dtype) + .5, torch.rand(2, n, dtype=dtype) * 60 - 30)
    ours = affine(x.to(device), *(t.to(device) for t in (angle, translate, scale, shear)), fill=0.).cpu()
    theirs = torch.stack(
        [torchvision_affine(x[i], angle[i].item(), translate[:, i].tolist(), scale[i].item(), shear[:, i].tolist(),
                            interpolation=transforms.InterpolationMode.BILINEAR) for i in range(n)])
    # torchvision reckons its matrix in Python floats and its grid in the image's dtype: a rounding of 1e-6 of a
    # position, times a slope
    torch.testing.assert_close(ours, theirs, atol=1e-4 if dtype == torch.float32 else 1e-9, rtol=0)


def test_random_affine_draws_from_the_ranges_and_one_for_each_image():
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 29, 29)
    image[..., 14, 14] = 1.
    many = image.expand(4000, -1, -1, -1)
    moved, targets = RandomAffine(0, translate=(.1, .2), fill=0.)(many, "targets")
    assert targets == "targets"
    rows, columns = (moved.sum(axis)[:, 0] @ torch.arange(29.) - 14 for axis in (3, 2))
    assert columns.abs().max() <= 2.9 + 1e-3 and columns.abs().max() > 2.7 and abs(columns.mean()) < .15
    assert rows.abs().max() <= 5.8 + 1e-3 and rows.abs().max() > 5.5
    assert len(columns.unique()) > 3900


def test_random_affine_draws_each_amount_from_its_own_range(monkeypatch):
    seen = {}
    monkeypatch.setattr("course_lib.data.affine",
                        lambda x, *amounts: seen.update(zip(("angle", "translate", "scale", "shear", "fill"), amounts)))
    torch.manual_seed(0)
    RandomAffine((-20, 40), (.1, .3), (.5, .7), (-1, 2, 5, 9), fill=3.)(torch.zeros(5000, 1, 10, 20), None)
    ranges = {"angle": (seen["angle"], -20, 40), "right": (seen["translate"][0], -2, 2),
              "down": (seen["translate"][1], -3, 3), "scale": (seen["scale"], .5, .7),
              "along x": (seen["shear"][0], -1, 2), "along y": (seen["shear"][1], 5, 9)}
    for name, (values, low, high) in ranges.items():
        share = (values - low) / (high - low)
        assert 0 <= share.min() < .01 and .99 < share.max() <= 1 and abs(share.mean() - .5) < .03, name
    assert seen["fill"] == 3.


def test_the_positions_that_are_kept_serve_training_too():
    with torch.inference_mode():
        affine(torch.rand(2, 1, 5, 7), *[torch.ones(2)] * 1, torch.zeros(2, 2), torch.ones(2), torch.zeros(2, 2))
    angle = torch.zeros(2, requires_grad=True)
    affine(torch.rand(2, 1, 5, 7), angle, torch.zeros(2, 2), torch.ones(2), torch.zeros(2, 2)).sum().backward()
    assert angle.grad.isfinite().all()


def test_the_background_stays_background():
    dls = digits(device="cpu")
    background = dls.train.x.min()
    xb, _ = RandomAffine(45, (.3, .3), (.5, .8), 20)(dls.train.x[:64], None)
    corners = torch.cat([xb[:, 0, i, j] for i in (0, -1) for j in (0, -1)])
    torch.testing.assert_close(corners.median(), background)
    assert xb.min() >= background - 1e-5


@pytest.mark.parametrize("wrong, message", [
    ({"degrees": (10, -10)}, "upside down"), ({"degrees": float("nan")}, "finite"),
    ({"degrees": 5, "translate": (1.5, 0)}, "shares from 0 to 1"), ({"degrees": 5, "scale": (-1, 1)}, "positive"),
    ({"degrees": 5, "shear": (1, 2, 3)}, "2 or 4"), ({"degrees": 5, "translate": .1}, "translate: expected 2"),
    ({"degrees": 5, "scale": 1.1}, "scale: expected 2"), ({"degrees": 5, "shear": 90}, "between -90 and 90"),
    ({"degrees": None}, "degrees: expected 2"), ({"degrees": "10"}, "degrees: expected 2"),
    ({"degrees": (0, "b")}, "degrees: expected 2"), ({"degrees": 5, "scale": 0}, "scale: expected 2"),
    ({"degrees": 5, "scale": "ab"}, "scale: expected 2"),
    ({"degrees": 5, "shear": (None, 1)}, "shear: expected 2 or 4")])
def test_bad_affines_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message): RandomAffine(**wrong)


WORDS = re.compile(r"Turned by (-?\d+)°, (\d\.\d\d) times as large, sheared by (-?\d+)°, "
                   r"(?:(\d+) (pixels?) to the (left|right)|not shifted): (\d+)% of the ink\.")


def test_the_affine_figure_says_and_shows_what_torchvision_does():
    images = torch.stack([digits(device="cpu").valid.x[i] for i in range(3)])
    explorer, first = affine_explorer(images), images.min()
    shown = lambda: torch.stack([torch.as_tensor(artist.get_array()) for artist in explorer.figure.artists[:3]])
    for state, words in drive(explorer, also=lambda s: [abs(s["right"])]):
        turned, scale, sheared, n, unit, side, ink = WORDS.fullmatch(words).groups()
        assert (int(turned), float(scale), int(sheared)) == (
            state["angle"], pytest.approx(state["scale"], abs=.0051), state["shear"])
        assert int(n or 0) * (-1 if side == "left" else 1) == state["right"]
        assert unit == (None if n is None else "pixel" if n == "1" else "pixels")
        moved = torch.stack([torchvision_affine(
            image - first, state["angle"], [state["right"], 0], state["scale"], [state["shear"], 0],
            interpolation=transforms.InterpolationMode.BILINEAR) for image in images])
        reference = _get_inverse_affine_matrix([0, 0], state["angle"], [state["right"], 0], state["scale"],
                                               [state["shear"], 0])
        assert sum(state["matrix"], []) == pytest.approx(reference, abs=2e-5)
        share = float(moved.sum() / (images - first).sum())
        assert state["ink"] == pytest.approx(share, abs=1e-3) and int(ink) == pytest.approx(100 * share, abs=.6)
        explorer.set(**{name: state[name] for name in explorer.controls})
        torch.testing.assert_close(shown(), (moved + first)[:, 0], atol=1e-3, rtol=0)
        formula = explorer.figure.artists[-1].get_text()
        assert re.findall(r"-?\d+\.\d\d", formula) == [f"{entry:.2f}" for entry in sum(state["matrix"], [])]
    for n, words in ((0, "not shifted"), (1, "1 pixel to the right"), (-1, "1 pixel to the left"), (2, "2 pixels")):
        assert words in explorer.words(explorer.set(right=n))
