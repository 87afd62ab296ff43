"""Bad arguments, generated over the whole public surface: each call gives a clear error of ours, never a leak.

`CALLS` has a good call for each public name that takes arguments, and what kind each of its arguments is of. One at a
time is replaced by something that its kind does not allow. What comes out must come from a `raise` of this course, or
of torch's Python, and its words must name the argument or show the value.
"""
import inspect
import linecache
import math
import re
import traceback
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import nn

import course_lib
from course_lib import (
    accuracy, ActivationStats, Adam, AdamW, adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation,
    adjust_sharpness, affine, Autocast, autocontrast, AverageGradients, backtranslate, balanced, BatchNorm1d,
    BatchNorm2d, BatchNorm3d, bootstrap, CenterCrop, check_setup, checkpointed, clip_adaptive, clip_by_history,
    clip_by_norm, clip_by_value, ColorJitter, combine, const, cos, course_data, crop, CSVLogger, CutMix, Cutout,
    DataError, DataLoaders, decay_weights_only, delete, denormalise, dequantize, digits, DiLoCo, distributed,
    DownloadError, draw_few, drop_path_rates, Dropout, DropPath, EarlyStopping, equalize, erase, exp, explore,
    fake_quantize, features, few_shot, flatten_parameters, Flip, freeze, freeze_to, gaussian_blur, GaussianBlur,
    glosses, glyph_backbone, GlyphLoader, GradientAccumulation, GradientClip, gray_to_rgb, Grayscale, grayscale,
    GroupNorm, hflip, imagenet_resnet, imagenette, insert, invert, LAMB, launch, layer_groups, LayerNorm, Leaderboard,
    Learner, lin, Lion, LiveFigure, load_sharded, load_weights, LocalSGD, LossScaler, LRFind, LRScheduler,
    magnitude_mask, make_fast, meta_pseudo_labels, MixedPrecision, MixUp, mnist, Muon, nf4, noisy_student, one_cycle,
    Optimizer, ParamScheduler, PCAColor, Perspective, perspective, pets, poly, posterize, PowerSGD, Progress, prune,
    Pruner, pseudo_label, quantize, QuantLinear, RandAugment, RandomAffine, RandomCrop, RandomResizedCrop,
    recipe_with, Recorder, replace, replace_head, RMSProp, RNNRegularizer, Rotate, rotate, save_sharded, SaveBest,
    saved_bytes, SGD, sgd_step, SGDW, shapley, sharded_sweep, ShardedLoader, shear, show, show_images,
    shuffle_sentences, size_bytes, small_resnet, smooth_labels, soft_cross_entropy, solarize, steps_to, swap, sweep,
    synonyms, TensorLoader, train_once, translate, unfreeze, warm_restarts, words_of)

LIBRARY = Path(course_lib.__file__).parent
NAN, INF = math.nan, math.inf


class Strange:
    "Something that is nothing else."
    def __repr__(self): return "<something strange>"


