"""Verdicts on made-up numbers: which side of zero an interval lies on, of one difference and of
several, and what each claim reads from the runs.
"""

import json
import shutil

import pytest
from finished_runs import write_run

from llasa_core.experiments import claims, results
from llasa_core.experiments.claims import CONTRADICTED, NOT_RUN, NOT_SHOWN, NOT_TESTABLE, SHOWN

NOISE = (0, 1, -1, 2, -2, 0, 1, -1)  # of utterances, so that intervals have a width


def difference(low, high, side=1, against=0.0):
    return claims.Difference((low + high) / 2, low, high, 8, side, "said", against)


def scored(errors, similarity=0.5, seeds=1):
    """Eight utterances of ten words, `errors` wrong in each."""
    return [
        {"id": f"u{n}.s{seed}", "text_id": f"u{n}", "seconds": 2.0, "words": 10, "ended": True}
        | {"errors": errors + noise % 2, "similarity": similarity + noise / 100}
        for n, noise in enumerate(NOISE)
        for seed in range(seeds)
    ]


def held_out(nats):
    return [{"id": f"u{n}", "seconds": 2.0, "nats": nats + n} for n in range(8)]


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0.1, 0.3, SHOWN, CONTRADICTED),
        (-0.3, -0.1, CONTRADICTED, SHOWN),
        (-0.1, 0.3, NOT_SHOWN, NOT_SHOWN),
        (0.0, 0.3, NOT_SHOWN, NOT_SHOWN),
    ],
)
def test_verdict_is_the_side_of_zero_on_which_the_whole_interval_lies(low, high, above, below):
    assert difference(low, high, 1).verdict == above
    assert difference(low, high, -1).verdict == below


def test_verdict_may_be_held_against_another_value_than_zero():
    assert difference(0.3, 0.4, -1, against=0.5).verdict == SHOWN
    assert difference(0.3, 0.6, -1, against=0.5).verdict == NOT_SHOWN
    assert difference(0.6, 0.7, -1, against=0.5).verdict == CONTRADICTED


def test_claim_of_several_parts_shows_only_whole():
    assert claims.joined([SHOWN, SHOWN]) == SHOWN
    assert claims.joined([SHOWN, NOT_SHOWN]) == NOT_SHOWN
    assert claims.joined([SHOWN, NOT_SHOWN, CONTRADICTED]) == CONTRADICTED


def levels(*errors):
    return [(f"N = {2**n}", {0: scored(wrong)}) for n, wrong in enumerate(errors)]


def test_series_compares_its_ends_and_no_step_may_contradict():
    verdict, text = claims.series(claims.WORDS, -1, levels(5, 4, 1))
    assert verdict == SHOWN
    assert text == (
        "-40.0 [-40.0, -40.0] points of WER, N = 1 to N = 4 (n = 8); 2 of 2 steps exclude zero"
    )
    verdict, text = claims.series(claims.WORDS, -1, levels(5, 1, 3))  # better, then worse again
    assert verdict == CONTRADICTED and "against: 20.0 [20.0, 20.0] points of WER, N = 2" in text
    assert claims.series(claims.WORDS, -1, levels(3, 3))[0] == NOT_SHOWN


def write_scaling(folder, loss):
    """4 sizes, 3 amounts, 2 seeds; loss(parameters, hours) in nats an utterance."""
    for size in (1e6, 2e6, 4e6, 8e6):
        for hours in (1.0, 2.0, 4.0):
            for seed in (0, 1):
                metrics = {"parameters": size, "parameters_body": 1, "train_hours": hours}
                metrics |= {"diverged": 0, "tokens": 1}
                params = {"model": f"m{size / 1e6:.0f}", "seed": seed, "epochs": 1.0}
                rows = held_out(loss(size, hours) + 0.2 * seed)
                name = f"{params['model']}-seed{seed}-hours{hours}-0"
                write_run(folder, "scaling", name, metrics, params, held_out=rows)


def write_law(folder, target_nats):
    """A larger run, and what was said of it before: 200 bits a second, give or take 20."""
    metrics = {"parameters": 16e6, "parameters_body": 1, "train_hours": 8.0, "diverged": 0}
    params = {"model": "m16", "seed": 0, "epochs": 1.0}
    rows = {"held_out": held_out(target_nats)}
    write_run(folder, "scaling_target", "run-1", metrics | {"tokens": 1}, params, **rows)
    params = {"study": "scaling", "target": "scaling_target/run", "spoken": "scaling_speech"}
    params |= {"scored": "", "prediction": "scaling_prediction/run"}
    said = {"predicted": 200.0, "predicted_run_low": 180.0, "predicted_run_high": 220.0}
    write_run(folder, "scaling_prediction", "run-0", said)
    metrics = {"reuse_fresh_speech_fall": 1, "reuse_fresh_speech_n": 2}
    write_run(folder, "train_time_scaling", "run-2", metrics, params)
    return {"law": results.find_run(folder, "train_time_scaling/run")}


