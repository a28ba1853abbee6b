"""What best-of-16 costs against 16 independent runs, and partial audio decoded whole against from a
window.

    python benchmarks/search.py [--texts 16]          writes results/benchmarks/search.json

Both sides speak the same candidates with the same verifiers in this process on one thread; the
ratio is of CPU seconds, because the machine is shared. An independent run is one utterance alone,
its own prompt computed, its own audio heard.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measuring import head, timed

from llasa_core import judges
from llasa_core.codecs.roundtrip import select
from llasa_core.evaluation.scoring import embed_references
from llasa_core.files import publish
from llasa_core.manifest import Request
from llasa_core.search.cost import Cost
from llasa_core.search.search import search
from llasa_core.search.strategy import Rule, Strategy
from llasa_core.search.verifiers import VoiceVerifier, WordsVerifier, judges_of
from llasa_core.synthesis.sampling import Sampling, candidate_seed
from llasa_core.synthesis.synthesizer import Synthesizer

SAMPLING = Sampling(temperature=0.8)
N = 16


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--texts", type=int, default=16)
    options.add_argument("--model", default="results/checkpoints/mini-llasa")
    options.add_argument("--manifest", default="artifacts/builtin/test.jsonl")
    options.add_argument("--voices", default="artifacts/builtin/dev.jsonl")
    options.add_argument("--out", default="results/benchmarks/search.json")
    options = options.parse_args()
    torch.set_num_threads(1)
    synthesizer = Synthesizer.from_folder(options.model, slots=64)
    embedder = judges.load_speaker_embedder("resemblyzer", device="cpu")
    verifiers = {
        "words": WordsVerifier(judges.load_transcriber("moonshine-tiny.en", threads=1)),
        "voice": VoiceVerifier(embedder, embed_references(options.voices, embedder).centroids()),
    }
    requests = [
        Request(item.id, item.text, item.speaker)
        for item in select(options.manifest, options.texts)
    ]
    list(
        search(synthesizer, requests[:1], Strategy(candidates=2), verifiers, SAMPLING)
    )  # everything is warm

    together, cost = timed(
        lambda: searched(synthesizer, requests, Strategy(candidates=N), verifiers)
    )
    apart, alone = timed(lambda: independent(synthesizer, requests, verifiers))
    result = {
        **head("search", ("torch", "transformers"), torch.get_num_threads()),
        "best_of_16": {
            "cpu_seconds_together": together["cpu"],
            "cpu_seconds_apart": apart["cpu"],
            "share": together["cpu"] / apart["cpu"],
            "cpu_seconds_of_verifiers_together": cost["cost"].verifier_cpu_seconds,
            "same_choices": cost["chosen"] == alone,
            "codes_and_ends": cost["cost"].generated_tokens,
        },
    }
    # The beams of a search by voice to the end: the decoder's work with each way of hearing them.
    for seconds in (1.0, 2.0, 40.0):
        ways = {}
        for context in (0, 25, 50):
            strategy = Strategy(
                "partial-prm",
                4,
                4,
                4,
                prefix_seconds=seconds,
                context_codes=context,
                final=("voice",),
            )
            strategy = replace(strategy, name="prm") if seconds == 40.0 else strategy
            spent, found = timed(lambda s=strategy: searched(synthesizer, requests, s, verifiers))
            name = f"context_{context}" if context else "whole_prefix"
            ways[name] = {"cpu_seconds": spent["cpu"], "audio_seconds": found["cost"].audio_seconds}
            ways[name]["choices_as_whole_prefix"] = share_equal(found, ways.setdefault("_", found))
        del ways["_"]
        result[f"partial_audio_{seconds:g}_s"] = ways
    result["setup"] = {
        "texts": len(requests),
        "candidates": N,
        "verifiers": judges_of(verifiers),
        "slots": synthesizer.slots,
        "temperature": SAMPLING.temperature,
    }
    path = Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, (json.dumps(rounded(result), indent=1, sort_keys=True) + "\n").encode())
    print(json.dumps(rounded(result), indent=1))


def searched(synthesizer, requests, strategy, verifiers) -> dict:
    """{"chosen": {id: codes}, "cost": of all requests}."""
    found = list(search(synthesizer, requests, strategy, verifiers, SAMPLING))
    chosen = {one.request.id: one.spoken.generated.codes.tolist() for one in found}
    return {"chosen": chosen, "cost": Cost.total([one.cost for one in found])}


def independent(synthesizer, requests, verifiers) -> dict[str, list[int]]:
    """The same search by one run a candidate."""
    chosen = {}
    for request in requests:
        scores, codes = [], []
        for index in range(N):
            one = replace(request, seed=candidate_seed(request.seed, index))
            (spoken,) = synthesizer.speak([one], SAMPLING)
            scores.append([verifier(spoken.wave, request) for verifier in verifiers.values()])
            codes.append(spoken.generated.codes.tolist())
        chosen[request.id] = codes[Rule().best(np.array(scores), tuple(verifiers))]
    return chosen


def share_equal(found: dict, other: dict) -> float:
    """Share of the requests for which two searches chose the same codes."""
    return float(
        np.mean([codes == other["chosen"][name] for name, codes in found["chosen"].items()])
    )


def rounded(value):
    """Floats to four decimals, at any depth."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
