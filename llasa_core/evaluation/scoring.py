"""Score a manifest of wavs with the judges: one row an utterance in out/utterances.jsonl, averages
in out/summary.json.

Every average is recomputed from the rows alone (`summarise`), so a figure or a test never copies a
number. A missing wav is an error before anything is scored; both files are published by rename once
all rows exist.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llasa_core import metrics
from llasa_core.audio import load_audio, recording_id
from llasa_core.errors import InputError
from llasa_core.evaluation.summary import DIGITS, summarise
from llasa_core.evaluation.utterances import read_utterances
from llasa_core.files import read_object, write_json, write_rows
from llasa_core.intervals import CLUSTER
from llasa_core.judges import Judges
from llasa_core.judges.identity import same_judge
from llasa_core.judges.interface import SAMPLE_RATE, SpeakerEmbedder, Transcriber
from llasa_core.prompts import language_of

# Settings of speech that decide its scores: how it was sampled and searched
MADE = ("temperature", "top_k", "top_p", "min_codes", "max_seconds", "repetition_penalty")
MADE += ("strategy", "rule", "verifiers")

BLOCK = 16  # utterances a call of a judge: one step of the progress bar


@dataclass(frozen=True)
class SpeakerReferences:
    """Embeddings (N, D) of originals with ids and speakers, made once for several systems."""

    ids: tuple[str, ...]
    speakers: tuple[str, ...]
    embeddings: np.ndarray
    recordings: tuple[str, ...]

    def count(self, speaker: str, without: str = "") -> int:
        """Recordings of a speaker, the one with the id `without` left out."""
        return sum(
            s == speaker and i != without for i, s in zip(self.ids, self.speakers, strict=True)
        )

    def recordings_by_speaker(self) -> dict[str, list[str]]:
        """{speaker: the `recording_id` of each recording}."""
        found: dict[str, list[str]] = {}
        for speaker, recording in zip(self.speakers, self.recordings, strict=True):
            found.setdefault(speaker, []).append(recording)
        return found

    def unheard(self, utterances: Sequence[Mapping]) -> "SpeakerReferences | None":
        """Without the recordings that a search compared these utterances with; None where a speaker
        of theirs has fewer than two left.
        """
        heard = {name for one in utterances for name in one.get("verifier_recordings", ())}
        if not heard:
            return self
        kept = [i for i, recording in enumerate(self.recordings) if recording not in heard]
        left = SpeakerReferences(
            *(tuple(values[i] for i in kept) for values in (self.ids, self.speakers)),
            self.embeddings[kept],
            tuple(self.recordings[i] for i in kept),
        )
        return None if any(left.count(one["speaker"]) < 2 for one in utterances) else left

    def centroids(self, without: str = "") -> dict[str, np.ndarray]:
        """Unit-length centroid (D,) of each speaker; the recording with the id `without` is left
        out.
        """
        kept = [i for i, id_ in enumerate(self.ids) if id_ != without]
        return metrics.speaker_centroids(self.embeddings[kept], [self.speakers[i] for i in kept])


def evaluate_manifest(
    manifest: str | Path,
    out: str | Path,
    judges: Judges,
    references: str | Path | SpeakerReferences | None = None,
    reference_audio: str | Path | Mapping[str, str | Path] | None = None,
    seed: int = 0,
    progress: bool = False,
    prompts: Mapping[str, str | Path] | None = None,
) -> tuple[list[dict], dict[str, float]]:
    """Score every utterance of a manifest -> (rows, summary), as in out/utterances.jsonl and
    out/summary.json.

    manifest: JSON lines with id, audio, text, and where known speaker, language, ended (false = cut
    at the limit). references: manifest of originals (or `embed_references` of it) for the cosine to
    the centroid of the own speaker's
        recordings and for the nearest centroid; a recording with the utterance's own id is left
        out, so originals are scored by the same protocol.
    reference_audio: manifest, or id -> file, of the waves that a codec resynthesised, for PESQ,
        STOI and (with a speaker model) the cosine of each utterance to its own original, the
        similarity of codec papers.
    prompts: speaker -> recording that was the voice prompt, for the cosine to it
        (similarity_to_prompt, the SIM-o of Seed-TTS-Eval).
    Raises InputError on a missing wav, a duplicate id, a speaker without reference, an empty text,
    a non-finite score, a speaker without a prompt, an utterance that is its own prompt, and a
    judge, or a reference, with which a search chose the speech (the keys CHOSEN_BY of the
    manifest's lines).
    """
    utterances = read_utterances(manifest)
    if not judges.by_role() and reference_audio is None:
        raise InputError(f"{manifest}: nothing to score with, expected at least one judge")
    if references is not None and judges.speaker is None:
        raise InputError("references belong together with a speaker embedder, got only one of them")
    if judges.speaker is not None and references is None and reference_audio is None:
        raise InputError(
            "a speaker embedder and references or reference audio belong together, got only one of"
            " them"
        )
    rows = score_utterances(
        manifest, utterances, judges, references, reference_audio, seed, progress, prompts
    )
    summary = summarise(rows, seed=seed)
    report = {"metrics": summary, **judges.described(), "seed": seed}
    report["speech"] = speech_settings(manifest)
    publish_scores(out, rows, report)
    return rows, summary


def score_utterances(
    manifest: str | Path,
    utterances: list[dict],
    judges: Judges,
    references: str | Path | SpeakerReferences | None = None,
    reference_audio: str | Path | Mapping[str, str | Path] | None = None,
    seed: int = 0,
    progress: bool = False,
    prompts: Mapping[str, str | Path] | None = None,
) -> list[dict]:
    """Scored rows of `read_utterances`; `manifest` names them in messages. Writes nothing."""
    refuse_verifiers(manifest, utterances, judges)
    originals = _reference_files(reference_audio, utterances) if reference_audio is not None else {}
    if judges.transcriber is not None:
        for utterance in utterances:
            _check_text(utterance)
    if references is not None and not isinstance(references, SpeakerReferences):
        references = embed_references(references, judges.speaker, seed=seed, progress=progress)
    if references is not None:
        refuse_shared_recordings(manifest, utterances, references)
        for utterance in utterances:
            if not references.count(utterance["speaker"], without=utterance["id"]):
                raise InputError(
                    f"{manifest}: utterance {utterance['id']!r} by {utterance['speaker']!r} has no"
                    " other reference recording of that speaker, expected at least one"
                )
    prompted = None
    if prompts is not None:
        files = _prompt_files(manifest, utterances, prompts, judges)
        prompted = dict(zip(files, embed_files(files.values(), judges.speaker), strict=True))
    rows = []
    for block in blocks_of(utterances, "utterances", progress):
        waves = [load_audio(utterance["file"]) for utterance in block]
        scored = [_described(utterance, wave) for utterance, wave in zip(block, waves, strict=True)]
        if judges.transcriber is not None:
            _score_words(scored, waves, judges.transcriber)
        if judges.speaker is not None:
            embeddings = judges.speaker.embed(waves, SAMPLE_RATE)
        if references is not None:
            _score_speakers(scored, embeddings, references)
        if prompted is not None:
            own = np.stack([prompted[row["speaker"]] for row in scored])
            score_similarity(scored, embeddings, own, "similarity_to_prompt")
        if judges.quality is not None:
            values = judges.quality.score(waves, SAMPLE_RATE)
            for row, value in zip(scored, values, strict=True):
                row["quality"] = _finite(value, row, "quality")
        if originals:
            before = [load_audio(originals[row["id"]]) for row in scored]
            for row, wave, original in zip(scored, waves, before, strict=True):
                _score_resynthesis(row, wave, original)
            if judges.speaker is not None:
                own = judges.speaker.embed(before, SAMPLE_RATE)
                score_similarity(scored, embeddings, own, "similarity_to_original")
        rows.extend(scored)
    return rows


def publish_scores(out: str | Path, rows: Sequence[Mapping], report: Mapping) -> None:
    """Writes OUT/utterances.jsonl and OUT/summary.json, each whole."""
    out = Path(out)
    write_rows(out / "utterances.jsonl", rows)
    write_json(out / "summary.json", report)


def speech_settings(manifest: str | Path) -> dict | None:
    """How the speech of a manifest was sampled, guarded and searched, by the settings.json next to
    it; None where nothing says so. attempts: samples at most, 0 without guards.
    """
    folder = Path(manifest).parent
    for path in (folder / "settings.json", folder / "pieces" / "rest" / "settings.json"):
        if path.is_file():
            made = read_object(path)
            guards = made.get("guards")
            found = {"guards": guards, "attempts": guards["attempts"] if guards else 0}
            return found | {key: made[key] for key in MADE if key in made}
    return None


def refuse_verifiers(manifest: str | Path, utterances: Sequence[Mapping], judges: Judges) -> None:
    """InputError where one of the judges is, by name or by weights, a verifier that a search chose
    an utterance with.
    """
    for utterance in utterances:
        names, weights = (utterance.get(key, ()) for key in ("verifiers", "verifier_weights"))
        for judge in judges.by_role().values():
            if same_judge(judge, names, weights):
                called = "" if judge.name in names else f", there called {' or '.join(names)},"
                raise InputError(
                    f"{manifest}: {judge.name}{called} chose {utterance['id']!r} as a verifier of"
                    " the search and cannot judge it too, expected another model"
                )


def refuse_shared_recordings(
    manifest: str | Path, utterances: Sequence[Mapping], references: SpeakerReferences
) -> None:
    """InputError where a search chose an utterance by its likeness to one of the references."""
    ids = dict(zip(references.recordings, references.ids, strict=True))
    for utterance in utterances:
        for recording in utterance.get("verifier_recordings", ()):
            if recording in ids:
                raise InputError(
                    f"{manifest}: the search chose {utterance['id']!r} by its likeness to the"
                    f" recording {ids[recording]!r}, which cannot be its reference too, expected"
                    " other recordings of that voice"
                )


def embed_references(
    manifest: str | Path,
    embedder: SpeakerEmbedder,
    per_speaker: int = 20,
    seed: int = 0,
    progress: bool = False,
    part: tuple[int, int] = (0, 1),
) -> SpeakerReferences:
    """Embed at most `per_speaker` recordings, drawn by seed, of each speaker of a manifest of
    originals. part: (i, n) takes the i-th of n parts without a recording in common, from 0: one for
    the verifier of a search, one for its judge.
    """
    by_speaker: dict[str, list[dict]] = {}
    for utterance in read_utterances(manifest):
        by_speaker.setdefault(utterance["speaker"], []).append(utterance)
    rng = np.random.default_rng(seed)
    chosen = [
        group[i]
        for _, group in sorted(by_speaker.items())
        for i in sorted(rng.permutation(len(group))[part[0] :: part[1]][:per_speaker].tolist())
    ]
    embeddings, recordings = [], []
    for block in blocks_of(chosen, "references", progress):
        waves = [load_audio(utterance["file"]) for utterance in block]
        embeddings.append(embedder.embed(waves, SAMPLE_RATE))
        recordings.extend(recording_id(wave) for wave in waves)
    return SpeakerReferences(
        tuple(utterance["id"] for utterance in chosen),
        tuple(utterance["speaker"] for utterance in chosen),
        np.concatenate(embeddings),
        tuple(recordings),
    )


def _check_text(utterance: Mapping) -> None:
    """InputError with file and line for a text without a word, and for one whose letters are not
    those of its language: judged in English, an ideograph is a word error or several.
    """
    text, language = utterance["text"], utterance["language"]
    try:
        metrics.word_errors(text, "", language)
    except InputError as error:
        raise InputError(f"{utterance['where']}: {error}") from None
    if language == "en" and (script := language_of(text)) != "en":
        raise InputError(
            f"{utterance['where']}: the language is en, but the text {text[:20]!r} is written as"
            f" {script}; expected its language, and a recogniser that hears it"
        )


def _reference_files(
    source: str | Path | Mapping[str, str | Path], utterances: list[dict]
) -> dict[str, Path]:
    if isinstance(source, Mapping):
        files = {id_: Path(file) for id_, file in source.items()}
    else:
        files = {row["id"]: row["file"] for row in read_utterances(source)}
    for utterance in utterances:
        file = files.get(utterance["id"])
        if file is None or not file.is_file():
            raise InputError(
                f"utterance {utterance['id']!r} has no reference audio, expected a file, got {file}"
            )
    return files


def _prompt_files(
    manifest: str | Path,
    utterances: list[dict],
    prompts: Mapping[str, str | Path],
    judges: Judges,
) -> dict[str, Path]:
    """{speaker: its prompt}, of the speakers of the utterances."""
    if judges.speaker is None:
        raise InputError("prompts belong together with a speaker embedder, got only one of them")
    files: dict[str, Path] = {}
    for utterance in utterances:
        speaker = utterance["speaker"]
        if speaker not in prompts:
            raise InputError(
                f"{manifest}: utterance {utterance['id']!r} by {speaker!r} has no prompt, expected"
                f" one of the speakers {', '.join(sorted(prompts))}"
            )
        files[speaker] = Path(prompts[speaker])
        if utterance["file"].resolve() == files[speaker].resolve():
            raise InputError(
                f"{manifest}: utterance {utterance['id']!r} is the prompt itself, expected other"
                " recordings"
            )
    return files


def embed_files(
    files: Iterable[Path], embedder: SpeakerEmbedder, what: str = "prompts", progress: bool = False
) -> np.ndarray:
    """Embeddings (N, D) of files; each distinct file is embedded once."""
    files = list(files)
    distinct = list(dict.fromkeys(files))
    found = np.concatenate(
        [
            embedder.embed([load_audio(file) for file in block], SAMPLE_RATE)
            for block in blocks_of(distinct, what, progress)
        ]
    )
    place = {file: number for number, file in enumerate(distinct)}
    return found[[place[file] for file in files]]


def _described(utterance: dict, wave: np.ndarray) -> dict:
    row = {
        key: utterance[key]
        for key in ("id", "audio", "speaker", "language", "text", CLUSTER)
        if key in utterance
    }
    row["seconds"] = round(len(wave) / SAMPLE_RATE, DIGITS)
    row |= {key: utterance[key] for key in ("ended", "sampled_again") if key in utterance}
    return row


def _score_words(rows: list[dict], waves: list[np.ndarray], transcriber: Transcriber) -> None:
    for language in sorted({row["language"] for row in rows}):
        chosen = [i for i, row in enumerate(rows) if row["language"] == language]
        heard = transcriber.transcribe([waves[i] for i in chosen], SAMPLE_RATE, language)
        for i, hypothesis in zip(chosen, heard, strict=True):
            count_words(rows[i], hypothesis)


def count_words(row: dict, hypothesis: str) -> None:
    """Writes what was heard and its errors into a row with text and language."""
    pair = (row["text"], hypothesis, row["language"])
    row["hypothesis"] = hypothesis
    row["errors"], row["words"] = metrics.word_errors(*pair)
    row["digit_errors"], row["digit_words"] = metrics.word_errors(*pair, spoken_digits=True)
    row["character_errors"], row["characters"] = metrics.character_errors(*pair)


def _score_speakers(
    rows: list[dict], embeddings: np.ndarray, references: SpeakerReferences
) -> None:
    for row, embedding in zip(rows, embeddings, strict=True):
        centroids = references.centroids(without=row["id"])
        own = metrics.speaker_similarity(embedding, centroids[row["speaker"]])
        row["similarity"] = _finite(own, row, "similarity")
        if len(centroids) > 1:
            row["nearest_speaker"] = metrics.nearest_speaker(embedding, centroids)


def score_similarity(
    rows: Sequence[dict], embeddings: np.ndarray, others: np.ndarray, key: str
) -> None:
    """Writes the cosine of each row's embedding (N, D) with the other one (N, D) under `key`."""
    for row, value in zip(rows, metrics.speaker_similarity(embeddings, others), strict=True):
        row[key] = _finite(value, row, key)


def _score_resynthesis(row: dict, wave: np.ndarray, original: np.ndarray) -> None:
    """PESQ and STOI; None, counted by `summarise`, where a wave has too little speech."""
    from llasa_core.judges import quality

    for key, measure in (
        ("pesq_wb", quality.pesq_wideband),
        ("pesq_nb", quality.pesq_narrowband),
        ("stoi", quality.stoi),
    ):
        try:
            row[key] = _finite(measure(original, wave, SAMPLE_RATE), row, key)
        except quality.TooLittleSpeechError:
            row[key] = None


def _finite(value: float, row: dict, key: str) -> float:
    if not math.isfinite(value):
        raise InputError(f"{row['audio']}: {key} is {value}, expected a finite number")
    return round(float(value), DIGITS)


def blocks_of(utterances: list, what: str, progress: bool):
    from tqdm.auto import tqdm

    with tqdm(total=len(utterances), desc=what, unit="utt", disable=not progress) as bar:
        for start in range(0, len(utterances), BLOCK):
            yield utterances[start : start + BLOCK]
            bar.update(len(utterances[start : start + BLOCK]))
