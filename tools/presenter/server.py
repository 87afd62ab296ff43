"""A part of the Jupyter server while a lecture is given: the presenter's page, and a hub between it and the deck.

What one of them sends, all others get. So a page on a second screen, a tablet or a phone follows the deck and turns it.
"""
from pathlib import Path

from jupyter_server.auth.decorator import ws_authenticated
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from jupyter_server.utils import url_path_join
from tornado import web
from tornado.websocket import WebSocketHandler


class Page(JupyterHandler):
    @web.authenticated
    def get(self): self.finish((Path(__file__).parent / "presenter.html").read_text())


class Hub(WebSocketMixin, WebSocketHandler, JupyterHandler):
    everybody = set()

    def set_default_headers(self): pass     # those of pages are not for sockets

    @ws_authenticated
    async def get(self): await super().get()

    def open(self, *args, **kwargs):
        super().open(*args, **kwargs)
        self.everybody.add(self)

    def on_message(self, message):
        for other in self.everybody - {self}: other.write_message(message)

    def on_close(self):
        super().on_close()
        self.everybody.discard(self)


def _jupyter_server_extension_points(): return [{"module": "tools.presenter.server"}]


def _load_jupyter_server_extension(server):
    base = server.web_app.settings["base_url"]
    server.web_app.add_handlers(".*", [(url_path_join(base, "presenter"), Page),
                                       (url_path_join(base, "presenter", "socket"), Hub)])
