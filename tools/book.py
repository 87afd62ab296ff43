"""The book: python tools/book.py [--draft] builds dist/book, which opens from a file, without kernel and network.

Live figures are recorded first (tools/recordings.py); a draft takes the recordings that are there, and pictures for the
rest. Then the notebooks are laid out for Sphinx, with recorded figures in the place of widgets, pictures as files, and
links to a reference of all public names, which is written from their docstrings. Warnings are errors.
"""
import ast
import base64
import hashlib
import html
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt

import recordings
from notebooks import pages_of

ROOT = Path(__file__).resolve().parent.parent
SOURCE, BOOK, NPM = ROOT / "dist" / "book-source", ROOT / "dist" / "book", ROOT / "dist" / "npm"
MATHJAX = "mathjax@3.2.2"
LAB = "http://localhost:8888/lab/tree/"
PARTS = {"The step": "01 02 03 04 05", "The loop": "06 07 08 09", "The network": "10 11",
         "The tricks": "12 13 14 15 16 17 18", "Appendices": "A1 A2 A3"}
PICTURE = re.compile(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]+)">')
BADGE = re.compile(r"(?m)^\[!\[.*open-in-colab.*$\n*")
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def address():
    "Where GitHub Pages shows the book."
    return pages_of(REPOSITORY) or "https://owner.github.io/repository/"


def colab(stem):
    in_colab = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")
    return f"{in_colab}/blob/main/nbs/{stem}.ipynb"


def told(name): return json.loads((recordings.FOLDER / f"{name}.json").read_text())


def as_file(png):
    "A picture as a file of the book: -> its address from a page at the top."
    name = f"_static/pictures/{hashlib.sha256(png).hexdigest()[:16]}.png"
    path = SOURCE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)
    return name


def inline(markdown):
    "Markdown of a caption as HTML."
    return MarkdownIt().renderInline(markdown.strip().strip("*"))


def live(name, png, stem, alt="A live figure that was not recorded."):
    """A recorded figure: the picture that it gives way to, its caption, and the way to the live one.

    In a draft, a figure without a recording stays a picture with this alt text.
    """
    if not (recordings.FOLDER / f"{name}.json").exists():
        if "--draft" not in sys.argv: raise FileNotFoundError(f"No recording of {name}: python tools/recordings.py")
        return f'<img class="picture not-recorded" alt="{alt}" src="{as_file(png)}">' if png else ""
    about, script = told(name), recordings.FOLDER / f"{name}.js"
    digest = hashlib.sha256(script.read_bytes()).hexdigest()[:8]  # a browser keeps what has the same name
    target = SOURCE / "_static" / "figures" / f"{name}.{digest}.js"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(script, target)
    still = (f'<img class="live-still" alt="{html.escape(about["alt"])}" src="{as_file(png)}">' if png else
             '<p class="live-still">A figure of words: it needs JavaScript.</p>')
    caption = f'<p>{inline(about["caption"])}</p>' if about["caption"] else ""
    way = f'Every setting, and training of your own, in the live one: <a href="{colab(stem)}">open it in Colab</a>.'
    return recordings.figure(name, f"_static/figures/{target.name}", still,
                             f'{caption}<p class="live-note">{way}</p>', f' id="{name}"')


def picture_of(data):
    "The picture in the saved output of a live figure, and its alt text as HTML; None for a figure of words."
    if "image/png" not in data: return None, ""
    return base64.b64decode(data["image/png"]), re.search('alt="([^"]*)"', data["text/html"])[1]


def html_output(text): return nbformat.v4.new_output("display_data", data={"text/html": text, "text/plain": ""})


def outputs_of(cell, stem):
    "A cell's outputs as the book shows them."
    made, n, pending, skip = [], 0, (None, ""), None
    for output in cell.outputs:
        data = output.get("data", {})
        if skip and data.get("text/markdown", "").strip("* \n") == skip: continue  # it stands below the figure
        if "explorer-asleep" in data.get("text/html", ""):
            pending = picture_of(data)
            continue
        if recordings.VIEW in data:
            name = f"{stem}-{cell.id}-{n}"
            n += 1
            made.append(html_output(live(name, pending[0], stem, pending[1])))
            if "figcaption" in made[-1].data["text/html"]: skip = told(name)["caption"].strip("* \n")
            continue
        if found := PICTURE.fullmatch(data.get("text/html", "").strip()):
            file = as_file(base64.b64decode(found[2]))
            made.append(html_output(f'<img class="picture" alt="{found[1]}" src="{file}">'))
            continue
        made.append(output)
    return made


