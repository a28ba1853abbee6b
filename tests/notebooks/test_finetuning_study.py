"""The study of fine-tuning by minutes, from runs written as notebooks 20, 30 and 40 write them; no
model.
"""

import io
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from finished_runs import SEEDS, VOICES, write_minutes, write_run
from notebook_functions import notebook_functions

from llasa_core.errors import InputError
from llasa_core.experiments import results, tables
from llasa_core.experiments.config import load_experiment, notebook_parameters, repository_root

notebook = notebook_functions("80_finetuning")

ROOT = repository_root(Path(__file__).parent)
STUDY = ("finetuning", "finetuning_speech")


@pytest.fixture
def study(tmp_path):
    for voice in VOICES:
        write_minutes(tmp_path, voice)
    return tmp_path


def read(study):
    return tables.finetunes(results.read_results(study, "finetuning_scores"), study, *STUDY)


def one(table, **keys):
    for key, value in keys.items():
        table = table[table[key] == value]
    (row,) = table.to_dict("records")
    return row


def test_scores_are_joined_to_the_training_and_the_decoder_that_they_were_heard_through(study):
    systems = read(study)
    assert len(systems) == 2 * (3 + 2 * (2 + 8))
    scores = tables.finetune_scores(systems)
    assert len(scores) == 2 * (3 + 2 * (2 + 4)) and set(scores["voice"]) == {"human", "new-voice"}
    keys = {"voice": "human", "kind": "all weights", "minutes": 10.99}
    row = one(scores, **keys, decoder="adapted")
    assert (row["seeds"], row["corpus_wer_n"]) == (2, 4)
    assert row["corpus_wer"] == pytest.approx(0.2)  # 1 and 2 errors, then 2 and 3, of 10 words
    assert row["speaker_similarity"] == pytest.approx(0.4 + 0.05 + 0.005)
    row = one(scores, **keys | {"minutes": 0.49}, decoder="as tracked")
    assert row["corpus_wer"] == pytest.approx(0.6)
    assert (
        row["corpus_wer_low"] <= 0.5 and row["corpus_wer_high"] >= 0.7
    )  # the seeds, and the texts
    levels = scores[scores["minutes"].isna()].set_index(["voice", "kind"])["corpus_wer"]
    assert levels["human"].to_dict() == pytest.approx(
        {"recordings": 0.05, "round trip": 0.25, "base model": 0.95}
    )
    alone = one(scores, voice="human", kind="base model", minutes=10.99)
    assert alone["decoder"] == "adapted" and alone["speaker_similarity"] == pytest.approx(0.35)


def test_changes_are_paired_by_sentence_and_seed_and_levels_stand_beside_each_amount(study):
    systems = read(study)
    lora = tables.finetune_changes(systems, "kind", *tables.METHODS)
    assert len(lora) == 2 * 2 * 2 and set(lora["seeds"]) == {2}
    assert lora["corpus_wer_difference"].tolist() == pytest.approx([0.2] * 8)
    for end in ("_low", "_high"):  # all cells differ alike
        assert lora[f"corpus_wer_difference{end}"].tolist() == pytest.approx([0.2] * 8)
    added = tables.finetune_changes(systems, "decoder", *tables.DECODERS)
    assert len(added) == 2 * 2 * 4
    row = one(added, voice="new-voice", kind="base model", minutes=0.49)
    assert row["corpus_wer_difference"] == pytest.approx(-0.1) and row["seeds"] == 1
    assert one(added, voice="human", kind="LoRA", minutes=0.49)[
        "speaker_similarity_difference"
    ] == pytest.approx(0.2)
    short = systems[(systems["kind"] != "LoRA") | (systems["seed"] == 1)]
    fewer = tables.finetune_changes(short, "kind", *tables.METHODS)
    assert set(fewer["seeds"]) == {1} and set(fewer["corpus_wer_difference_n"]) == {2}


def test_base_model_of_one_seed_is_paired_with_every_seed_of_a_fine_tune(study):
    systems = read(study)
    whole = tables.finetune_changes(systems, "kind", tables.BASE, "all weights")
    assert len(whole) == 2 * 2 * 2 and set(whole["seeds"]) == {2}
    row = one(whole, voice="human", decoder="as tracked", minutes=10.99)
    assert row["corpus_wer_difference"] == pytest.approx(0.4 - 0.95)
    assert row["corpus_wer_difference_n"] == 4
    assert "minus_base_human_as_tracked_10.99min_seeds" in notebook.flat_metrics(
        whole, "minus_base"
    )
    assert not len(
        tables.finetune_changes(systems[systems["seed"] > 0], "kind", "base model", "LoRA")
    )


