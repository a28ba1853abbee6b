"""The codec seam: 16 kHz waves <-> speech codes at 50 codes/s, one codebook, numpy on both sides.

Backends keep batching, padding and devices inside, and a batch of n equals n batches of one.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from llasa_core.device import choose_device
from llasa_core.errors import InputError
from llasa_core.files import read_object

MINI_CODEC = Path(__file__).parents[2] / "results" / "checkpoints" / "mini-codec"


class Codec(Protocol):
    """Speech <-> codes. hop = sample_rate / frame_rate samples a code (320).

    A codec with weights also has `fingerprint`: 16 hex digits of them, or None where they are not
    known; and `folder`, as it was given, where they are neither released nor tracked here. A name
    alone does not say which codes are meant.
    """

    name: str
    sample_rate: int  # Hz
    codebook_size: int
    frame_rate: float  # codes a second

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """float32 (T,) each, T may differ -> int32 (floor(T / hop),) each, in 0..codebook_size - 1.

        A codec whose features are slow has `front`, a picklable callable that makes those of a
        wave, and takes a list of them as `features`.
        """
        ...

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Integer codes (F,) each -> float32 (F * hop,) each. InputError for a code outside the
        codebook.
        """
        ...


def load_codec(name_or_path: str | Path, device: str | None = None) -> Codec:
    """The codec "xcodec2" (the released checkpoint), "mini" (the tracked one), "fake" (no model),
    or one in a folder.

    A folder holds `config.json`, of a mini codec or, by its model_type, of X-codec2 in
    transformers' format. device: by default the GPU where there is one (machine.device). Raises
    InputError for an unknown name, or weights that are not there.
    """
    name = str(name_or_path)
    kind = _kind(name)
    if kind == "fake":
        from llasa_core.codecs.fake import FakeCodec

        return FakeCodec()
    device = choose_device(device)
    if kind == "xcodec2":
        from llasa_core.codecs.xcodec2 import CHECKPOINT, Xcodec2Codec

        codec = Xcodec2Codec.from_pretrained(
            CHECKPOINT if name == "xcodec2" else name, device=device
        )
    else:
        from llasa_core.codecs.mini import MiniCodec

        codec = MiniCodec.from_folder(MINI_CODEC if name == "mini" else name, device)
    codec.folder = None if name in ("xcodec2", "mini") else name
    return codec


def fingerprint_of(name_or_path: str | Path) -> str | None:
    """`load_codec(name_or_path).fingerprint`, without loading X-codec2; None where it has none or
    is not there.
    """
    name = str(name_or_path)
    try:
        if _kind(name) == "xcodec2":
            from llasa_core.codecs.xcodec2 import CHECKPOINT, checkpoint_fingerprint

            return checkpoint_fingerprint(CHECKPOINT if name == "xcodec2" else name)
        return getattr(load_codec(name), "fingerprint", None)
    except InputError:
        return None


def _kind(name: str) -> str:
    """ "fake", "xcodec2" or "mini": which codec a name or the config.json of a folder means."""
    if name in ("fake", "xcodec2"):
        return name
    folder = MINI_CODEC if name == "mini" else Path(name)
    if not (folder / "config.json").is_file():
        if name == "mini":
            raise InputError(
                f"{folder}: no config.json there, expected the weights of the mini codec"
            )
        raise InputError(
            f"codec {name!r}: expected xcodec2, mini, fake or a folder with a codec's config.json"
        )
    config = read_object(folder / "config.json", "a codec's settings")
    return "xcodec2" if config.get("model_type") == "xcodec2" else "mini"
