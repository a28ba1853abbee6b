"""Files by path or URL: local ones by the operating system, others (s3://, gs://, memory://, ..) by
fsspec; their JSON, JSON lines and YAML; writing by temporary file and rename.

Nothing is fetched before it is read. A URL whose protocol needs a package that is not installed is
bad input. What JSON and YAML may be (size, depth, digits) is decided here: a file may come from a
stranger, and what json and yaml let pass fails later in places that name no file.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from llasa_core.errors import InputError

MOST_JSON_BYTES = 2**30  # of a JSON file that is read whole
MOST_YAML_BYTES = 2**20  # yaml needs some 500 bytes of memory and 50 microseconds a byte
MOST_YAML_VALUES = 100_000  # what an alias (*name) repeats counts again
MOST_LEVELS = 100  # of brackets in brackets
MOST_DIGITS = 40  # of a number; 10**309 and above cannot even be compared with a float
_LONG_NUMBER = re.compile(rf"\d{{{MOST_DIGITS + 1}}}")

# In the messages of libraries on a full disk; torch.save says the second or third and no reason.
FULL_DISK_WORDS = ("No space left", "PytorchStreamWriter failed", "unexpected pos")

# A JSON text in UTF-8: a lone surrogate, which JSON can name but UTF-8 cannot hold, stays \\udXXX.
UNPAIRED = ("utf-8", "backslashreplace")

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*(://|::)")


def is_url(path) -> bool:
    """Whether a path is a URL (`file://` too)."""
    return isinstance(path, str) and _URL.match(path) is not None


def open_binary(path: str | Path) -> BinaryIO:
    """A file, open for reading and seeking. FileNotFoundError or another OSError if absent."""
    if not is_url(path):
        return open(path, "rb")
    with _errors(path):
        system, place = filesystem(path)
        return system.open(place, "rb")


def read_bytes(path: str | Path, most: int | None = None) -> bytes:
    """The content of a file. OSError if unreadable, InputError above `most` bytes."""
    with open_binary(path) as file, _errors(path):
        data = file.read() if most is None else file.read(most + 1)
    if most is not None and len(data) > most:
        raise InputError(f"{path}: more than {most} bytes, expected a smaller file")
    return data


def filesystem(url: str):
    """(fsspec filesystem, path in it) of a URL. InputError without its protocol or package."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: {' '.join(str(error).split())[:160]}") from None


def expand(pattern: str | Path) -> list[str]:
    """Sorted files of a path, URL or glob pattern (*, ?, [..], {a..b}: shards-{000..127}.tar)."""
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
        return sorted(
            system.unstrip_protocol(name) for name in system.glob(f"{place.rstrip('/')}/*{suffix}")
        )


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
    return [
        f"{pattern[: found.start()]}{number:0{len(first)}d}{tail}"
        for number in numbers
        for tail in rest
    ]


class _errors:
    """Errors of filesystems (botocore, aiohttp, ..) become OSErrors that name the URL."""

    def __init__(self, url):
        self.url = url

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if (
            error is None
            or isinstance(error, OSError | InputError)
            or not isinstance(error, Exception)
        ):
            return False
        raise OSError(
            f"{self.url}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
        ) from error


def text_lines(path: str | Path, what: str) -> Iterator[tuple[int, str]]:
    """Numbers (from 1) and text of the non-blank lines. InputError unless a UTF-8 file."""
    try:
        with open_binary(path) as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}:{number}: byte {error.start} is no UTF-8, expected {what}"
                    ) from None
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}, expected {what}") from None


def publish(path: Path, data: bytes, synced: bool = True) -> None:
    """Write a file under a temporary name in its folder and rename it, so that it is whole or not
    there; `synced`: also after a power cut.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with names_full_disk(path):
            temporary.write_bytes(data)
            if synced:
                sync(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def names_full_disk(path: str | Path) -> Iterator[None]:
    """InputError, which names `path`, in place of whatever a library raises on a full disk."""
    try:
        yield
    except Exception as error:
        full = full_disk(error, path)
        if full is error:
            raise
        raise full from None


def full_disk(error: Exception, path: str | Path) -> Exception:
    """InputError in place of an error that says the disk is full, or came of one that does; any
    other error as it is.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(words in str(cause) for words in FULL_DISK_WORDS):
            return InputError(
                f"{path}: no space left on the disk; what is finished is kept, free some and run"
                " again"
            )
        cause = cause.__cause__ or cause.__context__
    return error


