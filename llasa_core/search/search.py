"""Inference-time search: many candidates for one text, one chosen by verifiers, and what that cost.

The paper's strategies (arXiv 2502.04128, section on inference-time scaling), which it never
released: best-of-N (ORM), process-guided beam search (PRM, `guided_search`) and partial PRM. A
verifier maps (wave float32 (T,), request) to a number, higher is better; it must not be the judge
that the result is reported with (`evaluate` refuses that).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from llasa_core.errors import InputError
from llasa_core.manifest import Request
from llasa_core.search.cost import Clock, Cost, attended_keys, generation_flops
from llasa_core.search.strategy import Chosen, Rule, Strategy, Verifier, scored
from llasa_core.synthesis.guards import Spoken
from llasa_core.synthesis.sampling import Sampling, candidate_seed
from llasa_core.synthesis.synthesizer import Synthesizer


def search(
    synthesizer: Synthesizer,
    requests: Sequence[Request],
    strategy: Strategy,
    verifiers: Mapping[str, Verifier],
    sampling: Sampling | None = None,
    rule: Rule | None = None,
) -> Iterator[Chosen]:
    """Choose one utterance for every request; yields as requests finish, in no particular order.

    The call itself checks: InputError for no verifier, a guide, final verifier or weight that is
    none of them, greedy sampling with several candidates (they would be the same), and a score that
    is not finite.
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
            raise InputError(
                f"{strategy.name}: {role} {unknown[0]!r}, but the verifiers are {known}"
            )
    several = strategy.name != "prm" and strategy.candidates > 1
    several |= strategy.guided and strategy.beams * strategy.expansions > 1
    if sampling.temperature == 0 and several:
        raise InputError(f"{strategy.name}: temperature 0 makes all candidates the same")
    if strategy.guided:
        from llasa_core.search.beam import guided_search

        return guided_search(synthesizer, requests, strategy, verifiers, sampling, rule)
    return _best_of_n(synthesizer, requests, strategy, verifiers, sampling, rule)


def _best_of_n(synthesizer, requests, strategy, verifiers, sampling, rule) -> Iterator[Chosen]:
    n, names = strategy.candidates, strategy.finals(tuple(verifiers))
    seeds = [
        tuple(candidate_seed(request.seed, index) for index in range(n)) for request in requests
    ]
    scores = np.full((len(requests), n, len(names)), np.nan)
    tokens = np.zeros((len(requests), n), np.int64)
    codes: list[dict[int, np.ndarray]] = [{} for _ in requests]
    kept: list[Spoken | None] = [None] * len(requests)
    place: list[list[int]] = [[] for _ in requests]  # candidates scored so far, the best one first
    costs, clock = [Cost() for _ in requests], Clock()
    flops = generation_flops(synthesizer.model.config, synthesizer.speech_answers)

    # The candidate is known by object, not by id and seed: two requests may be equal.
    candidates = [
        replace(request, seed=seeds[r][i]) for r, request in enumerate(requests) for i in range(n)
    ]
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
        codes[row][index] = spoken.generated.codes
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
            yield Chosen(
                requests[row],
                best,
                at,
                names,
                scores[row],
                tuple(tokens[row].tolist()),
                seeds[row],
                cost,
                tuple(codes[row].pop(candidate) for candidate in order),
            )
