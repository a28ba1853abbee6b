"""The held-out loss of a checkpoint, utterance by utterance, and what is recorded of a run that
diverged.
"""

import json
import math

import numpy as np
import pytest
import torch
from training_data import settings, write_codes

from llasa_core.data.packing import collate
from llasa_core.errors import DivergedError, InputError
from llasa_core.files import read_object, sha256
from llasa_core.model import build_model, flops_per_token, model_config, use_packed_attention
from llasa_core.prompts import Prompt
from llasa_core.training.config import TrainConfig
from llasa_core.training.held_out import held_out_rows, held_out_summary
from llasa_core.training.launch import launch
from llasa_core.training.loss import LOSSES, labelled_loss, use_head_loss, utterance_losses
from llasa_core.training.published import publish_checkpoint


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, mini_tokenizer):
    folder = tmp_path_factory.mktemp("workshop")
    mini_tokenizer.save_pretrained(folder / "tokenizer")
    write_codes(folder / "codes", 12, seed=0, repeats=4)
    write_codes(folder / "held_out", 7, seed=1, repeats=4)
    return folder


@pytest.fixture(scope="module")
def trained(workshop):
    config = settings(workshop, workshop / "run", model="nano", max_steps=2, speaker_tags=1.0)
    return workshop / "run", launch(
        TrainConfig(**vars(config) | {"eval_codes": [str(workshop / "held_out")]})
    )


def test_losses_of_documents_add_up_to_the_batch_and_are_those_of_each_alone(mini_tokenizer):
    prompt, generator = Prompt(mini_tokenizer), np.random.default_rng(0)
    examples = [
        prompt.tts_example(f"Say {n}.", generator.integers(0, 4096, 10 + 5 * n)) for n in range(3)
    ]
    model = use_head_loss(use_packed_attention(build_model("nano", len(mini_tokenizer)))).eval()
    nats, labels = utterance_losses(model, collate(examples))
    with torch.no_grad():
        total, count = labelled_loss(model, collate(examples))
        alone = [labelled_loss(model, collate([example]))[0].item() for example in examples]
    assert labels.tolist() == [12, 17, 22] and labels.sum() == count
    assert nats.sum() == pytest.approx(total.item(), rel=1e-5)
    np.testing.assert_allclose(nats, alone, rtol=1e-5)


@pytest.mark.slow
def test_rows_agree_with_the_loss_that_training_measured(trained, workshop):
    checkpoint, metrics = trained
    rows = held_out_rows(checkpoint, workshop / "held_out", bf16=False)
    summary = held_out_summary(rows, checkpoint, metrics["tokens"])
    assert len(rows) == summary["held_out_bits_per_second_n"] == 7
    assert summary["held_out_bits_per_second"] == pytest.approx(
        metrics["eval_bits_per_second"], rel=1e-4
    )
    assert summary["held_out_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-4)
    assert summary["held_out_loss_low"] < summary["held_out_loss"] < summary["held_out_loss_high"]


def test_what_does_not_fit_is_counted_and_recorded(trained, workshop, tmp_path):
    rows = held_out_rows(
        trained[0], write_codes(tmp_path / "long", 3, seed=1, repeats=4, longest=600), bf16=False
    )
    assert len(rows) == 2 and rows.dropped_overlong == 1
    assert held_out_summary(rows, trained[0], 1)["held_out_dropped_overlong"] == 1


def test_the_held_out_pass_runs_on_the_device_that_is_there(trained, workshop, monkeypatch):
    monkeypatch.setattr("llasa_core.training.held_out.choose_device", lambda name=None: "meta")
    with pytest.raises((NotImplementedError, RuntimeError), match=r"[Mm]eta"):
        held_out_rows(trained[0], workshop / "held_out")


def test_recognition_is_measured_on_its_text(trained, workshop):
    rows = held_out_rows(trained[0], workshop / "held_out", task="asr", bf16=False)
    assert len(rows) == 7 and all(row["labels"] < 20 for row in rows)


def test_summary_worked_by_hand(trained):
    rows = [
        {"id": "a", "seconds": 1.0, "labels": 10, "tokens": 40, "nats": 30 * math.log(2)},
        {"id": "b", "seconds": 3.0, "labels": 30, "tokens": 60, "nats": 50 * math.log(2)},
    ]
    summary = held_out_summary(rows, trained[0], 1000)
    assert summary["held_out_bits_per_second"] == pytest.approx(80 / 4)
    assert summary["held_out_loss"] == pytest.approx(2 * math.log(2))
    assert summary["diverged"] == 0
    vocabulary = json.loads((trained[0] / "config.json").read_text())["vocab_size"]
    assert summary["training_flops"] == 1000 * flops_per_token(model_config("nano", vocabulary), 50)
    lost = [row | {"nats": row["labels"] * 1.01 * math.log(vocabulary)} for row in rows]
    assert held_out_summary(lost, trained[0], 1)["diverged"] == 1  # worse than knowing nothing
    with pytest.raises(InputError, match="no held-out utterances"):
        held_out_summary([], trained[0], 1)


@pytest.mark.slow
def test_run_that_diverges_is_an_outcome_and_leaves_no_model(workshop, tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "cross_entropy", blow_up_at(3))
    config = settings(workshop, tmp_path / "run", model="nano", max_steps=5)
    metrics = launch(config, keep_diverged=True)
    assert (metrics["diverged"], metrics["diverged_at_step"], metrics["steps"]) == (1, 3, 5)
    assert metrics["tokens"] > 0 and metrics["parameters"] > metrics["parameters_body"]
    assert not (tmp_path / "run" / "llasa.json").exists()
    assert (
        len((tmp_path / "run" / "train_log.jsonl").read_text().splitlines()) == 2
    )  # the steps before it
    monkeypatch.setitem(LOSSES, "cross_entropy", blow_up_at(3))
    with pytest.raises(DivergedError, match="at step 3"):
        launch(config)
    monkeypatch.setitem(LOSSES, "cross_entropy", labelled_loss)
    assert "diverged" not in launch(
        config, keep_diverged=True
    )  # what an earlier run left is not believed


def blow_up_at(step):
    calls = []

    def loss(model, batch):
        calls.append(1)
        total, count = labelled_loss(model, batch)
        return total * (float("inf") if len(calls) == step else 1.0), count

    return loss


def test_checkpoint_is_copied_whole(trained, tmp_path):
    kept = publish_checkpoint(trained[0], tmp_path / "there")
    assert {name: path.name for name, path in kept.items()} == {
        "weights": "model.safetensors",
        "config": "config.json",
        "tokenizer": "tokenizer.json",
    }
    here, there = (
        read_object(folder / "llasa.json") for folder in (trained[0], tmp_path / "there")
    )
    assert there == here | {"card": sha256(tmp_path / "there" / "README.md")}
    assert f'folder = "{tmp_path / "there"}"' in (tmp_path / "there" / "README.md").read_text()
    assert publish_checkpoint(trained[0])["weights"] == trained[0] / "model.safetensors"
