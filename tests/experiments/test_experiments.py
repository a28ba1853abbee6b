import contextlib
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from helpers import wait_for
from matplotlib.figure import Figure
from small_study import FINISH, PARAMETERS, WORK, write_notebook

from llasa_core import cli
from llasa_core.errors import InputError
from llasa_core.experiments import config
from llasa_core.experiments.config import (
    at_repository_root,
    load_experiment,
    notebook_parameters,
    repository_root,
)
from llasa_core.experiments.notebook import execute, limited_notebook
from llasa_core.experiments.outputs import KEY, refresh, sources_fingerprint
from llasa_core.experiments.progress import RunTable, plan
from llasa_core.experiments.results import record
from llasa_core.experiments.runner import RunState, follow, run_arguments, run_experiment
from llasa_core.experiments.small import find_or_make
from llasa_core.files import read_rows, sha256


@pytest.fixture
def study(tmp_path):
    """Write experiments/study.yaml in a small repository; the text replaces everything after name
    and notebook.
    """
    (tmp_path / "pyproject.toml").touch()
    write_notebook(tmp_path / "notebooks" / "study.ipynb", PARAMETERS, WORK, FINISH)
    (tmp_path / "experiments").mkdir()

    def write(text="", name="study", notebook="notebooks/study.ipynb"):
        path = tmp_path / "experiments" / "study.yaml"
        path.write_text(f"name: {name}\nnotebook: {notebook}\n{text}")
        return path

    return write


def test_grid_is_the_product_and_ids_carry_the_varied_values(study):
    experiment = load_experiment(
        study("base: {mode: x}\ngrid: {size: [tiny, models/mini], seed: [0, 1]}\n")
    )
    names = [run.id.rsplit("-", 1)[0] for run in experiment.runs]
    assert names == ["tiny-seed0", "tiny-seed1", "mini-seed0", "mini-seed1"]
    assert len({run.id.rsplit("-", 1)[1] for run in experiment.runs}) == 4
    assert experiment.runs[2].params == {
        **{
            "size": "models/mini",
            "seed": 0,
            "peak_lr": 1e-3,
            "mode": "x",
            "layers": [1, 2],
            "extra": None,
        }
    }
    assert experiment.runs[0].run_dir == f"results/study/{experiment.runs[0].id}"
    assert experiment.runs[0].artifacts_dir == f"artifacts/study/{experiment.runs[0].id}"


def test_hash_covers_defaults_and_notebook_but_not_the_spelling_of_a_number(study, tmp_path):
    first = load_experiment(study("base: {peak_lr: 1}\n")).runs[0].id
    assert load_experiment(study("base: {peak_lr: 1.0}\n")).runs[0].id == first
    assert load_experiment(study("base: {peak_lr: 2.0}\n")).runs[0].id != first
    write_notebook(
        tmp_path / "notebooks" / "study.ipynb", PARAMETERS.replace('"tiny"', '"mini"'), WORK, FINISH
    )
    assert load_experiment(study("base: {peak_lr: 1}\n")).runs[0].id != first
    write_notebook(tmp_path / "notebooks" / "other.ipynb", PARAMETERS, WORK, FINISH)
    assert (
        load_experiment(study("base: {peak_lr: 1}\n", notebook="notebooks/other.ipynb")).runs[0].id
        != first
    )


def test_parameter_that_came_later_leaves_the_runs_before_it_their_ids(study, tmp_path):
    before = load_experiment(study()).runs[0].id
    path = tmp_path / "notebooks" / "study.ipynb"
    write_notebook(path, f"{PARAMETERS}\noptim = 'old'", WORK, FINISH)
    notebook = json.loads(path.read_text())
    notebook["metadata"]["added_parameters"] = {"optim": "old"}
    path.write_text(json.dumps(notebook))
    assert load_experiment(study()).runs[0].id == before
    assert load_experiment(study()).runs[0].params["optim"] == "old"
    assert load_experiment(study("base: {optim: new}\n")).runs[0].id != before


def test_named_runs_multiply_with_the_grid(study):
    experiment = load_experiment(
        study("runs: {originals: {mode: a}, spoken: {mode: b}}\ngrid: {seed: [0, 1]}\n")
    )
    names = [run.id.rsplit("-", 1)[0] for run in experiment.runs]
    assert names == ["originals-seed0", "originals-seed1", "spoken-seed0", "spoken-seed1"]
    assert [run.params["mode"] for run in experiment.runs] == ["a", "a", "b", "b"]


