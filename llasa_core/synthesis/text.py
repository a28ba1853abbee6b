"""Long texts cut into pieces: at sentences, else at punctuation, else between words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llasa_core.errors import InputError
from llasa_core.manifest import Request, has_words

CHARACTERS = 200  # of a piece; about 13 s of English

# seconds of silence after a piece, by what ends there
PAUSES = {"paragraph": 0.8, "sentence": 0.4, "clause": 0.15}

PUNCTUATION = ".!?;:,。！？；：，、"  # where a sentence is cut if it can be

ABBREVIATIONS = frozenset("mr mrs ms dr st prof vs etc no vol fig ca e.g i.e".split())

SENTENCE_END = re.compile(r"""([.!?…]+["'”’)\]]*)(?=\s)|([。！？]+["”’」』）]*)""")


@dataclass(frozen=True)
class Piece:
    """A part of a text that is spoken at once, and the seconds of silence after it (0 after the
    last).
    """

    text: str
    pause: float


def pieces_of_text(text: str, characters: int = CHARACTERS) -> list[Piece]:
    """Whole sentences, as many as fit into `characters`; a longer sentence is cut at its
    punctuation or between words.

    An empty line ends a paragraph, which always ends a piece. A piece without a word, such as
    "* * *", is left out.
    """
    if characters < 1:
        raise InputError(f"pieces of {characters} characters, expected at least 1")
    pieces: list[Piece] = []
    for paragraph in re.split(r"\n\s*\n", text):
        line = ""
        for sentence in sentences(paragraph):
            joined = f"{line} {sentence}".strip()
            if line and len(joined) > characters:
                pieces.append(Piece(line, PAUSES["sentence"]))
                joined = sentence
            if len(joined) > characters:
                *parts, joined = clauses(joined, characters)
                pieces += [Piece(part, PAUSES["clause"]) for part in parts]
            line = joined
        if line:
            pieces.append(Piece(line, PAUSES["paragraph"]))
    pieces = [piece for piece in pieces if has_words(piece.text)]
    return [*pieces[:-1], replace(pieces[-1], pause=0.0)] if pieces else []


def pieces_of_request(request: Request, characters: int = CHARACTERS) -> list[Piece]:
    """The pieces of a request's text; one piece where the text begins with the words of its voice
    prompt, as a later one would not begin with them.
    """
    if request.continues:
        return [Piece(request.text, 0.0)]
    return pieces_of_text(request.text, characters)


def piece_request(request: Request, number: int, pieces: Sequence[Piece]) -> Request:
    """The request of one piece, ID.0000, ID.0001, .."""
    return replace(request, id=f"{request.id}.{number:04d}", text=pieces[number].text)


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph, white space made single; abbreviations, initials and decimals
    end none.
    """
    text = " ".join(text.split())
    found, start = [], 0
    for mark in SENTENCE_END.finditer(text):
        before, after = text[start : mark.start()].split(" ")[-1], text[mark.end() :].lstrip()
        abbreviated = before.lower() in ABBREVIATIONS or (
            len(before) == 1 and before.isupper() and before != "I"
        )
        if mark[1] and (after[:1].islower() or (mark[1][0] == "." and abbreviated)):
            continue
        found.append(text[start : mark.end()].strip())
        start = mark.end()
    return [*found, text[start:].strip()] if text[start:].strip() else found


def clauses(text: str, characters: int) -> list[str]:
    """A text in ceil(length / `characters`) pieces of similar length, as the paper's Table 2 cuts
    (above 100 characters two, above 200 three).

    Cut after punctuation where one is near the even place, else between words; in a text without
    spaces anywhere.
    """
    text = " ".join(text.split())
    count = math.ceil(len(text) / characters)
    spaces = [at for at, character in enumerate(text) if character == " "]
    places = spaces or list(range(1, len(text)))
    cuts = [0]
    for number in range(1, count):
        even = len(text) * number / count
        free = [at for at in places if at > cuts[-1]]
        if not free:
            break
        nearness = {
            at: abs(at - even) - (characters / 4 if text[at - 1] in PUNCTUATION else 0)
            for at in free
        }
        cuts.append(min(free, key=nearness.__getitem__))
    return [text[start:end].strip() for start, end in zip(cuts, [*cuts[1:], None], strict=True)]
