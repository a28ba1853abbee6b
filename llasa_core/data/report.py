"""What is in a codes dataset: hours, lengths, code usage, rates, duplicates; numbers, figures and a
page of them.

Read part by part: memory holds a few bytes an utterance, not its codes. Nothing is judged here:
outliers are named and counted, and what to leave out is for `data_filter`.
"""

import hashlib
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from llasa_core import plots
from llasa_core.data.dataset import NumberedNames, read_meta, read_part
from llasa_core.errors import InputError
from llasa_core.files import names_full_disk, publish, render_page, write_json

# robust standard deviations from the median of a language, beyond which a rate is an outlier
FAR = 5.0

SHOWN = 50  # of a list on the page and in report.json


def data_report(
    codes: str | Path, out: str | Path, progress: Callable[[int], None] | None = None
) -> dict:
    """Write out/report.json, out/index.html and its figures for a codes dataset; returns the
    report.

    Hours, utterances and hours by language and speaker; quantiles of length and of characters a
    second; codes in use, entropy (bits; of the codes alone, not of their order); outliers of the
    text/speech rate; utterances whose seconds are not those of their codes; equal ids, equal codes,
    equal texts of one speaker. InputError as `read_codes`.
    """
    meta = read_meta(codes)
    if not meta["utterances"]:
        raise InputError(f"{codes}: no utterances in it, expected a codes dataset to report on")
    usage = np.zeros(meta["codebook_size"], np.int64)
    columns: dict[str, list] = {
        name: [] for name in ("seconds", "characters", "frames", "run", "sound", "said", "id")
    }
    coded = {"speaker": NumberedNames(), "language": NumberedNames()}
    ids: list[pa.Array] = []
    for shard in meta["shards"]:
        table = read_part(codes, shard, meta["codebook_size"])
        if not len(table):
            continue
        lists = table["codes"].chunk(0)
        values, borders = lists.values.to_numpy(), lists.offsets.to_numpy().astype(np.int64)
        usage += np.bincount(values, minlength=len(usage))
        columns["seconds"].append(table["seconds"].to_numpy())
        columns["characters"].append(pc.utf8_length(table["text"]).to_numpy())
        columns["frames"].append(np.diff(borders))
        columns["run"].append(_longest_runs(values, borders))
        columns["sound"].append(_digests(values[a:b] for a, b in pairwise(borders.tolist())))
        speakers, texts = (table[name].to_pylist() for name in ("speaker", "text"))
        columns["said"].append(
            _digests(f"{one}\0{text}".encode() for one, text in zip(speakers, texts, strict=True))
        )
        columns["id"].append(_digests(id.encode() for id in table["id"].to_pylist()))
        ids += table["id"].chunks
        for name, one in coded.items():
            one.add(table[name].combine_chunks())
        if progress:
            progress(len(table))
    frame = pd.DataFrame({name: np.concatenate(arrays) for name, arrays in columns.items()})
    for name, one in coded.items():
        frame[name] = pd.Categorical.from_codes(np.concatenate(one.numbers), list(one.names))
    frame["rate"] = frame["characters"] / np.maximum(frame["seconds"], 1e-3)
    report = _numbers(frame, pa.chunked_array(ids, pa.string()), usage, meta)
    _publish(Path(out), report, frame, usage, str(codes))
    return report


def _numbers(frame: pd.DataFrame, ids: pa.ChunkedArray, usage: np.ndarray, meta: dict) -> dict:
    far = _outliers(frame)
    expected = frame["frames"] / meta["frame_rate"]
    wrong = np.flatnonzero((frame["seconds"] - expected).abs() > 1.5 / meta["frame_rate"])
    order = far[np.argsort(-np.abs(frame["deviation"].to_numpy()[far]), kind="stable")][:SHOWN]
    return {
        "utterances": len(frame),
        "hours": float(np.sum(frame["seconds"].to_numpy(), dtype=np.float64) / 3600),
        "codec": meta["codec"],
        "by_language": _hours(frame, "language"),
        "by_speaker": dict(list(_hours(frame, "speaker").items())[:SHOWN]),
        "speakers": int((frame["speaker"].cat.categories != "").sum()),
        "seconds": _quantiles(frame["seconds"]),
        "characters_per_second": _quantiles(frame["rate"]),
        "codes": _usage(usage),
        "longest_run_of_one_code_seconds": _quantiles(frame["run"] / meta["frame_rate"]),
        "rate_outliers": {
            "count": len(far),
            "beyond": (
                f"{FAR:g} robust standard deviations of log characters a second within a language"
            ),
            "farthest": [
                {"id": ids[int(at)].as_py(), "characters_per_second": float(frame["rate"][at])}
                for at in order
            ],
        },
        "seconds_not_those_of_the_codes": {
            "count": len(wrong),
            "first": [ids[int(at)].as_py() for at in wrong[:SHOWN]],
        },
        "duplicates": {
            name: _duplicates(frame[column], ids) for name, column in DUPLICATES.items()
        },
        "dropped_when_made": meta.get("dropped", {}),
    }


