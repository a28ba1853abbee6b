"""Outputs that are stored in the notebooks of this repository: `make notebooks` refreshes them.

Each is executed unchanged, in its own folder, as JupyterLab would. What is stored is small: no
sound, no progress bar, no warning, no path of this machine. A fingerprint of the code cells says
what the outputs belong to.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from llasa_core.experiments.config import at_repository_root
from llasa_core.experiments.notebook import limited_notebook, run_papermill
from llasa_core.experiments.runner import thread_environment

KEY = "executed_sources"  # in the notebook's metadata


def sources_fingerprint(notebook: dict[str, Any]) -> str:
    """16 hex digits of sha256 over the code cells."""
    sources = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    text = json.dumps(
        [source if isinstance(source, str) else "".join(source) for source in sources]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def refresh(path: str | Path) -> None:
    """Execute a notebook and store its outputs in place."""
    import nbformat

    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        executed = run_papermill(str(path), str(Path(folder, "run.ipynb")), {}, str(path.parent))
    for cell, done in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = done.execution_count
            cell.outputs = [one for one in done.outputs if one.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("metadata", {}).clear()
    notebook.metadata[KEY] = sources_fingerprint(notebook)
    path.write_text(limited_notebook(notebook, Path.cwd()), encoding="utf-8")


def main(argv: list[str]) -> int:
    at_repository_root()
    os.environ.update(thread_environment())
    for path in argv or sorted(map(str, Path("notebooks").glob("*.ipynb"))):
        started = time.monotonic()
        refresh(path)
        print(f"{path}: {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