NO_NUMBERS = ["3", None, [1, 2], {"a": 1}, Strange(), 1j]
ONES = torch.ones(2, 4)
NO_FUNCTIONS = [3, "f", None, [print], Strange()]
BAD = {
    "count": [0, -1, 2.5, NAN, INF, *NO_NUMBERS],              # a whole number from 1
    "natural": [-1, 2.5, NAN, INF, *NO_NUMBERS],               # a whole number from 0
    "whole": [2.5, NAN, INF, *NO_NUMBERS],
    "bits": [1, 0, 17, 8., True, NAN, *NO_NUMBERS],             # a whole number from 2, to 16 at most
    "above 0": [0, -1.5, NAN, INF, *NO_NUMBERS],
    "at least 0": [-1e-3, NAN, INF, *NO_NUMBERS],
    "finite": [NAN, INF, *NO_NUMBERS],
    "below 1": [-.1, 1, 1.5, NAN, INF, *NO_NUMBERS],           # 0 ≤ x < 1
    "between 0 and 1": [0, 1, -.1, 1.1, NAN, INF, *NO_NUMBERS],
    "share": [-.1, 1.1, NAN, INF, *NO_NUMBERS],                # 0 ≤ x ≤ 1
    "above 1": [1, .5, NAN, *NO_NUMBERS],
    "betas": [.9, (.9,), (.9, .99, .999), (1., .9), (.9, -1), ("a", "b"), (NAN, .9), None, Strange()],
    "tensor": [3, "x", None, [[1.]], Strange()],
    "images": [3, "x", None, [[1.]], Strange(), torch.zeros(2), torch.zeros(2, 28, 28),
               torch.zeros(2, 1, 8, 8).long()],
    "gray images": [3, "x", None, [[1.]], Strange(), torch.zeros(2), torch.zeros(2, 28, 28), torch.zeros(2, 3, 8, 8)],
    "params": [3, "x", None, [], [3], ["weight"], torch.zeros(2), [torch.zeros(2).long()], Strange()],
    "with gradients": [3, "x", None, [3], ["weight"], [torch.zeros(2).long()], nn.Linear(2, 2), Strange()],
    "module": [3, "x", None, F.relu, nn.Linear, [nn.Linear(2, 2)], Strange()],
    "function": NO_FUNCTIONS,
    "functions": [3, "f", [3], ["f"], Strange()],
    "transform": [3, "f", [3], ["f"], Strange()],              # a function or a list of them
    "words": [3, "a text", None, [], [1], Strange()],
    "odd": [0, 2, -1, 2.5, NAN, *NO_NUMBERS],
    "magnitude": [-1, 31, NAN, INF, *NO_NUMBERS],
    "half": [-.6, .6, NAN, INF, *NO_NUMBERS],
    "kept bits": [-1, 9, 2.5, NAN, INF, *NO_NUMBERS],
    "angle": [-90, 90, NAN, INF, *NO_NUMBERS],
    "callbacks": [3, "f", [3], ["f"], [Recorder], Strange()],
    "dls": [3, "x", None, [1, 2], Strange()],
    "loader": [3, "x", None, [], [1], Strange()],
    "schedule": [3, "x", None, {}, Strange()],
    "grid": [3, "x", None, {}, {"lr": []}, {"lr": "x"}, {"lr": [NAN]}, {"lr": [[.1]]}, {"no_such": [.1]}, Strange()],
    "choice": ["no such", 3, None, Strange()],
    "past": [3, "x", None, (), torch.zeros(2), Strange()],     # a list
    "text": [3, None, [], Strange()],
    "path": [3, None, [], Strange()],
    "control": [None, Strange(), 1j],
    "truth": [0, 1, 2.5, "yes", None, [True], Strange()],       # True or False
    "pair": [3, "x", None, [], ONES, (ONES,), (ONES, ONES), (ONES, [0]), Strange()],     # inputs and their classes
    "probabilities": [3, "x", None, [[1.]], Strange(), ONES, torch.tensor([[-.5, 1.5]]), torch.eye(3).long(),
                      torch.ones(3), torch.full((2, 2), NAN)],
    "momentum": [-.1, 1.1, NAN, INF, "3", [1, 2], {"a": 1}, Strange(), 1j],   # of a running average; None is one
    "range": [NAN, INF, "3", None, [1, 2, 3], {"a": 1}, Strange(), 1j],     # a number or a pair of them
    "range above 0": [0, -1.5, NAN, INF, "3", None, [1, 2, 3], {"a": 1}, Strange(), 1j, (-1, 1)],
    "names": [3, "strides", None, [[1]], ["a", "a"], Strange()],
    "known names": [3, "strides", None, ["no such"], ["strides", "strides"], Strange()],
    "ladder": [3, "x", None, [], [2, 1], ["a", "b"], [NAN, 2], Strange()],
    "recipe": [3, "x", None, ["strides"], Strange()],
    "three betas": [.9, (.9, .9), (1., .9, .9), (.9, -1, .9), ("a", "b", "c"), (NAN, .9, .9), Strange()],
}
NUMBERS = {  # more of them, drawn by hypothesis
    "count": st.integers(max_value=0) | st.floats().filter(lambda x: x != round_or_nan(x)),
    "natural": st.integers(max_value=-1), "whole": st.floats().filter(lambda x: x != round_or_nan(x)),
    "above 0": st.floats(max_value=0.), "at least 0": st.floats(max_value=-1e-300),
    "below 1": st.floats(max_value=-1e-300) | st.floats(min_value=1.),
    "share": st.floats(max_value=-1e-300) | st.floats(min_value=1.001), "above 1": st.floats(max_value=1.),
}


def round_or_nan(x): return round(x) if math.isfinite(x) else NAN


def bad(kind): return st.sampled_from(BAD[kind]) | NUMBERS.get(kind, st.nothing())


def data(n=24):
    "Three classes of images 28 × 28, and their targets."
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, 28, 28, generator=generator), torch.arange(n) % 3


def loaders(): return DataLoaders(TensorLoader(*data(), 8, shuffle=True), TensorLoader(*data(), 8))


def judged_loaders(): return DataLoaders(*(TensorLoader(*data(), 8) for _ in range(3)))


def net(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.ReLU(), nn.Linear(4, 3))


def learner(**options):
    return Learner(net(), loaders(), F.cross_entropy, SGD, **{"lr": .01, **options})


def weights(): return [nn.Parameter(torch.ones(3, 2))]


