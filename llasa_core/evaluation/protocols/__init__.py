"""Public evaluation protocols: what each reads, which of its numbers are published, and with which
models.

Each protocol has a reader that turns the benchmark's own folder into trials; `preparation` makes
requests and manifests of them, `scoring` computes the public metric next to ours. Choices that the
paper leaves open (utterance filter, pairing of prompts) are named in `reading`, so that nobody
takes them for the authors'. Importing this loads nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llasa_core.errors import InputError

# WavLM-large fine-tuned for speaker verification (UniSpeech, ECAPA-TDNN head)
SPEAKER_MODEL = "wavlm_large_finetune"


@dataclass(frozen=True)
class Trial:
    """One utterance of a benchmark.

    prompt: recording whose voice is to be continued, None for recognition and codecs; prompt_text:
    its words, empty if `text` contains them too. prompt_seconds: only this much of its beginning is
    the prompt. reference: recording of the text itself, if there is one. where: file and line, for
    messages.
    """

    id: str
    text: str
    language: str
    where: str
    speaker: str = ""
    prompt: Path | None = None
    prompt_text: str = ""
    prompt_seconds: float | None = None
    reference: Path | None = None
    emotion: str = ""


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is read and scored.

    reader: module and function (Path) -> (trials, {reason: trials left out}). words: how texts are
    normalised, "seed-tts" or "whisper". mean: over "utterances" or the "corpus". public: {public
    metric: row key} of means, in addition to public_wer. judges: {role: model behind the published
    numbers}. needs_codec: the scores need a round trip.
    """

    name: str
    layout: str
    reader: str
    metric: str
    source: str
    words: str = "whisper"
    mean: str = "corpus"
    public: Mapping[str, str] = field(default_factory=dict)
    judges: Mapping[str, str] = field(default_factory=dict)
    reading: str = ""
    needs_codec: bool = False

    def read(self, folder: str | Path) -> tuple[list[Trial], dict[str, int]]:
        """Trials of a folder and {reason: number left out}; InputError with file and line."""
        module, function = self.reader.split(":")
        return getattr(
            importlib.import_module(f"llasa_core.evaluation.protocols.{module}"), function
        )(Path(folder))


_PROMPTED = {
    "public_sim_o": "similarity_to_prompt",
    "public_sim_r": "similarity_to_resynthesized_prompt",
}

_SEED_TTS = {
    "words": "seed-tts",
    "mean": "utterances",
    "public": _PROMPTED,
    "source": (
        "BytedanceSpeech/seed-tts-eval: run_wer.py, average_wer.py; arXiv 2502.04128v1, Table 2"
    ),
}

_SEED_TTS_METRIC = (
    "mean of the utterances' {}, punctuation but ' stripped; cosine to the prompt (sim-o) and to"
    " the prompt after the codec (sim-r)"
)

_LIBRISPEECH_METRIC = (
    "corpus WER, Whisper's English normaliser; sim-o and sim-r as in Seed-TTS-Eval"
)

_HUBERT = {"transcriber": "hubert-large-ls960-ft", "speaker_embedder": SPEAKER_MODEL}

