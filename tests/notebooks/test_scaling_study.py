"""The tables and figures of train-time scaling, from runs written as 20_train writes them; no
model.
"""

import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from notebook_functions import notebook_functions

from llasa_core.errors import InputError
from llasa_core.evaluation.lack_of_fit import LackOfFit
from llasa_core.evaluation.replicates import SeedScatter
from llasa_core.evaluation.scaling_law import KAPLAN, LossSurface, fit_surface
from llasa_core.evaluation.word_error_law import fit_word_errors
from llasa_core.experiments import results, scaling_grid, tables
from llasa_core.experiments.config import load_experiment, repository_root
from llasa_core.experiments.results import read_result

scaling_study = notebook_functions("50_train_time_scaling")

MODELS = {"nano": 550_336, "micro": 1_065_312, "tiny": 1_846_656}
HOURS = (0.25, 0.5, 1.0)


def law(parameters, hours):
    return 150.0 + 4.0e4 * parameters**-0.5 + 60.0 * hours**-0.4


def write_run(root, experiment, model, hours, seed, bits=None, parameters=None, epochs=3.0):
    """A finished run of 20_train whose held-out speech costs `bits` a second (default: the law);
    inf = diverged.
    """
    parameters = parameters or MODELS[model]
    bits = law(parameters, hours) * (1 + 0.002 * seed) if bits is None else bits
    folder = root / experiment / f"{model}-seed{seed}-hours{hours}-0000"
    folder.mkdir(parents=True)
    metrics = {
        "parameters": parameters,
        "parameters_body": parameters // 2,
        "train_hours": hours - 0.0004,
    }
    metrics |= {"tokens": int(7e5 * hours * epochs / 3), "diverged": int(math.isinf(bits))}
    rows = []
    if not math.isinf(bits):
        metrics["training_flops"] = 6.0 * parameters * metrics["tokens"]
        for number, seconds in enumerate(
            (1.0, 3.0)
        ):  # the longer one is cheaper a second; together `bits`
            nats = (bits + (3, -1)[number]) * seconds * math.log(2)
            rows.append(
                {"id": f"u{number}", "seconds": seconds, "tokens": 60, "labels": 50, "nats": nats}
            )
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {
        "schema": 1,
        "experiment": experiment,
        "run": folder.name,
        "notebook": "notebooks/20_train.ipynb",
    }
    result |= {
        "params": {"model": model, "seed": seed, "epochs": epochs, "hours": hours},
        "metrics": metrics,
    }
    (folder / "result.json").write_text(json.dumps(result | {"artifacts": {}, "provenance": {}}))
    return read_result(folder / "result.json")


@pytest.fixture
def study(tmp_path):
    for model in MODELS:
        for hours in HOURS:
            for seed in (0, 1):
                write_run(tmp_path, "scaling", model, hours, seed)
    return tmp_path


def test_runs_are_read_with_the_loss_of_their_utterances(study):
    runs = tables.training_runs(study, "scaling")
    assert len(runs) == 18 and runs["n"].tolist() == [2] * 18 and not runs["diverged"].any()
    first = runs.iloc[0]
    assert (first["model"], first["hours"], first["seed"]) == ("nano", 0.2496, 0)
    assert first["loss"] == pytest.approx(law(550_336, 0.25))  # bits and seconds are summed first
    assert (
        first["loss_low"] == pytest.approx(first["loss"] - 1) and first["loss_high"] > first["loss"]
    )
    with pytest.raises(InputError, match="no finished run"):
        tables.training_runs(study, "nothing")


def test_diverged_run_stays_in_the_table_without_a_loss(study):
    write_run(study, "scaling", "tiny", 1.0, 2, bits=math.inf)
    runs = tables.training_runs(study, "scaling")
    assert len(runs) == 19 and runs["diverged"].sum() == 1 and runs["loss"].isna().sum() == 1
    cell = scaling_study.cells(runs).iloc[-1]
    assert (cell["seeds"], cell["diverged"]) == (2, 1)


def test_interval_of_a_cell_is_students_over_its_seeds():
    runs = pd.DataFrame(
        {"model": "nano", "parameters": 10, "hours": [0.9996, 1.0004], "diverged": 0}
    )
    runs = runs.assign(loss=[9.0, 11.0], loss_low=8.0, loss_high=12.0)
    (cell,) = scaling_study.cells(runs).to_dict("records")
    assert (cell["loss"], cell["seeds"], cell["hours"]) == (10.0, 2, 1.0)
    assert cell["loss_high"] == pytest.approx(
        10 + 12.7062, abs=1e-3
    )  # t(0.975, 1) * sqrt(2) / sqrt(2)
    (alone,) = scaling_study.cells(runs[:1]).to_dict("records")
    assert (alone["loss_low"], alone["loss_high"]) == (8.0, 12.0)