def links_on_top(stem):
    return (f'<div class="lesson-links"><a href="{colab(stem)}">Open in Colab</a>'
            f'<a href="_static/notebooks/{stem}.ipynb" download>Download</a>'
            f'<a href="{LAB}{stem}.ipynb" title="while make lab runs on this machine">Open in Lab</a></div>\n\n')


def chapter(path, first_use):
    "A notebook as the book's source."
    notebook, stem = nbformat.read(path, as_version=4), path.stem
    cells = []
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown" and i == 0: cell.source = BADGE.sub(links_on_top(stem), cell.source)
        if cell.cell_type == "markdown": cell.source = cell.source.replace("](../book/", "](")
        cells.append(cell)
        if cell.cell_type != "code": continue
        if not cell.source.strip(): cells.pop()
        cell.outputs = outputs_of(cell, stem)
        if names := first_use.get(cell.id):
            links = ", ".join(f"[`{name}`](reference/{page}.md#{anchor(name)})" for name, page in names)
            cells.append(nbformat.v4.new_markdown_cell(f"{{.in-reference}}\nIn the reference: {links}."))
    notebook.cells = cells
    for n, cell in enumerate(notebook.cells): cell.id = f"cell-{n}"
    nbformat.write(notebook, SOURCE / path.name)
    (SOURCE / "_static" / "notebooks").mkdir(parents=True, exist_ok=True)
    shutil.copy(path, SOURCE / "_static" / "notebooks")


def anchor(name):
    "A label that also tells `Rotate` from `rotate`: labels know no capitals."
    return ("class-" if name[0].isupper() else "course-lib-") + name.lower().replace("_", "-")


def public_names():
    "All that course_lib offers: name -> (thing, page of the reference)."
    import course_lib
    found = {}
    for name in course_lib.__all__:
        thing = getattr(course_lib, name)
        module = getattr(thing, "__module__", None) or ""
        if not module.startswith("course_lib"):  # a constant does not say where it comes from
            module = next(f"course_lib.{lesson}" for lesson in lessons() if defines(lesson, name))
        found[name] = thing, module.removeprefix("course_lib.").split(".")[0]
    return found


def lessons(): return [path.stem.split("_", 1)[1] for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))][1:]


def defines(lesson, name):
    path = ROOT / "course_lib" / f"{lesson}.py"
    return path.exists() and re.search(rf"(?m)^(def|class) {name}\b|^{name}\b.*=", path.read_text())


def slug(title): return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def code_names(source):
    "The names that a cell's code uses, imports or defines."
    source = re.sub(r"(?m)^\s*[%!].*$", "pass", source)
    try: tree = ast.parse(source)
    except SyntaxError: return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name): names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)): names.add(node.name)
    return names


def uses(names):
    """Where lessons use or define public names: -> {stem: {cell id: [(name, page)]}} for the first place of each, and
    name -> [(stem, title, heading)] for the first place in each lesson.
    """
    first, lessons_of, seen = {}, {name: [] for name in names}, set()
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        notebook, heading = nbformat.read(path, as_version=4), None
        title = notebook.cells[0].source.split("\n")[0].removeprefix("# ")
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                for found in re.finditer(r"(?m)^#{2,3} (.+)$", cell.source): heading = found[1]
                continue
            here = sorted((code_names(cell.source) & names.keys()), key=str.lower)
            for name in here:
                known = [stem for stem, _, _ in lessons_of[name]]
                if path.stem not in known: lessons_of[name].append((path.stem, title, heading))
            new = [(name, names[name][1]) for name in here if name not in seen]
            seen.update(name for name, _ in new)
            if new: first.setdefault(path.stem, {})[cell.id] = new
    return first, lessons_of


def signature(thing):
    try: return re.sub(r"<function (\S+) at 0x\w+>", r"\1", re.sub(r" at 0x\w+", "", str(inspect.signature(thing))))
    except (TypeError, ValueError): return ""


def docstring(thing): return inspect.cleandoc(thing.__doc__ or "") if callable(thing) else ""


