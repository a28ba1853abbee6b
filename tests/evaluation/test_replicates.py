import numpy as np
import pytest

from llasa_core.errors import InputError
from llasa_core.evaluation.replicates import SeedScatter, seed_scatter, setting_scores


def rows(*errors, words=10, **other):
    return [
        {"id": f"u{n}", "errors": wrong, "words": words, **other} for n, wrong in enumerate(errors)
    ]


def test_scatter_of_seeds_is_pooled_over_settings():
    # logs 0 and 2 (squares 2 around 1), 5 alone, and 1, 1, 4 (squares 1 + 1 + 4 around 2)
    scatter = seed_scatter([np.exp([0.0, 2]), np.exp([5.0]), np.exp([1.0, 1, 4])])
    assert (scatter.degrees, scatter.log_sd) == (3, pytest.approx(np.sqrt(8 / 3)))
    assert seed_scatter([[3.0], [4.0]]) == SeedScatter(0.0, 0)


def test_difference_is_students_with_the_pooled_scatter_worked_by_hand():
    scatter = SeedScatter(0.01, 10)
    difference, low, high = scatter.difference([200.0, 202.0, 198.0], [190.0])
    # errors 0.01 * 200 / sqrt(3) and 0.01 * 190; t(0.975, 10) = 2.2281
    half = 2.2281 * np.hypot(2 / np.sqrt(3), 1.9)
    assert (difference, low, high) == pytest.approx((-10, -10 - half, -10 + half), rel=1e-4)
    with pytest.raises(InputError, match="no setting has two seeds"):
        SeedScatter(0.0, 0).difference([1.0], [2.0])


def test_score_of_a_setting_sums_its_seeds_and_counts_both():
    scores = setting_scores({"a": [rows(1, 3), rows(2, 4)], "b": [rows(0, 1)]}, "errors", "words")
    assert scores["a"].value == pytest.approx(10 / 40) and scores["b"].value == pytest.approx(0.05)
    assert (scores["a"].seeds, scores["a"].texts, scores["b"].seeds) == (2, 2, 1)
    low, high = scores["b"].interval()
    assert (low, high) == pytest.approx((0.0, 0.1))  # one text or the other, twice


def test_settings_that_share_their_seeds_share_those_of_every_draw():
    before, after = [rows(2), rows(9), rows(5)], [rows(3), rows(10), rows(6)]
    settings = {"before": before, "after": after}  # each seed one error more
    scores = setting_scores(settings, "errors", "words", paired=True)
    assert scores["after"].minus(scores["before"]) == pytest.approx((0.1, 0.1, 0.1))
    apart = setting_scores(settings, "errors", "words")
    _, low, high = apart["after"].minus(apart["before"])
    assert low < 0 < high


def test_draws_scatter_as_the_mean_of_the_seeds_does():
    seeds = [rows(2), rows(4), rows(9)]  # one text, so only seeds scatter
    score = setting_scores({"a": seeds}, "errors", "words", n_boot=20_000)["a"]
    expected = np.var([0.2, 0.4, 0.9], ddof=1) / 3
    assert score.draws.mean() == pytest.approx(0.5, abs=0.01)
    assert score.draws.var() == pytest.approx(expected, rel=0.05)


def test_settings_share_the_texts_of_every_draw():
    hard = {"before": [rows(9, 1, 0, 8)], "after": [rows(8, 0, 0, 7)]}
    scores = setting_scores(hard, "errors", "words")
    difference, low, high = scores["after"].minus(scores["before"])
    assert difference == pytest.approx(-3 / 40) and high <= 0 and low > -0.1001
    wide = scores["after"].interval()
    assert high - low < wide.high - wide.low  # unpaired, the texts would hide it
    assert scores["after"].minus(scores["after"]) == (0.0, 0.0, 0.0)


def test_samples_of_one_text_are_resampled_together_and_a_missing_value_does_not_count():
    twice = [
        {"id": f"{text}.s{sample}", "text_id": text, "similarity": value}
        for text, value in (("a", 0.2), ("b", None), ("c", 0.4))
        for sample in range(2)
    ]
    score = setting_scores({"x": [twice]}, "similarity")["x"]
    assert score.value == pytest.approx(0.3) and score.texts == 3


def test_other_texts_are_refused():
    with pytest.raises(InputError, match="text 'u2' is scored for only some of a, b"):
        setting_scores({"a": [rows(1, 2)], "b": [rows(1, 2, 3)]}, "errors", "words")
    assert setting_scores({}, "errors") == {}