_FILTER = "utterances of 4 to 10 s, as in VALL-E (arXiv 2301.02111); the paper names no filter"

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "seed-tts-en",
            "seedtts_testset with en/meta.lst, or en itself: utt|prompt text|prompt"
            " wav|text[|reference wav]",
            "seed_tts:read_en",
            _SEED_TTS_METRIC.format("WERs, lower case"),
            judges={"transcriber": "whisper-large-v3", "speaker_embedder": SPEAKER_MODEL},
            **_SEED_TTS,
        ),
        Protocol(
            "seed-tts-zh",
            "seedtts_testset with zh/meta.lst, or zh itself: lines as above",
            "seed_tts:read_zh",
            _SEED_TTS_METRIC.format("CERs, each character a word"),
            judges={"transcriber": "paraformer-zh", "speaker_embedder": SPEAKER_MODEL},
            **_SEED_TTS,
        ),
        Protocol(
            "seed-tts-hard",
            "seedtts_testset with zh/hardcase.lst, or zh itself: lines as above",
            "seed_tts:read_hard",
            _SEED_TTS_METRIC.format("CERs, each character a word"),
            judges={"transcriber": "paraformer-zh", "speaker_embedder": SPEAKER_MODEL},
            **_SEED_TTS,
        ),
        Protocol(
            "librispeech-continuation",
            "LibriSpeech/test-clean: SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt with the .flac"
            " files",
            "librispeech:read_continuation",
            _LIBRISPEECH_METRIC,
            "arXiv 2502.04128v1, Table 5",
            public=_PROMPTED,
            judges=_HUBERT,
            reading=(
                f"{_FILTER}. The prompt is the first 3 s, the text that of the whole utterance;"
                " words are scored on prompt and continuation together, similarity on the"
                " continuation alone"
            ),
        ),
        Protocol(
            "librispeech-cross",
            "LibriSpeech/test-clean as above; a list cross_sentence.lst in it (prompt utterance,"
            " seconds, text, utterance, seconds, text; tabs) sets the pairs",
            "librispeech:read_cross",
            _LIBRISPEECH_METRIC,
            "arXiv 2301.02111, section 5 (cross-sentence); not in the Llasa paper",
            public=_PROMPTED,
            judges=_HUBERT,
            reading=(
                f"{_FILTER}. Without a list the prompt is the next utterance of 2 to 5 s of the"
                " same speaker, whole, so that its words are known"
            ),
        ),
        Protocol(
            "esd-en",
            "Emotional Speech Dataset: 0011/0011.txt, 0011/Angry/[test/]0011_000371.wav ..;"
            " speakers 0011 to 0020",
            "esd:read_en",
            "cosine of the emotion embeddings of output and prompt",
            "arXiv 2502.04128v1, Table 4",
            public={"public_emotion_similarity": "emotion_similarity"},
            judges={"emotion_embedder": "emotion2vec_plus_large"},
            reading=(
                "test sentences (the 21st to 50th of each emotion); the prompt is the next of them"
                " by the same speaker in the same emotion; the paper names no pairing"
            ),
        ),
        Protocol(
            "esd-zh",
            "as esd-en, speakers 0001 to 0010",
            "esd:read_zh",
            "cosine of the emotion embeddings of output and prompt",
            "arXiv 2502.04128v1, Table 4",
            public={"public_emotion_similarity": "emotion_similarity"},
            judges={"emotion_embedder": "emotion2vec_plus_large"},
            reading="as esd-en",
        ),
        Protocol(
            "codec",
            "LibriSpeech/test-clean as above, or a manifest of JSON lines; needs --codec",
            "librispeech:read_recordings",
            "corpus WER, Whisper's English normaliser; means of STOI, PESQ in both bands, cosine to"
            " the own original",
            "arXiv 2502.04128v1, Table 1",
            public={
                "public_stoi": "stoi",
                "public_pesq_wb": "pesq_wb",
                "public_pesq_nb": "pesq_nb",
                "public_similarity": "similarity_to_original",
            },
            judges={**_HUBERT, "quality_predictor": "utmos"},
            needs_codec=True,
        ),
        Protocol(
            "asr",
            "LibriSpeech/test-clean or test-other as above, or a manifest of JSON lines",
            "librispeech:read_recordings",
            "corpus WER, Whisper's English normaliser",
            "arXiv 2502.04128v1, Table 3",
        ),
    )
}


def protocol_of(name: str) -> Protocol:
    """A protocol by name; InputError for an unknown one."""
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name!r} is unknown, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def help_text() -> str:
    """The protocols as lines for --help."""
    lines = []
    for protocol in PROTOCOLS.values():
        lines += [
            f"  {protocol.name}",
            f"    reads   {protocol.layout}",
            f"    public  {protocol.metric}",
        ]
        lines += [f"    source  {protocol.source}"]
        if protocol.reading:
            lines.append(f"    read as {protocol.reading}")
    return "\n".join(lines)
