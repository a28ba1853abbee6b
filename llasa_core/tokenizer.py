"""The merged vocabulary: text ids, then eight markers, then the speech codes (code c has id
text_size + 8 + c).

Merges a text tokenizer with N codes, loads merged ones, and checks them against the released
layout. Hot paths do arithmetic on ids; `<|s_N|>` strings are built only once, at the merge. A
transcript may contain `<|s_12|>` or `<|eot_id|>`: text is encoded by `text_encoder`, which knows no
added token, so it never turns into control tokens.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llasa_core.checkpoint import reach, template_problem
from llasa_core.errors import InputError

DEFAULT_DATE = "26 Jul 2024"

TTS_INSTRUCTION = "Convert the text to speech:"

ASR_INSTRUCTION = "Convert the speech to text:"


_TURN = "{{- '<|start_header_id|>' + %s + '<|end_header_id|>\n\n' + %s + '<|eot_id|>' }}"

_TURNS = (
    "{%- for message in messages %}"
    + _TURN % ("message['role']", "message['content'] | trim")
    + "{%- endfor %}{%- if add_generation_prompt %}"
    + "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)

_HEAD = (
    "{{- bos_token }}{%- if date_string is not defined %}{%- set date_string = '"
    + DEFAULT_DATE
    + "' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
)

_DATED = "'Today Date: ' + date_string + '\n\n' + system"

_SYSTEM = _TURN % ("'system'", "'Cutting Knowledge Date: December 2023\n' + " + _DATED)

LLAMA3_TEMPLATE = _HEAD + _SYSTEM + _TURNS

# The mini template spends tokens on a system part only where a system message is given.
MINI_TEMPLATE = _HEAD + "{%- if system %}" + _TURN % ("'system'", _DATED) + "{%- endif %}" + _TURNS

MARKERS = (
    "<|TEXT_GENERATION_START|>",
    "<|TEXT_GENERATION_END|>",
    "<|TEXT_UNDERSTANDING_START|>",
    "<|TEXT_UNDERSTANDING_END|>",
    "<|SPEECH_GENERATION_START|>",
    "<|SPEECH_GENERATION_END|>",
    "<|SPEECH_UNDERSTANDING_START|>",
    "<|SPEECH_UNDERSTANDING_END|>",
)

RELEASED_TEXT_SIZE = 128_256

RELEASED_CODEBOOK_SIZE = 65_536

_RELEASED_CONTROLS = {
    "<|begin_of_text|>": 128_000,
    "<|start_header_id|>": 128_006,
    "<|end_header_id|>": 128_007,
    "<|eot_id|>": 128_009,
}

_RELEASED_INSTRUCTION_IDS = [12281, 279, 1495, 311, 8982, 25]


@dataclass(frozen=True)
class SpeechVocabulary:
    """Id arithmetic of the merged vocabulary: `text_size` ids, 8 markers, `codebook_size` codes."""

    text_size: int
    codebook_size: int

    def __post_init__(self):
        if self.text_size < 1 or self.codebook_size < 1:
            raise InputError(
                f"vocabulary: text_size and codebook_size must be positive, got {self}"
            )

    @property
    def size(self) -> int:
        return self.first_code + self.codebook_size

    @property
    def first_code(self) -> int:
        return self.text_size + len(MARKERS)

    @property
    def text_generation_start(self) -> int:
        return self.text_size

    @property
    def text_generation_end(self) -> int:
        return self.text_size + 1

    @property
    def text_understanding_start(self) -> int:
        return self.text_size + 2

    @property
    def text_understanding_end(self) -> int:
        return self.text_size + 3

    @property
    def speech_generation_start(self) -> int:
        return self.text_size + 4

    @property
    def speech_generation_end(self) -> int:
        return self.text_size + 5

    @property
    def speech_understanding_start(self) -> int:
        return self.text_size + 6

    @property
    def speech_understanding_end(self) -> int:
        return self.text_size + 7

    def codes_to_ids(self, codes) -> np.ndarray:
        """Codes (F,), any integers, to ids int64 (F,). InputError outside the codebook."""
        codes = _integers(codes, "codes").astype(np.int64)
        wrong = (codes < 0) | (codes >= self.codebook_size)
        if wrong.any():
            at = int(wrong.argmax())
            raise InputError(
                f"codes: code {codes[at]} at index {at}, expected 0..{self.codebook_size - 1}"
            )
        return codes + self.first_code

    def ids_to_codes(self, ids) -> np.ndarray:
        """Ids (F,) to codes int32 (F,). InputError if one is not the id of a speech code."""
        ids = _integers(ids, "ids").astype(np.int64)
        wrong = ~self.is_code(ids)
        if wrong.any():
            at = int(wrong.argmax())
            raise InputError(
                f"ids: id {ids[at]} at index {at} is no speech code "
                f"({self.first_code}..{self.size - 1})"
            )
        return (ids - self.first_code).astype(np.int32)

    def is_code(self, ids) -> np.ndarray:
        """Boolean array of the shape of `ids`: which of them are speech codes."""
        ids = np.asarray(ids)
        return (ids >= self.first_code) & (ids < self.size)


def _integers(values, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.size == 0:
        values = values.astype(np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(
            f"{name}: expected a flat array of integers, got {values.dtype} of shape {values.shape}"
        )
    return values


def name_of(tokenizer) -> str:
    """Where a tokenizer was loaded from, for error messages."""
    return getattr(tokenizer, "name_or_path", "") or "tokenizer"


def merge_tokenizer(tokenizer, codebook_size: int):
    """A copy of a text tokenizer with the 8 markers and `<|s_0|>..` appended from id len(tokenizer)
    on.

    They are added as ordinary tokens, not special ones, as in the released checkpoints, so that
    decoding with `skip_special_tokens=True` keeps them. InputError if the tokenizer already
    contains one of them.
    """
    from tokenizers import AddedToken

    vocabulary = SpeechVocabulary(len(tokenizer), codebook_size)
    merged = copy.deepcopy(tokenizer)
    names = [*MARKERS, *(f"<|s_{code}|>" for code in range(codebook_size))]
    added = merged.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    if added != len(names):
        raise InputError(
            f"{name_of(tokenizer)}: {len(names) - added} of the markers and speech codes are"
            " already in it"
        )
    if vocabulary_of(merged) != vocabulary:
        raise InputError(
            f"{name_of(tokenizer)}: its ids have gaps, speech codes do not start at"
            f" {vocabulary.first_code}"
        )
    return merged


def vocabulary_of(tokenizer) -> SpeechVocabulary:
    """Layout of a merged tokenizer. InputError unless markers and codes are in order at its end."""
    token_to_id = tokenizer.backend_tokenizer.token_to_id
    text_size = token_to_id(MARKERS[0])
    if text_size is None:
        raise InputError(
            f"{name_of(tokenizer)}: no {MARKERS[0]} in it, expected a text tokenizer merged with"
            " speech codes"
        )
    codebook_size = len(tokenizer) - text_size - len(MARKERS)
    if codebook_size < 1:
        raise InputError(
            f"{name_of(tokenizer)}: {MARKERS[0]} has id {text_size} of {len(tokenizer)}, no room"
            " for speech codes"
        )
    vocabulary = SpeechVocabulary(text_size, codebook_size)
    expected = {name: text_size + i for i, name in enumerate(MARKERS)}
    expected |= {
        "<|s_0|>": vocabulary.first_code,
        f"<|s_{codebook_size - 1}|>": vocabulary.size - 1,
    }
    for name, wanted in expected.items():
        if token_to_id(name) != wanted:
            raise InputError(
                f"{name_of(tokenizer)}: {name} has id {token_to_id(name)}, expected {wanted}"
            )
    return vocabulary


def text_encoder(tokenizer):
    """A `tokenizers.Tokenizer` over the same model without any added token: no text becomes a
    control token.

    It shares the model with `tokenizer`, so it costs nothing. `.encode(text,
    add_special_tokens=False).ids` equals the tokenizer's own ids unless the text contains an added
    token.
    """
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    plain = Tokenizer(backend.model)
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = backend.pre_tokenizer
    return plain


def template_pieces(tokenizer, date: str = DEFAULT_DATE) -> tuple[str, str, str]:
    """What the chat template writes before the user's content, between the two contents, and after
    the assistant's.

    Rendered once with sentinels as contents. InputError if there is no template or it changes the
    contents.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{name_of(tokenizer)}: no chat template in it, expected one with a user and an"
            " assistant turn"
        )
    problem = None
    if tokenizer.chat_template not in (LLAMA3_TEMPLATE, MINI_TEMPLATE):
        special_tokens = json.dumps(tokenizer.special_tokens_map)
        problem = template_problem(json.dumps(tokenizer.chat_template), special_tokens)
    if problem is not None:
        raise InputError(f"{name_of(tokenizer)}: its chat template {problem}")
    user, assistant = "SENTINELOFTHEUSER", "SENTINELOFTHEASSISTANT"
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, date_string=date)
    except Exception as error:  # jinja2 has its own exceptions; the template is user input
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{name_of(tokenizer)}: its chat template failed on a user and an assistant turn:"
            f" {reason}"
        ) from error
    if (
        text.count(user) != 1
        or text.count(assistant) != 1
        or text.index(user) > text.index(assistant)
    ):
        raise InputError(
            f"{name_of(tokenizer)}: its chat template does not write the user's, then the"
            " assistant's content once"
        )
    before, rest = text.split(user)
    between, after = rest.split(assistant)
    return before, between, after


