"""Muon for matrices, AdamW for the rest, in one optimizer."""

import pytest
import torch

from llasa_core.muon import Muon, is_matrix, orthogonal


@pytest.mark.parametrize("shape", [(48, 160), (160, 48)])
def test_orthogonal_keeps_singular_vectors_and_brings_all_values_near_one(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.T @ orthogonal(matrix).float() @ right.T
    assert values.diagonal().min() > 0.5 and values.diagonal().max() < 1.3
    assert (values - torch.diag(values.diagonal())).abs().max() < 0.1


def test_narrow_weights_depthwise_convolutions_and_vectors_are_no_matrices():
    taken = {
        shape
        for shape in [(64, 64), (64, 40, 3), (64, 1, 7), (31, 64), (64,)]
        if is_matrix(torch.empty(shape))
    }
    assert taken == {(64, 64), (64, 40, 3)}


def test_groups_that_are_not_orthogonal_learn_as_with_adamw():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    settings = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}
    one = Muon([{"params": [ours], "orthogonal": False}], **settings)
    other = torch.optim.AdamW([theirs], **settings)
    for step in range(5):
        for weight, optimizer in ((ours, one), (theirs, other)):
            weight.grad = (weight.detach() - step).sin()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_a_step_of_a_matrix_has_the_size_of_one_of_adamw_whatever_the_gradient():
    sizes = []
    for scale in (1e-4, 1e4):
        weight = torch.nn.Parameter(torch.zeros(64, 40, 3))
        optimizer = Muon([{"params": [weight], "orthogonal": True}], 0.01, weight_decay=0.0)
        weight.grad = scale * torch.randn(64, 40, 3, generator=torch.Generator().manual_seed(1))
        optimizer.step()
        sizes.append(float(weight.detach().square().mean().sqrt()) / 0.01)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02) == pytest.approx(0.2, rel=0.15)


def test_a_parameter_without_a_gradient_stays():
    weight = torch.nn.Parameter(torch.ones(40, 40))
    Muon([{"params": [weight], "orthogonal": True}], 0.01).step()
    assert torch.equal(weight, torch.ones(40, 40))
