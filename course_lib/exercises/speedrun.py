"""The exercises of chapter 18."""
import itertools
import math

import torch
from torch import nn

from .core import Exercise

# 1. What is left

def speedup(share, factor):
    "Amdahl's law: the rest stays, this share shrinks."
    return 1 / (1 - share + share / factor)


def parts(rng):
    cases = [(rng.uniform(.1, .9), rng.uniform(1.5, 12.)) for _ in range(3)]
    return [{"share": share, "factor": factor} for share, factor in [*cases, (rng.uniform(.2, .8), math.inf), (rng.uniform(.2, .8), .5)]]


def by_the_clock(share, factor):
    "A training of 1,000 seconds, part by part."
    loading, rest = 1000 * share, 1000 - 1000 * share
    return {"the speed-up": 1000 / (rest + (0. if factor == math.inf else loading / factor))}


SPEEDUP = Exercise(
    "18", speedup, '''
def speedup(share, factor):
    "How many times faster a training gets whose part of this share is made `factor` times as fast."
    return 1.                                    # replace this
''',
    hints=("Take a training of 100 seconds. How many of them are loading, and how many are the rest?",
           "Afterwards the rest takes as long as before, and loading takes share / factor.",
           "The speed-up is the time before, 1, divided by the time afterwards."),
    mistakes={
        "You have left the rest out. It takes as long as before, 1 − share.": lambda share, factor: factor / share,
        "That is the time afterwards. How many times faster is before divided by afterwards.":
            lambda share, factor: 1 - share + share / factor,
        "Speeds do not add up like that; times do. Add the time of the rest and the time of loading, then divide.":
            lambda share, factor: 1 - share + share * factor,
        "Making a part infinitely fast takes its share away, not the rest.": lambda share, factor: 1 / (share + (1 - share) / factor)},
    cases=parts, run=lambda answer, share, factor: {"the speed-up": answer(share, factor)}, truth=by_the_clock,
    why="This is Amdahl's law (1967). However fast loading gets, the rest is left: with a share of 60 % the training never gets more than 2.5 times as fast.")


# 2. An honest crossing

def lucky_and_fair(target, ladder, accuracies):
    "The mean of the seeds' own first rungs at the target, and the first rung at which the mean has it."
    def first(row): return next((rung for rung, there in zip(ladder, row >= target) if there), math.inf)
    own = [first(column) for column in accuracies.T]
    return sum(own) / len(own), first(accuracies.mean(1))


def ladders(rng):
    "Accuracies in sixteenths, which floats hold exactly, that go up and down."
    found = []
    for kind in ("all", "all", "some", "none"):
        while True:
            n_rungs, n_seeds = rng.randrange(4, 7), rng.choice((2, 4, 8))
            ladder = sorted(rng.sample(range(100, 1000, 10), n_rungs))
            steps = torch.tensor([[8 + min(2 * i, 6) + rng.randrange(-2, 3) for _ in range(n_seeds)] for i in range(n_rungs)])
            case = {"target": .8125, "ladder": ladder, "_accuracies": steps / 16}
            lucky, fair = by_looking(case["target"], ladder, case["_accuracies"]).values()
            there = case["_accuracies"] >= case["target"]
            dips = bool((there[:-1] & ~there[1:]).any())
            wanted = {"all": lucky < fair < math.inf and dips, "some": lucky == math.inf and fair < math.inf, "none": fair == math.inf}[kind]
            if wanted: break
        found.append(case)
    on_it = torch.tensor([[.5, .75], [.75, .875], [.875, .75], [1., .875]])      # the mean is exactly at the target
    return [*found, {"target": .8125, "ladder": [100, 200, 300, 400], "_accuracies": on_it}]


def by_looking(target, ladder, _accuracies):
    "Number by number."
    rows, own = _accuracies.tolist(), []
    for seed in range(len(rows[0])):
        own.append(min([rung for rung, row in zip(ladder, rows) if row[seed] >= target], default=math.inf))
    fair = min([rung for rung, row in zip(ladder, rows) if sum(row) / len(row) >= target], default=math.inf)
    return {"the lucky mean": float(sum(own) / len(own)), "the fair rung": float(fair)}


