"""What the mini codec is trained on: the settings of a training, utterances in memory, their labels
for CTC, and random changes of what the encoder hears.

Every draw is by seed and step alone, so a resumed run sees the batches of an uninterrupted one.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.fft
import soxr
import torch

from llasa_core.audio import load_audio
from llasa_core.codecs.mini import SAMPLE_RATE, MiniCodecConfig
from llasa_core.errors import InputError, above, at_least, between, check_fields, fits, one_of
from llasa_core.manifest import Utterance, read_manifest

CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"

# Those of American English in hibari's alphabet (misaki's) but for stress, spaces and punctuation,
# which no single frame carries.
PHONEMES = "AIOWYbdfhijklmnpstuvwzæðŋɐɑɔəɛɜɡɪɹɾʃʊʌʒʔʤʧθᵊᵻ"

SYMBOLS = {"characters": CHARACTERS, "phonemes": PHONEMES}

EQUALISER_KNOTS = (0.0, 150.0, 500.0, 1200.0, 2500.0, 5000.0, 8000.0)  # Hz


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each utterance that is drawn; a share is how often one is made.

    The decoder's target follows level, equaliser and resampling, which are a speaker's and a room's
    and belong into the codes. Noise is in what the encoder hears alone.
    """

    level_db: tuple[float, float] = (-15.0, 6.0)  # the peak stays below full scale
    level_share: float = 0.7
    resampling: tuple[float, float] = (0.9, 1.1)  # pitch, formants and tempo together
    resampling_share: float = 0.5
    equaliser_db: float = 3.0  # standard deviation of the gain at each of EQUALISER_KNOTS
    equaliser_share: float = 0.4
    noise_db: tuple[float, float] = (15.0, 35.0)  # signal over noise
    noise_share: float = 0.3

    def __post_init__(self):
        shares = [f"{name}_share" for name in ("level", "resampling", "equaliser", "noise")]
        bounds = dict.fromkeys(shares, between(0, 1)) | {"equaliser_db": at_least(0)}
        check_fields(self, "augmentation", **bounds)
        for name in ("level_db", "resampling", "noise_db"):
            pair = getattr(self, name)
            if len(pair) != 2 or not all(fits(value, float) for value in pair) or pair[0] > pair[1]:
                raise InputError(
                    f"augmentation: `{name}` is {pair!r}, expected two numbers, rising"
                )
        if not 0.5 <= self.resampling[0] <= self.resampling[1] <= 2:
            raise InputError(
                f"augmentation: `resampling` is {self.resampling!r}, expected factors of 0.5 to 2"
            )

    def resampled(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The wave float32 (T,), perhaps of another voice and length: (T / factor,)."""
        if rng.random() >= self.resampling_share:
            return wave
        factor = rng.uniform(*self.resampling)
        return soxr.resample(wave, SAMPLE_RATE * factor, SAMPLE_RATE, "MQ").astype(np.float32)

    def changed(
        self, wave: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """A wave float32 (T,) -> what the encoder hears, the decoder's target, and the gain of its
        level.
        """
        if rng.random() < self.equaliser_share:
            wave = self._equalised(wave, rng)
        gain = 1.0
        if rng.random() < self.level_share:
            gain = 10 ** (rng.uniform(*self.level_db) / 20)
        loudest = float(np.abs(wave).max(initial=1e-6))
        gain = min(gain, max(1.0, 1 / loudest)) if gain > 1 else gain
        target = heard = wave * np.float32(gain)
        if rng.random() < self.noise_share:
            heard = target + self._noise(target, rng)
        return heard, target, gain

    def _equalised(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        knots = rng.normal(0, self.equaliser_db, len(EQUALISER_KNOTS))
        size = scipy.fft.next_fast_len(len(wave) + 1024, real=True)
        hertz = np.linspace(0, SAMPLE_RATE / 2, size // 2 + 1)
        decibels = np.interp(hertz, EQUALISER_KNOTS, knots - knots.mean())
        spectrum = scipy.fft.rfft(wave, size)
        spectrum *= (10 ** (decibels / 20)).astype(np.float32)
        return scipy.fft.irfft(spectrum, size)[: len(wave)]

    def _noise(self, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Noise between white and pink, so many decibels below the target's mean power."""
        noise = rng.standard_normal(len(target), np.float32)
        if rng.random() < 0.5:
            size = scipy.fft.next_fast_len(len(noise), real=True)
            spectrum = scipy.fft.rfft(noise, size)
            spectrum *= (np.arange(size // 2 + 1, dtype=np.float32) + 10) ** -0.5
            noise = scipy.fft.irfft(spectrum, size)[: len(noise)]
        power = float(np.square(target).mean()) / max(float(np.square(noise).mean()), 1e-12)
        return noise * np.float32((power * 10 ** (-rng.uniform(*self.noise_db) / 10)) ** 0.5)


@dataclass(frozen=True)
class CodecTraining:
    """Settings of one codec training run."""

    manifest: str | Path | list | tuple  # one, or several that are read together
    output_dir: str | Path
    steps: int = 12_000
    batch_size: int = 4
    crop_seconds: float = 1.28  # of latents go through the decoder
    max_seconds: float = 4.0  # longer utterances are cropped for the encoder and carry no CTC loss
    # Steps of the decoder alone, after `steps`: codes do not change, nor language models on them.
    decoder_steps: int = 0
    peak_lr: float = 2e-3
    decoder_peak_lr: float = 1e-3
    final_lr_ratio: float = 0.05
    warmup_steps: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    ctc_weight: float = 0.2
    labels: str = "characters"  # of the CTC loss; "phonemes" ask for the extra `corpus`
    # Keeps every dimension of the quantizer spread over its levels; fades out
    spread_weight: float = 0.5
    spread_steps: int = 800  # number of steps of the fade
    # Weight of the error of a small causal predictor of the next frame's levels.
    predict_weight: float = 1.0
    pitch_weight: float = 0.3  # of pitch and voicing
    # Of the discriminator's score in the decoder's loss; 0: without a discriminator.
    adversarial_weight: float = 0.0
    feature_weight: float = 1.0  # of feature matching, where there is a discriminator
    adversarial_from: int = 0  # of `decoder_steps` before it begins
    discriminator_lr: float = 5e-4  # at the peak, falling as the decoder's
    discriminator_channels: int = 16
    # At most this much is held in memory, of each manifest where it is a list.
    hours: float | list | tuple = 4.0
    repeats: list | tuple = ()  # how often an utterance of each manifest counts; empty: once
    augmentation: Augmentation | None = None
    seed: int = 0
    save_steps: int = 500
    threads: int = 2
    model: MiniCodecConfig = field(default_factory=MiniCodecConfig)

    def __post_init__(self):
        counts = ("batch_size", "spread_steps", "save_steps", "threads", "discriminator_channels")
        limits = dict.fromkeys(counts, at_least(1)) | {"labels": one_of(*SYMBOLS)}
        limits |= dict.fromkeys(("max_seconds", "discriminator_lr"), above(0))
        limits |= dict.fromkeys(("adversarial_weight", "feature_weight"), at_least(0))
        limits |= dict.fromkeys(("decoder_steps", "adversarial_from"), at_least(0))
        first = at_least(0 if self.decoder_steps else 1)
        check_fields(self, "codec training", steps=first, **limits)
        if self.crop_frames < 1:
            raise InputError(
                f"codec training: crop_seconds is {self.crop_seconds}, expected one code or more"
            )
        count = len(self.manifests)
        for name, kind in (("hours", float), ("repeats", int)):
            each = getattr(self, name)
            listed = isinstance(each, list | tuple) and (len(each) > 0 or name == "hours")
            if listed and (len(each) != count or not all(fits(x, kind) and x > 0 for x in each)):
                raise InputError(
                    f"codec training: `{name}` is {each!r}, expected a number above 0 for each of"
                    f" {count} manifests"
                )

    @property
    def crop_frames(self) -> int:
        return round(self.crop_seconds * SAMPLE_RATE / self.model.hop)

    @property
    def manifests(self) -> list[str | Path]:
        """The paths of `manifest`; InputError where there is none."""
        if isinstance(self.manifest, str | Path):
            return [self.manifest]
        if not self.manifest or not all(isinstance(path, str | Path) for path in self.manifest):
            raise InputError(f"codec training: manifest is {self.manifest!r}, expected paths")
        return list(self.manifest)


class Batch(NamedTuple):
    """Utterances of one step, padded with silence; `labels` are empty where CTC has none."""

    heard: torch.Tensor  # (B, F * hop), by the encoder
    target: torch.Tensor  # (B, F * hop), of the decoder
    gains: torch.Tensor  # (B, 1), of the level against the recording's
    frames: torch.Tensor  # (B,), codes of each
    labels: list[list[int]]


class WaveSet:
    """The utterances of the manifests in memory as 16-bit samples, with the labels of English ones.

    InputError where they hold none, or `labels` are phonemes without hibari-tts.
    """

    def __init__(self, settings: CodecTraining):
        manifests, hours, seed = settings.manifests, settings.hours, settings.seed
        each = hours if isinstance(hours, list | tuple) else [hours] * len(manifests)
        repeats = settings.repeats or [1] * len(manifests)
        read = labeller(settings.labels)
        self.waves: list[np.ndarray] = []
        self.labels: list[list[int]] = []
        times: list[int] = []
        total = 0
        for manifest, limit, repeat in zip(manifests, each, repeats, strict=True):
            utterances, samples = read_manifest(manifest), 0
            if not utterances:
                raise InputError(f"{manifest}: no utterance to train the codec on")
            for index in np.random.default_rng(seed).permutation(len(utterances)):
                wave = load_audio(utterances[index].audio, SAMPLE_RATE)
                self.waves.append((np.clip(wave, -1, 1) * 32767).astype(np.int16))
                self.labels.append(_labels_of(utterances[index], read))
                times.append(repeat)
                samples += len(wave)
                if samples >= limit * 3600 * SAMPLE_RATE:
                    break
            total += samples
        self.hours = total / 3600 / SAMPLE_RATE
        order = np.argsort([len(wave) for wave in self.waves], kind="stable")
        self.by_length = np.repeat(order, np.array(times)[order])

    def batch(self, settings: CodecTraining, step: int) -> Batch:
        """A step's batch, by seed and step alone."""
        rng, hop = np.random.default_rng([settings.seed, step]), settings.model.hop
        augmentation = settings.augmentation
        changes = np.random.default_rng([settings.seed, step, 2])
        longest = int(settings.max_seconds * SAMPLE_RATE)
        count = len(self.by_length)
        near = rng.integers(count) + rng.integers(count // 8 + 1, size=settings.batch_size)
        rows, labels = [], []
        # Neighbours in length, so that little of the batch is padding.
        for index in self.by_length[near % count]:
            wave = self.waves[index].astype(np.float32) / 32768
            label = self.labels[index]
            if augmentation:
                wave = augmentation.resampled(wave, changes)
            if len(wave) > longest:
                start = int(rng.integers(len(wave) - longest))
                wave, label = wave[start : start + longest], []
            rows.append(augmentation.changed(wave, changes) if augmentation else (wave, wave, 1.0))
            labels.append(label)
        frames = torch.tensor([max(len(row[0]) // hop, settings.crop_frames) for row in rows])
        heard = _padded([row[0] for row in rows], int(frames.max()) * hop)
        same = not augmentation
        target = heard if same else _padded([row[1] for row in rows], heard.shape[1])
        gains = torch.tensor([[row[2]] for row in rows])
        return Batch(heard, target, gains, frames, labels)


def _padded(waves: Sequence[np.ndarray], size: int) -> torch.Tensor:
    """Waves cut or filled up with silence to one length: (B, size)."""
    batch = torch.zeros(len(waves), size)
    for row, wave in zip(batch, waves, strict=True):
        usable = min(len(wave), size)
        row[:usable] = torch.from_numpy(np.ascontiguousarray(wave[:usable]))
    return batch


def _labels_of(utterance: Utterance, read: Callable[[str], list[int]]) -> list[int]:
    """Places of the symbols of an English text, from 1 as 0 is the blank; of another, none."""
    english = utterance.language.lower().split("-")[0] == "en"
    return read(utterance.text) if english else []


def labeller(labels: str) -> Callable[[str], list[int]]:
    """The function from an English text to its CTC labels, "characters" or "phonemes"."""
    places = {symbol: place + 1 for place, symbol in enumerate(SYMBOLS[labels])}
    speak = str.lower if labels == "characters" else _phonemes()
    return lambda text: [places[symbol] for symbol in speak(text) if symbol in places]


@functools.cache
def _phonemes() -> Callable[[str], str]:
    try:
        from hibari.g2p import G2P
    except ImportError:
        raise InputError(
            "codec training: labels are phonemes, which need hibari-tts: pip install"
            " 'llasa-core[corpus]'"
        ) from None
    return G2P()
