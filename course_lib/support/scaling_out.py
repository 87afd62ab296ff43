"""What stands around chapter 17's few lines: starting ranks and ending them, their errors in words, messages counted."""
import ast
import contextlib
import hashlib
import importlib
import inspect
import io
import json
import linecache
import math
import os
import pickle
import re
import select
import shutil
import signal
import subprocess
import symtable
import sys
import tempfile
import textwrap
import time
import traceback
import types
import warnings
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from .arguments import a_path, checked, refuse
from .checks import check_hyper, positive_int, shorten, whole_from_0
from .files import PACKAGE, write_whole
from .gradients import HALVES, by_kind, parameters_of
from .saving import pack, unpack
from .state import loader_state, set_loader_state
from .tensors import batch_size, default_device, keep_freed_memory, map_tensors

NAMES = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"


class RankError(RuntimeError): "A rank has failed, or waits for one that has."


# Who am I, and how many are we?

@dataclass(frozen=True)
class Group:
    "What `distributed` gives. rank: from 0; size: the number of ranks; device: of this rank."
    rank: int
    size: int
    device: torch.device


def torchrun_place():
    "`(rank, size, local rank, local size)` from torchrun's environment, or None outside of it. `RuntimeError` for half of it."
    found = {name: os.environ[name] for name in NAMES if name in os.environ}
    if "RANK" not in found or "WORLD_SIZE" not in found: return None
    try: place = {name: int(value) for name, value in found.items()}
    except ValueError: raise RuntimeError(f"RANK and the others must be whole numbers in the environment; got {found}.") from None
    rank, size = place["RANK"], place["WORLD_SIZE"]
    if not 0 <= rank < size: raise RuntimeError(f"RANK must be from 0 to WORLD_SIZE − 1 in the environment; got {found}.")
    return rank, size, place.get("LOCAL_RANK", rank), place.get("LOCAL_WORLD_SIZE", size)


def own_device(local_rank, local_size):
    "A GPU of its own for each local rank where there are enough, with nccl; else the CPU with gloo: `(device, backend)`."
    if torch.cuda.device_count() >= local_size and dist.is_nccl_available():
        return torch.device("cuda", local_rank), "nccl"
    return torch.device("cpu"), "gloo"


def above_0_s(name, value):
    value = check_hyper(name, value)
    if isinstance(value, torch.Tensor) or not value > 0: refuse(name, "a number of seconds above 0", value)
    return value


def join(place, timeout):
    "Make the process group of torchrun's environment; the `Group` of this rank."
    if not dist.is_available(): raise RuntimeError("This build of PyTorch has no torch.distributed.")
    rank, size, local_rank, local_size = place
    device, backend = own_device(local_rank, local_size)
    options = {}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        options["device_id"] = device
    timeout = timedelta(seconds=timeout)
    dist.init_process_group(backend, timeout=timeout, **meeting_place(rank, size, local_size, timeout), **options)
    return Group(rank, size, device)


def meeting_place(rank, size, local_size, timeout):
    """Where the ranks find each other, for init_process_group. torchrun keeps one store over its restarts, where the addresses of
    ranks that are dead still stand, and new ranks can wait for them; so on one host each attempt writes under a name of its own.
    (On several hosts the attempts' numbers differ: there, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each attempt a new store.)"""
    attempt, port = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("MASTER_PORT", "")
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and port.isdigit() and local_size == size
    if attempt == "0" or not shared: return {}
    store = dist.TCPStore(os.environ.get("MASTER_ADDR", "localhost"), int(port), size, is_master=False, timeout=timeout)
    return {"store": dist.PrefixStore(f"attempt_{attempt}", store), "rank": rank, "world_size": size}


def joined():
    "The `Group` of a process group that somebody has made already."
    on_gpu = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return Group(dist.get_rank(), dist.get_world_size(), device)


def alone(): return Group(0, 1, default_device())


def n_ranks(): return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def my_rank(): return dist.get_rank() if n_ranks() > 1 else 0


# Messages

@contextlib.contextmanager
def in_words():
    "An error of a message that does not come through, as `RankError`."
    try: yield
    except RuntimeError as error:
        if isinstance(error, RankError): raise
        rank = my_rank()
        raise RankError(f"Rank {rank} could not exchange a message with the other ranks: one of them has ended or is stuck "
                        f"(its own output says why), or they do not send the same. {first_line(error)}") from error


def first_line(error): return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def ring(n_bytes, n): return 2 * (n - 1) * n_bytes // n


def in_one(tensors):
    "Tensors of one device and dtype as one vector, to send as one message."
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def parts_of(message, tensors):
    "A message cut into pieces of the shapes of these tensors."
    return [part.view_as(tensor) for part, tensor in zip(message.split([tensor.numel() for tensor in tensors]), tensors)]


def sum_in_place(tensors, dtype=None):
    """Replace tensors on every rank by their sums over the ranks; one message for each device and dtype. Gives the bytes that
    a rank sends for it in a ring. dtype: what is sent, by default the tensors' own."""
    n, sent = n_ranks(), 0
    if n == 1: return sent
    with torch.no_grad():
        for same in by_kind(tensors):
            message = in_one(same).to(dtype)
            with in_words(): dist.all_reduce(message)
            sent += ring(message.nbytes, n)
            for tensor, part in zip(same, parts_of(message, same)): tensor.detach().copy_(part)
    return sent


