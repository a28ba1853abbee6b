"""The unified vocabulary: text ids, then eight markers, then the speech codes (code c has id text_size + 8 + c).

Owns the merge of a text tokenizer with N codes, its check against the released layout, and two text tokenizers: Llama-3
from Meta's vocabulary file and a mini byte-level BPE. Hot paths do arithmetic on ids; `<|s_N|>` strings are only built
once, at the merge. Trap: a transcript may spell `<|s_12|>` or `<|eot_id|>`; text is encoded by `text_encoder`, which
knows no added token, so it never turns into speech or control tokens.
"""

import base64
import copy
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llasa_core.errors import InputError

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
DEFAULT_DATE = "26 Jul 2024"
TTS_INSTRUCTION = "Convert the text to speech:"
ASR_INSTRUCTION = "Convert the speech to text:"

RELEASED_TEXT_SIZE = 128_256
RELEASED_CODEBOOK_SIZE = 65_536
_RELEASED_CONTROLS = {
    "<|begin_of_text|>": 128_000,
    "<|start_header_id|>": 128_006,
    "<|end_header_id|>": 128_007,
    "<|eot_id|>": 128_009,
}
_RELEASED_INSTRUCTION_IDS = [12281, 279, 1495, 311, 8982, 25]

# How Llama-3 cuts text into words before the byte pairs are merged.
_WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TURN = "{{- '<|start_header_id|>' + %s + '<|end_header_id|>\n\n' + %s + '<|eot_id|>' }}"
_TURNS = (
    "{%- for message in messages %}"
    + _TURN % ("message['role']", "message['content'] | trim")
    + "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_HEAD = (
    "{{- bos_token }}{%- if date_string is not defined %}{%- set date_string = '" + DEFAULT_DATE + "' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
)
_DATED = "'Today Date: ' + date_string + '\n\n' + system"
_SYSTEM = _TURN % ("'system'", "'Cutting Knowledge Date: December 2023\n' + " + _DATED)
LLAMA3_TEMPLATE = _HEAD + _SYSTEM + _TURNS
# The mini template spends tokens on a system part only where a system message is given.
MINI_TEMPLATE = _HEAD + "{%- if system %}" + _TURN % ("'system'", _DATED) + "{%- endif %}" + _TURNS


@dataclass(frozen=True)
class SpeechVocabulary:
    """Ids of the unified vocabulary, by arithmetic alone: `text_size` text ids, 8 markers, `codebook_size` codes."""

    text_size: int
    codebook_size: int

    def __post_init__(self):
        if self.text_size < 1 or self.codebook_size < 1:
            raise InputError(f"vocabulary: text_size and codebook_size must be positive, got {self}")

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
        """Codes (F,), any integer type, to ids int64 (F,). InputError if one is outside 0..codebook_size-1."""
        codes = _integers(codes, "codes").astype(np.int64)
        wrong = (codes < 0) | (codes >= self.codebook_size)
        if wrong.any():
            at = int(wrong.argmax())
            raise InputError(f"codes: code {codes[at]} at index {at}, expected 0..{self.codebook_size - 1}")
        return codes + self.first_code

    def ids_to_codes(self, ids) -> np.ndarray:
        """Ids (F,) to codes int32 (F,). InputError if one is not the id of a speech code."""
        ids = _integers(ids, "ids").astype(np.int64)
        wrong = ~self.is_code(ids)
        if wrong.any():
            at = int(wrong.argmax())
            raise InputError(f"ids: id {ids[at]} at index {at} is no speech code ({self.first_code}..{self.size - 1})")
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
        raise InputError(f"{name}: expected a flat array of integers, got {values.dtype} of shape {values.shape}")
    return values


def merge_tokenizer(tokenizer, codebook_size: int):
    """A copy of a text tokenizer with the 8 markers and `<|s_0|>..` appended from id len(tokenizer) on.

    They are added as ordinary tokens, not special ones, as in the released checkpoints, so that decoding with
    `skip_special_tokens=True` keeps them. InputError if the tokenizer already holds one of them.
    """
    from tokenizers import AddedToken

    vocabulary = SpeechVocabulary(len(tokenizer), codebook_size)
    merged = copy.deepcopy(tokenizer)
    names = [*MARKERS, *(f"<|s_{code}|>" for code in range(codebook_size))]
    added = merged.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    if added != len(names):
        raise InputError(f"tokenizer: {len(names) - added} of the markers and speech codes are already in it")
    if vocabulary_of(merged) != vocabulary:
        raise InputError(f"tokenizer: its ids have gaps, speech codes do not start at {vocabulary.first_code}")
    return merged


