"""Members of a tar -> samples of one name: {suffix: content}, streamed, as WebDataset has it.

A name ends at its first dot, as there; where that leaves no suffix that is read, at its last (LJ.001.wav is LJ.001, not
one of many members of LJ). The trap avoided: what is not read is told, with a reason, not skipped.
"""

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from llasa_core.corpus_readers import AUDIO_SUFFIXES
from llasa_core.errors import InputError

MOST_BYTES = 2**30  # of one recording
_READ = (*AUDIO_SUFFIXES, ".txt", ".json")


def tar_samples(archive: tarfile.TarFile, path: str) -> Iterator[tuple[str, dict[str, bytes] | str]]:
    """(name, {suffix: content}) of each sample with audio; (member, reason) of each member that belongs to none.

    Reasons: "missing_audio" of a text alone, "unknown_suffix", "link". Hidden members and folders are passed over, and
    so are further ones of a sample with audio (of a.wav: a.speaker.txt, a.cls). InputError, which names `path`, where
    a text stands apart from its audio or a member is larger than MOST_BYTES.
    """
    key, around, members = None, None, {}  # of the sample being read; its name up to the first dot
    ahead: dict[str, dict[str, bytes]] = {}  # texts of further dots: of an audio to come, or beside that of fewer dots
    heard: set[str] = set()  # names with audio
    strays: list[tuple[str, str]] = []  # (member, reason) of the same name up to the first dot

    def finished() -> Iterator[tuple[str, dict[str, bytes]]]:
        if any(suffix in members for suffix in AUDIO_SUFFIXES):
            heard.add(key)
            yield key, members
        else:
            astray(key, members)

    def astray(name: str | None, texts: dict[str, bytes]) -> None:
        if texts and name in heard:
            raise InputError(f"{path}: {name}: a text apart from its audio, expected members of one name side by side")
        strays.extend((name + suffix, "missing_audio") for suffix in texts)

    def told() -> Iterator[tuple[str, str]]:
        for name, texts in ahead.items():
            astray(name, texts)
        for name, reason in strays:
            if heard.isdisjoint(_beginnings(name)):
                yield name, reason
        ahead.clear()
        strays.clear()

    for member in archive:
        if member.isdir() or PurePosixPath(member.name).name.startswith("."):
            continue
        here, suffix, first = _name(member.name)
        read = member.isfile() and suffix in _READ
        wait = read and here not in (first, key) and suffix not in AUDIO_SUFFIXES
        mine = read and not wait
        if first != around or (mine and (here != key or suffix in members)):
            yield from finished()
            if first != around:
                yield from told()
            key, around, members = (here, first, ahead.pop(here, {})) if mine else (None, first, {})
        if not read:
            strays.append((member.name, "unknown_suffix" if member.isfile() else "link"))
            continue
        if member.size > MOST_BYTES:
            raise InputError(f"{path}: {member.name} has {member.size} bytes, expected at most {MOST_BYTES}")
        content = archive.extractfile(member).read()
        (ahead.setdefault(here, {}) if wait else members)[suffix] = content
    yield from finished()
    yield from told()


def _name(member: str) -> tuple[str, str, str]:
    """The name of a member's sample, its suffix, and the name up to the first dot, where WebDataset's ends."""
    path = PurePosixPath(member)
    stem, _, suffix = path.name.partition(".")
    first = str(path.with_name(stem))
    if f".{suffix.lower()}" in _READ or path.suffix.lower() not in _READ:
        return first, f".{suffix.lower()}", first
    return str(path.with_suffix("")), path.suffix.lower(), first


def _beginnings(member: str) -> Iterator[str]:
    """The names of the samples that a member can belong to: it, cut at each of its dots."""
    path = PurePosixPath(member)
    places = (at for at, letter in enumerate(path.name) if letter == "." and at)
    return (str(path.with_name(path.name[:at])) for at in places)
