"""Shared by all tests: a server on this machine that misbehaves on demand, and a small MNIST for it to serve."""
import contextlib
import gzip
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST


@pytest.hookimpl(tryfirst=True)  # before `-m` picks
def pytest_collection_modifyitems(items):
    "A test whose parameter `device` is cuda is marked `gpu`; its twin on the CPU `gpu_twin`. tools/gpu.py runs them."
    def device(item): return getattr(item, "callspec", None) and str(item.callspec.params.get("device"))
    on_gpu = {item.function for item in items if device(item) == "cuda"}
    for item in items:
        if device(item) == "cuda": item.add_marker("gpu")
        elif device(item) == "cpu" and item.function in on_gpu: item.add_marker("gpu_twin")


@pytest.fixture
def one_thread():
    "In nets of a few weights a second thread costs ten times what it brings."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def idx(array):
    "An array of bytes in MNIST's file format."
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture(scope="session")
def small_mnist():
    "MNIST's four files with 120 and 40 random images: name -> bytes."
    rng = np.random.default_rng(0)
    files = {}
    for part, n in (("train", 120), ("t10k", 40)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx((np.arange(n) % 10).astype(np.uint8))
    return files


@pytest.fixture
def mnist_folder(tmp_path, small_mnist):
    "A data folder that holds the small MNIST."
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, data in small_mnist.items(): (raw / name).write_bytes(data)
    return tmp_path / "data"


class Mirror:
    "A mirror of MNIST on loopback; `fault` says how it misbehaves."
    def __init__(self, files):
        self.archives = {f"/{name}.gz": gzip.compress(data, mtime=0) for name, data in files.items()}
        self.fault, self.requests, self.sent, self.stopped = None, [], 0, threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self): mirror.answer(self)
            def log_message(self, *args): pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        self.requests.append(request.path)
        data = self.archives[request.path]
        if self.fault == "403": return request.send_error(403)
        if self.fault == "hang": return self.stopped.wait(20)
        if self.fault in ("endless", "endless, as announced"): return self.go_on(request)
        if self.fault == "wrong bytes": data = b"<html>Please log in to the hotel's network.</html>"
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if self.fault == "trickle":
            for byte in data:
                request.wfile.write(bytes([byte]))
                if self.stopped.wait(.2): return
        elif self.fault == "hang halfway":
            request.wfile.write(data[:len(data) // 2])
            request.wfile.flush()
            self.stopped.wait(20)
        else: request.wfile.write(data[:len(data) // 2] if self.fault == "break off" else data)

    def go_on(self, request, n_bytes=2 ** 26):
        "Zeros until nobody listens, at most 64 MB: a test that fails shall not fill this machine's memory."
        request.send_response(200)
        if self.fault == "endless, as announced": request.send_header("Content-Length", str(2 ** 40))
        request.end_headers()
        with contextlib.suppress(OSError):
            while self.sent < n_bytes and not self.stopped.is_set():
                request.wfile.write(bytes(2 ** 16))
                self.sent += 2 ** 16

    def close(self):
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def mirror(small_mnist, monkeypatch):
    "torchvision's list of mirrors and hashes, pointed at this machine."
    server = Mirror(small_mnist)
    hashes = {path.lstrip("/"): hashlib.md5(data).hexdigest() for path, data in server.archives.items()}
    for name in ("no_proxy", "NO_PROXY"): monkeypatch.setenv(name, "127.0.0.1")  # also behind somebody's proxy
    monkeypatch.setattr(MNIST, "mirrors", [server.url])
    monkeypatch.setattr(MNIST, "resources", [(name, hashes[name]) for name, _ in MNIST.resources])
    yield server
    server.close()