DUPLICATES = {"ids": "id", "codes": "sound", "texts_of_one_speaker": "said"}


def _hours(frame: pd.DataFrame, column: str) -> dict[str, dict]:
    """{name: utterances and hours}, the most hours first."""
    groups = (
        frame.groupby(column, observed=True)["seconds"]
        .agg(["size", "sum"])
        .sort_values("sum", ascending=False)
    )
    return {
        str(name): {"utterances": int(row["size"]), "hours": round(float(row["sum"]) / 3600, 4)}
        for name, row in groups.iterrows()
    }


def _quantiles(values: pd.Series) -> dict[str, float]:
    points = {
        "min": 0,
        "1 %": 0.01,
        "25 %": 0.25,
        "50 %": 0.5,
        "75 %": 0.75,
        "99 %": 0.99,
        "max": 1,
    }
    found = {name: round(float(values.quantile(point)), 4) for name, point in points.items()}
    return found | {"mean": round(float(values.mean()), 4), "n": len(values)}


def _usage(usage: np.ndarray) -> dict:
    share = usage[usage > 0] / max(usage.sum(), 1)
    entropy = float(-(share * np.log2(share)).sum())
    return {
        "total": int(usage.sum()),
        "codebook_size": len(usage),
        "in_use": int((usage > 0).sum()),
        "entropy_bits": round(entropy, 4),
        "perplexity": round(2**entropy, 1),
        "half_of_all_are_of_so_many": (
            int(np.searchsorted(np.cumsum(np.sort(share)[::-1]), 0.5) + 1) if len(share) else 0
        ),
    }


def _outliers(frame: pd.DataFrame) -> np.ndarray:
    """Rows whose log rate lies far from its language's median; adds the column `deviation`."""
    log = np.log(frame["rate"].clip(lower=0.1))
    groups = log.groupby(frame["language"], observed=True)
    middle = groups.transform("median")
    spread = (log - middle).abs().groupby(frame["language"], observed=True).transform(
        "median"
    ) * 1.4826
    frame["deviation"] = (log - middle) / spread.clip(lower=0.02)
    return np.flatnonzero(frame["deviation"].abs() > FAR)


def _duplicates(digests: pd.Series, ids: pa.ChunkedArray) -> dict:
    """Utterances beyond the first of equal digests, and the first groups."""
    again = np.flatnonzero(digests.duplicated())
    wanted = list(dict.fromkeys(digests.iloc[again[: 10 * SHOWN]].tolist()))[:SHOWN]
    places = np.flatnonzero(digests.isin(wanted))
    groups: dict[int, list[str]] = {}
    for at in places:
        groups.setdefault(int(digests.iloc[at]), []).append(ids[int(at)].as_py())
    return {"count": len(again), "first": [groups[one][:10] for one in wanted]}


def _digests(items) -> np.ndarray:
    """uint64 (N,)"""
    whole = b"".join(hashlib.blake2b(item, digest_size=8).digest() for item in items)
    return np.frombuffer(whole, np.uint64)


