"""The mini study as tables: which runs it is read from, its scores side by side, and the section of
the README.

Averages are recomputed from scored utterances; the README's numbers are made here, so that none is
written by hand.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from llasa_core.errors import InputError
from llasa_core.evaluation.summary import summarise
from llasa_core.experiments.results import Result, find_run, published_tables
from llasa_core.experiments.tables import markdown, with_interval
from llasa_core.intervals import compare_systems
from llasa_core.studies.beside_paper import beside_markdown, beside_the_paper
from llasa_core.studies.full_scale import Assumptions
from llasa_core.studies.paper_items import items_markdown, paper_items
from llasa_core.studies.speed import HEADER, speed_rows
from llasa_core.studies.study_sections import change_words, study_sections

# Each part of the study and its run: <experiment>/<label>, the label being a run id with or without
# its hash.
ROLES = {
    "codec": "mini_codec/run",
    "lm": "mini_llasa/run",
    "builtin": "evaluation/builtin",
    "finetune": "human_finetune/run",
    "human": "evaluation/human",
    "resynthesis": "codec_resynthesis/run",
    "search": "inference_time_scaling/open",
    "law": "train_time_scaling/run",
    "scaling_scores": "scaling_scores/run",
    "codecs_builtin": "codec_table/builtin",
    "codecs_human": "codec_table/human",
    "asr": "asr/seed0",
    "finetuning": "finetuning_scores/test",
}

HUMAN_SYSTEMS = {
    "recordings": "originals",
    "codec": "codec",
    "before": "before",
    "after": "utterances",
}  # name: rows

RESYNTHESIS_SYSTEMS = {"recordings": "originals", "codec": "utterances"}

SEARCH_ARMS = (
    "plain",
    "partial-prm",
)  # rows of the study of search that the paper has a counterpart of

ASR_SYSTEMS = ("recognition", "both")  # models of the study of recognition that recognise

BEGIN, END = "<!-- results -->", "<!-- /results -->"

SCORES = (  # metric, its name in a table, factor, decimals
    ("corpus_wer", "corpus WER, %", 100, 1),
    ("corpus_wer_spoken_digits", "corpus WER, numbers read digit by digit, %", 100, 1),
    ("speaker_similarity", "similarity to the own speaker, cosine", 1, 3),
    ("nearest_speaker_share", "nearest to the own speaker, % of utterances", 100, 1),
    ("quality", "predicted quality, 1 to 5", 1, 2),
    ("pesq_wb", "PESQ, wide band", 1, 2),
    ("stoi", "STOI", 1, 3),
    ("never_ended_share", "never ended, % of utterances", 100, 1),
    ("ended_at_once_share", "ended at once, % of utterances", 100, 1),
)


def read_study(
    results_dir: str | Path = "results", roles: Mapping[str, str] = ROLES
) -> tuple[dict[str, Result], dict[str, str]]:
    """({role: finished run}, {role: place without a finished run}); InputError for a role that is
    none of `ROLES`.
    """
    unknown = set(roles) - set(ROLES)
    if unknown:
        raise InputError(f"role {min(unknown)!r} is unknown, expected some of {', '.join(ROLES)}")
    found = {role: find_run(results_dir, place) for role, place in roles.items()}
    missing = {role: roles[role] for role, result in found.items() if result is None}
    return {role: result for role, result in found.items() if result is not None}, missing


def system_scores(study: Mapping[str, Result]) -> pd.DataFrame:
    """One row a system: `corpus`, `system`, `run`, and the metrics of `summary.summarise`.

    Corpus builtin: recordings, codec, synthesized. Corpus human: recordings, codec, before, after.
    Corpus resynthesis: recordings and codec with every score of the codec protocol. Corpus search:
    the arms of the study of search that `SEARCH_ARMS` names, by held-out judges, intervals over
    texts. Corpus asr: what two models heard. Recomputed from the scored utterances; the averages of
    builtin's recordings are taken as mini_codec recorded them if it kept no rows.
    """
    rows: list[dict[str, Any]] = []

    def add(corpus: str, system: str, result: Result, summary: Mapping[str, float]) -> None:
        rows.append(
            {
                "corpus": corpus,
                "system": system,
                "run": f"{result.experiment}/{result.run}",
                **summary,
            }
        )

    if "codec" in study:
        result, prefix = study["codec"], "original_"
        kept = {
            name.removeprefix(prefix): value
            for name, value in result.metrics.items()
            if name.startswith(prefix)
        }
        add(
            "builtin",
            "recordings",
            result,
            summarise(result.rows("originals")) if _keeps_originals(result) else kept,
        )
        add("builtin", "codec", result, summarise(result.rows()))
    if "builtin" in study:
        add("builtin", "synthesized", study["builtin"], summarise(study["builtin"].rows()))
    for system, name in HUMAN_SYSTEMS.items() if "human" in study else ():
        add("human", system, study["human"], summarise(study["human"].rows(name)))
    for system, name in RESYNTHESIS_SYSTEMS.items() if "resynthesis" in study else ():
        add("resynthesis", system, study["resynthesis"], summarise(study["resynthesis"].rows(name)))
    for name in SEARCH_ARMS if "search" in study else ():
        add("search", name, study["search"], summarise(study["search"].rows(name)))
    for name in ASR_SYSTEMS if "asr" in study else ():
        add("asr", name, study["asr"], summarise(study["asr"].rows(name)))
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["corpus", "system", "run"])


def paired_differences(study: Mapping[str, Result]) -> dict[str, dict[str, float]]:
    """`comparison.compare_systems` of the pairs whose two sides have rows.

    "synthesized - recordings" and "synthesized - codec" on builtin, "after - before" on human.
    """
    differences = {}
    if "codec" in study and "builtin" in study:
        if _keeps_originals(study["codec"]):
            pair = study["codec"].rows("originals"), study["builtin"].rows()
            differences["synthesized - recordings"] = compare_systems(*pair)
        differences["synthesized - codec"] = compare_systems(
            study["codec"].rows(), study["builtin"].rows()
        )
    if "human" in study:
        differences["after - before"] = compare_systems(
            study["human"].rows("before"), study["human"].rows()
        )
    return differences


def _keeps_originals(codec: Result) -> bool:
    return (codec.folder / "originals.jsonl").is_file()


def results_table(
    results_dir: str | Path = "results",
    roles: Mapping[str, str] = ROLES,
    assumed: Assumptions | None = None,
) -> str:
    """The study's results as Markdown; empty as long as no part of it has a finished run.

    assumed: behind the costs at full scale, the default ones if None.
    """
    assumed = assumed or Assumptions()
    study, missing = read_study(results_dir, roles)
    if not study:
        return ""
    scores, differences = system_scores(study), paired_differences(study)
    parts = []
    if "codec" in study or "builtin" in study:
        names = {"recordings": "recordings", "codec": "mini codec", "synthesized": "mini Llasa"}
        parts.append(
            "**Held-out sentences of the built-in corpus**\n\n"
            + _scores_markdown(scores, "builtin", names)
        )
        for system in ("recordings", "codec"):
            if change := differences.get(f"synthesized - {system}"):
                parts.append(f"Mini Llasa minus {names[system]}, paired: {change_words(change)}.")
    if "human" in study:
        names = {
            "recordings": "recordings",
            "codec": "mini codec",
            "before": "before, a voice of its own",
            "after": "fine-tuned",
        }
        parts.append(
            "**A real voice, before and after fine-tuning**\n\n"
            + _scores_markdown(scores, "human", names)
        )
        parts.append(
            f"Fine-tuned minus before, paired: {change_words(differences['after - before'])}."
        )
    training = [
        _training(study[role], role) for role in ("codec", "lm", "finetune") if role in study
    ]
    if training:
        header = [
            "",
            "speech, h",
            "parameters",
            "steps",
            "tokens",
            "held-out loss, nats a token",
            "bits a second",
            "min",
        ]
        parts.append("**Training**\n\n" + markdown(header, training))
    parts += study_sections(study, results_dir)
    runs = {f"{item.experiment}/{item.run}": item for item in study.values()}
    if rows := speed_rows(results_dir):
        parts.append(
            "**Speed.** Ours beside the public way in one process; CPU seconds on one thread, on a"
            " shared machine.\n\n" + markdown(HEADER, rows)
        )
    beside = beside_the_paper(scores, published_tables(results_dir), runs)
    if shown := beside_markdown(beside):
        parts.append(f"**Beside the paper's numbers**, to show what corresponds to what\n\n{shown}")
    items = items_markdown(paper_items(results_dir, study, beside, assumed), results_dir, assumed)
    parts.append(f"**Figures and tables of the paper**\n\n{items}")
    if missing:
        parts.append(
            "Without a finished run: " + ", ".join(f"`{place}`" for place in missing.values()) + "."
        )
    parts.append(
        "Runs: " + ", ".join(f"`{item.experiment}/{item.run}`" for item in study.values()) + "."
    )
    return "\n\n".join(parts) + "\n"


def section(text: str, replacement: str | None = None) -> str:
    """What stands between the markers of a README, or that README with `replacement` there.

    Raises InputError if the two markers do not occur once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(f"expected the line {BEGIN} and after it the line {END}, once each")
    before, rest = text.split(BEGIN)
    inside, after = rest.split(END)
    return (
        inside.removeprefix("\n")
        if replacement is None
        else f"{before}{BEGIN}\n{replacement}{END}{after}"
    )


