"""A live figure without a kernel: what it draws at every setting of a grid, for `book/player.js` to draw again.

Artists draw with a renderer that writes down outlines, texts and images instead of pixels; what it does not know is an error."""
import base64
import bisect
import inspect
import itertools
import json
import math
import random
import zlib
from collections import Counter
from io import BytesIO

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg, get_hinting_flag
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Affine2D
from PIL import Image

UNIT = 8  # the smallest length is an eighth of a pixel: all numbers are whole
CAPS = {"butt": "butt", "round": "round", "projecting": "square"}
AROUND = 32  # pixels around the picture where markers still count
COMMANDS = {Path.MOVETO: "m", Path.LINETO: "l", Path.CURVE3: "q", Path.CURVE4: "c"}
TO_16 = [[0x10000, 0], [0, 0x10000]]  # FreeType's identity


class Pool(dict):
    "Numbers for what comes up, the same for the same."
    def add(self, thing): return self.setdefault(thing, len(self))


def numbers(values):
    "Whole numbers as short as an outline in SVG can have them."
    return " ".join(map(str, values)).replace(" -", "-")


def outline(path):
    "A path in pixels, with y downwards, as an SVG outline in units, each point relative to the one before."
    if not len(path.vertices): return ""
    written, now, begin, last = [], np.zeros(2, int), np.zeros(2, int), None
    points = np.rint(np.clip(path.vertices, -4000, 4000) * UNIT).astype(int)
    codes = np.full(len(points), Path.LINETO) if path.codes is None else path.codes
    if path.codes is None: codes[0] = Path.MOVETO
    no_lines, i = [*np.flatnonzero(codes != Path.LINETO).tolist(), len(codes)], 0
    while i < len(codes):
        code = codes[i]
        if code == Path.STOP: break
        if code == Path.CLOSEPOLY:
            written.append("z")
            now, last, i = begin, None, i + 1
            continue
        if code == Path.LINETO: n = no_lines[bisect.bisect(no_lines, i)] - i  # all lines up to something else
        else: n = {Path.CURVE3: 2, Path.CURVE4: 3}.get(code, 1)
        some, i = points[i:i + n], i + n
        if code == Path.LINETO:
            steps = np.diff(some, axis=0, prepend=now[None])
            steps = steps[steps.any(1)].ravel().tolist()
        else: steps = (some - now).ravel().tolist()
        if code == Path.MOVETO: begin = some[-1]
        elif not any(steps): continue
        text, begins = numbers(steps), code != last or code == Path.MOVETO
        written.append(COMMANDS[code] + text if begins else text if text[0] == "-" else " " + text)
        now, last = some[-1], code
    return "".join(written)


def css(color, alpha=None):
    "A colour for a canvas; None for one that nobody sees."
    *rgb, own = (*color, 1.)[:4]
    alpha = own if alpha is None else alpha
    return None if alpha == 0 else f"rgba({','.join(f'{255 * part:.0f}' for part in rgb)},{alpha:.3g})"


