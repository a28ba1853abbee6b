"""Settings of a training run, checked before any data is opened.

Read from JSON or built in Python; the keys of the public config.json are translated, each with a
note in `TrainConfig.notes`. An unknown key, a value of another type, or a package or layer that
does not exist is an InputError at once. Defaults are the paper's (arXiv 2502.04128, section 3).
"""

import difflib
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llasa_core.errors import InputError, above, at_least, between, check_fields, fits, one_of
from llasa_core.files import read_object
from llasa_core.tokenizer import DEFAULT_DATE
from llasa_core.training.lora import lora_settings

MUON = "muon"  # an `optim` beside those of Hugging Face (llasa_core.muon)

RENAMED = {
    "llm_model_name_or_path": "model",
    "tokenizer_name_or_path": "tokenizer",
    "data_path": "codes",
    "num_train_epochs": "epochs",
    "learning_rate": "peak_lr",
    "adam_beta2": "beta2",
    "max_grad_norm": "clip",
    "model_max_length": "context",
    "logging_steps": "log_steps",
    "per_device_train_batch_size": "rows_per_device",
    "gradient_checkpointing": "activation_checkpointing",
    "dataloader_num_workers": "workers",
    "load_best_model_at_end": "keep_best",
    "early_stopping_patience": "early_stopping",
}

IGNORED = {
    "cache_dir": "the hub's own cache folder is used",
    "per_device_eval_batch_size": "evaluation uses rows_per_device",
    "evaluation_strategy": "eval_steps alone decides (0 = never)",
    "eval_strategy": "eval_steps alone decides (0 = never)",
    "save_strategy": "save_steps alone decides (0 = never)",
    "lr_scheduler_type": (
        "the schedule is the warm-up of `warmup`, then cosine to final_lr_ratio of the peak"
    ),
    "dataloader_prefetch_factor": "torch's own is used",
    "remove_unused_columns": "rows hold only what the model reads",
    "run_name": "the output folder names the run",
}

