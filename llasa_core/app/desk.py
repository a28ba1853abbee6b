"""Between the handlers of a page and the studio: the work of each visitor, what is told of it, and
the files of what was spoken, which are deleted.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from llasa_core.app.live import LiveSpeech, LiveSpeeches
from llasa_core.app.studio import Order, Studio, Take
from llasa_core.app.work import Job
from llasa_core.audio import write_wav


class Desk:
    """A studio with a folder for what visitors hear. `live`: speech that is being made."""

    def __init__(self, studio: Studio, folder: Path) -> None:
        self.studio, self.folder, self.live = studio, folder, LiveSpeeches()
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._sweep_on, daemon=True).start()

    def perform(
        self, visitor: str, name: str, order: Order, live: LiveSpeech | None = None
    ) -> Iterator[str | Take]:
        """Sentences while an order is worked on, its Take at last. With `live` the waves go there
        as they are made. Raises what `Job` raises.
        """
        job = self.studio.job(
            lambda job: self.studio.perform(name, order, job, live=live is not None)
        )
        with self._lock:
            self._jobs[visitor] = job
        samples = 0
        try:
            for told in job:
                if isinstance(told, np.ndarray):
                    rate = self.studio.synthesizer(name).codec.sample_rate
                    if not samples:
                        live.begin(rate)
                    live.write(told)
                    samples += len(told)
                    told = f"Speaking: {samples / rate:.1f} s so far."
                yield told
        finally:
            if live is not None:
                live.end()
            with self._lock:
                if self._jobs.get(visitor) is job:
                    del self._jobs[visitor]
        yield job.result

    def recognised(self, recording: str) -> str:
        """The words that a recogniser hears in a recording."""
        return self._done(lambda job: self.studio.recognised(recording))

    def candidate(self, take: Take, piece: int, index: int) -> str:
        """A file of one candidate of a search."""
        wave = self._done(lambda job: self.studio.candidate(take, piece, index))
        return self.file(wave, take.rate, f"candidate-{index + 1}")

    def _done(self, work: Callable[[Job], Any]) -> Any:
        job = self.studio.job(work)
        for _ in job:
            pass
        return job.result

    def stop(self, visitor: str) -> None:
        """End the visitor's work, if there is any."""
        with self._lock:
            job = self._jobs.get(visitor)
        if job is not None:
            job.stop()

    def stopped(self, request: gr.Request) -> None:
        """`stop`, as a handler of the page."""
        self.stop(request.session_hash)

    def file(self, wave: np.ndarray, rate: int, name: str) -> str:
        """A WAV file of this name, for `kept_seconds`."""
        path = self.folder / secrets.token_hex(8) / f"{name}.wav"
        path.parent.mkdir(parents=True)
        write_wav(path, wave, rate)
        return str(path)

    def _sweep_on(self) -> None:
        """Delete the speech that is older than `kept_seconds`, whether or not anyone comes."""
        kept = self.studio.limits.kept_seconds
        while True:
            time.sleep(max(1, min(60, kept // 2)))
            self._sweep(time.time() - kept)

    def _sweep(self, oldest: float) -> None:
        for folder in self.folder.glob("*"):
            with suppress(FileNotFoundError):
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)
