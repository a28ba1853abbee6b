"""Llama from a size table or a checkpoint; vocabulary resize; parameter and FLOP counts; packed
attention.

Sizes "1b", "3b" and "8b" are the released Llama 3.2 and 3.1 shapes, rope scaling included; the
small ones are ours. Weights are read from safetensors only. With packed rows a plain causal mask
would let an utterance attend to the previous one, so attention runs document by document
("packed_sdpa").
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llasa_core.checkpoint import load_strictly
from llasa_core.errors import InputError

RELEASED_SIZE = 193_800  # ids of the released checkpoints
RELEASED_CONTEXT = 2048  # tokens of their training rows

# hidden size, layers, heads, key-value heads, head width, feed-forward width, tied embeddings, rope
# factor or None
SIZES: dict[str, tuple[int, int, int, int, int, int, bool, float | None]] = {
    "nano": (64, 3, 2, 2, 32, 192, True, None),  # 0.16 M without embeddings
    "micro": (96, 4, 3, 3, 32, 288, True, None),  # 0.48 M
    "tiny": (128, 5, 4, 4, 32, 384, True, None),  # 1.1 M
    "mini": (256, 5, 4, 4, 64, 512, True, None),  # 3.3 M
    "small": (384, 6, 6, 6, 64, 1024, True, None),  # 10.6 M
    "1b": (2048, 16, 32, 8, 64, 8192, True, 32.0),  # Llama 3.2 1B: 0.97 B
    "3b": (3072, 28, 24, 8, 128, 8192, True, 32.0),  # Llama 3.2 3B: 2.82 B
    "8b": (4096, 32, 32, 8, 128, 14336, False, 8.0),  # Llama 3.1 8B: 6.98 B
}


def model_config(size: str, vocabulary_size: int, context: int = 2048) -> LlamaConfig:
    """The Llama configuration of a size name; `context` is the longest position of the small sizes.

    Raises InputError for a name that is not in SIZES.
    """
    if size not in SIZES:
        raise InputError(f"model size {size!r} is not one of {', '.join(SIZES)}")
    hidden, layers, heads, key_value_heads, head_width, feed_forward, tied, factor = SIZES[size]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0}
    if factor is not None:
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_width,
        intermediate_size=feed_forward,
        tie_word_embeddings=tied,
        max_position_embeddings=context if factor is None else 131_072,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def build_model(
    size: str,
    vocabulary_size: int,
    context: int = 2048,
    seed: int = 0,
    device: str = "cpu",
    zero_init_residual: bool = False,
) -> LlamaForCausalLM:
    """A freshly initialised Llama in fp32; device "meta" builds shapes only, so that counting "8b"
    takes no memory.

    zero_init_residual: the output projections of attention and feed-forward start at zero (Zhang et
    al. 2019, Fixup, arXiv 1901.09321); the deeper ones of the small sizes then learn as fast per
    token as the shallow ones.
    """
    config = model_config(size, vocabulary_size, context)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    if zero_init_residual:
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
    return model


def context_limit(
    longest: int, vocabulary: int, trained: int | None = None, asked: int | None = None
) -> int:
    """The most tokens, prompt and answer together, that a model of `vocabulary` ids may generate
    in.

    longest: its max_position_embeddings, 131,072 for every Llama 3. trained: the context of its
    training, if known; for the released layout otherwise RELEASED_CONTEXT, as on their model card.
    asked: the user's choice. InputError for one that the model cannot hold.
    """
    if asked is not None:
        if not 1 <= asked <= longest:
            raise InputError(f"context: {asked}, expected 1 to the model's {longest}")
        return asked
    if trained is None and vocabulary == RELEASED_SIZE:
        trained = RELEASED_CONTEXT
    return longest if trained is None else min(longest, trained)


def load_model(
    path_or_id: str | Path, tokenizer: Any = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a causal LM from a folder or a hub id, from safetensors only.

    With `tokenizer`, raises InputError unless the vocabulary sizes agree; also for a folder without
    config.json or without safetensors weights.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder}: no config.json, expected a Hugging Face checkpoint folder")
        if not list(folder.glob("*.safetensors")):
            raise InputError(
                f"{folder}: no *.safetensors, expected safetensors weights (pickled weights are not"
                " read)"
            )
    elif folder.is_absolute() or str(path_or_id).startswith(".") or str(path_or_id).count("/") > 1:
        raise InputError(
            f"{path_or_id}: no such folder, expected a checkpoint folder, a size name or a hub id"
        )
    from transformers import AutoModelForCausalLM

    model = load_strictly(AutoModelForCausalLM, path_or_id, dtype=dtype)
    if tokenizer is not None and model.config.vocab_size != len(tokenizer):
        raise InputError(
            f"{path_or_id}: the model has a vocabulary of {model.config.vocab_size}, the tokenizer"
            f" of {len(tokenizer)}"
        )
    return model


def resize_vocabulary(
    model: PreTrainedModel, size: int, noise: float | None = None, seed: int = 0
) -> PreTrainedModel:
    """Grow the vocabulary in place to `size`: new rows = mean of the old rows + `noise` standard
    deviations of them.

    Without `noise` it is 1 for tied matrices and 0.1 for untied ones (measured:
    results/benchmarks/init_rows.json). Raises InputError when `size` would cut rows off.
    """
    old = model.config.vocab_size
    if size < old:
        raise InputError(f"a vocabulary of {old} cannot be resized to {size} without losing tokens")
    if size == old:
        return model
    if noise is None:
        noise = 1.0 if model.config.tie_word_embeddings else 0.1
    generator = torch.Generator().manual_seed(seed)
    matrices = [model.get_input_embeddings().weight]
    if not model.config.tie_word_embeddings:
        matrices.append(model.get_output_embeddings().weight)
    rows = []
    for matrix in matrices:
        kept = matrix.detach().float().cpu()
        drawn = torch.randn(size - old, kept.shape[1], generator=generator)
        rows.append(kept.mean(0) + noise * kept.std(0) * drawn)
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[old:] = rows[0].to(model.dtype)
        if not model.config.tie_word_embeddings:
            model.get_output_embeddings().weight[old:] = rows[1].to(model.dtype)
    return model


def parameter_count(model: PreTrainedModel) -> dict[str, int]:
    """Parameters: {"total", "body" (no embeddings, no head), "embedding"}; tied count once."""
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight.numel()
    if not model.config.tie_word_embeddings:
        embedding += model.get_output_embeddings().weight.numel()
    return {"total": total, "body": total - embedding, "embedding": embedding}


def flops_per_token(config: LlamaConfig, context: int) -> float:
    """Training FLOPs per token (forward + backward): 6 a matrix weight, head included, plus causal
    attention.

    `context` is the length of a document; a token attends to half of it on average, so attention
    costs 6 * layers * heads * head width * context (PaLM, arXiv 2204.02311, appendix B, halved for
    causality).
    """
    width = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (2 * width + 2 * key_value + 3 * config.intermediate_size)
    weights = config.num_hidden_layers * layer + config.vocab_size * config.hidden_size
    return 6.0 * weights + 6.0 * config.num_hidden_layers * width * context


def use_packed_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Switch `model` to attention per document; forward takes `document_lengths=[...]` then."""
    AttentionInterface.register("packed_sdpa", packed_attention)
    model.set_attn_implementation("packed_sdpa")
    return model


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    document_lengths: list[int] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document: query (1, H, L, D), key and value (1, G, L, D) -> (1,
    L, H, D).

    Without `document_lengths` it is transformers' ordinary SDPA.
    """
    if document_lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    # Under autocast, rotary embedding returns fp32
    query, key = query.to(value.dtype), key.to(value.dtype)
    if value.dtype in (torch.bfloat16, torch.float16) and _flash_runs_on(value.device):
        return _flash(query, key, value, scaling, document_lengths), None
    groups = query.shape[1] // key.shape[1]
    short = max(document_lengths) <= 1024
    if value.device.type == "cpu" and value.dtype == torch.bfloat16 and short:
        return (
            _matmul_by_document(query[0], key[0], value[0], scaling, document_lengths, groups),
            None,
        )
    parts = [
        F.scaled_dot_product_attention(*part, is_causal=True, scale=scaling, enable_gqa=groups > 1)
        for part in zip(
            *(tensor.split(document_lengths, dim=2) for tensor in (query, key, value)), strict=True
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _matmul_by_document(query, key, value, scaling, lengths, groups) -> torch.Tensor:
    """Plain matrix products per document; 1.8 times as fast as SDPA in bf16 on a CPU at 60 to 300
    tokens.
    """
    if groups > 1:
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    longest = max(lengths)
    mask = torch.full((longest, longest), float("-inf"), dtype=value.dtype).triu(1)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts = []
    for q, k, v in zip(
        *(tensor.split(lengths, dim=1) for tensor in (query, key, value)), strict=True
    ):
        length = q.shape[1]
        scores = torch.baddbmm(mask[:length, :length], q, k.transpose(1, 2), alpha=scaling)
        parts.append(torch.bmm(scores.softmax(-1), v))
    return torch.cat(parts, dim=1).transpose(0, 1)[None]


@functools.lru_cache(maxsize=8)
def _flash_runs_on(device: torch.device) -> bool:
    """Whether torch has flash attention for this device: CUDA of compute capability 8.0 or more."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


@functools.lru_cache(maxsize=4)
def _borders(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Where documents begin and end, int32 (D + 1,); copied to the device once."""
    borders = np.cumsum((0, *lengths), dtype=np.int32)
    return torch.from_numpy(borders).to(device)


def _flash(query, key, value, scaling, lengths) -> torch.Tensor:
    """Variable-length flash attention of torch (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    borders = _borders(tuple(lengths), value.device)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    longest = max(lengths)
    out = varlen_attn(
        query,
        key,
        value,
        borders,
        borders,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[None]