def load_tokenizer(path_or_id):
    """The fast tokenizer of a folder or a hub id, read from its tokenizer.json; code from a
    repository never runs.

    InputError if there is none. 193,800 entries take about 3 s.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(path_or_id)
    if folder.exists() and not (folder / "tokenizer.json").is_file():
        raise InputError(
            f"{folder}: no tokenizer.json there, expected the folder of a fast tokenizer"
        )
    if not folder.exists() and (
        folder.is_absolute() or len(folder.parts) > 2 or str(folder).startswith(".")
    ):
        raise InputError(f"{folder}: no such folder, expected the folder of a fast tokenizer")
    if not folder.exists():
        reach(str(path_or_id), "tokenizer.json")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            str(path_or_id), trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises bare Exception on a damaged file
        what = (
            "its tokenizer cannot be read"
            if folder.exists()
            else "no such folder, and no tokenizer of that hub id"
        )
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path_or_id}: {what}: {reason}") from error
    released = SpeechVocabulary(RELEASED_TEXT_SIZE, RELEASED_CODEBOOK_SIZE)
    if not tokenizer.chat_template and len(tokenizer) == released.size:
        tokenizer.chat_template = LLAMA3_TEMPLATE
    return tokenizer


def check_layout(tokenizer, config=None) -> list[str]:
    """Differences from the released checkpoints, one line each; an empty list means they match.

    `config` is a model's config (an object or a dict with `vocab_size`), checked too if given.
    """
    released = SpeechVocabulary(RELEASED_TEXT_SIZE, RELEASED_CODEBOOK_SIZE)
    expected = dict(_RELEASED_CONTROLS)
    expected |= {name: RELEASED_TEXT_SIZE + i for i, name in enumerate(MARKERS)}
    expected |= {
        "<|s_0|>": released.first_code,
        f"<|s_{RELEASED_CODEBOOK_SIZE - 1}|>": released.size - 1,
    }
    differences = []
    token_to_id = tokenizer.backend_tokenizer.token_to_id
    if len(tokenizer) != released.size:
        differences.append(f"vocabulary size: {len(tokenizer)}, expected {released.size}")
    for name, wanted in expected.items():
        found = token_to_id(name)
        if found != wanted:
            differences.append(
                f"{name}: {'missing' if found is None else f'id {found}'}, expected id {wanted}"
            )
    codes = range(1, RELEASED_CODEBOOK_SIZE - 1)
    astray = [code for code in codes if token_to_id(f"<|s_{code}|>") != released.first_code + code]
    if astray:
        first = f"<|s_{astray[0]}|>"
        differences.append(
            f"speech codes between: {len(astray)} of {len(codes)} missing or at another id, from"
            f" {first} on"
        )
    found = text_encoder(tokenizer).encode(TTS_INSTRUCTION, add_special_tokens=False).ids
    if found != _RELEASED_INSTRUCTION_IDS:
        differences.append(
            f"text ids of {TTS_INSTRUCTION!r}: {found}, expected {_RELEASED_INSTRUCTION_IDS}"
        )
    differences += _check_template(tokenizer)
    if config is not None:
        found = (
            config.get("vocab_size")
            if isinstance(config, dict)
            else getattr(config, "vocab_size", None)
        )
        if found != released.size:
            differences.append(f"config vocab_size: {found}, expected {released.size}")
    return differences


def _check_template(tokenizer) -> list[str]:
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    date_line = f"Today Date: {DEFAULT_DATE}\n"
    system = (
        "<|begin_of_text|>" + header.format("system") + "Cutting Knowledge Date: December 2023\n"
    )
    expected = (
        system + date_line + "\n<|eot_id|>" + header.format("user"),
        "<|eot_id|>" + header.format("assistant"),
        "<|eot_id|>",
    )
    try:
        pieces = template_pieces(tokenizer)
    except InputError as error:
        return [f"chat template: {error}"]
    differences = []
    if date_line not in pieces[0]:
        differences.append(
            f"chat template: no date line {date_line!r} when date_string is {DEFAULT_DATE!r}"
        )
    names = ("before the text", "between text and speech", "after the speech")
    for name, found, wanted in zip(names, pieces, expected, strict=True):
        if found != wanted:
            differences.append(f"chat template {name}: {found!r}, expected {wanted!r}")
    return differences
