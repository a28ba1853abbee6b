import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pytest

from llasa_core import intervals, metrics
from llasa_core.errors import InputError


def test_importing_metrics_and_scaling_loads_no_torch():
    code = (
        "import sys, llasa_core.metrics, llasa_core.evaluation.scaling_law; print({'torch',"
        " 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "said, written",
    [
        ("seven", "7"),
        ("five five five", "555"),
        ("one hundred and two", "102"),
        ("nineteen eighty four", "1984"),
        ("twenty-one dollars", "$21"),
        ("the third of June", "The 3rd of June."),
        ("colour, don't!", "color do not"),
    ],
)
def test_numbers_and_spellings_agree_after_whisper_normalisation(said, written):
    assert metrics.normalise(said) == metrics.normalise(written)
    assert metrics.word_errors(said, written)[0] == metrics.word_errors(written, said)[0] == 0


@pytest.mark.parametrize(
    "said, heard, plain",
    [
        ("five five five one two three four", "555-1234", (2, 1)),  # 5551234 against 555 1234
        ("seven three one nine", "7-3-1-9", (4, 1)),  # 7319 against 7 3 one 9
        ("one, two, three", "1, 2, 3", (3, 1)),  # 123 against one 2 3
        ("leaves at seven thirty", "leaves at 7.30", (1, 3)),  # 730 against 7.30
    ],
)
def test_digits_written_apart_disagree_unless_digits_are_counted_as_spoken(said, heard, plain):
    assert metrics.word_errors(said, heard) == plain
    assert metrics.word_errors(said, heard, spoken_digits=True)[0] == 0


def test_spoken_digits_count_each_digit_and_leave_words_whole():
    assert (
        metrics.normalise("Call 555-1234 by June 3rd for $21", spoken_digits=True)
        == "call 5 5 5 1 2 3 4 by june 3rd for $ 2 1"
    )
    # 206 9917 said, 206 9117 heard: one of seven digits and no other word is wrong
    assert metrics.word_errors(
        "call two zero six nine nine one seven", "call 2069117", spoken_digits=True
    ) == (1, 8)
    assert metrics.word_errors("one dog", "two dogs", spoken_digits=True) == (2, 2)


def test_word_errors_of_a_case_counted_by_hand():
    # cat -> hat (substitution), "on" deleted, "today" inserted
    assert metrics.word_errors("the cat sat on the mat", "the hat sat the mat today") == (3, 6)
    assert metrics.word_errors("the cat sat", "") == (3, 3)


def test_character_errors_of_a_case_counted_by_hand():
    assert metrics.character_errors("abc def", "abd def x") == (3, 7)  # c -> d, and " x" inserted


def test_chinese_is_counted_by_character_without_spaces():
    assert metrics.word_errors("今天天气好。", "今天 天气很好", "zh") == (1, 5)
    assert metrics.character_errors("今天天气好。", "今天 天气很好", "zh") == (1, 5)


def test_vowel_signs_survive_the_basic_normaliser():
    assert metrics.normalise("नमस्ते!", "hi") == "नमस्ते"


@pytest.mark.parametrize("reference", ["", "  ", "(laughs)", "uh"])
def test_empty_reference_is_an_input_error(reference):
    with pytest.raises(InputError, match="empty after normalisation"):
        metrics.word_errors(reference, "anything")
    with pytest.raises(InputError, match="empty after normalisation"):
        metrics.character_errors(reference, "anything")


def test_bootstrap_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = intervals.bootstrap_interval(values, n_boot=4000)
    half = NormalDist().inv_cdf(0.975) * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_bootstrap_of_two_utterances_matches_the_enumeration():
    # Resamples of two utterances with WER 0/1 and 2/3: both first (1/4), both second (1/4), one of
    # each (1/2, 2/4).
    low, high = intervals.bootstrap_interval(
        [0, 2], [1, 3], confidence=0.4, n_boot=20000
    )  # quantiles 0.3 and 0.7
    assert (low, high) == (0.5, 0.5)
    low, high = intervals.bootstrap_interval(
        [0, 2], [1, 3], confidence=0.6, n_boot=20000
    )  # quantiles 0.2 and 0.8
    assert (low, high) == (0.0, pytest.approx(2 / 3))


def test_bootstrap_is_seeded_and_leaves_the_global_generator_alone():
    values = np.arange(50.0)
    state = np.random.get_state()[1].copy()
    assert intervals.bootstrap_interval(values, seed=3) == intervals.bootstrap_interval(
        values, seed=3
    )
    assert intervals.bootstrap_interval(values, seed=3) != intervals.bootstrap_interval(
        values, seed=4
    )
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_bootstrap_of_many_utterances_is_computed_in_blocks():
    values = np.random.default_rng(0).random(9000)  # 444 resamples a block
    low, high = intervals.bootstrap_interval(values, n_boot=1000)
    assert low < values.mean() < high and high - low < 0.03


def test_bootstrap_refuses_nan_and_nothing():
    with pytest.raises(InputError, match="not empty"):
        intervals.bootstrap_interval([])
    with pytest.raises(InputError, match="finite"):
        intervals.bootstrap_interval([1.0, float("nan")])


