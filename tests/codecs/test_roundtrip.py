"""A codec's round trip over a manifest, with the codec that needs no model."""

import numpy as np
import pytest
from helpers import tone_corpus

from llasa_core.audio import load_audio
from llasa_core.codecs.fake import FakeCodec
from llasa_core.codecs.roundtrip import resynthesize, select
from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, read_manifest, write_manifest


@pytest.mark.parametrize(
    "limit, chosen", [(4, [0, 2, 5, 7]), (1, [0]), (9, [0, 1, 2, 3, 4, 5, 6, 7, 8])]
)
def test_selection_is_spread_evenly(tmp_path, limit, chosen):
    write_manifest(
        tmp_path / "m.jsonl", [Utterance(str(number), "a.wav", "text") for number in range(10)]
    )
    assert [utterance.id for utterance in select(tmp_path / "m.jsonl", limit)] == [
        str(number) for number in chosen
    ]


@pytest.mark.parametrize("limit", [0, 3, 4])
def test_selection_takes_all_when_there_is_no_more(tmp_path, limit):
    write_manifest(
        tmp_path / "m.jsonl", [Utterance(str(number), "a.wav", "text") for number in range(3)]
    )
    assert [utterance.id for utterance in select(tmp_path / "m.jsonl", limit)] == ["0", "1", "2"]


def test_empty_manifest_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text("")
    with pytest.raises(InputError, match=r"m\.jsonl: no utterance"):
        select(tmp_path / "m.jsonl")


def test_both_manifests_hold_the_same_utterances_and_every_wave_is_there(tmp_path):
    manifest, codec = tone_corpus(tmp_path, 5), FakeCodec()
    pair = resynthesize(manifest, tmp_path / "out", codec, limit=3, progress=False)
    source = {utterance.id: utterance for utterance in read_manifest(manifest)}
    originals, decoded = read_manifest(pair.originals), read_manifest(pair.resynthesis)
    assert [u.id for u in originals] == [u.id for u in decoded] == ["u0", "u1", "u3"]
    for original, copy in zip(originals, decoded, strict=True):
        assert original == source[original.id]
        assert (copy.text, copy.speaker, copy.split) == (
            original.text,
            original.speaker,
            original.split,
        )
        assert copy.audio.parent == (tmp_path / "out" / "wavs").resolve()
        wave, again = load_audio(original.audio), load_audio(copy.audio)
        assert len(again) == len(wave) // 320 * 320 == round(copy.seconds * 16_000)
        np.testing.assert_allclose(again, codec.decode(codec.encode([wave]))[0], atol=1e-4)
    assert len(list((tmp_path / "out" / "wavs").iterdir())) == 3


def test_round_trip_can_be_moved_with_its_corpus(tmp_path):
    pair = resynthesize(
        tone_corpus(tmp_path / "here", 1), tmp_path / "here" / "out", FakeCodec(), progress=False
    )
    (tmp_path / "here").rename(tmp_path / "there")
    for path in pair:
        assert read_manifest(tmp_path / "there" / path.relative_to(tmp_path / "here"))[
            0
        ].audio.is_file()


def test_ids_may_be_anything_and_files_stay_in_the_folder(tmp_path):
    ids = ["fine", "../escape", "a/b", "a_b", "x" * 300]
    manifest = tone_corpus(tmp_path, 5, ids=ids)
    pair = resynthesize(manifest, tmp_path / "out", FakeCodec(), progress=False)
    decoded = read_manifest(pair.resynthesis)
    assert [one.id for one in decoded] == ids
    assert {one.audio.parent for one in decoded} == {tmp_path / "out/wavs"}
    assert len({one.audio for one in decoded}) == 5 and decoded[0].audio.name == "fine.wav"


def test_wave_shorter_than_a_code_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"test\.jsonl: utterance 'u0' has 319 samples, less than a code"
    ):
        resynthesize(
            tone_corpus(tmp_path, 1, samples=319), tmp_path / "out", FakeCodec(), progress=False
        )
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
