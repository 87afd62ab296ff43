"""What do varied sentences gain? Writes data/results/text_augmentation.json.

    python data/text_augmentation.py        seven minutes of one core, twenty on a busy machine

What is a definition about, of eight topics? Two networks guess. One is linear in the mean of the words' vectors, a bag
of words, which cannot see their order. The other is a convolution over three words with a maximum over the sentence
(Kim, 2014), which can. They get 80 training sentences, then 800. Each way to vary these has the rate, the number of
steps and the strength that are best on 1,000 validation sentences, over seeds for tuning; twenty other seeds are judged
on 4,000 test sentences. A seed draws training sentences, initial weights and variations; the first two are the same for
every way.
"""
import time

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from course_lib import Adam
from course_lib.support.paired import paired
from course_lib.support.results import save_results
from course_lib.augmentation import delete, draw, insert, replace, swap, words_of
from course_lib.support.wordnet import glosses

N_VALID, N_TEST, BATCH = 1000, 4000, 80
STEPS = {80: [25, 50, 100, 200], 800: [50, 100, 200, 400]}
N_COPIES, TUNING, SEEDS = {80: 16, 800: 4}, {80: range(100, 105), 800: range(100, 103)}, range(20)
STRENGTHS = [.1, .2, .4]  # the share of the words that changes
SIZE, N_FEATURES, MOST_WORDS = 24, 32, 20_000  # of a word's vector; of the convolution; of the vocabulary


def by_share(change):
    "A change of n words as one of a share of the words, at least one."
    return lambda words, share, generator: change(words, max(1, round(share * len(words))), generator)


WAYS = {"replace": by_share(replace), "insert": by_share(insert), "swap": by_share(swap), "delete": delete}
FOUR = list(WAYS.values())
WAYS["one of the four"] = lambda words, share, generator: draw(FOUR, generator)(words, share, generator)


class Numbers(dict):
    "Word -> number from 1; a new word gets the next one."
    def __missing__(self, word): return self.setdefault(word, len(self) + 1)


NUMBERS = Numbers()
TEXTS, LABELS, TOPICS = glosses()
WORDS = [words_of(text) for text in TEXTS]


def as_rows(sentences):
    "Numbers of the words of each sentence `[n, longest]`, and 0 after its end."
    return pad_sequence([torch.tensor([NUMBERS[word] for word in words]) for words in sentences], batch_first=True)


ROWS = as_rows(WORDS)
VALID, TEST, POOL = torch.randperm(len(WORDS), generator=torch.Generator().manual_seed(0)).split(
    [N_VALID, N_TEST, len(WORDS) - N_VALID - N_TEST])


def bag_weights(generator): return [torch.randn(MOST_WORDS, len(TOPICS), generator=generator) * .01]


def bag(rows, table):
    "Logits `[nets, n, topics]` of rows `[nets, n, longest]`; sorted, so that not even rounding sees the order."
    rows = rows.sort(2).values
    return F.embedding_bag(rows.flatten(0, 1), table, mode="mean", padding_idx=0).unflatten(0, rows.shape[:2])


def convolution_weights(generator):
    draws = lambda *shape: torch.randn(*shape, generator=generator)
    return [draws(MOST_WORDS, SIZE) * .3, draws(3 * SIZE, N_FEATURES) / (3 * SIZE) ** .5, torch.zeros(1, N_FEATURES),
            draws(N_FEATURES, len(TOPICS)) / N_FEATURES ** .5, torch.zeros(1, len(TOPICS))]


def convolution(rows, table, kernel, bias, head, head_bias):
    "Logits as `bag` gives them, of nets with weights `[nets, …]`."
    vectors = F.embedding(rows, table, padding_idx=0)
    windows = F.pad(vectors, (0, 0, 1, 1)).unfold(2, 3, 1).flatten(3)  # [nets, n, longest, 3 words]
    features = (windows.flatten(1, 2) @ kernel + bias).relu().unflatten(1, rows.shape[1:])
    return features.amax(2) @ head + head_bias


NETS = {"bag": (bag, bag_weights, [.1, .3, 1.]), "convolution": (convolution, convolution_weights, [.01, .03])}


