"""The codes dataset: made in parts, stopped, shared out and damaged; and the public memory map both
ways.
"""

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from llasa_core.audio import load_audio
from llasa_core.codecs.fake import FakeCodec
from llasa_core.data import memmap
from llasa_core.data.corpora.prepare import Limits
from llasa_core.data.dataset import finish, read_codes, write_part
from llasa_core.data.encode import encode_manifest
from llasa_core.data.memmap import export_memmap, import_memmap
from llasa_core.data.subsets import join_pairs, nested_subset
from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, write_manifest
from llasa_core.tokenizer import vocabulary_of

COUNT = 11


class CountingCodec(FakeCodec):
    """Remembers what it was given at once."""

    def __init__(self, codebook_size=4096):
        super().__init__(codebook_size)
        self.batches = []

    def encode(self, waves):
        self.batches.append([len(wave) for wave in waves])
        return super().encode(waves)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """COUNT good utterances of different lengths, and one that is silent as the fifth."""
    folder = tmp_path_factory.mktemp("corpus")
    utterances = []
    for number in range(COUNT + 1):
        random = np.random.default_rng(number)
        wave = random.normal(size=5000 + 700 * (number % 4)) * random.uniform(0.01, 0.1)
        name = f"u{number:02d}" if number != 4 else "quiet"
        soundfile.write(folder / f"{name}.wav", wave * (number != 4), 16_000)
        utterances.append(
            Utterance(name, folder / f"{name}.wav", f"text {number}", "ab"[number % 2], "en")
        )
    write_manifest(folder / "m.jsonl", utterances)
    return folder / "m.jsonl"


@pytest.fixture
def codes(manifest, tmp_path):
    encode_manifest(manifest, tmp_path / "codes", FakeCodec(), rows_per_part=5)
    return tmp_path / "codes"


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_rows_hold_what_the_manifest_and_the_codec_say(manifest, codes):
    dataset = read_codes(codes)
    assert len(dataset) == COUNT
    row = dataset[6]
    wave = load_audio(manifest.parent / "u07.wav")
    assert list(row) == ["id", "text", "speaker", "language", "seconds", "codes"]
    assert (row["id"], row["text"], row["speaker"], row["language"]) == ("u07", "text 7", "b", "en")
    assert row["seconds"] == pytest.approx(len(wave) / 16_000)
    assert row["codes"].dtype == np.uint16
    np.testing.assert_array_equal(row["codes"], FakeCodec().encode([wave])[0])
    assert dataset.lengths().tolist() == [len(dataset[index]["codes"]) for index in range(COUNT)]
    assert dataset[-1]["id"] == dataset[COUNT - 1]["id"] == "u11"
    with pytest.raises(IndexError):
        dataset[COUNT]


def test_codes_of_a_row_are_a_view_that_cannot_be_written(codes):
    row = read_codes(codes)[0]["codes"]
    assert not row.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        row[0] = 1


def test_mapped_codes_are_the_same(codes, tmp_path):
    plain = read_codes(codes)
    for _ in range(2):  # made, then found
        mapped = read_codes(codes, cache=tmp_path / "cache")
        for index in range(COUNT):
            row, expected = mapped[index], plain[index]
            np.testing.assert_array_equal(row.pop("codes"), expected.pop("codes"))
            assert row == expected
        assert mapped.lengths().tolist() == plain.lengths().tolist()
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 3
    next((tmp_path / "cache").glob("*.arrow")).write_bytes(b"ARROW1")
    with pytest.raises(InputError, match=r"\.arrow: cannot be read"):
        read_codes(codes, cache=tmp_path / "cache")


def test_meta_counts_and_names_what_is_there(codes):
    meta = json.loads((codes / "meta.json").read_text())
    assert (meta["codec"], meta["codebook_size"], meta["frame_rate"]) == ("fake", 4096, 50.0)
    dataset = read_codes(codes)
    assert (meta["utterances"], meta["codes"]) == (COUNT, int(dataset.lengths().sum()))
    assert meta["seconds"] == pytest.approx(
        sum(dataset[index]["seconds"] for index in range(COUNT)), abs=1e-3
    )
    assert meta["speakers"] == {"a": 5, "b": 6} and meta["dropped"] == {"silent": 1}
    names = ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert [shard["file"] for shard in meta["shards"]] == names and [
        shard["rows"] for shard in meta["shards"]
    ] == [4, 5, 2]
    assert dataset.meta == meta


