"""train_log.jsonl, the held-out measurements in it, and the weights of the best of them.

The best weights are output_dir/best/STEP.safetensors, written by rename. A run may be
killed after a new best and resume from before it, so the best that the checkpoint knows is kept
until the next checkpoint.
"""

import contextlib
import datetime
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback

from llasa_core.data.packing import PackedRows
from llasa_core.errors import DivergedError
from llasa_core.files import read_rows
from llasa_core.training.config import TrainConfig
from llasa_core.training.loss import HeldOut
from llasa_core.training.parallel import whole_state

TELL_EVERY = 60  # seconds between two lines of when the training will end
ENDS_ABOVE = 1.5  # times the loss it began with, and a run has diverged

logger = logging.getLogger(__name__)


class RunLog(TrainerCallback):
    """train_log.jsonl: a line every log_steps (loss, lr, grad_norm, tokens, seconds) and one for
    each evaluation.
    """

    def __init__(
        self,
        path: Path,
        rows: PackedRows,
        per_step: int,
        held_out: HeldOut | None,
        config: TrainConfig,
        start: int,
    ):
        self.path, self.rows, self.per_step, self.held_out, self.config = (
            path,
            rows,
            per_step,
            held_out,
            config,
        )
        self.last_eval: dict[str, float] = {}
        self.paused = 0.0  # seconds spent on evaluation
        kept = []
        if start and path.is_file():
            kept = [line for line in read_rows(path) if line["step"] <= start]
        self.earlier = max((line["seconds"] for line in kept), default=0.0)
        self.lines = kept
        self.begin = time.perf_counter()
        self.start, self.told = start, -math.inf

    def seconds(self) -> float:
        """Training seconds so far, earlier parts of a resumed run included, evaluation left out."""
        return self.earlier + time.perf_counter() - self.begin - self.paused

    def write(self, state: Any, values: dict[str, float]) -> None:
        line = {
            "step": state.global_step,
            "tokens": self.rows.tokens_before(state.global_step * self.per_step),
            "seconds": round(self.seconds(), 3),
            **values,
        }
        self.lines.append(line)
        if state.is_world_process_zero:
            with self.path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            logger.info("%s", line)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            temporary = self.path.with_suffix(".part")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            os.replace(temporary, self.path)
        self.begin = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            values = {
                "loss": logs["loss"],
                "lr": logs["learning_rate"],
                "grad_norm": logs["grad_norm"],
            }
            self.write(state, {name: float(value) for name, value in values.items()})
            if state.is_world_process_zero and time.perf_counter() - self.told >= TELL_EVERY:
                self.told = time.perf_counter()
                logger.info("%s", self.end_of(state.global_step, state.max_steps))

    def end_of(self, step: int, steps: int) -> str:
        """When the last step will be done, at the pace since this process began, evaluation and
        samples included.
        """
        pace = (time.perf_counter() - self.begin) / max(1, step - self.start)  # seconds a step
        left = datetime.timedelta(seconds=round(pace * (steps - step)))
        end = (datetime.datetime.now() + left).strftime("%Y-%m-%d %H:%M")
        return f"step {step} of {steps}, {left} left at {pace:.3g} s a step, done at {end}"

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time that is none of the training's."""
        begin = time.perf_counter()
        yield
        self.paused += time.perf_counter() - begin

    def on_step_end(self, args, state, control, model=None, **kwargs):
        due = self.config.eval_steps and state.global_step % self.config.eval_steps == 0
        if self.held_out and (due or state.global_step == state.max_steps):
            with self.pause():
                self.last_eval = self.held_out.measure(model)
            self.write(state, self.last_eval)
            self.stop_early(control)

    def refuse_rise(self) -> None:
        """DivergedError where the run ends far above the loss that it began with."""
        losses = [line["loss"] for line in self.lines if "loss" in line]
        if losses and losses[-1] > ENDS_ABOVE * losses[0]:
            step = self.lines[-1]["step"]
            raise DivergedError(
                f"the loss is {losses[-1]:.4g} at step {step}, it began at {losses[0]:.4g}, lower"
                " peak_lr",
                step,
            )

    def metrics(self, steps: int, start: int, best_step: int) -> dict[str, float]:
        """final_loss, what was measured at `best_step`, steps, tokens, seconds and
        tokens_per_second of a run that was (re)started at step `start`.
        """
        losses = [line["loss"] for line in self.lines if "loss" in line]
        own = ("step", "tokens", "seconds")
        best = [line for line in self.lines if "eval_loss" in line and line["step"] == best_step]
        measured = {key: one for key, one in best[-1].items() if key not in own} if best else {}
        tokens, seconds = self.rows.tokens_before(steps * self.per_step), self.seconds()
        new, spent = tokens - self.rows.tokens_before(start * self.per_step), seconds - self.earlier
        if steps <= start and self.earlier:  # all of it was trained before this process began
            new, spent, seconds = tokens, self.earlier, self.earlier
        return {
            **(measured or self.last_eval),
            **({"best_step": best_step} if self.config.keep_best else {}),
            **({"final_loss": losses[-1]} if losses else {}),
            "steps": steps,
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(max(0, new) / spent, 1),
        }

    def evaluations(self) -> dict[int, float]:
        """Held-out loss by step."""
        return {line["step"]: line["eval_loss"] for line in self.lines if "eval_loss" in line}

    def stop_early(self, control: Any) -> None:
        """Ask for the end where `early_stopping` measurements in a row were no new best."""
        losses = list(self.evaluations().values())
        patience = self.config.early_stopping
        if patience and len(losses) - 1 - losses.index(min(losses)) >= patience:
            logger.warning("no better held-out loss in %d measurements: stopped early", patience)
            control.should_training_stop = True


