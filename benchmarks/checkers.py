"""Five fakes against checkers of exercises: ours, and those of Tensor-Puzzles, learntools and ARENA where given.

A constant, the input returned, zeros of the right shape, a library's function that does the work, and answers memorised
from an earlier check. The peers are read from folders with their repositories (nothing of theirs is in here); drawing
and packages that they import without need for a check are stubbed.
"""
import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import multiprocessing
import operator
import sys
import types
import typing
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from _fakes import KINDS, endless, fakes, raises, scribbler
from _measure import arguments, ratio, say_machine
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


class Outcome(typing.NamedTuple):
    passed: bool
    said: str
    attempted: bool = True
    raised: bool = False  # the checker itself, which is how pytest would say it


class Task(typing.NamedTuple):
    "An exercise of a checker."
    name: str
    check: typing.Callable  # answer -> Outcome
    right: typing.Callable
    library: typing.Callable | None  # a library's function that does the same, in the clothes of an answer
    stub: typing.Callable
    mistake: typing.Callable


def quietly(check):
    "A check whose words are kept off the screen, whose exceptions become outcomes, and whose random numbers are fresh."
    def run(answer):
        torch.seed()
        np.random.seed()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), \
             warnings.catch_warnings(action="ignore"):
            try: return check(answer)
            except Exception as error: return Outcome(False, f"{type(error).__name__}: {error}", raised=True)
    return run


# Ours ----------------------------------------------------------------------------------------------------------------


def ours(_):
    from test_exercises import TORCHS

    from course_lib.exercises import EXERCISES

    torchs = TORCHS | {  # and one that an exercise allows
        "class_counts": lambda loader: sum(torch.bincount(yb, minlength=10) for _, yb in loader)}

    def task(exercise):
        @quietly
        def check(answer):
            found = exercise.check(answer)
            return Outcome(found.passed, str(found), found.attempted)
        return Task(exercise.name, check, exercise.answer, torchs.get(exercise.name), exercise.untouched(),
                    next(iter(exercise.mistakes.values())))
    return [task(exercise) for exercise in EXERCISES.values()]


# Theirs --------------------------------------------------------------------------------------------------------------


class Missing(types.ModuleType):
    "In the place of a package that a peer imports and a check does not need."
    __path__: typing.ClassVar = []

    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return mock.MagicMock()


@contextlib.contextmanager
def do_without(*names):
    "Under `with`: stubs in the place of those packages that are not installed."
    with mock.patch.dict(sys.modules):
        for name in names:
            try: importlib.import_module(name)
            except ImportError: sys.modules[name] = Missing(name)
        before = dict(sys.modules)
        yield
        found = {name: module for name, module in sys.modules.items() if name not in before}
    sys.modules.update(found)


def load(path, name):
    "A module from a file, under a name of its own."
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Shaped:
    "`TT[\"i\", 2, bool]`: torchtyping's annotation, as far as Tensor-Puzzles reads it."
    dtypes: typing.ClassVar = {bool: torch.bool, int: torch.int64}

    def __class_getitem__(cls, item):
        item = item if isinstance(item, tuple) else (item,)
        dims = [SimpleNamespace(name=None if isinstance(d, int) else d, size=d) for d in item if d not in cls.dtypes]
        kinds = [SimpleNamespace(dtype=cls.dtypes[d]) for d in item if d in cls.dtypes]
        return typing.Annotated[torch.Tensor, {"details": (SimpleNamespace(dims=dims), *kinds)}]


