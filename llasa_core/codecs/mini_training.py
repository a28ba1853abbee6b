"""Training of the mini codec: multi-resolution log-mel loss on crops, character CTC on whole
utterances.

The encoder sees whole utterances, the decoder random crops of their latents. Two auxiliary heads
read the quantized latents and are discarded afterwards: a CTC head makes codes carry the words, the
role of the semantic encoder in X-codec2, and a frame predictor makes codes predictable. A killed
run resumes with the same batches.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from llasa_core.audio import load_audio
from llasa_core.codecs.harmonic import source_waves, track_pitch
from llasa_core.codecs.mini import (
    CODES_FROM,
    SAMPLE_RATE,
    LogMel,
    MiniCodec,
    MiniCodecConfig,
    MiniCodecModel,
)
from llasa_core.errors import DivergedError, InputError, at_least, check_fields
from llasa_core.files import publish, sha256
from llasa_core.manifest import read_manifest

CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"

# window, hop, mel bands
MEL_SCALES = ((256, 64, 20), (512, 128, 40), (1024, 256, 80), (2048, 512, 120))

MEL_FLOOR = 1e-4  # -80 dB of the loudest: below it is silence and does not count


@dataclass(frozen=True)
class CodecTraining:
    """Settings of one codec training run."""

    manifest: str | Path
    output_dir: str | Path
    steps: int = 12_000
    batch_size: int = 4
    crop_seconds: float = 1.28  # of latents go through the decoder
    max_seconds: float = 4.0  # longer utterances are cropped for the encoder and carry no CTC loss
    # Steps of the decoder alone, after `steps`: codes do not change, nor language models on them.
    decoder_steps: int = 0
    peak_lr: float = 1e-3
    decoder_peak_lr: float = 5e-4
    final_lr_ratio: float = 0.05
    warmup_steps: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    ctc_weight: float = 0.2
    # Keeps every dimension of the quantizer spread over its levels; fades out
    spread_weight: float = 0.5
    spread_steps: int = 800  # number of steps of the fade
    # Weight of the error of a small causal predictor of the next frame's levels.
    predict_weight: float = 1.0
    pitch_weight: float = 0.3  # of pitch and voicing
    hours: float = 4.0  # at most this much of the manifest is held in memory
    seed: int = 0
    save_steps: int = 500
    threads: int = 2
    model: MiniCodecConfig = field(default_factory=MiniCodecConfig)

    def __post_init__(self):
        counts = ("batch_size", "spread_steps", "save_steps", "threads")
        limits = dict.fromkeys(counts, at_least(1)) | {"decoder_steps": at_least(0)}
        first = at_least(0 if self.decoder_steps else 1)
        check_fields(self, "codec training", steps=first, **limits)
        if self.crop_frames < 1:
            raise InputError(
                f"codec training: crop_seconds is {self.crop_seconds}, expected one code or more"
            )

    @property
    def crop_frames(self) -> int:
        return round(self.crop_seconds * SAMPLE_RATE / self.model.hop)


class CharacterHead(nn.Module):
    """Two convolutions, latents -> character log-probabilities: (B, F, C) -> (F, B, 29)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.first = nn.Conv1d(channels, width, kernel_size=5, padding=2)
        self.second = nn.Conv1d(width, width, kernel_size=5, padding=2)
        self.out = nn.Linear(width, len(CHARACTERS) + 1)

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
        losses = [nn.functional.l1_loss(scale(output), scale(target)) for scale in self.scales]
        return torch.stack(losses).mean()


