"""A SLURM of one machine, for tests: `fake_slurm.py COMMAND …` is sbatch, srun, scontrol and sacct; see `install`.

sbatch starts the tasks of a script as SLURM would, with its variables, here. `scontrol requeue` starts the script again
when its tasks have ended. In the folder FAKE_SLURM it leaves the script, and what was asked for.
"""

import os
import random
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from tests.helpers.commands import SERVER, Popen, server

COMMANDS = ("sbatch", "srun", "scontrol", "sacct")


def install(folder):
    """Put the commands into FOLDER/bin; return the variables with which they are found."""
    (folder / "bin").mkdir(parents=True)
    for command in COMMANDS:
        path = folder / "bin" / command
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {command} "$@"\n')
        path.chmod(0o755)
    return {"FAKE_SLURM": str(folder), SERVER: server(), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def options(script):
    """Return what the #SBATCH lines ask for."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, flags=re.MULTILINE))


def sbatch(folder, path):
    job = random.randrange(10**4, 10**6)
    (folder / f"{job}.sh").write_text(Path(path).read_text())
    if not (folder / "only note").exists():
        log = (folder / "log").open("a")
        subprocess.Popen([sys.executable, __file__, "run", str(job)], stdout=log, stderr=log, start_new_session=True)
    print(f"Submitted batch job {job}")


def elements(folder, job):
    """Return the numbers of a job's array, or one None."""
    array = options((folder / f"{job}.sh").read_text()).get("array")
    return range(int(re.match(r"0-(\d+)", array)[1]) + 1) if array else [None]


def run(folder, job):
    """Run a submitted script, each element of its array if it has one, until nobody requeues it."""
    script = folder / f"{job}.sh"
    wanted = options(script.read_text())
    nodes, tasks = int(wanted["nodes"]), int(wanted["ntasks-per-node"])
    common = {"SLURM_JOB_NAME": wanted["job-name"], "SLURM_NODELIST": "127.0.0.1", "SLURM_NTASKS": str(nodes * tasks)}
    common |= {"SLURM_NNODES": str(nodes), "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_NTASKS_PER_NODE": str(tasks)}
    for element in elements(folder, job):
        own = {"SLURM_JOB_ID": str(int(job) + (element or 0))}
        if element is not None:
            own |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(element)}
        asked = folder / f"requeue {job}{'' if element is None else f'_{element}'}"
        for restart in range(5):
            subprocess.run(["bash", script], env={**os.environ, **common, **own, "SLURM_RESTART_COUNT": str(restart)})
            if not asked.exists():
                break
            asked.rename(folder / f"{asked.name} done")
    (folder / f"{job} ended").touch()


def srun(folder, *words):
    words = list(words)
    files = {}
    while words[0].startswith("--"):
        option = words.pop(0)
        if option in ("--output", "--error"):
            files[option] = words.pop(0)
    job, tasks = os.environ["SLURM_JOB_ID"], int(os.environ["SLURM_NTASKS_PER_NODE"])
    started = []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        ids = {"%j": job, "%t": str(rank), "%A": os.environ.get("SLURM_ARRAY_JOB_ID", "")}
        ids["%a"] = os.environ.get("SLURM_ARRAY_TASK_ID", "")
        out, err = (Path(named(files[key], ids)) for key in ("--output", "--error"))
        out.parent.mkdir(parents=True, exist_ok=True)
        own = {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank // tasks), "SLURM_LOCALID": str(rank % tasks)}
        with out.open("a") as stdout, err.open("a") as stderr:
            started.append(Popen(words, env={**os.environ, **own}, stdout=stdout, stderr=stderr))
    sys.exit(max(abs(process.wait()) for process in started))


def named(pattern, ids):
    return re.sub("%[jtAa]", lambda found: ids[found[0]], pattern)


def scontrol(folder, word, job):
    assert word == "requeue"
    (folder / f"requeue {job}").touch()


def sacct(folder, *words):
    print("JobID|State|NodeList")
    for before, job in pairwise(words):
        # submitit asks for jobs of other tests, too, if they were never seen to end; a SLURM does not know these
        if before == "-j" and (folder / f"{job}.sh").exists():
            ended = (folder / f"{job} ended").exists() or (folder / "only note").exists()
            for name in (f"{job}_{element}" if element is not None else job for element in elements(folder, job)):
                print(f"{name}|{'NODE_FAIL' if ended else 'RUNNING'}|here")


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(os.environ["FAKE_SLURM"]), *sys.argv[2:])
