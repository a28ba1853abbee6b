"""Next-token cross-entropy over the whole vocabulary at labelled positions, and held-out loss.

labels[t] is the token at t, so position t - 1 predicts it. At Llasa's 193,800 ids the logits of
2,048 tokens would take 1.6 GB, and their gradient as much. Here head and loss are one function:
the logits of a block of rows turn into their gradient in place and are freed, and only the
gradients of the hidden states and of the weight are kept (the idea of Liger kernel, arXiv
2410.10989).
"""

import itertools
import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from llasa_core.data.examples import ExampleSource
from llasa_core.data.packing import NO_LABEL, collate, pack_lengths
from llasa_core.errors import InputError


def labelled_loss(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy (nats) of a packed batch and the number of labelled tokens.

    `batch` is packing.collate's; `model` has the head of use_head_loss, which sees only
    the positions whose next token is labelled.
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


# The `loss` of a config -> a function (model, packed batch) -> (summed loss, labelled tokens).
LOSSES: dict[str, Callable[[nn.Module, dict[str, Any]], tuple[torch.Tensor, int]]] = {
    "cross_entropy": labelled_loss,
}


def utterance_losses(
    model: torch.nn.Module, batch: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each document of a packed batch: summed cross-entropy (nats) float64 (N,) and labelled
    tokens int64 (N,).

    Their sums are those of `labelled_loss`. `batch` is packing.collate's, without `distort`.
    """
    following = batch["labels"][0, 1:]
    kept = (following != NO_LABEL).nonzero()[:, 0]  # (K,)
    borders = batch["cu_seqlens"].to(kept.device, torch.int64)
    with torch.no_grad():
        # (K, V)
        logits = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            document_lengths=batch["cu_seqlens"].diff().tolist(),
            logits_to_keep=kept,
            use_cache=False,
        ).logits[0]
        nats = torch.nn.functional.cross_entropy(
            logits.float(), following[kept], reduction="none"
        ).double()
    document = torch.bucketize(kept, borders[1:], right=True)
    sums = torch.zeros(len(borders) - 1, dtype=torch.float64, device=nats.device).index_add_(
        0, document, nats
    )
    return sums.cpu().numpy(), torch.bincount(document, minlength=len(borders) - 1).cpu().numpy()


def held_out_loss(
    model: PreTrainedModel, batches: Sequence[dict[str, Any]], bf16: bool = False
) -> tuple[float, int]:
    """Summed loss (nats) and labelled tokens of the batches; processes share the work and agree on
    the answer.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for first in range(0, len(batches), world):
            # Sharded processes must run equally many passes.
            mine = batches[min(first + rank, len(batches) - 1)]
            total, count = labelled_loss(
                model, {name: tensor.to(device) for name, tensor in mine.items()}
            )
            if first + rank < len(batches):
                sums += torch.tensor([total.item(), count], dtype=torch.float64, device=device)
    model.train(was_training)
    if world > 1:
        dist.all_reduce(sums)
    return sums[0].item(), int(sums[1].item())


class HeldOut:
    """The held-out datasets as fixed batches, measured per dataset and together.

    The first `utterances` of each that fit a row of `context` tokens count; longer ones count as
    `dropped_overlong`. Raises InputError for a dataset with none.
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
            grouped = [
                list(itertools.chain(*rows[i : i + batch_rows]))
                for i in range(0, len(rows), batch_rows)
            ]
            batches = [
                collate([source.example(int(fitting[i]), 0) for i in group], mask_eot=mask_eot)
                for group in grouped
            ]
            seconds = sum(source.frames(int(i)) for i in fitting) / frame_rate
            self.datasets.append((name, source.task, batches, seconds))

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """eval_loss: nats a labelled token; eval_bits_per_second: bits a second of audio, over the
        tts datasets.
        """
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


BLOCK = 2**27  # bytes of logits held at a time
# on a GPU: adding to the weight's fp32 gradient costs as much memory traffic whatever the block
GPU_BLOCK = 2**30

CACHED = 2**18  # logits worked on at a time on a CPU: they stay in its cache
FUSED = 2**27  # logits whose softmax is held in fp32 at a time on a GPU


def use_head_loss(model: PreTrainedModel) -> PreTrainedModel:
    """Patch `model.forward` to return the summed loss when `predicting` (K,) and `targets` (K,) are
    given.

    `predicting` are positions of the one row of a batch, `targets` the ids that follow them; every
    other argument is the decoder's. Without them the model answers as before. Raises InputError for
    a head that is more than a matrix.
    """
    head = model.get_output_embeddings()
    scaled = (
        getattr(model.config, "final_logit_softcapping", None)
        or getattr(model.config, "logits_scaling", 1) != 1
    )
    if scaled or not isinstance(head, nn.Linear) or head.bias is not None:
        raise InputError(
            f"{type(model).__name__}: its head is more than one matrix, expected a model like Llama"
        )
    # Still a Linear, for code that shards, adapts or saves the head.
    head.__class__ = LossHead
    model.forward = types.MethodType(_forward, model)
    return model


class LossHead(nn.Linear):
    """hidden (.., H) -> logits (.., V), or with targets: hidden (K, H), targets (K,) -> summed
    cross-entropy.
    """

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        return (
            super().forward(hidden)
            if targets is None
            else linear_cross_entropy(hidden, self.weight, targets)
        )


def _forward(
    self: Any, *args: Any, predicting: Any = None, targets: Any = None, **kwargs: Any
) -> Any:
    if targets is None:
        return type(self).forward(self, *args, **kwargs)
    hidden = self.base_model(*args, **kwargs).last_hidden_state[0][predicting]  # (K, H)
    return self.get_output_embeddings()(hidden, targets)


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Summed cross-entropy in nats, fp32, of hidden (K, H) @ weight (V, H).T against targets (K,).

    Under autocast the products are of its type; softmax, loss and the weight's gradient are fp32.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    with torch.autocast(hidden.device.type, enabled=False):
        return LinearCrossEntropy.apply(hidden, weight, targets)


def rows_of_a_block(hidden: torch.Tensor, weight: torch.Tensor) -> int:
    """Rows whose logits, in the type of `hidden`, are held at a time."""
    most = GPU_BLOCK if hidden.is_cuda else BLOCK
    return max(1, most // (len(weight) * hidden.element_size()))


class LinearCrossEntropy(torch.autograd.Function):
    """hidden (K, H), weight (V, H), targets (K,) -> scalar fp32; products in the type of
    `hidden`.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        matrix = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = (
            torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        )
        size = rows_of_a_block(hidden, weight)
        loss_then_gradient = _fused_loss_then_gradient if hidden.is_cuda else _loss_then_gradient
        buffer = hidden.new_empty(min(size, len(hidden)), len(weight))
        for start in range(0, len(hidden), size):
            rows = hidden[start : start + size]
            logits = torch.mm(rows, matrix.t(), out=buffer[: len(rows)])
            total += loss_then_gradient(logits, targets[start : start + size])
            if of_hidden is not None:
                torch.mm(logits, matrix, out=of_hidden[start : start + size])
            if of_weight is not None and hidden.dtype == torch.float32:
                of_weight.addmm_(logits.t(), rows)
            elif of_weight is not None:
                of_weight += logits.t() @ rows
        ctx.gradients = (of_hidden, of_weight)
        ctx.weight_type = weight.dtype
        return total

    @staticmethod
    def backward(ctx, upstream):
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were used by an earlier backward pass")
        (of_hidden, of_weight), ctx.gradients = ctx.gradients, None
        if of_hidden is not None:
            of_hidden.mul_(upstream)
        if of_weight is not None:
            of_weight = of_weight.mul_(upstream).to(ctx.weight_type)
        return of_hidden, of_weight, None


def _loss_then_gradient(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of logits (K, V), which become their own gradient."""
    total = torch.zeros((), dtype=torch.float32)
    size = max(1, CACHED // logits.shape[1])
    for start in range(0, len(logits), size):
        scores = logits[start : start + size].float()  # the logits themselves in fp32
        rows, wanted = torch.arange(len(scores)), targets[start : start + size]
        scores -= scores.amax(1, keepdim=True)
        chosen = scores[rows, wanted]
        scores.exp_()
        norm = scores.sum(1, keepdim=True)
        total += norm.log().sum() - chosen.sum()
        scores /= norm
        scores[rows, wanted] -= 1
        if scores.dtype != logits.dtype:
            logits[start : start + size] = scores
    return total


def _fused_loss_then_gradient(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As `_loss_then_gradient`, in the fewest passes over memory, which is what a GPU waits for."""
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    size = max(1, FUSED // logits.shape[1])
    for start in range(0, len(logits), size):
        part, wanted = logits[start : start + size], targets[start : start + size, None]
        scores = F.log_softmax(part, 1, dtype=torch.float32)
        chosen = scores.gather(1, wanted)
        total -= chosen.sum()
        torch.exp(scores, out=part)
        part.scatter_(1, wanted, torch.expm1(chosen).to(part.dtype))
    return total
