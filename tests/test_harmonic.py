"""The harmonic source: pitch tracking, pulses at the pitch, and a codec whose phases start from them."""

import numpy as np
import pytest
import torch

from llasa_core.codecs.harmonic import source_wave, track_pitch
from llasa_core.codecs.mini import HOP, MiniCodec, MiniCodecConfig, MiniCodecModel
from llasa_core.codecs.mini_training import CharacterHead, CodecTraining, MelLoss, step_losses

SMALL = MiniCodecConfig(width=64, encoder_layers=1, decoder_layers=1, harmonic=True)


@pytest.mark.parametrize("pitch", [90.0, 200.0, 330.0])
def test_pitch_of_a_pulse_train_is_found_and_noise_is_unvoiced(pitch):
    frames = torch.full((1, 40), pitch)
    pulses = source_wave(frames, torch.ones(1, 40, dtype=torch.bool), HOP, torch.Generator().manual_seed(0))
    found, voiced = track_pitch(pulses, HOP)
    assert pulses.shape == (1, 40 * HOP) and found.shape == (1, 40)
    assert voiced[0, 5:-5].all() and (found[0, 5:-5] / pitch - 1).abs().max() < 0.03
    noise = source_wave(frames, torch.zeros(1, 40, dtype=torch.bool), HOP, torch.Generator().manual_seed(0))
    assert track_pitch(noise, HOP)[1].float().mean() < 0.2


def test_harmonic_codec_decodes_a_batch_like_single_utterances_and_survives_saving(tmp_path):
    torch.manual_seed(0)
    codec = MiniCodec(MiniCodecModel(SMALL))
    waves = [np.random.default_rng(i).normal(0, 0.1, 20 * HOP + 7).astype(np.float32) for i in range(3)]
    codes = codec.encode(waves)
    together, alone = codec.decode(codes), [codec.decode([row])[0] for row in codes]
    assert all(len(wave) == 20 * HOP for wave in together)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(together, alone, strict=True))
    codec.save(tmp_path)
    assert MiniCodec.from_folder(tmp_path).model.config.harmonic


def test_training_a_harmonic_codec_teaches_it_the_pitch():
    torch.manual_seed(0)
    model = MiniCodecModel(SMALL)
    frames = torch.full((2, 60), 200.0)
    wave = 0.1 * source_wave(frames, torch.ones(2, 60, dtype=torch.bool), HOP, torch.Generator().manual_seed(1))
    settings = CodecTraining(manifest="", output_dir="", batch_size=2, ctc_weight=0.0, model=SMALL)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    batch = (wave, torch.tensor([60, 60]), [[], []])
    head, mel_loss, sides = CharacterHead(SMALL.xcodec2().quantization_dim, SMALL.width), MelLoss(), []
    for step in range(12):
        mel, _, side, _ = step_losses(model, head, mel_loss, batch, settings, step)
        optimizer.zero_grad()
        (mel + side).backward()
        optimizer.step()
        sides.append(side.item())
    assert sides[-1] < 0.7 * sides[0]
