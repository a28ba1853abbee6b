"""Corpora of a few seconds, written by the tests themselves, through readers, checks, splits and
prepare.
"""

import io
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from llasa_core.audio import decode_audio, load_audio
from llasa_core.data.corpora.prepare import Limits, check_utterance, hold_out, prepare
from llasa_core.data.corpora.readers import read_corpus
from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, file_name, read_manifest, split_of, write_manifest

SPEECH = (np.random.default_rng(0).normal(size=16_000) * 0.1).astype(
    np.float32
)  # one second that passes for speech


def write(path, wave=SPEECH, rate=16_000, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


def tone(rate, seconds=1.0, frequency=440.0):
    return 0.3 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


# Audio


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path, rate, channels):
    path = write(tmp_path / "a.wav", np.repeat(tone(rate)[:, None], channels, axis=1), rate)
    wave = load_audio(path)
    assert wave.dtype == np.float32 and wave.ndim == 1 and abs(len(wave) - 16_000) <= 1
    inner = slice(2_000, 14_000)
    np.testing.assert_allclose(wave[inner], tone(16_000)[: len(wave)][inner], atol=2e-3)


def test_channels_are_averaged(tmp_path):
    both = np.stack([np.full(16_000, 0.5), np.full(16_000, -0.25)], axis=1)
    np.testing.assert_allclose(load_audio(write(tmp_path / "a.wav", both, subtype="FLOAT")), 0.125)


def test_16_bit_samples_are_exact(tmp_path):
    samples = np.array([0, 1, -1, 32767, -32768], np.int16)
    np.testing.assert_array_equal(load_audio(write(tmp_path / "a.flac", samples)), samples / 32768)


def test_bytes_of_a_file_are_audio_too(tmp_path):
    path = write(tmp_path / "a.wav", tone(24_000), 24_000)
    np.testing.assert_array_equal(load_audio(path.read_bytes()), load_audio(path))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.wav", None, "none.wav: no such audio file"),
        ("text.wav", b"this is no audio", "text.wav: cannot be read as audio"),
        ("nothing.wav", b"", "nothing.wav: cannot be read as audio"),
        ("empty.wav", np.zeros(0), "empty.wav: no samples"),
        ("nan.wav", np.array([0.0, np.nan, 0.0]), "nan.wav: holds NaN"),
        ("inf.wav", np.array([0.0, np.inf, 0.0]), "inf.wav: holds NaN or infinite"),
    ],
)
def test_bad_audio_is_named_in_one_line(tmp_path, name, content, expected):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write(path, content, subtype="FLOAT")
    with pytest.raises(InputError) as raised:
        load_audio(path)
    assert expected in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_file_that_was_cut_off_is_refused(tmp_path, suffix):
    whole = write(tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"cut.{suffix}: c"):
        load_audio(tmp_path / f"cut.{suffix}")


@pytest.mark.parametrize("kind", ["WAV", "MP3", "OGG", "AIFF", "AU"])
def test_recording_that_was_cut_off_is_told_as_such(kind):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.tile(SPEECH, 3), 16_000, format=kind)
    data = buffer.getvalue()
    assert decode_audio(data)[1] is None
    assert decode_audio(data[: len(data) * 42 // 100])[1] == "cut_off"


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "AIFF", "CAF", "MP3"])
def test_what_libsndfile_reads_is_read_and_other_formats_need_ffmpeg(tmp_path, kind):
    soundfile.write(tmp_path / "a", SPEECH, 16_000, format=kind)
    assert abs(len(load_audio(tmp_path / "a")) - 16_000) <= 1
    mp4, wma = b"\0\0\0\x20ftypM4A \0\0\0\0", bytes.fromhex("3026b2758e66cf11a6d900aa")
    assert {decode_audio(mp4)[1], decode_audio(wma)[1]} == {"needs_ffmpeg"}
    (tmp_path / "b.m4a").write_bytes(b"anything")
    with pytest.raises(InputError, match=r"b\.m4a: unreadable: needs ffmpeg"):
        load_audio(tmp_path / "b.m4a")


