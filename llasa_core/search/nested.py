"""A study of search strategies: what each one chooses, what it costs, and what held-out judges say
of it.

One best-of-N search holds every smaller one: its first n candidates, chosen by some of its
verifiers. An arm of the study is {"n": candidates, "by": verifiers in the order in which they
decide}; without verifiers it is plain sampling. Several seeds of one text are no independent
utterances: intervals are bootstrapped over texts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from llasa_core import intervals
from llasa_core.errors import InputError
from llasa_core.files import read_rows, write_rows
from llasa_core.intervals import CLUSTER
from llasa_core.judges.identity import CHOSEN_BY
from llasa_core.manifest import Request
from llasa_core.prompts import Voice
from llasa_core.search.cost import attended_keys, generation_flops
from llasa_core.search.strategy import Rule
from llasa_core.search.verifiers import VERIFIERS
from llasa_core.synthesis.batch import synthesize_manifest
from llasa_core.synthesis.decoding import Answers, Row
from llasa_core.synthesis.sampling import Sampling, candidate_seed
from llasa_core.synthesis.synthesizer import Synthesizer

# What a row of an arm keeps of what its judges said
JUDGED = ("seconds", "errors", "words", "similarity", "ended", "speaker", "nearest_speaker")


def requests_of(
    utterances: Sequence, seeds: Sequence[int], voices: Mapping[str, Voice] | None = None
) -> list[Request]:
    """A request an utterance and seed, id ID.sSEED, with the voice prompt of its speaker where
    there are `voices`. `speaker` stays for the verifiers.
    """
    return [
        Request(
            f"{item.id}.s{seed}",
            item.text,
            item.speaker or None,
            voices[item.speaker] if voices else None,
            seed,
            item.language,
        )
        for seed in seeds
        for item in utterances
    ]


def nested_choice(line: Mapping, n: int, by: Sequence[str]) -> int:
    """The one of the first n candidates that the verifiers `by` choose, the first deciding."""
    if n > len(line["tokens"]):
        raise InputError(f"{line['id']}: {len(line['tokens'])} candidates, expected at least {n}")
    if missing := [name for name in by if name not in line["scores"]]:
        raise InputError(
            f"{line['id']}: no scores by {missing[0]!r}, there are {', '.join(line['scores'])}"
        )
    return Rule().best(np.array([line["scores"][name][:n] for name in by]).T, by) if by else 0


class KeptCandidates:
    """An engine of a Synthesizer that gives back the candidates that a search has drawn."""

    name = "kept candidates"

    def __init__(
        self,
        synthesizer: Synthesizer,
        requests: Mapping[str, Request],
        drawn: Mapping[str, tuple[Sequence[int], int]],
        sampling: Sampling,
    ) -> None:
        """drawn: codes (F,) and tokens, END included, of each request by its id."""
        prompts, _ = synthesizer.prepare(list(requests.values()), sampling)
        self._rows = {}
        for request, prompt in zip(requests.values(), prompts, strict=True):
            codes, tokens = drawn[request.id]
            ids = np.asarray(codes, np.int64) + synthesizer.vocabulary.first_code
            reason = "end" if tokens > len(codes) else "length"
            self._rows[prompt.tobytes(), request.seed] = Row(ids, reason, float("nan"), tokens)

    def decode(
        self,
        prompts: Sequence[np.ndarray],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        answers: Answers,
    ) -> Iterator[tuple[int, Row]]:
        """(index of the prompt, its Row), in order."""
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            yield index, self._rows[prompt.tobytes(), seed]


def speak_choices(
    synthesizer: Synthesizer,
    wanted: Sequence[tuple[Request, Mapping]],
    lines: Mapping[str, Mapping],
    out: str | Path,
    sampling: Sampling,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Speak every candidate that some arm chose, once; returns a manifest to evaluate, ids
    REQUEST.cCANDIDATE.

    wanted: requests with the arms they are asked for; lines: of a best-of-N search, by request id.
    A candidate is decoded from the codes that the search kept; lines without them, of earlier
    searches, are spoken again from their seeds, which is the same in fp32. Their lines carry the
    verifiers, to be refused as judges.
    """
    again, drawn = {}, {}
    for request, arm in wanted:
        index = nested_choice(lines[request.id], arm["n"], arm["by"])
        seed = candidate_seed(request.seed, index)
        again[f"{request.id}.c{index}"] = replace(request, id=f"{request.id}.c{index}", seed=seed)
        if "candidate_codes" in lines[request.id]:
            drawn[f"{request.id}.c{index}"] = (
                lines[request.id]["candidate_codes"][index],
                lines[request.id]["tokens"][index],
            )
    if drawn.keys() == again.keys():
        engine = KeptCandidates(synthesizer, again, drawn, sampling)
        synthesizer = copy.copy(synthesizer)
        synthesizer.engine = engine
    path = synthesize_manifest(synthesizer, list(again.values()), out, sampling, progress)
    origin = {name: name.rpartition(".c")[0] for name in again}
    spoken = []
    for row in read_rows(path):
        line = lines[origin[row["id"]]]
        spoken.append(row | {key: line[key] for key in CHOSEN_BY if key in line})
    return write_rows(Path(out, "choices.jsonl"), spoken)


