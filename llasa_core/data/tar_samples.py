"""Members of a tar -> samples of one name, {suffix: content}, as WebDataset has it.

A name ends at its first dot, as there; where that leaves no suffix that is read, at its last
(LJ.001.wav is LJ.001, not one of many members of LJ). Text and audio of a sample may stand apart:
one pass does where the text is next to its audio or before it, else a second one fetches all texts.
What is not read is reported with a reason, not skipped.
"""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from llasa_core.audio import AUDIO_SUFFIXES, FFMPEG_SUFFIXES
from llasa_core.files import open_binary

MOST_BYTES = 2**28  # of one recording, 46 minutes at 48 kHz; of a text, MOST_TEXT_BYTES

MOST_TEXT_BYTES = 2**20

_TEXTS = (".txt", ".json")

_READ = (*AUDIO_SUFFIXES, *FFMPEG_SUFFIXES, *_TEXTS)


def tar_samples(path: str) -> Iterator[tuple[str, dict[str, bytes] | str]]:
    """(name, {suffix: content}) of each sample with audio; (member, reason) of each member that
    belongs to none.

    Reasons: "missing_audio" of a text alone, "needs_ffmpeg", "too_large", "unknown_suffix", "link".
    Hidden members and folders are passed over, and so are further ones of a sample with audio (of
    a.wav: a.speaker.txt, a.cls). Raises what tarfile raises of a damaged tar.
    """
    texts: dict[str, dict[str, bytes]] = {}  # of samples whose audio is still to come
    heard: set[str] = set()  # names with audio
    strays: list[tuple[str, str]] = []  # (member, reason), unless a sample of that name has audio
    name, audio, all_texts = "", {}, False

    def finished() -> Iterator[tuple[str, dict[str, bytes]]]:
        nonlocal all_texts
        if audio:
            if name not in texts and not all_texts:
                all_texts = True
                for here, suffix, content in _all_texts(path):
                    if here not in heard or here == name:
                        texts.setdefault(here, {}).setdefault(suffix, content)
            yield name, {**texts.pop(name, {}), **audio}

    with _opened(path) as archive:
        for member in archive:
            here, suffix = _name(member.name)
            if member.isdir() or PurePosixPath(member.name).name.startswith("."):
                continue
            if not member.isfile() or suffix not in _READ:
                strays.append((member.name, "unknown_suffix" if member.isfile() else "link"))
            elif suffix in _TEXTS and member.size <= MOST_TEXT_BYTES:
                if (here not in heard or here == name) and not all_texts:
                    content = archive.extractfile(member).read()
                    texts.setdefault(here, {}).setdefault(suffix, content)
            elif suffix in FFMPEG_SUFFIXES or member.size > MOST_BYTES or suffix in _TEXTS:
                heard.add(here)
                why = "needs_ffmpeg" if suffix in FFMPEG_SUFFIXES else "too_large"
                yield member.name, why
            else:
                if here != name or suffix in audio:
                    yield from finished()
                    name, audio = here, {}
                heard.add(here)
                audio[suffix] = archive.extractfile(member).read()
    yield from finished()
    strays += [
        (here + suffix, "missing_audio") for here, found in texts.items() for suffix in found
    ]
    for member_name, reason in strays:
        if heard.isdisjoint(_beginnings(member_name)):
            yield member_name, reason


@contextmanager
def _opened(path: str) -> Iterator[tarfile.TarFile]:
    with open_binary(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        yield archive


def _all_texts(path: str) -> Iterator[tuple[str, str, bytes]]:
    with _opened(path) as archive:
        for member in archive:
            here, suffix = _name(member.name)
            if suffix in _TEXTS and member.isfile() and member.size <= MOST_TEXT_BYTES:
                yield here, suffix, archive.extractfile(member).read()


def _name(member: str) -> tuple[str, str]:
    """The name of a member's sample, and its suffix."""
    path = PurePosixPath(member)
    stem, _, suffix = path.name.partition(".")
    if f".{suffix.lower()}" in _READ or path.suffix.lower() not in _READ:
        return str(path.with_name(stem or path.name)), f".{suffix.lower()}"
    return str(path.with_suffix("")), path.suffix.lower()


def _beginnings(member: str) -> Iterator[str]:
    """The names of the samples that a member can belong to: it, cut at each of its dots."""
    path = PurePosixPath(member)
    places = (at for at, letter in enumerate(path.name) if letter == "." and at)
    return (str(path.with_name(path.name[:at])) for at in places)
