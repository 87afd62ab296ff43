"""Which parts of a chapter become slides, and how they share them out: `deck(notebook, notes)`.

A heading begins a slide. Of a text these stay: the opening of a section, sentences with bold words, formulas, short
lists and tables, what is said first about a figure or a result, and the question at the end. Code stays if it is short
and teaches: it is not folded, and not mostly assertions and prints. Of other cells stays what they print, if that is
short. Each figure stays; a live one has a slide of its own. What comes after a question on its slide is a fragment: it
appears at the next key. Exercises are named, without code. The questions of the exit ticket, which the notes pick, come
last with their answers. Where that is too much for one lecture, the parts of least worth go.

A cell's tags overrule the rules: `slide` keeps its code, `no-slide` leaves the cell out.
"""
import base64
import math
import re
import struct
from collections import Counter
from dataclasses import dataclass, field

LIVE = "application/vnd.jupyter.widget-view+json"
ROOM, WIDTH = 560, 1180     # pixels of a slide of 1280 × 720 below its title, and between its margins
MOST = 38                   # slides of a lecture
LONGEST = 230               # characters of a sentence on a slide
SIZES = ((22, 15), (20, 18), (18, 22))     # sizes of code in pixels, and up to how many lines each is for
WORTH = {"live": 9, "figure": 8, "question": 7, "formula": 7, "lead": 6, "result": 6, "code": 5, "bold": 5, "list": 4,
         "remark": 3}       # what goes first when there is too much of it
BACK = re.compile(r"(It|That|This|They|These|Those|So|But|And|Then|Both|Here|There|The same|Its|Their|Yet)\b")
POINTS_AT_THE_PAGE = re.compile(
    r"(above|below)(?=[.,:;]|$)|(cell|code|figure|line|loop|picture|table|version)s? (above|below)|further down|"
    r"\b[Hh]ere (they|it) (is|are)|\bhelp here\.|\bBelow (is|are|you)|(this|next) cell|"
    r"top of the page|for a page|on this page")
ASIDE = re.compile(r"\s*(assert|test_\w+\(|torch\.testing|print\(|f?\"|for .*: test_|fig\b|ax\w*\b|plt\.|show\w*\(|"
                   r"with pytest)")


@dataclass
class Part:
    "A piece of a slide: Markdown, or what is shown of a code cell (`cell` is its place in the notebook)."
    kind: str
    height: int = 0
    text: str = ""
    cell: int | None = None
    source: bool = False        # the code is shown
    outputs: bool = False       # what it printed or drew is shown
    size: int = 22
    after: int = 0              # the cell of the notebook that it comes from
    exported: bool = False
    fragment: bool = False
    leads_in: str = ""          # what is said just before: for code that would begin a slide without a word


@dataclass
class Slide:
    title: str
    heading: str                # as it stands in the notebook and in the notes
    parts: list = field(default_factory=list)
    kind: str = ""
    closed: bool = False        # nothing may follow on this slide

    @property
    def height(self): return sum(part.height for part in self.parts)

    @property
    def letters(self):
        "The size of the text in pixels: the fewer words a slide has, the larger."
        if any(part.cell is not None for part in self.parts): return 28
        return 42 if self.height <= 180 else 34 if self.height < 330 else 28


def plain(text): return re.sub(r"(?<!!)\[([^\]]+)\]\([^)]*(?:\([^)]*\)[^)]*)?\)", r"\1", text)


def sentences(paragraph):
    "A paragraph in sentences; formulas, code and what stands in brackets are never cut."
    kept = []

    def hide(match):
        kept.append(match[0])
        return f"\ue000{len(kept) - 1}\ue001"

    def show(text):
        while "\ue000" in text: text = re.sub("\ue000(\\d+)\ue001", lambda place: kept[int(place[1])], text)
        return text.strip()

    hidden = re.sub(r"`[^`]*`|(?<!\\)\$[^$]+\$|\((?:[^()]|\([^()]*\))*\)|\b(?:e\.g|i\.e|et al|vs|Fig|St)\. ", hide,
                    " ".join(paragraph.split()))
    ends = [match.end() for match in re.finditer(r"[.!?](\*\*)? (?=[\"“*]*[A-Z\d\ue000])", hidden)]
    return [show(hidden[i:j]) for i, j in zip([0, *ends], [*ends, None], strict=True) if hidden[i:j].strip()]


