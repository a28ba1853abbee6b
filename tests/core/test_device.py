"""The device that is there, and the folder that can be written, told before long work."""

import importlib
import inspect
import pkgutil

import pytest
import torch

import llasa_core
from llasa_core import device
from llasa_core.cli import build_parser
from llasa_core.codecs import load_codec, mini
from llasa_core.codecs.fake import FakeCodec
from llasa_core.codecs.mini import MiniCodec, MiniCodecConfig
from llasa_core.codecs.xcodec2 import Bf16Codec
from llasa_core.device import choose_device
from llasa_core.errors import InputError


@pytest.fixture
def gpus(monkeypatch):
    def there(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return there


def test_the_default_is_the_gpu_of_this_process_where_there_is_one(gpus, monkeypatch):
    gpus(0)
    assert choose_device() == "cpu"
    gpus(2)
    assert (
        choose_device() == "cuda:0"
        and choose_device("cpu") == "cpu"
        and choose_device("cuda:1") == "cuda:1"
    )
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device() == "cuda:1"


def test_a_device_that_is_not_there_is_refused_unless_another_machine_is_meant(gpus):
    gpus(1)
    with pytest.raises(InputError, match="'cuda:1': torch finds 1 CUDA"):
        choose_device("cuda:1")
    with pytest.raises(InputError, match="'tpu', expected cpu, cuda"):
        choose_device("tpu", here=False)
    gpus(0)
    assert choose_device("cuda", here=False) == "cuda"


def test_loading_without_a_device_asks_for_the_one_that_is_there(monkeypatch):
    asked = []
    monkeypatch.setattr(mini, "choose_device", lambda name=None: asked.append(name) or "cpu")
    load_codec("mini")
    load_codec("mini", "cpu")
    assert asked == [None, "cpu"]


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file: is no folder"):
            device.check_folder(path)
    assert device.check_folder(tmp_path / "new" / "one") == tmp_path / "new" / "one"
    assert not (tmp_path / "new").exists()


def test_every_device_defaults_to_the_accelerator(gpus):
    """Of all commands, and of everything in the library that computes on a device."""
    commands = next(
        action.choices for action in build_parser()._actions if isinstance(action.choices, dict)
    )
    asked = [
        (name, action.default)
        for name, parser in commands.items()
        for action in parser._actions
        if "--device" in action.option_strings
    ]
    assert {"encode", "synthesize", "search", "transcribe", "protocol"} <= {
        name for name, _ in asked
    }
    assert {default for _, default in asked} == {None}
    defaults = {}
    for found in pkgutil.walk_packages(llasa_core.__path__, "llasa_core."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for name, one in vars(module).items():
            for part, made in {name: one, **(vars(one) if inspect.isclass(one) else {})}.items():
                made = getattr(made, "__func__", made)
                if inspect.isfunction(made) and made.__module__ == found.name:
                    device = inspect.signature(made).parameters.get("device")
                    if device is not None:
                        defaults[f"{found.name}.{part}"] = device.default
    defaults.pop("llasa_core.model.build_model")  # of fresh weights: "meta" counts them unbuilt
    assert len(defaults) > 8 and set(defaults.values()) <= {None, inspect.Parameter.empty}


def test_what_is_built_in_memory_goes_to_the_gpu(gpus):
    gpus(1)
    asked = []

    class Model(torch.nn.Module):
        config = MiniCodecConfig()

        def to(self, device):
            asked.append(device)
            return self

    assert MiniCodec(Model()).device == "cuda:0" and asked == ["cuda:0"]
    assert MiniCodec(Model(), "cpu").device == "cpu"
    assert Bf16Codec(FakeCodec())._device == "cuda"
