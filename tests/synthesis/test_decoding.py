import numpy as np
import pytest
import torch
from tiny_models import ANSWERS, TEXT, toy_llama
from transformers import RepetitionPenaltyLogitsProcessor

from llasa_core.errors import InputError
from llasa_core.synthesis.decoding import Answers, Loop, decode, generating
from llasa_core.synthesis.sampling import (
    Sampling,
    draw,
    draw_with_doubt,
    largest,
    penalised,
    row_noise,
)


@pytest.fixture(scope="module")
def llama():
    return toy_llama()


@pytest.fixture(scope="module")
def prompts():
    generator = np.random.default_rng(0)
    return [
        generator.integers(0, TEXT, generator.integers(1, 30)).astype(np.int32) for _ in range(14)
    ]


def one_by_one(model, prompts, limits, seeds, sampling, **options):
    return [
        next(decode(model, [prompt], [limit], [seed], sampling, ANSWERS, **options))[1]
        for prompt, limit, seed in zip(prompts, limits, seeds, strict=True)
    ]


def without_cache(model, prompt, limit, hidden=()):
    """Greedy continuation by one full forward pass a token: codes and END only, END not first."""
    ids = prompt.tolist()
    for step in range(limit):
        length = len(ids)
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        mask[:, list(hidden)] = False
        mask |= torch.eye(length, dtype=torch.bool)
        with torch.no_grad():
            logits = model(torch.tensor([ids]), attention_mask=mask[None, None]).logits[0, -1]
        allowed = torch.full_like(logits, -torch.inf)
        allowed[ANSWERS.first : ANSWERS.stop] = logits[ANSWERS.first : ANSWERS.stop]
        if step:
            allowed[ANSWERS.end] = logits[ANSWERS.end]
        ids.append(int(allowed.argmax()))
        if ids[-1] == ANSWERS.end:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.2, 0, 0.9), Sampling(0.0)])
def test_a_row_is_the_same_alone_and_in_any_batch(prompts, sampling):
    model = toy_llama(end_logit=1.0)
    limits = [4 + 2 * i for i in range(len(prompts))]
    seeds = [i % 3 for i in range(len(prompts))]
    alone = one_by_one(model, prompts, limits, seeds, sampling)
    if sampling.temperature > 0:
        assert {row.reason for row in alone} == {
            "end",
            "length",
        }  # both ways of finishing are exercised
    for slots in (4, 32):
        batched = dict(decode(model, prompts, limits, seeds, sampling, ANSWERS, slots))
        assert sorted(batched) == list(range(len(prompts)))
        for index, row in enumerate(alone):
            assert batched[index].ids.tolist() == row.ids.tolist()
            assert batched[index].reason == row.reason
            assert batched[index].log_prob == pytest.approx(row.log_prob, abs=1e-3)


@pytest.mark.slow
def test_greedy_equals_transformers_generate_on_the_same_logits(llama, prompts):
    class SpeechOnly:
        def __init__(self, prompt_length):
            self.prompt_length = prompt_length

        def __call__(self, ids, scores):
            kept = torch.full_like(scores, -torch.inf)
            kept[:, ANSWERS.first : ANSWERS.stop] = scores[:, ANSWERS.first : ANSWERS.stop]
            if ids.shape[1] > self.prompt_length:
                kept[:, ANSWERS.end] = scores[:, ANSWERS.end]
            return kept

    rows = dict(
        decode(llama, prompts, [12] * len(prompts), [0] * len(prompts), Sampling(0.0), ANSWERS)
    )
    for index, prompt in enumerate(prompts):
        ids = torch.from_numpy(prompt).long()[None]
        generated = llama.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=ANSWERS.end,
            pad_token_id=0,
            logits_processor=[SpeechOnly(len(prompt))],
        )[0, len(prompt) :]
        assert rows[index].ids.tolist() == [
            token for token in generated.tolist() if token != ANSWERS.end
        ]


