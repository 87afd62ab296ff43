"""README's examples as they stand, each as a script in a fresh process."""
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def run(example, folder, path=ROOT):
    "Run it in this folder, with the library at this path."
    (folder / "example.py").write_text(example)
    return subprocess.run([sys.executable, "example.py"], cwd=folder, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(path)})


@pytest.mark.parametrize("example", EXAMPLES, ids=range(1, len(EXAMPLES) + 1))
def test_an_example_runs_and_says_little(example, tmp_path):
    done = run(example, tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert 0 < len(done.stdout) < 3000 and "\\x" not in done.stdout, done.stdout[:500]


def test_there_are_examples(): assert len(EXAMPLES) >= 2


def test_what_the_changelog_says_has_moved_is_where_it_says():
    text = (ROOT / "CHANGELOG.md").read_text()
    renamed = re.findall(r"^\| `\w+` \| `(\w+)` \| `([\w.]+)` \|$", text, re.MULTILINE)
    places = [(module, [name]) for name, module in renamed]
    places += [(module, re.findall(r"\w+", names))
               for module, names in re.findall(r"^\| `([\w.]+)` \| ((?:`\w+`(?:, )?)+) \|$", text, re.MULTILINE)
               if not module.startswith("course_lib")]
    assert len(renamed) == 11 and len(places) > 25
    for module, names in places:
        module = importlib.import_module(f"course_lib.{module}")
        for name in names: assert hasattr(module, name), f"{module.__name__}.{name}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files_and_commands_to_targets(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text): assert (ROOT / target).exists(), target
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:`| {4})make ([a-z-]+)", text): assert target in targets, target
