"""Checkpoints: weights loaded strictly, their code never run; `llasa.json` tells the training.

A hub id is no folder: its files are looked for where the weights are, or a model pushed there loses
its settings. transformers fills tensors that a file lacks with random numbers and only warns; here
that is an error.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llasa_core.errors import InputError, above, between, check_value
from llasa_core.files import read_object, sha256

SETTINGS = "llasa.json"  # written next to a checkpoint by training

# A codec that travels with a checkpoint: a folder inside, with these files
CODEC_FOLDER = "codec"
CODEC_FILES = ("config.json", "model.safetensors", "adaptation.json")

# How a checkpoint is sampled unless asked otherwise: what generation_config.json recommends and
# where `Sampling` starts. top_k: of the public example, which has it from `generate`.
RECOMMENDED_SAMPLING = {"temperature": 0.8, "top_k": 50, "top_p": 1.0}

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

SETTINGS_KEYS = {
    "codec": str,
    "date": str,
    "speakers": list,
    "mask_eot": bool,
    "seconds_per_character": float,
    "context": int,
    "codec_fingerprint": str,
    "codes_fingerprint": str,
    "codec_folder": str,
}

SETTINGS_BOUNDS = {"seconds_per_character": above(0, 60), "context": between(1, 2**28)}

# The largest value of a size in config.json that is believed: beyond it a file is wrong or hostile,
# and building the model would fill the memory or never end.
LARGEST = {
    "vocab_size": 4_000_000,
    "hidden_size": 65_536,
    "intermediate_size": 1_000_000,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 1_024,
    "num_key_value_heads": 1_024,
    "head_dim": 8_192,
    "max_position_embeddings": 2**28,
}
LAYER = re.compile(r"(?:model\.layers|transformer\.h)\.(\d+)\.")

# A template is a program: a loop can run for ever and a repetition can fill the memory, even
# while it compiles. An unknown template first runs in a separate process under these limits.
_TEMPLATE_SECONDS = 5
_TEMPLATE_TRIAL = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
from transformers.utils.chat_template_utils import render_jinja_template
asked = json.load(sys.stdin)
chats, template, tokens = [asked["turns"]], asked["template"], asked["tokens"]
rendered, _ = render_jinja_template(chats, chat_template=template, **tokens)
print(len(rendered[0]))
""".replace("SECONDS", str(_TEMPLATE_SECONDS))


def load_strictly(kind: Any, source: str | Path, **settings: Any) -> Any:
    """`kind.from_pretrained(source)` where every tensor of the model is read from safetensors.

    kind: a model or Auto class of transformers. InputError names the tensors that are missing,
    unexpected, of another shape or not finite, and whatever else keeps a checkpoint from being
    loaded; code that a checkpoint brings is never run. settings: as from_pretrained takes them.
    """
    from transformers.utils import logging

    if Path(source).is_dir():
        check_config(Path(source))
    else:
        reach(str(source))
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # its table of missing tensors: the error says it in one line
    try:
        model, report = kind.from_pretrained(
            source,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below by name
            trust_remote_code=False,
            **settings,
        )
    except Exception as error:  # a stranger's file makes transformers fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "custom code" in reason:
            reason = "it brings code of its own (auto_map), which is never run"
        elif "couldn't connect" in reason:
            reason = "no such folder, not in the hub's cache, and the hub is out of reach"
        raise InputError(f"{source}: cannot be loaded as a checkpoint ({reason})") from error
    finally:
        logging.set_verbosity(level)
    for problem in ("missing", "unexpected", "mismatched"):
        found = report[f"{problem}_keys"]  # of mismatched ones with both shapes
        names = sorted(key if isinstance(key, str) else key[0] for key in found)
        if names:
            raise InputError(
                f"{source}: {problem} weights: {_some(names)}, expected those of a"
                f" {type(model).__name__} as config.json describes it"
            )
    broken = [name for name, tensor in model.state_dict().items() if not _finite(tensor)]
    if broken:
        raise InputError(f"{source}: NaN or infinite weights: {_some(broken)}")
    return model


