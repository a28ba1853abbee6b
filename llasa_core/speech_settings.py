"""`llasa.json`, which stands beside a checkpoint: what a synthesizer must know of how the model was trained."""

from __future__ import annotations

from pathlib import Path

from llasa_core.errors import InputError
from llasa_core.speech_requests import parse_object

SETTINGS = "llasa.json"  # written next to a checkpoint by training
SETTINGS_KEYS = {"codec": str, "date": str, "speakers": list, "mask_eot": bool, "seconds_per_character": int | float}


def read_settings(path: Path) -> dict:
    """What llasa.json says of SETTINGS_KEYS; {} without the file. Speakers of a model without tags are left out."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is no UTF-8, expected JSON that training wrote") from None
    settings = parse_object(text, str(path))
    if settings.get("speaker_tags") == 0:
        settings["speakers"] = []
    for key, kind in SETTINGS_KEYS.items():
        if settings.get(key) is not None and not isinstance(settings[key], kind):
            raise InputError(f"{path}: {key} must be of type {getattr(kind, '__name__', kind)}, got {settings[key]!r}")
    return {key: settings[key] for key in SETTINGS_KEYS if settings.get(key) is not None}
