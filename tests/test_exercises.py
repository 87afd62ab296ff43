"""Every exercise: stub, solution, each mistake with its own sentence, fakes, mutants; and what a check must not do."""
import copy
import inspect
import json
import math
import time
from functools import partial

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup
from mutants import mutants

import course_lib.exercises
from course_lib.exercises import EXERCISES, check, hint, progress, solution
from course_lib.exercises.core import OutOfTime, Raised, time_limit
from course_lib.exercises.scaling_out import TorchsSynced
from course_lib.exercises.stability import TorchsScaler
from test_house import ROOT

every_exercise = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=list(EXERCISES))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(course_lib.exercises, "hints_seen", {})


def named(name, answer):
    "The same answer under another name; functions and classes have one of their own."
    if inspect.isclass(answer): return type(name, (answer,), {})

    def call(*args, **kwargs): return answer(*args, **kwargs)
    call.__name__ = name
    return call


@every_exercise
def test_the_stub_is_not_yet_attempted_and_is_the_notebooks(exercise):
    checked = check(exercise.untouched())
    assert not checked.passed and not checked.attempted and "not yet attempted" in str(checked)
    [path] = (ROOT / "nbs").glob(f"{exercise.chapter}_*.ipynb")
    cells = nbformat.read(path, 4).cells
    assert exercise.stub in [cell.source for cell in cells if "exercise" in cell.metadata.get("tags", [])]


@every_exercise
def test_the_solution_passes_with_every_seed(exercise):
    for seed in range(10):
        checked = exercise.check(exercise.answer, seed)
        assert checked.passed and checked.attempted, checked


@every_exercise
def test_each_mistake_gets_its_own_sentence(exercise):
    assert len(exercise.hints) >= 2 and len(exercise.mistakes) >= 2
    for sentence, mistake in exercise.mistakes.items():
        for seed in range(2):       # five take a minute and a half more
            checked = exercise.check(mistake, seed)
            assert not checked.passed and checked.attempted and sentence in str(checked), (sentence, str(checked))


@every_exercise
def test_fakes_fail(exercise):
    "A constant, the input, zeros of its shape, and answers memorised from an earlier check."
    returned = []

    def listens(*args, **kwargs):
        returned.append(exercise.answer(*args, **kwargs))
        return returned[-1]
    exercise.check(listens, 0)
    fakes = {"a constant": lambda *args, **kwargs: 1., "the input": lambda *args, **kwargs: args[0],
             "zeros": lambda *args, **kwargs: torch.zeros_like(args[0]) if isinstance(args[0], torch.Tensor) else 0.,
             "memorised": lambda *args, again=iter(returned), **kwargs: next(again)}
    for name, fake in fakes.items(): assert not exercise.check(fake, 1).passed, name


class TorchsSGD:
    def __init__(self, params, _, lr, beta): self.opt = torch.optim.SGD(params, lr, beta)
    def step(self): self.opt.step()
    def zero_grad(self): self.opt.zero_grad()


def torchs_momentum(p, grad, state, *, lr, beta=.9):
    state["opt"] = opt = state.get("opt") or torch.optim.SGD([p], lr, beta)
    opt.param_groups[0]["lr"] = lr
    opt.step()


def torchs_rmsprop(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8):
    state["opt"] = opt = state.get("opt") or torch.optim.RMSprop([p], lr, sqr_beta, eps)
    opt.param_groups[0]["lr"] = lr
    opt.step()


def torchs_stepper(opt_func):
    "A stepper that hands its work to an optimizer of torch, with betas."
    def stepper(p, grad, state, *, lr, beta=.9, sqr_beta=.999, eps=1e-8):
        if "opt" not in state: state["opt"] = opt_func([p], lr=lr, betas=(beta, sqr_beta), eps=eps)
        state["opt"].step()
    return stepper