def reach(hub_id: str, file: str = "config.json") -> None:
    """InputError within ten seconds where a hub id is neither in the cache nor can be asked for.

    transformers would ask again and again for minutes.
    """
    from huggingface_hub import constants, model_info, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE or not HUB_ID.fullmatch(hub_id):
        return  # transformers says at once what is missing
    if isinstance(try_to_load_from_cache(hub_id, file), str):
        return
    try:
        model_info(hub_id, timeout=10)
    except Exception as error:  # of the hub client, of its HTTP client, of the system
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"{hub_id}: no such folder, and no such model can be had from the hub ({reason})"
        ) from error


def check_config(folder: Path) -> dict:
    """config.json of a checkpoint folder, its sizes checked against LARGEST and the weights' names.

    Nothing is allocated. InputError names the key and what was expected.
    """
    path = folder / "config.json"
    config = read_object(path, "the settings of a model")
    if config.get("quantization_config") is not None:
        raise InputError(f"{path}: `quantization_config`: quantized weights are not read")
    _check_sizes(config, str(path))
    layers = {int(found[1]) for name in weight_names(folder) if (found := LAYER.match(name))}
    named = config.get("num_hidden_layers")
    if named is not None and layers and max(layers) + 1 != named:
        raise InputError(
            f"{path}: `num_hidden_layers` is {named}, the weights hold {max(layers) + 1} layers"
        )
    return config


def _check_sizes(config: dict, where: str) -> None:
    """InputError for a size beyond LARGEST, here or in a configuration inside (of a codec's encoder
    for instance), and for any number above the largest of all.
    """
    for key, value in config.items():
        if isinstance(value, dict):
            _check_sizes(value, f"{where}: `{key}`")
        elif value is not None and key in LARGEST:
            check_value(f"{where}: `{key}`", value, int, between(1, LARGEST[key]))
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > max(LARGEST.values()):
                raise InputError(f"{where}: `{key}` is {number}, expected a size of a model")


def weight_names(folder: Path) -> list[str]:
    """Names of the tensors in a folder's safetensors files, from their headers."""
    from safetensors import SafetensorError, safe_open

    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                names.extend(file.keys())
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: no safetensors file ({error})") from error
    return names


@functools.lru_cache(maxsize=8)
def template_problem(template: str, special_tokens: str) -> str | None:
    """Why a chat template (both arguments as JSON) must not be rendered here; None if it may."""
    turns = [{"role": role, "content": "words " * 20} for role in ("user", "assistant") * 4]
    tokens = {**json.loads(special_tokens), "date_string": "26 Jul 2024"}
    asked = {"template": json.loads(template), "turns": turns, "tokens": tokens}
    if not isinstance(asked["template"], str):
        return "is a table of several, expected one"
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TEMPLATE_TRIAL],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=60,  # wall time; the limit itself is CPU time
        )
    except subprocess.TimeoutExpired:
        return f"does not end within {_TEMPLATE_SECONDS} s of computing"
    if trial.returncode < 0:
        return f"does not end within {_TEMPLATE_SECONDS} s of computing"
    if trial.returncode:
        reason = trial.stderr.strip().splitlines()[-1:] or ["no reason given"]
        return f"failed on user and assistant turns ({reason[0][:160]})"
    if int(trial.stdout) > 100_000:
        return f"writes {int(trial.stdout):,} characters for 8 short turns"
    return None


def weights_sha256(folder: str | Path) -> dict[str, str]:
    """sha256 of each safetensors file of a folder, by name; what training keeps in llasa.json."""
    return {path.name: sha256(path) for path in sorted(Path(folder).glob("*.safetensors"))}


def changed_weights(folder: str | Path) -> list[str]:
    """Files whose weights are not those that training wrote, by llasa.json; each with the reason.

    Empty where nothing changed, and where llasa.json keeps no sums (older trainings).
    """
    path = Path(folder) / SETTINGS
    if not path.is_file():
        return []
    kept = read_object(path).get("weights") or {}
    check_value(f"{path}: `weights`", kept, dict)
    found = weights_sha256(folder) if kept else {}
    return [
        f"{folder}/{name}: {_difference(kept.get(name), found.get(name))}"
        for name in sorted({*kept, *found})
        if kept.get(name) != found.get(name)
    ]