def from_rank_0(tensors):
    "Replace tensors on every rank by those of rank 0; one message for each device and dtype."
    with torch.no_grad(), in_words():
        for same in by_kind(tensors):
            message = in_one(same)
            dist.broadcast(message, 0)
            if my_rank() == 0: continue
            for tensor, part in zip(same, parts_of(message, same)): tensor.detach().copy_(part)


def model_tensors(model): return [*model.parameters(), *model.buffers()]


def check_alike(learn):
    "`ValueError` on every rank where the ranks have different models, rates, or numbers of batches or epochs."
    named = [*learn.model.named_parameters(), *learn.model.named_buffers()]
    mine = {"models": [(name, tuple(t.shape), str(t.dtype)) for name, t in named], "numbers of epochs": learn.n_epoch,
            "numbers of batches": learn.n_iter, "learning rates": [float(group["lr"]) for group in learn.opt.param_groups]}
    all_of_them = [None] * n_ranks()
    with in_words(): dist.all_gather_object(all_of_them, mine)
    for what, first in all_of_them[0].items():
        for rank, others in enumerate(all_of_them):
            if others[what] == first: continue
            pair = first, others[what]
            if what == "models": pair = next((two for two in zip(*pair) if two[0] != two[1]), [f"{len(side)} tensors" for side in pair])
            raise ValueError(f"The ranks have different {what}: rank 0 has {pair[0]}, rank {rank} has {pair[1]}. They must be the same.")


def is_over(cancelled):
    "Has a pass come to its end, or been cancelled by a callback, and not broken off by an error?"
    return cancelled is None or hasattr(cancelled, "skips")


PLACES = ("takes a step", "meets the others", "has ended a training", "has ended a validation", "computes gradients",
          "makes no step", "has failed")


class OverRanks:
    """What callbacks over ranks inherit: all begin with rank 0's weights, rows are counted, messages too, and results are
    averages over all ranks. On one rank nothing happens.

    `.sent`: bytes that this rank has sent so far, if messages go round in a ring; `.rows`: its rows since the last step.
    """
    in_lr_find = False
    sent, rows = 0, 0

    def __init__(self, dtype=None):
        if dtype is not None and dtype not in HALVES: refuse("dtype", "torch.float16, torch.bfloat16 or None", dtype)
        self.dtype, self.sent, self.rows = dtype, 0, 0

    def all_sum(self, tensors, dtype=None): self.sent += sum_in_place(tensors, dtype)

    def post(self, message):
        "Sum a message over the ranks, and do not wait: the work that is under way."
        self.sent += ring(message.nbytes, n_ranks())
        with in_words(): return dist.all_reduce(message, async_op=True)

    def tell(self, place, values=(), device="cpu"):
        "Some numbers whose sums all ranks shall know, and where this one is in the loop; `hear` waits for those of the others."
        n = n_ranks()
        message = torch.zeros(n + self.n_values, dtype=torch.float64)
        message[my_rank()] = PLACES.index(place)
        message[n:n + len(values)] = torch.tensor(values, dtype=torch.float64)
        message = message.to(device)
        return message, self.post(message), len(values)

    def hear(self, message, work, n_sums):
        "The sums over the ranks, a list of floats. `RankError` on all of them unless they are all at the same place."
        with in_words(): work.wait()
        n = n_ranks()
        places, sums = message[:n].int().tolist(), message[n:n + n_sums].tolist()
        if len({*places}) > 1:
            said = ", ".join(f"rank {rank} {PLACES[at]}" for rank, at in enumerate(places))
            raise RankError(f"The ranks are not at the same place: {said}. Has a callback stopped one of them, or has its loader "
                            "fewer batches? All ranks must make the same steps.")
        return sums

    def announce(self, place, values=(), device="cpu"): return self.hear(*self.tell(place, values, device))

    def mean_over_ranks(self, tensors, dtype=None):
        "Replace tensors by their mean over ranks, in place."
        n = n_ranks()
        for tensor in tensors: tensor.detach().div_(n)
        self.all_sum(tensors, dtype)

    def before_fit(self, learn):
        self.rows = 0
        self.n_values = 2 + max(len(parameters_of(learn.opt)), len(learn.metrics))  # room for what is announced
        if n_ranks() == 1: return
        check_alike(learn)
        from_rank_0(model_tensors(learn.model))

    def after_loss(self, learn):
        "A rank without rows takes part with a loss of 0, since the mean of nothing is NaN."
        if n_ranks() > 1 and not batch_size(learn.yb): learn.loss = 0. * learn.pred.sum()

    def after_backward(self, learn): self.rows += batch_size(learn.yb)

    def after_step(self, learn):
        if learn.cancelled is None: self.rows = 0

    def after_batch(self, learn):
        if learn.cancelled and learn.has_grad: self.rows = 0  # the loop drops the gradient

    def my_share(self, params):
        """This rank's share of the rows of all ranks since the last step, and the gradients of those parameters that have one
        on any rank, 0 where this rank has none."""
        has = [float(p.grad is not None) for p in params]
        total, *found = self.announce("takes a step", [self.rows, *has], params[0].device if params else "cpu")
        for p, anywhere in zip(params, found):
            if not anywhere: continue
            if p.grad is None: p.grad = torch.zeros_like(p)
            elif not self.rows: p.grad.zero_()  # the mean of nothing, which others may have made NaN
            elif p.grad.is_sparse: p.grad = p.grad.to_dense()
        return (self.rows / total if total else 0.), [p.grad for p in params if p.grad is not None]

    def before_validate(self, learn):
        if n_ranks() > 1: self.mean_over_ranks([b for b in learn.model.buffers() if b.is_floating_point()])

    def average_results(self, learn):
        "Losses and metrics of this pass over all ranks, weighed by rows."
        if n_ranks() == 1 or not is_over(learn.cancelled): return
        averages = learn.averages
        averages.fold()
        own = averages.sums.tolist() if averages.n else [0.] * len(averages.names)
        *sums, n = self.announce("has ended a training" if learn.training else "has ended a validation", [*own, averages.n],
                                 learn.device or "cpu")
        averages.sums, averages.n = torch.tensor(sums, dtype=torch.float64), int(n)
        learn._sum_up()

    def after_train(self, learn): self.average_results(learn)
    def after_validate(self, learn): self.average_results(learn)


