"""The chapters as lectures.

    python tools/lectures.py slides [03 06]     dist/slides/NN_name.html: each deck in one file, for a double-click
    python tools/lectures.py notebooks 03 06    dist/lecture/: notebooks for `make lecture`, slides between their cells

What becomes a slide is decided in `tools/deck.py`; what the presenter says is in `book/notes/`. In the files, live
figures move if `make recordings` has recorded them and nothing has changed since; else they are pictures.
"""
import argparse
import re
import shutil
import sys
from html import escape
from itertools import accumulate
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tools import recordings  # noqa: E402
from tools.deck import deck, opening, picture_of, plain, printed, sentences  # noqa: E402
from tools.editions import cell as new_cell  # noqa: E402
from tools.editions import notes_of, plan_of  # noqa: E402
from tools.notebooks import chapters  # noqa: E402
from tools.pages import prepare, with_formulas  # noqa: E402

REVEAL = ROOT / "tools" / "reveal"
# Keys in a figure's controls are theirs; Escape and the keys of a remote control give the deck its keys back.
KEYS = """
document.querySelectorAll("figure.live").forEach(figure => figure.addEventListener("keydown", event => {
  const leave = ["Escape", "PageUp", "PageDown"].includes(event.key);
  if (leave) { event.preventDefault(); document.activeElement.blur(); }
  if (!leave || event.key === "Escape") event.stopPropagation();
}));
"""


def html_of(markdown):
    "Markdown as HTML; formulas become MathML, which browsers draw themselves."
    formulas = []
    return with_formulas(markdown2html_mistune(prepare(plain(markdown), formulas)), formulas)


def sections_of(slides, notes):
    "The section of each slide: its own heading, or, where the notes do not name that, the last one that they name."
    section, found = "", []
    for slide in slides:
        if slide.heading in notes: section = slide.heading
        found.append(section)
    return found


def notes_html(section, notes):
    "What the presenter reads beside a slide: the notes of its section, or the plan of the whole lecture."
    if not section: return html_of(plan_of(notes)) if notes else ""
    minutes, said = notes[section]
    return f"<p><em>{escape(section.lstrip('# '))}: {minutes} min.</em></p>{html_of(said)}"


def seconds_of(sections, notes):
    "How long each slide may take: the slides of a section share its minutes."
    return [round(60 * notes[section][0] / sections.count(section)) if section else 0 for section in sections]


def caption_of(cell):
    "A figure's caption, or its first sentences."
    texts = [output.data["text/markdown"] for output in cell.outputs if "text/markdown" in output.get("data", {})]
    said = sentences(texts[-1].strip().strip("*")) if texts else []
    said = [sentence for sentence in said if sentence != "Live figure."]
    return opening(said, 150, 150) if said else ""


def recorded(stem, nb):
    "The recordings of a chapter, as long as they are right: a cell's id -> (name, script as an address)."
    names = recordings.kept(stem, nb) or []
    found = {cell.id: f"{stem}-{cell.id}-0" for cell in nb.cells if f"{stem}-{cell.id}-0" in names}
    return {cell: (name, f"data:text/javascript,{quote((recordings.FOLDER / f'{name}.js').read_text(), safe='/+=,()')}")
            for cell, name in found.items()}


def figure_html(cell, live, moving):
    output = picture_of(cell)
    alt = output.metadata.get("image/png", {}).get("alt", "")
    picture = f'<img alt="{escape(alt)}" src="data:image/png;base64,{"".join(output.data["image/png"].split())}">'
    if cell.id in moving:
        name, address = moving[cell.id]
        return recordings.figure(name, address, f'<div class="live-still">{picture}</div>', html_of(caption_of(cell)),
                                 ' data-prevent-swipe data-sharpness="2"')
    words = re.search(r'aria-live="polite">(.*?)</div>', output.data.get("text/html", ""))
    said = f'<figcaption class="words">{words[1]}</figcaption>' if live and words else ""
    return f"<figure>{picture}{said}<figcaption>{html_of(caption_of(cell)).strip()}</figcaption></figure>"


def without_directives(source): return re.sub(r"(?m)^#\|.*\n?", "", source)


def part_html(part, cells, moving, step):
    "A part of a slide; what follows a fragment comes with it, as in JupyterLab. `step`: the number of that, or 0."
    fragment, at = (" fragment", f' data-fragment-index="{step - 1}"') if step else ("", "")
    if part.cell is None:
        kind = part.kind if part.kind in ("question", "answer") else "text"
        return f'<div class="{kind}{fragment}"{at}>{html_of(part.text)}</div>'
    cell, pieces = cells[part.cell], []
    if part.source:
        code = without_directives(cell.source)
        pieces.append(f'<div class="code" style="font-size:{part.size}px">'
                      f'{highlight(code, PythonLexer(), HtmlFormatter(nowrap=False)).strip()}</div>')
    if part.outputs and (text := printed(cell).strip("\n")): pieces.append(f'<pre class="result">{escape(text)}</pre>')
    if part.kind in ("figure", "live"): pieces.append(figure_html(cell, part.kind == "live", moving))
    html = "".join(pieces)
    grows = ' style="flex:1 1 0;min-height:0;display:flex;flex-direction:column"' if "<figure" in html else ""
    return f'<div class="cell{fragment}"{at}{grows}>{html}</div>'