def test_seeds_of_other_sentences_are_refused(study):
    systems = read(study)
    rows = systems["rows"].tolist()
    systems["rows"] = [
        [row | {"words": 9} for row in rows[-1]] if one is rows[-1] else one for one in rows
    ]
    with pytest.raises(InputError, match="scored on other sentences"):
        tables.finetune_scores(systems)


def test_speech_that_no_run_made_and_models_and_amounts_that_do_not_fit_are_refused(study):
    run = "human-full-0.5min-seed0-0"
    shutil.rmtree(study / "finetuning_speech" / run)
    with pytest.raises(
        InputError, match="lies in speech/human-1, which no run of finetuning_speech"
    ):
        read(study)
    params = {"model": "models/77", "speech_dir": "speech/human-1", "codec": "mini"}
    params["decoders"] = {"speech/human-1-else": "codecs/0.5min"}
    write_run(study, "finetuning_speech", run, {}, params)
    with pytest.raises(
        InputError, match="'full-seed0' is of models/77, which no run of finetuning"
    ):
        read(study)
    shutil.rmtree(study / "finetuning_speech" / run)
    params["model"] = "models/human/8"  # of eleven minutes
    write_run(study, "finetuning_speech", run, {}, params)
    with pytest.raises(InputError, match=r"\[0.49, 10.99\] minutes, expected one amount"):
        read(study)


def test_without_a_run_tables_are_empty(tmp_path):
    systems = tables.finetunes([], tmp_path, *STUDY)
    assert not len(systems) and not len(tables.finetune_scores(systems))
    assert not len(tables.finetune_changes(systems, "kind", *tables.METHODS))
    assert notebook.from_least_to_most(tables.finetune_scores(systems), notebook.TRACKED) == []


def test_answers_and_metrics_name_voice_method_decoder_and_minutes(study):
    systems = read(study)
    scores = tables.finetune_scores(systems)
    lines = notebook.from_least_to_most(scores, notebook.ADAPTED)
    assert len(lines) == 8 and lines[0].startswith("a real voice, all weights: similarity 0.3")
    assert " with 0.49 min, " in lines[0] and lines[0].endswith(" with 11 min.")
    flat = notebook.flat_metrics(scores)
    assert flat["human_LoRA_as_tracked_10.99min_corpus_wer"] == pytest.approx(0.6)
    assert flat["new-voice_recordings_speaker_similarity"] == pytest.approx(0.85)
    lora = tables.finetune_changes(systems, "kind", *tables.METHODS)
    changes = notebook.flat_metrics(lora, "lora_minus_all")
    assert "lora_minus_all_human_adapted_0.49min_corpus_wer_difference" in changes
    assert all(math.isfinite(value) for value in (flat | changes).values())
    shown = one(
        notebook.readable(scores), voice="human", kind="LoRA", decoder="adapted", minutes=0.49
    )
    assert shown["corpus WER (%)"] == "60 [50, 70]" and shown["n"] == 4
    assert notebook.readable(lora)["corpus WER (%)"].tolist() == ["20 [20, 20]"] * 8
    assert "higher on 8 and lower on 0 of 8 rows" in notebook.verdict(lora, "corpus_wer", "WER")


@pytest.mark.slow
def test_figures_draw_seeds_and_series_at_their_minutes_between_the_levels(study):
    systems = read(study)
    scores = tables.finetune_scores(systems)
    figure = notebook.minutes_figure(scores, systems)
    assert len(figure.axes) == 4 and figure.axes[0].get_title() == "a real voice"
    wer = figure.axes[1]
    whole, lora = (container.lines[0] for container in wer.containers)
    assert list(whole.get_ydata()) == pytest.approx([60.0, 40.0])
    assert list(lora.get_ydata()) == pytest.approx([80.0, 60.0])
    assert list(whole.get_xdata()) == pytest.approx([0.49, 10.99], rel=0.06)
    assert wer.get_xscale() == "log" and wer.get_ylabel() == "corpus WER (%)\nn = 4"
    assert (lora.get_marker(), lora.get_linestyle()) != (whole.get_marker(), whole.get_linestyle())
    single = [line for line in wer.get_lines() if line.get_markersize() == 2.5]
    assert len(single) == 2 * 2 * len(SEEDS)
    assert sorted(line.get_ydata()[0] for line in single)[0] == pytest.approx(35.0)
    (legend,) = figure.legends
    labels = {text.get_text() for text in legend.get_texts()}
    assert labels == {*notebook.TRACKED, *notebook.LEVELS}
    through = notebook.decoder_figure(scores, systems)
    assert len(through.axes[0].containers) == 4
    added = tables.finetune_changes(systems, "decoder", *tables.DECODERS)
    change = notebook.changes_figure("What does it add?", added, "kind")
    assert len(change.axes[2].containers) == 4
    drawn = [io.BytesIO(), io.BytesIO()]
    for picture in drawn:
        again = notebook.minutes_figure(scores, systems)
        again.savefig(picture, format="svg", metadata={"Date": None})
    assert drawn[0].getvalue() == drawn[1].getvalue()


