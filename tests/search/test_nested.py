import json

import numpy as np
import pytest
from tiny_models import TEXTS, speaking_llama

from llasa_core.codecs.fake import FakeCodec
from llasa_core.errors import InputError
from llasa_core.files import read_rows
from llasa_core.manifest import Request, Utterance
from llasa_core.prompts import Voice
from llasa_core.search.batch import search_manifest
from llasa_core.search.cost import Cost
from llasa_core.search.nested import (
    arm_scores,
    guided_rows,
    most_candidates,
    nested_choice,
    nested_rows,
    requests_of,
    speak_choices,
)
from llasa_core.search.strategy import Strategy
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.tokenizer import vocabulary_of

SAMPLING = Sampling(temperature=1.0, top_k=20, max_seconds=0.6)
LINE = {
    "id": "a.s0",
    "tokens": [10, 20, 30, 40],
    "scores": {"words": [-1, 0, 0, 0], "voice": [0.9, 0.1, 0.5, 0.7]},
}
VERIFIERS = {
    "words": lambda wave, request: -(len(wave) % 7) / 7.0,
    "voice": lambda wave, request: float(abs(wave).mean()),
}


@pytest.fixture(scope="module")
def synthesizer(mini_tokenizer):
    return Synthesizer(
        speaking_llama(vocabulary_of(mini_tokenizer), end_logit=6.0), mini_tokenizer, FakeCodec()
    )


def test_arms_choose_among_the_first_candidates_by_their_own_verifiers():
    assert nested_choice(LINE, 1, []) == nested_choice(LINE, 4, []) == 0
    assert nested_choice(LINE, 4, ["voice"]) == 0
    assert nested_choice(LINE, 4, ["words"]) == 1
    assert nested_choice(LINE, 3, ["words", "voice"]) == 2
    assert nested_choice(LINE, 4, ["words", "voice"]) == 3
    with pytest.raises(InputError, match="4 candidates, expected at least 5"):
        nested_choice(LINE, 5, ["voice"])
    with pytest.raises(InputError, match="no scores by 'quality'"):
        nested_choice(LINE, 4, ["quality"])


def test_arm_of_all_candidates_is_what_the_search_itself_chose_and_costs_what_it_cost(
    synthesizer, tmp_path
):
    utterances = [
        Utterance("a", "a.wav", "Call the office."),
        Utterance("b", "b.wav", "Red lamp.", language="de"),
    ]
    requests = requests_of(utterances, [0, 3])
    assert [request.language for request in requests] == ["en", "de"] * 2
    assert [request.id for request in requests] == ["a.s0", "b.s0", "a.s3", "b.s3"]
    found = search_manifest(
        synthesizer, requests, tmp_path / "n", Strategy(candidates=4), VERIFIERS, SAMPLING
    )
    lines = {line["id"]: line for line in read_rows(found)}
    arms = [{"n": 1, "by": []}, {"n": 4, "by": ["words", "voice"]}]
    wanted = [(request, arm) for request in requests for arm in arms]
    spoken = {
        row["id"]: row
        for row in read_rows(speak_choices(synthesizer, wanted, lines, tmp_path / "c", SAMPLING))
    }
    for name, line in lines.items():
        again = spoken[f"{name}.c{line['chosen']}"]
        assert again["codes"] == line["codes"] and again["verifiers"] == ["voice", "words"]
        first, second = (
            tmp_path / folder / row["audio"] for folder, row in (("n", line), ("c", again))
        )
        assert first.read_bytes() == second.read_bytes()
    judged = {name: {"seconds": 1.0, "errors": 1, "words": 4, "similarity": 0.5} for name in spoken}
    plain, whole = (nested_rows(synthesizer, arm, list(lines.values()), judged) for arm in arms)
    for row, line in zip(whole, lines.values(), strict=True):
        cost = line["cost"]
        assert (row["tokens"], row["candidate"]) == (cost["generated_tokens"], line["chosen"])
        assert row["flops"] == pytest.approx(cost["model_flops"])
        assert row["cpu_seconds"] == pytest.approx(cost["cpu_seconds"], abs=1e-5)
    assert all(
        one["tokens"] < all_of_them["tokens"] for one, all_of_them in zip(plain, whole, strict=True)
    )


