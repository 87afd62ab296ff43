"""Settings of the JupyterLab that `make lecture` opens: its deck, the presenter's page, and nothing of yours."""
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LECTURE = Path(os.environ.get("LECTURE", ROOT / "dist" / "lecture"))
FIRST = min((LECTURE / "nbs").glob("*.ipynb")).name
sys.path.insert(0, str(ROOT))
load_subconfig("jupyter_server_config.py", path=str(ROOT / "tools"))  # noqa: F821 (Jupyter gives it, and `c`)

# An instructor's own JupyterLab stays as it is: a deck leaves traces in settings and workspaces. All cells are there
# from the beginning, since the deck wants that, and JupyterLab fails where that changes while a notebook opens.
for name, values in {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
                     "notebook-extension/tracker": {"windowingMode": "none"}}.items():
    path = LECTURE / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
c.LabApp.user_settings_dir = str(LECTURE / "settings")  # noqa: F821
c.LabApp.workspaces_dir = str(LECTURE / "workspaces")  # noqa: F821
c.LabApp.extension_manager = "readonly"  # noqa: F821 (it would ask the network)
c.LabApp.extra_labextensions_path = [str(ROOT / "tools" / "presenter" / "labextensions")]  # noqa: F821
c.LabApp.default_url = f"/lab/tree/{FIRST}"  # noqa: F821
c.ServerApp.root_dir = str(LECTURE / "nbs")  # noqa: F821
c.ServerApp.jpserver_extensions = {"tools.presenter.server": True}  # noqa: F821
