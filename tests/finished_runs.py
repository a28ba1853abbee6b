"""Finished runs made up for tests of what reads results/: a folder with result.json and JSON-lines
files.
"""

import hashlib
import json


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_run(results, experiment, run, metrics, params=None, **files):
    """A finished run with its JSON-lines files, as the runner leaves it."""
    folder = results / experiment / run
    folder.mkdir(parents=True)
    artifacts = {}
    for name, rows in files.items():
        text = lines(rows)
        (folder / f"{name}.jsonl").write_text(text)
        place = f"results/{experiment}/{run}/{name}.jsonl"
        artifacts[name] = {"path": place, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    result = {
        "schema": 1,
        "experiment": experiment,
        "run": run,
        "notebook": "n.ipynb",
        "params": params or {},
    }
    result |= {
        "metrics": metrics,
        "artifacts": artifacts,
        "provenance": {"seconds": 3.0, "git_sha": "abc"},
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder
