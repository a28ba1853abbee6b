import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llasa_core.data.packing import collate
from llasa_core.errors import InputError
from llasa_core.model import build_model, use_packed_attention
from llasa_core.prompts import Example, Prompt
from llasa_core.training import loss
from llasa_core.training.loss import (
    held_out_loss,
    labelled_loss,
    linear_cross_entropy,
    use_head_loss,
)


def trained_on_packed_rows(model):
    return use_head_loss(use_packed_attention(model))


def test_loss_of_a_uniform_model_by_hand():
    model = trained_on_packed_rows(build_model("tiny", 50))
    torch.nn.init.zeros_(model.lm_head.weight)
    examples = [
        Example(np.arange(9, dtype=np.int32), ((3, 8),), ()),
        Example(np.arange(4, dtype=np.int32), ((2, 3),), ()),
    ]
    total, count = labelled_loss(model, collate(examples))
    assert count == 6  # labels of positions 3..7 and of position 2
    assert total.item() == pytest.approx(6 * math.log(50), rel=1e-6)


def test_the_label_is_the_next_token_up_to_the_end_marker(mini_tokenizer):
    """A model that surely predicts `token + 1` has no loss on codes in steps of one, and a loss on
    START and END.
    """
    prompt = Prompt(mini_tokenizer)
    size, first = len(mini_tokenizer), prompt.vocabulary.first_code

    class Successor(torch.nn.Module):
        def forward(self, input_ids, predicting, targets, **kwargs):
            following = (input_ids[0, predicting] + 1) % size
            return F.cross_entropy(
                F.one_hot(following, size).float() * 50, targets, reduction="sum"
            )

    made = prompt.tts_example("We meet Alice.", np.arange(30))
    labels = collate([made])["labels"][0]
    kept = labels[labels != -100].tolist()
    start, end = prompt.vocabulary.speech_generation_start, prompt.vocabulary.speech_generation_end
    assert kept == [start, *range(first, first + 30), end]
    total, count = labelled_loss(Successor(), collate([made]))
    assert count == 32
    # START, the first code (START + 1 is another marker) and END miss by 50 nats each.
    assert total.item() == pytest.approx(150, abs=1e-3)


