"""Damaged and forged files: every reader answers with a value or one InputError, soon, and within
bounded memory.

A few hundred files each by default; LLASA_FUZZ_SECONDS=600 gives each reader ten minutes.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llasa_core.audio import decode_audio, load_audio
from llasa_core.data.dataset import read_codes, read_part, write_part
from llasa_core.data.filter import Filters, filter_codes
from llasa_core.data.memmap import import_memmap
from llasa_core.data.sources import open_source
from llasa_core.errors import InputError
from llasa_core.manifest import read_manifest
from llasa_core.tokenizer import vocabulary_of

SECONDS = float(os.environ.get("LLASA_FUZZ_SECONDS", 0))
MORE_MEMORY = 3 * 2**30  # bytes of address space beyond what the process has at the start
LONGEST = 20  # seconds for one file


def fuzz(strategy, check, examples):
    """Run `check` over drawn files: so many, or for so long as the environment says."""
    ends = time.monotonic() + SECONDS
    while True:

        @settings(
            max_examples=examples if not SECONDS else 1000,
            deadline=None,
            database=None,
            derandomize=not SECONDS,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def one(value):
            if SECONDS and time.monotonic() > ends:
                return
            signal.alarm(LONGEST)
            try:
                check(value)
            except InputError as error:
                assert "\n" not in str(error)
            finally:
                signal.alarm(0)

        one()
        if time.monotonic() >= ends:
            return


@pytest.fixture(autouse=True)
def bounded():
    """Within MORE_MEMORY an allocation fails instead of filling the machine; a file that takes
    LONGEST raises.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[0]) if statm.exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_MEMORY, hard))

    def late(*_):
        raise TimeoutError(f"one file took more than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


INTERESTING = [
    b"\0" * 4,
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\x01\x00\x00\x00",
    b"\xff" * 8,
]


@st.composite
def damaged(draw, wholes):
    """A whole file with bytes overwritten, cut out, doubled or cut off; or no such file at all."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(0, 5))):
        if not data:
            break
        kind = draw(st.sampled_from(["set", "head", "tail", "remove", "repeat", "cut", "insert"]))
        limit = {"head": min(len(data), 100) - 1, "tail": len(data) - 1}.get(kind, len(data) - 1)
        at = draw(st.integers(max(0, len(data) - 600) if kind == "tail" else 0, limit))
        if kind in ("set", "head", "tail"):
            new = draw(st.one_of(st.sampled_from(INTERESTING), st.binary(min_size=1, max_size=4)))
            data[at : at + len(new)] = new
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        else:
            del data[at:]
    return bytes(data) if draw(st.integers(0, 30)) else draw(st.binary(max_size=200))


def recording(kind, seconds=0.3, **more):
    wave = np.random.default_rng(0).normal(size=int(16_000 * seconds)).astype(np.float32) * 0.1
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 16_000, format=kind, **more)
    return buffer.getvalue()


RECORDINGS = [
    recording("WAV"),
    recording("WAV", subtype="FLOAT"),
    recording("FLAC"),
    recording("MP3"),
    recording("AIFF"),
]
RECORDINGS += [
    recording("OGG", subtype="OPUS"),
    recording("OGG", subtype="VORBIS"),
    recording("CAF"),
    recording("W64"),
]


def test_damaged_audio_is_refused_or_read():
    def check(data):
        wave, reason = decode_audio(data)
        assert (
            wave.dtype == np.float32
            and wave.ndim == 1
            and reason in (None, "unreadable", "cut_off", "needs_ffmpeg")
        )
        with contextlib.suppress(InputError):
            assert np.isfinite(load_audio(data)).all()

    fuzz(damaged(RECORDINGS), check, 150)


def manifests():
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=5,
    )
    keys = ["id", "audio", "text", "speaker", "language", "seconds", "split", "other"]
    line = st.dictionaries(st.sampled_from(keys), values, max_size=8).map(json.dumps)
    good = st.just('{"id": "a", "audio": "a.wav", "text": "words", "seconds": 1.5, "split": "dev"}')
    nested = st.integers(1, 100_000).map(lambda depth: '{"id": ' + "[" * depth)
    lines = st.lists(st.one_of(line, good, st.text(max_size=60), nested), max_size=4)
    return st.one_of(
        lines.map(lambda them: "\n".join(them).encode("utf-8", "surrogatepass")),
        st.binary(max_size=200),
    )


def test_damaged_manifest_is_refused_or_read(tmp_path):
    path = tmp_path / "m.jsonl"

    def check(data):
        path.write_bytes(data)
        for utterance in read_manifest(path):
            assert utterance.id and isinstance(utterance.text, str)

    fuzz(manifests() | damaged([b'{"id": "a", "audio": "b.wav", "text": "c"}\n' * 3]), check, 150)


def test_damaged_part_of_codes_is_refused_or_read(tmp_path):
    row = {
        "text": "some words",
        "codes": np.arange(60),
        "speaker": "a",
        "language": "en",
        "seconds": 1.2,
    }
    write_part(
        tmp_path / "whole",
        [row | {"id": f"u{n}"} for n in range(40)],
        {"codebook_size": 64, "dropped": []},
    )
    whole, path = (tmp_path / "whole").read_bytes(), tmp_path / "part-00000.parquet"
    shard = {"file": path.name, "rows": 40, "sha256": "none"}

    def check(data):
        path.write_bytes(data)
        table = read_part(tmp_path, shard, 64, verify=False)
        assert len(table) == 40
        for name in ("id", "text", "codes"):
            assert len(table[name].to_pylist()) == 40

    fuzz(damaged([whole]), check, 150)


def test_damaged_meta_of_codes_is_refused_or_read(tmp_path):
    folder = tmp_path / "codes"
    folder.mkdir()
    row = {
        "id": "a",
        "text": "some words",
        "codes": np.arange(60),
        "speaker": "a",
        "language": "en",
        "seconds": 1.2,
    }
    write_part(folder / "part-00000.parquet", [row], {"codebook_size": 64, "dropped": []})
    shard = {"file": "part-00000.parquet", "rows": 1, "sha256": "x"}
    meta = {
        "codec": "c",
        "codebook_size": 64,
        "frame_rate": 50.0,
        "utterances": 1,
        "codes": 60,
        "shards": [shard],
    }
    values = (
        st.none()
        | st.integers()
        | st.floats()
        | st.text(max_size=9)
        | st.just([shard])
        | st.just([[]])
        | st.just([{}])
    )
    changes = st.dictionaries(
        st.sampled_from([*meta, "file", "rows", "sha256"]), values, max_size=3
    )

    def check(changed):
        if isinstance(changed, bytes):
            (folder / "meta.json").write_bytes(changed)
        else:
            inner = {**shard, **{key: value for key, value in changed.items() if key in shard}}
            outer = {
                **meta,
                "shards": [inner],
                **{key: value for key, value in changed.items() if key in meta},
            }
            (folder / "meta.json").write_text(json.dumps(outer))
        dataset = read_codes(folder, verify=False)
        for number in range(len(dataset)):
            assert dataset[number]["id"] == "a"
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        filter_codes(folder, tmp_path / "out", Filters(min_seconds=0.1))

    fuzz(changes | damaged([json.dumps(meta).encode()]), check, 150)


def archive():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in [
            ("a.flac", RECORDINGS[2]),
            ("a.txt", b"words"),
            ("b.json", b'{"text": "x"}'),
            ("b.wav", b"RIFF"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def table(compression):
    audio = [{"bytes": RECORDINGS[2], "path": f"{n}.flac"} for n in range(5)]
    buffer = io.BytesIO()
    rows = pa.table({"audio": audio, "text": [f"text {n}" for n in range(5)], "speaker": ["a"] * 5})
    pq.write_table(rows, buffer, row_group_size=2, compression=compression)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_damaged_shard_of_audio_is_refused_or_read(tmp_path, kind):
    path = tmp_path / f"shard.{kind}"

    def check(data):
        path.write_bytes(data)
        source = open_source(path)
        for part in range(source.parts):
            for utterance in source.utterances(part):
                assert isinstance(utterance.text, str) and utterance.id

    fuzz(
        damaged([archive()] if kind == "tar" else [table("none"), table("snappy"), table("zstd")]),
        check,
        120,
    )


def test_damaged_memory_map_is_refused_or_read(tmp_path, mini_tokenizer):
    ids, public = vocabulary_of(mini_tokenizer), tmp_path / "public"
    public.mkdir()
    eot = mini_tokenizer.convert_tokens_to_ids("<|eot_id|>")
    row = [
        ids.text_understanding_start,
        *mini_tokenizer("the office", add_special_tokens=False).input_ids,
    ]
    row += [
        ids.text_understanding_end,
        ids.speech_generation_start,
        *range(ids.first_code, ids.first_code + 9),
    ]
    row += [ids.speech_generation_end]
    rows = np.array([row + [eot] * (32 - len(row))] * 6, np.int32)
    shape = io.BytesIO()
    np.save(shape, rows.shape)
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], object), allow_pickle=True)
    forged = shape.getvalue().replace(b"(2,)", b"(9" + b"9" * 15 + b",)")
    huge = io.BytesIO()
    np.save(huge, np.array([2**40, 2**20]))
    shapes = damaged([shape.getvalue(), pickled.getvalue(), forged, huge.getvalue()])

    same = st.tuples(
        st.just(shape.getvalue()),
        damaged([rows.tobytes()]).map(lambda d: (d + rows.tobytes())[: rows.nbytes]),
        st.just(6),
    )
    either = st.tuples(shapes, damaged([rows.tobytes()]), st.just(None))

    def check(files):
        shape_file, content, count = files
        (public / "train_input_ids_shape.npy").write_bytes(shape_file)
        (public / "train_input_ids.memmap").write_bytes(content)
        shutil.rmtree(tmp_path / "codes", ignore_errors=True)
        meta = import_memmap(public, tmp_path / "codes", mini_tokenizer)["train"]
        found = meta["utterances"] + sum(meta["dropped"].values())
        assert found == count if count else 0 < 4 * found <= len(content)

    fuzz(same | either, check, 80)