# Gradients on their way while backward runs

BUCKET_BYTES = 2 ** 20


class Bucket:
    "Gradients that travel in one message. `.missing`: those that backward has not finished; `.work`: the message on its way."
    def __init__(self, params): self.params, self.missing, self.message, self.work, self.versions = params, set(), None, None, None

    def open(self): self.missing, self.work, self.message = {*self.params}, None, None

    def pack(self, share, dtype=None):
        "The gradients times this rank's share, as one vector to send; 0 where there is none, or where this rank has no row."
        with torch.no_grad():
            grads = [torch.zeros_like(p) if p.grad is None or not share else p.grad.to_dense() for p in self.params]
            self.message = in_one(grads).mul_(share).to(dtype)
        self.versions = self.state()
        return self.message

    def state(self): return [(id(p.grad), None if p.grad is None else p.grad._version) for p in self.params]

    def is_stale(self): return self.versions != self.state()

    def unpack(self, anywhere):
        "Copy what has arrived into the gradients of those parameters that have one on any rank."
        with in_words(): self.work.wait()
        with torch.no_grad():
            for p, part in zip(self.params, parts_of(self.message, self.params)):
                if p not in anywhere: continue
                if p.grad is None or p.grad.is_sparse: p.grad = torch.empty_like(p)
                p.grad.copy_(part)


def buckets_of(params):
    "Buckets of about so many bytes, the last parameters first, since backward finishes these first; one device and dtype each."
    buckets = []
    for same in by_kind(params[::-1]):
        size = math.inf
        for p in same:
            if size >= BUCKET_BYTES:
                buckets.append([])
                size = 0
            buckets[-1].append(p)
            size += p.nbytes
    return [Bucket(params) for params in buckets]


class InBuckets(OverRanks):
    """What `AverageGradients` inherits: the gradients' buckets, and what must be true of their messages. All ranks send the same
    buckets in the same order; where a batch ends without a step, or fails, those that have not left are sent as well.

    A subclass has `ready(p)`, which backward calls when p.grad is finished, and `send(bucket)`.
    """
    def __init__(self, dtype=None):
        super().__init__(dtype)
        self.forget()

    def forget(self): self.params, self.hooks, self.buckets, self.waiting, self.begun, self.told = [], [], [], deque(), False, None

    def before_fit(self, learn):
        super().before_fit(learn)
        self.forget()

    def after_fit(self, learn):
        for hook in self.hooks: hook.remove()
        self.forget()

    def open_buckets(self, learn, n=0):
        "All ranks tell their rows, n more than those counted. Then all buckets wait for their gradients."
        params = with_gradients(learn.opt)
        if [*map(id, params)] != [*map(id, self.params)]:
            self.after_fit(learn)
            self.params, self.buckets = params, buckets_of(params)
            self.bucket_of = {p: bucket for bucket in self.buckets for p in bucket.params}
            self.hooks = [p.register_post_accumulate_grad_hook(self.ready) for p in params]
        for bucket in self.buckets: bucket.open()
        self.my_rows, self._share, self.waiting, self.begun = self.rows + n, None, deque(self.buckets), True
        self.told = self.tell("computes gradients", [self.my_rows], learn.device or "cpu")

    @property
    def share(self):
        "This rank's share of all rows; the first bucket has to wait for it, and none leaves unless all ranks compute gradients."
        if self.told:
            told, self.told = self.told, None
            total, = self.hear(*told)
            self._share = self.my_rows / total if total else 0.
        return self._share

    def send_the_rest(self, learn, place="takes a step"):
        """What has not left yet, such as gradients of parameters that took no part. Gives the parameters that have a gradient on any
        rank. What somebody has changed since it left, on any rank, is sent once more."""
        self.begun = False
        while self.waiting: self.send(self.waiting.popleft())
        stale = any(bucket.is_stale() for bucket in self.buckets)
        has = [float(p.grad is not None) for p in self.params]
        stale, *found = self.announce(place, [stale, *has], learn.device or "cpu")
        if stale:
            for bucket in self.buckets:
                with in_words(): bucket.work.wait()
                self.send(bucket)
        return {p for p, n in zip(self.params, found) if n}

    def give_up(self, learn):
        "A batch that ends without a step, here and on all ranks; after an error the others are told, and it does not wait for them."
        if is_over(learn.cancelled):
            self.send_the_rest(learn, "makes no step")
            for bucket in self.buckets:
                with in_words(): bucket.work.wait()
            return
        self.begun = False
        if self.told: self.told, self._share = None, 0.
        if self._share is None: return  # the ranks are not at the same place
        with contextlib.suppress(RuntimeError):
            while self.waiting: self.send(self.waiting.popleft())
            self.tell("has failed", device=learn.device or "cpu")

    def after_batch(self, learn):
        try:
            if self.begun: self.give_up(learn)
        finally: super().after_batch(learn)


