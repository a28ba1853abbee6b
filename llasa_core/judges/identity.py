"""Which model a judge is, whatever it is called: a verifier of a search must not be its judge.

A name may be an alias, a hub id or a folder, and two names may be one model. So judges are compared
by a fingerprint of their weights, and by names with aliases and owners taken off. Weights that a
library rounds or stores in its own way (CTranslate2's int8) have a fingerprint of their own: there
the name decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llasa_core.files import sha256

DIGITS = 16  # hexadecimal ones of a sha256 that are kept

# Keys of a line of a search: the names of the judges that chose, fingerprints of their weights, and
# the recordings that they compared with
CHOSEN_BY = ("verifiers", "verifier_weights", "verifier_recordings")

# Names of one model, prefixes taken off already
ALIASES = {"large": "large-v3", "turbo": "large-v3-turbo", "wavlm": "wavlm-base-plus-sv"}


def model_name(name: str) -> str:
    """What a model is called without its owner, its library and `whisper-`, in small letters;
    a folder's name is unchanged, as a folder may be called anything.

    "large-v3", "openai/whisper-large-v3" and "Systran/faster-whisper-large-v3" are one.
    """
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or Path(name).is_dir():
        return name
    short = name.lower().rpartition("/")[2].removeprefix("faster-")
    short = short.replace("distil-whisper-", "distil-").removeprefix("whisper-")
    return ALIASES.get(short, short)


def tensors_fingerprint(tensors: Mapping[str, Any]) -> str:
    """Of torch tensors by name. In fp16, so that a copy saved in fp16 is the same model."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        kept = tensor.detach().cpu()
        kept = kept.to(torch.float16) if kept.is_floating_point() else kept
        digest.update(kept.contiguous().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def files_fingerprint(files: Iterable[Path]) -> str:
    """Of files of weights, in an order of their content."""
    return sums_fingerprint(sha256(path) for path in files)


def sums_fingerprint(sums: Iterable[str]) -> str:
    """Of the sha256 of files of weights; of a single file its own."""
    kept = sorted(sums)
    if len(kept) > 1:
        kept = [hashlib.sha256("\n".join(kept).encode()).hexdigest()]
    return kept[0][:DIGITS]


def weights_of(judge: Any) -> str | None:
    """The fingerprint of a judge's weights; None of one that has none to tell."""
    return getattr(judge, "fingerprint", None)


def same_judge(judge: Any, names: Iterable[str], weights: Iterable[str]) -> bool:
    """Whether a judge is among those of these names or weights."""
    called = {model_name(name) for name in names}
    return model_name(judge.name) in called or weights_of(judge) in set(weights)
