"""What of the paper's claims (arXiv 2502.04128v1) shows here: a verdict each by a stated rule, from
the rows of finished runs.

No number is typed: differences are recomputed from scored utterances, paired by text, and a claim
whose runs are missing is "not run".
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from llasa_core.evaluation.lack_of_fit import choose
from llasa_core.evaluation.recognition import compare_losses
from llasa_core.evaluation.scaling_law import FORMS, fit_surface
from llasa_core.evaluation.seeds import over_seeds
from llasa_core.evaluation.summary import summarise
from llasa_core.experiments import tables
from llasa_core.experiments.results import Result, find_run, read_results, read_scored, system_rows
from llasa_core.intervals import compare_systems

SHOWN, CONTRADICTED, NOT_SHOWN = "shown here", "contradicted here", "not shown"
NOT_TESTABLE, NOT_RUN = "not testable here", "not run"
VERDICTS = (SHOWN, NOT_SHOWN, CONTRADICTED, NOT_TESTABLE, NOT_RUN)

RULE = (
    "The rule: a claim names the side on which a difference lies. Its 95 % interval excludes zero"
    f" on that side: {SHOWN}; on the other side: {CONTRADICTED}; else: {NOT_SHOWN}. Of several"
    " differences all have to show, and one that contradicts decides. Of a series (sizes, hours,"
    " candidates) the last is held against the first, and no step may contradict. Differences are"
    " paired by utterance; several training seeds widen the interval by their scatter. Recognition"
    " is held against half of the words, a prompted voice against chance, and a law against its own"
    " runs (lack of fit) and against a larger one (interval of its prediction)."
)

Level = tuple[str, Mapping[int, Sequence[Mapping]]]  # name, {training seed: scored rows}


@dataclass(frozen=True)
class Measure:
    """A metric, how two systems are compared in it, and how it is written."""

    compare: Callable[..., Mapping[str, float]]
    name: str
    unit: str
    factor: float = 1.0
    decimals: int = 1


WORDS = Measure(compare_systems, "corpus_wer_difference", "points of WER", 100)
VOICE = Measure(compare_systems, "speaker_similarity_difference", "of similarity", 1, 3)
LOSS = Measure(compare_losses, "bits_per_second_difference", "bits a second")


@dataclass(frozen=True)
class Difference:
    """A measured value with its 95 % interval and count, and the `side` (-1 or 1) of `against` on
    which a claim wants it.
    """

    value: float
    low: float
    high: float
    n: int
    side: int
    text: str  # the number as it is shown
    against: float = 0.0

    @property
    def verdict(self) -> str:
        near, far = (self.low, self.high) if self.side > 0 else (self.high, self.low)
        if self.side * (near - self.against) > 0:
            return SHOWN
        return CONTRADICTED if self.side * (far - self.against) < 0 else NOT_SHOWN


@dataclass(frozen=True)
class Claim:
    """A claim, where the paper makes it, its verdict, the number that decides and its runs."""

    claim: str
    where: str
    verdict: str
    number: str = ""
    runs: tuple[str, ...] = ()


def joined(verdicts: Iterable[str]) -> str:
    """The verdict of a claim of several parts: one that contradicts decides, all have to show."""
    found = set(verdicts)
    if CONTRADICTED in found:
        return CONTRADICTED
    return SHOWN if found == {SHOWN} else NOT_SHOWN


def measured(
    found: Mapping[str, float],
    metric: str,
    side: int,
    what: str,
    against: float = 0.0,
    factor: float = 1.0,
    decimals: int = 1,
) -> Difference:
    """The Difference of METRIC, METRIC_low, METRIC_high and METRIC_n; what: unit and names."""
    value, low, high, n = (found[f"{metric}{end}"] for end in ("", "_low", "_high", "_n"))
    seeds = int(found.get("seeds", 1))
    counted = f"n = {n:.0f}" + (f", {seeds} seeds" if seeds > 1 else "")
    number = tables.with_interval(found, metric, factor, decimals)
    return Difference(value, low, high, int(n), side, f"{number} {what} ({counted})", against)


def difference(measure: Measure, side: int, a: Level, b: Level) -> Difference:
    """System b minus a, paired by utterance, over the training seeds that both have."""
    found = over_seeds(measure.compare, measure.name, a[1], b[1])
    what = f"{measure.unit}, {a[0]} to {b[0]}"
    return measured(found, measure.name, side, what, 0.0, measure.factor, measure.decimals)


def series(measure: Measure, side: int, levels: Sequence[Level]) -> tuple[str, str]:
    """(verdict, number) of levels in rising order: the last against the first, no step the other
    way.
    """
    whole = difference(measure, side, levels[0], levels[-1])
    steps = [difference(measure, side, *pair) for pair in itertools.pairwise(levels)]
    against = [step for step in steps if step.verdict == CONTRADICTED]
    verdict = CONTRADICTED if against else whole.verdict
    if len(steps) < 2:
        return verdict, whole.text
    shown = sum(step.verdict == SHOWN for step in steps)
    said = f"; {shown} of {len(steps)} steps exclude zero"
    return verdict, whole.text + said + "".join(f"; against: {step.text}" for step in against)


def together(differences: Sequence[Difference]) -> tuple[str, str]:
    """(verdict, number) of a claim that needs all of the differences."""
    return joined(one.verdict for one in differences), "; ".join(one.text for one in differences)


def place(result: Result) -> str:
    return f"{result.experiment}/{result.run}"


# Train-time compute


def ladder(
    cells: pd.DataFrame, rises: str, fixed: str, rows: Callable[[Any], Sequence[Mapping]]
) -> tuple[list[Level], str]:
    """(levels, what is held fixed) along the column `rises` where most of them share a value of
    `fixed`, the greatest of such values. cells: parameters, hours, seed, model; rows: of one cell.
    """
    cells = cells.assign(hours=cells["hours"].round(1))
    counts = cells.groupby(fixed)[rises].nunique()
    held = counts[counts == counts.max()].index.max()
    levels = []
    for value, group in cells[cells[fixed] == held].groupby(rises):
        name = group["model"].iloc[0] if rises == "parameters" else f"{value:g} h"
        levels.append((str(name), {int(cell.seed): rows(cell) for cell in group.itertuples()}))
    kept = cells[cells[fixed] == held]["model"].iloc[0]
    return levels, f"at {held:g} h" if fixed == "hours" else f"at size {kept}"


def train_time(results_dir: str | Path, study: Mapping[str, Result]) -> list[Claim]:
    """Loss of the training grid, and words of what its models said, by size and by hours."""
    axes = {
        "More parameters": ("parameters", "hours"),
        "More hours of speech": ("hours", "parameters"),
    }
    sources: list[tuple[str, Measure, pd.DataFrame | None, Callable, tuple[str, ...]]] = []
    cells, speech = None, None
    if "law" in study:
        trained = tables.training_runs(results_dir, study["law"].params["study"])
        cells = trained[trained["diverged"] == 0]
    runs = {place(run): run for run in read_results(results_dir)} if cells is not None else {}
    named = () if cells is None else (f"{study['law'].params['study']}/*",)
    sources.append(
        ("lower the held-out loss", LOSS, cells, lambda c: runs[c.run].rows("held_out"), named)
    )
    params = study["law"].params if cells is not None else {"scored": ""}
    scored = read_scored(results_dir, params["scored"]) if params["scored"] else []
    if scored:
        larger = find_run(results_dir, params["target"]) if params["target"] else None
        experiments = [params["study"], *([larger.experiment] if larger else [])]
        speech = tables.speech_by_training(results_dir, scored, params["spoken"], experiments)
        of_grid = speech["run"].str.startswith(f"{params['study']}/")
        speech = speech[of_grid]  # a larger run has one seed, which makes no claim
    heard = {place(run): system_rows(run) for run in scored}
    said = {name: rows for systems in heard.values() for name, rows in systems.items()}
    named = tuple(run for run, rows in heard.items() if set(speech["system"]) & rows.keys())
    sources.append(("lower the WER", WORDS, speech, lambda c: said[c.system], named))
    found = []
    for name, (rises, fixed) in axes.items():
        for what, measure, table, rows, names in sources:
            claim = partial(Claim, f"{name} {what}", "Fig. 1; Table 2, left")
            if table is None or table[rises].nunique() < 2:
                found.append(claim(NOT_RUN))
                continue
            levels, kept = ladder(table, rises, fixed, rows)
            verdict, number = series(measure, -1, levels)
            number += f", {kept}"
            law = study["law"].metrics
            if (rises, measure) == ("hours", LOSS) and "reuse_fresh_speech_n" in law:
                fall, of = (law[f"reuse_fresh_speech_{key}"] for key in ("fall", "n"))
                number += f"; steps held equal, fresh speech lowers it in {fall:.0f} of {of:.0f}"
            found.append(claim(verdict, number, names))
    return found


def power_law(results_dir: str | Path, study: Mapping[str, Result]) -> Claim:
    """Contradicted where the runs reject every form or a larger run misses the interval that was
    recorded before it was trained; shown where the chosen form (`lack_of_fit.choose`) was tested
    and the prediction holds.
    """
    claim = partial(Claim, "The loss falls as a power law", "no law in the paper's tables")
    if "law" not in study:
        return claim(NOT_RUN)
    params = study["law"].params
    trained = tables.training_runs(results_dir, params["study"])
    trained = trained[trained["diverged"] == 0]
    places = [trained[key] for key in ("parameters", "hours", "loss")]
    checks = {form.name: fit_surface(*places, n_boot=1, form=form).checks for form in FORMS}
    chosen = choose(checks)
    names = [f"{params['study']}/*"]
    number = f"{chosen} of {len(FORMS)} forms, {checks[chosen].text()} ({len(trained)} runs)"
    larger, holds = params["target"].split("/")[0], []
    prediction = find_run(results_dir, params["prediction"]) if params["prediction"] else None
    for run in read_results(results_dir, larger) if larger and prediction else []:
        row = tables.training_row(run)
        said = ("predicted", "predicted_run_low", "predicted_run_high")
        predicted, low, high = (prediction.metrics[name] for name in said)
        holds.append(bool(low <= row["loss"] <= high))  # a run that diverged does not hold
        names += [place(prediction), row["run"]]
        number += (
            f"; a larger run: predicted {predicted:.1f} [{low:.1f}, {high:.1f}], measured"
            f" {row['loss']:.1f} bits a second (n = {row['n']})"
        )
    if checks[chosen].rejected or not all(holds):
        return claim(CONTRADICTED, number, tuple(names))
    verdict = SHOWN if holds and checks[chosen].p is not None else NOT_SHOWN
    return claim(verdict, number, tuple(names))


# Inference-time compute


def arm_rows(search: Result) -> dict[str, list[dict]]:
    """{arm: its scored rows} of a search, those of beam searches too."""
    names = [*search.params["arms"], *tables.GUIDED]
    names = [name for name in names if (search.folder / f"{name}.jsonl").is_file()]
    return {name: search.rows(name) for name in names}


def same_requests(a: Level, b: Level) -> tuple[Level, Level]:
    """Two arms on the requests of the smaller one: some arms are run with fewer seeds."""
    (few,) = min((a, b), key=lambda level: len(level[1][0]))[1].values()
    ids = {row["id"] for row in few}
    return tuple((name, {0: [r for r in rows[0] if r["id"] in ids]}) for name, rows in (a, b))


def best_of(search: Result, rule: str) -> list[Level]:
    """Plain sampling and the arms that choose by `rule` ("words" or "voice") alone, else first, by
    candidates; all on the same requests.
    """
    arms, rows = search.params["arms"], arm_rows(search)
    chosen = [name for name in arms if arms[name]["by"] == [rule] and name in rows]
    chosen = chosen or [name for name in arms if arms[name]["by"][:1] == [rule] and name in rows]
    plain = [name for name in arms if not arms[name]["by"] and name in rows]
    names = sorted(plain[:1] + chosen, key=lambda name: arms[name]["n"])
    shared = set.intersection(*({row["id"] for row in rows[name]} for name in names))
    return [
        (f"N = {arms[name]['n']}", {0: [row for row in rows[name] if row["id"] in shared]})
        for name in names
    ]


def inference_time(study: Mapping[str, Result]) -> list[Claim]:
    """Best of N by either verifier, PRM to the end, and partial PRM with a choice by words."""
    search = study.get("search")
    rows = arm_rows(search) if search else {}
    names = (place(search),) if search else ()
    found = []
    for text, measure, side, rule in (
        ("More candidates, the best by a recogniser kept, lower the WER", WORDS, -1, "words"),
        ("More candidates, the best by a voice verifier kept, raise similarity", VOICE, 1, "voice"),
    ):
        claim = partial(Claim, text, "section 3.4; Fig. 2")
        levels = best_of(search, rule) if search else []
        found.append(
            claim(*series(measure, side, levels), names) if len(levels) > 1 else claim(NOT_RUN)
        )
    guided = (
        ("PRM by voice to the end raises similarity", "Fig. 2", "prm", ((VOICE, 1),)),
        ("PRM by voice to the end hurts the WER", "Fig. 2", "prm", ((WORDS, 1),)),
        (
            "Partial PRM by voice, then ORM by words, beats plain sampling in both",
            "Table 2, right",
            "partial-prm",
            ((WORDS, -1), (VOICE, 1)),
        ),
    )
    for text, where, arm, wanted in guided:
        claim = partial(Claim, text, where)
        if not {"plain", arm} <= rows.keys():
            found.append(claim(NOT_RUN))
            continue
        plain, searched = same_requests(
            ("plain", {0: rows["plain"]}), (tables.GUIDED[arm], {0: rows[arm]})
        )
        parts = [difference(measure, side, plain, searched) for measure, side in wanted]
        found.append(claim(*together(parts), names))
    return found


# The codec, recognition, new voices


def codecs_at_the_rate(result: Result, mine: str = "mini", most: float = 2.0) -> list[str]:
    """Codecs of others (not folders) at no more than `most` times the bits a second of `mine`."""

    def rate(name: str) -> float:
        rows = result.rows(name)
        return sum(row["bits"] for row in rows) / sum(row["seconds"] for row in rows)

    others = [
        name
        for name in result.params["codecs"]
        if "/" not in name and name != mine and (result.folder / f"{name}.jsonl").is_file()
    ]
    return [name for name in others if rate(name) <= most * rate(mine)]


def codec(study: Mapping[str, Result]) -> list[Claim]:
    """The mini codec against those of others at about its rate, in words and in voice."""
    found = []
    for role, speech in (("codecs_open", "unheard voices"), ("codecs_human", "a real voice")):
        text = f"One codebook keeps words and voice better than codecs at its rate: {speech}"
        claim, result = partial(Claim, text, "Table 1"), study.get(role)
        others = codecs_at_the_rate(result) if result else []
        if not others:
            found.append(claim(NOT_RUN))
            continue
        mine = ("mini", {0: result.rows("mini")})
        parts = [
            difference(measure, side, (name, {0: result.rows(name)}), mine)
            for name in others
            for measure, side in ((WORDS, -1), (VOICE, 1))
        ]
        found.append(claim(*together(parts), (place(result),)))
    return found


def recognition(study: Mapping[str, Result]) -> Claim:
    """Shown where the interval of the WER lies below one half: more words right than wrong. Of the
    recogniser that learnt from the whole corpus, where there is one.
    """
    claim = partial(Claim, "The sides swapped, the same model recognises speech", "Table 3")
    if "asr" not in study:
        return claim(NOT_RUN)
    runs = tables.seeds_of(study.get("asr_whole", study["asr"]))
    found = tables.heard_over_seeds(runs, "recognition")
    heard = measured(found, "corpus_wer", -1, "% WER, against 50 %", 0.5, 100)
    return claim(heard.verdict, heard.text, tuple(place(run) for run in runs.values()))


def zero_shot(study: Mapping[str, Result]) -> Claim:
    """Shown where speech is nearest to its own prompt's speaker more often than by chance."""
    claim = partial(Claim, "A prompt of some seconds gives an unheard voice", "Table 2, left")
    found = summarise(study["zero-shot"].rows()) if "zero-shot" in study else {}
    name = "nearest_speaker_share"
    if f"{name}_by_speaker_low" not in found:
        return claim(NOT_RUN)
    chance = 1 / found["speakers"]
    for end in ("_low", "_high"):  # another choice of voices would scatter more than one of texts
        found[f"{name}{end}"] = found[f"{name}_by_speaker{end}"]
    what = f"% nearest to the prompt's speaker, against {chance:.1%} by chance, over speakers"
    share = measured(found, name, 1, what, chance, 100)
    return claim(share.verdict, share.text, (place(study["zero-shot"]),))


