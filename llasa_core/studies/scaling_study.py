"""Train-time scaling as tables: finished training runs, the law's curves, compute, and a prediction
against its run.

Reads results/ alone. A run that diverged stays in the table and out of the fits; a missing one is
counted, not guessed.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llasa_core import metrics
from llasa_core.errors import InputError
from llasa_core.evaluation.scaling_law import LossSurface
from llasa_core.evaluation.summary import summarise
from llasa_core.experiments.results import (
    Result,
    find_run,
    finished_runs,
    model_of,
    models_of,
    read_results,
    speech_folders,
    system_rows,
)


def read_runs(results_dir: str | Path, experiment: str) -> pd.DataFrame:
    """One row a finished run of a training study, sorted by parameters, hours and seed.

    Columns model, parameters, parameters_body, hours (of speech trained on), seed, epochs, tokens,
    flops, diverged, loss, loss_low, loss_high (bits a second of held-out audio, recomputed from the
    utterances), n, run. A diverged run has no loss. Raises InputError when no run is finished.
    """
    rows = [run_row(result) for result in read_results(results_dir, experiment)]
    if not rows:
        raise InputError(
            f"{results_dir}/{experiment}: no finished run, expected those of the study"
        )
    return pd.DataFrame(rows).sort_values(["parameters", "hours", "seed"], ignore_index=True)


def run_row(result: Result) -> dict[str, Any]:
    """The row of `read_runs` of one finished run of 20_train."""
    values, params = result.metrics, result.params
    row: dict[str, Any] = {"model": params["model"], "parameters": values["parameters"]}
    row |= {
        "parameters_body": values["parameters_body"],
        "hours": values["train_hours"],
        "seed": params["seed"],
    }
    row |= {
        "epochs": params["epochs"],
        "tokens": values["tokens"],
        "flops": values.get("training_flops", np.nan),
    }
    row |= {
        "diverged": int(values["diverged"]),
        "loss": np.nan,
        "loss_low": np.nan,
        "loss_high": np.nan,
        "n": 0,
    }
    if not values["diverged"]:
        utterances = result.rows("held_out")
        bits, interval = metrics.bits_per_second(utterances)
        row |= {
            "loss": bits,
            "loss_low": interval.low,
            "loss_high": interval.high,
            "n": len(utterances),
        }
    return row | {"run": f"{result.experiment}/{result.run}"}


def read_speech(
    results_dir: str | Path, scored: Result, spoken: str, trained: Sequence[str]
) -> pd.DataFrame:
    """One row a scored system: `system`, the columns of its training as in `read_runs`, and
    `evaluate.summarise`.

    spoken: experiment of 30_synthesize; trained: experiments of 20_train. Sorted by parameters and
    hours. InputError for a system whose speech or model none of them made.
    """
    models = models_of(run for name in trained for run in finished_runs(results_dir, name))
    speech, rows = speech_folders(results_dir, spoken), []
    for system, scores in system_rows(scored).items():
        model = model_of(scored, system, speech)
        if model not in models:
            names = ", ".join(trained)
            raise InputError(
                f"{scored.folder}: system {system!r} is of {model}, which no run of {names} made"
            )
        rows.append({"system": system, **run_row(models[model]), **summarise(scores)})
    return pd.DataFrame(rows).sort_values(["parameters", "hours"], ignore_index=True)


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Seeds together: model, parameters, hours, loss (mean), loss_low, loss_high (95 % t interval),
    seeds, diverged.

    hours are rounded to the amount that was asked for, which seeds share. With one seed the
    interval is that over its utterances.
    """
    from scipy.stats import t

    rows = []
    for (parameters, hours), group in runs.groupby(["parameters", runs["hours"].round(2)]):
        loss = group["loss"].dropna()
        half = (
            t.ppf(0.975, len(loss) - 1) * loss.std(ddof=1) / np.sqrt(len(loss))
            if len(loss) > 1
            else np.nan
        )
        low, high = (
            (loss.mean() - half, loss.mean() + half)
            if len(loss) > 1
            else group[["loss_low", "loss_high"]].mean()
        )
        row = {
            "model": group["model"].iloc[0],
            "parameters": parameters,
            "hours": hours,
            "loss": loss.mean(),
        }
        rows.append(
            row
            | {
                "loss_low": low,
                "loss_high": high,
                "seeds": len(loss),
                "diverged": group["diverged"].sum(),
            }
        )
    return pd.DataFrame(rows)


def surface_curves(surface: LossSurface, runs: pd.DataFrame, points: int = 25) -> pd.DataFrame:
    """The law along each size and each amount of data of `runs`: parameters, hours, loss, loss_low,
    loss_high.
    """
    sizes, hours = sorted(runs["parameters"].unique()), sorted(runs["hours"].round(2).unique())
    places = [(size, hour) for size in sizes for hour in np.geomspace(hours[0], hours[-1], points)]
    places += [(size, hour) for hour in hours for size in np.geomspace(sizes[0], sizes[-1], points)]
    rows = []
    for size, hour in places:
        low, high = surface.predict_interval(size, hour)
        rows.append({"parameters": size, "hours": hour, "loss": float(surface.predict(size, hour))})
        rows[-1] |= {"loss_low": low, "loss_high": high}
    return pd.DataFrame(rows).drop_duplicates(["parameters", "hours"])


