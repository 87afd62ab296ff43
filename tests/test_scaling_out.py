"""Two real processes and three, held against torch's own and against one; what fails leaves nothing behind.

The checks themselves are in tests/ranks.py; here stands who starts them, and what only a single process can see.
"""
import _thread
import math
import os
import signal
import tempfile
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.nn.functional as F

import ranks
from course_lib import SGD, Adam, Sweep, sweep
from course_lib.scaling_out import (
    AverageGradients, DiLoCo, LocalSGD, PowerSGD, ShardedLoader, distributed, launch, load_sharded, power_step,
    ring_bytes, save_sharded, sharded_sweep)
from course_lib.support.scaling_out import RankError, Ranks, globals_in
from ranks import ALONE, CHECKS, assert_same, learner, loader, net, reference
from tiny import every_device

ON_THREE = ["going_on_with_another_number", "equals_one_process", "results_are_those_of_the_whole",
            "power_sgd_with_uneven_rows_frozen_and_unused_parameters", "accumulation_sends_once_a_step",
            "the_swept_parts_are_the_whole", "buckets_leave_while_backward_runs", "a_layer_used_twice"]
ON_TWO = [name for name in CHECKS if name not in ("going_on_with_another_number", "on_its_gpu")]
SECONDS = 60.  # a failure is told long before: patience for messages is 300 s in these scripts


@pytest.fixture(autouse=True, scope="module")
def temporary(tmp_path_factory):
    "All temporary files of this module, its processes' too, in a folder of its own."
    folder, before = str(tmp_path_factory.mktemp("temporary")), (tempfile.tempdir, os.environ.get("TMPDIR"))
    tempfile.tempdir, os.environ["TMPDIR"] = None, folder
    yield Path(folder)
    tempfile.tempdir = before[0]
    if before[1] is None: del os.environ["TMPDIR"]
    else: os.environ["TMPDIR"] = before[1]


def started(folder):
    "Processes that know this folder, by command line or environment, wherever they hang; not this one."
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            known = " ".join(process.cmdline()) + process.environ().get("TMPDIR", "")
            running = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if running and str(folder) in known: found.append(process)
    return found


@pytest.fixture(autouse=True)
def nothing_stays(temporary):
    "No process, no child that nobody has waited for, no socket and no file, whatever a test did."
    descriptors = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    children, before = psutil.Process().children(), os.listdir(temporary)
    yield
    left = started(temporary)
    for process in left: process.kill()
    assert not left, f"processes have stayed: {left}"
    assert {c.pid for c in psutil.Process().children()} <= {c.pid for c in children}
    files = [path for path in temporary.iterdir() if path.name not in before]
    assert not files, f"temporary files have stayed: {files}"
    if descriptors: assert len(os.listdir("/proc/self/fd")) <= len(descriptors) + 1


def run_checks(folder, n, names):
    "One torchrun for many checks; what each rank said of each."
    # only a net: where other programs take the cores, all of it runs some five times as long as on idle ones
    try: said = launch(ranks.__file__, n, folder, *names, timeout=480)
    except RankError as error: said = str(error)
    return SimpleNamespace(folder=folder, n=n, said=said)


def assert_ok(run, name):
    words = {rank: path.read_text() for rank in range(run.n) if (path := run.folder / f"{name}.{rank}").exists()}
    wrong = {rank: text for rank, text in words.items() if text != "ok"}
    if wrong: pytest.fail("\n".join(f"rank {rank}: {text[-3000:]}" for rank, text in wrong.items()), False)
    if len(words) < run.n: pytest.fail(f"{name} has not run to its end on all ranks: {run.said[-3000:]}", False)


@pytest.fixture(scope="module")
def two(tmp_path_factory): return run_checks(tmp_path_factory.mktemp("two"), 2, ON_TWO)


@pytest.mark.parametrize("name", ON_TWO)
def test_on_two_ranks(two, name): assert_ok(two, name)


def test_a_training_goes_on_with_one_rank_and_then_with_three(two, tmp_path):
    for name in ("averaged", "sharded"):
        learn = learner(ALONE, net(4), Adam, train=loader(48, 12))
        load_sharded(learn, two.folder / name)
        assert (learn.epochs_done, learn.lr, learn.dls.train.epoch) == (2, .05, 2)
        learn.fit(1)
        assert_same(learn.model, reference(net(), loader(48, 12), torch.optim.Adam, 3, .05))
        save_sharded(learn, tmp_path / "one")
    three = run_checks(tmp_path, 3, ON_THREE)
    for name in ON_THREE: assert_ok(three, name)


