"""Speech through several decoders of the same codes."""

import json

import numpy as np
import pytest
from tiny_models import speaking_llama

from llasa_core.codecs.fake import FakeCodec
from llasa_core.errors import InputError
from llasa_core.manifest import Request
from llasa_core.synthesis import decoders
from llasa_core.synthesis import synthesizer as loop
from llasa_core.synthesis.batch import synthesize_manifest
from llasa_core.synthesis.long_text import speak_long
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.tokenizer import vocabulary_of

SAMPLING = Sampling(temperature=1.0, top_k=20, max_seconds=0.6)
REQUESTS = [Request("a", "Call the office. The lamp is red."), Request("b", "Yes.", seed=1)]


class Quiet(FakeCodec):
    """Another decoder of the fake codec's codes."""

    def decode(self, codes):
        return [0.5 * wave for wave in super().decode(codes)]


class Other(FakeCodec):
    name = "other"


@pytest.fixture
def synthesizer(mini_tokenizer):
    model = speaking_llama(vocabulary_of(mini_tokenizer))
    return Synthesizer(model, mini_tokenizer, FakeCodec(), slots=4)


@pytest.mark.parametrize("characters", [0, 20])
def test_codes_are_generated_once_and_decoded_by_each(
    synthesizer, tmp_path, monkeypatch, characters
):
    monkeypatch.setattr(decoders, "load_codec", lambda name, device: Quiet())
    generated, own = [], loop.decode

    def counted(model, prompts, *others):
        generated.extend(prompts)
        return own(model, prompts, *others)

    monkeypatch.setattr(loop, "decode", counted)
    found = {}
    for name, one in zip("ab", decoders.through_decoders(synthesizer, ["quiet"]), strict=True):
        if characters:
            path = speak_long(one, REQUESTS, tmp_path / name, SAMPLING, characters=characters)
        else:
            path = synthesize_manifest(one, REQUESTS, tmp_path / name, SAMPLING, keep_codes=True)
        found[name] = [json.loads(line) for line in path.read_text().splitlines()]
    assert found["a"] == found["b"] and len(generated) == (3 if characters else 2)
    plain = synthesize_manifest(synthesizer, REQUESTS[1:], tmp_path / "plain", SAMPLING)
    assert json.loads(plain.read_text())["codes"] == found["a"][1]["codes"]
    waves = [(tmp_path / name / "wavs/b.wav").read_bytes() for name in ("plain", "a", "b")]
    alone, loud, quiet = (np.frombuffer(wave[44:], np.int16) for wave in waves)
    assert np.allclose(alone, loud, atol=1) and np.allclose(quiet, loud / 2, atol=1)
    assert np.abs(loud).max() > 100


def test_a_codec_of_other_codes_is_refused(synthesizer, monkeypatch):
    monkeypatch.setattr(decoders, "load_codec", lambda name, device: Other())
    with pytest.raises(InputError, match="elsewhere: not a decoder of the codes of codec fake"):
        decoders.through_decoders(synthesizer, ["elsewhere"])
