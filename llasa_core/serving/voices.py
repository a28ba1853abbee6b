"""The voices of a server: the speaker tags of the model, and recordings to continue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llasa_core.audio import AUDIO_SUFFIXES
from llasa_core.errors import InputError
from llasa_core.manifest import Request
from llasa_core.prompts import Voice

if TYPE_CHECKING:
    from llasa_core.synthesis.synthesizer import Synthesizer

DEFAULT = "default"  # neither tag nor recording: the model chooses


@dataclass(frozen=True, eq=False)
class NamedVoice:
    """A voice that a request may name. kind: "tag", "recording" or "default"."""

    name: str
    kind: str
    voice: Voice | None = None

    def request(self, text: str, seed: int) -> Request:
        """What is to be spoken in this voice, as `llasa synthesize` would ask for it."""
        speaker = self.name if self.kind == "tag" else None
        return Request("utterance", text, speaker, self.voice, seed)


def voices_of(
    synthesizer: Synthesizer,
    recordings: str | Path | None = None,
    speakers: Sequence[str] = (),
) -> dict[str, NamedVoice]:
    """The model's speaker tags, `default`, and every recording NAME.wav (or another audio format)
    of a folder that has the words spoken in it in NAME.txt. `speakers`: the tags of a checkpoint
    that does not say which it knows.

    InputError for a recording without words or of no use, a name that is taken, an empty folder,
    and speakers beside those that the checkpoint declares.
    """
    if speakers and synthesizer.speakers is not None:
        declared = ", ".join(synthesizer.speakers) or "none"
        raise InputError(f"speakers {', '.join(speakers)}: the checkpoint declares {declared}")
    tags = synthesizer.speakers or speakers
    voices = {name: NamedVoice(name, "tag") for name in tags}
    voices.setdefault(DEFAULT, NamedVoice(DEFAULT, "default"))
    if recordings is None:
        return voices
    folder = Path(recordings)
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder, expected one with NAME.wav and NAME.txt")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
    if not found:
        raise InputError(f"{folder}: no recordings, expected NAME.wav and NAME.txt")
    for path in found:
        words = path.with_suffix(".txt")
        if not words.is_file():
            raise InputError(f"{words}: not found, expected the words spoken in {path.name}")
        if path.stem in voices:
            raise InputError(f"{path}: there is a voice {path.stem!r} already; rename it")
        voice = synthesizer.voice(path, words.read_text(encoding="utf-8").strip())
        voices[path.stem] = NamedVoice(path.stem, "recording", voice)
    return voices


def request_in(voice: NamedVoice, text: str, seed: int, normalise: bool) -> Request:
    """The request of a text in a voice; normalise: numbers and the like are written out before."""
    request = voice.request(text, seed)
    if not normalise:
        return request
    from llasa_core.synthesis.spoken_form import spoken_form

    return replace(request, text=spoken_form(request.text))
