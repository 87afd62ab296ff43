"""WordNet's sentences and synonyms; and the functions that vary a text, with the traps of a well-known version."""
import gzip
import hashlib
import importlib.util
import math
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from course_lib.support import files, wordnet
from course_lib.augmentation import (
    backtranslate, delete, insert, replace, replaceable, shuffle_sentences, swap, words_of)
from course_lib.support.results import results
from course_lib.support.wordnet import PARTS, STOP_WORDS, glosses, synonyms

ROOT = Path(__file__).resolve().parent.parent
WORDS = "a large animal often lives in a small house".split()
CHANGES = [(replace, 3), (insert, 3), (swap, 3), (delete, .5)]
NAMES = [change.__name__ for change, _ in CHANGES]
every_change = pytest.mark.parametrize("change, much", CHANGES, ids=NAMES)


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def many(change, words, much, n=200): return [change(words, much, generator=seeded(seed)) for seed in range(n)]


# The data

def test_there_are_a_thousand_sentences_of_each_topic():
    texts, labels, names = glosses()
    assert len(texts) == len(set(texts)) == 8000 and labels.dtype == torch.int64
    assert labels.bincount().tolist() == [1000] * 8
    assert names == ["animal", "artifact", "body", "food", "location", "person", "plant", "substance"]
    assert all(len(text.split()) >= 4 and '; "' not in text for text in texts)


def test_the_first_sentences_are_of_all_topics():
    texts, labels, names = glosses(80)
    assert texts == glosses()[0][:80] and labels.bincount().tolist() == [10] * 8
    assert all(map(str.isascii, texts)) and names[labels[0]] == "animal" and "mammal" in texts[0]
    texts.clear()
    assert len(glosses(80)[0]) == 80


@pytest.mark.parametrize("n", [0, -1, 8001, 2.5, math.nan, "3", [1]])
def test_glosses_refuse_a_number_that_there_is_not(n):
    with pytest.raises(ValueError, match="n must be"): glosses(n)


def test_synonyms_are_other_single_words_in_small_letters():
    for word, parts in wordnet.read_synonyms().items():
        assert parts.keys() <= set(PARTS) and any(parts.values())
        for others in parts.values():
            assert len(set(others)) == len(others) and word not in others
            assert all(re.fullmatch(r"[a-z]+(?:[-'][a-z]+)*", other) for other in others)


def test_synonyms_of_words_with_capitals_and_of_unknown_ones():
    assert synonyms("large") == synonyms("Large") == synonyms("LARGE") == ["big"]
    assert synonyms("qwertz") == synonyms("") == synonyms("dog's") == synonyms("North America") == []
    synonyms("large").append("tiny")
    assert synonyms("large") == ["big"]


def test_synonyms_are_of_the_usual_part_of_speech_alone():
    "Trap: a bird is mostly a noun, so it is not replaced by what the verb means; what bears is not an animal."
    assert synonyms("bird") == [] and synonyms("bird", "verb") == ["birdwatch"]
    assert "endure" in synonyms("bear") == synonyms("bear", "verb") and synonyms("bear", "noun") == []
    assert synonyms("fast") == [] and synonyms("fast", "noun") == ["fasting"]
    assert synonyms("well", "noun") == [] and synonyms("well") == ["good"] and synonyms("well", "verb") == ["swell"]


@pytest.mark.parametrize("word", [3, None, ["dog"], b"dog"])
def test_a_word_is_a_str(word):
    with pytest.raises(ValueError, match="word must be a word"): synonyms(word)


@pytest.mark.parametrize("part", ["n", "", 3, ["noun"], math.nan])
def test_a_part_of_speech_is_one_of_four(part):
    with pytest.raises(ValueError, match="part must be None or one of noun, verb, adj, adv"): synonyms("dog", part)


