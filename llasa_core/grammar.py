"""The sentences of the built-in corpus: a small random grammar of English, about 600 words, numbers written as words.

A symbol expands to one of its alternatives; `{name}` inside an alternative is expanded in turn. Word order is varied on purpose and a
good share of the sentences are random sequences (digits, names, things): a model cannot guess the next word there and has to read.
One word pair in a hundred is kept out of training by its hash: a sentence that contains one belongs to the test set.
Draws use `random.Random.random` only, whose stream Python guarantees, so that a seed means the same text everywhere.
"""

import hashlib
import random
import re
from functools import lru_cache

_WORDS = {
    "digit": "zero one two three four five six seven eight nine",
    "count": "two three four five six seven eight nine ten eleven twelve",
    "unit": "one two three four five six seven eight nine",
    "teen": "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
    "ten": "twenty thirty forty fifty sixty seventy eighty ninety",
    "hour": "one two three four five six seven eight nine ten eleven twelve",
    "minute": "five ten fifteen twenty thirty forty fifty",
    "ordinal": "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fifteenth "
    "twentieth thirtieth",
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April May June July August September October November December",
    "season": "spring summer autumn winter",
    "color": "red blue green yellow black white brown gray orange purple pink golden silver",
    "name": "Anna Peter Martin Laura David Sarah Thomas Julia Robert Emma Daniel Alice Henry Maria George Helen Oliver "
    "Sophie Frank Karen Jack Lucy Simon Rachel Victor Nina Oscar Grace Paul Diana",
    "city": "London Paris Berlin Madrid Rome Boston Chicago Dublin Sydney Tokyo Vienna Oslo Toronto Denver Dallas Lisbon",
    "place": "station market library bank hotel airport school office hospital park museum bakery beach church garden "
    "kitchen farm harbor bridge village theater restaurant",
    "food": "bread milk butter cheese rice soup coffee tea sugar salt apples lemons potatoes onions tomatoes chicken "
    "fish cake honey water juice eggs",
    "thing": "book letter key telephone lamp chair table box bag coat shirt hat ticket map clock camera bottle basket "
    "ladder hammer blanket mirror pencil umbrella window door picture radio computer printer bicycle car truck boat",
    "things": "books letters keys lamps chairs boxes bags coats shirts tickets maps clocks bottles baskets pencils "
    "windows pictures bicycles flowers stones",
    "animal": "dog cat horse bird rabbit cow sheep duck mouse lion fox",
    "person": "teacher doctor driver farmer manager neighbor nurse lawyer painter singer student brother sister mother "
    "father uncle friend soldier waiter child",
    "adj": "big small old new heavy light warm cold clean dirty broken empty full quiet loud soft strong cheap tall "
    "short round square",
    "sky": "sunny rainy cloudy windy foggy dry hot wet stormy cold warm",
    "found": "found bought sold lost painted carried moved washed opened watched dropped took brought fixed wanted "
    "needed ordered borrowed forgot broke saw liked",
    "find": "find buy sell paint carry move wash open watch drop take bring fix order borrow forget see keep send check",
    "went": "walked drove ran returned traveled went came",
    "did": "waited slept sang laughed worked danced stopped answered smiled",
    "how": "slowly quickly quietly again together alone early late carefully suddenly",
    "when": "today tomorrow tonight yesterday now later soon",
    "soon": "today tomorrow tonight now later soon",
    "often": "always never often usually sometimes",
    "where": "behind near under above beside",
    "modal": "can must will should may",
    "whose": "my your our his her their the",
    "rest": "message number extension agent conference mailbox operator line password menu option caller code account "
    "queue directory department greeting voicemail call tone system service request recording user",
    "busy": "busy available ready free open full empty locked valid invalid connected offline",
    "dial": "dial enter press",
    "key": "pound star pound star zero one two three four five six seven eight nine",
    "erase": "save delete repeat skip check send forward play return cancel",
    "yes": "good yes no maybe okay sorry thanks hello goodbye welcome stop wait listen please",
    "extra": "star more who nobody everyone half about because without until",
    "we": "I you we they",
}

