"""The speedrun against closed forms, all orders of arrival, NumPy, SciPy, torch, and damaged files."""
import itertools
import json
import math
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib import TensorLoader, digits
from course_lib.learner import Callback
from course_lib.speedrun import (
    FASTEST, TRICKS, AlternatingFlips, Batches, Recipe, accuracy_on, add_one, bootstrap, cifar_learner, fit,
    leave_one_out, make_learner, make_loader, make_net, recipe_with, shapley, shuffled_rows, steps_to, train_once,
    whitening_filters)
from course_lib.support.speedrun import (
    Leaderboard, Run, Times, as_bytes, entries_in, entry_of, read_arguments, table_of_runs)
from course_lib.support.speedrun_cifar import (
    ScaledLinear, biases_apart, cifar_net, made_up, mirrored_answers, same_conv)
from tiny import every_device

SMALL = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def part(n=96, device="cpu"):
    "Images of two gray levels for each class, and some noise; values as in a byte, so that nothing is rounded."
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 10
    x = torch.randint(0, 60, (n, 1, 28, 28), generator=generator)
    x[:, :, :14] += 19 * y[:, None, None, None]
    x[0, 0, 0, :2] = torch.tensor([0, 255])
    return SimpleNamespace(x=((x / 255 - .4) / .3).to(device), y=y.to(device))


PART = part()


# Recipes

def test_a_recipe_turns_on_what_it_is_told_and_nothing_else():
    assert recipe_with([]) == Recipe() and Recipe._fields[:6] == TRICKS
    for n in range(len(TRICKS) + 1):
        for tricks in itertools.combinations(TRICKS, n):
            recipe = recipe_with(tricks, lr=.5, batch_size=7)
            assert {name for name in TRICKS if getattr(recipe, name)} == set(tricks)
            assert (recipe.lr, recipe.batch_size) == (.5, 7)
    assert all(FASTEST[:6])


@pytest.mark.parametrize("tricks", [["strides", "no such"], ["strides", "strides"], "strides", ["Strides"], [None]])
def test_bad_tricks_are_refused(tricks):
    with pytest.raises(ValueError, match="trick|twice"): recipe_with(tricks)


def shapes_of(net, x):
    seen = []
    for layer in net:
        layer.register_forward_hook(lambda layer, x, out: seen.append((type(layer).__name__, *out.shape[1:])))
    net(x)
    return seen


@pytest.mark.parametrize("strides", [False, True])
@pytest.mark.parametrize("batchnorm", [False, True])
def test_shapes_and_number_of_parameters(strides, batchnorm):
    net = make_net(Recipe(strides=strides, batchnorm=batchnorm))
    widths, sizes, n_in = (16, 24, 32), (5, 3, 3), (1, 16, 24)
    convolutions = sum(a * b * k * k + b for a, b, k in zip(n_in, widths, sizes))
    assert sum(p.numel() for p in net.parameters()) == convolutions + 2 * sum(widths) * batchnorm + 800 * 10 + 10
    found = shapes_of(net, torch.zeros(2, 1, 28, 28))
    ends = [shape for name, *shape in found if name == "ReLU"]
    assert ends == [[16, 14, 14], [24, 7, 7], [32, 5, 5]]
    kinds = Counter(name for name, *_ in found)
    assert kinds["MaxPool2d"] == (0 if strides else 2) and kinds["BatchNorm2d"] == 3 * batchnorm
    assert [layer.stride[0] for layer in net if isinstance(layer, nn.Conv2d)] == ([2, 2, 1] if strides else [1, 1, 1])


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_changes_what_it_says_and_nothing_else(trick):
    plain, other = (make_learner(recipe, PART, 3, seed=4) for recipe in (Recipe(), recipe_with([trick])))
    weights = [[p for layer in learn.model if isinstance(layer, (nn.Conv2d, nn.Linear)) for p in layer.parameters()]
               for learn in (plain, other)]
    assert len(weights[0]) == 8
    for a, b in zip(*weights, strict=True): assert torch.equal(a, b)
    kinds = [[type(layer) for layer in learn.model] for learn in (plain, other)]
    assert (kinds[0] == kinds[1]) == (trick not in ("strides", "batchnorm"))
    if trick == "batchnorm": assert [kind for kind in kinds[1] if kind is not nn.BatchNorm2d] == kinds[0]
    if trick == "strides": assert [kind for kind in kinds[0] if kind is not nn.MaxPool2d] == kinds[1]
    # laid out by channel? An image of one channel is so either way: the second convolution tells
    second = [[layer for layer in learn.model if isinstance(layer, nn.Conv2d)][1].weight for learn in (plain, other)]
    assert second[0].is_contiguous() and second[1].is_contiguous() == (trick != "channels_last")
    assert second[1].is_contiguous(memory_format=torch.channels_last) == (trick == "channels_last")
    assert plain.loss_func.label_smoothing == 0
    assert other.loss_func.label_smoothing == (.1 if trick == "smoothing" else 0)
    assert isinstance(other.dls.train, Batches) == (trick == "in_memory") and not isinstance(plain.dls.train, Batches)
    for (xa, ya), (xb, yb) in zip(plain.dls.train, other.dls.train, strict=True):
        torch.testing.assert_close(xa, xb, rtol=0, atol=1e-5)
        assert torch.equal(ya, yb)


