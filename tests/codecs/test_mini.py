"""The mini codec and its training at width 64: the seam, the checkpoint, the losses on cases worked
out by hand.
"""

import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import TINY_CODEC
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2Decoder, Xcodec2Quantizer

from llasa_core.audio import write_wav
from llasa_core.codecs import load_codec, mini_training
from llasa_core.codecs.mini import LogMel, MiniCodec, MiniCodecConfig, MiniCodecModel
from llasa_core.codecs.mini_data import Augmentation, Batch, CodecTraining, WaveSet
from llasa_core.codecs.mini_losses import (
    FramePredictor,
    LabelHead,
    MelLoss,
    spread_loss,
    step_losses,
)
from llasa_core.codecs.mini_training import learning_rate, train_codec
from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, write_manifest


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return MiniCodec(MiniCodecModel(TINY_CODEC))


def speechlike(samples, seed=0):
    """float32 (samples,): a gliding tone in noise, both of changing loudness."""
    random = np.random.default_rng([seed, samples])
    glide = np.sin(np.cumsum(np.linspace(0.03, 0.4, samples)) + seed)
    gains = np.repeat(10 ** random.uniform(-3, -0.5, samples // 800 + 1), 800)[:samples]
    return (gains * (glide + 0.3 * random.normal(size=samples)) / 2).astype(np.float32)


# Seam


@pytest.mark.parametrize("hop, dimensions", [(160, 3), (640, 8)])
def test_a_codec_of_another_rate_and_codebook_keeps_both_when_saved(tmp_path, hop, dimensions):
    torch.manual_seed(0)
    config = replace(TINY_CODEC, hop=hop, levels=(4,) * dimensions)
    MiniCodec(MiniCodecModel(config)).save(tmp_path)
    codec = load_codec(tmp_path)
    codes = codec.encode([speechlike(3300)])[0]
    assert (codec.frame_rate, codec.codebook_size) == (16_000 / hop, 4**dimensions)
    assert len(codes) == 3300 // hop and 0 <= codes.min() <= codes.max() < 4**dimensions
    assert len(codec.decode([codes])[0]) == len(codes) * hop
    assert len(codec.decode_window(codes, 1, 4)) == 3 * hop


def test_a_batch_gives_what_each_utterance_gives_alone(codec):
    """More utterances of one length than go into one batch, and others around them."""
    lengths = [3200, *[2000] * 34, 2240, 3519]
    waves = [speechlike(length, seed) for seed, length in enumerate(lengths)]
    codes = codec.encode(waves)
    decoded = codec.decode(codes)
    assert [len(row) for row in codes] == [length // 320 for length in lengths]
    assert [len(wave) for wave in decoded] == [length // 320 * 320 for length in lengths]
    assert len(set(np.concatenate(codes).tolist())) > 20
    for place in (0, 1, 17, 33, 34, 35, 36):
        np.testing.assert_array_equal(codec.encode([waves[place]])[0], codes[place])
        np.testing.assert_allclose(codec.decode([codes[place]])[0], decoded[place], atol=1e-5)


def test_codes_stand_for_the_quantized_latents(codec):
    wave = torch.from_numpy(speechlike(32_000))[None]
    with torch.no_grad():
        latents, codes = codec.model.quantize(wave)
        again = codec.model.quantizer.from_codes(codes.unsqueeze(-1))
    assert latents.shape == again.shape == (1, 100, 96) and codes.unique().numel() > 10
    torch.testing.assert_close(again, latents, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(codec.encode([wave[0].numpy()])[0], codes[0].numpy())


def test_quantizer_and_decoder_are_those_of_xcodec2(codec):
    assert (
        type(codec.model.quantizer) is Xcodec2Quantizer
        and type(codec.model.decoder) is Xcodec2Decoder
    )
    assert MiniCodecConfig().codebook_size == codec.codebook_size == 4096
    assert len(codec.model.quantizer.quantizer.codebook) == 4096


# Checkpoint


def test_checkpoint_is_half_precision_safetensors_and_loads_to_the_same_codes(codec, tmp_path):
    codec.save(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    raw = (tmp_path / "a" / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    assert set(header) == set(codec.model.state_dict()) and {
        entry["dtype"] for entry in header.values()
    } == {"F16"}
    assert len(raw) == 8 + size + 2 * sum(
        math.prod(entry["shape"]) for entry in header.values()
    )  # and nothing else

    loaded = load_codec(tmp_path / "a")
    assert isinstance(loaded, MiniCodec) and loaded.model.config == TINY_CODEC
    for name, tensor in codec.model.state_dict().items():
        torch.testing.assert_close(
            loaded.model.state_dict()[name], tensor.half().float(), atol=0, rtol=0
        )
    loaded.save(tmp_path / "b")
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == raw
    wave = speechlike(16_000)
    codes = loaded.encode([wave])[0]
    np.testing.assert_array_equal(load_codec(tmp_path / "b").encode([wave])[0], codes)
    assert len(set(codes.tolist())) > 10


def changed(**settings):
    def change(folder):
        saved = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**saved, **settings}))

    return change


def cut(folder):
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])


@pytest.mark.parametrize(
    "damage, file, said",
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json", "not found"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors", "not found"),
        (cut, "model.safetensors", "expected weights that fit config.json"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b""),
            "model.safetensors",
            "expected weights",
        ),
        (changed(width=96), "model.safetensors", "size mismatch"),
        (changed(encoder_layers=2), "model.safetensors", "Missing key"),
        (
            lambda folder: (folder / "config.json").write_text("[1]"),
            "config.json",
            "expected a JSON object",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"width": 64'),
            "config.json",
            "expected a JSON object",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
            "config.json",
            '"codec": "mini"',
        ),
        (changed(sample_rate=24_000), "config.json", '"sample_rate": 16000'),
        (changed(colour="red"), "config.json", "colour"),
        (changed(width="64"), "config.json", "`width` is '64'"),
        (changed(width=65), "config.json", "multiple of 32"),
        (changed(heads=0), "config.json", "`heads` is 0"),
        (changed(levels=[4, 1]), "config.json", "levels is"),
        (changed(levels=[4] * 9), "config.json", "levels make 262144 codes"),
        (changed(hop=330), "config.json", "hop is 330"),
        (changed(levels=4), "config.json", "settings of a mini codec"),
    ],
)
def test_damaged_checkpoint_is_refused_in_one_line_that_names_the_file(
    codec, tmp_path, damage, file, said
):
    codec.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError) as raised:
        MiniCodec.from_folder(tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / file}: ") and said in message and "\n" not in message