def test_decoding_stops_at_the_limit(monkeypatch):
    buffer, blocks = io.BytesIO(), []
    soundfile.write(buffer, np.zeros(16_000 * 600, np.int16), 16_000, format="FLAC")
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, *given, **named: blocks.append(read(self, *given, **named)) or blocks[-1],
    )
    wave, reason = decode_audio(buffer.getvalue(), most_seconds=31)
    assert reason is None and len(wave) == 31 * 16_000 + 1 == sum(map(len, blocks))
    assert check_utterance(Utterance("a", b"", "words"), wave, Limits()) == "too_long"


# Manifests


def test_manifest_comes_back_as_it_was_written(tmp_path):
    utterances = [
        Utterance(
            "a", tmp_path / "wavs/a.wav", 'He said "ah", 你好\u2028', "kore", "en", 1.25, "dev"
        ),
        Utterance("b", tmp_path.parent / "b.wav", "b"),
    ]
    write_manifest(tmp_path / "m.jsonl", utterances)
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().split("\n")[:-1]]
    assert [line["audio"] for line in lines] == ["wavs/a.wav", "../b.wav"]
    assert read_manifest(tmp_path / "m.jsonl") == utterances


def test_manifest_moves_with_its_audio(tmp_path):
    write(tmp_path / "here/wavs/a.wav")
    write_manifest(tmp_path / "here/m.jsonl", [Utterance("a", tmp_path / "here/wavs/a.wav", "a")])
    (tmp_path / "here").rename(tmp_path / "there")
    assert read_manifest(tmp_path / "there/m.jsonl")[0].audio == tmp_path / "there/wavs/a.wav"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "m.jsonl:2: not JSON"),
        ("[]", "m.jsonl:2: a JSON list, expected a JSON object with id, audio, text"),
        ('{"id": "b", "text": "b"}', "m.jsonl:2: the key 'audio' is missing"),
        ('{"id": 7, "audio": "b", "text": "b"}', "m.jsonl:2: id is 7, expected a string"),
        ('{"id": "b", "audio": "b", "text": null}', "m.jsonl:2: text is null, expected a string"),
        ('{"id": "", "audio": "b", "text": "b"}', "m.jsonl:2: id is '', expected a name"),
        ('{"id": "b", "audio": "b", "text": "b", "speaker": 3}', "m.jsonl:2: speaker is 3"),
        (
            '{"id": "b", "audio": "b", "text": "b", "seconds": "1"}',
            'm.jsonl:2: seconds is "1", expected a number',
        ),
        ('{"id": "b", "audio": "b", "text": "b", "seconds": NaN}', "m.jsonl:2: seconds is NaN"),
        (
            '{"id": "b", "audio": "b", "text": "b", "split": "eval"}',
            "m.jsonl:2: split is 'eval', expected train",
        ),
        ('{"id": "a", "audio": "b", "text": "b"}', "m.jsonl:2: duplicate id 'a' (first on line 1)"),
        (b"\xff", "m.jsonl:2: byte 0 is no UTF-8"),
    ],
)
def test_malformed_manifest_line_is_named(tmp_path, line, expected):
    line = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "m.jsonl").write_bytes(
        b'{"id": "a", "audio": "a.wav", "text": "a"}\n' + line + b"\n"
    )
    with pytest.raises(InputError) as raised:
        read_manifest(tmp_path / "m.jsonl")
    assert expected in str(raised.value) and "\n" not in str(raised.value)


def test_missing_manifest_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: No such file"):
        read_manifest(tmp_path / "none.jsonl")


# Splits


def test_split_is_the_hash_of_the_id():
    ids = [f"utterance-{number}" for number in range(4000)]
    splits = [split_of(id, (0.8, 0.15, 0.05)) for id in ids]
    assert (
        split_of("a") == "train" and split_of("a", (0, 1, 0)) == "dev"
    )  # sha256("a") starts with ca
    assert abs(splits.count("dev") - 600) < 80 and abs(splits.count("test") - 200) < 50
    tests = {id for id, split in zip(ids, splits, strict=True) if split == "test"}
    assert all(split_of(id, (0.5, 0.45, 0.05)) == "test" for id in tests)


