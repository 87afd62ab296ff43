"""What the Makefile calls, on a small course made here: cleaning, running, pages, failures in order, the GPU tests."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from _fakes import fakes, scribbler  # noqa: E402
from tools import notebooks  # noqa: E402

BADGE = "[![Open this chapter in Colab](images/open-in-colab.svg)](https://colab.research.google.com/x)"
SET_UP = "# Set-up, the same in every chapter: it does nothing here.\nimport sys"
# source, metadata (None: a text), is it folded?
CELLS = [(SET_UP, {}, True), ("#| default_exp {name}", {}, True),
         ("#| export\nimport math\nfrom os import path", {}, True),
         ("import math\n\nimport json\n\nprint(1)\nx = json.loads('3')", {}, True),
         ("import math\ndef shown(): return 1", {}, False),
         ("## A section $w_1 = \\tfrac{{1}}{{2}}$, and `$HOME`", None, None),
         ("import json\nx = json.loads('3')", {}, False), ("import json, math", {}, True),
         ("#| export\nimport re\ndef idea(): return 2", {"tags": ["plot", "hide-input"]}, False),
         ("#| export\ndef last_one(): return 3", {"tags": ["last-version"]}, True),
         ("%time 3", {"tags": ["hide-input"], "jupyter": {"source_hidden": True, "outputs_hidden": True}}, False),
         ("x  # a plot", {"tags": ["plot", "mine"], "collapsed": True}, True),
         ("import numbers", {"tags": ["solution"]}, False),
         ("## Summary\n\n$$\\frac{{a}}{{b}}$$\n\nSee [the first](01_one.ipynb#a-section).", None, None)]
TITLES = {"00_start": "Start", "01_one": "One", "02_two": "Two · and more", "A1_last": "Last"}
TRAINED = """import ipywidgets
from IPython.display import display
display(ipywidgets.IntSlider(3))
display({"image/png": "iVBORw0KGgo=", "text/plain": "a dot"}, raw=True, metadata={"image/png": {"alt": "a dot"}})
x"""


@pytest.fixture
def course(tmp_path):
    "A course of four chapters, with the project's own tools and settings."
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "nbs").mkdir()
    shutil.copytree(ROOT / "nbs" / "images", tmp_path / "nbs" / "images")
    for name, title in TITLES.items():
        number, word = name.split("_")
        cells = [new_markdown_cell(f"# {number} · {title}\n\n> Words.\n\n{BADGE}\n\n"
                                   "*Time to read: 1 minutes. Time to run: 4 seconds on two CPU cores.*", id="head")]
        for i, (source, metadata, _) in enumerate(CELLS):
            make = new_markdown_cell if metadata is None else new_code_cell
            cells.append(make(source.format(name=word) if "{{" in source or "{name}" in source else source,
                              id=f"cell{i}", metadata=json.loads(json.dumps(metadata or {}))))
        nbformat.write(new_notebook(cells=cells), tmp_path / "nbs" / f"{name}.ipynb")
    return tmp_path


def run(*command, cwd, **environ):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300,
                          env={**os.environ, **environ})
    return done


def clean(course):
    done = run("tools/notebooks.py", "clean", cwd=course)
    assert done.returncode == 0, done.stderr
    return {path.stem: nbformat.read(path, as_version=4) for path in (course / "nbs").glob("*.ipynb")}


def files(course): return {path.name: path.read_text() for path in (course / "nbs").glob("*.ipynb")}


def test_cleaning_folds_what_prepares_and_what_says_so_and_nothing_that_teaches(course):
    cells = clean(course)["01_one"].cells[1:]
    for cell, (source, metadata, folded) in zip(cells, CELLS, strict=True):
        if folded is None: continue
        assert ("hide-input" in cell.metadata.get("tags", [])) == folded, source
        assert cell.metadata.get("jupyter") == ({"source_hidden": True} if folded else None), source
        for tag in set(metadata.get("tags", [])) - {"hide-input"}: assert tag in cell.metadata.tags, source
        assert "collapsed" not in cell.metadata


def test_cleaning_links_each_chapter_to_the_one_before_the_map_and_the_next(course):
    lines = {"00_start": "[01 One](01_one.ipynb) →",
             "01_one": "[Map](00_start.ipynb) · [02 Two · and more](02_two.ipynb) →",
             "02_two": "← [01 One](01_one.ipynb) · [Map](00_start.ipynb) · [A1 Last](A1_last.ipynb) →",
             "A1_last": "← [02 Two · and more](02_two.ipynb) · [Map](00_start.ipynb)"}
    for name, nb in clean(course).items():
        assert f"{BADGE}\n\n{lines[name]}\n\n*Time to read" in nb.cells[0].source
        assert nb.cells[-1].source.endswith(f"(01_one.ipynb#a-section).\n\n{lines[name]}")


def test_cleaning_twice_changes_nothing_and_a_new_chapter_is_linked(course):
    clean(course)
    once = files(course)
    clean(course)
    assert files(course) == once
    new = course / "nbs" / "03_new.ipynb"
    new.write_text(once["02_two.ipynb"].replace("# 02 · Two · and more", "# 03 · New"))
    nbs = clean(course)
    for name in ("02_two", "A1_last"):
        for cell in (nbs[name].cells[0], nbs[name].cells[-1]): assert cell.source.count("[03 New](03_new.ipynb)") == 1
    new.unlink()
    clean(course)
    assert files(course) == once


def test_running_again_changes_neither_ids_nor_a_time_that_is_about_the_same(course):
    path = course / "nbs" / "01_one.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells = [nb.cells[0], *(cell for cell in nb.cells[1:] if cell.get("id") in ("cell0", "cell3")),
                new_code_cell(TRAINED, id="widget"), nb.cells[-1]]
    nbformat.write(nb, path)
    texts = []
    for _ in range(2):
        done = run("tools/notebooks.py", "run", "01", cwd=course)
        assert done.returncode == 0, done.stderr
        texts.append(re.sub(r"Time to run: \d+", "", path.read_text()))
    assert texts[0] == texts[1] and '"model_id"' in texts[0]
    assert [cell.id for cell in nbformat.read(path, as_version=4).cells] == [cell.id for cell in nb.cells]


@pytest.mark.parametrize("said, seconds, then",
                         [(12, 15.9, 12), (12, 16.1, 16), (12, 8.1, 12), (12, 7.9, 8), (1, .2, 1)])
def test_the_time_to_run_moves_only_when_it_has_moved_by_a_third(said, seconds, then):
    source = "# 12 · Twelve\n\n*Time to run: {} seconds on two CPU cores.*"
    assert notebooks.retimed(source.format(said), seconds) == source.format(then)


def test_pages_need_neither_network_nor_kernel(course):
    clean(course)
    path = course / "nbs" / "01_one.ipynb"
    nb = nbformat.read(path, as_version=4)
    picture = {"image/png": "iVBORw0KGgo=", "text/plain": "a dot", notebooks.WIDGET: {"model_id": "0"}}
    nb.cells[4].outputs = [new_output("display_data", picture, metadata={"image/png": {"alt": 'a "dot"'}})]
    nbformat.write(nb, path)
    done = run("tools/pages.py", cwd=course)
    assert done.returncode == 0, done.stderr
    folder = course / "dist" / "pages"
    assert {page.stem for page in folder.glob("*.html")} == {*TITLES, "index"}
    html = (folder / "01_one.html").read_text()
    assert not re.search(r"<script[^>]*src|<link|@import|src=\"(?!data:)|url\((?!['\"]?data:)", html)
    assert 'src="data:image/svg+xml;base64,' in html and "open-in-colab.svg" not in html      # the badge
    assert 'href="02_two.html"' in html and 'href="01_one.html#a-section"' in html and ".ipynb\"" not in html
    assert "<mfrac>" in html and 'display="block"' in html and "<code>$HOME</code>" in html and "\ue000" not in html
    soup = BeautifulSoup(html, "html.parser")
    assert soup.find("img", alt='a "dot"')["src"].startswith("data:image/png") and "widget-view" not in html
    folded = soup.find_all("details")
    assert len(folded) == 7 and not any("def shown" in cell.text for cell in folded) and "def shown" in soup.text


def test_failures_stand_at_the_end_by_chapter_and_cell(course):
    for name in TITLES:
        cells = [new_code_cell(f"assert {name == '00_start'}") for _ in range(3)]
        nbformat.write(new_notebook(cells=cells), course / "nbs" / f"{name}.ipynb")
    done = run("-m", "pytest", "-p", "no:cacheprovider", "-p", "tools.failures", "-n", 2, "--dist", "loadfile",
               "--nbval-lax", "--nbval-current-env", "nbs", cwd=course)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.findall(r"^FAILED nbs/(\w+)\.ipynb::Cell (\d)", done.stdout, re.MULTILINE) == [
        (name, str(cell)) for name in sorted(TITLES)[1:] for cell in range(3)]
    assert "nbs/01_one.ipynb: Cell 0\nnbs/02_two.ipynb: Cell 0\nnbs/A1_last.ipynb: Cell 0\n" in done.stdout


@pytest.fixture
def without(tmp_path):
    "A folder to put on the path, in which these packages cannot be imported."
    for name in ("ipywidgets", "fastcore", "nbdev", "playwright"):
        (tmp_path / f"{name}.py").write_text(f'raise ModuleNotFoundError("No module named {name!r}", name={name!r})')
    return tmp_path


def gpu(folder, *options):
    "tools/gpu.py where no CUDA device is seen; -> (what ended, what it wrote)."
    done = run("tools/gpu.py", "--out", folder / "gpu.txt", *options, cwd=ROOT, CUDA_VISIBLE_DEVICES="",
               PYTHONPATH=str(folder))
    return done, (folder / "gpu.txt").read_text()


def test_without_a_gpu_make_gpu_says_so_and_is_no_success(without):
    done, written = gpu(without)
    assert done.returncode == 3 and "nothing of a GPU was tested" in done.stderr and "passed" not in written
    assert written.startswith("No CUDA device here: nothing of a GPU was tested.\n") and torch.__version__ in written


def test_the_gpu_tests_run_on_the_cpu_without_what_only_notebooks_need(without):
    modules = [ROOT / "tests" / f"test_{name}.py" for name in ("gpu", "glyphs", "live", "sgd")]
    done, written = gpu(without, "--cpu", *modules)
    assert done.returncode == 0, done.stdout + done.stderr
    assert written.startswith("CPU TWINS ONLY: nothing of a GPU was tested.")
    assert int(re.search(r"tests marked gpu_twin: (\d+) passed\n", written)[1]) > 15
    assert re.findall(r"left out tests/(\w+)\.py: (\w+) is missing", written) == [("test_live", "ipywidgets"),
                                                                                 ("test_sgd", "ipywidgets")]
    assert "passed   tests/test_gpu.py::test_optimizers_equal_torchs[Adam-cpu]" in written


def test_a_gpu_test_that_fails_is_no_success(without):
    failing = without / "test_failing.py"
    failing.write_text("import pytest\n@pytest.mark.gpu_twin\ndef test_wrong(): assert 1 == 2\n")
    done, written = gpu(without, "--cpu", failing)
    assert done.returncode == 1 and "1 failed" in written and "assert 1 == 2" in written and "NOT all of it" in written
    failing.write_text("def test_unmarked(): pass\n")
    done, written = gpu(without, "--cpu", failing)
    assert done.returncode == 1 and "none found" in written


def test_a_test_is_marked_by_its_device():
    done = run("-m", "pytest", "--collect-only", "-m", "gpu", "tests/test_gpu.py", "tests/test_glyphs.py", cwd=ROOT)
    names = re.findall(r"^tests.*\[(.*)\]$", done.stdout, re.MULTILINE)
    assert len(names) > 15 and all("cuda" in name for name in names)


class Doubler:
    "Doubles its weights in place, a class that keeps state, as an optimizer is one."
    def __init__(self, params): self.params = list(params)
    def step(self): [p.mul_(2) for p in self.params]


def doubled(x): return 2 * x


@pytest.mark.parametrize("right", [doubled, Doubler])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh inputs", "the same input"])
def test_fakes_pass_a_check_whose_inputs_repeat_and_no_other(right, fresh):
    def check(answer):
        torch.manual_seed(torch.seed() if fresh else 0)
        x = torch.rand(4)
        wanted = 2 * x
        if right is doubled: x = answer(x)
        else: answer(iter([x])).step()
        passed = isinstance(x, torch.Tensor) and x.shape == wanted.shape and torch.equal(x, wanted)
        return type("Outcome", (), {"passed": passed, "said": ""})
    through = {kind for kind, answers in fakes(right, right, check).items() if any(check(a).passed for a in answers)}
    assert through - {"constant"} == ({"library"} if fresh else {"library", "memorised"})
    assert not fresh or "constant" not in through


def test_an_answer_that_scribbles_on_its_inputs_is_taken_for_right_only_if_nobody_looks():
    x = torch.ones(3)
    answer, changed = scribbler(doubled)
    assert torch.equal(answer(x), torch.full((3,), 2.)) and torch.equal(x, torch.full((3,), 2.)) and changed
    answer, _ = scribbler(doubled, wipe=True)
    assert torch.equal(answer(x), 2 * x)  # computed too late, it is what should have come out
