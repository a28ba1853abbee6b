"""The loss: next-token cross-entropy over the whole vocabulary, at labelled positions only, and its held-out measure.

The head never sees a position without a label, which at Llasa's 193,800 ids is most of the cost of a padded step.
Labels follow packing's convention: labels[t] is the token at t, so position t - 1 predicts it.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from llasa_core.errors import InputError
from llasa_core.packing import NO_LABEL, collate, pack_lengths
from llasa_core.sources import ExampleSource


def labelled_loss(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy (nats) of a packed batch and the number of labelled tokens.

    `batch` is packing.collate's; `model` has the head of head_loss.use_head_loss, which sees only the positions whose
    next token is labelled.
    """
    following = batch["labels"][0, 1:]
    kept = (following != NO_LABEL).nonzero()[:, 0]  # (K,) positions that predict a labelled token
    total = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        document_lengths=batch["cu_seqlens"].diff().tolist(),
        predicting=kept,
        targets=following[kept],
        use_cache=False,
    )
    return total, len(kept)


def utterance_losses(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Of each document of a packed batch: summed cross-entropy (nats) float64 (N,) and labelled tokens int64 (N,).

    Their sums are those of `labelled_loss`. `batch` is packing.collate's, without `distort`.
    """
    following = batch["labels"][0, 1:]
    kept = (following != NO_LABEL).nonzero()[:, 0]  # (K,)
    borders = batch["cu_seqlens"].to(kept.device, torch.int64)
    with torch.no_grad():
        logits = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            document_lengths=batch["cu_seqlens"].diff().tolist(),
            logits_to_keep=kept,
            use_cache=False,
        ).logits[0]  # (K, V)
        nats = torch.nn.functional.cross_entropy(logits.float(), following[kept], reduction="none").double()
    document = torch.bucketize(kept, borders[1:], right=True)
    sums = torch.zeros(len(borders) - 1, dtype=torch.float64, device=nats.device).index_add_(0, document, nats)
    return sums.cpu().numpy(), torch.bincount(document, minlength=len(borders) - 1).cpu().numpy()


def held_out_loss(model: PreTrainedModel, batches: Sequence[dict[str, Any]], bf16: bool = False) -> tuple[float, int]:
    """Summed loss (nats) and labelled tokens of the batches; processes share the work and agree on the answer."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for first in range(0, len(batches), world):
            mine = batches[min(first + rank, len(batches) - 1)]  # shards need as many passes in each process
            total, count = labelled_loss(model, {name: tensor.to(device) for name, tensor in mine.items()})
            if first + rank < len(batches):
                sums += torch.tensor([total.item(), count], dtype=torch.float64, device=device)
    model.train(was_training)
    if world > 1:
        dist.all_reduce(sums)
    return sums[0].item(), int(sums[1].item())


class HeldOut:
    """The held-out datasets as fixed batches, measured per dataset and together.

    The first `utterances` of each that fit a row of `context` tokens count; longer ones count as `dropped_overlong`.
    Raises InputError for a dataset with none.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, ExampleSource]],
        context: int,
        frame_rate: float,
        utterances: int = 1000,
        batch_rows: int = 1,
        bf16: bool = False,
        mask_eot: bool = False,
    ) -> None:
        self.bf16, self.datasets, self.dropped_overlong = bf16, [], 0
        for name, source in sources:
            lengths = source.longest()
            fitting = np.flatnonzero(lengths <= context)
            self.dropped_overlong += len(lengths) - len(fitting)
            fitting = fitting[:utterances]
            if not len(fitting):
                raise InputError(f"{name}: no held-out utterance fits a row of {context} tokens")
            rows = pack_lengths(lengths[fitting], context)
            grouped = [list(itertools.chain(*rows[i : i + batch_rows])) for i in range(0, len(rows), batch_rows)]
            batches = [
                collate([source.example(int(fitting[i]), 0) for i in group], mask_eot=mask_eot) for group in grouped
            ]
            seconds = sum(source.frames(int(i)) for i in fitting) / frame_rate
            self.datasets.append((name, source.task, batches, seconds))

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """eval_loss: nats a labelled token; eval_bits_per_second: bits a second of audio, over the tts datasets."""
        metrics: dict[str, float] = {}
        nats, tokens, speech_nats, speech_seconds = 0.0, 0, 0.0, 0.0
        for name, task, batches, seconds in self.datasets:
            total, count = held_out_loss(model, batches, self.bf16)
            nats, tokens = nats + total, tokens + count
            if len(self.datasets) > 1:
                metrics[f"eval_loss/{name}"] = total / count
            if task == "tts":
                speech_nats, speech_seconds = speech_nats + total, speech_seconds + seconds
        metrics["eval_loss"] = nats / tokens
        if speech_seconds:
            metrics["eval_bits_per_second"] = speech_nats / math.log(2) / speech_seconds
        return metrics
