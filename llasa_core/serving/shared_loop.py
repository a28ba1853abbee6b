"""One thread draws the rows of all requests; the thread of a request waits for its own rows.

A request is spoken by the code that speaks it offline: `Line` is the engine of its Synthesizer.
Rows that arrive within `window` seconds are admitted together, as each prefill halts the others. A
request ends early by its `Ticket`: its rows leave the loop before the next token.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import numpy as np

from llasa_core.synthesis.decoding import Answers, Asked, Row
from llasa_core.synthesis.sampling import Sampling

LOG = logging.getLogger("llasa.serve")


class GoneError(Exception):
    """Nobody waits for this speech any more: the client left, or its time is over."""


class Rows(Protocol):
    """What draws: `synthesis.open_loop.OpenLoop`, or a whole batch at a time (`engine_rows`).

    slots: rows at a time; live: rows being drawn; queue: rows that wait.
    """

    slots: int
    live: int
    queue: Sequence[int]

    def add(self, index: int, asked: Asked) -> None:
        """Row `index` waits. InputError for one that cannot be drawn."""
        ...

    def drop(self, index: int) -> None:
        """Row `index` leaves; nothing where it has left."""
        ...

    def admit(self) -> None:
        """Fill the free slots from the queue."""
        ...

    def advance(self) -> list[tuple[int, Row]]:
        """Go on with the live rows; those that are finished."""
        ...

    def drawn(self, index: int) -> np.ndarray:
        """The ids of row `index` so far."""
        ...


class Ticket:
    """The life of one request: `seconds` from now, unless its client leaves before."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        self.left = False
        self.future: Future | None = None  # of the thread that speaks
        self._rows: set[SharedRow] = set()

    @property
    def remaining(self) -> float:
        """Seconds until the time is over, 0 then."""
        return max(0.0, self.ends - time.monotonic())

    def leave(self) -> None:
        """The request is over; threads that wait for its rows wake up."""
        self.left = True
        for row in tuple(self._rows):
            row.ready.set()

    def check(self) -> None:
        """GoneError where the request is over."""
        if self.left or not self.remaining:
            raise GoneError

    @contextmanager
    def holding(self, rows: Sequence[SharedRow]) -> Iterator[None]:
        """The rows that a thread waits for."""
        self._rows.update(rows)
        try:
            yield
        finally:
            self._rows.difference_update(rows)


class SharedRow:
    """A row in the loop and what its request's thread has asked of it."""

    def __init__(self, asked: Asked, wanted: int | None = None) -> None:
        self.asked, self.wanted = asked, wanted  # wanted: ids to be told of; None: when finished
        self.ready, self.left = threading.Event(), False
        self.told: Row | None = None  # what `wanted` asked for
        self.finished: Row | None = None
        self.error: BaseException | None = None


