"""Scores exported from a rating page: checked against its key, then means by system and category,
and agreement.

The unit is the sentence: raters are averaged within it and the bootstrap resamples sentences.
Scores of another page, a duplicate rater or a missing clip are errors, not silently averaged away.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llasa_core import intervals
from llasa_core.errors import InputError, fits
from llasa_core.evaluation.rating.page import SCHEMA
from llasa_core.evaluation.rating.sentences import LEVELS
from llasa_core.evaluation.scoring import publish_scores
from llasa_core.files import brief, read_object


def read_scores(paths: Sequence[str | Path], key: str | Path) -> list[dict[str, Any]]:
    """Rows id, rater, system, sentence, language, category, score, place (0: heard first) of
    several exported files.

    Raises InputError with the file for another page (hash), an item that is not on the page, a
    score other than 1, 2 or 3, items without a score, and a rater who occurs in two files.
    """
    unblinded = _object_with(key, ("page", "items", "sentences"))
    try:
        sentences = {sentence["id"]: sentence for sentence in unblinded["sentences"]}
        for meant in unblinded["items"].values():
            sentence = sentences[meant["sentence"]]
            texts = [meant["system"], sentence["language"], sentence["category"]]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("other than text")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{key}: not what llasa rating-page wrote ({brief(error)}), expected its key.json"
        ) from None
    rows: list[dict[str, Any]] = []
    raters: dict[str, str | Path] = {}
    for path in paths:
        exported = _object_with(path, ("schema", "page", "rater", "scores"))
        if exported["schema"] != SCHEMA or exported["page"] != unblinded["page"]:
            raise InputError(
                f"{path}: scores of page {exported['page']!r} (schema {exported['schema']!r}), "
                f"expected those of {unblinded['page']!r} (schema {SCHEMA}), whose key is {key}"
            )
        rater = exported["rater"]
        if not isinstance(rater, str) or not rater:
            raise InputError(f"{path}: rater is {rater!r}, expected a name")
        if rater in raters:
            raise InputError(f"{path}: rater {rater!r} is a duplicate (first in {raters[rater]})")
        raters[rater] = path
        scored = _scored_items(path, exported["scores"], unblinded["items"])
        if missing := sorted(set(unblinded["items"]) - set(scored)):
            raise InputError(
                f"{path}: incomplete, {len(missing)} of {len(unblinded['items'])} clips have no"
                f" score ({missing[0]} first)"
            )
        for item, (score, place) in scored.items():
            meant = unblinded["items"][item]
            sentence = sentences[meant["sentence"]]
            row = {
                "id": f"{rater}/{item}",
                "rater": rater,
                "system": meant["system"],
                "sentence": sentence["id"],
            }
            row |= {"language": sentence["language"], "category": sentence["category"]}
            rows.append(row | {"score": score, "place": place})
    if not rows:
        raise InputError("rating scores: no file of scores, expected at least one")
    return rows


def mean_scores(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> pd.DataFrame:
    """A row for each language, system and category, and for "all" categories of a language and
    system.

    Columns language, system, category, score (mean of the sentences' means, 1 to 3), score_low,
    score_high (95 %, bootstrap over sentences), score_n (sentences), raters.
    """
    table = pd.DataFrame(rows)
    groups = [*table.groupby(["language", "system", "category"], sort=False)]
    groups += [
        ((*name, "all"), part) for name, part in table.groupby(["language", "system"], sort=False)
    ]
    means = []
    for (language, system, category), part in groups:
        values = part.groupby("sentence", sort=False)["score"].mean().to_numpy()
        interval = intervals.bootstrap_interval(values, seed=seed)
        score = {
            "score": float(values.mean()),
            "score_low": interval.low,
            "score_high": interval.high,
        }
        means.append(
            {
                "language": language,
                "system": system,
                "category": category,
                **score,
                "score_n": len(values),
            }
        )
        means[-1]["raters"] = int(part["rater"].nunique())
    return pd.DataFrame(means)


def agreement(
    rows: Sequence[Mapping[str, Any]], n_boot: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Krippendorff's alpha of the raters over all clips, with its 95 % interval (bootstrap over
    sentences).

    alpha, alpha_low, alpha_high, alpha_n (clips with two scores or more), alpha_raters. {} for a
    single rater, and where all scores are equal: agreement beyond chance is then not defined.
    """
    table = pd.DataFrame(rows)
    if table["rater"].nunique() < 2:
        return {}
    levels = sorted(LEVELS)
    # (N, L)
    counts = np.stack([table["score"] == level for level in levels], axis=1).astype(np.float64)
    clips = table["sentence"].astype(str) + "\0" + table["system"].astype(str)
    number, names = pd.factorize(clips)
    units = np.zeros((len(names), len(levels)))
    np.add.at(units, number, counts)
    pairs = coincidences(units)
    alpha = ordinal_alpha(pairs.sum(axis=0))
    if alpha is None:
        return {}
    owner, sentences = pd.factorize(pd.Series(names).str.partition("\0")[0])
    summed = np.zeros((len(sentences), *pairs.shape[1:]))
    np.add.at(summed, owner, pairs)
    drawn = np.random.default_rng(seed).integers(len(sentences), size=(n_boot, len(sentences)))
    resampled = [
        value
        for value in map(ordinal_alpha, (summed[row].sum(axis=0) for row in drawn))
        if value is not None
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    found = {"alpha": alpha, "alpha_low": float(low), "alpha_high": float(high)}
    return found | {
        "alpha_n": int((units.sum(axis=1) > 1).sum()),
        "alpha_raters": int(table["rater"].nunique()),
    }


def coincidences(units: np.ndarray) -> np.ndarray:
    """Coincidence matrices (U, L, L) of units (U, L), the number of raters who gave a unit each
    level.

    Krippendorff (2011), Computing Krippendorff's alpha-reliability, step C; a unit with one rater
    forms no pair.
    """
    units = np.asarray(units, np.float64)
    raters = units.sum(axis=1)[:, None, None]
    pairs = units[:, :, None] * units[:, None, :] - units[:, :, None] * np.eye(units.shape[1])
    return np.where(raters > 1, pairs / np.maximum(raters - 1, 1), 0.0)


def ordinal_alpha(pairs: np.ndarray) -> float | None:
    """Krippendorff's alpha with the ordinal metric, of a coincidence matrix (L, L) in the order of
    the levels.

    The difference of levels c < k is (n_c / 2 + n_{c+1} + .. + n_{k-1} + n_k / 2) squared. None
    where only one level occurs.
    """
    totals = pairs.sum(axis=1)
    reach = np.cumsum(totals) - totals / 2  # n below a level and half of its own
    difference = (reach[:, None] - reach[None, :]) ** 2
    expected = (np.outer(totals, totals) * difference).sum()
    if expected == 0:
        return None
    return float(1 - (totals.sum() - 1) * (pairs * difference).sum() / expected)


def aggregate(
    paths: Sequence[str | Path], key: str | Path, out: str | Path, seed: int = 0
) -> dict[str, Any]:
    """Write OUT/utterances.jsonl (a row a score) and OUT/summary.json, which is returned."""
    rows = read_scores(paths, key)
    by_language = {
        language: [r for r in rows if r["language"] == language]
        for language in {r["language"] for r in rows}
    }
    report = {
        "page": _object_with(key, ("page",))["page"],
        "raters": len({row["rater"] for row in rows}),
        "scores": mean_scores(rows, seed).to_dict("records"),
        "agreement": {
            language: agreement(part, seed=seed) for language, part in sorted(by_language.items())
        },
        "seed": seed,
    }
    publish_scores(out, rows, report)
    return report


def _scored_items(
    path: str | Path, scores: Any, items: Mapping[str, Any]
) -> dict[str, tuple[int, int]]:
    if not isinstance(scores, list):
        raise InputError(f"{path}: scores is a JSON {type(scores).__name__}, expected a list")
    found: dict[str, tuple[int, int]] = {}
    for number, entry in enumerate(scores, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("item"), str):
            raise InputError(
                f"{path}: score {number} is {json.dumps(entry)[:60]}, expected an object with item"
                " and score"
            )
        item, score, place = entry["item"], entry.get("score"), entry.get("place", 0)
        if item not in items:
            raise InputError(
                f"{path}: score {number} is of {item!r}, a clip that the page does not have"
            )
        if item in found:
            raise InputError(
                f"{path}: score {number} is of {item!r} again, expected one score a clip"
            )
        if not fits(score, int) or score not in LEVELS:
            raise InputError(
                f"{path}: score {number} is {score!r}, expected {', '.join(map(str, LEVELS))}"
            )
        if not fits(place, int) or place < 0:
            raise InputError(
                f"{path}: score {number} has the place {place!r}, expected a whole number"
            )
        found[item] = (score, place)
    return found


def _object_with(path: str | Path, keys: Sequence[str]) -> dict[str, Any]:
    value = read_object(path, finite=True)
    if missing := [name for name in keys if name not in value]:
        raise InputError(f"{path}: the key {missing[0]!r} is missing, expected {', '.join(keys)}")
    return value