def runs_of(name):
    return load_experiment(ROOT / "experiments" / f"{name}.yaml").runs


def test_every_fine_tune_is_spoken_and_scored_through_both_decoders_of_its_voice_and_amount():
    tuned = {run.params["publish"]: run for run in runs_of("finetuning")}
    assert len(tuned) == 36
    decoders = {run.params["publish"]: run for run in runs_of("finetuning_decoders")}
    for run in decoders.values():  # adapted to what the fine-tunes hear
        heard = {
            f"{one.params['codes_dir']}/train_{one.params['hours']:g}h"
            for one in tuned.values()
            if run.id.rpartition("-")[0] == "-".join(one.id.split("-")[::2][:2])
        }
        assert heard == {run.params["only"]}
    spoken = {}
    for run in runs_of("finetuning_speech"):
        for folder, codec in {run.params["speech_dir"]: "mini", **run.params["decoders"]}.items():
            spoken[folder] = (run.params["model"], codec)
    assert {model for model, _ in spoken.values()} == {*tuned, "results/checkpoints/mini-llasa"}
    scored = {}
    for run in runs_of("finetuning_scores"):
        for system, path in run.params["systems"].items():
            model, codec = scored.setdefault(
                Path(path).parent.as_posix(), spoken[str(Path(path).parent)]
            )
            if codec != "mini":
                assert run.params["resynthesis_codec"] == codec and codec in decoders
            if model in tuned:
                voice, method, amount, seed = tuned[model].id.split("-")[:4]
                assert run.id.startswith(f"{voice}-{amount}-")
                assert system == f"{method}-{seed}{'-adapted' * (codec != 'mini')}"
                assert codec in ("mini", f"artifacts/codecs/finetuning/{voice}-{amount}")
    assert scored == spoken
    places = [
        f"finetuning_scores/{run.id.rpartition('-')[0]}" for run in runs_of("finetuning_scores")
    ]
    assert notebook_parameters(ROOT / "notebooks/80_finetuning.ipynb")["scored"] == places


def test_all_fine_tunes_of_a_method_differ_in_nothing_but_voice_amount_and_seed():
    free = {"corpus_dir", "codes_dir", "hours", "max_steps", "seed", "publish"}
    for rank in (0, 8):
        alike = [run.params for run in runs_of("finetuning") if run.params["lora_rank"] == rank]
        kept = [{key: params[key] for key in params if key not in free} for params in alike]
        assert len(alike) == 18 and all(params == kept[0] for params in kept)
        steps = {params["hours"]: params["max_steps"] for params in alike}
        assert sorted(steps.values()) == [steps[hours] for hours in sorted(steps)]


def test_fine_tunes_use_the_rate_of_the_lowest_dev_loss_which_lies_inside_what_was_tried():
    tried = results.read_results(ROOT / "results", "finetuning_rates")
    if not tried:
        pytest.skip("not run: experiments/finetuning_rates.yaml")
    used = {run.params["lora_rank"]: run.params["peak_lr"] for run in runs_of("finetuning")}
    for rank, rate in used.items():
        same = [run for run in tried if run.params["lora_rank"] == rank]
        best = min(same, key=lambda run: run.metrics["held_out_bits_per_second"])
        rates = sorted(run.params["peak_lr"] for run in same)
        assert best.params["peak_lr"] == rate and rates[0] < rate < rates[-1]


def test_rates_are_tried_with_the_settings_of_the_fine_tunes():
    tuned = {run.params["lora_rank"]: run for run in runs_of("finetuning") if "human" in run.id}
    for run in runs_of("finetuning_rates"):
        other = next(
            one
            for one in runs_of("finetuning")
            if one.params["hours"] == run.params["hours"]
            and one.params["lora_rank"] == run.params["lora_rank"]
            and "human" in one.id
        )
        differ = {key for key in run.params if run.params[key] != other.params[key]}
        assert differ <= {"peak_lr", "publish"}
    rates = [run.params["peak_lr"] for run in runs_of("finetuning_rates")]
    assert {run.params["peak_lr"] for run in tuned.values()} <= set(rates)
    assert np.isfinite(rates).all()
