"""DDP, FSDP2 and DeepSpeed on two gloo processes train as one process does, and are what their
config says.

DeepSpeed's tests run where it is installed: DS_BUILD_OPS=0 pip install --no-build-isolation
"deepspeed>=0.19,<0.20".
"""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_data import losses, settings
from transformers import TrainingArguments

from llasa_core import cli
from llasa_core.errors import InputError
from llasa_core.model import build_model
from llasa_core.training import launch
from llasa_core.training.config import TrainConfig
from llasa_core.training.parallel import check_wrapper, wrapper_of
from llasa_core.training.train import train

ZERO = {
    stage: {
        "zero_optimization": {"stage": stage},
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": "auto",
        "optimizer": {"type": "AdamW", "params": {"lr": 1.0}},
    }
    for stage in (2, 3)
}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)
ENGINES = {
    "ddp": {},
    "fsdp": {"fsdp": True},
    "zero2": {"deepspeed": ZERO[2]},
    "zero3": {"deepspeed": ZERO[3]},
}
engines = pytest.mark.parametrize(
    "engine",
    ["ddp", "fsdp", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3"))],
)


def torchrun(config, folder, processes=2):
    """Run the config under torchrun; returns the status and what it printed."""
    values = {
        name: value for name, value in vars(config).items() if name != "notes" and value is not None
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]
    command += ["-m", "llasa_core.train", str(folder / "config.json")]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}
    done = subprocess.run(command, env=environment, timeout=500, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def two_processes(config, folder):
    status, printed = torchrun(config, folder)
    assert status == 0, printed[-4000:]


@pytest.fixture(scope="module")
def one(workshop, tmp_path_factory):
    """Four steps of two accumulated rows in one process, held-out loss included."""
    folder = tmp_path_factory.mktemp("one")
    metrics = train(
        settings(workshop, folder, max_steps=4, rows_per_device=1, **held_out(workshop))
    )
    return folder, metrics


def held_out(workshop):
    return {"eval_codes": [str(workshop / "held_out")], "tokens_per_step": 2048}


@pytest.mark.slow
@engines
def test_two_processes_train_like_one(workshop, one, tmp_path, engine):
    changes = {
        "max_steps": 4,
        "rows_per_device": 1,
        "save_steps": 2,
        **held_out(workshop),
        **ENGINES[engine],
    }
    two_processes(settings(workshop, tmp_path / "two", **changes), tmp_path)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(one[0]), atol=2e-5)
    card = json.loads((tmp_path / "two" / "llasa.json").read_text())
    assert card["engine"] == {"wrapper": engine, "processes": 2}
    assert card["metrics"]["eval_loss"] == pytest.approx(one[1]["eval_loss"], abs=2e-5)
    weights, expected = (
        load_file(tmp_path / "two" / "model.safetensors"),
        load_file(one[0] / "model.safetensors"),
    )
    assert weights.keys() == expected.keys()
    assert max((weights[name] - expected[name]).abs().max().item() for name in expected) < 2e-4

    whole = losses(tmp_path / "two")
    (tmp_path / "two" / "llasa.json").unlink()
    for left in (
        tmp_path / "two" / "checkpoint-4"
    ).iterdir():  # killed while the last checkpoint was being written
        if left.name == "trainer_state.json":
            left.unlink()
    two_processes(settings(workshop, tmp_path / "two", **changes, resume=True), tmp_path)
    assert losses(tmp_path / "two") == whole


