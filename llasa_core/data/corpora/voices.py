"""The speakers of the built-in corpora: hibari's voice changed by factors, and Kokoro's voices.

Pitch or formants moved alone spoil the voice, both moved together hardly: predicted quality
(DistillMOS, two sentences each) is 4.3 at a resampling of 0.87 alone, 2.5 at a pitch of 1.3 alone.
So hundreds of speakers are drawn from resampling above all, with small and coherent other changes.
"""

import functools
import hashlib
import math
from dataclasses import dataclass, replace

from llasa_core.errors import InputError

HIBARI_VERSION = "0.2.1"


@dataclass(frozen=True)
class Voice:
    """A pseudo-speaker: factors on the source voice (1.0 = unchanged).

    resampling moves pitch and formants together, formants and pitch move one of them, speed is the
    tempo. source: the voice that is changed, hibari's own or the name of one of Kokoro's
    (`kokoro`), which takes resampling and speed alone.
    """

    name: str
    resampling: float = 1.0
    formants: float = 1.0
    pitch: float = 1.0
    speed: float = 1.0
    source: str = "hibari"


# Speakers of the grammar's corpus. Measured with Whisper tiny.en (int8, greedy; 25 sentences, about
# 200 words a voice) and WeSpeaker (40 a voice): WER ava 1.0, ben 2.0, cleo 1.0, dan 1.0, eva 1.0,
# finn 3.0, gwen 1.5, hugo 3.0, ian 1.5 %; 99.4 % of utterances are nearest to the centroid of the
# other utterances of their own voice; centroids have a cosine of at most 0.74. Their predicted
# quality is low, 1.7 to 3.4 but for eva's 4.3.
VOICES = (
    Voice("ava", resampling=0.93, pitch=0.78, speed=0.97),
    Voice("ben", formants=0.95, pitch=1.18, speed=1.03),
    Voice("cleo", pitch=0.72),
    Voice("dan", formants=1.07, pitch=1.10, speed=1.04),
    Voice("eva", resampling=0.87, speed=1.02),
    Voice("finn", formants=1.12, pitch=1.26, speed=0.98),
    Voice("gwen", pitch=1.30),
    Voice("hugo", formants=1.12, pitch=0.74, speed=1.02),
)

# Kept out of the grammar's corpus: the voice that fine-tuning has to learn.
NEW_VOICE = Voice("ian", resampling=0.92, formants=1.15, pitch=0.62)

# Speakers with a name in the open corpus, other voices than those of VOICES: of 106 draws those
# with a predicted quality (DistillMOS) of at least 3.55, the ones that lie farthest apart. No two
# of the eight have a cosine above 0.70 (WeSpeaker); their qualities, one sentence each, are 4.3,
# 3.7, 3.6, 4.3, 4.1, 4.3, 3.6, 4.2. heart is hibari's own voice.
NAMED = (
    Voice("ava", resampling=0.925, formants=1.088, pitch=1.082, speed=0.97),
    Voice("ben", resampling=0.777, formants=0.887, pitch=0.837, speed=1.03),
    Voice("cleo", resampling=1.06, formants=1.034, pitch=1.013),
    Voice("dan", resampling=0.844, formants=0.981, pitch=0.945, speed=1.04),
    Voice("eva", resampling=0.907, formants=0.968, pitch=1.008, speed=1.02),
    Voice("finn", resampling=0.803, formants=0.954, pitch=0.975, speed=0.98),
    Voice("gwen", resampling=0.991, formants=1.062, pitch=1.139),
    Voice("hugo", resampling=1.032, formants=0.933, pitch=0.82, speed=1.02),
    Voice("heart"),
)

# Kept out of the open corpus: a voice that fine-tuning may learn.
NEW_OPEN_VOICE = Voice("ian", resampling=0.959, formants=0.963, pitch=0.936)

# Heard in no training: for unseen speakers.
HELD_OUT = (
    Voice("rosa", resampling=0.80, formants=0.98, pitch=0.96, speed=1.04),
    Voice("stan", resampling=0.84, formants=0.94, pitch=0.86, speed=0.98),
    Voice("tess", resampling=0.88, formants=1.03, pitch=1.06, speed=1.0),
    Voice("uwe", resampling=0.91, formants=0.92, pitch=0.88, speed=0.96),
    Voice("vera", resampling=0.95, formants=1.05, pitch=1.05, speed=1.05),
    Voice("will", resampling=0.99, formants=0.93, pitch=0.90, speed=1.0),
    Voice("xena", resampling=1.03, formants=1.01, pitch=0.97, speed=1.02),
    Voice("yuri", resampling=1.06, formants=0.92, pitch=0.86, speed=0.97),
)

