"""Results: `record` ends a notebook with its result.json; the rest reads finished runs.

A run is finished when its result.json exists; a folder without one is ignored. A file that is
damaged, or has another sha256 than its result.json recorded, is an InputError. No model and no
audio is loaded.
"""

import io
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from llasa_core.errors import InputError, fits
from llasa_core.experiments.config import repository_root
from llasa_core.files import publish, read_object, read_rows, sha256, write_json, write_rows

# Columns that identify a system.
DESCRIPTIVE = ("tokens_per_second", "codebook_size", "layers", "frame_rate")

KEYS = ("artifacts", "experiment", "metrics", "notebook", "params", "provenance", "run", "schema")


@dataclass(frozen=True)
class Result:
    """One finished run; the fields are those of its result.json, `folder` is where it lies."""

    folder: Path
    experiment: str
    run: str
    notebook: str
    params: dict[str, Any]
    metrics: dict[str, float]
    artifacts: dict[str, dict[str, str]]
    provenance: dict[str, Any]

    def file(self, name: str) -> Path:
        """A file of the run's folder; InputError if missing or not as result.json says."""
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing, expected a file of the finished run")
        ours = (self.experiment, self.run, name)
        recorded = [
            item["sha256"]
            for item in self.artifacts.values()
            if Path(item["path"]).parts[-3:] == ours
        ]
        if recorded and sha256(path) != recorded[0]:
            raise InputError(
                f"{path}: sha256 is not the {recorded[0][:12]}.. that result.json recorded"
            )
        return path

    def rows(self, name: str = "utterances") -> list[dict]:
        """Scored utterances of `<name>.jsonl`, every number finite, every id once."""
        path = self.file(f"{name}.jsonl")
        rows = read_rows(path)
        ids = [row.get("id") for row in rows]
        for number, row in enumerate(rows, start=1):
            missing = [key for key in ("id", "seconds") if key not in row]
            if missing:
                raise InputError(
                    f"{path}: row {number}: `{missing[0]}` is missing, expected a scored utterance"
                )
            _check_finite(row, f"{path}: row {number}")
        if len(set(ids)) < len(ids):
            raise InputError(f"{path}: an id occurs twice, expected one row an utterance")
        return rows

    def train_log(self) -> pd.DataFrame:
        """train_log.jsonl, a row a line; columns as the training wrote them, `step` always."""
        path = self.file("train_log.jsonl")
        rows = read_rows(path)
        for number, row in enumerate(rows, start=1):
            if "step" not in row:
                raise InputError(
                    f"{path}: row {number}: `step` is missing, expected a line of a training log"
                )
            _check_finite(row, f"{path}: row {number}")
        if not rows:
            raise InputError(f"{path}: empty, expected a training log")
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper. columns: {column: unit}; judges: {column: model}; rows name sources."""

    name: str
    title: str
    protocol: str
    test_set: str
    judges: dict[str, str]
    columns: dict[str, str]
    rows: list[dict[str, Any]]

    def frame(self) -> pd.DataFrame:
        """The rows as a table, numbers as floats, no number as NaN."""
        frame = pd.DataFrame(self.rows)
        numbers = [column for column in self.columns if column != "codebook_size"]
        return frame.astype({column: float for column in numbers})


def read_result(path: str | Path) -> Result:
    """One result.json; InputError if it is damaged or in another run's folder."""
    path = Path(path)
    value = read_object(path, finite=True)
    missing = [key for key in KEYS if key not in value]
    if missing:
        raise InputError(f"{path}: key `{missing[0]}` is missing, expected {', '.join(KEYS)}")
    if value["schema"] != 1:
        raise InputError(f"{path}: schema is {value['schema']!r}, expected 1")
    for key in ("params", "metrics", "artifacts", "provenance"):
        if not isinstance(value[key], dict):
            raise InputError(f"{path}: `{key}` is {value[key]!r}, expected an object")
    for name, number in value["metrics"].items():
        if not fits(number, float):
            raise InputError(f"{path}: metric `{name}` is {number!r}, expected a number")
    for name, item in value["artifacts"].items():
        if not isinstance(item, dict) or not {"path", "sha256"} <= item.keys():
            raise InputError(f"{path}: artifact `{name}` is {item!r}, expected path and sha256")
    place = (value["experiment"], value["run"])
    if path.parent.resolve().parts[-2:] != place:
        raise InputError(
            f"{path}: is the result of {'/'.join(map(str, place))}, expected that folder"
        )
    return Result(path.parent, **{key: value[key] for key in KEYS if key != "schema"})


