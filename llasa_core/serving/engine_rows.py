"""Rows for an engine that only takes whole batches, such as vLLM: those that wait go together."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np

from llasa_core.synthesis.decoding import Answers, Asked, Row
from llasa_core.synthesis.sampling import Sampling


class EngineRows:
    """A batch holds up to `slots` rows of one sampling; the next begins when it is finished."""

    def __init__(self, engine, answers: Answers, sampling: Sampling, slots: int) -> None:
        self.engine, self.answers, self.sampling, self.slots = engine, answers, sampling, slots
        self.queue: deque[int] = deque()
        self._asked: dict[int, Asked] = {}
        self._batch: list[int] = []

    @property
    def live(self) -> int:
        """Rows of the batch that runs next."""
        return len(self._batch)

    def add(self, index: int, asked: Asked) -> None:
        """Row `index` waits for a batch of its sampling."""
        sampling = replace(asked.sampling, max_seconds=self.sampling.max_seconds)
        self._asked[index] = replace(asked, sampling=sampling)
        self.queue.appendleft(index)

    def drop(self, index: int) -> None:
        """Row `index` leaves, if its batch has not begun."""
        for place in (self.queue, self._batch):
            if index in place:
                place.remove(index)
                del self._asked[index]

    def admit(self) -> None:
        """A batch of the row that has waited longest and others of its sampling."""
        sampling = self._asked[self.queue[-1]].sampling
        same = [index for index in reversed(self.queue) if self._asked[index].sampling == sampling]
        self._batch = same[: self.slots]
        for index in self._batch:
            self.queue.remove(index)

    def advance(self) -> list[tuple[int, Row]]:
        """The whole batch."""
        batch, self._batch = self._batch, []
        asked = [self._asked.pop(index) for index in batch]
        columns = [[getattr(row, name) for row in asked] for name in ("prompt", "limit", "seed")]
        rows = self.engine.decode(*columns, asked[0].sampling, self.answers)
        return [(batch[place], row) for place, row in rows]

    def drawn(self, index: int) -> np.ndarray:
        """Nothing is known of a row before its batch is finished."""
        return np.zeros(0, np.int64)