@pytest.mark.parametrize("codes, bad", [([0, 4096], "4096"), ([-1, 5], "-1")])
def test_code_out_of_range_is_named(codec, codes, bad):
    with pytest.raises(
        InputError, match=rf"^code {bad} is out of range: the mini codec has codes 0\.\.4095$"
    ):
        codec.decode([np.array([1, 2]), np.array(codes)])


# Features and losses


@pytest.mark.parametrize("n_fft, hop, bands", [(1024, 320, 80), (256, 64, 20), (2048, 512, 120)])
def test_log_mel_has_one_frame_a_hop(n_fft, hop, bands):
    features = LogMel(n_fft, hop, bands)
    assert features(torch.zeros(2, 10 * hop)).shape == (2, 10, bands)
    click = torch.zeros(1, 10 * hop)
    click[0, 5 * hop + hop // 2] = 1
    assert int(features(click).sum(-1).argmax()) == 5  # frame 5 is centred on the samples of hop 5


@pytest.mark.parametrize("band", [12, 40, 70])
def test_tone_peaks_in_the_band_around_its_frequency(band):
    """Slaney's scale: 3 mel every 200 Hz up to 1 kHz, then 27 mel for each factor of 6.4; 80 bands
    up to 8 kHz.
    """
    mel = (band + 1) / 81 * (15 + 27 * math.log(8) / math.log(6.4))
    frequency = mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)
    tone = torch.sin(2 * torch.pi * frequency * torch.arange(3200) / 16_000)
    features = LogMel(1024, 320, 80)(tone[None])[0]
    assert (features[2:-2].argmax(-1) == band).all()


def test_mel_loss_of_a_louder_copy_is_the_logarithm_of_the_gain():
    wave = 0.3 * torch.from_numpy(np.random.default_rng(0).normal(size=(1, 8192))).float()
    assert MelLoss()(wave, wave) == 0
    assert MelLoss()(2 * wave, wave).item() == pytest.approx(math.log(2), abs=1e-3)