@pytest.mark.parametrize("fractions", [(0.9, 0.2, 0.1), (1.1, -0.1, 0.0), (1.0, 0.0)])
def test_shares_that_are_none_are_refused(fractions):
    with pytest.raises(InputError, match="split fractions"):
        split_of("a", fractions)


# Checks


def reason_of(wave=SPEECH, text="some words", **limits):
    return check_utterance(
        Utterance("a", "a.wav", text), np.asarray(wave, np.float32), Limits(**limits)
    )


@pytest.mark.parametrize(
    ("wave", "reason"),
    [
        (SPEECH, None),
        ([], "empty"),
        (np.where(np.arange(16_000) == 9, np.nan, SPEECH), "not_finite"),
        (np.where(np.arange(16_000) == 9, np.inf, SPEECH), "not_finite"),
        (SPEECH[:4_799], "too_short"),
        (SPEECH[:4_800], None),
        (np.tile(SPEECH, 31), "too_long"),
        (np.tile(SPEECH, 30), None),
        (np.zeros(16_000), "silent"),
        (np.ones(16_000), "silent"),
        (SPEECH * 1e-4, "silent"),
        (np.where(np.arange(16_000) == 9, 0.9, 0.0), "silent"),
        (np.where(np.arange(16_000) < 2_000, SPEECH, 0.0), None),
        (SPEECH * 32_768, "integer_scale"),
        (np.concatenate([SPEECH, np.zeros(15 * 16_000), SPEECH]), "long_silence"),
        (np.concatenate([SPEECH, SPEECH[:8_000].repeat(30) * 1e-3, SPEECH]), "long_silence"),
        (np.concatenate([SPEECH, np.zeros(4 * 16_000), SPEECH]), None),
        (np.clip(SPEECH * 12, -1, 1), "clipped"),
        (np.clip(SPEECH * 5, -1, 1), None),
    ],
)
def test_audio_that_cannot_be_training_data_is_told_by_its_reason(wave, reason):
    assert reason_of(wave) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hello.", None),
        ("你好", None),
        ("42", None),
        ("", "textless"),
        (" \t\n", "textless"),
        ("... -- !?", "textless"),
        ("[tones]", "textless"),
        ("<noise> *laughs*", "textless"),
        ("[tones] hello", None),
        ("a < b and c > d", None),
        ("hello <|eot_id|>", "wrong_characters"),
        ("bad \N{REPLACEMENT CHARACTER} byte", "wrong_characters"),
        ("bell \x07", "wrong_characters"),
        ("half \ud800 pair", "wrong_characters"),
    ],
)
def test_text_that_cannot_be_spoken_is_told_by_its_reason(text, reason):
    assert reason_of(text=text) == reason


def test_text_of_200_characters_in_one_second_is_another_clips():
    assert reason_of(text="word " * 40) == "text_too_long"
    assert reason_of(text="word " * 8) is None


def test_ids_may_be_anything_and_files_never_collide(tmp_path):
    ids = ["a (1)", "a [1]", "a_1", "it's 50% #2 & more", "caf\u00e9", "cafe\u0301", "x" * 5_000]
    ids += ["../up", "a/b", "a\\b", ".", "x" * 4_999, "\u4f60 \u597d", "?", "!"]
    wav = write(tmp_path / "in/a.wav", tone(24_000), 24_000)
    corpus = [Utterance(id, wav, "some words") for id in ids]
    report = prepare(corpus, tmp_path / "out", split_fractions=(1, 0, 0))
    found = read_manifest(tmp_path / "out/train.jsonl")
    assert report["dropped"] == {} and [one.id for one in found] == ids
    assert len({str(one.audio).casefold() for one in found}) == len(ids)
    assert {one.audio.parent for one in found} == {tmp_path / "out/wavs"}
    assert all(one.audio.is_file() and file_name(one.id) == one.audio.stem for one in found)
    assert file_name("LJ001-0001.b") == "LJ001-0001.b"


