"""Files: where data lie, downloads that end, archives and IDX, and writing that never leaves half a file."""
import contextlib
import gzip
import hashlib
import http.client
import io
import math
import os
import queue
import secrets
import textwrap
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


class DataError(RuntimeError): "Something about a data set on disk or on its way there."


class DamagedFileError(DataError): "A file is there, but it is not what it should be."


class DownloadError(DataError): "A file is not there and could not be fetched."


def read_idx(path):
    "The uint8 tensor in an IDX file (the format of MNIST). Raises `DamagedFileError` if it is anything else."
    advice = f"Delete {path}; it is then fetched again."
    try: raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error: raise DamagedFileError(f"{path} cannot be read ({error.strerror}).") from error
    if len(raw) < 4 or raw[:3].tolist() != [0, 0, 8]:
        raise DamagedFileError(f"{path} is no IDX file of bytes. {advice}")
    start = 4 + 4 * int(raw[3])
    shape = raw[4:start].view(">u4").tolist() if len(raw) >= start else [0]
    n_bytes = start + math.prod(shape)
    if len(raw) != n_bytes:
        raise DamagedFileError(f"{path} should have {n_bytes:,} bytes and has {len(raw):,}. {advice}")
    return torch.from_numpy(raw[start:]).view(shape)


STALL_S, TRICKLE_S, TRICKLE_BYTES_S = 3, 10, 20_000


def open_url(url):
    "The reply behind `url`; looking up the name, connecting and the headers together get `STALL_S` seconds."
    outcome = queue.SimpleQueue()

    def reach():
        try: outcome.put(urllib.request.urlopen(request, timeout=STALL_S))
        except Exception as error: outcome.put(error)

    request = urllib.request.Request(url, headers={"User-Agent": "course_lib"})
    threading.Thread(target=reach, daemon=True).start()
    try: reply = outcome.get(timeout=STALL_S)
    except queue.Empty: reply = TimeoutError()
    if isinstance(reply, TimeoutError) or isinstance(getattr(reply, "reason", None), TimeoutError):
        raise TimeoutError(f"timed out, no answer in {STALL_S} s")
    if isinstance(reply, Exception): raise reply
    return reply


def receive(url, n_bytes=math.inf):
    """What is behind `url`, piece by piece.

    Raises `DownloadError` when it does not come, breaks off, comes too slowly, or is more than n_bytes: then at once,
    so that a body without an end fills neither memory nor disk.
    """
    start, received = time.monotonic(), 0
    too_much = lambda: DownloadError(f"{url} sends more than the {n_bytes:,} bytes that were expected")
    try:
        with open_url(url) as reply:
            announced = reply.length  # None where the server does not say
            if announced and announced > n_bytes: raise too_much()
            while part := reply.read1(1 << 18):
                received, elapsed = received + len(part), time.monotonic() - start
                if received > n_bytes: raise too_much()
                if elapsed > TRICKLE_S and received < TRICKLE_BYTES_S * elapsed:
                    raise DownloadError(f"{url} sends next to nothing ({received:,} bytes in {elapsed:.0f} s)")
                yield part
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url} answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(f"{url} cannot be reached ({getattr(error, 'reason', error)})") from error
    if announced and received < announced:
        raise DownloadError(f"{url} broke off after {received:,} of {announced:,} bytes")


def fetch(url, md5, n_bytes=math.inf):
    "The bytes behind `url`. Raises `DownloadError` as `receive` does, and when they are not those of the hash."
    data = b"".join(receive(url, n_bytes))
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise DownloadError(f"{url} sends another file than the one expected (its hash differs)")
    return data