def read_results(results_dir: str | Path = "results", experiment: str = "*") -> list[Result]:
    """All finished runs below `results_dir`, or of one experiment, by experiment and run."""
    return [
        read_result(path) for path in sorted(Path(results_dir).glob(f"{experiment}/*/result.json"))
    ]


def runs_table(results: list[Result]) -> pd.DataFrame:
    """One row a run: experiment, run, notebook, seconds, git_sha, cpu and gpu."""
    columns = ("seconds", "git_sha", "cpu", "gpu")
    rows = [
        {"experiment": item.experiment, "run": item.run, "notebook": item.notebook}
        | {name: item.provenance.get(name) for name in columns}
        for item in results
    ]
    return pd.DataFrame(rows, columns=["experiment", "run", "notebook", *columns])


def find_run(results_dir: str | Path, place: str) -> Result | None:
    """The finished run `<experiment>/<run id>`, or the only one of that label (the id without its
    hash); None if none.

    Raises InputError when several finished runs have the label.
    """
    experiment, _, label = place.partition("/")
    folders = [path.parent for path in Path(results_dir, experiment).glob("*/result.json")]
    found = sorted(
        folder for folder in folders if label in (folder.name, folder.name.rpartition("-")[0])
    )
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise InputError(
            f"{results_dir}/{place}: several finished runs ({names}), expected one, or a full"
            " run id"
        )
    return read_result(found[0] / "result.json") if found else None


def published_tables(results_dir: str | Path = "results") -> dict[str, PublishedTable]:
    """The tables of published/paper_tables.json; InputError names the malformed table and row."""
    path = Path(results_dir, "published", "paper_tables.json")
    tables = {}
    for name, table in read_object(path, finite=True).get("tables", {}).items():
        where = f"{path}: table `{name}`"
        for key, kind in (
            ("title", str),
            ("protocol", str),
            ("test_set", str),
            ("judges", dict),
            ("columns", dict),
        ):
            if not isinstance(table.get(key), kind):
                raise InputError(
                    f"{where}: `{key}` is {table.get(key)!r}, expected a {kind.__name__}"
                )
        seen = set()
        for row in table["rows"]:
            if not row.get("system") or not row.get("source"):
                raise InputError(f"{where}: row {row}, expected a system and a source")
            _check_published(row, table["columns"], where)
            identity = tuple(row.get(key) for key in ("system", "model", "search", *DESCRIPTIVE))
            if identity in seen:
                raise InputError(f"{where}: row {row}, expected no system twice")
            seen.add(identity)
        tables[name] = PublishedTable(
            name, **{key: table[key] for key in PublishedTable.__dataclass_fields__ if key in table}
        )
    return tables


def _check_published(row: dict, columns: dict, where: str) -> None:
    """Columns are finite numbers, names such as 32768/8192, or null; no other keys."""
    if unknown := set(row) - {*columns, "system", "model", "search", "source", "note"}:
        raise InputError(f"{where}: row {row}: key `{min(unknown)}` is no column of the table")
    for column in columns:
        if column not in row:
            raise InputError(
                f"{where}: row {row}: column `{column}` is missing, expected a number or null"
            )
        value = row[column]
        if isinstance(value, bool) or (
            not isinstance(value, int | float | None) and column != "codebook_size"
        ):
            raise InputError(
                f"{where}: row {row}: column `{column}` is {value!r}, expected a number or null"
            )


def _check_finite(row: dict, where: str) -> None:
    for key, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{where}: `{key}` is {value}, expected a finite number")


def read_scored(results_dir: str | Path, place: str) -> list[Result]:
    """The finished runs of 40_evaluate at `place`: all of an experiment, or the one of
    experiment/run; InputError if there is none.
    """
    if "/" not in place:
        return finished_runs(results_dir, place)
    scored = find_run(results_dir, place)
    if scored is None:
        raise InputError(f"{results_dir}/{place}: no finished run, expected scores of speech")
    return [scored]


def finished_runs(results_dir: str | Path, experiment: str) -> list[Result]:
    """All finished runs of an experiment; InputError if there is none."""
    runs = read_results(results_dir, experiment)
    if not runs:
        raise InputError(f"{results_dir}/{experiment}: no finished run, expected some")
    return runs


def models_of(trainings: Iterable[Result]) -> dict[str, Result]:
    """{folder of the model, and where it was published: the run of 20_train that made it}; of
    several that were published to one folder, the last.
    """
    found = {}
    for run in trainings:
        found[f"artifacts/{run.experiment}/{run.run}/model"] = run
        found |= {place: run for place in [run.params.get("publish")] if place}
    return found


