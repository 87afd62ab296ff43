"""Is this machine ready for the course? What `check_setup` of chapter 00 looks at and advises."""
import os
import platform
import shutil
import sys
import tomllib
from importlib import metadata

import torch
from packaging.requirements import Requirement

from .arguments import a_device, checked, a_dls
from .files import CHECKOUT


def gpu_advice(device):
    "What to do about the device, in a sentence; empty if it is a GPU."
    if torch.device(device).type != "cpu": return ""
    if "google.colab" in sys.modules:
        return ("Your GPU is off. Menu Runtime → Change runtime type → T4 GPU → Save, "
                "then run this notebook again.")
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "Your GPU is off. Menu Settings → Accelerator → GPU, then run this notebook again."
    if shutil.which("nvidia-smi"):
        return ("This machine has an NVIDIA driver, but this torch cannot use it: "
                "see pytorch.org/get-started for a build that fits the driver.")
    return "No GPU needed: every chapter of the course is made to run on a CPU."


class SetupReport:
    """What was found, and what to do about it.

    `rows`: (what, found, advice) texts; `ok`: nothing is missing or too old.
    """
    def __init__(self, rows, ok): self.rows, self.ok = rows, ok

    def __repr__(self):
        return "\n".join(f"{what:12} {found}{f'  → {advice}' if advice else ''}"
                         for what, found, advice in self.rows)

    def _repr_markdown_(self):
        table = "\n".join(f"| {what} | {found} | {advice} |" for what, found, advice in self.rows)
        verdict = "Ready." if self.ok else "Not ready yet: see the last column."
        return f"| | found | what to do |\n|---|---|---|\n{table}\n\n**{verdict}**"


def course_requirements():
    """What the course needs, as texts like "torch>=2.9": the package's own requirements, and its extras', each with its
    marker. Those of a checkout are read from it: what pip noted when it was installed may be older.
    """
    if not CHECKOUT: return metadata.requires("course_lib")
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["notebooks"]]


def in_notebook():
    "Does this run in the kernel of a notebook?"
    return hasattr(sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None, "kernel")


@checked(device=a_device, dls=a_dls)
def check_setup(device, dls, requirements=None):
    """Compare this environment with what the course and its notebooks need -> `SetupReport`.

    device: as from `default_device()`; dls: as from `course_data()`;
    requirements: texts like "torch>=2.9", by default those of the package and of its extra `notebooks`.
    """
    rows, ok = [("Python", platform.python_version(), "")], True
    for requirement in map(Requirement, course_requirements() if requirements is None else requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": "notebooks"}): continue  # another extra
        text = f"{requirement.name}{requirement.specifier}"
        try: found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError: found = None
        fits = found is not None and requirement.specifier.contains(found, prereleases=True)
        if fits: advice = ""
        elif requirement.name == "jupyterlab" and in_notebook(): advice = "not needed here: this notebook is open"
        else: advice, ok = f"needs {text}: pip install '{text}'", False
        rows.append((requirement.name, found or "missing", advice))
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else f"{os.cpu_count()} cores"
    rows.append(("device", f"{torch.device(device)} ({name})", gpu_advice(device)))
    hint = ("" if dls.name == "mnist" else
            "Fine for everything. With a network you get MNIST, forty times as many images.")
    rows.append(("data", f"{dls.name}, {len(dls.train.x):,} images to train", hint))
    return SetupReport(rows, ok)
