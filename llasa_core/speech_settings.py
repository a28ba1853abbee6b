"""`llasa.json`, which stands beside a checkpoint: what a synthesizer must know of how the model was trained."""

from __future__ import annotations

from pathlib import Path

from llasa_core.errors import InputError
from llasa_core.speech_requests import parse_object

SETTINGS = "llasa.json"  # written next to a checkpoint by training
SETTINGS_KEYS = {"codec": str, "date": str, "speakers": list, "mask_eot": bool, "seconds_per_character": int | float}
SETTINGS_KEYS |= {"codec_fingerprint": str, "codec_folder": str}


def read_settings(path: Path) -> dict:
    """What llasa.json says of SETTINGS_KEYS; {} without the file. Speakers of a model without tags are left out."""
    if not path.is_file():
        return {}
    settings = parse_object(path.read_text(encoding="utf-8"), str(path))
    if settings.get("speaker_tags") == 0:
        settings["speakers"] = []
    for key, kind in SETTINGS_KEYS.items():
        if settings.get(key) is not None and not isinstance(settings[key], kind):
            raise InputError(f"{path}: {key} must be of type {getattr(kind, '__name__', kind)}, got {settings[key]!r}")
    return {key: settings[key] for key in SETTINGS_KEYS if settings.get(key) is not None}


def refuse_another_codec(path: Path, settings: dict, codec) -> None:
    """InputError where llasa.json (`settings`, from `path`) tells another codec, or other weights of it, than `codec`.

    What one side does not know agrees with anything. A codec tells its weights as `fingerprint` (codecs.Codec).
    """
    named, trained = settings.get("codec"), settings.get("codec_fingerprint")
    if named is not None and codec.name != named:
        raise InputError(f"{path}: the model was trained on codec {named}, not {codec.name}")
    given = getattr(codec, "fingerprint", None) if trained else None
    if given is not None and given != trained:
        folder = settings.get("codec_folder")
        place = f"that of the folder {folder}" if folder else "that with which its codes were made"
        raise InputError(
            f"{path}: the model was trained on codec {named} of weights {trained}, not {given}; give {place} as codec"
        )
