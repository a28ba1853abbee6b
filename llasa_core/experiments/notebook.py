"""One run in a separate process: execute a notebook with papermill, then publish run.ipynb and
result.json.

Started by experiments.run_experiment with the order as JSON. Standard input is a lifeline: when it
closes, this process ends and takes the kernel with it. Standard output carries one line, the reason
of a failure; the exit status is 1, or DISK_FULL. The lock is a flock, so the lock file of a killed
run blocks nobody. The kernel is this interpreter, whatever kernels the user has installed.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from llasa_core.errors import InputError
from llasa_core.files import full_disk, publish, read_object, write_json

NOTEBOOK_LIMIT = 256_000  # bytes of an executed copy

# Progress bars as text, which the log shows and a stored notebook can hold; widgets are for hands.
KERNEL = (
    "import sys; sys.modules['tqdm.notebook'] = None; "
    "from ipykernel import kernelapp; kernelapp.launch_new_instance()"
)

DISK_FULL = 2  # exit status


class RunFailure(Exception):
    """The notebook did not come to its end; the message is one line."""


def main(argv: list[str]) -> int:
    report = os.fdopen(os.dup(1), "w")  # the pipe to the parent; children get the log instead
    os.dup2(2, 1)
    threading.Thread(target=end_with_parent, daemon=True).start()
    order = json.loads(argv[0])
    try:
        execute(order)
    except Exception as error:
        failure = full_disk(error, order["run_dir"])
        if not isinstance(failure, RunFailure | InputError):
            raise
        print(failure, file=report, flush=True)
        return DISK_FULL if "no space left" in str(failure) else 1
    return 0


def end_with_parent() -> None:
    """Wait until the parent is gone, then kill every descendant and this process."""
    import psutil  # a dependency of ipykernel

    while os.read(0, 1024):
        pass
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(130)


def execute(order: dict[str, Any]) -> None:
    """Run the notebook of an order and write result.json; RunFailure with the reason otherwise."""
    run_dir, work = Path(order["run_dir"]), order["work"]
    lock = open(f"{work}.lock", "w")  # noqa: SIM115, held until this process ends
    with suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another process that executes this run", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
    if not order["again"] and (run_dir / "result.json").is_file():
        return  # the process that had the lock has finished the run
    earlier = earlier_result(run_dir / "result.json")
    (run_dir / "result.json").unlink(missing_ok=True)
    (run_dir / "metrics.json").unlink(missing_ok=True)
    others = written(run_dir)
    if order["again"]:
        shutil.rmtree(order["artifacts_dir"], ignore_errors=True)
    for folder in (run_dir, Path(order["artifacts_dir"])):
        folder.mkdir(parents=True, exist_ok=True)

    origin = provenance()
    started = time.monotonic()
    try:
        notebook = run_papermill(
            order["notebook"], f"{work}.ipynb", order["params"] | order["injected"]
        )
    except RunFailure:
        if earlier and written(run_dir) == others:  # failed before it touched what it had found
            write_json(run_dir / "result.json", earlier)
        raise
    origin["seconds"] = round(time.monotonic() - started, 1)
    if not (run_dir / "metrics.json").is_file():
        raise RunFailure("the notebook ended without calling experiments.record")
    recorded = read_object(run_dir / "metrics.json")
    publish(run_dir / "run.ipynb", limited_notebook(notebook, Path.cwd()).encode())
    result = {
        "schema": 1,
        "experiment": order["experiment"],
        "run": order["run"],
        "notebook": order["notebook"],
        "params": order["params"],
        **recorded,
    }
    # A rerun that changed nothing keeps the provenance of the first: git shows what did change.
    if all(earlier.get(key) == value for key, value in result.items()):
        origin = earlier["provenance"]
    result["provenance"] = origin
    write_json(run_dir / "result.json", result)
    (run_dir / "metrics.json").unlink()
    Path(f"{work}.ipynb").unlink(missing_ok=True)


def written(folder: Path) -> dict[Path, int]:
    """{file of the folder: when it was written, in nanoseconds}."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def earlier_result(path: Path) -> dict[str, Any]:
    """The result that an earlier execution of the same run left; empty without one."""
    try:
        found = read_object(path)
    except InputError:
        return {}
    return found if "provenance" in found else {}