def test_equal_compute_follows_the_flops_of_the_runs_and_finds_the_least_by_hand():
    """L = 1 + 8/N + 2/D and FLOPs = N D: least at N = 2 sqrt(C)."""
    surface = LossSurface((1.0, 8.0, 1.0, 2.0, 1.0), np.ones((1, 5)), np.zeros(1), 1, 0.0)
    size, hours = (part.ravel() for part in np.meshgrid([4.0, 8.0, 16.0], [2.0, 4.0, 8.0]))
    runs = pd.DataFrame({"parameters": size, "hours": hours, "flops": size * hours})
    assert scaling_study.flops_rate(runs) == pytest.approx((1.0, 1.0))
    curves = scaling_study.iso_flop_curves(surface, runs, levels=3, points=400)
    best = scaling_study.least_loss(curves)
    assert best["flops"].tolist() == pytest.approx([16, 32, 64])
    np.testing.assert_allclose(best["parameters"], 2 * np.sqrt(best["flops"]), rtol=0.02)
    inside = curves[curves["measured"]]
    assert inside["hours"].between(2, 8).all() and inside["parameters"].between(4, 16).all()


@pytest.mark.slow
def test_prediction_is_held_against_its_run_and_refused_for_another(study):
    runs = tables.training_runs(study, "scaling")
    surface = fit_surface(runs["parameters"], runs["hours"], runs["loss"], n_boot=20)
    said = scaling_study.predict_run(surface, 4_840_192, 2.0, 3.0)
    assert said["predicted_run_low"] <= said["predicted_low"] <= said["predicted"]
    assert said["predicted"] == pytest.approx(law(4_840_192, 2.0), rel=0.01)
    folder = study / "prediction" / "run-0000"
    folder.mkdir(parents=True)
    said |= {"predicted": 200.0, "predicted_run_low": 195.0, "predicted_run_high": 205.0}
    written = {
        "schema": 1,
        "experiment": "prediction",
        "run": folder.name,
        "notebook": "n",
        "params": {},
    }
    (folder / "result.json").write_text(
        json.dumps(written | {"metrics": said, "artifacts": {}, "provenance": {}})
    )
    prediction = results.find_run(study, "prediction/run")
    target = write_run(study, "target", "mini", 2.0, 0, bits=210.0, parameters=4_840_192)
    outcome = scaling_study.prediction_error(prediction, target)
    assert (
        outcome["prediction_relative_error"] == pytest.approx(0.05)
        and outcome["prediction_holds"] == 0
    )
    assert outcome["target_measured"] == pytest.approx(210.0) and outcome["target_measured_n"] == 2
    other = write_run(study, "target", "tiny", 2.0, 0)
    with pytest.raises(InputError, match="parameters is 1846656, the prediction is of 4840192"):
        scaling_study.prediction_error(prediction, other)
    cells = scaling_study.cells(runs)
    saved(scaling_study.predicted_run(cells, outcome, tables.training_row(target)))


def test_digest_changes_with_a_loss(study):
    runs = tables.training_runs(study, "scaling")
    digest = tables.runs_digest(runs)
    assert digest == tables.runs_digest(runs) < 2**48
    assert digest != tables.runs_digest(runs.assign(loss=runs["loss"] + 1e-5))


def saved(figure):
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()


@pytest.mark.slow
def test_figures_name_their_axes_and_their_series_differ_in_grey(study):
    runs = tables.training_runs(study, "scaling")
    surface = fit_surface(runs["parameters"], runs["hours"], runs["loss"], n_boot=5)
    curves = scaling_study.surface_curves(surface, runs, points=5)
    assert (curves["loss_low"] <= curves["loss_high"]).all()
    fitted = surface.predict(runs["parameters"].to_numpy(), runs["hours"].to_numpy())
    steps = scaling_grid.loss_steps(runs, held_out_of_none)
    drawn = [
        lambda: scaling_study.loss_by_data_and_size(scaling_study.cells(runs), curves),
        lambda: scaling_study.fit_residuals(
            runs.assign(fitted=fitted, residual=runs["loss"] / fitted - 1), SeedScatter(0.01, 9)
        ),
        lambda: scaling_study.iso_flop(scaling_study.iso_flop_curves(surface, runs), runs),
        lambda: scaling_study.step_forest(steps, "bits per second of audio"),
    ]
    for draw in drawn:
        figure = draw()
        assert all(
            axis.get_xlabel() and axis.get_title().endswith((")", "?")) for axis in figure.axes
        )
        assert saved(figure) == saved(draw())
    left = drawn[0]().axes[0]
    assert len({line.get_marker() for line in (bar.lines[0] for bar in left.containers)}) == 3
    assert [label.get_text() for label in left.get_xticklabels()] == ["0.25", "0.5", "1"]


