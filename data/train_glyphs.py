"""Trains the small residual net of chapter 11 on rendered letters and digits, and measures what that is worth.

    python data/train_glyphs.py                 both, some minutes on two cores
    python data/train_glyphs.py --curves-only   only the comparison, with the weights that are there
    python data/train_glyphs.py --weights-only  only the weights
    python data/train_glyphs.py --quick         a rehearsal in a minute; --to says where, data/ is not touched

Writes glyphs.safetensors and glyphs_curves.json: for each data set and 5, 10, 50 and 100 images a class the accuracies
of five draws, from scratch at five rates, with a frozen body, and fine-tuned. Without MNIST: for the digits alone.
"""
import argparse
import contextlib
import functools
import hashlib
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import matplotlib
import PIL
import safetensors.torch
import torch
import torch.nn.functional as F

from course_lib.adam import AdamW
from course_lib.data import DataLoaders, digits, mnist
from course_lib.support.files import DownloadError, write_whole
from course_lib.learner import Learner, accuracy
from course_lib.learning_rate import fit_one_cycle
from course_lib.support.glyphs import GlyphLoader
from course_lib.transfer import best_scratch, draw_few, few_shot, glyph_backbone, small_resnet

SEED, N_STEPS, BATCH_SIZE, N_DRAWS = 0, 100, 50, 5  # of the comparison
RATES, N_PER_CLASS = (.001, .003, .01, .03, .1), (5, 10, 50, 100)
VERSIONS = {"torch": torch.__version__, "matplotlib": matplotlib.__version__, "pillow": PIL.__version__}


def fast():
    "Arithmetic in bfloat16 where the processor has it: twice as fast here, and as accurate as these results are."
    has = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)()
    # no cache: that of a whole fit would go on with the first step's weights
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if has else contextlib.nullcontext()


def write_weights(path, n_batches):
    "Pretrain with one cycle, and write the weights with what they are made from."
    start = time.perf_counter()
    torch.set_num_threads(1)  # for so small a net a second thread brings nothing, and waits where cores are shared
    torch.manual_seed(SEED)
    train, fresh = GlyphLoader(n_batches, seed=SEED, device="cpu"), GlyphLoader(40, seed=SEED + 1, device="cpu")
    opt_func = functools.partial(AdamW, weight_decay=.05)
    learn = Learner(small_resnet(), DataLoaders(train, fresh), F.cross_entropy, opt_func, metrics=[accuracy])
    with fast(): fit_one_cycle(learn, 1, .008)
    reached = learn.validate()["accuracy"]
    notes = {"seed": SEED, "n_batches": n_batches, "batch_size": train.batch_size, "accuracy": round(reached, 4),
             "made_by": "data/train_glyphs.py", "data": "letters and digits rendered from the fonts of matplotlib",
             **VERSIONS}
    weights = {name: value.contiguous() for name, value in learn.model.state_dict().items()}
    data = safetensors.torch.save(weights, {name: str(value) for name, value in notes.items()})
    write_whole(path, data)
    print(f"{path.name}: {n_batches:,} batches in {time.perf_counter() - start:.0f} s, {reached:.1%} of "
          f"{len(fresh) * fresh.batch_size:,} fresh glyphs right, {len(data):,} bytes")
    print(f"sha256 {hashlib.sha256(data).hexdigest()} (in course_lib/support/glyphs.py and in data/README.md)",
          flush=True)


@functools.cache
def data_set(name): return {"mnist": mnist, "digits": digits}[name](device="cpu")


@functools.lru_cache(1)
def drawn(name, n, draw): return draw_few(data_set(name), n, draw)


def measure(job, weights):
    "One training: (data set, n, draw, way, rate) -> accuracy."
    name, n, draw, way, rate = job
    torch.set_num_threads(1)
    with fast():
        return few_shot(*drawn(name, n, draw), way, rate, N_STEPS, seed=draw, backbone=glyph_backbone(weights, "cpu"))


def write_curves(path, weights, ns, n_draws):
    "Everything that is compared, a process per core; the trainings do not know of each other."
    start, names = time.perf_counter(), ["mnist", "digits"]
    try: data_set("mnist")
    except DownloadError as error:
        print(f"MNIST is not there, so the curves are of the digits alone ({error}).")
        names = ["digits"]
    ways = [("head", None), ("fine-tune", None), *(("scratch", rate) for rate in RATES)]
    jobs = [(name, n, draw, way, rate) for name in names for n in ns for draw in range(n_draws) for way, rate in ways]
    data = {name: {str(n): {"scratch": {str(rate): [] for rate in RATES}, "head": [], "fine-tune": []} for n in ns}
            for name in names}
    data_set.cache_clear()
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), get_context("spawn")) as pool:
        for job, reached in zip(jobs, pool.map(functools.partial(measure, weights=weights), jobs, chunksize=len(ways))):
            name, n, draw, way, rate = job
            measured = data[name][str(n)]
            (measured["scratch"][str(rate)] if way == "scratch" else measured[way]).append(round(reached, 4))
            if (draw, rate) == (n_draws - 1, RATES[-1]): report(name, n, measured)
    curves = {"seed": SEED, "n_steps": N_STEPS, "batch_size": BATCH_SIZE, "draws": n_draws, "rates": RATES,
              "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "versions": VERSIONS, "data": data}
    write_whole(path, (json.dumps(curves, indent=1) + "\n").encode())
    print(f"{path.name}: {len(jobs)} trainings in {time.perf_counter() - start:.0f} s")


def report(name, n, measured):
    rate, scratch = best_scratch(measured)
    ways = {f"scratch (rate {rate:g})": scratch, "head": measured["head"], "fine-tune": measured["fine-tune"]}
    means = [f"{way} {100 * sum(draws) / len(draws):.1f} %" for way, draws in ways.items()]
    print(f"{name:>6}, {n:3} a class: {', '.join(means)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--curves-only", action="store_true")
    only.add_argument("--weights-only", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--to", type=Path, help="the folder to write to, by default that of this script")
    args = parser.parse_args()
    folder = args.to or (Path(tempfile.mkdtemp()) if args.quick else Path(__file__).resolve().parent)
    weights = folder / "glyphs.safetensors"
    if not args.curves_only: write_weights(weights, 60 if args.quick else 1500)
    if not weights.exists(): parser.error(f"There are no weights in {folder}: run it without --curves-only first.")
    ns, n_draws = ((10,), 1) if args.quick else (N_PER_CLASS, N_DRAWS)
    if not args.weights_only: write_curves(folder / "glyphs_curves.json", weights, ns, n_draws)


if __name__ == "__main__": main()