def test_utterances_without_sound_file_or_text_are_dropped_and_counted(manifest, tmp_path):
    good = Utterance("good", manifest.parent / "u00.wav", "words")
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    bad = [
        Utterance("missing", tmp_path / "none.wav", "words"),
        Utterance("broken", tmp_path / "broken.wav", "words"),
    ]
    bad.append(Utterance("textless", good.audio, "..."))
    write_manifest(tmp_path / "m.jsonl", [*bad, good])
    meta = encode_manifest(tmp_path / "m.jsonl", tmp_path / "out", FakeCodec())
    assert (
        meta["dropped"] == {"missing_audio": 1, "textless": 1, "unreadable": 1}
        and meta["utterances"] == 1
    )
    write_manifest(tmp_path / "bad.jsonl", bad)
    with pytest.raises(
        InputError,
        match=r"no utterance is left \(missing_audio 1, .*; textless 1, .*; unreadable 1, .*\)",
    ):
        encode_manifest(tmp_path / "bad.jsonl", tmp_path / "nothing", FakeCodec())
    assert not (tmp_path / "nothing/meta.json").exists()


def test_limits_are_those_that_are_given(manifest, tmp_path):
    meta = encode_manifest(manifest, tmp_path / "out", FakeCodec(), limits=Limits(min_seconds=0.4))
    assert meta["dropped"] == {"too_short": 6}  # the silent one is too short first


def test_batching_bounds_audio_and_changes_nothing(manifest, codes, tmp_path):
    codec = CountingCodec()
    encode_manifest(manifest, tmp_path / "small", codec, rows_per_part=5, batch_seconds=0.8)
    assert (
        max(sum(batch) for batch in codec.batches)
        <= 0.8 * 16_000
        < sum(codec.batches[0] + codec.batches[1])
    )
    assert all(batch == sorted(batch) for batch in codec.batches)
    assert files_of(tmp_path / "small") == files_of(codes)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_shards_make_the_same_folder_as_one_process(manifest, codes, tmp_path, order):
    results = [
        encode_manifest(
            manifest, tmp_path / "shared", FakeCodec(), shards=2, shard=shard, rows_per_part=5
        )
        for shard in order
    ]
    assert results[0] is None and results[1]["utterances"] == COUNT
    assert files_of(tmp_path / "shared") == files_of(codes)


def test_stopped_extraction_goes_on_and_repeats_nothing(manifest, codes, tmp_path):
    class Stopping(CountingCodec):
        def encode(self, waves):
            if len(self.batches) == 1:
                raise KeyboardInterrupt
            return super().encode(waves)

    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        encode_manifest(manifest, out, Stopping(), rows_per_part=5)
    assert sorted(files_of(out)) == ["part-00000.parquet"]
    with pytest.raises(
        InputError,
        match=r"meta\.json: not found, expected the meta.json of a finished codes dataset",
    ):
        read_codes(out)
    # what kills in the middle of writing leave
    for name in ("part-00001.parquet.99.tmp", "meta.json.99-0a.part", "dropped.jsonl.99-0a.part"):
        (out / name).write_bytes(b"half")
    codec, done = CountingCodec(), []
    encode_manifest(manifest, out, codec, rows_per_part=5, progress=done.append)
    assert sum(map(len, codec.batches)) == COUNT - 4 and sum(done) == COUNT + 1
    assert files_of(out) == files_of(codes)
    again = CountingCodec()
    assert (
        encode_manifest(manifest, out, again, rows_per_part=5) == read_codes(codes).meta
        and again.batches == []
    )


def test_folder_of_something_else_is_refused(manifest, codes, tmp_path):
    with pytest.raises(
        InputError, match=r"part-00000\.parquet: made with codebook_size 4096, not 64"
    ):
        encode_manifest(manifest, codes, FakeCodec(64), rows_per_part=5)
    with pytest.raises(InputError, match=r"part-00000\.parquet: made with other utterances"):
        encode_manifest(manifest, codes, FakeCodec(), rows_per_part=6)
    shutil.copy(codes / "part-00000.parquet", codes / "part-00007.parquet")
    with pytest.raises(InputError, match=r"part-00007\.parquet: belongs to another dataset"):
        encode_manifest(manifest, codes, FakeCodec(), rows_per_part=5)


