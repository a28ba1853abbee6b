"""A discriminator that teaches the mini codec's decoder what averages sound like; discarded after.

It sees the log-mel spectra of the training's mel loss at several resolutions (the multi-resolution
spectrogram discriminator of UnivNet, Jang et al. 2021, on mel bands): the decoder shapes envelopes
of given pulses and noise, so envelopes are what it can be wrong in. Least-squares losses (Mao et
al. 2017) and feature matching (Larsen et al. 2016).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from llasa_core.codecs.mini_data import CodecTraining

Spectra = Sequence[torch.Tensor]  # log mel, (B, F, bands) of each resolution


class Judgement(NamedTuple):
    """Scores (near 1 where taken for a recording) and hidden features, of every resolution."""

    scores: list[torch.Tensor]
    features: list[torch.Tensor]

    def detach(self) -> "Judgement":
        return Judgement(*([each.detach() for each in part] for part in self))


class SpectrumJudge(nn.Module):
    """Convolutions that each halve the bands of a resolution: (B, F, bands) -> scores, features."""

    def __init__(self, channels: int):
        super().__init__()
        sizes = (1, channels, 2 * channels, 2 * channels)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (3, 5), stride=(1 + (a > 1), 2), padding=(1, 2)))
            for a, b in pairwise(sizes)
        )
        self.out = weight_norm(nn.Conv2d(sizes[-1], 1, 3, padding=1))

    def forward(self, spectrum: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        hidden, features = (spectrum.unsqueeze(1) + 4.0) / 4.0, []
        for layer in self.layers:
            hidden = nn.functional.leaky_relu(layer(hidden), 0.1)
            features.append(hidden)
        return self.out(hidden), features


class Discriminator(nn.Module):
    """One SpectrumJudge for each resolution."""

    def __init__(self, resolutions: int, channels: int):
        super().__init__()
        self.judges = nn.ModuleList(SpectrumJudge(channels) for _ in range(resolutions))

    def forward(self, spectra: Spectra) -> Judgement:
        judged = [judge(each) for judge, each in zip(self.judges, spectra, strict=True)]
        return Judgement(
            [scores for scores, _ in judged], [each for _, features in judged for each in features]
        )


def deception_loss(judged: Judgement) -> torch.Tensor:
    """Of the decoder, whose scores should be those of recordings: mean of (score - 1)^2."""
    return torch.stack([(1 - score).square().mean() for score in judged.scores]).mean()


def feature_loss(decoded: Judgement, recorded: Judgement) -> torch.Tensor:
    """Mean |difference| of the features, in units of their mean size on the recordings."""
    return torch.stack(
        [
            nn.functional.l1_loss(ours, theirs) / theirs.abs().mean().clamp(min=1e-5)
            for ours, theirs in zip(decoded.features, recorded.features, strict=True)
        ]
    ).mean()


def discriminator_loss(decoded: Judgement, recorded: Judgement) -> torch.Tensor:
    """Mean of (recorded - 1)^2 + decoded^2 over the scores."""
    errors = [score.square().mean() for score in decoded.scores]
    return torch.stack(errors).mean() + deception_loss(recorded)


class Adversary:
    """The discriminator and its optimizer, which learn in turn with the decoder."""

    def __init__(self, settings: CodecTraining, resolutions: int):
        self.settings = settings
        self.discriminator = Discriminator(resolutions, settings.discriminator_channels)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(),
            settings.discriminator_lr,
            betas=(0.5, 0.9),
            fused=True,
        )
        self.recorded = Judgement([], [])  # of the step that `decoder_loss` was asked for

    def decoder_loss(
        self, decoded: Spectra, recorded: Spectra
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is added to the decoder's loss, and the part of it that is `deception_loss`."""
        self.recorded = self.discriminator(recorded)
        self.discriminator.requires_grad_(False)
        judged = self.discriminator(decoded)
        self.discriminator.requires_grad_(True)
        deception = deception_loss(judged)
        features = feature_loss(judged, self.recorded.detach())
        settings = self.settings
        return (
            settings.adversarial_weight * deception + settings.feature_weight * features,
            deception,
        )

    def learn(self, decoded: Spectra, learning_rate: float) -> float:
        """One step of the discriminator on the spectra of the same step; returns its loss."""
        judged = self.discriminator([each.detach() for each in decoded])
        loss = discriminator_loss(judged, self.recorded)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
            nn.utils.clip_grad_norm_(group["params"], self.settings.clip)
        self.optimizer.step()
        self.recorded = Judgement([], [])
        return loss.item()

    def state_dict(self) -> dict:
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