def test_names_that_cannot_be_written_are_dropped_and_counted(tmp_path):
    wav = write(tmp_path / "in/a.wav")
    corpus = [Utterance("good", wav, "some words")]
    corpus += [Utterance("half \ud800", wav, "some words"), Utterance("", wav, "some words")]
    corpus += [Utterance("s", wav, "some words", speaker="\udfff")]
    corpus += [Utterance("l", wav, "some words", language="\udfff")]
    corpus += [Utterance("p1", tmp_path / ("long" * 99 + ".wav"), "some words")]
    corpus += [Utterance("p2", tmp_path / "\ud800.wav", "some words")]
    corpus += [Utterance("p3", "a\0.wav", "some words"), Utterance("t", wav, "half \ud800")]
    report = prepare(corpus, tmp_path / "out")
    reasons = {"bad_id": 2, "bad_language": 1, "bad_path": 3, "bad_speaker": 1}
    assert report["dropped"] == {**reasons, "wrong_characters": 1} and report["kept"] == 1
    assert report["first_dropped"]["bad_path"].endswith("long.wav")


@pytest.mark.slow
def test_small_corpus_has_held_out_utterances(tmp_path):
    corpus = [replace(one, split="train") for one in good_corpus(tmp_path / "in", 60)]
    before = prepare(corpus, tmp_path / "plain")["splits"]
    assert (before["dev"]["utterances"], before["test"]["utterances"]) == (0, 0)
    splits = prepare(corpus, tmp_path / "filled", min_held_out=20)["splits"]
    assert [splits[name]["utterances"] for name in ("train", "dev", "test")] == [48, 6, 6]
    splits = prepare(corpus, tmp_path / "none", None, (1, 0, 0), min_held_out=20)["splits"]
    assert splits["train"]["utterances"] == 60
    hashed = [Utterance(str(number), "a.wav", "words") for number in range(400)]
    hashed = [replace(one, split=split_of(one.id)) for one in hashed]
    filled = hold_out(hashed, (0.96, 0.02, 0.02), 20)
    assert [one.id for one in filled] == [one.id for one in hashed]
    assert sum(one.split == "dev" for one in filled) == 20
    pairs = zip(hashed, filled, strict=True)
    assert all(new.split == old.split for old, new in pairs if old.split != "train")


def test_limits_are_settings():
    assert reason_of(text="[tones]", annotations=False) is None
    assert reason_of(text="naïve", characters="[a-zA-Z ]") == "wrong_characters"
    assert reason_of(text="naive", characters="[a-zA-Z ]") is None
    assert reason_of(min_seconds=1.5) == "too_short"
    with pytest.raises(InputError, match="min_seconds"):
        Limits(min_seconds=3, max_seconds=2)
    with pytest.raises(InputError, match="no regular expression"):
        Limits(characters="[a-")


# Prepare


def bad_corpus(folder):
    """One good utterance and one of each kind that is dropped, with its reason as its id where that
    may be.
    """
    nan = np.where(np.arange(16_000) == 9, np.nan, SPEECH)
    waves = {
        "good": SPEECH,
        "empty": SPEECH[:0],
        "not_finite": nan,
        "silent": SPEECH * 0,
        "too_short": SPEECH[:99],
    }
    waves |= {"too_long": np.tile(SPEECH, 31), "textless": SPEECH, "wrong_characters": SPEECH}
    texts = {"textless": "...", "wrong_characters": "<|s_7|> a"}
    utterances = [
        Utterance(
            name,
            write(folder / f"{name}.wav", wave, subtype="FLOAT"),
            texts.get(name, "some words"),
        )
        for name, wave in waves.items()
    ]
    (folder / "unreadable.wav").write_bytes(b"RIFF")
    utterances.append(Utterance("unreadable", folder / "unreadable.wav", "some words"))
    utterances.append(Utterance("missing_audio", folder / "none.wav", "some words"))
    utterances.append(Utterance("good", folder / "good.wav", "again"))
    utterances.append(Utterance("../up", folder / "good.wav", "some words"))
    return utterances


