"""Ten million utterances as training rows: what the start costs, and random access to packed rows,
on one core.

A mapped codes dataset of read-speech lengths is written once (13 GB with its token ids); texts
repeat, codes do not. The start is timed as it was before (rows one by one, for a part of them), the
first time, and with what it kept.

    python benchmarks/training_rows.py --rows 10000000 -o results/benchmarks/training_rows.json
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from measuring import Clock, head, timed
from memmap import MEAN_SECONDS, MEDIAN_SECONDS, sentences, words_of

from llasa_core.data.dataset import SCHEMA, code_lists, read_codes
from llasa_core.data.examples import ExampleSource
from llasa_core.data.packing import PackedRows, collate
from llasa_core.data.text_tokenizers import build_llama3_tokenizer, locate_llama3_vocabulary
from llasa_core.files import write_json
from llasa_core.prompts import Prompt
from llasa_core.tokenizer import merge_tokenizer

PART = 50_000
CONTEXT = 2048
ROWS_AT_ONCE = 8


def write_dataset(folder: Path, cache: Path, rows: int, tokenizer) -> None:
    """The mapped files and meta.json of a dataset of `rows` utterances; it has no parquet parts."""
    generator = np.random.default_rng(0)
    sigma = np.sqrt(2 * np.log(MEAN_SECONDS / MEDIAN_SECONDS))
    size = min(PART, rows)
    seconds = np.minimum(MEDIAN_SECONDS * np.exp(sigma * generator.normal(size=size)), 30.0)
    texts = pa.array(sentences(seconds, words_of(tokenizer), generator))
    speakers = pa.array([f"speaker {number % 997}" for number in range(size)])
    frames = np.maximum((seconds * 50).astype(np.int64), 1)
    folder.mkdir()
    cache.mkdir()
    shards = []
    for number, first in enumerate(range(0, rows, size)):
        count = min(size, rows - first)
        order = generator.permutation(size)[:count]
        borders = np.concatenate([[0], np.cumsum(frames[order])])
        columns = {
            "id": pa.array([f"u{row:09d}" for row in range(first, first + count)]),
            "text": texts.take(pa.array(order)),
        }
        columns["codes"] = code_lists(
            borders, generator.integers(0, 65_536, borders[-1], dtype=np.uint16)
        )
        columns |= {"speaker": speakers.take(pa.array(order)), "language": pa.array(["en"] * count)}
        columns["seconds"] = pa.array((frames[order] / 50).astype(np.float32))
        table = pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)
        with (
            pa.OSFile(str(cache / f"{number}.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, SCHEMA) as writer,
        ):
            writer.write_table(table)
        shards.append({"file": f"part-{number:05d}.parquet", "rows": count, "sha256": str(number)})
    meta = {
        "codec": "none",
        "codebook_size": 65_536,
        "frame_rate": 50.0,
        "utterances": rows,
        "codes": 0,
        "shards": shards,
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def memory() -> dict[str, float]:
    """MB of this process: its own, and of mapped files that happen to be in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(line.split()[1]) / 1024
        for line in lines
        for name in ("RssAnon", "RssFile")
        if line.startswith(name)
    }


def access(rows: PackedRows, seconds: float, seed: int) -> dict[str, float]:
    """Random packed rows, ROWS_AT_ONCE collated together, for so many CPU seconds."""
    numbers = np.random.default_rng(seed).integers(0, rows.rows_in_epoch(0), 10**6)
    samples = batches = tokens = 0
    clock, before = Clock(), memory()
    while clock.cpu < seconds:
        chosen = numbers[batches * ROWS_AT_ONCE : (batches + 1) * ROWS_AT_ONCE].tolist()
        examples = [example for number in chosen for example in rows.examples(number)]
        tokens += collate(examples)["input_ids"].shape[1]
        samples, batches = samples + len(examples), batches + 1
    cpu, wall = clock.cpu, clock.wall
    return {
        "samples": samples,
        "samples_per_cpu_second": samples / cpu,
        "samples_per_second": samples / wall,
        "tokens_per_cpu_second": tokens / cpu,
        "memory_mb_before": before,
        "memory_mb_after": memory(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="CPU seconds of random access, twice"
    )
    parser.add_argument("--folder", help="where the dataset goes (default: a temporary folder)")
    parser.add_argument("-o", "--out", required=True, help="JSON file")
    options = parser.parse_args()
    tokenizer = merge_tokenizer(build_llama3_tokenizer(locate_llama3_vocabulary()), 65_536)
    prompt = Prompt(tokenizer)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, cache = Path(name, "codes"), Path(name, "cache")
        write_dataset(folder, cache, options.rows, tokenizer)
        empty = memory()
        opening, dataset = timed(lambda: read_codes(folder, cache=cache))
        few = min(options.rows, 20_000)

        def one_by_one():
            """Tokens of the first rows, each read and tokenized for itself."""
            template, rows = prompt.template_length("tts"), (dataset[index] for index in range(few))
            return [
                len(prompt.text_ids(row["text"])) + len(row["codes"]) + template for row in rows
            ]

        before, _ = timed(one_by_one)
        first, _ = timed(lambda: ExampleSource(dataset, prompt))
        kept, source = timed(lambda: ExampleSource(dataset, prompt))
        planned, rows = timed(lambda: PackedRows([source], CONTEXT, 0))
        packed, _ = timed(lambda: rows.rows_in_epoch(0))
        start = memory()
        random_access = [access(rows, options.seconds, seed) for seed in (1, 2)]
        fill, size = rows.fill(), sum(path.stat().st_size for path in cache.iterdir())
        dropped = rows.dropped_overlong
    report = {
        **head("training_rows", ("numpy", "pyarrow")),
        "rows": options.rows,
        "bytes_mapped": size,
        "seconds": {
            "open": opening,
            f"lengths of {few} rows one by one": before,
            "lengths, first time": first,
            "lengths, kept": kept,
            "drop overlong": planned,
            "pack an epoch": packed,
        },
        "lengths_seconds_per_million_rows": {
            "one by one": before["cpu"] * 1e6 / few,
            "first time": first["cpu"] * 1e6 / options.rows,
            "kept": kept["cpu"] * 1e6 / options.rows,
        },
        "memory_mb": {"before": empty, "planned": start},
        "random_access": random_access,
        "fill": fill,
        "dropped_overlong": dropped,
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(options.out), report)
    print(
        json.dumps(
            {key: report[key] for key in ("seconds", "memory_mb", "random_access")}, indent=1
        )
    )


if __name__ == "__main__":
    main()
