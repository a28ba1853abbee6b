"""The built-in corpus: what its sentences promise, and that a build means the same bytes however it
was run.
"""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from llasa_core import cli
from llasa_core.data.corpora import grammar, synthetic, voices
from llasa_core.errors import InputError
from llasa_core.manifest import read_manifest

TINY = {"utterances": 10, "test_utterances": 2, "dev_fraction": 0.4}


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    pytest.importorskip("hibari")
    folder = tmp_path_factory.mktemp("corpus")
    report = synthetic.build(folder, **TINY)
    return folder, report


@pytest.fixture(scope="module")
def long_plan():
    return synthetic.plan(hours=16)


def test_sentences_are_distinct_and_the_stream_of_a_seed_is_fixed():
    chosen = synthetic.sentences(3000, seed=4)
    assert len({tuple(grammar.words_of(sentence)) for sentence in chosen}) == 3000
    assert chosen[:50] == synthetic.sentences(50, seed=4)
    assert chosen[:50] != synthetic.sentences(50, seed=5)


@pytest.mark.slow
def test_a_plan_of_sixteen_hours_says_every_word_often_and_no_sentence_twice(long_plan):
    vocabulary, spoken = grammar.vocabulary(), [grammar.words_of(row["text"]) for row in long_plan]
    assert 400 <= len(vocabulary) <= 700
    assert len({tuple(words) for words in spoken}) == len(long_plan) > 25_000
    lengths = np.array([len(words) for words in spoken])
    assert lengths.min() == 1 and lengths.max() == 10
    assert 0.15 < (lengths <= 3).mean() < 0.35
    words, counts = np.unique(list(itertools.chain.from_iterable(spoken)), return_counts=True)
    assert set(words) - {"an"} == set(vocabulary)
    assert counts.min() >= 60 and np.quantile(counts, 0.05) >= 80


def test_an_is_written_before_a_vowel():
    sentences = [sentence for _, sentence in itertools.islice(grammar.draw(0), 5000)]
    assert not [
        sentence for sentence in sentences if " a old" in sentence or " a empty" in sentence
    ]
    assert any(" an empty " in sentence for sentence in sentences)


def test_test_sentences_hold_a_kept_out_pair_and_no_other_sentence_does():
    rows = synthetic.plan(utterances=2000, test_utterances=80)
    for row in rows:
        assert grammar.is_held_out(row["text"]) == (row["split"] == "test")
    tests = [grammar.words_of(row["text"]) for row in rows if row["split"] == "test"]
    assert len(tests) == 80 and all(4 <= len(words) <= 10 for words in tests)


def test_the_kept_out_pairs_are_fixed_and_few():
    assert grammar.is_held_out("Come in July.") and grammar.is_held_out("come IN july")
    assert not grammar.is_held_out("Come in March.") and not grammar.is_held_out("July")
    words = grammar.vocabulary()
    pairs = [f"{first} {second}" for first in words[::5] for second in words[::5]]
    assert 0.005 < np.mean([grammar.is_held_out(pair) for pair in pairs]) < 0.015


def test_voices_are_balanced_and_test_sentences_are_spread_over_all_of_them():
    rows = synthetic.plan(utterances=400, test_utterances=80)
    for split, share in (("test", 10), (None, 50)):
        speakers = [row["voice"].name for row in rows if split in (None, row["split"])]
        assert {name: speakers.count(name) for name in speakers} == {
            v.name: share for v in voices.VOICES
        }


def test_a_longer_plan_begins_with_the_shorter_one():
    assert synthetic.plan(utterances=500, test_utterances=40)[:300] == synthetic.plan(
        utterances=300, test_utterances=40
    )


def test_a_small_corpus_keeps_four_fifths_for_training():
    assert [row["split"] for row in synthetic.plan(utterances=50)].count("test") == 10


def test_the_hours_asked_for_are_the_hours_planned(long_plan):
    seconds = [synthetic.estimated_seconds(row["text"], row["voice"]) for row in long_plan]
    assert sum(seconds) == pytest.approx(16 * 3600, abs=5)


