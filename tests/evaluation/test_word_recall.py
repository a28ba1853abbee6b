"""The share of certain words that a recogniser heard right."""

import pytest

from llasa_core.errors import InputError
from llasa_core.evaluation.word_recall import word_recall, words_heard

WORDS = {"heron", "colour", "gonna", "otters"}


def row(number, text, hypothesis, speaker="a"):
    return {"id": f"u{number}", "text": text, "hypothesis": hypothesis, "speaker": speaker}


def test_only_the_words_asked_for_count():
    assert words_heard("The heron saw two otters.", "The heron so to waters.", WORDS) == [
        True,
        False,
    ]
    assert words_heard("Nothing of that kind.", "Nothing of that kind.", WORDS) == []


def test_a_word_heard_in_another_place_is_not_right():
    assert words_heard("The heron slept in reeds.", "The hero slept in reeds, heron.", WORDS) == [
        False
    ]


def test_each_place_of_a_word_counts_and_spelling_does_not():
    assert words_heard("A heron, a heron!", "a heron a hero", WORDS) == [True, False]
    assert words_heard("They're gonna, gonna win.", "they win", WORDS) == [None, None]
    assert words_heard("The colour fades.", "The color fades", WORDS) == [True]


def test_what_the_normaliser_takes_apart_is_left_out_and_counted():
    rows = [row(0, "They are gonna win.", "They are going to win.")]
    rows.append(row(1, "The heron slept.", "The heron slept."))
    found = word_recall(rows, WORDS)
    assert (found["words_unscored"], found["words_right_share_n"]) == (1, 1)


def test_silence_hears_no_word():
    found = word_recall([row(0, "The heron slept.", "")], WORDS)
    assert found["words_right_share"] == 0


def test_share_is_over_all_places_with_intervals_by_text_and_by_speaker():
    rows = [row(n, "The heron slept.", "The heron slept.", "a") for n in range(6)]
    rows += [row(6 + n, "A heron saw otters.", "A hero saw otters.", "b") for n in range(6)]
    found = word_recall(rows, WORDS)
    assert found["words_right_share"] == pytest.approx(12 / 18)
    assert found["words_right_share_n"] == 18
    assert 0.5 < found["words_right_share_low"] < 12 / 18 < found["words_right_share_high"] < 1
    # only one of two speakers may be drawn twice: then all right, or every second word
    by_speaker = [found[f"words_right_share_by_speaker_{end}"] for end in ("low", "high")]
    assert by_speaker == pytest.approx([0.5, 1.0])


def test_no_such_word_is_an_error():
    with pytest.raises(InputError, match="none of 1 scored texts"):
        word_recall([row(0, "Nothing here.", "Nothing here.")], WORDS)
