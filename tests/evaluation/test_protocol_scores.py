"""Public metrics beside ours: word counts of the public scripts, similarities, seeds, and real
speech once through.
"""

import json
import random
import sys

import numpy as np
import pytest
import soundfile
from protocol_fixtures import esd, librispeech, samples, seed_tts, spoken, wav

from llasa_core import cli, judges
from llasa_core.codecs.fake import FakeCodec
from llasa_core.errors import InputError
from llasa_core.evaluation.protocols.preparation import prepare_protocol
from llasa_core.evaluation.protocols.scoring import evaluate_protocol
from llasa_core.evaluation.protocols.words import (
    CHINESE_PUNCTUATION,
    public_errors,
    seed_tts_text,
    simplified,
)
from llasa_core.files import read_rows
from llasa_core.judges import Judges
from llasa_core.judges.fake import fake_speech

TRANSCRIBER = judges.load_transcriber("fake")
EMBEDDER = judges.load_speaker_embedder("fake")
QUALITY = judges.load_quality_predictor("fake")


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("The cat's forty-two mats, sir!", "en", "the cat's fortytwo mats sir"),
        ("don’t", "en", "dont"),  # a curly apostrophe is one of zhon's marks
        ("a - b", "en", "a b"),  # one of two spaces goes
        ("今天，天气好。", "zh", "今 天 天 气 好"),
        ("OK 吗？", "zh", "O K   吗"),
    ],
)
def test_seed_tts_text_is_that_of_the_public_script(text, language, expected):
    assert seed_tts_text(text, language) == expected


def test_public_and_our_word_counts_differ_where_the_normalisers_do():
    assert public_errors("seed-tts", "Room seven.", "room 7", "en") == (1, 2)
    assert public_errors("whisper", "Room seven.", "room 7", "en") == (0, 2)
    assert public_errors("seed-tts", "forty-two", "forty two", "en") == (
        2,
        1,
    )  # one substituted, one inserted
    with pytest.raises(InputError, match="empty without punctuation"):
        public_errors("seed-tts", "—!", "x", "en")
    with pytest.raises(InputError, match="en and zh, got language 'de'"):
        public_errors("seed-tts", "ja", "ja", "de")


def test_chinese_is_simplified_first_and_needs_zhconv(monkeypatch):
    monkeypatch.setitem(sys.modules, "zhconv", None)
    with pytest.raises(InputError, match=r"needs zhconv .*llasa-core\[protocols\]"):
        public_errors("seed-tts", "今天", "今天", "zh")


def test_chinese_characters_are_counted_after_conversion():
    pytest.importorskip("zhconv")
    assert simplified("今天天氣") == "今天天气"
    assert public_errors("seed-tts", "今天天气好。", "今天，天氣很好", "zh") == (1, 5)


def test_punctuation_is_zhons():
    hanzi = pytest.importorskip("zhon.hanzi")
    assert set(CHINESE_PUNCTUATION) == set(hanzi.punctuation)


def test_seed_tts_scores_are_those_counted_by_hand(tmp_path):
    prepare_protocol("seed-tts-en", seed_tts(tmp_path / "set"), tmp_path / "p", codec=FakeCodec())
    said = {"u1": ("the cats forty two mats sir", 3), "u2": ("hello there", 3)}
    manifest = spoken(tmp_path / "spoken", said)
    rows, summary = evaluate_protocol(
        manifest, tmp_path / "p", tmp_path / "out", Judges(TRANSCRIBER, EMBEDDER, QUALITY)
    )
    # the | cat's -> cats | fortytwo -> forty, and two inserted | mats | sir: 3 of 5. Ours: "the cat
    # is 42 mats sir".
    assert [(row["public_errors"], row["public_words"]) for row in rows] == [(3, 5), (0, 2)]
    assert summary["public_wer"] == pytest.approx((3 / 5 + 0) / 2) and summary["public_wer_n"] == 2
    assert summary["corpus_wer"] == pytest.approx(
        sum(row["errors"] for row in rows) / sum(r["words"] for r in rows)
    )
    assert summary["corpus_wer"] != summary["public_wer"]
    assert [row["similarity_to_prompt"] > 0.9 for row in rows] == [
        True,
        False,
    ]  # u2 has the wrong voice
    assert summary["public_sim_o"] == pytest.approx(
        np.mean([row["similarity_to_prompt"] for row in rows]), abs=1e-6
    )
    assert summary["public_sim_r_n"] == 2 and summary["quality_n"] == 2
    assert all(
        f"{name}{end}" in summary
        for name in ("public_wer", "public_sim_o")
        for end in ("_low", "_high", "_n")
    )
    written = json.loads((tmp_path / "out/summary.json").read_text())
    assert written["metrics"] == summary and read_rows(tmp_path / "out/utterances.jsonl") == rows
    assert written["protocol"]["judged_as_published"] == {
        "transcriber": False,
        "speaker_embedder": False,
    }
    assert written["protocol"]["published_by"]["transcriber"] == "whisper-large-v3"