def safe(text):
    "A docstring as Markdown: what is not code between backticks is words."
    parts = re.split(r"(``.+?``|`[^`\n]+`)", text)
    parts[::2] = [re.sub(r"([*_<>\[\]|$#{}\\])", r"\\\1", part) for part in parts[::2]]
    return re.sub(r"(?m)^(\s*)([-+]|\d+\.) ", r"\1\\\2 ", "".join(parts)).replace("\n    ", "\n")


def entry(name, thing, lessons_of):
    "A name of the reference: signature, docstring, public methods, lessons."
    kind = "class" if inspect.isclass(thing) else "function" if callable(thing) else "data"
    called = signature(thing) if kind != "data" else ""
    lines = [f"({anchor(name)})=", f"## {name}", "", f"```{{py:{kind}}} {name}{called}", ":no-index-entry:", "```", "",
             safe(docstring(thing)) or safe(str(thing)), ""]
    if kind == "class":
        for method, of in vars(thing).items():
            if method.startswith("_") or not inspect.isfunction(of) or not of.__doc__: continue
            lines += [f"**`.{method}{signature(of)}`**", "", safe(docstring(of)), ""]
    places = [f"[{title}](../{stem}.ipynb{f'#{slug(heading)}' if heading else ''})"
              for stem, title, heading in lessons_of[name][:6]]
    if places: lines += ["*In lessons:* " + ", ".join(places), ""]
    return "\n".join(lines)


def reference(names, lessons_of):
    "A page for each lesson's names, one for the support's, and an index of all."
    folder, pages = SOURCE / "reference", {}
    folder.mkdir()
    for name, (thing, page) in names.items(): pages.setdefault(page, []).append((name, thing))
    order = [lesson for lesson in lessons() if lesson in pages] + [page for page in pages if page not in lessons()]
    for page in order:
        entries = [entry(name, thing, lessons_of) for name, thing in pages[page]]
        (folder / f"{page}.md").write_text(f"# course_lib.{page}\n\n" + "\n".join(entries))
    rows = "\n".join(f"| [`{name}`]({page}.md#{anchor(name)}) | {first_line(thing)} |"
                     for name, (thing, page) in sorted(names.items(), key=lambda row: row[0].lower()))
    (folder / "index.md").write_text(
        "# Reference\n\nEvery public name of `course_lib`. `from course_lib import …` offers all of them.\n\n"
        f"| Name | What it is |\n|---|---|\n{rows}\n\n" + hidden_tree(order))


def first_line(thing):
    if not docstring(thing): return "a constant"
    return safe(docstring(thing).split("\n\n")[0].replace("\n", " "))


def hidden_tree(documents, caption=None):
    option = f":caption: {caption}\n" if caption else ""
    return "```{toctree}\n:hidden:\n" + option + "\n" + "\n".join(documents) + "\n```\n"


def toctrees(stems):
    made = [hidden_tree(["students", "instructors", "engineers", stems["00"], "which_chapter"], "Begin")]
    for caption, numbers in PARTS.items():
        if documents := [stems[number] for number in numbers.split() if number in stems]:
            made.append(hidden_tree(documents, caption))
    return "\n".join([*made, hidden_tree(["reference/index"], "Reference")])


