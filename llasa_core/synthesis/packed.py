"""Linear layers with weights in oneDNN's own layout, for as long as a loop generates on a CPU.

A step of generation multiplies a few rows by every weight, and reading weights as they lie is most
of it: packed once, 16 rows are multiplied up to 2.6 times as fast. The copies take the memory of
the layers a second time. Sums round differently in the last digits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

FEWEST = 4  # rows a step, below which packing gains nothing


class Packed:
    """The function (..., in) -> (..., out) of a weight (out, in), packed for about `rows` rows."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int):
        # What torch.compile calls after freezing; there is no public name for it
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")


def product(weight: torch.Tensor, rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """As `Packed` without a bias, where that gains; else with the weight as it lies."""
    if gains(weight, rows):
        return Packed(weight, None, rows)
    return lambda states: torch.nn.functional.linear(states, weight)


def gains(weight: torch.Tensor, rows: int) -> bool:
    """Whether packing makes the products of `rows` rows with a weight faster."""
    here = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return here and rows >= FEWEST and weight.dtype in (torch.float32, torch.bfloat16)


@contextmanager
def packed_layers(model: torch.nn.Module, rows: int) -> Iterator[None]:
    """The linear layers of `model` packed for about so many rows a step, and afterwards as they
    were. Layers whose `forward` is replaced already, by another loop or a library, are left alone.
    """
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is torch.nn.Linear
        and "forward" not in vars(layer)
        and gains(layer.weight, rows)
    ]
    for layer in layers:
        layer.forward = Packed(layer.weight, layer.bias, rows)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def as_they_lie(model: torch.nn.Module) -> Iterator[None]:
    """Inside `packed_layers`: the layers of `model` as they are without it."""
    layers = [one for one in model.modules() if isinstance(vars(one).get("forward"), Packed)]
    held = [vars(layer).pop("forward") for layer in layers]
    try:
        yield
    finally:
        for layer, forward in zip(layers, held, strict=True):
            layer.forward = forward
