"""What only a GPU can tell, in one run: exactness of attention and head, one training step of the
1B shape, decoding, encoding, and whether bf16 sampling repeats.

    benchmarks/on_gpu.sh                                  writes results/benchmarks/gpu.json

Random weights, no network. `--shape smoke --device cpu` runs the same code with tiny shapes, so
that the first run on a GPU is not the first run. Each part that fails says so in the report, and
the others go on; the exit status is then 1.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import head
from transformers import LlamaForCausalLM

from llasa_core.codecs.xcodec2 import Xcodec2Codec
from llasa_core.files import write_json
from llasa_core.model import flops_per_token, model_config, packed_attention, use_packed_attention
from llasa_core.synthesis.decoding import Answers, decode
from llasa_core.synthesis.sampling import Sampling
from llasa_core.training.loss import labelled_loss, linear_cross_entropy, use_head_loss

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bf16, dense, FLOP/s, by the makers
# size of the model, vocabulary, lengths of documents in a step, utterances decoded, codes of each,
# seconds of a clip
SHAPES = {
    "1b": ("1b", 193_800, [300, 512, 200, 700, 336] * 8, (1, 16, 128), 250, 5.0),
    "smoke": ("nano", 600, [30, 17, 40], (1, 3), 6, 0.5),
}


def attention(device: torch.device, heads: tuple[int, int, int], lengths: list[int]) -> dict:
    """Packed attention in bf16 against SDPA in fp32, document by document: largest differences."""
    torch.manual_seed(0)
    query, groups, width = heads
    total = sum(lengths)
    sides = {}
    made = [torch.randn(1, n, total, width, device=device) for n in (query, groups, groups)]
    for name, kind in (("packed", torch.bfloat16), ("sdpa", torch.float32)):
        inputs = [one.to(torch.bfloat16).to(kind).requires_grad_() for one in made]
        if name == "packed":
            out, _ = packed_attention(None, *inputs, None, None, document_lengths=lengths)
        else:
            parts = zip(*(one.split(lengths, dim=2) for one in inputs), strict=True)
            out = torch.cat(
                [
                    F.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True)
                    for one in parts
                ],
                dim=2,
            ).transpose(1, 2)
        out.float().square().sum().backward()
        sides[name] = [out.detach().float(), *(one.grad.float() for one in inputs)]
    names = ("output", "of_query", "of_key", "of_value")
    return {
        name: {"difference": (a - b).abs().max().item(), "largest": b.abs().max().item()}
        for name, a, b in zip(names, sides["packed"], sides["sdpa"], strict=True)
    }


def fused_head(device: torch.device, vocabulary: int, width: int, labels: int) -> dict:
    """The fused head in bf16 against cross-entropy in fp64: relative errors of loss, gradient."""
    torch.manual_seed(0)
    hidden = torch.randn(labels, width, device=device, dtype=torch.bfloat16)
    weight = (torch.randn(vocabulary, width, device=device) * width**-0.5).requires_grad_()
    targets = torch.randint(vocabulary, (labels,), device=device)
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    exact = weight.detach().to(torch.bfloat16).double().requires_grad_()
    wanted = torch.zeros((), dtype=torch.float64, device=device)
    for rows in torch.arange(labels, device=device).split(256):
        part = F.cross_entropy(hidden[rows].double() @ exact.T, targets[rows], reduction="sum")
        part.backward()
        wanted += part.detach()
    off = (weight.grad.double() - exact.grad).norm() / exact.grad.norm()
    return {"loss": (loss.item() / wanted.item() - 1), "gradient": off.item(), "labels": labels}


def training_step(device, model, lengths: list[int], vocabulary: int) -> dict:
    """Seconds, MFU and memory of a packed step; beside it the public recipe's: each utterance in a
    row of 2,048, logits of all positions, activations recomputed.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (1, sum(lengths)), generator=generator).to(device)
    batch = {
        "input_ids": ids,
        "labels": ids.clone(),
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None].to(device),
        "cu_seqlens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
    }
    longest = min(2048, model.config.max_position_embeddings)

    def packed():
        labelled_loss(model, batch)[0].backward()

    def public():
        row = torch.zeros(1, longest, dtype=torch.long, device=device)
        row[0, : lengths[0]] = ids[0, : lengths[0]]
        model(input_ids=row, labels=row, use_cache=False).loss.backward()

    report = {}
    for name, work, tokens in (("packed", packed, sum(lengths)), ("public", public, lengths[0])):
        model.train()
        if name == "public":
            model.gradient_checkpointing_enable()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = []
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            seconds.append(clocked(device, lambda work=work: autocast(device, work)))
        flops = flops_per_token(model.config, int(np.mean(lengths))) * tokens
        report[name] = {
            "seconds": min(seconds),
            "tokens": tokens,
            "flops_a_second": flops / min(seconds),
        }
        report[name]["tokens_a_second"] = tokens / min(seconds)
        if device.type == "cuda":
            report[name]["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            kind = torch.cuda.get_device_name(device)
            if peak := next((PEAK[one] for one in PEAK if one in kind), None):
                report[name]["mfu"] = report[name]["flops_a_second"] / peak
    model.gradient_checkpointing_disable()
    return report


def decoding(device, model, counts: tuple[int, ...], codes: int, vocabulary: int) -> dict:
    """Codes a second at each number of utterances, and the share of utterances whose codes are the
    same again, and the same in another batch.
    """
    text = vocabulary // 3
    answers, generator = Answers(text, vocabulary, text - 3), np.random.default_rng(0)
    prompts = [generator.integers(0, text - 8, 40).astype(np.int32) for _ in range(max(counts))]
    sampling, report, first = Sampling(0.8, 50, min_codes=codes), {}, {}
    model.eval()

    def drawn(count: int) -> dict[int, list[int]]:
        limits = [codes] * count
        rows = decode(model, prompts[:count], limits, range(count), sampling, answers, count)
        return {index: row.ids.tolist() for index, row in rows}

    for count in counts:
        drawn(1)
        seconds = clocked(device, lambda count=count: first.update({count: drawn(count)}))
        report[f"codes_a_second_{count}"] = count * codes / seconds
    most = max(counts)
    again, alone = drawn(most), drawn(1)
    same = np.mean([again[i] == first[most][i] for i in range(most)])
    report["same_again"], report["first_same_alone"] = float(same), alone[0] == again[0]
    return report


def encoding(device, codec: Xcodec2Codec, seconds: float) -> dict:
    """Real-time factor of X-codec2 in fp32 and under bf16, and the share of equal codes."""
    wave = np.random.default_rng(0).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
    found, report = {}, {}

    def exact():
        found["fp32"] = codec.encode([wave])[0]

    def half():
        with torch.autocast(device.type, torch.bfloat16):
            found["bf16"] = codec.encode([wave])[0]

    for name, work in (("fp32", exact), ("bf16", half)):
        work()
        report[f"{name}_seconds_a_second"] = seconds / clocked(device, work)
    report["equal_codes"] = float(np.mean(found["fp32"] == found["bf16"]))
    return report


def random_codec(device: torch.device, shape: str) -> Xcodec2Codec:
    """X-codec2 with random weights, of its real size or tiny."""
    from transformers import Wav2Vec2BertConfig, Xcodec2Config, Xcodec2Model

    config = Xcodec2Config()
    if shape == "smoke":
        semantic = Wav2Vec2BertConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        config = Xcodec2Config(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            encoder_hidden_size=4,
            quantization_dim=96,
            semantic_model_config=semantic,
        )
    torch.manual_seed(0)
    return Xcodec2Codec(Xcodec2Model(config).to(device))


def autocast(device: torch.device, work) -> None:
    with torch.autocast(device.type, torch.bfloat16):
        work()


def clocked(device: torch.device, work) -> float:
    """Seconds of `work`, the GPU's included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--shape", default="1b", choices=tuple(SHAPES))
    options.add_argument("--device", default="cuda")
    options.add_argument("--out", default="results/benchmarks/gpu.json")
    options = options.parse_args(arguments)
    device = torch.device(options.device)
    size, vocabulary, lengths, counts, codes, seconds = SHAPES[options.shape]
    report = head("on_gpu", ("torch", "transformers"), torch.get_num_threads(), arguments)
    if device.type == "cuda":
        report["device"] = torch.cuda.get_device_name(device)
    report |= {"shape": options.shape, "parts": {}}
    torch.manual_seed(0)
    with device:
        model = use_packed_attention(LlamaForCausalLM(model_config(size, vocabulary)))
    use_head_loss(model)
    config = model.config
    heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    heads = (4, 2, 32) if options.shape == "smoke" else heads
    parts = {
        "attention": lambda: attention(device, heads, lengths[:5]),
        "head": lambda: fused_head(device, vocabulary, config.hidden_size, 16 * codes),
        "training_step": lambda: training_step(device, model, lengths, vocabulary),
        "decoding_bf16": lambda: decoding(
            device, model.to(torch.bfloat16), counts, codes, vocabulary
        ),
        "encoding": lambda: encoding(device, random_codec(device, options.shape), seconds),
    }
    for name, part in parts.items():
        try:
            report["parts"][name] = part()
        except Exception as error:  # of CUDA, of a kernel, of memory: the other parts still tell
            reason = " ".join(str(error).split())[:300]
            report["parts"][name] = {"failed": f"{type(error).__name__}: {reason}"}
        print(name, json.dumps(report["parts"][name]), flush=True)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(options.out), report)
    return int(any("failed" in part for part in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