def test_shards_that_are_none_are_refused(manifest, tmp_path):
    with pytest.raises(InputError, match="shard 2 of 2"):
        encode_manifest(manifest, tmp_path / "out", FakeCodec(), shards=2, shard=2)
    assert not (tmp_path / "out").exists()


# Damage


def damage(codes, change):
    """Put another table in part 1, with its sha256 in meta.json, as a foreign program would leave
    it.
    """
    path, meta = codes / "part-00001.parquet", json.loads((codes / "meta.json").read_text())
    pq.write_table(change(pq.read_table(path)), path)
    meta["shards"][1]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (codes / "meta.json").write_text(json.dumps(meta))


def replaced(table, name, values, kind):
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda t: replaced(t, "codes", [[1], [4096], [], [2], [3]], pa.list_(pa.uint16())),
            "code 4096 in row 1 (u06)",
        ),
        (
            lambda t: replaced(t, "codes", [[1]] * 5, pa.list_(pa.int32())),
            "column codes is list<element: int32>, expected",
        ),
        (lambda t: t.drop_columns(["speaker"]), "column speaker is None, expected string"),
        (
            lambda t: replaced(t, "text", ["a", None, "b", "c", "d"], pa.string()),
            "column text has nulls",
        ),
        (lambda t: t.slice(0, 3), "3 rows, expected 5"),
    ],
)
def test_foreign_table_is_refused(codes, change, expected):
    damage(codes, change)
    with pytest.raises(InputError) as raised:
        read_codes(codes)
    assert (
        "part-00001.parquet: " in str(raised.value)
        and expected in str(raised.value)
        and "\n" not in str(raised.value)
    )


def test_truncated_or_changed_part_is_refused(codes):
    path = codes / "part-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        InputError, match=r"part-00001\.parquet: its sha256 is not that of meta\.json"
    ):
        read_codes(codes)
    with pytest.raises(InputError, match=r"part-00001\.parquet: cannot be read as parquet"):
        read_codes(codes, verify=False)
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(InputError, match=r"part-00001\.parquet: its sha256"):
        read_codes(codes)
    path.unlink()
    with pytest.raises(InputError, match=r"part-00001\.parquet: missing"):
        read_codes(codes)


def test_damaged_part_is_named_when_extraction_goes_on(manifest, codes):
    (codes / "part-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        InputError, match=r"part-00001\.parquet: damaged .*; delete it and run again"
    ):
        encode_manifest(manifest, codes, FakeCodec(), rows_per_part=5)


def test_text_that_is_no_utf8_is_refused(codes):
    binary = pa.array([b"\xff"] * 5, pa.binary())
    forged = pa.StringArray.from_buffers(5, *binary.buffers()[1:])
    damage(codes, lambda table: table.set_column(1, "text", forged))
    with pytest.raises(InputError, match=r"part-00001\.parquet: cannot be read as parquet .*UTF"):
        read_codes(codes)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not JSON"),
        ("[]", "a JSON list"),
        (
            '{"codec": "fake", "codebook_size": "many"}',
            "codebook_size is missing or of another type",
        ),
    ],
)
def test_malformed_meta_is_refused(codes, content, expected):
    (codes / "meta.json").write_text(content)
    with pytest.raises(InputError, match=rf"meta\.json: {expected}"):
        read_codes(codes)


def test_part_that_meta_does_not_list_is_refused(codes):
    shutil.copy(codes / "part-00000.parquet", codes / "part-00003.parquet")
    with pytest.raises(InputError, match=r"part-00003\.parquet"):
        read_codes(codes)


def test_codec_that_breaks_its_promise_is_caught(manifest, tmp_path):
    class Wrong(FakeCodec):
        def encode(self, waves):
            return [row + 4096 for row in super().encode(waves)]

    with pytest.raises(InputError, match=r"utterance 'u00': its codes go from"):
        encode_manifest(manifest, tmp_path / "out", Wrong())
    assert files_of(tmp_path / "out") == {}


