"""Of certain words, such as those that no training text holds: what share was heard right.

A word counts as right where the alignment of the word error rate (Whisper's normaliser on both
sides) matches it. No models, no files: scored rows in, numbers out.
"""

from collections.abc import Collection, Mapping, Sequence

from llasa_core.data.corpora.grammar import words_of
from llasa_core.errors import InputError
from llasa_core.evaluation.summary import cluster_interval, speakers_of, text_interval
from llasa_core.metrics import normalise


def words_heard(text: str, hypothesis: str, words: Collection[str]) -> list[bool | None]:
    """For each of `words` (lower case) in an English text, in order: was it heard right?

    None where the normaliser writes the word as several or joins it with a neighbour, so that it
    cannot be told.
    """
    import jiwer

    wanted = [word for word in words_of(text) if word in words]
    if not wanted:
        return []
    said = normalise(text)
    (chunks,) = jiwer.process_words(said, normalise(hypothesis)).alignments
    matched = set()
    for chunk in chunks:
        if chunk.type == "equal":
            matched.update(range(chunk.ref_start_idx, chunk.ref_end_idx))
    places: dict[str, list[int]] = {}
    for place, word in enumerate(said.split()):
        places.setdefault(word, []).append(place)
    left = [places.get(normalise(word), []) for word in wanted]
    return [(each.pop(0) in matched) if each else None for each in left]


def word_recall(rows: Sequence[Mapping], words: Collection[str], seed: int = 0) -> dict[str, float]:
    """words_right_share of scored rows (text, hypothesis) over all places of `words` in them.

    With _low and _high (95 %, bootstrap over texts), where rows name several speakers
    _by_speaker_low and _by_speaker_high, _n (places of words), and words_unscored (`words_heard`
    gave None). Raises InputError where no row holds such a word.
    """
    heard = [words_heard(row["text"], row["hypothesis"], words) for row in rows]
    told = [[one for one in marks if one is not None] for marks in heard]
    counted = [row for row, marks in zip(rows, told, strict=True) if marks]
    if not counted:
        raise InputError(
            f"none of {len(rows)} scored texts holds one of the {len(words)} words asked for,"
            " expected at least one"
        )
    right = [float(sum(marks)) for marks in told if marks]
    places = [float(len(marks)) for marks in told if marks]
    name, interval = "words_right_share", text_interval(right, counted, places, seed)
    found = {name: sum(right) / sum(places), f"{name}_n": int(sum(places))}
    found |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    if (speakers := speakers_of(counted)) is not None:
        low, high = cluster_interval(right, speakers, places, seed)
        found |= {f"{name}_by_speaker_low": low, f"{name}_by_speaker_high": high}
    return found | {"words_unscored": sum(map(len, heard)) - int(sum(places))}
