"""The discriminator of the mini codec's training: losses by hand, what learns from which, resuming,
and a codec that needs none of it.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import TINY_CODEC

from llasa_core.audio import write_wav
from llasa_core.codecs import load_codec, mini_training
from llasa_core.codecs.mini import MiniCodec, MiniCodecModel
from llasa_core.codecs.mini_adversarial import (
    Adversary,
    Discriminator,
    Judgement,
    deception_loss,
    discriminator_loss,
    feature_loss,
)
from llasa_core.codecs.mini_data import CodecTraining
from llasa_core.codecs.mini_training import train_codec
from llasa_core.errors import InputError
from llasa_core.manifest import Utterance, write_manifest

SETTINGS = CodecTraining("m", "o", adversarial_weight=0.5, discriminator_channels=4)


def judged(score, feature):
    return Judgement([torch.tensor([score])], [torch.tensor([feature])])


def test_losses_by_hand():
    decoded, recorded = judged(0.25, 3.0), judged(0.5, 2.0)
    assert deception_loss(decoded).item() == 0.75**2
    assert discriminator_loss(decoded, recorded).item() == 0.25**2 + 0.5**2
    assert feature_loss(decoded, recorded).item() == 1 / 2


def spectra(seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 40, 20, generator=generator), torch.randn(batch, 9, 11)]


def test_scores_and_features_of_every_resolution():
    found = Discriminator(2, 4)(spectra(0))
    assert [score.shape for score in found.scores] == [(2, 1, 10, 3), (2, 1, 3, 2)]
    assert len(found.features) == 6 and found.features[0].shape == (2, 4, 40, 10)


def test_decoder_and_discriminator_learn_from_their_own_losses_alone():
    torch.manual_seed(0)
    adversary = Adversary(SETTINGS, 2)
    decoded = [each.requires_grad_() for each in spectra(0)]
    loss, deception = adversary.decoder_loss(decoded, spectra(1))
    loss.backward()
    assert loss > 0.5 * deception > 0
    assert all(each.grad.abs().sum() > 0 for each in decoded)
    weights = list(adversary.discriminator.parameters())
    assert all(weight.grad is None for weight in weights)
    before = [weight.detach().clone() for weight in weights]
    reach = [each.grad.clone() for each in decoded]
    adversary.learn(decoded, 1e-3)
    assert all((old != new).any() for old, new in zip(before, weights, strict=True))
    for each, grad in zip(decoded, reach, strict=True):
        assert torch.equal(each.grad, grad)


def test_discriminator_learns_to_tell_two_kinds_apart():
    torch.manual_seed(0)
    adversary, losses = Adversary(SETTINGS, 2), []
    for step in range(30):
        decoded, recorded = spectra(step, 4), [2 * each + 1 for each in spectra(100 + step, 4)]
        adversary.decoder_loss(decoded, recorded)
        losses.append(adversary.learn(decoded, 5e-3))
    assert losses[-1] < 0.5 * losses[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Four tones in noise as a manifest, and the settings of four decoder steps, two with the
    discriminator.
    """
    folder, random = tmp_path_factory.mktemp("adversarial"), np.random.default_rng(0)
    for number in range(4):
        time = np.arange(6400 + 640 * number) / 16_000
        wave = 0.2 * np.sin(2 * np.pi * 150 * (1 + number) * time) + random.normal(
            0, 0.02, len(time)
        )
        write_wav(folder / f"{number}.wav", wave.astype(np.float32))
    write_manifest(
        folder / "train.jsonl", [Utterance(str(n), folder / f"{n}.wav", "a") for n in range(4)]
    )
    torch.manual_seed(0)
    codec = MiniCodec(MiniCodecModel(TINY_CODEC), "cpu")
    settings = replace(
        SETTINGS,
        manifest=folder / "train.jsonl",
        steps=0,
        decoder_steps=4,
        adversarial_from=2,
        batch_size=2,
        crop_seconds=0.16,
        save_steps=3,
        threads=1,
        model=TINY_CODEC,
    )
    return codec, settings, folder


def test_killed_and_resumed_equals_the_uninterrupted_run(base, monkeypatch):
    """Killed in the second step of the discriminator."""
    codec, settings, folder = base
    whole, parts = (replace(settings, output_dir=folder / name) for name in ("whole", "parts"))
    rows = []
    train_codec(whole, rows.append, codec)
    original, dies_at = mini_training.step_losses, 3

    def killed(*arguments):
        if arguments[-1] == dies_at:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(mini_training, "step_losses", killed)
    with pytest.raises(KeyboardInterrupt):
        train_codec(parts, base=codec)
    dies_at, again = None, []
    train_codec(parts, again.append, codec)
    assert (folder / "parts" / "model.safetensors").read_bytes() == (
        folder / "whole" / "model.safetensors"
    ).read_bytes()
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in rows]
    assert rows[-1]["deception"] > 0 and rows[-1]["discriminator"] > 0


def test_the_codec_is_one_like_any_other_with_the_codes_of_its_base(base):
    codec, settings, folder = base
    train_codec(replace(settings, output_dir=folder / "with"), base=codec)
    train_codec(
        replace(settings, output_dir=folder / "without", adversarial_weight=0.0), base=codec
    )
    first, second = load_codec(folder / "with"), load_codec(folder / "without")
    assert first.codes_fingerprint == second.codes_fingerprint == codec.codes_fingerprint
    assert first.fingerprint != second.fingerprint
    assert sorted(path.name for path in (folder / "with").iterdir()) == [
        "config.json",
        "model.safetensors",
        "resume.pt",
        "train_log.jsonl",
    ]


@pytest.mark.parametrize(
    "name, value",
    [("adversarial_weight", -1.0), ("discriminator_channels", 0), ("discriminator_lr", 0.0)],
)
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(InputError, match=f"`{name}` is {value}"):
        replace(SETTINGS, **{name: value})
