"""X-codec2, the codec of the released Llasa checkpoints, on transformers' native model: 65,536
codes, 50 codes/s.

Features come from SeamlessM4TFeatureExtractor, which needs no torchaudio. The model makes one code
more than the published data keeps (floor(T / 320)). Neither its acoustic encoder nor its decoder
has a mask, so padding changes codes and waves: only utterances with equally many codes share a
batch, each padded as if alone.

Also here: the anti-aliased snake activation for CPUs, bit for bit the model's own in a third of the
time (both phases of the doubled rate are sums of shifted blocks that stay in cache, added in the
order of the convolutions), and `Bf16Codec`, which encodes in bfloat16 to save GPU time; it changes
some codes and is off by default.
"""

import functools
import hashlib
import math
import re
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import SeamlessM4TFeatureExtractor, Xcodec2Model
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2AntiAliasedActivation1d

from llasa_core.checkpoint import load_strictly
from llasa_core.codecs.interface import Codec
from llasa_core.device import choose_device
from llasa_core.errors import InputError
from llasa_core.files import read_object, sha256

CHECKPOINT = "HKUSTAudio/xcodec2-hf"

HOP = 320  # samples per code, and two steps of the features

BLOCK = 2**17  # samples of the snake worked on together

TAPS = 12  # of its filters

EDGE = 8  # samples of padding on each side, more than any tap reaches


