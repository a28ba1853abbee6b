"""Systems that a run of 40_evaluate scored, joined to what spoke them through the recorded folders, never by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from llasa_core.errors import InputError
from llasa_core.results import Result, find_run, read_results


def read_scored(results_dir: str | Path, place: str) -> Result:
    """The finished run of 40_evaluate at `place` (experiment/run); InputError if there is none."""
    scored = find_run(results_dir, place)
    if scored is None:
        raise InputError(f"{results_dir}/{place}: no finished run, expected scores of speech")
    return scored


def finished_runs(results_dir: str | Path, experiment: str) -> list[Result]:
    """All finished runs of an experiment; InputError if there is none."""
    runs = read_results(results_dir, experiment)
    if not runs:
        raise InputError(f"{results_dir}/{experiment}: no finished run, expected some")
    return runs


def models_of(trainings: Iterable[Result]) -> dict[str, Result]:
    """{folder of the model: the run of 20_train that made it}."""
    return {f"artifacts/{run.experiment}/{run.run}/model": run for run in trainings}


def system_rows(scored: Result) -> dict[str, list[dict]]:
    """{system: its scored rows} of a run of 40_evaluate, originals and codec included where they were scored."""
    params = scored.params
    names = list(params["systems"])
    names = (["codec"] if params["resynthesis_codec"] else []) + names
    names = (["originals"] if params["score_originals"] else []) + names
    return {name: scored.rows("utterances" if name == params["main_system"] else name) for name in names}


def speech_folders(results_dir: str | Path, spoken: str) -> dict[str, Result]:
    """{folder of speech: the run of 30_synthesize that made it} of an experiment."""
    return {run.params["speech_dir"]: run for run in finished_runs(results_dir, spoken)}


def model_of(scored: Result, system: str, speech: Mapping[str, Result]) -> str:
    """The checkpoint that spoke a system; InputError if no run of `speech` (`speech_folders`) made its folder."""
    folder = Path(scored.params["systems"][system]).parent.as_posix()
    if folder not in speech:
        made = next(iter(speech.values())).experiment
        raise InputError(f"{scored.folder}: system {system!r} lies in {folder}, which no run of {made} made")
    return speech[folder].params["model"]
