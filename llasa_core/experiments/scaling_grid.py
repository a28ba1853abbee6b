"""The grid of train-time scaling step by step: what the next amount of speech and the next size
change, in held-out bits and in word errors, and what speech that is heard again is worth.

A cell is a size and an amount, `(parameters, hours)`, with all its seeds. A table of steps has a
row a step: along (what changes), name and step (the same for a metric and in words), difference,
low and high (95 %), and n (in words: what stands behind it).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from llasa_core.evaluation.recognition import compare_losses
from llasa_core.evaluation.replicates import (
    SeedScatter,
    SettingScore,
    seed_scatter,
    setting_scores,
)
from llasa_core.evaluation.summary import ERRORS, MEANS

Cell = tuple[float, float]  # parameters, hours

EQUAL_TOKENS = 0.05  # runs whose tokens differ by a smaller share took the same steps

COLUMNS = ["along", "name", "step", "difference", "low", "high", "n"]

HeldOut = Callable[[str], Sequence[dict]]  # rows of held_out.jsonl of a run, `<experiment>/<run>`


def cells_of(table: pd.DataFrame) -> dict[Cell, pd.DataFrame]:
    """The rows of each cell of runs or scored systems, by parameters and hours; hours are rounded
    to what was asked for.
    """
    keys = ["parameters", table["hours"].round(2)]
    return {(float(size), float(hours)): rows for (size, hours), rows in table.groupby(keys)}


def neighbours(cells: Mapping[Cell, pd.DataFrame]) -> list[tuple[dict[str, str], Cell, Cell]]:
    """({along, name, step}, cell, next cell): the next amount (along `hours`) at every size, then
    the next size (along `parameters`) at every amount, among the cells that there are.
    """
    names = {cell: str(rows["model"].iloc[0]) for cell, rows in cells.items()}
    pairs = []
    for axis, along in ((1, "hours"), (0, "parameters")):
        ordered = sorted(cells, key=lambda cell: (cell[1 - axis], cell[axis]))
        for before, after in itertools.pairwise(ordered):
            if before[1 - axis] != after[1 - axis]:
                continue
            (model, other), hours = (names[before], names[after]), before[1]
            named = {"along": along}
            if along == "hours":
                named |= {"name": f"{model}_{hours:g}h_{after[1]:g}h"}
                named |= {"step": f"{model}: {hours:g} h to {after[1]:g} h"}
            else:
                named |= {"name": f"{hours:g}h_{model}_{other}"}
                named |= {"step": f"{hours:g} h: {model} to {other}"}
            pairs.append((named, before, after))
    return pairs


def loss_steps(runs: pd.DataFrame, held_out: HeldOut) -> pd.DataFrame:
    """Change of the held-out loss, bits a second, between neighbouring cells of `training_runs`."""
    cells = cells_of(runs.dropna(subset=["loss"]))
    scatter = seed_scatter([rows["loss"].to_numpy() for rows in cells.values()])
    table = [
        named | loss_change(cells[before], cells[after], scatter, held_out)
        for named, before, after in neighbours(cells)
    ]
    return pd.DataFrame(table, columns=COLUMNS)


def loss_change(
    before: pd.DataFrame, after: pd.DataFrame, scatter: SeedScatter, held_out: HeldOut
) -> dict[str, float | str]:
    """Mean loss of the runs `after` minus that of those `before`, on the same utterances.

    Student's interval over seeds where any cell of the study has several; else of the first runs,
    by the paired bootstrap over utterances, which knows nothing of the scatter of trainings.
    """
    if scatter.degrees:
        change = scatter.difference(before["loss"], after["loss"])
        n = f"{len(before)} and {len(after)} runs"
    else:
        rows = [held_out(part["run"].iloc[0]) for part in (before, after)]
        paired = compare_losses(*rows)
        change = [paired[f"bits_per_second_difference{end}"] for end in ("", "_low", "_high")]
        n = f"{len(rows[0])} utterances"
    return dict(zip(("difference", "low", "high"), change, strict=True)) | {"n": n}


def speech_scores(
    speech: pd.DataFrame, rows: Mapping[str, Sequence[Mapping]], metric: str
) -> dict[Cell, SettingScore]:
    """A metric of `summarise` (an error rate or a mean) by cell of `tables.speech_by_training`,
    over seeds and texts; rows: the scored rows of each system.
    """
    value, weight = ERRORS.get(metric) or (MEANS[metric], None)
    trainings = {
        cell: [rows[system] for system in part["system"]] for cell, part in cells_of(speech).items()
    }
    return setting_scores(trainings, value, weight)


def speech_cells(
    speech: pd.DataFrame, rows: Mapping[str, Sequence[Mapping]], metrics: Sequence[str]
) -> pd.DataFrame:
    """A row a cell: model, parameters, hours, mean loss, seeds, and of each metric METRIC, _low,
    _high and _n (texts).
    """
    table = []
    scores = {metric: speech_scores(speech, rows, metric) for metric in metrics}
    for cell, part in cells_of(speech).items():
        row = {"model": part["model"].iloc[0], "parameters": cell[0], "hours": cell[1]}
        row |= {"loss": part["loss"].mean(), "seeds": len(part)}
        for metric in metrics:
            score = scores[metric][cell]
            low, high = score.interval()
            row |= {metric: score.value, f"{metric}_low": low, f"{metric}_high": high}
            row |= {f"{metric}_n": score.texts}
        table.append(row)
    return pd.DataFrame(table)


def speech_steps(speech: pd.DataFrame, scores: Mapping[Cell, SettingScore]) -> pd.DataFrame:
    """Change of a score between neighbouring cells that were scored, on the same texts."""
    table = []
    for named, before, after in neighbours(cells_of(speech)):
        change = scores[after].minus(scores[before])
        n = f"{scores[before].seeds} and {scores[after].seeds} runs, {scores[after].texts} texts"
        row = dict(zip(("difference", "low", "high"), change, strict=True))
        table.append(named | row | {"n": n})
    return pd.DataFrame(table, columns=COLUMNS)


def falls(steps: pd.DataFrame) -> dict[str, dict[str, int]]:
    """By what the steps are along: how many there are, how many intervals lie below zero (`fall`),
    and how many above (`rise`).
    """
    return {
        str(along): {
            "n": len(rows),
            "fall": int((rows["high"] < 0).sum()),
            "rise": int((rows["low"] > 0).sum()),
        }
        for along, rows in steps.groupby("along", sort=False)
    }


def reuse_steps(runs: pd.DataFrame, repeats: pd.DataFrame, held_out: HeldOut) -> pd.DataFrame:
    """What more steps and what fresh speech are worth, each without the other.

    runs, repeats: `training_runs` of the grid and of models that heard their hours more often. For
    every cell of `repeats`, against the cells of the same size in the grid: along `more_steps`,
    from the same hours heard as often as the grid does; along `fresh_speech`, to the cell of equal
    tokens with more hours. What the grid lacks is left out.
    """
    cells, again = (cells_of(table.dropna(subset=["loss"])) for table in (runs, repeats))
    scatter = seed_scatter([rows["loss"].to_numpy() for rows in (*cells.values(), *again.values())])
    table = []

    def add(along: str, before: pd.DataFrame, after: pd.DataFrame) -> None:
        sides = [
            f"{rows['hours'].iloc[0]:.3g} h x {rows['epochs'].iloc[0]:g}"
            for rows in (before, after)
        ]
        model = after["model"].iloc[0]
        name = "_".join([along, model, *sides]).replace(" ", "")
        named = {"along": along, "name": name, "step": f"{model}: {' to '.join(sides)}"}
        table.append(named | loss_change(before, after, scatter, held_out))

    for (size, hours), heard in again.items():
        if (size, hours) in cells:
            add("more_steps", cells[size, hours], heard)
        for (other, more), fresh in cells.items():
            ratio = fresh["tokens"].mean() / heard["tokens"].mean()
            if other == size and more > hours and abs(np.log(ratio)) < EQUAL_TOKENS:
                add("fresh_speech", heard, fresh)
    return pd.DataFrame(table, columns=COLUMNS)


def as_metrics(steps: pd.DataFrame, prefix: str) -> dict[str, float]:
    """PREFIX_NAME, _low and _high of every step, and PREFIX_ALONG_n, _fall and _rise of `falls`."""
    ends = {"": "difference", "_low": "low", "_high": "high"}
    flat = {
        f"{prefix}_{row['name']}{end}": row[key]
        for row in steps.to_dict("records")
        for end, key in ends.items()
    }
    counts = falls(steps).items()
    return flat | {
        f"{prefix}_{along}_{key}": value for along, of in counts for key, value in of.items()
    }
