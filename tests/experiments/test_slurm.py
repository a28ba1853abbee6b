"""Slurm jobs. Every test runs on a Slurm made of files (fake_slurm.py), and on a real one with
LLASA_TEST_SLURM=1:

. tests/experiments/slurm_single_node.sh start      (as root, after apt-get install slurm-wlm munge)
LLASA_TEST_SLURM=1 python -m pytest tests/experiments/test_slurm.py
bash tests/experiments/slurm_single_node.sh stop
"""

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from helpers import wait_for
from small_study import FINISH, PARAMETERS, WORK, write_notebook
from training_data import settings

from llasa_core import cli
from llasa_core.cli import slurm as slurm_commands
from llasa_core.data.dataset import read_codes
from llasa_core.errors import InputError
from llasa_core.experiments import runner, slurm, slurm_job
from llasa_core.experiments.config import load_experiment, repository_root
from llasa_core.experiments.runner import RunState
from llasa_core.experiments.slurm_settings import SlurmSettings
from llasa_core.training.train import train

ROOT = repository_root(Path(__file__).parent)
FAKE_SLURM = Path(__file__).with_name("fake_slurm.py")
FILES = sorted((ROOT / "experiments" / "slurm").glob("*.yaml"))
REAL = bool(os.environ.get("LLASA_TEST_SLURM")) and shutil.which("sinfo") is not None
real = pytest.param(
    "real", marks=pytest.mark.skipif(not REAL, reason="needs a Slurm and LLASA_TEST_SLURM=1")
)