# Speakers that a model of the open corpus may be taught by tag: their names are no tags of its own.
# The eight are those of the grammar's corpus, which it never heard.
TWO_SPEAKERS = (NEW_OPEN_VOICE, replace(NEW_VOICE, name="jonas"))
EIGHT_SPEAKERS = tuple(
    replace(voice, name=name)
    for voice, name in zip(
        VOICES, "alma boris celia deniz elsa felix greta henri".split(), strict=True
    )
)

# Corpora of the grammar's sentences, and who speaks them.
GRAMMAR_SPEAKERS = {
    "builtin": VOICES,
    "builtin-two-speakers": TWO_SPEAKERS,
    "builtin-eight-speakers": EIGHT_SPEAKERS,
}

# All corpora that are spoken on the spot: the grammar's, and those of any English (`open_corpus`)
BUILTIN = (
    *GRAMMAR_SPEAKERS,
    *("builtin-open", "builtin-short", "builtin-kokoro", "builtin-new-voice"),
)

# Kokoro's English voices; those of KOKORO_HELD_OUT are heard in no training.
KOKORO = (
    "af_alloy af_aoede af_bella af_heart af_jessica af_kore af_nicole af_nova af_river af_sarah"
    " af_sky am_adam am_echo am_eric am_fenrir am_liam am_michael am_onyx am_puck am_santa"
    " bf_alice bf_emma bf_isabella bf_lily bm_daniel bm_fable bm_george bm_lewis"
).split()
KOKORO_HELD_OUT = "af_nova af_sky am_echo am_puck bf_alice bf_lily bm_fable bm_lewis".split()

_NEAR = 0.03  # of the logarithms of resampling and formants: nearer ones are one speaker


def kokoro_voices(held_out: bool = False) -> tuple[Voice, ...]:
    """Kokoro's English voices that are for training, or those that are held out."""
    return tuple(
        Voice(name, source=name) for name in KOKORO if (name in KOKORO_HELD_OUT) == held_out
    )


def pseudo_speakers(count: int, seed: int = 0) -> tuple[Voice, ...]:
    """`count` speakers `p000`, `p001`, .. by seed, none near one of HELD_OUT or
    NEW_OPEN_VOICE.

    Resampling 0.80 to 1.06, pitch 0.85 to 1.10, formants half as far as the pitch and 4 % to
    either side, tempo 0.92 to 1.08. A larger count begins with the smaller one's speakers.
    """
    found: list[Voice] = []
    for draw in range(100 * count):
        if len(found) == count:
            break
        shares = [number / 2**32 for number in draws(f"speaker {seed} {draw}", 4)]
        pitch = math.exp(_between(-0.16, 0.10, shares[0]))
        voice = Voice(
            f"p{len(found):03d}",
            resampling=round(math.exp(_between(math.log(0.80), math.log(1.06), shares[1])), 4),
            formants=round(math.sqrt(pitch) * math.exp(_between(-0.04, 0.04, shares[2])), 4),
            pitch=round(pitch, 4),
            speed=round(_between(0.92, 1.08, shares[3]), 4),
        )
        if not any(_near(voice, other) for other in (*HELD_OUT, NEW_OPEN_VOICE)):
            found.append(voice)
    return tuple(found)


def _near(one: Voice, other: Voice) -> bool:
    distances = (
        math.log(one.resampling / other.resampling),
        math.log(one.formants / other.formants),
    )
    return max(map(abs, distances)) < _NEAR


def draws(text: str, count: int) -> list[int]:
    """`count` numbers below 2^32 by sha256 of the text, at most eight."""
    digest = hashlib.sha256(text.encode()).digest()
    return [int.from_bytes(digest[4 * i : 4 * i + 4], "big") for i in range(count)]


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


@functools.lru_cache(maxsize=1)
def hibari_engine():
    """The offline voice and its phonemizer, loaded once. InputError without its exact version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("hibari-tts")
    except PackageNotFoundError:
        found = "none"
    if found != HIBARI_VERSION:
        raise InputError(
            f"hibari-tts {found} is installed, expected {HIBARI_VERSION}: pip install"
            " 'llasa-core[corpus]'"
        )
    from hibari import Hibari

    return Hibari(threads=1)