def vocabulary_of(tokenizer) -> SpeechVocabulary:
    """The layout of a merged tokenizer. InputError if markers and codes do not follow each other at its end."""
    token_to_id = tokenizer.backend_tokenizer.token_to_id
    text_size = token_to_id(MARKERS[0])
    if text_size is None:
        raise InputError(f"tokenizer: no {MARKERS[0]} in it, expected a text tokenizer merged with speech codes")
    codebook_size = len(tokenizer) - text_size - len(MARKERS)
    if codebook_size < 1:
        raise InputError(f"tokenizer: {MARKERS[0]} has id {text_size} of {len(tokenizer)}, no room for speech codes")
    vocabulary = SpeechVocabulary(text_size, codebook_size)
    expected = {name: text_size + i for i, name in enumerate(MARKERS)}
    expected |= {"<|s_0|>": vocabulary.first_code, f"<|s_{codebook_size - 1}|>": vocabulary.size - 1}
    for name, wanted in expected.items():
        if token_to_id(name) != wanted:
            raise InputError(f"tokenizer: {name} has id {token_to_id(name)}, expected {wanted}")
    return vocabulary


def text_encoder(tokenizer):
    """A `tokenizers.Tokenizer` over the same model without any added token: no text becomes a control token.

    It shares the model with `tokenizer`, so it costs nothing; `.encode(text, add_special_tokens=False).ids` are the
    same ids as the tokenizer's own wherever the text spells no added token.
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
    """What the chat template writes before the user's content, between it and the assistant's, and after that.

    Rendered once with sentinels for the contents. InputError if there is no template or it does not keep the contents.
    """
    if not tokenizer.chat_template:
        raise InputError("tokenizer: no chat template in it, expected one with a user and an assistant turn")
    user, assistant = "SENTINELOFTHEUSER", "SENTINELOFTHEASSISTANT"
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, date_string=date)
    except Exception as error:  # jinja2 raises its own kinds; the template is the user's input
        raise InputError(f"tokenizer: its chat template failed on a user and an assistant turn: {error}") from error
    if text.count(user) != 1 or text.count(assistant) != 1 or text.index(user) > text.index(assistant):
        raise InputError("tokenizer: its chat template does not write the user's, then the assistant's content once")
    before, rest = text.split(user)
    between, after = rest.split(assistant)
    return before, between, after


def load_tokenizer(path_or_id):
    """The fast tokenizer of a folder or a hub id, read from its tokenizer.json; code from a repository never runs."""
    from transformers import PreTrainedTokenizerFast

    folder = Path(path_or_id)
    if folder.exists() and not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: no tokenizer.json there, expected the folder of a fast tokenizer")
    if not folder.exists() and (folder.is_absolute() or len(folder.parts) > 2 or str(folder).startswith(".")):
        raise InputError(f"{folder}: no such folder, expected the folder of a fast tokenizer")
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(path_or_id))
    except Exception as error:  # tokenizers raises bare Exception on a damaged file
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path_or_id}: no tokenizer could be loaded from it: {reason}") from error


def locate_llama3_vocabulary() -> Path:
    """Meta's `tokenizer.model` inside the installed wheel `llama-models`, found without importing the package."""
    spec = importlib.util.find_spec("llama_models")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "llama3" / "tokenizer.model"
        if path.is_file():
            return path
    raise InputError("llama_models/llama3/tokenizer.model: not found, expected the package llama-models installed")