class SpokenSteps(TrainerCallback):
    """Calls `speak(trainer)` every so many steps and after the last one, in the first process.

    `trainer` is set once it exists.
    """

    trainer: Trainer

    def __init__(self, speak: Callable[[Trainer], None], log: RunLog, every: int):
        self.speak, self.log, self.every = speak, log, every

    def on_step_end(self, args, state, control, **kwargs):
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if due and state.is_world_process_zero:
            with self.log.pause():
                self.speak(self.trainer)


class BestWeights(TrainerCallback):
    """Keeps the trained weights of the best held-out loss where `keep_best` asks for it.

    Belongs after the RunLog that measures. `trainer` is set once it exists.
    """

    trainer: Trainer

    def __init__(self, folder: Path, log: RunLog, config: TrainConfig, start: int):
        self.folder, self.log, self.config, self.start = folder, log, config, start

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            for step, path in self._kept().items():
                if step > self.start:  # of a run that starts over, or to be measured again
                    path.unlink()

    def on_step_end(self, args, state, control, **kwargs):
        step, losses = state.global_step, self.log.evaluations()
        if not self.config.keep_best or step not in losses or losses[step] > min(losses.values()):
            return
        weights = whole_state(self.trainer, self.config)
        if weights is None:
            trained = self.trainer.model.named_parameters()
            weights = {name: one.detach() for name, one in trained if one.requires_grad}
        if state.is_world_process_zero:
            self.folder.mkdir(exist_ok=True)
            copies = {name: one.cpu().clone() for name, one in weights.items()}  # none shared
            save_file(copies, self.folder / ".part")
            os.replace(self.folder / ".part", self.folder / f"{step}.safetensors")
            every, earlier = self.config.save_steps, {}
            if every:  # what a run resumed from the last checkpoint would call its best
                saved = (step - 1) // every * every
                earlier = {one: losses[one] for one in self._kept() if one <= saved}
            for other, path in self._kept().items():
                if other not in (step, min(earlier, key=earlier.get, default=step)):
                    path.unlink()

    def find(self, last: int) -> tuple[int, dict[str, torch.Tensor] | None]:
        """The step of the best kept weights, and these; (last, None) where it is step `last`."""
        losses = self.log.evaluations()
        known = [step for step in self._kept() if step in losses] if self.config.keep_best else []
        best = min([*known, last], key=lambda step: (losses.get(step, float("inf")), step))
        return best, None if best == last else load_file(self._kept()[best])

    def _kept(self) -> dict[int, Path]:
        return {int(path.stem): path for path in sorted(self.folder.glob("[0-9]*.safetensors"))}
