"""Training of the mini codec: multi-resolution log-mel loss on crops, CTC on whole utterances.

The encoder sees whole utterances, the decoder random crops of their latents. Two auxiliary heads
read the quantized latents and are discarded afterwards: a CTC head makes codes carry the words, the
role of the semantic encoder in X-codec2, and a frame predictor makes codes predictable. A killed
run resumes with the same batches.
"""

import copy
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from llasa_core.codecs.mini import CODES_FROM, MiniCodec, MiniCodecModel
from llasa_core.codecs.mini_adversarial import Adversary
from llasa_core.codecs.mini_data import SYMBOLS, CodecTraining, WaveSet
from llasa_core.codecs.mini_losses import (
    MEL_SCALES,
    FramePredictor,
    LabelHead,
    MelLoss,
    StepLosses,
    step_losses,
)
from llasa_core.errors import DivergedError, InputError
from llasa_core.files import publish, sha256
from llasa_core.muon import Muon, muon_groups


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


def train_codec(
    settings: CodecTraining,
    report: Callable[[dict], None] = lambda row: None,
    base: MiniCodec | None = None,
) -> dict:
    """Train, write `output_dir/{config.json, model.safetensors, train_log.jsonl}` and return flat
    metrics.

    `output_dir/encoder` holds the codec as soon as its codes are final, before `decoder_steps`.
    `output_dir/resume.pt` lets a stopped run resume, and a finished one return at once, with the
    same settings only. `report` receives each log row: step, mel, ctc (nats per label), codes_used
    (in the last 50 batches), seconds, and once codes_fingerprint; with a discriminator also its
    loss and `deception`, the decoder's. `base`: a codec to start from; InputError where `resume.pt`
    is of another one, of other settings or recordings.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    output = Path(settings.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    data = WaveSet(settings)
    parts = _parts(settings, base)
    model, mel_loss = parts["model"], MelLoss()
    told = _told(settings, base)
    state = _kept_state(output / "resume.pt", told, base is not None)
    for name, part in parts.items() if state else ():
        part.load_state_dict(state[name])
    rows, window = state.get("rows", []), state.get("window", [])
    # Codes since the last log row
    used = state.get("used", torch.zeros(settings.model.codebook_size, dtype=torch.bool))
    first, last = state.get("step", 0), settings.steps + settings.decoder_steps
    started = time.monotonic() - state.get("seconds", 0.0)
    model.train()
    for step in range(first, last):
        if step == max(first, settings.steps):
            fix_codes(model)
        losses = step_losses(
            model,
            parts["head"],
            parts["predictor"],
            mel_loss,
            data.batch(settings, step),
            settings,
            step,
        )
        window.append(_learn(losses, parts, settings, step))
        used[losses.codes.reshape(-1).long()] = True
        done = step + 1
        codes_final = done == settings.steps and settings.decoder_steps > 0
        if done % 50 == 0 or done == last or codes_final:
            rows.append(_log_row(settings, step, window, used, time.monotonic() - started))
            if codes_final:
                rows[-1]["codes_fingerprint"] = _publish(model, output / "encoder")
            report(rows[-1])
            window.clear()
            used.zero_()
        if done % settings.save_steps == 0 or done == last or codes_final:
            state = {"settings": told, "step": done, "rows": rows, "window": window, "used": used}
            state["seconds"] = time.monotonic() - started
            state |= {name: part.state_dict() for name, part in parts.items()}
            torch.save(state, output / "resume.pt.tmp")
            os.replace(output / "resume.pt.tmp", output / "resume.pt")
    publish(output / "train_log.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    _publish(model, output)
    return {
        "mel_loss": rows[-1]["mel"],
        "ctc_nats_per_character": rows[-1]["ctc"],
        "codes_used": rows[-1]["codes_used"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_hours": round(data.hours, 3),
        "steps": last,
        "seconds": rows[-1]["seconds"],
    }


def _parts(settings: CodecTraining, base: MiniCodec | None) -> dict:
    """What learns and is kept in `resume.pt`: model, head, predictor, optimizer, adversary."""
    model = MiniCodecModel(settings.model)
    channels, width = settings.model.xcodec2().quantization_dim, settings.model.width
    head = LabelHead(channels, width, len(SYMBOLS[settings.labels]))
    predictor = FramePredictor(len(settings.model.levels), width)
    if base is not None:
        if base.model.config != settings.model:
            raise InputError(
                f"codec training: the codec to start from has {base.model.config}, expected"
                f" {settings.model} of the settings"
            )
        model.load_state_dict(base.model.state_dict())
    learnt = [*model.parameters(), *head.parameters(), *predictor.parameters()]
    ends = (model.embed.weight, model.decoder.head.linear.weight)  # AdamW finds their scale
    optimizer = Muon(
        muon_groups(learnt, ends),
        settings.peak_lr,
        betas=(0.8, 0.95),
        weight_decay=settings.weight_decay,
    )
    parts = {"model": model, "head": head, "predictor": predictor, "optimizer": optimizer}
    if settings.adversarial_weight:
        parts["adversary"] = Adversary(settings, len(MEL_SCALES))
    return parts


def _publish(model: MiniCodecModel, folder: Path) -> str:
    """Save a copy as a codec in a folder; returns its `codes_fingerprint`."""
    codec = MiniCodec(copy.deepcopy(model), "cpu")
    codec.save(folder)
    return codec.codes_fingerprint


def _learn(losses: StepLosses, parts: dict, settings: CodecTraining, step: int) -> list[float]:
    """One step of the optimizer on the weighted sum of the losses, and then of the discriminator.

    Returns the losses mel, ctc, deception, discriminator; the last two 0 where there is none.
    """
    loss = losses.mel + settings.ctc_weight * losses.ctc + losses.side
    rate, seen = learning_rate(settings, step), [losses.mel.item(), losses.ctc.item(), 0.0, 0.0]
    adversary = parts.get("adversary")
    if step < settings.steps + settings.adversarial_from:
        adversary = None
    if adversary:
        added, deception = adversary.decoder_loss(losses.decoded, losses.recorded)
        loss, seen[2] = loss + added, deception.item()
    if not torch.isfinite(loss):
        raise DivergedError(f"codec training diverged at step {step}: loss {loss.item()}", step + 1)
    optimizer = parts["optimizer"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
        nn.utils.clip_grad_norm_(group["params"], settings.clip)
    optimizer.step()
    if adversary:
        share = rate / settings.decoder_peak_lr
        seen[3] = adversary.learn(losses.decoded, share * settings.discriminator_lr)
    return seen


def _told(settings: CodecTraining, base: MiniCodec | None) -> str:
    """What a state is of; with a base also the contents of its manifests."""
    told = {**asdict(settings), "output_dir": "", "threads": 0}
    if base is not None:
        told |= {"manifest": [sha256(path) for path in settings.manifests]}
        told |= {"base": base.fingerprint}
    return json.dumps(told, sort_keys=True, default=str)


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
    mel, ctc, deception, discriminator = np.mean(window, axis=0).round(5).tolist()
    row = {
        "step": step + 1,
        "mel": mel,
        "ctc": ctc,
        "codes_used": int(used.sum()),
        "lr": learning_rate(settings, step),
        "seconds": round(seconds, 1),
    }
    if settings.adversarial_weight:
        row |= {"deception": deception, "discriminator": discriminator}
    return row
