"""Sentences with a topic and synonyms, from WordNet (Miller, 1995), which come with the course; and checks for functions on text."""
import functools
import gzip

import torch

from .arguments import an_instance, checked, refuse
from .checks import shorten, whole_number
from .files import read_embedded

SHA256 = {"glosses": "ccd4f9e739594d86407485599fa11d9a2ff32da33203778a5a490196fd48c00f",
          "synonyms": "f1241ce96e2c85a3f4bb21d76605f57177bdc342eb45d17266c4df0228cf369a"}

# Words that hold a sentence together. WordNet knows many of them as something else: "in" as an inch, "be" as beryllium.
STOP_WORDS = frozenset("""
a about above across after again against all along also although am among an and another any are around as at be because
been before behind being below beneath beside besides between beyond both but by can cannot could despite did do does
doing done down during each either else etc even ever every few for from had has have having he hence her here hers
herself him himself his how however i if in inside instead into is it its itself just least less like many may me might mine
more most much must my myself near neither never no nor not of off often on once one only onto or other others our ours
ourselves out outside over own per quite rather same shall she should since so some someone something somewhat such than
that the their theirs them themselves then there therefore these they this those though through throughout thus to too
toward towards under until up upon us used usually very via was we were what when where whereas whether which while who
whom whose why will with within without would yes yet you your yours yourself yourselves""".split())


@functools.cache
def read_lines(name):
    "The lines of an embedded text. Raises `DamagedFileError` where the file is not as it came."
    return gzip.decompress(read_embedded(f"{name}.txt.gz", SHA256[name])).decode("ascii").splitlines()


def glosses(n=None):
    """Definitions of nouns, and what each is about: `(texts, labels int64 [n], class names)`; 1,000 for each of 8 topics.

    n: how many, by default all 8,000. The topics take turns, so the first 80 are ten of each; within a topic the order
    is one of chance. The texts are as in WordNet, with their signs and capitals.
    """
    topics, lines = {}, read_lines("glosses")
    for line in lines:
        if line.startswith("# "): texts = topics[line[2:]] = []
        else: texts.append(line)
    texts = [text for turn in zip(*topics.values(), strict=True) for text in turn]
    n = len(texts) if n is None else whole_number("n", n, at_least=1)
    if n > len(texts): raise ValueError(f"n must be at most {len(texts):,}, the sentences that there are, not {n:,}.")
    return texts[:n], torch.arange(n) % len(topics), list(topics)


PARTS = "noun", "verb", "adj", "adv"


@functools.cache
def read_synonyms():
    "Word -> part of speech -> synonyms; the part of speech in which it is used most comes first, be it without any."
    entries = (line.split("\t") for line in read_lines("synonyms"))
    return {word: {part: others for part, *others in map(str.split, parts)} for word, *parts in entries}


@checked(word=an_instance("a word, a str", str))
def synonyms(word, part=None):
    """Single words that mean the same as this one in its usual senses, the most usual sense first; a list, empty where
    WordNet has none, knows only an inflected word's stem ("dogs"), or is not embedded (it is for 7,006 words).

    part: "noun", "verb", "adj" or "adv"; by default the part of speech in which the word is used most, and no other.
    Capitals do not matter. Stop words have synonyms too, mostly strange ones: see STOP_WORDS.
    """
    if part not in (None, *PARTS): refuse("part", f"None or one of {', '.join(PARTS)}", part)
    parts = read_synonyms().get(word.lower(), {})
    return list(parts.get(part or next(iter(parts), None), []))


def some_words(name, value):
    "A check for lists of at least one word."
    if isinstance(value, (list, tuple)) and value and all(isinstance(word, str) for word in value): return value
    advice = "; split a text into words first" if isinstance(value, str) else ""
    raise ValueError(f"{name} must be a list of words, at least one, not {shorten(value)}{advice}.")


def a_cpu_generator(name, value):
    "A check for generators of draws on the CPU."
    if isinstance(value, torch.Generator) and value.device.type == "cpu": return value
    device = f" on {value.device}" if isinstance(value, torch.Generator) else ""
    return refuse(name, "a torch.Generator on the CPU, such as torch.Generator().manual_seed(0)", f"{value!r}{device}")


def draw(items, generator=None):
    "One of them by lot."
    return items[torch.randint(len(items), (), generator=generator).item()]
