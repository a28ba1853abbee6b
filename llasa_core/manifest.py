"""Manifests: utterances as JSON lines (id audio text speaker language seconds split), and splits by hash of the id.

In memory audio paths are absolute; in a file they are relative to its folder, so a corpus can be moved as a whole.
"""

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llasa_core.errors import InputError
from llasa_core.remote import is_url, join, open_binary

T = TypeVar("T")
SPLITS = ("train", "dev", "test")
_EXPECTED = "expected a JSON object with id, audio, text and perhaps speaker, language, seconds, split"


@dataclass(frozen=True)
class Utterance:
    """One utterance of a corpus.

    audio: the path or URL of its file (or, where a dataset holds files inside itself, the bytes of one).
    seconds: its length, where known. split: "train", "dev" or "test", where the corpus says so; None: by hash.
    """

    id: str
    audio: str | Path | bytes
    text: str
    speaker: str = ""
    language: str = "en"
    seconds: float | None = None
    split: str | None = None


def read_manifest(path: str | Path) -> list[Utterance]:
    """The utterances of a JSON-lines manifest, audio as absolute paths (whether they exist is not looked at).

    Raises InputError with file and line for a missing file, a malformed line, an unknown split or a repeated id.
    """
    utterances, lines = [], {}
    for number, utterance in manifest_lines(path):
        if utterance.id in lines:
            first = lines[utterance.id]
            raise InputError(f"{path}:{number}: id {utterance.id!r} is that of line {first} too, expected unique ids")
        lines[utterance.id] = number
        utterances.append(utterance)
    return utterances


def manifest_lines(path: str | Path) -> Iterator[tuple[int, Utterance]]:
    """Line numbers (from 1) and utterances of a manifest, repeated ids included; errors as in `read_manifest`."""
    folder = path.rpartition("/")[0] if is_url(path) else Path(path).parent.resolve()
    for number, line in text_lines(path, "a manifest of JSON lines"):
        yield number, _parse(line, f"{path}:{number}", folder)


def text_lines(path: str | Path, what: str) -> Iterator[tuple[int, str]]:
    """Numbers (from 1) and text of the lines that are not blank. InputError if there is no such UTF-8 file."""
    try:
        with open_binary(path) as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise InputError(f"{path}:{number}: byte {error.start} is no UTF-8, expected {what}") from None
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}, expected {what}") from None


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest, whole or not at all. Absolute audio paths become relative to its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.resolve()
    publish(path, "".join(_line(utterance, folder) for utterance in utterances).encode())


def evenly(items: Sequence[T], limit: int) -> Sequence[T]:
    """At most `limit` items spread evenly over a list, in its order; 0 takes all."""
    return [items[place * len(items) // limit] for place in range(limit)] if 0 < limit < len(items) else items


def publish(path: Path, data: bytes) -> None:
    """Write a file under a temporary name in its folder and rename it, so that it is whole or not there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise full_disk(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


def full_disk(error: OSError, path: Path) -> Exception:
    """InputError in place of an error that says the disk is full; any other error as it is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return InputError(f"{path}: no space left on the disk; what is finished is kept, free some and run again")
    return error


def split_of(id: str, fractions: tuple[float, float, float] = (0.96, 0.02, 0.02)) -> str:
    """ "train", "dev" or "test" by sha256 of the id; `fractions` are their shares, which sum to 1.

    What is test stays test whatever the share of dev. Raises InputError for shares that are none.
    """
    if len(fractions) != 3 or min(fractions) < 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-9):
        raise InputError(f"split fractions {fractions}: expected the shares of train, dev and test, which sum to 1")
    _, dev, test = fractions
    value = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") / 2**64
    if value < test:
        return "test"
    return "dev" if value < test + dev else "train"


def _parse(line: str, where: str, folder: Path | str) -> Utterance:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno}), {_EXPECTED}") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits, brackets in thousands
        raise InputError(f"{where}: JSON that no manifest holds, {_EXPECTED}") from None
    if not isinstance(item, dict):
        raise InputError(f"{where}: a JSON {type(item).__name__}, {_EXPECTED}")
    for key in ("id", "audio", "text"):
        if key not in item:
            raise InputError(f"{where}: the key {key!r} is missing, {_EXPECTED}")
        if not isinstance(item[key], str):
            raise InputError(f"{where}: {key} is {json.dumps(item[key])[:40]}, expected a string")
    for key in ("speaker", "language", "split"):
        if not isinstance(item.get(key, ""), str | None):
            raise InputError(f"{where}: {key} is {json.dumps(item[key])[:40]}, expected a string")
    for key in ("id", "audio"):
        if not item[key].strip() or "\0" in item[key]:
            raise InputError(f"{where}: {key} is {item[key]!r}, expected a name")
    seconds, split = item.get("seconds"), item.get("split") or None
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (number and 0 <= seconds < math.inf):
        raise InputError(f"{where}: seconds is {json.dumps(seconds)[:40]}, expected a number from 0 on")
    if split not in (None, *SPLITS):
        raise InputError(f"{where}: split is {split!r}, expected train, dev or test")
    audio = item["audio"] if is_url(item["audio"]) else join(folder, item["audio"])
    audio = Path(os.path.normpath(audio)) if isinstance(audio, Path) else audio
    speaker, language = item.get("speaker") or "", item.get("language") or "en"
    return Utterance(item["id"], audio, item["text"], speaker, language, seconds, split)


def _line(utterance: Utterance, folder: Path) -> str:
    if isinstance(utterance.audio, bytes):
        raise InputError(f"utterance {utterance.id!r}: its audio is not a file, expected one (prepare writes it)")
    audio = utterance.audio if is_url(utterance.audio) else Path(utterance.audio)
    if isinstance(audio, Path):
        # The name itself may be a link (into a cache) and stays as it is.
        there = Path(os.path.relpath(audio.parent.resolve() / audio.name, folder)) if audio.is_absolute() else audio
        audio = there.as_posix()
    fields = {"id": utterance.id, "audio": audio, "text": utterance.text, "speaker": utterance.speaker}
    fields |= {"language": utterance.language, "seconds": utterance.seconds, "split": utterance.split}
    return json.dumps({key: value for key, value in fields.items() if value is not None}, ensure_ascii=False) + "\n"