def page(nb, notes, reveal, moving=None):
    "A deck as one HTML file; `moving`: its recorded figures."
    slides, pieces, moving = deck(nb, notes), [], moving or {}
    sections = sections_of(slides, notes)
    for slide, section, timing in zip(slides, sections, seconds_of(sections, notes), strict=True):
        steps = accumulate(part.fragment for part in slide.parts)
        body = "".join(part_html(part, nb.cells, moving, step) for part, step in zip(slide.parts, steps, strict=True))
        title = html_of(slide.title).strip().removeprefix("<p>").removesuffix("</p>")
        pieces.append(f'<section class="deck {slide.kind}" style="font-size:{slide.letters}px" data-timing="{timing}">'
                      f'<h2>{title}</h2>{body}<aside class="notes">{notes_html(section, notes)}</aside></section>')
    style = reveal["reveal.css"] + HtmlFormatter().get_style_defs(".code") + reveal["slides.css"]
    player = (ROOT / "book" / "player.js").read_text() + KEYS if moving else ""
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(slides[0].title)}</title>\n'
            f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>\n'
            f'<body><div class="reveal"><div class="slides">\n{chr(10).join(pieces)}\n</div></div>\n'
            f'<script>{reveal["reveal.js"]}</script>\n<script>{reveal["notes.js"]}</script>\n<script>'
            'Reveal.initialize({width: 1280, height: 720, margin: 0, center: false, hash: true, transition: "none", '
            'slideNumber: "c/t", pdfSeparateFragments: false, plugins: [RevealNotes]});</script>'
            f'<script>{player}</script></body></html>\n')


def chapters_with_notes(names):
    for path in chapters(names=names):
        notes = notes_of(ROOT / "book" / "notes" / f"{path.stem}.md")
        if notes or names: yield path, nbformat.read(path, as_version=4), notes


def slides(names, folder):
    folder.mkdir(parents=True, exist_ok=True)
    reveal = {path.name: path.read_text().replace("</script", "<\\/script") for path in REVEAL.iterdir()}
    still = []
    for path, nb, notes in chapters_with_notes(names):
        moving = recorded(path.stem, nb)
        if not moving and recordings.live_cells(nb): still.append(path.stem[:2])
        (folder / f"{path.stem}.html").write_text(page(nb, notes, reveal, moving))
    print(f"written to {folder}: open one in a browser; s opens the presenter's window, f fills the screen")
    if still: print(f"Figures stand still in {' '.join(still)}: `make recordings` makes them move, then again this.")


def outline(slide, cells):
    "What is on a slide, in short, for the presenter who sees it coming."
    pieces = []
    for part in slide.parts:
        cell = None if part.cell is None else cells[part.cell]
        if cell is None: pieces.append(html_of(part.text))
        elif part.source: pieces.append(f"<pre>{escape(cell.source[:400])}</pre>")
        elif part.kind == "result": pieces.append(f"<pre>{escape(printed(cell)[:400])}</pre>")
        else: pieces.append(f"<p>[{'live ' * (part.kind == 'live')}figure] {escape(caption_of(cell))}</p>")
    return "".join(pieces)


def lecture(path, nb, notes):
    """The chapter with its slides between its cells. All cells stay, so that the whole of it runs; the deck skips those
    that are on no slide. There are no solutions, and notes are in the metadata, where no hall sees them."""
    slides = deck(nb, notes)
    sections = sections_of(slides, notes)
    before, after = {}, {}          # cells to put before a cell of the chapter, and after it
    for cell in nb.cells:
        cell.metadata.slideshow = {"slide_type": "skip"}
        if cell.cell_type == "code": cell.source = without_directives(cell.source)
    timed = zip(slides, sections, seconds_of(sections, notes), strict=True)
    for number, (slide, section, seconds) in enumerate(timed):
        title = {"title": plain(slide.title).replace("`", ""), "section": section, "seconds": seconds,
                 "notes": notes_html(section, notes),
                 "outline": outline(slide, nb.cells), **({"look": "title"} if slide.kind == "title" else {})}
        at_cell = slide.parts[0].cell
        head = slide_cell(f"## {slide.title}", f"{path.stem} {number}", {"slide_type": "slide"}, title)
        (before if at_cell is not None else after).setdefault(slide.parts[0].after, []).append(head)
        for place, part in enumerate(slide.parts):
            kind = {"slide_type": "fragment"} if part.fragment else {}
            if part.cell is not None:
                cell = nb.cells[part.cell]
                cell.metadata.slideshow = kind
                cell.metadata.lecture = {"source": part.source, "outputs": part.outputs, "size": part.size,
                                         "live": part.kind == "live"}
                cell.metadata.pop("jupyter", None)
            else:
                look = {"look": part.kind} if part.kind in ("question", "answer") else {}
                if slide.letters > 28: look["letters"] = slide.letters
                text = slide_cell(part.text, f"{path.stem} {number} {place}", kind, look)
                after.setdefault(part.after, []).append(text)
    cells = []
    for index, cell in enumerate(nb.cells): cells += [*before.get(index, []), cell, *after.get(index, [])]
    nb.cells, nb.metadata.lecture = cells, {"title": slides[0].title}
    return nb


def slide_cell(text, seed, slideshow, metadata):
    made = new_cell("markdown", plain(text), ["slide"], seed)
    made.metadata.slideshow, made.metadata.lecture = slideshow, metadata
    return made


def notebooks(names, folder):
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "nbs").mkdir(parents=True)
    shutil.copytree(ROOT / "nbs" / "images", folder / "nbs" / "images")
    found = list(chapters_with_notes(names))
    for path, nb, notes in found: nbformat.write(lecture(path, nb, notes), folder / "nbs" / path.name)
    print(f"written to {folder}: {', '.join(path.stem for path, _, _ in found)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["slides", "notebooks"])
    parser.add_argument("names", nargs="*", help="chapters, such as 03 (all that have notes without one)")
    parser.add_argument("--to", type=Path, help="another folder")
    args = parser.parse_args()
    if args.what == "slides": slides(args.names, args.to or ROOT / "dist" / "slides")
    else: notebooks(args.names, args.to or ROOT / "dist" / "lecture")
