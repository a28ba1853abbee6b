"""Copies of recordings at other speeds."""

import numpy as np
import pytest

from llasa_core.audio import load_audio, write_wav
from llasa_core.data.corpora.speeds import at_speed
from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, read_manifest, write_manifest


@pytest.fixture
def manifest(tmp_path):
    """Two tones of a second, 500 Hz, by a speaker and by nobody."""
    tone = 0.3 * np.sin(2 * np.pi * 500 * np.arange(16_000) / 16_000)
    for name in ("a", "b"):
        write_wav(tmp_path / f"{name}.wav", tone.astype(np.float32))
    items = [
        Utterance("a/1", "a.wav", "One.", "ann", "en", 1.0),
        Utterance("b", "b.wav", "Two.", "", "en", 1.0),
    ]
    write_manifest(tmp_path / "train.jsonl", items)
    return tmp_path / "train.jsonl"


def test_a_faster_copy_is_shorter_higher_and_another_speaker(manifest, tmp_path):
    first, second = read_manifest(at_speed(manifest, tmp_path / "fast", 1.25))
    assert (first.id, first.speaker, first.text, first.seconds) == (
        "a/1-1.25x",
        "ann-1.25x",
        "One.",
        0.8,
    )
    assert second.speaker == ""
    wave = load_audio(first.audio)
    assert len(wave) == 12_800
    assert np.abs(np.fft.rfft(wave)).argmax() * 16_000 / len(wave) == pytest.approx(625, abs=2)


def test_only_the_recordings_asked_for_are_copied_and_none_twice(manifest, tmp_path):
    path = at_speed(manifest, tmp_path / "slow", 0.9, {"b"})
    assert [item.id for item in read_manifest(path)] == ["b-0.9x"]
    (copy,) = (tmp_path / "slow" / "wavs").iterdir()
    written = copy.stat().st_mtime_ns
    at_speed(manifest, tmp_path / "slow", 0.9, {"b"})
    assert copy.stat().st_mtime_ns == written


@pytest.mark.parametrize("speed", [1.0, 0.4, 3.0, float("nan")])
def test_a_speed_that_makes_no_other_speaker_is_refused(manifest, tmp_path, speed):
    with pytest.raises(InputError, match=r"expected a number from 0\.5 to 2 other than 1"):
        at_speed(manifest, tmp_path / "odd", speed)
