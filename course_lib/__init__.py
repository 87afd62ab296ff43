"""Make neural networks train fast: optimizers, the loop and live figures, written and tested in a course of notebooks.

What a reader of the course uses, by lesson; everything else is imported from its module. Figures come from
`course_lib.figures`. What needs matplotlib and widgets is loaded when it is first asked for.
"""
import importlib

from course_lib.adam import (
    LAMB, Adam, AdamW, Lion, Muon, adam_step, average_grad_slow, count_steps, lamb_step, lion_step, muon_step,
    weight_decay)
from course_lib.augmentation import (
    ColorJitter, CutMix, Cutout, Flip, GaussianBlur, Grayscale, MixUp, PCAColor, Perspective, RandAugment, RandomCrop,
    Rotate, backtranslate, delete, insert, replace, shuffle_sentences, swap, words_of)
from course_lib.batchnorm import (
    Autocast, BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, LayerNorm, make_fast)
from course_lib.callbacks import (
    ActivationStats, CSVLogger, EarlyStopping, GradientAccumulation, GradientClip, Progress, Recorder, SaveBest)
from course_lib.compression import (
    Pruner, Quantized, QuantLinear, dequantize, fake_quantize, magnitude_mask, nf4, prune, quantize, size_bytes)
from course_lib.data import DataLoaders, RandomAffine, TensorLoader, affine, course_data, digits, mnist
from course_lib.learner import (
    EVENTS, Callback, CancelBatchException, CancelEpochException, CancelException, CancelFitException,
    CancelStepException, CancelTrainException, CancelValidateException, Learner, ModelResetter, RNNRegularizer,
    TerminateOnNaN, accuracy)
from course_lib.learning_rate import (
    LRFind, LRScheduler, ParamScheduler, combine, const, cos, exp, fit_one_cycle, lin, lr_find, one_cycle, poly,
    warm_restarts)
from course_lib.momentum import (
    SGD, average_grad, average_grad_dampened, l2_reg, momentum_step, nesterov_step)
from course_lib.regularization import (
    SGDW, Dropout, DropPath, drop_path_rates, smooth_labels, soft_cross_entropy)
from course_lib.rmsprop import RMSProp, average_sqr_grad, rms_prop_step
from course_lib.scaling_out import (
    AverageGradients, DiLoCo, LocalSGD, PowerSGD, ShardedLoader, distributed, launch, load_sharded, save_sharded,
    sharded_sweep)
from course_lib.self_training import balanced, meta_pseudo_labels, noisy_student, pseudo_label
from course_lib.sgd import Optimizer, sgd_step
from course_lib.stability import (
    LossScaler, MixedPrecision, checkpointed, clip_adaptive, clip_by_history, clip_by_norm, clip_by_value,
    offload_saved, saved_bytes)
from course_lib.support.files import DamagedFileError, DataError, DownloadError
from course_lib.support.flat import flatten_parameters
from course_lib.support.glyphs import GlyphLoader
from course_lib.support.image_color import (
    adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, adjust_sharpness, autocontrast, equalize,
    gaussian_blur, grayscale, invert, posterize, solarize)
from course_lib.support.image_geometry import crop, erase, hflip, perspective, rotate, shear, translate
from course_lib.support.photos import CenterCrop, RandomResizedCrop, denormalise
from course_lib.support.pretrained import imagenet_resnet, load_weights
from course_lib.support.scaling_out import RankError
from course_lib.support.setup import check_setup
from course_lib.support.tensors import default_device
from course_lib.support.wordnet import glosses, synonyms
from course_lib.sweeps import Sweep, sweep
from course_lib.transfer import (
    MoveStatistics, decay_weights_only, draw_few, features, few_shot, fine_tune, freeze, freeze_to, glyph_backbone,
    gray_to_rgb, imagenette, layer_groups, pets, replace_head, small_resnet, tta, unfreeze)

__version__ = "0.1.0"