def watched(learn):
    "The hyperparameters of each step that the learner takes from now on: a list that grows."
    seen, original = [], learn.fit

    class Notes(Callback):
        def after_step(self, learn): seen.append(dict(learn.opt.param_groups[0]))
    learn.fit = lambda *args, cbs=(), **more: original(*args, cbs=[*cbs, Notes()], **more)
    return seen


@pytest.mark.parametrize("cycle", [False, True])
def test_one_cycle_rises_and_falls_and_else_the_rate_is_constant(cycle):
    recipe = recipe_with(["one_cycle"] * cycle, lr=.01, batch_size=8)
    learn = make_learner(recipe, PART, 40, 0)
    steps = watched(learn)
    fit(learn, recipe)
    rates = [step["lr"] for step in steps]
    assert len(rates) == 40 and max(rates) == pytest.approx(.01, rel=.02)
    assert {(step["beta"], step["sqr_beta"]) for step in steps} == {(.8, .95)}
    if not cycle: assert set(rates) == {.01}
    else:
        top = rates.index(max(rates))
        assert 5 < top < 20 and rates[:top + 1] == sorted(rates[:top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True) and rates[-1] < rates[0] < .002


@pytest.mark.parametrize("n, n_steps, batch_size", [(10, 7, 4), (96, 3, 32), (5, 1, 13), (12, 1, 1)])
def test_rows_are_whole_epochs_shuffled_anew_and_cut_to_length(n, n_steps, batch_size):
    rows = shuffled_rows(n, n_steps, batch_size, 3)
    assert rows.shape == (n_steps * batch_size,)
    epochs = rows.split(n)
    for epoch in epochs[:-1]: assert epoch.sort().values.tolist() == [*range(n)]
    assert len(set(epochs[-1].tolist())) == len(epochs[-1])
    if len(epochs) > 2: assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(rows, shuffled_rows(n, n_steps, batch_size, 3))
    if n_steps * batch_size > 4: assert not torch.equal(rows, shuffled_rows(n, n_steps, batch_size, 4))


@every_device
@pytest.mark.parametrize("in_memory", [False, True])
def test_batches_are_the_rows(in_memory, device):
    here, rows = part(device=device), shuffled_rows(96, 5, 30, 1)
    loader = make_loader(Recipe(in_memory=in_memory, batch_size=30), here, 5, 1)
    assert len(loader) == 5
    for _ in range(2):                                     # twice the same
        for (x, y), expected in zip(loader, rows.to(device).split(30), strict=True):
            torch.testing.assert_close(x, here.x[expected], rtol=0, atol=1e-5)
            assert torch.equal(y, here.y[expected]) and x.device.type == device


def test_images_as_bytes_come_back():
    found, low, span = as_bytes(PART.x)
    assert found.dtype is torch.uint8 and found.amin() == 0 and found.amax() == 255
    torch.testing.assert_close(found / 255 * span + low, PART.x, rtol=0, atol=1e-5)


@every_device
def test_the_same_seed_gives_the_same_net_and_another_one_another(device):
    here = SimpleNamespace(train=part(device=device), test=part(40, device=device))

    def weights(seed):
        torch.rand(3)                                      # what was drawn before does not matter
        learn = make_learner(recipe_with(TRICKS, lr=.01, batch_size=16), here.train, 4, seed)
        fit(learn, FASTEST._replace(lr=.01))
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()]).cpu()
    starts = [make_learner(FASTEST, here.train, 1, seed).model[0].weight for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    first = weights(0)
    exact = torch.equal if device == "cpu" else lambda a, b: torch.allclose(a, b, atol=1e-3)
    assert exact(first, weights(0)) and not torch.allclose(first, weights(1), atol=1e-2)
    runs = [train_once(FASTEST._replace(batch_size=16), here, 12, seed) for seed in (5, 5)]
    assert runs[0].seed == 5 and runs[0].seconds > 0 and runs[0].warm_up > 0
    if device == "cpu": assert runs[0].accuracy == runs[1].accuracy


def test_memory_and_layout_change_the_clock_only():
    nets = []
    for tricks in ([], ["in_memory"], ["channels_last"], ["in_memory", "channels_last"]):
        recipe = recipe_with([*tricks, "strides"], lr=.005, batch_size=16)
        learn = make_learner(recipe, PART, 6, 2)
        fit(learn, recipe)
        nets.append([p.detach() for p in learn.model.parameters()])
    for net in nets[1:]:
        for a, b in zip(net, nets[0]): torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize("n", range(len(TRICKS) + 1))
def test_every_subset_trains(n):
    for tricks in itertools.combinations(TRICKS, n):
        recipe = recipe_with(tricks, lr=.001, batch_size=16)
        learn = make_learner(recipe, PART, 2, 0)
        before = [p.detach().clone() for p in learn.model.parameters()]
        fit(learn, recipe)
        for p, old in zip(learn.model.parameters(), before):
            assert p.isfinite().all() and not torch.equal(p, old), tricks


def test_accuracy_is_the_share_that_is_right_in_eval_mode():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(.9), nn.Linear(784, 10))
    right = (model.eval()(PART.x).argmax(1) == PART.y).float().mean().item()
    model.train()
    for size in (1, 7, 1000): assert accuracy_on(model, PART, size) == pytest.approx(right)


