"""The judges behind published numbers, in their own implementations: recognisers of transformers
and funasr, the speaker model of Seed-TTS-Eval, UTMOS.

Two of them are published as PyTorch files. They are read with `weights_only=True`, so that no code
in them can run; the names of their tensors are those of fairseq, and every tensor must find its
place. Waves go one by one: padding would change what is pooled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llasa_core.checkpoint import load_strictly
from llasa_core.device import choose_device
from llasa_core.errors import InputError, needs_extra
from llasa_core.judges.ecapa import Ecapa
from llasa_core.judges.identity import tensors_fingerprint
from llasa_core.judges.interface import SAMPLE_RATE, at_16_khz, distribution_version

SHORTEST = SAMPLE_RATE // 10  # samples; a shorter wave is padded with zeros

# Names of fairseq's wav2vec 2.0 and WavLM -> those of transformers
_RENAMED = (
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.2(\.1)?\.", r"\1.layer_norm."),
    (
        r"^encoder\.pos_conv\.0\.weight_g$",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    ),
    (
        r"^encoder\.pos_conv\.0\.weight_v$",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    ),
    (r"^encoder\.pos_conv\.0\.bias$", "encoder.pos_conv_embed.conv.bias"),
    (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)


class TransformersWhisper:
    """Whisper by transformers, greedy, as Seed-TTS-Eval calls it: the first 30 s of a wave, fp32.

    name: hub id such as openai/whisper-large-v3, or `whisper-large-v3-transformers`. Raises
    InputError where the model is out of reach.
    """

    def __init__(self, name: str, device: str | None = None):
        import transformers

        source = "openai/whisper-large-v3" if name == "whisper-large-v3-transformers" else name
        self._model = load_strictly(
            transformers.WhisperForConditionalGeneration, source, dtype=torch.float32
        )
        self._processor = _processor(transformers.WhisperProcessor, source)
        self._device = choose_device(device)
        self._model.to(self._device).eval()
        self.name, self.version = source, f"{distribution_version('transformers')}, {source}"
        self.fingerprint = tensors_fingerprint(self._model.state_dict())
        self.implements = "whisper-large-v3"
        self.published = from_hub(source, "openai/whisper-large-v3", self.implements)

    def transcribe(
        self, waves: list[np.ndarray], sample_rate: int, language: str = "en"
    ) -> list[str]:
        """float32 (T,) waves -> one text a wave; an empty wave is an empty text."""
        multilingual = getattr(self._model.generation_config, "is_multilingual", False)
        if language != "en" and not multilingual:
            raise InputError(f"{self.name} hears English only, got language {language!r}")
        asked = {"language": language, "task": "transcribe"} if multilingual else {}
        return [self._one(at_16_khz(wave, sample_rate), asked) for wave in waves]

    def _one(self, wave: np.ndarray, asked: Mapping[str, str]) -> str:
        if not len(wave):
            return ""
        features = self._processor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        with torch.inference_mode():
            ids = self._model.generate(features.input_features.to(self._device), **asked)
        return self._processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


class HubertTranscriber:
    """HuBERT-large fine-tuned on 960 h of LibriSpeech (CTC, greedy), English only: the recogniser
    of VALL-E's table and of codec papers. Raises InputError where the model is out of reach.
    """

    def __init__(self, name: str = "hubert-large-ls960-ft", device: str | None = None):
        import transformers

        source = f"facebook/{name}" if "/" not in name else name
        self._model = load_strictly(transformers.HubertForCTC, source, dtype=torch.float32)
        self._processor = _processor(transformers.Wav2Vec2Processor, source)
        self._device = choose_device(device)
        self._model.to(self._device).eval()
        self.name, self.version = name, f"{distribution_version('transformers')}, {source}"
        self.fingerprint = tensors_fingerprint(self._model.state_dict())
        self.implements = "hubert-large-ls960-ft"
        self.published = from_hub(source, "facebook/hubert-large-ls960-ft", self.implements)

    def transcribe(
        self, waves: list[np.ndarray], sample_rate: int, language: str = "en"
    ) -> list[str]:
        """float32 (T,) waves -> one text a wave. InputError for another language."""
        if language != "en":
            raise InputError(f"{self.name} hears English only, got language {language!r}")
        texts = []
        for wave in waves:
            wave = _long_enough(at_16_khz(wave, sample_rate))
            values = self._processor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt")
            with torch.inference_mode():
                logits = self._model(values.input_values.to(self._device)).logits  # (1, F, V)
            texts.append(self._processor.batch_decode(logits.argmax(dim=-1))[0])
        return texts


class ParaformerTranscriber:
    """paraformer-zh through funasr, as Seed-TTS-Eval calls it; Chinese only. Raises InputError
    where funasr is absent or the model out of reach.
    """

    def __init__(self, name: str = "paraformer-zh", device: str | None = None):
        with needs_extra("paraformer-zh", "protocols", "funasr"):
            from funasr import AutoModel
        try:
            self._model = AutoModel(
                model=name, device=choose_device(device), disable_update=True, disable_pbar=True
            )
        except Exception as error:  # funasr and the hub clients raise kinds of their own
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"recogniser {name!r} is out of reach: {reason}") from error
        self.name, self.version = name, f"{distribution_version('funasr')}, {name}"
        self.fingerprint = tensors_fingerprint(self._model.model.state_dict())
        self.implements = self.published = "paraformer-zh"

    def transcribe(
        self, waves: list[np.ndarray], sample_rate: int, language: str = "zh"
    ) -> list[str]:
        """float32 (T,) waves -> one text a wave. InputError for another language."""
        if language != "zh":
            raise InputError(f"{self.name} hears Chinese only, got language {language!r}")
        heard = []
        for wave in waves:
            wave = _long_enough(at_16_khz(wave, sample_rate))
            heard.append(self._model.generate(input=wave, batch_size_s=300)[0]["text"])
        return heard


class WavLMEcapaEmbedder:
    """WavLM-large fine-tuned for speaker verification, with an ECAPA-TDNN over a weighted sum of
    its layers: SIM of Seed-TTS-Eval.

    name: the file wavlm_large_finetune.pth of that benchmark. Raises InputError where it is
    missing, or its tensors are not those of the model.
    """

    def __init__(self, name: str, device: str | None = None):
        import transformers

        tensors = _read(name, "wavlm_large_finetune.pth, which the README of seed-tts-eval links")
        prefix = "feature_extract.model."
        # of pre-training, without use here
        left = (
            "loss_calculator.",
            "feature_extract.model.label_embs",
            "feature_extract.model.final_proj",
        )
        tensors = {key: value for key, value in tensors.items() if not key.startswith(left)}
        encoder = _renamed(tensors, prefix)
        config = transformers.WavLMConfig(
            **_sizes(encoder),
            num_attention_heads=_shape(encoder, "encoder.layers.0.attention.rel_attn_embed.weight")[
                1
            ],
            do_stable_layer_norm=True,
            feat_extract_norm="layer",
            apply_spec_augment=False,
        )
        self._encoder = _filled(transformers.WavLMModel(config), encoder, name)
        head = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
        channels, width, _ = _shape(head, "layer1.conv.weight")
        states, (dimensions, _) = _shape(head, "feature_weight")[0], _shape(head, "linear.weight")
        pooled = _shape(head, "conv.weight")[0]
        self._head = _filled(Ecapa(states, width, channels, pooled, dimensions), head, name)
        self._device = choose_device(device)
        for part in (self._encoder, self._head):
            part.to(self._device).eval()
        self.name, self.version = name, f"{distribution_version('transformers')}, {Path(name).name}"
        self.fingerprint = tensors_fingerprint(tensors)
        self.implements, self._dimensions = "wavlm_large_finetune", dimensions

    def embed(self, waves: list[np.ndarray], sample_rate: int) -> np.ndarray:
        """float32 (T,) waves -> (N, D) float32 of unit length, D = 256 as published."""
        rows = np.zeros((len(waves), self._dimensions), np.float32)
        for row, wave in zip(rows, waves, strict=True):
            samples = torch.from_numpy(_long_enough(at_16_khz(wave, sample_rate))).to(self._device)
            samples = torch.nn.functional.layer_norm(samples, samples.shape)[None]
            with torch.inference_mode():
                states = self._encoder(samples, output_hidden_states=True).hidden_states
                embedding = self._head(torch.stack(states))[0]
                row[:] = torch.nn.functional.normalize(embedding, dim=0).cpu().numpy()
        return rows


class UtmosPredictor:
    """The strong learner of UTMOS (arXiv 2204.02152), without its phonemes, with the listener and
    the domain that its authors predict with.

    name: the file utmos22_strong_step7459_v1.pt of SpeechMOS. Raises InputError where it is
    missing, or its tensors are not those of the model.
    """

    def __init__(self, name: str, device: str | None = None):
        import transformers

        tensors = _read(name, "utmos22_strong_step7459_v1.pt of SpeechMOS 1.2")
        encoder = _renamed(tensors, "wav2vec2.")
        sizes = _sizes(encoder)
        config = transformers.Wav2Vec2Config(
            **sizes, num_attention_heads=sizes["hidden_size"] // 64, apply_spec_augment=False
        )
        self._encoder = _filled(transformers.Wav2Vec2Model(config), encoder, name)
        rest = {key: value for key, value in tensors.items() if not key.startswith("wav2vec2.")}
        self._conditions = [_take(rest, key, name) for key in ("domain_emb", "judge_emb")]
        gates, joined = _shape(rest, "blstm.weight_ih_l0")
        inner = _shape(rest, "projection.0.weight")[0]
        self._head = torch.nn.ModuleDict(
            {
                "blstm": torch.nn.LSTM(joined, gates // 4, batch_first=True, bidirectional=True),
                "projection": torch.nn.Sequential(
                    torch.nn.Linear(gates // 2, inner), torch.nn.ReLU(), torch.nn.Linear(inner, 1)
                ),
            }
        )
        _filled(self._head, rest, name)
        self._device = choose_device(device)
        for part in (self._encoder, self._head):
            part.to(self._device).eval()
        self._conditions = [one.reshape(1, 1, -1).to(self._device) for one in self._conditions]
        self.name, self.version = name, f"{distribution_version('transformers')}, {Path(name).name}"
        self.fingerprint = tensors_fingerprint(tensors)
        self.implements = "utmos"

    def score(self, waves: list[np.ndarray], sample_rate: int) -> np.ndarray:
        """float32 (T,) waves -> (N,) float32 mean opinion scores."""
        scores = np.zeros(len(waves), np.float32)
        for i, wave in enumerate(waves):
            samples = torch.from_numpy(_long_enough(at_16_khz(wave, sample_rate)))[None]
            with torch.inference_mode():
                frames = self._encoder(samples.to(self._device)).last_hidden_state  # (1, F, D)
                beside = [one.expand(1, frames.shape[1], -1) for one in self._conditions]
                heard, _ = self._head["blstm"](torch.cat([frames, *beside], dim=2))
                scores[i] = 3 + 2 * self._head["projection"](heard).mean().item()
        return scores


def from_hub(source: str, hub_id: str, name: str) -> str | None:
    """The published model's name where `source` is its hub id, and no folder of that name."""
    return name if source == hub_id and not Path(source).is_dir() else None


