"""The benchmarks of results/benchmarks as one table of the README: what was compared, the ratio,
its spread, the file.

A benchmark that has not been run has no row, so the table never says more than the files do.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER = ["", "ratio", "from"]

STEP = {  # name in train_step.json: words
    "fp32 over public fp32": "training step, fp32 against the public recipe in fp32",
    "bf16 over public fp32": "training step, bf16 against the public recipe in fp32",
    "bf16 over public bf16": "training step, bf16 against the public recipe in bf16",
    "fp32 over grouped fp32": (
        "training step, against batches of like lengths with labelled positions only, fp32"
    ),
    "peak memory, fp32 over public fp32": "peak memory of that step, share of the public recipe's",
}


def speed_rows(results_dir: str | Path) -> list[list[str]]:
    """Cells of the table: what is compared, the ratio with the least and most of its repeats, the
    file's name.
    """
    rows = []
    for name, read in (
        ("train_step", _train_step),
        ("decoding", _decoding),
        ("search", _search),
        ("encode", _encode),
        ("memmap", _memmap),
    ):
        path = Path(results_dir) / "benchmarks" / f"{name}.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            rows += [
                [what, ratio, f"[{name}.json](results/benchmarks/{name}.json)"]
                for what, ratio in read(found)
            ]
    return rows


def _train_step(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, what in STEP.items():
        for shape, measured in found["shapes"].items():
            ratio = measured["ratios"][key]
            form = "{:.0%}" if "memory" in key else "{:.1f} x"
            median, least, most = (form.format(ratio[name]) for name in ("median", "least", "most"))
            yield f"{what}; {shape} model", f"{median} ({least} to {most}, n = {ratio['n']})"
    yield "loading a sample for training", f"{found['data']['ratio']:.0f} x"


def _decoding(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for model in found["models"]:
        best = max(
            (side for key, side in model.items() if key.startswith("slots_")),
            key=lambda side: side["ratio"],
        )
        what = (
            f"codes generated, {found['utterances']} utterances against one-by-one `generate`;"
            f" {model['model']} model"
        )
        yield (
            what,
            f"{best['ratio']:.1f} x (lowest pair of turns {best['lowest_ratio_of_turns']:.1f} x)",
        )


def _search(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "best of 16, share of the cost of 16 runs, verifiers included",
        f"{found['best_of_16']['share']:.0%}",
    )


def _encode(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for codec, measured in found["codecs"].items():
        equal = measured["share_of_codes_equal_to_each_file_alone"]
        exact = f"codes as of each file alone: {equal['ours']:.1%}, the loop's {equal['loop']:.1%}"
        yield (
            f"encoding against a padded loader loop; {codec}",
            f"{measured['ratio_cpu']:.1f} x ({exact})",
        )


def _memmap(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for way, share in found["share_of_copy_rate"].items():
        yield (
            f"{way} of public memory maps, rate as a share of a plain file copy's",
            f"{share['wall']:.0%}",
        )
