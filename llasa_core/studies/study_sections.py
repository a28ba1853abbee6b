"""Sections of the README's results for the smaller studies: a small table or two lines each, with
intervals and n.

Numbers come from `study_tables`, `finetuning_study` and what the run of the law recorded; a study
without a finished run has no section. The trap avoided: a law fitted before the last runs came in
says so instead of passing for current.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from llasa_core.evaluation.scaling_law import STEEPEST
from llasa_core.experiments import tables
from llasa_core.experiments.results import Result, read_results
from llasa_core.experiments.tables import markdown, with_interval

ARMS = {  # of the study of search: words
    "plain": "plain sampling",
    "both-16": "best of 16, words then voice",
    "partial-prm": "partial PRM by voice, then words",
    "prm": "PRM by voice to the end",
}

CORPORA = {"codecs_builtin": "synthetic speech", "codecs_human": "a real voice"}

SCALING_FIGURES = "experiments/train_time_scaling.yaml"


def study_sections(study: Mapping[str, Result], results_dir: str | Path) -> list[str]:
    """Markdown of every study that has a finished run, in the paper's order."""
    sections = [
        _scaling(study, results_dir),
        _search(study["search"]) if "search" in study else "",
        _codecs(study),
        _recognition(study["asr"]) if "asr" in study else "",
        _finetuning(study["finetuning"], results_dir) if "finetuning" in study else "",
    ]
    return [section for section in sections if section]


def _scaling(study: Mapping[str, Result], results_dir: str | Path) -> str:
    if "law" not in study:
        return ""
    law = study["law"].metrics
    lines = [
        "**Train-time scaling.** Held-out speech in bits a second, L = E + A parameters^-a + B"
        f" hours^-b, fitted to {law['surface_n']:.0f} runs ({law['runs_diverged']:.0f} diverged): a"
        f" = {with_interval(law, 'surface_size_exponent')}, b ="
        f" {with_interval(law, 'surface_data_exponent')}, E ="
        f" {with_interval(law, 'surface_irreducible', decimals=0)}; the best size grows as"
        f" compute^{with_interval(law, 'surface_compute_exponent')}."
    ]
    if max(law["surface_size_exponent"], law["surface_data_exponent"]) > 0.99 * STEEPEST:
        lines[0] += (
            f" (An exponent of {STEEPEST:g} is the fit's bound: these runs do not determine it.)"
        )
    runs = tables.training_runs(results_dir, study["law"].params["study"])
    if law["runs_digest"] != tables.runs_digest(runs):
        lines[0] += (
            f" (These are not the {len(runs)} runs that are here: run {SCALING_FIGURES} with"
            " --force.)"
        )
    if "prediction" in law:
        said = {
            "x": law["prediction"],
            "x_low": law["prediction_low"],
            "x_high": law["prediction_high"],
        }
        lines.append(
            "A larger run, predicted before it was trained:"
            f" {with_interval(said, 'x', decimals=1)}, measured"
            f" {with_interval(law, 'target_measured', decimals=1)} (n ="
            f" {law['target_measured_n']:.0f} utterances): off by"
            f" {law['prediction_relative_error']:+.1%},"
            f" {'inside' if law['prediction_holds'] else 'outside of'} the interval of one run."
        )
    if "scaling_scores" in study:
        params = study["law"].params
        trained = [params["study"], *([params["target"].split("/")[0]] if params["target"] else [])]
        table = tables.speech_by_training(
            results_dir, study["scaling_scores"], params["spoken"], trained
        )
        header = [
            "",
            "parameters",
            "speech, h",
            "bits a second",
            "corpus WER, %",
            "similarity",
            "n",
        ]
        rows = [
            [
                row["system"],
                f"{row['parameters']:,.0f}",
                f"{row['hours']:.3g}",
                with_interval(row, "loss", decimals=1),
                with_interval(row, "corpus_wer", 100, 1),
                with_interval(row, "speaker_similarity", decimals=3),
                f"{row['corpus_wer_n']:.0f}",
            ]
            for row in table.to_dict("records")
        ]
        lines.append(markdown(header, rows))
    return "\n\n".join(lines)


def _search(result: Result) -> str:
    arms = tables.search_arms(result)
    if not len(arms):
        return ""
    arms = arms.set_index("system")
    header = [
        "",
        "corpus WER, %",
        "by the search's recogniser",
        "similarity",
        "by the search's model",
        "codes",
        "n",
    ]
    rows = []
    for name in [name for name in ARMS if name in arms.index]:
        row = arms.loc[name].to_dict()
        cells = [
            ARMS[name],
            with_interval(row, "corpus_wer", 100, 1),
            with_interval(row, "verifier_wer", 100, 1),
        ]
        cells += [
            with_interval(row, "similarity", 1, 3),
            with_interval(row, "verifier_similarity", 1, 3),
        ]
        rows.append([*cells, _whole(row.get("tokens")), _whole(row.get("utterances"))])
    text = (
        "**Inference-time scaling**, scored by held-out judges; codes are drawn ones an"
        " utterance\n\n"
    )
    changes = [
        f"{ARMS[name]} {change_words(change)}"
        for name, change in tables.paired_arms(result, ["both-16", "partial-prm"]).items()
    ]
    return text + markdown(header, rows) + _paired("Minus plain sampling, paired", changes)