class Recorder(RendererAgg):
    """A renderer that writes down what is drawn, in pools without repeats; `drawing(artist)` gives a drawing's number.

    Sizes of texts are Agg's own, so that everything is laid out as in the notebook.
    """
    def __init__(self, width, height, dpi):
        super().__init__(width, height, dpi)
        self.styles, self.outlines, self.clips, self.ops, self.drawings, self.images = (Pool() for _ in range(6))
        self._renderer, self.written = None, []  # what would still draw pixels, fails
        self.flip = Affine2D().scale(1, -1).translate(0, height)

    def _update_methods(self): pass

    def drawing(self, artist):
        "Let an artist draw itself: -> the number of the drawing."
        images = [image for image in artist.findobj(AxesImage)]
        kinds = [image.get_interpolation() for image in images]
        self.written = []
        for image in images: image.set_interpolation("none")  # then the renderer gets it as it is
        self.kinds = dict(zip(map(id, images), kinds))
        try: artist.draw(self)
        finally:
            for image, kind in zip(images, kinds): image.set_interpolation(kind)
        return self.drawings.add(tuple(self.written))

    def write(self, *op): self.written.append(self.ops.add(op))

    def style(self, gc, face):
        "Number of the style: how it is filled and lined."
        line = self.points_to_pixels(gc.get_linewidth())
        alpha = gc.get_alpha() if gc.get_forced_alpha() else None
        fill = None if face is None else css(face, gc.get_alpha() if len(face) == 3 or gc.get_forced_alpha() else None)
        stroke = css(gc.get_rgb(), alpha) if line else None
        if not stroke: return self.styles.add((fill,))
        offset, dashes = gc.get_dashes()
        scaled = lambda x: round(UNIT * self.points_to_pixels(x), 1)
        return self.styles.add((fill, stroke, round(UNIT * line, 1), tuple(map(scaled, dashes)) if dashes else (),
                                scaled(offset or 0), CAPS[gc.get_capstyle()], gc.get_joinstyle()))

    def clip(self, gc, also=None):
        "Number of what is cut away: outlines, all of which hold."
        parts, box = [], gc.get_clip_rectangle()
        if box is not None:
            left, right = (math.floor(x + .5) for x in box.intervalx)
            low, high = (self.height - math.floor(y + .5) for y in box.intervaly)
            parts.append(outline(Path([[left, high], [right, high], [right, low], [left, low]])) + "z")
        path, transform = gc.get_clip_path()
        if path is not None: parts.append(outline(path.cleaned(transform + self.flip, curves=False)))
        if also: parts.append(also)
        return self.clips.add(tuple(parts))

    def draw_path(self, gc, path, transform, rgbFace=None):
        hatch, filled = gc.get_hatch_path(), rgbFace is not None
        thick = self.points_to_pixels(gc.get_linewidth()) if css(gc.get_rgb()) else 0
        simplify, whole = path.should_simplify and not filled and hatch is None, filled or hatch is not None
        size = (0, 0, self.width, self.height)  # where Agg cuts lines, and begins their dashes anew
        shape = path.cleaned(transform + self.flip, remove_nans=True, clip=None if whole else size, simplify=simplify,
                             snap=gc.get_snap(), stroke_width=thick, sketch=gc.get_sketch_params())
        d, style = outline(shape), self.style(gc, rgbFace)
        if not d or self.styles_at(style) == (None,) and hatch is None: return
        if hatch is not None:  # filled, hatched, lined
            self.write(0, self.styles.add(self.styles_at(style)[:1]), self.clip(gc), d)
            self.hatched(gc, hatch, shape, d)
            style = self.styles.add((None, *self.styles_at(style)[1:]))
        if self.styles_at(style) != (None,): self.write(0, style, self.clip(gc), d)

    def styles_at(self, number): return next(itertools.islice(self.styles, number, None))

    def hatched(self, gc, hatch, shape, d):
        "Tiles of 72 points over a shape, and nothing beside it."
        tile, box = int(self.dpi), shape.get_extents()
        color, thick = css(gc.get_hatch_color()), self.points_to_pixels(gc.get_hatch_linewidth())
        style = self.styles.add((color, color, round(UNIT * thick, 1), (), 0, "butt", "miter"))
        columns = range(math.floor(box.x0 / tile), math.ceil(box.x1 / tile))
        rows = range(math.floor(box.y0 / tile), math.ceil(box.y1 / tile))
        for column, row in itertools.product(columns, rows):
            place = Affine2D().scale(tile, -tile).translate(tile * column, tile * (row + 1))
            self.write(0, style, self.clip(gc, d), outline(hatch.cleaned(place, curves=False)))

    def draw_markers(self, gc, marker_path, marker_trans, path, trans, rgbFace=None):
        thick = self.points_to_pixels(gc.get_linewidth())
        flipped = marker_trans + Affine2D().scale(1, -1)
        if not gc.get_snap(): flipped += Affine2D().translate(.5, .5)  # Agg has its middle in the middle of a pixel
        shape = outline(marker_path.cleaned(flipped, snap=gc.get_snap(), stroke_width=thick))
        places = path.cleaned(trans + self.flip, remove_nans=True, curves=False)
        at = places.vertices[(places.codes != Path.STOP) & (places.codes != Path.CLOSEPOLY)]
        seen = (at >= -AROUND).all(1) & (at <= [self.width + AROUND, self.height + AROUND]).all(1)
        at = np.floor(at[seen] + .5) * UNIT  # whole pixels, as Agg does it
        if not len(at) or not shape: return
        reach = math.ceil(np.abs(marker_trans.transform(marker_path.vertices)).max() + 2 * thick + 2)
        self.stamp(gc, self.style(gc, rgbFace), [self.outlines.add(shape)] * len(at), at, reach=reach)

    def stamp(self, gc, style, shapes, at, angle=0., reach=0):
        """Outlines by number at places in units, turned by an angle in degrees against the clock.

        reach: how far a mark reaches, in pixels; then all outlines are the same.
        """
        steps = np.diff(np.rint(at).astype(int), axis=0, prepend=0).ravel().tolist()
        self.write(1, style, self.clip(gc), shapes[0] if reach else tuple(shapes), tuple(steps), round(angle, 2), reach)

    def draw_image(self, gc, x, y, im, transform=None):
        if transform is None:  # resampled already: its lower left corner
            transform, smooth = Affine2D().scale(im.shape[1], im.shape[0]), False
            im = im[::-1]
        height, width = im.shape[:2]
        place = Affine2D().scale(1 / width, 1 / height) + transform + Affine2D().translate(x, y) + self.flip
        (a, c, e), (b, d, f) = place.get_matrix()[:2]
        scale = abs(a) or abs(c), abs(d) or abs(b)
        wanted = next(iter(self.kinds.values()), "nearest")
        smooth = wanted not in ("nearest", "none") and not all(s > 3 or s == round(s) > 0 for s in scale)
        if gc.get_alpha() != 1: raise NotImplementedError("An image that lets others shine through cannot be recorded.")
        image = self.images.add((im.shape[:2], np.ascontiguousarray(im).tobytes()))
        self.write(2, self.clip(gc), image, tuple(round(part, 4) for part in (a, b, c, d, e, f)), int(smooth))

    def draw_path_collection(self, *args, **kwargs): super(RendererAgg, self).draw_path_collection(*args, **kwargs)

    def draw_quad_mesh(self, *args, **kwargs): super(RendererAgg, self).draw_quad_mesh(*args, **kwargs)

    def draw_gouraud_triangles(self, *args, **kwargs): raise NotImplementedError("Shaded triangles cannot be recorded.")

    def draw_tex(self, *args, **kwargs): raise NotImplementedError("Texts from TeX cannot be recorded.")

    def start_filter(self): raise NotImplementedError("Artists with a filter cannot be recorded.")

    def stop_filter(self, filter_func): self.start_filter()

    def option_scale_image(self): return True

    if not hasattr(RendererAgg, "_draw_text_glyphs_and_boxes"):  # before matplotlib 3.11: letters off the grid of pixels
        def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
            self._draw_text_as_path(gc, x, y, s, prop, angle, ismath)

    def _draw_text_glyphs_and_boxes(self, gc, x, y, angle, glyphs, boxes):
        turn, shapes, at = np.radians(angle), [], []
        for font, size, index, _, _, dx, dy in glyphs:
            font.set_size(size, self.dpi)
            font._set_transform(np.array(TO_16), [0, 0])
            font.load_glyph(index, flags=get_hinting_flag())
            shape = outline(Path(*font.get_path()).transformed(Affine2D().scale(1, -1)))
            if not shape: continue  # a blank
            shapes.append(self.outlines.add(shape))
            at.append([x + dx * math.cos(turn) - dy * math.sin(turn), y - dx * math.sin(turn) - dy * math.cos(turn)])
        alpha = gc.get_alpha() if gc.get_forced_alpha() else None
        style = self.styles.add((css(gc.get_rgb(), alpha),))
        if shapes: self.stamp(gc, style, shapes, UNIT * np.array(at), angle)
        for dx, dy, width, height in boxes:  # lines of fractions and roots, at least a pixel thick
            dx, dy = dx - max(1 - width, 0) / 2, dy - max(1 - height, 0) / 2
            width, height = max(width, 1), max(height, 1)
            corners = [(dx, dy), (dx + width, dy), (dx + width, dy + height), (dx, dy + height), (dx, dy)]
            place = Affine2D().rotate_deg(angle).translate(x, self.height - y)
            box = Path(corners, closed=True).cleaned(place + self.flip, snap=True, stroke_width=0)
            self.write(0, style, self.clip(gc), outline(box))


