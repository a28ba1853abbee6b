"""How a step is spread over processes: DDP, FSDP2 (torch's fully_shard) or DeepSpeed ZeRO, by
config.

Every engine computes the same losses; tests compare them with one process.
Libraries replace one wrapper by another silently (Trainer's FSDP on a CPU becomes DDP, and
several GPUs without torchrun become nn.DataParallel, which cuts a packed row's label positions), so
what wraps the model is checked before step one.
"""

from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, Trainer, TrainingArguments

from llasa_core.errors import InputError, needs_extra
from llasa_core.files import read_object
from llasa_core.training.config import TrainConfig

# Blocks of a DeepSpeed file that would replace our AdamW and our schedule
OURS = ("optimizer", "scheduler")


def engine_arguments(config: TrainConfig, world: int) -> dict[str, Any]:
    """The TrainingArguments of the engine that `config` names; InputError where it cannot run
    here.
    """
    arguments: dict[str, Any] = {"activation_checkpointing": config.activation_checkpointing}
    if config.fsdp:
        if world == 1:
            raise InputError(
                "config: `fsdp` shards over processes, start with torchrun or leave it out"
            )
        arguments["activation_checkpointing"] = False
        arguments["fsdp"] = True
        arguments["fsdp_config"] = {
            "version": 2,
            "activation_checkpointing": config.activation_checkpointing,
        }
    elif config.deepspeed is not None:
        with needs_extra("config: `deepspeed`", "deepspeed", "the package of that name"):
            import deepspeed  # noqa: F401
        arguments["deepspeed"] = deepspeed_settings(config)
        arguments["bf16"] = config.bf16
    return arguments


def deepspeed_settings(config: TrainConfig) -> dict[str, Any]:
    """The DeepSpeed settings of `config.deepspeed`, a JSON file or an object, with our optimizer
    and schedule.

    Optimizer and scheduler blocks are left out (the public file's would be a log warm-up and weight
    decay on norms).
    """
    given = config.deepspeed
    if isinstance(given, str):
        given = read_object(given, "DeepSpeed's JSON")
    zero = given.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in (0, 1, 2, 3):
        raise InputError(
            f"config: `deepspeed` has zero_optimization.stage {stage!r}, expected 0, 1, 2 or 3"
        )
    settings = {key: value for key, value in given.items() if key not in OURS}
    return {**settings, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}


def one_gpu_a_process(arguments: TrainingArguments) -> TrainingArguments:
    """Keep Trainer from nn.DataParallel: a process that sees several GPUs uses its own one."""
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def shard_on_cpu(trainer: Trainer) -> None:
    """Make Trainer's FSDP2 real where there is no accelerator: accelerate knows it for devices
    only.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    wanted = trainer.args.fsdp_plugin_args
    if wanted is not None and getattr(trainer.accelerator.state, "fsdp_plugin", None) is None:
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(**wanted)
        trainer.is_fsdp_enabled = True


def compute_in_bf16(trainer: Trainer) -> None:
    """FSDP2 gathers and computes in bf16, keeps and reduces in fp32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = trainer.accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32
    )


def wrapper_of(model: torch.nn.Module) -> str:
    """What wraps the model now: "ddp", "fsdp", "zero0" .. "zero3", "none" or the class of
    something else.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return "ddp"
    if isinstance(model, FSDPModule) and all(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    ):
        return "fsdp"
    if type(model).__name__ == "DeepSpeedEngine":
        return f"zero{model.zero_optimization_stage()}"
    if isinstance(model, PreTrainedModel) or hasattr(model, "peft_config"):
        return "none"
    return type(model).__name__


def wrapper_asked(config: TrainConfig, world: int) -> str:
    """What `config` asks to wrap the model in, with `world` processes."""
    if config.fsdp:
        return "fsdp"
    if config.deepspeed is not None:
        return f"zero{deepspeed_settings(config)['zero_optimization']['stage']}"
    return "ddp" if world > 1 else "none"


def check_wrapper(config: TrainConfig, model: torch.nn.Module, world: int) -> str:
    """`wrapper_of(model)`; RuntimeError unless it is the one that `config` asks for."""
    expected, found = wrapper_asked(config, world), wrapper_of(model)
    if found != expected:
        raise RuntimeError(f"the model is wrapped as {found}, the config asks for {expected}")
    return found


def whole_state(trainer: Trainer, config: TrainConfig) -> dict[str, torch.Tensor] | None:
    """Every parameter, unsharded, on process 0; None where the model itself is whole. All processes
    call this.
    """
    if config.fsdp:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(
            trainer.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
    if config.deepspeed is None:
        return None
    import deepspeed

    engine, state = trainer.model_wrapped, {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if trainer.is_world_process_zero():
                state[name] = parameter.detach().float().cpu().clone()
    return state


def forget_engine(config: TrainConfig) -> None:
    """Else a model loaded from now on, on one process, would be sharded over all by DeepSpeed."""
    if config.deepspeed is not None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def leave() -> None:
    """End the process group, if there is one: an interpreter that ends under gloo's threads aborts
    now and then.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
