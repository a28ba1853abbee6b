import io
import wave
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from tiny_models import TEXTS, speaking_llama

from llasa_core.codecs import load_codec
from llasa_core.codecs.fake import FakeCodec
from llasa_core.codecs.interface import Codec
from llasa_core.errors import InputError
from llasa_core.manifest import Request
from llasa_core.prompts import Voice
from llasa_core.synthesis.guards import Guards
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.streaming import SpeechFile, SpeechStream, StreamDecoder, Window
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.tokenizer import vocabulary_of

SAMPLING = Sampling(temperature=1.0, top_k=20, max_seconds=2.0)


class MemorylessCodec(Codec):
    """A code is a constant level for one hop, whatever stands beside it: a window cut wrongly shows
    at once.
    """

    name, sample_rate, frame_rate, codebook_size = "memoryless", 16_000, 50.0, 4096

    def decode(self, codes):
        return [np.repeat(np.asarray(row) / 4096, 320).astype(np.float32) for row in codes]


@pytest.fixture(scope="module")
def mini():
    return load_codec("mini")


@pytest.fixture(scope="module")
def codes(mini):
    tone = 0.3 * np.sin(
        np.cumsum(2 * np.pi * (120 + 40 * np.sin(np.arange(32_000) / 4000)) / 16_000)
    )
    return mini.encode([tone.astype(np.float32)])[0]


@pytest.fixture(scope="module")
def model(mini_tokenizer):
    return speaking_llama(vocabulary_of(mini_tokenizer), end_logit=4.0)


@pytest.fixture(scope="module")
def synthesizer(model, mini_tokenizer):
    return Synthesizer(model, mini_tokenizer, FakeCodec(), slots=4)


def streamed(codec, codes, window, sizes, prompt=()):
    decoder, waves, place = StreamDecoder(codec, window, prompt), [], 0
    for size in sizes:
        waves.append(decoder.push(codes[place : place + size]))
        place += size
    return np.concatenate([*waves, decoder.push(codes[place:]), decoder.finish()])


@pytest.mark.parametrize("window", [Window(7, 3, 2, 4), Window(1, 0, 0, 1), Window(500, 9, 9, 500)])
def test_every_code_is_heard_once_and_in_its_place(window):
    codes = np.random.default_rng(0).integers(0, 4096, 53)
    whole = MemorylessCodec().decode([codes])[0]
    for sizes in ([1] * 53, [53], [10, 0, 30, 1]):
        np.testing.assert_array_equal(streamed(MemorylessCodec(), codes, window, sizes), whole)
    prompt = np.arange(9)
    np.testing.assert_array_equal(streamed(MemorylessCodec(), codes, window, [20], prompt), whole)


def test_window_that_covers_the_utterance_is_exact(mini, codes):
    whole = mini.decode([codes])[0]
    np.testing.assert_array_equal(streamed(mini, codes, Window(100, 0, 0, 100), [30, 30]), whole)
    behind = streamed(
        mini, codes, Window(25, 200, 200, 25), [1] * 100
    )  # right context to the end of the utterance
    np.testing.assert_array_equal(behind, whole)


def test_error_falls_with_context_and_pulses_keep_their_phase(mini, codes):
    whole = mini.decode([codes])[0]

    def error(left, right):
        difference = streamed(mini, codes, Window(20, left, right, 20), [5] * 20) - whole
        return float(np.sqrt((difference**2).mean() / (whole**2).mean()))

    assert error(60, 20) < error(10, 5) < error(0, 0)
    assert error(60, 20) < 0.3  # a phase that jumps would make it about 1.4


@pytest.mark.slow
def test_streamed_codes_are_those_of_speak_whatever_the_window(synthesizer):
    requests = [Request(f"u{i}", text, seed=i) for i, text in enumerate(TEXTS[:4])]
    requests.append(
        replace(requests[0], id="voiced", voice=Voice("hello", np.arange(30, dtype=np.int32)))
    )
    for spoken in synthesizer.speak(requests, SAMPLING):
        for window in (Window(10, 20, 5, 3), Window(200, 0, 0, 200)):
            stream = SpeechStream(synthesizer, spoken.request, SAMPLING, window)
            waves = list(stream)
            assert stream.spoken.generated.codes.tolist() == spoken.generated.codes.tolist()
            assert stream.spoken.generated.reason == spoken.generated.reason
            assert sum(map(len, waves)) == 320 * len(spoken.generated.codes)
        if spoken.request.voice is None:  # the last window covered the utterance
            np.testing.assert_array_equal(np.concatenate(waves), spoken.wave)


