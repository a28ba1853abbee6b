"""What the mini codec is trained on: several manifests, labels of English alone, augmentation."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from llasa_core.audio import load_audio, write_wav
from llasa_core.codecs import mini_data
from llasa_core.codecs.mini_data import (
    EQUALISER_KNOTS,
    PHONEMES,
    Augmentation,
    CodecTraining,
    WaveSet,
    labeller,
)
from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, write_manifest

NOTHING = Augmentation(level_share=0, resampling_share=0, equaliser_share=0, noise_share=0)


def tone(hertz, seconds=1.0, amplitude=0.1):
    """float32: a sine."""
    time = np.arange(int(16_000 * seconds)) / 16_000
    return (amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def power_at(wave, hertz):
    """Power of a sine of a second, in units of amplitude squared."""
    phases = np.exp(-2j * np.pi * hertz * np.arange(len(wave)) / 16_000)
    return abs(2 * np.mean(wave * phases)) ** 2


@pytest.fixture
def folder(tmp_path):
    """Two manifests: three English tones of 0.5 s, and two French ones of 0.5 s."""
    for name, language, count in (("a", "en", 3), ("b", "fr", 2)):
        utterances = []
        for number in range(count):
            path = tmp_path / f"{name}{number}.wav"
            write_wav(path, tone(200 + 100 * number + (50 if name == "b" else 0), 0.5))
            utterances.append(Utterance(f"{name}{number}", path, "ab", "", language))
        write_manifest(tmp_path / f"{name}.jsonl", utterances)
    return tmp_path


def settings(folder, names="ab", **changes):
    paths = [folder / f"{name}.jsonl" for name in names]
    return CodecTraining(paths, folder / "out", crop_seconds=0.2, **changes)


def test_several_manifests_are_read_together_and_only_english_is_labelled(folder):
    data = WaveSet(settings(folder))
    assert sorted(data.labels) == [[], [], [3, 4], [3, 4], [3, 4]]
    assert data.hours == pytest.approx(5 * 0.5 / 3600)


@pytest.mark.parametrize("none", [[], ()])
def test_no_repeats_mean_once_each(folder, none):
    assert len(WaveSet(settings(folder, repeats=none)).by_length) == len(
        WaveSet(settings(folder, repeats=[1, 1])).by_length
    )


def test_hours_and_repeats_are_of_each_manifest(folder):
    data = WaveSet(settings(folder, hours=[0.6 / 3600, 1.0], repeats=[1, 3]))
    assert sorted(data.labels) == [[], [], [3, 4], [3, 4]]
    drawn = [data.labels[place] for place in data.by_length]
    assert len(drawn) == 8 and drawn.count([3, 4]) == 2 and drawn.count([]) == 6


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"hours": [1.0]}, "`hours` is [1.0], expected a number above 0 for each of 2"),
        ({"repeats": [1, 0]}, "`repeats` is [1, 0]"),
        ({"repeats": [1, 1.5]}, "`repeats` is [1, 1.5]"),
        ({"labels": "letters"}, "that is 'characters' or 'phonemes'"),
        ({"manifest": []}, "manifest is []"),
        ({"manifest": [3]}, "manifest is [3]"),
    ],
)
def test_settings_that_contradict_the_manifests_are_refused(folder, changes, said):
    with pytest.raises(InputError) as raised:
        replace(settings(folder), **changes)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_empty_manifest_is_named(folder):
    (folder / "a.jsonl").write_text("")
    with pytest.raises(InputError, match=r"a\.jsonl"):
        WaveSet(settings(folder))


# Labels


def test_phonemes_of_a_text_have_no_stress_spaces_or_marks():
    pytest.importorskip("hibari")
    read = labeller("phonemes")
    assert "".join(PHONEMES[place - 1] for place in read("A church, this thing!")) == "ɐʧɜɹʧðɪsθɪŋ"
    assert read("It's 2.") == read("its two") and 0 not in read("two")


def test_phonemes_are_sorted_and_cover_what_the_lexicon_says():
    g2p = pytest.importorskip("hibari.g2p")
    assert list(PHONEMES) == sorted(set(PHONEMES))
    entries = [
        entry
        for part in ("gold", "silver")
        for entry in g2p._load_json(f"lexicon_us_{part}.json.gz").values()
    ]
    readings = [
        reading
        for entry in entries
        for reading in (entry.values() if isinstance(entry, dict) else [entry])
        if reading
    ]
    assert len(readings) > 100_000
    assert set("".join(readings)) - set("ˈˌ") == set(PHONEMES) - {"ɐ"}  # "a" is said by a rule


def test_phonemes_without_hibari_ask_for_the_extra(folder, monkeypatch):
    mini_data._phonemes.cache_clear()
    monkeypatch.setitem(sys.modules, "hibari.g2p", None)
    with pytest.raises(InputError, match=r"pip install 'llasa-core\[corpus\]'"):
        WaveSet(settings(folder, labels="phonemes"))


# Augmentation


def test_augmented_batches_depend_on_seed_and_step_alone(folder):
    asked = settings(folder, augmentation=Augmentation())
    data = WaveSet(asked)
    for step in range(4):
        batch, again = data.batch(asked, step), WaveSet(asked).batch(asked, step)
        assert torch.equal(batch.heard, again.heard) and torch.equal(batch.target, again.target)
        assert batch.labels == again.labels
    other = data.batch(replace(asked, seed=1), 3)
    assert other.heard.shape != batch.heard.shape or not torch.equal(other.heard, batch.heard)


def test_augmentation_of_no_share_changes_nothing(folder):
    plain, asked = settings(folder), settings(folder, augmentation=NOTHING)
    first, second = (WaveSet(each).batch(each, 7) for each in (plain, asked))
    assert torch.equal(first.heard, second.heard) and torch.equal(first.target, second.target)
    assert first.labels == second.labels and second.gains.tolist() == [[1.0]] * 4


def test_level_is_followed_by_the_target_and_told():
    wave, quiet = tone(300), replace(NOTHING, level_share=1.0, level_db=(-12.0, -12.0))
    heard, target, gain = quiet.changed(wave, np.random.default_rng(0))
    assert gain == pytest.approx(10**-0.6) and heard is target
    np.testing.assert_allclose(target, wave * gain, rtol=1e-6)
    loud = replace(quiet, level_db=(6.0, 6.0))
    assert np.abs(loud.changed(tone(300, amplitude=0.8), np.random.default_rng(0))[1]).max() <= 1


@pytest.mark.parametrize("decibels", [15.0, 35.0])
def test_noise_is_in_what_is_heard_alone_and_as_strong_as_asked(decibels):
    noisy = replace(NOTHING, noise_share=1.0, noise_db=(decibels, decibels))
    for seed in range(4):  # white and coloured
        heard, target, gain = noisy.changed(tone(300), np.random.default_rng(seed))
        np.testing.assert_array_equal(target, tone(300))
        ratio = np.square(target).mean() / np.square(heard - target).mean()
        assert 10 * np.log10(ratio) == pytest.approx(decibels, abs=0.01) and gain == 1.0


def test_equaliser_is_smooth_and_followed_by_the_target():
    """The gain at a knot is that of the knot; all knots' decibels sum to none."""
    equal = replace(NOTHING, equaliser_share=1.0, equaliser_db=3.0)
    hertz = EQUALISER_KNOTS[1:-1]
    wave = sum(tone(each) for each in hertz)
    heard, target, _ = equal.changed(wave, np.random.default_rng(5))
    assert heard is target and heard.dtype == np.float32
    rng = np.random.default_rng(5)
    rng.random()  # whether
    knots = rng.normal(0, 3.0, len(EQUALISER_KNOTS))
    gains = [10 * np.log10(power_at(target, each) / power_at(wave, each)) for each in hertz]
    np.testing.assert_allclose(gains, (knots - knots.mean())[1:-1], atol=0.2)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_resampling_moves_pitch_and_length(factor):
    other = replace(NOTHING, resampling_share=1.0, resampling=(factor, factor))
    wave = other.resampled(tone(300), np.random.default_rng(0))
    assert len(wave) == pytest.approx(16_000 / factor, abs=1) and wave.dtype == np.float32
    middle = wave[1000:-1000]
    frequency = np.argmax(np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 16_000)))
    assert frequency == pytest.approx(300 * factor, abs=1)


