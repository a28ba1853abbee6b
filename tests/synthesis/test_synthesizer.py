import copy
import json
import os
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tiny_models import TEXTS, speaking_llama
from transformers import LlamaConfig, LlamaForCausalLM

from llasa_core import cli
from llasa_core.checkpoint import checkpoint_file, read_settings
from llasa_core.codecs import load_codec
from llasa_core.codecs.fake import FakeCodec
from llasa_core.errors import InputError
from llasa_core.evaluation.utterances import read_utterances
from llasa_core.manifest import (
    Request,
    Utterance,
    length_limit,
    read_manifest,
    read_requests,
    seconds_per_character,
    spoken_characters,
    voice_clips,
    write_manifest,
)
from llasa_core.model import context_limit
from llasa_core.prompts import Voice
from llasa_core.synthesis.batch import synthesize_manifest
from llasa_core.synthesis.guards import Guards
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.synthesis.vllm import VllmEngine
from llasa_core.tokenizer import vocabulary_of

VOICE = Voice("Hello there.", np.arange(20, dtype=np.int32))
SAMPLING = Sampling(temperature=1.0, top_k=20, max_seconds=0.6)


@pytest.fixture(scope="module")
def model(mini_tokenizer):
    return speaking_llama(vocabulary_of(mini_tokenizer))


@pytest.fixture(scope="module")
def synthesizer(model, mini_tokenizer):
    return Synthesizer(model, mini_tokenizer, FakeCodec(), slots=4)


@pytest.fixture(scope="module")
def requests():
    return [Request(f"u{i}", text, seed=i) for i, text in enumerate(TEXTS)]


def by_id(spoken):
    return {one.request.id: one for one in spoken}


@pytest.mark.slow
def test_same_request_gives_the_same_audio_alone_and_beside_others(synthesizer, requests):
    together = by_id(synthesizer.speak(requests, SAMPLING))
    assert set(together) == {request.id for request in requests}
    for request in requests[:3]:
        alone = next(iter(synthesizer.speak([request], SAMPLING)))
        assert alone.generated.codes.tolist() == together[request.id].generated.codes.tolist()
        np.testing.assert_array_equal(alone.wave, together[request.id].wave)
    other = next(iter(synthesizer.speak([replace(requests[0], seed=99)], SAMPLING)))
    assert other.generated.codes.tolist() != together["u0"].generated.codes.tolist()


def test_codes_are_codes_and_every_utterance_says_how_it_ended(synthesizer, requests):
    reasons = set()
    for one in synthesizer.speak(requests, SAMPLING):
        generated = one.generated
        assert generated.codes.dtype == np.int32 and 1 <= len(generated.codes) <= 30  # 0.6 s
        assert generated.codes.min() >= 0 and generated.codes.max() < 4096
        assert generated.ended == (generated.reason == "end")
        assert generated.steps == len(generated.codes) + generated.ended
        assert len(one.wave) == 320 * len(generated.codes) and one.wave.dtype == np.float32
        reasons.add(generated.reason)
    assert reasons == {"end", "length"}


def test_voice_prompt_is_continued_and_cut_off_after_decoding(synthesizer):
    codec = synthesizer.codec
    voice = Voice("Hello there.", np.arange(20, dtype=np.int32))
    request = Request("v", TEXTS[0], voice=voice, seed=3)
    spoken = next(iter(synthesizer.speak([request], SAMPLING)))
    codes = spoken.generated.codes
    whole = codec.decode([np.concatenate([voice.codes, codes])])[0]
    np.testing.assert_array_equal(spoken.wave, whole[20 * 320 :])
    plain = next(iter(synthesizer.speak([replace(request, voice=None)], SAMPLING)))
    assert spoken.prompt_tokens > plain.prompt_tokens + 20
    assert codes.tolist() != plain.generated.codes.tolist()


def test_voice_from_a_file_is_its_codes_at_the_codecs_rate(synthesizer, tmp_path):
    soundfile.write(tmp_path / "voice.wav", 0.1 * np.sin(np.arange(24_000) / 10), 24_000)
    voice = synthesizer.voice(tmp_path / "voice.wav", "Hello there.")
    assert voice.text == "Hello there." and len(voice.codes) == 50
    with pytest.raises(InputError, match="words"):
        synthesizer.voice(tmp_path / "voice.wav", " ")


