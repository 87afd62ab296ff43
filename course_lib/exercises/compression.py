"""The exercises of chapter 16."""
import warnings

import torch

from .core import Exercise, random_tensor

# 1. When do zeros pay?

def zeros_needed(n_rows, n_cols):
    "How many of a matrix's entries must be 0, at least, for CSR to take fewer bytes than the dense matrix."
    dense, pointers = 4 * n_rows * n_cols, 8 * (n_rows + 1)
    stored = -(-(dense - pointers) // 12) - 1    # the most entries that still leave it smaller
    return n_rows * n_cols - stored


def sizes_of_matrices(rng):
    "Sizes at which a pointer more or less makes a difference, so that a mistake shows."
    sizes = [(n_rows, n_cols) for n_rows in range(10, 30) for n_cols in range(12, 40)]
    rests = ([size for size in sizes if (4 * size[0] * size[1] - 8 * size[0] - 8) % 12 == rest] for rest in (0, 8))
    return [{"n_rows": n_rows, "n_cols": n_cols} for found in rests for n_rows, n_cols in rng.sample(found, 2)]


def by_counting(n_rows, n_cols):
    "Matrices with more and more zeros, in torch's own format."
    matrix = torch.ones(n_rows * n_cols)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "in beta state"
        for n in range(n_rows * n_cols + 1):
            matrix[:n] = 0
            sparse = matrix.view(n_rows, n_cols).to_sparse_csr()
            if sum(part.nbytes for part in (sparse.values(), sparse.col_indices(), sparse.crow_indices())) < matrix.nbytes: return {"the zeros": n}


ZEROS_NEEDED = Exercise(
    "16", zeros_needed, '''
def zeros_needed(n_rows, n_cols):
    "How many entries of a float32 matrix must be 0, at least, so that its CSR form is smaller."
    return 0                                     # replace this
''',
    hints=("How many bytes does the dense matrix take, and how many does CSR take for n entries that are not 0?",
           "Dense: 4 · rows · cols. CSR: 4 + 8 for each entry that is stored, and 8 for each of rows + 1 pointers.",
           "You need the largest n with 12 · n + 8 · (rows + 1) < 4 · rows · cols, in whole numbers."),
    mistakes={
        "You have left out the pointers: rows + 1 whole numbers of 8 bytes that say where each row begins.":
            lambda n_rows, n_cols: n_rows * n_cols - (4 * n_rows * n_cols - 1) // 12,
        "There are rows + 1 pointers, not rows: the last one says where the last row ends.":
            lambda n_rows, n_cols: n_rows * n_cols - (4 * n_rows * n_cols - 8 * n_rows - 1) // 12,
        "You reckon with places of 4 bytes. PyTorch's are whole numbers of 8.":
            lambda n_rows, n_cols: n_rows * n_cols - (4 * n_rows * n_cols - 4 * (n_rows + 1) - 1) // 8,
        "That is how many entries may be stored. Asked is how many are 0.":
            lambda n_rows, n_cols: (4 * n_rows * n_cols - 8 * (n_rows + 1) - 1) // 12,
        "You have forgotten the places: each entry that is stored takes 8 bytes more for its column.":
            lambda n_rows, n_cols: n_rows * n_cols - (4 * n_rows * n_cols - 8 * (n_rows + 1) - 1) // 4},
    cases=sizes_of_matrices, run=lambda answer, **case: {"the zeros": answer(**case)}, truth=by_counting, tolerance=0.,
    why="Each stored entry takes 12 bytes and each dense one 4, so about two thirds must be 0 before CSR takes less, and a little more for "
        "the pointers. Being smaller is not being faster, though.")


# 2. An exact zero

def scale_and_zero_of(x, bits):
    "Scale and zero, two plain numbers, of affine quantization to 0 … 2^bits − 1."
    low, high = min(x.min().item(), 0.), max(x.max().item(), 0.)
    scale = (high - low) / (2 ** bits - 1)
    return scale, round(-low / scale)


def ranges(rng):
    spans = [(-.7, 2.3), (0., 3.1), (-1.9, .4), (.8, 2.9), (-3.2, -1.1)]
    return [{"_x": torch.rand(40, generator=torch.Generator().manual_seed(rng.randrange(2 ** 40))) * (high - low) + low + rng.uniform(-.1, .1),
             "bits": rng.choice((3, 4, 5))} for low, high in spans]


def look_at_zero(answer, _x, bits):
    scale, zero = answer(_x, bits)
    return {"the scale": scale, "zero": zero}


def by_trying_numbers(_x, bits):
    "By trying which of the numbers lies nearest to 0."
    low, high = min(_x.min().item(), 0.), max(_x.max().item(), 0.)
    scale = (high - low) / (2 ** bits - 1)
    numbers = torch.arange(2 ** bits, dtype=torch.float64)
    return {"the scale": scale, "zero": int((numbers * scale + low).abs().argmin())}


def zero_with(low_high=lambda x: (min(x.min().item(), 0.), max(x.max().item(), 0.)), steps=lambda bits: 2 ** bits - 1,
              zero=lambda low, scale: round(-low / scale)):
    def scale_and_zero_of(x, bits):
        low, high = low_high(x)
        scale = (high - low) / steps(bits)
        return scale, zero(low, scale)
    return scale_and_zero_of


SCALE_AND_ZERO_OF = Exercise(
    "16", scale_and_zero_of, '''
def scale_and_zero_of(x, bits):
    "(scale, zero) of affine quantization to whole numbers from 0 to 2^bits − 1."
    return 1., 0                                 # replace this
''',
    hints=("Which range must the numbers cover so that 0 has a place in it, even if all of x is above 0?",
           "low = min(x.min(), 0), high = max(x.max(), 0). How many steps lie between 2^bits numbers?",
           "zero is the number of steps from low up to 0, rounded."),
    mistakes={
        "0 must lie in the range. Where all of x is above 0, the range begins at 0; where all is below, it ends there.":
            zero_with(lambda x: (x.min().item(), x.max().item())),
        "Between 2^bits numbers there are 2^bits − 1 steps.": zero_with(steps=lambda bits: 2 ** bits),
        "zero is a whole number. Round it, or 0 will not come back as 0.": zero_with(zero=lambda low, scale: -low / scale),
        "You cut zero off. Round it to the nearest whole number.": zero_with(zero=lambda low, scale: int(-low / scale)),
        "zero has the wrong sign: low is at most 0, and zero counts upwards from it.": zero_with(zero=lambda low, scale: round(low / scale)),
        "That is the zero for numbers that begin at −2^(bits − 1). Here they begin at 0.":
            lambda x, bits: (zero_with()(x, bits)[0], zero_with()(x, bits)[1] - 2 ** (bits - 1))},
    cases=ranges, run=look_at_zero, truth=by_trying_numbers,
    why="The range is stretched until it holds 0, and zero is rounded, so 0 is one of the levels. The ends move by less than half a step for that.")


# 3. From the bug museum

def pair_product(a, b):
    "a `[M, K]` of 0 to 255 times b `[K, N]` of −128 to 127, K even: pairs are added in 16 bits."
    products = a.int()[:, :, None] * b.int()
    return products.unflatten(1, (-1, 2)).sum(2).clamp(-32_768, 32_767).sum(1)


def mended_int_mm(a, b, product):
    "int8 times int8 by the pair product, with the right sums: b is halved, so that no pair overflows."
    halves = b // 2, b - b // 2
    shifted = a.int() + 128
    return sum(product(shifted, half) for half in halves) - 128 * b.int().sum(0)


def products_of_bytes(rng):
    generator = torch.Generator().manual_seed(rng.randrange(2 ** 40))
    draw = lambda low, *shape: torch.randint(low, 128, shape, generator=generator, dtype=torch.int8)
    full = [{"_a": draw(-128, 3, k), "_b": draw(-128, k, 4)} for k in (6, 16)]
    ends = {"_a": torch.full((2, 8), 127, dtype=torch.int8), "_b": torch.full((8, 3), -128, dtype=torch.int8)}
    return [*full, {"_a": draw(110, 3, 12), "_b": draw(100, 12, 2)}, ends, {"_a": draw(-8, 3, 4), "_b": draw(-8, 4, 3)}]



def look_at_sums(answer, _a, _b):
    asked = []

    def product(a, b):
        asked.append(True)
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] % 2 or a.shape[1] != b.shape[0]:
            raise ValueError(f"product takes [M, K] and [K, N] with an even K, not {list(a.shape)} and {list(b.shape)}.")
        if a.min() < 0 or a.max() > 255: raise ValueError("product's first factor must be whole numbers from 0 to 255.")
        if b.min() < -128 or b.max() > 127: raise ValueError("product's second factor must be whole numbers from −128 to 127.")
        return pair_product(a, b)
    return {"the sums": answer(_a, _b, product).double(), "product has been used": bool(asked)}


def by_wide_sums(_a, _b): return {"the sums": (_a.long() @ _b.long()).double(), "product has been used": True}


def sums_with(parts, shift=128, back=128):
    def mended_int_mm(a, b, product):
        return sum(product(a.int() + shift, part) for part in parts(b)) - back * b.int().sum(0)
    return mended_int_mm


MENDED_INT_MM = Exercise(
    "16", mended_int_mm, '''
def mended_int_mm(a, b, product):                # mend this
    "int8 [M, K] times int8 [K, N] by products that add pairs in 16 bits, with the right sums."
    return product(a.int() + 128, b) - 128 * b.int().sum(0)
''',
    hints=("How large may a pair of products be, and how large is 255 · 127 twice?",
           "If the second factor is at most 64 in size, a pair is at most 2 · 255 · 64 = 32,640, which fits.",
           "Write b as the sum of two halves, and add two products."),
    mistakes={
        "That is the old one still: pairs of large numbers are cut off.": sums_with(lambda b: [b]),
        "Twice b // 2 is not b where b is odd. The second half is what is left, b − b // 2.": sums_with(lambda b: [b // 2, b // 2]),
        "The shift adds 128 times the sums of b. Take that away once, not for each half.":
            sums_with(lambda b: [b // 2, b - b // 2], back=256),
        "What the shift by 128 adds has to be taken away again: 128 times the sum of each column of b.":
            sums_with(lambda b: [b // 2, b - b // 2], back=0),
        "The sums are right, but the product has done nothing. Keep the quick instruction at work.":
            lambda a, b, product: (a.int()[:, :, None] * b.int()).sum(1)},
    cases=products_of_bytes, run=look_at_sums, truth=by_wide_sums, tolerance=0.,
    why="Halves of b are at most 64 in size, so a pair is at most 2 · 255 · 64 = 32,640, below 32,767. It costs two products. Another way is to "
        "give weights seven bits from the start, which is what reduce_range does in PyTorch.")


# 4. Fake quantization from a blank page

def my_fake_quantize(x, bits):
    "x `[n, m]` rounded symmetrically, a scale for each row; the gradient is that of x."
    top = 2 ** (bits - 1) - 1
    scale = x.detach().abs().amax(1, keepdim=True).clamp(min=1e-30) / top
    rounded = (x.detach() / scale).round() * scale
    return rounded + (x - x.detach())


def rows_of_numbers(rng):
    cases = []
    for bits in (2, 3, 4, 8):
        x = random_tensor(rng, 4, 9) * torch.tensor([.1, 1., 10., 3.])[:, None]
        if bits == 4: x[2] = 0
        cases.append({"_x": x, "bits": bits})
    return cases


def look_at_fake(answer, _x, bits):
    leaf = _x.requires_grad_(True)
    out = answer(leaf, bits)
    [grad] = torch.autograd.grad((out * torch.arange(9.)).sum(), leaf, allow_unused=True) if out.requires_grad else [None]
    return {"the values": out.detach().clone(), "the gradient": "none" if grad is None else grad}


def by_torchs_fake(_x, bits):
    top = 2 ** (bits - 1) - 1
    scale = _x.abs().amax(1)
    safe = torch.where(scale > 0, scale / top, torch.ones(()))
    values = torch.fake_quantize_per_channel_affine(_x, safe, torch.zeros(len(_x), dtype=torch.int32), 0, -top, top)
    return {"the values": values, "the gradient": torch.arange(9.).expand(4, 9)}


def fake_with(top=lambda bits: 2 ** (bits - 1) - 1, largest=lambda x: x.abs().amax(1, keepdim=True), least=1e-30,
              through=lambda x, rounded: rounded + (x - x.detach()), whole=torch.round):
    def my_fake_quantize(x, bits):
        scale = largest(x.detach()).clamp(min=least) / top(bits)
        return through(x, whole(x.detach() / scale) * scale)
    return my_fake_quantize


def all_through(x, bits):
    "No detach at all."
    scale = x.abs().amax(1, keepdim=True).clamp(min=1e-30) / (2 ** (bits - 1) - 1)
    return (x / scale).round() * scale


MY_FAKE_QUANTIZE = Exercise(
    "16", my_fake_quantize, '''
def my_fake_quantize(x, bits):
    "x [n, m] rounded symmetrically to so many bits, a scale for each row; the gradient is x's."
    return x                                     # replace this
''',
    hints=("Three lines make the values: the scale of each row, whole numbers, and back. What is the gradient of round?",
           "The largest number is 2^(bits − 1) − 1. scale = x.abs().amax(1, keepdim=True) / that.",
           "rounded + (x − x.detach()) has the value of rounded and the gradient of x.",
           "And a row of zeros? Keep its scale above 0, for instance with clamp(min=1e-30)."),
    mistakes={
        "There is no gradient: rounding has cut it off. Add x − x.detach(), which is 0 and has one.": fake_with(through=lambda x, rounded: rounded),
        "The gradient that comes through is that of the scale, not of x. Detach, and add x − x.detach().": all_through,
        "A row of zeros gives NaN: its scale is 0. Keep it above 0.": fake_with(least=0.),
        "One scale for all. Each row has its own.": fake_with(lambda bits: 2 ** (bits - 1) - 1, lambda x: x.abs().amax().view(1, 1)),
        "The largest number with so many bits is 2^(bits − 1) − 1, if negative ones shall fit as well.": fake_with(top=lambda bits: 2 ** bits - 1),
        "You divide by 2^(bits − 1). Then the largest weight needs a number that does not fit.": fake_with(top=lambda bits: 2 ** (bits - 1)),
        "The scale comes from the largest value, and a large negative one is overlooked. Take abs() first.":
            fake_with(largest=lambda x: x.amax(1, keepdim=True)),
        "You cut off instead of rounding.": fake_with(whole=torch.trunc),
        "Each column has a scale. Here each row has one.": fake_with(largest=lambda x: x.abs().amax(0, keepdim=True))},
    cases=rows_of_numbers, run=look_at_fake, truth=by_torchs_fake,
    instead=("torch.fake_quantize_per_channel_affine", "torch.fake_quantize_per_tensor_affine", "torch.quantize_per_channel"),
    why="The values are three lines. The bracket x − x.detach() is 0 and carries x's gradient past the rounding, which has none of its own.")

EXERCISES = [ZEROS_NEEDED, SCALE_AND_ZERO_OF, MENDED_INT_MM, MY_FAKE_QUANTIZE]