def test_spread_loss_by_hand():
    """No loss at mean -0.24 and a deviation of 0.8 to 1.4; squared distances from there, averaged
    over dimensions.
    """
    spread = torch.tensor([-1.24, -0.24, 0.76])  # mean -0.24, deviation 1
    collapsed = torch.tensor([0.5, 0.5, 0.5])  # 0.74 ** 2 + 0.8 ** 2 = 1.1876
    wide = torch.tensor([-3.24, -0.24, 2.76])  # deviation 3: 1.6 ** 2 = 2.56
    assert spread_loss(spread.reshape(1, 3, 1)).item() == pytest.approx(0, abs=1e-9)
    assert spread_loss(collapsed.reshape(3, 1, 1)).item() == pytest.approx(1.1876)
    assert spread_loss(torch.stack([spread, collapsed, wide], -1)[None]).item() == pytest.approx(
        (1.1876 + 2.56) / 3
    )


def test_learning_rate_climbs_to_the_peak_and_falls_to_its_share(tmp_path):
    settings = CodecTraining(
        "m", "o", steps=300, warmup_steps=100, peak_lr=2e-3, final_lr_ratio=0.05
    )
    assert learning_rate(settings, 0) == pytest.approx(2e-5)
    assert learning_rate(settings, 99) == learning_rate(settings, 100) == pytest.approx(2e-3)
    assert learning_rate(settings, 200) == pytest.approx(
        2e-3 * (0.05 + 0.95 / 2)
    )  # half of the cosine
    assert learning_rate(settings, 300) == pytest.approx(1e-4)
    assert learning_rate(replace(settings, warmup_steps=0), 0) == pytest.approx(2e-3)


# Training


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    utterances = []
    for number, text in enumerate(("Ab, c'1", "a bad cab", "…", "zebra")):
        path = folder / f"{number}.wav"
        write_wav(path, speechlike(4800 + 1600 * number, number))
        utterances.append(Utterance(str(number), path, text))
    write_manifest(folder / "train.jsonl", utterances)
    return CodecTraining(
        str(folder / "train.jsonl"),
        "",
        4,
        2,
        crop_seconds=0.16,
        save_steps=3,
        warmup_steps=2,
        threads=1,
        model=TINY_CODEC,
    )


def test_labels_are_the_characters_that_can_be_read(settings):
    """Blank is 0, space 1, apostrophe 2, a 3; digits and other marks are left out."""
    data = WaveSet(settings)
    labels = {len(wave): label for wave, label in zip(data.waves, data.labels, strict=True)}
    assert labels == {
        4800: [3, 4, 1, 5, 2],
        6400: [3, 1, 4, 3, 6, 1, 5, 3, 4],
        8000: [],
        9600: [28, 7, 4, 20, 3],
    }
    assert data.hours == pytest.approx(28_800 / 16_000 / 3600)


def test_no_more_than_the_asked_hours_are_read(settings):
    assert len(WaveSet(replace(settings, hours=0.0)).waves) == 1


def test_batches_depend_on_seed_and_step_alone(settings):
    data = WaveSet(settings)
    batch, again, later = (data.batch(settings, step) for step in (3, 3, 4))
    first = batch.heard
    assert torch.equal(first, again.heard) and not (
        first.shape == later.heard.shape and torch.equal(first, later.heard)
    )
    assert first.shape == (2, int(batch.frames.max()) * 320) and len(batch.labels) == 2
    assert batch.target is first and batch.gains.tolist() == [[1.0], [1.0]]


def test_utterance_cropped_for_its_length_carries_no_text(settings):
    short = replace(settings, max_seconds=0.2, batch_size=8)
    batch = WaveSet(settings).batch(short, 0)
    assert batch.heard.shape == (8, 3200) and batch.frames.tolist() == [10] * 8
    assert batch.labels == [[]] * 8


def plain(waves, frames, labels):
    """A batch without augmentation."""
    return Batch(waves, waves, torch.ones(len(waves), 1), frames, labels)


