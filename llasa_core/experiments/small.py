"""What a notebook reads when it is opened by hand, made by the notebook that makes it.

A corpus, codes or speech below artifacts/scratch are what the notebooks write as they stand; where
they are missing, those notebooks run first. What takes longer belongs to a study and is not made
here: the error names its command.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from llasa_core.errors import InputError
from llasa_core.experiments.config import INJECTED, load_experiment, notebook_parameters

WRITTEN = {  # notebook: the parameters that name what it writes
    "notebooks/10_prepare_data.ipynb": ("corpus_dir",),
    "notebooks/15_train_codec.ipynb": ("publish",),
    "notebooks/17_adapt_codec.ipynb": ("publish",),
    "notebooks/20_train.ipynb": ("codes_dir", "publish"),
    "notebooks/30_synthesize.ipynb": ("speech_dir",),
}


def find_or_make(path: str | Path) -> str:
    """`path` as it is, once it exists: what the notebooks write as they stand is made if missing.

    InputError, with the command to run first, for anything else that is missing.
    """
    path = Path(path)
    if not path.exists():
        for notebook, names in WRITTEN.items():
            defaults = notebook_parameters(notebook)
            if _is_in(path, defaults, (*names, *INJECTED)):
                _run(notebook, path)
                break
    if not path.exists():
        commands = " or ".join(dict.fromkeys(_commands(path)))
        raise InputError(f"{path} is missing" + (f"; run first: {commands}" if commands else ""))
    return path.as_posix()


def _is_in(path: Path, params: dict, names: tuple[str, ...]) -> bool:
    folders = [params[name] for name in names if params.get(name)]
    return any(path.is_relative_to(folder) for folder in folders)


def _run(notebook: str, path: Path) -> None:
    print(f"{path} is missing; {notebook} makes it, once", file=sys.stderr)
    copy = Path("artifacts/scratch", Path(notebook).name)
    copy.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "papermill", notebook, str(copy), "--no-progress-bar"]
    done = subprocess.run([*command, "-k", "python3"], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["?"])[-1]
        raise InputError(f"{path} is missing, and {notebook}, which makes it, fails: {reason}")
    copy.unlink()


def _commands(path: Path) -> Iterator[str]:
    """Commands of the runs that write `path`; with --force where results are in git, as in a fresh
    clone, but what the run made is not.
    """
    for file in sorted(Path("experiments").glob("*.yaml")):
        experiment = load_experiment(file)
        names = WRITTEN.get(experiment.notebook, ())
        for run in experiment.runs:
            if _is_in(
                path, run.params | {"artifacts_dir": run.artifacts_dir}, (*names, INJECTED[1])
            ):
                label = run.id.rpartition("-")[0]
                only = f" --only {label}" if len(experiment.runs) > 1 else ""
                again = " --force" if experiment.is_done(run) else ""
                yield f"llasa run {file.as_posix()}{only}{again}"
