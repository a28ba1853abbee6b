"""The one prompt: training examples and generation prompts for both directions, from cached
template pieces.

TTS: user `Convert the text to speech:` + text in TEXT_UNDERSTANDING, assistant codes in
SPEECH_GENERATION; ASR swaps the sides. The chat template is rendered once, with a fixed date; an
example is a numpy splice of its ids (0.1 ms). Labels and template tokens are located by lengths,
never by values, because pad and eot may share an id.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llasa_core.errors import InputError
from llasa_core.tokenizer import (
    ASR_INSTRUCTION,
    DEFAULT_DATE,
    MARKERS,
    TTS_INSTRUCTION,
    SpeechVocabulary,
    name_of,
    template_pieces,
    text_encoder,
    vocabulary_of,
)

# First word of the names of a script's letters in Unicode: the language that is written in it. Only
# what tells one language from the others; Latin, Cyrillic and Arabic letters are those of many.
LANGUAGE_OF_SCRIPT = {
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


@dataclass(frozen=True, eq=False)
class Example:
    """A training sample. Labels: the ids of `spans`, each (first, end); -100 elsewhere."""

    input_ids: np.ndarray  # int32 (T,)
    spans: tuple[tuple[int, int], ...]  # one, in a conversation one per answer
    # end-of-turn tokens of the template: attention 0 in the public training code
    eot_positions: tuple[int, ...]

    def labels(self) -> np.ndarray:
        """int32 (T,), not shifted: -100 outside the labelled span."""
        labels = np.full_like(self.input_ids, -100)
        for first, end in self.spans:
            labels[first:end] = self.input_ids[first:end]
        return labels


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice to continue: words and codes (F,). Without words, the text must begin with them.

    audio: the recording, where there is one: what a search compares with.
    """

    text: str
    codes: np.ndarray
    audio: Path | None = None


