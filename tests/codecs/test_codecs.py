"""Every codec backend keeps the promises of the seam; the models are tiny and random."""

import hashlib
import math
import pickle
import pkgutil

import numpy as np
import pytest

from llasa_core import codecs
from llasa_core.codecs import load_codec, weights_of
from llasa_core.codecs.fake import FakeCodec
from llasa_core.codecs.interface import Codec
from llasa_core.data.encode import encode_manifest
from llasa_core.errors import InputError


def tiny_xcodec2():
    """X-codec2 with its real hop and quantizer at small width, scaled so that its codes differ from
    frame to frame.
    """
    import torch
    from transformers import Wav2Vec2BertConfig, Xcodec2Config, Xcodec2Model

    semantic = Wav2Vec2BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_depthwise_kernel_size=5,
    )
    config = Xcodec2Config(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        encoder_hidden_size=4,
        quantization_dim=96,
        semantic_model_config=semantic,
    )
    torch.manual_seed(0)
    model = Xcodec2Model(config).eval()
    model.quantizer.project_in.weight.data *= 600
    model.quantizer.project_in.bias.data.zero_()
    return model


@pytest.fixture(scope="module")
def xcodec2_model():
    return tiny_xcodec2()


@pytest.fixture(scope="module", params=["fake", "mini", "xcodec2"])
def codec(request):
    if request.param == "fake":
        return FakeCodec()
    if request.param == "mini":
        import torch

        from llasa_core.codecs.mini import MiniCodec, MiniCodecConfig, MiniCodecModel

        torch.manual_seed(0)
        return MiniCodec(
            MiniCodecModel(MiniCodecConfig(width=64, encoder_layers=1, decoder_layers=1, heads=2))
        )
    from llasa_core.codecs.xcodec2 import Xcodec2Codec

    return Xcodec2Codec(request.getfixturevalue("xcodec2_model"), batch_seconds=60)