def test_hidden_end_of_turn_tokens_change_the_probabilities(
    model, mini_tokenizer, synthesizer, requests
):
    masked = Synthesizer(model, mini_tokenizer, FakeCodec(), mask_eot=True)
    plain, hidden = (
        by_id(synthesizer.speak(requests, SAMPLING)),
        by_id(masked.speak(requests, SAMPLING)),
    )
    assert all(
        abs(plain[name].generated.log_prob - hidden[name].generated.log_prob) > 1e-2
        for name in plain
    )


def test_speaker_tags_are_checked_and_left_out_where_the_model_has_none(model, mini_tokenizer):
    request = Request("a", TEXTS[0], speaker="kore")
    tagged = Synthesizer(model, mini_tokenizer, FakeCodec(), speakers=["kore", "puck"])
    untagged = Synthesizer(model, mini_tokenizer, FakeCodec(), speakers=[])
    with_tag = next(iter(tagged.speak([request], SAMPLING)))
    without = next(iter(untagged.speak([request], SAMPLING)))
    assert with_tag.prompt_tokens > without.prompt_tokens
    with pytest.raises(InputError, match=r"unknown speaker 'nobody'; the model knows kore, puck"):
        next(iter(tagged.speak([replace(request, speaker="nobody")], SAMPLING)))


@pytest.mark.slow
def test_names_are_tags_of_a_model_that_may_know_none_only_where_they_are_asked_for(
    model, mini_tokenizer
):
    plain, asked = (
        Synthesizer(model, mini_tokenizer, FakeCodec(), tags=tags) for tags in (None, True)
    )
    requests = [
        Request("a", TEXTS[0], speaker="LJ"),
        Request("b", TEXTS[0]),
        Request("c", TEXTS[0], "LJ", VOICE),
    ]
    (released, bare, _), _ = plain.prepare(requests, SAMPLING)
    assert released.tolist() == bare.tolist() and plain.untagged(requests) == 1
    (tagged, bare, _), _ = asked.prepare(requests, SAMPLING)
    assert len(tagged) > len(bare) and asked.untagged(requests) == 0
    assert plain.settings() != asked.settings()
    knowing = [
        Synthesizer(model, mini_tokenizer, FakeCodec(), speakers=["LJ"], tags=tags)
        for tags in (None, False)
    ]
    ((told, *_), _), ((left_out, *_), _) = (each.prepare(requests, SAMPLING) for each in knowing)
    assert told.tolist() == tagged.tolist() and left_out.tolist() == bare.tolist()
    assert knowing[1].untagged(requests) == 0


