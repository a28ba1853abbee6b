"""LoRA of a language model (PEFT): which projections it adapts, its settings, how it is added.

LoRA freezes the embeddings, so newly added speech rows would stay random. Those rows are trained,
the others are not.
"""

import functools
from typing import Any

import torch
from transformers import PreTrainedModel

from llasa_core.errors import InputError, fits

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

LORA = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": list(PROJECTIONS)}


def lora_settings(given: dict[str, Any]) -> dict[str, Any]:
    """The `lora` of a config with its defaults (r, alpha, dropout, target_modules); InputError
    names the key.
    """
    if set(given) - set(LORA):
        raise InputError(
            f"config: `lora` has keys {sorted(given)}, expected some of {', '.join(LORA)}"
        )
    values = {**LORA, **given}
    modules = values["target_modules"]
    texts = (
        isinstance(modules, list)
        and modules
        and all(isinstance(name, str) and name for name in modules)
    )
    for key, holds, expected in (
        ("r", fits(values["r"], int) and values["r"] >= 1, "a whole number of at least 1"),
        ("alpha", fits(values["alpha"], float) and values["alpha"] > 0, "a number above 0"),
        ("dropout", fits(values["dropout"], float) and 0 <= values["dropout"] < 1, "0 to 1"),
        (
            "target_modules",
            texts or (isinstance(modules, str) and modules),
            "a list of names, or a pattern",
        ),
    ):
        if not holds:
            raise InputError(f"config: `lora` has {key} {values[key]!r}, expected {expected}")
    return values


def add_lora(
    model: PreTrainedModel, settings: dict[str, Any], seed: int, new_from: int | None = None
) -> Any:
    """`model` as a PeftModel that trains the adapters and, where `new_from` is given, the rows of
    embedding and head from that id on; its adapter folder then holds these matrices too.

    InputError where `settings` do not fit the model.
    """
    from peft import LoraConfig, get_peft_model

    values = lora_settings(settings)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=values["r"],
        lora_alpha=values["alpha"],
        lora_dropout=values["dropout"],
        target_modules=values["target_modules"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # shards of one matrix come from several processes
        try:
            adapted = get_peft_model(model, lora)
        except ValueError as error:
            raise InputError(f"config: `lora` does not fit the model ({error})") from None
    if new_from is not None:
        # By identity: tied matrices are one parameter.
        matrices = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
        for matrix in {id(one): one for one in matrices}.values():
            matrix.requires_grad_(True)
            matrix.trained_from = new_from
            matrix.register_hook(functools.partial(_without_old_rows, new_from))
        adapted.save_pretrained = functools.partial(
            adapted.save_pretrained, save_embedding_layers=True
        )
    return adapted


def _without_old_rows(new_from: int, gradient: torch.Tensor) -> torch.Tensor:
    gradient = gradient.clone()
    gradient[:new_from] = 0
    return gradient