def power(size, hours):
    return 100 + 100 * (size / 1e6) ** -0.4 + 150 * hours**-0.5


def test_train_time_claims_read_the_grid_at_its_most_speech_and_largest_size(tmp_path):
    write_scaling(tmp_path, power)
    study = write_law(tmp_path, 200.0)
    sizes, words, hours, _ = claims.train_time(tmp_path, study)
    assert (sizes.verdict, hours.verdict, words.verdict) == (SHOWN, SHOWN, NOT_RUN)
    assert "m1 to m8 (n = 8, 2 seeds); 3 of 3 steps exclude zero, at 4 h" in sizes.number
    assert "1 h to 4 h (n = 8, 2 seeds)" in hours.number
    assert "at size m8; steps held equal, fresh speech lowers it in 1 of 2" in hours.number
    assert sizes.runs == ("scaling/*",)
    write_scaling(tmp_path / "worse", lambda size, hours: power(1e12 / size, hours))
    study = write_law(tmp_path / "worse", 200.0)
    assert claims.train_time(tmp_path / "worse", study)[0].verdict == CONTRADICTED
    assert {one.verdict for one in claims.train_time(tmp_path, {})} == {NOT_RUN}


def write_words(folder, law):
    """What the smallest and the largest model of the grid said, and in a run of its own the target;
    errors of ten words."""
    models = {name: f"scaling/{name}-seed0-hours4.0-0" for name in ("m1", "m8")}
    models["target"] = "scaling_target/run-1"
    for name, model in models.items():
        params = {
            "model": f"artifacts/{model}/model",
            "speech_dir": f"artifacts/{name}",
            "attempts": 0,
        }
        write_run(folder, "scaling_speech", f"{name}-0", {}, params)
    for run, errors in {"seed0": {"m1": 8, "m8": 2}, "target": {"target": 0}}.items():
        systems = {name: f"artifacts/{name}/speech.jsonl" for name in errors}
        params = {"systems": systems, "main_system": "", "resynthesis_codec": ""}
        rows = {name: scored(wrong) for name, wrong in errors.items()}
        write_run(folder, "scaling_scores", f"{run}-0", {}, params | {"score_originals": 0}, **rows)
    law.params["scored"] = "scaling_scores"


def test_claims_of_words_name_the_runs_that_they_read_not_the_target(tmp_path):
    write_scaling(tmp_path, power)
    study = write_law(tmp_path, 200.0)
    write_words(tmp_path, study["law"])
    words = claims.train_time(tmp_path, study)[1]
    assert (words.verdict, words.runs) == (SHOWN, ("scaling_scores/seed0-0",))
    assert "m1 to m8" in words.number


def test_law_shows_where_a_form_holds_and_the_prediction_made_before_too(tmp_path):
    write_scaling(tmp_path / "held", power)
    claim = claims.power_law(tmp_path / "held", write_law(tmp_path / "held", 274.0))
    runs = ("scaling/*", "scaling_prediction/run-0", "scaling_target/run-1")
    assert (claim.verdict, claim.runs) == (SHOWN, runs)
    assert "predicted 200.0 [180.0, 220.0], measured 200.2 bits a second (n = 8)" in claim.number
    write_scaling(tmp_path / "missed", power)
    claim = claims.power_law(tmp_path / "missed", write_law(tmp_path / "missed", 500.0))
    assert claim.verdict == CONTRADICTED and "measured" in claim.number

    def bent(size, hours):
        return power(size, hours) + 30 * (size == 2e6) - 30 * (hours == 2.0)

    write_scaling(tmp_path / "bent", bent)
    claim = claims.power_law(tmp_path / "bent", write_law(tmp_path / "bent", 274.0))
    assert claim.verdict == CONTRADICTED and "reject the law" in claim.number
    assert claims.power_law(tmp_path, {}).verdict == NOT_RUN
    shutil.rmtree(tmp_path / "held" / "scaling_prediction")  # a larger run that nobody predicted
    law = {"law": results.find_run(tmp_path / "held", "train_time_scaling/run")}
    claim = claims.power_law(tmp_path / "held", law)
    assert (claim.verdict, claim.runs) == (NOT_SHOWN, ("scaling/*",))


def test_law_is_judged_by_the_form_that_the_runs_choose(tmp_path):
    def loss(size, hours):  # Kaplan's, which the sum of two powers does not follow
        return 200 * ((1e6 / size) ** 0.5 + 2 / hours) ** 0.6

    write_scaling(tmp_path, loss)
    claim = claims.power_law(tmp_path, write_law(tmp_path, 274.0))
    assert claim.verdict == SHOWN and claim.number.split()[0] in ("kaplan", "coupled")


