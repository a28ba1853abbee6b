import numpy as np
import pytest

from llasa_core.errors import InputError
from llasa_core.sampling import Sampling
from llasa_core.search import best_of_n, candidate_seed
from llasa_core.speech_requests import Request
from llasa_core.synthesize import Generated, Spoken

REQUESTS = [Request("a", "One."), Request("b", "Two.", seed=5)]


class StandIn:
    """Speaks a wave of one sample, a hash of text and seed, in reverse order; a search needs no more of a model."""

    class codec:
        sample_rate = 16_000

    def speak(self, requests, sampling):
        for request in reversed(requests):
            value = (len(request.text) * 31 + request.seed) % 101 / 101
            codes = np.zeros(3, np.int32)
            yield Spoken(request, np.full(960, value, np.float32), Generated(codes, True, "end", -1.0, 4), 20)


def loudness(wave, request):
    return float(wave[0])


def test_the_best_scored_candidate_is_chosen_and_every_score_is_kept():
    result = best_of_n(StandIn(), REQUESTS, 8, {"loudness": loudness})
    for chosen, request in zip(result.chosen, REQUESTS, strict=True):
        expected = [(4 * 31 + candidate_seed(request.seed, i)) % 101 / 101 for i in range(8)]
        np.testing.assert_allclose(chosen.scores[:, 0], expected, atol=1e-6)
        assert chosen.index == int(np.argmax(expected))
        assert chosen.seeds[chosen.index] == chosen.spoken.request.seed
        assert chosen.spoken.wave[0] == pytest.approx(max(expected))


def test_cost_counts_every_candidate():
    cost = best_of_n(StandIn(), REQUESTS, 8, {"loudness": loudness}).cost
    assert (cost.candidates, cost.generated_tokens, cost.prompt_tokens) == (16, 64, 320)
    assert cost.audio_seconds == pytest.approx(16 * 0.06)
    assert 0 < cost.verifier_seconds <= cost.wall_seconds


def test_weights_combine_verifiers_and_ties_go_to_the_lower_number():
    verifiers = {"loudness": loudness, "quiet": lambda wave, request: -float(wave[0])}
    tied = best_of_n(StandIn(), REQUESTS, 8, verifiers)
    assert [chosen.index for chosen in tied.chosen] == [0, 0]
    quiet = best_of_n(StandIn(), REQUESTS, 8, verifiers, weights={"loudness": 0.0})
    assert [chosen.index for chosen in quiet.chosen] == [int(np.argmin(c.scores[:, 0])) for c in quiet.chosen]
    np.testing.assert_allclose(quiet.chosen[0].totals, quiet.chosen[0].scores @ [0.0, 1.0])


def test_first_candidate_is_plain_sampling_and_seeds_do_not_overlap():
    seeds = {candidate_seed(seed, index) for seed in range(50) for index in range(16)}
    assert len(seeds) == 50 * 16
    assert candidate_seed(7, 0) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n must be an integer of at least 1"),
        ({"verifiers": {}}, "at least one verifier"),
        ({"weights": {"other": 1.0}}, "a weight for 'other'"),
        ({"sampling": Sampling(temperature=0.0)}, "all candidates the same"),
        ({"verifiers": {"broken": lambda wave, request: float("nan")}}, "verifier broken: scored candidate"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"n": 2, "verifiers": {"loudness": loudness}} | change
    with pytest.raises(InputError, match=message):
        best_of_n(StandIn(), REQUESTS, **given)
