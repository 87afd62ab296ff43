"""Augmented images per second: TensorLoader with the batched affine against torchvision's usual DataLoader.

Both rotate, shift, stretch and shear each of the 28×28 images by its own random amounts and give shuffled batches of
128 float images. torchvision's MNIST serves PIL images through `RandomAffine` and `ToTensor`, one at a time, no
workers.
"""
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import v2

from _measure import arguments, ratio, say_machine, table, take_turns
from course_lib.data import RandomAffine, TensorLoader
from course_lib.support.tensors import default_device

AMOUNTS = {"degrees": 10, "translate": (.1, .1), "scale": (.9, 1.1), "shear": 5}
BATCH_SIZE = 128


def write_mnist(folder, n):
    "Random images in MNIST's files: what is in the pixels costs no time."
    raw = Path(folder) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())


def main():
    args = arguments(__doc__)
    n, repeats = (2_560, 9) if args.quick else (10_240, 21)
    say_machine("torch", "torchvision", "pillow", threads=torch.get_num_threads())
    device = default_device()
    print(f"{n:,} images, batches of {BATCH_SIZE}, {repeats} rounds; ours on {device}")
    with tempfile.TemporaryDirectory() as folder:
        write_mnist(folder, n)
        usual = datasets.MNIST(
            folder, transform=transforms.Compose([transforms.RandomAffine(**AMOUNTS), transforms.ToTensor()]))
        x = (usual.data[:, None] / 255).to(device)
        y = usual.targets.to(device)
        loaders = {"torchvision: DataLoader, RandomAffine on PIL, ToTensor":
                   DataLoader(usual, BATCH_SIZE, shuffle=True),
                   "torchvision v2, one affine for the whole batch": TensorLoader(
                       x, y, BATCH_SIZE, shuffle=True,
                       transform=lambda xb, yb, affine=v2.RandomAffine(**AMOUNTS): (affine(xb), yb)),
                   "course_lib: TensorLoader, one affine for each image":
                   TensorLoader(x, y, BATCH_SIZE, shuffle=True, transform=RandomAffine(**AMOUNTS)),
                   "course_lib: TensorLoader, no transform": TensorLoader(x, y, BATCH_SIZE, shuffle=True)}

        def one_pass(loader):
            assert sum(len(yb) for _, yb in loader) == n
            if device.type == "cuda": torch.cuda.synchronize()

        times = take_turns({name: lambda loader=loader: one_pass(loader) for name, loader in loaders.items()}, repeats)
    rates = {name: [n / seconds / 1000 for seconds in values] for name, values in times.items()}
    table("Images per second", rates, "thousand a second")
    peer, _, ours, _ = (statistics.median(values) for values in rates.values())
    print()
    ratio("batched_affine_over_torchvision_dataloader", ours / peer, ">=20")


if __name__ == "__main__":
    main()
