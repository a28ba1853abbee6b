"""How the 8 + N new vocabulary rows start, and what it does to the first 200 steps: mean of the old
rows, plus noise.

A small Llama first learns to repeat the corpus' sentences as text, so that its rows and its body
are trained ones; then it gets the speech rows, once for each noise (0: the public way, every new
row the mean of the old), tied and untied.

    python benchmarks/init_rows.py artifacts/codes/builtin/train -o
    results/benchmarks/init_rows.json
"""

import argparse
import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from measuring import Clock, head
from scipy import stats

from llasa_core.data.dataset import read_codes
from llasa_core.data.examples import ExampleSource
from llasa_core.data.packing import PackedRows, collate
from llasa_core.data.text_tokenizers import build_mini_tokenizer
from llasa_core.files import write_json
from llasa_core.model import model_config, resize_vocabulary, use_packed_attention
from llasa_core.prompts import Prompt
from llasa_core.tokenizer import merge_tokenizer
from llasa_core.training.loss import labelled_loss, use_head_loss

NOISES = (0.0, 0.1, 1.0)
MARKS = (1, 10, 25, 50, 100, 200)


class Conversations:
    """The texts of a codes dataset as conversations that repeat them."""

    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        said = self.texts[index]
        return {
            "id": str(index),
            "messages": [
                {"role": "user", "content": f"Repeat: {said}"},
                {"role": "assistant", "content": said},
            ],
        }


def steps(model, rows, count, peak_lr, seed):
    """Train and return the loss of each step."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak_lr, betas=(0.9, 0.95), weight_decay=0.01
    )
    losses = []
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * min(1.0, (step + 1) / 10)
        with torch.autocast("cpu", torch.bfloat16):
            total, labelled = labelled_loss(model, collate(rows.examples(step)))
        loss = total / labelled
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("codes", help="codes folder of the corpus")
    parser.add_argument("-o", "--out", required=True, help="JSON file")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--text-steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peak-lr", type=float, default=1e-3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    codes = read_codes(options.codes)
    texts = [codes[i]["text"] for i in range(len(codes))]
    text_tokenizer = build_mini_tokenizer(sorted(set(texts)), 2048)
    tokenizer = merge_tokenizer(copy.deepcopy(text_tokenizer), codes.meta["codebook_size"])
    prompt = Prompt(tokenizer)
    chat, speech = ExampleSource(Conversations(texts), prompt, "chat"), ExampleSource(codes, prompt)
    runs = []
    for tied in (True, False):
        config = model_config(options.size, prompt.vocabulary.text_size)
        config.tie_word_embeddings = tied
        torch.manual_seed(0)
        base = use_head_loss(use_packed_attention(transformers.LlamaForCausalLM(config)))
        text_loss = steps(base, PackedRows([chat], 2048, 0), options.text_steps, 2e-3, 0)[-20:]
        for seed in range(options.seeds):
            rows = PackedRows([speech], 2048, seed)
            for noise in NOISES:
                clock = Clock()
                model = resize_vocabulary(copy.deepcopy(base), prompt.vocabulary.size, noise, seed)
                use_head_loss(model)
                losses = steps(model, rows, options.steps, options.peak_lr, seed)
                run = {
                    "tied": tied,
                    "noise": noise,
                    "seed": seed,
                    "text_loss": float(np.mean(text_loss)),
                }
                run |= {"cpu_seconds": round(clock.cpu, 1), "losses": [round(x, 4) for x in losses]}
                runs.append(run)
                print(
                    json.dumps({key: run[key] for key in ("tied", "noise", "seed")}),
                    losses[0],
                    losses[-1],
                    file=sys.stderr,
                )
    summary = []
    for tied in (True, False):
        for noise in NOISES:
            chosen = [
                run["losses"] for run in runs if run["tied"] == tied and run["noise"] == noise
            ]
            for mark in (mark for mark in MARKS if mark <= options.steps):
                values = [
                    float(np.mean(losses[max(0, mark - 5) : mark] if mark > 1 else losses[:1]))
                    for losses in chosen
                ]
                entry = {
                    "tied": tied,
                    "noise": noise,
                    "step": mark,
                    "loss": float(np.mean(values)),
                    "n": len(values),
                }
                if len(values) > 1:  # 95 % of Student's t over the seeds
                    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
                    entry |= {"low": entry["loss"] - half, "high": entry["loss"] + half}
                summary.append(entry)
    settings = {key: value for key, value in vars(options).items() if key not in ("codes", "out")}
    report = {
        **head("init_rows", ("torch", "transformers"), torch.get_num_threads()),
        "settings": settings,
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(options.out), {**report, "summary": summary, "runs": runs})


if __name__ == "__main__":
    main()