def look_at_both(answer, target, ladder, _accuracies):
    lucky, fair = answer(target, ladder, _accuracies)
    return {"the lucky mean": float(lucky), "the fair rung": float(fair)}


def crossing_with(there=lambda row, target: row >= target, own=lambda firsts: sum(firsts) / len(firsts), last=False, fair=None):
    def lucky_and_fair(target, ladder, accuracies):
        def first(row):
            rungs = [rung for rung, ok in zip(ladder, there(row, target)) if ok]
            return math.inf if not rungs else rungs[-1] if last else rungs[0]
        firsts = [first(column) for column in accuracies.T]
        return own(firsts), fair(firsts) if fair else first(accuracies.mean(1))
    return lucky_and_fair


LUCKY_AND_FAIR = Exercise(
    "18", lucky_and_fair, '''
def lucky_and_fair(target, ladder, accuracies):
    "(mean of the seeds' own first rungs at the target, first rung at which the mean has it)."
    return 0., 0.                                # replace this
''',
    hints=("What do you need of each column of accuracies, and what of the mean of each row?",
           "Write a helper first(row): the first rung at which row >= target, math.inf if there is none.",
           "The first number is the mean of first over accuracies.T, the second is first(accuracies.mean(1))."),
    mistakes={
        "A seed that has exactly the target is there.": crossing_with(there=lambda row, target: row > target),
        "Seeds that never have the target count with inf; you have left them out.":
            crossing_with(own=lambda firsts: (lambda kept: sum(kept) / len(kept) if kept else math.inf)([f for f in firsts if f < math.inf])),
        "The second number is about the mean accuracy of all seeds, not about the slowest seed.": crossing_with(fair=max),
        "The second number is about the mean accuracy of all seeds, not about the quickest seed.": crossing_with(fair=min),
        "Accuracies go up and down. Asked is the first rung at the target, not the last one.": crossing_with(last=True)},
    cases=ladders, run=look_at_both, truth=by_looking,
    why="Who stops each seed at its own lucky moment gets a smaller number, though the networks are the same. The mean accuracy does not reward luck.")


# 3. A start that passes on