def _difference(kept: str | None, found: str | None) -> str:
    if kept is None:
        return "not written by training"
    return "missing" if found is None else "sha256 differs from training's"


def _finite(tensor: Any) -> bool:
    """Whether all values are finite: their fp64 sum then is, and it is quicker than a mask."""
    return not tensor.is_floating_point() or math.isfinite(tensor.double().sum().item())


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def checkpoint_file(checkpoint: str | Path, name: str) -> Path | None:
    """A file of a checkpoint folder or hub id (fetched into the hub's cache, as weights are); None
    if it has none.

    Offline, what the cache does not hold is not there. InputError where the hub cannot be asked.
    """
    if Path(checkpoint).exists():
        path = Path(checkpoint) / name
        return path if os.path.lexists(path) else None
    if not HUB_ID.fullmatch(str(checkpoint)):
        return None
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers.utils import cached_file

    try:
        found = cached_file(str(checkpoint), name)
    except OSError as error:  # without a cause: the repository has no such file
        absent = error.__cause__ is None
        if absent or (
            constants.HF_HUB_OFFLINE and isinstance(error.__cause__, LocalEntryNotFoundError)
        ):
            return None
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{checkpoint}: cannot be asked for its {name} ({reason}); "
            "HF_HUB_OFFLINE=1 uses the local cache"
        ) from None
    return None if found is None else Path(found)


def carried_codec(checkpoint: str | Path) -> str | None:
    """The folder of the codec that travels with a checkpoint folder or hub id; None without one."""
    found = [checkpoint_file(checkpoint, f"{CODEC_FOLDER}/{name}") for name in CODEC_FILES]
    return None if found[0] is None else str(found[0].parent)


def codec_place(checkpoint: str | Path, settings: Mapping[str, Any]) -> str | None:
    """The folder or name of a checkpoint's codec: the folder that travels with it; else the one
    that llasa.json (`settings`) tells, where that is there; else the name. None without any.
    """
    told = settings.get("codec_folder")
    at_hand = told if told and Path(told, CODEC_FILES[0]).is_file() else None
    return carried_codec(checkpoint) or at_hand or settings.get("codec")


def read_settings(path: Path) -> dict:
    """What llasa.json says of SETTINGS_KEYS; {} without the file. Speakers of a model without tags
    are left out, and the context is that of the training where the file says none.
    """
    if not os.path.lexists(path):
        return {}
    settings = read_object(path, "the JSON object that training wrote")
    if settings.get("speaker_tags") == 0:
        settings["speakers"] = []
    if isinstance(settings.get("training"), dict):
        settings.setdefault("context", settings["training"].get("context"))
    for key, kind in SETTINGS_KEYS.items():
        if settings.get(key) is not None:
            check_value(f"{path}: `{key}`", settings[key], kind, SETTINGS_BOUNDS.get(key))
    if not all(isinstance(speaker, str) for speaker in settings.get("speakers") or []):
        raise InputError(f"{path}: `speakers` holds other than text, expected names")
    return {key: settings[key] for key in SETTINGS_KEYS if settings.get(key) is not None}


def refuse_another_codec(path: Path, settings: dict, codec) -> None:
    """InputError where llasa.json (`settings`, from `path`) tells another codec, or other weights
    of it, than `codec`.

    A missing fingerprint on either side matches anything; another decoder for the same codes is
    no other codec (codecs.interface.Codec.other_weights).
    """
    named, folder = settings.get("codec"), settings.get("codec_folder")
    if named is not None and codec.name != named:
        raise InputError(f"{path}: the model was trained on codec {named}, not {codec.name}")
    if differ := codec.other_weights(settings):
        place = f"that of the folder {folder}" if folder else "that with which its codes were made"
        raise InputError(
            f"{path}: the model was trained on codec {named} of weights {differ[0]}, not"
            f" {differ[1]}; give {place} as codec"
        )