def nested_rows(
    synthesizer: Synthesizer, arm: Mapping, lines: Sequence[Mapping], judged: Mapping[str, Mapping]
) -> list[dict]:
    """Rows of one arm of a best-of-N search, with its `arm_cost`; judged: scored utterances of
    `speak_choices`, by id.
    """
    rows = []
    for line in lines:
        index = nested_choice(line, arm["n"], arm["by"])
        spent = arm_cost(synthesizer, arm, line)
        rows.append(_row(line, index, judged[f"{line['id']}.c{index}"], spent))
    return rows


def arm_cost(synthesizer: Synthesizer, arm: Mapping, line: Mapping) -> dict[str, float]:
    """tokens, flops and cpu_seconds of one arm of a line of a best-of-N search.

    Tokens and FLOPs are exact. CPU seconds are the line's own, generation shared out by tokens and
    verification by candidates; verifiers that are not the arm's are not counted. Lines written
    before the cost named its verifiers hold the seconds of all together: an arm with some of them
    has no CPU seconds then.
    """
    flops = generation_flops(synthesizer.model.config, synthesizer.speech_answers)
    tokens, cost = line["tokens"][: arm["n"]], line["cost"]
    attended = sum(attended_keys(cost["prompt_tokens"], drawn) for drawn in tokens)
    spent = {
        "tokens": sum(tokens),
        "flops": flops(cost["prompt_tokens"] - 1, sum(tokens), attended),
    }
    listening = _listening(cost, arm["by"], line["scores"])
    if listening is not None:
        drawing = cost["cpu_seconds"] - cost["verifier_cpu_seconds"]
        share, heard = sum(tokens) / sum(line["tokens"]), arm["n"] / len(line["tokens"])
        spent["cpu_seconds"] = share * drawing + heard * listening
    return spent


def most_candidates(
    synthesizer: Synthesizer, by: Sequence[str], lines: Sequence[Mapping], cpu_seconds: float
) -> int:
    """The largest N whose best, by the verifiers `by`, costs at most so many CPU seconds over all
    lines together; 1 where none does.
    """

    def spent(n: int) -> float:
        arm = {"n": n, "by": by}
        return sum(arm_cost(synthesizer, arm, line)["cpu_seconds"] for line in lines)

    drawn = min(len(line["tokens"]) for line in lines)
    return max((n for n in range(1, drawn + 1) if spent(n) <= cpu_seconds), default=1)


def _listening(cost: Mapping, by: Sequence[str], all_of_them: Iterable[str]) -> float | None:
    """CPU seconds that the verifiers `by` of a line took; None where its cost does not say."""
    if not by:
        return 0.0
    if known := cost.get("verifier_cpu_by"):
        return sum(known[name] for name in by)
    return cost["verifier_cpu_seconds"] if set(by) == set(all_of_them) else None


def guided_rows(lines: Sequence[Mapping], judged: Mapping[str, Mapping]) -> list[dict]:
    """Rows of a strategy run by itself; judged: its manifest's scored utterances, by id."""
    rows = []
    for line in lines:
        cost = line["cost"]
        spent = {
            "tokens": cost["generated_tokens"],
            "flops": cost["model_flops"],
            "cpu_seconds": cost["cpu_seconds"],
        }
        rows.append(_row(line, line["chosen"], judged[line["id"]], spent))
    return rows


def _row(line: Mapping, index: int, judged: Mapping, spent: Mapping[str, float]) -> dict:
    """errors and similarity by the judges, verifier_errors and the like by those that searched."""
    row = {"id": line["id"], CLUSTER: line["id"].rpartition(".s")[0], "candidate": index}
    row |= {key: judged[key] for key in JUDGED if key in judged}
    for name, verifier in VERIFIERS.items():
        if name in line["scores"]:
            row[verifier.metric[1]] = verifier.measured(line["scores"][name][index], judged)
    return row | {key: round(value, 6) for key, value in spent.items()}


def arm_scores(rows: Sequence[Mapping], seed: int = 0) -> dict[str, float]:
    """Averages of one arm with 95 % intervals over texts, in the keys of `summary.summarise`.

    corpus_wer and similarity by the judges; verifier_wer and verifier_similarity where its
    verifiers heard it all; tokens, flops and cpu_seconds an utterance; utterances and texts.
    """
    if not rows:
        raise InputError("no scored utterances, expected at least one")
    texts = [row[CLUSTER] for row in rows]

    def sums(values: list[float]) -> list[float]:
        return intervals.cluster_sums(values, texts).tolist()

    result: dict[str, float] = {"utterances": len(rows), "texts": len(set(texts))}
    for name, key, weight in (
        ("corpus_wer", "errors", "words"),
        ("similarity", "similarity", None),
        *(verifier.metric for verifier in VERIFIERS.values()),
        ("tokens", "tokens", None),
        ("flops", "flops", None),
        ("cpu_seconds", "cpu_seconds", None),
    ):
        if all(key in row for row in rows):
            values = sums([row[key] for row in rows])
            weights = sums([row[weight] if weight else 1.0 for row in rows])
            low, high = intervals.bootstrap_interval(values, weights, seed=seed)
            result |= {name: sum(values) / sum(weights), f"{name}_low": low, f"{name}_high": high}
            result[f"{name}_n"] = len(rows)
    return result