def with_gradients(opt): return [p for p in parameters_of(opt) if p.requires_grad]


def floats_of(model): return [t.detach() for t in model_tensors(model) if t.is_floating_point()]


# Data

def rows_of(x, rank, size):
    "This rank's rows of a batch: of tensors, also in tuples, lists and dicts; the ranks' numbers of rows differ by one at most."
    return map_tensors(lambda tensor: tensor.tensor_split(size)[rank], x)


def draws_its_own_order(loader):
    "Is it a torch DataLoader that shuffles without a generator?"
    sampler = getattr(loader, "sampler", None) if isinstance(loader, DataLoader) else None
    return isinstance(sampler, RandomSampler) and sampler.generator is None and loader.generator is None


class CheckedShards:
    "What `ShardedLoader` inherits: checks, the length, the loader's own attributes."
    def __init__(self, loader, rank, size):
        if not hasattr(type(loader), "__iter__") or not hasattr(type(loader), "__len__") or isinstance(loader, (str, dict)):
            refuse("loader", "a loader of batches (xb, yb) that has a length", loader)
        self.loader, self.rank, self.size = loader, whole_from_0("rank", rank), positive_int("size", size)
        if not len(loader): raise ValueError(f"loader gives no batch: its length is 0. Got {shorten(loader)}.")
        if self.rank >= self.size: refuse("rank", f"from 0 to size − 1, which is {self.size - 1}", rank)
        if self.size > 1 and draws_its_own_order(loader):
            raise ValueError("loader: this DataLoader takes its order from the random numbers of its own process, so each rank would "
                             "cut other batches, and rows would be seen twice or never. Give it the same generator on all ranks: "
                             "DataLoader(…, shuffle=True, generator=torch.Generator().manual_seed(0)).")

    def __len__(self): return len(self.loader)

    @property
    def epoch(self): return self.loader.epoch

    @epoch.setter
    def epoch(self, epoch): self.loader.epoch = epoch

    def __repr__(self): return f"{type(self).__name__}: rank {self.rank} of {self.size}, of {self.loader!r}"


# Starting ranks, and ending them

