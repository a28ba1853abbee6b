"""Scores of a prepared protocol: the public metric (public_*) and ours in one summary.

A public number is a formula AND a model: summary.json names the models behind the published numbers
and whether ours are the same. A trial that was not spoken is an error; the public scripts leave it
out of the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from llasa_core.audio import load_audio, write_wav
from llasa_core.errors import InputError
from llasa_core.evaluation.protocols import Protocol, protocol_of
from llasa_core.evaluation.protocols.preparation import reference_manifest
from llasa_core.evaluation.protocols.words import public_errors
from llasa_core.evaluation.scoring import (
    count_words,
    embed_files,
    embed_references,
    publish_scores,
    refuse_verifiers,
    score_similarity,
    score_utterances,
    speech_settings,
)
from llasa_core.evaluation.summary import DIGITS, summarise, text_interval
from llasa_core.evaluation.utterances import read_utterances
from llasa_core.files import read_object, read_rows, text_lines
from llasa_core.intervals import CLUSTER
from llasa_core.judges import Judges
from llasa_core.judges.interface import SAMPLE_RATE


def evaluate_protocol(
    manifest: str | Path,
    prepared: str | Path,
    out: str | Path,
    judges: Judges,
    seed: int = 0,
    progress: bool = False,
) -> tuple[list[dict], dict[str, float]]:
    """Score the speech for a prepared protocol -> (rows, summary), written as by
    `scoring.evaluate_manifest`.

    manifest: of `llasa synthesize` or `llasa search` over prepared/requests.jsonl;
    prepared/references.jsonl scores the recordings themselves, prepared/resynthesis/manifest.jsonl
    the codec alone. For the protocol asr: the output of `llasa transcribe`, lines of file and text
    with a tab between them. Ours: the metrics of `summary.summarise`. Public: public_wer and the
    metrics of the protocol, means over trials, intervals bootstrapped over texts. Raises InputError
    for an utterance that is not a trial of the protocol, or a trial that was not spoken.
    """
    prepared = Path(prepared)
    setting, trials = read_prepared(prepared)
    protocol = protocol_of(setting["protocol"])
    if protocol.name == "asr":
        rows, judges = _recognised(Path(manifest), trials), Judges()
    else:
        utterances = _matched(manifest, trials, setting["seeds"])
        if not judges.by_role():
            raise InputError(f"{manifest}: nothing to score with, expected at least one judge")
        rows = _scored(protocol, Path(manifest), utterances, prepared, Path(out), judges, progress)
    for row in rows:
        if "hypothesis" in row:
            pair = row["text"], row["hypothesis"], row["language"]
            row["public_errors"], row["public_words"] = public_errors(protocol.words, *pair)
    summary = summarise(rows, seed=seed) | public_summary(protocol, rows, seed)
    described = {"name": protocol.name, "metric": protocol.metric, "source": protocol.source}
    described |= {
        "read_as": protocol.reading,
        "prepared": setting,
        "published_by": dict(protocol.judges),
    }
    found = judges.by_role()
    for key, attribute in (("implemented", "implements"), ("judged", "published")):
        described[f"{key}_as_published"] = {
            role: getattr(found.get(role), attribute, None) == name
            for role, name in protocol.judges.items()
        }
    report = {"metrics": summary, **judges.described(), "seed": seed, "protocol": described}
    publish_scores(out, rows, report | {"speech": speech_settings(manifest)})
    return rows, summary


def public_summary(protocol: Protocol, rows: Sequence[Mapping], seed: int = 0) -> dict[str, float]:
    """public_wer and the protocol's other metrics: NAME, NAME_low, NAME_high (95 %), NAME_n;
    without rows left out.
    """
    summary: dict[str, float] = {}

    def add(name: str, counted: list[Mapping], values: list[float], weights: list[float]) -> None:
        interval = text_interval(values, counted, weights, seed)
        summary.update({name: sum(values) / sum(weights), f"{name}_n": len(counted)})
        summary.update({f"{name}_low": interval.low, f"{name}_high": interval.high})

    counted = [row for row in rows if "public_errors" in row]
    if counted:
        errors, words = ([row[key] for row in counted] for key in ("public_errors", "public_words"))
        if protocol.mean == "utterances":
            errors, words = [e / w for e, w in zip(errors, words, strict=True)], [1.0] * len(words)
        add("public_wer", counted, errors, words)
    for name, key in protocol.public.items():
        counted = [row for row in rows if row.get(key) is not None]
        if counted:
            add(name, counted, [row[key] for row in counted], [1.0] * len(counted))
    return summary


def read_prepared(prepared: Path) -> tuple[dict, dict[str, dict]]:
    """(protocol.json, {id: line of trials.jsonl}) of a folder that `prepare_protocol` finished."""
    path = prepared / "protocol.json"
    if not path.is_file():
        raise InputError(
            f"{path}: no such file, expected a folder of: llasa protocol NAME DIR {prepared}"
        )
    setting = read_object(path)
    for key in ("protocol", "seeds"):
        if key not in setting:
            raise InputError(
                f"{path}: the key {key!r} is missing, expected a file of llasa protocol"
            )
    return setting, {row["id"]: row for row in read_rows(prepared / "trials.jsonl")}


def _matched(manifest: str | Path, trials: Mapping[str, dict], seeds: int) -> list[dict]:
    """The manifest's utterances with their trials; text and language are the trial's."""
    utterances = read_utterances(manifest)
    spoken = {utterance["id"] for utterance in utterances}
    wanted = {id_: id_ for id_ in trials}
    if not spoken <= wanted.keys() and seeds > 1:
        wanted = {f"{id_}.s{seed}": id_ for id_ in trials for seed in range(seeds)}
    for utterance in utterances:
        if utterance["id"] not in wanted:
            raise InputError(
                f"{manifest}: utterance {utterance['id']!r} is not a trial of the protocol"
            )
        text_id = wanted[utterance["id"]]
        trial = trials[text_id]
        utterance |= {key: trial[key] for key in ("text", "speaker", "language")}
        utterance |= {"trial": trial} | ({CLUSTER: text_id} if len(wanted) > len(trials) else {})
    if missing := [id_ for id_ in wanted if id_ not in spoken]:
        raise InputError(
            f"{manifest}: trial {missing[0]!r} was not spoken ({len(missing)} of {len(wanted)} are"
            " missing)"
        )
    return utterances


def _scored(protocol, manifest, utterances, prepared, out, judges, progress) -> list[dict]:
    refuse_verifiers(manifest, utterances, judges)
    # Recordings and their round trips contain the beginning that a continuation lacks.
    whole = (prepared / "references.jsonl", prepared / "resynthesis" / "manifest.jsonl")
    is_whole = manifest.resolve() in [path.resolve() for path in whole]
    own = []  # files without the prompt
    seconds = {}
    for utterance in utterances:
        own.append(utterance["file"])
        if utterance["trial"].get("joined"):
            prompt = load_audio(
                prepared
                / utterance["trial"].get("resynthesized_prompt", utterance["trial"]["prompt"])
            )
            wave, path = load_audio(utterance["file"]), f"{utterance['id']}.wav"
            if is_whole:
                wave = wave[len(prompt) :]
                own[-1] = _written(out / "continuations" / path, wave)
            else:
                utterance["file"] = _written(out / "joined" / path, np.concatenate([prompt, wave]))
            seconds[utterance["id"]] = round(len(wave) / SAMPLE_RATE, DIGITS)
    references = reference_manifest(prepared) if judges.speaker is not None else None
    if references is not None:
        # A search by voice prompts has heard those of them that are prompts of other trials
        references = embed_references(references, judges.speaker, progress=progress)
        references = references.unheard(utterances)
    originals = prepared / "references.jsonl" if protocol.needs_codec else None
    # without recordings to compare with, the speaker model only embeds the prompts
    compared = references is not None or originals is not None
    shared = judges if compared else replace(judges, speaker=None)
    rows = score_utterances(manifest, utterances, shared, references, originals, progress=progress)
    for row in rows:
        row["seconds"] = seconds.get(row["id"], row["seconds"])
    trials = [utterance["trial"] for utterance in utterances]
    if "similarity_to_prompt" in protocol.public.values() and judges.speaker is not None:
        _score_prompts(rows, own, trials, prepared, judges.speaker, progress)
    if "emotion_similarity" in protocol.public.values() and judges.emotion is not None:
        _score_emotion(rows, own, trials, prepared, judges.emotion, progress)
    return rows


def _written(path: Path, wave: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, wave, SAMPLE_RATE)
    return path


def _score_prompts(rows, files, trials, prepared, embedder, progress) -> None:
    spoken = embed_files(files, embedder, "spoken", progress)
    prompts = embed_files(
        [prepared / trial["prompt"] for trial in trials], embedder, "prompts", progress
    )
    score_similarity(rows, spoken, prompts, "similarity_to_prompt")
    if all("resynthesized_prompt" in trial for trial in trials):
        again = [prepared / trial["resynthesized_prompt"] for trial in trials]
        resynthesized = embed_files(again, embedder, "prompts after the codec", progress)
        score_similarity(rows, spoken, resynthesized, "similarity_to_resynthesized_prompt")


def _score_emotion(rows, files, trials, prepared, emotion, progress) -> None:
    spoken = embed_files(files, emotion, "spoken", progress)
    prompts = embed_files(
        [prepared / trial["prompt"] for trial in trials], emotion, "prompts", progress
    )
    score_similarity(rows, spoken, prompts, "emotion_similarity")
    for row, trial in zip(rows, trials, strict=True):
        row["emotion"] = trial.get("emotion", "")


def _recognised(path: Path, trials: Mapping[str, dict]) -> list[dict]:
    """Rows of recognised texts: lines FILE<tab>TEXT, the file name's stem being a trial's id."""
    expected = "lines of a file and its text between a tab, as llasa transcribe prints them"
    heard: dict[str, str] = {}
    for number, line in text_lines(path, expected):
        file, tab, text = line.partition("\t")
        id_ = Path(file).stem
        if not tab or id_ not in trials:
            raise InputError(
                f"{path}:{number}: {line[:60]!r} names no recording of the protocol, expected"
                f" {expected}"
            )
        if id_ in heard:
            raise InputError(
                f"{path}:{number}: {id_!r} is there twice, expected one line a recording"
            )
        heard[id_] = text.strip()
    if missing := [id_ for id_ in trials if id_ not in heard]:
        raise InputError(
            f"{path}: trial {missing[0]!r} was not recognised ({len(missing)} of {len(trials)} are"
            " missing)"
        )
    rows = []
    for id_, trial in trials.items():
        row = {key: trial[key] for key in ("id", "speaker", "language", "text", "seconds")}
        count_words(row, heard[id_])
        rows.append(row)
    return rows
