"""Opt-in: LLASA_TEST_VLLM=/path/to/python of an environment with vLLM (see
llasa_core/synthesis/vllm.py).
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny_models import TEXTS, speaking_llama

from llasa_core.errors import InputError
from llasa_core.manifest import Request
from llasa_core.synthesis.decoding import Row, decode
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "results" / "checkpoints" / "mini-llasa"
VLLM = os.environ.get("LLASA_TEST_VLLM")
OTHER_SIDE = """
import json, sys
import numpy as np
from llasa_core.synthesis.decoding import Answers
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.vllm import VllmEngine
asked = json.load(open(sys.argv[1]))
engine = VllmEngine(asked["model"], "float32", 8)
prompts = [np.array(prompt) for prompt in asked["prompts"]]
rows = {}
for name, sampling in (("greedy", Sampling(0.0)), ("hot", Sampling(1.5, 50, 0.95))):
    answers = Answers(*asked["answers"])
    found = engine.decode(prompts, asked["limits"], [1] * len(prompts), sampling, answers)
    rows[name] = [[index, row.ids.tolist(), row.reason, row.steps] for index, row in found]
json.dump(rows, open(sys.argv[2], "w"))
"""


@pytest.mark.skipif(not VLLM, reason="LLASA_TEST_VLLM names no Python with vLLM")
def test_vllm_gives_the_same_greedy_codes_and_only_codes_when_it_samples(tmp_path):
    synthesizer = Synthesizer.from_folder(MODEL, "mini")
    texts = [
        "Must her friend watch the small ladder soon?",
        "Call Anna.",
        "Thank you for calling the hospital.",
    ]
    prompts = [synthesizer.prompt.tts_prompt(text, "ava") for text in texts]
    limits, answers = [60, 200, 120], synthesizer.speech_answers
    asked = {
        "model": str(MODEL),
        "prompts": [prompt.tolist() for prompt in prompts],
        "limits": limits,
    }
    asked["answers"] = [answers.first, answers.stop, answers.end]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    own = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    subprocess.run(
        [VLLM, "-c", OTHER_SIDE, str(tmp_path / "asked.json"), str(tmp_path / "rows.json")],
        check=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, **own, "PYTHONPATH": str(ROOT)},
    )
    theirs = json.loads((tmp_path / "rows.json").read_text())
    ours = dict(decode(synthesizer.model, prompts, limits, [0] * 3, Sampling(0.0), answers))
    assert len(theirs["greedy"]) == len(ours)
    for index, ids, reason, steps in theirs["greedy"]:
        one = ours[index]
        assert (ids, reason, steps) == (one.ids.tolist(), one.reason, one.steps), index
    assert {one.reason for one in ours.values()} == {"end", "length"}
    for _, ids, _, _ in theirs["hot"]:
        assert ids and all(answers.first <= token < answers.stop for token in ids)


def test_engine_takes_the_place_of_the_loop(mini_tokenizer):
    from llasa_core.codecs.fake import FakeCodec
    from llasa_core.tokenizer import vocabulary_of

    vocabulary = vocabulary_of(mini_tokenizer)

    class Counting:
        name = "counting"

        def decode(self, prompts, limits, seeds, sampling, answers):
            for index in range(len(prompts)):
                yield (
                    index,
                    Row(answers.first + np.arange(5 + index), "end", float("nan"), 6 + index),
                )

    synthesizer = Synthesizer(
        speaking_llama(vocabulary), mini_tokenizer, FakeCodec(), engine=Counting()
    )
    spoken = list(synthesizer.speak([Request(f"u{i}", text) for i, text in enumerate(TEXTS[:3])]))
    assert [one.generated.codes.tolist() for one in spoken] == [
        list(range(5 + i)) for i in range(3)
    ]
    assert synthesizer.settings()["engine"] == "counting"
    with pytest.raises(InputError, match="mask_eot"):
        Synthesizer(
            speaking_llama(vocabulary),
            mini_tokenizer,
            FakeCodec(),
            mask_eot=True,
            engine=Counting(),
        )