class Xcodec2Codec(Codec):
    """The Codec seam over a transformers Xcodec2Model, with the model's precision and device.

    batch_seconds: how much audio of equal length may share a batch; 0 runs each utterance alone (on
    a CPU batching gains nothing). A batch is exact up to the rounding of sums, which may flip a
    code whose value lies on a boundary.
    """

    name = "xcodec2"
    _checkpoint: str | None = None  # what the weights were loaded from

    def __init__(self, model: Xcodec2Model, batch_seconds: float = 0.0):
        if model.config.hop_length != HOP:
            raise InputError(f"xcodec2: a hop of {model.config.hop_length} samples, expected {HOP}")
        self.model = model.eval()
        install_fast_snake(self.model)
        self.sample_rate = model.config.sampling_rate
        self.frame_rate = self.sample_rate / HOP
        self.codebook_size = math.prod(model.config.quantization_levels)
        self.batch_seconds = batch_seconds
        self.front = Features()

    @classmethod
    def load(cls, name: str, device: str | None = None) -> "Xcodec2Codec":
        """The released checkpoint "xcodec2", or one in a folder or of a hub id."""
        return cls.from_pretrained(CHECKPOINT if name == "xcodec2" else name, device=device)

    @classmethod
    def weights_of(cls, name: str) -> dict[str, str]:
        """Of the weights' file, which is not loaded."""
        found = checkpoint_fingerprint(CHECKPOINT if name == "xcodec2" else name)
        return {"codec_fingerprint": found} if found else {}

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = CHECKPOINT,
        device: str | None = None,
        dtype: torch.dtype = torch.float32,
        batch_seconds: float = 0.0,
    ) -> "Xcodec2Codec":
        """The released checkpoint, or a folder or hub id in transformers' format (safetensors
        only).

        float32 gives the published codes; bfloat16 changes some. InputError if it is not available
        or is another model.
        """
        model = load_strictly(Xcodec2Model, str(name_or_path), dtype=dtype)
        codec = cls(model.to(choose_device(device)), batch_seconds)
        codec._checkpoint = str(name_or_path)
        return codec

    @cached_property
    def fingerprint(self) -> str | None:
        """`checkpoint_fingerprint` of the loaded checkpoint; None for a model passed in memory."""
        return None if self._checkpoint is None else checkpoint_fingerprint(self._checkpoint)

    def encode(
        self, waves: list[np.ndarray], features: list[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """float32 (T,) at 16 kHz each -> int32 (floor(T / 320),) each; `features`: the output of
        `front` for each wave.
        """
        codes: list[np.ndarray] = [np.zeros(0, np.int32)] * len(waves)
        for group in self._groups([len(wave) // HOP for wave in waves]):
            found = [
                self.front(waves[index]) if features is None else features[index] for index in group
            ]
            batch = self._encode(
                np.stack([_padded(waves[index]) for index in group]), np.stack(found)
            )
            for index, row in zip(group, batch, strict=True):
                codes[index] = row[: len(waves[index]) // HOP]
        return codes

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Codes (F,) -> float32 (F * 320,) each. InputError outside the codebook."""
        for row in codes:
            if len(row) and not 0 <= np.min(row) <= np.max(row) < self.codebook_size:
                found = f"codes {np.min(row)}..{np.max(row)}"
                raise InputError(f"{found}: xcodec2 has codes 0..{self.codebook_size - 1}")
        waves: list[np.ndarray] = [np.zeros(0, np.float32)] * len(codes)
        for group in self._groups([len(row) for row in codes]):
            # (B, 1, F)
            batch = np.stack([np.asarray(codes[index], np.int64) for index in group])[:, None]
            with torch.inference_mode():
                audio = self.model.decode(
                    torch.from_numpy(batch).to(self.model.device)
                ).audio_values
            for index, wave in zip(group, audio.float().cpu().numpy()[:, 0], strict=True):
                waves[index] = wave[: len(codes[index]) * HOP]
        return waves

    def _encode(self, waves: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Padded waves (B, (F + 1) * 320), features (B, F + 1, 160) -> codes int32 (B, F + 1)."""
        device, dtype = self.model.device, self.model.dtype
        with torch.inference_mode():
            codes = self.model.encode(
                torch.from_numpy(waves[:, None]).to(device, dtype),  # (B, 1, (F + 1) * 320)
                torch.from_numpy(features).to(device, dtype),  # (B, F + 1, 160)
            ).audio_codes
        return codes[:, 0].cpu().numpy().astype(np.int32)

    def _groups(self, lengths: list[int]) -> list[list[int]]:
        """Indices of equal non-zero length, at most batch_seconds together (or one alone)."""
        by_length: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            if length:
                by_length.setdefault(length, []).append(index)
        groups = []
        for length, members in by_length.items():
            most = max(1, int(self.batch_seconds * self.frame_rate / length))
            groups += [members[start : start + most] for start in range(0, len(members), most)]
        return groups


class Features:
    """A wave (T,) -> log mel features, float32 (F + 1, 160), for its F = floor(T / 320) codes and
    one more.

    numpy takes nine milliseconds per second of audio, so this is picklable and runs in worker
    processes.
    """

    def __init__(self):
        self._extractor = SeamlessM4TFeatureExtractor(
            feature_size=80, num_mel_bins=80, padding_value=1.0, stride=2
        )

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        around = np.pad(_padded(wave), HOP // 2)
        return self._extractor([around], sampling_rate=16_000, return_tensors="np")[
            "input_features"
        ][0].astype(np.float32)


def checkpoint_fingerprint(name: str) -> str | None:
    """16 hex digits of the weights in a folder or of a hub id; None without a safetensors file.

    The start of the file's sha256 (of several files: the hash of their fingerprints). In the hub's
    cache the file name is that sha256, so only weights in a plain folder are read.
    """

    def place(file: str) -> Path | None:
        if Path(name).is_dir():
            return Path(name, file) if Path(name, file).is_file() else None
        found = try_to_load_from_cache(name, file)
        return Path(found) if isinstance(found, str) else None

    files = [place("model.safetensors")]
    if files[0] is None and (index := place("model.safetensors.index.json")):
        files = [place(file) for file in sorted(set(read_object(index)["weight_map"].values()))]
    if None in files:
        return None
    found = [_file_fingerprint(file) for file in files]
    return (
        found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()[:16]
    )


def _file_fingerprint(path: Path) -> str:
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", path.resolve().name):
        return path.resolve().name[:16]
    return sha256(path)[:16]


def _padded(wave: np.ndarray) -> np.ndarray:
    """Append 1 to 320 zeros, up to a multiple of 320, as the model's feature extractor does."""
    wave = np.asarray(wave, np.float32)
    return np.pad(wave, (0, HOP - len(wave) % HOP))


class Bf16Codec(Codec):
    """Another codec under torch's autocast to bfloat16 while it encodes.

    `exact` is the same codec in its own precision; the share of changed codes is measured with it.
    """

    precision = "bfloat16"

    def __init__(self, exact: Codec, device: str | None = None):
        self.exact, self._device = exact, torch.device(choose_device(device)).type
        self.name, self.sample_rate = exact.name, exact.sample_rate
        self.codebook_size, self.frame_rate = exact.codebook_size, exact.frame_rate
        self.front, self.fingerprint, self.folder = exact.front, exact.fingerprint, exact.folder
        self.codes_fingerprint = exact.codes_fingerprint

    def encode(self, waves: list[np.ndarray], **features: list[np.ndarray]) -> list[np.ndarray]:
        """float32 (T,) each -> int32 (floor(T / hop),) each, nearly those of `exact`."""
        with torch.autocast(self._device, torch.bfloat16):
            return self.exact.encode(waves, **features)

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """As `exact` does, in its own precision."""
        return self.exact.decode(codes)


def install_fast_snake(model: nn.Module) -> None:
    """Use the fast snake in a model's activations: float32 on a CPU, no gradient, no autocast."""
    for module in _snakes(model):
        module.forward = functools.partial(_forward, module)


def remove_fast_snake(model: nn.Module) -> None:
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
    plain = (
        hidden.dtype == torch.float32
        and hidden.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )
    if not plain or (torch.is_grad_enabled() and not torch.is_inference_mode_enabled()):
        return type(module).forward(module, hidden)
    return antialiased_snake(module, hidden)


def antialiased_snake(module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """(B, C, T) -> (B, C, T): upsample by two, x + sin(a x)^2 / b per channel, downsample."""
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
        # Place in the transposed convolution over 5 samples of padding, cut by 15.
        place = phase + 15 - tap
        if place % 2 == 0:
            shifted = padded[:, place // 2 - 5 + EDGE :][:, :length]
            total = shifted * taps[tap] if total is None else total.add_(shifted, alpha=taps[tap])
    return total


def _down(phases: list[torch.Tensor], taps: list[float], out: torch.Tensor) -> None:
    """Every second sample of the filtered doubled rate, written to `out` (C, T)."""
    padded = [F.pad(phase, (3, 3)) for phase in phases]
    for phase in padded:
        # The ends of the doubled rate are repeated, whichever phase they belong to
        phase[:, :3], phase[:, -3:] = phases[0][:, :1], phases[1][:, -1:]
    for tap in range(TAPS):
        phase, shift = (tap - 5) % 2, (tap - 5) // 2
        shifted = padded[phase][:, shift + 3 :][:, : out.shape[1]]
        if tap:
            out.add_(shifted, alpha=taps[tap])
        else:
            torch.mul(shifted, taps[tap], out=out)
