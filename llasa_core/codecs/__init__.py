"""Codecs by name. A new one is a subclass of `codecs.interface.Codec` and one line in CODECS.

The class is asked `load(name, device)`. Settings in a folder name their codec as `codec` or, in
transformers' format, `model_type`.
"""

from pathlib import Path

from llasa_core.codecs.interface import Codec
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


def fingerprint_of(name_or_path: str | Path) -> str | None:
    """`load_codec(name).fingerprint` without slow loading; None if it has none or is absent."""
    name = str(name_or_path)
    try:
        return codec_class(name).fingerprint_of(name)
    except InputError:
        return None


def codec_names() -> str:
    """What `load_codec` takes, for help texts and messages."""
    return f"{names_in(CODECS)} or a folder"


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
