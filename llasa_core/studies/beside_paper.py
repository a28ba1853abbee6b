"""Published numbers and ours, side by side: protocol, metric, both values, whether they may be
compared, and why not.

Ours are read from finished runs, never written here. Comparable means the same test set, the same
judge and the same formula; the reasons against it are made from what the run's parameters and the
published table name.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from llasa_core.evaluation.protocols import same_model
from llasa_core.experiments.results import PublishedTable, Result
from llasa_core.experiments.tables import markdown, with_interval


class Pair(NamedTuple):
    """One published number and what answers it here.

    row: {column: value} that picks the published row. ours: systems as (corpus, system) of
    `study.system_scores`, the first one with the metric counts. factor, decimals: from our unit to
    the published one.
    """

    protocol: str
    metric: str
    table: str
    row: dict[str, Any]
    column: str
    ours: tuple[tuple[str, str], ...]
    our_metric: str
    factor: float = 1
    decimals: int = 3
    differs: str = ""  # of the metric itself


def _codec(system: str, ours: str) -> list[Pair]:
    places = (("resynthesis", ours), ("builtin", ours))
    return [
        Pair("codec", "WER, %", "codec", {"system": system}, "wer", places, "corpus_wer", 100, 2),
        Pair("codec", "STOI", "codec", {"system": system}, "stoi", places, "stoi", 1, 3),
        Pair(
            "codec",
            "PESQ, wide band",
            "codec",
            {"system": system},
            "pesq_wb",
            places,
            "pesq_wb",
            1,
            2,
        ),
        Pair(
            "codec",
            "PESQ, narrow band",
            "codec",
            {"system": system},
            "pesq_nb",
            places,
            "pesq_nb",
            1,
            2,
        ),
        Pair(
            "codec",
            "similarity to the original",
            "codec",
            {"system": system},
            "speaker_similarity",
            places,
            _ORIGINAL,
        ),
        Pair(
            "codec",
            "predicted quality",
            "codec",
            {"system": system},
            "utmos",
            places,
            "quality",
            1,
            2,
        ),
    ]


def _spoken(search: str, places: tuple[tuple[str, str], ...]) -> list[Pair]:
    row = {"system": "llasa 1b 250k", "search": search}
    normaliser = "Whisper's normaliser, not Seed-TTS-Eval's"
    voice = "similarity to the speaker's recordings, not to a prompt"
    return [
        Pair(
            "seed-tts-en",
            "WER, %",
            "seed_tts_eval",
            row,
            "en_wer",
            places,
            "mean_utterance_wer",
            100,
            2,
            normaliser,
        ),
        Pair(
            "seed-tts-en",
            "similarity",
            "seed_tts_eval",
            row,
            "en_sim",
            places,
            "speaker_similarity",
            1,
            3,
            voice,
        ),
    ]


_ORIGINAL = "similarity_to_original"

_HEARD = (("asr", "recognition"),)

PAIRS = (
    *_codec("Ground truth", "recordings"),
    *_codec("X-codec2", "codec"),
    *_spoken("none", (("builtin", "synthesized"),)),
    *_spoken("none", (("search", "plain"),)),
    *_spoken("partial PRM (speaker) + ORM (WER)", (("search", "partial-prm"),)),
    Pair(
        "asr",
        "WER clean, %",
        "asr",
        {"system": "llasa-asr-1b"},
        "clean_wer",
        _HEARD,
        "corpus_wer",
        100,
        2,
    ),
    Pair(
        "asr",
        "WER other, %",
        "asr",
        {"system": "llasa-asr-1b"},
        "other_wer",
        (),
        "corpus_wer",
        100,
        2,
    ),
    *(
        Pair(
            f"esd-{language}",
            "emotion similarity",
            "esd",
            {"system": "llasa 1b 250k", "search": "none"},
            column,
            (),
            "",
        )
        for language, column in (("en", "en_emotion_similarity"), ("zh", "zh_emotion_similarity"))
    ),
    *(
        Pair(
            "librispeech-continuation",
            metric,
            "continuation",
            {"system": "llasa 1b 250k", "search": "none"},
            column,
            (),
            "",
        )
        for metric, column in (("WER, %", "wer"), ("sim-o", "sim"), ("sim-r", "sim_r"))
    ),
)

JUDGES = {  # our metric: parameters of a run that name its judge
    "corpus_wer": ("asr", "judge_asr"),
    "mean_utterance_wer": ("asr", "judge_asr"),
    "speaker_similarity": ("speaker", "judge_speaker"),
    _ORIGINAL: ("speaker", "judge_speaker"),
    "quality": ("quality",),
}

TEST_SETS = (
    "test_manifest",
    "originals",
    "manifest",
    "corpus_dir",
)  # parameters that name the utterances


def beside_the_paper(
    scores: pd.DataFrame, tables: Mapping[str, PublishedTable], runs: Mapping[str, Result]
) -> pd.DataFrame:
    """One row a published number that has, or could have, an answer here.

    scores: of `study.system_scores`; runs: {experiment/run: its result}. Columns protocol, metric,
    system, search, source, published, ours (with its interval, empty where there is no run),
    our_system, run, n, comparable ("yes", "no: reasons", or "no run").
    """
    by_place = {(row["corpus"], row["system"]): row for row in scores.to_dict("records")}
    rows = []
    for pair in PAIRS:
        table = tables[pair.table]
        line = _published(table, pair)
        found = [by_place[place] for place in pair.ours if place in by_place]
        own = next(
            (row for row in found if math.isfinite(row.get(pair.our_metric, math.nan))), None
        )
        row = {"protocol": pair.protocol, "metric": pair.metric, "system": line["system"]}
        row |= {
            "search": line.get("search") or "",
            "source": line["source"],
            "published": line[pair.column],
        }
        if own is None:
            rows.append(
                row | {"ours": "", "our_system": "", "run": "", "n": None, "comparable": "no run"}
            )
            continue
        ours = with_interval(own, pair.our_metric, pair.factor, pair.decimals)
        reasons = _reasons(pair, table, runs[own["run"]])
        row |= {"ours": ours, "our_system": f"{own['corpus']}, {own['system']}", "run": own["run"]}
        row |= {
            "n": own[f"{pair.our_metric}_n"],
            "comparable": "no: " + "; ".join(reasons) if reasons else "yes",
        }
        rows.append(row)
    return pd.DataFrame(rows)


def beside_markdown(beside: pd.DataFrame, every_reason: bool = False) -> str:
    """`beside_the_paper` as Markdown: what has no run is left out; the reasons once below, or a
    column of them.
    """
    shown = beside[beside["ours"] != ""]
    if not len(shown):
        return ""
    header = [
        "protocol, metric",
        "published",
        "ours (interval, n)",
        *(["comparable"] if every_reason else []),
    ]
    systems = [
        row.system
        + (f", {row.search if row.search != 'none' else 'no search'}" if row.search else "")
        for row in shown.itertuples()
    ]
    lines = [
        [
            f"{row.protocol}, {row.metric}",
            f"{row.published:g} ({system}; {row.source})",
            f"{row.ours} ({row.our_system}; n = {row.n:.0f})",
            *([row.comparable] if every_reason else []),
        ]
        for row, system in zip(shown.itertuples(), systems, strict=True)
    ]
    reasons = dict.fromkeys(
        part for text in shown["comparable"] for part in text.removeprefix("no: ").split("; ")
    )
    reasons.pop("yes", None)
    text = markdown(header, lines)
    return text + (
        "" if every_reason or not reasons else f"\n\nNot comparable: {'; '.join(reasons)}."
    )


def _published(table: PublishedTable, pair: Pair) -> dict[str, Any]:
    lines = [
        row for row in table.rows if all(row.get(key) == value for key, value in pair.row.items())
    ]
    if len(lines) != 1:
        raise ValueError(f"{pair.table}: {len(lines)} rows of {pair.row}, expected one")
    return lines[0]


def _reasons(pair: Pair, table: PublishedTable, run: Result) -> list[str]:
    """Why the two numbers are not comparable; empty where they are."""
    reasons = []
    test_set = next(
        (str(run.params[key]) for key in TEST_SETS if run.params.get(key)), "unnamed utterances"
    )
    if test_set != table.test_set:
        reasons.append(f"{test_set}, not {table.test_set}")
    published = table.judges.get(pair.column)
    ours = next(
        (str(run.params[key]) for key in JUDGES.get(pair.our_metric, ()) if key in run.params), None
    )
    if published is not None and ours is not None and not same_model(ours, published):
        reasons.append(f"{ours}, not {published}")
    return reasons + ([pair.differs] if pair.differs else [])