@pytest.fixture
def hub(model, mini_tokenizer, tmp_path, monkeypatch):
    """A folder that stands for `me/llasa` in the hub's cache; there is no network."""
    cached = tmp_path / "cache" / "models--me--llasa"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40)
    snapshot = cached / "snapshots" / ("a" * 40)
    model.save_pretrained(snapshot)
    mini_tokenizer.save_pretrained(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    return snapshot


@pytest.mark.slow
def test_model_of_the_hub_has_the_settings_and_guards_that_stand_beside_its_weights(
    hub, synthesizer
):
    with pytest.raises(InputError, match="name the codec"):
        Synthesizer.from_folder("me/llasa")
    bare = Synthesizer.from_folder("me/llasa", "fake")
    assert (
        bare.speakers is None
        and bare.guards == Guards()
        and bare.fingerprint == synthesizer.fingerprint
    )
    card = {"codec": "fake", "date": "01 Jan 2026", "mask_eot": True, "speakers": ["kore"]}
    (hub / "llasa.json").write_text(json.dumps(card))
    Guards(attempts=2).write(hub / "guards.json")
    pushed = Synthesizer.from_folder("me/llasa")
    assert (pushed.prompt.date, pushed.mask_eot, pushed.speakers) == (
        "01 Jan 2026",
        True,
        ("kore",),
    )
    assert pushed.codec.name == "fake" and pushed.guards == Guards(attempts=2)
    (hub / "llasa.json").write_text(json.dumps({"codec": "xcodec2"}))
    with pytest.raises(
        InputError, match=r"llasa\.json: the model was trained on codec xcodec2, not fake"
    ):
        Synthesizer.from_folder("me/llasa", "fake")


def test_check_reads_the_config_of_a_hub_id(hub, capsys):
    assert cli.main(["check", "me/llasa"]) == 1
    assert "config vocab_size: " in capsys.readouterr().out


def test_file_that_the_hub_lacks_is_none_and_a_hub_that_cannot_be_asked_is_an_error(
    hub, monkeypatch
):
    def answering(error):
        def download(*_, **__):
            raise error

        monkeypatch.setattr("transformers.utils.hub.hf_hub_download", download)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    answering(EntryNotFoundError("404"))
    assert checkpoint_file("me/llasa", "llasa.json") is None
    answering(LocalEntryNotFoundError("no connection"))
    assert checkpoint_file("me/llasa", "config.json").samefile(
        hub / "config.json"
    )  # as weights are: what is cached
    with pytest.raises(
        InputError, match=r"me/llasa: cannot be asked for its llasa.json .*HF_HUB_OFFLINE=1"
    ):
        checkpoint_file("me/llasa", "llasa.json")
    assert checkpoint_file("./gone", "llasa.json") is checkpoint_file("/a/b", "llasa.json") is None


@pytest.mark.slow
def test_command_says_once_that_speakers_of_a_manifest_are_no_tags(hub, tmp_path, capsys):
    lines = [{"id": str(i), "text": TEXTS[i], "speaker": "LJ"} for i in range(2)]
    (tmp_path / "lj.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ask = [
        "synthesize",
        "--model",
        "me/llasa",
        "--codec",
        "fake",
        "--attempts",
        "0",
        "--max-seconds",
        "0.2",
    ]
    assert (
        cli.main([*ask, "--manifest", str(tmp_path / "lj.jsonl"), "-o", str(tmp_path / "plain")])
        == 0
    )
    err = capsys.readouterr().err
    assert err.count("llasa: me/llasa: 2 requests name a speaker") == 1 and "--tags" in err
    assert (
        cli.main(
            [
                *ask,
                "--manifest",
                str(tmp_path / "lj.jsonl"),
                "-o",
                str(tmp_path / "asked"),
                "--tags",
            ]
        )
        == 0
    )
    assert cli.main([*ask, TEXTS[0], "--speaker", "LJ", "-o", str(tmp_path / "named")]) == 0
    assert "no tags" not in capsys.readouterr().err
    tags = {
        name: json.loads((tmp_path / name / "settings.json").read_text())["tags"]
        for name in ("plain", "asked")
    }
    assert tags == {"plain": False, "asked": True}


def test_beside_a_voice_prompt_the_speaker_is_a_label_and_no_tag(model, mini_tokenizer):
    synthesizer = Synthesizer(model, mini_tokenizer, FakeCodec(), speakers=["kore"])
    request = Request("a", TEXTS[0], voice=Voice("hello", np.array([5, 6, 7])))
    labelled = replace(request, speaker="nobody")
    plain, with_label = (next(iter(synthesizer.speak([r], SAMPLING))) for r in (request, labelled))
    assert plain.prompt_tokens == with_label.prompt_tokens
    assert np.array_equal(plain.generated.codes, with_label.generated.codes)


@pytest.mark.slow
def test_transcription_is_text_and_the_same_in_a_batch(synthesizer):
    generator = np.random.default_rng(0)
    codes = [generator.integers(0, 4096, length) for length in (5, 40, 17)]
    together = synthesizer.transcribe_codes(codes)
    assert together == [synthesizer.transcribe_codes([row])[0] for row in codes]
    assert all("<|" not in text for text in together) and any(together)


def test_codec_tokenizer_and_model_must_belong_together(model, mini_tokenizer):
    with pytest.raises(InputError, match="codec fake has 64 codes, the tokenizer 4096"):
        Synthesizer(model, mini_tokenizer, FakeCodec(64))
    small = LlamaForCausalLM(
        LlamaConfig(vocab_size=100, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(InputError, match="the model has 100 ids"):
        Synthesizer(small, mini_tokenizer, FakeCodec())


@pytest.mark.slow
def test_checkpoint_folder_speaks_like_the_model_it_was_saved_from(
    model, mini_tokenizer, synthesizer, tmp_path
):
    model.save_pretrained(tmp_path)
    mini_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="name the codec"):
        Synthesizer.from_folder(tmp_path)
    (tmp_path / "llasa.json").write_text(
        json.dumps({"codec": "fake", "speakers": ["kore"], "speaker_tags": 0.0})
    )
    loaded = Synthesizer.from_folder(tmp_path)
    assert loaded.fingerprint == synthesizer.fingerprint and loaded.speakers == ()
    one, other = (
        next(iter(s.speak([Request("a", TEXTS[0])], SAMPLING))) for s in (loaded, synthesizer)
    )
    np.testing.assert_array_equal(one.wave, other.wave)
    (tmp_path / "llasa.json").write_text(json.dumps({"codec": "xcodec2"}))
    with pytest.raises(InputError, match="trained on codec xcodec2, not fake"):
        Synthesizer.from_folder(tmp_path, FakeCodec())
    (tmp_path / "llasa.json").write_text(json.dumps({"speakers": "kore"}))
    with pytest.raises(InputError, match="`speakers` is 'kore', expected a list"):
        read_settings(tmp_path / "llasa.json")


@pytest.mark.slow
def test_checkpoint_of_other_codec_weights_says_which_codec_to_give(
    model, mini_tokenizer, tmp_path
):
    model.save_pretrained(tmp_path)
    mini_tokenizer.save_pretrained(tmp_path)
    tracked, card = load_codec("mini").fingerprint, {"codec": "mini", "codec_fingerprint": "0" * 16}

    def write(**changes):
        (tmp_path / "llasa.json").write_text(json.dumps({**card, **changes}))

    write(codec_folder="artifacts/mine")
    expected = (
        f"trained on codec mini of weights {'0' * 16}, not {tracked}; give that of the folder"
        " artifacts/mine as"
    )
    with pytest.raises(InputError, match=expected):
        Synthesizer.from_folder(tmp_path)
    write()
    with pytest.raises(InputError, match="give that with which its codes were made as codec"):
        Synthesizer.from_folder(tmp_path, load_codec("mini"))
    write(codec_fingerprint=tracked)
    assert Synthesizer.from_folder(tmp_path).codec.fingerprint == tracked
    write(codec_fingerprint=None)
    Synthesizer.from_folder(tmp_path)


def test_text_too_long_for_the_context_is_refused_by_its_id(synthesizer):
    with pytest.raises(InputError, match=r"request long: the prompt takes .* of 256 tokens"):
        next(iter(synthesizer.speak([Request("ok", "Hi."), Request("long", "Red lamp. " * 40)])))


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_killed_manifest_is_continued_and_equals_an_uninterrupted_one(
    synthesizer, requests, tmp_path, monkeypatch
):
    whole = synthesize_manifest(synthesizer, requests, tmp_path / "whole", SAMPLING)
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [line["id"] for line in lines] == [request.id for request in requests]
    assert set(lines[0]) == {
        *("id", "audio", "text", "speaker", "seed", "language"),
        "codes",
        "ended",
        "reason",
        "seconds",
    }
    for line in lines:
        wave, rate = soundfile.read(tmp_path / "whole" / line["audio"], dtype="int16")
        assert (rate, len(wave)) == (16_000, 320 * line["codes"]) and line["seconds"] == len(
            wave
        ) / rate

    done = []

    def stop_after_two(count):
        done.append(count)
        if len(done) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        synthesize_manifest(synthesizer, requests, tmp_path / "killed", SAMPLING, stop_after_two)
    assert not (tmp_path / "killed" / "manifest.jsonl").exists()
    with (tmp_path / "killed" / "finished.jsonl").open("a") as journal:
        journal.write('{"id": "u5", "audio": "wavs/u')  # killed while writing a line
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "wavs").iterdir()}
    spoken = []
    speak = synthesizer.speak
    monkeypatch.setattr(
        synthesizer, "speak", lambda r, *how: (spoken.extend(x.id for x in r), speak(r, *how))[1]
    )
    again = synthesize_manifest(synthesizer, requests, tmp_path / "killed", SAMPLING)
    assert len(kept) == 2 and len(spoken) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert again.read_text() == whole.read_text()
    for line in lines:
        assert (again.parent / line["audio"]).read_bytes() == (
            whole.parent / line["audio"]
        ).read_bytes()
    assert sorted(path.name for path in again.parent.iterdir()) == [
        "finished.jsonl",
        "manifest.jsonl",
        "settings.json",
        "wavs",
    ]

    spoken.clear()
    changed = [replace(requests[0], seed=77), *requests[1:]]
    synthesize_manifest(synthesizer, changed, tmp_path / "killed", SAMPLING)
    assert spoken == ["u0"]
    spoken.clear()
    named = [replace(request, language="de") for request in changed]
    synthesize_manifest(synthesizer, named, tmp_path / "killed", SAMPLING)
    assert len(spoken) == 6 and {item.language for item in read_manifest(again)} == {"de"}