def environment():
    "For the processes of ranks: they find course_lib where this one does, and messages between them stay on this machine."
    paths = [str(PACKAGE.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    own = {name: value for name, value in os.environ.items() if name not in (*NAMES, "MASTER_ADDR", "MASTER_PORT")
           and not name.startswith("TORCHELASTIC_")}
    loopback = next((name for name in ("lo", "lo0") if name in psutil.net_if_addrs()), None)
    return {**({"GLOO_SOCKET_IFNAME": loopback} if loopback else {}), "OMP_NUM_THREADS": "1", **own,
            "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "NCCL_SOCKET_IFNAME": own.get("NCCL_SOCKET_IFNAME", loopback or "")}


def children_of(process):
    try: return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess: return []


def wait_and_see(process, timeout, started):
    "Wait for a process, and collect all that it starts in a set; its exit status, None after the timeout."
    end = time.monotonic() + timeout
    while (left := end - time.monotonic()) > 0:
        started.update(children_of(process))
        with contextlib.suppress(subprocess.TimeoutExpired): return process.wait(min(.1, left))
    return None


def end_all(process, started=()):
    "End a process and all that it has started: politely, and after a second for certain."
    family = [*{*children_of(process), *started}]
    with contextlib.suppress(psutil.NoSuchProcess): family.append(psutil.Process(process.pid))
    for member in reversed(family):
        with contextlib.suppress(psutil.NoSuchProcess): member.terminate()
    _, alive = psutil.wait_procs(family, timeout=1)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess): member.kill()
    psutil.wait_procs(alive, timeout=5)
    with contextlib.suppress(subprocess.TimeoutExpired): process.wait(5)


def texts_of(folder, name):
    "What ranks have written: (attempt, rank) -> text, in that order."
    found = {}
    for path in folder.glob(f"*/attempt_*/*/{name}.log"):
        found[int(path.parts[-3].removeprefix("attempt_")), int(path.parts[-2])] = path.read_text(errors="replace")
    return dict(sorted(found.items()))


def labelled(texts):
    "Each line with the rank that wrote it, and after a restart the number of that."
    return "".join(f"[rank {rank}{f', restart {attempt}' if attempt else ''}] {line}\n"
                   for (attempt, rank), text in texts.items() for line in text.splitlines())


def root_cause(said, errors):
    """The rank that failed first and how, from torchrun's report; (None, '') where it has none. One that was killed, or has an
    error of its own, goes before those that only miss a message of it. errors: rank -> what it wrote."""
    pattern = r"rank\s*: (\d+) .*\n\s*exitcode\s*: (-?\d+)"
    failed = re.findall(pattern, said.rpartition("Root Cause")[2]) + re.findall(pattern, said)
    if not failed: return None, ""

    def guilt(pair):
        killed = int(pair[1]) < 0 and -int(pair[1]) != signal.SIGTERM
        return 0 if killed else 2 if MISSES_OTHERS.search(last_words(errors.get(int(pair[0]), ""), 1)) else 1
    rank, code = map(int, min(failed, key=guilt))
    try: how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    except ValueError: how = f"was ended by signal {-code}"
    return rank, how


MISSES_OTHERS = re.compile("RankError|gloo|nccl|NCCL|peer|Timed out|timed out")


def last_words(text, n=12):
    "The end of what a rank wrote as errors, without what torch says in passing."
    lines = [line for line in text.splitlines() if line.strip() and not re.match(r"\[[WI]\d{3,}", line)]
    return textwrap.indent("\n".join(lines[-n:]), "    ")


def run_torchrun(script, n, args, timeout, max_restarts):
    "Run a script on n ranks and wait; what they printed, each line with its rank. `RankError` where one fails, nothing stays behind."
    with tempfile.TemporaryDirectory(prefix="ranks-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "--max-restarts",
                   str(max_restarts), "--monitor-interval", "0.1", "--redirects", "3", "--log-dir", folder, str(script), *map(str, args)]
        with open(Path(folder) / "said", "w+") as said:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment() | {"TMPDIR": folder},
                                       start_new_session=True)  # what torch leaves in TMPDIR goes with the folder
            started = set()  # torchrun itself may be killed, and nobody would know its ranks then
            try: status = wait_and_see(process, timeout, started)
            finally: end_all(process, started)
            said.seek(0)
            report = said.read()
        errors, output = texts_of(Path(folder), "stderr"), labelled(texts_of(Path(folder), "stdout"))
    if status == 0: return output
    last = max((attempt for attempt, _ in errors), default=0)
    last_errors = {r: text for (attempt, r), text in errors.items() if attempt == last and text.strip()}
    rank, how = root_cause(report, last_errors)
    script = Path(script).name
    if status is None: head = f"{script} on {n} ranks had not ended after {timeout:g} s, and was stopped."
    elif rank is not None: head = f"{script}: rank {rank} of {n} {how}" + (f", {last} restarts later." if last else ".")
    else: head = f"{script} on {n} ranks ended with exit status {status}."
    parts = [f"  rank {r} said:\n{last_words(last_errors[r])}" for r in sorted(last_errors, key=lambda r: (r != rank, r))]
    if not parts and rank is None: parts = [last_words(report)]
    raise RankError("\n".join([head, *parts, *(["  Printed before:\n" + textwrap.indent(output, "    ")] if output else [])]))


def a_script(name, value):
    path = Path(a_path(name, value))
    if not path.is_file(): raise ValueError(f"{name}: there is no file {str(value)!r}. Give the path of a Python script.")
    return path


# Ranks that stay alive, and run functions of a notebook

class FastPickler(pickle.Pickler):
    "Plain tensors go as numpy arrays, which takes a tenth of the time."
    def reducer_override(self, x):
        plain = type(x) is torch.Tensor and x.device.type == "cpu" and x.layout is torch.strided and not x.requires_grad
        if not plain or x.dtype in (torch.bfloat16, torch.float16) or x.is_quantized or x.is_conj() or x.is_neg(): return NotImplemented
        try: return torch.from_numpy, (x.numpy(),)
        except (TypeError, RuntimeError): return NotImplemented


def pickled(x):
    file = io.BytesIO()
    FastPickler(file, 5).dump(x)
    return file.getvalue()


class Parcel:
    """Values on their way to the process of a rank: `.names`: name -> (kind, what), in order: sources of a notebook's functions
    and classes, and what these need; `pack(value)` gives bytes in which such functions stand by their names."""
    def __init__(self, namespace): self.namespace, self.names = namespace, {}

    def pack(self, value):
        file = io.BytesIO()
        pickler = FastPickler(file, 5)
        pickler.persistent_id = lambda x: self.add_source(x) if is_of_notebook(x) else None
        try: pickler.dump(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"{shorten(value)} cannot be sent to another process: {first_line(error)}.") from None
        return file.getvalue()

    def add(self, name, value, namespace):
        "What a source calls `name`."
        if name in self.names: return
        if isinstance(value, types.ModuleType): self.names[name] = "module", value.__name__
        elif is_of_notebook(value): self.add_source(value, name, namespace)
        elif inspect.isfunction(value) and (place := importable(value)): self.names[name] = "attribute", place
        else: self.names[name] = "value", self.pack(value)

    def add_source(self, value, name=None, namespace=None):
        "A function or class of the notebook, after what it needs; gives its name."
        name, namespace = name or value.__name__, namespace or self.namespace
        if name in self.names: return name
        if value.__name__ == "<lambda>": refuse(name, "a function made by def, whose source can be sent", value)
        source = source_of(value)
        self.names[name] = None  # so that one that calls itself is met once
        if inspect.isfunction(value): namespace = namespace | value.__globals__ | inspect.getclosurevars(value).nonlocals
        for needed in globals_in(source):
            if needed in namespace: self.add(needed, namespace[needed], namespace)
        del self.names[name]
        self.names[name] = "source", (value.__name__, source)
        return name


def globals_in(source):
    "The names that a source takes from the module around it, in alphabetical order; not those of its own variables."
    tables, names = [symtable.symtable(source, "<source>", "exec")], set()
    for table in tables:
        tables += table.get_children()
        at_top = table.get_type() == "module"
        names |= {s.get_name() for s in table.get_symbols() if (s.is_referenced() and not s.is_assigned() if at_top else s.is_global())}
    return sorted(names)


def source_of(value):
    "The source of a function or class; of a notebook's class too, for which `inspect` finds no file."
    try: return textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError):
        codes = [f.__code__ for f in map(inspect.unwrap, filter(inspect.isfunction, vars(value).values()))]
        for code in codes:
            lines = linecache.getlines(code.co_filename)
            for node in ast.walk(ast.parse("".join(lines))):
                if isinstance(node, ast.ClassDef) and node.name == value.__name__:
                    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                    return textwrap.dedent("".join(lines[first - 1:node.end_lineno]))
    raise ValueError(f"The source of {value!r} is not to be found, so it cannot be sent to another process.")


