"""Inference-time search: many candidates for one text, one chosen by verifiers, and what that cost.

Best-of-N is the paper's ORM (arXiv 2502.04128, section on inference-time scaling): N whole utterances, the best
scored one. A verifier maps (wave float32 (T,), request) to a number, higher is better; it must not be the judge that
the result is reported with.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llasa_core.errors import InputError
from llasa_core.sampling import Sampling
from llasa_core.speech_requests import Request
from llasa_core.synthesize import Spoken, Synthesizer

Verifier = Callable[[np.ndarray, Request], float]


@dataclass
class Cost:
    """What a search spent. Tokens are counted a candidate: prompts once for each, although equal ones share a prefill.

    wall_seconds holds everything; verifier_seconds is the part of the verifiers.
    """

    candidates: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    audio_seconds: float = 0.0
    verifier_seconds: float = 0.0
    wall_seconds: float = 0.0


@dataclass(frozen=True)
class Chosen:
    """The chosen candidate of one request: its audio, its number, and every candidate's scores.

    scores: float64 (N, V), columns in the order of the verifiers; totals: (N,) their weighted sum; seeds: of the
    candidates, so that any of them can be spoken again.
    """

    spoken: Spoken
    index: int
    scores: np.ndarray
    totals: np.ndarray
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class SearchResult:
    """Chosen candidates in the order of the requests, the verifiers' names and the cost."""

    chosen: list[Chosen]
    verifiers: tuple[str, ...]
    cost: Cost = field(default_factory=Cost)


def candidate_seed(seed: int, index: int) -> int:
    """Seed of candidate `index`: candidate 0 is plain sampling with the request's own seed, the others are hashed.

    Hashed, because seed + index would share candidates between neighbouring seeds.
    """
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:7], "big")


def best_of_n(
    synthesizer: Synthesizer,
    requests: Sequence[Request],
    n: int,
    verifiers: Mapping[str, Verifier],
    sampling: Sampling | None = None,
    weights: Mapping[str, float] | None = None,
    progress: Callable[[int], None] | None = None,
) -> SearchResult:
    """Speak every request `n` times and keep the candidate with the largest weighted sum of verifier scores.

    Equal sums: the lower number wins, so the choice does not depend on the order in which candidates finish. Only
    the best audio so far is held. weights: 1 for every verifier where not given. `progress` is called with 1 a
    candidate. Raises InputError for n below 1, no verifier, a weight without verifier, a score that is not finite, and
    greedy sampling with n above 1 (all candidates would be the same).
    """
    sampling, weights = sampling or Sampling(), dict(weights or {})
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"best-of-n: n must be an integer of at least 1, got {n!r}")
    if not verifiers:
        raise InputError("best-of-n: at least one verifier is needed")
    if unknown := sorted(set(weights) - set(verifiers)):
        raise InputError(f"best-of-n: a weight for {unknown[0]!r}, but the verifiers are {', '.join(verifiers)}")
    if sampling.temperature == 0 and n > 1:
        raise InputError("best-of-n: temperature 0 makes all candidates the same")
    names = tuple(verifiers)
    weight = np.array([weights.get(name, 1.0) for name in names], dtype=np.float64)
    seeds = [tuple(candidate_seed(request.seed, index) for index in range(n)) for request in requests]
    scores = np.full((len(requests), n, len(names)), np.nan)
    kept: list[tuple[float, int, Spoken] | None] = [None] * len(requests)
    cost, started = Cost(), time.perf_counter()

    # The candidate is known by object, not by id and seed: two requests may be equal.
    candidates = [replace(request, seed=seeds[r][i]) for r, request in enumerate(requests) for i in range(n)]
    number = {id(candidate): place for place, candidate in enumerate(candidates)}
    for spoken in synthesizer.speak(candidates, sampling):
        row, index = divmod(number[id(spoken.request)], n)
        before = time.perf_counter()
        for column, name in enumerate(names):
            score = float(verifiers[name](spoken.wave, requests[row]))
            if not math.isfinite(score):
                raise InputError(f"verifier {name}: scored candidate {index} of {requests[row].id} {score}")
            scores[row, index, column] = score
        cost.verifier_seconds += time.perf_counter() - before
        cost.candidates += 1
        cost.generated_tokens += spoken.generated.steps
        cost.prompt_tokens += spoken.prompt_tokens
        cost.audio_seconds += len(spoken.wave) / synthesizer.codec.sample_rate
        total = float(scores[row, index] @ weight)
        best = kept[row]
        if best is None or (total, -index) > (best[0], -best[1]):
            kept[row] = (total, index, spoken)
        if progress:
            progress(1)
    cost.wall_seconds = time.perf_counter() - started
    chosen = [
        Chosen(spoken, index, scores[row], scores[row] @ weight, seeds[row])
        for row, (_, index, spoken) in enumerate(kept)
    ]
    return SearchResult(chosen, names, cost)
