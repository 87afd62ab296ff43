"""A linear layer in 8 bits: our `QuantLinear` against floats and against torchao's dynamic int8.

Three layers of 1,024 units (and of 300) answer 256 rows, 64 and 1. torchao (Int8DynamicActivationInt8WeightConfig) does
the same arithmetic: weights with a scale for each output, inputs with one for each row. Both run without compiling, and
must agree with the floats to three hundredths of the largest answer before anything is timed. Bytes are those of
parameters and buffers, and of the tensors inside torchao's.
"""
import copy
import importlib.util
import logging
import statistics
import warnings

import torch
from torch import nn

from _measure import arguments, ratio, say_machine, table, take_turns
from course_lib.compression import size_bytes, with_int8
from course_lib.support.compression import int_mm_works

SHAPES = [(1024, 256), (1024, 64), (1024, 1), (300, 256)]


def of_torchao(model):
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    model = copy.deepcopy(model)
    quantize_(model, Int8DynamicActivationInt8WeightConfig(version=2))
    return model


def inner_bytes(tensor):
    "The bytes of a tensor, or of those that a tensor subclass is made of."
    if not hasattr(tensor, "__tensor_flatten__"): return tensor.nbytes
    return sum(inner_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def main():
    args = arguments(__doc__.splitlines()[0])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    peer = importlib.util.find_spec("torchao") is not None
    say_machine("torch", *["torchao"] * peer, threads=1)
    if not peer: print("torchao is not installed: skipped (pip install -r benchmarks/peers.txt)")
    print(f"torch._int_mm is {'right and quick' if int_mm_works('cpu') else 'not used'} here")
    for width, rows in SHAPES:
        torch.manual_seed(0)
        models = {"float32": nn.Sequential(*[nn.Linear(width, width) for _ in range(3)]).eval()}
        models["course_lib: QuantLinear"] = with_int8(models["float32"])
        if peer: models["torchao: dynamic int8"] = of_torchao(models["float32"])
        x = torch.randn(rows, width)
        with torch.inference_mode():
            answer = models["float32"](x)
            for name, model in models.items():
                assert (model(x) - answer).abs().max() < .03 * answer.abs().max(), name
            calls = {name: (lambda model=model: model(x)) for name, model in models.items()}
            seconds = take_turns(calls, 20 if args.quick else 200)
        times = {name: [1e3 * t for t in found] for name, found in seconds.items()}
        table(f"three layers of {width} units, {rows} row{'s' * (rows > 1)}", times, "ms")
        ms = {name: statistics.median(found) for name, found in times.items()}
        ours = ms["course_lib: QuantLinear"]
        ratio(f"int8_to_float_time_{width}_{rows}", ours / ms["float32"], "-")
        if peer: ratio(f"int8_to_torchao_time_{width}_{rows}", ours / ms["torchao: dynamic int8"], "<=1.3")
    print()
    ours = size_bytes(models["course_lib: QuantLinear"])
    ratio("int8_to_float_bytes", ours / size_bytes(models["float32"]), "<=0.27")
    if peer:
        theirs = sum(inner_bytes(tensor) for tensor in models["torchao: dynamic int8"].parameters())
        ratio("int8_to_torchao_bytes", ours / theirs, "-")


if __name__ == "__main__": main()