def test_smoke_values_win_equal_runs_are_one_and_nothing_goes_to_results(study):
    path = study(
        "base: {seed: 5}\ngrid: {size: [tiny, mini], mode: [a, b]}\nsmoke: {seed: 1, size: tiny}\n"
    )
    experiment = load_experiment(path, smoke=True)
    assert [
        (run.params["size"], run.params["mode"], run.params["seed"]) for run in experiment.runs
    ] == [("tiny", "a", 1), ("tiny", "b", 1)]
    assert all(run.run_dir.startswith("artifacts/smoke/study/") for run in experiment.runs)
    assert all(run.artifacts_dir.startswith("artifacts/smoke/study/") for run in experiment.runs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: {sise: tiny}\n", "base: unknown parameter `sise`"),
        ("grid: {sise: [tiny]}\n", "grid: unknown parameter `sise`"),
        ("smoke: {sise: tiny}\n", "smoke: unknown parameter `sise`"),
        ("base: {peak_lr: 3e-4}\n", "write the number as 3.0e-4"),
        ("base: {peak_lr: 1e3}\n", "write the number as 1.0e+3"),
        ("base: {extra: 3e-4}\n", "write the number as 3.0e-4"),
        ("base: {peak_lr: .nan}\n", "expected a finite number"),
        ("base: {seed: 1.5}\n", "`seed` is 1.5, expected int"),
        ("base: {seed: true}\n", "`seed` is True, expected int"),
        ("base: {size: 3}\n", "`size` is 3, expected str"),
        ("base: {size: 2026-11-23}\n", "expected a number, text, list"),
        ("base: {layers: [1, two]}\n", "`layers`[1] is 'two', expected int"),
        ("grid: {seed: 3}\n", "expected a list of values"),
        ("grid: {seed: []}\n", "expected a list of values"),
        ("grid: {seed: [0, x]}\n", "grid: `seed` is 'x', expected int"),
        ("base: [1]\n", "expected a mapping of parameters"),
        ("base: {run_dir: here}\n", "`run_dir` is set by the runner"),
        (f"grid: {{seed: {[0] * 3000}, extra: {[1] * 3000}}}\n", "9,000,000 runs"),
        ("bass: {seed: 1}\n", "unknown key `bass`"),
        ("base: {seed: 1}\nbase: {seed: 2}\n", "line 4: `base` is given twice"),
        ("base: {seed: [\n", "not YAML"),
        ("base: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_bad_experiment_file_is_refused_with_file_and_key(study, text, message):
    path = study(text)
    with pytest.raises(InputError) as caught:
        load_experiment(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_name_must_be_the_files(study):
    with pytest.raises(InputError, match="expected the file's name 'study'"):
        load_experiment(study(name="other"))


@pytest.mark.parametrize(
    ("cells", "tags", "message"),
    [
        (("a = 1", "b = 2"), (), "0 cells are tagged"),
        (("import os",), ("parameters",), "line 1: expected `name = literal`"),
        (("a = 1\nb = a + 1",), ("parameters",), "line 2: `b` is not a literal"),
        (("a = b = 1",), ("parameters",), "expected `name = literal`"),
        (("a = (",), ("parameters",), "parameters cell, line 1"),
        (("a = b'bytes'",), ("parameters",), "`a` is b'bytes'"),
        (("a = {1, 2}",), ("parameters",), "`a` is {1, 2}"),
        (("a = [1j]",), ("parameters",), "`a` is 1j"),
        (("a = 1e999",), ("parameters",), "`a` is inf"),
        (("a = '\\0'",), ("parameters",), "without NUL"),
        (("a = '\0'",), ("parameters",), "parameters cell"),
        (("a = " + "[" * 150 + "]" * 150,), ("parameters",), "lists or mappings in each other"),
        (("a = " + "-" * 5000 + "1",), ("parameters",), "parameters cell"),
        (("a = " + "9" * 5000,), ("parameters",), "parameters cell"),
    ],
)
def test_bad_parameters_cell_is_refused(tmp_path, cells, tags, message):
    write_notebook(tmp_path / "bad.ipynb", *cells, tags=tags)
    with pytest.raises(InputError) as caught:
        notebook_parameters(tmp_path / "bad.ipynb")
    assert "bad.ipynb" in str(caught.value)
    assert message in str(caught.value)


def test_missing_notebook_and_missing_run_dir_are_refused(study, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.ipynb: not found"):
        load_experiment(study(notebook="notebooks/nowhere.ipynb"))
    write_notebook(tmp_path / "notebooks" / "study.ipynb", "seed = 0")
    with pytest.raises(InputError, match="`run_dir` is missing"):
        load_experiment(study())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study with one good and three bad runs, executed once with two jobs."""
    root = tmp_path_factory.mktemp("repository")
    (root / "pyproject.toml").touch()
    write_notebook(root / "notebooks" / "study.ipynb", PARAMETERS, WORK, FINISH)
    (root / "experiments").mkdir()
    path = root / "experiments" / "study.yaml"
    path.write_text(
        "name: study\nnotebook: notebooks/study.ipynb\ngrid: {mode: [good, raise, exit,"
        " forgetful]}\n"
    )
    experiment = load_experiment(path)
    lines = io.StringIO()
    states = run_experiment(experiment, jobs=2, show=RunTable(experiment, lines))
    return experiment, {state.run.params["mode"]: state for state in states}, lines.getvalue()


@pytest.mark.notebook
def test_good_run_leaves_result_and_executed_copy(finished):
    experiment, states, _ = finished
    run = states["good"].run
    folder = experiment.root / run.run_dir
    assert states["good"].state == "done"
    assert sorted(file.name for file in folder.iterdir()) == ["result.json", "run.ipynb"]
    result = json.loads((folder / "result.json").read_text())
    assert list(result) == sorted(result)
    assert result["params"] == run.params
    assert (result["schema"], result["experiment"], result["run"]) == (1, "study", run.id)
    assert result["metrics"] == {"loss": 1.5, "steps": 0}
    model = experiment.root / run.artifacts_dir / "model.bin"
    assert result["artifacts"]["model"] == {
        "path": f"{run.artifacts_dir}/model.bin",
        "sha256": sha256(model),
    }
    assert {"git_sha", "git_dirty", "python", "packages", "cpu", "gpu", "seconds"} == set(
        result["provenance"]
    )
    executed = (folder / "run.ipynb").read_text()
    assert str(experiment.root) not in executed and str(Path.home()) not in executed
    assert "injected-parameters" in executed


@pytest.mark.notebook
def test_kernel_is_this_interpreter_with_its_share_of_the_threads(finished):
    experiment, states, _ = finished
    log = (experiment.root / f"{states['good'].run.work}.log").read_text()
    assert f"threads 1 {sys.executable}" in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("raise", "cell 2: ValueError: no such voice"),
        ("exit", "cell 2: SystemExit: 0"),
        ("forgetful", "without calling experiments.record"),
    ],
)
def test_run_without_a_record_has_failed_with_one_line_and_its_log(finished, mode, reason):
    experiment, states, table = finished
    state = states[mode]
    assert state.state == "failed"
    assert reason in state.line and f"{state.run.work}.log" in state.line and "\n" not in state.line
    assert not (experiment.root / state.run.run_dir / "result.json").exists()
    assert f"failed   {state.run.id}" in table


@pytest.mark.notebook
def test_finished_run_is_skipped_and_shown_as_done(finished):
    experiment, states, _ = finished
    run = states["good"].run
    before = (experiment.root / run.run_dir / "result.json").stat().st_mtime_ns
    (again,) = run_experiment(experiment, only="good")
    assert again.state == "skipped"
    assert (experiment.root / run.run_dir / "result.json").stat().st_mtime_ns == before
    table = plan(experiment).splitlines()
    assert table[1].startswith(f"done     {run.id}") and table[2].startswith("to do")
    with pytest.raises(InputError, match="no run id contains 'nothing'"):
        run_experiment(experiment, only="nothing")


@pytest.mark.notebook
def test_rerun_that_changes_nothing_leaves_the_same_files_and_another_outcome_its_own(
    study, tmp_path
):
    experiment = load_experiment(study("grid: {mode: [good]}\n"))
    folder = tmp_path / experiment.runs[0].run_dir

    def files():
        run_experiment(experiment, force=True)
        return [(folder / name).read_bytes() for name in ("result.json", "run.ipynb")]

    first = files()
    assert files() == first
    result = json.loads(first[0]) | {"metrics": {"loss": 9.0}, "provenance": {"cpu": "another"}}
    (folder / "result.json").write_text(json.dumps(result))
    again = json.loads(files()[0])
    assert again["metrics"]["loss"] == 1.5 and again["provenance"] != {"cpu": "another"}


@pytest.mark.notebook
def test_rerun_that_fails_keeps_the_earlier_result_unless_it_wrote_over_its_rows(study, tmp_path):
    experiment = load_experiment(study("grid: {mode: [raise, half]}\n"))
    results = [tmp_path / run.run_dir / "result.json" for run in experiment.runs]
    for path in results:
        path.parent.mkdir(parents=True)
        path.write_text('{"metrics": {"loss": 1.5}, "provenance": {"cpu": "another"}}')
    states = run_experiment(experiment, force=True)
    assert [state.state for state in states] == ["failed", "failed"]
    assert [path.is_file() for path in results] == [True, False]
    assert json.loads(results[0].read_text())["metrics"] == {"loss": 1.5}


@pytest.mark.notebook
def test_killed_study_ends_its_runs_and_continues_on_the_next_call(study, tmp_path):
    path = study("grid: {mode: [wait]}\n")
    (run,) = load_experiment(path).runs
    command = [sys.executable, "-m", "llasa_core.cli", "run", str(path)]
    pid_file = tmp_path / run.artifacts_dir / "pid"
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    kernel = int(wait_for(lambda: pid_file.exists() and pid_file.read_text()))
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_for(lambda: not alive(kernel))
    assert not (tmp_path / run.run_dir / "result.json").exists()

    (tmp_path / "go").touch()
    assert (
        subprocess.run(command, stderr=subprocess.DEVNULL, check=False, timeout=300).returncode == 0
    )
    assert (
        json.loads((tmp_path / run.run_dir / "result.json").read_text())["metrics"]["loss"] == 1.5
    )


@pytest.mark.notebook
def test_full_disk_ends_the_study_with_one_line_and_it_resumes_where_there_is_room(
    small_disk, capsys
):
    root = small_disk("100k")
    (root / "pyproject.toml").touch()
    fill = "from pathlib import Path\nPath(artifacts_dir, 'full').write_bytes(bytes(150_000))"
    finish = "from llasa_core.experiments.results import record\n" + FINISH
    write_notebook(root / "study.ipynb", PARAMETERS, fill, finish)
    path = root / "study.yaml"
    path.write_text("name: study\nnotebook: study.ipynb\ngrid: {seed: [0, 1]}\n")
    first, second = load_experiment(path).runs
    assert cli.main(["run", str(path)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llasa: ")]
    assert f"{first.run_dir}: no space left on the disk" in line and "run again" in line
    assert not list(root.glob("results/*/*/*")) and not (root / f"{second.work}.log").exists()
    small_disk("10m")
    assert cli.main(["run", str(path)]) == 0
    assert len(list(root.glob("results/*/*/result.json"))) == 2


def test_run_of_another_process_is_waited_for_and_left_as_it_is(study, tmp_path, monkeypatch):
    experiment = load_experiment(study())
    (run,) = experiment.runs
    monkeypatch.chdir(tmp_path)
    result = Path(run.run_dir, "result.json")
    for folder in (result.parent, Path(run.work).parent):
        folder.mkdir(parents=True)
    order = json.loads(run_arguments(experiment, run, again=False)[-1])
    with open(f"{run.work}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=execute, args=(order,))
        second.start()
        second.join(0.5)
        assert second.is_alive()
        result.write_text("{}")
    second.join(60)
    assert not second.is_alive() and result.read_text() == "{}"


def alive(pid):
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_record_writes_plain_numbers_and_hashes_files_and_folders(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("1")
    monkeypatch.chdir(tmp_path)
    path = record("results/x/y", {"wer": np.float32(0.5), "n": np.int64(3)}, {"model": "model"})
    written = json.loads(path.read_text())
    assert written["metrics"] == {"wer": 0.5, "n": 3}
    assert written["artifacts"]["model"]["path"] == "model"
    before = written["artifacts"]["model"]["sha256"]
    (tmp_path / "model" / "a").write_text("2")
    assert sha256(tmp_path / "model") != before
    assert os.listdir("results/x/y") == ["metrics.json"]


@pytest.mark.parametrize(
    ("metrics", "artifacts", "message"),
    [
        ({"wer": float("nan")}, {}, "metric `wer` is nan"),
        ({"wer": np.inf}, {}, "expected a finite number"),
        ({"wer": "0.1"}, {}, "expected a number"),
        ({"wer": {"low": "1"}}, {}, "metric .wer_low. is .1., expected a number"),
        ({"done": True}, {}, "expected a number"),
        ({}, {"model": "nowhere.bin"}, "nowhere.bin does not exist"),
        ({}, {"model": "/"}, "outside the repository"),
    ],
)
def test_record_refuses_what_is_not_a_result_and_writes_nothing(
    tmp_path, monkeypatch, metrics, artifacts, message
):
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        record("run", metrics, artifacts)
    assert not Path("run").exists()


def test_executed_copy_keeps_the_last_state_of_a_bar_and_drops_the_largest_outputs(tmp_path):
    bar = nbformat.v4.new_output("stream", name="stderr", text="1%\r50%\r100%\ndone\n")
    picture = nbformat.v4.new_output("display_data", {"image/png": "x" * 50_000})
    small = nbformat.v4.new_output("stream", text=f"saved {tmp_path}/artifacts/a.wav\n")
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "1", outputs=[bar, picture, small], metadata={"papermill": {}}
            )
        ]
    )
    text = limited_notebook(notebook, tmp_path, limit=5_000)
    outputs = nbformat.reads(text, as_version=4).cells[0].outputs
    assert len(text) <= 5_000
    assert outputs[0].text == "100%\ndone\n"
    assert outputs[1].text.startswith("[output of 50")
    assert outputs[2].text == "saved artifacts/a.wav\n"


@pytest.mark.parametrize("start", [".", "notebooks", "/"])
def test_a_notebook_reaches_the_root_from_wherever_jupyter_starts(start, monkeypatch):
    root = repository_root(Path(__file__).parent)
    monkeypatch.chdir(root / start)
    at_repository_root()
    assert Path.cwd() == root


def test_a_notebook_away_from_any_clone_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "__file__", str(tmp_path / "site-packages/llasa_core/config.py"))
    with pytest.raises(InputError, match="not inside a clone of the repository"):
        at_repository_root()


def test_repository_root_is_the_nearest_folder_with_a_project_file(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert repository_root(tmp_path / "a" / "b") == tmp_path
    monkeypatch.chdir(tmp_path / "a")
    assert repository_root() == tmp_path
    with pytest.raises(InputError, match=r"expected a pyproject\.toml"):
        repository_root("/")


def test_record_saves_and_names_tables_and_figures(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    Path("log.jsonl").write_text('{"step": 1}\n')
    figure = Figure()
    path = record(
        "run",
        {"codec": {"wer": 0.5, "n": 3}, "seconds": 1.5},
        tables={"rows": [{"id": "a"}], "frame": pd.DataFrame({"id": ["b"]}), "log": "log.jsonl"}
        | {"report": {"hours": 2.0}},
        figures={"wer": figure},
        figures_dir="figures",
    )
    found = json.loads(path.read_text())
    assert found["metrics"] == {"codec_wer": 0.5, "codec_n": 3, "seconds": 1.5}
    assert {name: item["path"] for name, item in found["artifacts"].items()} == {
        "rows": "run/rows.jsonl",
        "frame": "run/frame.jsonl",
        "log": "run/log.jsonl",
        "report": "run/report.json",
        "wer_png": "figures/wer.png",
        "wer_svg": "figures/wer.svg",
    }
    assert read_rows("run/frame.jsonl") == [{"id": "b"}]
    assert found["artifacts"]["log"]["sha256"] == sha256("log.jsonl")
    assert json.loads(Path("run/report.json").read_text()) == {"hours": 2.0}


def test_figure_on_a_full_disk_is_named_and_no_half_of_it_is_left(small_disk, monkeypatch):
    root = small_disk("4k")
    (root / "pyproject.toml").touch()
    monkeypatch.chdir(root)
    figure = Figure()
    figure.subplots().plot([1, 2])
    with pytest.raises(InputError, match=r"run/loss\.png: no space left on the disk"):
        record("run", {"loss": 1.0}, figures={"loss": figure})
    assert not list(Path("run").iterdir())


@pytest.mark.slow
def test_missing_input_names_the_command_that_makes_it(monkeypatch):
    monkeypatch.chdir(repository_root(Path(__file__).parent))
    with pytest.raises(InputError, match=r"prepare\.yaml --only kokoro$"):
        find_or_make("artifacts/kokoro-corpus/no_such.jsonl")
    command = r"first: llasa run experiments/human_finetune\.yaml --force$"
    with pytest.raises(InputError, match=command):
        find_or_make("artifacts/models/human/no_such")
    with pytest.raises(InputError, match=r"prepare\.yaml --only human --force$"):  # results in git
        find_or_make("artifacts/human/no_such.jsonl")
    with pytest.raises(InputError, match=r"no/such is missing$"):
        find_or_make("no/such")
    assert find_or_make("pyproject.toml") == "pyproject.toml"


@pytest.mark.slow
def test_small_input_is_made_by_the_notebook_that_writes_it(tmp_path, monkeypatch):
    parameters = 'corpus_dir = "artifacts/scratch/corpus"\nrun_dir = "artifacts/scratch/10"'
    work = "from pathlib import Path\nPath(corpus_dir).mkdir(parents=True)"
    work += "\nPath(corpus_dir, 'test.jsonl').touch()"
    write_notebook(tmp_path / "notebooks/10_prepare_data.ipynb", parameters, work)
    monkeypatch.chdir(tmp_path)
    assert find_or_make("artifacts/scratch/corpus/test.jsonl") == (
        "artifacts/scratch/corpus/test.jsonl"
    )
    assert Path("artifacts/scratch/corpus/test.jsonl").exists()


@pytest.mark.slow
def test_outputs_stored_in_a_notebook_hold_no_bar_no_warning_and_its_fingerprint(
    tmp_path, monkeypatch
):
    work = (
        "import os, sys, warnings\nfrom tqdm.auto import tqdm\nwarnings.warn('noise')\n"
        "for _ in tqdm(range(3)): pass\nprint('in', os.path.basename(os.getcwd()))"
    )
    path = tmp_path / "notebooks/a.ipynb"
    write_notebook(path, "run_dir = 'x'", work, "print(os.getcwd())")
    monkeypatch.chdir(tmp_path)
    for name in ("JUPYTER_PATH", "IPYTHONDIR", "LLASA_BATCH"):
        monkeypatch.setenv(name, "")
    refresh("notebooks/a.ipynb")
    notebook = nbformat.read(path, as_version=4)
    texts = [output.text for cell in notebook.cells for output in cell.get("outputs", ())]
    assert texts == ["in notebooks\n", "notebooks\n"]
    assert notebook.metadata[KEY] == sources_fingerprint(notebook)
    notebook.cells[-1].source += "  # later"
    assert notebook.metadata[KEY] != sources_fingerprint(notebook)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_table_on_a_terminal_is_redrawn_in_place_with_progress(study):
    experiment = load_experiment(study("grid: {seed: [0, 1]}\n"))
    screen = Terminal()
    table = RunTable(experiment, screen)
    first, second = states = [RunState(run) for run in experiment.runs]
    table(states)
    first.state, first.seconds, first.cell, first.line = "running", 65.0, "2/3", "loss 1.5"
    table(states)
    second_drawing = screen.getvalue().split("\x1b[3F")[1]  # up by the headline and two rows
    assert (
        f"running  {first.run.id}" in second_drawing
        and f"waiting  {second.run.id}" in second_drawing
    )
    assert (
        "1:05" in second_drawing and "cell 2/3" in second_drawing and "loss 1.5" in second_drawing
    )
    assert screen.getvalue().count("\x1b[3F") == 1


def test_log_becomes_cell_and_last_line():
    state = RunState(None)
    follow(state, io.BytesIO(b"\n[cell 3/9] 'train(...)'\n 10%|#   |\r 20%|##  |"))
    assert (state.cell, state.line) == ("3/9", "20%|##  |")