def written_as(control, value):
    "A control's value as ipywidgets writes it beside the control."
    if isinstance(value, str): return value
    text = format(value, getattr(control, "readout_format", None) or "")
    return text.replace("-", "−") if text.startswith("-") else text


def options(control):
    "All that a control can stand at: -> values and how they are written; None for a slider with very many."
    if hasattr(control, "options"):
        return list(control._options_values), list(map(str, control._options_labels))
    if not hasattr(control, "min"): return [False, True], ["off", "on"]
    n = round((control.max - control.min) / control.step)
    base = getattr(control, "base", None)
    values = [control.min + i * control.step for i in range(n + 1)]
    if base: values = [base ** value for value in values]
    elif not isinstance(control.min, int): values = [round(value, 10) for value in values]
    return values, [written_as(control, value) for value in values]


def chosen(control, wanted):
    "The values of a control that are recorded, its present one among them: all (None), a number of them, or a list."
    values, texts = options(control)
    if wanted is None or isinstance(wanted, int):
        n = len(values) if wanted is None else min(wanted, len(values))
        picked = [values[i] for i in sorted({round(at) for at in np.linspace(0, len(values) - 1, n)})]
    else: picked = list(wanted)
    near = lambda a, b: a == b or not isinstance(a, (str, bool)) and math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)
    if not any(near(value, control.value) for value in picked): picked = sorted([*picked, control.value])
    known = lambda value: next((text for other, text in zip(values, texts) if near(value, other)), None)
    return picked, [known(value) or written_as(control, value) for value in picked], len(values)


