"""The house: who may know whom, what an import loads, and what the library offers at its top."""
import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import course_lib

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "course_lib"
LESSONS = [path.stem.split("_", 1)[1] for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
           if (LIBRARY / f"{path.stem.split('_', 1)[1]}.py").exists()]
SHOWN = {"matplotlib", "ipywidgets", "IPython"}  # what draws and shows
DISTRIBUTIONS = {"IPython": "ipython", "PIL": "pillow"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def imports(path, top_only=False):
    "The modules that a file of the library imports, by absolute name; top_only: without those inside of functions."
    package = ["course_lib", *path.relative_to(LIBRARY).parts[:-1]]
    tree = ast.parse(path.read_text())
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import): yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{path.name}: import *"
            base = package[:len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module in ("course_lib", "course_lib.support", "course_lib.figures"):  # from .support import checks
                yield from (f"{module}.{alias.name}" for alias in node.names)
            else: yield module


def room(module):
    "The floor that a module of the library is on, and its name there."
    parts = module.split(".")
    return (parts[1], parts[2]) if len(parts) > 2 else ("lessons", parts[1])


def knows(path): return [room(module) for module in imports(path) if module.startswith("course_lib.")]


def test_the_support_knows_no_lesson():
    for path in (LIBRARY / "support").glob("*.py"):
        assert {floor for floor, _ in knows(path)} <= {"support"}, path.name


def test_a_lesson_knows_earlier_lessons_and_the_support():
    for lesson in LESSONS:
        for floor, name in knows(LIBRARY / f"{lesson}.py"):
            assert floor in ("lessons", "support"), f"{lesson} imports {floor}.{name}"
            if floor == "lessons": assert LESSONS.index(name) < LESSONS.index(lesson), f"{lesson} imports {name}"


def test_a_lesson_draws_nothing_itself():
    for lesson in LESSONS:
        assert not {name.split(".")[0] for name in imports(LIBRARY / f"{lesson}.py")} & SHOWN, lesson


def test_a_figure_knows_lessons_the_support_and_figures():
    for path in (LIBRARY / "figures").glob("*.py"):
        assert {floor for floor, _ in knows(path)} <= {"lessons", "support", "figures"}, path.name


def test_an_exercise_knows_lessons_the_support_and_exercises_and_loads_nothing_that_draws():
    for path in (LIBRARY / "exercises").glob("*.py"):
        assert {floor for floor, _ in knows(path)} <= {"lessons", "support", "exercises"}, path.name
        assert not {name.split(".")[0] for name in imports(path, top_only=True)} & SHOWN, path.name


def test_the_folder_holds_lessons_and_nothing_else():
    assert {path.stem for path in LIBRARY.glob("*.py")} == {*LESSONS, "__init__", "_modidx"}


def test_nothing_is_imported_in_a_circle():
    modules = {f"course_lib.{'.'.join(path.relative_to(LIBRARY).with_suffix('').parts)}": path
               for path in LIBRARY.rglob("*.py") if path.name != "__init__.py"}
    before = {name: {other for other in imports(path, top_only=True) if other in modules}
              for name, path in modules.items()}
    while before:
        free = [name for name, others in before.items() if not others & before.keys()]
        assert free, f"a circle among {sorted(before)}"
        for name in free: del before[name]


def test_what_is_imported_is_declared_and_nothing_else():
    used = {name.split(".")[0] for path in LIBRARY.rglob("*.py") for name in imports(path)}
    used -= {*sys.stdlib_module_names, "course_lib"}
    declared = {d.split(">=")[0] for d in PROJECT["dependencies"]}
    assert {DISTRIBUTIONS.get(name, name) for name in used} == declared
    assert all(">=" in d and "==" not in d
               for extra in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
               for d in extra if not d.startswith("course_lib["))


def loaded(code, names=(*SHOWN, "torchvision")):
    "Which of these modules a fresh Python has loaded after the code."
    script = f"import sys; {code}; print(*(name for name in {tuple(names)!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_an_import_loads_neither_figures_nor_widgets_nor_torchvision():
    assert loaded("import course_lib; from course_lib import AdamW, Learner, Recorder, pets, sweep") == set()
    assert loaded("import course_lib.exercises") == set()
    assert "matplotlib" in loaded("from course_lib import show")  # so that the test can fail


ROOMS = [f"course_lib.{lesson}" for lesson in LESSONS] + [
    f"course_lib.{floor}.{path.stem}" for floor in ("support", "figures")
    for path in sorted((LIBRARY / floor).glob("*.py")) if path.stem != "__init__"]
EACH_ALONE = """
import importlib, json, os, sys, torch  # torch once: it takes most of the time
for name in sys.argv[2:]:
    if os.fork(): os.wait(); continue
    problem = ""
    try:
        importlib.import_module(name)
        from course_lib.learner import Learner
        Learner.lr_find, Learner.save, Learner.fit_one_cycle, Learner.fine_tune, Learner.tta
    except BaseException as error: problem = repr(error)
    with open(sys.argv[1], "a") as file:
        shown = [m for m in ("matplotlib", "ipywidgets", "IPython", "torchvision") if m in sys.modules]
        print(json.dumps([name, problem, shown]), file=file)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "Each room imported in a process of its own: name -> what went wrong, and what it loaded that shows or draws."
    results = tmp_path_factory.mktemp("rooms") / "results"
    done = subprocess.run([sys.executable, "-c", EACH_ALONE, results, *ROOMS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: rest for name, *rest in map(json.loads, results.read_text().splitlines())}


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_imports_on_its_own_methods_included(room, alone):
    problem, shown = alone[room]
    assert not problem
    if not re.match(r"course_lib\.(figures|support\.(plots|curves|live|recording))", room): assert shown == []


def test_the_surface_is_one_that_can_be_known():
    names = course_lib.__all__
    assert len(names) <= 200 and len(set(names)) == len(names) and not any(name.startswith("_") for name in names)
    assert inspect.isfunction(course_lib.sweep)
    assert set(names) <= set(dir(course_lib))
    public = {name for name, value in vars(course_lib).items()
              if not name.startswith("_") and not inspect.ismodule(value)}
    assert public <= set(names), "imported at the top, but not in __all__"


@pytest.mark.parametrize("name", course_lib.__all__)
def test_each_public_name_says_what_it_is(name):
    thing = getattr(course_lib, name)
    if not callable(thing): return
    own = thing.__doc__ if inspect.isfunction(thing) else vars(thing).get("__doc__")
    assert own and len(own.split()) > 3, f"{name} has no docstring of its own"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"): _ = course_lib.no_such_name
