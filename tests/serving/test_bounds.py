"""What a server does when there is too much, too long, nobody left, or something broken."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from helpers import wait_for
from live_server import MODEL, live, spoken
from tiny_models import TEXTS, speaking_llama

from llasa_core.audio import sixteen_bit
from llasa_core.codecs.fake import FakeCodec
from llasa_core.errors import InputError
from llasa_core.manifest import Request
from llasa_core.serving.engine_rows import EngineRows
from llasa_core.serving.service import Limits, Speaking, SpeechService
from llasa_core.serving.shared_loop import GoneError, Line, SharedLoop, Ticket
from llasa_core.serving.voices import voices_of
from llasa_core.synthesis.decoding import decode, generating
from llasa_core.synthesis.long_text import speak_text
from llasa_core.synthesis.open_loop import OpenLoop
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.tokenizer import vocabulary_of

SAMPLING = Sampling(temperature=1.0, top_k=20, max_seconds=0.6)
STEADY = Sampling(temperature=1.0, top_k=20, min_codes=60, max_seconds=1.2)  # always 60 codes


@pytest.fixture(scope="module")
def synthesizer(mini_tokenizer):
    model = speaking_llama(vocabulary_of(mini_tokenizer))
    return Synthesizer(model, mini_tokenizer, FakeCodec())


class Gate:
    """Opens a loop's steps: `allow(count)`, or all of them; left as a context it is open."""

    def __init__(self):
        self.steps = threading.Semaphore(0)
        self.open = self.broken = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.open = True

    def pass_one(self):
        while not self.open and not self.steps.acquire(timeout=0.01):
            if self.broken:
                self.broken = False
                raise MemoryError("no room for a step")

    def allow(self, count):
        for _ in range(count):
            self.steps.release()


def gated(synthesizer, gate, sampling=SAMPLING, **limits):
    """A service whose loop steps through a gate."""

    class GatedLoop(OpenLoop):
        def advance(self):
            gate.pass_one()
            return super().advance()

    service = SpeechService(
        synthesizer, voices_of(synthesizer), Speaking(sampling, None), Limits(**limits)
    )

    def make():
        row = (synthesizer.speech_answers, sampling, service.limits.slots, synthesizer.context)
        return GatedLoop(synthesizer.model, *row)

    service.loop = SharedLoop(make, service.limits.window, generating(synthesizer.model))
    return service


def offline(synthesizer, text, seed=0, sampling=SAMPLING):
    return sixteen_bit(speak_text(synthesizer, Request("x", text, seed=seed), sampling).wave)


@pytest.fixture
def gate():
    return Gate()


def test_request_beyond_the_queue_is_told_to_come_again_and_the_others_are_spoken(
    synthesizer, gate
):
    service = gated(synthesizer, gate, slots=2, queue=1)
    with live(service) as url, ThreadPoolExecutor(3) as pool, gate:
        inside = [pool.submit(spoken, url, TEXTS[n], seed=n) for n in range(3)]
        wait_for(lambda: service.open == 3)
        with pytest.raises(openai.RateLimitError) as caught:
            spoken(url)
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.code == "queue_full"
        gate.open = True
        for n, one in enumerate(inside):
            assert one.result() == offline(synthesizer, TEXTS[n], n).tobytes()
        assert spoken(url) and service.open == 0


def test_request_that_takes_too_long_is_ended_and_leaves_the_loop(synthesizer, gate):
    service = gated(synthesizer, gate, slots=1, queue=3, seconds=0.5)
    with live(service) as url, ThreadPoolExecutor(2) as pool, gate:
        late = [pool.submit(spoken, url, TEXTS[n]) for n in range(2)]  # in the loop, and waiting
        for one in late:
            with pytest.raises(openai.InternalServerError) as caught:
                one.result()
            assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        gate.open = True
        wait_for(lambda: service.open == 0 and service.loop.live == 0)


