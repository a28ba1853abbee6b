"""Linear layers with weights in oneDNN's own layout, for as long as a loop generates on a CPU.

A step of generation multiplies a few rows by every weight, and reading weights as they lie is most
of it: packed once, 16 rows are multiplied up to 2.6 times as fast. The copies take the memory of
the layers a second time. Sums round differently in the last digits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

FEWEST = 4  # rows a step, below which packing gains nothing

Product = Callable[[torch.Tensor], torch.Tensor]


def product(weight: torch.Tensor, rows: int, bias: torch.Tensor | None = None) -> Product:
    """The function (..., in) -> (..., out) of a weight (out, in), packed where that gains."""
    ready = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if rows < FEWEST or not ready or weight.dtype not in (torch.float32, torch.bfloat16):
        return lambda states: torch.nn.functional.linear(states, weight, bias)
    # What torch.compile calls after freezing; there is no public name for it
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda states: multiply(states, packed, bias, "none", [], "")


@contextmanager
def packed_layers(model: torch.nn.Module, rows: int) -> Iterator[None]:
    """The linear layers of `model` packed for about so many rows a step, and afterwards as they
    were.
    """
    layers = [layer for layer in model.modules() if type(layer) is torch.nn.Linear]
    for layer in layers:
        bias = None if layer.bias is None else layer.bias.detach()
        layer.forward = product(layer.weight, rows, bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
