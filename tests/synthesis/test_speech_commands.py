"""`llasa synthesize` at its edges: what it refuses, what it leaves out and says, what it never
overwrites.
"""

import json
import warnings

import numpy as np
import pytest
import soundfile
from tiny_models import TEXTS, speaking_llama

from llasa_core.cli import main
from llasa_core.codecs.fake import FakeCodec
from llasa_core.errors import InputError
from llasa_core.files import read_rows
from llasa_core.manifest import Request, read_requests
from llasa_core.synthesis.batch import failures
from llasa_core.synthesis.guards import Guards
from llasa_core.synthesis.long_text import speak_long
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.synthesis.text import pieces_of_text
from llasa_core.tokenizer import vocabulary_of

SAMPLING = Sampling(temperature=1.0, top_k=20, max_seconds=0.4)


@pytest.fixture(scope="module")
def synthesizer(mini_tokenizer):
    return Synthesizer(speaking_llama(vocabulary_of(mini_tokenizer)), mini_tokenizer, FakeCodec())


@pytest.fixture(scope="module")
def speak(synthesizer, tmp_path_factory):
    """(arguments of `llasa synthesize`) -> exit status, with a model of the speaker ann or of
    none.
    """
    folders = {}
    for name, speakers in (("tagged", ["ann"]), ("plain", [])):
        folders[name] = tmp_path_factory.mktemp(name)
        synthesizer.model.save_pretrained(folders[name])
        synthesizer.tokenizer.save_pretrained(folders[name])
        card = json.dumps({"codec": "fake", "speakers": speakers})
        (folders[name] / "llasa.json").write_text(card)

    def run(*arguments, model="tagged", attempts=0):
        start = ["synthesize", "--model", str(folders[model]), "--max-seconds", "0.4"]
        return main([*start, "--attempts", str(attempts), *map(str, arguments)])

    return run


