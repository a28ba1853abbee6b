"""The text tokenizers that speech codes are merged onto: Llama-3 from Meta's vocabulary file, and a
mini BPE.

Both are byte-level fast tokenizers (no unknown token) with Llama-3's control tokens and a chat
template with a fixed date (`date_string` overrides it). The special tokens have the order of the
Hugging Face checkpoints (`<|eot_id|>` 128009), not that of Meta's own code.
"""

import base64
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path

from llasa_core.errors import InputError
from llasa_core.tokenizer import ASR_INSTRUCTION, LLAMA3_TEMPLATE, MINI_TEMPLATE, TTS_INSTRUCTION

# How Llama-3 cuts text into words before the byte pairs are merged.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def locate_llama3_vocabulary() -> Path:
    """Meta's `tokenizer.model` in the installed wheel `llama-models`, found without an import."""
    spec = importlib.util.find_spec("llama_models")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "llama3" / "tokenizer.model"
        if path.is_file():
            return path
    raise InputError(
        "llama_models/llama3/tokenizer.model: not found, expected the package llama-models"
        " installed"
    )


def build_llama3_tokenizer(tiktoken_path):
    """The Llama-3 tokenizer (128,256 ids, template of Llama 3.2 Instruct) from Meta's ranked
    vocabulary file.

    Special tokens stand in the order of the Hugging Face checkpoints (`<|eot_id|>` 128009), not of
    Meta's code.
    """
    ranks = _read_ranks(Path(tiktoken_path))
    letters = byte_letters()
    spell = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.get):
        cuts = [
            (token[:i], token[i:])
            for i in range(1, len(token))
            if token[:i] in ranks and token[i:] in ranks
        ]
        cuts.sort(key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
        merges += [(spell[left], spell[right]) for left, right in cuts]
    specials = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *(f"<|reserved_special_token_{i}|>" for i in (0, 1)),
    ]
    specials += ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>"]
    specials += ["<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    specials += [f"<|reserved_special_token_{i}|>" for i in range(3, 248)]
    return _fast_tokenizer(
        {spell[t]: rank for t, rank in ranks.items()}, merges, specials, LLAMA3_TEMPLATE
    )


def build_mini_tokenizer(texts: Iterable[str], vocab_size: int = 1024):
    """A byte-level BPE of at most `vocab_size` ids trained on `texts`; the same texts give the same
    tokenizer.

    Frequent words become one token and there is no unknown token. Each text is counted with the
    fixed words of the prompt around it, so these are short too. Needs vocab_size > 261 (256 bytes
    and 5 special tokens).
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = list(texts)
    specials = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    specials += ["<|finetune_right_pad_id|>"]
    if not any(text.strip() for text in texts):
        raise InputError("mini tokenizer: no text to train on")
    if vocab_size <= 256 + len(specials):
        raise InputError(
            f"mini tokenizer: vocab_size {vocab_size}, expected more than {256 + len(specials)}"
        )
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
    return _fast_tokenizer(
        trained["vocab"], [tuple(pair) for pair in trained["merges"]], specials, MINI_TEMPLATE
    )


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
            raise InputError(
                f"{path}: line {number}: expected a base64 token and its rank"
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise InputError(f"{path}: {len(lines)} lines, expected one line for each rank from 0 on")
    return ranks


def byte_letters() -> dict[int, str]:
    """The printable letter of byte-level BPE files for each byte: itself, or one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


def _word_splitter():
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated")
    return pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _fast_tokenizer(
    vocab: dict[str, int], merges: list[tuple[str, str]], specials: list[str], template: str
):
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    backend.pre_tokenizer = _word_splitter()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in specials]
    )
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
