"""The head of the mini codec's decoder: a harmonic-plus-noise synthesiser with the pitch of the
latents.

Mel features carry no phase, and at one frame per 20 ms an ISTFT head cannot keep phases continuous
from frame to frame: it makes one pulse per frame and loses the pitch. Here the decoder predicts two
smooth filters, one for pulses at the pitch and one for noise (DDSP, Engel et al. 2020; Neural
Homomorphic Vocoder, Liu et al. 2020), so harmonics come out right.
"""

import math

import torch
from torch import nn

SAMPLE_RATE = 16_000

PITCH_RANGE = (65.0, 420.0)  # Hz

TRACK_WINDOW = 1024  # samples of an autocorrelation frame

TRACK_BAND = 1200.0  # Hz, upper limit of the autocorrelation

LAGS = (SAMPLE_RATE / PITCH_RANGE[1], SAMPLE_RATE / PITCH_RANGE[0])  # samples

# Lags of the search
GRID = sorted({round(LAGS[0] * (LAGS[1] / LAGS[0]) ** (i / 95)) for i in range(96)})

JUMP = 2.0  # of the correlation, for an octave between two frames

OCTAVE_BONUS = 0.02  # of the correlation, an octave

VOICED = 0.45  # of the correlation

CENTRE = 180.0  # Hz, where the pitch head starts


