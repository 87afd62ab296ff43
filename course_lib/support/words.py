"""A text that every Python brings along, as numbers: the help texts of `pydoc`, in windows of a few words and the next."""
import re
from collections import Counter

import torch


def next_word_windows(n_words=1000, n_before=3):
    """Words by number, each with those before it: `(x [n, n_before], y [n], words)`, int64 and a list `[n_words]`.

    The most frequent words stand first in the list, so a word's number is its rank; rarer ones are left out of the text.
    Python's versions differ a little in these texts.
    """
    from pydoc_data.topics import topics  # half a megabyte, that only these windows need

    text = re.findall(r"[a-z]+", " ".join(topics.values()).lower())
    words = [word for word, _ in Counter(text).most_common(n_words)]
    number = {word: i for i, word in enumerate(words)}
    numbers = torch.tensor([number[word] for word in text if word in number])
    return numbers.unfold(0, n_before, 1)[:-1].contiguous(), numbers[n_before:], words
