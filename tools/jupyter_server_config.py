"""Settings of the JupyterLab that `make lab` opens: it begins with the map, and small messages leave at once.

Nagle's algorithm holds a slider's second message back for some 50 ms; without it a key press becomes a new picture
twice as fast.
"""
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler

_open = KernelWebsocketHandler.open


async def _open_without_delay(self, kernel_id):
    self.set_nodelay(True)
    await _open(self, kernel_id)


KernelWebsocketHandler.open = _open_without_delay

# Also in the address that it prints where there is no browser.
c.LabApp.default_url = "/lab/tree/nbs/00_start_here.ipynb"  # noqa: F821 (Jupyter gives `c`)
