"""A notebook of three cells for tests of the runner, here and on Slurm."""

import nbformat

PARAMETERS = """\
size = "tiny"  # model size
seed = 0
peak_lr = 1.0e-3
mode = "good"  # what the notebook does
layers = [1, 2]
extra = None
run_dir = "artifacts/scratch/study"
artifacts_dir = "artifacts/scratch/study"
"""
WORK = """\
import os
import sys
import time
from pathlib import Path

from llasa_core.experiments.results import record

print("threads", os.environ["OMP_NUM_THREADS"], sys.executable)
print(Path.cwd() / "somewhere")
if mode == "raise":
    raise ValueError("no such\\nvoice")
if mode == "half":
    Path(run_dir, "rows.jsonl").write_text("half of the rows")
    raise ValueError("and no more")
if mode == "exit":
    sys.exit(0)
if mode == "wait":
    Path(artifacts_dir, "pid").write_text(str(os.getpid()))
    while not Path("go").exists():
        time.sleep(0.05)
"""
FINISH = """\
if mode != "forgetful":
    Path(artifacts_dir, "model.bin").write_bytes(b"weights")
    weights = Path(artifacts_dir, "model.bin")
    record(run_dir, {"loss": 1.5, "steps": seed}, {"model": weights})
"""


def write_notebook(path, *cells, tags=("parameters",)):
    notebook = nbformat.v4.new_notebook()
    for index, source in enumerate(cells):
        cell = nbformat.v4.new_code_cell(source)
        if index == 0:
            cell.metadata["tags"] = list(tags)
        notebook.cells.append(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