def write_speech(root, system, model, experiment="speech"):
    """A finished run of 30_synthesize; its folder does not carry the name that the scores have."""
    folder = root / experiment / f"run-{system * 4}"
    folder.mkdir(parents=True)
    place = f"{experiment}/{system}"
    params = {"model": f"artifacts/{model}/model", "speech_dir": place, "attempts": 5}
    result = {
        "schema": 1,
        "experiment": experiment,
        "run": folder.name,
        "notebook": "n",
        "params": params,
    }
    (folder / "result.json").write_text(
        json.dumps(
            result
            | {"metrics": {"sampled_again": 1, "utterances": 4}, "artifacts": {}, "provenance": {}}
        )
    )
    return {system: f"{place}/speech.jsonl"}


def write_scores(root, experiment, systems, errors):
    """A finished run of 40_evaluate: of each system the wrong words of ten, text by text."""
    folder = root / experiment / "run-0000"
    folder.mkdir(parents=True)
    main = list(systems)[-1]
    params = {
        "systems": systems,
        "main_system": main,
        "resynthesis_codec": "",
        "score_originals": False,
    }
    result = {
        "schema": 1,
        "experiment": experiment,
        "run": folder.name,
        "notebook": "n",
        "params": params,
    }
    (folder / "result.json").write_text(
        json.dumps(result | {"metrics": {}, "artifacts": {}, "provenance": {}})
    )
    for system in systems:
        rows = [
            {"id": f"u{n}", "seconds": 1.0, "errors": wrong, "words": 10, "similarity": n / 4}
            for n, wrong in enumerate(errors[system])
        ]
        name = "utterances" if system == main else system
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_made_up_study(root):
    """The made-up grid, models that heard their speech again, and scores of speech of five cells:
    tests/made_up_runs.
    """
    for model in MODELS:
        for hours in HOURS:
            for seed in (0, 1):
                write_run(root, "scaling", model, hours, seed)
    again = law(MODELS["tiny"], 0.25) - 20
    write_run(root, "scaling_repeats", "tiny", 0.25, 0, bits=again, epochs=12.0)
    systems, errors = {}, {}
    for model in MODELS:
        for hours in (0.25, 1.0):
            for seed in (0, 1) if model == "tiny" else (0,):
                name = f"{model}-{hours:g}h-seed{seed}"
                run = f"scaling/{model}-seed{seed}-hours{hours}-0000"
                systems |= write_speech(root, name, run, "scaling_speech")
                wrong = (law(MODELS[model], hours) - 180) / 20 + 0.2 * seed
                errors[name] = [min(10, round(wrong + off)) for off in (-2, -1, 0, 0, 1, 2)]
    write_scores(root, "scaling_scores", systems, errors)


def test_scores_of_speech_are_joined_to_the_training_of_the_model_that_spoke(tmp_path):
    systems = {}
    for system, (model, hours) in {
        "a": ("tiny", 1.0),
        "c": ("nano", 0.25),
        "b": ("nano", 1.0),
    }.items():
        write_run(tmp_path, "grid", model, hours, 0)
        systems |= write_speech(tmp_path, system, f"grid/{model}-seed0-hours{hours}-0000")
    write_scores(tmp_path, "scores", systems, {"a": [1] * 4, "b": [2] * 4, "c": [5] * 4})
    scored = results.read_scored(tmp_path, "scores/run")
    speech = tables.speech_by_training(tmp_path, scored, "speech", ["grid"])
    assert speech["system"].tolist() == ["c", "b", "a"] and speech["model"].tolist() == [
        "nano",
        "nano",
        "tiny",
    ]
    assert (
        speech["corpus_wer"].tolist() == [0.5, 0.2, 0.1]
        and (speech["speaker_similarity"] == 0.375).all()
        and (speech["sampled_again_share"] == 0.25).all()
    )
    panels = {"corpus_wer": ("WER (%)", 100), "speaker_similarity": ("cosine", 1)}
    by_hours, by_size, *_ = scaling_study.speech_by_data_and_size(speech, panels).axes
    assert [list(bar.lines[0].get_ydata()) for bar in by_hours.containers] == [[50.0, 20.0], [10.0]]
    assert [list(bar.lines[0].get_xdata()) for bar in by_size.containers] == [
        [MODELS["nano"], MODELS["tiny"]]
    ]
    with pytest.raises(
        InputError, match=r"'a' is of artifacts/grid/.*which no run of elsewhere made"
    ):
        write_run(tmp_path, "elsewhere", "nano", 0.5, 0)
        tables.speech_by_training(tmp_path, scored, "speech", ["elsewhere"])
    with pytest.raises(InputError, match="system 'a' is scored in another run too"):
        tables.speech_by_training(tmp_path, scored * 2, "speech", ["grid"])


