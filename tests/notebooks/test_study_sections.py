"""README sections and figures of the smaller studies, from runs as notebooks 16, 40, 50, 60 and 70
record them.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from finished_runs import write_run
from notebook_functions import notebook_functions

from llasa_core.evaluation import summary
from llasa_core.evaluation.scaling_law import fit_surface
from llasa_core.experiments.config import notebook_parameters, repository_root
from llasa_core.experiments.results import find_run, published_tables
from llasa_core.experiments.tables import (
    codec_scores,
    paired_arms,
    recognition_scores,
    runs_digest,
    training_runs,
)
from llasa_core.search import nested
from llasa_core.studies import full_scale
from llasa_core.studies.beside_paper import beside_the_paper
from llasa_core.studies.full_scale import Assumptions
from llasa_core.studies.paper_items import (
    ITEMS,
    flat_metrics,
    items_markdown,
    paper_items,
    step_flops_per_second,
)
from llasa_core.studies.study import read_study, results_table, system_scores
from llasa_core.studies.study_figures import study_figures
from llasa_core.studies.study_sections import study_sections

ROOT = repository_root(Path(__file__).parent)
scaling_study = notebook_functions("50_train_time_scaling")


def scored(count=6, errors=1, similarity=0.7, **other):
    """Scored utterances of ten words each, `errors` of them wrong on average."""
    return [
        {
            "id": f"u{n}",
            "text_id": f"u{n}",
            "seconds": 2.0,
            "words": 10,
            "errors": 2 * errors * (n % 2),
            **other,
        }
        | {"similarity": similarity + 0.01 * (n % 3), "ended": True}
        for n in range(count)
    ]


def held_out(nats, count=4):
    return [
        {"id": f"u{n}", "seconds": 2.0, "tokens": 60, "labels": 50, "nats": nats + n}
        for n in range(count)
    ]


def write_scaling(results):
    """The made-up grid, a larger run, its prediction, the law and the scores, as their experiments
    record them.
    """
    shutil.copytree(ROOT / "tests/made_up_runs/scaling", results / "scaling")
    target = {
        "parameters": 4_000_000,
        "parameters_body": 1,
        "train_hours": 2.0,
        "tokens": 1,
        "diverged": 0,
    }
    params = {"model": "small", "seed": 0, "epochs": 3.0}
    write_run(results, "scaling_target", "run-1", target, params, held_out=held_out(400.0))
    runs = training_runs(results, "scaling")
    surface = fit_surface(runs["parameters"], runs["hours"], runs["loss"], n_boot=20)
    said = scaling_study.predict_run(surface, 4_000_000, 2.0, 3.0)
    write_run(results, "scaling_prediction", "run-2", said)
    places = [
        find_run(results, place) for place in ("scaling_prediction/run", "scaling_target/run")
    ]
    metrics = {
        "runs": len(runs),
        "runs_diverged": 0,
        "runs_digest": runs_digest(runs),
    }
    metrics |= surface.metrics() | scaling_study.prediction_error(*places)
    params = {
        "study": "scaling",
        "prediction": "scaling_prediction/run",
        "target": "scaling_target/run",
    }
    params["spoken"] = "scaling_speech"
    write_run(results, "train_time_scaling", "run-3", metrics, params)
    systems = {name: f"artifacts/{name}/speech.jsonl" for name in ("small", "nano", "tiny")}
    models = {"small": "scaling_target/run-1", "nano": "scaling/nano-seed0-hours1.0-0000"}
    models["tiny"] = "scaling/tiny-seed0-hours1.0-0000"
    for name, model in models.items():
        params = {"model": f"artifacts/{model}/model", "speech_dir": f"artifacts/{name}"}
        write_run(results, "scaling_speech", f"{name}-6", {}, params)
    params = {
        "systems": systems,
        "main_system": "small",
        "resynthesis_codec": "",
        "score_originals": False,
    }
    rows = {"utterances": scored(errors=1), "nano": scored(errors=4), "tiny": scored(errors=2)}
    write_run(results, "scaling_scores", "run-4", {}, params, **rows)


def write_codecs(results, corpus):
    params = {
        "codecs": ["xcodec2", "results/checkpoints/mini", "opus-6k"],
        "manifest": "artifacts/builtin/test.jsonl",
    }
    metrics = {"codecs": 2, "codecs_not_run": 1, "xcodec2_not_run": 1}
    for name, rate in (("mini", 600.0), ("opus-6k", 6100.0)):
        metrics |= {f"{name}_bits_per_second{end}": rate for end in ("", "_low", "_high")}
        metrics |= {f"{name}_bits_per_second_n": 6}
    rows = {
        "recordings": scored(errors=0),
        "mini": scored(errors=2, stoi=0.9),
        "opus-6k": scored(errors=1, stoi=0.8),
    }
    folder = write_run(results, "codec_table", f"{corpus}-5", metrics, params, **rows)
    path = folder / "result.json"
    result = json.loads(path.read_text())  # notebook 16 records rows under NAME_utterances
    result["artifacts"] = {f"{name}_utterances": item for name, item in result["artifacts"].items()}
    path.write_text(json.dumps(result))


def write_asr(results):
    params = {
        "models": {"recognition": ["asr"], "speech": ["tts"], "both": ["tts", "asr"]},
        "corpus_dir": "here",
    }
    metrics = {f"{name}_{key}": 10 for name in params["models"] for key in ("steps", "tokens")}
    rows = {"recognition": scored(errors=2), "both": scored(errors=1)}
    rows |= {"speech_held_out": held_out(300.0), "both_held_out": held_out(310.0)}
    write_run(results, "asr", "seed0-6", metrics, params, **rows)


def write_search(results):
    params = {
        "arms": {"plain": {"strategy": "plain sampling", "n": 1, "by": []}},
        "candidates": 16,
        "prm": [4, 4, 25],
    }
    spent = {"tokens": 120, "flops": 1.0, "cpu_seconds": 0.1}
    rows = {
        "plain": scored(errors=3, **spent),
        "partial-prm": scored(
            errors=1, similarity=0.9, verifier_errors=0, verifier_similarity=0.9, **spent
        ),
        "prm": scored(count=4, errors=3, **spent),
    }
    metrics = {
        f"{name}_{key}": value
        for name, arm in rows.items()
        for key, value in nested.arm_scores(arm).items()
    }
    write_run(results, "inference_time_scaling", "open-7", metrics, params, **rows)


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(ROOT / "results/published", folder / "published")
    write_scaling(folder)
    for corpus in ("builtin", "human"):
        write_codecs(folder, corpus)
    write_asr(folder)
    write_search(folder)
    return folder


def sections(results):
    study, _ = read_study(results)
    return study, "\n\n".join(study_sections(study, results))


def test_law_is_given_with_intervals_its_runs_and_the_error_of_its_prediction(results):
    study, text = sections(results)
    law = study["law"].metrics
    a = f"a = {law['surface_size_exponent']:.2f} [{law['surface_size_exponent_low']:.2f}, "
    assert (
        a in text
        and "fitted to 18 runs (0 diverged)" in text
        and "--force" not in text
        and "bound" not in text
    )
    measured = sum(row["nats"] for row in held_out(400.0)) / math.log(2) / 8
    assert f"measured {measured:.1f} [" in text and "(n = 4 utterances): off by " in text
    assert (
        f"off by {measured / law['prediction'] - 1:+.1%}, outside of the interval of one run."
        in text
    )


def test_exponent_at_the_bound_of_the_fit_is_not_passed_off_as_found(results):
    path = results / "train_time_scaling/run-3/result.json"
    result = json.loads(path.read_text())
    result["metrics"]["surface_size_exponent"] = 4.0
    path.write_text(json.dumps(result))
    assert "An exponent of 4 is the fit's bound" in sections(results)[1]


def test_law_of_other_runs_than_are_here_says_so(results):
    shutil.rmtree(next((results / "scaling").glob("nano-seed1-hours1.0-*")))
    assert (
        "These are not the 17 runs that are here: run experiments/train_time_scaling.yaml"
        in sections(results)[1]
    )


def test_words_and_voice_stand_beside_size_and_hours(results):
    _, text = sections(results)
    rows = [
        line for line in text.splitlines() if line.startswith(("| nano |", "| tiny |", "| small |"))
    ]
    assert [line.split(" | ")[2] for line in rows] == ["1", "1", "2"]
    assert ["| 40.0 [" in rows[0], "| 20.0 [" in rows[1], "| 10.0 [" in rows[2]] == [True] * 3
    assert rows[2].startswith("| small | 4,000,000 | 2 | ")


def test_codecs_have_rate_and_scores_and_what_could_not_run_is_named(results):
    study, text = sections(results)
    table = codec_scores(study["codecs_human"]).set_index("system")
    assert list(table.index) == ["recordings", "mini", "opus-6k"]
    assert (
        table.loc["mini", "corpus_wer"] == pytest.approx(0.2)
        and table.loc["mini", "bits_per_second"] == 600
    )
    assert np.isnan(table.loc["recordings", "bits_per_second"])
    assert "synthetic speech (n = 6): bit/s" in text and "a real voice (n = 6): bit/s" in text
    assert "| mini | 600 | 20.0 [" in text and "| recordings | – | 0.0 [0.0, 0.0] |" in text
    assert "Could not run here: xcodec2." in text
    shutil.rmtree(results / "codec_table/human-5")
    assert "a real voice" not in sections(results)[1] and "synthetic speech" in sections(results)[1]


def test_recognition_compares_one_model_for_both_directions_with_two(results):
    study, text = sections(results)
    table = recognition_scores(study["asr"]).set_index("system")
    assert table.loc["recognition", "corpus_wer"] == pytest.approx(0.2) and np.isnan(
        table.loc["speech", "corpus_wer"]
    )
    assert table.loc["speech", "bits_per_second"] == pytest.approx((4 * 300 + 6) / math.log(2) / 8)
    assert (
        "| recognises | 20.0 [" in text
        and "| both directions | 10.0 [" in text
        and "| speaks | – | " in text
    )
    assert "WER in points -10.0 [" in text and "bits a second 7.2 [7.2, 7.2], n = 4." in text
    study, _ = read_study(results)
    runs = {f"{item.experiment}/{item.run}": item for item in study.values()}
    row = beside_the_paper(system_scores(study), published_tables(results), runs).query(
        "metric == 'WER clean, %'"
    )
    assert row["ours"].iloc[0].startswith("20.00 [")
    assert row["comparable"].iloc[0] == "no: here, not LibriSpeech test-clean and test-other"


def test_search_pairs_only_arms_of_the_same_requests(results):
    study, text = sections(results)
    assert set(paired_arms(study["search"], ["partial-prm", "prm", "absent"])) == {"partial-prm"}
    assert "| plain sampling | 30.0 [" in text and "| PRM by voice to the end | 30.0 [" in text
    assert "partial PRM by voice, then words WER in points -20.0 [" in text and ", n = 6." in text


def test_tracked_study_of_finetuning_has_similarity_and_words_by_minutes():
    study, _ = read_study(ROOT / "results")
    text = "\n".join(study_sections({"finetuning": study["finetuning"]}, ROOT / "results"))
    assert (
        text.count(" min | ") == 5
        and "n = 45 sentences" in text
        and "LoRA minus all weights, paired: " in text
    )
    assert "base model (floor) " in text


def test_a_study_without_a_run_has_no_section_and_is_listed_as_missing(results):
    shutil.rmtree(results / "train_time_scaling")
    shutil.rmtree(results / "asr")
    text = results_table(results)
    assert "Train-time scaling.**" not in text and "Recognition, the sides swapped" not in text
    assert (
        "`train_time_scaling/run`" in text.split("Without a finished run: ")[1].split("Runs: ")[0]
    )
    assert study_sections({}, results) == []


def test_every_study_has_a_figure(results):
    study, _ = read_study(results)
    drawn = study_figures(study)
    assert sorted(drawn) == ["codecs_builtin", "codecs_human", "recognition", "search"]
    for figure in drawn.values():
        assert figure.axes[0].get_xlabel()
    names = [label.get_text() for label in drawn["codecs_human"].axes[0].get_yticklabels()]
    assert names == ["recordings (n=6)", "mini, 600 bit/s (n=6)", "opus-6k, 6,100 bit/s (n=6)"]
    assert study_figures({}) == {}


def items_of(results, assumed=None):
    study, _ = read_study(results)
    runs = {f"{item.experiment}/{item.run}": item for item in study.values()}
    beside = beside_the_paper(system_scores(study), published_tables(results), runs)
    return paper_items(results, study, beside, assumed or Assumptions())


def test_every_figure_and_table_of_the_paper_has_a_row_with_file_command_and_cost(results):
    table = items_of(results)
    named = " ".join(table["item"])
    for name in (
        "Fig. 1",
        "Fig. 2",
        "Table 1",
        "Table 2, left",
        "Table 2, right",
        "Table 3",
        "Table 4",
        "Table 5",
    ):
        assert name in named
    files = [name for item in ITEMS for name in item.experiments]
    assert files and all((ROOT / f"experiments/{name}.yaml").is_file() for name in files)
    assert (table["command"] != "").all() and table["command"][
        5
    ] == "llasa run experiments/asr.yaml"
    rows = table.set_index("shows")
    assert rows.loc["train-time scaling", "runs"] == 18 + 7  # the grid, and all around it
    assert rows.loc["codecs", "hours"] == pytest.approx(2 * 3 / 3600)
    assert rows.loc["recognition", "published"] == "WER clean 2.3 % (llasa-asr-1b)"
    assert rows.loc["recognition", "ours"].startswith("WER clean 20.00 [")
    assert "(n = 18 runs)" in rows.loc["train-time scaling", "ours"]
    assert rows.loc["emotion similarity, ESD", "runs"] == 0 and np.isnan(
        rows.loc["emotion similarity, ESD", "hours"]
    )


def test_full_scale_columns_are_those_of_the_formulas_and_follow_the_assumption(results):
    rows = items_of(results).set_index("shows")
    hours = full_scale.training_hours(full_scale.RELEASED, Assumptions())
    assert rows.loc["train-time scaling", "training_gpu_hours"] == pytest.approx(hours)
    assert np.isnan(rows.loc["Seed-TTS-Eval", "training_gpu_hours"])  # trained once, for Fig. 1
    slower = items_of(results, Assumptions(utilisation=0.2)).set_index("shows")
    assert slower.loc["recognition", "training_gpu_hours"] == pytest.approx(
        2 * rows.loc["recognition", "training_gpu_hours"]
    )
    assert (
        rows["speaking_gpu_hours"]["inference-time scaling"]
        > rows["speaking_gpu_hours"]["Seed-TTS-Eval"]
    )
    flat = flat_metrics(items_of(results))
    assert flat["full_scale_fig__1_train_time_scaling_training_gpu_hours"] == pytest.approx(hours)
    assert all(math.isfinite(value) for value in flat.values())


def test_table_of_items_writes_out_what_is_assumed_and_what_was_measured(results):
    table = items_of(results)
    text = items_markdown(table, ROOT / "results", Assumptions())
    assert "no GPU was measured" in text and "training reaches 40%" in text and "nan" not in text
    assert "[asr](experiments/asr.yaml)" in text and "| 1 run, 3 s |" in text
    shape = json.loads((ROOT / "results/benchmarks/train_step.json").read_text())["shapes"][
        "body-heavy"
    ]
    rate = (
        6 * shape["parameters"]["total"] * shape["variants"]["packed_bf16"]["tokens_per_cpu_second"]
    )
    assert step_flops_per_second(ROOT / "results") == pytest.approx(rate)
    assert f"{rate / 1e9:.0f} GFLOP/s a thread" in text
    assert step_flops_per_second(results) is None and "GFLOP/s" not in items_markdown(
        table, results, Assumptions()
    )


def test_notebook_assumes_what_the_library_assumes():
    assumed = notebook_parameters(ROOT / "notebooks/90_paper_figures.ipynb")["full_scale"]
    assert {"utilisation", "memory_utilisation"} <= set(assumed)
    assert full_scale.assumptions(assumed) == Assumptions()


def test_rows_made_here_are_scored_as_those_of_a_run():
    assert summary.summarise(scored(errors=2))["corpus_wer"] == pytest.approx(0.2)