def track_pitch(wave: torch.Tensor, hop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Wave (B, F * hop) -> pitch in Hz and voicing, both (B, F), by normalised autocorrelation."""
    side = (TRACK_WINDOW - hop) // 2
    frames = nn.functional.pad(wave, (side, TRACK_WINDOW - hop - side)).unfold(1, TRACK_WINDOW, hop)
    window = torch.hann_window(TRACK_WINDOW, device=wave.device)

    def autocorrelation(signal: torch.Tensor) -> torch.Tensor:
        power = torch.fft.rfft(signal, 2 * TRACK_WINDOW).abs().square()
        # Without high frequencies: sharp pulses fall between whole lags.
        power[..., int(TRACK_BAND / SAMPLE_RATE * 2 * TRACK_WINDOW) :] = 0
        return torch.fft.irfft(power)[..., :TRACK_WINDOW]

    raw, shape = (
        autocorrelation((frames - frames.mean(-1, keepdim=True)) * window),
        autocorrelation(window),
    )
    normal = raw / (raw[..., :1] + 1e-8) / (shape / shape[0])
    path = smooth_path(normal[..., GRID], GRID)  # (B, F) places on the grid
    near = torch.tensor(GRID, device=wave.device)[path].unsqueeze(-1) + torch.arange(
        -4, 5, device=wave.device
    )
    place = near.gather(-1, normal.gather(-1, near).argmax(-1, keepdim=True))
    before, peak, after = (normal.gather(-1, place + shift)[..., 0] for shift in (-1, 0, 1))
    bend = (before - 2 * peak + after).clamp(max=-1e-6)
    lag = place[..., 0] + ((before - after) / (2 * bend)).clamp(-0.5, 0.5)
    return (SAMPLE_RATE / lag).clamp(*PITCH_RANGE), (peak > VOICED) & (raw[..., 0] > 1e-2)


def smooth_path(scores: torch.Tensor, lags: list[int]) -> torch.Tensor:
    """Scores (B, F, N) of N lags -> the path (B, F) with the best total score, with a penalty of
    JUMP per octave of change.

    The Viterbi search of Boersma (1993); without it a tracker jumps between octaves from frame to
    frame.
    """
    octaves = torch.tensor(lags, device=scores.device).float().log2()
    jumps = JUMP * (octaves[:, None] - octaves[None]).abs()
    scores = scores - OCTAVE_BONUS * (octaves - octaves[0])  # among octaves prefer the shorter lag
    best, back = scores[:, 0], []
    for frame in range(1, scores.shape[1]):
        # (B, N) over where each lag is reached from
        reached, origin = (best[:, None] - jumps).max(-1)
        back.append(origin)
        best = reached + scores[:, frame]
    place = best.argmax(-1)
    path = [place]
    for origin in reversed(back):
        place = origin.gather(1, place[:, None])[:, 0]
        path.append(place)
    return torch.stack(path[::-1], 1)


def source_waves(
    pitch: torch.Tensor, voiced: torch.Tensor, hop: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Pitch (Hz) and voicing (B, F) -> band-limited pulses where voiced, and white noise: (B, 2, F
    * hop).

    The rows of a batch share one noise, so that a batch of n equals n batches of one under the same
    generator seed.
    """
    pitch, gate = (
        nn.functional.interpolate(
            track[:, None], scale_factor=hop, mode="linear", align_corners=False
        )[:, 0]
        for track in (pitch, voiced.float())
    )
    half = math.pi * torch.cumsum((pitch / SAMPLE_RATE).double(), 1).remainder(1.0).float()
    harmonics = torch.floor(SAMPLE_RATE / 2 / pitch).clamp(min=1)
    sine = torch.sin(half)
    at_pulse = sine.abs() < 1e-4
    # sum of cos(2 k half), k = 1 .. harmonics, in closed form
    pulses = (torch.sin((2 * harmonics + 1) * half) / torch.where(at_pulse, 1.0, sine) - 1) / 2
    pulses = torch.where(at_pulse, harmonics, pulses) * torch.sqrt(2 / harmonics)
    noise = torch.randn(1, pitch.shape[1], generator=generator).to(pitch.device)
    return torch.stack([gate * pulses, noise.expand_as(pulses)], 1)


class PitchHead(nn.Module):
    """Quantized latents (B, F, C) -> log pitch (of Hz) and voicing logit of each frame, (B, F)."""

    def __init__(self, channels: int, width: int = 128):
        super().__init__()
        self.first = nn.Conv1d(channels, width, kernel_size=5, padding=2)
        self.second = nn.Conv1d(width, 2, kernel_size=5, padding=2)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.second(nn.functional.gelu(self.first(latents.transpose(1, 2))))
        return out[:, 0] + math.log(CENTRE), out[:, 1]

    def loss(
        self, latents: torch.Tensor, pitch: torch.Tensor, voiced: torch.Tensor
    ) -> torch.Tensor:
        """4 * mean |log pitch error| over voiced frames + cross-entropy of voicing."""
        log_pitch, logit = self(latents)
        error = ((log_pitch - pitch.log()).abs() * voiced).sum() / voiced.sum().clamp(min=1)
        return 4 * error + nn.functional.binary_cross_entropy_with_logits(logit, voiced.float())


class HarmonicNoiseHead(nn.Module):
    """Two filters a half frame, one on pulses and one on noise: hidden states (B, F, C) -> wave (B,
    1, F * hop).

    The filters apply to the short-time spectrum of `self.source` (B, 2, F * hop), which is set
    before each call. That of the pulses has minimum phase, as a vocal tract has: with none, pulses
    are symmetrical and sound of a buzzer.
    """

    source: torch.Tensor
    parts = 2  # half frames of 10 ms: a burst does not smear over 80 ms
    knots = 64  # of a filter, spread as mel bands are; the log gain between them is linear
    start = -3.0  # log gain before training, near the level of speech

    def __init__(self, channels: int, hop: int):
        super().__init__()
        self.hop = hop // self.parts
        self.n_fft = 4 * self.hop
        self.bins = self.n_fft // 2 + 1
        self.linear = nn.Linear(channels, self.parts * 2 * self.knots)
        self.register_buffer("basis", _between_knots(self.knots, self.bins), persistent=False)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows, frames, _ = hidden_states.shape
        gains = self.linear(hidden_states).float().view(rows, frames * self.parts, 2, self.knots)
        gains = (gains @ self.basis + self.start).clamp(max=5.0)
        filters = torch.stack([minimum_phase(gains[:, :, 0]), gains[:, :, 1].exp() + 0j], 2)
        side = (self.n_fft - self.hop) // 2
        # (B, 2, P * F, n_fft)
        padded = nn.functional.pad(self.source, (side, side)).unfold(2, self.n_fft, self.hop)
        spectra = torch.fft.rfft(padded * self.window).transpose(1, 2)
        spectrum = (spectra * filters).sum(2)  # (B, P * F, bins)
        windowed = (torch.fft.irfft(spectrum, self.n_fft) * self.window).transpose(1, 2)
        envelope = self.window.square()[None, :, None].expand(1, -1, windowed.shape[2])
        return (self._overlap(windowed) / self._overlap(envelope).clamp(min=1e-11)).unsqueeze(1)

    def _overlap(self, windowed: torch.Tensor) -> torch.Tensor:  # (B, n_fft, P * F) -> (B, F * hop)
        size = (1, (windowed.shape[2] - 1) * self.hop + self.n_fft)
        whole = nn.functional.fold(windowed, size, (1, self.n_fft), stride=(1, self.hop))[:, 0, 0]
        side = (self.n_fft - self.hop) // 2
        return whole[:, side:-side]


def minimum_phase(log_gains: torch.Tensor) -> torch.Tensor:
    """Natural-log gains (..., bins) of 0 .. SAMPLE_RATE / 2 -> the causal filter that has them, by
    its folded cepstrum (Oppenheim and Schafer 1989), complex of the same shape.
    """
    size = 2 * (log_gains.shape[-1] - 1)
    fold = torch.full((size,), 2.0, device=log_gains.device)
    fold[[0, size // 2]] = 1.0
    fold[size // 2 + 1 :] = 0.0
    return torch.fft.rfft(torch.fft.irfft(log_gains + 0j) * fold).exp()


def _between_knots(knots: int, bins: int) -> torch.Tensor:
    """Interpolation weights (knots, bins) from mel-spaced knots to bins of 0 .. SAMPLE_RATE / 2."""
    mel = torch.log1p(torch.linspace(0, SAMPLE_RATE / 2, bins) / 700)
    place = mel / mel[-1] * (knots - 1)
    return (1 - (place - torch.arange(knots)[:, None]).abs()).clamp(min=0)
