"""The public memory map, {split}_input_ids.memmap (int32 rows of 2,048) and its {split}_input_ids_shape.npy <-> codes.

A row is TEXT_UNDERSTANDING_START text END SPEECH_GENERATION_START codes END, padded with <|eot_id|>. Rows are imported
whole or not at all: one whose END is cut off, or whose text would come back with other ids, is dropped and counted.
"""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from llasa_core.codes_dataset import finish, part_info, part_name, read_codes, write_part
from llasa_core.errors import InputError
from llasa_core.manifest import publish
from llasa_core.tokens import SpeechVocabulary, name_of, text_encoder, vocabulary_of

WIDTH = 2048
TEMPLATE_TOKENS = 41  # that public training puts before the END of a row, which it then cuts to its width


def import_memmap(
    folder: str | Path,
    out: str | Path,
    tokenizer,
    codec: str = "xcodec2",
    frame_rate: float = 50.0,
    rows_per_part: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict]:
    """Each split of a folder of public rows -> the codes dataset out/SPLIT; returns their meta.json by split.

    Ids are SPLIT-ROW; speaker and language are empty, seconds those of the codes. Stopped and started again, it goes
    on with the parts that are not there. Dropped and counted: "no_end" (cut off), "foreign_ids" (an id where it does
    not belong), "textless", "no_codes", "text_differs" (the decoded text has other ids). InputError for bad files.
    """
    folder, out = Path(folder), Path(out)
    splits = sorted(path.name.removesuffix("_input_ids.memmap") for path in folder.glob("*_input_ids.memmap"))
    if not splits:
        raise InputError(f"{folder}: no *_input_ids.memmap in it, expected public memory-mapped rows")
    rows_of = {split: open_rows(folder, split) for split in splits}
    reader = _RowReader(tokenizer)
    metas = {}
    for split, rows in rows_of.items():
        place = out / split
        place.mkdir(parents=True, exist_ok=True)
        settings = {"codec": codec, "codebook_size": reader.vocabulary.codebook_size, "frame_rate": frame_rate}
        starts = range(0, len(rows), rows_per_part)
        for number, start in enumerate(starts):
            chunk = np.array(rows[start : start + rows_per_part])
            path = place / part_name(number)
            source = hashlib.sha256(chunk.tobytes() + repr(settings).encode()).hexdigest()[:16]
            if not path.exists():
                names = [f"{split}-{start + offset:08d}" for offset in range(len(chunk))]
                utterances, dropped = reader.read(chunk, names)
                for utterance in utterances:
                    utterance["seconds"] = len(utterance["codes"]) / frame_rate
                write_part(path, utterances, {**settings, "source": source, "dropped": dropped})
            elif part_info(path).get("source") != source:
                raise InputError(f"{path}: made from other rows; choose another folder")
            if progress:
                progress(len(chunk))
        metas[split] = finish(place, len(starts), {**settings, "memmap_width": rows.shape[1]})
    return metas