def _scores_markdown(scores: pd.DataFrame, corpus: str, names: Mapping[str, str]) -> str:
    rows = {row["system"]: row for row in scores[scores["corpus"] == corpus].to_dict("records")}
    shown = [system for system in names if system in rows]
    header = [
        "",
        *(f"{names[system]} (n = {rows[system]['corpus_wer_n']:.0f})" for system in shown),
    ]
    lines = [
        [label, *(with_interval(rows[system], metric, factor, decimals) for system in shown)]
        for metric, label, factor, decimals in SCORES
    ]
    return markdown(header, [line for line in lines if any(line[1:])])


def _training(result: Result, role: str) -> list[str]:
    """Cells of one training run; the codec's metrics carry the prefix training_."""
    values = result.metrics
    name, prefix = {
        "codec": ("mini codec", "training_"),
        "lm": ("mini Llasa", ""),
        "finetune": ("fine-tune", ""),
    }[role]

    def cell(key: str, form: str, factor: float = 1) -> str:
        return format(factor * values[key], form) if key in values else ""

    return [
        name,
        cell(f"{prefix}train_hours", ".1f"),
        cell(f"{prefix}parameters", ",.0f"),
        cell(f"{prefix}steps", ",.0f"),
        cell(f"{prefix}tokens", ",.0f"),
        cell(f"{prefix}eval_loss", ".3f"),
        cell(f"{prefix}eval_bits_per_second", ".0f"),
        cell(f"{prefix}seconds", ".0f", 1 / 60),
    ]