def torchs_buffer(p, grad, state, *, beta=.9, dampening=0.):
    state.setdefault("opt", torch.optim.SGD([p], 0., beta, dampening)).step()
    state["grad_avg"] = state["opt"].state[p]["momentum_buffer"]


def torchs_centered(p, grad, state, *, lr, sqr_beta=.99, eps=1e-8):
    state["opt"] = opt = state.get("opt") or torch.optim.RMSprop([p], lr, sqr_beta, eps, centered=True)
    opt.param_groups[0]["lr"] = lr
    opt.step()


def torchs_average(model, batches):
    model = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(batches, model)
    return model.eval()


def torchs_fake(x, bits):
    top = 2 ** (bits - 1) - 1
    scale = x.detach().abs().amax(1).clamp(min=1e-30) / top
    return torch.fake_quantize_per_channel_affine(x, scale, torch.zeros(len(x), dtype=torch.int32), 0, -top, top)


def torchs_clip(grads, limit):
    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for param, grad in zip(params, grads): param.grad = grad
    return torch.nn.utils.clip_grad_norm_(params, limit)


TORCHS = {  # exercise -> torch's own thing, in the clothes of an answer
    "MyOptimizer": TorchsSGD, "my_momentum": torchs_momentum, "my_rmsprop": torchs_rmsprop,
    "my_adam": torchs_stepper(torch.optim.Adam),
    "amsgrad_step": torchs_stepper(partial(torch.optim.Adam, amsgrad=True)),
    "adamax_step": torchs_stepper(torch.optim.Adamax), "MyBatchNorm": torch.nn.BatchNorm1d,
    "my_fake_quantize": torchs_fake, "my_clip": torchs_clip, "MyScaler": TorchsScaler,
    "MySyncedNorm": TorchsSynced,
    "identity_start": lambda n_out, n_in, size: torch.nn.init.dirac_(torch.empty(n_out, n_in, size, size)),
    "RMSNorm": lambda n, eps=1e-6: torch.nn.RMSNorm(n, eps), "MyDropout": torch.nn.Dropout,
    "average_grad_torch": torchs_buffer, "centered_step": torchs_centered, "adapted": torchs_average,
    "folded": lambda linear, norm: torch.nn.utils.fusion.fuse_linear_bn_eval(linear.eval(), copy.deepcopy(norm).eval())}


@pytest.mark.parametrize("exercise", [e for e in EXERCISES.values() if e.instead], ids=lambda exercise: exercise.name)
def test_torch_itself_is_not_the_answer(exercise):
    checked = exercise.check(TORCHS[exercise.name])
    assert not checked.passed and "did the work" in str(checked), checked


@every_exercise
def test_mutants_fail(exercise):
    found = {what: exercise.check(mutant, 0).passed for what, mutant in mutants(exercise.answer)}
    alive = {what for what, passed in found.items() if passed}
    assert len(alive) <= .05 * len(found), f"{len(alive)} of {len(found)} mutants live: {alive}"


@pytest.mark.parametrize("answer", [None, 3, len, "no_such_exercise", object(), lambda: 1],
                         ids=["None", "3", "len", "unknown", "object", "lambda"])
def test_what_is_no_answer_gets_a_sentence(answer):
    assert not check(answer).passed and "no exercise" in str(check(answer))
    assert "no exercise" in hint(answer) and "no exercise" in solution(answer)


def test_a_near_name_is_named():
    assert "Did you mean sign_step" in str(check("sing_step"))


def test_an_answer_that_raises_or_never_ends_gets_a_sentence():
    def raises(error):
        def answer(p, grad, state, *, lr): raise error
        return named("sign_step", answer)

    def endless(p, grad, state, *, lr):
        while True: pass
    assert "KeyError: 'mine'" in str(check(raises(KeyError("mine"))))
    assert not check(raises(SystemExit())).passed
    assert "endless loop" in str(check(named("sign_step", endless)))

    def stubborn(p, grad, state, *, lr):
        while True:
            try: endless(p, grad, state, lr=lr)
            except Exception: pass
    assert "endless loop" in str(check(named("sign_step", stubborn)))


