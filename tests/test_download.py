"""Downloads that go wrong: one clear error, and nothing half written.

The server that hangs would go on after 20 s; that the error says "timed out" shows that we gave up before.
"""
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from torchvision.datasets import MNIST

from course_lib.support import files
from course_lib.data import course_data, mnist
from course_lib.support.files import DownloadError

FAULTS = {"403": "403", "wrong bytes": "hash differs", "break off": "broke off after",
          "hang": "timed out, no answer in 3 s", "hang halfway": "timed out"}


def files_under(folder): return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_a_download_gives_torchvisions_layout(mirror, tmp_path, small_mnist):
    dls = mnist(tmp_path, device="cpu", batch_size=32)
    assert [len(part.x) for part in (dls.train, dls.valid, dls.test)] == [100, 20, 40]
    raw = tmp_path / "MNIST" / "raw"
    assert {p.name: p.read_bytes() for p in raw.iterdir()} == small_mnist
    n = len(mirror.requests)
    mnist(tmp_path, device="cpu")
    assert len(mirror.requests) == n == 4  # the second time nothing is fetched


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_leaves_nothing(mirror, tmp_path, fault):
    mirror.fault = fault
    with pytest.raises(DownloadError, match=FAULTS[fault]) as caught: mnist(tmp_path / "new")
    assert mirror.url in str(caught.value) and "train-images-idx3-ubyte" in str(caught.value)
    assert files_under(tmp_path) == []


