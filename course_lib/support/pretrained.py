"""Weights that others have trained: loaded whole or not at all."""
import http.client
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch

from .arguments import a_module, a_state_dict, checked
from .files import DamagedFileError, DataError, DownloadError, open_url
from .speed import cost_per_image


@checked(model=a_module, weights=a_state_dict)
def load_weights(model, weights, source):
    """Put weights (name -> tensor) into a model: all of them or, with a `ValueError` that says what differs, none.

    source: where they come from, for the message.
    """
    own = model.state_dict()
    shape = lambda tensors, name: list(tensors[name].shape) if name in tensors else "nothing"
    other = [f"{name}: {shape(weights, name)} for {shape(own, name)}" for name in {**own, **weights}
             if shape(weights, name) != shape(own, name)
             and (name in weights or not name.endswith("num_batches_tracked"))]  # which old files do not have
    if other: raise ValueError(f"{source} holds the weights of another model than this {type(model).__name__}: "
                               f"{'; '.join(other[:3])}{f' and {len(other) - 3} more' if other[3:] else ''}. "
                               "Load weights first, then replace the head.")
    model.load_state_dict(weights)
    return model


def imagenet_resnet(name="resnet18", download=True):
    """torchvision's ResNet of that name with the weights IMAGENET1K_V1, from torch's cache folder or downloaded to it.

    Raises `DownloadError` where they are not there and cannot be had, `DamagedFileError` where the file is damaged.
    """
    from torchvision.models import get_model, get_model_weights

    try: weights = get_model_weights(name).IMAGENET1K_V1
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"torchvision has no model {name!r} with ImageNet weights; "
                         "resnet18, resnet34 and resnet50 are some.") from None
    path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    advice = "Delete it; it is then fetched again."
    try:
        if not path.exists():
            if not download: raise DownloadError(f"{path} is not there, and nothing was to be downloaded")
            open_url(weights.url).close()  # within seconds, or not at all
        if zipfile.is_zipfile(path) and (part := zipfile.ZipFile(path).testzip()): raise EOFError(f"{part} is damaged")
        state = weights.get_state_dict(progress=False, check_hash=True)
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise EOFError("it holds something else")
    except DownloadError: raise
    except (EOFError, RuntimeError, KeyError, UnpicklingError) as error:
        if not path.exists():
            raise DownloadError(f"{weights.url} sends another file than expected ({error})") from error
        raise DamagedFileError(f"{path} is no file of weights ({error}). {advice}") from error
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{weights.url} cannot be reached ({getattr(error, 'reason', error)})") from error
    return load_weights(get_model(name), state, str(path))


def run_if(wanted, what, downloads, model, shape, n_images, run):
    "Say what it downloads and how long it takes; run it where that is wanted, and say in a line why it cannot be had."
    seconds, operations = cost_per_image(model, shape)
    takes = lambda seconds: f"{seconds / 60:,.0f} minutes" if seconds > 120 else f"{seconds:,.1f} seconds"
    print(f"{what}: downloads {downloads}. Training takes about {takes(n_images * seconds)} on this "
          f"{next(model.parameters()).device.type}, {takes(n_images * operations / 1e13)} at 10 TFLOP/s (calculated).")
    if not wanted: return print("Skipped: set LARGE = True to run it.")
    try: return run()
    except DataError as error: print(f"Skipped: {error}")