def test_made_up_runs_are_those_that_the_writer_writes(tmp_path):
    write_made_up_study(tmp_path)
    kept = repository_root(Path(__file__).parent) / "tests/made_up_runs"
    for path in sorted(tmp_path.rglob("*.json*")):
        assert path.read_text() == (kept / path.relative_to(tmp_path)).read_text(), path


def held_out_of_none(run):
    raise AssertionError(f"{run} is read, expected seeds alone")


def test_steps_are_said_in_words_with_what_is_not_shown():
    def steps(*ends):
        rows = [
            {"along": along, "step": f"step {place}", "low": low, "high": high}
            for place, (along, low, high) in enumerate(ends)
        ]
        return pd.DataFrame(rows, columns=["along", "step", "low", "high"])

    said = scaling_study.steps_in_words(
        steps(("hours", -2, -1), ("hours", -4, -1), ("parameters", -2, -1), ("parameters", -1, 1)),
        "Bits",
    )
    assert "Bits fall with more speech at every size: 2 of 2 intervals lie below zero" in said
    assert "larger model, but this is not shown at every amount of speech: 1 of 2" in said
    assert said.endswith("0 above (not below: step 3).")
    said = scaling_study.steps_in_words(steps(("hours", 1, 2)), "Bits")
    assert "Bits are not shown to fall with more speech: 0 of 1" in said and "1 above" in said
    assert said.endswith("There is no step of a larger model.")


def test_table_of_forms_names_the_rejected_and_the_chosen():
    def fit(values, checks, form=KAPLAN):
        return LossSurface(values, np.ones((1, 4)), np.zeros(1), 19, 0.004, checks, form)

    kept = fit((1, 1, 1, 1), LackOfFit(1.2, 0.37, 5, 10, -0.013))
    bad = fit((1, 1, 1, 1), LackOfFit(24.0, 4e-5, 4, 10, -0.035))
    table = scaling_study.form_table({"additive": bad, "kaplan": kept, "other": kept}, "kaplan")
    assert [cell.strip() for cell in table[""]] == ["rejected", "chosen", ""]
    assert table.loc["kaplan", "lack of fit"] == "F(5, 10) = 1.20"
    assert table.loc["additive", "largest left out"] == "-3.50%"


def test_slices_are_the_fullest_and_of_equals_the_largest():
    runs = pd.DataFrame(
        {"parameters": [1, 1, 2, 2, 3], "hours": [1.0, 2.0, 1.0, 2.0, 2.0], "loss": 1.0}
    )
    hours = scaling_study.fullest(runs, "parameters", "hours")
    assert hours["parameters"].tolist() == [2, 2]
    sizes = scaling_study.fullest(runs, "hours", "parameters")
    assert sizes["parameters"].tolist() == [1, 2, 3]


@pytest.mark.slow
def test_word_errors_of_a_larger_run_are_predicted_from_its_loss_and_judged(study):
    runs = tables.training_runs(study, "scaling")
    surface = fit_surface(runs["parameters"], runs["hours"], runs["loss"], n_boot=20)
    wer = 1 / (1 + np.exp(-(runs["loss"] - 240) / 20))
    cells = list(zip(runs["parameters"], runs["hours"], strict=True))
    words = fit_word_errors(runs["loss"], wer, cells, n_boot=20)
    said = scaling_study.predict_run(surface, 4_840_192, 2.0, 1.0, words)
    truth = 1 / (1 + np.exp(-(law(4_840_192, 2.0) - 240) / 20))
    assert said["predicted_wer"] == pytest.approx(truth, rel=0.05)
    assert said["predicted_wer_low"] <= said["predicted_wer"] <= said["predicted_wer_high"]
    said |= {"predicted_wer": 0.2, "predicted_wer_low": 0.15, "predicted_wer_high": 0.25}
    said |= scaling_study.predict_by_form({"additive": surface}, 4_840_192, 2.0)
    assert said["additive_predicted"] == said["predicted"]
    prediction = results.Result(study, "p", "run", "n", {}, said, {}, {})
    measured = {"corpus_wer": 0.3, "corpus_wer_low": 0.2, "corpus_wer_high": 0.4}
    judged = scaling_study.wer_error(prediction, measured | {"corpus_wer_n": 64})
    assert judged["wer_prediction_holds"] == 0 and judged["target_wer_n"] == 64
    measured["corpus_wer"] = 0.25
    assert scaling_study.wer_error(prediction, measured | {"corpus_wer_n": 64})[
        "wer_prediction_holds"
    ]
    target = write_run(
        study, "target", "mini", 2.0, 0, bits=210.0, parameters=4_840_192, epochs=1.0
    )
    judged |= scaling_study.prediction_error(prediction, target)
    assert judged["additive_relative_error"] == pytest.approx(210 / said["predicted"] - 1)
    scored = runs.assign(corpus_wer=wer, corpus_wer_low=wer, corpus_wer_high=wer, corpus_wer_n=64)
    saved(scaling_study.words_by_bits(scored, words, judged))
    (axis,) = scaling_study.words_by_bits(scored, words).axes
    assert "18 models, n = 64" in axis.get_title()


