"""Exercises that answer: `check(answer)`, `hint(answer)`, `solution(answer)`, `progress()`."""
import difflib
import importlib
import inspect
import json
import pkgutil
from pathlib import Path

from ..support.files import write_whole
from .core import Checked, Exercise, Text

__all__ = ["EXERCISES", "Checked", "Exercise", "check", "hint", "progress", "solution"]

lessons = [importlib.import_module(f".{found.name}", __name__) for found in pkgutil.iter_modules(__path__) if found.name != "core"]
EXERCISES = {exercise.name: exercise for lesson in sorted(lessons, key=lambda lesson: lesson.EXERCISES[0].chapter)
             for exercise in lesson.EXERCISES}
PROGRESS = Path("course_progress.json")  # in the reader's folder; whoever deletes it begins anew
hints_seen = {}


def exercise_of(answer):
    "The exercise that an answer is for, told by its name (or the name itself), or a sentence that names the near ones."
    name = answer if isinstance(answer, str) else getattr(answer, "__name__", type(answer).__name__)
    if name in EXERCISES: return EXERCISES[name]
    near = difflib.get_close_matches(name, EXERCISES, 3, cutoff=.5)
    return Checked(False, f"There is no exercise called {name!r}. " + (
        f"Did you mean {' or '.join(near)}?" if near else "Pass the function or class itself, under its name."), attempted=False)


def check(answer):
    """What holds and what does not, in words: a `Checked` with `.passed` and `.attempted`. It never raises.

    answer: the function or class itself. It runs on fresh random cases, and on copies: nothing of yours is changed.
    """
    exercise = exercise_of(answer)
    if isinstance(exercise, Checked): return exercise
    checked = exercise.check(answer)
    remember(exercise.name, "right" if checked.passed else "wrong" if checked.attempted else "not yet")
    return checked


def hint(answer):
    "One hint more with each call: a question, a formula, the first line."
    exercise = exercise_of(answer)
    if isinstance(exercise, Checked): return Text(exercise)
    n = hints_seen[exercise.name] = min(hints_seen.get(exercise.name, 0) + 1, len(exercise.hints))
    rest = len(exercise.hints) - n
    return Text("\n".join(exercise.hints[:n]) + (f"\n({rest} more: call hint again)" if rest else "\n(That was the last.)"))


def solution(answer):
    "The solution, and why it is one."
    exercise = exercise_of(answer)
    if isinstance(exercise, Checked): return Text(exercise)
    return Text(f"{inspect.getsource(exercise.answer).rstrip()}\n\n{exercise.why}")


def known():
    try: found = json.loads(PROGRESS.read_text())
    except (OSError, ValueError): return {}
    return found if isinstance(found, dict) else {}


def remember(name, state):
    "Keep the state of an exercise; a folder that cannot be written to is no reason to stop."
    found = known()
    if found.get(name) == "right" or found.get(name) == state: return
    try: write_whole(PROGRESS, (json.dumps({**found, name: state}, indent=1) + "\n").encode())
    except OSError: pass


def progress(chapter=None):
    "All exercises, or those of a chapter such as \"02\": right, wrong or not yet, as remembered in this folder."
    found = known()
    return Text("\n".join(f"{exercise.chapter}  {exercise.name:24}{found.get(exercise.name, 'not yet')}"
                          for exercise in EXERCISES.values() if chapter in (None, exercise.chapter)))
