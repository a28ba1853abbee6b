"""A harmonic source for the mini codec's ISTFT head: pitch from the latents, phases from a pulse train at that pitch.

A mel front carries no phase, and at one frame in 20 ms the head cannot guess phases that run on from frame to frame:
it draws a pulse a frame and the pitch is lost. Here the phases of every frame start from those of a source wave, pulses
where speech is voiced and noise elsewhere, and the head adds its own (a source-filter vocoder as in NSF, Wang et al.
2019, and HiFTNet, Li et al. 2023, in the STFT domain).
"""

import math

import torch
from torch import nn
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2ISTFTHead

SAMPLE_RATE = 16_000
PITCH_RANGE = (65.0, 420.0)  # Hz
TRACK_WINDOW = 1024  # samples of an autocorrelation frame
TRACK_BAND = 1200.0  # Hz, the highest that is listened to
CENTRE = 180.0  # Hz, where the pitch head starts


def track_pitch(wave: torch.Tensor, hop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Wave (B, F * hop) -> pitch in Hz and whether the frame is voiced, both (B, F), by normalised autocorrelation."""
    side = (TRACK_WINDOW - hop) // 2
    frames = nn.functional.pad(wave, (side, TRACK_WINDOW - hop - side)).unfold(1, TRACK_WINDOW, hop)
    window = torch.hann_window(TRACK_WINDOW, device=wave.device)

    def autocorrelation(signal: torch.Tensor) -> torch.Tensor:
        power = torch.fft.rfft(signal, 2 * TRACK_WINDOW).abs().square()
        power[..., int(TRACK_BAND / SAMPLE_RATE * 2 * TRACK_WINDOW) :] = 0  # sharp pulses fall between whole lags
        return torch.fft.irfft(power)[..., :TRACK_WINDOW]

    raw, shape = autocorrelation((frames - frames.mean(-1, keepdim=True)) * window), autocorrelation(window)
    normal = raw / (raw[..., :1] + 1e-8) / (shape / shape[0])
    first, last = int(SAMPLE_RATE / PITCH_RANGE[1]), int(SAMPLE_RATE / PITCH_RANGE[0])
    lags = torch.arange(first, last, device=wave.device)
    peak, place = (normal[..., first:last] - 6e-4 * (lags - first)).max(-1)  # of octaves the shorter lag wins
    return SAMPLE_RATE / (place + first).float(), (peak > 0.5) & (raw[..., 0] > 1e-2)


def source_wave(
    pitch: torch.Tensor, voiced: torch.Tensor, hop: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Pitch (Hz) and voicing (B, F) -> band-limited pulses where voiced, white noise elsewhere: (B, F * hop).

    The rows of a batch share one noise, so that a batch of n equals n batches of one under the same generator seed.
    """
    pitch = nn.functional.interpolate(pitch[:, None], scale_factor=hop, mode="linear", align_corners=False)[:, 0]
    gate = voiced.float().repeat_interleave(hop, 1)
    half = math.pi * torch.cumsum((pitch / SAMPLE_RATE).double(), 1).remainder(1.0).float()
    harmonics = torch.floor(SAMPLE_RATE / 2 / pitch).clamp(min=1)
    sine = torch.sin(half)
    at_pulse = sine.abs() < 1e-4
    # sum of cos(2 k half), k = 1 .. harmonics, in closed form
    pulses = (torch.sin((2 * harmonics + 1) * half) / torch.where(at_pulse, 1.0, sine) - 1) / 2
    pulses = torch.where(at_pulse, harmonics, pulses) * torch.sqrt(2 / harmonics) / 2
    noise = torch.randn(1, pitch.shape[1], generator=generator).to(pitch.device)
    return gate * (pulses + 0.05 * noise) + (1 - gate) * noise


class PitchHead(nn.Module):
    """Log pitch (of Hz) and voicing logit of every frame, from quantized latents: (B, F, C) -> (B, F), (B, F)."""

    def __init__(self, channels: int, width: int = 128):
        super().__init__()
        self.first = nn.Conv1d(channels, width, kernel_size=5, padding=2)
        self.second = nn.Conv1d(width, 2, kernel_size=5, padding=2)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.second(nn.functional.gelu(self.first(latents.transpose(1, 2))))
        return out[:, 0] + math.log(CENTRE), out[:, 1]

    def loss(self, latents: torch.Tensor, pitch: torch.Tensor, voiced: torch.Tensor) -> torch.Tensor:
        """Mean absolute error of log pitch over voiced frames (times 4) and cross-entropy of voicing."""
        log_pitch, logit = self(latents)
        error = ((log_pitch - pitch.log()).abs() * voiced).sum() / voiced.sum().clamp(min=1)
        return 4 * error + nn.functional.binary_cross_entropy_with_logits(logit, voiced.float())


class SourcedISTFTHead(Xcodec2ISTFTHead):
    """X-codec2's ISTFT head with phases relative to those of `self.source` (B, F * hop), set before each call."""

    source: torch.Tensor

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        side = (self.n_fft - self.hop_length) // 2
        padded = nn.functional.pad(self.source, (side, side))
        spectrum = torch.stft(
            padded, self.n_fft, self.hop_length, window=self.window, center=False, return_complex=True
        ).transpose(1, 2)
        magnitude, phase = self.linear(hidden_states).float().chunk(2, dim=-1)
        spectrum = torch.polar(magnitude.exp().clamp(max=1e2), phase + spectrum.angle())
        frames = torch.fft.irfft(spectrum, self.n_fft, dim=-1).transpose(1, 2) * self.window[None, :, None]
        return (self._overlap(frames) / self._overlap(self._envelope(frames)).clamp(min=1e-11)).unsqueeze(1)

    def _envelope(self, frames: torch.Tensor) -> torch.Tensor:
        return self.window.square()[None, :, None].expand(1, -1, frames.shape[2])

    def _overlap(self, frames: torch.Tensor) -> torch.Tensor:  # (B, n_fft, F) -> (B, F * hop)
        size = (1, (frames.shape[2] - 1) * self.hop_length + self.n_fft)
        whole = nn.functional.fold(frames, size, (1, self.n_fft), stride=(1, self.hop_length))[:, 0, 0]
        return whole[:, self.padding : -self.padding]
