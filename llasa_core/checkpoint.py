"""What stands beside a checkpoint, in its folder or on the hub: `llasa.json` says how the model was
trained.

A hub id is no folder: its files are looked for where the weights are, or a model pushed there loses
its settings.
"""

from __future__ import annotations

import re
from pathlib import Path

from llasa_core.errors import InputError
from llasa_core.files import parse_object

SETTINGS = "llasa.json"  # written next to a checkpoint by training

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

SETTINGS_KEYS = {
    "codec": str,
    "date": str,
    "speakers": list,
    "mask_eot": bool,
    "seconds_per_character": int | float,
}

SETTINGS_KEYS |= {"codec_fingerprint": str, "codec_folder": str}


def checkpoint_file(checkpoint: str | Path, name: str) -> Path | None:
    """A file of a checkpoint folder or hub id (fetched into the hub's cache, as weights are); None
    if it has none.

    Offline, what the cache does not hold is not there. InputError where the hub cannot be asked.
    """
    if Path(checkpoint).exists():
        path = Path(checkpoint) / name
        return path if path.is_file() else None
    if not HUB_ID.fullmatch(str(checkpoint)):
        return None
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers.utils import cached_file

    try:
        found = cached_file(str(checkpoint), name)
    except OSError as error:  # without a cause: the repository has no such file
        absent = error.__cause__ is None
        if absent or (
            constants.HF_HUB_OFFLINE and isinstance(error.__cause__, LocalEntryNotFoundError)
        ):
            return None
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{checkpoint}: cannot be asked for its {name} ({reason}); HF_HUB_OFFLINE=1 goes on"
            " with what is cached"
        ) from None
    return None if found is None else Path(found)


def read_settings(path: Path) -> dict:
    """What llasa.json says of SETTINGS_KEYS; {} without the file. Speakers of a model without tags
    are left out.
    """
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is no UTF-8, expected JSON that training wrote"
        ) from None
    settings = parse_object(text, str(path))
    if settings.get("speaker_tags") == 0:
        settings["speakers"] = []
    for key, kind in SETTINGS_KEYS.items():
        if settings.get(key) is not None and not isinstance(settings[key], kind):
            raise InputError(
                f"{path}: {key} must be of type {getattr(kind, '__name__', kind)}, got"
                f" {settings[key]!r}"
            )
    return {key: settings[key] for key in SETTINGS_KEYS if settings.get(key) is not None}


def refuse_another_codec(path: Path, settings: dict, codec) -> None:
    """InputError where llasa.json (`settings`, from `path`) tells another codec, or other weights
    of it, than `codec`.

    What one side does not know agrees with anything. A codec tells its weights as `fingerprint`
    (codecs.Codec).
    """
    named, trained = settings.get("codec"), settings.get("codec_fingerprint")
    if named is not None and codec.name != named:
        raise InputError(f"{path}: the model was trained on codec {named}, not {codec.name}")
    given = getattr(codec, "fingerprint", None) if trained else None
    if given is not None and given != trained:
        folder = settings.get("codec_folder")
        place = f"that of the folder {folder}" if folder else "that with which its codes were made"
        raise InputError(
            f"{path}: the model was trained on codec {named} of weights {trained}, not {given};"
            f" give {place} as codec"
        )
