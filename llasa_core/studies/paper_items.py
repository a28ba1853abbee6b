"""Figures and tables of the paper, a row each: our answer, how it is made, what it took here and
would at full scale.

Published numbers, ours, runs and hours are read from results/; costs at full scale come from
`full_scale`. The trap avoided: the models of the paper are trained once for all figures, so only
the first row that needs them counts them.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from llasa_core.experiments.results import Result, read_results
from llasa_core.experiments.tables import markdown, with_interval
from llasa_core.studies import full_scale
from llasa_core.studies.full_scale import PARTIAL_PRM, PLAIN, PRM, RELEASED, Assumptions, Search

SEED_TTS_EVAL = 1_088 + 2_020 + 400  # lines of its en, zh and hard lists

CONTINUATION = 1_234  # utterances of LibriSpeech test-clean of 4 to 10 s

EMOTIONAL = 2 * 10 * 5 * 30  # ESD: languages, speakers, emotions, test sentences

UNDERSTANDING = 84  # sentences of experiments/text_understanding

TEST_CLEAN_HOURS = 5.4

STEP = "body-heavy", "packed_bf16"  # shape and variant of benchmarks/train_step.json


class Item(NamedTuple):
    """One figure or table.

    experiments: files of experiments/ in the order in which they run. beside: (protocol, metric,
    system, search) of its row in `beside_paper`. commands: instead of an experiment file. trained:
    (size, hours) of models that no earlier row has trained. spoken, searches: test sentences of
    every model of the paper. published, ours: words where there is no number.
    """

    name: str
    shows: str
    experiments: tuple[str, ...] = ()
    beside: tuple[str, str, str, str] | None = None
    commands: str = ""
    trained: tuple[tuple[str, float], ...] = ()
    spoken: int = 0
    searches: tuple[Search, ...] = (PLAIN,)
    published: str = ""
    ours: str = ""
    note: str = ""


_PROTOCOL = "llasa protocol {}; llasa synthesize --manifest; llasa evaluate --protocol"

_NO_RUN = "weights and recordings are out of reach here"

ITEMS = (
    Item(
        "Fig. 1",
        "train-time scaling",
        (
            "scaling",
            "scaling_prediction",
            "scaling_target",
            "scaling_speech",
            "scaling_scores",
            "train_time_scaling",
        ),
        trained=RELEASED,
        published="bars without numbers",
        note="the paper's five models, used by every row below",
    ),
    Item(
        "Fig. 1",
        "its expert scores of text understanding",
        ("text_understanding",),
        spoken=UNDERSTANDING,
        published="bars without numbers",
        ours="not rated",
        note="raters besides",
    ),
    Item(
        "Table 1",
        "codecs",
        ("codec_sizes", "codec_table", "codec_resynthesis"),
        ("codec", "WER, %", "X-codec2", ""),
    ),
    Item(
        "Table 2, left",
        "Seed-TTS-Eval",
        ("mini_llasa", "synthesis", "evaluation"),
        ("seed-tts-en", "WER, %", "llasa 1b 250k", "none"),
        spoken=SEED_TTS_EVAL,
    ),
    Item(
        "Table 2, right; Fig. 2",
        "inference-time scaling",
        ("inference_time_scaling", "search_sizes", "search_guided", "search_sizes_figures"),
        ("seed-tts-en", "WER, %", "llasa 1b 250k", "partial PRM (speaker) + ORM (WER)"),
        spoken=SEED_TTS_EVAL,
        searches=(PARTIAL_PRM,),
        note="the rows of the table; the beam widths of Fig. 2 are not published",
    ),
    Item("Table 3", "recognition", ("asr",), ("asr", "WER clean, %", "llasa-asr-1b", "")),
    Item(
        "Table 4",
        "emotion similarity, ESD",
        beside=("esd-en", "emotion similarity", "llasa 1b 250k", "none"),
        commands=_PROTOCOL.format("esd-en"),
        spoken=EMOTIONAL,
        searches=(PLAIN, PRM),
        note=_NO_RUN,
    ),
    Item(
        "Table 5",
        "continuation, LibriSpeech",
        beside=("librispeech-continuation", "WER, %", "llasa 1b 250k", "none"),
        commands=_PROTOCOL.format("librispeech-continuation"),
        spoken=CONTINUATION,
        searches=(PLAIN, PRM),
        note=_NO_RUN,
    ),
    Item(
        "ours only",
        "minutes of a new voice",
        ("finetuning", "finetuning_speech", "finetuning_scores", "finetuning_figures"),
        ours="above",
        note="the same fine-tunes of the 1B",
    ),
)


def paper_items(
    results_dir: str | Path, study: Mapping[str, Result], beside: pd.DataFrame, assumed: Assumptions
) -> pd.DataFrame:
    """A row a figure or table: item, shows, published, ours, command, runs, hours, and at full
    scale GPU hours.

    runs: finished ones; hours: of their wall time here, NaN without one. training_gpu_hours: of
    models no earlier row has trained, speaking_gpu_hours: of test sentences; NaN where there is
    none. note: what else there is to know.
    """
    rows = []
    for item in ITEMS:
        runs = [run for name in item.experiments for run in read_results(results_dir, name)]
        published, ours = _answer(item, study, beside)
        trained = full_scale.training_hours(_trained(item, assumed), assumed)
        if item.experiments[:1] == ("finetuning",):
            trained = _finetuning_hours(results_dir, assumed)
        commands = " && ".join(f"llasa run experiments/{name}.yaml" for name in item.experiments)
        spoken = full_scale.speaking_hours(item.spoken, item.searches, assumed)
        row = {"item": item.name, "shows": item.shows, "published": published, "ours": ours}
        row |= {
            "experiments": ", ".join(item.experiments),
            "command": commands or item.commands,
            "runs": len(runs),
        }
        row["hours"] = sum(_seconds(run) for run in runs) / 3600 if runs else math.nan
        row |= {"training_gpu_hours": trained or math.nan, "speaking_gpu_hours": spoken or math.nan}
        rows.append(
            row | {"note": _codec_note(results_dir) if item.name == "Table 1" else item.note}
        )
    return pd.DataFrame(rows)


def items_markdown(items: pd.DataFrame, results_dir: str | Path, assumed: Assumptions) -> str:
    """`paper_items` as Markdown with the assumptions below; experiment files as links."""
    header = [
        "",
        "published",
        "ours",
        "`llasa run` of",
        "finished here",
        "training, GPU h",
        "speaking, GPU h",
        "",
    ]
    lines = [
        [
            f"{row['item']}: {row['shows']}",
            row["published"],
            row["ours"],
            ", ".join(
                f"[{name}](experiments/{name}.yaml)"
                for name in row["experiments"].split(", ")
                if name
            )
            or f"`{row['command']}`",
            (
                f"{row['runs']} run{'s' * (row['runs'] > 1)}, {_time(row['hours'])}"
                if row["runs"]
                else ""
            ),
            _few_digits(row["training_gpu_hours"]),
            _few_digits(row["speaking_gpu_hours"]),
            row["note"],
        ]
        for row in items.to_dict("records")
    ]
    text = (
        f"{markdown(header, lines)}\n\nFinished here: wall time on two CPU cores shared with other"
        " work. GPU "
    )
    text += f"hours are arithmetic, no GPU was measured: {assumed.sentence()}."
    return (
        text
        + " Codec, verifiers and judges are not counted."
        + _step_sentence(results_dir, assumed)
    )


def flat_metrics(items: pd.DataFrame) -> dict[str, float]:
    """{"full_scale_ITEM_training_gpu_hours": value} of every number there is, for a result."""
    flat = {}
    for row in items.to_dict("records"):
        name = "".join(
            letter if letter.isalnum() else "_"
            for letter in f"{row['item']}_{row['shows']}".lower()
        )
        for key in ("training_gpu_hours", "speaking_gpu_hours"):
            if math.isfinite(row[key]):
                flat[f"full_scale_{name}_{key}"] = float(row[key])
    return flat


def step_flops_per_second(results_dir: str | Path) -> float | None:
    """FLOP/s a CPU thread that our training step reached in benchmarks/train_step.json; None
    without that file.

    6 FLOPs a parameter and token, head at every token, attention left out.
    """
    path = Path(results_dir, "benchmarks", "train_step.json")
    if not path.is_file():
        return None
    shape = json.loads(path.read_text(encoding="utf-8"))["shapes"][STEP[0]]
    return 6.0 * shape["parameters"]["total"] * shape["variants"][STEP[1]]["tokens_per_cpu_second"]


def _answer(item: Item, study: Mapping[str, Result], beside: pd.DataFrame) -> tuple[str, str]:
    """(published, ours) as cells."""
    if item.beside is None:
        law = item.shows == "train-time scaling" and "law" in study
        return item.published, _exponents(study["law"].metrics) if law else item.ours
    keys = ("protocol", "metric", "system", "search")
    row, *_ = [
        line
        for line in beside.to_dict("records")
        if tuple(line[key] for key in keys) == item.beside
    ]
    name, percent, _ = row["metric"].partition(", %")
    unit = " %" if percent else ""
    ours = f"{name} {row['ours']}{unit} (n = {row['n']:.0f})" if row["ours"] else ""
    return f"{name} {row['published']:g}{unit} ({row['system']})", ours


def _exponents(law: Mapping[str, float]) -> str:
    size, hours = (with_interval(law, f"surface_{name}_exponent") for name in ("size", "data"))
    return f"loss falls as size^-{size}, hours^-{hours} (n = {law['surface_n']:.0f} runs)"


def _trained(item: Item, assumed: Assumptions) -> tuple[tuple[str, float], ...]:
    return (
        (("1b", assumed.asr_hours), ("3b", assumed.asr_hours))
        if item.experiments == ("asr",)
        else item.trained
    )


def _finetuning_hours(results_dir: str | Path, assumed: Assumptions) -> float:
    """Of the runs here, by the 1B model; LoRA counted as if all weights learnt."""
    runs = [run for run in read_results(results_dir, "finetuning") if "train_hours" in run.metrics]
    return sum(
        full_scale.training_hours(
            [("1b", run.metrics["train_hours"])], assumed, run.params["epochs"]
        )
        for run in runs
    )


def _seconds(run: Result) -> float:
    """Wall time; a run that was stopped and went on has its training's sum beside the time of its
    last part.
    """
    return max(
        run.provenance.get("seconds", 0),
        run.metrics.get("seconds", 0),
        run.metrics.get("training_seconds", 0),
    )


def _codec_note(results_dir: str | Path) -> str:
    path = Path(results_dir, "benchmarks", "encode.json")
    if not path.is_file():
        return ""
    (rate,) = [
        codec["audio_hours_per_cpu_hour"]["ours"]
        for name, codec in json.loads(path.read_text(encoding="utf-8"))["codecs"].items()
        if name.startswith("xcodec2")
    ]
    hours = _few_digits(TEST_CLEAN_HOURS / rate)
    rate_from = "[encode.json](results/benchmarks/encode.json)"
    return f"{hours} CPU core hours to encode test-clean by X-codec2, at the rate of {rate_from}"


def _step_sentence(results_dir: str | Path, assumed: Assumptions) -> str:
    rate = step_flops_per_second(results_dir)
    if rate is None:
        return ""
    hours = full_scale.training_flops("1b", 250_000, assumed) / rate / 3600
    return (
        f" Measured is the step on a CPU only: {rate / 1e9:.0f} GFLOP/s a thread (the {STEP[0]}"
        " model of [train_step.json](results/benchmarks/train_step.json), bf16, 6 FLOPs a"
        f" parameter and token); at that rate the 1B on 250,000 hours would take {hours / 1e6:.1f}"
        " million thread hours."
    )


def _time(hours: float) -> str:
    minutes = 60 * hours
    return (
        f"{60 * minutes:.0f} s"
        if minutes < 1
        else f"{minutes:.0f} min"
        if minutes < 100
        else f"{hours:.1f} h"
    )


def _few_digits(value: float) -> str:
    """Two or three digits: 0.31, 4.6, 12, 1,230."""
    if not math.isfinite(value):
        return ""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.2g}" if value >= 0.01 else "< 0.01"
