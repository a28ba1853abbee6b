"""Test sentences of text understanding: the paper's seven categories in English and in Chinese,
scored 1 to 3.

JSON lines with id, language, category, text and expected (what a listener should hear). Raters read
`expected`, so a sentence without it is an error. The tracked sentences are our own: the paper's are
not published.
"""

from dataclasses import dataclass
from pathlib import Path

from llasa_core.errors import InputError
from llasa_core.files import numbered_rows
from llasa_core.manifest import FILE_SAFE_ID

CATEGORIES = {  # of the paper's Tables 6 and 7, in its order
    "en": (
        "Compound Nouns",
        "Emotions",
        "Foreign Words",
        "Paralinguistics",
        "Punctuations",
        "Questions",
        "Syntactic Complexities",
    ),
    "zh": (
        "Emotion",
        "Paralinguistic",
        "Chinese Poetry",
        "Polyphonic Characters",
        "Questions",
        "Tongue Twisters",
        "Rare Characters",
    ),
}

LEVELS = {  # 1 and 3: the paper's rubric; 2 is ours
    1: "fails: what is asked for is not there",
    2: "partly: there, but wrong in places or unnatural",
    3: "correct and natural",
}

KEYS = ("id", "language", "category", "text", "expected")


@dataclass(frozen=True)
class Sentence:
    """A test sentence; `category` of CATEGORIES[language], `expected`: what to listen for."""

    id: str
    language: str
    category: str
    text: str
    expected: str


def read_sentences(*paths: str | Path) -> list[Sentence]:
    """The sentences of one file or several, in order.

    Raises InputError with file and line for a line that is no object of these five keys, a language
    or category that the paper does not have, an empty or repeated text, a repeated id, and a file
    without sentences.
    """
    sentences: list[Sentence] = []
    seen: dict[str, str] = {}
    for path in paths:
        before = len(sentences)
        for number, item in numbered_rows(path, "test sentences as JSON lines"):
            where = f"{path}:{number}"
            if wrong := sorted(set(item) ^ set(KEYS)):
                state = "missing" if wrong[0] in KEYS else "unknown"
                raise InputError(
                    f"{where}: the key {wrong[0]!r} is {state}, expected {', '.join(KEYS)}"
                )
            for key in KEYS:
                if not isinstance(item[key], str) or not item[key].strip():
                    raise InputError(f"{where}: {key} is {item[key]!r}, expected text")
            if not FILE_SAFE_ID.fullmatch(item["id"]):
                raise InputError(
                    f"{where}: id {item['id']!r}, expected a file name of letters, digits and"
                    " ._+@=,-"
                )
            if item["language"] not in CATEGORIES:
                raise InputError(
                    f"{where}: language is {item['language']!r}, expected {' or '.join(CATEGORIES)}"
                )
            known = CATEGORIES[item["language"]]
            if item["category"] not in known:
                raise InputError(
                    f"{where}: category is {item['category']!r}, expected one of {', '.join(known)}"
                )
            for name in (f"id {item['id']!r}", f"text {item['text']!r}"):
                if name in seen:
                    raise InputError(f"{where}: {name} is a duplicate (first in {seen[name]})")
                seen[name] = where
            sentences.append(Sentence(**item))
        if len(sentences) == before:
            raise InputError(f"{path}: no sentences in it, expected at least one")
    return sentences