_held: set[str] = set()  # folders that this process has for itself


@contextmanager
def one_writer(folder: str | Path) -> Iterator[None]:
    """A folder for this process alone. It is made where there is none, and taken away if it is then
    left empty.

    Of two processes the later one has InputError at once. The lock is on the folder itself: it is
    gone with the process, however that ends, and leaves no file. Within a process it may be taken
    again. Where a file system has no locks there is none.
    """
    name = os.path.realpath(folder)
    if name in _held:
        yield
        return
    made = not os.path.isdir(name)
    os.makedirs(name, exist_ok=True)
    handle = os.open(name, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{folder}: another process is writing there; wait for its end, or choose"
                    " another folder"
                ) from None
        _held.add(name)
        try:
            yield
        finally:
            _held.discard(name)
            if made:
                with suppress(OSError):
                    os.rmdir(name)
    finally:
        os.close(handle)


def sha256(path: str | Path) -> str:
    """Of a local file; of a folder, over the sorted lines `name sha256` of its files."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def brief(error: Exception, most: int = 120) -> str:
    """The message of an error as one line of about `most` characters: what is longer loses its
    middle, as some libraries put the cause first and others last.
    """
    line = " ".join(str(error).split())
    return line if len(line) <= most else f"{line[: most // 2]} .. {line[-most // 2 :]}"


def parse_json(text: str, where: str, expected: str = "JSON", finite: bool = False) -> Any:
    """The value of a JSON text.

    InputError, which `where` (a file, or a file and line) opens and `expected` ends, for anything
    else: also for brackets nested too deep, for a number of too many digits, and with `finite` for
    NaN and infinities, which Python reads beyond the standard.
    """
    whole = _bounded_integer if _LONG_NUMBER.search(text) else None
    real = _finite if finite else None
    try:
        value = json.loads(
            text, parse_constant=_refuse if finite else None, parse_int=whole, parse_float=real
        )
        if text.count("[") + text.count("{") > MOST_LEVELS and deeper_than(value, MOST_LEVELS):
            raise ValueError(f"more than {MOST_LEVELS} brackets in brackets")
        return value
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column" if error.lineno > 1 else "column"
        raise InputError(
            f"{where}: not JSON ({error.msg} at {place} {error.colno}), expected {expected}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({brief(error)}), expected {expected}") from None


def deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and objects of a JSON value stand in each other on more than `levels` levels;
    without recursion, whose own limit a deep value would meet.
    """
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(levels):
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [item for items in inner for item in items if isinstance(item, list | dict)]
    return bool(level)


def _bounded_integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse(digits[:20])


def parse_object(
    text: str, where: str, expected: str = "a JSON object", finite: bool = False
) -> dict[str, Any]:
    """The JSON object of a text; errors as in `parse_json`."""
    value = parse_json(text, where, expected, finite)
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON {type(value).__name__}, expected {expected}")
    return value


def read_object(
    path: str | Path, expected: str = "a JSON object", finite: bool = False
) -> dict[str, Any]:
    """The JSON object that a file holds. InputError, which names the file and ends with `expected`,
    where there is no such file, and otherwise as in `parse_json`.
    """
    try:
        text = read_bytes(path, MOST_JSON_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is no UTF-8, expected {expected}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: not found, expected {expected}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}, expected {expected}") from None
    return parse_object(text, str(path), expected, finite)


