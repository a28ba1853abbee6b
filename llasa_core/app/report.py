"""A take in words: what a page shows and an answer of the API holds. Texts are escaped where they
are put into HTML.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from llasa_core import plots
from llasa_core.app.studio import NAME, PLAIN, Take
from llasa_core.synthesis.guards import Spoken

REASONS_IN_WORDS = {
    "ended_at_once": "it ended at once",
    "too_short": "it is too short for its text",
    "never_ended": "it did not end by itself",
    "loop": "it loops",
    "stuck": "it is stuck on a few codes",
    "silence": "it holds a long silence",
}
VERIFIERS_IN_WORDS = {
    "words": "words (minus the word error rate, 0 is best)",
    "voice": "voice (similarity, 1 is best)",
    "emotion": "emotion (similarity, 1 is best)",
}


def sentence(error: Exception, recording: str | None = None) -> str:
    """What is wrong, as a sentence for the page: without ids and without the place of an upload."""
    message = " ".join(str(error).split()).removeprefix(f"request {NAME}: ")
    for place in (recording, recording and str(Path(recording))):
        if place:
            message = message.replace(place, "the recording")
    message = message[:1].upper() + message[1:]
    return message if message.endswith((".", "!", "?")) else f"{message}."


def summary(take: Take) -> str:
    """How much speech in which time."""
    seconds = len(take.wave) / take.rate
    said = f"{seconds:.2f} s of speech in {take.seconds:.2f} s"
    if take.first_seconds < take.seconds:
        said += f", first sound after {take.first_seconds:.2f} s"
    if take.chosen:
        tried = sum(len(one.scores) for one in take.chosen)
        said += f", the best of {tried} candidates"
    return f"{said}."


def codes_in_words(take: Take) -> str:
    """How many codes, and how varied."""
    codes = take.codes.tolist()
    return f"{len(codes)} codes, {len(set(codes))} different ones."


def guards_in_words(take: Take) -> list[str]:
    """What the guards did, a sentence a piece."""
    if take.order.strategy == PLAIN and not take.order.attempts:
        return ["The guards were switched off."]
    told = []
    for number, piece in enumerate(take.pieces, 1):
        where = f"Part {number} of {len(take.pieces)}: " if len(take.pieces) > 1 else ""
        told.append(where + _judged(piece, bool(take.chosen)))
    return told


def _judged(piece: Spoken, searched: bool) -> str:
    kept = "The guards find nothing wrong"
    if piece.failed:
        kept = f"The guards object: {_listed(piece.failed)}"
    if searched:
        return f"{kept} (a search chooses by its verifiers alone)."
    if piece.rejected:
        why = "; ".join(_listed(reasons) for reasons in piece.rejected)
        return f"{kept}. Kept of {piece.attempts} attempts; rejected: {why}."
    if piece.failed and piece.attempts == 1:
        return f"{kept}. It was not sampled again: it had been heard, or one attempt was allowed."
    return f"{kept}, at the first attempt."


def _listed(reasons: Sequence[str]) -> str:
    return " and ".join(REASONS_IN_WORDS.get(reason, reason) for reason in reasons)


def candidates_table(take: Take) -> str:
    """The scores of every candidate as an HTML table, "" without a search."""
    if not take.chosen:
        return ""
    parts = len(take.chosen) > 1
    heads = [*(["part"] if parts else []), "candidate"]
    heads += [VERIFIERS_IN_WORDS.get(name, name) for name in take.chosen[0].verifiers]
    heads += ["codes", "kept"]
    rows = []
    for part, one in enumerate(take.chosen, 1):
        for index, scores in enumerate(one.scores):
            kept = index == one.index
            cells = [*([str(part)] if parts else []), str(index + 1)]
            cells += [f"{score:.3f}" for score in scores]
            cells += [str(one.tokens[index]), "yes" if kept else ""]
            mark = ' class="kept"' if kept else ""
            rows.append(f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in heads)
    caption = "<caption>Every candidate, as the verifiers score it</caption>"
    return (
        f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def candidate_choices(take: Take) -> list[tuple[str, str]]:
    """(label, "piece/candidate") of what can be listened to: the candidates whose codes were
    kept.
    """
    return [
        (
            (f"part {piece + 1}, " if len(take.chosen) > 1 else "") + f"candidate {index + 1}",
            f"{piece}/{index}",
        )
        for piece, one in enumerate(take.chosen)
        for index in range(len(one.codes))
    ]


def spectrogram(take: Take) -> str:
    """An HTML picture of the speech, 0 to 8 kHz."""
    buffer, drawing = io.BytesIO(), plots.spectrogram(take.wave, take.rate)
    drawing.axes[0].grid(False)
    drawing.savefig(buffer, format="webp", dpi=110, pil_kwargs={"quality": 70})
    data = base64.b64encode(buffer.getvalue()).decode()
    seconds = len(take.wave) / take.rate
    label = html.escape(f"Spectrogram, {seconds:.2f} s: {take.order.text.strip()[:200]}")
    return f'<img class="spectrogram" alt="{label}" src="data:image/webp;base64,{data}">'


def as_json(take: Take) -> dict:
    """What the API answers next to the audio; plain JSON."""
    pieces = [
        {
            "text": piece.request.text,
            "codes": piece.generated.codes.tolist(),
            "ended": piece.generated.ended,
            "attempts": piece.attempts,
            "rejected": [list(reasons) for reasons in piece.rejected],
            "failed": list(piece.failed),
        }
        for piece in take.pieces
    ]
    candidates = [
        {
            "part": part,
            "candidate": index,
            "scores": dict(zip(one.verifiers, map(float, scores), strict=True)),
            "tokens": one.tokens[index],
            "kept": index == one.index,
        }
        for part, one in enumerate(take.chosen)
        for index, scores in enumerate(one.scores)
    ]
    return {
        "model": take.model,
        "text": take.order.text,
        "seed": take.order.seed,
        "sample_rate": take.rate,
        "seconds": round(len(take.wave) / take.rate, 4),
        "pieces": pieces,
        "candidates": candidates,
        "work_seconds": round(take.seconds, 3),
    }
