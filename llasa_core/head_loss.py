"""The head and the loss as one: cross-entropy over the whole vocabulary without the logits of all positions.

At Llasa's 193,800 ids the logits of 2,048 tokens are 1.6 GB, and their gradient as much again. Here the logits of a
block of rows turn into their own gradient in place and are gone after two matrix products; what is kept for the
backward pass are the gradients of the hidden states and of the weight. (Idea: Liger kernel, arXiv 2410.10989.)
"""

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from llasa_core.errors import InputError

BLOCK = 2**27  # bytes of logits held at a time
CACHED = 2**18  # logits worked on at a time on a CPU: they stay in its cache


def use_head_loss(model: PreTrainedModel) -> PreTrainedModel:
    """Teach `model` a second way to be called: with `predicting` (K,) and `targets` (K,) it returns the summed loss.

    `predicting` are positions of the one row of a batch, `targets` the ids that follow them; every other argument is
    the decoder's. Without them the model answers as before. Raises InputError for a head that is more than a matrix.
    """
    head = model.get_output_embeddings()
    scaled = getattr(model.config, "final_logit_softcapping", None) or getattr(model.config, "logits_scaling", 1) != 1
    if scaled or not isinstance(head, nn.Linear) or head.bias is not None:
        raise InputError(f"{type(model).__name__}: its head is more than one matrix, expected a model like Llama")
    head.__class__ = LossHead  # a Linear still, so that whatever shards, adapts or saves it sees one
    model.forward = types.MethodType(_forward, model)
    return model


class LossHead(nn.Linear):
    """hidden (.., H) -> logits (.., V), or with targets: hidden (K, H), targets (K,) -> summed cross-entropy."""

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(hidden) if targets is None else linear_cross_entropy(hidden, self.weight, targets)


def _forward(self: Any, *args: Any, predicting: Any = None, targets: Any = None, **kwargs: Any) -> Any:
    if targets is None:
        return type(self).forward(self, *args, **kwargs)
    hidden = self.base_model(*args, **kwargs).last_hidden_state[0][predicting]  # (K, H)
    return self.get_output_embeddings()(hidden, targets)


def linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy in nats, fp32, of hidden (K, H) @ weight (V, H).T against targets (K,).

    Under autocast the products are of its type, sums and softmax stay fp32. On a GPU it is torch's own.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    with torch.autocast(hidden.device.type, enabled=False):
        if hidden.is_cuda:
            return _of_torch(hidden, weight.to(hidden.dtype), targets)
        return LinearCrossEntropy.apply(hidden, weight, targets)


def _of_torch(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    blocks = nn.LinearCrossEntropyOptions(batch_chunk_size=rows_of_a_block(hidden, weight))
    return F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=blocks).float()


def rows_of_a_block(hidden: torch.Tensor, weight: torch.Tensor) -> int:
    """Rows whose logits, in the type of `hidden`, are held at a time."""
    return max(1, BLOCK // (len(weight) * hidden.element_size()))


class LinearCrossEntropy(torch.autograd.Function):
    """hidden (K, H), weight (V, H), targets (K,) -> scalar fp32; products in the type of `hidden`."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        matrix = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32)
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        size = rows_of_a_block(hidden, weight)
        buffer = hidden.new_empty(min(size, len(hidden)), len(weight))
        for start in range(0, len(hidden), size):
            rows = hidden[start : start + size]
            logits = torch.mm(rows, matrix.t(), out=buffer[: len(rows)])
            total += _loss_then_gradient(logits, targets[start : start + size])
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