def identity_start(n_out, n_in, size):
    "1 in the middle of the filter from channel i to channel i, else 0."
    weight = torch.zeros(n_out, n_in, size, size)
    for i in range(min(n_out, n_in)): weight[i, i, size // 2, size // 2] = 1
    return weight


def torchs_dirac(n_out, n_in, size): return {"the weights": nn.init.dirac_(torch.empty(n_out, n_in, size, size))}


def start_with(place=lambda i, size: (i, i, size // 2, size // 2), n=min, value=1.):
    def identity_start(n_out, n_in, size):
        weight = torch.zeros(n_out, n_in, size, size)
        for i in range(n(n_out, n_in)): weight[place(i, size)] = value
        return weight
    return identity_start


IDENTITY_START = Exercise(
    "18", identity_start, '''
def identity_start(n_out, n_in, size):
    "Weights [n_out, n_in, size, size] of a convolution that passes its input's channels on."
    return torch.zeros(n_out, n_in, size, size)  # replace this
''',
    hints=("Which weights does output channel 2 multiply, and which of these should be 1 if it is to be input channel 2?",
           "weight[i, i, size // 2, size // 2]: from channel i to channel i, at the place in the middle.",
           "i goes up to the smaller one of n_out and n_in."),
    mistakes={
        "The 1 belongs in the middle of the filter. Yours is in a corner, which shifts the image.": start_with(lambda i, size: (i, i, 0, 0)),
        "Each channel adds up all places of its filter, so only the middle one may be 1.": start_with(lambda i, size: (i, i)),
        "Each output should be one input channel, not the sum of all.": start_with(lambda i, size: (i, slice(None), size // 2, size // 2)),
        "You pass on only the first channel.": start_with(n=lambda n_out, n_in: 1),
        "A whole row of the filter is 1. Only its middle may be.": start_with(lambda i, size: (i, i, size // 2))},
    cases=lambda rng: [{"n_out": a, "n_in": b, "size": size} for a, b, size in
                       ((rng.randrange(2, 5), rng.randrange(5, 8), 3), (rng.randrange(5, 8), rng.randrange(2, 5), 5), (3, 3, rng.choice((3, 5))), (4, 2, 1))],
    run=lambda answer, **case: {"the weights": answer(**case)}, truth=torchs_dirac, instead=("torch.nn.init.dirac_",),
    why="A convolution multiplies what lies under the filter. With a single 1 in the middle it copies a channel. Training begins with a network "
        "that lets the image through.")


# 4. Shapley's shares from a blank page

def my_shapley(value, players):
    "The mean over all orders of what a player brings on arrival."
    orders = list(itertools.permutations(players))
    shares = {player: 0. for player in players}
    for order in orders:
        for i, player in enumerate(order):
            shares[player] += (value(frozenset(order[:i + 1])) - value(frozenset(order[:i]))) / len(orders)
    return shares


class Game:
    "A number for each team, looked up; a player's name is a letter."
    def __init__(self, worth): self.worth = worth

    def __call__(self, team):
        if not isinstance(team, frozenset): raise TypeError(f"value takes a frozenset of players, not {type(team).__name__}.")
        return self.worth[team]


def teams(players): return [frozenset(team) for n in range(len(players) + 1) for team in itertools.combinations(players, n)]


def games(rng):
    found = []
    for n in (1, 2, 3, 4):
        players = rng.sample("abcdefgh", n)
        found.append({"_worth": {team: rng.uniform(-3, 3) for team in teams(players)}, "players": players})
    return found


def by_dividends(_worth, players):
    "By Harsanyi's dividends (1963): what a team is worth beyond its parts is divided equally among its members."
    dividends = {}
    for team in teams(players):
        dividends[team] = _worth[team] - sum(dividends[part] for part in dividends if part < team)
    return {player: sum(d / len(team) for team, d in dividends.items() if player in team) for player in players}


def shares_with(bring):
    def my_shapley(value, players): return {player: bring(value, list(players), player) for player in players}
    return my_shapley


def uniform_teams(value, players, player):
    others = teams([p for p in players if p != player])
    return sum(value(team | {player}) - value(team) for team in others) / len(others)


def one_order(value, players, player):
    before = frozenset(players[:players.index(player)])
    return value(before | {player}) - value(before)


def not_divided(value, players, player):
    return sum(my_shapley(value, players)[player] for _ in range(math.factorial(len(players))))


def from_zero(value, players, player):
    return my_shapley(lambda team: value(team) if team else 0., players)[player]


MY_SHAPLEY = Exercise(
    "18", my_shapley, '''
def my_shapley(value, players):
    "What each player brings to the value, the mean over all orders of arrival: a dict."
    return {}                                    # replace this
''',
    hints=("In the order a, c, b: what does c bring when it arrives?",
           "itertools.permutations(players) gives all orders. In each, walk from the first to the last and keep the set of those who are there.",
           "Add value(before | {player}) − value(before) to the player's share, and divide by the number of orders in the end."),
    mistakes={
        "You take all teams of others alike. Of all orders, small and large teams come first more often than each middle one: weigh them.":
            shares_with(uniform_teams),
        "That is one order, the one in which players are given. Take the mean over all of them.": shares_with(one_order),
        "That is what a player brings to nobody.": shares_with(lambda value, players, player: value(frozenset({player})) - value(frozenset())),
        "That is what goes with a player who leaves all the others.":
            shares_with(lambda value, players, player: value(frozenset(players)) - value(frozenset(players) - {player})),
        "That is the sum over all orders. Divide by their number.": shares_with(not_divided),
        "Nobody's team is worth something, too: value(frozenset()). You count it as 0.": shares_with(from_zero)},
    cases=games, run=lambda answer, _worth, players: dict(answer(Game(_worth), players)), truth=by_dividends,
    why="The first one to come brings what it is worth beyond the empty team, the next one what it adds, and so on. So in each order the parts add up to the "
        "whole, and so does their mean. `shapley` has the same sum with equal terms collected.")

EXERCISES = [SPEEDUP, LUCKY_AND_FAIR, IDENTITY_START, MY_SHAPLEY]