REASONS = [
    "empty",
    "not_finite",
    "silent",
    "too_short",
    "too_long",
    "textless",
    "wrong_characters",
    "unreadable",
]


def test_bad_items_are_dropped_counted_and_listed(tmp_path):
    report = prepare(bad_corpus(tmp_path / "in"), tmp_path / "out")
    expected = [{"id": reason, "reason": reason} for reason in [*REASONS, "missing_audio"]]
    expected += [{"id": "good", "reason": "duplicate_id"}]
    assert report["dropped_utterances"] == expected
    assert report["dropped"] == {line["reason"]: 1 for line in expected}
    assert (report["seen"], report["kept"]) == (12, 2)
    assert Path(report["first_dropped"]["silent"]).resolve() == tmp_path / "in/silent.wav"
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    manifests = [
        read_manifest(tmp_path / f"out/{split}.jsonl") for split in ("train", "dev", "test")
    ]
    assert [[(u.id, u.text) for u in manifest] for manifest in manifests] == [
        [("good", "some words"), ("../up", "some words")],
        [],
        [],
    ]
    names = sorted(path.name for path in (tmp_path / "out/wavs").iterdir())
    assert names == ["good.wav", f"{file_name('../up')}.wav"]


def good_corpus(folder, count=12):
    return [
        Utterance(
            f"u{number}",
            write(folder / f"u{number}.flac", tone(24_000, 0.5 + number / 20), 24_000),
            f"text {number}",
        )
        for number in range(count)
    ]


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_audio_is_converted_to_16_khz_mono_16_bit(tmp_path):
    prepare(good_corpus(tmp_path / "in", 1), tmp_path / "out", split_fractions=(1, 0, 0))
    [utterance] = read_manifest(tmp_path / "out/train.jsonl")
    info = soundfile.info(utterance.audio)
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (
        16_000,
        1,
        "PCM_16",
        8_000,
    )
    assert (utterance.seconds, utterance.split) == (0.5, "train")
    assert json.loads((tmp_path / "out/train.jsonl").read_text())["audio"] == "wavs/u0.wav"


def test_audio_that_is_ready_stays_where_it_is(tmp_path):
    ready = write(tmp_path / "in/a.flac")
    prepare([Utterance("a", ready, "words")], tmp_path / "out", split_fractions=(1, 0, 0))
    assert read_manifest(tmp_path / "out/train.jsonl")[0].audio == ready
    assert not any((tmp_path / "out/wavs").iterdir())


@pytest.mark.slow
def test_processes_change_nothing(tmp_path):
    corpus = good_corpus(tmp_path / "in") + bad_corpus(tmp_path / "bad")
    alone = prepare(corpus, tmp_path / "alone/out")
    assert prepare(corpus, tmp_path / "both/out", jobs=2) == alone
    assert files_of(tmp_path / "both") == files_of(tmp_path / "alone")