def test_reference_speaker_stays_with_speech_that_has_no_tag(synthesizer, tmp_path):
    plain = Request("a", "Call the office.")
    named = replace(plain, id="b", reference_speaker="ann")
    path = synthesize_manifest(synthesizer, [plain, named], tmp_path, SAMPLING)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert "reference_speaker" not in rows[0] and rows[1]["reference_speaker"] == "ann"
    assert rows[1]["speaker"] == "" and synthesizer.tag(named) is None
    assert (tmp_path / "wavs/a.wav").read_bytes() == (tmp_path / "wavs/b.wav").read_bytes()
    assert [row["speaker"] for row in read_utterances(path)] == ["", "ann"]


@pytest.mark.slow
def test_sigkill_at_any_moment_loses_and_repeats_nothing(synthesizer, tmp_path):
    requests = [Request(f"u{i}", text, seed=i) for i, text in enumerate(TEXTS * 4)]
    guards = Guards(attempts=3, at_once=6, silence_seconds=9.0)
    whole = synthesize_manifest(synthesizer, requests, tmp_path / "whole", SAMPLING, guards=guards)
    out, generator, stamps, kills = tmp_path / "killed", np.random.default_rng(0), {}, 0
    journal = out / "finished.jsonl"

    def finished():
        return journal.read_text().split("\n")[:-1] if journal.exists() else []

    while not (out / "manifest.jsonl").exists():
        child = os.fork()
        if child == 0:
            status = 1
            try:
                synthesize_manifest(synthesizer, requests, out, SAMPLING, guards=guards)
                status = 0
            finally:
                os._exit(status)
        enough, gone = len(finished()) + generator.integers(1, 6), 0
        while not gone and (kills == 4 or len(finished()) < enough):
            time.sleep(0.002)
            gone, status = os.waitpid(child, os.WNOHANG)
        if not gone:
            time.sleep(generator.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            kills += 1
            _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
        for line in finished():
            name = json.loads(line)["audio"]
            stamps.setdefault(name, (out / name).stat().st_mtime_ns)
    assert kills >= 2 and len(stamps) > 2
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    assert (out / "manifest.jsonl").read_bytes() == whole.read_bytes()
    for line in whole.read_text().splitlines():
        name = json.loads(line)["audio"]
        assert (out / name).read_bytes() == (whole.parent / name).read_bytes()


def test_folder_of_other_settings_or_other_origin_is_left_alone(synthesizer, requests, tmp_path):
    synthesize_manifest(synthesizer, requests[:1], tmp_path, SAMPLING)
    with pytest.raises(InputError, match=r"made with top_k 20, not 5"):
        synthesize_manifest(synthesizer, requests[:1], tmp_path, replace(SAMPLING, top_k=5))
    (tmp_path / "settings.json").unlink()
    with pytest.raises(InputError, match=r"no settings\.json next to it"):
        synthesize_manifest(synthesizer, requests[:1], tmp_path, SAMPLING)
    with pytest.raises(InputError, match="'u0' is there more than once"):
        synthesize_manifest(synthesizer, [requests[0], requests[0]], tmp_path / "new", SAMPLING)
    with pytest.raises(InputError, match="request long"):
        synthesize_manifest(
            synthesizer,
            [requests[0], Request("long", "Red lamp. " * 40)],
            tmp_path / "new",
            SAMPLING,
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"id": "half \ud800"}, "id must be text"),
        ({"id": ""}, "id must be text"),
        ({"text": " "}, "text is empty"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"speaker": 3}, "speaker"),
        ({"reference_speaker": 3}, "reference_speaker"),
        ({"language": 3}, "language"),
    ],
)
def test_request_is_checked_when_it_is_made(wrong, message):
    with pytest.raises(InputError, match=message):
        Request(**({"id": "a", "text": "Hello."} | wrong))


