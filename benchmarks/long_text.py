"""An hour of speech from one text: memory by the length spoken so far, killed once on the way and
started again.

    python benchmarks/long_text.py --seconds 3600          writes results/benchmarks/long_text.json

The text is made of the corpus' sentences, in paragraphs of five. A child process speaks it and
notes its resident memory after every piece; it is killed at half of the pieces, a second one goes
on. `--speaker ""` leaves out the tag: the first piece is then the voice of all others.
"""

import argparse
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import torch
from measuring import Clock, head

from llasa_core.files import write_json
from llasa_core.manifest import Request, read_manifest
from llasa_core.synthesis.long_text import speak_long
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.synthesis.text import pieces_of_text


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seconds", type=float, default=3600.0)
    options.add_argument(
        "--characters",
        type=int,
        default=70,
        help="of a piece; the mini corpus has no longer sentences",
    )
    options.add_argument("--speaker", default="ava")
    options.add_argument("--temperature", type=float, default=0.15)
    options.add_argument("--model", default="results/checkpoints/mini-llasa")
    options.add_argument("--texts", default="artifacts/builtin/dev.jsonl")
    options.add_argument(
        "--folder", default="artifacts/scratch/long_text", help="receives the speech; emptied first"
    )
    options.add_argument("--out", default="results/benchmarks/long_text.json")
    options = options.parse_args(arguments)
    torch.set_num_threads(1)
    folder = Path(options.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    synthesizer = Synthesizer.from_folder(options.model, slots=32)
    request = Request(
        "hour", text_of(read_manifest(options.texts), options.seconds), options.speaker
    )
    count = len(pieces_of_text(request.text, options.characters))
    clock, log = Clock(), folder / "memory.jsonl"
    killed = spoken_by_child(synthesizer, request, options, log, stop_after=count // 2)
    before = {path: path.stat().st_mtime_ns for path in (folder / "speech").rglob("*.wav")}
    finished = spoken_by_child(synthesizer, request, options, log, stop_after=None)
    assert killed == -signal.SIGKILL and finished == 0, (killed, finished)
    line = json.loads((folder / "speech" / "manifest.jsonl").read_text(encoding="utf-8"))
    notes = [json.loads(note) for note in log.read_text(encoding="utf-8").splitlines()]
    runs = [
        [note for note in notes if note["run"] == run]
        for run in sorted({note["run"] for note in notes})
    ]
    report = {
        **head("long_text", ("torch", "transformers"), torch.get_num_threads(), arguments),
        "characters": len(request.text),
        "pieces": line["pieces"],
        "seconds_of_speech": line["seconds"],
        "codes": line["codes"],
        "attempts": line["attempts"],
        "failed": line["failed"],
        "wall_seconds": round(clock.wall, 1),
        "pieces_redone_after_the_kill": sum(
            path.stat().st_mtime_ns != stamp for path, stamp in before.items()
        ),
        "pieces_before_the_kill": len(before),
        "resident_mib": [memory(run) for run in runs],
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(options.out), report)
    print(json.dumps(report, indent=1))


def memory(notes: list[dict]) -> dict:
    """Resident memory of a run: after its first tenth, at its end and at its peak, with joining."""
    values = [note["mib"] for note in notes]
    return {
        "after_a_tenth": values[len(values) // 10],
        "last": values[-1],
        "most": max(values),
        "notes": len(values),
    }


def text_of(utterances, seconds: float) -> str:
    """Sentences until their recordings would last `seconds`, five a paragraph."""
    chosen, total, number = [], 0.0, 0
    while total < seconds:
        chosen.append(utterances[number % len(utterances)])
        total, number = total + chosen[-1].seconds + 0.4, number + 1
    texts = [item.text for item in chosen]
    return "\n\n".join(" ".join(texts[start : start + 5]) for start in range(0, len(texts), 5))


def spoken_by_child(synthesizer, request, options, log: Path, stop_after: int | None) -> int:
    """Exit status of a forked child that speaks; it kills itself after so many pieces."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done = 0

    def note(count: int) -> None:
        nonlocal done
        done += count
        with log.open("a") as file:
            file.write(
                json.dumps({"run": int(stop_after is None), "pieces": done, "mib": resident()})
                + "\n"
            )
        if stop_after is not None and done >= stop_after:
            os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        sampling, folder = Sampling(temperature=options.temperature), Path(options.folder, "speech")
        speak_long(
            synthesizer, [request], folder, sampling, synthesizer.guards, options.characters, note
        )
        note(0)
        status = 0
    finally:
        os._exit(status)


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(np.round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1))


if __name__ == "__main__":
    main()