def test_hidden_positions_are_not_attended_to_and_keep_their_place(llama, prompts):
    prompts = [prompt for prompt in prompts if len(prompt) > 10][:4]
    hidden = [[2, 7]] * len(prompts)
    rows = dict(
        decode(
            llama,
            prompts,
            [12] * len(prompts),
            [0] * len(prompts),
            Sampling(0.0),
            ANSWERS,
            4,
            hidden,
        )
    )
    plain = dict(
        decode(llama, prompts, [12] * len(prompts), [0] * len(prompts), Sampling(0.0), ANSWERS, 4)
    )
    for index, prompt in enumerate(prompts):
        assert rows[index].ids.tolist() == without_cache(llama, prompt, 12, hidden[index])
        assert plain[index].ids.tolist() == without_cache(llama, prompt, 12)
    assert any(
        rows[index].ids.tolist() != plain[index].ids.tolist() for index in range(len(prompts))
    )


def test_end_is_never_first_even_where_the_model_wants_nothing_else(prompts):
    wants_end = toy_llama(end_logit=100.0)
    for _, row in decode(
        wants_end, prompts, [30] * len(prompts), [1] * len(prompts), Sampling(), ANSWERS
    ):
        assert (len(row.ids), row.steps, row.reason) == (1, 2, "end")
    late = Sampling(min_codes=5)
    assert all(
        len(r.ids) == 5
        for _, r in decode(wants_end, prompts, [30] * 14, [1] * 14, late, ANSWERS, 3)
    )


def test_limit_is_respected_and_only_allowed_ids_come_out(prompts):
    never_ends = toy_llama(end_logit=-100.0)
    limits = list(range(1, 15))
    for index, row in decode(
        never_ends, prompts, limits, [5] * 14, Sampling(2.0, 0, 1.0), ANSWERS, 4
    ):
        assert (len(row.ids), row.steps, row.reason) == (limits[index], limits[index], "length")
        assert ((row.ids >= ANSWERS.first) & (row.ids < ANSWERS.stop)).all()


@pytest.mark.slow
def test_equal_prompts_differ_by_seed_and_agree_with_separate_runs(llama, prompts):
    prompt = max(prompts, key=len)
    together = dict(
        decode(llama, [prompt] * 6, [20] * 6, [0, 1, 2, 3, 0, 1], Sampling(), ANSWERS, 4)
    )
    alone = one_by_one(llama, [prompt] * 6, [20] * 6, [0, 1, 2, 3, 0, 1], Sampling())
    assert [together[i].ids.tolist() for i in range(6)] == [row.ids.tolist() for row in alone]
    assert len({tuple(together[i].ids.tolist()) for i in range(6)}) == 4


def test_log_probability_is_the_models_own_over_the_allowed_tokens(llama, prompts):
    prompt = prompts[0]
    row = next(decode(llama, [prompt], [10], [3], Sampling(0.7, 5, 0.9), ANSWERS))[1]
    ids = [*prompt.tolist(), *row.ids.tolist(), *([ANSWERS.end] if row.reason == "end" else [])]
    with torch.no_grad():
        logits = llama(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].double()
    logits[0, ANSWERS.end] = -torch.inf
    kept = torch.cat([logits[:, ANSWERS.first : ANSWERS.stop], logits[:, [ANSWERS.end]]], dim=1)
    drawn = logits.gather(1, torch.tensor(ids[len(prompt) :])[:, None])[:, 0]
    assert row.log_prob == pytest.approx(float((drawn - kept.logsumexp(1)).sum()), abs=1e-4)


