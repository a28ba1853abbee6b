import pytest
import torch

from llasa_core.errors import InputError
from llasa_core.model import (
    build_model,
    flops_per_token,
    load_model,
    model_config,
    parameter_count,
    resize_vocabulary,
    use_packed_attention,
)


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ("nano", 0.16),
        ("micro", 0.48),
        ("tiny", 1.07),
        ("mini", 3.28),
        ("small", 10.62),
        ("1b", 973),
        ("3b", 2819),
        ("8b", 6980),
    ],
)
def test_body_parameters_of_each_size(size, millions):
    counts = parameter_count(build_model(size, 193_800, device="meta"))
    assert counts["body"] / 1e6 == pytest.approx(millions, rel=0.005)


def test_silent_layers_leave_the_embedding_alone_and_the_other_weights_as_drawn():
    model, drawn = build_model("nano", 50, zero_init_residual=True), build_model("nano", 50)
    ids = torch.arange(7)[None]
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state
        torch.testing.assert_close(hidden, model.model.norm(model.model.embed_tokens(ids)))
    same = [
        name
        for (name, a), b in zip(model.named_parameters(), drawn.parameters(), strict=True)
        if torch.equal(a, b)
    ]
    changed = {name.split(".", 3)[-1] for name, _ in model.named_parameters() if name not in same}
    assert changed == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}


def test_released_sizes_have_the_released_totals():
    # Llama 3.2 1B and 3B (tied) and Llama 3.1 8B at their own vocabulary of 128,256 ids.
    totals = [
        parameter_count(build_model(size, 128_256, device="meta"))["total"]
        for size in ("1b", "3b", "8b")
    ]
    assert totals == [1_235_814_400, 3_212_749_824, 8_030_261_248]


def test_flops_are_six_a_weight_plus_attention():
    config = model_config("tiny", 1000)
    weights = (
        sum(p.numel() for p in build_model("tiny", 1000, device="meta").parameters()) - 11 * 128
    )  # without norms
    assert flops_per_token(config, 100) == 6 * weights + 6 * 5 * 128 * 100


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (build_model("tiny", 50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert torch.equal(state, torch.get_rng_state())


def test_unknown_size_is_named():
    with pytest.raises(InputError, match="'huge' is not one of nano"):
        build_model("huge", 100)


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_near_the_mean_and_old_rows_stay(tied):
    config = model_config("tiny", 60)
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = type(build_model("tiny", 60))(config)
    old = model.get_input_embeddings().weight.detach().clone()
    resize_vocabulary(model, 100, noise=0.1)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert layer.weight.shape == (100, 128)
    new = model.get_input_embeddings().weight.detach()
    assert torch.equal(new[:60], old)
    assert torch.allclose(new[60:], old.mean(0).expand(40, -1), atol=0.6 * old.std().item())
    assert new[60:].std(0).mean() == pytest.approx(0.1 * old.std(0).mean().item(), rel=0.2)
    assert model.config.vocab_size == 100
    with pytest.raises(InputError, match="without losing tokens"):
        resize_vocabulary(model, 70)


def test_a_checkpoint_is_read_from_safetensors_only_and_must_fit_its_tokenizer(
    tmp_path, mini_tokenizer
):
    model = build_model("tiny", len(mini_tokenizer))
    model.save_pretrained(tmp_path / "fits")
    assert torch.equal(
        load_model(tmp_path / "fits", mini_tokenizer).lm_head.weight, model.lm_head.weight
    )
    build_model("tiny", 100).save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="vocabulary of 100"):
        load_model(tmp_path / "small", mini_tokenizer)
    (tmp_path / "fits" / "model.safetensors").rename(tmp_path / "fits" / "pytorch_model.bin")
    with pytest.raises(InputError, match="expected safetensors"):
        load_model(tmp_path / "fits")
    with pytest.raises(InputError, match="no such folder"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_packed_attention_equals_each_document_alone(dtype, key_value_heads):
    config = model_config("tiny", 90)
    config.num_key_value_heads = key_value_heads
    torch.manual_seed(0)
    model = type(build_model("tiny", 90))(config).to(dtype).eval()
    lengths = [7, 1, 12, 5]
    ids = torch.randint(0, 90, (1, sum(lengths)))
    alone = torch.cat([model(part).logits for part in ids.split(lengths, dim=1)], dim=1)
    use_packed_attention(model)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(ids, position_ids=positions, document_lengths=lengths).logits
    torch.testing.assert_close(packed, alone, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)


def test_a_document_does_not_see_its_neighbours():
    model = use_packed_attention(build_model("tiny", 90)).eval()
    ids = torch.randint(0, 90, (1, 20))
    changed = ids.clone()
    changed[0, :8] = (changed[0, :8] + 1) % 90
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    first, second = (
        model(x, position_ids=positions, document_lengths=[8, 12]).logits for x in (ids, changed)
    )
    assert torch.equal(first[:, 8:], second[:, 8:])
    assert not torch.equal(first[:, :8], second[:, :8])


def test_without_document_lengths_it_is_ordinary_causal_attention():
    model = build_model("tiny", 90).eval()
    ids = torch.randint(0, 90, (2, 9))
    plain = model(ids).logits
    torch.testing.assert_close(use_packed_attention(model)(ids).logits, plain)


def test_flash_is_for_gpus_of_compute_capability_8_and_its_borders_are_copied_once(monkeypatch):
    from llasa_core import model

    found = {}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found["capability"])
    for capability, runs in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        model._flash_runs_on.cache_clear()
        found["capability"] = capability
        assert model._flash_runs_on(torch.device("cuda", 0)) is runs
    monkeypatch.setattr(model.importlib.util, "find_spec", lambda name: None)
    model._flash_runs_on.cache_clear()
    assert not model._flash_runs_on(torch.device("cuda", 0))
    assert not model._flash_runs_on(torch.device("cpu"))
    model._flash_runs_on.cache_clear()
    borders = model._borders((3, 4), torch.device("cpu"))
    assert borders.tolist() == [0, 3, 7] and borders.dtype == torch.int32
    assert model._borders((3, 4), torch.device("cpu")) is borders