def prepare(net, n_train, way, strength, seed):
    """What one seed trains on: rows of sentences `[n, 1 + copies, longest]` with the sentence itself first, labels, the
    initial weights, and the new number of each word: only words that training shows have one from 1 on."""
    generator = torch.Generator().manual_seed(seed)
    places = POOL[torch.randperm(len(POOL), generator=generator)[:n_train]]
    table, *others = NETS[net][1](generator)
    if way == "plain": rows = ROWS[places][:, None]
    else:
        generator = torch.Generator().manual_seed(seed)
        rows = as_rows([words for place in places.tolist() for words in [WORDS[place], *(
            WAYS[way](WORDS[place], strength, generator) for _ in range(N_COPIES[n_train]))]])
        rows = rows.unflatten(0, (n_train, -1))
    known = rows.unique()
    known, new = known[known > 0], torch.zeros(MOST_WORDS, dtype=torch.int64)
    new[known] = torch.arange(1, len(known) + 1)
    return new[rows], LABELS[places], [torch.cat([torch.zeros(1, table.shape[1]), table[known]]), *others], new


def accuracies(net, n_train, way, strength, seeds, rates, judged, n_steps):
    "Shares that are right among the judged sentences `[n_steps, seeds, rates]`; all nets train side by side."
    forward, seeds = NETS[net][0], list(seeds)
    rows, labels, weights, new = zip(*(prepare(net, n_train, way, strength, seed) for seed in seeds))
    seed_of = torch.arange(len(seeds)).repeat_interleave(len(rates))  # for each net, the place of its seed
    params = [pad_sequence([weights[seed][i] for seed in seed_of], batch_first=True).requires_grad_()
              for i in range(len(weights[0]))]
    first = torch.arange(len(seed_of))[:, None, None] * params[0].shape[1]  # where a net's words begin

    def logits(rows): return forward(torch.where(rows > 0, rows + first, 0), params[0].flatten(0, 1), *params[1:])

    longest = max(r.shape[2] for r in rows)
    rows, labels = torch.stack([F.pad(r, (0, longest - r.shape[2])) for r in rows]), torch.stack(labels)
    opt, found = Adam(params, lr=torch.tensor(rates).repeat(len(seeds))), []
    order, variation = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    for step in range(1, max(n_steps) + 1):
        batch = torch.randperm(n_train, generator=order)[:BATCH]
        which = torch.randint(rows.shape[2], batch.shape, generator=variation)
        at = seed_of[:, None], batch
        loss = F.cross_entropy(logits(rows[*at, which]).flatten(0, 1), labels[at].flatten())
        (loss * len(seed_of)).backward()  # each net gets the gradient of its own mean
        opt.step()
        opt.zero_grad()
        if step in n_steps: found.append(right(logits, torch.stack(new), seed_of, judged).view(len(seeds), len(rates)))
    return torch.stack(found)


@torch.no_grad()
def right(logits, new, seed_of, judged):
    "The share of the judged sentences that each net gets right."
    hits = [(logits(new[:, ROWS[part]][seed_of]).argmax(2) == LABELS[part]).sum(1) for part in judged.split(250)]
    return sum(hits).double() / len(judged)


def best_setting(net, n_train, way):
    "(strength, rate, number of steps) with the highest mean accuracy on the validation sentences."
    means, rates, n_steps = {}, NETS[net][2], STEPS[n_train]
    for strength in [None] if way == "plain" else STRENGTHS:
        shares = accuracies(net, n_train, way, strength, TUNING[n_train], rates, VALID, n_steps).mean(1).tolist()
        means |= {(strength, lr, n): share for n, row in zip(n_steps, shares) for lr, share in zip(rates, row)}
    return max(means, key=means.get)


def main():
    start, found = time.perf_counter(), {}
    for net in NETS:
        found[net] = {}
        for n_train in STEPS:
            ways = found[net][str(n_train)] = {}
            for way in ["plain", *WAYS]:
                strength, lr, n = best_setting(net, n_train, way)
                shares = accuracies(net, n_train, way, strength, SEEDS, [lr], TEST, [n]).flatten().tolist()
                ways[way] = {"strength": strength, "lr": lr, "steps": n, "accuracy": [round(s, 5) for s in shares]}
                gain = paired(ways[way]["accuracy"], ways["plain"]["accuracy"])
                ways[way]["gain"] = [round(x, 5) for x in (gain.mean, gain.low, gain.high)]
                print(f"{time.perf_counter() - start:4.0f} s", net, n_train, way, strength, lr, n,
                      f"{sum(shares) / len(shares):.4f}", gain, flush=True)
    for ways in found["bag"].values():
        assert ways["swap"]["accuracy"] == ways["plain"]["accuracy"], "a bag of words cannot see an order"
    save_results("text_augmentation", {"topics": TOPICS, "strengths": STRENGTHS, **found}, start,
                 f"seeds {SEEDS[0]} to {SEEDS[-1]}, tuned on others from {TUNING[80][0]} on")


if __name__ == "__main__": main()