# The public memory map


def public_row(tokenizer, text, codes, width):
    """A row as the public format defines it, by hand."""
    ids = vocabulary_of(tokenizer)
    row = [
        ids.text_understanding_start,
        *tokenizer(text, add_special_tokens=False).input_ids,
        ids.text_understanding_end,
    ]
    row += [
        ids.speech_generation_start,
        *(ids.first_code + code for code in codes),
        ids.speech_generation_end,
    ]
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    return np.array((row + [eot] * width)[:width], np.int32)


def write_memmap(folder, split, rows):
    folder.mkdir(exist_ok=True)
    rows = np.array(rows, np.int32)
    rows.tofile(folder / f"{split}_input_ids.memmap")
    np.save(folder / f"{split}_input_ids_shape.npy", rows.shape)


SAMPLE = (
    [66911, 388, 1051, 26192, 514],
    [30033, 30033, 1862, 29333, 578, 36804],
)  # ids of the text, and codes
TEXTS = [
    "Call the office.",
    " leading space",
    "tabs\tand\nlines",
    "naïve 你好 🙂",
    "a",
    "it's  two  spaces",
]


@pytest.fixture
def public(mini_tokenizer, tmp_path):
    """Seven training rows, the last of which fills its width, and two validation rows."""
    random = np.random.default_rng(0)
    rows = [public_row(mini_tokenizer, text, random.integers(0, 4096, 9), 64) for text in TEXTS]
    full = 64 - 4 - len(mini_tokenizer("a", add_special_tokens=False).input_ids)
    rows.append(public_row(mini_tokenizer, "a", random.integers(0, 4096, full), 64))
    write_memmap(tmp_path / "public", "train", rows)
    write_memmap(tmp_path / "public", "val", rows[:2])
    return tmp_path / "public"


def test_public_rows_become_text_and_codes(mini_tokenizer, public, tmp_path):
    metas = import_memmap(public, tmp_path / "codes", mini_tokenizer, rows_per_part=3)
    dataset = read_codes(tmp_path / "codes/train")
    assert [dataset[index]["text"] for index in range(7)] == [*TEXTS, "a"]
    expected = np.random.default_rng(0).integers(0, 4096, 9)
    np.testing.assert_array_equal(dataset[0]["codes"], expected)
    assert dataset[5]["id"] == "train-00000005" and dataset[0]["seconds"] == pytest.approx(9 / 50)
    assert metas["val"]["utterances"] == 2 and metas["train"]["codec"] == "xcodec2"
    assert [shard["rows"] for shard in metas["train"]["shards"]] == [3, 3, 1] and metas["train"][
        "dropped"
    ] == {}


def test_imported_rows_are_exported_byte_for_byte(mini_tokenizer, public, tmp_path):
    import_memmap(public, tmp_path / "codes", mini_tokenizer, rows_per_part=2)
    reports = export_memmap(tmp_path / "codes", tmp_path / "again", mini_tokenizer)
    assert files_of(tmp_path / "again") == files_of(public)
    rows = np.fromfile(public / "train_input_ids.memmap", np.int32).reshape(7, 64)
    before_end = np.argmax(rows == vocabulary_of(mini_tokenizer).speech_generation_end, axis=1)
    robbed = int(
        (before_end + 36 + 5 >= 64).sum()
    )  # tokens of the template before the text and before the codes
    assert 1 < robbed < 7
    assert reports["train"] == {
        "rows": 7,
        "width": 64,
        "dropped": {"overlong": 0},
        "end_lost_in_public": robbed,
    }


def test_import_goes_on_where_it_was_stopped(mini_tokenizer, public, tmp_path):
    import_memmap(public, tmp_path / "whole", mini_tokenizer, rows_per_part=2)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for name in ("train/part-00002.parquet", "train/meta.json", "val/part-00000.parquet"):
        (tmp_path / "part" / name).unlink()
    import_memmap(public, tmp_path / "part", mini_tokenizer, rows_per_part=2)
    assert files_of(tmp_path / "part") == files_of(tmp_path / "whole")
    with pytest.raises(InputError, match=r"part-00000\.parquet: made from other rows"):
        import_memmap(public, tmp_path / "part", mini_tokenizer, rows_per_part=3)