def test_sim_r_is_left_out_without_a_codec(tmp_path):
    prepare_protocol("seed-tts-en", seed_tts(tmp_path / "set"), tmp_path / "p")
    manifest = spoken(tmp_path / "spoken", {"u1": ("a", 3), "u2": ("b", 20)})
    _, summary = evaluate_protocol(
        manifest, tmp_path / "p", tmp_path / "out", Judges(speaker=EMBEDDER)
    )
    assert (
        summary["public_sim_o"] > 0.9
        and "public_sim_r" not in summary
        and "public_wer" not in summary
    )


def test_recordings_and_their_round_trip_are_scored_by_the_same_protocol(tmp_path):
    prepare_protocol("seed-tts-en", seed_tts(tmp_path / "set"), tmp_path / "p", codec=FakeCodec())
    for manifest in ("references.jsonl", "resynthesis/manifest.jsonl"):
        rows, summary = evaluate_protocol(
            tmp_path / "p" / manifest, tmp_path / "p", tmp_path / "o", Judges(TRANSCRIBER)
        )
        assert summary["public_wer_n"] == 2
        if manifest == "references.jsonl":
            assert [row["public_errors"] for row in rows] == [2, 0]  # fortytwo -> forty two


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"u1": ("a", 3)}, r"trial 'u2' was not spoken \(1 of 2 are missing\)"),
        (
            {"u1": ("a", 3), "u2": ("b", 3), "u9": ("c", 3)},
            "utterance 'u9' is not a trial of the protocol",
        ),
    ],
)
def test_trials_and_utterances_must_be_the_same(tmp_path, said, message):
    prepare_protocol("seed-tts-en", seed_tts(tmp_path / "set"), tmp_path / "p")
    with pytest.raises(InputError, match=message):
        evaluate_protocol(
            spoken(tmp_path / "spoken", said), tmp_path / "p", tmp_path / "out", Judges(TRANSCRIBER)
        )
    assert not (tmp_path / "out").exists()


def test_a_verifier_of_the_search_cannot_judge_the_prompts_similarity(tmp_path):
    prepare_protocol("seed-tts-en", seed_tts(tmp_path / "set"), tmp_path / "p")
    manifest = spoken(tmp_path / "spoken", {"u1": ("a", 3), "u2": ("b", 20)})
    manifest.write_text(
        manifest.read_text().replace('"seed": 0', '"seed": 0, "verifiers": ["fake"]')
    )
    with pytest.raises(InputError, match="fake chose 'u1' as a verifier"):
        evaluate_protocol(manifest, tmp_path / "p", tmp_path / "out", Judges(speaker=EMBEDDER))