def run_papermill(
    notebook: str, executed: str, parameters: dict[str, Any], folder: str | None = None
) -> dict[str, Any]:
    """Execute `notebook` into the file `executed` in the working folder, or in `folder`; returns
    the executed notebook.

    Its output goes to this process's standard error as it appears. Raises RunFailure with cell and
    error.
    """
    with tempfile.TemporaryDirectory() as spec:
        kernel = Path(spec, "kernels", "python3")
        kernel.mkdir(parents=True)
        argv = [sys.executable, "-Xfrozen_modules=off", "-c", KERNEL, "-f", "{connection_file}"]
        (kernel / "kernel.json").write_text(
            json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
        )
        # Searched before the user's and the environment's kernels
        os.environ["JUPYTER_PATH"] = spec
        os.environ["IPYTHONDIR"] = str(Path(spec, "ipython"))  # no start-up files of the user's
        os.environ["JUPYTER_PLATFORM_DIRS"] = "1"  # papermill's import warns otherwise
        os.environ.setdefault("TQDM_MININTERVAL", "2")
        os.environ["LLASA_BATCH"] = "1"  # audio players become paths
        import papermill
        from nbclient.exceptions import DeadKernelError

        def announce(cell: Any, cell_index: int) -> None:
            if cell.cell_type == "code":
                print(
                    f"\n[cell {max(1, cell_index)}/{cells}] {cell.source.strip()[:80]!r}",
                    file=sys.stderr,
                    flush=True,
                )

        # With the injected cell, cell numbers counted from 1 stay equal.
        cells = len(read_object(notebook)["cells"])
        try:
            result = papermill.execute_notebook(
                notebook,
                executed,
                parameters,
                cwd=folder,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=600,  # seconds; a busy machine is not a failure
                stdout_file=sys.stderr,
                stderr_file=sys.stderr,
                on_cell_start=announce,
            )
        except papermill.PapermillExecutionError as error:
            print("\n".join(strip_colours(line) for line in error.traceback), file=sys.stderr)
            raise RunFailure(
                f"cell {error.cell_index}: {error.ename}: {one_line(error.evalue)}"
            ) from error
        except (DeadKernelError, RuntimeError) as error:
            raise RunFailure(f"the kernel ended: {one_line(str(error))}") from error
    for index, cell in enumerate(result.cells):
        for output in cell.get("outputs", ()):
            if output.output_type == "error":  # papermill lets SystemExit(0) pass
                raise RunFailure(f"cell {index}: {output.ename}: {one_line(output.evalue)}")
    return result


def limited_notebook(notebook: dict[str, Any], root: Path, limit: int = NOTEBOOK_LIMIT) -> str:
    """JSON text of an executed notebook: progress bars reduced to their last state, local paths
    made relative, and the largest outputs replaced by a line until the text has at most `limit`
    bytes."""
    import nbformat

    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", ()):
            cell.id = "injected-parameters"  # papermill draws one at random
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                lines = output.text.replace("\r\n", "\n").split("\n")
                output.text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)

    def text() -> str:
        written = nbformat.writes(notebook) + "\n"
        for local in (str(root), sys.prefix):  # the environment may stand outside the repository
            written = written.replace(f"{local}/", "").replace(local, ".")
        return written.replace(str(Path.home()), "~")

    while len(text().encode()) > limit:
        outputs = [
            (cell.outputs, index)
            for cell in notebook.cells
            for index in range(len(cell.get("outputs", ())))
        ]
        if not outputs:
            break
        holder, index = max(outputs, key=lambda entry: len(json.dumps(entry[0][entry[1]])))
        size = len(json.dumps(holder[index]))
        if size < 200:
            break
        note = f"[output of {size} bytes left out]\n"
        holder[index] = nbformat.v4.new_output("stream", name="stdout", text=note)
    return text()


def provenance() -> dict[str, Any]:
    """What a result depends on besides its parameters: code, interpreter, packages, machine."""

    def command(*argv: str) -> str:
        try:
            return subprocess.run(
                argv, capture_output=True, text=True, check=False, timeout=30
            ).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return ""

    packages = {}
    for requirement in importlib.metadata.requires("llasa-core") or ():
        name = re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower()
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    sha = command("git", "rev-parse", "HEAD") or None
    return {
        "git_sha": sha,
        "git_dirty": bool(command("git", "status", "--porcelain", "--", ".", ":!results"))
        if sha
        else None,
        "python": platform.python_version(),
        "packages": packages,
        "cpu": f"{os.cpu_count()} x {cpu_model()}",
        "gpu": command("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").replace(
            "\n", ", "
        )
        or None,
    }


def cpu_model() -> str:
    """The processor's name, as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return model[1].strip() if model else platform.processor() or platform.machine()


def strip_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def one_line(text: str) -> str:
    return " ".join(strip_colours(text).split())[:300]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
