"""Every training config of experiments/train is read, and trains when its model and data are small
ones.
"""

import json
from pathlib import Path

import pytest
from training_data import CONVERSATION, chat_file

from llasa_core.training.config import TrainConfig
from llasa_core.training.parallel import deepspeed_settings
from llasa_core.training.train import train

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "experiments" / "train").glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipe_trains(path, workshop, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = TrainConfig.from_json(path)
    public = config.gradient_accumulation_steps is not None  # a step as public_run.json has it
    assert public or config.rows(8)[0] * config.context == config.tokens_per_step
    if config.deepspeed:
        stage = deepspeed_settings(config)["zero_optimization"]["stage"]
        assert stage == (2 if public else 3)

    def small(entry):
        if (
            isinstance(entry, str) or "codec" in entry
        ):  # extraction on the way has a test of its own
            return str(workshop / "codes")
        data = (
            chat_file(tmp_path / "chat.jsonl", *[CONVERSATION] * 20)
            if entry.get("task") == "chat"
            else None
        )
        return {**entry, "path": str(data or workshop / "codes")}

    values = {
        name: value for name, value in vars(config).items() if name != "notes" and value is not None
    }
    values |= {
        "model": "tiny",
        "tokenizer": str(workshop / "tokenizer"),
        "output_dir": str(tmp_path / "run"),
    }
    values |= {name: [small(entry) for entry in values[name]] for name in ("codes", "eval_codes")}
    values |= {
        "context": 512,
        "tokens_per_step": 1024,
        "max_steps": 1,
        "threads": 1,
        "report_to": "none",
    }
    for name in ("epochs", "rows_per_device", "fsdp", "deepspeed", "pure_bf16", "cache"):
        values.pop(name, None)
    train(TrainConfig.from_dict(values))
    card = json.loads((tmp_path / "run" / "llasa.json").read_text())
    assert card["speaker_tags"] == config.speaker_tags and card["mask_eot"] == config.mask_eot
    assert card["metrics"]["eval_loss"] > 0


def test_there_is_a_recipe_for_each_of_the_public_ones():
    names = {path.stem for path in RECIPES}
    assert names >= {
        "pretrain_1b",
        "finetune_offline",
        "finetune_online",
        "finetune_lora",
        "two_speakers",
    }
    assert names >= {"many_speakers", "chat_mix", "asr_mix", "multilingual_1b", "public_loss"}