def _codecs(study: Mapping[str, Result]) -> str:
    scores = {role: tables.codec_scores(study[role]) for role in CORPORA if role in study}
    if not scores:
        return ""
    header = [""]
    for role, table in scores.items():
        n = f"{CORPORA[role]} (n = {table['corpus_wer_n'].max():.0f})"
        header += [f"{n}: bit/s", "corpus WER, %", "similarity", "STOI"]
    systems = dict.fromkeys(name for table in scores.values() for name in table["system"])
    rows = []
    for system in systems:
        cells = [system]
        for table in scores.values():
            found = table[table["system"] == system].to_dict("records")
            row = found[0] if found else {}
            cells += [_whole(row.get("bits_per_second")), with_interval(row, "corpus_wer", 100, 1)]
            cells += [
                with_interval(row, "speaker_similarity", decimals=3),
                with_interval(row, "stoi", decimals=3),
            ]
        rows.append(cells)
    missing = dict.fromkeys(name for role in scores for name in tables.codecs_not_run(study[role]))
    text = f"**Codecs on the same recordings**\n\n{markdown(header, rows)}"
    if any(row[0].startswith("mini-") for row in rows):
        sizes = "[codec_sizes](experiments/codec_sizes.yaml)"
        text += (
            "\n\n`mini-*`: other codebook sizes and rates, trained for a small part of mini's"
            f" steps ({sizes})."
        )
    return text + (f"\n\nCould not run here: {', '.join(missing)}." if missing else "")


def _recognition(result: Result) -> str:
    table = tables.recognition_scores(result)
    header = [
        "",
        "corpus WER of recognition, %",
        "held-out speech, bits a second",
        "tokens trained",
        "n",
    ]
    rows = [
        [
            tables.DIRECTIONS.get(row["system"], row["system"]),
            with_interval(row, "corpus_wer", 100, 1),
            with_interval(row, "bits_per_second", decimals=1),
            _whole(row["tokens"]),
            ", ".join(
                filter(
                    None, (_whole(row.get(key)) for key in ("corpus_wer_n", "bits_per_second_n"))
                )
            ),
        ]
        for row in table.to_dict("records")
    ]
    text = f"**Recognition, the sides swapped**, one training seed each\n\n{markdown(header, rows)}"
    change = tables.joint_minus_single(result)
    loss = with_interval(change, "bits_per_second_difference", decimals=1)
    return text + _paired(
        "Both directions minus one, paired",
        [
            f"{change_words(change)}",
            f"bits a second {loss}, n = {change['bits_per_second_difference_n']:.0f}",
        ],
    )


def _finetuning(scored: Result, results_dir: str | Path) -> str:
    if not all(read_results(results_dir, name) for name in ("finetuning", "finetuning_speech")):
        return ""
    tunes, levels = tables.finetunes(results_dir, "finetuning", "finetuning_speech", scored)
    metrics = (
        ("speaker_similarity", 1, 3),
        ("held_out_bits_per_second", 1, 0),
        ("corpus_wer", 100, 0),
    )
    words = ("similarity", "bits a second", "corpus WER, %")
    header = ["", *(f"{name}, {method}" for name in words for method in tables.METHODS)]
    rows = []
    for minutes, group in tunes.groupby("minutes"):
        by_method = group.set_index("method").to_dict("index")
        cells = [
            with_interval(by_method.get(method, {}), metric, factor, decimals)
            for metric, factor, decimals in metrics
            for method in tables.METHODS
        ]
        rows.append([f"{minutes:.2g} min", *cells])
    level_cells = [
        f"{row['label']} {with_interval(row, 'speaker_similarity', decimals=3)}"
        for row in levels.to_dict("records")
    ]
    n = (
        f"n = {tunes['corpus_wer_n'].max():.0f} sentences,"
        f" {tunes['held_out_bits_per_second_n'].max():.0f} for bits"
    )
    text = f"**Minutes of a new voice**, one training seed each; {n}\n\n{markdown(header, rows)}"
    text += f"\n\nSimilarity of {', '.join(level_cells)}."
    changes = [
        f"{row['minutes']:.2g} min similarity"
        f" {with_interval(row, 'speaker_similarity_difference', decimals=3)}"
        for row in tables.lora_minus_all(tunes, scored).to_dict("records")
    ]
    return text + _paired("LoRA minus all weights, paired", changes)


def change_words(difference: Mapping[str, float]) -> str:
    """`WER in points -5.0 [..], similarity 0.1 [..], n = 600` of a `compare_systems`."""
    parts = [
        f"{name} {with_interval(difference, f'{metric}_difference', factor, decimals)}"
        for metric, name, factor, decimals in (
            ("corpus_wer", "WER in points", 100, 1),
            ("speaker_similarity", "similarity", 1, 3),
        )
        if f"{metric}_difference" in difference
    ]
    return f"{', '.join(parts)}, n = {difference['corpus_wer_difference_n']:.0f}"


def _paired(words: str, changes: list[str]) -> str:
    return f"\n\n{words}: {'; '.join(changes)}." if changes else ""


def _whole(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:,.0f}"
