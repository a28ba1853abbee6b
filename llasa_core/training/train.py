"""Training, end to end, in this process: codes datasets and a model in, an ordinary Hugging Face
checkpoint folder out.

`launch` starts as many processes as there are GPUs. The final folder is published
file by file from a temporary one, llasa.json last: where it exists, the run is complete.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from llasa_core.device import check_folder
from llasa_core.errors import DivergedError, InputError
from llasa_core.files import names_full_disk, publish
from llasa_core.model import (
    SIZES,
    build_model,
    load_model,
    parameter_count,
    resize_vocabulary,
    use_packed_attention,
)
from llasa_core.training.checks import check_settings
from llasa_core.training.config import MUON, TrainConfig
from llasa_core.training.data import TrainingData, open_data
from llasa_core.training.lora import add_lora
from llasa_core.training.loss import use_head_loss
from llasa_core.training.model_card import base_of
from llasa_core.training.parallel import (
    engine_arguments,
    forget_engine,
    one_gpu_a_process,
    whole_state,
    wrapper_asked,
)
from llasa_core.training.plan import announce, settled
from llasa_core.training.published import write_checkpoint
from llasa_core.training.resume import begin, refuse_finished, resumable, run_settings
from llasa_core.training.run_log import BestWeights, RunLog, SpokenSteps
from llasa_core.training.trainer import PackedTrainer, StepBatches

DIVERGED = "diverged.json"  # in output_dir: at which step the loss stopped being finite

# What speaks held-out texts while a run trains (experiments.samples): training knows no synthesis
Listener = Callable[[TrainConfig, TrainingData], Callable[[Trainer], None]]

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig, progress: bool = False, listener: Listener | None = None
) -> dict[str, float]:
    """Train and write `output_dir`: an ordinary checkpoint with its tokenizer, train_log.jsonl and
    llasa.json (last).

    Returns flat metrics: final_loss (mean of the last log line), eval_loss and eval_bits_per_second
    of the published weights where held-out codes are given, and best_step, whose weights they are;
    steps, tokens, seconds, tokens_per_second, parameters, dropped_overlong and
    eval_dropped_overlong, fill. Raises InputError on settings or data that do not fit together, are
    not those of the run that it resumes, or would overwrite a finished model, and DivergedError
    where the loss is not finite or far above its start. listener: who speaks at `sample_steps`.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if config.threads:
        torch.set_num_threads(config.threads)
    for note in config.notes:
        logger.info("%s", note)
    per_device = config.rows(world)[1]
    check_settings(config)
    engine = engine_arguments(config, world)
    output = check_folder(config.output_dir)
    refuse_finished(config)
    output.mkdir(parents=True, exist_ok=True)

    data = open_data(config, rank, world, per_device)
    asked, config = config, settled(config, data.rows, world)
    if rank == 0:
        announce(config, data.rows, world)
    per_step, steps = config.rows(world)[0], config.max_steps
    # Such a state is only read when the run resumes.
    sharded = config.fsdp or config.deepspeed is not None
    settings = run_settings(config, data.digests, per_step, steps)
    checkpoint, start = resumable(output, settings, steps - sharded) if config.resume else (None, 0)
    model, new_from = _model(config, data)
    counts = parameter_count(model)
    if config.lora is not None:
        if new_from is not None and sharded:
            raise InputError(
                "config: `lora` trains new speech rows, which `fsdp` and `deepspeed` would shard;"
                " expected neither, or a model that has learnt to speak"
            )
        model = add_lora(model, config.lora, config.seed, new_from)

    log = RunLog(output / "train_log.jsonl", data.rows, per_step, data.held_out, config, start)
    best = BestWeights(output / "best", log, config, start)
    spoken = _spoken_steps(config, data, listener, log)
    trainer = PackedTrainer(
        model=model,
        args=_arguments(config, world, engine, progress),
        callbacks=[log, best, *spoken],
        batches=StepBatches(data.rows, config, data.vocabulary, rank, world, start),
        tokenizer=data.tokenizer,
        settings=settings,
    )
    for callback in (best, *spoken):
        callback.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    if rank == 0:
        begin(output, settings, start, config.resume)
    with _progress_bars(progress):
        if start < steps:
            with names_full_disk(output):
                _fit(trainer, log, checkpoint, counts)
            steps = trainer.state.global_step
        else:  # the run had reached its last step before it ended
            trainer._load_from_checkpoint(checkpoint)

    if data.held_out and not log.evaluations():
        log.last_eval = data.held_out.measure(trainer.model)
    best_step, weights = best.find(steps)
    metrics = log.metrics(steps, start, best_step) | {
        "parameters": counts["total"],
        "parameters_body": counts["body"],
        "dropped_overlong": data.rows.dropped_overlong,
        **({"eval_dropped_overlong": data.held_out.dropped_overlong} if data.held_out else {}),
        "truncated": data.truncated,
        "fill": data.rows.fill(),
    }
    state = whole_state(trainer, config)
    forget_engine(config)
    if trainer.is_world_process_zero():
        card = {
            **data.codec,
            "context": config.context,
            "date": data.date,
            "mask_eot": config.mask_eot,
            "speakers": data.speakers,
            "speaker_tags": float(config.speaker_tags),
            "base_model": base_of(config.model),
            "data": data.amounts,
            "training": asdict(replace(config, epochs=asked.epochs, max_steps=asked.max_steps)),
            "metrics": metrics,
            # No step was left to a run that ended after its last one: nothing was wrapped again.
            "engine": {
                "wrapper": getattr(trainer, "wrapper", wrapper_asked(config, world)),
                "processes": world,
            },
        }
        with _progress_bars(progress):
            model = _trained(trainer, config, data, state, weights)
            with names_full_disk(output):
                write_checkpoint(model, data.tokenizer, config, output, card)
        if weights is None:  # the last weights are the best
            shutil.rmtree(best.folder, ignore_errors=True)
    return metrics