def build_llama3_tokenizer(tiktoken_path):
    """The Llama-3 tokenizer (128,256 ids, template of Llama 3.2 Instruct) from Meta's ranked vocabulary file.

    Special tokens stand in the order of the Hugging Face checkpoints (`<|eot_id|>` 128009), not of Meta's code.
    """
    ranks = _read_ranks(Path(tiktoken_path))
    letters = _byte_letters()
    spell = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.get):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        cuts.sort(key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
        merges += [(spell[left], spell[right]) for left, right in cuts]
    specials = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in (0, 1))]
    specials += ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>"]
    specials += ["<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    specials += [f"<|reserved_special_token_{i}|>" for i in range(3, 248)]
    return _fast_tokenizer({spell[t]: rank for t, rank in ranks.items()}, merges, specials, LLAMA3_TEMPLATE)


def build_mini_tokenizer(texts: Iterable[str], vocab_size: int = 1024):
    """A byte-level BPE of at most `vocab_size` ids trained on `texts`; the same texts give the same tokenizer.

    Frequent words become one token and nothing is unknown. Each text counts once with the fixed words of the prompt
    around it, so these are short too. Needs vocab_size > 261 (256 bytes and 5 special tokens).
    """
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = list(texts)
    specials = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    specials += ["<|finetune_right_pad_id|>"]
    if not any(text.strip() for text in texts):
        raise InputError("mini tokenizer: no text to train on")
    if vocab_size <= 256 + len(specials):
        raise InputError(f"mini tokenizer: vocab_size {vocab_size}, expected more than {256 + len(specials)}")
    fixed = ["user", "assistant", "\n\n", TTS_INSTRUCTION, ASR_INSTRUCTION, "Speaker"]
    draft = Tokenizer(models.BPE())
    draft.pre_tokenizer = _word_splitter()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    draft.train_from_iterator(texts + fixed * len(texts), trainer)
    trained = json.loads(draft.to_str())["model"]
    return _fast_tokenizer(trained["vocab"], [tuple(pair) for pair in trained["merges"]], specials, MINI_TEMPLATE)


def _read_ranks(path: Path) -> dict[bytes, int]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read, expected Meta's tokenizer.model") from error
    ranks = {}
    for number, line in enumerate(lines, 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise InputError(f"{path}: line {number}: expected a base64 token and its rank") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise InputError(f"{path}: {len(lines)} lines, expected one line for each rank from 0 on")
    return ranks


def _byte_letters() -> dict[int, str]:
    """The printable letter that byte-level BPE files write for each byte: itself, or one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _word_splitter():
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.Split(Regex(_WORD_PATTERN), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _fast_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]], specials: list[str], template: str):
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    backend.pre_tokenizer = _word_splitter()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
    bos = "<|begin_of_text|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def check_layout(tokenizer, config=None) -> list[str]:
    """Differences from the released checkpoints (DESIGN.md section 1), one line each; an empty list is a match.

    `config` is a model's config (an object or a dict with `vocab_size`), checked too where given.
    """
    released = SpeechVocabulary(RELEASED_TEXT_SIZE, RELEASED_CODEBOOK_SIZE)
    expected = dict(_RELEASED_CONTROLS)
    expected |= {name: RELEASED_TEXT_SIZE + i for i, name in enumerate(MARKERS)}
    expected |= {"<|s_0|>": released.first_code, f"<|s_{RELEASED_CODEBOOK_SIZE - 1}|>": released.size - 1}
    differences = []
    if len(tokenizer) != released.size:
        differences.append(f"vocabulary size: {len(tokenizer)}, expected {released.size}")
    for name, wanted in expected.items():
        found = tokenizer.backend_tokenizer.token_to_id(name)
        if found != wanted:
            differences.append(f"{name}: {'missing' if found is None else f'id {found}'}, expected id {wanted}")
    found = text_encoder(tokenizer).encode(TTS_INSTRUCTION, add_special_tokens=False).ids
    if found != _RELEASED_INSTRUCTION_IDS:
        differences.append(f"text ids of {TTS_INSTRUCTION!r}: {found}, expected {_RELEASED_INSTRUCTION_IDS}")
    differences += _check_template(tokenizer)
    if config is not None:
        found = config.get("vocab_size") if isinstance(config, dict) else getattr(config, "vocab_size", None)
        if found != released.size:
            differences.append(f"config vocab_size: {found}, expected {released.size}")
    return differences


def _check_template(tokenizer) -> list[str]:
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    date_line = f"Today Date: {DEFAULT_DATE}\n"
    system = "<|begin_of_text|>" + header.format("system") + "Cutting Knowledge Date: December 2023\n"
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
        differences.append(f"chat template: no date line {date_line!r} when date_string is {DEFAULT_DATE!r}")
    names = ("before the text", "between text and speech", "after the speech")
    for name, found, wanted in zip(names, pieces, expected, strict=True):
        if found != wanted:
            differences.append(f"chat template {name}: {found!r}, expected {wanted!r}")
    return differences