def test_model_comes_back_as_it_was(prompts):
    model = toy_llama().train()
    model.set_attn_implementation("eager")
    expected = one_by_one(toy_llama(), prompts[:1], [5], [0], Sampling())[0]
    assert (
        next(decode(model, prompts[:1], [5], [0], Sampling(), ANSWERS))[1].ids.tolist()
        == expected.ids.tolist()
    )
    list(decode(model, prompts, [5] * 14, [0] * 14, Sampling(), ANSWERS))
    assert model.training and model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limits": [0]}, "expected at least 1"),
        ({"limits": [126]}, "context of 128"),
        ({"limits": [1, 2]}, "expected equal"),
        ({"seeds": [-1]}, "seed -1"),
        ({"prompts": [np.array([999])]}, "ids below 148"),
        ({"prompts": [np.zeros(0, int)]}, "non-empty"),
        ({"answers": Answers(48, 149, 45)}, "the model has 148"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(llama, change, message):
    given = {
        "prompts": [np.array([1, 2, 3])],
        "limits": [4],
        "seeds": [0],
        "sampling": Sampling(),
        "answers": ANSWERS,
    }
    with pytest.raises(InputError, match=message):
        list(decode(llama, **(given | change)))


def test_noise_depends_on_seed_and_prompt_only_and_grows_at_its_end():
    prompt = np.arange(5, dtype=np.int32)
    noise = row_noise(7, prompt, 50)
    assert (noise[:10] == row_noise(7, prompt.astype(np.int64), 10)).all()
    assert not (noise == row_noise(8, prompt, 50)).any()
    assert not (noise == row_noise(7, prompt[:-1], 50)).any()


@pytest.mark.parametrize(("width", "count"), [(65_544, 50), (9_000, 20), (700, 50)])
def test_largest_logits_are_those_of_topk(width, count):
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(5, width))).float()
    logits[0, -3:] = 9.0 + torch.arange(3)  # in what is left over of a block
    logits[1, :128] = 8.0 + torch.arange(128) / 128  # all in one block
    logits[2, 7:] = -torch.inf
    values, columns = largest(logits, count)
    expected = logits.topk(count)
    assert torch.equal(values, expected.values)
    assert torch.equal(columns[[0, 1, 3, 4]], expected.indices[[0, 1, 3, 4]])
    assert torch.equal(logits.gather(1, columns), values)


def test_draw_inverts_the_distribution_worked_out_by_hand():
    logits = torch.tensor([0.2, 0.5, 0.3]).log()

    def drawn(uniform, sampling):
        return draw(logits[None], torch.tensor([uniform], dtype=torch.float64), sampling).item()

    everything = Sampling(1.0, 0, 1.0)
    assert [drawn(u, everything) for u in (0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-53)] == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    two_best = Sampling(1.0, 2, 1.0)  # 0.5 / 0.8 = 0.625 for column 1, the rest for column 2
    assert [drawn(u, two_best) for u in (0.0, 0.62, 0.63, 0.999)] == [1, 1, 2, 2]
    nucleus = Sampling(1.0, 0, 0.6)  # 0.5 alone is short of 0.6, so column 2 is in
    assert [drawn(u, nucleus) for u in (0.0, 0.62, 0.63, 0.999)] == [1, 1, 2, 2]
    assert [drawn(u, Sampling(1.0, 3, 0.4)) for u in (0.0, 0.999)] == [1, 1]
    cold = Sampling(0.5, 0, 1.0)  # squares: 0.04, 0.25, 0.09 of 0.38
    assert [drawn(u, cold) for u in (0.10, 0.11, 0.76, 0.77)] == [0, 1, 1, 2]
    assert drawn(0.999, Sampling(0.0)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, 0),
        Sampling(0.8, 50),
        Sampling(0.15, 50),
        Sampling(1.0, 0, 0.9),
        Sampling(0.8, 20, 0.9),
        Sampling(0.0),
    ],
)
def test_where_there_is_no_doubt_rounding_changes_no_draw_and_doubt_is_rare(sampling):
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.normal(size=(40_000, 60)) * 3).float()
    uniform = torch.from_numpy(generator.random(40_000))
    error = 2e-4  # of the largest logit, a hundred times float32's own, so that draws do change
    column, doubt = draw_with_doubt(logits, uniform, sampling, error)
    peak = logits.amax(-1, keepdim=True).abs().clamp(min=1)
    changed = torch.zeros_like(doubt)
    for _ in range(6):
        rounded = (
            logits
            + torch.from_numpy(generator.uniform(-0.4, 0.4, logits.shape)).float() * error * peak
        )
        changed |= draw(rounded, uniform, sampling) != column
    assert changed.any() and not (changed & ~doubt).any()
    assert doubt.float().mean() < 0.05
    assert torch.equal(column, draw(logits, uniform, sampling))