def test_seeds_of_a_text_are_one_cluster_and_all_of_them_must_be_there(tmp_path):
    prepare_protocol("seed-tts-en", seed_tts(tmp_path / "set"), tmp_path / "p", seeds=2)
    said = {
        f"{id_}.s{seed}": (text, 3)
        for id_, text in (("u1", "the"), ("u2", "hello there"))
        for seed in (0, 1)
    }
    rows, summary = evaluate_protocol(
        spoken(tmp_path / "spoken", said),
        tmp_path / "p",
        tmp_path / "out",
        Judges(TRANSCRIBER, EMBEDDER),
    )
    assert [row["text_id"] for row in rows] == ["u1", "u1", "u2", "u2"]
    assert (summary["public_wer_n"], summary["public_wer"]) == (4, pytest.approx(0.4))
    assert (summary["public_wer_low"], summary["public_wer_high"]) == (
        0.0,
        pytest.approx(0.8),
    )  # of two texts, not four
    del said["u1.s1"]
    with pytest.raises(InputError, match=r"trial 'u1\.s1' was not spoken"):
        evaluate_protocol(
            spoken(tmp_path / "s2", said), tmp_path / "p", tmp_path / "o2", Judges(TRANSCRIBER)
        )


def test_continuation_is_heard_with_its_prompt_and_compared_without_it(tmp_path):
    prepare_protocol("librispeech-continuation", librispeech(tmp_path / "set"), tmp_path / "p")
    ids = ["121-70-0000", "61-70-0000", "61-70-0003"]
    manifest = spoken(tmp_path / "spoken", {id_: (" and more", 20) for id_ in ids})
    rows, summary = evaluate_protocol(
        manifest, tmp_path / "p", tmp_path / "out", Judges(TRANSCRIBER, EMBEDDER)
    )
    assert rows[1]["hypothesis"].split() == [
        "the",
        "cat",
        "sat",
        "on",
        "the",
        "mat",
        "and",
        "more",
    ]  # 3 s of prompt and 0.18 s
    assert (rows[1]["public_errors"], rows[1]["public_words"]) == (2, 6)
    assert summary["public_wer"] == pytest.approx(sum(r["public_errors"] for r in rows) / 18)
    assert [row["similarity_to_prompt"] > 0.9 for row in rows] == [True, False, False]
    assert rows[1]["seconds"] == pytest.approx(9 * 0.02) and summary["ended_at_once_share"] == 1.0
    joined = samples(tmp_path / "out/joined/61-70-0000.wav")
    assert len(joined) == 48_000 + 9 * 320
    # The recording already holds its beginning: its words are its own, its similarity is that of
    # the rest.
    rows, summary = evaluate_protocol(
        tmp_path / "p/references.jsonl",
        tmp_path / "p",
        tmp_path / "human",
        Judges(TRANSCRIBER, EMBEDDER),
    )
    assert summary["public_wer"] == 0.0 and summary["public_sim_o"] > 0.9
    assert rows[1]["seconds"] == pytest.approx(2.5)


def test_speaker_centroids_stand_beside_sim_o_where_speakers_have_several_recordings(tmp_path):
    prepare_protocol("librispeech-cross", librispeech(tmp_path / "set"), tmp_path / "p")
    said = {id_: ("x", 3) for id_ in ("61-70-0000", "61-70-0003")} | {"121-70-0000": ("x", 20)}
    _, summary = evaluate_protocol(
        spoken(tmp_path / "s", said), tmp_path / "p", tmp_path / "o", Judges(speaker=EMBEDDER)
    )
    assert (
        summary["public_sim_o"] > 0.9 and "speaker_similarity" not in summary
    )  # 121 has one recording of 4 to 10 s


def test_emotion_is_compared_with_the_prompt(tmp_path):
    prepare_protocol("esd-en", esd(tmp_path / "set"), tmp_path / "p")
    trials = read_rows(tmp_path / "p/trials.jsonl")
    # Each emotion has a tone of its own in the fixtures; all are spoken with that of Angry.
    manifest = spoken(tmp_path / "s", {row["id"]: ("eggs", 1) for row in trials})
    rows, summary = evaluate_protocol(
        manifest, tmp_path / "p", tmp_path / "out", Judges(emotion=EMBEDDER)
    )
    assert {row["emotion"] for row in rows if row["emotion_similarity"] > 0.9} == {"Angry"}
    assert summary["public_emotion_similarity"] == pytest.approx(
        np.mean([row["emotion_similarity"] for row in rows]), abs=1e-6
    )
    human, summary = evaluate_protocol(
        tmp_path / "p/references.jsonl",
        tmp_path / "p",
        tmp_path / "human",
        Judges(emotion=EMBEDDER),
    )
    assert summary["public_emotion_similarity"] > 0.99 and len(human) == 15


