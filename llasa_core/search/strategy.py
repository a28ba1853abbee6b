"""Input and output of a search: verifier, strategy, rule of choice and chosen candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llasa_core.errors import InputError, above, at_least, check_fields
from llasa_core.manifest import Request

if TYPE_CHECKING:
    from llasa_core.search.cost import Cost
    from llasa_core.synthesis.guards import Spoken

Verifier = Callable[[np.ndarray, Request], float]

GUIDED = ("prm", "partial-prm")  # strategies that score partial audio

STRATEGIES = ("best-of-n", *GUIDED)

RULES = ("first", "sum")


@dataclass(frozen=True)
class Strategy:
    """How candidates are made.

    best-of-n: `candidates` whole utterances by plain sampling. prm: beam search over prefixes.
    Every `step_codes` codes each of `beams` beams is continued `expansions` times and the verifier
    `guide` keeps the best `beams` of all; until all have ended. partial-prm: prm for the first
    `prefix_seconds`, then `candidates` whole utterances sampled from the beams. What is finished is
    scored by `final` verifiers (none named: for prm the guide, else all) and chosen by a Rule.
    context_codes: partial audio is decoded from so many codes before the new ones, and the rest of
    a wave is kept from the step before; 0 decodes each prefix whole, which costs little at 2 s and
    does not depend on the steps. Paper: 25 codes, 16 expansions, 16 beams, 2 s.
    """

    name: str = "best-of-n"
    candidates: int = 16
    beams: int = 4
    expansions: int = 4
    step_codes: int = 25
    prefix_seconds: float = 2.0
    context_codes: int = 0
    guide: str = "voice"
    final: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in STRATEGIES:
            raise InputError(f"strategy {self.name!r} is unknown, expected {', '.join(STRATEGIES)}")
        counts = dict.fromkeys(("candidates", "beams", "expansions", "step_codes"), at_least(1))
        bounds = {"context_codes": at_least(0), "prefix_seconds": above(0)}
        check_fields(self, self.name, **counts, **bounds)

    @property
    def guided(self) -> bool:
        """Whether partial audio is scored."""
        return self.name in GUIDED

    def finals(self, names: Sequence[str]) -> tuple[str, ...]:
        """The verifiers that score whole utterances, of those that there are."""
        return self.final or ((self.guide,) if self.name == "prm" else tuple(names))


@dataclass(frozen=True)
class Rule:
    """How scores (N, V) decide: "sum" adds the verifiers, each times its weight (1 if not given);
    "first" takes the best by the first verifier, and the others, in order, only break ties (the
    paper's unions, words first)."""

    name: str = "first"
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise InputError(f"rule {self.name!r} is unknown, expected {' or '.join(RULES)}")
        if self.weights and self.name != "sum":
            raise InputError("weights belong to the rule sum")

    def best(self, scores: np.ndarray, names: Sequence[str]) -> int:
        """Row of the best candidate; ties go to the lower number, for a stable order."""
        keys = scores
        if self.name == "sum":
            keys = scores @ np.array([[(self.weights or {}).get(name, 1.0)] for name in names])
        return max(range(len(keys)), key=lambda row: (*keys[row], -row))


@dataclass(frozen=True)
class Chosen:
    """The chosen candidate of one request.

    scores: float64 (N, V) of all whole candidates, columns in the order of `verifiers`; tokens:
    (N,) drawn for each, END included; seeds and codes (F,): of the candidates of best-of-n, so
    that any of them can be heard again; () after a guided search, whose candidates share their
    beginnings. In bf16 a seed alone does not bring a candidate back, its codes do. request:
    as it was given; spoken.request has the chosen seed.
    """

    request: Request
    spoken: Spoken
    index: int
    verifiers: tuple[str, ...]
    scores: np.ndarray
    tokens: tuple[int, ...]
    seeds: tuple[int, ...]
    cost: Cost
    codes: tuple[np.ndarray, ...] = ()


def scored(
    wave: np.ndarray,
    request: Request,
    names: Sequence[str],
    verifiers: Mapping[str, Verifier],
    cost: Cost,
    number: int,
) -> list[float]:
    """Scores of a wave by the named verifiers, timed into the cost; InputError if not finite."""
    values = []
    for name in names:
        with cost.verifying(name):
            values.append(float(verifiers[name](wave, request)))
        if not math.isfinite(values[-1]):
            raise InputError(
                f"verifier {name}: scored candidate {number} of {request.id} {values[-1]}"
            )
    cost.scored += len(values)
    return values
