"""Files by path or URL: local ones by the operating system, others (s3://, gs://, memory://, ..) by fsspec.

Nothing is fetched before it is read. A URL whose protocol needs a package that is not installed is bad input.
"""

import glob
import re
from pathlib import Path
from typing import BinaryIO

from llasa_core.errors import InputError

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*(://|::)")


def is_url(path) -> bool:
    """Whether a path is a URL (`file://` too)."""
    return isinstance(path, str) and _URL.match(path) is not None


def open_binary(path: str | Path) -> BinaryIO:
    """A file, open to be read and sought in. FileNotFoundError or another OSError if it cannot be had."""
    if not is_url(path):
        return open(path, "rb")
    with _errors(path):
        system, place = filesystem(path)
        return system.open(place, "rb")


def read_bytes(path: str | Path, most: int | None = None) -> bytes:
    """The content of a file. OSError if it cannot be read, InputError if it has more than `most` bytes."""
    with open_binary(path) as file, _errors(path):
        data = file.read() if most is None else file.read(most + 1)
    if most is not None and len(data) > most:
        raise InputError(f"{path}: more than {most} bytes, expected a smaller file")
    return data


def filesystem(url: str):
    """(fsspec filesystem, path in it) of a URL. InputError if the protocol is unknown or its package is missing."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: {' '.join(str(error).split())[:160]}") from None


def expand(pattern: str | Path) -> list[str]:
    """The files that a path, URL or glob pattern (*, ?, [..], {a..b} as in shards-{000..127}.tar) names, sorted."""
    names = [name for one in _braces(str(pattern)) for name in _matches(one)]
    if not names:
        raise InputError(f"{pattern}: no such file or folder, and no file of that pattern")
    return names


def size_of(path: str | Path) -> int:
    """Bytes of a file; OSError if it is not there."""
    if not is_url(path):
        return Path(path).stat().st_size
    with _errors(path):
        system, place = filesystem(path)
        return int(system.info(place)["size"] or 0)


def listing(folder: str | Path, suffix: str) -> list[str]:
    """Files of a folder with that suffix, sorted; none where it is no folder."""
    if not is_url(folder):
        return sorted(str(path) for path in Path(folder).glob(f"*{suffix}") if path.is_file())
    with _errors(folder):
        system, place = filesystem(folder)
        return sorted(system.unstrip_protocol(name) for name in system.glob(f"{place.rstrip('/')}/*{suffix}"))


def join(folder: str | Path, name: str) -> str | Path:
    """A file of a folder that is a path or a URL."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else Path(folder) / name


def _matches(name: str) -> list[str]:
    if not re.search(r"[*?\[]", name):
        return [name]
    if is_url(name):
        with _errors(name):
            system, place = filesystem(name)
            return sorted(system.unstrip_protocol(found) for found in system.glob(place))
    return sorted(glob.glob(name, recursive=True))


def _braces(pattern: str) -> list[str]:
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    first, last = found[1], found[2]
    numbers = range(int(first), int(last) + 1)
    if len(numbers) > 10**6:
        raise InputError(f"{pattern}: names {len(numbers)} files, expected a million at most")
    rest = _braces(pattern[found.end() :])
    return [f"{pattern[: found.start()]}{number:0{len(first)}d}{tail}" for number in numbers for tail in rest]


class _errors:
    """What filesystems raise of their own (botocore, aiohttp, ..) becomes an OSError; it names the URL."""

    def __init__(self, url):
        self.url = url

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None or isinstance(error, OSError | InputError) or not isinstance(error, Exception):
            return False
        raise OSError(f"{self.url}: {type(error).__name__}: {' '.join(str(error).split())[:160]}") from error
