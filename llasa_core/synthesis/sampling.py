"""How one token is drawn: settings, the noise of a row, and the draw.

The noise of a row depends on its seed and prompt alone, which makes an utterance independent of its
batch-mates.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from llasa_core.checkpoint import RECOMMENDED_SAMPLING
from llasa_core.errors import above, at_least, check_fields


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature first, then the `top_k` best, then the smallest set of mass
    `top_p`.

    temperature: 0 is greedy. top_k: 0 takes all codes; 50 is what the public example does without
    saying so (the default of `generate`). min_codes: END is forbidden at that many first steps; 0
    lets an utterance be empty, as the public example does. max_seconds: no utterance is longer,
    whatever its text. repetition_penalty: what the prompt or the answer holds already is that many
    times less likely (`penalised`); the public LoRA example uses 1.2.
    """

    temperature: float = RECOMMENDED_SAMPLING["temperature"]
    top_k: int = RECOMMENDED_SAMPLING["top_k"]
    top_p: float = RECOMMENDED_SAMPLING["top_p"]
    min_codes: int = 1
    max_seconds: float = 40.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        bounds = {"temperature": at_least(0), "top_k": at_least(0), "top_p": above(0, most=1)}
        bounds |= {"min_codes": at_least(0), "max_seconds": above(0)}
        check_fields(self, "sampling", **bounds, repetition_penalty=above(0))


def candidate_seed(seed: int, index: int) -> int:
    """Seed of sample `index` of one request: sample 0 has the request's own seed, the others are
    hashed.

    Hashed, because seed + index would share samples between neighbouring seeds.
    """
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:7], "big")


def row_noise(seed: int, prompt: np.ndarray, count: int) -> np.ndarray:
    """The uniform numbers float64 (count,) in [0, 1) of one row: a function of its seed and its
    prompt, nothing else.

    Number `i` decides token `i`; a longer draw starts with the shorter one. So neither the batch,
    nor its order, nor the length limit changes what a row draws, and two texts under one seed do
    not share their noise.
    """
    digest = hashlib.sha256(np.ascontiguousarray(prompt, dtype="<i4").tobytes()).digest()
    entropy = [seed, *np.frombuffer(digest[:16], dtype="<u4").tolist()]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy))).random(count)


def penalised(logits: torch.Tensor, repeated: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits (B, V) in which those of `repeated` bool (B, V) are divided by the penalty where they
    are positive and multiplied by it where they are negative: RepetitionPenaltyLogitsProcessor of
    transformers (arXiv 1909.05858).
    """
    return torch.where(
        repeated, torch.where(logits < 0, logits * penalty, logits / penalty), logits
    )


def draw(logits: torch.Tensor, uniform: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Columns (B,) drawn from logits float32 (B, V) by inverting the distribution at `uniform`
    float64 (B,).

    The kept candidates are laid out by column, not by rank: rounding that swaps two nearly equal
    candidates then moves a boundary by the rounding error only, and the same number still picks the
    same token.
    """
    return draw_with_doubt(logits, uniform, sampling)[0]


def draw_with_doubt(
    logits: torch.Tensor, uniform: torch.Tensor, sampling: Sampling, error: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """`draw`, and bool (B,): whether logits that differ by `error` times the largest (or 1) might
    give another column.

    A float32 model in a batch and alone differ by 5e-7 (mini Llasa, largest of 2,000 rows): once in
    100,000 draws the number falls between the two boundaries, and the utterance becomes another
    one. The doubt finds those draws before.
    """
    width = logits.shape[-1]
    if sampling.temperature == 0:
        values, columns = largest(logits, min(2, width))
        return columns[:, 0], (
            values[:, 0] - values[:, -1] < error * values[:, 0].abs().clamp(min=1)
        ) & (width > 1)
    columns = spare = None
    if 0 < sampling.top_k < width:
        values, ranked = largest(logits, sampling.top_k + 1)
        logits, columns, spare = values[:, :-1], ranked[:, :-1], (values[:, -1], ranked[:, -1])
    elif sampling.top_p < 1:
        logits, columns = logits.sort(dim=-1, descending=True)
    slack = error * logits.amax(-1).abs().clamp(min=1)  # (B,) of a logit
    picked, doubt = _inverted(logits, columns, uniform, sampling, slack)
    if spare is not None and error:
        gap = logits[:, -1] - spare[0]
        doubt |= (sampling.top_k > 1) & (logits[:, -min(2, sampling.top_k)] - spare[0] < slack)
        if (close := gap < slack).any():
            # Rounding could swap the last kept entry and the first dropped one.
            other = (
                torch.cat([logits[:, :-1], spare[0][:, None]], -1),
                torch.cat([columns[:, :-1], spare[1][:, None]], -1),
            )
            doubt |= close & (_inverted(*other, uniform, sampling, slack)[0] != picked)
    return picked, doubt


def _inverted(
    logits, columns, uniform, sampling: Sampling, slack
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns (B,) and doubts (B,) from candidates (B, K), descending where `columns` (B, K) names
    them.
    """
    weights = (logits / sampling.temperature).double().softmax(dim=-1)
    # A sum of weights moves by at most a quarter of what logits move
    slack = slack.double() / sampling.temperature
    doubt = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    if sampling.top_p < 1:
        before = weights.cumsum(dim=-1) - weights
        kept = before < sampling.top_p
        last = kept.sum(-1, keepdim=True).clamp(max=weights.shape[-1] - 1)
        doubt = ((before - sampling.top_p).abs() < slack[:, None] / 4).any(-1)
        step = (logits.gather(-1, (last - 1).clamp(min=0)) - logits.gather(-1, last))[
            :, 0
        ] / sampling.temperature
        doubt |= ~kept.all(-1) & (step < slack)
        weights = weights * kept
    if columns is not None:
        columns, by_column = columns.sort(dim=-1)
        weights = weights.gather(-1, by_column)
    # (B, K), non-decreasing; entries of no weight are never the first above a value
    mass = weights.cumsum(dim=-1)
    total = mass[:, -1]
    target = uniform * total * (1 - 1e-12)
    place = torch.searchsorted(mass, target.unsqueeze(-1), right=True)
    above = mass.gather(-1, place)[:, 0]
    below = mass.gather(-1, (place - 1).clamp(min=0))[:, 0]
    margin = slack / 4 * total
    doubt |= (above < total) & (above - target < margin)
    doubt |= (place[:, 0] > 0) & (below > 0) & (target - below < margin)
    return (place if columns is None else columns.gather(-1, place)).squeeze(-1), doubt


def largest(
    logits: torch.Tensor, count: int, block: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and columns (B, count) of the largest logits (B, V), as `topk` gives them, several
    times faster on a CPU.

    The `count` largest lie in the `count` blocks whose maxima are the largest, and in what is left
    over of a block.
    """
    rows, width = logits.shape
    blocks = width // block
    if blocks <= 2 * count:
        return logits.topk(count, dim=-1)
    best = (
        logits[:, : blocks * block]
        .unflatten(1, (blocks, block))
        .amax(-1)
        .topk(count, dim=-1)
        .indices
    )
    inside = torch.arange(block, device=logits.device)
    near = (best.unsqueeze(-1) * block + inside).flatten(1)  # (B, count * block)
    rest = torch.arange(blocks * block, width, device=logits.device).expand(rows, -1)
    near = torch.cat([near, rest], dim=-1)
    values, place = logits.gather(-1, near).topk(count, dim=-1)
    return values, near.gather(-1, place)
