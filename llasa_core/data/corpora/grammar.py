"""The sentences of the built-in corpus: a small random grammar of English, about 500 words, numbers
written as words.

Word order is varied on purpose and a good share of the sentences are random sequences (digits,
names, things): a model cannot guess the next word there and has to read. One word pair in a hundred
is kept out of training by its hash; a sentence that contains one belongs to the test set. Draws use
only `random.Random.random`, whose stream Python guarantees, so that a seed means the same text
everywhere. Homophones and numerals that scoring would misjudge are left out.
"""

import hashlib
import itertools
import json
import random
import re
from functools import lru_cache

# `name: word word` lists words, `name = phrase | phrase` phrases, `{name}` expands in turn, `3 *`
# weighs a phrase.
_GRAMMAR = """
digit: zero one two three four five six seven eight nine
count: two three four five six seven eight nine ten eleven twelve
unit: one two three four five six seven eight nine
teen: ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
ten: twenty thirty forty fifty sixty seventy eighty ninety
hour: one two three four five six seven eight nine ten eleven twelve
minute: five ten fifteen twenty thirty forty fifty
ordinal: first second third fourth fifth sixth seventh eighth tenth eleventh twelfth thirteenth twentieth
weekday: Monday Tuesday Wednesday Thursday Friday Saturday Sunday
month: January February March April May June July August September October November December
season: spring summer autumn winter
color: red blue green yellow black white brown gray orange purple pink golden silver
name: Martha Peter Martin Laura David Sarah Thomas Julia Robert Emma Daniel Alice Henry Linda George Helen Oliver
  Sophie Frank Susan Jack Lucy Felix Rachel Victor Nina Walter Kevin Adam Diana
city: London Paris Berlin Madrid Athens Boston Chicago Moscow Sydney Tokyo Vienna Oslo Toronto Denver Dallas Lisbon
place: station market library bank hotel airport school office hospital park museum bakery beach church garden kitchen
  farm harbor bridge village theater restaurant
food: bread milk butter cheese rice soup coffee tea sugar salt apples lemons potatoes onions tomatoes chicken fish
  cake honey water juice eggs
thing: book letter key telephone lamp chair table box bag coat shirt hat ticket map clock camera bottle basket ladder
  hammer blanket mirror pencil umbrella window door picture radio computer printer bicycle car truck boat
things: books letters keys lamps chairs boxes bags coats shirts tickets maps clocks bottles baskets pencils windows
  pictures bicycles flowers stones
animal: dog cat horse bird rabbit cow sheep goat mouse lion fox
person: teacher doctor driver farmer manager neighbor nurse lawyer painter singer student brother sister mother father
  uncle friend soldier waiter child
adjective: big small old new heavy light warm cold clean dirty broken empty full quiet loud soft strong cheap tall
  tiny square
weather: sunny rainy cloudy windy foggy dry hot stormy cold warm
past: found bought sold lost painted took brought wanted needed forgot broke saw kept sent chose drew made carried
  ordered
verb: find get paint carry move wash open watch drop take bring fix order borrow forget see keep send check
went: went drove ran came flew
did: waited spoke laughed shouted stood smiled sat fell
manner: slowly quickly quietly again together alone early late carefully suddenly
when: today tomorrow tonight yesterday now later soon
soon: today tomorrow tonight now later soon
often: always never often usually sometimes
beside: behind near under above beside
modal: can must will should may
whose: my your our his her the
item: message number extension agent conference mailbox operator line password menu option code account directory
  department greeting voicemail call signal system service request recording user
state: busy available ready free open full empty locked valid invalid connected offline
dial: dial enter press
key: pound star pound star zero one two three four five six seven eight nine
handle: save delete repeat skip check send play cancel
interjection: good yes no maybe okay sorry thanks hello goodbye welcome stop wait listen please
other: star more who where why this that nobody everyone half about because without until
pronoun: I you we they
tens = 2 * {ten} {unit} | {teen} | {ten}
number = 2 * {tens} | {unit} | {unit} hundred | {unit} hundred {tens} | {unit} thousand
day = 2 * {ordinal} | twenty {day_unit}
day_unit: first second third fourth fifth sixth seventh eighth
date = 2 * {weekday} the {day} | {weekday} in {month} | the {day}
clock = {hour} {minute} | half past {hour} | {hour} in the {part} | quarter to {hour}
part: morning afternoon evening
time = 2 * {clock} | noon | midnight
digits3 = {digit} {digit} {digit}
digits4 = {digit} {digit} {digit} {digit}
object = a {color} {thing} | the {adjective} {thing} | {whose} {thing} | a {adjective} {animal} | {count} {things}
  | {count} {adjective} {things} | the {food} | the {animal} | the {thing} | {whose} {color} {thing}
single = a {color} {thing} | the {adjective} {thing} | {whose} {thing} | the {adjective} {animal}
person_or_name = 2 * {name} | {whose} {person} | the {person} | the {adjective} {person} | {name} and {name}
subject = 5 * {person_or_name} | {pronoun} | he | she
spot = in the {place} | near the {place} | at the {place} | in {city} | {beside} the {thing}
  | {beside} {whose} {place} | from {city} | {beside} the {adjective} {thing}
goal = to the {place} | to {city} | to {whose} {place} | to the {adjective} {place}
time_past = {when} | on {weekday} | in {month} | at {time} | in {season} | last {weekday} | every {weekday}
time_next = {soon} | on {weekday} | in {month} | at {time} | next {weekday} | before {time} | after {clock}
any = {name} | {color} | {food} | {animal} | {person} | {adjective} | {place} | {city} | {went} | {did} | {manner}
  | {weekday} | {month} | {season} | {part} | {teen} | {ten} | {state} | {handle} | {when} | {often} | {weather}
  | {beside} | {things} | 2 * {thing} | 2 * {item} | 2 * {verb} | 2 * {past} | 2 * {interjection}
  | 3 * {other} | 3 * {ordinal}
short = 4 * {any} | 5 * {any} {any} | 5 * {any} {any} {any} | 2 * {digits3} | 3 * {number} | call {name}
  | good {part}, {name} | {digit} {digit} | {name} and {name} | {name}, {name} | {month} {day} | {color} {thing}
  | {adjective} {thing} | {adjective} {animal} | the {adjective} {person} | the {color} {things}
  | {interjection}, {name} | {verb} the {thing} | {verb} {whose} {things} | {whose} {item} | press {key}
  | {handle} the {item} | more {food} | {name} {did} | {name} {did} {manner} | {pronoun} {did} | {person} and {person}
  | {food} and {food} | {pronoun} {past} {food} | {weekday} {part} | hello, {name} | goodbye, {name} | to {city}
  | {when} in {city} | {clock} | press {key} {when} | extension {tens} | good {part} | {count} {things}
  | it is {weather} | is it {weather}? | where is {name}? | who {did}? | no {food}, please | not {when}
  | {city} or {city}? | {color} and {color} | wait for {name} | thank you, {name} | please {verb} it | {item} {number}
plain = {subject} {past} {object} {spot} | {subject} {past} {object} {time_past}
  | {subject} {past} {object} for {person_or_name} | {subject} {went} {goal} {time_past}
  | {subject} {went} {goal} with {person_or_name} | {subject} {did} {spot} {time_past}
  | {time_past}, {subject} {past} {object} | {time_past}, {subject} {went} {goal} | {subject} {did} {manner} {spot}
  | {subject} {modal} {verb} {object} {time_next} | {subject} {modal} {verb} {object} {spot}
  | please {verb} {object} {spot} | please {verb} {object} and {verb} {object}
  | {verb} {object} for {person_or_name}, please
  | {modal} {subject} {verb} {object} {time_next}? | did {subject} {verb} {object} {spot}?
  | {subject} {often} {past} {object} {spot} | {single} is {beside} {object} | there is {single} {spot}
  | when did {subject} {verb} {object}? | why is {single} {spot}? | {subject} gave {object} to {person_or_name}
  | {subject} and {subject} {went} {goal} | {single} costs {number} dollars
  | {subject} paid {number} dollars for {object} | the {place} is {adjective} and the {place} is {adjective}
  | if it is {weather}, {subject} {modal} {verb} {object} | {subject} {did}, but {subject} {did} {manner}
  | it was {weather} {spot} {time_past} | the weather in {city} is {weather} and {weather}
  | {time_next} it will be {weather} in {city} | {number} degrees and {weather} in {city} {time_next}
errand = we need {food}, {food} and {food} | get {count} {things} for {person_or_name}
  | {name} wants {food} with {food}, not {food} | the meeting is on {date} | the meeting with {name} starts at {time}
  | {name} was born on {date} | the train to {city} leaves at {time} | the {ordinal} train from {city} is {adjective}
  | come to the {place} on {date} | meet {name} at {time} {spot} | {name} lives at {tens} {color} street
  | turn left at the {place}, then right at the {place} | the {place} opens at {time} and {name} is {adjective}
  | call {name} {time_next} about {object} | my {person} has {count} {things} and {count} {things}
  | {date} is {weather}, {date} is {weather}
telephone = {dial} {digit} to {handle} the {item} | for {item}, press {digit}, for {item}, press {digit}
  | to {handle} {whose} {item}, press the {key} key | please {dial} {whose} {item}, then the pound key
  | the {item} is {state}, please {handle} the {item} | {whose} {item} is not {state} {when}
  | {whose} {item} is {state} and {whose} {item} is {state} | extension {tens} is {state}
  | extension {number} is not {state} | there are {number} people in the {item}
  | {name} is not available, leave the {item} after the {item} | {subject} {modal} {handle} the {item} {time_next}
  | you have {number} new messages in {whose} mailbox | message {number} came from {name} at {time}
  | please hold for {name} in the {name} department | hang up and dial extension {tens} {time_next}
  | the agent will {handle} {whose} {item} {time_next} | thank you for calling the {place}, press {digit} for {item}
  | conference {number} has no {item} and no {item} | {handle} {item} {number} and {handle} {item} {number}
  | the time is {number} minutes and {number} seconds
sequence = 3 * {any} {any} {any} {any} | 4 * {any} {any} {any} {any} {any} | {any}, {any}, {any}, {any}
  | {any} {any} {any} {any} {any} {any} | {any} {any}, {any} {any}, {any} {any}
  | {any} {any} {any} {any} {any} {any} {any} | {any} and {any}, {any} and {any} | {digits4} | {digits3}, {digits4}
  | {digits3} {digits3} {digits4} | the number is {digits3} {digits4} | call {name} at {digits3}, {digits4}
  | extension {digits3} | dial {digits4} {when} | {digits4} {digits4} | {tens}, {tens}, {tens} | {number} and {number}
  | {digits3}, {tens}, {tens} | {name}, {name}, {name} and {name} | {color} {color} {color} {color}
  | {name} {number}, {name} {number} | {adjective} {thing}, {color} {thing}, {adjective} {animal}
  | {thing} {thing} {thing} {thing} {thing} | {city} {month} {name} {food} | {small} {any} {small} {any} {small} {any}
  | {any} {number} {any} {number} | {verb} {things} {verb} {food} {verb} {object}
small: the a no this that every my your and or for with to in
"""

