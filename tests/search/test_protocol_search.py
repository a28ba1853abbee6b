"""Every strategy goes through a whole benchmark folder, each request guided by its own prompt."""

import json

import numpy as np
import pytest
import soundfile
from protocol_fixtures import esd, seed_tts
from tiny_models import speaking_llama

from llasa_core import judges
from llasa_core.cli import main
from llasa_core.codecs.fake import FakeCodec
from llasa_core.errors import InputError
from llasa_core.evaluation.protocols.preparation import prepare_protocol
from llasa_core.evaluation.protocols.scoring import evaluate_protocol
from llasa_core.files import read_rows
from llasa_core.judges import Judges
from llasa_core.judges.fake import fake_speech
from llasa_core.manifest import Request
from llasa_core.prompts import Voice
from llasa_core.search.strategy import STRATEGIES
from llasa_core.search.verifiers import EmotionVerifier, VoiceVerifier
from llasa_core.tokenizer import vocabulary_of


@pytest.fixture(scope="module")
def model(mini_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    speaking_llama(vocabulary_of(mini_tokenizer)).save_pretrained(folder)
    mini_tokenizer.save_pretrained(folder)
    (folder / "llasa.json").write_text(json.dumps({"codec": "fake"}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("protocol", "layout", "guide", "row"),
    [
        ("seed-tts-en", seed_tts, "voice", "similarity_to_prompt"),
        ("esd-en", esd, "emotion", "emotion_similarity"),
    ],
)
def test_whole_benchmark_is_searched_by_every_strategy_and_scored(
    model, tmp_path, strategy, protocol, layout, guide, row
):
    prepared = tmp_path / "prepared"
    benchmark = layout(tmp_path / "set")
    for recording in benchmark.rglob("*.wav"):  # some are too short to be a voice prompt
        wave, rate = soundfile.read(recording)
        soundfile.write(recording, np.tile(wave, int(0.4 * rate / len(wave)) + 1), rate)
    prepare_protocol(protocol, benchmark, prepared, FakeCodec(), limit=3)
    ask = ["search", "--model", str(model), "--strategy", strategy, "--guide", guide]
    ask += ["--verifier-asr", "fake"]
    ask += ["--verifier-speaker" if guide == "voice" else "--verifier-emotion", "fake"]
    ask += ["--candidates", "2", "--beams", "1", "--expansions", "2", "--step-codes", "10"]
    ask += ["--max-seconds", "0.4", "--manifest", str(prepared / "requests.jsonl")]
    assert main([*ask, "-o", str(tmp_path / "found")]) == 0
    lines = read_rows(tmp_path / "found/manifest.jsonl")
    assert [one["id"] for one in lines] == [
        one["id"] for one in read_rows(prepared / "requests.jsonl")
    ]
    assert all(guide in line["scores"] for line in lines)
    heard = Judges(
        judges.load_transcriber("fake-2"),
        judges.load_speaker_embedder("fake-2"),
        None,
        judges.load_emotion_embedder("fake-2"),
    )
    rows, _ = evaluate_protocol(
        tmp_path / "found/manifest.jsonl", prepared, tmp_path / "scores", heard
    )
    assert len(rows) == len(lines) and all(row in one for one in rows)


@pytest.mark.parametrize("kind", [VoiceVerifier, EmotionVerifier])
def test_each_request_is_compared_with_the_recording_of_its_own_prompt(tmp_path, kind):
    requests = []
    for name, tone in (("low", 3), ("high", 20)):
        soundfile.write(tmp_path / f"{name}.wav", fake_speech("hello there", tone), 16_000)
        voice = Voice("Hello there.", np.arange(4), tmp_path / f"{name}.wav")
        requests.append(Request(name, "The cat.", voice=voice))
    verifier = kind(judges.load_speaker_embedder("fake"), {})
    verifier.check(requests)
    scores = [
        [verifier(fake_speech("the cat", tone), request) for tone in (3, 20)]
        for request in requests
    ]
    assert scores[0][0] > scores[0][1] and scores[1][1] > scores[1][0]
    with pytest.raises(InputError, match=r"request c: no recording .* no voice prompt"):
        verifier.check([Request("c", "The cat.")])
