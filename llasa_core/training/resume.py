"""Whether a training run may resume in its folder: settings.json, written when a run begins.

It prevents that old weights are published under new settings or data that they were not trained
with. What decides no weight may change: checkpoint and log intervals, workers,
threads, held-out data, how a step is spread over processes. Folders and checkpoints without a
settings.json, made before there was one, are taken as they are.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llasa_core.errors import InputError
from llasa_core.files import read_object, write_json
from llasa_core.training.config import TrainConfig, read_entry
from llasa_core.training.lora import lora_settings

SETTINGS = "settings.json"

FREE = {
    "output_dir",
    "resume",
    "notes",
    "cache",
    "workers",
    "threads",
    "report_to",
    "overwrite",
    "keep_best",
    "early_stopping",
    "activation_checkpointing",
}

FREE |= {
    "save_steps",
    "save_total_limit",
    "save_dtype",
    "log_steps",
    "eval_steps",
    "eval_codes",
    "eval_utterances",
    "sample_steps",
    "sample_texts",
}

# tokens_per_step and max_steps stand for them.
FREE |= {"rows_per_device", "gradient_accumulation_steps", "epochs"}

logger = logging.getLogger(__name__)


def run_settings(
    config: TrainConfig, digests: list[str], rows_per_step: int, max_steps: int
) -> dict[str, Any]:
    """What decides the weights of a run, as JSON values.

    digests: sha256 of each dataset of `codes`, which stands in place of its path; tokens_per_step
    is that of all processes, max_steps also where `epochs` were asked for.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in FREE}
    settings["tokenizer"] = config.tokenizer or config.model
    settings["speaker_tags"] = float(config.speaker_tags)
    settings["lora"] = None if config.lora is None else lora_settings(config.lora)
    settings |= {"tokens_per_step": rows_per_step * config.context, "max_steps": max_steps}
    settings["codes"] = []
    for entry, digest in zip(
        (read_entry("codes", entry) for entry in config.codes), digests, strict=True
    ):
        amount = (
            f"weight {float(entry.weight)}"
            if entry.share is None
            else f"share {float(entry.share)}"
        )
        settings["codes"].append(f"{entry.task}, {amount}, sha256 {digest[:16]}")
    return json.loads(json.dumps(settings))


def resumable(output: Path, settings: dict[str, Any], most: int) -> tuple[str | None, int]:
    """The newest whole checkpoint of at most `most` steps that belongs to this run, and its step;
    (None, 0) without.

    InputError, which names the first key that differs and both values, where a finished model or a
    checkpoint of other settings is there.
    """
    run, found, others = _read(output / SETTINGS), [], (output / "llasa.json").is_file()
    key = None if run is None else _difference(run["settings"], settings)
    for folder in output.glob("checkpoint-*"):
        try:
            step = read_object(folder / "trainer_state.json")["global_step"]
        except (InputError, KeyError):
            logger.info("%s is not whole and is left out", folder)
            continue
        own = _read(folder / SETTINGS)
        if own is None:
            ours = run is None or (key is None and step <= run["begun_at_step"])
        else:
            ours = _difference(own["settings"], settings) is None
        if not ours:
            others = True
            logger.info("%s is of another run and is left out", folder)
        elif step <= most:
            found.append((step, str(folder)))
    if key is not None and others:
        raise InputError(
            f"{output / SETTINGS}: the run there has `{key}` {run['settings'][key]!r}, the config"
            f" {settings[key]!r}; expected the same to resume it, another `output_dir`, or"
            " `overwrite` true and `resume` false to start over"
        )
    return (max(found)[1], max(found)[0]) if found else (None, 0)


def refuse_finished(config: TrainConfig) -> None:
    """InputError where a finished model stands that the run would overwrite without being told."""
    if (Path(config.output_dir) / "llasa.json").is_file() and not (
        config.resume or config.overwrite
    ):
        raise InputError(
            f"{config.output_dir}: holds a finished model; expected another `output_dir`, `resume`"
            " true to publish that run again, or `overwrite` true to start over"
        )


def begin(output: Path, settings: dict[str, Any], step: int, resume: bool) -> None:
    """Write settings.json of a run that begins now, at `step`: 0, or that of a checkpoint without
    settings.
    """
    run = _read(output / SETTINGS) if resume else None
    if run is None or _difference(run["settings"], settings):
        _write(output, settings, step)


def mark_checkpoint(folder: Path, settings: dict[str, Any]) -> None:
    """Give a checkpoint that is about to be written its settings; an earlier one of that name is
    whole no more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").unlink(missing_ok=True)
    _write(folder, settings, 0)


def _write(folder: Path, settings: dict[str, Any], step: int) -> None:
    write_json(folder / SETTINGS, {"begun_at_step": step, "settings": settings})


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        record = read_object(path)
        return {"begun_at_step": int(record["begun_at_step"]), "settings": dict(record["settings"])}
    except (ValueError, TypeError, KeyError):
        raise InputError(
            f"{path}: not the settings of a training run, expected those that training wrote"
        ) from None


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first key of both with two values; a key that only one version of the program knows says
    nothing.
    """
    return next((key for key in now if key in before and before[key] != now[key]), None)
