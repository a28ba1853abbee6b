"""What a search gains over plain sampling, and what of it is more than choosing the right voice.

Rows are those of an arm (`nested`), scored by held-out judges. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llasa_core.intervals import CLUSTER, COMPARED, compare_systems

# What a search changes, as `intervals.COMPARED`; `nearest`: 1 where the judge takes the utterance
# for the speaker that was wanted
GAINS = {name: COMPARED[name] for name in ("corpus_wer", "speaker_similarity")}
GAINS |= {"nearest_speaker_share": ("nearest", None, False)}


CONDITIONS = {
    "all": "all utterances",
    "held": "where the voice held",
    "right": "where both are in the right voice",
}


def gains(base: Sequence[Mapping], rows: Sequence[Mapping], plain: Sequence[Mapping]) -> dict:
    """{condition: `compare_systems` of GAINS, rows minus base}, over the requests that both
    answered; without the conditions that no request fulfils.

    all: every request. held: where plain sampling alone is in the right voice, as its samples of
    the same text with every other seed say (`voice_held` of `plain`). right: where both utterances
    are in the right voice.
    """
    both = {row["id"] for row in base} & {row["id"] for row in rows}
    right = {row["id"] for row in base if in_right_voice(row)}
    right &= {row["id"] for row in rows if in_right_voice(row)}
    ids = {"all": both, "held": both & voice_held(plain), "right": both & right}
    return {name: _change(base, rows, ids[name]) for name in CONDITIONS if ids[name]}


def _change(base: Sequence[Mapping], rows: Sequence[Mapping], ids: set[str]) -> dict[str, float]:
    sides = [
        [
            {**row, "nearest": int(in_right_voice(row))} if "nearest_speaker" in row else row
            for row in side
            if row["id"] in ids
        ]
        for side in (base, rows)
    ]
    return compare_systems(*sides, compared=GAINS)


def in_right_voice(row: Mapping) -> bool:
    """Whether the judge takes an utterance for the speaker that was wanted, of all that are."""
    return "nearest_speaker" in row and row["nearest_speaker"] == row["speaker"]


def voice_held(plain: Sequence[Mapping]) -> set[str]:
    """Ids of the requests whose text plain sampling spoke in the right voice with every other seed;
    none of a single seed.

    The sample itself has no say: one that is picked because it is right is a lucky one, and every
    search would seem to lose against it (regression to the mean).
    """
    texts: dict[str, dict[str, bool]] = {}
    for row in plain:
        texts.setdefault(row[CLUSTER], {})[row["id"]] = in_right_voice(row)
    return {
        name
        for seeds in texts.values()
        for name in seeds
        if len(seeds) > 1 and all(right for other, right in seeds.items() if other != name)
    }
