"""What clients of the endpoint get: speech, lists, and errors in OpenAI's form."""

import base64
import http.client
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
import soundfile
from live_server import MODEL, client_of, live, spoken
from tiny_models import TEXTS, speaking_llama

from llasa_core.audio import sixteen_bit, wav_bytes
from llasa_core.codecs.fake import FakeCodec
from llasa_core.manifest import Request
from llasa_core.serving.service import Limits, Speaking, SpeechService
from llasa_core.serving.voices import voices_of
from llasa_core.synthesis.guards import Guards
from llasa_core.synthesis.long_text import speak_text, stream_long
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.tokenizer import vocabulary_of

SAMPLING = Sampling(temperature=1.0, top_k=20, max_seconds=0.6)
GUARDS = Guards(attempts=3, at_once=3, loop_codes=90, distinct=2, silence_seconds=9.0)
SPEAKING = Speaking(SAMPLING, GUARDS, piece_characters=60)
STORY = "Call the office. The red lamp stands in the hall.\n\nPlease bring four apples to Alice."


@pytest.fixture(scope="module")
def synthesizer(mini_tokenizer):
    model = speaking_llama(vocabulary_of(mini_tokenizer))
    return Synthesizer(model, mini_tokenizer, FakeCodec(), speakers=["ava", "ben"])


