"""The one sampling loop over a plain Llama: many rows, one KV cache, finished rows replaced from
the queue.

Slots 0..live-1 of the preallocated cache are in use; a finished row is overwritten by the last live
one, so every step works on dense views. Rows are written at their own lengths (no left padding); a
boolean mask (S, capacity) says which keys exist, so padding of a prefill and tokens hidden on
purpose are never seen. Only the rows of lm_head that may be answered are multiplied: one contiguous
view of the weight, no copy. The trap: sums round differently in another batch, and one draw in
100,000 falls between; such a draw is decided by the row alone (float32 only).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from llasa_core.errors import InputError, fits
from llasa_core.synthesis.cache import SlotCache
from llasa_core.synthesis.packed import as_they_lie, packed_layers, product
from llasa_core.synthesis.sampling import (
    Sampling,
    draw,
    draw_with_doubt,
    penalised,
    row_noise,
)

# Relative to the largest logit: ten times the float32 difference seen between batched and single
# rows.
ROUNDING = 5e-6


@dataclass(frozen=True)
class Answers:
    """The ids that may come out: `first <= id < stop`, or `end`, which closes the row. `end` is
    outside the range.
    """

    first: int
    stop: int
    end: int

    @property
    def head(self) -> slice:
        """The contiguous rows of lm_head that hold every answer."""
        return slice(min(self.first, self.end), max(self.stop, self.end + 1))


@dataclass(frozen=True, eq=False)
class Asked:
    """A row to draw: prompt int (T,), the most tokens of its answer, its seed, how it is drawn, and
    which positions of the prompt no token attends to.
    """

    prompt: np.ndarray
    limit: int
    seed: int
    sampling: Sampling
    hidden: Sequence[int] = field(default=())


@dataclass(frozen=True)
class Row:
    """What one row answered: `ids` int64 (L,) without the end token.

    reason: "end", or "length" where the limit was reached; "" while the row goes on. log_prob:
    natural log of the product of the probabilities of the tokens drawn (END included) in the
    model's own distribution over the allowed tokens: temperature 1, before top_k and top_p. steps:
    tokens drawn, END included.
    """

    ids: np.ndarray
    reason: str
    log_prob: float
    steps: int


def decode(
    model: torch.nn.Module,
    prompts: Sequence[np.ndarray],
    limits: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    answers: Answers,
    slots: int = 32,
    hidden: Sequence[Sequence[int]] | None = None,
) -> Iterator[tuple[int, Row]]:
    """Continue every prompt; yields (index of the prompt, its Row) as rows finish, in no particular
    order.

    prompts: int (T,) each. limits: the most tokens each may answer. hidden: positions of each
    prompt that no token may attend to (positions of the others stay as they are). A prompt that is
    in the cache already is not computed again: rows of equal prompts that start together share one
    prefill, later ones copy it from a row that still runs. Raises InputError where lists differ in
    length, an id is outside the model, or prompt and limit exceed the context.
    """
    check_rows(model, prompts, limits, seeds, answers, hidden)
    if not prompts:
        return
    with generating(model, rows=min(slots, len(prompts))):
        yield from Loop(model, prompts, limits, seeds, sampling, answers, slots, hidden).run()


@contextmanager
def generating(model: torch.nn.Module, rows: int = 1) -> Iterator[None]:
    """The model in the state that a `Loop` of about so many rows a step needs, and afterwards as it
    was.
    """
    implementation, training = model.config._attn_implementation, model.training
    if implementation != "sdpa":
        # Other implementations read a 4-D boolean mask differently, or not at all.
        model.set_attn_implementation("sdpa")
    model.eval()
    try:
        with packed_layers(model.get_decoder(), rows):
            yield
    finally:
        model.train(training)
        if implementation != "sdpa":
            model.set_attn_implementation(implementation)


def check_rows(model, prompts, limits, seeds, answers, hidden) -> None:
    """InputError for what `decode` cannot continue."""
    if (
        not len(prompts)
        == len(limits)
        == len(seeds)
        == len(hidden if hidden is not None else prompts)
    ):
        raise InputError(
            f"generation: {len(prompts)} prompts, {len(limits)} limits, {len(seeds)} seeds:"
            " expected equal"
        )
    rows = model.get_output_embeddings().weight.shape[0]
    if answers.head.stop > rows:
        raise InputError(
            f"generation: the vocabulary needs {answers.head.stop} ids, the model has {rows}"
        )
    context = model.config.max_position_embeddings
    for index, (prompt, limit, seed) in enumerate(zip(prompts, limits, seeds, strict=True)):
        if np.ndim(prompt) != 1 or len(prompt) == 0 or np.min(prompt) < 0 or np.max(prompt) >= rows:
            raise InputError(
                f"generation: prompt {index} must be a non-empty row of ids below {rows}"
            )
        if limit < 1 or len(prompt) + limit > context:
            raise InputError(
                f"generation: prompt {index} has {len(prompt)} tokens and may answer {limit}:"
                f" expected at least 1 and together at most the context of {context}"
            )
        if not fits(seed, int | np.integer) or seed < 0:
            raise InputError(
                f"generation: seed {seed!r} of prompt {index} must be an integer of at least 0"
            )


class Loop:
    """State of one generation; every array has the slot as its first axis.

    prefilled: prompt tokens computed; recomputed: draws that a row decided alone.
    """

    def __init__(self, model, prompts, limits, seeds, sampling, answers, slots, hidden) -> None:
        self.prompts = [np.ascontiguousarray(prompt, dtype=np.int32) for prompt in prompts]
        self.limits, self.seeds = limits, seeds
        self.hidden = hidden if hidden is not None else [()] * len(prompts)
        # Longest first, so that the last rows to run are short ones; equal prompts next to each
        # other.
        first_of: dict[bytes, int] = {}
        key = [first_of.setdefault(prompt.tobytes(), i) for i, prompt in enumerate(self.prompts)]
        self.same = key
        self.queue = sorted(
            range(len(prompts)), key=lambda i: (-limits[i], key[i], i), reverse=True
        )
        capacity = max(
            len(prompt) + limit for prompt, limit in zip(self.prompts, limits, strict=True)
        )
        self._make_room(model, answers, sampling, min(slots, len(prompts)), capacity, max(limits))

    def _make_room(self, model, answers, sampling, slots, capacity, longest) -> None:
        """The empty state of `slots` rows of `capacity` tokens, at most `longest` of them drawn."""
        self.model, self.body = model, model.get_decoder()
        # transformers renames the argument: `past_key_values` until 5.22 or so, then `cache`
        names = inspect.signature(self.body.forward).parameters
        self.cache_argument = "cache" if "cache" in names else "past_key_values"
        self.sampling, self.answers, self.slots = sampling, answers, slots
        # A prefill for each single free slot would cost more than it gains
        self.refill_at = max(1, self.slots // 4)
        self.weight = model.get_output_embeddings().weight[answers.head]  # (V, H)
        self.head = product(self.weight, slots)
        self.device = self.weight.device
        self.end = answers.end - answers.head.start
        allowed = torch.zeros(self.weight.shape[0], dtype=torch.bool, device=self.device)
        allowed[answers.first - answers.head.start : answers.stop - answers.head.start] = True
        allowed[self.end] = True
        self.forbidden = (~allowed).nonzero().squeeze(-1)
        self.cache = SlotCache(model, self.slots, capacity)
        self.live = self.prefilled = self.recomputed = 0
        self.error = ROUNDING if self.weight.dtype == torch.float32 else 0.0
        self.penalty = sampling.repetition_penalty
        self.error *= max(self.penalty, 1 / self.penalty)
        # Which answers the prompt or the answer of a slot holds already
        width = len(self.weight) if self.penalty != 1 else 0
        self.repeated = torch.zeros(self.slots, width, dtype=torch.bool, device=self.device)
        self.request, self.length, self.steps, self.limit = (
            np.zeros(self.slots, np.int64) for _ in range(4)
        )
        self.token = torch.zeros(self.slots, dtype=torch.long, device=self.device)
        self.log_prob = torch.zeros(self.slots, dtype=torch.float64, device=self.device)
        self.output = torch.zeros(self.slots, longest, dtype=torch.long, device=self.device)
        self.uniform = torch.zeros(self.slots, longest, dtype=torch.float64, device=self.device)
        self.visible = torch.zeros(self.slots, capacity, dtype=torch.bool, device=self.device)

    def run(self) -> Iterator[tuple[int, Row]]:
        while self.live or self.queue:
            if self.queue and (self.live == 0 or self.slots - self.live >= self.refill_at):
                self.admit()
            yield from self.release(self.step())

    @torch.inference_mode()
    def admit(self) -> None:
        """Fill the free slots; all of each prompt but its last token, which the next step feeds,
        goes to the cache.
        """
        count = min(self.slots - self.live, len(self.queue))
        indices = [self.queue.pop() for _ in range(count)]
        slots = slice(self.live, self.live + count)
        self.visible[slots] = False
        running = {self.same[int(self.request[slot])]: slot for slot in range(self.live)}
        wanted = dict.fromkeys(self.same[index] for index in indices)
        if fresh := [key for key in wanted if key not in running]:
            self._prefill(fresh, indices, running)
        for slot, index in enumerate(indices, start=self.live):
            origin, length = running[self.same[index]], len(self.prompts[index]) - 1
            if origin != slot and length:
                self.cache.move(origin, slot, length)
                self.visible[slot, :length] = self.visible[origin, :length]
        for slot, index in enumerate(indices, start=self.live):
            limit = self.limits[index]
            self.request[slot], self.limit[slot], self.steps[slot] = index, limit, 0
            self.length[slot] = len(self.prompts[index]) - 1
            self.token[slot] = int(self.prompts[index][-1])
            noise = row_noise(int(self.seeds[index]), self.prompts[index], limit)
            self.uniform[slot, :limit] = torch.from_numpy(noise).to(self.device)
            if self.penalty != 1:
                said = self.prompts[index] - self.answers.head.start
                said = said[(said >= 0) & (said < len(self.weight))].astype(np.int64)
                self.repeated[slot] = False
                self.repeated[slot, torch.from_numpy(said).to(self.device)] = True
        self.log_prob[slots] = 0
        self.live += count

    def _prefill(self, fresh: list, indices: list[int], running: dict) -> None:
        """Compute the prompts `fresh`, each into the first slot that will hold it, which is noted
        in `running`.
        """
        holder = {}
        for slot, index in reversed(list(enumerate(indices, start=self.live))):
            if self.same[index] in fresh:
                running[self.same[index]], holder[self.same[index]] = slot, index
        lengths = np.array([len(self.prompts[holder[key]]) - 1 for key in fresh])
        width = int(lengths.max())
        self.prefilled += int(lengths.sum())
        if not width:
            return
        ids = np.zeros((len(fresh), width), np.int64)
        seen = np.zeros((len(fresh), width), bool)
        for row, index in enumerate(holder[key] for key in fresh):
            ids[row, : lengths[row]] = self.prompts[index][:-1]
            seen[row, : lengths[row]] = True
            seen[row, [position for position in self.hidden[index] if position < lengths[row]]] = (
                False
            )
        shown = torch.from_numpy(seen).to(self.device)
        target = torch.tensor([running[key] for key in fresh], device=self.device)
        self.visible[target, :width] = shown
        self.cache.prefill(target)
        causal = torch.ones(width, width, dtype=torch.bool, device=self.device).tril()
        # A padded query sees at least itself: a row without any key would be NaN in some kernels.
        itself = torch.eye(width, dtype=torch.bool, device=self.device)
        self.body(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=(causal & shown[:, None, None, :]) | itself,
            position_ids=torch.arange(width, device=self.device).expand(len(fresh), -1),
            use_cache=True,
            **{self.cache_argument: self.cache},
        )

    @torch.inference_mode()
    def step(self) -> np.ndarray:
        """One token for every live slot; returns the slots (ascending) that are finished by it."""
        live, rows = self.live, torch.arange(self.live, device=self.device)
        position = torch.from_numpy(self.length[:live]).to(self.device)
        seen = int(self.length[:live].max()) + 1
        self.visible[rows, position] = True
        self.cache.step(live, (rows, position), seen)
        # (B, H)
        state = self.body(
            input_ids=self.token[:live, None],
            attention_mask=self.visible[:live, None, None, :seen],
            position_ids=position[:, None],
            use_cache=True,
            **{self.cache_argument: self.cache},
        ).last_hidden_state[:, 0]
        logits = self._allowed(self.head(state), self.steps[:live])  # (B, V)
        now = torch.from_numpy(self.steps[:live]).to(self.device)
        uniform = self.uniform[rows, now]
        drawn_from = self._penalised(logits, self.repeated[:live])
        column, doubt = self._draw(drawn_from, uniform)
        for slot in doubt.nonzero().flatten().tolist() if self.error else ():
            column[slot] = self._alone(slot, uniform[slot : slot + 1])
        peak, drawn = logits.amax(dim=-1), logits[rows, column]
        # In place: these are the widest tensors there are
        mass = logits.sub_(peak.unsqueeze(-1)).exp_().sum(dim=-1)
        self.log_prob[:live] += (drawn - peak - mass.log()).double()
        self.token[:live] = column + self.answers.head.start
        self.output[rows, now] = self.token[:live]
        if self.penalty != 1:
            self.repeated[rows, column] = True
        self.length[:live] += 1
        self.steps[:live] += 1
        ended = (column == self.end).cpu().numpy()
        return np.flatnonzero(ended | (self.steps[:live] >= self.limit[:live]))

    def _draw(
        self, logits: torch.Tensor, uniform: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns and doubts (B,) of the live rows, as `draw_with_doubt`."""
        return draw_with_doubt(logits, uniform, self.sampling, self.error)

    def _sampling(self, slot: int) -> Sampling:
        return self.sampling

    def _allowed(self, logits: torch.Tensor, steps: np.ndarray) -> torch.Tensor:
        """Logits (B, V) in float32, -inf for what may not be answered after `steps` (B,) tokens."""
        logits = logits.float()
        logits.index_fill_(1, self.forbidden, -torch.inf)
        early = steps < self.sampling.min_codes
        if early.any():
            logits[torch.from_numpy(early).to(self.device), self.end] = -torch.inf
        return logits

    def _penalised(self, logits: torch.Tensor, repeated: torch.Tensor) -> torch.Tensor:
        return logits if self.penalty == 1 else penalised(logits, repeated, self.penalty)

    def _alone(self, slot: int, uniform: torch.Tensor) -> torch.Tensor:
        """The column (1,) that a row draws when nothing but its own tokens is computed, without a
        cache.
        """
        index, steps = int(self.request[slot]), int(self.steps[slot])
        prompt = torch.from_numpy(self.prompts[index].astype(np.int64)).to(self.device)
        ids = torch.cat([prompt, self.output[slot, :steps]])
        length = len(ids)
        mask = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        mask[:, [position for position in self.hidden[index] if position < len(prompt) - 1]] = False
        mask |= torch.eye(length, dtype=torch.bool, device=self.device)
        with as_they_lie(self.body):  # whatever the batch: packed weights round differently
            state = self.body(
                input_ids=ids[None], attention_mask=mask[None, None], use_cache=False
            ).last_hidden_state[:, -1]
        self.recomputed += 1
        logits = torch.nn.functional.linear(state, self.weight)
        logits = self._allowed(logits, self.steps[slot : slot + 1])
        logits = self._penalised(logits, self.repeated[slot : slot + 1])
        return draw(logits, uniform, self._sampling(slot))

    @torch.inference_mode()
    def release(self, finished: np.ndarray) -> list[tuple[int, Row]]:
        """Take the finished rows out, with what they answered."""
        done = []
        for slot in finished.tolist():
            ids = self.output[slot, : self.steps[slot]].cpu().numpy().copy()
            ended = bool(ids[-1] == self.answers.end)
            row = Row(
                ids[:-1] if ended else ids,
                "end" if ended else "length",
                float(self.log_prob[slot]),
                len(ids),
            )
            done.append((int(self.request[slot]), row))
        self.free(finished)
        return done

    @torch.inference_mode()
    def free(self, slots: np.ndarray) -> None:
        """Take rows out, by their slots (ascending), and close the gaps with the last live rows."""
        for slot in slots[::-1].tolist():
            self.live -= 1
            if slot != self.live:
                self.cache.move(self.live, slot, int(self.length[self.live]))
                for state in (self.request, self.length, self.steps, self.limit):
                    state[slot] = state[self.live]
                for state in (self.token, self.log_prob, self.output, self.uniform):
                    state[slot] = state[self.live]
                for state in (self.visible, self.repeated):
                    state[slot] = state[self.live]