_ON_DEMAND = {"show": "support.plots", "show_images": "support.plots", "use_style": "support.plots",
              "Explorer": "support.live", "LiveFigure": "support.live", "explore": "support.live",
              "Leaderboard": "support.speedrun",
              # `python -m course_lib.speedrun` would be told that it is imported already
              **dict.fromkeys(("Recipe", "bootstrap", "recipe_with", "shapley", "steps_to", "train_once"), "speedrun")}
__all__ = [
    "ActivationStats", "Adam", "AdamW", "Autocast", "AverageGradients", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d",
    "CSVLogger", "Callback", "CancelBatchException", "CancelEpochException", "CancelException",
    "CancelFitException", "CancelStepException", "CancelTrainException", "CancelValidateException", "CenterCrop",
    "ColorJitter", "CutMix", "Cutout", "DamagedFileError", "DataError", "DataLoaders", "DiLoCo", "DownloadError",
    "DropPath", "Dropout", "EVENTS", "EarlyStopping", "Explorer", "Flip", "GaussianBlur", "GlyphLoader",
    "GradientAccumulation", "GradientClip", "Grayscale", "GroupNorm", "LAMB", "LRFind", "LRScheduler", "LayerNorm",
    "Leaderboard", "Learner", "Lion", "LiveFigure", "LocalSGD", "LossScaler", "MixUp", "MixedPrecision",
    "ModelResetter", "MoveStatistics", "Muon", "Optimizer", "PCAColor", "ParamScheduler", "Perspective", "PowerSGD",
    "Progress", "Pruner", "QuantLinear", "Quantized", "RMSProp", "RNNRegularizer", "RandAugment", "RandomAffine",
    "RandomCrop", "RandomResizedCrop", "RankError", "Recipe", "Recorder", "Rotate", "SGD", "SGDW", "SaveBest",
    "ShardedLoader", "Sweep", "TensorLoader", "TerminateOnNaN", "accuracy", "adam_step", "adjust_brightness",
    "adjust_contrast", "adjust_hue", "adjust_saturation", "adjust_sharpness", "affine", "autocontrast",
    "average_grad", "average_grad_dampened", "average_grad_slow", "average_sqr_grad", "backtranslate", "balanced",
    "bootstrap", "check_setup", "checkpointed", "clip_adaptive", "clip_by_history", "clip_by_norm", "clip_by_value",
    "combine", "const", "cos", "count_steps", "course_data", "crop", "decay_weights_only", "default_device",
    "delete", "denormalise", "dequantize", "digits", "distributed", "draw_few", "drop_path_rates", "equalize",
    "erase", "exp", "explore", "fake_quantize", "features", "few_shot", "fine_tune", "fit_one_cycle",
    "flatten_parameters", "freeze", "freeze_to", "gaussian_blur", "glosses", "glyph_backbone", "gray_to_rgb",
    "grayscale", "hflip", "imagenet_resnet", "imagenette", "insert", "invert", "l2_reg", "lamb_step", "launch",
    "layer_groups", "lin", "lion_step", "load_sharded", "load_weights", "lr_find", "magnitude_mask", "make_fast",
    "meta_pseudo_labels", "mnist", "momentum_step", "muon_step", "nesterov_step", "nf4", "noisy_student",
    "offload_saved", "one_cycle", "perspective", "pets", "poly", "posterize", "prune", "pseudo_label", "quantize",
    "recipe_with", "replace", "replace_head", "rms_prop_step", "rotate", "save_sharded", "saved_bytes", "sgd_step",
    "shapley", "sharded_sweep", "shear", "show", "show_images", "shuffle_sentences", "size_bytes", "small_resnet",
    "smooth_labels", "soft_cross_entropy", "solarize", "steps_to", "swap", "sweep", "synonyms", "train_once",
    "translate", "tta", "unfreeze", "use_style", "warm_restarts", "weight_decay", "words_of"]


def __getattr__(name):
    if name not in _ON_DEMAND: raise AttributeError(f"module 'course_lib' has no attribute {name!r}")
    return getattr(importlib.import_module(f"course_lib.{_ON_DEMAND[name]}"), name)


def __dir__(): return sorted({*globals(), *__all__})