def automatic(controls, limit):
    "How many values of each control: all where there is room, else fewer of the finest, until `limit` settings are left."
    counts = {name: len(options(control)[0]) for name, control in controls.items()}
    while math.prod(counts.values()) > limit:
        sliders = [name for name, control in controls.items() if hasattr(control, "min") and counts[name] > 3]
        if not sliders: break
        finest = max(sliders, key=counts.get)
        counts[finest] = max(3, int(.9 * counts[finest]))
    return counts


class Recording:
    """What a live figure showed at each setting of a grid.

    `.words`: the line under the picture, by setting; `.settings`: the controls' values, by setting; `.data`: all that the
    player needs; `.note`: what is coarser than in the notebook; `.shots`: some settings as matplotlib draws them, PNGs.
    """
    def __init__(self, data, words, settings, note, shots):
        self.data, self.words, self.settings, self.note, self.shots = data, words, settings, note, shots

    def script(self, name):
        "The text of a script that gives the recording to the player, by name."
        text = json.dumps(self.data, separators=(",", ":"), ensure_ascii=False).encode()
        return f'recorded("{name}","{base64.b64encode(zlib.compress(text, 9)).decode()}");\n'


def sheets(images, quality):
    "Images of a size side by side in a sheet: -> data addresses, and for each image (sheet, x, y, width, height)."
    sizes = Counter(size for size, _ in images)
    made, at, places = {}, Counter(), []
    for size, n in sizes.items():
        columns = max(1, min(math.isqrt(n * size[0] // size[1] + 1), 8000 // size[1], n))
        rows = -(-n // columns)
        if rows * size[0] > 16000:
            raise ValueError(f"{n} images of {size[1]} × {size[0]} are too many for a sheet: record fewer settings.")
        made[size] = columns, np.zeros((rows * size[0], columns * size[1], 4), np.uint8)
    for size, pixels in images:
        row, column = divmod(at[size], made[size][0])
        made[size][1][row * size[0]:(row + 1) * size[0], column * size[1]:(column + 1) * size[1]] = \
            np.frombuffer(pixels, np.uint8).reshape(*size, 4)
        places.append((list(made).index(size), column * size[1], row * size[0], size[1], size[0]))
        at[size] += 1
    addresses = []
    for _, pixels in made.values():
        image = Image.fromarray(pixels)
        if (pixels[..., 3] == 255).all(): image = image.convert("RGB")
        buffer = BytesIO()
        image.save(buffer, "webp", lossless=quality is None, quality=quality or 100, method=6)
        addresses.append("data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode())
    return addresses, places


def noted(controls, grid, held):
    "Which controls are coarser here than in the notebook, or do not move, in words."
    said = [f"{controls[name].description} at {len(values)} of its {n:,} values"
            for name, (values, _, n) in grid.items() if len(values) < n]
    still = [f"{controls[name].description} ({written_as(controls[name], controls[name].value)})" for name in held]
    parts = []
    if said: parts.append("Recorded with " + ", ".join(said) + ".")
    if still: parts.append("Here these stand still: " + ", ".join(still) + ".")
    return " ".join(parts) or "Recorded at each of its settings."


def last(states):
    "The last state of an explorer's work, whether it works in slices or at once."
    if not inspect.isgenerator(states): return states
    state = None
    for newer in states: state = state if newer is None else newer
    return state


DRAWN = object()  # in the place of a kept background


def in_order(settings, grid, figure, move):
    "The numbers of the settings, so that what makes the figure draw everything anew changes least often."
    redrawn = []
    if figure and len(settings) > 50:
        for name, (values, _, _) in grid.items():
            move(settings[0])
            figure.background = DRAWN
            move({**settings[0], name: values[-1]})
            if figure.background is None: redrawn.append(name)
        figure.invalidate()
    return sorted(range(len(settings)), key=lambda i: [grid[name][0].index(settings[i][name]) for name in redrawn])


def is_unchanged(artist): return not artist.stale and type(artist) in (Line2D, Text, PathCollection, LineCollection)


def record(explorer, grid=None, limit=800, quality=None, n_shots=12, twice=False):
    """Record an explorer: see `Explorer.record`.

    limit: of the settings of an automatic grid; quality: of images, from 1 to 100, None for exact ones; n_shots: how
    many settings are kept as matplotlib draws them, too; twice: go through the grid once before, for pictures that
    remember earlier settings.
    """
    controls, figure = explorer.controls, explorer.figure
    if grid is None: grid = automatic(controls, limit)
    if unknown := grid.keys() - controls.keys():
        raise ValueError(f"No control {', '.join(sorted(unknown))}; there are {', '.join(controls)}.")
    grid = {name: chosen(control, grid[name]) for name, control in controls.items() if name in grid}
    held = [name for name in controls if name not in grid]
    settings = [dict(zip(grid, values)) for values in itertools.product(*(values for values, _, _ in grid.values()))]
    begin, n, shots, background = explorer.values, len(settings), {}, None
    words, rows, picked, row = [None] * n, [None] * n, (), []
    if figure:
        recorder = Recorder(figure.fig.bbox.width, figure.fig.bbox.height, figure.fig.dpi)
        figure.invalidate()
        picked = random.Random(0).sample(range(n), min(n_shots, n))
    def move(values):
        explorer._exact = {**begin, **values}  # what it says that its controls stand at
        try: return last(explorer.f(**{**begin, **values}))
        except Exception as error:
            error.add_note(f"The controls stood at {values}.")
            raise

    if twice: any(move(values) is None for values in settings)
    for i in in_order(settings, grid, figure, move):
        words[i] = explorer.words(move(settings[i]))
        if not figure: continue
        if figure.background is None: background, row = recorder.drawing(figure.fig), []
        figure.background = DRAWN
        row = [number if number is not None and is_unchanged(artist) else recorder.drawing(artist)
               for number, artist in zip(row or [None] * len(figure.artists), figure.artists, strict=True)]
        rows[i] = [background, *row]
        if i not in picked: continue
        figure.invalidate()
        figure.update()
        shots[i], figure.background = figure.encode("png"), DRAWN
    note = noted(controls, grid, held)
    shown = {name: [values.index(near(values, begin[name])), texts, kind(controls[name]), controls[name].description]
             for name, (values, texts, _) in grid.items()}
    data = {"controls": list(shown.values()), "words": words, "note": note,
            "alt": figure.alt if figure else explorer.caption}
    if figure: data |= packed(recorder, rows, quality)
    move({})
    if figure:
        figure.invalidate()
        figure.update()
    return Recording(data, words, settings, note, shots)


def near(values, value):
    "That one of the values which a value is, but for rounding."
    if isinstance(value, (str, bool)): return value
    return min((other for other in values), key=lambda other: abs(other - value))


def kind(control):
    if not hasattr(control, "min") and not hasattr(control, "options"): return "checkbox"
    return "select" if type(control).__name__ in ("Dropdown", "Select", "RadioButtons", "ToggleButtons") else "range"


def packed(recorder, rows, quality):
    "What was drawn, without repeats."
    addresses, places = sheets(list(recorder.images), quality)
    ops = [(*op[:2], places[op[2]], *op[3:]) if op[0] == 2 else op for op in recorder.ops]
    return {"size": [recorder.width, recorder.height], "unit": UNIT,
            "styles": list(recorder.styles), "clips": list(recorder.clips),
            "outlines": list(recorder.outlines), "ops": ops, "drawings": list(recorder.drawings),
            "rows": np.array(rows).T.tolist(), "sheets": addresses}
