"""Metadata tables -> rows of named fields: id|text, id|text|speaker, id|speaker|text, LJSpeech's
id|raw|normalised, CSV and TSV, with or without a header.

A header says what a column holds, else its content does: recordings have its names, the two
readings of LJSpeech share their words, speakers come again. Where that leaves two answers, the
table is refused: a text made of speakers' names trains without an error.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from llasa_core.data.corpora.manifests import AUDIO_NAMES, COLUMNS
from llasa_core.errors import InputError
from llasa_core.files import read_bytes
from llasa_core.manifest import evenly

_EXPECTED = "expected id|text, id|text|speaker, id|speaker|text, id|raw|normalised or a header line"

_DELIMITERS = {"|": "|", "\t": "tab", ",": "comma", ";": "semicolon"}

_SAMPLE = 500  # rows that decide the columns

MOST_BYTES = 2**30


@dataclass(frozen=True)
class Table:
    """rows: (line, {column: field}) with columns audio, id, text, speaker, ..; said: what was taken
    for what, in one line.
    """

    rows: list[tuple[int, dict[str, str]]]
    said: str


def read_table(path: Path, has_recording: Callable[[str], bool]) -> Table:
    """The rows of a table. InputError, with file and line, where it is none or ambiguous."""
    lines, delimiter = _split(_text_of(path), path)
    columns = _header(lines, path, has_recording)
    told = "by its header"
    if columns:
        lines = lines[1:]
    lines = _even(lines, delimiter, path)
    if not columns:
        if delimiter == "," and len(lines[0][1]) > 2:
            _refuse_loose_commas(lines, path)
        columns, told = _by_content(lines, path, has_recording), "by its content"
    named = ", ".join(
        f"{at + 1} is {name}" for name, at in sorted(columns.items(), key=itemgetter(1))
    )
    said = f"{path}: {_DELIMITERS[delimiter]} between columns; {told}, column {named}"
    rows = []
    for number, fields in lines:
        row = {name: fields[at].strip() for name, at in columns.items()}
        row["text"] = row["text"] or row.get("raw", "")
        rows.append((number, row))
    return Table(rows, said)


def _text_of(path: Path) -> str:
    try:
        data = read_bytes(path, MOST_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}, {_EXPECTED}") from None
    coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(coding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}:{line}: byte {error.start} is no UTF-8, expected a table in UTF-8"
        ) from None


def _split(text: str, path: Path) -> tuple[list[tuple[int, list[str]]], str]:
    """(line, fields) of each line that is not blank, and the delimiter."""
    lines = [
        (number, line)
        for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1)
        if line.strip()
    ]
    if not lines:
        raise InputError(f"{path}: no lines, {_EXPECTED}")
    sample = evenly(lines, _SAMPLE)
    for delimiter in "|\t":
        if 2 * sum(delimiter in line for _, line in sample) >= len(sample):
            plain = [(number, line.split(delimiter)) for number, line in lines]
            quoted = _quoted(text, delimiter) if _is_quoted(plain) else None
            return quoted or plain, delimiter
    found = [(one, _quoted(text, one)) for one in ",;"]
    ranked = [(_evenness(rows), -at) for at, (_, rows) in enumerate(found)]
    (share, at) = max(ranked)
    if not share:
        line = lines[0]
        why = ", quotes that do not match" if None in (rows for _, rows in found) else ""
        raise InputError(f"{path}:{line[0]}: {line[1][:60]!r}{why}, {_EXPECTED}")
    delimiter, rows = found[-at]
    return rows, delimiter


def _quoted(text: str, delimiter: str) -> list[tuple[int, list[str]]] | None:
    """Rows in which a field may stand in quotes, with doubled quotes, delimiters and line breaks in
    it; None where quotes do not match.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, number = [], 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                rows.append((number, fields))
            number = reader.line_num + 1
    except csv.Error:
        return None
    return rows


def _is_quoted(rows: list[tuple[int, list[str]]]) -> bool:
    """Whether quotes are those of CSV: doubled within, or around a field in every row. Else they
    belong to the text, as in LJSpeech.
    """
    around = re.compile(r'"(?:[^"]|"")*"')
    whole = [[field for field in fields if around.fullmatch(field)] for _, fields in rows]
    return all(whole) or any('""' in field[1:-1] for fields in whole for field in fields)


def _evenness(rows: list[tuple[int, list[str]]] | None) -> float:
    """The share of rows with the most common number of fields; 0 where that is 1."""
    if not rows:
        return 0.0
    (width, count), *_ = Counter(len(fields) for _, fields in rows).most_common(1)
    return count / len(rows) if width > 1 else 0.0