def lines_of(text, per_line=80):
    "How many lines a text takes on a slide, roughly: a formula is narrower than its source."
    text = re.sub(r"\\[a-zA-Z]+|[{}$*`]", "x", re.sub(r"\\(frac|sqrt|left|right|text|mathrm|quad|,)", "", text))
    return math.ceil(max(1, len(text)) / per_line)


def height_of(text): return 38 * lines_of(text) + 12


def table_height(block): return sum(36 * lines_of(row, 78) + 12 for row in block.split("\n") if "---" not in row) + 16


def blocks(markdown):
    "(kind, text) of each block of a Markdown cell."
    markdown = re.sub(r"(?s)<details>.*?</details>", "", markdown)
    for block in re.split(r"\n\s*\n", markdown.strip()):
        block = block.strip()
        if not block: continue
        first = block.split("\n")[0]
        if re.match(r"#+ ", first):
            yield "heading", first
            if rest := block[len(first):].strip(): yield from blocks(rest)
        elif block.startswith("$$"): yield "formula", block
        elif re.match(r"[-*] |\d+\. ", first): yield "list", block
        elif first.startswith("|"): yield "table", block
        elif block.startswith(("```", "<", "!", ">", "    ")): yield "other", block
        else:
            # a formula in the midst of a paragraph
            for i, piece in enumerate(re.split(r"(\$\$.+?\$\$)", block, flags=re.DOTALL)):
                if piece.strip(): yield ("formula" if i % 2 else "paragraph"), piece.strip()


def items_of(block):
    "The items of a list, each with its first sentence only, or more where that is short."
    return [opening(sentences(item)) for item in re.split(r"(?m)^(?:[-*]|\d+\.) ", block) if item.strip()]


def opening(said, enough=60, most=175):
    "The first sentence, and what follows as long as all is short."
    text = said[0]
    for sentence in said[1:]:
        if len(text) >= enough or len(f"{text} {sentence}") > most or not usable(sentence): break
        text = f"{text} {sentence}"
    return text


def text_parts(markdown, is_first, index):
    "What stays of a Markdown cell; `is_first`: nothing of its section has been kept so far."
    found, said = [], []                    # `said`: the sentences of the paragraph just before
    for kind, block in blocks(plain(markdown)):
        if kind == "paragraph" and block.startswith("**Predict"):
            found.append(Part("question", height_of(block), block, after=index))
        elif kind == "paragraph": found += paragraph_parts(block, is_first, index)
        elif kind == "formula": found.append(formula_part(block, found, said, index))
        elif kind == "list" and found and found[-1].text.startswith("**Predict"):
            items = [" ".join(item.split()) for item in re.split(r"(?m)^(?:[-*]|\d+\.) ", block) if item.strip()]
            found[-1].text += "\n\n" + "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
            found[-1].height += sum(map(height_of, items))
        elif kind == "list" and 1 < len(items := items_of(block)) <= 6:
            text = "\n".join(f"- {item}" for item in items)
            found.append(Part("list", sum(map(height_of, items)), text, after=index))
        elif kind == "table" and block.count("\n") <= 9:
            found.append(Part("list", table_height(block), block, after=index))
        if kind == "paragraph": is_first = False
        said = sentences(block) if kind == "paragraph" else []
    return found


def formula_part(formula, found, said, index):
    "A formula with the sentence that leads to it; that one is then not kept for itself."
    rows = formula.count(r"\\") if "\\begin" in formula else 0
    part = Part("formula", 92 + 46 * rows + 40 * ("\\underbrace" in formula), formula, after=index)
    if said and usable(said[-1]):
        if found and found[-1].text.endswith(said[-1][:-1] + "."): found.pop()
        part.text, part.height = f"{said[-1]}\n\n{formula}", part.height + height_of(said[-1])
    return part