def test_target_and_what_is_heard_stay_in_step(folder):
    """Where only noise differs, both are of one crop and one length."""
    asked = settings(folder, augmentation=replace(Augmentation(), noise_share=1.0), max_seconds=0.3)
    batch = WaveSet(asked).batch(asked, 2)
    assert batch.heard.shape == batch.target.shape == (4, 15 * 320)
    for heard, target in zip(batch.heard, batch.target, strict=True):
        assert np.corrcoef(heard, target)[0, 1] > 0.95


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"noise_share": 1.5}, "`noise_share` is 1.5"),
        ({"level_db": (6.0, -15.0)}, "`level_db` is (6.0, -15.0)"),
        ({"resampling": (0.1, 1.0)}, "`resampling` is (0.1, 1.0)"),
        ({"noise_db": (3.0,)}, "`noise_db` is (3.0,)"),
    ],
)
def test_augmentation_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(InputError) as raised:
        Augmentation(**changes)
    assert said in str(raised.value)


def test_waves_are_kept_as_sixteen_bits(folder):
    data = WaveSet(settings(folder, names="a"))
    kept = {tuple(wave[:50]) for wave in data.waves}
    read = load_audio(folder / "a0.wav")
    assert tuple((read * 32767).astype(np.int16)[:50]) in kept