def _even(
    lines: list[tuple[int, list[str]]], delimiter: str, path: Path
) -> list[tuple[int, list[str]]]:
    """Rows of one number of fields; of |, two fields are three without the last. InputError for the
    first other one.
    """
    if not lines:
        raise InputError(f"{path}: no lines after the header, {_EXPECTED}")
    widths = Counter(len(fields) for _, fields in lines)
    width = widths.most_common(1)[0][0]
    allowed = {2, 3} if delimiter == "|" and width in (2, 3) else {width}
    for number, fields in lines:
        if len(fields) not in allowed:
            line = delimiter.join(fields)[:60]
            raise InputError(
                f"{path}:{number}: {line!r} has {len(fields)} columns where most lines have"
                f" {width}, {_EXPECTED}"
            )
    width = max(allowed & widths.keys())
    return [(number, fields + [""] * (width - len(fields))) for number, fields in lines]


def _refuse_loose_commas(lines: list[tuple[int, list[str]]], path: Path) -> None:
    """InputError where spaces after the commas say that the texts hold commas of their own."""
    for number, fields in lines:
        if any(field.startswith(" ") for field in fields[1:]):
            raise InputError(
                f"{path}:{number}: {','.join(fields)[:60]!r}, expected texts with commas in quotes,"
                " or | between columns"
            )


def _header(
    lines: list[tuple[int, list[str]]], path: Path, has_recording: Callable[[str], bool]
) -> dict[str, int]:
    """{column: place} of a first line that names columns, else nothing."""
    number, fields = lines[0]
    names = [re.sub(r"[\s_-]+", "_", field.strip().strip("#").lower()) for field in fields]
    columns: dict[str, int] = {}
    wanted = {"audio": AUDIO_NAMES, **COLUMNS, "split": ("split", "subset")}
    wanted["text"] = sorted(COLUMNS["text"], key=lambda name: "normal" not in name)
    for column, aliases in wanted.items():
        if there := [alias for alias in aliases if alias in names]:
            columns[column] = names.index(there[0])
    if len(columns) > 1:
        if "text" not in columns or not columns.keys() & {"audio", "id"}:
            raise InputError(
                f"{path}:{number}: the header {', '.join(fields)[:80]!r} names no"
                f" {'text' if 'text' not in columns else 'audio or id'} column, expected audio or"
                " id, text and perhaps speaker, language, split"
            )
        return columns
    following = [field for _, row in evenly(lines[1:], _SAMPLE) for field in row[:1]]
    if columns and not has_recording(fields[0]) and any(map(has_recording, following)):
        raise InputError(
            f"{path}:{number}: {', '.join(fields)[:80]!r} seems to be a header, expected in it"
            " audio or id, text and perhaps speaker, language"
        )
    return {}


def _by_content(
    lines: list[tuple[int, list[str]]], path: Path, has_recording: Callable[[str], bool]
) -> dict[str, int]:
    """{column: place} of a table without a header."""
    rows = [fields for _, fields in evenly(lines, _SAMPLE)]
    filled = [at for at in range(len(rows[0])) if any(row[at].strip() for _, row in lines)]
    heard = {at: sum(has_recording(row[at].strip()) for row in rows) for at in filled}
    audio = max(filled, key=lambda at: (heard[at], -at))
    others = [at for at in filled if at != audio]
    if len(others) == 1:
        return {"audio": audio, "text": others[0]}
    if len(others) == 2:
        first, second = ([row[at].strip() for row in rows] for at in others)
        share = _shared_words(first, second)
        names = [_like_names(one, other) for one, other in ((first, second), (second, first))]
        if share >= 0.5 and not any(names):
            return {"audio": audio, "raw": others[0], "text": others[1]}
        if share < 0.5 and names[0] != names[1]:
            speaker = 0 if names[0] else 1
            return {"audio": audio, "speaker": others[speaker], "text": others[1 - speaker]}
    raise InputError(
        f"{path}:{lines[0][0]}: the roles of its {len(filled)} columns are ambiguous, "
        "expected a header line such as id|text|speaker"
    )


def _shared_words(first: list[str], second: list[str]) -> float:
    """How much of the shorter of two readings is in the other, over all rows that have both."""
    shared = total = 0
    for one, other in zip(first, second, strict=True):
        words = [set(re.findall(r"\w+", text.casefold())) for text in (one, other)]
        if all(words):
            shared += len(words[0] & words[1])
            total += min(map(len, words))
    return shared / total if total else 0.0


def _like_names(column: list[str], other: list[str]) -> bool:
    """Whether a column holds speakers, the other one texts: names are short, without an end of a
    sentence, not fractions or language codes, and come again or are one word each.
    """
    values = [value for value in column if value]
    if len(values) < len(column) or any(re.search(r"[.,?!;:。？！]$", value) for value in values):
        return False
    if all(re.fullmatch(r"\d+\.\d+|[a-z]{2}(-[A-Z]{2})?", value) for value in values):
        return False
    words = [[len(re.findall(r"\w+", value)) for value in one] for one in (values, other)]
    longest, mean, mean_of_other = max(words[0]), *(sum(one) / len(one) for one in words)
    again = len(set(values)) <= len(values) / 2 < len(set(other))
    return longest <= 3 and (again or (longest == 1 and mean_of_other >= 2 * mean))
