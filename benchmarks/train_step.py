"""One training step, ours beside the public recipe: same weights, same utterances, one process, one
thread.

The public recipe, written anew from its measured behaviour: every utterance padded to 2,048, the
chat template through the tokenizer for each sample, the head over all positions, activations
recomputed, attention masked by value (eot). `grouped` is the strongest simple baseline: batches of
like lengths, padded to their longest, labelled positions only. Variants take turns, so that a busy
machine slows all of them; CPU seconds of the process count, not the clock.

    python benchmarks/train_step.py --repeats 3 -o results/benchmarks/train_step.json
"""

import argparse
import copy
import ctypes
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import Clock, head, timed
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from llasa_core.data.packing import NO_LABEL, collate, pack_lengths, packed_windows
from llasa_core.data.text_tokenizers import build_llama3_tokenizer, locate_llama3_vocabulary
from llasa_core.files import write_json
from llasa_core.model import parameter_count, use_packed_attention
from llasa_core.prompts import Prompt
from llasa_core.tokenizer import merge_tokenizer
from llasa_core.training.loss import labelled_loss, use_head_loss, utterance_losses

CONTEXT = 2048
MEAN_SECONDS, MEDIAN_SECONDS = 9.17, 7.4  # of an utterance; log-normal
TEXT = "the quick brown fox jumps over the lazy dog while seven clever wizards calmly discuss " * 2
# hidden, layers, heads, feed-forward, entries that the ids are folded to (None: all 193,800)
SHAPES = {
    "head-heavy": (128, 4, 4, 384, None),
    "body-heavy": (512, 2, 8, 1920, 6000),  # body to head 2.6 : 1, as in the 1B
    "smoke": (32, 1, 2, 64, 500),
}


def seconds_of(count: int) -> np.ndarray:
    """The middles of `count` equal slices of the distribution: a small sample with its shape."""
    sigma = np.sqrt(2 * np.log(MEAN_SECONDS / MEDIAN_SECONDS))
    return MEDIAN_SECONDS * np.exp(sigma * stats.norm.ppf((np.arange(count) + 0.5) / count))