@pytest.mark.parametrize("name", wordnet.SHA256)
def test_embedded_texts_are_as_they_came(name, tmp_path, monkeypatch):
    data = files.embedded(f"{name}.txt.gz").read_bytes()
    readme = (ROOT / "data" / "README.md").read_text()
    assert hashlib.sha256(data).hexdigest() == wordnet.SHA256[name] and wordnet.SHA256[name] in readme
    assert hashlib.sha256(gzip.decompress(data)).hexdigest() in readme
    monkeypatch.setattr(files, "embedded", lambda file: tmp_path / file)
    read = wordnet.read_lines.__wrapped__  # without its cache
    with pytest.raises(files.DamagedFileError, match="cannot be read: install it anew"): read(name)
    (tmp_path / f"{name}.txt.gz").write_bytes(data[:-1])
    with pytest.raises(files.DamagedFileError, match="not what it was"): read(name)


def test_the_licence_lies_beside_them():
    text = files.embedded("wordnet.LICENSE.txt").read_text()
    assert "WordNet 3.1 Copyright 2011 by Princeton University" in text and "appear on ALL copies" in text


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("wordnet_script", ROOT / "data" / "wordnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_reads_wordnets_files(script, tmp_path):
    "A database of three entries: licence, examples and topics, and senses by rank and count."
    licence = "  1 This software\n"
    nouns = ("00000001 05 n 02 big_cat 0 lion 0 000 | large gregarious predatory feline; \"the lion roared at us\"  \n"
             "00000002 20 n 01 rose 0 000 | short gloss\n")
    verbs, adjectives = "00000003 30 v 02 lift 0 raise 0 000 | x\n", "00000004 00 a 02 lion(p) 0 bold 0 000 | y\n"
    index = "lion%1:05:00:: 00000001 1 7\nlion%3:00:00:: 00000004 1 2\nlift%2:30:00:: 00000003 1 1\n"
    for name, text in zip(script.FILES, (nouns, verbs, adjectives, "", index), strict=True):
        (tmp_path / name).write_text(licence + text if name != "index.sense" else text)
    texts = script.read_files(tmp_path)
    assert script.draw_glosses(texts["data.noun"])["animal"] == ["large gregarious predatory feline"]
    assert not script.draw_glosses(texts["data.noun"])["plant"]
    senses = script.read_senses(texts)
    assert script.synonym_line("lion", senses["lion"]) == "lion\tnoun\tadj bold"
    assert script.synonym_line("lift", senses["lift"]) == "lift\tverb raise"
    with pytest.raises(SystemExit, match="holds no data.noun"): script.read_files(ROOT / "tests" / "browser")


def test_rare_senses_give_no_synonyms(script):
    assert script.usual([(20, ["a"]), (5, ["b"]), (4, ["c"])]) == [["a"], ["b"]]
    assert script.usual([(0, ["a"]), (0, ["b"])]) == [["a"]]


# What each change does

@every_change
def test_inputs_stay_and_draws_repeat(change, much):
    words, state = list(WORDS), torch.get_rng_state()
    outcomes = many(change, words, much)
    assert words == WORDS and all(outcome is not words for outcome in outcomes)
    assert outcomes == many(change, words, much)
    assert len({tuple(outcome) for outcome in outcomes}) > 3, "always the same"
    assert torch.equal(torch.get_rng_state(), state), "with a generator of its own it leaves torch's alone"
    assert change(tuple(words), much, generator=seeded()) == outcomes[0]
    torch.manual_seed(0)
    assert change(words, much) == outcomes[0]  # without one it draws from torch's


@every_change
def test_nothing_of_it_is_a_copy(change, much):
    copy = change(WORDS, 0)
    assert copy == WORDS and copy is not WORDS


@every_change
def test_one_word_without_synonyms_stays(change, much): assert change(["qwertz"], 1) == ["qwertz"]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_replace_changes_n_places_each_into_a_synonym(n):
    for new in many(replace, WORDS, n):
        pairs = [(old, other) for old, other in zip(WORDS, new, strict=True) if old != other]
        assert len(pairs) == n and all(other in synonyms(old) for old, other in pairs)


def test_replace_reaches_every_place_that_it_can_and_no_more():
    places = replaceable(WORDS)
    assert [WORDS[i] for i in places] == ["large", "animal", "small"]
    changed = Counter(i for new in many(replace, WORDS, 1) for i, word in enumerate(new) if word != WORDS[i])
    assert sorted(changed) == places and min(changed.values()) > 100 / len(places)
    assert sum(old != other for old, other in zip(WORDS, replace(WORDS, 100))) == len(places)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_insert_adds_n_synonyms_and_keeps_the_order(n):
    near = {other for i in replaceable(WORDS) for other in synonyms(WORDS[i])}
    for new in many(insert, WORDS, n):
        rest = iter(new)
        assert len(new) == len(WORDS) + n and all(word in rest for word in WORDS)
        assert set((Counter(new) - Counter(WORDS)).keys()) <= near


@pytest.mark.parametrize("n", [1, 2, 5])
def test_swap_keeps_the_words_and_moves_two_at_a_time(n):
    distinct = list("abcdefgh")
    for new in many(swap, distinct, n):
        assert sorted(new) == distinct and sum(a != b for a, b in zip(new, distinct)) <= 2 * n
        if n == 1: assert new != distinct


def test_swap_cannot_change_a_bag_of_words():
    for text in glosses(40)[0]:
        words = words_of(text)
        assert Counter(swap(words, 4, generator=seeded())) == Counter(words)


def test_delete_leaves_out_the_share_p_and_keeps_the_order():
    letters = [str(i) for i in range(1000)]
    new = delete(letters, .3, generator=seeded())
    assert 650 < len(new) < 750 and new == [letter for letter in letters if letter in set(new)]


def test_delete_never_leaves_nothing():
    left = many(delete, ["a", "b", "c"], 1)
    assert all(len(words) == 1 for words in left) and {word for words in left for word in words} == {"a", "b", "c"}
    assert all(many(delete, ["a", "b"], .9))


def test_sentences_change_places_whole():
    text = "It is 3.5 m long. Is it red?  Yes! It has no end"
    sentences = ["It is 3.5 m long.", "Is it red?", "Yes!", "It has no end"]
    orders = {shuffle_sentences(text, generator=seeded(seed)) for seed in range(100)}
    assert len(orders) > 15
    for order in orders:
        assert Counter(order.split()) == Counter(text.split()) and all(sentence in order for sentence in sentences)
    assert shuffle_sentences(" One alone. ") == "One alone."


def test_a_text_comes_back_from_another_language_in_other_words():
    to_french = {"large": "grand", "big": "grand", "dog": "chien"}
    back = {"grand": "big", "chien": "dog"}
    french = lambda text: " ".join(to_french.get(word, word) for word in text.split())
    english = lambda text: " ".join(back.get(word, word) for word in text.split())
    assert backtranslate("a large dog", french, english) == "a big dog"
    with pytest.raises(ValueError, match="What translate gives must be a text"):
        backtranslate("a", lambda text: "", english)
    with pytest.raises(ValueError, match="What translate_back gives"): backtranslate("a", french, lambda text: None)


# Traps of the first program for this, each shown to be one by a version that falls into it

def test_trap_stop_words_have_strange_synonyms_and_stay():
    assert "beryllium" in synonyms("be", "noun") and "inch" in synonyms("in", "noun") and synonyms("a") == ["angstrom"]
    words = "In a will be as A".split()
    assert not replaceable(words) and replace(words, 5) == insert(words, 5) == words
    assert all(word.islower() and word.isalpha() for word in STOP_WORDS)


def test_trap_not_always_the_first_synonym():
    words = next([word] for word in wordnet.read_synonyms() if len(synonyms(word)) > 3 and word not in STOP_WORDS)
    assert {new[0] for new in many(replace, words, 1)} == set(synonyms(words[0]))
    assert {word for new in many(insert, words, 1) for word in new} == {*words, *synonyms(words[0])}


def test_trap_insertion_reaches_both_ends():
    assert {new.index("big") for new in many(insert, ["the", "large", "qwertz"], 1)} == {0, 1, 2, 3}


def test_trap_one_occurrence_is_replaced_not_all():
    for new in many(replace, ["large", "and", "large"], 1): assert sorted(new) == ["and", "big", "large"]


def test_trap_apostrophes_and_hyphens_stay():
    assert words_of("Don’t stop O'Neill's well-known café!") == ["don't", "stop", "o'neill's", "well-known", "café"]
    assert words_of("'Now', -- she said") == ["now", "she", "said"]
    words = words_of("the dog's well-known house isn't large")
    for change, much in CHANGES[:3]:
        for new in many(change, words, much): assert {"dog's", "well-known", "isn't"} <= set(new)


def test_trap_a_synonym_is_one_word_so_the_length_stays():
    for text in glosses(80)[0]:
        words = words_of(text)
        new = replace(words, 3, generator=seeded())
        assert len(new) == len(words) and words_of(" ".join(new)) == new


# Bad input

@every_change
@pytest.mark.parametrize("words", ["a text", [], None, 3, [1, 2], ["a", None], {"a": 1}])
def test_words_are_a_list_of_words(change, much, words):
    with pytest.raises(ValueError, match="words must be a list of words, at least one"): change(words, much)


@pytest.mark.parametrize("change", [replace, insert, swap], ids=NAMES[:3])
@pytest.mark.parametrize("n", [-1, 2.5, math.nan, math.inf, "3", None, [1]])
def test_n_is_a_whole_number_from_0(change, n):
    with pytest.raises(ValueError, match="n must be a whole number, at least 0"): change(WORDS, n)


@pytest.mark.parametrize("p", [-.1, 1.1, math.nan, math.inf, "3", None, [.1]])
def test_p_is_a_share(p):
    with pytest.raises(ValueError, match="p must be a share of the whole"): delete(WORDS, p)


@pytest.mark.parametrize("generator", [0, "x", torch.Generator])
def test_a_generator_is_torchs(generator):
    for change, much in CHANGES:
        with pytest.raises(ValueError, match="generator must be a torch.Generator"): change(WORDS, much, generator)
    with pytest.raises(ValueError, match="generator must be a torch.Generator"): shuffle_sentences("A. B.", generator)


@pytest.mark.parametrize("text", ["", "  ", None, 3, ["a"]])
def test_a_text_is_a_text(text):
    for function in (words_of, shuffle_sentences, lambda text: backtranslate(text, str, str)):
        with pytest.raises(ValueError, match="text must be a text that is not empty"): function(text)
    with pytest.raises(ValueError, match="translate must be a function"): backtranslate("a", None, str)


# What was measured

def test_results_hold_twenty_seeds_and_the_order_is_nothing_to_a_bag():
    found = results("text_augmentation")
    for net in ("bag", "convolution"):
        for ways in found[net].values():
            assert all(len(way["accuracy"]) == 20 for way in ways.values())
    for ways in found["bag"].values(): assert ways["swap"]["accuracy"] == ways["plain"]["accuracy"]
    assert found["convolution"]["80"]["swap"]["gain"][1] > .02 > 0 > found["bag"]["800"]["one of the four"]["gain"][2]


def test_the_measurement_trains_nets_side_by_side_as_alone(monkeypatch):
    "And swapped words are the same bag, but not the same to the convolution."
    monkeypatch.syspath_prepend(str(ROOT / "data"))
    import text_augmentation as script
    monkeypatch.delitem(sys.modules, "text_augmentation")
    for net, rates in (("bag", [.1, .3]), ("convolution", [.003, .01])):
        measure = lambda way, seeds, rates: script.accuracies(
            net, 80, way, .4, seeds, rates, script.VALID[:200], [5, 10])
        both = measure("delete", [0, 1], rates)
        torch.testing.assert_close(both[:, 1:, 1:], measure("delete", [1], rates[1:]), rtol=0, atol=.011)
        swapped, plain = measure("swap", [0], rates), measure("plain", [0], rates)
        assert torch.equal(swapped, plain) == (net == "bag")