BOUNDS = {
    **dict.fromkeys(["context", "tokens_per_step", "log_steps", "max_steps"], at_least(1)),
    **dict.fromkeys(["rows_per_device", "gradient_accumulation_steps", "threads"], at_least(1)),
    **dict.fromkeys(["workers", "init_noise", "weight_decay"], at_least(0)),
    **dict.fromkeys(["save_steps", "eval_steps", "sample_steps"], at_least(0)),
    "sample_texts": at_least(1),
    "early_stopping": at_least(1),
    **dict.fromkeys(["warmup_ratio", "final_lr_ratio", "beta2"], between(0, 1)),
    **dict.fromkeys(["code_noise", "final_code_noise", "speaker_tags"], between(0, 1)),
    **dict.fromkeys(["peak_lr", "clip", "epochs"], above(0)),
    "seed": between(0, 2**32 - 1),
    "overlong": one_of("drop", "truncate"),
    "save_dtype": one_of("float32", "bfloat16"),
    "warmup": one_of("linear", "log"),
    "average": one_of("tokens", "processes"),
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Paths are relative to the working folder."""

    model: str  # size name (model.SIZES), checkpoint folder or hub id
    codes: list[Any]  # codes folders, or objects with the keys of DataEntry
    output_dir: str
    tokenizer: str | None = None  # folder or hub id; default: the model's own
    eval_codes: list[Any] | None = None  # held-out codes folders, same form
    max_steps: int | None = None  # optimizer steps; or:
    epochs: float | None = None
    context: int = 2048  # tokens in a packed row
    # longer utterances are dropped and counted; "truncate": cut as the public code cuts them
    overlong: str = "drop"
    # Folder where codes are unpacked once and mapped: for corpora larger than memory
    cache: str | None = None
    workers: int = 0  # processes that assemble batches; the order of the data does not depend on it
    # Row capacity of one optimizer step over all processes; default: by the data (plan.step_rows)
    tokens_per_step: int | None = None
    packing: bool = True  # several utterances share a row; without it a row is one, as in public
    rows_per_device: int | None = None  # rows in one forward pass; default: up to 16,384 tokens
    gradient_accumulation_steps: int | None = None  # public key: with it, tokens_per_step follows
    loss: str = "cross_entropy"  # training.loss.LOSSES; held-out loss is always cross-entropy
    peak_lr: float = 5e-5
    warmup: str = "linear"  # "log": DeepSpeed's, from 3 % of the peak, as in public
    warmup_ratio: float = 0.03
    final_lr_ratio: float = 0.1
    weight_decay: float = 0.01
    decay_norms: bool = False  # weight decay on the norms' weights too, as in public
    # What a step's loss is a mean of: its labelled "tokens", or "processes" each of its own tokens
    average: str = "tokens"
    beta2: float = 0.95
    clip: float = 1.0
    # Hugging Face's name, "adamw_bnb_8bit" keeps 8-bit states (needs bitsandbytes); or "muon"
    optim: str = "adamw_torch_fused"
    bf16: bool = True  # autocast; master weights stay fp32
    pure_bf16: bool = False  # DeepSpeed's bf16 without autocast, as in public; masters stay fp32
    seed: int = 0
    date: str = DEFAULT_DATE  # date line of the chat template; "today": of the day a run starts
    # Hide the template's <|eot_id|> from attention: the public code's loss, exactly
    mask_eot: bool = False
    speaker_tags: float | bool = False  # probability that an utterance carries its speaker's tag
    # Probability that an input code is replaced by a random one; labels stay (paper: 0)
    code_noise: float = 0.0
    # What code_noise becomes by the last step, evenly step by step; default: it stays
    final_code_noise: float | None = None
    save_steps: int = 0  # 0 = only the final model
    save_total_limit: int = 2
    eval_steps: int | None = None  # 0 = only at the end; default: ten times a run
    eval_utterances: int = 1000  # at most so many of each held-out dataset
    # Publish the weights of the best held-out loss; default: where `eval_codes` are measured
    keep_best: bool | None = None
    early_stopping: int | None = None  # stop after so many measurements without a better one
    log_steps: int = 10
    save_dtype: str = "float32"  # or "bfloat16"
    activation_checkpointing: bool = False
    # FSDP2: parameters, gradients and optimizer states sharded over the processes
    fsdp: bool = False
    # DeepSpeed settings, or their JSON file (experiments/deepspeed)
    deepspeed: str | dict[str, Any] | None = None
    # Size names only: attention and feed-forward start at zero (model.build_model)
    zero_init_residual: bool = False
    # Spread of new rows around the mean of the old ones (public: 0); default 1 if tied, else 0.1
    init_noise: float | None = None
    # {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": [...]}
    lora: dict[str, Any] | None = None
    threads: int | None = None  # CPU threads; default: torch's
    # Below output_dir/runs; "none", "wandb" or another reporter of Hugging Face.
    report_to: str = "tensorboard"
    # Held-out texts are spoken every so many steps and at the end, as wavs below
    # output_dir/samples and in what `report_to` names (0 = never)
    sample_steps: int = 0
    sample_texts: int = 4  # of each held-out dataset
    resume: bool = False  # continue from the newest whole checkpoint in output_dir
    overwrite: bool = False  # start over where a finished model is
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, "config", **BOUNDS)
        if self.lora is not None:
            lora_settings(self.lora)
        self._demand(
            "pure_bf16",
            not self.pure_bf16 or (self.bf16 and self.deepspeed is not None),
            "false, or `bf16` and `deepspeed` with it, whose optimizer keeps fp32 masters",
        )
        self._demand(
            "early_stopping",
            self.early_stopping is None or (bool(self.eval_codes) and self.eval_steps != 0),
            "`eval_codes` and `eval_steps` with it",
        )
        if self.fsdp and self.deepspeed is not None:
            raise InputError(
                "config: `fsdp` and `deepspeed` are two ways to shard, expected one of them"
            )
        self._demand("codes", bool(self.codes), "at least one codes folder")
        if (self.max_steps is None) == (self.epochs is None):
            raise InputError("config: expected exactly one of `max_steps` and `epochs`")
        for name in ("codes", "eval_codes"):
            for entry in getattr(self, name) or []:
                read_entry(name, entry)

    def _demand(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"config: `{name}` is {getattr(self, name)!r}, expected {expected}")

    @classmethod
    def from_json(cls, path: str | Path) -> "TrainConfig":
        """Read a JSON file; InputError names the file and the key."""
        values = read_object(path, "a JSON object of settings")
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Translate public keys, refuse unknown ones, check types."""
        known = {field.name for field in fields(cls)} - {"notes"}
        settings: dict[str, Any] = {}
        notes = []
        for key, value in values.items():
            target = RENAMED.get(key, key)
            if key in IGNORED:
                notes.append(f"`{key}` has no effect: {IGNORED[key]}")
                continue
            if target not in known:
                near = difflib.get_close_matches(key, sorted(known | {*RENAMED, *IGNORED}), n=3)
                hint = f"; nearest: {', '.join(near)}" if near else ""
                raise InputError(f"config: unknown key `{key}`{hint}")
            if target in settings:
                raise InputError(f"config: `{key}` and `{target}` set the same thing")
            if target != key:
                notes.append(f"`{key}` is read as `{target}`")
            if target in ("codes", "eval_codes") and isinstance(value, (str, dict)):
                value = [value]
            settings[target] = value
        missing = [name for name in ("model", "codes", "output_dir") if name not in settings]
        if missing:
            raise InputError(f"config: `{missing[0]}` is missing")
        return cls(**settings, notes=tuple(notes))

    def code_noise_at(self, step: int) -> float:
        """The probability of a replaced input code in a step (0 is the first).

        With final_code_noise it needs max_steps, which plan.settled derives from `epochs`.
        """
        if self.final_code_noise is None:
            return self.code_noise
        done = min(step / max(self.max_steps - 1, 1), 1.0)
        return self.code_noise + done * (self.final_code_noise - self.code_noise)

    @property
    def autocast(self) -> bool:
        """Whether the forward pass runs under autocast to bf16."""
        return self.bf16 and not self.pure_bf16

    def rows(self, world_size: int = 1) -> tuple[int, int, int]:
        """(rows of one optimizer step, rows of one forward pass, forward passes a step and
        process).

        Raises InputError where the step does not divide into rows and processes. Where nothing says
        how large a step is, it is one row a process, until plan.settled has seen the data.
        """
        if self.gradient_accumulation_steps is not None:
            per_device = self.rows_per_device or 1
            return (
                per_device * self.gradient_accumulation_steps * world_size,
                per_device,
                self.gradient_accumulation_steps,
            )
        tokens = self.tokens_per_step or self.context * world_size
        rows, rest = divmod(tokens, self.context * world_size)
        if rest or not rows:
            raise InputError(
                f"config: `tokens_per_step` is {self.tokens_per_step}, expected a multiple of"
                f" context x processes = {self.context} x {world_size}"
            )
        per_device = self.rows_per_device
        if per_device is None:
            most = max(1, 16_384 // self.context)
            per_device = max(n for n in range(1, min(rows, most) + 1) if rows % n == 0)
        if rows % per_device:
            raise InputError(
                f"config: `rows_per_device` is {per_device}, expected a divisor of {rows} rows a"
                " process"
            )
        return rows * world_size, per_device, rows // per_device


@dataclass(frozen=True)
class DataEntry:
    """One item of `codes` or `eval_codes`: a folder, or an object with these keys."""

    # codes folder; a manifest (.jsonl) with `codec`; conversations (.jsonl) with task "chat"
    path: str
    weight: float = 1.0  # passes over it in an epoch
    share: float | None = None  # in place of a weight: its share of an epoch's tokens
    task: str = "tts"  # "asr": recognition; "chat": text conversations
    codec: str | None = (
        # the path is a manifest of audio, to be encoded once with this codec (codecs.load_codec)
        None
    )


def read_entry(name: str, entry: Any) -> DataEntry:
    """One item of `codes` as a DataEntry; InputError names the key."""
    if isinstance(entry, str):
        return DataEntry(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), (str, os.PathLike)):
        raise InputError(
            f"config: `{name}` holds {entry!r}, expected a folder or an object with a `path`"
        )
    known = [field.name for field in fields(DataEntry)]
    unknown = set(entry) - set(known)
    if unknown:
        raise InputError(
            f"config: `{name}` has an unknown key `{min(unknown)}`, expected {', '.join(known)}"
        )
    if {"weight", "share"} <= set(entry):
        raise InputError(
            f"config: weight and share of {entry['path']} in `{name}` exclude each other"
        )
    made = DataEntry(**{**entry, "path": str(entry["path"])})
    for key, most in (("weight", math.inf), ("share", 1.0)):
        value = getattr(made, key)
        if key in entry and not (fits(value, float) and 0 < value < most):
            expected = "a number above 0" if key == "weight" else "a number between 0 and 1"
            raise InputError(f"config: {key} {value!r} in `{name}`, expected {expected}")
    if made.task not in ("tts", "asr", "chat"):
        raise InputError(f"config: task {made.task!r} in `{name}`, expected tts, asr or chat")
    if made.codec is not None and (not isinstance(made.codec, str) or made.task == "chat"):
        raise InputError(
            f"config: codec {made.codec!r} in `{name}`, expected a codec's name, and no chat"
        )
    return made