def _spoken_steps(
    config: TrainConfig, data: TrainingData, listener: Listener | None, log: RunLog
) -> list[SpokenSteps]:
    """The callback of `sample_steps`; InputError where nothing can speak or there is no text."""
    if not config.sample_steps:
        return []
    if listener is None:
        raise InputError("config: `sample_steps` needs a `listener`, as `llasa train` gives it")
    if not data.texts:
        raise InputError("config: `sample_steps` speaks texts of `eval_codes`, expected some")
    return [SpokenSteps(listener(config, data), log, config.sample_steps)]


def _arguments(
    config: TrainConfig, world: int, engine: dict[str, Any], progress: bool
) -> TrainingArguments:
    """What Trainer is told of a settled config."""
    _, per_device, passes = config.rows(world)
    on_cpu = not torch.cuda.is_available()
    return one_gpu_a_process(
        TrainingArguments(
            output_dir=config.output_dir,
            max_steps=config.max_steps,
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=passes,
            average_tokens_across_devices=config.average == "tokens",
            learning_rate=config.peak_lr,
            weight_decay=config.weight_decay,
            adam_beta2=config.beta2,
            max_grad_norm=config.clip,
            # PackedTrainer makes Muon itself
            optim="adamw_torch" if config.optim == MUON else config.optim,
            seed=config.seed,
            use_cpu=on_cpu,
            ddp_backend="gloo" if on_cpu and world > 1 else None,
            ddp_find_unused_parameters=False,
            logging_steps=config.log_steps,
            logging_nan_inf_filter=False,
            save_strategy="steps" if config.save_steps else "no",
            save_steps=config.save_steps or 1,
            save_total_limit=config.save_total_limit,
            eval_strategy="no",
            ignore_data_skip=True,
            report_to=config.report_to,
            disable_tqdm=not progress,
            dataloader_num_workers=config.workers,
            **engine,
        )
    )


def _fit(
    trainer: PackedTrainer, log: RunLog, checkpoint: str | None, counts: dict[str, int]
) -> None:
    """Train to the last step; a run that diverges leaves a note and raises DivergedError."""
    output = Path(trainer.args.output_dir)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
        log.refuse_rise()
    except DivergedError as error:
        note = {"diverged": 1, "diverged_at_step": error.step, "steps": trainer.args.max_steps}
        note["tokens"] = log.rows.tokens_before((error.step - 1) * log.per_step)
        note |= {"parameters": counts["total"], "parameters_body": counts["body"]}
        publish(output / DIVERGED, json.dumps(note).encode())
        raise
    finally:
        _close_bar(trainer)


def _trained(
    trainer: PackedTrainer,
    config: TrainConfig,
    data: TrainingData,
    state: dict[str, torch.Tensor] | None,
    best: dict[str, torch.Tensor] | None,
) -> Any:
    """The model to publish: of the last step, or with the `best` weights; `state` is that of an
    engine that shards.
    """
    if state is not None:
        return _whole_model(config, data, {**state, **(best or {})})
    if best is not None and trainer.model.load_state_dict(best, strict=False).unexpected_keys:
        raise RuntimeError("the best weights do not fit the model that was trained")
    return trainer.model


@contextlib.contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Without `shown`, the libraries underneath draw no bars either."""
    before = transformers_logging.is_progress_bar_enabled()
    if not shown:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()


def _close_bar(trainer: PackedTrainer) -> None:
    """End the bar of a run that ended before its last step, so that it stands above the message."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
            callback.training_bar.close()


def _model(config: TrainConfig, data: TrainingData) -> tuple[PreTrainedModel, int | None]:
    """The model to train, and from which id on its rows are new: 0 for a size name, None for a
    checkpoint that has them all.
    """
    new_from: int | None = None
    tokenizer, vocabulary = data.tokenizer, data.vocabulary
    if config.model in SIZES:
        new_from = 0
        zero = config.zero_init_residual
        model = build_model(
            config.model, vocabulary.size, config.context, config.seed, zero_init_residual=zero
        )
        model.config.bos_token_id, model.config.eos_token_id = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
        )
    else:
        model = load_model(config.model)
        if model.config.vocab_size == vocabulary.text_size:
            new_from = vocabulary.text_size
            resize_vocabulary(model, vocabulary.size, config.init_noise, config.seed)
        if model.config.vocab_size != vocabulary.size:
            raise InputError(
                f"{config.model}: the model has a vocabulary of {model.config.vocab_size}, "
                f"the tokenizer of {vocabulary.size}"
            )
    return use_head_loss(use_packed_attention(model)), new_from


def _whole_model(config: TrainConfig, data: TrainingData, state: dict[str, torch.Tensor]) -> Any:
    """The model of `config` with the weights of `state`, outside the engine that trained it."""
    model, new_from = _model(config, data)
    if config.lora is not None:
        model = add_lora(model, config.lora, config.seed, new_from)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    tied = (
        {"lm_head.weight", "base_model.model.lm_head.weight"}
        if model.config.tie_word_embeddings
        else set()
    )
    if unexpected or set(missing) - tied:
        raise RuntimeError(
            f"the trained weights do not fit the model: {[*missing, *unexpected][:3]}"
        )
    model.tie_weights()
    return model
