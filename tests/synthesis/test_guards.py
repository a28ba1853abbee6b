import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_models import TEXTS, speaking_llama

from llasa_core.cli import main
from llasa_core.codecs.fake import FakeCodec
from llasa_core.data.dataset import finish, part_name, write_part
from llasa_core.errors import InputError
from llasa_core.manifest import Request
from llasa_core.prompts import Voice
from llasa_core.synthesis.batch import synthesize_manifest
from llasa_core.synthesis.guards import (
    Guards,
    fewest_distinct,
    learn_guards,
    longest_loop,
    longest_silence,
    quantile_line,
)
from llasa_core.synthesis.sampling import Sampling, candidate_seed
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.tokenizer import vocabulary_of

SAMPLING = Sampling(temperature=1.0, top_k=20, max_seconds=0.6)
STRICT = Guards(
    attempts=4, at_once=6, silence_seconds=9.0
)  # of what the random model says, about half passes


@pytest.fixture(scope="module")
def synthesizer(mini_tokenizer):
    return Synthesizer(
        speaking_llama(vocabulary_of(mini_tokenizer)), mini_tokenizer, FakeCodec(), slots=4
    )


@pytest.fixture(scope="module")
def requests():
    return [Request(f"u{i}", text, seed=i) for i, text in enumerate(TEXTS * 2)]


def test_loop_is_found_at_any_period_and_not_in_noise():
    noise = np.random.default_rng(0).permutation(4096)[:200]
    assert longest_loop(noise) == 0
    assert longest_loop(np.array([7] * 10)) == 9
    words = np.concatenate(
        [noise[:60], np.tile(noise[60:97], 3), noise[100:120]]
    )  # 37 codes said three times
    assert longest_loop(words) == 2 * 37
    assert longest_loop(np.array([], int)) == longest_loop(np.array([3])) == 0


def test_stuck_speech_has_few_different_codes():
    assert fewest_distinct(np.arange(60)) == 50
    assert fewest_distinct(np.concatenate([np.arange(60), np.tile([1, 2, 3], 20)])) == 3
    assert fewest_distinct(np.array([1, 1, 1])) == 50  # too short to say


def test_silence_is_measured_where_it_is_longest():
    tone = 0.3 * np.sin(np.arange(16_000) / 5).astype(np.float32)
    quiet = np.zeros(8_000, np.float32)
    assert longest_silence(tone, 16_000) == 0
    assert longest_silence(
        np.concatenate([tone, quiet, tone, quiet[:3200]]), 16_000
    ) == pytest.approx(0.5)
    assert longest_silence(np.zeros(32_000, np.float32), 16_000) == pytest.approx(2.0)
    assert longest_silence(np.zeros(0, np.float32), 16_000) == 0


def test_each_reason_is_given_for_its_own_fault():
    guards = Guards(shortest=(0, 2.0), loop_codes=30, silence_seconds=1.0)
    request = Request("a", "x" * 40)
    codes, tone = np.arange(100), np.sin(np.arange(32_000) / 5)

    def why(codes=codes, ended=True, wave=tone):
        return guards.reasons(request, codes, ended, wave, 16_000)

    assert why() == ()
    assert why(codes[:5]) == ("ended_at_once",) and why(codes[:60]) == ("too_short",)
    assert why(ended=False) == ("never_ended",)
    assert why(np.tile(np.arange(20), 5)) == ("loop",)
    assert why(np.random.default_rng(0).integers(0, 5, 100)) == ("stuck",)
    assert why(wave=np.zeros(32_000)) == ("silence",)


@pytest.mark.slow
def test_quantile_line_goes_through_the_quantile_at_every_length():
    generator = np.random.default_rng(0)
    x = generator.uniform(5, 60, 3000)
    y = 10 + x * (2 + generator.random(3000))  # of slope 2 to 3
    for quantile in (0.05, 0.5, 0.95):
        intercept, slope = quantile_line(x, y, quantile)
        assert (intercept, slope) == (
            pytest.approx(10, abs=1.5),
            pytest.approx(2 + quantile, abs=0.06),
        )


@pytest.mark.slow
def test_learnt_bounds_hold_all_that_they_were_learnt_from_and_survive_the_file(tmp_path):
    generator = np.random.default_rng(1)
    rows = []
    for size in generator.integers(5, 60, 300):
        codes = generator.integers(0, 4096, int(8 + 3 * size + generator.integers(0, 10)))
        rows.append({"text": "x" * int(size), "codes": codes})
    guards, learnt_from = learn_guards(rows)
    wave = np.sin(np.arange(3200) / 5)
    for row in rows:
        assert guards.reasons(Request("a", row["text"]), row["codes"], True, wave, 16_000) == ()
    few, most = guards.bounds(Request("a", "x" * 40))
    assert 60 < few < 128 and 138 < most < 220
    guards.write(tmp_path / "guards.json", learnt_from)
    assert Guards.from_file(tmp_path / "guards.json") == guards and learnt_from["rows"] == 300
    with pytest.raises(InputError, match="no rows"):
        learn_guards([])


def test_slow_voice_prompt_widens_the_bounds():
    guards = Guards(shortest=(0, 2.0), longest=(0, 4.0))
    request = Request(
        "a", "x" * 30, voice=Voice("x" * 10, np.zeros(100, np.int32))
    )  # 10 codes a character
    assert guards.bounds(replace(request, voice=None)) == (60, 120) and guards.bounds(request) == (
        60,
        650,
    )