def importable(x):
    "The module and the name under which a function or class is to be found there; None for those of a notebook."
    module = sys.modules.get(x.__module__)
    if module is None or x.__module__ == "__main__": return None
    return next(((x.__module__, name) for name, value in vars(module).items() if value is x), None)


def is_of_notebook(x):
    "A function or class that no import finds."
    if not inspect.isfunction(x) and not inspect.isclass(x): return False
    if x.__module__ != "__main__" and "<locals>" not in x.__qualname__ and x.__name__ != "<lambda>": return False
    return importable(x) is None


def without_known(names, known):
    "A parcel's names, in which large values that were sent before stand as their digest; known: the digests so far, a set."
    lighter = {}
    for name, (kind, what) in names.items():
        if kind == "value" and len(what) > 100_000:
            digest = hashlib.blake2b(what, digest_size=16).digest()
            kind, what = "large", (digest, None if digest in known else what)
            known.add(digest)
        lighter[name] = kind, what
    return lighter


def open_parcel(names, packed, large):
    "In the process of a rank: the values. large: digest -> bytes, what has come before."
    namespace = {"__name__": "__ranks__"}

    def values(data):
        unpickler = pickle.Unpickler(io.BytesIO(data))
        unpickler.persistent_load = namespace.__getitem__
        return unpickler.load()

    for name, (kind, what) in names.items():
        if kind == "module": namespace[name] = importlib.import_module(what)
        elif kind == "attribute": namespace[name] = getattr(importlib.import_module(what[0]), what[1])
        elif kind == "value": namespace[name] = values(what)
        elif kind == "large":
            if what[1] is not None: large[what[0]] = what[1]
            namespace[name] = values(large[what[0]])
        else:
            made, source = what
            linecache.cache[f"<{made}>"] = len(source), None, source.splitlines(keepends=True), f"<{made}>"
            exec(compile(source, f"<{made}>", "exec"), namespace)
            namespace[name] = namespace[made]
    return values(packed)


def send(pipe, message):
    data = pickled(message)
    pipe.write(len(data).to_bytes(8, "big"))
    pipe.write(data)
    pipe.flush()


def receive(pipe):
    head = pipe.read(8)
    return pickle.loads(pipe.read(int.from_bytes(head, "big"))) if len(head) == 8 else None


def serve(folder, rank, size, timeout):
    "The process of one rank: it joins the others, runs what comes in, and ends when nobody is there to send any more."
    inbox, outbox = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what prints past Python goes to stderr
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size,
                            timeout=timedelta(seconds=timeout))
    send(outbox, ("ready", None, ""))
    large = {}
    while (job := receive(inbox)) is not None:
        said, (paths, names, packed) = io.StringIO(), job
        sys.path[:] = paths
        try:
            function, args, options = open_parcel(names, packed, large)
            with contextlib.redirect_stdout(said): result = function(*args, **options)
            send(outbox, ("result", result, said.getvalue()))
        except BaseException as error:
            send(outbox, ("error", f"{type(error).__name__}: {error}\n{where(error)}".strip(), said.getvalue()))
    shutil.rmtree(folder, ignore_errors=True)  # whoever started it may be gone


def where(error):
    "The innermost line of a notebook's function in a traceback."
    places = [f"    in {frame.name}, line {frame.lineno} of {frame.filename.strip('<>')}" for frame in traceback.extract_tb(error.__traceback__)
              if frame.filename.startswith("<")]
    return places[-1] if places else ""


