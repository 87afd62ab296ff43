"""Functions that vary a text, for chapter 13. Each gives a new one and leaves its input as it is."""
import re

import torch

from .arguments import a_function, a_share, a_text, checked
from .wordnet import STOP_WORDS, a_cpu_generator, natural, some_words, synonyms


@checked(text=a_text)
def words_of(text):
    "Its words in small letters, without signs; an apostrophe or hyphen inside of a word stays."
    return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower().replace("’", "'"))


def draw(items, generator=None):
    return items[torch.randint(len(items), (), generator=generator).item()]


def replaceable(words):
    "The places of words that have a synonym and do not just hold the sentence together."
    return [i for i, word in enumerate(words) if word.lower() not in STOP_WORDS and synonyms(word)]


@checked(words=some_words, n=natural, generator=a_cpu_generator)
def replace(words, n, generator=None):
    "A copy in which n of the words, or as many as have one, are replaced by a synonym."
    new, places = list(words), replaceable(words)
    for i in torch.randperm(len(places), generator=generator)[:n].tolist():
        new[places[i]] = draw(synonyms(words[places[i]]), generator)
    return new


@checked(words=some_words, n=natural, generator=a_cpu_generator)
def insert(words, n, generator=None):
    "A copy with n more words: each a synonym of one of the words, put anywhere, the end included."
    new, places = list(words), replaceable(words)
    for _ in range(n if places else 0):
        synonym = draw(synonyms(words[draw(places, generator)]), generator)
        new.insert(draw(range(len(new) + 1), generator), synonym)
    return new


@checked(words=some_words, n=natural, generator=a_cpu_generator)
def swap(words, n, generator=None):
    "A copy in which, n times, two words change places."
    new = list(words)
    for _ in range(n if len(new) > 1 else 0):
        i, j = torch.randperm(len(new), generator=generator)[:2].tolist()
        new[i], new[j] = new[j], new[i]
    return new


@checked(words=some_words, p=a_share, generator=a_cpu_generator)
def delete(words, p, generator=None):
    "A copy in which each word is left out with probability p. One word stays, whatever p is."
    stays = torch.rand(len(words), generator=generator) >= p
    return [word for word, stay in zip(words, stays.tolist()) if stay] or [draw(words, generator)]


@checked(text=a_text, generator=a_cpu_generator)
def shuffle_sentences(text, generator=None):
    "The text with its sentences in another order. A sentence ends with . ! or ? before a space."
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    order = torch.randperm(len(sentences), generator=generator).tolist()
    return " ".join(sentences[i] for i in order)


@checked(text=a_text, translate=a_function, translate_back=a_function)
def backtranslate(text, translate, translate_back):
    """The text after a journey through another language, from which it comes back in other words.

    translate, translate_back: functions from text to text, such as two models of translation.
    """
    elsewhere = a_text("What translate gives", translate(text))
    return a_text("What translate_back gives", translate_back(elsewhere))
