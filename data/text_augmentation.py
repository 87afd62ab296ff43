"""What do varied sentences gain? Writes data/results/text_augmentation.json.

    python data/text_augmentation.py        about five minutes on one core

A definition is to be told its topic, one of eight, by a linear layer on the mean of its words' vectors: a bag of words.
80 training sentences, then 800. Each way to vary them gets the rate, the number of steps and the strength that are best
on 1,000 validation sentences, over five seeds; twenty other seeds are judged on 4,000 test sentences. A seed draws the
training sentences, the initial weights, the batches and the variations. The first three are the same for every way.
"""
import time

import torch
import torch.nn.functional as F

from course_lib import Adam
from course_lib.support.paired import paired
from course_lib.support.results import save_results
from course_lib.support.text_draft import delete, draw, insert, replace, swap, words_of
from course_lib.support.wordnet import glosses

N_VALID, N_TEST, BATCH = 1000, 4000, 80
RATES, STEPS, STRENGTHS = [.03, .1, .3], [25, 50, 100, 200, 400, 800], [.1, .2, .4]  # strength: share of words
N_COPIES = {80: 16, 800: 8}  # as many as Wei and Zou (2019) advise for 500 and 2,000 sentences
TUNING, SEEDS = range(100, 105), range(20)


def by_share(change):
    "A change of n words as one of a share of the words, at least one."
    return lambda words, share, generator: change(words, max(1, round(share * len(words))), generator)


WAYS = {"replace": by_share(replace), "insert": by_share(insert), "swap": by_share(swap), "delete": delete}
WAYS["all four"] = lambda words, share, generator: draw(FOUR, generator)(words, share, generator)
FOUR = list(WAYS.values())[:4]


def padded(rows, width):
    "Lists of numbers as int64 `[n, width]`, sorted, with −1 at the end: two orders of the same words are one bag."
    return torch.tensor([sorted(row) + [-1] * (width - len(row)) for row in rows])


class Numbers(dict):
    "Word -> number; a new word gets the next one."
    def __missing__(self, word): return self.setdefault(word, len(self))


NUMBERS = Numbers()
TEXTS, LABELS, TOPICS = glosses()
WORDS = [words_of(text) for text in TEXTS]
WIDTH, MOST_WORDS = 2 * max(map(len, WORDS)), 20_000  # with the words that are put in; and of the vocabulary
BAGS = padded([[NUMBERS[word] for word in words] for words in WORDS], WIDTH)
ORDER = torch.randperm(len(WORDS), generator=torch.Generator().manual_seed(0))
VALID, TEST, POOL = ORDER.split([N_VALID, N_TEST, len(ORDER) - N_VALID - N_TEST])


def copies(rows, way, strength, seed):
    "Bags of the sentences and of their variations, `[n, 1 + copies, width]`; the sentence itself comes first."
    if way == "plain": return BAGS[rows][:, None]
    generator = torch.Generator().manual_seed(seed)
    varied = [words for row in rows.tolist() for words in
              [WORDS[row], *(WAYS[way](WORDS[row], strength, generator) for _ in range(N_COPIES[len(rows)]))]]
    bags = padded([[NUMBERS[word] for word in words] for words in varied], WIDTH)
    return bags.view(len(rows), -1, WIDTH)


def prepare(n_train, way, strength, seed):
    """What one seed trains on: `(bags, labels, weights, local)`. Words are numbered anew, with those alone that training
    shows; local: the new number of each word, and 0, whose weights stay zero, for all others."""
    generator = torch.Generator().manual_seed(seed)
    rows = POOL[torch.randperm(len(POOL), generator=generator)[:n_train]]
    weights = torch.randn(MOST_WORDS, len(TOPICS), generator=generator) * .01
    bags = copies(rows, way, strength, seed)
    known = bags.unique()[1:]  # without the −1
    local = torch.zeros(MOST_WORDS + 1, dtype=torch.int64)  # the last is that of −1
    local[known] = torch.arange(1, len(known) + 1)
    return local[bags], LABELS[rows], torch.cat([torch.zeros(1, len(TOPICS)), weights[known]]), local


