"""Branching generation: rows of one cache stop at agreed lengths and are replaced by copies of the
best of them.

What process-guided search needs of `decoding`. A fork copies keys and values, nothing is computed
again. Row `p` of a request draws token `i` with number `i` of its own stream `p`, whoever its
parent was: results do not depend on which requests run together, and a row that is never replaced
is plain sampling with that stream's seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llasa_core.synthesis.decoding import Answers, Loop, Row, check_rows
from llasa_core.synthesis.sampling import Sampling, row_noise


class Branches(Loop):
    """Rows `r * streams + p` of requests `r`, at most `streams` each; run inside
    `decoding.generating(model)`.

    prompts: int (T,), one a request. seeds: `streams` of each request. Counts, int64 (R,):
    `generated`, tokens drawn by all rows of a request, dropped ones included; `attended`, the keys
    that these tokens looked at. Raises InputError as `decode` does.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        prompts: Sequence[np.ndarray],
        limits: Sequence[int],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        answers: Answers,
        hidden: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.streams = len(seeds[0])
        many = [request for request in range(len(prompts)) for _ in range(self.streams)]
        rows = (
            [prompts[request] for request in many],
            [limits[request] for request in many],
            [seed for row in seeds for seed in row],
        )
        shown = None if hidden is None else [hidden[request] for request in many]
        check_rows(model, *rows, answers, shown)
        super().__init__(model, *rows, sampling, answers, len(many), shown)
        self.queue = []
        self.generated, self.attended = (
            np.zeros(len(prompts), np.int64),
            np.zeros(len(prompts), np.int64),
        )

    def start(self, rows: int) -> None:
        """Open the first `rows` rows of every request; their prompt is computed once."""
        requests = len(self.generated)
        self.queue = [
            request * self.streams + row for request in range(requests) for row in range(rows)
        ][::-1]
        self.admit()

    def step(self) -> np.ndarray:
        requests = self.request[: self.live] // self.streams
        np.add.at(self.generated, requests, 1)
        np.add.at(self.attended, requests, self.length[: self.live] + 1)
        return super().step()

    def advance(self, length: int | None = None) -> list[tuple[int, Row]]:
        """Draw until live rows have `length` tokens (None: all finish); the finished rows."""
        done = []
        while self.live and (length is None or int(self.steps[: self.live].min()) < length):
            done += self.release(self.step())
        return done

    @torch.inference_mode()
    def partial(self) -> dict[int, np.ndarray]:
        """{row: ids int64 (L,) so far} of the live rows, by row."""
        slots = sorted(range(self.live), key=lambda slot: self.request[slot])
        return {
            int(self.request[slot]): self.output[slot, : self.steps[slot]].cpu().numpy().copy()
            for slot in slots
        }

    @torch.inference_mode()
    def fork(self, children: Sequence[tuple[int, int]]) -> None:
        """Live rows become `children`, (row, parent); parents without a child end."""
        place = {int(row): slot for slot, row in enumerate(self.request[: self.live])}
        source, count = [place[parent] for _, parent in children], len(children)
        if [row for row, _ in children] != self.request[: self.live].tolist() or source != list(
            range(count)
        ):
            slots = torch.tensor(source, dtype=torch.long, device=self.device)
            if count:
                self.cache.gather(slots, int(self.length[source].max()))
            for state in (self.length, self.steps, self.limit):
                state[:count] = state[source]
            for state in (self.token, self.log_prob, self.output, self.visible, self.repeated):
                state[:count] = state[slots]
            for slot, (row, _) in enumerate(children):
                self.request[slot] = row
                noise = row_noise(int(self.seeds[row]), self.prompts[row], self.limits[row])
                self.uniform[slot, : len(noise)] = torch.from_numpy(noise).to(self.device)
        self.live = count