def test_search_claims_take_arms_by_their_rule_on_the_requests_that_they_share(tmp_path):
    arms = {"plain": {"n": 1, "by": []}, "w4": {"n": 4, "by": ["words"]}}
    arms |= {"w16": {"n": 16, "by": ["words"]}, "both16": {"n": 16, "by": ["words", "voice"]}}
    rows = {
        "plain": scored(5, 0.5, seeds=3),
        "w4": scored(3),
        "w16": scored(1),
        "both16": scored(9, 0.9, seeds=3),
        "prm": scored(7, 0.8),
        "partial-prm": scored(2, 0.4, seeds=3),
    }
    write_run(tmp_path, "search", "open-1", {}, {"arms": arms}, **rows)
    study = {"search": results.find_run(tmp_path, "search/open")}
    words, voice, prm_voice, prm_words, partial = claims.inference_time(study)
    assert words.verdict == SHOWN and "N = 1 to N = 16 (n = 8); 2 of 2 steps" in words.number
    assert voice.verdict == NOT_RUN  # no arm chooses by voice first
    assert (prm_voice.verdict, prm_words.verdict) == (SHOWN, SHOWN)
    assert "20.0 [20.0, 20.0] points of WER, plain to PRM by voice (n = 8)" in prm_words.number
    assert partial.verdict == CONTRADICTED and "(n = 24)" in partial.number  # similarity falls
    assert partial.runs == ("search/open-1",)
    assert {one.verdict for one in claims.inference_time({})} == {NOT_RUN}


def test_codec_is_held_against_those_of_others_at_its_rate(tmp_path):
    codecs = ["xcodec2", "mini", "artifacts/codecs/human", "near", "far"]
    rates = {"mini": 600, "human": 600, "near": 700, "far": 3200}
    rows = {
        name: [row | {"bits": 2.0 * rate} for row in scored(2 if name == "mini" else 4, 0.5)]
        for name, rate in rates.items()
    }
    write_run(tmp_path, "codec_table", "open-1", {}, {"codecs": codecs}, **rows)
    study = {"codecs_open": results.find_run(tmp_path, "codec_table/open")}
    assert claims.codecs_at_the_rate(study["codecs_open"]) == ["near"]
    unheard, real = claims.codec(study)
    assert (unheard.verdict, real.verdict) == (NOT_SHOWN, NOT_RUN)  # words better, voice the same
    assert "-20.0 [-20.0, -20.0] points of WER, near to mini (n = 8)" in unheard.number


def test_recognition_is_the_mean_of_its_seeds(tmp_path):
    for seed, errors in ((0, 1), (1, 2), (2, 3)):
        params = {"seed": seed, "hours": 4.0}
        write_run(tmp_path, "asr", f"seed{seed}-1", {}, params, recognition=scored(errors))
    other = {"seed": 0, "hours": 16.0}
    write_run(tmp_path, "asr", "more-2", {}, other, recognition=scored(9))
    claim = claims.recognition({"asr": results.find_run(tmp_path, "asr/seed0")})
    assert claim.verdict == NOT_SHOWN  # three trainings that scatter so might as well fail
    assert claim.number.startswith("25.0 [") and "(n = 8, 3 seeds)" in claim.number
    assert claim.runs == ("asr/seed0-1", "asr/seed1-1", "asr/seed2-1")
    write_run(tmp_path, "asr_whole", "seed0-1", {}, {"seed": 0}, recognition=scored(0))
    study = {name: results.find_run(tmp_path, f"{name}/seed0") for name in ("asr", "asr_whole")}
    claim = claims.recognition(study)
    assert (claim.verdict, claim.runs) == (SHOWN, ("asr_whole/seed0-1",))


def test_prompted_voices_are_held_against_chance_over_speakers(tmp_path):
    rows = [
        {"id": f"{who}{n}", "speaker": who, "nearest_speaker": who if n else "ann", "seconds": 1.0}
        for who in ("ann", "bob", "cy", "dee")
        for n in range(5)
    ]
    write_run(tmp_path, "evaluation", "zero-shot-1", {}, utterances=rows)
    study = {"zero-shot": results.find_run(tmp_path, "evaluation/zero-shot")}
    claim = claims.zero_shot(study)
    assert claim.verdict == SHOWN and claim.number.startswith("85.0 [80.0, 95.0] % nearest")
    assert "25.0% by chance" in claim.number
    assert claims.zero_shot({}).verdict == NOT_RUN


def test_page_counts_verdicts_and_names_reasons_instead_of_numbers(tmp_path):
    found = claims.claims(tmp_path, {})
    assert set(claims.counts(found)) == set(claims.VERDICTS)
    assert claims.counts(found)[NOT_RUN] + claims.counts(found)[NOT_TESTABLE] == len(found)
    assert claims.answer(found).startswith(f"Of {len(found)} claims: 5 {NOT_TESTABLE}, ")
    table = claims.table(found)
    assert (table[table["verdict"] == NOT_TESTABLE]["the number that decides"] != "").all()
    assert json.dumps(table.to_dict())  # text cells only
