import json
import os
import tracemalloc

import numpy as np
import pytest
import soundfile
from tiny_models import speaking_llama

from llasa_core.audio import sixteen_bit
from llasa_core.cli import main
from llasa_core.codecs.fake import FakeCodec
from llasa_core.manifest import Request
from llasa_core.prompts import Voice
from llasa_core.search.batch import pieces_of
from llasa_core.synthesis.guards import Guards
from llasa_core.synthesis.long_text import edges, joined, speak_long, speak_text, stream_long
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.spoken_form import cardinal, ordinal, spoken_form
from llasa_core.synthesis.streaming import SpeechFile, Window
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.synthesis.text import pieces_of_text, sentences
from llasa_core.tokenizer import vocabulary_of

SAMPLING = Sampling(temperature=1.0, top_k=20, max_seconds=0.6)
STORY = (
    "Call the office. The red lamp stands in the hall.\n\nPlease bring four apples. We will meet"
    " Alice on Friday."
)


@pytest.fixture(scope="module")
def model(mini_tokenizer):
    return speaking_llama(vocabulary_of(mini_tokenizer))


@pytest.fixture(scope="module")
def synthesizer(model, mini_tokenizer):
    return Synthesizer(model, mini_tokenizer, FakeCodec(), slots=4)


def test_sentences_end_where_a_reader_stops():
    text = (
        'Dr. J. Smith paid 3.50 euros, e.g. for tea. "Really?" she said. Yes! No. 5 is "done." End'
    )
    assert sentences(text) == [
        "Dr. J. Smith paid 3.50 euros, e.g. for tea.",
        '"Really?" she said.',
        "Yes!",
        'No. 5 is "done."',
        "End",
    ]
    assert sentences("你好。再见！好") == ["你好。", "再见！", "好"]


def test_pieces_hold_whole_sentences_and_all_words():
    pieces = pieces_of_text(STORY, 60)
    assert [piece.text for piece in pieces] == [
        "Call the office. The red lamp stands in the hall.",
        "Please bring four apples. We will meet Alice on Friday.",
    ]
    assert [piece.pause for piece in pieces] == [0.8, 0.0]
    small = pieces_of_text(STORY, 25)
    assert " ".join(piece.text for piece in small).split() == STORY.split()
    assert max(len(piece.text) for piece in small) <= 40
    assert [piece.pause for piece in pieces_of_text("One two, three four five. Six.", 16)] == [
        0.15,
        0.4,
        0.0,
    ]
    assert pieces_of_text("  ", 10) == []


def test_pause_counts_the_silence_that_is_there():
    tone, silence = np.sin(np.arange(16_000) / 5).astype(np.float32), np.zeros(16_000, np.float32)
    first, second = np.concatenate([tone, silence[:1600]]), np.concatenate([silence[:3200], tone])
    assert edges(first, 16_000) == pytest.approx((0.0, 0.1)) and edges(
        second, 16_000
    ) == pytest.approx((0.2, 0.0))
    whole = np.concatenate(list(joined(iter([first, second]), [0.8, 0.0], 16_000)))
    assert len(whole) == 16_000 * 2.8
    long = np.concatenate([tone, silence])
    cut = np.concatenate(list(joined(iter([long, long, tone]), [0.4, 0.4, 0.0], 16_000)))
    assert len(cut) == 16_000 * 3.8
    np.testing.assert_array_equal(np.concatenate(list(joined(iter([long]), [0.0], 16_000))), long)


def test_voice_of_the_first_piece_is_carried_along_unless_one_is_given(synthesizer, tmp_path):
    voice = Voice("hello", np.arange(20, dtype=np.int32))
    requests = [Request("open", STORY), Request("prompted", STORY, voice=voice)]
    speak_long(synthesizer, requests, tmp_path, SAMPLING, characters=60)
    first = json.loads((tmp_path / "pieces" / "first" / "manifest.jsonl").read_text())
    rest = [
        json.loads(line)
        for line in (tmp_path / "pieces" / "rest" / "manifest.jsonl").read_text().splitlines()
    ]
    assert [line["id"] for line in rest] == ["open.0001", "prompted.0000", "prompted.0001"]
    assert first["id"] == "open.0000" and "voice" not in first
    assert rest[1]["voice"] == rest[2]["voice"] != rest[0]["voice"]
    carried = Voice(first["text"], np.array(first["code_list"], np.int32))
    (alone,) = synthesizer.speak([Request("x", rest[0]["text"], voice=carried)], SAMPLING)
    wave, _ = soundfile.read(tmp_path / "pieces" / "rest" / rest[0]["audio"], dtype="float32")
    assert np.abs(wave - alone.wave).max() < 1e-4