def test_sixty_steps_learn_digits():
    assert train_once(FASTEST._replace(batch_size=32), digits(device="cpu", n_valid=249), 60).accuracy > .85


@pytest.mark.parametrize("bad", [{"n_steps": 0}, {"n_steps": 2.5}, {"n_steps": None}, {"n_steps": -1}, {"seed": -1},
                                 {"seed": "a"}, {"seed": 1.5}])
def test_train_once_refuses_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        train_once(FASTEST, SimpleNamespace(train=PART, test=PART), **{"n_steps": 2, **bad})


# Steps to a target

def test_steps_by_closed_form():
    ladder = [100, 200, 400]
    assert steps_to(.9, ladder, [[.8], [.88], [.92]]) == pytest.approx(300)
    assert steps_to(.9, ladder, [[.7, .9], [.86, .9], [.98, .94]]) == pytest.approx(200 + 200 * .02 / .08)
    assert steps_to(.9, ladder, [[.9], [.1], [.1]]) == 100       # the first rung is there, exactly
    assert steps_to(.9, ladder, [[.95], [.99], [1.]]) == 100 and steps_to(.9, ladder, [[.1], [.9], [.2]]) == 200
    assert steps_to(.9, ladder, [[.8], [.8999], [.8]]) == math.inf
    assert steps_to(0, [5], [[0.]]) == 5 and steps_to(1., [5], [[1., .99]]) == math.inf


def test_the_first_crossing_counts_where_accuracies_go_up_and_down():
    assert steps_to(.9, [1, 2, 3, 4, 5], [[.85], [.8], [.95], [.7], [.99]]) == pytest.approx(2 + .1 / .15)


def test_it_is_the_mean_that_counts_and_not_the_lucky_seed():
    assert steps_to(.9, [10, 20], [[1., .7], [1., .84]]) == pytest.approx(10 + 10 * .05 / .07)


@SMALL
@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=6, unique=True), st.data())
def test_steps_are_numpys_interpolation_where_the_mean_rises(ladder, data):
    ladder = sorted(ladder)
    whole = data.draw(st.lists(st.integers(0, 1000), min_size=len(ladder), max_size=len(ladder), unique=True))
    means, target = np.sort(whole) / 1000, data.draw(st.integers(0, 1000)) / 1000
    rows = [[mean, mean] for mean in means.tolist()]
    expected = np.interp(target, means, ladder, right=math.inf) if target != means[-1] else ladder[-1]
    assert steps_to(target, ladder, rows) == pytest.approx(expected)


@pytest.mark.parametrize("ladder", [[], [2, 1], [1, 1], [0, 1], [-1, 1], [1, math.nan], [math.nan, 1], [1, math.inf],
                                    None, 3, "ab"])
def test_ladders_that_are_none(ladder):
    with pytest.raises(ValueError, match="ladder"): steps_to(.9, ladder, [[.1], [.2]])


@pytest.mark.parametrize("rows", [[], [[.1]], [[.1], []], [[.1], [math.nan]], [[.1], [math.inf]], None, 3, [.1, .2],
                                  [["a"], ["b"]]])
def test_accuracies_that_are_none(rows):
    with pytest.raises(ValueError, match="accuracies"): steps_to(.9, [1, 2], rows)


@pytest.mark.parametrize("target", [-.1, 1.1, math.nan, "a", None, 99])
def test_targets_that_are_no_share(target):
    with pytest.raises(ValueError, match="target"): steps_to(target, [1, 2], [[.1], [.2]])


# Shares

def over_all_orders(value, players):
    shares, orders = dict.fromkeys(players, 0.), [*itertools.permutations(players)]
    for order in orders:
        for i, player in enumerate(order):
            shares[player] += (value(frozenset(order[:i + 1])) - value(frozenset(order[:i]))) / len(orders)
    return shares


def subsets(players):
    return [frozenset(team) for n in range(len(players) + 1) for team in itertools.combinations(players, n)]


@st.composite
def games(draw, n=st.integers(1, 5)):
    "Players, and a worth for each team, nobody's among them, which need not be 0."
    players = "abcde"[:draw(n)]
    return [*players], {team: draw(st.integers(-50, 50)) for team in subsets(players)}


@SMALL
@given(games())
def test_shapley_is_the_mean_over_all_orders_and_adds_up(game):
    players, worth = game
    shares = shapley(worth.__getitem__, players)
    assert shares == pytest.approx(over_all_orders(worth.__getitem__, players)) and [*shares] == players
    assert sum(shares.values()) == pytest.approx(worth[frozenset(players)] - worth[frozenset()])


@SMALL
@given(games(), games())
def test_shapley_is_additive(first, second):
    n = min(len(first[0]), len(second[0]))
    players = first[0][:n]
    one, two = (shapley(worth.__getitem__, players) for _, worth in (first, second))
    both = shapley(lambda team: 3 * first[1][team] - second[1][team], players)
    assert both == pytest.approx({player: 3 * one[player] - two[player] for player in players})