class Samples:
    """Rows (text, codes) in a fixed shuffled order, with ids folded to a small vocabulary."""

    def __init__(self, prompt: Prompt, count: int, folded: int | None):
        generator = np.random.default_rng(0)
        lengths = np.minimum(
            (generator.permutation(seconds_of(count)) * 50).astype(int), CONTEXT - 100
        )
        texts = [TEXT[i % 7 :][:130].strip() for i in range(count)]
        self.rows = [
            (text, generator.integers(0, 65_536, n)) for text, n in zip(texts, lengths, strict=True)
        ]
        self.text_ids = {
            text: prompt.text_ids(text) for text in texts
        }  # public rows hold them, ours are mapped
        self.prompt, self.folded = prompt, folded
        self.eot = prompt.tokenizer.convert_tokens_to_ids("<|eot_id|>")

    def fold(self, ids: torch.Tensor) -> torch.Tensor:
        return ids if self.folded is None else torch.where(ids >= 0, ids % self.folded, ids)

    def packed(self, mask_eot: bool) -> Iterator[tuple[list[int], dict]]:
        """Rows of ours as flat batches, each with the numbers of its utterances."""
        made = [self.prompt.splice("tts", self.text_ids[text], codes) for text, codes in self.rows]
        for members in pack_lengths(np.array([len(one.input_ids) for one in made]), CONTEXT):
            batch = collate([made[i] for i in members], mask_eot=mask_eot)
            yield (
                list(members),
                {
                    **batch,
                    "input_ids": self.fold(batch["input_ids"]),
                    "labels": self.fold(batch["labels"]),
                },
            )

    def public(self, index: int) -> dict:
        """One utterance as the public script loads it: the template through the tokenizer, lists of
        0-d tensors.

        Masks and labels are found by value, over all positions.
        """
        text, codes = self.rows[index]
        ids, tokenizer = self.prompt.vocabulary, self.prompt.tokenizer
        stored = np.full(CONTEXT, self.eot, np.int32)  # a row of its memory map
        parts = (
            [ids.text_understanding_start, *self.text_ids[text], ids.text_understanding_end],
            [ids.speech_generation_start, *ids.codes_to_ids(codes), ids.speech_generation_end],
        )
        said = len(parts[0])
        length = said + len(parts[1])
        stored[:length] = np.concatenate(parts)
        row = torch.tensor(stored, dtype=torch.long)
        turns = [
            {"role": "user", "content": "Convert the text to speech:<|TEXT_UNDERSTANDING_START|>"}
        ]
        turns += [{"role": "assistant", "content": "<|SPEECH_GENERATION_START|>"}]
        shell = tokenizer.apply_chat_template(
            turns, date_string=self.prompt.date, return_dict=False
        )
        whole: list = []
        for token in shell:
            if token == ids.text_understanding_start:
                whole += list(row[:said])
            elif token == ids.speech_generation_start:
                whole += list(row[said:length])
            else:
                whole.append(torch.tensor(token))
        whole = torch.tensor(whole + [self.eot] * (CONTEXT - len(whole)))
        (begin,), (end,) = (
            torch.where(whole == ids.speech_generation_start),
            torch.where(whole == ids.speech_generation_end),
        )
        labels = torch.full_like(whole, NO_LABEL)
        labels[begin : end + 1] = whole[begin : end + 1]
        # It hands over lists of 0-d tensors, not tensors.
        return {
            "input_ids": list(whole),
            "labels": list(labels),
            "attention_mask": list((whole != self.eot).long()),
        }

    def grouped(self, size: int) -> list[dict]:
        """Batches of `size` utterances of like length, padded; lengths decide the mask."""
        examples = sorted(
            (self.prompt.tts_example(*row) for row in self.rows), key=lambda one: len(one.input_ids)
        )
        batches = []
        for group in (examples[i : i + size] for i in range(0, len(examples), size)):
            longest = len(group[-1].input_ids)
            stacked = {"input_ids": [], "labels": [], "attention_mask": []}
            for one in group:
                room = longest - len(one.input_ids)
                stacked["input_ids"].append(np.pad(one.input_ids, (0, room)))
                stacked["labels"].append(np.pad(one.labels(), (0, room), constant_values=NO_LABEL))
                stacked["attention_mask"].append(
                    np.pad(np.ones(len(one.input_ids), np.int64), (0, room))
                )
            tensors = {
                name: torch.from_numpy(np.stack(arrays).astype(np.int64))
                for name, arrays in stacked.items()
            }
            for name in ("input_ids", "labels"):
                tensors[name] = self.fold(tensors[name])
            batches.append(tensors)
        return batches


def public_step(model, samples, batch_size, labelled, bf16):
    """Forward and backward over all utterances, padded to the context; each one's summed loss."""
    losses = []
    for first in range(0, len(samples.rows), batch_size):
        chosen = range(first, min(first + batch_size, len(samples.rows)))
        batch = collated([samples.public(i) for i in chosen])
        labels = samples.fold(batch["labels"])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(
                input_ids=samples.fold(batch["input_ids"]),
                attention_mask=batch["attention_mask"],
                use_cache=False,
            ).logits.float()
        each = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none"
        )
        (each.sum() / labelled).backward()
        losses += each.detach().view(len(chosen), -1).sum(1).tolist()
    return losses


def collated(rows: list[dict]) -> dict:
    """Lists of 0-d tensors to one tensor each, as Hugging Face's default collator does."""
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def grouped_step(model, samples, batch_size, labelled, bf16):
    """The same over batches of like lengths, the head at labelled positions only."""
    for batch in samples.grouped(batch_size):
        kept = batch["labels"][:, 1:] != NO_LABEL
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden = model.model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
            )
            logits = model.lm_head(hidden.last_hidden_state[:, :-1][kept]).float()
        (
            F.cross_entropy(logits, batch["labels"][:, 1:][kept], reduction="sum") / labelled
        ).backward()


