"""X-codec2 as the PyPI package xcodec2 has it, in an environment of its own: `make xcodec2-env`.

The package pins torch 2.5 and an older transformers, so it runs in another interpreter and is asked
over a pipe (`xcodec2_worker`). One utterance at a time, as the package does it.
"""

import json
import os
import subprocess
import weakref
from pathlib import Path

import numpy as np

from llasa_core.codecs.interface import Codec
from llasa_core.device import choose_device
from llasa_core.errors import InputError

CHECKPOINT = "HKUSTAudio/xcodec2"
INTERPRETER = "LLASA_XCODEC2_PYTHON"  # variable: the interpreter, where it is not the one below
ENVIRONMENT = ".venv-xcodec2/bin/python"
WORKER = Path(__file__).with_name("xcodec2_worker.py")
HOP = 320


class PypiXcodec2(Codec):
    """The Codec seam over the worker. Raises InputError where its environment is missing or the
    worker cannot load the model.
    """

    sample_rate, codebook_size, frame_rate = 16_000, 65_536, 50.0
    name = "xcodec2"  # the same codes as the codec of this name

    def __init__(self, python: str | Path, device: str, source: str = CHECKPOINT):
        command = [str(python), str(WORKER), source, device]
        try:
            self._worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise InputError(
                f"{python}: no interpreter of the package xcodec2, expected: make xcodec2-env, or"
                f" its path in {INTERPRETER}"
            ) from error
        self._end = weakref.finalize(self, self._worker.kill)
        self._heard()

    @classmethod
    def load(cls, name: str, device: str | None = None) -> "PypiXcodec2":
        """The released weights in the environment of `make xcodec2-env`."""
        python = os.environ.get(INTERPRETER, ENVIRONMENT)
        return cls(python, str(choose_device(device)))

    @classmethod
    def weights_of(cls, name: str) -> dict[str, str]:
        """Not known: the package's weights are in a format of their own."""
        return {}

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """float32 (T,) at 16 kHz each -> int32 (floor(T / 320),) each."""
        return [self._encoded(np.ascontiguousarray(wave, np.float32)) for wave in waves]

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Codes (F,) -> float32 (F * 320,) each. InputError outside the codebook."""
        waves = []
        for row in codes:
            row = np.ascontiguousarray(row, np.int32)
            if len(row) and not 0 <= row.min() <= row.max() < self.codebook_size:
                raise InputError(f"xcodec2: codes outside of 0..{self.codebook_size - 1}")
            found = self._asked("decode", row.tobytes()) if len(row) else b""
            waves.append(np.frombuffer(found, np.float32).copy())
        return waves

    def _encoded(self, wave: np.ndarray) -> np.ndarray:
        found = self._asked("encode", wave.tobytes()) if len(wave) >= HOP else b""
        return np.frombuffer(found, np.int32).copy()

    def _asked(self, what: str, content: bytes) -> bytes:
        line = json.dumps({"do": what, "bytes": len(content)}).encode()
        try:
            self._worker.stdin.write(line + b"\n" + content)
            self._worker.stdin.flush()
        except BrokenPipeError:
            raise InputError("the worker of xcodec2 has ended") from None
        return self._heard()

    def _heard(self) -> bytes:
        line = self._worker.stdout.readline()
        if not line:
            status = self._worker.wait()
            raise InputError(f"the worker of xcodec2 has ended without an answer (status {status})")
        told = json.loads(line)
        if "error" in told:
            reason = " ".join(told["error"].split())[:200]
            raise InputError(f"the worker of xcodec2: {reason}; expected: make xcodec2-env")
        return self._worker.stdout.read(told.get("bytes", 0))