_SHARES = (
    ("short", 0.33),
    ("plain", 0.20),
    ("errand", 0.07),
    ("telephone", 0.14),
    ("sequence", 0.26),
)

_SLOT = re.compile(r"\{(\w+)\}")

_ARTICLE = re.compile(r"\ba(?= [aeio])")


def _parse(grammar):
    table = {}
    for line in re.sub(r"\n +", " ", grammar.strip()).splitlines():
        name, mark, body = re.match(r"(\w+)(:| =) (.+)", line).groups()
        if mark == ":":
            table[name] = body.split()
            continue
        weighted = (
            re.match(r"(?:(\d+) \* )?(.+)", phrase.strip()).groups() for phrase in body.split("|")
        )
        table[name] = [phrase for weight, phrase in weighted for _ in range(int(weight or 1))]
    return table


_TABLE = _parse(_GRAMMAR)


def fingerprint():
    """sha256 of the grammar: texts of two corpora can be compared only when it is equal."""
    return hashlib.sha256(json.dumps([_TABLE, _SHARES]).encode()).hexdigest()


def words_of(sentence):
    """The lower-case words of a sentence, punctuation dropped: "Call Anna, please." -> ["call",
    "anna", "please"].
    """
    return re.findall(r"[a-z']+", sentence.lower())


