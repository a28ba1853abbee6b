"""How long a run is, before it starts: the size of a step by the data, the number of steps, and a
warning where that is too little to learn from.

With the step size of a large corpus, nine clips are one step, and the model hardly moves.
"""

import logging
import math
from dataclasses import replace

from llasa_core.data.packing import PackedRows
from llasa_core.training.config import TrainConfig

LARGEST_STEP = 2**21  # tokens, the paper's step
STEPS_OF_A_RUN, STEPS_OF_AN_EPOCH = 300, 100  # where the data decides how large a step is
FEW_STEPS = 50
EVALUATIONS = 10  # of a run, where nothing says how often

logger = logging.getLogger(__name__)


def settled(config: TrainConfig, rows: PackedRows, world: int) -> TrainConfig:
    """`config` with max_steps, and with what its data decides where it says nothing:
    tokens_per_step, eval_steps and keep_best.
    """
    if config.tokens_per_step is None and config.gradient_accumulation_steps is None:
        tokens = step_rows(config, rows, world) * config.context
        config = replace(config, tokens_per_step=tokens)
    steps = config.max_steps
    if steps is None:
        steps = max(1, math.ceil(_rows_of(rows, config.epochs) / config.rows(world)[0]))
    every = config.eval_steps
    if every is None:
        every = math.ceil(steps / EVALUATIONS) if config.eval_codes else 0
    best = bool(config.eval_codes and every) if config.keep_best is None else config.keep_best
    return replace(config, max_steps=steps, epochs=None, eval_steps=every, keep_best=best)


def step_rows(config: TrainConfig, rows: PackedRows, world: int) -> int:
    """Rows of a step that make about STEPS_OF_A_RUN steps of the epochs asked for, or
    STEPS_OF_AN_EPOCH of an epoch where steps are: a power of two, at most LARGEST_STEP tokens, and
    a multiple of what a forward pass of all processes takes.
    """
    if config.epochs is None:
        wanted = rows.rows_in_epoch(0) / STEPS_OF_AN_EPOCH
    else:
        wanted = _rows_of(rows, config.epochs) / STEPS_OF_A_RUN
    wanted = min(max(1.0, wanted), LARGEST_STEP / config.context)
    power, pass_rows = 2 ** math.floor(math.log2(wanted)), world * (config.rows_per_device or 1)
    return max(pass_rows, power // pass_rows * pass_rows)


def announce(config: TrainConfig, rows: PackedRows, world: int) -> None:
    """Say how many steps and epochs a settled config comes to, and warn where they are few."""
    steps, step, epoch = config.max_steps, config.rows(world)[0], rows.rows_in_epoch(0)
    tokens = step * config.context
    logger.info(
        "%d steps of %d tokens, %.3g epochs of %d rows (%d utterances do not fit)",
        *(steps, tokens, steps * step / epoch, epoch, rows.dropped_overlong),
    )
    if steps < FEW_STEPS:
        logger.warning(
            "%d steps of %d tokens (%.3g epochs) are few, the model will hardly move: expected at"
            " least %d; lower `tokens_per_step` or raise `epochs`",
            *(steps, tokens, steps * step / epoch, FEW_STEPS),
        )


def _rows_of(rows: PackedRows, epochs: float) -> float:
    whole, part = divmod(epochs, 1.0)
    count = sum(rows.rows_in_epoch(epoch) for epoch in range(int(whole)))
    return count + part * rows.rows_in_epoch(int(whole)) if part else count
