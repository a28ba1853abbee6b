"""A benchmark folder becomes OUT: requests.jsonl to synthesize, references.jsonl to score by,
trials.jsonl, prompts.

Every line and every wav is checked before anything is written; OUT/protocol.json comes last, by
rename, and marks OUT as complete. With a codec, prompts and references are also resynthesized, for
sim-r and the codec's own row.
"""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from llasa_core.audio import header_seconds, load_audio, write_wav
from llasa_core.codecs.interface import Codec
from llasa_core.codecs.roundtrip import resynthesize
from llasa_core.errors import InputError
from llasa_core.evaluation.protocols import Trial, protocol_of
from llasa_core.files import write_json, write_rows
from llasa_core.manifest import FILE_SAFE_ID, Utterance, evenly, read_manifest, write_manifest

SAMPLE_RATE = 16_000  # Hz, of truncated prompts


def prepare_protocol(
    name: str,
    folder: str | Path,
    out: str | Path,
    codec: Codec | None = None,
    seeds: int = 1,
    limit: int = 0,
    progress: bool = False,
) -> dict:
    """Write OUT for a protocol (`protocols.PROTOCOLS`) and return the content of OUT/protocol.json.

    OUT/requests.jsonl: input of `llasa synthesize --manifest` and `llasa search`, unless there is
    nothing to speak; with several seeds each trial becomes ID.s0, ID.s1, .. OUT/references.jsonl:
    recordings of the texts, where they exist. OUT/prompts: truncated prompts. With a codec:
    OUT/resynthesis/manifest.jsonl, the references after the round trip, and
    OUT/resynthesized_prompts. limit: trials spread evenly over the list; 0 takes all. Raises
    InputError, before anything is written, for a malformed line, a duplicate id, a missing or
    broken wav.
    """
    protocol, out = protocol_of(name), Path(out)
    if protocol.needs_codec and codec is None:
        raise InputError(f"protocol {name}: scores a round trip through a codec, expected --codec")
    trials, left_out = protocol.read(folder)
    if not trials:
        reasons = (
            ", ".join(f"{reason} {count}" for reason, count in left_out.items())
            or "its list is empty"
        )
        raise InputError(f"{folder}: no trial for {name} ({reasons}), expected at least one")
    lengths = check_trials(trials)
    trials = evenly(trials, limit)
    (out / "protocol.json").unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    trials = [_with_cut_prompt(trial, out) for trial in trials]
    prompts = sorted({trial.prompt for trial in trials if trial.prompt is not None})
    prompt_ids = {path: f"p{number:05d}" for number, path in enumerate(prompts)}
    references = [trial for trial in trials if trial.reference is not None]
    if references:
        write_manifest(out / "references.jsonl", [_reference(trial) for trial in references])
    if codec is not None and references:
        resynthesize(out / "references.jsonl", out / "resynthesis", codec, progress=progress)
    if codec is not None and prompts:
        listed = [Utterance(prompt_ids[path], path.resolve(), "prompt") for path in prompts]
        write_manifest(out / "prompts.jsonl", listed)
        resynthesize(out / "prompts.jsonl", out / "resynthesized_prompts", codec, progress=progress)
    if prompts:
        lines = [_request(trial, seed, seeds, out) for seed in range(seeds) for trial in trials]
        write_rows(out / "requests.jsonl", lines)
    described = [_described(trial, prompt_ids, codec, out, lengths) for trial in trials]
    write_rows(out / "trials.jsonl", described)
    report = {
        "protocol": name,
        "trials": len(trials),
        "left_out": left_out,
        "seeds": seeds,
        "codec": None if codec is None else codec.name,
        "references": len(references),
        "prompts": len(prompts),
    }
    write_json(out / "protocol.json", report)
    return report


def check_trials(trials: list[Trial]) -> dict[Path, float]:
    """Seconds of every recording; InputError with file and line for the first unusable trial."""
    seen: dict[str, str] = {}
    lengths: dict[Path, float] = {}
    for trial in trials:
        if not FILE_SAFE_ID.fullmatch(trial.id):
            raise InputError(
                f"{trial.where}: id {trial.id!r}, expected a file name of letters, digits and"
                " ._+@=,-"
            )
        if trial.id in seen:
            raise InputError(
                f"{trial.where}: duplicate id {trial.id!r} (first in {seen[trial.id]})"
            )
        seen[trial.id] = trial.where
        if not any(character.isalnum() for character in trial.text):
            raise InputError(
                f"{trial.where}: text {trial.text[:40]!r} has no word in it, expected something"
                " to say"
            )
        for path in (trial.prompt, trial.reference):
            if path is not None and path not in lengths:
                lengths[path] = _seconds(path, trial.where)
        if trial.prompt_seconds is not None and lengths[trial.prompt] <= trial.prompt_seconds:
            raise InputError(
                f"{trial.where}: {trial.prompt} is {lengths[trial.prompt]:.2f} s long, expected"
                f" more than the {trial.prompt_seconds:g} s of its prompt"
            )
    return lengths


def _seconds(path: Path, where: str) -> float:
    if not path.is_file():
        raise InputError(f"{where}: audio file {path} is missing")
    seconds = header_seconds(path, where)
    if not seconds:
        raise InputError(f"{where}: audio file {path} contains no samples, expected audio")
    return seconds


def _with_cut_prompt(trial: Trial, out: Path) -> Trial:
    if trial.prompt_seconds is None:
        return trial
    (out / "prompts").mkdir(exist_ok=True)
    wave = load_audio(trial.prompt, SAMPLE_RATE)[: round(trial.prompt_seconds * SAMPLE_RATE)]
    path = out / "prompts" / f"{trial.id}.wav"
    write_wav(path, wave, SAMPLE_RATE)
    return replace(trial, prompt=path)


def _reference(trial: Trial) -> Utterance:
    return Utterance(trial.id, trial.reference.resolve(), trial.text, trial.speaker, trial.language)


def _request(trial: Trial, seed: int, seeds: int, out: Path) -> dict:
    line = {
        "id": trial.id if seeds == 1 else f"{trial.id}.s{seed}",
        "text": trial.text,
        "language": trial.language,
    }
    if seeds > 1:
        line["seed"] = seed
    line |= {"speaker": trial.speaker, "voice": _relative(trial.prompt, out)}
    return line | (
        {"voice_text": trial.prompt_text} if trial.prompt_text else {"voice_in_text": True}
    )


def _described(
    trial: Trial, prompt_ids: dict, codec: Codec | None, out: Path, lengths: dict[Path, float]
) -> dict:
    line = {
        "id": trial.id,
        "text": trial.text,
        "speaker": trial.speaker,
        "language": trial.language,
    }
    if trial.reference is not None:
        line["seconds"] = round(lengths[trial.reference], 6)
    if trial.prompt is not None:
        line |= {"prompt": _relative(trial.prompt, out), "joined": not trial.prompt_text}
        if codec is not None:
            line["resynthesized_prompt"] = (
                f"resynthesized_prompts/wavs/{prompt_ids[trial.prompt]}.wav"
            )
    return line | ({"emotion": trial.emotion} if trial.emotion else {})


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()


def reference_manifest(prepared: Path) -> Path | None:
    """OUT/references.jsonl, if every speaker has at least two recordings, so that a centroid
    identifies the voice.
    """
    path = prepared / "references.jsonl"
    if not path.is_file():
        return None
    speakers = Counter(item.speaker for item in read_manifest(path))
    return path if "" not in speakers and min(speakers.values()) > 1 else None
