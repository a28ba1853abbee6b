"""Import and export of the public memory map beside a plain copy of the same file; all take turns
in one process.

Rows have lengths and texts as a corpus of read speech has them. A copy is `shutil.copyfile`;
"durable" is the time until everything is on the disk (fsync), which is how a corpus larger than
memory behaves. CPU seconds: of all threads.

    python benchmarks/memmap.py --rows 200000 --repeats 5 -o results/benchmarks/memmap.json
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
from measuring import Clock, head

from llasa_core.data.memmap import export_memmap, import_memmap
from llasa_core.data.memmap_rows import RowFormat
from llasa_core.data.text_tokenizers import build_llama3_tokenizer, locate_llama3_vocabulary
from llasa_core.files import write_json
from llasa_core.tokenizer import merge_tokenizer

MEAN_SECONDS, MEDIAN_SECONDS = 9.17, 7.4  # of an utterance; log-normal
WORDS_A_SECOND = 2.7
WIDTH = 2048


def words_of(tokenizer) -> np.ndarray:
    """The words that are one token, the commonest first."""
    ranks = {
        name[1:]: id
        for name, id in tokenizer.get_vocab().items()
        if name[:1] == "Ġ" and name[1:].isascii()
    }
    return np.array(sorted((word for word in ranks if word.isalpha()), key=ranks.get))


def names_of(number: int) -> str:
    """A pronounceable name of its own for each number."""
    letters = ""
    while number:
        number, one = divmod(number, 75)
        letters += "bdfgklmnprstvwz"[one // 5] + "aeiou"[one % 5]
    return letters.title() or "Ann"


def sentences(seconds: np.ndarray, words: np.ndarray, generator) -> list[str]:
    """Texts of Zipf-distributed words, 2 % from 300,000 names, with commas and full stops."""
    texts = []
    for length in seconds:
        size = max(1, int(length * WORDS_A_SECOND))
        rank = np.minimum(generator.zipf(1.25, size) - 1, len(words) - 1)
        said = words[rank].tolist()
        for place in np.flatnonzero(generator.random(size) < 0.02):
            said[place] = names_of(int(generator.integers(300_000)))
        for place in range(6, size, 7):
            said[place] += ","
        texts.append(" ".join(said) + ".")
    return texts


def write_rows(folder: Path, rows: int, tokenizer) -> None:
    """train_input_ids.memmap and its shape, built by the format's own definition."""
    folder.mkdir(parents=True)
    generator, form = np.random.default_rng(0), RowFormat(tokenizer)
    encoder, words = tokenizer.backend_tokenizer, words_of(tokenizer)
    sigma = np.sqrt(2 * np.log(MEAN_SECONDS / MEDIAN_SECONDS))
    with (folder / "train_input_ids.memmap").open("wb") as file:
        for first in range(0, rows, 5000):
            count = min(5000, rows - first)
            seconds = np.minimum(
                MEDIAN_SECONDS * np.exp(sigma * generator.normal(size=count)), 34.0
            )
            texts = encoder.encode_batch_fast(
                sentences(seconds, words, generator), add_special_tokens=False
            )
            ids = [np.array(item.ids[:200], np.int32) for item in texts]
            sizes = np.maximum((seconds * 50).astype(int), 1)
            code_ids = form.vocabulary.first_code + generator.integers(
                0, 65_536, sizes.sum()
            ).astype(np.int32)
            block = np.empty((count, WIDTH), np.int32)
            borders = [np.cumsum([0, *map(len, ids)]), np.cumsum([0, *sizes])]
            form.build(block, np.concatenate(ids), borders[0], code_ids, borders[1])
            file.write(block)
    np.save(folder / "train_input_ids_shape.npy", np.array([rows, WIDTH]))


def flush(folder: Path) -> None:
    """Wait until every file below a folder is on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def measured(work, out: Path) -> dict[str, float]:
    """Wall seconds until `work` returns and its files are on disk; CPU seconds of all threads."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    clock = Clock()
    work()
    buffered, done = clock.wall, clock.cpu
    flush(out)
    return {"wall": buffered, "durable": clock.wall, "cpu": done}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where the rows go (default: a temporary folder)")
    parser.add_argument("-o", "--out", required=True, help="JSON file")
    options = parser.parse_args()
    tokenizer = merge_tokenizer(build_llama3_tokenizer(locate_llama3_vocabulary()), 65_536)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        place = Path(name)
        write_rows(place / "public", options.rows, tokenizer)
        source = place / "public" / "train_input_ids.memmap"

        def copy():
            (place / "copy").mkdir()
            shutil.copyfile(source, place / "copy" / source.name)

        works = {
            "copy": (copy, place / "copy"),
            "import": (
                lambda: import_memmap(place / "public", place / "codes", tokenizer),
                place / "codes",
            ),
            "export": (
                lambda: export_memmap(place / "codes", place / "again", tokenizer),
                place / "again",
            ),
        }
        for work, out in works.values():  # the first round warms caches and is not counted
            measured(work, out)
        runs = {kind: [] for kind in works}
        for _ in range(options.repeats):
            for kind, (work, out) in works.items():
                runs[kind].append(measured(work, out))
        again = place / "again" / source.name
        same = source.stat().st_size == again.stat().st_size and all(
            np.array_equal(
                np.fromfile(source, np.int32, 2**24, offset=at),
                np.fromfile(again, np.int32, 2**24, offset=at),
            )
            for at in range(0, source.stat().st_size, 2**26)
        )
        meta = json.loads((place / "codes/train/meta.json").read_text())
        size, parts = (
            source.stat().st_size,
            sum(p.stat().st_size for p in (place / "codes").rglob("*.parquet")),
        )
    middle = {k: {c: statistics.median(run[c] for run in v) for c in v[0]} for k, v in runs.items()}
    report = {
        **head("memmap", ("numpy", "pyarrow")),
        "rows": options.rows,
        "width": WIDTH,
        "bytes": size,
        "bytes_of_codes_dataset": parts,
        "dropped": meta["dropped"],
        "byte_identical_round_trip": bool(same),
        "median_seconds": middle,
        "runs": runs,
        "megabytes_per_second": {
            k: {c: size / 1e6 / s for c, s in v.items()} for k, v in middle.items()
        },
        "share_of_copy_rate": {
            kind: {
                clock: middle["copy"][clock] / middle[kind][clock]
                for clock in ("wall", "durable", "cpu")
            }
            for kind in ("import", "export")
        },
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(options.out), report)
    print(
        json.dumps(
            {k: report[k] for k in ("megabytes_per_second", "share_of_copy_rate", "dropped")},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
