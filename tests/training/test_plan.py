"""How long a run is, when it has gone wrong, and which of its weights it publishes."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_data import losses, settings, write_codes

from llasa_core.data.dataset import read_codes
from llasa_core.data.packing import PackedRows
from llasa_core.errors import DivergedError, InputError
from llasa_core.training.config import TrainConfig
from llasa_core.training.loss import LOSSES
from llasa_core.training.plan import announce, settled, step_rows
from llasa_core.training.train import train


class Rows:
    """Epochs of so many rows each."""

    dropped_overlong = 3

    def __init__(self, *epochs):
        self.epochs = epochs

    def rows_in_epoch(self, epoch):
        return self.epochs[min(epoch, len(self.epochs) - 1)]


def config_of(**values):
    needed = {"model": "tiny", "codes": ["c"], "output_dir": "o"}
    return TrainConfig.from_dict(needed | {"max_steps": 10} | values)


def of_epochs(epochs, **values):
    return config_of(max_steps=None, epochs=epochs, **values)


@pytest.mark.parametrize(
    ("config", "rows", "world", "expected"),
    [
        (of_epochs(3.0), [2], 1, 1),  # nine clips: six steps, not one
        (of_epochs(3.0), [2560], 1, 16),  # 24 hours: 7,680 rows / 300 = 25.6
        (of_epochs(0.5), [6000], 1, 8),  # 3,000 rows / 300 = 10
        (of_epochs(3.0), [10**7], 1, 1024),  # the paper's 2 M tokens
        (of_epochs(3.0), [2560], 3, 15),  # a multiple of the processes
        (of_epochs(3.0), [2], 8, 8),
        (of_epochs(3.0, rows_per_device=4), [2560], 2, 16),
        (config_of(), [2560], 1, 16),  # steps are given: an epoch is about 100 of them
    ],
)
def test_the_step_follows_from_the_data(config, rows, world, expected):
    assert step_rows(config, Rows(*rows), world) == expected
    chosen = settled(config, Rows(*rows), world)
    assert chosen.rows(world)[0] == expected
    assert chosen.tokens_per_step == expected * 2048


def test_a_step_that_is_given_stays_and_epochs_become_steps():
    chosen = settled(of_epochs(2.5, tokens_per_step=4096), Rows(11, 10, 12), 1)
    assert (chosen.tokens_per_step, chosen.max_steps) == (4096, 14)  # (11 + 10 + 6) / 2 rows
    public = of_epochs(1.0, gradient_accumulation_steps=2, rows_per_device=3)
    chosen = settled(public, Rows(100), 2)
    assert (chosen.max_steps, chosen.rows(2)[0]) == (9, 12)


def test_held_out_speech_is_measured_ten_times_and_its_best_kept():
    held_out = {"eval_codes": ["d"], "max_steps": 95}
    for values, expected in (
        ({}, (10, True)),
        ({"eval_steps": 0}, (0, False)),
        ({"eval_steps": 7}, (7, True)),
        ({"keep_best": False}, (10, False)),
    ):
        chosen = settled(config_of(**held_out, **values), Rows(10), 1)
        assert (chosen.eval_steps, chosen.keep_best) == expected
    assert settled(config_of(), Rows(10), 1).eval_steps == 0


def test_few_steps_are_said_before_they_are_trained(caplog):
    caplog.set_level(logging.INFO)
    announce(settled(of_epochs(3.0), Rows(2), 1), Rows(2), 1)
    said, warned = caplog.records
    assert "6 steps of 2048 tokens, 3 epochs of 2 rows (3 utterances do not fit)" in said.message
    assert warned.levelname == "WARNING" and "`tokens_per_step`" in warned.message
    caplog.clear()
    announce(settled(of_epochs(3.0, tokens_per_step=2048), Rows(20), 1), Rows(20), 1)
    assert len(caplog.records) == 1


@pytest.mark.slow
def test_an_explosion_and_a_rise_are_divergence(workshop, tmp_path):
    """At a learning rate of 50 the loss was 6 million, and the exit status 0."""
    hot = {"peak_lr": 50.0, "max_steps": 12, "warmup_ratio": 0.0}
    with pytest.raises(DivergedError, match=r"nats a token at step \d+, lower peak_lr; read: u0-"):
        train(settings(workshop, tmp_path / "run", **hot))
    assert not (tmp_path / "run" / "llasa.json").exists()
    assert json.loads((tmp_path / "run" / "diverged.json").read_text())["diverged_at_step"] > 1


@pytest.mark.slow
def test_a_run_that_ends_above_its_start_has_diverged(workshop, tmp_path, monkeypatch):
    made = iter([2.0, 2.5, 3.5])

    def rising(model, batch):
        count = int((batch["labels"] != -100).sum())
        return sum(one.sum() for one in model.parameters()) * 0 + count * next(made), count

    monkeypatch.setitem(LOSSES, "cross_entropy", rising)
    with pytest.raises(DivergedError, match=r"the loss is 3\.5 at step 3, it began at 2"):
        train(settings(workshop, tmp_path / "run", max_steps=3))


@pytest.mark.slow
def test_what_cannot_work_is_warned_of(workshop, tmp_path, caplog):
    write_codes(tmp_path / "nameless", 20, repeats=4, speakers=("",))
    one = {"max_steps": 1, "speaker_tags": 1, "codes": [str(tmp_path / "nameless")]}
    train(settings(workshop, tmp_path / "run", **one, eval_codes=[str(tmp_path / "nameless")]))
    said = "\n".join(record.message for record in caplog.records)
    assert "`speaker_tags` has no effect" in said
    assert "nameless is trained on, its loss is not held out" in said
    caplog.clear()
    train(settings(workshop, tmp_path / "fine", max_steps=60, speaker_tags=1, model="nano"))
    assert not [one for one in caplog.records if one.name.startswith("llasa")]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("early_stoping", "early_stopping"),
        ("tokens_per_steps", "tokens_per_step"),
        ("epoch", "epochs"),
        ("learning_rates", "learning_rate"),
        ("speaker_tag", "speaker_tags"),
        ("keep_bets", "keep_best"),
        ("evaluation_strategie", "evaluation_strategy"),
    ],
)
def test_a_misspelt_key_gets_the_right_suggestion(written, meant):
    with pytest.raises(InputError, match=f"unknown key `{written}`; nearest: {meant}\\b"):
        config_of(**{written: 1})


@pytest.mark.slow
def test_a_finished_model_is_not_overwritten_silently(workshop, tmp_path):
    train(settings(workshop, tmp_path / "run", max_steps=1))
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"run: holds a finished model; .*`overwrite`"):
        train(settings(workshop, tmp_path / "run", max_steps=2))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert train(settings(workshop, tmp_path / "run", max_steps=2, overwrite=True))["steps"] == 2


@pytest.fixture
def overfitting(workshop, tmp_path):
    """Settings under which the held-out loss rises again: noise learnt by heart."""
    write_codes(tmp_path / "few", 6, seed=3)
    write_codes(tmp_path / "other", 6, seed=4)
    data = {"codes": [str(tmp_path / "few")], "eval_codes": [str(tmp_path / "other")]}
    return data | {"max_steps": 40, "peak_lr": 1e-2, "eval_steps": 4, "warmup_ratio": 0.0}


def held_out(folder):
    lines = map(json.loads, (folder / "train_log.jsonl").read_text().splitlines())
    return {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}


@pytest.mark.slow
def test_the_best_weights_are_published(workshop, tmp_path, overfitting):
    metrics = train(settings(workshop, tmp_path / "best", **overfitting))
    curve = held_out(tmp_path / "best")
    best = min(curve, key=curve.get)
    assert best < 40 and curve[40] > curve[best] + 0.1
    assert (metrics["best_step"], metrics["eval_loss"]) == (best, curve[best])
    last = train(settings(workshop, tmp_path / "last", **overfitting, keep_best=False))
    assert last["eval_loss"] == held_out(tmp_path / "last")[40] and "best_step" not in last
    # What is published measures as it did: a run that goes on from it with no step size says so.
    again = {"model": str(tmp_path / "best"), "max_steps": 1, "peak_lr": 1e-12}
    again = train(settings(workshop, tmp_path / "again", **{**overfitting, **again}))
    assert again["eval_loss"] == pytest.approx(curve[best], abs=1e-5)


@pytest.mark.slow
def test_the_best_survives_a_kill_and_a_second_publication(workshop, tmp_path, overfitting):
    overfitting |= {"save_steps": 10, "save_total_limit": 5}
    whole = train(settings(workshop, tmp_path / "whole", **overfitting))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for step in (20, 30, 40):  # killed after a new best, before the next checkpoint
        shutil.rmtree(tmp_path / "killed" / f"checkpoint-{step}")
    (tmp_path / "killed" / "llasa.json").unlink()
    resumed = train(settings(workshop, tmp_path / "killed", **overfitting, resume=True))
    published = train(settings(workshop, tmp_path / "whole", **overfitting, resume=True))
    assert whole["best_step"] == resumed["best_step"] == published["best_step"]
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_early_stopping_ends_a_run_that_no_longer_improves(workshop, tmp_path, overfitting):
    metrics = train(settings(workshop, tmp_path / "run", **overfitting, early_stopping=2))
    curve = held_out(tmp_path / "run")
    assert metrics["steps"] == max(curve) == metrics["best_step"] + 2 * 4 < 40
    assert len(losses(tmp_path / "run")) == metrics["steps"]
    with pytest.raises(InputError, match="`early_stopping` is 2, expected `eval_codes`"):
        config_of(early_stopping=2)


def test_rows_without_packing_hold_an_utterance_each(workshop, mini_tokenizer):
    from llasa_core.data.examples import ExampleSource
    from llasa_core.prompts import Prompt

    source = ExampleSource(read_codes(workshop / "codes"), Prompt(mini_tokenizer))
    rows = PackedRows([source], 512, seed=0, window=25, packing=False)
    assert rows.rows_in_epoch(0) == 60
    names = [rows.identifiers(number) for number in range(120)]
    assert all(len(row) == 1 for row in names)
    first, second = (np.concatenate(names[at : at + 60]) for at in (0, 60))
    assert sorted(first) == sorted(second) and list(first) != list(second)
