"""Settings that name something of this machine or this model, checked before any data is opened.

Otherwise a missing package or layer would show as a library's traceback after hours of encoding.
"""

import importlib.util

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.training_args import OptimizerNames

from llasa_core.errors import InputError
from llasa_core.model import SIZES, model_config
from llasa_core.training.config import MUON, TrainConfig
from llasa_core.training.lora import lora_settings
from llasa_core.training.loss import LOSSES

PACKAGES = {  # part of an optimizer's name: the package that has it
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
    "anyprecision": "torchdistx",
    "torch_4bit": "torchao",
    "torch_8bit": "torchao",
    "npu": "torch_npu",
    "xla": "torch_xla",
    "ademamix": "bitsandbytes",
    "lion": "bitsandbytes",
    "paged": "bitsandbytes",
    "bnb": "bitsandbytes",
    "8bit": "bitsandbytes",
}


def check_settings(config: TrainConfig) -> None:
    """InputError for an `optim`, a `report_to` or a `lora` that cannot be had here."""
    if config.loss not in LOSSES:
        raise InputError(f"config: `loss` is {config.loss!r}, expected {' or '.join(LOSSES)}")
    names = sorted([*OptimizerNames, MUON])
    if config.optim not in names:
        raise InputError(f"config: `optim` is {config.optim!r}, expected one of {', '.join(names)}")
    package = next((package for part, package in PACKAGES.items() if part in config.optim), None)
    if package is not None and importlib.util.find_spec(package) is None:
        raise InputError(
            f"config: `optim` is {config.optim!r}, which needs the package {package}, not installed"
            " here"
        )
    if config.optim == MUON and (config.fsdp or config.deepspeed is not None):
        raise InputError(
            f"config: `optim` is {MUON!r}, which needs whole matrices, and `fsdp` and `deepspeed`"
            " shard them; expected one of Hugging Face's optimizers"
        )
    known = ["none", "all", *INTEGRATION_TO_CALLBACK]
    if config.report_to not in known:
        raise InputError(
            f"config: `report_to` is {config.report_to!r}, expected one of {', '.join(known)}"
        )
    here = ["none", "all", *get_available_reporting_integrations()]
    if config.report_to not in (*here, "flyte"):  # whose package transformers cannot tell
        raise InputError(
            f"config: `report_to` is {config.report_to!r}, not installed here, expected"
            f" {', '.join(here)}"
        )
    if config.sample_steps and (config.fsdp or config.deepspeed is not None):
        raise InputError(
            "config: `sample_steps` speaks with one process's weights, which `fsdp` and `deepspeed`"
            " shard; expected 0"
        )
    if config.lora is not None:
        _check_lora(config)


def _check_lora(config: TrainConfig) -> None:
    if importlib.util.find_spec("peft") is None:
        raise InputError("config: `lora` needs peft, expected: pip install 'llasa-core[lora]'")
    modules = lora_settings(config.lora)["target_modules"]
    if "target_modules" not in config.lora or isinstance(modules, str):
        # Our layers are Llama's; a pattern is left to peft.
        return
    try:
        shape = (
            model_config(config.model, 300)
            if config.model in SIZES
            else AutoConfig.from_pretrained(config.model, trust_remote_code=False)
        )
    except (OSError, ValueError):
        return  # loading the model says what is wrong with it
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    found = [name for name, _ in model.named_modules() if name]
    for module in modules:
        if not any(f".{name}".endswith(f".{module}") for name in found):
            layers = sorted({name.rpartition(".")[2] for name in found if name.endswith("proj")})
            raise InputError(
                f"config: `lora` has target_modules {module!r}, expected of {', '.join(layers)}"
            )