def method(name, **options):
    "A call of a learner's method: the learner is new each time."
    def call(*args, **kwargs): return getattr(learner(**options), name)(*args, **kwargs)
    call.of = getattr(Learner, name)
    return call


def fit_with(make):
    "A callback made from the arguments, and a fit with it: bad arguments must be seen when it is made."
    def call(**kwargs): learner().fit(1, cbs=[make(**kwargs)])
    call.of = make
    return call


def progress_of(make):
    "A schedule made from the arguments, asked in the middle."
    def call(*args, **kwargs): return make(*args, **kwargs)(.5)
    call.of = make
    return call


def applied(make, *inputs):
    def call(**kwargs): return make(**kwargs)(*inputs)
    call.of = make
    return call


def entered(make):
    def call(**kwargs):
        with make(**kwargs): pass
    call.of = make
    return call


def saved_and_loaded(learn, folder):
    save_sharded(learner(), "parts")
    load_sharded(learn, folder)


def with_figure(make):
    def call(**kwargs): return make(Figure(), **kwargs)
    call.of = make
    return call


def embedded_data(**kwargs): return course_data(**kwargs)


embedded_data.of = mnist  # whose arguments it passes on

# name -> (a function to call, good arguments, kind of each argument that is tried)
OPT = {"lr": "at least 0", "weight_decay": "at least 0", "params": "params"}
DATA = {"batch_size": "count", "n_train": "count", "n_valid": "count", "seed": "whole", "transform": "transform"}
X, Y = data()
X01 = X.sigmoid()
RGB, CORNERS = X01.expand(-1, 3, -1, -1), torch.tensor([[0., 0.], [28., 0.], [28., 28.], [0., 28.]])
CALLS = {
    "quantize": (quantize, {"x": X}, {"x": "tensor", "bits": "bits"}),
    "fake_quantize": (fake_quantize, {"x": X}, {"x": "tensor", "bits": "bits"}),
    "dequantize": (dequantize, {"quantized": quantize(X)}, {"quantized": "tensor"}),
    "nf4": (nf4, {"x": X}, {"x": "tensor", "block": "count"}),
    "clip_by_value": (clip_by_value, {"params": weights(), "c": 1.}, {"params": "with gradients", "c": "above 0"}),
    "clip_by_norm": (clip_by_norm, {"params": weights(), "c": 1.}, {"params": "with gradients", "c": "above 0"}),
    "clip_adaptive": (clip_adaptive, {"params": weights()},
                      {"params": "with gradients", "clip": "above 0", "eps": "above 0"}),
    "clip_by_history": (clip_by_history, {"params": weights(), "past": []},
                        {"params": "with gradients", "past": "past", "k": "at least 0", "window": "count"}),
    "LossScaler": (LossScaler, {}, {"init": "above 0", "growth": "above 1", "backoff": "between 0 and 1",
                                    "interval": "count"}),
    "LossScaler.scale": (LossScaler().scale, {"loss": torch.ones(())}, {"loss": "tensor"}),
    "LossScaler.step": (lambda opt: LossScaler().step(opt), {"opt": SGD(weights())}, {"opt": "loader"}),
    "LossScaler.unscale": (lambda opt: LossScaler().unscale(opt), {"opt": SGD(weights())}, {"opt": "loader"}),
    "LossScaler.load_state_dict": (lambda state: LossScaler().load_state_dict(state),
                                   {"state": LossScaler().state_dict()}, {"state": "schedule"}),
    "MixedPrecision": (fit_with(MixedPrecision), {}, {"dtype": "choice", "scaler": "choice"}),
    "checkpointed": (checkpointed, {"module": net()}, {"module": "module"}),
    "saved_bytes": (lambda function: saved_bytes(function, X), {"function": net()}, {"function": "function"}),
    "magnitude_mask": (magnitude_mask, {"tensors": [X], "amount": .5}, {"tensors": "params", "amount": "share"}),
    "prune": (prune, {"model": net(), "amount": .5}, {"model": "module", "amount": "share"}),
    "Pruner": (fit_with(Pruner), {"amount": .5}, {"amount": "share", "ramp": "share", "every": "count"}),
    "QuantLinear": (QuantLinear, {"linear": nn.Linear(2, 3)}, {"linear": "module", "bits": "bits"}),
    "size_bytes": (size_bytes, {"model": net()}, {"model": "module"}),
    "pseudo_label": (pseudo_label, {"model": net(), "x": X},
                     {"model": "module", "x": "tensor", "threshold": "share", "soft": "truth", "batch_size": "count"}),
    "balanced": (balanced, {"probs": X.flatten(1).softmax(1)}, {"probs": "probabilities", "per_class": "count"}),
    "noisy_student": (noisy_student, {"teacher": net(), "new_student": net, "labelled": (X, Y), "unlabelled": X,
                                      "fit": lambda model, batches: None},
                      {"teacher": "module", "new_student": "function", "labelled": "pair", "unlabelled": "tensor",
                       "fit": "function", "n_rounds": "count", "noise": "transform", "threshold": "share",
                       "soft": "truth", "balance": "truth", "batch_size": "count", "seed": "natural"}),
    "meta_pseudo_labels": (meta_pseudo_labels,
                           {"teacher": net(), "student": net(), "labelled": [(X, Y)], "unlabelled": [(X, Y)],
                            "teacher_opt": SGD, "student_opt": SGD, "n_steps": 1},
                           {"teacher": "module", "student": "module", "labelled": "loader", "unlabelled": "loader",
                            "teacher_opt": "function", "student_opt": "function", "n_steps": "count",
                            "feedback": "finite", "noise": "transform"}),
    "AverageGradients": (fit_with(AverageGradients), {}, {"dtype": "choice"}),
    "LocalSGD": (fit_with(LocalSGD), {"every": 2}, {"every": "count"}),
    "DiLoCo": (fit_with(DiLoCo), {"every": 2}, {"every": "count", "lr": "above 0", "momentum": "below 1"}),
    "PowerSGD": (fit_with(PowerSGD), {}, {"rank": "count"}),
    "ShardedLoader": (lambda **options: len(list(ShardedLoader(**options))),
                      {"loader": TensorLoader(X, Y, 8), "rank": 0, "size": 2},
                      {"loader": "loader", "rank": "natural", "size": "count"}),
    "distributed": (entered(distributed), {}, {"timeout": "above 0"}),
    "launch": (launch, {"script": Path(__file__).with_name("tiny.py"), "n": 1},
               {"script": "path", "n": "count", "timeout": "above 0", "max_restarts": "natural"}),
    "save_sharded": (save_sharded, {"learn": learner(), "folder": "parts"}, {"learn": "module", "folder": "path"}),
    "load_sharded": (saved_and_loaded, {"learn": learner(), "folder": "parts"}, {"learn": "module", "folder": "path"}),
    "sharded_sweep": (sharded_sweep, {"model": net(), "loss_func": F.cross_entropy, "opt_func": SGD,
                                      "dl": TensorLoader(X, Y, 8), "n_steps": 1, "grid": {"lr": [.1]}},
                      {"model": "module", "loss_func": "function", "opt_func": "function", "dl": "loader",
                       "n_steps": "count", "grid": "grid", "seed": "whole", "max_bytes": "above 0"}),
    "SGD": (SGD, {"params": weights()}, {**OPT, "momentum": "below 1"}),
    "SGDW": (SGDW, {"params": weights()}, {**OPT, "momentum": "below 1"}),
    "Dropout": (Dropout, {"p": .5}, {"p": "share"}),
    "DropPath": (DropPath, {"p": .5}, {"p": "share"}),
    "drop_path_rates": (drop_path_rates, {"p": .5, "n": 3}, {"p": "share", "n": "count"}),
    "smooth_labels": (smooth_labels, {"targets": Y, "n_classes": 3},
                      {"targets": "tensor", "n_classes": "count", "a": "share"}),
    "soft_cross_entropy": (soft_cross_entropy, {"logits": torch.zeros(24, 3), "targets": Y},
                           {"logits": "tensor", "targets": "tensor"}),
    "RMSProp": (RMSProp, {"params": weights()}, {**OPT, "alpha": "below 1", "eps": "at least 0"}),
    "Adam": (Adam, {"params": weights()}, {**OPT, "betas": "betas", "eps": "at least 0"}),
    "AdamW": (AdamW, {"params": weights()}, {**OPT, "betas": "betas", "eps": "at least 0"}),
    "LAMB": (LAMB, {"params": weights()}, {**OPT, "betas": "betas", "eps": "at least 0"}),
    "Lion": (Lion, {"params": weights()}, {**OPT, "betas": "betas"}),
    "Muon": (Muon, {"params": weights()}, {**OPT, "momentum": "below 1"}),
    "Optimizer": (Optimizer, {"params": weights(), "steppers": [sgd_step], "lr": .1},
                  {"params": "params", "steppers": "functions", "lr": "at least 0"}),
    "flatten_parameters": (flatten_parameters, {"params": weights()}, {"params": "params"}),
    "decay_weights_only": (decay_weights_only, {"opt_func": SGD}, {"opt_func": "function"}),
    "TensorLoader": (TensorLoader, {"x": X, "y": Y, "batch_size": 8},
                     {"x": "tensor", "y": "tensor", "batch_size": "count", "seed": "whole", "transform": "transform"}),
    "RandomAffine": (RandomAffine, {"degrees": 10},
                     {"degrees": "range", "translate": "range", "scale": "range above 0", "shear": "range",
                      "fill": "finite"}),
    "affine": (affine, {"x": X, "angle": torch.zeros(24), "translate": torch.zeros(2, 24), "scale": torch.ones(24),
                        "shear": torch.zeros(2, 24)},
               {"x": "images", "angle": "tensor", "translate": "tensor", "scale": "tensor", "shear": "tensor"}),
    "digits": (digits, {"device": "cpu"}, DATA),
    "course_data": (embedded_data, {"root": "no-such-folder", "download": False}, DATA),
    "Learner": (Learner, {"model": net(), "dls": loaders(), "loss_func": F.cross_entropy, "lr": .1},
                {"model": "module", "dls": "dls", "loss_func": "function", "opt_func": "function", "lr": "at least 0",
                 "cbs": "callbacks", "metrics": "functions", "splitter": "function"}),
    "Learner.fit": (method("fit"), {"n_epochs": 1}, {"n_epochs": "count", "lr": "at least 0", "cbs": "callbacks"}),
    "Learner.validate": (method("validate"), {}, {"dl": "loader"}),
    "Learner.freeze_to": (method("freeze_to"), {"n": -1}, {"n": "whole"}),
    "Learner.save": (method("save"), {"path": "no-such-folder"}, {"path": "path"}),
    "Learner.load": (method("load"), {"path": "no-such-folder"}, {"path": "path"}),
    "lr_find": (method("lr_find"), {"num_it": 5},
                {"start_lr": "above 0", "end_lr": "above 0", "num_it": "count", "smooth": "below 1",
                 "stop_factor": "above 1", "on_step": "function"}),
    "fit_one_cycle": (method("fit_one_cycle"), {"n_epochs": 1, "max_lr": .1},
                      {"n_epochs": "count", "max_lr": "at least 0", "div": "above 0", "div_final": "above 0",
                       "pct_start": "share", "betas": "three betas", "cbs": "callbacks"}),
    "fine_tune": (method("fine_tune"), {"n_epochs": 1, "base_lr": .1},
                  {"n_epochs": "count", "base_lr": "at least 0", "freeze_epochs": "natural", "lr_mult": "above 0",
                   "cbs": "callbacks"}),
    "tta": (method("tta"), {"transform": lambda xb, yb: (xb, yb)},
            {"dl": "loader", "transform": "function", "n": "count"}),
    "lin": (progress_of(lin), {"start": 0, "end": 1}, {"start": "finite", "end": "finite"}),
    "cos": (progress_of(cos), {"start": 0, "end": 1}, {"start": "finite", "end": "finite"}),
    "exp": (progress_of(exp), {"start": 1, "end": 2}, {"start": "above 0", "end": "above 0"}),
    "poly": (progress_of(poly), {"start": 0, "end": 1, "power": 2},
             {"start": "finite", "end": "finite", "power": "above 0"}),
    "const": (progress_of(const), {"value": 1}, {"value": "finite"}),
    "combine": (progress_of(combine), {"shares": [.5, .5], "schedules": [const(1), const(2)]},
                {"shares": "loader", "schedules": "functions"}),
    "one_cycle": (progress_of(one_cycle), {"peak": .1},
                  {"peak": "at least 0", "div": "above 0", "div_final": "above 0", "pct_start": "share"}),
    "warm_restarts": (progress_of(warm_restarts), {"high": 1, "low": 0, "n_cycles": 2},
                      {"high": "finite", "low": "finite", "n_cycles": "count", "mult": "above 0"}),
    "ParamScheduler": (fit_with(ParamScheduler), {"schedules": {"lr": lin(0, 1)}}, {"schedules": "schedule"}),
    "LRScheduler": (fit_with(LRScheduler), {"make_scheduler": lambda opt: torch.optim.lr_scheduler.StepLR(opt, 1)},
                    {"make_scheduler": "function", "call_on": "choice", "monitor": "text"}),
    "LRFind": (LRFind, {"lrs": [.1, .2, .3], "losses": [3., 2., 1.]},
               {"lrs": "tensor", "losses": "tensor", "smooth": "below 1"}),
    "EarlyStopping": (fit_with(EarlyStopping), {}, {"monitor": "text", "patience": "count", "mode": "choice",
                                                    "min_delta": "at least 0"}),
    "SaveBest": (fit_with(SaveBest), {"path": "no-such-folder"},
                 {"path": "path", "monitor": "text", "mode": "choice", "min_delta": "at least 0"}),
    "CSVLogger": (fit_with(CSVLogger), {"path": "no-such-folder"}, {"path": "path"}),
    "GradientAccumulation": (fit_with(GradientAccumulation), {"n_batches": 2}, {"n_batches": "count"}),
    "GradientClip": (fit_with(GradientClip), {"max_norm": 1.}, {"max_norm": "above 0"}),
    "GradientClip, by value": (fit_with(GradientClip), {"max_value": 1.}, {"max_value": "above 0"}),
    "ActivationStats": (fit_with(ActivationStats), {}, {"layers": "function", "near_zero": "at least 0",
                                                        "n_bins": "count", "every": "count", "span": "betas"}),
    "Progress": (fit_with(Progress), {}, {"refresh_s": "at least 0"}),
    "RNNRegularizer": (RNNRegularizer, {}, {"alpha": "at least 0", "beta": "at least 0"}),
    "Autocast": (fit_with(Autocast), {}, {"dtype": "choice"}),
    "sweep": (sweep, {"model": net(), "loss_func": F.cross_entropy, "opt_func": SGD, "dl": [(X, Y)], "n_steps": 2,
                      "grid": {"lr": [.1, .2]}},
              {"model": "module", "loss_func": "function", "opt_func": "function", "dl": "loader", "n_steps": "count",
               "grid": "grid", "seed": "whole", "on_step": "function", "max_bytes": "count"}),
    "BatchNorm1d": (applied(BatchNorm1d, torch.randn(4, 3)), {"num_features": 3},
                    {"num_features": "count", "eps": "above 0", "momentum": "momentum"}),
    "BatchNorm2d": (applied(BatchNorm2d, torch.randn(4, 3, 2, 2)), {"num_features": 3},
                    {"num_features": "count", "eps": "above 0", "momentum": "momentum"}),
    "BatchNorm3d": (applied(BatchNorm3d, torch.randn(4, 3, 2, 2, 2)), {"num_features": 3},
                    {"num_features": "count", "eps": "above 0", "momentum": "momentum"}),
    "LayerNorm": (applied(LayerNorm, torch.randn(4, 3)), {"normalized_shape": 3},
                  {"normalized_shape": "count", "eps": "at least 0"}),
    "GroupNorm": (applied(GroupNorm, torch.randn(4, 6)), {"num_groups": 2, "num_channels": 6},
                  {"num_groups": "count", "num_channels": "count", "eps": "at least 0"}),
    "replace_head": (replace_head, {"model": net(), "n_classes": 3}, {"model": "module", "n_classes": "count"}),
    "layer_groups": (layer_groups, {"model": net()}, {"model": "module"}),
    "freeze": (freeze, {"model": net()}, {"model": "module"}),
    "unfreeze": (unfreeze, {"model": net()}, {"model": "module"}),
    "freeze_to": (freeze_to, {"model": net(), "n": -1}, {"model": "module", "n": "whole"}),
    "features": (features, {"model": net(), "x": X}, {"model": "module", "x": "tensor", "batch_size": "count"}),
    "gray_to_rgb": (gray_to_rgb, {"x": X}, {"x": "gray images"}),
    "load_weights": (load_weights, {"model": net(), "weights": net().state_dict(), "source": "there"},
                     {"model": "module", "weights": "dls"}),
    "small_resnet": (small_resnet, {"n_classes": 3}, {"n_classes": "count"}),
    "glyph_backbone": (glyph_backbone, {"device": "cpu"}, {"path": "path"}),
    "imagenet_resnet": (imagenet_resnet, {"name": "resnet18", "download": False}, {"name": "choice"}),
    "GlyphLoader": (GlyphLoader, {"device": "cpu"},
                    {"n_batches": "count", "batch_size": "count", "seed": "whole", "stroke": "at least 0",
                     "affine": "at least 0", "elastic": "at least 0"}),
    "draw_few": (draw_few, {"dls": loaders(), "n_per_class": 1},
                 {"dls": "dls", "n_per_class": "count", "draw": "whole", "n_rest": "count"}),
    "few_shot": (few_shot, {"few": (X, Y), "rest": (X, Y), "way": "head", "n_steps": 1},
                 {"few": "loader", "rest": "loader", "way": "choice", "lr": "at least 0", "n_steps": "count",
                  "seed": "whole", "backbone": "module"}),
    "pets": (pets, {"root": "no-such-folder", "download": False},
             {"size": "count", "large": "count", "batch_size": "count", "n_valid": "count"}),
    "imagenette": (imagenette, {"root": "no-such-folder", "download": False},
                   {"size": "count", "large": "count", "batch_size": "count", "n_valid": "count"}),
    "RandomResizedCrop": (applied(RandomResizedCrop, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), Y[:2]), {"size": 4},
                          {"size": "count", "scale": "betas", "ratio": "schedule"}),
    "CenterCrop": (applied(CenterCrop, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), Y[:2]), {"size": 4},
                   {"size": "count", "share": "above 0"}),
    "denormalise": (denormalise, {"x": torch.zeros(2, 3, 4, 4)}, {"x": "images"}),
    "make_fast": (make_fast, {"model": net(), "xb": X, "yb": Y}, {"model": "module", "xb": "tensor", "yb": "tensor"}),
    "accuracy": (accuracy, {"pred": torch.randn(4, 3), "targets": Y[:4]}, {"pred": "tensor", "targets": "tensor"}),
    "check_setup": (check_setup, {"device": "cpu", "dls": loaders()}, {"device": "choice", "dls": "dls"}),
    "show": (with_figure(show), {"alt": "a picture", "caption": "a caption"}, {"alt": "text", "caption": "text"}),
    "show_images": (show_images, {"images": X[:4], "alt": "four pictures", "caption": "a caption"},
                    {"images": "tensor", "ncols": "count", "alt": "text", "caption": "text"}),
    "Flip": (applied(Flip, X01, Y), {}, {"p": "share"}),
    "RandomCrop": (applied(RandomCrop, X01, Y), {"padding": 2}, {"padding": "natural", "fill": "finite"}),
    "Rotate": (applied(Rotate, X01, Y), {"degrees": 10}, {"degrees": "range", "fill": "finite"}),
    "ColorJitter": (applied(ColorJitter, X01, Y), {},
                    {"brightness": "range", "contrast": "range", "saturation": "range", "hue": "range"}),
    "Perspective": (applied(Perspective, X01, Y), {}, {"scale": "share", "fill": "finite"}),
    "Grayscale": (applied(Grayscale, X01, Y), {}, {"p": "share"}),
    "GaussianBlur": (applied(GaussianBlur, X01, Y), {}, {"kernel_size": "odd", "sigma": "range"}),
    "PCAColor": (applied(PCAColor, RGB, Y), {"images": RGB}, {"images": "images", "std": "at least 0"}),
    "Cutout": (applied(Cutout, X01, Y), {"size": 4}, {"size": "count", "n_holes": "count", "fill": "finite"}),
    "MixUp": (applied(MixUp, X01, Y), {"n_classes": 3}, {"n_classes": "count", "alpha": "above 0"}),
    "CutMix": (applied(CutMix, X01, Y), {"n_classes": 3}, {"n_classes": "count", "alpha": "above 0"}),
    "RandAugment": (applied(RandAugment, X01, Y), {}, {"n": "natural", "magnitude": "magnitude"}),
    **{f.__name__: (f, {"x": X01}, {"x": "images"}) for f in (autocontrast, equalize, grayscale, invert, hflip)},
    **{f.__name__: (f, {"x": X01, "factor": .5}, {"x": "images", "factor": "at least 0"})
       for f in (adjust_brightness, adjust_contrast, adjust_saturation, adjust_sharpness)},
    "adjust_hue": (adjust_hue, {"x": X01, "factor": .1}, {"x": "images", "factor": "half"}),
    "gaussian_blur": (gaussian_blur, {"x": X01, "kernel_size": 3, "sigma": 1.},
                      {"x": "images", "kernel_size": "odd", "sigma": "above 0"}),
    "posterize": (posterize, {"x": X01, "bits": 4}, {"x": "images", "bits": "kept bits"}),
    "solarize": (solarize, {"x": X01, "threshold": .5}, {"x": "images", "threshold": "share"}),
    "crop": (crop, {"x": X01, "top": 0, "left": 0, "height": 4, "width": 4},
             {"x": "images", "top": "natural", "left": "natural", "height": "count", "width": "count"}),
    "erase": (erase, {"x": X01, "top": 0, "left": 0, "height": 4, "width": 4},
              {"x": "images", "top": "whole", "left": "whole", "height": "natural", "width": "natural",
               "value": "finite"}),
    "rotate": (rotate, {"x": X01, "degrees": 10}, {"x": "images", "degrees": "finite", "fill": "finite"}),
    "translate": (translate, {"x": X01}, {"x": "images", "right": "finite", "down": "finite", "fill": "finite"}),
    "shear": (shear, {"x": X01}, {"x": "images", "degrees_x": "angle", "degrees_y": "angle", "fill": "finite"}),
    "perspective": (perspective, {"x": X01, "startpoints": CORNERS, "endpoints": CORNERS},
                    {"x": "images", "fill": "finite"}),
    "words_of": (words_of, {"text": "a large dog"}, {"text": "text"}),
    "replace": (replace, {"words": ["a", "dog"], "n": 1}, {"words": "words", "n": "natural", "generator": "text"}),
    "insert": (insert, {"words": ["a", "dog"], "n": 1}, {"words": "words", "n": "natural", "generator": "text"}),
    "swap": (swap, {"words": ["a", "dog"], "n": 1}, {"words": "words", "n": "natural", "generator": "text"}),
    "delete": (delete, {"words": ["a", "dog"], "p": .5}, {"words": "words", "p": "share", "generator": "text"}),
    "shuffle_sentences": (shuffle_sentences, {"text": "A. B."}, {"text": "text", "generator": "text"}),
    "backtranslate": (backtranslate, {"text": "a", "translate": str, "translate_back": str},
                      {"text": "text", "translate": "function", "translate_back": "function"}),
    "synonyms": (synonyms, {"word": "large"}, {"word": "text", "part": "choice"}),
    "glosses": (glosses, {}, {"n": "count"}),
    "recipe_with": (recipe_with, {"tricks": ["strides"]}, {"tricks": "known names"}),
    "train_once": (train_once, {"recipe": recipe_with(["strides"]), "dls": judged_loaders(), "n_steps": 1},
                   {"recipe": "recipe", "dls": "dls", "n_steps": "count", "seed": "natural"}),
    "steps_to": (steps_to, {"target": .9, "ladder": [1, 2], "accuracies": [[.8], [.95]]},
                 {"target": "share", "ladder": "ladder", "accuracies": "ladder"}),
    "shapley": (shapley, {"value": len, "players": ["a", "b"]}, {"value": "function", "players": "names"}),
    "bootstrap": (bootstrap, {"statistic": sum, "n": 3, "draws": 4},
                  {"statistic": "function", "n": "count", "draws": "count", "coverage": "share", "seed": "natural"}),
    "Leaderboard": (Leaderboard, {"path": "board.jsonl"}, {"path": "path"}),
    "explore": (explore, {"f": lambda a: {"a": a}, "a": (0, 3)}, {"f": "function", "a": "control"}),
    "LiveFigure": (with_figure(LiveFigure), {"artists": [], "alt": "a picture"}, {"alt": "text"}),
}
# Told apart by what they are: steppers are called by an Optimizer, which checks for them; exceptions and
# classes to derive from take what they are given; those without arguments take none.
LEFT_OUT = {
    "steppers": {name for name in course_lib.__all__ if name.endswith("_step") or name.startswith("average_")}
    | {"count_steps", "l2_reg", "weight_decay"},
    "exceptions": {name for name in course_lib.__all__ if name.endswith(("Exception", "Error"))},
    "plain fields, which the functions that take it look at": {"Recipe"},
    "no arguments": {"Callback", "EVENTS", "ModelResetter", "MoveStatistics", "Recorder", "TerminateOnNaN",
                     "default_device", "offload_saved", "use_style"},
    "made by functions that are tried": {"Explorer", "Quantized", "Sweep"},
    "needs MNIST on disk; takes what course_data does": {"mnist"},
    "a container: Learner looks at what is in it": {"DataLoaders"},
}