def accuracies(n_train, way, strength, seeds, rates, judged, n_steps):
    "Shares that are right among the judged sentences `[n_steps, seeds, rates]`; all nets train side by side."
    bags, labels, weights, local = zip(*(prepare(n_train, way, strength, seed) for seed in seeds))
    nets = [seed for seed in range(len(bags)) for _ in rates]  # the place of its seed, for each net
    table = torch.nn.utils.rnn.pad_sequence([weights[seed] for seed in nets], batch_first=True)
    n_nets, n_words, n_topics = table.shape
    first = torch.arange(n_nets)[:, None, None] * n_words  # where a net's words begin
    table.requires_grad_()

    def logits(bags):
        "`[nets, n, topics]` for bags `[nets, n, width]`; 0, no word, is the same row for all nets."
        bags = torch.where(bags > 0, bags + first, 0).flatten(0, 1)
        return F.embedding_bag(bags, table.flatten(0, 1), mode="mean", padding_idx=0).view(n_nets, -1, n_topics)

    seed_of, bags, labels = torch.tensor(nets)[:, None], torch.stack(bags), torch.stack(labels)
    opt, found = Adam([table], lr=torch.tensor(rates).repeat(len(seeds))), []
    order, variation = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    for step in range(1, max(n_steps) + 1):
        batch = torch.randperm(n_train, generator=order)[:BATCH]
        which = torch.randint(bags.shape[2], (len(bags), len(batch)), generator=variation)[seed_of[:, 0]]
        loss = F.cross_entropy(logits(bags[seed_of, batch, which]).flatten(0, 1), labels[seed_of, batch].flatten())
        (loss * n_nets).backward()  # each net has the gradient of its own mean
        opt.step()
        opt.zero_grad()
        if step in n_steps:
            with torch.no_grad(): guesses = logits(torch.stack([local[seed][BAGS[judged]] for seed in nets])).argmax(2)
            found.append((guesses == LABELS[judged]).double().mean(1).view(len(seeds), len(rates)))
    return torch.stack(found)


def best_setting(n_train, way):
    "(strength, rate, number of steps) with the highest mean accuracy on the validation sentences."
    means = {}
    for strength in [None] if way == "plain" else STRENGTHS:
        shares = accuracies(n_train, way, strength, TUNING, RATES, VALID, STEPS).mean(1).tolist()
        means |= {(strength, lr, n): share for n, row in zip(STEPS, shares) for lr, share in zip(RATES, row)}
    return max(means, key=means.get)


def main():
    start, found = time.perf_counter(), {}
    for n_train in N_COPIES:
        found[str(n_train)] = ways = {}
        for way in ["plain", *WAYS]:
            strength, lr, n = best_setting(n_train, way)
            shares = accuracies(n_train, way, strength, SEEDS, [lr], TEST, [n]).flatten().tolist()
            ways[way] = {"strength": strength, "lr": lr, "steps": n, "accuracy": [round(share, 5) for share in shares]}
            gain = paired(ways[way]["accuracy"], ways["plain"]["accuracy"])
            ways[way]["gain"] = {"mean": round(gain.mean, 5), "low": round(gain.low, 5), "high": round(gain.high, 5)}
            print(n_train, way, strength, lr, n, f"{sum(shares) / len(shares):.4f}", gain, flush=True)
        assert ways["swap"]["accuracy"] == ways["plain"]["accuracy"], "an order that a bag of words can see?"
    save_results("text_augmentation", {"topics": TOPICS, "strengths": STRENGTHS, "rates": RATES, "steps": STEPS, **found},
                 start, f"seeds {SEEDS[0]} to {SEEDS[-1]}, tuned on seeds {TUNING[0]} to {TUNING[-1]}")


if __name__ == "__main__": main()
