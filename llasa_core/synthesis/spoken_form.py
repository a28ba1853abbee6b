"""English as it is read aloud: numbers, money, dates, times, telephone numbers, units, e-mail
addresses, Roman numerals and abbreviations written out.

Numbers are put into words by inflect (MIT). `spoken_form` is a step of its own: nothing calls it
unless asked, as a model that was trained on raw text does not want it. What it does not know stays
as it is.
"""

from __future__ import annotations

import calendar
import re
import unicodedata
from functools import cache

MONEY = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny")}
PLURAL = {"penny": "pence", "foot": "feet", "inch": "inches"}

WORDS = {"Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miss", "Dr.": "Doctor", "Prof.": "Professor"}
WORDS |= {"vs.": "versus", "etc.": "et cetera", "e.g.": "for example", "i.e.": "that is"}
WORDS |= {"approx.": "approximately"}

# Behind a number; what is counted, and per what
UNITS = {"km/h": "kilometer per hour", "mph": "mile per hour", "m/s": "meter per second"}
UNITS |= {"km": "kilometer", "m": "meter", "cm": "centimeter", "mm": "millimeter"}
UNITS |= {"kg": "kilogram", "g": "gram", "mg": "milligram", "ml": "milliliter"}
UNITS |= {"°C": "degree Celsius", "°F": "degree Fahrenheit", "ft": "foot", "lbs": "pound"}
UNITS |= {"kB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "kHz": "kilohertz"}
UNITS |= {"Hz": "hertz", "MHz": "megahertz"}

SIGNS = {"@": "at", ".": "dot", "_": "underscore", "-": "dash", "+": "plus"}

MONTHS = "|".join(calendar.month_name[1:])

# Before a Roman numeral: it counts things. After any other name it is an ordinal: Henry VIII.
COUNTED = "Chapter|Part|Volume|Vol|Book|Act|Scene|Section|War|Phase|Type|Class|Level|Appendix"
COUNTED += "|Figure|Table|Title|Stage|Episode|Season|Bowl|Mark"

TYPOGRAPHY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-"})
TYPOGRAPHY |= dict.fromkeys(map(ord, "\u00ad\u200b"), "")  # soft hyphen, zero-width space

NUMBER = r"\d{1,3}(?:,\d{3})+|\d+"
ROMAN = r"(?=[IVX]{2})X{0,3}(?:IX|IV|V?I{0,3})\b"  # 2 to 39, two letters or more
HALF_DAY = r" ?([apAP])\.?[mM]\b\.?"


def spoken_form(text: str) -> str:
    """`text` with everything that has a known reading written out, its white space kept.

    3/4/2025 is read as in the United States, month first, where both numbers could be the month.
    """
    text = unicodedata.normalize("NFKC", text).translate(TYPOGRAPHY)
    for short, long in WORDS.items():
        text = re.sub(rf"(?<!\w){re.escape(short)}(?!\w)", long, text)
    text = re.sub(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+", _address, text)
    text = re.sub(r"(?<![\w/])(\d{1,2})/(\d{1,2})/(\d{4})(?![\w/])", _slashed_date, text)
    text = re.sub(r"(?<![\w-])(\d{4})-(\d\d)-(\d\d)(?![\w-])", _iso_date, text)
    text = re.sub(rf"\b({MONTHS}) (\d{{1,2}})(?:st|nd|rd|th)?(?:, (\d{{4}}))?\b", _date, text)
    text = re.sub(
        r"(?<![\w+(.-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\) ?|\d{3}[ .-])?\d{3}[.-]\d{4}"
        r"(?![\w-]|\.\d)",
        _telephone,
        text,
    )
    text = re.sub(rf"(?<![\d:.])(1?\d)(?::([0-5]\d))?{HALF_DAY}", _half_day_time, text)
    text = re.sub(r"\bNo(s?)\. ?(?=\d)|#(?=\d)", lambda found: f"number{found[1] or ''} ", text)
    text = re.sub(rf"\b({COUNTED}) ({ROMAN})", _counted_roman, text)
    text = re.sub(rf"\b([A-Z][a-z]+|the) ({ROMAN})", _ordinal_roman, text)
    text = re.sub(rf"([$€£])({NUMBER})(?:\.(\d\d))?(?![\d.]*\d)", _money, text)
    units = "|".join(map(re.escape, UNITS))
    text = re.sub(rf"(?<![\w.])(-?(?:{NUMBER})(?:\.\d+)?) ?({units})(?![\w/])", _measure, text)
    text = re.sub(r"(?<![\d:.])([01]?\d|2[0-3]):([0-5]\d)(?![\d:])", _time, text)
    text = re.sub(r"(?<![\w.])(\d+)(?:st|nd|rd|th)\b", lambda found: ordinal(int(found[1])), text)
    text = re.sub(rf"(?<![\w./])(-?)({NUMBER})((?:\.\d+)?)(%?)(?!\w|[./]\d)", _number, text)
    return re.sub(r"(?<=\w) ?& ?(?=\w)", " and ", text)


@cache
def _engine():
    import inflect

    return inflect.engine()


def cardinal(value: int) -> str:
    """An integer below 10**15 in words; a longer one digit by digit."""
    if value < 0:
        return f"minus {cardinal(-value)}"
    if value >= 10**15:
        return digits(str(value))
    return _engine().number_to_words(value, comma="")


def ordinal(value: int) -> str:
    """An integer as an ordinal: 21 -> twenty-first."""
    return _engine().number_to_words(_engine().ordinal(value), comma="")


def digits(text: str) -> str:
    """The digits of a text one by one, 007 -> zero zero seven."""
    return " ".join(cardinal(int(digit)) for digit in text if digit.isdecimal())


def year(value: int) -> str:
    """1905 -> nineteen oh five, 2005 -> two thousand and five, 2025 -> twenty twenty-five."""
    century, rest = divmod(value, 100)
    if century % 10 == 0 and rest < 10:
        return cardinal(value)
    if not rest:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def _number(found: re.Match) -> str:
    sign, whole, fraction, percent = found.groups()
    value = int(whole.replace(",", ""))
    if len(whole) > 1 and whole[0] == "0":  # a code
        said = digits(whole)
    elif len(whole) == 4 and not fraction and not percent and 1100 <= value < 2000:
        said = year(value)
    else:
        said = cardinal(value)
    if fraction:
        said += f" point {digits(fraction)}"
    return ("minus " if sign else "") + said + (" percent" if percent else "")


def _address(found: re.Match) -> str:
    parts = re.split(r"([@._+-])", found[0])
    return " ".join(SIGNS.get(part, part) for part in parts if part)


def _slashed_date(found: re.Match) -> str:
    first, second, of = (int(part) for part in found.groups())
    month, day = (first, second) if first <= 12 else (second, first)
    return _spoken_date(found[0], of, month, day)


def _iso_date(found: re.Match) -> str:
    return _spoken_date(found[0], *(int(part) for part in found.groups()))


def _spoken_date(written: str, of: int, month: int, day: int) -> str:
    if not (1 <= month <= 12 and 1 <= day <= 31 and of >= 1000):
        return written
    return f"{calendar.month_name[month]} {ordinal(day)}, {year(of)}"


def _date(found: re.Match) -> str:
    if not 1 <= int(found[2]) <= 31:
        return found[0]
    of = f", {year(int(found[3]))}" if found[3] else ""
    return f"{found[1]} {ordinal(int(found[2]))}{of}"


def _telephone(found: re.Match) -> str:
    groups = [digits(group) for group in re.findall(r"\d+", found[0])]
    return ("plus " if found[0].startswith("+") else "") + ", ".join(groups)


def _half_day_time(found: re.Match) -> str:
    hour, minute = int(found[1]), int(found[2] or 0)
    if not 1 <= hour <= 12:
        return found[0]
    clock = cardinal(hour)
    if minute:
        clock += f" {'oh ' if minute < 10 else ''}{cardinal(minute)}"
    # The last point may be that of the sentence too
    after = found.string[found.end() :]
    ends = found[0].endswith(".") and re.match(r"\s*$|\s+[A-Z]", after)
    return f"{clock} {found[3].lower()} m" + ("." if ends else "")


def _time(found: re.Match) -> str:
    hour, minute = int(found[1]), int(found[2])
    if not minute:
        return f"{cardinal(hour)} o'clock" if 0 < hour <= 12 else f"{cardinal(hour)} hundred"
    return f"{cardinal(hour)} {'oh ' if minute < 10 else ''}{cardinal(minute)}"


def _roman(letters: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10}[letter] for letter in letters]
    pairs = zip(values, [*values[1:], 0], strict=True)
    return sum(-value if value < following else value for value, following in pairs)


def _counted_roman(found: re.Match) -> str:
    return f"{found[1]} {cardinal(_roman(found[2]))}"


def _ordinal_roman(found: re.Match) -> str:
    article = "" if found[1] in ("The", "the") else "the "
    return f"{found[1]} {article}{ordinal(_roman(found[2]))}"


def _money(found: re.Match) -> str:
    units, amount = MONEY[found[1]], int(found[2].replace(",", ""))
    said = f"{cardinal(amount)} {_counted(units[0], amount == 1)}"
    small = int(found[3] or 0)
    return f"{said} and {cardinal(small)} {_counted(units[1], small == 1)}" if small else said


def _measure(found: re.Match) -> str:
    counted, *per = UNITS[found[2]].split(" ")
    return " ".join([found[1], _counted(counted, found[1] in ("1", "-1")), *per])


def _counted(unit: str, one: bool) -> str:
    return unit if one or unit.endswith("hertz") else PLURAL.get(unit, f"{unit}s")