def test_rows_that_are_not_whole_are_dropped_and_counted(mini_tokenizer, tmp_path):
    ids, width = vocabulary_of(mini_tokenizer), 24
    good = public_row(mini_tokenizer, "a", [1, 2, 3], width)
    end, start = (
        int(np.flatnonzero(good == ids.speech_generation_end)[0]),
        int(np.flatnonzero(good == ids.speech_generation_start)[0]),
    )

    def changed(at, id):
        row = good.copy()
        row[at] = id
        return row

    two_pieces = mini_tokenizer.convert_tokens_to_ids(
        ["o", "f"]
    )  # the tokenizer itself would write "of" as one
    bad = {
        "cut": [public_row(mini_tokenizer, "a", np.arange(50), width)],
        "no_end": [np.full(width, good[-1]), np.where(np.arange(width) == end, good[-1], good)],
        "foreign_ids": [
            changed(0, good[-1]),
            changed(1, ids.first_code),
            changed(1, -1),
            changed(start + 1, 5),
            changed(start + 1, ids.size),
            changed(start + 1, ids.speech_understanding_end),
            changed(end + 1, 5),
            changed(end + 2, ids.speech_generation_end),
            changed(start + 2, good[-1]),
            changed(1, good[-1]),
            changed(1, 2**31 - 1),
            changed(1, -(2**31)),
        ],
        "textless": [np.delete(np.append(good, good[-1]), 1)],
        "no_codes": [public_row(mini_tokenizer, "a", [], width)],
        "text_differs": [
            changed(1, mini_tokenizer.convert_tokens_to_ids("<|begin_of_text|>")),
            np.concatenate([good[:1], two_pieces, good[2:-1]]),
        ],
    }
    write_memmap(
        tmp_path / "public", "train", [*(row for rows in bad.values() for row in rows), good]
    )
    meta = import_memmap(tmp_path / "public", tmp_path / "codes", mini_tokenizer)["train"]
    assert meta["dropped"] == {reason: len(rows) for reason, rows in sorted(bad.items())}
    assert meta["utterances"] == 1 and read_codes(tmp_path / "codes/train")[0][
        "codes"
    ].tolist() == [1, 2, 3]


def test_rows_of_whole_pages_are_exported_byte_for_byte(mini_tokenizer, tmp_path):
    rows = [public_row(mini_tokenizer, "the office", np.arange(n), 1024) for n in range(1, 30)]
    write_memmap(tmp_path / "public", "train", rows)
    import_memmap(tmp_path / "public", tmp_path / "codes", mini_tokenizer, rows_per_part=7)
    export_memmap(tmp_path / "codes", tmp_path / "again", mini_tokenizer)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "public")


def test_block_that_cannot_be_written_past_the_page_cache_is_written_through_it(tmp_path):
    odd = np.arange(1001, dtype=np.int32)
    with memmap._open_for_blocks(tmp_path / "rows", 4096) as file:
        memmap._write_all(file, odd[1:])  # neither begins nor ends with a page
    np.testing.assert_array_equal(np.fromfile(tmp_path / "rows", np.int32), odd[1:])


def test_export_to_a_full_disk_is_one_line_and_leaves_nothing(
    mini_tokenizer, public, small_disk, tmp_path
):
    import_memmap(public, tmp_path / "codes", mini_tokenizer)
    disk = small_disk("8k")
    with pytest.raises(InputError, match=r"memmap: no space left on the disk"):
        export_memmap(tmp_path / "codes", disk / "again", mini_tokenizer, width=1024)
    assert not files_of(disk / "again")


def test_dataset_of_our_own_is_exported_as_train(manifest, codes, mini_tokenizer, tmp_path):
    lengths = read_codes(codes).lengths()
    report = export_memmap(codes, tmp_path / "public", mini_tokenizer, width=26)["train"]
    rows = np.fromfile(tmp_path / "public/train_input_ids.memmap", np.int32).reshape(-1, 26)
    assert np.load(tmp_path / "public/train_input_ids_shape.npy", allow_pickle=False).tolist() == [
        report["rows"],
        26,
    ]
    text = len(mini_tokenizer("text 0", add_special_tokens=False).input_ids)
    assert report["dropped"]["overlong"] > 0 and report["rows"] + report["dropped"][
        "overlong"
    ] == len(lengths)
    assert lengths.min() + text + 4 <= 26 < lengths.max() + text + 4
    np.testing.assert_array_equal(
        rows[0], public_row(mini_tokenizer, "text 0", read_codes(codes)[0]["codes"], 26)
    )


