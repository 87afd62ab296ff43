"""The chapters as pages that need no kernel and no network: python tools/pages.py [FOLDER] (dist/pages without one).

Formulas become MathML, which browsers draw themselves; pictures and the badge are embedded; links between chapters
lead from page to page; folded cells unfold at a click. Nothing is executed: the pages show what the notebooks hold.
"""
import re
import sys
from html import escape
from pathlib import Path

import nbformat
from jinja2 import DictLoader
from latex2mathml.converter import convert
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parent.parent
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)\$", re.DOTALL)
CHAPTER = re.compile(r"\]\((\w+)\.ipynb(#[^)]*)?\)")
PAGE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_css -%}<style>
main { max-width: 70rem; margin: 0 auto; } summary { cursor: pointer; color: #595959; font-size: 13px; }
details:not([open]) { margin-left: 5rem; } img { max-width: 100%; }
</style>{%- endblock -%}
{%- block input_group -%}
{%- if 'hide-input' in cell.metadata.get('tags', []) -%}<details><summary>code</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock -%}
{%- block data_png -%}
{%- set alt = output.metadata.get('image/png', {}).get('alt', '') -%}
<div class="jp-RenderedImage jp-OutputArea-output"><img alt="{{ alt | e }}"
 src="data:image/png;base64,{{ output.data['image/png'] }}"></div>
{%- endblock -%}"""


def mathml(tex, display):
    "A formula as MathML; one that the converter does not know stays readable as it was written."
    try: return convert(tex.strip(), display=display).replace(r"\_", "_")
    except Exception: return f"<code>{escape(tex)}</code>"


def prepare(markdown, formulas):
    """Links and formulas of a text, its code aside; a formula goes into the list, and a sign into its place, since
    Markdown would take its letters for its own."""
    def keep(match):
        formulas.append(mathml(match[1] or match[2], "block" if match[1] else "inline"))
        return f"\ue000{len(formulas) - 1}\ue001"

    parts = CODE.split(markdown)
    parts[::2] = [FORMULA.sub(keep, CHAPTER.sub(r"](\1.html\2)", text)) for text in parts[::2]]
    return "".join(parts)


def with_formulas(html, formulas):
    "Each formula back in its place, once the text is HTML."
    return re.sub("\ue000(\\d+)\ue001", lambda place: formulas[int(place[1])], html)


def page(path):
    "One notebook as HTML, with pictures in the place of live figures."
    notebook, formulas = nbformat.read(path, as_version=4), []
    name = notebook.cells[0].source.split("\n")[0].removeprefix("# ")
    for cell in notebook.cells:
        if cell.cell_type == "markdown": cell.source = prepare(cell.source, formulas)
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            data.pop("application/vnd.jupyter.widget-view+json", None)
            if "text/markdown" in data: data["text/markdown"] = prepare(data["text/markdown"], formulas)
    exporter = HTMLExporter(template_file="page.html.j2", extra_loaders=[DictLoader({"page.html.j2": PAGE})],
                            embed_images=True)
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": name, "path": str(path.parent)}})
    return with_formulas(html, formulas)


def main(folder=ROOT / "dist" / "pages", notebooks=ROOT / "nbs"):
    "A page for each notebook, and index.html for the map."
    folder, paths = Path(folder), sorted(Path(notebooks).glob("*.ipynb"))
    if not paths: sys.exit(f"No notebooks in {notebooks}.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths: (folder / f"{path.stem}.html").write_text(page(path))
    (folder / "index.html").write_text(f'<!DOCTYPE html>\n<meta charset="utf-8">\n<title>{paths[0].stem}</title>\n'
                                       f'<meta http-equiv="refresh" content="0; url={paths[0].stem}.html">\n')
    print(f"{len(paths)} pages: open {folder / 'index.html'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
