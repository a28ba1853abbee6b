import math

import pytest

from llasa_core.errors import InputError
from llasa_core.evaluation.recognition import compare_losses
from llasa_core.evaluation.seeds import mean_rows, over_seeds, seeds_interval
from llasa_core.evaluation.summary import summarise
from llasa_core.intervals import Interval


def scored(*errors):
    return [
        {"id": f"u{n}", "words": 10, "errors": wrong, "seconds": 2.0, "nats": 100.0 + wrong}
        for n, wrong in enumerate(errors)
    ]


def test_rows_of_several_seeds_are_averaged_by_utterance():
    rows = mean_rows({0: scored(1, 4), 1: scored(3, 4)[::-1]})
    assert [(row["id"], row["errors"], row["words"]) for row in rows] == [
        ("u0", 2.0, 10),
        ("u1", 4.0, 10),
    ]
    with pytest.raises(InputError, match="seed 1: utterance 'u1' is not scored in every seed"):
        mean_rows({0: scored(1, 4), 1: scored(3)})


def test_scatter_of_seeds_and_of_utterances_adds_in_quadrature():
    # t(0.975, 2) = 4.3027, standard deviation 1 of three seeds
    half = 4.3027 / math.sqrt(3)
    low, high = seeds_interval([1.0, 2.0, 3.0], Interval(1.0, 4.0))
    assert low == pytest.approx(2 - math.hypot(half, 1), abs=1e-3)
    assert high == pytest.approx(2 + math.hypot(half, 2), abs=1e-3)
    assert seeds_interval([2.0], Interval(1.0, 4.0)) == (1.0, 4.0)


def test_metric_over_seeds_is_the_mean_with_both_scatters():
    system = {0: scored(1, 1), 1: scored(2, 2), 2: scored(3, 3)}
    found = over_seeds(summarise, "corpus_wer", system)
    assert (found["corpus_wer"], found["corpus_wer_n"], found["seeds"]) == (0.2, 2, 3)
    # every utterance has the same rate, so the seeds alone scatter
    assert found["corpus_wer_high"] == pytest.approx(0.2 + 0.1 * 4.3027 / math.sqrt(3), abs=1e-4)


def test_systems_are_compared_over_the_seeds_that_both_have():
    change = "bits_per_second_difference"
    found = over_seeds(compare_losses, change, {0: scored(5), 7: scored(0)}, {0: scored(3)})
    assert found["seeds"] == 1
    assert found[change] == pytest.approx(-2 / math.log(2) / 2)
    with pytest.raises(InputError, match="share no training seed"):
        over_seeds(compare_losses, change, {0: scored(5)}, {1: scored(3)})