def test_transcript_that_spells_a_control_token_stays_text(mini_tokenizer, tmp_path):
    row = {
        "id": "a",
        "text": "<|s_1|><|eot_id|>",
        "codes": [7, 8],
        "speaker": "",
        "language": "",
        "seconds": 0.04,
    }
    settings = {"codec": "fake", "codebook_size": 4096, "frame_rate": 50.0}
    (tmp_path / "codes").mkdir()
    write_part(tmp_path / "codes/part-00000.parquet", [row], {**settings, "dropped": []})
    finish(tmp_path / "codes", 1, settings)
    export_memmap(tmp_path / "codes", tmp_path / "public", mini_tokenizer)
    ids, row = (
        vocabulary_of(mini_tokenizer),
        np.fromfile(tmp_path / "public/train_input_ids.memmap", np.int32),
    )
    text = row[1 : int(np.flatnonzero(row == ids.text_understanding_end)[0])]
    assert (
        len(text) > 5
        and (text < ids.text_size).all()
        and mini_tokenizer.convert_tokens_to_ids("<|eot_id|>") not in text
    )
    metas = import_memmap(tmp_path / "public", tmp_path / "again", mini_tokenizer)
    assert (
        metas["train"]["dropped"] == {}
        and read_codes(tmp_path / "again/train")[0]["text"] == "<|s_1|><|eot_id|>"
    )


@pytest.mark.slow
def test_released_ids_of_a_public_row(llama3_tokenizer, tmp_path):
    """The row that the public data tool writes for this text and these codes."""
    text_ids, codes = SAMPLE
    row = [128258, *text_ids, 128259, 128260, *(128264 + code for code in codes), 128261]
    write_memmap(tmp_path / "public", "train", [row + [128009] * (2048 - len(row))])
    import_memmap(tmp_path / "public", tmp_path / "codes", llama3_tokenizer)
    assert read_codes(tmp_path / "codes/train")[0]["codes"].tolist() == codes
    export_memmap(tmp_path / "codes", tmp_path / "again", llama3_tokenizer)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "public")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda f: (f / "train_input_ids_shape.npy").unlink(),
            r"train_input_ids_shape\.npy: cannot be read",
        ),
        (
            lambda f: np.save(f / "train_input_ids_shape.npy", [0]),
            r"train_input_ids_shape\.npy: holds \[0\]",
        ),
        (
            lambda f: np.save(f / "train_input_ids_shape.npy", [{}, {}]),
            r"shape\.npy: cannot be read .*pickle",
        ),
        (
            lambda f: np.save(f / "train_input_ids_shape.npy", [8, 64]),
            r"\.memmap: 1792 bytes, expected 8 rows of 64",
        ),
        (lambda f: shutil.rmtree(f), r"public: no \*_input_ids\.memmap"),
    ],
)
def test_bad_memory_map_is_refused_before_anything_is_written(
    mini_tokenizer, public, tmp_path, change, expected
):
    change(public)
    with pytest.raises(InputError, match=expected):
        import_memmap(public, tmp_path / "codes", mini_tokenizer)
    assert not (tmp_path / "codes").exists()


@pytest.mark.slow
def test_tokenizer_of_another_codec_is_refused(codes, llama3_tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"4096 codes, .* 65536"):
        export_memmap(codes, tmp_path / "public", llama3_tokenizer)
    assert not (tmp_path / "public").exists()


def test_codebook_of_more_than_16_bits_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected at most 65536"):
        write_part(tmp_path / "part-00000.parquet", [], {"codebook_size": 2**17})


