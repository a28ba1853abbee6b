"""Orders: what is refused, and that what is heard is what the commands make."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from llasa_core.app import report
from llasa_core.app.studio import Limits, Order, Studio, named
from llasa_core.audio import load_audio, sixteen_bit, write_wav
from llasa_core.cli import main
from llasa_core.cli.search import wanted_voices
from llasa_core.errors import InputError
from llasa_core.search.verifiers import VERIFIERS
from llasa_core.synthesis.guards import REASONS

TEXT = "Call the office at seven."


@pytest.fixture(scope="module")
def perform(studio, model):
    def perform(order, live=False, told=None):
        job = studio.job(lambda job: studio.perform(model, order, job, live))
        for step in job:
            if told is not None:
                told.append(step)
        return job.result

    return perform


@pytest.mark.slow
def test_take_has_the_samples_of_the_command(perform, studio, model, speaker, tmp_path):
    take = perform(Order(TEXT, speaker, seed=5))
    out = tmp_path / "said.wav"
    command = ["synthesize", "--model", str(studio.models[model]), "--speaker", speaker]
    assert main([*command, "--seed", "5", TEXT, "-o", str(out)]) == 0
    np.testing.assert_array_equal(
        sixteen_bit(take.wave), sixteen_bit(load_audio(out) * 32768 / 32767)
    )


def test_live_take_tells_its_waves_and_has_the_codes_of_a_whole_one(perform, speaker):
    told = []
    live = perform(Order(TEXT, speaker, attempts=0), live=True, told=told)
    np.testing.assert_array_equal(np.concatenate(told), live.wave)
    np.testing.assert_array_equal(live.codes, perform(Order(TEXT, speaker, attempts=0)).codes)
    assert 0 < live.first_seconds < live.seconds


def test_search_scores_every_candidate_and_each_can_be_heard_again(
    perform, studio, speaker, recording
):
    order = Order(
        TEXT, "", str(recording), "Call the office at seven.", 0, 0.8, 1.0, "best-of-n", 3
    )
    told = []
    take = perform(order, told=told)
    (chosen,) = take.chosen
    assert chosen.verifiers == ("words", "voice") and chosen.scores.shape == (3, 2)
    assert len(told) == 6  # a line a score
    np.testing.assert_array_equal(studio.candidate(take, 0, chosen.index), take.wave)
    assert report.candidates_table(take).count("<tr") == 4
    assert [choice[1] for choice in report.candidate_choices(take)] == ["0/0", "0/1", "0/2"]
    rows = report.as_json(take)["candidates"]
    assert [row["kept"] for row in rows].index(True) == chosen.index
    assert [row["scores"]["voice"] for row in rows] == chosen.scores[:, 1].tolist()


def test_nothing_of_a_recording_is_kept_after_a_search(perform, studio, recording):
    perform(Order(TEXT, "", str(recording), "Call the office.", strategy="best-of-n", candidates=1))
    assert studio._verifiers["voice"]._prompts == {}


def test_guided_search_runs_with_a_recording_and_is_refused_without(perform, speaker, recording):
    guided = Order(TEXT, "", str(recording), "Call the office.", strategy="prm")
    take = perform(guided)
    assert take.chosen[0].verifiers == ("voice",) and report.candidate_choices(take) == []
    with pytest.raises(InputError, match=r"guided by the voice .*give a recording"):
        perform(Order(TEXT, speaker, strategy="partial-prm"))


def test_speaker_tag_has_a_voice_to_compare_with_where_recordings_are_named(
    tracked, model, speaker, recording, tmp_path
):
    manifest = tmp_path / "voices.jsonl"
    line = {"id": "a", "audio": str(recording), "text": "Call the office.", "speaker": speaker}
    manifest.write_text(json.dumps(line) + "\n")
    judges = {"words": "none", "voice": "fake"}
    studio = Studio(tracked, verifier_models=judges, wanted=partial(wanted_voices, str(manifest)))
    order = Order("Hello.", speaker, strategy="prm")
    job = studio.job(lambda job: studio.perform(model, order, job))
    assert list(job)
    assert job.result.chosen[0].verifiers == ("voice",)


def test_long_text_is_searched_in_parts(perform, speaker):
    text = "Please bring four apples. " * 10
    take = perform(Order(text, speaker, strategy="best-of-n", candidates=1))
    assert len(take.chosen) == len(take.pieces) == 2
    assert len(take.wave) > sum(len(piece.wave) for piece in take.pieces)
    assert report.guards_in_words(take)[1].startswith("Part 2 of 2: ")
    assert report.candidate_choices(take)[-1] == ("part 2, candidate 1", "1/0")


@pytest.mark.parametrize(
    "order, why",
    [
        ({"text": "  "}, "There is no text yet"),
        ({"text": "..."}, "has no word in it"),
        ({"text": "word " * 100}, "has 499 characters, at most 400"),
        ({"text": "half \ud800 a character"}, "half a character"),
        ({"speaker": "nobody"}, "Unknown speaker 'nobody'"),
        ({"recording": "nowhere.wav", "recording_text": "Hello."}, "is gone: give it again"),
        ({"strategy": "best-of-n", "candidates": 33}, "at most 32 are searched here"),
        ({"strategy": "best-of-n", "temperature": 0.0}, "makes all candidates the same"),
    ],
)
def test_what_cannot_be_spoken_is_told_in_a_sentence(perform, order, why):
    with pytest.raises(InputError) as refused:
        perform(Order(**{"text": TEXT, **order}))
    told = report.sentence(refused.value)
    assert (
        why in told and not told[0].islower() and told.endswith(".") and "request text" not in told
    )


@pytest.mark.parametrize(
    "settings",
    [{"seed": -1}, {"temperature": float("nan")}, {"temperature": 9.0}, {"strategy": "magic"},
     {"top_p": 0.0}, {"attempts": 21}, {"candidates": 0}],
)  # fmt: skip
def test_settings_out_of_their_range_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Order(TEXT, **settings)


def test_recording_that_is_none_too_long_or_silent_is_refused(studio, model, recording, tmp_path):
    noise, silence, long = (tmp_path / f"{name}.wav" for name in ("noise", "silence", "long"))
    noise.write_bytes(b"RIFFnothing of the kind")
    write_wav(silence, np.zeros(16_000, np.float32))
    write_wav(long, np.tile(load_audio(recording), 10))
    for path, words, why in (
        (noise, "Hello.", "cannot be read as audio"),
        (long, "Hello.", "longer than 12 s"),
        (silence, "Hello.", "The recording: 0.00 s of sound"),
        (recording, " ", "needs the words that are spoken in it"),
    ):
        with pytest.raises(InputError) as refused:
            studio.request(model, Order(TEXT, "", str(path), words))
        told = report.sentence(refused.value, str(path))
        assert why in told and str(tmp_path) not in told


def test_numbers_are_written_out_where_that_is_asked_for(studio, model, speaker):
    order = Order("Call at 7.", speaker)
    assert studio.request(model, order).text == "Call at 7."
    assert studio.request(model, replace(order, numbers=True)).text == "Call at seven."


def test_only_the_named_models_are_loaded(studio):
    with pytest.raises(InputError, match="no model '/etc'"):
        studio.synthesizer("/etc")
    with pytest.raises(InputError, match="no checkpoint to speak with"):
        Studio({})
    with pytest.raises(InputError, match="`characters` is 0"):
        Limits(characters=0)


def test_checkpoints_of_one_name_are_told_apart():
    assert list(named(["runs/a/model", "runs/b/model"])) == ["model", "b/model"]
    with pytest.raises(InputError, match="named twice"):
        named(["model", "model"])


def test_every_reason_and_verifier_has_words_for_people():
    assert tuple(report.REASONS_IN_WORDS) == REASONS
    assert tuple(report.VERIFIERS_IN_WORDS) == tuple(VERIFIERS)


def test_text_cannot_write_html_into_the_page(perform, speaker):
    take = perform(Order('<img src=x onerror=alert(1)> "quoted"', speaker, attempts=0))
    assert "<img src=x" not in report.spectrogram(take)