@pytest.mark.slow
def test_stopped_run_goes_on_and_ends_as_if_never_stopped(tmp_path):
    corpus = good_corpus(tmp_path / "in", 70) + bad_corpus(tmp_path / "bad")

    def stop(done):
        stop.count = getattr(stop, "count", 0) + done
        if stop.count == 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, tmp_path / "a/out", progress=stop)
    assert (
        not (tmp_path / "a/out/report.json").exists()
        and not (tmp_path / "a/out/train.jsonl").exists()
    )
    with (tmp_path / "a/out/finished.jsonl").open("a") as journal:
        journal.write('{"id": "torn')
    before = (tmp_path / "a/out/wavs/u3.wav").stat().st_mtime_ns
    report = prepare(corpus, tmp_path / "a/out")
    assert (tmp_path / "a/out/wavs/u3.wav").stat().st_mtime_ns == before
    assert prepare(corpus, tmp_path / "b/out") == report
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_what_has_changed_since_is_prepared_again(tmp_path):
    corpus = good_corpus(tmp_path / "in", 2)
    assert prepare(corpus, tmp_path / "out")["kept"] == 2
    write(corpus[0].audio, np.zeros(24_000), 24_000)
    corpus[1] = replace(corpus[1], text="?")
    with pytest.raises(
        InputError,
        match=r"report\.json: no utterance is left \(silent 1, first .*u0.flac; textless 1, first ",
    ):
        prepare(corpus, tmp_path / "out")
    assert not (tmp_path / "out/train.jsonl").exists()
    assert (
        prepare(good_corpus(tmp_path / "in", 2), tmp_path / "out", Limits(min_seconds=0.52))["kept"]
        == 1
    )


def test_split_of_the_corpus_and_kept_out_texts_come_before_the_hash(tmp_path):
    corpus = [replace(utterance, split="dev") for utterance in good_corpus(tmp_path / "in", 3)]
    report = prepare(corpus, tmp_path / "out", keep_out=lambda text: text.endswith("1"))
    assert {name: part["utterances"] for name, part in report["splits"].items()} == {
        "train": 0,
        "dev": 2,
        "test": 1,
    }
    assert [utterance.id for utterance in read_manifest(tmp_path / "out/test.jsonl")] == ["u1"]


# Readers


def summary(utterances):
    return [(u.id, u.audio, u.text, u.speaker, u.split) for u in utterances]


def test_ljspeech_layout(tmp_path):
    write(tmp_path / "wavs/LJ1.wav")
    write(tmp_path / "wavs/LJ2.flac")
    (tmp_path / "metadata.csv").write_text(
        'LJ1|In 1914|In nineteen fourteen\nLJ2|He said "no"\n\nLJ3|not there|\n'
    )
    expected = [
        ("LJ1", tmp_path / "wavs/LJ1.wav", "In nineteen fourteen", "linda", None),
        ("LJ2", tmp_path / "wavs/LJ2.flac", 'He said "no"', "linda", None),
        ("LJ3", tmp_path / "wavs/LJ3.wav", "not there", "linda", None),
    ]
    assert summary(read_corpus(tmp_path, speaker="linda")) == expected
    report = prepare(read_corpus(tmp_path), tmp_path / "out")
    assert (report["kept"], report["dropped"]) == (2, {"missing_audio": 1})


@pytest.mark.parametrize("line", ["LJ2", "a|b|c|d"])
def test_malformed_ljspeech_line_is_named(tmp_path, line):
    (tmp_path / "metadata.csv").write_text(f"LJ1|text\n{line}\n")
    with pytest.raises(InputError, match=r"metadata\.csv:2: .* expected id\|text"):
        list(read_corpus(tmp_path))


def test_missing_metadata_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no list in it, expected a file \*\.csv"):
        list(read_corpus(tmp_path, "ljspeech"))


def test_libritts_tree(tmp_path):
    chapter = tmp_path / "LibriTTS/train-clean-100/19/198"
    write(chapter / "19_198_0.wav")
    write(chapter / "19_198_2.wav")
    (chapter / "19_198_0.original.txt").write_text("Mr. A")
    (chapter / "19_198_0.normalized.txt").write_text("Mister A\n")
    (chapter / "19_198_1.normalized.txt").write_text("No audio.")
    assert summary(read_corpus(tmp_path / "LibriTTS")) == [
        ("19_198_0", chapter / "19_198_0.wav", "Mister A", "19", "train"),
        ("19_198_1", chapter / "19_198_1.wav", "No audio.", "19", "train"),
        ("19_198_2", chapter / "19_198_2.wav", "", "19", "train"),
    ]