def noise(samples, seed=0):
    """float32 (samples,): noise whose loudness and colour change from frame to frame."""
    random = np.random.default_rng([seed, samples])
    wave = (
        np.convolve(random.normal(size=samples + 8), random.normal(size=9), "valid")
        if samples
        else np.zeros(0)
    )
    gains = np.repeat(10 ** random.uniform(-3, -1, samples // 320 + 1), 320)[:samples]
    return (np.clip(wave * gains, -1, 1)).astype(np.float32)


# Equal lengths, lengths that differ within one code, on its borders, and waves shorter than a code.
LENGTHS = (3200, 3200, 3519, 3201, 4000, 3199, 320, 319, 1, 0)
WAVES = [noise(length, seed) for seed, length in enumerate(LENGTHS)]


def test_there_is_one_code_for_each_whole_hop(codec):
    codes = codec.encode(WAVES)
    assert [len(row) for row in codes] == [length // 320 for length in LENGTHS]
    assert all(row.dtype == np.int32 and row.ndim == 1 for row in codes)
    assert all(((row >= 0) & (row < codec.codebook_size)).all() for row in codes)
    assert codec.sample_rate == 16_000 and codec.frame_rate == 50.0


def test_codes_of_a_batch_are_those_of_each_wave_alone(codec):
    together = codec.encode(WAVES)
    assert len(set(np.concatenate(together).tolist())) > 12  # else equality would say little
    for wave, codes in zip(WAVES, together, strict=True):
        np.testing.assert_array_equal(codec.encode([wave])[0], codes)


def test_waves_of_a_batch_are_those_of_each_row_alone(codec):
    codes = codec.encode(WAVES)
    waves = codec.decode(codes)
    for row, wave in zip(codes, waves, strict=True):
        assert wave.dtype == np.float32 and wave.shape == (len(row) * 320,)
        np.testing.assert_allclose(codec.decode([row])[0], wave, atol=1e-5)


def test_decoding_takes_the_codes_of_a_dataset(codec):
    codes = codec.encode(WAVES[:1])
    np.testing.assert_array_equal(
        codec.decode([codes[0].astype(np.uint16)])[0], codec.decode(codes)[0]
    )


@pytest.mark.parametrize("offset", [0, 10**6])
def test_code_outside_the_codebook_is_refused(codec, offset):
    with pytest.raises(InputError, match=r"codes 0\.\."):
        codec.decode([np.array([0, codec.codebook_size + offset])])
    with pytest.raises(InputError, match=r"codes 0\.\."):
        codec.decode([np.array([-1, 0])])


def test_every_member_of_the_interface_is_there(codec):
    members = [name for name in dir(Codec) if not name.startswith("_")]
    assert {"fingerprint", "folder", "precision", "exact", "front", "decode_window"} <= set(members)
    assert all(hasattr(codec, name) for name in [*members, "name", "sample_rate"])
    assert codec.fingerprint is None or len(codec.fingerprint) == 16
    assert codec.precision is None and codec.exact is None and codec.folder is None
    codes = codec.encode(WAVES[:1])[0]
    assert codec.decode_window(codes, 2, 7).shape == (5 * 320,)
    assert codec.bits(codes) == len(codes) * math.log2(codec.codebook_size)
    if codec.front is not None:
        front = pickle.loads(pickle.dumps(codec.front))
        again = codec.encode(WAVES[:1], features=[front(WAVES[0])])
        np.testing.assert_array_equal(again[0], codes)


@pytest.mark.parametrize("name", codecs.CODECS)
def test_every_codec_of_the_registry_is_a_subclass_of_the_interface(name):
    backend = pkgutil.resolve_name(codecs.CODECS[name])
    assert Codec in backend.__mro__
    assert {"load", "encode", "decode"} <= set(vars(backend))


def test_a_codec_of_packets_makes_no_dataset(tmp_path):
    with pytest.raises(InputError, match=r"opus-12k has no codebook"):
        encode_manifest(tmp_path / "m.jsonl", tmp_path / "out", load_codec("opus-12k"))
    assert not (tmp_path / "out").exists()


def test_nothing_in_nothing_out(codec):
    assert codec.encode([]) == [] and codec.decode([]) == []


@pytest.mark.parametrize("codebook_size", [1, 2, 7, 64, 65_536])
def test_fake_codec_has_the_codebook_that_was_asked_for(codebook_size):
    codec = FakeCodec(codebook_size)
    codes = codec.encode([noise(32_000), np.zeros(640, np.float32)])
    assert all(row.max() < codebook_size for row in codes)
    codec.decode([np.arange(min(codebook_size, 500))])


def test_fake_codec_keeps_loudness_and_pitch():
    codec, time = FakeCodec(), np.arange(16_000) / 16_000
    loud = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    again = codec.decode(codec.encode([loud]))[0]
    assert abs(again.std() / loud.std() - 1) < 0.1
    spectrum = np.abs(np.fft.rfft(again))
    assert abs(int(spectrum.argmax()) - 440) < 130  # one of 64 rate bins is 125 Hz wide
    assert not codec.decode(codec.encode([np.zeros(3200, np.float32)]))[0].any()


def test_xcodec2_features_are_those_of_the_models_own_extractor(xcodec2_model):
    """One to 320 zeros up to a whole hop, half a hop of zeros around, Kaldi filter banks,
    normalised by utterance.
    """
    from llasa_core.codecs.xcodec2 import Xcodec2Codec

    seen = {}

    class Listening:
        config, device, dtype = xcodec2_model.config, xcodec2_model.device, xcodec2_model.dtype

        def eval(self):
            return self

        def modules(self):
            return xcodec2_model.modules()

        def encode(self, values, features):
            seen.update(values=values.numpy(), features=features.numpy())
            return xcodec2_model.encode(values, features)

    wave = noise(3300)
    Xcodec2Codec(Listening()).encode([wave])
    assert seen["values"].shape == (1, 1, 3520) and seen["features"].shape == (1, 11, 160)
    np.testing.assert_array_equal(seen["values"][0, 0, :3300], wave)
    assert not seen["values"][0, 0, 3300:].any()
    np.testing.assert_allclose(
        seen["features"][0], _kaldi_features(seen["values"][0, 0]), atol=2e-3
    )


def _kaldi_features(padded):
    """Log mel filter banks after Kaldi, written out: (F * 320,) -> (F, 160)."""
    around = np.pad(padded.astype(np.float64), 160) * 2**15
    frames = np.stack([around[start : start + 400] for start in range(0, len(around) - 399, 160)])
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = np.concatenate(
        [frames[:, :1] * (1 - 0.97), frames[:, 1:] - 0.97 * frames[:, :-1]], axis=1
    )
    frames = frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft(frames, 512)) ** 2

    def mel(frequency):
        return 1127 * np.log(1 + frequency / 700)

    edges = np.linspace(mel(20), mel(8000), 82)
    bins = mel(np.arange(257) * 16_000 / 512)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    banks = np.log(
        np.maximum(power @ np.clip(np.minimum(rising, falling), 0, None), 1.192092955078125e-07)
    )
    return ((banks - banks.mean(0)) / np.sqrt(banks.var(0, ddof=1) + 1e-7)).reshape(-1, 160)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "length"), [(3, 1), (5, 2), (48, 999), (7, 100_000)])