def leaving(url, **more):
    """A connection that has asked for speech."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    fields = {"model": MODEL, "voice": "default", "input": TEXTS[2], "response_format": "pcm"}
    body = json.dumps(fields | more)
    connection.request("POST", "/v1/audio/speech", body, {"content-type": "application/json"})
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_row_of_a_client_that_left_is_dropped_and_the_others_go_on(synthesizer, gate, stream):
    service = gated(synthesizer, gate, STEADY, slots=3, queue=3)
    with live(service) as url, ThreadPoolExecutor(1) as pool, gate:
        connection = leaving(url, stream=stream)
        wait_for(lambda: service.loop.live == 1)
        stays = pool.submit(spoken, url, TEXTS[1], seed=4)
        wait_for(lambda: service.open == 2)
        gate.allow(45 if stream else 5)
        if stream:
            assert connection.getresponse().read(10)
        connection.close()
        gate.allow(1)

        def left():
            gate.allow(1)
            return service.open == 1 and service.loop.live == 1

        wait_for(left)
        gate.open = True
        assert stays.result() == offline(synthesizer, TEXTS[1], 4, STEADY).tobytes()
        wait_for(lambda: service.open == 0)
        assert service.loop.row_steps < 110  # of 120, had the row been drawn to its end
        answer = http.client.HTTPConnection(url.removeprefix("http://"))
        answer.request("GET", "/metrics")
        assert 'llasa_requests_total{status="499"} 1.0' in answer.getresponse().read().decode()


def test_client_that_left_while_it_waited_frees_its_place(synthesizer, gate):
    service = gated(synthesizer, gate, slots=1, queue=1)
    with live(service) as url, ThreadPoolExecutor(2) as pool, gate:
        first = pool.submit(spoken, url, TEXTS[0])
        wait_for(lambda: service.open == 1)
        waiting = leaving(url)
        wait_for(lambda: service.open == 2)
        waiting.close()
        wait_for(lambda: service.open == 1)
        second = pool.submit(spoken, url, TEXTS[1])
        gate.open = True
        assert first.result() and second.result()


def test_failure_of_the_loop_ends_its_requests_and_no_later_one(synthesizer, gate, caplog):
    service = gated(synthesizer, gate, slots=2, window=3.0)  # both requests join the first step
    with live(service) as url, ThreadPoolExecutor(2) as pool, gate:
        caught = [pool.submit(spoken, url, TEXTS[n]) for n in range(2)]
        wait_for(lambda: service.loop.live == 2)
        gate.broken = True
        for one in caught:
            with pytest.raises(openai.InternalServerError, match="log"):
                one.result()
        gate.open = True
        assert spoken(url, TEXTS[0]) == offline(synthesizer, TEXTS[0]).tobytes()
        assert service.loop.failures == 1 and "no room for a step" in caplog.text


def test_stream_that_breaks_off_is_seen_by_the_client(synthesizer, gate):
    service = gated(synthesizer, gate, STEADY, slots=2)
    with live(service) as url, gate:
        for events in (False, True):
            gate.allow(45)
            connection = leaving(url, stream=True, **({"stream_format": "sse"} if events else {}))
            answer = connection.getresponse()
            assert answer.read(10)
            gate.broken = True
            if events:
                last = answer.read().decode().split("data: ")[-1]
                assert json.loads(last)["error"]["message"].startswith("speaking this text failed")
            else:
                with pytest.raises(http.client.IncompleteRead):
                    answer.read()


def test_health_says_when_no_speech_can_be_made(synthesizer):
    service = gated(synthesizer, Gate())
    with live(service) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        for status in (200, 503):
            connection.request("GET", "/health")
            answer = connection.getresponse()
            assert answer.status == status and "status" in json.loads(answer.read())
            service.loop.stop()


class WholeBatches:
    """An engine that draws a list of rows, as vLLM's."""

    name = "batches"

    def __init__(self, model):
        self.model, self.sizes = model, []

    def decode(self, prompts, limits, seeds, sampling, answers):
        self.sizes.append(len(prompts))
        time.sleep(0.05)
        yield from decode(self.model, prompts, limits, seeds, sampling, answers)