def test_first_audio_comes_before_the_last_code_is_sampled(synthesizer):
    never_short = Sampling(temperature=1.0, top_k=20, min_codes=60, max_seconds=2.0)
    stream = iter(
        SpeechStream(synthesizer, Request("a", TEXTS[2]), never_short, Window(10, 20, 5, 8))
    )
    assert len(next(stream)) == 8 * 320
    later = list(stream)
    assert len(later) > 4 and all(len(wave) == 10 * 320 for wave in later[:-1])


@pytest.mark.slow
def test_attempt_that_fails_before_anything_is_heard_is_made_again(mini_tokenizer):
    synthesizer = Synthesizer(
        speaking_llama(vocabulary_of(mini_tokenizer)), mini_tokenizer, FakeCodec()
    )
    guards, window = Guards(attempts=6, at_once=29, silence_seconds=9.0), Window(10, 20, 0, 30)
    outcomes = set()
    for seed in range(8):
        request = Request("a", TEXTS[5], seed=seed)
        stream = SpeechStream(synthesizer, request, SAMPLING, window, guards)
        heard = sum(map(len, stream)) // 320
        spoken = stream.spoken
        assert spoken.request == request and heard == len(spoken.generated.codes)
        if not spoken.failed and spoken.attempts > 1:
            assert spoken.rejected[0] == ("ended_at_once",) and heard >= 29
        outcomes.add(spoken.attempts > 1)
    assert outcomes == {True, False}


def test_loop_is_stopped_while_it_is_spoken(synthesizer):
    endless = Sampling(temperature=0.0, min_codes=100, max_seconds=2.0)
    guards = Guards(loop_codes=20, silence_seconds=9.0)
    stream = SpeechStream(
        synthesizer, Request("a", "word " * 12), endless, Window(10, 20, 0, 10), guards
    )
    heard = sum(map(len, stream)) // 320
    assert "loop" in stream.spoken.failed and stream.spoken.generated.reason == "loop"
    assert heard == len(stream.spoken.generated.codes) < 100


def test_growing_wav_is_whole_after_every_chunk(tmp_path):
    path = tmp_path / "new" / "a.wav"
    with SpeechFile(path, 16_000) as file:
        for count in (1, 2, 3):
            file.write(np.full(160, 0.5 * count, np.float32))
            read, rate = soundfile.read(path, dtype="int16")
            assert (len(read), rate) == (160 * count, 16_000)
    assert (
        read[0] == round(0.5 * 32767) and read[-1] == 32767 and file.seconds == pytest.approx(0.03)
    )
    with wave.open(str(path)) as closed:
        assert closed.getparams()[:4] == (1, 2, 16_000, 480)


def test_raw_samples_go_to_standard_output(monkeypatch):
    class Out:
        buffer = io.BytesIO()

    monkeypatch.setattr("sys.stdout", Out)
    with SpeechFile("-", 16_000) as file:
        file.write(np.array([0.0, 1.0, -1.0]))
    assert Out.buffer.getvalue() == np.array([0, 32767, -32767], "<i2").tobytes()


@pytest.mark.parametrize("wrong", [{"chunk": 0}, {"left": -1}, {"right": 1.5}, {"first": 0}])
def test_window_is_checked(wrong):
    with pytest.raises(InputError, match=f"window: `{next(iter(wrong))}`"):
        Window(**wrong)


def test_stream_on_a_full_disk_names_the_file(small_disk):
    path = small_disk("16k") / "speech.wav"
    with (
        pytest.raises(InputError, match=r"speech\.wav: no space left on the disk"),
        SpeechFile(path, 16_000) as file,
    ):
        file.write_all(np.zeros(4000, np.float32) for _ in range(100))
