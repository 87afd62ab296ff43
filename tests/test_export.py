"""The export: course_lib/ is made from nbs/ and nothing else, and the wheel works on its own."""
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from test_readme import EXAMPLES

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command, cwd):
    return subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture
def copy(tmp_path):
    "The parts of the project that an export touches."
    for name in ("nbs", "course_lib", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "CITATION.cff"): shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def check(folder): return run("tools/notebooks.py", "check", cwd=folder)


def test_the_export_is_in_step(copy):
    assert check(copy).returncode == 0, check(copy).stderr


def test_nbdevs_own_export_changes_nothing(copy):
    "It writes a list of modules over the package's docstring as soon as a module's has more than three lines."
    texts = lambda: {path: path.read_text() for path in (copy / "course_lib").rglob("*.py")}
    before = texts()
    done = run("-c", "from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__(path='nbs')", cwd=copy)
    assert done.returncode == 0, done.stderr
    assert texts() == before


def test_hands_off(copy):
    "An edited, a stray and a missing module are each named, and nothing is overwritten."
    edited = copy / "course_lib" / "sgd.py"
    edited.write_text(edited.read_text() + "\nlr = 3\n")
    done = check(copy)
    assert done.returncode and "course_lib/sgd.py" in done.stderr and "make export" in done.stderr
    assert edited.read_text().endswith("lr = 3\n")
    assert run("tools/notebooks.py", "export", cwd=copy).returncode == 0 and check(copy).returncode == 0
    (copy / "course_lib" / "stray.py").write_text("")
    assert "stray.py: no notebook exports it" in check(copy).stderr
    (copy / "course_lib" / "stray.py").unlink()
    (copy / "course_lib" / "data.py").unlink()
    assert "data.py: is missing" in check(copy).stderr


def test_a_chapter_that_does_not_parse_leaves_the_library_as_it_was(copy):
    notebook = copy / "nbs" / "02_sgd.ipynb"
    content = json.loads(notebook.read_text())
    cell = next(c for c in content["cells"] if "def sgd_step" in "".join(c["source"]))
    cell["source"] = "#| export\ndef broken(:"
    notebook.write_text(json.dumps(content))
    before = {p.name: p.read_text() for p in (copy / "course_lib").glob("*.py")}
    assert run("tools/notebooks.py", "export", cwd=copy).returncode != 0
    assert {p.name: p.read_text() for p in (copy / "course_lib").glob("*.py")} == before


def test_the_address_stands_in_one_place(copy):
    for url in ("https://github.com/me/my.course", "https://github.com/someone/some-course"):
        assert run("tools/notebooks.py", "address", url, cwd=copy).returncode == 0
    for notebook in (copy / "nbs").glob("*.ipynb"):
        text = notebook.read_text()
        assert (f"github/someone/some-course/blob/main/nbs/{notebook.name}" in text
                and "git+https://github.com/someone/some-course\"" in text.replace("\\n", "\""))
        assert "OWNER" not in text and "my.course" not in text
        assert text.count("and the sliders move it.") == text.count("In the book it moves without a kernel.</a>")
        json.loads(text)
    place = "https://someone.github.io/some-course/02_sgd.html#02_sgd-3b31b02b-0"
    assert place in (copy / "nbs" / "02_sgd.ipynb").read_text()
    assert 'Repository = "https://github.com/someone/some-course"' in (copy / "pyproject.toml").read_text()
    assert 'repository-code: "https://github.com/someone/some-course"\n' in (copy / "CITATION.cff").read_text()
    for wrong in ("somewhere", "https://github.com/a/b c", "https://example.com/a/b"):
        assert "Expected the form" in run("tools/notebooks.py", "address", wrong, cwd=copy).stderr


def test_each_chapter_exports_the_module_of_its_name_and_the_map_and_the_appendices_nothing():
    for notebook in (ROOT / "nbs").glob("*.ipynb"):
        sources = ["".join(c["source"]) for c in json.loads(notebook.read_text())["cells"]]
        number, name = notebook.stem.split("_", 1)
        exports = [] if number == "00" or number.startswith("A") else [name]
        assert [s.split()[-1] for s in sources if s.startswith("#| default_exp")] == exports
        assert exports or not any(s.startswith("#| export") for s in sources)


def test_the_wheel_works_outside_of_a_checkout(tmp_path):
    done = run("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT,
               cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    done = run("-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    for folder in ("support", "figures"):
        names = {module.name for module in (ROOT / "course_lib" / folder).glob("*.py")}
        assert names == {module.name for module in (site / "course_lib" / folder).glob("*.py")}
    check = ("import course_lib; from course_lib.support.files import CHECKOUT, data_root; "
             "from course_lib.support.glyphs import glyph_curves; import course_lib.figures.sgd; "
             "assert CHECKOUT is None; dls = course_lib.digits(device='cpu'); course_lib.glyph_backbone(); "
             "glyph_curves(); print(course_lib.__file__, len(dls.train.x), data_root()[1])")
    for script in (check, *EXAMPLES):
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
                              env={"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        if script == check: assert done.stdout.startswith(str(site)) and done.stdout.endswith("1248 the cache folder\n")


def test_the_wheel_holds_every_embedded_file():
    "What is embedded is said in pyproject.toml; what lies in data/ and belongs to git is all of it."
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    embedded = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    paths = [*(ROOT / "data").iterdir(), *(ROOT / "data" / "results").iterdir()]
    suffixes = ".npz", ".safetensors", ".json", ".gz", ".txt"
    files = {str(path.relative_to(ROOT)) for path in paths if path.suffix in suffixes}
    assert set(embedded) == files
    assert all(target == source.replace("data", "course_lib/embedded", 1) for source, target in embedded.items())
