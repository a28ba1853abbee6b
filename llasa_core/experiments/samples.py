"""Held-out texts spoken while a training runs: wavs below output_dir/samples, audio in TensorBoard,
W&B or trackio, and spectrograms in TensorBoard.

Training calls it through the seam `listener` of `training.train`, and knows nothing of synthesis.
The trap avoided: a draw from torch's global generator would change the training that it listens to.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llasa_core.audio import write_wav
from llasa_core.errors import InputError
from llasa_core.training.config import TrainConfig
from llasa_core.training.data import TrainingData

logger = logging.getLogger(__name__)


class SpokenSamples:
    """Speaks the same texts with the same seeds whenever it is called with the Trainer.

    Raises InputError where the codec that the data names cannot be loaded.
    """

    def __init__(self, config: TrainConfig, data: TrainingData) -> None:
        from llasa_core.codecs import load_codec
        from llasa_core.manifest import Request

        self.codec = load_codec(data.codec.get("codec_folder") or data.codec["codec"])
        self.config, self.data = config, data
        tags = bool(config.speaker_tags)
        self.requests = [
            Request(row["id"], row["text"], (row["speaker"] or None) if tags else None, None, seed)
            for seed, row in enumerate(data.texts)
        ]

    def __call__(self, trainer: Any) -> None:
        """Speak with the weights of now."""
        step = trainer.state.global_step
        try:
            waves = self.speak(trainer.model)
        except InputError as error:  # such as codes that decode to NaN: the training goes on
            logger.warning("no samples at step %d: %s", step, error)
            return
        folder = Path(self.config.output_dir) / "samples" / f"{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, wave in enumerate(waves):
            write_wav(folder / f"{number}.wav", wave, self.codec.sample_rate)
        for callback in trainer.callback_handler.callbacks:
            if report := REPORTS.get(type(callback).__name__):
                report(callback, step, waves, self.codec.sample_rate)

    def speak(self, model: Any) -> list[np.ndarray]:
        """Waves float32 (T,) of the texts, in their order; the model is left as it was."""
        from llasa_core.synthesis.synthesizer import Synthesizer

        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        training, data = model.training, self.data
        try:
            synthesizer = Synthesizer(
                base,
                data.tokenizer,
                self.codec,
                str(base.device),
                date=data.date,
                speakers=tuple(data.speakers),
                mask_eot=self.config.mask_eot,
                context=self.config.context,
            )
            spoken = {one.request.id: one.wave for one in synthesizer.speak(self.requests)}
        finally:
            model.train(training)
        return [spoken[request.id] for request in self.requests]


def _tensorboard(callback: Any, step: int, waves: Sequence[np.ndarray], rate: int) -> None:
    from llasa_core.plots import spectrogram

    writer = callback.tb_writer
    if writer is None:
        return
    for number, wave in enumerate(waves):
        writer.add_audio(f"samples/{number}", wave[None], step, rate)
        writer.add_figure(f"spectrograms/{number}", spectrogram(wave, rate), step)
    writer.flush()


def _wandb(callback: Any, step: int, waves: Sequence[np.ndarray], rate: int) -> None:
    wandb = callback._wandb
    audio = {f"samples/{number}": wandb.Audio(wave, rate) for number, wave in enumerate(waves)}
    wandb.log({**audio, "train/global_step": step})


def _trackio(callback: Any, step: int, waves: Sequence[np.ndarray], rate: int) -> None:
    trackio = callback._trackio
    trackio.log(
        {
            f"samples/{number}": trackio.Audio(wave, sample_rate=rate)
            for number, wave in enumerate(waves)
        }
    )


REPORTS: Mapping[str, Any] = {  # class of transformers' callback -> how it takes audio
    "TensorBoardCallback": _tensorboard,
    "WandbCallback": _wandb,
    "TrackioCallback": _trackio,
}
