"""The harmonic head: pitch tracking, pulses at the pitch, filters on pulses and noise, and a codec
that uses them.
"""

import numpy as np
import pytest
import torch

from llasa_core.codecs.harmonic import (
    HarmonicNoiseHead,
    minimum_phase,
    smooth_path,
    source_waves,
    track_pitch,
)
from llasa_core.codecs.mini import MiniCodec, MiniCodecConfig, MiniCodecModel
from llasa_core.codecs.mini_data import Batch, CodecTraining
from llasa_core.codecs.mini_losses import FramePredictor, LabelHead, MelLoss, step_losses

HOP = 320  # samples a code
SMALL = MiniCodecConfig(width=64, encoder_layers=1, decoder_layers=1)


@pytest.mark.parametrize("pitch", [90.0, 200.0, 330.0])
def test_pitch_of_a_pulse_train_is_found_and_noise_is_unvoiced(pitch):
    frames = torch.full((1, 40), pitch)
    voiced = torch.ones(1, 40, dtype=torch.bool)
    pulses, noise = source_waves(frames, voiced, HOP, torch.Generator().manual_seed(0))[0, :, None]
    found, voiced = track_pitch(pulses, HOP)
    assert pulses.shape == (1, 40 * HOP) and found.shape == (1, 40)
    assert voiced[0, 5:-5].all() and (found[0, 5:-5] / pitch - 1).abs().max() < 0.03
    assert track_pitch(noise, HOP)[1].float().mean() < 0.2


def test_where_speech_is_unvoiced_there_are_no_pulses():
    voiced = torch.arange(20)[None] < 10
    pulses, noise = source_waves(
        torch.full((1, 20), 200.0), voiced, HOP, torch.Generator().manual_seed(0)
    )[0]
    assert pulses[: 9 * HOP].std() > 0.5 and pulses[11 * HOP :].abs().max() == 0
    assert noise.std() == pytest.approx(1, abs=0.05)


def test_pitch_path_keeps_its_octave_where_a_frame_alone_would_jump():
    scores = torch.tensor(
        [[[0.9, 0.5], [0.9, 0.5], [0.7, 0.8], [0.9, 0.5]]]
    )  # (B, F, N) of lags an octave apart
    assert smooth_path(scores, [50, 100]).tolist() == [[0, 0, 0, 0]]
    scores[0, :2, 1], scores[0, 2:, 1] = -3.0, 3.0  # a change that pays for the jump
    assert smooth_path(scores, [50, 100]).tolist() == [[0, 0, 1, 1]]


def test_head_with_constant_gains_scales_its_sources():
    head = HarmonicNoiseHead(channels=8, hop=HOP)
    torch.nn.init.zeros_(head.linear.weight)
    with torch.no_grad():
        bias = head.linear.bias.view(head.parts, 2, head.knots)
        bias[:, 0], bias[:, 1] = np.log(0.5) - head.start, np.log(0.25) - head.start
    head.source = torch.randn(1, 2, 10 * HOP, generator=torch.Generator().manual_seed(0))
    wave = head(torch.randn(1, 10, 8))[:, 0]
    assert torch.allclose(wave, 0.5 * head.source[:, 0] + 0.25 * head.source[:, 1], atol=1e-5)


def test_codec_decodes_a_batch_like_single_utterances():
    torch.manual_seed(0)
    codec = MiniCodec(MiniCodecModel(SMALL))
    waves = [
        np.random.default_rng(i).normal(0, 0.1, 20 * HOP + 7).astype(np.float32) for i in range(3)
    ]
    codes = codec.encode(waves)
    together, alone = codec.decode(codes), [codec.decode([row])[0] for row in codes]
    assert all(len(wave) == 20 * HOP for wave in together)
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.slow
def test_training_teaches_the_codec_the_pitch():
    torch.manual_seed(0)
    model = MiniCodecModel(SMALL)
    frames = torch.full((2, 60), 200.0)
    voiced = torch.ones(2, 60, dtype=torch.bool)
    wave = 0.1 * source_waves(frames, voiced, HOP, torch.Generator().manual_seed(1))[:, 0]
    settings = CodecTraining(
        manifest="",
        output_dir="",
        batch_size=2,
        crop_seconds=0.8,
        ctc_weight=0.0,
        predict_weight=0.0,
        model=SMALL,
    )
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    batch = Batch(wave, wave, torch.ones(2, 1), torch.tensor([60, 60]), [[], []])
    head, mel_loss, sides = (
        LabelHead(SMALL.xcodec2().quantization_dim, SMALL.width, 28),
        MelLoss(),
        [],
    )
    predictor = FramePredictor(len(SMALL.levels), SMALL.width)
    for step in range(12):
        mel, _, side, *_ = step_losses(model, head, predictor, mel_loss, batch, settings, step)
        optimizer.zero_grad()
        (mel + side).backward()
        optimizer.step()
        sides.append(side.item())
    assert sides[-1] < 0.7 * sides[0]


def test_minimum_phase_keeps_the_gains_and_puts_the_energy_first():
    bins = torch.linspace(0, 1, 321)
    log_gains = -4 * bins + (20 * bins).sin()
    response = torch.fft.irfft(minimum_phase(log_gains))
    assert torch.allclose(torch.fft.rfft(response).abs().log(), log_gains, atol=1e-3)
    half = len(response) // 2
    assert response[half:].square().sum() < 1e-3 * response.square().sum()
    assert response[0] > 0.99 * log_gains.mean().exp()  # all that a causal filter can start with
