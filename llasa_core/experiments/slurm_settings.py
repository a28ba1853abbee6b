"""Settings of Slurm jobs (experiments/slurm/*.yaml): checked when read, and turned into submitit's
parameters.

A job has one task a node; torchrun starts the processes inside.
"""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llasa_core.errors import InputError
from llasa_core.experiments.config import checked_value
from llasa_core.files import read_yaml

# Options of sbatch that have keys of their own, or that submission sets.
OURS = set(
    "account constraint cpus-per-task gpus-per-node mem nodes partition time signal "
    "array chdir error job-name no-requeue ntasks-per-node open-mode output requeue".split()
)


@dataclass(frozen=True)
class SlurmSettings:
    """What a job asks for (experiments/slurm/*.yaml), a task a node; "": the cluster's default."""

    partition: str = ""
    account: str = ""
    constraint: str = ""
    nodes: int = 1  # more than one: train only
    gpus_per_node: int = 0
    processes_per_node: int = 0  # of torchrun; 0: one for each GPU, without GPUs one
    cpus_per_node: int = 1
    memory_gb: float = 0.0  # of a node; 0: the cluster's default
    minutes: int = 60
    signal_seconds: int = 90  # before the time limit, when Slurm signals the job to requeue
    requeue: bool = True  # after preemption and at the time limit
    max_requeues: int = 100  # at the time limit
    parallel_jobs: int = 256  # of a job array
    setup: list[str] = field(default_factory=list)  # shell lines before the job: module load ...
    # Further options: {qos: high, exclusive: true}
    sbatch: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "SlurmSettings":
        """Read and check a file; InputError names the file, the key and what was expected."""
        path, defaults = Path(path), cls()
        known = {entry.name: getattr(defaults, entry.name) for entry in fields(cls)}
        values = read_yaml(path)
        for name in values:
            if name not in known:
                raise InputError(
                    f"{path}: unknown key `{name}`, expected {', '.join(sorted(known))}"
                )

        def demand(name: str, holds: bool, expected: str) -> None:
            if not holds:
                raise InputError(f"{path}: `{name}` is {values[name]!r}, expected {expected}")

        for name, value in values.items():
            values[name] = value = checked_value(f"{path}: `{name}`", value, known[name])
            if isinstance(value, int | float):
                least = 1 if name in ("nodes", "cpus_per_node", "minutes", "parallel_jobs") else 0
                demand(name, value >= least, f"at least {least}")
            if isinstance(value, str):
                demand(name, "\n" not in value, "one line")
        demand(
            "setup",
            all(isinstance(line, str) for line in values.get("setup", [])),
            "a list of shell lines",
        )
        for option, value in values.get("sbatch", {}).items():
            where = f"{path}: `sbatch`: `{option}`"
            if not isinstance(option, str) or not re.fullmatch(r"[a-z][a-z-]+", option):
                raise InputError(f"{where}, expected an option's name without its dashes in front")
            if option in OURS:
                raise InputError(f"{where} is set by the other keys or by llasa")
            if value is False or not isinstance(value, str | int | float) or "\n" in str(value):
                raise InputError(
                    f"{where} is {value!r}, expected text, a number, or true for an option without"
                    " value"
                )
        settings = cls(**values)
        if settings.minutes * 60 <= settings.signal_seconds:
            raise InputError(
                f"{path}: `signal_seconds` is {settings.signal_seconds}, expected less than the"
                " `minutes`"
            )
        return settings

    @property
    def processes(self) -> int:
        """Processes of torchrun on a node."""
        return self.processes_per_node or self.gpus_per_node or 1

    def parameters(self, job_name: str, folder: str | Path) -> dict[str, Any]:
        """submitit.SlurmExecutor.update_parameters for jobs that work in `folder`."""
        options = {
            "chdir": str(folder),
            "requeue" if self.requeue else "no-requeue": True,
            **self.sbatch,
        }
        values = {
            "job_name": job_name,
            "partition": self.partition,
            "account": self.account,
            "constraint": self.constraint,
            "nodes": self.nodes,
            "ntasks_per_node": 1,
            "gpus_per_node": self.gpus_per_node,
            "cpus_per_task": self.cpus_per_node,
            "mem": f"{round(self.memory_gb * 1024)}M" if self.memory_gb else "",
            "time": self.minutes,
            "signal_delay_s": self.signal_seconds,
            "array_parallelism": self.parallel_jobs,
            "setup": self.setup,
            "additional_parameters": options,
            # From 22.05 on srun does not take over --cpus-per-task. A node that fails ends the
            # others.
            "srun_args": [f"--cpus-per-task={self.cpus_per_node}", "--kill-on-bad-exit=1"],
        }
        return {name: value for name, value in values.items() if value}
