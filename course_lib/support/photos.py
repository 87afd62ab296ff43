"""From folders of JPEG files to bytes in memory, without decoding a file twice (appendix A3)."""
import contextlib
import hashlib
import math
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .arguments import checked, image_batch
from .checks import positive_int
from .files import FOLDER_ADVICE, DamagedFileError, DataError, DownloadError, data_root, receive, whole_file
from .tensors import default_device, keep_freed_memory


def _centres(start, length, shares, whole):
    "Where new pixels lie in the old image, `[n, size]`, in grid_sample's units: from -1 to 1 over its `whole` pixels."
    start, length = start[:, None], length[:, None]
    # a box that is enlarged has nothing outside of its own pixels to mix in
    return (start + length * shares).clamp(start + .5, start + length - .5).mul_(2 / whole).sub_(1)


def resized_crops(x, boxes, size, flip=None):
    """Cut a box of its own out of each image and resize it, `[n, channels, size, size]`:
    the map of torchvision's `resized_crop`, bilinear, without antialiasing.

    x: float images `[n, channels, height, width]`; boxes: top, left, height, width in pixels, `[4, n]`;
    flip: which of the results are mirrored, left to right, bools `[n]`.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"Expected float images [n, channels, height, width], got {x.dtype} {list(x.shape)}.")
    if boxes.shape != (4, len(x)):
        raise ValueError(f"boxes: expected top, left, height and width [4, {len(x)}], got {list(boxes.shape)}.")
    top, left, height, width = boxes.to(x.dtype)
    shares = (torch.arange(size, device=x.device, dtype=x.dtype) + .5) / size
    across = shares if flip is None else torch.where(flip[:, None], 1 - shares, shares)
    rows, columns = _centres(top, height, shares, x.shape[2]), _centres(left, width, across, x.shape[3])
    grid = torch.stack([columns[:, None].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)], 1)
    return F.grid_sample(x, grid.permute(0, 2, 3, 1), align_corners=False)


IMAGENET_MEAN, IMAGENET_STD = (.485, .456, .406), (.229, .224, .225)


def _range(name, values, most=math.inf):
    "Two positive finite numbers in order; `ValueError` for anything else."
    try: low, high = map(float, values)
    except (TypeError, ValueError): raise ValueError(f"{name}: expected two numbers, got {values!r}.") from None
    if not 0 < low <= high <= most or not math.isfinite(high):
        limit = f" ≤ {most}" if most < math.inf else ""
        raise ValueError(f"{name}: expected 0 < low ≤ high{limit}, got {values!r}.")
    return low, high


class _BatchCrop:
    "What transforms share that cut boxes out of batches: bytes to the device, resample, normalise."
    def __init__(self, size, device=None):
        self.size = positive_int("size", size)
        self.device = default_device() if device is None else torch.device(device)
        if self.device.type == "cpu": keep_freed_memory()
        mean, std = (torch.tensor(value, device=self.device).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
        self.factor, self.shift = 1 / (255 * std), -mean / std

    def __call__(self, xb, yb):
        "uint8 images `[n, 3, height, width]` and targets -> float images `[n, 3, size, size]`, targets, on the device"
        if xb.dtype != torch.uint8 or xb.ndim != 4 or xb.shape[1] != 3:
            raise ValueError(f"Expected uint8 images [n, 3, height, width], got {xb.dtype} {list(xb.shape)}.")
        xb, n = xb.to(self.device), len(xb)  # as bytes: a quarter of the way's cost
        boxes, flips = self.boxes(n, *xb.shape[2:]), self.flips(n)
        out = torch.empty(n, 3, self.size, self.size, device=self.device)
        # a CPU takes a few at a time: memory that is used again at once need not be fetched
        few = 16 if self.device.type == "cpu" else n
        for some in (slice(i, i + few) for i in range(0, n, few)):
            crops = resized_crops(xb[some].float(), boxes[:, some], self.size, flips[some])
            torch.addcmul(self.shift, crops, self.factor, out=out[some])
        return out, yb.to(self.device)

    def flips(self, n): return torch.zeros(n, dtype=torch.bool, device=self.device)


class RandomResizedCrop(_BatchCrop):
    """A transform for `TensorLoader`: another random box of each image of a batch, resized to `size` × `size`, as in
    `torchvision.transforms.RandomResizedCrop` (Szegedy et al., 2015), normalised by ImageNet's statistics.

    scale: range of the box's share of the area; ratio: range of width / height; flip: mirror half of the images;
    device: where the work is done, by default `default_device()`.
    Draws from torch's own random numbers of the device, so `torch.manual_seed` repeats it.
    """
    def __init__(self, size, scale=(.35, 1), ratio=(3 / 4, 4 / 3), flip=True, device=None):
        super().__init__(size, device)
        self.scale, self.ratio, self.flip = _range("scale", scale, most=1), _range("ratio", ratio), bool(flip)

    def boxes(self, n, height, width):
        "Random boxes in images of that size: top, left, height, width in whole pixels, `[4, n]`."
        draw = lambda low, high: low + (high - low) * torch.rand(10, n, device=self.device)  # ten tries each
        area, ratio = height * width * draw(*self.scale), draw(*map(math.log, self.ratio)).exp()
        sides = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()]).round()
        limits = sides.new_tensor([height, width])[:, None]
        fits = (sides >= 1).all(0) & (sides <= limits[:, None]).all(0)
        first = fits.int().argmax(0).expand(2, 1, n)
        # where no try fits: the largest box of an allowed shape, in the middle
        largest = limits.flip(0) * limits.new_tensor([1 / self.ratio[0], self.ratio[1]])[:, None]
        sides = torch.where(fits.any(0), sides.gather(1, first)[:, 0], largest.round().clamp(min=1).minimum(limits))
        place = torch.where(fits.any(0), torch.rand(2, n, device=self.device), .5)
        return torch.cat([(place * (limits - sides + 1)).floor(), sides])

    def flips(self, n): return torch.rand(n, device=self.device) < (.5 if self.flip else 0)

    def __repr__(self):
        return f"RandomResizedCrop({self.size}, scale={self.scale}, ratio={self.ratio}, flip={self.flip})"


class CenterCrop(_BatchCrop):
    """A transform for `TensorLoader`: the middle of each image, resized to `size` × `size` and normalised.

    share: how much of the shorter side is kept; device: as in `RandomResizedCrop`.
    """
    def __init__(self, size, share=.875, device=None):
        super().__init__(size, device)
        self.share = _range("share", (share, share), most=1)[0]

    def boxes(self, n, height, width):
        side = self.share * min(height, width)
        box = torch.tensor([(height - side) / 2, (width - side) / 2, side, side], device=self.device)
        return box[:, None].expand(4, n)

    def __repr__(self): return f"CenterCrop({self.size}, share={self.share})"


@checked(x=image_batch)
def denormalise(x):
    "Images `[n, 3, height, width]` that were normalised by ImageNet's statistics, in colours from 0 to 1 again."
    mean, std = (x.new_tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    return (x * std + mean).clamp(0, 1)


LONGEST = 8  # sides of a picture that is resized as a whole: 1 × 60,000 pixels would become 17,280,000 × 288


def _middle(image):
    "A picture without what is certain to be cut off: at most some `LONGEST` times as long as it is wide."
    sides, short = image.size, min(image.size)
    if max(sides) <= (LONGEST + 1) * short: return image
    kept = [min(side, LONGEST * short + (side - LONGEST * short) % 2) for side in sides]  # as much on either side
    left, top = ((side - keep) // 2 for side, keep in zip(sides, kept))
    return image.crop((left, top, left + kept[0], top + kept[1]))


def _decode(path, large):
    "A picture file as bytes `[3, large, large]`: RGB, the shorter side resized to `large`, and the middle of it."
    try:
        with Image.open(path) as file: image = _middle(file).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedFileError(f"{path} cannot be read as a picture ({error}).") from error
    from torchvision.transforms import functional as pictures

    image = pictures.center_crop(pictures.resize(image, large), large)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _fingerprint(paths, folder):
    "16 hex digits that change with the names, the sizes, the times of change and the order of files in a folder."
    line = lambda path, stat: f"{path.relative_to(folder).as_posix()} {stat.st_size} {stat.st_mtime_ns}"
    try: lines = [line(path, path.stat()) for path in paths]
    except OSError as error:
        raise DamagedFileError(f"{error.filename} cannot be found or looked at ({error.strerror}).") from error
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _write_decoded(path, paths, shape):
    "Decode pictures into `path`, an .npy file of bytes, under a temporary name until it is whole."
    try:
        needed, free = math.prod(shape), shutil.disk_usage(path.parent).free
        if needed > free: raise OSError(0, f"{needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB free")
        with whole_file(path) as part, open(part, "wb") as file, ThreadPoolExecutor() as pool:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for start in range(0, len(paths), 256):  # a few at a time: what waits to be written takes memory
                for image in pool.map(_decode, paths[start:start + 256], (shape[-1],) * 256): file.write(image)
    except OSError as error:
        raise DataError(f"{path.parent} cannot be written to ({error.strerror}): {FOLDER_ADVICE}.") from error


def decoded(paths, folder, large, name="photos"):
    """Pictures in a folder as bytes `[n, 3, large, large]`, mapped from a file in that folder;
    the first call writes it, and only that one decodes. A picture that is added, removed or replaced is noticed by
    its name, its size and the time of its last change.

    Raises `DamagedFileError` that names a picture that is missing or damaged, `DataError` where the disk is full.
    """
    shape, start = (len(paths), 3, large, large), f"decoded-{large}px-"
    path = folder / f"{start}{_fingerprint(paths, folder)}.npy"

    def mapped():  # copy on write: whoever changes the tensor does not change the file
        try: array = np.load(path, mmap_mode="c")
        except (OSError, ValueError, EOFError): return None
        return torch.from_numpy(array) if array.shape == shape and array.dtype == np.uint8 else None

    if (images := mapped()) is not None: return images
    print(f"{name}: decodes {len(paths):,} photos, once, into {math.prod(shape) / 1e6:,.1f} MB", flush=True)
    _write_decoded(path, paths, shape)
    for old in folder.glob(f"{start}*.npy"):  # of a folder that has changed since
        with contextlib.suppress(OSError):
            if old != path: old.unlink()
    if (images := mapped()) is None: raise DataError(f"{path} cannot be read back. Delete it; it is then made again.")
    return images


ARCHIVE_BYTES = {"images.tar.gz": 791_918_971, "annotations.tar.gz": 19_173_078, "imagenette2-160.tgz": 99_003_388,
                 "imagenette2-320.tgz": 341_663_724, "imagenette2.tgz": 1_557_161_267}
N_PHOTOS = {"pets": 7_349, "imagenette": 13_394}


def _fetch_archive(url, md5, path):
    "Write what is behind `url` to `path`, saying how far it is; `DownloadError` if it is not what the hash says."
    digest, received, told, name = hashlib.md5(usedforsecurity=False), 0, 0, path.name
    with open(path, "wb") as file:
        for part in receive(url):
            file.write(part)
            digest.update(part)
            received += len(part)
            if (tenths := 10 * received // ARCHIVE_BYTES.get(name, math.inf)) > told:
                print(f"{name}: " * (not told) + f"{10 * tenths}%", end="\n" if tenths == 10 else " ", flush=True)
                told = tenths
    if digest.hexdigest() != md5:
        raise DownloadError(f"{url} sends another file than the one expected (its hash differs)")


class Source(NamedTuple):
    "Where a set of photos comes from, and how it is read."
    name: str
    home: Path       # the folder that it becomes
    tops: tuple      # what lies in it when it is whole
    archives: tuple  # (url, md5) of each
    shelf: Path      # where archives lie that somebody has put there already
    read: Callable   # -> classes, [(paths, targets) to train and validate, (paths, targets) to test]


def _unpack(source, part):
    "All archives, unpacked within the folder `part`; fetched where the shelf has none. -> what is to become `home`"
    from torchvision.datasets.utils import check_integrity, extract_archive

    for url, md5 in source.archives:
        archive = source.shelf / Path(url).name
        if archive.exists():
            if not check_integrity(archive, md5):
                raise DamagedFileError(f"{archive} is not the archive that it should be (its hash differs). "
                                       "Delete it; it is then fetched again.")
        else: _fetch_archive(url, md5, archive := part / archive.name)
        try: extract_archive(archive, part / "new")
        except (tarfile.TarError, EOFError) as error:
            raise DamagedFileError(f"{archive.name} is no archive that can be unpacked ({error}).") from error
        if archive.parent == part: archive.unlink()
    new = part / "new" / source.home.name  # some archives hold the folder, some what is in it
    return new if new.is_dir() else part / "new"


def _announce(source, large):
    "Before archives are fetched: somebody must answer, there must be room; then a line on what it will cost."
    missing = [url for url, _ in source.archives if not (source.shelf / Path(url).name).exists()]
    if not missing: return
    with contextlib.closing(receive(missing[0])) as parts: next(parts, None)
    n, n_bytes = N_PHOTOS[source.name], sum(ARCHIVE_BYTES[Path(url).name] for url in missing)
    free = shutil.disk_usage(source.home.parent).free
    if free < 2 * n_bytes:  # an archive, and what is in it
        raise OSError(0, f"{2 * n_bytes / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB free")
    print(f"{source.name}: downloads {n_bytes / 1e6:,.0f} MB into {source.home}; its {n:,} photos, decoded at "
          f"{large}×{large}, take another {n * 3 * large**2 / 1e6:,.0f} MB", flush=True)


def _move(old, new):
    "Move a folder to its place; one that another process has put there in the meantime is as good."
    try: old.rename(new)
    except OSError:
        if not new.is_dir(): raise


def _look(home, tops):
    "Which of the folders that make a set of photos are there."
    there = lambda: [top for top in tops if (home / top).is_dir()]
    if 0 < len(there()) < len(tops): time.sleep(.2)  # another process may be moving them in, one after the other
    return there()


def _install(source, large, download):
    """See to it that the photos are in their folder: all of them appear there, or none.

    Raises `DownloadError` where they are missing and cannot be had, `DamagedFileError` where a part of them is there.
    """
    home, tops, root = source.home, source.tops, source.home.parent
    try:
        there = _look(home, tops)
        if len(there) == len(tops): return
        if there: raise DamagedFileError(f"{home} holds {there[0]}, but not {' and '.join(tops)}. "
                                         f"Delete {home / there[0]}; it is then fetched again.")
        if not download: raise DownloadError(f"{home / tops[0]} is not there, and nothing was to be downloaded")
        root.mkdir(parents=True, exist_ok=True)
        _announce(source, large)
        with tempfile.TemporaryDirectory(".part", f"{home.name}.", root, ignore_cleanup_errors=True) as part:
            new = _unpack(source, Path(part))
            if not home.exists(): _move(new, home)  # the usual way: everything in one move
            for top in tops:
                if not (home / top).is_dir(): _move(new / top, home / top)
    except OSError as error:
        raise DownloadError(f"{root} cannot be written to ({error.strerror}): {FOLDER_ADVICE}") from error


def _read(source):
    "Classes, and paths and targets of each split; `DamagedFileError` for a folder that is not whole."
    try: classes, splits = source.read()
    except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise DamagedFileError(f"{source.home} is not the folder that it should be ({error}).") from error
    n = sum(len(paths) for paths, _ in splits)
    if n < N_PHOTOS[source.name] or not all(len(paths) for paths, _ in splits):
        raise DamagedFileError(f"{source.home} holds {n:,} of {N_PHOTOS[source.name]:,} photos.")
    if any(not 0 <= target < len(classes) for _, targets in splits for target in targets):
        raise DamagedFileError(f"{source.home} holds targets beyond its {len(classes)} classes.")
    return classes, splits


class Photos(NamedTuple):
    "Decoded photos: x uint8 `[n, 3, large, large]` on the CPU, mapped from disk; y int64 `[n]`; slices of both."
    x: torch.Tensor
    y: torch.Tensor
    classes: list
    train: slice
    valid: slice
    test: slice


def check_photo_sizes(size, large, batch_size):
    "Raises `ValueError` for what is no whole number, and for crops that are larger than what they are cut from."
    for name, value in {"size": size, "large": large, "batch_size": batch_size}.items(): positive_int(name, value)
    if size > large: raise ValueError(f"size must be at most large, not {size} with large={large}.")


def load_photos(source, large, n_valid, download):
    "All photos of a source, decoded once -> `Photos`; n_valid: how many of those to train are cut off, None: a sixth."
    large = positive_int("large", large)
    if n_valid is not None: positive_int("n_valid", n_valid)
    _install(source, large, download)
    try:
        classes, ((paths, targets), (test_paths, test_targets)) = _read(source)
        n_valid = len(paths) // 6 if n_valid is None else n_valid
        if n_valid >= len(paths): raise ValueError(f"n_valid must be at most {len(paths) - 1:,}, not {n_valid}.")
        # mixed once, the same for every seed: each part is then a slice of the one file
        mixed = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0)).tolist()
        every = [Path(path) for path in [*(paths[i] for i in mixed), *test_paths]]
        x = decoded(every, source.home, large, source.name)
    except DamagedFileError as error:
        raise DamagedFileError(f"{error} Delete {source.home}; it is then fetched again.") from error
    y = torch.tensor([targets[i] for i in mixed] + list(test_targets))
    return Photos(x, y, classes, slice(n_valid, len(paths)), slice(n_valid), slice(len(paths), None))


def pets_source(root=None):
    "The Oxford-IIIT Pets (Parkhi et al., 2012) below the folder `data_root(root)`."
    from torchvision.datasets import OxfordIIITPet

    home = data_root(root)[0] / "oxford-iiit-pet"

    def read():
        train, test = (OxfordIIITPet(home.parent, split) for split in ("trainval", "test"))
        return train.classes, [(part._images, part._labels) for part in (train, test)]
    return Source("pets", home, ("images", "annotations"), OxfordIIITPet._RESOURCES, home, read)


def imagenette_source(root=None, large=160):
    "Imagenette (Howard, 2019) in the smallest archive whose shorter sides, 160, 320 or all pixels, are at least `large`."
    from torchvision.datasets import Imagenette

    kind = "160px" if positive_int("large", large) <= 160 else "320px" if large <= 320 else "full"
    url, _ = archive = Imagenette._ARCHIVES[kind]
    home = data_root(root)[0] / Path(url).stem

    def read():
        train, test = (Imagenette(home.parent, split, kind) for split in ("train", "val"))
        return [names[0] for names in train.classes], [tuple(zip(*part._samples)) for part in (train, test)]
    return Source("imagenette", home, ("train", "val"), (archive,), home.parent, read)


def photo_loaders(classes, source, size, large, batch_size, n_valid, device, seed, download):
    """`DataLoaders` of photos, decoded once; cropped at random in training, else in the middle.

    classes: chapter 01's `TensorLoader` and `DataLoaders`, which this room does not know.
    """
    check_photo_sizes(size, large, batch_size)
    photos, (loader, loaders) = load_photos(source, large, n_valid, download), classes
    crops = RandomResizedCrop(size, device=device), CenterCrop(size, device=device)
    dls = loaders(*(loader(photos.x[part], photos.y[part], batch_size, not i, crops[i > 0], seed=seed)
                    for i, part in enumerate((photos.train, photos.valid, photos.test))), name=source.name)
    dls.classes = photos.classes
    return dls


def photo_sets(*classes):
    "The functions `pets` and `imagenette`, which make loaders of chapter 01's `TensorLoader` and `DataLoaders`."
    def pets(root=None, size=224, large=288, batch_size=64, n_valid=None, device=None, seed=0, download=True):
        """The Oxford-IIIT Pets (Parkhi et al., 2012), 37 breeds, as `DataLoaders` with `.classes`.

        Normalised float images `[n, 3, size, size]`, cropped at random in training, and int64 targets `[n]`; `.train.x`
        are uint8 `[n, 3, large, large]`, on disk. root: see `data_root`; large: side of the square that each photo is
        decoded to, once; n_valid: how many training photos are cut off for validation, by default a sixth. Raises
        `DownloadError` where files cannot be had, `DamagedFileError` where one is damaged, `DataError` where the disk
        has no room.
        """
        return photo_loaders(classes, pets_source(root), size, large, batch_size, n_valid, device, seed, download)

    def imagenette(root=None, size=128, large=160, batch_size=64, n_valid=None, device=None, seed=0, download=True):
        """Imagenette (Howard, 2019), ten easy classes of ImageNet; else like `pets`.

        The archive is the smallest whose shorter sides, 160, 320 or all pixels, are at least `large`; its `val` photos
        are the test part.
        """
        source = imagenette_source(root, large)
        return photo_loaders(classes, source, size, large, batch_size, n_valid, device, seed, download)

    return pets, imagenette
