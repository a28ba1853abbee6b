"""The live table of an experiment's runs: redrawn on a terminal, else a line a change."""

import shutil
import sys
import time
from typing import TextIO

from llasa_core.experiments.config import Experiment
from llasa_core.experiments.runner import RunState

QUIET_SECONDS = 60.0  # between two progress lines of one run where the output is not a terminal


class RunTable:
    """Call it with the states of all runs, as often as you like."""

    def __init__(self, experiment: Experiment, stream: TextIO = sys.stderr) -> None:
        self.experiment = experiment
        self.stream = stream
        self.lines_drawn = 0
        self.shown: dict[str, tuple[str, float]] = {}  # run id -> state and time of its last line
        self.drawn_at = 0.0

    def __call__(self, states: list[RunState]) -> None:
        if self.stream.isatty():
            self.redraw(states)
        else:
            self.report(states)

    def redraw(self, states: list[RunState]) -> None:
        changed = {state.run.id: (state.state, 0.0) for state in states}
        if changed == self.shown and time.monotonic() - self.drawn_at < 1.0:
            return
        self.shown, self.drawn_at = changed, time.monotonic()
        width, height = shutil.get_terminal_size()
        order = {"running": 0, "failed": 1, "waiting": 2, "done": 3, "skipped": 3}
        rows = sorted(states, key=lambda state: order[state.state])[: max(1, height - 3)]
        lines = [self.headline(states)] + [describe(state)[: width - 1] for state in rows]
        up = f"\x1b[{self.lines_drawn}F" if self.lines_drawn else ""
        self.stream.write(up + "".join(f"\x1b[2K{line}\n" for line in lines) + "\x1b[J")
        self.stream.flush()
        self.lines_drawn = len(lines)

    def report(self, states: list[RunState]) -> None:
        now = time.monotonic()
        for state in states:
            last, at = self.shown.get(state.run.id, ("waiting", now))
            quiet = state.state != "running" or now - at < QUIET_SECONDS
            if state.state == last and quiet:
                self.shown.setdefault(state.run.id, (last, at))
                continue
            self.shown[state.run.id] = (state.state, now)
            print(describe(state), file=self.stream, flush=True)

    def headline(self, states: list[RunState]) -> str:
        counts = {
            name: sum(state.state == name for state in states)
            for name in ("done", "skipped", "failed")
        }
        ended = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return f"{self.experiment.name}: {len(states)} runs{': ' + ended if ended else ''}"


def describe(state: RunState) -> str:
    """One line: state, run id, time, cell, last line of output."""
    minutes, seconds = divmod(int(state.seconds), 60)
    clock = f"{minutes}:{seconds:02d}" if state.state not in ("waiting", "skipped") else ""
    cell = f"cell {state.cell}" if state.state == "running" and state.cell else ""
    return f"{state.state:8} {state.run.id:32} {clock:>6} {cell:11} {state.line}".rstrip()


def plan(experiment: Experiment, only: str = "") -> str:
    """Table of a dry run: every run, whether it is done, and the parameters that differ."""
    runs = experiment.chosen(only)
    varied = [name for name in runs[0].params if len({repr(run.params[name]) for run in runs}) > 1]
    lines = [f"{experiment.name}: {len(runs)} runs of {experiment.notebook}"]
    for run in runs:
        values = " ".join(f"{name}={_clipped(str(run.params[name]))}" for name in varied)
        lines.append(
            f"{'done' if experiment.is_done(run) else 'to do':8} {run.id:32} {values}".rstrip()
        )
    return "\n".join(lines)


def _clipped(text: str, most: int = 60) -> str:
    """The end of a long path tells it from others, the beginning of anything else."""
    if len(text) <= most:
        return text
    return f"..{text[2 - most :]}" if "/" in text and " " not in text else f"{text[: most - 2]}.."
