"""What the benchmarks share: the head of a report, which says what was run on what, and the clock.

CPU seconds are those of this process: all its threads, no child processes. On a shared machine they
compare two sides; wall seconds hold the waiting as well, for a disk as for other work.
"""

import importlib.metadata
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from llasa_core.experiments.notebook import cpu_model


def head(
    name: str,
    packages: Sequence[str],
    threads: int | None = None,
    arguments: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The keys that every report begins with.

    `packages` are distributions. `threads` are torch's (None: every library takes its own number).
    `arguments` stand in the command line as they were given (None: this process' own).
    `load_average` is of the minute before the call: how many processes wanted the cores, this one
    among them.
    """
    given = sys.argv[1:] if arguments is None else arguments
    return {
        "benchmark": name,
        "command": shlex.join(["python", f"benchmarks/{name}.py", *given]),
        "device": f"{cpu_model()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 2),
        "threads": threads,
        "packages": {package: importlib.metadata.version(package) for package in packages},
        "python": platform.python_version(),
    }


class Clock:
    """`cpu` and `wall` seconds since it was made, read as often as one likes."""

    def __init__(self):
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    @property
    def cpu(self) -> float:
        return time.process_time() - self._cpu

    @property
    def wall(self) -> float:
        return time.perf_counter() - self._wall


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """({"cpu", "wall"}: seconds, what `work` returned)."""
    clock = Clock()
    value = work()
    return {"cpu": clock.cpu, "wall": clock.wall}, value