def test_the_time_limit_is_one_of_computing_since_a_busy_machine_makes_right_answers_wait():
    with time_limit(.2, tick=.05): time.sleep(.5)
    with pytest.raises(OutOfTime), time_limit(.2, tick=.05): time.sleep(60)
    with pytest.raises(OutOfTime), time_limit(.2, tick=.05):
        while True: pass


def test_a_check_leaves_the_world_alone(capsys):
    def noisy(p, grad, state, *, lr):
        print("noise")
        p -= lr * grad.sign() + 0 * torch.randn(())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert check(named("sign_step", noisy)).passed
    assert torch.equal(torch.get_rng_state(), before) and capsys.readouterr().out == ""


@pytest.mark.parametrize(("name", "change", "words"), [
    ("steps_needed", lambda right: None, "is None"), ("steps_needed", lambda right: [1], "should be a number"),
    ("steps_needed", lambda right: -right, "wrong sign"), ("steps_needed", lambda right: right - 1, "rounded down"),
    ("steps_needed", lambda right: right + 2, "should be"), ("clip_step", lambda right: 2 * right, "2 times"),
    ("clip_step", lambda right: right.double(), "torch.float64"), ("clip_step", lambda right: right[None], "the shape"),
    ("clip_step", lambda right: right * math.nan, "is NaN"), ("clip_step", lambda right: right + .1, "other values")])
def test_general_sentences(name, change, words):
    answer = EXERCISES[name].answer
    assert words in str(check(named(name, lambda *args, **kwargs: change(answer(*args, **kwargs)))))


def test_hints_come_one_by_one_and_the_solution_says_why():
    one, two = hint("sign_step"), hint("sign_step")
    assert two.startswith(one.split("\n")[0]) and len(two) > len(one)
    for _ in range(5): last = hint("sign_step")
    assert "That was the last" in last and all(text in last for text in EXERCISES["sign_step"].hints)
    assert "add_scaled(p, grad.sign(), -lr)" in solution("sign_step")
    assert EXERCISES["sign_step"].why in solution("sign_step")


def states(page):
    lines = [line.split() for line in page.split("\n") if line.startswith("  ")]
    return {name: " ".join(state) for _, *state, name in lines}


def test_progress_is_remembered_in_the_readers_folder(tmp_path):
    check(EXERCISES["sign_step"].answer)
    check(named("clip_step", lambda p, grad, state, *, limit=1.: grad * 2))
    assert states(progress("02")) == {
        "steps_needed": "not yet", "sign_step": "right", "clip_step": "wrong", "MyOptimizer": "not yet"}
    check(named("sign_step", lambda p, grad, state, *, lr: None))  # what was right stays right
    check(EXERCISES["clip_step"].untouched())
    assert states(progress("02"))["sign_step"] == "right" and states(progress("02"))["clip_step"] == "not yet"
    assert json.loads((tmp_path / "course_progress.json").read_text())["sign_step"] == "right"
    (tmp_path / "course_progress.json").unlink()
    assert set(states(progress()).values()) == {"not yet"}


def test_a_stub_and_a_look_leave_no_file(tmp_path):
    check(EXERCISES["is_ready"].untouched())
    assert "Nothing is remembered yet" in progress() and "course_progress.json" in progress()
    assert not list(tmp_path.iterdir())


def test_progress_shows_all_exercises_by_chapter_with_counts(tmp_path):
    check(EXERCISES["sign_step"].answer)
    check(named("clip_step", lambda p, grad, state, *, limit=1.: grad * 2))
    assert list(states(progress())) == list(EXERCISES)
    assert f"All chapters: 1 of {len(EXERCISES)} right" in progress() and "02 sgd: 1 of 4 right" in progress()
    assert str(tmp_path / "course_progress.json") in progress("02") and "Delete it to begin anew" in progress("02")
    assert repr(progress("02")) == str(progress("02")) and "All chapters" not in progress("02")
    assert progress(2) == progress("2") == progress("02") and progress("a1") == progress("A1")


