"""Costs at full scale in notebook 90: FLOPs of the project's own counter, units, what grows with
what, searches as they were run.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from notebook_functions import notebook_functions

from llasa_core.errors import InputError
from llasa_core.experiments.config import notebook_parameters, repository_root
from llasa_core.experiments.results import find_run
from llasa_core.model import flops_per_token, model_config
from llasa_core.search.cost import attended_keys, generation_flops

scale = notebook_functions("90_paper_figures")
ROOT = repository_root(Path(__file__).parent)
ASSUMED = scale.assumptions()


@pytest.mark.parametrize(("size", "weights"), [("1b", 1.37e9), ("3b", 3.41e9), ("8b", 7.77e9)])
def test_training_is_six_flops_a_weight_and_token_plus_attention(size, weights):
    tokens = 1000 * 3600 * (50 + 3.5 + 46 / 9.17) * 3
    config = model_config(size, scale.VOCABULARY)
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * 537
    assert ASSUMED.utterance_tokens == pytest.approx(536.6, abs=0.1)
    expected = tokens * (flops_per_token(config, 0) + attention)
    assert scale.training_flops(size, 1000, ASSUMED) == pytest.approx(expected)
    # 6 N D, N with the embedding that serves as head; attention over nine seconds of codes is a few
    # per cent of it
    assert 1.0 < scale.training_flops(size, 1000, ASSUMED) / (6 * weights * tokens) < 1.05


def test_hours_are_flops_over_the_assumed_rate():
    flops = scale.training_flops("1b", 250_000, ASSUMED)
    assert scale.training_hours([("1b", 250_000)], ASSUMED) == pytest.approx(
        flops / (0.4 * 989e12) / 3600
    )
    assert scale.training_hours(
        [("1b", 250_000)], scale.assumptions({"utilisation": 0.2})
    ) == pytest.approx(2 * scale.training_hours([("1b", 250_000)], ASSUMED))
    assert scale.training_hours([("1b", 1000)], ASSUMED, epochs=6) == pytest.approx(
        2 * scale.training_hours([("1b", 1000)], ASSUMED)
    )
    assert scale.training_hours(scale.RELEASED, ASSUMED) == pytest.approx(
        sum(scale.training_hours([one], ASSUMED) for one in scale.RELEASED)
    )


def test_cost_grows_with_size_hours_and_search():
    sizes = [scale.training_flops(size, 1000, ASSUMED) for size in ("1b", "3b", "8b")]
    assert sizes == sorted(sizes) and scale.training_flops("1b", 2000, ASSUMED) == pytest.approx(
        2 * sizes[0]
    )
    spoken = [scale.decoding_seconds(size, scale.PLAIN, ASSUMED) for size in ("1b", "3b", "8b")]
    assert spoken == sorted(spoken)
    searched = [
        scale.decoding_seconds("1b", search, ASSUMED)
        for search in (scale.PLAIN, scale.Search(16), scale.PARTIAL_PRM, scale.PRM)
    ]
    assert (
        searched == sorted(searched) and searched[1] < 4 * searched[0]
    )  # sixteen rows share the reading of weights
    assert scale.speaking_hours(
        100, [scale.PLAIN, scale.PRM], ASSUMED, [("1b", 0)]
    ) == pytest.approx(100 * (searched[0] + searched[3]) / 3600)
    assert scale.speaking_hours(0, [scale.PLAIN], ASSUMED) == 0


def test_one_row_is_bound_by_reading_the_weights():
    config = model_config("1b", scale.VOCABULARY)
    weights = flops_per_token(config, 0) / 6
    assert weights == pytest.approx(1.37e9, rel=0.01)
    free = scale.assumptions({"peak_flops": 1e30})  # nothing left but memory
    steps = free.spoken_seconds * scale.CODES_PER_SECOND
    keys = free.prompt_tokens + steps / 2
    cache = keys * 2 * 2 * 16 * 8 * 64  # key and value, bf16, layers, key-value heads, head width
    assert scale.decoding_seconds("1b", scale.PLAIN, free) == pytest.approx(
        steps * (2 * weights + cache) / (0.6 * 3.35e12)
    )
    assert scale.decoding_seconds("1b", scale.PLAIN, ASSUMED) == pytest.approx(
        scale.decoding_seconds("1b", scale.PLAIN, free), rel=0.05
    )


def test_arithmetic_of_decoding_is_that_of_the_search_cost():
    config = model_config("1b", scale.VOCABULARY)
    free = scale.assumptions({"memory_bytes_per_second": 1e30})  # nothing left but arithmetic
    prompt, steps = round(free.prompt_tokens), int(free.spoken_seconds * scale.CODES_PER_SECOND)
    count = generation_flops(config, SimpleNamespace(head=range(0, scale.VOCABULARY)))
    drawn = count(0, steps, attended_keys(prompt, steps))
    head = 2 * config.hidden_size * scale.VOCABULARY * prompt  # ours counts it at the prompt too
    expected = (drawn + count(prompt, 0, 0) + head) / free.flops_per_second
    assert scale.decoding_seconds("1b", scale.PLAIN, free) == pytest.approx(expected, rel=0.005)


def codes(search, seconds):
    return sum(rows * length for rows, length in search.phases(seconds)) * scale.CODES_PER_SECOND


def test_codes_of_a_search_are_those_that_the_tracked_study_drew():
    assert codes(scale.PLAIN, 6.0) == 300 and codes(scale.Search(16), 6.0) == 4800
    assert codes(scale.PARTIAL_PRM, 6.0) == 50 * (256 * 2 + 16 * 4)
    assert codes(scale.PARTIAL_PRM, 1.0) == 50 * 256
    assert codes(scale.PRM, 6.0) == 50 * 256 * 6
    run = find_run(ROOT / "results", "inference_time_scaling/open")
    beams, expansions, _, seconds = run.params["partial"]
    last = run.params.get("partial_candidates") or run.params["candidates"]
    search = scale.Search(last, beams, expansions, seconds)
    rows = run.rows("partial-prm")
    drawn = np.mean([row["tokens"] for row in rows])
    assert np.mean([codes(search, row["seconds"]) for row in rows]) == pytest.approx(
        drawn, rel=0.03
    )


def test_length_of_an_utterance_is_near_that_of_the_step_benchmark():
    shape = json.loads((ROOT / "results/benchmarks/train_step.json").read_text())["shapes"][
        "body-heavy"
    ]
    assert shape["tokens"] / shape["utterances"] == pytest.approx(ASSUMED.utterance_tokens, rel=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mfu": 0.4}, "'mfu' is unknown, expected some of peak_flops"),
        ({"utilisation": 0}, "utilisation is 0, expected a number above 0"),
        ({"utilisation": 40.0}, "utilisation is 40.0, .* a share at most 1"),
        ({"epochs": True}, "epochs is True"),
        ({"memory_utilisation": "0.6"}, "memory_utilisation is '0.6'"),
    ],
)
def test_assumption_that_makes_no_sense_is_named(values, message):
    with pytest.raises(InputError, match=message):
        scale.assumptions(values)


def test_parameters_of_the_notebook_are_what_it_assumes():
    params = notebook_parameters(ROOT / "notebooks/90_paper_figures.ipynb")["full_scale"]
    assert {"utilisation", "memory_utilisation"} <= set(params)
    assert scale.assumptions(params) == ASSUMED
