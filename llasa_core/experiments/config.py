"""Experiment files: YAML in, a checked table of runs out.

A run is the `parameters` cell of a notebook with some values replaced. Each must exist there and
have the type of its default (an int serves for a float; YAML 1.1 reads 3e-4 as text, which is
refused with the spelling that works). Papermill only warns of both, so all is checked before the
first run starts.
"""

import ast
import hashlib
import itertools
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llasa_core.errors import InputError
from llasa_core.files import brief, check_plain, read_object, read_yaml


def notebook_parameters(path: str | Path) -> dict[str, Any]:
    """Names and literal defaults of the notebook's one `parameters` cell.

    Raises InputError for no or several such cells, and for a statement that is not `name =
    literal`.
    """
    try:
        cells = read_object(path, "a notebook")["cells"]
        tagged = [
            "".join(cell["source"])
            for cell in cells
            if cell["cell_type"] == "code"
            and "parameters" in cell.get("metadata", {}).get("tags", ())
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a notebook of format 4 ({error!r})") from error
    if len(tagged) != 1:
        raise InputError(
            f"{path}: {len(tagged)} cells are tagged `parameters`, expected exactly one"
        )
    try:
        body = ast.parse(tagged[0]).body
    except SyntaxError as error:
        raise InputError(f"{path}: parameters cell, line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # NUL; nested too deep for Python
        raise InputError(f"{path}: parameters cell: no Python ({brief(error)})") from error
    parameters: dict[str, Any] = {}
    for statement in body:
        where = f"{path}: parameters cell, line {statement.lineno}"
        targets = (
            statement.targets
            if isinstance(statement, ast.Assign)
            else [getattr(statement, "target", None)]
        )
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or [
            type(target) for target in targets
        ] != [ast.Name]:
            raise InputError(f"{where}: expected `name = literal`")
        try:
            value = ast.literal_eval(statement.value)
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            raise InputError(f"{where}: `{targets[0].id}` is not a literal") from error
        check_plain(value, f"{where}: `{targets[0].id}`")
        parameters[targets[0].id] = value
    return parameters


def checked_value(where: str, value: Any, default: Any) -> Any:
    """`value`, if it has the type of `default` (an int serves for a float); InputError
    otherwise.
    """
    expected = type(default)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}, expected a finite number")
    if (
        isinstance(value, str)
        and expected is not str
        and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    ):
        digits, exponent = re.split("[eE]", value)
        digits = digits if "." in digits else digits + ".0"
        exponent = exponent if exponent[0] in "+-" else "+" + exponent
        raise InputError(
            f"{where}: YAML 1.1 reads {value} as text, write the number as {digits}e{exponent}"
        )
    if expected is float and type(value) is int:
        return float(value)
    if default is None:
        return value
    if type(value) is not expected and not (expected is tuple and type(value) is list):
        raise InputError(
            f"{where} is {value!r}, expected {expected.__name__} like the notebook's {default!r}"
        )
    if isinstance(value, list):
        kinds = {type(item) for item in default}
        model = next(iter(default)) if len(kinds) == 1 else None
        return [checked_value(f"{where}[{index}]", item, model) for index, item in enumerate(value)]
    return value


INJECTED = ("run_dir", "artifacts_dir")  # parameters that the runner sets

MOST_RUNS = 10_000  # of one experiment

KEYS = {"name", "description", "notebook", "base", "grid", "runs", "smoke"}


@dataclass(frozen=True)
class Run:
    """One execution of a notebook. Paths are relative to the repository root."""

    id: str  # varied values + 8 hex digits of `parameter_hash`
    params: dict[str, Any]  # every parameter, defaults included
    run_dir: str  # small results
    artifacts_dir: str  # large results, git-ignored
    work: str  # stem of the log, the lock and the notebook in progress
    injected: tuple[str, ...]  # those of INJECTED that the notebook declares


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file."""

    name: str
    notebook: str  # relative to root
    root: Path
    smoke: bool
    runs: tuple[Run, ...]

    def is_done(self, run: Run) -> bool:
        """Whether the run's result.json exists."""
        return (self.root / run.run_dir / "result.json").is_file()

    def chosen(self, only: str = "") -> list[Run]:
        """The runs whose id contains `only`; InputError if there is none."""
        runs = [run for run in self.runs if only in run.id]
        if not runs:
            raise InputError(
                f"{self.name}: no run id contains {only!r}, there are {len(self.runs)} runs"
            )
        return runs


def repository_root(start: str | Path | None = None) -> Path:
    """The nearest folder at or above `start` (default: the working folder) that holds
    pyproject.toml.

    Without `start`, a working folder outside any repository falls back to the one this package lies
    in.
    """
    folder = Path(start or Path.cwd()).resolve()
    candidates = [folder, *folder.parents] + (
        [] if start else [Path(__file__).resolve().parents[1]]
    )
    for candidate in candidates:
        if (candidate / "pyproject.toml").is_file():
            return candidate
    raise InputError(
        f"{folder}: no repository here, expected a pyproject.toml in this folder or above it"
    )


def at_repository_root() -> None:
    """Change to the repository's root, where the paths in the parameters of a notebook start.

    JupyterLab and nbconvert start a notebook in its own folder, papermill where it was called. The
    root is found from the working folder, or else from this package. Raises InputError for a
    package that was installed away from its clone.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if (folder / "notebooks").is_dir() and (folder / "llasa_core" / "__init__.py").is_file():
            os.chdir(folder)
            return
    raise InputError(
        f"{here}: not inside a clone of the repository, expected the notebook below its root"
    )


def load_experiment(path: str | Path, smoke: bool = False) -> Experiment:
    """Read and check an experiment file and list its runs.

    Besides base, grid and smoke a file may hold `runs: {name: {parameter: value}}`, which
    multiplies with the grid. Values of `smoke` replace those of base, runs and grid; runs that
    become equal are one, written below artifacts/smoke. Raises InputError naming the file, the key
    and what was expected.
    """
    path = Path(path)
    settings = read_yaml(path)
    unknown = set(settings) - KEYS
    if unknown:
        raise InputError(
            f"{path}: unknown key `{min(map(str, unknown))}`, expected {', '.join(sorted(KEYS))}"
        )
    for key in ("name", "notebook"):
        if not isinstance(settings.get(key), str):
            raise InputError(f"{path}: `{key}` is {settings.get(key)!r}, expected text")
    if settings["name"] != path.stem:
        raise InputError(
            f"{path}: `name` is {settings['name']!r}, expected the file's name {path.stem!r}"
        )
    root = repository_root(path.resolve().parent)
    notebook = settings["notebook"]
    defaults = notebook_parameters(root / notebook)
    if "run_dir" not in defaults:
        raise InputError(
            f"{notebook}: parameter `run_dir` is missing, expected run_dir ="
            " 'artifacts/scratch/...'"
        )

    def section(key: str, values: Any) -> dict[str, Any]:
        if not isinstance(values, dict):
            raise InputError(f"{path}: `{key}` is {values!r}, expected a mapping of parameters")
        return values

    def checked(key: str, name: Any, value: Any) -> Any:
        if name in INJECTED:
            raise InputError(f"{path}: {key}: `{name}` is set by the runner")
        if name not in defaults:
            raise InputError(
                f"{path}: {key}: unknown parameter `{name}`, {notebook} has"
                f" {', '.join(sorted(defaults))}"
            )
        return checked_value(f"{path}: {key}: `{name}`", value, defaults[name])

    # A parameter that came later does not rename the runs that were before it, with this value
    before = read_object(root / notebook)["metadata"].get("added_parameters", {})

    base = {
        name: checked("base", name, value)
        for name, value in section("base", settings.get("base", {})).items()
    }
    small = {
        name: checked("smoke", name, value)
        for name, value in section("smoke", settings.get("smoke", {})).items()
    }
    grid = section("grid", settings.get("grid", {}))
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: grid: `{name}` is {values!r}, expected a list of values")
    grid = {
        name: [checked("grid", name, value) for value in values] for name, values in grid.items()
    }
    named = {
        str(label): {
            name: checked(f"runs: {label}", name, value)
            for name, value in section(label, values).items()
        }
        for label, values in section("runs", settings.get("runs", {})).items()
    } or {"": {}}

    number = math.prod(map(len, grid.values())) * len(named)
    if number > MOST_RUNS:
        raise InputError(f"{path}: `grid` makes {number:,} runs, expected {MOST_RUNS:,} at most")

    runs: dict[str, Run] = {}
    for (label, fixed), values in itertools.product(
        named.items(), itertools.product(*grid.values())
    ):
        varied = dict(zip(grid, values, strict=True))
        overrides = small if smoke else {}
        params = {name: value for name, value in defaults.items() if name not in INJECTED}
        params |= base | fixed | varied | overrides
        spoken = [label] if label else []
        spoken += [short_value(name, params[name]) for name in varied if name not in overrides]
        hashed = {n: value for n, value in params.items() if n not in before or value != before[n]}
        digest = parameter_hash(notebook, hashed)
        run_id = "-".join([slug("-".join(spoken))[:48].strip("-") or "run", digest])
        run_dir = (
            f"artifacts/smoke/{path.stem}/{run_id}" if smoke else f"results/{path.stem}/{run_id}"
        )
        runs[digest] = Run(
            id=run_id,
            params=params,
            run_dir=run_dir,
            artifacts_dir=f"{run_dir}/artifacts" if smoke else f"artifacts/{path.stem}/{run_id}",
            work=f"artifacts/runs/{'smoke-' if smoke else ''}{path.stem}/{run_id}",
            injected=tuple(name for name in INJECTED if name in defaults),
        )
    return Experiment(path.stem, notebook, root, smoke, tuple(runs.values()))


def parameter_hash(notebook: str, params: dict[str, Any]) -> str:
    """8 hex digits of sha256 over the canonical JSON of the notebook's path and the parameters.

    `load_experiment` leaves out one that the notebook got later, where it has the value that stands
    for the time before: `{name: value}`, the notebook's metadata `added_parameters`.
    """
    text = json.dumps(
        {"notebook": notebook, "params": params},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def short_value(name: str, value: Any) -> str:
    """A varied value in a run id: text alone, a path by its last part, anything else after its
    name.
    """
    return (
        slug(value.rstrip("/").rsplit("/", 1)[-1])
        if isinstance(value, str)
        else f"{name}{slug(str(value))}"
    )


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_.")
