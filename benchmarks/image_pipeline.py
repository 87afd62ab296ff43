"""Photos per second, cropped at random: bytes that were decoded once and one crop for the whole batch, against
torchvision's usual DataLoader.

Both read the same 500 JPEG files, 500×375, and give shuffled batches of 64 normalised float images 128×128, each cut
out at its own random place, size and shape and mirrored half of the time. torchvision's ImageFolder decodes, crops and
resizes one file at a time, in two worker processes that live on from epoch to epoch. Ours crops from 160×160 bytes,
mapped from one file; writing that file, once and for all, is measured apart. Threads that wait for each other suffer
where other programs want the processor too: ours runs in one thread and in all, and the faster counts.
"""
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from _measure import arguments, ratio, say_machine, table, take_turns
from course_lib.data import TensorLoader
from course_lib.support.tensors import default_device
from course_lib.support.photos import IMAGENET_MEAN, IMAGENET_STD, RandomResizedCrop, decoded

N, N_CLASSES, BATCH_SIZE, LARGE, SIZE, WORKERS = 500, 10, 64, 160, 128, 2
SCALE = (.35, 1)


def write_photos(folder):
    "Smooth random colours with some noise: files as large as photos of that size, which is what their decoding costs."
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 7, (375, 500, 3))
    for i in range(N):
        coarse = Image.fromarray(rng.integers(0, 256, (10, 13, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize((500, 375), Image.BICUBIC)) + np.roll(noise, 977 * i)
        path = folder / f"class_{i % N_CLASSES}" / f"{i:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def one_pass(loader, device, threads):
    torch.set_num_threads(threads)
    assert sum(len(yb) for _, yb in loader) == N
    if device.type == "cuda": torch.cuda.synchronize()


def main():
    args = arguments(__doc__)
    repeats = 4 if args.quick else 21
    device = default_device()
    threads = torch.get_num_threads()
    say_machine("torch", "torchvision", "pillow", threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_photos(folder)
        usual = ImageFolder(folder, transforms.Compose([
            transforms.RandomResizedCrop(SIZE, scale=SCALE), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]))
        paths = [Path(path) for path, _ in usual.samples]
        sizes = [path.stat().st_size / 1000 for path in paths]
        print(f"{N} photos of {min(sizes):.0f} to {max(sizes):.0f} kB, batches of {BATCH_SIZE}, {repeats} rounds; ours "
              f"on {device}")
        start = time.perf_counter()
        images = decoded(paths, folder, LARGE)
        print(f"decoded once in {time.perf_counter() - start:.1f} s")
        ours = TensorLoader(images, torch.tensor(usual.targets), BATCH_SIZE, shuffle=True,
                            transform=RandomResizedCrop(SIZE, SCALE, device=device))
        peer = DataLoader(usual, BATCH_SIZE, shuffle=True, num_workers=WORKERS, persistent_workers=True,
                          pin_memory=device.type == "cuda")
        contenders = {f"torchvision: DataLoader of ImageFolder, {WORKERS} workers":
                      lambda: one_pass(peer, device, threads),
                      "course_lib: one crop for the batch, 1 thread": lambda: one_pass(ours, device, 1),
                      f"course_lib: one crop for the batch, {threads} threads": lambda: one_pass(ours, device, threads)}
        times = take_turns(contenders, repeats)  # its first round starts the workers and does not count
    rates = {name: [N / seconds for seconds in values] for name, values in times.items()}
    table("Photos per second", rates, "a second")
    theirs, *mine = (statistics.median(values) for values in rates.values())
    print()
    ratio("image_pipeline_over_torchvision_dataloader", max(mine) / theirs, ">=10")


if __name__ == "__main__":
    main()
