"""Search by model size, read from results/: where a smaller model that searches beats a larger one
that does not.

The runs are those of 60_inference_time_scaling. A model's size is that of the training whose folder
it lies in, never the name of a run. Systems are compared on the same texts, paired; a cost ratio is
one of sums. FLOPs are the language model's alone, CPU seconds hold verifiers and codec too: what is
cheap in one may be dear in the other, so both stay.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from llasa_core import intervals
from llasa_core.errors import InputError
from llasa_core.experiments.results import Result, finished_runs, models_of, read_results
from llasa_core.intervals import CLUSTER, compare_systems
from llasa_core.search.nested import arm_scores

AXES = {
    "flops": "FLOPs of the language model",
    "cpu_seconds": "CPU seconds, verifiers included",
}  # an utterance

BETTER = {"corpus_wer": -1, "speaker_similarity": 1}  # sign of a difference that is a gain

ENDS = ("", "_low", "_high", "_n")

CONDITIONS = (
    *("manifest", "voices", "limit", "tagged", "seeds", "codec"),
    *("search_asr", "search_speaker", "judge_asr", "judge_speaker"),
)  # parameters that systems share, or they are not compared

SCORES = ("corpus_wer", "similarity", "verifier_wer", "tokens", "flops", "cpu_seconds")


@dataclass(frozen=True)
class System:
    """One arm of one run: a model of a size at a temperature, and how its utterance was chosen
    among n.

    parameters: embeddings included; hours: of speech that it was trained on; searches: whether
    verifiers chose; rows: its scored utterances (`search_study.nested_rows`).
    """

    size: str
    parameters: int
    hours: float
    temperature: float
    arm: str
    strategy: str
    n: int
    searches: bool
    rows: list[dict] = field(repr=False)

    @property
    def name(self) -> str:
        """For messages and metrics, as in `mini_t0.8_both-16`."""
        return f"{self.size}_t{self.temperature:g}_{self.arm}"


def read_systems(results_dir: str, experiment: str, trained: Sequence[str]) -> list[System]:
    """Every arm of the finished runs of `experiment`, smaller models first; trained: experiments of
    20_train.

    Raises InputError without a run, for runs whose texts, verifiers or judges differ, for a model
    that no run of `trained` made, and for two runs of the same size, temperature and arm.
    """
    runs = _runs(results_dir, experiment)
    trainings = models_of(run for name in trained for run in read_results(results_dir, name))
    systems: dict[str, System] = {}
    for run in runs:
        model = run.params["model"].rstrip("/")
        if model not in trainings:
            raise InputError(
                f"{run.folder}: its model is {model}, which no finished run of {', '.join(trained)}"
                " made"
            )
        training = trainings[model]
        size = (
            training.params["model"],
            int(training.metrics["parameters"]),
            training.metrics["train_hours"],
        )
        for arm in _arms(run):
            system = System(*size, run.params["temperature"], **arm)
            if system.name in systems:
                raise InputError(
                    f"{run.folder}: {system.name} is there twice, expected one run of each"
                )
            systems[system.name] = system
    return sorted(
        systems.values(), key=lambda system: (system.parameters, -system.temperature, system.n)
    )


def missing_sizes(systems: Sequence[System], sizes: Sequence[str]) -> list[str]:
    """Those of `sizes` without both a search and a plain sample; InputError when fewer than two
    sizes are there.
    """
    there = [
        size
        for size in sizes
        if {True, False} <= {system.searches for system in systems if system.size == size}
    ]
    if len(there) < 2:
        raise InputError(
            f"sizes with a search: {', '.join(there) or 'none'}; expected two or more of"
            f" {', '.join(sizes)}"
        )
    return [size for size in sizes if size not in there]


def table_of(systems: Sequence[System]) -> pd.DataFrame:
    """One row a system: its fields and `search_study.arm_scores`."""
    return pd.DataFrame(
        {key: value for key, value in vars(system).items() if key != "rows"}
        | arm_scores(system.rows)
        for system in systems
    )


def verifier_seconds(table: pd.DataFrame) -> pd.Series:
    """CPU seconds a candidate that are not the language model's, by size; of each size's search
    with the largest N.

    Equal verifiers hear like utterances: how far these differ between sizes is the noise of the CPU
    axis.
    """
    heard = {}
    for size, rows in table[table["searches"]].groupby("size", sort=False):
        search = rows.loc[rows["n"].idxmax()]
        alone = (
            (table["size"] == size)
            & (table["temperature"] == search["temperature"])
            & ~table["searches"]
        )
        for _, plain in table[alone].iterrows():
            drawing = plain["cpu_seconds"] * search["tokens"] / plain["tokens"]
            heard[size] = (search["cpu_seconds"] - drawing) / search["n"]
    return pd.Series(heard, name="verifier_cpu_seconds", dtype=float)


def pairs_of(systems: Sequence[System]) -> pd.DataFrame:
    """Every smaller model that searches against every larger one that does not, on the same texts.

    Columns smaller, arm, n, temperature, larger, larger_temperature, and each with _low, _high (95
    %, bootstrap over texts) and _n (utterances): corpus_wer_difference and
    speaker_similarity_difference (smaller minus larger, paired), flops_ratio and cpu_seconds_ratio
    (smaller to larger; that of seconds holds the texts' scatter, not the machine's, see
    `verifier_seconds`). Raises InputError when the texts differ.
    """
    rows = []
    for small in (system for system in systems if system.searches):
        for large in (
            one for one in systems if not one.searches and one.parameters > small.parameters
        ):
            change = compare_systems(large.rows, small.rows, names=(large.name, small.name))
            row: dict[str, Any] = {"smaller": small.size, "arm": small.arm, "n": small.n}
            row |= {
                "temperature": small.temperature,
                "larger": large.size,
                "larger_temperature": large.temperature,
            }
            row |= {
                f"{key}_difference{end}": change[f"{key}_difference{end}"]
                for key in BETTER
                for end in ENDS
            }
            for axis in AXES:
                row |= _ratio(axis, small.rows, large.rows)
            rows.append(row)
    return pd.DataFrame(rows)


def crossings(pairs: pd.DataFrame) -> pd.DataFrame:
    """The cheapest search of each smaller model that beats each larger one, by metric and by axis
    of cost.

    A search beats when the 95 % interval of its paired difference lies on the better side of zero.
    Columns smaller, larger, larger_temperature, metric, axis; arm and n ("" and 0: no search beats
    it), the columns of the difference and ratio without the metric's and axis' names (NaN without
    one), and verdict: "at equal or lower cost" (ratio at most 1), "at higher cost", or "not beaten
    by N up to the most tried".
    """
    rows = []
    for key, tried in pairs.groupby(["smaller", "larger", "larger_temperature"], sort=False):
        for metric, sign in BETTER.items():
            near = f"{metric}_difference{'_high' if sign < 0 else '_low'}"
            beats = tried[sign * tried[near] > 0]
            for axis in AXES:
                row = dict(zip(("smaller", "larger", "larger_temperature"), key, strict=True))
                row |= {"metric": metric, "axis": axis, "arm": "", "n": 0}
                first = beats.loc[beats[f"{axis}_ratio"].idxmin()] if len(beats) else None
                if first is not None:
                    row |= {"arm": first["arm"], "n": int(first["n"])}
                row |= {
                    f"{kind}{end}": math.nan if first is None else first[f"{name}_{kind}{end}"]
                    for kind, name in (("difference", metric), ("ratio", axis))
                    for end in ENDS
                }
                row["verdict"] = f"not beaten by N up to {tried['n'].max()}"
                if first is not None:
                    row["verdict"] = (
                        "at equal or lower cost"
                        if first[f"{axis}_ratio"] <= 1
                        else "at higher cost"
                    )
                rows.append(row)
    return pd.DataFrame(rows)


def sentences(found: pd.DataFrame) -> list[str]:
    """`crossings` in words: one line a pair and metric, or two where the axes name different
    searches.
    """
    lines = []
    keys = ["smaller", "larger", "larger_temperature", "metric", "arm"]
    for (smaller, larger, temperature, metric, arm), rows in found.groupby(keys, sort=False):
        factor, unit = (100, " points") if metric == "corpus_wer" else (1, "")
        what = {"corpus_wer": "corpus WER", "speaker_similarity": "similarity"}[metric]
        against = f"{larger} plain (temperature {temperature:g}) in {what}"
        first = rows.iloc[0]
        if not arm:
            lines.append(f"{smaller} with search against {against}: {first['verdict']}")
            continue
        change, low, high = (factor * first[f"difference{end}"] for end in ENDS[:3])
        costs = [
            f"{row.ratio:.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}] times its"
            f" {AXES[row.axis]}"
            for row in rows.itertuples()
        ]
        beats = f"{smaller} {arm} beats {against}: {change:+.3g}{unit} [{low:+.3g}, {high:+.3g}]"
        lines.append(f"{beats} at {' and '.join(costs)}, n = {first['difference_n']:.0f}")
    return lines


def guided_table(results_dir: str, experiment: str, baseline: str) -> pd.DataFrame:
    """Partial PRM by beams and guided seconds, with the other arms of those runs; a row an arm,
    cheapest first.

    Columns arm, series and note (what a figure says of a line and of its point), beams and
    guided_seconds (0: not guided), n, `search_study.arm_scores`, and corpus_wer_difference and
    speaker_similarity_difference with their intervals, paired, arm minus `baseline` (an arm of one
    of the runs). Raises InputError without a run or baseline, for runs whose texts, model or judges
    differ, and for an arm that is there twice.
    """
    runs = _runs(results_dir, experiment, (*CONDITIONS, "model", "temperature"))
    arms: dict[str, dict[str, Any]] = {}
    for run in runs:
        for arm in _arms(run):
            beams, expansions, _, seconds = (
                run.params["partial"] if arm["arm"] == "partial-prm" else (0, 0, 0, 0.0)
            )
            described = {"series": arm["strategy"], "note": f"N={arm['n']}"}
            if beams:
                arm["arm"] = f"beams{beams}x{expansions}-{seconds:g}s"
                described = {
                    "series": f"{arm['strategy']}, {beams} beams",
                    "note": f"{seconds:g} s",
                }
            if arm["arm"] in arms:
                raise InputError(
                    f"{run.folder}: arm {arm['arm']} is there twice, expected one run of each"
                )
            arms[arm["arm"]] = {**arm, **described, "beams": beams, "guided_seconds": seconds}
    if baseline not in arms:
        raise InputError(
            f"{results_dir}/{experiment}: no arm {baseline!r}, there are {', '.join(arms)}"
        )
    rows_of = {name: arm.pop("rows") for name, arm in arms.items()}
    table = []
    for name, rows in rows_of.items():
        row = arms[name] | arm_scores(rows)
        if name != baseline:
            change = compare_systems(rows_of[baseline], rows, names=(baseline, name))
            row |= {
                f"{key}_difference{end}": change[f"{key}_difference{end}"]
                for key in BETTER
                for end in ENDS
            }
        table.append(row)
    return pd.DataFrame(table).sort_values("cpu_seconds", ignore_index=True)


def flat_metrics(
    table: pd.DataFrame, found: pd.DataFrame, guided: pd.DataFrame | None = None
) -> dict[str, float]:
    """The tables as {name: number} for a result.

    SIZE_tTEMPERATURE_ARM_METRIC; SMALLER_against_LARGER_tTEMPERATURE_METRIC_by_AXIS_ least_n (0:
    none beats), difference and ratio; guided_ARM_METRIC.
    """
    flat: dict[str, float] = {}
    for row in table.to_dict("records"):
        flat |= _numbers(f"{row['size']}_t{row['temperature']:g}_{row['arm']}", row, SCORES)
    for row in found.to_dict("records"):
        name = f"{row['smaller']}_against_{row['larger']}_t{row['larger_temperature']:g}_{row['metric']}_by_{row['axis']}"
        flat |= {f"{name}_least_n": row["n"]} | _numbers(name, row, ("difference", "ratio"))
    for row in guided.to_dict("records") if guided is not None else ():
        flat |= _numbers(
            f"guided_{row['arm']}", row, (*SCORES, *(f"{key}_difference" for key in BETTER))
        )
    return flat


def _numbers(name: str, row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, float]:
    columns = [f"{key}{end}" for key in keys for end in ENDS]
    return {f"{name}_{key}": row[key] for key in columns if not math.isnan(row.get(key, math.nan))}


def _ratio(axis: str, rows: Sequence[Mapping], others: Sequence[Mapping]) -> dict[str, float]:
    """Sum of a cost to that of the others, by the same ids, with its bootstrap interval over
    texts.
    """
    by_id = {row["id"]: spent for row, spent in zip(others, _spent(axis, others), strict=True)}
    texts = [row[CLUSTER] for row in rows]
    ours = intervals.cluster_sums(_spent(axis, rows), texts)
    theirs = intervals.cluster_sums([by_id[row["id"]] for row in rows], texts)
    low, high = intervals.bootstrap_interval(ours, theirs)
    name = f"{axis}_ratio"
    return {
        name: ours.sum() / theirs.sum(),
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_n": len(rows),
    }


def _spent(axis: str, rows: Sequence[Mapping]) -> np.ndarray:
    """A cost by utterance (N,). Requests run side by side, so that only the sum of their seconds is
    right: it is shared out by tokens, since what a request passed by itself may be nothing, or less
    (`search_cost.Cost`)."""
    spent = np.array([row[axis] for row in rows], dtype=np.float64)
    if axis != "cpu_seconds":
        return spent
    tokens = np.array([row["tokens"] for row in rows], dtype=np.float64)
    return spent.sum() * tokens / tokens.sum()


def _runs(results_dir: str, experiment: str, shared: Sequence[str] = CONDITIONS) -> list[Result]:
    runs = finished_runs(results_dir, experiment)
    for run in runs:
        for key in shared:
            if run.params[key] != runs[0].params[key]:
                ours, first = run.params[key], runs[0].params[key]
                raise InputError(
                    f"{run.folder}: `{key}` is {ours!r}, in {runs[0].run} {first!r}: not to be"
                    " compared"
                )
    return runs


def _arms(run: Result) -> list[dict[str, Any]]:
    """arm, strategy, n, searches and rows of all that a run scored; strategies that it left out are
    empty there.
    """
    params = run.params
    arms = [
        (name, arm["strategy"], arm["n"], bool(arm["by"])) for name, arm in params["arms"].items()
    ]
    if params["partial"]:
        arms.append(("partial-prm", "partial PRM by voice + ORM", params["candidates"], True))
    if params["prm"]:
        arms.append(("prm", "PRM by voice", math.prod(params["prm"][:2]), True))
    names = ("arm", "strategy", "n", "searches")
    return [dict(zip(names, arm, strict=True)) | {"rows": run.rows(arm[0])} for arm in arms]
