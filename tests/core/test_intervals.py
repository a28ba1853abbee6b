"""Paired comparison of two systems, on cases counted by hand."""

import json

import numpy as np
import pytest

from llasa_core import cli
from llasa_core.errors import InputError
from llasa_core.intervals import compare_systems


def row(id_, errors=0, words=4, **further):
    return {"id": id_, "seconds": 1.0, "errors": errors, "words": words, **further}


def test_paired_comparison_follows_ids_not_order():
    before = [row("a", 2, quality=3.0), row("b", 4, quality=2.0), row("c", 1, quality=2.0)]
    after = [row("c", 0, quality=2.5), row("a", 1, quality=3.5), row("b", 3, quality=2.5)]
    change = compare_systems(before, after)
    assert (change["corpus_wer_a"], change["corpus_wer_b"]) == (
        pytest.approx(7 / 12),
        pytest.approx(4 / 12),
    )
    assert change["corpus_wer_difference"] == pytest.approx(-3 / 12)
    assert change["corpus_wer_difference_n"] == 3 and change["corpus_wer_difference_high"] < 0
    assert (
        change["corpus_wer_difference_sign_flip_p"] == 2 / 8
    )  # all three fall: one pattern in eight, and its mirror
    assert (
        change["quality_difference"] == pytest.approx(0.5)
        and "speaker_similarity_difference" not in change
    )


def test_corpus_and_mean_wer_weigh_long_texts_differently():
    change = compare_systems([row("a", 0, 10), row("b", 1, 2)], [row("a", 5, 10), row("b", 0, 2)])
    assert change["corpus_wer_difference"] == pytest.approx(4 / 12)
    assert change["mean_utterance_wer_difference"] == pytest.approx((0.5 - 0.5) / 2)


def test_seeds_of_one_text_are_resampled_together():
    rng = np.random.default_rng(0)
    gain = rng.normal(0.02, 0.1, 40)
    before = [
        row(f"t{i}.s{s}", similarity=0.5, text_id=f"t{i}") for i in range(40) for s in range(5)
    ]
    after = [
        row(f"t{i}.s{s}", similarity=0.5 + gain[i], text_id=f"t{i}")
        for i in range(40)
        for s in range(5)
    ]
    change = compare_systems(before, after)
    once = compare_systems(before[::5], after[::5])  # five equal seeds say no more than one
    for key in ("", "_low", "_high", "_p", "_sign_flip_p", "_texts"):
        name = f"speaker_similarity_difference{key}"
        assert change[name] == pytest.approx(once[name])
    assert (
        change["speaker_similarity_difference_n"],
        change["speaker_similarity_difference_texts"],
    ) == (200, 40)
    apart = [{key: value for key, value in item.items() if key != "text_id"} for item in before]
    naive = compare_systems(apart, after)
    width = [
        c["speaker_similarity_difference_high"] - c["speaker_similarity_difference_low"]
        for c in (change, naive)
    ]
    assert width[0] > 1.8 * width[1]  # about the root of five


def test_unscored_utterances_are_left_out_of_that_metric_and_counted():
    change = compare_systems(
        [row("a", pesq_wb=2.0), row("b", pesq_wb=None)], [row("a", pesq_wb=3.0), row("b")]
    )
    assert change["pesq_wb_difference"] == 1.0 and change["pesq_wb_difference_n"] == 1
    assert change["corpus_wer_difference_n"] == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([row("a"), row("c")], r"'b' is scored in only one of the two systems \(old, not new\)"),
        (
            [row("a"), row("b"), row("x")],
            r"'x' is scored in only one of the two systems \(new, not old\)",
        ),
        ([row("a"), row("b"), row("a")], "new: row 3: utterance 'a' is there twice"),
        (
            [row("a"), row("b", words=5)],
            "utterance 'b' has 4 reference words in one system and 5 in the other",
        ),
        ([row("a"), {"errors": 1}], "new: row 2: `id` is None"),
        ([], "new: no scored utterances"),
    ],
)
def test_systems_that_cannot_be_paired_are_refused(other, message):
    with pytest.raises(InputError, match=message):
        compare_systems([row("a"), row("b")], other, names=("old", "new"))


def test_command_prints_and_writes_the_comparison(tmp_path, capsys):
    for name, errors in (("a", 3), ("b", 1)):
        lines = [json.dumps(row(f"u{i}", errors)) for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    paths = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    assert cli.main(["compare", *paths, "-o", str(tmp_path / "out" / "change.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "change.json").read_text())
    assert (
        printed["corpus_wer_difference"] == -0.5
        and printed["corpus_wer_difference_sign_flip_p"] == 2 / 16
    )
    (tmp_path / "b.jsonl").write_text(json.dumps(row("other")) + "\n")
    assert cli.main(["compare", *paths]) == 2
    assert "'u0' is scored in only one of the two systems" in capsys.readouterr().err