def _longest_runs(values: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """int64 (N,): the longest run of one repeated code in each utterance."""
    if not len(values):
        return np.zeros(len(borders) - 1, np.int64)
    first = np.ones(len(values), bool)
    first[1:] = values[1:] != values[:-1]
    first[borders[:-1][borders[:-1] < len(values)]] = True
    starts = np.flatnonzero(first)
    lengths = np.diff(np.append(starts, len(values)))
    owner = np.searchsorted(borders, starts, side="right") - 1
    longest = np.zeros(len(borders) - 1, np.int64)
    np.maximum.at(longest, owner, lengths)
    return longest


def _publish(out: Path, report: dict, frame: pd.DataFrame, usage: np.ndarray, name: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    drawn = {
        "hours.png": hours_figure(report["by_language"], report["by_speaker"]),
        "lengths.png": lengths_figure(frame["seconds"], frame["rate"]),
        "codes.png": code_usage_figure(usage),
        "rates.png": rates_figure(frame),
    }
    for file, figure in drawn.items():
        with names_full_disk(out / file):
            figure.savefig(out / file)
    write_json(out / "report.json", report)
    rows = {
        "utterances": f"{report['utterances']:,}",
        "hours": f"{report['hours']:,.2f}",
        "codec": report["codec"],
        "languages": ", ".join(
            f"{key or '(none)'} {one['hours']:g} h" for key, one in report["by_language"].items()
        ),
        "speakers": report["speakers"],
        "codes": f"{report['codes']['total']:,}",
        "codes in use": f"{report['codes']['in_use']:,} of {report['codes']['codebook_size']:,}",
        "entropy of the codes": f"{report['codes']['entropy_bits']} bits",
        "rate outliers": (
            f"{report['rate_outliers']['count']} beyond {report['rate_outliers']['beyond']}"
        ),
        "seconds not those of the codes": report["seconds_not_those_of_the_codes"]["count"],
        **{
            f"equal {key.replace('_', ' ')}": one["count"]
            for key, one in report["duplicates"].items()
        },
        "dropped when made": (
            ", ".join(f"{key} {count}" for key, count in report["dropped_when_made"].items())
            or "none"
        ),
    }
    farthest = [
        (one["id"], f"{one['characters_per_second']:.2f}")
        for one in report["rate_outliers"]["farthest"]
    ]
    equal = {key.replace("_", " "): one["first"] for key, one in report["duplicates"].items()}
    page = render_page(
        Path(__file__).parent,
        "report",
        title=f"Data report: {name}",
        rows=rows,
        pictures=dict(zip(drawn, CAPTIONS, strict=True)),
        farthest=farthest,
        equal={key: groups for key, groups in equal.items() if groups},
    )
    publish(out / "index.html", page)


CAPTIONS = (
    "Hours by language and speaker",
    "Length and text rate",
    "Use of the codes",
    "Text against speech",
)


MOST_BARS = 20

MOST_POINTS = 20_000


def hours_figure(by_language: Mapping[str, Mapping], by_speaker: Mapping[str, Mapping]) -> Figure:
    """Hours by language and by the longest speakers, {name: {"hours": ..}}, most first."""
    with matplotlib.rc_context(plots.STYLE):
        figure, axes = plots.new_axes(2, width=4.6, height=3.6)
        for axis, table, label in zip(
            axes, (by_language, by_speaker), ("language", "speaker"), strict=True
        ):
            shown = list(table.items())[:MOST_BARS][::-1]
            axis.barh(
                [name or "(none)" for name, _ in shown],
                [one["hours"] for _, one in shown],
                color=plots.COLOURS[0],
            )
            axis.set(
                xlabel="hours",
                title=f"{label}s" + (f" (of {len(table)})" if len(table) > MOST_BARS else ""),
            )
            axis.set_ylim(min(len(shown), 6) - 6.6, len(shown) - 0.4)  # a single bar is not a wall
            axis.grid(axis="y", visible=False)
        return figure


def lengths_figure(seconds: pd.Series, rate: pd.Series) -> Figure:
    """Histograms of utterance length (s) and of characters a second, with their medians."""
    with matplotlib.rc_context(plots.STYLE):
        figure, axes = plots.new_axes(2, width=4.6)
        for axis, values, label in zip(
            axes, (seconds, rate), ("length (s)", "characters per second"), strict=True
        ):
            top = float(values.quantile(0.999)) or 1.0
            axis.hist(values.clip(upper=top), bins=60, color=plots.COLOURS[0])
            middle = float(values.median())
            axis.axvline(
                middle,
                color=plots.COLOURS[1],
                linestyle=plots.LINES[1],
                label=f"median {middle:.2f}",
            )
            axis.set(xlabel=label, ylabel="utterances")
            axis.legend()
        return figure


def code_usage_figure(usage: np.ndarray) -> Figure:
    """Counts of codes, most frequent first (logarithmic), and their cumulative share."""
    with matplotlib.rc_context(plots.STYLE):
        figure, (left, right) = plots.new_axes(2, width=4.6)
        counts = np.sort(usage)[::-1]
        counts = counts[counts > 0]
        rank = np.arange(1, len(counts) + 1)
        points = (
            np.unique(np.geomspace(1, max(len(counts), 1), 2000).astype(int)) - 1
            if len(counts)
            else np.zeros(0, int)
        )
        left.loglog(rank[points], counts[points], color=plots.COLOURS[0])
        left.set(
            xlabel="rank of the code",
            ylabel="occurrences",
            title=f"{len(counts):,} of {len(usage):,} in use",
        )
        right.plot(
            rank[points] / len(usage),
            (np.cumsum(counts) / max(counts.sum(), 1))[points],
            color=plots.COLOURS[0],
        )
        right.set(
            xlabel="share of the codebook, commonest first",
            ylabel="share of all codes",
            ylim=(0, 1),
        )
        return figure


def rates_figure(frame: pd.DataFrame) -> Figure:
    """Characters against seconds, outliers marked; columns seconds, characters, deviation."""
    with matplotlib.rc_context(plots.STYLE):
        figure, (axis,) = plots.new_axes(1, width=5.6, height=3.6)
        far = frame["deviation"].abs() > 5
        plain = frame[~far]
        if len(plain) > MOST_POINTS:
            plain = plain.sample(MOST_POINTS, random_state=0)
        dots = {"linestyle": "none", "alpha": 0.3, "rasterized": True}
        axis.plot(
            plain["seconds"],
            plain["characters"],
            marker=".",
            markersize=2,
            color=plots.COLOURS[0],
            **dots,
        )
        some = frame[far].head(MOST_POINTS)
        axis.plot(
            some["seconds"],
            some["characters"],
            "x",
            color=plots.COLOURS[1],
            label=f"{int(far.sum())} outliers",
        )
        axis.set(xlabel="length (s)", ylabel="characters of the text")
        axis.legend()
        return figure