def test_progress_is_a_table_in_a_notebook():
    check(EXERCISES["sign_step"].answer)
    check(named("clip_step", lambda p, grad, state, *, limit=1.: grad * 2))
    page = BeautifulSoup(progress()._repr_html_(), "html.parser")
    rows = {row.code.text: row.td for row in page.select("tbody tr") if row.code}
    assert list(rows) == list(EXERCISES) and page.th["scope"] == "col"
    for name, said in [("sign_step", "✓ right"), ("clip_step", "✗ wrong"), ("MyOptimizer", "○ not yet")]:
        assert rows[name].text == said and bool(rows[name].strong) == (name != "sign_step")
    assert "02 sgd: 1 of 4 right" in [heading.text for heading in page.select("tbody th")]
    assert "Delete it to begin anew" in page.p.text and "color" not in str(page)


@pytest.mark.parametrize("chapter", ["19", "", "zz", "<b>", -1, 2.5, [], object(), b"02", check],
                         ids=lambda chapter: chapter if isinstance(chapter, str) else type(chapter).__name__)
def test_an_unknown_chapter_gets_a_sentence_with_the_known_ones(chapter):
    assert "no exercises of a chapter" in progress(chapter) and "00, 01, 02" in progress(chapter)


@pytest.mark.parametrize("damage", [
    b"not json", b"", b"[1, 2]", b'"right"', b"null", b"\xff\xfe\x00", b"[" * 100_000,
    b'{"sign_step": "finished", "clip_step": true}', b'{"no_such_exercise": "right", "<b>": "wrong"}',
    b'{"sign_step": ["right"], "clip_step": {"wrong": 1}, "MyOptimizer": NaN}'],
    ids=lambda damage: repr(damage[:30]))
def test_a_damaged_or_foreign_file_is_not_trusted(tmp_path, damage):
    file = tmp_path / "course_progress.json"
    file.write_bytes(damage)
    assert set(states(progress()).values()) == {"not yet"} and list(states(progress())) == list(EXERCISES)
    assert "no_such" not in progress()._repr_html_() and "<b>" not in progress()._repr_html_()
    check(EXERCISES["sign_step"].answer)
    assert json.loads(file.read_bytes()) == {"sign_step": "right"}


def test_where_nothing_can_be_written_a_check_says_what_it_says(tmp_path):
    (tmp_path / "course_progress.json").mkdir()
    assert check(EXERCISES["sign_step"].answer).passed and "not yet" in progress()


def test_a_seed_makes_the_same_inputs_and_leaves_no_trace(tmp_path):
    exercise, seen = EXERCISES["steps_needed"], []

    def listens(*args):
        seen.append(args)
        return exercise.answer(*args)
    for seed in (1847, 1847, 1951, None): assert exercise.check(listens, seed=seed).passed
    a, b, c, d = (seen[i:i + len(seen) // 4] for i in range(0, len(seen), len(seen) // 4))
    assert a == b and a != c and d not in (a, c) and not list(tmp_path.iterdir())


def test_raised_says_what(): assert str(Raised(ValueError("x"))) == "ValueError: x"


def test_a_right_result_beside_a_changed_input_is_not_right():
    def mirror(xb, yb):
        mirrored = EXERCISES["mirror"].answer(xb, yb)
        xb += 1
        return mirrored
    checked = EXERCISES["mirror"].check(mirror)
    assert not checked.passed and "the batch that was given stays as it is" in str(checked), checked

    def view(model, x, n):
        out = EXERCISES["view"].answer(model, x, n)
        x += 1
        return out
    checked = EXERCISES["view"].check(view)
    assert not checked.passed and "changed what it was given" in str(checked), checked
