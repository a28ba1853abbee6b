"""What a search spends: tokens, FLOPs of the language model, and the seconds of everything.

FLOPs are the arithmetic that is needed, two a multiplication with a weight: padding is not counted,
nor are codec and verifiers, whose share is seen in the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields

from llasa_core.synthesis.decoding import Answers


@dataclass
class Cost:
    """Sums; `a + b` adds every field, a dict by its keys.

    candidates: whole utterances that were scored. generated_tokens: drawn by all rows, dropped ones
    and END included. prompt_tokens: computed once a request, all its samples share them.
    model_flops: see `generation_flops`. audio_seconds: decoded by the codec, partial audio
    included. scored: calls of verifiers. verifier_cpu_by: the part of verifier_cpu_seconds that
    each verifier took, by its name; {} in what was written before it was kept apart. cpu_seconds
    (all threads of the process) and wall_seconds hold everything. Requests run side by side, so
    that only their sums are exact: a request of best-of-n gets what passed since the one before it
    was finished, requests that are guided together share by tokens.
    """

    candidates: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    model_flops: float = 0.0
    audio_seconds: float = 0.0
    scored: int = 0
    verifier_seconds: float = 0.0
    verifier_cpu_seconds: float = 0.0
    verifier_cpu_by: dict[str, float] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        pairs = {
            one.name: (getattr(self, one.name), getattr(other, one.name)) for one in fields(self)
        }
        mine, others = pairs.pop("verifier_cpu_by")
        by = {name: mine.get(name, 0.0) + others.get(name, 0.0) for name in mine | others}
        return Cost(**{name: a + b for name, (a, b) in pairs.items()}, verifier_cpu_by=by)

    @classmethod
    def total(cls, costs: Sequence[Cost]) -> Cost:
        """The sum of costs; of none: zero."""
        return sum(costs, cls())

    def rounded(self) -> dict:
        """A dict for JSON, seconds to the microsecond."""
        by = {name: round(value, 6) for name, value in self.verifier_cpu_by.items()}
        values = asdict(self) | {"verifier_cpu_by": by}
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in values.items()
        }

    @contextmanager
    def verifying(self, verifier: str):
        """What runs inside is that verifier's."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.verifier_seconds += time.perf_counter() - wall
        spent = time.process_time() - cpu
        self.verifier_cpu_seconds += spent
        self.verifier_cpu_by[verifier] = self.verifier_cpu_by.get(verifier, 0.0) + spent


class Clock:
    """CPU and wall seconds since the clock was made, or since it was last read."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def lap(self) -> tuple[float, float]:
        """(CPU seconds, wall seconds) since the last lap."""
        cpu, wall = time.process_time(), time.perf_counter()
        passed = cpu - self._cpu, wall - self._wall
        self._cpu, self._wall = cpu, wall
        return passed


def generation_flops(config, answers: Answers) -> Callable[[int, int, int], float]:
    """Forward FLOPs of a Llama that generates, as a function of (prompt tokens, tokens drawn, keys
    these looked at).

    A token costs 2 a body weight, and 4 * layers * heads * head width a key it attends to; a drawn
    one besides 2 a weight of the rows of lm_head that may be answered (Kaplan et al. 2020, table 1,
    with the attention kept). The prompt attends to itself causally.
    """
    head_width = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    width, key_value = (
        config.num_attention_heads * head_width,
        config.num_key_value_heads * head_width,
    )
    layer = config.hidden_size * (2 * width + 2 * key_value + 3 * config.intermediate_size)
    body = 2.0 * config.num_hidden_layers * layer
    head = 2.0 * config.hidden_size * (answers.head.stop - answers.head.start)
    key = 4.0 * config.num_hidden_layers * width

    def flops(prompt: int, drawn: int, attended: int) -> float:
        return body * (prompt + drawn) + head * drawn + key * (prompt * (prompt + 1) / 2 + attended)

    return flops


def attended_keys(prompt: int, drawn: int) -> int:
    """Keys attended to while drawing `drawn` tokens after a prompt: prompt, prompt + 1, ..."""
    return drawn * prompt + drawn * (drawn - 1) // 2
