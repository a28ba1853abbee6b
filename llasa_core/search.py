"""Inference-time search: many candidates for one text, one chosen by verifiers, and what that cost.

The paper's strategies (arXiv 2502.04128, section on inference-time scaling), which it never released: best-of-N (ORM),
process-guided beam search (PRM, `guided_search`) and partial PRM. A verifier maps (wave float32 (T,), request) to a
number, higher is better; it must not be the judge that the result is reported with (`evaluate` refuses that).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llasa_core.errors import InputError
from llasa_core.sampling import Sampling, candidate_seed
from llasa_core.search_cost import Clock, Cost, attended_keys, generation_flops
from llasa_core.speech_requests import Request
from llasa_core.synthesize import Spoken, Synthesizer

Verifier = Callable[[np.ndarray, Request], float]
STRATEGIES = ("best-of-n", "prm", "partial-prm")


@dataclass(frozen=True)
class Strategy:
    """How candidates are made.

    best-of-n: `candidates` whole utterances by plain sampling.
    prm: beam search over prefixes. Every `step_codes` codes each of `beams` beams is continued `expansions` times and
    the verifier `guide` keeps the best `beams` of all; until all have ended.
    partial-prm: prm for the first `prefix_seconds`, then `candidates` whole utterances sampled from the beams.
    What is finished is scored by `final` verifiers (none named: for prm the guide, else all) and chosen by a Rule.
    context_codes: partial audio is decoded from so many codes before the new ones, and the rest of a wave is kept from
    the step before; 0 decodes each prefix whole, which costs little at 2 s and does not depend on the steps.
    Paper: 25 codes, 16 expansions, 16 beams, 2 s.
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
        for field, least in (
            ("candidates", 1),
            ("beams", 1),
            ("expansions", 1),
            ("step_codes", 1),
            ("context_codes", 0),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{self.name}: {field} must be an integer of at least {least}, got {value!r}")
        if not self.prefix_seconds > 0:
            raise InputError(f"{self.name}: prefix_seconds must be above 0, got {self.prefix_seconds!r}")

    @property
    def guided(self) -> bool:
        """Whether partial audio is scored."""
        return self.name != "best-of-n"

    def finals(self, names: Sequence[str]) -> tuple[str, ...]:
        """The verifiers that score whole utterances, of those that there are."""
        return self.final or ((self.guide,) if self.name == "prm" else tuple(names))


@dataclass(frozen=True)
class Rule:
    """How scores (N, V) decide: "sum" adds the verifiers, each times its weight (1 if not given); "first" takes the
    best by the first verifier, and the others, in order, only break ties (the paper's unions, words first)."""

    name: str = "first"
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.name not in ("first", "sum"):
            raise InputError(f"rule {self.name!r} is unknown, expected first or sum")
        if self.weights and self.name != "sum":
            raise InputError("weights belong to the rule sum")

    def best(self, scores: np.ndarray, names: Sequence[str]) -> int:
        """Row of the best candidate; of equal ones the lower number, so the order of finishing does not matter."""
        keys = scores
        if self.name == "sum":
            keys = scores @ np.array([[(self.weights or {}).get(name, 1.0)] for name in names])
        return max(range(len(keys)), key=lambda row: (*keys[row], -row))


@dataclass(frozen=True)
class Chosen:
    """The chosen candidate of one request.

    scores: float64 (N, V) of all whole candidates, columns in the order of `verifiers`; tokens: (N,) drawn for each,
    END included; seeds: of the candidates of best-of-n, so that any of them can be spoken again; () after a guided
    search, whose candidates share their beginnings. request: as it was given; spoken.request has the chosen seed.
    """

    request: Request
    spoken: Spoken
    index: int
    verifiers: tuple[str, ...]
    scores: np.ndarray
    tokens: tuple[int, ...]
    seeds: tuple[int, ...]
    cost: Cost


def search(
    synthesizer: Synthesizer,
    requests: Sequence[Request],
    strategy: Strategy,
    verifiers: Mapping[str, Verifier],
    sampling: Sampling | None = None,
    rule: Rule | None = None,
) -> Iterator[Chosen]:
    """Choose one utterance for every request; yields as requests finish, in no particular order.

    The call itself checks: InputError for no verifier, a guide, final verifier or weight that is none of them, greedy
    sampling with several candidates (they would be the same), and a score that is not finite.
    """
    sampling, rule = sampling or Sampling(), rule or Rule()
    if not verifiers:
        raise InputError(f"{strategy.name}: at least one verifier is needed")
    known = ", ".join(verifiers)
    named = {"final verifier": strategy.final, "weight for": tuple(rule.weights or ())}
    if strategy.guided:
        named["guide"] = (strategy.guide,)
    for role, names in named.items():
        if unknown := sorted(set(names) - set(verifiers)):
            raise InputError(f"{strategy.name}: {role} {unknown[0]!r}, but the verifiers are {known}")
    several = strategy.name != "prm" and strategy.candidates > 1
    several |= strategy.guided and strategy.beams * strategy.expansions > 1
    if sampling.temperature == 0 and several:
        raise InputError(f"{strategy.name}: temperature 0 makes all candidates the same")
    if strategy.guided:
        from llasa_core.guided_search import guided_search

        return guided_search(synthesizer, requests, strategy, verifiers, sampling, rule)
    return _best_of_n(synthesizer, requests, strategy, verifiers, sampling, rule)


def _best_of_n(synthesizer, requests, strategy, verifiers, sampling, rule) -> Iterator[Chosen]:
    n, names = strategy.candidates, strategy.finals(tuple(verifiers))
    seeds = [tuple(candidate_seed(request.seed, index) for index in range(n)) for request in requests]
    scores = np.full((len(requests), n, len(names)), np.nan)
    tokens = np.zeros((len(requests), n), np.int64)
    kept: list[Spoken | None] = [None] * len(requests)
    place: list[list[int]] = [[] for _ in requests]  # candidates scored so far, the best one first
    costs, clock = [Cost() for _ in requests], Clock()
    flops = generation_flops(synthesizer.model.config, synthesizer.speech_answers)

    # The candidate is known by object, not by id and seed: two requests may be equal.
    candidates = [replace(request, seed=seeds[r][i]) for r, request in enumerate(requests) for i in range(n)]
    number = {id(candidate): at for at, candidate in enumerate(candidates)}
    for spoken in synthesizer.speak(candidates, sampling):
        row, index = divmod(number[id(spoken.request)], n)
        cost, request = costs[row], requests[row]
        scores[row, index] = scored(spoken.wave, request, names, verifiers, cost, index)
        tokens[row, index] = drawn = spoken.generated.steps
        cost.candidates += 1
        cost.generated_tokens += drawn
        cost.audio_seconds += len(spoken.wave) / synthesizer.codec.sample_rate
        cost.model_flops += flops(0, drawn, attended_keys(spoken.prompt_tokens, drawn))
        place[row].append(index)
        order = sorted(place[row])
        if order[rule.best(scores[row][order], names)] == index:
            kept[row] = spoken
        if len(order) == n:
            cost.prompt_tokens += spoken.prompt_tokens
            cost.model_flops += flops(spoken.prompt_tokens - 1, 0, 0)
            cost.cpu_seconds, cost.wall_seconds = clock.lap()
            best = kept[row]
            at = number[id(best.request)] % n
            kept[row] = None
            yield Chosen(requests[row], best, at, names, scores[row], tuple(tokens[row].tolist()), seeds[row], cost)


def scored(
    wave: np.ndarray, request: Request, names: Sequence[str], verifiers: Mapping[str, Verifier], cost: Cost, number: int
) -> list[float]:
    """Scores of one wave by the named verifiers, whose time is added to the cost; InputError for one not finite."""
    values = []
    for name in names:
        with cost.verifying(name):
            values.append(float(verifiers[name](wave, request)))
        if not math.isfinite(values[-1]):
            raise InputError(f"verifier {name}: scored candidate {number} of {request.id} {values[-1]}")
    cost.scored += len(values)
    return values
