"""What an utterance must not be: ended at once, too short for its text, never ended, stuck, looping
or silent.

`Guards` judges a finished utterance by its text, codes and wave, and samples it again under derived
seeds, a bounded number of times. Its bounds are learnt from a codes dataset (`learn_guards`) and
are in `guards.json` next to a model. Nothing here looks at other utterances, so the batch decides
nothing; what fails to the end is kept and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from llasa_core.errors import InputError, above, at_least, check_fields, fits
from llasa_core.files import read_object, write_json
from llasa_core.manifest import Request, length_limit, spoken_characters
from llasa_core.synthesis.decoding import Generated
from llasa_core.synthesis.sampling import candidate_seed

GUARDS = "guards.json"  # next to a checkpoint

REASONS = ("ended_at_once", "too_short", "never_ended", "loop", "stuck", "silence")

LONGEST_PERIOD = 100  # codes; a loop of words repeats within two seconds

DISTINCT_WINDOW = 50  # codes

FRAME_SECONDS = 0.02  # of the silence detector

QUIET = 45.0  # dB below the loud frames (95th percentile) of an utterance is silence

# dB full scale; an utterance whose loud frames are below it counts as silence.
INAUDIBLE = -60.0


@dataclass(frozen=True)
class Guards:
    """Limits of a good utterance; `attempts` samples at most, 1 only reports. Each attempt after
    the first is `heat` hotter than the one before: what loops at a low temperature loops again at
    the same.

    shortest, longest: (intercept, slope) of the fewest and most codes as a line over
    `spoken_characters`; None for longest leaves the length limit that there is anyway. With a voice
    prompt the bounds give way to its pace; where its words are those that the text begins with, its
    pace is not known, and its codes count as spoken of the fewest. at_once: fewer codes are
    "ended_at_once". loop_codes: so many codes in a row that equal those one period before (up to 2
    s) are a loop. distinct: fewer different codes in any 50 (1 s) are "stuck". silence_seconds: the
    longest stretch of silence, at either end or inside.
    """

    attempts: int = 5
    heat: float = 0.15
    shortest: tuple[float, float] = (0.0, 1.0)
    longest: tuple[float, float] | None = None
    at_once: int = 10
    loop_codes: int = 50
    distinct: int = 8
    silence_seconds: float = 2.0

    def __post_init__(self) -> None:
        for name in ("shortest", "longest"):
            line = getattr(self, name)
            if line is None and name == "longest":
                continue
            if (
                not isinstance(line, list | tuple)
                or len(line) != 2
                or not all(fits(value, float) for value in line)
                or line[1] < 0
            ):
                raise InputError(
                    f"guards: {name} must be [intercept, slope of at least 0] in codes, got"
                    f" {line!r}"
                )
            object.__setattr__(self, name, (float(line[0]), float(line[1])))
        counts = {"attempts": at_least(1), "loop_codes": at_least(1), "at_once": at_least(0)}
        bounds = {"distinct": at_least(0), "heat": at_least(0), "silence_seconds": above(0)}
        check_fields(self, "guards", **counts, **bounds)

    @classmethod
    def from_file(cls, path: str | Path) -> Guards:
        """What `write` wrote; InputError for an unknown key or a wrong value. `learnt_from` is for
        readers.
        """
        item = read_object(path)
        item.pop("learnt_from", None)
        if unknown := sorted(set(item) - {field.name for field in fields(cls)}):
            raise InputError(f"{path}: unknown key {unknown[0]!r}")
        try:
            return cls(**item)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def write(self, path: str | Path, learnt_from: Mapping[str, Any] | None = None) -> None:
        """JSON with all fields, and what they were learnt from."""
        item = asdict(self) | ({"learnt_from": dict(learnt_from)} if learnt_from else {})
        write_json(path, item)

    def bounds(self, request: Request, frame_rate: float = 50.0) -> tuple[int, int]:
        """(fewest, most) codes of a request that is spoken to its end."""
        characters = spoken_characters(request.text)
        fewest = _line(self.shortest, characters)
        most = length_limit(request.text, frame_rate=frame_rate)
        if self.longest is not None:
            most = _line(self.longest, characters)
        if request.continues:
            fewest -= len(request.voice.codes)
        elif request.voice is not None:
            own = characters * len(request.voice.codes) / spoken_characters(request.voice.text)
            fewest, most = min(fewest, own / 2), max(most, 2 * own + frame_rate)
        return max(1, math.floor(fewest)), max(1, math.ceil(most))

    def reasons(
        self,
        request: Request,
        codes: np.ndarray,
        ended: bool,
        wave: np.ndarray,
        rate: int,
        frame_rate: float = 50.0,
    ) -> tuple[str, ...]:
        """Which of REASONS speak against codes (L,) and their wave (T,) at `rate` Hz; () for a good
        utterance.
        """
        found = []
        if len(codes) < self.at_once:
            found.append("ended_at_once")
        elif len(codes) < self.bounds(request, frame_rate)[0]:
            found.append("too_short")
        if not ended:
            found.append("never_ended")
        if longest_loop(codes) >= self.loop_codes:
            found.append("loop")
        if fewest_distinct(codes) < self.distinct:
            found.append("stuck")
        if longest_silence(wave, rate) > self.silence_seconds:
            found.append("silence")
        return tuple(found)

    def resample(
        self,
        requests: Sequence[Request],
        speak: Callable[[Sequence[int], Sequence[Request], float], Iterable[Spoken]],
        rate: int,
        frame_rate: float,
    ) -> Iterator[Spoken]:
        """Speak requests until each is good or has had its attempts; yields in no particular order.

        speak(numbers, requests, heat): the requests of these numbers, under other seeds, so much
        hotter. Attempt 0 has the request's own seed, attempt i `candidate_seed(seed, i)`. Of
        attempts that all fail the one with the fewest reasons is kept, the earliest of equals.
        """
        rejected: list[list[tuple[str, ...]]] = [[] for _ in requests]
        best: dict[int, tuple[tuple[int, int], Spoken, tuple[str, ...]]] = {}
        waiting: Sequence[int] = range(len(requests))
        for attempt in range(self.attempts):
            seeded = [
                replace(requests[n], seed=candidate_seed(requests[n].seed, attempt))
                for n in waiting
            ]
            number = {id(request): n for n, request in zip(waiting, seeded, strict=True)}
            again = []
            for spoken in speak(waiting, seeded, attempt * self.heat):
                n = number[id(spoken.request)]
                generated, request = spoken.generated, requests[n]
                why = self.reasons(
                    request, generated.codes, generated.ended, spoken.wave, rate, frame_rate
                )
                if not why:
                    best.pop(n, None)
                    yield replace(
                        spoken, request=request, attempts=attempt + 1, rejected=tuple(rejected[n])
                    )
                    continue
                rejected[n].append(why)
                best[n] = min(
                    best.get(n, ((99, 0), spoken, why)),
                    ((len(why), attempt), spoken, why),
                    key=_rank,
                )
                again.append(n)
            waiting = sorted(again)
        for n in waiting:
            (_, at), spoken, why = best[n]
            others = tuple(rejected[n][:at] + rejected[n][at + 1 :])
            yield replace(
                spoken, request=requests[n], attempts=self.attempts, rejected=others, failed=why
            )


def longest_loop(codes: np.ndarray, longest_period: int = LONGEST_PERIOD) -> int:
    """The longest run of codes (L,) that equal the code one period before, over all periods; 0 for
    none.
    """
    codes, longest = np.asarray(codes), 0
    for period in range(1, min(longest_period, len(codes) - 1) + 1):
        different = np.flatnonzero(codes[period:] != codes[:-period])
        edges = np.concatenate([[-1], different, [len(codes) - period]])
        longest = max(longest, int(np.diff(edges).max()) - 1)
    return longest


def fewest_distinct(codes: np.ndarray, window: int = DISTINCT_WINDOW) -> int:
    """The fewest different codes in any `window` successive codes (L,); `window` itself where there
    are fewer.
    """
    codes = np.asarray(codes)
    if len(codes) < window:
        return window
    ordered = np.sort(np.lib.stride_tricks.sliding_window_view(codes, window), axis=1)
    return int((np.diff(ordered, axis=1) != 0).sum(axis=1).min()) + 1


def longest_silence(wave: np.ndarray, rate: int) -> float:
    """Seconds of the longest stretch of frames of 20 ms that lie QUIET dB below the loud ones; all
    of a silent wave.
    """
    sound = sounding_frames(wave, rate)
    if not sound.any():
        return len(sound) * FRAME_SECONDS
    edges = np.concatenate([[-1], np.flatnonzero(sound), [len(sound)]])
    return float((np.diff(edges).max() - 1) * FRAME_SECONDS)


def sounding_frames(wave: np.ndarray, rate: int) -> np.ndarray:
    """bool (F,): whether 20 ms of a wave (T,) are above QUIET dB below its loud ones; none are if
    it is inaudible.
    """
    size = round(FRAME_SECONDS * rate)
    frames = np.asarray(wave)[: len(wave) // size * size].reshape(-1, size).astype(np.float64)
    level = 10 * np.log10((frames**2).mean(axis=1) + 1e-12)  # (F,) dB full scale
    loud = np.quantile(level, 0.95) if len(level) else INAUDIBLE
    return (level > loud - QUIET) & (loud >= INAUDIBLE)


def learn_guards(
    rows: Iterable[Mapping[str, Any]], most: int = 4000, quantile: float = 0.001
) -> tuple[Guards, dict]:
    """Guards from rows {"text", "codes"} of a codes dataset, and what they were learnt from.

    The bounds of length are lines through the quantiles of codes over characters, 25 % and a
    quarter of a second wider. A loop is twice the longest that the rows have (at least half a
    second), stuck is half of their fewest codes. At most `most` rows are looked at, evenly spread.
    Raises InputError for no rows.
    """
    rows = (
        list(rows) if not isinstance(rows, Sequence) and not hasattr(rows, "__getitem__") else rows
    )
    places = (
        np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
        if len(rows)
        else []
    )
    chosen = [rows[int(place)] for place in places]
    if not chosen:
        raise InputError("guards: no rows to learn from, expected at least one")
    lengths = np.array([len(row["codes"]) for row in chosen], np.float64)
    characters = np.array([spoken_characters(row["text"]) for row in chosen])
    low, high = (quantile_line(characters, lengths, q) for q in (quantile, 1 - quantile))
    loop = max(longest_loop(row["codes"]) for row in chosen)
    distinct = min(fewest_distinct(row["codes"]) for row in chosen)
    guards = Guards(
        shortest=(round(0.75 * low[0] - 12, 3), round(0.75 * low[1], 5)),
        longest=(round(1.25 * high[0] + 12, 3), round(1.25 * high[1], 5)),
        loop_codes=max(25, 2 * loop),
        distinct=distinct // 2,
    )
    return guards, {
        "rows": len(chosen),
        "quantile": quantile,
        "longest_loop": loop,
        "fewest_distinct": distinct,
    }


def quantile_line(x: np.ndarray, y: np.ndarray, quantile: float) -> tuple[float, float]:
    """(intercept, slope >= 0) of linear quantile regression (Koenker and Bassett 1978): least sum
    of tilted errors.
    """
    from scipy import optimize, sparse

    n, ones = len(x), sparse.identity(len(x))
    # A + b x + over - under = y
    equal = sparse.hstack([np.stack([np.ones(n), x], 1), ones, -ones], format="csr")
    cost = np.concatenate([[0, 0], np.full(n, quantile), np.full(n, 1 - quantile)])
    limits = [(None, None), (0, None), *[(0, None)] * (2 * n)]
    found = optimize.linprog(cost, A_eq=equal, b_eq=y, bounds=limits, method="highs")
    if found.x is None:
        raise InputError(
            f"guards: the line of the quantile {quantile} was not found ({found.message})"
        )
    return float(found.x[0]), float(found.x[1])


def _rank(kept: tuple) -> tuple[int, int]:
    return kept[0]


def _line(line: tuple[float, float], at: float) -> float:
    return line[0] + line[1] * at


@dataclass(frozen=True)
class Spoken:
    """One spoken request: wave float32 (L * hop,) at the codec's rate, without the voice prompt.

    attempts: samples drawn under guards; rejected: why the others were not kept; failed: what is
    wrong with this one.
    """

    request: Request
    wave: np.ndarray
    generated: Generated
    prompt_tokens: int
    attempts: int = 1
    rejected: tuple[tuple[str, ...], ...] = ()
    failed: tuple[str, ...] = ()
