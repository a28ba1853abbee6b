"""Functions that a notebook defines, as a module: its cells tagged `functions` (imports, constants,
definitions).
"""

from pathlib import Path
from types import ModuleType

import nbformat

from llasa_core.experiments.config import repository_root


def notebook_functions(stem: str) -> ModuleType:
    path = repository_root(Path(__file__).parent) / "notebooks" / f"{stem}.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    module = ModuleType(stem)
    for cell in cells:
        if "functions" in cell.metadata.get("tags", ()):
            exec(compile(cell.source, f"{path}:{cell.id}", "exec"), vars(module))
    return module