def test_dev_is_chosen_by_the_id_alone():
    splits = [
        {
            row["id"]: row["split"]
            for row in synthetic.plan(utterances=n, test_utterances=100, dev_fraction=0.1)
        }
        for n in (1500, 900)
    ]
    assert all(splits[0][identity] == split for identity, split in splits[1].items())
    dev = [split for split in splits[0].values() if split != "test"].count("dev")
    assert 0.06 < dev / 1400 < 0.14


def test_the_voice_table_is_sane():
    assert len(voices.VOICES) == len(voices.HELD_OUT) == 8
    grammar_table = [*voices.VOICES, voices.NEW_VOICE]
    open_table = [*voices.NAMED, voices.NEW_OPEN_VOICE, *voices.HELD_OUT]
    for table in (grammar_table, open_table):
        assert (
            len({voice.name for voice in table})
            == len({dataclasses.astuple(v)[1:] for v in table})
            == len(table)
        )
        assert all(v.name.isalpha() and v.name.islower() and v.name.isascii() for v in table)
        assert all(0.75 <= v.resampling <= 1.15 and 0.9 <= v.speed <= 1.1 for v in table)


def test_speakers_to_be_taught_by_tag_are_no_speakers_of_the_open_corpus():
    taught = [*voices.TWO_SPEAKERS, *voices.EIGHT_SPEAKERS]
    known = [*voices.NAMED, *voices.HELD_OUT, *voices.pseudo_speakers(8)]
    assert (len(voices.TWO_SPEAKERS), len({voice.name for voice in taught})) == (2, 10)
    assert {voice.name for voice in taught}.isdisjoint(voice.name for voice in known)
    factors = {dataclasses.astuple(voice)[1:] for voice in taught}
    assert len(factors) == 10 and factors.isdisjoint(dataclasses.astuple(v)[1:] for v in known)


def test_a_build_without_hours_or_with_a_name_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="exactly one"):
        synthetic.build(tmp_path / "a")
    with pytest.raises(InputError, match="more than nothing"):
        synthetic.build(tmp_path / "a", hours=0)
    with pytest.raises(InputError, match="different names"):
        synthetic.build(tmp_path / "b", utterances=2, voices=voices.VOICES[:1] * 2)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_speech_has_the_promised_level_margins_and_seed():
    pytest.importorskip("hibari")
    wave = synthetic.speak("Good morning, Laura.", voices.VOICES[0], seed=3)
    assert wave.dtype == np.float32 and wave.ndim == 1 and 0.7 * 16000 < len(wave) < 3 * 16000
    assert np.abs(wave).max() <= 0.951
    loud = np.flatnonzero(np.abs(wave) > 0.02)
    assert 0.05 < loud[0] / 16000 < 0.25 and 0.05 < (len(wave) - loud[-1]) / 16000 < 0.3
    assert np.array_equal(wave, synthetic.speak("Good morning, Laura.", voices.VOICES[0], seed=3))
    assert not np.array_equal(
        wave, synthetic.speak("Good morning, Laura.", voices.VOICES[0], seed=4)
    )
    with pytest.raises(InputError, match="nothing to say"):
        synthetic.speak("...", voices.VOICES[0])


@pytest.mark.slow
def test_pitch_and_tempo_factors_do_what_they_say(monkeypatch):
    dsp = pytest.importorskip("hibari.dsp")
    seen, synth = [], dsp.synth
    monkeypatch.setattr(dsp, "synth", lambda *parts: seen.append(parts[5]) or synth(*parts))
    text = "We are allowed no longer."
    plain, low, slow = (
        synthetic.speak(text, voices.Voice("x", **factors))
        for factors in ({}, {"pitch": 0.75}, {"speed": 0.7})
    )
    np.testing.assert_allclose(seen[1], seen[0] * 0.75, rtol=1e-5)
    assert len(low) / len(plain) == pytest.approx(1, abs=0.05)
    assert len(slow) > 1.15 * len(plain)


