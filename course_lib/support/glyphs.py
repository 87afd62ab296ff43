"""Letters and digits rendered from matplotlib's fonts, distorted: what the body of chapter 11 was pretrained on."""
import functools
import hashlib
import json
import string
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image, ImageFont

from .checks import positive_int, whole_number
from .files import DamagedFileError, embedded
from .tensors import default_device

CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase  # what the 62 targets stand for
FONTS = tuple("""DejaVuSans DejaVuSans-Oblique DejaVuSans-Bold DejaVuSans-BoldOblique DejaVuSansMono
DejaVuSansMono-Oblique DejaVuSansMono-Bold DejaVuSansMono-BoldOblique DejaVuSerif DejaVuSerif-Italic DejaVuSerif-Bold
DejaVuSerif-BoldItalic STIXGeneral STIXGeneralItalic STIXGeneralBol STIXGeneralBolIta cmr10 cmb10 cmss10
cmtt10""".split())  # the text fonts of matplotlib, without those of symbols, of sizes and of last resort


def render(font, character, size=56, box=40):
    "A character in the middle of a square, as large as fits into the box: uint8 `[size, size]`, the ink 255."
    mask = font.getmask(character)
    ink = Image.frombytes("L", mask.size, bytes(mask))
    ink = ink.crop(ink.getbbox())
    scaled = ink.resize([max(1, round(side * box / max(ink.size))) for side in ink.size], Image.Resampling.BOX)
    sheet = Image.new("L", (size, size))
    sheet.paste(scaled, [(size - side) // 2 for side in scaled.size])
    return torch.from_numpy(np.array(sheet))


@functools.lru_cache(2)
@torch.inference_mode(False)  # what is kept may be needed in training later
def glyph_bank(device="cpu"):
    "All characters in all fonts: uint8 `[3 strokes (thin, as drawn, thick), 62 classes, 20 fonts, 56, 56]`."
    import matplotlib  # for its fonts alone

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), 160, layout_engine=ImageFont.Layout.BASIC)
             for name in FONTS]
    plain = torch.stack([render(font, character) for character in CLASSES for font in fonts])[:, None].float()
    thin, thick = -F.max_pool2d(-plain, 3, 1, 1), F.max_pool2d(plain, 5, 1, 2)
    bank = torch.stack([thin, plain, thick]).to(torch.uint8)
    return bank.view(3, len(CLASSES), len(FONTS), *bank.shape[-2:]).to(device)


def warp(glyphs, angle, shear, stretch, shift, waves):
    """Turn, shear, stretch, shift and bend images, each in its own way, and halve their resolution: one `grid_sample`.

    glyphs: float `[n, 1, 2 · size, 2 · size]` -> `[n, 1, size, size]`; angle: radians `[n]`; shear: `[n]`, how far
    to the side per pixel down; stretch: factors `[2, n]` (of width and height); shift: `[2, n]` (left, up) in halves
    of the image; waves: a coarse field of shifts `[n, 2, rows, columns]`, as large.
    """
    n, size = len(glyphs), glyphs.shape[-1] // 2
    cos, sin = angle.cos(), angle.sin()
    where = torch.stack([torch.stack([cos / stretch[0], (shear * cos - sin) / stretch[0], shift[0]]),
                         torch.stack([sin / stretch[1], (shear * sin + cos) / stretch[1], shift[1]])])
    grid = F.affine_grid(where.permute(2, 0, 1), (n, 1, size, size), align_corners=False)
    bend = F.interpolate(waves, (size, size), mode="bicubic", align_corners=True)
    return F.grid_sample(glyphs, grid + bend.permute(0, 2, 3, 1), align_corners=False)


