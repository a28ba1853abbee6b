"""The judges of speech by name: what was said, by whom, how well, with what emotion.

A new judge is a class that keeps a promise of `judges.interface`, and one line in a table below:
the name it is asked for by, and the class, which is called with that name and the caller's options.
"""

from dataclasses import dataclass

from llasa_core.errors import registered
from llasa_core.judges.identity import weights_of
from llasa_core.judges.interface import QualityPredictor, SpeakerEmbedder, Transcriber

TRANSCRIBERS = {
    "whisper-tiny.en": "llasa_core.judges.whisper:WhisperTranscriber",
    "whisper-base": "llasa_core.judges.whisper:WhisperTranscriber",
    "moonshine-tiny.en": "llasa_core.judges.moonshine:MoonshineTranscriber",
    "fake": "llasa_core.judges.fake:FakeTranscriber",
    "fake-2": "llasa_core.judges.fake:FakeTranscriber",
    "whisper-large-v3-transformers": "llasa_core.judges.published:TransformersWhisper",
    "openai/whisper-*": "llasa_core.judges.published:TransformersWhisper",
    "hubert-large-ls960-ft": "llasa_core.judges.published:HubertTranscriber",
    "facebook/hubert-*": "llasa_core.judges.published:HubertTranscriber",
    "paraformer-zh": "llasa_core.judges.published:ParaformerTranscriber",
    "*": "llasa_core.judges.whisper:WhisperTranscriber",  # any other Whisper: a name or a folder
}

SPEAKER_EMBEDDERS = {
    "wespeaker": "llasa_core.judges.speaker:WeSpeakerEmbedder",
    "resemblyzer": "llasa_core.judges.speaker:ResemblyzerEmbedder",
    "wavlm": "llasa_core.judges.speaker:WavLMEmbedder",
    "fake": "llasa_core.judges.fake:FakeSpeakerEmbedder",
    "fake-2": "llasa_core.judges.fake:FakeSpeakerEmbedder",
    "*wavlm_large_finetune*": "llasa_core.judges.published:WavLMEcapaEmbedder",  # its file
    "*/*": "llasa_core.judges.speaker:WavLMEmbedder",  # x-vectors in a folder or of a hub id
}

QUALITY_PREDICTORS = {
    "distillmos": "llasa_core.judges.quality:DistillMosPredictor",
    "fake": "llasa_core.judges.fake:FakeQualityPredictor",
    "*utmos22*": "llasa_core.judges.published:UtmosPredictor",  # its file
}

EMOTION_EMBEDDERS = {
    "emotion2vec_plus_large": "llasa_core.judges.emotion:Emotion2VecEmbedder",
    "fake": "llasa_core.judges.fake:FakeSpeakerEmbedder",
    "fake-2": "llasa_core.judges.fake:FakeSpeakerEmbedder",
    "*": "llasa_core.judges.emotion:Emotion2VecEmbedder",  # another model's folder or hub id
}


def load_transcriber(name: str = "whisper-tiny.en", **options) -> Transcriber:
    """A recogniser of TRANSCRIBERS; `fake-2` is another fake, for a search that must not be scored
    with its verifier. Raises InputError for a model out of reach.
    """
    return registered("transcriber", TRANSCRIBERS, name)(name, **options)


def load_speaker_embedder(name: str = "wespeaker", **options) -> SpeakerEmbedder:
    """A speaker model of SPEAKER_EMBEDDERS. InputError for an unknown one or one out of reach."""
    return registered("speaker embedder", SPEAKER_EMBEDDERS, name)(name, **options)


def load_quality_predictor(name: str = "distillmos", **options) -> QualityPredictor:
    """A predictor of QUALITY_PREDICTORS. InputError for an unknown one or one out of reach."""
    return registered("quality predictor", QUALITY_PREDICTORS, name)(name, **options)


def load_emotion_embedder(name: str = "emotion2vec_plus_large", **options) -> SpeakerEmbedder:
    """An embedder of emotions of EMOTION_EMBEDDERS. InputError for one out of reach."""
    return registered("emotion embedder", EMOTION_EMBEDDERS, name)(name, **options)


@dataclass(frozen=True)
class Judges:
    """The judges that score speech together; None leaves out what that one measures."""

    transcriber: Transcriber | None = None
    speaker: SpeakerEmbedder | None = None
    quality: QualityPredictor | None = None
    emotion: SpeakerEmbedder | None = None

    def by_role(self) -> dict[str, Transcriber | SpeakerEmbedder | QualityPredictor]:
        """{role: judge} of those that there are, the roles as results name them."""
        roles = {
            "transcriber": self.transcriber,
            "speaker_embedder": self.speaker,
            "quality_predictor": self.quality,
            "emotion_embedder": self.emotion,
        }
        return {role: judge for role, judge in roles.items() if judge is not None}

    def versions(self) -> dict[str, str]:
        """{role: "name (library and weights)"}: what is written next to the numbers in a result."""
        return {role: f"{judge.name} ({judge.version})" for role, judge in self.by_role().items()}

    def described(self) -> dict[str, dict[str, str]]:
        """The entries of a result: `judges` (versions) and `judge_weights` {role: fingerprint}."""
        weights = {role: weights_of(judge) for role, judge in self.by_role().items()}
        known = {role: found for role, found in weights.items() if found}
        return {"judges": self.versions(), "judge_weights": known}


def load_judges(
    asr: str = "whisper-tiny.en",
    speaker: str = "wespeaker",
    quality: str = "distillmos",
    emotion: str = "none",
) -> Judges:
    """Judges by name, "none" for none. InputError for an unknown one or one out of reach."""
    return Judges(
        None if asr == "none" else load_transcriber(asr),
        None if speaker == "none" else load_speaker_embedder(speaker),
        None if quality == "none" else load_quality_predictor(quality),
        None if emotion == "none" else load_emotion_embedder(emotion),
    )
