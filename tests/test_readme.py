"""README's examples as they stand, each as a script in a fresh process."""
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
