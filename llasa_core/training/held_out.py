"""Held-out loss of a trained checkpoint, utterance by utterance, so that it carries an interval and
a count.

Speech is measured in bits a second of audio, which compares codecs and vocabularies. The trap
avoided: the mean of the utterances' rates weighs a short one like a long one; bits and seconds are
summed first.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llasa_core import intervals
from llasa_core.device import choose_device
from llasa_core.errors import InputError
from llasa_core.files import read_object

ROW_TOKENS = 4096  # of a forward pass


class HeldOutRows(list[dict]):
    """Rows of utterances, and how many more did not fit the context."""

    dropped_overlong = 0


def held_out_rows(
    checkpoint: str | Path, codes: str | Path, task: str = "tts", bf16: bool = True
) -> HeldOutRows:
    """One row an utterance of a codes dataset: id, seconds (of audio), labels (labelled tokens),
    nats (their loss).

    Also tokens, of the whole example. checkpoint: a folder that `train` wrote; date and end-of-turn
    masks are those of its training, and every utterance carries its speaker's tag if some did
    there. task: "tts" or "asr". What does not fit the checkpoint's context is left out and counted
    in `dropped_overlong`. It runs on the GPU where there is one.
    """
    import torch

    from llasa_core.data.dataset import read_codes
    from llasa_core.data.examples import ExampleSource
    from llasa_core.data.packing import collate, pack_lengths
    from llasa_core.model import load_model, use_packed_attention
    from llasa_core.prompts import Prompt
    from llasa_core.tokenizer import load_tokenizer
    from llasa_core.training.loss import utterance_losses

    card = read_object(Path(checkpoint, "llasa.json"))
    tokenizer = load_tokenizer(checkpoint)
    device = torch.device(choose_device())
    model = use_packed_attention(load_model(checkpoint, tokenizer)).to(device).eval()
    prompt = Prompt(tokenizer, date=card["date"])
    dataset = read_codes(codes)
    source = ExampleSource(dataset, prompt, task, speaker_tags=1.0 if card["speaker_tags"] else 0.0)
    fitting = np.flatnonzero(source.longest() <= card["training"]["context"])
    rows = HeldOutRows()
    for packed in pack_lengths(
        source.longest()[fitting], max(ROW_TOKENS, card["training"]["context"])
    ):
        indices = [int(fitting[i]) for i in packed]
        batch = collate(
            [source.example(index, 0) for index in indices], mask_eot=card.get("mask_eot", False)
        )
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            nats, labels = utterance_losses(model, batch)
        for index, total, count in zip(indices, nats, labels, strict=True):
            seconds = source.frames(index) / dataset.meta["frame_rate"]
            row = {
                "id": source.identifier(index),
                "seconds": seconds,
                "tokens": int(source.longest()[index]),
            }
            rows.append(row | {"labels": int(count), "nats": round(float(total), 3)})
    rows.sort(key=lambda row: row["id"])
    rows.dropped_overlong = len(source.longest()) - len(fitting)
    return rows


def held_out_summary(
    rows: Sequence[dict], checkpoint: str | Path, tokens: int, seed: int = 0
) -> dict[str, float]:
    """NAME, NAME_low, NAME_high (95 % bootstrap over utterances) and NAME_n of two measures of
    `held_out_rows`.

    held_out_bits_per_second: bits a second of audio. held_out_loss: nats a labelled token.
    `diverged`: 1 where that loss is no better than that of equally likely tokens of the
    checkpoint's vocabulary. training_flops: of `tokens` training tokens in documents as long as the
    rows are on average. held_out_dropped_overlong: utterances that did not fit, where `rows` are
    those of `held_out_rows` itself. InputError without rows.
    """
    if not rows:
        raise InputError(f"{checkpoint}: no held-out utterances, expected at least one")
    nats = np.array([row["nats"] for row in rows])
    summary: dict[str, float] = {}
    for name, values, weights in (
        ("held_out_bits_per_second", nats / math.log(2), [row["seconds"] for row in rows]),
        ("held_out_loss", nats, [float(row["labels"]) for row in rows]),
    ):
        low, high = intervals.bootstrap_interval(values, weights, seed=seed)
        summary |= {
            name: float(np.sum(values) / np.sum(weights)),
            f"{name}_low": low,
            f"{name}_high": high,
        }
        summary[f"{name}_n"] = len(rows)
    if isinstance(rows, HeldOutRows):
        summary["held_out_dropped_overlong"] = rows.dropped_overlong
    vocabulary = read_object(Path(checkpoint, "config.json"))["vocab_size"]
    summary["diverged"] = int(summary["held_out_loss"] >= math.log(vocabulary))
    return summary | {"training_flops": training_flops(checkpoint, tokens, rows)}


def training_flops(checkpoint: str | Path, tokens: int, rows: Sequence[dict]) -> float:
    """FLOPs of training on `tokens` tokens (model.flops_per_token) in documents as long as `rows`
    are on average.
    """
    from transformers import AutoConfig

    from llasa_core.model import flops_per_token

    length = round(float(np.mean([row["tokens"] for row in rows])))
    return tokens * flops_per_token(
        AutoConfig.from_pretrained(checkpoint, trust_remote_code=False), length
    )