@pytest.fixture(scope="module")
def service(synthesizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    wave = 0.4 * np.sin(np.arange(16_000) * 0.05).astype(np.float32)
    (folder / "carl.wav").write_bytes(wav_bytes(wave))
    (folder / "carl.txt").write_text("hello\n")
    voices = voices_of(synthesizer, folder)
    return SpeechService(synthesizer, voices, SPEAKING, Limits(slots=4, queue=60, characters=300))


@pytest.fixture(scope="module")
def url(service):
    with live(service) as url:
        yield url


def offline(service, text, voice="default", seed=0, sampling=SAMPLING):
    """What `llasa synthesize` says, int16 (T,)."""
    speaker = voice if service.voices[voice].kind == "tag" else None
    request = Request("x", text, speaker, service.voices[voice].voice, seed)
    return sixteen_bit(speak_text(service.synthesizer, request, sampling, GUARDS, 60).wave)


def test_many_at_once_sound_as_each_does_offline(service, url):
    asked = [
        (text, voice, seed)
        for seed, text in enumerate((*TEXTS, STORY))
        for voice in ("default", "ava", "ben", "carl")
    ]
    with ThreadPoolExecutor(8) as pool:
        heard = list(pool.map(lambda one: spoken(url, one[0], one[1], seed=one[2]), asked))
    for one, samples in zip(asked, heard, strict=True):
        assert samples == offline(service, *one).tobytes()
    assert len(set(heard)) > 20
    assert service.loop.row_steps > 1.5 * service.loop.steps  # rows were drawn together


def test_temperature_belongs_to_the_request(service, url):
    asked = [{"temperature": 0.0}, {}, {"temperature": 1.4, "top_k": 0, "top_p": 0.9}] * 3
    with ThreadPoolExecutor(9) as pool:
        heard = list(pool.map(lambda more: spoken(url, TEXTS[2], **more), asked))
    for more, samples in zip(asked, heard, strict=True):
        sampling = Sampling(**{"temperature": 1.0, "top_k": 20, "max_seconds": 0.6} | more)
        assert samples == offline(service, TEXTS[2], sampling=sampling).tobytes()
    assert len(set(heard)) == 3


def test_wav_is_the_file_that_the_command_writes(service, url):
    heard = spoken(url, TEXTS[0], "ava", "wav", seed=5)
    assert heard == wav_bytes(offline(service, TEXTS[0], "ava", 5).astype(np.float32) / 32767)


@pytest.mark.parametrize("name, media", [("mp3", "mpeg"), ("opus", "ogg"), ("flac", "flac")])
def test_compressed_formats_hold_the_speech(service, url, name, media):
    answer = client_of(url).audio.speech.create(
        model=MODEL, voice="ben", input=TEXTS[0], response_format=name
    )
    assert answer.response.headers["content-type"] == f"audio/{media}"
    wave, rate = soundfile.read(io.BytesIO(answer.content))
    assert (len(wave), rate) == (len(offline(service, TEXTS[0], "ben")), 16_000)


@pytest.mark.parametrize("name", ["wav", "pcm", "mp3", "opus"])
@pytest.mark.parametrize("text", [TEXTS[2], STORY])
def test_stream_is_the_stream_of_the_command(service, url, name, text):
    with client_of(url).audio.speech.with_streaming_response.create(
        model=MODEL, voice="ava", input=text, response_format=name, extra_body={"stream": True}
    ) as answer:
        assert "content-length" not in answer.headers
        heard = answer.read()
    request = Request("x", text, "ava")
    waves = stream_long(service.synthesizer, request, SAMPLING, None, GUARDS, 60)
    samples = sixteen_bit(np.concatenate(list(waves)))
    if name in ("wav", "pcm"):
        assert heard[44 * (name == "wav") :] == samples.tobytes()
    if name != "pcm":
        wave, rate = soundfile.read(io.BytesIO(heard))
        assert rate == 16_000 and 0 <= len(wave) - len(samples) < 3000  # MP3 begins late


def test_events_hold_the_stream_and_say_what_was_used(service, url):
    with client_of(url).audio.speech.with_streaming_response.create(
        model=MODEL, voice="ava", input=STORY, response_format="pcm", stream_format="sse"
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"} and len(events) > 2
    heard = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert heard == spoken(url, STORY, "ava", stream=True)
    usage = events[-1]["usage"]
    assert events[-1]["type"] == "speech.audio.done" and usage["input_tokens"] > 20
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_headers_say_what_the_guards_did(synthesizer):
    picky = Speaking(SAMPLING, Guards(attempts=2, at_once=100, silence_seconds=9.0))
    service = SpeechService(synthesizer, voices_of(synthesizer), picky)
    with live(service) as url:
        speech = client_of(url).audio.speech
        fields = {"model": MODEL, "voice": "ava", "input": TEXTS[0], "response_format": "pcm"}
        headers = speech.create(**fields).response.headers
        assert headers["x-llasa-attempts"] == "2" and "ended_at_once" in headers["x-llasa-failed"]
        headers = speech.create(**fields, extra_body={"attempts": 0}).response.headers
        assert headers["x-llasa-attempts"] == "1" and "x-llasa-failed" not in headers
        metrics = ask(url, "GET", "/metrics")[1].decode()
        assert "llasa_guard_failures_total 1.0" in metrics


def ask(url, method, path, body=None, kind="application/json", **headers):
    """(status, body, headers) of a plain request."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    headers = {"content-type": kind} | {name.replace("_", "-"): v for name, v in headers.items()}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


WRONG = [
    ({"speed": 2}, "speed", "its own pace"),
    ({"speed": "fast"}, "speed", "expected a number"),
    ({"voice": "alloy"}, "voice", "expected one of ava, ben, default, carl"),
    ({"voice": {"name": "ava"}}, "voice", "missing"),
    ({"voice": 3}, "voice", "expected text"),
    ({"input": None}, "input", "missing"),
    ({"input": "  "}, "input", "the text is empty"),
    ({"input": "..."}, "input", "no word"),
    ({"input": "\ud800 half"}, "input", "half a character"),
    ({"input": "word " * 61}, "input", "305 characters, expected at most 300"),
    ({"response_format": "aac"}, "response_format", "mp3, opus, flac, wav, pcm"),
    ({"response_format": "flac", "stream": True}, "response_format", "while it is spoken"),
    ({"stream_format": "tape"}, "stream_format", "'audio' or 'sse'"),
    ({"instructions": "whisper"}, "instructions", "expected none"),
    ({"seed": -1}, "seed", "whole number"),
    ({"seed": 0.5}, "seed", "whole number"),
    ({"seed": True}, "seed", "whole number"),
    ({"temperature": float("nan")}, "temperature", "expected a number"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"attempts": 1000}, "attempts", "from 0 to 20"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"colour": "red"}, "colour", "unknown field"),
    ({"input": ["a"] * 9}, "input", "expected text"),
]


@pytest.mark.parametrize("change, field, words", WRONG)
def test_wrong_field_is_named_with_what_was_expected(url, change, field, words):
    fields = {"model": MODEL, "voice": "ava", "input": TEXTS[0], "response_format": "pcm"} | change
    status, body, _ = ask(url, "POST", "/v1/audio/speech", json.dumps(fields))
    (error,) = json.loads(body).values()
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", field)
    assert words in error["message"] and field in error["message"]
    assert len(error["message"]) < 250 and "\n" not in error["message"]


@pytest.mark.parametrize(
    "body, kind, status, words",
    [
        (b"", "application/json", 400, "no JSON"),
        (b"{", "application/json", 400, "no JSON"),
        (b"\xff\xfe", "application/json", 400, "no JSON"),
        (b"[" * 50_000, "application/json", 400, "no JSON"),
        (b"9" * 50_000, "application/json", 400, "no JSON"),
        (b"[]", "application/json", 400, "expected a JSON object"),
        (b" " * 100_000, "application/json", 413, "longer than"),
        (b"{}", "text/plain", 415, "content-type"),
    ],
)
def test_body_that_is_no_request_is_refused(url, body, kind, status, words):
    answer = ask(url, "POST", "/v1/audio/speech", body, kind)
    assert answer[0] == status and words in json.loads(answer[1])["error"]["message"]


def test_other_addresses_and_methods_are_errors_of_the_same_form(url):
    for method, path, status in (
        ("GET", "/v1/audio/speech", 405),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/gpt-4", 404),
        ("POST", "/health", 405),
    ):
        answer = ask(url, method, path)
        assert answer[0] == status
        assert json.loads(answer[1])["error"]["type"] == "invalid_request_error"


def test_client_raises_the_errors_it_knows(url):
    speech = client_of(url).audio.speech
    with pytest.raises(openai.BadRequestError, match="alloy"):
        speech.create(model=MODEL, voice="alloy", input="Hello there.")
    with pytest.raises(openai.NotFoundError, match="tts-1") as caught:
        speech.create(model="tts-1", voice="ava", input="Hello there.")
    assert caught.value.code == "model_not_found"


def test_models_and_voices_are_listed(url):
    client = client_of(url)
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    voices = json.loads(ask(url, "GET", "/v1/audio/voices")[1])["voices"]
    kinds = {voice["id"]: voice["kind"] for voice in voices}
    assert kinds == {"ava": "tag", "ben": "tag", "default": "default", "carl": "recording"}


def test_key_opens_what_is_under_v1(service, synthesizer):
    guarded = SpeechService(synthesizer, service.voices, SPEAKING)
    with live(guarded, "secret") as url:
        for key in ("wrong", "secrets", "sécret"):
            status, body, _ = ask(url, "GET", "/v1/models", authorization=f"Bearer {key}")
            assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            spoken(url)
        assert client_of(url, "secret").models.list().data[0].id == MODEL
        assert ask(url, "GET", "/health")[0] == 200


def test_metrics_count_what_was_answered(url):
    def counted():
        lines = ask(url, "GET", "/metrics")[1].decode().splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if line[0] != "#"}

    before = counted()
    audio = spoken(url, TEXTS[1])
    with pytest.raises(openai.BadRequestError):
        spoken(url, speed=3)
    after = counted()

    def more(name):
        return after[name] - before.get(name, 0)

    assert more('llasa_requests_total{status="200"}') == 1
    assert more('llasa_requests_total{status="400"}') == 1
    assert more("llasa_audio_seconds_total") == pytest.approx(len(audio) / 32_000)
    assert more("llasa_request_seconds_count") == more("llasa_first_audio_seconds_count") == 1
    assert after["llasa_requests_open"] == after["llasa_rows_live"] == 0
    assert more("llasa_row_steps") >= more("llasa_steps") > 0