def test_resampling_moves_pitch_and_formants_and_keeps_the_tempo():
    pytest.importorskip("hibari")
    text = "We are allowed no longer."
    plain, deep = (
        synthetic.speak(text, voices.Voice("x", resampling=factor)) for factor in (1.0, 0.85)
    )
    assert len(deep) / len(plain) == pytest.approx(1, abs=0.12)
    frequencies = [np.fft.rfftfreq(len(wave), 1 / 16000) for wave in (plain, deep)]
    powers = [np.abs(np.fft.rfft(wave)) ** 2 for wave in (plain, deep)]
    centres = [
        np.average(f[f < 4000], weights=p[f < 4000])
        for f, p in zip(frequencies, powers, strict=True)
    ]
    assert centres[1] / centres[0] == pytest.approx(0.85, abs=0.08)


def test_formant_warp_stretches_the_frequency_axis():
    spectrum = np.zeros((601, 2), np.float32)
    spectrum[100] = 1.0
    assert np.array_equal(synthetic._warp(spectrum, 1.1).argmax(axis=0), [110, 110])
    assert synthetic._warp(spectrum, 1.0) is spectrum


def test_a_build_writes_a_manifest_whose_files_hold_what_it_says(corpus):
    import soundfile

    folder, report = corpus
    rows = []
    for split in ("train", "dev", "test"):
        lines = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        assert all(line["split"] == split for line in lines)
        assert len(lines) == report["splits"][split]["utterances"]
        rows += lines
    assert len(rows) == report["utterances"] == 10 and report == json.loads(
        (folder / "report.json").read_text()
    )
    for row in rows:
        info = soundfile.info(folder / row["audio"])
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert row["seconds"] == pytest.approx(info.duration, abs=1e-3)
        assert (
            row["id"].startswith(row["speaker"] + "-") and row["language"] == "en" and row["text"]
        )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_with_two_processes(corpus, tmp_path):
    synthetic.build(tmp_path, **TINY, jobs=2)
    assert files_of(tmp_path) == files_of(corpus[0])


@pytest.mark.slow
def test_a_stopped_build_resumes_to_the_same_bytes_and_keeps_finished_wavs(
    corpus, tmp_path, monkeypatch
):
    spoken, whole = [], synthetic.speak

    def stops_at_the_fourth(text, voice, seed):
        if len(spoken) == 3:
            raise KeyboardInterrupt
        spoken.append(text)
        return whole(text, voice, seed)

    monkeypatch.setattr(synthetic, "speak", stops_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        synthetic.build(tmp_path, **TINY)
    assert not (tmp_path / "report.json").exists() and len(list((tmp_path / "wavs").iterdir())) == 3
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "wavs").iterdir()}
    monkeypatch.setattr(synthetic, "speak", whole)
    synthetic.build(tmp_path, **TINY)
    assert files_of(tmp_path) == files_of(corpus[0])
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_a_folder_with_another_corpus_is_refused_and_left_alone(corpus):
    folder, before = corpus[0], files_of(corpus[0])
    with pytest.raises(InputError, match="another corpus"):
        synthetic.build(folder, **TINY, seed=1)
    with pytest.raises(InputError, match="another corpus"):
        synthetic.build(folder, **TINY, voices=voices.VOICES[1:])
    assert files_of(folder) == before


def test_command_speaks_the_grammar_with_the_speakers_of_each_of_its_corpora(tmp_path, capsys):
    pytest.importorskip("hibari")
    for source, speakers in voices.GRAMMAR_SPEAKERS.items():
        out = tmp_path / source
        assert cli.main(["prepare", source, str(out), "--utterances", "16"]) == 0
        said = {
            item.speaker
            for split in ("train", "dev", "test")
            for item in read_manifest(out / f"{split}.jsonl")
        }
        assert said <= {voice.name for voice in speakers} and len(said) > 1
    capsys.readouterr()
