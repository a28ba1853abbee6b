"""A journal of work that may be stopped at any moment: OUT/finished.jsonl has a line for each
finished item, OUT/settings.json says what all of them were made with.

A line is appended once the item's audio is in place, with the sha256 of it: audio that was damaged
since, or lost in a power cut, is made again. The last line of a killed run may be torn and is
dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llasa_core.errors import InputError
from llasa_core.files import (
    UNPAIRED,
    json_line,
    names_full_disk,
    one_writer,
    parse_object,
    read_object,
    sha256,
    write_json,
    write_rows,
)

SETTINGS = "settings.json"

FINISHED = "finished.jsonl"


class Journal:
    """Rows of finished items, {"id", perhaps "audio" (a file relative to OUT), ..}, each with the
    identity that it was made for.

    An identity is any JSON value: what is asked for again under the same id and identity is
    finished.
    """

    def __init__(
        self,
        out: str | Path,
        settings: Mapping[str, Any],
        result: str | None = None,
        restart: bool = False,
    ) -> None:
        """Read what OUT holds; nothing is written before `writing`.

        result: the file of OUT whose presence means that everything is finished. restart: forget
        what was made with other settings. InputError without it, and for a `result` of unknown
        origin.
        """
        self.out, self.settings = Path(out), json.loads(json.dumps(settings))
        self._file = self.out / FINISHED
        self._result = None if result is None else self.out / result
        self._lines: dict[str, dict] = {}
        path = self.out / SETTINGS
        if not path.is_file():
            if self._result is not None and self._result.exists():
                raise InputError(
                    f"{self._result}: no {SETTINGS} next to it says what it was made with; "
                    "choose another folder"
                )
            return
        before = read_object(path)
        for key in sorted(set(before) | set(self.settings)):
            if before.get(key) != self.settings.get(key):
                if restart:
                    return
                raise InputError(
                    f"{path}: made with {key} {before.get(key)!r}, not {self.settings.get(key)!r};"
                    " choose another folder"
                )
        self._lines = {line["id"]: line for line in finished_lines(self.out)}

    def finished(self, wanted: Mapping[str, Any]) -> dict[str, dict]:
        """{id: row} of those of `wanted` ({id: identity}) that are finished, their audio in
        place.
        """
        found = {}
        for name, identity in wanted.items():
            line = dict(self._lines.get(name, ()))
            if not line or line.pop("identity") != identity:
                continue
            known = line.pop("sha256", None)  # journals of earlier versions have none
            audio = self.out / line["audio"] if "audio" in line else None
            if audio is None or (audio.is_file() and known in (None, sha256(audio))):
                found[name] = line
        return found

    @contextmanager
    def writing(self, keep: Iterable[str] | None = None) -> Iterator[Callable[[dict, Any], None]]:
        """A function that appends a row and its identity. keep: ids of the rows that stay (None:
        all), as what is made again must not be found finished with its new audio and its old row.
        """
        with one_writer(self.out), names_full_disk(self._file):
            yield from self._writing(keep)

    def _writing(self, keep: Iterable[str] | None) -> Iterator[Callable[[dict, Any], None]]:
        kept = self._lines if keep is None else {name: self._lines[name] for name in keep}
        write_json(self.out / SETTINGS, self.settings)
        write_rows(self._file, kept.values())
        if self._result is not None:
            self._result.unlink(missing_ok=True)
        for torn in self.out.glob("*/*.wav.*.part"):
            torn.unlink()
        encoding, errors = UNPAIRED
        with self._file.open("a", encoding=encoding, errors=errors) as stream:

            def add(row: dict, identity: Any) -> None:
                known = {"sha256": sha256(self.out / row["audio"])} if "audio" in row else {}
                stream.write(json_line(row | known | {"identity": identity}))
                stream.flush()

            yield add


def finished_lines(out: Path) -> Iterator[dict]:
    """The whole lines of OUT/finished.jsonl: rows, each with its `identity`."""
    path = out / FINISHED
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for number, text in enumerate(lines, start=1):
        line = parse_object(text, f"{path}:{number}", "a finished item; delete it to start over")
        if not isinstance(line.get("id"), str) or "identity" not in line:
            raise InputError(f"{path}:{number}: no finished item; delete the file to start over")
        yield line