@pytest.mark.parametrize("fault", ["endless", "endless, as announced"])
@pytest.mark.parametrize("missing", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_body_without_an_end_is_cut_off_at_the_known_size(mirror, tmp_path, small_mnist, fault, missing):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, data in small_mnist.items():
        if name != missing: (raw / name).write_bytes(data)
    mirror.fault = fault
    with pytest.raises(DownloadError, match="more than the [0-9,]+ bytes"): mnist(tmp_path)
    assert missing not in files_under(tmp_path) and len(files_under(tmp_path)) == 3
    # what was on its way when we stopped listening lies in the system's buffers
    assert mirror.sent <= files.MNIST_BYTES[f"{missing}.gz"] * (fault == "endless") + 2 ** 24


def test_a_body_of_just_the_known_size_is_taken(mirror, tmp_path, small_mnist, monkeypatch):
    sizes = {path.lstrip("/"): len(data) for path, data in mirror.archives.items()}
    monkeypatch.setattr(files, "MNIST_BYTES", sizes)
    mnist(tmp_path, device="cpu")
    monkeypatch.setattr(files, "MNIST_BYTES", {name: n - 1 for name, n in sizes.items()})
    with pytest.raises(DownloadError, match="more than the"): mnist(tmp_path / "again", device="cpu")


def test_a_trickle_is_given_up(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TRICKLE_S", 1)
    mirror.fault = "trickle"
    with pytest.raises(DownloadError, match="next to nothing"): mnist(tmp_path)
    assert files_under(tmp_path) == []


def test_a_name_look_up_that_hangs_is_given_up(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: mirror.stopped.wait(20) or [])
    with pytest.raises(DownloadError, match="timed out, no answer in 3 s"): mnist(tmp_path)


@pytest.mark.parametrize("error", [TimeoutError("timed out"), urllib.error.URLError(TimeoutError("timed out"))],
                         ids=repr)
def test_no_answer_is_said_alike_whoever_notices_it_first(mirror, tmp_path, monkeypatch, error):
    "Our clock and the socket's run equally long: on a busy machine either may be the first."
    def give_up(*args, **kwargs): raise error
    monkeypatch.setattr(urllib.request, "urlopen", give_up)
    with pytest.raises(DownloadError, match="timed out, no answer in 3 s"): mnist(tmp_path)


@pytest.mark.parametrize("url", ["http://[bad/", f"http://{'a' * 300}/", "no-address"])
def test_an_address_that_is_none(mirror, tmp_path, monkeypatch, url):
    monkeypatch.setattr(MNIST, "mirrors", [url])
    with pytest.raises(DownloadError, match="cannot be reached"): mnist(tmp_path)


def test_the_next_mirror_is_tried(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", mirror.url])
    assert mnist(tmp_path, device="cpu").name == "mnist"


def test_a_broken_download_resumes_with_what_is_there(mirror, tmp_path, small_mnist):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(small_mnist["train-images-idx3-ubyte"])
    mnist(tmp_path, device="cpu")
    assert len(mirror.requests) == 3


@pytest.mark.parametrize("fault", ["403", "wrong bytes", "break off"])
def test_course_data_falls_back_and_says_why(mirror, tmp_path, capsys, fault):
    mirror.fault = fault
    dls = course_data(tmp_path, device="cpu", n_train=50)
    said = capsys.readouterr().out
    assert dls.name == "digits" and len(dls.train.x) == 50
    assert said.count("\n") == 1 and "digits" in said and "cannot be downloaded" in said


def test_a_folder_that_cannot_be_written_to(mirror, tmp_path, capsys):
    (tmp_path / "file").write_text("I am no folder.")
    with pytest.raises(DownloadError, match="cannot be written to.*COURSE_DATA"): mnist(tmp_path / "file")
    assert course_data(tmp_path / "file", device="cpu").name == "digits"
    assert (tmp_path / "file").read_text() == "I am no folder."


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs to become somebody else")
def test_a_folder_of_somebody_else(mirror):
    script = f"""
import os, tempfile
from pathlib import Path
from torchvision.datasets import MNIST
MNIST.mirrors, MNIST.resources = {[mirror.url]!r}, {MNIST.resources!r}
from course_lib.data import mnist
from course_lib.support.files import DownloadError
with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    (Path(folder) / "MNIST").mkdir(mode=0o700)
    os.seteuid(65534)
    try: mnist(folder)
    except DownloadError as error: print(error)
    os.seteuid(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "cannot be looked into (Permission denied)" in done.stdout and "COURSE_DATA" in done.stdout, done.stderr


def test_many_writers_at_once(tmp_path):
    threads = [threading.Thread(target=lambda: [files.write_whole(tmp_path / "name", b"whole") for _ in range(50)])
               for _ in range(4)]
    failed = []
    before, threading.excepthook = threading.excepthook, failed.append
    try:
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    finally: threading.excepthook = before
    assert not failed and files_under(tmp_path) == ["name"]


def test_a_full_disk(mirror, tmp_path):
    "A limit on the size of files stands in for it: the write fails midway, with the operating system's own error."
    script = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
from torchvision.datasets import MNIST
MNIST.mirrors, MNIST.resources = {[mirror.url]!r}, {MNIST.resources!r}
from course_lib.data import mnist
from course_lib.support.files import DownloadError
try: mnist({str(tmp_path)!r})
except DownloadError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "cannot be written to" in done.stdout and "make room" in done.stdout, done.stderr
    assert files_under(tmp_path) == []


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(path, content):
        with open(path, "wb") as file: file.write(content[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(files.Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt): files.write_whole(tmp_path / "name", b"whole")
    assert files_under(tmp_path) == []


def test_a_file_is_seen_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new folder" / "name"
    with files.whole_file(path) as part:
        part.write_bytes(b"half")
        assert not path.exists() and part.parent == path.parent  # on one disk: moving it takes no copy
        part.write_bytes(b"whole")
    assert path.read_bytes() == b"whole" and files_under(tmp_path) == ["name"]
    for error in (KeyboardInterrupt, OSError):
        with pytest.raises(error), files.whole_file(path) as part:
            part.write_bytes(b"half")
            raise error
        assert path.read_bytes() == b"whole" and files_under(tmp_path) == ["name"]
    with pytest.raises(FileNotFoundError), files.whole_file(path): pass  # nothing was written
    assert path.read_bytes() == b"whole"


def test_without_download_absence_is_said(mirror, tmp_path):
    with pytest.raises(DownloadError, match="not there"): mnist(tmp_path, download=False)
    assert mirror.requests == []
