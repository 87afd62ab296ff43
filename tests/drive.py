"""Drive a live figure over the whole range of its controls; see `drive`."""
import html
import math
import re

NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?(?![\w⁻⁰¹²³⁴-⁹])", re.IGNORECASE)


def places(control):
    "Where a reader can put a control, and code besides: both ends, the middle, between two steps; every option."
    if hasattr(control, "options"): return list(getattr(control, "_options_values", control.options))
    if not hasattr(control, "min"): return [True, False]
    low, high, base = control.min, control.max, getattr(control, "base", None)
    middle, step = (low + high) / 2, control.step or 0
    if isinstance(low, int) and base is None: return sorted({low, min(low + (step or 1), high), round(middle), high})
    between = sorted({low, min(low + .4 * step, high), middle, middle + .4 * step if low < high else low, high})
    return [base ** at if base else at for at in between]


def settings(explorer):
    "Each control in all its places while the others stand as they began; then all of them at their ends."
    start, at = dict(explorer.values), {name: places(control) for name, control in explorer.controls.items()}
    for name, values in at.items(): yield from ({**start, name: value} for value in values)
    yield {name: values[0] for name, values in at.items()}
    yield {name: values[-1] for name, values in at.items()}


def words_of(explorer):
    "The line under the picture, as a reader sees it."
    return html.unescape(re.sub(r"<[^>]*>", "", explorer._line.value))


def numbers_in(words, but=()):
    "The numbers in a text as (what was written, value, half a unit of its last digit); not those in the texts `but`."
    for text in sorted(but, key=len, reverse=True): words = words.replace(text, " ")
    for found in NUMBER.finditer(words):
        text = found[0].replace(",", "").replace("−", "-").lower()
        digits, _, power = text.partition("e")
        half = 10.0 ** (int(power or 0) - len(digits.partition(".")[2])) / 2
        percent = words[found.end():].lstrip(" \u202f").startswith("%")
        yield found[0], float(text) / (100 if percent else 1), half / (100 if percent else 1)


def flat(values):
    "Numbers and texts in a state, those in lists and dicts too."
    for value in values:
        if isinstance(value, dict): yield from flat(value.values())
        elif isinstance(value, (list, tuple)): yield from flat(value)
        else: yield value


def check_words(state, words, also=()):
    "Is each number in the words one of the state's (or one of `also`), rounded as it is written?"
    values = [*flat(state.values()), *also]
    known = [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    for written, value, half in numbers_in(words, [value for value in values if isinstance(value, str)]):
        assert any(abs(value - x) <= half * (1 + 1e-6) + 1e-12 * abs(x) for x in known), (
            f"The words say {written}, which is nowhere in the state.\n  words: {words}\n  state: {state}")


def drive(explorer, also=()):
    """Put every control of an explorer in all its places; returns a list of (state, words), one a place.

    At each place the figure must raise nothing, show no error, and its words may hold only numbers of the state,
    rounded as they are written; also: further numbers and texts that the words may hold, or a function state -> such
    numbers (`lambda s: [1 / (1 - s["beta"])]`). Work in slices runs to its end, so call it outside of an event loop.
    It ends with a reset.
    """
    seen = []
    for values in settings(explorer):
        try:
            explorer.set(**values)
            assert explorer._task is None, "Drive an explorer outside of an event loop."
            assert explorer.error is None and not explorer._alarm.value
            assert all(isinstance(value, (bool, int, float, str, list, tuple, dict, type(None)))
                       for value in explorer.state.values()), f"The state holds no plain numbers: {explorer.state}"
            check_words(explorer.state, words_of(explorer), also(explorer.state) if callable(also) else also)
        except Exception as error:
            error.add_note(f"The controls stood at {values}.")
            raise
        seen.append((dict(explorer.state), words_of(explorer)))
    explorer.reset()
    return seen
