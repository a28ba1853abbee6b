"""The study of fine-tuning by minutes, from runs written as notebooks 20, 30 and 40 write them; no
model.
"""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from notebook_functions import notebook_functions

from llasa_core.errors import InputError
from llasa_core.experiments import results, tables
from llasa_core.experiments.config import load_experiment, repository_root

notebook = notebook_functions("80_finetuning")

ROOT = repository_root(Path(__file__).parent)
BASE = "base/model"
TUNED = {"full-1": (1.004, 0), "full-10": (9.99, 0), "lora-1": (1.004, 8)}
HELD_OUT = {
    f"held_out_bits_per_second{end}": value
    for end, value in {"": 300.0, "_low": 290.0, "_high": 310.0}.items()
}


def write_result(root, experiment, label, params, metrics, **files):
    folder = root / experiment / f"{label}-00000000"
    folder.mkdir(parents=True)
    result = {
        "schema": 1,
        "experiment": experiment,
        "run": folder.name,
        "notebook": "n",
        "params": params,
    }
    (folder / "result.json").write_text(
        json.dumps(result | {"metrics": metrics, "artifacts": {}, "provenance": {}})
    )
    for name, rows in files.items():
        (folder / f"{name.replace('_', '-')}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )


def scored_rows(errors, similarity):
    return [
        {
            "id": f"u{n}",
            "seconds": 1.0,
            "errors": errors + n,
            "words": 10,
            "similarity": similarity + n / 10,
        }
        for n in range(2)
    ]


@pytest.fixture
def study(tmp_path):
    """Three fine-tunes whose folders do not carry the names that their scores have."""
    for number, (system, (minutes, rank)) in enumerate(TUNED.items()):
        params = {"model": BASE, "publish": f"models/{number}", "lora_rank": rank, "epochs": 6.0}
        metrics = {
            "train_hours": minutes / 60,
            "seconds": 10.0,
            **HELD_OUT,
            "held_out_bits_per_second_n": 29,
        }
        write_result(tmp_path, "tuning", system, params, metrics)
        write_result(
            tmp_path,
            "speech",
            system,
            {"model": f"models/{number}", "speech_dir": f"speech/{number}", "attempts": 5},
            {"sampled_again": number, "utterances": 2},
        )
    params = {"model": BASE, "speech_dir": "speech/9", "attempts": 0}
    write_result(tmp_path, "speech", "before", params, {"sampled_again": 0, "utterances": 2})
    systems = {system: f"speech/{number}/speech.jsonl" for number, system in enumerate(TUNED)}
    params = {"systems": {"before": "speech/9/speech.jsonl", **systems}, "main_system": "full-10"}
    rows = {
        "originals": scored_rows(0, 0.8),
        "codec": scored_rows(1, 0.4),
        "before": scored_rows(9, 0.0),
    }
    rows |= {
        "full_1": scored_rows(6, 0.1),
        "utterances": scored_rows(2, 0.3),
        "lora_1": scored_rows(8, 0.05),
    }
    write_result(
        tmp_path,
        "scores",
        "test",
        params | {"resynthesis_codec": "mini", "score_originals": True},
        {},
        **rows,
    )
    return tmp_path


def read(study):
    scored = results.read_scored(study, "scores/test")
    return *tables.finetunes(study, "tuning", "speech", scored), scored


def test_scores_are_joined_to_the_training_whose_checkpoint_spoke_them(study):
    tunes, levels, _ = read(study)
    assert tunes["system"].tolist() == ["lora-1", "full-1", "full-10"]
    assert tunes["method"].tolist() == ["LoRA", "all weights", "all weights"]
    assert tunes["minutes"].tolist() == [1.0, 1.0, 9.99]
    assert tunes["corpus_wer"].tolist() == pytest.approx([0.85, 0.65, 0.25])
    assert tunes["speaker_similarity"].tolist() == pytest.approx([0.1, 0.15, 0.35])
    assert dict(zip(levels["label"], levels["corpus_wer"], strict=True)) == pytest.approx(
        {"recordings": 0.05, "codec round trip (ceiling)": 0.15, "base model (floor)": 0.95}
    )


def test_fine_tunes_have_the_share_of_utterances_that_their_guards_had_sampled_again(study):
    tunes, levels, _ = read(study)
    expected = {system: number / 2 for number, system in enumerate(TUNED)}
    assert dict(zip(tunes["system"], tunes["sampled_again_share"], strict=True)) == expected
    assert "sampled_again_share" not in levels


def test_lora_is_compared_with_all_weights_where_both_have_the_amount(study):
    tunes, levels, scored = read(study)
    (row,) = tables.lora_minus_all(tunes, scored).to_dict("records")
    assert (row["minutes"], row["corpus_wer_difference_n"]) == (1.0, 2)
    assert row["corpus_wer_difference"] == pytest.approx(0.2)
    assert row["speaker_similarity_difference"] == pytest.approx(-0.05)
    flat = notebook.flat_metrics(tunes) | notebook.flat_metrics(levels)
    assert flat["full-10_minutes"] == 9.99 and flat["codec_corpus_wer"] == pytest.approx(0.15)
    assert all(np.isfinite(value) for value in flat.values())


def test_speech_that_no_run_made_and_a_model_from_elsewhere_are_refused(study):
    shutil.rmtree(study / "speech" / "full-1-00000000")
    with pytest.raises(
        InputError, match="system 'full-1' lies in speech/0, which no run of speech made"
    ):
        read(study)
    params = {"model": "models/77", "speech_dir": "speech/0", "attempts": 0}
    write_result(study, "speech", "full-1", params, {})
    with pytest.raises(InputError, match="'full-1' is of models/77, which no run of tuning made"):
        read(study)
    with pytest.raises(InputError, match="scores/nowhere: no finished run"):
        results.read_scored(study, "scores/nowhere")


@pytest.mark.slow
def test_figure_draws_each_method_at_its_minutes_between_the_levels(study):
    tunes, levels, _ = read(study)
    figure = notebook.by_minutes(tunes, levels)
    similarity, wer, bits = figure.axes
    lora, whole = (container.lines[0] for container in wer.containers)
    assert list(whole.get_ydata()) == pytest.approx([65.0, 25.0]) and list(
        lora.get_ydata()
    ) == pytest.approx([85.0])
    assert (
        list(whole.get_xdata()) == pytest.approx([1.0, 9.99], rel=0.06)
        and wer.get_xscale() == "log"
    )
    assert (lora.get_marker(), lora.get_linestyle()) != (whole.get_marker(), whole.get_linestyle())
    level = [
        line.get_ydata()[0]
        for line in similarity.get_lines()
        if len(set(line.get_ydata())) == 1 < len(line.get_ydata())
    ]
    assert sorted(level)[-1] == pytest.approx(0.85) and len(level) >= 3
    assert (
        len(bits.containers) == 2
        and [axis.get_xlabel() for axis in figure.axes] == ["speech of the new voice (min)"] * 3
    )
    drawn = [io.BytesIO(), io.BytesIO()]
    for picture in drawn:
        notebook.by_minutes(tunes, levels).savefig(picture, format="svg", metadata={"Date": None})
    assert drawn[0].getvalue() == drawn[1].getvalue()


def test_every_fine_tune_is_spoken_and_scored_by_the_files_of_the_study():
    def runs(name):
        return [run.params for run in load_experiment(ROOT / "experiments" / f"{name}.yaml").runs]

    published = {params["publish"] for params in runs("finetuning")}
    speech = {params["speech_dir"]: params["model"] for params in runs("finetuning_speech")}
    scored = {
        Path(path).parent.as_posix()
        for params in runs("finetuning_scores")
        for path in params["systems"].values()
    }
    assert len(published) == len(runs("finetuning")) == 10 and published < set(speech.values())
    assert scored == set(speech)