class Prompt:
    """Builds the ids of training examples and generation prompts for one merged tokenizer.

    `date` fills the template's `date_string`. InputError if the tokenizer has no chat template, or
    is not merged.
    """

    def __init__(
        self, tokenizer, vocabulary: SpeechVocabulary | None = None, date: str = DEFAULT_DATE
    ):
        self.vocabulary = vocabulary_of(tokenizer)
        if vocabulary is not None and vocabulary != self.vocabulary:
            raise InputError(
                f"{name_of(tokenizer)}: its layout is {self.vocabulary}, expected {vocabulary}"
            )
        self.tokenizer = tokenizer
        self.date = date
        self._encoder = text_encoder(tokenizer)
        self._refuse_readable_controls()
        before, between, after = template_pieces(tokenizer, date)
        self._before_tts = self._template_ids(before + TTS_INSTRUCTION)
        self._before_asr = self._template_ids(before + ASR_INSTRUCTION)
        self._between = self._template_ids(between)
        self._after = self._template_ids(after)
        tag = self._plain_ids("Speaker a ")
        if self._template_ids(between + "Speaker a ").tolist() != [*self._between, *tag]:
            raise InputError(
                f"{name_of(tokenizer)}: the assistant header of its chat template tokenizes"
                " differently before text, prompts cannot be spliced"
            )
        eot = tokenizer.backend_tokenizer.token_to_id("<|eot_id|>")
        self._eot = tokenizer.eos_token_id if eot is None else eot
        self._tags, self._frames = {}, {}

    def text_ids(self, text: str) -> np.ndarray:
        """int32 (T,): the ids of a text, never a control token. InputError if it is empty."""
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"text: expected a text with words in it, got {text!r}")
        return self._plain_ids(text)

    def tts_example(self, text: str, codes, speaker: str | None = None) -> Example:
        """Text -> codes (F,); labels SPEECH_GENERATION_START .. SPEECH_GENERATION_END."""
        ids = self.vocabulary
        question = self._wrapped(
            ids.text_understanding_start, self.text_ids(text), ids.text_understanding_end
        )
        answer = self._wrapped(
            ids.speech_generation_start, self._code_ids(codes), ids.speech_generation_end
        )
        return self._example(self._before_tts, question, self._speaker_tag(speaker), answer)

    def asr_example(self, text: str, codes) -> Example:
        """Codes (F,) -> text; labels TEXT_GENERATION_START .. TEXT_GENERATION_END."""
        ids = self.vocabulary
        question = self._wrapped(
            ids.speech_understanding_start, self._code_ids(codes), ids.speech_understanding_end
        )
        answer = self._wrapped(
            ids.text_generation_start, self.text_ids(text), ids.text_generation_end
        )
        return self._example(self._before_asr, question, self._speaker_tag(None), answer)

    def chat_example(self, messages) -> Example:
        """A conversation [{"role", "content"}, ..]; labels are each assistant's content and the end
        of its turn.

        The ids are those of the chat template, except that a content never contains a control
        token. `eot_positions` is empty: its end-of-turn tokens are never masked, because answers
        end with them.
        """
        shown = [
            {**one, "content": f"SENTINELOFTURN{number:05d}"} for number, one in enumerate(messages)
        ]
        text = self.tokenizer.apply_chat_template(shown, tokenize=False, date_string=self.date)
        pieces = re.split(r"SENTINELOFTURN(\d{5})", text)
        if [int(number) for number in pieces[1::2]] != list(range(len(messages))):
            raise InputError(
                f"{name_of(self.tokenizer)}: its chat template does not write each content once, in"
                " order"
            )
        parts, spans = [self._template_ids(pieces[0])], []
        for number, after in zip(pieces[1::2], pieces[2::2], strict=True):
            length = sum(map(len, parts))
            message = messages[int(number)]
            parts += [self._plain_ids(message["content"].strip()), self._template_ids(after)]
            if message["role"] == "assistant":
                spans.append((length, length + len(parts[-2]) + 1))
        return Example(np.concatenate(parts, dtype=np.int32), tuple(spans), ())

    def template_length(self, task: str) -> int:
        """Tokens of a "tts" or "asr" example without text and codes: template, markers."""
        before = self._before_asr if task == "asr" else self._before_tts
        return len(before) + len(self._between) + len(self._after) + 4

    def splice(
        self, task: str, text_ids: np.ndarray, codes: np.ndarray, speaker: str | None = None
    ) -> Example:
        """The "tts" or "asr" example of checked ids (T,) and codes (F,), in 5 us."""
        key = (task, speaker)
        if key not in self._frames:
            self._frames[key] = self._frame(task, speaker)
        opening, middle, closing, eots = self._frames[key]
        first, second = (
            (len(codes), len(text_ids)) if task == "asr" else (len(text_ids), len(codes))
        )
        a, b = len(opening) + first, len(opening) + first + len(middle)
        ids = np.empty(b + second + len(closing), np.int32)
        ids[: len(opening)], ids[a:b], ids[b + second :] = opening, middle, closing
        text, spoken = (
            (ids[b : b + second], ids[len(opening) : a])
            if task == "asr"
            else (ids[len(opening) : a], ids[b : b + second])
        )
        text[:] = text_ids
        np.add(codes, self.vocabulary.first_code, out=spoken, dtype=np.int32, casting="same_kind")
        where = (
            *eots[0],
            *(at + first for at in eots[1]),
            *(at + first + second for at in eots[2]),
        )
        return Example(ids, ((b - 1, b + second + 1),), where)

    def _frame(self, task: str, speaker: str | None) -> tuple:
        """The ids before, between and after text and codes, and the positions of end-of-turn tokens
        in each part.

        Found in an example of one text id and one code; the positions do not count text and codes.
        """
        code = np.zeros(1, np.int64)
        made = (
            self.asr_example("a", code) if task == "asr" else self.tts_example("a", code, speaker)
        )
        size = len(self._plain_ids("a"))
        first, second = (1, size) if task == "asr" else (size, 1)
        a = len(self._before_asr if task == "asr" else self._before_tts) + 1
        b = made.spans[0][0] + 1
        opening, middle, closing = (
            made.input_ids[:a],
            made.input_ids[a + first : b],
            made.input_ids[b + second :],
        )
        eots = ([], [], [])
        for at in made.eot_positions:
            if at < a:
                eots[0].append(at)
            elif at < b:
                eots[1].append(at - first)
            else:
                eots[2].append(at - first - second)
        return opening, middle, closing, eots

    def speaker_tag_length(self, speaker: str | None) -> int:
        """Tokens that the speaker's tag adds to a "tts" example."""
        return len(self._speaker_tag(speaker))

    def tts_prompt(
        self, text: str, speaker: str | None = None, voice: Voice | None = None
    ) -> np.ndarray:
        """int32 (T,), up to SPEECH_GENERATION_START and, if a voice is given, its codes.

        With a voice the text is the voice's words, a space where the script uses one, and `text`,
        so that the model continues
        the voice; if the voice has no words, `text` already begins with them.
        """
        ids = self.vocabulary
        if voice is not None:
            self.text_ids(text)
            text = joined_texts(voice.text, text)
        question = self._wrapped(
            ids.text_understanding_start, self.text_ids(text), ids.text_understanding_end
        )
        parts = [
            self._before_tts,
            question,
            self._between,
            self._speaker_tag(speaker),
            [ids.speech_generation_start],
        ]
        if voice is not None:
            parts.append(self._code_ids(voice.codes))
        return np.concatenate(parts, dtype=np.int32)

    def asr_prompt(self, codes) -> np.ndarray:
        """int32 (T,), up to TEXT_GENERATION_START."""
        ids = self.vocabulary
        question = self._wrapped(
            ids.speech_understanding_start, self._code_ids(codes), ids.speech_understanding_end
        )
        parts = [self._before_asr, question, self._between, [ids.text_generation_start]]
        return np.concatenate(parts, dtype=np.int32)

    def _example(self, before, question, tag, answer) -> Example:
        parts = [before, question, self._between, tag, answer, self._after]
        ends = np.cumsum([len(part) for part in parts]).tolist()
        starts = [0, *ends[:-1]]
        template = ((starts[0], before), (starts[2], self._between), (starts[5], self._after))
        eots = tuple(
            start + int(at) for start, ids in template for at in np.flatnonzero(ids == self._eot)
        )
        return Example(np.concatenate(parts, dtype=np.int32), ((starts[4], ends[4]),), eots)

    def _wrapped(self, start: int, ids: np.ndarray, end: int) -> np.ndarray:
        wrapped = np.empty(len(ids) + 2, np.int32)
        wrapped[0], wrapped[1:-1], wrapped[-1] = start, ids, end
        return wrapped

    def _code_ids(self, codes) -> np.ndarray:
        ids = self.vocabulary.codes_to_ids(codes)
        if len(ids) == 0:
            raise InputError("codes: expected at least one speech code, got none")
        return ids

    def _speaker_tag(self, speaker: str | None) -> np.ndarray:
        if not speaker:
            return np.empty(0, np.int32)
        if speaker not in self._tags:
            self._tags[speaker] = self._plain_ids(f"Speaker {speaker} ")
        return self._tags[speaker]

    def _plain_ids(self, text: str) -> np.ndarray:
        return np.array(self._encoder.encode(text, add_special_tokens=False).ids, np.int32)

    def _template_ids(self, text: str) -> np.ndarray:
        return np.array(
            self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, np.int32
        )

    def _refuse_readable_controls(self):
        """If plain text could encode to a special token, a transcript could inject
        control tokens.
        """
        for name in {*self.tokenizer.all_special_tokens, *MARKERS}:
            if self.tokenizer.backend_tokenizer.token_to_id(name) in self._plain_ids(name):
                raise InputError(
                    f"{name_of(self.tokenizer)}: plain text {name!r} becomes that control token"
                )


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
            found[LANGUAGE_OF_SCRIPT.get(script, "")] += 1 if script not in ("CJK", "HANGUL") else 3
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
