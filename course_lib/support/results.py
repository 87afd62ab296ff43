"""What took longer than a chapter may: measured by a script in `data/`, kept as JSON, loaded by the chapters."""
import json

from .files import embedded


def results(name):
    "What `data/NAME.py` measured, a dict; its entry `made` says where, when and with which versions."
    return json.loads(embedded(f"results/{name}.json").read_text())
