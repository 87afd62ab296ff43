"""What `progress()` shows: the exercises by chapter, as plain text in a terminal and as a table in a notebook."""
import html
import itertools

from .core import Text

MARKS = {"right": "✓", "wrong": "✗", "not yet": "○"}


class Page(Text):
    "Exercises and their states, chapter by chapter: as text, and as HTML where a notebook asks for that."
    def __new__(cls, chapters, note):
        "chapters: title -> {name of an exercise: its state}; note: a sentence for below."
        text = ["\n".join([heading, *(f"  {MARKS[state]} {state:8} {name}" for name, state in states.items())])
                for heading, states in with_counts(chapters).items()]
        page = super().__new__(cls, "\n\n".join([*text, note]))
        page.chapters, page.note = chapters, note
        return page

    def _repr_html_(self):
        "State by word, mark and weight: no colour of its own, so it can be read on light and on dark ground."
        left, rows = 'style="text-align: left"', []
        for heading, states in with_counts(self.chapters).items():
            rows.append(f'<tr><th colspan="2" scope="rowgroup" {left}>{html.escape(heading)}</th></tr>')
            for name, state in states.items():
                said = f'<span aria-hidden="true">{MARKS[state]}</span> {state}'
                if state != "right": said = f"<strong>{said}</strong>"
                rows.append(f"<tr><td {left}>{said}</td><td {left}><code>{html.escape(name)}</code></td></tr>")
        head = f'<thead><tr><th scope="col" {left}>state</th><th scope="col" {left}>exercise</th></tr></thead>'
        return f"<table>{head}<tbody>{''.join(rows)}</tbody></table><p>{html.escape(self.note)}</p>"


def with_counts(chapters):
    "The chapters, with headings that count; if there are several, all together first."
    def count(states): return f"{sum(state == 'right' for state in states)} of {len(states)} right"
    every = list(itertools.chain(*(states.values() for states in chapters.values())))
    total = {f"All chapters: {count(every)}": {}} if len(chapters) > 1 else {}
    return total | {f"{title}: {count(states.values())}": states for title, states in chapters.items()}
