import json

import numpy as np
import pytest
import soundfile
import torch

from llasa_core.audio import load_audio, recording_id
from llasa_core.errors import InputError
from llasa_core.evaluation.scoring import (
    embed_references,
    evaluate_manifest,
    refuse_shared_recordings,
)
from llasa_core.judges import Judges, load_speaker_embedder
from llasa_core.judges.fake import FakeTranscriber, fake_speech
from llasa_core.judges.identity import (
    files_fingerprint,
    model_name,
    same_judge,
    tensors_fingerprint,
)
from llasa_core.manifest import Request
from llasa_core.prompts import Voice
from llasa_core.search.verifiers import VoiceVerifier, WantedVoices, WordsVerifier, chosen_by


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("large-v3", "whisper-large-v3"),
        ("openai/whisper-large-v3", "large"),
        ("Systran/faster-whisper-large-v3", "openai/whisper-large-v3"),
        ("Systran/faster-distil-whisper-large-v3", "distil-large-v3"),
        ("whisper-tiny.en", "tiny.en"),
        ("turbo", "openai/whisper-large-v3-turbo"),
        ("wavlm", "microsoft/wavlm-base-plus-sv"),
        ("iic/emotion2vec_plus_large", "emotion2vec_plus_large"),
    ],
)
def test_names_of_one_model_are_one_name(name, other):
    assert model_name(name) == model_name(other)


def test_names_of_two_models_are_two_and_a_folder_may_be_called_anything(tmp_path, monkeypatch):
    names = ["tiny.en", "tiny", "base", "large-v2", "large-v3", "distil-large-v3", "large-v3-turbo"]
    assert len({model_name(name) for name in names}) == len(names)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/large-v3").mkdir(parents=True)
    for folder in ("mine/large-v3", str(tmp_path / "mine/large-v3"), "./large-v3"):
        assert model_name(folder) == folder


def test_fingerprint_is_of_the_weights_and_survives_a_copy_in_fp16():
    weights = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    kept = tensors_fingerprint(weights)
    assert tensors_fingerprint(dict(reversed(weights.items()))) == kept
    assert tensors_fingerprint(weights | {"a": weights["a"].half()}) == kept
    assert tensors_fingerprint(weights | {"a": weights["a"] * 1.01}) != kept
    assert tensors_fingerprint(weights | {"a": weights["a"].reshape(4, 3)}) != kept


def test_fingerprint_of_one_file_is_its_sha256_and_of_several_any_order(tmp_path):
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.write_text(file.name)
    # sha256 of "one"
    assert files_fingerprint(files[:1]) == "7692c3ad3540bb80"
    assert files_fingerprint(files) == files_fingerprint(files[::-1])


class Recogniser(FakeTranscriber):
    def __init__(self, name, fingerprint):
        super().__init__(name)
        self.fingerprint = fingerprint


def spoken(folder, **chosen):
    soundfile.write(folder / "a.wav", fake_speech("red lamp"), 16_000)
    line = {"id": "a", "audio": "a.wav", "text": "red lamp", "speaker": "ava"} | chosen
    (folder / "spoken.jsonl").write_text(json.dumps(line) + "\n")
    return folder / "spoken.jsonl"


@pytest.mark.parametrize("judge", [("copy-of-it", "aa"), ("large-v3", "bb")])
def test_a_verifier_by_another_name_or_of_the_same_weights_is_no_judge(tmp_path, judge):
    verifiers = {"words": WordsVerifier(Recogniser("openai/whisper-large-v3", "aa"))}
    chosen = chosen_by(verifiers, Request("a", "red lamp"))
    assert chosen == {"verifiers": ["openai/whisper-large-v3"], "verifier_weights": ["aa"]}
    manifest = spoken(tmp_path, **chosen)
    with pytest.raises(
        InputError, match=f"{judge[0]}, there called openai/whisper-large-v3, chose"
    ):
        evaluate_manifest(manifest, tmp_path / "out", Judges(Recogniser(*judge)))
    evaluate_manifest(manifest, tmp_path / "out", Judges(Recogniser("another", "bb")))
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["judge_weights"] == {"transcriber": "bb"}


def test_speaker_models_of_two_folders_with_the_same_weights_are_one(tmp_path):
    import transformers

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
    model = transformers.WavLMForXVector(config)
    for name in ("one", "copy", "other"):
        model.save_pretrained(tmp_path / name)
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / name)
        if name == "copy":
            model.feature_extractor.bias.data += 1.0
    one, copy, other = (load_speaker_embedder(f"{tmp_path}/{n}") for n in ("one", "copy", "other"))
    chosen = [one.name], [one.fingerprint]
    assert same_judge(one, *chosen) and same_judge(copy, *chosen) and not same_judge(other, *chosen)


def recordings(folder, count):
    for number in range(count):
        soundfile.write(folder / f"{number}.wav", fake_speech(f"number {number}"), 16_000)
    lines = [
        {"id": f"r{n}", "audio": f"{n}.wav", "text": "x", "speaker": "ava"} for n in range(count)
    ]
    path = folder / "voices.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_recordings_that_guided_the_search_are_no_references(tmp_path):
    voices, embedder = recordings(tmp_path, 6), load_speaker_embedder("fake")
    first = embed_references(voices, embedder, part=(0, 2))
    wanted = WantedVoices(first.centroids(), first.recordings_by_speaker())
    chosen = chosen_by(
        {"voice": VoiceVerifier(embedder, wanted)}, Request("a", "red lamp", speaker="ava")
    )
    assert chosen["verifier_recordings"] == sorted(first.recordings)
    manifest, judge = spoken(tmp_path, **chosen), Judges(speaker=load_speaker_embedder("fake-2"))
    with pytest.raises(
        InputError, match=r"by its likeness to the recording 'r[0-5]', which cannot"
    ):
        evaluate_manifest(manifest, tmp_path / "out", judge, references=voices)
    second = embed_references(voices, judge.speaker, part=(1, 2))
    assert set(first.ids) | set(second.ids) == {f"r{n}" for n in range(6)}
    assert not set(first.recordings) & set(second.recordings)
    evaluate_manifest(manifest, tmp_path / "out", judge, references=second)


def test_voice_prompt_that_is_a_reference_of_the_judge_is_refused(tmp_path):
    voices, embedder = recordings(tmp_path, 3), load_speaker_embedder("fake")
    prompt = Voice("number 1", np.arange(4), tmp_path / "1.wav")
    request = Request("a", "red lamp", speaker="ava", voice=prompt)
    verifier = VoiceVerifier(embedder, WantedVoices({}))  # compares with the prompt
    asked = [{"id": "a", **chosen_by({"voice": verifier}, request)}]
    references = embed_references(voices, embedder)
    with pytest.raises(InputError, match=r"likeness to the recording 'r1', which cannot"):
        refuse_shared_recordings(voices, asked, references)
    voices.write_text("".join(voices.read_text().splitlines(keepends=True)[::2]))  # without r1
    refuse_shared_recordings(voices, asked, embed_references(voices, embedder))


def test_a_recording_is_known_by_its_samples_in_any_file(tmp_path):
    samples = np.int16(fake_speech("red lamp") * 20_000)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, samples, 16_000)
    same = {recording_id(load_audio(tmp_path / name)) for name in ("a.wav", "a.flac")}
    assert len(same) == 1 and recording_id(np.zeros(4, np.float32)) not in same
