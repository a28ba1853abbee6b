"""What a checkpoint is on the hub: weights, settings, tokenizer, guards, model card and the mini
codec that it needs. Only files of these names travel, so nothing that runs and no pickle does.

The folder `codec` there is what makes a stranger's `llasa synthesize --model REPO` speak.
"""

import hashlib
import json
import os
from pathlib import Path, PurePath
from typing import Any

from llasa_core.checkpoint import (
    CODEC_FILES,
    CODEC_FOLDER,
    HUB_ID,
    SETTINGS,
    changed_weights,
    check_config,
    codec_place,
    read_settings,
    refuse_another_codec,
)
from llasa_core.codecs import codec_class, load_codec
from llasa_core.codecs.mini import MINI_CODEC, MiniCodec
from llasa_core.errors import InputError
from llasa_core.files import read_object, sha256
from llasa_core.training.model_card import CARD, model_card, scored

NAMES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "guards.json",
    "train_log.jsonl",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)

Contents = dict[str, Path | bytes]  # path in the repository -> file or text


def contents(
    checkpoint: str | Path,
    repo: str,
    codec: str | None = None,
    scores: str | Path | None = None,
    license: str | None = None,
) -> Contents:
    """Everything that travels. scores: summary.json of an evaluation, or its folder.

    InputError for a folder that `llasa train` did not write, weights that are not those it wrote,
    code of its own, another codec, or scores for a card that was edited.
    """
    folder = Path(checkpoint)
    if not HUB_ID.fullmatch(repo):
        raise InputError(f"{repo}: no name of a repository, expected USER/NAME")
    if not (folder / SETTINGS).is_file():
        raise InputError(f"{folder}: no {SETTINGS}, expected a folder that `llasa train` wrote")
    check_config(folder)
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in read_object(folder / name):
            raise InputError(f"{folder / name}: `auto_map` names code, which does not travel")
    for changed in changed_weights(folder):
        raise InputError(changed)
    found: Contents = {
        path.relative_to(folder).as_posix(): path
        for name in NAMES
        for path in sorted(folder.glob(name))
    }
    settings = portable(read_object(folder / SETTINGS))
    files, weights = _codec_files(folder, codec)
    if files:
        settings.pop("codec_folder", None)
        settings |= weights
    path, told = folder / CARD, read_scores(scores)
    if path.is_file() and sha256(path) != settings.get("card"):
        if told is not None or license is not None:
            raise InputError(f"{path}: was edited; write scores and licence there, or delete it")
        card = path.read_bytes()
    else:
        card = model_card(settings, repo, told, license, pushed=True, carried=bool(files)).encode()
        settings["card"] = hashlib.sha256(card).hexdigest()
    written = json.dumps(settings, indent=2, sort_keys=True).encode()
    return found | files | {CARD: card, SETTINGS: written}


def portable(value: Any) -> Any:
    """JSON values with the last part alone of each absolute path: the others are of one machine."""
    if isinstance(value, dict):
        return {key: portable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [portable(one) for one in value]
    return PurePath(value).name if isinstance(value, str) and os.path.isabs(value) else value


def read_scores(path: str | Path | None) -> dict[str, Any] | None:
    """The metrics with intervals of an evaluation; InputError where there are none."""
    if path is None:
        return None
    path = Path(path)
    path = path / "summary.json" if path.is_dir() else path
    scores = read_object(path, "the summary of `llasa evaluate`")
    if not isinstance(scores.get("metrics"), dict) or not scored(scores):
        raise InputError(f"{path}: no `metrics` with intervals, as an evaluation writes them")
    return {"name": path.resolve().parent.name, **scores}


def push(found: Contents, repo: str, private: bool = False) -> str:
    """Upload `contents` as one commit, and remove what an earlier push left; returns the address.

    The token is that of `hf auth login` or HF_TOKEN. InputError with the hub's reason where it
    refuses or is out of reach.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    hub = HfApi()
    try:
        url = hub.create_repo(repo, private=private, exist_ok=True)
        there = set(hub.list_repo_files(url.repo_id))
        stale = [
            name
            for name in sorted(there - set(found))
            if any(PurePath(name).match(pattern) for pattern in NAMES)
            or name.startswith(f"{CODEC_FOLDER}/")
        ]
        hub.create_commit(
            url.repo_id,
            [CommitOperationAdd(name, one) for name, one in sorted(found.items())]
            + [CommitOperationDelete(name) for name in stale],
            commit_message="Checkpoint, codec and model card by llasa push",
        )
    except Exception as error:  # of the hub client, of its HTTP client, of the system
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = "; log in with `hf auth login`, or set HF_TOKEN" if status in (401, 403) else ""
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{repo}: the hub does not take it ({reason}){hint}") from error
    return str(url)


def _codec_files(folder: Path, given: str | None) -> tuple[Contents, dict[str, str]]:
    """The files of a mini codec, and its fingerprints; none for another kind, which its name finds
    everywhere.
    """
    settings = read_settings(folder / SETTINGS)
    place = given or codec_place(folder, settings)
    if place is None:
        raise InputError(f"{folder / SETTINGS}: names no codec, expected --codec")
    if not issubclass(codec_class(place), MiniCodec):
        return {}, {}
    codec = load_codec(place, "cpu")
    refuse_another_codec(folder / SETTINGS, settings, codec)
    there = MINI_CODEC if place == "mini" else Path(place)
    names = (name for name in CODEC_FILES if (there / name).is_file())
    return {f"{CODEC_FOLDER}/{name}": there / name for name in names}, codec.weights
