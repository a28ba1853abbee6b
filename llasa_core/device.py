"""What this machine offers a command, checked before long work: a device to compute on, a folder to
write to.

It prevents a model from staying on the CPU next to an idle GPU because a call named no device,
and an output that cannot be written noticed after hours. torch is imported only where a GPU
matters.
"""

import os
import re
from pathlib import Path

from llasa_core.errors import InputError


def choose_device(name: str | None = None, here: bool = True) -> str:
    """`name`, checked ("cpu", "cuda" or "cuda:1"); None: this process's GPU where there is one
    ("cuda:0"), else "cpu".

    here: False checks the form alone, for work that another machine will do. Raises InputError.
    """
    if name is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"device {name!r}, expected cpu, cuda or cuda:NUMBER")
    if name == "cpu" or (name is not None and not here):
        return name
    count = gpu_count()
    if name is None:
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if count else "cpu"
    if int(name.partition(":")[2] or 0) >= count:
        raise InputError(
            f"device {name!r}: torch finds {count} CUDA devices on this machine, expected cpu"
        )
    return name


def gpu_count() -> int:
    """CUDA devices that torch can use on this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_folder(path: str | Path) -> Path:
    """The path itself, where a folder is or can be made; InputError names what is in the way."""
    path = Path(path)
    there = next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))
    if not there.is_dir():
        raise InputError(f"{there}: is no folder, expected one, or none yet, to write to")
    if there != path and not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there}: no permission to make {path.name} there")
    return path
