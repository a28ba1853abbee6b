"""Failures per 1,000 utterances of the mini model with and without guards.

    python benchmarks/guards.py [--utterances 1000] [--judged 120]        writes
    results/benchmarks/guards.json

Without guards: END may come at the first step, as in the public example, and nothing is sampled
again; what comes is judged by the same detectors. Two things keep that honest: the detectors' false
alarms on recordings, and a recogniser that no guard listens to. Conditions: the study's
temperature, a hotter one, and voice prompts in place of speaker tags.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from measuring import Clock, head

from llasa_core import judges
from llasa_core.audio import load_audio
from llasa_core.data.dataset import read_codes
from llasa_core.files import write_json
from llasa_core.intervals import wilson_interval
from llasa_core.manifest import Request, read_manifest
from llasa_core.metrics import word_errors
from llasa_core.synthesis.guards import Guards
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer

BAD_WORDS = 0.5  # word error rate of an utterance whose words are lost


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--utterances", type=int, default=1000)
    options.add_argument(
        "--judged",
        type=int,
        default=120,
        help="utterances whose words a recogniser checks; 0: none",
    )
    options.add_argument("--temperatures", type=float, nargs="+", default=[0.15, 0.8])
    options.add_argument(
        "--voice-temperatures", type=float, nargs="*", default=[0.8], help="of voice prompts"
    )
    options.add_argument("--attempts", type=int, default=5)
    options.add_argument("--model", default="results/checkpoints/mini-llasa")
    options.add_argument("--codec", default=None)
    options.add_argument("--guards", help="JSON in place of the checkpoint's")
    options.add_argument(
        "--corpus", default="artifacts/open", help="its test and dev sentences are spoken"
    )
    options.add_argument(
        "--codes", default="artifacts/codes/open/dev", help="real codes, for false alarms"
    )
    options.add_argument("--out", default="results/benchmarks/guards.json")
    options = options.parse_args(arguments)
    torch.set_num_threads(1)
    synthesizer = Synthesizer.from_folder(options.model, options.codec, slots=64)
    guards = Guards.from_file(options.guards) if options.guards else synthesizer.guards
    guards = replace(guards, attempts=options.attempts)
    texts = read_manifest(Path(options.corpus, "test.jsonl")) + read_manifest(
        Path(options.corpus, "dev.jsonl")
    )
    known = synthesizer.speakers  # a corpus holds speakers for tests alone, who have no tag
    texts = [item for item in texts if known is None or item.speaker in known]
    transcriber = (
        judges.load_transcriber("moonshine-tiny.en", threads=1) if options.judged else None
    )
    requests = [
        Request(
            f"{n}-{texts[n % len(texts)].id}",
            texts[n % len(texts)].text,
            texts[n % len(texts)].speaker,
        )
        for n in range(options.utterances)
    ]
    requests = [
        replace(one, seed=n // len(texts)) for n, one in enumerate(requests)
    ]  # sentences that come again
    prompts = [item for item in reversed(texts) if 2.0 <= (item.seconds or 0) <= 4.0]
    voices = {item.speaker: synthesizer.voice(item.audio, item.text) for item in prompts}
    names = sorted(voices)  # a speaker without a recording of that length lends another one's
    prompted = [
        replace(one, voice=voices.get(one.speaker) or voices[names[n % len(names)]])
        for n, one in enumerate(requests)
    ]
    conditions = [(f"speaker tag, temperature {t:g}", requests, t) for t in options.temperatures]
    conditions += [
        (f"voice prompt, temperature {t:g}", prompted, t) for t in options.voice_temperatures
    ]
    rows = []
    for name, asked, temperature in conditions:
        for guarded in (False, True):
            sampling = Sampling(temperature=temperature, min_codes=int(guarded))
            rows.append({"condition": name, "temperature": temperature, "guards": guarded})
            rows[-1] |= measured(
                synthesizer, asked, sampling, guards, guarded, transcriber, options.judged
            )
            print(json.dumps(rows[-1]), file=sys.stderr)
    report = {
        **head("guards", ("torch", "transformers"), torch.get_num_threads(), arguments),
        "guards": asdict(guards),
        "interval": "Wilson, 95 %",
        "conditions": rows,
        "false_alarms": false_alarms(synthesizer, guards, options.codes, texts),
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(options.out), json.loads(json.dumps(report)))


def measured(synthesizer, requests, sampling, guards, guarded, transcriber, judged) -> dict:
    """Counts of one condition; every count has its rate per 1,000 with an interval."""
    reasons, rejected, attempts, bad, heard = Counter(), Counter(), Counter(), 0, 0
    failed = words_wrong = words = codes = 0
    chosen = {request.id for request in requests[:judged]}
    clock, asr_seconds = Clock(), 0.0
    for one in synthesizer.speak(requests, sampling, guards if guarded else None):
        request, generated = one.request, one.generated
        rate, frames = synthesizer.codec.sample_rate, synthesizer.codec.frame_rate
        why = guards.reasons(request, generated.codes, generated.ended, one.wave, rate, frames)
        failed += bool(why)
        reasons.update(why)
        rejected.update(reason for reasons_of_one in one.rejected for reason in reasons_of_one)
        attempts[one.attempts] += 1
        codes += len(generated.codes)
        if request.id in chosen:
            asr = Clock()
            said = (
                transcriber.transcribe([one.wave], rate, "en")[0]
                if len(one.wave) > rate // 10
                else ""
            )
            asr_seconds += asr.cpu
            errors, length = word_errors(request.text, said)
            bad, heard, words_wrong, words = (
                bad + (errors > BAD_WORDS * length),
                heard + 1,
                words_wrong + errors,
                words + length,
            )
    spent = clock.cpu - asr_seconds
    row = {"n": len(requests), "failed": per_thousand(failed, len(requests))}
    row["reasons"] = {
        reason: per_thousand(count, len(requests)) for reason, count in sorted(reasons.items())
    }
    row["rejected_attempts"] = dict(sorted(rejected.items()))
    row["attempts"] = {str(number): count for number, count in sorted(attempts.items())}
    row |= {"codes": codes, "cpu_seconds": round(spent, 1)}
    if heard:
        row["words_lost"] = per_thousand(bad, heard) | {
            "recogniser": "moonshine-tiny.en",
            "corpus_wer": words_wrong / words,
        }
    return row


def false_alarms(synthesizer, guards: Guards, codes: str, texts) -> dict:
    """What the guards say of recordings: their codes and the waves that the recordings are."""
    dataset, audio = read_codes(codes), {item.id: item.audio for item in texts}
    reasons, alarms = Counter(), 0
    for row in dataset:
        wave = load_audio(audio[row["id"]]) if row["id"] in audio else np.zeros(0, np.float32)
        why = guards.reasons(
            Request(row["id"], row["text"]), row["codes"], True, wave, synthesizer.codec.sample_rate
        )
        alarms += bool(why)
        reasons.update(why)
    return {**per_thousand(alarms, len(dataset)), "reasons": dict(reasons)}


def per_thousand(count: int, n: int) -> dict:
    """A count, its rate per 1,000 and the ends of its interval."""
    low, high = wilson_interval(count, n)
    ends = {"low": round(1000 * low, 2), "high": round(1000 * high, 2)}
    return {"count": count, "n": n, "per_thousand": round(1000 * count / n, 2), **ends}


if __name__ == "__main__":
    main()
