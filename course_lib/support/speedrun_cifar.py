"""CIFAR-10 as tensors, from its archive of plain bytes, or small colored images in its place; and airbench94's network (Jordan, 2024)."""
import io
import tarfile

import torch
import torch.nn.functional as F
from torch import nn

from .files import DamagedFileError, DownloadError, data_root, fetch, write_whole

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5, N_BYTES = "c32a1d4ab5d03f1284b67883e8d13530", 170_052_171
CLASSES = "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
RECORD = 1 + 3 * 32 * 32  # a class, then the pixels, channel by channel


def records(data, where):
    "uint8 images `[n, 3, 32, 32]` and classes `[n]` from the bytes of a batch; `DamagedFileError` if they are not whole."
    if not data or len(data) % RECORD: raise DamagedFileError(f"{where} holds {len(data):,} bytes, which are no whole images of {RECORD:,}.")
    rows = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, RECORD)
    if rows[:, 0].max() >= len(CLASSES): raise DamagedFileError(f"{where} has a class beyond {len(CLASSES) - 1}.")
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].long()


def read_cifar10(root=None, download=True):
    """`(images, classes)` to train, and to test, from `cifar-10-binary.tar.gz` in the folder for data, fetched where it is missing.

    Raises `DownloadError` where it cannot be had, `DamagedFileError` for a file that is not what it should be.
    """
    folder, called = data_root(root)
    path = folder / "cifar-10-binary.tar.gz"
    if not path.exists():
        if not download: raise DownloadError(f"{path} is not there, and nothing was to be downloaded")
        data = fetch(URL, MD5, N_BYTES)
        try: write_whole(path, data)
        except OSError as error: raise DownloadError(f"{path} cannot be written ({error.strerror}); the folder is {called}") from error
    parts = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
            for member in archive:
                if member.name.endswith(".bin"): parts[member.name.rpartition("/")[2]] = records(archive.extractfile(member).read(), member.name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DamagedFileError(f"{path} is no archive that can be read ({str(error).partition(chr(10))[0].rstrip(':')}). Delete it; it is then fetched again.") from error
    names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    if missing := [name for name in [*names, "test_batch.bin"] if name not in parts]:
        raise DamagedFileError(f"{path} lacks {missing[0]}. Delete it; it is then fetched again.")
    return tuple(map(torch.cat, zip(*(parts[name] for name in names)))), parts["test_batch.bin"]


def as_floats(images, mean, std, device):
    "Bytes as floats with these statistics of the three channels."
    mean, std = (torch.as_tensor(value, device=device).view(3, 1, 1) for value in (mean, std))
    return (images.to(device).float() / 255 - mean) / std


def made_up(n, size=14, n_classes=10, seed=0):
    "n images `[n, 3, size, size]` of three mixed patterns and noise, whose colors tell the class; for tests without the data."
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % n_classes
    colors = torch.randn(n_classes, 3, generator=torch.Generator().manual_seed(7))
    ramp = torch.linspace(-1, 1, size)
    pattern = torch.stack([ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], torch.cos(3 * ramp)[:, None] * torch.cos(3 * ramp)])
    mix = torch.rand(n, 3, generator=generator)
    x = torch.einsum("nk,khw->nhw", mix, pattern)[:, None] * .5 + colors[y][:, :, None, None]
    return x + .3 * torch.randn(x.shape, generator=generator), y


def same_conv(n_in, n_out):
    "A 3×3 convolution that begins by passing its inputs on, as far as it has channels for them."
    conv = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[:n_in].data)
    return conv


def bias_norm(width):
    "Batchnorm that learns a bias, and no weight."
    norm = nn.BatchNorm2d(width, momentum=.4)
    norm.weight.requires_grad_(False)
    return norm


class ScaledLinear(nn.Linear):
    "A linear layer whose answers are divided by 9."
    def forward(self, x): return super().forward(x) / 9


def cifar_net(filters, widths=(64, 256, 256), n_classes=10):
    "Images `[B, 3, H, W]` → logits; filters: the weights of the first layer, which is not trained."
    first = nn.Conv2d(filters.shape[1], len(filters), filters.shape[2])
    first.weight.data = filters
    first.weight.requires_grad_(False)
    layers, n_in = [first, nn.GELU()], len(filters)
    for n_out in widths:
        layers += [same_conv(n_in, n_out), nn.MaxPool2d(2), bias_norm(n_out), nn.GELU(), same_conv(n_out, n_out), bias_norm(n_out), nn.GELU()]
        n_in = n_out
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), ScaledLinear(n_in, n_classes, bias=False))


def biases_apart(model):
    "Two groups of parameters: the biases of batchnorm, and the rest; a `splitter`."
    biases = [module.bias for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    known = set(map(id, biases))
    return [biases, [p for p in model.parameters() if id(p) not in known]]


@torch.no_grad()
def mirrored_answers(model, x, shift=1):
    "Mean logits of an image, its mirror image, and both of these moved by a pixel, two ways."
    padded = F.pad(x, [shift] * 4, mode="reflect")
    moved = [padded[..., i:i + x.shape[2], i:i + x.shape[3]] for i in (0, 2 * shift)]
    looks = [(look, .25) for look in (x, x.flip(3))]
    looks += [(look, .125) for view in moved for look in (view, view.flip(3))]
    return sum(weight * model.eval()(look) for look, weight in looks)