def tensor_puzzles(folder):
    import hypothesis
    hypothesis.settings.register_profile("fakes", database=None, deadline=None, derandomize=False,
                                         suppress_health_check=list(hypothesis.HealthCheck))
    hypothesis.settings.load_profile("fakes")
    with do_without("chalk", "colour"): lib, puzzles = load(folder / "lib.py", "tensor_puzzles_lib"), {}
    for name in ("draw_examples", "SVG", "display"): setattr(lib, name, mock.MagicMock())
    space = {"TT": Shaped, "torch": torch, "tensor": torch.tensor,
             "make_test": lambda name, stub, *args, **kwargs: puzzles.update({stub.__name__: (stub, args, kwargs)})}
    notebook = next(path for path in sorted(folder.glob("*.ipynb")) if "make_test(" in path.read_text())
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "= make_test(" in source: exec(source, space)

    def task(name, library, mistake):
        stub, args, kwargs = puzzles[name]

        @quietly
        def check(answer):
            def problem(*args): return answer(*args)
            problem.__annotations__ = stub.__annotations__
            lib.run_test(lib.make_test(name, problem, *args, **kwargs))
            return Outcome(True, "")
        return Task(name, check, library, library, stub, mistake)

    def zeros(j): return torch.zeros(int(j), dtype=torch.long)
    return [task(*row) for row in (
        ("cumsum", lambda a: torch.cumsum(a, 0), lambda a: torch.cumsum(a, 0) - a),
        ("eye", lambda j: torch.eye(int(j), dtype=torch.long), lambda j: torch.ones(int(j), int(j), dtype=torch.long)),
        ("sum", torch.sum, lambda a: a.sum() + 1),
        ("outer", torch.outer, lambda a, b: torch.outer(b, a).T + a[:, None]),
        ("bincount", lambda a, j: torch.bincount(a, minlength=int(j)), lambda a, j: zeros(j)),
        ("diag", torch.diag, lambda a: a[0]),
        ("triu", lambda j: torch.triu(torch.ones(int(j), int(j), dtype=torch.long)),
         lambda j: torch.ones(int(j), int(j), dtype=torch.long)),
        ("diff", lambda a, i: torch.diff(a, prepend=torch.zeros(1, dtype=torch.long)), lambda a, i: a),
        ("vstack", lambda a, b: torch.vstack([a, b]), lambda a, b: torch.vstack([b, a])),
        ("roll", lambda a, i: torch.roll(a, -1), lambda a, i: torch.roll(a, 1)),
        ("flip", lambda a, i: torch.flip(a, [0]), lambda a, i: a),
        ("scatter_add", lambda values, link, j: zeros(j).scatter_add(0, link, values),
         lambda values, link, j: zeros(j)))]