def test_engine_of_whole_batches_serves_those_that_wait_together(synthesizer):
    engine = WholeBatches(synthesizer.model)
    other = synthesizer.through(engine)
    service = SpeechService(
        other, voices_of(other), Speaking(SAMPLING, None), Limits(slots=8, window=0.05)
    )
    asked = [{"temperature": 0.5 * (n % 3), "seed": n} for n in range(12)]
    with live(service) as url, ThreadPoolExecutor(12) as pool:
        heard = list(pool.map(lambda more: spoken(url, TEXTS[0], **more), asked))
        with pytest.raises(openai.BadRequestError, match="expected no stream"):
            spoken(url, stream=True)
    for more, samples in zip(asked, heard, strict=True):
        sampling = Sampling(more["temperature"], 20, max_seconds=0.6)
        assert samples == offline(synthesizer, TEXTS[0], more["seed"], sampling).tobytes()
    assert sum(engine.sizes) == 12 and 3 <= len(engine.sizes) < 12


def test_row_that_leaves_a_waiting_batch_is_not_drawn():
    engine = WholeBatches(None)
    rows = EngineRows(engine, None, SAMPLING, 4)
    from llasa_core.synthesis.decoding import Asked

    for index in range(3):
        rows.add(index, Asked(np.arange(3), 4, 0, SAMPLING))
    rows.drop(1)
    rows.admit()
    rows.drop(2)
    rows.drop(7)
    assert rows.live == 1 and not rows.queue


def test_rows_that_come_within_the_window_begin_together(synthesizer):
    made = []

    class Watched(OpenLoop):
        def admit(self):
            made.append(min(len(self.queue), self.slots - self.live))
            super().admit()

    answers = synthesizer.speech_answers
    model, context = synthesizer.model, synthesizer.context
    loop = SharedLoop(lambda: Watched(model, answers, SAMPLING, 8, context), 0.3, generating(model))
    loop.start()

    def speak(n):
        time.sleep(0.02 * n)
        line = synthesizer.through(Line(loop, Ticket(60), synthesizer.hidden))
        return speak_text(line, Request("x", TEXTS[n]), SAMPLING).wave

    try:
        with ThreadPoolExecutor(5) as pool:
            waves = list(pool.map(speak, range(5)))
    finally:
        loop.stop()
    assert made[0] == 5 == sum(made)
    for n, wave in enumerate(waves):
        np.testing.assert_array_equal(sixteen_bit(wave), offline(synthesizer, TEXTS[n]))


def test_row_that_the_loop_refuses_is_an_error_of_its_request_alone(synthesizer):
    answers, model = synthesizer.speech_answers, synthesizer.model
    loop = SharedLoop(lambda: OpenLoop(model, answers, SAMPLING, 8, 20), 0.0, generating(model))
    loop.start()
    try:
        line = synthesizer.through(Line(loop, Ticket(60), synthesizer.hidden))
        with pytest.raises(InputError, match="at most 20"):
            speak_text(line, Request("x", TEXTS[0]), SAMPLING)
        assert loop.running and loop.live == loop.waiting == 0
    finally:
        loop.stop()


def test_ticket_ends_by_its_time_and_by_leaving():
    assert Ticket(60).remaining > 59
    over, left = Ticket(0), Ticket(60)
    left.leave()
    for ticket in (over, left):
        with pytest.raises(GoneError):
            ticket.check()


def test_codec_is_used_by_one_thread_at_a_time(synthesizer, gate):
    busy, met = threading.Lock(), []

    class Stateful(FakeCodec):
        def decode(self, codes):
            free = busy.acquire(blocking=False)
            met.append(not free)
            time.sleep(0.01)
            if free:
                busy.release()
            return super().decode(codes)

    gate.open = True
    other = Synthesizer(synthesizer.model, synthesizer.tokenizer, Stateful())
    with live(gated(other, gate)) as url, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: spoken(url, TEXTS[n % 6]), range(12)))
    assert len(met) == 12 and not any(met)
