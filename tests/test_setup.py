"""Is this machine ready? What chapter 00's report lists, what it takes for missing, and what it advises."""
import tomllib
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from course_lib.data import DataLoaders, TensorLoader
from course_lib.support import setup
from course_lib.support.files import CHECKOUT
from course_lib.support.setup import check_setup, gpu_advice

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
NEEDED = {Requirement(text).name for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["notebooks"]]}


def dls(name, n):
    part = TensorLoader(torch.zeros(n), torch.zeros(n), 100)
    return DataLoaders(part, part, name=name)


DLS = dls("mnist", 50_000)


def rows(report): return {what: (found, advice) for what, found, advice in report.rows}


def without(monkeypatch, missing):
    "As if one package were not installed."
    version = metadata.version

    def found(name):
        if name == missing: raise metadata.PackageNotFoundError(name)
        return version(name)
    monkeypatch.setattr(setup.metadata, "version", found)


def test_all_that_the_course_and_its_notebooks_need_is_listed():
    report = check_setup("cpu", DLS)
    assert rows(report).keys() == {"Python", *NEEDED, "device", "data"} and {"fastcore", "psutil"} <= NEEDED
    assert report.ok and not any(advice for what, (_, advice) in rows(report).items() if what != "device")
    for name in NEEDED:
        assert rows(report)[name][0] == metadata.version(name)
        assert f"\n| {name} | {metadata.version(name)} |  |\n" in report._repr_markdown_()
    assert "**Ready.**" in report._repr_markdown_()


def test_what_a_checkout_needs_is_read_from_the_checkout(monkeypatch):
    "What pip noted when the checkout was installed may be older."
    monkeypatch.setattr(setup.metadata, "requires", lambda name: ["torch>=2.9"])
    assert {"psutil", "safetensors", "fastcore"} <= rows(check_setup("cpu", DLS)).keys()


def test_what_an_installed_package_needs_is_what_pip_noted(monkeypatch):
    monkeypatch.setattr(setup, "CHECKOUT", None)
    monkeypatch.setattr(setup.metadata, "requires", lambda name: [
        "torch>=2.9", "fastcore>=1.12; extra == 'notebooks'", "fastcore>=1.12; extra == 'lectures'",
        "no-such-package; extra == 'dev'", "no-such-package; python_version < '3'"])
    report = check_setup("cpu", DLS)
    assert [what for what, _, _ in report.rows] == ["Python", "torch", "fastcore", "device", "data"] and report.ok


@pytest.mark.parametrize("missing", ["fastcore", "psutil", "safetensors", "torch"])
def test_what_is_missing_is_named_with_what_to_do(monkeypatch, missing):
    without(monkeypatch, missing)
    report = check_setup("cpu", DLS)
    found, advice = rows(report)[missing]
    assert not report.ok and found == "missing" and advice.startswith(f"needs {missing}>=") and "pip install" in advice
    assert "Not ready yet" in report._repr_markdown_() and advice in repr(report)


def test_what_is_too_old_is_named_too():
    report = check_setup("cpu", DLS, ["torch>=99; extra == 'notebooks'", "numpy>=1"])
    assert rows(report)["torch"] == (metadata.version("torch"), "needs torch>=99: pip install 'torch>=99'")
    assert not report.ok and rows(report)["numpy"][1] == ""


@pytest.mark.parametrize("in_notebook", [True, False])
def test_jupyterlab_is_needed_only_where_no_notebook_is_open(monkeypatch, in_notebook):
    "Colab and others open notebooks without it."
    without(monkeypatch, "jupyterlab")
    monkeypatch.setattr(setup, "in_notebook", lambda: in_notebook)
    report = check_setup("cpu", DLS)
    found, advice = rows(report)["jupyterlab"]
    assert report.ok is in_notebook and found == "missing" and advice.startswith("needs") is not in_notebook and advice


def test_a_notebook_is_told_from_a_script(monkeypatch):
    for shell, open_here in [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel="one"), True)]:
        monkeypatch.setitem(setup.sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert setup.in_notebook() is open_here
    monkeypatch.delitem(setup.sys.modules, "IPython")
    assert not setup.in_notebook()


def test_the_embedded_digits_are_fine_too():
    report = check_setup("cpu", dls("digits", 1248))
    assert report.ok and rows(report)["data"][0] == "digits, 1,248 images to train" and rows(report)["data"][1]


@pytest.mark.parametrize("module, variable, tool, advice", [
    ("google.colab", None, None, "T4 GPU"), (None, "KAGGLE_KERNEL_RUN_TYPE", None, "Accelerator"),
    (None, None, "/usr/bin/nvidia-smi", "NVIDIA driver"), (None, None, None, "No GPU needed")])
def test_advice_about_the_gpu(monkeypatch, module, variable, tool, advice):
    for name in ("google.colab", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delitem(setup.sys.modules, name, raising=False)
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setup.shutil, "which", lambda name: tool)
    if module: monkeypatch.setitem(setup.sys.modules, module, None)
    if variable: monkeypatch.setenv(variable, "Interactive")
    assert advice in gpu_advice("cpu") and gpu_advice("cuda") == gpu_advice(torch.device("mps")) == ""