def test_librispeech_tree(tmp_path):
    chapter = tmp_path / "dev-clean/84/121"
    write(chapter / "84-121-0.flac")
    (chapter / "84-121.trans.txt").write_text("84-121-0 GO DO YOU HEAR\n")
    assert summary(read_corpus(tmp_path)) == [
        ("84-121-0", chapter / "84-121-0.flac", "GO DO YOU HEAR", "84", "dev")
    ]
    (chapter / "84-121.trans.txt").write_text("84-121-0 GO DO YOU HEAR\n84-121-1\n")
    with pytest.raises(InputError, match=r"84-121\.trans\.txt:2: "):
        list(read_corpus(tmp_path))


def test_json_lines_and_a_prepared_folder(tmp_path):
    prepare(good_corpus(tmp_path / "in", 3), tmp_path / "out", split_fractions=(1, 0, 0))
    one = list(read_corpus(tmp_path / "out/train.jsonl", language="de"))
    assert [u.language for u in one] == ["de"] * 3
    assert summary(read_corpus(tmp_path / "out")) == summary(one)


def fake_datasets(rows):
    """As much of the package `datasets` as the reader uses."""

    class Audio:
        def __init__(self, decode=True):
            self.decode = decode

    class Dataset:
        column_names, features = list(rows[0]), {"audio": Audio()}

        def cast_column(self, name, feature):
            assert name == "audio" and not feature.decode
            return self

        def __iter__(self):
            return iter(rows)

    class DatasetDict(dict):
        pass

    module = types.ModuleType("datasets")
    module.Audio, module.DatasetDict = Audio, DatasetDict
    module.load_from_disk = module.load_dataset = lambda source: DatasetDict(
        train=Dataset(), validation=Dataset()
    )
    return module


def encoded(rate=22_050):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(rate), rate, format="WAV")
    return buffer.getvalue()


def test_hugging_face_dataset(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav")
    rows = [{"audio": {"bytes": encoded(), "path": "x.wav"}, "sentence": "one", "speaker_id": 7}]
    rows += [{"audio": {"bytes": None, "path": str(path)}, "sentence": None, "speaker_id": None}]
    monkeypatch.setitem(sys.modules, "datasets", fake_datasets(rows))
    found = list(read_corpus("someone/something"))
    assert [u.id for u in found] == [
        "train-00000000",
        "train-00000001",
        "validation-00000000",
        "validation-00000001",
    ]
    assert [(u.text, u.speaker, u.split) for u in found[1:3]] == [
        ("", "", "train"),
        ("one", "7", "dev"),
    ]
    assert found[0].audio == encoded() and found[1].audio == path
    report = prepare(found, tmp_path / "out")
    assert (report["kept"], report["dropped"]) == (2, {"textless": 2})
    assert (
        Path(read_manifest(tmp_path / "out/dev.jsonl")[0].audio).name == "validation-00000000.wav"
    )


def test_hugging_face_dataset_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(
        [{"audio": {"bytes": encoded(), "path": None}, "text": "one", "id": "a/b"}]
    )
    made = made.cast_column("audio", datasets.Audio(sampling_rate=16_000))
    datasets.DatasetDict(test=made).save_to_disk(str(tmp_path / "saved"))
    [found] = read_corpus(tmp_path / "saved")
    assert (found.id, found.audio, found.text, found.split) == ("a/b", encoded(), "one", "test")


@pytest.mark.parametrize(
    ("source", "layout", "expected"),
    [
        ("none", "auto", "no such file or folder"),
        (".", "auto", "no corpus of a known layout"),
        (".", "ljspeach", "layout 'ljspeach': expected one of auto, table, ljspeech"),
        (".", "libritts", "expected a LibriSpeech or LibriTTS tree"),
        (".", "jsonl", r"no list in it, expected a file \*\.jsonl"),
    ],
)
def test_source_that_is_no_corpus_is_refused(tmp_path, monkeypatch, source, layout, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=expected):
        list(read_corpus(source, layout))


def test_missing_package_datasets_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"a/b: no such folder.*llasa-core\[datasets\]"):
        list(read_corpus("a/b"))
