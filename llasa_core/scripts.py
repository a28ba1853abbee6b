"""Which script a text is written in: whether it puts spaces between words, and which language it
most likely is.
"""

import unicodedata
from collections import Counter

# First word of the names of a script's letters in Unicode: the language that is written in it. Only
# what tells one language from the others; Latin, Cyrillic and Arabic letters are those of many.
LANGUAGES = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
    "BOPOMOFO": "zh",
    "HANGUL": "ko",
    "THAI": "th",
    "LAO": "lo",
    "MYANMAR": "my",
    "KHMER": "km",
    "CYRILLIC": "ru",
    "GREEK": "el",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
}

SPACELESS = frozenset({"HIRAGANA", "KATAKANA", "CJK", "BOPOMOFO", "THAI", "LAO", "MYANMAR"})
SPACELESS |= {"KHMER"}


def script_of(letter: str) -> str:
    """The script of a letter, such as LATIN or CJK; "" for what is no letter."""
    kind = unicodedata.category(letter)[0]
    return unicodedata.name(letter, "").split(" ")[0] if kind in "LM" else ""


def language_of(text: str, default: str = "en") -> str:
    """The language of a text by most of its letters, `default` where the script does not tell.

    Any kana makes it Japanese, whose texts are mostly ideographs; an ideograph or a syllable of
    Hangul weighs as much as a short word of letters.
    """
    if text.isascii():
        return default
    found: Counter[str] = Counter()
    for letter in text:
        if script := script_of(letter):
            found[LANGUAGES.get(script, "")] += 1 if script not in ("CJK", "HANGUL") else 3
    if not found:
        return default
    if found["ja"]:
        found["ja"] += found.pop("zh", 0)
    return found.most_common(1)[0][0] or default


def joined_texts(first: str, second: str) -> str:
    """Two texts one after the other, with a space where the letters at the joint are of scripts
    that use it.
    """
    if not first or not second:
        return first + second
    at_joint = (
        next((script for letter in part if (script := script_of(letter))), "")
        for part in (reversed(first), second)
    )
    return first + second if SPACELESS & set(at_joint) else f"{first} {second}"
