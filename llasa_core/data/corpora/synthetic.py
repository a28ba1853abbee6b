"""The built-in corpus: grammar sentences spoken by pseudo-speakers of one small offline voice, 16
kHz mono PCM16.

A pseudo-speaker is a point in three factors on what hibari-tts predicts (spectra, F0 curve,
durations): resampling, formant warp and F0. These parts are internals, hence the pinned version.
Every draw comes from sha256 of the seed and the utterance, never from the order of work: any number
of processes, stopped and resumed, gives the same bytes.
"""

import hashlib
import itertools
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from llasa_core.data.corpora import kokoro
from llasa_core.data.corpora.grammar import distinct_sentences, fingerprint, words_of
from llasa_core.data.corpora.voices import HIBARI_VERSION, VOICES, hibari_engine
from llasa_core.data.corpora.voices import NEW_VOICE as NEW_VOICE
from llasa_core.errors import InputError
from llasa_core.files import publish, read_object, write_json
from llasa_core.manifest import SPLITS, Utterance, split_of, write_manifest
from llasa_core.processes import worker_pool

SAMPLE_RATE = 16_000  # Hz

_SOURCE_RATE = 24_000  # Hz, of hibari

_LEVEL = 0.07  # root mean square of the louder half of the frames, full scale 1

_MARGIN = 0.1  # seconds of silence kept at head and tail

_FRAME = 160  # samples, 10 ms

_FLOOR = 10 ** (-42 / 20)  # below the loudest frame a frame counts as silence


def _warp(spectrum, factor):
    """Stretch a spectrum (bins, frames) along frequency by factor, linear interpolation."""
    if factor == 1.0:
        return spectrum
    last = len(spectrum) - 1
    position = np.clip(np.arange(last + 1) / factor, 0, last)
    low = np.minimum(position.astype(int), last - 1)
    weight = (position - low)[:, None].astype(np.float32)
    return spectrum[low] * (1 - weight) + spectrum[low + 1] * weight


