"""Training: the Hugging Face Trainer over packed rows, with Llasa's loss, schedule, held-out loss and final folder.

The loss is next-token cross-entropy over the whole vocabulary at labelled positions only (the head never sees the
others), averaged over the labelled tokens of the global batch. Which rows step n reads depends on the seed and n
alone, so a resumed run and a run on other processes read the same data. `python -m llasa_core.train config.json`.
"""

import contextlib
import functools
import itertools
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from llasa_core.errors import InputError
from llasa_core.model import SIZES, build_model, load_model, parameter_count, resize_vocabulary, use_packed_attention
from llasa_core.packing import NO_LABEL, ExampleSource, PackedRows, code_noise, collate, pack_lengths
from llasa_core.train_config import TrainConfig, read_entry

__all__ = ["TrainConfig", "held_out_loss", "labelled_loss", "train"]

logger = logging.getLogger(__name__)


def labelled_loss(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy (nats) of a packed batch and the number of labelled tokens.

    `batch` is packing.collate's. The head projects only the positions whose next token is labelled.
    """
    following = batch["labels"][0, 1:]
    kept = (following != NO_LABEL).nonzero()[:, 0]  # (K,) positions that predict a labelled token
    logits = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        document_lengths=batch["cu_seqlens"].diff().tolist(),
        logits_to_keep=kept,
        use_cache=False,
    ).logits[0]  # (K, V)
    return SummedCrossEntropy.apply(logits, following[kept]), len(kept)


class SummedCrossEntropy(torch.autograd.Function):
    """Cross-entropy summed over rows: logits (K, V) of any float type, targets (K,) -> scalar fp32.

    Equal to torch's in fp32. It works on chunks that stay in cache, keeps one gradient of the logits' own type instead
    of fp32 copies, and so costs a third of the time and memory of float() + cross_entropy on a CPU.
    """

    CHUNK = 256  # rows

    @staticmethod
    def forward(ctx, logits, targets):
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), SummedCrossEntropy.CHUNK):
            part = slice(start, start + SummedCrossEntropy.CHUNK)
            scores = logits[part].to(torch.float32, copy=True)
            rows, wanted = torch.arange(len(scores), device=scores.device), targets[part]
            scores -= scores.amax(1, keepdim=True)
            chosen = scores[rows, wanted]
            scores.exp_()
            norm = scores.sum(1, keepdim=True)
            total += norm.log().sum() - chosen.sum()
            if gradient is not None:
                scores /= norm
                scores[rows, wanted] -= 1
                gradient[part] = scores
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None


def lr_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Learning rate of step 0 .. steps - 1 as a share of the peak: linear warm-up, then cosine to final_lr_ratio.

    The first step is not wasted at 0: warm-up over w steps goes 1/w, 2/w .. 1, and the last step has final_lr_ratio.
    """
    warm = math.ceil(config.warmup_ratio * steps)
    if step < warm:
        return (step + 1) / warm
    progress = min(1.0, (step + 1 - warm) / max(1, steps - warm))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2


class StepBatches(IterableDataset):
    """The micro-batches of one process from step `start` on: rows of step n are n * rows .. (n + 1) * rows - 1."""

    def __init__(self, rows: PackedRows, config: TrainConfig, vocabulary: Any, rank: int, world: int, start: int):
        self.rows, self.config, self.vocabulary = rows, config, vocabulary
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        per_step, per_device, passes = self.config.rows(self.world)
        for step in itertools.count(self.start):
            first = step * per_step + self.rank * per_device * passes
            for part in range(passes):
                numbers = range(first + part * per_device, first + (part + 1) * per_device)
                examples = [example for number in numbers for example in self.rows.examples(number)]
                distort = None
                if self.config.code_noise:
                    generator = np.random.default_rng([self.config.seed, 2, numbers[0]])
                    distort = code_noise(self.vocabulary, self.config.code_noise, generator)
                yield collate(examples, distort)


class PackedTrainer(Trainer):
    """HF Trainer with our loss and our data order; its checkpoints keep no pickled arguments."""

    def __init__(self, *args: Any, batches: StepBatches, tokenizer: Any, **kwargs: Any) -> None:
        super().__init__(*args, train_dataset=batches, **kwargs)
        self.batches, self.tokenizer = batches, tokenizer
        self.model_accepts_loss_kwargs = True  # num_items_in_batch: labelled tokens of the global batch
        self.loss_is_scaled_for_ga = True

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)

    def create_scheduler(self, num_training_steps, optimizer=None):
        config = self.batches.config
        factor = functools.partial(lr_factor, steps=num_training_steps, config=config)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.batches.config.bf16):
            total, count = labelled_loss(model, inputs)
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss is {total.item()} at step {self.state.global_step + 1}; lower peak_lr")
        loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        return loss * self.accelerator.num_processes  # DDP averages gradients over processes

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            Path(output_dir, "training_args.bin").unlink(missing_ok=True)
            self.tokenizer.save_pretrained(output_dir)