def remark(markdown):
    "What a text says first about the figure or the numbers before it."
    kind, block = next(blocks(plain(markdown)), ("", ""))
    said = [] if block.startswith("**Predict") or kind != "paragraph" else usable_from(sentences(block))
    text = opening(said, 40) if said else ""
    return text if text[-1:] in (".", "!") and "Let us" not in text and len(re.sub(r"`[^`]*`", "", text)) > 20 else ""


def lead_in(markdown):
    "The sentence that a text ends with, before code."
    kind, block = ([("", "")] + list(blocks(plain(markdown))))[-1]
    said = [sentence for sentence in sentences(block) if usable(sentence)] if kind == "paragraph" else []
    text = said[-1] if said and not BACK.match(said[-1]) else " ".join(said[-2:])
    return text if 30 < len(text) <= LONGEST and text[-1] in ".:!" else ""


def usable_from(said):
    "Without the first sentences, as long as these are not for a slide."
    while said and not usable(said[0]): said = said[1:]
    return said


def usable(sentence):
    return (len(sentence) <= LONGEST and not sentence.startswith("(") and not POINTS_AT_THE_PAGE.search(sentence)
            and sentence.count("**") % 2 == 0)


def paragraph_parts(paragraph, is_first, index):
    """The sentences of a paragraph that are for a slide: its opening, if it opens a section; bold ones, with the one
    before if they point back to it; a question at the end."""
    said, found = sentences(paragraph), []
    for i, sentence in enumerate(said):
        question = i == len(said) - 1 and sentence.endswith("?")
        bold = re.search(r"\*\*[^*]+\*\*", sentence)
        if any(sentence in part.text for part in found): continue
        if i == 0 and is_first and (rest := usable_from(said[:3])): text = opening(rest)
        elif bold or question:
            longer = f"{said[i - 1]} {sentence}"
            goes_on = BACK.match(sentence.lstrip("*")) or len(sentence) < 32 or question and said[i - 1].endswith("?")
            fits = i and goes_on and len(longer) <= LONGEST and usable(said[i - 1])
            text = longer if fits and not any(said[i - 1] in part.text for part in found) else sentence
            if i == 0 and len(sentence) < 32: text = opening(said)      # a heading within the text
        else: continue
        if not usable(text): continue
        if text.endswith(":"): text = text[:-1] + "."
        kind = "question" if text.endswith("?") else "bold" if bold else "lead"
        found.append(Part(kind, height_of(text), text, after=index))
    return found


def printed(cell):
    "What a cell printed, as text."
    return "".join(out.get("text", "") for out in cell.outputs if out.output_type == "stream") + "".join(
        out.data.get("text/plain", "") for out in cell.outputs
        if out.output_type == "execute_result" and not {LIVE, "image/png", "text/html"} & out.data.keys())


def teaches(source):
    "Is a cell's code for a slide: short, and not mostly checks, prints and plots?"
    lines = [line for line in source.split("\n") if line.strip() and not line.startswith("#|")]
    if not lines or len(lines) > SIZES[-1][1] or max(map(len, lines)) > 100: return False
    defines = re.search(r"(?m)^(#\||def |class )", source)
    loops = re.search(r"(?m)^\s*(for|while) ", source) and not re.search(r"\bassert|\btest_\w+\(", source)
    return bool(defines or loops) and sum(bool(ASIDE.match(line)) for line in lines) <= .45 * len(lines)


def picture_of(cell): return next((out for out in cell.outputs if "image/png" in out.get("data", {})), None)


def shape_of(png):
    "Width and height of a PNG, in base64."
    return struct.unpack(">II", base64.b64decode(png[:64])[16:24])


def result_height(cell):
    "How high is what a cell printed? 0 for nothing, None if it is not for a slide."
    text = printed(cell).strip("\n")
    if not text: return 0
    lines = text.split("\n")
    if len(lines) > 12 or max(map(len, lines)) > 96 or "measured by" in text: return None
    return 26 * len(lines) + 24


