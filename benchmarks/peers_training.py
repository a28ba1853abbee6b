"""Training in bf16 beside what others would reach for: TRL's SFTTrainer (packing "bfd", loss on the
answer only) and transformers' Trainer with DataCollatorWithFlattening.

All three are a Hugging Face Trainer with the same arguments, weights and utterances, run in this
process on one thread, and take turns. One optimizer step reads every utterance once, so the order
of the data changes nothing; a forward pass reads one row of 2,048 tokens (flattening: as many whole
utterances as an average row holds). The first step of a run warms up, the others count, in CPU
seconds. What each side makes of each utterance is compared before that, in fp32.

    pip install trl
    python benchmarks/peers_training.py                writes results/benchmarks/peers_training.json
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import Clock, head
from train_step import CONTEXT, SHAPES, TEXT, high_water, llama_config, seconds_of
from transformers import (
    DataCollatorWithFlattening,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from llasa_core.data.dataset import finish, part_name, write_part
from llasa_core.data.packing import NO_LABEL, collate
from llasa_core.data.text_tokenizers import build_llama3_tokenizer, locate_llama3_vocabulary
from llasa_core.errors import InputError
from llasa_core.files import write_json
from llasa_core.model import load_model, parameter_count, use_packed_attention
from llasa_core.tokenizer import load_tokenizer, merge_tokenizer, vocabulary_of
from llasa_core.training.config import TrainConfig
from llasa_core.training.data import TrainingData, open_data
from llasa_core.training.loss import use_head_loss, utterance_losses
from llasa_core.training.trainer import PackedTrainer, StepBatches

SMALL_TOKENIZER = Path(__file__).parents[1] / "results/checkpoints/mini-llasa"
PEERS = ("trl", "flattening")


class StepClock(TrainerCallback):
    """CPU seconds of the steps after the first, and the peak memory of the run in MB."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.before = high_water(reset=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.clock = Clock()
        elif state.global_step == args.max_steps:
            self.spent = {"cpu": self.clock.cpu, "wall": self.clock.wall}
            self.peak_mb = high_water() - self.before


