"""A text that the course brings along, Python's manual, as numbers: windows of a few words, and the next."""
import gzip
from collections import Counter

import torch

from .files import embedded


def next_word_windows(n_words=1000, n_before=3):
    """Words by number, each with those before it: `(x [n, n_before], y [n], words)`, int64 and a list `[n_words]`.

    The most frequent words stand first in the list, so a word's number is its rank; rarer ones are left out of the text.
    """
    text = gzip.decompress(embedded("manual.txt.gz").read_bytes()).decode().split()
    words = [word for word, _ in Counter(text).most_common(n_words)]
    number = {word: i for i, word in enumerate(words)}
    numbers = torch.tensor([number[word] for word in text if word in number])
    return numbers.unfold(0, n_before, 1)[:-1].contiguous(), numbers[n_before:], words