def test_fast_snake_is_the_models_own_bit_for_bit(channels, length):
    import torch
    from transformers.models.xcodec2.modeling_xcodec2 import (
        Xcodec2AntiAliasedActivation1d,
        Xcodec2SnakeBeta,
    )

    from llasa_core.codecs import xcodec2

    torch.manual_seed(length)
    module = Xcodec2AntiAliasedActivation1d(Xcodec2SnakeBeta(channels))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    hidden = torch.randn(2, channels, length)
    own = module(hidden).detach()
    xcodec2.install_fast_snake(module)
    with torch.inference_mode():
        assert torch.equal(module(hidden), own)
        strided = torch.randn(2, length, channels).transpose(1, 2)
        assert torch.equal(module(strided), type(module).forward(module, strided))
    assert module(hidden).requires_grad
    xcodec2.remove_fast_snake(module)
    assert "forward" not in module.__dict__


@pytest.mark.slow
def test_xcodec2_checkpoint_folder_gives_the_same_codes(xcodec2_model, tmp_path):
    from llasa_core.codecs.xcodec2 import Xcodec2Codec

    xcodec2_model.save_pretrained(tmp_path)
    codec = load_codec(tmp_path)
    assert codec.name == "xcodec2" and codec.codebook_size == 65_536
    np.testing.assert_array_equal(
        codec.encode(WAVES[:1])[0], Xcodec2Codec(xcodec2_model).encode(WAVES[:1])[0]
    )


@pytest.mark.slow
def test_xcodec2_is_told_by_its_weights_file(xcodec2_model, tmp_path, monkeypatch):
    from llasa_core.codecs.xcodec2 import Xcodec2Codec, checkpoint_fingerprint

    xcodec2_model.save_pretrained(tmp_path / "a")
    sha256 = hashlib.sha256((tmp_path / "a/model.safetensors").read_bytes()).hexdigest()
    told = {"codec_fingerprint": sha256[:16]}
    assert load_codec(tmp_path / "a").weights == weights_of(tmp_path / "a") == told
    assert Xcodec2Codec(xcodec2_model).fingerprint is None
    xcodec2_model.save_pretrained(tmp_path / "pieces", max_shard_size="100KB")
    pieces = checkpoint_fingerprint(tmp_path / "pieces")
    piece = sorted((tmp_path / "pieces").glob("model-*.safetensors"))[-1]
    piece.write_bytes(piece.read_bytes()[:-1] + b"x")
    assert pieces and checkpoint_fingerprint(tmp_path / "pieces") not in (pieces, None)
    snapshot = tmp_path / "hub/models--an--id/snapshots/0123"
    for folder in (snapshot, snapshot.parents[1] / "refs", snapshot.parents[1] / "blobs"):
        folder.mkdir(parents=True)
    (snapshot.parents[1] / "refs/main").write_text("0123")
    (snapshot.parents[1] / f"blobs/{'ab' * 32}").write_bytes(b"never read")
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{'ab' * 32}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert checkpoint_fingerprint("an/id") == "ab" * 8 and checkpoint_fingerprint("no/such") is None


def test_xcodec2_without_all_its_weights_is_refused(xcodec2_model, tmp_path):
    from safetensors.torch import load_file, save_file

    xcodec2_model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["quantizer.project_in.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"quantizer\.project_in\.weight"):
        load_codec(tmp_path)


def test_unreachable_hub_is_one_clear_line():
    with pytest.raises(
        InputError, match=r"^HKUSTAudio/xcodec2-hf: cannot be loaded .*the hub is out of reach"
    ) as raised:
        load_codec("xcodec2")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["nothing", "no/such/folder"])
def test_unknown_codec_is_refused_with_what_there_is(name):
    with pytest.raises(InputError, match=r"expected xcodec2, .*mini, .*codec2-\* or a folder"):
        load_codec(name)


def test_missing_weights_of_the_mini_codec_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("llasa_core.codecs.mini.MINI_CODEC", tmp_path / "mini-codec")
    with pytest.raises(InputError, match=r"codec mini: its weights are in the repository"):
        load_codec("mini")


def test_damaged_codec_settings_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not JSON"):
        load_codec(tmp_path)
