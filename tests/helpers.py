"""What tests of several rooms need and no better named module holds."""

import time

import numpy as np

from llasa_core.audio import write_wav
from llasa_core.manifest import Utterance, write_manifest


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s in vain")


def tone_corpus(folder, count, samples=3500, ids=None):
    """A manifest of tones."""
    (folder / "corpus" / "wavs").mkdir(parents=True)
    utterances = []
    for number in range(count):
        path = folder / "corpus" / "wavs" / f"{number}.wav"
        write_wav(path, 0.4 * np.sin(np.arange(samples + 10 * number) * 0.05 * (number + 1)))
        id = ids[number] if ids else f"u{number}"
        utterances.append(
            Utterance(id, path, f"text {number}", f"speaker {number % 2}", "en", 0.2, "test")
        )
    write_manifest(folder / "corpus" / "test.jsonl", utterances)
    return folder / "corpus" / "test.jsonl"