def test_requests_go_on_after_the_voice_prompt_of_their_speaker(synthesizer, tmp_path):
    voices = {name: Voice("Red lamp.", np.arange(5) + n) for n, name in enumerate(("x", "y"))}
    texts = [Utterance(f"u{n}", "u.wav", TEXTS[n], "xy"[n]) for n in range(2)]
    requests = requests_of(texts, [0, 1], voices)
    assert [(one.id, one.voice, one.speaker) for one in requests[:2]] == [
        ("u0.s0", voices["x"], "x"),
        ("u1.s0", voices["y"], "y"),
    ]
    prompts, _ = synthesizer.prepare(requests, SAMPLING)
    codes = [prompt[-5:] - synthesizer.vocabulary.first_code for prompt in prompts[:2]]
    assert [one.tolist() for one in codes] == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]
    arm = {"n": 2, "by": ["words", "voice"]}
    found = search_manifest(
        synthesizer, requests, tmp_path / "n", Strategy(candidates=2), VERIFIERS, SAMPLING
    )
    lines = {line["id"]: line for line in read_rows(found)}
    wanted = [(request, arm) for request in requests]
    spoken = read_rows(speak_choices(synthesizer, wanted, lines, tmp_path / "c", SAMPLING))
    for row, line in zip(spoken, lines.values(), strict=True):
        first, second = tmp_path / "n" / line["audio"], tmp_path / "c" / row["audio"]
        assert first.read_bytes() == second.read_bytes()


def test_a_chosen_candidate_is_the_one_that_was_scored_not_another_of_its_seed(
    synthesizer, tmp_path, monkeypatch
):
    """In bf16 a seed brings back 2 of 16 candidates; what the search drew is kept."""
    requests = [Request(f"r{n}", text, seed=n) for n, text in enumerate(TEXTS[:3])]
    strategy = Strategy("best-of-n", 4)
    found = search_manifest(synthesizer, requests, tmp_path / "n", strategy, VERIFIERS, SAMPLING)
    lines = {line["id"]: line for line in read_rows(found)}
    assert all(len(line["candidate_codes"]) == 4 for line in lines.values())

    def drift(*_, **__):
        raise AssertionError("a candidate is sampled again")

    monkeypatch.setattr("llasa_core.synthesis.synthesizer.decode", drift)
    wanted = [(request, {"n": 4, "by": ["words", "voice"]}) for request in requests]
    path = speak_choices(synthesizer, wanted, lines, tmp_path / "c", SAMPLING)
    for row, line in zip(read_rows(path), lines.values(), strict=True):
        assert (row["codes"], row["ended"]) == (line["codes"], line["ended"])
        first, second = tmp_path / "n" / line["audio"], tmp_path / "c" / row["audio"]
        assert first.read_bytes() == second.read_bytes()


def test_arm_is_charged_with_its_own_verifiers_where_the_search_kept_them_apart(synthesizer):
    cost = {"prompt_tokens": 5, "cpu_seconds": 20.0, "verifier_cpu_seconds": 10.0}
    judged = {f"a.s0.c{index}": {"words": 4} for index in range(4)}

    def seconds(line):
        arms = {
            "plain": (1, []),
            "words": (4, ["words"]),
            "voice": (4, ["voice"]),
            "half": (2, ["voice"]),
        }
        arms["both"] = (4, ["words", "voice"])
        rows = {
            k: nested_rows(synthesizer, {"n": n, "by": by}, [line], judged)[0]
            for k, (n, by) in arms.items()
        }
        return {name: row.get("cpu_seconds") for name, row in rows.items()}

    before = seconds(LINE | {"cost": cost})  # tokens 10, 20, 30, 40 of 100; generation took 10 s
    assert before == {"plain": 1.0, "words": None, "voice": None, "half": None, "both": 20.0}
    apart = seconds(LINE | {"cost": cost | {"verifier_cpu_by": {"words": 8.0, "voice": 2.0}}})
    assert apart == {"plain": 1.0, "words": 18.0, "voice": 12.0, "half": 4.0, "both": 20.0}