def test_paired_bootstrap_sees_a_small_constant_gain_that_unpaired_intervals_hide():
    words = np.full(100, 10)
    before = np.random.default_rng(0).integers(0, 10, 100)
    after = np.maximum(before - 1, 0)
    change = intervals.paired_bootstrap(before, after, words)
    expected = (after.sum() - before.sum()) / 1000
    assert change.difference == pytest.approx(expected)
    assert change.low < expected < change.high < 0
    assert change.p_value == pytest.approx(2 / 2001) and change.n == 100
    both = (intervals.bootstrap_interval(before, words), intervals.bootstrap_interval(after, words))
    assert both[1].high > both[0].low  # overlap


def test_paired_bootstrap_of_equal_systems_has_p_value_one():
    change = intervals.paired_bootstrap([1, 2, 3], [1, 2, 3])
    assert change == (0.0, 0.0, 0.0, 1.0, 3)


def test_paired_bootstrap_refuses_different_utterances():
    with pytest.raises(InputError, match="3 and 2 utterances"):
        intervals.paired_bootstrap([1, 2, 3], [1, 2])


def test_wilson_interval_of_published_cases():
    # Newcombe 1998, table I, method 3
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
    ):
        assert intervals.wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-4)
    assert intervals.wilson_interval(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=1e-4)


@pytest.mark.parametrize("successes, n", [(0, 0), (3, 2), (-1, 5)])
def test_wilson_interval_refuses_impossible_shares(successes, n):
    with pytest.raises(InputError, match="0 <= successes <= n"):
        intervals.wilson_interval(successes, n)


def test_speaker_similarity_is_the_cosine():
    rows = np.array([[3.0, 4.0], [1.0, 0.0]])
    np.testing.assert_allclose(
        metrics.speaker_similarity(rows, np.array([[4.0, 3.0], [0.0, 2.0]])), [0.96, 0.0]
    )
    np.testing.assert_allclose(metrics.speaker_similarity(rows, np.array([1.0, 0.0])), [0.6, 1.0])


def test_nearest_speaker_of_a_case_worked_by_hand():
    centroids = metrics.speaker_centroids(
        np.array([[1.0, 0.1], [1.0, -0.1], [0.0, 2.0]]), ["ann", "ann", "bob"]
    )
    np.testing.assert_allclose(centroids["ann"], [1.0, 0.0])
    np.testing.assert_allclose(centroids["bob"], [0.0, 1.0])
    spoken = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.5]])
    nearest = [metrics.nearest_speaker(row, centroids) for row in spoken]
    assert nearest == ["ann", "bob", "ann"]


def test_cluster_sums_keep_the_order_of_first_occurrence():
    np.testing.assert_array_equal(
        intervals.cluster_sums([1, 2, 3, 4], ["b", "a", "b", "c"]), [4, 2, 4]
    )
    with pytest.raises(InputError, match="2 values in 1 cluster labels"):
        intervals.cluster_sums([1, 2], ["a"])


def test_sign_flip_test_enumerates_small_samples():
    # |1 + 2 + 3| = 6 only with all signs equal: 2 of 8. |1 + 2 - 3| = 0: every pattern is at least
    # that.
    assert intervals.sign_flip_test([1, 2, 3]) == 2 / 8
    assert intervals.sign_flip_test([1, 2, -3]) == 1.0
    assert intervals.sign_flip_test([3, 0, 0]) == 1.0 and intervals.sign_flip_test([0, 0]) == 1.0


def test_sign_flip_test_of_many_changes_is_that_of_the_normal_law():
    changes = np.random.default_rng(2).normal(0.0, 1.0, 400)
    changes += 2.0 * np.sqrt((changes**2).sum()) / 400 - changes.mean()
    z = changes.sum() / np.sqrt((changes**2).sum())
    expected = 2 * (1 - NormalDist().cdf(z))
    assert 0.03 < expected < 0.07
    assert intervals.sign_flip_test(changes) == pytest.approx(expected, abs=0.008)
    assert intervals.sign_flip_test(changes, seed=1) == intervals.sign_flip_test(changes, seed=1)
    assert intervals.sign_flip_test(np.ones(50)) == pytest.approx(1 / 10_001)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("Wait…", "wait"),
        ("Wait… what", "wait what"),
        ("...and so on", "and so on"),
        ("Wait...", "Wait"),
        ("I don’t know", "I don't know"),
        ("It’s Anna‘s", "it's Anna's"),
        ("I don't", "I don’t"),
    ],
)
def test_ellipses_are_no_words_and_curly_apostrophes_are_straight(said, heard):
    assert metrics.word_errors(said, heard)[0] == 0
    assert metrics.word_errors(said, heard)[1] == metrics.word_errors(heard, "")[1]


def test_text_of_dots_alone_has_no_words():
    for text in ("...", "…", ". . ."):
        with pytest.raises(InputError, match="empty after normalisation"):
            metrics.word_errors(text, "a")