@pytest.fixture(params=["fake", real])
def cluster(request, tmp_path, monkeypatch):
    """Slurm's programs on the PATH."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.3)
    if request.param == "fake":
        programs, jobs = tmp_path / "programs", tmp_path / "jobs"
        for folder in (programs, jobs):
            folder.mkdir()
        for name in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
            path = programs / name
            path.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_SLURM} {name} "$@"\n')
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_SLURM", str(jobs))
    return request.param


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_settings_file_loads(path):
    assert SlurmSettings.from_yaml(path).processes >= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus: 8", "unknown key `gpus`, expected account,"),
        ("nodes: two", "`nodes` is 'two', expected int"),
        ("nodes: 0", "`nodes` is 0, expected at least 1"),
        ("gpus_per_node: -1", "`gpus_per_node` is -1, expected at least 0"),
        ("minutes: 1", "`signal_seconds` is 90, expected less than the `minutes`"),
        ("requeue: 1", "`requeue` is 1, expected bool"),
        ("setup: [1]", "`setup` is [1], expected a list of shell lines"),
        ("sbatch: {--qos: high}", "`--qos`, expected an option's name without its dashes"),
        ("sbatch: {nodes: 2}", "`nodes` is set by the other keys"),
        ('sbatch: {qos: "a\\nb"}', "`qos` is 'a\\nb', expected text"),
        ('partition: "gpu\\nrm"', "expected one line"),
        ("- 1", "expected a mapping"),
    ],
)
def test_bad_settings_are_refused_with_file_and_key(tmp_path, text, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        SlurmSettings.from_yaml(path)
    assert (
        str(path) in str(caught.value)
        and message in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_clock_of_squeue_is_read():
    texts = ["0:07", "1:02:03", "2-03:04:05", "INVALID"]
    assert [slurm.clock_seconds(text) for text in texts] == [
        7,
        3723,
        2 * 86400 + 3 * 3600 + 4 * 60 + 5,
        0,
    ]


def test_study_on_slurm_gives_the_results_of_a_local_one_and_is_followed_again_after_a_stop(
    cluster, tmp_path
):
    (tmp_path / "pyproject.toml").touch()
    write_notebook(tmp_path / "notebooks" / "study.ipynb", PARAMETERS, WORK, FINISH)
    path = tmp_path / "experiments" / "study.yaml"
    path.parent.mkdir()
    path.write_text(
        "name: study\nnotebook: notebooks/study.ipynb\ngrid: {mode: [good, raise, wait]}\n"
    )
    experiment, settings = load_experiment(path), SlurmSettings(signal_seconds=10)
    submissions = []

    def stopped(submission):
        submissions.append(submission)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slurm.run_experiment(experiment, settings, force=True, submitted=stopped)
    for _ in range(
        2
    ):  # the jobs are there: a second command, and one that is stopped too, find them
        with pytest.raises(KeyboardInterrupt):
            slurm.run_experiment(experiment, settings, submitted=stopped)
    assert [submission.new for submission in submissions] == [3, 0, 0]
    assert len({tuple(submission.job_names) for submission in submissions}) == 1

    (waiting,) = [run for run in experiment.runs if run.params["mode"] == "wait"]
    kept, seen, requeued = tmp_path / waiting.artifacts_dir / "kept", set(), []

    def show(states):
        seen.update((state.run.params["mode"], state.state) for state in states)
        if kept.with_name("pid").exists() and not requeued:
            kept.touch()
            jobs = slurm.squeue(set(submissions[-1].job_names))
            requeued.append(jobs[submissions[-1].jobs[waiting.id]]["id"])
            subprocess.run(
                ["scancel", "--signal=USR2", requeued[0]], check=True
            )  # as before the time limit
            (tmp_path / "go").touch()

    states = slurm.run_experiment(
        experiment, settings, force=True, submitted=submissions.append, show=show, poll_seconds=0.3
    )
    assert submissions[-1].new == 0
    ended = {state.run.params["mode"]: state for state in states}
    assert [state.state for state in states] == ["done", "failed", "done"], [
        state.line for state in states
    ]
    assert (
        "status 1: cell 2: ValueError: no such voice" in ended["raise"].line
        and ".log" in ended["raise"].line
    )
    assert {("wait", "running"), ("wait", "done")} <= seen
    status = json.loads((tmp_path / f"{waiting.work}.status.json").read_text())
    assert (status["job"], status["restarts"]) == (requeued[0], 1)
    assert kept.exists()  # --force begins from nothing, but not again at a requeue

    on_slurm = json.loads((tmp_path / ended["good"].run.run_dir / "result.json").read_text())
    local = runner.run_experiment(experiment, only="good", force=True)
    assert [state.state for state in local] == ["done"]
    here = json.loads((tmp_path / ended["good"].run.run_dir / "result.json").read_text())
    for result in (on_slurm, here):
        result["provenance"].pop("seconds")
    assert on_slurm == here
    assert {state.state for state in slurm.run_experiment(experiment, settings, only="good")} == {
        "skipped"
    }


def curve(folder):
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def job_state(job_id):
    answer = subprocess.run(
        ["scontrol", "show", "job", job_id], capture_output=True, text=True, check=True
    ).stdout
    return re.search(r"JobState=(\w+)", answer)[1]


def interrupted(workshop, tmp_path, interrupt, settings_of_job=None, **changes):
    """Train on the cluster, `interrupt(job id)` after the first checkpoint, follow to the end;
    returns the folder.
    """
    output = tmp_path / "killed"
    config = settings(workshop, output, save_steps=4, report_to="none", **changes)
    task = slurm_commands.train_task(config, settings_of_job or SlurmSettings(signal_seconds=10))
    submission = slurm.submit("train", [task], settings_of_job or SlurmSettings(signal_seconds=10))
    wait_for(lambda: (output / "checkpoint-4" / "trainer_state.json").is_file())
    ((_, job),) = slurm.squeue(set(submission.job_names)).items()
    interrupt(job["id"])
    again = slurm.submit("train", [task], SlurmSettings())
    assert again.new == 0 and again.jobs == submission.jobs
    state = RunState(task)
    slurm.follow_jobs(submission, [state], poll_seconds=0.3)
    assert (state.state, state.line) == ("done", "")
    status = json.loads((output / "slurm" / "train.status.json").read_text())
    assert status == {"job": job["id"], "node": 0, "restarts": 1, "status": 0}
    return output


def test_training_told_that_its_time_is_over_requeues_itself_and_equals_an_uninterrupted_one(
    cluster, workshop, tmp_path
):
    def warn(job_id):
        subprocess.run(["scancel", "--signal=USR2", job_id], check=True)
        wait_for(
            lambda: (
                "Caught signal"
                in (tmp_path / "killed/slurm/submitit" / f"{job_id}_0_log.err").read_text()
            )
        )

    output = interrupted(workshop, tmp_path, warn, max_steps=16)
    train(settings(workshop, tmp_path / "whole", save_steps=4, report_to="none", max_steps=16))
    assert curve(output) == curve(tmp_path / "whole")
    assert len(curve(output)) == 16
    assert (output / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("cluster", [real], indirect=True)
@pytest.mark.parametrize("nodes", [1, 2])
def test_killed_training_requeued_by_hand_equals_an_uninterrupted_one(
    cluster, workshop, tmp_path, nodes
):
    job = functools.partial(SlurmSettings, nodes=nodes, signal_seconds=10)

    def kill(job_id):
        training = str(tmp_path / "killed" / "slurm" / "train.json")
        for process in psutil.process_iter(["cmdline"]):
            if training in (process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        wait_for(lambda: job_state(job_id) == "FAILED")
        subprocess.run(["scontrol", "requeue", job_id], check=True)

    output = interrupted(workshop, tmp_path, kill, job(), max_steps=16, tokens_per_step=2048)
    (tmp_path / "killed").rename(tmp_path / "once")
    whole = settings(
        workshop,
        tmp_path / "killed",
        save_steps=4,
        report_to="none",
        max_steps=16,
        tokens_per_step=2048,
    )
    task = slurm_commands.train_task(whole, job())
    state = RunState(task)
    slurm.follow_jobs(slurm.submit("train", [task], job()), [state], poll_seconds=0.3)
    assert state.state == "done"
    assert curve(tmp_path / "once") == curve(output)
    assert len(curve(output)) == 16


@pytest.mark.parametrize("cluster", [real], indirect=True)
def test_preempted_training_waits_for_slurm_to_requeue_it_and_equals_an_uninterrupted_one(
    cluster, workshop, tmp_path
):
    def preempt(job_id):
        urgent = [
            "sbatch",
            "--partition=urgent",
            "--nodes=2",
            "--exclusive",
            "--output=/dev/null",
            "--wrap=sleep 1",
        ]
        subprocess.run(urgent, check=True)
        wait_for(lambda: job_state(job_id) == "PENDING")

    output = interrupted(workshop, tmp_path, preempt, max_steps=16)
    assert "DUE TO PREEMPTION" in "".join(
        path.read_text() for path in (output / "slurm" / "submitit").glob("*.err")
    )
    train(settings(workshop, tmp_path / "whole", save_steps=4, report_to="none", max_steps=16))
    assert curve(output) == curve(tmp_path / "whole")


def test_training_that_could_not_resume_is_refused(workshop, tmp_path):
    config = settings(workshop, tmp_path / "run", save_steps=0)
    with pytest.raises(InputError, match="`save_steps` is 0"):
        slurm_commands.train_task(config, SlurmSettings())
    slurm_commands.train_task(config, SlurmSettings(requeue=False))
    slurm_commands.train_task(settings(workshop, tmp_path / "run", save_steps=2), SlurmSettings())
    (tmp_path / "run" / "checkpoint-2").mkdir()
    slurm_commands.train_task(
        settings(workshop, tmp_path / "run", save_steps=2), SlurmSettings()
    )  # the same run goes on
    other = settings(workshop, tmp_path / "run", save_steps=2, peak_lr=1e-3)
    with pytest.raises(InputError, match="checkpoints of other settings"):
        slurm_commands.train_task(other, SlurmSettings())
    with pytest.raises(InputError, match="multiple of context x processes"):
        slurm_commands.train_task(other, SlurmSettings(nodes=3))


def test_nodes_of_a_job_meet_at_the_first(monkeypatch):
    slurm_job = pytest.importorskip("submitit.slurm.slurm")
    from llasa_core.experiments.slurm_job import torchrun

    given = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NODEID": "1",
    }
    for name, value in (
        given | {"SLURM_JOB_NODELIST": "gpu[08-09]", "SUBMITIT_EXECUTOR": "slurm"}
    ).items():
        monkeypatch.setenv(name, value)
    arguments = torchrun(slurm_job.SlurmJobEnvironment(), 8)
    assert arguments[:2] == ("-m", "torch.distributed.run")
    assert {"--nproc_per_node=8", "--nnodes=2", "--node_rank=1", "--master_addr=gpu08"} <= set(
        arguments
    )
    port = arguments[-1]
    monkeypatch.setenv("SLURM_NODEID", "0")
    assert torchrun(slurm_job.SlurmJobEnvironment(), 8)[-1] == port


def test_script_of_a_job_asks_for_what_the_settings_say(cluster, tmp_path):
    job = SlurmSettings(
        partition="nowhere", nodes=2, gpus_per_node=8, cpus_per_node=64, memory_gb=480.5, minutes=90
    )
    job = functools.partial(
        SlurmSettings, **{**vars(job), "setup": ["module load cuda"], "sbatch": {"qos": "high"}}
    )
    command = slurm_job.NodeCommand(
        ("-c", "1"), ("-c", "1"), str(tmp_path), str(tmp_path / "job" / "one")
    )
    with pytest.raises(
        InputError, match="sbatch: error"
    ) as caught:  # and nothing is taken for submitted
        slurm.submit("one", [slurm.Task("one", command)], job())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "job" / "one.slurm.json").exists()
    (script,) = (tmp_path / "job" / "submitit").glob(".submission_file*")
    lines = set(script.read_text().splitlines())
    wanted = (
        "nodes=2 gpus-per-node=8 cpus-per-task=64 mem=492032M time=90 qos=high requeue"
        " ntasks-per-node=1"
    )
    assert {f"#SBATCH --{option}" for option in wanted.split()} <= lines
    assert {f"#SBATCH --chdir={tmp_path}", "#SBATCH --signal=USR2@90", "module load cuda"} <= lines
    (start,) = [line for line in lines if line.startswith("srun")]
    assert "--cpus-per-task=64 --kill-on-bad-exit=1" in start


def test_shards_encoded_by_jobs_are_the_local_dataset(cluster, tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    with (tmp_path / "manifest.jsonl").open("w") as manifest:
        for number in range(6):
            soundfile.write(
                tmp_path / f"{number}.wav", generator.normal(0, 0.1, 8000 + 700 * number), 16000
            )
            manifest.write(
                json.dumps({"id": f"u{number}", "audio": f"{number}.wav", "text": "words"}) + "\n"
            )
    monkeypatch.chdir(tmp_path)
    encode = ["encode", "manifest.jsonl", "jobs", "--codec", "fake", "--shards", "2"]
    assert cli.main([*encode, "--slurm"]) == 0
    assert "2 submitted, 0 found" in capsys.readouterr().err
    for shard in "01":
        assert cli.main(["encode", "manifest.jsonl", "here", *encode[3:], "--shard", shard]) == 0
    first, second = read_codes("jobs"), read_codes("here")
    assert first.meta == second.meta


def test_without_slurm_the_commands_say_so_in_one_line(tmp_path, monkeypatch, capsys, workshop):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {"model": "tiny", "codes": "c", "output_dir": "o", "max_steps": 1, "save_steps": 1}
        )
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(config), "--slurm"]) == 2
    assert (
        capsys.readouterr().err
        == "llasa: --slurm: no `sbatch` on this machine, expected a login node of a Slurm cluster\n"
    )


def test_controller_that_does_not_answer_fails_no_job(tmp_path, monkeypatch):
    command = slurm_job.NodeCommand((), (), str(tmp_path), str(tmp_path / "one"))
    task, calls = slurm.Task("one", command), []

    def squeue(names):
        calls.append(names)
        if len(calls) < 8:
            raise OSError("squeue: error: Unable to contact slurm controller")
        (tmp_path / "one.status.json").write_text('{"status": 0, "node": 0}')
        return {}

    monkeypatch.setattr(slurm, "squeue", squeue)
    state = RunState(task)
    slurm.follow_jobs(
        slurm.Submission("one", (task,), {"one": ("name", 0)}, 1), [state], poll_seconds=0.01
    )
    assert state.state == "done"


def test_job_that_is_gone_without_a_status_has_failed(tmp_path, monkeypatch):
    (tmp_path / "one.log").write_text("step 7\n")
    task = slurm.Task("one", slurm_job.NodeCommand((), (), str(tmp_path), str(tmp_path / "one")))
    state = RunState(task)
    monkeypatch.setattr(slurm, "squeue", lambda names: {})
    begin = time.monotonic()
    slurm.follow_jobs(
        slurm.Submission("one", (task,), {"one": ("name", 0)}, 1), [state], poll_seconds=0.01
    )
    assert state.state == "failed" and "is gone" in state.line and "step 7" in state.line
    assert time.monotonic() - begin < 2