class Ranks:
    """Processes that stay alive, and run the functions of a notebook: `ranks(function, *args, **options)` gives the results, one for each
    rank, and prints what they printed.

    n: how many; timeout: seconds that one waits for a message. They start in the background, without a port, and end with
    this process. Errors of a rank come out as `RankError`; then all are ended, and the next call starts new ones.
    """
    @checked(n=positive_int, timeout=above_0_s)
    def __init__(self, n=2, timeout=30.):
        self.n, self.timeout, self.processes = n, timeout, []
        self.start()

    def start(self):
        self.folder, self.ready, self.known = tempfile.mkdtemp(prefix="ranks-"), False, set()
        code = "import sys, course_lib.support.scaling_out as s; s.serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))"
        self.processes = []
        for rank in range(self.n):
            with open(Path(self.folder) / f"stderr{rank}", "w") as errors:
                self.processes.append(subprocess.Popen(
                    [sys.executable, "-c", code, self.folder, str(rank), str(self.n), str(self.timeout)], stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, stderr=errors, env=environment() | {"RANK": str(rank), "WORLD_SIZE": str(self.n), "TMPDIR": self.folder},
                    start_new_session=True))

    def wait_until_ready(self):
        if not self.processes: self.start()
        if self.ready: return
        self.collect(60.)
        self.ready = True

    def collect(self, patience):
        "One message of each rank. If one fails, the others get 2 more seconds; then all are ended and `RankError` is raised."
        waiting, found, end = dict(enumerate(self.processes)), {}, time.monotonic() + patience
        while waiting:
            ready, _, _ = select.select([p.stdout for p in waiting.values()], [], [], max(0., end - time.monotonic()))
            if not ready: break
            for rank in [rank for rank, p in waiting.items() if p.stdout in ready]:
                message = receive(waiting.pop(rank).stdout)
                if message is None: message = "error", self.died(rank), ""
                found[rank] = message
                if message[0] == "error": end = min(end, time.monotonic() + 2)
        for rank in waiting: found[rank] = "error", f"had not ended after {patience:g} s" if len(waiting) == self.n else "still waited", ""
        for rank in sorted(found): print(labelled({(0, rank): found[rank][2]}), end="")
        if all(kind != "error" for kind, _, _ in found.values()): return [found[rank][1] for rank in range(self.n)]
        self.close()
        raise RankError("\n".join(f"rank {rank}: {found[rank][1]}" for rank in sorted(found) if found[rank][0] == "error"))

    def died(self, rank):
        code = self.processes[rank].wait(5)
        text = (Path(self.folder) / f"stderr{rank}").read_text(errors="replace")
        if code < 0: return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit status {code}\n{last_words(text)}"

    def __call__(self, function, *args, patience=60., **options):
        if not callable(function): refuse("function", "a function", function)
        parcel = Parcel(vars(sys.modules["__main__"]))
        packed = parcel.pack((function, args, options))
        self.wait_until_ready()
        names = without_known(parcel.names, self.known)
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError): send(process.stdin, (sys.path, names, packed))
        return self.collect(patience)

    def close(self):
        "End the processes, and leave no file behind."
        for process in self.processes:
            with contextlib.suppress(OSError): process.stdin.close()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired): process.wait(.5)
            end_all(process)
            process.stdout.close()
        self.processes = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def __del__(self):
        with contextlib.suppress(Exception): self.close()

    def __repr__(self): return f"Ranks({self.n})"


def stage_of_zero(name, value):
    if isinstance(value, bool) or value not in (0, 1, 2, 3): refuse(name, "a stage of ZeRO, 0, 1, 2 or 3", value)
    return value


# Meeting now and then; PowerSGD's books; a sweep's parts

class MeetNowAndThen(OverRanks):
    "What `LocalSGD` and `DiLoCo` inherit: they count steps, and `meet(learn)` every so many, and at the end of an epoch's training."
    def __init__(self, every):
        super().__init__()
        self.every, self.steps = positive_int("every", every), 0

    def before_fit(self, learn):
        super().before_fit(learn)
        self.steps = 0

    def after_step(self, learn):
        super().after_step(learn)
        if learn.cancelled is not None: return
        self.steps += 1
        if self.steps == self.every: self.meet_now(learn)

    def after_train(self, learn):
        if is_over(learn.cancelled) and self.steps: self.meet_now(learn)
        super().after_train(learn)

    def meet_now(self, learn):
        self.steps = 0
        if n_ranks() > 1: self.announce("meets the others", device=learn.device or "cpu")
        self.meet(learn)


