"""How fast does a model speak on one core, codec included, and after how long is the first audio
there?

    python benchmarks/speed.py                         writes results/benchmarks/speed.json

The same texts are spoken one by one, many at a time, and streamed, in this process on one thread,
each time under the same seeds. x real time: seconds of audio a CPU second; `wall` says the same of
the clock, which on a shared machine holds the waiting as well. Loading is not counted; one
utterance is spoken before the clocks start.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from measuring import Clock, head, timed

from llasa_core.codecs.roundtrip import select
from llasa_core.files import write_json
from llasa_core.intervals import bootstrap_interval
from llasa_core.manifest import Request
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.streaming import SpeechStream, Window
from llasa_core.synthesis.synthesizer import Synthesizer


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", default="results/checkpoints/mini-llasa")
    options.add_argument("--codec", default="mini")
    options.add_argument("--texts", default="artifacts/open/test_open.jsonl")
    options.add_argument("--spoken", type=int, default=32, help="texts, spread over the manifest")
    options.add_argument("--slots", type=int, default=16, help="utterances at a time")
    options.add_argument("--temperature", type=float, default=0.15)
    options.add_argument("--out", "-o", default="results/benchmarks/speed.json")
    options = options.parse_args(arguments)
    torch.set_num_threads(1)
    synthesizer = Synthesizer.from_folder(options.model, options.codec, slots=options.slots)
    sampling = Sampling(temperature=options.temperature)
    chosen = select(options.texts, options.spoken)
    requests = [Request(item.id, item.text, item.speaker or None) for item in chosen]
    list(synthesizer.speak(requests[:1], sampling))
    list(SpeechStream(synthesizer, requests[0], sampling))
    alone, streamed = [], []
    for request in requests:
        alone.append(spoken(synthesizer, [request], sampling))
        streamed.append(first_audio(synthesizer, request, sampling))
    report = {
        **head("speed", ("torch", "transformers"), torch.get_num_threads(), arguments),
        "interval": "bootstrap over utterances, 95 %",
        "parameters": sum(p.numel() for p in synthesizer.model.parameters()),
        "texts": len(requests),
        "one_at_a_time": real_time(alone),
        f"{options.slots}_at_a_time": real_time([spoken(synthesizer, requests, sampling)]),
        "streamed": {"window": asdict(Window()), "n": len(streamed), **waits(streamed)},
    }
    path = Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, json.loads(json.dumps(report), parse_float=lambda text: round(float(text), 4)))
    print(json.dumps(report, indent=1))


def spoken(synthesizer: Synthesizer, requests: list[Request], sampling: Sampling) -> dict:
    """Seconds of audio, and CPU and wall seconds that they took, decoding included."""
    spent, said = timed(lambda: list(synthesizer.speak(requests, sampling)))
    samples = sum(len(one.wave) for one in said)
    return {"audio": samples / synthesizer.codec.sample_rate, **spent}


def real_time(rows: list[dict]) -> dict:
    """x real time, of the CPU with its interval where there are several rows, and of the clock."""
    audio, cpu, wall = ([row[key] for row in rows] for key in ("audio", "cpu", "wall"))
    found = {"x_real_time": sum(audio) / sum(cpu), "x_real_time_wall": sum(audio) / sum(wall)}
    if len(rows) > 1:
        low, high = bootstrap_interval(audio, cpu)
        found |= {"x_real_time_low": low, "x_real_time_high": high}
    return found | {"seconds_of_audio": sum(audio)}


def first_audio(synthesizer: Synthesizer, request: Request, sampling: Sampling) -> dict:
    """CPU and wall seconds from the request to the first samples; the rest is left unspoken."""
    clock = Clock()
    for wave in SpeechStream(synthesizer, request, sampling):
        if len(wave):
            break
    return {"cpu": clock.cpu, "wall": clock.wall}


def waits(rows: list[dict]) -> dict:
    """Median and 95th percentile of the seconds to the first audio."""
    found = {}
    for key in ("cpu", "wall"):
        middle, late = np.quantile([row[key] for row in rows], (0.5, 0.95))
        found |= {f"first_audio_{key}_seconds": middle, f"first_audio_{key}_seconds_p95": late}
    return found


if __name__ == "__main__":
    main()