class SharedLoop:
    """The thread that draws. `make` makes its Rows, again after a failure; `context` is entered
    while the thread runs. Counts: `steps`, and `row_steps`, the rows of all steps together.
    """

    def __init__(
        self,
        make: Callable[[], Rows],
        window: float = 0.01,
        context: AbstractContextManager | None = None,
    ) -> None:
        self._make, self.window, self._context = make, window, context or nullcontext()
        self._rows = make()
        self._changed = threading.Condition()
        self._incoming: list[SharedRow] = []
        self._inside: dict[int, SharedRow] = {}
        self._arrived: dict[int, float] = {}
        self._next, self._stopping = 0, False
        self.steps = self.row_steps = self.failures = 0
        self._thread = threading.Thread(target=self._run, daemon=True, name="draws rows")

    def start(self) -> None:
        """Begin to draw."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; rows inside are not finished."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def running(self) -> bool:
        """Whether the thread draws."""
        return self._thread.is_alive()

    @property
    def live(self) -> int:
        """Rows being drawn."""
        return self._rows.live

    @property
    def waiting(self) -> int:
        """Rows that wait for a slot."""
        return len(self._rows.queue) + len(self._incoming)

    def ask(self, rows: Sequence[SharedRow]) -> None:
        """Draw rows, as soon as there is room."""
        with self._changed:
            self._incoming += rows
            self._changed.notify()

    def leave(self, rows: Sequence[SharedRow]) -> None:
        """Nobody waits for these rows any more."""
        for row in rows:
            row.left = True
        with self._changed:
            self._changed.notify()

    def take(self, row: SharedRow, count: int, ticket: Ticket) -> Row:
        """`Drawing.take` of a row: its first `count` ids, or all of it where it is finished with
        fewer. Its log_prob is not a number before the end.
        """
        with self._changed:
            if row.finished is None and row.error is None:
                row.told, row.wanted = None, count
                row.ready.clear()
        wait(row, ticket)
        found = row.finished or row.told
        if found.steps > count:
            return Row(found.ids[:count], "", float("nan"), count)
        return found

    def _run(self) -> None:
        with self._context:
            while not self._stopping:
                try:
                    self._turn()
                except Exception as error:
                    # Such as no memory: the requests inside fail, those to come may not
                    LOG.exception("the rows of %d requests failed", len(self._inside))
                    self.failures += 1
                    for row in self._inside.values():
                        row.error = error
                        row.ready.set()
                    self._inside, self._arrived = {}, {}
                    self._rows = self._make()

    def _turn(self) -> None:
        """Let rows in and out, then one token for all that are inside."""
        with self._changed:
            self._let_in()
            for index in [index for index, row in self._inside.items() if row.left]:
                self._rows.drop(index)
                self._forget(index)
            patience = self._patience()
            if not self._rows.live and patience != 0:
                self._changed.wait(patience)
                return
        if patience == 0:
            self._rows.admit()
        self.steps += 1
        self.row_steps += self._rows.live
        finished = self._rows.advance()
        with self._changed:
            for index, found in finished:
                row = self._forget(index)
                row.finished = found
                row.ready.set()
            for index, row in self._inside.items():
                if row.wanted is None:
                    continue
                ids = self._rows.drawn(index)
                if len(ids) >= row.wanted:
                    row.told, row.wanted = Row(ids, "", float("nan"), len(ids)), None
                    row.ready.set()

    def _let_in(self) -> None:
        while self._incoming:
            row = self._incoming.pop(0)
            if row.left:
                continue
            try:
                self._rows.add(self._next, row.asked)
            except Exception as error:
                row.error = error
                row.ready.set()
                continue
            self._inside[self._next], self._arrived[self._next] = row, time.monotonic()
            self._next += 1

    def _patience(self) -> float | None:
        """Seconds to wait for company before the next rows are admitted; 0: now, None: none waits
        that could be.
        """
        free = self._rows.slots - self._rows.live
        if not self._rows.queue or not free:
            return None
        if len(self._rows.queue) >= free:
            return 0.0
        oldest = min(self._arrived[index] for index in self._rows.queue)
        return max(0.0, oldest + self.window - time.monotonic())

    def _forget(self, index: int) -> SharedRow:
        self._arrived.pop(index, None)
        return self._inside.pop(index)


def wait(row: SharedRow, ticket: Ticket) -> None:
    """Until there is news of a row. Raises GoneError where the request is over, and the error that
    kept the row from being drawn.
    """
    with ticket.holding([row]):
        if not ticket.left:
            row.ready.wait(ticket.remaining)
    ticket.check()
    if row.error is not None:
        raise row.error


class Line:
    """The engine of the Synthesizer of one request: its rows go to the shared loop.

    hidden: positions of prompts that no token attends to, as `Synthesizer.hidden`.
    """

    name = "shared loop"

    def __init__(
        self,
        loop: SharedLoop,
        ticket: Ticket,
        hidden: Callable[[Sequence[np.ndarray]], list | None],
    ) -> None:
        self.loop, self.ticket, self.hidden = loop, ticket, hidden

    def decode(
        self,
        prompts: Sequence[np.ndarray],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        answers: Answers,
    ) -> Iterator[tuple[int, Row]]:
        """(index of the prompt, its Row), in order. GoneError where the request is over."""
        hidden = self.hidden(prompts) or [()] * len(prompts)
        asked = zip(prompts, limits, seeds, hidden, strict=True)
        rows = [SharedRow(Asked(*row[:3], sampling, row[3])) for row in asked]
        self.loop.ask(rows)
        try:
            for index, row in enumerate(rows):
                wait(row, self.ticket)
                yield index, row.finished
        finally:
            self.loop.leave(rows)

    @contextmanager
    def drawing(self, asked: Asked) -> Iterator[SharedDrawing]:
        """A row that is heard while it is drawn."""
        row = SharedRow(asked)
        self.loop.ask([row])
        try:
            yield SharedDrawing(self, row)
        finally:
            self.loop.leave([row])


class SharedDrawing:
    """`decoding.Drawing` of a row in the shared loop, which goes on while nobody asks."""

    def __init__(self, line: Line, row: SharedRow) -> None:
        self._line, self._row = line, row

    def take(self, count: int) -> Row:
        """The row as soon as it has `count` ids or is finished."""
        return self._line.loop.take(self._row, count, self._line.ticket)