@contextlib.contextmanager
def whole_file(path):
    """A path to write to, under a temporary name in the same folder, which is made if it is not there.

    What lies there when the block ends is moved to `path`; after an exception or Ctrl-C nothing is left. So a file
    is never seen half written, and of several writers at once the last one wins.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    finally:
        with contextlib.suppress(OSError): part.unlink()


def write_whole(path, data):
    "Write bytes to a file that is whole or not there (`whole_file`)."
    with whole_file(path) as part: part.write_bytes(data)


FOLDER_ADVICE = "make room there, change its permissions, or name another folder in the environment variable COURSE_DATA"
PACKAGE = Path(__file__).resolve().parent.parent
CHECKOUT = (PACKAGE.parent if (PACKAGE.parent / "nbs").is_dir() and (PACKAGE.parent / "pyproject.toml").exists()
            else None)


def embedded(name):
    "The path of a small file of `data/`, which an installed package has in course_lib/embedded."
    return CHECKOUT / "data" / name if CHECKOUT else PACKAGE / "embedded" / name


def data_root(root=None):
    """The folder for data, and how to call it in a message: `(path, name)`.

    `root` if given, else `$COURSE_DATA` (a relative one counts from the checkout),
    else `data/` in a checkout, else a cache folder.
    """
    if root is not None: return Path(root).expanduser(), str(root)
    if named := os.environ.get("COURSE_DATA"):
        return (CHECKOUT or Path()) / Path(named).expanduser(), "$COURSE_DATA"
    if CHECKOUT: return CHECKOUT / "data", "data/"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "course_lib", "the cache folder"


MNIST_BYTES = {"train-images-idx3-ubyte.gz": 9_912_422, "train-labels-idx1-ubyte.gz": 28_881,
               "t10k-images-idx3-ubyte.gz": 1_648_877, "t10k-labels-idx1-ubyte.gz": 4_542}


def mnist_files(folder, download):
    "The four files of MNIST in torchvision's layout, fetched where they are missing: name -> path."
    from torchvision.datasets import MNIST  # takes as long to import as torch: only who needs it waits

    paths = {}
    for archive, md5 in MNIST.resources:
        path = paths[archive.split("-idx")[0]] = folder / "MNIST" / "raw" / archive.removesuffix(".gz")
        try:
            if path.exists(): continue
        except OSError as error:
            raise DownloadError(f"{path.parent} cannot be looked into ({error.strerror}): {FOLDER_ADVICE}") from error
        if not download: raise DownloadError(f"{path} is not there, and nothing was to be downloaded")
        problems = []
        for mirror in MNIST.mirrors:
            try: data = fetch(mirror + archive, md5, MNIST_BYTES[archive])
            except DownloadError as error: problems.append(str(error))
            else: break
        else: raise DownloadError(f"{path.name} is not there and cannot be downloaded: {'; '.join(problems)}")
        try: write_whole(path, gzip.decompress(data))
        except OSError as error:
            raise DownloadError(f"{path.parent} cannot be written to ({error.strerror}): {FOLDER_ADVICE}") from error
    return paths


def read_mnist(root=None, download=True):
    """MNIST (LeCun et al., 1998) from its files: the parts to train and to test, each uint8 images `[n, 28, 28]` and
    targets `[n]`.

    root: see `data_root`. Raises `DownloadError` where files are missing and cannot be had, `DamagedFileError` where
    one is there but damaged or another one's.
    """
    paths, parts = mnist_files(data_root(root)[0], download), []
    for part in ("train", "t10k"):
        images, targets = (read_idx(paths[f"{part}-{kind}"]) for kind in ("images", "labels"))
        if images.shape[1:] != (28, 28) or not len(images):
            raise DamagedFileError(f"{paths[f'{part}-images']} holds {list(images.shape)} "
                                   "instead of images [n, 28, 28].")
        if targets.shape != images.shape[:1] or targets.max() > 9:
            raise DamagedFileError(f"{paths[f'{part}-labels']} does not hold a digit from 0 to 9 "
                                   f"for each of {len(images):,} images.")
        parts.append((images, targets))
    train, test = parts
    if torch.equal(train[1], test[1]):
        raise DamagedFileError(f"{paths['train-labels']} and {paths['t10k-labels']} hold the same: one is a copy.")
    return train, test


def read_embedded(name, sha256):
    "The bytes of a file that comes with the course. Raises `DamagedFileError` where it is not as it came."
    path = embedded(name)
    try: data = path.read_bytes()
    except OSError as error:
        raise DamagedFileError(f"{path} came with the course and cannot be read: install it anew.") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedFileError(f"{path} came with the course and is not what it was: install it anew.")
    return data


DIGITS_SHA256 = "19762e197c6b643a59fcb94a34c3cb5625774e9ab3b5a71bb4c0701e65ed268e"


def read_digits():
    """The 1,797 digits that come with the course (Alpaydin and Kaynak, 1998) in MNIST's geometry, 8×8 enlarged to 20×20
    in the middle of 28×28: the parts to train and to test, the last 300, as `read_mnist` gives them.

    Raises `DamagedFileError` where the file is not as it came.
    """
    with np.load(io.BytesIO(read_embedded("digits.npz", DIGITS_SHA256))) as file:
        small, targets = (torch.from_numpy(file[key]) for key in ("images", "targets"))
    large = F.interpolate(small[:, None].float(), size=(20, 20), mode="bicubic", align_corners=False)[:, 0]
    images = F.pad((large / 16).clamp(0, 1) * 255, (4,) * 4).round().to(torch.uint8)
    return (images[:-300], targets[:-300]), (images[-300:], targets[-300:])


def read_images(root=None, download=True):
    """MNIST where it is on disk or can be downloaded, else the digits that come with the course: `(name, train, test, why)`.

    train, test: uint8 images `[n, 28, 28]` and targets `[n]`; why: in words, why it is these. Only absence falls back:
    a damaged file raises `DamagedFileError`.
    """
    try: return "mnist", *read_mnist(root, download), f"from {data_root(root)[1]}"
    except DownloadError as error:
        return "digits", *read_digits(), f"embedded, since {textwrap.shorten(str(error), 150)}"
