"""Codes per second at 64 utterances against one-by-one `model.generate`, as the public inference
example does it.

    python benchmarks/decoding.py                         writes results/benchmarks/decoding.json

Random weights of two shapes: head-heavy (the released vocabulary, a small body) and body-heavy
(body to head as in the 1B model, 2.6 to 1). Both sides have the same prompts, lengths and sampler
(temperature, top_k), run in this process on one thread, and take turns; the ratio is of CPU
seconds, because the machine is shared. Lengths are fixed: END is not allowed before them. The
public side samples from the whole vocabulary, ours from the speech codes and END.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from measuring import head, timed
from transformers import LlamaConfig, LlamaForCausalLM

from llasa_core.files import write_json
from llasa_core.synthesis.decoding import Answers, decode
from llasa_core.synthesis.sampling import Sampling

MODELS = {
    "head-heavy": {
        "vocab_size": 193_800,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "body-heavy": {
        "vocab_size": 11_424,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
}
PARTS = 4  # turns that the two sides take


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options.add_argument("--utterances", type=int, default=64)
    options.add_argument(
        "--codes",
        type=int,
        nargs=2,
        default=[60, 200],
        help="fewest and most codes of an utterance",
    )
    options.add_argument(
        "--prompt", type=int, nargs=2, default=[60, 110], help="fewest and most tokens of a prompt"
    )
    options.add_argument("--temperature", type=float, default=0.8)
    options.add_argument("--top-k", type=int, default=50)
    options.add_argument("--slots", type=int, nargs="+", default=[32, 64])
    options.add_argument("--out", default="results/benchmarks/decoding.json")
    options = options.parse_args(arguments)
    torch.set_num_threads(1)
    report = {
        **head("decoding", ("torch", "transformers"), torch.get_num_threads(), arguments),
        "utterances": options.utterances,
        "sampler": {"temperature": options.temperature, "top_k": options.top_k, "top_p": 1.0},
        "models": [measured(name, options) for name in options.models],
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(options.out), report)
    print(json.dumps(report["models"], indent=1))


def measured(name: str, options: argparse.Namespace) -> dict:
    """Codes a CPU second of `generate` and our loop at each number of slots, and their ratio."""
    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=2048, tie_word_embeddings=True, **MODELS[name])
    model = LlamaForCausalLM(config).eval()
    text = config.vocab_size - (
        65_536 if config.vocab_size > 100_000 else 8_192
    )  # text and markers stand before codes
    answers = Answers(text, config.vocab_size, text - 3)
    generator = np.random.default_rng(0)
    prompts = [
        generator.integers(
            0, text - 8, generator.integers(options.prompt[0], options.prompt[1] + 1)
        ).astype(np.int32)
        for _ in range(options.utterances)
    ]
    limits = generator.integers(options.codes[0], options.codes[1] + 1, options.utterances).tolist()
    sampling = Sampling(options.temperature, options.top_k, min_codes=max(limits))
    public(model, prompts[:1], [4], answers, options)  # everything is warm
    list(decode(model, prompts[:2], [4, 4], [0, 0], sampling, answers))
    sides = {"generate": [], **{f"slots_{slots}": [] for slots in options.slots}}
    for part in range(PARTS):
        chosen = slice(part, None, PARTS)
        sides["generate"].append(
            turn(lambda c=chosen: public(model, prompts[c], limits[c], answers, options))
        )
        for slots in options.slots:
            if (
                part == 0
            ):  # all utterances at once are one turn: a part of them would not fill the slots
                run = turn(lambda s=slots: ours(model, prompts, limits, sampling, answers, s))
                sides[f"slots_{slots}"].append(run)
    again = {
        slots: turn(lambda s=slots: ours(model, prompts, limits, sampling, answers, s))
        for slots in options.slots
    }
    for slots, run in again.items():
        sides[f"slots_{slots}"].append(run)
    total = {
        side: {key: sum(run[key] for run in runs) for key in runs[0]}
        for side, runs in sides.items()
    }
    head = model.get_output_embeddings().weight.numel()
    row = {"model": name, "config": MODELS[name], "head_parameters": head}
    row["body_parameters"] = sum(p.numel() for p in model.parameters()) - head
    row["body_to_head"] = row["body_parameters"] / head
    for side, spent in total.items():
        row[side] = {
            "codes": spent["codes"],
            "cpu_seconds": spent["cpu"],
            "wall_seconds": spent["wall"],
            "codes_per_cpu_second": spent["codes"] / spent["cpu"],
            "codes_per_cpu_second_by_turn": [run["codes"] / run["cpu"] for run in sides[side]],
        }
    for slots in options.slots:
        ratio = (
            row[f"slots_{slots}"]["codes_per_cpu_second"] / row["generate"]["codes_per_cpu_second"]
        )
        turns = [
            run / one
            for run in row[f"slots_{slots}"]["codes_per_cpu_second_by_turn"]
            for one in row["generate"]["codes_per_cpu_second_by_turn"]
        ]
        row[f"slots_{slots}"] |= {"ratio": ratio, "lowest_ratio_of_turns": min(turns)}
    return json.loads(json.dumps(row), parse_float=lambda text: round(float(text), 4))


def turn(work) -> dict:
    """{"codes": what `work` returned, "cpu", "wall": seconds}."""
    seconds, codes = timed(work)
    return {"codes": codes, **seconds}


def public(model, prompts, limits, answers: Answers, options: argparse.Namespace) -> int:
    """One `generate` an utterance; returns the tokens drawn."""
    drawn = 0
    for prompt, limit in zip(prompts, limits, strict=True):
        ids = torch.from_numpy(prompt).long()[None]
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=options.temperature > 0,
                temperature=options.temperature or None,
                top_k=options.top_k,
                top_p=1.0,
                min_new_tokens=limit,
                max_new_tokens=limit,
                eos_token_id=answers.end,
                pad_token_id=answers.end,
            )
        drawn += out.shape[1] - len(prompt)
    return drawn


def ours(model, prompts, limits, sampling: Sampling, answers: Answers, slots: int) -> int:
    """The loop; returns the tokens drawn."""
    return sum(
        row.steps
        for _, row in decode(model, prompts, limits, range(len(prompts)), sampling, answers, slots)
    )


if __name__ == "__main__":
    main()
