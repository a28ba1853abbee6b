"""Corpora: audio in, checks, splits; any corpus becomes 16 kHz mono audio with train, dev and test
manifests.

What cannot be training data is dropped, counted by reason and listed in report.json; nothing is
skipped silently.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from llasa_core.audio import SAMPLE_RATE, decode_audio, write_wav
from llasa_core.errors import InputError
from llasa_core.files import write_json
from llasa_core.journal import Journal
from llasa_core.manifest import (
    SPLITS,
    Unread,
    Utterance,
    checked,
    file_name,
    place_of_id,
    printable,
    split_of,
    write_manifest,
)

_FRAME = 0.02  # seconds, over which loudness is measured

_INTEGER_SCALE = 64.0  # no recording of floats goes as far beyond full scale, 1.0

_ANNOTATION = re.compile(r"\[[^\]]*\]|<[^>]*>|\*[^*]*\*")  # [tones], <noise>, *laughs*


@dataclass(frozen=True)
class Limits:
    """What an utterance must be to be training data; `check_utterance` gives the reasons."""

    min_seconds: float = 0.3
    max_seconds: float = 30.0  # a row of 2,048 tokens has room for about 38 s
    silence_dbfs: float = -60.0  # a 20 ms frame below this root mean square holds no sound
    min_sound_seconds: float = 0.1  # of such frames together
    max_clipped: float = 0.1  # share of samples at full scale or beyond
    max_silence_seconds: float = 5.0  # in one piece: 50 dB below the loud part, or silent
    max_characters_per_second: float = 50.0  # people say 10 to 25; more is a text of another clip
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

    "empty", "not_finite", "integer_scale" (floats of -32768 to 32767), "too_short", "too_long",
    "silent" (also where all samples are stuck at one value), "clipped", "long_silence",
    "text_too_long" for its audio, or a reason of `check_text`.
    """
    seconds, frame = len(wave) / sample_rate, round(_FRAME * sample_rate)
    if not len(wave):
        return "empty"
    if not np.isfinite(wave).all():
        return "not_finite"
    if max(wave.max(), -wave.min()) > _INTEGER_SCALE:
        return "integer_scale"
    if seconds < limits.min_seconds or seconds > limits.max_seconds:
        return "too_short" if seconds < limits.min_seconds else "too_long"
    # Of a constant the deviation is 0: it is no sound.
    level = wave[: len(wave) // frame * frame].reshape(-1, frame).std(axis=1, dtype=np.float64)
    silence = 10 ** (limits.silence_dbfs / 20)
    if (level > silence).sum() * _FRAME < limits.min_sound_seconds - 1e-9:
        return "silent"
    if (np.abs(wave) >= 1 - 2**-15).mean() > limits.max_clipped:
        return "clipped"
    quiet = level <= max(silence, np.percentile(level, 99) * 10 ** (-50 / 20))
    if _longest_run(quiet) * _FRAME > limits.max_silence_seconds:
        return "long_silence"
    if len(utterance.text) > limits.max_characters_per_second * seconds:
        return "text_too_long"
    return check_text(utterance.text, limits)


def _longest_run(flags: np.ndarray) -> int:
    """The most flags (T,) that are true side by side."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.view(np.int8), [0]])))
    return int(np.max(edges[1::2] - edges[::2], initial=0))


def prepare(
    utterances: Iterable[Utterance],
    out: str | Path,
    limits: Limits | None = None,
    split_fractions: tuple[float, float, float] = (0.96, 0.02, 0.02),
    keep_out: Callable[[str], bool] | None = None,
    jobs: int = 1,
    progress: Callable[[int], None] | None = None,
    min_held_out: int = 0,
) -> dict:
    """Check a corpus and write it as out/{train,dev,test}.jsonl, out/wavs/ID.wav and
    out/report.json, written last. Ids may be anything: `file_name` names the files.

    Audio that is 16 kHz mono 16-bit WAV or FLAC already is referred to where it is, other audio is
    converted. An utterance goes to the split that it names, else by hash of its id; where
    `keep_out(text)` is true it is test. Where dev or test, of a share above 0, then have fewer than
    `min_held_out` utterances, further ones come from train (`hold_out`). Of several utterances with
    one id the first is kept. With jobs > 1 that many processes work. A stopped run resumes where it
    was (journal.Journal). `progress` is called with the number of utterances just
    finished.

    Returns the report: seen, kept, hours, dropped {reason: count}, first_dropped {reason: file or
    line}, dropped_utterances [{id, reason}], splits, speakers, texts_in_train_and_test. Raises
    InputError, after writing the report alone, if nothing is kept.
    """
    out, limits = Path(out), limits or Limits()
    split_of("", split_fractions)  # refuses invalid fractions
    (out / "wavs").mkdir(parents=True, exist_ok=True)
    reasons: list[dict] = []
    first: dict[str, str] = {}
    kept: list[Utterance] = []
    for utterance, result in _prepared(_described(utterances), out, limits, jobs):
        if "reason" in result:
            reasons.append({"id": printable(utterance.id), "reason": result["reason"]})
            first.setdefault(result["reason"], _place_of(utterance))
        else:
            split = utterance.split or split_of(utterance.id, split_fractions)
            split = "test" if keep_out is not None and keep_out(utterance.text) else split
            audio = out.resolve() / result["audio"]
            kept.append(replace(utterance, audio=audio, seconds=result["seconds"], split=split))
        if progress:
            progress(1)
    for name in (*(f"{split}.jsonl" for split in SPLITS), "report.json"):
        (out / name).unlink(missing_ok=True)
    kept = hold_out(kept, split_fractions, min_held_out)
    splits = {split: [one for one in kept if one.split == split] for split in SPLITS}
    report = _report(splits, reasons, len(kept) + len(reasons)) | {"first_dropped": first}
    report |= {"limits": asdict(limits), "split_fractions": list(split_fractions)}
    if report["kept"]:
        for split in SPLITS:
            write_manifest(out / f"{split}.jsonl", splits[split])
    write_json(out / "report.json", report)
    if not report["kept"]:
        counts = (
            "; ".join(
                f"{reason} {count}, first {first[reason]}"
                for reason, count in report["dropped"].items()
            )
            or "there was none"
        )
        raise InputError(
            f"{out / 'report.json'}: no utterance is left ({counts}), expected at least one"
        )
    return report


def hold_out(
    utterances: list[Utterance], split_fractions: tuple[float, float, float], least: int
) -> list[Utterance]:
    """Utterances in their order, with dev and test of at least `least` where their share is not 0:
    filled up from train, by the hash of the id, to a tenth of the corpus at most.
    """
    least = min(least, len(utterances) // 10 or len(utterances) > 2)
    moved: dict[str, str] = {}
    train = sorted((one.id for one in utterances if one.split == "train"), key=place_of_id)
    for split, share in (("test", split_fractions[2]), ("dev", split_fractions[1])):
        missing = least - sum(one.split == split for one in utterances) if share else 0
        moved |= dict.fromkeys(train[: max(missing, 0)], split)
        train = train[max(missing, 0) :]
    return [replace(one, split=moved.get(one.id, one.split)) for one in utterances]


def _place_of(utterance: Utterance) -> str:
    """Where a dropped utterance comes from: line of a list, or file, or id."""
    if isinstance(utterance, Unread) and utterance.where:
        return printable(utterance.where)
    if isinstance(utterance.audio, bytes):
        return printable(utterance.id)
    path = str(utterance.audio)
    return printable(min(path, os.path.relpath(path), key=len) if "\0" not in path else path)


def _described(utterances: Iterable[Utterance]) -> Iterator[tuple[Utterance, str | None]]:
    """Utterances, each with the reason for which its names alone rule it out."""
    seen = set()
    for utterance in map(checked, utterances):
        if isinstance(utterance, Unread):
            yield utterance, utterance.reason
        else:
            yield utterance, "duplicate_id" if utterance.id in seen else None
            seen.add(utterance.id)


def _prepared(
    described: Iterator[tuple[Utterance, str | None]], out: Path, limits: Limits, jobs: int
) -> Iterator[tuple[Utterance, dict]]:
    """Utterances in their order, each with {reason} or {audio (relative to out), seconds}, from the
    journal or anew.
    """
    from contextlib import nullcontext

    from llasa_core.processes import worker_pool

    journal = Journal(out, {"limits": asdict(limits)}, restart=True)
    workers = worker_pool(jobs) if jobs > 1 else nullcontext()
    with workers as pool, journal.writing() as add:
        while window := list(islice(described, 64 * max(jobs, 1))):
            results = [None if reason is None else {"reason": reason} for _, reason in window]
            keys = {one.id: _source_key(one) for one, reason in window if reason is None}
            finished = journal.finished(keys)
            todo = []
            for index, (utterance, reason) in enumerate(window):
                if reason is None and utterance.id in finished:
                    results[index] = finished[utterance.id]
                elif reason is None:
                    todo.append((index, utterance))
            tasks = [(utterance, str(out), limits) for _, utterance in todo]
            answers = (
                pool.map(_prepare_one, tasks, chunksize=8) if pool else map(_prepare_one, tasks)
            )
            for (index, utterance), answer in zip(todo, answers, strict=True):
                results[index] = answer
                add({"id": utterance.id, **answer}, keys[utterance.id])
            yield from ((one, result) for (one, _), result in zip(window, results, strict=True))


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
    wave, reason = decode_audio(utterance.audio, most_seconds=limits.max_seconds + 1)
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
    name = f"wavs/{file_name(utterance.id)}.wav"
    write_wav(Path(out, name), wave)
    return {"audio": name, "seconds": seconds}


def _is_ready(audio: str | Path | bytes) -> bool:
    if isinstance(audio, bytes):
        return False
    import soundfile

    info = soundfile.info(os.fsencode(audio))
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
