"""X-codec2's anti-aliased snake on a CPU: bit for bit what the model computes, in a third of the time.

The model writes the doubled rate out in full between three convolutions, for which torch has no fast kernel. Here both
phases are sums of shifted blocks that stay in the processor's cache, in the order in which the convolutions add.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2AntiAliasedActivation1d

BLOCK = 2**17  # samples worked on together
TAPS = 12
EDGE = 8  # samples of padding on each side, more than any tap reaches


def install(model: nn.Module) -> None:
    """Let every anti-aliased snake of a model run fast where it can: float32 on a CPU, without gradient or autocast."""
    for module in _snakes(model):
        module.forward = functools.partial(_forward, module)


def remove(model: nn.Module) -> None:
    """The model's own computation again."""
    for module in _snakes(model):
        module.__dict__.pop("forward", None)


def _snakes(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if isinstance(module, Xcodec2AntiAliasedActivation1d)
        and (module.upsample.stride, module.downsample.stride) == (2, 2)
        and module.upsample.filter.numel() == module.downsample.filter.numel() == TAPS
    ]


def _forward(module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    plain = hidden.dtype == torch.float32 and hidden.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if not plain or (torch.is_grad_enabled() and not torch.is_inference_mode_enabled()):
        return type(module).forward(module, hidden)
    return antialiased_snake(module, hidden)


def antialiased_snake(module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """(B, C, T) -> (B, C, T): up to twice the rate, x + sin(a x)^2 / b for each channel, and down again."""
    up = (module.upsample.filter.flatten() * 2).tolist()
    down = module.downsample.filter.flatten().tolist()
    alpha = torch.exp(module.act.alpha)[:, None]
    scale = (1.0 / (torch.exp(module.act.beta) + module.act.no_div_by_zero))[:, None]
    channels, length = hidden.shape[1:]
    step = max(1, BLOCK // (length + 2 * EDGE))
    result = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    for batch, out in zip(hidden, result, strict=True):
        for first in range(0, channels, step):
            block = slice(first, first + step)
            padded = F.pad(batch[block], (EDGE, EDGE), mode="replicate")
            phases = [_phase(padded, up, phase, length) for phase in (0, 1)]
            for phase in phases:
                wave = (phase * alpha[block]).sin_()
                phase.add_(wave.mul_(wave).mul_(scale[block]))
            _down(phases, down, out[block])
    return result


def _phase(padded: torch.Tensor, taps: list[float], phase: int, length: int) -> torch.Tensor:
    """Samples 2 t + phase of the doubled rate, t = 0 .. length - 1."""
    total = None
    for tap in range(TAPS):
        place = phase + 15 - tap  # of the transposed convolution over 5 samples of padding, cut by 15
        if place % 2 == 0:
            shifted = padded[:, place // 2 - 5 + EDGE :][:, :length]
            total = shifted * taps[tap] if total is None else total.add_(shifted, alpha=taps[tap])
    return total


def _down(phases: list[torch.Tensor], taps: list[float], out: torch.Tensor) -> None:
    """Every second sample of the filtered doubled rate, written to `out` (C, T)."""
    padded = [F.pad(phase, (3, 3)) for phase in phases]
    for phase in padded:  # the ends of the doubled rate are repeated, whichever phase they belong to
        phase[:, :3], phase[:, -3:] = phases[0][:, :1], phases[1][:, -1:]
    for tap in range(TAPS):
        phase, shift = (tap - 5) % 2, (tap - 5) // 2
        shifted = padded[phase][:, shift + 3 :][:, : out.shape[1]]
        if tap:
            out.add_(shifted, alpha=taps[tap])
        else:
            torch.mul(shifted, taps[tap], out=out)
