"""The recordings of a folder, found by whatever name a list gives them.

A list may say ID, ID.wav, wavs/ID.wav, wavs\\ID.WAV or the path that it had on another machine, and
its accents may be composed (NFC) where those of the file names are not (NFD). A name
that fits two recordings is reported as ambiguous.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from llasa_core.audio import AUDIO_SUFFIXES, FFMPEG_SUFFIXES
from llasa_core.files import is_url
from llasa_core.manifest import Unread, Utterance, printable

KNOWN_SUFFIXES = (*AUDIO_SUFFIXES, *FFMPEG_SUFFIXES)

USUAL_FOLDERS = ("", "wavs", "wav", "audio", "clips", "audios", "data")  # where lists mean by an ID

_DEEP = len(USUAL_FOLDERS)  # the place of any other folder


def stem_of(name: str) -> str:
    """A name without the suffix of an audio file; LJ.001 stays what it is."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in KNOWN_SUFFIXES else name


def id_of(name: str, folder: Path | str = "") -> str:
    """An id for a recording that has none: its path, from the corpus on, without suffix and without
    a usual folder such as wavs.
    """
    path = name.replace("\\", "/")
    inside = path.removeprefix(f"{folder}/") if folder else path
    parts = [part for part in inside.split("/") if part not in ("", ".")]
    if len(parts) > 1 and parts[0].lower() in USUAL_FOLDERS:
        parts = parts[1:]
    return stem_of("/".join(parts))


class Recordings:
    """The audio files below a folder; `find` one by name."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).resolve()
        self._named: dict[str, list[str]] = defaultdict(list)  # by folded name without suffix
        self._given: dict[str, str] = {}  # what was found by its last name alone, and for whom
        seen = set()
        for place, folders, names in os.walk(self.folder, followlinks=True):
            if os.path.realpath(place) in seen:
                folders.clear()  # a link that leads back
                continue
            seen.add(os.path.realpath(place))
            folders.sort()
            for name in sorted(names):
                if os.path.splitext(name)[1].lower() in KNOWN_SUFFIXES and name[0] != ".":
                    relative = os.path.relpath(os.path.join(place, name), self.folder)
                    self._named[_folded(stem_of(name))].append(relative)

    def find(self, name: str, deep: bool = True) -> tuple[Path, str | None]:
        """(path, None), or where it was looked for and why there is none: "missing_audio",
        "ambiguous_audio" or "bad_path".

        deep: whether a name without folders may mean a recording in any, not in a usual one alone.
        """
        there = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")] or [""]
        asked, parents = there[-1], [_folded(part) for part in there[:-1]]
        absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name) is not None
        ranked = sorted(
            (rank, found)
            for found in self._named.get(_folded(stem_of(asked)), ())
            if (rank := _rank(asked, parents, absolute, found)) is not None
            and (deep or parents or rank[2] < _DEEP)
        )
        if not ranked:
            return self._as_it_stands(name)
        (best, found), others = ranked[0], ranked[1:]
        if others and others[0][0][:-2] == best[:-2]:
            beside = {os.path.dirname(other) for rank, other in others if rank[:-2] == best[:-2]}
            if beside != {os.path.dirname(found)}:
                return self.folder / found, "ambiguous_audio"
        if best[0] and self._given.setdefault(found, name) != name:
            return self.folder / found, "ambiguous_audio"
        return self.folder / found, None

    def _as_it_stands(self, name: str) -> tuple[Path, str | None]:
        """A path that leads elsewhere, or where the recording would have been."""
        path = self.folder / name
        try:
            if name and path.is_file():
                return path, None
        except (OSError, ValueError):
            return path, "bad_path"
        if stem_of(name) == name and "/" not in name:
            path = self.folder / "wavs" / f"{name}.wav"
        return path, "missing_audio"


def _rank(asked: str, parents: list[str], absolute: bool, found: str) -> tuple | None:
    """How well a recording fits a name: folders that the name has and it has not, then letters,
    place and format; None where a folder of the name contradicts it.
    """
    *folders, last = found.split(os.sep)
    own = [_folded(part) for part in folders]
    inner = own[1:] if own and own[0] in USUAL_FOLDERS else own
    loose = bool(parents) and parents not in (own, inner)
    if loose and absolute and inner:  # of another machine: the same folders from the corpus on
        if parents[-len(inner) :] != inner:
            return None
        loose = False
    elif loose and (inner or (not absolute and any(one not in USUAL_FOLDERS for one in parents))):
        return None
    suffix, wanted = (os.path.splitext(one)[1].lower() for one in (last, asked))
    other = wanted in KNOWN_SUFFIXES and suffix != wanted
    place = USUAL_FOLDERS.index(own[0] if own else "") if not inner else _DEEP
    letters = [stem_of(one) for one in (last, asked)]
    composed = [unicodedata.normalize("NFC", one) for one in letters]
    unlike = (letters[0] != letters[1]) + (composed[0] != composed[1])
    return loose, other, place, len(own), unlike, KNOWN_SUFFIXES.index(suffix)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def located(
    utterances: Iterable[Utterance], recordings: Callable[[], Recordings]
) -> Iterator[Utterance]:
    """Utterances of a manifest; where an audio file is not where it says, the one of its folder's
    `recordings` that it means.
    """
    for utterance in utterances:
        audio = utterance.audio
        if isinstance(utterance, Unread) or isinstance(audio, bytes) or is_url(audio):
            yield utterance
            continue
        try:
            there = Path(audio).is_file()
        except (OSError, ValueError):
            there = True  # a bad path, which the decoder tells
        if not there:
            name = str(audio).removeprefix(f"{recordings().folder}/")
            path, reason = recordings().find(name, deep=False)
            if reason == "ambiguous_audio":
                yield Unread(utterance.id, path, "", reason=reason, where=printable(name))
                continue
            utterance = replace(utterance, audio=path if reason is None else audio)
        yield utterance
