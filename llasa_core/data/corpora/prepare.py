"""Corpora: audio in, checks, splits; any corpus becomes 16 kHz mono audio with train, dev and test
manifests.

What cannot be training data is dropped, counted by reason and listed in report.json; nothing is
skipped silently.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from llasa_core.audio import SAMPLE_RATE, decode_audio, write_wav
from llasa_core.errors import InputError
from llasa_core.files import publish, write_json
from llasa_core.manifest import FILE_SAFE_ID, SPLITS, Utterance, split_of, write_manifest

_FRAME = 0.02  # seconds, over which loudness is measured

_ANNOTATION = re.compile(r"\[[^\]]*\]|<[^>]*>|\*[^*]*\*")  # [tones], <noise>, *laughs*


@dataclass(frozen=True)
class Limits:
    """What an utterance must be to be training data; `check_utterance` gives the reasons."""

    min_seconds: float = 0.3
    max_seconds: float = 30.0  # a row of 2,048 tokens has room for about 38 s
    silence_dbfs: float = -60.0  # a 20 ms frame below this root mean square holds no sound
    min_sound_seconds: float = 0.1  # of such frames together
    max_clipped: float = 0.1  # share of samples at full scale or beyond
    annotations: bool = True  # words in [], <> or ** say what is heard, not what is said
    # regular expression that each character must match, e.g. [a-zA-Z ,.?!'-]; empty: any letter
    characters: str = ""

    def __post_init__(self):
        if not 0 < self.min_seconds < self.max_seconds:
            raise InputError(
                f"limits: min_seconds {self.min_seconds}, max_seconds {self.max_seconds}: expected"
                " 0 < min < max"
            )
        try:
            re.compile(self.characters)
        except re.error as error:
            raise InputError(
                f"limits: characters {self.characters!r} is no regular expression ({error})"
            ) from None


def check_text(text: str, limits: Limits) -> str | None:
    """None, or why a text cannot be spoken: "textless" (no letter or digit in it) or
    "wrong_characters".

    Wrong are control characters, unassigned ones, the replacement character, special tokens
    (`<|..|>`) and whatever `limits.characters` leaves out.
    """
    spoken = _ANNOTATION.sub(" ", text) if limits.annotations else text
    if not any(unicodedata.category(character)[0] in "LN" for character in spoken):
        return "textless"
    if re.search(r"<\|[^|]*\|>", text) or any(_is_broken(character) for character in text):
        return "wrong_characters"
    if limits.characters and not re.fullmatch(f"(?:{limits.characters})*", text):
        return "wrong_characters"
    return None


def _is_broken(character: str) -> bool:
    return character == "\N{REPLACEMENT CHARACTER}" or unicodedata.category(character) in (
        "Cc",
        "Cs",
        "Co",
        "Cn",
    )


def check_utterance(
    utterance: Utterance, wave: np.ndarray, limits: Limits, sample_rate: int = SAMPLE_RATE
) -> str | None:
    """None, or the reason why an utterance with the audio `wave` (T,) cannot be training data.

    "empty", "not_finite", "too_short", "too_long", "silent" (also where all samples are stuck at
    one value), "clipped", or a reason of `check_text`.
    """
    seconds, frame = len(wave) / sample_rate, round(_FRAME * sample_rate)
    if not len(wave):
        return "empty"
    if not np.isfinite(wave).all():
        return "not_finite"
    if seconds < limits.min_seconds or seconds > limits.max_seconds:
        return "too_short" if seconds < limits.min_seconds else "too_long"
    frames = wave[: len(wave) // frame * frame].reshape(-1, frame)
    loud = frames.std(axis=1, dtype=np.float64) > 10 ** (
        limits.silence_dbfs / 20
    )  # a constant is no sound
    if loud.sum() * _FRAME < limits.min_sound_seconds - 1e-9:
        return "silent"
    if (np.abs(wave) >= 1 - 2**-15).mean() > limits.max_clipped:
        return "clipped"
    return check_text(utterance.text, limits)


def prepare(
    utterances: Iterable[Utterance],
    out: str | Path,
    limits: Limits | None = None,
    split_fractions: tuple[float, float, float] = (0.96, 0.02, 0.02),
    keep_out: Callable[[str], bool] | None = None,
    jobs: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict:
    """Check a corpus and write it as out/{train,dev,test}.jsonl, out/wavs/ID.wav and
    out/report.json, written last.

    Audio that is 16 kHz mono 16-bit WAV or FLAC already is referred to where it is, other audio is
    converted. An utterance goes to the split that it names, else by hash of its id; where
    `keep_out(text)` is true it is test. Of several utterances with one id the first is kept. With
    jobs > 1 that many processes work. A stopped run goes on where it was (out/prepared.jsonl
    knows). `progress` is called with the number of utterances just finished.

    Returns the report: seen, kept, hours, dropped {reason: count}, dropped_utterances [{id,
    reason}], splits, speakers, texts_in_train_and_test. Raises InputError, after writing the report
    alone, if nothing is kept.
    """
    out, limits = Path(out), limits or Limits()
    split_of("", split_fractions)  # refuses shares that are none
    (out / "wavs").mkdir(parents=True, exist_ok=True)
    reasons: list[dict] = []
    kept: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    seen = 0
    for utterance, result in _prepared(_described(utterances), out, limits, jobs):
        seen += 1
        if "reason" in result:
            reasons.append({"id": utterance.id, "reason": result["reason"]})
        else:
            split = utterance.split or split_of(utterance.id, split_fractions)
            split = "test" if keep_out is not None and keep_out(utterance.text) else split
            changed = {
                "audio": out.resolve() / result["audio"],
                "seconds": result["seconds"],
                "split": split,
            }
            kept[split].append(Utterance(**{**_fields(utterance), **changed}))
        if progress:
            progress(1)
    for name in (*(f"{split}.jsonl" for split in SPLITS), "report.json"):
        (out / name).unlink(missing_ok=True)
    report = _report(kept, reasons, seen)
    report |= {"limits": asdict(limits), "split_fractions": list(split_fractions)}
    if report["kept"]:
        for split in SPLITS:
            write_manifest(out / f"{split}.jsonl", kept[split])
    write_json(out / "report.json", report)
    if not report["kept"]:
        counts = (
            ", ".join(f"{reason} {count}" for reason, count in report["dropped"].items())
            or "there was none"
        )
        raise InputError(
            f"{out / 'report.json'}: no utterance is left ({counts}), expected at least one"
        )
    return report


def _fields(utterance: Utterance) -> dict:
    return {name: getattr(utterance, name) for name in Utterance.__dataclass_fields__}


def _described(utterances: Iterable[Utterance]) -> Iterator[tuple[Utterance, str | None]]:
    """Utterances, each with the reason for which its id alone rules it out."""
    seen = set()
    for utterance in utterances:
        if not FILE_SAFE_ID.fullmatch(utterance.id) or len(utterance.id.encode()) > 200:
            yield utterance, "bad_id"
        else:
            yield utterance, "duplicate_id" if utterance.id in seen else None
            seen.add(utterance.id)


def _prepared(
    described: Iterator[tuple[Utterance, str | None]], out: Path, limits: Limits, jobs: int
) -> Iterator[tuple[Utterance, dict]]:
    """Utterances in their order, each with {reason} or {audio (relative to out), seconds}, from the
    journal or anew.
    """
    from concurrent.futures import ProcessPoolExecutor
    from contextlib import nullcontext
    from multiprocessing import get_context

    journal = out / "prepared.jsonl"
    finished = _read_journal(journal, limits)
    publish(
        journal,
        "".join(json.dumps(line) + "\n" for line in [asdict(limits), *finished.values()]).encode(),
    )
    workers = ProcessPoolExecutor(jobs, get_context("spawn")) if jobs > 1 else nullcontext()
    with workers as pool, journal.open("a", encoding="utf-8") as append:
        while window := list(islice(described, 64 * max(jobs, 1))):
            todo, results = [], {}
            for index, (utterance, reason) in enumerate(window):
                key = "" if reason else _source_key(utterance)
                line = finished.get(utterance.id)
                if reason:
                    results[index] = {"reason": reason}
                elif (
                    line
                    and line["source"] == key
                    and ("reason" in line or (out / line["audio"]).is_file())
                ):
                    results[index] = line
                else:
                    todo.append((index, utterance, key))
            tasks = [(utterance, str(out), limits) for _, utterance, _ in todo]
            answers = (
                pool.map(_prepare_one, tasks, chunksize=8) if pool else map(_prepare_one, tasks)
            )
            for (index, utterance, key), answer in zip(todo, answers, strict=True):
                results[index] = answer
                append.write(json.dumps({"id": utterance.id, "source": key, **answer}) + "\n")
                append.flush()
            yield from ((utterance, results[index]) for index, (utterance, _) in enumerate(window))


def _read_journal(path: Path, limits: Limits) -> dict[str, dict]:
    """Finished work by id; nothing where it was done under other limits. A torn last line is left
    out.
    """
    if not path.is_file():
        return {}
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        return (
            {line["id"]: line for line in lines[1:]} if lines and lines[0] == asdict(limits) else {}
        )
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: damaged, expected the journal of an earlier run; delete it to start over"
        ) from None


def _source_key(utterance: Utterance) -> str:
    """Changes with the text and the audio (of a file: its path, size and time of change)."""
    digest = hashlib.sha256(utterance.text.encode("utf-8", "surrogatepass") + b"\0")
    if isinstance(utterance.audio, bytes):
        digest.update(utterance.audio)
    elif Path(utterance.audio).is_file():
        status = os.stat(utterance.audio)
        digest.update(
            f"{os.path.abspath(utterance.audio)} {status.st_size} {status.st_mtime_ns}".encode()
        )
    return digest.hexdigest()[:16]


def _prepare_one(task: tuple[Utterance, str, Limits]) -> dict:
    utterance, out, limits = task
    wave, reason = decode_audio(utterance.audio)
    reason = reason or check_utterance(utterance, wave, limits)
    if reason:
        return {"reason": reason}
    seconds = round(len(wave) / SAMPLE_RATE, 4)
    if _is_ready(utterance.audio):
        audio = Path(utterance.audio).absolute()
        return {
            "audio": os.path.relpath(audio.parent.resolve() / audio.name, Path(out).resolve()),
            "seconds": seconds,
        }
    write_wav(Path(out, "wavs", f"{utterance.id}.wav"), wave)
    return {"audio": f"wavs/{utterance.id}.wav", "seconds": seconds}


def _is_ready(audio: str | Path | bytes) -> bool:
    if isinstance(audio, bytes):
        return False
    import soundfile

    info = soundfile.info(str(audio))
    kind = (info.samplerate, info.channels, info.subtype)
    return kind == (SAMPLE_RATE, 1, "PCM_16") and info.format in ("WAV", "WAVEX", "FLAC")


def _report(kept: dict[str, list[Utterance]], reasons: list[dict], seen: int) -> dict:
    def part(utterances):
        return {
            "utterances": len(utterances),
            "hours": round(sum(u.seconds for u in utterances) / 3600, 4),
        }

    everything = [utterance for utterances in kept.values() for utterance in utterances]
    train, test = ({utterance.text for utterance in kept[split]} for split in ("train", "test"))
    total = part(everything)
    return {
        "seen": seen,
        "kept": total["utterances"],
        "hours": total["hours"],
        "dropped": dict(sorted(Counter(line["reason"] for line in reasons).items())),
        "dropped_utterances": reasons,
        "splits": {split: part(utterances) for split, utterances in kept.items()},
        "speakers": dict(sorted(Counter(utterance.speaker for utterance in everything).items())),
        "texts_in_train_and_test": len(train & test),
    }