def test_text_that_begins_with_the_words_of_its_voice_is_never_cut(synthesizer, tmp_path):
    voice = Voice("", np.arange(20, dtype=np.int32))
    requests = [
        Request(name, STORY[:49], voice=said) for name, said in (("within", voice), ("open", None))
    ]
    path = speak_long(synthesizer, requests, tmp_path, SAMPLING, Guards(attempts=1), 30)
    assert [json.loads(line)["pieces"] for line in path.read_text().splitlines()] == [1, 3]
    assert pieces_of(requests[0], 30) == [requests[0]] and len(pieces_of(requests[1], 30)) > 1


@pytest.mark.parametrize("voice", [None, Voice("hello", np.arange(20, dtype=np.int32))])
@pytest.mark.parametrize("guards", [None, Guards(attempts=2)])
def test_text_spoken_in_memory_has_the_samples_of_the_files(synthesizer, tmp_path, voice, guards):
    request = Request("a", STORY, voice=voice, seed=3)
    for characters in (60, 500):
        folder = tmp_path / str(characters)
        path = speak_long(synthesizer, [request], folder, SAMPLING, guards, characters)
        line = json.loads(path.read_text())
        spoken = speak_text(synthesizer, request, SAMPLING, guards, characters)
        wave, _ = soundfile.read(folder / "wavs" / "a.wav", dtype="int16")
        np.testing.assert_array_equal(sixteen_bit(spoken.wave), wave)
        assert len(spoken.pieces) == line["pieces"]
        if guards is not None:
            failed = {one.request.id: list(one.failed) for one in spoken.pieces if one.failed}
            assert failed == line["failed"]


@pytest.mark.slow
def test_stopped_long_text_goes_on_and_ends_with_the_same_audio(synthesizer, tmp_path):
    requests = [Request("a", STORY, language="de"), Request("short", "Red lamp.")]
    whole = speak_long(synthesizer, requests, tmp_path / "whole", SAMPLING, Guards(attempts=2), 60)
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [(line["id"], line["pieces"]) for line in lines] == [("a", 2), ("short", 1)]
    assert [line["language"] for line in lines] == ["de", "en"]
    wave, rate = soundfile.read(tmp_path / "whole" / "wavs" / "a.wav")
    assert lines[0]["seconds"] == pytest.approx(len(wave) / rate) and lines[0]["attempts"] >= 2

    class Stopped(Exception):
        pass

    def stop(count, seen=[]):  # noqa: B006  counts its calls
        seen.append(count)
        if len(seen) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        speak_long(
            synthesizer, requests, tmp_path / "killed", SAMPLING, Guards(attempts=2), 60, stop
        )
    kept = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "pieces").rglob("*.wav")
    }
    again = speak_long(synthesizer, requests, tmp_path / "killed", SAMPLING, Guards(attempts=2), 60)
    assert len(kept) == 2 and all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert again.read_bytes() == whole.read_bytes()
    assert (tmp_path / "killed/wavs/a.wav").read_bytes() == (
        tmp_path / "whole/wavs/a.wav"
    ).read_bytes()


def test_memory_does_not_grow_with_the_length_of_the_text(tmp_path):
    second = np.sin(np.arange(16_000) / 5).astype(np.float32)

    def peak(count):
        tracemalloc.start()
        with SpeechFile(tmp_path / f"{count}.wav", 16_000) as file:
            file.write_all(joined((second.copy() for _ in range(count)), [0.4] * count, 16_000))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(400) < 1.2 * peak(20) + 2**16
    assert os.path.getsize(tmp_path / "400.wav") == 44 + 2 * 16_000 * (400 + 399 * 0.4)


def test_long_text_streams_piece_by_piece(synthesizer):
    told, window = [], Window(10, 20, 5, 5)
    waves = list(
        stream_long(synthesizer, Request("a", STORY), SAMPLING, window, None, 60, told.append)
    )
    assert [one.request.id for one in told] == ["a.0000", "a.0001"]
    assert told[1].request.voice.codes.tolist() == told[0].generated.codes.tolist()
    spoken = sum(len(one.generated.codes) for one in told) * 320
    pause = sum(map(len, waves)) - spoken
    assert 0 < pause <= 0.8 * 16_000


