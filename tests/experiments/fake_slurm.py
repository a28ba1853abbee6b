"""A Slurm of one node made of files, for tests: sbatch, srun, squeue, scontrol requeue, scancel
--signal.

`python fake_slurm.py PROGRAM ARGUMENTS`, jobs as JSON in the folder $FAKE_SLURM. As in Slurm, a
signal goes to every process of the steps and not to the batch script, and a requeued job is killed
and started again.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

FOLDER = Path(os.environ["FAKE_SLURM"])


def sbatch(script):
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", Path(script).read_text(), re.M))
    if options.get("partition") == "nowhere":
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    number = 1 + len({path.name.split("_")[0] for path in FOLDER.glob("*.job")})
    last = re.match(r"0-(\d+)", options.get("array", ""))
    for index in range(int(last[1]) + 1) if last else [None]:
        job = {
            "id": f"{number}_{index}" if last else str(number),
            "number": number,
            "index": index,
            "restarts": 0,
        }
        job |= {"script": os.path.realpath(script), "options": options, "state": "PENDING"}
        write(job)
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        subprocess.Popen(
            [sys.executable, __file__, "execute", job["id"]], start_new_session=True, **streams
        )
    print(f"Submitted batch job {number}")


def execute(job_id):
    job = read(job_id)
    options = job["options"]
    while job["state"] == "PENDING":
        environment = {
            "JOB_ID": str(job["number"]),
            "NTASKS": "1",
            "JOB_NUM_NODES": "1",
            "NODEID": "0",
            "PROCID": "0",
        }
        environment |= {
            "LOCALID": "0",
            "JOB_NODELIST": socket.gethostname(),
            "CPUS_PER_TASK": options["cpus-per-task"],
        }
        environment |= {"RESTART_COUNT": str(job["restarts"])} if job["restarts"] else {}
        if job["index"] is not None:
            environment |= {"ARRAY_JOB_ID": str(job["number"]), "ARRAY_TASK_ID": str(job["index"])}
        environment = {f"SLURM_{name}": value for name, value in environment.items()}
        process = subprocess.Popen(
            ["bash", job["script"]], cwd=options["chdir"], env=os.environ | environment
        )
        write(job | {"state": "RUNNING", "pid": process.pid})
        while process.poll() is None and read(job_id)["state"] == "RUNNING":
            time.sleep(0.05)
        job = read(job_id)
        if job["state"] == "REQUEUED":
            job |= {"state": "PENDING", "restarts": job["restarts"] + 1}
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait()
        else:
            job["state"] = "ENDED"
        write(job)


def srun(*arguments):
    arguments, names = (
        list(arguments),
        {"%j": "SLURM_JOB_ID", "%A": "SLURM_ARRAY_JOB_ID", "%a": "SLURM_ARRAY_TASK_ID"},
    )
    while arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option in ("--output", "--error"):
            path = arguments.pop(0).replace("%t", "0")
            for mark, name in names.items():
                path = path.replace(mark, os.environ.get(name, ""))
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1 if option == "--output" else 2)
    os.execvp(arguments[0], arguments)


def squeue(*arguments):
    names = next(text for text in arguments if text.startswith("--name="))[7:].split(",")
    for path in sorted(FOLDER.glob("*.job")):
        job = json.loads(path.read_text())
        if job["options"]["job-name"] in names and job["state"] != "ENDED":
            index = "N/A" if job["index"] is None else job["index"]
            print(
                job["options"]["job-name"], index, job["id"], job["state"], "0:01", "None", sep="|"
            )


def scontrol(command, job_id):
    assert command == "requeue"
    write(read(job_id) | {"state": "REQUEUED"})


def scancel(option, job_id):
    for process in psutil.Process(read(job_id)["pid"]).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(getattr(signal, f"SIG{option.removeprefix('--signal=')}"))


def read(job_id):
    return json.loads((FOLDER / f"{job_id}.job").read_text())


def write(job):
    temporary = FOLDER / f"{job['id']}.{os.getpid()}"
    temporary.write_text(json.dumps(job))
    temporary.replace(FOLDER / f"{job['id']}.job")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
