"""A plugin of pytest: failures stand at the end in the order of chapters and cells, however many processes ran them.

Of each chapter the first failing cell counts: those after it often fail for want of what it would have made.
"""
import re


def in_order(report):
    "Files by name, cells by number."
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", report.nodeid)]


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter:
        for reports in (reporter.stats.get("failed", []), reporter.stats.get("error", [])): reports.sort(key=in_order)


def pytest_terminal_summary(terminalreporter):
    first = {}
    for report in terminalreporter.stats.get("failed", []):
        notebook, _, cell = report.nodeid.partition(".ipynb::")
        if cell: first.setdefault(f"{notebook}.ipynb", cell)
    if first: terminalreporter.section("look here first")
    for notebook, cell in first.items(): terminalreporter.write_line(f"{notebook}: {cell}")