@pytest.mark.slow
@engines
def test_lora_merges_whatever_sharded_it(workshop, one, tmp_path, engine):
    changes = {"model": str(one[0]), "max_steps": 2, "rows_per_device": 1, "lora": {"r": 4}}
    train(settings(workshop, tmp_path / "one", **changes))
    two_processes(settings(workshop, tmp_path / "two", **changes, **ENGINES[engine]), tmp_path)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=2e-5)
    merged, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    assert merged.keys() == expected.keys()
    assert max((merged[name] - expected[name]).abs().max().item() for name in expected) < 2e-4
    assert (tmp_path / "two" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_wrapper_that_became_another_one_is_refused():
    plain = build_model("tiny", 300)
    config = TrainConfig(model="tiny", codes=["x"], output_dir="o", max_steps=1, fsdp=True)
    assert wrapper_of(plain) == "none"
    with pytest.raises(RuntimeError, match="wrapped as none, the config asks for fsdp"):
        check_wrapper(config, plain, world=2)


def test_data_parallel_is_no_wrapper_that_anything_asks_for():
    """nn.DataParallel trained on 1/n of the labels and passed as "none"."""
    plain = build_model("nano", 300)
    config = TrainConfig(model="nano", codes=["x"], output_dir="o", max_steps=1)
    assert check_wrapper(config, plain, world=1) == "none"
    for wrapped in (torch.nn.DataParallel(plain), torch.compile(plain, backend="eager")):
        with pytest.raises(RuntimeError, match=f"wrapped as {type(wrapped).__name__}, .* for none"):
            check_wrapper(config, wrapped, world=1)


@pytest.mark.slow
def test_one_process_that_sees_several_gpus_trains_on_one(workshop, tmp_path, monkeypatch):
    made = TrainingArguments.__post_init__

    def of_two_gpus(self):
        made(self)
        self._n_gpu = 2

    train(settings(workshop, tmp_path / "one", max_steps=2))
    monkeypatch.setattr(TrainingArguments, "__post_init__", of_two_gpus)
    train(settings(workshop, tmp_path / "two", max_steps=2))
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    card = json.loads((tmp_path / "two" / "llasa.json").read_text())
    assert card["engine"] == {"wrapper": "none", "processes": 1}


@pytest.mark.slow
def test_the_command_trains_on_all_gpus_of_the_machine(
    workshop, one, tmp_path, monkeypatch, capsys
):
    """Two GPUs are claimed here; the processes that it starts find none and train on the CPU."""
    changes = {"max_steps": 4, "rows_per_device": 1, **held_out(workshop)}
    values = vars(settings(workshop, tmp_path / "two", **changes))
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({k: v for k, v in values.items() if v is not None and k != "notes"})
    )
    monkeypatch.setattr(launch, "gpu_count", lambda: 2)
    assert cli.main(["train", str(config)]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["eval_loss"] == pytest.approx(one[1]["eval_loss"], abs=2e-5)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(one[0]), atol=2e-5)
    card = json.loads((tmp_path / "two" / "llasa.json").read_text())
    assert card["engine"] == {"wrapper": "ddp", "processes": 2}


def test_as_many_processes_as_gpus_and_rows_allow(workshop, tmp_path, monkeypatch):
    config = settings(workshop, tmp_path, tokens_per_step=4 * 512, context=512)
    for gpus, processes in ((0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (8, 4)):
        monkeypatch.setattr(launch, "gpu_count", lambda gpus=gpus: gpus)
        assert launch.local_processes(config) == processes
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launch.local_processes(config) == 1


def test_an_engine_that_cannot_run_is_one_clear_line(workshop, tmp_path):
    with pytest.raises(InputError, match="start with torchrun"):
        train(settings(workshop, tmp_path / "run", fsdp=True))
    with pytest.raises(InputError, match="expected one of them"):
        settings(workshop, tmp_path / "run", fsdp=True, deepspeed=ZERO[2])
    if importlib.util.find_spec("deepspeed"):
        with pytest.raises(InputError, match=r"no_such\.json: cannot be read"):
            train(settings(workshop, tmp_path / "run", deepspeed="no_such.json"))
        with pytest.raises(InputError, match="stage 7"):
            train(
                settings(workshop, tmp_path / "run", deepspeed={"zero_optimization": {"stage": 7}})
            )


@pytest.mark.slow
def test_bf16_fsdp_computes_in_bf16_and_learns(workshop, one, tmp_path):
    changes = {
        "max_steps": 4,
        "rows_per_device": 1,
        "fsdp": True,
        "bf16": True,
        "tokens_per_step": 2048,
    }
    two_processes(settings(workshop, tmp_path / "two", **changes), tmp_path)
    difference = np.abs(np.array(losses(tmp_path / "two")) - losses(one[0]))
    assert 0 < difference.max() < 0.05
    assert (
        load_file(tmp_path / "two" / "model.safetensors")["model.norm.weight"].dtype
        == torch.float32
    )