def test_requests_are_read_from_lines_and_each_voice_is_made_once(tmp_path):
    made = []

    def voice(path, text):
        made.append((path, text))
        return Voice(text, np.zeros(3, np.int32))

    lines = [
        {"id": "a", "text": "One.", "voice": "v.wav", "voice_text": "Hello.", "seed": 4},
        {"id": "b", "text": "Two.", "voice": "v.wav", "voice_text": "Hello."},
        {
            "id": "c",
            "text": "Three.",
            "audio": "wavs/c.wav",
            "speaker": "",
            "language": "fr",
            "seconds": 1.0,
        },
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    requests = read_requests(path, voice, seed=9)
    assert made == [(tmp_path / "v.wav", "Hello.")]
    assert requests[0].voice is requests[1].voice
    assert [(r.id, r.seed, r.speaker) for r in requests] == [
        ("a", 4, None),
        ("b", 9, None),
        ("c", 9, None),
    ]
    assert [request.language for request in requests] == ["en", "en", "fr"]
    assert [request.language for request in read_requests(path, voice, language="zh")] == [
        "zh",
        "zh",
        "fr",
    ]


def test_requests_may_be_a_text_file_or_have_numbers_for_ids(tmp_path):
    (tmp_path / "texts.txt").write_text("\ufeffOne sentence.\r\n\r\n Another one. \n")
    found = read_requests(tmp_path / "texts.txt", seed=3)
    expected = [("0001", "One sentence.", 3), ("0003", "Another one.", 3)]
    assert [(one.id, one.text, one.seed) for one in found] == expected
    (tmp_path / "r.jsonl").write_text('{"id": 7, "text": "One.", "speaker": 12}\n')
    (one,) = read_requests(tmp_path / "r.jsonl")
    assert (one.id, one.speaker) == ("7", "12")


def test_speech_of_any_id_has_a_file_of_its_own(synthesizer, tmp_path):
    ids = ["../up", "a/b", "a_b", "it's (1)", "y" * 300]
    requests = [Request(id, "Hello.") for id in ids]
    sampling = replace(SAMPLING, max_seconds=0.1)
    synthesize_manifest(synthesizer, requests, tmp_path / "out", sampling)
    found = read_manifest(tmp_path / "out/manifest.jsonl")
    assert [one.id for one in found] == ids
    assert len({one.audio for one in found if one.audio.is_file()}) == len(ids)
    assert {one.audio.parent for one in found} == {tmp_path / "out/wavs"}


def test_voice_of_a_speaker_is_its_first_clip_of_that_length_and_nobody_goes_without(tmp_path):
    spoken = [
        ("a0", "ann", 1.9),
        ("a1", "ann", 2.0),
        ("a2", "ann", 3.0),
        ("b0", "bob", 4.1),
        ("c0", "cy", None),
    ]
    spoken += [("b1", "bob", 4.0)]
    write_manifest(
        tmp_path / "m.jsonl",
        [Utterance(i, f"{i}.wav", "Hi.", who, seconds=s) for i, who, s in spoken],
    )
    clips = voice_clips(tmp_path / "m.jsonl", ["bob", "ann", "bob"])
    assert {speaker: clip.id for speaker, clip in clips.items()} == {"ann": "a1", "bob": "b1"}
    with pytest.raises(
        InputError, match=r"m\.jsonl: no recording of 2 to 4 s by speaker 'cy' \(2 of 3 speakers"
    ):
        voice_clips(tmp_path / "m.jsonl", ["ann", "cy", "dan"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "requests.jsonl:2: not JSON"),
        ("[1]", "requests.jsonl:2: a JSON list, expected requests"),
        ('{"id": "b"}', "requests.jsonl:2: the key 'text' is missing"),
        ('{"id": "b", "text": ""}', "requests.jsonl:2: request b: the text is empty"),
        ('{"id": "b", "text": "x", "sped": 1}', "requests.jsonl:2: unknown key 'sped'"),
        ('{"id": "b", "text": "x", "voice": "v.wav"}', "requests.jsonl:2: a voice needs its words"),
    ],
)
def test_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"id": "a", "text": "One."}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        read_requests(path)


