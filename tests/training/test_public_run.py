"""experiments/train/public_run.json trains as the public script does: its schedule, its parameter
groups, its steps and its averages, against references written out by hand.
"""

import datetime
import json
import math
from dataclasses import replace

import pytest
import torch
from training_data import losses, settings

from llasa_core.data.dataset import read_codes
from llasa_core.data.examples import ExampleSource
from llasa_core.data.packing import PackedRows, collate
from llasa_core.experiments.config import repository_root
from llasa_core.model import build_model, load_model, use_packed_attention
from llasa_core.prompts import Prompt
from llasa_core.training.config import TrainConfig
from llasa_core.training.launch import launch
from llasa_core.training.loss import labelled_loss, use_head_loss
from llasa_core.training.train import train
from llasa_core.training.trainer import lr_factor

RECIPE = repository_root() / "experiments" / "train" / "public_run.json"
SWITCHES = {
    "packing": False,
    "average": "processes",
    "warmup": "log",
    "decay_norms": True,
    "pure_bf16": True,
    "mask_eot": True,
    "overlong": "truncate",
    "init_noise": 0.0,
    "date": "today",
}
ON_A_CPU = {name: value for name, value in SWITCHES.items() if name not in ("pure_bf16", "date")}


def warmup_cosine(step, total, warm, least=0.03, floor=0.1):
    """DeepSpeed's WarmupCosineLR with warmup_min_ratio 0.03 and cos_min_ratio 0.1."""
    if step < warm:
        return least + (1 - least) * math.log(step + 1) / math.log(warm)
    share = min(1.0, (step - warm + 1) / (total - warm))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


def test_the_recipe_has_every_switch_and_the_published_numbers():
    config = TrainConfig.from_json(RECIPE)
    assert {name: getattr(config, name) for name in SWITCHES} == SWITCHES
    assert config.rows(40)[0] == 8 * 40  # utterances of a step on five nodes of eight GPUs
    numbers = (config.epochs, config.peak_lr, config.warmup_ratio, config.final_lr_ratio)
    assert numbers == (2.0, 5e-5, 0.03, 0.1)
    assert (config.weight_decay, config.beta2, config.clip, config.context) == (0.01, 0.95, 1, 2048)
    assert (
        json.loads((repository_root() / config.deepspeed).read_text())["zero_optimization"]["stage"]
        == 2
    )


def test_the_schedule_is_deepspeeds_warm_up_and_cosine():
    config = replace(TrainConfig.from_json(RECIPE), warmup_ratio=0.4)
    measured = [0.03, 1.0, 0.775, 0.325, 0.1]  # of five steps, as DeepSpeed logged them
    assert [lr_factor(step, 5, config) for step in range(5)] == pytest.approx(measured)
    config = TrainConfig.from_json(RECIPE)
    for total, warm in ((1000, 30), (333, 10), (20, 2)):  # at least 2 steps of warm-up
        ours = [lr_factor(step, total, config) for step in range(total)]
        assert ours == pytest.approx([warmup_cosine(step, total, warm) for step in range(total)])


def trainer_of(config, monkeypatch):
    """The PackedTrainer of a config, before its first step."""
    made = []

    def stop(trainer, *_):
        made.append(trainer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llasa_core.training.train._fit", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    return made[0]


@pytest.mark.parametrize("public", [True, False])
def test_weight_decay_spares_the_norms_except_in_the_public_run(
    workshop, tmp_path, monkeypatch, public
):
    config = settings(workshop, tmp_path / "run", decay_norms=public, weight_decay=0.01)
    trainer = trainer_of(config, monkeypatch)
    decay = {}
    for group in trainer.create_optimizer().param_groups:
        decay |= {id(one): group["weight_decay"] for one in group["params"]}
    found = {name: decay[id(one)] for name, one in trainer.model.named_parameters()}
    assert found == {name: 0.01 if public or "norm" not in name else 0.0 for name in found}
    assert found["model.embed_tokens.weight"] == 0.01 and len(found) == 1 + 5 * 9 + 1


def padded(made):
    """Padded ids and labels, and the public mask: 0 wherever the id is that of pad and eot."""
    longest, eot = max(len(one.input_ids) for one in made), None
    eot = int(made[0].input_ids[made[0].eot_positions[0]])
    ids = torch.full((len(made), longest), eot)
    labels = torch.full_like(ids, -100)
    for row, one in enumerate(made):
        ids[row, : len(one.input_ids)] = torch.from_numpy(one.input_ids)
        labels[row, : len(one.input_ids)] = torch.from_numpy(one.labels())
    return {"input_ids": ids, "labels": labels, "attention_mask": (ids != eot).long()}


def rows_of(workshop, tokenizer):
    source = ExampleSource(read_codes(workshop / "codes"), Prompt(tokenizer), cut=512)
    return PackedRows([source], 512, seed=0, packing=False)


@pytest.mark.slow
def test_steps_are_those_of_a_padded_loop_written_out(workshop, tmp_path, mini_tokenizer):
    """AdamW on one group, log warm-up and cosine, padded utterances, eot masked by value."""
    steps, batch, peak = 8, 3, 5e-3
    changes = {"max_steps": steps, "rows_per_device": batch, "peak_lr": peak, "weight_decay": 0.1}
    changes |= {"gradient_accumulation_steps": 1, "warmup_ratio": 0.4, **ON_A_CPU}
    train(settings(workshop, tmp_path / "run", **changes))
    rows, expected = rows_of(workshop, mini_tokenizer), []
    model = build_model("tiny", len(mini_tokenizer), 512, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        numbers = range(step * batch, (step + 1) * batch)
        loss = model(**padded([rows.examples(number)[0] for number in numbers])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = peak * warmup_cosine(step, steps, math.ceil(0.4 * steps))
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-4)
    trained = load_model(tmp_path / "run").state_dict()
    for name, one in model.state_dict().items():
        torch.testing.assert_close(trained[name], one, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("average", ["processes", "tokens"])
def test_a_step_is_the_mean_of_processes_or_of_tokens(workshop, tmp_path, mini_tokenizer, average):
    changes = {"max_steps": 1, "rows_per_device": 1, "gradient_accumulation_steps": 1}
    changes |= {"packing": False, "average": average}
    launch(settings(workshop, tmp_path / "run", **changes), processes=2)
    rows = rows_of(workshop, mini_tokenizer)
    model = build_model("tiny", len(mini_tokenizer), 512, seed=0)
    model = use_head_loss(use_packed_attention(model))
    sums = [labelled_loss(model, collate(rows.examples(number))) for number in (0, 1)]
    of_processes = sum(total.item() / count for total, count in sums) / 2
    of_tokens = sum(total.item() for total, _ in sums) / sum(count for _, count in sums)
    assert abs(of_processes - of_tokens) > 1e-5
    expected = of_processes if average == "processes" else of_tokens
    assert losses(tmp_path / "run")[0] == pytest.approx(expected, abs=2e-6)


@pytest.mark.slow
def test_the_template_carries_the_day_of_training(workshop, tmp_path):
    train(settings(workshop, tmp_path / "run", max_steps=1, date="today"))
    today = datetime.date.today()
    months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
    written = json.loads((tmp_path / "run" / "llasa.json").read_text())["date"]
    assert written == f"{today.day:02d} {months[today.month - 1]} {today.year}"
