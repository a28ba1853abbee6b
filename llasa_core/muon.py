"""Muon for weight matrices, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024) replaces the averaged gradient of a matrix by the nearest orthogonal one:
every direction learns at the same pace. Its steps are scaled to those of AdamW (Liu et al. 2025),
so one learning rate serves both.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw

MOMENTUM = 0.95
SMALLEST = 32  # rows and columns of a weight that counts as a matrix
ADAMW_STEP = 0.2  # root mean square of AdamW's usual step, in learning rates

# Of the quintic iteration: singular values come near 1 in five rounds, in bfloat16 as well.
ROUNDS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def is_matrix(weight: torch.Tensor) -> bool:
    """Whether Muon takes a weight: linear maps and convolutions over channels, if not too narrow.

    Not embeddings nor output layers of a language model, whose rows are learnt one by one: the
    caller keeps them away.
    """
    return weight.ndim >= 2 and weight.shape[1] > 1 and min(_flat(weight).shape) >= SMALLEST


def muon_groups(
    weights: Iterable[torch.nn.Parameter], spared: Iterable[torch.nn.Parameter]
) -> list[dict[str, Any]]:
    """Groups for `Muon`: matrices, and what AdamW takes, the matrices in `spared` with it."""
    kept = {id(weight) for weight in spared}
    kinds: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for weight in weights:
        kinds[id(weight) not in kept and is_matrix(weight)].append(weight)
    return [{"params": found, "orthogonal": kind} for kind, found in kinds.items() if found]


class Muon(torch.optim.Optimizer):
    """`groups`: parameter groups, each with `orthogonal`: true for Muon, false for AdamW.

    A group of Muon's holds weights (out, in, ...), read as matrices (out, in * ...). All groups
    take `lr` and `weight_decay`, those of AdamW `betas` and `eps` as well.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step on the gradients; a parameter without one stays as it is."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not group["orthogonal"]:
                self._adamw_step(weights, group)
                continue
            for weight in weights:
                self._muon_step(weight, group)

    def _muon_step(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        average = state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
        ahead = _flat(weight.grad.lerp(average, MOMENTUM))  # Nesterov's
        size = ADAMW_STEP * max(ahead.shape) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        update = orthogonal(ahead).view_as(weight).to(weight.dtype)
        weight.add_(update, alpha=-group["lr"] * size)

    def _adamw_step(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros((), device=weight.device)
                state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        states = [self.state[weight] for weight in weights]
        adamw(
            weights,
            [weight.grad for weight in weights],
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The bfloat16 matrix of the same shape whose singular values are near 1 (0.7 to 1.2), with the
    singular vectors of `matrix`.
    """
    wide = matrix.bfloat16()
    tall = wide.shape[0] > wide.shape[1]
    wide = wide.T if tall else wide
    wide = wide / (wide.norm() + 1e-7)
    first, second, third = COEFFICIENTS
    for _ in range(ROUNDS):
        square = wide @ wide.T
        polynomial = torch.addmm(square, square, square, beta=second, alpha=third)
        wide = torch.addmm(wide, polynomial, wide, beta=first)
    return wide.T if tall else wide


def _flat(weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten(1)