def test_pairs_join_two_utterances_of_one_speaker_as_a_voice_prompt_is_built(codes, tmp_path):
    meta = join_pairs(codes, tmp_path / "pairs", seed=1)
    singles = {row["id"]: row for row in (read_codes(codes)[i] for i in range(COUNT))}
    pairs = read_codes(tmp_path / "pairs")
    assert (
        meta["utterances"]
        == len(pairs)
        == sum(n // 2 for n in read_codes(codes).meta["speakers"].values())
    )
    used = []
    for index in range(len(pairs)):
        pair = pairs[index]
        first, second = (singles[name] for name in pair["id"].split("+"))
        used += [first["id"], second["id"]]
        assert first["speaker"] == second["speaker"] and pair["speaker"] == ""
        assert pair["text"] == f"{first['text']} {second['text']}"
        np.testing.assert_array_equal(
            pair["codes"], np.concatenate([first["codes"], second["codes"]])
        )
        assert pair["seconds"] == pytest.approx(first["seconds"] + second["seconds"])
    assert len(used) == len(set(used))


def test_pairs_are_kept_when_finished_and_refused_for_another_seed(codes, tmp_path):
    join_pairs(codes, tmp_path / "pairs", seed=1, rows_per_part=2)
    before = files_of(tmp_path / "pairs")
    join_pairs(codes, tmp_path / "pairs", seed=1, rows_per_part=2)
    assert files_of(tmp_path / "pairs") == before
    with pytest.raises(InputError, match="choose another folder"):
        join_pairs(codes, tmp_path / "pairs", seed=2, rows_per_part=2)


def test_subset_holds_the_hours_and_lies_in_every_larger_one(codes, tmp_path):
    total = sum(row["seconds"] for row in map(read_codes(codes).__getitem__, range(COUNT)))
    members = []
    for share in (0.3, 0.6, 1.0):
        meta = nested_subset(codes, tmp_path / f"{share}", share * total / 3600, rows_per_part=3)
        subset = read_codes(tmp_path / f"{share}")
        assert share * total - 0.5 < meta["seconds"] <= share * total + 1e-3
        assert meta["codec"] == "fake" and len(subset) == meta["utterances"]
        members.append({subset[i]["id"]: subset[i]["codes"].tolist() for i in range(len(subset))})
    assert (
        members[0].items() <= members[1].items() <= members[2].items() and len(members[2]) == COUNT
    )
    other = nested_subset(codes, tmp_path / "other", 0.3 * total / 3600, seed=1)
    assert {read_codes(tmp_path / "other")[i]["id"] for i in range(other["utterances"])} != set(
        members[0]
    )


def test_subset_is_kept_and_what_cannot_be_given_is_refused(codes, tmp_path):
    nested_subset(codes, tmp_path / "subset", 0.0005)
    before = files_of(tmp_path / "subset")
    nested_subset(codes, tmp_path / "subset", 0.0005)
    assert files_of(tmp_path / "subset") == before
    with pytest.raises(InputError, match="made with other utterances"):
        nested_subset(codes, tmp_path / "subset", 0.0006)
    with pytest.raises(InputError, match="cannot give 5 of them"):
        nested_subset(codes, tmp_path / "large", 5.0)
    with pytest.raises(InputError, match="no utterance fits"):
        nested_subset(codes, tmp_path / "none", 1e-7)


def test_subset_without_overlong_utterances_still_has_the_hours_and_is_the_same_where_all_fit(
    codes, tmp_path
):
    dataset = read_codes(codes)
    lengths = sorted({len(dataset[i]["codes"]) for i in range(COUNT)})
    total = sum(
        dataset[i]["seconds"] for i in range(COUNT) if len(dataset[i]["codes"]) <= lengths[-2]
    )
    nested_subset(codes, tmp_path / "fitting", total / 3600, max_codes=lengths[-2])
    fitting = read_codes(tmp_path / "fitting")
    assert max(len(fitting[i]["codes"]) for i in range(len(fitting))) == lengths[-2]
    assert sum(fitting[i]["seconds"] for i in range(len(fitting))) == pytest.approx(total)
    nested_subset(codes, tmp_path / "all", 0.0005)
    before = files_of(tmp_path / "all")
    nested_subset(codes, tmp_path / "all", 0.0005, max_codes=lengths[-1])
    assert files_of(tmp_path / "all") == before
    with pytest.raises(InputError, match="more than 1 codes"):
        nested_subset(codes, tmp_path / "none", 0.0005, max_codes=1)
