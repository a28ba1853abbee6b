"""Held-out texts spoken while a training runs, and when it says that it will end."""

import json
import logging
import types

import numpy as np
import pytest
import soundfile
from training_data import losses, settings

from llasa_core.errors import InputError
from llasa_core.experiments.samples import SpokenSamples
from llasa_core.training.run_log import RunLog
from llasa_core.training.train import train


def spoken(workshop, output, **changes):
    """A run that speaks two texts at steps 2, 4 and 5."""
    values = {"eval_codes": [str(workshop / "held_out")], "eval_steps": 0, "max_steps": 5}
    values |= {"sample_steps": 2, "sample_texts": 2, "context": 256, "tokens_per_step": 256}
    return settings(workshop, output, **values | changes)


@pytest.fixture(scope="module")
def run(workshop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoken")
    train(spoken(workshop, folder), listener=SpokenSamples)
    return folder


@pytest.mark.slow
def test_the_same_texts_are_written_as_wavs_every_so_many_steps_and_at_the_end(run):
    found = sorted(path.relative_to(run / "samples") for path in run.rglob("*.wav"))
    assert [str(path) for path in found] == [
        f"{step:07d}/{number}.wav" for step in (2, 4, 5) for number in (0, 1)
    ]
    for path in found:
        wave, rate = soundfile.read(run / "samples" / path)
        assert rate == 16_000 and len(wave) and np.isfinite(wave).all()


@pytest.mark.slow
def test_tensorboard_holds_audio_and_spectrogram_of_each_step(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = {path.parent for path in run.glob("runs/**/events.*")}
    found = EventAccumulator(str(events)).Reload()
    assert found.Tags()["audio"] == ["samples/0", "samples/1"]
    assert found.Tags()["images"] == ["spectrograms/0", "spectrograms/1"]
    clips = found.Audio("samples/0")
    assert [clip.step for clip in clips] == [2, 4, 5]
    wave, _ = soundfile.read(run / "samples" / "0000004" / "0.wav")
    assert clips[1].length_frames == len(wave)
    assert len(found.Images("spectrograms/1")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.1}])
def test_a_run_that_speaks_learns_bit_for_bit_what_a_silent_one_does(workshop, tmp_path, lora):
    if lora:
        pytest.importorskip("peft")
    for name, steps in (("silent", 0), ("speaking", 2)):
        config = spoken(workshop, tmp_path / name, sample_steps=steps, lora=lora, speaker_tags=0.5)
        train(config, listener=SpokenSamples)
    silent, speaking = (tmp_path / name for name in ("silent", "speaking"))
    assert losses(silent) == losses(speaking)
    assert list(speaking.rglob("*.wav")) and not list(silent.rglob("*.wav"))
    sums = [json.loads((one / "llasa.json").read_text())["weights"] for one in (silent, speaking)]
    assert sums[0] == sums[1]


@pytest.mark.parametrize(
    "changes, listener, told",
    [
        ({"eval_codes": None}, SpokenSamples, "speaks texts of `eval_codes`, expected some"),
        ({}, None, "`sample_steps` needs a `listener`"),
        ({"fsdp": True}, SpokenSamples, "which `fsdp` and `deepspeed` shard; expected 0"),
    ],
)
def test_samples_that_cannot_be_spoken_are_refused_at_once(
    workshop, tmp_path, changes, listener, told
):
    with pytest.raises(InputError, match=told):
        train(spoken(workshop, tmp_path / "run", **changes), listener=listener)


def test_a_log_line_tells_when_the_training_will_end(tmp_path, caplog, monkeypatch):
    from llasa_core.training import run_log

    now = [1000.0]
    monkeypatch.setattr(run_log.time, "perf_counter", lambda: now[0])
    caplog.set_level(logging.INFO)
    rows = types.SimpleNamespace(tokens_before=lambda count: count)
    log = RunLog(tmp_path / "log.jsonl", rows, 1, None, None, start=100)
    state = types.SimpleNamespace(global_step=110, max_steps=1110, is_world_process_zero=True)
    now[0] += 30  # ten steps
    line = {"loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0}
    log.on_log(None, state, None, logs=line)
    assert "step 110 of 1110, 0:50:00 left at 3 s a step, done at 2" in caplog.messages[-1]
    told = len(caplog.messages)
    now[0] += 1
    log.on_log(None, state, None, logs=line)
    assert len(caplog.messages) == told + 1  # the line of the log alone: a minute is not over
