"""Files: where data lie, downloads that end, archives and IDX, and writing that never leaves half a file."""
import contextlib
import gzip
import hashlib
import http.client
import math
import os
import queue
import secrets
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import torch


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
    except queue.Empty: raise TimeoutError(f"timed out, no answer in {STALL_S} s") from None
    if isinstance(reply, Exception): raise reply
    return reply


def receive(url):
    "What is behind `url`, piece by piece; `DownloadError` when it does not come, breaks off or comes too slowly."
    start, received = time.monotonic(), 0
    try:
        with open_url(url) as reply:
            announced = reply.length  # None where the server does not say
            while part := reply.read1(1 << 18):
                received, elapsed = received + len(part), time.monotonic() - start
                if elapsed > TRICKLE_S and received < TRICKLE_BYTES_S * elapsed:
                    raise DownloadError(f"{url} sends next to nothing ({received:,} bytes in {elapsed:.0f} s)")
                yield part
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url} answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(f"{url} cannot be reached ({getattr(error, 'reason', error)})") from error
    if announced and received < announced:
        raise DownloadError(f"{url} broke off after {received:,} of {announced:,} bytes")


def fetch(url, md5):
    "The bytes behind `url`. Raises `DownloadError` as `receive` does, and when they are not those of the hash."
    data = b"".join(receive(url))
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
            try: data = fetch(mirror + archive, md5)
            except DownloadError as error: problems.append(str(error))
            else: break
        else: raise DownloadError(f"{path.name} is not there and cannot be downloaded: {'; '.join(problems)}")
        try: write_whole(path, gzip.decompress(data))
        except OSError as error:
            raise DownloadError(f"{path.parent} cannot be written to ({error.strerror}): {FOLDER_ADVICE}") from error
    return paths
