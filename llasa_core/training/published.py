"""The folder that a training leaves: an ordinary Hugging Face checkpoint that other people's
`generate` speaks with.

With its base's generation_config.json a fine-tuned model never stops: END is not among the ids that
end an answer there.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from llasa_core.checkpoint import RECOMMENDED_SAMPLING, weights_sha256
from llasa_core.codecs import weights_of
from llasa_core.codecs.mini import ADAPTATION
from llasa_core.files import publish, read_object, sync
from llasa_core.tokenizer import vocabulary_of
from llasa_core.training.config import TrainConfig, read_entry
from llasa_core.training.model_card import CARD, model_card


def generation_settings(config: TrainConfig, tokenizer: Any) -> GenerationConfig:
    """What generation_config.json says: the ids that end an answer of each task trained, our
    sampling, the context as the longest row.

    Padding is END, which no prompt holds: with `<|eot_id|>` for padding, `generate` would take the
    template's own for padding and hide them.
    """
    vocabulary = vocabulary_of(tokenizer)
    ends = {
        "tts": vocabulary.speech_generation_end,
        "asr": vocabulary.text_generation_end,
        "chat": tokenizer.eos_token_id,
    }
    tasks = {read_entry("codes", entry).task for entry in config.codes}
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[end for task, end in ends.items() if task in tasks and end is not None],
        pad_token_id=vocabulary.speech_generation_end,
        do_sample=True,
        **RECOMMENDED_SAMPLING,
        max_length=config.context,
    )


def write_checkpoint(
    model: Any, tokenizer: Any, config: TrainConfig, output: Path, card: dict[str, Any]
) -> None:
    """Write the final folder through a temporary one; llasa.json comes last. A LoRA model is merged
    after its adapter was written.
    """
    temporary = output / ".final.part"
    shutil.rmtree(temporary, ignore_errors=True)
    if config.lora is not None:
        model.save_pretrained(temporary / "adapter")
        model = model.merge_and_unload()
    model.generation_config = generation_settings(config, tokenizer)
    model.to(getattr(torch, config.save_dtype)).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    card = _with_card(temporary, output, {**card, "weights": weights_sha256(temporary)})
    (temporary / "llasa.json").write_text(json.dumps(card, indent=2, sort_keys=True))
    shutil.rmtree(output / "adapter", ignore_errors=True)
    for path in temporary.rglob("*"):
        if path.is_file():
            sync(path)
    for entry in sorted(temporary.iterdir(), key=lambda path: path.name == "llasa.json"):
        os.replace(entry, output / entry.name)
    temporary.rmdir()


def _with_card(folder: Path, name: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write the model card of the checkpoint `name` into `folder`; returns llasa.json with its sum,
    by which `llasa push` knows a card that nobody edited.
    """
    text = model_card(settings, str(name)).encode()
    (folder / CARD).write_bytes(text)
    return {**settings, "card": hashlib.sha256(text).hexdigest()}


def _with_known_codec(settings: dict[str, Any]) -> dict[str, Any]:
    """llasa.json that names a codec by its name alone where that makes the same codes: strangers
    have no folder of it. A decoder that was adapted to a voice is meant, and stays named.
    """
    known, codes = weights_of(settings.get("codec") or ""), settings.get("codes_fingerprint")
    adapted = Path(settings.get("codec_folder") or "", ADAPTATION).is_file()
    if adapted or not codes or known.get("codes_fingerprint") != codes:
        return settings
    return {key: value for key, value in settings.items() if key != "codec_folder"} | known


def publish_checkpoint(output: str | Path, folder: str | Path = "") -> dict[str, Path]:
    """Copy a finished checkpoint of `train` into `folder` (empty: leave it where it is).

    Returns what a result records: weights, config and tokenizer, each with its file.
    """
    output, folder = Path(output), Path(folder or output)
    if folder != output:
        folder.mkdir(parents=True, exist_ok=True)
        files = [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
        # llasa.json last: it marks the checkpoint as complete.
        for name in [*files, "chat_template.jinja"]:
            shutil.copyfile(output / name, folder / name)
        settings = _with_known_codec(read_object(output / "llasa.json"))
        if "card" in settings:  # not in a checkpoint from before there were cards
            settings = _with_card(folder, folder, settings)
        publish(folder / "llasa.json", json.dumps(settings, indent=2, sort_keys=True).encode())
    names = {"weights": "model.safetensors", "config": "config.json", "tokenizer": "tokenizer.json"}
    return {name: folder / file for name, file in names.items()}
