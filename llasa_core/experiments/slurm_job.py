"""What a Slurm job executes on its nodes: one command, under torchrun where it has several
processes.

submitit pickles a NodeCommand, which holds only text and numbers. Slurm sends its signals to every
process of a step: the warning before the time limit is kept from the command, and after a SIGTERM
(preemption, scancel) the job waits for Slurm to requeue or kill it, since a job that ends by itself
is not requeued.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llasa_core.experiments.runner import thread_environment
from llasa_core.files import write_json

GRACE = 600.0  # seconds that Slurm gets to end a job it has sent SIGTERM


@dataclass(frozen=True)
class NodeCommand:
    """One task a node. `stem`: {stem}.log and, once the command ended, {stem}.status.json."""

    arguments: tuple[str, ...]  # of the interpreter: -m module ...
    requeued: tuple[str, ...]  # the same after a requeue
    folder: str  # working folder
    stem: str
    processes: int = 1  # on a node
    requeue: bool = True  # resume in a new job when this one runs out of time or is preempted

    def __call__(self) -> None:
        """Run the command on this node; RuntimeError if it ends with another status than 0."""
        from submitit import JobEnvironment

        node = JobEnvironment()
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        arguments = self.requeued if restarts else self.arguments
        if node.num_nodes * self.processes > 1:
            arguments = (*torchrun(node, self.processes), *arguments)
        status_file = Path(f"{self.stem}.status.json")
        if node.node == 0:
            status_file.unlink(missing_ok=True)

        told_to_end = []
        signal.signal(signal.SIGTERM, lambda *_: told_to_end.append(True))
        warning = getattr(signal, f"SIG{node.USR_SIG}")
        with open(log_path(self.stem, node.node), "ab" if restarts else "wb") as log:
            signal.pthread_sigmask(signal.SIG_BLOCK, {warning})  # the command inherits the block
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=os.environ | thread_environment(self.processes),
                stdin=subprocess.PIPE,  # notebook_run ends when it closes
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {warning})
        status = process.wait()
        if status and told_to_end:
            time.sleep(GRACE)
        if status or node.node == 0:
            write_json(
                status_file,
                {"job": node.job_id, "node": node.node, "restarts": restarts, "status": status},
            )
        if status:
            raise RuntimeError(f"{' '.join(arguments)[:200]} ended with status {status}")

    def checkpoint(self) -> Any:
        """What the requeued job executes: the same object. None refuses the requeue."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self) if self.requeue else None


def torchrun(node: Any, processes: int) -> tuple[str, ...]:
    """Arguments that start `processes` on this node and join the others at the job's first node."""
    from submitit.helpers import TorchDistributedEnvironment

    start = ("-m", "torch.distributed.run", f"--nproc_per_node={processes}")
    if node.num_nodes == 1:
        return (*start, "--standalone")
    meeting = TorchDistributedEnvironment()
    place = (f"--master_addr={meeting.master_addr}", f"--master_port={meeting.master_port}")
    return (*start, f"--nnodes={node.num_nodes}", f"--node_rank={node.node}", *place)


def log_path(stem: str | Path, node: int = 0) -> Path:
    """Where a node writes what the command prints."""
    return Path(f"{stem}.node{node}.log" if node else f"{stem}.log")
