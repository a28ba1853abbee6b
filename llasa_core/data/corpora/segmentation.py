"""Long recordings -> utterances: cut at silence, and the text cut with them, or refused.

Where words stand is heard by a recogniser: each piece is transcribed, the transcripts end to end
are aligned with the text word by word, and a piece keeps the words that lie between its
neighbours'. A text that does not match what is heard is refused as a whole, so no piece gets words
that the recogniser did not nearly hear.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from llasa_core.data.corpora.prepare import Limits, check_utterance
from llasa_core.judges.interface import Transcriber
from llasa_core.manifest import Utterance

_FRAME = 0.02  # seconds, over which loudness is measured

_PAUSE = 0.2  # seconds of quiet, at least, in whose middle a recording is cut


@dataclass(frozen=True)
class Segmenter:
    """Cuts recordings of more than `longest` seconds into pieces of at most that; refuses texts
    that do not fit.

    most_errors: share of a recording's words that the recogniser may hear otherwise.
    """

    transcriber: Transcriber
    longest: float = 20.0
    most_errors: float = 0.2

    def cut(
        self, utterance: Utterance, wave: np.ndarray, sample_rate: int, limits: Limits
    ) -> list[tuple[Utterance, np.ndarray, str | None]]:
        """Pieces ID-000, ID-001, .. of a recording (T,) with their waves; or itself with the reason
        of its refusal.

        "no_pause": speech without a pause, longer than a piece; "text_not_heard": the text is not
        what is said. A piece that fails `check_utterance` has its reason.
        """
        borders = pauses(wave, sample_rate, self.longest, limits.silence_dbfs)
        if borders is None:
            return [(utterance, wave[:0], "no_pause")]
        waves = [wave[first:end] for first, end in pairwise(borders)]
        heard = self.transcriber.transcribe(waves, sample_rate, utterance.language)
        texts = divide(utterance.text, heard, self.most_errors)
        if texts is None:
            return [(utterance, wave[:0], "text_not_heard")]
        found = []
        for number, (text, piece) in enumerate(zip(texts, waves, strict=True)):
            part = replace(utterance, id=f"{utterance.id}-{number:03d}", text=text)
            reason = check_utterance(part, piece, limits, sample_rate)
            found.append((part, piece if reason is None else piece[:0], reason))
        return found


def pauses(
    wave: np.ndarray, sample_rate: int, longest: float, silence_dbfs: float = -60.0
) -> list[int] | None:
    """Borders (samples, 0 and T among them) in the quietest pauses, no piece above `longest`
    seconds; None: no pause.

    Quiet is what lies 25 dB below the loud part (95th percentile of 20 ms frames) or below
    `silence_dbfs`.
    """
    frame = round(_FRAME * sample_rate)
    frames = wave[: len(wave) // frame * frame].reshape(-1, frame)
    level = 20 * np.log10(frames.std(axis=1, dtype=np.float64) + 1e-9)
    quiet = level < max(np.percentile(level, 95) - 25, silence_dbfs)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet.view(np.int8), [0]])))
    runs = [
        (a, b)
        for a, b in edges.reshape(-1, 2).tolist()
        if b - a >= _PAUSE / _FRAME and a and b < len(quiet)
    ]
    borders = [0]
    most = int(longest / _FRAME)
    while len(quiet) - borders[-1] > most:
        reach = [
            (b - a, (a + b) // 2)
            for a, b in runs
            if borders[-1] < (a + b) // 2 <= borders[-1] + most
        ]
        reach = [one for one in reach if one[1] > borders[-1] + most // 4] or reach
        if not reach:
            return None
        borders.append(max(reach)[1])
    return [border * frame for border in borders] + [len(wave)]


def divide(text: str, heard: list[str], most_errors: float) -> list[str] | None:
    """The words of a text, divided over what was heard piece by piece; None where too many words
    differ.
    """
    words = text.split()
    spoken = [_bare(word) for word in words]
    pieces = [[_bare(word) for word in one.split()] for one in heard]
    said = [word for piece in pieces for word in piece]
    owner = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    cost, steps = _alignment(spoken, said)
    if not words or cost[-1, -1] > most_errors * len(words):
        return None
    place, row, column = np.zeros(len(words), np.int64), len(spoken), len(said)
    while row:
        step = steps[row, column]
        if step == 2:
            column -= 1
            continue
        row -= 1
        column -= step == 0
        place[row] = owner[min(column, len(owner) - 1)] if len(owner) else 0
    place = np.maximum.accumulate(place)
    return [
        " ".join(word for word, at in zip(words, place, strict=True) if at == one)
        for one in range(len(pieces))
    ]


def _bare(word: str) -> str:
    """A word without case and signs; numbers stay as they are written, for a word must stay a
    word.
    """
    return "".join(letter for letter in word.casefold() if letter.isalnum()) or word


def _alignment(text: list[str], said: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Edit distances (R + 1, C + 1) and the step that led to each: 0 both words, 1 a word not said,
    2 one too many.
    """
    cost = np.zeros((len(text) + 1, len(said) + 1))
    steps = np.zeros(cost.shape, np.int8)
    cost[:, 0], steps[:, 0] = np.arange(len(text) + 1), 1
    cost[0], steps[0] = np.arange(len(said) + 1), 2
    for row, word in enumerate(text, start=1):
        for column, other in enumerate(said, start=1):
            ways = (
                cost[row - 1, column - 1] + (word != other),
                cost[row - 1, column] + 1,
                cost[row, column - 1] + 1,
            )
            steps[row, column] = best = int(np.argmin(ways))
            cost[row, column] = ways[best]
    return cost, steps