def test_length_bound_grows_with_what_is_read_aloud():
    assert spoken_characters("ab c") == 4
    assert spoken_characters("42%") == 15
    assert spoken_characters("你好") == 8
    assert length_limit("x" * 100, 0.08, 2.0, 1.0) == 850  # 50 * (1 + 2 * 0.08 * 100)
    assert seconds_per_character(["ab", "abcd"], [0.2, 0.8], quantile=1.0) == pytest.approx(0.2)


def test_the_last_value_of_a_parameter_changes_the_fingerprint(model, synthesizer):
    before = synthesizer.fingerprint
    changed = copy.deepcopy(synthesizer)
    del changed.__dict__["fingerprint"]
    with torch.no_grad():
        changed.model.get_input_embeddings().weight[-1, -1] += 1e-3
    assert changed.fingerprint != before


def test_another_codec_of_the_same_name_is_refused_in_a_begun_folder(synthesizer, tmp_path):
    synthesize_manifest(synthesizer, [Request("a", TEXTS[0])], tmp_path, SAMPLING)
    other = copy.copy(synthesizer)
    other.codec = copy.copy(synthesizer.codec)
    other.codec.fingerprint = "fedcba9876543210"
    with pytest.raises(InputError, match="codec_fingerprint"):
        synthesize_manifest(other, [Request("a", TEXTS[0])], tmp_path, SAMPLING)