_RULES = {
    # numbers, dates and times
    "two": ["{ten} {unit}", "{ten} {unit}", "{teen}", "{ten}"],
    "number": ["{two}", "{two}", "{unit}", "{unit} hundred", "{unit} hundred {two}", "{unit} thousand"],
    "day": ["{ordinal}", "twenty {dayunit}"],
    "dayunit": ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"],
    "date": ["{month} {day}", "the {day} of {month}", "{weekday} the {day}", "{weekday}, {month} {day}"],
    "clock12": ["{hour} {minute}", "half past {hour}", "{hour} in the {part}", "quarter to {hour}", "{hour} o'clock"],
    "part": ["morning", "afternoon", "evening"],
    "time": ["{clock12}", "{clock12}", "noon", "midnight"],
    "d3": ["{digit} {digit} {digit}"],
    "d4": ["{digit} {digit} {digit} {digit}"],
    # phrases
    "one": ["a {color} {thing}", "the {adj} {thing}", "{whose} {thing}", "a {adj} {animal}", "{count} {things}"]
    + ["{count} {adj} {things}", "some {food}", "the {animal}", "the {thing}", "{whose} {color} {thing}"],
    "single": ["a {color} {thing}", "the {adj} {thing}", "{whose} {thing}", "the {adj} {animal}", "the {food}"],
    "who": ["{name}", "{name}", "{whose} {person}", "the {person}", "the {adj} {person}", "{name} and {name}", "{we}"],
    "spot": ["in the {place}", "near the {place}", "at the {place}", "in {city}", "{where} the {thing}"]
    + ["{where} {whose} {place}", "from {city}", "{where} the {adj} {thing}"],
    "goal": ["to the {place}", "to {city}", "to {whose} {place}", "to the {adj} {place}"],
    "at": ["{when}", "on {weekday}", "in {month}", "at {time}", "in {season}", "last {weekday}", "every {weekday}"],
    "next": ["{soon}", "on {weekday}", "in {month}", "at {time}", "next {weekday}", "before {time}", "after {time}"],
    "any": ["{name}", "{color}", "{thing}", "{things}", "{food}", "{animal}", "{person}", "{adj}", "{place}", "{city}"]
    + ["{rest}", "{find}", "{found}", "{went}", "{did}", "{how}", "{weekday}", "{month}", "{teen}", "{ten}", "{busy}"]
    + ["{rest}", "{erase}", "{yes}", "{thing}", "{find}", "{found}", "{ordinal}", "{when}", "{often}", "{sky}", "{where}"]
    + ["{season}", "{yes}", "{part}", "{extra}", "{extra}", "{ordinal}", "{ordinal}"],
    # one to three words
    "short": ["{any}"] * 4
    + ["{any} {any}"] * 5
    + ["{any} {any} {any}"] * 5
    + ["{d3}"] * 2
    + ["{number}"] * 3
    + ["call {name}", "good {part}, {name}", "{digit} {digit}", "{name} and {name}", "{name}, {name}", "{month} {day}"]
    + ["{color} {thing}", "{adj} {thing}", "{adj} {animal}", "the {adj} {person}", "the {color} {things}", "{yes}, {name}"]
    + ["{find} the {thing}", "{find} {whose} {things}", "{whose} {rest}", "press {key}", "{erase} the {rest}", "more {food}"]
    + ["{name} {did}", "{name} {did} {how}", "{we} {did}", "{person} and {person}", "{food} and {food}", "{we} {found} {food}"]
    + ["{weekday} {part}", "hello, {name}", "goodbye, {name}", "to {city}", "{when} in {city}", "{clock12}", "extension {two}", "good {part}"]
    + ["{count} {things}", "it is {sky}", "is it {sky}?", "where is {name}?", "who {did}?", "no {food}, please", "not {when}"]
    + ["{city} or {city}?", "{color} and {color}", "wait for {name}", "thank you, {name}", "please {find} it", "{rest} {number}"],
    # four to ten words, ordinary sentences
    "plain": [
        "{who} {found} {one} {spot}",
        "{who} {found} {one} {at}",
        "{who} {found} {one} and {one}",
        "{who} {went} {goal} {at}",
        "{who} {went} {goal} with {who}",
        "{who} {did} {spot} {at}",
        "{at}, {who} {found} {one}",
        "{at}, {who} {went} {goal}",
        "{who} {did} {how} {spot}",
        "{who} {modal} {find} {one} {next}",
        "{who} {modal} {find} {one} {spot}",
        "please {find} {one} {spot}",
        "please {find} {one} and {find} {one}",
        "{find} {one} for {who}, please",
        "{modal} {who} {find} {one} {next}?",
        "did {who} {find} {one} {spot}?",
        "{who} {often} {found} {one} {spot}",
        "{single} is {where} {one}",
        "there is {single} {spot}",
        "where did {who} {find} {one}?",
        "why is {single} {spot}?",
        "{who} gave {one} to {who}",
        "{who} and {who} {went} {goal}",
        "{one} cost {number} dollars",
        "{who} paid {number} dollars for {one}",
        "the {place} is {adj} and the {place} is {adj}",
        "if it is {sky}, {who} {modal} {find} {one}",
        "{who} {did}, but {who} {did} {how}",
        "it was {sky} {spot} {at}",
        "the weather in {city} is {sky} and {sky}",
        "{next} it will be {sky} in {city}",
        "{number} degrees and {sky} in {city} {next}",
    ],
    "errand": [
        "we need {food}, {food} and {food}",
        "buy {count} {things} and some {food}",
        "{name} wants {food} with {food}, not {food}",
        "the meeting is on {date}",
        "the meeting with {name} starts at {time}",
        "{name} was born on {date}",
        "the train to {city} leaves at {time}",
        "the {ordinal} train from {city} is {adj}",
        "come to the {place} on {date}",
        "meet {name} at {time} {spot}",
        "{name} lives at {number} {name} street",
        "turn left at the {place}, then right at the {place}",
        "the {place} opens at {time} and {name} is {adj}",
        "call {name} {next} about {one}",
        "my {person} has {count} {things} and {count} {things}",
        "{date} is {sky}, {date} is {sky}",
    ],
    "telephone": [
        "{dial} {digit} to {erase} the {rest}",
        "for {rest}, press {digit}, for {rest}, press {digit}",
        "to {erase} {whose} {rest}, press the {key} key",
        "please {dial} {whose} {rest}, then the pound key",
        "the {rest} is {busy}, please {erase} the {rest}",
        "{whose} {rest} is not {busy} {when}",
        "{whose} {rest} is {busy} and {whose} {rest} is {busy}",
        "extension {d3} is {busy}",
        "extension {d4} is not {busy}",
        "there are {number} callers in the {rest}",
        "{name} is not available, leave a {rest} after the {rest}",
        "{who} {modal} {erase} the {rest} {next}",
        "you have {number} new messages in {whose} mailbox",
        "message {number} came from {name} at {time}",
        "please hold for {name} in the {name} department",
        "the number is {d3} {d4}",
        "{name} can be reached at {d3}, {d4}",
        "hang up and dial {d4} {next}",
        "an agent will {erase} {whose} {rest} {next}",
        "thank you for calling the {place}, press {digit} for {rest}",
        "conference {number} has {count} users and no {rest}",
        "{erase} {rest} {number} and {erase} {rest} {number}",
        "the wait is {number} minutes and {number} seconds",
    ],
    # random sequences: nothing but the text tells the next word
    "sequence": ["{any} {any} {any} {any}"] * 3
    + ["{any} {any} {any} {any} {any}"] * 4
    + ["{any}, {any}, {any}, {any}", "{any} {any} {any} {any} {any} {any}", "{any} {any}, {any} {any}, {any} {any}"]
    + ["{any} {any} {any} {any} {any} {any} {any}", "{any} and {any}, {any} and {any}"]
    + ["{d4}", "{d3}, {d4}", "{d3} {d3} {d4}", "{d4} {d4}", "{two}, {two}, {two}", "{number} and {number}", "{d3}, {two}, {two}"]
    + ["{name}, {name}, {name} and {name}", "{color} {color} {color} {color}", "{name} {number}, {name} {number}"]
    + ["{adj} {thing}, {color} {thing}, {adj} {animal}", "{thing} {thing} {thing} {thing} {thing}", "{city} {month} {name} {food}"]
    + ["{the} {any} {the} {any} {the} {any}", "{any} {number} {any} {number}", "{find} {things} {find} {food} {find} {one}"],
    "the": ["the", "a", "no", "this", "that", "every", "my", "your", "and", "or", "for", "with", "to", "in"],
}
_SHARES = (("short", 0.33), ("plain", 0.20), ("errand", 0.07), ("telephone", 0.14), ("sequence", 0.26))
_TABLE = {**{name: words.split() for name, words in _WORDS.items()}, **_RULES}
_SLOT = re.compile(r"\{(\w+)\}")


