"""Opus and Codec2 as round trips, the bits they spend, and the table of codecs."""

import struct

import numpy as np
import pytest
from helpers import tone_corpus

from llasa_core.codecs import load_codec
from llasa_core.codecs.classical import Coded, Metered, OpusCodec, ogg_packets
from llasa_core.codecs.fake import FakeCodec
from llasa_core.errors import InputError
from llasa_core.evaluation import scoring
from llasa_core.evaluation.codecs import available, measured, score_codec, score_originals, table
from llasa_core.judges import load_judges


def tone(samples=8000, rate=16_000):
    time = np.arange(samples) / rate
    return (0.3 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 3 * time))).astype(
        np.float32
    )


def page(segments, payload=b""):
    return (
        b"OggS"
        + bytes(22)
        + struct.pack("B", len(segments))
        + bytes(segments)
        + (payload or bytes(sum(segments)))
    )


def test_packets_that_run_over_segments_and_pages_by_hand():
    assert ogg_packets(page([19]) + page([255, 10, 30])) == [19, 265, 30]
    assert ogg_packets(page([255]) + page([5])) == [260]  # goes on in the next page
    with pytest.raises(InputError, match="no page at byte 0"):
        ogg_packets(b"RIFF0000")


@pytest.mark.parametrize("rate", [6000, 16_000, 32_000])
def test_opus_gives_the_wave_back_at_about_its_rate(rate):
    codec, wave = Metered(OpusCodec(rate)), tone(48_000)
    (again,) = codec.decode(codec.encode([wave]))
    assert len(again) == len(wave) and again.dtype == np.float32
    assert np.corrcoef(wave, again)[0, 1] > 0.9
    assert 0.5 * rate < codec.bits[0] / codec.seconds[0] < 1.3 * rate and codec.seconds == [3.0]


def test_bits_of_codes_are_those_of_the_codebook():
    codec = Metered(FakeCodec(4096))
    codec.decode(codec.encode([tone(3200), tone(6500)]))
    assert codec.bits == [10 * 12.0, 20 * 12.0]
    assert OpusCodec(12_000).bits(Coded(b"", 1, 7)) == 7.0


def test_codec2_gives_the_wave_back_at_its_rate_and_in_time():
    pytest.importorskip("pycodec2")
    noise = np.random.default_rng(0).normal(size=16_000) * (np.arange(16_000) % 4000 < 2000) * 0.1
    codec = Metered(load_codec("codec2-3200"))
    (again,) = codec.decode(codec.encode([noise.astype(np.float32)]))
    assert len(again) == 16_000
    assert codec.bits[0] / codec.seconds[0] == pytest.approx(3200, rel=0.03)
    loud = [np.abs(wave).reshape(-1, 200).mean(axis=1) for wave in (noise, again)]
    late = [np.corrcoef(loud[0][: 80 - lag], loud[1][lag:])[0, 1] for lag in range(5)]
    assert np.argmax(late) == 0


@pytest.mark.parametrize("name", ["opus-1k", "opus-x", "codec2-1000", "codec2-", "opus"])
def test_rate_that_there_is_not_is_refused(name):
    with pytest.raises(InputError):
        load_codec(name)


def test_codec_that_cannot_run_is_named_with_its_reason(tmp_path):
    found, missing = available(["fake", str(tmp_path / "nowhere"), "opus-8k"])
    assert list(found) == ["fake", "opus-8k"] and "config.json" in missing["nowhere"]
    rows = table({"fake": {"stoi": 0.5, "stoi_low": 0.4, "stoi_high": 0.6}}, missing)
    assert rows["system"].tolist() == ["fake", "nowhere"]
    assert "config.json" in rows["not_run"][1]


def test_two_folders_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="duplicate codec name 'codec'"):
        available([str(tmp_path / "one/codec"), str(tmp_path / "other/codec")])


@pytest.mark.slow
def test_codec_is_scored_with_its_bits_beside_the_recordings(tmp_path):
    manifest = tone_corpus(tmp_path, 4, samples=9600)
    judging = load_judges("fake", "fake", "fake")
    references = scoring.embed_references(manifest, judging.speaker)
    rows, summary = score_codec(FakeCodec(), manifest, tmp_path / "fake", judging, references)
    assert [row["bits"] for row in rows] == [30 * 12.0] * 4
    assert (
        summary["bits_per_second_low"]
        <= summary["bits_per_second"]
        <= summary["bits_per_second_high"]
        <= 600
    )
    assert summary["bits_per_second_n"] == summary["corpus_wer_n"] == 4
    own_rows, own = score_originals(manifest, tmp_path / "own", judging, references)
    assert not any("audio" in row for row in [*rows, *own_rows])
    names = measured({"recordings": own, "fake": summary})
    assert {"corpus_wer", "speaker_similarity", "quality", "bits_per_second"} <= set(names)