def export_memmap(
    codes: str | Path,
    folder: str | Path,
    tokenizer,
    width: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict]:
    """A codes dataset (split "train"), or a folder of one for each split, -> public rows in `folder`.

    `width`: tokens a row; that of the imported rows, else 2,048. What was imported is exported byte for byte.
    Returns for each split: rows, width, dropped (an utterance longer than a row), and end_lost_in_public: rows whose
    END falls off in public training, which adds a template and cuts. InputError for a tokenizer of another codebook.
    """
    codes, folder = Path(codes), Path(folder)
    vocabulary, end_of_turn = vocabulary_of(tokenizer), _end_of_turn(tokenizer)
    parts = {path.parent.name: path.parent for path in sorted(codes.glob("*/meta.json"))}
    datasets = {split: read_codes(place) for split, place in ({} if (codes / "meta.json").exists() else parts).items()}
    datasets = datasets or {"train": read_codes(codes)}
    encode = text_encoder(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    reports = {}
    for split, dataset in datasets.items():
        if dataset.meta["codebook_size"] != vocabulary.codebook_size:
            found = f"{dataset.meta['codebook_size']} codes, {name_of(tokenizer)} {vocabulary.codebook_size}"
            raise InputError(f"{codes}: {found}; expected a tokenizer of the same codec")
        columns = width or dataset.meta.get("memmap_width", WIDTH)
        path, shape = folder / f"{split}_input_ids.memmap", folder / f"{split}_input_ids_shape.npy"
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        rows = overlong = robbed = 0
        with temporary.open("wb") as file:
            for index in range(len(dataset)):
                row = _row(dataset[index], vocabulary, encode, end_of_turn, columns)
                if row is None:
                    overlong += 1
                else:
                    rows += 1
                    robbed += bool(row[max(columns - TEMPLATE_TOKENS, 0) :].max() >= vocabulary.text_size)
                    file.write(row.tobytes())
                if progress:
                    progress(1)
        shape.unlink(missing_ok=True)
        os.replace(temporary, path)
        _publish_shape(shape, (rows, columns))
        reports[split] = {
            "rows": rows,
            "width": columns,
            "dropped": {"overlong": overlong},
            "end_lost_in_public": robbed,
        }
    return reports


def open_rows(folder: Path, split: str) -> np.ndarray:
    """The rows of one split, int32 (N, width), memory-mapped read-only. InputError if the two files disagree."""
    path, shape_path = folder / f"{split}_input_ids.memmap", folder / f"{split}_input_ids_shape.npy"
    try:
        shape = np.load(shape_path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{shape_path}: cannot be read ({reason}), expected a NumPy file of two integers") from None
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or shape.min() < 1:
        raise InputError(f"{shape_path}: holds {shape.tolist()!r}, expected rows and width, both at least 1")
    rows, width = (int(value) for value in shape)
    if path.stat().st_size != rows * width * 4:
        raise InputError(
            f"{path}: {path.stat().st_size} bytes, expected {rows} rows of {width} int32 = {rows * width * 4}"
        )
    return np.memmap(path, np.int32, "r", shape=(rows, width))


class _RowReader:
    """Rows -> utterances, for one tokenizer."""

    def __init__(self, tokenizer):
        self.vocabulary, self.end_of_turn = vocabulary_of(tokenizer), _end_of_turn(tokenizer)
        self._backend, self._encoder = tokenizer.backend_tokenizer, text_encoder(tokenizer)

    def read(self, rows: np.ndarray, names: Sequence[str]) -> tuple[list[dict], list[tuple[str, str]]]:
        """Rows (R, width) -> utterances without seconds, and (name, reason) of the dropped ones."""
        found, reasons = [], {}
        for name, row in zip(names, rows, strict=True):
            parts = self._split(row)
            if isinstance(parts, str):
                reasons[name] = parts
            else:
                found.append((name, *parts))
        texts = self._backend.decode_batch([ids.tolist() for _, ids, _ in found], skip_special_tokens=False)
        encoded = self._encoder.encode_batch(texts, add_special_tokens=False)
        utterances = []
        for (name, ids, codes), text, again in zip(found, texts, encoded, strict=True):
            if again.ids != ids.tolist():
                reasons[name] = "text_differs"
            else:
                utterances.append({"id": name, "text": text, "codes": codes, "speaker": "", "language": ""})
        return utterances, [(name, reasons[name]) for name in names if name in reasons]

    def _split(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray] | str:
        """Text ids and codes of a row, or the reason why it is none."""
        ids = self.vocabulary
        ends = np.flatnonzero(row == ids.speech_generation_end)
        if not len(ends):
            return "no_end"
        markers = np.flatnonzero((row >= ids.text_size) & (row < ids.first_code))
        order = [ids.text_understanding_start, ids.text_understanding_end]
        order += [ids.speech_generation_start, ids.speech_generation_end]
        if row[markers].tolist() != order or markers[0] != 0 or markers[2] != markers[1] + 1:
            return "foreign_ids"
        text, speech, padding = row[1 : markers[1]], row[markers[2] + 1 : ends[0]], row[ends[0] + 1 :]
        texts_are_text = ((text >= 0) & (text < ids.text_size)).all()
        if not texts_are_text or not ids.is_code(speech).all() or (padding != self.end_of_turn).any():
            return "foreign_ids"
        if not len(speech):
            return "no_codes"
        return (text, ids.ids_to_codes(speech)) if len(text) else "textless"


def _row(utterance: dict, vocabulary: SpeechVocabulary, encoder, padding: int, width: int) -> np.ndarray | None:
    """The public row int32 (width,) of an utterance, or None where it is longer."""
    text = encoder.encode(utterance["text"], add_special_tokens=False).ids
    codes = vocabulary.codes_to_ids(utterance["codes"])
    if len(text) + len(codes) + 4 > width:
        return None
    row = np.full(width, padding, np.int32)
    middle, end = len(text) + 1, len(text) + len(codes) + 3
    row[0], row[1:middle], row[middle] = vocabulary.text_understanding_start, text, vocabulary.text_understanding_end
    row[middle + 1], row[middle + 2 : end] = vocabulary.speech_generation_start, codes
    row[end] = vocabulary.speech_generation_end
    return row


def _end_of_turn(tokenizer) -> int:
    found = tokenizer.backend_tokenizer.token_to_id("<|eot_id|>")
    if found is None:
        raise InputError(
            f"{name_of(tokenizer)}: no <|eot_id|> in it, expected a tokenizer with Llama-3's special tokens"
        )
    return found


def _publish_shape(path: Path, shape: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array(shape), allow_pickle=False)
    publish(path, buffer.getvalue())
