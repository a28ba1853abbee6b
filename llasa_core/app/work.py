"""Work of the models on one thread, while the thread of a page looks on.

torch's inference mode belongs to a thread, and a page is served by many: so one thread speaks, and
others read what it tells. Who stops listening stops the work.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llasa_core.errors import InputError

STEP_SECONDS = 0.2  # between two looks of a reader at whether it is still wanted


class Stopped(Exception):
    """Nobody wants the answer any more."""


class Job:
    """Iterate over what `work(job)` tells with `job.tell`; afterwards `result` is what it returned.

    What it raises comes out of the iteration: InputError after more than `seconds`, Stopped after
    `stop`, which may be called from any thread.
    """

    def __init__(self, pool: ThreadPoolExecutor, work: Callable[[Job], Any], seconds: float):
        self.result: Any = None
        self._told: queue.SimpleQueue = queue.SimpleQueue()
        self._stopped, self._seconds = threading.Event(), seconds
        self._deadline = float("inf")  # time in the queue is not work
        self._future = pool.submit(self._run, work)

    def tell(self, event: Any) -> None:
        """Hand an event to the reader, and look whether the work goes on."""
        self.check()
        self._told.put(event)

    def check(self) -> None:
        """To be called now and then by the work: Stopped or InputError where it must end."""
        if self._stopped.is_set():
            raise Stopped
        if time.monotonic() > self._deadline:
            raise InputError(
                f"this took more than {self._seconds:g} s and was stopped; try a shorter text or"
                " fewer candidates"
            )

    def stop(self) -> None:
        """End the work at its next `check`."""
        self._stopped.set()

    def __iter__(self) -> Generator[Any, None, None]:
        try:
            while not (self._future.done() and self._told.empty()):
                try:
                    yield self._told.get(timeout=STEP_SECONDS)
                except queue.Empty:
                    continue
        finally:
            self.stop()
        self.result = self._future.result()

    def _run(self, work: Callable[[Job], Any]) -> Any:
        self._deadline = time.monotonic() + self._seconds
        self.check()
        return work(self)