def code_part(cell, index):
    "What stays of a code cell, or None."
    tags = set(cell.metadata.get("tags", []))
    if tags & {"no-slide", "exercise", "check", "solution"}: return None
    if any(LIVE in out.get("data", {}) for out in cell.outputs):
        return Part("live", ROOM, cell=index, outputs=True, after=index)
    result, folded = result_height(cell), "hide-input" in tags
    if picture := picture_of(cell):
        width, height = shape_of(picture.data["image/png"])
        figure = int(min(340, WIDTH * height / width)) + 50 + (result or 0)
        return Part("figure", figure, cell=index, outputs=True, after=index)
    if "slide" in tags or not folded and teaches(cell.source):
        lines = cell.source.rstrip().split("\n")
        wide = max(map(len, lines)) * .6
        size = next((size for size, most in SIZES if len(lines) <= most and size * wide < WIDTH - 24), SIZES[-1][0])
        code = int(size * 1.3 * len(lines)) + 30
        fits = bool(result) and code + result <= ROOM
        if code <= ROOM + 60:       # alone on its slide it may go down to the edge
            return Part("code", code + (result if fits else 0), cell=index, source=True, outputs=fits, size=size,
                        after=index, exported=cell.source.startswith("#|"))
    if result and not folded: return Part("result", result, cell=index, outputs=True, after=index)
    return None


def said_in(markdown, before, index):
    "What stays of a text, after those parts of its section."
    new = text_parts(markdown, not before, index)
    if before and (text := remark(markdown)):       # `pack` keeps it only right below a cell
        if not any(text in part.text for part in new): new.insert(0, Part("remark", height_of(text), text, after=index))
    return new


def lesson(nb):
    "(heading, parts) of each section, from the first to the exercises."
    heading, parts, found = None, [], []
    for index, cell in enumerate(nb.cells[1:], 1):
        if cell.cell_type == "markdown":
            for piece in re.split(r"(?m)^(?=##+ )", cell.source):
                if match := re.match(r"##+ .*", piece):
                    if heading: found.append((heading, parts))
                    heading, parts = match[0], []
                    if re.match(r"## (Exercise|Summary|Questionnaire)", heading): return found
                if heading and "no-slide" not in cell.metadata.get("tags", []): parts += said_in(piece, parts, index)
        elif heading and cell.cell_type == "code" and (part := code_part(cell, index)):
            before = nb.cells[index - 1]
            if part.kind == "code" and before.cell_type == "markdown": part.leads_in = lead_in(before.source)
            parts.append(part)
    return found + ([(heading, parts)] if heading else [])


def pack(sections):
    "Share the parts of each section out to slides."
    slides = []
    for heading, parts in sections:
        slide = None
        for part in parts:
            full = slide is None or slide.closed or slide.height + part.height > ROOM
            if part.kind == "remark" and (full or slide.parts[-1].cell != part.after - 1): continue  # what is it about?
            if full:
                before, slide = slide, Slide(heading.lstrip("# "), heading)
                if before and goes_along(before, part): slide.parts.append(before.parts.pop())
                elif (text := part.leads_in) and height_of(text) + part.height <= ROOM and not said_on(slides, text):
                    slide.parts.append(Part("remark", height_of(text), text, after=part.after - 1))
                slides.append(slide)
            part.fragment = part.cell is not None and any(other.kind == "question" for other in slide.parts)
            slide.parts.append(part)
            slide.closed = part.kind == "live" or part.text.startswith("**Predict")
    headings = Counter(slide.heading for slide in slides)
    return [slide for slide in slides if headings[slide.heading] == 1 or not all(map(says_little, slide.parts))]


def says_little(part):
    "Numbers without a word, a few words without a cell: alone on a slide nobody would understand them."
    return part.kind == "result" or part.cell is None and len(part.text) < 36


def said_on(slides, text):
    return any(text.rstrip(":.") in part.text for slide in slides[-2:] for part in slide.parts)


def goes_along(slide, part):
    "A question at the end of a full slide goes to the next one, together with its answer."
    last = slide.parts[-1]
    return (last.kind == "question" and not slide.closed and part.kind != "live" and len(slide.parts) > 1
            and part.height + last.height <= ROOM)


