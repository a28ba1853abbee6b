"""The Hugging Face Trainer over packed rows: our loss, our data order, our schedule, and
train_log.jsonl.

Which rows step n reads depends on the seed and n alone, so a resumed run and a run on more
processes read the same data. Checkpoints are the Trainer's; their optimizer state is read with
weights_only, and no pickled settings are kept.
"""

import functools
import itertools
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import Trainer

from llasa_core.data.packing import PackedRows, code_noise, collate
from llasa_core.errors import DivergedError
from llasa_core.muon import Muon, muon_groups
from llasa_core.training import resume
from llasa_core.training.config import MUON, TrainConfig
from llasa_core.training.loss import LOSSES
from llasa_core.training.parallel import check_wrapper, compute_in_bf16, shard_on_cpu

LOG_START = 0.03  # share of the peak at which a logarithmic warm-up starts
RISEN = 3  # a loss so many times that of the start, or of guessing among all ids, has diverged


def lr_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Learning rate of step 0 .. steps - 1 as a share of the peak: warm-up, then cosine to
    final_lr_ratio.

    `warmup` "log" is DeepSpeed's WarmupCosineLR as the public script sets it: w is at least 2, and
    step n has LOG_START + (1 - LOG_START) log(n + 1) / log(w). Linear:
    The first step is not wasted at 0: warm-up over w steps goes 1/w, 2/w .. 1, and the last step
    has final_lr_ratio.
    """
    warm = math.ceil(config.warmup_ratio * steps)
    if config.warmup == "log":
        warm = max(2, warm)
        if step < warm:
            return LOG_START + (1 - LOG_START) * math.log(step + 1) / math.log(warm)
    if step < warm:
        return (step + 1) / warm
    progress = min(1.0, (step + 1 - warm) / max(1, steps - warm))
    return (
        config.final_lr_ratio + (1 - config.final_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
    )


def groups_of(
    model: torch.nn.Module, decaying: Collection[str], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for Muon of the parameters that learn: matrices of the layers; for AdamW the rows of
    the vocabulary, and the rest. The names in `decaying` have weight decay.
    """
    ends = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    learnt = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    return [
        {**group, "weight_decay": weight_decay * decays}
        for decays in (True, False)
        for group in muon_groups([one for n, one in learnt if (n in decaying) == decays], ends)
    ]


class StepBatches(IterableDataset):
    """The micro-batches of one process from step `start` on: rows of step n are n * rows .. (n + 1)
    * rows - 1.
    """

    def __init__(
        self,
        rows: PackedRows,
        config: TrainConfig,
        vocabulary: Any,
        rank: int,
        world: int,
        start: int,
    ):
        self.rows, self.config, self.vocabulary = rows, config, vocabulary
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        per_step, per_device, passes = self.config.rows(self.world)
        worker = get_worker_info()
        turn, turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in itertools.count(self.start):
            first = step * per_step + self.rank * per_device * passes
            for part in range(passes):
                if ((step - self.start) * passes + part) % turns != turn:
                    continue  # another worker's; the loader asks them in turn
                numbers = range(first + part * per_device, first + (part + 1) * per_device)
                examples = [example for number in numbers for example in self.rows.examples(number)]
                distort, noise = None, self.config.code_noise_at(step)
                if noise:
                    generator = np.random.default_rng([self.config.seed, 2, numbers[0]])
                    distort = code_noise(self.vocabulary, noise, generator)
                yield collate(examples, distort, self.config.mask_eot)

    def utterances(self, step: int) -> list[str]:
        """The ids of the utterances that this process reads in a step (0 is the first)."""
        per_step, per_device, passes = self.config.rows(self.world)
        share = per_device * passes
        first = step * per_step + self.rank * share
        return [
            name for number in range(first, first + share) for name in self.rows.identifiers(number)
        ]


class PackedTrainer(Trainer):
    """HF Trainer with our loss and our data order; its checkpoints keep no pickled arguments."""

    def __init__(
        self,
        *args: Any,
        batches: StepBatches,
        tokenizer: Any,
        settings: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        self.batches, self.tokenizer, self.settings = batches, tokenizer, settings
        super().__init__(*args, train_dataset=batches, **kwargs)
        # num_items_in_batch: labelled tokens of the global batch
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.largest_loss: float | None = None  # nats a token; beyond it the run has diverged

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self)
        if self.is_fsdp_enabled and self.batches.config.bf16:
            compute_in_bf16(self)

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.batches, batch_size=None, num_workers=self.args.dataloader_num_workers
        )

    def get_decay_parameter_names(self, model):
        names = super().get_decay_parameter_names(model)
        if self.batches.config.decay_norms:
            names = [name for name, _ in model.named_parameters()]
        # Rows that stay as they are must not shrink (lora.add_lora).
        held = {name for name, one in model.named_parameters() if hasattr(one, "trained_from")}
        return [name for name in names if name not in held]

    def create_optimizer(self, model=None):
        config = self.batches.config
        if config.optim != MUON:
            return super().create_optimizer(model)
        learner = self.model if model is None else model
        self.optimizer = Muon(
            groups_of(learner, self.get_decay_parameter_names(learner), config.weight_decay),
            config.peak_lr,
            betas=(self.args.adam_beta1, config.beta2),
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        config = self.batches.config
        factor = functools.partial(lr_factor, steps=num_training_steps, config=config)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        self.wrapper = check_wrapper(self.batches.config, self.model_wrapped, self.batches.world)
        return prepared

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        config = self.batches.config
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=config.autocast):
            total, count = LOSSES[config.loss](model, inputs)
        self._refuse_divergence(total.item(), count)
        loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        # DDP averages gradients over processes; by "processes" num_items_in_batch is this one's own
        return loss * self.accelerator.num_processes if config.average == "tokens" else loss

    def _refuse_divergence(self, total: float, count: int) -> None:
        mean = total / max(1, count)
        if self.largest_loss is None and math.isfinite(total):
            self.largest_loss = RISEN * max(mean, math.log(self.batches.vocabulary.size))
        if not math.isfinite(total) or mean > self.largest_loss:
            step = self.state.global_step + 1
            found = f"{mean:.4g} nats a token" if math.isfinite(total) else f"{total}"
            utterances = " ".join(self.batches.utterances(step - 1))
            raise DivergedError(
                f"the loss is {found} at step {step}, lower peak_lr; read: {utterances}", step
            )

    def _save_checkpoint(self, model, trial):
        if self.args.should_save:
            resume.mark_checkpoint(
                Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"), self.settings
            )
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir=None, _internal_call=False):
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            # the engine's own state holds the weights, the final folder comes from
            # engines.whole_state
            return
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            Path(output_dir, "training_args.bin").unlink(missing_ok=True)
            self.tokenizer.save_pretrained(output_dir)
