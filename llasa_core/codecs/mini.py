"""The mini codec: a log-mel ConvNeXt encoder, X-codec2's quantizer and decoder at small width, a
harmonic head.

16 kHz, one codebook; by default hop 320, 50 codes/s, 4,096 codes (FSQ, levels [4]*6). A checkpoint
is a folder with `config.json` and `model.safetensors`. As in X-codec2 the decoder attends to the
whole utterance and normalises over time, so padding would change every sample: utterances of equal
length are batched, others run alone.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import nn
from transformers import Wav2Vec2BertConfig, Xcodec2Config
from transformers.audio_utils import mel_filter_bank
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2Decoder, Xcodec2Quantizer

from llasa_core.codecs.harmonic import PITCH_RANGE, HarmonicNoiseHead, PitchHead, source_waves
from llasa_core.codecs.interface import Codec
from llasa_core.device import choose_device
from llasa_core.errors import InputError, between, check_fields, fits
from llasa_core.files import brief, publish, read_object, write_json

MINI_CODEC = Path(__file__).parents[2] / "results" / "checkpoints" / "mini-codec"

SAMPLE_RATE = 16_000

ADAPTATION = "adaptation.json"  # in a folder that `codecs.adapt` made: what it was made of

# Of a model: what determines an utterance's codes.
CODES_FROM = ("embed", "blocks", "norm", "widen", "quantizer.project_in")


@dataclass(frozen=True)
class MiniCodecConfig:
    """Shape of the mini codec; `width` is a multiple of 32 (decoder's group norm) and `heads`."""

    width: int = 192
    encoder_layers: int = 6
    encoder_expansion: int = 3
    decoder_layers: int = 3
    decoder_expansion: int = 3
    heads: int = 4
    # The quantizer works at width + bottleneck_extra, as X-codec2's joins two encoders.
    bottleneck_extra: int = 64
    levels: tuple[int, ...] = (4,) * 6
    hop: int = 320  # samples a code
    n_mels: int = 80
    n_fft: int = 1024

    def __post_init__(self):
        sizes = {setting.name for setting in fields(self)} - {"levels"}
        layers = dict.fromkeys(("encoder_layers", "decoder_layers"), between(1, 100))
        check_fields(self, "mini codec", **dict.fromkeys(sizes, between(1, 2**16)) | layers)
        if len(self.levels) > 16 or not all(
            fits(level, int) and level > 1 for level in self.levels
        ):
            raise InputError(f"mini codec: levels is {self.levels!r}, expected integers above 1")
        if self.width % 32 or self.width % self.heads:
            raise InputError(
                f"mini codec: width {self.width} must be a multiple of 32 and of heads {self.heads}"
            )
        if self.hop % 4 or self.hop > self.n_fft:
            raise InputError(
                f"mini codec: hop is {self.hop}, expected a multiple of 4 up to n_fft {self.n_fft}"
            )
        if self.codebook_size > 2**16:
            raise InputError(
                f"mini codec: levels make {self.codebook_size} codes, expected at most 65536"
            )

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    def xcodec2(self) -> Xcodec2Config:
        """The shape as a transformers configuration, for X-codec2's quantizer and decoder."""
        config = Xcodec2Config(
            hidden_size=self.width,
            intermediate_size=self.decoder_expansion * self.width,
            num_hidden_layers=self.decoder_layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            head_dim=self.width // self.heads,
            quantization_dim=self.width + self.bottleneck_extra,
            quantization_levels=list(self.levels),
            activation_dropout=0.0,
            semantic_model_config=Wav2Vec2BertConfig(
                hidden_size=self.bottleneck_extra, num_hidden_layers=1
            ),
        )
        config._attn_implementation = "sdpa"
        return config


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a pointwise MLP (Liu et al. 2022; as in Vocos)."""

    def __init__(self, width: int, expansion: int, scale: float):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel_size=7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.project = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # (B, F, width)
        update = self.norm(self.depthwise(hidden.transpose(1, 2)).transpose(1, 2))
        # Pointwise only: bf16 convolutions are slow.
        wanted = self.training or torch.is_autocast_enabled(hidden.device.type)
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=wanted):
            update = self.project(nn.functional.gelu(self.expand(update)))
        return hidden + self.scale * update.float()


class LogMel(nn.Module):
    """Natural-log mel spectrogram, a frame every `hop` samples: (B, F * hop) -> (B, F, n_mels)."""

    def __init__(self, n_fft: int, hop: int, n_mels: int, floor: float = 1e-5):
        super().__init__()
        self.n_fft, self.hop, self.floor = n_fft, hop, floor
        filters = mel_filter_bank(
            n_fft // 2 + 1, n_mels, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, "slaney", "slaney"
        )
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer(
            "filters", torch.tensor(filters, dtype=torch.float32), persistent=False
        )

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        side = (self.n_fft - self.hop) // 2
        padded = nn.functional.pad(wave, (side, self.n_fft - self.hop - side))
        spectrum = torch.stft(
            padded, self.n_fft, self.hop, window=self.window, center=False, return_complex=True
        )
        return (spectrum.abs().transpose(1, 2) @ self.filters).clamp(min=self.floor).log()


class MiniCodecModel(nn.Module):
    """Encoder, FSQ quantizer and decoder; all frames at 50 Hz."""

    def __init__(self, config: MiniCodecConfig):
        super().__init__()
        self.config = config
        shape = config.xcodec2()
        self.features = LogMel(config.n_fft, config.hop, config.n_mels)
        self.embed = nn.Conv1d(config.n_mels, config.width, kernel_size=5, padding=2)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(config.width, config.encoder_expansion, 1 / config.encoder_layers)
            for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.widen = nn.Linear(config.width, shape.quantization_dim)
        self.quantizer = Xcodec2Quantizer(shape)
        self.decoder = Xcodec2Decoder(shape)
        self.decoder.head = HarmonicNoiseHead(config.width, config.hop)
        self.pitch = PitchHead(shape.quantization_dim)

    def analyse(self, wave: torch.Tensor) -> torch.Tensor:
        """Wave (B, F * hop) -> latents before the quantizer (B, F, width + bottleneck_extra)."""
        features = (self.features(wave) + 4.0) / 4.0
        hidden = self.embed(features.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            hidden = block(hidden)
        return self.widen(self.norm(hidden))

    def quantize(self, wave: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Wave (B, F * hop) -> quantized latents (B, F, width + bottleneck_extra), codes (B, F)."""
        latents, codes = self.quantizer(self.analyse(wave))
        return latents, codes[..., 0]

    def synthesize(self, latents: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        """Latents (B, F, width + bottleneck_extra) -> wave (B, F * hop).

        `source`: the source waves (B, 2, F * hop) of the head; by default those of the latents' own
        pitch.
        """
        self.decoder.head.source = self.own_source(latents) if source is None else source
        return self.decoder(latents)[:, 0]

    def own_source(self, latents: torch.Tensor) -> torch.Tensor:
        """The source waves (B, 2, F * hop) for the pitch and voicing predicted from the latents."""
        log_pitch, logit = self.pitch(latents)
        return source_waves(
            log_pitch.exp().clamp(*PITCH_RANGE),
            logit > 0,
            self.config.hop,
            torch.Generator().manual_seed(0),
        )

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, F) -> wave (B, F * hop)."""
        return self.synthesize(self.quantizer.from_codes(codes.unsqueeze(-1)))


class MiniCodec(Codec):
    """Codec seam of a trained mini codec: float32 waves at 16 kHz <-> int32 codes at 50 Hz."""

    name = "mini"
    sample_rate = SAMPLE_RATE

    def __init__(self, model: MiniCodecModel, device: str | None = None):
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.hop, self.codebook_size = model.config.hop, model.config.codebook_size
        self.frame_rate = SAMPLE_RATE / self.hop

    @classmethod
    def load(cls, name: str, device: str | None = None) -> "MiniCodec":
        """The tracked codec "mini", or one in a folder."""
        if name == "mini" and not MINI_CODEC.is_dir():
            raise InputError(
                "codec mini: its weights are in the repository (results/checkpoints/mini-codec),"
                " not in the installed package; give that folder, or a model that brings its codec"
            )
        return cls.from_folder(MINI_CODEC if name == "mini" else name, device)

    @classmethod
    def from_folder(cls, folder: str | Path, device: str | None = None) -> "MiniCodec":
        """Load `config.json` and `model.safetensors`; InputError if missing or unfit."""
        folder = Path(folder)
        config_path, weights_path = folder / "config.json", folder / "model.safetensors"
        for path in (config_path, weights_path):
            if not path.is_file():
                raise InputError(
                    f"{path}: not found; a mini codec is a folder with config.json and"
                    " model.safetensors"
                )
        model = MiniCodecModel(_read_config(config_path))
        try:
            model.load_state_dict(
                {name: tensor.float() for name, tensor in load_file(weights_path).items()}
            )
        except (SafetensorError, RuntimeError) as error:
            raise InputError(
                f"{weights_path}: expected weights that fit config.json ({brief(error, 160)})"
            ) from None
        return cls(model, device)

    def save(self, folder: str | Path) -> None:
        """Write the checkpoint with half-precision weights (the loaded model is float32 again)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        publish(folder / "model.safetensors", serialise(self._saved_weights()))
        config = {"codec": "mini", "sample_rate": SAMPLE_RATE, **asdict(self.model.config)}
        write_json(folder / "config.json", config)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of settings and weights, rounded as `save` does, so both agree."""
        return self._digest("")

    @property
    def codes_fingerprint(self) -> str:
        """As `fingerprint`, of encoder and quantizer alone: where it agrees, codes do."""
        return self._digest(*(f"{part}." for part in CODES_FROM))

    def _digest(self, *prefixes: str) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self.model.config), sort_keys=True).encode())
        for name, value in sorted(self._saved_weights().items()):
            if name.startswith(prefixes):
                digest.update(name.encode())
                digest.update(value.cpu().numpy())
        return digest.hexdigest()[:16]

    def other_weights(self, record: Mapping[str, Any]) -> tuple[str, str] | None:
        """As of `Codec`; a record without codes_fingerprint is of earlier versions: the weights
        that it tells are read, where they are at hand, to compare their encoder.
        """
        found = super().other_weights(record)
        if found is None or record.get("codes_fingerprint"):
            return found
        places = [record.get("codec_folder") or self.name]
        if self.folder and (base := Path(self.folder, ADAPTATION)).is_file():
            places.append(str(read_object(base).get("base")))
        wanted = {"codec_fingerprint": found[0], "codes_fingerprint": self.codes_fingerprint}
        return None if any(_weights_at(place) == wanted for place in places) else found

    def _saved_weights(self) -> dict[str, torch.Tensor]:
        return {
            name: value.detach().half().contiguous()
            for name, value in self.model.state_dict().items()
        }

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """float32 (T,) each -> int32 (floor(T / hop),) each."""
        frames = [len(wave) // self.hop for wave in waves]
        codes: list[np.ndarray] = [np.zeros(0, np.int32)] * len(waves)
        for group in equal_groups(frames):
            batch = np.stack([waves[i][: frames[i] * self.hop] for i in group]).astype(np.float32)
            with torch.inference_mode():
                result = (
                    self.model.quantize(torch.from_numpy(batch).to(self.device))[1].cpu().numpy()
                )
            for i, row in zip(group, result, strict=True):
                codes[i] = row.astype(np.int32)
        return codes

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Codes (F,) -> float32 (F * hop,) each; InputError outside the codebook."""
        waves: list[np.ndarray] = [np.zeros(0, np.float32)] * len(codes)
        for row in codes:
            if len(row) and not 0 <= int(np.min(row)) <= int(np.max(row)) < self.codebook_size:
                bad = int(np.min(row)) if np.min(row) < 0 else int(np.max(row))
                raise InputError(
                    f"code {bad} is out of range: "
                    f"the mini codec has codes 0..{self.codebook_size - 1}"
                )
        for index, row in enumerate(codes):
            # One by one: a batch changes the last digit of the pitch, and phases accumulate that.
            if len(row):
                with torch.inference_mode():
                    wave = self.model.decode(
                        torch.from_numpy(row.astype(np.int64))[None].to(self.device)
                    )
                waves[index] = wave[0].float().cpu().numpy()
        return waves

    def decode_window(self, codes: np.ndarray, start: int, stop: int) -> np.ndarray:
        """The wave float32 ((stop - start) * hop,) of `codes[start:stop]`, decoded from these codes
        alone.

        Only the phase of the pulses and the noise continue from code 0; restarted they would jump
        between two windows.
        """
        with torch.inference_mode():
            ids = torch.from_numpy(np.asarray(codes[:stop], np.int64))[None].to(self.device)
            latents = self.model.quantizer.from_codes(ids.unsqueeze(-1))
            source = self.model.own_source(latents)[:, :, start * self.hop :]
            return self.model.synthesize(latents[:, start:], source)[0].float().cpu().numpy()


def equal_groups(lengths: list[int], largest: int = 32) -> list[list[int]]:
    """Indices by equal non-zero length, at most `largest` a group, in order of appearance."""
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        if length:
            groups.setdefault(length, []).append(index)
    return [
        group[i : i + largest] for group in groups.values() for i in range(0, len(group), largest)
    ]


def _weights_at(place: str) -> dict[str, str]:
    try:
        return MiniCodec.weights_of(place)
    except InputError:
        return {}


def _read_config(path: Path) -> MiniCodecConfig:
    marks = {"codec": "mini", "sample_rate": SAMPLE_RATE}
    saved = read_object(path)
    try:
        found = {key: saved.pop(key, None) for key in marks}
        if found == marks:
            return MiniCodecConfig(**{**saved, "levels": tuple(saved["levels"])})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"{path}: expected the settings of a mini codec ({brief(error)})"
        ) from None
    raise InputError(f"{path}: expected the settings of a mini codec, with {json.dumps(marks)}")