class PowerBooks:  # before `AverageGradients`, so that no bucket leaves
    "What `PowerSGD` adds: its rank checked, which weights are worth it, and for each what was lost and the last factor."
    def __init__(self, rank=1):
        super().__init__()
        self.rank, self.errors, self.qs = positive_int("rank", rank), {}, {}

    def before_fit(self, learn):
        super().before_fit(learn)
        if {*self.qs} - {*learn.model.parameters()}: self.errors, self.qs = {}, {}  # of another model

    def before_backward(self, learn): "Nothing: it sends its factors before the step."

    @staticmethod
    def matrix(p): return p.grad.detach().flatten(1).to(torch.promote_types(p.grad.dtype, torch.float32))

    def worth_it(self, params):
        "Parameters with a gradient whose two factors are at most half its size, and the others."
        matrices, others = [], []
        for i, p in enumerate(params):
            if p.grad is None: continue
            n, m = (len(p), p.numel() // max(1, len(p))) if p.ndim > 1 else (1, 1)
            if (n + m) * self.rank * 2 >= n * m:  # as torch: half its size or less
                others.append(p)
                continue
            matrices.append(p)
            if p not in self.qs:  # the same numbers on every rank
                drawn = torch.randn(m, self.rank, generator=torch.Generator().manual_seed(i))
                self.qs[p] = drawn.to(p.device, torch.promote_types(p.dtype, torch.float32))
        return matrices, others


def split_among_ranks(sweep):
    "Cut each of a sweep's slices into a part for every rank; this rank's parts, as `SweepBase.train` takes them."
    n, rank = n_ranks(), my_rank()
    parts = [[[part[0], part[-1] + 1] for chunk in chunks if len(part := torch.arange(chunk.start, chunk.stop).tensor_split(n)[r])]
             for chunks in sweep.slices for r in range(n)]
    sweep.slices = [[slice(int(a), int(b)) for a, b in chunks] for chunks in parts]
    mine = [chunks for chunks in sweep.slices[rank::n] if chunks]
    sweep.slices = [chunks for chunks in sweep.slices if chunks]
    return mine


def gather_losses(sweep, n_steps):
    "After each rank has trained its points of a sweep: all get the losses of all points."
    sweep._loss[(sweep._done == 0).to(sweep.device)] = 0.
    sum_in_place([sweep._loss])
    sweep._done[:] = n_steps


# Sharded checkpoints

def a_learner(name, value):
    if not all(hasattr(value, part) for part in ("model", "dls", "opt", "fit")): refuse(name, "a Learner", value)
    return value


def as_path(name, value): return Path(a_path(name, value)).absolute()


def sharded_state(learn):
    "Model and optimizer, each rank its part of what is sharded, by names; as `torch.distributed.checkpoint` takes them."
    from torch.distributed.checkpoint.state_dict import get_state_dict
    if learn.opt is None: learn.make_opt()
    model, optim = get_state_dict(learn.model, learn.opt)
    return {"model": model, "optim": optim}


def layout(state):
    "What must agree between a checkpoint and a learner, in plain words: names, shapes, what the optimizer keeps."
    return {"model": {name: list(t.shape) for name, t in state["model"].items()},
            "optimizer": {name: sorted(kept) for name, kept in state["optim"]["state"].items()},
            "groups": [len(group["params"]) for group in state["optim"]["param_groups"]]}


def on_all_ranks(work, what):
    "Run it on each rank; where it fails on one, an error on all, which says what went wrong where."
    problem = result = None
    try: result = work()
    except BaseException as error:  # torch's CheckpointException is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)): raise
        problem = error
    problems = [None] * n_ranks()
    if n_ranks() == 1: problems = [problem and reason(problem)]
    else:
        with in_words(): dist.all_gather_object(problems, problem and reason(problem))
    if not any(problems): return result
    failed = "; ".join(f"rank {rank}: {words}" for rank, words in enumerate(problems) if words)
    raise RankError(f"{what} failed ({failed}).") from problem


def reason(error):
    "An error in a line; of those of several ranks, as torch's checkpoints gather them, the first one's own."
    while failures := getattr(error, "failures", None): error = next(iter(failures.values()))[0]
    return f"{type(error).__name__}: {first_line(error)}"


def beside(folder, ending): return folder.with_name(f".{folder.name}.{ending}")


def on_rank_0(work, what): return on_all_ranks(work if my_rank() == 0 else lambda: None, what)


def quiet():
    "torch's own words about one process, about storage types, …"
    return warnings.catch_warnings(action="ignore")


def save_checkpoint(learn, folder):
    import torch.distributed.checkpoint as dcp
    state, alone, part, old = sharded_state(learn), n_ranks() == 1, beside(folder, "part"), beside(folder, "old")
    loaders = loader_state(learn.dls)
    state["random"] = {str(my_rank()): torch.get_rng_state()}
    state["loaders"] = {name: value for name, value in loaders.items() if isinstance(value, torch.Tensor)}
    books = {"ranks": n_ranks(), "epochs_done": learn.epochs_done, "lr": pack(learn.lr, {}), "layout": layout(state),
             "loaders": {name: value for name, value in loaders.items() if isinstance(value, int)}}
    what = f"Saving to {folder}"

    def prepare():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)

    def write():
        with quiet(): dcp.save(state, storage_writer=dcp.FileSystemWriter(part), no_dist=alone)

    def put_in_place():
        write_whole(part / "books.json", json.dumps(books).encode())
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, old)
        os.rename(part, folder)
        shutil.rmtree(old, ignore_errors=True)

    on_rank_0(prepare, what)
    try:
        on_all_ranks(write, what)
        on_rank_0(put_in_place, what)
    except BaseException:
        if my_rank() == 0: shutil.rmtree(part, ignore_errors=True)
        raise


def read_books(folder):
    try: return json.loads((folder / "books.json").read_text())
    except FileNotFoundError: raise ValueError(f"{folder} holds no whole checkpoint; save_sharded writes one.") from None
    except (OSError, ValueError) as error: raise ValueError(f"The checkpoint in {folder} cannot be read: {first_line(error)}") from error


def first_difference(saved, own):
    for name in [*saved, *(name for name in own if name not in saved)]:
        if saved.get(name) != own.get(name): return f"{name}: {saved.get(name, 'nothing')} there, {own.get(name, 'nothing')} here"
    return None


def load_checkpoint(learn, folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_state_dict
    if not folder.exists() and beside(folder, "old").exists(): folder = beside(folder, "old")  # broken off in between
    books = read_books(folder)
    with quiet(): state = sharded_state(learn)
    for part, saved in books["layout"].items():
        own = layout(state)[part]
        if part == "groups": saved, own = dict(enumerate(saved)), dict(enumerate(own))
        if differs := first_difference(saved, own):
            raise ValueError(f"The checkpoint in {folder} is of another {'model' if part == 'model' else 'optimizer'}: {differs}.")
    loaders = loader_state(learn.dls)
    state["loaders"] = {name: value for name, value in loaders.items() if isinstance(value, torch.Tensor)}
    if books["ranks"] == n_ranks(): state["random"] = {str(my_rank()): torch.get_rng_state()}

    def read():
        with quiet(): dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=n_ranks() == 1)
    try: on_all_ranks(read, f"Loading from {folder}")
    except RankError as error: raise ValueError(f"The checkpoint in {folder} cannot be read. {error}") from error
    with quiet(): set_state_dict(learn.model, learn.opt, model_state_dict=state["model"], optim_state_dict=state["optim"])
    learn.epochs_done, learn._lr = books["epochs_done"], unpack(books["lr"], {})
    set_loader_state(learn.dls, books["loaders"] | state["loaders"])
    if "random" in state: torch.set_rng_state(state["random"][str(my_rank())])