class GlyphLoader:
    """Batches of letters and digits in random fonts, distorted, none of which comes twice: images `[B, 1, 28, 28]`
    float32 with mean 0 and standard deviation 1 over each batch, and targets `[B]` int64, places in `CLASSES`.

    n_batches: how many make an epoch; stroke, affine, elastic: strengths of the distortions, 0: none.
    What comes depends on `(seed, epoch)` alone; the strengths change the images and nothing else.
    Raises `ValueError` for counts below 1, and for strengths that are no numbers from 0 to 2.
    """
    def __init__(self, n_batches=100, batch_size=128, seed=0, stroke=1., affine=1., elastic=1., device=None):
        self.n_batches, self.batch_size = positive_int("n_batches", n_batches), positive_int("batch_size", batch_size)
        for name, strength in {"stroke": stroke, "affine": affine, "elastic": elastic}.items():
            if not isinstance(strength, (int, float)) or not 0 <= strength <= 2:
                raise ValueError(f"{name} must be a strength from 0 to 2, not {strength}.")
        self.seed, self.epoch, self.stroke, self.affine, self.elastic = whole_number("seed", seed), 0, stroke, affine, elastic
        self.device = default_device() if device is None else torch.device(device)

    def __len__(self): return self.n_batches

    def __iter__(self):
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._batches(torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63))

    def _batches(self, generator):
        n = self.batch_size
        for _ in range(self.n_batches):
            targets = torch.randint(len(CLASSES), (n,), generator=generator)
            fonts = torch.randint(len(FONTS), (n,), generator=generator)
            draws, waves = 2 * torch.rand(7, n, generator=generator) - 1, torch.randn(n, 2, 4, 4, generator=generator)
            yield self._drawn(*(part.to(self.device) for part in (targets, fonts, draws, waves)))

    def _drawn(self, targets, fonts, draws, waves):
        "draws: `[7, n]`, from -1 to 1."
        weight, angle, shear, wide, high, *shift = draws
        bank, weight = glyph_bank(str(self.device)), (self.stroke * (.2 + .8 * weight)).clamp(-1, 1)
        plain, other = (bank[stroke, targets, fonts].float() for stroke in (1, 1 + weight.sign().long()))
        inked = torch.lerp(plain, other, weight.abs()[:, None, None])[:, None]
        stretch = 1 + self.affine * torch.stack([.275 * wide - .125, .175 * high - .025])
        images = warp(inked, .26 * self.affine * angle, .35 * self.affine * shear, stretch,
                      .12 * self.affine * torch.stack(shift), .063 * self.elastic * waves)
        std, mean = torch.std_mean(images)
        return (images - mean) / std, targets

    def __repr__(self):
        return (f"GlyphLoader: {self.n_batches:,} batches of {self.batch_size} on {self.device}, seed {self.seed}, "
                f"stroke {self.stroke:g}, affine {self.affine:g}, elastic {self.elastic:g}")


def printed(characters, n_each, seed=0):
    """Any characters in the DejaVu fonts, a little bent, n pictures of each: normalised images `[n, 1, 28, 28]` and the
    places of their characters `[n]`. For those that are not in `CLASSES`, and that nobody trained on.
    """
    import matplotlib  # for its fonts alone

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), 160) for name in FONTS if name.startswith("DejaVu")]
    bank = torch.stack([torch.stack([render(font, character) for font in fonts]) for character in characters])
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(len(characters)).repeat_interleave(n_each)
    n, uniform = len(targets), lambda *shape: 2 * torch.rand(*shape, generator=generator) - 1
    glyphs = bank[targets, torch.randint(len(fonts), (n,), generator=generator)][:, None].float()
    images = warp(glyphs, .2 * uniform(n), .2 * uniform(n), 1 + .1 * uniform(2, n), .06 * uniform(2, n),
                  .05 * torch.randn(n, 2, 4, 4, generator=generator))
    return (images - images.mean()) / images.std(), targets


GLYPHS_SHA256 = "f1c8e5fc6b4c7fa27640f056ab67cbee2c3a3dab927d629ff7ce000cc5d68ef5"


def glyph_weights(path=None):
    """Weights as data/train_glyphs.py writes them: name -> tensor; by default those of the course, whose hash is checked.

    Raises `DamagedFileError` for a file that is missing, damaged or another than it should be.
    """
    own, path = path is not None, Path(path or embedded("glyphs.safetensors"))
    advice = "Write it anew: python data/train_glyphs.py." if own else "It came with the course: install that anew."
    try: data = path.read_bytes()
    except OSError as error: raise DamagedFileError(f"{path} cannot be read ({error.strerror}). {advice}") from error
    if not own and hashlib.sha256(data).hexdigest() != GLYPHS_SHA256:
        raise DamagedFileError(f"{path} is not the file that it should be (its hash differs). {advice}")
    try: return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError) as error:
        raise DamagedFileError(f"{path} is no whole safetensors file ({error}). {advice}") from error


def glyph_curves():
    """What data/train_glyphs.py measured: by data set and images a class, the accuracy of each draw for each way,
    of scratch for each rate; and with which versions. Raises `DamagedFileError` where the file is not as it should be.
    """
    path = embedded("glyphs_curves.json")
    try: return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} came with the course and cannot be read: install it anew.") from error