def _trim(wave):
    """Cut silence at head and tail down to _MARGIN seconds, or pad up to it; the edges fade over 10
    ms.
    """
    frames = wave[: len(wave) // _FRAME * _FRAME].reshape(-1, _FRAME)
    loudness = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(loudness > loudness.max() * _FLOOR)
    margin = round(_MARGIN * SAMPLE_RATE)
    start, end = loud[0] * _FRAME - margin, (loud[-1] + 1) * _FRAME + margin
    wave = np.pad(wave[max(start, 0) : end], (max(-start, 0), max(end - len(wave), 0)))
    ramp = np.linspace(0, 1, _FRAME, dtype=np.float32)
    wave[:_FRAME] *= ramp
    wave[-_FRAME:] *= ramp[::-1]
    return wave


def speak(text, voice, seed=0):
    """Synthesise text with a pseudo-speaker.

    Args:
        text: English, numbers as words.
        voice: a Voice.
        seed: non-negative int; it fixes the noise part of the speech.

    Returns:
        float32 (T,) at 16 kHz, level normalised, about 0.1 s of silence at both ends.

    Raises:
        InputError: the text has nothing to say, or hibari-tts is missing or of another version.
    """
    import soxr

    if not words_of(text):
        raise InputError(f"text {text!r} has nothing to say, expected English words")
    if voice.source == "hibari":
        wave = _hibari_wave(text, voice, seed)
    else:
        wave = kokoro.speak(text, voice.source, voice.speed / voice.resampling)
    wave = soxr.resample(wave, _SOURCE_RATE * voice.resampling, SAMPLE_RATE).astype(np.float32)
    wave = _trim(wave)
    power = (wave[: len(wave) // _FRAME * _FRAME].reshape(-1, _FRAME) ** 2).mean(axis=1)
    level = math.sqrt(power[power >= np.median(power)].mean())
    wave *= min(_LEVEL / level, 0.95 / np.abs(wave).max())
    return wave


def _hibari_wave(text, voice, seed):
    """The text in hibari's voice with other formants and pitch: float32 (T,) at 24 kHz."""
    from hibari import dsp

    engine = hibari_engine()
    rng, pieces = np.random.default_rng(seed), []
    for phonemes in engine.phonemize(text):
        ids = np.asarray([engine.ids(phonemes)], np.int64)
        speed = np.asarray([voice.speed / voice.resampling], np.float32)
        *spectra, phase, pitch = (
            part[0] for part in engine.sess.run(None, {"ids": ids, "speed": speed})
        )
        spectra = [_warp(spectrum, voice.formants) for spectrum in spectra]
        pieces.append(dsp.synth(*spectra, phase, (pitch * voice.pitch).astype(np.float32), rng))
    return np.concatenate(pieces)


def sentences(count, seed=0, held_out=False):
    """The first `count` distinct sentences of a seed (see grammar.distinct_sentences)."""
    return list(itertools.islice(distinct_sentences(seed, held_out), count))


def _noise_seed(seed, name, text):
    return int.from_bytes(
        hashlib.sha256(f"noise {seed} {name} {text}".encode()).digest()[:8], "big"
    )


def estimated_seconds(text, voice):
    """Length of an utterance guessed from its letters: fitted on 200, within 1 % over 16 hours."""
    return 0.365 + 0.0495 * len(text) / voice.speed


def plan(
    hours=None, utterances=None, voices=VOICES, seed=0, test_utterances=240, dev_fraction=0.02
):
    """What a corpus will contain, before anything is spoken: list of dicts id, text, voice, split.

    Test sentences come first, then training and dev sentences; both go round the voices, and no
    sentence comes twice. A longer plan with the same seed and as many tests begins with the shorter
    one, so a corpus can be grown.

    Args:
        hours: speech in all (estimated from the text, within about 1 %), or
        utterances: number of utterances in all, test utterances included.
        test_utterances: at most a fifth of a small corpus is used for test.
        dev_fraction: share of the rest that is dev, by sha256 of the id.
    """
    if (hours is None) == (utterances is None):
        raise InputError(f"hours={hours}, utterances={utterances}: expected exactly one of the two")
    if (utterances if hours is None else hours) <= 0:
        raise InputError(f"hours={hours}, utterances={utterances}: expected more than nothing")
    if not voices or len({voice.name for voice in voices}) != len(voices):
        raise InputError(
            f"voices {[voice.name for voice in voices]}: expected one or more different names"
        )
    test_utterances = min(test_utterances, int((utterances or hours * 1800) / 5))
    tests = itertools.islice(distinct_sentences(f"{seed} test", True), test_utterances)
    rest = distinct_sentences(seed, False)
    rows, seconds = [], 0.0
    for index, text in enumerate(itertools.chain(tests, rest)):
        if (utterances is not None and index >= utterances) or (
            hours is not None and seconds >= hours * 3600
        ):
            return rows
        voice = voices[index % len(voices)]
        seconds += estimated_seconds(text, voice)
        identity = f"{voice.name}-{index:06d}"
        split = (
            "test"
            if index < test_utterances
            else split_of(identity, (1 - dev_fraction, dev_fraction, 0))
        )
        rows.append({"id": identity, "text": text, "voice": voice, "split": split})


def _speak_row(job):
    """One row -> its wav on disk (kept where it is finished); returns its samples."""
    import io

    import soundfile

    row, folder, seed = job
    path = Path(folder, f"{row['id']}.wav")
    if path.exists():
        return soundfile.info(path).frames
    wave = speak(row["text"], row["voice"], _noise_seed(seed, row["voice"].name, row["text"]))
    pcm, buffer = np.round(wave * 32767).astype(np.int16), io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    publish(path, buffer.getvalue())
    return len(wave)


def _told(voice):
    """The factors of a voice; hibari, the source of most, is not named."""
    told = asdict(voice)
    if voice.source == "hibari":
        del told["source"]
    return told


def _check_settings(out, voices, seed, test_utterances, texts):
    """Refuse a folder whose wavs belong to another corpus; a longer or shorter plan of the same
    corpus is welcome.
    """
    settings = {
        "seed": seed,
        "test_utterances": test_utterances,
        "hibari": HIBARI_VERSION,
        "grammar": fingerprint(),
        "voices": [_told(voice) for voice in voices],
        **texts,
    }
    path = out / "settings.json"
    if path.exists() and read_object(path) != settings:
        raise InputError(
            f"{path}: holds another corpus (seed, voices or sentences differ), expected an empty"
            " folder"
        )
    write_json(path, settings)


def build(
    out,
    hours=None,
    utterances=None,
    voices=VOICES,
    seed=0,
    jobs=1,
    test_utterances=240,
    dev_fraction=0.02,
    progress=False,
):
    """Write a corpus: out/wavs/ID.wav, out/{train,dev,test}.jsonl (manifests) and out/report.json
    (see `plan`).

    A stopped build resumes when called again. About 60 times real time with each
    process.

    Returns:
        The report: utterances, hours, seconds by split and by voice, words, word coverage.

    Raises:
        InputError: the folder holds another corpus, or the settings contradict each other.
    """
    rows = plan(hours, utterances, voices, seed, test_utterances, dev_fraction)
    return write_corpus(out, rows, voices, seed, jobs, progress)


def write_corpus(out, rows, voices, seed=0, jobs=1, progress=False, texts=None):
    """Speak the rows of a plan and write manifests and report, as `build` does; `texts`: what else
    tells this corpus from another in its settings.
    """
    out = Path(out)
    wavs = out / "wavs"
    wavs.mkdir(parents=True, exist_ok=True)
    tests = sum(row["split"] == "test" for row in rows)
    _check_settings(out, voices, seed, tests, texts or {})
    jobs_rows = ((row, str(wavs), seed) for row in rows)
    if jobs > 1:
        with worker_pool(jobs) as pool:
            spoken = pool.map(_speak_row, jobs_rows, chunksize=16)
            samples = list(_shown(spoken, len(rows), progress))
    else:
        samples = list(_shown(map(_speak_row, jobs_rows), len(rows), progress))
    for row, count in zip(rows, samples, strict=True):
        row["seconds"] = count / SAMPLE_RATE
    for split in SPLITS:
        write_manifest(
            out / f"{split}.jsonl", (utterance_of(row) for row in rows if row["split"] == split)
        )
    report = _report(rows, voices, seed)
    write_json(out / "report.json", report)
    return report


def _shown(iterable, total, progress):
    from tqdm.auto import tqdm

    return tqdm(iterable, total=total, unit="utterance", disable=not progress)


def utterance_of(row):
    """The manifest's line of a spoken row."""
    audio, speaker, seconds = f"wavs/{row['id']}.wav", row["voice"].name, round(row["seconds"], 4)
    return Utterance(row["id"], audio, row["text"], speaker, "en", seconds, row["split"])


def _report(rows, voices, seed):
    def part(chosen):
        seconds = [row["seconds"] for row in chosen]
        return {"utterances": len(chosen), "hours": round(sum(seconds) / 3600, 4)}

    spoken = {voice.name: [] for voice in voices}
    for row in rows:
        spoken[row["voice"].name].append(row)
    words = Counter(
        word for row in rows if row["split"] == "train" for word in words_of(row["text"])
    )
    seconds = np.asarray([row["seconds"] for row in rows] or [0.0])
    return {
        **part(rows),
        "seed": seed,
        "splits": {name: part([r for r in rows if r["split"] == name]) for name in SPLITS},
        "speakers": {v.name: {**part(spoken[v.name]), **_told(v)} for v in voices},
        "seconds_percentiles": {
            str(p): round(float(np.percentile(seconds, p)), 2) for p in (0, 5, 25, 50, 75, 95, 100)
        },
        "train_words": sum(words.values()),
        "train_distinct_words": len(words),
        "train_rarest_words": dict(sorted(words.items(), key=lambda item: (item[1], item[0]))[:20]),
    }
