"""The smaller studies as tables, a row a system, read from finished runs: search, codecs,
recognition, model sizes.

Averages are recomputed from the scored utterances. Costs of a search, the bits of a codec and the
fit of the law are what their runs recorded.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from llasa_core import metrics
from llasa_core.errors import InputError
from llasa_core.evaluation.recognition import compare_losses
from llasa_core.evaluation.seeds import over_seeds
from llasa_core.evaluation.summary import summarise
from llasa_core.experiments.results import (
    Result,
    finished_runs,
    model_of,
    models_of,
    speech_folders,
    system_rows,
)
from llasa_core.intervals import compare_systems, wilson_interval


def markdown(table: pd.DataFrame) -> str:
    """A table of text cells in Markdown, its index as a first column; an empty cell is a dash."""
    rows = [[str(name), *(cell or "–" for cell in cells)] for name, *cells in table.itertuples()]
    lines = [["", *table.columns], ["---"] * (1 + len(table.columns)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_interval(
    row: Mapping[str, float], metric: str, factor: float = 1, decimals: int = 2
) -> str:
    """`12.3 [11.0, 13.5]` of METRIC, METRIC_low and METRIC_high; empty without the metric."""
    values = [factor * row.get(f"{metric}{end}", math.nan) for end in ("", "_low", "_high")]
    if not math.isfinite(values[0]):
        return ""
    value, low, high = (f"{number:z.{decimals}f}" for number in values)
    return f"{value} [{low}, {high}]"


def interval_cells(
    table: pd.DataFrame, columns: Mapping[str, tuple[str, float, int]]
) -> pd.DataFrame:
    """`with_interval` of every row; columns: {metric: (heading, factor, decimals)}."""
    rows = table.to_dict("records")
    cells = {
        heading: [with_interval(row, metric, factor, decimals) for row in rows]
        for metric, (heading, factor, decimals) in columns.items()
    }
    return pd.DataFrame(cells, index=table.index)


# Arms run on their own.
GUIDED = {"partial-prm": "partial PRM by voice + ORM", "prm": "PRM by voice"}

# Models of notebook 70
DIRECTIONS = {"recognition": "recognises", "speech": "speaks", "both": "both directions"}


def search_arms(result: Result) -> pd.DataFrame:
    """A row an arm of a study of search, by candidates: system, strategy, n (candidates), what the
    run recorded of it.

    corpus_wer and similarity by held-out judges, verifier_wer and verifier_similarity by the models
    that searched, tokens and cpu_seconds an utterance; each with _low, _high and _n.
    """
    params = result.params
    arms = {name: (arm["strategy"], arm["n"]) for name, arm in params["arms"].items()}
    sizes = {"partial-prm": params["candidates"], "prm": params["prm"][0] * params["prm"][1]}
    arms |= {name: (strategy, sizes[name]) for name, strategy in GUIDED.items()}
    rows = []
    for name, (strategy, n) in arms.items():
        prefix = f"{name}_"
        own = {
            key.removeprefix(prefix): value
            for key, value in result.metrics.items()
            if key.startswith(prefix)
        }
        if "corpus_wer" in own:
            rows.append({"system": name, "strategy": strategy, "n": n, **own})
    return (
        pd.DataFrame(rows).sort_values("n", kind="stable", ignore_index=True)
        if rows
        else pd.DataFrame()
    )


def paired_arms(
    result: Result, names: Sequence[str], base: str = "plain"
) -> dict[str, dict[str, float]]:
    """{arm: `compare_systems` of it minus `base`} for arms that searched the same requests."""
    rows = {
        name: result.rows(name)
        for name in (base, *names)
        if (result.folder / f"{name}.jsonl").is_file()
    }
    ids = {name: {row["id"] for row in kept} for name, kept in rows.items()}
    return {
        name: compare_systems(rows[base], rows[name], names=(base, name))
        for name in names
        if name in rows and base in rows and ids[name] == ids[base]
    }


def codec_scores(result: Result) -> pd.DataFrame:
    """A row a codec of a codec table, originals first: system, `summarise`, bits_per_second."""
    names = ["recordings", *(Path(name).name for name in result.params["codecs"])]
    rows = []
    for name in names:
        if f"{name}_utterances" in result.artifacts:
            ends = ("", "_low", "_high", "_n")
            keys = [
                f"bits_per_second{end}"
                for end in ends
                if f"{name}_bits_per_second{end}" in result.metrics
            ]
            bits = {key: result.metrics[f"{name}_{key}"] for key in keys}
            rows.append({"system": name, **summarise(result.rows(name)), **bits})
    return pd.DataFrame(rows)


def codecs_not_run(result: Result) -> list[str]:
    """Codecs that the run could not load."""
    names = [Path(name).name for name in result.params["codecs"]]
    return [name for name in names if result.metrics.get(f"{name}_not_run")]


def seeds_of(result: Result) -> dict[int, Result]:
    """{seed: finished run} of the runs with the parameters of `result` but for the seed."""
    runs = {}
    for run in finished_runs(result.folder.parents[1], result.experiment):
        if run.params | {"seed": 0} == result.params | {"seed": 0}:
            runs[run.params.get("seed", 0)] = run
    return dict(sorted(runs.items()))


def _seed_rows(runs: Mapping[int, Result], name: str) -> dict[int, list[dict]]:
    return {seed: run.rows(name) for seed, run in runs.items()}


def heard_over_seeds(runs: Mapping[int, Result], name: str) -> dict[str, float]:
    """corpus_wer of what the model `name` recognised, over training seeds (`over_seeds`)."""
    return over_seeds(summarise, "corpus_wer", _seed_rows(runs, name))


def _spoken(rows: Sequence[Mapping]) -> dict[str, float]:
    bits, (low, high) = metrics.bits_per_second(rows)
    name = "bits_per_second"
    return {name: bits, f"{name}_low": low, f"{name}_high": high, f"{name}_n": len(rows)}


def recognition_scores(runs: Mapping[int, Result]) -> pd.DataFrame:
    """A row a model of a study of recognition, over its training seeds (`seeds_of`): system, and
    where it has that direction

    corpus_wer of what it heard, bits_per_second of held-out speech; each with _low, _high, _n. And
    seeds, and steps and tokens on average.
    """
    rows, models = [], next(iter(runs.values())).params["models"]
    order = [*DIRECTIONS, *models]
    for name, tasks in sorted(models.items(), key=lambda item: order.index(item[0])):
        row: dict[str, Any] = {"system": name}
        for key in ("steps", "tokens"):
            row[key] = sum(run.metrics[f"{name}_{key}"] for run in runs.values()) / len(runs)
        if "asr" in tasks:
            row |= heard_over_seeds(runs, name)
        if "tts" in tasks:
            row |= over_seeds(_spoken, "bits_per_second", _seed_rows(runs, f"{name}_held_out"))
        rows.append(row)
    return pd.DataFrame(rows)


def joint_minus_single(runs: Mapping[int, Result]) -> dict[str, float]:
    """The model of both directions minus those of one, paired by utterance, over training seeds:
    corpus_wer_difference and bits_per_second_difference as of `over_seeds`.
    """
    first = next(iter(runs.values()))
    models = first.params["models"]
    if not {"recognition", "speech", "both"} <= set(models):
        raise InputError(
            f"{first.folder}: models {', '.join(models)}, expected recognition, speech and both"
        )
    found: dict[str, float] = {}
    for compare, metric, single, joint in (
        (compare_systems, "corpus_wer_difference", "recognition", "both"),
        (compare_losses, "bits_per_second_difference", "speech_held_out", "both_held_out"),
    ):
        found |= over_seeds(compare, metric, _seed_rows(runs, single), _seed_rows(runs, joint))
    return found


def training_runs(results_dir: str | Path, experiment: str) -> pd.DataFrame:
    """One row a finished run of 20_train: `training_row`, by parameters, hours and seed.

    Raises InputError when no run is finished.
    """
    rows = [training_row(run) for run in finished_runs(results_dir, experiment)]
    return pd.DataFrame(rows).sort_values(["parameters", "hours", "seed"], ignore_index=True)


def training_row(run: Result) -> dict[str, Any]:
    """Size, data, compute and held-out loss of one training.

    loss: bits a second of held-out audio, recomputed from the n utterances, with loss_low and
    loss_high; NaN where the run diverged. hours: of speech trained on.
    """
    values, params, utterances = run.metrics, run.params, []
    loss = low = high = math.nan
    if not values["diverged"]:
        utterances = run.rows("held_out")
        loss, (low, high) = metrics.bits_per_second(utterances)
    return {
        "model": params["model"],
        "parameters": values["parameters"],
        "parameters_body": values["parameters_body"],
        "hours": values["train_hours"],
        "seed": params["seed"],
        "epochs": params["epochs"],
        "tokens": values["tokens"],
        "flops": values.get("training_flops", math.nan),
        "diverged": int(values["diverged"]),
        "loss": loss,
        "loss_low": low,
        "loss_high": high,
        "n": len(utterances),
        "run": f"{run.experiment}/{run.run}",
    }


def runs_digest(runs: pd.DataFrame) -> int:
    """The runs and losses of a fit as a 48-bit number, so that a result identifies its data."""
    lines = [f"{row.run} {row.loss:.6f}" for row in runs.itertuples()]
    return int.from_bytes(hashlib.sha256(json.dumps(lines).encode()).digest()[:6], "big")


def sampled_again(scored: Result, name: str, speech: Mapping[str, Result]) -> dict[str, float]:
    """sampled_again_share, as in `summarise`, of scored rows that a run of `speech`
    (`speech_folders`) spoke under guards, which counted them; {} of any others.
    """
    system = scored.params.get("main_system", "") if name == "utterances" else name
    manifest = scored.params.get("systems", {}).get(system, "")
    run = speech.get(Path(manifest).parent.as_posix())
    if run is None or not run.params["attempts"]:
        return {}
    again, spoken = int(run.metrics["sampled_again"]), int(run.metrics["utterances"])
    low, high = wilson_interval(again, spoken)
    ends = {"": again / spoken, "_low": low, "_high": high, "_n": spoken}
    return {f"sampled_again_share{end}": value for end, value in ends.items()}


def speech_by_training(
    results_dir: str | Path, scored: Result, spoken: str, trained: Sequence[str]
) -> pd.DataFrame:
    """One row a scored system: its name, `training_row` of the model that spoke it, `summarise`.

    spoken: experiment of 30_synthesize; trained: experiments of 20_train. Sorted by parameters and
    hours. InputError for a system whose speech or model none of them made.
    """
    models = models_of(run for name in trained for run in finished_runs(results_dir, name))
    speech, rows = speech_folders(finished_runs(results_dir, spoken)), []
    for system, scores in system_rows(scored).items():
        model = model_of(scored, system, speech)
        if model not in models:
            names = ", ".join(trained)
            raise InputError(
                f"{scored.folder}: system {system!r} is of {model}, which no run of {names} made"
            )
        again = sampled_again(scored, system, speech)
        row = {"system": system, **training_row(models[model])}
        rows.append(row | again | summarise(scores))
    return pd.DataFrame(rows).sort_values(["parameters", "hours"], ignore_index=True)


METHODS = ("all weights", "LoRA")

LEVELS = {"originals": "recordings", "codec": "codec round trip (ceiling)"}  # and the base model


def finetunes(
    results_dir: str | Path, trained: str, spoken: str, scored: Result
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(fine-tunes, levels): a row a scored system, `system` and the metrics of `summarise`.

    Fine-tunes also have method (one of METHODS), minutes (of training speech), passes,
    seconds_of_training and held_out_bits_per_second with its interval, sorted by method and
    minutes. Levels have label: what no amount of speech changes. trained, spoken: experiments of
    20_train and 30_synthesize. Raises InputError for a system whose speech no run of `spoken` made,
    and for a model that is neither trained there nor the base of what is.
    """
    training = {run.params["publish"]: run for run in finished_runs(results_dir, trained)}
    bases = {run.params["model"] for run in training.values()}
    speech = speech_folders(finished_runs(results_dir, spoken))
    tunes, levels = [], []
    for system, rows in system_rows(scored).items():
        again = sampled_again(scored, system, speech)
        row = {"system": system, **again, **summarise(rows)}
        model = "" if system in LEVELS else model_of(scored, system, speech)
        if model in training:
            tunes.append(row | _finetuning(training[model]))
        elif system in LEVELS or model in bases:
            levels.append(row | {"label": LEVELS.get(system, "base model (floor)")})
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


def _finetuning(run: Result) -> dict[str, Any]:
    values, name = run.metrics, "held_out_bits_per_second"
    return {
        "method": METHODS[bool(run.params["lora_rank"])],
        "minutes": round(60 * values["train_hours"], 2),
        "passes": run.params["epochs"],
        "seconds_of_training": values["seconds"],
        **{f"{name}{end}": values[f"{name}{end}"] for end in ("", "_low", "_high", "_n")},
    }


def lora_minus_all(tunes: pd.DataFrame, scored: Result) -> pd.DataFrame:
    """LoRA minus full training on the same utterances, a row an amount of `minutes`."""
    rows = system_rows(scored)
    systems = tunes.pivot(index="minutes", columns="method", values="system").reindex(
        columns=list(METHODS)
    )
    return pd.DataFrame(
        {"minutes": minutes, **compare_systems(rows[whole], rows[lora], names=METHODS)}
        for minutes, whole, lora in systems.dropna().itertuples()
    )