def out_of_reach(study: Mapping[str, Result]) -> list[Claim]:
    """Claims that nothing here can test, with the reason."""
    understood = study.get("understanding")
    waits = "experts have to listen"
    if understood is not None:
        said = understood.metrics
        waits += f": {said['raters']:.0f} have, to {said['systems']:.0f} model"
        waits += f" ({said['sentences']:.0f} sentences)"
    return [
        Claim(
            "Text understanding grows with size and data",
            "Fig. 1",
            NOT_TESTABLE,
            waits,
            (place(understood),) if understood is not None else (),
        ),
        *(
            Claim(text, where, NOT_TESTABLE, why)
            for text, where, why in (
                ("X-codec2 is the best at its rate", "Table 1", "its weights are out of reach"),
                ("1B, 3B and 8B differ as published", "Tables 2, 4, 5", "no GPU, no such weights"),
                (
                    "PRM by emotion raises emotion similarity",
                    "Table 4",
                    "ESD and the emotion model are out of reach; the built-in corpora have none",
                ),
                (
                    "Continuation keeps words and voice",
                    "Table 5",
                    "LibriSpeech and its recogniser are out of reach",
                ),
            )
        ),
    ]


def claims(results_dir: str | Path, study: Mapping[str, Result]) -> list[Claim]:
    """Every claim with its verdict. study: {part of notebook 90's `runs`: finished run}."""
    return [
        *train_time(results_dir, study),
        power_law(results_dir, study),
        *inference_time(study),
        *codec(study),
        recognition(study),
        zero_shot(study),
        *out_of_reach(study),
    ]


def counts(found: Sequence[Claim]) -> dict[str, int]:
    """{verdict: how many claims}, all verdicts."""
    return {verdict: sum(one.verdict == verdict for one in found) for verdict in VERDICTS}


def answer(found: Sequence[Claim]) -> str:
    """How many claims got which verdict, and the rule."""
    said = ", ".join(f"{number} {verdict}" for verdict, number in counts(found).items() if number)
    return f"Of {len(found)} claims: {said}. {RULE}"


def table(found: Sequence[Claim]) -> pd.DataFrame:
    """A row a claim, text cells: claim with its place in the paper, verdict, number, runs."""
    cells = [(one.verdict, one.number, ", ".join(f"`{run}`" for run in one.runs)) for one in found]
    names = [f"{one.claim} ({one.where})" for one in found]
    return pd.DataFrame(cells, names, ["verdict", "the number that decides", "runs"])
