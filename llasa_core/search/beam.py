"""Beam search over partial utterances, pruned by a verifier on the audio so far.

Beams are forked in the cache (`branches`), never computed again. A prefix is decoded whole unless a
context is given: the decoder is not causal, and the audio of a prefix is then a function of its
codes alone. An utterance that ends early keeps its place among the beams as long as its score does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llasa_core.manifest import Request
from llasa_core.search.branches import Branches
from llasa_core.search.cost import Clock, Cost, generation_flops
from llasa_core.search.strategy import Chosen, Rule, Strategy, Verifier, scored
from llasa_core.synthesis.decoding import Generated, Row, generating
from llasa_core.synthesis.guards import Spoken
from llasa_core.synthesis.sampling import Sampling, candidate_seed
from llasa_core.synthesis.synthesizer import Synthesizer


@dataclass
class Hypothesis:
    """A beam: `row` of the cache while spoken, `answer` once ended; its score and audio so far."""

    row: int
    score: float
    wave: np.ndarray
    answer: Row | None = None


def guided_search(
    synthesizer: Synthesizer,
    requests: Sequence[Request],
    strategy: Strategy,
    verifiers: Mapping[str, Verifier],
    sampling: Sampling,
    rule: Rule,
) -> Iterator[Chosen]:
    """`search` for prm and partial-prm; requests run together as far as the slots hold."""
    prompts, limits = synthesizer.prepare(requests, sampling)
    width = max(
        strategy.beams * strategy.expansions,
        strategy.candidates if strategy.name == "partial-prm" else 0,
    )
    together = max(1, synthesizer.slots // width)
    # Equal lengths end together
    order = sorted(range(len(requests)), key=lambda index: (-limits[index], index))

    def run() -> Iterator[Chosen]:
        for start in range(0, len(order), together):
            group = order[start : start + together]
            search = _Group(
                synthesizer,
                [requests[i] for i in group],
                [prompts[i] for i in group],
                [limits[i] for i in group],
                strategy,
                verifiers,
                sampling,
                width,
            )
            yield from search.run(rule)

    return run()


class _Group:
    """The requests that share one cache."""

    def __init__(
        self, synthesizer, requests, prompts, limits, strategy, verifiers, sampling, width
    ) -> None:
        self.synthesizer, self.requests, self.prompts = synthesizer, requests, prompts
        self.strategy, self.verifiers = strategy, verifiers
        self.clock, self.costs = Clock(), [Cost() for _ in requests]
        self.branches = Branches(
            synthesizer.model,
            prompts,
            limits,
            [
                [candidate_seed(request.seed, stream) for stream in range(width)]
                for request in requests
            ],
            sampling,
            synthesizer.speech_answers,
            synthesizer.hidden(prompts),
        )
        self.streams = width
        self.beams: list[list[Hypothesis]] = [[] for _ in requests]
        self.prefix = round(strategy.prefix_seconds * synthesizer.codec.frame_rate)
        if strategy.name == "prm":
            self.prefix = max(limits)

    def run(self, rule: Rule) -> list[Chosen]:
        strategy, branches = self.strategy, self.branches
        waves: dict[int, np.ndarray] = {}  # of the live rows at the last fork
        with generating(self.synthesizer.model):
            branches.start(strategy.beams * strategy.expansions)
            for length in range(
                strategy.step_codes, self.prefix + strategy.step_codes, strategy.step_codes
            ):
                length = min(length, self.prefix)
                finished = branches.advance(length)
                self.prune(finished, branches.partial(), waves)
                if length == self.prefix or not branches.live:
                    break
                waves = self.expand(strategy.expansions)
                if not branches.live:
                    break
            ended = [
                [beam.answer for beam in beams if beam.answer is not None] for beams in self.beams
            ]
            if strategy.name == "partial-prm":
                self.resample()
                for row, answer in sorted(branches.advance(), key=lambda item: item[0]):
                    ended[row // self.streams].append(answer)
        for r, cost in enumerate(self.costs):
            flops = generation_flops(self.synthesizer.model.config, self.synthesizer.speech_answers)
            drawn, attended = int(branches.generated[r]), int(branches.attended[r])
            cost.generated_tokens, cost.prompt_tokens = drawn, len(self.prompts[r])
            cost.model_flops = flops(len(self.prompts[r]) - 1, drawn, attended)
        chosen = [self.choose(r, answers, rule) for r, answers in enumerate(ended)]
        cpu, wall = self.clock.lap()
        share = branches.generated / branches.generated.sum()
        for cost, part in zip(self.costs, share.tolist(), strict=True):
            cost.cpu_seconds, cost.wall_seconds = part * cpu, part * wall
        return chosen

    def prune(
        self, finished: list[tuple[int, Row]], partial: Mapping[int, np.ndarray], waves
    ) -> None:
        """Score what is new and keep the best beams of each request; ties go to the earlier row."""
        rows = {row: answer.ids for row, answer in finished} | partial
        heard = self.hear(rows, waves)
        answers = dict(finished)
        pools = [[beam for beam in beams if beam.answer is not None] for beams in self.beams]
        for row in sorted(rows):
            r, names = row // self.streams, (self.strategy.guide,)
            (score,) = scored(
                heard[row],
                self.requests[r],
                names,
                self.verifiers,
                self.costs[r],
                row % self.streams,
            )
            pools[r].append(Hypothesis(row, score, heard[row], answers.get(row)))
        # Python's sort is stable: of equal scores the one that is there longer stays.
        self.beams = [
            sorted(pool, key=lambda beam: -beam.score)[: self.strategy.beams] for pool in pools
        ]

    def expand(self, expansions: int) -> dict[int, np.ndarray]:
        """Each live beam becomes `expansions` rows; returns each row's parent's audio."""
        children, waves = [], {}
        for r, beams in enumerate(self.beams):
            for b, beam in enumerate(beams):
                for c in range(expansions if beam.answer is None else 0):
                    row = r * self.streams + b * expansions + c
                    children.append((row, beam.row))
                    waves[row] = beam.wave
        self.branches.fork(children)
        return waves

    def resample(self) -> None:
        """`candidates` rows from the beams that have not ended, in turn, the best beam first."""
        children = []
        for r, beams in enumerate(self.beams):
            live = [beam.row for beam in beams if beam.answer is None]
            if live:
                for j in range(self.strategy.candidates):
                    children.append((r * self.streams + j, live[j % len(live)]))
        self.branches.fork(children)

    def hear(
        self, rows: Mapping[int, np.ndarray], waves: Mapping[int, np.ndarray]
    ) -> dict[int, np.ndarray]:
        """Audio of the ids (L,) of rows; `waves` holds what each row's parent sounded like."""
        synthesizer, context = self.synthesizer, self.strategy.context_codes
        pieces, cuts = [], []
        for row, ids in rows.items():
            r = row // self.streams
            codes = self.voiced(r, synthesizer.vocabulary.ids_to_codes(ids))
            known = len(waves.get(row, ())) // synthesizer.hop if context else 0
            before = len(codes) - len(ids) + known
            start = max(0, before - context) if known else 0
            pieces.append(codes[start:])
            cuts.append((before - start) * synthesizer.hop)
            self.costs[r].audio_seconds += len(pieces[-1]) / synthesizer.codec.frame_rate
        heard = {}
        for row, wave, cut in zip(rows, synthesizer.codec.decode(pieces), cuts, strict=True):
            heard[row] = (
                np.concatenate([waves[row], wave[cut:]]) if context and row in waves else wave[cut:]
            )
        return heard

    def voiced(self, r: int, codes: np.ndarray) -> np.ndarray:
        """Codes with those of the request's voice prompt before them."""
        voice = self.requests[r].voice
        return (
            codes if voice is None else np.concatenate([np.asarray(voice.codes, np.int32), codes])
        )

    def choose(self, r: int, answers: list[Row], rule: Rule) -> Chosen:
        """Decode all whole utterances of a request, score them, take the best."""
        synthesizer, request, cost = self.synthesizer, self.requests[r], self.costs[r]
        codes = [synthesizer.vocabulary.ids_to_codes(answer.ids) for answer in answers]
        whole = synthesizer.codec.decode([self.voiced(r, row) for row in codes])
        voice = 0 if request.voice is None else len(request.voice.codes)
        waves = [wave[voice * synthesizer.hop :] for wave in whole]
        names = self.strategy.finals(tuple(self.verifiers))
        scores = np.array(
            [scored(wave, request, names, self.verifiers, cost, i) for i, wave in enumerate(waves)]
        )
        cost.candidates = len(answers)
        cost.audio_seconds += sum(len(wave) for wave in whole) / synthesizer.codec.sample_rate
        best = rule.best(scores, names)
        answer = answers[best]
        generated = Generated(
            codes[best], answer.reason == "end", answer.reason, answer.log_prob, answer.steps
        )
        spoken = Spoken(request, waves[best], generated, len(self.prompts[r]))
        return Chosen(
            request,
            spoken,
            best,
            names,
            scores,
            tuple(answer.steps for answer in answers),
            (),
            cost,
        )