def _processor(kind: Any, source: str) -> Any:
    try:
        return kind.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(f"{source}: no {kind.__name__} can be read from it ({reason})") from error


def _long_enough(wave: np.ndarray) -> np.ndarray:
    return np.pad(wave, (0, max(0, SHORTEST - len(wave))))


def _read(name: str, expected: str) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch file, of safetensors where its suffix says so."""
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{name}: no such file, expected {expected}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zip and safetensors, each of its own kind
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{name}: weights cannot be read without running code ({reason})"
        ) from error
    found = found.get("model", found) if isinstance(found, dict) else found
    if not (
        isinstance(found, dict) and all(isinstance(one, torch.Tensor) for one in found.values())
    ):
        raise InputError(f"{name}: holds no tensors by name, expected {expected}")
    broken = [key for key, one in found.items() if not torch.isfinite(one.double()).all()]
    if broken:
        raise InputError(f"{name}: NaN or infinite weights: {broken[0]}")
    return found


def _renamed(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The encoder's tensors under the names of transformers."""
    found = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            for pattern, other in _RENAMED:
                name = re.sub(pattern, other, name)
            found[name] = value
    return found


def _sizes(encoder: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What a configuration says of these tensors' shapes."""
    layers = {int(hit[1]) for key in encoder if (hit := re.match(r"encoder\.layers\.(\d+)\.", key))}
    count = sum(key.endswith(".conv.weight") and "extractor" in key for key in encoder)
    width, grouped, kernel = _shape(
        encoder, "encoder.pos_conv_embed.conv.parametrizations.weight.original1"
    )
    return {
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "intermediate_size": _shape(encoder, "encoder.layers.0.feed_forward.output_dense.weight")[
            1
        ],
        "conv_dim": tuple(
            _shape(encoder, f"feature_extractor.conv_layers.{i}.conv.weight")[0]
            for i in range(count)
        ),
        "num_conv_pos_embeddings": kernel,
        "num_conv_pos_embedding_groups": width // grouped,
    }


def _shape(tensors: Mapping[str, torch.Tensor], key: str) -> tuple[int, ...]:
    if key not in tensors:
        raise InputError(f"weights of {key!r} are missing, expected those of the published model")
    return tuple(tensors[key].shape)


def _take(tensors: dict[str, torch.Tensor], key: str, name: str) -> torch.Tensor:
    if key not in tensors:
        raise InputError(f"{name}: weights of {key!r} are missing")
    return tensors.pop(key)


def _filled(module: Any, tensors: Mapping[str, torch.Tensor], name: str) -> Any:
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: not the tensors of this model ({reason})") from error
    return module