def learntools(folder):
    package = sys.modules["learntools"] = types.ModuleType("learntools")  # its own imports all courses
    package.__path__, package.__version__ = [str(folder / "learntools")], "given"
    with do_without("pandas"): core, space = importlib.import_module("learntools.core"), {}
    core.binder.bind(space)
    views = {}
    for n in (2, 3, 4, 5):
        for found in vars(importlib.import_module(f"learntools.python.ex{n}")).values():
            for view in getattr(found, "_prob_map", {"": found}).values():
                if isinstance(getattr(view, "problem", None), core.FunctionProblem): views[view.problem._var] = view

    def task(name, right, library, mistake):
        view = views[name]

        @quietly
        def check(answer):
            space[name] = answer
            with mock.patch("learntools.core.problem_view.display") as shown: view.check()
            outcome = view._last_outcome.name
            return Outcome(outcome == "PASS", repr(shown.call_args[0][0]), outcome != "UNATTEMPTED")

        def stub(*args): pass
        return Task(name, check, right, library, stub, mistake)

    def swap(racers): racers[0], racers[-1] = racers[-1], racers[0]
    return [task(*row) for row in (
        ("sign", lambda x: (x > 0) - (x < 0), lambda x: np.sign(x), lambda x: (x < 0) - (x > 0)),
        ("wants_all_toppings", lambda k, m, o: k and m and o, lambda *each: all(each), lambda k, m, o: k or m or o),
        ("elementwise_greater_than", lambda L, t: [x > t for x in L], lambda L, t: np.greater(L, t).tolist(),
         lambda L, t: [x >= t for x in L]),
        ("count_negatives", lambda nums: len([x for x in nums if x < 0]), lambda nums: np.less(nums, 0).sum(),
         lambda nums: len([x for x in nums if x <= 0])),
        ("exactly_one_topping", lambda k, m, o: k + m + o == 1, None, lambda k, m, o: k + m + o > 0),
        ("has_lucky_number", lambda nums: any(x % 7 == 0 for x in nums), None, lambda nums: nums[0] % 7 == 0),
        ("menu_is_boring", lambda meals: any(map(operator.eq, meals, meals[1:])), None,
         lambda meals: meals[0] == meals[1]),
        ("select_second", lambda L: L[1] if len(L) > 1 else None, None, lambda L: L[2]),
        ("smallest_stringy_number", lambda a, b, c: min(a, b, c, key=int), None, lambda a, b, c: min(a, b, c)),
        ("to_smash", lambda total, n=3: total % n, lambda total, n=3: np.mod(total, n), lambda total, n=3: total // n),
        ("purple_shell", swap, None, lambda racers: racers[::-1]))]


def arena(folder):
    def tests(part):
        with do_without("plotly", "plotly.express", "plotly.graph_objects", "plotly.subplots"):
            return load(folder / "chapter0_fundamentals" / "exercises" / part / "tests.py", f"arena_{part}")
    cnns, nets, opts, back = map(tests, ("part2_cnns", "part3_resnets", "part4_optimization", "part5_backprop"))

    def task(test, right, library, mistake):
        @quietly
        def check(answer):
            test(answer)
            return Outcome(True, "")

        def stub(*args, **kwargs): pass
        return Task(test.__name__[5:], check, right, library, stub, mistake)

    def of_torch(opt_func):
        class Optimizer:
            def __init__(self, params, **hypers): self.opt = opt_func(params, **hypers)
            def step(self): self.opt.step()
            def zero_grad(self): self.opt.zero_grad()
        return Optimizer

    def optimizer(test, opt_func, worse): return test, of_torch(opt_func), opt_func, of_torch(worse)

    class BatchNorm(nn.BatchNorm2d):
        def forward(self, x): return super().forward(x)

    class Relu(nn.Module):
        def forward(self, x): return x.clamp(min=0)

    def pad(x, left, right, value): return F.pad(x, (left, right), value=value)
    return [task(*row) for row in (
        (cnns.test_mv, torch.mv, torch.mv, lambda mat, vec: mat.sum(1)),
        optimizer(opts.test_sgd, torch.optim.SGD, lambda params, lr, **_: torch.optim.SGD(params, lr)),
        (cnns.test_conv1d_minimal, torch.conv1d, torch.conv1d, lambda x, weights: torch.conv1d(x, weights.flip(2))),
        (cnns.test_pad1d, pad, pad, lambda x, left, right, value: pad(x, right, left, value)),
        (nets.test_batchnorm2d_forward, BatchNorm, nn.BatchNorm2d, partial(nn.BatchNorm2d, eps=.1)),
        optimizer(opts.test_adam, torch.optim.Adam, torch.optim.AdamW),
        (back.test_log_back, lambda grad, out, x: grad / x, None, lambda grad, out, x: grad / out),
        (cnns.test_einsum_trace, np.trace, np.trace, lambda mat: mat.sum()),
        (cnns.test_einsum_mv, np.matmul, np.matmul, lambda mat, vec: mat.sum(1)),
        (cnns.test_einsum_outer, np.outer, np.outer, lambda a, b: np.outer(b, a)),
        (cnns.test_trace, torch.trace, torch.trace, lambda mat: mat.sum()),
        (cnns.test_mm, torch.mm, torch.mm, lambda a, b: (b.T @ a.T)),
        (cnns.test_maxpool2d, torch.max_pool2d, torch.max_pool2d,
         lambda x, *size, **kwargs: -torch.max_pool2d(-x, *size, **kwargs)),
        (cnns.test_relu, Relu, nn.ReLU, nn.Sigmoid),
        (nets.test_batchnorm2d_running_mean, BatchNorm, nn.BatchNorm2d, lambda n, momentum: nn.BatchNorm2d(n)),
        optimizer(opts.test_rmsprop, torch.optim.RMSprop,
                  lambda params, momentum, **kw: torch.optim.RMSprop(params, **kw)))]


CHECKERS = {"course_lib": ours, "tensor-puzzles": tensor_puzzles, "learntools": learntools, "arena": arena}


def stops(task, patience):
    "Does the checker come back from an endless loop within so many seconds? Tried in a process of its own."
    process = multiprocessing.get_context("fork").Process(target=task.check, args=(endless,), daemon=True)
    process.start()
    process.join(patience)
    alive = process.is_alive()
    if alive: process.kill()
    return not alive


def examine(tasks, patience):
    "kind -> names of the exercises it got through, kind -> how many it was tried on, and what else the checker does."
    through, tried = {kind: [] for kind in KINDS}, dict.fromkeys(KINDS, 0)
    for task in tasks:
        if not (outcome := task.check(task.right)).passed: raise AssertionError(f"{task.name}: {outcome.said}")
        for kind, answers in fakes(task.right, task.library, task.check).items():
            tried[kind] += bool(answers)
            if any(task.check(answer).passed for answer in answers): through[kind].append(task.name)
    plain = [task for task in tasks if not inspect.isclass(task.right)]
    wrong = [task.check(task.mistake) for task in tasks]
    if passed := [task.name for task, outcome in zip(tasks, wrong) if outcome.passed]: raise AssertionError(passed)

    def scribbled(wipe):
        "Does an answer pass that changes its inputs? For each exercise with inputs that can be changed."
        answers = [(task, *scribbler(task.right, wipe)) for task in plain]
        outcomes = [(task.check(answer), changed) for task, answer, changed in answers]
        return [outcome.passed for outcome, changed in outcomes if changed]

    def share(flags): return f"{sum(flags)} of {len(flags)}"
    return through, tried, {
        "calls a stub not attempted": share([not task.check(task.stub).attempted for task in tasks]),
        "raises where an answer raises": share([task.check(raises).raised for task in plain]),
        "raises where an answer is wrong": share([outcome.raised for outcome in wrong]),
        "passes what is right but adds 1 to its inputs": share(scribbled(wipe=False)),
        "passes zeros if the inputs are made zeros too": share(scribbled(wipe=True)),
        f"stops an endless loop within {patience} s": "yes" if stops(plain[0], patience) else "no",
        "says of a mistake": " ".join(wrong[0].said.split())[:200]}


def main():
    args = arguments(__doc__.splitlines()[0], folders=[name for name in CHECKERS if name != "course_lib"])
    torch.set_num_threads(1)
    say_machine("torch", "numpy", threads=1)
    rows = {}
    for name, make in CHECKERS.items():
        folder = getattr(args, name.replace("-", "_"), None)
        if name != "course_lib" and folder is None:
            print(f"skipped: {name}, for no folder was given")
            continue
        try: tasks = make(folder)
        except Exception as error:  # no folder that we know: whatever may happen in it
            print(f"skipped: {name}, for its folder is not as expected: {type(error).__name__}: {error}")
            continue
        if args.quick: tasks = tasks[::4] if name == "course_lib" else tasks[:3]
        through, tried, other = rows[name] = examine(tasks, 3 if args.quick else 10)
        print(f"\n{name}: {len(tasks)} exercises: {', '.join(task.name for task in tasks)}")
        for kind in KINDS: print(f"  {kind:12}{len(through[kind]):3} of {tried[kind]:2}   {', '.join(through[kind])}")
        for what, found in other.items(): print(f"  {what}: {found}")
    print()
    for name, (through, tried, _) in rows.items():
        ratio(f"fakes_through_{name}", sum(map(len, through.values())) / sum(tried.values()),
              "<=0" if name == "course_lib" else "-")


if __name__ == "__main__":
    main()
