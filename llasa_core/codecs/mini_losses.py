"""The losses of the mini codec's training, and the two heads that are thrown away after it."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from llasa_core.codecs.harmonic import source_waves, track_pitch
from llasa_core.codecs.mini import LogMel, MiniCodecModel
from llasa_core.codecs.mini_data import Batch, CodecTraining

# window, hop, mel bands; the last two tell harmonics from noise between them
MEL_SCALES = ((256, 64, 40), (512, 128, 80), (1024, 256, 200), (2048, 512, 320))

MEL_FLOOR = 1e-4  # -80 dB of the loudest: below it is silence and does not count


class LabelHead(nn.Module):
    """Two convolutions, latents -> log-probabilities of blank and symbols: (B, F, C) -> (F, B, 1 +
    symbols).
    """

    def __init__(self, channels: int, width: int, symbols: int):
        super().__init__()
        self.first = nn.Conv1d(channels, width, kernel_size=5, padding=2)
        self.second = nn.Conv1d(width, width, kernel_size=5, padding=2)
        self.out = nn.Linear(width, symbols + 1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.first(latents.transpose(1, 2)))
        hidden = nn.functional.gelu(self.second(hidden)).transpose(1, 2)
        return self.out(hidden).log_softmax(-1).transpose(0, 1)


class FramePredictor(nn.Module):
    """Predicts the levels of every frame from the seven before it: (B, F, D) -> (B, F, D)."""

    def __init__(self, dimensions: int, width: int):
        super().__init__()
        self.first = nn.Conv1d(dimensions, width, kernel_size=7)
        self.out = nn.Linear(width, dimensions)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        past = nn.functional.pad(values.transpose(1, 2), (7, -1))
        return self.out(nn.functional.gelu(self.first(past)).transpose(1, 2))


class MelLoss(nn.Module):
    """Mean |difference| of log-mel spectra, averaged over the scales: (B, T), (B, T) -> scalar."""

    def __init__(self):
        super().__init__()
        self.scales = nn.ModuleList(
            LogMel(window, hop, bands, MEL_FLOOR) for window, hop, bands in MEL_SCALES
        )

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.between(self.spectra(output), self.spectra(target))

    def spectra(self, wave: torch.Tensor) -> list[torch.Tensor]:
        """The log-mel spectrum (B, F, bands) of each scale."""
        return [scale(wave) for scale in self.scales]

    def between(self, output: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
        """The loss of two waves' spectra."""
        pairs = zip(output, target, strict=True)
        return torch.stack([nn.functional.l1_loss(ours, theirs) for ours, theirs in pairs]).mean()


def spread_loss(projected: torch.Tensor) -> torch.Tensor:
    """Distance of each quantizer dimension from the spread that fills its four levels: (B, F, D) ->
    scalar.

    X-codec2 bounds twice; after that the thresholds between the four levels lie at -0.81, -0.24 and
    0.41 of the projection. Without this term dimensions saturate on one level in the first hundred
    steps and stay there.
    """
    rows = projected.flatten(0, 1)
    mean, deviation = rows.mean(0), rows.std(0)
    too_narrow, too_wide = (0.8 - deviation).clamp(min=0), (deviation - 1.4).clamp(min=0)
    return ((mean + 0.24).square() + too_narrow.square() + too_wide.square()).mean()


class StepLosses(NamedTuple):
    """Losses of one step, mel, CTC per label, the weighted rest; the codes (B, F), and the spectra
    that the mel loss compares.
    """

    mel: torch.Tensor
    ctc: torch.Tensor
    side: torch.Tensor
    codes: torch.Tensor
    decoded: list[torch.Tensor]
    recorded: list[torch.Tensor]


def step_losses(
    model: MiniCodecModel,
    head: LabelHead,
    predictor: FramePredictor,
    mel_loss: MelLoss,
    batch: Batch,
    settings: CodecTraining,
    step: int,
) -> StepLosses:
    """Mel loss on decoded crops; CTC, spread, predictability and pitch on whole utterances."""
    frames, labels, hop = batch.frames, batch.labels, settings.model.hop
    hidden = model.analyse(batch.heard)
    projected = model.quantizer.project_in(hidden)
    values, codes = model.quantizer.quantizer(model.quantizer.quantizer.bound(projected))
    latents = model.quantizer.project_out(values)
    rng = np.random.default_rng([settings.seed, step, 1])
    starts = [int(rng.integers(int(count) - settings.crop_frames + 1)) for count in frames]
    span = settings.crop_frames
    crops = torch.stack(
        [row[start : start + span] for row, start in zip(latents, starts, strict=True)]
    )
    target = torch.stack(
        [row[s * hop : (s + span) * hop] for row, s in zip(batch.target, starts, strict=True)]
    )
    fade = max(0.0, 1 - step / settings.spread_steps)
    # At the level of the recording: voicing asks for some loudness.
    pitch, voiced = track_pitch(batch.target / batch.gains, hop)
    side = (
        settings.spread_weight * fade * spread_loss(projected)
        + settings.predict_weight * (predictor(values) - values).square().mean()
        + settings.pitch_weight * model.pitch.loss(latents, pitch, voiced)
    )
    crop = [slice(start, start + span) for start in starts]
    pitch, voiced = (
        torch.stack([row[c] for row, c in zip(x, crop, strict=True)]) for x in (pitch, voiced)
    )
    source = source_waves(pitch, voiced, hop, torch.Generator().manual_seed(step))
    spectra = mel_loss.spectra(model.synthesize(crops, source)), mel_loss.spectra(target)
    mel = mel_loss.between(*spectra)
    kept = [
        i for i, label in enumerate(labels) if label and _fewest_frames(label) <= int(frames[i])
    ]
    if not kept or not settings.ctc_weight or step >= settings.steps:
        return StepLosses(mel, mel.new_zeros(()), side, codes, *spectra)
    sizes = torch.tensor([len(labels[i]) for i in kept])
    flat = torch.tensor([symbol for i in kept for symbol in labels[i]])
    ctc = nn.functional.ctc_loss(
        head(latents[kept]), flat, frames[kept], sizes, reduction="sum", zero_infinity=True
    )
    return StepLosses(mel, ctc / sizes.sum(), side, codes, *spectra)


def _fewest_frames(label: list[int]) -> int:
    """Frames that CTC needs: one per label, plus a blank between two equal ones."""
    return len(label) + sum(first == second for first, second in pairwise(label))
