"""Corpora as people bring them: each is read right, or refused in one line; nothing is lost or
garbled in silence.
"""

import json

import numpy as np
import pytest
from messy_corpora import (
    LAYOUTS,
    bad_lines,
    other_formats,
    plain,
    recording,
    recordings,
    sound,
    table,
)

from llasa_core import cli
from llasa_core.audio import load_audio
from llasa_core.data.corpora.prepare import prepare
from llasa_core.data.corpora.readers import read_corpus
from llasa_core.errors import InputError
from llasa_core.manifest import read_manifest


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_corpus_is_read_right_or_refused_in_one_line(write, tmp_path):
    expected, said = write(tmp_path / "corpus"), []
    source = tmp_path / "corpus" / expected.source
    if expected.refused:
        with pytest.raises(InputError) as raised:
            list(read_corpus(source))
        assert expected.refused in str(raised.value) and "\n" not in str(raised.value)
        return
    report = prepare(read_corpus(source, tell=said.append), tmp_path / "out")
    found = [
        utterance
        for split in ("train", "dev", "test")
        for utterance in read_manifest(tmp_path / f"out/{split}.jsonl")
    ]
    assert sorted((one.id, one.text, one.speaker) for one in found) == sorted(expected.rows)
    assert report["dropped"] == dict(sorted(expected.dropped.items()))
    assert report["seen"] == len(expected.rows) + sum(expected.dropped.values())
    assert report["first_dropped"].keys() == expected.dropped.keys()
    assert any(expected.said in line for line in said) and not any("\n" in line for line in said)
    for one in found if write.__name__ not in ("integers", "bad_lines") else ():
        assert len(load_audio(one.audio)) == len(sound(one.id.rpartition("/")[2]))


def lines_told(capsys):
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return [line for line in error.splitlines() if line.startswith("llasa: ")]


def test_a_corpus_of_which_more_than_a_tenth_is_left_out_ends_with_status_1(tmp_path, capsys):
    other_formats(tmp_path / "corpus")
    command = ["prepare", str(tmp_path / "corpus"), str(tmp_path / "out")]
    assert cli.main(command) == 1
    *others, last = lines_told(capsys)
    assert last.startswith("llasa: 2 of 4 utterances were left out (50%), more than a tenth")
    (reason,) = [line for line in others if "needs_ffmpeg" in line]
    assert "unreadable: needs ffmpeg" in reason and reason.endswith("wavs/u3.m4a")
    assert cli.main([*command, "--allow-dropped"]) == 0
    assert lines_told(capsys)[-1].endswith("more than a tenth")
    plain(tmp_path / "good")
    assert cli.main(["prepare", str(tmp_path / "good"), str(tmp_path / "fine")]) == 0


def test_encode_names_the_first_of_each_reason_and_ends_with_status_1(tmp_path, capsys):
    bad_lines(tmp_path / "corpus")
    manifest, out = str(tmp_path / "corpus/train.jsonl"), str(tmp_path / "codes")
    assert cli.main(["encode", manifest, out, "--codec", "fake"]) == 1
    *others, last = lines_told(capsys)
    assert "6 of 11 utterances were left out (55%)" in last
    assert any("left out 2: bad_id" in line and "train.jsonl:2 " in line for line in others)
    assert cli.main(["encode", manifest, out, "--codec", "fake", "--allow-dropped"]) == 0
    assert cli.main(["encode", manifest, out, "--codec", "fake", "--max-seconds", "9"]) == 2
    assert "made with limits None, not {'max_seconds': 9.0}" in lines_told(capsys)[-1]
    (tmp_path / "test.jsonl").write_text("")
    empty = ["encode", str(tmp_path / "test.jsonl"), str(tmp_path / "none"), "--codec", "fake"]
    assert cli.main(empty) == 0
    assert cli.main(["data", "report", str(tmp_path / "none"), "-o", str(tmp_path / "r")]) == 2


@pytest.mark.slow
def test_split_length_and_held_out_parts_are_options(tmp_path, capsys):
    names = [f"u{number:02d}" for number in range(60)]
    recordings(tmp_path / "corpus", names)
    recording(tmp_path / "corpus/wavs/long.wav", np.tile(sound("long"), 70))
    table(tmp_path / "corpus", [f"{name}|some words" for name in [*names, "long"]])
    command = ["prepare", str(tmp_path / "corpus"), str(tmp_path / "out")]

    def splits(*options):
        assert cli.main([*command, *options]) == 0
        captured = capsys.readouterr()
        report = json.loads(captured.out)
        counts = [report["splits"][name]["utterances"] for name in ("train", "dev", "test")]
        return counts, report["dropped"], captured.err

    counts, dropped, told = splits()
    assert (counts, dropped) == ([48, 6, 6], {"too_long": 1})
    assert "only 6 dev and 6 test utterances" in told and "see --max-seconds" in told
    assert splits("--max-seconds", "60")[:2] == ([49, 6, 6], {})
    assert splits("--min-held-out", "2")[0] == [56, 2, 2]
    counts, _, told = splits("--split", "1,0,0")
    assert counts == [60, 0, 0] and "only" not in told
    assert cli.main([*command, "--split", "0.5,0.6,0"]) == 2
    assert cli.main(["prepare", "builtin", str(tmp_path / "b"), "--max-seconds", "9"]) == 2