def words_of(sentence):
    """The lower-case words of a sentence, punctuation dropped: "Call Anna, please." -> ["call", "anna", "please"]."""
    return re.findall(r"[a-z']+", sentence.lower())


@lru_cache(maxsize=1 << 16)
def _held_out_pair(first, second):
    digest = hashlib.sha256(f"llasa 207 {first} {second}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 == 0


def is_held_out(sentence):
    """True when two neighbouring words form a kept-out pair (1 % of all pairs, by sha256 of the lower-case pair)."""
    words = words_of(sentence)
    return any(_held_out_pair(*pair) for pair in zip(words, words[1:], strict=False))


def vocabulary():
    """All words that the grammar can say, sorted, lower-case."""
    texts = (_SLOT.sub(" ", alternative) for alternatives in _TABLE.values() for alternative in alternatives)
    return sorted({word for text in texts for word in words_of(text)})


def _expand(symbol, rng):
    alternatives = _TABLE[symbol]
    alternative = alternatives[int(rng.random() * len(alternatives))]
    return _SLOT.sub(lambda slot: _expand(slot[1], rng), alternative)


def draw(seed):
    """Endless stream of (kind, sentence) by seed; kind is short, plain, errand, telephone or sequence; repeats are possible."""
    rng = random.Random(f"llasa sentences {seed}")
    while True:
        level = rng.random()
        kind = _SHARES[-1][0]
        for name, share in _SHARES:
            if level < share:
                kind = name
                break
            level -= share
        text = _expand(kind, rng)
        text = text[0].upper() + text[1:]
        yield kind, text if text[-1] == "?" else text + "."


def distinct_sentences(seed, held_out):
    """Endless stream of sentences, no word sequence twice, at most ten words.

    Args:
        seed: any integer or string; equal seeds give equal streams.
        held_out: False for training sentences (no kept-out pair in them), True for test sentences: ordinary
            sentences (no random sequences) of four to ten words with at least one kept-out pair.
    """
    seen = set()
    for kind, sentence in draw(seed):
        words = tuple(words_of(sentence))
        if len(words) > 10 or words in seen or is_held_out(sentence) != held_out:
            continue
        if held_out and (kind in ("short", "sequence") or len(words) < 4):
            continue
        seen.add(words)
        yield sentence
