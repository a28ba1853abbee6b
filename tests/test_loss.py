import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llasa_core.loss import SummedCrossEntropy, held_out_loss, labelled_loss
from llasa_core.model import build_model, use_packed_attention
from llasa_core.packing import collate
from llasa_core.prompts import Example, Prompt


def test_loss_of_a_uniform_model_by_hand():
    model = use_packed_attention(build_model("tiny", 50))
    torch.nn.init.zeros_(model.lm_head.weight)
    examples = [
        Example(np.arange(9, dtype=np.int32), ((3, 8),), ()),
        Example(np.arange(4, dtype=np.int32), ((2, 3),), ()),
    ]
    total, count = labelled_loss(model, collate(examples))
    assert count == 6  # labels of positions 3..7 and of position 2
    assert total.item() == pytest.approx(6 * math.log(50), rel=1e-6)


def test_the_label_is_the_next_token_up_to_the_end_marker(mini_tokenizer):
    """A model that surely predicts `token + 1` has no loss on codes in steps of one, and a loss on START and END."""
    prompt = Prompt(mini_tokenizer)
    size, first = len(mini_tokenizer), prompt.vocabulary.first_code

    class Successor(torch.nn.Module):
        def forward(self, input_ids, logits_to_keep, **kwargs):
            following = (input_ids[:, logits_to_keep] + 1) % size
            return type("Output", (), {"logits": F.one_hot(following, size).float() * 50})

    made = prompt.tts_example("We meet Alice.", np.arange(30))
    labels = collate([made])["labels"][0]
    kept = labels[labels != -100].tolist()
    start, end = prompt.vocabulary.speech_generation_start, prompt.vocabulary.speech_generation_end
    assert kept == [start, *range(first, first + 30), end]
    total, count = labelled_loss(Successor(), collate([made]))
    assert count == 32
    # START, the first code (START + 1 is another marker) and END miss by 50 nats each.
    assert total.item() == pytest.approx(150, abs=1e-3)


@pytest.mark.parametrize("size", [50, 5000])
def test_chunked_cross_entropy_equals_torch(size):
    logits = (torch.randn(600, size) * 4).requires_grad_()
    targets = torch.randint(0, size, (600,))
    ours = SummedCrossEntropy.apply(logits, targets)
    (gradient,) = torch.autograd.grad(ours / 600, logits)
    reference = F.cross_entropy(logits, targets)
    (expected,) = torch.autograd.grad(reference, logits)
    assert ours.item() / 600 == pytest.approx(reference.item(), rel=1e-6)
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-4)


def test_packed_loss_and_gradients_equal_padded_training(mini_tokenizer):
    prompt = Prompt(mini_tokenizer)
    generator = np.random.default_rng(0)
    made = [prompt.tts_example("The red lamp.", generator.integers(0, 4096, n)) for n in (11, 40, 3, 25)]
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
    total, count = labelled_loss(use_packed_attention(model), collate(made))
    (total / count).backward()
    assert count == sum(n + 2 for n in (11, 40, 3, 25))
    assert (total / count).item() == pytest.approx(padded.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)


def public_attention(made):
    """Padded ids, labels and the public code's mask: attention 0 wherever the id is that of pad and eot."""
    longest = max(len(one.input_ids) for one in made)
    eot = int(made[0].input_ids[made[0].eot_positions[0]])
    ids = torch.full((len(made), longest), eot)
    labels = torch.full_like(ids, -100)
    for row, one in enumerate(made):
        ids[row, : len(one.input_ids)] = torch.from_numpy(one.input_ids)
        labels[row, : len(one.input_ids)] = torch.from_numpy(one.labels())
    return ids, labels, (ids != eot).long()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masked_eot_gives_the_public_loss_of_each_utterance_and_its_gradients(mini_tokenizer, implementation):
    prompt, generator = Prompt(mini_tokenizer), np.random.default_rng(0)
    made = [prompt.tts_example(f"The {w} lamp.", generator.integers(0, 4096, n)) for w, n in (("red", 9), ("old", 30))]
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
    packed = use_packed_attention(model)
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
    model = use_packed_attention(build_model("tiny", len(mini_tokenizer))).train()
    made = Prompt(mini_tokenizer).tts_example("The red lamp.", np.arange(20))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total, count = held_out_loss(model, [collate([made]), collate([made, made])])
    assert count == 66 and total > 0 and model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
