"""Streamed audio against whole-utterance decoding, by left and right context; time to first audio,
real-time factor.

    python benchmarks/streaming.py                 writes results/benchmarks/streaming.json and
    streaming.png

The mini codec decodes codes of recordings. X-codec2 has random weights and random codes (a small
configuration and the decoder at full size): its architecture's reach is seen, not what trained
weights make of it. Each utterance is streamed in chunks of one size; the error is of the whole
streamed wave. The chosen window is the one with the fewest codes whose error on the mini codec is
within `--tolerance` dB of the best of the grid; ties go to the shorter right context.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from measuring import Clock, head, timed
from transformers import Wav2Vec2BertConfig, Xcodec2Config, Xcodec2Model

from llasa_core import plots
from llasa_core.codecs import load_codec
from llasa_core.codecs.mini import LogMel
from llasa_core.codecs.roundtrip import select
from llasa_core.codecs.xcodec2 import Xcodec2Codec
from llasa_core.data.dataset import read_codes
from llasa_core.files import write_json
from llasa_core.intervals import bootstrap_interval
from llasa_core.manifest import Request
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.streaming import SpeechStream, StreamDecoder, Window
from llasa_core.synthesis.synthesizer import Synthesizer

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
SMALL |= {
    "num_key_value_heads": 4,
    "head_dim": 32,
    "quantization_dim": 256,
    "encoder_hidden_size": 8,
}


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--utterances", type=int, default=32, help="of the mini codec's grid")
    options.add_argument(
        "--random-utterances", type=int, default=8, help="of the small X-codec2's grid"
    )
    options.add_argument(
        "--full-utterances",
        type=int,
        default=2,
        help="of the full-size X-codec2's grid; 0: left out",
    )
    options.add_argument("--full-seconds", type=float, default=4.0)
    options.add_argument("--spoken", type=int, default=24, help="utterances spoken for the times")
    options.add_argument("--left", type=int, nargs="+", default=[0, 10, 25, 50, 100, 200])
    options.add_argument("--right", type=int, nargs="+", default=[0, 5, 10, 25])
    options.add_argument("--chunk", type=int, default=25)
    options.add_argument("--chunks", type=int, nargs="+", default=[10, 25, 50, 100])
    options.add_argument("--tolerance", type=float, default=0.25)
    options.add_argument("--model", default="results/checkpoints/mini-llasa")
    options.add_argument("--codec", default="mini")
    options.add_argument("--codes", default="artifacts/codes/builtin/dev")
    options.add_argument("--texts", default="artifacts/builtin/test.jsonl")
    options.add_argument("--temperature", type=float, default=0.15)
    options.add_argument("--out", default="results/benchmarks/streaming.json")
    options = options.parse_args(arguments)
    torch.set_num_threads(1)
    dataset, codec = read_codes(options.codes), load_codec(options.codec)
    by_length = np.argsort(dataset.lengths(), kind="stable")
    places = by_length[
        -2 * options.utterances :: 2
    ]  # every other of the longest: short ones fit into one window
    real = [np.asarray(dataset[int(place)]["codes"], np.int32) for place in places]
    grid = measured(f"{codec.name} codec", codec, real, options)
    chosen = choose(grid, options.tolerance)
    small, full = random_xcodec2(SMALL), None
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 65_536, 150) for _ in range(options.random_utterances)]
    grid += measured("X-codec2, small, random weights", small, noise, options)
    if options.full_utterances:
        full = random_xcodec2({})
        short = [
            generator.integers(0, 65_536, round(options.full_seconds * 50))
            for _ in range(options.full_utterances)
        ]
        cheaper = argparse.Namespace(
            left=options.left[::2], right=options.right[::3], chunk=options.chunk
        )
        grid += measured("X-codec2, full size, random weights", full, short, cheaper)
    window = replace(Window(), left=chosen["left"], right=chosen["right"])
    chunks = []
    for chunk in options.chunks:
        row = error_of(codec, real, Window(chunk, window.left, window.right, chunk))
        chunks.append({"chunk": chunk, **row})
    report = {
        **head("streaming", ("torch", "transformers"), torch.get_num_threads(), arguments),
        "interval": "bootstrap over utterances, 95 %",
        "chunk": options.chunk,
        "grid": grid,
        "chosen": {**chosen, "tolerance_db": options.tolerance},
        "default_window": asdict(Window()),
        "by_chunk": chunks,
        "times": times(options, codec, window),
    }
    if full is not None:
        report["xcodec2_full_size_decoder"] = decoder_times(
            full, window, round(options.full_seconds * 50)
        )
    path = Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, json.loads(json.dumps(report), parse_float=lambda text: round(float(text), 4)))
    drawn(pd.DataFrame(grid)).savefig(path.with_suffix(".png"))
    print(json.dumps({key: report[key] for key in ("chosen", "by_chunk", "times")}, indent=1))


def drawn(table: pd.DataFrame) -> Figure:
    """Error of streamed audio by context, a panel for each `codec`; one line for each `right`
    context.

    Columns codec, left and right (codes), mel_db (distance to whole-utterance decoding) and its low
    and high.
    """
    codecs, rights = list(dict.fromkeys(table["codec"])), sorted(set(table["right"]))
    with matplotlib.rc_context(plots.STYLE):
        figure, axes = plots.new_axes(len(codecs), width=3.6)
        for axis, codec in zip(axes, codecs, strict=True):
            rows = table[table["codec"] == codec]
            for right, line in rows.groupby("right"):
                number = rights.index(right)
                line = line.sort_values("left")
                spread = np.stack(
                    [line["mel_db"] - line["low"], line["high"] - line["mel_db"]]
                ).clip(min=0)
                axis.errorbar(
                    line["left"],
                    line["mel_db"],
                    yerr=spread,
                    color=plots.COLOURS[number % len(plots.COLOURS)],
                    marker=plots.MARKERS[number % len(plots.MARKERS)],
                    linestyle=plots.LINES[number % len(plots.LINES)],
                    markersize=4,
                    capsize=2,
                    label=f"{right} to come",
                )
            axis.set(xlabel="codes heard before (20 ms each)", title=codec)
        axes[0].set_ylabel("log-mel distance (dB)")
        axes[0].legend(title="right context", fontsize=7)
        return figure


def measured(name: str, codec, codes, options) -> list[dict]:
    """The errors of every left and right context."""
    rows = []
    for left in options.left:
        for right in options.right:
            row = {"codec": name, "left": left, "right": right}
            rows.append(
                row | error_of(codec, codes, Window(options.chunk, left, right, options.chunk))
            )
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def error_of(codec, codes, window: Window) -> dict:
    """Log-mel distance (root mean square, dB) and signal to error (dB), of streamed against whole.

    The mean distance and the median ratio, which is unbounded where an utterance fits into one
    window.
    """
    mel, distances, ratios = LogMel(1024, 320, 80), [], []
    for row in codes:
        whole = codec.decode([row])[0]
        streamed = stream(codec, row, window)
        pair = mel(torch.from_numpy(np.stack([whole, streamed])))
        distances.append(20 / np.log(10) * float((pair[0] - pair[1]).square().mean().sqrt()))
        error = float(((whole - streamed) ** 2).mean())
        ratios.append(10 * np.log10(float((whole**2).mean()) / max(error, 1e-20)))
    low, high = bootstrap_interval(distances)
    snr = {"signal_to_error_db": float(np.median(ratios))}
    return {"mel_db": float(np.mean(distances)), "low": low, "high": high, "n": len(codes), **snr}


def stream(codec, codes, window: Window) -> np.ndarray:
    """The wave of codes that come one by one."""
    decoder = StreamDecoder(codec, window)
    return np.concatenate([*(decoder.push([code]) for code in codes), decoder.finish()])


def choose(grid: list[dict], tolerance: float) -> dict:
    """The cheapest window whose error is within `tolerance` dB of the best."""
    best = min(row["mel_db"] for row in grid)
    good = [row for row in grid if row["mel_db"] <= best + tolerance]
    return min(good, key=lambda row: (row["left"] + row["right"], row["right"]))


def random_xcodec2(shape: dict) -> Xcodec2Codec:
    """X-codec2 with random weights; the semantic encoder, unused in decoding, has one layer."""
    torch.manual_seed(0)
    semantic = Wav2Vec2BertConfig(num_hidden_layers=1, **({"hidden_size": 128} if shape else {}))
    config = Xcodec2Config(semantic_model_config=semantic, **shape)
    return Xcodec2Codec(Xcodec2Model(config).eval())


def times(options: argparse.Namespace, codec, window: Window) -> list[dict]:
    """Median seconds (wall, CPU) to the first audio and per second of audio, streamed and whole."""
    synthesizer = Synthesizer.from_folder(options.model, codec)
    sampling = Sampling(temperature=options.temperature)
    requests = [
        Request(item.id, item.text, item.speaker) for item in select(options.texts, options.spoken)
    ]
    list(SpeechStream(synthesizer, requests[0], sampling, window))  # everything is warm
    rows = []
    for name, asked in (("streamed", window), ("whole", Window(10**6, 0, 0, 10**6))):
        found = []
        for request in requests:
            clock, first, samples = Clock(), None, 0
            for wave in SpeechStream(synthesizer, request, sampling, asked):
                if first is None and len(wave):
                    first = (clock.wall, clock.cpu)
                samples += len(wave)
            seconds = samples / codec.sample_rate
            spent = (clock.wall, clock.cpu)
            found.append((*first, spent[0] / seconds, spent[1] / seconds))
        middle = np.median(np.array(found), axis=0).tolist()
        keys = (
            "first_audio_wall_seconds",
            "first_audio_cpu_seconds",
            "real_time_factor_wall",
            "real_time_factor_cpu",
        )
        rows.append(
            {
                "way": name,
                "window": asdict(asked),
                "n": len(found),
                **dict(zip(keys, middle, strict=True)),
            }
        )
    return rows


def decoder_times(codec, window: Window, length: int) -> dict:
    """CPU seconds of the decoder per second of audio, streamed and whole, codes known."""
    codes, spent = np.random.default_rng(1).integers(0, codec.codebook_size, length), {}
    for name, work in (
        ("whole", lambda: codec.decode([codes])),
        ("streamed", lambda: stream(codec, codes, window)),
    ):
        spent[f"{name}_cpu_seconds_per_second"] = timed(work)[0]["cpu"] / (
            length / codec.frame_rate
        )
    first = timed(lambda: codec.decode([codes[: window.first + window.right]]))[0]["cpu"]
    return {**spent, "first_chunk_cpu_seconds": first, "codes": length, "window": asdict(window)}


if __name__ == "__main__":
    main()