@pytest.mark.slow
def test_speech_stays_within_the_context_of_the_training(model, mini_tokenizer, tmp_path):
    """Every Llama 3 allows 131,072 positions; past its training's context a model is on its own."""
    model.save_pretrained(tmp_path)
    mini_tokenizer.save_pretrained(tmp_path)
    card = {"codec": "fake", "training": {"context": 200}}
    (tmp_path / "llasa.json").write_text(json.dumps(card))
    trained = Synthesizer.from_folder(tmp_path)
    assert trained.context == 200
    (tmp_path / "llasa.json").write_text(json.dumps(card | {"context": 150}))
    assert Synthesizer.from_folder(tmp_path).context == 150
    asked = Synthesizer.from_folder(tmp_path, context=110)
    request = Request("a", TEXTS[0])
    for synthesizer in (trained, asked):
        prompts, limits = synthesizer.prepare([request], Sampling(max_seconds=100))
        assert len(prompts[0]) + limits[0] == synthesizer.context
    assert Synthesizer.from_folder(tmp_path, context=256).context == 256
    with pytest.raises(InputError, match="context: 300, expected 1 to the model's 256"):
        Synthesizer.from_folder(tmp_path, context=300)


def test_a_released_checkpoint_speaks_within_2048_tokens():
    assert context_limit(131_072, 193_800) == 2048
    assert context_limit(131_072, 193_800, trained=4096) == 4096  # its own llasa.json says so
    assert context_limit(131_072, 193_800, asked=8000) == 8000
    assert context_limit(1024, 193_800) == 1024 and context_limit(131_072, 50_000) == 131_072
    assert context_limit(1024, 50_000, trained=2048) == 1024


def test_vllm_reserves_the_context_of_the_training(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    (tmp_path / "llasa.json").write_text(json.dumps({"training": {"context": 200}}))
    opened = {}
    fake = SimpleNamespace(SamplingParams=dict, LLM=lambda **options: opened.update(options))
    monkeypatch.setitem(sys.modules, "vllm", fake)
    for context, expected in ((None, 200), (100, 100)):
        VllmEngine(str(tmp_path), context=context)
        assert opened["max_model_len"] == expected