def test_emotion_model_that_is_absent_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "funasr", None)
    with pytest.raises(InputError, match=r"emotion2vec needs funasr .*llasa-core\[protocols\]"):
        judges.load_emotion_embedder()


@pytest.mark.slow
def test_codec_protocol_has_every_score_of_the_papers_table(tmp_path):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    pytest.importorskip("hibari")
    from llasa_core.data.corpora.synthetic import VOICES, speak

    chapter = tmp_path / "test-clean/7/9"
    chapter.mkdir(parents=True)
    texts = ["the train leaves at half past nine", "please bring four apples"]
    for number, text in enumerate(texts):
        soundfile.write(
            chapter / f"7-9-{number:04d}.flac", speak(text, VOICES[0]), 16000, subtype="PCM_16"
        )
    (chapter / "7-9.trans.txt").write_text(
        "".join(f"7-9-{n:04d} {t.upper()}\n" for n, t in enumerate(texts))
    )
    prepare_protocol("codec", tmp_path / "test-clean", tmp_path / "p", codec=FakeCodec())
    both = {}
    for name, manifest in (
        ("recordings", "references.jsonl"),
        ("codec", "resynthesis/manifest.jsonl"),
    ):
        _, both[name] = evaluate_protocol(
            tmp_path / "p" / manifest,
            tmp_path / "p",
            tmp_path / name,
            Judges(TRANSCRIBER, EMBEDDER, QUALITY),
        )
    names = (
        "public_wer",
        "public_stoi",
        "public_pesq_wb",
        "public_pesq_nb",
        "public_similarity",
        "quality",
    )
    for summary in both.values():
        assert all(
            f"{name}{end}" in summary for name in names for end in ("", "_low", "_high", "_n")
        )
    # A recording against itself: the ceiling that the paper's first row shows (4.64, 4.55, 1.00,
    # 1.00).
    assert both["recordings"]["public_pesq_wb"] == pytest.approx(4.64, abs=0.01)
    assert both["recordings"]["public_pesq_nb"] == pytest.approx(4.55, abs=0.01)
    assert both["recordings"]["public_stoi"] == pytest.approx(1.0, abs=1e-3)
    assert both["recordings"]["public_similarity"] == pytest.approx(1.0)
    assert both["codec"]["public_stoi"] < 0.9 and both["codec"]["public_pesq_wb"] < 4


def test_recognised_texts_are_scored_as_llasa_transcribe_prints_them(tmp_path, capsys):
    prepare_protocol("asr", librispeech(tmp_path / "set"), tmp_path / "p")
    ids = [row["id"] for row in read_rows(tmp_path / "p/trials.jsonl")]
    texts = {row["id"]: row["text"] for row in read_rows(tmp_path / "p/trials.jsonl")}
    texts["61-70-0003"] = "room 7 is taken now"  # one deletion: the digit is the same word
    lines = [f"/data/test-clean/{id_}.flac\t{texts[id_].lower()}" for id_ in reversed(ids)]
    (tmp_path / "heard.tsv").write_text("\n".join(lines) + "\n")
    command = [
        "evaluate",
        str(tmp_path / "heard.tsv"),
        str(tmp_path / "out"),
        "--protocol",
        str(tmp_path / "p"),
    ]
    assert cli.main(command) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (
        summary["public_wer"]
        == summary["corpus_wer"]
        == pytest.approx(1 / (6 + 3 + 2 + 6 + 3 + 2 + 6))
    )
    assert summary["public_wer_n"] == 7 and summary["seconds"] > 40
    (tmp_path / "heard.tsv").write_text("\n".join(lines[1:]) + "\n")
    assert cli.main(command) == 2
    assert f"trial '{ids[-1]}' was not recognised (1 of 7 are missing)" in capsys.readouterr().err
    (tmp_path / "heard.tsv").write_text("\n".join([*lines, "other.wav\tx"]))
    assert cli.main(command) == 2
    assert "heard.tsv:8: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--protocol", "p", "--references", "p/references.jsonl"], "brings its own references"),
        (["--emotion", "fake"], "--emotion compares with the prompts of a protocol"),
        (
            ["--protocol", "set"],
            "set/protocol.json: no such file, expected a folder of: llasa protocol",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, monkeypatch, capsys, extra, message):
    monkeypatch.chdir(tmp_path)
    prepare_protocol("seed-tts-en", seed_tts(tmp_path / "set"), tmp_path / "p")
    assert (
        cli.main(
            ["evaluate", "p/references.jsonl", "out", "--asr", "fake", "--quality", "none", *extra]
        )
        == 2
    )
    assert message in capsys.readouterr().err