def test_candidates_that_a_budget_pays_for_are_counted_with_their_verifiers(synthesizer):
    cost = {"prompt_tokens": 5, "cpu_seconds": 20.0, "verifier_cpu_seconds": 10.0}
    cost |= {"verifier_cpu_by": {"words": 8.0, "voice": 2.0}}
    lines = [LINE | {"cost": cost}] * 2  # drawn: 1, 3, 6, 10 s; both verifiers: 2.5 s a candidate

    def paid(seconds, by=("words", "voice")):
        return most_candidates(synthesizer, by, lines, seconds)

    assert [paid(seconds) for seconds in (1.0, 7.0, 15.9, 16.0, 27.0, 90.0)] == [1, 1, 1, 2, 3, 4]
    assert paid(7.9, ["voice"]) == 1 and paid(8.0, ["voice"]) == 2  # 2 * (3 + 2 * 0.5)


def test_cost_that_was_written_without_verifiers_by_name_is_still_read_and_added():
    old = Cost(candidates=2, verifier_cpu_seconds=1.5)
    new = Cost(candidates=1, verifier_cpu_seconds=0.5, verifier_cpu_by={"words": 0.5})
    written = {key: value for key, value in old.rounded().items() if key != "verifier_cpu_by"}
    total = Cost.total([Cost(**written), new])
    assert (total.candidates, total.verifier_cpu_seconds, total.verifier_cpu_by) == (
        3,
        2.0,
        {"words": 0.5},
    )


def test_scores_are_averages_with_intervals_over_texts_not_over_seeds():
    rows = [
        {
            "id": f"{text}.s{seed}",
            "text_id": text,
            "errors": errors,
            "words": 4,
            "similarity": similarity,
        }
        | {
            "tokens": 100,
            "flops": 1e9,
            "cpu_seconds": 0.5,
            "verifier_errors": 0,
            "verifier_similarity": 0.9,
        }
        for text, errors, similarity in (("a", 4, 0.2), ("b", 0, 0.8))
        for seed in range(50)
    ]
    scores = arm_scores(rows)
    assert (scores["utterances"], scores["texts"], scores["corpus_wer_n"]) == (100, 2, 100)
    assert scores["corpus_wer"] == 0.5 and scores["verifier_wer"] == 0.0
    assert (scores["corpus_wer_low"], scores["corpus_wer_high"]) == (
        0.0,
        1.0,
    )  # two texts, whatever the seeds
    assert scores["similarity"] == pytest.approx(0.5) and scores["tokens"] == 100
    assert "verifier_wer" not in arm_scores(
        [{key: row[key] for key in row if key != "verifier_errors"} for row in rows]
    )


def test_rows_of_a_guided_search_say_what_its_verifiers_heard_of_the_chosen_one():
    cost = {"generated_tokens": 300, "model_flops": 2e9, "cpu_seconds": 0.25}
    line = json.loads(json.dumps(LINE | {"chosen": 2, "cost": cost}))
    (row,) = guided_rows(
        [line],
        {
            "a.s0": {"seconds": 1.0, "errors": 1, "words": 4, "similarity": 0.3}
            | {"speaker": "x", "nearest_speaker": "y"}
        },
    )
    assert (row["speaker"], row["nearest_speaker"]) == ("x", "y")
    assert (row["text_id"], row["verifier_errors"], row["verifier_similarity"], row["tokens"]) == (
        "a",
        0,
        0.5,
        300,
    )
    del line["scores"]["words"]
    assert "verifier_errors" not in guided_rows([line], {"a.s0": {"seconds": 1.0, "words": 4}})[0]