def test_voice_whose_words_begin_the_text_has_spoken_its_codes_of_the_fewest():
    guards = Guards(shortest=(0, 2.0), longest=(0, 4.0))
    request = Request("a", "x" * 30, voice=Voice("", np.zeros(40, np.int32)))
    assert guards.bounds(request) == (20, 120)
    assert guards.bounds(replace(request, voice=Voice("", np.zeros(400, np.int32)))) == (1, 120)


@pytest.mark.slow
def test_guarded_speech_is_what_its_seed_says_whatever_the_batch(synthesizer, requests):
    plain = {one.request.id: one for one in synthesizer.speak(requests, SAMPLING)}
    guarded = {one.request.id: one for one in synthesizer.speak(requests, SAMPLING, STRICT)}
    assert set(guarded) == set(plain)
    assert {one.attempts for one in guarded.values()} >= {1, 2}
    for request in requests:
        one = guarded[request.id]
        assert one.request == request and len(one.rejected) == one.attempts - 1
        why = STRICT.reasons(request, one.generated.codes, one.generated.ended, one.wave, 16_000)
        assert one.failed == why
        if one.attempts == 1:
            np.testing.assert_array_equal(one.wave, plain[request.id].wave)
        elif not why:
            again = replace(request, seed=candidate_seed(request.seed, one.attempts - 1))
            hotter = replace(
                SAMPLING, temperature=SAMPLING.temperature + (one.attempts - 1) * STRICT.heat
            )
            (alone,) = synthesizer.speak([again], hotter)
            np.testing.assert_array_equal(one.wave, alone.wave)
    for request in requests[:4]:
        (alone,) = synthesizer.speak([request], SAMPLING, STRICT)
        np.testing.assert_array_equal(alone.wave, guarded[request.id].wave)
        assert (alone.attempts, alone.rejected) == (
            guarded[request.id].attempts,
            guarded[request.id].rejected,
        )


def test_what_never_passes_is_kept_and_says_so(synthesizer, requests, tmp_path):
    impossible = Guards(attempts=2, at_once=1000)
    path = synthesize_manifest(
        synthesizer, requests[:3], tmp_path / "a", SAMPLING, guards=impossible
    )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["attempts"] for line in lines] == [2, 2, 2]
    assert all(line["failed"][0] == "ended_at_once" and len(line["guard"]) == 1 for line in lines)
    kept = [len(line["failed"]) <= len(line["guard"][0]) for line in lines]
    assert all(kept)
    with pytest.raises(InputError, match="made with guards"):
        synthesize_manifest(synthesizer, requests[:3], tmp_path / "a", SAMPLING)


def test_end_at_the_first_step_is_possible_only_where_it_is_asked_for(mini_tokenizer, requests):
    wants_end = Synthesizer(
        speaking_llama(vocabulary_of(mini_tokenizer), 100.0), mini_tokenizer, FakeCodec()
    )
    (public,) = wants_end.speak(requests[:1], replace(SAMPLING, min_codes=0))
    assert len(public.generated.codes) == len(public.wave) == 0 and public.generated.ended
    (ours,) = wants_end.speak(requests[:1], SAMPLING, Guards(attempts=3))
    assert len(ours.generated.codes) == 1 and ours.rejected == (("ended_at_once",),) * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attempts": 0}, "`attempts` is 0, expected a whole number of at least 1"),
        ({"loop_codes": 2.5}, "loop_codes"),
        ({"longest": [1.0]}, "longest must be"),
        ({"shortest": None}, "shortest must be"),
        ({"silence_seconds": 0}, "silence_seconds"),
        ({"heat": -1}, "heat"),
        ({"loops": 3}, "unknown key 'loops'"),
    ],
)
def test_bad_guards_file_is_named(tmp_path, wrong, message):
    path = tmp_path / "guards.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(InputError, match=rf"guards.json: .*{message}"):
        Guards.from_file(path)


@pytest.mark.slow
def test_command_learns_guards_and_synthesis_uses_them(synthesizer, tmp_path, capsys):
    rows = [
        {
            "id": str(i),
            "text": "word " * (2 + i % 5),
            "codes": np.arange(20 + 12 * (i % 5)),
            "speaker": "",
            "language": "en",
        }
        | {"seconds": (20 + 12 * (i % 5)) / 50}
        for i in range(20)
    ]
    codes, model = tmp_path / "codes", tmp_path / "model"
    codes.mkdir()
    info = {"codec": "fake", "codebook_size": 4096, "frame_rate": 50.0, "source": "test"}
    write_part(codes / part_name(0), rows, info | {"dropped": {}})
    finish(codes, 1, {key: info[key] for key in ("codec", "codebook_size", "frame_rate")})
    synthesizer.model.save_pretrained(model)
    synthesizer.tokenizer.save_pretrained(model)
    (model / "llasa.json").write_text(json.dumps({"codec": "fake"}))
    assert main(["learn-guards", str(codes), str(model)]) == 0
    assert Guards.from_file(model / "guards.json").longest is not None
    spoken = ["synthesize", "--model", str(model), "Red lamp.", "-o"]
    assert main([*spoken, str(tmp_path / "out"), "--attempts", "2"]) == 0
    line = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())
    assert line["attempts"] <= 2 and "failed" in line
    assert main([*spoken, str(tmp_path / "plain"), "--attempts", "0"]) == 0
    assert "attempts" not in json.loads((tmp_path / "plain" / "manifest.jsonl").read_text())
    (tmp_path / "bad.json").write_text('{"loops": 1}')
    assert main([*spoken, str(tmp_path / "new"), "--guards", str(tmp_path / "bad.json")]) == 2
    assert "unknown key 'loops'" in capsys.readouterr().err and not (tmp_path / "new").exists()
