"""Speech that is heard while it is made."""

import asyncio
import io

import numpy as np
import soundfile

from llasa_core.app.live import MOST_KEPT, LiveSpeech, LiveSpeeches
from llasa_core.audio import sixteen_bit


def test_listener_gets_a_wav_from_its_first_byte_while_it_grows():
    wave = np.sin(np.arange(8000) / 20).astype(np.float32) / 2

    async def listen():
        speech, got = LiveSpeech(), b""
        speech.begin(16_000)
        speech.write(wave[:3000])
        reader = speech.read()
        got += await anext(reader)
        got += await anext(reader)
        assert len(got) == 44 + 6000  # heard before the rest is there
        speech.write(wave[3000:3000])
        speech.write(wave[3000:])
        speech.end()
        return got + b"".join([part async for part in reader])

    got = asyncio.run(listen())
    np.testing.assert_array_equal(np.frombuffer(got[44:], "<i2"), sixteen_bit(wave))
    heard, rate = soundfile.read(io.BytesIO(got), dtype="int16")
    assert rate == 16_000
    np.testing.assert_array_equal(heard, sixteen_bit(wave))


def test_names_are_secret_and_old_speech_is_forgotten():
    speeches = LiveSpeeches()
    opened = [speeches.open() for _ in range(MOST_KEPT + 1)]
    assert len({name for name, _ in opened}) == MOST_KEPT + 1
    assert speeches.get(opened[0][0]) is None and speeches.get(opened[1][0]) is opened[1][1]
    speeches.close(opened[1][0])
    assert speeches.get(opened[1][0]) is None
