"""Processes of a command end with it: workers watch the process they work for, a signal ends all.

Otherwise workers that outlive a killed command hold its pipes, and a script around it waits for
ever.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import FrameType
from typing import NoReturn

LAUNCHER = "LLASA_LAUNCHER"  # environment: id of the process that started a training of several
WATCH_SECONDS = 0.2


class Terminated(BaseException):
    """SIGTERM has arrived; raised in the main thread, so that what is open is closed."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C where worker processes were at work; they are gone."""


@contextlib.contextmanager
def worker_pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this one, however it ends."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, initializer=_begin_worker, initargs=(os.getpid(),))
    try:
        yield pool
    except (KeyboardInterrupt, Terminated):
        raise  # the workers were killed; to wait for the rest of an answer could take for ever
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _begin_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers
    end_with(parent, child=True)


def end_with(pid: int, child: bool = False) -> None:
    """From now on this process is gone soon after process `pid` is; child: `pid` is its parent."""

    import psutil

    def gone() -> bool:
        if child:
            return os.getppid() != pid
        try:  # one that nobody has waited for yet is still listed
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def watch() -> None:
        while not gone():
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with parent").start()


@contextlib.contextmanager
def signals_end_workers() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the worker processes at once and are raised in the main thread.

    As Terminated and KeyboardInterrupt. Elsewhere than in the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        workers = multiprocessing.active_children()
        for worker in workers:
            worker.kill()
        if workers:
            threading.excepthook = lambda _: None  # of threads that still waited for an answer
        if number == signal.SIGTERM:
            raise Terminated
        raise Interrupted if workers else KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_processes(
    command: Sequence[str], environment: Mapping[str, str], stdout: int | None = None
) -> int:
    """Run python with these arguments, a launcher of several processes (torchrun), to its end.

    Returns its exit status. stdout: as subprocess takes it.

    They find this process's id in LAUNCHER, to end with it. An exception here ends them: asked
    first, killed after a second.
    """
    env = {**environment, LAUNCHER: str(os.getpid())}
    process = subprocess.Popen([sys.executable, *command], env=env, stdout=stdout)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            process.kill()
            process.wait()


def leave_now(status: int) -> NoReturn:
    """End this process and what it has started, without waiting for threads that expect answers."""
    import psutil

    for child in psutil.Process().children(recursive=True):  # one that was just being started too
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