def held_out_loss(model: PreTrainedModel, batches: Sequence[dict[str, Any]], bf16: bool = False) -> tuple[float, int]:
    """Summed loss (nats) and labelled tokens of the batches; processes share the work and agree on the answer."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for batch in batches[rank::world]:
            total, count = labelled_loss(model, {name: tensor.to(device) for name, tensor in batch.items()})
            sums += torch.tensor([total.item(), count], dtype=torch.float64, device=device)
    model.train(was_training)
    if world > 1:
        dist.all_reduce(sums)
    return sums[0].item(), int(sums[1].item())


class HeldOut:
    """The held-out datasets as fixed batches, measured per dataset and together."""

    def __init__(self, sources: Sequence[tuple[str, ExampleSource]], config: TrainConfig, frame_rate: float) -> None:
        self.config, self.datasets, self.dropped = config, [], 0
        _, per_device, _ = config.rows()
        for name, source in sources:
            lengths = source.lengths + source.tag_lengths
            fitting = np.flatnonzero(lengths <= config.context)
            self.dropped += len(lengths) - len(fitting)
            fitting = fitting[: config.eval_utterances]
            if not len(fitting):
                raise InputError(f"{name}: no held-out utterance fits a row of {config.context} tokens")
            rows = pack_lengths(lengths[fitting], config.context)
            grouped = [list(itertools.chain(*rows[i : i + per_device])) for i in range(0, len(rows), per_device)]
            batches = [collate([source.example(int(fitting[i]), 0) for i in group]) for group in grouped]
            seconds = sum(len(source.dataset[int(i)]["codes"]) for i in fitting) / frame_rate
            self.datasets.append((name, source.task, batches, seconds))

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """eval_loss: nats a labelled token; eval_bits_per_second: bits a second of audio, over the tts datasets."""
        metrics: dict[str, float] = {}
        nats, tokens, speech_nats, speech_seconds = 0.0, 0, 0.0, 0.0
        for name, task, batches, seconds in self.datasets:
            total, count = held_out_loss(model, batches, self.config.bf16)
            nats, tokens = nats + total, tokens + count
            if len(self.datasets) > 1:
                metrics[f"eval_loss/{name}"] = total / count
            if task == "tts":
                speech_nats, speech_seconds = speech_nats + total, speech_seconds + seconds
        metrics["eval_loss"] = nats / tokens
        if speech_seconds:
            metrics["eval_bits_per_second"] = speech_nats / math.log(2) / speech_seconds
        return metrics


class RunLog(TrainerCallback):
    """train_log.jsonl: a line every log_steps (loss, lr, grad_norm, tokens, seconds) and one for each evaluation."""

    def __init__(
        self, path: Path, rows: PackedRows, per_step: int, held_out: HeldOut | None, config: TrainConfig, start: int
    ):
        self.path, self.rows, self.per_step, self.held_out, self.config = path, rows, per_step, held_out, config
        self.last_eval: dict[str, float] = {}
        self.paused = 0.0  # seconds spent on evaluation
        kept = []
        if start and path.is_file():
            kept = [line for line in map(json.loads, path.read_text().splitlines()) if line["step"] <= start]
        self.earlier = max((line["seconds"] for line in kept), default=0.0)
        self.lines = kept
        self.begin = time.perf_counter()

    def seconds(self) -> float:
        """Training seconds so far, earlier parts of a resumed run included, evaluation left out."""
        return self.earlier + time.perf_counter() - self.begin - self.paused

    def write(self, state: Any, values: dict[str, float]) -> None:
        line = {
            "step": state.global_step,
            "tokens": self.rows.tokens_before(state.global_step * self.per_step),
            "seconds": round(self.seconds(), 3),
            **values,
        }
        self.lines.append(line)
        if state.is_world_process_zero:
            with self.path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            logger.info("%s", line)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            temporary = self.path.with_suffix(".part")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            os.replace(temporary, self.path)
        self.begin = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            values = {"loss": logs["loss"], "lr": logs["learning_rate"], "grad_norm": logs["grad_norm"]}
            self.write(state, {name: float(value) for name, value in values.items()})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        due = self.config.eval_steps and state.global_step % self.config.eval_steps == 0
        if self.held_out and (due or state.global_step == state.max_steps):
            begin = time.perf_counter()
            self.last_eval = self.held_out.measure(model)
            self.paused += time.perf_counter() - begin
            self.write(state, self.last_eval)


def train(config: TrainConfig, progress: bool = False) -> dict[str, float]:
    """Train and write `output_dir`: an ordinary checkpoint with its tokenizer, train_log.jsonl and llasa.json (last).

    Returns flat metrics: final_loss (mean of the last log line), eval_loss and eval_bits_per_second where held-out
    codes are given, steps, tokens, seconds, tokens_per_second, parameters, dropped_overlong, fill. Raises InputError on
    settings or data that do not fit together.
    """
    from llasa_core.prompts import Prompt
    from llasa_core.tokens import vocabulary_of

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if config.threads:
        torch.set_num_threads(config.threads)
    for note in config.notes:
        logger.info("%s", note)
    per_step, per_device, passes = config.rows(world)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)

    datasets = [(*read_entry("codes", entry), "codes") for entry in config.codes]
    datasets += [(*read_entry("eval_codes", entry), "eval_codes") for entry in config.eval_codes or []]
    opened = {path: _open_codes(path) for path, *_ in datasets}
    codebook_size = _agree({path: codes.meta["codebook_size"] for path, codes in opened.items()}, "codebook_size")
    codec = _agree({path: codes.meta["codec"] for path, codes in opened.items()}, "codec")
    frame_rate = _agree({path: codes.meta["frame_rate"] for path, codes in opened.items()}, "frame_rate")

    tokenizer = _tokenizer(config, codebook_size)
    vocabulary = vocabulary_of(tokenizer)
    if vocabulary.codebook_size != codebook_size:
        raise InputError(
            f"{config.tokenizer or config.model}: the tokenizer has {vocabulary.codebook_size} speech tokens, "
            f"{datasets[0][0]} has a codebook of {codebook_size}"
        )
    prompt = Prompt(tokenizer, vocabulary, date=config.date)
    tags = float(config.speaker_tags)
    sources = [
        (use, path, ExampleSource(opened[path], prompt, task, weight, tags)) for path, weight, task, use in datasets
    ]
    rows = PackedRows([source for use, _, source in sources if use == "codes"], config.context, config.seed)
    held_out = [(f"{path}:{source.task}", source) for use, path, source in sources if use == "eval_codes"]
    held_out = HeldOut(held_out, config, frame_rate) if held_out else None

    max_steps = config.max_steps or _steps(rows, config.epochs, per_step)
    checkpoint, start = _newest_checkpoint(output) if config.resume else (None, 0)
    model = _model(config, tokenizer, vocabulary)
    counts = parameter_count(model)
    if config.lora is not None:
        model = _add_lora(model, config.lora)

    on_cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=max_steps,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=passes,
        learning_rate=config.peak_lr,
        weight_decay=config.weight_decay,
        adam_beta2=config.beta2,
        max_grad_norm=config.clip,
        optim="adamw_torch_fused",
        seed=config.seed,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and world > 1 else None,
        ddp_find_unused_parameters=False,
        activation_checkpointing=config.activation_checkpointing,
        torch_compile=config.compile,
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        save_total_limit=config.save_total_limit,
        eval_strategy="no",
        ignore_data_skip=True,
        report_to=config.report_to,
        disable_tqdm=not progress,
    )
    log = RunLog(output / "train_log.jsonl", rows, per_step, held_out, config, start)
    trainer = PackedTrainer(
        model=model,
        args=arguments,
        callbacks=[log],
        batches=StepBatches(rows, config, vocabulary, rank, world, start),
        tokenizer=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    with _progress_bars(progress):
        if start < max_steps:
            trainer.train(resume_from_checkpoint=checkpoint)
        else:  # the run had reached its last step before it ended
            trainer._load_from_checkpoint(checkpoint)

    tokens, seconds = rows.tokens_before(max_steps * per_step), log.seconds()
    if held_out and not log.last_eval:
        log.last_eval = held_out.measure(trainer.model)
    losses = [line["loss"] for line in log.lines if "loss" in line]
    metrics = {
        **log.last_eval,
        **({"final_loss": losses[-1]} if losses else {}),
        "steps": max_steps,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(max(0, tokens - rows.tokens_before(start * per_step)) / (seconds - log.earlier), 1),
        "parameters": counts["total"],
        "parameters_body": counts["body"],
        "dropped_overlong": rows.dropped_overlong,
        "fill": rows.fill(),
    }
    if trainer.is_world_process_zero():
        speakers = sorted({name for use, _, source in sources if use == "codes" for name in source.speakers})
        card = {"codec": codec, "codebook_size": codebook_size, "frame_rate": frame_rate, "date": config.date}
        card |= {"speakers": speakers, "speaker_tags": tags, "training": asdict(config), "metrics": metrics}
        with _progress_bars(progress):
            _publish(trainer.model, tokenizer, config, output, card)
    return metrics


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


def _open_codes(path: str) -> Any:
    from llasa_core.codes import read_codes

    if list(Path(path).glob("*_input_ids.memmap")):
        raise InputError(f"{path}: public memmap rows; import them first with `llasa import-memmap {path} OUT`")
    return read_codes(path)


def _agree(values: dict[str, Any], name: str) -> Any:
    first = next(iter(values))
    for path, value in values.items():
        if value != values[first]:
            raise InputError(f"{path}: {name} is {value}, expected {values[first]} as in {first}")
    return values[first]


def _tokenizer(config: TrainConfig, codebook_size: int) -> Any:
    from llasa_core.tokens import MARKERS, load_tokenizer, merge_tokenizer

    if config.tokenizer is None and config.model in SIZES:
        raise InputError(f"config: `tokenizer` is missing, a model from scratch ({config.model}) needs one")
    tokenizer = load_tokenizer(config.tokenizer or config.model)
    if MARKERS[0] not in tokenizer.get_vocab():
        tokenizer = merge_tokenizer(tokenizer, codebook_size)
    return tokenizer


def _model(config: TrainConfig, tokenizer: Any, vocabulary: Any) -> PreTrainedModel:
    if config.model in SIZES:
        model = build_model(config.model, vocabulary.size, config.context, config.seed)
        model.config.bos_token_id, model.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    else:
        model = load_model(config.model)
        if model.config.vocab_size == vocabulary.text_size:
            resize_vocabulary(model, vocabulary.size, seed=config.seed)
        if model.config.vocab_size != vocabulary.size:
            raise InputError(
                f"{config.model}: the model has a vocabulary of {model.config.vocab_size}, "
                f"the tokenizer of {vocabulary.size}"
            )
    return use_packed_attention(model)


def _add_lora(model: PreTrainedModel, settings: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model

    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    values = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": projections, **settings}
    if set(values) != {"r", "alpha", "dropout", "target_modules"}:
        raise InputError(f"config: `lora` has keys {sorted(settings)}, expected r, alpha, dropout, target_modules")
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=values["r"],
        lora_alpha=values["alpha"],
        lora_dropout=values["dropout"],
        target_modules=values["target_modules"],
    )
    return get_peft_model(model, lora)


def _steps(rows: PackedRows, epochs: float, per_step: int) -> int:
    whole, part = divmod(epochs, 1.0)
    count = sum(rows.rows_in_epoch(epoch) for epoch in range(int(whole)))
    if part:
        count += part * rows.rows_in_epoch(int(whole))
    return max(1, math.ceil(count / per_step))


def _newest_checkpoint(output: Path) -> tuple[str | None, int]:
    """The newest checkpoint whose last-written file is whole, and its step."""
    found: list[tuple[int, str]] = []
    for folder in output.glob("checkpoint-*"):
        try:
            found.append((json.loads((folder / "trainer_state.json").read_text())["global_step"], str(folder)))
        except (OSError, ValueError):
            logger.info("%s is not whole and is left out", folder)
    return (max(found)[1], max(found)[0]) if found else (None, 0)


def _publish(model: Any, tokenizer: Any, config: TrainConfig, output: Path, card: dict[str, Any]) -> None:
    """Write the final folder through a temporary one; llasa.json comes last."""
    temporary = output / ".final.part"
    shutil.rmtree(temporary, ignore_errors=True)
    if config.lora is not None:
        model.save_pretrained(temporary / "adapter")
        model = model.merge_and_unload()
    model.to(getattr(torch, config.save_dtype)).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / "llasa.json").write_text(json.dumps(card, indent=2, sort_keys=True))
    shutil.rmtree(output / "adapter", ignore_errors=True)
    for entry in sorted(temporary.iterdir(), key=lambda path: path.name == "llasa.json"):
        os.replace(entry, output / entry.name)
    temporary.rmdir()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m llasa_core.train config.json`, alone or under torchrun."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print("usage: python -m llasa_core.train config.json")
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        metrics = train(TrainConfig.from_json(arguments[0]), progress=sys.stderr.isatty())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(metrics, indent=2, sort_keys=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