def from_npm(package, member, target):
    "A file or folder of an npm package, fetched once."
    NPM.mkdir(parents=True, exist_ok=True)
    name = package.lstrip("@").replace("/", "-").replace("@", "-")
    archive = NPM / f"{name}.tgz"
    if not archive.exists():
        if not shutil.which("npm"): sys.exit(f"npm is not installed. It fetches {package} once, into {NPM}.")
        subprocess.run(["npm", "pack", "--silent", package], cwd=NPM, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(archive) as tar: content = tar.extractfile(f"package/{member}").read()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def open_graph(target):
    "The picture that other sites show: 1200 × 630."
    from matplotlib.figure import Figure

    from course_lib.figures.sgd import canyon_explorer
    from PIL import Image
    explorer = canyon_explorer()
    explorer.set(lr=.08, steepness=20, n_steps=60)
    picture = explorer.figure.picture()
    fig = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    fig.text(.05, .84, "Make neural networks train fast", fontsize=40, weight="bold", color="#222222")
    fig.text(.05, .74, "A course in notebooks: every claim measured, every figure moves", fontsize=22, color="#222222")
    fig.savefig(target, dpi=100)
    card = Image.open(target).convert("RGB")
    picture = picture.resize((1120, round(1120 * picture.height / picture.width)), Image.LANCZOS)
    card.paste(picture, (40, 205))
    card.save(target, optimize=True)


NOT_FOUND = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Far outside: no such page</title>
<style>body {{ font: 1.1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem;
color: #222; background: #fff }}
a {{ color: #005A8C }}</style></head>
<body><main><h1>Far outside</h1><p>The walker has left the map: there is no page at this address.</p>
<p><a href="{address}">Back to the start of the book</a></p></main></body></html>
"""


def lay_out():
    "Write all sources for Sphinx."
    shutil.rmtree(SOURCE, ignore_errors=True)
    (SOURCE / "_static").mkdir(parents=True)
    for name in ("player.js", "book.css"): shutil.copy(ROOT / "book" / name, SOURCE / "_static")
    names = public_names()
    first, lessons_of = uses(names)
    paths = sorted((ROOT / "nbs").glob("*.ipynb"))
    for path in paths: chapter(path, first.get(path.stem, {}))
    reference(names, lessons_of)
    for path in [*(ROOT / "book" / "pages").glob("*.md"), ROOT / "book" / "which_chapter.md"]:
        text = path.read_text().replace("REPOSITORY", REPOSITORY).replace("](../nbs/", "](")
        for line in re.findall(r"(?m)^LIVE \S+ \S+$", text):
            _, stem, cell = line.split()
            notebook = nbformat.read(ROOT / "nbs" / f"{stem}.ipynb", as_version=4)
            png, alt = next(picture_of(output.data) for one in notebook.cells if one.id == cell
                            for output in one.outputs if "image/png" in output.get("data", {}))
            text = text.replace(line, "```{raw} html\n" + live(f"{stem}-{cell}-0", png, stem, alt) + "\n```")
        if path.stem == "index": text += "\n" + toctrees({path.stem.split("_")[0]: path.stem for path in paths})
        (SOURCE / path.name).write_text(text)
    from_npm(MATHJAX, "es5/tex-svg.js", SOURCE / "_static" / "mathjax" / "tex-svg.js")
    open_graph(SOURCE / "_static" / "open-graph.png")


# What the theme leaves without a name: a reader who hears the page needs one.
NAMES = {'<div id="pst-primary-sidebar"': '<div role="navigation" aria-label="The book" id="pst-primary-sidebar"',
         '<summary><span class="toctree-toggle"': '<summary aria-label="Pages below"><span class="toctree-toggle"',
         '<th class="head"><p></p></th>': "<td></td>"}    # the corner of a table heads nothing


def finish():
    "What Sphinx does not write: names for the theme's parts, the page for lost readers, the site map."
    for path in BOOK.rglob("*.html"):
        text = path.read_text()
        for found, named in NAMES.items(): text = text.replace(found, named)
        path.write_text(text)
    (BOOK / "404.html").write_text(NOT_FOUND.format(address=address()))
    (BOOK / ".nojekyll").touch()
    shutil.rmtree(BOOK / "_sources", ignore_errors=True)
    apart = {"404.html", "search.html", "genindex.html"}
    pages = sorted(path.relative_to(BOOK) for path in BOOK.rglob("*.html")
                   if path.name not in apart and "_static" not in path.parts)
    places = "\n".join(f"  <url><loc>{address()}{page}</loc></url>" for page in pages)
    (BOOK / "sitemap.xml").write_text('<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns='
                                      f'"http://www.sitemaps.org/schemas/sitemap/0.9">\n{places}\n</urlset>\n')
    print(f"{len(pages)} pages: open {BOOK / 'index.html'}")


def main(*options):
    if "--draft" not in options: recordings.main([])
    lay_out()
    shutil.rmtree(BOOK, ignore_errors=True)
    sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    built = subprocess.run([*sphinx, "-c", ROOT / "book", "-D", f"html_baseurl={address()}",
                            "-d", ROOT / "dist" / "book-doctrees", SOURCE, BOOK],
                           env={**os.environ, "PYTHONPATH": str(ROOT)})
    if built.returncode: sys.exit("The book has warnings.")
    finish()


if __name__ == "__main__": main(*sys.argv[1:])
