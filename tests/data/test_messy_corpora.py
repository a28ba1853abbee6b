"""Corpora as people bring them: each is read right, or refused in one line; nothing is lost or
garbled in silence.
"""

import pytest
from messy_corpora import LAYOUTS, sound

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