@SMALL
@given(games(st.integers(1, 4)))
def test_who_adds_nothing_gets_nothing_and_changes_nobodys_share(game):
    players, worth = game
    shares = shapley(lambda team: worth[team - {"idle"}], [*players, "idle"])
    assert shares.pop("idle") == pytest.approx(0) and shares == pytest.approx(shapley(worth.__getitem__, players))


@SMALL
@given(games(st.integers(2, 5)))
def test_who_brings_the_same_gets_the_same(game):
    players, worth = game
    swap = {"a": "b", "b": "a"}
    alike = lambda team: worth[team] + worth[frozenset(swap.get(player, player) for player in team)]
    shares = shapley(alike, players)
    assert shares["a"] == pytest.approx(shares["b"])


def test_three_known_games():
    gloves = lambda team: float("left" in team and bool(team & {"right", "other right"}))
    shares = {"left": 2 / 3, "right": 1 / 6, "other right": 1 / 6}
    assert shapley(gloves, [*shares]) == pytest.approx(shares)
    lengths = {"a": 8., "b": 11., "c": 18.}                # an airport's runway: each part is paid by those who need it
    airport = lambda team: max((lengths[name] for name in team), default=0.)
    assert shapley(airport, [*lengths]) == pytest.approx({"a": 8 / 3, "b": 8 / 3 + 3 / 2, "c": 8 / 3 + 3 / 2 + 7})
    votes = {"A": 50, "B": 49, "C": 1}
    majority = lambda team: float(sum(votes[name] for name in team) > 50)
    assert shapley(majority, [*votes]) == pytest.approx({"A": 2 / 3, "B": 1 / 6, "C": 1 / 6})


@SMALL
@given(games())
def test_adding_and_leaving_out_are_two_values_each(game):
    players, worth = game
    everybody = frozenset(players)
    for player in players:
        assert add_one(worth.__getitem__, players)[player] == worth[frozenset(player)] - worth[frozenset()]
        assert leave_one_out(worth.__getitem__, players)[player] == worth[everybody] - worth[everybody - {player}]


@pytest.mark.parametrize("way", [add_one, leave_one_out, shapley])
def test_all_ways_agree_where_players_do_not_depend_on_each_other(way):
    worth = {"a": 1., "b": -2., "c": .5}
    assert way(lambda team: 7 + sum(worth[name] for name in team), [*worth]) == pytest.approx(worth)
    assert way(len, []) == {}


@pytest.mark.parametrize("way", [add_one, leave_one_out, shapley])
def test_players_that_are_none(way):
    for players in ("abc", ["a", "b", "a"]):
        with pytest.raises(ValueError, match="players|twice"): way(len, players)
    assert way(len, (name for name in "abc")) == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize("value", [None, 3, {}, "f"])
def test_a_value_that_is_no_function(value):
    with pytest.raises(ValueError, match="value must be"): shapley(value, ["a"])


# The bootstrap

def test_the_interval_is_scipys():
    sample = np.random.default_rng(0).gamma(2., size=30)
    found = bootstrap(lambda rows: sample[rows].mean(), 30, draws=5000)
    theirs = scipy.stats.bootstrap((sample,), np.mean, n_resamples=5000, method="percentile",
                                   rng=np.random.default_rng(1)).confidence_interval
    width = theirs.high - theirs.low
    assert found == pytest.approx((theirs.low, theirs.high), abs=.05 * width)
    narrow = bootstrap(lambda rows: sample[rows].mean(), 30, draws=5000, coverage=.5)
    assert found[0] < narrow[0] < sample.mean() < narrow[1] < found[1]
    expected = width * scipy.stats.norm.ppf(.75) / scipy.stats.norm.ppf(.975)
    assert narrow[1] - narrow[0] == pytest.approx(expected, rel=.1)


@pytest.mark.parametrize("coverage", [.8, .95])
def test_the_interval_holds_the_truth_as_often_as_it_says(coverage):
    rng, hits = np.random.default_rng(2), 0
    for seed in range(300):
        sample = rng.normal(3., 2., size=40)
        low, high = bootstrap(lambda rows: sample[rows].mean(), 40, draws=200, coverage=coverage, seed=seed)
        hits += low < 3. < high
    # about 2 % too narrow with 40 values; three standard errors of 300 trials
    assert abs(hits / 300 - (coverage - .015)) < 3 * math.sqrt(coverage * (1 - coverage) / 300) + .01


def test_rows_are_drawn_with_replacement_by_the_seed():
    seen = []
    bootstrap(lambda rows: seen.append(rows) or 0., 20, draws=500)
    assert all(len(rows) == 20 and set(rows) <= set(range(20)) for rows in seen)
    assert np.mean([len(set(rows)) for rows in seen]) == pytest.approx(20 * (1 - .95 ** 20), rel=.03)
    counts = np.bincount(np.ravel(seen), minlength=20)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    mean = lambda rows: sum(rows) / 20
    assert bootstrap(mean, 20) == bootstrap(mean, 20, seed=0) != bootstrap(mean, 20, seed=1)


def test_intervals_of_constants():
    assert bootstrap(lambda rows: 2.5, 3) == (2.5, 2.5) and bootstrap(lambda rows: float(sum(rows)), 1) == (0., 0.)


def test_intervals_of_what_is_never_reached():
    assert bootstrap(lambda rows: math.inf, 5) == (math.inf, math.inf)
    assert bootstrap(lambda rows: math.inf if sum(rows) % 2 else 1., 5) == (1., math.inf)