def said_by_us(error):
    "Was it raised by a `raise`, of this course or of torch's Python, or does the call not fit the signature?"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raised = linecache.getline(frame.filename, frame.lineno).lstrip()
    ours = "torch" in frame.filename or "course_lib" in frame.filename
    return ours and re.search(r"\braise\b", raised) is not None


# Errors that speak of an argument in another word.
SAID = {"params": "parameter", "betas": "beta", "dl": "loader", "max_bytes": "may be used", "schedules": "function"}


def says_what(error, argument, value):
    "Do the words name the argument, or show the value that was given?"
    words, inside = str(error).lower(), set(value) if isinstance(value, dict) else set()
    value = repr(value).lower()
    names = {*inside, SAID.get(argument, argument), argument, argument.replace("_", " "), *argument.split("_")} - {"n"}
    return any(name in words for name in names) or value[:20] in words


def optional(call, argument):
    parameter = inspect.signature(getattr(call, "of", call)).parameters.get(argument)
    return parameter is not None and parameter.default is None


def test_every_public_name_is_tried_or_left_out_with_a_reason():
    tried = {name.split(",")[0].split(".")[0] for name in CALLS}
    assert tried | set.union(*LEFT_OUT.values()) == set(course_lib.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_the_good_call_is_good(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, good, _ = CALLS[name]
    try: call(**good)
    except (FileNotFoundError, DownloadError): pass


@pytest.mark.parametrize("name, argument", [(name, argument) for name, (*_, kinds) in CALLS.items()
                                            for argument in kinds])
@settings(max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
          suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_bad_argument_is_a_clear_error(name, argument, tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    call, good, kinds = CALLS[name]
    value = data.draw(bad(kinds[argument]))
    if value is None and optional(call, argument): return
    with pytest.raises((ValueError, TypeError, DataError, OSError, RuntimeError, MemoryError)) as caught:
        call(**{**good, argument: value})
    error = caught.value
    assert said_by_us(error), f"leaked: {type(error).__name__}: {error}"
    assert says_what(error, argument, value), f"unclear: {type(error).__name__}: {error}"
