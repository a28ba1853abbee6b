"""Codecs by name. A new one is a subclass of `codecs.interface.Codec` and one line in CODECS.

The class is asked `load(name, device)`. Settings in a folder name their codec as `codec` or, in
transformers' format, `model_type`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llasa_core.codecs.interface import Codec, other_weights
from llasa_core.errors import InputError, names_in, registered
from llasa_core.files import read_object

CODECS = {
    "xcodec2": "llasa_core.codecs.xcodec2:Xcodec2Codec",  # the released checkpoint
    "xcodec2-pypi": "llasa_core.codecs.xcodec2_pypi:PypiXcodec2",  # in another environment
    "mini": "llasa_core.codecs.mini:MiniCodec",  # the one tracked here
    "fake": "llasa_core.codecs.fake:FakeCodec",  # no model
    "opus-*k": "llasa_core.codecs.classical:OpusCodec",  # kbit/s
    "codec2-*": "llasa_core.codecs.classical:Codec2Codec",  # bit/s
}


def load_codec(name_or_path: str | Path, device: str | None = None) -> Codec:
    """A codec of CODECS, or one in a folder with `config.json`.

    device: by default the GPU where there is one (`choose_device`). Raises InputError for an
    unknown name, or weights that are not there.
    """
    name = str(name_or_path)
    kind = _kind(name)
    codec = _class_of(kind).load(name, device)
    if kind != name:
        codec.folder = name
    return codec


def codec_class(name_or_path: str | Path) -> type[Codec]:
    """The class that `load_codec` asks; InputError for an unknown name."""
    return _class_of(_kind(str(name_or_path)))


def weights_of(name_or_path: str | Path) -> dict[str, str]:
    """`load_codec(name).weights` without slow loading; {} if it is absent."""
    name = str(name_or_path)
    try:
        return codec_class(name).weights_of(name)
    except InputError:
        return {}


def other_codes(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, str] | None:
    """As `other_weights` of two records; where one is of earlier versions, which told no
    codes_fingerprint, the codec that it names says it, if that is at hand.
    """
    found = other_weights(record, wanted)
    return found and other_weights(_completed(record), _completed(wanted))


def codec_names() -> str:
    """What `load_codec` takes, for help texts and messages."""
    return f"{names_in(CODECS)} or a folder"


def _completed(record: Mapping[str, Any]) -> Mapping[str, Any]:
    if record.get("codes_fingerprint"):
        return record
    at_hand = weights_of(record.get("codec_folder") or record.get("codec") or "")
    same = at_hand.get("codec_fingerprint") == record.get("codec_fingerprint")
    return at_hand if same else record


def _class_of(kind: str) -> type[Codec]:
    return registered("codec", CODECS, kind, " or a folder with a codec's config.json")


def _kind(name: str) -> str:
    """The entry of CODECS that a name, or the config.json of a folder, means."""
    settings = Path(name) / "config.json"
    if name in CODECS or not settings.is_file():
        return name
    config = read_object(settings, "a codec's settings")
    kind = config.get("codec", config.get("model_type"))
    return kind if kind in CODECS else "mini"