@pytest.mark.parametrize("bad", [{"n": 0}, {"n": 2.5}, {"draws": 0}, {"draws": None}, {"coverage": 1.2},
                                 {"coverage": -.1}, {"coverage": math.nan}, {"seed": -1}, {"seed": .5},
                                 {"statistic": 3}, {"statistic": None}])
def test_bootstrap_refuses_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))): bootstrap(**{"statistic": sum, "n": 5, "draws": 10, **bad})


# Seconds and halvings

SPEEDUPS = {"in_memory": 4., "channels_last": 2., "strides": 1.5, "batchnorm": .8}
FEWER = {"strides": .9, "batchnorm": 3., "one_cycle": 2.}


def product(factors, team): return math.prod(factor for name, factor in factors.items() if name in team)


def named(team, among): return " ".join(name for name in among if name in team) or "none"


def measured(never=()):
    "Times and accuracies of tricks that do not depend on each other; two seeds, the target is between two rungs."
    ms = {named(team, SPEEDUPS): [48 / product(SPEEDUPS, team), 99.] for team in subsets([*SPEEDUPS])}
    arms = {}
    for team in subsets([*FEWER]):
        steps, name = 5400 / product(FEWER, team), named(team, FEWER)
        best = .8 if name in never else 1.
        arms[name] = {"accuracies": {f"{steps - 100:.0f}": [.8, .8], f"{steps + 100:.0f}": [best, best]}}
    return {"target": .9, "arms": arms, "ms_a_step": ms}


def test_seconds_are_steps_by_time_and_halvings_add_up_to_logarithms():
    times = Times(measured(), steps_to)
    everybody = frozenset(times.players)
    for team in subsets(times.players):
        steps = 5400 / product(FEWER, team)
        assert times.steps(team) == (pytest.approx(steps, abs=.6), True)
        assert times.seconds(team) == pytest.approx(times.steps(team)[0] * 48e-3 / product(SPEEDUPS, team))
        halvings = math.log2(product(SPEEDUPS, team) * product(FEWER, team))
        assert times.halvings(team) == pytest.approx(halvings, abs=1e-3)
    assert times.halvings(()) == 0
    shares = shapley(times.halvings, times.players)
    logarithms = {name: math.log2(SPEEDUPS.get(name, 1) * FEWER.get(name, 1)) for name in times.players}
    assert shares == pytest.approx(logarithms, abs=1e-3)
    assert sum(shares.values()) == pytest.approx(math.log2(times.seconds(()) / times.seconds(everybody)))


def test_an_arm_that_never_gets_there_takes_more_than_the_longest_rung():
    times = Times(measured(never=["none"]), steps_to)
    assert times.steps(()) == times.steps(["in_memory"]) == (5500, False) and times.steps(["strides"])[1]
    assert times.seconds(()) == pytest.approx(5500 * 48e-3)


def test_rows_choose_seeds_in_every_arm():
    found = measured()
    for arm in found["arms"].values():
        low, high = arm["accuracies"]
        arm["accuracies"] = {low: [.8, .85], high: [1., 1.]}
    times = Times(found, steps_to)
    first, second = (times.steps(("strides",), rows=[i])[0] for i in (0, 1))
    assert first == pytest.approx(6000, abs=1) and second == pytest.approx(first - 100 + 200 / 3, abs=1)
    assert times.steps(("strides",), rows=[0, 1, 1, 0])[0] == pytest.approx(times.steps(("strides",))[0])
    assert second < times.steps(("strides",))[0] < first


# The leaderboard

def runs(*seconds, accuracy=.99): return [Run(seed, accuracy, value, .1) for seed, value in enumerate(seconds)]


def test_entries_are_kept_and_sorted_by_the_middle_run(tmp_path):
    board = Leaderboard(tmp_path / "new folder" / "board.jsonl")
    assert board.entries == [] and repr(board) == "No entries yet."
    added = [board.add(name, FASTEST, runs(*seconds), 400) for name, seconds in
             {"middling": (3., 2., 100.), "slow": (9., 9., 9., 9.), "quick": (1., 50., 0.5)}.items()]
    assert [entry["name"] for entry in board.entries] == ["quick", "middling", "slow"]
    assert [entry["seconds"] for entry in board.entries] == [1., 3., 9.]
    assert board.entries == Leaderboard(str(board.path)).entries == sorted(added, key=lambda entry: entry["seconds"])
    lines = board.path.read_text().splitlines()
    assert len(lines) == 3 and all(isinstance(json.loads(line), dict) for line in lines)
    entry = board.entries[1]
    assert entry["accuracy"] == pytest.approx(.99) and entry["runs"] == 3 and entry["n_steps"] == 400
    assert entry["seeds"] == [0, 1, 2] and Recipe(**entry["recipe"]) == FASTEST
    assert torch.__version__ in entry["versions"] and "thread" in entry["machine"]
    said = repr(board).splitlines()
    assert [line.split(":")[0] for line in said] == ["1. quick", "2. middling", "3. slow"] and "99.00%" in said[0]