def system_rows(scored: Result) -> dict[str, list[dict]]:
    """{system: its scored rows} of a run of 40_evaluate, originals and codec included if scored."""
    params = scored.params
    names = list(params["systems"])
    names = (["codec"] if params["resynthesis_codec"] else []) + names
    names = (["originals"] if params["score_originals"] else []) + names
    return {
        name: scored.rows("utterances" if name == params["main_system"] else name) for name in names
    }


def speech_folders(runs: Iterable[Result]) -> dict[str, Result]:
    """{folder of speech: the run of 30_synthesize that made it}; runs of others are passed over."""
    return {run.params["speech_dir"]: run for run in runs if "speech_dir" in run.params}


def model_of(scored: Result, system: str, speech: Mapping[str, Result]) -> str:
    """The checkpoint that spoke a system; InputError if no run of `speech` made its folder."""
    folder = Path(scored.params["systems"][system]).parent.as_posix()
    if folder not in speech:
        made = next(iter(speech.values())).experiment
        raise InputError(
            f"{scored.folder}: system {system!r} lies in {folder}, which no run of {made} made"
        )
    return speech[folder].params["model"]


def record(
    run_dir: str | Path,
    metrics: Mapping[str, Any],
    artifacts: Mapping[str, str | Path] | None = None,
    *,
    tables: Mapping[str, Any] | None = None,
    figures: Mapping[str, Any] | None = None,
    figures_dir: str | Path | None = None,
) -> Path:
    """Write what a notebook found to `run_dir`, its last act; returns the path of metrics.json.

    metrics: name -> finite number; a mapping of numbers is flattened, its name in front.
    artifacts: name -> file or folder inside the repository, kept with its sha256.
    tables: name -> DataFrame, list of rows or JSON-lines file, saved as NAME.jsonl; a mapping as
        NAME.json.
    figures: name -> figure, saved as NAME.png and NAME.svg in `figures_dir` (default: `run_dir`).
    Raises InputError for anything else, before metrics.json is written.
    """
    run_dir, root = Path(run_dir), repository_root()
    values = _numbers(run_dir, metrics)
    kept = {name: _artifact(run_dir, root, name, path) for name, path in (artifacts or {}).items()}
    run_dir.mkdir(parents=True, exist_ok=True)
    for name, table in (tables or {}).items():
        kept[name] = _artifact(run_dir, root, name, _save_table(run_dir, name, table))
    folder = Path(figures_dir or run_dir)
    for name, figure in (figures or {}).items():
        folder.mkdir(parents=True, exist_ok=True)
        for kind, stamp in (("png", "Software"), ("svg", "Date")):
            path, drawn = folder / f"{name}.{kind}", io.BytesIO()
            # The same figure gives the same file.
            figure.savefig(drawn, format=kind, metadata={stamp: None})
            publish(path, drawn.getvalue())
            kept[f"{name}_{kind}"] = _artifact(run_dir, root, name, path)
    return write_json(run_dir / "metrics.json", {"metrics": values, "artifacts": kept})


def _numbers(run_dir: Path, metrics: Mapping[str, Any]) -> dict[str, int | float]:
    values: dict[str, int | float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat = {f"{name}_{key}": inner for key, inner in value.items()}
            values |= _numbers(run_dir, flat)
            continue
        number = (
            value.item()
            if hasattr(value, "item") and getattr(value, "size", 1) in (1, ())
            else value
        )
        if (
            not isinstance(name, str)
            or isinstance(number, bool)
            or not isinstance(number, numbers.Real)
        ):
            raise InputError(f"{run_dir}: metric {name!r} is {value!r}, expected a number")
        if not math.isfinite(number):
            raise InputError(f"{run_dir}: metric `{name}` is {value}, expected a finite number")
        values[name] = int(number) if isinstance(number, numbers.Integral) else float(number)
    return values


def _artifact(run_dir: Path, root: Path, name: str, path: str | Path) -> dict[str, str]:
    full = (root / path).resolve()
    if not full.exists():
        raise InputError(f"{run_dir}: artifact `{name}`: {path} does not exist")
    if not full.is_relative_to(root):
        raise InputError(f"{run_dir}: artifact `{name}`: {path} lies outside the repository")
    return {"path": full.relative_to(root).as_posix(), "sha256": sha256(full)}


def _save_table(run_dir: Path, name: str, table: Any) -> Path:
    if isinstance(table, Mapping):
        return write_json(run_dir / f"{name}.json", table)
    path = run_dir / f"{name}.jsonl"
    if isinstance(table, str | Path):
        publish(path, Path(table).read_bytes())
        return path
    rows = table.to_dict("records") if isinstance(table, pd.DataFrame) else table
    return write_rows(path, rows)
