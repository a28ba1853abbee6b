"""Every study runs from end to end with its smoke values, as `llasa run FILE --smoke` does.

In the order of the notebooks' numbers: a study may read what an earlier one left below
artifacts/smoke.
"""

import json
import shutil
from pathlib import Path

import pytest

from llasa_core.experiments.config import load_experiment, repository_root
from llasa_core.experiments.runner import run_experiment

ROOT = repository_root(Path(__file__).parent)
STUDIES = sorted(
    (ROOT / "experiments").glob("*.yaml"),
    key=lambda path: (load_experiment(path).notebook, path.stem),
)


@pytest.fixture(scope="module", autouse=True)
def no_leftovers():
    """What an earlier version of a study left below artifacts/smoke would be refused, or reused."""
    shutil.rmtree(ROOT / "artifacts" / "smoke", ignore_errors=True)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study_loads_with_its_real_values(path):
    experiment = load_experiment(path)
    assert len({run.id for run in experiment.runs}) == len(experiment.runs) >= 1


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study_runs_with_its_smoke_values(path):
    experiment = load_experiment(path, smoke=True)
    states = run_experiment(experiment)
    assert [state.line for state in states if state.state != "done"] == []
    for run in experiment.runs:
        result = json.loads((ROOT / run.run_dir / "result.json").read_text())
        assert result["metrics"]
        assert (ROOT / run.run_dir / "run.ipynb").stat().st_size <= 256_000


def test_every_notebook_belongs_to_a_study():
    executed = {load_experiment(path).notebook for path in STUDIES}
    notebooks = {path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks - executed == set()


@pytest.mark.notebook
def test_page_of_results_is_what_notebook_90_writes():
    written = ROOT / "artifacts/smoke/README.md"
    if not written.is_file():  # this test alone was asked for
        run_experiment(load_experiment(ROOT / "experiments/paper_figures.yaml", smoke=True))
    fix = "results/README.md is stale: run llasa run experiments/paper_figures.yaml --force"
    assert (ROOT / "results/README.md").read_text() == written.read_text(), fix