def flops_rate(runs: pd.DataFrame) -> tuple[float, float]:
    """(k, power) of training FLOPs = k * parameters^power * hours, fitted to the runs in
    logarithms.

    Near 6 tokens an hour times epochs, and 1: heads are counted in both, attention and norms bend
    it a little.
    """
    kept = runs.dropna(subset=["flops"])
    power, intercept = np.polyfit(
        np.log(kept["parameters"]), np.log(kept["flops"] / kept["hours"]), 1
    )
    return float(np.exp(intercept)), float(power)


def iso_flop_curves(
    surface: LossSurface, runs: pd.DataFrame, levels: int = 4, points: int = 80
) -> pd.DataFrame:
    """The law at equal compute: flops, parameters, hours, loss, measured (whether size and hours
    lie inside the grid).

    Levels are spread evenly in logarithm between the compute of the smallest and of the largest
    run.
    """
    factor, power = flops_rate(runs)
    sizes, hours = runs["parameters"], runs["hours"].round(2)
    known = runs["flops"].dropna()
    rows = []
    for flops in np.geomspace(known.min() * 2, known.max() / 2, levels):
        size = np.geomspace(sizes.min() / 2, sizes.max() * 2, points)
        hour = flops / (factor * size**power)
        inside = (
            (size >= sizes.min())
            & (size <= sizes.max())
            & (hour >= hours.min())
            & (hour <= hours.max())
        )
        for entry in zip(size, hour, surface.predict(size, hour), inside, strict=True):
            rows.append(
                {
                    "flops": flops,
                    **dict(zip(("parameters", "hours", "loss", "measured"), entry, strict=True)),
                }
            )
    return pd.DataFrame(rows)


def least_loss(curves: pd.DataFrame) -> pd.DataFrame:
    """The best size of each compute of `iso_flop_curves`: flops, parameters, hours, loss,
    measured.
    """
    return curves.loc[curves.groupby("flops")["loss"].idxmin()].reset_index(drop=True)


def prediction_error(prediction: Result, target: Result) -> dict[str, float]:
    """What the run `target` measured against what `prediction` had said before: flat metrics.

    Raises InputError unless the two speak of one size, amount of data and number of epochs.
    """
    said, found = prediction.metrics, run_row(target)
    for key, ours in (
        ("parameters", found["parameters"]),
        ("hours", round(found["hours"], 2)),
        ("epochs", found["epochs"]),
    ):
        if abs(said[f"target_{key}"] - ours) > 0.005 * ours:
            raise InputError(
                f"{target.folder}: {key} is {ours}, the prediction is of {said[f'target_{key}']}"
            )
    error = found["loss"] / said["predicted"] - 1
    inside = said["predicted_run_low"] <= found["loss"] <= said["predicted_run_high"]
    return {
        "target_measured": found["loss"],
        "target_measured_low": found["loss_low"],
        "target_measured_high": found["loss_high"],
        "target_measured_n": found["n"],
        "prediction": said["predicted"],
        "prediction_low": said["predicted_run_low"],
        "prediction_high": said["predicted_run_high"],
        "prediction_relative_error": error,
        "prediction_holds": int(inside),
    }


def runs_digest(runs: pd.DataFrame) -> int:
    """The runs and losses behind a fit as a number of 48 bits, so that a result says what it was
    fitted to.
    """
    lines = [f"{row.run} {row.loss:.6f}" for row in runs.itertuples()]
    return int.from_bytes(hashlib.sha256(json.dumps(lines).encode()).digest()[:6], "big")


def read_place(results_dir: str | Path, place: str) -> Result | None:
    """The finished run at `place` (experiment/run or its label); None for an empty place or an
    unfinished run.
    """
    return find_run(results_dir, place) if place else None


def predict_run(
    surface: LossSurface, parameters: int, hours: float, epochs: float
) -> dict[str, float]:
    """What the law says of a run that is not trained yet, as flat metrics: `predicted`, with two 95
    % intervals.

    predicted_low and predicted_high: of the law at that place; predicted_run_low and
    predicted_run_high: of one run.
    """
    curve = surface.predict_interval(parameters, hours)
    run = surface.predict_interval(parameters, hours, new_run=True)
    said = {"target_parameters": parameters, "target_hours": hours, "target_epochs": epochs}
    said |= {"predicted": float(surface.predict(parameters, hours)), "predicted_low": curve.low}
    said |= {
        "predicted_high": curve.high,
        "predicted_run_low": run.low,
        "predicted_run_high": run.high,
    }
    return said | {"predicted_n": surface.n}