def packed_step(model, samples, mask_eot, labelled, bf16):
    """Ours, a packed row at a time as the trainer's default is."""
    for _, batch in samples.packed(mask_eot):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total, _ = labelled_loss(model, batch)
        (total / labelled).backward()


def packed_losses(model, samples, mask_eot):
    """Each utterance's summed loss out of packed rows, fp32, no gradient."""
    losses = np.zeros(len(samples.rows))
    for members, batch in samples.packed(mask_eot):
        losses[members] = utterance_losses(model, batch)[0]
    return losses.tolist()


def high_water(reset: bool = False) -> float:
    """Peak resident memory of this process in MB since the last reset; Linux only."""
    if reset:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def measured(step, model) -> dict:
    """CPU and wall seconds, peak memory above the baseline, and gradient norm of one step."""
    model.zero_grad(set_to_none=True)
    before = high_water(reset=True)
    spent, losses = timed(step)
    entry = {"cpu_seconds": spent["cpu"], "seconds": spent["wall"]}
    entry["peak_mb"] = high_water() - before
    norms = [one.grad.norm() for one in model.parameters() if one.grad is not None]
    entry["grad_norm"] = torch.stack(norms).norm().item()
    return {**entry, "losses": losses}


def llama_config(shape: str, vocabulary_size: int) -> LlamaConfig:
    """The configuration of one of SHAPES."""
    hidden, layers, heads, feed_forward, _ = SHAPES[shape]
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=feed_forward,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
    )


def build(shape: str) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """Two equal models: transformers' attention with recomputed activations, and ours."""
    config = llama_config(shape, SHAPES[shape][-1] or 193_800)
    torch.manual_seed(0)
    public = LlamaForCausalLM(
        copy.deepcopy(config)
    ).train()  # the attention in use is kept in the config
    ours = use_head_loss(use_packed_attention(LlamaForCausalLM(copy.deepcopy(config)))).train()
    ours.load_state_dict(public.state_dict())
    return public, ours