ROOT = repository_root(Path(__file__).parent)
SIZES = ("nano", "micro", "tiny")
AMOUNTS = (6.0, 12.0, 24.0)


def runs_of(name):
    return load_experiment(ROOT / "experiments" / f"{name}.yaml").runs


def label(run):
    return run.id.rsplit("-", 1)[0]


def test_models_that_speak_are_those_of_the_grid_and_what_they_say_is_scored():
    models = {label(run): f"{run.artifacts_dir}/model" for run in runs_of("scaling")}
    models["target"] = f"{runs_of('scaling_target')[0].artifacts_dir}/model"
    spoken = {label(run): run.params for run in runs_of("scaling_speech")}
    assert {name: params["model"] for name, params in spoken.items()} == models
    scored = {}
    for run in runs_of("scaling_scores"):
        scored |= run.params["systems"]
    assert scored == {
        name: f"{params['speech_dir']}/manifest.jsonl" for name, params in spoken.items()
    }


def test_grid_has_three_sizes_three_amounts_and_three_seeds_at_its_corners_and_centre():
    runs = runs_of("scaling")
    seeds = {}
    for run in runs:
        size, hours, seed = (run.params[name] for name in ("model", "hours", "seed"))
        assert label(run) == f"{size}-{hours:g}h-seed{seed}"
        seeds.setdefault((size, hours), []).append(seed)
    assert set(seeds) == {(size, hours) for size in SIZES for hours in AMOUNTS}
    for (size, hours), found in seeds.items():
        corner = size != "micro" and hours != 12.0
        centre = size == "micro" and hours == 12.0
        assert found == ([0, 1, 2] if corner or centre else [0])


def test_grid_trains_with_the_rates_of_the_lowest_loss_on_other_speech():
    tried = {}
    for run in runs_of("scaling_rates"):
        found = read_result(ROOT / "results" / "scaling_rates" / run.id / "result.json")
        loss = found.metrics["held_out_bits_per_second"]
        tried.setdefault(run.params["model"], []).append((loss, run.params["peak_lr"]))
    rates = {size: min(found)[1] for size, found in tried.items()}
    for size, found in tried.items():
        assert min(rate for _, rate in found) < rates[size] < max(rate for _, rate in found)
    used = {(run.params["model"], run.params["peak_lr"]) for run in runs_of("scaling")}
    assert used == {(size, rates[size]) for size in SIZES}
    corpora = {run.params["corpus_dir"] for run in runs_of("scaling")}
    assert corpora.isdisjoint(run.params["corpus_dir"] for run in runs_of("scaling_rates"))


def test_speech_that_is_heard_again_is_the_least_of_the_grid_as_many_steps_as_its_most():
    grid = {(run.params["model"], run.params["hours"]): run.params for run in runs_of("scaling")}
    for run in runs_of("scaling_repeats"):
        size, hours, epochs = (run.params[name] for name in ("model", "hours", "epochs"))
        assert (hours, hours * epochs) == (min(AMOUNTS), max(AMOUNTS))
        for name in run.params.keys() - {"hours", "epochs", "seed"}:
            assert run.params[name] == grid[size, hours][name], name


def test_predicted_run_is_the_target_which_is_trained_as_the_grid_and_larger():
    (prediction,) = runs_of("scaling_prediction")
    (target,) = runs_of("scaling_target")
    runs = runs_of("scaling")
    for name in ("hours", "epochs"):
        assert prediction.params[f"target_{name}"] == target.params[name]
    assert target.params["hours"] == max(run.params["hours"] for run in runs)
    varied = ("model", "hours", "seed", "peak_lr")
    for name in target.params.keys() - set(varied):
        assert target.params[name] == runs[0].params[name], name
