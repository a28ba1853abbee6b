"""The pipe to the package xcodec2, with a package of that name that rounds loudness."""

import sys

import numpy as np
import pytest

from llasa_core import codecs
from llasa_core.codecs import xcodec2_pypi
from llasa_core.errors import InputError

PACKAGE = """
import torch
class XCodec2Model(torch.nn.Module):
    @classmethod
    def from_pretrained(cls, source, output_loading_info):
        print("a library that prints")
        missing = ["beta"] if source == "broken" else []
        return cls(), {"missing_keys": missing, "unexpected_keys": [], "mismatched_keys": []}
    def encode_code(self, input_waveform):
        padded = torch.nn.functional.pad(input_waveform, (0, 320))
        frames = padded[:, : padded.shape[1] // 320 * 320].reshape(1, -1, 320)
        if frames.abs().max() > 1:
            raise ValueError("too loud")
        return (frames.abs().mean(2) * 1000).round().long()[:, None]
    def decode_code(self, codes):
        return codes.float().repeat_interleave(320, dim=2) / 1000
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "xcodec2").mkdir()
    (tmp_path / "xcodec2/__init__.py").touch()
    (tmp_path / "xcodec2/modeling_xcodec2.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(xcodec2_pypi.INTERPRETER, sys.executable)


def test_codec_of_the_package_encodes_and_decodes_over_a_pipe(package):
    codec = codecs.load_codec("xcodec2-pypi", "cpu")
    waves = [np.full(n, level, np.float32) for n, level in ((1000, 0.25), (640, 0.5), (100, 0.1))]
    codes = codec.encode(waves)
    assert [row.tolist() for row in codes] == [[250] * 3, [500] * 2, []]
    assert codes[0].dtype == np.int32 and codec.name == "xcodec2"
    back = codec.decode(codes)
    assert [len(wave) for wave in back] == [960, 640, 0]
    np.testing.assert_allclose(back[1], 0.5)
    with pytest.raises(InputError, match="worker of xcodec2: ValueError: too loud"):
        codec.encode([np.full(640, 2.0, np.float32)])
    assert codec.encode(waves[1:2])[0].tolist() == [500, 500]  # it goes on after an error
    with pytest.raises(InputError, match="codes outside of 0"):
        codec.decode([np.array([65_536])])


def test_weights_that_are_not_all_loaded_are_an_error(package):
    with pytest.raises(InputError, match=r"broken: missing keys: \['beta'\]"):
        xcodec2_pypi.PypiXcodec2(sys.executable, "cpu", "broken")


def test_missing_environment_is_one_line_that_names_the_make_target(tmp_path, monkeypatch):
    monkeypatch.setenv(xcodec2_pypi.INTERPRETER, str(tmp_path / "python"))
    with pytest.raises(InputError, match=r"no interpreter of the package.*make xcodec2-env"):
        codecs.load_codec("xcodec2-pypi", "cpu")
    monkeypatch.setenv(xcodec2_pypi.INTERPRETER, sys.executable)  # one without the package
    with pytest.raises(InputError, match=r"No module named 'xcodec2.*make xcodec2-env"):
        codecs.load_codec("xcodec2-pypi", "cpu")
