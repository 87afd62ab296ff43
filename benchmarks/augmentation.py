"""Augmented images per second: each transform of chapter 13 on whole batches, and a usual chain of them (crop with 4
pixels around, flip, colour jitter, rotation), against torchvision's and kornia's.

All serve batches of 256 float images 3×32×32 in [0, 1], each image changed by its own random amounts. torchvision v2
changes one image at a time, PIL images or tensors of bytes, whichever is faster, in a `DataLoader` with two worker
processes that live on from epoch to epoch. kornia changes whole batches, as ours does. Threads that wait for each other
suffer where other programs want the processor too: ours and kornia run in one thread and in all, and the faster counts.
"""
import contextlib
import statistics

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from _measure import arguments, ratio, say_machine, table, take_turns
from course_lib.data import TensorLoader
from course_lib import augmentation as ours
from course_lib.support.tensors import default_device, keep_freed_memory

with contextlib.suppress(ImportError): import kornia.augmentation

BATCH_SIZE, SIZE, WORKERS = 256, 32, 2
JITTER = {"brightness": .2, "contrast": .2, "saturation": .2, "hue": .1}
BILINEAR = InterpolationMode.BILINEAR


class Images(Dataset):
    "One image at a time, through a transform."
    def __init__(self, images, transform): self.images, self.transform = images, transform

    def __len__(self): return len(self.images)
    def __getitem__(self, i): return self.transform(self.images[i]), i % 10


def torchvision_chain():
    return v2.Compose([v2.RandomCrop(SIZE, padding=4), v2.RandomHorizontalFlip(), v2.ColorJitter(**JITTER),
                       v2.RandomRotation(15, BILINEAR), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def kornia_chain():
    K = kornia.augmentation
    return torch.nn.Sequential(K.RandomCrop((SIZE, SIZE), padding=4), K.RandomHorizontalFlip(),
                               K.ColorJitter(**JITTER, p=1.), K.RandomRotation(15., p=1.))


def each_transform(x):
    return [ours.RandomCrop(4), ours.Flip(), ours.Rotate(15), ours.ColorJitter(**JITTER), ours.Perspective(),
            ours.Grayscale(), ours.GaussianBlur(), ours.PCAColor(x), ours.Cutout(8), ours.MixUp(10), ours.CutMix(10),
            ours.RandAugment()]


def one_pass(loader, device, threads, n):
    torch.set_num_threads(threads)
    assert sum(len(yb) for _, yb in loader) == n
    if device.type == "cuda": torch.cuda.synchronize()


def main():
    args = arguments(__doc__)
    n, repeats = (1_280, 3) if args.quick else (2_560, 11)
    device, threads = default_device(), torch.get_num_threads()
    with_kornia = "kornia" in globals()
    say_machine("torch", "torchvision", "pillow", *["kornia"] * with_kornia, threads=threads)
    print(f"{n:,} images, batches of {BATCH_SIZE}, {repeats} rounds; ours on {device}"
          + "; kornia is not installed: pip install -r benchmarks/peers.txt" * (not with_kornia))
    keep_freed_memory()
    images = np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)
    as_bytes = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    x, y = as_bytes.to(device).float().div_(255), torch.arange(n, device=device) % 10
    usual = {"PIL images": [Image.fromarray(image) for image in images], "bytes": as_bytes}
    contenders = {}
    for kind, data in usual.items():
        loader = DataLoader(Images(data, torchvision_chain()), BATCH_SIZE, shuffle=True, num_workers=WORKERS,
                            persistent_workers=True, pin_memory=device.type == "cuda")
        contenders[f"torchvision v2: DataLoader, {WORKERS} workers, {kind}"] = (loader, 1)
    batched = {"course_lib": [ours.RandomCrop(4), ours.Flip(), ours.ColorJitter(**JITTER), ours.Rotate(15)]}
    if with_kornia:
        chain = kornia_chain()
        batched["kornia"] = lambda xb, yb: (chain(xb), yb)
    for name, transform in batched.items():
        for some in sorted({1, threads}):
            loader = TensorLoader(x, y, BATCH_SIZE, shuffle=True, transform=transform)
            contenders[f"{name}: whole batches, {some} thread{'s' * (some > 1)}"] = (loader, some)
    calls = {name: lambda loader=loader, some=some: one_pass(loader, device, some, n)
             for name, (loader, some) in contenders.items()}
    chains = take_turns(calls, repeats)  # its first round starts the workers and does not count
    rates = {name: [n / seconds / 1000 for seconds in values] for name, values in chains.items()}
    table("Crop, flip, colour jitter, rotation", rates, "thousand images a second")

    singles = {type(t).__name__: TensorLoader(x, y, BATCH_SIZE, transform=t) for t in each_transform(x)}
    times = take_turns({name: lambda loader=loader: one_pass(loader, device, 1, n)
                        for name, loader in singles.items()}, repeats)
    table("Each transform alone, 1 thread",
          {name: [n / seconds / 1000 for seconds in values] for name, values in times.items()},
          "thousand images a second")
    fastest = lambda who: max(statistics.median(values) for name, values in rates.items() if name.startswith(who))
    print()
    ratio("augmentation_chain_over_torchvision_dataloader", fastest("course_lib") / fastest("torchvision"), ">=10")
    if with_kornia: ratio("augmentation_chain_over_kornia", fastest("course_lib") / fastest("kornia"), ">=1.5")


if __name__ == "__main__":
    main()