@lru_cache(maxsize=1 << 16)
def _held_out_pair(first, second):
    digest = hashlib.sha256(f"llasa 207 {first} {second}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 == 0


def is_held_out(sentence):
    """True when two neighbouring words form a kept-out pair (1 % of all pairs, by sha256 of the
    lower-case pair).
    """
    words = words_of(sentence)
    return any(_held_out_pair(*pair) for pair in itertools.pairwise(words))


@lru_cache(maxsize=1)
def vocabulary():
    """All words that the grammar can say, sorted, lower-case."""
    texts = (
        _SLOT.sub(" ", alternative)
        for alternatives in _TABLE.values()
        for alternative in alternatives
    )
    return sorted({word for text in texts for word in words_of(text)})


def _expand(symbol, rng):
    alternatives = _TABLE[symbol]
    alternative = alternatives[int(rng.random() * len(alternatives))]
    return _SLOT.sub(lambda slot: _expand(slot[1], rng), alternative)


def draw(seed):
    """Endless stream of (kind, sentence) by seed, with repeats.

    kind is short, plain, errand, telephone or sequence.
    """
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
        text = _ARTICLE.sub("an", text)
        yield kind, text if text[-1] == "?" else text + "."


def distinct_sentences(seed, held_out):
    """Endless stream of sentences, no word sequence twice, at most ten words.

    Args: seed: any integer or string; equal seeds give equal streams. held_out: False for training
        sentences (no kept-out pair in them), True for test sentences: ordinary
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
