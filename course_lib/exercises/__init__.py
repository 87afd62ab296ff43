"""Exercises that answer: `check(answer)`, `hint(answer)`, `solution(answer)`, `progress()`.

An endless loop in an answer is stopped after two seconds of computing (ten, if it only waits), in the main thread of Linux
and macOS; on Windows it has to be interrupted by hand. Nothing stops deliberate cheating in one's own kernel. Whoever marks answers runs
`EXERCISES[name].check(answer, seed=…)` in a kernel of their own, on inputs that nobody else has seen.
"""
import contextlib
import difflib
import importlib
import inspect
import json
import os
import pkgutil
from pathlib import Path

from ..support.files import write_whole
from .core import Checked, Exercise, Text
from .page import Page

__all__ = ["EXERCISES", "Checked", "Exercise", "check", "hint", "progress", "solution"]

lessons = [importlib.import_module(f".{found.name}", __name__) for found in pkgutil.iter_modules(__path__)
           if found.name not in ("core", "page")]
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
    "Name -> state of the exercises that were tried in this folder; anything else that the file may hold counts for nothing."
    try: found = json.loads(PROGRESS.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError): return {}
    if not isinstance(found, dict): return {}
    return {name: found[name] for name in EXERCISES if found.get(name) in ("right", "wrong")}


def remember(name, state):
    "Keep the state of an exercise; a folder that cannot be written to is no reason to stop."
    found = known()
    if found.get(name) == "right" or found.get(name, "not yet") == state: return
    with contextlib.suppress(OSError):
        write_whole(PROGRESS, (json.dumps({**found, name: state}, indent=1) + "\n").encode())


def progress(chapter=None):
    "All exercises, or those of a chapter such as \"02\": right, wrong or not yet, as remembered in this folder."
    titles = {exercise.chapter: f"{exercise.chapter} {exercise.answer.__module__.split('.')[-1]}" for exercise in EXERCISES.values()}
    asked = str(chapter).upper() if isinstance(chapter, str | int) else type(chapter).__name__
    wanted = titles if chapter is None else [c for c in titles if c in (asked, f"0{asked}")]
    if not wanted: return Text(f"There are no exercises of a chapter {asked}. There are some of {', '.join(titles)}.")
    found = known()
    states = {titles[c]: {name: found.get(name, "not yet") for name, exercise in EXERCISES.items() if exercise.chapter == c}
              for c in wanted}
    return Page(states, f"{PROGRESS.absolute()} remembers this. Delete it to begin anew." if os.path.isfile(PROGRESS) else
                f"Nothing is remembered yet. The first answer that is tried makes the file {PROGRESS} in this folder; delete it to begin "
                "anew.")
