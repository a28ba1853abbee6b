"""`llasa serve` under load: many requests at a time by OpenAI's client, then the same texts, voices
and seeds by `llasa synthesize`.

    python benchmarks/serve.py                     writes results/benchmarks/serve.json

Every answer is compared with the file of the same line of the manifest, byte by byte. The requests
alone, one after the other, say what drawing rows together saves. Seconds of the server are CPU
seconds of its process; latencies are by the clock, so they hold what else the machine does.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openai
import psutil
from measuring import head

from llasa_core.data.corpora.synthetic import sentences
from llasa_core.files import write_json, write_rows

LISTENING = re.compile(r"^llasa: (\S+) at (http://\S+)/v1", re.MULTILINE)


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", default="results/checkpoints/mini-llasa")
    options.add_argument("--requests", type=int, default=200)
    options.add_argument("--at-once", type=int, default=16, help="clients, and slots of the server")
    options.add_argument("--alone", type=int, default=20, help="requests one after the other")
    options.add_argument("--seed", type=int, default=0, help="of the texts")
    options.add_argument("--threads", type=int, default=1, help="of torch")
    options.add_argument("-o", "--out", default="results/benchmarks/serve.json")
    chosen = options.parse_args(arguments)
    environment = os.environ | {"OMP_NUM_THREADS": str(chosen.threads)}
    packages = ["torch", "transformers", "numpy", "starlette", "uvicorn", "openai"]
    report = head("serve", packages, chosen.threads, arguments)
    report |= {"model": chosen.model, "requests": chosen.requests, "at_once": chosen.at_once}
    with tempfile.TemporaryDirectory() as folder, served(chosen, environment) as server:
        lines = asked_of(server["url"], chosen)
        alone = measured(server, lines[: chosen.alone], 1)
        loaded = measured(server, lines, chosen.at_once)
        answers = loaded.pop("answers")
        alone.pop("answers")
        files = offline(chosen, lines, Path(folder), environment)
    equal = [heard is not None and heard == files[n] for n, heard in enumerate(answers)]
    report["loaded"] = loaded | {
        "lost": sum(heard is None for heard in answers),
        "equal_to_offline": sum(equal),
    }
    report["alone"] = alone
    report["cpu_saved"] = round(
        alone["cpu_seconds_per_second"] / loaded["cpu_seconds_per_second"], 2
    )
    write_json(Path(chosen.out), report)
    print(json.dumps(report, indent=1))


@contextmanager
def served(chosen: argparse.Namespace, environment: dict):
    """{"url", "name", "process"} of a server on a free port, ended by SIGTERM."""
    command = [sys.executable, "-m", "llasa_core.cli", "serve", "--model", chosen.model]
    command += ["--port", "0", "--slots", str(chosen.at_once), "--seconds", "3600"]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, env=environment, stdout=out)
        try:
            found = None
            while found is None:
                if process.poll() is not None:
                    raise SystemExit(f"the server ended with status {process.returncode}")
                time.sleep(0.1)
                out.seek(0)
                found = LISTENING.search(out.read())
            yield {"name": found[1], "url": found[2], "process": psutil.Process(process.pid)}
        finally:
            process.terminate()
            if process.wait(120) != 0:
                raise SystemExit(f"the server ended with status {process.returncode}")


def asked_of(url: str, chosen: argparse.Namespace) -> list[dict]:
    """Lines of a manifest: a text each, the voices in turn, a seed of its own."""
    with urllib.request.urlopen(f"{url}/v1/audio/voices") as answer:
        voices = [voice["id"] for voice in json.load(answer)["voices"]]
    texts = sentences(chosen.requests, chosen.seed, held_out=True)
    lines = []
    for number, text in enumerate(texts):
        voice = voices[number % len(voices)]
        speaker = {} if voice == "default" else {"speaker": voice}
        lines.append({"id": f"{number:04d}", "text": text, "seed": number, **speaker})
    return lines


def measured(server: dict, lines: list[dict], at_once: int) -> dict:
    """All lines asked for, `at_once` at a time: {"answers": bytes or None each, and figures}."""
    client = openai.OpenAI(
        base_url=f"{server['url']}/v1", api_key="none", max_retries=0, timeout=3600
    )

    def ask(line: dict) -> tuple[bytes | None, float]:
        began = time.perf_counter()
        try:
            answer = client.audio.speech.create(
                model=server["name"],
                voice=line.get("speaker", "default"),
                input=line["text"],
                response_format="wav",
                extra_body={"seed": line["seed"]},
            ).content
        except openai.OpenAIError as error:
            print(f"{line['id']}: {error}", file=sys.stderr)
            answer = None
        return answer, time.perf_counter() - began

    before, cpu, began = counts(server["url"]), cpu_of(server), time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        answers, seconds = zip(*pool.map(ask, lines), strict=True)
    wall, cpu, after = time.perf_counter() - began, cpu_of(server) - cpu, counts(server["url"])
    audio, steps, rows = (
        after[name] - before.get(name, 0)
        for name in ("llasa_audio_seconds_total", "llasa_steps", "llasa_row_steps")
    )
    p50, p95 = np.percentile(seconds, [50, 95])
    return {
        "answers": answers,
        "audio_seconds": round(audio, 2),
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "cpu_seconds_per_second": round(cpu / audio, 3),
        "audio_seconds_per_wall_second": round(audio / wall, 3),
        "latency_seconds": {
            "median": round(p50, 2),
            "p95": round(p95, 2),
            "max": round(max(seconds), 2),
        },
        "rows_per_step": round(rows / steps, 2),
    }


def counts(url: str) -> dict[str, float]:
    """The server's counters by their names."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}


def cpu_of(server: dict) -> float:
    """CPU seconds that the server has taken, all its threads."""
    times = server["process"].cpu_times()
    return times.user + times.system


def offline(
    chosen: argparse.Namespace, lines: list[dict], folder: Path, environment: dict
) -> list[bytes]:
    """The files that `llasa synthesize` writes for the lines."""
    write_rows(folder / "asked.jsonl", lines)
    command = [sys.executable, "-m", "llasa_core.cli", "synthesize", "--model", chosen.model]
    command += ["--manifest", str(folder / "asked.jsonl"), "-o", str(folder / "speech")]
    # 1: some utterance failed its guards, there as here
    if (status := subprocess.run(command, env=environment).returncode) not in (0, 1):
        raise SystemExit(f"llasa synthesize ended with status {status}")
    return [(folder / "speech/wavs" / f"{line['id']}.wav").read_bytes() for line in lines]


if __name__ == "__main__":
    main()
