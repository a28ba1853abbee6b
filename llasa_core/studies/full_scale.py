"""What the paper's figures and tables cost at full scale, in hours of one GPU: FLOPs, or bytes of
memory, over a rate.

The FLOPs are those of `model.flops_per_token`; every rate and length is an assumption
(`Assumptions`, said in words by `sentence`), because no GPU was measured. The trap avoided:
sampling one row at a time is bound by reading the weights, not by arithmetic, so each step of a
decoding costs the larger of the two.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from llasa_core.errors import InputError

VOCABULARY = 193_800  # of the released checkpoints

CODES_PER_SECOND = 50.0  # of X-codec2

BYTES_PER_NUMBER = 2.0  # bf16 weights and cache

# Models of the paper: size name, hours of speech.
RELEASED = (
    ("1b", 80_000.0),
    ("1b", 160_000.0),
    ("1b", 250_000.0),
    ("3b", 250_000.0),
    ("8b", 250_000.0),
)


@dataclass(frozen=True)
class Assumptions:
    """Rates of one GPU and lengths of the data; none of it was measured here."""

    peak_flops: float = 989e12  # FLOP/s, bf16, dense: an H100 SXM by its data sheet
    utilisation: float = (
        0.4  # share of that peak which the model's FLOPs reach, in training and for prompts
    )
    memory_bytes_per_second: float = 3.35e12  # the same GPU by its data sheet
    memory_utilisation: float = 0.6  # share of it that decoding reaches
    epochs: float = 3.0  # the paper's
    utterance_seconds: float = 9.17  # of a training utterance, on average
    text_tokens_per_second: float = 3.5  # of speech
    frame_tokens: float = 46.0  # of chat template and markers, an utterance
    spoken_seconds: float = (
        6.0  # of speech that a test sentence becomes; its voice prompt is as long
    )
    asr_hours: float = 250_000.0  # of speech that recognisers learn from; the paper does not say

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value < float("inf")
            ):
                raise InputError(f"full scale: {name} is {value!r}, expected a positive number")
        for name in ("utilisation", "memory_utilisation"):
            if getattr(self, name) > 1:
                raise InputError(
                    f"full scale: {name} is {getattr(self, name)!r}, expected a share of at most 1"
                )

    @property
    def flops_per_second(self) -> float:
        """FLOP/s that a GPU is taken to reach."""
        return self.peak_flops * self.utilisation

    @property
    def utterance_tokens(self) -> float:
        """Tokens of a training utterance: codes, text, template."""
        rate = CODES_PER_SECOND + self.text_tokens_per_second
        return self.utterance_seconds * rate + self.frame_tokens

    @property
    def prompt_tokens(self) -> float:
        """Tokens before the first drawn code: voice prompt, its text, the text, template."""
        return (
            self.spoken_seconds * (CODES_PER_SECOND + 2 * self.text_tokens_per_second)
            + self.frame_tokens
        )

    def sentence(self) -> str:
        """The assumptions in words, for a caption."""
        return (
            f"one H100 of {self.peak_flops / 1e12:.0f} TFLOP/s (bf16, dense), of which training"
            f" reaches {self.utilisation:.0%}; memory of {self.memory_bytes_per_second / 1e12:.2f}"
            f" TB/s, of which decoding reaches {self.memory_utilisation:.0%}, each step costing the"
            f" larger of reading weights and cache once and its arithmetic; {self.epochs:g} epochs;"
            f" utterances of {self.utterance_seconds:g} s with {CODES_PER_SECOND:g} codes and"
            f" {self.text_tokens_per_second:g} text tokens a second and {self.frame_tokens:g}"
            f" tokens of template; test sentences of {self.spoken_seconds:g} s, one at a time,"
            f" after a voice prompt of as much; {self.asr_hours:,.0f} hours for recognition (the"
            " paper does not say)"
        )


@dataclass(frozen=True)
class Search:
    """A search as the paper describes it.

    candidates: whole utterances drawn. beams, expansions, guided_seconds: of the part that a
    verifier guides, which draws beams x expansions rows at a time; `guided_seconds` inf guides to
    the end.
    """

    candidates: int = 1
    beams: int = 0
    expansions: int = 0
    guided_seconds: float = 0.0

    def phases(self, seconds: float) -> list[tuple[int, float]]:
        """[(rows side by side, seconds of speech)] for an utterance of `seconds`."""
        guided = min(self.guided_seconds, seconds) if self.beams else 0.0
        parts = [(self.beams * self.expansions, guided), (self.candidates, seconds - guided)]
        return [(rows, length) for rows, length in parts if length > 0]

    def codes(self, seconds: float) -> float:
        """Codes drawn for an utterance of `seconds`."""
        return sum(rows * length * CODES_PER_SECOND for rows, length in self.phases(seconds))


PLAIN = Search()

PRM = Search(
    1, 16, 16, float("inf")
)  # arXiv 2502.04128, section 3.4: every 25 codes, 16 beams of 16 candidates

PARTIAL_PRM = Search(16, 16, 16, 2.0)  # the same for 2 s, then 16 samples for the choice by WER


def training_flops(
    size: str, hours: float, assumed: Assumptions, epochs: float | None = None
) -> float:
    """FLOPs of training a released size on `hours` of speech, forward and backward, attention
    within an utterance.
    """
    from llasa_core.model import flops_per_token, model_config  # torch is imported there

    passes = assumed.epochs if epochs is None else epochs
    tokens = hours * 3600 / assumed.utterance_seconds * assumed.utterance_tokens * passes
    return tokens * flops_per_token(model_config(size, VOCABULARY), round(assumed.utterance_tokens))


def training_hours(
    models: Iterable[tuple[str, float]], assumed: Assumptions, epochs: float | None = None
) -> float:
    """GPU hours of training each (size, hours of speech) of `models`."""
    return (
        sum(training_flops(size, hours, assumed, epochs) for size, hours in models)
        / assumed.flops_per_second
        / 3600
    )


def decoding_seconds(size: str, search: Search, assumed: Assumptions) -> float:
    """GPU seconds of speaking one test sentence, prompt included; codec and verifiers are not.

    A step reads all weights and the cache of its rows once and computes one token a row. A forward
    pass is a third of the training FLOPs; a token that looks at k keys costs as the tokens of a
    document of length 2 k do on average.
    """
    from llasa_core.model import flops_per_token, model_config

    config = model_config(size, VOCABULARY)
    weights = flops_per_token(config, 0) / 6
    cache = (
        2
        * BYTES_PER_NUMBER
        * config.num_hidden_layers
        * config.num_key_value_heads
        * config.head_dim
    )  # a token
    keys = assumed.prompt_tokens
    seconds = keys * flops_per_token(config, round(keys)) / 3 / assumed.flops_per_second
    for rows, length in search.phases(assumed.spoken_seconds):
        steps = length * CODES_PER_SECOND
        middle = keys + steps / 2  # keys that a step looks at on average
        arithmetic = (
            rows * flops_per_token(config, round(2 * middle)) / 3 / assumed.flops_per_second
        )
        moved = BYTES_PER_NUMBER * weights + rows * middle * cache
        seconds += steps * max(
            arithmetic, moved / (assumed.memory_bytes_per_second * assumed.memory_utilisation)
        )
        keys += steps
    return seconds


def speaking_hours(
    utterances: int,
    searches: Iterable[Search],
    assumed: Assumptions,
    models: Iterable[tuple[str, float]] = RELEASED,
) -> float:
    """GPU hours of `utterances` test sentences by every model, once for each search."""
    searches = list(searches)
    each = sum(decoding_seconds(size, search, assumed) for size, _ in models for search in searches)
    return utterances * each / 3600


def assumptions(values: dict | None = None) -> Assumptions:
    """The default assumptions with `values` in their place; InputError names what is unknown or no
    positive number.
    """
    values = values or {}
    if unknown := set(values) - set(Assumptions.__dataclass_fields__):
        known = ", ".join(Assumptions.__dataclass_fields__)
        raise InputError(
            f"full scale: assumption {min(unknown)!r} is unknown, expected some of {known}"
        )
    return replace(Assumptions(), **values)
