"""Fine-tuning of a codec's decoder alone on recordings of a voice: `llasa adapt-codec`.

Encoder and quantizer stay frozen, so codes are those of the base to the bit and every language
model on them stays valid. The loop is that of `mini_training`, which a killed run resumes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llasa_core.audio import load_audio
from llasa_core.codecs import codec_class, load_codec
from llasa_core.codecs.mini import ADAPTATION, SAMPLE_RATE, MiniCodec
from llasa_core.codecs.mini_data import CodecTraining
from llasa_core.codecs.mini_losses import MelLoss
from llasa_core.codecs.mini_training import train_codec
from llasa_core.errors import InputError, above, at_least, check_fields
from llasa_core.files import read_object, sha256, write_json
from llasa_core.intervals import paired_bootstrap
from llasa_core.manifest import Utterance, place_of_id, read_manifest, write_manifest


@dataclass(frozen=True)
class Adaptation:
    """Settings of one adaptation; `codec` is the base, a name or a folder."""

    codec: str
    manifest: str | Path
    output_dir: str | Path
    steps: int = 800
    peak_lr: float = 5e-4
    held_out: int = 12  # clips that are not trained on, at most a tenth of the manifest
    min_seconds: float = 30.0  # of speech, below which nothing is learnt
    seed: int = 0
    save_steps: int = 100
    threads: int = 1

    def __post_init__(self):
        counts = dict.fromkeys(("steps", "held_out", "save_steps", "threads"), at_least(1))
        above_zero = dict.fromkeys(("peak_lr", "min_seconds"), above(0))
        check_fields(self, "codec adaptation", seed=at_least(0), **counts, **above_zero)


def adapt_codec(settings: Adaptation, report: Callable[[dict], None] = lambda row: None) -> dict:
    """Write the adapted codec to `output_dir`, with `adaptation.json`, and return what that says.

    `train.jsonl` and `held_out.jsonl` there say which clips were trained on. The same call resumes
    what was stopped and returns at once what is done; InputError for a folder of other settings, a
    codec that has no trainable decoder, or too little speech. `report` receives the log rows of
    `train_codec`.
    """
    if not issubclass(codec_class(settings.codec), MiniCodec):
        raise InputError(
            f"codec {settings.codec}: its decoder cannot be trained here, expected mini or a folder"
            " of a mini codec"
        )
    base = load_codec(settings.codec, "cpu")
    output = Path(settings.output_dir)
    told = {
        "base": str(settings.codec),
        "base_fingerprint": base.fingerprint,
        "manifest_sha256": sha256(settings.manifest),
        **{name: getattr(settings, name) for name in ("steps", "peak_lr", "held_out", "seed")},
    }
    if (output / ADAPTATION).is_file():
        return _finished(output / ADAPTATION, told)
    if (output / "config.json").exists() and not (output / "resume.pt").exists():
        raise InputError(f"{output}: holds a codec already, expected a new folder")
    train, held_out = _divided(settings)
    output.mkdir(parents=True, exist_ok=True)
    write_manifest(output / "train.jsonl", train)
    write_manifest(output / "held_out.jsonl", held_out)
    before = mel_losses(base, held_out)
    training = CodecTraining(
        output / "train.jsonl",
        output,
        steps=0,
        decoder_steps=settings.steps,
        decoder_peak_lr=settings.peak_lr,
        predict_weight=0.0,  # the predictor teaches the encoder, which is frozen
        seed=settings.seed,
        save_steps=settings.save_steps,
        threads=settings.threads,
        model=base.model.config,
    )
    metrics = train_codec(training, report, base)
    adapted = MiniCodec.from_folder(output, "cpu")
    if adapted.codes_fingerprint != base.codes_fingerprint:
        raise RuntimeError(f"{output}: the encoder has changed")
    after = mel_losses(adapted, held_out)
    record = {
        **told,
        "fingerprint": adapted.fingerprint,
        "codes_fingerprint": adapted.codes_fingerprint,
        "train_hours": metrics["train_hours"],
        "train_clips": len(train),
        "held_out_clips": len(held_out),
        **_scores(before, after),
        "train_mel_loss": metrics["mel_loss"],
        "seconds": metrics["seconds"],
    }
    write_json(output / ADAPTATION, record)
    (output / "resume.pt").unlink(missing_ok=True)
    return record


def mel_losses(codec: MiniCodec, utterances: Sequence[Utterance]) -> list[float]:
    """The training's mel loss of each clip's round trip, whole and with the decoder's own pitch."""
    loss, losses = MelLoss(), []
    for utterance in utterances:
        wave = load_audio(utterance.audio, codec.sample_rate)
        decoded = codec.decode(codec.encode([wave]))[0]
        pair = (torch.from_numpy(x[: len(decoded)])[None] for x in (decoded, wave))
        losses.append(float(loss(*pair)))
    return losses


def _divided(settings: Adaptation) -> tuple[list[Utterance], list[Utterance]]:
    """Clips to train on, and at most a tenth that is held out by the hash of the ids."""
    utterances = read_manifest(settings.manifest)
    lengths = {
        each.id: each.seconds or len(load_audio(each.audio)) / SAMPLE_RATE for each in utterances
    }
    found, long_enough = sum(lengths.values()), [u for u in utterances if lengths[u.id] >= 1.0]
    if found < settings.min_seconds or len(utterances) < 2 or not long_enough:
        raise InputError(
            f"{settings.manifest}: too little speech to adapt to: {len(utterances)} recordings of"
            f" together {found:.1f} s, expected at least 2, one of them of a second or more, of"
            f" together {settings.min_seconds:g} s"
        )
    most = max(1, min(settings.held_out, len(utterances) // 10))
    kept = sorted(long_enough, key=lambda each: place_of_id(each.id))[:most]
    return [each for each in utterances if each not in kept], kept


def _scores(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """Held-out means before and after, and their difference with its interval over clips."""
    change = paired_bootstrap(before, after)
    return {
        "held_out_mel_before": float(np.mean(before)),
        "held_out_mel_after": float(np.mean(after)),
        "held_out_mel_change": change.difference,
        "held_out_mel_change_low": change.low,
        "held_out_mel_change_high": change.high,
    }


def _finished(path: Path, told: dict) -> dict:
    """The record of a folder that is done; InputError where it was made of something else."""
    record = read_object(path, "the record of an adaptation")
    for key, value in told.items():
        if key != "base" and record.get(key) != value:
            raise InputError(
                f"{path}: {key} is {record.get(key)!r}, expected {value!r} of this command, or a"
                " new folder"
            )
    (path.parent / "resume.pt").unlink(missing_ok=True)
    return record