@pytest.mark.slow
def test_command_speaks_long_texts_streams_and_writes_numbers_out(
    synthesizer, tmp_path, capfdbinary
):
    model = tmp_path / "model"
    synthesizer.model.save_pretrained(model)
    synthesizer.tokenizer.save_pretrained(model)
    (model / "llasa.json").write_text(json.dumps({"codec": "fake"}))
    start = [
        "synthesize",
        "--model",
        str(model),
        "--attempts",
        "0",
        "--max-seconds",
        "0.5",
        "--chunk-characters",
        "60",
    ]
    assert main([*start, STORY, "-o", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "manifest.jsonl").read_text())["pieces"] == 2
    assert main([*start, "--normalise", "Bring 4 apples.", "-o", str(tmp_path / "n")]) == 0
    assert (
        json.loads((tmp_path / "n" / "manifest.jsonl").read_text())["text"] == "Bring four apples."
    )
    assert main([*start, "--stream", STORY, "-o", str(tmp_path / "s.wav")]) == 0
    streamed, _ = soundfile.read(tmp_path / "s.wav", dtype="int16")
    capfdbinary.readouterr()
    assert main([*start, "--stream", STORY, "-o", "-"]) == 0
    assert np.array_equal(np.frombuffer(capfdbinary.readouterr().out, "<i2"), streamed)
    assert main([*start, "--stream", STORY, "-o", str(tmp_path)]) == 2


def test_numbers_are_read_as_a_reader_reads_them():
    assert [cardinal(n) for n in (0, 13, 21, 100, 342, 1001, 1_200_000)] == [
        "zero",
        "thirteen",
        "twenty-one",
        "one hundred",
        "three hundred and forty-two",
        "one thousand and one",
        "one million two hundred thousand",
    ]
    assert [ordinal(n) for n in (1, 12, 20, 23, 100)] == [
        "first",
        "twelfth",
        "twentieth",
        "twenty-third",
        "one hundredth",
    ]
    cases = {
        "It costs $3.50, or £1.": "It costs three dollars and fifty cents, or one pound.",
        "Dr. Lee, 21st floor, at 7:05.": "Doctor Lee, twenty-first floor, at seven oh five.",
        "In 1984, 2.5% of 12,000 went.": (
            "In nineteen eighty-four, two point five percent of twelve thousand went."
        ),
        "Room 007 & flat B2": "Room zero zero seven and flat B2",
        "It is -4, not 1.2.3 nor x86.": "It is minus four, not 1.2.3 nor x86.",
        "No digits\n\nat all.": "No digits\n\nat all.",
    }
    for written, said in cases.items():
        assert spoken_form(written) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("On 3/4/2025 we met.", "On March fourth, twenty twenty-five we met."),
        ("On 25/12/1905.", "On December twenty-fifth, nineteen oh five."),
        ("2024-02-29", "February twenty-ninth, twenty twenty-four"),
        ("May 1, 2005", "May first, two thousand and five"),
        ("It rained on June 3.", "It rained on June third."),
        ("At 5pm or 5:30 p.m. today.", "At five p m or five thirty p m today."),
        ("Come at 11 AM.", "Come at eleven a m."),
        ("At 5 p.m. We left.", "At five p m. We left."),
        ("Write to anna_lee@mail.co.uk.", "Write to anna underscore lee at mail dot co dot uk."),
        ("It goes 100 km/h.", "It goes one hundred kilometers per hour."),
        ("1 km and 2.5kg", "one kilometer and two point five kilograms"),
        ("20°C", "twenty degrees Celsius"),
        ("Call 555-1234.", "Call five five five, one two three four."),
        (
            "Call +1 212-555-0170 now",
            "Call plus one, two one two, five five five, zero one seven zero now",
        ),
        ("Henry VIII and Louis XIV.", "Henry the eighth and Louis the fourteenth."),
        ("Chapter IV of World War II", "Chapter four of World War two"),
        ("No. 5 and #7", "number five and number seven"),
        ("I said No. It is a DC plug, I think.", "I said No. It is a DC plug, I think."),
        ("Half is 1/2, version 1.2.3 too.", "Half is 1/2, version 1.2.3 too."),
        ("99/99/2025 is no date", "99/99/2025 is no date"),
    ],
)
def test_dates_addresses_units_and_numerals_are_read_as_people_say_them(written, said):
    assert spoken_form(written) == said