class Task:
    """One model and one corpus in `folder`, and the trainer of each side over them."""

    def __init__(self, folder: Path, shape: str, utterances: int, steps: int) -> None:
        self.folder, self.steps = folder, steps
        write_checkpoint(folder / "model", shape)
        tokenizer = load_tokenizer(folder / "model")
        write_corpus(folder / "codes", utterances, vocabulary_of(tokenizer).codebook_size)
        self.config = TrainConfig(
            model=str(folder / "model"),
            codes=[str(folder / "codes")],
            output_dir=str(folder / "out"),
            max_steps=steps,
            rows_per_device=1,
            final_lr_ratio=1.0,  # a constant rate, as the others have
        )
        self.data: TrainingData = open_data(self.config, 0, 1, 1)
        self.rows = self.data.rows.rows_in_epoch(0)
        self.examples = [one for row in range(self.rows) for one in self.data.rows.examples(row)]
        self.together = -(-len(self.examples) // self.rows)  # utterances of a flattened batch

    def arguments(self, kind: type = TrainingArguments, **more: Any) -> Any:
        """The same settings for every side."""
        settings = {
            "output_dir": str(self.folder / "out"),
            "max_steps": self.steps,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": self.rows,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "optim": self.config.optim,
            "weight_decay": self.config.weight_decay,
            "adam_beta2": self.config.beta2,
            "bf16": True,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "save_strategy": "no",
            "report_to": "none",
            "logging_steps": 1,
            "disable_tqdm": True,
        }
        return kind(**settings | more)

    def model(self) -> LlamaForCausalLM:
        return load_model(self.folder / "model", self.data.tokenizer)

    def trainer(self, side: str) -> Trainer:
        return getattr(self, f"_{side}")()

    def _ours(self) -> Trainer:
        config = TrainConfig(**{**vars(self.config), "tokens_per_step": self.rows * CONTEXT})
        return PackedTrainer(
            model=use_head_loss(use_packed_attention(self.model())),
            args=self.arguments(),
            batches=StepBatches(self.data.rows, config, self.data.vocabulary, 0, 1, 0),
            tokenizer=self.data.tokenizer,
            settings={},
        )

    def _trl(self) -> Trainer:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        rows = [
            {
                "input_ids": one.input_ids.tolist(),
                "completion_mask": (one.labels() != NO_LABEL).astype(int).tolist(),
            }
            for one in self.examples
        ]
        trainer = SFTTrainer(
            model=self.model(),
            args=self.arguments(
                SFTConfig,
                packing=True,
                packing_strategy="bfd",
                max_length=CONTEXT,
                completion_only_loss=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=self.data.tokenizer,
        )
        if len(trainer.train_dataset) != self.rows:
            raise InputError(
                f"TRL packs {len(trainer.train_dataset)} rows, expected {self.rows} as here"
            )
        return trainer

    def _flattening(self) -> Trainer:
        rows = [
            {"input_ids": one.input_ids.tolist(), "labels": one.labels().tolist()}
            for one in self.examples
        ]
        passes = -(-len(rows) // self.together)
        return Trainer(
            model=self.model(),
            args=self.arguments(
                per_device_train_batch_size=self.together, gradient_accumulation_steps=passes
            ),
            train_dataset=rows,
            data_collator=DataCollatorWithFlattening(),
        )


def write_checkpoint(folder: Path, shape: str) -> None:
    """Random weights of a shape of train_step, with the tokenizer of its vocabulary: Llama 3's and
    65,536 codes, or the small one of the tracked model where ids are folded there.
    """
    if SHAPES[shape][-1] is None:
        tokenizer = merge_tokenizer(build_llama3_tokenizer(locate_llama3_vocabulary()), 65_536)
    else:
        tokenizer = load_tokenizer(SMALL_TOKENIZER)
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(shape, len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_corpus(folder: Path, count: int, codebook_size: int) -> None:
    """A codes dataset of `count` utterances with the lengths of read speech and random codes."""
    generator = np.random.default_rng(0)
    frames = np.minimum((generator.permutation(seconds_of(count)) * 50).astype(int), CONTEXT - 300)
    info = {"codec": "fake", "codebook_size": codebook_size, "frame_rate": 50.0}
    rows = [
        {
            "id": f"u{i}",
            "text": TEXT[i % 7 :][:130].strip(),
            "speaker": "",
            "language": "en",
            "seconds": int(length) / 50,
            "codes": generator.integers(0, codebook_size, length),
        }
        for i, length in enumerate(frames)
    ]
    folder.mkdir()
    write_part(folder / part_name(0), rows, info | {"source": "random", "dropped": []})
    finish(folder, 1, info)


def losses_of(task: Task, side: str) -> dict[bytes, float]:
    """Nats a labelled token of each utterance (its ids) in fp32, by the batches and the model of a
    side.
    """
    found: dict[bytes, float] = {}
    trainer = task.trainer(side)
    if side == "ours":
        for row in range(task.rows):
            examples = task.data.rows.examples(row)
            nats, tokens = utterance_losses(trainer.model, collate(examples))
            for one, mean in zip(examples, nats / tokens, strict=True):
                found[np.asarray(one.input_ids, np.int64).tobytes()] = float(mean)
        return found
    for batch in trainer.get_train_dataloader():
        ids, labels, positions = (batch[key][0] for key in ("input_ids", "labels", "position_ids"))
        with torch.no_grad():
            if side == "trl":  # what its training step calls
                nats = -trainer.model(**batch, fused_lm_head=True).log_probs[0]  # (L - 1,)
            else:
                logits = trainer.model(input_ids=ids[None], position_ids=positions[None]).logits
                nats = F.cross_entropy(logits[0, :-1].float(), labels[1:], reduction="none")
        nats = torch.cat([nats.new_zeros(1), nats])  # of the token at each position
        starts = (positions == 0).nonzero()[:, 0].tolist()
        for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
            kept = labels[start:stop] != NO_LABEL
            mean = nats[start:stop][kept].mean().item()
            found[ids[start:stop].numpy().tobytes()] = mean
    return found


def run(task: Task, side: str) -> dict[str, Any]:
    """Train with one side; tokens a CPU second, peak memory and the losses of its steps."""
    trainer, clock = task.trainer(side), StepClock()
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    tokens = sum(len(one.input_ids) for one in task.examples) * (task.steps - 1)
    return {
        "tokens_per_cpu_second": tokens / clock.spent["cpu"],
        "tokens_per_second": tokens / clock.spent["wall"],
        "peak_mb": clock.peak_mb,
        "step_losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
    }


def compare(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every side `repeats` times in turn; ratios of tokens a CPU second, ours over theirs."""
    peers, repeats = options.peers, options.repeats
    sides = ("ours", *peers)
    with tempfile.TemporaryDirectory() as name:
        task = Task(Path(name), shape, options.utterances, options.steps)
        losses = {side: losses_of(task, side) for side in sides}
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for repeat in range(repeats):
            for side in sides:
                runs[side].append(run(task, side))
                rate = runs[side][-1]["tokens_per_cpu_second"]
                print(f"{shape} {repeat + 1}/{repeats} {side}: {rate:.0f}", file=sys.stderr)
        counts = parameter_count(task.model())

    def difference(peer: str) -> float:
        return max(abs(losses[peer][ids] - mean) for ids, mean in losses["ours"].items())

    def ratio(peer: str, key: str) -> dict[str, float]:
        values = sorted(a[key] / b[key] for a, b in zip(runs["ours"], runs[peer], strict=True))
        median = float(np.median(values))
        return {"median": median, "least": values[0], "most": values[-1], "n": repeats}

    return {
        "parameters": counts,
        "utterances": len(task.examples),
        "tokens": sum(len(one.input_ids) for one in task.examples),
        "rows": task.rows,
        "utterances_of_a_flattened_batch": task.together,
        "largest_loss_difference_nats_per_token": {peer: difference(peer) for peer in peers},
        "runs": runs,
        "ratios": {peer: ratio(peer, "tokens_per_cpu_second") for peer in peers},
        "memory": {peer: ratio(peer, "peak_mb") for peer in peers},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["body-heavy", "head-heavy"], choices=SHAPES)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--utterances", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="of a run, the first not counted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", "-o", default="results/benchmarks/peers_training.json")
    options = parser.parse_args(arguments)
    packages = ["torch", "transformers", "accelerate"]
    if "trl" in options.peers:
        packages.append("trl")
        if importlib.util.find_spec("trl") is None:
            sys.exit("peers_training: the side trl needs TRL, expected: pip install trl")
    torch.set_num_threads(1)
    report = {
        **head("peers_training", packages, torch.get_num_threads(), arguments),
        "shapes": {shape: compare(shape, options) for shape in options.shapes},
    }
    path = Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    short = json.loads(json.dumps(report), parse_float=lambda text: float(f"{float(text):.5g}"))
    write_json(path, short)
    print(json.dumps({shape: one["ratios"] for shape, one in short["shapes"].items()}, indent=1))


if __name__ == "__main__":
    main()