# Ranks that fail

def script(folder, code):
    path = folder / "script.py"
    path.write_text("import os, sys, time\nrank, size = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])\n"
                    + textwrap.dedent(code))
    return path


def test_a_killed_rank_is_an_error_within_seconds(tmp_path):
    "The others hear nothing and wait: torchrun notices. In the middle of a training: the test after this one."
    code = """
    if rank == 1: os.kill(os.getpid(), 9)
    time.sleep(600)
    """
    began = time.monotonic()
    with pytest.raises(RankError, match="rank 1 of 2 was ended by SIGKILL"): launch(script(tmp_path, code), 2)
    assert time.monotonic() - began < SECONDS
    assert issubclass(RankError, RuntimeError)


def test_a_restart_ends_as_if_nothing_had_happened(tmp_path):
    began = time.monotonic()
    said = launch(ranks.__file__, 2, tmp_path, "restarts", max_restarts=1)
    assert time.monotonic() - began < 2 * SECONDS                # and not the 300 s for which it waits for messages
    assert (tmp_path / "killed").exists()
    for rank in (0, 1):
        assert f"[rank {rank}] from epoch 0" in said
        began = [line for line in said.splitlines() if line.startswith(f"[rank {rank}, restart 1] from epoch")]
        assert began and int(began[0].split()[-1]) >= 1, said    # from its checkpoint
    model = net()
    model.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert_same(model, reference(net(), loader(48, 12), torch.optim.Adam, 4, .05))


# launch, with scripts that do not even import torch

def test_two_launches_at_once_give_back_what_their_ranks_print_and_their_errors(tmp_path):
    code = """
    print("I am", rank, "of", size, *sys.argv[1:], flush=True)
    if sys.argv[1] == "--fail":
        if rank == 1: raise KeyError("no such row")
        time.sleep(600)
    """
    path, found = script(tmp_path, code), {}

    def run(name):
        try: found[name] = launch(path, 2, name, 7, tmp_path)
        except RankError as error: found[name] = error
    threads = [threading.Thread(target=run, args=[name]) for name in ("a b", "--fail")]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert sorted(found["a b"].splitlines()) == [f"[rank {r}] I am {r} of 2 a b 7 {tmp_path}" for r in (0, 1)]
    said = str(found["--fail"])
    assert isinstance(found["--fail"], RankError) and len(said.splitlines()) < 30
    for words in ("rank 1 of 2", "KeyError: 'no such row'", "I am 1 of 2", "line 6"): assert words in said, said


def test_what_hangs_is_ended(tmp_path):
    "Not even a polite request ends it."
    code = """
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
    """
    with pytest.raises(RankError, match="had not ended after 5 s"): launch(script(tmp_path, code), 2, timeout=5)


def test_torchrun_itself_may_be_killed(tmp_path):
    code = """
    if rank == 0:
        time.sleep(1.5)
        os.kill(os.getppid(), 9)
    time.sleep(600)
    """
    began = time.monotonic()
    with pytest.raises(RankError): launch(script(tmp_path, code), 2, tmp_path, timeout=300)
    assert time.monotonic() - began < SECONDS


def test_ctrl_c_ends_all_ranks(tmp_path):
    code = """
    open(f"{sys.argv[1]}/started{rank}", "w").close()
    time.sleep(600)
    """
    def press():
        while not all((tmp_path / f"started{rank}").exists() for rank in (0, 1)): time.sleep(.05)
        _thread.interrupt_main()
    threading.Thread(target=press, daemon=True).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
    try:
        with pytest.raises(KeyboardInterrupt): launch(script(tmp_path, code), 2, tmp_path)
    finally: signal.signal(signal.SIGINT, before)


# One process