class WaveSet:
    """The utterances of a manifest in memory as 16-bit samples, with their texts as CTC labels."""

    def __init__(self, manifest: str, hours: float, seed: int):
        utterances = read_manifest(manifest)
        order = np.random.default_rng(seed).permutation(len(utterances))
        self.waves: list[np.ndarray] = []
        self.labels: list[list[int]] = []
        total = 0
        for index in order:
            utterance = utterances[index]
            wave = load_audio(utterance.audio, SAMPLE_RATE)
            self.waves.append((np.clip(wave, -1, 1) * 32767).astype(np.int16))
            self.labels.append(
                [CHARACTERS.index(c) + 1 for c in utterance.text.lower() if c in CHARACTERS]
            )
            total += len(wave)
            if total >= hours * 3600 * SAMPLE_RATE:
                break
        self.hours = total / 3600 / SAMPLE_RATE
        if not self.waves:
            raise InputError(f"{manifest}: no utterance to train the codec on")
        self.by_length = np.argsort([len(wave) for wave in self.waves], kind="stable")

    def batch(
        self, settings: CodecTraining, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
        """A step's batch, by seed and step alone: waves (B, F * hop), frames (B,), labels."""
        rng, hop = np.random.default_rng([settings.seed, step]), settings.model.hop
        longest = int(settings.max_seconds * SAMPLE_RATE)
        waves, labels = [], []
        near = rng.integers(len(self.waves)) + rng.integers(
            len(self.waves) // 8 + 1, size=settings.batch_size
        )
        # Neighbours in length, so that little of the batch is padding.
        for index in self.by_length[near % len(self.waves)]:
            wave = torch.from_numpy(self.waves[index].astype(np.float32) / 32768)
            label = self.labels[index]
            if len(wave) > longest:
                start = int(rng.integers(len(wave) - longest))
                wave, label = wave[start : start + longest], []
            waves.append(wave)
            labels.append(label)
        frames = torch.tensor([max(len(wave) // hop, settings.crop_frames) for wave in waves])
        batch = torch.zeros(len(waves), int(frames.max()) * hop)
        for row, wave in zip(batch, waves, strict=True):
            usable = min(len(wave), len(row))
            row[:usable] = wave[:usable]
        return batch, frames, labels


def learning_rate(settings: CodecTraining, step: int) -> float:
    """Linear warm-up, cosine from the peak to `final_lr_ratio` of it; then one for the decoder."""
    if step < min(settings.warmup_steps, settings.steps):
        return settings.peak_lr * (step + 1) / settings.warmup_steps
    peak, begin, end = settings.peak_lr, settings.warmup_steps, settings.steps
    if step >= settings.steps and settings.decoder_steps:
        peak, begin, end = (
            settings.decoder_peak_lr,
            settings.steps,
            settings.steps + settings.decoder_steps,
        )
    done = min(1.0, (step - begin) / max(1, end - begin))
    floor = settings.final_lr_ratio
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def fix_codes(model: MiniCodecModel) -> None:
    """Freeze everything that determines an utterance's codes, and run it as in inference."""
    for name in CODES_FROM:
        model.get_submodule(name).requires_grad_(False).eval()


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
    """Losses of one step: mel, CTC per character, the weighted rest; and the codes (B, F)."""

    mel: torch.Tensor
    ctc: torch.Tensor
    side: torch.Tensor
    codes: torch.Tensor


def step_losses(
    model: MiniCodecModel,
    head: CharacterHead,
    predictor: FramePredictor,
    mel_loss: MelLoss,
    batch: tuple[torch.Tensor, torch.Tensor, list[list[int]]],
    settings: CodecTraining,
    step: int,
) -> StepLosses:
    """Mel loss on decoded crops; CTC, spread, predictability and pitch on whole utterances."""
    (waves, frames, labels), hop = batch, settings.model.hop
    hidden = model.analyse(waves)
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
        [row[s * hop : (s + span) * hop] for row, s in zip(waves, starts, strict=True)]
    )
    fade = max(0.0, 1 - step / settings.spread_steps)
    pitch, voiced = track_pitch(waves, hop)
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
    mel = mel_loss(model.synthesize(crops, source), target)
    kept = [
        i for i, label in enumerate(labels) if label and _fewest_frames(label) <= int(frames[i])
    ]
    if not kept or not settings.ctc_weight or step >= settings.steps:
        return StepLosses(mel, mel.new_zeros(()), side, codes)
    sizes = torch.tensor([len(labels[i]) for i in kept])
    flat = torch.tensor([character for i in kept for character in labels[i]])
    ctc = nn.functional.ctc_loss(
        head(latents[kept]), flat, frames[kept], sizes, reduction="sum", zero_infinity=True
    )
    return StepLosses(mel, ctc / sizes.sum(), side, codes)


def _fewest_frames(label: list[int]) -> int:
    """Frames that CTC needs: one per character, plus a blank between two equal ones."""
    return len(label) + sum(first == second for first, second in pairwise(label))


def train_codec(
    settings: CodecTraining,
    report: Callable[[dict], None] = lambda row: None,
    base: MiniCodec | None = None,
) -> dict:
    """Train, write `output_dir/{config.json, model.safetensors, train_log.jsonl}` and return flat
    metrics.

    `output_dir/resume.pt` lets a stopped run resume, and a finished one return at once, with the
    same settings only. `report` receives each log row: step, mel, ctc (nats per character),
    codes_used (in the last 50 batches), seconds. `base`: a codec to start from; InputError where
    `resume.pt` is of another one, of other settings or recordings.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    output = Path(settings.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    data = WaveSet(settings.manifest, settings.hours, settings.seed)
    model = MiniCodecModel(settings.model)
    head = CharacterHead(settings.model.xcodec2().quantization_dim, settings.model.width)
    predictor = FramePredictor(len(settings.model.levels), settings.model.width)
    if base is not None:
        model.load_state_dict(base.model.state_dict())
    mel_loss = MelLoss()
    parameters = [*model.parameters(), *head.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, settings.peak_lr, betas=(0.8, 0.95), weight_decay=settings.weight_decay
    )
    state_path = output / "resume.pt"
    resumed = {"model": model, "head": head, "predictor": predictor, "optimizer": optimizer}
    told = _told(settings, base)
    first, rows, spent = 0, [], 0.0
    window: list[list[float]] = []  # mel and ctc of the steps since the last log row
    used = torch.zeros(settings.model.codebook_size, dtype=torch.bool)
    if state := _kept_state(state_path, told, base is not None):
        for name, part in resumed.items():
            part.load_state_dict(state[name])
        first, rows, spent = state["step"], state["rows"], state["seconds"]
        window, used = state.get("window", window), state.get("used", used)
    started = time.monotonic() - spent
    model.train()
    last = settings.steps + settings.decoder_steps
    for step in range(first, last):
        if step == max(first, settings.steps):
            fix_codes(model)
        batch = data.batch(settings, step)
        losses = step_losses(model, head, predictor, mel_loss, batch, settings, step)
        _learn(losses, optimizer, settings, step)
        used[losses.codes.reshape(-1).long()] = True
        window.append([losses.mel.item(), losses.ctc.item()])
        if (step + 1) % 50 == 0 or step + 1 == last:
            rows.append(_log_row(settings, step, window, used, time.monotonic() - started))
            report(rows[-1])
            window.clear()
            used.zero_()
        if (step + 1) % settings.save_steps == 0 or step + 1 == last:
            spent = time.monotonic() - started
            state = {"settings": told, "step": step + 1, "rows": rows, "seconds": spent}
            state |= {"window": window, "used": used}
            state |= {name: part.state_dict() for name, part in resumed.items()}
            torch.save(state, output / "resume.pt.tmp")
            os.replace(output / "resume.pt.tmp", state_path)
    publish(output / "train_log.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    MiniCodec(model).save(output)
    return {
        "mel_loss": rows[-1]["mel"],
        "ctc_nats_per_character": rows[-1]["ctc"],
        "codes_used": rows[-1]["codes_used"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_hours": round(data.hours, 3),
        "steps": last,
        "seconds": rows[-1]["seconds"],
    }


def _learn(
    losses: StepLosses, optimizer: torch.optim.Optimizer, settings: CodecTraining, step: int
) -> None:
    """One step of the optimizer on the weighted sum of the losses."""
    loss = losses.mel + settings.ctc_weight * losses.ctc + losses.side
    if not torch.isfinite(loss):
        raise DivergedError(f"codec training diverged at step {step}: loss {loss.item()}", step + 1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, step)
        nn.utils.clip_grad_norm_(group["params"], settings.clip)
    optimizer.step()


def _told(settings: CodecTraining, base: MiniCodec | None) -> str:
    """What a state is of; with a base also the contents of its manifest."""
    told = {**asdict(settings), "output_dir": "", "threads": 0}
    if base is not None:
        told |= {"manifest": sha256(settings.manifest), "base": base.fingerprint}
    return json.dumps(told, sort_keys=True)


def _kept_state(path: Path, told: str, only: bool) -> dict:
    """The state in `path`, {} where there is none or it is of something else; then InputError if
    the folder is to hold this training `only`.
    """
    state = torch.load(path, weights_only=True) if path.is_file() else {}
    if state.get("settings") == told:
        return state
    if state and only:
        raise InputError(
            f"{path}: of another codec, other settings or recordings; expected those of this"
            " command, or a new folder"
        )
    return {}


def _log_row(
    settings: CodecTraining,
    step: int,
    window: Sequence[Sequence[float]],
    used: torch.Tensor,
    seconds: float,
) -> dict:
    """Means over the steps since the last row."""
    mels, ctcs = zip(*window, strict=True)
    return {
        "step": step + 1,
        "mel": round(float(np.mean(mels)), 5),
        "ctc": round(float(np.mean(ctcs)), 5),
        "codes_used": int(used.sum()),
        "lr": learning_rate(settings, step),
        "seconds": round(seconds, 1),
    }
