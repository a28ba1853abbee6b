"""A blinded page on which raters score systems 1 to 3: OUT/page is for the raters, OUT/key.json
stays private.

Nothing on the page names a system: clips have meaningless names in alphabetical order, and their
order follows from seed, rater and sentence. The page's hash covers texts, rubric and every clip's
samples.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from llasa_core.audio import load_recording, write_wav
from llasa_core.errors import InputError
from llasa_core.evaluation.rating.sentences import LEVELS, Sentence
from llasa_core.files import publish, read_object, render_page, sha256, write_json
from llasa_core.manifest import Utterance, read_manifest

SCHEMA = 1


def named_manifests(sources: Sequence[str]) -> dict[str, Path]:
    """{system: manifest} of "NAME=MANIFEST" or "MANIFEST" (its folder); no duplicates."""
    named: dict[str, Path] = {}
    for source in sources:
        name, equals, path = source.partition("=")
        path = Path(path if equals else source)
        name = name if equals else Path(os.path.realpath(path)).parent.name
        if not name or name in named:
            raise InputError(
                f"{source}: duplicate or empty system name {name!r}, expected NAME=MANIFEST"
            )
        named[name] = path
    return named


def rating_page(
    out: str | Path,
    sentences: Sequence[Sentence],
    systems: Mapping[str, str | Path],
    title: str = "Text understanding",
    seed: int = 0,
) -> dict[str, str | int]:
    """Write OUT/page/index.html with its clips in OUT/page/clips, and OUT/key.json; returns hash
    and counts.

    systems: {name: manifest with id, audio and text}; each speaks every sentence. Raises InputError
    for no system, a missing sentence or one with another text, a missing clip, and an OUT that
    holds another page.
    """
    out = Path(out)
    if not systems or not sentences:
        raise InputError("rating page: expected at least one system and one sentence")
    spoken = {name: _spoken(path, sentences) for name, path in systems.items()}
    items: dict[str, dict[str, str]] = {}
    clips: dict[str, Path] = {}
    listed = []
    for sentence in sentences:
        codes = []
        for name, utterances in spoken.items():
            file = Path(utterances[sentence.id].audio)
            load_recording(file)  # whatever else it is must not reach a rater
            marked = f"{seed}/{sentence.id}/{name}/{sha256(file)}"
            code = hashlib.sha256(marked.encode()).hexdigest()[:12]
            items[code] = {"system": name, "sentence": sentence.id}
            clips[code] = file
            codes.append({"item": code, "clip": f"clips/{code}.wav"})
        codes.sort(key=lambda clip: clip["item"])
        listed.append({**vars(sentence), "clips": codes})
    shown = {"title": title, "seed": seed, "levels": LEVELS, "sentences": listed}
    page = hashlib.sha256(
        json.dumps(shown, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()[:16]
    key = {
        "schema": SCHEMA,
        "page": page,
        "seed": seed,
        "items": items,
        "sentences": [vars(one) for one in sentences],
    }
    earlier = read_object(out / "key.json") if (out / "key.json").is_file() else None
    if earlier is not None and earlier.get("page") != page:
        raise InputError(
            f"{out / 'key.json'}: belongs to another page, whose scores need it; choose another"
            " folder"
        )
    if (out / "page").exists() and earlier is None:
        raise InputError(
            f"{out / 'page'}: is there without a key.json, expected a folder for rating pages"
        )
    (out / "page" / "clips").mkdir(parents=True, exist_ok=True)
    write_json(out / "key.json", key)
    for code, file in clips.items():  # what a manifest names is decoded, never copied as it is
        samples, rate = load_recording(file)
        write_wav(out / "page" / "clips" / f"{code}.wav", samples, rate)
    data = json.dumps({"page": page, **shown}, ensure_ascii=False).replace("<", "\\u003c")
    publish(
        out / "page" / "index.html",
        render_page(Path(__file__).parent, "rating", title=title, data=data),
    )
    return {"page": page, "systems": len(systems), "sentences": len(sentences), "clips": len(clips)}


def _spoken(path: str | Path, sentences: Sequence[Sentence]) -> dict[str, Utterance]:
    utterances = {utterance.id: utterance for utterance in read_manifest(path)}
    for sentence in sentences:
        utterance = utterances.get(sentence.id)
        if utterance is None:
            raise InputError(f"{path}: no utterance {sentence.id!r}, expected every test sentence")
        if utterance.text != sentence.text:
            raise InputError(
                f"{path}: {sentence.id!r} speaks {utterance.text!r}, expected {sentence.text!r}"
            )
        if not Path(utterance.audio).is_file():
            raise InputError(f"{path}: audio file {utterance.audio} of {sentence.id!r} is missing")
    return utterances