def test_alone_the_same_script_does_the_same(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"): monkeypatch.delenv(name, raising=False)
    plain = learner(ALONE, net(), Adam, train=loader(29, 7))
    plain.fit(2)
    with distributed() as place:
        assert (place.rank, place.size) == (0, 1) and isinstance(place.device, torch.device)
        for cb in (AverageGradients(), AverageGradients(torch.float16), LocalSGD(3), DiLoCo(3, 1., 0.), PowerSGD(1)):
            learn = learner(place, net(), Adam, [cb], loader(29, 7))
            learn.fit(2)
            if not isinstance(cb, DiLoCo): assert_same(learn.model, plain.model, 0)
            else: assert_same(learn.model, plain.model, 1e-12)
            assert cb.sent == 0
    assert not torch.distributed.is_initialized()


def test_a_sweep_alone_is_the_sweep():
    options = net(dtype=torch.float32), F.mse_loss, SGD, loader(48, 12, dtype=torch.float32), 6
    whole, parts = (way(*options, {"lr": torch.tensor([.01, .1, .3])}) for way in (sweep, sharded_sweep))
    assert isinstance(parts, Sweep) and torch.equal(parts.loss, whole.loss)


@pytest.mark.parametrize("n, size", [(12, 2), (13, 4), (3, 4), (1, 2)])
def test_shards_are_each_row_once(n, size):
    whole = loader(29, n)
    shards = [list(ShardedLoader(loader(29, n), rank, size)) for rank in range(size)]
    for parts, (x, y) in zip(zip(*shards), whole, strict=True):
        for i, right in enumerate((x, y)): assert torch.equal(torch.cat([part[i] for part in parts]), right)
        sizes = [len(part[1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    shard = ShardedLoader(loader(29, n), 0, size)
    assert len(shard) == len(whole) and shard.epoch == 0
    first, second = ([y.tolist() for _, y in shard] for _ in range(2))
    assert shard.epoch == 2 and (first != second)                # another order in each epoch
    shard.epoch = 0
    assert [y.tolist() for _, y in shard] == first


def test_a_loader_of_torch_needs_one_order_on_all_ranks():
    data = torch.utils.data.TensorDataset(torch.arange(8.), torch.arange(8))
    made = lambda **options: torch.utils.data.DataLoader(data, 4, **options)
    with pytest.raises(ValueError, match="generator"): ShardedLoader(made(shuffle=True), 0, 2)
    ShardedLoader(made(shuffle=True), 0, 1)
    ShardedLoader(made(), 0, 2)
    shards = [ShardedLoader(made(shuffle=True, generator=torch.Generator().manual_seed(0)), rank, 2) for rank in (0, 1)]
    assert sorted(row for shard in shards for rows, _ in shard for row in rows.tolist()) == [*range(8)]


def test_a_nested_batch_is_cut_too():
    batches = [({"a": torch.arange(5), "b": [torch.arange(10).view(5, 2)]}, (torch.arange(5), torch.ones(5)))]
    (x, y), = ShardedLoader(batches, 1, 2)
    assert x["a"].tolist() == [3, 4] and x["b"][0].tolist() == [[6, 7], [8, 9]] and y[0].tolist() == [3, 4]


def test_ring_bytes_in_closed_form():
    for n in (1, 2, 3, 8, 1024):
        steps = 2 * (n - 1)                                      # scatter, then gather: each step sends an n-th
        assert ring_bytes(4096, n) == pytest.approx(steps * 4096 / n)


def test_a_power_step_on_matrices():
    "What is of low rank comes out exactly; of the rest the best approximation after some turns (as the SVD says)."
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(6, 2, generator=generator, dtype=torch.float64) @ torch.randn(2, 9, generator=generator).double()
    (p,), (q,) = power_step([low], [torch.randn(9, 2, generator=generator).double()], lambda tensors: None)
    torch.testing.assert_close(p @ q.T, low)
    full, qs = torch.randn(6, 9, generator=generator).double(), [torch.randn(9, 2, generator=generator).double()]
    for _ in range(300): ps, qs = power_step([full], qs, lambda tensors: None)
    u, s, v = torch.linalg.svd(full, full_matrices=False)
    torch.testing.assert_close(ps[0] @ qs[0].T, u[:, :2] * s[:2] @ v[:2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ps[0].T @ ps[0], torch.eye(2, dtype=torch.float64))


def test_a_checkpoint_of_one_process_on_a_small_disk(tmp_path):
    "A file system of 256 kB, which is full indeed; without the right to mount one, a limit for files."
    learn = learner(ALONE, net(width=2000), Adam, train=loader(24, 12))
    small = learner(ALONE, net(), Adam, train=loader(24, 12))
    small.fit(1)
    save_sharded(small, tmp_path / "last")
    mounted = not os.system(f"mount -t tmpfs -o size=256k tmpfs {tmp_path} 2> /dev/null")
    try:
        if mounted: save_sharded(small, tmp_path / "last")
        else: ranks.without_room(2000)
        before = sorted(str(path) for path in tmp_path.rglob("*"))
        with pytest.raises(RankError, match="last.*(No space left|too large|inline_container|Errno)"):
            save_sharded(learn, tmp_path / "last")
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before
        again = learner(ALONE, net(3), Adam, train=loader(24, 12))
        load_sharded(again, tmp_path / "last")
        assert_same(again.model, small.model, 0)
    finally:
        limits = ranks.resource.getrlimit(ranks.resource.RLIMIT_FSIZE)
        ranks.resource.setrlimit(ranks.resource.RLIMIT_FSIZE, (limits[1], limits[1]))
        if mounted: assert not os.system(f"umount {tmp_path}")


@every_device
def test_checkpoint_and_callbacks_on(device, tmp_path):
    "One process: what was saved goes on, bit for bit, dropout's masks too."
    def made(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Dropout(.3), torch.nn.Linear(5, 1)).double()
        return learner(ALONE, model.to(device), Adam, [AverageGradients()], loader(40, 12, device=device), lr=.01)
    learn = made(0)
    learn.fit(2)
    save_sharded(learn, tmp_path / "two")
    learn.fit(3)
    again = made(1)
    load_sharded(again, tmp_path / "two")
    again.fit(3)
    for p, q in zip(learn.model.parameters(), again.model.parameters()): assert torch.equal(p, q)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.gpu
def test_ranks_with_a_gpu_of_their_own(tmp_path):
    assert_ok(run_checks(tmp_path, torch.cuda.device_count(), ["on_its_gpu"]), "on_its_gpu")


# Ranks that stay alive

def rank_and_sum(x):
    place = torch.ones(1) * x
    torch.distributed.all_reduce(place)
    print("seen")
    return torch.distributed.get_rank(), place.item()


def fails_on_rank_1():
    if torch.distributed.get_rank() == 1: raise ValueError("not this one")
    torch.distributed.barrier()


def is_killed():
    if torch.distributed.get_rank() == 1: os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


class DiesInBackward(torch.nn.Module):
    def forward(self, x):
        if torch.distributed.get_rank() == 1: x.register_hook(lambda grad: os.kill(os.getpid(), signal.SIGKILL))
        return x


def trains_until_it_is_killed():
    place = SimpleNamespace(rank=torch.distributed.get_rank(), size=2)
    model = torch.nn.Sequential(net()[:2], DiesInBackward(), net()[2:])
    learner(place, model, cbs=[AverageGradients()]).fit(1)


def test_a_rank_that_dies_in_backward_is_told_to_the_other():
    living = Ranks(2)
    try:
        began = time.monotonic()
        with pytest.raises(RankError) as caught: living(trains_until_it_is_killed)
        assert time.monotonic() - began < SECONDS
    finally: living.close()
    assert "rank 1: was ended by SIGKILL" in str(caught.value)
    assert "rank 0: RankError: Rank 0 could not exchange a message" in str(caught.value)


def scaled(x, factor=1.): return (x * factor).sum().item()


def test_ranks_take_arguments_by_name_and_own_variables_are_not_sent():
    source = "def f(x, y=A):\n    z = [x for B in y]\n    return C(z)\nclass D(E):\n    g = H"
    assert globals_in(source) == ["A", "C", "E", "H"]
    living = Ranks(2)
    try:
        assert living(scaled, torch.ones(3), factor=2.) == [6., 6.]
    finally: living.close()


def test_ranks_that_stay_alive(capsys):
    living = Ranks(2)
    try:
        assert living(rank_and_sum, 2.5) == [(0, 5.), (1, 5.)]
        assert capsys.readouterr().out.splitlines() == ["[rank 0] seen", "[rank 1] seen"]
        began = time.monotonic()
        with pytest.raises(RankError, match="rank 1.*not this one"): living(fails_on_rank_1)
        assert living(rank_and_sum, 1.) == [(0, 2.), (1, 2.)]     # new ones
        with pytest.raises(RankError, match="rank 1.*SIGKILL"): living(is_killed)
        assert time.monotonic() - began < SECONDS
    finally: living.close()


# Bad input

BAD = [
    (lambda: LocalSGD(0), "every"), (lambda: LocalSGD(2.5), "every"), (lambda: LocalSGD(-1), "every"),
    (lambda: LocalSGD("10"), "every"), (lambda: LocalSGD(math.nan), "every"),
    (lambda: DiLoCo(0), "every"), (lambda: DiLoCo(5, lr=0.), "lr"), (lambda: DiLoCo(5, lr=-1.), "lr"),
    (lambda: DiLoCo(5, lr=math.inf), "lr"), (lambda: DiLoCo(5, lr=math.nan), "lr"),
    (lambda: DiLoCo(5, momentum=1.), "momentum"), (lambda: DiLoCo(5, momentum=-.1), "momentum"),
    (lambda: DiLoCo(5, momentum="much"), "momentum"), (lambda: PowerSGD(rank=0), "rank"),
    (lambda: PowerSGD(rank=1.5), "rank"), (lambda: PowerSGD(rank=None), "rank"),
    (lambda: AverageGradients(torch.int8), "dtype"), (lambda: AverageGradients("half"), "dtype"),
    (lambda: AverageGradients(16), "dtype"), (lambda: ShardedLoader(loader(), 2, 2), "rank"),
    (lambda: ShardedLoader(loader(), -1, 2), "rank"), (lambda: ShardedLoader(loader(), .5, 2), "rank"),
    (lambda: ShardedLoader(loader(), 0, 0), "size"), (lambda: ShardedLoader(loader(), 0, "2"), "size"),
    (lambda: ShardedLoader(None, 0, 2), "loader"), (lambda: ShardedLoader(iter(loader()), 0, 2), "loader"),
    (lambda: ShardedLoader("batches", 0, 2), "loader"), (lambda: ring_bytes(-1, 2), "n_bytes"),
    (lambda: ring_bytes(math.nan, 2), "n_bytes"), (lambda: ring_bytes("1 GB", 2), "n_bytes"),
    (lambda: ring_bytes(10, 0), "n"), (lambda: ring_bytes(8, 2.5), "n"),
    (lambda: launch("/nowhere/script.py", 2), "/nowhere/script.py"),
    (lambda: launch(os.path.dirname(__file__), 2), "tests"), (lambda: launch(5, 2), "script"),
    (lambda: launch(__file__, 0), "n"), (lambda: launch(__file__, "2"), "n"),
    (lambda: launch(__file__, 2, timeout=0), "timeout"), (lambda: launch(__file__, 2, timeout=math.nan), "timeout"),
    (lambda: launch(__file__, 2, max_restarts=-1), "max_restarts"), (lambda: Ranks(0), "n"),
    (lambda: Ranks(2, timeout=-1.), "timeout"), (lambda: distributed(timeout=0).__enter__(), "timeout"),
    (lambda: distributed("long").__enter__(), "timeout"), (lambda: save_sharded(learner(ALONE, net()), 3), "folder"),
    (lambda: load_sharded(learner(ALONE, net()), None), "folder"),
    (lambda: save_sharded(net(), "/nowhere/never"), "learn"),
    (lambda: load_sharded("learner", "/nowhere/never"), "learn"),
    (lambda: load_sharded(learner(ALONE, net()), "/nowhere/checkpoint"), "/nowhere/checkpoint"),
    (lambda: sharded_sweep(net(), F.mse_loss, SGD, loader(), 5, {"speed": [1.]}), "speed"),
    (lambda: sharded_sweep(net(), F.mse_loss, SGD, loader(), 0, {"lr": [1.]}), "n_steps"),
    (lambda: sharded_sweep(net(), F.mse_loss, SGD, None, 5, {"lr": [1.]}), "dl"),
    (lambda: sharded_sweep("net", F.mse_loss, SGD, loader(), 5, {"lr": [1.]}), "model"),
]


@pytest.mark.parametrize("call, word", BAD, ids=range(len(BAD)))
def test_bad_input_is_told_in_words(call, word):
    with pytest.raises((ValueError, TypeError)) as caught: call()
    assert word in str(caught.value) and len(str(caught.value)) > 20


@pytest.mark.parametrize("rank, size", [("one", "2"), ("2", "2"), ("-1", "2"), ("0", "0")])
def test_an_environment_that_makes_no_sense(monkeypatch, rank, size):
    for name, value in {"RANK": rank, "WORLD_SIZE": size}.items(): monkeypatch.setenv(name, value)
    with pytest.raises((RuntimeError, ValueError), match="RANK"):
        with distributed(): pass


def test_ranks_that_never_come_are_an_error_in_words(monkeypatch):
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": 1}.items(): monkeypatch.setenv(name, str(value))
    with pytest.raises(RuntimeError):
        with distributed(timeout=1.5): pass
    assert not torch.distributed.is_initialized()