def lines_of(path, *rows):
    path.write_text(
        "".join(row + "\n" if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    return path


@pytest.mark.parametrize("text", ["...", "🙂", "— !", "。"])
def test_text_without_a_word_to_say_is_refused(text, tmp_path):
    with pytest.raises(InputError, match="has no word in it"):
        Request("a", text)
    path = lines_of(tmp_path / "r.jsonl", {"id": "a", "text": "One."}, {"id": "b", "text": text})
    with pytest.raises(InputError, match=r"r\.jsonl:2: request b: .*no word"):
        read_requests(path)


def test_piece_without_a_word_is_left_out_of_a_long_text():
    pieces = pieces_of_text("One.\n\n* * *\n\nTwo.", 10)
    assert [(piece.text, piece.pause) for piece in pieces] == [("One.", 0.8), ("Two.", 0.0)]


@pytest.mark.parametrize(
    ("wave", "said"),
    [
        (np.zeros(16_000), r"0\.00 s of sound in 1\.00 s"),
        (0.1 * np.sin(np.arange(320)), r"0\.02 s of sound in 0\.02 s"),
    ],
    ids=["silent", "short"],
)
def test_voice_prompt_that_holds_no_word_is_refused(synthesizer, tmp_path, wave, said):
    soundfile.write(tmp_path / "v.wav", wave, 16_000)
    with pytest.raises(InputError, match=rf"v\.wav: {said}"):
        synthesizer.voice(tmp_path / "v.wav", "Hello.")
    soundfile.write(tmp_path / "v.wav", 0.1 * np.sin(np.arange(8_000)), 16_000)
    assert len(synthesizer.voice(tmp_path / "v.wav", "Hello.").codes) == 25


@pytest.mark.slow
def test_bad_lines_are_left_out_and_listed_and_the_others_are_spoken(speak, tmp_path, capsys):
    good = [{"id": f"g{i}", "text": TEXTS[i]} for i in range(2)]
    bad = [
        "{",
        {"id": "b", "text": "..."},
        {"id": "g0", "text": "Again."},
        {"id": "c", "text": "Hello.", "speaker": "nobody"},
        {"id": "d", "text": "Hello.", "voice": "none.wav", "voice_text": "Hi."},
        {"id": "e", "text": "Hello.", "sped": 1},
    ]
    path = lines_of(tmp_path / "m.jsonl", good[0], *bad, good[1])
    assert speak("--manifest", path, "-o", tmp_path / "out") == 1
    assert [row["id"] for row in read_rows(tmp_path / "out/manifest.jsonl")] == ["g0", "g1"]
    told = [line for line in capsys.readouterr().err.split("\n") if "left out:" in line]
    assert len(told) == len(bad)
    for part in ("m.jsonl:2", "m.jsonl:3", "m.jsonl:4", "m.jsonl:6", "m.jsonl:7", "'nobody'"):
        assert sum(part in line for line in told) == 1
    assert speak("--manifest", lines_of(tmp_path / "b.jsonl", *bad[:2]), "-o", tmp_path / "b") == 2
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_utterance_that_fails_its_guards_is_named_and_ends_with_status_1(speak, tmp_path, capsys):
    assert speak(TEXTS[0], "-o", tmp_path / "a", attempts=1) == 1
    told = "llasa: utterance: never_ended; may not have said 'Call the office.'"
    assert told in capsys.readouterr().err
    assert speak("--stream", TEXTS[0], "-o", tmp_path / "a.wav", attempts=1) == 1
    assert "utterance.0000: never_ended; may not have said" in capsys.readouterr().err


class MiddleFails(Guards):
    def reasons(self, request, *_):
        return ("ended_at_once",) if request.id == "story.0001" else ()


def test_long_text_says_which_words_of_it_were_not_spoken(synthesizer, tmp_path):
    text = "Call the office now. Please bring four apples. We will meet Alice."
    path = speak_long(
        synthesizer, [Request("story", text)], tmp_path, SAMPLING, MiddleFails(attempts=1), 30
    )
    (row,) = read_rows(path)
    assert row["pieces"] == 3 and row["failed_texts"] == {"story.0001": "Please bring four apples."}
    assert failures([row]) == {
        "story.0001": "ended_at_once; may not have said 'Please bring four apples.'"
    }


@pytest.mark.slow
def test_one_text_is_written_to_the_wav_file_that_is_named(speak, tmp_path, capsys):
    assert speak("-o", tmp_path / "new" / "x.wav", TEXTS[0]) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.wav"]
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "x.wav")
    speak("-o", tmp_path / "folder", TEXTS[0])
    same = (tmp_path / "folder/wavs/utterance.wav").read_bytes()
    assert (tmp_path / "new" / "x.wav").read_bytes() == same
    assert speak("-o", tmp_path / "new" / "x.wav", TEXTS[1]) == 2
    assert "x.wav: is there already" in capsys.readouterr().err
    assert speak("--stream", "-o", tmp_path / "new" / "x.wav", TEXTS[1]) == 2
    assert speak("--overwrite", "-o", tmp_path / "new" / "x.wav", TEXTS[1]) == 0
    assert (tmp_path / "new" / "x.wav").read_bytes() != same
    manifest = lines_of(tmp_path / "m.jsonl", {"id": "a", "text": "One."})
    assert speak("--manifest", manifest, "-o", tmp_path / "y.wav") == 2


@pytest.mark.slow
@pytest.mark.parametrize("long", [False, True])
def test_speech_of_another_run_is_overwritten_only_when_asked_for(speak, tmp_path, capsys, long):
    out, cut = tmp_path / "out", ("--chunk-characters", "20") if long else ()
    first, second = (TEXTS[0] + " " + TEXTS[2], TEXTS[1] + " " + TEXTS[3])
    assert speak(*cut, first, "-o", out) == 0
    before = (out / "wavs/utterance.wav").read_bytes()
    assert speak(*cut, first, "-o", out) == 0  # the same run goes on
    capsys.readouterr()
    assert speak(*cut, second, "-o", out) == 2
    assert "of another run; choose another folder, or --overwrite" in capsys.readouterr().err
    assert (out / "wavs/utterance.wav").read_bytes() == before
    assert speak(*cut, second, "--seed", 3, "--overwrite", "-o", out) == 0
    assert (out / "wavs/utterance.wav").read_bytes() != before
    assert read_rows(out / "manifest.jsonl")[0]["text"] == second


def test_recordings_that_were_there_before_are_never_replaced(speak, tmp_path, capsys):
    (tmp_path / "corpus/wavs").mkdir(parents=True)
    (tmp_path / "corpus/wavs/utterance.wav").write_bytes(b"a recording")
    assert speak("Hello.", "-o", tmp_path / "corpus") == 2
    assert "utterance.wav: is there already" in capsys.readouterr().err
    assert (tmp_path / "corpus/wavs/utterance.wav").read_bytes() == b"a recording"


@pytest.mark.slow
def test_speaker_is_refused_where_the_model_has_no_tags(speak, tmp_path, capsys):
    assert speak("Hello.", "--speaker", "nobody", "-o", tmp_path / "a", model="plain") == 2
    assert "--speaker nobody" in capsys.readouterr().err and not (tmp_path / "a").exists()
    path = lines_of(tmp_path / "m.jsonl", {"id": "a", "text": "One.", "speaker": "ann"})
    assert speak("--manifest", path, "-o", tmp_path / "b", model="plain") == 0
    assert "1 requests name a speaker: the model was trained without" in capsys.readouterr().err


def test_speaking_gives_no_warning_of_a_library(synthesizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert next(synthesizer.speak([Request("a", TEXTS[0])], SAMPLING)).generated.steps > 0