def numbered_rows(
    path: str | Path, expected: str = "JSON lines, one object a line"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of a JSON-lines file; InputError names file and line."""
    for number, line in text_lines(path, expected):
        yield number, parse_object(line, f"{path}:{number}", expected)


def read_rows(path: str | Path, expected: str = "JSON lines, one object a line") -> list[dict]:
    """The objects of a JSON-lines file; errors as in `numbered_rows`."""
    return [row for _, row in numbered_rows(path, expected)]


def json_line(row: Mapping[str, Any]) -> str:
    """One line of a JSON-lines file. ValueError for NaN, which no other program reads."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """JSON lines, by temporary file and rename, in a folder that is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, "".join(map(json_line, rows)).encode(*UNPAIRED))
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Sorted keys, no NaN, by temporary file and rename."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path = Path(path)
    publish(path, f"{text}\n".encode(*UNPAIRED))
    return path


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"the constant {constant}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping of what JSON knows too: text, finite numbers, truth values, lists, mappings.

    InputError for anything else (dates, sets, bytes, tags), for a key given twice, which plain YAML
    lets pass, and for aliases of aliases, which can make a kilobyte billions of values.
    """
    import yaml

    held: dict[str, int] = {}  # anchor -> how many values it holds

    class Loader(yaml.SafeLoader):
        values = 0

        def compose_node(self, parent, index):
            event, before = self.peek_event(), self.values
            alias = isinstance(event, yaml.AliasEvent)
            self.values += held.get(event.anchor, MOST_YAML_VALUES) if alias else 1
            node = super().compose_node(parent, index)
            if not alias and event.anchor:
                held[event.anchor] = self.values - before
            if self.values > MOST_YAML_VALUES:
                raise InputError(
                    f"{path}: line {event.start_mark.line + 1}: more than {MOST_YAML_VALUES:,}"
                    " values, aliases (*name) written out"
                )
            return node

        def construct_mapping(self, node, deep=False):
            seen = set()
            for key_node, _ in node.value:
                key = str(key_node.value)
                if key in seen:
                    raise InputError(
                        f"{path}: line {key_node.start_mark.line + 1}: `{key}` is given twice"
                    )
                seen.add(key)
            return super().construct_mapping(node, deep)

    try:
        text = read_bytes(path, MOST_YAML_BYTES).decode("utf-8")
        settings = yaml.load(text, Loader)  # a SafeLoader
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # yaml's constructors fail in any way: 2001-99-99, !!map "text"
        reason = brief(error, 200) or type(error).__name__
        raise InputError(f"{path}: not YAML ({reason})") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: expected a mapping of keys")
    check_plain(settings, str(path))
    return settings


def check_plain(value: Any, where: str) -> None:
    """InputError, which `where` opens, for a value that JSON cannot hold, or beyond the bounds of
    what is read: levels, digits, a NUL in a text.
    """
    if deeper_than(value, MOST_LEVELS):
        raise InputError(f"{where}: more than {MOST_LEVELS} lists or mappings in each other")
    if isinstance(value, dict):
        for key, item in value.items():
            check_plain(key, where)
            check_plain(item, f"{where}: `{str(key)[:40]}`")
    elif isinstance(value, list | tuple):
        for item in value:
            check_plain(item, where)
    elif isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        raise InputError(f"{where}: a number of more than {MOST_DIGITS} digits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}, expected a finite number")
    elif isinstance(value, str) and "\0" in value:
        raise InputError(f"{where} is {brief(repr(value), 60)}, expected text without NUL")
    elif not isinstance(value, str | int | float | None):
        raise InputError(
            f"{where} is {brief(repr(value), 60)}, expected a number, text, list or mapping"
        )


def render_page(folder: str | Path, name: str, **values: Any) -> bytes:
    """The HTML of a template file (jinja2) in `folder`, every value escaped where it is written.

    The page may load pictures, players and its own script, and nothing else: its
    Content-Security-Policy holds the hash of the template's variable `script`.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(folder)
    pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    script = Path(folder, f"{name}.js")
    text = script.read_text(encoding="utf-8") if script.is_file() else ""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:;"
    policy += f" media-src 'self' file:; script-src 'sha256-{digest}'; base-uri 'none'"
    page = pages.get_template(f"{name}.html")
    return page.render(policy=policy, script=text, **values).encode(*UNPAIRED)