def test_the_mean_accuracy_is_of_all_runs():
    assert entry_of("a", FASTEST, [Run(0, .98, 1., 0.), Run(1, 1., 1., 0.)], 5)["accuracy"] == pytest.approx(.99)
    said = table_of_runs([], runs(1.5, 2.5))
    for n, seeds in ((1, "seed 0"), (2, "seeds 0 to 1")):
        assert table_of_runs([entry_of("a", FASTEST, runs(*[1.] * n), 5)]).endswith(f"; {seeds}")
    assert "seed   0:    1.50 s" in said and "seed   1:    2.50 s" in said and said.count("99.00%") == 2


GOOD = json.dumps(entry_of("good", FASTEST, runs(2.), 400))
def good_but(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


DAMAGED = {"half a line": GOOD[:100], "no JSON": "Hello.", "a number": "3", "a list": "[1, 2]", "a text": '"seconds"',
           "null": "null", "no seconds": '{"accuracy": 1}', "another's file": '{"seconds": 1, "accuracy": 0.5}',
           "seconds in words": good_but("2.0", '"two"'), "NaN": good_but("2.0", "NaN"),
           "infinite": good_but("2.0", "Infinity"),
           "too large": good_but("2.0", f'1{"0" * 400}'), "no seeds": good_but("[0]", "[]"), "deep": "[" * 100_000}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_named_and_left_alone(line, tmp_path):
    path = tmp_path / "board.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    board, before = Leaderboard(path), path.read_bytes()
    for call in (lambda: board.entries, lambda: repr(board), lambda: board.add("new", FASTEST, runs(1.), 400)):
        with pytest.raises(ValueError, match="Line 3 of .*board.jsonl is no entry of a leaderboard"): call()
    assert path.read_bytes() == before


def test_files_of_others_are_refused(tmp_path):
    picture, folder = tmp_path / "picture.png", tmp_path / "folder"
    picture.write_bytes(bytes(range(256)) * 10)
    folder.mkdir()
    for path, match in ((picture, "picture.png is no entry"), (folder, "folder is no file")):
        with pytest.raises(ValueError, match=match): Leaderboard(path).add("a", FASTEST, runs(1.), 400)
    assert picture.read_bytes() == bytes(range(256)) * 10 and [*folder.iterdir()] == []


@pytest.mark.parametrize("fault", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("method", ["write_bytes", "replace"])
def test_a_fault_while_writing_leaves_the_old_file(fault, method, tmp_path, monkeypatch):
    board = Leaderboard(tmp_path / "board.jsonl")
    board.add("old", FASTEST, runs(2.), 400)
    before, original = board.path.read_bytes(), Path.write_bytes

    def fail(path, data):
        if method == "write_bytes": original(path, data[:50])
        raise fault
    with monkeypatch.context() as patch:
        patch.setattr(Path, method, fail)
        with pytest.raises(type(fault)): board.add("new", FASTEST, runs(1.), 400)
    assert board.path.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["board.jsonl"]
    board.add("new", FASTEST, runs(1.), 400)
    assert len(board.entries) == 2


def test_two_who_take_turns_keep_each_others_entries(tmp_path):
    boards = [Leaderboard(tmp_path / "board.jsonl") for _ in range(2)]
    for i in range(6): boards[i % 2].add(f"run {i}", FASTEST, runs(6. - i), 400)
    assert [entry["name"] for entry in boards[0].entries] == [f"run {i}" for i in reversed(range(6))]


def test_two_who_write_at_once_never_leave_half_a_file(tmp_path):
    path, problems = tmp_path / "board.jsonl", []

    def write(name):
        try:
            for i in range(25): Leaderboard(path).add(name, FASTEST, runs(i + 1.), 400)
        except Exception as error: problems.append(error)
    writers = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
    for writer in writers: writer.start()
    while any(writer.is_alive() for writer in writers): entries_in(path)
    for writer in writers: writer.join()
    assert not problems and 1 <= len(entries_in(path)) <= 50
    assert [file.name for file in tmp_path.iterdir()] == ["board.jsonl"]


@pytest.mark.parametrize("bad, match", [
    ({"name": ""}, "name"), ({"name": None}, "name"), ({"name": " "}, "name"), ({"runs": []}, "runs"),
    ({"runs": [3]}, "runs"), ({"runs": runs(math.nan)}, "finite"), ({"runs": runs(math.inf)}, "finite"),
    ({"runs": runs(1., accuracy=math.nan)}, "finite"), ({"recipe": "fast"}, "recipe"), ({"recipe": None}, "recipe"),
    ({"n_steps": 0}, "n_steps"), ({"n_steps": "many"}, "n_steps")])
def test_what_cannot_be_entered(bad, match, tmp_path):
    board = Leaderboard(tmp_path / "board.jsonl")
    good = {"name": "a", "recipe": FASTEST, "runs": runs(1.), "n_steps": 400}
    with pytest.raises(ValueError, match=match): board.add(**good | bad)
    assert not board.path.exists()


# The command

def command(*arguments, folder):
    "On the digits that come with the course: no data in the folder, and no way out of this machine."
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    line = [sys.executable, "-W", "error::RuntimeWarning", "-m", "course_lib.speedrun", *arguments]
    env = {**os.environ, **nowhere, "COURSE_DATA": str(folder), "PYTHONPATH": path}
    return subprocess.run(line, env=env, cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_command_prints_time_and_accuracy_of_each_run(tmp_path):
    board, how = tmp_path / "board.jsonl", {"runs": 2, "steps": 20, "seed": 7, "threads": 1, "name": "mine"}
    options = [part for name, value in how.items() for part in (f"--{name}", str(value))]
    done = command(*options, "--board", str(board), folder=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("seed")]
    assert [line.split(":")[0].split()[1] for line in lines] == ["7", "8"] and "digits" in done.stdout
    shares = [float(line.split(" s, ")[1].split("%")[0]) for line in lines]
    assert all(50 < share <= 100 for share in shares) and all("warming up took" in line for line in lines)
    [entry] = Leaderboard(board).entries
    assert (entry["name"], entry["seeds"], entry["n_steps"]) == ("mine", [7, 8], 20)
    assert Recipe(**entry["recipe"]) == FASTEST and entry["machine"].endswith("1 thread") and "1. mine: " in done.stdout
    assert 100 * entry["accuracy"] == pytest.approx(sum(shares) / 2, abs=.01)


BAD = [["--runs", "0"], ["--runs", "-3"], ["--runs", "two"], ["--runs", "1.5"], ["--seed", "-1"],
       ["--seed", str(10**20)], ["--steps", "1"], ["--steps", "x"], ["--epochs", "0"], ["--epochs", "nan"],
       ["--epochs", "inf"], ["--epochs", "-1"], ["--threads", "0"], ["--threads", str(10**12)],
       ["--name", ""], ["--board", "."]]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_arguments_of_the_command(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped: read_arguments(arguments)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and f"argument {arguments[0]}: " in said
    assert "must " in said or "is no file" in said


def test_arguments_that_do_not_go_together_or_are_unknown(capsys, tmp_path):
    damaged = tmp_path / "board.jsonl"
    damaged.write_text("Hello.\n")
    for arguments, match in ((["--steps", "5", "--epochs", "1"], "not allowed with"), (["--fast"], "--fast"),
                             (["--board", str(damaged)], "is no entry of a leaderboard")):
        with pytest.raises(SystemExit) as stopped: read_arguments(arguments)
        assert stopped.value.code == 2 and match in capsys.readouterr().err


def test_a_bad_argument_ends_the_process_with_a_sentence(tmp_path):
    done = command("--runs", "none", folder=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert "must be a whole number from 1" in done.stderr and "Traceback" not in done.stderr


# In color

@every_device
@pytest.mark.parametrize("size", [2, 3])
def test_whitened_patches_are_not_correlated_and_vary_alike(size, device):
    images = made_up(400)[0].double().to(device)
    filters, n = whitening_filters(images, size, eps=0.), 3 * size * size
    assert filters.shape == (2 * n, 3, size, size) and torch.equal(filters[n:], -filters[:n])
    answers = F.conv2d(images, filters[:n]).transpose(0, 1).flatten(1).cpu()
    torch.testing.assert_close(answers.cov(correction=0), torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-6)
    norms = filters[:n].flatten(1).norm(dim=1)
    assert (norms.diff() > 0).all()                        # 1 / deviation: the direction that varies most comes first


def test_eps_keeps_directions_that_hardly_vary_small():
    images = made_up(200)[0]
    images[:, 2] = images[:, 1]                            # a channel twice: patches lie in a plane
    filters = whitening_filters(images, eps=1e-2)
    assert filters.isfinite().all() and filters.flatten(1).norm(dim=1).max() <= 1 / math.sqrt(1e-2) + 1e-3


@pytest.mark.parametrize("n_in, n_out", [(3, 3), (3, 8), (5, 3)])
def test_a_start_that_passes_on(n_in, n_out):
    torch.manual_seed(0)
    conv, x, n = same_conv(n_in, n_out), torch.randn(2, n_in, 7, 6), min(n_in, n_out)
    assert torch.equal(conv(x)[:, :n], x[:, :n]) and conv(x).shape == (2, n_out, 7, 6) and conv.bias is None
    if n_out > n_in: assert conv.weight[n_in:].std() > .01      # the rest is drawn
    assert conv.weight.requires_grad and conv.weight.is_leaf


@every_device
@pytest.mark.parametrize("shuffle", [False, True])
def test_flips_alternate_and_the_first_epoch_is_drawn(shuffle, device):
    n = 200
    x, y = torch.arange(n * 6.).view(n, 1, 1, 6).to(device), torch.arange(n, device=device)
    loader = AlternatingFlips(x, y, 32, shuffle=shuffle, seed=3)
    plain, flipped, orders = TensorLoader(x, y, 32, shuffle=shuffle, seed=3), [], []
    for _ in range(5):
        seen = torch.zeros(n, dtype=torch.bool)
        rows = []
        for (xb, yb), (_, expected) in zip(loader, plain, strict=True):
            assert torch.equal(yb, expected)               # the order is the usual one
            for image, row in zip(xb, yb):
                mirrored = not torch.equal(image, x[row])
                assert torch.equal(image, x[row].flip(2) if mirrored else x[row])
                seen[row] = mirrored
                rows.append(row.item())
        flipped.append(seen)
        orders.append(rows)
    assert 60 < flipped[0].sum() < 140 and all(sorted(rows) == [*range(n)] for rows in orders)
    for before, after in itertools.pairwise(flipped): assert torch.equal(after, ~before)
    other = AlternatingFlips(x, y, n, seed=4)
    assert not torch.equal(next(iter(other))[0], next(iter(AlternatingFlips(x, y, n, seed=3)))[0])


def test_flips_leave_the_data_alone_take_a_transform_and_drop_the_last():
    x, y = torch.randn(10, 3, 4, 4), torch.arange(10)
    before = x.clone()
    loader = AlternatingFlips(x, y, 4, drop_last=True, transform=lambda xb, yb: (xb.zero_(), yb + 1))
    batches = [*loader]
    assert len(batches) == len(loader) == 2 and all((xb == 0).all() for xb, _ in batches) and torch.equal(x, before)
    assert torch.cat([yb for _, yb in batches]).tolist() == [*range(1, 9)]


def test_looks_are_averaged():
    x = torch.randn(4, 3, 6, 6)
    seen = []

    class Watching(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :5]
    answers = mirrored_answers(Watching().train(), x)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    looks = [x, padded[..., :6, :6], padded[..., 2:, 2:]]
    looks = [view for look in looks for view in (look, look.flip(3))]
    weights = [.25, .25, .125, .125, .125, .125]
    assert len(seen) == 6 and all(any(torch.equal(a, b) for b in seen) for a in looks)
    torch.testing.assert_close(answers, sum(w * look.flatten(1)[:, :5] for w, look in zip(weights, looks)))
    even = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    torch.testing.assert_close(mirrored_answers(even, torch.ones(2, 3, 6, 6)), even(torch.ones(2, 3, 6, 6)))
    assert not mirrored_answers(even, x).requires_grad


@every_device
def test_the_net_in_color(device):
    images = made_up(64)[0].to(device)
    net = cifar_net(whitening_filters(images), widths=(8, 12), n_classes=10).to(device)
    assert net(images).shape == (64, 10)
    convs = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    assert torch.equal(convs[0].weight, whitening_filters(images)) and not convs[0].weight.requires_grad
    norms = [layer for layer in net if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 4 and all(norm.bias.requires_grad and not norm.weight.requires_grad for norm in norms)
    shapes = [(8, 24, 3, 3), (8, 8, 3, 3), (12, 8, 3, 3), (12, 12, 3, 3)]
    assert [tuple(conv.weight.shape) for conv in convs[1:]] == shapes
    x = torch.randn(5, 12)
    torch.manual_seed(0)
    layer = ScaledLinear(12, 4)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias) / 9)


def test_biases_of_batchnorm_get_64_times_the_rate_and_everything_is_in_one_group():
    images, classes = made_up(64)
    learn = cifar_learner(cifar_net(whitening_filters(images), widths=(8,)), TensorLoader(images, classes, 32), lr=.01)
    biases, rest = biases_apart(learn.model)
    norms = [layer for layer in learn.model if isinstance(layer, nn.BatchNorm2d)]
    assert {*map(id, biases)} == {id(norm.bias) for norm in norms}
    ids = [id(p) for p in (*biases, *rest)]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in learn.model.parameters()}
    learn.fit(1)
    by_param = {id(p): group["lr"] for group in learn.opt.param_groups for p in group["params"]}
    assert all(by_param[id(p)] == pytest.approx(.64) for p in biases)
    assert all(by_param[id(p)] == pytest.approx(.01) for p in rest if p.requires_grad)


@every_device
def test_a_small_net_in_color_learns(device):
    train, test = (SimpleNamespace(x=x.to(device), y=y.to(device)) for x, y in (made_up(400), made_up(200, seed=1)))
    torch.manual_seed(1)
    net = cifar_net(whitening_filters(train.x[:100]), widths=(12, 16)).to(device)
    before = accuracy_on(net, test)
    filters = net[0].weight.clone()
    cifar_learner(net.train(), AlternatingFlips(train.x, train.y, 50, shuffle=True), lr=.3).fit(4)
    after = (mirrored_answers(net, test.x).argmax(1) == test.y).float().mean()
    assert before < .3 and after > .6 and torch.equal(net[0].weight, filters)


def test_pickles():
    times = Times(measured(), steps_to)
    for value in (FASTEST, Run(1, .5, 2., 3.)): assert pickle.loads(pickle.dumps(value)) == value
    assert pickle.loads(pickle.dumps(times)).halvings(times.players) == times.halvings(times.players)
    net = make_net(FASTEST).eval()
    assert torch.equal(pickle.loads(pickle.dumps(net))(PART.x), net(PART.x))
    images, classes = made_up(40)
    flips = AlternatingFlips(images, classes, 20)
    next(iter(flips))
    copy = pickle.loads(pickle.dumps(flips))
    for (a, _), (b, _) in zip(flips, copy, strict=True): assert torch.equal(a, b)
    net = cifar_net(whitening_filters(images), widths=(8,)).eval()
    assert torch.equal(pickle.loads(pickle.dumps(net))(images), net(images))
    board = Leaderboard("somewhere.jsonl")
    assert pickle.loads(pickle.dumps(board)).path == board.path
    loader = Batches(PART.x, PART.y, torch.arange(20), 8)
    assert torch.equal(next(iter(pickle.loads(pickle.dumps(loader))))[0], PART.x[:8])
