"""The notebooks as files: executed, in order, clean, accessible, and alike where they should be alike."""
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "nbs").glob("*.ipynb"))
BADGE = "[![Open this chapter in Colab](images/open-in-colab.svg)](https://colab.research.google.com/github/"
VIEW = "application/vnd.jupyter.widget-view+json"
EXPORTED = {"00": 40, "01": 160, "02": 160, "03": 130, "04": 90, "05": 170,
            "06": 260, "07": 260, "08": 260, "09": 320, "10": 220, "11": 260, "12": 300, "13": 300,
            "14": 300, "15": 300, "16": 300, "17": 300, "18": 300}
SECTIONS = ["Summary", "Questionnaire", "Further reading"]


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request): return request.param


@pytest.fixture
def nb(path): return nbformat.read(path, as_version=4)


def code(nb): return [cell for cell in nb.cells if cell.cell_type == "code"]


def outputs(nb): return [(cell, output) for cell in code(nb) for output in cell.outputs]


def text(nb): return "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")


def test_valid_executed_in_order_and_without_errors(nb):
    nbformat.validate(nb)
    assert [cell.execution_count for cell in code(nb)] == list(range(1, len(code(nb)) + 1))
    assert len(outputs(nb)) > 3 and not any(output.output_type == "error" for _, output in outputs(nb))


def test_no_machine_in_it(nb, path):
    assert "widgets" not in nb.metadata and dict(nb.metadata.language_info) == {"name": "python"}
    raw = path.read_text()
    assert not re.search(r"(/(home|root|work|tmp|Users)/|C:\\\\)", raw), "a path of a machine"
    assert "/site-packages/" not in raw
    assert not any(output.get("name") == "stderr" for _, output in outputs(nb)), "a warning is saved"
    assert path.stat().st_size < 2_000_000


def test_ran_on_mnist(nb):
    said = [output.text for _, output in outputs(nb)
            if output.output_type == "stream" and "course_data:" in output.text]
    uses_data = any("= course_data" in cell.source for cell in code(nb))
    assert all("course_data: mnist" in text for text in said) and bool(said) == uses_data


def test_pictures_have_alt_texts_and_captions(nb):
    "As HTML (JupyterLab, nbconvert) and as metadata of the PNG (others), the same text in both; below, the caption."
    for cell in code(nb):
        shown = [output for output in cell.outputs if "data" in output and VIEW not in output.data]
        for i, output in enumerate(shown):
            images = BeautifulSoup(output.data.get("text/html", ""), "html.parser").find_all("img")
            assert bool(images) == ("image/png" in output.data), "JupyterLab and nbconvert drop the alt text of a PNG"
            if not images: continue
            assert len(images) == 1 and len(images[0]["alt"]) > 10
            assert images[0]["alt"] == output.metadata["image/png"]["alt"]
            assert shown[i + 1].data["text/markdown"].startswith("*"), "no caption"


def test_every_picture_of_the_html_page_has_its_alt_text(nb):
    page = BeautifulSoup(HTMLExporter().from_notebook_node(nb)[0], "html.parser")
    pictures = [img for img in page.select(".jp-OutputArea img")]
    assert len(pictures) >= len([1 for _, output in outputs(nb) if "image/png" in output.get("data", {})])
    assert all(len(img.get("alt", "")) > 10 for img in pictures)


def test_alternative_texts_of_linked_images(nb):
    for alt in re.findall(r"!\[(.*?)\]", text(nb)): assert len(alt) > 10


def test_head_and_tail(nb, path):
    head = nb.cells[0].source
    assert re.match(r"# \w\w · .+\n\n> .+", head) and f"{BADGE}" in head and f"/blob/main/nbs/{path.name})" in head
    assert re.search(r"Time to read: \d+ minutes\. Time to run: [1-9]\d* seconds", head)
    # 11 and 18 train more networks, 17 starts two jobs by torchrun: eight processes that import torch
    assert int(re.search(r"Time to run: (\d+)", head)[1]) < (45 if path.name.startswith(("11", "17", "18")) else 30)
    headings = re.findall(r"^## (.+)$", text(nb), re.MULTILINE)
    assert headings[-3:] == SECTIONS
    before_the_summary = text(nb)[:text(nb).index("## Summary")]
    assert re.search(r"^##+ Exercise", before_the_summary, re.MULTILINE)


def test_the_same_set_up_cell(nb):
    assert code(nb)[0].source == code(nbformat.read(PATHS[0], as_version=4))[0].source
    assert "--no-deps" in code(nb)[0].source and "torch" not in code(nb)[0].source.split("\n", 1)[1]


def test_an_exercise_is_a_task_a_stub_and_a_check(nb):
    "No cell may overwrite a reader's answer; hints and solutions are in course_lib.exercises."
    cells = nb.cells
    exercises = [i for i, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", [])]
    assert exercises
    assert any("import check, hint, progress, solution" in cell.source for cell in cells[:exercises[0]])
    for i in exercises:
        assert cells[i - 1].cell_type == "markdown"
        name = re.search(r"^(?:def |class )?(\w+)", cells[i].source, re.MULTILINE)[1]
        assert cells[i + 1].metadata.get("tags") == ["check"] and cells[i + 1].source == f"check({name})"
        assert "<summary>Hint" not in cells[i - 1].source


def test_lines_fit_on_a_slide(nb):
    for cell in code(nb):
        for line in cell.source.split("\n"): assert len(line) <= 120, line


def lines(cell): return [line for line in cell.source.split("\n") if line.strip() and not line.startswith("#| ")]


@pytest.mark.parametrize("name", EXPORTED)
def test_a_lesson_is_short_and_each_cell_fits_on_a_slide(name):
    [path] = (ROOT / "nbs").glob(f"{name}_*.ipynb")
    cells = code(nbformat.read(path, as_version=4))[1:]  # the first one, the set-up, is the same everywhere
    shown = [cell for cell in cells if not cell.metadata.get("jupyter", {}).get("source_hidden")]
    for cell in cells: assert len(lines(cell)) <= 25, cell.source
    for line in (line for cell in shown for line in lines(cell)): assert len(line) <= 100, line
    assert sum(len(lines(cell)) for cell in shown) <= 400
    exported = [cell for cell in cells if cell.source.startswith("#| export")]
    assert sum(len(lines(cell)) for cell in exported) <= EXPORTED[name]


def test_links_between_chapters_lead_somewhere(nb):
    for target in re.findall(r"\]\(([\w./-]+)\)", text(nb)): assert (ROOT / "nbs" / target).exists(), target


def test_each_explorer_is_driven_by_a_cell(nb):
    "A figure that no cell moves is a figure that nobody tests."
    source = "\n".join(cell.source for cell in code(nb))
    for name in re.findall(r"^(\w+) = (?:explore|\w+_explorer|\w+Explorer)\(", source, re.MULTILINE):
        assert re.search(rf"\b{name}\.(set|controls)\b", source), name
