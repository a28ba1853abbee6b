import json
import sys

import numpy as np
import pytest
import soundfile

from llasa_core import intervals, judges
from llasa_core.errors import InputError
from llasa_core.evaluation.scoring import (
    embed_references,
    evaluate_manifest,
    speech_settings,
)
from llasa_core.evaluation.summary import by_speaker, summarise
from llasa_core.evaluation.utterances import read_utterances
from llasa_core.files import read_rows
from llasa_core.judges import Judges
from llasa_core.judges.fake import fake_speech

TRANSCRIBER = judges.load_transcriber("fake")
EMBEDDER = judges.load_speaker_embedder("fake")
QUALITY = judges.load_quality_predictor("fake")
TONE = {"ann": 3, "bob": 20}


def write_manifest(folder, utterances):
    """utterances: (id, text, spoken text, speaker, tone of that speaker, further keys)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for id_, text, spoken, speaker, tone, further in utterances:
        soundfile.write(
            folder / f"{id_}.wav", fake_speech(spoken, TONE[tone]), 16000, subtype="PCM_16"
        )
        lines.append(
            json.dumps(
                {"id": id_, "audio": f"{id_}.wav", "text": text, "speaker": speaker, **further}
            )
        )
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "manifest.jsonl"


@pytest.fixture
def references(tmp_path):
    return write_manifest(
        tmp_path / "originals",
        [
            (f"{who}-{i}", "the cat sat", "the cat sat", who, who, {})
            for who in ("ann", "bob")
            for i in range(3)
        ],
    )


@pytest.fixture
def manifest(tmp_path):
    return write_manifest(
        tmp_path / "spoken",
        [
            (
                "u1",
                "The cat sat on the mat.",
                "the hat sat on the mat",
                "ann",
                "ann",
                {"ended": True},
            ),
            ("u2", "Room seven.", "room seven.", "bob", "bob", {"ended": True}),
            ("u3", "Call five five five one two.", "call 555-12", "ann", "bob", {"ended": False}),
            ("u4", "Hello.", ".", "bob", "bob", {"ended": True}),
        ],
    )


def test_every_number_of_a_small_manifest_is_the_one_counted_by_hand(
    tmp_path, manifest, references
):
    rows, summary = evaluate_manifest(
        manifest, tmp_path / "out", Judges(TRANSCRIBER, EMBEDDER, QUALITY), references=references
    )
    assert [(row["errors"], row["words"]) for row in rows] == [(1, 6), (0, 2), (2, 2), (1, 1)]
    assert [(row["digit_errors"], row["digit_words"]) for row in rows] == [
        (1, 6),
        (0, 2),
        (0, 6),
        (1, 1),
    ]
    assert summary["corpus_wer"] == pytest.approx(4 / 11) and summary["corpus_wer_n"] == 4
    assert summary["corpus_wer_spoken_digits"] == pytest.approx(2 / 15)
    assert summary["mean_utterance_wer"] == pytest.approx((1 / 6 + 0 + 1 + 1) / 4)
    assert [row["nearest_speaker"] for row in rows[:3]] == ["ann", "bob", "bob"]
    assert [row["similarity"] > 0.9 for row in rows] == [True, True, False, True]
    assert summary["nearest_speaker_share_n"] == 4
    assert summary["never_ended_share"] == 0.25 and summary["ended_at_once_share"] == 0.25
    assert summary["never_ended_share_low"] == pytest.approx(intervals.wilson_interval(1, 4).low)
    assert summary["utterances"] == 4 and summary["seconds"] == pytest.approx(
        (22 + 11 + 11 + 1) * 0.02
    )
    assert 1 <= summary["quality"] <= 5
    for name in ("corpus_wer", "mean_utterance_wer", "corpus_cer", "speaker_similarity", "quality"):
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
    assert all(np.isfinite(value) for value in summary.values())


def test_corpus_rates_weigh_by_length_and_the_mean_of_utterances_does_not():
    words = {"errors": [1, 0, 2], "words": [2, 8, 10]}
    letters = {"character_errors": [3, 0, 2], "characters": [10, 40, 50]}
    columns = words | letters | {"seconds": [1.0, 1.0, 1.0]}
    summary = summarise(
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    )
    assert summary["corpus_wer"] == pytest.approx(3 / 20)
    assert summary["mean_utterance_wer"] == pytest.approx((0.5 + 0 + 0.2) / 3)
    assert summary["corpus_cer"] == pytest.approx(5 / 100)


def test_shares_of_several_seeds_have_intervals_over_texts_and_say_how_many():
    rows = [
        {"id": f"{text}.s{seed}", "text_id": f"t{text}", "seconds": 1.0, "ended": text % 4 > 0}
        for text in range(20)
        for seed in range(30)
    ]
    summary = summarise(
        rows
    )  # 5 of 20 texts never end, whatever the seed: 600 rows know no more than 20
    assert (summary["utterances"], summary["texts"]) == (600, 20)
    assert (summary["never_ended_share"], summary["never_ended_share_n"]) == (0.25, 600)
    assert summary["never_ended_share_texts"] == 20
    alone = summarise(
        [{key: value for key, value in row.items() if key != "text_id"} for row in rows]
    )
    assert "texts" not in alone and "never_ended_share_texts" not in alone
    assert alone["never_ended_share_low"] == pytest.approx(intervals.wilson_interval(150, 600).low)
    assert summary["never_ended_share_low"] < 0.11 < 0.21 < alone["never_ended_share_low"]
    assert summary["never_ended_share_high"] > 0.4 > 0.29 > alone["never_ended_share_high"]
    none = intervals.wilson_interval(
        0, 20
    )  # no text ended at once: a bootstrap would be sure of it
    assert (summary["ended_at_once_share_low"], summary["ended_at_once_share_high"]) == (
        none.low,
        none.high,
    )
    once = summarise(rows[::30])  # texts named, each spoken once
    assert once["never_ended_share_low"] == pytest.approx(intervals.wilson_interval(5, 20).low)


def test_intervals_by_speaker_are_those_of_another_choice_of_voices():
    rows = [
        {"id": f"{name}{n}", "speaker": name, "seconds": 1.0, "similarity": value, "ended": True}
        for name, value in (("ann", 0.2), ("bob", 0.5), ("eve", 0.8))
        for n in range(100)
    ]
    summary = summarise(rows)
    # three voices: all draws alike have a chance of 1 in 27 each, more than the 2.5 % left out
    ends = (
        summary["speaker_similarity_by_speaker_low"],
        summary["speaker_similarity_by_speaker_high"],
    )
    assert ends == (pytest.approx(0.2), pytest.approx(0.8)) and summary["speakers"] == 3
    assert (
        0.45 < summary["speaker_similarity_low"] < 0.5 < summary["speaker_similarity_high"] < 0.55
    )
    assert summary["never_ended_share_by_speaker_high"] == 0.0
    assert not [key for key in summarise(rows[:100]) if "speakers" in key or "by_speaker" in key]
    unnamed = [{key: value for key, value in row.items() if key != "speaker"} for row in rows]
    kept = {key: value for key, value in summary.items() if "by_speaker" not in key}
    assert summarise(unnamed) == {key: kept[key] for key in kept if key != "speakers"}


def test_each_speaker_is_summarised_on_its_own():
    rows = [
        {"id": f"{name}{n}", "speaker": name, "seconds": 1.0, "errors": errors, "words": 10}
        for name, errors in (("bob", 4), ("ann", 1))
        for n in range(3)
    ]
    speakers = by_speaker(rows)
    assert list(speakers) == ["ann", "bob"]
    assert [one["corpus_wer"] for one in speakers.values()] == pytest.approx([0.1, 0.4])
    assert speakers["ann"]["utterances"] == 3 and "speakers" not in speakers["ann"]


def test_speech_from_prompts_is_compared_with_the_prompt_of_its_speaker(
    tmp_path, manifest, references
):
    folder = references.parent
    prompts = {"ann": folder / "ann-0.wav", "bob": folder / "bob-0.wav", "eve": "not.wav"}
    rows, summary = evaluate_manifest(
        manifest, tmp_path / "out", Judges(speaker=EMBEDDER), references, prompts=prompts
    )
    alike = [row["similarity_to_prompt"] > 0.9 for row in rows]
    assert alike == [True, True, False, True]  # u3 is to be ann and sounds like bob
    found = np.mean([row["similarity_to_prompt"] for row in rows])
    assert summary["similarity_to_prompt"] == pytest.approx(found)
    assert summary["similarity_to_prompt_n"] == 4
    low, high = (summary[f"similarity_to_prompt_by_speaker_{end}"] for end in ("low", "high"))
    assert low < summary["similarity_to_prompt"] < high

    def score(path, prompts, judges):
        evaluate_manifest(path, tmp_path / "out", judges, references, prompts=prompts)

    with pytest.raises(InputError, match="'u2' by 'bob' has no prompt"):
        score(manifest, {"ann": folder / "ann-0.wav"}, Judges(speaker=EMBEDDER))
    with pytest.raises(InputError, match="'ann-0' is the prompt itself"):
        score(references, prompts, Judges(speaker=EMBEDDER))
    with pytest.raises(InputError, match="prompts belong together with a speaker embedder"):
        evaluate_manifest(manifest, tmp_path / "out", Judges(TRANSCRIBER), prompts=prompts)


def test_the_summary_is_recomputed_from_the_written_rows_alone(tmp_path, manifest, references):
    out = tmp_path / "out"
    rows, summary = evaluate_manifest(
        manifest, out, Judges(TRANSCRIBER, EMBEDDER, QUALITY), references=references, seed=5
    )
    assert read_rows(out / "utterances.jsonl") == rows
    assert summarise(read_rows(out / "utterances.jsonl"), seed=5) == summary
    written = json.loads((out / "summary.json").read_text())
    assert written["metrics"] == summary and written["seed"] == 5
    assert written["judges"]["transcriber"] == "fake (fake)"
    assert sorted(file.name for file in out.iterdir()) == ["summary.json", "utterances.jsonl"]


def test_seeds_of_a_text_that_the_manifest_names_are_resampled_together(tmp_path):
    lines = [
        (f"u{i}", "Room seven.", "room seven.", "ann", "ann", {"text_id": f"t{i % 2}"})
        for i in range(4)
    ]
    rows, summary = evaluate_manifest(
        write_manifest(tmp_path / "spoken", lines), tmp_path / "out", Judges(TRANSCRIBER)
    )
    assert [row["text_id"] for row in rows] == ["t0", "t1", "t0", "t1"]
    assert (summary["texts"], summary["corpus_wer_n"], summary["corpus_wer_texts"]) == (2, 4, 2)


def test_a_metric_without_its_judge_is_left_out(tmp_path, manifest):
    rows, summary = evaluate_manifest(manifest, tmp_path / "out", Judges(quality=QUALITY))
    assert (
        "corpus_wer" not in summary
        and "speaker_similarity" not in summary
        and "hypothesis" not in rows[0]
    )
    assert summary["quality_n"] == 4


def test_an_original_is_compared_with_the_other_recordings_of_its_speaker(tmp_path):
    originals = write_manifest(
        tmp_path / "originals",
        [
            ("a1", "cat", "cat", "ann", "ann", {}),
            ("a2", "cat", "cat", "ann", "bob", {}),  # labelled ann, but sounds like bob
            ("b1", "cat", "cat", "bob", "bob", {}),
            ("b2", "cat", "cat", "bob", "bob", {}),
        ],
    )
    rows, summary = evaluate_manifest(
        originals, tmp_path / "out", Judges(speaker=EMBEDDER), references=originals
    )
    assert rows[0]["similarity"] < 0.1  # only a2 is left for ann
    assert [row["nearest_speaker"] for row in rows[1:]] == ["bob", "bob", "bob"]
    assert summary["nearest_speaker_share_n"] == 4
    assert "never_ended_share" not in summary


def test_references_are_embedded_once_and_drawn_by_seed(tmp_path, manifest, references):
    embedded = embed_references(references, EMBEDDER, per_speaker=2, seed=1)
    assert embedded.speakers == ("ann", "ann", "bob", "bob")
    assert embed_references(references, EMBEDDER, per_speaker=2, seed=1).ids == embedded.ids
    rows, _ = evaluate_manifest(
        manifest, tmp_path / "out", Judges(speaker=EMBEDDER), references=embedded
    )
    assert rows[0]["nearest_speaker"] == "ann"


def test_a_single_reference_speaker_gives_similarity_but_no_nearest_speaker(tmp_path):
    manifest = write_manifest(
        tmp_path / "one", [(f"a{i}", "cat", "cat", "ann", "ann", {}) for i in range(2)]
    )
    _, summary = evaluate_manifest(
        manifest, tmp_path / "out", Judges(speaker=EMBEDDER), references=manifest
    )
    assert summary["speaker_similarity"] > 0.9 and "nearest_speaker_share" not in summary


def test_resynthesis_is_scored_against_its_original_and_too_short_speech_is_counted(tmp_path):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    pytest.importorskip("hibari")
    from llasa_core.data.corpora.synthetic import VOICES, speak

    wave = speak("the train leaves at half past nine", VOICES[0])
    manifest = write_manifest(
        tmp_path / "spoken", [(i, "cat", "cat", "ann", "ann", {}) for i in ("long", "short")]
    )
    soundfile.write(tmp_path / "spoken" / "long.wav", wave, 16000)
    soundfile.write(tmp_path / "original.wav", wave, 16000)
    files = {"long": tmp_path / "original.wav", "short": tmp_path / "spoken" / "short.wav"}
    rows, summary = evaluate_manifest(manifest, tmp_path / "out", Judges(), reference_audio=files)
    assert rows[0]["stoi"] == pytest.approx(1.0, abs=1e-3) and rows[0]["pesq_wb"] > 4.5
    assert rows[0]["pesq_nb"] > 4.5
    assert rows[1]["stoi"] is None and rows[1]["pesq_wb"] is None and rows[1]["pesq_nb"] is None
    assert (summary["stoi_n"], summary["stoi_unscored"], summary["pesq_wb_unscored"]) == (1, 1, 1)
    assert (summary["pesq_nb_n"], summary["pesq_nb_unscored"]) == (1, 1)
    with pytest.raises(InputError, match="'short' has no reference audio"):
        evaluate_manifest(
            manifest,
            tmp_path / "out",
            Judges(),
            reference_audio={"long": tmp_path / "original.wav"},
        )


def test_similarity_to_the_original_needs_no_other_recording(tmp_path, manifest, monkeypatch):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    files = {f"u{i}": manifest.parent / f"u{i}.wav" for i in range(1, 5)}
    soundfile.write(
        tmp_path / "bob.wav",
        fake_speech("the hat sat on the mat", TONE["bob"]),
        16000,
        subtype="PCM_16",
    )
    rows, summary = evaluate_manifest(
        manifest, tmp_path / "out", Judges(speaker=EMBEDDER), reference_audio=files
    )
    assert (
        summary["similarity_to_original"] == pytest.approx(1.0)
        and summary["similarity_to_original_n"] == 4
    )
    rows, _ = evaluate_manifest(
        manifest,
        tmp_path / "out",
        Judges(speaker=EMBEDDER),
        reference_audio=files | {"u1": tmp_path / "bob.wav"},
    )
    assert rows[0]["similarity_to_original"] < 0.1 and "similarity" not in rows[0]


def test_pesq_that_is_asked_for_and_absent_is_a_clear_error(tmp_path, manifest, monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)  # as where it is not installed
    files = {f"u{i}": manifest.parent / f"u{i}.wav" for i in range(1, 5)}
    with pytest.raises(
        InputError,
        match=r"PESQ needs pesq, which a C compiler builds .*llasa-core\[judges\]",
    ):
        evaluate_manifest(manifest, tmp_path / "out", Judges(), reference_audio=files)


def test_a_missing_wav_is_named_before_anything_is_scored_or_written(tmp_path, manifest):
    class Untouched:
        name = version = "untouched"

        def transcribe(self, waves, sample_rate, language="en"):
            raise AssertionError("scored before the manifest was checked")

    (manifest.parent / "u3.wav").unlink()
    with pytest.raises(
        InputError, match=r"manifest\.jsonl: audio file .*u3\.wav of utterance 'u3' is missing"
    ):
        evaluate_manifest(manifest, tmp_path / "out", Judges(Untouched()))
    assert not (tmp_path / "out").exists()


def test_an_interrupted_evaluation_leaves_nothing(tmp_path, manifest):
    class Failing:
        name = version = "failing"

        def score(self, waves, sample_rate):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_manifest(manifest, tmp_path / "out", Judges(TRANSCRIBER, quality=Failing()))
    assert not (tmp_path / "out").exists()


def test_a_judge_that_returns_nan_is_an_input_error_that_names_the_audio(tmp_path, manifest):
    class NotANumber:
        name = version = "nan"

        def score(self, waves, sample_rate):
            return np.full(len(waves), np.nan)

    with pytest.raises(InputError, match=r"u1\.wav: quality is nan"):
        evaluate_manifest(manifest, tmp_path / "out", Judges(quality=NotANumber()))


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "no utterances"),
        ("{broken", ":1: not JSON"),
        ("[1]", ":1: a JSON list"),
        ('{"id": "a", "audio": "a.wav"}', ":1: the key 'text' is missing"),
    ],
)
def test_a_broken_manifest_names_the_line(tmp_path, content, message):
    (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(InputError, match=f"m.jsonl.*{message}"):
        evaluate_manifest(tmp_path / "m.jsonl", tmp_path / "out", Judges(TRANSCRIBER))


def test_other_bad_input_is_refused(tmp_path, manifest, references):
    with pytest.raises(InputError, match=r"absent\.jsonl: No such file"):
        evaluate_manifest(tmp_path / "absent.jsonl", tmp_path / "out", Judges(TRANSCRIBER))
    with pytest.raises(InputError, match="nothing to score with"):
        evaluate_manifest(manifest, tmp_path / "out", Judges())
    with pytest.raises(InputError, match="belong together"):
        evaluate_manifest(manifest, tmp_path / "out", Judges(speaker=EMBEDDER))
    eve = write_manifest(tmp_path / "eve", [("e", "cat", "cat", "eve", "ann", {})])
    with pytest.raises(InputError, match="utterance 'e' by 'eve' has no other reference"):
        evaluate_manifest(eve, tmp_path / "out", Judges(speaker=EMBEDDER), references=references)
    with pytest.raises(InputError, match="utterance 'e' by 'eve' has no other reference"):
        evaluate_manifest(
            eve,
            tmp_path / "out",
            Judges(speaker=EMBEDDER),
            references=embed_references(eve, EMBEDDER),
        )
    silent = write_manifest(tmp_path / "silent", [("s", "(laughs)", "cat", "ann", "ann", {})])
    with pytest.raises(InputError, match="empty after normalisation"):
        evaluate_manifest(silent, tmp_path / "out", Judges(TRANSCRIBER))
    twice = manifest.read_text() + manifest.read_text()
    manifest.write_text(twice)
    with pytest.raises(
        InputError, match=r"manifest\.jsonl:5: duplicate id 'u1' \(first on line 1\)"
    ):
        evaluate_manifest(manifest, tmp_path / "out", Judges(TRANSCRIBER))
    with pytest.raises(InputError, match="no scored utterances"):
        summarise([])


def test_speech_without_a_tag_is_compared_with_its_reference_speaker(tmp_path, references):
    def rows(name, speaker, further):
        spoken = [("u", "the cat sat", "the cat sat", speaker, "bob", further)]
        manifest = write_manifest(tmp_path / name, spoken)
        scores = tmp_path / f"{name}-scores"
        judges = Judges(speaker=EMBEDDER)
        return evaluate_manifest(manifest, scores, judges, references=references)[0]

    assert rows("new", "", {"reference_speaker": "bob"}) == rows("old", "bob", {})
    with pytest.raises(InputError, match="reference_speaker of utterance 'u' is 3"):
        rows("bad", "", {"reference_speaker": 3})


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        ("", {}, r"manifest\.jsonl:2: reference text '' is empty"),
        ("...", {}, r"manifest\.jsonl:2: .*empty after normalisation"),
        (
            "你好世界",
            {"language": "en"},
            r"manifest\.jsonl:2: the language is en, .* written as zh",
        ),
    ],
)
def test_text_that_cannot_be_scored_names_file_and_line(tmp_path, text, keys, message):
    rows = [("a", "the cat", "the cat", "ann", "ann", {}), ("b", text, "x", "ann", "ann", keys)]
    path = write_manifest(tmp_path / "spoken", rows)
    with pytest.raises(InputError, match=message):
        evaluate_manifest(path, tmp_path / "out", Judges(TRANSCRIBER))
    assert not (tmp_path / "out").exists()


def test_language_that_a_manifest_does_not_name_is_that_of_the_script(tmp_path):
    path = write_manifest(tmp_path / "spoken", [("a", "你好世界", "x", "ann", "ann", {})])
    assert [one["language"] for one in read_utterances(path)] == ["zh"]


def test_summary_says_how_the_speech_was_sampled_and_how_often_again(tmp_path):
    attempts = [{"attempts": 1}, {"attempts": 3}, {"attempts": 4, "pieces": 4}, {"attempts": 2}]
    path = write_manifest(
        tmp_path / "spoken",
        [(f"u{i}", "the cat", "the cat", "ann", "ann", keys) for i, keys in enumerate(attempts)],
    )
    made = {"temperature": 0.8, "top_k": 50, "guards": {"attempts": 5}, "model": "0123"}
    (tmp_path / "spoken/settings.json").write_text(json.dumps(made))
    rows, summary = evaluate_manifest(path, tmp_path / "out", Judges(TRANSCRIBER))
    assert [row["sampled_again"] for row in rows] == [False, True, False, True]
    assert summary["sampled_again_share"] == 0.5 and summary["sampled_again_share_n"] == 4
    report = json.loads((tmp_path / "out/summary.json").read_text())
    assert report["speech"] == {
        "attempts": 5,
        "guards": {"attempts": 5},
        "temperature": 0.8,
        "top_k": 50,
    }
    del made["guards"]
    (tmp_path / "spoken/settings.json").write_text(json.dumps(made))
    assert speech_settings(path)["attempts"] == 0
