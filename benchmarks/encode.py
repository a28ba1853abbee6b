"""Audio hours encoded per hour: `llasa encode` beside a loop as in the public extraction script,
one codec, one thread.

The loop: files in their order, batches of 6 padded to the longest, features of each file by itself,
one pass of the codec over the padded batch without a mask, floor(samples / 320) codes kept. Both
sides take turns in one process; CPU seconds count. Clips have the lengths of a corpus of read
speech (log-normal); those for X-codec2 are a quarter as long.

    python benchmarks/encode.py --repeats 3 -o results/benchmarks/encode.json
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from measuring import head, timed
from scipy import stats
from transformers import Xcodec2Config, Xcodec2Model

from llasa_core.audio import load_audio
from llasa_core.codecs import load_codec, xcodec2
from llasa_core.codecs.xcodec2 import Xcodec2Codec
from llasa_core.data.dataset import read_codes
from llasa_core.data.encode import encode_manifest
from llasa_core.files import write_json
from llasa_core.manifest import Utterance, write_manifest

MEAN_SECONDS, MEDIAN_SECONDS = 9.17, 7.4
BATCH = 6
HOP = 320


def write_clips(folder: Path, count: int, scale: float) -> Path:
    """A manifest of FLAC files at 16 kHz: noise in syllables, shuffled, of `count` lengths."""
    generator = np.random.default_rng(0)
    sigma = np.sqrt(2 * np.log(MEAN_SECONDS / MEDIAN_SECONDS))
    seconds = MEDIAN_SECONDS * np.exp(sigma * stats.norm.ppf((np.arange(count) + 0.5) / count))
    seconds = generator.permutation(np.minimum(seconds, 29.5) * scale)
    folder.mkdir()
    utterances = []
    for number, length in enumerate(seconds):
        size = int(length * 16_000)
        loudness = np.repeat(generator.uniform(0.01, 0.2, size // 3200 + 1), 3200)[:size]
        wave = (
            np.convolve(generator.normal(size=size), generator.normal(size=9), "same")
            * loudness
            / 4
        )
        path = folder / f"u{number:04d}.flac"
        soundfile.write(path, np.clip(wave, -0.98, 0.98), 16_000)
        utterances.append(Utterance(path.stem, path, "words that are said here"))
    write_manifest(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"


def loop_codes(paths: list[Path], codec) -> list[np.ndarray]:
    """Codes of each file as the loop makes them."""
    codes = []
    for first in range(0, len(paths), BATCH):
        waves = [load_audio(path) for path in paths[first : first + BATCH]]
        longest = -(-max(map(len, waves)) // HOP) * HOP
        batch = np.stack([np.pad(wave, (0, longest - len(wave))) for wave in waves])
        if isinstance(codec, Xcodec2Codec):
            features = [codec.front(wave) for wave in waves]
            frames = max(longest // HOP, max(map(len, features)))
            padded = np.stack([np.pad(one, ((0, frames - len(one)), (0, 0))) for one in features])
            batch = np.pad(batch, ((0, 0), (0, frames * HOP - longest)))
            xcodec2.remove_fast_snake(codec.model)  # the loop runs the model as transformers has it
            with torch.inference_mode():
                found = codec.model.encode(
                    torch.from_numpy(batch[:, None]), torch.from_numpy(padded.astype(np.float32))
                )
            found = found.audio_codes[:, 0].numpy()
        else:
            with torch.inference_mode():
                found = codec.model.quantize(torch.from_numpy(batch))[1].numpy()
        codes += [row[: len(wave) // HOP] for row, wave in zip(found, waves, strict=True)]
    return codes


def compare(codec, count: int, scale: float, repeats: int) -> dict:
    """Both sides over the same clips, and each side's codes against those of every file alone."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        manifest = write_clips(place / "clips", count, scale)
        paths = sorted((place / "clips").glob("*.flac"))

        def ours():
            if isinstance(codec, Xcodec2Codec):
                xcodec2.install_fast_snake(codec.model)
            shutil.rmtree(place / "codes", ignore_errors=True)
            return encode_manifest(manifest, place / "codes", codec)

        loop_codes(paths[:BATCH], codec)
        runs = {"loop": [], "ours": []}
        for _ in range(repeats):
            seconds, looped = timed(lambda: loop_codes(paths, codec))
            runs["loop"].append(seconds)
            runs["ours"].append(timed(ours)[0])
        dataset = read_codes(place / "codes")
        kept = [dataset[number]["codes"] for number in range(len(dataset))]
        if isinstance(codec, Xcodec2Codec):
            xcodec2.remove_fast_snake(codec.model)  # each file alone, as transformers has it
        alone = [codec.encode([load_audio(path)])[0] for path in paths]
        hours, padding = (
            sum(soundfile.info(path).duration for path in paths) / 3600,
            _padding(paths),
        )
    equal = {
        side: float(np.mean(np.concatenate([a == b for a, b in zip(found, alone, strict=True)])))
        for side, found in (("loop", looped), ("ours", kept))
    }
    middle = {
        side: {clock: statistics.median(run[clock] for run in each) for clock in each[0]}
        for side, each in runs.items()
    }
    return {
        "clips": count,
        "audio_seconds": hours * 3600,
        "padded_to_real_samples_of_loop": padding,
        "runs": runs,
        "audio_hours_per_cpu_hour": {
            side: hours * 3600 / one["cpu"] for side, one in middle.items()
        },
        "audio_hours_per_hour": {side: hours * 3600 / one["wall"] for side, one in middle.items()},
        "ratio_cpu": statistics.median(
            a["cpu"] / b["cpu"] for a, b in zip(runs["loop"], runs["ours"], strict=True)
        ),
        "ratio_wall": statistics.median(
            a["wall"] / b["wall"] for a, b in zip(runs["loop"], runs["ours"], strict=True)
        ),
        "codes": int(sum(map(len, alone))),
        "share_of_codes_equal_to_each_file_alone": equal,
    }


def _padding(paths: list[Path]) -> float:
    """How much longer padded batches are than what is in them."""
    lengths = [soundfile.info(path).frames for path in paths]
    groups = [lengths[first : first + BATCH] for first in range(0, len(lengths), BATCH)]
    return sum(max(group) * len(group) for group in groups) / sum(lengths)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", default="all", choices=("all", "mini", "xcodec2"))
    parser.add_argument("--clips", type=int, default=240, help="for the mini codec (default 240)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--out", required=True, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    if options.codec in ("all", "mini"):
        found["mini"] = compare(load_codec("mini"), options.clips, 1.0, options.repeats)
    if options.codec in ("all", "xcodec2"):
        torch.manual_seed(0)
        codec = Xcodec2Codec(Xcodec2Model(Xcodec2Config()))
        found["xcodec2, full size, random weights"] = compare(
            codec, 12, 0.25, max(1, options.repeats - 1)
        )
    report = {
        **head("encode", ("torch", "transformers"), torch.get_num_threads()),
        "batch_of_loop": BATCH,
        "codecs": found,
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(options.out), report)
    print(
        json.dumps(
            {name: {k: v for k, v in one.items() if k != "runs"} for name, one in found.items()},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
