"""The sampling loop with an open door: rows come and go while others are drawn.

What a server needs of `decoding`: a row has its own temperature, top_k and top_p, and may leave
before it is finished. Rows still depend on nothing but themselves, so one that joins late draws
what it would draw alone. The cache is allocated once, for the longest row that the context allows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import torch

from llasa_core.errors import InputError
from llasa_core.synthesis.decoding import Answers, Asked, Loop, Row, check_rows
from llasa_core.synthesis.sampling import Sampling, draw_with_doubt


class OpenLoop(Loop):
    """`slots` rows at a time of at most `context` tokens; run inside `decoding.generating(model)`.

    `sampling` decides what all rows share: min_codes and repetition_penalty.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        answers: Answers,
        sampling: Sampling,
        slots: int,
        context: int,
    ) -> None:
        self.prompts, self.limits, self.seeds, self.hidden = {}, {}, {}, {}
        self.samplings: dict[int, Sampling] = {}
        self.same: dict[int, bytes] = {}
        self.queue: deque[int] = deque()
        self._make_room(model, answers, sampling, slots, context, context)

    def add(self, index: int, asked: Asked) -> None:
        """Row `index` waits for a free slot, behind those that wait already. InputError for what
        this loop cannot draw.
        """
        row = ([asked.prompt], [asked.limit], [asked.seed])
        check_rows(self.model, *row, self.answers, [asked.hidden])
        shared = ("min_codes", "repetition_penalty")
        for name in shared:
            if getattr(asked.sampling, name) != getattr(self.sampling, name):
                raise InputError(
                    f"generation: {name} is {getattr(asked.sampling, name)!r}, this loop has"
                    f" {getattr(self.sampling, name)!r} for all rows"
                )
        capacity = self.visible.shape[1]
        if len(asked.prompt) + asked.limit > capacity:
            raise InputError(
                f"generation: {len(asked.prompt)} tokens of prompt and {asked.limit} of answer,"
                f" expected at most {capacity}"
            )
        self.prompts[index] = np.ascontiguousarray(asked.prompt, dtype=np.int32)
        self.limits[index], self.seeds[index] = asked.limit, asked.seed
        self.hidden[index] = asked.hidden
        # Lengths are in `limits`; without them rows of one temperature are drawn together
        self.samplings[index] = replace(asked.sampling, max_seconds=self.sampling.max_seconds)
        self.same[index] = self.prompts[index].tobytes()
        self.queue.appendleft(index)

    def drop(self, index: int) -> None:
        """Row `index` leaves, wherever it is; nothing happens where it has left already."""
        if index not in self.prompts:
            return
        if index in self.queue:
            self.queue.remove(index)
        else:
            self.free(np.flatnonzero(self.request[: self.live] == index))
        self._forget(index)

    def advance(self) -> list[tuple[int, Row]]:
        """One token for every live row; the rows that it finishes."""
        finished = self.release(self.step())
        for index, _ in finished:
            self._forget(index)
        return finished

    @torch.inference_mode()
    def drawn(self, index: int) -> np.ndarray:
        """The ids int64 (L,) of row `index` so far, none while it waits."""
        slots = np.flatnonzero(self.request[: self.live] == index)
        if not len(slots):
            return np.zeros(0, np.int64)
        return self.output[slots[0], : self.steps[slots[0]]].cpu().numpy().copy()

    def _forget(self, index: int) -> None:
        for kept in (self.prompts, self.limits, self.seeds, self.hidden, self.samplings, self.same):
            del kept[index]

    def _sampling(self, slot: int) -> Sampling:
        return self.samplings[int(self.request[slot])]

    def _draw(
        self, logits: torch.Tensor, uniform: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        groups: dict[Sampling, list[int]] = {}
        for slot in range(self.live):
            groups.setdefault(self._sampling(slot), []).append(slot)
        if len(groups) == 1:
            return draw_with_doubt(logits, uniform, *groups, self.error)
        column = torch.zeros(self.live, dtype=torch.long, device=self.device)
        doubt = torch.zeros(self.live, dtype=torch.bool, device=self.device)
        for sampling, slots in groups.items():
            at = torch.tensor(slots, device=self.device)
            column[at], doubt[at] = draw_with_doubt(logits[at], uniform[at], sampling, self.error)
        return column, doubt