def compare(shape: str, prompt: Prompt, utterances: int, repeats: int) -> dict:
    """Every variant `repeats` times in turn; ratios of CPU seconds with minimum and maximum."""
    public, ours = build(shape)
    samples = Samples(prompt, utterances, SHAPES[shape][4])
    rows = [batch for _, batch in samples.packed(False)]
    labelled = sum(int((row["labels"][0, 1:] != NO_LABEL).sum()) for row in rows)
    tokens = sum(row["input_ids"].shape[1] for row in rows)
    size = (
        1 if SHAPES[shape][4] is None else 4
    )  # whole-vocabulary logits of 4 x 2048 positions take 6 GB, twice
    plain = build(shape)[0]
    public.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    steps = {
        "public": (public, lambda: public_step(public, samples, size, labelled, False)),
        "public_bf16": (public, lambda: public_step(public, samples, size, labelled, True)),
        "grouped": (plain, lambda: grouped_step(plain, samples, 4, labelled, False)),
        "packed": (ours, lambda: packed_step(ours, samples, False, labelled, False)),
        "packed_mask_eot": (ours, lambda: packed_step(ours, samples, True, labelled, False)),
        "packed_bf16": (ours, lambda: packed_step(ours, samples, False, labelled, True)),
    }
    for name in ("grouped", "packed", "packed_bf16"):  # first calls choose kernels
        steps[name][1]()
    runs: dict[str, list[dict]] = {name: [] for name in steps}
    for repeat in range(repeats):
        for name, (model, step) in steps.items():
            runs[name].append(measured(step, model))
            print(
                f"{shape} {repeat + 1}/{repeats} {name}: {runs[name][-1]['cpu_seconds']:.2f} CPU s",
                file=sys.stderr,
            )
    theirs, equal = runs["public"][0]["losses"], packed_losses(ours, samples, True)
    counts = [len(codes) + 2 for _, codes in samples.rows]
    difference = max(abs(a - b) / n for a, b, n in zip(theirs, equal, counts, strict=True))

    def ratio(slow: str, fast: str, key: str = "cpu_seconds") -> dict:
        values = sorted(a[key] / b[key] for a, b in zip(runs[slow], runs[fast], strict=True))
        return {
            "median": float(np.median(values)),
            "least": values[0],
            "most": values[-1],
            "n": repeats,
        }

    variants = {
        name: {
            "tokens_per_cpu_second": tokens
            / float(np.median([one["cpu_seconds"] for one in many])),
            "tokens_per_second": tokens / float(np.median([one["seconds"] for one in many])),
            "peak_mb": float(np.median([one["peak_mb"] for one in many])),
            "grad_norm": many[0]["grad_norm"],
            "repeats": [
                {key: one[key] for key in ("cpu_seconds", "seconds", "peak_mb")} for one in many
            ],
        }
        for name, many in runs.items()
    }
    return {
        "utterances": utterances,
        "tokens": tokens,
        "padded_share": 1 - tokens / (utterances * CONTEXT),
        "parameters": parameter_count(ours),
        "batch_of_public": size,
        "largest_loss_difference_nats_per_token": difference,
        "variants": variants,
        "ratios": {
            "fp32 over public fp32": ratio("public", "packed"),
            "fp32 with mask_eot over public fp32": ratio("public", "packed_mask_eot"),
            "bf16 over public fp32": ratio("public", "packed_bf16"),
            "bf16 over public bf16": ratio("public_bf16", "packed_bf16"),
            "fp32 over grouped fp32": ratio("grouped", "packed"),
            "peak memory, fp32 over public fp32": ratio("packed", "public", "peak_mb"),
            "peak memory, bf16 over public bf16": ratio("packed_bf16", "public_bf16", "peak_mb"),
        },
    }


def data_loading(prompt: Prompt, count: int) -> dict:
    """CPU seconds a sample to assemble it, both ways, and how full packed rows get."""
    samples = Samples(prompt, count, None)
    samples.public(0), list(samples.packed(False))
    clock = Clock()
    for index in range(count):
        collated([samples.public(index)])
    theirs = clock.cpu / count
    clock = Clock()
    for _ in range(10):
        list(samples.packed(False))
    ours = clock.cpu / (10 * count)
    generator = np.random.default_rng(1)
    lengths = (generator.permutation(seconds_of(20_000)) * 50).astype(int) + 75
    kept = lengths[lengths <= CONTEXT]
    rows = [row for window in packed_windows(kept, CONTEXT, (0, 0)) for row in window]
    return {
        "public_seconds_per_sample": theirs,
        "ours_seconds_per_sample": ours,
        "ratio": theirs / ours,
        "samples": count,
        "packing_fill": float(kept.sum() / (len(rows) * CONTEXT)),
        "packed_utterances": len(kept),
        "dropped_overlong": int(len(lengths) - len(kept)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="all", choices=("all", *SHAPES))
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--out", required=True, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    prompt = Prompt(merge_tokenizer(build_llama3_tokenizer(locate_llama3_vocabulary()), 65_536))
    shapes = ["head-heavy", "body-heavy"] if options.shape == "all" else [options.shape]
    report = {
        **head("train_step", ("torch", "transformers"), torch.get_num_threads()),
        "shapes": {
            shape: compare(shape, prompt, options.utterances, options.repeats) for shape in shapes
        },
        "data": data_loading(prompt, 50),
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(options.out), report)
    print(
        json.dumps({shape: entry["ratios"] for shape, entry in report["shapes"].items()}, indent=1)
    )


if __name__ == "__main__":
    main()
