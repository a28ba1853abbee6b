"""Text before synthesis: English as it is read aloud (numbers, money, times, ordinals and
abbreviations written out), and long texts cut into pieces.

`spoken_form` is a separate step: nothing calls it unless asked, as a model that was trained on
raw text does not want it. What it does not know stays as it is.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llasa_core.errors import InputError
from llasa_core.manifest import Request, has_words

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
).split()
TENS = ["", "", *"twenty thirty forty fifty sixty seventy eighty ninety".split()]
SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"))
IRREGULAR = dict(one="first", two="second", three="third", five="fifth", eight="eighth")
IRREGULAR |= dict(nine="ninth", twelve="twelfth")

MONEY = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny")}
PLURAL = {"penny": "pence"}

WORDS = {"Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miss", "Dr.": "Doctor", "Prof.": "Professor"}
WORDS |= {"vs.": "versus", "etc.": "et cetera", "e.g.": "for example", "i.e.": "that is"}
WORDS |= {"approx.": "approximately"}

TYPOGRAPHY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-"})
TYPOGRAPHY |= dict.fromkeys(map(ord, "\u00ad\u200b"), "")  # soft hyphen, zero-width space

NUMBER = r"\d{1,3}(?:,\d{3})+|\d+"


def spoken_form(text: str) -> str:
    """`text` with everything that has a known reading written out, its white space kept."""
    text = unicodedata.normalize("NFKC", text).translate(TYPOGRAPHY)
    for short, long in WORDS.items():
        text = re.sub(rf"(?<!\w){re.escape(short)}(?!\w)", long, text)
    text = re.sub(rf"([$€£])({NUMBER})(?:\.(\d\d))?(?![\d.]*\d)", _money, text)
    text = re.sub(r"(?<![\d:.])([01]?\d|2[0-3]):([0-5]\d)(?![\d:])", _time, text)
    text = re.sub(r"(?<![\w.])(\d+)(?:st|nd|rd|th)\b", lambda found: ordinal(int(found[1])), text)
    text = re.sub(rf"(?<![\w.])(-?)({NUMBER})((?:\.\d+)?)(%?)(?!\w|\.\d)", _number, text)
    return re.sub(r"(?<=\w) ?& ?(?=\w)", " and ", text)


def cardinal(value: int) -> str:
    """An integer below 10**15 in words; a longer one digit by digit."""
    if value < 0:
        return f"minus {cardinal(-value)}"
    if value < 20:
        return ONES[value]
    if value < 100:
        return TENS[value // 10] + (f"-{ONES[value % 10]}" if value % 10 else "")
    if value < 1000:
        return f"{ONES[value // 100]} hundred" + (
            f" and {cardinal(value % 100)}" if value % 100 else ""
        )
    if value >= 10**15:
        return " ".join(ONES[int(digit)] for digit in str(value))
    size, name = next(scale for scale in SCALES if value >= scale[0])
    rest = value % size
    joint = " and " if 0 < rest < 100 else " "
    return f"{cardinal(value // size)} {name}" + (f"{joint}{cardinal(rest)}" if rest else "")


def ordinal(value: int) -> str:
    """An integer as an ordinal: 21 -> twenty-first."""
    words = re.split(r"([ -])", cardinal(value))
    last = words[-1]
    words[-1] = IRREGULAR.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return "".join(words)


def _number(found: re.Match) -> str:
    sign, whole, fraction, percent = found.groups()
    digits = whole.replace(",", "")
    if len(digits) > 1 and digits[0] == "0":  # a code or a telephone number
        said = " ".join(ONES[int(digit)] for digit in digits)
    elif (
        len(digits) == 4
        and "," not in whole
        and not fraction
        and not percent
        and 1100 <= int(digits) < 2000
    ):
        said = _year(int(digits))
    else:
        said = cardinal(int(digits))
    if fraction:
        said += " point " + " ".join(ONES[int(digit)] for digit in fraction[1:])
    return ("minus " if sign else "") + said + (" percent" if percent else "")


def _year(value: int) -> str:
    century, rest = divmod(value, 100)
    if not rest:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def _money(found: re.Match) -> str:
    units, amount = MONEY[found[1]], int(found[2].replace(",", ""))
    said = f"{cardinal(amount)} {_counted(units[0], amount)}"
    small = int(found[3] or 0)
    return f"{said} and {cardinal(small)} {_counted(units[1], small)}" if small else said


def _counted(unit: str, amount: int) -> str:
    return unit if amount == 1 else PLURAL.get(unit, f"{unit}s")


def _time(found: re.Match) -> str:
    hour, minute = int(found[1]), int(found[2])
    if not minute:
        return f"{cardinal(hour)} o'clock" if 0 < hour <= 12 else f"{cardinal(hour)} hundred"
    return f"{cardinal(hour)} {'oh ' if minute < 10 else ''}{cardinal(minute)}"


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
