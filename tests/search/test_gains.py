"""Gains over plain sampling, on rows made up by hand and on samples of known chances."""

import json

import numpy as np
import pytest

from llasa_core.experiments import results, tables
from llasa_core.search.gains import gains, voice_held


def row(text, seed, right, similarity=0.5, errors=0):
    return {
        "id": f"{text}.s{seed}",
        "text_id": text,
        "seconds": 1.0,
        "errors": errors,
        "words": 4,
        "similarity": similarity,
        "speaker": "x",
        "nearest_speaker": "x" if right else "y",
    }


PLAIN = [  # a is right with every seed, b with all but the last, c with the last alone
    *(row("a", seed, True, 0.6) for seed in range(3)),
    *(row("b", seed, seed < 2, 0.4, errors=2) for seed in range(3)),
    *(row("c", seed, seed == 2, 0.2, errors=4) for seed in range(3)),
]
FOUND = [row(old["text_id"], old["id"][-1], True, 0.7, errors=1) for old in PLAIN]


def test_the_other_seeds_of_a_text_say_whether_the_voice_held_not_the_sample_itself():
    assert voice_held(PLAIN) == {"a.s0", "a.s1", "a.s2", "b.s2"}
    assert voice_held(PLAIN[:1]) == set()  # one seed has no other
    silent = [{key: value for key, value in one.items() if "speaker" not in key} for one in PLAIN]
    assert voice_held(silent) == set()


def test_gains_are_paired_over_all_where_the_voice_held_and_where_both_are_right():
    found = gains(PLAIN, FOUND, PLAIN)
    assert list(found) == ["all", "held", "right"]
    everywhere, held, right = found.values()
    assert everywhere["speaker_similarity_difference"] == pytest.approx((0.1 + 0.3 + 0.5) / 3)
    assert everywhere["corpus_wer_difference"] == pytest.approx((3 * 1 - 3 * 1 - 3 * 3) / 36)
    assert everywhere["nearest_speaker_share_difference"] == pytest.approx(3 / 9)
    assert (everywhere["corpus_wer_difference_n"], everywhere["corpus_wer_difference_texts"]) == (
        9,
        3,
    )
    assert held["speaker_similarity_difference"] == pytest.approx((3 * 0.1 + 0.3) / 4)
    assert held["nearest_speaker_share_difference"] == pytest.approx(1 / 4)
    assert right["speaker_similarity_difference"] == pytest.approx((3 * 0.1 + 2 * 0.3 + 0.5) / 6)
    assert right["nearest_speaker_share_difference"] == 0


def test_arms_of_fewer_seeds_are_paired_with_the_plain_samples_of_theirs():
    found = gains(PLAIN, [one for one in FOUND if one["id"].endswith("s2")], PLAIN)
    assert found["all"]["corpus_wer_difference_n"] == 3
    assert found["held"]["corpus_wer_difference_n"] == 2  # a and b


def test_another_plain_sample_gains_nothing_where_the_voice_held():
    """Where the plain sample itself had its say, another one like it would seem to lose."""
    rng = np.random.default_rng(0)

    def sampled(count):
        voices = [[(rng.random() < 0.7) for _ in range(3)] for _ in range(count)]
        return [
            row(f"t{text}", seed, right, 0.6 if right else 0.1)
            for text, seeds in enumerate(voices)
            for seed, right in enumerate(seeds)
        ]

    plain, again = sampled(800), sampled(800)
    change = gains(plain, again, plain)["held"]
    assert change["speaker_similarity_difference_low"] < 0
    assert change["speaker_similarity_difference_high"] > 0
    lucky = {one["id"] for one in plain if one["nearest_speaker"] == "x"}
    kept = [[one for one in side if one["id"] in lucky] for side in (plain, again)]
    assert gains(*kept, plain)["all"]["speaker_similarity_difference_high"] < -0.1


def test_gains_of_a_finished_run_are_read_from_its_rows(tmp_path):
    folder = tmp_path / "search" / "open-1"
    folder.mkdir(parents=True)
    for name, rows in (("plain", PLAIN), ("prm", FOUND)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    run = results.Result(folder, "search", "open-1", "n", {}, {}, {}, {})
    found = tables.gains_of_arms(run, ["prm", "absent"])
    assert found == {"prm": gains(PLAIN, FOUND, PLAIN)}
    old = [{key: value for key, value in one.items() if "speaker" not in key} for one in PLAIN]
    (folder / "plain.jsonl").write_text("".join(json.dumps(one) + "\n" for one in old))
    assert tables.gains_of_arms(run, ["prm"]) == {}


def test_guided_arms_are_those_that_were_run_with_their_last_candidates():
    params = {"partial": [8, 2, 25, 1.0], "prm": [4, 4, 25], "candidates": 32}
    names = {"partial-prm": "partial PRM by voice + ORM", "prm": "PRM by voice"}
    assert tables.guided_arms(params) == {
        "partial-prm": (names["partial-prm"], 32),
        "prm": (names["prm"], 16),
    }
    assert tables.guided_arms(params | {"partial_candidates": 8})["partial-prm"][1] == 8
    assert tables.guided_arms(params | {"partial": [], "prm": []}) == {}