@pytest.mark.slow
def test_draw_in_doubt_is_decided_by_the_row_alone(prompts):
    model, sampling = toy_llama(end_logit=1.0), Sampling(0.8, 20)
    count = len(prompts)

    def decoded(chosen, slots, error):
        with generating(model):
            seeds = [index % 3 for index in chosen]
            loop = Loop(
                model,
                [prompts[i] for i in chosen],
                [25] * len(chosen),
                seeds,
                sampling,
                ANSWERS,
                slots,
                [[1]] * len(chosen),
            )
            loop.error = error
            rows = {chosen[index]: row.ids.tolist() for index, row in loop.run()}
        return rows, loop.recomputed

    plain, none = decoded(list(range(count)), 8, 0.0)
    always, all_of_them = decoded(list(range(count)), 8, 1e9)
    some, few = decoded(list(range(count)), 8, 1e-3)
    assert none == 0 < few < all_of_them and plain == always == some
    assert decoded([3], 1, 1e9)[0][3] == always[3]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_codes": -1},
        {"max_seconds": 0},
    ],
)
def test_sampling_is_checked_when_it_is_made(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_repetition_penalty_is_that_of_transformers():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, generator=generator)
    ids = torch.randint(0, 50, (3, 12), generator=generator)
    repeated = torch.zeros(3, 50, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(1.2)(ids, logits)
    assert torch.equal(penalised(logits, repeated, 1.2), expected)
    assert torch.equal(penalised(logits, repeated, 1.0), logits)


@pytest.mark.parametrize("penalty", [1.2, 3.0])
def test_penalised_codes_are_those_of_transformers_generate(llama, prompts, penalty):
    voiced = [np.concatenate([prompt, [50, 60, 70]]).astype(np.int32) for prompt in prompts[:6]]
    rows = dict(
        decode(
            llama,
            voiced,
            [20] * 6,
            [0] * 6,
            Sampling(temperature=0.0, repetition_penalty=penalty),
            ANSWERS,
            slots=4,
        )
    )
    banned = [i for i in range(148) if not ANSWERS.first <= i < ANSWERS.stop and i != ANSWERS.end]
    for index, prompt in enumerate(voiced):
        with torch.no_grad():
            ids = llama.generate(
                torch.from_numpy(prompt[None].astype(np.int64)),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=20,
                min_new_tokens=1,
                do_sample=False,
                repetition_penalty=penalty,
                suppress_tokens=banned,
                eos_token_id=ANSWERS.end,
                pad_token_id=0,
            )[0, len(prompt) :]
        assert rows[index].ids.tolist() == [i for i in ids.tolist() if i != ANSWERS.end]
    plain = dict(decode(llama, voiced, [20] * 6, [0] * 6, Sampling(0.0), ANSWERS))
    assert any(rows[i].ids.tolist() != plain[i].ids.tolist() for i in range(6))


def test_penalised_row_is_the_same_alone_and_in_any_batch(llama, prompts):
    sampling = Sampling(1.0, 20, repetition_penalty=1.5)
    limits, seeds = [4 + 2 * i for i in range(len(prompts))], list(range(len(prompts)))
    alone = one_by_one(llama, prompts, limits, seeds, sampling)
    together = dict(decode(llama, prompts, limits, seeds, sampling, ANSWERS, slots=5))
    for index, row in enumerate(alone):
        assert together[index].ids.tolist() == row.ids.tolist()