@pytest.fixture(params=["cpu", "gpu"])
def kernel(request, monkeypatch):
    """The head's loss by each device's way to it; a GPU's runs on a CPU too."""
    if request.param == "gpu":
        monkeypatch.setattr(loss, "_loss_then_gradient", loss._fused_loss_then_gradient)
    return linear_cross_entropy


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "size"), [(600, 50), (150, 5000), (150, 193_800), (0, 50)])
def test_head_loss_equals_logits_and_cross_entropy(kernel, rows, size):
    torch.manual_seed(0)
    hidden, weight = (
        torch.randn(rows, 16, requires_grad=True),
        torch.randn(size, 16, requires_grad=True),
    )
    targets = torch.randint(0, size, (rows,))
    ours = kernel(hidden, weight, targets)
    if rows:
        expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
        assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
        for mine, theirs in zip(
            torch.autograd.grad(ours / 7, (hidden, weight)),
            torch.autograd.grad(expected / 7, (hidden, weight)),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    else:
        assert ours.item() == 0


@pytest.mark.slow
@pytest.mark.parametrize("labels", [2_000, 50_000])
def test_head_loss_in_bf16_is_summed_in_fp32(kernel, monkeypatch, labels):
    """A sum in bf16 was 11.6 % too small at 50,000 labels; the weight's gradient is a sum too."""
    torch.manual_seed(0)
    hidden = torch.randn(labels, 32).bfloat16().requires_grad_()
    weight = torch.randn(300, 32).bfloat16().float().requires_grad_()
    targets = torch.randint(0, 300, (labels,))
    monkeypatch.setattr(loss, "BLOCK", 2**18)  # many blocks
    exact = (hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_())
    expected = F.cross_entropy(exact[0] @ exact[1].t(), targets, reduction="sum")
    ours = kernel(hidden, weight, targets)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(expected.item(), rel=2e-4)
    ours.backward()
    expected.backward()
    assert weight.grad.dtype == torch.float32
    for mine, theirs in ((hidden, exact[0]), (weight, exact[1])):
        assert (mine.grad.double() - theirs.grad).norm() < 0.01 * theirs.grad.norm()


def test_head_loss_in_bf16_is_near_fp32_and_keeps_fp32_gradients_of_the_weight(kernel):
    torch.manual_seed(0)
    hidden, weight = (
        torch.randn(300, 64, requires_grad=True),
        torch.randn(900, 64, requires_grad=True),
    )
    targets = torch.randint(0, 900, (300,))
    exact = kernel(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        near = kernel(hidden, weight, targets)
    assert near.item() == pytest.approx(exact.item(), rel=5e-3)
    for mine, theirs in zip(
        torch.autograd.grad(near, (hidden, weight)),
        torch.autograd.grad(exact, (hidden, weight)),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_head_loss_is_used_up_by_its_backward_pass():
    hidden = torch.randn(5, 8, requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.randn(9, 8), torch.randint(0, 9, (5,)))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="earlier backward"):
        loss.backward()


def test_a_head_that_is_more_than_a_matrix_is_refused():
    model = build_model("tiny", 50)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(InputError, match="more than one matrix"):
        use_head_loss(model)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_packed_loss_equals_the_library_with_a_mask_by_document(implementation):
    """transformers makes its own block mask from positions that restart; flex has no backward pass
    on a CPU.
    """
    generator = np.random.default_rng(0)
    made = [
        Example(generator.integers(0, 50, n).astype(np.int32), ((3, n - 1),), ())
        for n in (20, 40, 10)
    ]
    batch, model = collate(made), build_model("tiny", 50)
    model.set_attn_implementation(implementation)
    wanted = batch["labels"][0, 1:]
    with torch.set_grad_enabled(implementation != "flex_attention"):
        logits = model(
            batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits[0, :-1]
        expected = F.cross_entropy(logits, wanted, reduction="sum")
    gradients = {}
    if implementation != "flex_attention":
        expected.backward()
        gradients = {name: one.grad.clone() for name, one in model.named_parameters()}
        model.zero_grad()
    total, count = labelled_loss(trained_on_packed_rows(model), batch)
    total.backward()
    assert count == 16 + 36 + 6
    assert total.item() / count == pytest.approx(expected.item() / count, abs=1e-5)
    for name, one in model.named_parameters():
        if gradients:
            torch.testing.assert_close(one.grad, gradients[name], atol=1e-4, rtol=1e-4)


def test_no_utterance_of_a_row_sees_another(mini_tokenizer):
    """Other words and other codes in one utterance change no bit of its neighbours' predictions."""
    prompt, generator = Prompt(mini_tokenizer), np.random.default_rng(0)
    codes = [generator.integers(0, 4096, n) for n in (30, 25, 40)]
    model = use_packed_attention(build_model("tiny", len(mini_tokenizer)))

    def predictions(middle):
        spoken = {"One.": codes[0], "Two.": middle, "Six.": codes[2]}
        made = [prompt.tts_example(*row) for row in spoken.items()]
        batch = collate(made)
        with torch.no_grad():
            logits = model(
                batch["input_ids"],
                position_ids=batch["position_ids"],
                document_lengths=batch["cu_seqlens"].diff().tolist(),
            ).logits[0]
        return logits.split([len(one.input_ids) for one in made])

    before, after = predictions(codes[1]), predictions(codes[1][::-1])
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])


def test_packed_loss_and_gradients_equal_padded_training(mini_tokenizer):
    prompt = Prompt(mini_tokenizer)
    generator = np.random.default_rng(0)
    made = [
        prompt.tts_example("The red lamp.", generator.integers(0, 4096, n)) for n in (11, 40, 3, 25)
    ]
    model = build_model("tiny", len(mini_tokenizer))
    longest = max(len(one.input_ids) for one in made)
    ids = torch.zeros(len(made), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, one in enumerate(made):
        ids[row, : len(one.input_ids)] = torch.from_numpy(one.input_ids).long()
        mask[row, : len(one.input_ids)] = 1
        labels[row, one.spans[0][0] : one.spans[0][1]] = ids[row, one.spans[0][0] : one.spans[0][1]]
    padded = model(ids, attention_mask=mask, labels=labels).loss
    padded.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    total, count = labelled_loss(trained_on_packed_rows(model), collate(made))
    (total / count).backward()
    assert count == sum(n + 2 for n in (11, 40, 3, 25))
    assert (total / count).item() == pytest.approx(padded.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)


def public_attention(made):
    """Padded ids, labels and the public code's mask: attention 0 wherever the id is that of pad and
    eot.
    """
    longest = max(len(one.input_ids) for one in made)
    eot = int(made[0].input_ids[made[0].eot_positions[0]])
    ids = torch.full((len(made), longest), eot)
    labels = torch.full_like(ids, -100)
    for row, one in enumerate(made):
        ids[row, : len(one.input_ids)] = torch.from_numpy(one.input_ids)
        labels[row, : len(one.input_ids)] = torch.from_numpy(one.labels())
    return ids, labels, (ids != eot).long()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masked_eot_gives_the_public_loss_of_each_utterance_and_its_gradients(
    mini_tokenizer, implementation
):
    prompt, generator = Prompt(mini_tokenizer), np.random.default_rng(0)
    made = [
        prompt.tts_example(f"The {w} lamp.", generator.integers(0, 4096, n))
        for w, n in (("red", 9), ("old", 30))
    ]
    assert all(len(one.eot_positions) >= 2 for one in made)
    model = build_model("tiny", len(mini_tokenizer))
    model.set_attn_implementation(implementation)
    ids, labels, mask = public_attention(made)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits[:, :-1].transpose(1, 2)
    each = F.cross_entropy(logits, labels[:, 1:], reduction="none").sum(1)
    each.sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    packed = trained_on_packed_rows(model)
    alone = [labelled_loss(packed, collate([one], mask_eot=True))[0].item() for one in made]
    total, count = labelled_loss(packed, collate(made, mask_eot=True))
    total.backward()
    assert count == 9 + 30 + 4
    assert alone == pytest.approx(each.tolist(), rel=1e-5)
    assert total.item() == pytest.approx(each.sum().item(), rel=1e-5)
    for name, parameter in packed.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4)
    plain = [labelled_loss(packed, collate([one]))[0].item() for one in made]
    assert any(abs(a - b) > 1e-4 for a, b in zip(plain, alone, strict=True))  # the holes are seen


def test_held_out_loss_does_not_train(mini_tokenizer):
    model = trained_on_packed_rows(build_model("tiny", len(mini_tokenizer))).train()
    made = Prompt(mini_tokenizer).tts_example("The red lamp.", np.arange(20))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total, count = held_out_loss(model, [collate([made]), collate([made, made])])
    assert count == 66 and total > 0 and model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
