"""How a training starts: in this process, in torchrun's, or in new processes, one a GPU.

`python -m llasa_core.train config.json` ends in `main`, alone or under torchrun.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llasa_core.device import check_folder, gpu_count
from llasa_core.errors import DivergedError, InputError, guarded
from llasa_core.files import one_writer, read_object
from llasa_core.processes import LAUNCHER, end_with, run_processes
from llasa_core.training.config import TrainConfig
from llasa_core.training.parallel import leave
from llasa_core.training.train import DIVERGED, Listener, train

logger = logging.getLogger(__name__)


def local_processes(config: TrainConfig) -> int:
    """One a GPU of this machine, as far as a step's rows divide; 1 without GPUs and where torchrun
    has started this process.
    """
    gpus = 1 if "WORLD_SIZE" in os.environ else max(1, gpu_count())
    for processes in range(gpus, 1, -1):
        with contextlib.suppress(InputError):
            config.rows(processes)
            break
    else:
        processes = 1
    if gpus > 1:
        logger.warning("training in %d processes, one a GPU, of %d GPUs", processes, gpus)
    return processes


def launch(
    config: TrainConfig,
    processes: int = 1,
    keep_diverged: bool = False,
    progress: bool = True,
    listener: Listener | None = None,
) -> dict[str, float]:
    """`train` in this process, or by torchrun in `processes` local ones that share every step;
    returns its metrics.

    The settings go to `output_dir/train_config.json`. Raises InputError if a process fails, after
    its own message, and DivergedError where the loss diverged. keep_diverged: such a loss is an
    outcome, not an error. No model is written, and the metrics are diverged (1), diverged_at_step,
    steps (planned), tokens (before that step), parameters and parameters_body.
    """
    output = check_folder(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    try:
        with one_writer(output):
            (output / DIVERGED).unlink(missing_ok=True)
            return _launch(config, output, processes, progress, listener)
    except (DivergedError, InputError):
        if not (keep_diverged and (output / DIVERGED).is_file()):
            raise
        return read_object(output / DIVERGED)


def _launch(
    config: TrainConfig, output: Path, processes: int, progress: bool, listener: Listener | None
) -> dict[str, float]:
    if processes == 1:
        return train(config, progress, listener)
    settings = {
        name: value
        for name, value in asdict(config).items()
        if name != "notes" and value is not None
    }
    path = output / "train_config.json"
    path.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    threads = {"OMP_NUM_THREADS": str(config.threads or 1), "OMP_WAIT_POLICY": "PASSIVE"}
    status = run_processes(
        [*command, "-m", "llasa_core.train", str(path)],
        {**os.environ, **threads},
        stdout=subprocess.DEVNULL,  # the metrics, which are read from llasa.json
    )
    if (output / DIVERGED).is_file():
        step = read_object(output / DIVERGED)["diverged_at_step"]
        raise DivergedError(f"{path}: the loss diverged at step {step}, lower peak_lr", step)
    if status:
        raise InputError(f"{path}: training in {processes} processes ended with status {status}")
    return read_object(output / "llasa.json")["metrics"]


def main(arguments: Sequence[str] | None = None, listener: Listener | None = None) -> int:
    """`python -m llasa_core.train config.json`, alone or under torchrun."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print("usage: python -m llasa_core.train config.json")
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    if LAUNCHER in os.environ:
        end_with(int(os.environ[LAUNCHER]))

    def handle() -> None:
        with contextlib.redirect_stdout(sys.stderr):
            # Libraries print to standard error; standard output holds the metrics only.
            config, shown = TrainConfig.from_json(arguments[0]), sys.stderr.isatty()
            if "WORLD_SIZE" in os.environ:
                metrics = train(config, shown, listener)
            else:
                processes = local_processes(config)
                metrics = launch(config, processes, progress=shown, listener=listener)
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(metrics, indent=2, sort_keys=True))
        leave()

    return guarded(handle)
