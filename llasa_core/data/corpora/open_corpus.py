"""The open corpus: any English, in hundreds of voices.

Its texts are WordNet's examples and definitions and some of the grammar's sentences; its speakers
the named voices and pseudo-speakers, Kokoro's voices, or one new voice alone. Held out are texts,
words and speakers. A corpus of short texts has twice as many speakers, and half of its texts are
one to three words: what a caller or a test types, and no WordNet text is. As in `synthetic`, every
draw comes from sha256 of the seed and the row.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llasa_core.data.corpora import sentences, synthetic
from llasa_core.data.corpora.grammar import distinct_sentences, words_of
from llasa_core.data.corpora.voices import (
    HELD_OUT,
    NAMED,
    NEW_OPEN_VOICE,
    Voice,
    draws,
    kokoro_voices,
    pseudo_speakers,
)
from llasa_core.errors import InputError
from llasa_core.manifest import split_of, write_manifest

# Of a hundred training texts; the rest are definitions.
_GRAMMAR, _EXAMPLES = 20, 45

# Of a hundred training texts of a corpus of short texts; the rest is as above. Their words, and how
# many of a hundred have so many.
_SHORT, _WORDS = 50, {1: 50, 2: 30, 3: 20}

# Of a hundred, those that named voices say: of the grammar's and of the other texts.
_NAMED_GRAMMAR, _NAMED_OPEN = 70, 35

TESTS = {
    "open": "new texts, in the named voices",
    "grammar": "new sentences of the grammar, in the named voices",
    "words": "texts with a word that no training text holds, in the named voices",
    "speakers": "new texts, in voices that no training text is spoken in",
    "prompts": "two longer texts of each of these voices, to be their voice prompts; not scored",
}

_PROMPT_LETTERS = range(50, 90)  # about 3 to 5 s


@dataclass(frozen=True)
class Speakers:
    """Who speaks: `named` much, `others` a little each, `held_out` in tests alone. short: half of
    what they say in training is one to three words. dev: share of the training rows."""

    named: tuple[Voice, ...]
    others: tuple[Voice, ...]
    held_out: tuple[Voice, ...]
    short: bool = False
    dev: float = 0.01


def speakers_of(source: str, count: int = 400, seed: int = 0) -> Speakers:
    """The speakers of "builtin-open" (`count` pseudo-speakers), "builtin-short" (twice as many, the
    same first), "builtin-kokoro" or "builtin-new-voice": one that is in no other corpus."""
    if source == "builtin-open":
        return Speakers(NAMED, pseudo_speakers(count, seed), HELD_OUT)
    if source == "builtin-short":
        return Speakers(NAMED, pseudo_speakers(2 * count, seed), HELD_OUT, short=True)
    if source == "builtin-kokoro":
        return Speakers((), kokoro_voices(), kokoro_voices(held_out=True))
    if source == "builtin-new-voice":
        return Speakers((), (NEW_OPEN_VOICE,), (NEW_OPEN_VOICE,), dev=0.1)
    raise InputError(
        f"corpus {source!r}, expected builtin-open, builtin-short, builtin-kokoro or"
        " builtin-new-voice"
    )


def plan(hours: float, speakers: Speakers, seed: int = 0, test_utterances: int = 240) -> list[dict]:
    """What the corpus will contain: a list of dicts id, text, voice, split, test.

    Tests come first, `test_utterances` of each of TESTS (of "speakers" alone where no voice has a
    name), in a small corpus a twentieth of it, and two prompts a voice; then training and dev. A
    longer plan with the same seed and as many tests begins with the shorter one.
    """
    if hours <= 0:
        raise InputError(f"hours={hours}: expected more than nothing")
    rows = _test_rows(speakers, seed, min(test_utterances, int(hours * 1800 / 20)))
    seconds = sum(synthetic.estimated_seconds(row["text"], row["voice"]) for row in rows)
    for row in _training_rows(speakers, seed):
        if seconds >= hours * 3600:
            return rows
        seconds += synthetic.estimated_seconds(row["text"], row["voice"])
        rows.append(row)
    raise AssertionError  # the rows of training have no end


def _test_rows(speakers: Speakers, seed: int, count: int) -> list[dict]:
    new = sentences.shuffled("examples", "test", seed)
    texts = {
        "open": new[:count],
        "grammar": itertools.islice(distinct_sentences(f"{seed} open test", True), count),
        "words": sentences.shuffled("examples", "words", seed)[:count],
        "speakers": new[count : 2 * count],
        "prompts": [text for text in new[2 * count :] if len(text) in _PROMPT_LETTERS],
    }
    texts["prompts"] = texts["prompts"][: 2 * len(speakers.held_out)]
    rows = []
    for test, chosen in texts.items():
        voices = speakers.held_out if test in ("speakers", "prompts") else speakers.named
        if voices:
            for index, text in enumerate(chosen):
                voice = voices[index % len(voices)]
                identity = f"{test}-{voice.name}-{index:04d}"
                rows.append(
                    {"id": identity, "text": text, "voice": voice, "split": "test", "test": test}
                )
    return rows


def _training_rows(speakers: Speakers, seed: int) -> Iterator[dict]:
    """Endless rows; a text comes again, in another voice, when all of its kind have come."""
    start = seed + 1000 if speakers.short else seed  # other pairs of text and voice
    streams = {
        "grammar": distinct_sentences(f"{start} open", False),
        "examples": _passes("examples", start),
        "definitions": _passes("definitions", start),
        "short": _short_texts(start),
    }
    for index in itertools.count():
        what, who, which, brief = draws(f"row {start} {index}", 4)
        kind = "definitions"
        if speakers.short and brief % 100 < _SHORT:
            kind = "short"
        elif speakers.named and what % 100 < _GRAMMAR:
            kind = "grammar"
        elif what % 100 < _GRAMMAR + _EXAMPLES:
            kind = "examples"
        share = _NAMED_GRAMMAR if kind == "grammar" else _NAMED_OPEN
        voices = speakers.named if speakers.named and who % 100 < share else speakers.others
        voice = voices[which % len(voices)]
        identity = f"{voice.name}-{'s' if speakers.short else ''}{index:06d}"
        split = split_of(identity, (1 - speakers.dev, speakers.dev, 0))
        yield {"id": identity, "text": next(streams[kind]), "voice": voice, "split": split}


def _passes(kind: str, seed: int) -> Iterator[str]:
    for number in itertools.count():
        yield from sentences.shuffled(kind, "train", seed + number)


def _short_texts(seed: int) -> Iterator[str]:
    """Words, each as often as any other, and two or three words in a row of an example; every other
    one as a sentence: "grey", "Down the."."""
    sizes = [size for size, share in _WORDS.items() for _ in range(share)]
    train = sentences.shuffled("examples", "train", seed)
    vocabulary = sorted({word for text in train for word in words_of(text) if word.isalpha()})
    for index, text in enumerate(_passes("examples", seed)):
        size, place, written = draws(f"short {seed} {index}", 3)
        size = sizes[size % 100]
        words = vocabulary if size == 1 else text.split()
        first = place % max(1, len(words) - size + 1)
        short = " ".join(words[first : first + size]).strip(" ,.?!'-").lower()
        if short:
            yield short.capitalize() + "." if written % 2 else short


def build(
    out: str | Path,
    source: str = "builtin-open",
    hours: float = 1.0,
    seed: int = 0,
    jobs: int = 1,
    test_utterances: int = 240,
    progress: bool = False,
) -> dict:
    """Write the corpus as `synthetic.build` does, and `test_NAME.jsonl` for each of TESTS.

    Resumes; grows when called with more hours. About 100 times real time with each process, Kokoro
    about 1.5 times. Returns the report. InputError: the folder holds another corpus, or a package
    or voice is missing.
    """
    speakers = speakers_of(source, seed=seed)
    rows = plan(hours, speakers, seed, test_utterances)
    voices = tuple(dict.fromkeys((*speakers.named, *speakers.others, *speakers.held_out)))
    texts = {"sentences": sentences.fingerprint(), "source": source}
    report = synthetic.write_corpus(out, rows, voices, seed, jobs, progress, texts)
    for test in TESTS:
        chosen = [synthetic.utterance_of(row) for row in rows if row.get("test") == test]
        if chosen:
            write_manifest(Path(out, f"test_{test}.jsonl"), chosen)
    return report