def losses(settings, labels, frames=8):
    """Losses of one batch and the head, whose outputs are all alike at first."""
    torch.manual_seed(0)
    model, head = MiniCodecModel(TINY_CODEC), LabelHead(96, 64, 28)
    torch.nn.init.zeros_(head.out.weight)
    torch.nn.init.zeros_(head.out.bias)
    waves = torch.from_numpy(
        np.stack([speechlike(frames * 320, seed) for seed in range(len(labels))])
    )
    batch = plain(waves, torch.full((len(labels),), frames), labels)
    predictor = FramePredictor(len(TINY_CODEC.levels), TINY_CODEC.width)
    return model, head, lambda: step_losses(model, head, predictor, MelLoss(), batch, settings, 0)


def test_ctc_loss_of_a_head_that_knows_nothing_by_hand(settings):
    """One character in F frames can be placed in F (F + 1) / 2 runs, each of probability 29 **
    -F.
    """
    one = 8 * math.log(29) - math.log(8 * 9 / 2)
    *_, step = losses(settings, [[3]])
    assert step()[1].item() == pytest.approx(one, rel=1e-5)
    *_, step = losses(
        settings, [[3], [], [*range(1, 10)], [7]]
    )  # no text; more characters than frames
    assert step()[1].item() == pytest.approx(one, rel=1e-5)  # per character
    *_, step = losses(settings, [[]])
    assert step()[1].item() == 0


@pytest.mark.slow
def test_ctc_loss_falls_when_the_codec_is_trained_on_it(settings):
    model, head, step = losses(settings, [[3, 4, 5], [6, 7]])
    model.train()
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], 3e-3)
    ctc = []
    for _ in range(25):
        mel, read, spread, *_ = step()
        optimizer.zero_grad()
        (mel + read + spread).backward()
        optimizer.step()
        ctc.append(read.item())
    assert ctc[-1] < 0.5 * ctc[0]


@pytest.mark.slow
def test_decoder_steps_leave_the_codes_and_the_encoder_as_they_were(settings, tmp_path):
    train_codec(replace(settings, output_dir=str(tmp_path / "short")))
    train_codec(replace(settings, output_dir=str(tmp_path / "long"), decoder_steps=3))
    before, after = (MiniCodec.from_folder(tmp_path / name) for name in ("short", "long"))
    wave = speechlike(20 * 320, 1)
    (codes,), (same,) = before.encode([wave]), after.encode([wave])
    assert np.array_equal(codes, same)
    assert not np.allclose(before.decode([codes])[0], after.decode([codes])[0], atol=1e-3)
    weights, longer = before.model.state_dict(), after.model.state_dict()
    changed = {
        name.split(".")[0] for name in weights if not torch.equal(weights[name], longer[name])
    }
    assert changed == {"decoder", "pitch", "quantizer"}
    assert torch.equal(
        weights["quantizer.project_in.weight"], longer["quantizer.project_in.weight"]
    )


def test_decoder_steps_have_a_learning_rate_of_their_own():
    settings = CodecTraining(
        "m", "o", 100, decoder_steps=100, warmup_steps=10, peak_lr=1e-3, decoder_peak_lr=4e-4
    )
    assert learning_rate(settings, 99) < 1e-4 and learning_rate(settings, 100) == pytest.approx(
        4e-4
    )
    assert learning_rate(settings, 150) == pytest.approx(4e-4 * (0.05 + 0.95 / 2))


def log_of(folder):
    rows = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.slow
def test_killed_and_resumed_training_equals_the_uninterrupted_run(settings, tmp_path, monkeypatch):
    """Killed after the state of step 3 was kept, in its fourth step; and a finished run has no step
    to repeat.
    """
    whole, parts = (
        replace(settings, output_dir=str(tmp_path / name)) for name in ("whole", "parts")
    )
    steps, original = [], mini_training.step_losses

    def counted(*arguments):
        steps.append(arguments[-1])
        if arguments[-1] == dies_at:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(mini_training, "step_losses", counted)
    dies_at = None
    metrics = train_codec(whole)
    dies_at = 3
    with pytest.raises(KeyboardInterrupt):
        train_codec(parts)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    dies_at = None
    resumed = train_codec(parts)
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3, 3]
    weights = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (tmp_path / "parts" / "model.safetensors").read_bytes() == weights
    assert (
        log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
        and len(log_of(tmp_path / "whole")) == 1
    )
    assert {**resumed, "seconds": 0} == {**metrics, "seconds": 0}

    assert train_codec(whole) == metrics and len(steps) == 9
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == weights

    train_codec(replace(whole, seed=1, steps=1))
    assert steps[9:] == [0]  # other settings start anew
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() != weights