def test_public_formula_agrees_with_a_direct_count_on_random_texts():
    """The public mean of rates, by an edit distance written out here."""
    rng = random.Random(0)
    vocabulary = ["a", "b", "c's", "d-e", "F"]
    for _ in range(200):
        said, heard = ([rng.choice(vocabulary) for _ in range(rng.randint(1, 6))] for _ in "12")
        plain = [[word.replace("-", "").lower() for word in words] for words in (said, heard)]
        distance = np.arange(len(plain[1]) + 1)
        for i, word in enumerate(plain[0], start=1):
            row = [i]
            for j, other in enumerate(plain[1], start=1):
                row.append(min(row[-1] + 1, distance[j] + 1, distance[j - 1] + (word != other)))
            distance = np.array(row)
        counted = public_errors("seed-tts", " ".join(said) + ".", ", ".join(heard), "en")
        assert counted == (distance[-1], len(said))


@pytest.mark.slow
def test_real_voices_through_seed_tts_eval(tmp_path):
    """Built-in voices laid out as the benchmark, heard by real judges: the right voice scores
    higher.
    """
    for package in ("hibari", "faster_whisper", "onnxruntime"):
        pytest.importorskip(package)
    from llasa_core.data.corpora.synthetic import VOICES, speak

    texts = {
        "a": "The red lamp stands in the hall.",
        "b": "Please bring four apples and a bottle of milk.",
    }
    lines = []
    for place, (id_, text) in enumerate(texts.items()):
        prompt = tmp_path / f"set/en/prompt-wavs/{id_}.wav"
        prompt.parent.mkdir(parents=True, exist_ok=True)
        said = "We will meet Alice at the station on Friday."
        soundfile.write(prompt, speak(said, VOICES[place]), 16000, subtype="PCM_16")
        lines.append(f"{id_}|{said}|prompt-wavs/{id_}.wav|{text}")
    (tmp_path / "set/en/meta.lst").write_text("\n".join(lines))
    prepare_protocol("seed-tts-en", tmp_path / "set", tmp_path / "p")
    transcriber, embedder = judges.load_transcriber(), judges.load_speaker_embedder()
    summaries = []
    for voices in (VOICES[:2], VOICES[1::-1]):
        manifest = spoken(tmp_path / voices[0].name, {id_: ("x", 0) for id_ in texts})
        for voice, (id_, text) in zip(voices, texts.items(), strict=True):
            soundfile.write(
                manifest.parent / f"wavs/{id_}.wav", speak(text, voice), 16000, subtype="PCM_16"
            )
        summaries.append(
            evaluate_protocol(
                manifest, tmp_path / "p", tmp_path / "o", Judges(transcriber, embedder)
            )[1]
        )
    right, swapped = summaries
    assert right["public_wer"] <= 0.2 and right["public_sim_o"] > swapped["public_sim_o"] + 0.1


def test_fixture_speech_is_heard_at_the_file_it_was_written_to(tmp_path):
    assert TRANSCRIBER.transcribe([samples(wav(tmp_path / "a.wav", "cat", 3))], 16000) == ["cat"]
    assert len(fake_speech("cat")) == 960