def worth(part):
    "What is exported is worth more, a long output less."
    return WORTH[part.kind] + 1.5 * part.exported - len(part.text) / 1000 - (part.kind == "result") * part.height / 400


def without(sections, lost):
    return [(heading, [part for part in parts if part is not lost]) for heading, parts in sections]


def title_slide(nb):
    source = plain(nb.cells[0].source)
    name = source.split("\n")[0].removeprefix("# ")
    quote = next((line.removeprefix("> ") for line in source.split("\n") if line.startswith("> ")), "")
    goals = re.findall(r"(?m)^- (.*)$", source)
    text = f"*{quote}*\n\nAfter this lecture you can\n\n" + "\n".join(f"- {goal}" for goal in goals)
    return Slide(name, "", [Part("lead", sum(map(height_of, [quote, "", *goals])), text)], "title")


def ending(nb, notes):
    "Exercises by name, the summary, and the questions of the exit ticket with their answers."
    start = next((i for i, cell in enumerate(nb.cells) if re.search(r"(?m)^## Exercise", cell.source)), len(nb.cells))
    text = "\n\n".join(plain(cell.source) for cell in nb.cells[start:] if cell.cell_type == "markdown")
    last = len(nb.cells) - 1
    if names := re.findall(r"(?m)^### (.*)$", text):
        tasks = "\n".join(name if name[0].isdigit() else f"- {name}" for name in names)
        yield Slide("Exercises", "## Exercises", [Part("list", 50 * len(names), tasks, after=start)])
    if summary := re.search(r"(?ms)^## Summary\n(.*?)(?=^## |\Z)", text):
        points = [Part("list", height_of(point), f"- {point}", after=last) for point in items_of(summary[1].strip())]
        yield from pack([("## Summary", points)])
    asked = questionnaire(text)
    questions, answers = numbered(re.sub(r"(?s)<details>.*", "", asked)), numbered(
        "".join(re.findall(r"(?s)<details>(.*?)</details>", asked)))
    for number in ticket(notes, questions):
        question, answer = questions[number], answers.get(number)
        parts = [Part("question", height_of(question), f"**{number}.** {question}", after=last)]
        if answer: parts.append(Part("answer", height_of(answer), answer, after=last, fragment=True))
        yield Slide("Exit ticket", "## Questionnaire", parts)


def questionnaire(text):
    found = re.search(r"(?ms)^## Questionnaire\n(.*?)(?=^## |\Z)", text)
    return found[1] if found else ""


def numbered(text):
    found = re.split(r"(?m)^(\d+)\. ", text)
    return {int(number): " ".join(said.split()) for number, said in zip(found[1::2], found[2::2])}


def ticket(notes, questions):
    "The questions that the notes pick for the end, or the last three."
    said = re.search(r"Exit ticket:(?: questions?)? ([^.?!]*)", notes.get("## Questionnaire", (0, ""))[1])
    picked = [int(n) for n in re.findall(r"(?<!\d)\d+(?=[ ,]|$)", re.sub(r"\([^)]*\)", "", said[1]))] if said else []
    return [n for n in picked if n in questions][:3] or sorted(questions)[-3:]


def deck(nb, notes=()):
    "The slides of a chapter."
    notes = dict(notes)
    sections, first, last = lesson(nb), title_slide(nb), list(ending(nb, notes))
    while len(slides := pack(sections)) > MOST - 1 - len(last):
        crowd = Counter(slide.heading for slide in slides)              # where there are many, one is missed least
        losable = sorted(((worth(part) - .4 * crowd[heading], i, part) for heading, parts in sections
                          for i, part in enumerate(parts) if part.kind not in ("live", "figure", "remark")),
                         key=lambda entry: entry[:2])
        if not losable: break
        saves = (part for _, _, part in losable[:12] if len(pack(without(sections, part))) < len(slides))
        sections = without(sections, next(saves, losable[0][2]))
    return [first, *pack(sections), *last]
