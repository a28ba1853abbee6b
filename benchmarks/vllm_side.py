"""vLLM as a side of peers_decoding. It runs under a Python that has vLLM, which need not be ours.

    python benchmarks/vllm_side.py MODEL DTYPE SEQUENCES CONTEXT

One JSON object a line on standard input, {"prompts": [[id]], "limits": [tokens], "sampler": {..}},
one on standard output, {"codes", "cpu", "wall"}; the first line out holds the versions. vLLM runs
as it comes, compiled; END is ignored, and no list of allowed ids slows it down.
"""

import json
import os
import sys
import time

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # CPU seconds are those of one process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def main() -> None:
    os.environ.update(SETTINGS)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    import torch
    import vllm

    model, dtype, sequences, context = sys.argv[1:5]
    engine = vllm.LLM(
        model=model,
        dtype=dtype,
        max_num_seqs=int(sequences),
        max_model_len=int(context),
        skip_tokenizer_init=True,
    )
    versions = {"vllm": vllm.__version__, "torch": torch.__version__}
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        settings = [
            vllm.SamplingParams(
                **asked["sampler"],
                max_tokens=limit,
                min_tokens=limit,
                ignore_eos=True,
                detokenize=False,
            )
            for limit in asked["limits"]
        ]
        prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
        cpu, wall = time.process_time(), time.perf_counter()
        made = engine.generate(prompts, settings, use_tqdm=False)
        spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        codes = sum(len(one.outputs[0].token_ids) for one in made)
        print(json.dumps({"codes": codes, **spent}), file=answers, flush=True)


if __name__ == "__main__":
    main()
