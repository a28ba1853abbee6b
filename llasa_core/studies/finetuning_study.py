"""The study of fine-tuning by minutes, read from results/: which checkpoint spoke which scored
system, and the tables.

A system's scores are joined to its training through the recorded folders (speech -> model ->
published checkpoint), never through its name. Averages are recomputed from the scored utterances.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from llasa_core.errors import InputError
from llasa_core.evaluation.summary import summarise
from llasa_core.experiments.results import (
    Result,
    finished_runs,
    model_of,
    speech_folders,
    system_rows,
)
from llasa_core.intervals import compare_systems

METHODS = ("all weights", "LoRA")

LEVELS = {
    "originals": "recordings",
    "codec": "codec round trip (ceiling)",
}  # the other level is the base model


def read_study(
    results_dir: str | Path, trained: str, spoken: str, scored: Result
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(fine-tunes, levels): a row a system, `system` and the metrics of `evaluate.summarise`.

    Fine-tunes also have method (one of METHODS), minutes (of training speech), passes,
    seconds_of_training and held_out_bits_per_second with its interval, sorted by method and
    minutes. Levels have label: what no amount of speech changes. trained, spoken: experiments of
    20_train and 30_synthesize. Raises InputError for a scored system whose speech no run of
    `spoken` made, and for a model that is neither trained there nor the base of what is.
    """
    training = {run.params["publish"]: run for run in finished_runs(results_dir, trained)}
    bases = {run.params["model"] for run in training.values()}
    speech = speech_folders(results_dir, spoken)
    tunes: list[dict[str, Any]] = []
    levels: list[dict[str, Any]] = []
    for system, rows in system_rows(scored).items():
        row = {"system": system, **summarise(rows)}
        if system in LEVELS:
            levels.append(row | {"label": LEVELS[system]})
            continue
        model = model_of(scored, system, speech)
        if model in training:
            tunes.append(row | _training(training[model]))
        elif model in bases:
            levels.append(row | {"label": "base model (floor)"})
        else:
            raise InputError(
                f"{scored.folder}: system {system!r} is of {model}, which no run of {trained} made"
            )
    if not tunes:
        raise InputError(
            f"{scored.folder}: no system is a fine-tune of {trained}, expected at least one"
        )
    table = pd.DataFrame(tunes).sort_values(["method", "minutes"], ignore_index=True)
    return table, pd.DataFrame(levels)


def paired_methods(tunes: pd.DataFrame, scored: Result) -> pd.DataFrame:
    """LoRA minus all weights on the same utterances: `minutes` and `compare_systems`, a row an
    amount both have.
    """
    rows = system_rows(scored)
    whole, lora = (
        tunes[tunes["method"] == name].set_index("minutes")["system"] for name in METHODS
    )
    return pd.DataFrame(
        {
            "minutes": minutes,
            **compare_systems(rows[whole[minutes]], rows[lora[minutes]], names=METHODS),
        }
        for minutes in whole.index.intersection(lora.index)
    )


def flat_metrics(tunes: pd.DataFrame, levels: pd.DataFrame) -> dict[str, float]:
    """{"SYSTEM_METRIC": value} of both tables, for a result."""
    flat: dict[str, float] = {}
    for row in [*tunes.to_dict("records"), *levels.to_dict("records")]:
        numbers = {
            name: value
            for name, value in row.items()
            if isinstance(value, int | float) and value == value
        }
        flat |= {f"{row['system']}_{name}": value for name, value in numbers.items()}
    return flat


def _training(run: Result) -> dict[str, Any]:
    values = run.metrics
    described = {
        "method": METHODS[bool(run.params["lora_rank"])],
        "minutes": round(60 * values["train_hours"], 2),
        "passes": run.params["epochs"],
        "seconds_of_training": values["seconds"],
    }
    name = "held_out_bits_per_second"
    return described | {
        f"{name}{end}": values[f"{name}{end}"] for end in ("", "_low", "_high", "_n")
    }