@pytest.mark.slow
def test_codes_are_published_before_the_decoder_learns_on(settings, tmp_path, monkeypatch):
    """Killed in the second of three decoder steps, then resumed, with augmentation."""
    asked = replace(settings, decoder_steps=3, augmentation=Augmentation(), save_steps=100)
    original, dies_at = mini_training.step_losses, 5

    def killed(*arguments):
        if arguments[-1] == dies_at:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(mini_training, "step_losses", killed)
    parts, whole = (replace(asked, output_dir=str(tmp_path / name)) for name in ("parts", "whole"))
    with pytest.raises(KeyboardInterrupt):
        train_codec(parts)
    early = load_codec(tmp_path / "parts" / "encoder")
    assert not (tmp_path / "parts" / "config.json").exists()
    dies_at = None
    train_codec(parts)
    train_codec(whole)
    for name in ("model.safetensors", "encoder/model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = log_of(tmp_path / "parts")
    assert rows == log_of(tmp_path / "whole") and [row["step"] for row in rows] == [4, 7]
    last = load_codec(tmp_path / "parts")
    assert rows[0]["codes_fingerprint"] == early.codes_fingerprint == last.codes_fingerprint
    assert early.fingerprint != last.fingerprint
    wave = speechlike(20 * 320, 1)
    np.testing.assert_array_equal(early.encode([wave])[0], last.encode([wave])[0])


def test_trained_folder_is_a_codec(settings, tmp_path):
    reported = []
    metrics = train_codec(
        replace(settings, output_dir=str(tmp_path), steps=1), report=reported.append
    )
    codec = load_codec(tmp_path)
    assert codec.name == "mini" and len(codec.encode([speechlike(3200)])[0]) == 10
    assert (
        metrics["steps"] == reported[-1]["step"] == 1
        and metrics["mel_loss"] == reported[-1]["mel"] > 0
    )
    assert 0 < metrics["codes_used"] <= 4096


def test_base_of_another_shape_is_refused(settings, tmp_path, codec):
    other = replace(settings, output_dir=str(tmp_path), model=replace(TINY_CODEC, hop=640))
    with pytest.raises(InputError, match=r"start from has .*hop=320.*, expected .*hop=640"):
        train_codec(other, base=codec)


def test_crops_last_as_long_at_every_rate_and_ctc_takes_what_fits(settings):
    assert [
        replace(settings, model=replace(TINY_CODEC, hop=hop)).crop_frames for hop in (160, 320, 640)
    ] == [16, 8, 4]
    model = replace(TINY_CODEC, hop=640, levels=(4,) * 3)
    slow = replace(settings, model=model)
    torch.manual_seed(0)
    parts = (
        MiniCodecModel(model),
        LabelHead(model.xcodec2().quantization_dim, 64, 28),
        FramePredictor(3, 64),
    )
    waves, frames = torch.randn(2, 8 * 640) * 0.1, torch.tensor([8, 8])
    batch = plain(waves, frames, [[1, 2, 3, 4, 5, 6], [1] * 5])
    losses = step_losses(*parts, MelLoss(), batch, slow, 0)
    first = step_losses(*parts, MelLoss(), batch._replace(labels=[batch.labels[0], []]), slow, 0)
    assert (
        losses.codes.shape == (2, 8) and losses.ctc == first.ctc > 0
    )  # five equal letters need nine frames


@pytest.mark.parametrize("name", ["steps", "batch_size", "crop_seconds", "save_steps", "threads"])
def test_training_settings_that_leave_nothing_to_train_are_refused(name):
    with pytest.raises(InputError, match=f"{name}`? is 0"):
        CodecTraining("m", "o", **{name: 0})


def test_frame_predictor_sees_only_frames_before_the_one_it_predicts():
    torch.manual_seed(0)
    predictor = FramePredictor(3, 16)
    values = torch.randn(1, 12, 3)
    changed = values.clone()
    changed[0, 6] += 1
    same = (predictor(values) == predictor(changed)).all(-1)[0]
    assert same[:7].all() and not same[7:].any()
