"""Extraction where the data is: every format, worker processes, kills, full disks, long recordings,
bf16.
"""

import gzip
import io
import json
import multiprocessing
import os
import random
import tarfile
import time
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from messy_corpora import JSON_LAYOUTS

from llasa_core import cli
from llasa_core.audio import load_audio
from llasa_core.codecs import load_codec
from llasa_core.codecs.fake import FakeCodec
from llasa_core.codecs.xcodec2 import Bf16Codec
from llasa_core.data.corpora.prepare import Limits
from llasa_core.data.corpora.segmentation import Segmenter, divide, pauses
from llasa_core.data.dataset import read_codes
from llasa_core.data.encode import chosen_to_compare, encode_manifest
from llasa_core.data.filter import Filters, filter_codes
from llasa_core.data.sources import open_source
from llasa_core.data.subsets import join_pairs
from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, write_manifest

KILLS = int(os.environ.get("LLASA_TEST_KILLS", 10))


def speech(number, seconds=None):
    """Noise of a length of its own that passes for speech."""
    generator = np.random.default_rng(number)
    count = int(16_000 * (seconds or generator.uniform(0.35, 0.9)))
    return (
        generator.normal(size=count)
        * np.repeat(generator.uniform(0.02, 0.1, count // 320 + 1), 320)[:count]
    ).astype(np.float32)


def encoded(wave, kind="FLAC", **settings):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 16_000, format=kind, **settings)
    return buffer.getvalue()


def corpus(folder, count):
    folder.mkdir(exist_ok=True)
    utterances = []
    for number in range(count):
        path = folder / f"u{number:03d}.flac"
        path.write_bytes(encoded(speech(number)))
        utterances.append(
            Utterance(f"u{number:03d}", path, f"text {number}", "ab"[number % 2], "en")
        )
    write_manifest(folder / "m.jsonl", utterances)
    return folder / "m.jsonl"


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows_of(folder):
    dataset = read_codes(folder)
    return [dataset[number] for number in range(len(dataset))]


@pytest.mark.parametrize(
    ("suffix", "kind", "settings"),
    [
        ("wav", "WAV", {}),
        ("flac", "FLAC", {}),
        ("mp3", "MP3", {}),
        ("opus", "OGG", {"subtype": "OPUS"}),
        ("ogg", "OGG", {"subtype": "VORBIS"}),
    ],
)
def test_every_format_is_encoded_as_it_is_alone(tmp_path, suffix, kind, settings):
    utterances = []
    for number in range(3):
        path = tmp_path / f"u{number}.{suffix}"
        path.write_bytes(encoded(speech(number), kind, **settings))
        utterances.append(Utterance(f"u{number}", path, "some words"))
    write_manifest(tmp_path / "m.jsonl", utterances)
    encode_manifest(tmp_path / "m.jsonl", tmp_path / "codes", FakeCodec())
    for row, utterance in zip(rows_of(tmp_path / "codes"), utterances, strict=True):
        wave = load_audio(utterance.audio)
        np.testing.assert_array_equal(row["codes"], FakeCodec().encode([wave])[0])
        assert len(row["codes"]) == len(wave) // 320


@pytest.mark.slow
def test_workers_change_no_byte(tmp_path):
    manifest = corpus(tmp_path / "in", 40)
    (tmp_path / "in/u005.flac").write_bytes(b"no audio")
    encode_manifest(manifest, tmp_path / "one", FakeCodec(), rows_per_part=16)
    done = []
    encode_manifest(
        manifest, tmp_path / "two", FakeCodec(), rows_per_part=16, workers=2, progress=done.append
    )
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two") and sum(done) == 40
    listed = [
        json.loads(line) for line in (tmp_path / "one/dropped.jsonl").read_text().splitlines()
    ]
    assert listed == [{"id": "u005", "reason": "unreadable", "part": "part-00000.parquet"}]


class Front:
    """Features that workers make of a wave: here its codes."""

    def __call__(self, wave):
        return FakeCodec().encode([wave])[0]


class Fronted(FakeCodec):
    front = Front()

    def encode(self, waves, features=None):
        self.seen = features
        return super().encode(waves) if features is None else features


@pytest.mark.slow
def test_features_are_made_by_the_workers_and_change_no_code(tmp_path):
    manifest, codec = corpus(tmp_path / "in", 12), Fronted()
    encode_manifest(manifest, tmp_path / "one", codec)
    assert codec.seen is None
    encode_manifest(manifest, tmp_path / "two", codec, workers=1)
    assert codec.seen is not None and files_of(tmp_path / "one") == files_of(tmp_path / "two")


def _dies(*_):
    os.kill(os.getpid(), 9)


@pytest.mark.slow
def test_worker_that_is_killed_ends_in_one_line_and_the_work_goes_on(tmp_path, monkeypatch):
    manifest = corpus(tmp_path / "in", 12)
    with monkeypatch.context() as patched:
        patched.setattr("llasa_core.data.encode._decode", _dies)
        with pytest.raises(
            InputError, match="a process that decoded audio was killed, near u000 and u007"
        ):
            encode_manifest(manifest, tmp_path / "codes", FakeCodec(), workers=1)
    assert encode_manifest(manifest, tmp_path / "codes", FakeCodec(), workers=1)["utterances"] == 12


def tar_of(path, samples):
    with fsspec.open(str(path), "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["folder", "memory://shards"])
def test_tar_shards_are_parts_local_or_remote(tmp_path, where):
    place = str(tmp_path) if where == "folder" else f"{where}-{tmp_path.name}"
    facts = json.dumps(
        {"text": "told by json", "speaker": "kore", "language": "de", "id": "own/id"}
    ).encode()
    tar_of(
        f"{place}/s-00.tar",
        [
            ("d/a.flac", encoded(speech(1))),
            ("d/a.txt", b"one"),
            ("d/b.json", facts),
            ("d/b.wav", encoded(speech(2), "WAV")),
        ],
    )
    tar_of(
        f"{place}/s-01.tar",
        [("c.mp3", encoded(speech(3), "MP3")), ("c.txt", b"three"), ("e.txt", b"no audio")],
    )
    meta = encode_manifest(f"{place}/s-{{00..01}}.tar", tmp_path / "codes", FakeCodec())
    rows = rows_of(tmp_path / "codes")
    assert [(row["id"], row["text"], row["speaker"], row["language"]) for row in rows] == [
        ("d/a", "one", "", "en"),
        ("own/id", "told by json", "kore", "de"),
        ("c", "three", "", "en"),
    ]
    np.testing.assert_array_equal(
        rows[0]["codes"], FakeCodec().encode([load_audio(encoded(speech(1)))])[0]
    )
    assert meta["dropped"] == {"missing_audio": 1} and [
        shard["rows"] for shard in meta["shards"]
    ] == [2, 1]
    assert files_of(tmp_path / "codes") == files_of(tmp_path / "codes")
    again = encode_manifest(f"{place}/*.tar", tmp_path / "again", FakeCodec(), workers=1)
    assert again == meta and files_of(tmp_path / "again") == files_of(tmp_path / "codes")


def dropped_of(folder):
    lines = (
        (folder / "dropped.jsonl").read_text().splitlines()
        if (folder / "dropped.jsonl").exists()
        else []
    )
    return {line["id"]: line["reason"] for line in map(json.loads, lines)}


def test_every_tar_member_that_is_not_read_is_counted_with_a_reason(tmp_path):
    wave = encoded(speech(1), "WAV")
    names = [
        "LJ.001.npy",
        "LJ.001.txt",
        "LJ.001.wav",
        "LJ.002.wav",
        "LJ.002.speaker.txt",
        "LJ.002.TXT",
    ]
    names += [
        "plain.cls",
        "plain.speaker.txt",
        "plain.txt",
        "plain.wav",
        "u.m4a",
        "u.txt",
        "README",
        "t.json",
        "._u.wav",
    ]
    contents = {".wav": wave, ".txt": b"some words", ".json": b"{}"}
    tar_of(
        tmp_path / "s.tar",
        [(f"d/{name}", contents.get(Path(name).suffix.lower(), b"x")) for name in names],
    )
    with tarfile.open(tmp_path / "s.tar", "a") as archive:
        link = tarfile.TarInfo("d/linked.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "d/plain.wav"
        archive.addfile(link)
    meta = encode_manifest(tmp_path / "s.tar", tmp_path / "codes", FakeCodec())
    rows = rows_of(tmp_path / "codes")
    assert [(row["id"], row["text"]) for row in rows] == [
        (name, "some words") for name in ("d/LJ.001", "d/LJ.002", "d/plain")
    ]
    assert dropped_of(tmp_path / "codes") == {
        "d/u.m4a": "needs_ffmpeg",
        "d/README": "unknown_suffix",
        "d/t.json": "missing_audio",
        "d/linked.wav": "link",
    }
    assert meta["dropped"] == {
        "link": 1,
        "missing_audio": 1,
        "needs_ffmpeg": 1,
        "unknown_suffix": 1,
    }


def test_tar_names_whose_first_dot_is_not_their_last_stay_apart(tmp_path):
    wave = encoded(speech(1), "WAV")
    names = ["a.001.txt", "a.001.wav", "a.002.wav", "a.txt", "a.wav", "a.z.txt", "a.z.wav"]
    names += ["b.flac", "b.speaker.txt", "b.txt"]  # sorted, with another text in between
    tar_of(
        tmp_path / "s.tar",
        [(name, name.encode() if name.endswith("txt") else wave) for name in names],
    )
    meta = encode_manifest(tmp_path / "s.tar", tmp_path / "codes", FakeCodec())
    found = [(row["id"], row["text"]) for row in rows_of(tmp_path / "codes")]
    assert found == [(name, f"{name}.txt") for name in ("a.001", "a", "a.z", "b")]
    assert dropped_of(tmp_path / "codes") == {"a.002": "textless"} and meta["dropped"] == {
        "textless": 1
    }


@pytest.mark.parametrize("order", ["texts first", "texts last", "one apart"])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_text_may_stand_far_from_its_audio_in_a_tar(tmp_path, order, suffix):
    audio = [(f"u{number:02d}.flac", encoded(speech(number))) for number in range(20)]
    facts = [
        (f"u{number:02d}.json", json.dumps({"text": f"text {number}", "speaker": number}).encode())
        for number in range(20)
    ]
    one_apart = [one for pair in zip(audio, facts, strict=True) for one in pair]
    one_apart.append(one_apart.pop(1))
    orders = {"texts first": facts + audio, "texts last": audio + facts, "one apart": one_apart}
    whole = tmp_path / f"s.{suffix}"
    tar_of(whole, orders[order])
    if suffix == "tar.gz":
        whole.write_bytes(gzip.compress(whole.read_bytes()))
    meta = encode_manifest(whole, tmp_path / "codes", FakeCodec())
    found = [(row["id"], row["text"], row["speaker"]) for row in rows_of(tmp_path / "codes")]
    assert found == [(f"u{number:02d}", f"text {number}", str(number)) for number in range(20)]
    assert meta["dropped"] == {}


def test_what_is_too_large_or_no_text_is_dropped_and_the_rest_of_the_tar_is_read(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("llasa_core.data.tar_samples.MOST_BYTES", 40_000)
    wave, large = encoded(speech(1), "WAV"), encoded(speech(2, 2.0), "WAV")
    items = [("a.wav", large), ("a.txt", b"words"), ("b.wav", wave), ("b.json", b"{")]
    items += [("c.wav", wave), ("c.txt", b"\xff"), ("d.wav", wave), ("d.json", b'{"text": null}')]
    items += [("e.wav", wave), ("e.json", b'{"text": "words", "id": "half \\ud800"}')]
    tar_of(tmp_path / "s.tar", [*items, ("f.wav", wave), ("f.txt", b"words")])
    meta = encode_manifest(tmp_path / "s.tar", tmp_path / "codes", FakeCodec())
    assert [row["id"] for row in rows_of(tmp_path / "codes")] == ["f"]
    assert meta["dropped"] == {"bad_id": 1, "bad_text": 2, "textless": 1, "too_large": 1}


@pytest.mark.slow
def test_rows_of_parquet_that_unpack_to_what_no_audio_is_are_dropped(tmp_path):
    zeros = [{"bytes": bytes(60 * 2**20), "path": f"{n}.wav"} for n in range(6)]
    table = pa.table({"audio": zeros, "text": ["words"] * 6})
    pq.write_table(table, tmp_path / "bomb.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**20
    found = list(open_source(tmp_path / "bomb.parquet").utterances(0))
    assert [one.reason for one in found] == ["too_large"] * 6


def test_manifest_without_utterances_is_an_empty_dataset(tmp_path):
    (tmp_path / "test.jsonl").write_text("")
    meta = encode_manifest(tmp_path / "test.jsonl", tmp_path / "codes", FakeCodec())
    assert (meta["utterances"], meta["shards"], meta["dropped"]) == (0, [], {})
    assert len(read_codes(tmp_path / "codes")) == 0


@pytest.mark.parametrize("write", JSON_LAYOUTS, ids=lambda write: write.__name__)
def test_manifests_of_others_are_encoded_as_they_are(write, tmp_path):
    expected, folder = write(tmp_path / "corpus"), tmp_path / "corpus"
    (listing,) = [path for path in folder.iterdir() if path.suffix in (".json", ".jsonl")]
    meta = encode_manifest(listing, tmp_path / "codes", FakeCodec())
    found = [(row["id"], row["text"], row["speaker"]) for row in rows_of(tmp_path / "codes")]
    assert found == expected.rows and meta["dropped"] == dict(sorted(expected.dropped.items()))
    lines = dropped_of(tmp_path / "codes")
    assert sorted(lines.values()) == sorted(
        reason for reason, count in expected.dropped.items() for _ in range(count)
    )
    assert all(id.startswith(listing.name) for id in lines)


def test_damaged_tar_is_named_and_nothing_half_is_written(tmp_path):
    tar_of(
        tmp_path / "s.tar",
        [
            (f"u{i}.{kind}", content)
            for i in range(4)
            for kind, content in [("wav", encoded(speech(i), "WAV")), ("txt", b"a")]
        ],
    )
    whole = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"s\.tar: no whole tar"):
        encode_manifest(tmp_path / "s.tar", tmp_path / "codes", FakeCodec())
    assert files_of(tmp_path / "codes") == {}


def parquet_of(path, count, group, **columns):
    audio = [
        {"bytes": encoded(speech(number)), "path": f"{number}.flac"} for number in range(count)
    ]
    table = pa.table(
        {"audio": audio, "sentence": [f"text {number}" for number in range(count)], **columns}
    )
    with fsspec.open(str(path), "wb") as file:
        pq.write_table(table, file, row_group_size=group)


@pytest.mark.parametrize("where", ["folder", "memory://rows"])
def test_parquet_with_audio_is_encoded_by_row_groups(tmp_path, where):
    place = str(tmp_path / "in") if where == "folder" else f"{where}-{tmp_path.name}"
    (tmp_path / "in").mkdir()
    parquet_of(f"{place}/train-0.parquet", 5, 2, speaker_id=[7] * 5)
    meta = encode_manifest(place, tmp_path / "codes", FakeCodec())
    rows = rows_of(tmp_path / "codes")
    assert [row["text"] for row in rows] == [f"text {number}" for number in range(5)]
    assert (
        rows[0]["speaker"] == "7"
        and len({row["id"] for row in rows}) == 5
        and len(meta["shards"]) == 3
    )
    np.testing.assert_array_equal(
        rows[3]["codes"], FakeCodec().encode([load_audio(encoded(speech(3)))])[0]
    )


def test_remote_manifest_names_its_audio_by_its_own_folder(tmp_path):
    system = fsspec.filesystem("memory")
    for number in range(3):
        system.pipe(f"/far-{tmp_path.name}/wavs/{number}.wav", encoded(speech(number), "WAV"))
    lines = [
        json.dumps({"id": f"u{n}", "audio": f"wavs/{n}.wav", "text": "words"}) for n in range(4)
    ]
    system.pipe(f"/far-{tmp_path.name}/m.jsonl", "\n".join(lines).encode())
    meta = encode_manifest(f"memory://far-{tmp_path.name}/m.jsonl", tmp_path / "codes", FakeCodec())
    assert meta["utterances"] == 3 and meta["dropped"] == {"missing_audio": 1}
    with pytest.raises(InputError, match=r"memory://nowhere/m\.jsonl"):
        encode_manifest("memory://nowhere/m.jsonl", tmp_path / "none", FakeCodec())
    with pytest.raises(InputError, match="notaprotocol"):
        encode_manifest("notaprotocol://x/m.jsonl", tmp_path / "none", FakeCodec())


def test_audio_that_changed_is_not_taken_for_what_was_encoded(tmp_path):
    manifest, out = corpus(tmp_path / "in", 6), tmp_path / "codes"
    whole = encode_manifest(manifest, out, FakeCodec(), rows_per_part=3)
    files = files_of(out)
    for path in (tmp_path / "in").iterdir():
        os.utime(path, (1, 1))
    (tmp_path / "in").rename(tmp_path / "moved")
    manifest = tmp_path / "moved/m.jsonl"
    assert (
        encode_manifest(manifest, out, FakeCodec(), rows_per_part=3) == whole
        and files_of(out) == files
    )
    (tmp_path / "moved/u004.flac").write_bytes(encoded(speech(4, 0.4)))
    with pytest.raises(
        InputError,
        match=r"part-00001\.parquet: made with audio files of other names or sizes; delete it",
    ):
        encode_manifest(manifest, out, FakeCodec(), rows_per_part=3)
    (out / "part-00001.parquet").unlink()
    encode_manifest(manifest, out, FakeCodec(), rows_per_part=3)
    assert len(rows_of(out)[4]["codes"]) == 20
    for path in (tmp_path / "moved").glob("*.flac"):
        path.unlink()
    encode_manifest(manifest, out, FakeCodec(), rows_per_part=3)


def without(path, *keys):
    """A part as it was written before it told these facts."""
    table = pq.read_table(path)
    info = json.loads(table.schema.metadata[b"llasa"])
    kept = {key: value for key, value in info.items() if key not in keys}
    assert len(kept) < len(info)
    pq.write_table(table.replace_schema_metadata({b"llasa": json.dumps(kept).encode()}), path)


def test_dataset_that_tells_neither_audio_nor_weights_is_resumed(tmp_path):
    manifest, out, codec = corpus(tmp_path / "in", 6), tmp_path / "codes", tiny_codec(0)
    meta = encode_manifest(manifest, out, codec, rows_per_part=3)
    assert meta["codec_fingerprint"] == codec.fingerprint
    without(out / "part-00000.parquet", "audio", "codec_fingerprint")
    (out / "part-00001.parquet").unlink()
    again = encode_manifest(manifest, out, codec, rows_per_part=3)
    assert "codec_fingerprint" not in again and again["utterances"] == 6


# Weights


def tiny_codec(seed):
    import torch

    from llasa_core.codecs.mini import MiniCodec, MiniCodecConfig, MiniCodecModel

    torch.manual_seed(seed)
    return MiniCodec(
        MiniCodecModel(MiniCodecConfig(width=64, encoder_layers=1, decoder_layers=1, heads=2))
    )


def test_another_codec_of_the_same_name_is_refused(tmp_path):
    manifest, out, one, other = (
        corpus(tmp_path / "in", 6),
        tmp_path / "codes",
        tiny_codec(0),
        tiny_codec(1),
    )
    one.save(tmp_path / "one")
    loaded = load_codec(tmp_path / "one")
    assert loaded.fingerprint == one.fingerprint != other.fingerprint
    meta = encode_manifest(manifest, out, one, rows_per_part=3)
    assert meta["codec_fingerprint"] == one.fingerprint and "codec_folder" not in meta
    (out / "part-00001.parquet").unlink()
    (out / "meta.json").unlink()
    expected = (
        rf"other weights of codec mini: {one.codes_fingerprint}, not"
        rf" {other.codes_fingerprint}; choose another folder"
    )
    with pytest.raises(InputError, match=expected):
        encode_manifest(manifest, out, other, rows_per_part=3)
    with pytest.raises(InputError, match=expected):
        encode_manifest(manifest, out, other, shards=2, shard=1, rows_per_part=3)
    (out / "part-00001.parquet").unlink()  # what the other one has made of it
    assert encode_manifest(manifest, out, loaded, rows_per_part=3)["codec_folder"] == str(
        tmp_path / "one"
    )
    part = join_pairs(out, tmp_path / "pairs")
    assert part["codec_fingerprint"] == one.fingerprint and part["codec_folder"] == str(
        tmp_path / "one"
    )
    assert filter_codes(out, tmp_path / "f", Filters(0.1))["codec_fingerprint"] == one.fingerprint
    assert Bf16Codec(loaded).fingerprint == one.fingerprint


def _encode(manifest, out):
    encode_manifest(manifest, out, FakeCodec(), rows_per_part=3)


@pytest.mark.slow
def test_killed_at_random_moments_the_union_is_the_uninterrupted_result(tmp_path):
    manifest, fork = corpus(tmp_path / "in", 60), multiprocessing.get_context("fork")
    begin = time.perf_counter()
    encode_manifest(manifest, tmp_path / "whole", FakeCodec(), rows_per_part=3)
    alone = time.perf_counter() - begin
    source, killed = random.Random(0), 0
    for attempt in range(3 * KILLS):
        process = fork.Process(target=_encode, args=(manifest, tmp_path / "killed"))
        process.start()
        process.join(source.uniform(0.02, alone * (0.5 if attempt % 4 else 1.5)))
        if process.exitcode is None:
            process.kill()
            killed += 1
        process.join()
        if (
            tmp_path / "killed/meta.json"
        ).exists() and killed < KILLS:  # begin again with some parts missing
            (tmp_path / "killed/meta.json").unlink()
            for path in sorted((tmp_path / "killed").glob("*"))[:: source.randint(1, 3)]:
                path.unlink()
        if killed >= KILLS:
            break
    assert killed >= min(KILLS, 5)
    _encode(manifest, tmp_path / "killed")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    ids = [row["id"] for row in rows_of(tmp_path / "killed")]
    assert ids == [f"u{number:03d}" for number in range(60)]


@pytest.mark.slow
def test_two_workers_on_one_shard_do_no_harm(tmp_path):
    manifest, fork = corpus(tmp_path / "in", 60), multiprocessing.get_context("fork")
    _encode(manifest, tmp_path / "whole")
    both = [fork.Process(target=_encode, args=(manifest, tmp_path / "both")) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert files_of(tmp_path / "both") == files_of(tmp_path / "whole")


def test_full_disk_is_one_line_and_the_work_goes_on_where_there_is_room(
    tmp_path, small_disk, capsys
):
    manifest, small = corpus(tmp_path / "in", 60), small_disk("40k")
    encode = ["encode", str(manifest), str(small / "codes"), "--codec", "fake", "--workers", "0"]
    encode += ["--rows-per-part", "3"]
    assert cli.main(encode) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llasa: ")]
    assert "no space left on the disk" in line and "run again" in line
    made = sorted(path.name for path in (small / "codes").iterdir())
    assert made and all(name.endswith(".parquet") for name in made)
    small_disk("10m")
    assert cli.main(encode) == 0
    encode_manifest(manifest, tmp_path / "whole", FakeCodec(), rows_per_part=3)
    assert files_of(small / "codes") == files_of(tmp_path / "whole")


def test_write_that_fails_for_want_of_space_is_told_as_such(tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    manifest = corpus(tmp_path / "in", 3)
    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(InputError, match=r"part-00000\.parquet: no space left on the disk"):
        encode_manifest(manifest, tmp_path / "codes", FakeCodec())


# Long recordings


class Reader:
    """Hears in each piece what the bursts in it say: burst number n is the word n of a list."""

    def __init__(self, words):
        self.words = words

    def transcribe(self, waves, sample_rate, language):
        heard, done = [], 0
        for wave in waves:
            loud = np.abs(wave) > 0.01
            count = int(np.flatnonzero(np.diff(np.concatenate([[0], loud.astype(int)])) == 1).size)
            heard.append(" ".join(self.words[done : done + count]))
            done += count
        return heard


WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]


def bursts(count, pause):
    """Words of 0.5 s that stay loud throughout, and pauses between them."""
    burst = np.where(np.arange(8000) % 2, 0.3, -0.3).astype(np.float32)
    return np.concatenate(
        [np.concatenate([burst, np.zeros(int(pause * 16_000), np.float32)]) for _ in range(count)]
    )


def test_long_recording_is_cut_in_its_pauses_and_its_text_with_it(tmp_path):
    soundfile.write(tmp_path / "long.wav", bursts(12, 0.5), 16_000)
    write_manifest(
        tmp_path / "m.jsonl",
        [
            Utterance(
                "long",
                tmp_path / "long.wav",
                "One two three four, five six seven eight nine ten eleven twelve.",
            )
        ],
    )
    limits = Limits(max_seconds=4.0)
    assert encode_manifest.__doc__
    with pytest.raises(InputError, match="too_long 1"):
        encode_manifest(tmp_path / "m.jsonl", tmp_path / "none", FakeCodec(), limits=limits)
    meta = encode_manifest(
        tmp_path / "m.jsonl",
        tmp_path / "codes",
        FakeCodec(),
        limits=limits,
        segmenter=Segmenter(Reader(WORDS), 4.0),
    )
    rows = rows_of(tmp_path / "codes")
    assert (
        " ".join(row["text"] for row in rows)
        == "One two three four, five six seven eight nine ten eleven twelve."
    )
    assert [row["id"] for row in rows] == [
        f"long-{number:03d}" for number in range(len(rows))
    ] and len(rows) >= 3
    assert all(row["seconds"] <= 4.0 for row in rows) and meta["dropped"] == {}
    assert all(len(row["text"].split()) == round(row["seconds"] / 1.0) for row in rows)


@pytest.mark.parametrize(
    ("text", "pause", "reason"),
    [("wholly other words than these", 0.5, "text_not_heard"), (" ".join(WORDS), 0.0, "no_pause")],
)
def test_long_recording_whose_text_or_pauses_do_not_fit_is_refused(tmp_path, text, pause, reason):
    soundfile.write(tmp_path / "long.wav", bursts(12, pause), 16_000)
    write_manifest(tmp_path / "m.jsonl", [Utterance("long", tmp_path / "long.wav", text)])
    with pytest.raises(InputError, match=f"{reason} 1"):
        encode_manifest(
            tmp_path / "m.jsonl",
            tmp_path / "none",
            FakeCodec(),
            limits=Limits(max_seconds=4.0),
            segmenter=Segmenter(Reader(WORDS), 4.0),
        )


def test_words_go_to_the_piece_in_which_they_were_heard():
    assert divide("Mister Smith went, home.", ["mister smith", "went home"], 0.2) == [
        "Mister Smith",
        "went, home.",
    ]
    assert divide("a b c d e f", ["a b x", "d e f"], 0.2) == ["a b c", "d e f"]
    assert divide("a b c d e f", ["a b", "d e f"], 0.2) == ["a b", "c d e f"]
    assert divide("a b c", ["x y z"], 0.2) is None and divide("", ["a"], 0.2) is None
    assert divide("a b", ["", "a b"], 0.2) == ["", "a b"]


def test_pieces_are_short_enough_and_begin_in_pauses():
    wave = bursts(20, 0.4)
    borders = pauses(wave, 16_000, 5.0)
    assert borders[0] == 0 and borders[-1] == len(wave) and np.diff(borders).max() <= 5 * 16_000
    assert all(not wave[border - 100 : border + 100].any() for border in borders[1:-1])
    assert pauses(bursts(20, 0.0), 16_000, 5.0) is None


# Precision


@pytest.mark.slow
def test_bf16_says_how_many_codes_it_changes(tmp_path):
    exact = tiny_codec(0)
    manifest = corpus(tmp_path / "in", 60)
    meta = encode_manifest(manifest, tmp_path / "bf16", Bf16Codec(exact), rows_per_part=30)
    plain = encode_manifest(manifest, tmp_path / "exact", exact, rows_per_part=30)
    assert "bf16" not in plain and "precision" not in plain
    assert meta["precision"] == "bfloat16" and meta["codec"] == "mini"
    compared = changed = 0
    for row, other in zip(rows_of(tmp_path / "bf16"), rows_of(tmp_path / "exact"), strict=True):
        if chosen_to_compare(row["id"]) or row["id"] in ("u000", "u030"):
            compared += len(row["codes"])
            changed += int((row["codes"] != other["codes"]).sum())
    assert meta["bf16"] == {"compared": compared, "changed": changed} and 0 < changed < compared
    with pytest.raises(InputError, match="precision None, not bfloat16"):
        encode_manifest(manifest, tmp_path / "exact", Bf16Codec(exact), rows_per_part=30)


def test_sources_that_are_none_are_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    for spec, expected in [
        ("nowhere-*.tar", "no such file"),
        ("b.parquet", "cannot be read as parquet"),
        ("{1..99999999}.tar", "a million at most"),
    ]:
        with pytest.raises(InputError, match=expected):
            open_source(str(tmp_path / spec))
    pq.write_table(pa.table({"sound": [1]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="columns sound, expected audio"):
        list(open_source(tmp_path / "c.parquet").utterances(0))
    assert Path(tmp_path / "a.tar").exists()