class Drawing:
    """One row that is drawn only as far as it is asked for; use inside `generating(model)`."""

    def __init__(self, model: torch.nn.Module, asked: Asked, answers: Answers) -> None:
        row = ([asked.prompt], [asked.limit], [asked.seed])
        self._loop = Loop(model, *row, asked.sampling, answers, 1, [asked.hidden])
        self._loop.admit()
        self._finished: Row | None = None

    def take(self, count: int) -> Row:
        """The row as soon as it has `count` ids or is finished."""
        loop = self._loop
        while self._finished is None and loop.steps[0] < count:
            if len(finished := loop.step()):
                ((_, self._finished),) = loop.release(finished)
        if self._finished is not None:
            return self._finished
        drawn = int(loop.steps[0])
        ids = loop.output[0, :drawn].cpu().numpy().copy()
        return Row(ids, "", float(loop.log_prob[0]), drawn)


@dataclass(frozen=True)
class Generated:
    """Codes int32 (L,) of one utterance; `reason` is "end", or "length" where the limit stopped it.

    log_prob: natural log of the probability of the tokens, END included, under the model at
    temperature 1 restricted to codes and END. steps: tokens generated, END included.
    """

    codes: np.ndarray
    ended: bool
    reason: str
    log_prob: float
    steps: int
