"""Linear layers whose weights oneDNN packed for as long as a loop generates."""

import pytest
import torch

from llasa_core.synthesis.packed import FEWEST, as_they_lie, packed_layers, product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_packed_layers_give_the_same_but_for_the_last_digits_and_are_put_back(dtype, biased):
    layers = torch.nn.Sequential(torch.nn.Linear(48, 96, biased), torch.nn.Linear(96, 40, biased))
    layers.to(dtype)
    states = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        plain = layers(states)
        with packed_layers(layers, rows=16):
            assert "forward" in vars(layers[0])
            packed = layers(states)
    assert not any("forward" in vars(layer) for layer in layers)
    closest = (
        {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    )
    torch.testing.assert_close(packed, plain, **closest)


def test_an_error_inside_leaves_no_packed_layer():
    layers = torch.nn.Sequential(torch.nn.Linear(48, 96))
    with pytest.raises(RuntimeError, match="stop"), packed_layers(layers, rows=16):
        raise RuntimeError("stop")
    assert "forward" not in vars(layers[0])


def test_few_rows_and_other_dtypes_are_multiplied_as_they_lie():
    weight, states = torch.randn(8, 4), torch.randn(2, 4)
    assert torch.equal(product(weight, FEWEST - 1)(states), states @ weight.T)
    assert torch.equal(
        product(weight.double(), 16)(states.double()), states.double() @ weight.double().T
    )


def test_a_loop_beside_another_leaves_the_layers_of_the_first_and_both_end_in_any_order():
    layers = torch.nn.Sequential(torch.nn.Linear(48, 96))
    first, second = packed_layers(layers, 16), packed_layers(layers, 16)
    first.__enter__()
    packed = layers[0].forward
    second.__enter__()
    assert layers[0].forward is packed
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert "forward" not in vars(layers[0])


def test_layers_as_they_lie_inside_give_every_bit_of_those_without_packing():
    layers, states = torch.nn.Sequential(torch.nn.Linear(48, 96)), torch.randn(5, 48)
    with torch.inference_mode():
        plain = layers(states)
        with packed_layers(layers, rows=16):
            packed = layers[0].forward
            with as_they_lie(layers):
                assert torch.equal(layers(states), plain)
            assert layers[0].forward is packed
