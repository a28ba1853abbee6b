import numpy as np
import pytest
from tiny_models import speaking_llama

from llasa_core.audio import wav_bytes
from llasa_core.codecs.fake import FakeCodec
from llasa_core.errors import InputError
from llasa_core.serving.voices import request_in, voices_of
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.tokenizer import vocabulary_of

TONE = wav_bytes(0.4 * np.sin(np.arange(16_000) * 0.05).astype(np.float32))


@pytest.fixture(scope="module")
def synthesizer(mini_tokenizer):
    model = speaking_llama(vocabulary_of(mini_tokenizer))
    return Synthesizer(model, mini_tokenizer, FakeCodec(), speakers=["ava"])


def test_voices_are_tags_recordings_and_neither(synthesizer, tmp_path):
    (tmp_path / "me.wav").write_bytes(TONE)
    (tmp_path / "me.txt").write_text("hello\n")
    (tmp_path / "notes.md").write_text("not a voice")
    voices = voices_of(synthesizer, tmp_path)
    asked = {name: request_in(voice, "Hi 4.", 7, False) for name, voice in voices.items()}
    assert {name: one.speaker for name, one in asked.items()} == {
        "ava": "ava",
        "default": None,
        "me": None,
    }
    assert asked["me"].voice.text == "hello" and len(asked["me"].voice.codes) == 50
    assert asked["ava"].voice is None and {one.seed for one in asked.values()} == {7}
    assert request_in(voices["ava"], "Hi 4.", 0, True).text == "Hi four."


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, "no recordings"),
        ({"me.wav": TONE}, "me.txt: not found"),
        ({"ava.wav": TONE, "ava.txt": b"hello"}, "a voice 'ava' already"),
        ({"me.wav": TONE, "me.txt": b" "}, "needs the words"),
        ({"me.wav": b"RIFF", "me.txt": b"hello"}, "me.wav"),
        ({"me.wav": wav_bytes(np.zeros(16_000)), "me.txt": b"hello"}, "0.00 s of sound"),
    ],
)
def test_recording_of_no_use_is_refused_when_the_server_starts(synthesizer, tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        voices_of(synthesizer, tmp_path)


def test_voices_that_are_no_folder_are_refused(synthesizer, tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        voices_of(synthesizer, tmp_path / "nowhere")


def test_speakers_are_named_where_the_checkpoint_names_none(synthesizer, mini_tokenizer):
    undeclared = Synthesizer(synthesizer.model, mini_tokenizer, FakeCodec(), tags=True)
    voices = voices_of(undeclared, speakers=["kore", "puck"])
    assert {name: one.kind for name, one in voices.items()} == {
        "kore": "tag",
        "puck": "tag",
        "default": "default",
    }
    asked = [request_in(voices[name], "Hi.", 0, False) for name in ("kore", "default")]
    assert [undeclared.tag(one) for one in asked] == ["kore", None]
    with pytest.raises(InputError, match="the checkpoint declares ava"):
        voices_of(synthesizer, speakers=["kore"])
