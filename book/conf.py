"""Sphinx's settings for the book; `tools/book.py` lays out the sources and calls it."""
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]

project = "Make neural networks train fast"
author = "the authors of course_lib"
copyright = "text and figures CC BY 4.0, code Apache-2.0"
version = release = PROJECT["version"]
language = "en"
extensions = ["myst_nb"]
exclude_patterns = ["_static"]
root_doc = "index"

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_text_lexer = "none"
nb_code_prompt_show = nb_code_prompt_hide = "code"
myst_enable_extensions = ["dollarmath", "amsmath", "attrs_inline"]
myst_heading_anchors = 4
mathjax_path = "mathjax/tex-svg.js"
mathjax_options = {"defer": "defer"}
toc_object_entries = False
add_module_names = python_use_unqualified_type_names = False

html_theme = "sphinx_book_theme"
html_sidebars = {"**": ["navbar-logo.html", "search-button-field.html", "sbt-sidebar-nav.html"]}  # and no place for ads
html_title = project
html_static_path = [str(ROOT / "dist" / "book-source" / "_static")]
html_css_files = ["book.css"]
html_js_files = ["player.js"]
html_copy_source = html_show_sourcelink = False
html_last_updated_fmt = None
html_theme_options = {
    "repository_url": REPOSITORY, "path_to_docs": "nbs", "use_repository_button": True, "use_download_button": False,
    "use_fullscreen_button": False, "show_toc_level": 2, "show_navbar_depth": 1,
    "home_page_in_toc": True, "navbar_persistent": [],
    "pygments_light_style": "a11y-high-contrast-light", "pygments_dark_style": "a11y-high-contrast-dark",
}
DESCRIPTION = "A course in notebooks: optimizers, the training loop and the tricks, all measured; its figures move."


def social(app, pagename, templatename, context, doctree):
    "What other sites show when somebody links to a page."
    if not context.get("title"): return
    address = app.config.html_baseurl
    tags = {"og:title": context["title"], "og:description": DESCRIPTION, "og:type": "article", "og:site_name": project,
            "og:image": f"{address}_static/open-graph.png", "og:url": f"{address}{pagename}.html",
            "og:image:alt": "A walker in a canyon of loss, seen from above."}
    lines = [f'<meta property="{name}" content="{text}">\n' for name, text in tags.items()]
    lines.append(f'<meta name="description" content="{DESCRIPTION}">\n')
    context["metatags"] = context.get("metatags", "") + "".join(lines)


def setup(app): app.connect("html-page-context", social)
