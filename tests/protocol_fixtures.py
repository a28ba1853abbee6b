"""The public benchmarks in small, laid out as they are distributed, with speech that the fake
judges hear.
"""

from pathlib import Path

import numpy as np
import soundfile

from llasa_core.judges.fake import fake_speech


def wav(path: Path, text: str, speaker: int = 0, seconds: float | None = None) -> Path:
    """A 16 kHz recording of the text, padded with spaces to the length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if seconds is not None:
        text = text.ljust(round(seconds * 50))
    soundfile.write(path, fake_speech(text, speaker), 16000, subtype="PCM_16")
    return path


def seed_tts(root: Path) -> Path:
    """seedtts_testset with en/meta.lst (a reference recording in its second line), zh/meta.lst,
    zh/hardcase.lst.
    """
    lines = ["u1|Some call me nature.|prompt-wavs/p1.wav|The cat's forty-two mats, sir!"]
    lines += ["u2|Others call me.|prompt-wavs/p2.wav|Hello there.|wavs/other.wav"]
    wav(root / "en/prompt-wavs/p1.wav", "some call me nature", 3)
    wav(root / "en/prompt-wavs/p2.wav", "others call me", 20)
    wav(root / "en/wavs/u1.wav", "the cat's forty two mats sir", 3)
    wav(root / "en/wavs/other.wav", "hello there", 20)
    (root / "en/meta.lst").write_text("\n".join(lines) + "\n")
    wav(root / "zh/prompt-wavs/p1.wav", "prompt", 3)
    (root / "zh/meta.lst").write_text(
        "z1|你好。|prompt-wavs/p1.wav|今天天气好，是吧？\n", encoding="utf-8"
    )
    (root / "zh/hardcase.lst").write_text(
        "h1|你好。|prompt-wavs/p1.wav|四是四，十是十。\n", encoding="utf-8"
    )
    return root


def librispeech(root: Path) -> Path:
    """test-clean with two speakers: utterances of 5.5 and 6 s, short ones for prompts, and one that
    is too long.
    """
    for speaker, tone in (("61", 3), ("121", 20)):
        chapter = root / "test-clean" / speaker / "70"
        texts = {
            "0000": ("THE CAT SAT ON THE MAT", 5.5),
            "0001": ("A DOG BARKED", 2.5),
            "0002": ("IT RAINS", 12.0),
        }
        if speaker == "61":
            texts["0003"] = ("ROOM SEVEN IS TAKEN BY NOW", 6.0)
        lines = []
        for number, (text, seconds) in texts.items():
            id_ = f"{speaker}-70-{number}"
            path = wav(chapter / f"{id_}.wav", text.lower(), tone, seconds)
            soundfile.write(
                path.with_suffix(".flac"), soundfile.read(path)[0], 16000, subtype="PCM_16"
            )
            path.unlink()
            lines.append(f"{id_} {text}")
        (chapter / f"{speaker}-70.trans.txt").write_text("\n".join(lines) + "\n")
    return root / "test-clean"


def esd(root: Path, flat: bool = False) -> Path:
    """Speakers 0011 (English) and 0001 (Chinese, its list in GB 18030), three test sentences in
    each emotion.
    """
    texts = {"0011": "The nine the eggs, I keep.", "0001": "打远一看，它们的确很是美丽，"}
    for speaker, encoding in (("0011", "utf-8"), ("0001", "gb18030")):
        lines = []
        for place, emotion in enumerate(("Neutral", "Angry", "Happy", "Sad", "Surprise")):
            for number in (21, 22, 23, 120):
                id_ = f"{speaker}_{350 * place + number:06d}"
                part = "" if flat else "train/" if number > 50 else "test/"
                wav(root / speaker / emotion / f"{part}{id_}.wav", "eggs", place)
                lines.append(f"{id_}\t{texts[speaker]}\t{emotion}")
        (root / speaker / f"{speaker}.txt").write_bytes("\n".join(lines).encode(encoding))
    return root


def spoken(folder: Path, said: dict[str, tuple[str, int]]) -> Path:
    """A manifest as `llasa synthesize` writes it: id -> (what is heard, tone of the voice)."""
    import json

    lines = []
    for id_, (text, tone) in said.items():
        wav(folder / "wavs" / f"{id_}.wav", text, tone)
        line = {
            "id": id_,
            "audio": f"wavs/{id_}.wav",
            "text": "as asked for",
            "speaker": "",
            "seed": 0,
            "ended": True,
        }
        lines.append(json.dumps(line))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "manifest.jsonl"


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path)[0]
