"""ECAPA-TDNN (arXiv 2005.07143) over a weighted sum of an encoder's layers: the head of the speaker
model of Seed-TTS-Eval.

Each convolution is followed by ReLU, then batch normalisation. The names of modules are those in
the published weights, so that a state dictionary is loaded strictly.
"""

import torch
from torch import nn
from torch.nn import functional as F

SCALE, BOTTLENECK = 8, 128  # groups of a Res2 convolution; channels of the two gates


class ConvReluNorm(nn.Module):
    """(B, C, F) -> (B, D, F)."""

    def __init__(self, inner: int, outer: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inner, outer, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm1d(outer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(F.relu(self.conv(x)))


class Res2Conv(nn.Module):
    """Convolutions of groups of channels, each of which hears the one before; the last group goes
    through.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        width = channels // SCALE
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
            for _ in range(SCALE - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(SCALE - 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *groups, last = x.chunk(SCALE, dim=1)
        heard, before = [], 0
        for group, conv, norm in zip(groups, self.convs, self.bns, strict=True):
            before = norm(F.relu(conv(group + before)))
            heard.append(before)
        return torch.cat([*heard, last], dim=1)


class Gate(nn.Module):
    """Squeeze and excitation: each channel weighted by what all of them say on average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, BOTTLENECK)
        self.linear2 = nn.Linear(BOTTLENECK, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.sigmoid(self.linear2(F.relu(self.linear1(x.mean(dim=2)))))
        return x * weight[:, :, None]


class Block(nn.Module):
    """One SE-Res2 block with its residual."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.Conv1dReluBn1 = ConvReluNorm(channels, channels)
        self.Res2Conv1dReluBn = Res2Conv(channels, dilation)
        self.Conv1dReluBn2 = ConvReluNorm(channels, channels)
        self.SE_Connect = Gate(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.Conv1dReluBn2(self.Res2Conv1dReluBn(self.Conv1dReluBn1(x)))
        return x + self.SE_Connect(inner)


class AttentivePool(nn.Module):
    """(B, C, F) -> (B, 2 C): mean and standard deviation over frames, by attention a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Conv1d(channels, BOTTLENECK, 1)
        self.linear2 = nn.Conv1d(BOTTLENECK, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.softmax(self.linear2(torch.tanh(self.linear1(x))), dim=2)
        mean = (weight * x).sum(dim=2)
        variance = (weight * x**2).sum(dim=2) - mean**2
        return torch.cat([mean, variance.clamp(min=1e-9).sqrt()], dim=1)


class Ecapa(nn.Module):
    """Hidden states (L, B, F, W) of an encoder -> embeddings (B, D), not normalised."""

    def __init__(
        self, states: int, width: int, channels: int, pooled: int, dimensions: int
    ) -> None:
        super().__init__()
        self.feature_weight = nn.Parameter(torch.zeros(states))
        self.instance_norm = nn.InstanceNorm1d(width)
        self.layer1 = ConvReluNorm(width, channels, 5)
        self.layer2, self.layer3, self.layer4 = (Block(channels, d) for d in (2, 3, 4))
        self.conv = nn.Conv1d(3 * channels, pooled, 1)
        self.pooling = AttentivePool(pooled)
        self.bn = nn.BatchNorm1d(2 * pooled)
        self.linear = nn.Linear(2 * pooled, dimensions)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.feature_weight, dim=0)
        x = torch.einsum("l,lbfw->bwf", weights, states) + 1e-6
        second = self.layer2(self.layer1(self.instance_norm(x)))
        third = self.layer3(second)
        joined = torch.cat([second, third, self.layer4(third)], dim=1)
        return self.linear(self.bn(self.pooling(F.relu(self.conv(joined)))))
